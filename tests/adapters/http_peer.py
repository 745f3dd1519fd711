"""An HttpSide over socket pairs, the peers that talk to it, and workers that it believes to have adopted streams."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Awaitable, Callable
from typing import Any

from mqttc.adapters import Origin
from mqttc.adapters.exchange import App, HttpLimits, Receive, Scope, Send
from mqttc.adapters.http import HttpSide
from mqttc.adapters.upgrade import Rules

RULES = Rules("/mqtt", ("https://good.example",))
PEER = "192.0.2.9:5000"
WAIT_S = 10


async def echo_app(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with the method, the path and the body."""
    message = await receive()
    body = f"{scope['method']} {scope['path']} ".encode() + message["body"]
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": body})


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what only the server's own timers, or the order of its loop, bring about: nobody is told of it."""
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


class Peer:
    """The other end of a spliced connection."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    async def send(self, data: bytes) -> None:
        await asyncio.wait_for(asyncio.get_running_loop().sock_sendall(self.sock, data), WAIT_S)

    async def recv(self) -> bytes:
        """Some bytes; none at the end."""
        return await asyncio.wait_for(asyncio.get_running_loop().sock_recv(self.sock, 65536), WAIT_S)

    async def rest(self) -> bytes:
        """Everything up to the end, which has to be an orderly one."""
        got = bytearray()
        while data := await self.recv():
            got += data
        return bytes(got)


class Bench:
    """What a scenario works with."""

    def __init__(self, app: App, limits: HttpLimits, clock: Callable[[], float] | None) -> None:
        self.loop = asyncio.get_running_loop()
        self.peers: list[Peer] = []
        self.listeners: list[socket.socket] = []
        self.adopted: list[tuple[Origin, bool, Peer]] = []
        self.adopting = asyncio.Event()
        self.refuse_adoption = False
        self.records: list[logging.LogRecord] = []
        logger = logging.Logger("test")
        logger.addFilter(self._keep)
        self.side = HttpSide(self.loop, app, self.adopt, limits, logger, clock)

    def _keep(self, record: logging.LogRecord) -> bool:
        self.records.append(record)
        return False

    def adopt(self, origin: Origin, websocket: bool) -> socket.socket:
        if self.refuse_adoption:
            raise OSError("no connection left")
        ours, workers = socket.socketpair()
        ours.setblocking(False)
        workers.setblocking(False)
        self.adopted.append((origin, websocket, Peer(workers)))
        self.adopting.set()
        return ours

    def connect(self, **origin: Any) -> Peer:
        """A spliced connection, and its peer."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        peer = Peer(theirs)
        self.peers.append(peer)
        self.side.serve(ours, Origin(**{"listener": 1, "peer": PEER, **origin}), RULES)
        return peer

    async def listen(self) -> int:
        """Serve TCP connections of this machine too; the port."""
        listener = socket.create_server(("127.0.0.1", 0))
        listener.setblocking(False)
        self.listeners.append(listener)
        self.loop.add_reader(listener, self._accept, listener)
        port: int = listener.getsockname()[1]
        return port

    def _accept(self, listener: socket.socket) -> None:
        sock, address = listener.accept()
        sock.setblocking(False)
        self.side.serve(sock, Origin(1, f"{address[0]}:{address[1]}"), RULES)

    @property
    def events(self) -> list[str]:
        """Names of the log lines so far."""
        return [record.event for record in self.records]  # type: ignore[attr-defined]

    def fields(self, event: str) -> dict[str, Any]:
        """Of the one log line of this name."""
        (record,) = [record for record in self.records if record.event == event]  # type: ignore[attr-defined]
        found: dict[str, Any] = record.fields  # type: ignore[attr-defined]
        return found


def run(
    scenario: Callable[[Bench], Awaitable[None]],
    *,
    app: App = echo_app,
    limits: HttpLimits | None = None,
    clock: Callable[[], float] | None = None,
) -> None:
    """Run a scenario; afterwards nothing may be left: connection, task, timer that holds a connection, or exception nobody saw."""

    async def main() -> None:
        unhandled: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: unhandled.append(context))
        bench = Bench(app, limits or HttpLimits(), clock)
        try:
            async with asyncio.timeout(60):
                await scenario(bench)
        finally:
            for listener in bench.listeners:
                bench.loop.remove_reader(listener)
                listener.close()
            await bench.side.close(0)
            assert bench.side.connections == 0
            for peer in bench.peers:
                peer.sock.close()
            for _, _, worker in bench.adopted:
                if worker.sock.fileno() >= 0:
                    # The HTTP side has closed its end, or this would raise BlockingIOError.
                    with contextlib.suppress(ConnectionResetError):
                        while worker.sock.recv(65536):
                            pass
                    worker.sock.close()
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert unhandled == []

    asyncio.run(main(), debug=False)
