"""The one task of a client: makes a connection, waits for its end, makes the next one, until there is a reason not to."""

from __future__ import annotations

import asyncio
import inspect
import logging
import random
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from mqttc.client.backoff import delay_s
from mqttc.client.connection import Connection
from mqttc.client.core import Core, Events, Phase
from mqttc.client.link import open_link, os_text
from mqttc.client.options import PERMANENT, Options
from mqttc.client.redirect import Servers
from mqttc.client.store import Store
from mqttc.client.url import Target
from mqttc.codec import ReasonCode
from mqttc.errors import ClosedError, ConnectError, ConnectionLostError, DisconnectedError, MqttError, NotSupportedError, RefusedError

log = logging.getLogger("mqttc.client")


class Owner(Protocol):
    """The client, as its supervisor sees it."""

    def dispatch(self, events: Events) -> None: ...
    def accepted(self, connection: Connection) -> None:
        """The broker has accepted."""
        ...

    def disconnected(self) -> None:
        """It is over with this connection."""
        ...

    def waiting(self, error: BaseException | None, first: bool) -> None:
        """Another attempt follows; ``first``: no connection has been there yet."""
        ...


class Supervisor:
    """``connection`` is the one that is there, or is being made."""

    def __init__(self, target: Target, options: Options, core: Core, store: Store, owner: Owner) -> None:
        self.connection: Connection | None = None
        self._servers = Servers(target, options.redirects)
        self._options = options
        self._core = core
        self._store = store
        self._owner = owner
        self._versions: tuple[int, ...] = (options.version, *options.fallback)
        self.leaving = False
        """DISCONNECT is sent: this connection is the last."""
        self._spoke = False
        """The last attempt came as far as CONNECT."""

    async def run(self) -> BaseException:
        """Why no further connection is made."""
        reconnect = self._options.reconnect
        attempt = 0
        first = True
        while True:
            error: BaseException | None
            try:
                connection = await self._open()
            except (MqttError, OSError) as failure:
                error = failure
                self._core.stats.connect_failures += 1
                if self._elsewhere(failure, failed=True):
                    self._owner.waiting(error, first)
                    continue
                if getattr(failure, "reason_code", None) in PERMANENT or (first and not self._options.retry_first):
                    return failure
            except Exception as failure:  # of `Authentication.respond`, or a name that cannot be looked up: it would be the same again
                return failure
            else:
                first, attempt = False, 0
                error = await self._live(connection)
                if self.leaving:
                    return ClosedError("the client is closed")
                if self._elsewhere(error, failed=False):
                    self._owner.waiting(error, first)
                    continue
                if error is not None and _is_final(error):
                    return error
            if reconnect is None or (reconnect.attempts is not None and attempt >= reconnect.attempts):
                return error if error is not None else ConnectionLostError(f"{self.target.shown}: the connection was given up")
            delay = delay_s(reconnect, attempt, random.random())
            attempt += 1
            log.info("reconnecting client_id=%r delay_s=%.3f: %s", self._core.client_id, delay, error)
            self._owner.waiting(error, first)
            await asyncio.sleep(delay)

    @property
    def target(self) -> Target:
        """Of this attempt or connection."""
        return self._servers.target

    def _elsewhere(self, error: BaseException | None, failed: bool) -> bool:
        """Whether the next attempt goes to another broker at once, because this one has named it."""
        servers, shown = self._servers, self.target.shown
        if servers.refer(error, asyncio.get_running_loop().time()):
            self._core.stats.redirects += 1
        elif not failed:
            servers.ended()
            return False
        elif not servers.failed():
            return False
        log.info("redirected client_id=%r from=%s to=%s: %s", self._core.client_id, shown, self.target.shown, error)
        return True

    async def _live(self, connection: Connection) -> MqttError | None:
        """From CONNACK to the end of the connection, whose reason it returns."""
        self._servers.accepted(connection.loop.time())
        self._owner.accepted(connection)
        connection.flush_soon()
        try:
            return await connection.ended
        finally:
            connection.abort()
            self.connection = None
            self._core.lost()
            self._owner.disconnected()

    async def _open(self) -> Connection:
        """A connection that the broker has accepted, in the first version that it takes. Raises ``MqttError``, ``OSError``."""
        while True:
            version = self._versions[0]
            try:
                return await self._attempt(version)
            except ConnectError as error:
                unsupported = error.reason_code == ReasonCode.UNSUPPORTED_PROTOCOL_VERSION
                silent = not isinstance(error, RefusedError) and not self._core.stats.connections and self._spoke
                if len(self._versions) == 1 or not (unsupported or silent):
                    raise
                log.info("fallback client_id=%r from=%d to=%d: %s", self._core.client_id, version, self._versions[1], error)
                self._versions = self._versions[1:]

    async def _attempt(self, version: int) -> Connection:
        connection = self.connection = Connection(self._core, self._store, self.target.shown, self._owner.dispatch)
        options, shown = self._options, self.target.shown
        self._spoke = False
        try:
            async with asyncio.timeout(options.connect_timeout_s):
                data = None if options.authentication is None else await respond(options.authentication.respond, None)
                connection.opened(await open_link(self.target, options, connection))
                self._spoke = True
                self._core.begin(version, data)
                connection.flush()
                await connection.answered
                return connection
        except BaseException as error:
            connection.abort()
            self.connection = None
            self._core.lost()
            if isinstance(error, TimeoutError) and error.errno is None:
                raise TimeoutError(f"{shown}: no answer within {options.connect_timeout_s:g} s") from error
            if isinstance(error, OSError) and not isinstance(error, MqttError):
                raise ConnectError(f"{shown}: {os_text(error)}") from error
            raise

    async def challenged(self, data: bytes | None) -> None:
        """Answers the broker's AUTH; a method that fails ends the connection."""
        connection, authentication = self.connection, self._options.authentication
        if connection is None or authentication is None:
            return
        try:
            answer = await respond(authentication.respond, data)
        except Exception as error:
            log.exception("authentication_failed client_id=%r", self._core.client_id)
            connection.fail(ConnectError(f"{self.target.shown}: the answer to the broker's challenge failed: {error}"))
            return
        if connection is self.connection and self._core.phase in (Phase.CONNECTING, Phase.ONLINE):
            self._core.authenticate(answer)
            connection.flush()

    async def reauthenticate(self) -> None:
        """Begins it. Raises ``NotSupportedError``, ``ClosedError``."""
        authentication = self._options.authentication
        if authentication is None:
            raise NotSupportedError("there is no authentication method to authenticate with")
        self._core.authenticate(await respond(authentication.respond, None), again=True)
        if self.connection is not None:
            self.connection.flush_soon()


def _is_final(error: MqttError) -> bool:
    """The broker does not want to see this client again, or the fault is not the connection's."""
    if isinstance(error, DisconnectedError):
        return error.reason_code in PERMANENT
    return not isinstance(error, ConnectionLostError | ConnectError)


async def respond(method: Callable[[bytes | None], Any], data: bytes | None) -> bytes | None:
    answer: bytes | Awaitable[bytes | None] | None = method(data)
    if inspect.isawaitable(answer):
        return await answer
    return answer
