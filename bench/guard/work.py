"""The fixed work of the guard, run under callgrind: `python -m bench.guard.work NAME COUNT` does it COUNT times. Needs the faces."""

from __future__ import annotations

import sys
from collections.abc import Callable

from tests.face.broker_tree import RoutesFace, TrieFace, handle
from tests.face.net_outq import Bench
from tests.face.proto import time_decode, time_encode

from mqttc import codec

TOPIC = "sensors/room/42/temp"
PAYLOAD = b"x" * 39
FILTERS = 5000
TOPICS = 70
FLUSH = 64  # messages between two flushes of an output queue


def wire(packet: codec.Packet, version: int) -> bytes:
    return codec.encode(packet, version)


def tree() -> TrieFace:
    made = TrieFace()
    for number in range(FILTERS - 5):
        made.subscribe(b"plant/%d/+/device%d/#" % (number % 50, number), handle(number % 4, number), 1)
    for number, wide in enumerate([b"#", b"plant/#", b"+/7/#", b"plant/+/x/+/temperature", b"+/+/+/+/+/+"]):
        made.subscribe(wide, handle(0, FILTERS + number), 1)
    return made


def topics() -> list[bytes]:
    """Many, for where one lies in a hash table is chance: seeds are drawn anew in each process."""
    return [b"plant/7/x/device%d/temperature" % (50 * number + 7) for number in range(TOPICS)]


def decode_publish(count: int) -> None:
    time_decode(4, wire(codec.Publish(TOPIC, PAYLOAD), 4), count)


def decode_publish_properties(count: int) -> None:
    properties = codec.Properties(content_type="text/plain", message_expiry_interval=60, user_properties=[("unit", "celsius")])
    time_decode(5, wire(codec.Publish(TOPIC, PAYLOAD, qos=1, packet_id=7, properties=properties), 5), count)


def decode_puback(count: int) -> None:
    time_decode(4, wire(codec.Puback(7), 4), count)


def encode_publish(count: int) -> None:
    time_encode(4, TOPIC.encode(), PAYLOAD, 1, count)


def encode_publish5(count: int) -> None:
    time_encode(5, TOPIC.encode(), PAYLOAD, 1, count)


def match(count: int) -> None:
    made = tree()
    for topic in topics():
        assert made.match_often(topic, count // TOPICS) >= 4


def route_hit(count: int) -> None:
    routes = RoutesFace(tree(), 4, 1024)
    for topic in topics():
        routes.lookup(topic)
    for topic in topics():
        assert routes.lookup_often(topic, count // TOPICS) >= 1


def queue_private(count: int) -> None:
    Bench().private(FLUSH, 64, count // FLUSH)


def queue_shared(count: int) -> None:
    Bench().shared(FLUSH, 64, count // FLUSH, True)


WORK: dict[str, Callable[[int], None]] = {
    "decode-publish": decode_publish,
    "decode-publish-properties": decode_publish_properties,
    "decode-puback": decode_puback,
    "encode-publish": encode_publish,
    "encode-publish5": encode_publish5,
    "match": match,
    "route-hit": route_hit,
    "queue-private": queue_private,
    "queue-shared": queue_shared,
}

if __name__ == "__main__":
    WORK[sys.argv[1]](int(sys.argv[2]))
