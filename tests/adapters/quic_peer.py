"""What the tests of the QUIC adapter share: a listener with a broker that is only socket pairs, clients of aioquic, and a relay."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aioquic.asyncio import QuicConnectionProtocol
from aioquic.quic import events
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection

from mqttc.adapters import Origin
from mqttc.adapters.quic import QuicListener
from mqttc.adapters.quic_tls import QuicSettings

WAIT_S = 10


async def until(condition: Callable[[], Any]) -> None:
    """Ask at every turn of the loop, and of the sockets that it watches."""
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110 what aioquic's client has come to raises no event
            await asyncio.sleep(0.002)


LOOPBACK = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}


def udp_socket(family: socket.AddressFamily = socket.AF_INET) -> socket.socket:
    made = socket.socket(family, socket.SOCK_DGRAM)
    made.setblocking(False)
    try:
        made.bind((LOOPBACK[family], 0))
    except OSError as error:
        made.close()
        pytest.skip(f"no {family.name} on this machine: {error}")
    return made


class Lines(logging.Handler):
    """The lines of one listener, by event."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    def of(self, event: str) -> list[dict[str, Any]]:
        return [getattr(record, "fields") for record in self.records if getattr(record, "event") == event]  # noqa: B009


class Server:
    """A listener on free ports. `ends`: the broker's ends of the socket pairs, in the order of adoption; with `echo` they send back."""

    def __init__(
        self,
        settings: QuicSettings,
        *,
        echo: bool = True,
        full: bool = False,
        families: Sequence[socket.AddressFamily] = (socket.AF_INET,),
    ) -> None:
        self.origins: list[Origin] = []
        self.ends: list[socket.socket] = []
        self.echo = echo
        self.full = full
        self.lines = Lines()
        self.tasks: set[asyncio.Task[None]] = set()
        logger = logging.Logger("quic test", logging.DEBUG)
        logger.addHandler(self.lines)
        self.sockets = [udp_socket(family) for family in families]
        self.ports = {one.family: one.getsockname()[1] for one in self.sockets}
        self.address = (LOOPBACK[families[0]], self.ports[families[0]])
        self.listener = QuicListener(asyncio.get_running_loop(), self.sockets, self.adopt, 7, logger, settings, "q")

    def adopt(self, origin: Origin, websocket: bool) -> socket.socket:
        assert not websocket
        if self.full:
            raise OSError(24, "Too many open files")
        ours, theirs = socket.socketpair()
        for one in (ours, theirs):
            one.setblocking(False)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
        self.origins.append(origin)
        self.ends.append(theirs)
        if self.echo:
            task = asyncio.get_running_loop().create_task(self._echo(theirs))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)
        return ours

    async def _echo(self, end: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with contextlib.suppress(OSError):
            while data := await loop.sock_recv(end, 65536):
                await loop.sock_sendall(end, data)
        end.close()

    @property
    def stats(self) -> dict[str, int]:
        return self.listener.stats()

    async def close(self) -> None:
        await self.listener.close()
        for task in list(self.tasks):
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        for end in self.ends:
            end.close()


class Client(QuicConnectionProtocol):
    """aioquic's client; `received` by stream, `reset` and `stopped` streams, `closed` with its event."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.received: dict[int, bytearray] = {}
        self.finished: set[int] = set()
        self.reset: dict[int, int] = {}
        self.stopped: dict[int, int] = {}
        self.shaken: events.HandshakeCompleted | None = None
        self.end: events.ConnectionTerminated | None = None

    def quic_event_received(self, event: events.QuicEvent) -> None:
        if isinstance(event, events.StreamDataReceived):
            self.received.setdefault(event.stream_id, bytearray()).extend(event.data)
            if event.end_stream:
                self.finished.add(event.stream_id)
        elif isinstance(event, events.StreamReset):
            self.reset[event.stream_id] = event.error_code
        elif isinstance(event, events.StopSendingReceived):
            self.stopped[event.stream_id] = event.error_code
        elif isinstance(event, events.HandshakeCompleted):
            self.shaken = event
        elif isinstance(event, events.ConnectionTerminated):
            self.end = event

    @property
    def quic(self) -> QuicConnection:
        return self._quic

    def open(self, data: bytes, *, end: bool = False, unidirectional: bool = False) -> int:
        stream_id = self._quic.get_next_available_stream_id(unidirectional)
        self.send(stream_id, data, end=end)
        return stream_id

    def send(self, stream_id: int, data: bytes, *, end: bool = False) -> None:
        self._quic.send_stream_data(stream_id, data, end)
        self.transmit()

    @property
    def unsent(self) -> bool:
        return any(not stream.sender.buffer_is_empty for stream in self._quic._streams.values())


def client_configuration(folder: Path, name: str = "", **options: Any) -> QuicConfiguration:
    """`name`: whose certificate the client shows."""
    made = QuicConfiguration(**{"is_client": True, "alpn_protocols": ["mqtt"], "server_name": "localhost", "idle_timeout": 30.0, **options})
    made.load_verify_locations(cafile=str(folder / "ca.pem"))
    if name:
        made.load_cert_chain(folder / f"{name}.pem", folder / f"{name}.key")
    return made


@contextlib.asynccontextmanager
async def client(
    server: Server,
    configuration: QuicConfiguration,
    *,
    port: int = 0,
    family: socket.AddressFamily = socket.AF_INET,
    wait: bool = True,
    ticket_handler: Callable[[Any], None] | None = None,
    before: Callable[[Client], None] | None = None,
) -> AsyncIterator[Client]:
    """Connected, unless not waited for; `before` is called before the first datagram leaves."""
    loop = asyncio.get_running_loop()
    connection = QuicConnection(configuration=configuration, session_ticket_handler=ticket_handler)
    transport, made = await loop.create_datagram_endpoint(lambda: Client(connection), local_addr=(LOOPBACK[family], 0))
    try:
        address: tuple[Any, ...] = (LOOPBACK[family], port or server.ports[family])
        made.connect(address if family == socket.AF_INET else (*address, 0, 0), transmit=before is None)
        if before is not None:
            before(made)
            made.transmit()
        if wait:
            await until(lambda: made.shaken or made.end)
            assert made.shaken is not None, made.end
        yield made
    finally:
        made.close()
        transport.close()


class Relay:
    """Between a client and the server, as a NAT is: `rebind` gives the client another address towards the server."""

    def __init__(self, server: Server) -> None:
        self._server = server.address
        self._loop = asyncio.get_running_loop()
        self._client: Any = None
        self.front = udp_socket()
        self.back = udp_socket()
        self.port = self.front.getsockname()[1]
        self._loop.add_reader(self.front, self._from_client)
        self._loop.add_reader(self.back, self._from_server)

    def _from_client(self) -> None:
        with contextlib.suppress(BlockingIOError):
            data, self._client = self.front.recvfrom(65536)
            self.back.sendto(data, self._server)

    def _from_server(self) -> None:
        with contextlib.suppress(BlockingIOError):
            data, _ = self.back.recvfrom(65536)
            self.front.sendto(data, self._client)

    def rebind(self) -> None:
        self._loop.remove_reader(self.back)
        self.back.close()
        self.back = udp_socket()
        self._loop.add_reader(self.back, self._from_server)

    def close(self) -> None:
        for one in (self.front, self.back):
            self._loop.remove_reader(one)
            one.close()


def run(settings: QuicSettings, scenario: Callable[[Server], Awaitable[None]], **options: Any) -> None:
    """Run a scenario against a listener of its own, and see that nothing is left of it."""

    async def main() -> None:
        settings_of = {key: options.pop(key) for key in list(options) if key not in ("echo", "full", "families")}
        server = Server(replace(settings, **settings_of), **options)
        try:
            await scenario(server)
        finally:
            await server.close()
        left = server.stats
        assert {name: left[name] for name in ("quic_connections", "quic_half_open", "quic_streams")} == {
            "quic_connections": 0,
            "quic_half_open": 0,
            "quic_streams": 0,
        }
        assert not server.listener.lingering and not server.listener._connections
        assert all(one.fileno() == -1 for one in server.sockets)

    asyncio.run(main())
