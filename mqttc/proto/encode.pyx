"""Every packet of every version. One plan of lengths per packet, made by `_plan` and used for the size and for the writing."""

from libc.stdint cimport UINT32_MAX, uint8_t, uint16_t, uint32_t, uint64_t

from mqttc.base.types cimport Span, span_make
from mqttc.proto.dialect cimport CODE_NONE, Dialect
from mqttc.proto.packet cimport (
    AUTH, CONNACK, CONNECT, DISCONNECT, PINGREQ, PINGRESP, PUBACK, PUBCOMP, PUBLISH, PUBREC, PUBREL, RC_SUCCESS, SUBACK,
    SUBSCRIBE, UNSUBACK, UNSUBSCRIBE, Packet,
)
from mqttc.proto.props cimport (
    PLACE_WILL, PROPERTY_MESSAGE_EXPIRY, PROPERTY_SUBSCRIPTION_ID, PROPERTY_TOPIC_ALIAS, props_put, props_size,
)
from mqttc.proto.wire cimport (
    STRING_MAXIMUM, VARINT_MAXIMUM, put_bytes, put_span, put_u8, put_u16, put_u32, put_varint, varint_bytes,
)

cdef struct Plan:
    uint32_t body_bytes                     # Remaining Length
    uint32_t props_bytes                    # without their length
    uint32_t will_props_bytes
    bint reason                             # the reason code stands in the packet
    bint properties                         # the property section does


cdef inline uint64_t _section(uint32_t n) noexcept nogil:
    """Bytes of a property section with its length."""
    return <uint64_t> n + varint_bytes(n)


cdef bint _connect_plan(const Dialect *dialect, const Packet *packet, Plan *plan, uint64_t *total) noexcept nogil:
    total[0] += (6 if dialect.level > 3 else 8) + 4     # name, level, flags, keep alive
    if packet.client_id.n > STRING_MAXIMUM:
        return False
    total[0] += 2 + packet.client_id.n
    if packet.has_will:
        if packet.will_topic.n > STRING_MAXIMUM or packet.will_payload.n > STRING_MAXIMUM or packet.will_qos > 2:
            return False
        total[0] += 4 + packet.will_topic.n + packet.will_payload.n
        if dialect.properties:
            plan.will_props_bytes = props_size(&packet.will_props, PLACE_WILL)
            if plan.will_props_bytes > VARINT_MAXIMUM:
                return False
            total[0] += _section(plan.will_props_bytes)
    if packet.has_username:
        if packet.username.n > STRING_MAXIMUM:
            return False
        total[0] += 2 + packet.username.n
    if packet.has_password:
        if packet.password.n > STRING_MAXIMUM or not (packet.has_username or dialect.password_alone):
            return False
        total[0] += 2 + packet.password.n
    return True


cdef bint _plan(const Dialect *dialect, const Packet *packet, Plan *plan) noexcept nogil:
    """False when the packet cannot be encoded in this version."""
    cdef uint64_t total = 0
    cdef uint8_t kind = packet.type
    plan.props_bytes = 0
    plan.will_props_bytes = 0
    plan.reason = False
    plan.properties = dialect.properties and kind != PINGREQ and kind != PINGRESP
    if plan.properties:
        plan.props_bytes = props_size(&packet.props, kind)
        if plan.props_bytes > VARINT_MAXIMUM:
            return False
    if kind == PUBLISH:
        if packet.topic.n > STRING_MAXIMUM or packet.qos > 2:
            return False
        total = 2 + <uint64_t> packet.topic.n + packet.payload.n
        if packet.qos:
            total += 2
    elif kind == PUBACK or kind == PUBREC or kind == PUBREL or kind == PUBCOMP:
        plan.properties = plan.properties and plan.props_bytes != 0
        plan.reason = dialect.ack_reasons and (plan.properties or packet.reason != RC_SUCCESS)
        total = 2
    elif kind == CONNECT:
        if not _connect_plan(dialect, packet, plan, &total):
            return False
    elif kind == CONNACK:
        if dialect.connack_codes[packet.reason] == CODE_NONE:
            return False
        total = 2
    elif kind == SUBSCRIBE or kind == UNSUBSCRIBE:
        total = 2 + <uint64_t> packet.list.n
    elif kind == SUBACK:
        total = 2 + <uint64_t> packet.list.n
    elif kind == UNSUBACK:
        total = 2
        if dialect.unsuback_reasons:
            total += packet.list.n
    elif kind == DISCONNECT:
        plan.properties = plan.properties and plan.props_bytes != 0
        plan.reason = dialect.properties and (plan.properties or packet.reason != RC_SUCCESS)
    elif kind == AUTH:
        if not dialect.auth:
            return False
        plan.properties = plan.props_bytes != 0 or packet.reason != RC_SUCCESS
        plan.reason = plan.properties
    elif kind != PINGREQ and kind != PINGRESP:
        return False
    if plan.reason:
        total += 1
    if plan.properties:
        total += _section(plan.props_bytes)
    plan.body_bytes = <uint32_t> total
    return total <= VARINT_MAXIMUM


cdef uint32_t packet_size(const Dialect *dialect, const Packet *packet) noexcept nogil:
    cdef Plan plan
    if not _plan(dialect, packet, &plan):
        return 0
    return 1 + varint_bytes(plan.body_bytes) + plan.body_bytes


cdef uint8_t *_put_props(const Packet *packet, const Plan *plan, uint8_t *out) noexcept nogil:
    if plan.properties:
        out = props_put(&packet.props, packet.type, put_varint(out, plan.props_bytes))
    return out


cdef uint8_t *_put_connect(const Dialect *dialect, const Packet *packet, const Plan *plan, uint8_t *out) noexcept nogil:
    cdef uint8_t flags = 0
    out = put_span(out, span_make("MQTT", 4) if dialect.level > 3 else span_make("MQIsdp", 6))
    out = put_u8(out, dialect.level | (0x80 if packet.bridge and not dialect.properties else 0))
    if packet.clean_start:
        flags |= 0x02
    if packet.has_will:
        flags |= 0x04 | (packet.will_qos << 3)
        if packet.will_retain:
            flags |= 0x20
    if packet.has_password:
        flags |= 0x40
    if packet.has_username:
        flags |= 0x80
    out = put_u16(put_u8(out, flags), packet.keep_alive)
    out = _put_props(packet, plan, out)
    out = put_span(out, packet.client_id)
    if packet.has_will:
        if dialect.properties:
            out = props_put(&packet.will_props, PLACE_WILL, put_varint(out, plan.will_props_bytes))
        out = put_span(put_span(out, packet.will_topic), packet.will_payload)
    if packet.has_username:
        out = put_span(out, packet.username)
    if packet.has_password:
        out = put_span(out, packet.password)
    return out


cdef uint8_t *_put_codes(const uint8_t *codes, Span list, uint8_t *out) noexcept nogil:
    cdef uint32_t i
    for i in range(list.n):
        out[i] = codes[list.p[i]]
    return out + list.n


cdef inline uint8_t _publish_first(uint8_t qos, uint8_t dup, uint8_t retain) noexcept nogil:
    """DUP is never set with QoS 0 [MQTT-3.3.1-2]."""
    return <uint8_t> ((PUBLISH << 4) | ((dup != 0 and qos != 0) << 3) | (qos << 1) | (retain != 0))


cdef uint32_t encode_packet(const Dialect *dialect, const Packet *packet, uint8_t *out) noexcept nogil:
    cdef Plan plan
    cdef uint8_t *start = out
    cdef uint8_t kind = packet.type
    if not _plan(dialect, packet, &plan):
        return 0
    if kind == PUBLISH:
        out = put_u8(out, _publish_first(packet.qos, packet.dup, packet.retain))
    elif kind == PUBREL or kind == SUBSCRIBE or kind == UNSUBSCRIBE:
        out = put_u8(out, (kind << 4) | 2)
    else:
        out = put_u8(out, kind << 4)
    out = put_varint(out, plan.body_bytes)
    if kind == PUBLISH:
        out = put_span(out, packet.topic)
        if packet.qos:
            out = put_u16(out, packet.packet_id)
        out = put_bytes(_put_props(packet, &plan, out), packet.payload)
    elif kind == PUBACK or kind == PUBREC or kind == PUBREL or kind == PUBCOMP:
        out = put_u16(out, packet.packet_id)
        if plan.reason:
            out = _put_props(packet, &plan, put_u8(out, packet.reason))
    elif kind == CONNECT:
        out = _put_connect(dialect, packet, &plan, out)
    elif kind == CONNACK:
        out = put_u8(out, dialect.session_present and packet.session_present and packet.reason == RC_SUCCESS)
        out = _put_props(packet, &plan, put_u8(out, dialect.connack_codes[packet.reason]))
    elif kind == SUBSCRIBE or kind == UNSUBSCRIBE:
        out = put_bytes(_put_props(packet, &plan, put_u16(out, packet.packet_id)), packet.list)
    elif kind == SUBACK:
        out = _put_codes(dialect.suback_codes, packet.list, _put_props(packet, &plan, put_u16(out, packet.packet_id)))
    elif kind == UNSUBACK:
        out = _put_props(packet, &plan, put_u16(out, packet.packet_id))
        if dialect.unsuback_reasons:
            out = put_bytes(out, packet.list)
    elif plan.reason:                       # DISCONNECT and AUTH
        out = _put_props(packet, &plan, put_u8(out, packet.reason))
    return <uint32_t> (out - start)


cdef uint32_t encode_ack(const Dialect *dialect, uint8_t packet_type, uint16_t packet_id, uint8_t reason, uint8_t *out) noexcept nogil:
    cdef bint told = dialect.ack_reasons and reason != RC_SUCCESS
    out[0] = <uint8_t> (packet_type << 4) | (2 if packet_type == PUBREL else 0)
    out[1] = 3 if told else 2
    put_u16(out + 2, packet_id)
    if told:
        out[4] = reason
        return 5
    return 4


cdef uint64_t _parts_props(const PublishParts *parts) noexcept nogil:
    """Bytes of the property section without its length."""
    cdef uint64_t total = parts.properties.n
    cdef uint32_t i
    if parts.topic_alias:
        total += 3
    if parts.has_message_expiry:
        total += 5
    for i in range(parts.subscription_id_count):
        total += 1 + varint_bytes(parts.subscription_ids[i])
    return total


cdef inline uint64_t _parts_body(const Dialect *dialect, const PublishParts *parts, uint32_t *props_bytes) noexcept nogil:
    cdef uint64_t total = 2 + <uint64_t> parts.topic.n + parts.payload.n
    cdef uint64_t props
    if parts.qos:
        total += 2
    if dialect.properties:
        props = _parts_props(parts)
        if props > VARINT_MAXIMUM:
            return UINT32_MAX
        props_bytes[0] = <uint32_t> props
        total += _section(<uint32_t> props)
    return total


cdef uint32_t publish_size(const Dialect *dialect, const PublishParts *parts) noexcept nogil:
    cdef uint32_t props_bytes = 0
    cdef uint64_t body = _parts_body(dialect, parts, &props_bytes)
    if body > VARINT_MAXIMUM or parts.topic.n > STRING_MAXIMUM:
        return 0
    return 1 + varint_bytes(<uint32_t> body) + <uint32_t> body


cdef uint32_t encode_publish(const Dialect *dialect, const PublishParts *parts, uint8_t *out) noexcept nogil:
    cdef uint32_t props_bytes = 0
    cdef uint32_t i
    cdef uint8_t *start = out
    cdef uint64_t body = _parts_body(dialect, parts, &props_bytes)
    if body > VARINT_MAXIMUM or parts.topic.n > STRING_MAXIMUM:
        return 0
    out = put_u8(out, _publish_first(parts.qos, parts.dup, parts.retain))
    out = put_span(put_varint(out, <uint32_t> body), parts.topic)
    if parts.qos:
        out = put_u16(out, parts.packet_id)
    if dialect.properties:
        out = put_varint(out, props_bytes)
        if parts.topic_alias:
            out = put_u16(put_u8(out, PROPERTY_TOPIC_ALIAS), parts.topic_alias)
        if parts.has_message_expiry:
            out = put_u32(put_u8(out, PROPERTY_MESSAGE_EXPIRY), parts.message_expiry)
        for i in range(parts.subscription_id_count):
            out = put_varint(put_u8(out, PROPERTY_SUBSCRIPTION_ID), parts.subscription_ids[i])
        out = put_bytes(out, parts.properties)
    return <uint32_t> (put_bytes(out, parts.payload) - start)


cdef uint32_t publish_id_offset(const uint8_t *encoded) noexcept nogil:
    cdef uint32_t at = 1
    while encoded[at] & 0x80:
        at += 1
    return at + 3 + ((<uint32_t> encoded[at + 1] << 8) | encoded[at + 2])
