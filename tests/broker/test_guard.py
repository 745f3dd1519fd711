"""Limits that are counted across workers (connections by address, by user, not accepted yet; wills, queues, memory), rates, and turns."""

from __future__ import annotations

from typing import Any

import pytest

from ..rawclient import (
    CONNECT,
    DISCONNECT,
    PING,
    PUBACK,
    PUBREC,
    SESSION_EXPIRY,
    Peer,
    PeerClosed,
    Will,
    connect_packet,
    publish_packet,
    subscribe_packet,
    varint,
)
from .conftest import Bench, Make, eventually, name


def closed_unread(peer: Peer) -> bool:
    try:
        return peer.expect_close() == []
    except PeerClosed:
        return True


# ---------------------------------------------------------------------------------- connections


@pytest.mark.parametrize("version", [4, 5])
def test_max_connections_per_address(make: Make, version: int, unix: dict[str, Any]) -> None:
    """One more hears why; as many again, and the rest is not even read. Unix sockets have no address."""
    bench = make(limits={"max_connections_per_address": 2}, listeners=[{"url": "tcp://127.0.0.1:0"}, unix])
    kept = [bench(version) for _ in range(2)]
    for _ in range(5):
        assert bench.raw(version).connect(name()).reason == (0x97 if version == 5 else 3)
    assert bench.stat("connections_refused_address") == 5
    waiting = [bench.raw(version) for _ in range(3)]
    bench.until("connections_pending", 3)  # 5 connections, with those that are refused not gone before their peers
    refused = bench.stat("connections_refused_address")
    assert closed_unread(bench.raw(version))
    assert bench.stat("connections_refused_address") == refused + 1
    assert bench.events.wait("connection limit")["detail"] == "too many connections of this address"
    bench(version, listener=1).ping()
    for peer in waiting:
        peer.close()
    kept[0].disconnect()
    bench.until("connections_open", 2)
    bench(version).ping()


def test_max_connections_per_address_are_given_back(make: Make) -> None:
    """Whatever way they end, and on whatever worker they live."""
    bench = make(limits={"max_connections_per_address": 4})
    for i in range(20):
        peers = [bench(5) for _ in range(4)]
        for peer in peers:
            if i % 3 == 0:
                peer.disconnect()
            elif i % 3 == 1:
                peer.reset()
            else:
                peer.send(b"\xff\xff\xff\xff\xff")
                peer.expect_close()
        bench.until("connections_open", 0)


def test_addresses_behind_a_proxy(make: Make) -> None:
    """It is the client's address that counts, not the proxy's; of IPv6 the first 64 bits."""
    listener = {"url": "tcp://127.0.0.1:0", "proxy_protocol": True, "trusted_proxies": ["127.0.0.1"]}
    bench = make(limits={"max_connections_per_address": 1}, listeners=[listener])

    def behind(address: str) -> int:
        family, other = ("TCP6", "::1") if ":" in address else ("TCP4", "127.0.0.1")
        peer = bench.raw(5)
        peer.send(f"PROXY {family} {address} {other} 4242 1883\r\n".encode())
        return peer.connect(name()).reason

    assert [behind(f"198.51.100.{i}") for i in range(5)] == [0] * 5
    assert behind("198.51.100.1") == 0x97
    assert behind("2001:db8:1:2::1") == 0
    assert behind("2001:db8:1:2:ffff::2") == 0x97
    assert behind("2001:db8:1:3::1") == 0
    assert bench.stat("connections_refused_address") == 2


def test_connect_rate_addresses(make: Make) -> None:
    """Addresses that have gone are remembered for their rate; beyond so many the oldest is forgotten, and has its whole rate again."""
    listener = {"url": "tcp://127.0.0.1:0", "proxy_protocol": True, "trusted_proxies": ["127.0.0.1"]}
    bench = make(limits={"connect_rate_per_address": 1, "connect_rate_addresses": 3}, listeners=[listener])

    def come_and_go(number: int) -> int:
        peer = bench.raw(5)
        peer.send(f"PROXY TCP4 198.51.100.{number} 127.0.0.1 4242 1883\r\n".encode())
        reason = peer.connect(name()).reason
        peer.close()
        bench.until("connections_open", 0)
        return reason

    assert [come_and_go(number) for number in range(3)] == [0, 0, 0]
    assert bench.stat("addresses_forgotten") == 0
    for number, forgotten in ((3, 1), (4, 2), (0, 3)):
        assert come_and_go(number) == 0
        assert bench.stat("addresses_forgotten") == forgotten
    assert come_and_go(0) in (0, 0x9F)  # remembered; a slow machine may see a token come in
    assert bench.stat("addresses_forgotten") == 3


@pytest.mark.parametrize("version", [4, 5])
def test_max_connections_per_user(make: Make, version: int) -> None:
    bench = make(limits={"max_connections_per_user": 2})
    ids = [name() for _ in range(2)]
    for client_id in ids:
        bench(version, client_id, username="u")
    refused = bench.raw(version).connect(name(), username="u")
    assert refused.reason == (0x97 if version == 5 else 3)
    assert bench.stat("connections_refused_user") == 1
    bench(version, username="v").ping()  # another one
    bench(version).ping()  # nobody's
    for client_id in ids:  # who takes his own place over needs no other
        bench(version, client_id, username="u").ping()
    bench.until("connections_open", 4)
    bench.peers[-1].disconnect()
    bench.until("connections_open", 3)
    bench(version, username="u").ping()


@pytest.mark.parametrize("limit", ["connect_rate", "connect_rate_per_address"])
@pytest.mark.parametrize("version", [4, 5])
def test_connect_rate(make: Make, limit: str, version: int) -> None:
    """So many at once, as many again are told, then nobody is read; a second later there is room again."""
    bench = make(limits={limit: 5})
    for _ in range(5):
        bench(version).disconnect()
    reasons = []
    for _ in range(4):
        reasons.append(bench.raw(version).connect(name()).reason)
    told = 0x9F if version == 5 else 3
    assert told in reasons and set(reasons) <= {0, told}  # a slow machine may see a token come in
    for _ in range(12):
        peer = bench.raw(version)
        try:
            peer.connect(name())
        except (PeerClosed, ConnectionError):
            break
    else:
        pytest.fail("nobody was closed unread")
    assert bench.events.wait("connection limit")["detail"] == "connections come too fast"
    assert bench.stat("connections_refused_rate") >= 2
    bench.native.advance_clock(3)
    bench(version).ping()


def test_max_pending_connections(make: Make) -> None:
    """Those that said nothing count until they are accepted, or gone."""
    bench = make(limits={"max_pending_connections": 3})
    for _ in range(10):
        bench()
    assert bench.stat("connections_pending") == 0
    silent = [bench.raw() for _ in range(3)]
    bench.until("connections_pending", 3)
    assert closed_unread(bench.raw())
    assert bench.stat("connections_refused_pending") == 1
    silent[0].connect(name())
    bench.until("connections_pending", 2)
    bench().ping()
    for peer in silent:
        peer.close()
    bench.until("connections_pending", 0)
    assert bench.stat("unauthenticated_bytes") == 0


@pytest.mark.parametrize("version", [4, 5])
def test_max_connect_packet(make: Make, version: int) -> None:
    """Another limit than that of a client that is accepted."""
    bench = make(limits={"max_connect_packet": 200, "max_packet_size": 1000})
    head = len(connect_packet("", version)) - 2
    peer = bench.raw(version)
    peer.send(connect_packet("x" * (200 - head - 3), version))
    assert peer.await_packet(2).reason == 0
    peer.publish("t", bytes(900), 1)
    for length in (201, 1000, 268_435_455):
        early = bench.raw(version)
        early.send(bytes([CONNECT << 4]) + varint(length))
        assert early.expect_close() == []
    assert bench.stat("protocol_errors") == 3


def test_max_unauthenticated_bytes(make: Make) -> None:
    """What is announced counts, for all connections together, and is given back."""
    bench = make(limits={"max_unauthenticated_bytes": 400_000, "max_connect_packet": 131_072})
    large = bytes([CONNECT << 4]) + varint(130_000)
    holding = []
    for _ in range(3):
        peer = bench.raw()
        peer.send(large + bytes(10))
        holding.append(peer)
    eventually(lambda: bench.stat("unauthenticated_bytes") > 390_000)
    over = bench.raw()
    over.send(large + bytes(10))
    assert closed_unread(over)
    assert bench.stat("connections_refused_pending") == 1
    assert bench.stat("unauthenticated_bytes") < 400_000
    bench().ping()  # a small one finds room
    for peer in holding:
        peer.close()
    bench.until("unauthenticated_bytes", 0)


# ---------------------------------------------------------------------------------- subscriptions, QoS 2, wills


@pytest.mark.parametrize("version", [3, 4, 5])
def test_max_filter_wildcards(make: Make, version: int) -> None:
    bench = make(limits={"max_filter_wildcards": 3})
    peer = bench(version)
    assert peer.subscribe_many([("+/+/#", 0), ("a/+/b/+/c/+/d", 1), ("a+b".replace("+", "/"), 0)]) == [0, 1, 0]
    if version == 3:
        peer.send(subscribe_packet([("+/+/+/#", 0)], version))
        assert peer.expect_close() == []
    else:
        refused = 0x97 if version == 5 else 0x80
        assert peer.subscribe_many([("+/+/+/#", 0), ("fine", 0), ("$share/g/+/+/+/+", 0)]) == [refused, 0, refused]
    assert bench.stat("subscriptions_refused") == (1 if version == 3 else 2)


@pytest.mark.parametrize("version", [3, 4])
def test_max_unreleased(make: Make, version: int) -> None:
    bench = make(limits={"max_unreleased": 3})
    peer = bench(version)
    peer.send(*(publish_packet("t", b"x", version, qos=2, packet_id=i) for i in (1, 2, 3)))
    for i in (1, 2, 3):
        peer.expect(PUBREC, packet_id=i)
    peer.send(publish_packet("t", b"x", version, qos=2, packet_id=3, dup=True))  # one that it has
    peer.expect(PUBREC, packet_id=3)
    peer.send(publish_packet("t", b"x", version, qos=1, packet_id=9))
    peer.expect(PUBACK, packet_id=9)
    peer.send(publish_packet("t", b"x", version, qos=2, packet_id=4))
    assert peer.expect_close() == []


@pytest.mark.parametrize("version", [4, 5])
def test_max_wills(make: Make, version: int) -> None:
    bench = make(limits={"max_wills": 2})
    told = 0x97 if version == 5 else 3
    peers = [bench(version, will=Will("w", b"12345")) for _ in range(2)]
    assert (bench.stat("wills"), bench.stat("will_bytes")) == (2, 12)
    assert bench.raw(version).connect(name(), will=Will("w")).reason == told
    bench(version).ping()
    peers[0].disconnect()
    bench.until("wills", 1)
    peers[1].reset()
    bench.until("wills", 0)
    assert bench.stat("will_bytes") == 0
    bench(version, will=Will("w"))


@pytest.mark.parametrize("version", [4, 5])
def test_max_will_bytes(make: Make, version: int) -> None:
    bench = make(limits={"max_will_bytes": 10})
    bench(version, will=Will("topic", b"12345")).ping()
    assert bench.raw(version).connect(name(), will=Will("topic", b"123456")).reason == (0x97 if version == 5 else 3)


# ---------------------------------------------------------------------------------- rates


def test_max_message_rate(make: Make) -> None:
    """As many as a second allows at once; then its client is not read until the next have come in, and others do not notice."""
    bench = make(limits={"max_message_rate": 10, "rate_patience": 0})
    peer, other = bench(5), bench(5)
    peer.send(*(publish_packet("t", b"x", 5, qos=1, packet_id=i) for i in range(1, 31)))
    for i in range(1, 11):
        peer.expect(PUBACK, packet_id=i)
    eventually(lambda: bench.stat("clients_slowed") >= 1)
    slowed_at = bench.stat("packets_received_publish")
    assert slowed_at < 30
    other.ping()
    bench.native.advance_clock(30)
    for i in range(11, 31):
        peer.expect(PUBACK, packet_id=i)
        bench.native.advance_clock(1)
    assert bench.stat("clients_ended_rate") == 0
    peer.ping()


def test_max_byte_rate(make: Make) -> None:
    bench = make(limits={"max_byte_rate": 10_000, "rate_patience": 0})
    peer = bench(5)
    for _ in range(3):
        peer.send(publish_packet("t", bytes(9000), 5, qos=1))
    eventually(lambda: bench.stat("clients_slowed") >= 1)
    assert bench.stat("packets_received_publish") == 2
    bench.native.advance_clock(10)
    for _ in range(3):
        peer.expect(PUBACK)
    peer.send(PING * 6000)  # these are bytes too
    eventually(lambda: bench.stat("clients_slowed") >= 2)


@pytest.mark.parametrize("version", [4, 5])
def test_rate_patience(make: Make, version: int) -> None:
    """A client that goes on is told 0x96, or cut off."""
    bench = make(limits={"max_message_rate": 10, "rate_patience": 5})
    peer = bench(version)
    peer.send(*[publish_packet("t", b"x", version)] * 2000)
    eventually(lambda: bench.stat("clients_slowed") >= 1)
    for _ in range(200):
        bench.native.advance_clock(0.1)
        if bench.stat("clients_ended_rate"):
            break
    last = peer.expect_close()
    assert bench.stat("packets_received_publish") < 500
    assert bench.stat("clients_ended_rate") == 1
    if version == 5:
        assert (last[-1].type, last[-1].reason) == (DISCONNECT, 0x96)


def test_keep_alive_stands_still_for_a_slowed_client(make: Make) -> None:
    """Who is not read cannot be late."""
    bench = make(limits={"max_message_rate": 1, "rate_patience": 0})
    peer = bench(5, keep_alive=2)
    peer.send(*[publish_packet("t", b"x", 5)] * 4)
    for i in (1, 2):
        eventually(lambda i=i: bench.stat("clients_slowed") == i)
        bench.native.advance_clock(20)
    peer.ping()
    assert bench.stat("keep_alive_timeouts") == 0
    assert bench.stat("packets_received_publish") == 4


@pytest.mark.parametrize("limit", ["max_message_rate_out", "max_byte_rate_out"])
@pytest.mark.parametrize("qos", [0, 1])
def test_rates_out(make: Make, limit: str, qos: int) -> None:
    """Beyond its rate a client is like one that reads slowly: nothing is lost while there is room, and others get theirs."""
    bench = make(limits={limit: 1 if limit == "max_message_rate_out" else 100})
    slow, other, publisher, topic = bench(5), bench(5), bench(5), name()
    slow.subscribe(topic, qos)
    other.subscribe("others", qos)
    publisher.send(*[publish_packet(topic, b"%02d" % i + bytes(98), 5, qos=0 if i else qos, packet_id=1) for i in range(60)])
    publisher.send(publish_packet(topic, b"60", 5, qos=qos, packet_id=2))
    publisher.ping()
    eventually(lambda: bench.stat("clients_throttled") >= 1)
    got = []
    while _readable(slow):
        got.append(slow.message().payload[:2])
    publisher.publish(topic, b"61", 1)
    assert not _readable(slow), "what is owed takes a minute"
    publisher.publish("others", b"x", 1)
    assert other.message().payload == b"x"
    for _ in range(10):
        bench.native.advance_clock(30)
        publisher.ping()
        while _readable(slow):
            got.append(slow.message().payload[:2])
        if len(got) == 62:
            break
    assert got == [b"%02d" % i for i in range(62)]
    assert sum(value for counter, value in bench.native.stats().items() if counter.startswith("dropped_")) == 0


def _readable(peer: Peer) -> bool:
    import select

    return bool(peer.buffer) or bool(select.select([peer.socket], [], [], 0.05)[0])


# ---------------------------------------------------------------------------------- queues of all sessions


@pytest.mark.parametrize("limit", ["max_total_queued_messages", "max_total_queued_bytes"])
def test_totals_of_queues(make: Make, limit: str) -> None:
    """Met, each queue is treated as full: what comes takes the place of what its session has, and where there is none it is dropped."""
    bench = make(limits={limit: 40 if limit == "max_total_queued_messages" else 40 * 140})
    publisher = bench(5)
    for client_id in ("a", "b"):
        peer = bench.session(5, client_id)
        peer.subscribe(f"to/{client_id}", 1)
        peer.disconnect()
    for i in range(60):
        publisher.publish("to/a", b"%02d" % i + bytes(90), 1)
        bench.native.advance_clock(0.02)  # totals are looked at every 10 ms
        publisher.ping()
    allowed = 40 if limit == "max_total_queued_messages" else 40 * 140
    queued = bench.stat("messages_queued" if limit == "max_total_queued_messages" else "messages_queued_bytes")
    assert allowed * 0.9 <= queued <= allowed * 1.1
    assert bench.stat("dropped_queue_full") == 60 - bench.stat("messages_queued") > 0
    publisher.publish("to/b", b"x", 1)
    eventually(lambda: bench.stat("dropped_queue_full") == 61 - bench.stat("messages_queued"))  # its session's worker may be another one
    back = bench.session(5, "a")
    payloads = [back.message().payload[:2] for _ in range(30)]
    assert payloads == sorted(payloads)
    bench.native.advance_clock(0.02)
    bench.until("messages_queued", 0)
    publisher.publish("to/b", b"y", 1)
    bench.until("messages_queued", 1)


# ---------------------------------------------------------------------------------- memory


def fill(bench: Bench, client_id: str, count: int, size: int = 10_000) -> Peer:
    """Messages that wait for an absent session."""
    peer = bench.session(5, client_id)
    peer.subscribe(f"fill/{client_id}", 1)
    peer.disconnect()
    publisher = bench(5)
    for _ in range(count):
        publisher.publish(f"fill/{client_id}", bytes(size), 1)
    return publisher


def stage(bench: Bench, wanted: int, peer: Peer) -> None:
    """Stages are looked at when a turn ends and time has passed: all workers see it."""

    def there() -> bool:
        bench.native.advance_clock(0.02)
        peer.ping()
        return bench.stat("overload_stage") == wanted

    eventually(there, f"not stage {wanted}")


def test_max_memory_stages(make: Make) -> None:
    """80 %: nothing new; 90 %: no QoS 0, nothing retained; 100 %: the session with most is emptied, and there is room again."""
    bench = make(workers=1, limits={"max_memory": 4_000_000, "queue_policy": "drop_newest"})
    known = bench.session(5, "known")
    publisher = fill(bench, "big", 150, 12_000)  # of 16 KiB with what a block takes
    while bench.stat("memory_bytes") < 3_250_000:
        publisher.publish("fill/big", bytes(12_000), 1)
    stage(bench, 1, publisher)
    assert bench.events.wait("overload")["detail"].startswith("80 %")
    assert bench.raw(5).connect(name()).reason == 0x97
    assert bench.raw(4).connect(name()).reason == 3
    assert bench.stat("connections_refused_overload") == 2
    assert known.subscribe_many([("new", 0)]) == [0x97]
    known.disconnect()
    known = bench.session(5, "known")  # who is known may come back
    while bench.stat("memory_bytes") < 3_650_000:
        publisher.publish("fill/big", bytes(12_000), 1)
    stage(bench, 2, publisher)
    publisher.publish("x", b"lost", 0)
    refused = publisher.publish("keep", b"x", 1, retain=True)
    assert refused is not None and refused.reason == 0x97
    publisher.publish("keep", b"", 1, retain=True)  # gives memory back
    assert bench.stat("dropped_overload") == 2
    assert bench.stat("retained") == 0
    while bench.stat("memory_bytes") < 4_000_000 and bench.stat("messages_queued"):
        publisher.publish("fill/big", bytes(12_000), 1)
    publisher.ping()
    bench.native.advance_clock(0.2)
    publisher.ping()
    bench.until("messages_queued", 0)
    stage(bench, 0, publisher)
    assert bench.stat("dropped_overload") > 150
    assert known.subscribe_many([("new", 0)]) == [0]
    bench(5).ping()
    bench.events.wait("overload", detail="memory is below its limits again")


def test_max_memory_drops_who_does_not_read(make: Make, unix: dict[str, Any]) -> None:
    """An on-line client that keeps most waiting is let go, and its output with it."""
    bench = make(workers=1, listeners=[unix], limits={"max_memory": 6_000_000})
    slow, other, publisher = bench(5), bench(5), bench(5)
    slow.subscribe("s", 1)
    other.subscribe("o", 0)
    for _ in range(1000):
        if bench.stat("clients_ended_overload"):
            break
        publisher.publish("s", bytes(10_000), 1)
        bench.native.advance_clock(0.02)
    assert bench.stat("clients_ended_overload") == 1
    bench.until("connections_open", 2)
    stage(bench, 0, publisher)
    publisher.publish("o", b"x", 1)
    assert other.message().payload == b"x"


def test_memory_is_counted_and_given_back(make: Make) -> None:
    bench = make()
    before = bench.stat("memory_bytes")
    publisher = fill(bench, "a", 100)
    publisher.publish("kept", bytes(100_000), 1, retain=True)
    eventually(lambda: bench.stat("memory_bytes") > before + 1_000_000)
    publisher.publish("kept", b"", 1, retain=True)
    bench(5, "a").disconnect()  # a clean start ends the session
    publisher.disconnect()
    bench.until("sessions", 0)
    eventually(lambda: bench.stat("memory_bytes") < before + 300_000, "memory is not given back")


# ---------------------------------------------------------------------------------- turns


def test_turn_time(make: Make) -> None:
    """A client whose input takes long is cut at the limit, goes on in the next turn, and loses nothing."""
    bench = make(workers=1, limits={"turn_time": 0.001})
    peer, topic = bench(5), name()
    peer.subscribe(topic, 0)
    for client in [bench(4) for _ in range(30)]:
        client.subscribe(f"{topic}/#", 0)
    peer.send(*(publish_packet(topic, b"%05d" % i, 5) for i in range(5000)), publish_packet(topic, b"end", 5))
    got = [peer.message().payload for _ in range(5001)]
    assert got == [b"%05d" % i for i in range(5000)] + [b"end"]
    assert bench.stat("turns_cut") > 0


def test_turns_are_told(make: Make) -> None:
    bench = make()
    peer = bench(5)
    for _ in range(50):
        peer.ping()
    stats = bench.native.stats()
    assert 0 <= stats["turn_p50_us"] <= stats["turn_p99_us"]
    assert stats["turn_p99_us"] <= stats["turn_longest_us"] * 1.25 + 1
    assert stats["turn_us"] >= stats["turn_longest_us"] >= stats["turn_last_us"] >= 0
    assert stats["turns"] >= stats["turns_over_10ms"] >= stats["turns_over_100ms"] >= stats["turns_over_1s"]


def test_busy_turn_time(make: Make) -> None:
    """After a turn that took as long nobody new is taken for a second; who is there stays."""
    bench = make(workers=1, limits={"busy_turn_time": 0.01, "turn_time": 0})

    def patiently() -> Peer:
        for _ in range(100):  # a machine that has something else to do makes long turns too
            peer = bench.raw(4)
            if peer.connect(name()).reason == 0:
                return peer
            bench.native.advance_clock(1.1)
        raise AssertionError("nobody is taken")

    there = patiently()
    receivers = [patiently() for _ in range(100)]
    for receiver in receivers:
        receiver.subscribe("many", 0)
    before = bench.stat("connections_refused_overload")
    reason = 0
    for _ in range(50):
        there.send(*[publish_packet("many", b"", 4)] * 12_000)  # small, so that one read has most of them
        there.ping()
        if bench.stat("turn_longest_us") >= 10_000 and (reason := bench.raw(5).connect(name()).reason):
            break
    assert reason == 0x89
    assert bench.stat("connections_refused_overload") > before
    assert bench.raw(4).connect(name()).reason == 3
    there.ping()
    for receiver in receivers:
        receiver.close()
    patiently().ping()


def test_the_largest_connect(make: Make) -> None:
    """The default of max_connect_packet is less than what all fields together may have; a larger one lets them pass."""
    bench = make(limits={"max_connect_packet": 1_000_000, "max_unauthenticated_bytes": 0x40000000})
    peer = bench.raw(5)
    will, props = Will("t", bytes(65535)), ((SESSION_EXPIRY, 1),)
    assert peer.connect("c" * 65535, username="u" * 65535, password=bytes(65535), will=will, props=props).reason == 0
