"""The password file: a line ``user:hash`` for each user, read again when it changes.

Beside what ``mqttc-broker passwd`` writes it reads files of ``mosquitto_passwd``. Whoever is not in it costs as much time as who is.
"""

from __future__ import annotations

import collections
import threading
from collections.abc import Mapping
from typing import Any, Final

from mqttc.auth import Request
from mqttc.auth.hashing import Busy, Hash, Pool, make_dummy, parse_hash
from mqttc.auth.source import ALLOW, BUSY, DENY, IGNORE, Identity, Outcome, Source, file_identity, problem, read_limited

MAXIMUM_FILE_BYTES: Final = 256 * 1024 * 1024
_WHERE: Final = "auth.password_file"


def parse_users(path: str, data: bytes, most_memory_kib: int) -> dict[str, Hash]:
    """The lines of a file; ``ConfigError`` names the line and never the hash."""
    users: dict[str, Hash] = {}
    for number, line in enumerate(data.split(b"\n"), 1):
        stripped = line.strip()
        if not stripped or stripped.startswith(b"#"):
            continue
        where = f"{path}:{number}"
        try:
            name, separator, text = stripped.decode("utf-8").partition(":")
        except UnicodeDecodeError:
            raise problem(_WHERE, f"{where}: is not UTF-8") from None
        if not separator:
            raise problem(_WHERE, f"{where}: write user:hash")
        if name in users:
            raise problem(_WHERE, f"{where}: this user was there already")
        try:
            hashed = parse_hash(text)
        except ValueError as error:
            raise problem(_WHERE, f"{where}: {error}") from None
        if hashed.memory_kib > most_memory_kib:
            raise problem(_WHERE, f"{where}: the hash takes {hashed.memory_kib} KiB, more than auth.hashing.memory")
        users[name] = hashed
    return users


async def verify(pool: Pool, hashed: Hash, password: bytes) -> Outcome:
    """ALLOW or DENY after the time that it takes, or BUSY."""
    try:
        good = await pool.run(lambda: hashed.verify(password), hashed.memory_kib)
    except Busy:
        return BUSY
    return ALLOW if good else DENY


class PasswordFile(Source):
    name = "password_file"
    takes_passwords = True

    def __init__(self, path: str, pool: Pool) -> None:
        self._path = path
        self._pool = pool
        self._lock = threading.Lock()
        self._identity: Identity = None
        self._users: Mapping[str, Hash] = {}
        self._dummy: Hash | None = None
        self._loads = 0
        self._load()

    def _load(self) -> None:
        identity = file_identity(self._path)  # before it is read, so that no later change is missed
        users = parse_users(self._path, read_limited(_WHERE, self._path, MAXIMUM_FILE_BYTES), self._pool.memory_kib)
        kinds = collections.Counter(hashed.kind for hashed in users.values())
        common = kinds.most_common(1)[0][0] if kinds else None
        if common is None or any(kind[0] == "argon2" for kind in kinds):
            try:
                import argon2  # noqa: F401
            except ImportError as error:
                raise problem(_WHERE, f"needs a package that is not installed ({error.name}): pip install argon2-cffi") from None
        if self._dummy is None or self._dummy.kind != common:
            self._dummy = make_dummy(common)
        self._users, self._identity = users, identity
        self._loads += 1

    def check(self) -> bool:
        with self._lock:
            identity = file_identity(self._path)
            if identity is None or identity == self._identity:
                return False  # None: in the middle of being replaced
            self._identity = identity
            self._load()
            return True

    def find(self, username: str) -> Hash | None:
        return self._users.get(username)

    async def decide(self, request: Request, state: dict[str, Any]) -> Outcome:
        if request.username is None or request.password is None or request.auth_method is not None:
            return IGNORE
        hashed = self._users.get(request.username)
        if hashed is not None:
            return await verify(self._pool, hashed, request.password)
        dummy = self._dummy
        assert dummy is not None
        outcome = await verify(self._pool, dummy, request.password)
        return BUSY if outcome is BUSY else IGNORE

    def stats(self) -> dict[str, int]:
        return {"auth_password_file_loads": self._loads}
