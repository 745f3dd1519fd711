"""Queues of slow and absent clients: what each policy gives up, and how it is counted and told."""

from __future__ import annotations

from typing import Any

import pytest

from ..rawclient import (
    DISCONNECT,
    PING,
    PINGRESP,
    PUBACK,
    PUBCOMP,
    PUBREL,
    RECEIVE_MAXIMUM,
    SESSION_EXPIRY,
    SUBACK,
    UNSUBACK,
    Peer,
    PeerClosed,
    ack_packet,
    publish_packet,
    subscribe_packet,
    unsubscribe_packet,
)
from .conftest import Bench, Make, name

POLICIES = ("drop_oldest", "drop_newest", "drop_qos0_first", "disconnect")

# Published one after the other to a session whose queue takes four: payload, QoS.
SEQUENCE = [(0, 1), (1, 0), (2, 1), (3, 0), (4, 2), (5, 1), (6, 0)]

# What is left, by policy: the order of publication holds.
LEFT = {
    "drop_oldest": [3, 4, 5, 6],
    "drop_newest": [0, 1, 2, 3],
    "drop_qos0_first": [2, 4, 5, 6],
    "disconnect": [0, 1, 2, 3],
}


def queue_up(bench: Bench, topic: str, client_id: str, *, online: bool) -> tuple[Peer, Peer]:
    """The sequence is published to a session that is away, or whose window is full."""
    publisher = bench(5)
    peer = bench.session(5, client_id, props=((RECEIVE_MAXIMUM, 1),))
    peer.subscribe(topic, 2)
    if online:
        publisher.publish(topic, b"first", 1)
        peer.message(answer=False)
    else:
        peer.disconnect()
    return publisher, peer


@pytest.mark.parametrize("policy", POLICIES)
def test_policies_for_an_absent_client(make: Make, policy: str) -> None:
    bench = make(limits={"max_queued_messages": 4, "queue_policy": policy, "queue_qos0_offline": True})
    topic, client_id = name(), name()
    publisher, _ = queue_up(bench, topic, client_id, online=False)
    for payload, qos in SEQUENCE:
        publisher.publish(topic, b"%d" % payload, qos)
    bench.until("dropped_queue_full", 3)
    assert bench.stat("messages_queued") == 4
    told = bench.events.wait("messages dropped", client_id=client_id)
    assert (told["detail"], told["level"]) == ("queue full", "WARNING")
    back = bench.session(5, client_id)
    assert [int(p.payload) for p in bench.drain(back, publisher)] == LEFT[policy]
    bench.until("messages_queued", 0)
    assert bench.stat("messages_queued_bytes") == 0
    assert bench.stat("dropped_queue_full") == 3


@pytest.mark.parametrize("policy", POLICIES[:3])
def test_policies_for_a_client_with_a_full_window(make: Make, policy: str) -> None:
    """QoS 0 passes a full window, so only the others wait."""
    bench = make(limits={"max_queued_messages": 4, "queue_policy": policy})
    topic, client_id = name(), name()
    publisher, peer = queue_up(bench, topic, client_id, online=True)
    for i in range(7):
        publisher.publish(topic, b"%d" % i, 1 + i % 2)
    bench.until("dropped_queue_full", 3)
    left = [0, 1, 2, 3] if policy == "drop_newest" else [3, 4, 5, 6]
    peer.send(b"\x40\2\0\1")
    got = [peer.message() for _ in range(4)]
    assert [int(p.payload) for p in got] == left
    assert bench.events.wait("messages dropped", client_id=client_id)["detail"] == "queue full"


def test_disconnect_policy(make: Make) -> None:
    """The client that does not keep up is told 0x97 and loses nothing but what found no room; nothing follows its DISCONNECT."""
    bench = make(limits={"max_queued_messages": 4, "queue_policy": "disconnect"}, workers=1)
    topic, client_id = name(), name()
    publisher, peer = queue_up(bench, topic, client_id, online=True)
    together = [publish_packet(topic, b"%d" % i, 5, qos=1, packet_id=i + 1) for i in range(6)]
    publisher.send(*together, publish_packet(topic, b"late", 5), publish_packet(topic, b"late", 5))  # in one turn
    end = peer.expect_close()
    assert [(p.type, p.reason) for p in end] == [(DISCONNECT, 0x97)]
    publisher.ping()
    assert bench.stat("messages_queued") == 4
    assert bench.stat("dropped_queue_full") >= 1
    back = bench.session(5, client_id)
    assert [p.payload for p in bench.drain(back, publisher)] == [b"first", b"0", b"1", b"2", b"3"]


@pytest.mark.parametrize("policy", POLICIES)
def test_max_queued_bytes(make: Make, policy: str) -> None:
    bench = make(limits={"max_queued_bytes": 10_000, "queue_policy": policy})
    topic, client_id = name(), name()
    publisher, _ = queue_up(bench, topic, client_id, online=False)
    for i in range(12):
        publisher.publish(topic, b"%d " % i + bytes(2000), 1)
        assert bench.stat("messages_queued_bytes") <= 10_000
    bench.until("dropped_queue_full", 8)
    assert bench.stat("messages_queued") == 4
    assert 8000 < bench.stat("messages_queued_bytes") <= 10_000
    publisher.publish(topic, bytes(10_000), 1)  # would not fit if it were alone: the others stay
    bench.until("dropped_queue_full", 9)
    assert bench.stat("messages_queued") == 4
    back = bench.session(5, client_id)
    left = [0, 1, 2, 3] if policy in ("drop_newest", "disconnect") else [8, 9, 10, 11]
    assert [int(p.payload.split()[0]) for p in bench.drain(back, publisher)] == left
    assert bench.stat("messages_queued_bytes") == 0


def test_drops_are_told_at_powers_of_two(make: Make) -> None:
    """One line for the first loss of a client, and ever fewer as it goes on; the counter has them all."""
    bench = make(limits={"max_queued_messages": 1})
    topic, client_id = name(), name()
    publisher, _ = queue_up(bench, topic, client_id, online=False)
    for _ in range(101):
        publisher.publish(topic, b"x", 1)
    bench.until("dropped_queue_full", 100)
    bench.native.stop()
    assert len(bench.events.find("messages dropped", client_id=client_id)) == 7


@pytest.mark.parametrize("keep", [False, True])
def test_queue_qos0_offline(make: Make, keep: bool) -> None:
    bench = make(limits={"queue_qos0_offline": keep})
    topic, client_id = name(), name()
    publisher, _ = queue_up(bench, topic, client_id, online=False)
    for i in range(6):
        publisher.publish(topic, b"%d" % i, i % 2)
    bench.until("messages_queued", 6 if keep else 3)
    back = bench.session(5, client_id)
    got = bench.drain(back, publisher)
    assert [(int(p.payload), p.qos) for p in got] == [(i, i % 2) for i in range(6) if keep or i % 2]


def test_a_queue_ends_with_its_session(make: Make) -> None:
    """What waited is counted as lost when the session goes, by expiry, by clean start and by DISCONNECT."""
    bench = make()
    topic = name()
    publisher = bench(5)
    for i in range(3):
        client_id = name()
        _, peer = queue_up(bench, topic, client_id, online=True)
        for _ in range(5):
            publisher.publish(topic, b"x", 1)
        bench.until("messages_queued", 5)
        if i == 0:
            peer.disconnect(0, ((SESSION_EXPIRY, 0),))
        elif i == 1:
            peer.disconnect()
            bench(5, client_id).disconnect()
        else:
            peer.disconnect()
            bench.native.advance_clock(3700)
        bench.until("messages_queued", 0)
        bench.until("messages_inflight", 0)
        assert bench.stat("dropped_session_end") == 6 * (i + 1)
    assert bench.stat("messages_queued_bytes") == 0


# ---------------------------------------------------------------------------------- clients that do not read

LIMIT = 65536


def flood(bench: Bench, publisher: Peer, topic: str, count: int, size: int = 10_000) -> None:
    packet = publish_packet(topic, bytes(size), publisher.version)
    for _ in range(count // 50):
        publisher.send(packet * 50)
        publisher.ping()


@pytest.mark.parametrize("version", [4, 5])
def test_max_output_bytes(make: Make, unix: dict[str, Any], version: int) -> None:
    """QoS 0 beyond what a slow reader may leave unsent is dropped and counted; others get it, and the reader goes on later."""
    bench = make(limits={"max_output_bytes": LIMIT}, listeners=[unix], workers=1)
    topic, publisher = name(), bench(version)
    slow = bench(version)
    slow.subscribe(topic)
    flood(bench, publisher, topic, 200)
    dropped = bench.stat("dropped_output_full")
    assert 100 < dropped < 200
    assert bench.events.wait("messages dropped", client_id=slow.client_id)["detail"] == "output full"
    assert bench.stat("publishers_braked") >= 1
    for _ in range(200 - dropped):
        assert slow.message(topic).payload == bytes(10_000)
    publisher.publish(topic, b"after")
    assert slow.message(topic).payload == b"after"
    assert bench.stat("dropped_output_full") == dropped


@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize("kind", ["ping", "puback", "subscribe", "pubcomp", "unsubscribe"])
def test_a_client_that_asks_and_never_reads_is_let_go(make: Make, unix: dict[str, Any], kind: str, version: int) -> None:
    """Answers are bounded too: past max_output_bytes of them the client is disconnected, and a while before that it is not."""
    bench = make(limits={"max_output_bytes": LIMIT}, listeners=[unix], workers=1)
    peer, probe = bench(version), bench(4)
    request = {
        "ping": PING,
        "puback": publish_packet("t", b"", version, qos=1, packet_id=7),
        "subscribe": subscribe_packet([("t", 0)], version, packet_id=7),
        "pubcomp": ack_packet(PUBREL, 7),
        "unsubscribe": unsubscribe_packet(["t"], version, packet_id=7),
    }[kind]
    answer = {"ping": PINGRESP, "puback": PUBACK, "subscribe": SUBACK, "pubcomp": PUBCOMP, "unsubscribe": UNSUBACK}[kind]
    peer.send(request * 100)
    for _ in range(100):
        assert peer.recv().type == answer
    sent, part = 0, request * (10_000 // len(request))
    with pytest.raises((PeerClosed, TimeoutError)):
        while sent < 40_000_000:
            peer.send(part)
            sent += len(part)
            probe.ping()
    bench.until("connections_open", 1)
    assert sent > LIMIT // 5  # none of the answers is longer than five bytes more than asked
    assert bench.events.wait("protocol error", client_id=peer.client_id)["reason"] == "0x97"
    assert bench.stat("bytes_sent") < 1_000_000
    probe.ping()


def test_a_slow_reader_of_retained_messages(make: Make, unix: dict[str, Any]) -> None:
    """The store's messages are read as the client takes them, not copied into its queue."""
    bench = make(listeners=[unix], workers=1)
    publisher, topic = bench(5), name()
    for i in range(300):
        publisher.publish(f"{topic}/{i}", bytes(10_000), 1, retain=True)
    slow = bench(5)
    sent = bench.stat("retained_handed_out")
    slow.send(b"\x82" + bytes([2 + 1 + 2 + len(topic) + 2 + 1]) + b"\0\1\0" + bytes([0, len(topic) + 2]) + topic.encode() + b"/#\0")
    publisher.ping()
    publisher.ping()
    assert bench.stat("retained_handed_out") - sent < 200
    slow.await_packet(9)
    got = {p.topic for p in slow.messages(300)}
    assert got == {f"{topic}/{i}" for i in range(300)}
