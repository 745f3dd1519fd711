"""What the client's hot path uses says the same as one packet at a time: `publish_bytes`, `Decoder.run`, `run_end`, `Received`."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from mqttc import codec
from mqttc.codec import Properties, Publish, Received

TOLD = Properties(content_type="a", user_properties=[("k", "v")])
CASES: list[dict[str, Any]] = [
    {"topic": "a/b"},
    {"topic": "ä/€", "payload": b"x" * 300},
    {"topic": "a", "qos": 1, "packet_id": 1},
    {"topic": "a", "qos": 2, "packet_id": 65535, "dup": True, "retain": True},
    {"topic": "a", "properties": TOLD},
    {"topic": "", "properties": Properties(topic_alias=3)},
    {"topic": "a", "properties": Properties()},
]
WRONG: list[dict[str, Any]] = [
    {"topic": ""},
    {"topic": "a/#"},
    {"topic": "a\0"},
    {"topic": "\ud800"},
    {"topic": "a" * 65536},
    {"topic": "a", "qos": 3},
    {"topic": "a", "qos": 1},
    {"topic": "a", "packet_id": 1},
    {"topic": "a", "dup": True},
    {"topic": "a", "qos": 1, "packet_id": 65536},
    {"topic": "a", "qos": 1, "packet_id": -1},
    {"topic": "a", "properties": Properties(receive_maximum=1)},
]


@pytest.mark.parametrize("version", [3, 4, 5])
@pytest.mark.parametrize("case", CASES + WRONG, ids=lambda case: repr(case)[:60])
def test_publish_bytes(case: dict[str, Any], version: int) -> None:
    def of(make: Any) -> Any:
        try:
            return make()
        except codec.EncodeError as error:
            return type(error), str(error), error.reason_code

    whole = of(lambda: codec.encode(Publish(**case), version))
    assert of(lambda: codec.publish_bytes(**case, version=version)) == whole
    assert isinstance(whole, tuple) or case in CASES


def test_publish_bytes_of_a_version_that_is_none() -> None:
    with pytest.raises(ValueError, match="version 6"):
        codec.publish_bytes("a", b"", version=6)


def stream(*packets: codec.Packet) -> bytes:
    return b"".join(codec.encode(packet, 5) for packet in packets)


ALIASED = Publish("", b"3", properties=Properties(topic_alias=3))
PLAIN = [Publish("a", b"0"), Publish("a", b"1", retain=True), Publish("ä", b"2")]


@pytest.mark.parametrize("cut", range(1, 40, 3))
def test_run_takes_what_is_plain(cut: int) -> None:
    """Whatever the pieces in which it comes."""
    data = stream(*PLAIN, codec.Puback(7), codec.Puback(8, 0x10), ALIASED, codec.Puback(9, 0x87))
    decoder = codec.Decoder(5)
    messages: list[Received] = []
    acknowledged: list[int] = []
    for at in range(0, len(data), cut):
        assert decoder.feed(data[at : at + cut]).run(messages, acknowledged, {3: "three"}) is None
    assert [(m.topic, m.payload, m.retain, m.receipt) for m in messages] == [
        ("a", b"0", False, None),
        ("a", b"1", True, None),
        ("ä", b"2", False, None),
        ("three", b"3", False, None),
    ]
    assert acknowledged == [7, 8 | 0x10 << 16, 9 | 0x87 << 16]
    assert decoder.buffered == 0


@pytest.mark.parametrize(
    "packet",
    [
        Publish("a", b"x", qos=1, packet_id=1),
        Publish("a", b"x", properties=TOLD),
        Publish("a", b"x", properties=Properties(topic_alias=3)),
        Publish("", b"x", properties=Properties(topic_alias=4)),
        Publish("", b"x", properties=Properties(topic_alias=3, content_type="a")),
        codec.Puback(1, properties=Properties(reason_string="r")),
        codec.Pubrec(1),
        codec.Pingresp(),
        codec.Suback(1, [0]),
    ],
    ids=repr,
)
def test_run_gives_back_what_is_not(packet: codec.Packet) -> None:
    decoder = codec.Decoder(5)
    messages: list[Received] = []
    decoder.feed(stream(PLAIN[0], packet, PLAIN[1]))
    assert decoder.run(messages, [], {3: "three"}) == packet and len(messages) == 1
    assert decoder.run(messages, [], {3: "three"}) is None and len(messages) == 2


def test_what_came_before_an_error_is_there() -> None:
    decoder = codec.Decoder(5)
    messages: list[Received] = []
    acknowledged: list[int] = []
    decoder.feed(stream(PLAIN[0], codec.Puback(7)) + b"\x00\x00")
    for _ in range(2):
        with pytest.raises(codec.MalformedPacketError):
            decoder.run(messages, acknowledged, {})
    assert len(messages) == 1 and acknowledged == [7]


def test_topics_of_packets_in_a_row_are_one_object() -> None:
    packets = list(codec.Decoder(5).feed(stream(PLAIN[0], PLAIN[1], Publish("ab"), PLAIN[2], PLAIN[2], PLAIN[0])))
    topics = [packet.topic for packet in packets if isinstance(packet, Publish)]
    assert topics == ["a", "a", "ab", "ä", "ä", "a"]
    assert topics[0] is topics[1]


class Message(Received):
    __slots__ = ()


def test_run_end() -> None:
    messages: list[Any] = []
    codec.Decoder(5).feed(stream(PLAIN[0], PLAIN[1], PLAIN[1], PLAIN[2], PLAIN[0])).run(messages, [], {}, Message)
    assert all(type(message) is Message for message in messages)
    assert codec.run_end(messages, 0) == (3, 3)
    assert codec.run_end(messages, 1) == (3, 2)
    assert codec.run_end(messages, 4) == (5, 1)
    messages[2].receipt = object()
    assert codec.run_end(messages, 0) == (2, 2)
    messages[1] = "something else"
    assert codec.run_end(messages, 0) == (1, 1)
    with pytest.raises(TypeError):
        codec.run_end(messages, 1)


def test_received() -> None:
    packet = Publish("t", b"x", qos=1, dup=True, packet_id=4, properties=TOLD)
    message = Received("a", packet)
    assert (message.topic, message.payload, message.qos, message.dup, message.retain) == ("a", b"x", 1, True, False)
    assert message.properties == TOLD and message.packet is packet and message != Received("a", packet)
    copy = pickle.loads(pickle.dumps(message))
    assert copy.packet == packet and copy.topic == "a"
    [viewed] = codec.Decoder(5, payload_views=True).feed(stream(PLAIN[0]))
    assert isinstance(viewed, Publish) and Received("a", viewed).payload == memoryview(b"0")
    with pytest.raises(TypeError):
        Received("a", None)  # type: ignore[arg-type]
