"""HttpSide: the HTTP server of a broker, for connections that workers have spliced to the control loop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Final

from h2.errors import ErrorCodes
from hyperframe.frame import GoAwayFrame, SettingsFrame

from mqttc.adapters import Adopt, Origin
from mqttc.adapters.exchange import COUNTERS, App, HttpLimits, Shared
from mqttc.adapters.http1 import Http1
from mqttc.adapters.http2 import Http2
from mqttc.adapters.line import Line, Speaker, Turns
from mqttc.adapters.upgrade import HTTP2_HEAD, Refusal, Rules, error_response
from mqttc.logs import LOGGER_NAME

_READ_BYTES: Final = 16_384
"""Of one connection before the others have their turn."""
_FULL: Final = Refusal(HTTPStatus.SERVICE_UNAVAILABLE, "too many connections", ((b"retry-after", b"10"),))


class HttpSide:
    """Serves HTTP/1.1 and HTTP/2 by one ASGI application; WebSocket streams of HTTP/2 go to ``adopt``.

    Belongs to ``loop``; every call is made there. ``clock``: monotonic seconds, default the loop's.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        app: App,
        adopt: Adopt,
        limits: HttpLimits | None = None,
        logger: logging.Logger | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self._shared = Shared(
            loop=loop,
            app=app,
            adopt=adopt,
            limits=limits or HttpLimits(),
            logger=logger or logging.getLogger(LOGGER_NAME),
            counters=dict.fromkeys(COUNTERS, 0),
            tasks=set(),
            clock=clock or loop.time,
        )
        self._buffer = bytearray(_READ_BYTES)
        self._turns = Turns(loop)
        self._lines: set[Line] = set()
        self._starting: set[asyncio.Task[None]] = set()
        self._none_left = asyncio.Event()
        self._closing = False

    @property
    def connections(self) -> int:
        return len(self._lines)

    def stats(self) -> Mapping[str, int]:
        """Counters, and the gauge ``http_connections``."""
        return {**self._shared.counters, "http_connections": self.connections}

    def serve(self, sock: socket.socket, origin: Origin, rules: Rules) -> None:
        """Serve a non-blocking stream socket, which is ours from now on. ``origin.peer``: the other end, not yet the client behind it."""
        shared = self._shared
        if self._closing:
            sock.close()
        elif len(self._lines) >= shared.limits.max_http_connections:
            shared.count("http_connections_refused")
            shared.log(logging.WARNING, "http_connection_limit", origin, limit=shared.limits.max_http_connections)
            _turn_away(sock)
        else:
            line = Line(shared.loop, self._buffer, self._turns, self._line_closed)
            line.failed = lambda error: shared.log(logging.ERROR, "http_failed", origin, error=repr(error))
            line.speaker = _Door(line, shared, origin, rules)
            self._lines.add(line)
            task = shared.loop.create_task(self._start(line, sock, origin))
            self._starting.add(task)
            task.add_done_callback(self._starting.discard)

    async def close(self, grace_s: float = 1.0) -> None:
        """End everything: HTTP/2 peers are told, what runs has ``grace_s`` seconds to finish, then the rest is broken off.

        Streams that lead to workers end when the workers end them, so these stop first.
        """
        self._closing = True
        await asyncio.gather(*self._starting, return_exceptions=True)
        for line in list(self._lines):
            if line.speaker is not None:
                line.speaker.end()
        if self._lines:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(grace_s):
                    await self._none_left.wait()
        for line in list(self._lines):
            line.abort()
        tasks = list(self._shared.tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._lines:
            await self._none_left.wait()

    async def _start(self, line: Line, sock: socket.socket, origin: Origin) -> None:
        try:
            await self._shared.loop.connect_accepted_socket(lambda: line, sock)
        except (OSError, ValueError) as error:
            self._shared.log(logging.ERROR, "http_failed", origin, error=repr(error))
            sock.close()
            line.connection_lost(None)

    def _line_closed(self, line: Line) -> None:
        self._lines.discard(line)
        if self._closing and not self._lines:
            self._none_left.set()


class _Door:
    """First speaker of a line: looks which HTTP it is, and gives it over."""

    def __init__(self, line: Line, shared: Shared, origin: Origin, rules: Rules) -> None:
        self._line = line
        self._shared = shared
        self._origin = origin
        self._rules = rules
        self._input = bytearray()
        self._timer = shared.loop.call_later(shared.limits.http_timeout, self._expired)

    def received(self, data: bytes) -> None:
        self._input += data
        if self._input.startswith(HTTP2_HEAD):
            self._pass_on(Http2(self._line, self._shared, self._origin, self._rules))
        elif not HTTP2_HEAD.startswith(self._input):
            self._pass_on(Http1(self._line, self._shared, self._origin, self._rules))

    def _pass_on(self, speaker: Speaker) -> None:
        self._timer.cancel()
        self._line.speaker = speaker
        speaker.received(bytes(self._input))

    def _expired(self) -> None:
        self._shared.count("http_timeouts")
        self._line.finish()

    def room(self) -> None:
        pass

    def ended(self) -> None:
        self._line.finish()

    def lost(self) -> None:
        self._timer.cancel()

    def end(self) -> None:
        self._line.finish()


def _turn_away(sock: socket.socket) -> None:
    """Answer 503 without waiting for anything: what has come is read, so that closing does not reset the connection."""
    with contextlib.suppress(OSError):
        head = b""
        with contextlib.suppress(BlockingIOError):
            head = sock.recv(_READ_BYTES)
        if head.startswith(HTTP2_HEAD):
            sock.send(SettingsFrame(0).serialize() + GoAwayFrame(0, error_code=ErrorCodes.ENHANCE_YOUR_CALM).serialize())
        else:
            sock.send(error_response(_FULL))
        sock.shutdown(socket.SHUT_WR)
    sock.close()
