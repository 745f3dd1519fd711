"""MQTT over QUIC: each bidirectional stream that a client opens is one MQTT connection, bare MQTT bytes in both directions.

``QuicListener`` owns the UDP sockets, finds the connection that a datagram belongs to, and answers or drops what belongs to none, without
keeping state for it. The protocol is aioquic's (`mqttc.adapters.quic_engine`). Everything belongs to the loop's thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from aioquic.buffer import Buffer  # type: ignore[attr-defined]
from aioquic.quic import events
from aioquic.quic.packet import (
    QuicErrorCode,
    QuicPacketType,
    QuicProtocolVersion,
    encode_quic_retry,
    encode_quic_version_negotiation,
    pull_quic_header,
)
from aioquic.quic.retry import QuicRetryTokenHandler

from mqttc import logs
from mqttc.adapters import Adopt, Origin
from mqttc.adapters.duct import Duct
from mqttc.adapters.line import TURN_S
from mqttc.adapters.quic_connection import ID_BYTES, VERSIONS, Address, Connection, Stream, peer_text
from mqttc.adapters.quic_engine import encode_refusal
from mqttc.adapters.quic_tls import Credentials, QuicSettings, Tickets

MAX_UNSENT_DATAGRAMS: Final = 4096
"""Datagrams that wait for a socket to take them; further ones are dropped, and QUIC sends their content again."""
REFUSALS_PER_SECOND: Final = 100.0
"""Answers to clients that are turned away; above that they get none."""
LINES_PER_SECOND: Final = 1.0
"""Log lines about clients that have not finished a handshake, after a burst of twenty; the others are counted."""

_BURST: Final = 64
_BURST_LINES: Final = 20.0
_DATAGRAM_BYTES: Final = 65_536
_SMALLEST_INITIAL_BYTES: Final = 1200
_SMALLEST_ID_BYTES: Final = 8
_SOCKET_BUFFER_BYTES: Final = 1_048_576
_CLOSE_S: Final = 0.5
_TOKEN_MARK: Final = b"mqr1"
"""Begins the tokens of our Retry packets; a token without it is somebody else's, and as good as none."""


class _Allowance:
    """So many a second, and a burst."""

    def __init__(self, per_second: float, burst: float) -> None:
        self._per_second = per_second
        self._burst = burst
        self._left = burst
        self._at = 0.0

    def take(self, now: float) -> bool:
        self._left = min(self._burst, self._left + max(0.0, now - self._at) * self._per_second)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


class QuicListener:
    """Serves QUIC on UDP sockets, which it owns from now on: bound, non-blocking. Raises ``ValueError`` for settings that cannot be used.

    ``listener``: the id that ``Engine.add_listener`` of the broker returned. ``beside``: all listeners of the broker, in time, for whose
    connections the limits are together. Call on the loop's thread.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sockets: Sequence[socket.socket],
        adopt: Adopt,
        listener: int,
        logger: logging.Logger,
        settings: QuicSettings,
        name: str = "",
        beside: Sequence[QuicListener] = (),
    ) -> None:
        self._beside = beside
        self.credentials = Credentials.load(settings)
        self.settings = settings
        self.tickets = Tickets()
        self.lingering: set[Stream] = set()
        self._loop = loop
        self._adopt = adopt
        self._listener = listener
        self._logger = logger
        self._name = name
        self._retry = QuicRetryTokenHandler()
        self._connections: dict[bytes, Connection] = {}
        self._all: set[Connection] = set()
        self._woken: set[Connection] = set()
        self._flush_planned = False
        self._half_open = 0
        self._streams = 0
        self._counts: Counter[str] = Counter()
        self._suppressed = 0
        self._lines = _Allowance(LINES_PER_SECOND, _BURST_LINES)
        self._refusals = _Allowance(REFUSALS_PER_SECOND, REFUSALS_PER_SECOND)
        self._closed = False
        self._sockets = list(sockets)
        self._unsent: list[deque[tuple[bytes, Address]]] = [deque() for _ in sockets]
        for index, one in enumerate(self._sockets):
            for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
                with contextlib.suppress(OSError):
                    one.setsockopt(socket.SOL_SOCKET, option, _SOCKET_BUFFER_BYTES)
            loop.add_reader(one, self._readable, index)

    def now(self) -> float:
        return self._loop.time()

    def reload(self, settings: QuicSettings) -> None:
        """For connections that begin from now on. ``ValueError``: it cannot be used, and nothing has changed."""
        self.credentials = Credentials.load(settings)
        self.settings = settings
        self.tickets.clear()  # early data would be sent by the limits and the certificate of before
        self._counts["quic_loads"] += 1

    def stats(self) -> dict[str, int]:
        """Gauges (connections, half open, streams, tickets) and counters since the start."""
        names = (
            *("handshakes", "handshakes_resumed", "handshakes_failed", "handshakes_refused", "early_data_accepted"),
            *("retries", "tokens_refused"),
            *("version_negotiations", "connections_refused", "connections_idle", "connections_failed", "migrations"),
            *("streams_opened", "streams_refused", "streams_reset", "datagrams_received", "datagrams_sent", "datagrams_dropped"),
            *("datagrams_unsent", "loads", "lines_suppressed"),
        )
        return {
            "quic_connections": len(self._all),
            "quic_half_open": self._half_open,
            "quic_streams": self._streams,
            "quic_tickets": len(self.tickets),
            **{f"quic_{name}": self._counts[f"quic_{name}"] for name in names},
        }

    async def close(self) -> None:
        """End all connections with CONNECTION_CLOSE, and close the sockets; waits half a second at most for them to take it."""
        if self._closed:
            return
        self._closed = True
        for index, one in enumerate(self._sockets):
            self._loop.remove_reader(one)
            self._loop.remove_writer(one)
            self._unsent[index].clear()
        now = self.now()
        for connection in list(self._all):
            connection.engine.close(QuicErrorCode.NO_ERROR, 0, "the server ends")
            self._transmit(connection, now)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_S):
                for index, one in enumerate(self._sockets):
                    while self._unsent[index]:
                        await self._until_writable(one)
                        self._send_unsent(index)
        for connection in list(self._all):
            self.forget(connection)
        for stream in self.lingering:
            stream.close()
        self.lingering.clear()
        for one in self._sockets:
            one.close()

    async def _until_writable(self, one: socket.socket) -> None:
        writable = asyncio.Event()
        self._loop.add_writer(one, writable.set)
        try:
            await writable.wait()
        finally:
            self._loop.remove_writer(one)

    # Datagrams in

    def _readable(self, index: int) -> None:
        one = self._sockets[index]
        now = self.now()
        touched: set[Connection] = set()
        for _ in range(_BURST):
            if self.now() - now > TURN_S:
                break  # a first datagram costs a millisecond or more: what else has come is as good in the next turn
            try:
                data, address = one.recvfrom(_DATAGRAM_BYTES)
            except (BlockingIOError, InterruptedError):
                break
            except OSError:
                continue  # ICMP's answer to something sent before
            self._counts["quic_datagrams_received"] += 1
            connection = self.receive(data, (*address, index), now)
            if connection is not None:
                touched.add(connection)
        for connection in touched:
            self._transmit(connection, now)

    def receive(self, data: bytes, address: Address, now: float) -> Connection | None:
        """The connection that this datagram was for, which then has something to send; None where it is answered or dropped."""
        head = _invariants(data)
        if head is None:
            self._drop()
            return None
        version, destination_id, source_id = head
        connection = self._connections.get(destination_id)
        if version is not None and version not in VERSIONS:
            if version == QuicProtocolVersion.NEGOTIATION or len(data) < _SMALLEST_INITIAL_BYTES:
                self._drop()
                return None
            self._counts["quic_version_negotiations"] += 1
            self._send(encode_quic_version_negotiation(destination_id, source_id, list(VERSIONS)), address)
            return None
        if connection is None:
            if version is None:
                self._drop()
            else:
                self._begin(data, address, now)
            return None
        try:
            connection.engine.receive_datagram(data, address, now)
            connection.handle_events(now)
        except Exception as error:
            self._fail(connection, error, now)
            return None
        return connection

    def _begin(self, data: bytes, address: Address, now: float) -> None:
        """The first datagram of a connection, if it is one."""
        try:
            header = pull_quic_header(Buffer(data=data), host_cid_length=ID_BYTES)
        except ValueError:
            return self._drop()
        own_id, version = header.destination_cid, header.version
        short = len(data) < _SMALLEST_INITIAL_BYTES or len(own_id) < _SMALLEST_ID_BYTES
        if header.packet_type != QuicPacketType.INITIAL or version is None or short:
            return self._drop()
        answer_to = version, own_id, header.source_cid
        if len(self._all) + sum(len(one._all) for one in self._others()) >= self.settings.max_connections:
            self._counts["quic_connections_refused"] += 1
            return self._refuse(answer_to, address, now, QuicErrorCode.CONNECTION_REFUSED, "too many connections")
        original_id, retry_id = own_id, None
        if header.token.startswith(_TOKEN_MARK):
            token = header.token[len(_TOKEN_MARK) :]
            try:
                original_id = self._retry.validate_token(address=address, destination_cid=own_id, token=token, now=now)
            except ValueError:
                self._counts["quic_tokens_refused"] += 1
                return self._refuse(answer_to, address, now, QuicErrorCode.INVALID_TOKEN, "not a valid token")
            retry_id = own_id
        elif self._retry_needed():
            return self._send_retry(answer_to, address, now)
        if self._unfinished() >= self.settings.max_handshakes:
            self._counts["quic_handshakes_refused"] += 1
            return self._drop()  # the client tries again
        connection = Connection(self, address, now, original_id, retry_id)
        self.add_id(own_id, connection)
        self.add_id(connection.engine.host_cid, connection)
        return self._admit(connection, data, now)

    def _others(self) -> Iterator[QuicListener]:
        return (one for one in self._beside if one is not self)

    def _unfinished(self) -> int:
        """Handshakes, of all listeners."""
        return self._half_open + sum(one._half_open for one in self._others())

    def _admit(self, connection: Connection, data: bytes, now: float) -> None:
        """The connection counts from here on, if its first datagram is genuine."""
        self._all.add(connection)
        self._half_open += 1
        try:
            connection.engine.receive_datagram(data, connection.address, now)
            connection.handle_events(now)
            datagrams = connection.transmit(now)
        except Exception as error:
            self._fail(connection, error, now)
        else:
            if datagrams:
                self._send_all(datagrams)
                connection.set_timer(self._loop)
            else:  # nothing in it could be decrypted, or it would have been acknowledged at once
                self.forget(connection)
                self._drop()

    def _retry_needed(self) -> bool:
        wanted = self.settings.stateless_retry
        return self._unfinished() >= max(1, self.settings.max_handshakes // 4) if wanted == "auto" else wanted

    def _send_retry(self, answer_to: tuple[int, bytes, bytes], address: Address, now: float) -> None:
        """Retry [RFC 9000 section 17.2.5]: nothing is kept until the client shows the token that came with it."""
        version, original_id, source_id = answer_to
        own_id = os.urandom(ID_BYTES)
        token = self._retry.create_token(
            address=address, original_destination_connection_id=original_id, retry_source_connection_id=own_id, now=now
        )
        self._counts["quic_retries"] += 1
        self._send(encode_quic_retry(version, own_id, source_id, original_id, _TOKEN_MARK + token), address)

    def _refuse(self, answer_to: tuple[int, bytes, bytes], address: Address, now: float, error_code: QuicErrorCode, detail: str) -> None:
        """Turn a client away without keeping anything of it."""
        if self._refusals.take(now):
            self._send(encode_refusal(*answer_to, error_code), address)
        self._say(logging.WARNING, "handshake failed", peer_text(address), detail, now)

    def _drop(self) -> None:
        self._counts["quic_datagrams_dropped"] += 1

    # Datagrams out

    def wake(self, connection: Connection) -> None:
        """It has something to send: once for all that its streams do in this turn."""
        self._woken.add(connection)
        if not self._flush_planned and not self._closed:
            self._flush_planned = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_planned = False
        woken, self._woken = self._woken, set()
        now = self.now()
        for connection in woken:
            self._transmit(connection, now)

    def _transmit(self, connection: Connection, now: float) -> None:
        if connection not in self._all:
            return
        if any(self._unsent) and not self._closed:
            self._woken.add(connection)  # when the socket takes more
            return
        try:
            self._send_all(connection.transmit(now))
            connection.set_timer(self._loop)
        except Exception as error:
            self._fail(connection, error, now)

    def expire(self, connection: Connection, now: float) -> None:
        """What is due for this connection by ``now``."""
        try:
            connection.expire(now)
            connection.handle_events(now)
        except Exception as error:
            self._fail(connection, error, now)
        self._transmit(connection, now)

    def expire_all(self, now: float) -> None:
        """What is due by ``now``, for a clock that runs ahead of the loop's."""
        for connection in list(self._all):
            self.expire(connection, now)

    def _send_all(self, datagrams: Iterable[tuple[bytes, Address]]) -> None:
        for data, address in datagrams:
            self._send(data, address)

    def _send(self, data: bytes, address: Address) -> None:
        index = int(address[-1])
        unsent = self._unsent[index]
        if not unsent and self._send_now(index, data, address):
            return
        if len(unsent) >= MAX_UNSENT_DATAGRAMS:
            self._counts["quic_datagrams_unsent"] += 1
            return
        if not unsent and not self._closed:
            self._loop.add_writer(self._sockets[index], self._writable, index)
        unsent.append((data, address))

    def _send_now(self, index: int, data: bytes, address: Address) -> bool:
        """False: the socket is full."""
        try:
            self._sockets[index].sendto(data, address[:-1])
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:
            self._counts["quic_datagrams_unsent"] += 1  # no route, or ICMP's answer to something sent before
            return True
        self._counts["quic_datagrams_sent"] += 1
        return True

    def _send_unsent(self, index: int) -> None:
        unsent = self._unsent[index]
        while unsent and self._send_now(index, *unsent[0]):
            unsent.popleft()

    def _writable(self, index: int) -> None:
        self._send_unsent(index)
        if not self._unsent[index]:
            self._loop.remove_writer(self._sockets[index])
            self._flush()

    # From connections

    def count(self, name: str) -> None:
        self._counts[name] += 1

    def add_id(self, connection_id: bytes, connection: Connection) -> None:
        self._connections[connection_id] = connection
        connection.ids.add(connection_id)

    def remove_id(self, connection_id: bytes, connection: Connection) -> None:
        self._connections.pop(connection_id, None)
        connection.ids.discard(connection_id)

    def forget(self, connection: Connection) -> None:
        """The end: nothing more is sent or received."""
        if connection not in self._all:
            return
        self._all.discard(connection)
        self._woken.discard(connection)
        if not connection.shaken and not connection.wound_up:
            self._half_open -= 1
        for one in connection.ids:
            self._connections.pop(one, None)
        connection.ids.clear()
        connection.dispose()

    def _fail(self, connection: Connection, error: Exception, now: float) -> None:
        """aioquic, or what stands here, did not expect what this client does: only its connection ends."""
        self._counts["quic_connections_failed"] += 1
        self._say(logging.ERROR, "quic_connection_failed", connection.peer, repr(error), now)
        self._streams -= 0 if connection.wound_up else connection.live_streams
        self.forget(connection)

    def handshake_completed(self, connection: Connection, event: events.HandshakeCompleted) -> None:
        self._half_open -= 1
        self._counts["quic_handshakes"] += 1
        self._counts["quic_handshakes_resumed"] += event.session_resumed
        self._counts["quic_early_data_accepted"] += event.early_data_accepted
        fields = self._fields(connection.peer, event.alpn_protocol or "")
        logs.emit(self._logger, logging.DEBUG, "quic_connected", fields)

    def connection_ended(self, connection: Connection, error_code: int, reason: str, now: float) -> None:
        if connection.shaken:
            fields = self._fields(connection.peer, reason)
            logs.emit(self._logger, logging.DEBUG, "quic_disconnected", {**fields, "error": f"0x{error_code:x}"})
            return
        self._half_open -= 1
        self._counts["quic_handshakes_failed"] += 1
        self._say(logging.WARNING, "handshake failed", connection.peer, reason or f"QUIC error 0x{error_code:x}", now)

    def migrated(self, connection: Connection, peer: str) -> None:
        self._counts["quic_migrations"] += 1
        logs.emit(self._logger, logging.DEBUG, "quic_migrated", self._fields(connection.peer, f"now {peer}"))

    def open_duct(self, connection: Connection, stream: Stream, certificate: bytes | None) -> Duct | None:
        """None: the broker takes no further connection."""
        try:
            end = self._adopt(Origin(self._listener, connection.peer, True, certificate), False)
        except OSError as error:
            self._counts["quic_streams_refused"] += 1
            self._say(logging.WARNING, "quic_stream_refused", connection.peer, error.strerror or str(error), self.now())
            return None
        self._counts["quic_streams_opened"] += 1
        self._streams += 1
        return Duct(self._loop, end, stream)

    def stream_closed(self) -> None:
        self._streams -= 1

    # Log

    def _fields(self, peer: str, detail: str) -> dict[str, logs.Field]:
        return {"peer": peer, "listener": self._name, "detail": detail}

    def _say(self, level: int, event: str, peer: str, detail: str, now: float) -> None:
        """A line that strangers can cause: so many, and then only their number."""
        if not self._lines.take(now):
            self._suppressed += 1
            self._counts["quic_lines_suppressed"] += 1
            return
        fields = self._fields(peer, detail)
        if self._suppressed:
            fields["suppressed"], self._suppressed = self._suppressed, 0
        logs.emit(self._logger, level, event, fields)


def _invariants(data: bytes) -> tuple[int | None, bytes, bytes] | None:
    """Version (None: short header), destination and source connection id, of any version of QUIC [RFC 8999 section 5]; None: too short."""
    if not data:
        return None
    if not data[0] & 0x80:
        return (None, data[1 : 1 + ID_BYTES], b"") if len(data) > ID_BYTES else None
    end = 6 + data[5] if len(data) > 5 else len(data)
    if end >= len(data) or end + 1 + data[end] > len(data):
        return None
    return int.from_bytes(data[1:5], "big"), data[6:end], data[end + 1 : end + 1 + data[end]]
