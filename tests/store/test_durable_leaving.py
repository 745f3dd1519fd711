"""Members that have left a shared group with messages unacknowledged, and whose sessions end then; with a restart or a crash in between."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ..rawclient import PUBACK, PUBLISH, PUBREC, PUBREL, Packet, Peer, ack_packet
from .durable import Place, complete, eventually, fetch, name

Step = Callable[[Place], None]


def nothing(place: Place) -> None:
    pass


def restart(place: Place) -> None:
    place.restart()


def crash(place: Place) -> None:
    place.settled()
    place.crash()


each_step = pytest.mark.parametrize("step", [nothing, restart, crash])


def away(place: Place, topic: str, qos: int = 1) -> str:
    """A member that is away."""
    member = name()
    peer = place.session(5, member)
    peer.subscribe(f"$share/g/{topic}", qos)
    peer.disconnect()
    return member


def sent(place: Place, peer: Peer, topic: str, *payloads: bytes, qos: int = 1, granted: int = 1) -> list[Packet]:
    """What the group has sent to its only member that is here."""
    peer.subscribe(f"$share/g/{topic}", granted)
    publisher = place(5)
    for payload in payloads:
        publisher.publish(topic, payload, qos)
    return [peer.expect(PUBLISH) for _ in payloads]


@pytest.mark.parametrize("before", [nothing, restart, crash])
@pytest.mark.parametrize("after", [nothing, restart, crash])
def test_another_member_gets_what_was_not_acknowledged(place: Place, before: Step, after: Step) -> None:
    """In its order, once, and as a new message."""
    topic, member = name(), name()
    other = away(place, topic)
    peer = place.session(5, member)
    got = sent(place, peer, topic, b"1", b"2", b"3")
    peer.send(ack_packet(PUBACK, got[1].packet_id))
    peer.unsubscribe(f"$share/g/{topic}")
    before(place)
    place(5, member)  # Clean Start 1: the session ends
    assert place.stat("dropped_session_end") == 0 and place.stat("dropped_group_end") == 0
    place.until(delivery=2, message=2)
    after(place)
    peer = place.session(5, other, present=True)
    again = [peer.expect(PUBLISH) for _ in range(2)]
    assert [(one.payload, one.dup) for one in again] == [(b"1", False), (b"3", False)]
    for one in again:
        complete(peer, one)
    place.nothing_waits()


def test_a_member_that_is_here_gets_it_at_once(place: Place) -> None:
    topic, member = name(), name()
    peer = place.session(5, member)
    sent(place, peer, topic, b"1", b"2")
    other = place.session(5, name())
    other.subscribe(f"$share/g/{topic}", 1)
    peer.unsubscribe(f"$share/g/{topic}")
    place(5, member)
    assert fetch(other, 2) == [b"1", b"2"]
    place.nothing_waits()


@pytest.mark.parametrize("down", [False, True], ids=["runs", "down"])
def test_a_session_that_expires(place: Place, down: bool) -> None:
    """Also while no broker runs."""
    topic = name()
    other = away(place, topic)
    peer = place.session(5, name(), expiry=30)
    sent(place, peer, topic, b"1", b"2")
    peer.unsubscribe(f"$share/g/{topic}")
    peer.reset()
    if down:
        place.stop()
        place.let_pass(100)
        place.start()
        assert place.stat("group_backlog") == 2
    else:
        place.until(delivery=2)
        eventually(lambda: place.stat("connections_open") == 1)  # the publisher's: until then the member does not expire
        place.running.advance_clock(31)
    assert fetch(place.session(5, other, present=True), 2) == [b"1", b"2"]
    place.nothing_waits()


@each_step
def test_until_then_it_is_the_sessions(place: Place, step: Step) -> None:
    """[MQTT-3.10.4-3]: the client comes back in time; and joins again meanwhile, so that its session is in the group twice over."""
    topic, member = name(), name()
    other = away(place, topic)
    peer = place.session(5, member)
    first, second = sent(place, peer, topic, b"1", b"2")
    peer.unsubscribe(f"$share/g/{topic}")
    peer.subscribe(f"$share/g/{topic}", 1)
    step(place)
    peer.close()
    assert place.stat("group_backlog") == 0
    peer = place.session(5, member, present=True)
    again = [peer.expect(PUBLISH), peer.expect(PUBLISH)]
    assert [(one.payload, one.packet_id, one.dup) for one in again] == [(b"1", first.packet_id, True), (b"2", second.packet_id, True)]
    complete(peer, again[1])
    peer.ping()
    place(5, member)
    assert fetch(place.session(5, other, present=True), 1) == [b"1"]
    place.nothing_waits()


@each_step
def test_a_session_that_the_store_does_not_know(place: Place, step: Step) -> None:
    """To the store its messages are the group's until they are acknowledged, whether it has left or not."""
    topic = name()
    other = away(place, topic)
    peer = place(5)
    got = sent(place, peer, topic, b"1", b"2")
    peer.unsubscribe(f"$share/g/{topic}")
    peer.send(ack_packet(PUBACK, got[0].packet_id))
    peer.ping()
    place.until(delivery=1, message=1)
    step(place)
    peer.close()
    assert fetch(place.session(5, other, present=True), 1) == [b"2"]
    place.nothing_waits()


@pytest.mark.parametrize("received", [False, True])
@each_step
def test_qos_2_is_nobody_elses(place: Place, step: Step, received: bool) -> None:
    """[MQTT-4.8.2-5]: once it was sent, before PUBREC and after it."""
    topic, member = name(), name()
    other = away(place, topic, 2)
    peer = place.session(5, member)
    (got,) = sent(place, peer, topic, b"1", qos=2, granted=2)
    if received:
        peer.send(ack_packet(PUBREC, got.packet_id))
        peer.expect(PUBREL)
    peer.unsubscribe(f"$share/g/{topic}")
    step(place)
    place(5, member)
    place.nothing_waits()
    assert place.stat("dropped_session_end") == (not received)
    place(5).publish(topic, b"next", 2)
    peer = place.session(5, other, present=True)
    assert fetch(peer, 1) == [b"next"]
    peer.ping()
    assert not peer.aside


@each_step
def test_qos_2_that_was_sent_at_qos_1(place: Place, step: Step) -> None:
    """The member is granted QoS 1 [MQTT-4.8.2-3], also after a restart; who gets it next is granted more."""
    topic, member = name(), name()
    other = away(place, topic, 2)
    peer = place.session(5, member)
    sent(place, peer, topic, b"1", qos=2, granted=1)
    peer.unsubscribe(f"$share/g/{topic}")
    step(place)
    peer.close()
    peer = place.session(5, member, present=True)
    again = peer.expect(PUBLISH)
    assert (again.qos, again.dup) == (1, True)
    place(5, member)
    peer = place.session(5, other, present=True)
    again = peer.expect(PUBLISH)
    assert (again.qos, again.dup, again.payload) == (2, False, b"1")
    complete(peer, again)
    complete(peer, peer.expect(PUBREL))
    place.nothing_waits()


@pytest.mark.parametrize("away_too", [False, True])
@each_step
def test_the_group_has_ended(place: Place, step: Step, away_too: bool) -> None:
    """What its members leave behind is their sessions' alone, also if the same filter is subscribed to once more."""
    topic, member = name(), name()
    other = away(place, topic) if away_too else None
    peer = place.session(5, member)
    sent(place, peer, topic, b"1")
    peer.unsubscribe(f"$share/g/{topic}")
    if other is not None:
        place(5, other)
    place.until(share_group=0, delivery=1)
    later = place.session(5, name())
    later.subscribe(f"$share/g/{topic}", 1)
    place.until(share_group=1)
    step(place)
    place(5, member)
    place.nothing_waits()
    assert place.stat("dropped_session_end") + place.stat("dropped_group_end") == 1
    assert place.stat("group_backlog") == 0


def test_full_backlog_gives_the_oldest_up(place: Place) -> None:
    """What comes back is the oldest."""
    place.restart(limits={"max_group_backlog": 3})
    topic, member = name(), name()
    other = away(place, topic)
    peer = place.session(5, member)
    sent(place, peer, topic, b"1", b"2")
    peer.unsubscribe(f"$share/g/{topic}")
    publisher = place(5)
    for payload in (b"3", b"4"):
        publisher.publish(topic, payload, 1)
    place(5, member)
    place.until(delivery=3, message=3)
    assert place.stat("dropped_group_full") == 1
    assert fetch(place.session(5, other, present=True), 3) == [b"2", b"3", b"4"]
    place.nothing_waits()
