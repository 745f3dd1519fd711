"""Shared subscriptions: one member per message, whatever becomes of the members.

A message may go by way of another thread than the one that serves its publisher, so a test never concludes from a message
that came by a different way. That a member got nothing is shown by a later message of the same group.
"""

from __future__ import annotations

import select
import time

import pytest

from ..rawclient import PUBACK, PUBCOMP, PUBREC, PUBREL, RECEIVE_MAXIMUM, SUBSCRIPTION_ID, TIMEOUT, Packet, Peer, PeerTimeout, ack_packet
from .conftest import Clients, TestBroker
from .statements import spec

GRANT = spec("5", "MQTT-4.8.2-1", "MQTT-4.8.2-2", "MQTT-4.5.0-1")


def collect(peers: list[Peer], count: int, *, answer: bool = True) -> list[list[Packet]]:
    """Messages from all peers until there are `count` of them; what each peer got."""
    got: list[list[Packet]] = [[] for _ in peers]
    deadline = time.monotonic() + TIMEOUT
    while sum(map(len, got)) < count:
        ready = [i for i, p in enumerate(peers) if p.aside or p.buffer]
        if not ready:
            left = deadline - time.monotonic()
            sockets = select.select([p.socket for p in peers], [], [], max(left, 0))[0]
            ready = [i for i, p in enumerate(peers) if p.socket in sockets]
        if not ready:
            raise PeerTimeout(f"{[len(g) for g in got]} messages of {count}")
        for i in ready:
            got[i].append(peers[i].message(answer=answer))
    return got


def payloads(got: list[list[Packet]]) -> list[int]:
    """The numbers that all peers got together."""
    return sorted(int(p.payload) for part in got for p in part)


@GRANT
@spec("5", "MQTT-4.6.0-6")
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_each_message_goes_to_one_member(clients: Clients, name: str, qos: int) -> None:
    """All members take part; another group and a plain subscription get their own copies."""
    members = [clients(5) for _ in range(3)]
    other, plain, publisher = clients(5), clients(5), clients(5)
    for member in members:
        member.subscribe(f"$share/g/{name}/+", qos)
    other.subscribe(f"$share/h/{name}/+", qos)
    plain.subscribe(f"{name}/+", qos)
    for i in range(60):
        publisher.publish(f"{name}/{i % 5}", b"%d" % i, qos)
    got = collect(members, 60)
    assert payloads(got) == list(range(60))
    assert all(got), "a member was left out"
    assert payloads([other.messages(60)]) == payloads([plain.messages(60)]) == list(range(60))
    for member in members:  # and nothing more
        assert clients.drain(member, publisher) == []


@GRANT
def test_share_names_and_filters(clients: Clients, name: str) -> None:
    """Any characters but / + #; an empty first level of the filter is one."""
    peer = clients(5)
    for i, share in enumerate(("g", "g g", "\u00e9", "$share", "a.b-c_d")):
        assert peer.subscribe_many([(f"$share/{share}//{name}/{i}", 1)]) == [1]
        peer.publish(f"/{name}/{i}", b"x", 1)
        assert peer.message(f"/{name}/{i}").payload == b"x"
        assert peer.unsubscribe(f"$share/{share}//{name}/{i}").reasons == [0]
        peer.publish(f"/{name}/{i}", b"x", 1)
    assert clients.drain(peer, peer) == []


@spec("5", "MQTT-4.8.2-3")
def test_qos_of_the_member(clients: Clients, name: str) -> None:
    low, high, publisher = clients(5), clients(5), clients(5)
    low.subscribe(f"$share/g/{name}", 0)
    high.subscribe(f"$share/g/{name}", 2)
    for i in range(20):
        publisher.publish(name, b"%d" % i, 2)
    got = collect([low, high], 20)
    assert payloads(got) == list(range(20))
    assert {p.qos for p in got[0]} <= {0}
    assert {p.qos for p in got[1]} <= {2}
    assert all(got)


@GRANT
def test_retained_messages_are_not_sent(clients: Clients, name: str) -> None:
    """A shared subscription gets none when it is made; a retained publication arrives as any other."""
    peer = clients(5)
    peer.publish(name, b"1", 1, retain=True)
    peer.subscribe(f"$share/g/{name}", 1, 77)
    peer.publish(name, b"2", 1, retain=True)
    got = peer.message()
    assert (got.payload, got.retain, got.all_props(SUBSCRIPTION_ID)) == (b"2", False, [77])


@GRANT
@spec("5", "MQTT-4.1.0-1")
def test_offline_member_strands_nothing(clients: Clients, name: str) -> None:
    """With one member away all messages go to the one that is there."""
    away, here, publisher = clients.session(5, name), clients(5), clients(5)
    for member in (away, here):
        member.subscribe(f"$share/g/{name}/t", 1)
    away.disconnect()
    for i in range(30):
        publisher.publish(f"{name}/t", b"%d" % i, 1)
    assert payloads([here.messages(30)]) == list(range(30))
    away = clients.session(5, name, present=True)
    for i in range(30, 60):
        publisher.publish(f"{name}/t", b"%d" % i, 1)
    got = collect([away, here], 30)
    assert payloads(got) == list(range(30, 60))


@GRANT
def test_all_members_away(clients: Clients, name: str) -> None:
    """Messages wait for the first one to come back."""
    members = [clients.session(5, f"{name}-{i}") for i in range(2)]
    for member in members:
        member.subscribe(f"$share/g/{name}/t", 1)
        member.disconnect()
    publisher = clients(5)
    for i in range(20):
        publisher.publish(f"{name}/t", b"%d" % i, 1)
    back = clients.session(5, f"{name}-1", present=True)
    assert payloads([back.messages(20)]) == list(range(20))


@GRANT
@pytest.mark.parametrize("ends", [False, True])
def test_unacknowledged_qos_1_goes_to_another(clients: Clients, name: str, ends: bool) -> None:
    """Sent to a member whose connection broke before PUBACK: another one gets it, whether or not the session goes on."""
    publisher = clients(5)
    first = clients(5, name) if ends else clients.session(5, name)
    first.subscribe(f"$share/g/{name}/t", 1)
    for i in range(10):
        publisher.publish(f"{name}/t", b"%d" % i, 1)
    held = first.messages(10, answer=False)
    for p in held[:4]:
        first.answer(p)
    first.ping()
    second = clients(5)
    second.subscribe(f"$share/g/{name}/t", 1)
    first.drop()
    assert payloads([second.messages(6)]) == [4, 5, 6, 7, 8, 9]
    if not ends:
        first = clients.session(5, name, present=True)
        assert clients.drain(first, publisher) == []
    assert clients.drain(second, publisher) == []


@GRANT
def test_what_was_not_sent_goes_to_another(clients: Clients, name: str) -> None:
    """A member with a full window holds up nothing but what it was sent."""
    publisher, slow = clients(5), clients.session(5, name, props=((RECEIVE_MAXIMUM, 2),))
    slow.subscribe(f"$share/g/{name}/t", 1)
    for i in range(20):
        publisher.publish(f"{name}/t", b"%d" % i, 1)
    assert payloads([slow.messages(2, answer=False)]) == [0, 1]
    second = clients(5)
    second.subscribe(f"$share/g/{name}/t", 1)
    assert payloads([second.messages(18)]) == list(range(2, 20))
    slow.drop()
    assert payloads([second.messages(2)]) == [0, 1]


@GRANT
def test_leaving_member_strands_nothing(clients: Clients, name: str) -> None:
    """What an unsubscribed member was not sent goes to another; what it was sent is completed with it."""
    publisher, leaving = clients(5), clients(5, props=((RECEIVE_MAXIMUM, 1),))
    leaving.subscribe(f"$share/g/{name}", 1)
    for i in range(5):
        publisher.publish(name, b"%d" % i, 1)
    held = leaving.message(answer=False)
    second = clients(5)
    second.subscribe(f"$share/g/{name}", 1)
    leaving.unsubscribe(f"$share/g/{name}")
    leaving.answer(held)
    assert payloads([second.messages(4)]) == [1, 2, 3, 4]
    publisher.publish(name, b"5", 1)
    assert second.message().payload == b"5"
    assert clients.drain(leaving, publisher) == []


@GRANT
@pytest.mark.parametrize("ends", ["connection", "clean start", "expiry"])
def test_the_session_of_a_member_that_left_ends(clients: Clients, broker: TestBroker, name: str, ends: str) -> None:
    """What it was sent and has not acknowledged goes to another, in its order; of QoS 2 nothing does."""
    leaving = clients(5, f"{name}-1") if ends == "connection" else clients.session(5, f"{name}-1", expiry=1 if ends == "expiry" else 60)
    publisher, second = clients(5), clients(5)
    leaving.subscribe(f"$share/g/{name}", 2)
    for i in range(6):
        publisher.publish(name, b"%d" % i, 2 if i == 4 else 1)
    got = [leaving.message(answer=False) for _ in range(6)]
    leaving.answer(got[1])
    second.subscribe(f"$share/g/{name}", 2)
    leaving.unsubscribe(f"$share/g/{name}")
    leaving.drop()
    if ends == "clean start":
        clients(5, f"{name}-1")
    elif ends == "expiry":
        broker.advance_clock(3)
    again = [second.message() for _ in range(4)]
    assert [(one.payload, one.dup) for one in again] == [(b"0", False), (b"2", False), (b"3", False), (b"5", False)]
    publisher.publish(name, b"6", 2)
    assert second.message().payload == b"6"
    assert clients.drain(second, publisher) == []


@spec("5", "MQTT-4.8.2-4")
@pytest.mark.parametrize("received", [False, True])
def test_qos_2_stays_with_its_member(clients: Clients, name: str, received: bool) -> None:
    """A break before PUBREC or before PUBCOMP: completed with the member that came back, never given to another."""
    publisher, first, second = clients(5), clients.session(5, name), clients(5)
    first.subscribe(f"$share/g/{name}/t", 2)
    publisher.publish(f"{name}/t", b"1", 2)
    got = first.message(answer=False)
    second.subscribe(f"$share/g/{name}/t", 2)
    if received:
        first.send(ack_packet(PUBREC, got.packet_id))
        first.expect(PUBREL, packet_id=got.packet_id)
    first.drop()
    publisher.publish(f"{name}/t", b"2", 2)
    assert second.message().payload == b"2"
    first = clients.session(5, name, present=True)
    if received:
        first.expect(PUBREL, packet_id=got.packet_id)
        first.send(ack_packet(PUBCOMP, got.packet_id))
    else:
        again = first.message()
        assert (again.packet_id, again.payload, again.dup) == (got.packet_id, b"1", True)
    assert clients.drain(first, publisher) == []
    assert clients.drain(second, publisher) == []


@spec("5", "MQTT-4.8.2-5")
def test_qos_2_ends_with_the_session(clients: Clients, broker: TestBroker, name: str) -> None:
    publisher, first, second = clients(5), clients(5, name, expiry=1), clients(5)
    first.subscribe(f"$share/g/{name}/t", 2)
    publisher.publish(f"{name}/t", b"1", 2)
    first.message(answer=False)
    second.subscribe(f"$share/g/{name}/t", 2)
    first.drop()
    broker.advance_clock(3)
    publisher.publish(f"{name}/t", b"2", 2)
    assert second.message().payload == b"2"
    assert not clients(5, name, clean=False).connack.session_present
    assert clients.drain(second, publisher) == []


@spec("5", "MQTT-4.8.2-6")
@pytest.mark.parametrize("qos", [1, 2])
def test_a_refused_message_is_discarded(clients: Clients, name: str, qos: int) -> None:
    publisher, first, second = clients(5), clients.session(5, name), clients(5)
    first.subscribe(f"$share/g/{name}/t", qos)
    publisher.publish(f"{name}/t", b"1", qos)
    got = first.message(answer=False)
    second.subscribe(f"$share/g/{name}/t", qos)
    first.send(ack_packet(PUBACK if qos == 1 else PUBREC, got.packet_id, 0x80))
    first.ping()
    first.drop()
    publisher.publish(f"{name}/t", b"2", qos)
    assert second.message().payload == b"2"
    first = clients.session(5, name, present=True)
    assert clients.drain(first, publisher) == []
    assert clients.drain(second, publisher) == []


@GRANT
def test_no_local_does_not_apply(clients: Clients, name: str) -> None:
    """A member gets what it published itself: No Local cannot be set on a shared subscription."""
    peer = clients(5)
    peer.subscribe(f"$share/g/{name}", 1)
    peer.publish(name, b"x", 1)
    assert peer.message().payload == b"x"


@GRANT
def test_members_come_and_go(clients: Clients, name: str) -> None:
    """A stream of QoS 1 messages through changing members: every one arrives, those acknowledged once only."""
    publisher, steady = clients(5), clients(5)
    steady.subscribe(f"$share/g/{name}/t", 1)
    acknowledged: list[int] = []
    for turn in range(10):
        guest = clients.session(5, f"{name}-{turn % 3}")
        guest.subscribe(f"$share/g/{name}/t", 1)
        for i in range(20):
            publisher.publish(f"{name}/t", b"%d" % (turn * 20 + i), 1)
        guest.ping()
        for got in list(guest.aside)[::2]:
            guest.answer(got)
            acknowledged.append(int(got.payload))
        guest.ping()
        guest.drop()
        while len(acknowledged) < (turn + 1) * 20:
            acknowledged.append(int(steady.message().payload))
    assert sorted(acknowledged) == list(range(200))
