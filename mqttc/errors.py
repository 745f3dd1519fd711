"""What the client raises, and the broker inside a program: a small hierarchy whose members carry the reason code of MQTT 5.0,
where there is one.

    MqttError
      ConnectError (ConnectionError)         no connection: it could not be dialled, or what answers does not speak MQTT
        RefusedError                         the broker answered CONNECT, and says why not
      ConnectionLostError (ConnectionError)  it was there and broke, or the broker ended it
        DisconnectedError                    by a DISCONNECT that says why
      PublishError                           the broker refused a message
      ExpiredError                           a message waited here for longer than its message_expiry_interval
      SubscribeError                         the broker refused every filter of a subscription, or of an end of one
      NotSupportedError                      the broker, or this version of MQTT, does not have what was asked for; nothing was sent
      QueueFullError                         a bound of the client was met; nothing was queued
      ClosedError                            the client is closed, or was closed meanwhile

    BrokerError (RuntimeError)               a call that the state of the broker in this process does not allow

Deadlines raise `TimeoutError`, and a packet that cannot be built `codec.EncodeError`, which is a `ValueError`.
"""

from __future__ import annotations

from mqttc.codec import Properties, ReasonCode

__all__ = [
    "BrokerError",
    "ClosedError",
    "ConnectError",
    "ConnectionLostError",
    "DisconnectedError",
    "ExpiredError",
    "MqttError",
    "NotSupportedError",
    "PublishError",
    "QueueFullError",
    "RefusedError",
    "SubscribeError",
    "reason_text",
]


def reason_text(code: int, properties: Properties | None = None) -> str:
    """`not authorized (0x87)`, and the broker's own words behind it, where it has sent any."""
    try:
        text = f"{ReasonCode(code).name.replace('_', ' ').lower()} (0x{code:02x})"
    except ValueError:
        text = f"0x{code:02x}"
    said = None if properties is None else properties.reason_string
    return f"{text}: {said}" if said else text


class BrokerError(RuntimeError):
    """A call that the broker's state does not allow: not running, running already, stopped meanwhile, or after a fork."""


class MqttError(Exception):
    """Base of what the client raises. `reason_code` is None where nobody has given one."""

    def __init__(self, message: str = "", reason_code: ReasonCode | None = None, properties: Properties | None = None) -> None:
        super().__init__(message)
        self.reason_code = reason_code
        self.properties = Properties() if properties is None else properties


class ConnectError(MqttError, ConnectionError):
    """The broker could not be reached, or what answers there does not speak MQTT."""


class RefusedError(ConnectError):
    """The broker refused CONNECT. `server_reference` names another broker, if this one does (section 4.11)."""

    @property
    def server_reference(self) -> str | None:
        return self.properties.server_reference


class ConnectionLostError(MqttError, ConnectionError):
    """The connection broke, or the broker ended it."""


class DisconnectedError(ConnectionLostError):
    """The broker ended the connection by DISCONNECT, which says why (section 3.14)."""

    @property
    def server_reference(self) -> str | None:
        return self.properties.server_reference


class PublishError(MqttError):
    """The broker refused a message: a reason code of 0x80 or above in PUBACK or PUBREC."""


class ExpiredError(MqttError):
    """A message was not sent before its message_expiry_interval ended (section 3.3.2.3.3), and is dropped."""


class SubscribeError(MqttError):
    """The broker refused every filter of a SUBSCRIBE or UNSUBSCRIBE."""

    def __init__(self, message: str, reason_codes: tuple[ReasonCode, ...], properties: Properties | None = None) -> None:
        super().__init__(message, reason_codes[0] if reason_codes else None, properties)
        self.reason_codes = reason_codes


class NotSupportedError(MqttError):
    """The broker has said that it does not have this, or the version of MQTT that is spoken does not."""


class QueueFullError(MqttError):
    """The off-line queue, or the bound of pending requests, is full."""


class ClosedError(MqttError):
    """The client is closed; what was not acknowledged until then has not been confirmed."""
