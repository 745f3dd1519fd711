"""Every packet of every version, in both directions. One function a packet; what differs between versions is asked of the dialect."""

from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcmp, memcpy, memset

from mqttc.base.types cimport ST_NEED_MORE, ST_OK, Span, likely, span_make, unlikely
from mqttc.proto.dialect cimport Dialect, dialect_for, reason_allowed
from mqttc.proto.packet cimport (
    AUTH, CONNACK, CONNECT, DISCONNECT, HAS_AUTH_METHOD, OPT_QOS_MASK, OPT_RETAIN_HANDLING_MASK, PINGREQ, PINGRESP, PUBACK,
    PUBCOMP, PUBLISH, PUBREC, PUBREL, RC_BAD_USER_NAME_OR_PASSWORD, RC_CLIENT_IDENTIFIER_NOT_VALID, RC_MALFORMED_PACKET,
    RC_NOT_AUTHORIZED, RC_PACKET_TOO_LARGE, RC_PROTOCOL_ERROR, RC_SERVER_UNAVAILABLE, RC_SUCCESS, RC_TOPIC_NAME_INVALID,
    RC_UNSUPPORTED_PROTOCOL_VERSION, SUBACK, SUBSCRIBE, UNSUBACK, UNSUBSCRIBE, Filter, Frame, Packet,
)
from mqttc.proto.props cimport (
    PLACE_WILL, PROPERTY_MESSAGE_EXPIRY, PROPERTY_SUBSCRIPTION_ID, PROPERTY_TOPIC_ALIAS, PROPERTY_WILL_DELAY, property_next,
    props_clear, props_clear_publish, props_decode,
)
from mqttc.proto.wire cimport (
    TEXT_BAD, Cursor, take_binary, take_text, take_u8, take_u16, text_flags,
)

cdef enum ConnectFlag:                      # section 3.1.2.3
    CONNECT_RESERVED = 0x01
    CONNECT_CLEAN_START = 0x02
    CONNECT_WILL = 0x04
    CONNECT_WILL_QOS = 0x18
    CONNECT_WILL_RETAIN = 0x20
    CONNECT_PASSWORD = 0x40
    CONNECT_USERNAME = 0x80

cdef enum:
    FLAG_RETAIN = 0x01
    FLAG_DUP = 0x08
    FLAGS_FIXED = 0x02                      # of PUBREL, SUBSCRIBE and UNSUBSCRIBE [MQTT-2.1.3-1]


cdef int frame_next(const uint8_t *p, const uint8_t *end, uint32_t maximum_packet_size, Frame *frame) noexcept nogil:
    cdef const uint8_t *at
    cdef uint32_t n, shift, byte
    frame.total_bytes = 0
    if unlikely(2 > end - p):
        return ST_NEED_MORE
    n = p[1]
    at = p + 2
    if n > 127:
        n &= 0x7F
        shift = 7
        while True:
            if unlikely(at == end):
                return ST_NEED_MORE
            byte = at[0]
            at += 1
            n |= (byte & 0x7F) << shift
            if byte < 0x80:
                if unlikely(byte == 0):     # more bytes than needed [MQTT-1.5.5-1]
                    return -RC_MALFORMED_PACKET
                break
            shift += 7
            if unlikely(shift > 21):
                return -RC_MALFORMED_PACKET
    frame.type = p[0] >> 4
    frame.flags = p[0] & 0x0F
    frame.body = at
    frame.body_bytes = n
    frame.total_bytes = n + <uint32_t> (at - p)
    if unlikely(maximum_packet_size != 0 and frame.total_bytes > maximum_packet_size):
        return -RC_PACKET_TOO_LARGE
    if n > end - at:
        return ST_NEED_MORE
    return ST_OK


cdef inline Cursor _body(const Frame *frame) noexcept nogil:
    cdef Cursor cursor
    cursor.p = frame.body
    cursor.end = frame.body + frame.body_bytes
    return cursor


cdef inline Span _rest(const Cursor *cursor) noexcept nogil:
    return span_make(cursor.p, <size_t> (cursor.end - cursor.p))


cdef void _packet_clear(const Frame *frame, Packet *packet) noexcept nogil:
    memset(packet, 0, sizeof(Packet))
    packet.type = frame.type
    packet.flags = frame.flags
    props_clear(&packet.props)
    props_clear(&packet.will_props)


cdef int _take_topic(Cursor *cursor, Span *topic) noexcept nogil:
    """A topic name: UTF-8 without NUL [MQTT-3.3.2-1, MQTT-4.7.3-2] and without wildcards [MQTT-4.7.0-1]; may be empty."""
    cdef uint32_t flags
    if unlikely(not take_binary(cursor, topic)):
        return -RC_MALFORMED_PACKET
    flags = text_flags(topic.p, topic.n)
    if unlikely(flags):
        return -RC_MALFORMED_PACKET if flags & TEXT_BAD else -RC_TOPIC_NAME_INVALID
    return ST_OK


cdef int _take_last_props(Cursor *cursor, Packet *packet) noexcept nogil:
    """Properties that end their packet."""
    cdef uint32_t forward_bytes
    cdef int status = props_decode(cursor, packet.type, &packet.props, &forward_bytes)
    if status < 0:
        return status
    return ST_OK if cursor.p == cursor.end else -RC_MALFORMED_PACKET


cdef int _take_will(const Dialect *dialect, Cursor *cursor, Packet *packet) noexcept nogil:
    cdef uint32_t forward_bytes
    cdef int status
    if dialect.properties:
        status = props_decode(cursor, PLACE_WILL, &packet.will_props, &forward_bytes)
        if status < 0:
            return status
    status = _take_topic(cursor, &packet.will_topic)
    if status < 0:
        return status
    if packet.will_topic.n == 0:
        return -RC_TOPIC_NAME_INVALID       # [MQTT-4.7.3-1]
    return ST_OK if take_binary(cursor, &packet.will_payload) else -RC_MALFORMED_PACKET


cdef int decode_connect(const Frame *frame, Packet *packet) noexcept nogil:
    cdef Cursor cursor = _body(frame)
    cdef const Dialect *dialect
    cdef Span name
    cdef uint8_t level, flags
    cdef uint32_t forward_bytes
    cdef int status
    _packet_clear(frame, packet)
    if not take_binary(&cursor, &name):
        return -RC_MALFORMED_PACKET
    if not (name.n == 4 and memcmp(name.p, "MQTT", 4) == 0) and not (name.n == 6 and memcmp(name.p, "MQIsdp", 6) == 0):
        return -RC_MALFORMED_PACKET         # not MQTT at all [MQTT-3.1.2-1]
    if not take_u8(&cursor, &level):
        return -RC_MALFORMED_PACKET
    packet.bridge = level == 0x83 or level == 0x84
    if packet.bridge:
        level &= 0x7F
    packet.protocol_level = level
    dialect = dialect_for(level)
    if dialect == NULL or (level == 3) != (name.n == 6):
        return -RC_UNSUPPORTED_PROTOCOL_VERSION
    if not take_u8(&cursor, &flags) or not take_u16(&cursor, &packet.keep_alive):
        return -RC_MALFORMED_PACKET
    if dialect.strict_flags and (frame.flags != 0 or flags & CONNECT_RESERVED):
        return -RC_MALFORMED_PACKET         # [MQTT-2.1.3-1, MQTT-3.1.2-3]
    packet.clean_start = flags & CONNECT_CLEAN_START != 0
    packet.has_will = flags & CONNECT_WILL != 0
    packet.will_qos = (flags & CONNECT_WILL_QOS) >> 3
    packet.will_retain = flags & CONNECT_WILL_RETAIN != 0
    packet.has_username = flags & CONNECT_USERNAME != 0
    packet.has_password = flags & CONNECT_PASSWORD != 0
    if packet.will_qos == 3 or (not packet.has_will and (packet.will_qos or packet.will_retain)):
        return -RC_MALFORMED_PACKET         # [MQTT-3.1.2-11..13]
    if packet.has_password and not packet.has_username and not dialect.password_alone:
        return -RC_MALFORMED_PACKET         # [MQTT-3.1.2-22] of 3.1.1
    if dialect.properties:
        status = props_decode(&cursor, CONNECT, &packet.props, &forward_bytes)
        if status < 0:
            return status
    if not take_text(&cursor, &packet.client_id):
        return -RC_MALFORMED_PACKET         # [MQTT-3.1.3-3, MQTT-3.1.3-4]
    if packet.has_will:
        status = _take_will(dialect, &cursor, packet)
        if status < 0:
            return status
    if not dialect.strict_flags and cursor.p == cursor.end:
        packet.has_username = False         # 3.1, section 3.1: the length takes precedence over both flags
        packet.has_password = False
    if packet.has_username and not take_text(&cursor, &packet.username):
        return -RC_MALFORMED_PACKET
    if not dialect.strict_flags and cursor.p == cursor.end:
        packet.has_password = False
    if packet.has_password and not take_binary(&cursor, &packet.password):
        return -RC_MALFORMED_PACKET
    return ST_OK if cursor.p == cursor.end else -RC_MALFORMED_PACKET


cdef int _decode_connack(const Dialect *dialect, const Frame *frame, Packet *packet) noexcept nogil:
    cdef Cursor cursor = _body(frame)
    cdef uint8_t flags, code
    if not take_u8(&cursor, &flags) or not take_u8(&cursor, &code):
        return -RC_MALFORMED_PACKET
    if dialect.session_present:
        if flags > 1:
            return -RC_MALFORMED_PACKET     # [MQTT-3.2.2-1]
        packet.session_present = flags
        if code != 0 and flags != 0:
            return -RC_PROTOCOL_ERROR       # [MQTT-3.2.2-6]
    if dialect.properties:
        if not reason_allowed(CONNACK, code):
            return -RC_PROTOCOL_ERROR       # [MQTT-3.2.2-8]
        packet.reason = code
        return _take_last_props(&cursor, packet)
    if code == 0:
        packet.reason = RC_SUCCESS
    elif code == 1:
        packet.reason = RC_UNSUPPORTED_PROTOCOL_VERSION
    elif code == 2:
        packet.reason = RC_CLIENT_IDENTIFIER_NOT_VALID
    elif code == 3:
        packet.reason = RC_SERVER_UNAVAILABLE
    elif code == 4:
        packet.reason = RC_BAD_USER_NAME_OR_PASSWORD
    elif code == 5:
        packet.reason = RC_NOT_AUTHORIZED
    else:
        return -RC_PROTOCOL_ERROR           # 6 to 255 are reserved
    return ST_OK if cursor.p == cursor.end else -RC_MALFORMED_PACKET


cdef int decode_publish(const Dialect *dialect, const Frame *frame, Packet *packet) noexcept nogil:
    cdef Cursor cursor = _body(frame)
    cdef const uint8_t *topic
    cdef uint32_t n, text
    cdef uint32_t flags = frame.flags
    cdef uint32_t qos = (flags >> 1) & 3
    cdef int status
    if unlikely(2 > cursor.end - cursor.p):
        return -RC_MALFORMED_PACKET
    n = (<uint32_t> cursor.p[0] << 8) | cursor.p[1]
    topic = cursor.p + 2
    if unlikely(n > cursor.end - topic):
        return -RC_MALFORMED_PACKET
    text = text_flags(topic, n)
    if unlikely(text):                      # [MQTT-3.3.2-1, MQTT-3.3.2-2]
        return -RC_MALFORMED_PACKET if text & TEXT_BAD else -RC_TOPIC_NAME_INVALID
    cursor.p = topic + n
    packet.type = PUBLISH
    packet.flags = <uint8_t> flags
    packet.qos = <uint8_t> qos
    packet.dup = flags & FLAG_DUP != 0
    packet.retain = flags & FLAG_RETAIN
    packet.topic = span_make(topic, n)
    packet.packet_id = 0
    if qos:
        if unlikely(qos == 3):
            return -RC_MALFORMED_PACKET     # [MQTT-3.3.1-4]
        if unlikely(not take_u16(&cursor, &packet.packet_id)):
            return -RC_MALFORMED_PACKET
        if unlikely(packet.packet_id == 0):
            return -RC_PROTOCOL_ERROR       # [MQTT-2.2.1-3], [MQTT-2.3.1-1] of 3.1.1
    elif unlikely(flags & FLAG_DUP):
        if dialect.strict_flags:
            return -RC_MALFORMED_PACKET     # [MQTT-3.3.1-2]
        packet.dup = 0
    props_clear_publish(&packet.props)
    packet.forward_bytes = 0
    if dialect.properties:
        if likely(cursor.p < cursor.end and cursor.p[0] == 0):
            cursor.p += 1
        else:
            status = props_decode(&cursor, PUBLISH, &packet.props, &packet.forward_bytes)
            if unlikely(status < 0):
                return status
    if unlikely(n == 0 and packet.props.topic_alias == 0):
        return -RC_PROTOCOL_ERROR           # section 3.3.2.1; [MQTT-4.7.3-1]
    packet.payload = _rest(&cursor)
    return ST_OK


cdef int decode_ack(const Dialect *dialect, const Frame *frame, Packet *packet) noexcept nogil:
    cdef Cursor cursor = _body(frame)
    packet.type = frame.type
    packet.flags = frame.flags
    packet.reason = RC_SUCCESS
    packet.props.present = 0
    packet.props.user_property_count = 0
    packet.props.reason_string = span_make(NULL, 0)
    packet.props.raw = span_make(NULL, 0)
    if unlikely(frame.flags != (FLAGS_FIXED if frame.type == PUBREL else 0) and dialect.strict_flags):
        return -RC_MALFORMED_PACKET         # [MQTT-2.1.3-1]
    if unlikely(not take_u16(&cursor, &packet.packet_id)):
        return -RC_MALFORMED_PACKET
    if unlikely(packet.packet_id == 0):
        return -RC_PROTOCOL_ERROR
    if likely(cursor.p == cursor.end):
        return ST_OK
    if unlikely(not dialect.ack_reasons):
        return -RC_MALFORMED_PACKET
    packet.reason = cursor.p[0]
    cursor.p += 1
    if unlikely(packet.reason != RC_SUCCESS and not reason_allowed(frame.type, packet.reason)):
        return -RC_PROTOCOL_ERROR           # [MQTT-3.4.2-1, MQTT-3.5.2-1, MQTT-3.6.2-1, MQTT-3.7.2-1]
    if cursor.p == cursor.end:              # the property length may be left out below a Remaining Length of 4
        return ST_OK
    return _take_last_props(&cursor, packet)


cdef bint _options_valid(const Dialect *dialect, uint8_t options, int *status) noexcept nogil:
    """The byte after a filter: requested QoS in 3.x [MQTT-3.8.3-4], subscription options in 5.0 [MQTT-3.8.3-5]."""
    status[0] = -RC_MALFORMED_PACKET
    if not dialect.properties:
        return options <= 2
    if options & 0xC0:
        return False
    status[0] = -RC_PROTOCOL_ERROR          # section 3.8.3.1: QoS 3, retain handling 3
    return options & OPT_QOS_MASK != 3 and options & OPT_RETAIN_HANDLING_MASK != OPT_RETAIN_HANDLING_MASK


cdef int _decode_filters(const Dialect *dialect, const Frame *frame, Packet *packet) noexcept nogil:
    """SUBSCRIBE and UNSUBSCRIBE."""
    cdef Cursor cursor = _body(frame)
    cdef Span text
    cdef uint8_t options
    cdef uint32_t forward_bytes
    cdef int status
    if not take_u16(&cursor, &packet.packet_id):
        return -RC_MALFORMED_PACKET
    if packet.packet_id == 0:
        return -RC_PROTOCOL_ERROR
    if dialect.properties:
        status = props_decode(&cursor, frame.type, &packet.props, &forward_bytes)
        if status < 0:
            return status
    packet.list = _rest(&cursor)
    if packet.list.n == 0:
        return -RC_PROTOCOL_ERROR           # [MQTT-3.8.3-2, MQTT-3.10.3-2]
    while cursor.p < cursor.end:
        if not take_text(&cursor, &text):
            return -RC_MALFORMED_PACKET
        if frame.type == SUBSCRIBE:
            if not take_u8(&cursor, &options):
                return -RC_MALFORMED_PACKET
            if not _options_valid(dialect, options, &status):
                return status
    return ST_OK


cdef int _decode_verdicts(const Dialect *dialect, const Frame *frame, Packet *packet) noexcept nogil:
    """SUBACK and UNSUBACK."""
    cdef Cursor cursor = _body(frame)
    cdef uint32_t forward_bytes, i
    cdef uint8_t code
    cdef int status
    if not take_u16(&cursor, &packet.packet_id):
        return -RC_MALFORMED_PACKET
    if packet.packet_id == 0:
        return -RC_PROTOCOL_ERROR
    if dialect.properties:
        status = props_decode(&cursor, frame.type, &packet.props, &forward_bytes)
        if status < 0:
            return status
    packet.list = _rest(&cursor)
    if frame.type == UNSUBACK and not dialect.unsuback_reasons:
        return ST_OK if packet.list.n == 0 else -RC_MALFORMED_PACKET
    if packet.list.n == 0:
        return -RC_PROTOCOL_ERROR           # one for each filter, and there is at least one
    for i in range(packet.list.n):
        code = packet.list.p[i]
        if not reason_allowed(frame.type, code) or (not dialect.properties and code > 0x80):
            return -RC_PROTOCOL_ERROR       # [MQTT-3.9.3-2, MQTT-3.11.3-2]
    return ST_OK


cdef int _decode_farewell(const Dialect *dialect, const Frame *frame, Packet *packet) noexcept nogil:
    """DISCONNECT and AUTH: reason and properties, both left out when there is nothing to say."""
    cdef Cursor cursor = _body(frame)
    cdef int status
    if cursor.p == cursor.end:
        return ST_OK
    if not dialect.properties:
        return -RC_MALFORMED_PACKET
    packet.reason = cursor.p[0]
    cursor.p += 1
    if not reason_allowed(frame.type, packet.reason):
        return -RC_PROTOCOL_ERROR           # [MQTT-3.14.2-1, MQTT-3.15.2-1]
    if frame.type == DISCONNECT and cursor.p == cursor.end:
        return ST_OK
    status = _take_last_props(&cursor, packet)
    if status == ST_OK and frame.type == AUTH and packet.props.present & HAS_AUTH_METHOD == 0:
        return -RC_PROTOCOL_ERROR           # section 3.15.2.2.2
    return status


cdef int decode_packet(const Dialect *dialect, const Frame *frame, Packet *packet) noexcept nogil:
    cdef uint8_t kind = frame.type
    if kind == CONNECT:
        return decode_connect(frame, packet)
    _packet_clear(frame, packet)
    if kind == PUBLISH:
        return decode_publish(dialect, frame, packet)
    if kind == PUBACK or kind == PUBREC or kind == PUBREL or kind == PUBCOMP:
        return decode_ack(dialect, frame, packet)
    if dialect.strict_flags and frame.flags != (FLAGS_FIXED if kind == SUBSCRIBE or kind == UNSUBSCRIBE else 0):
        return -RC_MALFORMED_PACKET         # [MQTT-2.1.3-1], [MQTT-2.2.2-2] of 3.1.1
    if kind == SUBSCRIBE or kind == UNSUBSCRIBE:
        return _decode_filters(dialect, frame, packet)
    if kind == PINGREQ or kind == PINGRESP:
        return ST_OK if frame.body_bytes == 0 else -RC_MALFORMED_PACKET
    if kind == DISCONNECT or (kind == AUTH and dialect.auth):
        return _decode_farewell(dialect, frame, packet)
    if kind == CONNACK:
        return _decode_connack(dialect, frame, packet)
    if kind == SUBACK or kind == UNSUBACK:
        return _decode_verdicts(dialect, frame, packet)
    return -RC_MALFORMED_PACKET             # type 0, or AUTH before 5.0


cdef bint filter_next(const Dialect *dialect, uint8_t packet_type, Span *list, Filter *out) noexcept nogil:
    cdef Cursor cursor
    cursor.p = list.p
    cursor.end = list.p + list.n
    out.options = 0
    if not take_binary(&cursor, &out.text):
        return False
    if packet_type == SUBSCRIBE and not take_u8(&cursor, &out.options):
        return False
    list[0] = _rest(&cursor)
    return True


cdef bint _travels(uint8_t identifier) noexcept nogil:
    return (
        identifier != PROPERTY_TOPIC_ALIAS and identifier != PROPERTY_MESSAGE_EXPIRY
        and identifier != PROPERTY_WILL_DELAY and identifier != PROPERTY_SUBSCRIPTION_ID
    )


cdef uint32_t publish_forward(const Span raw, uint8_t *out) noexcept nogil:
    cdef Cursor cursor
    cdef Span whole
    cdef uint8_t identifier
    cdef uint8_t *at = out
    cursor.p = raw.p
    cursor.end = raw.p + raw.n
    while property_next(&cursor, &identifier, &whole):
        if _travels(identifier):
            memcpy(at, whole.p, whole.n)
            at += whole.n
    return <uint32_t> (at - out)


cdef uint32_t forward_size(const Span raw) noexcept nogil:
    cdef Cursor cursor
    cdef Span whole
    cdef uint8_t identifier
    cdef uint32_t total = 0
    cursor.p = raw.p
    cursor.end = raw.p + raw.n
    while property_next(&cursor, &identifier, &whole):
        if _travels(identifier):
            total += whole.n
    return total
