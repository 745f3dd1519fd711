"""MQTT over WebSocket inside an ASGI application: Starlette, FastAPI, Django Channels, under uvicorn or hypercorn.

The web server speaks WebSocket and the application decides about the path, its middleware and its cookies; a worker of the
broker serves each connection like any other. Everything here runs on the application's asyncio loop (uvloop too).

    broker = Broker({"listeners": [{"url": "asgi://"}]})
    app = Starlette(routes=[WebSocketRoute("/mqtt", MqttWebSocket(broker))], lifespan=lifespan(broker))

or, around an application that has a life of its own already: ``app = MqttMiddleware(app, broker)``.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any, Final

from mqttc.adapters.upgrade import PROXY_HEADERS, Rules, is_foreign_page
from mqttc.server import Broker

__all__ = ["MqttLifespan", "MqttMiddleware", "MqttWebSocket", "lifespan"]

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]

SUBPROTOCOLS: Final = ("mqtt", "mqttv3.1")
"""What a client must offer one of [MQTT-6.0.0-3]; MQTT 3.1 was spoken as the second."""

_READ_BYTES: Final = 65536
_CLOSE_NORMAL: Final = 1000
_CLOSE_GOING_AWAY: Final = 1001
_CLOSE_UNSUPPORTED_DATA: Final = 1003
_CLOSE_POLICY: Final = 1008
_CLOSE_TRY_LATER: Final = 1013


class MqttWebSocket:
    """An ASGI application for one path: MQTT over WebSocket, served by ``broker``.

    ``listener``: the broker's listener whose rules hold (``anonymous``, ``maximum_qos``, ``allowed_origins``, ``max_connections``);
    not given: its only one of the scheme ``asgi``. ``allowed_origins`` of that listener: pages of other hosts are refused if it is not
    empty; else they are admitted, but never as clients of this machine.

    Connections that are refused before they begin get HTTP 403, as ASGI closes them. A plain HTTP request gets 426.
    """

    def __init__(self, broker: Broker, *, listener: str | None = None) -> None:
        self._broker = broker
        self._listener = listener

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await _upgrade_required(send)
            return
        if scope["type"] != "websocket":
            raise ValueError(f"MqttWebSocket serves the ASGI scope websocket, not {scope['type']}")
        if (await receive())["type"] != "websocket.connect":
            return
        chosen = next((name for name in scope.get("subprotocols", ()) if name in SUBPROTOCOLS), None)
        if chosen is None:
            await send({"type": "websocket.close", "code": _CLOSE_POLICY, "reason": "offer the sub-protocol mqtt"})
            return
        if not self._broker.running:
            await send({"type": "websocket.close", "code": _CLOSE_TRY_LATER, "reason": "the broker is not running"})
            return
        url = self._url()
        headers = list(scope.get("headers", ()))
        allowed = tuple(self._broker.listener(url).allowed_origins)
        foreign = is_foreign_page(headers, Rules("", allowed, ()))
        if foreign and allowed:
            await send({"type": "websocket.close", "code": _CLOSE_POLICY, "reason": "the page's origin is not allowed"})
            return
        proxied = any(name.lower() in PROXY_HEADERS for name, _ in headers)
        client = scope.get("client")
        try:
            end = self._broker.adopt(
                url, _peer(client), secure=scope.get("scheme") in ("wss", "https"), remote=client is None or proxied or foreign
            )
        except OSError:
            await send({"type": "websocket.close", "code": _CLOSE_TRY_LATER, "reason": "no room for a further connection"})
            return
        with end:
            await send({"type": "websocket.accept", "subprotocol": chosen})
            await _carry(self._broker, end, receive, send)

    def _url(self) -> str:
        if self._listener is not None:
            return self._listener
        found = [url for url in self._broker.urls if url.startswith("asgi://")]
        if len(found) != 1:
            raise ValueError(f"the broker has {len(found)} listeners of the scheme asgi; MqttWebSocket needs one, or to be told which")
        return found[0]


class MqttMiddleware:
    """Around an ASGI application: ``path`` is MQTT over WebSocket, everything else is the application's.

    The broker starts before the application does and stops after it, by the application server's lifespan events; a broker that runs
    already is left to whoever has started it. A broker that cannot start is a failed start of the application.
    """

    def __init__(self, app: AsgiApp, broker: Broker, path: str = "/mqtt", *, listener: str | None = None) -> None:
        self._app = app
        self._broker = broker
        self._path = path
        self._endpoint = MqttWebSocket(broker, listener=listener)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(scope, receive, send)
        elif scope["type"] == "websocket" and scope["path"] == scope.get("root_path", "") + self._path:
            await self._endpoint(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _live(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The application sees the same events, after the broker's start; its answers that tell of an end wait for the broker's."""
        waiting = [await receive()]
        ours = not self._broker.running
        told = False

        async def stop() -> None:
            nonlocal ours
            if ours:
                ours = False
                await self._broker.__aexit__(None, None, None)

        async def receiving() -> Message:
            return waiting.pop() if waiting else await receive()

        async def sending(message: Message) -> None:
            nonlocal told
            told = True
            if message["type"] != "lifespan.startup.complete":
                await stop()
            await send(message)

        try:
            if ours:
                await self._broker.__aenter__()
        except Exception as error:
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            return
        try:
            await self._app(scope, receiving, sending)
        except Exception as error:
            if told:
                raise
            if not waiting:
                await stop()
                await send({"type": "lifespan.startup.failed", "message": repr(error)})
                return
            # It has not even asked for the event: applications that know nothing of lifespan raise. The broker has a life all the same.
            await send({"type": "lifespan.startup.complete"})
            while (await receive())["type"] != "lifespan.shutdown":
                pass
            await stop()
            await send({"type": "lifespan.shutdown.complete"})
        finally:
            await stop()


class MqttLifespan:
    """An ASGI application for the scope ``lifespan`` alone: the broker lives as long as the application server. For applications that are
    put together by scope, as those of Channels: ``ProtocolTypeRouter({"lifespan": MqttLifespan(broker), ...})``.

    A broker that runs already is left to whoever has started it.
    """

    def __init__(self, broker: Broker) -> None:
        self._around_nothing = MqttMiddleware(_knows_nothing_of_lifespan, broker)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            raise ValueError(f"MqttLifespan serves the ASGI scope lifespan, not {scope['type']}")
        await self._around_nothing(scope, receive, send)


async def _knows_nothing_of_lifespan(scope: Scope, receive: Receive, send: Send) -> None:
    raise NotImplementedError


def lifespan(broker: Broker) -> Callable[[Any], contextlib.AbstractAsyncContextManager[None]]:
    """``lifespan=`` of Starlette and FastAPI: the broker lives as long as the application."""

    @contextlib.asynccontextmanager
    async def live(app: Any) -> AsyncIterator[None]:
        async with broker:
            yield

    return live


async def _carry(broker: Broker, end: socket.socket, receive: Receive, send: Send) -> None:
    """Bytes both ways until one side ends. Neither direction holds more than one message of the other's."""
    loop = asyncio.get_running_loop()
    inward = asyncio.ensure_future(_to_broker(loop, end, receive))
    outward = asyncio.ensure_future(_to_client(loop, end, send))
    try:
        await asyncio.wait((inward, outward), return_when=asyncio.FIRST_COMPLETED)
        if not outward.done():
            code = inward.result()
            if code is None:
                # The client has gone. What the broker still says to it goes nowhere, but it sees an orderly end.
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_WR)
                return
            outward.cancel()
            await send({"type": "websocket.close", "code": code, "reason": "MQTT is binary data"})
            return
        outward.result()
        if not inward.done():
            await send({"type": "websocket.close", "code": _CLOSE_GOING_AWAY if broker.ending else _CLOSE_NORMAL})
    finally:
        for task in (inward, outward):
            task.cancel()
        await asyncio.gather(inward, outward, return_exceptions=True)


async def _to_broker(loop: asyncio.AbstractEventLoop, end: socket.socket, receive: Receive) -> int | None:
    """Returns when the client has gone, or with the code that it is to be closed with."""
    while True:
        message = await receive()
        if message["type"] == "websocket.disconnect":
            return None
        data = message.get("bytes")
        if data is None:
            return _CLOSE_UNSUPPORTED_DATA  # [MQTT-6.0.0-1]
        try:
            await loop.sock_sendall(end, data)
        except OSError:
            pass  # the broker has ended the connection, which the other direction tells after its last bytes


async def _to_client(loop: asyncio.AbstractEventLoop, end: socket.socket, send: Send) -> None:
    while True:
        try:
            data = await loop.sock_recv(end, _READ_BYTES)
        except OSError:
            return
        if not data:
            return
        await send({"type": "websocket.send", "bytes": data})


def _peer(client: tuple[str, int] | None) -> str:
    if client is None:
        return "unknown:0"
    host, port = client
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


async def _upgrade_required(send: Send) -> None:
    headers = [(b"upgrade", b"websocket"), (b"content-type", b"text/plain; charset=utf-8")]
    await send({"type": "http.response.start", "status": 426, "headers": headers})
    await send({"type": "http.response.body", "body": b"MQTT over WebSocket is here; connect with the sub-protocol mqtt.\n"})
