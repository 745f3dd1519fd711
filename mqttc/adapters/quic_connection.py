"""A QUIC connection of a listener: its streams, each of which leads to a worker through a duct, and its timer."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from aioquic.quic import events
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.packet import QuicErrorCode, QuicProtocolVersion

from mqttc.adapters.duct import Duct
from mqttc.adapters.quic_engine import CONNECTION_WINDOW_BYTES, STREAM_WINDOW_BYTES, Engine
from mqttc.adapters.quic_tls import CertificateRefusedError

if TYPE_CHECKING:
    from mqttc.adapters.quic import QuicListener

SEND_BUFFER_BYTES: Final = 262_144
"""Unacknowledged bytes of a stream above which nothing is taken from the broker for it, until half is left."""

STREAM_NO_ERROR: Final = 0
STREAM_REFUSED: Final = 1
"""Application error code of streams that the broker has no room for."""

ID_BYTES: Final = 8
"""Length of the connection ids that the server gives out."""
VERSIONS: Final = (QuicProtocolVersion.VERSION_1, QuicProtocolVersion.VERSION_2)

_CRYPTO_FRAME: Final = 0x06

Address = tuple[str | int, ...]
"""As the socket tells it, with the number of the socket behind: two sockets of one listener are two paths."""


def peer_text(address: Address) -> str:
    host, port = str(address[0]), address[1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class Stream:
    """One stream and its duct; what is fed while the duct is full waits here in one piece."""

    def __init__(self, connection: Connection, stream_id: int) -> None:
        self._connection = connection
        self._id = stream_id
        self._waiting = bytearray()
        self._finished = False
        self._full = False
        self.duct: Duct | None = None

    @property
    def backlog(self) -> int:
        return 0 if self.duct is None or self.duct.closed else self.duct.backlog + len(self._waiting)

    @property
    def live(self) -> bool:
        return self.duct is not None and not self.duct.closed

    def receive(self, data: bytes, end: bool) -> None:
        """Bytes of the client, and whether they were its last."""
        if self.duct is None or self.duct.closed:
            return
        if self._full:
            self._waiting += data
        elif data:
            self._full = not self.duct.feed(data)
        if end:
            self.finish()

    def finish(self) -> None:
        self._finished = True
        if self.duct is not None and not self._waiting:
            self.duct.finish()

    def close(self) -> None:
        self._waiting.clear()
        if self.duct is not None:
            self.duct.close()

    def duct_bytes(self, data: bytes) -> None:
        self._connection.send(self._id, data)

    def duct_room(self) -> None:
        if self.duct is None:
            return
        self._full = False
        if self._waiting:
            data = bytes(self._waiting)
            self._waiting.clear()
            self._full = not self.duct.feed(data)
        if self._finished:
            self.duct.finish()
        self._connection.stream_taken()

    def duct_ended(self) -> None:
        self._connection.stream_ended(self._id, self)


class Connection:
    """One QUIC connection: its engine, its streams, its timer."""

    def __init__(self, listener: QuicListener, address: Address, now: float, original_id: bytes, retry_id: bytes | None) -> None:
        settings, credentials = listener.settings, listener.credentials
        self._listener = listener
        self._verifier = credentials.verifier
        self._idle_timeout_s = settings.idle_timeout_s
        self.peer = peer_text(address)
        self.address = address
        self.ids: set[bytes] = set()
        self.streams: dict[int, Stream] = {}
        self.paused: set[int] = set()
        self.shaken = False
        self.wound_up = False
        self._certificate: bytes | None = None
        self._deadline: float | None = now + settings.handshake_timeout_s
        self._ended_streams: set[int] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self.engine = Engine(
            QuicConfiguration(
                is_client=False,
                alpn_protocols=list(settings.alpn),
                certificate=credentials.certificate,
                certificate_chain=credentials.chain,
                private_key=credentials.key,
                connection_id_length=ID_BYTES,
                idle_timeout=settings.idle_timeout_s,
                max_data=CONNECTION_WINDOW_BYTES,
                max_stream_data=STREAM_WINDOW_BYTES,
                supported_versions=list(VERSIONS),
            ),
            max_streams=settings.max_streams,
            request_certificate=credentials.verifier is not None,
            backlog=self._backlog,
            tickets=listener.tickets if settings.early_data else None,
            original_destination_connection_id=original_id,
            retry_source_connection_id=retry_id,
        )

    def _backlog(self, stream_id: int) -> int:
        stream = self.streams.get(stream_id)
        return 0 if stream is None else stream.backlog

    @property
    def live_streams(self) -> int:
        return len(self.streams) - len(self._ended_streams)

    # From the broker

    def send(self, stream_id: int, data: bytes) -> None:
        if self.engine.ended or not self.engine.has_stream(stream_id):
            return
        self.engine.send_stream_data(stream_id, data)
        duct = self.streams[stream_id].duct
        if duct is not None and self.engine.unacknowledged(stream_id) > SEND_BUFFER_BYTES:
            duct.pause()
            self.paused.add(stream_id)
        self._listener.wake(self)

    def stream_taken(self) -> None:
        if not self.engine.ended:
            self._listener.wake(self)

    def stream_ended(self, stream_id: int, stream: Stream) -> None:
        self._listener.lingering.discard(stream)
        if not self.engine.ended and stream_id not in self._ended_streams:
            self.engine.finish_stream(stream_id, STREAM_NO_ERROR)
            self._drop_stream(stream_id)
            self._listener.wake(self)

    # From the client

    def handle_events(self, now: float) -> None:
        """What the engine has to tell after a datagram or a timer."""
        while (event := self.engine.next_event()) is not None:
            if isinstance(event, events.StreamDataReceived):
                self._stream_data(event, now)
            elif isinstance(event, events.StreamReset | events.StopSendingReceived):
                self._stream_broken(event.stream_id, event.error_code)
            elif isinstance(event, events.HandshakeCompleted):
                self._handshake_completed(event, now)
            elif isinstance(event, events.ConnectionIdIssued):
                self._listener.add_id(event.connection_id, self)
            elif isinstance(event, events.ConnectionIdRetired):
                self._listener.remove_id(event.connection_id, self)
            elif isinstance(event, events.ConnectionTerminated):
                self._wind_up(now)
                self._listener.forget(self)
        address = self.engine.get_peer_address()
        if address is not None and address != self.address:
            self.address = address
            self._listener.migrated(self, peer_text(address))
        if self.engine.ended:
            self._wind_up(now)

    def _handshake_completed(self, event: events.HandshakeCompleted, now: float) -> None:
        if self._verifier is not None:
            try:
                self._certificate = self._verifier.verify(*self.engine.client_certificates)
            except CertificateRefusedError as error:
                self.engine.close(QuicErrorCode.CRYPTO_ERROR + error.alert, _CRYPTO_FRAME, str(error))
                return
        self.shaken = True
        self._deadline = None if self.live_streams else now + self._idle_timeout_s
        self._listener.handshake_completed(self, event)

    def _stream_data(self, event: events.StreamDataReceived, now: float) -> None:
        if self.engine.ended:
            return
        stream = self.streams.get(event.stream_id)
        if stream is None and not event.data:  # a FIN and nothing else
            self.streams[event.stream_id] = Stream(self, event.stream_id)
            self._ended_streams.add(event.stream_id)
            self.engine.finish_stream(event.stream_id, STREAM_NO_ERROR)
            return
        if stream is None:
            stream = self._open_stream(event.stream_id)
        if stream is not None:
            stream.receive(event.data, event.end_stream)

    def _open_stream(self, stream_id: int) -> Stream | None:
        """None: the broker takes no further connection."""
        stream = self.streams[stream_id] = Stream(self, stream_id)
        stream.duct = self._listener.open_duct(self, stream, self._certificate)
        if stream.duct is None:
            self.engine.abort_stream(stream_id, STREAM_REFUSED)
            self._ended_streams.add(stream_id)
            return None
        if self.shaken:
            self._deadline = None
        return stream

    def _stream_broken(self, stream_id: int, error_code: int) -> None:
        if stream_id in self._ended_streams:
            return  # the answer to our STOP_SENDING; what the broker sent last is still on its way
        stream = self.streams.get(stream_id)
        self.engine.abort_stream(stream_id, error_code)
        if stream is not None:
            stream.close()
            self._listener.count("quic_streams_reset")
            self._drop_stream(stream_id)

    def _drop_stream(self, stream_id: int) -> None:
        self._ended_streams.add(stream_id)
        self.paused.discard(stream_id)
        self._listener.stream_closed()
        if not self.live_streams and self.shaken:
            self._deadline = self._listener.now() + self._idle_timeout_s

    def _wind_up(self, now: float) -> None:
        """The connection has ended. What a client sent before it said so itself still reaches the broker."""
        if self.wound_up:
            return
        self.wound_up = True
        self._deadline = None
        error_code, reason = self.engine.end
        graceful = self.engine.ended_by_peer and error_code == 0
        for stream_id, stream in self.streams.items():
            if stream_id in self._ended_streams:
                continue
            self._listener.stream_closed()
            if graceful and stream.live:
                if stream.duct is not None:
                    stream.duct.resume()
                stream.finish()
                self._listener.lingering.add(stream)
            else:
                stream.close()
        self.streams.clear()
        self._ended_streams.clear()
        self.paused.clear()
        self._listener.connection_ended(self, error_code, reason, now)

    # Time

    def transmit(self, now: float) -> list[tuple[bytes, Address]]:
        """What is to be sent now; the timer is set for what comes next."""
        datagrams = self.engine.datagrams_to_send(now)
        self.handle_events(now)
        for stream_id in [one for one in self.paused if self.engine.unacknowledged(one) <= SEND_BUFFER_BYTES // 2]:
            self.paused.discard(stream_id)
            duct = self.streams[stream_id].duct
            if duct is not None:
                duct.resume()
        for stream_id in [one for one in self._ended_streams if not self.engine.has_stream(one)]:
            self._ended_streams.discard(stream_id)
            del self.streams[stream_id]
        return datagrams

    def expire(self, now: float) -> None:
        """Do what is due by now."""
        due = self.engine.get_timer()
        if due is not None and now >= due:
            self.engine.handle_timer(now)
        if self._deadline is not None and now >= self._deadline and not self.engine.ended:
            if self.shaken:
                self.engine.close(QuicErrorCode.NO_ERROR, 0, "no stream")
                self._listener.count("quic_connections_idle")
            else:
                self.engine.close(QuicErrorCode.CONNECTION_REFUSED, 0, "the handshake was not finished in time")

    def set_timer(self, loop: asyncio.AbstractEventLoop) -> None:
        """A timer that fires too early costs less than one that is made anew for every packet."""
        due = self.engine.get_timer()
        if self._deadline is not None:
            due = self._deadline if due is None else min(due, self._deadline)
        if due is None:
            return
        if self._timer is not None:
            if self._timer_at <= due:
                return
            self._timer.cancel()
        self._timer_at = due
        self._timer = loop.call_at(due, self._timer_fired)

    def _timer_fired(self) -> None:
        self._timer = None
        self._listener.expire(self, max(self._timer_at, self._listener.now()))

    def dispose(self) -> None:
        """Nothing of it stays behind."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for stream in self.streams.values():
            stream.close()
        self.streams.clear()
