"""Messages as the program gets and sends them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from mqttc import codec
from mqttc.codec import Properties, ReasonCode
from mqttc.inside import RawMessage

Payload = bytes | bytearray | memoryview | str

_NOT_OF_PUBLISHERS: Final = ("topic_alias", "subscription_identifiers")
_PACKET_ID: Final = 1
"""In-process, a message arrives once: nothing is repeated, so no id has to be free."""


class Message(RawMessage):
    """A message for the program. ``retain``: it was stored before the subscription was made, or as published with
    ``retain_as_published``; ``qos``: at which it was granted; ``message_expiry``: seconds left."""

    __slots__ = ("_properties",)
    _properties: Properties | None

    def __repr__(self) -> str:
        return f"Message({self.topic!r}, {len(self.payload)} bytes, qos={self.qos}, retain={self.retain})"

    @property
    def text(self) -> str:
        """The payload as UTF-8. Raises ``UnicodeDecodeError``."""
        return self.payload.decode()

    @property
    def properties(self) -> Properties:
        """What MQTT 5.0 says about the message (section 3.3.2.3)."""
        try:
            found = self._properties
        except AttributeError:
            found = None
        if found is None:
            found = self._properties = decode_properties(self.raw_properties, self.message_expiry)
        return found

    @property
    def user_properties(self) -> tuple[tuple[str, str], ...]:
        return self.properties.user_properties

    @property
    def response_topic(self) -> str | None:
        return self.properties.response_topic

    @property
    def correlation_data(self) -> bytes | None:
        return self.properties.correlation_data


@dataclass(frozen=True, slots=True)
class Published:
    """What became of a message: SUCCESS or NO_MATCHING_SUBSCRIBERS, and for how many receivers it is.

    ``receivers``: sessions and shared groups whose filters match, connected or not. A receiver may still lose it, by its
    queue's policy, its own packet size, or no local; that is counted where it happens.
    """

    reason_code: ReasonCode
    receivers: int


def encode_publish(topic: str, payload: Payload, qos: int, retain: bool, properties: Properties | None) -> bytes:
    """A PUBLISH of MQTT 5.0. Raises ``codec.EncodeError``, which is a ``ValueError``."""
    if properties is not None:
        for name in _NOT_OF_PUBLISHERS:
            if getattr(properties, name):
                raise codec.EncodeError(f"{name} cannot be sent from inside")
    body = payload.encode() if isinstance(payload, str) else payload
    packet_id = _PACKET_ID if qos else 0
    return codec.encode(codec.Publish(topic, body, qos=qos, retain=retain, packet_id=packet_id, properties=properties))


def decode_properties(raw: bytes, message_expiry: int | None) -> Properties:
    """From the wire form that the broker forwards."""
    if message_expiry is not None:
        raw = b"\x02" + message_expiry.to_bytes(4, "big") + raw
    if not raw:
        return Properties()
    body = b"\x00\x01t" + _variable(len(raw)) + raw
    packet = next(codec.Decoder(5).feed(b"\x30" + _variable(len(body)) + body))
    return packet.properties


def _variable(number: int) -> bytes:
    """A Variable Byte Integer (section 1.5.5)."""
    encoded = bytearray()
    while number >= 128:
        encoded.append(number & 127 | 128)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
