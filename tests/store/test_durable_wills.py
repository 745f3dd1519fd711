"""Wills of sessions that outlive their connection: after an end, after a crash, with delays and expiry."""

from __future__ import annotations

import pytest

from ..rawclient import CONTENT_TYPE, MESSAGE_EXPIRY, WILL_DELAY, Peer, Will
from .durable import Place, name


def watcher(place: Place, topic: str) -> Peer:
    peer = place.session(5, "watcher")
    peer.subscribe(topic, 1)
    return peer


def nothing_comes(place: Place, peer: Peer) -> None:
    """The clock's turn and the peer's ping are over, and no message came."""
    peer.ping()
    assert not peer.aside
    assert place.stat("wills_published") == 0


@pytest.mark.parametrize("version", [3, 4, 5])
def test_after_a_crash_the_will_goes_out(place: Place, version: int) -> None:
    topic = name()
    watcher(place, topic)
    place.session(version, name(), will=Will(topic, b"gone", 1, props=((CONTENT_TYPE, "x"),)))
    place.until(will=1)
    place.settled()
    place.crash()
    got = place.session(5, "watcher", present=True).message(topic)
    assert got.payload == b"gone" and got.prop(CONTENT_TYPE) == ("x" if version == 5 else None)
    place.until(will=0)
    place.nothing_waits()
    place.settled()
    place.crash()
    nothing_comes(place, place.session(5, "watcher"))


def test_delay_counts_from_the_start(place: Place) -> None:
    topic = name()
    watcher(place, topic)
    place.session(5, name(), will=Will(topic, b"gone", 1, props=((WILL_DELAY, 60),)))
    place.until(will=1)
    place.settled()
    place.crash()
    peer = place.session(5, "watcher")
    place.running.advance_clock(50)
    nothing_comes(place, peer)
    place.running.advance_clock(11)
    assert peer.message(topic).payload == b"gone"


def test_client_that_is_back_in_time_cancels_it(place: Place) -> None:
    topic, client_id = name(), name()
    watcher(place, topic)
    place.session(5, client_id, will=Will(topic, b"gone", 1, props=((WILL_DELAY, 60),)))
    place.until(will=1)
    place.settled()
    place.crash()
    peer = place.session(5, "watcher")
    place.running.advance_clock(50)
    place.session(5, client_id, present=True)
    place.until(will=0)
    place.running.advance_clock(100)
    nothing_comes(place, peer)


def test_delay_that_is_over_while_nobody_runs(place: Place) -> None:
    topic, client_id = name(), name()
    watcher(place, topic)
    place.session(5, client_id, will=Will(topic, b"gone", 1, retain=True, props=((WILL_DELAY, 60), (MESSAGE_EXPIRY, 500)))).reset()
    place.until(session=2)
    place.stop()
    assert place.count("will") == 1
    place.let_pass(30)
    place.start()
    nothing_comes(place, place.session(5, "watcher"))
    place.stop()
    place.let_pass(40)
    place.start()
    got = place.session(5, "watcher").message(topic)
    assert got.prop(MESSAGE_EXPIRY) == 500, "it counts from publication"
    place.until(will=0, retained=1)
    place(5).publish(topic, b"", 0, retain=True)


def test_session_that_expired_while_nobody_ran(place: Place) -> None:
    """Its will goes out at its end, whatever the delay. [MQTT-3.1.3-9]"""
    topic, client_id = name(), name()
    watcher(place, topic)
    place.session(5, client_id, expiry=100, will=Will(topic, b"gone", 1, props=((WILL_DELAY, 3000),))).reset()
    place.until(will=1)
    place.stop()
    place.let_pass(200)
    place.start()
    assert place.session(5, "watcher").message(topic).payload == b"gone"
    place.until(will=0, session=1)


def test_the_will_of_a_connection_that_ends_in_order(place: Place) -> None:
    topic, client_id = name(), name()
    watcher(place, topic)
    place.session(5, client_id, will=Will(topic, b"gone", 1)).disconnect()
    place.until(will=0)
    place.settled()
    place.crash()
    nothing_comes(place, place.session(5, "watcher"))


def test_the_next_connection_brings_another_will_or_none(place: Place) -> None:
    topic, client_id, other = name(), name(), name()
    watcher(place, topic)
    for chosen in (client_id, other):
        place.session(5, chosen, will=Will(topic, b"old", 1, props=((WILL_DELAY, 10),)))
    place.session(5, client_id, will=Will(topic, b"new", 2, props=((WILL_DELAY, 10),)))
    place.session(5, other)
    place.until(will=1)
    place.settled()
    place.crash()
    peer = place.session(5, "watcher")
    place.running.advance_clock(11)
    assert peer.message(topic).payload == b"new"
    peer.ping()
    assert not peer.aside


def test_wills_of_others_are_not_kept(place: Place) -> None:
    topic = name()
    watcher(place, topic)
    place(5, name(), will=Will(topic, b"gone", 1))
    place(4, name(), will=Will(topic, b"gone", 1))
    place.settled()
    assert place.count("will") == 0


def test_retained_will(place: Place) -> None:
    topic = name()
    place.session(5, name(), will=Will(topic, b"gone", 0, retain=True))
    place.until(will=1)
    place.settled()
    place.crash()
    place.until(will=0, retained=1)
    place.settled()
    place.crash()
    peer = place(5)
    peer.subscribe(topic)
    assert peer.message(topic).payload == b"gone"
    peer.publish(topic, b"", 0, retain=True)
