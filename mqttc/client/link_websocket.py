"""MQTT over WebSocket (RFC 6455, MQTT section 6), over TCP or TLS. wsproto does handshake and frames.

Packets need not keep to the borders of frames; what one turn of the loop sends is one binary frame.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from wsproto import ConnectionType, WSConnection
from wsproto.connection import Connection
from wsproto.events import AcceptConnection, BytesMessage, CloseConnection, Event, Ping, RejectConnection, Request, TextMessage
from wsproto.utilities import LocalProtocolError, RemoteProtocolError

from mqttc.client.link import Handler, StreamLink
from mqttc.client.url import Target
from mqttc.errors import ConnectError

SUBPROTOCOL = "mqtt"
"""[MQTT-6.0.0-3]"""


class WebSocketLink(StreamLink):
    """`accepted` is done when the handshake is, and fails with ``ConnectError``."""

    def __init__(self, handler: Handler, max_write_bytes: int, target: Target, headers: Mapping[str, str]) -> None:
        super().__init__(handler, max_write_bytes)
        self._websocket: WSConnection | Connection = WSConnection(ConnectionType.CLIENT)
        self._target = target
        self._headers = [(name.encode(), value.encode()) for name, value in headers.items()]
        self._ended = False
        self.accepted: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        request = Request(
            host=self._target.authority, target=self._target.path, subprotocols=[SUBPROTOCOL], extra_headers=self._headers
        )
        self._send(self._websocket.send(request))

    def data_received(self, data: bytes) -> None:
        self._frames(data)

    def _send(self, data: bytes) -> None:
        """Handshake and frames, on their way to the transport."""
        super().write(data)

    def _frames(self, data: bytes) -> None:
        if self._ended:
            return
        try:
            self._websocket.receive_data(data)
            for event in self._websocket.events():
                self._happened(event)
        except RemoteProtocolError as error:
            self._fail(f"what answers there does not speak WebSocket: {error}", error.event_hint)

    def _happened(self, event: Event) -> None:
        if isinstance(event, BytesMessage):
            if event.data:
                self._handler.received(bytes(event.data))
        elif isinstance(event, Ping):
            self._send(self._websocket.send(event.response()))
        elif isinstance(event, AcceptConnection):
            if event.subprotocol != SUBPROTOCOL:
                self._fail("what answers there does not agree to the WebSocket subprotocol mqtt")
            elif not self.accepted.done():
                self.accepted.set_result(None)
        elif isinstance(event, RejectConnection):
            self._fail(f"the WebSocket handshake was answered with status {event.status_code}")
        elif isinstance(event, CloseConnection):
            self._say(event.response())
            self._end()
        elif isinstance(event, TextMessage):
            self._fail("a WebSocket text frame: what answers there does not speak MQTT", CloseConnection(code=1003))

    def _say(self, event: Event) -> None:
        try:
            self._send(self._websocket.send(event))
        except LocalProtocolError:
            pass  # both sides have said it

    def _fail(self, text: str, hint: Event | None = None) -> None:
        if isinstance(hint, CloseConnection) and self.accepted.done():
            self._say(hint)
        self._refused(text)
        self._end()

    def _refused(self, text: str) -> None:
        if not self.accepted.done():
            self.accepted.set_exception(ConnectError(text))
            self.accepted.exception()  # whoever waits gets it; nobody need

    def _end(self) -> None:
        self._ended = True
        super().close()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._refused("the connection ended during the WebSocket handshake")
        super().connection_lost(exc)

    def write(self, data: bytes) -> None:
        if not self._ended and self._transport is not None:
            self._send(self._websocket.send(BytesMessage(data)))

    def close(self) -> None:
        if not self._ended and self.accepted.done():
            self._say(CloseConnection(code=1000))
        self._end()
