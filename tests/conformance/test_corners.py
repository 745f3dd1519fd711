"""Corners where two rules meet: the end of a connection and messages under way, brakes and receive maximum, UNSUBSCRIBE and hand-outs."""

from __future__ import annotations

import contextlib
import socket
import threading

import pytest

from ..rawclient import (
    ALIAS_MAXIMUM,
    DISCONNECT,
    MAXIMUM_PACKET_SIZE,
    PING,
    PUBREC,
    RECEIVE_MAXIMUM,
    PeerClosed,
    Will,
    connect_packet,
    publish_packet,
)
from .conftest import Clients, MakeBroker
from .statements import spec

pytestmark = pytest.mark.transport


@spec("5", "MQTT-3.14.4-1")
def test_nothing_follows_the_servers_disconnect(clients: Clients, make_broker: MakeBroker) -> None:
    """At shutdown every client's will goes to all the others, who have been told goodbye already."""
    broker = make_broker(limits={"max_inflight": 100})
    peers = [clients(5, f"c{i}", broker=broker, will=Will("wills", b"%d" % i, qos=i % 3)) for i in range(12)]
    for peer in peers:
        peer.subscribe("wills", 2)
    got: list[list[int]] = [[] for _ in peers]

    def read(i: int) -> None:
        got[i] = [p.type for p in peers[i].expect_close()]

    readers = [threading.Thread(target=read, args=(i,)) for i in range(len(peers))]
    for reader in readers:
        reader.start()
    broker.stop()
    for reader in readers:
        reader.join()
    for types in got:
        assert types[-1] == DISCONNECT
        assert types.count(DISCONNECT) == 1


def test_shutdown_says_nothing_before_connect(clients: Clients, make_broker: MakeBroker) -> None:
    broker = make_broker(limits={"max_inflight": 101})
    peer = clients.raw(4, broker)
    clients(5, broker=broker)  # by now the one before it was accepted
    broker.stop()
    assert peer.expect_close() == []


@pytest.mark.not_over("h2", "wss-h2", "quic", reason="a stream that nobody reads has a time limit of its own, see tests/roads")
@pytest.mark.parametrize("version", [4, 5])
def test_a_client_that_asks_and_never_reads(clients: Clients, make_broker: MakeBroker, version: int) -> None:
    """Its answers are not kept without bound: it is let go."""
    broker = make_broker(limits={"max_output_bytes": 4096})
    peer = clients.raw(version, broker)
    peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    peer.send(connect_packet(f"deaf{version}", version))
    with pytest.raises(PeerClosed):
        with contextlib.suppress(TimeoutError):  # the kernel may keep the end of a connection behind what was not read
            for _ in range(4000):
                peer.send(PING * 4096)
        while True:
            peer.recv()
    other = clients(version, broker=broker)
    other.ping()


@spec("5", "MQTT-3.3.4-7")
def test_held_pubrecs_do_not_count_twice(clients: Clients, make_broker: MakeBroker) -> None:
    """A publisher that is braked for a slow receiver may still use the whole receive maximum that it was told."""
    broker = make_broker(limits={"receive_maximum": 10, "max_queued_messages": 4})
    slow = clients(5, broker=broker, props=((RECEIVE_MAXIMUM, 1),))
    slow.subscribe("t", 2)
    publisher = clients(5, broker=broker)
    publisher.send(b"".join(publish_packet("t", b"x", 5, qos=2, packet_id=i) for i in range(1, 11)))
    for i in range(1, 11):
        publisher.expect(PUBREC, packet_id=i)


@spec("5", "MQTT-3.10.4-1")
@spec("3.1.1", "MQTT-3.10.4-2")
@pytest.mark.parametrize("version", [4, 5])
def test_unsubscribe_ends_the_hand_out(clients: Clients, make_broker: MakeBroker, version: int) -> None:
    """Retained messages that were not sent yet stay away after UNSUBSCRIBE; a second SUBSCRIBE starts again."""
    broker = make_broker(limits={"max_inflight": 1})
    publisher, peer = clients(version, broker=broker), clients(version, broker=broker)
    for i in range(5):
        publisher.publish(f"h{version}/{i}", b"%d" % i, 1, retain=True)
    peer.subscribe(f"h{version}/+", 1)
    first = peer.message(answer=False)
    peer.unsubscribe(f"h{version}/+")
    peer.answer(first)
    assert clients.drain(peer, publisher) == []
    peer.subscribe(f"h{version}/+", 1)
    first = peer.message(answer=False)
    peer.subscribe(f"h{version}/+", 1)
    peer.answer(first)
    assert sorted(p.payload for p in peer.messages(5)) == [b"%d" % i for i in range(5)]
    assert clients.drain(peer, publisher) == []


@spec("5", "MQTT-3.3.1-12", "MQTT-3.3.1-13")
@pytest.mark.parametrize("as_published", [False, True])
def test_retain_as_published_of_a_shared_subscription(clients: Clients, name: str, as_published: bool) -> None:
    peer, publisher = clients(5), clients(5)
    peer.subscribe(f"$share/g/{name}", 1 | (8 if as_published else 0))
    publisher.publish(name, b"a", 1, retain=True)
    publisher.publish(name, b"b", 1)
    assert [p.retain for p in peer.messages(2)] == [as_published, False]


@spec("5", "MQTT-4.6.0-5", "MQTT-4.6.0-6")
@pytest.mark.parametrize("alias_maximum", [0, 10])
def test_qos0_stays_behind_what_was_queued_off_line(clients: Clients, make_broker: MakeBroker, alias_maximum: int) -> None:
    broker = make_broker(limits={"queue_qos0_offline": True, "max_inflight": 1})
    client_id = f"q{alias_maximum}"
    peer = clients.session(5, client_id, broker=broker)
    peer.subscribe("a", 1)
    peer.subscribe("b", 1)
    peer.disconnect()
    publisher = clients(5, broker=broker)
    publisher.publish("a", b"1", 1)
    publisher.publish("a", b"2", 1)
    publisher.publish("b", b"1", 0)
    publisher.ping()
    back = clients.session(5, client_id, broker=broker, props=((ALIAS_MAXIMUM, alias_maximum),) if alias_maximum else ())
    first = back.message(answer=False)
    publisher.publish("b", b"2", 0)
    publisher.publish("c", b"", 1)
    back.ping()
    assert not back.aside, "ahead of its turn"
    back.answer(first)
    assert [(p.topic, p.payload) for p in back.messages(3)] == [("a", b"2"), ("b", b"1"), ("b", b"2")]


@spec("5", "MQTT-3.1.2-24")
def test_an_alias_never_makes_a_packet_too_large(clients: Clients, name: str) -> None:
    """Sizes around the receiver's maximum: none is exceeded for teaching an alias, and none is dropped that fits without."""
    limit = 200
    peer, publisher = clients(5, props=((MAXIMUM_PACKET_SIZE, limit), (ALIAS_MAXIMUM, 50))), clients(5)
    peer.subscribe("#", 0)
    plain = len(publish_packet(f"{name}/00", b"", 5))
    for i in range(12):
        publisher.publish(f"{name}/{i:02}", b"x" * (limit - plain - i - (2 if limit > 130 else 0)))
    publisher.publish(f"{name}/end", b"")
    sizes = []
    while True:
        got = peer.message()
        if got.topic == f"{name}/end":
            break
        if got.topic.startswith(name):
            sizes.append(len(got.raw))
    assert max(sizes) <= limit
    assert len(sizes) >= 11
