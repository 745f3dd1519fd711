"""Connections of HTTP/2 and QUIC for `transports`: each stream ends in a socket pair, whose other end a test has.

They live on one asyncio loop in a thread of its own, for they have work to do while a test does something else, as a kernel has for TCP.
Buffers are bounded: a stream that the test does not read keeps its window shut.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
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

from .road import TIMEOUT, Address, Refused, Road, TransportError

_READ_BYTES = 65536
_UNSENT_BYTES = 262144  # of one stream, from which on the test's socket is not read any more
_WINDOW_BYTES = 262144  # of a stream towards us
_LINGER_S = 1.0  # for the last bytes of a connection that the test has closed

T = TypeVar("T")


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


class Driver:
    """The loop and its thread, which end with `stop` or with the interpreter."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.links: set[Http2Link | QuicLink] = set()
        self.tasks: set[asyncio.Task[None]] = set()
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
            await asyncio.gather(*(link.wait_closed() for link in list(self.links)), *self.tasks, return_exceptions=True)

        self.run(finish())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


_drivers: list[Driver] = []


def driver() -> Driver:
    if not _drivers:
        _drivers.append(Driver())
    return _drivers[0]


def stop() -> None:
    """Close every connection of HTTP/2 and QUIC and join their thread; a later one starts it again."""
    if _drivers:
        try:
            _drivers[0].stop()
        finally:
            _drivers.clear()


class _Link:
    """What connections with streams share. The loop's thread."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.tunnels: dict[int, Tunnel] = {}
        self.gone = asyncio.Event()
        self._closing: asyncio.TimerHandle | None = None
        driver().links.add(self)  # type: ignore[arg-type]

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
        self._ending: asyncio.Task[None] | None = None
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
        if self._ending is not None and self._ending is not asyncio.current_task():
            self._ending.cancel()
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
        if not self.gone.is_set() and self._ending is None:
            self._ending = self.loop.create_task(self._close())
            driver().tasks.add(self._ending)
            self._ending.add_done_callback(driver().tasks.discard)

    async def _close(self) -> None:
        with contextlib.suppress(TimeoutError, ConnectionError):
            async with asyncio.timeout(_LINGER_S):
                await self.ping()  # acknowledged behind what was sent before
        if not self.gone.is_set():
            self.close()
            self._gone_now()


Link = Http2Link | QuicLink
