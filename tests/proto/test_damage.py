"""Packets that are cut, changed or made of chance: an error or a packet, never a read past the end (the faces decode from exact blocks)."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mqttc import codec
from tests.face import proto
from tests.proto.strategies import VERSIONS, left_over, packets
from tests.proto.wire import varint

versions = st.sampled_from(VERSIONS)
ERRORS = range(-0xA2, -0x7F)


def body_of(data: bytes) -> int:
    """Where the body begins."""
    at = 1
    while data[at] & 0x80:
        at += 1
    return at + 1


@given(packets, versions)
def test_every_truncation_needs_more(packet: codec.Packet, version: int) -> None:
    if left_over(packet, version) is None:
        return
    data = codec.encode(packet, version)[:400]
    whole = len(codec.encode(packet, version))
    for n in range(min(len(data), whole - 1) + 1):
        status, *_, total = proto.frame(data[:n])
        assert status == proto.NEED_MORE
        assert total == (whole if n >= body_of(data) else 0)


@given(packets, versions)
def test_every_body_cut_short_is_an_error_or_a_shorter_packet(packet: codec.Packet, version: int) -> None:
    """The length says that the packet ends where it was cut."""
    if left_over(packet, version) is None:
        return
    data = codec.encode(packet, version)[:300]
    body = data[body_of(data) :]
    for n in range(len(body)):
        cut = data[:1] + varint(n) + body[:n]
        for hot in (False, True):
            status, said = proto.decode(version, cut, hot)
            if status == 0:
                assert may_be_shorter(version, data[0] >> 4, said)
            else:
                assert status in ERRORS


def may_be_shorter(version: int, kind: int, said: dict[str, object]) -> bool:
    """Where a packet may end early: payloads and lists, what 5.0 lets out at the end, and user name and password of 3.1."""
    if kind in (3, 8, 9, 10, 11):
        return True
    if kind == 1:
        return version == 3 and not (said["has_username"] and said["has_password"])
    return version == 5 and kind in (4, 5, 6, 7, 14, 15)


@settings(max_examples=400)
@given(packets, versions, st.data())
def test_changed_bytes(packet: codec.Packet, version: int, data: st.DataObject) -> None:
    if left_over(packet, version) is None:
        return
    wire = bytearray(codec.encode(packet, version))
    for _ in range(data.draw(st.integers(1, 4))):
        wire[data.draw(st.integers(0, len(wire) - 1))] = data.draw(st.integers(0, 255))
    check_any_bytes(version, bytes(wire))


@settings(max_examples=600)
@given(versions, st.integers(0, 255), st.binary(max_size=60))
@example(4, 0x82, b"\0\1\0\0\0")  # an empty filter, which the decoder leaves to the receiver
@example(4, 0x82, b"\0\1\0\2a#\1\0\1b\2")
@example(5, 0x82, b"\0\1\0\0\2a#\x2d")
@example(5, 0x10, bytes.fromhex("00044D5154540502003C0000") + b"\0\0")
def test_random_bodies(version: int, first: int, body: bytes) -> None:
    check_any_bytes(version, bytes([first]) + varint(len(body)) + body)


@settings(max_examples=600)
@given(versions, st.binary(max_size=40))
def test_random_bytes(version: int, data: bytes) -> None:
    check_any_bytes(version, data)


@settings(max_examples=600)
@given(st.sampled_from([0x10, 0x20, 0x30, 0x32, 0x40, 0x82, 0x90, 0xA2, 0xB0, 0xE0, 0xF0]), st.lists(
    st.sampled_from([
        b"\0", b"\x01", b"\x02", b"\x05", b"\x26\0\1a\0\1b", b"\x1f\0\1r", b"\x0b\x05", b"\x23\0\1", b"\x15\0\1m", b"\x16\0\1d",
        b"\0\1a", b"\0\4MQTT", b"\xff", b"\x80", b"\x81", b"\0\0", b"\x21\0\1", b"\x27\0\0\0\x09", b"\x11\0\0\0\x09", b"\x08\0\1t",
    ]), max_size=12,
))  # fmt: skip
def test_plausible_pieces(first: int, pieces: list[bytes]) -> None:
    body = b"".join(pieces)
    for version in VERSIONS:
        check_any_bytes(version, bytes([first]) + varint(len(body)) + body)


def check_any_bytes(version: int, data: bytes) -> None:
    """Native and Python agree; what decodes encodes to something that decodes to the same."""
    status, said = proto.decode(version, data)
    assert status in (0, proto.NEED_MORE) or status in ERRORS
    assert proto.decode(version, data, True)[0] == status
    decoder = codec.Decoder(version)
    if status == proto.NEED_MORE:
        assert list(decoder.feed(data)) == []
        assert decoder.buffered == len(data)
        return
    if status != 0:
        with pytest.raises(codec.DecodeError) as caught:
            next(decoder.feed(data))
        assert caught.value.reason_code == -status
        return
    if data[0] >> 4 == 1 and said["protocol_level"] != version:
        with pytest.raises(codec.UnsupportedVersionError):
            next(decoder.feed(data))
        return
    packet = next(decoder.feed(data))
    assert said["type"] == packet.packet_type
    repr(packet), hash(packet)
    if version == 3 and isinstance(packet, codec.Suback):
        return  # 0x80 can be read from careless servers, not written
    again = codec.encode(packet, version)
    assert next(codec.Decoder(version).feed(again)) == packet
