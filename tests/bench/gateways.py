"""Servers that speak WebSocket, HTTP/2 and QUIC and pass each stream on to a TCP port: what stands before a broker in these tests."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Self

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings
from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.asyncio.server import serve as serve_quic
from aioquic.quic import events as quic_events
from aioquic.quic.configuration import QuicConfiguration
from wsproto import WSConnection
from wsproto.connection import Connection, ConnectionType
from wsproto.events import AcceptConnection, BytesMessage, CloseConnection, Message, Ping, Pong, RejectConnection, Request

WINDOW_BYTES = 20_000
"""Of an HTTP/2 stream towards the gateway: less than a burst, so that senders have to wait."""


class Gateway:
    """A thread with a loop. What connects is passed on to ``broker_port`` of this machine."""

    def __init__(self, broker_port: int, context: ssl.SSLContext | None = None, **options: Any) -> None:
        self.port = 0
        self.connections = 0
        self.streams = 0
        self.pings_answered = 0
        self.paths: list[str] = []
        self.broker_port = broker_port
        self.context = context
        self.options = options
        self.loop: asyncio.AbstractEventLoop
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()))
        self._tasks: set[asyncio.Task[None]] = set()

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *error: object) -> None:
        """Idempotent."""
        with contextlib.suppress(RuntimeError):  # it has ended already
            self.loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    async def _main(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        close = await self.listen()
        self._ready.set()
        await self._stop.wait()
        await close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def listen(self) -> Callable[[], Coroutine[Any, Any, None]]:
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0, ssl=self.context)
        self.port = server.sockets[0].getsockname()[1]

        async def close() -> None:
            server.close()

        return close

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.run(self._serve(reader, writer))

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(OSError, h2.exceptions.H2Error):  # the client went away in the middle
                await self.serve(reader, writer)
        finally:
            writer.close()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        raise NotImplementedError

    async def broker(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        self.streams += 1
        return await asyncio.open_connection("127.0.0.1", self.broker_port)

    def messages(self, ws: Connection | WSConnection, data: bytes, reply: Callable[[Message], None]) -> tuple[bytes, bool]:
        """Payload of what a client sent, and whether it has said goodbye."""
        payload, ended = bytearray(), False
        ws.receive_data(data)
        for event in ws.events():
            if isinstance(event, BytesMessage):
                payload += event.data
            elif isinstance(event, Pong):
                self.pings_answered += 1
            elif isinstance(event, CloseConnection):
                ended = True
                reply(event.response())  # type: ignore[arg-type]
        return bytes(payload), ended


class WebSocketGateway(Gateway):
    """HTTP/1.1. Options: ``status`` refuses, ``accept`` is a wrong Sec-WebSocket-Accept, ``ping`` sends one first."""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ws = WSConnection(ConnectionType.SERVER)
        while True:
            ws.receive_data(await reader.read(4096))
            request = next(iter(ws.events()), None)
            if request is not None:
                break
        assert isinstance(request, Request)
        self.paths.append(request.target)
        status = self.options.get("status")
        if status:
            writer.write(ws.send(RejectConnection(status_code=status)))
            return
        answer = ws.send(AcceptConnection(subprotocol="mqtt"))
        if self.options.get("accept"):
            answer = answer.replace(b"Sec-WebSocket-Accept: ", b"Sec-WebSocket-Accept: x", 1)
        writer.write(answer)
        if self.options.get("ping"):
            writer.write(ws.send(Ping(b"are you there?")))
        above_reader, above = await self.broker()

        async def down() -> None:
            while data := await above_reader.read(65536):
                writer.write(ws.send(BytesMessage(data)))
                await writer.drain()
            writer.close()

        self.run(down())
        while data := await reader.read(65536):
            payload, ended = self.messages(ws, data, lambda event: writer.write(ws.send(event)))
            above.write(payload)
            await above.drain()
            if ended:
                break
        above.close()


class H2Gateway(Gateway):
    """RFC 8441. Options: ``status`` refuses, ``plain`` offers no extended CONNECT, ``silent`` answers none, ``deaf`` makes no room until
    ``listen_again``."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.stalled = threading.Event()
        """Set when data waits for a client to make room."""
        self.sent = 0
        self.deaf = bool(options.get("deaf"))
        self._owed: list[Callable[[], None]] = []

    def listen_again(self) -> None:
        def pay() -> None:
            self.deaf = False
            for acknowledge in self._owed:
                acknowledge()
            self._owed.clear()

        self.loop.call_soon_threadsafe(pay)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="utf-8"))
        connection.initiate_connection()
        settings = {h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: WINDOW_BYTES}
        if not self.options.get("plain"):
            settings[h2.settings.SettingCodes.ENABLE_CONNECT_PROTOCOL] = 1
        connection.update_settings(settings)
        sides: dict[int, asyncio.Queue[bytes | None]] = {}
        room = asyncio.Condition()

        def flush() -> None:
            writer.write(connection.data_to_send())

        flush()
        while data := await reader.read(65536):
            for event in connection.receive_data(data):
                number = getattr(event, "stream_id", 0)
                if isinstance(event, h2.events.RequestReceived):
                    headers: dict[str, str] = dict(event.headers)  # type: ignore[arg-type]
                    assert (headers[":method"], headers[":protocol"]) == ("CONNECT", "websocket")
                    self.paths.append(headers[":path"])
                    if self.options.get("silent"):
                        continue
                    status = self.options.get("status", 200)
                    connection.send_headers(number, [(":status", str(status))], end_stream=status != 200)
                    if status == 200:
                        sides[number] = asyncio.Queue()
                        self.run(self._stream(connection, number, sides[number], writer, room, flush))
                elif isinstance(event, h2.events.DataReceived):
                    sides[number].put_nowait(event.data)

                    def acknowledge(count: int = event.flow_controlled_length or 0, number: int = number) -> None:
                        connection.acknowledge_received_data(count, number)
                        flush()

                    self._owed.append(acknowledge) if self.deaf else acknowledge()
                elif isinstance(event, h2.events.StreamEnded | h2.events.StreamReset) and number in sides:
                    sides[number].put_nowait(None)
                elif isinstance(event, h2.events.WindowUpdated | h2.events.RemoteSettingsChanged):
                    async with room:
                        room.notify_all()
            flush()
        for side in sides.values():
            side.put_nowait(None)

    async def _stream(self, connection: Any, number: int, side: Any, writer: Any, room: Any, flush: Callable[[], None]) -> None:
        ws = Connection(ConnectionType.SERVER)
        above_reader, above = await self.broker()

        async def send(data: bytes) -> None:
            while data:
                n = min(len(data), connection.local_flow_control_window(number), connection.max_outbound_frame_size)
                if n <= 0:
                    self.stalled.set()
                    async with room:
                        await room.wait()
                    continue
                connection.send_data(number, data[:n])
                self.sent += n
                data = data[n:]
                flush()
                await writer.drain()

        async def down() -> None:
            with contextlib.suppress(OSError, h2.exceptions.H2Error):
                while data := await above_reader.read(65536):
                    await send(ws.send(BytesMessage(data)))
                await send(ws.send(CloseConnection(1000)))
                connection.end_stream(number)
                flush()

        self.run(down())
        with contextlib.suppress(OSError, h2.exceptions.H2Error):
            while (data := await side.get()) is not None:
                payload, ended = self.messages(ws, data, lambda event: None)
                above.write(payload)
                await above.drain()
                if ended:
                    break
        above.close()


class QuicGateway(Gateway):
    """Options: ``certificate`` (pem, key). Without hearing, what clients send is lost as on a bad network."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.hearing = True

    async def listen(self) -> Callable[[], Coroutine[Any, Any, None]]:
        configuration = QuicConfiguration(is_client=False, alpn_protocols=["mqtt"])
        certificate: tuple[Path, Path] = self.options["certificate"]
        configuration.load_cert_chain(*certificate)
        gateway = self

        class Served(QuicConnectionProtocol):
            def __init__(self, *arguments: Any, **named: Any) -> None:
                super().__init__(*arguments, **named)
                gateway.connections += 1
                self.sides: dict[int, asyncio.Queue[bytes | None]] = {}

            def datagram_received(self, data: bytes | str, addr: Any) -> None:
                if gateway.hearing:
                    super().datagram_received(data, addr)

            def quic_event_received(self, event: quic_events.QuicEvent) -> None:
                if isinstance(event, quic_events.StreamDataReceived):
                    if event.stream_id not in self.sides:
                        self.sides[event.stream_id] = asyncio.Queue()
                        gateway.run(gateway._stream(self, event.stream_id, self.sides[event.stream_id]))
                    if event.data:
                        self.sides[event.stream_id].put_nowait(event.data)
                    if event.end_stream:
                        self.sides[event.stream_id].put_nowait(None)
                elif isinstance(event, quic_events.StreamReset) and event.stream_id in self.sides:
                    self.sides[event.stream_id].put_nowait(None)
                elif isinstance(event, quic_events.ConnectionTerminated):
                    for side in self.sides.values():
                        side.put_nowait(None)

        server = await serve_quic("127.0.0.1", 0, configuration=configuration, create_protocol=Served)
        assert server._transport is not None
        self.port = server._transport.get_extra_info("sockname")[1]

        async def close() -> None:
            server.close()

        return close

    async def _stream(self, served: QuicConnectionProtocol, number: int, side: asyncio.Queue[bytes | None]) -> None:
        above_reader, above = await self.broker()

        async def down() -> None:
            with contextlib.suppress(OSError, AssertionError):  # the stream was reset meanwhile
                while data := await above_reader.read(65536):
                    served._quic.send_stream_data(number, data)
                    served.transmit()
                served._quic.send_stream_data(number, b"", end_stream=True)
                served.transmit()

        self.run(down())
        with contextlib.suppress(OSError):
            while (data := await side.get()) is not None:
                above.write(data)
                await above.drain()
        above.write_eof()
