"""The authenticators of ``[auth]`` put together: who is asked in which order, what is remembered of it, and how often one may be wrong."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from mqttc import logs
from mqttc.auth import (
    BAD_AUTHENTICATION_METHOD,
    BAD_USER_NAME_OR_PASSWORD,
    CONNECTION_RATE_EXCEEDED,
    CONTINUE_AUTHENTICATION,
    NOT_AUTHORIZED,
    SERVER_BUSY,
    SERVER_UNAVAILABLE,
    SUCCESS,
    Request,
    Verdict,
)
from mqttc.auth.grant import Grant, with_groups
from mqttc.auth.hashing import Pool
from mqttc.auth.limits import Limiter, Remembered
from mqttc.auth.source import IGNORE, Answer, Outcome, Source, digest
from mqttc.auth.static import compile_patterns
from mqttc.config import Auth, Config, ConfigError, Problem

MAXIMUM_EXCHANGES: Final = 65_536
"""Enhanced authentications that are going on."""
_logger: Final = logging.getLogger(logs.LOGGER_NAME)
_UNDECIDED: Final = (Answer.UNAVAILABLE, Answer.FAILED, Answer.BUSY)


class Node:
    """A part of the chain: one authenticator, any of several, or all of several."""

    methods: frozenset[str] = frozenset()

    async def decide(self, request: Request, state: dict[str, Any]) -> Outcome:
        raise NotImplementedError


class One(Node):
    def __init__(self, source: Source) -> None:
        self.source = source
        self.methods = source.methods

    async def decide(self, request: Request, state: dict[str, Any]) -> Outcome:
        return await self.source.decide(request, state)


class AnyOf(Node):
    """The first that admits. Else: that somebody could not be asked outweighs a refusal, and a refusal ignorance."""

    def __init__(self, members: Sequence[Node]) -> None:
        self._members = members
        self.methods = frozenset().union(*(member.methods for member in members))

    async def decide(self, request: Request, state: dict[str, Any]) -> Outcome:
        result = IGNORE
        keep: float | None = None
        for member in self._members:
            # An exchange is that of who speaks its method; others must not end it by what else they know of the client.
            if request.auth_method is not None and request.auth_method not in member.methods:
                continue
            outcome = await member.decide(request, state)
            keep = _least(keep, outcome.keep)
            if outcome.answer in (Answer.ALLOW, Answer.CONTINUE, Answer.FAILED):
                return replace(outcome, keep=keep)
            if _weight(outcome) > _weight(result):
                result = outcome
        return replace(result, keep=keep)


class AllOf(Node):
    """All must admit. The first that names the user names it; the earliest end and the first grant hold, with the groups of all."""

    def __init__(self, members: Sequence[Node]) -> None:
        self._members = members
        self.methods = frozenset().union(*(member.methods for member in members))

    async def decide(self, request: Request, state: dict[str, Any]) -> Outcome:
        whole = Outcome(Answer.ALLOW)
        for member in self._members:
            outcome = await member.decide(request, state)
            if outcome.answer is not Answer.ALLOW:
                return replace(outcome, username=whole.username or outcome.username, keep=_least(whole.keep, outcome.keep))
            whole = Outcome(
                Answer.ALLOW,
                whole.username or outcome.username,
                _joined(whole.grant, outcome.grant),
                _least(whole.expires, outcome.expires),
                _least(whole.keep, outcome.keep),
                whole.data or outcome.data,
            )
        return whole


def _joined(first: Grant | None, second: Grant | None) -> Grant | None:
    return first or second if first is None or second is None else with_groups(first, second.groups)


def _least(a: float | None, b: float | None) -> float | None:
    return b if a is None else a if b is None else min(a, b)


def _weight(outcome: Outcome) -> int:
    return 2 if outcome.answer in _UNDECIDED else 1 if outcome.answer is Answer.DENY else 0


@dataclass(slots=True)
class _Exchange:
    """An enhanced authentication that goes on."""

    begun: Request
    state: dict[str, Any] = field(default_factory=dict)
    username: str | None = None


@dataclass(frozen=True, slots=True)
class _Decided:
    verdict: Verdict
    expires: float | None
    """``time.time()`` at which the connection ends."""
    until: float = 0.0
    """``time.monotonic()`` until which it is remembered."""


class ChainAuthenticator:
    """Made on any thread (``ConfigError``: a file or a package is missing or wrong); ``start``, ``authenticate`` and ``close`` belong to
    the control loop. ``forget`` is called when remembered verdicts no longer hold, from any thread."""

    def __init__(self, config: Config) -> None:
        auth = config.auth
        self._auth = auth
        self._timeout_s = config.limits.auth_timeout
        self._pool = Pool.of(auth.hashing)
        self._sources = _sources(auth, self._pool)
        self._root = self._node(auth.chain if auth.chain is not None else {"any": list(self._sources)})
        depends = frozenset().union(*(source.depends for source in self._sources.values()))
        self.depends_on_client_id = "client_id" in depends
        self.depends_on_address = "address" in depends
        self._allow = compile_patterns(auth.allow)
        self._deny = compile_patterns(auth.deny)
        self._key = os.urandom(32)
        self._remembered: Remembered[_Decided] = Remembered(auth.cache.entries)
        self._exchanges: Remembered[_Exchange] = Remembered(MAXIMUM_EXCHANGES)
        self._limiter = Limiter(auth.failures)
        self._open: dict[bytes, asyncio.Task[_Decided]] = {}
        self._active = 0
        self._idle: asyncio.Event | None = None
        self._epoch = 0
        self._counts = dict.fromkeys(("auth_admitted", "auth_refused", "auth_unavailable", "auth_limited", "auth_remembered"), 0)
        self.forget: Callable[[], None] = lambda: None

    def _node(self, chain: Any) -> Node:
        if isinstance(chain, str):
            return One(self._sources[chain])
        kind, members = next(iter(chain.items()))
        nodes = [self._node(member) for member in members]
        return AnyOf(nodes) if kind == "any" else AllOf(nodes)

    @property
    def auth(self) -> Auth:
        """The section that it was made of."""
        return self._auth

    async def start(self) -> None:
        for source in self._sources.values():
            await source.start()

    async def close(self) -> None:
        """After what is being decided, and that has its deadline."""
        for source in self._sources.values():
            await source.close()
        await self._pool.close()

    async def retire(self) -> None:
        """As ``close``, but what is asked already is answered first."""
        try:
            if self._active:
                self._idle = asyncio.Event()
                async with asyncio.timeout(self._timeout_s):
                    await self._idle.wait()
        except TimeoutError:
            pass  # they are over by now, or never will be
        finally:
            await self.close()

    def check(self) -> bool:
        """Look whether files have changed; any thread. ``ConfigError``: one cannot be used, and what it held before still holds."""
        loaded = False
        problems: list[Problem] = []
        for source in self._sources.values():
            try:
                loaded |= source.check()
            except ConfigError as error:
                problems += error.problems
        if loaded:
            self._epoch += 1
            self.forget()
        if problems:
            raise ConfigError(problems)
        return loaded

    def stats(self) -> dict[str, int]:
        """Counters and gauges; any thread."""
        counts = dict(self._counts)
        counts["auth_remembered_entries"] = len(self._remembered)
        counts["auth_remembered_evicted"] = self._remembered.evicted
        counts["auth_failures_entries"] = len(self._limiter)
        counts["auth_failures_evicted"] = self._limiter.evicted
        counts["auth_hashing_waiting"] = self._pool.waiting
        counts["auth_hashing_refused"] = self._pool.refused
        counts["auth_hashing_most_kib"] = self._pool.most_kib
        for source in self._sources.values():
            counts |= source.stats()
        return counts

    async def authenticate(self, request: Request) -> Verdict:
        self._active += 1
        try:
            if request.auth_method is not None:
                return self._counted(await self._enhanced(request))
            verdict = await self._plain(request)
            if self._auth.delay and request.username is not None:
                await asyncio.sleep(self._auth.delay)
                return replace(self._counted(verdict), keep=0.0)
            return self._counted(verdict)
        finally:
            self._active -= 1
            if self._idle is not None and not self._active:
                self._idle.set()

    def _counted(self, verdict: Verdict) -> Verdict:
        code = verdict.reason_code
        if code == SUCCESS:
            self._counts["auth_admitted"] += 1
        elif code in (SERVER_UNAVAILABLE, SERVER_BUSY):
            self._counts["auth_unavailable"] += 1
        elif code >= 0x80:
            self._counts["auth_refused"] += 1
        return verdict

    # ------------------------------------------------------------------------------------ user names and passwords

    async def _plain(self, request: Request) -> Verdict:
        if not self._on_lists(request.username):
            return Verdict(NOT_AUTHORIZED, keep=self._auth.cache.negative_ttl)
        key = self._request_key(request)
        decided = self._remembered.get(key)
        if decided is not None and (decided.expires is None or decided.expires > time.time()):
            self._counts["auth_remembered"] += 1
            return _aged(decided)
        if self._limited(request, request.username):
            return Verdict(CONNECTION_RATE_EXCEEDED)
        running = self._open.get(key)
        if running is None:
            running = asyncio.get_running_loop().create_task(self._decide(key, request))
            self._open[key] = running
            running.add_done_callback(lambda task: self._close_question(key, task))
        # Many devices may share one password, and come at once after a failure of power: the question is asked once.
        return _aged(await asyncio.shield(running))

    def _close_question(self, key: bytes, task: asyncio.Task[_Decided]) -> None:
        self._open.pop(key, None)
        if not task.cancelled():
            task.exception()  # whoever still waits gets it; if nobody does, it is nobody's

    async def _decide(self, key: bytes, request: Request) -> _Decided:
        epoch = self._epoch
        async with asyncio.timeout(self._timeout_s):
            outcome = await self._root.decide(request, {})
        verdict = self._verdict(request, outcome)
        if verdict.reason_code in (BAD_USER_NAME_OR_PASSWORD, NOT_AUTHORIZED):
            self._limiter.failed(request.host, request.username)
        expires = outcome.expires if verdict.reason_code == SUCCESS else None
        decided = _Decided(verdict, expires, time.monotonic() + verdict.keep)
        if verdict.keep > 0 and epoch == self._epoch:
            self._remembered.put(key, decided, verdict.keep)
        return decided

    def _request_key(self, request: Request) -> bytes:
        identity = request.identity
        parts = [
            bytes((request.protocol, request.anonymous_admitted, request.username is not None, request.password is not None)),
            self._epoch.to_bytes(8, "little"),
            request.listener.encode("utf-8"),
            request.transport.encode("utf-8"),
            (request.username or "").encode("utf-8"),
            request.password or b"",
            request.client_id.encode("utf-8") if self.depends_on_client_id else b"",
            request.host.encode("utf-8") if self.depends_on_address else b"",
        ]
        if identity is not None:
            parts.append(identity.certificate or b"")
            parts += [(name or "").encode("utf-8") for name in (identity.key_name, identity.proxied_name)]
        return digest(self._key, parts)

    def _verdict(self, request: Request, outcome: Outcome) -> Verdict:
        cache = self._auth.cache
        answer = outcome.answer
        if answer is Answer.ALLOW:
            username = outcome.username if outcome.username is not None else request.username
            if username is not None and username != request.username and not self._on_lists(username):
                return Verdict(NOT_AUTHORIZED, keep=cache.negative_ttl)
            grant = outcome.grant
            if outcome.username is not None and outcome.username != request.username:
                grant = replace(grant or Grant(), username=grant.username if grant is not None and grant.username else outcome.username)
            keep = cache.ttl if outcome.keep is None else min(cache.ttl, outcome.keep)
            return Verdict(SUCCESS, outcome.data, grant, username, keep=keep)
        if answer is Answer.BUSY:
            return Verdict(SERVER_BUSY)
        if answer in _UNDECIDED:
            return Verdict(SERVER_UNAVAILABLE)
        if answer is Answer.IGNORE and request.username is None and request.password is None and request.auth_method is None:
            # It has shown a certificate that nobody here looks at, and is no worse for it than a client that shows nothing.
            return Verdict(SUCCESS if request.anonymous_admitted else NOT_AUTHORIZED, keep=cache.negative_ttl)
        keep = cache.negative_ttl if outcome.keep is None else min(cache.negative_ttl, outcome.keep)
        return Verdict(BAD_USER_NAME_OR_PASSWORD if request.password is not None else NOT_AUTHORIZED, keep=keep)

    def _on_lists(self, username: str | None) -> bool:
        """Whether ``auth.allow`` and ``auth.deny`` let the name try."""
        if username is None:
            return True
        if self._deny is not None and self._deny.fullmatch(username):
            return False
        return self._allow is None or self._allow.fullmatch(username) is not None

    def _limited(self, request: Request, username: str | None) -> bool:
        blocked = self._limiter.blocked(request.host, username)
        if blocked is None:
            return False
        self._counts["auth_limited"] += 1
        by, first = blocked
        if first:
            logs.emit(
                _logger,
                logging.WARNING,
                "auth_limited",
                {"by": by, "peer": request.peer, "username": username or "", "client_id": request.client_id},
            )
        return True

    # ------------------------------------------------------------------------------------ enhanced authentication

    async def _enhanced(self, request: Request) -> Verdict:
        if request.auth_method not in self._root.methods:
            return Verdict(BAD_AUTHENTICATION_METHOD)
        exchange = self._exchanges.pop(request.connection)
        if not request.is_auth or request.is_reauthentication:
            if self._limited(request, request.username):
                return Verdict(CONNECTION_RATE_EXCEEDED if not request.is_auth else NOT_AUTHORIZED)
            exchange = _Exchange(request)
        elif exchange is None:
            return Verdict(NOT_AUTHORIZED)  # it has taken too long, or too many others go on
        else:
            begun = exchange.begun
            request = replace(request, client_id=begun.client_id, username=begun.username, password=begun.password)
        async with asyncio.timeout(self._timeout_s):
            outcome = await self._root.decide(request, exchange.state)
        exchange.username = outcome.username or exchange.username
        if outcome.answer is Answer.CONTINUE:
            self._exchanges.put(request.connection, exchange, self._timeout_s)
            return Verdict(CONTINUE_AUTHENTICATION, outcome.data)
        verdict = self._verdict(request, outcome)
        if verdict.reason_code == SUCCESS and not self._on_lists(verdict.username):
            verdict = Verdict(NOT_AUTHORIZED)
        begun = exchange.begun
        if verdict.reason_code == SUCCESS and begun.is_reauthentication and begun.username not in (None, verdict.username):
            verdict = Verdict(NOT_AUTHORIZED)  # a session does not change hands
        if verdict.reason_code in (BAD_USER_NAME_OR_PASSWORD, NOT_AUTHORIZED):
            self._limiter.failed(request.host, exchange.username or request.username)
            if exchange.username is not None:
                verdict = Verdict(BAD_USER_NAME_OR_PASSWORD)
        return _aged(_Decided(verdict, outcome.expires if verdict.reason_code == SUCCESS else None))


def _aged(decided: _Decided) -> Verdict:
    """The verdict as of now: how long the connection lasts, and for how long it may be remembered natively."""
    keep = max(0.0, decided.until - time.monotonic())
    if decided.expires is None:
        return replace(decided.verdict, keep=keep)
    left = max(0.001, decided.expires - time.time())
    return replace(decided.verdict, lasts=left, keep=min(keep, left))


def _sources(auth: Auth, pool: Pool) -> dict[str, Source]:
    made: dict[str, Source] = {}
    if auth.password_file:
        from mqttc.auth.passwords import PasswordFile

        made["password_file"] = PasswordFile(auth.password_file, pool)
    if auth.sql is not None:
        from mqttc.auth.sql import SqlSource

        made["sql"] = SqlSource(auth.sql, pool)
    if auth.jwt is not None:
        from mqttc.auth.tokens import TokenSource

        made["jwt"] = TokenSource(auth.jwt)
    if auth.certificate is not None:
        from mqttc.auth.certificates import CertificateSource

        made["certificate"] = CertificateSource(auth.certificate)
    if auth.http is not None:
        from mqttc.auth.callback import HttpSource

        made["http"] = HttpSource(auth.http)
    if auth.scram is not None:
        made["scram"] = _scram(auth, made)
    if auth.ldap is not None:
        from mqttc.auth.directory import LdapSource

        made["ldap"] = LdapSource(auth.ldap)
    return made


def _scram(auth: Auth, made: Mapping[str, Source]) -> Source:
    from mqttc.auth.passwords import PasswordFile
    from mqttc.auth.scram import ScramSource

    assert auth.scram is not None
    users = made[auth.scram.users]
    if isinstance(users, PasswordFile):
        return ScramSource(auth.scram, lambda username: None if (hashed := users.find(username)) is None else (hashed, ()))
    from mqttc.auth.sql import SqlSource

    assert isinstance(users, SqlSource)
    return ScramSource(auth.scram, users.find)
