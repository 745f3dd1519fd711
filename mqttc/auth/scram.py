"""SCRAM-SHA-256 (RFC 5802, RFC 7677) as an authentication method of MQTT 5.0, section 4.12, without channel binding.

The client's first message stands in CONNECT or in its first AUTH, the server's last one in CONNACK (or, of a re-authentication, in AUTH).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import logging
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

from mqttc import logs
from mqttc.auth import Request
from mqttc.auth.grant import with_groups
from mqttc.auth.hashing import Hash
from mqttc.auth.hashing import Scram as Verifier
from mqttc.auth.saslprep import saslprep
from mqttc.auth.source import DENY, IGNORE, UNAVAILABLE, Answer, Outcome, Source, digest
from mqttc.config_auth import Scram

METHOD: Final = "SCRAM-SHA-256"
MAXIMUM_MESSAGE_BYTES: Final = 4096
_NONCE_BYTES: Final = 18

_logger: Final = logging.getLogger(logs.LOGGER_NAME)

Found = tuple[Hash, tuple[str, ...]] | None
Find = Callable[[str], Awaitable[Found] | Found]


class _Malformed(ValueError):
    """A message that is not what RFC 5802 section 7 says."""


class _NotFound(Exception):
    """The user could not be looked up."""


@dataclass(slots=True)
class _Exchange:
    username: str
    verifier: Verifier
    known: bool
    groups: tuple[str, ...]
    header: bytes
    nonce: str
    first_bare: str
    server_first: str


class ScramSource(Source):
    """``find`` looks a user up, and its groups; one without a SCRAM verifier cannot be admitted by this method, and looks like one who is
    not there."""

    name = "scram"
    methods = frozenset({METHOD})

    def __init__(self, section: Scram, find: Find) -> None:
        self._iterations = section.iterations
        self._find = find
        self._key = os.urandom(32)

    async def decide(self, request: Request, state: dict[str, Any]) -> Outcome:
        if request.auth_method != METHOD:
            return IGNORE
        data = request.auth_data
        exchange: _Exchange | None = state.get("scram")
        if exchange is None and data is None and not request.is_auth:
            return Outcome(Answer.CONTINUE)  # the client waits to be asked
        if data is None or len(data) > MAXIMUM_MESSAGE_BYTES:
            return DENY
        try:
            text = data.decode("utf-8")
            if exchange is None:
                return await self._begin(text, request, state)
            return _finish(text, exchange)
        except ValueError:  # malformed, no UTF-8, no base64: what the client can make it
            return DENY
        except _NotFound as error:
            logs.emit(_logger, logging.ERROR, "auth_scram_failed", {"problem": repr(error.__cause__)[:300]})
            return UNAVAILABLE

    async def _begin(self, text: str, request: Request, state: dict[str, Any]) -> Outcome:
        header, bare = _split_header(text)
        fields = _fields(bare)
        if [name for name, _ in fields[:2]] != ["n", "r"] or not fields[1][1]:
            raise _Malformed
        username = _prepared(_unescaped(fields[0][1]))
        if request.username is not None and not request.is_reauthentication and request.username != username:
            return DENY
        verifier, known, groups = await self._verifier(username)
        nonce = fields[1][1] + base64.b64encode(os.urandom(_NONCE_BYTES)).decode("ascii")
        first = f"r={nonce},s={base64.b64encode(verifier.salt).decode('ascii')},i={verifier.iterations}"
        state["scram"] = _Exchange(username, verifier, known, groups, header, nonce, bare, first)
        return Outcome(Answer.CONTINUE, username=username, data=first.encode("utf-8"))

    async def _verifier(self, username: str) -> tuple[Verifier, bool, tuple[str, ...]]:
        try:
            found = self._find(username)
            hashed, groups = (await found if isinstance(found, Awaitable) else found) or (None, ())
        except Exception as error:  # of a database and its driver
            raise _NotFound from error
        if hashed is not None and hashed.scram is not None:
            return hashed.scram, True, groups
        # The same salt for the same name each time, as a real user has.
        noise = digest(self._key, [username.encode("utf-8")])
        return Verifier(self._iterations, noise[:16], noise, noise), False, ()


def _split_header(text: str) -> tuple[bytes, str]:
    """The GS2 header (RFC 5802 section 7); channel binding and other identities are not there."""
    parts = text.split(",", 2)
    if len(parts) != 3 or parts[0] not in ("n", "y") or parts[1]:
        raise _Malformed
    return f"{parts[0]},{parts[1]},".encode(), parts[2]


def _fields(text: str) -> list[tuple[str, str]]:
    fields = []
    for part in text.split(","):
        if len(part) < 2 or part[1] != "=" or not part[0].isalpha() or part[0] == "m":  # m: an extension that must be understood
            raise _Malformed
        fields.append((part[0], part[2:]))
    return fields


def _unescaped(name: str) -> str:
    rest = name.replace("=2C", "").replace("=3D", "")
    if "=" in rest:
        raise _Malformed
    return name.replace("=2C", ",").replace("=3D", "=")


def _prepared(name: str) -> str:
    try:
        prepared = saslprep(name)
    except ValueError:
        raise _Malformed from None
    if not prepared:
        raise _Malformed
    return prepared


def _finish(text: str, exchange: _Exchange) -> Outcome:
    without_proof, separator, proof = text.rpartition(",p=")
    fields = _fields(without_proof)
    if not separator or [name for name, _ in fields[:2]] != ["c", "r"]:
        raise _Malformed
    verifier = exchange.verifier
    message = f"{exchange.first_bare},{exchange.server_first},{without_proof}".encode()
    signature = hmac.digest(verifier.stored_key, message, "sha256")
    shown = base64.b64decode(proof, validate=True)
    if len(shown) != len(signature):
        raise _Malformed
    client_key = bytes(a ^ b for a, b in zip(shown, signature, strict=True))
    good = hmac.compare_digest(hashlib.sha256(client_key).digest(), verifier.stored_key)
    good &= base64.b64decode(fields[0][1], validate=True) == exchange.header
    good &= fields[1][1] == exchange.nonce
    if not good or not exchange.known:
        return Outcome(Answer.DENY, username=exchange.username)
    answer = base64.b64encode(hmac.digest(verifier.server_key, message, "sha256"))
    return Outcome(Answer.ALLOW, exchange.username, with_groups(None, exchange.groups), data=b"v=" + answer)
