"""HTTP/2 on a spliced connection: h2 keeps the protocol, the application answers requests, and WebSocket streams (RFC 8441) lead to ducts.

Frames are cut out of the stream and given to h2 one by one, so that each is paid for before it is worked on: what carries
nothing (resets, pings, settings, empty DATA, ...) comes out of a `Budget`, and who exceeds it is sent away.

Flow control reaches from end to end. Towards the broker: bytes are acknowledged when the duct has taken them, so a braked
publisher runs out of window. Towards the peer: a stream holds at most one read of its duct, which pauses until the windows and
the socket have taken it. The connection's window is the sum of the streams', so that a braked stream holds up no other.
"""

from __future__ import annotations

import asyncio
import logging
import struct
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Final

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import h2.settings
from hyperframe.frame import GoAwayFrame

from mqttc.adapters import Origin
from mqttc.adapters.duct import Duct
from mqttc.adapters.exchange import Exchange, Shared, make_scope
from mqttc.adapters.line import LINGER_S, TURN_S, Line
from mqttc.adapters.upgrade import (
    HTTP2_PREFACE,
    Headers,
    Refusal,
    Rules,
    check_websocket,
    client_of,
    date_header,
    error_headers,
    is_foreign_page,
    split_target,
)

ErrorCodes = h2.errors.ErrorCodes

_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _GOAWAY, _CONTINUATION = 0, 1, 3, 4, 7, 9
_END_STREAM: Final = 0x1
_FRAME_HEAD_BYTES: Final = 9
_FRAME_BYTES: Final = 16_384
"""Largest payload of a frame, either way: the value of SETTINGS_MAX_FRAME_SIZE before any SETTINGS, which we leave."""
_WINDOW_BYTES: Final = 65_535
"""Window of a stream towards us: the value before any SETTINGS, which we leave."""
_TABLE_BYTES: Final = 4096
"""HPACK table for what we send; a peer may allow more, which would be memory of ours."""
_SETTINGS_PER_FRAME: Final = 32
_CLOSED_STREAMS: Final = 1024
"""Ended streams that are remembered, to tell a late frame from a wrong one."""
_REPLY_BYTES: Final = 262_144
"""Unsent bytes above which nothing is read: far more than `Line.full`, which DATA keeps to, so only replies to frames get there."""
_FRAMES_EARNED: Final = 4
"""What one DATA frame of ours adds to the budget: the peer answers it with window updates."""
_NOT_IN_HTTP2: Final = frozenset((b"connection", b"keep-alive", b"proxy-connection", b"te", b"transfer-encoding", b"upgrade"))
"""Left out of responses (RFC 9113 section 8.2.2). h2 would refuse them in the midst of compressing, and lose step with the peer."""


class Budget:
    """Events that a peer may cause: ``burst`` at once, ``rate`` a second in the long run. Time is a parameter, in seconds."""

    def __init__(self, burst: int, rate: float, now: float) -> None:
        self._burst = burst
        self._rate = rate
        self._left = float(burst)
        self._at = now

    def spend(self, count: int, now: float) -> bool:
        """False: exceeded."""
        self._left = min(self._burst, self._left + (now - self._at) * self._rate) - count
        self._at = now
        return self._left >= 0

    def earn(self, count: int) -> None:
        self._left = min(self._burst, self._left + count)


@dataclass(frozen=True, slots=True)
class Frame:
    kind: int
    flags: int
    stream_id: int
    data: bytes
    """With its head."""

    @property
    def length(self) -> int:
        return len(self.data) - _FRAME_HEAD_BYTES


class FrameTooLargeError(Exception):
    """A frame is longer than what we announced."""


class Frames:
    """Cuts a stream of bytes into frames (RFC 9113 section 4.1); holds what was not iterated over, and one that is incomplete."""

    def __init__(self) -> None:
        self._input = bytearray()

    def cut(self, data: bytes) -> Iterator[Frame]:
        self._input += data
        while len(self._input) >= _FRAME_HEAD_BYTES:
            length_high, length_low, kind, flags, stream_id = struct.unpack_from(">BHBBL", self._input)
            length = (length_high << 16) | length_low
            if length > _FRAME_BYTES:
                raise FrameTooLargeError
            if len(self._input) < _FRAME_HEAD_BYTES + length:
                return
            frame = Frame(kind, flags, stream_id & 0x7FFFFFFF, bytes(self._input[: _FRAME_HEAD_BYTES + length]))
            del self._input[: _FRAME_HEAD_BYTES + length]
            yield frame


class _Settings(h2.settings.Settings):
    """Announces one stream less than h2 admits, so that one too many is refused by us, and not the whole connection by h2."""

    @property
    def max_concurrent_streams(self) -> int:
        return self[h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS] + 1

    @max_concurrent_streams.setter
    def max_concurrent_streams(self, value: int) -> None:
        self[h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS] = value


class _Connection(h2.connection.H2Connection):
    MAX_CLOSED_STREAMS = _CLOSED_STREAMS


class _Stream:
    """What request and WebSocket streams share: bytes for the peer, and bytes of the peer that are not acknowledged yet."""

    def __init__(self, http: Http2, stream_id: int) -> None:
        self.http = http
        self.id = stream_id
        self.unsent = bytearray()
        self.unacknowledged = 0
        """Of flow control: padding counts."""
        self.queued = False
        """Whether it is in the queue of those that can send."""
        self.ending = False
        """END_STREAM follows what is unsent."""
        self.refused = False
        """Answered with an error: what the peer still sends is thrown away."""
        self.timer: asyncio.TimerHandle | None = None

    def data(self, data: bytes, charged: int) -> None:
        """DATA of the peer; ``charged``: bytes of its window."""
        raise NotImplementedError

    def peer_ended(self) -> None:
        raise NotImplementedError

    def sent(self) -> None:
        """Nothing is unsent any more."""

    def closed(self) -> None:
        """The stream has gone, by whomever. Called once."""

    def acknowledge(self) -> None:
        self.http.acknowledge(self)


class _RequestStream(_Stream):
    """A request for the application; the outlet of its response, see `exchange.Outlet`."""

    def __init__(self, http: Http2, stream_id: int, method: bytes, target: bytes, headers: Headers) -> None:
        super().__init__(http, stream_id)
        self._method = method
        self._target = target
        self._headers = headers
        self._body = bytearray()
        self._exchange: Exchange | None = None
        self._sent = asyncio.Event()
        self.timer = http.shared.loop.call_later(http.shared.limits.http_timeout, self._expired)

    def data(self, data: bytes, charged: int) -> None:
        self.unacknowledged += charged
        if self.refused:
            self.acknowledge()
            return
        self._body += data
        limit = self.http.shared.limits.max_request_body
        if len(self._body) > limit:
            self._body.clear()
            self.http.refuse(self, Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the body has more than {limit} bytes"))
        self.acknowledge()

    def peer_ended(self) -> None:
        if self.refused:
            return
        if self.timer is not None:
            self.timer.cancel()
        path, query = split_target(self._target)
        scope = make_scope(
            method=self._method,
            path=path or self._target,
            query=query,
            headers=self._headers,
            http_version="2",
            origin=self.http.origin,
            rules=self.http.rules,
        )
        body, self._body = bytes(self._body), bytearray()
        self._exchange = Exchange(self.http.shared, self.http.origin, scope, body, self, self._done)

    def sent(self) -> None:
        self._sent.set()

    def closed(self) -> None:
        self._sent.set()
        if self._exchange is not None:
            self._exchange.cancel()

    def _expired(self) -> None:
        self.http.shared.count("http_timeouts")
        self.http.refuse(self, Refusal(HTTPStatus.REQUEST_TIMEOUT, "the request takes too long"))

    # ----------------------------------------------------------------------------- the exchange's calls

    def start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        fields = [(name, value) for name, value in headers if name not in _NOT_IN_HTTP2]
        if not any(name == b"date" for name, _ in fields):
            fields.append(date_header())
        self.http.send_headers(self, [(b":status", b"%d" % status), *fields])

    def write(self, data: bytes) -> None:
        self.unsent += data
        self.http.offer(self)

    async def drain(self) -> None:
        while self.unsent:
            self._sent.clear()
            await self._sent.wait()

    def complete(self) -> None:
        self.ending = True

    def refuse(self, refusal: Refusal) -> None:
        self.http.refuse(self, refusal)

    def abort(self) -> None:
        self.http.reset(self, ErrorCodes.INTERNAL_ERROR)

    def _done(self) -> None:
        self._exchange = None
        self.http.offer(self)


class _WebSocketStream(_Stream):
    """A stream that leads to a worker; the sink of its duct, see `duct.Sink`. The frames in it are the worker's business."""

    def __init__(self, http: Http2, stream_id: int) -> None:
        super().__init__(http, stream_id)
        self.duct: Duct | None = None

    def data(self, data: bytes, charged: int) -> None:
        self.unacknowledged += charged
        if self.duct is None or self.duct.feed(data):
            self.acknowledge()

    def peer_ended(self) -> None:
        if self.duct is not None:
            self.duct.finish()

    def sent(self) -> None:
        if self.duct is not None:
            self.duct.resume()

    def closed(self) -> None:
        if self.duct is not None:
            self.duct.close()

    # --------------------------------------------------------------------------------- the duct's calls

    def duct_bytes(self, data: bytes) -> None:
        self.unsent += data
        self.http.offer(self)
        if self.unsent and self.duct is not None:
            self.duct.pause()

    def duct_room(self) -> None:
        self.acknowledge()

    def duct_ended(self) -> None:
        self.ending = True
        # A peer that does not end its side too would keep the stream.
        self.timer = self.http.shared.loop.call_later(LINGER_S, self.http.reset, self, ErrorCodes.NO_ERROR)
        self.acknowledge()
        self.http.offer(self)


class Http2:
    """Speaker of a line; see `line.Speaker`."""

    def __init__(self, line: Line, shared: Shared, origin: Origin, rules: Rules) -> None:
        self.shared = shared
        self.origin = origin
        self.rules = rules
        self._line = line
        self._streams: dict[int, _Stream] = {}
        self._sending: deque[_Stream] = deque()
        """Streams that have something for the peer and, for all we know, window; each gets a frame in turn."""
        self._blocked: set[_Stream] = set()
        """Streams that have something for the peer and no window, of their own or the connection's."""
        self._preface = bytearray()
        self._frames = Frames()
        self._block_bytes = 0
        """Of the header block that is being received, compressed."""
        self._ending = False
        self._over = False
        self._goaway_sent = False
        self._idle: asyncio.TimerHandle | None = None
        limits = shared.limits
        self._budget = Budget(limits.http_event_burst, limits.http_event_rate, shared.clock())
        self._h2 = _Connection(h2.config.H2Configuration(client_side=False, header_encoding=None))
        codes = h2.settings.SettingCodes
        self._h2.local_settings = _Settings(
            client=False,
            initial_values={
                codes.MAX_CONCURRENT_STREAMS: limits.max_http_streams,
                codes.MAX_HEADER_LIST_SIZE: limits.max_request_head,
                codes.ENABLE_CONNECT_PROTOCOL: 1,
            },
        )
        self._h2.decoder.max_header_list_size = limits.max_request_head
        self._h2.initiate_connection()
        if limits.max_http_streams > 1:
            self._h2.increment_flow_control_window(min(_WINDOW_BYTES * limits.max_http_streams, 2**31 - 1) - _WINDOW_BYTES)
        self._flush()
        self._watch_idle()

    # ------------------------------------------------------------------------------ the line's calls

    def received(self, data: bytes) -> None:
        if len(self._preface) < len(HTTP2_PREFACE):
            missing = len(HTTP2_PREFACE) - len(self._preface)
            self._preface += data[:missing]
            data = data[missing:]
            if not HTTP2_PREFACE.startswith(self._preface):
                self._fail(ErrorCodes.PROTOCOL_ERROR, "the preface is not HTTP/2's")
                return
            if len(self._preface) < len(HTTP2_PREFACE):
                return
            self._h2.receive_data(HTTP2_PREFACE)
        self._work(data)

    def _work(self, data: bytes = b"") -> None:
        """Frames for as long as a turn may last; the others wait, and so does what the peer has sent behind them."""
        until = self.shared.clock() + TURN_S
        try:
            for frame in self._frames.cut(data):
                if self._over:
                    return
                self._frame(frame)
                if self.shared.clock() > until:
                    self._line.postpone(self._work)
                    break
        except FrameTooLargeError:
            self._fail(ErrorCodes.FRAME_SIZE_ERROR, f"a frame has more than {_FRAME_BYTES} bytes")
        except h2.exceptions.ProtocolError as error:
            # Its GOAWAY is written already.
            self._fail(None, f"{type(error).__name__}: {error}")
        self._flush()
        if self._line.unsent > _REPLY_BYTES:
            self._line.pause()

    def room(self) -> None:
        self._line.resume()
        self._pump()

    def ended(self) -> None:
        self._finish()

    def lost(self) -> None:
        self._over = True
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None
        for stream in list(self._streams.values()):
            self._forget(stream)

    def end(self) -> None:
        """Tell the peer, take no further streams, and close when those that there are have ended."""
        self._send_goaway()
        self._ending = True
        self._watch_idle()

    # --------------------------------------------------------------------------------------- frames

    def _frame(self, frame: Frame) -> None:
        cost, abuse = self._price(frame)
        if not abuse and cost and not self._budget.spend(cost, self.shared.clock()):
            abuse = f"too many frames that carry nothing, last of type {frame.kind}"
        if abuse:
            self._flood(abuse)
        elif frame.kind == _GOAWAY and frame.stream_id == 0 and frame.length >= 8:
            # h2 would send nothing any more, although streams may go on: RFC 9113 section 6.8.
            self._ending = True
            if int.from_bytes(frame.data[_FRAME_HEAD_BYTES + 4 : _FRAME_HEAD_BYTES + 8]) != ErrorCodes.NO_ERROR:
                self._finish()
            self._watch_idle()
        else:
            for event in self._h2.receive_data(frame.data):
                self._event(event)

    def _price(self, frame: Frame) -> tuple[int, str]:
        """What a frame costs of the budget, and what is wrong with it whatever is left."""
        limits = self.shared.limits
        if frame.kind == _DATA:
            useless = frame.length == 0 and not frame.flags & _END_STREAM
            return int(useless or frame.stream_id not in self._streams), ""
        if frame.kind == _HEADERS:
            self._block_bytes = frame.length
            late = frame.stream_id <= self._h2.highest_inbound_stream_id
            return int(late), "too long a header block" if self._block_bytes > limits.max_request_head else ""
        if frame.kind == _CONTINUATION:
            self._block_bytes += frame.length
            return 1, "too long a header block" if self._block_bytes > limits.max_request_head else ""
        if frame.kind == _SETTINGS:
            return 1, "too many settings" if frame.length > 6 * _SETTINGS_PER_FRAME else ""
        return 1, ""

    def _event(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.RequestReceived):
            assert event.stream_id is not None and event.headers is not None
            fields = [(bytes(name), bytes(value)) for name, value in event.headers]
            self._request(event.stream_id, fields, event.stream_ended is None)
        elif isinstance(event, h2.events.DataReceived):
            assert event.stream_id is not None and event.flow_controlled_length is not None
            self._data(event.stream_id, event.data or b"", event.flow_controlled_length)
        elif isinstance(event, h2.events.StreamEnded):
            stream = self._streams.get(event.stream_id or 0)
            if stream is not None:
                stream.peer_ended()
                self._reap(stream)
        elif isinstance(event, h2.events.StreamReset):
            stream = self._streams.get(event.stream_id or 0)
            if stream is not None:
                self._forget(stream)
        elif isinstance(event, h2.events.WindowUpdated):
            self._unblock(event.stream_id or 0)
        elif isinstance(event, h2.events.RemoteSettingsChanged):
            self._settings_changed()

    def _settings_changed(self) -> None:
        """Keep what a peer's settings make us remember in bounds; its initial window may have grown."""
        encoder = self._h2.encoder
        if encoder.header_table_size > _TABLE_BYTES:
            encoder.header_table_size = _TABLE_BYTES
        changes = encoder.table_size_changes
        if len(changes) > 2:
            encoder.table_size_changes = [min(changes), changes[-1]]  # RFC 7541 section 4.2
        known = set(h2.settings.SettingCodes)
        for code in [code for code in self._h2.remote_settings if code not in known]:
            del self._h2.remote_settings[code]
        self._unblock(0)

    def _data(self, stream_id: int, data: bytes, charged: int) -> None:
        if not data and charged and not self._budget.spend(1, self.shared.clock()):
            self._flood("too much padding")
        else:
            self._streams[stream_id].data(data, charged)  # of a stream that is not there h2 makes no event

    # ------------------------------------------------------------------------------------- requests

    def _request(self, stream_id: int, fields: list[tuple[bytes, bytes]], has_body: bool) -> None:
        pseudo = {name: value for name, value in fields if name.startswith(b":")}
        headers = [(name, value) for name, value in fields if not name.startswith(b":")]
        authority = pseudo.get(b":authority")
        if authority is not None and not any(name == b"host" for name, _ in headers):
            headers.insert(0, (b"host", authority))
        method, target = pseudo.get(b":method", b""), pseudo.get(b":path", b"")
        if self._ending or len(self._streams) >= self.shared.limits.max_http_streams:
            self.shared.count("http_streams_refused")
            if not self._budget.spend(1, self.shared.clock()):
                self._flood("too many streams that are refused")
                return
            self._h2.reset_stream(stream_id, ErrorCodes.REFUSED_STREAM)
        elif method == b"CONNECT":
            stream = _WebSocketStream(self, stream_id)
            self._add(stream)
            self._connect(stream, pseudo.get(b":protocol", b""), target, headers)
        else:
            request = _RequestStream(self, stream_id, method, target, headers)
            self._add(request)
            if not split_target(target)[0] and target != b"*":
                self.refuse(request, Refusal(HTTPStatus.BAD_REQUEST, "this is no proxy"))
            elif any(name == b"content-length" and _exceeds(value, self.shared.limits.max_request_body) for name, value in headers):
                limit = self.shared.limits.max_request_body
                self.refuse(request, Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the body has more than {limit} bytes"))
            elif has_body and (b"expect", b"100-continue") in headers:
                self.send_headers(request, [(b":status", b"100")])

    def _connect(self, stream: _WebSocketStream, protocol: bytes, target: bytes, headers: Headers) -> None:
        """Extended CONNECT, RFC 8441 section 5."""
        if protocol != b"websocket":
            self.refuse(stream, Refusal(HTTPStatus.NOT_IMPLEMENTED, "the only protocol here is websocket"))
            return
        verdict = check_websocket(split_target(target)[0], headers, self.rules)
        if isinstance(verdict, Refusal):
            self.refuse(stream, verdict)
            return
        client, proxied = client_of(self.origin.peer, headers, self.rules.trusted_proxies)
        remote = proxied or self.origin.proxied or is_foreign_page(headers, self.rules)
        origin = replace(self.origin, peer=client, proxied=remote)
        try:
            sock = self.shared.adopt(origin, True)
        except OSError as error:
            self.shared.count("http_adopt_errors")
            self.shared.log(logging.WARNING, "http_adopt_failed", origin, error=str(error))
            self.refuse(stream, Refusal(HTTPStatus.SERVICE_UNAVAILABLE, "no further connection is admitted now"))
            return
        self.shared.count("http_websockets")
        self.send_headers(stream, [(b":status", b"200"), (b"sec-websocket-protocol", verdict.encode()), date_header()])
        stream.duct = Duct(self.shared.loop, sock, stream)

    def _add(self, stream: _Stream) -> None:
        self._streams[stream.id] = stream
        self._watch_idle()

    def _forget(self, stream: _Stream) -> None:
        """The stream has ended on both sides, or was reset."""
        if self._streams.pop(stream.id, None) is None:
            return
        if stream.timer is not None:
            stream.timer.cancel()
        stream.unsent.clear()
        self._blocked.discard(stream)
        if stream.queued:
            stream.queued = False
            self._sending.remove(stream)
        if not self._over:
            stream.acknowledge()
        stream.closed()
        self._watch_idle()

    def _reap(self, stream: _Stream) -> None:
        """Forget a stream that has ended on both sides."""
        known = self._h2.streams.get(stream.id)
        if known is None or known.closed:
            self._forget(stream)

    # ----------------------------------------------------------------------------- the streams' calls

    def send_headers(self, stream: _Stream, fields: list[tuple[bytes, bytes]]) -> None:
        if stream.id in self._streams:
            self._h2.send_headers(stream.id, fields)
            self._flush()

    def acknowledge(self, stream: _Stream) -> None:
        """Give the peer back what a stream has taken of its windows."""
        if stream.unacknowledged and not self._over:
            self._h2.acknowledge_received_data(stream.unacknowledged, stream.id)
            self._flush()
        stream.unacknowledged = 0

    def refuse(self, stream: _Stream, refusal: Refusal) -> None:
        """Answer with an error and end the stream; nothing was sent on it."""
        if stream.id not in self._streams:
            return
        self.shared.count("http_refused")
        self.shared.log(logging.INFO, "http_refused", self.origin, status=int(refusal.status), detail=refusal.reason)
        stream.refused = True
        if not self._budget.spend(1, self.shared.clock()):
            self._flood("too many requests that are refused")
            return
        fields, body = error_headers(refusal)
        kept = [(name, value) for name, value in fields if name not in _NOT_IN_HTTP2]
        self._h2.send_headers(stream.id, [(b":status", b"%d" % refusal.status), *kept])
        # What the peer still sends of a body is of no use, nor need it wait until the end: RFC 9113 section 8.1.
        if stream.timer is not None:
            stream.timer.cancel()
        stream.timer = self.shared.loop.call_later(LINGER_S, self.reset, stream, ErrorCodes.NO_ERROR)
        stream.unsent[:] = body
        stream.ending = True
        self.offer(stream)

    def reset(self, stream: _Stream, code: ErrorCodes) -> None:
        if stream.id in self._streams:
            self._h2.reset_stream(stream.id, code)
            self._flush()
            self._forget(stream)

    def offer(self, stream: _Stream) -> None:
        """A stream has something for the peer: bytes or its end."""
        if stream.id in self._streams and not stream.queued and (stream.unsent or stream.ending):
            self._blocked.discard(stream)
            stream.queued = True
            self._sending.append(stream)
            self._pump()

    # ---------------------------------------------------------------------------------------- output

    def _unblock(self, stream_id: int) -> None:
        """A window has grown; 0: the connection's."""
        for stream in [stream for stream in self._blocked if stream_id in (0, stream.id)]:
            self._blocked.discard(stream)
            stream.queued = True
            self._sending.append(stream)
        self._pump()

    def _pump(self) -> None:
        """A frame of each stream in turn, within the windows, as long as the line takes more."""
        while self._sending and not self._line.full and not self._over:
            stream = self._sending.popleft()
            stream.queued = False
            self._send_frame(stream)
            self._flush()

    def _send_frame(self, stream: _Stream) -> None:
        if stream.unsent:
            size = min(len(stream.unsent), self._h2.local_flow_control_window(stream.id), self._h2.max_outbound_frame_size, _FRAME_BYTES)
            if size <= 0:
                self._blocked.add(stream)
                return
            data = bytes(stream.unsent[:size])
            del stream.unsent[:size]
            last = stream.ending and not stream.unsent
            self._h2.send_data(stream.id, data, end_stream=last)
            if not stream.refused:
                self._budget.earn(_FRAMES_EARNED)
            if stream.unsent:
                stream.queued = True
                self._sending.append(stream)
                return
            stream.sent()
        else:
            last = stream.ending
            if last:
                self._h2.end_stream(stream.id)
        if last:
            stream.ending = False
            self._reap(stream)

    def _flush(self) -> None:
        data = self._h2.data_to_send()
        if data:
            self._line.write(data)

    # ------------------------------------------------------------------------------------------- ends

    def _watch_idle(self) -> None:
        """A connection without streams ends after ``http_timeout``; at once if it is to end anyway."""
        if self._over:
            return
        if self._streams:
            if self._idle is not None:
                self._idle.cancel()
                self._idle = None
        elif self._ending:
            self._finish()
        elif self._idle is None:
            self._idle = self.shared.loop.call_later(self.shared.limits.http_timeout, self._finish)

    def _send_goaway(self) -> None:
        """Not by h2, which would let no stream go on."""
        if not self._goaway_sent and not self._over:
            self._goaway_sent = True
            self._flush()
            self._line.write(GoAwayFrame(0, last_stream_id=self._h2.highest_inbound_stream_id, error_code=0).serialize())

    def _flood(self, abuse: str) -> None:
        self.shared.count("http_floods")
        self.shared.log(logging.WARNING, "http_flood", self.origin, detail=abuse)
        self._end_by(ErrorCodes.ENHANCE_YOUR_CALM)

    def _fail(self, code: ErrorCodes | None, problem: str) -> None:
        """The peer breaks the protocol. ``code`` None: the GOAWAY waits in h2."""
        self.shared.count("http_protocol_errors")
        self.shared.log(logging.INFO, "http_protocol_error", self.origin, detail=problem)
        self._end_by(code)

    def _end_by(self, code: ErrorCodes | None) -> None:
        if code is not None:
            self._h2.close_connection(code)
        self._goaway_sent = True
        self._flush()
        self._finish()

    def _finish(self) -> None:
        """End the connection, and with it all streams."""
        self._send_goaway()
        self._flush()
        self.lost()
        self._line.finish()


def _exceeds(content_length: bytes, limit: int) -> bool:
    return content_length.isdigit() and (len(content_length) > 19 or int(content_length) > limit)
