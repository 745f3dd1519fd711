"""One table says which property stands where; one switch reads each value, one list writes them."""

from libc.stdint cimport UINT32_MAX, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memset

from mqttc.base.types cimport ST_OK, Span, span_make, unlikely
from mqttc.proto.packet cimport (
    AUTH, CONNACK, CONNECT, DISCONNECT, PUBACK, PUBCOMP, PUBLISH, PUBREC, PUBREL, SUBACK, SUBSCRIBE, UNSUBACK, UNSUBSCRIBE,
    HAS_ASSIGNED_CLIENT_ID, HAS_AUTH_DATA, HAS_AUTH_METHOD, HAS_CONTENT_TYPE, HAS_CORRELATION_DATA, HAS_MAXIMUM_PACKET_SIZE,
    HAS_MAXIMUM_QOS, HAS_MESSAGE_EXPIRY, HAS_PAYLOAD_FORMAT, HAS_REASON_STRING, HAS_RECEIVE_MAXIMUM, HAS_REQUEST_PROBLEM_INFO,
    HAS_REQUEST_RESPONSE_INFO, HAS_RESPONSE_INFO, HAS_RESPONSE_TOPIC, HAS_RETAIN_AVAILABLE, HAS_SERVER_KEEP_ALIVE,
    HAS_SERVER_REFERENCE, HAS_SESSION_EXPIRY, HAS_SHARED_AVAILABLE, HAS_SUBSCRIPTION_ID, HAS_SUBSCRIPTION_ID_AVAILABLE,
    HAS_TOPIC_ALIAS, HAS_TOPIC_ALIAS_MAXIMUM, HAS_USER_PROPERTY, HAS_WILDCARD_AVAILABLE, HAS_WILL_DELAY,
    RC_MALFORMED_PACKET, RC_PROTOCOL_ERROR, RC_TOPIC_ALIAS_INVALID, Props,
)
from mqttc.proto.wire cimport (
    STRING_MAXIMUM, TEXT_BAD, VARINT_MAXIMUM, Cursor, put_bytes, put_span, put_u8, put_u16, put_u32, put_varint, take_binary,
    take_text, take_u8, take_u16, take_u32, take_varint, text_flags, varint_bytes,
)

# Filled once at import, constant afterwards.
cdef uint32_t[256] BITS                     # identifier -> PropertyBit; 0: unknown
cdef uint32_t[17] ALLOWED        # place -> PropertyBits

cdef enum:
    TRAVELS = HAS_PAYLOAD_FORMAT | HAS_CONTENT_TYPE | HAS_RESPONSE_TOPIC | HAS_CORRELATION_DATA | HAS_USER_PROPERTY
    REASONS = HAS_REASON_STRING | HAS_USER_PROPERTY
    AUTHENTICATION = HAS_AUTH_METHOD | HAS_AUTH_DATA


cdef void _set(uint32_t *table, uint32_t at, uint32_t bits) noexcept nogil:
    table[at] = bits


cdef void _tables_fill() noexcept nogil:
    memset(BITS, 0, sizeof(BITS))
    _set(BITS, PROPERTY_PAYLOAD_FORMAT, HAS_PAYLOAD_FORMAT)
    _set(BITS, PROPERTY_MESSAGE_EXPIRY, HAS_MESSAGE_EXPIRY)
    _set(BITS, PROPERTY_CONTENT_TYPE, HAS_CONTENT_TYPE)
    _set(BITS, PROPERTY_RESPONSE_TOPIC, HAS_RESPONSE_TOPIC)
    _set(BITS, PROPERTY_CORRELATION_DATA, HAS_CORRELATION_DATA)
    _set(BITS, PROPERTY_SUBSCRIPTION_ID, HAS_SUBSCRIPTION_ID)
    _set(BITS, PROPERTY_SESSION_EXPIRY, HAS_SESSION_EXPIRY)
    _set(BITS, PROPERTY_ASSIGNED_CLIENT_ID, HAS_ASSIGNED_CLIENT_ID)
    _set(BITS, PROPERTY_SERVER_KEEP_ALIVE, HAS_SERVER_KEEP_ALIVE)
    _set(BITS, PROPERTY_AUTH_METHOD, HAS_AUTH_METHOD)
    _set(BITS, PROPERTY_AUTH_DATA, HAS_AUTH_DATA)
    _set(BITS, PROPERTY_REQUEST_PROBLEM_INFO, HAS_REQUEST_PROBLEM_INFO)
    _set(BITS, PROPERTY_WILL_DELAY, HAS_WILL_DELAY)
    _set(BITS, PROPERTY_REQUEST_RESPONSE_INFO, HAS_REQUEST_RESPONSE_INFO)
    _set(BITS, PROPERTY_RESPONSE_INFO, HAS_RESPONSE_INFO)
    _set(BITS, PROPERTY_SERVER_REFERENCE, HAS_SERVER_REFERENCE)
    _set(BITS, PROPERTY_REASON_STRING, HAS_REASON_STRING)
    _set(BITS, PROPERTY_RECEIVE_MAXIMUM, HAS_RECEIVE_MAXIMUM)
    _set(BITS, PROPERTY_TOPIC_ALIAS_MAXIMUM, HAS_TOPIC_ALIAS_MAXIMUM)
    _set(BITS, PROPERTY_TOPIC_ALIAS, HAS_TOPIC_ALIAS)
    _set(BITS, PROPERTY_MAXIMUM_QOS, HAS_MAXIMUM_QOS)
    _set(BITS, PROPERTY_RETAIN_AVAILABLE, HAS_RETAIN_AVAILABLE)
    _set(BITS, PROPERTY_USER_PROPERTY, HAS_USER_PROPERTY)
    _set(BITS, PROPERTY_MAXIMUM_PACKET_SIZE, HAS_MAXIMUM_PACKET_SIZE)
    _set(BITS, PROPERTY_WILDCARD_AVAILABLE, HAS_WILDCARD_AVAILABLE)
    _set(BITS, PROPERTY_SUBSCRIPTION_ID_AVAILABLE, HAS_SUBSCRIPTION_ID_AVAILABLE)
    _set(BITS, PROPERTY_SHARED_AVAILABLE, HAS_SHARED_AVAILABLE)
    memset(ALLOWED, 0, sizeof(ALLOWED))
    _set(ALLOWED, PLACE_WILL, TRAVELS | HAS_MESSAGE_EXPIRY | HAS_WILL_DELAY)
    _set(ALLOWED, CONNECT, (
        AUTHENTICATION | HAS_SESSION_EXPIRY | HAS_REQUEST_PROBLEM_INFO | HAS_REQUEST_RESPONSE_INFO | HAS_RECEIVE_MAXIMUM
        | HAS_TOPIC_ALIAS_MAXIMUM | HAS_USER_PROPERTY | HAS_MAXIMUM_PACKET_SIZE
    ))
    _set(ALLOWED, CONNACK, (
        REASONS | AUTHENTICATION | HAS_SESSION_EXPIRY | HAS_ASSIGNED_CLIENT_ID | HAS_SERVER_KEEP_ALIVE | HAS_RESPONSE_INFO
        | HAS_SERVER_REFERENCE | HAS_RECEIVE_MAXIMUM | HAS_TOPIC_ALIAS_MAXIMUM | HAS_MAXIMUM_QOS | HAS_RETAIN_AVAILABLE
        | HAS_MAXIMUM_PACKET_SIZE | HAS_WILDCARD_AVAILABLE | HAS_SUBSCRIPTION_ID_AVAILABLE | HAS_SHARED_AVAILABLE
    ))
    _set(ALLOWED, PUBLISH, TRAVELS | HAS_MESSAGE_EXPIRY | HAS_SUBSCRIPTION_ID | HAS_TOPIC_ALIAS)
    _set(ALLOWED, PUBACK, REASONS)
    _set(ALLOWED, PUBREC, REASONS)
    _set(ALLOWED, PUBREL, REASONS)
    _set(ALLOWED, PUBCOMP, REASONS)
    _set(ALLOWED, SUBSCRIBE, HAS_SUBSCRIPTION_ID | HAS_USER_PROPERTY)
    _set(ALLOWED, SUBACK, REASONS)
    _set(ALLOWED, UNSUBSCRIBE, HAS_USER_PROPERTY)
    _set(ALLOWED, UNSUBACK, REASONS)
    _set(ALLOWED, DISCONNECT, REASONS | HAS_SESSION_EXPIRY | HAS_SERVER_REFERENCE)
    _set(ALLOWED, AUTH, REASONS | AUTHENTICATION)
    _set(ALLOWED, PLACE_ANY, (1 << 27) - 1)

_tables_fill()


cdef uint32_t props_allowed(uint8_t place) noexcept nogil:
    return ALLOWED[place] if place <= PLACE_ANY else 0


cdef uint32_t property_bit(uint8_t identifier) noexcept nogil:
    return BITS[identifier]


cdef void props_clear(Props *props) noexcept nogil:
    memset(props, 0, sizeof(Props))
    props.receive_maximum = 65535
    props.request_problem_info = 1
    props.maximum_qos = 2
    props.retain_available = 1
    props.wildcard_available = 1
    props.subscription_id_available = 1
    props.shared_available = 1


cdef void props_clear_publish(Props *props) noexcept nogil:
    props.present = 0
    props.message_expiry = 0
    props.subscription_id = 0
    props.subscription_id_count = 0
    props.topic_alias = 0
    props.user_property_count = 0
    props.payload_format = 0
    props.content_type = span_make(NULL, 0)
    props.response_topic = span_make(NULL, 0)
    props.correlation_data = span_make(NULL, 0)
    props.raw = span_make(NULL, 0)


cdef int _take_flag(Cursor *cursor, uint8_t *value) noexcept nogil:
    """A byte that can only be 0 or 1."""
    if not take_u8(cursor, value):
        return -RC_MALFORMED_PACKET
    return ST_OK if value[0] <= 1 else -RC_PROTOCOL_ERROR


cdef int _take_value(Cursor *cursor, uint8_t identifier, Props *props) noexcept nogil:
    cdef Span name
    cdef uint32_t number
    cdef bint took
    if identifier == PROPERTY_PAYLOAD_FORMAT:
        return _take_flag(cursor, &props.payload_format)
    elif identifier == PROPERTY_MESSAGE_EXPIRY:
        took = take_u32(cursor, &props.message_expiry)
    elif identifier == PROPERTY_CONTENT_TYPE:
        took = take_text(cursor, &props.content_type)
    elif identifier == PROPERTY_RESPONSE_TOPIC:
        took = take_binary(cursor, &props.response_topic)
        if took:
            number = text_flags(props.response_topic.p, props.response_topic.n)
            if number:                      # [MQTT-3.3.2-13, MQTT-3.3.2-14]
                return -RC_MALFORMED_PACKET if number & TEXT_BAD else -RC_PROTOCOL_ERROR
    elif identifier == PROPERTY_CORRELATION_DATA:
        took = take_binary(cursor, &props.correlation_data)
    elif identifier == PROPERTY_SUBSCRIPTION_ID:
        took = take_varint(cursor, &number)
        if took:
            if number == 0:
                return -RC_PROTOCOL_ERROR
            if props.subscription_id_count == 0:
                props.subscription_id = number
            if props.subscription_id_count < 65535:
                props.subscription_id_count += 1
    elif identifier == PROPERTY_SESSION_EXPIRY:
        took = take_u32(cursor, &props.session_expiry)
    elif identifier == PROPERTY_ASSIGNED_CLIENT_ID:
        took = take_text(cursor, &props.assigned_client_id)
    elif identifier == PROPERTY_SERVER_KEEP_ALIVE:
        took = take_u16(cursor, &props.server_keep_alive)
    elif identifier == PROPERTY_AUTH_METHOD:
        took = take_text(cursor, &props.auth_method)
    elif identifier == PROPERTY_AUTH_DATA:
        took = take_binary(cursor, &props.auth_data)
    elif identifier == PROPERTY_REQUEST_PROBLEM_INFO:
        return _take_flag(cursor, &props.request_problem_info)
    elif identifier == PROPERTY_WILL_DELAY:
        took = take_u32(cursor, &props.will_delay)
    elif identifier == PROPERTY_REQUEST_RESPONSE_INFO:
        return _take_flag(cursor, &props.request_response_info)
    elif identifier == PROPERTY_RESPONSE_INFO:
        took = take_text(cursor, &props.response_info)
    elif identifier == PROPERTY_SERVER_REFERENCE:
        took = take_text(cursor, &props.server_reference)
    elif identifier == PROPERTY_REASON_STRING:
        took = take_text(cursor, &props.reason_string)
    elif identifier == PROPERTY_RECEIVE_MAXIMUM:
        took = take_u16(cursor, &props.receive_maximum)
        if took and props.receive_maximum == 0:
            return -RC_PROTOCOL_ERROR
    elif identifier == PROPERTY_TOPIC_ALIAS_MAXIMUM:
        took = take_u16(cursor, &props.topic_alias_maximum)
    elif identifier == PROPERTY_TOPIC_ALIAS:
        took = take_u16(cursor, &props.topic_alias)
        if took and props.topic_alias == 0:
            return -RC_TOPIC_ALIAS_INVALID  # [MQTT-3.3.2-8]
    elif identifier == PROPERTY_MAXIMUM_QOS:
        return _take_flag(cursor, &props.maximum_qos)
    elif identifier == PROPERTY_RETAIN_AVAILABLE:
        return _take_flag(cursor, &props.retain_available)
    elif identifier == PROPERTY_USER_PROPERTY:
        took = take_text(cursor, &name) and take_text(cursor, &name)
        if took and props.user_property_count < 65535:
            props.user_property_count += 1
    elif identifier == PROPERTY_MAXIMUM_PACKET_SIZE:
        took = take_u32(cursor, &props.maximum_packet_size)
        if took and props.maximum_packet_size == 0:
            return -RC_PROTOCOL_ERROR
    elif identifier == PROPERTY_WILDCARD_AVAILABLE:
        return _take_flag(cursor, &props.wildcard_available)
    elif identifier == PROPERTY_SUBSCRIPTION_ID_AVAILABLE:
        return _take_flag(cursor, &props.subscription_id_available)
    elif identifier == PROPERTY_SHARED_AVAILABLE:
        return _take_flag(cursor, &props.shared_available)
    else:
        return -RC_MALFORMED_PACKET
    return ST_OK if took else -RC_MALFORMED_PACKET


cdef int props_decode(Cursor *cursor, uint8_t place, Props *props, uint32_t *forward_bytes) noexcept nogil:
    cdef uint32_t allowed = props_allowed(place)
    cdef uint32_t repeatable = HAS_USER_PROPERTY
    cdef uint32_t n, bit
    cdef uint32_t travels = 0
    cdef uint8_t identifier
    cdef const uint8_t *start
    cdef Cursor section
    cdef int status
    if place == PUBLISH:                    # one for each subscription that matched [MQTT-3.3.4-3]
        repeatable |= HAS_SUBSCRIPTION_ID
    if not take_varint(cursor, &n) or n > cursor.end - cursor.p:
        return -RC_MALFORMED_PACKET
    props.raw.p = cursor.p
    props.raw.n = n
    section.p = cursor.p
    section.end = cursor.p + n
    cursor.p += n
    while section.p < section.end:
        start = section.p
        identifier = start[0]               # a Variable Byte Integer, but all that are defined take one byte
        section.p += 1
        bit = BITS[identifier]
        if unlikely(bit & allowed == 0):
            return -RC_MALFORMED_PACKET
        if unlikely(props.present & bit & ~repeatable):
            return -RC_PROTOCOL_ERROR
        props.present |= bit
        status = _take_value(&section, identifier, props)
        if unlikely(status < 0):
            return status
        if bit & TRAVELS:
            travels += <uint32_t> (section.p - start)
    forward_bytes[0] = travels
    if unlikely(props.present & AUTHENTICATION == HAS_AUTH_DATA):
        return -RC_PROTOCOL_ERROR           # data without method, sections 3.1.2.11.10, 3.15.2.2.3
    return ST_OK


cdef bint property_next(Cursor *cursor, uint8_t *identifier, Span *whole) noexcept nogil:
    cdef const uint8_t *start = cursor.p
    cdef Props value
    if cursor.p >= cursor.end:
        return False
    identifier[0] = start[0]
    cursor.p += 1
    value.subscription_id_count = 0
    value.user_property_count = 0
    if _take_value(cursor, identifier[0], &value) < 0:
        cursor.p = cursor.end
        return False
    whole[0] = span_make(start, <size_t> (cursor.p - start))
    return True


cdef int property_check(Span whole) noexcept nogil:
    cdef Cursor cursor
    cdef Props value
    cdef int status
    if whole.n == 0:
        return -RC_MALFORMED_PACKET
    value.subscription_id_count = 0
    value.user_property_count = 0
    cursor.p = whole.p + 1
    cursor.end = whole.p + whole.n
    status = _take_value(&cursor, whole.p[0], &value)
    if status == ST_OK and cursor.p != cursor.end:
        return -RC_MALFORMED_PACKET
    return status


cdef bint _text_bytes(uint32_t present, uint32_t bit, Span text, uint64_t *total) noexcept nogil:
    """Adds an encoded string property; false: too long for its length field."""
    if present & bit:
        if text.n > STRING_MAXIMUM:
            return False
        total[0] += 3 + text.n
    return True


cdef uint64_t _count_bytes(uint32_t bits, uint32_t each) noexcept nogil:
    cdef uint64_t total = 0
    while bits:
        total += each
        bits &= bits - 1
    return total


cdef uint32_t props_size(const Props *props, uint8_t place) noexcept nogil:
    cdef uint32_t present = props.present & props_allowed(place)
    cdef uint64_t total = props.raw.n
    if present & ~<uint32_t> HAS_USER_PROPERTY == 0:
        return <uint32_t> total
    total += _count_bytes(present & (
        HAS_PAYLOAD_FORMAT | HAS_REQUEST_PROBLEM_INFO | HAS_REQUEST_RESPONSE_INFO | HAS_MAXIMUM_QOS | HAS_RETAIN_AVAILABLE
        | HAS_WILDCARD_AVAILABLE | HAS_SUBSCRIPTION_ID_AVAILABLE | HAS_SHARED_AVAILABLE
    ), 2)
    total += _count_bytes(present & (HAS_SERVER_KEEP_ALIVE | HAS_RECEIVE_MAXIMUM | HAS_TOPIC_ALIAS_MAXIMUM | HAS_TOPIC_ALIAS), 3)
    total += _count_bytes(present & (HAS_MESSAGE_EXPIRY | HAS_SESSION_EXPIRY | HAS_WILL_DELAY | HAS_MAXIMUM_PACKET_SIZE), 5)
    if present & HAS_SUBSCRIPTION_ID:
        if props.subscription_id == 0 or props.subscription_id > VARINT_MAXIMUM:
            return UINT32_MAX
        total += 1 + varint_bytes(props.subscription_id)
    if not (
        _text_bytes(present, HAS_CONTENT_TYPE, props.content_type, &total)
        and _text_bytes(present, HAS_RESPONSE_TOPIC, props.response_topic, &total)
        and _text_bytes(present, HAS_CORRELATION_DATA, props.correlation_data, &total)
        and _text_bytes(present, HAS_ASSIGNED_CLIENT_ID, props.assigned_client_id, &total)
        and _text_bytes(present, HAS_AUTH_METHOD, props.auth_method, &total)
        and _text_bytes(present, HAS_AUTH_DATA, props.auth_data, &total)
        and _text_bytes(present, HAS_RESPONSE_INFO, props.response_info, &total)
        and _text_bytes(present, HAS_SERVER_REFERENCE, props.server_reference, &total)
        and _text_bytes(present, HAS_REASON_STRING, props.reason_string, &total)
    ):
        return UINT32_MAX
    if total > VARINT_MAXIMUM:
        return UINT32_MAX
    return <uint32_t> total


cdef uint8_t *_put_flag(uint8_t *out, uint32_t present, uint32_t bit, uint8_t identifier, uint8_t value) noexcept nogil:
    if present & bit:
        out = put_u8(put_u8(out, identifier), value)
    return out


cdef uint8_t *_put_short(uint8_t *out, uint32_t present, uint32_t bit, uint8_t identifier, uint16_t value) noexcept nogil:
    if present & bit:
        out = put_u16(put_u8(out, identifier), value)
    return out


cdef uint8_t *_put_long(uint8_t *out, uint32_t present, uint32_t bit, uint8_t identifier, uint32_t value) noexcept nogil:
    if present & bit:
        out = put_u32(put_u8(out, identifier), value)
    return out


cdef uint8_t *_put_text(uint8_t *out, uint32_t present, uint32_t bit, uint8_t identifier, Span value) noexcept nogil:
    if present & bit:
        out = put_span(put_u8(out, identifier), value)
    return out


cdef uint8_t *props_put(const Props *props, uint8_t place, uint8_t *out) noexcept nogil:
    cdef uint32_t present = props.present & props_allowed(place) & ~<uint32_t> HAS_USER_PROPERTY
    if present:
        out = _put_short(out, present, HAS_TOPIC_ALIAS, PROPERTY_TOPIC_ALIAS, props.topic_alias)
        out = _put_long(out, present, HAS_MESSAGE_EXPIRY, PROPERTY_MESSAGE_EXPIRY, props.message_expiry)
        if present & HAS_SUBSCRIPTION_ID:
            out = put_varint(put_u8(out, PROPERTY_SUBSCRIPTION_ID), props.subscription_id)
        out = _put_flag(out, present, HAS_PAYLOAD_FORMAT, PROPERTY_PAYLOAD_FORMAT, props.payload_format)
        out = _put_text(out, present, HAS_CONTENT_TYPE, PROPERTY_CONTENT_TYPE, props.content_type)
        out = _put_text(out, present, HAS_RESPONSE_TOPIC, PROPERTY_RESPONSE_TOPIC, props.response_topic)
        out = _put_text(out, present, HAS_CORRELATION_DATA, PROPERTY_CORRELATION_DATA, props.correlation_data)
        out = _put_long(out, present, HAS_SESSION_EXPIRY, PROPERTY_SESSION_EXPIRY, props.session_expiry)
        out = _put_text(out, present, HAS_ASSIGNED_CLIENT_ID, PROPERTY_ASSIGNED_CLIENT_ID, props.assigned_client_id)
        out = _put_short(out, present, HAS_SERVER_KEEP_ALIVE, PROPERTY_SERVER_KEEP_ALIVE, props.server_keep_alive)
        out = _put_text(out, present, HAS_AUTH_METHOD, PROPERTY_AUTH_METHOD, props.auth_method)
        out = _put_text(out, present, HAS_AUTH_DATA, PROPERTY_AUTH_DATA, props.auth_data)
        out = _put_flag(out, present, HAS_REQUEST_PROBLEM_INFO, PROPERTY_REQUEST_PROBLEM_INFO, props.request_problem_info)
        out = _put_long(out, present, HAS_WILL_DELAY, PROPERTY_WILL_DELAY, props.will_delay)
        out = _put_flag(out, present, HAS_REQUEST_RESPONSE_INFO, PROPERTY_REQUEST_RESPONSE_INFO, props.request_response_info)
        out = _put_text(out, present, HAS_RESPONSE_INFO, PROPERTY_RESPONSE_INFO, props.response_info)
        out = _put_text(out, present, HAS_SERVER_REFERENCE, PROPERTY_SERVER_REFERENCE, props.server_reference)
        out = _put_text(out, present, HAS_REASON_STRING, PROPERTY_REASON_STRING, props.reason_string)
        out = _put_short(out, present, HAS_RECEIVE_MAXIMUM, PROPERTY_RECEIVE_MAXIMUM, props.receive_maximum)
        out = _put_short(out, present, HAS_TOPIC_ALIAS_MAXIMUM, PROPERTY_TOPIC_ALIAS_MAXIMUM, props.topic_alias_maximum)
        out = _put_flag(out, present, HAS_MAXIMUM_QOS, PROPERTY_MAXIMUM_QOS, props.maximum_qos)
        out = _put_flag(out, present, HAS_RETAIN_AVAILABLE, PROPERTY_RETAIN_AVAILABLE, props.retain_available)
        out = _put_long(out, present, HAS_MAXIMUM_PACKET_SIZE, PROPERTY_MAXIMUM_PACKET_SIZE, props.maximum_packet_size)
        out = _put_flag(out, present, HAS_WILDCARD_AVAILABLE, PROPERTY_WILDCARD_AVAILABLE, props.wildcard_available)
        out = _put_flag(out, present, HAS_SUBSCRIPTION_ID_AVAILABLE, PROPERTY_SUBSCRIPTION_ID_AVAILABLE, props.subscription_id_available)
        out = _put_flag(out, present, HAS_SHARED_AVAILABLE, PROPERTY_SHARED_AVAILABLE, props.shared_available)
    return put_bytes(out, props.raw)
