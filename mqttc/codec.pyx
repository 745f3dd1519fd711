"""MQTT packets for Python: bytes to typed packets and back, for 3.1, 3.1.1 and 5.0.

The native codec of `mqttc.proto` does the work; this module is its border with Python objects. It needs nothing but `mqttc.base` and
`mqttc.proto`: no event loop, no configuration, no third package.

A packet is immutable. What has no fixed size (properties, filters, reason codes) is kept as it stands on the wire and made into Python values
when it is asked for, so that a packet never takes more memory than a small multiple of what was received. Objects are not locked: one
thread at a time per `Decoder`; packets can be shared freely.
"""

import enum

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memcmp, memcpy, memset

from mqttc.base.types cimport ST_NEED_MORE, ST_OK, Span, likely, span_make, unlikely
from mqttc.proto cimport topic as native_topic
from mqttc.proto.decode cimport decode_ack, decode_connect, decode_packet, decode_publish, filter_next, frame_next
from mqttc.proto.dialect cimport CODE_NONE, Dialect, dialect_for, reason_allowed
from mqttc.proto.encode cimport PublishParts, encode_ack, encode_packet, encode_publish, packet_size, publish_size
from mqttc.proto.packet cimport (
    AUTH, CONNACK, CONNECT, DISCONNECT, HAS_AUTH_METHOD, HAS_TOPIC_ALIAS, OPT_NO_LOCAL, OPT_QOS_MASK, OPT_RETAIN_AS_PUBLISHED,
    PINGREQ, PINGRESP, PUBACK, PUBCOMP, PUBLISH, PUBREC, PUBREL, RC_MALFORMED_PACKET, RC_PACKET_TOO_LARGE, RC_PROTOCOL_ERROR,
    RC_TOPIC_FILTER_INVALID, RC_TOPIC_NAME_INVALID, RC_UNSUPPORTED_PROTOCOL_VERSION, SUBACK, SUBSCRIBE, UNSUBACK, UNSUBSCRIBE,
    Filter, Frame,
)
from mqttc.proto.packet cimport HAS_SUBSCRIPTION_ID
from mqttc.proto.packet cimport Packet as Raw
from mqttc.proto.packet cimport Props
from mqttc.proto.props cimport (
    PLACE_WILL, PROPERTY_ASSIGNED_CLIENT_ID, PROPERTY_AUTH_DATA, PROPERTY_AUTH_METHOD, PROPERTY_CONTENT_TYPE,
    PROPERTY_CORRELATION_DATA, PROPERTY_MAXIMUM_PACKET_SIZE, PROPERTY_MAXIMUM_QOS, PROPERTY_MESSAGE_EXPIRY,
    PROPERTY_PAYLOAD_FORMAT, PROPERTY_REASON_STRING, PROPERTY_RECEIVE_MAXIMUM, PROPERTY_REQUEST_PROBLEM_INFO,
    PROPERTY_REQUEST_RESPONSE_INFO, PROPERTY_RESPONSE_INFO, PROPERTY_RESPONSE_TOPIC, PROPERTY_RETAIN_AVAILABLE,
    PROPERTY_SERVER_KEEP_ALIVE, PROPERTY_SERVER_REFERENCE, PROPERTY_SESSION_EXPIRY, PROPERTY_SHARED_AVAILABLE,
    PROPERTY_SUBSCRIPTION_ID, PROPERTY_SUBSCRIPTION_ID_AVAILABLE, PROPERTY_TOPIC_ALIAS, PROPERTY_TOPIC_ALIAS_MAXIMUM,
    PROPERTY_USER_PROPERTY, PROPERTY_WILDCARD_AVAILABLE, PROPERTY_WILL_DELAY, property_bit, property_check, property_next,
    props_allowed,
)
from mqttc.proto.wire cimport (
    STRING_MAXIMUM, VARINT_MAXIMUM, Cursor, put_u8, put_u16, put_u32, put_varint, take_binary, take_u16, take_u32, take_varint,
    text_valid,
)

cdef extern from "Python.h":
    bint PyUnicode_IS_COMPACT_ASCII(object text) noexcept
    Py_ssize_t PyUnicode_GET_LENGTH(object text) noexcept
    void *PyUnicode_DATA(object text) noexcept
    const char *PyUnicode_AsUTF8AndSize(object text, Py_ssize_t *size) except NULL


class _Code(enum.IntEnum):
    def __repr__(self):
        return f"{type(self).__name__}.{self.name}"


class PacketType(_Code):
    """The high four bits of a packet's first byte, section 2.1.2."""

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


class QoS(_Code):
    """Quality of service, section 4.3."""

    AT_MOST_ONCE = 0
    AT_LEAST_ONCE = 1
    EXACTLY_ONCE = 2


class RetainHandling(_Code):
    """Whether retained messages are sent when a subscription is made, section 3.8.3.1."""

    SEND = 0
    SEND_IF_NEW = 1
    DO_NOT_SEND = 2


class ReasonCode(_Code):
    """MQTT 5.0, section 2.4. Codes of older versions are given as their counterparts here."""

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
    """Base of what this module raises about packets. `reason_code` is what MQTT 5.0 would say to the peer."""

    reason_code = ReasonCode.UNSPECIFIED_ERROR

    def __init__(self, message="", reason_code=None):
        super().__init__(message)
        if reason_code is not None:
            self.reason_code = ReasonCode(reason_code)


class DecodeError(CodecError):
    """The bytes received are not a valid packet; the connection they came from is to be closed."""


class MalformedPacketError(DecodeError):
    """The bytes cannot be read as a packet (0x81)."""

    reason_code = ReasonCode.MALFORMED_PACKET


class ProtocolViolationError(DecodeError):
    """The packet can be read but the protocol forbids what it says (0x82)."""

    reason_code = ReasonCode.PROTOCOL_ERROR


class UnsupportedVersionError(DecodeError):
    """A CONNECT asks for a protocol version that is unknown, or not the decoder's (0x84)."""

    reason_code = ReasonCode.UNSUPPORTED_PROTOCOL_VERSION


class PacketTooLargeError(DecodeError):
    """The packet announces more bytes than the decoder's limit (0x95)."""

    reason_code = ReasonCode.PACKET_TOO_LARGE


class EncodeError(CodecError):
    """The packet cannot be said in this version of MQTT, or holds a value out of range."""

    reason_code = ReasonCode.PROTOCOL_ERROR


class InvalidTopicError(EncodeError):
    """Not a topic name (0x90) or not a topic filter (0x8F)."""

    reason_code = ReasonCode.TOPIC_NAME_INVALID


cdef tuple QOS = tuple(QoS)
cdef tuple RETAIN_HANDLING = tuple(RetainHandling)
cdef dict REASONS = {code.value: code for code in ReasonCode}
cdef dict DECODE_ERRORS = {
    RC_MALFORMED_PACKET: MalformedPacketError,
    RC_PROTOCOL_ERROR: ProtocolViolationError,
    RC_UNSUPPORTED_PROTOCOL_VERSION: UnsupportedVersionError,
    RC_PACKET_TOO_LARGE: PacketTooLargeError,
}


# ---------------------------------------------------------------------------------------------------------------- Python values and spans

cdef inline Span bytes_span(bytes data) noexcept:
    """Borrowed from data, which may be None."""
    if data is None:
        return span_make(NULL, 0)
    return span_make(PyBytes_AS_STRING(data), <size_t> PyBytes_GET_SIZE(data))


cdef inline int text_span(str text, Span *span) except -1:
    """The UTF-8 form of text, owned by it. ASCII text is its own."""
    if likely(PyUnicode_IS_COMPACT_ASCII(text) and PyUnicode_GET_LENGTH(text) <= STRING_MAXIMUM):
        span[0] = span_make(PyUnicode_DATA(text), <size_t> PyUnicode_GET_LENGTH(text))
        return 0
    return other_text_span(text, span)


cdef int other_text_span(str text, Span *span) except -1:
    cdef Py_ssize_t size
    cdef const char *p
    try:
        p = PyUnicode_AsUTF8AndSize(text, &size)
    except UnicodeEncodeError as error:
        raise EncodeError(f"text holds a surrogate: {error}", RC_MALFORMED_PACKET) from None
    if size > STRING_MAXIMUM:
        raise EncodeError(f"text of {size} bytes; at most 65535 can be encoded")
    span[0] = span_make(p, <size_t> size)
    return 0


cdef int plain_text(str text, str what) except -1:
    """Refuses what is not a UTF-8 Encoded String."""
    cdef Span span
    text_span(text, &span)
    if not text_valid(span.p, span.n):
        raise EncodeError(f"{what} holds U+0000", RC_MALFORMED_PACKET)
    return 0


cdef inline str span_text(Span span):
    return PyUnicode_DecodeUTF8(<const char *> span.p, span.n, NULL)


cdef inline bytes span_bytes(Span span):
    return PyBytes_FromStringAndSize(<const char *> span.p, span.n)


cdef bytes to_bytes(object data):
    """The bytes of any object with a buffer; never a number's worth of zeros."""
    if type(data) is bytes:
        return data
    return bytes(memoryview(data))


cdef bytes binary(object data, str what):
    """Binary Data, at most 65535 bytes."""
    cdef bytes value = to_bytes(data)
    if PyBytes_GET_SIZE(value) > STRING_MAXIMUM:
        raise EncodeError(f"{what} of {len(value)} bytes; at most 65535 can be encoded")
    return value


cdef int topic_name(str topic, bint may_be_empty) except -1:
    cdef Span span
    text_span(topic, &span)
    if span.n == 0 and may_be_empty:
        return 0
    if unlikely(not native_topic.topic_check(span)):
        raise InvalidTopicError(f"not a topic name: {topic!r}", RC_TOPIC_NAME_INVALID)
    return 0


cdef int topic_filter_span(str topic_filter, Span *span) except -1:
    cdef Span group, plain
    cdef int shared
    text_span(topic_filter, span)
    shared = native_topic.share_split(span[0], &group, &plain)
    if shared == 0:
        plain = span[0]
    if shared < 0 or not text_valid(span.p, span.n) or not native_topic.filter_check(plain):
        raise InvalidTopicError(f"not a topic filter: {topic_filter!r}", RC_TOPIC_FILTER_INVALID)
    return 0


cdef const Dialect *dialect_of(int version) except NULL:
    cdef const Dialect *dialect = dialect_for(<uint8_t> version) if 3 <= version <= 5 else NULL
    if dialect == NULL:
        raise ValueError(f"version {version}: must be 3 (MQTT 3.1), 4 (3.1.1) or 5 (5.0)")
    return dialect


cdef object reason_of(uint32_t code):
    return REASONS[code]


cdef uint8_t reason_for(uint8_t kind, object code) except? 255:
    """A reason code that may stand in a packet of this kind."""
    cdef int value = code
    if value < 0 or value > 255 or not reason_allowed(kind, <uint8_t> value):
        raise EncodeError(f"reason code 0x{value:02X} does not stand in {PacketType(kind).name}")
    return <uint8_t> value


cdef uint16_t packet_id_for(int packet_id) except? 0xFFFF:
    if packet_id < 1 or packet_id > 65535:
        raise EncodeError(f"packet_id {packet_id}: must be 1 to 65535")
    return <uint16_t> packet_id


cdef uint8_t qos_for(int qos) except? 255:
    if qos < 0 or qos > 2:
        raise EncodeError(f"qos {qos}: must be 0, 1 or 2")
    return <uint8_t> qos


# ------------------------------------------------------------------------------------------------------------------------------ Properties

cdef enum Shape:                            # section 2.2.2.2
    SHAPE_BYTE
    SHAPE_BOOL
    SHAPE_QOS
    SHAPE_U16
    SHAPE_U32
    SHAPE_VARINTS                           # repeatable
    SHAPE_TEXT
    SHAPE_BINARY
    SHAPE_PAIRS                             # repeatable

# name -> (identifier, shape)
cdef dict PROPERTIES = {
    "payload_format_indicator": (PROPERTY_PAYLOAD_FORMAT, SHAPE_BYTE),
    "message_expiry_interval": (PROPERTY_MESSAGE_EXPIRY, SHAPE_U32),
    "content_type": (PROPERTY_CONTENT_TYPE, SHAPE_TEXT),
    "response_topic": (PROPERTY_RESPONSE_TOPIC, SHAPE_TEXT),
    "correlation_data": (PROPERTY_CORRELATION_DATA, SHAPE_BINARY),
    "subscription_identifiers": (PROPERTY_SUBSCRIPTION_ID, SHAPE_VARINTS),
    "session_expiry_interval": (PROPERTY_SESSION_EXPIRY, SHAPE_U32),
    "assigned_client_identifier": (PROPERTY_ASSIGNED_CLIENT_ID, SHAPE_TEXT),
    "server_keep_alive": (PROPERTY_SERVER_KEEP_ALIVE, SHAPE_U16),
    "authentication_method": (PROPERTY_AUTH_METHOD, SHAPE_TEXT),
    "authentication_data": (PROPERTY_AUTH_DATA, SHAPE_BINARY),
    "request_problem_information": (PROPERTY_REQUEST_PROBLEM_INFO, SHAPE_BOOL),
    "will_delay_interval": (PROPERTY_WILL_DELAY, SHAPE_U32),
    "request_response_information": (PROPERTY_REQUEST_RESPONSE_INFO, SHAPE_BOOL),
    "response_information": (PROPERTY_RESPONSE_INFO, SHAPE_TEXT),
    "server_reference": (PROPERTY_SERVER_REFERENCE, SHAPE_TEXT),
    "reason_string": (PROPERTY_REASON_STRING, SHAPE_TEXT),
    "receive_maximum": (PROPERTY_RECEIVE_MAXIMUM, SHAPE_U16),
    "topic_alias_maximum": (PROPERTY_TOPIC_ALIAS_MAXIMUM, SHAPE_U16),
    "topic_alias": (PROPERTY_TOPIC_ALIAS, SHAPE_U16),
    "maximum_qos": (PROPERTY_MAXIMUM_QOS, SHAPE_QOS),
    "retain_available": (PROPERTY_RETAIN_AVAILABLE, SHAPE_BOOL),
    "user_properties": (PROPERTY_USER_PROPERTY, SHAPE_PAIRS),
    "maximum_packet_size": (PROPERTY_MAXIMUM_PACKET_SIZE, SHAPE_U32),
    "wildcard_subscription_available": (PROPERTY_WILDCARD_AVAILABLE, SHAPE_BOOL),
    "subscription_identifier_available": (PROPERTY_SUBSCRIPTION_ID_AVAILABLE, SHAPE_BOOL),
    "shared_subscription_available": (PROPERTY_SHARED_AVAILABLE, SHAPE_BOOL),
}


cdef bytes property_bytes(uint8_t identifier, Shape shape, object value, str name):
    """One property on the wire, checked by the decoder's own rules."""
    cdef uint8_t[5] head
    cdef uint8_t *out = put_u8(head, identifier)
    cdef bytes data = b""
    cdef bytes whole
    cdef Py_ssize_t size
    cdef int status
    try:
        if shape == SHAPE_TEXT:
            data = (<str?> value).encode()
        elif shape == SHAPE_BINARY:
            data = to_bytes(value)
        elif shape == SHAPE_U32:
            out = put_u32(out, <uint32_t> value)
        elif shape == SHAPE_U16:
            out = put_u16(out, <uint16_t> value)
        elif shape == SHAPE_VARINTS:
            if not 0 < value <= VARINT_MAXIMUM:
                raise OverflowError
            out = put_varint(out, <uint32_t> value)
        else:
            out = put_u8(out, <uint8_t> value)
    except OverflowError:
        raise EncodeError(f"{name} {value}: out of range") from None
    except UnicodeEncodeError as error:
        raise EncodeError(f"{name} holds a surrogate: {error}", RC_MALFORMED_PACKET) from None
    if shape == SHAPE_TEXT or shape == SHAPE_BINARY:
        size = len(data)
        if size > STRING_MAXIMUM:
            raise EncodeError(f"{name} of {size} bytes; at most 65535 can be encoded")
        out = put_u16(out, <uint16_t> size)
    whole = (<const char *> head)[:out - head] + data
    status = property_check(bytes_span(whole))
    if status < 0:
        raise EncodeError(f"{name} {value!r}: not a valid value", -status)
    return whole


cdef bytes pair_bytes(object pair):
    cdef bytes name, value
    cdef bytes whole
    try:
        first, second = pair
        name = (<str?> first).encode()
        value = (<str?> second).encode()
    except UnicodeEncodeError as error:
        raise EncodeError(f"user property holds a surrogate: {error}", RC_MALFORMED_PACKET) from None
    if len(name) > STRING_MAXIMUM or len(value) > STRING_MAXIMUM:
        raise EncodeError("user property of over 65535 bytes")
    whole = b"\x26" + len(name).to_bytes(2, "big") + name + len(value).to_bytes(2, "big") + value
    if property_check(bytes_span(whole)) < 0:
        raise EncodeError(f"user property {pair!r} holds U+0000", RC_MALFORMED_PACKET)
    return whole


cdef object property_value(Shape shape, Span whole):
    """The value of one property that was checked; whole begins with its identifier."""
    cdef Cursor cursor
    cdef Span span = span_make(NULL, 0)
    cdef Span second = span
    cdef uint32_t number = 0
    cdef uint16_t short = 0
    cursor.p = whole.p + 1
    cursor.end = whole.p + whole.n
    if shape == SHAPE_TEXT:
        take_binary(&cursor, &span)
        return span_text(span)
    elif shape == SHAPE_BINARY:
        take_binary(&cursor, &span)
        return span_bytes(span)
    elif shape == SHAPE_U32:
        take_u32(&cursor, &number)
        return number
    elif shape == SHAPE_U16:
        take_u16(&cursor, &short)
        return short
    elif shape == SHAPE_VARINTS:
        take_varint(&cursor, &number)
        return number
    elif shape == SHAPE_PAIRS:
        take_binary(&cursor, &span)
        take_binary(&cursor, &second)
        return span_text(span), span_text(second)
    elif shape == SHAPE_BOOL:
        return cursor.p[0] != 0
    elif shape == SHAPE_QOS:
        return QOS[cursor.p[0]]
    return cursor.p[0]


cdef class Properties:
    """Properties of an MQTT 5.0 packet, section 2.2.2, by keyword. What is not given, or is None, does not stand in the packet.

    Immutable. Two are equal when they hold the same values, in whatever order they came. Raises EncodeError for a value out of range.
    """
    cdef bytes section                      # as on the wire, without its length
    cdef uint32_t present                   # PropertyBit

    def __init__(self, **values):
        cdef list parts = []
        cdef uint8_t identifier
        cdef Shape shape
        self.present = 0
        for name, value in values.items():
            if value is None:
                continue
            entry = PROPERTIES.get(name)
            if entry is None:
                raise TypeError(f"{name}: no such property")
            identifier = entry[0]
            shape = <Shape> <int> entry[1]
            if shape == SHAPE_PAIRS:
                made = [pair_bytes(pair) for pair in value]
            elif shape == SHAPE_VARINTS:
                made = [property_bytes(identifier, shape, number, name) for number in value]
            else:
                made = [property_bytes(identifier, shape, value, name)]
            if made:
                parts += made
                self.present |= property_bit(identifier)
        self.section = b"".join(parts)

    cdef object find(self, uint8_t identifier, Shape shape):
        cdef Cursor cursor
        cdef Span whole
        cdef uint8_t found
        cdef bint many = shape == SHAPE_PAIRS or shape == SHAPE_VARINTS
        cdef list values
        if self.present & property_bit(identifier) == 0:
            return () if many else None
        cursor.p = <const uint8_t *> PyBytes_AS_STRING(self.section)
        cursor.end = cursor.p + PyBytes_GET_SIZE(self.section)
        values = []
        while property_next(&cursor, &found, &whole):
            if found == identifier:
                if not many:
                    return property_value(shape, whole)
                values.append(property_value(shape, whole))
        return tuple(values)

    cdef object named(self, str name):
        cdef tuple entry = PROPERTIES[name]
        return self.find(entry[0], <Shape> <int> entry[1])

    @property
    def payload_format_indicator(self):
        """0: bytes, 1: UTF-8 text, section 3.3.2.3.2."""
        return self.named("payload_format_indicator")

    @property
    def message_expiry_interval(self):
        """Seconds, section 3.3.2.3.3."""
        return self.named("message_expiry_interval")

    @property
    def content_type(self):
        """What the application says about the payload, section 3.3.2.3.9."""
        return self.named("content_type")

    @property
    def response_topic(self):
        """Topic name for a response, section 3.3.2.3.5."""
        return self.named("response_topic")

    @property
    def correlation_data(self):
        """Which request a response belongs to, section 3.3.2.3.6."""
        return self.named("correlation_data")

    @property
    def subscription_identifiers(self):
        """1 to 268435455, as many as subscriptions matched; one at most in SUBSCRIBE, sections 3.3.2.3.8, 3.8.2.1.2."""
        return self.named("subscription_identifiers")

    @property
    def session_expiry_interval(self):
        """Seconds; 0xFFFFFFFF: never, section 3.1.2.11.2."""
        return self.named("session_expiry_interval")

    @property
    def assigned_client_identifier(self):
        """The client id that the server chose, section 3.2.2.3.7."""
        return self.named("assigned_client_identifier")

    @property
    def server_keep_alive(self):
        """Seconds that count instead of the client's, section 3.2.2.3.14."""
        return self.named("server_keep_alive")

    @property
    def authentication_method(self):
        """Name of the method of an enhanced authentication, section 3.1.2.11.9."""
        return self.named("authentication_method")

    @property
    def authentication_data(self):
        """Bytes of that method, section 3.1.2.11.10."""
        return self.named("authentication_data")

    @property
    def request_problem_information(self):
        """False: no reason strings and user properties on acknowledgements, section 3.1.2.11.7."""
        return self.named("request_problem_information")

    @property
    def will_delay_interval(self):
        """Seconds, section 3.1.3.2.2."""
        return self.named("will_delay_interval")

    @property
    def request_response_information(self):
        """True: CONNACK may hold response information, section 3.1.2.11.6."""
        return self.named("request_response_information")

    @property
    def response_information(self):
        """What response topics are made of, section 3.2.2.3.15."""
        return self.named("response_information")

    @property
    def server_reference(self):
        """Other servers to use, section 3.2.2.3.16."""
        return self.named("server_reference")

    @property
    def reason_string(self):
        """For people to read, section 3.2.2.3.9."""
        return self.named("reason_string")

    @property
    def receive_maximum(self):
        """QoS 1 and 2 messages in flight, 1 to 65535, section 3.1.2.11.3."""
        return self.named("receive_maximum")

    @property
    def topic_alias_maximum(self):
        """Highest topic alias that is accepted, section 3.1.2.11.5."""
        return self.named("topic_alias_maximum")

    @property
    def topic_alias(self):
        """1 to 65535, stands for the topic, section 3.3.2.3.4."""
        return self.named("topic_alias")

    @property
    def maximum_qos(self):
        """QoS 0 or 1, section 3.2.2.3.4."""
        return self.named("maximum_qos")

    @property
    def retain_available(self):
        """Section 3.2.2.3.5."""
        return self.named("retain_available")

    @property
    def user_properties(self):
        """Pairs of name and value in order, names may repeat, section 3.3.2.3.7."""
        return self.named("user_properties")

    @property
    def maximum_packet_size(self):
        """Bytes of a whole packet, section 3.1.2.11.4."""
        return self.named("maximum_packet_size")

    @property
    def wildcard_subscription_available(self):
        """Section 3.2.2.3.11."""
        return self.named("wildcard_subscription_available")

    @property
    def subscription_identifier_available(self):
        """Section 3.2.2.3.12."""
        return self.named("subscription_identifier_available")

    @property
    def shared_subscription_available(self):
        """Section 3.2.2.3.13."""
        return self.named("shared_subscription_available")

    def as_dict(self):
        """The properties that are present: name to value."""
        return {
            name: self.find(identifier, <Shape> <int> shape) for name, (identifier, shape) in PROPERTIES.items()
            if self.present & property_bit(identifier)
        }

    def __bool__(self):
        return self.present != 0

    def __eq__(self, other):
        if type(other) is not Properties:
            return NotImplemented
        if self.present != (<Properties> other).present:
            return False
        return self.section == (<Properties> other).section or self.as_dict() == other.as_dict()

    def __hash__(self):
        return hash(tuple(self.as_dict().items()))

    def __repr__(self):
        return f"Properties({', '.join(f'{name}={value!r}' for name, value in self.as_dict().items())})"

    def __reduce__(self):
        return _properties_from, (self.as_dict(),)


def _properties_from(values):
    return Properties(**values)


cdef Properties EMPTY = Properties()


cdef Properties properties_made(bytes section, uint32_t present):
    cdef Properties properties
    if present == 0:
        return EMPTY
    properties = Properties.__new__(Properties)
    properties.section = section
    properties.present = present
    return properties


cdef str names_of(uint32_t bits):
    return ", ".join([name for name, (identifier, shape) in PROPERTIES.items() if bits & property_bit(identifier)])


cdef int properties_fit(Properties properties, uint8_t place) except -1:
    """Refuses properties that do not stand in packets of this kind (place: PacketType or PLACE_WILL)."""
    cdef uint32_t extra = properties.present & ~props_allowed(place)
    if extra:
        raise EncodeError(f"{names_of(extra)}: not in {PacketType(place).name if place else 'a will'}")
    if place == SUBSCRIBE and properties.present & HAS_SUBSCRIPTION_ID and len(properties.subscription_identifiers) > 1:
        raise EncodeError("subscription_identifiers: at most one in SUBSCRIBE")
    return 0


# --------------------------------------------------------------------------------------------------------------------------------- packets

# Shown even if zero or empty: there that is not the default, or it is what the packet is about.
cdef set ALWAYS_SHOWN = {"topic", "topic_filter", "client_id", "clean_start", "keep_alive", "username", "password"}


cdef object shown(str name, object value):
    return "***" if name == "password" else repr(value)


cdef class Value:
    """Equality, hash, repr and copies with changes, for all that is made of named values.

    Subclasses with a `__cinit__` set there what must never be None, also in an object whose `__init__` was not called.
    """

    cdef tuple names(self):
        return ()

    cdef tuple values(self):
        return ()

    def replace(self, **changes):
        """A copy with some values changed."""
        return type(self)(**{**dict(zip(self.names(), self.values())), **changes})

    def __eq__(self, other):
        if type(self) is not type(other):
            return NotImplemented
        return self.values() == (<Value> other).values()

    def __hash__(self):
        return hash((type(self), self.values()))

    def __repr__(self):
        said = [
            f"{name}={shown(name, value)}" for name, value in zip(self.names(), self.values())
            if value or (value is not None and name in ALWAYS_SHOWN)
        ]
        return f"{type(self).__name__}({', '.join(said)})"

    def __reduce__(self):
        return _value_from, (type(self), self.names(), self.values())


def _value_from(kind, names, values):
    return kind(**dict(zip(names, values)))


cdef class Packet(Value):
    """Base of all packets. `properties` is empty where none were sent, and for versions without them."""
    cdef uint8_t kind                       # PacketType
    cdef uint32_t present                   # PropertyBit
    cdef bytes section                      # the properties on the wire, without their length; None: none

    def __init__(self):
        raise TypeError("Packet is abstract")

    cdef bytes write(self, const Dialect *dialect):
        raise NotImplementedError

    cdef inline int properties_take(self, uint8_t kind, Properties properties) except -1:
        """Part of every __init__; also sets the kind."""
        self.kind = kind
        self.present = 0
        self.section = None
        if properties is not None and properties.present:
            properties_fit(properties, kind)
            self.present = properties.present
            self.section = properties.section
        return 0

    cdef inline int properties_read(self, uint8_t kind, const Props *props) except -1:
        """The same for a decoded packet."""
        self.kind = kind
        self.present = props.present
        if props.present:
            self.section = span_bytes(props.raw)
        return 0

    cdef inline void raw_begin(self, Raw *raw) noexcept:
        memset(raw, 0, sizeof(Raw))
        raw.type = self.kind
        raw.props.raw = bytes_span(self.section)

    @property
    def packet_type(self):
        return PacketType(self.kind)

    @property
    def properties(self):
        return properties_made(self.section, self.present)


cdef bytes raw_write(const Dialect *dialect, const Raw *raw):
    cdef uint32_t size = packet_size(dialect, raw)
    cdef bytes out
    if size == 0:
        raise EncodeError(f"{PacketType(raw.type).name} cannot be encoded in MQTT version {dialect.level}")
    out = PyBytes_FromStringAndSize(NULL, size)
    encode_packet(dialect, raw, <uint8_t *> PyBytes_AS_STRING(out))
    return out


cdef class Will(Value):
    """The message that the server publishes when the client is lost, section 3.1.2.5."""
    cdef readonly str topic
    cdef readonly bytes payload
    cdef uint8_t _qos
    cdef readonly bint retain
    cdef readonly Properties properties

    def __cinit__(self):
        self.topic = ""
        self.payload = b""
        self.properties = EMPTY

    def __init__(self, str topic not None, object payload=b"", *, int qos=0, bint retain=False, Properties properties=None):
        topic_name(topic, False)
        self.topic = topic
        self.payload = binary(payload, "will payload")
        self._qos = qos_for(qos)
        self.retain = retain
        self.properties = EMPTY if properties is None else properties
        properties_fit(self.properties, PLACE_WILL)

    @property
    def qos(self):
        return QOS[self._qos]

    cdef tuple names(self):
        return "topic", "payload", "qos", "retain", "properties"

    cdef tuple values(self):
        return self.topic, self.payload, self.qos, self.retain, self.properties


cdef class Connect(Packet):
    """CONNECT, section 3.1. The protocol version is not part of it: `encode` is told, `Decoder.version` tells.

    `bridge` is the high bit of the protocol level that bridges set in 3.1 and 3.1.1. `keep_alive` is in seconds.
    """
    cdef readonly str client_id
    cdef readonly bint clean_start
    cdef readonly uint16_t keep_alive
    cdef readonly str username
    cdef readonly bytes password
    cdef readonly Will will
    cdef readonly bint bridge

    def __cinit__(self):
        self.client_id = ""

    def __init__(
        self, str client_id not None="", *, bint clean_start=True, int keep_alive=60, str username=None, object password=None,
        Will will=None, bint bridge=False, Properties properties=None,
    ):
        self.properties_take(CONNECT, properties)
        if keep_alive < 0 or keep_alive > 65535:
            raise EncodeError(f"keep_alive {keep_alive}: must be 0 to 65535 seconds")
        plain_text(client_id, "client_id")
        if username is not None:
            plain_text(username, "username")
        self.client_id = client_id
        self.clean_start = clean_start
        self.keep_alive = <uint16_t> keep_alive
        self.username = username
        self.password = None if password is None else binary(password.encode() if type(password) is str else password, "password")
        self.will = will
        self.bridge = bridge

    cdef tuple names(self):
        return "client_id", "clean_start", "keep_alive", "username", "password", "will", "bridge", "properties"

    cdef tuple values(self):
        return (
            self.client_id, self.clean_start, self.keep_alive, self.username, self.password, self.will, self.bridge, self.properties,
        )

    cdef bytes write(self, const Dialect *dialect):
        cdef Raw raw
        cdef Will will = self.will
        self.raw_begin(&raw)
        raw.clean_start = self.clean_start
        raw.keep_alive = self.keep_alive
        raw.bridge = self.bridge
        text_span(self.client_id, &raw.client_id)
        if self.username is not None:
            raw.has_username = True
            text_span(self.username, &raw.username)
        if self.password is not None:
            raw.has_password = True
            raw.password = bytes_span(self.password)
        if will is not None:
            raw.has_will = True
            raw.will_qos = will._qos
            raw.will_retain = will.retain
            text_span(will.topic, &raw.will_topic)
            raw.will_payload = bytes_span(will.payload)
            raw.will_props.raw = bytes_span(will.properties.section)
        return raw_write(dialect, &raw)


cdef class Connack(Packet):
    """CONNACK, section 3.2."""
    cdef uint8_t reason
    cdef readonly bint session_present

    def __init__(self, reason_code=0, *, bint session_present=False, Properties properties=None):
        self.properties_take(CONNACK, properties)
        self.reason = reason_for(CONNACK, reason_code)
        if session_present and self.reason:
            raise EncodeError("session_present with a refusal [MQTT-3.2.2-6]")
        self.session_present = session_present

    @property
    def reason_code(self):
        return reason_of(self.reason)

    cdef tuple names(self):
        return "reason_code", "session_present", "properties"

    cdef tuple values(self):
        return self.reason_code, self.session_present, self.properties

    cdef bytes write(self, const Dialect *dialect):
        cdef Raw raw
        if dialect.connack_codes[self.reason] == CODE_NONE:
            raise EncodeError(f"{self.reason_code.name} has no return code in MQTT version {dialect.level}", self.reason)
        self.raw_begin(&raw)
        raw.reason = self.reason
        raw.session_present = self.session_present
        return raw_write(dialect, &raw)


cdef class Publish(Packet):
    """PUBLISH, section 3.3. `packet_id` is 0 for QoS 0, and must be set before a packet of QoS 1 or 2 is encoded.

    `payload` is bytes, or a memoryview from a Decoder with payload_views.
    """
    cdef readonly str topic
    cdef bytes holder                       # the payload, or bytes that it lies in
    cdef uint32_t start
    cdef uint32_t size
    cdef bint view
    cdef uint8_t _qos
    cdef readonly bint retain
    cdef readonly bint dup
    cdef readonly uint16_t packet_id

    def __cinit__(self):
        self.topic = ""
        self.holder = b""

    def __init__(
        self, str topic not None, object payload=b"", *, int qos=0, bint retain=False, bint dup=False, int packet_id=0,
        Properties properties=None,
    ):
        self.properties_take(PUBLISH, properties)
        topic_name(topic, self.present & HAS_TOPIC_ALIAS != 0)
        if packet_id < 0 or packet_id > 65535:
            raise EncodeError(f"packet_id {packet_id}: must be 0 to 65535")
        self._qos = qos_for(qos)
        if self._qos == 0 and (packet_id or dup):
            raise EncodeError("packet_id and dup only with QoS 1 and 2 [MQTT-2.2.1-2, MQTT-3.3.1-2]")
        self.topic = topic
        self.holder = to_bytes(payload)
        if PyBytes_GET_SIZE(self.holder) > VARINT_MAXIMUM:
            raise EncodeError("payload of over 268435455 bytes", RC_PACKET_TOO_LARGE)
        self.start = 0
        self.size = <uint32_t> PyBytes_GET_SIZE(self.holder)
        self.view = False
        self.retain = retain
        self.dup = dup
        self.packet_id = <uint16_t> packet_id

    @property
    def qos(self):
        return QOS[self._qos]

    @property
    def payload(self):
        if self.view:
            return memoryview(self.holder)[self.start:self.start + self.size]
        return self.holder

    cdef tuple names(self):
        return "topic", "payload", "qos", "retain", "dup", "packet_id", "properties"

    cdef tuple values(self):
        cdef object payload = self.holder
        if self.view:
            payload = self.holder[self.start:self.start + self.size]
        return self.topic, payload, self.qos, self.retain, self.dup, self.packet_id, self.properties

    cdef bytes write(self, const Dialect *dialect):
        cdef PublishParts parts
        cdef uint32_t size
        cdef bytes out
        if unlikely(self._qos != 0 and self.packet_id == 0):
            raise EncodeError("packet_id is 0, QoS 1 and 2 need one [MQTT-2.2.1-3]")
        text_span(self.topic, &parts.topic)
        if unlikely(parts.topic.n == 0 and not dialect.properties):
            raise EncodeError("an alias instead of a topic needs MQTT 5.0")
        parts.qos = self._qos
        parts.dup = self.dup
        parts.retain = self.retain
        parts.packet_id = self.packet_id
        parts.has_message_expiry = False
        parts.topic_alias = 0
        parts.subscription_id_count = 0
        parts.properties = bytes_span(self.section)
        parts.payload = span_make(PyBytes_AS_STRING(self.holder) + self.start, self.size)
        size = publish_size(dialect, &parts)
        if unlikely(size == 0):
            raise EncodeError("PUBLISH of over 268435455 bytes", RC_PACKET_TOO_LARGE)
        out = PyBytes_FromStringAndSize(NULL, size)
        encode_publish(dialect, &parts, <uint8_t *> PyBytes_AS_STRING(out))
        return out


cdef class Received:
    """A PUBLISH that has arrived, under the topic that it is about: its own may be empty where an alias stood for it."""
    cdef public str topic
    cdef readonly Publish packet
    cdef public object receipt

    def __cinit__(self, str topic not None, Publish packet not None, object receipt=None):
        self.topic = topic
        self.packet = packet
        self.receipt = receipt

    @property
    def payload(self):
        return self.packet.holder if not self.packet.view else self.packet.payload

    @property
    def qos(self):
        return QOS[self.packet._qos]

    @property
    def retain(self):
        return self.packet.retain

    @property
    def dup(self):
        return self.packet.dup

    @property
    def properties(self):
        return properties_made(self.packet.section, self.packet.present)

    def __reduce__(self):
        return type(self), (self.topic, self.packet, self.receipt)


cdef class Ack(Packet):
    """What PUBACK, PUBREC, PUBREL and PUBCOMP have in common."""
    cdef readonly uint16_t packet_id
    cdef uint8_t reason

    cdef inline int ack_take(self, uint8_t kind, int packet_id, object reason_code, Properties properties) except -1:
        self.properties_take(kind, properties)
        self.packet_id = packet_id_for(packet_id)
        self.reason = reason_for(kind, reason_code)
        return 0

    @property
    def reason_code(self):
        return reason_of(self.reason)

    cdef tuple names(self):
        return "packet_id", "reason_code", "properties"

    cdef tuple values(self):
        return self.packet_id, self.reason_code, self.properties

    cdef bytes write(self, const Dialect *dialect):
        cdef Raw raw
        cdef uint8_t[8] room
        cdef uint32_t size
        if self.present == 0:
            size = encode_ack(dialect, self.kind, self.packet_id, self.reason, room)
            return PyBytes_FromStringAndSize(<const char *> room, size)
        self.raw_begin(&raw)
        raw.packet_id = self.packet_id
        raw.reason = self.reason
        return raw_write(dialect, &raw)


cdef class Puback(Ack):
    """PUBACK, section 3.4: answers a PUBLISH of QoS 1."""

    def __init__(self, int packet_id, reason_code=0, *, Properties properties=None):
        self.ack_take(PUBACK, packet_id, reason_code, properties)


cdef class Pubrec(Ack):
    """PUBREC, section 3.5: first answer to a PUBLISH of QoS 2."""

    def __init__(self, int packet_id, reason_code=0, *, Properties properties=None):
        self.ack_take(PUBREC, packet_id, reason_code, properties)


cdef class Pubrel(Ack):
    """PUBREL, section 3.6: answers PUBREC."""

    def __init__(self, int packet_id, reason_code=0, *, Properties properties=None):
        self.ack_take(PUBREL, packet_id, reason_code, properties)


cdef class Pubcomp(Ack):
    """PUBCOMP, section 3.7: answers PUBREL."""

    def __init__(self, int packet_id, reason_code=0, *, Properties properties=None):
        self.ack_take(PUBCOMP, packet_id, reason_code, properties)


cdef class Subscription(Value):
    """One filter of a SUBSCRIBE with its options, section 3.8.3.1. Only `qos` is sent before MQTT 5.0."""
    cdef readonly str topic_filter
    cdef uint8_t options

    def __cinit__(self):
        self.topic_filter = ""

    def __init__(
        self, str topic_filter not None, qos=0, *, bint no_local=False, bint retain_as_published=False, retain_handling=0,
    ):
        cdef Span span
        cdef int handling = retain_handling
        topic_filter_span(topic_filter, &span)
        if handling < 0 or handling > 2:
            raise EncodeError(f"retain_handling {handling}: must be 0, 1 or 2")
        self.topic_filter = topic_filter
        self.options = qos_for(qos) | (handling << 4)
        if no_local:
            if topic_filter.startswith("$share/"):
                raise EncodeError("no_local on a shared subscription [MQTT-3.8.3-4]")
            self.options |= OPT_NO_LOCAL
        if retain_as_published:
            self.options |= OPT_RETAIN_AS_PUBLISHED

    @property
    def qos(self):
        return QOS[self.options & OPT_QOS_MASK]

    @property
    def no_local(self):
        return self.options & OPT_NO_LOCAL != 0

    @property
    def retain_as_published(self):
        return self.options & OPT_RETAIN_AS_PUBLISHED != 0

    @property
    def retain_handling(self):
        return RETAIN_HANDLING[self.options >> 4]

    cdef tuple names(self):
        return "topic_filter", "qos", "no_local", "retain_as_published", "retain_handling"

    cdef tuple values(self):
        return self.topic_filter, self.qos, self.no_local, self.retain_as_published, self.retain_handling


cdef class Filters(Packet):
    """What SUBSCRIBE and UNSUBSCRIBE have in common."""
    cdef readonly uint16_t packet_id
    cdef bytes list                         # as on the wire

    def __cinit__(self):
        self.list = b""

    cdef inline int filters_take(self, uint8_t kind, int packet_id, list parts, Properties properties) except -1:
        self.properties_take(kind, properties)
        self.packet_id = packet_id_for(packet_id)
        if not parts:
            raise EncodeError("at least one topic filter [MQTT-3.8.3-2, MQTT-3.10.3-2]")
        self.list = b"".join(parts)
        return 0

    cdef list filters_made(self):
        cdef Span rest = bytes_span(self.list)
        cdef Filter one
        cdef Subscription subscription
        cdef list made = []
        while filter_next(dialect_for(5), self.kind, &rest, &one):
            if self.kind == UNSUBSCRIBE:
                made.append(span_text(one.text))
            else:
                subscription = Subscription.__new__(Subscription)
                subscription.topic_filter = span_text(one.text)
                subscription.options = one.options
                made.append(subscription)
        return made


cdef bytes filter_bytes(str topic_filter):
    cdef Span span
    cdef uint8_t[2] head
    topic_filter_span(topic_filter, &span)
    put_u16(head, <uint16_t> span.n)
    return (<const char *> head)[:2] + span_bytes(span)


cdef bytes options_cut(bytes filters):
    """A copy of a SUBSCRIBE's list in which the option bytes keep the QoS only."""
    cdef bytes copy = PyBytes_FromStringAndSize(PyBytes_AS_STRING(filters), PyBytes_GET_SIZE(filters))
    cdef Span rest = bytes_span(copy)
    cdef Filter one
    while filter_next(dialect_for(5), SUBSCRIBE, &rest, &one):
        (<uint8_t *> one.text.p)[one.text.n] &= OPT_QOS_MASK
    return copy


cdef class Subscribe(Filters):
    """SUBSCRIBE, section 3.8."""

    def __init__(self, int packet_id, subscriptions, *, Properties properties=None):
        cdef list parts = []
        cdef Subscription subscription
        for subscription in subscriptions:
            parts.append(filter_bytes(subscription.topic_filter) + bytes((subscription.options,)))
        self.filters_take(SUBSCRIBE, packet_id, parts, properties)

    @property
    def subscriptions(self):
        return tuple(self.filters_made())

    cdef tuple names(self):
        return "packet_id", "subscriptions", "properties"

    cdef tuple values(self):
        return self.packet_id, self.subscriptions, self.properties

    cdef bytes write(self, const Dialect *dialect):
        cdef Raw raw
        cdef bytes qos_only
        self.raw_begin(&raw)
        raw.packet_id = self.packet_id
        raw.list = bytes_span(self.list)
        if not dialect.properties:
            qos_only = options_cut(self.list)
            raw.list = bytes_span(qos_only)
        return raw_write(dialect, &raw)


cdef class Unsubscribe(Filters):
    """UNSUBSCRIBE, section 3.10."""

    def __init__(self, int packet_id, topic_filters, *, Properties properties=None):
        self.filters_take(UNSUBSCRIBE, packet_id, [filter_bytes(one) for one in topic_filters], properties)

    @property
    def topic_filters(self):
        return tuple(self.filters_made())

    cdef tuple names(self):
        return "packet_id", "topic_filters", "properties"

    cdef tuple values(self):
        return self.packet_id, self.topic_filters, self.properties

    cdef bytes write(self, const Dialect *dialect):
        cdef Raw raw
        self.raw_begin(&raw)
        raw.packet_id = self.packet_id
        raw.list = bytes_span(self.list)
        return raw_write(dialect, &raw)


cdef class Verdicts(Packet):
    """What SUBACK and UNSUBACK have in common: one reason code for each filter, in order."""
    cdef readonly uint16_t packet_id
    cdef bytes list

    def __cinit__(self):
        self.list = b""

    cdef inline int verdicts_take(self, uint8_t kind, int packet_id, object reason_codes, Properties properties) except -1:
        self.properties_take(kind, properties)
        self.packet_id = packet_id_for(packet_id)
        self.list = bytes([reason_for(kind, code) for code in reason_codes])
        return 0

    @property
    def reason_codes(self):
        return tuple([REASONS[code] for code in self.list])

    cdef tuple names(self):
        return "packet_id", "reason_codes", "properties"

    cdef tuple values(self):
        return self.packet_id, self.reason_codes, self.properties

    cdef bytes write(self, const Dialect *dialect):
        cdef Raw raw
        if PyBytes_GET_SIZE(self.list) == 0 and (self.kind == SUBACK or dialect.unsuback_reasons):
            raise EncodeError("at least one reason code, one for each filter")
        self.raw_begin(&raw)
        raw.packet_id = self.packet_id
        raw.list = bytes_span(self.list)
        return raw_write(dialect, &raw)


cdef class Suback(Verdicts):
    """SUBACK, section 3.9. Every failure is 0x80 in 3.1.1; 3.1 can only grant, there it becomes QoS 0."""

    def __init__(self, int packet_id, reason_codes, *, Properties properties=None):
        self.verdicts_take(SUBACK, packet_id, reason_codes, properties)


cdef class Unsuback(Verdicts):
    """UNSUBACK, section 3.11. The reason codes are sent by MQTT 5.0 only."""

    def __init__(self, int packet_id, reason_codes=(), *, Properties properties=None):
        self.verdicts_take(UNSUBACK, packet_id, reason_codes, properties)


cdef class Pingreq(Packet):
    """PINGREQ, section 3.12."""

    def __init__(self):
        self.kind = PINGREQ

    cdef bytes write(self, const Dialect *dialect):
        return b"\xC0\x00"


cdef class Pingresp(Packet):
    """PINGRESP, section 3.13."""

    def __init__(self):
        self.kind = PINGRESP

    cdef bytes write(self, const Dialect *dialect):
        return b"\xD0\x00"


cdef class Farewell(Packet):
    """What DISCONNECT and AUTH have in common."""
    cdef uint8_t reason

    @property
    def reason_code(self):
        return reason_of(self.reason)

    cdef tuple names(self):
        return "reason_code", "properties"

    cdef tuple values(self):
        return self.reason_code, self.properties

    cdef bytes write(self, const Dialect *dialect):
        cdef Raw raw
        self.raw_begin(&raw)
        raw.reason = self.reason
        return raw_write(dialect, &raw)


cdef class Disconnect(Farewell):
    """DISCONNECT, section 3.14. Reason and properties are sent by MQTT 5.0 only."""

    def __init__(self, reason_code=0, *, Properties properties=None):
        self.properties_take(DISCONNECT, properties)
        self.reason = reason_for(DISCONNECT, reason_code)


cdef class Auth(Farewell):
    """AUTH, section 3.15; MQTT 5.0 only. Needs an authentication method unless it is an empty success."""

    def __init__(self, reason_code=0, *, Properties properties=None):
        self.properties_take(AUTH, properties)
        self.reason = reason_for(AUTH, reason_code)
        if self.present & HAS_AUTH_METHOD == 0 and (self.reason or self.present):
            raise EncodeError("authentication_method is missing")


# -------------------------------------------------------------------------------------------------------------------- from native packets

cdef Will will_made(const Raw *raw):
    cdef Will will = Will.__new__(Will)
    will.topic = span_text(raw.will_topic)
    will.payload = span_bytes(raw.will_payload)
    will._qos = raw.will_qos
    will.retain = raw.will_retain
    will.properties = properties_made(
        span_bytes(raw.will_props.raw) if raw.will_props.present else None, raw.will_props.present
    )
    return will


cdef Connect connect_made(const Raw *raw):
    cdef Connect packet = Connect.__new__(Connect)
    packet.client_id = span_text(raw.client_id)
    packet.clean_start = raw.clean_start
    packet.keep_alive = raw.keep_alive
    packet.bridge = raw.bridge
    if raw.has_username:
        packet.username = span_text(raw.username)
    if raw.has_password:
        packet.password = span_bytes(raw.password)
    if raw.has_will:
        packet.will = will_made(raw)
    return packet


cdef Packet rare_made(const Raw *raw):
    """Every packet but PUBLISH and its four answers."""
    cdef uint8_t kind = raw.type
    cdef Packet packet
    cdef Connack connack
    cdef Filters filters
    cdef Verdicts verdicts
    cdef Farewell farewell
    if kind == CONNECT:
        packet = connect_made(raw)
    elif kind == CONNACK:
        connack = Connack.__new__(Connack)
        connack.reason = raw.reason
        connack.session_present = raw.session_present
        packet = connack
    elif kind == SUBSCRIBE or kind == UNSUBSCRIBE:
        filters = Subscribe.__new__(Subscribe) if kind == SUBSCRIBE else Unsubscribe.__new__(Unsubscribe)
        filters.packet_id = raw.packet_id
        filters.list = span_bytes(raw.list)
        packet = filters
    elif kind == SUBACK or kind == UNSUBACK:
        verdicts = Suback.__new__(Suback) if kind == SUBACK else Unsuback.__new__(Unsuback)
        verdicts.packet_id = raw.packet_id
        verdicts.list = span_bytes(raw.list)
        packet = verdicts
    elif kind == PINGREQ:
        packet = Pingreq.__new__(Pingreq)
    elif kind == PINGRESP:
        packet = Pingresp.__new__(Pingresp)
    else:
        farewell = Disconnect.__new__(Disconnect) if kind == DISCONNECT else Auth.__new__(Auth)
        farewell.reason = raw.reason
        packet = farewell
    packet.properties_read(kind, &raw.props)
    return packet


cdef Ack ack_made(const Raw *raw):
    cdef uint8_t kind = raw.type
    cdef Ack packet
    if kind == PUBACK:
        packet = Puback.__new__(Puback)
    elif kind == PUBREC:
        packet = Pubrec.__new__(Pubrec)
    elif kind == PUBREL:
        packet = Pubrel.__new__(Pubrel)
    else:
        packet = Pubcomp.__new__(Pubcomp)
    packet.packet_id = raw.packet_id
    packet.reason = raw.reason
    packet.properties_read(kind, &raw.props)
    return packet


cdef class Decoder:
    """Packets out of a stream that comes in any pieces: `for packet in decoder.feed(data)`.

    version: 3 (MQTT 3.1), 4 (3.1.1) or 5; None learns it from the CONNECT that must come first.
    max_packet_size: bytes of a whole packet; a larger one raises PacketTooLargeError as soon as its length is known. Default: the protocol's limit.
    payload_views: payloads are memoryviews into what was fed, which stays in memory as long as they do, instead of bytes.

    Holds no more than the bytes of one incomplete packet that have arrived, and what was fed and not yet iterated. After an error every
    further call raises it again.
    """
    cdef const Dialect *dialect             # NULL: not yet known
    cdef uint32_t limit
    cdef bint views
    cdef uint8_t failed                     # reason code of the error that ended it
    cdef str failure
    cdef bytes chunk                        # owns at..end
    cdef const uint8_t *at
    cdef const uint8_t *end
    cdef bytes pending                      # the part of a packet that came in earlier chunks; written to while only we hold it
    cdef uint32_t pending_bytes
    cdef str topic                          # of the last PUBLISH: the next one's is often the same
    cdef Raw raw

    def __init__(self, version=None, *, max_packet_size=VARINT_MAXIMUM + 5, bint payload_views=False):
        self.dialect = NULL
        if version is not None:
            self.dialect = dialect_of(version)
        if not 2 <= max_packet_size <= VARINT_MAXIMUM + 5:
            raise ValueError(f"max_packet_size {max_packet_size}: must be 2 to {VARINT_MAXIMUM + 5} bytes")
        self.limit = max_packet_size
        self.views = payload_views
        self.failed = 0
        self.chunk = None
        self.at = self.end = NULL
        self.pending = None
        self.pending_bytes = 0
        self.topic = ""

    @property
    def version(self):
        """3, 4 or 5; None while no CONNECT has told it."""
        return None if self.dialect == NULL else self.dialect.level

    @property
    def max_packet_size(self):
        return self.limit

    @property
    def buffered(self):
        """Bytes that were fed and have not come out as packets."""
        return self.pending_bytes + (self.end - self.at)

    def feed(self, data):
        """Adds bytes of the stream (any object with a buffer; only bytes are kept without a copy); returns the decoder itself."""
        cdef bytes chunk = to_bytes(data)
        if unlikely(self.failed):
            raise self.error()
        if unlikely(self.at != self.end):
            chunk = PyBytes_FromStringAndSize(<const char *> self.at, self.end - self.at) + chunk
        self.chunk = chunk
        self.at = <const uint8_t *> PyBytes_AS_STRING(chunk)
        self.end = self.at + PyBytes_GET_SIZE(chunk)
        return self

    def __iter__(self):
        return self

    def __next__(self):
        cdef Packet packet = self.take()
        if packet is None:
            raise StopIteration
        return packet

    def run(self, list messages not None, list acknowledged not None, dict aliases not None, kind not None=Received):
        """Takes packets as long as they are plain, which is nearly always; returns the first other one, None when no whole packet is left.

        A PUBLISH of QoS 0 without properties, or with no other than an alias that `aliases` (number to topic) knows and that stands for its
        topic, becomes a `kind` (a class with Received's signature) in `messages`. Of a PUBACK without properties `acknowledged` gets its
        packet identifier, plus 0x10000 times its reason code.
        """
        cdef Packet packet
        cdef Publish publish
        cdef str topic
        while True:
            packet = self.take()
            if packet is None:
                return packet
            if packet.kind == PUBLISH:
                publish = <Publish> packet
                topic = publish.topic
                if packet.present == HAS_TOPIC_ALIAS and PyUnicode_GET_LENGTH(topic) == 0:
                    topic = aliases.get(self.raw.props.topic_alias)
                elif packet.present or PyUnicode_GET_LENGTH(topic) == 0:
                    return packet
                if publish._qos or topic is None:
                    return packet
                messages.append(kind(topic, publish))
            elif packet.present:
                return packet
            elif packet.kind == PUBACK:
                acknowledged.append((<uint32_t> (<Ack> packet).reason << 16) | (<Ack> packet).packet_id)
            else:
                return packet

    cdef Packet take(self):
        """The next packet; None when there is no whole one."""
        cdef Frame frame
        cdef int status
        cdef bint split = self.pending_bytes != 0
        cdef bytes holder = self.chunk
        cdef Packet packet
        if unlikely(self.failed):
            raise self.error()
        if unlikely(split):
            status = self.pending_fill(&frame)
            holder = self.pending
        else:
            status = frame_next(self.at, self.end, self.limit, &frame)
        if status == ST_NEED_MORE:
            if not split:
                self.pending_start(frame.total_bytes)
            return None
        if likely(status == ST_OK):
            packet = self.packet_next(&frame, &status, holder)
        if unlikely(status < 0):
            self.fail(status, &frame)
            raise self.error()
        if split:
            self.pending_bytes = 0
            if self.views or PyBytes_GET_SIZE(holder) > 65536:
                self.pending = None
        else:
            self.at = frame.body + frame.body_bytes
        return packet

    cdef Packet packet_next(self, const Frame *frame, int *status, bytes holder):
        cdef Raw *raw = &self.raw
        cdef Publish publish
        if unlikely(self.dialect == NULL or frame.type == CONNECT):
            return self.connect_next(frame, status)
        if frame.type == PUBLISH:
            status[0] = decode_publish(self.dialect, frame, raw)
            if unlikely(status[0] < 0):
                return None
            publish = Publish.__new__(Publish)
            publish.topic = self.topic_text(raw.topic)
            if unlikely(self.views):
                publish.holder = holder
                publish.start = <uint32_t> (raw.payload.p - <const uint8_t *> PyBytes_AS_STRING(holder))
                publish.view = True
            else:
                publish.holder = span_bytes(raw.payload)
            publish.size = raw.payload.n
            publish._qos = raw.qos
            publish.retain = raw.retain
            publish.dup = raw.dup
            publish.packet_id = raw.packet_id
            publish.properties_read(PUBLISH, &raw.props)
            return publish
        if PUBACK <= frame.type <= PUBCOMP:
            status[0] = decode_ack(self.dialect, frame, raw)
            return ack_made(raw) if status[0] == ST_OK else None
        status[0] = decode_packet(self.dialect, frame, raw)
        return rare_made(raw) if status[0] == ST_OK else None

    cdef inline str topic_text(self, Span span):
        """The same object as long as the topic is the same, so that its hash is known and `is` tells."""
        cdef str last = self.topic
        if (
            PyUnicode_IS_COMPACT_ASCII(last) and PyUnicode_GET_LENGTH(last) == <Py_ssize_t> span.n
            and memcmp(PyUnicode_DATA(last), span.p, span.n) == 0
        ):
            return last
        last = self.topic = span_text(span)
        return last

    cdef Packet connect_next(self, const Frame *frame, int *status):
        """CONNECT, or another packet where CONNECT must come first [MQTT-3.1.0-1]."""
        if frame.type != CONNECT:
            status[0] = -RC_PROTOCOL_ERROR
            return None
        status[0] = decode_connect(frame, &self.raw)
        if status[0] < 0:
            return None
        if self.dialect != NULL and self.dialect.level != self.raw.protocol_level:
            status[0] = -RC_UNSUPPORTED_PROTOCOL_VERSION
            return None
        self.dialect = dialect_for(self.raw.protocol_level)
        return rare_made(&self.raw)

    cdef int pending_start(self, uint32_t total_bytes) except -1:
        """Keeps the rest of the chunk, which is the beginning of a packet; lets the chunk go."""
        cdef uint32_t rest = <uint32_t> (self.end - self.at)
        if rest:
            self.pending_reserve(rest, total_bytes)
            memcpy(PyBytes_AS_STRING(self.pending), self.at, rest)
            self.pending_bytes = rest
        self.chunk = None
        self.at = self.end = NULL
        return 0

    cdef int pending_reserve(self, uint32_t need, uint32_t total_bytes) except -1:
        """Room for need bytes. Grows by doubling, but never beyond the packet, so not past twice what has arrived."""
        cdef Py_ssize_t room = 0 if self.pending is None else PyBytes_GET_SIZE(self.pending)
        cdef bytes bigger
        if need <= room:
            return 0
        room = max(need, 2 * self.pending_bytes, 64)
        if total_bytes and room > total_bytes:
            room = total_bytes
        bigger = PyBytes_FromStringAndSize(NULL, room)
        if self.pending_bytes:
            memcpy(PyBytes_AS_STRING(bigger), PyBytes_AS_STRING(self.pending), self.pending_bytes)
        self.pending = bigger
        return 0

    cdef int pending_take(self, uint32_t n, uint32_t total_bytes) except -1:
        self.pending_reserve(self.pending_bytes + n, total_bytes)
        memcpy(PyBytes_AS_STRING(self.pending) + self.pending_bytes, self.at, n)
        self.pending_bytes += n
        self.at += n
        return 0

    cdef int pending_fill(self, Frame *frame) except? -1:
        """Adds to the pending packet what the chunk has of it: the header byte by byte, the body at once."""
        cdef const uint8_t *p
        cdef int status
        cdef uint32_t n
        while True:
            p = <const uint8_t *> PyBytes_AS_STRING(self.pending)
            status = frame_next(p, p + self.pending_bytes, self.limit, frame)
            if status != ST_NEED_MORE:
                return status
            if self.at == self.end:
                self.chunk = None
                self.at = self.end = NULL
                return status
            n = 1
            if frame.total_bytes:
                n = <uint32_t> min(frame.total_bytes - self.pending_bytes, self.end - self.at)
            self.pending_take(n, frame.total_bytes)

    cdef int fail(self, int status, const Frame *frame) except -1:
        cdef uint32_t kind = 0
        self.failed = <uint8_t> -status
        if frame.total_bytes:
            kind = frame.type
        self.failure = PacketType(kind).name if kind else "packet"
        if self.failed == RC_PACKET_TOO_LARGE:
            self.failure += f" of {frame.total_bytes} bytes, over the limit of {self.limit}"
        elif self.failed == RC_UNSUPPORTED_PROTOCOL_VERSION:
            self.failure += f" for protocol level {self.raw.protocol_level}"
        elif self.dialect == NULL and kind != CONNECT:
            self.failure += " where CONNECT must come first"
        self.chunk = self.pending = None
        self.at = self.end = NULL
        self.pending_bytes = 0
        return 0

    cdef object error(self):
        reason = REASONS[self.failed]
        said = reason.name.replace("_", " ").lower()
        return DECODE_ERRORS.get(self.failed, DecodeError)(f"{self.failure}: {said} (0x{self.failed:02X})", reason)


def encode(Packet packet not None, int version=5):
    """The bytes of a packet in version 3 (MQTT 3.1), 4 (3.1.1) or 5.

    Properties, reason codes and subscription options that the version does not have are left out; EncodeError if what is left would not be
    a valid packet (AUTH, a password without user name, a refusal without return code before 5.0; a QoS above 0 without packet_id).
    """
    return packet.write(dialect_of(version))


def publish_bytes(
    str topic not None, bytes payload not None=b"", int qos=0, bint retain=False, bint dup=False, int packet_id=0, Properties properties=None,
    int version=5,
):
    """What `encode(Publish(...), version)` gives, and raises, without a Publish."""
    cdef const Dialect *dialect = dialect_of(version)
    cdef PublishParts parts
    cdef uint32_t size
    cdef bint aliased = False
    cdef bytes out
    parts.properties = span_make(NULL, 0)
    if properties is not None and properties.present:
        properties_fit(properties, PUBLISH)
        parts.properties = bytes_span(properties.section)
        aliased = properties.present & HAS_TOPIC_ALIAS != 0
    topic_name(topic, aliased)
    if unlikely(not 0 <= packet_id <= 65535):
        raise EncodeError(f"packet_id {packet_id}: must be 0 to 65535")
    parts.qos = qos_for(qos)
    if unlikely(qos == 0 and (packet_id or dup)):
        raise EncodeError("packet_id and dup only with QoS 1 and 2 [MQTT-2.2.1-2, MQTT-3.3.1-2]")
    if unlikely(qos != 0 and packet_id == 0):
        raise EncodeError("packet_id is 0, QoS 1 and 2 need one [MQTT-2.2.1-3]")
    if unlikely(PyBytes_GET_SIZE(payload) > VARINT_MAXIMUM):
        raise EncodeError("payload of over 268435455 bytes", RC_PACKET_TOO_LARGE)
    text_span(topic, &parts.topic)
    if unlikely(parts.topic.n == 0 and not dialect.properties):
        raise EncodeError("an alias instead of a topic needs MQTT 5.0")
    parts.dup = dup
    parts.retain = retain
    parts.packet_id = <uint16_t> packet_id
    parts.has_message_expiry = False
    parts.topic_alias = 0
    parts.subscription_id_count = 0
    parts.payload = bytes_span(payload)
    size = publish_size(dialect, &parts)
    if unlikely(size == 0):
        raise EncodeError("PUBLISH of over 268435455 bytes", RC_PACKET_TOO_LARGE)
    out = PyBytes_FromStringAndSize(NULL, size)
    encode_publish(dialect, &parts, <uint8_t *> PyBytes_AS_STRING(out))
    return out


def run_end(list events not None, Py_ssize_t first):
    """Of the messages (Received) of one topic object that nothing is owed for and that begin at `first`: the index behind the last, and the
    bytes of their payloads. `first` itself is one of them."""
    cdef Py_ssize_t at = first
    cdef Py_ssize_t count = len(events)
    cdef Received begin = events[first]
    cdef Py_ssize_t size = 0
    cdef object event
    while at < count:
        event = events[at]
        if type(event) is not type(begin) or (<Received> event).topic is not begin.topic or (<Received> event).receipt is not None:
            break
        size += (<Received> event).packet.size
        at += 1
    return at, size


def topic_matches(str topic_filter not None, str topic not None):
    """Whether a topic name matches a filter, section 4.7; of a shared subscription, the filter after the group's name."""
    cdef Span filter_span, topic_span, group, plain
    text_span(topic_filter, &filter_span)
    text_span(topic, &topic_span)
    if native_topic.share_split(filter_span, &group, &plain) == 1:
        filter_span = plain
    return bool(native_topic.topic_matches(filter_span, topic_span))


def validate_topic(str topic not None):
    """Raises InvalidTopicError if topic is not a topic name: empty, with wildcards or U+0000 [MQTT-4.7.0-1, MQTT-4.7.3-1, MQTT-4.7.3-2]."""
    topic_name(topic, False)


def validate_filter(str topic_filter not None):
    """Raises InvalidTopicError if topic_filter is not a topic filter, shared ones included [MQTT-4.7.1-1, MQTT-4.7.1-2, MQTT-4.8.2-1]."""
    cdef Span span
    topic_filter_span(topic_filter, &span)
