import enum
from collections.abc import Iterable, Iterator
from typing import Any, Self

_Bytes = bytes | bytearray | memoryview

class PacketType(enum.IntEnum):
    CONNECT = 1
    CONNACK = 2
    PUBLISH = 3
    PUBACK = 4
    PUBREC = 5
    PUBREL = 6
    PUBCOMP = 7
    SUBSCRIBE = 8
    SUBACK = 9
    UNSUBSCRIBE = 10
    UNSUBACK = 11
    PINGREQ = 12
    PINGRESP = 13
    DISCONNECT = 14
    AUTH = 15

class QoS(enum.IntEnum):
    AT_MOST_ONCE = 0
    AT_LEAST_ONCE = 1
    EXACTLY_ONCE = 2

class RetainHandling(enum.IntEnum):
    SEND = 0
    SEND_IF_NEW = 1
    DO_NOT_SEND = 2

class ReasonCode(enum.IntEnum):
    SUCCESS = 0x00
    NORMAL_DISCONNECTION = 0x00
    GRANTED_QOS_0 = 0x00
    GRANTED_QOS_1 = 0x01
    GRANTED_QOS_2 = 0x02
    DISCONNECT_WITH_WILL_MESSAGE = 0x04
    NO_MATCHING_SUBSCRIBERS = 0x10
    NO_SUBSCRIPTION_EXISTED = 0x11
    CONTINUE_AUTHENTICATION = 0x18
    REAUTHENTICATE = 0x19
    UNSPECIFIED_ERROR = 0x80
    MALFORMED_PACKET = 0x81
    PROTOCOL_ERROR = 0x82
    IMPLEMENTATION_SPECIFIC_ERROR = 0x83
    UNSUPPORTED_PROTOCOL_VERSION = 0x84
    CLIENT_IDENTIFIER_NOT_VALID = 0x85
    BAD_USER_NAME_OR_PASSWORD = 0x86
    NOT_AUTHORIZED = 0x87
    SERVER_UNAVAILABLE = 0x88
    SERVER_BUSY = 0x89
    BANNED = 0x8A
    SERVER_SHUTTING_DOWN = 0x8B
    BAD_AUTHENTICATION_METHOD = 0x8C
    KEEP_ALIVE_TIMEOUT = 0x8D
    SESSION_TAKEN_OVER = 0x8E
    TOPIC_FILTER_INVALID = 0x8F
    TOPIC_NAME_INVALID = 0x90
    PACKET_IDENTIFIER_IN_USE = 0x91
    PACKET_IDENTIFIER_NOT_FOUND = 0x92
    RECEIVE_MAXIMUM_EXCEEDED = 0x93
    TOPIC_ALIAS_INVALID = 0x94
    PACKET_TOO_LARGE = 0x95
    MESSAGE_RATE_TOO_HIGH = 0x96
    QUOTA_EXCEEDED = 0x97
    ADMINISTRATIVE_ACTION = 0x98
    PAYLOAD_FORMAT_INVALID = 0x99
    RETAIN_NOT_SUPPORTED = 0x9A
    QOS_NOT_SUPPORTED = 0x9B
    USE_ANOTHER_SERVER = 0x9C
    SERVER_MOVED = 0x9D
    SHARED_SUBSCRIPTIONS_NOT_SUPPORTED = 0x9E
    CONNECTION_RATE_EXCEEDED = 0x9F
    MAXIMUM_CONNECT_TIME = 0xA0
    SUBSCRIPTION_IDENTIFIERS_NOT_SUPPORTED = 0xA1
    WILDCARD_SUBSCRIPTIONS_NOT_SUPPORTED = 0xA2

class CodecError(ValueError):
    reason_code: ReasonCode
    def __init__(self, message: str = "", reason_code: int | None = None) -> None: ...

class DecodeError(CodecError): ...
class MalformedPacketError(DecodeError): ...
class ProtocolViolationError(DecodeError): ...
class UnsupportedVersionError(DecodeError): ...
class PacketTooLargeError(DecodeError): ...
class EncodeError(CodecError): ...
class InvalidTopicError(EncodeError): ...

class Properties:
    def __init__(
        self,
        *,
        payload_format_indicator: int | None = None,
        message_expiry_interval: int | None = None,
        content_type: str | None = None,
        response_topic: str | None = None,
        correlation_data: _Bytes | None = None,
        subscription_identifiers: Iterable[int] | None = None,
        session_expiry_interval: int | None = None,
        assigned_client_identifier: str | None = None,
        server_keep_alive: int | None = None,
        authentication_method: str | None = None,
        authentication_data: _Bytes | None = None,
        request_problem_information: bool | None = None,
        will_delay_interval: int | None = None,
        request_response_information: bool | None = None,
        response_information: str | None = None,
        server_reference: str | None = None,
        reason_string: str | None = None,
        receive_maximum: int | None = None,
        topic_alias_maximum: int | None = None,
        topic_alias: int | None = None,
        maximum_qos: int | None = None,
        retain_available: bool | None = None,
        user_properties: Iterable[tuple[str, str]] | None = None,
        maximum_packet_size: int | None = None,
        wildcard_subscription_available: bool | None = None,
        subscription_identifier_available: bool | None = None,
        shared_subscription_available: bool | None = None,
    ) -> None: ...
    @property
    def payload_format_indicator(self) -> int | None: ...
    @property
    def message_expiry_interval(self) -> int | None: ...
    @property
    def content_type(self) -> str | None: ...
    @property
    def response_topic(self) -> str | None: ...
    @property
    def correlation_data(self) -> bytes | None: ...
    @property
    def subscription_identifiers(self) -> tuple[int, ...]: ...
    @property
    def session_expiry_interval(self) -> int | None: ...
    @property
    def assigned_client_identifier(self) -> str | None: ...
    @property
    def server_keep_alive(self) -> int | None: ...
    @property
    def authentication_method(self) -> str | None: ...
    @property
    def authentication_data(self) -> bytes | None: ...
    @property
    def request_problem_information(self) -> bool | None: ...
    @property
    def will_delay_interval(self) -> int | None: ...
    @property
    def request_response_information(self) -> bool | None: ...
    @property
    def response_information(self) -> str | None: ...
    @property
    def server_reference(self) -> str | None: ...
    @property
    def reason_string(self) -> str | None: ...
    @property
    def receive_maximum(self) -> int | None: ...
    @property
    def topic_alias_maximum(self) -> int | None: ...
    @property
    def topic_alias(self) -> int | None: ...
    @property
    def maximum_qos(self) -> QoS | None: ...
    @property
    def retain_available(self) -> bool | None: ...
    @property
    def user_properties(self) -> tuple[tuple[str, str], ...]: ...
    @property
    def maximum_packet_size(self) -> int | None: ...
    @property
    def wildcard_subscription_available(self) -> bool | None: ...
    @property
    def subscription_identifier_available(self) -> bool | None: ...
    @property
    def shared_subscription_available(self) -> bool | None: ...
    def as_dict(self) -> dict[str, Any]: ...
    def __bool__(self) -> bool: ...
    def __hash__(self) -> int: ...

class Value:
    def replace(self, **changes: Any) -> Self: ...
    def __hash__(self) -> int: ...

class Packet(Value):
    @property
    def packet_type(self) -> PacketType: ...
    @property
    def properties(self) -> Properties: ...

class Will(Value):
    def __init__(
        self,
        topic: str,
        payload: _Bytes = b"",
        *,
        qos: int = 0,
        retain: bool = False,
        properties: Properties | None = None,
    ) -> None: ...
    @property
    def topic(self) -> str: ...
    @property
    def payload(self) -> bytes: ...
    @property
    def qos(self) -> QoS: ...
    @property
    def retain(self) -> bool: ...
    @property
    def properties(self) -> Properties: ...

class Connect(Packet):
    def __init__(
        self,
        client_id: str = "",
        *,
        clean_start: bool = True,
        keep_alive: int = 60,
        username: str | None = None,
        password: _Bytes | str | None = None,
        will: Will | None = None,
        bridge: bool = False,
        properties: Properties | None = None,
    ) -> None: ...
    @property
    def client_id(self) -> str: ...
    @property
    def clean_start(self) -> bool: ...
    @property
    def keep_alive(self) -> int: ...
    @property
    def username(self) -> str | None: ...
    @property
    def password(self) -> bytes | None: ...
    @property
    def will(self) -> Will | None: ...
    @property
    def bridge(self) -> bool: ...

class Connack(Packet):
    def __init__(
        self,
        reason_code: int = 0,
        *,
        session_present: bool = False,
        properties: Properties | None = None,
    ) -> None: ...
    @property
    def reason_code(self) -> ReasonCode: ...
    @property
    def session_present(self) -> bool: ...

class Publish(Packet):
    def __init__(
        self,
        topic: str,
        payload: _Bytes = b"",
        *,
        qos: int = 0,
        retain: bool = False,
        dup: bool = False,
        packet_id: int = 0,
        properties: Properties | None = None,
    ) -> None: ...
    @property
    def topic(self) -> str: ...
    @property
    def payload(self) -> bytes | memoryview: ...
    @property
    def qos(self) -> QoS: ...
    @property
    def retain(self) -> bool: ...
    @property
    def dup(self) -> bool: ...
    @property
    def packet_id(self) -> int: ...

class Received:
    topic: str
    receipt: Any
    def __init__(self, topic: str, packet: Publish, receipt: Any = None) -> None: ...
    @property
    def packet(self) -> Publish: ...
    @property
    def payload(self) -> bytes: ...
    @property
    def qos(self) -> QoS: ...
    @property
    def retain(self) -> bool: ...
    @property
    def dup(self) -> bool: ...
    @property
    def properties(self) -> Properties: ...

class Ack(Packet):
    @property
    def packet_id(self) -> int: ...
    @property
    def reason_code(self) -> ReasonCode: ...

class Puback(Ack):
    def __init__(
        self,
        packet_id: int,
        reason_code: int = 0,
        *,
        properties: Properties | None = None,
    ) -> None: ...

class Pubrec(Ack):
    def __init__(
        self,
        packet_id: int,
        reason_code: int = 0,
        *,
        properties: Properties | None = None,
    ) -> None: ...

class Pubrel(Ack):
    def __init__(
        self,
        packet_id: int,
        reason_code: int = 0,
        *,
        properties: Properties | None = None,
    ) -> None: ...

class Pubcomp(Ack):
    def __init__(
        self,
        packet_id: int,
        reason_code: int = 0,
        *,
        properties: Properties | None = None,
    ) -> None: ...

class Subscription(Value):
    def __init__(
        self,
        topic_filter: str,
        qos: int = 0,
        *,
        no_local: bool = False,
        retain_as_published: bool = False,
        retain_handling: int = 0,
    ) -> None: ...
    @property
    def topic_filter(self) -> str: ...
    @property
    def qos(self) -> QoS: ...
    @property
    def no_local(self) -> bool: ...
    @property
    def retain_as_published(self) -> bool: ...
    @property
    def retain_handling(self) -> RetainHandling: ...

class Filters(Packet):
    @property
    def packet_id(self) -> int: ...

class Subscribe(Filters):
    def __init__(
        self,
        packet_id: int,
        subscriptions: Iterable[Subscription],
        *,
        properties: Properties | None = None,
    ) -> None: ...
    @property
    def subscriptions(self) -> tuple[Subscription, ...]: ...

class Unsubscribe(Filters):
    def __init__(
        self,
        packet_id: int,
        topic_filters: Iterable[str],
        *,
        properties: Properties | None = None,
    ) -> None: ...
    @property
    def topic_filters(self) -> tuple[str, ...]: ...

class Verdicts(Packet):
    @property
    def packet_id(self) -> int: ...
    @property
    def reason_codes(self) -> tuple[ReasonCode, ...]: ...

class Suback(Verdicts):
    def __init__(
        self,
        packet_id: int,
        reason_codes: Iterable[int],
        *,
        properties: Properties | None = None,
    ) -> None: ...

class Unsuback(Verdicts):
    def __init__(
        self,
        packet_id: int,
        reason_codes: Iterable[int] = (),
        *,
        properties: Properties | None = None,
    ) -> None: ...

class Pingreq(Packet):
    def __init__(self) -> None: ...

class Pingresp(Packet):
    def __init__(self) -> None: ...

class Farewell(Packet):
    @property
    def reason_code(self) -> ReasonCode: ...

class Disconnect(Farewell):
    def __init__(
        self,
        reason_code: int = 0,
        *,
        properties: Properties | None = None,
    ) -> None: ...

class Auth(Farewell):
    def __init__(
        self,
        reason_code: int = 0,
        *,
        properties: Properties | None = None,
    ) -> None: ...

class Decoder:
    def __init__(self, version: int | None = None, *, max_packet_size: int = 268435460, payload_views: bool = False) -> None: ...
    @property
    def version(self) -> int | None: ...
    @property
    def max_packet_size(self) -> int: ...
    @property
    def buffered(self) -> int: ...
    def feed(self, data: _Bytes) -> Self: ...
    def __iter__(self) -> Iterator[Packet]: ...
    def __next__(self) -> Packet: ...
    def run(self, messages: list[Any], acknowledged: list[int], aliases: dict[int, str], kind: type[Received] = ...) -> Packet | None: ...

def encode(packet: Packet, version: int = 5) -> bytes: ...
def publish_bytes(
    topic: str,
    payload: bytes = b"",
    qos: int = 0,
    retain: bool = False,
    dup: bool = False,
    packet_id: int = 0,
    properties: Properties | None = None,
    version: int = 5,
) -> bytes: ...
def run_end(events: list[Any], first: int) -> tuple[int, int]: ...
def topic_matches(topic_filter: str, topic: str) -> bool: ...
def validate_topic(topic: str) -> None: ...
def validate_filter(topic_filter: str) -> None: ...
