"""The control plane's thread: log lines, decisions about clients, HTTP and QUIC, on an asyncio loop of its own."""

from __future__ import annotations

import asyncio
import logging
import math
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from mqttc import logs, native
from mqttc.auth import SERVER_UNAVAILABLE, Authenticator, PeerIdentity, Request
from mqttc.auth.acl import compile_grant
from mqttc.auth.chain import ChainAuthenticator
from mqttc.auth.grant import Grant
from mqttc.auth.rules import RulesInForce
from mqttc.auth.static import StaticAuthenticator
from mqttc.channel.server import Channel
from mqttc.channel.verbs import Verbs
from mqttc.config import Config, ConfigError
from mqttc.embed.hub import Hub
from mqttc.hook_runner import QUESTION_PUBLISH, HookRunner
from mqttc.listen import ListenError, Served
from mqttc.tls import ListenerFiles

if TYPE_CHECKING:
    from mqttc.roads import QuicFiles, Roads

_WATCH_S: Final = 2.0
_QUESTION_AUTH: Final = 1
_QUESTION_HEAD: Final = 2
_REAUTHENTICATE: Final = 0x19
_MOST_S: Final = 100 * 365 * 86_400
"""Seconds that an answer may last or be remembered, which the engine counts: as good as for ever."""
_logger = logging.getLogger(logs.LOGGER_NAME)


def _milliseconds(seconds: float) -> int:
    return math.ceil(min(seconds, _MOST_S) * 1000)


class Control:
    """Starts its thread; ``stop`` joins it. ``status``: counters and gauges of the whole broker, for its pages."""

    def __init__(
        self,
        engine: native.Engine,
        hub: Hub,
        served: Mapping[int, Served],
        files: Sequence[ListenerFiles],
        quic: Mapping[int, QuicFiles],
        config: Config,
        authenticator: Authenticator | None,
        status: Callable[[], Mapping[str, int]],
        rules: RulesInForce | None = None,
        hooks: HookRunner | None = None,
    ) -> None:
        self._engine = engine
        self._hub = hub
        self._served = served
        self._files = files
        self._quic = quic
        self._config = config
        self._status = status
        self._rules = rules
        self._hooks = hooks
        self._auth_timeout_s = config.limits.auth_timeout
        self._loop: asyncio.AbstractEventLoop | None = None
        self._chain: ChainAuthenticator | None = None
        self._watching: asyncio.Task[None] | None = None
        self._helpers: set[asyncio.Task[None]] = set()
        self._level = logs.LEVELS[config.log.level]
        self._authenticator = self._chosen(config, authenticator)
        self._decisions: set[asyncio.Task[None]] = set()
        self._roads: Roads | None = None
        self._channel = Channel(config, Verbs(hub, rules))
        self._last_stats: dict[str, int] = {}
        self._failure: BaseException | None = None
        self._ready = threading.Event()
        self._http_ends: asyncio.Event | None = None
        self._ended: asyncio.Event | None = None
        self.thread = threading.Thread(target=self._run, name="mqttc-control", daemon=True)
        hub.thread = self.thread
        self.thread.start()
        self._ready.wait()
        if self._loop is None:
            self.thread.join()
            raise self._refusal()

    def _refusal(self) -> Exception:
        failure = self._failure
        if isinstance(failure, ListenError):
            return failure  # the control socket's
        refusal = RuntimeError("the control thread did not start")
        refusal.__cause__ = failure
        return refusal

    def reconfigure(self, config: Config, authenticator: Authenticator | None) -> None:
        """Returns when the new ones are asked. Of a chain, which must be a new one or the same, the old one ends when it has answered."""
        self._level = logs.LEVELS[config.log.level]
        chosen = self._chosen(config, authenticator)
        loop = self._loop
        if loop is None:
            return
        done = asyncio.run_coroutine_threadsafe(self._exchange(chosen), loop)
        if threading.current_thread() is not self.thread:
            done.result()

    @staticmethod
    def _chosen(config: Config, authenticator: Authenticator | None) -> Authenticator:
        return authenticator or StaticAuthenticator(config.auth)

    async def _exchange(self, chosen: Authenticator) -> None:
        """Put an authenticator in force, on the control loop. What others have decided is forgotten after that."""
        old, self._chain = self._chain, chosen if isinstance(chosen, ChainAuthenticator) else None
        if self._chain is not None and self._chain is not old:
            self._chain.forget = self._forget
            await self._chain.start()
        self._authenticator = chosen
        self._forget()
        if old is not None and old is not self._chain:
            self._help(old.retire())
        if (self._files or self._chain is not None or self._rules is not None) and self._watching is None:
            self._watching = self._help(self._watch())

    def _help(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._helpers.add(task)
        task.add_done_callback(self._helpers.discard)
        return task

    def _forget(self) -> None:
        """Any thread."""
        chain = self._chain
        asks_hooks = self._hooks is not None and self._hooks.asks_at_connect  # some may be about certain clients only
        if chain is not None:
            self._engine.verdicts(on=True, client_id=asks_hooks or chain.depends_on_client_id, address=chain.depends_on_address)
        else:
            every = not isinstance(self._authenticator, StaticAuthenticator)  # a program's own may look at whatever it is told
            self._engine.verdicts(on=True, client_id=asks_hooks or every, address=every)

    def stats(self) -> dict[str, int]:
        """Of authentication, HTTP, QUIC and the control socket. Any thread."""
        chain, roads = self._chain, self._roads
        found = self._channel.stats()
        if chain is not None:
            found |= chain.stats()
        if self._hooks is not None:
            found |= self._hooks.stats()
        return self._last_stats | found if roads is None else found | roads.stats()

    def begin_stop(self) -> None:
        """HTTP clients are told, and their connections end as soon as the engine has ended what they carry."""
        if self._hooks is not None:
            self._hooks.begin_stop()
        if self._loop is not None and self._http_ends is not None:
            self._loop.call_soon_threadsafe(self._http_ends.set)

    def stop(self) -> None:
        """Write what the engine still has to tell, cancel open decisions, join the thread."""
        self.begin_stop()
        if self._loop is not None and self._ended is not None:
            self._loop.call_soon_threadsafe(self._ended.set)
        self.thread.join()
        self._last_stats = self.stats()
        self._roads = None
        self._files = ()  # what it was given is free when the broker has stopped, not when cycles are collected
        self._watching = None
        self._chain = None
        self._hooks = None
        self._status = dict

    def _run(self) -> None:
        try:
            asyncio.run(self._main())
        except BaseException as error:
            self._failure = error
        finally:
            self._ready.set()

    async def _main(self) -> None:
        self._ended = asyncio.Event()
        self._http_ends = asyncio.Event()
        loop = asyncio.get_running_loop()
        await self._channel.open()
        if self._quic or any(one.listener.is_http for one in self._served.values()):
            from mqttc.roads import Roads  # late: brokers without these listeners need none of it

            self._roads = Roads(loop, self._engine, self._served, self._quic, self._config, self._status)
        if self._hooks is not None:
            self._hooks.start()
            self._hooks.forget = self._forget
        await self._exchange(self._authenticator)
        loop.add_reader(self._engine.event_fd, self._drain)
        loop.add_reader(self._hub.port.fd, self._hub.drain)
        self._loop = loop
        self._ready.set()
        http = loop.create_task(self._end_http())
        await self._ended.wait()
        await http
        if self._roads is not None:
            await self._roads.close()
        helpers = list(self._helpers)
        for helper in helpers:
            helper.cancel()
        await asyncio.gather(*helpers, return_exceptions=True)
        loop.remove_reader(self._engine.event_fd)
        loop.remove_reader(self._hub.port.fd)
        while self._drain() or self._hub.drain():
            pass
        self._hub.close()
        for decision in self._decisions:
            decision.cancel()
        await asyncio.gather(*self._decisions, return_exceptions=True)
        if self._hooks is not None:
            await self._hooks.close()
        if self._chain is not None:
            await self._chain.close()

    async def _end_http(self) -> None:
        assert self._http_ends is not None
        await self._http_ends.wait()
        await self._channel.close()
        if self._roads is not None:
            await self._roads.end_http()

    async def _watch(self) -> None:
        """Look whether certificates, keys, rules and what authenticators read have changed on disk."""
        while True:
            await asyncio.sleep(_WATCH_S)
            for files in self._files:
                try:
                    if await asyncio.to_thread(files.check):
                        logs.emit(_logger, logging.INFO, "certificates_loaded", {})
                except (ConfigError, OSError, ValueError) as error:
                    logs.emit(_logger, logging.ERROR, "certificates_refused", {"problem": str(error)})
            if self._rules is not None:
                await self._watch_rules(self._rules)
            chain = self._chain
            if chain is not None:
                try:
                    if await asyncio.to_thread(chain.check):
                        logs.emit(_logger, logging.INFO, "auth_loaded", {})
                except ConfigError as error:
                    logs.emit(_logger, logging.ERROR, "auth_refused", {"problem": str(error)})

    async def _watch_rules(self, rules: RulesInForce) -> None:
        try:
            if await asyncio.to_thread(rules.check):
                logs.emit(_logger, logging.INFO, "acl_loaded", {})
        except (ConfigError, MemoryError, RuntimeError) as error:
            logs.emit(_logger, logging.ERROR, "acl_refused", {"problem": str(error)})

    def _drain(self) -> int:
        events = self._engine.events()
        for event in events:
            if isinstance(event, native.Question) and event.kind == _QUESTION_HEAD and self._roads is not None:
                self._roads.head(event)
            elif isinstance(event, native.Question) and event.kind >= QUESTION_PUBLISH:
                assert self._hooks is not None
                served = self._served.get(event.listener)
                self._hooks.ask(event, "" if served is None else served.name, "" if served is None else served.listener.scheme)
            elif isinstance(event, native.Question):
                decision = asyncio.ensure_future(self._decide(event))
                self._decisions.add(decision)
                decision.add_done_callback(self._decisions.discard)
            elif event.level >= self._level:
                self._log(event)
        return len(events)

    def _log(self, event: native.LogEvent) -> None:
        served = self._served.get(event.listener)
        fields: dict[str, logs.Field] = {
            "client_id": event.client_id,
            "reason": f"0x{event.reason:02x}",
            "peer": event.peer,
            "listener": "" if served is None else served.name,
            "worker": event.worker,
            "detail": event.detail,
        }
        logs.emit(_logger, event.level, native.EVENT_NAMES[event.event], fields, event.wall_ms / 1000)

    async def _decide(self, question: native.Question) -> None:
        served = self._served[question.listener]
        proofs = (question.certificate, question.key_name, question.common_name)
        identity = None if proofs == (None, None, None) else PeerIdentity(*proofs)
        request = Request(
            client_id=question.client_id,
            peer=question.peer,
            anonymous_admitted=served.admits_anonymous(question.peer, question.remote),
            protocol=question.protocol,
            is_auth=question.kind == _QUESTION_AUTH,
            username=question.username,
            password=question.password,
            auth_method=question.auth_method,
            auth_data=question.auth_data,
            identity=identity,
            listener=served.name,
            transport=served.listener.scheme,
            connection=question.id >> 32,
            is_reauthentication=question.reason == _REAUTHENTICATE,
        )
        deadline = asyncio.timeout(self._auth_timeout_s)
        try:
            async with deadline:
                asked, hooks = self._authenticator, self._hooks
                verdict = await (asked.authenticate(request) if hooks is None else hooks.decide(request, asked))
            given = verdict.grant
            if verdict.username is not None and (request.is_auth or verdict.username != request.username):
                given = given or Grant()
                given = given if given.username is not None else replace(given, username=verdict.username)
            renewable = hooks is not None and hooks.authorizes(question.client_id)
            grant = None if given is None else compile_grant(given, self._auth_timeout_s if renewable else None)
            self._engine.answer(
                question.id,
                verdict.reason_code,
                auth_data=verdict.auth_data,
                username=verdict.username,
                lasts_ms=0 if verdict.lasts is None else max(1, _milliseconds(verdict.lasts)),
                # What a client may do depends on who it is: a grant is brought by an answer only.
                keep_ms=0 if grant is not None else _milliseconds(verdict.keep),
                grant=grant,
            )
        except Exception as error:
            if deadline.expired():
                return  # the engine keeps the same deadline, and has refused by itself
            fields: dict[str, logs.Field] = {"client_id": question.client_id, "error": repr(error)}
            logs.emit(_logger, logging.ERROR, "authenticator_failed", fields)
            self._engine.answer(question.id, SERVER_UNAVAILABLE)
