"""Exchange: one HTTP request and the application's response to it, whatever the HTTP version; and what all connections share.

The application is an ASGI 3 callable. Its request body is whole when it is called, for bodies are small here by a limit.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final, Protocol
from urllib.parse import unquote

from mqttc import logs
from mqttc.adapters import Adopt, Origin
from mqttc.adapters.upgrade import Headers, Refusal, Rules, client_of, parse_peer

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

EXTENSION: Final = "mqttc"
"""Key in ``scope["extensions"]``: ``proxied`` (a proxy has handed the request on), ``unix``, ``websocket_path``."""
_NAME: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+")
_VALUE: Final = re.compile(rb"[\t -~\x80-\xff]*")
"""RFC 9110 section 5.5; h2 does not look at what is sent."""


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """What HTTP clients may cost."""

    max_request_head: int = 16_384
    """Bytes of a request's head; of HTTP/2 the header list (RFC 9113 section 6.5.2), and its compressed form."""
    max_request_body: int = 65_536
    """Bytes of a request's body."""
    max_http_connections: int = 256
    """Connections at the same time."""
    max_http_streams: int = 100
    """Requests and WebSocket connections at the same time on one HTTP/2 connection."""
    http_timeout: float = 30.0
    """Seconds that a connection may be idle, and that a head, a body, or a response that is not read may take."""
    http_event_burst: int = 1000
    """HTTP/2 frames that carry nothing (resets, pings, settings, ...) which a peer may send at once."""
    http_event_rate: float = 100.0
    """Of these, how many a second in the long run."""


COUNTERS: Final = (
    *("http_requests", "http_websockets", "http_refused", "http_connections_refused", "http_streams_refused"),
    *("http_timeouts", "http_protocol_errors", "http_floods", "http_app_errors", "http_adopt_errors"),
)
"""What `Shared.counters` counts."""


@dataclass(eq=False, slots=True)
class Shared:
    """What all HTTP connections of a broker have in common; lives on the control loop."""

    loop: asyncio.AbstractEventLoop
    app: App
    adopt: Adopt
    limits: HttpLimits
    logger: logging.Logger
    counters: dict[str, int]
    tasks: set[asyncio.Task[None]]
    clock: Callable[[], float]
    """Monotonic seconds, for the budgets of events."""

    def count(self, name: str) -> None:
        self.counters[name] += 1

    def log(self, level: int, event: str, origin: Origin, **fields: logs.Field) -> None:
        logs.emit(self.logger, level, event, {"peer": origin.peer, **fields})


class Outlet(Protocol):
    """Where a response goes. Nothing here raises because the peer is gone."""

    def start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        """Header fields of the response. Raises where they are not well-formed."""

    def write(self, data: bytes) -> None: ...

    async def drain(self) -> None:
        """Return when the peer has taken enough for more to be written."""

    def complete(self) -> None:
        """The response is whole."""

    def refuse(self, refusal: Refusal) -> None:
        """Answer with an error; nothing was started."""

    def abort(self) -> None:
        """Break the response off: what was sent is not whole."""


def make_scope(
    *, method: bytes, path: bytes, query: bytes, headers: Headers, http_version: str, origin: Origin, rules: Rules
) -> dict[str, Any]:
    """The ASGI connection scope of a request. ``path``: as received, percent-encoded."""
    client, proxied = client_of(origin.peer, headers, rules.trusted_proxies)
    found = parse_peer(client)
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": http_version,
        "method": method.decode("ascii", "replace"),
        "scheme": "https" if origin.secure else "http",
        "path": unquote(path.decode("latin-1")),
        "raw_path": path,
        "query_string": query,
        "root_path": "",
        "headers": list(headers),
        "client": None if found is None else (str(found[0]), found[1]),
        "server": None,
        "extensions": {
            EXTENSION: {"proxied": proxied or origin.proxied, "unix": origin.peer == "unix", "websocket_path": rules.path},
        },
    }


class _NotReadError(Exception):
    """The peer does not read the response."""


class Exchange:
    """Runs the application for one request, as a task of ``shared``. ``done``: called when it has returned and the outlet was told."""

    def __init__(self, shared: Shared, origin: Origin, scope: Scope, body: bytes, outlet: Outlet, done: Callable[[], None]) -> None:
        self._shared = shared
        self._origin = origin
        self._scope = scope
        self._body: bytes | None = body
        self._outlet = outlet
        self._done = done
        self._has_body = scope["method"] != "HEAD"
        self._started = False
        self._complete = False
        self._finished = asyncio.Event()
        shared.count("http_requests")
        self._task = shared.loop.create_task(self._run())
        shared.tasks.add(self._task)
        self._task.add_done_callback(shared.tasks.discard)

    def cancel(self) -> None:
        """The peer is gone: nobody waits for the response, and ``done`` is not called."""
        self._task.cancel()

    async def _run(self) -> None:
        try:
            await self._shared.app(self._scope, self._receive, self._send)
            if not self._complete:
                raise RuntimeError("the application returned without a whole response")
            self._outlet.complete()
        except _NotReadError:
            self._shared.count("http_timeouts")
            self._shared.log(logging.INFO, "http_timeout", self._origin, detail="the response is not read")
            self._outlet.abort()
        except Exception as error:
            self._shared.count("http_app_errors")
            self._shared.log(logging.ERROR, "http_app_failed", self._origin, path=self._scope["path"], error=repr(error))
            if self._started:
                self._outlet.abort()
            else:
                self._outlet.refuse(Refusal(HTTPStatus.INTERNAL_SERVER_ERROR, "the server failed"))
        self._done()

    async def _receive(self) -> Message:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self._finished.wait()  # or cancelled, if the peer goes first
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        if message["type"] == "http.response.start" and not self._started:
            headers = [(bytes(name).lower(), bytes(value).strip(b" \t")) for name, value in message.get("headers", ())]
            for name, value in headers:
                if not _NAME.fullmatch(name) or not _VALUE.fullmatch(value):
                    raise ValueError(f"the header field {name!r} is not well-formed")
            if not 200 <= message["status"] <= 599:
                raise ValueError(f"{message['status']} is not the status of a response")
            self._outlet.start(message["status"], headers)
            self._started = True
        elif message["type"] == "http.response.body" and self._started and not self._complete:
            body = message.get("body", b"")
            if body and self._has_body:
                self._outlet.write(bytes(body))
                await self._drain()
            if not message.get("more_body", False):
                self._complete = True
                self._finished.set()
        else:
            raise RuntimeError(f"{message['type']} is not expected here")

    async def _drain(self) -> None:
        try:
            async with asyncio.timeout(self._shared.limits.http_timeout):
                await self._outlet.drain()
        except TimeoutError:
            raise _NotReadError from None
