"""Retained messages: stored, replaced, removed, handed out on subscribing, and the flags they are sent with."""

from __future__ import annotations

import pytest

from ..rawclient import Will, publish_packet, subscribe_packet
from .conftest import Clients
from .statements import each_version, spec

RETAIN_AS_PUBLISHED, NO_LOCAL = 8, 4


def retained(clients: Clients, version: int, topic_filter: str, options: int = 2) -> list[tuple[str, bytes, int, bool]]:
    """What a new subscriber gets: (topic, payload, QoS, RETAIN)."""
    peer = clients(version)
    peer.subscribe(topic_filter, options)
    return [(p.topic, p.payload, p.qos, p.retain) for p in clients.drain(peer, peer)]


@each_version
@spec("3.1.1", "MQTT-3.3.1-5", "MQTT-3.3.1-8")
@spec("5", "MQTT-3.3.1-5", "MQTT-3.3.1-9")
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_stored_with_its_qos(clients: Clients, name: str, version: int, qos: int) -> None:
    publisher = clients(version)
    publisher.publish(name, b"x", qos, retain=True)
    publisher.ping()
    for granted in (0, 1, 2):
        assert retained(clients, version, name, granted) == [(name, b"x", min(qos, granted), True)]


@each_version
@spec("3.1.1", "MQTT-3.3.1-6", "MQTT-3.3.1-8")
@spec("5", "MQTT-3.3.1-5", "MQTT-3.3.1-9")
def test_last_value_of_every_matching_topic(clients: Clients, name: str, version: int) -> None:
    publisher = clients(version)
    for topic, payload in (("a", b"1"), ("a", b"2"), ("b", b"3"), ("b/c", b"4"), ("B", b"5")):
        publisher.publish(f"{name}/{topic}", payload, 1, retain=True)
    everything = {("a", b"2"), ("b", b"3"), ("b/c", b"4"), ("B", b"5")}
    for tail, expected in (
        ("#", everything),
        ("+", {e for e in everything if "/" not in e[0]}),
        ("b/#", {("b", b"3"), ("b/c", b"4")}),
        ("b/+", {("b/c", b"4")}),
        ("a", {("a", b"2")}),
        ("c", set()),
    ):
        got = retained(clients, version, f"{name}/{tail}")
        assert {(t.removeprefix(f"{name}/"), p) for t, p, _, _ in got} == expected
        assert len(got) == len(expected)
        assert all(flag for _, _, _, flag in got)


@each_version
@spec("3.1.1", "MQTT-3.3.1-7")
@spec("5", "MQTT-3.3.1-5")
def test_qos_0_replaces(clients: Clients, name: str, version: int) -> None:
    publisher = clients(version)
    publisher.publish(name, b"old", 1, retain=True)
    publisher.publish(name, b"new", 0, retain=True)
    publisher.ping()
    assert retained(clients, version, name) in ([(name, b"new", 0, True)], [])


@each_version
@spec("3.1.1", "MQTT-3.3.1-9")
@spec("5", "MQTT-3.3.1-12")
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_living_subscription_gets_retain_0(clients: Clients, name: str, version: int, qos: int) -> None:
    peer = clients(version)
    peer.subscribe(name, qos)
    for retain in (True, False):
        peer.publish(name, b"x", qos, retain=retain)
        got = peer.message()
        assert not got.retain
        assert got.raw[0] == 0x30 | qos << 1


@spec("5", "MQTT-3.3.1-13")
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_retain_as_published(clients: Clients, name: str, qos: int) -> None:
    peer = clients(5)
    peer.subscribe(name, qos | RETAIN_AS_PUBLISHED)
    for retain in (True, False, True):
        peer.publish(name, b"x", qos, retain=retain)
        assert peer.message().raw[0] == 0x30 | qos << 1 | retain


@each_version
@spec("3.1.1", "MQTT-3.3.1-10", "MQTT-3.3.1-11")
@spec("5", "MQTT-3.3.1-6", "MQTT-3.3.1-7")
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_empty_payload_removes(clients: Clients, name: str, version: int, qos: int) -> None:
    publisher, watcher = clients(version), clients(version)
    publisher.publish(name, b"x", 1, retain=True)
    watcher.subscribe(name, 2)
    assert watcher.message().retain
    for _ in range(2):  # the second time there is nothing to remove, and nothing is stored
        publisher.publish(name, b"", qos, retain=True)
        got = watcher.message()
        assert (got.payload, got.retain) == (b"", False)
        publisher.ping()
        assert retained(clients, version, name) == []


@each_version
@spec("3.1.1", "MQTT-3.3.1-12")
@spec("5", "MQTT-3.3.1-8")
def test_retain_0_changes_nothing(clients: Clients, name: str, version: int) -> None:
    publisher = clients(version)
    publisher.publish(name, b"kept", 1, retain=True)
    publisher.publish(f"{name}/none", b"x", 1)
    for payload in (b"y", b""):
        for qos in (0, 1, 2):
            publisher.publish(name, payload, qos)
    publisher.ping()
    assert retained(clients, version, f"{name}/#") == [(name, b"kept", 1, True)]


@each_version
@spec("3.1.1", "MQTT-3.1.2-7")
@spec("5", "MQTT-3.3.1-5")
def test_retained_outlives_its_publisher(clients: Clients, name: str, version: int) -> None:
    publisher = clients(version, name)
    publisher.publish(f"{name}/t", b"x", 0, retain=True)
    publisher.disconnect()
    clients(version, name).disconnect()
    assert retained(clients, version, f"{name}/t") == [(f"{name}/t", b"x", 0, True)]


@each_version
@spec("3.1.1", "MQTT-3.8.4-3", "MQTT-3.3.1-8")
@spec("5", "MQTT-3.3.1-9", "MQTT-3.8.4-4")
def test_handed_out_again_on_subscribing_again(clients: Clients, name: str, version: int) -> None:
    publisher, peer = clients(version), clients(version)
    publisher.publish(f"{name}/a", b"x", 1, retain=True)
    for options in (0, 1, 2, 1):
        peer.subscribe(f"{name}/+", options)
        got = peer.message()
        assert (got.payload, got.qos, got.retain) == (b"x", min(1, options), True)
    publisher.publish(f"{name}/a", b"live", 1)
    assert [(p.payload, p.qos) for p in clients.drain(peer, publisher)] == [(b"live", 1)]


@spec("5", "MQTT-3.3.1-10", "MQTT-3.8.4-4")
def test_retain_handling_1(clients: Clients, name: str) -> None:
    """Handed out to a new subscription only; one that was resumed is not new."""
    publisher, peer = clients(5), clients.session(5, name)
    publisher.publish(f"{name}/a", b"x", 1, retain=True)
    peer.subscribe(f"{name}/a", 0x11)
    assert peer.message().retain
    peer.subscribe(f"{name}/a", 0x11)
    assert clients.drain(peer, publisher) == []
    peer.disconnect()
    peer = clients.session(5, name, present=True)
    peer.subscribe(f"{name}/a", 0x12)
    assert clients.drain(peer, publisher) == []
    peer.unsubscribe(f"{name}/a")
    peer.subscribe(f"{name}/a", 0x11)
    assert peer.message().retain


@spec("5", "MQTT-3.3.1-11", "MQTT-3.8.4-4")
def test_retain_handling_2(clients: Clients, name: str) -> None:
    publisher, peer = clients(5), clients(5)
    publisher.publish(name, b"x", 1, retain=True)
    for _ in range(2):
        peer.subscribe(name, 0x21)
        assert clients.drain(peer, publisher) == []
    publisher.publish(name, b"live", 1)
    assert peer.message().payload == b"live"


@each_version
@spec("3.1.1", "MQTT-3.8.4-4", "MQTT-3.3.1-6")
@spec("5", "MQTT-3.8.4-5", "MQTT-3.3.1-9")
def test_handed_out_for_every_filter_of_one_subscribe(clients: Clients, name: str, version: int) -> None:
    publisher, peer = clients(version), clients(version)
    for topic in "abc":
        publisher.publish(f"{name}/{topic}", topic, 1, retain=True)
    assert peer.subscribe_many([(f"{name}/a", 0), (f"{name}/b", 1), (f"{name}/d", 1)]) == [0, 1, 1]
    got = clients.drain(peer, publisher)
    assert sorted((p.payload, p.qos) for p in got) == [(b"a", 0), (b"b", 1)]


@each_version
@spec("3.1.1", "MQTT-3.3.1-6")
@spec("5", "MQTT-3.3.1-9")
@pytest.mark.parametrize("qos", [0, 1])
def test_three_thousand_to_one_subscriber(clients: Clients, name: str, version: int, qos: int) -> None:
    """Handed out in full, whatever the windows and queues hold."""
    publisher = clients(version)
    for start in range(0, 3000, 500):
        publisher.send(
            *(publish_packet(f"{name}/{i}", b"%d" % i, version, qos=qos, retain=True, packet_id=i + 1) for i in range(start, start + 500))
        )
        if qos:
            for _ in range(500):
                publisher.recv()
    publisher.ping()
    peer = clients(version)
    peer.send(subscribe_packet([(f"{name}/+", qos)], version))
    peer.await_packet(9)
    got = peer.messages(3000)
    assert {int(p.payload) for p in got} == set(range(3000))
    assert all(p.retain and p.topic == f"{name}/{p.payload.decode()}" for p in got)
    assert clients.drain(peer, publisher) == []


@spec("5", "MQTT-3.3.1-9")
def test_hand_out_survives_a_reconnect(clients: Clients, name: str) -> None:
    """What was not handed out before the connection broke is handed out to the resumed session."""
    publisher = clients(5)
    publisher.send(*(publish_packet(f"{name}/t/{i}", b"%d" % i, 5, qos=1, retain=True, packet_id=i + 1) for i in range(500)))
    for _ in range(500):
        publisher.recv()
    peer = clients.session(5, name, props=((0x21, 10),))
    peer.send(subscribe_packet([(f"{name}/t/#", 1)], 5))
    peer.await_packet(9)
    seen = {int(p.payload) for p in peer.messages(100)}
    peer.drop()
    peer = clients.session(5, name, present=True, props=((0x21, 10),))
    while len(seen) < 500:
        seen.add(int(peer.message().payload))
    assert seen == set(range(500))


@each_version
@spec("3.1.1", "MQTT-3.1.2-16", "MQTT-3.1.2-17")
@spec("5", "MQTT-3.1.2-14", "MQTT-3.1.2-15")
@pytest.mark.parametrize("retain", [False, True])
def test_will_retain(clients: Clients, name: str, version: int, retain: bool) -> None:
    watcher = clients(version)
    watcher.subscribe(f"{name}/w", RETAIN_AS_PUBLISHED if version == 5 else 0)
    clients(version, name, will=Will(f"{name}/w", b"x", retain=retain)).drop()
    assert watcher.message().retain is (retain and version == 5)
    assert retained(clients, version, f"{name}/w") == ([(f"{name}/w", b"x", 0, True)] if retain else [])
