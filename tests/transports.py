"""The roads a peer can take to a listener: plain sockets, TLS, WebSocket over HTTP/1.1 and HTTP/2, QUIC.

All are written against the standards with the client sides of public libraries (wsproto, h2, aioquic, Python's ssl) and share no code
with the package under test. Every `Pipe` has a socket to read, write and wait on.
"""

from __future__ import annotations

import contextlib
import random
import select
import socket
import ssl
import struct
from collections.abc import Awaitable
from typing import Any

from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, RejectConnection, RejectData, Request
from wsproto.frame_protocol import FrameProtocol, Opcode, ParseFailed

from .road import SCHEMES, SECURE, STREAMED, TIMEOUT, TRANSPORTS, WEBSOCKET, Address, Refused, Road, TransportError
from .streams import Http2Link, Link, QuicLink, Tunnel, WebSocketStream, driver, stop

__all__ = [
    "SCHEMES", "SECURE", "STREAMED", "TRANSPORTS", "WEBSOCKET", "Address", "Link", "Pipe", "Refused", "Road", "TransportError",
    "TunnelPipe", "WebSocketPipe", "close_link", "handshake_bytes", "open_link", "open_pipe", "open_socket", "readable", "secure",
    "stop", "upgrade",
]  # fmt: skip

_READ_BYTES = 65536


def readable(connection: socket.socket, seconds: float) -> bool:
    """Whether there is something to read within that time; for any descriptor, select knows only those below 1024."""
    poller = select.poll()
    poller.register(connection, select.POLLIN)
    return bool(poller.poll(seconds * 1000))


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
        driver().call(self.tunnel.reset)
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


# ---------------------------------------------------------------------------------------------------- opening


def open_link(address: Address, road: Road) -> Link:
    """A connection that several pipes can share: `open_pipe(..., link=...)`. `close_link` ends it."""
    work: Awaitable[Link] = QuicLink.connect(address, road) if road.transport == "quic" else Http2Link.connect(address, road)
    return driver().run(work)  # type: ignore[arg-type]


def close_link(link: Link) -> None:
    async def work() -> None:
        link.close_soon()
        await link.wait_closed()

    if not link.gone.is_set():
        driver().run(work())


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
        stream = driver().run(work())
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
