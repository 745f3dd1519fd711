"""The client's side of MQTT without input, output, clock or randomness: bytes in, events and bytes out.

One `Core` lives as long as the client and holds its session: what is on its way in both directions, and the subscriptions. Connections
come and go: `begin` writes CONNECT, `receive` takes what was read and returns events, `lost` says that the connection is gone. What is to
be sent gathers in `out`, whole packets in order. Not thread-safe.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from mqttc import codec
from mqttc.client.aliases import IncomingAliases, OutgoingAliases
from mqttc.client.incoming import Incoming, Receipt
from mqttc.client.message import Message
from mqttc.client.options import Options, ServerLimits
from mqttc.client.outgoing import Outgoing, OutgoingMessages, Stage
from mqttc.client.packet_ids import PacketIds
from mqttc.client.requests import Request, Requests
from mqttc.client.state import Stats
from mqttc.client.store import MEMORY, Store
from mqttc.codec import Properties, ReasonCode
from mqttc.errors import ClosedError, MqttError, NotSupportedError, QueueFullError

RESUBSCRIBE_BYTES = 8192
"""Filters of one SUBSCRIBE when the client subscribes again, so that brokers with small packets take it."""


class Phase(enum.Enum):
    OFFLINE = 0
    CONNECTING = 1
    """CONNECT is written, CONNACK awaited."""
    ONLINE = 2
    LEAVING = 3
    """DISCONNECT is written; nothing may follow [MQTT-3.14.4-2]."""


ONLINE: Final = Phase.ONLINE  # for what is asked per message: up to Python 3.11 a member of an enumeration is found by a call


@dataclass(frozen=True, slots=True)
class Connected:
    """CONNACK with success. `finished`: messages that count as delivered although the session is gone."""

    packet: codec.Connack
    finished: list[Outgoing]


@dataclass(frozen=True, slots=True)
class Refused:
    """CONNACK with another code; the broker closes."""

    packet: codec.Connack


@dataclass(frozen=True, slots=True)
class Challenge:
    """AUTH: `Core.authenticate` is to answer."""

    data: bytes | None


@dataclass(frozen=True, slots=True)
class Authenticated:
    """AUTH with success: re-authentication is over."""


@dataclass(frozen=True, slots=True)
class Ended:
    """The broker's DISCONNECT."""

    packet: codec.Disconnect


@dataclass(frozen=True, slots=True)
class Violation:
    """What came is no MQTT, or breaks it; the connection is to be closed once `out` is sent."""

    error: codec.CodecError


Event = Message | Outgoing | Request | Connected | Refused | Challenge | Authenticated | Ended | Violation
Events = list[Event]


class Core:
    """See above. `acknowledger` is put into messages of QoS 1 and 2; `clock` (seconds, monotonic) is asked about messages that expire."""

    def __init__(
        self,
        options: Options,
        client_id: str,
        store: Store = MEMORY,
        stats: Stats | None = None,
        acknowledger: Callable[[Receipt, int], None] | None = None,
        clock: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self.options = options
        self.client_id = client_id
        self.version = options.version
        self.phase = Phase.OFFLINE
        self.out: list[bytes] = []
        self.out_bytes = 0
        self.limits = ServerLimits()
        self.keep_alive = options.keep_alive
        self.stats = Stats() if stats is None else stats
        self.connack = codec.Connack()
        self.has_session = False
        """A connection has been there, so that the next one is to find its session."""
        self.filters: dict[str, tuple[codec.Subscription, Properties | None]] = {}
        """What is subscribed."""
        self.authenticating = False
        self._unconfirmed = 0
        """SUBSCRIBE packets of the client's own that have no answer: the session of the broker may lack these filters."""
        self._acknowledger = acknowledger
        self._clock = clock
        self._clean = True
        ids = PacketIds()
        self.outgoing = OutgoingMessages(ids, store, options.max_queued_messages, options.max_queued_bytes, options.max_inflight)
        self.requests = Requests(ids, options.max_requests)
        stored = store.load()
        for entry in stored.outgoing:
            self.outgoing.restore(entry)
        self.incoming = Incoming(store, set(stored.received))
        self._decoder = codec.Decoder(self.version)
        self._aliases_out = OutgoingAliases(0)
        self._aliases_in = IncomingAliases(0)
        self._handlers: dict[type[codec.Packet], Callable[[codec.Packet, Events], None]] = {
            codec.Connack: self._on_connack,
            codec.Publish: self._on_publish,
            codec.Puback: self._on_ack,
            codec.Pubcomp: self._on_ack,
            codec.Pubrec: self._on_pubrec,
            codec.Pubrel: self._on_pubrel,
            codec.Suback: self._on_verdicts,
            codec.Unsuback: self._on_verdicts,
            codec.Pingresp: self._on_pingresp,
            codec.Disconnect: self._on_disconnect,
            codec.Auth: self._on_auth,
        }

    # ------------------------------------------------------------------------------------------------ connection

    def begin(self, version: int, auth_data: bytes | None = None) -> None:
        """A connection is there: CONNECT is the first packet on it [MQTT-3.1.0-1]."""
        options = self.options
        self.version = version
        self.phase = Phase.CONNECTING
        self.authenticating = options.authentication is not None
        self._decoder = codec.Decoder(version, max_packet_size=options.max_packet_size)
        self._clear_out()
        first = not self.has_session
        if version == 5:
            self._clean = options.clean_start and first
        else:
            self._clean = options.session_expiry == 0
        self._write(
            codec.Connect(
                self.client_id,
                clean_start=self._clean,
                keep_alive=options.keep_alive,
                username=options.username,
                password=options.password,
                will=options.will,
                properties=self._connect_properties(auth_data) if version == 5 else None,
            )
        )

    def _connect_properties(self, auth_data: bytes | None) -> Properties:
        options = self.options
        told = {} if options.connect_properties is None else options.connect_properties.as_dict()
        told.setdefault("receive_maximum", options.receive_maximum)
        told.setdefault("maximum_packet_size", options.max_packet_size)
        if options.session_expiry:
            told.setdefault("session_expiry_interval", options.session_expiry)
        if options.topic_alias_maximum:
            told.setdefault("topic_alias_maximum", options.topic_alias_maximum)
        if options.authentication is not None:
            told["authentication_method"] = options.authentication.method
            if auth_data is not None:
                told["authentication_data"] = auth_data
        return Properties(**told)

    def lost(self) -> None:
        """The connection is gone. Nothing of the session is."""
        self.phase = Phase.OFFLINE
        self._clear_out()
        self.authenticating = False
        self.outgoing.lost()
        self.incoming.lost()
        self.requests.lost()

    def disconnect(self, reason_code: int = ReasonCode.NORMAL_DISCONNECTION, properties: Properties | None = None) -> None:
        """The last packet of the connection; in 3.x it cannot say a reason, and is sent for success only."""
        if self.phase in (Phase.OFFLINE, Phase.LEAVING):
            return
        if self.version == 5 or (not reason_code and self.phase is Phase.ONLINE):
            self._write(codec.Disconnect(reason_code, properties=properties if self.version == 5 else None))
        self.phase = Phase.LEAVING

    def ping(self) -> None:
        if self.phase is Phase.ONLINE:
            self.stats.pings += 1
            self._write(codec.Pingreq())

    def authenticate(self, data: bytes | None, again: bool = False) -> None:
        """Answers a `Challenge`; `again`: begins re-authentication, with the same method [MQTT-4.12.1-1]."""
        authentication = self.options.authentication
        if authentication is None:
            raise NotSupportedError("there is no authentication method to authenticate with")
        if again and self.phase is not Phase.ONLINE:
            raise ClosedError("there is no connection")
        self.authenticating = True
        properties = Properties(authentication_method=authentication.method, authentication_data=data)
        self._write(codec.Auth(ReasonCode.REAUTHENTICATE if again else ReasonCode.CONTINUE_AUTHENTICATION, properties=properties))

    def take(self) -> bytes:
        """What is to be sent now."""
        out = self.out
        data = out[0] if len(out) == 1 else b"".join(out)
        out.clear()
        self.out_bytes = 0
        self.stats.bytes_sent += len(data)
        return data

    # ------------------------------------------------------------------------------------------------ sending

    def publish_now(self, topic: str, payload: bytes, retain: bool, properties: Properties | None) -> None:
        """QoS 0 over the connection that is there. Raises ``NotSupportedError``, ``codec.EncodeError``."""
        if retain and not self.limits.retain_available:
            raise _no_retain()
        self._put(self._encode_publish(topic, payload, 0, retain, False, 0, properties))

    def publish(self, entry: Outgoing) -> None:
        """Sends it now if it can, else it is queued. Raises ``QueueFullError``, ``NotSupportedError``, ``codec.EncodeError``; then nothing
        has happened."""
        online = self.phase is ONLINE
        if online and entry.qos and self.outgoing.idle_window:
            self._check(entry)
            self.outgoing.start(entry)
            try:
                self._put(self._encode_entry(entry, False))
            except BaseException:
                self.outgoing.fail(entry, MqttError("not sent"))
                raise
            return
        if online:
            self._check(entry)
        codec.Publish(entry.topic, entry.payload, qos=entry.qos, packet_id=1 if entry.qos else 0)  # what is wrong is told at once
        try:
            self.outgoing.enqueue(entry)
        except QueueFullError:
            self.stats.queue_full += 1
            raise
        if online:
            self._pump([])

    def request(self, request: Request) -> None:
        """Sends it, or keeps it until there is a connection. Raises ``QueueFullError``, ``NotSupportedError``, ``codec.EncodeError``."""
        for topic_filter in request.topic_filters:
            codec.validate_filter(topic_filter)
        if self.phase is Phase.ONLINE:
            self._check_request(request)
        self.requests.add(request)
        if self.phase is Phase.ONLINE:
            self._pump([])

    def expires(self, entry: Outgoing, properties: Properties) -> bool:
        """Whether it does: then its time begins."""
        interval_s = properties.message_expiry_interval
        if interval_s is not None:
            entry.expires_at = self._clock() + interval_s
        return interval_s is not None

    def next_expiry_s(self) -> float | None:
        """After so many seconds `expire` may have something to do."""
        at = self.outgoing.next_expiry
        return None if at is None else max(at - self._clock(), 0.0)

    def expire(self) -> Events:
        """Drops what has waited for too long."""
        gone = self.outgoing.expire(self._clock())
        self.stats.expired += len(gone)
        return list(gone)

    def acknowledge(self, receipt: Receipt, reason_code: int = 0) -> None:
        incoming = self.incoming
        incoming.acknowledge(receipt, reason_code)
        if incoming.answers:
            self._answer()

    def _answer(self) -> None:
        answers = self.incoming.answers
        if self.phase is Phase.ONLINE:
            for packet in answers:
                self._write(packet)
        answers.clear()

    def _pump(self, events: Events) -> None:
        """Requests, then messages, as far as identifiers and window go."""
        while (request := self.requests.next()) is not None:
            try:
                self._check_request(request)
                data = codec.encode(request.packet(), self.version)
                self._check_size(data, "SUBSCRIBE" if request.subscriptions else "UNSUBSCRIBE")
            except (NotSupportedError, codec.EncodeError) as error:
                self.requests.fail(request, error if isinstance(error, MqttError) else NotSupportedError(str(error), error.reason_code))
                events.append(request)
            else:
                self._put(data)
        outgoing = self.outgoing
        if outgoing.next_expiry is not None:
            events.extend(self.expire())
        while (entry := outgoing.next()) is not None:
            try:
                self._check(entry)
                data = self._encode_entry(entry, entry.sent_before)
            except (NotSupportedError, codec.EncodeError) as error:
                outgoing.fail(entry, error if isinstance(error, MqttError) else NotSupportedError(str(error), error.reason_code))
            else:
                if entry.sent_before:
                    self.stats.resent += 1
                entry.sent_before = True
                self._put(data)
            if entry.stage == Stage.DONE:
                events.append(entry)

    def _check(self, entry: Outgoing) -> None:
        limits = self.limits
        if entry.qos > limits.maximum_qos:
            raise NotSupportedError(f"the broker takes no QoS {entry.qos}, {int(limits.maximum_qos)} at most", ReasonCode.QOS_NOT_SUPPORTED)
        if entry.retain and not limits.retain_available:
            raise _no_retain()

    def _check_request(self, request: Request) -> None:
        limits = self.limits
        for item in request.subscriptions:
            topic_filter = item.topic_filter
            shared = topic_filter.startswith("$share/")
            if shared and not limits.shared_subscription_available:
                raise NotSupportedError("the broker has no shared subscriptions", ReasonCode.SHARED_SUBSCRIPTIONS_NOT_SUPPORTED)
            if not limits.wildcard_subscription_available and ("+" in topic_filter or "#" in topic_filter):
                raise NotSupportedError("the broker has no wildcard subscriptions", ReasonCode.WILDCARD_SUBSCRIPTIONS_NOT_SUPPORTED)
        identified = request.properties is not None and request.properties.subscription_identifiers
        if identified and (self.version < 5 or not limits.subscription_identifier_available):
            raise NotSupportedError("no subscription identifiers here", ReasonCode.SUBSCRIPTION_IDENTIFIERS_NOT_SUPPORTED)

    def _check_size(self, data: bytes, what: str) -> None:
        most = self.limits.maximum_packet_size
        if most is not None and len(data) > most:
            raise NotSupportedError(f"{what} has {len(data)} bytes, the broker takes {most}", ReasonCode.PACKET_TOO_LARGE)

    def _encode_entry(self, entry: Outgoing, dup: bool) -> bytes:
        properties = entry.properties
        if entry.expires_at is not None and properties is not None:
            # what is left [MQTT-3.3.2-6]; not 0, which some brokers take for no expiry
            left = max(math.ceil(entry.expires_at - self._clock()), 1)
            if left < (properties.message_expiry_interval or 0):
                told: dict[str, Any] = {**properties.as_dict(), "message_expiry_interval": left}
                properties = Properties(**told)
        return self._encode_publish(entry.topic, entry.payload, entry.qos, entry.retain, dup, entry.packet_id, properties)

    def _encode_publish(
        self, topic: str, payload: bytes, qos: int, retain: bool, dup: bool, packet_id: int, properties: Properties | None
    ) -> bytes:
        """With an alias where the broker takes any. An alias it would not learn is forgotten again."""
        if self.version != 5:
            properties = None
        aliases = self._aliases_out
        shown = topic
        if aliases.maximum and topic:
            shown, properties = aliases.shorten(topic, properties)
        try:
            data = codec.publish_bytes(shown, payload, qos, retain, dup, packet_id, properties, self.version)
            if self.limits.maximum_packet_size is not None:
                self._check_size(data, "PUBLISH")
        except BaseException:
            if shown:
                aliases.forget(topic)
            raise
        self.stats.sent += 1
        return data

    def _write(self, packet: codec.Packet) -> None:
        self._put(codec.encode(packet, self.version))

    def _put(self, data: bytes) -> None:
        self.out.append(data)
        self.out_bytes += len(data)

    def _clear_out(self) -> None:
        self.out.clear()
        self.out_bytes = 0

    # ------------------------------------------------------------------------------------------------ receiving

    def receive(self, data: bytes) -> Events:
        """What the bytes mean. A `Violation` or `Ended` is the last event of a connection."""
        events: Events = []
        stats = self.stats
        stats.bytes_received += len(data)
        acknowledged: list[int] = []
        decoder = self._decoder
        try:
            decoder.feed(data)
            while self.phase is not Phase.LEAVING:
                packet: codec.Packet | None
                if self.phase is ONLINE:
                    before = len(events)
                    try:
                        packet = decoder.run(events, acknowledged, self._aliases_in.topics, Message)
                    finally:
                        stats.received += len(events) - before
                        if acknowledged:
                            stats.unclaimed += self.outgoing.on_pubacks(acknowledged, events)
                            acknowledged.clear()
                else:
                    packet = next(decoder, None)
                    if packet is not None and not isinstance(packet, codec.Connack | codec.Auth):
                        raise codec.ProtocolViolationError(f"{type(packet).__name__.upper()} before CONNACK")
                if packet is None:
                    break
                self._handle(packet, events)
        except codec.CodecError as error:
            self._violated(error, events)
            return events
        if self.phase is Phase.ONLINE:
            if self.incoming.answers:
                self._answer()
            self._pump(events)
        return events

    def _handle(self, packet: codec.Packet, events: Events) -> None:
        handler = self._handlers.get(type(packet))
        if handler is None:
            raise codec.ProtocolViolationError(f"a broker may not send {type(packet).__name__.upper()}")
        handler(packet, events)

    def violated(self, text: str) -> Events:
        """The same for what whoever drives the core has found."""
        events: Events = []
        self._violated(codec.ProtocolViolationError(text), events)
        return events

    def _violated(self, error: codec.CodecError, events: Events) -> None:
        if self.phase is Phase.ONLINE:
            self._answer()
            self.disconnect(error.reason_code)
        self.phase = Phase.LEAVING
        events.append(Violation(error))

    def _on_publish(self, packet: codec.Packet, events: Events) -> None:
        assert isinstance(packet, codec.Publish)
        self.stats.received += 1
        topic, properties = packet.topic, packet.properties
        if properties or not topic:
            topic = self._aliases_in.resolve(topic, properties)
        if not packet.qos:
            events.append(Message(topic, packet))
            return
        receipt = self.incoming.on_publish(packet)
        if receipt is None:
            self.stats.repetitions += 1
        else:
            receipt.acknowledger = self._acknowledger
            events.append(Message(topic, packet, receipt))

    def _on_ack(self, packet: codec.Packet, events: Events) -> None:
        assert isinstance(packet, codec.Ack)
        entry = self.outgoing.on_ack(packet)
        if entry is None:
            self.stats.unclaimed += 1
        else:
            events.append(entry)

    def _on_connack(self, packet: codec.Packet, events: Events) -> None:
        assert isinstance(packet, codec.Connack)
        if self.phase is not Phase.CONNECTING:
            raise codec.ProtocolViolationError("a second CONNACK")
        self.authenticating = False
        if packet.reason_code:
            self.phase = Phase.LEAVING
            events.append(Refused(packet))
            return
        present = packet.session_present
        if present and self._clean:
            raise codec.ProtocolViolationError("Session Present with a clean start")  # [MQTT-3.2.2-4]
        if self.version == 3:
            present = not self._clean  # 3.1 does not tell; what is sent again has DUP, and subscribing again does no harm
        properties = packet.properties
        self.phase = Phase.ONLINE
        self.connack = packet
        self.limits = limits = ServerLimits.of(properties)
        told = properties.server_keep_alive
        self.keep_alive = self.options.keep_alive if told is None else told  # [MQTT-3.1.2-21]
        self.client_id = properties.assigned_client_identifier or self.client_id
        five = self.version == 5
        self._aliases_out = OutgoingAliases(limits.topic_alias_maximum if five else 0)
        self._aliases_in = IncomingAliases(self.options.topic_alias_maximum if five else 0)
        self.stats.connections += 1
        if self.has_session and not present:
            self.stats.sessions_lost += 1
        receive_maximum = self.options.receive_maximum if five else 65535
        self.incoming.connected(receive_maximum, present)
        finished = self.outgoing.connected(limits.receive_maximum, present)
        for packet_id in self.outgoing.released:
            self._write(codec.Pubrel(packet_id))
        if not present or self._unconfirmed or self.version == 3:
            again = self._resubscriptions()
            self._unconfirmed = len(again)
            self.requests.first(again)
        self.has_session = True
        events.append(Connected(packet, finished))

    def _resubscriptions(self) -> list[Request]:
        """SUBSCRIBE packets for all filters: those with the same properties together, each of moderate size."""
        requests: list[Request] = []
        groups: dict[Properties | None, list[codec.Subscription]] = {}
        for subscription, properties in self.filters.values():
            groups.setdefault(properties, []).append(subscription)
        for properties, subscriptions in groups.items():
            part: list[codec.Subscription] = []
            size = 0
            for subscription in subscriptions:
                if part and size + len(subscription.topic_filter) > RESUBSCRIBE_BYTES:
                    requests.append(Request(tuple(part), properties=properties, own=True))
                    part, size = [], 0
                part.append(subscription)
                size += len(subscription.topic_filter) + 3
            requests.append(Request(tuple(part), properties=properties, own=True))
        return requests

    def _on_pubrec(self, packet: codec.Packet, events: Events) -> None:
        assert isinstance(packet, codec.Pubrec)
        entry, known = self.outgoing.on_pubrec(packet)
        if known:
            self._write(codec.Pubrel(packet.packet_id))
        elif entry is not None:
            events.append(entry)
        else:
            self.stats.unclaimed += 1
            if packet.reason_code < 0x80:
                self._write(codec.Pubrel(packet.packet_id, ReasonCode.PACKET_IDENTIFIER_NOT_FOUND))

    def _on_pubrel(self, packet: codec.Packet, events: Events) -> None:
        assert isinstance(packet, codec.Pubrel)
        self.incoming.on_pubrel(packet)

    def _on_verdicts(self, packet: codec.Packet, events: Events) -> None:
        assert isinstance(packet, codec.Verdicts)
        request = self.requests.answer(packet)
        if request is None:
            self.stats.unclaimed += 1
            return
        if request.own:
            self._unconfirmed -= 1
        for subscription, code in zip(request.subscriptions, packet.reason_codes, strict=False):
            if code < 0x80:
                self.filters[subscription.topic_filter] = (subscription, request.properties)
            elif request.own:
                self.filters.pop(subscription.topic_filter, None)
        codes = packet.reason_codes or (ReasonCode.SUCCESS,) * len(request.topic_filters)
        for topic_filter, code in zip(request.topic_filters, codes, strict=False):
            if code < 0x80:
                self.filters.pop(topic_filter, None)
        events.append(request)

    def _on_pingresp(self, packet: codec.Packet, events: Events) -> None:
        """That it came is enough."""

    def _on_disconnect(self, packet: codec.Packet, events: Events) -> None:
        assert isinstance(packet, codec.Disconnect)
        if self.version != 5:
            raise codec.ProtocolViolationError("a broker of 3.x may not send DISCONNECT")
        self.phase = Phase.LEAVING
        events.append(Ended(packet))

    def _on_auth(self, packet: codec.Packet, events: Events) -> None:
        assert isinstance(packet, codec.Auth)
        method = None if self.options.authentication is None else self.options.authentication.method
        if not self.authenticating or packet.properties.authentication_method not in (None, method):
            raise codec.ProtocolViolationError("AUTH that nobody asked for, or of another method")
        if packet.reason_code == ReasonCode.CONTINUE_AUTHENTICATION:
            events.append(Challenge(packet.properties.authentication_data))
        elif packet.reason_code == ReasonCode.SUCCESS and self.phase is Phase.ONLINE:
            self.authenticating = False
            events.append(Authenticated())
        else:
            raise codec.ProtocolViolationError(f"AUTH with reason 0x{packet.reason_code:02x}")


def _no_retain() -> NotSupportedError:
    return NotSupportedError("the broker stores no retained messages", ReasonCode.RETAIN_NOT_SUPPORTED)
