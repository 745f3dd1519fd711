"""Take-overs while messages flow, order across workers, and deadlines of sessions: nothing lost at QoS 1, nothing doubled at QoS 2."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable

import pytest

from ..rawclient import (
    CONNACK,
    MESSAGE_EXPIRY,
    PUBLISH,
    PUBREC,
    PUBREL,
    RECEIVE_MAXIMUM,
    SESSION_EXPIRY,
    WILL_DELAY,
    Peer,
    PeerClosed,
    Will,
    ack_packet,
    connect_packet,
    publish_packet,
)
from .conftest import Bench, Make, eventually, name

WORKERS = pytest.mark.parametrize("workers", [1, 4])


def in_threads(*jobs: Callable[[], None]) -> None:
    """Run all at the same time; the first error of any is raised."""
    errors: list[BaseException] = []

    def run(job: Callable[[], None]) -> None:
        try:
            job()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


class Receiver:
    """A client that is taken over again and again, by connections of changing versions; it remembers what it got."""

    def __init__(self, bench: Bench, client_id: str, topic: str, qos: int) -> None:
        self.bench, self.client_id, self.topic, self.qos = bench, client_id, topic, qos
        self.got: list[int] = []
        self.open: dict[int, int] = {}  # QoS 2: packet id -> what it was, until PUBREL
        self.peer = bench.session(5, client_id)
        self.peer.subscribe(topic, qos)

    def take_over(self, version: int) -> None:
        """The old connection's rest is read, as a client does that is slow to notice."""
        old, self.peer = self.peer, self.bench.raw(version)
        connack = self.peer.connect(self.client_id, clean=False, expiry=3600)
        assert connack.reason == 0
        assert version == 3 or connack.session_present
        old.close()

    def read(self) -> bool:
        """One packet; false if none comes at once."""
        try:
            got = self.peer.recv(0.05)
        except AssertionError:
            return False
        if got.type == PUBLISH:
            if got.qos == 2:
                if got.packet_id not in self.open:
                    self.open[got.packet_id] = int(got.payload)
                    self.got.append(int(got.payload))
                else:
                    assert got.dup
                    assert self.open[got.packet_id] == int(got.payload)
                self.peer.send(ack_packet(PUBREC, got.packet_id))
            else:
                self.got.append(int(got.payload))
                self.peer.answer(got)
        elif got.type == PUBREL:
            self.open.pop(got.packet_id, None)
            self.peer.send(ack_packet(7, got.packet_id))
        else:
            assert got.type == 14, got
        return True


@WORKERS
@pytest.mark.parametrize("qos", [1, 2])
def test_storm(make: Make, qos: int, workers: int) -> None:
    """A receiver is taken over in the middle of everything: at QoS 2 each message comes once, at QoS 1 at least once, both in order."""
    bench = make(limits={"max_inflight": 5}, workers=workers)
    topic, total, chance = name(), 300, random.Random(qos + workers)
    receiver, publisher = Receiver(bench, name(), topic, qos), bench(5)

    def publish() -> None:
        for i in range(total):
            publisher.publish(topic, b"%d" % i, qos)

    def receive() -> None:
        quiet = 0
        while len(set(receiver.got)) < total and quiet < 100:
            for _ in range(chance.randrange(1, 12)):
                if not receiver.read():
                    quiet += 1
                    break
            if chance.random() < 0.5 and len(set(receiver.got)) < total:
                receiver.take_over(chance.choice([3, 4, 5]))

    in_threads(publish, receive)
    assert sorted(set(receiver.got)) == list(range(total))
    if qos == 2:
        assert receiver.got == list(range(total))
    else:
        firsts = list(dict.fromkeys(receiver.got))
        assert firsts == list(range(total))
    while receiver.read():
        pass
    bench.until("messages_inflight", 0)
    bench.until("sessions", 2)
    assert bench.stat("takeovers") > 10
    assert {k for k, v in bench.native.stats().items() if k.startswith("dropped_") and v} == set()


@WORKERS
def test_storm_of_publishers(make: Make, workers: int) -> None:
    """A QoS 2 publisher that is taken over repeats what was not acknowledged; the receiver gets each message once."""
    bench = make(workers=workers)
    topic, total, chance = name(), 150, random.Random(workers)
    subscriber = bench(5)
    subscriber.subscribe(topic, 2)
    peer = bench.session(5, "p")
    sent: dict[int, bool] = {}  # packet id -> PUBREC came
    following = 1
    while following <= total or sent:
        while following <= total and len(sent) < 8:
            peer.send(publish_packet(topic, b"%d" % following, peer.version, qos=2, packet_id=following))
            sent[following] = False
            following += 1
        if chance.random() < 0.3:
            peer = bench.session(chance.choice([4, 5]), "p")
            for packet_id, received in sent.items():
                if received:
                    peer.send(ack_packet(PUBREL, packet_id))
                else:
                    peer.send(publish_packet(topic, b"%d" % packet_id, peer.version, qos=2, packet_id=packet_id, dup=True))
        for _ in range(chance.randrange(6)):
            if not sent:
                break
            got = peer.recv()
            if got.type == PUBREC:
                sent[got.packet_id] = True
                peer.send(ack_packet(PUBREL, got.packet_id))
            else:
                assert got.type == 7
                sent.pop(got.packet_id, None)
    assert [int(p.payload) for p in subscriber.messages(total)] == list(range(1, total + 1))
    assert bench.drain(subscriber, peer) == []


def test_many_connections_with_one_client_id(make: Make) -> None:
    """From many threads at once: in the end one has it, the others are told so, and everything is freed."""
    bench = make(workers=4)
    ended: list[int] = []
    barrier = threading.Barrier(8)

    def connect(version: int, clean: bool) -> None:
        barrier.wait()
        for _ in range(12):
            peer = bench.raw(version)
            peer.send(connect_packet("same", version, clean=clean, expiry=100))
            got = peer.recv()
            assert (got.type, got.reason) == (CONNACK, 0)
            ended.append(1)

    in_threads(*[lambda v=v, c=c: connect(v, c) for v in (3, 4, 5, 5) for c in (False, True)])
    assert len(ended) == 96
    bench.until("sessions", 1)
    bench.until("connections_open", 1)
    alive = 0
    for peer in bench.peers:
        try:
            peer.ping()
            alive += 1
        except PeerClosed:
            reasons = [p.reason for p in peer.aside]
            assert reasons == ([0x8E] if peer.version == 5 else [])
    assert alive == 1
    assert bench.stat("takeovers") == 95


@WORKERS
def test_takeover_in_one_turn(make: Make, workers: int) -> None:
    """CONNECTs that lie in the accept queue together."""
    bench = make(workers=workers)
    for clean in (True, False):
        client_id = name()
        peers = [bench.raw(5) for _ in range(20)]
        for peer in peers:
            peer.send(connect_packet(client_id, 5, clean=clean, expiry=10, will=Will(f"w/{client_id}", props=((WILL_DELAY, 5),))))
        for peer in peers:
            assert peer.expect(CONNACK).reason == 0
        eventually(lambda: bench.stat("connections_open") == 1)
        for peer in peers:
            peer.close()
        bench.until("connections_open", 0)
    bench.native.advance_clock(20)
    bench.until("sessions", 0)


# ---------------------------------------------------------------------------------- order


@pytest.mark.parametrize("qos", [0, 1, 2])
def test_order_per_publisher_across_workers(make: Make, qos: int) -> None:
    """Whatever workers they live on, each subscriber sees each publisher's messages in order."""
    bench = make(workers=4)
    topic, count = name(), 150
    subscribers, publishers = bench.spread(6), bench.spread(6)
    for peer in subscribers:
        peer.subscribe(f"{topic}/+", qos)

    def publish(number: int) -> None:
        peer = publishers[number]
        packets = [publish_packet(f"{topic}/{i % 3}", b"%d %d" % (number, i), 5, qos=qos, packet_id=i + 1) for i in range(count)]
        for at in range(0, count, 30):
            peer.send(*packets[at : at + 30])
            if qos:
                for i in range(at, min(at + 30, count)):
                    peer.expect(4 if qos == 1 else 5, packet_id=i + 1)
                    if qos == 2:
                        peer.send(ack_packet(PUBREL, i + 1))
                        peer.await_packet(7, i + 1)

    def receive(peer: Peer) -> None:
        seen: dict[int, list[int]] = {}
        for _ in range(count * len(publishers)):
            while (got := peer.recv()).type != PUBLISH:
                assert got.type == PUBREL
                peer.send(ack_packet(7, got.packet_id))
            number, i = map(int, got.payload.split())
            seen.setdefault(number, []).append(i)
            if got.qos:
                peer.send(ack_packet(4 if got.qos == 1 else 5, got.packet_id))
        assert seen == {n: list(range(count)) for n in range(len(publishers))}

    in_threads(*[lambda n=n: publish(n) for n in range(len(publishers))], *[lambda p=p: receive(p) for p in subscribers])


# ---------------------------------------------------------------------------------- time


@WORKERS
def test_will_delay(make: Make, workers: int) -> None:
    """After the delay or at the session's end, whichever is first; not if the client is back; its expiry counts from publication."""
    bench = make(workers=workers)
    topic, watcher = name(), bench(5)
    watcher.subscribe(f"{topic}/#", 1)

    def broken(client_id: str, delay: int, expiry: int, **props: int) -> None:
        will = Will(f"{topic}/{client_id}", b"gone", 1, props=((WILL_DELAY, delay), (MESSAGE_EXPIRY, 7)))
        bench(5, client_id, expiry=expiry, will=will).reset()

    broken("delay", 10, 100)
    broken("session", 1000, 20)
    broken("at-once", 0, 100)
    broken("back", 10, 100)
    got = watcher.message()
    assert (got.topic, got.prop(MESSAGE_EXPIRY)) == (f"{topic}/at-once", 7)
    bench.until("disconnects_abrupt", 4)
    bench.session(5, "back")
    bench.native.advance_clock(9)
    watcher.ping()
    assert not watcher.aside
    bench.native.advance_clock(2)
    got = watcher.message(f"{topic}/delay")
    assert got.prop(MESSAGE_EXPIRY) in (6, 7)
    bench.native.advance_clock(10)
    watcher.message(f"{topic}/session")
    bench.until("sessions_expired", 1)
    bench.native.advance_clock(100)
    bench.until("sessions", 2)  # the watcher, and the one that is back
    assert bench.stat("wills_published") == 3
    watcher.ping()
    assert not watcher.aside


def test_expiry_counts_from_the_end_of_the_connection(make: Make) -> None:
    bench = make()
    peer = bench(5, "c", expiry=10)
    bench.native.advance_clock(50)
    peer.ping()
    assert bench.stat("sessions") == 1
    peer.disconnect(0, ((SESSION_EXPIRY, 30),))
    bench.native.advance_clock(29)
    assert bench.session(5, "c", expiry=10).connack.session_present  # type: ignore[attr-defined]
    bench.peers[-1].drop()
    bench.native.advance_clock(11)
    bench.until("sessions", 0)
    assert bench.stat("sessions_expired") == 1


def test_messages_expire_in_queues(make: Make) -> None:
    bench = make()
    topic = name()
    peer, publisher = bench.session(5, "c", props=((RECEIVE_MAXIMUM, 1),)), bench(5)
    peer.subscribe(topic, 1)
    publisher.publish(topic, b"held", 1)
    held = peer.message(answer=False)
    for seconds in (5, 50, 6):
        publisher.publish(topic, b"%d" % seconds, 1, props=((MESSAGE_EXPIRY, seconds),))
    bench.until("messages_queued", 3)
    bench.native.advance_clock(10)
    peer.answer(held)
    got = peer.message()
    assert got.payload == b"50"
    assert 39 <= got.prop(MESSAGE_EXPIRY) <= 40
    bench.until("messages_queued", 0)
    assert bench.stat("dropped_expired") == 2
    assert bench.events.wait("messages dropped", client_id="c")["detail"] == "message expired"


def test_thousands_of_sessions_expire(make: Make) -> None:
    bench = make()
    for i in range(0, 1000, 50):
        peers = [bench(5, f"c{n}", expiry=10 + n % 7, will=Will("w", props=((WILL_DELAY, n % 9),))) for n in range(i, i + 50)]
        for peer in peers:
            peer.subscribe(f"t/{peer.client_id}")
            peer.close()
    bench.until("connections_open", 0)
    bench.native.advance_clock(20)
    bench.until("sessions", 0)
    assert bench.stat("sessions_expired") == 1000
    assert bench.stat("wills_published") == 1000
    assert bench.stat("subscriptions") == 0
