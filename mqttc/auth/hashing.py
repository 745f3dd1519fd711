"""Password hashes: the formats that are understood, and a pool that bounds what checking them may take.

- ``$argon2id$…``: argon2id (RFC 9106) in the PHC string format, made by ``mqttc-broker passwd``;
- ``$7$iterations$salt$hash``: PBKDF2 with SHA-512, base 64, and ``$6$salt$hash``: SHA-512 of password and salt, as
  ``mosquitto_passwd`` makes them;
- ``SCRAM-SHA-256$iterations:salt$stored key:server key``: what SCRAM (RFC 5802) needs, as PostgreSQL writes it.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import hashlib
import hmac
import os
import re
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final, TypeVar

from mqttc.config_auth import Hashing

ARGON2_MEMORY_KIB: Final = 19_456
ARGON2_TIME: Final = 2
ARGON2_LANES: Final = 1
"""Cost of new hashes: the smallest that OWASP's password storage cheat sheet recommends; brokers check many at a time."""
MAXIMUM_ITERATIONS: Final = 10_000_000
MAXIMUM_ARGON2_TIME: Final = 1000
SCRAM_ITERATIONS: Final = 4096
_SALT_BYTES: Final = 16
_ARGON2 = re.compile(r"(?a)\$argon2(id|i|d)\$v=19\$m=(\d{1,10}),t=(\d{1,10}),p=(\d{1,8})\$[A-Za-z0-9+/]{11,200}\$[A-Za-z0-9+/]{16,200}")
_PBKDF2 = re.compile(r"(?a)\$7\$(\d{1,10})\$([A-Za-z0-9+/=]{1,200})\$([A-Za-z0-9+/=]{1,200})")
_SHA512 = re.compile(r"\$6\$([A-Za-z0-9+/=]{1,200})\$([A-Za-z0-9+/=]{1,200})")
_SCRAM = re.compile(r"(?a)SCRAM-SHA-256\$(\d{1,10}):([A-Za-z0-9+/=]{1,200})\$([A-Za-z0-9+/=]{44}):([A-Za-z0-9+/=]{44})")


@dataclass(frozen=True, slots=True)
class Scram:
    """A SCRAM verifier."""

    iterations: int
    salt: bytes
    stored_key: bytes = field(repr=False)
    server_key: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Hash:
    """A hash that has been read. ``kind`` names its format and cost without its secret, so that a dummy can be made like it."""

    kind: tuple[str | int, ...]
    text: str = field(repr=False)
    memory_kib: int = 0
    salt: bytes = field(default=b"", repr=False)
    value: bytes = field(default=b"", repr=False)
    scram: Scram | None = None

    def verify(self, password: bytes) -> bool:
        """Takes its time; in constant time as to where a wrong one differs."""
        if self.kind[0] == "argon2":
            from argon2.exceptions import VerificationError
            from argon2.low_level import Type, verify_secret

            try:
                return verify_secret(self.text.encode("ascii"), password, Type[str(self.kind[1]).upper()])
            except VerificationError:
                return False
        if self.kind[0] == "sha512":
            return hmac.compare_digest(hashlib.sha512(password + self.salt).digest(), self.value)
        if self.scram is not None:
            made = scram_verifier(password, self.scram.salt, self.scram.iterations)
            return made is not None and hmac.compare_digest(made.stored_key, self.scram.stored_key)
        return hmac.compare_digest(hashlib.pbkdf2_hmac("sha512", password, self.salt, int(self.kind[1]), len(self.value)), self.value)


def parse_hash(text: str) -> Hash:
    """``ValueError`` says what is wrong, without the hash."""
    try:
        return _parse(text)
    except binascii.Error:
        raise ValueError("the hash is not base 64") from None


def _parse(text: str) -> Hash:
    if match := _ARGON2.fullmatch(text):
        memory, time, lanes = int(match[2]), int(match[3]), int(match[4])
        if not (1 <= time <= MAXIMUM_ARGON2_TIME and 1 <= lanes <= 64 and 8 * lanes <= memory <= 2**26):
            raise ValueError("the cost of the argon2 hash is out of range")
        return Hash(("argon2", match[1], memory, time, lanes), text, memory)
    if match := _PBKDF2.fullmatch(text):
        iterations = _iterations(match[1])
        value = _decode(match[3])
        if len(value) < 16:
            raise ValueError("the hash is too short")
        return Hash(("pbkdf2", iterations, len(value)), text, 0, _decode(match[2]), value)
    if match := _SHA512.fullmatch(text):
        value = _decode(match[2])
        if len(value) != hashlib.sha512().digest_size:
            raise ValueError("the hash has not the length of SHA-512")
        return Hash(("sha512",), text, 0, _decode(match[1]), value)
    if match := _SCRAM.fullmatch(text):
        iterations = _iterations(match[1])
        scram = Scram(iterations, _decode(match[2]), _decode(match[3]), _decode(match[4]))
        return Hash(("scram", iterations), text, scram=scram)
    raise ValueError("the hash has no format that is known here ($argon2id$, $7$, $6$, SCRAM-SHA-256$)")


def _decode(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


def _iterations(text: str) -> int:
    count = int(text)
    if not 1 <= count <= MAXIMUM_ITERATIONS:
        raise ValueError(f"the hash has from 1 to {MAXIMUM_ITERATIONS} iterations")
    return count


def make_hash(password: bytes) -> str:
    """argon2id with a random salt. Needs the ``argon2-cffi`` package."""
    return _argon2("id", password, ARGON2_MEMORY_KIB, ARGON2_TIME, ARGON2_LANES)


def _argon2(kind: str, password: bytes, memory_kib: int, time: int, lanes: int) -> str:
    from argon2.low_level import Type, hash_secret

    return hash_secret(password, os.urandom(_SALT_BYTES), time, memory_kib, lanes, 32, Type[kind.upper()]).decode("ascii")


def make_scram(password: bytes, iterations: int = SCRAM_ITERATIONS) -> str:
    """A SCRAM verifier with a random salt. ``ValueError``: the password is no text that SASLprep (RFC 4013) allows."""
    made = scram_verifier(password, os.urandom(_SALT_BYTES), iterations)
    if made is None:
        raise ValueError("the password is no text that SCRAM allows (UTF-8, RFC 4013)")
    salt, stored, server = (base64.b64encode(part).decode("ascii") for part in (made.salt, made.stored_key, made.server_key))
    return f"SCRAM-SHA-256${iterations}:{salt}${stored}:{server}"


def scram_verifier(password: bytes, salt: bytes, iterations: int) -> Scram | None:
    """RFC 5802 section 3; None: SASLprep does not allow the password."""
    from mqttc.auth.saslprep import saslprep

    try:
        prepared = saslprep(password.decode("utf-8")).encode("utf-8")
    except ValueError:
        return None
    salted = hashlib.pbkdf2_hmac("sha256", prepared, salt, iterations)
    client_key = hmac.digest(salted, b"Client Key", "sha256")
    return Scram(iterations, salt, hashlib.sha256(client_key).digest(), hmac.digest(salted, b"Server Key", "sha256"))


def make_dummy(kind: tuple[str | int, ...] | None) -> Hash:
    """A hash that nothing matches and that takes as long as one of that kind (None: as a new one) to find out."""
    noise = os.urandom(32)
    name = "argon2" if kind is None else kind[0]
    if kind is None:
        return parse_hash(make_hash(noise))
    if name == "argon2":
        return parse_hash(_argon2(str(kind[1]), noise, int(kind[2]), int(kind[3]), int(kind[4])))
    if name == "scram":
        iterations = int(kind[1])
        return Hash(kind, "", scram=Scram(iterations, os.urandom(_SALT_BYTES), noise, noise))
    return Hash(kind, "", 0, os.urandom(_SALT_BYTES), os.urandom(64 if name == "sha512" else int(kind[2])))


class Busy(Exception):
    """More wait already than may."""


_T = TypeVar("_T")


class Pool:
    """Threads for what takes long, bounded in number, in what waits for them, and in the memory that all of them take together."""

    def __init__(self, threads: int, waiting: int, memory_bytes: int, name: str) -> None:
        self.threads = threads
        self.memory_kib = memory_bytes // 1024
        self._waiting = waiting
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._free_threads = threads
        self._free_kib = self.memory_kib
        self._queue: deque[tuple[int, asyncio.Future[None]]] = deque()
        self.most_kib = 0
        """Memory that was taken at the same time at most, KiB."""
        self.refused = 0

    @classmethod
    def of(cls, hashing: Hashing) -> Pool:
        return cls(hashing.threads or os.cpu_count() or 1, hashing.waiting, hashing.memory, "mqttc-hash")

    @property
    def waiting(self) -> int:
        return len(self._queue)

    async def run(self, function: Callable[[], _T], memory_kib: int = 0) -> _T:
        """``Busy`` if too many wait. Cancelled: it is not begun, or goes on without anybody to hear its result."""
        loop = asyncio.get_running_loop()
        await self._take(loop, memory_kib)
        running: Future[_T] = self._executor.submit(function)

        def done(_: Future[_T]) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed, and so is the pool
                loop.call_soon_threadsafe(self._give, memory_kib)

        running.add_done_callback(done)
        return await asyncio.wrap_future(running)

    async def _take(self, loop: asyncio.AbstractEventLoop, memory_kib: int) -> None:
        if not self._queue and self._fits(memory_kib):
            self._count(memory_kib)
            return
        if len(self._queue) >= self._waiting:
            self.refused += 1
            raise Busy
        turn: asyncio.Future[None] = loop.create_future()
        entry = (memory_kib, turn)
        self._queue.append(entry)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._give(memory_kib)
            else:
                self._queue.remove(entry)
                self._wake()
            raise

    def _fits(self, memory_kib: int) -> bool:
        return self._free_threads > 0 and memory_kib <= self._free_kib

    def _count(self, memory_kib: int) -> None:
        self._free_threads -= 1
        self._free_kib -= memory_kib
        self.most_kib = max(self.most_kib, self.memory_kib - self._free_kib)

    def _give(self, memory_kib: int) -> None:
        self._free_threads += 1
        self._free_kib += memory_kib
        self._wake()

    def _wake(self) -> None:
        while self._queue and self._fits(self._queue[0][0]):
            memory_kib, turn = self._queue.popleft()
            self._count(memory_kib)
            turn.set_result(None)

    async def close(self) -> None:
        """Wait for what runs; what waits is not begun."""
        for _, turn in self._queue:
            turn.cancel()
        await asyncio.to_thread(self._executor.shutdown, cancel_futures=True)
