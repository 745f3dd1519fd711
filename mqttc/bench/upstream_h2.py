"""WebSockets in streams of an HTTP/2 connection (RFC 8441)."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from typing import Any, cast

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings
from wsproto.connection import Connection as WebSocket
from wsproto.connection import ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Ping, TextMessage
from wsproto.utilities import LocalProtocolError, RemoteProtocolError

from mqttc.bench.profile import Profile
from mqttc.bench.road import TIMEOUT_S, reason_of, tls_context
from mqttc.bench.upstream import WINDOW_BYTES, Inlet, UpstreamError

_READ_BYTES = 1 << 16


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
            while data := await self.reader.read(_READ_BYTES):
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
        self.inlet = Inlet()
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
            except LocalProtocolError:
                if isinstance(event, CloseConnection):
                    return  # ours is under way already
                raise UpstreamError("the broker has closed the WebSocket") from None
            try:
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


async def open_h2(profile: Profile, address: str) -> H2Upstream:
    made = H2Upstream(profile, address)
    try:
        await made.open()
    except BaseException:
        await made.shut()
        raise
    return made
