"""Password hashes, and the pool that checks them."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from base64 import b64encode

import pytest
import scramp.core

from mqttc.auth.hashing import Busy, Pool, make_dummy, make_hash, make_scram, parse_hash
from mqttc.auth.saslprep import saslprep
from mqttc.config_auth import Hashing

SALT = b"0123456789ab"


def text(data: bytes) -> str:
    return b64encode(data).decode()


PASSWORD = "pässword".encode()
HASHES = {
    "argon2": make_hash(PASSWORD),
    "scram": make_scram(PASSWORD),
    "pbkdf2": f"$7$101${text(SALT)}${text(hashlib.pbkdf2_hmac('sha512', PASSWORD, SALT, 101, 64))}",
    "sha512": f"$6${text(SALT)}${text(hashlib.sha512(PASSWORD + SALT).digest())}",
}


@pytest.mark.parametrize("kind", HASHES)
def test_formats(kind: str) -> None:
    hashed = parse_hash(HASHES[kind])
    assert hashed.verify(PASSWORD)
    for wrong in (b"", PASSWORD[:-1], PASSWORD + b"x", b"\xff\xfe", b"\0" + PASSWORD):
        assert not hashed.verify(wrong)
    assert HASHES[kind] not in repr(hashed) and text(SALT) not in repr(hashed)


def test_hashes_differ_each_time() -> None:
    assert make_hash(PASSWORD) != HASHES["argon2"]
    assert make_scram(PASSWORD) != HASHES["scram"]


def test_scram_by_another_implementation() -> None:
    scram = parse_hash(HASHES["scram"]).scram
    assert scram is not None
    salt, stored, server, _ = scramp.ScramMechanism("SCRAM-SHA-256").make_auth_info("pässword", scram.iterations, scram.salt)[:4]
    assert (salt, stored, server) == (scram.salt, scram.stored_key, scram.server_key)


@pytest.mark.parametrize(
    "wrong",
    [
        *("", "x", "$6$", "$1$abc$def", "plain", "$argon2id$v=16$m=8,t=1,p=1$c2FsdHNhbHRzYWx0$c2FsdHNhbHRzYWx0c2FsdA", "$7$1$AAAA$AAAA"),
        *("$7$0$AAAA$" + text(bytes(64)), "$6$A$" + text(bytes(64)), "SCRAM-SHA-256$0:AAAA$" + text(bytes(32)) + ":" + text(bytes(32))),
        HASHES["sha512"] + "\n",
        "$argon2id$v=19$m=1\u0669456,t=1,p=1$c2FsdHNhbHRzYWx0$c2FsdHNhbHRzYWx0c2FsdA",  # a digit, but not of ours
    ],
)
def test_what_is_no_hash(wrong: str) -> None:
    with pytest.raises(ValueError, match=r"hash") as caught:
        parse_hash(wrong)
    assert len(wrong) < 4 or wrong not in str(caught.value)


@pytest.mark.parametrize("kind", HASHES)
def test_a_dummy_costs_the_same_and_fits_nothing(kind: str) -> None:
    hashed = parse_hash(HASHES[kind])
    dummy = make_dummy(hashed.kind)
    assert (dummy.kind, dummy.memory_kib) == (hashed.kind, hashed.memory_kib)
    assert not dummy.verify(PASSWORD)
    assert not dummy.verify(b"")


def test_a_dummy_without_an_example_is_as_a_new_hash() -> None:
    assert make_dummy(None).kind == parse_hash(HASHES["argon2"]).kind


@pytest.mark.parametrize(
    ("given", "prepared"),
    [("I\u00adX", "IX"), ("user", "user"), ("USER", "USER"), ("\u00aa", "a"), ("\u2168", "IX"), ("a\u00a0b", "a b"), ("", "")],
)
def test_saslprep(given: str, prepared: str) -> None:
    """RFC 4013 section 3."""
    assert saslprep(given) == prepared


@pytest.mark.parametrize("wrong", ["\u0007", "\u0627\u0031", "a\u0627", "\ue000", "\ud800", "\U000e0001"])
def test_saslprep_refuses(wrong: str) -> None:
    with pytest.raises(ValueError, match="SASLprep"):
        saslprep(wrong)


# ---------------------------------------------------------------------------------- the pool


def pool(**keys: int) -> Pool:
    return Pool.of(Hashing(**{"threads": 4, "memory": 1024 * 1024 * 100, **keys}))


def test_memory_bounds_what_runs() -> None:
    """Never more at the same time than fits, in the order in which they came; the bound is used."""
    most, running, lock = [0], [0], threading.Lock()
    order: list[int] = []
    together = threading.Barrier(3)

    def work(number: int, kib: int) -> None:
        with lock:
            order.append(number)
            running[0] += kib
            most[0] = max(most[0], running[0])
        if number < 3:
            together.wait(10)
        with lock:
            running[0] -= kib

    async def run() -> None:
        made = pool()
        await asyncio.gather(*(made.run(lambda i=i: work(i, 30 * 1024), 30 * 1024) for i in range(50)))
        assert (made.waiting, made.most_kib) == (0, 90 * 1024)
        await made.close()

    asyncio.run(run())
    assert most[0] <= 90 * 1024
    assert sorted(order) == list(range(50))
    assert sorted(order[:3]) == [0, 1, 2]


def test_what_waits_is_bounded() -> None:
    async def run() -> None:
        made = pool(threads=1, waiting=2)
        go = threading.Event()
        tasks = [asyncio.ensure_future(made.run(lambda: go.wait(10))) for _ in range(3)]
        await asyncio.sleep(0)
        assert made.waiting == 2
        with pytest.raises(Busy):
            await made.run(lambda: None)
        assert made.refused == 1
        go.set()
        assert await asyncio.gather(*tasks) == [True] * 3
        await made.close()

    asyncio.run(run())


def test_who_gives_up_gives_nothing_away() -> None:
    """Cancelled while it waits: never begun. Cancelled while it runs: its room is free when it has ended."""

    async def run() -> None:
        made = pool(threads=1)
        go, begun = threading.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()
        ran: list[str] = []

        def long() -> None:
            loop.call_soon_threadsafe(begun.set)
            go.wait(10)

        first = asyncio.ensure_future(made.run(long))
        second = asyncio.ensure_future(made.run(lambda: ran.append("second")))
        third = asyncio.ensure_future(made.run(lambda: ran.append("third")))
        await begun.wait()
        first.cancel()
        second.cancel()
        await asyncio.gather(first, second, return_exceptions=True)
        assert ran == [] and made.waiting == 1
        go.set()
        await third
        assert ran == ["third"] and made.waiting == 0
        await made.close()

    asyncio.run(run())


def test_a_failure_is_told_and_its_room_is_free() -> None:
    async def run() -> None:
        made = pool(threads=1)
        for _ in range(3):
            with pytest.raises(ZeroDivisionError):
                await made.run(lambda: 1 // 0, 1024)
        await made.close()

    asyncio.run(run())
