"""Every limit of `[limits]` that a client can meet is met here: what is within it works, one step beyond is refused and counted."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from ..rawclient import (
    ALIAS_MAXIMUM,
    CONNACK,
    CONNECT,
    DISCONNECT,
    MAXIMUM_PACKET_SIZE,
    PUBACK,
    PUBREC,
    RECEIVE_MAXIMUM,
    RETAIN_AVAILABLE,
    SERVER_KEEP_ALIVE,
    SESSION_EXPIRY,
    SHARED_AVAILABLE,
    SUBSCRIPTION_ID,
    SUBSCRIPTION_ID_AVAILABLE,
    TOPIC_ALIAS,
    WILDCARD_AVAILABLE,
    Packet,
    Peer,
    PeerClosed,
    Will,
    ack_packet,
    connect_packet,
    publish_packet,
    varint,
)
from .conftest import Make, name


def ended(peer: Peer, reason: int) -> None:
    """The server ended this 5.0 connection for that reason."""
    last = peer.expect_close()[-1]
    assert (last.type, last.reason) == (DISCONNECT, reason)


def closed(peer: Peer) -> list[Packet]:
    try:
        return peer.expect_close()
    except PeerClosed:
        return []


# ---------------------------------------------------------------------------------- packets, topics, client ids


@pytest.mark.parametrize("version", [3, 4, 5])
def test_max_packet_size(make: Make, version: int) -> None:
    bench = make(limits={"max_packet_size": 1000})
    peer, topic = bench(version), name()
    if version == 5:
        assert peer.connack.prop(MAXIMUM_PACKET_SIZE) == 1000  # type: ignore[attr-defined]
    peer.subscribe(topic)
    room = 1000 - len(publish_packet(topic, b"", version)) - 1  # the length takes two bytes by then
    exact = publish_packet(topic, bytes(room), version)
    assert len(exact) == 1000
    peer.send(exact)
    assert len(peer.message(topic).raw) == 1000
    peer.send(publish_packet(topic, bytes(room + 1), version))
    if version == 5:
        ended(peer, 0x95)
    else:
        assert peer.expect_close() == []
    assert bench.stat("protocol_errors") == 1


def test_announced_packet_is_refused_before_it_came(make: Make) -> None:
    """The length alone is enough: nothing is kept for the rest, in the first packet as in later ones."""
    bench = make(limits={"max_packet_size": 1000})
    first = bench.raw()
    first.send(bytes([CONNECT << 4]) + varint(1001))
    assert first.expect_close() == []
    largest = bench.raw()
    largest.send(bytes([CONNECT << 4]) + varint(268_435_455))
    assert largest.expect_close() == []
    later = bench(5)
    later.send(b"\x30" + varint(268_435_455))
    ended(later, 0x95)
    assert bench.stat("protocol_errors") == 3


def test_large_packets_one_under_the_limit(make: Make) -> None:
    """A packet of exactly the limit is taken in whatever pieces it comes."""
    bench = make(limits={"max_packet_size": 300_000})
    peer, topic = bench(5), name()
    peer.subscribe(topic, 1)
    payload = bytes(range(256)) * 1171
    packet = publish_packet(topic, payload, 5, qos=1)
    payload += bytes(300_000 - len(packet))
    packet = publish_packet(topic, payload, 5, qos=1)
    assert len(packet) == 300_000
    peer.send(packet[:5])
    peer.send(packet[5:100_000])
    peer.send(packet[100_000:-1])
    peer.send(packet[-1:])
    got = peer.await_packet(3)
    assert got.payload == payload
    peer.answer(got)


@pytest.mark.parametrize("version", [3, 4, 5])
def test_max_topic_levels_and_bytes(make: Make, version: int) -> None:
    bench = make(limits={"max_topic_levels": 4, "max_topic_bytes": 20})
    peer = bench(version)
    for topic in ("a/b/c/d", "x" * 20):
        peer.subscribe(topic, 1)
        peer.publish(topic, b"x", 1)
        peer.answer(peer.await_packet(3))
    for topic in ("a/b/c/d/e", "x" * 21):
        refused = bench(version)
        if version == 5:
            got = refused.publish(topic, b"x", 1)
            assert got is not None
            assert got.reason == 0x90
            got = refused.publish(topic, b"x", 2)
            assert got is not None
            assert (got.type, got.reason) == (PUBREC, 0x90)
            refused.publish(topic, b"x", 0)
            refused.ping()
        else:
            refused.send(publish_packet(topic, b"x", version, qos=1))
            assert refused.expect_close() == []
        subscriber = bench(version)
        if version == 3:
            subscriber.send(b"\x82" + varint(5 + len(topic)) + b"\0\1" + struct.pack(">H", len(topic)) + topic.encode() + b"\0")
            assert subscriber.expect_close() == []
        else:
            codes = subscriber.subscribe_many([(topic, 0), (f"$share/g/{topic}", 0), ("fine", 1)])
            assert [c >= 0x80 for c in codes] == [True, True, False]
        will = bench.raw(version)
        if version == 5:
            assert will.connect(name(), will=Will(topic)).reason == 0x90
        else:  # no return code means that
            will.send(connect_packet(name(), version, will=Will(topic)))
            assert will.expect_close() == []


def test_max_client_id_bytes(make: Make) -> None:
    bench = make(limits={"max_client_id_bytes": 23})
    bench(4, "x" * 23)
    bench(5, "y" * 23)
    assert bench.raw(4).connect("x" * 24).reason == 2
    assert bench.raw(5).connect("x" * 24).reason == 0x85
    assert bench.stat("connects_refused") == 2


# ---------------------------------------------------------------------------------- connections and sessions


def test_max_connections(make: Make) -> None:
    bench = make(limits={"max_connections": 3})
    peers = [bench() for _ in range(3)]
    over = bench.raw()
    assert closed(over) == []
    event = bench.events.wait("connection limit")
    assert (event["level"], event["detail"]) == ("WARNING", "too many connections")
    for peer in peers:
        peer.ping()
    peers[0].disconnect()
    bench.until("connections_open", 2)
    bench()
    assert closed(bench.raw()) == []


def test_max_connections_counts_those_that_said_nothing(make: Make) -> None:
    bench = make(limits={"max_connections": 2})
    silent = [bench.raw() for _ in range(2)]
    bench.until("connections_open", 2)
    assert closed(bench.raw()) == []
    silent[0].close()
    bench.until("connections_open", 1)
    bench().ping()


def test_max_connections_of_a_listener(make: Make, unix: dict[str, Any]) -> None:
    bench = make(listeners=[{"url": "tcp://127.0.0.1:0", "max_connections": 1}, unix])
    only = bench()
    assert closed(bench.raw()) == []
    assert bench.events.wait("connection limit")["detail"] == "too many connections on this listener"
    others = [bench(listener=1) for _ in range(5)]
    only.disconnect()
    bench.until("connections_open", 5)
    bench()
    for peer in others:
        peer.ping()


def test_max_connections_are_given_back(make: Make) -> None:
    """Whatever way a connection ends, its place is free again: also that of one which moved to another worker."""
    bench = make(limits={"max_connections": 4})
    for i in range(60):
        peers = [bench(5) for _ in range(4)]
        if i % 3 == 0:
            for peer in peers:
                peer.disconnect()
        elif i % 3 == 1:
            for peer in peers:
                peer.reset()
        else:
            for peer in peers:
                peer.send(b"\xff\xff\xff\xff\xff")
                closed(peer)
        bench.until("connections_open", 0)


def test_max_sessions(make: Make) -> None:
    bench = make(limits={"max_sessions": 3})
    ids = [name() for _ in range(3)]
    for client_id in ids:
        bench.session(5, client_id).disconnect()
    assert bench.raw(5).connect(name()).reason == 0x97
    assert bench.raw(4).connect(name()).reason == 3
    back = bench.session(4, ids[0])
    assert back.connack.session_present  # type: ignore[attr-defined]
    bench(5, ids[1]).disconnect()  # a new session in the place of the old one
    assert bench.stat("sessions") == 2
    bench.session(5, name())
    assert bench.raw(5).connect(name()).reason == 0x97
    assert bench.stat("sessions") == 3


@pytest.mark.parametrize("version", [4, 5])
def test_max_subscriptions(make: Make, version: int) -> None:
    bench = make(limits={"max_subscriptions": 40})
    peer = bench(version)
    codes = peer.subscribe_many([(f"s/{i}", 1) for i in range(42)])
    assert codes == [1] * 40 + [0x97 if version == 5 else 0x80] * 2
    assert bench.stat("subscriptions") == 40
    assert peer.subscribe_many([("s/0", 0), ("$share/g/x", 0)]) == [0, 0x97 if version == 5 else 0x80]  # one that it has is no new one
    peer.unsubscribe("s/39")
    assert peer.subscribe_many([("$share/g/x", 0), ("new", 0)]) == [0, 0x97 if version == 5 else 0x80]
    other = bench(version)
    other.subscribe("theirs")  # the limit is each session's own
    assert bench.stat("subscriptions") == 41


# ---------------------------------------------------------------------------------- windows and aliases


@pytest.mark.parametrize("qos", [1, 2])
def test_max_inflight(make: Make, qos: int) -> None:
    """So many unacknowledged at once, whatever more the client would take."""
    bench = make(limits={"max_inflight": 3})
    topic, publisher = name(), bench(5)
    for version in (4, 5):
        peer = bench(version)
        peer.subscribe(topic, qos)
        for i in range(8):
            publisher.publish(topic, b"%d" % i, qos)
        held = [peer.message(answer=False) for _ in range(3)]
        bench.until("messages_queued", 5)
        assert bench.stat("messages_inflight") == 3
        if qos == 1:
            for got in held:
                peer.answer(got)
            assert [p.payload for p in peer.messages(5)] == [b"3", b"4", b"5", b"6", b"7"]
        peer.close()
        bench.until("messages_inflight", 0)
        bench.until("messages_queued", 0)


def test_receive_maximum(make: Make) -> None:
    bench = make(limits={"receive_maximum": 2})
    peer = bench(5)
    assert peer.connack.prop(RECEIVE_MAXIMUM) == 2  # type: ignore[attr-defined]
    peer.send(*(publish_packet("t", b"x", 5, qos=2, packet_id=i) for i in (1, 2)))
    for i in (1, 2):
        peer.expect(PUBREC, packet_id=i)
    peer.send(publish_packet("t", b"x", 5, qos=2, packet_id=1, dup=True))  # one that it has already
    peer.expect(PUBREC, packet_id=1)
    peer.send(publish_packet("t", b"x", 5, qos=2, packet_id=3))
    ended(peer, 0x93)
    old = bench(4)  # 3.x clients were told nothing
    old.send(*(publish_packet("t", b"x", qos=2, packet_id=i) for i in range(1, 11)))
    for i in range(1, 11):
        old.expect(PUBREC, packet_id=i)


def test_topic_alias_maximum(make: Make) -> None:
    bench = make(limits={"topic_alias_maximum": 2})
    peer, topic = bench(5), name()
    assert peer.connack.prop(ALIAS_MAXIMUM) == 2  # type: ignore[attr-defined]
    peer.publish(topic, b"x", 1, props=((TOPIC_ALIAS, 2),))
    peer.send(publish_packet(topic, b"x", 5, props=((TOPIC_ALIAS, 3),)))
    ended(peer, 0x94)


def test_no_topic_aliases(make: Make) -> None:
    bench = make(limits={"topic_alias_maximum": 0, "topic_alias_out": 0})
    peer, topic = bench(5, props=((ALIAS_MAXIMUM, 10),)), name()
    assert peer.connack.prop(ALIAS_MAXIMUM, 0) == 0  # type: ignore[attr-defined]
    peer.subscribe(topic)
    for _ in range(3):
        peer.publish(topic)
        got = peer.expect(3)
        assert (got.topic, got.prop(TOPIC_ALIAS)) == (topic, None)
    peer.send(publish_packet(topic, b"x", 5, props=((TOPIC_ALIAS, 1),)))
    ended(peer, 0x94)


def test_topic_alias_out(make: Make) -> None:
    """The broker teaches so many aliases, the least recently used giving way."""
    bench = make(limits={"topic_alias_out": 2})
    peer, topic = bench(5, props=((ALIAS_MAXIMUM, 10),)), name()
    peer.subscribe(f"{topic}/#")
    for i in (0, 1, 0, 2, 0, 1, 2, 2):
        peer.publish(f"{topic}/{i}")
    raw = [peer.expect(3) for _ in range(8)]
    assert [p.prop(TOPIC_ALIAS) for p in raw] == [1, 2, 1, 2, 1, 2, 1, 1]
    assert [bool(p.topic) for p in raw] == [True, True, False, True, False, True, True, False]


# ---------------------------------------------------------------------------------- what is told in CONNACK


def test_session_expiry_cap(make: Make) -> None:
    bench = make(limits={"session_expiry": 100})
    told, within, never, old = name(), name(), name(), name()
    assert bench(5, told, expiry=101).connack.prop(SESSION_EXPIRY) == 100  # type: ignore[attr-defined]
    assert bench(5, within, expiry=100).connack.prop(SESSION_EXPIRY) is None  # type: ignore[attr-defined]
    assert bench(5, never, expiry=0xFFFFFFFF).connack.prop(SESSION_EXPIRY) == 100  # type: ignore[attr-defined]
    bench.session(4, old)
    raised = bench(5, "raised", expiry=1)
    raised.disconnect(0, ((SESSION_EXPIRY, 5000),))  # the cap holds here too
    for peer in bench.peers:
        if not peer.closed:
            peer.disconnect()
    assert bench.stat("sessions") == 5
    bench.native.advance_clock(99)
    bench().ping()
    assert bench.stat("sessions_expired") == 0
    bench.native.advance_clock(2)
    bench.until("sessions_expired", 5)


def test_session_expiry_0(make: Make) -> None:
    """Sessions end with their connections, whatever the clients ask for."""
    bench = make(limits={"session_expiry": 0})
    peer = bench.session(5, "a", expiry=10)
    assert peer.connack.prop(SESSION_EXPIRY) == 0  # type: ignore[attr-defined]
    bench.session(4, "b").disconnect()
    peer.drop()
    bench.until("sessions", 0)
    assert not bench.session(4, "b").connack.session_present  # type: ignore[attr-defined]


def test_sessions_that_never_expire(make: Make) -> None:
    bench = make(limits={"session_expiry": 0xFFFFFFFF})
    bench(5, "a", expiry=0xFFFFFFFF).disconnect()
    bench.session(4, "b").disconnect()
    bench.native.advance_clock(10 * 365 * 86400)
    bench().ping()
    assert bench.session(5, "a").connack.session_present  # type: ignore[attr-defined]
    assert bench.session(4, "b").connack.session_present  # type: ignore[attr-defined]


def test_max_keep_alive(make: Make) -> None:
    bench = make(limits={"max_keep_alive": 10})
    more, none, less = bench(5, keep_alive=11), bench(5, keep_alive=0), bench(5, keep_alive=10)
    assert [p.connack.prop(SERVER_KEEP_ALIVE) for p in (more, none, less)] == [10, 10, None]  # type: ignore[attr-defined]
    old = bench(4, keep_alive=1000)  # cannot be told, so its own holds
    bench.native.advance_clock(14.9)
    for peer in (more, less, old):
        peer.ping()
    bench.native.advance_clock(0.2)
    ended(none, 0x8D)
    bench.native.advance_clock(14.9)
    for peer in (more, less):
        ended(peer, 0x8D)
    old.ping()
    assert bench.stat("keep_alive_timeouts") == 3
    bench.events.wait("keep alive timeout", client_id=none.client_id)


def test_switched_off(make: Make) -> None:
    bench = make(
        limits={
            "retain_available": False,
            "wildcard_subscription_available": False,
            "shared_subscription_available": False,
            "subscription_identifier_available": False,
        }
    )
    peer = bench(5)
    told = (RETAIN_AVAILABLE, WILDCARD_AVAILABLE, SHARED_AVAILABLE, SUBSCRIPTION_ID_AVAILABLE)
    assert [peer.connack.prop(p) for p in told] == [0, 0, 0, 0]  # type: ignore[attr-defined]
    filters = [("a/+", 0), ("a/#", 0), ("$share/g/a", 0), ("$share/g/+", 0), ("a/b", 0)]
    codes = peer.subscribe_many(filters)
    assert codes[:3] == [0xA2, 0xA2, 0x9E]
    assert codes[3] in (0x9E, 0xA2)
    assert codes[4] == 0
    assert bench(4).subscribe_many(filters) == [0x80, 0x80, 0x80, 0x80, 0]
    peer.send(publish_packet("a/b", b"x", 5, retain=True))
    ended(peer, 0x9A)
    peer = bench(5)
    with_id = b"\x82" + varint(2 + 3 + 4) + b"\0\1" + b"\x02" + bytes([SUBSCRIPTION_ID, 5]) + b"\0\1a\0"
    peer.send(with_id)
    ended(peer, 0xA1)
    assert bench.raw(5).connect(name(), will=Will("w", retain=True)).reason == 0x9A
    old = bench(4)
    old.send(publish_packet("a/b", b"x", retain=True))
    assert old.expect_close() == []
    assert bench.stat("retained") == 0


# ---------------------------------------------------------------------------------- retained messages


def test_max_retained_messages(make: Make) -> None:
    bench = make(limits={"max_retained_messages": 3})
    peer, topic = bench(5), name()
    peer.subscribe(f"{topic}/4", 0x20)
    for i in range(5):
        got = peer.publish(f"{topic}/{i}", b"x", 1, retain=True)
        assert got is not None
        assert got.type == PUBACK
        assert got.reason < 0x80
    assert peer.message(f"{topic}/4").payload == b"x"  # it still reaches its subscribers
    assert (bench.stat("retained"), bench.stat("dropped_retained_limit")) == (3, 2)
    event = bench.events.wait("retained limit", client_id=peer.client_id)
    assert (event["detail"], event["level"]) == (f"{topic}/3", "WARNING")
    peer.publish(f"{topic}/0", b"y", 1, retain=True)  # in the place of one that is there
    peer.publish(f"{topic}/1", b"", 1, retain=True)  # room for another
    peer.publish(f"{topic}/4", b"z", 1, retain=True)
    assert peer.message().payload == b"z"
    late = bench(5)
    late.subscribe(f"{topic}/#")
    assert sorted((p.topic[-1], p.payload) for p in late.messages(3)) == [("0", b"y"), ("2", b"x"), ("4", b"z")]
    assert bench.stat("dropped_retained_limit") == 2


def test_max_retained_bytes(make: Make) -> None:
    bench = make(limits={"max_retained_bytes": 10_000})
    peer = bench(5)
    for i in range(10):
        peer.publish(f"r/{i}", bytes(1500), 1, retain=True)
    kept = bench.stat("retained")
    assert 3 <= kept <= 6
    assert (bench.stat("dropped_retained_limit"), bench.stat("messages_received")) == (10 - kept, 10)
    assert 1500 * kept <= bench.stat("retained_bytes") <= 10_000
    peer.publish("r/0", b"", 1, retain=True)
    peer.publish("r/9", bytes(1500), 1, retain=True)  # in the room of the other one
    assert (bench.stat("retained"), bench.stat("dropped_retained_limit")) == (kept, 10 - kept)
    peer.publish("r/9", bytes(9000), 1, retain=True)  # larger than the one in its place
    assert bench.stat("retained_bytes") <= 10_000
    assert bench.stat("dropped_retained_limit") == 11 - kept


# ---------------------------------------------------------------------------------- what the clock decides


def test_connect_timeout(make: Make) -> None:
    bench = make(limits={"connect_timeout": 7})
    silent, begun = bench.raw(), bench.raw()
    begun.send(connect_packet("half")[:-1])
    bench.until("connections_open", 2)
    bench.native.advance_clock(6.9)
    whole = bench.raw()
    bench.until("connections_open", 3)
    assert bench.stat("connect_timeouts") == 0
    bench.native.advance_clock(0.2)
    assert silent.expect_close() == begun.expect_close() == []
    assert whole.connect("whole").type == CONNACK
    assert bench.stat("connect_timeouts") == 2
    bench.events.wait("connect timeout", times=2)


def test_route_cache_entries(make: Make) -> None:
    """A cache of two topics forgets, and routes rightly all the same."""
    bench = make(limits={"route_cache_entries": 2}, workers=1)
    peer, topic = bench(5), name()
    peer.subscribe(f"{topic}/+", 1)
    for i in range(50):
        peer.send(publish_packet(f"{topic}/{i % 10}", b"%d" % i, 5))
    assert [(p.topic, p.payload) for p in peer.messages(50)] == [(f"{topic}/{i % 10}", b"%d" % i) for i in range(50)]
    assert bench.stat("route_misses") >= 40


def test_turn_bytes(make: Make) -> None:
    """One client's flood is taken in turns of so many bytes, between which the others are served."""
    bench = make(limits={"turn_bytes": 4096}, workers=1)
    flooder, other = bench(), bench()
    part = publish_packet("flood", bytes(1000)) * 1000
    read, turns = bench.stat("bytes_received"), bench.stat("turns")
    flooder.send(part)
    other.ping()
    flooder.ping()
    other.ping()
    read, turns = bench.stat("bytes_received") - read, bench.stat("turns") - turns
    assert read >= len(part)
    assert turns * 4096 + 100 >= read


def test_late_acknowledgement_of_an_old_connection(make: Make) -> None:
    """Packet ids of a session that ended are nobody's: an acknowledgement of one is let pass."""
    peer = make()(5)
    for kind in (4, 5, 7):
        peer.send(ack_packet(kind, 77))
    peer.ping()
