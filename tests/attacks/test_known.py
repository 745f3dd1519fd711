"""Known ways to break a broker over MQTT itself: docs/hardening.md has the table of all of them, with those that are tested elsewhere."""

from __future__ import annotations

import itertools
import os
import random
import re
import threading
from typing import Any

import pytest

from mqttc import logs

from ..broker.conftest import Make, eventually
from ..rawclient import (
    CONNACK,
    CONNECT,
    DISCONNECT,
    PING,
    PUBACK,
    PUBCOMP,
    PUBREC,
    PUBREL,
    USER_PROPERTY,
    Peer,
    PeerClosed,
    Will,
    ack_packet,
    connect_packet,
    disconnect_packet,
    packet,
    publish_packet,
    string,
    subscribe_packet,
    unsubscribe_packet,
    varint,
)
from .conftest import name, settled, watching

MB = 1 << 20
TOPICS = 200 if os.environ.get("MQTTC_SANITIZER") else 8000


def drained(peer: Peer) -> list[Any]:
    """What a connection that ends still says."""
    try:
        return peer.expect_close()
    except (PeerClosed, ConnectionError):
        return []


# ---------------------------------------------------------------------------------- before CONNECT


def test_announced_and_never_sent(make: Make) -> None:
    """Hundreds of connections announce a large CONNECT and stop: what they may take together is bounded, and all is given back."""
    bench = make(limits={"max_unauthenticated_bytes": 4 * MB})
    with watching(bench, 10 * MB) as watch:
        peers = [bench.raw() for _ in range(300)]
        for peer in peers:
            with watch_closed():
                peer.send(bytes([CONNECT << 4]) + varint(131_000) + b"\0\4MQTT\4\2" + bytes(20_000))
        eventually(lambda: bench.stat("connections_refused_pending") >= 200)
        assert bench.stat("unauthenticated_bytes") <= 5 * MB
        for peer in peers:
            peer.close()
    assert watch.trips >= 4
    bench.until("unauthenticated_bytes", 0)
    bench.until("connections_pending", 0)


class watch_closed:
    """An attacker does not mind that its connection is gone."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        return kind is not None and issubclass(kind, (ConnectionError, PeerClosed, TimeoutError))


def test_dribbled_connect(make: Make) -> None:
    """A byte now and then does not stretch the deadline of CONNECT; nor do bytes of a head that ends never."""
    bench = make(limits={"connect_timeout": 10})
    data = connect_packet("dribbler", 4)
    with watching(bench, MB):
        peers = [bench.raw() for _ in range(50)]
        eventually(lambda: bench.stat("connections_pending") == 50)
        for i in range(11):
            for peer in peers:
                with watch_closed():
                    peer.send(data[i : i + 1])
            bench.native.advance_clock(1)
        for peer in peers:
            assert drained(peer) == []
    assert bench.stat("connect_timeouts") == 50


EARLY = {
    "publish": publish_packet("t", b"x"),
    "puback": ack_packet(PUBACK, 1),
    "pubrec": ack_packet(PUBREC, 1),
    "pubrel": ack_packet(PUBREL, 1),
    "pubcomp": ack_packet(PUBCOMP, 1),
    "subscribe": subscribe_packet([("#", 0)]),
    "unsubscribe": unsubscribe_packet(["#"]),
    "pingreq": PING,
    "disconnect": disconnect_packet(),
    "auth": b"\xf0\x00",
    "connack": b"\x20\x02\x00\x00",
    "reserved": b"\x00\x00",
}


def test_packets_before_connect(make: Make) -> None:
    """Any other first packet ends the connection without an answer, and does nothing. [MQTT-3.1.0-1]"""
    bench = make()
    with watching(bench, MB):
        for data in itertools.chain(*[EARLY.values()] * 10):
            peer = bench.raw()
            with watch_closed():
                peer.send(data, connect_packet(name(), 5))
            assert drained(peer) == []
    assert bench.stat("subscriptions") == 0
    assert bench.stat("protocol_errors") == 10 * len(EARLY)


# ---------------------------------------------------------------------------------- topics and filters


@pytest.mark.parametrize("levels", [128, 65535])
@pytest.mark.parametrize("version", [4, 5])
def test_slashes(make: Make, version: int, levels: int) -> None:
    """65 535 slashes in a topic and in filters. Topics may be allowed to have as many levels; the tree takes no filter of more than 512."""
    bench = make(limits={"max_topic_levels": levels})
    longest = "/" * 65534
    with watching(bench, 64 * MB):
        for _ in range(20):
            peer = bench(version)
            codes = peer.subscribe_many([(longest, 1), ("#", 0), ("+" + longest[1:], 0)])
            assert [code >= 0x80 for code in codes] == [True, False, True]
            with watch_closed():
                peer.send(*[publish_packet(longest, b"x", version, qos=1, packet_id=i + 1) for i in range(20)])
            settled(peer)
            peer.close()
    bench.until("subscriptions", 0)
    eventually(lambda: bench.stat("tree_nodes") < 1000)


def test_ten_thousand_filters_that_all_match(make: Make) -> None:
    """One client with as many filters of `+` and names as it may have, then topics that are all new: each costs a walk over the tree."""
    bench = make()
    peer, publisher = bench(5), bench(5)
    names = [f"{letter}" for letter in "abcdefghijklmn"]
    filters = ["/".join("+" if bits >> i & 1 else level for i, level in enumerate(names)) for bits in range(1 << 14)]
    with watching(bench, 64 * MB):
        for start in range(0, len(filters), 1000):
            peer.subscribe_many([(one, 0) for one in filters[start : start + 1000]])
        assert bench.stat("subscriptions") == 10_000 + 4
        assert bench.stat("subscriptions_refused") == (1 << 14) - 10_000
        for start in range(0, TOPICS, TOPICS // 8):
            publisher.send(*[publish_packet("/".join([*names[:-1], f"n{i}"]), b"x", 5) for i in range(start, start + TOPICS // 8)])
            publisher.ping()  # on a slow machine all of them take longer than a packet is waited for
        publisher.publish("/".join(names), b"all", 1)
        got = {peer.message().payload for _ in range(1)}
        assert got <= {b"x", b"all"}
        peer.close()
    bench.until("subscriptions", 0)


def test_plus_explosion_from_many_sessions(make: Make) -> None:
    """Every combination of `+` and names over 10 levels, from 8 clients, and one topic after the other that meets half of them."""
    bench = make()
    names = list("abcdefghij")
    peers, publisher = [bench(4) for _ in range(8)], bench(4)
    with watching(bench, 64 * MB):
        for peer in peers:
            filters = [("/".join("+" if bits >> i & 1 else level for i, level in enumerate(names)), 0) for bits in range(1 << 10)]
            assert peer.subscribe_many(filters) == [0] * len(filters)
        for i in range(500):
            publisher.send(publish_packet("/".join([str(i), *names[1:]]), b"x"))
        publisher.ping()
        for peer in peers:
            assert [peer.message().payload for _ in range(500)] == [b"x"] * 500
    assert bench.stat("messages_sent") >= 4000
    assert bench(4).subscribe_many([("/".join("+" * 33), 0)]) == [0x80]


@pytest.mark.parametrize("version", [4, 5])
def test_good_filters_and_then_a_bad_one(make: Make, version: int) -> None:
    """A SUBSCRIBE that breaks the protocol in its last filter is refused whole: nothing of it is in force, nor in sessions that stay."""
    bench = make()
    good = [(f"good/{i}", 1) for i in range(500)]
    bad = [string(b"\xed\xa0\x80") + b"\0", string("a") + b"\x83", string("cut")[:3]]
    with watching(bench, 8 * MB):
        for tail in bad:
            client_id = name()
            peer = bench.session(version, client_id)
            body = b"\0\7" + b"\0" * (version == 5) + b"".join(string(one) + bytes([qos]) for one, qos in good) + tail
            peer.send(packet(0x82, body))
            drained(peer)
            back = bench.session(version, client_id)
            assert bench.stat("subscriptions") == 4  # the bystanders'
            back.publish("good/1", b"x", 1)
            back.ping()
            assert not back.aside
            back.close()
    mixed = bench(version).subscribe_many([*good[:3], ("a/#/b", 0), ("", 0), ("last", 2)])
    assert [code >= 0x80 for code in mixed] == [False] * 3 + [True] * 2 + [False]


# ---------------------------------------------------------------------------------- acknowledgements


@pytest.mark.parametrize("version", [4, 5])
def test_qos_2_that_is_never_released(make: Make, version: int) -> None:
    bench = make()
    told = 1024 if version == 5 else 16_384
    with watching(bench, 16 * MB):
        for _ in range(3):
            client_id = name()
            peer = bench.session(version, client_id)
            with watch_closed():
                for start in range(1, 65_000, 1000):
                    peer.send(*[publish_packet("t", b"", version, qos=2, packet_id=i) for i in range(start, start + 1000)])
            last = drained(peer)
            if version == 5 and last and last[-1].type == DISCONNECT:
                assert last[-1].reason == 0x93
            back = bench.session(version, client_id)
            back.ping()
            back.close()
    assert bench.stat("messages_received") <= 3 * told + 10_000
    assert bench.stat("protocol_errors") == 3


@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize("kind", [PUBACK, PUBREC, PUBREL, PUBCOMP])
def test_acknowledgements_of_unknown_ids(make: Make, version: int, kind: int) -> None:
    """All 65 535 of them, for nothing: answered where the standard has an answer, and that is all."""
    bench = make()
    peer = bench(version)
    with watching(bench, 24 * MB):
        for start in range(1, 65_536, 4095):
            peer.send(*[ack_packet(kind, i) for i in range(start, min(start + 4095, 65_536))])
            peer.ping()
            answers = [got.type for got in peer.aside]
            assert set(answers) == {PUBREC: {PUBREL}, PUBREL: {PUBCOMP}}.get(kind, set())
            peer.aside.clear()
    assert bench.stat("messages_inflight") == 0
    peer.ping()


# ---------------------------------------------------------------------------------- many clients


@pytest.mark.parametrize("version", [4, 5])
def test_take_over_storm(make: Make, version: int) -> None:
    """One client id, again and again: every loser's socket is really closed, and one session is left."""
    bench = make()
    with watching(bench, 16 * MB):
        peers = []
        for _ in range(400):
            peer = bench.raw(version)
            peer.send(connect_packet("same", version, clean=False, expiry=3600, will=Will("storm", b"x" * 100)))
            peers.append(peer)
        bench.until("takeovers", 399)
        bench.until("connections_open", 5)
        alive = [peer for peer in peers if settled(peer)]  # workers take what they accept in an order of their own
        assert len(alive) == 1
    bench.until("connections_open", 1)
    alive[0].ping()
    assert (bench.stat("sessions"), bench.stat("wills")) == (1, 1)


def test_will_storm(make: Make) -> None:
    """Hundreds of clients die at once, and each of their wills goes to hundreds of others."""
    bench = make()
    receivers = [bench(5) for _ in range(100)]
    for receiver in receivers:
        receiver.subscribe("last/#", 1)
    dying = [bench(5, will=Will(f"last/{i}", bytes(1000), qos=1)) for i in range(200)]
    with watching(bench, 64 * MB):
        for peer in dying:
            peer.reset()
        for receiver in receivers:
            assert len({receiver.message().topic for _ in range(200)}) == 200
    assert bench.stat("wills_published") == 200
    assert (bench.stat("wills"), bench.stat("will_bytes")) == (0, 0)


def test_session_flood(make: Make) -> None:
    """Sessions that are to live for ever: as many as there may be, and no longer than session_expiry."""
    bench = make(limits={"max_sessions": 300, "session_expiry": 3600})
    reasons: list[int] = []
    with watching(bench, 8 * MB):
        for _ in range(500):
            peer = bench.raw(5)
            reasons.append(peer.connect(name(), clean=False, expiry=0xFFFFFFFF).reason)
            peer.close()
        assert set(reasons) == {0, 0x97} and reasons.count(0) == 296
    bench.until("sessions", 296)
    bench.native.advance_clock(3601)
    bench.until("sessions", 0)


def test_retained_flood(make: Make) -> None:
    """New topics without end: as many are kept as may be, and who asks for all of them gets those in pieces."""
    bench = make(limits={"max_retained_messages": 2000, "max_retained_bytes": 4_000_000})
    publisher, reader = bench(5), bench(5)
    with watching(bench, 24 * MB):
        for start in range(0, 20_000, 1000):
            publisher.send(*[publish_packet(f"r/{i}", bytes(100), 5, retain=True) for i in range(start, start + 1000)])
            publisher.ping()
        assert bench.stat("retained") == 2000
        assert bench.stat("dropped_retained_limit") == 18_000
        reader.subscribe("r/#", 0)
        assert len({reader.message().topic for _ in range(2000)}) == 2000
        publisher.send(*[publish_packet(f"r/{i}", b"", 5, retain=True) for i in range(2000)])
        publisher.ping()
    assert (bench.stat("retained"), bench.stat("retained_bytes")) == (0, 0)


def test_shared_group_churn(make: Make) -> None:
    """Members come and go all the time, some without a word, while somebody publishes to them."""
    bench = make()
    publisher = bench(5)
    chance = random.Random(5)
    over = threading.Event()

    def publish() -> None:
        while not over.is_set():
            publisher.publish("g/t", b"x", 1)

    thread = threading.Thread(target=publish)
    with watching(bench, 16 * MB):
        thread.start()
        try:
            for i in range(300):
                peer = bench(5)
                peer.subscribe(f"$share/g{i % 3}/g/+", 1)
                if chance.random() < 0.3:
                    peer.unsubscribe(f"$share/g{i % 3}/g/+")
                if chance.random() < 0.5:
                    peer.reset()
                else:
                    peer.close()
        finally:
            over.set()
            thread.join()
    publisher.disconnect()
    bench.until("connections_open", 0)
    bench.until("group_backlog", 0)
    bench.until("messages_inflight", 0)
    assert bench.stat("subscriptions") == 0


def test_flood_of_a_publisher_that_never_reads(make: Make, unix: dict[str, Any]) -> None:
    """QoS 1 as fast as it goes, acknowledgements never read: what waits for it is bounded, and then it is let go."""
    bench = make(listeners=[{"url": "tcp://127.0.0.1:0"}, unix], limits={"max_output_bytes": 100_000})
    peer = bench(5, listener=1)
    part = publish_packet("flood", b"", 5, qos=1, packet_id=1) * 1000
    with watching(bench, 8 * MB), pytest.raises((PeerClosed, TimeoutError, ConnectionError)):
        for _ in range(2000):
            peer.send(part)
    bench.until("connections_open", 0)


# ---------------------------------------------------------------------------------- strings


ILL_FORMED = [b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe2\x82", b"a\x00b"]


def strings(version: int, bad: bytes) -> list[bytes]:
    """Every packet of a client with a UTF-8 string that is none, but for CONNECT."""
    found = [
        publish_packet(bad, b"", version),
        packet(0x82, b"\0\1" + b"\0" * (version == 5) + string(bad) + b"\0"),
        packet(0xA2, b"\0\1" + b"\0" * (version == 5) + string(bad)),
    ]
    if version == 5:
        pairs = [((USER_PROPERTY, (bad, b"v")),), ((USER_PROPERTY, (b"k", bad)),)]
        for props in pairs:
            found += [
                publish_packet("t", b"", 5, props=props),
                subscribe_packet([("t", 0)], 5, props=props),
                unsubscribe_packet(["t"], 5, props=props),
                ack_packet(PUBACK, 1, 0, props),
                ack_packet(PUBREC, 1, 0, props),
                ack_packet(PUBREL, 1, 0, props),
                ack_packet(PUBCOMP, 1, 0, props),
                disconnect_packet(0, props),
            ]
        found += [
            publish_packet("t", b"", 5, props=((0x08, bad),)),
            publish_packet("t", b"", 5, props=((0x03, bad),)),
            ack_packet(PUBACK, 1, 0, ((0x1F, bad),)),
            disconnect_packet(0, ((0x1F, bad),)),
        ]
    return found


@pytest.mark.parametrize("version", [4, 5])
def test_ill_formed_strings_everywhere(make: Make, version: int) -> None:
    """Each ends its sender with 0x81 (5.0), or closes it (3.x), and nobody else hears of it. [MQTT-1.5.4-1, MQTT-1.5.4-2]"""
    bench = make()
    count = 0
    with watching(bench, 4 * MB):
        for bad in ILL_FORMED:
            for data in strings(version, bad):
                peer = bench(version)
                peer.send(data)
                last = drained(peer)
                assert not last if version == 4 else last[-1].type == DISCONNECT and last[-1].reason in (0x81, 0x8F, 0x90), data.hex(" ")
                count += 1
            for options in ({"client_id": bad}, {"username": bad}, {"will": Will(bad)}):
                data = connect_packet(options.pop("client_id", name()), version, **options)  # type: ignore[arg-type]
                peer = bench.raw(version)
                peer.send(data)
                refused = drained(peer)
                assert all(got.type == CONNACK and got.reason >= 0x80 for got in refused)
                count += 1
    assert bench.stat("protocol_errors") == count
    assert bench.stat("subscriptions") == 0


# ---------------------------------------------------------------------------------- what a peer can put into tables and lines


def test_client_ids_and_topics_that_would_collide(make: Make) -> None:
    """Thousands of names that collide under a usual hash: ours is seeded for each process, so that they spread."""
    bench = make()
    names = ["".join(pair) for pair in itertools.islice(itertools.product(("Aa", "BB"), repeat=12), 3000)]  # equal under h = 31 h + c
    peer = bench(5)
    with watching(bench, 32 * MB):
        for start in range(0, 3000, 500):
            assert peer.subscribe_many([(one, 0) for one in names[start : start + 500]]) == [0] * 500
        for start in range(0, 3000, 300):
            peer.send(*[publish_packet(one, b"", 5, retain=True) for one in names[start : start + 300]])
            assert [peer.message().topic for _ in range(300)] == names[start : start + 300]
        for one in names[:300]:
            bench.raw(5).connect(one)
    assert bench.stat("sessions") >= 300


FIELD = re.compile(r' (\w+)=("(?:[^"\\]|\\.)*"(?:\.\.\.)?|[^" ]*)')
FIELDS = re.compile(rf"(?:{FIELD.pattern})*")


@pytest.mark.parametrize(
    "attack",
    ["x\n2026-01-01 INFO connected client_id=root", "x\x1b[2J\x1b]0;owned\x07", "x\r\nx", 'a" reason=0x00 "b', "x\x85\u2028\u202ey"],
)
def test_log_injection(make: Make, attack: str) -> None:
    """Neither a client id nor a topic can end a line, forge a field, or steer a terminal."""
    bench = make(limits={"max_retained_messages": 1})
    peer = bench(5, attack)
    peer.publish("first", b"x", 1, retain=True)
    peer.publish(attack, b"x", 1, retain=True)
    peer.disconnect()
    bench.events.wait("disconnected")
    bench.events.wait("retained limit")
    for event, fields in bench.events.seen:
        told = {key: value for key, value in fields.items() if key != "level"}
        line = logs.line(event, told)
        assert line.isprintable()
        assert FIELDS.fullmatch(line.removeprefix(event)), line
        assert [key for key, _ in FIELD.findall(line.removeprefix(event))] == [key for key, value in told.items() if value != ""]
