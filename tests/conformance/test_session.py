"""Sessions: clean start, resume, expiry, take-over, keep alive, DISCONNECT."""

from __future__ import annotations

import contextlib

import pytest

from ..rawclient import (
    CONNACK,
    DISCONNECT,
    PUBLISH,
    SESSION_EXPIRY,
    PeerClosed,
    Will,
    ack_packet,
    connect_packet,
    disconnect_packet,
    publish_packet,
)
from .conftest import Clients, TestBroker
from .statements import each_version, spec

FOREVER = 0xFFFFFFFF

pytestmark = pytest.mark.transport


@each_version
@spec("3.1.1", "MQTT-3.1.2-4", "MQTT-3.1.2-5", "MQTT-3.2.2-2", "MQTT-3.2.2-3", "MQTT-4.1.0-1", "MQTT-4.5.0-1")
@spec("5", "MQTT-3.1.2-5", "MQTT-3.1.2-6", "MQTT-3.1.2-23", "MQTT-3.2.2-3", "MQTT-4.5.0-1")
def test_session_is_resumed(clients: Clients, name: str, version: int) -> None:
    """Subscriptions and what was published off line, QoS 1 and 2, in order."""
    first = clients.session(version, name, present=False)
    online = clients(version)
    for peer in (first, online):
        peer.subscribe(f"{name}/q", 2)
    first.disconnect()
    publisher = clients(version)
    for i in range(10):
        publisher.publish(f"{name}/q", f"{i}", 1 + i % 2)
    expected = [(f"{i}".encode(), 1 + i % 2, False) for i in range(10)]
    assert [(p.payload, p.qos, p.dup) for p in online.messages(10)] == expected
    again = clients.session(version, name, present=True)
    assert [(p.payload, p.qos, p.dup) for p in again.messages(10)] == expected
    publisher.publish(f"{name}/q", "live", 1)
    assert again.message().payload == b"live"


@each_version
@spec("3.1.1", "MQTT-3.2.2-2", "MQTT-3.2.2-3")
@spec("5", "MQTT-3.2.2-3", "MQTT-3.1.2-6")
def test_session_present_without_subscriptions(clients: Clients, name: str, version: int) -> None:
    clients.session(version, name, present=False).disconnect()
    clients.session(version, name, present=True).drop()
    clients.session(version, name, present=True)


@each_version
@spec("3.1.1", "MQTT-3.1.2-6", "MQTT-3.2.2-1", "MQTT-3.1.4-3")
@spec("5", "MQTT-3.1.2-4", "MQTT-3.2.2-2")
def test_clean_discards_the_session(clients: Clients, name: str, version: int) -> None:
    first = clients.session(version, name)
    first.subscribe(f"{name}/q", 1)
    first.disconnect()
    publisher = clients(version)
    publisher.publish(f"{name}/q", b"queued", 1)
    clean = clients(version, name)
    assert not clean.connack.session_present
    publisher.publish(f"{name}/q", b"live", 1)
    assert clients.drain(clean, publisher) == []
    clean.subscribe(f"{name}/q", 1)
    clean.disconnect()
    again = clients.session(version, name, present=False)
    publisher.publish(f"{name}/q", b"later", 1)
    assert clients.drain(again, publisher) == []


@spec("5", "MQTT-3.1.2-23", "MQTT-3.2.2-3")
def test_session_without_expiry_ends_with_the_connection(clients: Clients, name: str) -> None:
    for options in ({}, {"expiry": 0}):
        clients(5, name, **options).disconnect()
        clients.session(5, name, present=False, **({"expiry": 0} | options)).drop()
    clients.session(5, name, present=False)


@spec("5", "MQTT-4.1.0-2", "MQTT-3.1.2-23", "MQTT-3.2.2-3")
def test_session_expires(clients: Clients, broker: TestBroker, name: str) -> None:
    first = clients.session(5, name, expiry=2)
    first.subscribe(f"{name}/q", 1)
    first.drop()
    clients(5).publish(f"{name}/q", b"x", 1)
    kept = clients.session(5, f"{name}-kept", expiry=3600)
    forever = clients.session(5, f"{name}-forever", expiry=FOREVER)
    kept.disconnect()
    forever.disconnect()
    broker.advance_clock(3.5)
    again = clients.session(5, name, present=False)
    assert clients.drain(again, again) == []
    clients.session(5, f"{name}-kept", present=True)
    clients.session(5, f"{name}-forever", present=True)


@spec("5", "MQTT-3.1.2-23", "MQTT-4.1.0-2")
def test_resume_within_expiry_starts_it_anew(clients: Clients, broker: TestBroker, name: str) -> None:
    for present in (False, True, True):
        clients.session(5, name, present=present, expiry=4).disconnect()
        broker.advance_clock(2.5)
    clients.session(5, name, present=True)


@spec("5", "MQTT-4.1.0-1")
@spec("3.1.1", "MQTT-4.1.0-2")
@pytest.mark.parametrize("version", [4, 5])
def test_session_does_not_end_while_connected(clients: Clients, broker: TestBroker, name: str, version: int) -> None:
    peer = clients(version, name, clean=version == 4, expiry=1)
    peer.subscribe(f"{name}/q", 1)
    publisher = clients(version)
    publisher.publish(f"{name}/q", b"1", 1)
    held = peer.message(answer=False)
    broker.advance_clock(4)
    publisher.publish(f"{name}/q", b"2", 1)
    assert peer.message().payload == b"2"
    peer.answer(held)
    peer.ping()


@spec("5", "MQTT-4.1.0-2", "MQTT-3.1.2-23")
def test_expiry_changed_in_disconnect(clients: Clients, broker: TestBroker, name: str) -> None:
    clients.session(5, name, expiry=3600).disconnect(0, ((SESSION_EXPIRY, 0),))
    clients.session(5, name, present=False, expiry=1).disconnect(0, ((SESSION_EXPIRY, 600),))
    broker.advance_clock(3)
    clients.session(5, name, present=True, expiry=600).disconnect(0, ((SESSION_EXPIRY, 1),))
    broker.advance_clock(3)
    clients.session(5, name, present=False)


@spec("5", "MQTT-3.14.2-2", "MQTT-3.1.2-8")
def test_expiry_may_not_be_set_in_disconnect_after_none(clients: Clients, name: str) -> None:
    """A Protocol Error, and no valid DISCONNECT: the will goes out."""
    watcher = clients(5)
    watcher.subscribe(f"{name}/w")
    peer = clients(5, name, will=Will(f"{name}/w", b"gone"))
    peer.send(disconnect_packet(0, ((SESSION_EXPIRY, 60),)))
    end = peer.expect_close()
    assert [(p.type, p.reason) for p in end] in ([], [(DISCONNECT, 0x82)])
    assert watcher.message().payload == b"gone"
    clients.session(5, name, present=False)


@each_version
@spec("3.1.1", "MQTT-3.1.3-2")
@spec("5", "MQTT-3.1.3-2")
def test_sessions_are_told_apart_by_client_id(clients: Clients, name: str, version: int) -> None:
    """Also ids that differ in case or length alone."""
    ids = [name, name.upper(), f"{name}0", f"{name} "]
    publisher = clients(version)
    for i, client_id in enumerate(ids):
        peer = clients.session(version, client_id, present=False)
        peer.subscribe(f"{name}/{i}", 1)
        peer.disconnect()
        publisher.publish(f"{name}/{i}", f"{i}", 1)
    for i, client_id in enumerate(ids):
        peer = clients.session(version, client_id, present=True)
        assert peer.message(f"{name}/{i}").payload == f"{i}".encode()
        assert clients.drain(peer, publisher) == []


@each_version
@spec("3.1.1", "MQTT-3.1.4-2", "MQTT-3.1.2-8")
@spec("5", "MQTT-3.1.4-3", "MQTT-3.1.2-8", "MQTT-3.14.4-1", "MQTT-3.14.4-2")
def test_take_over(clients: Clients, name: str, version: int) -> None:
    watcher = clients(version)
    watcher.subscribe(f"{name}/w")
    first = clients(version, name, will=Will(f"{name}/w", b"gone"))
    second = clients(version, name)
    end = first.expect_close()
    assert [(p.type, p.reason) for p in end] == ([(DISCONNECT, 0x8E)] if version == 5 else [])
    assert watcher.message().payload == b"gone"
    second.ping()


@each_version
@spec("3.1.1", "MQTT-3.1.4-3", "MQTT-3.1.4-2")
@spec("5", "MQTT-3.1.4-4", "MQTT-3.1.4-3")
def test_take_over_and_clean_start(clients: Clients, name: str, version: int) -> None:
    publisher = clients(version)
    first = clients.session(version, name, present=False)
    first.subscribe(f"{name}/q", 1)
    second = clients.session(version, name, present=True)
    first.expect_close()
    publisher.publish(f"{name}/q", b"1", 1)
    assert second.message().payload == b"1"
    third = clients(version, name)
    second.expect_close()
    assert not third.connack.session_present
    publisher.publish(f"{name}/q", b"2", 1)
    assert clients.drain(third, publisher) == []


@each_version
@spec("3.1.1", "MQTT-3.1.4-2")
@spec("5", "MQTT-3.1.4-3")
def test_take_over_in_a_row(clients: Clients, name: str, version: int) -> None:
    """Many connections of one id at once: exactly one is left, and it works."""
    peers = [clients.raw(version) for _ in range(20)]
    for peer in peers:
        peer.send(connect_packet(name, version, clean=False, expiry=60))
    for peer in peers:  # each was served before it was taken over, or closed before its turn came
        with contextlib.suppress(PeerClosed):
            peer.aside.append(peer.expect(CONNACK))
    final = clients.session(version, name, present=True)
    for peer in peers:
        if not peer.closed:
            assert [p.type for p in peer.expect_close()] in ([CONNACK], [CONNACK, DISCONNECT])
    final.subscribe(name, 1)
    final.publish(name, b"x", 1)
    assert final.message(name).payload == b"x"


@each_version
@spec("3.1.1", "MQTT-3.1.4-2")
@spec("5", "MQTT-3.1.4-3")
def test_take_over_of_queued_and_unacked(clients: Clients, name: str, version: int) -> None:
    """A live session changes hands with its unacknowledged messages: they come again, marked DUP."""
    publisher = clients(version)
    first = clients.session(version, name)
    first.subscribe(f"{name}/q", 1)
    for i in range(5):
        publisher.publish(f"{name}/q", f"{i}", 1)
    held = first.messages(5, answer=False)
    second = clients.session(version, name, present=True)
    again = second.messages(5)
    assert [(p.payload, p.packet_id, p.dup) for p in again] == [(p.payload, p.packet_id, True) for p in held]


@each_version
@spec("3.1.1", "MQTT-3.1.2-24")
@spec("5", "MQTT-3.1.2-22", "MQTT-3.2.2-22", "MQTT-3.1.2-8")
def test_keep_alive(clients: Clients, broker: TestBroker, name: str, version: int) -> None:
    """Open before 1.5 times the interval, closed soon after; the will goes out. 0 means never."""
    watcher = clients(version)
    watcher.subscribe(f"{name}/w")
    lasting = clients(version, f"{name}-lasting", keep_alive=0)
    lasting.subscribe(f"{name}/d")
    pinging = clients(version, f"{name}-pinging", keep_alive=4)
    silent = clients(version, name, keep_alive=4, will=Will(f"{name}/w", b"gone"))
    silent.subscribe(f"{name}/d")
    broker.advance_clock(5)
    watcher.publish(f"{name}/d", b"1")
    assert silent.message().payload == b"1"
    pinging.ping()
    broker.advance_clock(3)
    end = silent.expect_close()
    assert [(p.type, p.reason) for p in end] in ([], [(DISCONNECT, 0x8D)] if version == 5 else [])
    assert watcher.message(f"{name}/w").payload == b"gone"
    pinging.ping()
    lasting.ping()


@each_version
@spec("3.1.1", "MQTT-3.1.2-24")
@spec("5", "MQTT-3.1.2-22")
@pytest.mark.parametrize("kind", ["ping", "publish", "acknowledgement"])
def test_any_packet_keeps_alive(clients: Clients, broker: TestBroker, name: str, version: int, kind: str) -> None:
    peer = clients(version, name, keep_alive=4)
    peer.subscribe(name, 2)
    for i in range(3):
        broker.advance_clock(4)
        if kind == "ping":
            peer.ping()
        elif kind == "publish":
            peer.publish(name, f"{i}")
            assert peer.message().payload == f"{i}".encode()
        else:
            clients(version).publish(name, f"{i}", 2)
            peer.message()  # PUBREC, of which PUBREL shows that it was read
    peer.ping()


@each_version
@spec("3.1.1", "MQTT-3.14.4-2")
@spec("5", "MQTT-3.14.4-1")
def test_nothing_after_disconnect_is_processed(clients: Clients, name: str, version: int) -> None:
    watcher = clients(version)
    watcher.subscribe(f"{name}/#")
    peer = clients(version, name)
    peer.send("E000", publish_packet(f"{name}/after", b"x", version), publish_packet(f"{name}/after", b"x", version, qos=1))
    assert peer.expect_close() == []
    assert clients.drain(watcher, clients(version, name)) == []


@each_version
@spec("3.1.1", "MQTT-3.14.4-1")
@spec("5", "MQTT-3.14.4-2")
def test_server_closes_after_disconnect(clients: Clients, version: int) -> None:
    """Even when the client leaves its side open."""
    peer = clients(version)
    peer.send("E000")
    assert peer.expect_close() == []


@spec("5", "MQTT-3.14.4-1", "MQTT-3.14.2-1", "MQTT-3.14.2-2", "MQTT-3.14.2-3", "MQTT-3.14.2-4")
def test_server_disconnect_is_short_and_last(clients: Clients, name: str) -> None:
    """With a Maximum Packet Size that just fits CONNACK: DISCONNECT in at most that size, then only the end."""
    limit = len(clients(5, name, expiry=60).connack.raw)
    first = clients(5, name, expiry=60, props=((0x27, limit),))
    first.subscribe("a", 0)
    clients(5, name)
    end = first.expect_close()
    assert [(p.type, p.reason) for p in end] == [(DISCONNECT, 0x8E)]
    assert len(end[0].raw) <= limit
    assert end[0].prop(SESSION_EXPIRY) is None
    bad = clients(5, f"{name}2", props=((0x27, limit),))
    bad.send("C100")
    for got in bad.expect_close():
        assert got.type == DISCONNECT
        assert len(got.raw) <= limit
        assert got.prop(SESSION_EXPIRY) is None


REASONS_OF_CLIENTS = (0x00, 0x04, 0x80, 0x81, 0x82, 0x83, 0x90, 0x93, 0x94, 0x95, 0x96, 0x97, 0x98, 0x99)


@pytest.mark.parametrize("reason", REASONS_OF_CLIENTS)
@spec("5", "MQTT-3.14.2-1", "MQTT-3.14.4-3", "MQTT-3.1.2-8")
def test_disconnect_reasons(clients: Clients, name: str, reason: int) -> None:
    """Every code of a client is taken; only 0x00 deletes the will."""
    watcher = clients(5)
    watcher.subscribe(f"{name}/w")
    peer = clients(5, name, will=Will(f"{name}/w", b"gone"))
    peer.send(disconnect_packet(reason))
    assert peer.expect_close() == []
    got = clients.drain(watcher, clients(5, name))
    assert [p.payload for p in got] == ([] if reason == 0 else [b"gone"])


@each_version
@spec("3.1.1", "MQTT-4.1.0-1", "MQTT-4.4.0-1")
@spec("5", "MQTT-4.4.0-1", "MQTT-4.1.0-1")
def test_open_exchanges_survive(clients: Clients, name: str, version: int) -> None:
    """Three QoS 1, one QoS 2 and one PUBREL left open come back: same ids, PUBLISHes with DUP, in their order."""
    publisher = clients(version)
    first = clients.session(version, name)
    first.subscribe(f"{name}/q", 2)
    for i, qos in enumerate((1, 2, 1, 2, 1)):
        publisher.publish(f"{name}/q", f"{i}", qos)
    held = first.messages(5, answer=False)
    first.send(ack_packet(5, held[1].packet_id))
    first.expect(6, packet_id=held[1].packet_id)
    first.drop()
    again = clients.session(version, name, present=True)
    got = [again.recv() for _ in range(5)]
    released = [p for p in got if p.type == 6]
    assert [p.packet_id for p in released] == [held[1].packet_id]
    sent = [p for p in got if p.type == PUBLISH]
    expected = [held[i] for i in (0, 2, 3, 4)]
    assert [(p.payload, p.packet_id, p.qos, p.dup) for p in sent] == [(p.payload, p.packet_id, p.qos, True) for p in expected]
    again.send(ack_packet(7, held[1].packet_id))
    for p in sent:
        again.answer(p)
    again.drop()
    third = clients.session(version, name, present=True)
    assert clients.drain(third, publisher) == []


@each_version
@spec("3.1.1", "MQTT-3.1.2-4", "MQTT-4.4.0-1")
@spec("5", "MQTT-4.4.0-1")
def test_nothing_is_sent_again_on_a_living_connection(clients: Clients, broker: TestBroker, name: str, version: int) -> None:
    publisher = clients(version)
    peer = clients.session(version, name)
    peer.subscribe(f"{name}/q", 2)
    publisher.publish(f"{name}/q", b"1", 1)
    publisher.publish(f"{name}/q", b"2", 2)
    held = peer.messages(2, answer=False)
    broker.advance_clock(3 if not broker.ours else 600)
    assert clients.drain(peer, publisher) == []
    for p in held:
        peer.answer(p)


@each_version
@spec("3.1.1", "MQTT-3.2.2-5", "MQTT-3.2.2-4")
@spec("5", "MQTT-3.2.2-6", "MQTT-3.1.4-2")
def test_a_refused_connect_leaves_the_session_alone(clients: Clients, name: str, version: int) -> None:
    """Neither the living connection nor the session of the id suffer from a malformed CONNECT that names it."""
    peer = clients.session(version, name)
    peer.subscribe(f"{name}/q", 1)
    bad = clients.raw(version)
    bad.send(connect_packet(name, version, clean=True)[:-1] + b"\xff")
    end = bad.expect_close()
    assert all(p.type == CONNACK and p.reason and not p.session_present for p in end)
    peer.publish(f"{name}/q", b"x", 1)
    assert peer.message().payload == b"x"
    peer.disconnect()
    clients.session(version, name, present=True).ping()
