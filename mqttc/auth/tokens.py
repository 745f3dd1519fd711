"""JSON web tokens (RFC 7519) as passwords or as Authentication Data, and the key sets (RFC 7517) that they are verified with."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import re
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from mqttc import logs
from mqttc.auth import Request
from mqttc.auth.claims import grant_of
from mqttc.auth.grant import with_groups
from mqttc.auth.source import (
    DENY,
    IGNORE,
    UNAVAILABLE,
    Answer,
    Identity,
    Outcome,
    Source,
    file_identity,
    missing_extra,
    problem,
    read_limited,
    read_secret,
)
from mqttc.auth.web import read_bounded, web_client
from mqttc.config_auth import Jwt

if TYPE_CHECKING:
    import httpx

MAXIMUM_TOKEN_BYTES: Final = 16_384
MAXIMUM_KEY_SET_BYTES: Final = 1024 * 1024
MAXIMUM_KEYS: Final = 256
SOONEST_REFRESH_S: Final = 30.0
"""Between two requests for the key set, however many tokens name keys that are not in it."""
MINIMUM_RSA_BITS: Final = 2048
"""RFC 7518 sections 3.3 and 3.5."""
_MAXIMUM_KEY_FILE_BYTES: Final = 1024 * 1024
_COMPACT: Final = re.compile(rb"[A-Za-z0-9_-]+={0,2}\.[A-Za-z0-9_-]+={0,2}\.[A-Za-z0-9_-]*={0,2}")
"""Base64url with dots between (RFC 7515 section 7.1); padding, which some issuers send, is let through."""
_NUMBERS: Final = re.compile("[A-Za-z0-9_-]*={0,2}")
_DATES: Final = ("exp", "nbf", "iat")
_WHERE: Final = "auth.jwt"
_logger: Final = logging.getLogger(logs.LOGGER_NAME)


class KeySet:
    """The keys of a URL: fetched at the start and then at intervals; what came last is kept while that fails."""

    def __init__(self, section: Jwt) -> None:
        self._section = section
        self._client: httpx.AsyncClient = web_client(_WHERE, "auth-jwt", section.jwks_timeout, section.jwks_ca, limit=2)
        self._keys: Mapping[str | None, Key] | None = None
        self._wanted = asyncio.Event()
        self._fetched = asyncio.Event()
        self._last = float("-inf")
        self._task: asyncio.Task[None] | None = None
        self.loads = 0
        self.failures = 0

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._keep_fresh())

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._client.aclose()

    async def find(self, name: str | None) -> Key | None:
        """The key of that ``kid``; None: there is none such. ``LookupError``: no key set has come yet."""
        if self._keys is None or name not in self._keys:
            self._fetched.clear()
            self._wanted.set()
            if self._keys is None or time.monotonic() - self._last >= SOONEST_REFRESH_S:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._section.jwks_timeout):
                        await self._fetched.wait()
        if self._keys is None:
            raise LookupError
        return self._keys.get(name)

    async def _keep_fresh(self) -> None:
        while True:
            self._last = time.monotonic()
            try:
                self._keys = await self._fetch()
                self.loads += 1
            except Exception as error:
                self.failures += 1
                logs.emit(_logger, logging.ERROR, "jwks_refused", {"url": self._section.jwks_url, "problem": repr(error)})
            self._wanted.clear()
            self._fetched.set()
            due = self._section.jwks_refresh if self._keys is not None else SOONEST_REFRESH_S / 15
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(due):
                    await self._wanted.wait()
            soonest = SOONEST_REFRESH_S if self._keys is not None else SOONEST_REFRESH_S / 15
            await asyncio.sleep(max(0.0, self._last + soonest - time.monotonic()))

    async def _fetch(self) -> Mapping[str | None, Key]:
        async with self._client.stream("GET", self._section.jwks_url, headers={"accept": "application/json"}) as response:
            if response.status_code != 200:
                raise ValueError(f"status {response.status_code}")
            return parse_key_set(await read_bounded(response, MAXIMUM_KEY_SET_BYTES))


class KeySetError(ValueError):
    """A document that is no key set, or one without a key that can be used."""


@dataclass(frozen=True, slots=True)
class Key:
    """A public key of a set."""

    public: Any
    algorithm: str | None
    """The only one that it is for (RFC 7517 section 4.4); None: any that its kind allows."""


def parse_key_set(document: bytes) -> Mapping[str | None, Key]:
    """The public keys by their ``kid``; the only one also under None. Raises ``KeySetError``."""
    try:
        data = json.loads(document)
    except (ValueError, RecursionError):
        raise KeySetError("it is not JSON") from None
    items = data.get("keys") if isinstance(data, dict) else None
    if not isinstance(items, list) or len(items) > MAXIMUM_KEYS:
        raise KeySetError(f"a key set is an object with at most {MAXIMUM_KEYS} keys")
    keys: dict[str | None, Key] = {}
    for item in items:
        if isinstance(item, dict) and (key := _usable(item)) is not None:
            keys[item.get("kid")] = key
    if not keys:
        raise KeySetError("the key set has no usable key")
    if len(keys) == 1:
        keys.setdefault(None, next(iter(keys.values())))  # a token need not name the only key
    return keys


def _usable(item: Mapping[str, Any]) -> Key | None:
    """One key, if it is one that verifies: those of other uses and of unknown kinds are not for us (RFC 7517 section 5)."""
    import jwt

    operations = item.get("key_ops", ["verify"])
    if item.get("use", "sig") != "sig" or not isinstance(operations, list) or "verify" not in operations:
        return None
    # Neither a secret nor a private key has a place in a public key set: whoever reads it could sign.
    if item.get("kty") == "oct" or "d" in item or not isinstance(item.get("kid"), str | None):
        return None
    # The library would pass over what is no base64url (RFC 7518 section 6).
    if any(not isinstance(item.get(name, ""), str) or not _NUMBERS.fullmatch(item.get(name, "")) for name in ("n", "e", "x", "y")):
        return None
    try:
        key = jwt.PyJWK.from_dict(dict(item)).key
    except Exception:  # whatever a library says of one key, the others are none the worse
        return None
    if getattr(key, "key_size", MINIMUM_RSA_BITS) < MINIMUM_RSA_BITS and item.get("kty") == "RSA":
        return None
    return Key(key, item.get("alg"))


class TokenSource(Source):
    name = "jwt"
    takes_passwords = True

    def __init__(self, section: Jwt) -> None:
        self._section = section
        self.methods = frozenset({section.method} if section.method else ())
        self.depends = frozenset({"client_id"} if section.client_id_claim else ())
        try:
            import jwt
        except ImportError as error:
            raise missing_extra(_WHERE, "auth-jwt", error) from None
        missing = [name for name in section.algorithms if name not in jwt.algorithms.get_default_algorithms()]
        if missing:
            raise problem(_WHERE, f"{missing[0]} needs a package that is not installed: pip install 'mqttc[auth-jwt]'")
        self._lock = threading.Lock()
        self._path = section.key_file or section.secret_file
        self._identity: Identity = None
        self._key: Any = None
        self._set: KeySet | None = None
        if not section.jwks_url:
            self._load()

    def _load(self) -> None:
        import jwt

        section = self._section
        identity = file_identity(self._path) if self._path else None
        if section.key_file:
            material: bytes = _public_key(read_limited(_WHERE, section.key_file, _MAXIMUM_KEY_FILE_BYTES), section.key_file)
        else:
            material = read_secret(_WHERE, section.secret_file) if section.secret_file else section.secret.encode("utf-8")
            needed = max(int(name[2:]) // 8 for name in section.algorithms)
            if len(material) < needed:
                raise problem(_WHERE, f"the secret has {len(material)} bytes, RFC 7518 section 3.2 asks for {needed}")
        for name in section.algorithms:
            try:
                key = jwt.get_algorithm_by_name(name).prepare_key(material)
                if name.startswith(("RS", "PS")) and key.key_size < MINIMUM_RSA_BITS:
                    raise ValueError(f"it has {key.key_size} bits, RFC 7518 section 3.3 asks for {MINIMUM_RSA_BITS}")
            except (jwt.PyJWTError, ValueError, TypeError) as error:
                raise problem(_WHERE, f"{section.key_file or 'the secret'} is no key for {name}: {error}") from None
        self._key, self._identity = material, identity

    def check(self) -> bool:
        with self._lock:
            identity = file_identity(self._path) if self._path else None
            if identity is None or identity == self._identity:
                return False
            self._identity = identity
            self._load()
            return True

    async def start(self) -> None:
        if self._section.jwks_url:
            self._set = KeySet(self._section)
            self._set.start()

    async def close(self) -> None:
        if self._set is not None:
            await self._set.close()

    async def decide(self, request: Request, state: dict[str, Any]) -> Outcome:
        if request.auth_method is not None:
            if request.auth_method not in self.methods:
                return IGNORE
            if request.auth_data is None and not request.is_auth:
                return Outcome(Answer.CONTINUE)
            token = request.auth_data
        else:
            token = request.password
        if token is None or len(token) > MAXIMUM_TOKEN_BYTES or not _COMPACT.fullmatch(token):
            return IGNORE if request.auth_method is None else DENY
        import jwt

        try:
            claims = await self._claims(token)
        except LookupError:
            return UNAVAILABLE
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError):
            return DENY
        return self._outcome(request, claims)

    async def _claims(self, token: bytes) -> Mapping[str, Any]:
        import jwt

        section = self._section
        header = jwt.get_unverified_header(token)
        # No extension is understood here, so none may be critical (RFC 7515 section 4.1.11).
        if header.get("alg") not in section.algorithms or "crit" in header:
            raise jwt.InvalidAlgorithmError
        key = self._key
        if self._set is not None:
            found = await self._set.find(header.get("kid"))
            if found is None or found.algorithm not in (None, header["alg"]):
                raise jwt.InvalidKeyError
            key = found.public
        claims: Mapping[str, Any] = jwt.decode(
            token,
            key,
            algorithms=list(section.algorithms),
            issuer=section.issuer or None,
            audience=section.audience or None,
            leeway=section.leeway,
            options={
                "require": [
                    *(["exp"] if section.require_expiry else []),
                    *(["iss"] if section.issuer else []),
                    *(["aud"] if section.audience else []),
                ]
            },
        )
        if not all(_is_date(claims[name]) for name in _DATES if name in claims):
            raise jwt.DecodeError
        return claims

    def _outcome(self, request: Request, claims: Mapping[str, Any]) -> Outcome:
        section = self._section
        user = _claim(claims, section.user_claim)
        if not isinstance(user, str) or not _is_user_name(user):
            return DENY
        if section.match_username and request.username not in (None, user) and not request.is_reauthentication:
            return Outcome(Answer.DENY, username=user)
        if section.client_id_claim and _claim(claims, section.client_id_claim) != request.client_id:
            return Outcome(Answer.DENY, username=user)
        grant = None
        if section.acl_claim:
            rules = _claim(claims, section.acl_claim)
            try:
                grant = grant_of([] if rules is None else rules)
            except ValueError:
                return Outcome(Answer.DENY, username=user)
        if section.groups_claim:
            named = _claim(claims, section.groups_claim)
            try:
                grant = with_groups(grant, named.split() if isinstance(named, str) else named or [])
            except ValueError:
                return Outcome(Answer.DENY, username=user)
        # What the library has checked to be a number, with the leeway that it has granted.
        ends = float(claims["exp"]) + section.leeway if "exp" in claims else None
        keep = None if ends is None else max(0.0, ends - time.time())
        return Outcome(Answer.ALLOW, user, grant, ends if section.end_at_expiry else None, keep)

    def stats(self) -> dict[str, int]:
        if self._set is None:
            return {}
        return {"auth_jwks_loads": self._set.loads, "auth_jwks_failures": self._set.failures}


def _is_date(value: object) -> bool:
    """A NumericDate (RFC 7519 section 2); the library takes a text that spells one too."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_user_name(text: str) -> bool:
    """As CONNECT could have it. [MQTT-1.5.4-1, MQTT-1.5.4-2]"""
    try:
        return 0 < len(text.encode("utf-8")) <= 65535 and "\0" not in text
    except UnicodeEncodeError:  # a surrogate, which JSON can spell
        return False


def _claim(claims: Mapping[str, Any], path: str) -> Any:
    """The claim of that name, or where dots lead; None: there is none."""
    if path in claims:
        return claims[path]
    value: Any = claims
    for name in path.split("."):
        if not isinstance(value, Mapping):
            return None
        value = value.get(name)
    return value


def _public_key(data: bytes, path: str) -> bytes:
    """The public key, PEM, of a file with it or with a certificate."""
    if b"PRIVATE KEY" in data:
        raise problem(_WHERE, f"{path} has a private key; the broker needs the public one alone")
    if b"BEGIN CERTIFICATE" not in data:
        return data
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    try:
        return x509.load_pem_x509_certificate(data).public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    except ValueError as error:
        raise problem(_WHERE, f"{path}: {error}") from None
