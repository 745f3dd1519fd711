"""One QUIC connection's protocol: aioquic's state machine with windows that follow the reader, and with bounds.

aioquic is sans-IO: datagrams and the time go in, events and datagrams come out. It has no public means for what a server must decide
here, so this class overrides four of its methods and reads some of its fields; every use of a private name of aioquic stands in this file.

- Windows. aioquic doubles a window whenever half of it has arrived, whoever reads or not, so that in the end a peer may send without
  limit. Here a window moves on only by what the broker has taken.
- Streams. aioquic grants 128 of each direction; here as many as the settings say, and no unidirectional ones.
- Handshake. What a client may send in CRYPTO frames is bounded, whether in order or not.
- Records of sent packets. Those of packets that bear acknowledgements only are dropped when they have become many, for a peer need not
  acknowledge them ever.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Final

from aioquic.buffer import Buffer  # type: ignore[attr-defined]
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import (
    CONNECTION_LIMIT_FRAME_CAPACITY,
    MAX_STREAM_DATA_FRAME_CAPACITY,
    TRANSPORT_CLOSE_FRAME_CAPACITY,
    Limit,
    NetworkAddress,
    QuicConnection,
    QuicConnectionAdapter,
    QuicConnectionError,
)
from aioquic.quic.crypto import CryptoPair
from aioquic.quic.packet import QuicErrorCode, QuicFrameType, QuicPacketType
from aioquic.quic.packet_builder import QuicPacketBuilder
from aioquic.quic.stream import QuicStream
from cryptography import x509

from mqttc.adapters.quic_tls import Tickets

STREAM_WINDOW_BYTES: Final = 262_144
"""What a client may send in one stream before the broker takes some of it."""
CONNECTION_WINDOW_BYTES: Final = 1_048_576
"""The same for all streams of a connection together."""
MAX_HANDSHAKE_BYTES: Final = 65_536
"""CRYPTO bytes that a client may send at each level of encryption: its hello, its certificates."""
MAX_GAPS: Final = 1024
"""Pieces of one stream that wait for what lies between them."""
MAX_RECORDS: Final = 4096
"""Records of sent packets above which those of mere acknowledgements are dropped."""

# aioquic's own lines tell of every malformed packet at level warning, so anybody could fill a log with them.
_SILENT: Final = logging.Logger("mqttc.quic", logging.CRITICAL + 1)

_OVERRIDDEN: Final = ("_initialize", "_handle_crypto_frame", "_write_connection_limits", "_write_stream_limits")
if missing := [name for name in _OVERRIDDEN if not hasattr(QuicConnection, name)]:
    raise ImportError(f"QUIC: this version of aioquic has no {missing[0]}; without it windows would be unbounded")


class Engine(QuicConnection):
    """A server's connection. ``backlog(stream_id)``: bytes delivered in this stream's events that the broker has not taken yet."""

    def __init__(
        self,
        configuration: QuicConfiguration,
        *,
        max_streams: int,
        request_certificate: bool,
        backlog: Callable[[int], int],
        tickets: Tickets | None,
        original_destination_connection_id: bytes,
        retry_source_connection_id: bytes | None,
    ) -> None:
        super().__init__(
            configuration=configuration,
            original_destination_connection_id=original_destination_connection_id,
            retry_source_connection_id=retry_source_connection_id,
            session_ticket_fetcher=None if tickets is None else lambda name: tickets.take(name, self.tls.alpn_negotiated),
            session_ticket_handler=None if tickets is None else lambda ticket: tickets.put(ticket, self.tls.alpn_negotiated),
        )
        self._logger = QuicConnectionAdapter(_SILENT, {"id": ""})
        self._loss._logger = self._logger
        self._request_certificate = request_certificate
        self._backlog = backlog
        self._records_bound = MAX_RECORDS
        for limit, count in ((self._local_max_streams_bidi, max_streams), (self._local_max_streams_uni, 0)):
            limit.value = limit.sent = count

    @property
    def ended(self) -> bool:
        """Closed by either side or given up; only the closing period may still run."""
        return self._close_event is not None

    @property
    def end(self) -> tuple[int, str]:
        """Error code and reason, once it has ended."""
        return (0, "") if self._close_event is None else (self._close_event.error_code, self._close_event.reason_phrase)

    @property
    def ended_by_peer(self) -> bool:
        """The client has sent CONNECTION_CLOSE."""
        return self._state.name == "DRAINING"

    @property
    def client_certificates(self) -> tuple[x509.Certificate | None, list[x509.Certificate]]:
        """What the client has shown, unverified, and what it sent along."""
        return self.tls._peer_certificate, self.tls._peer_certificate_chain

    def has_stream(self, stream_id: int) -> bool:
        """Whether anything of this stream is still to be sent, received or acknowledged."""
        return stream_id in self._streams

    def unacknowledged(self, stream_id: int) -> int:
        """Bytes of this stream that are kept until the client has acknowledged them."""
        stream = self._streams.get(stream_id)
        return 0 if stream is None else len(stream.sender._buffer)

    def finish_stream(self, stream_id: int, error_code: int) -> None:
        """The broker has ended: FIN behind its last bytes, and STOP_SENDING if the client has not finished."""
        stream = self._streams.get(stream_id)
        if stream is None:
            return
        if stream.sender._buffer_fin is None and stream.sender._reset_error_code is None:
            stream.sender.write(b"", end_stream=True)
        if not stream.receiver.is_finished:
            stream.receiver.stop(error_code)

    def abort_stream(self, stream_id: int, error_code: int) -> None:
        """RESET_STREAM, and STOP_SENDING if the client has not finished."""
        stream = self._streams.get(stream_id)
        if stream is not None:
            stream.sender.reset(error_code)
            if not stream.receiver.is_finished:
                stream.receiver.stop(error_code)

    def datagrams_to_send(self, now: float) -> list[tuple[bytes, NetworkAddress]]:
        if not self.ended and self._streams:
            self._move_windows()
        self._drop_records()
        return super().datagrams_to_send(now)

    def _held(self, stream: QuicStream) -> int:
        """Bytes received in a stream that the broker has not taken: those behind a gap, and the backlog."""
        receiver = stream.receiver
        behind_gap = 0 if receiver.is_finished else receiver.highest_offset - receiver.starting_offset()
        return behind_gap + self._backlog(stream.stream_id or 0)

    def _move_windows(self) -> None:
        """Windows move by what was taken, half a window at a time."""
        held_bytes = 0
        for stream in self._streams.values():
            held = self._held(stream)
            held_bytes += held
            granted = stream.receiver.highest_offset - held + STREAM_WINDOW_BYTES
            if granted - stream.max_stream_data_local >= STREAM_WINDOW_BYTES // 2:
                stream.max_stream_data_local = granted
            if len(stream.receiver._ranges) > MAX_GAPS:
                self.close(QuicErrorCode.INTERNAL_ERROR, QuicFrameType.STREAM_BASE, "too many gaps in a stream")
        data = self._local_max_data
        granted = data.used - held_bytes + CONNECTION_WINDOW_BYTES
        if granted - data.value >= CONNECTION_WINDOW_BYTES // 2:
            data.value = granted

    def _drop_records(self) -> None:
        for space in self._loss.spaces:
            if len(space.sent_packets) > self._records_bound:
                for number in [number for number, packet in space.sent_packets.items() if not packet.in_flight]:
                    del space.sent_packets[number]
                self._records_bound = max(MAX_RECORDS, 2 * len(space.sent_packets))

    # What follows overrides methods of aioquic.

    def _initialize(self, peer_cid: bytes) -> None:
        super()._initialize(peer_cid)
        self.tls._request_client_certificate = self._request_certificate

    def _handle_crypto_frame(self, context: Any, frame_type: int, buf: Buffer) -> None:
        start = buf.tell()
        end = buf.pull_uint_var() + buf.pull_uint_var()
        buf.seek(start)
        if end > MAX_HANDSHAKE_BYTES:
            raise QuicConnectionError(QuicErrorCode.CRYPTO_BUFFER_EXCEEDED, frame_type, "too long a handshake")
        super()._handle_crypto_frame(context, frame_type, buf)

    def _write_connection_limits(self, builder: QuicPacketBuilder, space: Any) -> None:
        data, streams = self._local_max_data, self._local_max_streams_bidi
        if data.value != data.sent:
            self._write_limit(builder, data)
        if streams.value != streams.sent and streams.sent - streams.used < streams.value - streams.sent:
            self._write_limit(builder, streams)

    def _write_limit(self, builder: QuicPacketBuilder, limit: Limit) -> None:
        """MAX_DATA or MAX_STREAMS [RFC 9000 section 19.9, 19.11]."""
        frame = builder.start_frame(limit.frame_type, CONNECTION_LIMIT_FRAME_CAPACITY, self._on_connection_limit_delivery, (limit,))
        frame.push_uint_var(limit.value)
        limit.sent = limit.value

    def _write_stream_limits(self, builder: QuicPacketBuilder, space: Any, stream: QuicStream) -> None:
        """MAX_STREAM_DATA [RFC 9000 section 19.10]."""
        if stream.max_stream_data_local_sent == stream.max_stream_data_local or stream.receiver.is_finished:
            return
        frame = builder.start_frame(
            QuicFrameType.MAX_STREAM_DATA, MAX_STREAM_DATA_FRAME_CAPACITY, self._on_max_stream_data_delivery, (stream,)
        )
        frame.push_uint_var(stream.stream_id or 0)
        frame.push_uint_var(stream.max_stream_data_local)
        stream.max_stream_data_local_sent = stream.max_stream_data_local


def encode_refusal(version: int, destination_cid: bytes, source_cid: bytes, error_code: QuicErrorCode) -> bytes:
    """An Initial packet with CONNECTION_CLOSE for a client of which no state is kept; the ids are those of its own packet."""
    keys = CryptoPair()
    keys.setup_initial(cid=destination_cid, is_client=False, version=version)
    builder = QuicPacketBuilder(host_cid=destination_cid, peer_cid=source_cid, version=version, is_client=False, max_datagram_size=1200)
    builder.start_packet(QuicPacketType.INITIAL, keys)
    frame = builder.start_frame(QuicFrameType.TRANSPORT_CLOSE, TRANSPORT_CLOSE_FRAME_CAPACITY)
    for number in (error_code, QuicFrameType.PADDING, 0):
        frame.push_uint_var(number)
    return builder.flush()[0][0]
