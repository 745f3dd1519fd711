"""Shared groups over a restart: what waits for members, what one of them has, and a group's end."""

from __future__ import annotations

import pytest

from ..rawclient import MESSAGE_EXPIRY, PUBLISH, PUBREC, PUBREL, RECEIVE_MAXIMUM, SUBSCRIPTION_ID, ack_packet, publish_packet
from .durable import Place, complete, eventually, fetch, name


def group(place: Place, topic: str, *members: str, version: int = 5, qos: int = 2) -> None:
    """Sessions that are members and away."""
    for member in members:
        peer = place.session(version, member)
        peer.subscribe(f"$share/g/{topic}", qos)
        peer.disconnect()


@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize("qos", [1, 2])
def test_backlog_with_all_members_away(place: Place, version: int, qos: int) -> None:
    topic, one, two = name(), name(), name()
    group(place, topic, one, two, version=version)
    publisher = place(version)
    wanted = [b"%d" % number for number in range(20)]
    for payload in wanted:
        publisher.publish(topic, payload, qos)
    assert place.counts() == {"session": 2, "subscription": 2, "share_group": 1, "message": 20, "delivery": 20}
    for _ in range(2):
        place.restart()
        assert place.stat("group_backlog") == 20
    assert fetch(place.session(version, one, present=True), 20) == wanted
    place.nothing_waits()
    publisher = place(version)
    publisher.publish(topic, b"new", qos)
    assert fetch(place.peers[-2], 1) == [b"new"]
    place.nothing_waits()


def test_backlog_and_identifiers_and_expiry(place: Place) -> None:
    topic, member = name(), name()
    peer = place.session(5, member)
    peer.subscribe(f"$share/g/{topic}", 1 | 8, 11)
    peer.disconnect()
    publisher = place(5)
    publisher.publish(topic, b"short", 1, props=((MESSAGE_EXPIRY, 50),))
    publisher.publish(topic, b"long", 1, retain=True, props=((MESSAGE_EXPIRY, 500),))
    place.stop()
    place.let_pass(100)
    place.start()
    got = place.session(5, member).message(topic)
    assert (got.payload, got.retain, got.prop(SUBSCRIPTION_ID)) == (b"long", True, 11)
    assert 390 <= got.prop(MESSAGE_EXPIRY) <= 400
    place.nothing_waits()
    place(5).publish(topic, b"", 0, retain=True)


def test_qos_1_sent_to_a_member_goes_to_another_after_a_crash(place: Place) -> None:
    topic, one, two = name(), name(), name()
    group(place, topic, one, two, qos=1)
    peer = place.session(5, one)
    place(5).publish(topic, b"m", 1)
    peer.expect(PUBLISH)
    place.settled()
    place.crash()
    assert fetch(place.session(5, two), 1) == [b"m"]
    place.nothing_waits()


@pytest.mark.parametrize("crash", [False, True], ids=["end", "crash"])
def test_qos_2_sent_to_a_member_stays_with_it(place: Place, crash: bool) -> None:
    topic, one, two = name(), name(), name()
    group(place, topic, one, two)
    peer = place.session(5, one)
    publisher = place(5)
    publisher.publish(topic, b"1", 2)
    publisher.publish(topic, b"2", 2)
    first, second = peer.expect(PUBLISH), peer.expect(PUBLISH)
    peer.send(ack_packet(PUBREC, first.packet_id))
    peer.expect(PUBREL)
    (place.crash if crash else place.restart)()
    other = place.session(5, two, present=True)
    publisher = place(5)
    publisher.publish(topic, b"3", 2)
    assert fetch(other, 1) == [b"3"]
    other.ping()
    assert not other.aside
    peer = place.session(5, one, present=True)
    got = [peer.recv(), peer.recv()]
    assert {(one.type, one.packet_id) for one in got} == {(PUBREL, first.packet_id), (PUBLISH, second.packet_id)}
    for each in got:
        complete(peer, each)
    complete(peer, peer.expect(PUBREL, packet_id=second.packet_id))
    place.nothing_waits()


def test_qos_2_of_a_member_ends_with_its_session(place: Place) -> None:
    """[MQTT-4.8.2-5]: also where the session is none of the store's."""
    topic, member = name(), name()
    group(place, topic, member)
    place(5, member)  # the group has no members now
    place.until(share_group=0)
    group(place, topic, member)
    peer = place(5)
    peer.subscribe(f"$share/g/{topic}", 2)
    publisher = place(5)
    publisher.publish(topic, b"m", 2)
    peer.expect(PUBLISH)
    place.until(message=0, delivery=0)
    peer.reset()
    durable = place.session(5, member)
    publisher.publish(topic, b"next", 2)
    assert fetch(durable, 1) == [b"next"]
    place.nothing_waits()


@pytest.mark.parametrize("qos", [1, 2])
def test_member_that_leaves_completes_what_was_sent(place: Place, qos: int) -> None:
    """[MQTT-3.10.4-3]: over its connection's end and a restart too."""
    topic, member = name(), name()
    group(place, topic, member)
    peer = place.session(5, member)
    place(5).publish(topic, b"m", qos)
    sent = peer.expect(PUBLISH)
    peer.unsubscribe(f"$share/g/{topic}")
    place.until(share_group=0, delivery=1)
    for turn in range(2):
        if turn:
            place.restart()
        else:
            peer.reset()
        peer = place.session(5, member, present=True)
        again = peer.expect(PUBLISH, packet_id=sent.packet_id)
        assert again.dup and again.payload == b"m"
    complete(peer, again)
    if qos == 2:
        complete(peer, peer.expect(PUBREL))
    place.nothing_waits()


def test_what_was_not_sent_goes_back(place: Place) -> None:
    """A member with a small window leaves: the others get the rest, and the file says so."""
    topic, one, two = name(), name(), name()
    group(place, topic, one, two, qos=1)
    peer = place.session(5, one, props=((RECEIVE_MAXIMUM, 2),))
    publisher = place(5)
    for number in range(10):
        publisher.publish(topic, b"%d" % number, 1)
    peer.expect(PUBLISH)
    peer.unsubscribe(f"$share/g/{topic}")
    place.restart()
    rest = fetch(place.session(5, two), 8)
    assert rest == [b"%d" % number for number in range(2, 10)]
    peer = place.session(5, one)
    assert fetch(peer, 2) == [b"0", b"1"]
    place.nothing_waits()


def test_group_that_ends_gives_its_messages_up(place: Place) -> None:
    topic, member = name(), name()
    group(place, topic, member)
    publisher = place(5)
    for _ in range(5):
        publisher.publish(topic, b"m", 1)
    assert place.count("delivery") == 5
    place(5, member)
    place.until(message=0, delivery=0, share_group=0)
    assert place.stat("dropped_group_end") == 5
    publisher.publish(topic, b"nobody", 1)
    place.nothing_waits()


def test_joining_and_leaving_by_turns(place: Place) -> None:
    """Members on all workers join and leave one group, which ends and begins anew: what is published to the last one is kept."""
    topic, ids = name(), [name() for _ in range(4)]
    peers = [place.session(5, member) for member in ids]
    shared = f"$share/g/{topic}"
    for turn in range(60):
        peer, leaver = peers[turn % 4], peers[(turn + 1) % 4]
        peer.subscribe(shared, 1)
        leaver.unsubscribe(shared)
    peers[3].subscribe(shared, 1)
    for peer in peers[:3]:
        peer.unsubscribe(shared)
    peers[3].disconnect()
    place(5).publish(topic, b"kept", 1)
    place.until(share_group=1, delivery=1, message=1)
    place.settled()
    place.crash()
    assert fetch(place.session(5, ids[3]), 1) == [b"kept"]
    place.nothing_waits()


def test_backlog_limit_counts_stored_ones(place: Place) -> None:
    place.restart(limits={"max_group_backlog": 10})
    topic, member = name(), name()
    group(place, topic, member)
    publisher = place(5)
    for number in range(15):
        publisher.publish(topic, b"%d" % number, 1)
    place.until(delivery=10, message=10)
    place.restart(limits={"max_group_backlog": 4})
    place.until(delivery=4, message=4)
    assert place.stat("dropped_group_full") == 6
    assert fetch(place.session(5, member), 4) == [b"%d" % number for number in range(11, 15)]
    place.nothing_waits()


def test_publishers_on_all_workers_while_members_come_and_go(place: Place) -> None:
    topic, ids = name(), [name() for _ in range(3)]
    group(place, topic, *ids, qos=1)
    publishers = [place(5) for _ in range(4)]
    seen: set[bytes] = set()
    for round_number in range(15):
        peer = place.session(5, ids[round_number % 3])
        for number, publisher in enumerate(publishers):
            for n in range(5):
                packet_id = round_number * 5 + n + 1
                publisher.send(publish_packet(topic, b"%d-%d" % (number, packet_id), 5, qos=1, packet_id=packet_id))
        for _ in range(round_number):
            seen.update(complete(peer, peer.recv()))
        peer.reset()
    for publisher in publishers:
        for _ in range(75):
            publisher.recv()
    place.restart()
    eventually(lambda: place.stat("group_backlog") > 0)
    seen.update(place.drain())
    assert seen == {b"%d-%d" % (number, n) for number in range(4) for n in range(1, 76)}
    place.nothing_waits()
