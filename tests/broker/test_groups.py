"""Shared groups: exactly one member gets each message, on any number of workers, whatever becomes of the members."""

from __future__ import annotations

import itertools
import random

import pytest

from ..rawclient import PUBACK, PUBCOMP, PUBREC, PUBREL, RECEIVE_MAXIMUM, SESSION_EXPIRY, Peer, ack_packet
from .conftest import Bench, Make, collect, name

WORKERS = pytest.mark.parametrize("workers", [1, 4])


def numbers(packets: list) -> list[int]:
    return [int(p.payload) for p in packets]


def window(maximum: int) -> tuple[tuple[int, int], ...]:
    return ((RECEIVE_MAXIMUM, maximum),)


def members(bench: Bench, topic: str, count: int, qos: int = 2, maximum: int = 100) -> list[Peer]:
    made = [bench.session(5, f"{topic}-{i}", props=window(maximum)) for i in range(count)]
    for peer in made:
        peer.subscribe(f"$share/g/{topic}", qos)
    return made


@WORKERS
def test_round_robin(make: Make, workers: int) -> None:
    bench = make(workers=workers)
    topic = name()
    peers, publisher = members(bench, topic, 3), bench(5)
    for i in range(30):
        publisher.publish(topic, b"%d" % i, 1)
    got = [numbers(part) for part in collect(peers, 30)]
    assert sorted(map(len, got)) == [10, 10, 10]
    for part in got:
        assert {b - a for a, b in itertools.pairwise(part)} == {3}


def test_least_in_flight(make: Make) -> None:
    """One that does not acknowledge gets no more than the others have open."""
    bench = make(limits={"group_strategy": "least_in_flight"}, workers=1)
    topic = name()
    lazy, busy = members(bench, topic, 2)
    publisher = bench(5)
    for i in range(40):
        publisher.publish(topic, b"%d" % i, 1)
        for _ in range(1):
            publisher.ping()
        busy.ping()
        while busy.aside:
            busy.answer(busy.message(answer=False))
        busy.ping()
    lazy.ping()
    assert len(lazy.aside) <= 2
    bench.until("messages_inflight", len(lazy.aside))


@WORKERS
def test_max_group_backlog(make: Make, workers: int) -> None:
    """When nobody has room messages wait in the group, so many; the oldest give way and are counted."""
    bench = make(limits={"max_group_backlog": 20}, workers=workers)
    topic = name()
    peers, publisher = members(bench, topic, 2, maximum=1), bench(5)
    for i in range(22):
        publisher.publish(topic, b"%d" % i, 1)
        if i >= 16:
            bench.native.advance_clock(1.2)  # a group near its bound brakes too
    bench.until("group_backlog", 20)
    assert bench.stat("dropped_group_full") == 0
    for i in range(22, 25):
        publisher.publish(topic, b"%d" % i, 1)
    bench.until("dropped_group_full", 3)
    assert bench.stat("group_backlog") == 20
    got = collect(peers, 22)
    assert sorted(numbers(got[0] + got[1])) == [0, 1, *range(5, 25)]
    for part in got:
        assert numbers(part) == sorted(numbers(part))
    bench.until("group_backlog", 0)


@WORKERS
def test_backlog_keeps_its_order_for_the_first_who_comes(make: Make, workers: int) -> None:
    bench = make(workers=workers)
    topic = name()
    peers, publisher = members(bench, topic, 2), bench(5)
    for peer in peers:
        peer.disconnect()
    for i in range(50):
        publisher.publish(topic, b"%d" % i, 1 + i % 2)
        publisher.publish(topic, b"0", 0)  # nobody is there for these
    bench.until("group_backlog", 50)
    back = bench.session(5, f"{topic}-0", props=window(7))
    assert numbers(back.messages(50)) == list(range(50))
    assert bench.stat("group_backlog") == 0


@WORKERS
@pytest.mark.parametrize("how", ["reset", "disconnect", "expire", "takeover"])
def test_broken_off_qos1_goes_to_another(make: Make, how: str, workers: int) -> None:
    """What one member did not acknowledge another one gets, in order; nothing is lost."""
    bench = make(workers=workers)
    topic = name()
    lost, other = members(bench, topic, 2, maximum=10)
    publisher = bench(5)
    for i in range(40):
        publisher.publish(topic, b"%d" % i, 1)
    bench.until("group_backlog", 20)
    held = lost.messages(10, answer=False)
    lost.answer(held.pop(0))  # one is done, and one more comes for it
    bench.until("group_backlog", 19)
    first = numbers(lost.messages(1, answer=False) + held)
    acknowledged = {*range(40)} - {*first}
    if how == "reset":
        lost.reset()
    elif how == "disconnect":
        lost.disconnect()
    elif how == "takeover":
        bench(5, f"{topic}-0").ping()
    else:
        lost.disconnect(0, ((SESSION_EXPIRY, 0),))
    got = numbers(other.messages(39))
    assert len(set(got)) == 39
    assert {*first} <= {*got}
    assert len(acknowledged) == 30
    later = [n for n in got if n in first]
    assert later == sorted(first)
    bench.until("group_backlog", 0)


@WORKERS
def test_sent_qos2_stays_with_its_member(make: Make, workers: int) -> None:
    bench = make(workers=workers)
    topic = name()
    one, other = members(bench, topic, 2, maximum=5)
    publisher = bench(5)
    for i in range(10):
        publisher.publish(topic, b"%d" % i, 2)
    mine, theirs = one.messages(5, answer=False), other.messages(5)
    one.send(ack_packet(PUBREC, mine[0].packet_id))
    one.expect(PUBREL, packet_id=mine[0].packet_id)
    one.drop()
    for i in range(10, 20):
        publisher.publish(topic, b"%d" % i, 2)
    theirs += other.messages(10)
    one = bench.session(5, f"{topic}-0", props=window(5))
    one.expect(PUBREL, packet_id=mine[0].packet_id)
    again = one.messages(4, answer=False)
    assert [(p.packet_id, p.payload, p.dup) for p in again] == [(p.packet_id, p.payload, True) for p in mine[1:]]
    one.send(ack_packet(PUBCOMP, mine[0].packet_id))
    for p in again:
        one.answer(p)
    assert sorted(numbers(mine + theirs)) == list(range(20))
    publisher.publish(topic, b"20", 2)
    publisher.publish(topic, b"21", 2)
    assert sorted(numbers([p for part in collect([one, other], 2) for p in part])) == [20, 21]


@WORKERS
@pytest.mark.parametrize("refusal", [0x80, 0x97])
def test_refused_by_a_member_is_done(make: Make, refusal: int, workers: int) -> None:
    """A negative PUBACK or PUBREC discards the message: nobody else gets it, and the member goes on."""
    bench = make(workers=workers)
    topic = name()
    one, other = members(bench, topic, 2, maximum=1)
    publisher = bench(5)
    seen = []
    for i in range(20):
        publisher.publish(topic, b"%d" % i, 1 + i % 2)
    while len(seen) < 20:
        for packets, peer in zip(collect([one, other], 1, answer=False), (one, other), strict=True):
            for p in packets:
                seen.append(int(p.payload))
                peer.answer(p, refusal)
    assert sorted(seen) == list(range(20))
    bench.until("rejected_by_client", 20)
    bench.until("messages_inflight", 0)
    assert bench.stat("group_backlog") == 0


@WORKERS
def test_unsubscribing_member(make: Make, workers: int) -> None:
    """What was sent to it is completed there; what was not goes to the others; the last one's leaving ends the group."""
    bench = make(workers=workers)
    topic = name()
    one, other = members(bench, topic, 2, maximum=3)
    publisher = bench(5)
    for i in range(20):
        publisher.publish(topic, b"%d" % i, 1)
    bench.until("group_backlog", 14)
    held = one.messages(3, answer=False)
    assert one.unsubscribe(f"$share/g/{topic}").reasons == [0]
    got = other.messages(17)
    for p in held:
        one.answer(p)
    assert sorted(numbers(held + got)) == list(range(20))
    one.ping()
    publisher.publish(topic, b"20", 1)
    assert numbers([other.message(answer=False)]) == [20]
    for i in range(21, 30):
        publisher.publish(topic, b"%d" % i, 1)
    bench.until("group_backlog", 7)
    other.unsubscribe(f"$share/g/{topic}")
    bench.until("dropped_group_end", 7)
    bench.until("group_backlog", 0)
    assert publisher.publish(topic, b"x", 1).reason == 0x10  # type: ignore[union-attr]
    assert bench.stat("subscriptions") == 0


@WORKERS
def test_group_ends_with_its_sessions(make: Make, workers: int) -> None:
    bench = make(workers=workers)
    topic = name()
    for peer in members(bench, topic, 3):
        peer.disconnect()
    publisher = bench(5)
    for i in range(10):
        publisher.publish(topic, b"%d" % i, 1)
    bench.until("group_backlog", 10)
    bench.native.advance_clock(3700)
    bench.until("sessions", 1)
    bench.until("group_backlog", 0)
    assert bench.stat("dropped_group_end") == 10
    bench.until("tree_nodes", bench.stat("tree_nodes"))
    assert publisher.publish(topic, b"x", 1).reason == 0x10  # type: ignore[union-attr]


@WORKERS
@pytest.mark.parametrize("seed", range(3))
def test_churn(make: Make, seed: int, workers: int) -> None:
    """Members come, go, break off and come back while messages flow: each is acknowledged by somebody, at least once."""
    bench = make(limits={"max_inflight": 4}, workers=workers)
    topic, chance = name(), random.Random(seed)
    filter_ = f"$share/g/{topic}"
    steady, publisher = bench(5), bench(5)
    steady.subscribe(filter_, 1)
    done: set[int] = set()
    sent = 0
    peers: dict[str, Peer] = {}

    def read(peer: Peer) -> None:
        peer.ping()
        while peer.aside:
            p = peer.message(answer=False)
            peer.answer(p)
            done.add(int(p.payload))
        peer.ping()

    for _ in range(120):
        what = chance.choice(["publish", "publish", "publish", "join", "leave", "break", "read", "read", "clean"])
        client_id = f"{topic}-{chance.randrange(4)}"
        peer = peers.get(client_id)
        if what == "publish":
            for _ in range(chance.randrange(1, 12)):
                publisher.publish(topic, b"%d" % sent, 1)
                sent += 1
        elif what in ("join", "clean"):
            peers[client_id] = peer = bench(5, client_id, clean=what == "clean", expiry=chance.choice([0, 100]))
            peer.subscribe_many([(filter_, 1)])
        elif peer is None:
            read(steady)
        elif what == "leave":
            peer.send(b"\xe0\0")
            peer.finish()
            del peers[client_id]
        elif what == "break":
            peer.reset()
            del peers[client_id]
        else:
            read(peer)
            if chance.random() < 0.3:
                peer.unsubscribe(filter_)
                read(peer)  # what it was sent before is completed here [MQTT-3.10.4-3]; else it would end with the session
        read(steady)
    for peer in peers.values():
        peer.reset()
    bench.until("connections_open", 2)
    bench.native.advance_clock(200)
    bench.until("sessions", 2)
    while len(done) < sent:
        p = steady.message(answer=False)
        steady.answer(p)
        done.add(int(p.payload))
    assert done == set(range(sent))
    bench.until("group_backlog", 0)
    bench.until("messages_inflight", 0)
    counters = bench.native.stats()
    assert {k: v for k, v in counters.items() if k.startswith("dropped_") and v} == {}


@WORKERS
def test_qos0_in_groups(make: Make, workers: int) -> None:
    """QoS 0 takes credit while it waits to be sent and gives it back: it never runs dry."""
    bench = make(workers=workers)
    topic = name()
    peers, publisher = members(bench, topic, 2, maximum=2), bench(5)
    for i in range(100):
        publisher.publish(topic, b"%d" % i, 0)
    got = collect(peers, 100)
    assert sorted(numbers(got[0] + got[1])) == list(range(100))
    bench.until("group_backlog", 0)


def test_member_of_many_groups(make: Make) -> None:
    """Each group has its own credit, the session's window is one."""
    bench = make(workers=4)
    topic = name()
    peer = bench.session(5, topic, props=window(3))
    for i in range(6):
        peer.subscribe(f"$share/g{i}/{topic}/{i}", 1)
    publisher = bench(5)
    for n in range(10):
        for i in range(6):
            publisher.publish(f"{topic}/{i}", b"%d" % n, 1)
    held = peer.messages(3, answer=False)
    assert bench.stat("messages_inflight") == 3
    for p in held:
        peer.send(ack_packet(PUBACK, p.packet_id))
    got = held + peer.messages(57)
    for i in range(6):
        assert [int(p.payload) for p in got if p.topic.endswith(f"/{i}")] == list(range(10))
    bench.until("messages_inflight", 0)
