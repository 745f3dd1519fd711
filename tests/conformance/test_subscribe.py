"""SUBSCRIBE and UNSUBSCRIBE: answers, replacing, overlapping filters, options, subscription identifiers."""

from __future__ import annotations

import pytest

from ..rawclient import (
    MAXIMUM_PACKET_SIZE,
    PUBACK,
    PUBLISH,
    REASON_STRING,
    SUBACK,
    SUBSCRIPTION_ID,
    UNSUBACK,
    USER_PROPERTY,
    ack_packet,
    publish_packet,
    subscribe_packet,
    unsubscribe_packet,
)
from .conftest import Clients
from .statements import each_version, spec

NO_LOCAL, RETAIN_AS_PUBLISHED = 4, 8


@each_version
@spec("3.1.1", "MQTT-3.8.4-1", "MQTT-3.8.4-2", "MQTT-2.3.1-7", "MQTT-3.10.4-4", "MQTT-3.10.4-5", "MQTT-3.8.3-2")
@spec("5", "MQTT-3.8.4-1", "MQTT-3.8.4-2", "MQTT-2.2.1-6", "MQTT-3.10.4-4", "MQTT-3.10.4-5", "MQTT-3.11.3-2")
def test_answers(clients: Clients, name: str, version: int) -> None:
    """Pipelined requests are each answered with their identifier; wildcards are granted; nothing to delete is an answer too."""
    peer = clients(version)
    peer.send(
        subscribe_packet([(f"{name}/a", 0)], version, packet_id=0xABCD),
        subscribe_packet([(f"{name}/#", 1)], version, packet_id=0x1234),
        unsubscribe_packet([f"{name}/z"], version, packet_id=0xABCE),
        subscribe_packet([(f"{name}/a", 0)], version, packet_id=65535),
        unsubscribe_packet([f"{name}/a"], version, packet_id=1),
    )
    five = "00" if version == 5 else ""
    rest = len(five) // 2
    assert [peer.recv().raw.hex() for _ in range(5)] == [
        f"90{3 + rest:02x}abcd{five}00",
        f"90{3 + rest:02x}1234{five}01",
        f"b0{2 + 2 * rest:02x}abce{five}{'11' if rest else ''}",
        f"90{3 + rest:02x}ffff{five}00",
        f"b0{2 + 2 * rest:02x}0001{five}{'00' if rest else ''}",
    ]


@each_version
@spec("3.1.1", "MQTT-3.8.4-4", "MQTT-3.8.4-5", "MQTT-3.9.3-1", "MQTT-3.9.3-2")
@spec("5", "MQTT-3.8.4-5", "MQTT-3.8.4-6", "MQTT-3.8.4-7", "MQTT-3.9.3-1", "MQTT-3.9.3-2")
def test_one_suback_with_codes_in_order(clients: Clients, name: str, version: int) -> None:
    peer, publisher = clients(version), clients(version)
    filters = [(f"{name}/{i}", (2, 0, 1)[i % 3]) for i in range(50)]
    assert peer.subscribe_many(filters) == [q for _, q in filters]
    peer.send("C000")
    assert peer.recv().type == 13
    assert peer.subscribe_many([(f"{name}/x", 0), (f"{name}/x", 1)]) == [0, 1]
    publisher.publish(f"{name}/x", b"last one wins", 1)
    assert [p.qos for p in clients.drain(peer, publisher)] == [1]
    for topic, qos in filters:
        publisher.publish(topic, b"x", 2)
        assert peer.message(topic).qos == qos


@each_version
@spec("3.1.1", "MQTT-3.8.4-5", "MQTT-3.9.3-1")
@spec("5", "MQTT-3.8.4-6", "MQTT-3.8.4-7", "MQTT-3.9.3-1", "MQTT-3.9.2-1", "MQTT-3.9.2-2", "MQTT-3.1.2-29")
def test_a_refused_filter_among_others(clients: Clients, name: str, version: int) -> None:
    """Either the whole packet is refused by closing, or the code stands in its place and the others hold."""
    props = ((MAXIMUM_PACKET_SIZE, 64), (0x17, 0)) if version == 5 else ()
    peer = clients.raw(version)
    peer.connect(name, props=props)
    peer.send(subscribe_packet([(f"{name}/a", 2), (f"{name}/b#", 0), (f"{name}/c", 1)], version), "C000", "E000")
    got = peer.expect_close()
    if got and got[0].type == SUBACK:
        assert got[0].reasons == [2, 0x8F if version == 5 else 0x80, 1]
        assert len(got[0].raw) <= 64
        assert got[0].prop(REASON_STRING) is None
        assert got[0].prop(USER_PROPERTY) is None
    else:
        assert all(p.type == 14 and p.reason in (0x8F, 0x81, 0x82) for p in got)


@each_version
@spec("3.1.1", "MQTT-3.8.4-3")
@spec("5", "MQTT-3.8.4-3", "MQTT-3.8.4-4")
def test_replacing_a_subscription(clients: Clients, name: str, version: int) -> None:
    """The new options hold alone: one copy at the new QoS with the new identifier."""
    peer, publisher = clients(version), clients(version)
    peer.subscribe(name, 0, 1 if version == 5 else None)
    peer.subscribe(name, 1 | (RETAIN_AS_PUBLISHED if version == 5 else 0), 2 if version == 5 else None)
    publisher.publish(name, b"x", 2, retain=True)
    got = clients.drain(peer, publisher)
    assert [(p.qos, p.retain, p.all_props(SUBSCRIPTION_ID)) for p in got] == [(1, version == 5, [2] if version == 5 else [])]
    peer.subscribe(name, 0x20 if version == 5 else 0)
    if version == 4:
        assert peer.message().retain
    publisher.publish(name, b"y", 2)
    assert [(p.qos, p.all_props(SUBSCRIPTION_ID)) for p in clients.drain(peer, publisher)] == [(0, [])]


@each_version
@spec("3.1.1", "MQTT-3.8.4-3")
@spec("5", "MQTT-3.8.4-4")
def test_replacing_loses_no_message(clients: Clients, name: str, version: int) -> None:
    """A steady QoS 1 stream while its subscriber subscribes again and again."""
    peer, publisher = clients(version), clients(version)
    peer.subscribe(name, 1)
    for i in range(200):
        publisher.send(publish_packet(name, b"%d" % i, version, qos=1, packet_id=i + 1))
        if i % 2:
            peer.send(subscribe_packet([(name, 1)], version, packet_id=i))
    for i in range(200):
        publisher.expect(PUBACK, packet_id=i + 1)
    seen: list[int] = []
    while len(seen) < 200:
        got = peer.await_packet(PUBLISH)
        peer.answer(got)
        seen.append(int(got.payload))
    assert seen == list(range(200))
    for i in range(1, 200, 2):
        peer.await_packet(SUBACK, i)


@each_version
@spec("3.1.1", "MQTT-3.3.5-1")
@spec("5", "MQTT-3.3.4-2", "MQTT-3.3.4-3", "MQTT-3.3.4-4", "MQTT-3.3.4-5")
def test_overlapping_filters(clients: Clients, name: str, version: int) -> None:
    """At the highest QoS; with the identifiers of all subscriptions that match and have one."""
    peer, publisher = clients(version), clients(version)
    identifiers = version == 5
    peer.subscribe(f"{name}/#", 0, 1 if identifiers else None)
    peer.subscribe(f"{name}/+", 2, 268435455 if identifiers else None)
    peer.subscribe(f"{name}/b", 1)
    peer.subscribe(f"{name}/c", 2, 3 if identifiers else None)
    publisher.publish(f"{name}/b", b"x", 2)
    got = clients.drain(peer, publisher)
    assert max(p.qos for p in got) == 2
    found = [i for p in got for i in p.all_props(SUBSCRIPTION_ID)]
    assert sorted(found) == ([1, 268435455] if identifiers else [])
    if len(got) > 1:  # several copies are allowed, each by its own subscription
        assert sorted(p.qos for p in got) == [0, 1, 2]
    assert len(got) == 1 or not clients.broker.ours, "one copy for a session"


@spec("5", "MQTT-3.3.4-4", "MQTT-3.3.4-3")
def test_equal_subscription_identifiers(clients: Clients, name: str) -> None:
    """One that two matching subscriptions share counts twice; resumed and retained messages carry them too."""
    publisher, peer = clients(5), clients.session(5, name)
    peer.subscribe(f"{name}/#", 1, 7)
    peer.subscribe(f"{name}/a", 1, 7)
    peer.disconnect()
    publisher.publish(f"{name}/a", b"x", 1, retain=True)
    peer = clients.session(5, name, present=True)
    got = clients.drain(peer, publisher)
    assert [i for p in got for i in p.all_props(SUBSCRIPTION_ID)] == [7, 7]
    late = clients(5)
    late.subscribe(f"{name}/a", 1, 9)
    assert late.message().all_props(SUBSCRIPTION_ID) == [9]


@each_version
@spec("3.1.1", "MQTT-3.10.4-1", "MQTT-3.10.4-2", "MQTT-3.10.4-6")
@spec("5", "MQTT-3.10.4-1", "MQTT-3.10.4-2", "MQTT-3.10.4-6", "MQTT-3.11.3-1", "MQTT-3.11.3-2")
def test_unsubscribe(clients: Clients, name: str, version: int) -> None:
    peer, publisher = clients(version), clients(version)
    peer.subscribe_many([(f"{name}/a/+", 1), (f"{name}/b", 1), (f"{name}/c", 1)])
    answer = peer.unsubscribe(f"{name}/a/b", f"{name}/A/+", f"{name}/#", f"{name}/a/#", f"{name}/a")
    assert answer.reasons == ([0x11] * 5 if version == 5 else [])
    publisher.publish(f"{name}/a/b", b"1", 1)
    assert peer.message().payload == b"1"
    answer = peer.unsubscribe(f"{name}/none", f"{name}/a/+", f"{name}/b", f"{name}/b")
    assert answer.reasons == ([0x11, 0, 0, 0x11] if version == 5 else [])
    for topic in ("a/b", "b", "c"):
        publisher.publish(f"{name}/{topic}", topic, 1)
    assert [p.payload for p in clients.drain(peer, publisher)] == [b"c"]


@spec("5", "MQTT-3.10.4-1")
def test_shared_and_plain_are_different_subscriptions(clients: Clients, name: str) -> None:
    peer = clients(5)
    peer.subscribe(f"{name}/a", 1)
    peer.subscribe(f"$share/g/{name}/a", 1)
    assert peer.unsubscribe(f"$share/h/{name}/a").reasons == [0x11]
    assert peer.unsubscribe(f"$share/g/{name}/a").reasons == [0]
    peer.publish(f"{name}/a", b"x", 1)
    assert [p.payload for p in clients.drain(peer, peer)] == [b"x"]


@each_version
@spec("3.1.1", "MQTT-3.10.4-3")
@spec("5", "MQTT-3.10.4-3")
def test_deliveries_under_way_are_completed(clients: Clients, name: str, version: int) -> None:
    publisher, peer = clients(version), clients.session(version, name)
    peer.subscribe(f"{name}/q", 2)
    publisher.publish(f"{name}/q", b"2", 2)
    publisher.publish(f"{name}/q", b"1", 1)
    two, one = peer.messages(2, answer=False)
    peer.unsubscribe(f"{name}/q")
    peer.answer(two)
    peer.drop()
    peer = clients.session(version, name, present=True)
    got = clients.drain(peer, publisher)
    assert [(p.payload, p.packet_id, p.dup) for p in got] == [(b"1", one.packet_id, True)]


@spec("5", "MQTT-3.8.3-3")
def test_no_local(clients: Clients, name: str) -> None:
    """By client id: own messages do not come back, also after a reconnect; those of others do."""
    other, peer = clients(5), clients.session(5, name)
    peer.subscribe(f"{name}/a", 1 | NO_LOCAL)
    peer.publish(f"{name}/a", b"own", 1)
    other.publish(f"{name}/a", b"other", 1)
    assert [p.payload for p in clients.drain(peer, other)] == [b"other"]
    peer.disconnect()
    peer = clients.session(5, name, present=True)
    for qos in (0, 1, 2):
        peer.publish(f"{name}/a", b"own", qos)
    assert clients.drain(peer, peer) == []
    peer.subscribe(f"{name}/+", 0)
    peer.publish(f"{name}/a", b"by the other filter", 1)
    assert [(p.payload, p.qos) for p in clients.drain(peer, peer)] == [(b"by the other filter", 0)]


@spec("5", "MQTT-3.8.3-3", "MQTT-3.3.1-13")
def test_options_survive_a_resume(clients: Clients, name: str) -> None:
    other, peer = clients(5), clients.session(5, name)
    peer.subscribe(f"{name}/a", 1 | NO_LOCAL | RETAIN_AS_PUBLISHED, 5)
    peer.disconnect()
    other.publish(f"{name}/a", b"x", 1, retain=True)
    peer = clients.session(5, name, present=True)
    got = peer.message()
    assert (got.retain, got.all_props(SUBSCRIPTION_ID)) == (True, [5])


@spec("5", "MQTT-3.4.2-2", "MQTT-3.4.2-3", "MQTT-3.5.2-2", "MQTT-3.5.2-3", "MQTT-3.6.2-1", "MQTT-3.6.2-2", "MQTT-3.6.2-3")
@spec("5", "MQTT-3.7.2-2", "MQTT-3.7.2-3", "MQTT-3.9.2-1", "MQTT-3.9.2-2", "MQTT-3.11.2-1", "MQTT-3.11.2-2", "MQTT-3.1.2-29")
@pytest.mark.parametrize("request_problem", [0, 1])
@pytest.mark.parametrize("small", [False, True])
def test_answers_are_short(clients: Clients, name: str, request_problem: int, small: bool) -> None:
    """No Reason String or User Property that is not wanted, nor one that makes the packet too long."""
    limit = len(clients(5, name, props=((0x17, request_problem),)).connack.raw)
    props = ((0x17, request_problem), *(((MAXIMUM_PACKET_SIZE, limit),) if small else ()))
    peer = clients(5, name, props=props)
    peer.send(
        publish_packet("a", b"x", 5, qos=1, packet_id=1),
        publish_packet("a", b"x", 5, qos=2, packet_id=2),
        ack_packet(6, 2),
        ack_packet(5, 99),
        ack_packet(6, 98),
        subscribe_packet([("b", 0)], 5, packet_id=3),
        unsubscribe_packet(["b", "c"], 5, packet_id=4),
    )
    for kind, packet_id, reasons in (
        (4, 1, (0, 0x10)),
        (5, 2, (0, 0x10)),
        (7, 2, (0,)),
        (6, 99, (0x92,)),
        (7, 98, (0x92,)),
        (SUBACK, 3, (0,)),
        (UNSUBACK, 4, (0,)),
    ):
        got = peer.expect(kind, packet_id=packet_id)
        assert got.reason in reasons
        if small:
            assert len(got.raw) <= limit
        if not request_problem:
            assert got.props == []
