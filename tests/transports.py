"""The roads a peer can take to a listener: plain sockets, TLS, WebSocket over HTTP/1.1 and HTTP/2, QUIC.

All are written against the standards with the client sides of public libraries (wsproto, h2, aioquic, Python's ssl) and share no code
with the package under test. HTTP/2 and QUIC have work to do while a test does something else, as a kernel has for TCP: their connections
live on one asyncio loop in a thread of its own, and each of their streams ends in a socket pair, so that every `Pipe` has a socket to
read, write and wait on. Buffers are bounded: a stream that the test does not read keeps its window shut.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import random
import select
import socket
import ssl
import struct
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import h2.settings
from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.quic import events as quic_events
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, RejectConnection, RejectData, Request
from wsproto.frame_protocol import FrameProtocol, Opcode, ParseFailed

TIMEOUT = float(os.environ.get("MQTTC_TEST_TIMEOUT", "5"))
TRANSPORTS = ("tcp", "unix", "tls", "ws", "wss", "h2", "wss-h2", "quic")
SECURE = ("tls", "wss", "wss-h2", "quic")
WEBSOCKET = ("ws", "wss", "h2", "wss-h2")
STREAMED = ("h2", "wss-h2", "quic")
"""Their connections carry several streams."""
SCHEMES = {"tcp": "tcp", "unix": "unix", "tls": "tls", "ws": "ws", "wss": "wss", "h2": "ws", "wss-h2": "wss", "quic": "quic"}
"""Of the listener that serves each."""

_READ_BYTES = 65536
_UNSENT_BYTES = 262144  # of one stream, from which on the test's socket is not read any more
_WINDOW_BYTES = 262144  # of a stream towards us
_LINGER_S = 1.0  # for the last bytes of a connection that the test has closed

T = TypeVar("T")
Address = tuple[str, int] | str


def readable(connection: socket.socket, seconds: float) -> bool:
    """Whether there is something to read within that time; for any descriptor, select knows only those below 1024."""
    poller = select.poll()
    poller.register(connection, select.POLLIN)
    return bool(poller.poll(seconds * 1000))


class TransportError(ConnectionError):
    """The road could not be opened: a handshake failed or was refused."""


class Refused(TransportError):
    """The server answered a WebSocket handshake with something else; `status` and `headers` (names in lower case) are its response's."""

    def __init__(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes = b"") -> None:
        super().__init__(f"status {status}: {body!r}")
        self.status = status
        self.headers = {bytes(name).decode(): bytes(value).decode() for name, value in headers}
        self.body = body


@dataclass(frozen=True)
class Road:
    """How to reach a listener. `ca`: file of the CA that its certificate is of; `certificate`, `key`: files of the client's own."""

    transport: str = "tcp"
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    host: str = "localhost"
    path: str = "/mqtt"
    split: bool = False
    """WebSocket: cut what is sent into frames and fragments at random, with pings in between."""
    headers: tuple[tuple[bytes, bytes], ...] = ()
    """Further ones of the WebSocket handshake."""
    subprotocols: tuple[str, ...] = ("mqtt",)

    def context(self) -> ssl.SSLContext:
        alpn = {"wss-h2": "h2", "wss": "http/1.1"}.get(self.transport, "")
        return _context(self.ca, self.certificate, self.key, alpn)


@functools.cache
def _context(ca: Path | None, certificate: Path | None, key: Path | None, alpn: str) -> ssl.SSLContext:
    made = ssl.create_default_context(cafile=None if ca is None else str(ca))
    if certificate is not None:
        made.load_cert_chain(certificate, key)
    if alpn:
        made.set_alpn_protocols([alpn])
    return made


# ---------------------------------------------------------------------------------------------------- pipes


class Pipe:
    """A stream of bytes both ways, over a socket that the pipe owns."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection

    def send(self, data: bytes) -> None:
        """All of it, as one write. OSError where the other side has gone."""
        self.socket.sendall(data)

    def held(self) -> bool:
        """Whether there are bytes that waiting for the socket would not tell of."""
        return isinstance(self.socket, ssl.SSLSocket) and self.socket.pending() > 0

    def receive(self) -> bytes | None:
        """The next bytes; b"" at the end; None: nothing for the reader in what came."""
        return self.socket.recv(_READ_BYTES)

    def finish(self) -> None:
        """End this side of the stream; the other one may go on."""
        socket.socket.shutdown(self.socket, socket.SHUT_WR)  # that of an SSLSocket would forget TLS

    def reset(self) -> None:
        """Break the connection off, so that the other side sees an error rather than an end."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def close(self) -> None:
        self.socket.close()


class TunnelPipe(Pipe):
    """The test's side of a stream of HTTP/2 or QUIC. `own`: close the connection with it."""

    def __init__(self, tunnel: Tunnel, own: bool) -> None:
        super().__init__(tunnel.theirs)
        self.tunnel = tunnel
        tunnel.own_link = own

    def reset(self) -> None:
        _driver().call(self.tunnel.reset)
        self.socket.close()


class WebSocketPipe(Pipe):
    """WebSocket frames (RFC 6455) over another pipe, the handshake already done. Each `send` is one binary message in one frame.

    Frames of the server are checked: binary data, control frames, no masks. Pings are answered when they are read.
    """

    def __init__(self, inner: Pipe, subprotocol: str | None, trailing: bytes = b"", *, split: bool = False) -> None:
        super().__init__(inner.socket)
        self.inner = inner
        self.subprotocol = subprotocol
        self.frames = FrameProtocol(client=True, extensions=[])
        self.frames.receive_bytes(trailing)
        self.cuts = random.Random(0) if split else None
        self.pongs: list[bytes] = []
        self.close_code: int | None = None
        """Of the server's close frame, once it has come."""
        self.close_sent = False
        self._trailing = bool(trailing)

    def send(self, data: bytes) -> None:
        if self.cuts is None:
            self.inner.send(bytes(self.frames.send_data(data)))
            return
        for frame in self._pieces(data, self.cuts):
            self.inner.send(frame)

    def _pieces(self, data: bytes, cuts: random.Random) -> list[bytes]:
        """The same bytes in some forty frames at most, of one message or several; every few of them leave in one write."""
        writes, at = [bytearray()], 0
        while at < len(data):
            size = cuts.choice((0, 1, 1, 2, 3, 17, 126, 300)) + (len(data) - at) // 40
            last = at + size >= len(data)
            writes[-1] += self.frames.send_data(data[at : at + size], last or cuts.random() < 0.4)
            at += size
            if cuts.random() < 0.2:
                writes[-1] += self.frames.ping(cuts.randbytes(cuts.choice((0, 4, 125))))
            if cuts.random() < 0.5:
                writes.append(bytearray())
        return [bytes(write) for write in writes if write]

    def ping(self, payload: bytes = b"") -> None:
        self.inner.send(bytes(self.frames.ping(payload)))

    def send_close(self, code: int | None = 1000) -> None:
        self.close_sent = True
        self.inner.send(bytes(self.frames.close(code)))

    def held(self) -> bool:
        return self._trailing or self.inner.held()

    def receive(self) -> bytes | None:
        """Also reads on behind the server's close frame, to the end of the connection."""
        if self._trailing:
            self._trailing = False
        else:
            data = self.inner.receive()
            if not data:
                return data
            if self.close_code is not None:
                raise AssertionError(f"bytes behind the close frame: {data!r}")
            self.frames.receive_bytes(data)
        return self._payload() or None

    def _payload(self) -> bytes:
        got = bytearray()
        try:
            for frame in self.frames.received_frames():
                if frame.opcode is Opcode.BINARY:
                    got += frame.payload
                elif frame.opcode is Opcode.PING:
                    self.inner.send(bytes(self.frames.pong(frame.payload)))
                elif frame.opcode is Opcode.PONG:
                    self.pongs.append(bytes(frame.payload))
                elif frame.opcode is Opcode.CLOSE:
                    self.close_code = int(frame.payload[0])
                    if not self.close_sent:
                        with contextlib.suppress(OSError):
                            self.send_close(self.close_code)
                else:
                    raise AssertionError(f"a frame of kind {frame.opcode!r}")
        except ParseFailed as error:
            raise AssertionError(f"the server's frame is wrong: {error}") from error
        return bytes(got)

    def finish(self) -> None:
        """A close frame, which the server answers before it ends the connection."""
        if not self.close_sent:
            self.send_close()

    def reset(self) -> None:
        self.inner.reset()

    def close(self) -> None:
        self.inner.close()


def handshake_bytes(host: str, path: str, subprotocols: tuple[str, ...] = ("mqtt",), headers: Any = ()) -> tuple[WSConnection, bytes]:
    """A client's side of a WebSocket handshake over HTTP/1.1 and its request (RFC 6455 section 4.1)."""
    client = WSConnection(ConnectionType.CLIENT)
    request = client.send(Request(host=host, target=path, subprotocols=list(subprotocols), extra_headers=list(headers)))
    return client, request


def upgrade(inner: Pipe, host: str, road: Road) -> WebSocketPipe:
    """The handshake over HTTP/1.1. `Refused` where the answer is not 101."""
    client, request = handshake_bytes(host, road.path, road.subprotocols, road.headers)
    inner.send(request)
    received = bytearray()
    while b"\r\n\r\n" not in received:
        data = inner.receive()
        if not data:
            raise TransportError(f"the server ended the connection within the handshake: {bytes(received)!r}")
        received += data
    head, end, rest = bytes(received).partition(b"\r\n\r\n")
    client.receive_data(head + end)
    for event in client.events():
        if isinstance(event, AcceptConnection):
            return WebSocketPipe(inner, event.subprotocol, rest, split=road.split)
        if isinstance(event, RejectConnection):
            raise Refused(event.status_code, event.headers, _body(client, inner, rest) if event.has_body else b"")
    raise TransportError(f"the server answered {head!r}")


def _body(client: WSConnection, inner: Pipe, data: bytes) -> bytes:
    """Of a refusal; `data`: what has come of it."""
    body = bytearray()
    while True:
        if data:
            client.receive_data(data)
        for event in client.events():
            if isinstance(event, RejectData):
                body += event.data
                if event.body_finished:
                    return bytes(body)
        more = inner.receive()
        if not more:
            return bytes(body)
        data = more


# ---------------------------------------------------------------------------------------------------- streams


class Tunnel:
    """One stream of a link on one side, one end of a socket pair on the other; the test has the other end. The loop's thread."""

    def __init__(self, link: Http2Link | QuicLink, stream: int) -> None:
        self.link = link
        self.stream = stream
        self.own_link = False
        self.loop = link.loop
        self._ours, self.theirs = socket.socketpair()
        self._ours.setblocking(False)
        self.theirs.settimeout(TIMEOUT)
        self._unread: deque[memoryview] = deque()
        self._reading = False
        self._sent_end = False
        self._got_end = False
        self.closed = False
        self.read()

    @property
    def clogged(self) -> bool:
        """The test does not read what came."""
        return bool(self._unread)

    def read(self) -> None:
        """Take what the test writes, as long as the link can send it."""
        if self.closed:
            return
        wanted = not self._sent_end and self.link.can_send(self.stream)
        if wanted and not self._reading:
            self.loop.add_reader(self._ours, self._readable)
        elif not wanted and self._reading:
            self.loop.remove_reader(self._ours)
        self._reading = wanted

    def _readable(self) -> None:
        try:
            data = self._ours.recv(_READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if data:
            self.link.send(self.stream, data)
        else:
            self._sent_end = True
            self.link.send_end(self.stream)
            self._settle()
        self.read()

    def arrived(self, data: bytes) -> None:
        if self.closed or not data:
            return
        self._unread.append(memoryview(data))
        if len(self._unread) == 1:
            self._write()

    def _write(self) -> None:
        while self._unread:
            part = self._unread[0]
            try:
                taken = self._ours.send(part)
            except (BlockingIOError, InterruptedError):
                self.loop.add_writer(self._ours, self._write)
                return
            except OSError:  # the test has closed its end and wants nothing more
                self.reset()
                return
            if taken < len(part):
                self._unread[0] = part[taken:]
            else:
                self._unread.popleft()
        self.loop.remove_writer(self._ours)
        self.link.was_read(self.stream)
        if self._got_end:
            self._shut()

    def ended(self) -> None:
        """The server sends no more."""
        self._got_end = True
        if not self.closed and not self._unread:
            self._shut()

    def unwanted(self) -> None:
        """The server takes no more: what the test writes from now on fails."""
        if not self.closed:
            self._sent_end = True
            with contextlib.suppress(OSError):
                self._ours.shutdown(socket.SHUT_RD)
            self.read()
            self._settle()

    def broken(self) -> None:
        """The server has broken the stream off; what came before an end of its own can still be read."""
        if self._got_end:
            self.unwanted()
        else:
            self.drop()

    def _shut(self) -> None:
        with contextlib.suppress(OSError):
            self._ours.shutdown(socket.SHUT_WR)
        self._settle()

    def _settle(self) -> None:
        if self._sent_end and self._got_end and not self._unread and not self.closed:
            self.drop()

    def reset(self) -> None:
        """The test breaks the stream off."""
        if not self.closed:
            self.link.reset(self.stream)
            self.drop()

    def drop(self) -> None:
        """The stream has gone."""
        if self.closed:
            return
        self.closed = True
        self.loop.remove_reader(self._ours)
        self.loop.remove_writer(self._ours)
        self._ours.close()
        self.link.tunnels.pop(self.stream, None)
        if self.own_link:
            self.link.close_soon()


class _Driver:
    """The loop and its thread, which end with `stop` or with the interpreter."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.links: set[Http2Link | QuicLink] = set()
        self._thread = threading.Thread(target=self.loop.run_forever, name="peers' loop", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(asyncio.wait_for(work, TIMEOUT), self.loop).result()

    def call(self, function: Callable[[], None]) -> None:
        async def work() -> None:
            function()

        self.run(work())

    def stop(self) -> None:
        async def finish() -> None:
            for link in list(self.links):
                link.close_soon()
            await asyncio.gather(*(link.wait_closed() for link in list(self.links)), return_exceptions=True)

        self.run(finish())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


_drivers: list[_Driver] = []


def _driver() -> _Driver:
    if not _drivers:
        _drivers.append(_Driver())
    return _drivers[0]


def stop() -> None:
    """Close every connection of HTTP/2 and QUIC and join their thread; a later one starts it again."""
    while _drivers:
        _drivers.pop().stop()


class _Link:
    """What connections with streams share. The loop's thread."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.tunnels: dict[int, Tunnel] = {}
        self.gone = asyncio.Event()
        self._closing: asyncio.TimerHandle | None = None
        _driver().links.add(self)  # type: ignore[arg-type]

    def _is_gone(self) -> None:
        for tunnel in list(self.tunnels.values()):
            tunnel.ended()
            tunnel.drop()
        if self._closing is not None:
            self._closing.cancel()
        self.gone.set()
        for driver in _drivers:
            driver.links.discard(self)  # type: ignore[arg-type]

    async def wait_closed(self) -> None:
        await self.gone.wait()


class Http2Link(_Link, asyncio.Protocol):
    """A connection of HTTP/2, by prior knowledge or ALPN; each stream that `open` makes carries WebSocket frames (RFC 8441)."""

    def __init__(self, authority: str, secure: bool) -> None:
        super().__init__()
        self.authority = authority
        self.scheme = b"https" if secure else b"http"
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding=None))
        codes = h2.settings.SettingCodes
        initial = {codes.INITIAL_WINDOW_SIZE: _WINDOW_BYTES, codes.ENABLE_PUSH: 0}
        self.h2.local_settings = h2.settings.Settings(client=True, initial_values=initial)
        self.may_connect: asyncio.Future[bool] = self.loop.create_future()
        """Whether the server's settings allow extended CONNECT."""
        self.goaway: int | None = None
        """Error code of the server's GOAWAY."""
        self._input = bytearray()
        self._answers: dict[int, asyncio.Future[list[tuple[bytes, bytes]]]] = {}
        self._unsent: dict[int, bytearray] = {}
        self._ended: set[int] = set()
        self._owed: dict[int, int] = {}
        """Bytes of the stream's window that the test has not read yet."""

    @classmethod
    async def connect(cls, address: Address, road: Road) -> Http2Link:
        loop = asyncio.get_running_loop()
        assert isinstance(address, tuple)
        secure = road.transport == "wss-h2"
        tls = {"ssl": road.context(), "server_hostname": road.host} if secure else {}
        _, link = await loop.create_connection(lambda: cls(f"{road.host}:{address[1]}", secure), *address, **tls)
        try:
            if not await link.may_connect:
                raise TransportError("the server does not offer extended CONNECT")
        except BaseException:
            link.transport.abort()
            raise
        return link

    async def open(self, road: Road) -> WebSocketStream:
        """A WebSocket stream; `Refused` where the answer is not 200."""
        stream = self.h2.get_next_available_stream_id()
        offered = [(b"sec-websocket-protocol", ", ".join(road.subprotocols).encode())] if road.subprotocols else []
        head = [
            (b":method", b"CONNECT"),
            (b":protocol", b"websocket"),
            (b":scheme", self.scheme),
            (b":path", road.path.encode()),
            (b":authority", self.authority.encode()),
            (b"sec-websocket-version", b"13"),
            *offered,
            *road.headers,
        ]
        answer = self._answers[stream] = self.loop.create_future()
        self._unsent[stream] = bytearray()
        self.tunnels[stream] = tunnel = Tunnel(self, stream)
        self.h2.send_headers(stream, head)
        self._flush()
        try:
            headers = await answer
        except BaseException:
            tunnel.theirs.close()
            tunnel.drop()
            raise
        fields = dict(headers)
        if fields[b":status"] != b"200":
            tunnel.theirs.setblocking(False)
            body = bytearray()
            while part := await self.loop.sock_recv(tunnel.theirs, _READ_BYTES):
                body += part
            tunnel.theirs.close()
            tunnel.drop()
            raise Refused(int(fields[b":status"]), headers, bytes(body))
        subprotocol = fields.get(b"sec-websocket-protocol")
        return WebSocketStream(tunnel, None if subprotocol is None else subprotocol.decode())

    # ------------------------------------------------------------------------------------- asyncio's calls

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.h2.initiate_connection()
        self.h2.increment_flow_control_window(1 << 24)
        self._flush()

    def data_received(self, data: bytes) -> None:
        self._input += data
        try:
            happened = self.h2.receive_data(self._whole_frames())
        except h2.exceptions.ProtocolError as error:
            self._fail(TransportError(f"the server broke HTTP/2: {error}"))
            self.transport.abort()
            return
        for event in happened:
            self._event(event)
        self._flush()

    def _whole_frames(self) -> bytes:
        """Without GOAWAY, behind which streams may go on (RFC 9113 section 6.8), while h2 would hear nothing more."""
        frames = bytearray()
        while len(self._input) >= 9:
            end = 9 + int.from_bytes(self._input[:3])
            if len(self._input) < end:
                break
            if self._input[3] == 7:
                self.goaway = int.from_bytes(self._input[13:17])
            else:
                frames += self._input[:end]
            del self._input[:end]
        return bytes(frames)

    def _event(self, event: h2.events.Event) -> None:
        stream: Any = getattr(event, "stream_id", None)
        tunnel = self.tunnels.get(stream)
        if isinstance(event, h2.events.RemoteSettingsChanged):
            if not self.may_connect.done():
                self.may_connect.set_result(self.h2.remote_settings.enable_connect_protocol == 1)
            self._pump()
        elif isinstance(event, h2.events.ResponseReceived):
            answer = self._answers.get(stream)
            if answer is not None and not answer.done():
                answer.set_result(list(event.headers))
        elif isinstance(event, h2.events.DataReceived):
            if tunnel is None:
                self.h2.acknowledge_received_data(event.flow_controlled_length, stream)
                return
            self._owed[stream] = self._owed.get(stream, 0) + event.flow_controlled_length
            tunnel.arrived(event.data)
            if not tunnel.clogged:
                self.was_read(stream)
        elif isinstance(event, h2.events.WindowUpdated):
            self._pump()
        elif isinstance(event, h2.events.StreamEnded):
            if tunnel is not None:
                tunnel.ended()
        elif isinstance(event, h2.events.StreamReset):
            self._refuse(stream, TransportError(f"stream reset: {event.error_code!r}"))
            if tunnel is not None:
                tunnel.broken()

    def _refuse(self, stream: int, error: Exception) -> None:
        answer = self._answers.get(stream)
        if answer is not None and not answer.done():
            answer.set_exception(error)

    def _fail(self, error: Exception) -> None:
        if not self.may_connect.done():
            self.may_connect.set_exception(error)
        for stream in list(self._answers):
            self._refuse(stream, error)

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self._fail(TransportError(f"the server ended the connection: {error}"))
        self._is_gone()

    # ------------------------------------------------------------------------------------- the tunnels' calls

    def can_send(self, stream: int) -> bool:
        return len(self._unsent[stream]) < _UNSENT_BYTES and stream in self._answers

    def send(self, stream: int, data: bytes) -> None:
        self._unsent[stream] += data
        self._pump()

    def send_end(self, stream: int) -> None:
        self._ended.add(stream)
        self._pump()

    def was_read(self, stream: int) -> None:
        owed = self._owed.pop(stream, 0)
        if owed:
            with contextlib.suppress(h2.exceptions.ProtocolError):  # the stream may be closed by now
                self.h2.acknowledge_received_data(owed, stream)
            self._flush()

    def reset(self, stream: int) -> None:
        self._unsent[stream].clear()
        with contextlib.suppress(h2.exceptions.ProtocolError):
            self.h2.reset_stream(stream, h2.errors.ErrorCodes.CANCEL)
        self._flush()

    def _pump(self) -> None:
        """Send what the windows allow."""
        for stream, unsent in list(self._unsent.items()):
            try:
                while unsent:
                    size = min(len(unsent), self.h2.local_flow_control_window(stream), self.h2.max_outbound_frame_size)
                    if size <= 0:
                        break
                    self.h2.send_data(stream, bytes(unsent[:size]))
                    del unsent[:size]
                if not unsent and stream in self._ended:
                    self._ended.discard(stream)
                    self.h2.end_stream(stream)
            except h2.exceptions.ProtocolError:  # the server has closed the stream
                unsent.clear()
                self._ended.discard(stream)
            if stream in self.tunnels:
                self.tunnels[stream].read()
            elif not unsent:
                del self._unsent[stream]
                self._answers.pop(stream, None)
        self._flush()

    def _flush(self) -> None:
        if not self.transport.is_closing():
            self.transport.write(self.h2.data_to_send())

    def close_soon(self) -> None:
        """Say GOAWAY and close, after what is unsent."""
        if not self.transport.is_closing():
            with contextlib.suppress(h2.exceptions.ProtocolError):
                self.h2.close_connection()
            self._flush()
            self.transport.close()
            self._closing = self.loop.call_later(_LINGER_S, self.transport.abort)


@dataclass
class WebSocketStream:
    tunnel: Tunnel
    subprotocol: str | None


class _Quic(QuicConnection):
    """Opens windows no further while the test does not read."""

    paused = False

    def _write_stream_limits(self, *args: Any, **kwargs: Any) -> None:
        if not self.paused:
            super()._write_stream_limits(*args, **kwargs)

    def _write_connection_limits(self, *args: Any, **kwargs: Any) -> None:
        if not self.paused:
            super()._write_connection_limits(*args, **kwargs)


class QuicLink(_Link, QuicConnectionProtocol):
    """A connection of QUIC; each bidirectional stream is one of MQTT."""

    def __init__(self, quic: _Quic) -> None:
        _Link.__init__(self)
        QuicConnectionProtocol.__init__(self, quic)
        self.quic = quic
        self.ended: quic_events.ConnectionTerminated | None = None
        """How the connection ended; None: it has not."""

    @classmethod
    async def connect(cls, address: Address, road: Road, alpn: tuple[str, ...] = ("mqtt",)) -> QuicLink:
        assert isinstance(address, tuple)
        configuration = QuicConfiguration(
            alpn_protocols=list(alpn),
            server_name=road.host,
            max_stream_data=_WINDOW_BYTES,
            max_datagram_size=1350,
            cafile=None if road.ca is None else str(road.ca),
        )
        if road.certificate is not None:
            configuration.load_cert_chain(road.certificate, road.key)
        local = ("::1", 0) if ":" in address[0] else ("127.0.0.1", 0)
        loop = asyncio.get_running_loop()
        transport, link = await loop.create_datagram_endpoint(lambda: cls(_Quic(configuration=configuration)), local_addr=local)
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 21)
        link.connect_to(address)
        try:
            await link.wait_connected()
        except BaseException as error:
            link._gone_now()
            if isinstance(error, ConnectionError):
                raise TransportError(f"QUIC: {link.ended}") from error
            raise
        return link

    def connect_to(self, address: tuple[str, int]) -> None:
        QuicConnectionProtocol.connect(self, address)  # type: ignore[call-arg]

    def open(self) -> Tunnel:
        stream = self.quic.get_next_available_stream_id()
        self.quic.send_stream_data(stream, b"")
        self.tunnels[stream] = Tunnel(self, stream)
        return self.tunnels[stream]

    def quic_event_received(self, event: quic_events.QuicEvent) -> None:
        stream: Any = getattr(event, "stream_id", None)
        tunnel = self.tunnels.get(stream)
        if isinstance(event, quic_events.ConnectionTerminated):
            self.ended = event
            self._gone_now()
        elif tunnel is None:
            return
        elif isinstance(event, quic_events.StreamDataReceived):
            tunnel.arrived(event.data)
            self._look()
            if event.end_stream:
                tunnel.ended()
        elif isinstance(event, quic_events.StreamReset):
            tunnel.broken()
        elif isinstance(event, quic_events.StopSendingReceived):
            tunnel.unwanted()  # aioquic has answered with RESET_STREAM

    def _gone_now(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.close()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._is_gone()

    def transmit(self) -> None:
        if not self.gone.is_set():
            super().transmit()
            for tunnel in list(self.tunnels.values()):
                tunnel.read()

    def error_received(self, error: Exception) -> None:
        """ICMP's answer: nobody listens there any more."""
        self._gone_now()

    def connection_lost(self, error: Exception | None) -> None:
        self._is_gone()

    # ------------------------------------------------------------------------------------- the tunnels' calls

    def _look(self) -> None:
        self.quic.paused = any(tunnel.clogged for tunnel in self.tunnels.values())

    def can_send(self, stream: int) -> bool:
        known = self.quic._streams.get(stream)
        return known is None or len(known.sender._buffer) < _UNSENT_BYTES

    def send(self, stream: int, data: bytes) -> None:
        self._try(lambda: self.quic.send_stream_data(stream, data))

    def send_end(self, stream: int) -> None:
        self._try(lambda: self.quic.send_stream_data(stream, b"", end_stream=True))

    def _try(self, action: Callable[[], None]) -> None:
        try:
            action()
        except (AssertionError, RuntimeError, ValueError):  # the stream has ended meanwhile
            return
        self._transmit_soon()

    def was_read(self, stream: int) -> None:
        self._look()
        self._transmit_soon()

    def reset(self, stream: int) -> None:
        self._try(lambda: self.quic.stop_stream(stream, 0))
        self._try(lambda: self.quic.reset_stream(stream, 0))

    def close_soon(self) -> None:
        """Close when the server has acknowledged what was sent, or after a moment."""
        if self.gone.is_set() or self._closing is not None:
            return
        self.loop.create_task(self._close())

    async def _close(self) -> None:
        with contextlib.suppress(TimeoutError, ConnectionError):
            async with asyncio.timeout(_LINGER_S):
                await self.ping()  # acknowledged behind what was sent before
        if not self.gone.is_set():
            self.close()
            self._gone_now()


# ---------------------------------------------------------------------------------------------------- opening


Link = Http2Link | QuicLink


def open_link(address: Address, road: Road) -> Link:
    """A connection that several pipes can share: `open_pipe(..., link=...)`. `close_link` ends it."""
    work: Awaitable[Link] = QuicLink.connect(address, road) if road.transport == "quic" else Http2Link.connect(address, road)
    return _driver().run(work)  # type: ignore[arg-type]


def close_link(link: Link) -> None:
    async def work() -> None:
        link.close_soon()
        await link.wait_closed()

    if not link.gone.is_set():
        _driver().run(work())


def open_socket(address: Address) -> socket.socket:
    """Connected; TCP without delay for small segments."""
    if isinstance(address, str):
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        made.settimeout(TIMEOUT)
        made.connect(address)
        return made
    made = socket.create_connection(address, TIMEOUT)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return made


def secure(plain: socket.socket, context: ssl.SSLContext, host: str | None, session: ssl.SSLSession | None = None) -> ssl.SSLSocket:
    try:
        return context.wrap_socket(plain, server_hostname=host, session=session)
    except BaseException:
        plain.close()
        raise


def _open_stream(address: Address, road: Road, link: Link | None) -> Pipe:
    own = link is None
    made = open_link(address, road) if link is None else link

    async def work() -> Tunnel | WebSocketStream:
        return made.open() if isinstance(made, QuicLink) else await made.open(road)

    try:
        stream = _driver().run(work())
    except BaseException:
        if own:
            close_link(made)
        raise
    if isinstance(stream, WebSocketStream):
        return WebSocketPipe(TunnelPipe(stream.tunnel, own), stream.subprotocol, split=road.split)
    return TunnelPipe(stream, own)


def open_pipe(address: Address, road: Road, *, link: Link | None = None) -> Pipe:
    """A pipe to the listener at this address. `link`: a stream of that connection rather than one of its own."""
    if road.transport in STREAMED:
        return _open_stream(address, road, link)
    connection = open_socket(address)
    if road.transport in SECURE:
        connection = secure(connection, road.context(), road.host)
    pipe = Pipe(connection)
    if road.transport not in WEBSOCKET:
        return pipe
    assert isinstance(address, tuple)
    try:
        return upgrade(pipe, f"{road.host}:{address[1]}", road)
    except BaseException:
        pipe.close()
        raise
