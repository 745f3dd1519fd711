"""The sender's side of QoS 1 and 2: first sends, repeats on resume, PUBREL state, negative acknowledgements."""

from __future__ import annotations

import pytest

from ..rawclient import PUBACK, PUBCOMP, PUBREC, PUBREL, ack_packet, publish_packet
from .conftest import Clients
from .statements import each_version, spec

pytestmark = pytest.mark.transport


@each_version
@spec("3.1.1", "MQTT-3.3.1-1", "MQTT-4.3.2-1", "MQTT-2.3.1-4", "MQTT-4.3.1-1")
@spec("5", "MQTT-3.3.1-1", "MQTT-4.3.2-2", "MQTT-4.3.2-3", "MQTT-4.3.1-1", "MQTT-4.4.0-1")
def test_qos_1_until_puback(clients: Clients, name: str, version: int) -> None:
    """Sent with DUP 0, sent again with DUP 1 and its identifier on resume, never again after PUBACK. QoS 0 never again."""
    publisher, peer = clients(version), clients.session(version, name)
    peer.subscribe(f"{name}/q", 1)
    for i in range(3):
        publisher.publish(f"{name}/q", b"%d" % i, 1)
        publisher.publish(f"{name}/q", b"zero", 0)
    got = peer.messages(6, answer=False)
    first = [p for p in got if p.qos]
    assert [p.raw[0] for p in first] == [0x32] * 3
    assert [p.raw[0] for p in got if not p.qos] == [0x30] * 3
    assert len({p.packet_id for p in first}) == 3
    peer.send(ack_packet(PUBACK, first[1].packet_id))
    peer.send(ack_packet(PUBACK, 60000))  # of nothing: changes nothing
    peer.ping()
    peer.drop()
    for _ in range(2):
        peer = clients.session(version, name, present=True)
        again = clients.drain(peer, publisher, answer=False)
        assert [(p.raw[0], p.packet_id, p.payload) for p in again] == [(0x3A, p.packet_id, p.payload) for p in (first[0], first[2])]
        peer.drop()
    peer = clients.session(version, name, present=True)
    for p in peer.messages(2):
        assert p.dup
    publisher.publish(f"{name}/q", b"new", 1)
    assert [(p.payload, p.dup) for p in clients.drain(peer, publisher)] == [(b"new", False)]
    peer.drop()
    peer = clients.session(version, name, present=True)
    assert clients.drain(peer, publisher) == []


@each_version
@spec("3.1.1", "MQTT-4.3.3-1", "MQTT-3.3.1-1")
@spec("5", "MQTT-4.3.3-2", "MQTT-4.3.3-3", "MQTT-4.3.3-4", "MQTT-4.3.3-5", "MQTT-4.3.3-6", "MQTT-3.6.2-1")
def test_qos_2_step_by_step(clients: Clients, name: str, version: int) -> None:
    """A break before PUBREC repeats PUBLISH; one before PUBCOMP repeats PUBREL alone; a second PUBREC gets PUBREL again."""
    publisher, peer = clients(version), clients.session(version, name)
    peer.subscribe(f"{name}/q", 2)
    publisher.publish(f"{name}/q", b"x", 2)
    first = peer.message(answer=False)
    assert first.raw[0] == 0x34
    peer.drop()
    peer = clients.session(version, name, present=True)
    again = peer.message(answer=False)
    assert (again.raw[0], again.packet_id, again.payload) == (0x3C, first.packet_id, b"x")
    peer.send(ack_packet(PUBREC, first.packet_id))
    peer.expect(PUBREL, packet_id=first.packet_id, reason=0)
    peer.send(ack_packet(PUBREC, first.packet_id))
    peer.expect(PUBREL, packet_id=first.packet_id, reason=0)
    peer.drop()
    peer = clients.session(version, name, present=True)
    peer.expect(PUBREL, packet_id=first.packet_id, reason=0)
    peer.send(ack_packet(PUBCOMP, first.packet_id))
    peer.ping()
    peer.drop()
    peer = clients.session(version, name, present=True)
    assert clients.drain(peer, publisher) == []


@spec("5", "MQTT-4.3.3-4")
def test_pubrec_0x10_goes_on(clients: Clients, name: str) -> None:
    peer = clients(5)
    peer.subscribe(name, 2)
    peer.publish(name, b"x", 2)
    got = peer.message(answer=False)
    peer.send(ack_packet(PUBREC, got.packet_id, 0x10))
    peer.expect(PUBREL, packet_id=got.packet_id)


@spec("5", "MQTT-4.4.0-2", "MQTT-4.3.3-4", "MQTT-4.3.2-3")
@pytest.mark.parametrize("qos", [1, 2])
@pytest.mark.parametrize("reason", [0x80, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99])
def test_negative_acknowledgement_ends_the_exchange(clients: Clients, name: str, qos: int, reason: int) -> None:
    """No PUBREL, no repeat, the window is free again."""
    publisher, peer = clients(5), clients.session(5, name, props=((0x21, 1),))
    peer.subscribe(f"{name}/q", 2)
    publisher.publish(f"{name}/q", b"refused", qos)
    publisher.publish(f"{name}/q", b"next", qos)
    got = peer.message(answer=False)
    peer.send(ack_packet(PUBACK if qos == 1 else PUBREC, got.packet_id, reason))
    assert peer.message(answer=False).payload == b"next"
    peer.drop()
    peer = clients.session(5, name, present=True)
    assert [p.payload for p in clients.drain(peer, publisher)] == [b"next"]


@each_version
@spec("3.1.1", "MQTT-4.6.0-6", "MQTT-4.4.0-1")
@spec("5", "MQTT-4.6.0-5", "MQTT-4.4.0-1")
def test_repeats_come_first_and_in_order(clients: Clients, name: str, version: int) -> None:
    """On resume: PUBRELs and unacknowledged messages in the order of their first sending, then what was queued."""
    publisher, peer = clients(version), clients.session(version, name)
    peer.subscribe(f"{name}/q", 2)
    for i in range(12):
        publisher.publish(f"{name}/q", b"%d" % i, 1 + i % 2)
    first = peer.messages(12, answer=False)
    for i in (0, 4, 8):
        peer.send(ack_packet(PUBACK, first[i].packet_id))
    peer.ping()
    peer.drop()
    for i in range(12, 20):
        publisher.publish(f"{name}/q", b"%d" % i, 1 + i % 2)
    peer = clients.session(version, name, present=True)
    got = clients.drain(peer, publisher)
    unacknowledged = [i for i in range(12) if i not in (0, 4, 8)]
    assert [int(p.payload) for p in got] == [*unacknowledged, *range(12, 20)]
    assert [p.dup for p in got] == [True] * len(unacknowledged) + [False] * 8
    assert [p.packet_id for p in got[: len(unacknowledged)]] == [first[i].packet_id for i in unacknowledged]


@each_version
@spec("3.1.1", "MQTT-4.3.2-2", "MQTT-3.1.2-5")
@spec("5", "MQTT-4.5.0-1", "MQTT-4.3.2-4")
def test_publisher_may_leave_at_once(clients: Clients, name: str, version: int) -> None:
    """What was acknowledged is owned by the server, whatever becomes of the publisher."""
    peer = clients.session(version, name)
    peer.subscribe(f"{name}/q", 1)
    publisher = clients(version)
    publisher.send(publish_packet(f"{name}/q", b"x", version, qos=1, packet_id=1))
    publisher.expect(PUBACK)
    publisher.reset()
    assert peer.message().payload == b"x"


@each_version
@spec("3.1.1", "MQTT-2.3.1-6")
@spec("5", "MQTT-2.2.1-5")
def test_both_directions_use_their_own_identifiers(clients: Clients, name: str, version: int) -> None:
    """The client's exchange 1 and the server's exchange 1 do not touch each other."""
    peer = clients(version)
    peer.subscribe(name, 2)
    peer.send(publish_packet(name, b"x", version, qos=2, packet_id=1))
    peer.await_packet(PUBREC, 1)
    peer.send(ack_packet(PUBREL, 1))
    peer.await_packet(PUBCOMP, 1)
    mine = peer.message(answer=False)
    peer.send(publish_packet(name, b"y", version, qos=2, packet_id=mine.packet_id), ack_packet(PUBREC, mine.packet_id))
    peer.await_packet(PUBREC, mine.packet_id)
    peer.await_packet(PUBREL, mine.packet_id)
    peer.send(ack_packet(PUBCOMP, mine.packet_id), ack_packet(PUBREL, mine.packet_id))
    peer.await_packet(PUBCOMP, mine.packet_id)
    assert [p.payload for p in clients.drain(peer, peer)] == [b"y"]


@spec("5", "MQTT-4.3.3-9")
def test_identifier_after_a_negative_pubrec(clients: Clients, name: str) -> None:
    """A QoS 2 message that is refused (here: it says UTF-8 and is not) ends its exchange; without refusal it goes on."""
    peer, publisher = clients(5), clients(5)
    peer.subscribe(name, 2)
    publisher.send(publish_packet(name, b"\xff", 5, qos=2, packet_id=1, props=((0x01, 1),)))
    got = publisher.expect(PUBREC, packet_id=1)
    if got.reason < 0x80:
        publisher.send(ack_packet(PUBREL, 1))
        publisher.expect(PUBCOMP, packet_id=1)
        assert peer.message().payload == b"\xff"
    publisher.publish(name, b"good", 2, packet_id=1)
    assert [p.payload for p in clients.drain(peer, publisher)] == [b"good"]
