"""paho-mqtt, with its own network thread."""

from __future__ import annotations

import socket
import threading
from typing import Any, Literal

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties as PahoProperties

from tests.clients.listeners import PATH, context, is_secure, is_websocket
from tests.clients.model import KEEP_ALIVE, TIMEOUT, ClientError, Message, Options, Properties, RealClient

_NAMES = {
    "content_type": "ContentType",
    "response_topic": "ResponseTopic",
    "correlation_data": "CorrelationData",
    "message_expiry": "MessageExpiryInterval",
    "payload_format": "PayloadFormatIndicator",
}


def to_paho(properties: Properties, packet_type: int = PacketTypes.PUBLISH) -> PahoProperties:
    made = PahoProperties(packet_type)
    for ours, theirs in _NAMES.items():
        value = getattr(properties, ours)
        if value is not None:
            setattr(made, theirs, value)
    if properties.user:
        made.UserProperty = list(properties.user)
    return made


def from_paho(properties: PahoProperties | None) -> Properties:
    if properties is None:
        return Properties()
    values = {ours: getattr(properties, theirs, None) for ours, theirs in _NAMES.items()}
    user = tuple((str(name), str(value)) for name, value in getattr(properties, "UserProperty", ()))
    return Properties(user=user, **values)


def connect_properties(options: Options) -> PahoProperties:
    made = PahoProperties(PacketTypes.CONNECT)
    made.SessionExpiryInterval = options.session_expiry
    return made


def paho_transport(options: Options) -> Literal["tcp", "unix", "websockets"]:
    """What paho calls it; TLS is an option besides."""
    if options.transport == "unix":
        return "unix"
    return "websockets" if is_websocket(options) else "tcp"


def hang_up(client: paho.Client) -> None:
    """End the connection under the client's feet."""
    connection = client.socket()
    connection = getattr(connection, "_socket", connection) if not isinstance(connection, socket.socket) else connection
    if isinstance(connection, socket.socket):
        socket.socket.shutdown(connection, socket.SHUT_RDWR)  # that of an SSLSocket would forget TLS


class PahoClient(RealClient):
    def __init__(self, options: Options, *, manual_ack: bool = False) -> None:
        super().__init__(options)
        self._connected = threading.Event()
        self._subscribed = threading.Event()
        self._ended = threading.Event()
        self._refusal: object = None
        self.unacknowledged: list[paho.MQTTMessage] = []
        """With manual_ack: what was received on this connection."""
        self.duplicates: list[bool] = []
        """DUP of each message received."""
        is_5 = options.version == 5
        self.paho = paho.Client(
            CallbackAPIVersion.VERSION2,
            options.client_id,
            clean_session=None if is_5 else options.session_expiry == 0,
            protocol=MQTTProtocolVersion(options.version),
            transport=paho_transport(options),
            reconnect_on_failure=False,
            manual_ack=manual_ack,
        )
        if is_secure(options):
            self.paho.tls_set_context(context())
        if is_websocket(options):
            self.paho.ws_set_options(PATH)
        self.paho.on_connect = self._on_connect
        self.paho.on_subscribe = self._on_subscribe
        self.paho.on_message = self._on_message
        self.paho.on_disconnect = self._on_disconnect
        if options.will is not None:
            will = options.will
            self.paho.will_set(will.topic, will.payload, will.qos, will.retain)

    def _on_connect(self, _client: paho.Client, _data: Any, flags: paho.ConnectFlags, reason: Any, _properties: Any) -> None:
        self.session_present = flags.session_present if self.options.version > 3 else None
        self._refusal = reason if reason.is_failure else None
        self._connected.set()

    def _on_subscribe(self, _client: paho.Client, _data: Any, _mid: int, reasons: list[Any], _properties: Any) -> None:
        self._refusal = next((reason for reason in reasons if reason.is_failure), None)
        self._subscribed.set()

    def _on_message(self, _client: paho.Client, _data: Any, message: paho.MQTTMessage) -> None:
        self.unacknowledged.append(message)
        self.duplicates.append(message.dup)
        self.messages.put(Message(message.topic, bytes(message.payload), message.qos, message.retain, from_paho(message.properties)))

    def _on_disconnect(self, *_: Any) -> None:
        self._ended.set()

    def _wait(self, event: threading.Event, what: str) -> None:
        if not event.wait(TIMEOUT) or self._refusal is not None:
            raise ClientError(f"{self.options.client_id}: no {what}, {self._refusal}")

    def open(self) -> None:
        options = self.options
        for event in (self._connected, self._subscribed, self._ended):
            event.clear()
        self.unacknowledged.clear()
        host, port = options.address if isinstance(options.address, tuple) else (options.address, 1)
        if options.version == 5:
            self.paho.connect(host, port, KEEP_ALIVE, clean_start=options.session_expiry == 0, properties=connect_properties(options))
        else:
            self.paho.connect(host, port, KEEP_ALIVE)
        self.paho.loop_start()
        self._wait(self._connected, "CONNACK")
        if options.subscriptions:
            self.paho.subscribe(list(options.subscriptions))
            self._wait(self._subscribed, "SUBACK")

    def publish(self, message: Message) -> None:
        properties = to_paho(message.properties) if self.options.version == 5 else None
        info = self.paho.publish(message.topic, message.payload, message.qos, message.retain, properties)
        info.wait_for_publish(TIMEOUT)
        if not info.is_published():
            raise ClientError(f"{self.options.client_id}: {message.topic} was not acknowledged")

    def close(self) -> None:
        self.paho.disconnect()
        self.paho.loop_stop()

    def abort(self) -> None:
        hang_up(self.paho)
        if not self._ended.wait(TIMEOUT):
            raise ClientError("the connection did not end")
        self.paho.loop_stop()
