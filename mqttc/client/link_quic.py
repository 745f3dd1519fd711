"""MQTT over QUIC: one bidirectional stream of a connection of its own carries MQTT as a TCP connection does."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections import deque
from typing import Any, Final, cast

from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.quic import events as quic_events
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection

from mqttc.client.dial import Address, Info, race, resolve, sources
from mqttc.client.link import Handler, os_text
from mqttc.client.options import Options, Tls
from mqttc.client.url import Target
from mqttc.errors import ConnectError

ALPN: Final = "mqtt"
WINDOW_BYTES: Final = 1 << 20
"""What the broker may send unasked."""
HELD_DATAGRAMS: Final = 256
"""While the application does not read; more are dropped, as a full socket's are, and the broker sends them again."""
IDLE_S: Final = 3600.0
"""A connection without traffic ends; the broker may want it earlier, and keep alive keeps it up."""


class QuicLink(QuicConnectionProtocol):
    """`connected` is done when the handshake is, and fails with ``ConnectError``."""

    def __init__(self, quic: QuicConnection, max_write_bytes: int) -> None:
        super().__init__(quic)
        self.connected_or_lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._handler: Handler | None = None
        self._error: BaseException | None = None
        self._shut_down = False
        self._max_write_bytes = max_write_bytes
        self._number = 0
        self._full = False
        self._paused = False
        self._closing = False
        self._held: deque[tuple[bytes, Any]] = deque()
        self._endpoint: asyncio.DatagramTransport | None = None

    def attach(self, handler: Handler) -> None:
        """This connection it is; others that were tried are dropped without a word to the handler."""
        self._handler = handler
        if self._shut_down:
            self._tell()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._endpoint = cast(asyncio.DatagramTransport, transport)

    def error_received(self, exc: Exception) -> None:
        """ICMP says that nobody is there. Later it may be anybody's word, and keep alive decides."""
        if not self.connected_or_lost.done():
            self._lost(os_text(exc), exc)

    def datagram_received(self, data: bytes | str, addr: Any) -> None:
        if not self._paused and not self._held:
            super().datagram_received(data, addr)
        elif len(self._held) < HELD_DATAGRAMS:
            self._held.append((cast(bytes, data), addr))

    def transmit(self) -> None:
        if self._endpoint is None:
            return
        super().transmit()
        if self._full and self._unsent() < self._max_write_bytes // 2:
            self._full = False
            if self._handler is not None:
                self._handler.room(True)
        if self._closing and not self._unsent():
            self._shut()

    def quic_event_received(self, event: quic_events.QuicEvent) -> None:
        if isinstance(event, quic_events.HandshakeCompleted):
            if not self.connected_or_lost.done():
                self._number = self._quic.get_next_available_stream_id()
                self._quic.send_stream_data(self._number, b"")
                self.connected_or_lost.set_result(None)
        elif isinstance(event, quic_events.ConnectionTerminated):
            self._lost(event.reason_phrase or f"the QUIC connection ended (error code {event.error_code:#x})")
        elif isinstance(event, quic_events.StreamDataReceived):
            if event.stream_id == self._number and self._handler is not None:
                if event.data:
                    self._handler.received(event.data)
                if event.end_stream:
                    self._lost("")
        elif isinstance(event, quic_events.StreamReset | quic_events.StopSendingReceived) and event.stream_id == self._number:
            self._lost(f"the broker reset the stream (error code {event.error_code:#x})")

    def write(self, data: bytes) -> None:
        if self._handler is None or self._closing:
            return
        self._quic.send_stream_data(self._number, data)
        self.transmit()
        if not self._full and self._unsent() >= self._max_write_bytes:
            self._full = True
            self._handler.room(False)

    def _unsent(self) -> int:
        """Bytes that were not acknowledged. aioquic takes any number, and does not tell; this is where it keeps them."""
        stream = self._quic._streams.get(self._number)
        return 0 if stream is None else len(stream.sender._buffer)

    def pause_reading(self) -> None:
        self._paused = True

    def resume_reading(self) -> None:
        self._paused = False
        while self._held and not self._paused:
            super().datagram_received(*self._held.popleft())

    def close(self, error_code: int = 0, reason_phrase: str = "") -> None:
        """The stream ends with what was written; the connection when the broker has it all."""
        if self._closing or self._handler is None:
            return
        self._closing = True
        self.resume_reading()
        try:
            self._quic.send_stream_data(self._number, b"", end_stream=True)
        except AssertionError:
            self._shut()  # STOP_SENDING has reset it
            return
        self.transmit()

    def abort(self) -> None:
        self._shut()

    def _lost(self, text: str, cause: BaseException | None = None) -> None:
        if not self.connected_or_lost.done():
            error = ConnectError(f"QUIC: {text}")
            error.__cause__ = cause
            self.connected_or_lost.set_exception(error)
            self.connected_or_lost.exception()  # whoever waits gets it; nobody need
        self._shut(ConnectError(f"QUIC: {text}") if text and not self._closing else None)

    def _shut(self, error: BaseException | None = None) -> None:
        if self._shut_down:
            return
        self._shut_down = True
        self._error = error
        self._held.clear()
        endpoint, self._endpoint = self._endpoint, None
        if endpoint is not None:
            self._quic.close()
            super().transmit()
            endpoint.close()
        if self._timer is not None:
            self._timer.cancel()
        self._tell()

    def _tell(self) -> None:
        handler, self._handler = self._handler, None
        if handler is not None:
            asyncio.get_running_loop().call_soon(handler.lost, self._error)


def _configuration(target: Target, options: Options) -> QuicConfiguration:
    tls = options.tls
    if isinstance(tls, ssl.SSLContext):
        raise ConnectError("tls: QUIC takes Tls(...), an SSLContext is for connections over TCP")
    chosen = Tls() if tls is None else tls
    made = QuicConfiguration(
        is_client=True,
        alpn_protocols=list(chosen.alpn) or [ALPN],
        server_name=chosen.server_name or target.host,
        idle_timeout=IDLE_S,
        max_stream_data=WINDOW_BYTES,
        max_data=WINDOW_BYTES,
    )
    try:
        if not chosen.verify:
            made.verify_mode = ssl.CERT_NONE
        elif chosen.ca_file is not None:
            made.load_verify_locations(os.fspath(chosen.ca_file))
        if chosen.certificate_file is not None:
            key_file = None if chosen.key_file is None else os.fspath(chosen.key_file)
            made.load_cert_chain(os.fspath(chosen.certificate_file), key_file, chosen.key_password)
    except (OSError, ValueError, TypeError) as error:
        raise ConnectError(f"tls: {os_text(error)}") from error
    return made


async def open_quic(target: Target, options: Options, handler: Handler) -> QuicLink:
    """Races the addresses as TCP's are. Raises ``ConnectError``, ``OSError``."""
    configuration = _configuration(target, options)

    async def attempt(info: Info) -> QuicLink:
        return await _open(info, found[info], configuration, options.max_write_bytes)

    found = await sources(await resolve(target.host, target.port, socket.SOCK_DGRAM), options.bind_address, socket.SOCK_DGRAM)
    made = await race(found, attempt, QuicLink.abort)
    made.attach(handler)
    return made


async def _open(info: Info, source: Address | None, configuration: QuicConfiguration, max_write_bytes: int) -> QuicLink:
    address = info[1]
    loop = asyncio.get_running_loop()
    try:
        _, made = await loop.create_datagram_endpoint(
            lambda: QuicLink(QuicConnection(configuration=configuration), max_write_bytes),
            local_addr=None if source is None else (str(source[0]), 0),
            remote_addr=(str(address[0]), int(address[1])),  # a connected socket, so that ICMP can say that nobody is there
        )
    except OSError as error:
        if source is None:
            raise
        raise ConnectError(f"bind_address {source[0]}: {os_text(error)}") from error
    try:
        made.connect(address)
        await made.connected_or_lost
    except BaseException:
        made.abort()
        raise
    return made
