"""What one authenticator of a chain is asked, and what it can say."""

from __future__ import annotations

import enum
import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mqttc.auth import Request
from mqttc.config import ConfigError, Problem

if TYPE_CHECKING:
    from mqttc.auth.grant import Grant

MAXIMUM_SECRET_BYTES: Final = 65_536

Identity = tuple[int, int, int, int] | None


class Answer(enum.Enum):
    ALLOW = "allow"
    DENY = "deny"
    """The proof was looked at and is wrong."""
    IGNORE = "ignore"
    """Nothing is known here of such a client, or it has shown nothing that could be looked at."""
    UNAVAILABLE = "unavailable"
    """It cannot be said; another authenticator may."""
    FAILED = "failed"
    """It cannot be said, and nobody else is to be asked."""
    BUSY = "busy"
    """Too many clients wait already."""
    CONTINUE = "continue"
    """The exchange of an authentication method goes on, with ``data``."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """An answer, and what comes with it."""

    answer: Answer
    username: str | None = None
    grant: Grant | None = None
    expires: float | None = None
    """``time.time()`` at which the connection ends; None: never."""
    keep: float | None = None
    """Seconds that the answer may be remembered at most; None: as configured; 0: not at all."""
    data: bytes | None = field(default=None, repr=False)
    """Authentication Data for the client."""


ALLOW: Final = Outcome(Answer.ALLOW)
DENY: Final = Outcome(Answer.DENY)
IGNORE: Final = Outcome(Answer.IGNORE)
BUSY: Final = Outcome(Answer.BUSY)
UNAVAILABLE: Final = Outcome(Answer.UNAVAILABLE)
FAILED: Final = Outcome(Answer.FAILED)


class Source:
    """One authenticator. Made on any thread, where files are read and errors are ``ConfigError``; asked on the control loop."""

    name: str = ""
    depends: frozenset[str] = frozenset()
    """Of ``client_id`` and ``address``: what else than the credentials counts."""
    methods: frozenset[str] = frozenset()
    """Authentication Methods that it speaks."""
    takes_passwords: bool = False
    """Whether what clients send to it is worth listening in."""

    async def decide(self, request: Request, state: dict[str, Any]) -> Outcome:
        """``state`` is kept from one AUTH of an exchange to the next, and empty for a CONNECT."""
        raise NotImplementedError

    async def start(self) -> None:
        """On the control loop, before the first question."""

    async def close(self) -> None:
        """On the control loop, after the last answer."""

    def check(self) -> bool:
        """Look whether files have changed, and load them. Whether something was loaded; any thread; ``ConfigError``: it stays as it was."""
        return False

    def stats(self) -> dict[str, int]:
        return {}


def problem(where: str, message: str) -> ConfigError:
    return ConfigError([Problem(where, message)])


def missing_extra(section: str, extra: str, error: ImportError) -> ConfigError:
    """For a section whose package is not installed."""
    return problem(section, f"needs a package that is not installed ({error.name}): pip install 'mqttc[{extra}]'")


def file_identity(path: str) -> Identity:
    """What changes when the file's content does, or the file that a symbolic link leads to; None: it cannot be seen."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size


def read_limited(where: str, path: str, most: int) -> bytes:
    """A file of at most ``most`` bytes."""
    try:
        with Path(path).open("rb") as file:
            data = file.read(most + 1)
    except OSError as error:
        raise problem(where, f"{path}: {error.strerror or error}") from error
    if len(data) > most:
        raise problem(where, f"{path} has more than {most} bytes")
    return data


def read_secret(where: str, path: str) -> bytes:
    """A secret that stands in a file of its own; one newline at its end is none of it. Symbolic links are followed."""
    data = read_limited(where, path, MAXIMUM_SECRET_BYTES)
    data = data.removesuffix(b"\n").removesuffix(b"\r")
    if not data:
        raise problem(where, f"{path} is empty")
    return data


def secret_text(where: str, path: str, value: str) -> str:
    """The secret itself, or what stands in its file; empty if there is neither."""
    if not path:
        return value
    try:
        return read_secret(where, path).decode("utf-8")
    except UnicodeDecodeError:
        raise problem(where, f"{path} is not UTF-8") from None


def digest(key: bytes, parts: list[bytes]) -> bytes:
    """32 bytes: a keyed hash (BLAKE2b, RFC 7693) of the parts and their lengths."""
    made = hashlib.blake2b(key=key, digest_size=32)
    for part in parts:
        made.update(len(part).to_bytes(8, "little"))
        made.update(part)
    return made.digest()
