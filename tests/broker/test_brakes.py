"""Publishers are slowed before anything is lost, for a bounded time, and nobody waits for ever."""

from __future__ import annotations

from typing import Any

import pytest

from ..rawclient import PUBACK, PUBLISH, PUBREC, RECEIVE_MAXIMUM, Peer, PeerTimeout, ack_packet, publish_packet
from .conftest import Bench, Make, eventually, name

BRAKE_S = 0.15  # more than the broker brakes at a time
PATIENCE_S = 1.1  # more than it brakes in all for a receiver that stands still


def stuck(bench: Bench, topic: str, version: int = 5) -> Peer:
    """A receiver whose window is full and that acknowledges nothing."""
    peer = bench(version, props=((RECEIVE_MAXIMUM, 1),) if version == 5 else ())
    peer.subscribe(topic, 2)
    return peer


def nothing_comes(peer: Peer, timeout: float = 0.02) -> None:
    with pytest.raises(PeerTimeout):
        peer.recv(timeout)


@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize("qos", [1, 2])
def test_acknowledgements_are_withheld(make: Make, version: int, qos: int) -> None:
    """Over 75 % of the queue the publisher's PUBACK or PUBREC waits; it comes when the brake ends, and reading went on meanwhile."""
    bench = make(limits={"max_queued_messages": 8, "max_inflight": 1}, workers=1)
    topic = name()
    stuck(bench, topic, version)
    publisher = bench(version)
    for _ in range(7):  # one in flight, six queued: three quarters
        publisher.publish(topic, b"x", qos)
    assert bench.stat("publishers_braked") == 0
    publisher.send(publish_packet(topic, b"x", version, qos=qos, packet_id=100))
    publisher.ping()  # reading goes on
    nothing_comes(publisher)
    assert bench.stat("publishers_braked") == 1
    publisher.send(publish_packet(topic, b"x", version, qos=qos, packet_id=101))
    publisher.ping()
    bench.native.advance_clock(BRAKE_S)
    kind = PUBACK if qos == 1 else PUBREC
    for packet_id in (100, 101):
        publisher.expect(kind, packet_id=packet_id)
    assert bench.stat("messages_queued") == 8
    assert bench.stat("dropped_queue_full") == 0


def test_brake_across_workers(make: Make) -> None:
    """The receiver's worker tells the publisher's; whichever they are, the brake acts and ends."""
    bench = make(limits={"max_queued_messages": 8}, workers=4)
    for _ in range(6):
        topic = name()
        receiver = stuck(bench, topic)
        publisher = bench(5)
        before = bench.stat("publishers_braked")
        publisher.send(*(publish_packet(topic, b"x", 5, qos=1, packet_id=i) for i in range(1, 8)))
        for i in range(1, 8):
            publisher.expect(PUBACK, packet_id=i)
        publisher.send(publish_packet(topic, b"x", 5, qos=1, packet_id=8))
        eventually(lambda before=before: bench.stat("publishers_braked") == before + 1)
        bench.native.advance_clock(BRAKE_S)
        publisher.expect(PUBACK, packet_id=8)
        receiver.close()


def test_no_brake_for_an_absent_receiver(make: Make) -> None:
    """Nobody waits for a client that is not there: its queue fills and drops."""
    bench = make(limits={"max_queued_messages": 4})
    topic = name()
    peer = bench.session(5, name())
    peer.subscribe(topic, 1)
    peer.disconnect()
    publisher = bench(5)
    for _ in range(20):
        publisher.publish(topic, b"x", 1)
    bench.until("dropped_queue_full", 16)
    assert bench.stat("publishers_braked") == 0


def test_a_receiver_that_stands_still_does_not_brake_for_ever(make: Make) -> None:
    """When its time is up the queue's policy acts, and the publisher goes on at once."""
    bench = make(limits={"max_queued_messages": 4}, workers=1)
    topic = name()
    receiver = stuck(bench, topic)
    other, publisher = bench(5), bench(5)
    other.subscribe(topic, 1)
    publisher.send(*(publish_packet(topic, b"x", 5, qos=1, packet_id=i) for i in range(1, 6)))
    publisher.ping()
    bench.until("publishers_braked", 1)
    bench.native.advance_clock(PATIENCE_S)
    for i in range(1, 6):
        publisher.await_packet(PUBACK, i)
    for _ in range(50):
        publisher.publish(topic, b"y", 1)
    assert bench.stat("publishers_braked") == 1
    assert bench.stat("dropped_queue_full") == 50
    other.messages(55)
    receiver.answer(receiver.message(answer=False))  # it goes on: so does the care for it
    receiver.messages(4)
    for _ in range(5):
        publisher.send(publish_packet(topic, b"z", 5, qos=0))
        receiver.message()
    publisher.ping()


def test_qos0_publisher_is_paused(make: Make, unix: dict[str, Any]) -> None:
    """There is no acknowledgement to withhold, so it is not read for a moment: each pause begins anew with what is read after it."""
    bench = make(limits={"max_output_bytes": 400_000}, listeners=[unix], workers=1)
    topic, slow, publisher = name(), bench(5), bench(5)
    slow.subscribe(topic)
    publisher.send(publish_packet(topic, bytes(20_000), 5) * 40)
    publisher.ping()
    assert bench.stat("publishers_braked") >= 2
    assert bench.stat("packets_received_publish") == 40
    slow.message(topic)


def test_keep_alive_stands_still_while_paused(make: Make, unix: dict[str, Any]) -> None:
    """Even when the clock jumps over pause and keep alive at once."""
    bench = make(limits={"max_output_bytes": 400_000}, listeners=[unix], workers=1)
    topic, slow, publisher = name(), bench(5), bench(5, keep_alive=1)
    slow.subscribe(topic)
    packet = publish_packet(topic, bytes(20_000), 5)
    for _ in range(40):
        publisher.send(packet)
        bench().ping()
        if bench.stat("publishers_braked"):
            break
    assert bench.stat("publishers_braked")
    bench.native.advance_clock(10)
    publisher.ping()
    assert bench.stat("keep_alive_timeouts") == 0
    slow.message(topic)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("qos", [1, 2])
def test_two_clients_that_publish_to_each_other(make: Make, qos: int, workers: int) -> None:
    """With full windows in both directions and queues under the brake, acknowledgements pass, and all arrives."""
    bench = make(limits={"max_queued_messages": 40, "receive_maximum": 8, "max_inflight": 4}, workers=workers)
    a, b = bench(5, "a"), bench(5, "b")
    a.subscribe("to/a", qos)
    b.subscribe("to/b", qos)
    total, window = 60, 8
    state = {peer: {"next": 1, "open": 0, "done": 0, "got": [], "topic": topic} for peer, topic in ((a, "to/b"), (b, "to/a"))}

    def push(peer: Peer) -> None:
        mine = state[peer]
        while mine["next"] <= total and mine["open"] < window:
            peer.send(publish_packet(mine["topic"], b"%d" % mine["next"], 5, qos=qos, packet_id=mine["next"]))
            mine["next"] += 1
            mine["open"] += 1

    for peer in (a, b):
        push(peer)
    while any(mine["done"] < total or len(mine["got"]) < total for mine in state.values()):
        for peer in (a, b):
            mine = state[peer]
            try:
                got = peer.recv(0.01)
            except PeerTimeout:
                bench.native.advance_clock(BRAKE_S)
                continue
            if got.type == PUBLISH:
                mine["got"].append(int(got.payload))
                peer.send(ack_packet(PUBACK if qos == 1 else PUBREC, got.packet_id))
            elif got.type == PUBREC:
                peer.send(ack_packet(6, got.packet_id))
            elif got.type == 6:
                peer.send(ack_packet(7, got.packet_id))
            else:
                assert got.type == (PUBACK if qos == 1 else 7), got
                mine["open"] -= 1
                mine["done"] += 1
                push(peer)
    for mine in state.values():
        assert mine["got"] == list(range(1, total + 1))


def test_a_braked_publisher_may_leave(make: Make) -> None:
    """Whatever way it goes while acknowledgements are held, nothing of it stays; and it may come back."""
    for how in ("disconnect", "reset", "takeover"):
        bench = make(limits={"max_queued_messages": 8}, workers=1)
        topic = name()
        receiver = stuck(bench, topic)
        publisher = bench.session(5, "p")
        publisher.send(*(publish_packet(topic, b"%d" % i, 5, qos=1, packet_id=i) for i in range(1, 9)))
        bench.until("publishers_braked", 1)
        if how == "disconnect":
            publisher.disconnect()
        elif how == "reset":
            publisher.reset()
        publisher = bench.session(5, "p")
        bench.native.advance_clock(BRAKE_S)
        publisher.send(publish_packet(topic, b"9", 5, qos=1, packet_id=9))
        bench.native.advance_clock(PATIENCE_S)
        publisher.await_packet(PUBACK, 9)
        receiver.answer(receiver.message(answer=False))
        assert [p.payload for p in receiver.messages(8)] == [b"%d" % i for i in range(2, 10)]
        bench.close()


@pytest.mark.parametrize("workers", [1, 4])
def test_a_group_that_stands_still_does_not_brake_for_ever(make: Make, workers: int) -> None:
    """Near the bound of its backlog a group slows its publishers, for a while; then the oldest messages give way."""
    bench = make(limits={"max_group_backlog": 8}, workers=workers)
    topic = name()
    member, publisher = bench(5, props=((RECEIVE_MAXIMUM, 1),)), bench(5)
    member.subscribe(f"$share/g/{topic}", 1)
    publisher.send(*(publish_packet(topic, b"%d" % i, 5, qos=1, packet_id=i) for i in range(1, 10)))
    bench.until("publishers_braked", 1)
    bench.until("group_backlog", 8)
    bench.native.advance_clock(PATIENCE_S)
    for i in range(1, 10):
        publisher.await_packet(PUBACK, i)
    for i in range(10, 40):
        publisher.publish(topic, b"%d" % i, 1)
    bench.until("dropped_group_full", 30)
    assert bench.stat("publishers_braked") == 1
    assert [int(p.payload) for p in member.messages(9)] == [1, *range(32, 40)]
