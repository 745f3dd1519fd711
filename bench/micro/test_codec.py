"""The codec next to mqtt5 from PyPI (a Rust codec), in one run: `python -m pytest bench/micro/test_codec.py`.

Each round works through BATCH packets, so that the harness costs little; `extra_info["ns_per_packet"]` is the figure to read (printed with
`-s`, saved with `--benchmark-json`). The packet is a version 5 PUBLISH of 64 bytes in all, QoS 0 unless said otherwise. The `native`
group needs the faces (`python tools/dev.py build`) and measures decode and encode without any Python object.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import repeat
from typing import Any

import pytest

from mqttc import codec

mqtt5 = pytest.importorskip("mqtt5")

BATCH = 1000
TOPIC = "sensors/room/42/temp"
PAYLOAD = b"x" * 39
READY = codec.Publish(TOPIC, PAYLOAD)
WIRE = codec.encode(READY)
assert len(WIRE) == 64
RICH = {"content_type": "text/plain", "message_expiry_interval": 60, "user_properties": [("unit", "celsius")]}


def run(benchmark: Any, work: Callable[[], object], packets: int = BATCH) -> None:
    benchmark.pedantic(work, rounds=200, warmup_rounds=10)
    ns = benchmark.stats.stats.median / packets * 1e9
    benchmark.extra_info["ns_per_packet"] = round(ns, 1)
    print(f" {benchmark.name}: {ns:.1f} ns a packet", end="")


def read_ours(wire: bytes) -> Callable[[], object]:
    feed = codec.Decoder(5).feed

    def work() -> None:
        for data in repeat(wire, BATCH):
            next(feed(data))

    return work


def read_theirs(wire: bytes) -> Callable[[], object]:
    view = memoryview(wire)
    read = mqtt5.read

    def work() -> None:
        for data in repeat(view, BATCH):
            read(data)

    return work


@pytest.mark.benchmark(group="read")
@pytest.mark.parametrize("make", [read_ours, read_theirs], ids=["mqttc", "mqtt5"])
def test_read(benchmark: Any, make: Callable[[bytes], Callable[[], object]]) -> None:
    run(benchmark, make(WIRE))


@pytest.mark.benchmark(group="read, three properties")
@pytest.mark.parametrize("make", [read_ours, read_theirs], ids=["mqttc", "mqtt5"])
def test_read_properties(benchmark: Any, make: Callable[[bytes], Callable[[], object]]) -> None:
    run(benchmark, make(codec.encode(READY.replace(properties=codec.Properties(**RICH)))))  # type: ignore[arg-type]


def stream_ours() -> Callable[[], object]:
    decoder, data = codec.Decoder(5), WIRE * BATCH

    def work() -> None:
        for _ in decoder.feed(data):
            pass

    return work


def stream_theirs() -> Callable[[], object]:
    view, read = memoryview(WIRE * BATCH), mqtt5.read

    def work() -> None:
        at = 0
        while at < len(view):
            at += read(view[at:])[1]

    return work


@pytest.mark.benchmark(group="read, a stream in one piece")
@pytest.mark.parametrize("make", [stream_ours, stream_theirs], ids=["mqttc", "mqtt5"])
def test_stream(benchmark: Any, make: Callable[[], Callable[[], object]]) -> None:
    run(benchmark, make())


def write_ours() -> Callable[[], object]:
    encode = codec.encode

    def work() -> None:
        for packet in repeat(READY, BATCH):
            encode(packet)

    return work


def write_theirs() -> Callable[[], object]:
    write = mqtt5.PublishPacket(TOPIC, PAYLOAD).write

    def work() -> None:
        for _ in repeat(None, BATCH):
            write()

    return work


@pytest.mark.benchmark(group="write a ready packet")
@pytest.mark.parametrize("make", [write_ours, write_theirs], ids=["mqttc", "mqtt5"])
def test_write(benchmark: Any, make: Callable[[], Callable[[], object]]) -> None:
    run(benchmark, make())


def build_ours(qos: bool) -> Callable[[], object]:
    encode, publish, level = codec.encode, codec.Publish, codec.QoS.AT_LEAST_ONCE

    def plain() -> None:
        for _ in repeat(None, BATCH):
            encode(publish(TOPIC, PAYLOAD))

    def acknowledged() -> None:
        for _ in repeat(None, BATCH):
            encode(publish(TOPIC, PAYLOAD, qos=level, packet_id=5))

    return acknowledged if qos else plain


def build_theirs(qos: bool) -> Callable[[], object]:
    publish, level = mqtt5.PublishPacket, mqtt5.QoS.AT_LEAST_ONCE

    def plain() -> None:
        for _ in repeat(None, BATCH):
            publish(TOPIC, PAYLOAD).write()

    def acknowledged() -> None:
        for _ in repeat(None, BATCH):
            publish(TOPIC, PAYLOAD, qos=level, packet_id=5).write()

    return acknowledged if qos else plain


@pytest.mark.benchmark(group="build and write")
@pytest.mark.parametrize("make", [build_ours, build_theirs], ids=["mqttc", "mqtt5"])
def test_build_and_write(benchmark: Any, make: Callable[[bool], Callable[[], object]]) -> None:
    run(benchmark, make(False))


@pytest.mark.benchmark(group="build and write, QoS 1")
@pytest.mark.parametrize("make", [build_ours, build_theirs], ids=["mqttc", "mqtt5"])
def test_build_and_write_qos_1(benchmark: Any, make: Callable[[bool], Callable[[], object]]) -> None:
    run(benchmark, make(True))


@pytest.fixture
def native() -> Iterator[Any]:
    yield pytest.importorskip("tests.face.proto")


ROUNDS = 1_000_000


@pytest.mark.benchmark(group="native")
@pytest.mark.parametrize(
    "name", ["decode PUBLISH 3.1.1", "decode PUBLISH 5", "decode PUBLISH 5, properties", "decode PUBACK", "encode PUBLISH"]
)
def test_native(benchmark: Any, native: Any, name: str) -> None:
    rich = codec.encode(READY.replace(properties=codec.Properties(**RICH)))  # type: ignore[arg-type]
    work: dict[str, Callable[[], object]] = {
        "decode PUBLISH 3.1.1": lambda: native.time_decode(4, codec.encode(codec.Publish(TOPIC, PAYLOAD + b"x"), 4), ROUNDS),
        "decode PUBLISH 5": lambda: native.time_decode(5, WIRE, ROUNDS),
        "decode PUBLISH 5, properties": lambda: native.time_decode(5, rich, ROUNDS),
        "decode PUBACK": lambda: native.time_decode(5, codec.encode(codec.Puback(1)), ROUNDS),
        "encode PUBLISH": lambda: native.time_encode(5, TOPIC.encode(), PAYLOAD, 0, ROUNDS),
    }
    benchmark.pedantic(work[name], rounds=10)
    start = time.perf_counter()
    work[name]()
    benchmark.extra_info["ns_per_packet"] = round((time.perf_counter() - start) / ROUNDS * 1e9, 1)
    print(f" {name}: {benchmark.stats.stats.median / ROUNDS * 1e9:.1f} ns a packet", end="")
