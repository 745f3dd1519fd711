"""The Python decoder: versions, limits, buffers, memory."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc

import pytest

from mqttc import codec
from tests.face import proto
from tests.proto.wire import connect, packet, string


@pytest.mark.parametrize("version", [3, 4, 5])
def test_the_version_is_learnt_from_connect(version: int) -> None:
    decoder = codec.Decoder()
    assert decoder.version is None
    ping = b"\xc0\x00"
    got = list(decoder.feed(connect(version) + ping))
    assert decoder.version == version
    assert got == [codec.Connect("c1"), codec.Pingreq()]


def test_connect_must_come_first() -> None:
    """[MQTT-3.1.0-1]"""
    with pytest.raises(codec.ProtocolViolationError, match="CONNECT must come first"):
        next(codec.Decoder().feed(b"\xc0\x00"))


def test_a_connect_of_another_version() -> None:
    with pytest.raises(codec.UnsupportedVersionError, match="protocol level 4") as caught:
        next(codec.Decoder(5).feed(connect(4)))
    assert caught.value.reason_code == codec.ReasonCode.UNSUPPORTED_PROTOCOL_VERSION


@pytest.mark.parametrize("version", [0, 2, 6, 259, -1])
def test_versions_that_do_not_exist(version: int) -> None:
    with pytest.raises(ValueError, match="must be 3"):
        codec.Decoder(version)
    with pytest.raises(ValueError, match="must be 3"):
        codec.encode(codec.Pingreq(), version)


@pytest.mark.parametrize("size", [2, 100, 127, 128, 129, 131, 132, 16384, 16386, 16388, 16389])
def test_the_limit_counts_the_whole_packet(size: int) -> None:
    """Exactly the limit passes; one more is refused as soon as the length is known."""
    head = 2 if size <= 129 else 3 if size <= 16386 else 4
    body = size - head
    data = packet(0x30, string("a"), b"x" * (body - 3)) if body >= 3 else b"\xc0\x00"
    assert len(data) == size
    assert len(list(codec.Decoder(4, max_packet_size=size).feed(data))) == 1
    if size == 2:
        return
    decoder = codec.Decoder(4, max_packet_size=size - 1)
    assert list(decoder.feed(data[: head - 1])) == []
    with pytest.raises(codec.PacketTooLargeError, match=f"{size} bytes, over the limit of {size - 1}") as caught:
        next(decoder.feed(data[head - 1 : head]))
    assert caught.value.reason_code == codec.ReasonCode.PACKET_TOO_LARGE
    assert proto.frame(data, size)[0] == 0
    assert proto.frame(data[:head], size - 1)[0] == -0x95


@pytest.mark.parametrize("limit", [0, 1, 268435461, -1])
def test_limits_that_make_no_sense(limit: int) -> None:
    with pytest.raises(ValueError, match="max_packet_size"):
        codec.Decoder(4, max_packet_size=limit)


def test_the_largest_length() -> None:
    assert proto.frame(b"\x30\xff\xff\xff\x7f") == (proto.NEED_MORE, 3, 0, 268435455, 268435460)
    decoder = codec.Decoder(4)
    assert list(decoder.feed(b"\x30\xff\xff\xff\x7f")) == []
    assert decoder.buffered == 5


def test_an_announced_length_takes_no_memory() -> None:
    """Only what has arrived is held, doubled at most."""
    tracemalloc.start()
    decoder = codec.Decoder(4)
    list(decoder.feed(b"\x30\xff\xff\xff\x7f\x00\x01a"))
    for _ in range(100):
        list(decoder.feed(b"x" * 1000))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert decoder.buffered == 100_008
    assert peak < 100_008 * 4, peak


def test_what_was_fed_is_let_go() -> None:
    decoder = codec.Decoder(4)
    data = packet(0x30, string("a"), b"x" * 10_000_000)
    before = sys.getrefcount(data)
    (publish,) = decoder.feed(data)
    assert sys.getrefcount(data) == before
    assert isinstance(publish, codec.Publish) and len(publish.payload) == 10_000_000


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
@pytest.mark.parametrize("views", [False, True])
def test_buffers(kind: type, views: bool) -> None:
    data = packet(0x30, string("a"), b"payload") * 2
    decoder = codec.Decoder(4, payload_views=views)
    source = kind(data)
    first, second = decoder.feed(source)
    if kind is bytearray:
        source[:] = b"\xff" * len(source)
        source.clear()  # not locked by a view
    assert isinstance(first, codec.Publish)
    assert isinstance(first.payload, memoryview if views else bytes)
    assert first.payload == b"payload"
    assert first == second == codec.Publish("a", b"payload")
    assert hash(first) == hash(codec.Publish("a", b"payload"))
    assert codec.encode(first, 4) == data[: len(data) // 2]


def test_views_are_read_only_and_outlive_the_decoder() -> None:
    decoder = codec.Decoder(4, payload_views=True)
    data = packet(0x30, string("a"), b"one")
    (whole,) = decoder.feed(data)
    assert list(decoder.feed(data[:6])) == []
    (split,) = decoder.feed(data[6:])
    list(decoder.feed(packet(0x30, string("a"), b"two")[:6]))
    del decoder
    for publish in (whole, split):
        assert isinstance(publish, codec.Publish) and isinstance(publish.payload, memoryview)
        assert publish.payload.readonly and publish.payload == b"one"


def test_a_view_into_memory_that_is_not_contiguous() -> None:
    data = packet(0x30, string("a"), b"payload")
    doubled = bytes(byte for byte in data for _ in range(2))
    assert list(codec.Decoder(4).feed(memoryview(doubled)[::2])) == [codec.Publish("a", b"payload")]


@pytest.mark.parametrize("data", ["text", 5, None, [1, 2]])
def test_what_is_not_bytes(data: object) -> None:
    decoder = codec.Decoder(4)
    with pytest.raises(TypeError):
        decoder.feed(data)  # type: ignore[arg-type]
    assert decoder.buffered == 0


def test_the_good_packets_before_a_bad_one_come_out() -> None:
    decoder = codec.Decoder(5)
    got = []
    with pytest.raises(codec.MalformedPacketError, match="PINGREQ: malformed packet \\(0x81\\)"):
        for packet in decoder.feed(b"\xc0\x00\xd0\x00\xc1\x00\xc0\x00"):
            got.append(packet)
    assert got == [codec.Pingreq(), codec.Pingresp()]


def test_feeding_nothing() -> None:
    decoder = codec.Decoder(5)
    assert list(decoder.feed(b"")) == []
    assert list(decoder) == []
    assert list(decoder.feed(b"\xc0")) == []
    assert list(decoder.feed(b"")) == []
    assert decoder.buffered == 1
    assert list(decoder.feed(b"\x00")) == [codec.Pingreq()]


def test_the_codec_alone() -> None:
    """Importing it brings no event loop, no configuration and no other extension of the broker."""
    code = (
        "import sys, mqttc.codec\n"
        "for name in ('asyncio', 'pydantic', 'socket', 'ssl'): assert name not in sys.modules, name\n"
        "floors = {name.split('.')[1] for name in sys.modules if name.startswith('mqttc.')}\n"
        "assert floors <= {'codec', 'proto', 'base'}, floors"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
