"""Flow control in both directions: Receive Maximum, Maximum Packet Size, topic aliases."""

from __future__ import annotations

import pytest

from ..rawclient import (
    ALIAS_MAXIMUM,
    DISCONNECT,
    MAXIMUM_PACKET_SIZE,
    PING,
    PINGRESP,
    PUBACK,
    PUBCOMP,
    PUBLISH,
    PUBREC,
    PUBREL,
    RECEIVE_MAXIMUM,
    SUBACK,
    TOPIC_ALIAS,
    UNSUBACK,
    ack_packet,
    publish_packet,
    subscribe_packet,
    unsubscribe_packet,
)
from .conftest import Clients, MakeBroker
from .statements import spec

pytestmark = pytest.mark.transport


@spec("5", "MQTT-3.3.4-9", "MQTT-4.9.0-1", "MQTT-4.9.0-2", "MQTT-4.3.2-3")
@pytest.mark.parametrize("maximum", [1, 2, 5])
@pytest.mark.parametrize("qos", [1, 2])
def test_receive_maximum_of_the_client(clients: Clients, name: str, maximum: int, qos: int) -> None:
    """Exactly so many at once, and one more for each that was acknowledged to its end."""
    peer, publisher = clients(5, props=((RECEIVE_MAXIMUM, maximum),)), clients(5)
    peer.subscribe(name, qos)
    for i in range(10):
        publisher.publish(name, b"%d" % i, qos)
    held = peer.messages(maximum, answer=False)
    assert clients.drain(peer, publisher, 0) == []
    for i in range(maximum, 10):
        done = held.pop(0)
        if qos == 2:
            peer.send(ack_packet(PUBREC, done.packet_id))
            peer.expect(PUBREL, packet_id=done.packet_id)
            assert clients.drain(peer, publisher, 0) == []  # PUBREC alone frees nothing
            peer.send(ack_packet(PUBCOMP, done.packet_id))
        else:
            peer.send(ack_packet(PUBACK, done.packet_id))
        got = peer.message(answer=False)
        assert got.payload == b"%d" % i
        held.append(got)
        assert clients.drain(peer, publisher, 0) == []
    for done in held:
        peer.answer(done)
        peer.send(ack_packet(PUBACK if qos == 1 else PUBCOMP, done.packet_id))  # once more: the quota stays what it was
    for i in range(10):
        publisher.publish(name, b"%d" % i, qos)
    peer.messages(maximum, answer=False)
    assert clients.drain(peer, publisher, 0) == []


@spec("5", "MQTT-4.9.0-2", "MQTT-4.9.0-1", "MQTT-4.4.0-1")
def test_repeats_count_against_the_quota(clients: Clients, name: str) -> None:
    """A resumed connection starts with a full quota, and what is sent again takes from it."""
    publisher, peer = clients(5), clients.session(5, name)
    peer.subscribe(f"{name}/q", 2)
    for i in range(6):
        publisher.publish(f"{name}/q", b"%d" % i, 1 + i % 2)
    first = peer.messages(6, answer=False)
    peer.drop()
    peer = clients.session(5, name, present=True, props=((RECEIVE_MAXIMUM, 2),))
    got = peer.messages(2, answer=False)
    assert [(p.payload, p.packet_id, p.dup) for p in got] == [(p.payload, p.packet_id, True) for p in first[:2]]
    assert clients.drain(peer, publisher, 0) == []
    peer.answer(got[0])
    third = peer.message(answer=False)
    assert (third.payload, third.packet_id) == (b"2", first[2].packet_id)
    for p in (got[1], third):
        peer.answer(p)
    assert [p.payload for p in clients.drain(peer, publisher)] == [b"3", b"4", b"5"]


@spec("5", "MQTT-3.3.4-10", "MQTT-4.9.0-3")
def test_an_empty_quota_delays_nothing_else(clients: Clients, name: str) -> None:
    peer, publisher = clients(5, props=((RECEIVE_MAXIMUM, 1),)), clients(5)
    peer.subscribe(name, 1)
    for i in range(3):
        publisher.publish(name, b"%d" % i, 1)
    held = peer.message(answer=False)
    peer.send(
        PING,
        subscribe_packet([(f"{name}/0", 0)], 5, packet_id=10),
        unsubscribe_packet([f"{name}/1"], 5, packet_id=11),
        publish_packet(f"{name}/2", b"x", 5, qos=1, packet_id=12),
        publish_packet(f"{name}/2", b"x", 5, qos=2, packet_id=13),
        ack_packet(PUBREL, 13),
    )
    for kind, packet_id in ((PINGRESP, 0), (SUBACK, 10), (UNSUBACK, 11), (PUBACK, 12), (PUBREC, 13), (PUBCOMP, 13)):
        peer.expect(kind, packet_id=packet_id)
    publisher.publish(f"{name}/0", b"zero")
    assert peer.message().payload == b"zero"
    peer.answer(held)
    assert [p.payload for p in peer.messages(2)] == [b"1", b"2"]


@spec("5", "MQTT-3.3.4-7", "MQTT-4.9.0-2")
def test_receive_maximum_of_the_server(clients: Clients, name: str) -> None:
    """Every identifier within it is taken; one more than it is answered with 0x93."""
    publisher = clients(5)
    maximum = publisher.connack.prop(RECEIVE_MAXIMUM, 65535)
    if maximum > 20000:
        maximum = 20000
    publisher.send(*(publish_packet(name, b"", 5, qos=2, packet_id=i + 1) for i in range(maximum)))
    for i in range(maximum):
        publisher.expect(PUBREC, packet_id=i + 1)
    publisher.send(ack_packet(PUBREL, 1))
    publisher.expect(PUBCOMP, packet_id=1)
    publisher.send(publish_packet(name, b"", 5, qos=2, packet_id=maximum + 1))
    publisher.expect(PUBREC, packet_id=maximum + 1)
    if publisher.connack.prop(RECEIVE_MAXIMUM, 65535) != maximum:
        return
    publisher.send(publish_packet(name, b"", 5, qos=2, packet_id=maximum + 2))
    end = publisher.expect_close()
    assert [(p.type, p.reason) for p in end] in ([], [(DISCONNECT, 0x93)])


@spec("5", "MQTT-3.3.4-7")
def test_small_receive_maximum_of_the_server(clients: Clients, make_broker: MakeBroker, name: str) -> None:
    broker = make_broker(limits={"receive_maximum": 3})
    publisher = clients(5, broker=broker)
    assert publisher.connack.prop(RECEIVE_MAXIMUM) == 3
    for i in range(10):  # one after the other is fine, whatever the number
        publisher.publish(name, b"x", 1 + i % 2)
    publisher.send(*(publish_packet(name, b"", 5, qos=2, packet_id=i + 1) for i in range(4)))
    end = publisher.expect_close()
    assert [(p.type, p.reason) for p in end if p.type != PUBREC] in ([], [(DISCONNECT, 0x93)])
    assert len([p for p in end if p.type == PUBREC]) <= 3


def sized(name: str, size: int, version: int = 5, qos: int = 0) -> bytes:
    """A payload that makes the whole outgoing PUBLISH that many bytes."""
    return bytes(size - len(publish_packet(name, b"", version, qos=qos)))


@spec("5", "MQTT-3.1.2-24", "MQTT-3.1.2-25")
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_maximum_packet_size_of_the_client(clients: Clients, name: str, qos: int) -> None:
    """A message of exactly that size arrives; a longer one is dropped for this client alone, and blocks nothing."""
    limit = 100
    peer = clients(5, props=((MAXIMUM_PACKET_SIZE, limit), (RECEIVE_MAXIMUM, 1)))
    other, publisher = clients(5), clients(5)
    for p in (peer, other):
        p.subscribe(name, qos)
    exact, longer = sized(name, limit, qos=qos), sized(name, limit + 1, qos=qos)
    for payload in (longer, exact, longer, longer, b"small"):
        publisher.publish(name, payload, qos)
    assert [p.payload for p in clients.drain(peer, publisher)] == [exact, b"small"]
    assert [p.payload for p in clients.drain(other, publisher)] == [longer, exact, longer, longer, b"small"]
    peer.ping()


@spec("5", "MQTT-3.1.2-24", "MQTT-3.1.2-25")
def test_maximum_packet_size_counts_what_is_added(clients: Clients, name: str) -> None:
    """Subscription identifiers make the packet longer than the one received."""
    peer, publisher = clients(5, props=((MAXIMUM_PACKET_SIZE, 100),)), clients(5)
    peer.subscribe(name, 0, 300)  # three bytes more: the property and its value
    publisher.publish(name, sized(name, 97))
    publisher.publish(name, sized(name, 98))
    assert [len(p.raw) for p in clients.drain(peer, publisher)] == [100]


@spec("5", "MQTT-3.1.2-24", "MQTT-3.1.2-25")
def test_maximum_packet_size_for_retained_and_queued(clients: Clients, name: str) -> None:
    publisher, peer = clients(5), clients.session(5, name)
    peer.subscribe(f"{name}/q/#", 1)
    peer.disconnect()
    for i in range(6):
        publisher.publish(f"{name}/q/{i}", bytes(200) if i % 2 else b"small", 1, retain=True)
    peer = clients.session(5, name, present=True, props=((MAXIMUM_PACKET_SIZE, 100), (RECEIVE_MAXIMUM, 1)))
    assert [p.topic for p in clients.drain(peer, publisher)] == [f"{name}/q/{i}" for i in (0, 2, 4)]
    late = clients(5, props=((MAXIMUM_PACKET_SIZE, 100),))
    late.subscribe(f"{name}/q/#", 1)
    assert sorted(p.topic for p in clients.drain(late, publisher)) == [f"{name}/q/{i}" for i in (0, 2, 4)]


@spec("5", "MQTT-3.3.2-12", "MQTT-3.2.2-17")
def test_topic_aliases_of_the_client(clients: Clients, name: str) -> None:
    """Every alias up to the maximum is accepted, can be used without a topic and mapped anew."""
    publisher, peer = clients(5), clients(5)
    peer.subscribe(f"{name}/#", 1)
    maximum = publisher.connack.prop(ALIAS_MAXIMUM, 0)
    assert maximum > 0
    for alias in sorted({1, 2, maximum // 2 or 1, maximum}):
        publisher.publish(f"{name}/{alias}", b"set", props=((TOPIC_ALIAS, alias),))
        assert peer.message().topic == f"{name}/{alias}"
    for alias in sorted({1, 2, maximum // 2 or 1, maximum}):
        for qos in (0, 1, 2):
            publisher.publish("", b"used", qos, props=((TOPIC_ALIAS, alias),))
            assert peer.message().topic == f"{name}/{alias}"
    publisher.publish(f"{name}/anew", b"x", props=((TOPIC_ALIAS, 1),))
    publisher.publish("", b"y", props=((TOPIC_ALIAS, 1),))
    publisher.publish("", b"z", 1, props=((TOPIC_ALIAS, maximum),))
    assert [p.topic for p in peer.messages(3)] == [f"{name}/anew", f"{name}/anew", f"{name}/{maximum}"]
    publisher.send(publish_packet(name, b"x", 5, props=((TOPIC_ALIAS, maximum + 1),)))
    end = publisher.expect_close()
    assert [(p.type, p.reason) for p in end] in ([], [(DISCONNECT, 0x94)])


@spec("5", "MQTT-3.3.2-7")
def test_aliases_end_with_the_connection(clients: Clients, name: str) -> None:
    publisher = clients.session(5, name)
    publisher.publish(f"{name}/t", b"x", 1, props=((TOPIC_ALIAS, 1),))
    publisher.drop()
    publisher = clients.session(5, name, present=True)
    publisher.send(publish_packet("", b"x", 5, props=((TOPIC_ALIAS, 1),)))
    end = publisher.expect_close()
    assert [(p.type, p.reason) for p in end] in ([], [(DISCONNECT, 0x82)])


@spec("5", "MQTT-3.3.2-12")
def test_retained_and_queued_messages_have_topics_not_aliases(clients: Clients, name: str) -> None:
    publisher, peer = clients(5), clients.session(5, name)
    peer.subscribe(f"{name}/t", 1)
    peer.disconnect()
    publisher.publish(f"{name}/t", b"1", 1, props=((TOPIC_ALIAS, 1),))
    publisher.publish("", b"2", 1, retain=True, props=((TOPIC_ALIAS, 1),))
    peer = clients.session(5, name, present=True)
    assert [(p.topic, p.prop(TOPIC_ALIAS)) for p in peer.messages(2)] == [(f"{name}/t", None)] * 2
    late = clients(5)
    late.subscribe(f"{name}/t")
    assert late.message(f"{name}/t").payload == b"2"


@spec("5", "MQTT-3.1.2-26", "MQTT-3.3.2-11", "MQTT-3.3.2-7")
@pytest.mark.parametrize("maximum", [1, 2, 5, 65535])
def test_topic_aliases_of_the_server(clients: Clients, name: str, maximum: int) -> None:
    """Only up to the client's maximum, and every message resolves to its topic; a new connection starts without any."""
    publisher, peer = clients(5), clients.session(5, name, props=((ALIAS_MAXIMUM, maximum),))
    peer.subscribe(f"{name}/t/#", 1)
    topics = [f"{name}/t/{'long' * 5}/{i % 7}" for i in range(60)] + [f"{name}/t/{'long' * 5}/1"] * 10
    for connection in range(2):
        for i, topic in enumerate(topics):
            publisher.publish(topic, b"%d" % i, 1)
        aliases = set()
        for i, topic in enumerate(topics):
            got = peer.expect(PUBLISH)
            alias = got.prop(TOPIC_ALIAS)
            if alias is not None:
                aliases.add(alias)
                if got.topic:
                    peer.aliases[alias] = got.topic
                got.topic = got.topic or peer.aliases[alias]
            peer.answer(got)
            assert (got.topic, got.payload) == (topic, b"%d" % i)
        assert all(1 <= a <= maximum for a in aliases)
        assert aliases or not clients.broker.ours, "no alias although the client allows them"
        if connection == 0:
            peer.ping()
            peer.drop()
            peer = clients.session(5, name, present=True, props=((ALIAS_MAXIMUM, maximum),))
            assert peer.aliases == {}


@spec("5", "MQTT-3.1.2-27", "MQTT-3.3.2-11")
@pytest.mark.parametrize("props", [(), ((ALIAS_MAXIMUM, 0),)])
def test_no_alias_unless_allowed(clients: Clients, name: str, props: tuple[tuple[int, int], ...]) -> None:
    peer, publisher = clients(5, props=props), clients(5)
    peer.subscribe(f"{name}/#", 1)
    topic = f"{name}/{'long' * 20}"
    for i in range(10):
        publisher.publish(topic if i == 0 else "", b"x", 1, props=((TOPIC_ALIAS, 1),))
    for _ in range(10):
        got = peer.expect(PUBLISH, topic=topic)
        assert got.prop(TOPIC_ALIAS) is None
        peer.answer(got)
