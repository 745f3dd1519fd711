"""Every packet of every version comes back as it went, however the stream is cut."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqttc import codec
from tests.face import proto
from tests.proto.strategies import VERSIONS, left_over, packets

versions = st.sampled_from(VERSIONS)


def encoded(packet: codec.Packet, version: int) -> bytes | None:
    """None, after checking that it is refused, if the version cannot say the packet."""
    if left_over(packet, version) is None:
        with pytest.raises(codec.EncodeError):
            codec.encode(packet, version)
        return None
    return codec.encode(packet, version)


@given(packets, versions)
def test_packet_comes_back(packet: codec.Packet, version: int) -> None:
    data = encoded(packet, version)
    if data is None:
        return
    decoder = codec.Decoder(version)
    (back,) = decoder.feed(data)
    assert back == left_over(packet, version)
    assert decoder.buffered == 0
    assert codec.encode(back, version) == data


@given(packets)
def test_repr_pickle_hash_and_replace_keep_the_value(packet: codec.Packet) -> None:
    password = packet.password if isinstance(packet, codec.Connect) else None
    said = eval(repr(packet).replace("password=***", f"password={password!r}"), vars(codec).copy())
    assert said == packet and hash(said) == hash(packet)
    assert pickle.loads(pickle.dumps(packet)) == packet
    assert packet.replace() == packet


@given(packets, versions)
def test_the_native_encoder_gives_back_the_bytes(packet: codec.Packet, version: int) -> None:
    data = encoded(packet, version)
    if data is not None and data[:2] != b"\xf0\x00":
        assert proto.recode(version, data) == data


@given(packets, versions)
def test_typed_properties_encode_to_the_same_values(packet: codec.Packet, version: int) -> None:
    """The broker builds packets from typed fields, the Python packets from wire bytes: both must say the same."""
    data = encoded(packet, version)
    if data is not None and data[:2] != b"\xf0\x00":
        again = proto.recode_typed(version, data)
        assert len(again) == len(data)
        assert next(codec.Decoder(version).feed(again)) == left_over(packet, version)


@given(packets, versions)
def test_the_hot_decoders_agree_with_the_general_one(packet: codec.Packet, version: int) -> None:
    data = encoded(packet, version)
    if data is None:
        return
    status, general = proto.decode(version, data)
    hot_status, hot = proto.decode(version, data, True)
    assert status == hot_status == 0
    assert {name: value for name, value in general.items() if name in hot and name != "props"} == {
        name: value for name, value in hot.items() if name != "props"
    }
    assert {name: general["props"][name] for name in hot["props"]} == hot["props"]


def fed(decoder: codec.Decoder, pieces: list[bytes]) -> list[codec.Packet]:
    return [packet for piece in pieces for packet in decoder.feed(piece)]


@given(st.lists(packets, min_size=1, max_size=6), versions, st.booleans(), st.data())
def test_any_split_gives_the_same_packets(stream: list[codec.Packet], version: int, views: bool, data: st.DataObject) -> None:
    wires = [wire for packet in stream if (wire := encoded(packet, version)) is not None]
    expected = [left_over(packet, version) for packet in stream if left_over(packet, version) is not None]
    whole = b"".join(wires)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=8)))
    pieces = [whole[start:end] for start, end in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    assert fed(codec.Decoder(version, payload_views=views), pieces) == expected
    # fed without taking anything out in between
    decoder = codec.Decoder(version, payload_views=views)
    for piece in pieces:
        decoder.feed(piece)
    assert list(decoder) == expected


@given(st.lists(packets, min_size=1, max_size=3), versions)
def test_byte_by_byte(stream: list[codec.Packet], version: int) -> None:
    wires = [wire for packet in stream if (wire := encoded(packet, version)) is not None]
    decoder = codec.Decoder(version)
    got = []
    for wire in wires:
        for at in range(len(wire)):
            taken = list(decoder.feed(wire[at : at + 1]))
            assert bool(taken) == (at == len(wire) - 1), "a packet comes out with its last byte"
            got += taken
    assert got == [left for packet in stream if (left := left_over(packet, version)) is not None]
    assert decoder.buffered == 0
