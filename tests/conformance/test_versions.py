"""MQTT 3.1, 3.1.1 and 5.0 on one broker: one space of topics, sessions, retained messages and wills."""

from __future__ import annotations

import itertools

import pytest

from ..rawclient import (
    CONNACK,
    CONTENT_TYPE,
    DISCONNECT,
    MESSAGE_EXPIRY,
    TOPIC_ALIAS,
    USER_PROPERTY,
    Will,
    connect_packet,
)
from .conftest import Clients, MakeBroker
from .statements import spec

ALL = (3, 4, 5)
PAIRS = list(itertools.product(ALL, ALL))
PROPS = ((CONTENT_TYPE, "text"), (USER_PROPERTY, ("k", "v")), (TOPIC_ALIAS, 1))

pairs = pytest.mark.parametrize(("sender", "receiver"), PAIRS)


@pairs
@pytest.mark.parametrize("qos", [0, 1, 2])
@spec("3.1.1", "MQTT-4.5.0-1")
@spec("5", "MQTT-4.5.0-1")
def test_messages(clients: Clients, name: str, sender: int, receiver: int, qos: int) -> None:
    """Each in the form of the receiver's version; properties reach those that know them."""
    publisher, peer = clients(sender), clients(receiver)
    peer.subscribe(f"{name}/+", qos)
    publisher.publish(f"{name}/a", b"x", qos, props=PROPS)
    got = peer.message()
    assert (got.topic, got.payload, got.qos) == (f"{name}/a", b"x", qos)
    assert got.all_props(USER_PROPERTY) == ([("k", "v")] if sender == receiver == 5 else [])


@pairs
@spec("3.1.1", "MQTT-3.3.1-5")
@spec("5", "MQTT-3.3.1-5")
def test_retained(clients: Clients, name: str, sender: int, receiver: int) -> None:
    publisher, peer = clients(sender), clients(receiver)
    publisher.publish(name, b"x", 1, retain=True, props=PROPS)
    peer.subscribe(name, 1)
    got = peer.message()
    assert (got.payload, got.qos, got.retain) == (b"x", 1, True)
    publisher.publish(name, b"", 1, retain=True)
    late = clients(receiver)
    late.subscribe(name, 1)
    assert clients.drain(late, publisher) == []


@pairs
@spec("3.1.1", "MQTT-3.1.2-8")
@spec("5", "MQTT-3.1.2-7")
def test_wills(clients: Clients, name: str, sender: int, receiver: int) -> None:
    peer = clients(receiver)
    peer.subscribe(f"{name}/w", 1)
    clients(sender, name, will=Will(f"{name}/w", b"gone", 1, props=((USER_PROPERTY, ("k", "v")),))).drop()
    got = peer.message()
    assert (got.payload, got.qos) == (b"gone", 1)


@pairs
@spec("3.1.1", "MQTT-3.1.4-2")
@spec("5", "MQTT-3.1.4-3", "MQTT-3.1.4-4")
def test_take_over(clients: Clients, name: str, sender: int, receiver: int) -> None:
    """One client id is one session, whatever version comes next; the loser is told in its own version."""
    publisher = clients(sender)
    first = clients.session(sender, name)
    first.subscribe(f"{name}/q", 1)
    publisher.publish(f"{name}/q", b"1", 1)
    held = first.message(answer=False)
    second = clients.session(receiver, name, present=True)
    end = first.expect_close()
    assert [(p.type, p.reason) for p in end] == ([(DISCONNECT, 0x8E)] if sender == 5 else [])
    again = second.message()
    assert (again.payload, again.packet_id, again.dup) == (b"1", held.packet_id, True)
    publisher.publish(f"{name}/q", b"2", 1)
    assert second.message().payload == b"2"


@pairs
@spec("3.1.1", "MQTT-3.1.3-2", "MQTT-3.1.2-5")
@spec("5", "MQTT-3.1.3-2", "MQTT-3.1.2-5")
def test_sessions_are_resumed_across_versions(clients: Clients, name: str, sender: int, receiver: int) -> None:
    """What was queued goes out in the form of the version that comes back."""
    publisher = clients(5)
    peer = clients.session(sender, name)
    peer.subscribe(f"{name}/q", 2)
    peer.disconnect()
    for i in range(4):
        publisher.publish(f"{name}/q", b"%d" % i, 1 + i % 2, props=((USER_PROPERTY, ("k", "v")), (MESSAGE_EXPIRY, 100)))
    peer = clients.session(receiver, name, present=True)
    got = clients.drain(peer, publisher)
    assert [(p.payload, p.qos) for p in got] == [(b"%d" % i, 1 + i % 2) for i in range(4)]
    assert [p.all_props(USER_PROPERTY) for p in got] == [[("k", "v")] if receiver == 5 else []] * 4


@pytest.mark.parametrize("version", [3, 4])
@spec("3.1.1", "MQTT-3.1.2-4", "MQTT-4.1.0-1")
def test_sessions_of_old_clients_expire_by_configuration(clients: Clients, make_broker: MakeBroker, name: str, version: int) -> None:
    special = make_broker(limits={"session_expiry": 100})
    clients.session(version, name, present=False, broker=special).disconnect()
    special.advance_clock(90)
    clients.session(version, name, present=True, broker=special).disconnect()
    special.advance_clock(102)
    clients.session(version, name, present=False, broker=special)


@spec("5", "MQTT-3.1.2-23")
def test_session_expiry_is_capped_and_told(clients: Clients, make_broker: MakeBroker, name: str) -> None:
    special = make_broker(limits={"session_expiry": 100})
    for asked in (101, 0xFFFFFFFF):
        peer = clients(5, name, expiry=asked, broker=special)
        assert peer.connack.prop(0x11) == 100
    assert clients(5, name, expiry=50, broker=special).connack.prop(0x11) in (None, 50)


@spec("3.1.1", "MQTT-3.1.2-1")
def test_mqtt_31(clients: Clients, name: str) -> None:
    """MQIsdp with level 3; what it shares with 3.1.1 behaves alike, and a refused filter has no code of its own."""
    peer = clients.raw(3)
    peer.send("10 10 00 06 4D 51 49 73 64 70 03 02 00 3C 00 02 63 31")
    assert peer.recv().raw.hex() == "20020000"
    peer.subscribe(name, 2)
    for qos in (0, 1, 2):
        peer.publish(name, b"%d" % qos, qos)
        got = peer.message()
        assert (got.payload, got.qos) == (b"%d" % qos, qos)
    peer.ping()
    peer.disconnect()


@pytest.mark.parametrize(("protocol", "level"), [("MQIsdp", 4), ("MQIsdp", 5), ("MQTT", 3), ("MQIsdpx", 3), ("mqisdp", 3), ("MQIsd", 3)])
@spec("3.1.1", "MQTT-3.1.2-1", "MQTT-3.1.2-2")
@spec("5", "MQTT-3.1.2-1", "MQTT-3.1.2-2")
def test_name_and_level_belong_together(clients: Clients, protocol: str, level: int) -> None:
    peer = clients.raw(5 if level == 5 else 4)
    peer.send(connect_packet("c1", level, name=protocol, level=level))
    end = peer.expect_close()
    assert len(end) <= 1
    assert all(p.type == CONNACK and p.reason in (1, 0x84, 0x81) for p in end)


def test_unusual_31_client_ids(clients: Clients) -> None:
    """3.1 wants 1 to 23 characters: an empty one is refused with 0x02 or by closing, one of 23 is served."""
    clients(3, "0123456789abcdefghijklm").ping()
    peer = clients.raw(3)
    peer.send(connect_packet("", 3), b"\xe0\0")
    assert [p.raw.hex() for p in peer.expect_close()] in (["20020002"], [], ["20020000"])
