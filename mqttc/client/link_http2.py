"""MQTT over WebSocket over HTTP/2 (RFC 8441): one stream of a connection of its own. h2 does the protocol, wsproto the frames.

What the broker's windows do not let through yet waits here; the handler is told as it is of what waits in the transport.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from typing import Final

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings
from wsproto import ConnectionType
from wsproto.connection import Connection

from mqttc.client.link import Handler
from mqttc.client.link_websocket import SUBPROTOCOL, WebSocketLink
from mqttc.client.url import Target

WINDOW_BYTES: Final = 1 << 20
"""What the broker may send unasked; it is acknowledged as it is read, so that the socket alone holds the broker up."""
DEFAULT_WINDOW_BYTES: Final = 65535
"""Of a connection, until it is told another (RFC 9113 section 6.9.2)."""


class Http2Link(WebSocketLink):
    """`accepted` is done when the broker has answered the extended CONNECT, and fails with ``ConnectError``."""

    def __init__(self, handler: Handler, max_write_bytes: int, target: Target, headers: Mapping[str, str]) -> None:
        super().__init__(handler, max_write_bytes, target, headers)
        self._websocket = Connection(ConnectionType.CLIENT)
        self._http = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding=None))
        self._stream = 0
        """0: the request is not sent."""
        self._waiting = bytearray()
        self._closing = False
        self._max_waiting_bytes = max_write_bytes
        self._transport_full = False
        self._full = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        session: ssl.SSLObject = transport.get_extra_info("ssl_object")
        super(WebSocketLink, self).connection_made(transport)
        if session.selected_alpn_protocol() != "h2":
            self._fail("what answers there does not speak HTTP/2 (no ALPN h2)")
            return
        self._http.local_settings = h2.settings.Settings(
            client=True,
            initial_values={
                h2.settings.SettingCodes.ENABLE_PUSH: 0,
                h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: WINDOW_BYTES,
                h2.settings.SettingCodes.MAX_HEADER_LIST_SIZE: DEFAULT_WINDOW_BYTES,
            },
        )
        self._http.initiate_connection()
        self._http.increment_flow_control_window(WINDOW_BYTES - DEFAULT_WINDOW_BYTES)
        self._flush()

    def data_received(self, data: bytes) -> None:
        if self._ended and not self._closing:
            return
        try:
            for event in self._http.receive_data(data):
                self._said(event)
        except h2.exceptions.ProtocolError as error:
            self._flush()
            self._broken(f"what answers there does not speak HTTP/2: {error}")
            return
        self._pump()

    def _said(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.DataReceived):
            self._http.acknowledge_received_data(event.flow_controlled_length or 0, self._stream)
            if not self._closing:
                self._frames(event.data or b"")
        elif isinstance(event, h2.events.RemoteSettingsChanged):
            if not self._stream:
                self._request()
        elif isinstance(event, h2.events.ResponseReceived):
            self._answered(dict(event.headers or ()))
        elif isinstance(event, h2.events.StreamReset | h2.events.StreamEnded | h2.events.ConnectionTerminated):
            self._broken("the broker ended the HTTP/2 stream")

    def _broken(self, text: str) -> None:
        """Nothing can be sent any more."""
        self._closing = False
        self._waiting.clear()
        self._stream = 0
        self._fail(text)

    def _request(self) -> None:
        """Once the broker has said that it knows extended CONNECT (RFC 8441 section 3)."""
        if not self._http.remote_settings.enable_connect_protocol:
            self._fail("what answers there has no WebSocket over HTTP/2 (RFC 8441)")
            return
        self._stream = self._http.get_next_available_stream_id()
        pseudo = {":method": "CONNECT", ":protocol": "websocket", ":scheme": "https", ":authority": self._target.authority}
        told = {**pseudo, ":path": self._target.path, "sec-websocket-version": "13", "sec-websocket-protocol": SUBPROTOCOL}
        own = [(name.lower(), value) for name, value in self._headers]
        self._http.send_headers(self._stream, [*((name.encode(), value.encode()) for name, value in told.items()), *own])

    def _answered(self, headers: Mapping[bytes, bytes]) -> None:
        status = headers.get(b":status", b"").decode("latin-1")
        if status != "200":
            self._fail(f"the WebSocket handshake was answered with status {status}")
        elif headers.get(b"sec-websocket-protocol") != SUBPROTOCOL.encode():
            self._fail("what answers there does not agree to the WebSocket subprotocol mqtt")
        elif not self.accepted.done():
            self.accepted.set_result(None)

    # ------------------------------------------------------------------------------------------------ sending

    def _send(self, data: bytes) -> None:
        self._waiting += data
        self._pump()

    def _pump(self) -> None:
        """As much as the windows take."""
        sent = 0
        while self._stream and sent < len(self._waiting):
            room = min(self._http.local_flow_control_window(self._stream), self._http.max_outbound_frame_size)
            if room <= 0:
                break
            part = bytes(self._waiting[sent : sent + room])
            self._http.send_data(self._stream, part)
            sent += len(part)
        del self._waiting[:sent]
        if self._closing and not self._waiting:
            self._closing = False
            if self._stream:
                self._http.end_stream(self._stream)
            self._flush()
            self._leave()
            return
        self._flush()
        self._tell_room()

    def _flush(self) -> None:
        data = self._http.data_to_send()
        if data and self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def _tell_room(self) -> None:
        full = self._transport_full or len(self._waiting) > (self._max_waiting_bytes // 2 if self._full else self._max_waiting_bytes)
        if full != self._full:
            self._full = full
            self._handler.room(not full)

    def pause_writing(self) -> None:
        self._transport_full = True
        self._tell_room()

    def resume_writing(self) -> None:
        self._transport_full = False
        self._tell_room()

    # ------------------------------------------------------------------------------------------------ the end

    def _end(self) -> None:
        """What waits is sent first, where there is a stream to send it over."""
        self._ended = True
        if self._stream and self._waiting and self.accepted.done():
            self._closing = True
            self.resume_reading()  # for the windows
            return
        self._leave()

    def _leave(self) -> None:
        super(WebSocketLink, self).close()
