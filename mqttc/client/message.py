"""What the application sees of messages and acknowledgements."""

from __future__ import annotations

from dataclasses import dataclass

from mqttc import codec
from mqttc.codec import Properties, ReasonCode

NO_PROPERTIES = Properties()


class Message(codec.Received):
    """A message that has arrived. `packet` is the PUBLISH as it came; its topic may be empty where an alias stood for it.

    From the codec: `topic`, `packet`, `payload` (bytes), `qos`, `retain` (it was stored before the subscription was made, or always as
    published with retain_as_published), `dup` (it may have been sent before, section 3.3.1.1), `properties` (all that MQTT 5.0 says
    about it; empty in older versions), and `receipt`: what is owed to the broker, None at QoS 0.
    """

    __slots__ = ()

    def __repr__(self) -> str:
        return f"Message(topic={self.topic!r})"

    @property
    def text(self) -> str:
        """The payload as UTF-8. Raises ``UnicodeDecodeError``."""
        return self.payload.decode()

    @property
    def user_properties(self) -> tuple[tuple[str, str], ...]:
        return self.packet.properties.user_properties

    @property
    def response_topic(self) -> str | None:
        return self.packet.properties.response_topic

    @property
    def correlation_data(self) -> bytes | None:
        return self.packet.properties.correlation_data

    def acknowledge(self, reason_code: int = ReasonCode.SUCCESS) -> None:
        """With manual acknowledgement: it has been dealt with. From any thread; again, or at QoS 0, it does nothing.

        PUBACK or PUBREC leave in the order in which the messages came [MQTT-4.6.0-2], so after those of earlier ones. A
        code of 0x80 or above refuses the message (5.0 only; older versions have no way to say so).
        """
        receipt, self.receipt = self.receipt, None
        if receipt is not None and receipt.acknowledger is not None:
            receipt.acknowledger(receipt, reason_code)


@dataclass(frozen=True, slots=True)
class PublishResult:
    """What the broker said about a message: SUCCESS or NO_MATCHING_SUBSCRIBERS. At QoS 0, and unacknowledged, always SUCCESS."""

    reason_code: ReasonCode = ReasonCode.SUCCESS
    properties: Properties = NO_PROPERTIES


SENT = PublishResult()
RESULTS = {int(code): PublishResult(code) for code in ReasonCode if code < 0x80} | {0: SENT}
"""Those without properties."""


@dataclass(frozen=True, slots=True)
class UnsubscribeResult:
    """One code for each filter, in their order; empty from 3.x brokers, which give none."""

    reason_codes: tuple[ReasonCode, ...] = ()
    properties: Properties = NO_PROPERTIES
