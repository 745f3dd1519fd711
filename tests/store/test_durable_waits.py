"""What waits for the disk, what does not, and what happens while much waits."""

from __future__ import annotations

import itertools
import threading

import pytest

from ..rawclient import (
    CONNACK,
    MAXIMUM_PACKET_SIZE,
    PUBACK,
    PUBCOMP,
    PUBLISH,
    PUBREC,
    PUBREL,
    SUBACK,
    UNSUBACK,
    WILL_DELAY,
    Packet,
    Peer,
    Will,
    ack_packet,
    connect_packet,
    publish_packet,
    subscribe_packet,
    unsubscribe_packet,
)
from .conftest import MakePlace
from .durable import VERSIONS, Place, complete, eventually, name


def quiet(*peers: Peer) -> None:
    """The broker has dealt with all that these have sent, PINGRESP comes, and nothing else came."""
    for peer in peers:
        peer.ping()
        assert not peer.aside, peer.aside


@pytest.mark.parametrize("version", VERSIONS)
def test_acknowledgements_wait_and_keep_their_order(place: Place, version: int) -> None:
    client_id, topic, receiver = name(), name(), name()
    place.session(version, receiver).subscribe(topic, 2)
    peer = place.session(version, client_id)
    peer.subscribe(topic + "/old", 1)
    peer.send(publish_packet(topic, b"0", version, qos=2, packet_id=50))
    peer.expect(PUBREC)
    with place.blocked():
        peer.send(
            publish_packet(topic, b"1", version, qos=1, packet_id=1),
            publish_packet(topic, b"2", version, qos=2, packet_id=2),
            ack_packet(PUBREL, 50),
            publish_packet(topic, b"3", version, qos=1, packet_id=3),
            subscribe_packet([(topic + "/new", 1)], version, packet_id=4),
            unsubscribe_packet([topic + "/old"], version, packet_id=5),
            publish_packet(topic, b"4", version, qos=2, packet_id=6),
        )
        quiet(peer)
        peer.send(publish_packet(topic, b"5", version, qos=1, packet_id=7))
        quiet(peer)
        assert place.stat("journal_backlog_bytes") > 0
    got = [peer.recv() for _ in range(8)]
    assert [(one.type, one.packet_id) for one in got] == [
        (PUBACK, 1),
        (PUBREC, 2),
        (PUBCOMP, 50),
        (PUBACK, 3),
        (SUBACK, 4),
        (UNSUBACK, 5),
        (PUBREC, 6),
        (PUBACK, 7),
    ]
    place.settled()
    for packet_id in (2, 6):
        peer.send(ack_packet(PUBREL, packet_id))
        peer.expect(PUBCOMP, packet_id=packet_id)


def test_outbound_qos_2_waits_twice(place: Place) -> None:
    """PUBLISH for the commit of its packet id, PUBREL for that of the PUBREC; QoS 1 does not wait."""
    client_id, topic, sender = name(), name(), name()
    peer = place.session(5, client_id)
    peer.subscribe(topic, 2)
    publisher = place(5, sender)
    with place.blocked():
        publisher.send(publish_packet(topic, b"1", 5, qos=1, packet_id=1))
        first = peer.expect(PUBLISH, payload=b"1")
        publisher.send(publish_packet(topic, b"2", 5, qos=2, packet_id=2), publish_packet(topic, b"3", 5, qos=1, packet_id=3))
        quiet(publisher, peer)
    second, third = peer.expect(PUBLISH), peer.expect(PUBLISH)
    assert (second.payload, second.dup, third.payload, third.dup) == (b"2", False, b"3", False), "in their order, and for the first time"
    for packet_id, answer in ((1, PUBACK), (2, PUBREC), (3, PUBACK)):
        publisher.expect(answer, packet_id=packet_id)
    with place.blocked():
        peer.send(ack_packet(PUBREC, second.packet_id), ack_packet(PUBACK, first.packet_id))
        quiet(peer)
    peer.expect(PUBREL, packet_id=second.packet_id)
    peer.send(ack_packet(PUBCOMP, second.packet_id), ack_packet(PUBACK, third.packet_id))
    place.nothing_waits()


@pytest.mark.parametrize("version", VERSIONS)
def test_connack_waits_where_a_session_is_made_or_discarded(place: Place, version: int) -> None:
    old, taken, fresh = name(), name(), name()
    place.session(version, old).disconnect()
    place.session(version, taken)
    place.until(session=2)
    with place.blocked():
        waiting: list[Peer] = []
        for client_id, clean in ((fresh, False), (old, True), (taken, True)):
            peer = place.raw(version)
            place.sessions.add(client_id)
            peer.send(connect_packet(client_id, version, clean=clean, expiry=None if clean else 100), b"\xc0\x00")
            waiting.append(peer)
        eventually(lambda: place.stat("connects_accepted") == 5)
        place(version, name())  # of a connection alone
        for peer in waiting:
            with pytest.raises(AssertionError, match="nothing arrived"):
                peer.recv(0.02)
    for peer in waiting:
        peer.expect(CONNACK, reason=0, session_present=False)
        peer.recv()  # its PINGRESP: what came behind CONNECT was kept


def test_connack_of_a_session_that_is_there_does_not_wait(place: Place) -> None:
    client_id, topic = name(), name()
    peer = place.session(5, client_id)
    peer.subscribe(topic, 1)
    peer.disconnect()
    place(5).publish(topic, b"m", 1)
    with place.blocked():
        peer = place.session(5, client_id, present=True)
        assert peer.message(topic).payload == b"m"
    place.nothing_waits()


def test_others_are_served(place: Place) -> None:
    topic = name()
    stuck = place.session(5, name())
    with place.blocked():
        stuck.send(subscribe_packet([(topic, 1)], 5, packet_id=1))
        receiver, publisher = place(5), place(4)
        receiver.subscribe(topic + "/2", 2)
        for qos in (0, 1, 2):
            publisher.publish(topic + "/2", b"m", qos)
            receiver.message(topic + "/2")
        quiet(stuck)
    stuck.expect(SUBACK)


def test_keep_alive_counts_from_connack(place: Place) -> None:
    peer = place.raw(4)
    client_id = name()
    place.sessions.add(client_id)
    with place.blocked():
        peer.send(connect_packet(client_id, 4, clean=False, keep_alive=10))
        eventually(lambda: place.stat("connects_accepted") == 1)
        for _ in range(5):
            place.running.advance_clock(20)
    peer.expect(CONNACK, reason=0)
    place.running.advance_clock(8)
    peer.ping()
    place.running.advance_clock(16)
    peer.expect_close()
    assert place.stat("keep_alive_timeouts") == 1


def test_client_that_does_not_wait_for_connack_leaves_no_will(place: Place) -> None:
    topic, client_id = name(), name()
    receiver = place(5)
    receiver.subscribe(topic)
    with place.blocked():
        peer = place.raw(5)
        place.sessions.add(client_id)
        peer.send(connect_packet(client_id, 5, clean=False, expiry=100, will=Will(topic, b"gone")))
        eventually(lambda: place.stat("connects_accepted") == 2)
        peer.reset()
        eventually(lambda: place.stat("disconnects_abrupt") == 1)
        quiet(receiver)
    place.until(will=0, session=1)
    assert place.stat("wills_published") == 0


@pytest.mark.parametrize("change", ["new", "another", "none"])
def test_connack_of_a_session_that_comes_back_waits_for_its_will(place: Place, change: str) -> None:
    """A will that a client has left behind, or brings, is out of the store, or in it, before the client is told that it is connected."""
    topic, client_id = name(), name()
    will = Will(topic, b"1", 1, props=((WILL_DELAY, 1000),))
    place.session(5, client_id, will=None if change == "new" else will).reset()
    eventually(lambda: place.stat("disconnects_abrupt") == 1)
    with place.blocked():
        peer = place.raw(5)
        now = None if change == "none" else Will(topic, b"2", 1, props=((WILL_DELAY, 1000),))
        peer.send(connect_packet(client_id, 5, clean=False, expiry=3600, will=now))
        eventually(lambda: place.stat("sessions_resumed") == 1)
        with pytest.raises(AssertionError, match="nothing arrived"):
            peer.recv(0.02)
    peer.expect(CONNACK, reason=0)
    assert place.query("SELECT payload FROM will") == ([] if change == "none" else [(b"2",)])
    peer.disconnect()
    place.until(will=0)


@pytest.mark.parametrize(("version", "reason"), [(3, 3), (4, 3), (5, 0x88)])
def test_take_over_of_a_connection_that_waits(place: Place, version: int, reason: int) -> None:
    client_id = name()
    place.sessions.add(client_id)
    with place.blocked():
        first, second = place.raw(version), place.raw(version)
        first.send(connect_packet(client_id, version, clean=False, expiry=100))
        eventually(lambda: place.stat("connects_accepted") == 1)
        second.send(connect_packet(client_id, version, clean=False, expiry=100))
        first.expect(CONNACK, reason=reason)
        first.expect_close()
        with pytest.raises(AssertionError, match="nothing arrived"):
            second.recv(0.02)
    second.expect(CONNACK, reason=0)
    second.ping()


def test_connack_that_the_client_does_not_take(place: Place) -> None:
    peer = place.raw(5)
    client_id = name()
    peer.send(connect_packet(client_id, 5, clean=False, expiry=100, props=((MAXIMUM_PACKET_SIZE, 3),)))
    peer.expect_close()
    place.sessions.add(client_id)


def test_session_that_ends_while_its_replies_wait(place: Place) -> None:
    client_id, topic = name(), name()
    peer = place.session(5, client_id)
    with place.blocked():
        for packet_id in range(1, 20):
            peer.send(publish_packet(topic, b"m", 5, qos=1 + packet_id % 2, packet_id=packet_id))
        peer.send(subscribe_packet([(topic, 1)], 5, packet_id=30))
        quiet(peer)
        fresh = place.raw(5)
        fresh.send(connect_packet(client_id, 5))
        peer.expect_close()
    fresh.expect(CONNACK, reason=0, session_present=False)
    fresh.ping()
    place.until(session=0, subscription=0, inbound=0)


def test_backlog_rises_and_falls(place: Place) -> None:
    topic, client_id = name(), name()
    place.session(5, client_id).subscribe(topic, 1)
    place.peers[-1].disconnect()
    publisher = place(5)
    with place.blocked():
        seen = [place.stat("journal_backlog_bytes")]
        for number in range(1, 6):
            publisher.send(publish_packet(topic, b"m" * 10_000, 5, qos=1, packet_id=number))
            quiet(publisher)
            seen.append(place.stat("journal_backlog_bytes"))
    assert seen[0] == 0 and all(later >= earlier + 10_000 for earlier, later in itertools.pairwise(seen))
    for number in range(1, 6):
        publisher.expect(PUBACK, packet_id=number)
    place.settled()


@pytest.mark.parametrize("version", [4, 5])
def test_publishers_are_slowed_and_nothing_is_lost(make_place: MakePlace, version: int) -> None:
    """At max_backlog reading stays paused until the disk has caught up, however often the brake's time is over."""
    limit, body = 2**20, 65_000
    place = make_place(durability={"mode": "written", "max_backlog": limit}, workers=1)
    topic, client_id = name(), name()
    peer = place.session(5, client_id)
    peer.subscribe(topic, 1)
    peer.disconnect()
    publisher, other = place(version), place(5)
    packets = [publish_packet(topic, b"%06d" % number * (body // 6), version, qos=1, packet_id=number) for number in range(1, 101)]
    writer = threading.Thread(target=lambda: publisher.send(*packets))
    with place.blocked():
        writer.start()
        eventually(lambda: place.stat("journal_backlog_bytes") > limit)
        eventually(lambda: place.stat("publishers_braked") == 1)
        place.running.advance_clock(0.2)
        before = place.stat("journal_backlog_bytes")
        for _ in range(20):
            place.running.advance_clock(0.2)
        assert place.stat("journal_backlog_bytes") == before <= limit + 2**20, "what one turn may read comes on top"
        other.subscribe(topic + "/other", 1)
        other.publish(topic + "/other", b"m", 1)
        other.message()
    got: list[Packet] = []
    while len(got) < 100:
        place.running.advance_clock(0.2)
        while publisher.buffer or publisher.aside or len(got) < 100:
            try:
                got.append(publisher.recv(0.05))
            except AssertionError:
                break
    writer.join()
    assert [(one.type, one.packet_id) for one in got] == [(PUBACK, number) for number in range(1, 101)]
    peer = place.session(5, client_id)
    for number in range(1, 101):
        assert peer.message().payload == b"%06d" % number * (body // 6)
    place.nothing_waits()


def test_stop_commits_what_waits(place: Place) -> None:
    """Whatever was noted is written before the end, also where no reply could leave any more."""
    topic, client_id = name(), name()
    peer = place.session(5, client_id)
    peer.subscribe(topic, 1)
    peer.disconnect()
    publisher = place(5)
    done = threading.Event()

    def stop() -> None:
        place.running.stop()
        done.set()

    with place.blocked():
        publisher.send(publish_packet(topic, b"m", 5, qos=1, packet_id=1))
        quiet(publisher)
        stopper = threading.Thread(target=stop)
        stopper.start()
        publisher.expect_close()
        assert not done.is_set()
    stopper.join()
    place.broker = None
    assert place.query("SELECT value FROM meta WHERE key = 'clean'") == [(1,)]
    place.start()
    peer = place.session(5, client_id, present=True)
    assert complete(peer, peer.recv()) == [b"m"]
