"""The control plane's thread: log lines, decisions about clients, HTTP and QUIC, on an asyncio loop of its own."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from mqttc import logs, native
from mqttc.auth import SERVER_UNAVAILABLE, Authenticator, PeerIdentity, Request
from mqttc.auth.acl import compile_grant
from mqttc.auth.rules import RulesInForce
from mqttc.auth.static import StaticAuthenticator
from mqttc.config import Config, ConfigError
from mqttc.listen import Served
from mqttc.tls import ListenerFiles

if TYPE_CHECKING:
    from mqttc.roads import QuicFiles, Roads

_WATCH_S: Final = 2.0
_QUESTION_AUTH: Final = 1
_QUESTION_HEAD: Final = 2
_logger = logging.getLogger(logs.LOGGER_NAME)


class Control:
    """Starts its thread; ``stop`` joins it. ``status``: counters and gauges of the whole broker, for its pages."""

    def __init__(
        self,
        engine: native.Engine,
        served: Mapping[int, Served],
        files: Sequence[ListenerFiles],
        quic: Mapping[int, QuicFiles],
        config: Config,
        authenticator: Authenticator | None,
        status: Callable[[], Mapping[str, int]],
        rules: RulesInForce | None = None,
    ) -> None:
        self._engine = engine
        self._served = served
        self._files = files
        self._quic = quic
        self._config = config
        self._status = status
        self._rules = rules
        self._auth_timeout_s = config.limits.auth_timeout
        self.reconfigure(config, authenticator)
        self._decisions: set[asyncio.Task[None]] = set()
        self._roads: Roads | None = None
        self._last_stats: dict[str, int] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._failure: BaseException | None = None
        self._ready = threading.Event()
        self._http_ends: asyncio.Event | None = None
        self._ended: asyncio.Event | None = None
        self.thread = threading.Thread(target=self._run, name="mqttc-control", daemon=True)
        self.thread.start()
        self._ready.wait()
        if self._loop is None:
            raise RuntimeError("the control thread did not start") from self._failure

    def reconfigure(self, config: Config, authenticator: Authenticator | None) -> None:
        """Single assignments: the control thread sees the old or the new value of each."""
        self._level = logs.LEVELS[config.log.level]
        self._authenticator: Authenticator = authenticator or StaticAuthenticator(config.auth)

    def stats(self) -> dict[str, int]:
        """Of HTTP and QUIC. Any thread."""
        return self._last_stats if self._roads is None else self._roads.stats()

    def begin_stop(self) -> None:
        """HTTP clients are told, and their connections end as soon as the engine has ended what they carry."""
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
        if self._quic or any(one.listener.is_http for one in self._served.values()):
            from mqttc.roads import Roads  # late: brokers without these listeners need none of it

            self._roads = Roads(loop, self._engine, self._served, self._quic, self._config, self._status)
        loop.add_reader(self._engine.event_fd, self._drain)
        self._loop = loop
        self._ready.set()
        helpers = [loop.create_task(self._watch())] if self._files or self._rules is not None else []
        http = loop.create_task(self._end_http())
        await self._ended.wait()
        await http
        if self._roads is not None:
            await self._roads.close()
        for helper in helpers:
            helper.cancel()
        await asyncio.gather(*helpers, return_exceptions=True)
        loop.remove_reader(self._engine.event_fd)
        while self._drain():
            pass
        for decision in self._decisions:
            decision.cancel()
        await asyncio.gather(*self._decisions, return_exceptions=True)

    async def _end_http(self) -> None:
        assert self._http_ends is not None
        await self._http_ends.wait()
        if self._roads is not None:
            await self._roads.end_http()

    async def _watch(self) -> None:
        """Look whether certificates, keys and rules have changed on disk."""
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
        )
        deadline = asyncio.timeout(self._auth_timeout_s)
        try:
            async with deadline:
                verdict = await self._authenticator.authenticate(request)
            grant = None if verdict.grant is None else compile_grant(verdict.grant)
        except Exception as error:
            if deadline.expired():
                return  # the engine keeps the same deadline, and has refused by itself
            fields: dict[str, logs.Field] = {"client_id": question.client_id, "error": repr(error)}
            logs.emit(_logger, logging.ERROR, "authenticator_failed", fields)
            self._engine.answer(question.id, SERVER_UNAVAILABLE)
            return
        self._engine.answer(question.id, verdict.reason_code, auth_data=verdict.auth_data, grant=grant)
