"""Queues of absent sessions: what lies in the store alone, how it comes back, and what gives way when a queue is full."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ..rawclient import CONNACK, MESSAGE_EXPIRY, PUBACK, RECEIVE_MAXIMUM, Peer, ack_packet, connect_packet, publish_packet
from .conftest import MakePlace
from .durable import Place, eventually, fetch, name

CACHE_BYTES = 64 * 2**20
"""SQLite's cache of pages, whatever the number of messages."""


def resident_bytes() -> int:
    """Of this process, whose memory the broker shares."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def away(place: Place, topic: str, client_id: str, version: int = 5) -> None:
    peer = place.session(version, client_id)
    peer.subscribe(topic, 2)
    peer.disconnect()


def flood(publisher: Peer, topic: str, first: int, last: int, body: int, window: int = 500) -> None:
    """Numbered QoS 1 messages, with so many unacknowledged at a time."""
    for start in range(first, last + 1, window):
        numbers = range(start, min(start + window, last + 1))
        ids = [number % 60_000 + 1 for number in numbers]
        publisher.send(
            b"".join(
                publish_packet(topic, b"%08d" % number * (body // 8), publisher.version, qos=1, packet_id=packet_id)
                for number, packet_id in zip(numbers, ids, strict=True)
            )
        )
        for packet_id in ids:
            publisher.expect(PUBACK, packet_id=packet_id)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
@pytest.mark.skipif("MQTTC_SANITIZER" in os.environ, reason="a sanitizer's own memory is not ours")
def test_memory_of_a_long_queue(make_place: MakePlace) -> None:
    """50 000 messages for one who is away cost much less than they are long, and come back whole and in order."""
    count, body = 50_000, 4000
    limits = {"max_queued_messages": 100_000, "max_queued_bytes": 2**30}
    place = make_place(limits=limits, durability={"mode": "written", "max_backlog": 2**23})
    topic, client_id = name(), name()
    away(place, topic, client_id)
    publisher = place(4)
    flood(publisher, topic, 1, 5000, body)
    place.settled()
    before = resident_bytes()
    flood(publisher, topic, 5001, count, body)
    place.settled()
    grown = resident_bytes() - before
    assert place.stat("messages_queued") == count
    assert grown < CACHE_BYTES + count * 200, f"{grown / 2**20:.0f} MiB of {(count - 5000) * body / 2**20:.0f}"
    peer = place.session(4, client_id)
    for number in range(1, count + 1):
        got = peer.recv()
        assert got.payload[:8] == b"%08d" % number and len(got.payload) == body
        peer.send(ack_packet(PUBACK, got.packet_id))
    eventually(lambda: place.stat("messages_inflight") == 0)
    place.nothing_waits()
    assert place.stat("dropped_queue_full") == 0 and place.stat("journal_reads") >= (count - 1000) // 128


@pytest.mark.parametrize("version", [3, 5])
def test_order_over_the_bound_and_a_restart(make_place: MakePlace, version: int) -> None:
    """In memory, in the store, and what comes while it is read back: the order is that of publication."""
    place = make_place(durability={"mode": "written", "spill_after": 16})
    topic, client_id = name(), name()
    away(place, topic, client_id, version)
    publisher = place(version)
    for number in range(60):
        publisher.publish(topic, b"%d" % number, 1 + number % 2)
    peer = place.session(version, client_id, props=((RECEIVE_MAXIMUM, 5),))
    publisher.send(*(publish_packet(topic, b"%d" % number, version, qos=1, packet_id=number) for number in range(60, 80)))
    got = fetch(peer, 30)
    assert got == [b"%d" % number for number in range(len(got))]
    peer.disconnect()
    for number in range(60, 80):
        publisher.expect(PUBACK, packet_id=number)
    for number in range(80, 100):
        publisher.publish(topic, b"%d" % number, 1)
    place.restart()
    assert fetch(place.session(version, client_id), 100 - len(got)) == [b"%d" % number for number in range(len(got), 100)]
    place.nothing_waits()


@pytest.mark.parametrize("policy", ["drop_oldest", "drop_newest", "drop_qos0_first", "disconnect"])
@pytest.mark.parametrize("restart", [False, True])
def test_policies_on_stored_entries(make_place: MakePlace, policy: str, restart: bool) -> None:
    place = make_place(limits={"max_queued_messages": 30, "queue_policy": policy}, durability={"mode": "written", "spill_after": 16})
    topic, client_id = name(), name()
    away(place, topic, client_id)
    publisher = place(5)
    for number in range(30):
        publisher.publish(topic, b"%d" % number, 1 + number % 2)
    if restart:
        place.restart()
        publisher = place(5)
    for number in range(30, 45):
        publisher.publish(topic, b"%d" % number, 1 + number % 2)
    place.until(message=30, delivery=30)
    assert place.stat("dropped_queue_full") == 15
    left = range(15, 45) if policy in ("drop_oldest", "drop_qos0_first") else range(30)
    assert fetch(place.session(5, client_id), 30) == [b"%d" % number for number in left]
    place.nothing_waits()


def test_bytes_of_stored_entries_count(make_place: MakePlace) -> None:
    place = make_place(limits={"max_queued_bytes": 65536}, durability={"mode": "written", "spill_after": 16})
    topic, client_id = name(), name()
    away(place, topic, client_id)
    publisher = place(5)
    for number in range(40):
        publisher.publish(topic, b"%02d" % number * 1000, 1)
    left = place.stat("messages_queued")
    assert 25 < left < 33 and place.stat("messages_queued_bytes") <= 65536
    place.until(delivery=left)
    queued = place.stat("messages_queued_bytes")
    place.restart()
    assert place.stat("messages_queued_bytes") == queued
    assert fetch(place.session(5, client_id), left)[-1] == b"39" * 1000
    assert place.stat("messages_queued_bytes") == 0


def test_dropped_while_it_is_read_back(make_place: MakePlace) -> None:
    """A queue changes while its bodies are on their way: what was dropped stays dropped, the rest is whole."""
    place = make_place(limits={"max_queued_messages": 40, "queue_policy": "drop_oldest"}, durability={"mode": "written", "spill_after": 16})
    topic, client_id = name(), name()
    away(place, topic, client_id)
    publisher = place(5)
    for number in range(40):
        publisher.publish(topic, b"%d" % number, 1)
    place.restart()  # all of them lie in the store alone
    publisher = place(5)
    with place.blocked():
        peer = place.session(5, client_id)
        peer.ping()
        peer.reset()
        eventually(lambda: place.stat("disconnects_abrupt") == 1)
        publisher.send(*(publish_packet(topic, b"%d" % number, 5, qos=1, packet_id=number) for number in range(40, 60)))
        eventually(lambda: place.stat("dropped_queue_full") == 20)
    for number in range(40, 60):
        publisher.expect(PUBACK, packet_id=number)
    assert fetch(place.session(5, client_id), 40) == [b"%d" % number for number in range(20, 60)]
    place.nothing_waits()
    assert place.stat("dropped_no_memory") == 0


def test_session_ends_while_bodies_are_on_their_way(make_place: MakePlace) -> None:
    place = make_place(durability={"mode": "written", "spill_after": 16})
    topic, client_id = name(), name()
    away(place, topic, client_id)
    publisher = place(5)
    for number in range(100):
        publisher.publish(topic, b"%d" % number, 1)
    place.restart()
    with place.blocked():
        peer = place.session(5, client_id)
        peer.ping()
        fresh = place.raw(5)
        fresh.send(connect_packet(client_id, 5))
        peer.expect_close()
    fresh.expect(CONNACK, session_present=False)
    place.until(message=0, delivery=0, session=0)


def test_expiry_of_stored_entries(make_place: MakePlace) -> None:
    place = make_place(durability={"mode": "written", "spill_after": 16})
    topic, client_id = name(), name()
    away(place, topic, client_id)
    publisher = place(5)
    for number in range(40):
        publisher.publish(topic, b"%d" % number, 1, props=((MESSAGE_EXPIRY, 100 if number % 2 else 1000),))
    place.running.advance_clock(200)
    peer = place.session(5, client_id)
    got = [peer.message() for _ in range(20)]
    assert [one.payload for one in got] == [b"%d" % number for number in range(0, 40, 2)]
    assert all(790 <= one.prop(MESSAGE_EXPIRY) <= 800 for one in got)
    place.nothing_waits()
    assert place.stat("dropped_expired") == 20


def test_unsubscribing_keeps_what_is_queued(make_place: MakePlace) -> None:
    place = make_place(durability={"mode": "written", "spill_after": 16})
    topic, client_id = name(), name()
    away(place, topic, client_id)
    publisher = place(5)
    for number in range(30):
        publisher.publish(topic, b"%d" % number, 1)
    peer = place.session(5, client_id, props=((RECEIVE_MAXIMUM, 1),))
    first = peer.recv()
    peer.unsubscribe(topic)
    place.restart()
    peer = place.session(5, client_id)
    assert fetch(peer, 30) == [b"%d" % number for number in range(30)] and first.payload == b"0"
    place.nothing_waits()
    place.until(subscription=0)
