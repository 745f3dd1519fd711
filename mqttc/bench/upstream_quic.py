"""Streams of a QUIC connection, each of which carries MQTT as a TCP connection does."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections import deque
from typing import Any, cast

from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.quic import events as quic_events
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection

from mqttc.bench.profile import Profile
from mqttc.bench.road import reason_of
from mqttc.bench.upstream import WINDOW_BYTES, Inlet, UpstreamError

IDLE_S = 3600.0
"""A connection without traffic ends; the broker may want it earlier."""
HELD_DATAGRAMS = 256
"""Of a connection one of whose clients does not read; more are dropped, as a full socket's are, and sent again by the broker."""


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
        self._quic.send_stream_data(number, b"")  # the number is taken only now
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
        self.inlet = Inlet()
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
                with contextlib.suppress(AssertionError):  # STOP_SENDING has reset it
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
    where = socket.getaddrinfo(address, target.port, type=socket.SOCK_DGRAM)[0][4]
    peer = (str(where[0]), int(where[1]))  # of a connected socket, so that ICMP can say that nobody is there
    _, made = await loop.create_datagram_endpoint(lambda: QuicUpstream(QuicConnection(configuration=configuration)), remote_addr=peer)
    try:
        await made.open(where)
    except BaseException:
        await made.shut()
        raise
    return made
