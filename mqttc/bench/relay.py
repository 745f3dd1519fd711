"""HTTP/2 (RFC 8441) and QUIC for the native clients: a thread that listens on a Unix socket; each connection has a stream to the broker.

Ends and failures travel both ways. So does flow control: what one side does not take is not read from the other. At most about
``WINDOW_BYTES`` lie here for each stream and direction.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import tempfile
import threading
import time
from collections import deque
from typing import Any, Protocol, cast

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings
from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.quic import events as quic_events
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from wsproto.connection import Connection as WebSocket
from wsproto.connection import ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Ping, TextMessage
from wsproto.utilities import LocalProtocolError, RemoteProtocolError

from mqttc.bench.profile import Profile, RunError, Target
from mqttc.bench.road import TIMEOUT_S, reason_of, tls_context

WINDOW_BYTES = 1 << 20
"""For each stream and direction: what the broker may send unasked, and what may wait to be sent."""
READ_BYTES = 1 << 16
LINGER_S = 5.0
"""For the broker to end its half, once a client has ended its own."""
IDLE_S = 3600.0
"""A QUIC connection without traffic ends; the broker may want it earlier."""
HELD_DATAGRAMS = 256
"""Of a QUIC connection one of whose clients does not read; more are dropped, as a full socket's are, and sent again by the broker."""
_BACKLOG = 4096


class UpstreamError(ConnectionError):
    """The broker cannot be reached by this way, or a stream or connection to it broke; the text says why."""


class Upstream(Protocol):
    """One connection to the broker, of a number of streams."""

    async def stream(self) -> UpstreamStream: ...
    async def shut(self) -> None: ...
    @property
    def usable(self) -> bool:
        """False once it is lost."""
        ...


class UpstreamStream(Protocol):
    """One client's road to the broker. Each call may raise ``UpstreamError``."""

    async def send(self, data: bytes) -> None:
        """Returns when there is room for more."""
        ...

    async def end(self) -> None:
        """Nothing more is sent."""
        ...

    async def receive(self) -> bytes:
        """What has come, empty at the end. A call says that what the one before gave has gone."""
        ...

    def abort(self) -> None: ...


class _Inlet:
    """What has come on a stream and was not asked for yet."""

    def __init__(self) -> None:
        self._chunks: deque[tuple[bytes, int]] = deque()
        self._ended = False
        self._failure: str | None = None
        self._stirred = asyncio.Event()
        self.held = 0

    @property
    def over(self) -> bool:
        return self._ended or self._failure is not None

    def feed(self, data: bytes, cost: int) -> None:
        """``cost``: what the peer's flow control counted for it."""
        if data or cost:
            self._chunks.append((data, cost))
            self.held += cost
            self._stirred.set()

    def end(self) -> None:
        self._ended = True
        self._stirred.set()

    def fail(self, why: str) -> None:
        if not self.over:
            self._failure = why
        self._stirred.set()

    def check(self) -> None:
        if self._failure is not None:
            raise UpstreamError(self._failure)

    async def take(self) -> tuple[bytes, int]:
        """The next chunk, even where the stream broke later; (b"", 0) at the end."""
        while not self._chunks:
            self.check()
            if self._ended:
                return b"", 0
            self._stirred.clear()
            await self._stirred.wait()
        data, cost = self._chunks.popleft()
        self.held -= cost
        return data, cost


# ---- HTTP/2


class H2Upstream:
    """An HTTP/2 connection whose streams are WebSockets (RFC 8441)."""

    def __init__(self, profile: Profile, address: str) -> None:
        self._profile = profile
        self._target = profile.target()
        self._address = address
        self._h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))
        self._streams: dict[int, H2Stream] = {}
        self.waiting: set[H2Stream] = set()
        """For room to send."""
        self._settled = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.failure: str | None = None
        self.reader: asyncio.StreamReader
        self.writer: asyncio.StreamWriter

    @property
    def usable(self) -> bool:
        return self.failure is None

    async def open(self) -> None:
        target = self._target
        context = tls_context(self._profile, ["h2"]) if target.tls else None
        name = target.host if context is not None else None
        try:
            self.reader, self.writer = await asyncio.open_connection(self._address, target.port, ssl=context, server_hostname=name)
        except OSError as error:
            raise UpstreamError(reason_of(error)) from error
        if context is not None and cast(ssl.SSLObject, self.writer.get_extra_info("ssl_object")).selected_alpn_protocol() != "h2":
            self.writer.close()
            raise UpstreamError("the broker does not speak HTTP/2 there (no ALPN agreement on h2)")
        self._h2.initiate_connection()
        self._h2.update_settings({h2.settings.SettingCodes.ENABLE_PUSH: 0, h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: WINDOW_BYTES})
        # Room for all streams at once: one whose client does not read holds up no other.
        self._h2.increment_flow_control_window(min(WINDOW_BYTES * self._profile.streams, (1 << 31) - 1) - 65535)
        self.flush()
        self._task = asyncio.create_task(self._read())
        await self._settled.wait()
        if self.failure is not None:
            raise UpstreamError(self.failure)
        if not self._h2.remote_settings.enable_connect_protocol:
            raise UpstreamError("the broker's HTTP/2 has no WebSocket (SETTINGS_ENABLE_CONNECT_PROTOCOL, RFC 8441)")

    async def stream(self) -> H2Stream:
        target = self._target
        try:
            number = self._h2.get_next_available_stream_id()
            headers = [
                (":method", "CONNECT"),
                (":protocol", "websocket"),
                (":scheme", "https" if target.tls else "http"),
                (":path", target.path),
                (":authority", target.authority),
                ("sec-websocket-version", "13"),
                ("sec-websocket-protocol", "mqtt"),
            ]
            self._h2.send_headers(number, headers)
        except h2.exceptions.H2Error as error:
            raise UpstreamError(self.failure or f"HTTP/2: {error}") from error
        made = self._streams[number] = H2Stream(self, self._h2, number)
        self.flush()
        await made.accepted()
        return made

    async def shut(self) -> None:
        if self._task is None:
            return
        with contextlib.suppress(h2.exceptions.H2Error):
            self._h2.close_connection()
        self.flush()
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self.writer.close()
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(TIMEOUT_S):
                await self.writer.wait_closed()

    def forget(self, stream: H2Stream) -> None:
        self._streams.pop(stream.number, None)
        self.waiting.discard(stream)

    def flush(self) -> None:
        data = self._h2.data_to_send()
        if data:
            self.writer.write(data)

    async def _read(self) -> None:
        why = "the broker closed the HTTP/2 connection"
        try:
            while data := await self.reader.read(READ_BYTES):
                for event in self._h2.receive_data(data):
                    self._handle(event)
                self.flush()
        except OSError as error:
            why = reason_of(error)
        except h2.exceptions.H2Error as error:
            why = f"HTTP/2: {error}"
        finally:
            self._fail(why)

    def _handle(self, event: Any) -> None:
        stream = self._streams.get(getattr(event, "stream_id", None) or 0)
        if isinstance(event, h2.events.RemoteSettingsChanged):
            self._settled.set()
            self._room()
        elif isinstance(event, h2.events.WindowUpdated):
            self._room()
        elif isinstance(event, h2.events.ConnectionTerminated):
            self._fail(f"the broker ended the HTTP/2 connection (error code {event.error_code})")
        elif stream is None:
            if isinstance(event, h2.events.DataReceived) and event.flow_controlled_length:
                self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)  # behind our own reset
        elif isinstance(event, h2.events.ResponseReceived):
            stream.on_response(dict(cast("list[tuple[str, str]]", event.headers)))
        elif isinstance(event, h2.events.DataReceived):
            stream.inlet.feed(event.data or b"", event.flow_controlled_length or 0)
        elif isinstance(event, h2.events.StreamEnded):
            stream.inlet.end()
        elif isinstance(event, h2.events.StreamReset):
            stream.fail(f"the broker reset the stream (error code {event.error_code})")

    def _room(self) -> None:
        for stream in self.waiting:
            stream.room.set()

    def _fail(self, why: str) -> None:
        self.failure = self.failure or why
        self._settled.set()
        for stream in self._streams.values():
            stream.fail(why)


class H2Stream:
    """A WebSocket in an HTTP/2 stream."""

    def __init__(self, upstream: H2Upstream, connection: h2.connection.H2Connection, number: int) -> None:
        self._upstream = upstream
        self._h2 = connection
        self.number = number
        self._ws = WebSocket(ConnectionType.CLIENT)
        self._status: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._given = 0
        self._sending = asyncio.Lock()
        self._closed = False
        self.inlet = _Inlet()
        self.room = asyncio.Event()

    def on_response(self, headers: dict[str, str]) -> None:
        if self._status.done():
            return
        self._status.set_result(headers.get(":status", "none"))

    def fail(self, why: str) -> None:
        self.inlet.fail(why)
        self.room.set()
        if not self._status.done():
            self._status.set_exception(UpstreamError(why))
            self._status.exception()  # nobody may wait for it any more

    async def accepted(self) -> None:
        status = await self._status
        if status != "200":
            self.abort()
            raise UpstreamError(f"the WebSocket handshake was answered with status {status}")

    async def send(self, data: bytes) -> None:
        await self._frame(BytesMessage(data))

    async def end(self) -> None:
        if not self._closed:
            await self._frame(CloseConnection(1000))
        async with self._sending:
            with contextlib.suppress(h2.exceptions.H2Error):
                self._h2.end_stream(self.number)
            self._upstream.flush()

    async def receive(self) -> bytes:
        while True:
            self._acknowledge()
            if self._closed:
                return b""
            data, self._given = await self.inlet.take()
            if not data and not self._given:
                return b""
            payload = await self._payload(data)
            if payload:
                return payload

    def abort(self) -> None:
        with contextlib.suppress(h2.exceptions.H2Error):
            self._h2.reset_stream(self.number, 8)  # CANCEL
        self._given += self.inlet.held  # nobody will take it, but others share the connection's window
        self._acknowledge()
        self._upstream.forget(self)
        self._upstream.flush()

    def _acknowledge(self) -> None:
        if self._given:
            with contextlib.suppress(h2.exceptions.H2Error):
                self._h2.acknowledge_received_data(self._given, self.number)
            self._given = 0
            self._upstream.flush()

    async def _payload(self, data: bytes) -> bytes:
        got = bytearray()
        try:
            if not self._closed:
                self._ws.receive_data(data)
            for event in self._ws.events():
                if isinstance(event, BytesMessage):
                    got += event.data
                elif isinstance(event, Ping):
                    await self._frame(event.response())
                elif isinstance(event, CloseConnection):
                    self._closed = True
                    with contextlib.suppress(LocalProtocolError):  # ours may be under way already
                        await self._frame(event.response())
                elif isinstance(event, TextMessage):
                    raise UpstreamError("the broker sent a WebSocket text message")
        except RemoteProtocolError as error:
            raise UpstreamError(f"the broker does not speak WebSocket: {error}") from error
        return bytes(got)

    async def _frame(self, event: BytesMessage | CloseConnection | Any) -> None:
        """One frame at a time: their pieces must not mix."""
        async with self._sending:
            self.inlet.check()
            try:
                data = memoryview(self._ws.send(event))
                while data:
                    room = min(self._h2.local_flow_control_window(self.number), self._h2.max_outbound_frame_size)
                    if room <= 0:
                        self.room.clear()
                        self._upstream.waiting.add(self)
                        await self.room.wait()
                        self._upstream.waiting.discard(self)
                        self.inlet.check()
                        continue
                    self._h2.send_data(self.number, bytes(data[:room]))
                    data = data[room:]
                    self._upstream.flush()
                    await self._upstream.writer.drain()
            except h2.exceptions.H2Error as error:
                raise UpstreamError(self._upstream.failure or f"HTTP/2: {error}") from error


# ---- QUIC


class QuicUpstream(QuicConnectionProtocol):
    """A QUIC connection whose streams carry MQTT as TCP does."""

    def __init__(self, quic: QuicConnection) -> None:
        super().__init__(quic)
        self._streams: dict[int, QuicStream] = {}
        self._held: deque[tuple[bytes, Any]] = deque()
        self.full: set[QuicStream] = set()
        """Whose clients do not read."""
        self.waiting: set[QuicStream] = set()
        """For room to send."""
        self._connected_or_lost = asyncio.Event()
        self._endpoint: asyncio.DatagramTransport | None = None
        self.failure: str | None = None
        self.dropped = 0

    @property
    def usable(self) -> bool:
        return self.failure is None

    async def open(self, address: tuple[Any, ...]) -> None:
        self.connect(address)
        await self._connected_or_lost.wait()
        if self.failure is not None:
            raise UpstreamError(self.failure)

    async def stream(self) -> QuicStream:
        if self.failure is not None:
            raise UpstreamError(self.failure)
        number = self._quic.get_next_available_stream_id()
        made = self._streams[number] = QuicStream(self, self._quic, number)
        return made

    async def shut(self) -> None:
        self.close()
        if self._endpoint is not None:
            self._endpoint.close()
        self._lost("the QUIC connection was closed")

    def forget(self, stream: QuicStream) -> None:
        self._streams.pop(stream.number, None)
        self.full.discard(stream)
        self.waiting.discard(stream)
        self._catch_up()

    def taken(self, stream: QuicStream) -> None:
        """A client has taken something: what was held may be read now."""
        if stream.inlet.held < WINDOW_BYTES:
            self.full.discard(stream)
            self._catch_up()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._endpoint = cast(asyncio.DatagramTransport, transport)

    def error_received(self, exc: Exception) -> None:
        """ICMP says that nobody is there."""
        if not self._connected_or_lost.is_set() and isinstance(exc, OSError):
            self._lost(reason_of(exc))

    def datagram_received(self, data: bytes | str, addr: Any) -> None:
        if not self.full and not self._held:
            super().datagram_received(data, addr)
        elif len(self._held) < HELD_DATAGRAMS:
            self._held.append((cast(bytes, data), addr))
        else:
            self.dropped += 1

    def _catch_up(self) -> None:
        while self._held and not self.full:
            super().datagram_received(*self._held.popleft())

    def transmit(self) -> None:
        if self._endpoint is None or self._endpoint.is_closing():
            return
        super().transmit()
        for stream in self.waiting:
            if stream.unsent() < WINDOW_BYTES:
                stream.room.set()

    def quic_event_received(self, event: quic_events.QuicEvent) -> None:
        if isinstance(event, quic_events.HandshakeCompleted):
            self._connected_or_lost.set()
        elif isinstance(event, quic_events.ConnectionTerminated):
            self._lost(event.reason_phrase or f"the QUIC connection ended (error code {event.error_code:#x})")
        elif isinstance(event, quic_events.StreamDataReceived):
            stream = self._streams.get(event.stream_id)
            if stream is not None:
                stream.inlet.feed(event.data, len(event.data))
                if stream.inlet.held >= WINDOW_BYTES:
                    self.full.add(stream)
                if event.end_stream:
                    stream.inlet.end()
        elif isinstance(event, quic_events.StreamReset | quic_events.StopSendingReceived):
            stream = self._streams.get(event.stream_id)
            if stream is not None:
                stream.fail(f"the broker reset the stream (error code {event.error_code:#x})")

    def _lost(self, why: str) -> None:
        self.failure = self.failure or why
        self._connected_or_lost.set()
        for stream in self._streams.values():
            stream.fail(why)


class QuicStream:
    def __init__(self, upstream: QuicUpstream, quic: QuicConnection, number: int) -> None:
        self._upstream = upstream
        self._quic = quic
        self._ended = False
        self.number = number
        self.inlet = _Inlet()
        self.room = asyncio.Event()

    def unsent(self) -> int:
        """Bytes that were not acknowledged. aioquic takes any number, and does not tell; this is where it keeps them."""
        stream = self._quic._streams.get(self.number)
        return 0 if stream is None else len(stream.sender._buffer)

    def fail(self, why: str) -> None:
        self.inlet.fail(why)
        self.room.set()

    async def send(self, data: bytes) -> None:
        self.inlet.check()
        self._quic.send_stream_data(self.number, data)
        self._upstream.transmit()
        while self.unsent() >= WINDOW_BYTES:
            self.room.clear()
            self._upstream.waiting.add(self)
            await self.room.wait()
            self._upstream.waiting.discard(self)
            self.inlet.check()

    async def end(self) -> None:
        self.inlet.check()
        self._quic.send_stream_data(self.number, b"", end_stream=True)
        self._ended = True
        self._upstream.transmit()

    async def receive(self) -> bytes:
        data, _ = await self.inlet.take()
        self._upstream.taken(self)
        return data

    def abort(self) -> None:
        if self._upstream.usable and self.number in self._quic._streams:
            if not self._ended:
                self._quic.reset_stream(self.number, 0)
            if not self.inlet.over:
                self._quic.stop_stream(self.number, 0)
            self._upstream.transmit()
        self._upstream.forget(self)


async def open_quic(profile: Profile, address: str) -> QuicUpstream:
    target = profile.target()
    configuration = QuicConfiguration(
        is_client=True,
        alpn_protocols=["mqtt"],
        server_name=target.host,
        idle_timeout=IDLE_S,
        max_stream_data=WINDOW_BYTES,
        max_data=WINDOW_BYTES * profile.streams,
    )
    try:
        if profile.insecure:
            configuration.verify_mode = ssl.CERT_NONE
        elif profile.ca_file is not None:
            configuration.load_verify_locations(profile.ca_file)
        if profile.certificate_file is not None:
            configuration.load_cert_chain(profile.certificate_file, profile.key_file)
    except (OSError, ValueError) as error:
        raise UpstreamError(f"ca_file, certificate_file, key_file: {error}") from error
    loop = asyncio.get_running_loop()
    family, _, _, _, where = socket.getaddrinfo(address, target.port, type=socket.SOCK_DGRAM)[0]
    _, made = await loop.create_datagram_endpoint(lambda: QuicUpstream(QuicConnection(configuration=configuration)), family=family)
    try:
        await made.open(where)
    except BaseException:
        await made.shut()
        raise
    return made


async def open_h2(profile: Profile, address: str) -> H2Upstream:
    made = H2Upstream(profile, address)
    try:
        await made.open()
    except BaseException:
        await made.shut()
        raise
    return made


# ---- the relay


class _Shared:
    """An upstream, perhaps still on its way, and how many of its streams are given away."""

    def __init__(self, profile: Profile, address: str) -> None:
        self.given = 0
        self.opening: asyncio.Task[H2Upstream | QuicUpstream] = asyncio.create_task(self._open(profile, address))

    async def _open(self, profile: Profile, address: str) -> H2Upstream | QuicUpstream:
        try:
            async with asyncio.timeout(TIMEOUT_S):
                return await (open_quic if profile.target().relay == "quic" else open_h2)(profile, address)
        except TimeoutError:
            raise UpstreamError(f"no answer within {TIMEOUT_S:g} s") from None

    @property
    def usable(self) -> bool:
        if not self.opening.done():
            return True
        return not self.opening.cancelled() and self.opening.exception() is None and self.opening.result().usable


class Relay:
    """The thread. ``path`` is where the native clients connect, from ``start`` to ``stop``."""

    def __init__(self, profile: Profile, address: str) -> None:
        self.path = ""
        self.failure: str | None = None
        """Why the first stream or connection to the broker that failed did."""
        self._profile = profile
        self._target: Target = profile.target()
        self._address = address
        self._ready = threading.Event()
        self._start_error: OSError | None = None
        self._thread = threading.Thread(target=self._run, name="mqttc-bench relay", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None
        self._upstreams: list[_Shared] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._ended_cpu_ns = 0

    def start(self) -> None:
        """Raises ``RunError``."""
        if self._target.tls:
            tls_context(self._profile)  # what is wrong with the files is told here
        self._thread.start()
        self._ready.wait()
        if self._start_error is not None:
            self._thread.join()
            raise RunError(f"the relay cannot listen: {self._start_error}") from self._start_error

    def stop(self) -> None:
        """Ends all connections and the thread. Idempotent."""
        if self._loop is not None and self._stopping is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: it has ended already
                self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join()

    def cpu_ns(self) -> int:
        """Of the thread, so far."""
        if not self._thread.is_alive() or self._thread.ident is None:
            return self._ended_cpu_ns
        return time.clock_gettime_ns(time.pthread_getcpuclockid(self._thread.ident))

    def _run(self) -> None:
        asyncio.run(self._main())
        self._ended_cpu_ns = time.thread_time_ns()

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        with tempfile.TemporaryDirectory(prefix="mqttc-bench-") as folder:
            try:
                path = f"{folder}/relay"
                server = await asyncio.start_unix_server(self._serve, path, backlog=_BACKLOG, limit=READ_BYTES)
            except OSError as error:
                self._start_error = error
                self._ready.set()
                return
            self.path = path
            self._ready.set()
            await self._stopping.wait()
            server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await server.wait_closed()
            for shared in self._upstreams:
                await self._close(shared)

    async def _close(self, shared: _Shared) -> None:
        shared.opening.cancel()
        [made] = await asyncio.gather(shared.opening, return_exceptions=True)
        if not isinstance(made, BaseException):
            await made.shut()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = cast("asyncio.Task[None]", asyncio.current_task())
        self._tasks.add(task)
        try:
            await self._carry(reader, writer)
        except* (UpstreamError, TimeoutError) as group:
            self._note(group.exceptions[0])
        except* OSError:
            pass  # the client went away
        except* asyncio.CancelledError:
            pass  # stop: nobody waits for the rest
        finally:
            writer.close()
            self._tasks.discard(task)

    def _note(self, error: BaseException) -> None:
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        if self.failure is None:
            self.failure = str(error)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        shared = self._place()
        try:
            upstream = await asyncio.shield(shared.opening)
            async with asyncio.timeout(TIMEOUT_S):
                stream: UpstreamStream = await upstream.stream()
            try:
                async with asyncio.TaskGroup() as group:
                    down = group.create_task(_down(stream, writer))
                    while data := await reader.read(READ_BYTES):
                        await stream.send(data)
                    await stream.end()
                    await asyncio.wait([down], timeout=LINGER_S)
                    down.cancel()
            finally:
                stream.abort()
        finally:
            shared.given -= 1

    def _place(self) -> _Shared:
        """A connection with a stream left, or a new one. Those that were lost are given up."""
        limit = self._profile.streams
        for shared in self._upstreams:
            if shared.given < limit and shared.usable:
                break
        else:
            shared = _Shared(self._profile, self._address)
            self._upstreams = [other for other in self._upstreams if other.usable or other.given]
            self._upstreams.append(shared)
        shared.given += 1
        return shared


async def _down(stream: UpstreamStream, writer: asyncio.StreamWriter) -> None:
    while data := await stream.receive():
        writer.write(data)
        await writer.drain()
    writer.write_eof()
