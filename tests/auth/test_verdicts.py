"""Verdicts that worker threads remember, the key that they are under, and connections that end with their authentication."""

from __future__ import annotations

import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mqttc.auth import Request, Verdict
from mqttc.auth.grant import Grant
from tests.auth.conftest import ALICE, Make, attempt
from tests.broker.conftest import Bench, Events, eventually, name
from tests.conftest import WORKERS
from tests.face.base_siphash import sip128
from tests.rawclient import AUTH, AUTH_DATA, AUTH_METHOD, CONNACK, DISCONNECT, Will, connect_packet, packet, properties

KEY = bytes(range(16))


# ---------------------------------------------------------------------------------- the hash


def test_siphash_of_nothing() -> None:
    """The first of the vectors that its authors publish."""
    assert sip128(KEY, []).hex() == "a3817f04ba25a8e66df67214c7550293"


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl program")
def test_siphash_by_another_implementation() -> None:
    noise = random.Random(1)
    for size in (1, 7, 8, 9, 15, 16, 17, 63, 255, 256, 1000):
        data, key = noise.randbytes(size), noise.randbytes(16)
        command = ["openssl", "mac", "-binary", "-macopt", f"hexkey:{key.hex()}", "-macopt", "size:16", "SIPHASH"]
        wanted = subprocess.run(command, input=data, capture_output=True, check=True).stdout
        cuts = sorted(noise.randrange(size + 1) for _ in range(3))
        parts = [data[a:b] for a, b in zip([0, *cuts], [*cuts, size], strict=True)]
        assert sip128(key, parts) == wanted, size


# ---------------------------------------------------------------------------------- what is remembered


@pytest.fixture
def one(make: Make) -> Any:
    """Brokers with one worker, so that what it remembers is all that is remembered."""
    return lambda auth, **keys: make(auth, workers=1, **keys)


def test_who_comes_again_is_not_asked_about(one: Make, users: Path) -> None:
    bench = one({"password_file": str(users)})
    for _ in range(5):
        assert attempt(bench, "alice", ALICE).reason == 0
        assert attempt(bench, "alice", b"wrong").reason == 0x86
    assert bench.stat("gate_questions") == 2
    assert (bench.stat("verdicts_kept"), bench.stat("verdicts_reused")) == (2, 8)
    for version in (3, 4):
        assert attempt(bench, "alice", ALICE, version).reason == 0
        assert attempt(bench, "alice", ALICE, version).reason == 0
    assert bench.stat("gate_questions") == 4


def test_everything_counts(one: Make, users: Path) -> None:
    """No two CONNECTs that differ in what a verdict depends on share one; moving a byte from name to password changes it."""
    bench = one(
        {"password_file": str(users), "failures": {"per_address": 0, "per_user": 0}},
        listeners=[{"url": "tcp://127.0.0.1:0"}, {"url": "tcp://127.0.0.1:0"}],
    )
    for username, password in (("alice", ALICE), ("alicec", ALICE[1:]), ("", b"alice" + ALICE), ("alice", None), (None, ALICE)):
        attempt(bench, username, password)
    bench.raw(5, listener=1).connect(name(), username="alice", password=ALICE)
    assert (bench.stat("gate_questions"), bench.stat("verdicts_reused")) == (6, 0)


def test_they_expire(one: Make, users: Path) -> None:
    bench = one({"password_file": str(users), "cache": {"ttl": 50.0, "negative_ttl": 3.0}})
    for username in ("alice", "eve"):
        attempt(bench, username, ALICE)
    bench.native.advance_clock(4)
    for username in ("alice", "eve"):
        attempt(bench, username, ALICE)
    assert bench.stat("verdicts_reused") == 1
    bench.native.advance_clock(50)
    attempt(bench, "alice", ALICE)
    assert (bench.stat("verdicts_reused"), bench.stat("gate_questions")) == (1, 4)


def test_none_are_kept_if_so_configured(one: Make, users: Path) -> None:
    for auth, limits in (({"cache": {"ttl": 0.0, "negative_ttl": 0.0}}, {}), ({}, {"verdict_cache_entries": 0})):
        bench = one({"password_file": str(users), **auth}, limits=limits)
        for _ in range(3):
            assert attempt(bench, "alice", ALICE).reason == 0
        assert (bench.stat("gate_questions"), bench.stat("verdicts_kept")) == (3, 0)


def test_the_table_is_bounded(one: Make, tmp_path: Path, users: Path) -> None:
    """Eight entries hold eight verdicts; those that are pushed out are asked for again, and nothing else happens."""
    bench = one({"allow": ["*"]}, limits={"verdict_cache_entries": 8})
    for _ in range(2):
        for number in range(100):
            assert attempt(bench, f"u{number}", b"x").reason == 0
    assert bench.stat("gate_questions") > 150
    assert bench.stat("verdicts_reused") <= 50


def test_lists_are_remembered_until_they_change(one: Make) -> None:
    bench = one({"allow": ["a*"], "deny": ["b"]})
    for _ in range(3):
        assert attempt(bench, "alice", b"x").reason == 0
    assert bench.stat("gate_questions") == 1
    config = {"listeners": [{"url": "tcp://127.0.0.1:0"}], "workers": 1}
    bench.native.reload({**config, "auth": {"anonymous": False, "allow": ["x"]}})
    assert attempt(bench, "alice", b"x").reason == 0x87


# ---------------------------------------------------------------------------------- an authenticator of a program's own


class Lasting:
    """Admits for `lasts` seconds; method M: for as many seconds as its data says."""

    def __init__(self, **keys: Any) -> None:
        self.keys = keys
        self.asked: list[Request] = []

    async def authenticate(self, request: Request) -> Verdict:
        self.asked.append(request)
        if request.auth_method is not None:
            data = (request.auth_data or b"").decode()
            return Verdict(0x18, b"?") if not data else Verdict(0, username=f"user of {data}", lasts=float(data))
        return Verdict(0, **self.keys)


@pytest.fixture
def lasting(events: Events, nothing_left: None) -> Iterator[Any]:
    made: list[Bench] = []

    def start(workers: int = WORKERS, **keys: Any) -> tuple[Bench, Lasting]:
        judge = Lasting(**keys)
        bench = Bench({"listeners": [{"url": "tcp://127.0.0.1:0"}], "workers": workers}, events, judge)
        made.append(bench)
        return bench, judge

    yield start
    for bench in made:
        bench.close()


def test_a_program_says_what_may_be_kept(lasting: Any) -> None:
    """By `keep`, for the same client id; a verdict with a grant is asked for each time."""
    bench, judge = lasting(1, keep=60.0)
    for client_id in ("x", "x", "y", "x"):
        attempt(bench, "a", b"x", client_id=client_id)
    assert [request.client_id for request in judge.asked] == ["x", "y"]
    judge.keys = {"keep": 60.0, "grant": Grant()}
    for _ in range(3):
        attempt(bench, "b", b"x", client_id="x")
    assert len(judge.asked) == 5


@pytest.mark.parametrize("keep_alive", [0, 10, 60000])
@pytest.mark.parametrize("workers", [1, 4])
def test_a_connection_ends_with_its_authentication(lasting: Any, workers: int, keep_alive: int) -> None:
    """5.0: DISCONNECT 0xA0; 3.x: a bare close; the will goes out; the session stays."""
    bench, judge = lasting(workers, lasts=100.0)
    watcher = bench.raw(5)
    judge.keys = {}
    watcher.connect(name(), username="w", password=b"")
    judge.keys = {"lasts": 100.0}
    watcher.subscribe("will/#", 1)
    peers = [bench.raw(version) for version in (3, 4, 5) * 3]
    for number, peer in enumerate(peers):
        will = Will(f"will/{number}")
        assert peer.connect(f"e{number}", username="a", password=b"", will=will, keep_alive=keep_alive).reason == 0
    for _ in range(11):
        bench.native.advance_clock(9)
        for peer in peers:
            peer.ping()
    assert bench.stat("auth_expired") == 0
    bench.native.advance_clock(2)
    for peer in peers:
        ends = [(one.type, one.reason) for one in peer.expect_close()]
        assert ends == ([(DISCONNECT, 0xA0)] if peer.version == 5 else [])
    assert {watcher.message().topic for _ in peers} == {f"will/{number}" for number in range(len(peers))}
    assert bench.stat("auth_expired") == len(peers)
    assert bench.events.wait("authentication expired", client_id="e0")["reason"] == "0xa0"
    watcher.ping()


def auth_packet(reason: int, data: bytes) -> bytes:
    return packet(AUTH << 4, bytes([reason]) + properties([(AUTH_METHOD, "M"), (AUTH_DATA, data)]))


@pytest.mark.parametrize("workers", [1, 4])
def test_a_reauthentication_moves_the_end(lasting: Any, workers: int) -> None:
    bench, judge = lasting(workers)
    for client_id in (f"r{number}" for number in range(4)):
        peer = bench.raw(5)
        peer.send(connect_packet(client_id, 5, props=((AUTH_METHOD, "M"), (AUTH_DATA, b"100"))))
        peer.expect(CONNACK, reason=0)
        bench.native.advance_clock(90)
        peer.send(auth_packet(0x19, b"300"))
        peer.expect(AUTH, reason=0)
        again = judge.asked[-1]
        assert again.is_reauthentication and (again.client_id, again.username) == (client_id, "user of 100")
        bench.native.advance_clock(250)
        peer.ping()
        peer.send(auth_packet(0x19, b"1000"))
        peer.expect(AUTH, reason=0)
        assert judge.asked[-1].username == "user of 300"
        bench.native.advance_clock(999)
        peer.ping()
        bench.native.advance_clock(2)
        assert [one.reason for one in peer.expect_close()] == [0xA0]


def test_codes_that_disconnect_does_not_have(events: Events, nothing_left: None) -> None:
    """A re-authentication is refused by DISCONNECT, which has no 0x86 and no 0x88 (MQTT 5.0, section 3.14.2.1)."""

    class Refusing:
        async def authenticate(self, request: Request) -> Verdict:
            return Verdict(int(request.auth_data or b"0"))

    bench = Bench({"listeners": [{"url": "tcp://127.0.0.1:0"}]}, events, Refusing())
    try:
        for code, wanted in ((0x86, 0x87), (0x87, 0x87), (0x88, 0x89), (0x89, 0x89), (0x8C, 0x8C)):
            peer = bench.raw(5)
            peer.send(connect_packet(name(), 5, props=((AUTH_METHOD, "M"), (AUTH_DATA, b"0"))))
            peer.expect(CONNACK, reason=0)
            peer.send(auth_packet(0x19, b"%d" % code))
            assert [(one.type, one.reason) for one in peer.expect_close()] == [(DISCONNECT, wanted)]
        bench.until("connections_open", 0)
    finally:
        bench.close()


def test_who_leaves_while_the_decision_is_open(one: Make, users: Path) -> None:
    """Nothing is left of it, and the verdict is not lost on others."""
    bench = one({"password_file": str(users), "delay": 0.2})
    for _ in range(3):
        peer = bench.raw(5)
        peer.send(connect_packet(name(), 5, username="alice", password=ALICE))
        peer.reset()
    eventually(lambda: bench.stat("connections_open") == 0)
    assert attempt(bench, "alice", ALICE).reason == 0
