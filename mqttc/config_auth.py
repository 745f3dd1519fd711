"""The sections below ``[auth]``: where user names, passwords and other proofs are looked up, and the bounds of that.

A section that is there switches its authenticator on. ``docs/authentication.md`` has a chapter about each.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from mqttc.sections import Bytes, Count, PositiveCount, Seconds, Secret, Section

SOURCES: Final = ("password_file", "sql", "jwt", "certificate", "http", "scram", "ldap")
"""Names of the authenticators in ``auth.chain``, in the order in which they are asked if there is no chain."""
MAXIMUM_CHAIN_DEPTH: Final = 8
MAXIMUM_CHAIN_NAMES: Final = 32

OnFailure = Literal["deny", "next"]
_OF_SECRETS: Final = ("HS256", "HS384", "HS512")
Algorithm = Literal[
    "HS256", "HS384", "HS512", "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"
]  # fmt: skip


def chain_names(chain: object) -> Iterator[str]:
    """The authenticators that a chain names, each as often as it does."""
    if isinstance(chain, str):
        yield chain
    elif isinstance(chain, Mapping):
        for members in chain.values():
            for member in members:
                yield from chain_names(member)


def _check_chain(value: object) -> object:
    _check_link(value, 0)
    names = list(chain_names(value))
    if len(names) > MAXIMUM_CHAIN_NAMES:
        raise ValueError(f"names at most {MAXIMUM_CHAIN_NAMES} authenticators")
    return value


def _check_link(value: object, depth: int) -> None:
    if depth > MAXIMUM_CHAIN_DEPTH:
        raise ValueError(f"is nested at most {MAXIMUM_CHAIN_DEPTH} deep")
    if isinstance(value, str):
        if value not in SOURCES:
            raise ValueError(f"knows no authenticator {value!r}; there are {', '.join(SOURCES)}")
        return
    if not isinstance(value, Mapping) or len(value) != 1 or next(iter(value)) not in ("any", "all"):
        raise ValueError(
            'is the name of an authenticator, { any = […] } or { all = […] }, for example { all = ["certificate", "password_file"] }'
        )
    members = next(iter(value.values()))
    if not isinstance(members, list) or not members:
        raise ValueError("needs a list of at least one member for any and all")
    for member in members:
        _check_link(member, depth + 1)


def is_local_host(host: str) -> bool:
    """Whether a URL's host is this machine's loopback by name or address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _check_web_url(key: str, url: str, allow_plain: bool) -> None:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{key} is a URL, https://host/path")
    if parts.username or parts.password:
        raise ValueError(f"{key} has no user name or password")
    if parts.scheme == "http" and not allow_plain and not is_local_host(parts.hostname):
        raise ValueError(f"{key} sends secrets unencrypted to another machine: use https://, or say allow_plain = true")


def _check_one(section: Section, *keys: str, needed: bool = False) -> None:
    given = [key for key in keys if getattr(section, key)]
    if len(given) > 1:
        raise ValueError(f"{given[0]} and {given[1]} exclude each other")
    if needed and not given:
        raise ValueError(f"needs {' or '.join(keys)}")


def _check_pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"is no regular expression: {error}") from None
    return text


Chain = Annotated[Any, BeforeValidator(_check_chain)]
Pattern = Annotated[str, Field(max_length=1000), AfterValidator(_check_pattern)]
Identifier = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,62}(\.[A-Za-z_][A-Za-z0-9_]{0,62})?$")]
Threads = Annotated[int, Field(ge=0, le=256)]


class Sql(Section):
    """``[auth.sql]``: users in a table of SQLite or PostgreSQL. Needs the extra ``auth-sql``."""

    url: Secret
    """``sqlite:///relative.db``, ``sqlite:////absolute.db`` or ``postgresql://user@host/database``."""
    password: Secret = ""
    """Of the database's user, instead of one in ``url``."""
    password_file: str = ""
    """File of that password."""
    query: Annotated[str, Field(max_length=10_000)] = ""
    """A SELECT whose first column is the password's hash; ``:username`` and ``:client_id`` stand for the client's. Empty: of ``table``."""
    table: Identifier = "users"
    """Table (or ``schema.table``) with one row a user."""
    user_column: Identifier = "username"
    password_column: Identifier = "password_hash"
    groups_column: Identifier | Literal[""] = ""
    """Column of ``table``, or of what ``query`` gives, with the user's groups: an array, or names with commas between them."""
    create_table: bool = False
    """SQLite: make the file and the table if they are missing."""
    pool_size: Annotated[int, Field(ge=1, le=100)] = 5
    """Connections to the database at the same time."""
    timeout: Seconds = 5.0
    """Seconds for a look-up, the wait for a connection included."""
    on_failure: OnFailure = "next"
    """When the database cannot be asked: ``"deny"`` ends the chain, ``"next"`` lets another authenticator admit the client."""

    @model_validator(mode="after")
    def _check(self) -> Sql:
        scheme = self.url.partition(":")[0]
        if scheme not in ("sqlite", "postgresql"):
            raise ValueError("url begins with sqlite:/// or postgresql://")
        _check_one(self, "password", "password_file")
        if self.create_table and (scheme != "sqlite" or self.query):
            raise ValueError("create_table is for sqlite without query")
        return self


class Jwt(Section):
    """``[auth.jwt]``: tokens (RFC 7519) as passwords, or as authentication data. Needs the extra ``auth-jwt``."""

    algorithms: Annotated[list[Algorithm], Field(min_length=1)]
    """Signatures that are accepted; there is no default."""
    key_file: str = ""
    """Public key or certificate, PEM."""
    secret: Secret = ""
    """Shared secret of HS256, HS384, HS512; as long as the hash at least."""
    secret_file: str = ""
    """File of the secret."""
    jwks_url: str = ""
    """Where the issuer's key set is (RFC 7517)."""
    jwks_refresh: Annotated[float, Field(ge=10, le=86400, allow_inf_nan=False)] = 3600.0
    """Seconds after which it is fetched again; what came last stays in force while that fails."""
    jwks_timeout: Seconds = 10.0
    jwks_ca: str = ""
    """File of the CA certificates that its server is verified by; empty: the system's."""
    allow_plain: bool = False
    """Whether ``jwks_url`` may be http:// to another machine."""
    issuer: list[str] = []
    """Values of ``iss`` that are accepted; empty: any."""
    audience: list[str] = []
    """One of these must stand in ``aud``; empty: tokens with an ``aud`` are refused."""
    leeway: Annotated[float, Field(ge=0, le=3600, allow_inf_nan=False)] = 0.0
    """Seconds that clocks may differ."""
    require_expiry: bool = True
    """Whether tokens without ``exp`` are refused."""
    user_claim: str = "sub"
    """Claim with the user name, dots lead into objects."""
    client_id_claim: str = ""
    """Claim that must be the client id; empty: none."""
    acl_claim: str = ""
    """Claim with rules for topics; empty: none."""
    groups_claim: str = ""
    """Claim with the names of groups, a list or text with spaces between them; empty: none."""
    match_username: bool = False
    """Whether the user name of CONNECT, if there is one, must be the token's."""
    method: Annotated[str, Field(max_length=100)] = "JWT"
    """Authentication Method by which a token may come as Authentication Data; empty: as password only."""
    end_at_expiry: bool = True
    """Whether the connection ends with the token (0xA0)."""

    @model_validator(mode="after")
    def _check(self) -> Jwt:
        _check_one(self, "key_file", "secret", "secret_file", "jwks_url", needed=True)
        of_secrets = [name for name in self.algorithms if name in _OF_SECRETS]
        if self.secret or self.secret_file:
            if len(of_secrets) != len(self.algorithms):
                raise ValueError("a secret is for HS256, HS384 and HS512 alone")
        elif of_secrets:
            raise ValueError(f"{of_secrets[0]} needs secret or secret_file: a public key is no secret")
        if self.jwks_url:
            _check_web_url("jwks_url", self.jwks_url, self.allow_plain)
        return self


class ClientCertificate(Section):
    """``[auth.certificate]``: the proof is the verified certificate of the TLS handshake, or what a trusted proxy says of it (PROXY
    protocol version 2)."""

    name: Literal["common_name", "dns", "uri", "email", "subject", "key_name"] = "common_name"
    """Where the user name stands: the subject's common name, an alternative name, the whole subject (RFC 4514), or the name of a
    pre-shared key."""
    pattern: Pattern = ""
    """Regular expression that the whole of it must match; empty: anything does."""
    user: Annotated[str, Field(max_length=1000)] = ""
    """The user name made of the match, ``\\1`` is its first group; empty: the first group if there is one, else all of it."""
    match_username: bool = False
    """Whether the user name of CONNECT, if there is one, must be the same."""
    groups: Literal["", "organizational_unit", "organization"] = ""
    """Part of the certificate's subject whose values are the client's groups; empty: none."""

    @model_validator(mode="after")
    def _check(self) -> ClientCertificate:
        if self.user and not self.pattern:
            raise ValueError("user needs a pattern")
        if self.user:
            try:
                re.compile(self.pattern).sub(self.user, "")
            except (re.error, IndexError) as error:
                raise ValueError(f"user does not fit the pattern: {error}") from None
        return self


class WebService(Section):
    """``[auth.http]``: a web service decides. Needs the extra ``auth-http``."""

    url: str
    """Where a JSON object about the client is sent by POST."""
    token: Secret = ""
    """Sent as ``Authorization: Bearer``."""
    token_file: str = ""
    """File of the token."""
    ca: str = ""
    """File of the CA certificates that the server is verified by; empty: the system's."""
    certificate: str = ""
    """File of the certificate that is shown to the server, PEM."""
    key: str = ""
    """File of its key, PEM; empty: it stands in ``certificate``."""
    allow_plain: bool = False
    """Whether ``url`` may be http:// to another machine."""
    timeout: Seconds = 5.0
    """Seconds for an answer."""
    max_concurrent: Annotated[int, Field(ge=1, le=10_000)] = 64
    """Requests at the same time."""
    max_waiting: PositiveCount = 10_000
    """Clients that may wait for their turn; more are told that the service is not available."""
    on_failure: OnFailure = "deny"
    """When there is no usable answer: ``"deny"`` ends the chain, ``"next"`` lets another authenticator admit the client."""

    @model_validator(mode="after")
    def _check(self) -> WebService:
        _check_web_url("url", self.url, self.allow_plain)
        _check_one(self, "token", "token_file")
        if self.key and not self.certificate:
            raise ValueError("key needs certificate")
        return self


class Scram(Section):
    """``[auth.scram]``: enhanced authentication by SCRAM-SHA-256 (RFC 5802, RFC 7677): no password crosses the network."""

    users: Literal["password_file", "sql"] = "password_file"
    """Which authenticator's users; of these, the ones whose entry is a SCRAM verifier."""
    iterations: Annotated[int, Field(ge=4096, le=10_000_000)] = 4096
    """What unknown users are told; use what most entries have."""


class Ldap(Section):
    """``[auth.ldap]``: a directory checks the password by a bind. Needs the extra ``auth-ldap``."""

    url: str
    """``ldap://host:port`` or ``ldaps://host:port``."""
    start_tls: bool = False
    """Whether an ``ldap://`` connection is encrypted before anything else is said."""
    ca: str = ""
    """File of the CA certificates that the server is verified by; empty: the system's."""
    allow_plain: bool = False
    """Whether passwords may go to another machine unencrypted."""
    user_dn: str = ""
    """Name that the client binds as, ``%u`` is its user name: ``uid=%u,ou=people,dc=example,dc=org``."""
    base: str = ""
    """Instead of ``user_dn``: where the user is searched for."""
    filter: str = "(uid=%u)"
    """By this; exactly one entry must match."""
    groups_attribute: str = ""
    """Attribute of the user's entry with its groups, as ``memberOf``; of a name (RFC 4514) its first value counts. Empty: none."""
    groups_base: str = ""
    """Instead: where groups are searched for."""
    groups_filter: str = "(member=%d)"
    """By this, ``%d`` is the name of the user's entry, ``%u`` the user name."""
    groups_name: str = "cn"
    """Attribute of a group's entry with its name."""
    bind_dn: str = ""
    """As whom is searched; empty: anonymously."""
    bind_password: Secret = ""
    bind_password_file: str = ""
    """File of that password."""
    pool_size: Annotated[int, Field(ge=1, le=100)] = 4
    """Threads, each with a connection of its own to search by."""
    max_waiting: PositiveCount = 10_000
    """Clients that may wait for a thread; more are told that the directory is not available."""
    timeout: Seconds = 5.0
    """Seconds for each answer of the directory, rounded up to whole ones."""
    on_failure: OnFailure = "next"
    """When the directory cannot be asked: ``"deny"`` ends the chain, ``"next"`` lets another authenticator admit the client."""

    @model_validator(mode="after")
    def _check(self) -> Ldap:
        parts = urlsplit(self.url)
        if parts.scheme not in ("ldap", "ldaps") or not parts.hostname or parts.path not in ("", "/"):
            raise ValueError("url is ldap://host:port or ldaps://host:port")
        if self.start_tls and parts.scheme == "ldaps":
            raise ValueError("start_tls is for ldap://")
        if parts.scheme == "ldap" and not self.start_tls and not self.allow_plain and not is_local_host(parts.hostname):
            raise ValueError("passwords would go to another machine unencrypted: use ldaps://, start_tls = true, or say allow_plain = true")
        _check_one(self, "user_dn", "base", needed=True)
        _check_one(self, "bind_password", "bind_password_file")
        _check_one(self, "groups_attribute", "groups_base")
        if self.groups_base and not ("%d" in self.groups_filter or "%u" in self.groups_filter):
            raise ValueError("groups_filter needs %d, the name of the user's entry, or %u, the user name")
        if "%u" not in (self.user_dn or self.filter):
            raise ValueError(f"{'user_dn' if self.user_dn else 'filter'} needs %u, the user name")
        if bool(self.bind_dn) != bool(self.bind_password or self.bind_password_file):
            raise ValueError("bind_dn and bind_password (or bind_password_file) belong together")
        return self


class Cache(Section):
    """``[auth.cache]``: decisions that are remembered, by a keyed hash of what they were made of."""

    ttl: Annotated[float, Field(ge=0, le=86400, allow_inf_nan=False)] = 60.0
    """Seconds that an admission holds; 0: none is remembered. A web service's ``max-age`` and a token's end say less."""
    negative_ttl: Annotated[float, Field(ge=0, le=3600, allow_inf_nan=False)] = 5.0
    """Seconds that a refusal holds; 0: none is remembered."""
    entries: Annotated[int, Field(ge=1, le=2**24)] = 65_536
    """How many; the oldest give way. ``limits.verdict_cache_entries`` is the bound of what worker threads remember beside."""


class Failures(Section):
    """``[auth.failures]``: how often somebody may be wrong. Who is remembered as admitted is not held up."""

    per_address: Count = 100
    """Failures of one address (of IPv6: of one /64 network) within ``interval``; 0: no limit."""
    per_user: Count = 20
    """Failures with one user name within ``interval``; 0: no limit."""
    interval: Annotated[float, Field(ge=1, le=86400, allow_inf_nan=False)] = 60.0
    """Seconds."""
    entries: Annotated[int, Field(ge=16, le=2**24)] = 65_536
    """Addresses and user names that are counted; those that failed longest ago give way."""


class Hashing(Section):
    """``[auth.hashing]``: what checking passwords may cost at the same time."""

    threads: Threads = 0
    """Passwords that are checked at the same time; 0: one for each core."""
    memory: Annotated[Bytes, Field(ge=2**20)] = 268_435_456
    """Bytes that all of them may take; one hash that takes more is refused when it is read."""
    waiting: PositiveCount = 10_000
    """Clients that may wait for it; more are told that the server is busy."""
