"""PUBLISH: answers by QoS, DUP and RETAIN of what is sent on, topics, matching, order, properties and expiry."""

from __future__ import annotations

import pytest

from ..rawclient import (
    CONTENT_TYPE,
    CORRELATION_DATA,
    DISCONNECT,
    MESSAGE_EXPIRY,
    PAYLOAD_FORMAT,
    PING,
    PINGRESP,
    PUBACK,
    PUBCOMP,
    PUBLISH,
    PUBREC,
    PUBREL,
    RESPONSE_TOPIC,
    USER_PROPERTY,
    Will,
    ack_packet,
    packet,
    publish_packet,
    string,
)
from .conftest import Clients, MakeBroker, TestBroker
from .statements import each_version, spec

SUCCESS = (0x00, 0x10)


@each_version
@spec("3.1.1", "MQTT-3.3.4-1", "MQTT-2.3.1-6", "MQTT-2.2.2-1")
@spec("5", "MQTT-3.3.4-1", "MQTT-2.2.1-5", "MQTT-4.3.2-4", "MQTT-4.3.3-8", "MQTT-4.3.3-11", "MQTT-3.4.2-1", "MQTT-3.5.2-1")
@spec("5", "MQTT-3.7.2-1", "MQTT-2.1.3-1")
def test_answers_by_qos(clients: Clients, name: str, version: int) -> None:
    peer = clients(version)
    peer.send(publish_packet(name, b"x", version), PING)
    assert peer.recv().type == PINGRESP
    peer.send(publish_packet(name, b"x", version, qos=1, packet_id=0x1234))
    assert peer.expect(PUBACK, packet_id=0x1234).reason in SUCCESS
    peer.send(publish_packet(name, b"x", version, qos=2, packet_id=0x1235))
    assert peer.expect(PUBREC, packet_id=0x1235).reason in SUCCESS
    peer.send(ack_packet(PUBREL, 0x1235))
    peer.expect(PUBCOMP, packet_id=0x1235, reason=0)
    if version == 4:
        peer.send("32 06 00 01 61 12 34 78", "34 06 00 01 61 12 35 78")
        assert peer.recv().raw.hex() == "40021234"
        assert peer.recv().raw.hex() == "50021235"
        peer.send("62 02 12 35")
        assert peer.recv().raw.hex() == "70021235"


@each_version
@spec("3.1.1", "MQTT-2.3.1-5", "MQTT-3.3.1-9", "MQTT-4.3.1-1", "MQTT-3.3.1-2")
@spec("5", "MQTT-2.2.1-2", "MQTT-2.2.2-1", "MQTT-3.3.1-12", "MQTT-4.3.1-1", "MQTT-3.3.1-2")
def test_qos_0_bytes(clients: Clients, name: str, version: int) -> None:
    """No identifier, no flags, one empty property block in version 5; a payload that looks like an identifier stays one."""
    peer = clients(version)
    peer.subscribe(name)
    middle = b"\0" if version == 5 else b""
    for retain in (False, True):
        peer.publish(name, b"\0\1x", retain=retain)
        assert peer.message().raw == packet(0x30, string(name) + middle + b"\0\1x")
    peer.publish(name, b"", retain=True)
    assert peer.message().raw == packet(0x30, string(name) + middle)


@each_version
@spec("3.1.1", "MQTT-3.8.4-6")
@spec("5", "MQTT-3.8.4-8")
@pytest.mark.parametrize("granted", [0, 1, 2])
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_delivered_qos_is_the_lower_one(clients: Clients, name: str, version: int, qos: int, granted: int) -> None:
    peer, publisher = clients(version), clients(version)
    peer.subscribe(name, granted)
    publisher.publish(name, b"x", qos)
    assert [(p.qos, p.dup, p.payload) for p in clients.drain(peer, publisher)] == [(min(qos, granted), False, b"x")]


@each_version
@spec("3.1.1", "MQTT-3.3.1-3", "MQTT-4.3.2-1")
@spec("5", "MQTT-3.3.1-3", "MQTT-4.3.2-2", "MQTT-4.3.3-2")
@pytest.mark.parametrize("qos", [1, 2])
def test_dup_is_not_passed_on(clients: Clients, name: str, version: int, qos: int) -> None:
    peer, publisher = clients(version), clients(version)
    peer.subscribe(name, qos)
    publisher.publish(name, b"x", qos, dup=True)
    assert peer.message().raw[0] == 0x30 | qos << 1


@each_version
@spec("3.1.1", "MQTT-3.3.2-3", "MQTT-4.7.1-3", "MQTT-4.7.1-2")
@spec("5", "MQTT-3.3.2-3", "MQTT-4.7.1-2", "MQTT-4.7.1-1")
@pytest.mark.parametrize(
    ("tail", "matching", "other"),
    [
        ("a/+", ["a/b", "a/"], ["a", "a/b/c", "b", "c/b", "a//", "A/b"]),
        ("a/#", ["a", "a/", "a/b", "a/b/c", "a//"], ["ab", "b", "A", "b/a"]),
        ("+/b", ["a/b", "/b", "aa/b"], ["b", "a/b/c", "//b", "a/a/b"]),
        ("a/+/c", ["a/b/c", "a//c"], ["a/c", "a/b/b/c", "a/b/c/d"]),
        ("+/+", ["a/b", "/", "a/", "/b"], ["a", "a/b/c"]),
        ("+/#", ["a", "a/b", "/", "a/b/c/d", ""], []),
        ("a//b", ["a//b"], ["a/b", "a/ /b", "a///b"]),
        ("a", ["a"], ["/a", "a/", "A", "aa", ""]),
        ("\u00e9", ["\u00e9"], ["e\u0301", "e"]),
        ("\ufffd\ue000", ["\ufffd\ue000"], ["\ufffd", "?"]),
        ("a b", ["a b"], ["a  b", "a b ", "ab"]),
    ],
)
@spec("3.1.1", "MQTT-4.7.3-4")
@spec("5", "MQTT-4.7.3-4")
def test_matching(clients: Clients, name: str, version: int, tail: str, matching: list[str], other: list[str]) -> None:
    peer, publisher = clients(version), clients(version)
    peer.subscribe(f"{name}/{tail}", 0)
    for topic in other + matching:
        publisher.publish(f"{name}/{topic}", topic)
    got = clients.drain(peer, publisher)
    assert [p.topic for p in got] == [f"{name}/{topic}" for topic in matching]
    assert [p.payload.decode() for p in got] == matching


@each_version
@spec("3.1.1", "MQTT-4.7.2-1")
@spec("5", "MQTT-4.7.2-1")
def test_dollar_topics_are_apart(clients: Clients, name: str, version: int) -> None:
    wild, plain, publisher = clients(version), clients(version), clients(version)
    for topic_filter in ("#", "+/+/x", "+/#", *(("$share/g/#", "$share/g/+/+/x") if version == 5 else ())):
        wild.subscribe(topic_filter)
    for topic_filter in (f"$t/{name}/x", f"$t/{name}/+", f"$t/{name}/#"):
        plain.unsubscribe(f"$t/{name}/x", f"$t/{name}/+", f"$t/{name}/#")
        plain.subscribe(topic_filter)
        publisher.publish(f"$t/{name}/x", b"d")
        assert [p.topic for p in clients.drain(plain, publisher)] == [f"$t/{name}/x"]
    assert [p.topic for p in clients.drain(wild, publisher, 0) if p.topic.startswith("$")] == []


@each_version
@spec("3.1.1", "MQTT-1.5.3-3")
@spec("5", "MQTT-1.5.4-3")
def test_byte_order_mark_is_kept(clients: Clients, name: str, version: int) -> None:
    plain, marked, publisher = clients(version), clients(version), clients(version)
    mark = "\ufeff" + name
    plain.subscribe(name)
    marked.subscribe(mark)
    publisher.publish(mark, b"marked")
    publisher.publish(name, b"plain")
    got = clients.drain(marked, publisher)
    assert [p.payload for p in got] == [b"marked"]
    assert got[0].raw[4:7] == b"\xef\xbb\xbf"
    assert [p.payload for p in clients.drain(plain, publisher)] == [b"plain"]


@pytest.mark.transport
@each_version
@spec("3.1.1", "MQTT-4.7.3-3")
@spec("5", "MQTT-4.7.3-3")
@pytest.mark.parametrize("length", [65535, 32768, 16384])
def test_longest_topic(clients: Clients, name: str, version: int, length: int) -> None:
    """Carried byte for byte, or refused by a limit."""
    topic = name + "x" * (length - len(name))
    peer = clients(version)
    codes = peer.subscribe_many([(topic, 0)])
    if codes != [0]:
        assert codes[0] in (0x80, 0x8F, 0x97)
        return
    peer.publish(topic, b"x")
    assert peer.message(topic).payload == b"x"


@each_version
@spec("3.1.1", "MQTT-4.3.2-2")
@spec("5", "MQTT-4.3.2-5")
def test_qos_1_identifier_is_free_after_puback(clients: Clients, name: str, version: int) -> None:
    peer, publisher = clients(version), clients(version)
    peer.subscribe(name, 1)
    publisher.publish(name, b"1", 1, packet_id=7)
    publisher.publish(name, b"2", 1, packet_id=7, dup=True)
    assert [p.payload for p in clients.drain(peer, publisher)] == [b"1", b"2"]


@each_version
@spec("3.1.1", "MQTT-4.3.3-2")
@spec("5", "MQTT-4.3.3-10", "MQTT-4.3.3-11", "MQTT-4.3.3-12", "MQTT-3.7.2-1")
def test_qos_2_is_delivered_once(clients: Clients, name: str, version: int) -> None:
    """Repeats of an identifier before PUBREL are answered, not delivered; after PUBCOMP it is a new message."""
    peer, publisher = clients(version), clients(version)
    peer.subscribe(name, 2)
    for dup in (False, True, True):
        publisher.send(publish_packet(name, b"1", version, qos=2, packet_id=9, dup=dup))
        assert publisher.expect(PUBREC, packet_id=9).reason in SUCCESS
    publisher.send(ack_packet(PUBREL, 9))
    publisher.expect(PUBCOMP, packet_id=9, reason=0)
    publisher.publish(name, b"2", 2, packet_id=9)
    assert [p.payload for p in clients.drain(peer, publisher)] == [b"1", b"2"]
    publisher.send(ack_packet(PUBREL, 77))
    publisher.expect(PUBCOMP, packet_id=77, reason=0x92 if version == 5 else 0)


@pytest.mark.transport
@each_version
@spec("3.1.1", "MQTT-4.3.3-2", "MQTT-4.4.0-1", "MQTT-4.1.0-1")
@spec("5", "MQTT-4.3.3-10", "MQTT-4.1.0-1", "MQTT-4.4.0-1")
def test_qos_2_identifiers_survive_a_reconnect(clients: Clients, name: str, version: int) -> None:
    watcher = clients(version)
    watcher.subscribe(f"{name}/t", 2)
    publisher = clients.session(version, name)
    publisher.send(publish_packet(f"{name}/t", b"1", version, qos=2, packet_id=3))
    publisher.expect(PUBREC, packet_id=3)
    publisher.drop()
    publisher = clients.session(version, name, present=True)
    publisher.send(publish_packet(f"{name}/t", b"1", version, qos=2, packet_id=3, dup=True))
    assert publisher.expect(PUBREC, packet_id=3).reason in SUCCESS
    publisher.send(ack_packet(PUBREL, 3))
    publisher.expect(PUBCOMP, packet_id=3, reason=0)
    assert [p.payload for p in clients.drain(watcher, publisher)] == [b"1"]
    clean = clients(version, name)
    clean.publish(f"{name}/t", b"2", 2, packet_id=3)
    assert [p.payload for p in clients.drain(watcher, clean)] == [b"2"]


@pytest.mark.transport
@each_version
@spec("3.1.1", "MQTT-4.6.0-5", "MQTT-4.6.0-6")
@spec("5", "MQTT-4.6.0-5", "MQTT-4.6.0-6")
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_order_of_a_topic(clients: Clients, name: str, version: int, qos: int) -> None:
    """A thousand numbered messages reach two subscribers in order."""
    peers, publisher = [clients(version), clients(version)], clients(version)
    for peer in peers:
        peer.subscribe(name, qos)
    for start in range(0, 1000, 20):  # bursts within the usual Receive Maximum of servers
        numbers = list(range(start, start + 20))
        publisher.send(*(publish_packet(name, b"%d" % i, version, qos=qos, packet_id=i + 1) for i in numbers))
        if qos == 1:
            assert [publisher.expect(PUBACK).packet_id - 1 for _ in numbers] == numbers
        elif qos == 2:
            assert [publisher.expect(PUBREC).packet_id - 1 for _ in numbers] == numbers
            publisher.send(*(ack_packet(PUBREL, i + 1) for i in numbers))
            assert [publisher.expect(PUBCOMP).packet_id - 1 for _ in numbers] == numbers
        for peer in peers:
            assert [int(p.payload) for p in peer.messages(20)] == numbers


@each_version
@spec("3.1.1", "MQTT-4.6.0-5", "MQTT-4.6.0-6")
@spec("5", "MQTT-4.6.0-5", "MQTT-4.6.0-6")
@pytest.mark.parametrize("qos", [1, 2])
def test_order_towards_a_slow_subscriber(clients: Clients, make_broker: MakeBroker, name: str, version: int, qos: int) -> None:
    """What waits for room in the window keeps its order, and what comes while room is made stays behind it."""
    broker = make_broker(limits={"max_inflight": 3})
    peer, publisher = clients(version, broker=broker), clients(version, broker=broker)
    peer.subscribe(name, qos)
    for i in range(20):
        publisher.publish(name, b"%d" % i, qos)
    seen = []
    for i in range(20, 40):
        seen.append(int(peer.message().payload))
        publisher.publish(name, b"%d" % i, qos)
    seen += [int(p.payload) for p in peer.messages(20)]
    assert seen == list(range(40))


@each_version
@spec("3.1.1", "MQTT-4.6.0-6")
@spec("5", "MQTT-4.6.0-5")
@pytest.mark.parametrize("qos", [1, 2])
def test_order_across_reconnects(clients: Clients, name: str, version: int, qos: int) -> None:
    """A subscriber that comes and goes sees first copies in order and misses none."""
    publisher = clients(version)
    first = clients.session(version, name)
    first.subscribe(f"{name}/q", qos)
    first.disconnect()
    seen: list[int] = []
    for turn in range(8):
        for i in range(10):
            publisher.publish(f"{name}/q", str(turn * 20 + i), qos)
        peer = clients.session(version, name, present=True)
        for i in range(10):
            publisher.publish(f"{name}/q", str(turn * 20 + 10 + i), qos)
        seen += [int(p.payload) for p in peer.messages(14)]
        got = peer.message(answer=False)  # not acknowledged, so that it comes again
        seen.append(int(got.payload))
        peer.drop()
    peer = clients.session(version, name, present=True)
    seen += [int(p.payload) for p in clients.drain(peer, publisher)]
    assert list(dict.fromkeys(seen)) == list(range(160))
    assert len(seen) == 160 + 8


PROPERTIES = (
    (PAYLOAD_FORMAT, 1),
    (CONTENT_TYPE, "text/plain"),
    (RESPONSE_TOPIC, "answers/here"),
    (CORRELATION_DATA, b"\x00\xff\x80"),
    (USER_PROPERTY, ("z", "1")),
    (USER_PROPERTY, ("a", "2")),
    (USER_PROPERTY, ("z", "1")),
    (USER_PROPERTY, ("", "")),
    (USER_PROPERTY, ("m", "\u20ac")),
)
PASSED_ON = spec("5", "MQTT-3.3.2-4", "MQTT-3.3.2-15", "MQTT-3.3.2-16", "MQTT-3.3.2-17", "MQTT-3.3.2-18", "MQTT-3.3.2-20")


def check_properties(found: list[tuple[int, object]]) -> None:
    """All of PROPERTIES, unaltered; the User Properties in their order."""
    assert sorted(found, key=lambda p: p[0]) == list(PROPERTIES)


@PASSED_ON
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_properties_are_passed_on(clients: Clients, name: str, qos: int) -> None:
    peers, publisher = [clients(5), clients(5)], clients(5)
    for peer in peers:
        peer.subscribe(name, qos)
    publisher.publish(name, b"x", qos, props=PROPERTIES)
    for peer in peers:
        check_properties(peer.message().props)


@PASSED_ON
@spec("5", "MQTT-3.3.1-5")
def test_properties_of_retained_and_queued(clients: Clients, name: str) -> None:
    offline = clients.session(5, name)
    offline.subscribe(f"{name}/t", 1)
    offline.disconnect()
    clients(5).publish(f"{name}/t", b"x", 1, retain=True, props=PROPERTIES)
    check_properties(clients.session(5, name, present=True).message().props)
    late = clients(5)
    late.subscribe(f"{name}/t")
    check_properties(late.message().props)


@PASSED_ON
@spec("5", "MQTT-3.1.3-10")
def test_properties_of_a_will(clients: Clients, name: str) -> None:
    watcher = clients(5)
    watcher.subscribe(f"{name}/w")
    clients(5, name, will=Will(f"{name}/w", b"x", props=PROPERTIES)).drop()
    check_properties(watcher.message().props)


@PASSED_ON
def test_empty_properties(clients: Clients, name: str) -> None:
    props = [(PAYLOAD_FORMAT, 0), (CONTENT_TYPE, ""), (CORRELATION_DATA, b""), (USER_PROPERTY, ("", ""))]
    peer = clients(5)
    peer.subscribe(name)
    peer.publish(name, b"x", props=props)
    got = peer.message().props
    assert sorted(got) in (sorted(props), sorted(props[1:]))  # Payload Format 0 says the same as its absence


@spec("5", "MQTT-3.3.2-6", "MQTT-3.3.2-5")
def test_message_expiry_counts_down(clients: Clients, broker: TestBroker, name: str) -> None:
    """At once: as received. Queued and retained: less the time spent in the server."""
    online, publisher = clients(5), clients(5)
    online.subscribe(f"{name}/t", 1)
    offline = clients.session(5, name)
    offline.subscribe(f"{name}/t", 1)
    offline.disconnect()
    publisher.publish(f"{name}/t", b"10", 1, retain=True, props=((MESSAGE_EXPIRY, 10),))
    assert online.message().prop(MESSAGE_EXPIRY) in (9, 10)
    broker.advance_clock(3)
    assert clients.session(5, name, present=True).message().prop(MESSAGE_EXPIRY) in (6, 7)
    late = clients(5)
    late.subscribe(f"{name}/t", 1)
    assert late.message().prop(MESSAGE_EXPIRY) in (6, 7)


@spec("5", "MQTT-3.3.2-5")
def test_message_expires_in_queue_and_store(clients: Clients, broker: TestBroker, name: str) -> None:
    offline, publisher = clients.session(5, name), clients(5)
    offline.subscribe(f"{name}/#", 1)
    offline.disconnect()
    publisher.publish(f"{name}/short", b"1", 1, retain=True, props=((MESSAGE_EXPIRY, 1),))
    publisher.publish(f"{name}/long", b"2", 1, retain=True, props=((MESSAGE_EXPIRY, 100),))
    publisher.publish(f"{name}/never", b"3", 1, retain=True)
    broker.advance_clock(2.5)
    peer = clients.session(5, name, present=True)
    assert [p.payload for p in clients.drain(peer, publisher)] == [b"2", b"3"]
    late = clients(5)
    late.subscribe(f"{name}/#", 1)
    assert sorted(p.payload for p in clients.drain(late, publisher)) == [b"2", b"3"]


@spec("5", "MQTT-3.3.2-5", "MQTT-3.3.2-6")
def test_will_expiry_counts_from_publication(clients: Clients, broker: TestBroker, name: str) -> None:
    peer = clients(5, name, will=Will(f"{name}/w", b"x", retain=True, props=((MESSAGE_EXPIRY, 5),)))
    broker.advance_clock(4)
    watcher = clients(5)
    watcher.subscribe(f"{name}/w")
    peer.drop()
    assert watcher.message().prop(MESSAGE_EXPIRY) in (4, 5)
    broker.advance_clock(6.5)
    late = clients(5)
    late.subscribe(f"{name}/w")
    assert clients.drain(late, watcher) == []


@spec("5", "MQTT-4.3.3-7")
def test_expiry_does_not_touch_what_was_sent(clients: Clients, broker: TestBroker, name: str) -> None:
    """A QoS 2 message whose PUBLISH went out is completed after its expiry."""
    peer, publisher = clients.session(5, name), clients(5)
    peer.subscribe(f"{name}/t", 2)
    publisher.publish(f"{name}/t", b"x", 2, props=((MESSAGE_EXPIRY, 1),))
    held = peer.message(answer=False)
    peer.drop()
    broker.advance_clock(3)
    again = clients.session(5, name, present=True)
    got = again.message()
    assert (got.packet_id, got.dup, got.payload) == (held.packet_id, True, b"x")


@spec("5", "MQTT-4.3.3-13")
def test_expiry_does_not_touch_the_senders_exchange(clients: Clients, broker: TestBroker, name: str) -> None:
    publisher = clients(5)
    publisher.send(publish_packet(name, b"x", 5, qos=2, packet_id=5, props=((MESSAGE_EXPIRY, 1),)))
    publisher.expect(PUBREC, packet_id=5)
    broker.advance_clock(3)
    publisher.send(ack_packet(PUBREL, 5))
    publisher.expect(PUBCOMP, packet_id=5, reason=0)


@spec("5", "MQTT-3.3.2-4")
def test_payload_format_that_is_not_true(clients: Clients, name: str) -> None:
    """May be refused with 0x99 or passed on as it is."""
    peer, publisher = clients(5), clients(5)
    peer.subscribe(name, 1)
    publisher.send(publish_packet(name, b"\xff", 5, qos=1, packet_id=1, props=((PAYLOAD_FORMAT, 1),)))
    got = publisher.recv()
    if got.type == PUBACK and got.reason in SUCCESS:
        passed = peer.message()
        assert (passed.payload, passed.prop(PAYLOAD_FORMAT)) == (b"\xff", 1)
    else:
        assert got.type in (PUBACK, DISCONNECT)
        assert got.reason == 0x99


@each_version
@spec("3.1.1", "MQTT-7.1.1-1", "MQTT-2.3.1-4")
@spec("5", "MQTT-4.2.0-1", "MQTT-2.2.1-4", "MQTT-4.3.2-1", "MQTT-4.3.3-1")
def test_identifiers_of_the_server(clients: Clients, name: str, version: int) -> None:
    """Non-zero, distinct while open, and one held open is skipped when the counter wraps around."""
    peer, publisher = clients(version), clients(version)
    peer.subscribe(name, 2)
    for i in range(20):
        publisher.publish(name, str(i), 1 + i % 2)
    held = peer.messages(20, answer=False)
    assert len({p.packet_id for p in held}) == 20
    kept, *rest = held
    for p in rest:
        peer.answer(p)
    for i in range(40):
        publisher.publish(name, str(i), 1)
    assert kept.packet_id not in {p.packet_id for p in peer.messages(40)}


@spec("3.1.1", "MQTT-2.3.1-4")
@spec("5", "MQTT-2.2.1-4")
@pytest.mark.parametrize("version", [4, 5])
def test_identifier_held_through_a_wrap_around(clients: Clients, name: str, version: int) -> None:
    peer, publisher = clients(version), clients(version)
    peer.subscribe(name, 1)
    publisher.publish(name, b"held", 1)
    held = peer.message(answer=False)
    burst, count, seen = 1000, 66000, 0
    while seen < count:
        publisher.send(*(publish_packet(name, b"", version, qos=1, packet_id=i + 1) for i in range(burst)))
        acks = bytearray()
        for _ in range(burst):
            got = peer.expect(PUBLISH)
            assert got.packet_id != held.packet_id
            acks += ack_packet(PUBACK, got.packet_id)
            if len(acks) >= 4000 or not peer.buffer:
                peer.send(bytes(acks))
                acks.clear()
        peer.send(bytes(acks))
        for _ in range(burst):
            publisher.expect(PUBACK)
        seen += burst


@pytest.mark.transport
@each_version
@spec("3.1.1", "MQTT-7.1.1-1")
@spec("5", "MQTT-4.2.0-1")
def test_large_payloads_arrive_intact(clients: Clients, name: str, version: int) -> None:
    peer, publisher = clients(version), clients(version)
    peer.subscribe(name, 1)
    for size in (0, 1, 127, 128, 16383, 16384, 65535, 70000, 1000000):
        payload = bytes(i * 7 % 251 for i in range(997)) * (size // 997 + 1)
        publisher.publish(name, payload[:size], 1)
        assert peer.message().payload == payload[:size]
