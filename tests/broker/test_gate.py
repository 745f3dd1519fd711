"""Questions to Python: parked clients, deadlines, late answers, enhanced authentication, and other ways to be turned away."""

from __future__ import annotations

import asyncio
import threading

import pytest

from mqttc.auth import Request, Verdict

from ..rawclient import (
    AUTH,
    AUTH_DATA,
    AUTH_METHOD,
    CONNACK,
    DISCONNECT,
    PING,
    PINGRESP,
    SERVER_REFERENCE,
    SUBACK,
    Peer,
    connect_packet,
    packet,
    properties,
    publish_packet,
    subscribe_packet,
)
from .conftest import Bench, Make, eventually, name


class Judge:
    """User "slow" waits for `go`, "never" for ever, "broken" fails; method M takes as many steps as its data says."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.asked: list[str] = []
        self.cancelled = 0

    async def authenticate(self, request: Request) -> Verdict:
        who = request.username or (request.auth_data or b"").decode()
        self.asked.append(who)
        if who == "slow":
            await asyncio.to_thread(self.go.wait, 20)
        elif who == "never":
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
        elif who == "broken":
            raise ValueError("no")
        if request.auth_method is None:
            return Verdict(0x86 if who == "bad" else 0)
        if request.auth_method != "M":
            return Verdict(0x8C)
        if who.isdigit() and int(who):
            return Verdict(0x18, b"%d" % (int(who) - 1))
        return Verdict(0x87 if who == "bad" else 0, b"done")


def auth_packet(reason: int, data: bytes, method: str = "M") -> bytes:
    return packet(AUTH << 4, bytes([reason]) + properties([(AUTH_METHOD, method), (AUTH_DATA, data)]))


def enhanced(bench: Bench, data: bytes, client_id: str | None = None, **options: int) -> Peer:
    peer = bench.raw(5)
    peer.send(connect_packet(client_id or name(), 5, props=((AUTH_METHOD, "M"), (AUTH_DATA, data)), **options))
    return peer


@pytest.fixture
def judge() -> Judge:
    return Judge()


# ---------------------------------------------------------------------------------- deadlines


@pytest.mark.parametrize("version", [3, 4, 5])
def test_auth_timeout(make: Make, judge: Judge, version: int) -> None:
    """A question that nobody answers ends in a refusal; the answer that comes late is ignored."""
    bench = make(authenticator=judge, limits={"auth_timeout": 30})
    peer = bench.raw(version)
    peer.send(connect_packet("c", version, username="slow", password=b"x"))
    eventually(lambda: judge.asked == ["slow"])
    bench.native.advance_clock(29)
    bench(version).ping()
    assert bench.stat("gate_timeouts") == 0
    bench.native.advance_clock(2)
    refused = peer.expect(CONNACK)
    assert refused.reason == (0x87 if version == 5 else 5)
    peer.expect_close()
    assert bench.stat("gate_timeouts") == 1
    judge.go.set()  # now it says yes
    again = bench.raw(version)  # in the slot, maybe, of the one that was refused
    assert again.connect("c", username="fine", password=b"x").reason == 0
    again.ping()
    assert bench.stat("connects_accepted") == 2
    assert bench.stat("sessions") == 2


def test_the_authenticator_is_cancelled_at_its_deadline(make: Make, judge: Judge) -> None:
    bench = make(authenticator=judge, limits={"auth_timeout": 0.05})
    assert bench.raw(5).connect("c", username="never").reason == 0x87
    eventually(lambda: judge.cancelled == 1)
    assert bench.raw(5).connect("c", username="broken").reason == 0x88
    assert bench.raw(4).connect("c", username="broken").reason == 3
    bench.events.wait("authenticator_failed", client_id="c")


def test_an_enhanced_authentication_that_is_not_continued(make: Make, judge: Judge) -> None:
    bench = make(authenticator=judge, limits={"auth_timeout": 30})
    peer = enhanced(bench, b"3")
    peer.expect(AUTH, reason=0x18)
    bench.native.advance_clock(31)
    assert peer.expect(CONNACK).reason == 0x87
    peer.expect_close()
    assert bench.stat("connect_timeouts") == 1


def test_reauthentication_that_is_not_answered(make: Make, judge: Judge) -> None:
    """The connection ends when the time is up, and goes on undisturbed until then."""
    bench = make(authenticator=judge, limits={"auth_timeout": 30})
    for keep_alive in (0, 1000):
        peer = enhanced(bench, b"0", keep_alive=keep_alive)
        peer.expect(CONNACK, reason=0)
        peer.send(auth_packet(0x19, b"slow"))
        eventually(lambda: "slow" in judge.asked)
        bench.native.advance_clock(29)
        peer.publish("t", b"x", 1)
        bench.native.advance_clock(2)
        assert peer.expect(DISCONNECT).reason == 0x87
        peer.expect_close()
        judge.asked.clear()
    assert bench.stat("gate_timeouts") == 2
    judge.go.set()
    bench(5).ping()


def test_one_question_at_a_time(make: Make, judge: Judge) -> None:
    """A client cannot pile up questions: AUTH before the last one was answered is an error."""
    bench = make(authenticator=judge)
    peer = enhanced(bench, b"0")
    peer.expect(CONNACK, reason=0)
    peer.send(*(auth_packet(0x19, b"slow") for _ in range(100)))
    assert peer.expect_close()[-1].reason == 0x82
    assert bench.stat("gate_questions") == 2
    judge.go.set()


# ---------------------------------------------------------------------------------- parked clients


def test_what_follows_a_parked_connect_is_kept(make: Make, judge: Judge) -> None:
    bench = make(authenticator=judge, workers=4)
    peers = [bench.raw(v) for v in (3, 4, 5) * 4]
    for i, peer in enumerate(peers):
        peer.send(
            connect_packet(f"p{i}", peer.version, username="slow", password=b"x"),
            subscribe_packet([(f"t/{i}", 1)], peer.version, packet_id=5),
            publish_packet(f"t/{i}", b"mine", peer.version, qos=1, packet_id=6),
            PING,
        )
    eventually(lambda: len(judge.asked) == len(peers))
    bench().ping()
    assert bench.stat("packets_received_subscribe") == 0
    judge.go.set()
    for i, peer in enumerate(peers):
        peer.expect(CONNACK, reason=0)
        peer.expect(SUBACK, packet_id=5)
        kinds = sorted(peer.recv().type for _ in range(3))
        assert kinds == [3, 4, PINGRESP], i


@pytest.mark.parametrize("how", ["reset", "close"])
def test_a_parked_client_that_goes_away_costs_nothing(make: Make, judge: Judge, how: str) -> None:
    """The connection is given up at once, nothing spins, and the answer finds nobody."""
    bench = make(authenticator=judge)
    idle = bench()
    for _ in range(10):
        peer = bench.raw(5)
        peer.send(connect_packet(name(), 5, username="slow"), PING)
        eventually(lambda: bench.stat("gate_questions") == len(judge.asked))
        getattr(peer, how)()
    if how == "reset":
        bench.until("connections_open", 1)
    idle.ping()
    before = bench.stat("turns")
    for _ in range(20):
        idle.ping()
    assert bench.stat("turns") - before < 200
    judge.go.set()
    bench.until("connections_open", 1)
    assert bench.stat("sessions") <= 11


def test_half_closed_while_parked_is_still_answered(make: Make, judge: Judge) -> None:
    import socket

    bench = make(authenticator=judge)
    peer = bench.raw(4)
    peer.send(connect_packet("c", 4, username="slow", password=b""), publish_packet("t", b"x", qos=1))
    peer.socket.shutdown(socket.SHUT_WR)
    eventually(lambda: judge.asked == ["slow"])
    idle = bench()
    before = bench.stat("turns")
    for _ in range(20):
        idle.ping()
    assert bench.stat("turns") - before < 200
    judge.go.set()
    assert [p.type for p in peer.expect_close()] == [CONNACK, 4]


# ---------------------------------------------------------------------------------- enhanced authentication


@pytest.mark.parametrize("workers", [1, 4])
def test_enhanced_authentication(make: Make, judge: Judge, workers: int) -> None:
    """As many steps as the authenticator wants; then the same again on the living connection, while messages flow."""
    bench = make(authenticator=judge, workers=workers)
    for steps in (0, 1, 5):
        peer = enhanced(bench, b"%d" % steps)
        for left in reversed(range(steps)):
            got = peer.expect(AUTH, reason=0x18)
            assert (got.prop(AUTH_METHOD), got.prop(AUTH_DATA)) == ("M", b"%d" % left)
            peer.send(auth_packet(0x18, got.prop(AUTH_DATA)))
        got = peer.expect(CONNACK, reason=0)
        assert (got.prop(AUTH_METHOD), got.prop(AUTH_DATA)) == ("M", b"done")
        peer.send(auth_packet(0x19, b"%d" % steps))
        for _ in range(steps):
            got = peer.await_packet(AUTH)
            assert got.reason == 0x18
            peer.publish("t", b"x", 1)
            peer.send(auth_packet(0x18, got.prop(AUTH_DATA)))
        got = peer.await_packet(AUTH)
        assert (got.reason, got.prop(AUTH_DATA)) == (0, b"done")
        peer.send(auth_packet(0x19, b"bad"))
        assert peer.expect(DISCONNECT).reason == 0x87
        peer.expect_close()


def test_refused_authentications(make: Make, judge: Judge) -> None:
    bench = make(authenticator=judge)
    peer = enhanced(bench, b"1")
    peer.expect(AUTH)
    peer.send(auth_packet(0x18, b"bad"))
    assert peer.expect(CONNACK).reason == 0x87
    peer.expect_close()
    other = bench.raw(5)
    assert other.connect("c", props=((AUTH_METHOD, "other"),)).reason == 0x8C
    mixed = enhanced(bench, b"1")
    mixed.expect(AUTH)
    mixed.send(auth_packet(0x18, b"0", "other"))
    assert mixed.expect(CONNACK).reason == 0x82
    plain = bench(5)
    plain.send(auth_packet(0x19, b"0"))
    assert plain.expect(DISCONNECT).reason == 0x82
    assert bench.stat("sessions") <= 1


def test_without_an_authenticator_methods_are_unknown(make: Make) -> None:
    bench = make()
    assert enhanced(bench, b"0").expect(CONNACK).reason == 0x8C


# ---------------------------------------------------------------------------------- elsewhere


@pytest.mark.parametrize("version", [3, 4, 5])
def test_server_redirection(make: Make, version: int) -> None:
    bench = make(listeners=[{"url": "tcp://127.0.0.1:0", "server_reference": "other.example:1883"}, {"url": "tcp://127.0.0.1:0"}])
    peer = bench.raw(version)
    got = peer.connect("c")
    assert got.reason == (0x9C if version == 5 else 3)
    if version == 5:
        assert got.prop(SERVER_REFERENCE) == "other.example:1883"
    peer.expect_close()
    bench(version, listener=1).ping()
    assert (bench.stat("connects_refused"), bench.stat("sessions")) == (1, 1)


def test_stop_with_open_questions(make: Make, judge: Judge) -> None:
    """Parked clients are told that the server is not available; the answers find nobody."""
    bench = make(authenticator=judge)
    peers = [bench.raw(5) for _ in range(20)]
    for peer in peers[:10]:
        peer.send(connect_packet(name(), 5, username="never"))
    for peer in peers[10:]:
        peer.send(connect_packet(name(), 5, props=((AUTH_METHOD, "M"), (AUTH_DATA, b"1"))))
        peer.expect(AUTH)
    eventually(lambda: len(judge.asked) == 20)
    assert bench.native.stop()
    for peer in peers:
        assert [(p.type, p.reason) for p in peer.expect_close()] == [(CONNACK, 0x88)]
    assert judge.cancelled == 10
