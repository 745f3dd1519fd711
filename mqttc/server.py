"""``Broker``: the data plane's engine, its listeners and its control thread, as one object.

A broker lives in any Python program. Its sockets, sessions and messages are the engine's, on threads without
the GIL; its decisions and log lines are made on one Python thread with an asyncio loop of its own, so that
neither a blocked program nor a blocked loop of the program keeps clients waiting.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import socket
import threading
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from mqttc import logs, native
from mqttc.auth import Authenticator
from mqttc.auth.chain import ChainAuthenticator
from mqttc.auth.grant import Action
from mqttc.auth.rules import RulesInForce
from mqttc.config import DURABILITY_MODES, TLS_KEYS, Auth, Config, InetAddress, Listener
from mqttc.config_auth import is_local_host
from mqttc.control import Control
from mqttc.embed.api import InProcess
from mqttc.embed.explain import LiveExplanation, explain
from mqttc.embed.hub import Hub
from mqttc.errors import BrokerError
from mqttc.hook_runner import HookRunner
from mqttc.hooks import Hooks
from mqttc.listen import BoundListener, Served, bind_all
from mqttc.store import StoreError, open_store
from mqttc.tls import ListenerFiles, ListenerTls

if TYPE_CHECKING:
    from mqttc.clock import VirtualClock

_ANONYMOUS: Final[Mapping[bool | str, int]] = {False: 0, True: 1, "loopback": 2}
_EXIT_TIMEOUT_MS: Final = 1000
_PROGRESS_S: Final = 2.0
_SETTLE_ROUNDS: Final = 100
_ACL_KEY: Final = "auth.acl_file"
_LIVE_AUTH_KEYS: Final = [key for key in Auth.model_fields if key not in ("anonymous", "acl_file")]
_LIVE_KEYS: Final = frozenset({"log.level", "log.format", *(f"auth.{key}" for key in _LIVE_AUTH_KEYS)})


_logger: Final = logging.getLogger(logs.LOGGER_NAME)


def _say(line: str) -> None:
    logs.emit(_logger, logging.WARNING, "store", {"detail": line})


@dataclass(frozen=True, slots=True)
class Reload:
    """What a new configuration changed in the running broker, and what waits for a restart."""

    applied: tuple[str, ...]
    needs_restart: tuple[str, ...]


class Broker(InProcess):
    """An MQTT broker inside this process; several may run side by side.

    ``config`` is a ``Config``, a mapping of the same shape as the configuration file, or None for a listener
    on the loopback, port 1883. Files and the environment are not read (``Config.load`` does that), and
    nothing is written. An invalid mapping raises ``ConfigError``. ``authenticator`` decides about clients
    with credentials instead of the lists of ``[auth]``. ``clock``: time that tests move; see ``mqttc.testing``. ``hooks``: what this
    program wants to have a say about, see docs/hooks.md.

    Start and stop it with ``start()`` and ``stop()``, ``with`` or ``async with``; afterwards it may be
    started again, empty. Methods may be called from any thread; in a forked child every call raises.
    """

    def __init__(
        self,
        config: Config | Mapping[str, Any] | None = None,
        *,
        authenticator: Authenticator | None = None,
        clock: VirtualClock | None = None,
        hooks: Hooks | None = None,
    ) -> None:
        self._config = Config.of(config)
        self._clock = clock
        self._hooks = hooks
        self._own_authenticator = authenticator
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._running: _Running | None = None
        self._ending = False
        self._last_stats: dict[str, int] = {}

    @property
    def config(self) -> Config:
        """The configuration in force."""
        return self._config

    @property
    def running(self) -> bool:
        return self._running is not None

    @property
    def ending(self) -> bool:
        """Whether `stop` is under way, or it does not run at all; any thread."""
        return self._ending or self._running is None

    @property
    def urls(self) -> tuple[str, ...]:
        """The listeners' URLs with their actual ports, in the order of the configuration; none if stopped."""
        self._check_process()
        running = self._running
        return () if running is None else tuple(bound.url for bound in running.bound)

    def start(self, bound: list[BoundListener] | None = None) -> None:
        """Bring back what the store holds, bind all listeners and serve.

        ``bound``: the configuration's listeners, bound already (`mqttc.listen.bind_all`); they are owned from here on.
        Raises ``ListenError``, ``mqttc.store.StoreError`` or another ``OSError``, and then nothing runs. Hooks that are coroutine
        functions run on the loop that runs here, if they were not given another; without one, ``BrokerError``.
        """
        try:
            loop: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        except RuntimeError:
            loop = None
        self._start(loop, bound)

    def _start(self, loop: asyncio.AbstractEventLoop | None, bound: list[BoundListener] | None = None) -> None:
        self._check_process()
        with self._lock:
            if self._running is not None:
                raise BrokerError("the broker is running already")
            try:
                self._running = _Running(self._config, self._own_authenticator, self._clock, bound, self._hooks, loop)
            except BaseException:
                for one in bound or ():
                    one.close()
                raise
            _running_brokers.add(self)

    def stop(self, timeout: float | None = None) -> bool:
        """Disconnect the clients, send what is queued, free everything. Does nothing if it is not running.

        ``timeout``: seconds for the sending, default ``limits.shutdown_timeout``. True if all was sent.
        """
        self._check_process()
        with self._lock:
            running = self._running
            if running is None:
                return True
            if threading.current_thread() is running.control.thread:
                raise BrokerError("the broker cannot be stopped from its own control thread")
            seconds = self._config.limits.shutdown_timeout if timeout is None else timeout
            self._ending = True
            try:
                flushed = running.stop(round(seconds * 1000))
            finally:
                self._last_stats = running.last_stats
                self._running = None
                self._ending = False
                _running_brokers.discard(self)
            return flushed

    def stats(self) -> dict[str, int]:
        """Counters and gauges; of a stopped broker the last ones."""
        self._check_process()
        with self._lock:
            return dict(self._last_stats) if self._running is None else self._running.stats()

    def _hub(self) -> Hub:
        self._check_process()
        running = self._running
        if running is None:
            raise BrokerError("the broker is not running")
        return running.hub

    def advance_clock(self, seconds: float) -> None:
        """Let the broker believe that time has passed. For tests; ``mqttc.testing.VirtualClock`` does more."""
        self._check_process()
        if self._clock is not None:
            raise BrokerError("the broker has a clock of its own: advance that")
        with self._lock:
            if self._running is None:
                raise BrokerError("the broker is not running")
            milliseconds = round(seconds * 1000)
            self._running.engine.advance_clock(milliseconds, milliseconds)

    def settle(self) -> None:
        """Return when the workers have dealt with what had reached the broker's sockets, and with what followed from it. For tests:
        what a client has sent before may still be on its way only if the client has not given it to its operating system yet.
        While others go on sending, it returns after a bounded number of rounds.
        """
        self._check_process()
        with self._lock:
            if self._running is None:
                raise BrokerError("the broker is not running")
            seen = -1
            for _ in range(_SETTLE_ROUNDS):
                self._running.engine.advance_clock(0, 0)
                received = self._running.engine.stats()["bytes_received"]
                if received == seen:
                    return
                seen = received

    def listener(self, url: str) -> Listener:
        """The configuration of the listener with that URL, as `urls` has it. ``KeyError``: there is none."""
        with self._lock:
            return self._find(url)[1].listener

    def adopt(self, url: str, peer: str, *, secure: bool = False, remote: bool = True, certificate: bytes | None = None) -> socket.socket:
        """A new connection whose bytes this program carries: one end of a socket pair, non-blocking, which the caller owns.

        ``url``: which listener's rules hold, one of `urls` of the scheme ``asgi``; ``KeyError`` if there is none such. ``peer``: the
        client, ``host:port``, for log lines and decisions. ``secure``: whether the client's road to this program is encrypted.
        ``remote``: whether it is no program of this machine whatever its address says, so that ``anonymous = "loopback"`` does not
        hold. ``certificate``: the client's, DER, already verified. Raises ``OSError`` where limits allow no further connection.
        """
        from mqttc.adapters import Origin
        from mqttc.adapters.adopt import adopt

        with self._lock:
            identifier, _ = self._find(url)
            assert self._running is not None
            return adopt(self._running.engine, Origin(identifier, peer, secure, certificate, proxied=remote), False)

    def _find(self, url: str) -> tuple[int, Served]:
        self._check_process()
        if self._running is None:
            raise BrokerError("the broker is not running")
        for identifier, one in self._running.served.items():
            if one.bound.url == url and one.listener.scheme == "asgi":
                return identifier, one
        raise KeyError(url)

    def reload(self, config: Config | Mapping[str, Any]) -> Reload:
        """Take over what can change while clients are connected: ``log.*``, ``auth.*`` but ``anonymous``, and TLS.

        The files of TLS listeners, authenticators and rules are read again; connections keep the certificates that they began with,
        and clients that were admitted stay. When this returns the new rules are in force; whether there are any at all needs a restart.
        Raises ``ConfigError`` for an invalid configuration; the old one then stays in force. What needs a
        restart is named in the answer and keeps its old value.
        """
        self._check_process()
        new = Config.of(config)
        with self._lock:
            old = self._config
            changed = [key for key in _keys(new) if _value(new, key) != _value(old, key)]
            live = [key for key in changed if key in _LIVE_KEYS]
            if self._running is not None and not self._running.asks_gate and asks_gate(new):
                # The listeners were started without the gate, so nobody would ask the new lists and authenticators.
                live = [key for key in live if not key.startswith("auth.")]
            if self._running is not None and logs.LEVELS[new.log.level] < self._running.level:
                # Workers make no records below the level that they were started with.
                live = [key for key in live if key != "log.level"]
            rules = None if self._running is None else self._running.rules
            if rules is not None and new.auth.acl_file:
                rules.read(new.auth.acl_file)  # before anything changes
            if self._running is None or (rules is not None and new.auth.acl_file):
                live += [key for key in changed if key == _ACL_KEY]
            authenticator = self._own_authenticator
            if self._running is not None and authenticator is None:
                authenticator = self._running.authenticator_for(new, self._config, live)
            if self._running is not None and self._running.watched:
                applied = old.model_copy(update={"listeners": _with_tls_keys(old.listeners, new.listeners), "tls": new.tls})
                self._running.reload_tls(applied)
                self._config = applied
                live += [key for key in changed if key.startswith("tls.")]
                if "listeners" in changed and applied.listeners == new.listeners:
                    live.append("listeners")
            waiting = [key for key in changed if key not in live]
            for section in ("log", "auth"):
                names = [key.partition(".")[2] for key in live if key.startswith(section + ".")]
                source, target = getattr(new, section), getattr(self._config, section)
                update = target.model_copy(update={name: getattr(source, name) for name in names})
                self._config = self._config.model_copy(update={section: update})
            if rules is not None and new.auth.acl_file:
                rules.apply(new.auth.acl_file)
            if self._running is not None:
                self._running.control.reconfigure(self._config, authenticator)
                self._running.chain = authenticator if isinstance(authenticator, ChainAuthenticator) else None
        return Reload(tuple(live), tuple(waiting))

    async def explain(
        self,
        action: Action,
        topic: str,
        *,
        client_id: str,
        username: str | None = None,
        listener: str | None = None,
        groups: Sequence[str] = (),
        limit: int = 100,
        after: str | None = None,
    ) -> LiveExplanation:
        """Whether a client may do this, which rule decides, and who would receive what it publishes.

        ``topic`` is a filter if the action is ``subscribe``. A client that is connected is asked about itself, so that what an
        authenticator granted it counts; with a ``username`` (one that was checked) or ``listener`` (its name or URL) only if these are
        its own. Else the rules in force decide: ``username`` None is then anonymous, ``listener`` None one that no rule names. With
        ``groups`` they always do, for a client that an authenticator has found to be in these. ``limit`` (1 to 1000) and ``after`` are
        the page of receivers. ``ValueError``: not a topic, or there is no such listener.
        """
        hub = self._hub()
        running = self._running
        rules = None if running is None else running.rules
        return await explain(
            hub, rules, action, topic, client_id=client_id, username=username, listener=listener, groups=groups, limit=limit, after=after
        )

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        starting = asyncio.ensure_future(asyncio.to_thread(self._start, asyncio.get_running_loop()))
        try:
            await asyncio.shield(starting)
        except asyncio.CancelledError:
            await asyncio.wait([starting])
            if not starting.cancelled() and starting.exception() is None:
                await asyncio.to_thread(self.stop)
            raise
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        stopping = asyncio.ensure_future(asyncio.to_thread(self.stop))
        try:
            await asyncio.shield(stopping)
        except asyncio.CancelledError:
            await asyncio.wait([stopping])
            raise

    def _check_process(self) -> None:
        if os.getpid() != self._process:
            raise BrokerError("a broker does not survive a fork; make a new one in the child")

    def _stop_at_exit(self) -> None:
        if os.getpid() == self._process:
            self.stop(_EXIT_TIMEOUT_MS / 1000)


_running_brokers: set[Broker] = set()


@atexit.register
def _stop_all() -> None:
    """The engine's threads must be joined before the interpreter goes."""
    for broker in list(_running_brokers):
        broker._stop_at_exit()


def _with_tls_keys(old: list[Listener], new: list[Listener]) -> list[Listener]:
    """The listeners as they run, with the TLS keys of the new ones where these are the same otherwise."""
    if len(old) != len(new):
        return old
    merged: list[Listener] = []
    for before, after in zip(old, new, strict=True):
        taken = before.model_copy(update={key: getattr(after, key) for key in TLS_KEYS})
        merged.append(after if taken == after and before.is_tls else before)
    return merged


def _keys(config: Config) -> list[str]:
    """Dotted names of all keys; the listeners count as one."""
    keys: list[str] = []
    for name in type(config).model_fields:
        section = getattr(config, name)
        fields = getattr(type(section), "model_fields", None)
        keys += [name] if fields is None else [f"{name}.{field}" for field in fields]
    return keys


def _value(config: Config, key: str) -> object:
    value: object = config
    for name in key.split("."):
        value = getattr(value, name)
    return value


def asks_gate(config: Config) -> bool:
    """Whether the control plane has a say about clients with credentials."""
    return bool(config.auth.allow or config.auth.deny or config.auth.sources)


def warn_of_plain_passwords(config: Config) -> None:
    """A line for each listener at which clients would send passwords that anybody on the way can read."""
    if not {"password_file", "sql", "jwt", "http", "ldap"} & set(config.auth.sources):
        return
    for listener in config.listeners:
        address = listener.address
        if isinstance(address, InetAddress) and not address.tls and not is_local_host(address.host) and not listener.behind_proxy:
            fields: dict[str, logs.Field] = {
                "listener": listener.name or address.url(),
                "detail": "passwords cross the network unencrypted here; use tls:// or wss://, or auth.scram alone",
            }
            logs.emit(_logger, logging.WARNING, "plain_passwords", fields)


def _files_of(config: Config, listener: Listener) -> ListenerFiles | None:
    """What a listener's certificates are loaded into."""
    if not listener.is_tls:
        return None
    if not listener.is_quic:
        return ListenerTls(config, listener)
    from mqttc.roads import QuicFiles  # late: see control

    return QuicFiles(config, listener)


def _ids_of(served: Mapping[int, Served]) -> dict[str, list[int]]:
    """The engine's listeners by their names and their URLs, as configured and as bound."""
    ids: dict[str, list[int]] = {}
    for identifier, one in served.items():
        for name in {one.name, one.listener.address.url(), one.bound.url}:
            ids.setdefault(name, []).append(identifier)
    return ids


class _Running:
    """Everything that exists from start to stop."""

    def __init__(
        self,
        config: Config,
        authenticator: Authenticator | None,
        clock: VirtualClock | None,
        bound: list[BoundListener] | None,
        hooks: Hooks | None,
        loop: asyncio.AbstractEventLoop | None,
    ) -> None:
        self.last_stats: dict[str, int] = {}
        self.clock = clock
        self.level = logs.LEVELS[config.log.level]
        self.asks_always = hooks is not None and hooks.asks_at_connect
        self.asks_gate = self.asks_always or authenticator is not None or asks_gate(config)
        self.chain = ChainAuthenticator(config) if authenticator is None and config.auth.sources else None
        self.files = [_files_of(config, listener) for listener in config.listeners]
        self.bound: list[BoundListener] = []
        self.rules: RulesInForce | None = None
        now_ms = None if clock is None else round(clock.time * 1000)
        self.store = open_store(config.data_dir, progress=_say, now_ms=now_ms) if config.stores else None
        try:
            self.engine = native.Engine(response_information=config.broker.response_information, **config.engine_settings())
            try:
                with nullcontext() if clock is None else clock.starting(self.engine):
                    self._recover(config)
                    self.bound = bind_all(config.listeners) if bound is None else bound
                    self._open(config, authenticator, hooks, loop)
            except BaseException:
                self.engine.close()
                raise
        except BaseException:
            self._let_go()
            raise

    def _open(
        self, config: Config, authenticator: Authenticator | None, hooks: Hooks | None, loop: asyncio.AbstractEventLoop | None
    ) -> None:
        served = self.served = dict[int, Served]()
        self.quic: dict[int, Any] = {}
        for bound, files in zip(self.bound, self.files, strict=True):
            self._add(bound, config, files, served)
        warn_of_plain_passwords(config)
        if config.auth.acl_file:
            self.rules = RulesInForce(self.engine, config.auth.acl_file, _ids_of(served))
        self.hub = Hub(self.engine, served, config)
        asked = authenticator or self.chain
        runner = None if hooks is None else HookRunner(hooks, self.engine, self.hub, config, loop)
        try:
            self.control = Control(self.engine, self.hub, served, self.watched, self.quic, config, asked, self.stats, self.rules, runner)
        except BaseException:
            if runner is not None:
                runner.abandon()
            raise
        try:
            self.engine.start()
        except BaseException:
            self.control.stop()
            raise

    def _recover(self, config: Config) -> None:
        """Bring back what the store holds, before anybody can connect."""
        if self.store is None:
            return
        ended = threading.Event()
        reporter = threading.Thread(target=self._report, args=(ended,), name="mqttc-recovery", daemon=True)
        reporter.start()
        try:
            self.engine.open_store(
                str(self.store.path),
                max_backlog_bytes=config.durability.max_backlog,
                retry_ms=round(config.durability.retry * 1000),
                filters=[(one.filter, DURABILITY_MODES.index(one.mode)) for one in config.durability.filters],
            )
        except ValueError as error:
            raise StoreError(f"{self.store.path}: {error}; --recover saves what can be read") from error
        finally:
            ended.set()
            reporter.join()
        found = self.engine.recovered()
        if not self.store.created:
            fields: dict[str, logs.Field] = {**found, "clean": str(self.store.clean).lower()}
            logs.emit(_logger, logging.INFO, "recovered", fields)

    def _report(self, ended: threading.Event) -> None:
        """A line every two seconds of a long recovery."""
        while not ended.wait(_PROGRESS_S):
            fields: dict[str, logs.Field] = {**self.engine.recovered()}
            logs.emit(_logger, logging.INFO, "recovering", fields)

    def _let_go(self) -> None:
        """Of what is shared with other processes: sockets and the store."""
        for bound in self.bound:
            bound.close()
        if self.store is not None:
            self.store.close()

    @property
    def watched(self) -> list[ListenerFiles]:
        return [files for files in self.files if files is not None]

    def _add(self, bound: BoundListener, config: Config, files: ListenerFiles | None, served: dict[int, Served]) -> None:
        listener = bound.listener
        anonymous = listener.effective_anonymous(config.auth)
        name = listener.name or bound.url
        sockets = [] if bound.is_quic else bound.sockets
        while True:
            identifier = self.engine.add_listener(
                sockets[0].fileno() if sockets else -1,
                name=name,
                family=int(bound.is_unix),
                maximum_qos=listener.maximum_qos,
                max_connections=listener.max_connections,
                anonymous=_ANONYMOUS[anonymous],
                auth=2 if self.asks_always else int(self.asks_gate),
                tcp_user_timeout_ms=round(listener.tcp_user_timeout * 1000),
                keepalive_idle_s=listener.tcp_keepalive_idle,
                server_reference=listener.server_reference,
                tls=files.native if isinstance(files, ListenerTls) else None,
                http=listener.is_http,
                proxies=listener.trusted_proxies if listener.proxy_protocol else None,
                durability=DURABILITY_MODES.index(listener.durability or "off"),
                proxied=listener.behind_proxy,
            )
            if sockets:
                sockets.pop(0).detach()
            served[identifier] = Served(listener, name, bound.is_unix, anonymous, bound)
            if bound.is_quic:
                self.quic[identifier] = files
            if not sockets:
                return

    def stats(self) -> dict[str, int]:
        stats = self.engine.stats() | self.control.stats()
        for files in self.files:
            if isinstance(files, ListenerTls):
                for name, count in files.native.stats().items():
                    stats[name] = stats.get(name, 0) + count
        return stats

    def authenticator_for(self, new: Config, old: Config, live: list[str]) -> ChainAuthenticator | None:
        """Of a reload: a new one if its section has changed, else the one that there is, its files read again. ``ConfigError``."""
        if not any(key.startswith("auth.") for key in live):
            if self.chain is not None:
                self.chain.check()
            return self.chain
        taken = new.model_copy(update={"auth": new.auth.model_copy(update={"anonymous": old.auth.anonymous})})
        return ChainAuthenticator(taken) if new.auth.sources else None

    def reload_tls(self, config: Config) -> None:
        """Read the files of all TLS listeners again, by this configuration; all or, with ``ConfigError``, none."""
        pairs = [(files, listener) for files, listener in zip(self.files, config.listeners, strict=True) if files is not None]
        for _, listener in pairs:
            _files_of(config, listener)
        for files, listener in pairs:
            files.apply(config, listener)

    def stop(self, timeout_ms: int) -> bool:
        self.control.begin_stop()
        if self.clock is not None:
            self.clock.let_go(self.engine)
        try:
            flushed = self.engine.stop(timeout_ms)
        finally:
            self.control.stop()
            self.last_stats = self.stats()
            self.files.clear()
            self.engine.close()
            self._let_go()
        return flushed
