"""What mqttc.proto does, said in Python values. Every input is copied to the end of a block of exactly its size, so that a read past it is a
heap overflow that AddressSanitizer reports."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from mqttc.base.types cimport ST_NEED_MORE, ST_OK, Span, span_make
from mqttc.proto cimport topic as topics
from mqttc.proto.decode cimport (
    decode_ack, decode_connect, decode_packet, decode_publish, filter_next, forward_size, frame_next, publish_forward,
)
from mqttc.proto.dialect cimport Dialect, dialect_for, reason_allowed
from mqttc.proto.encode cimport (
    PublishParts, encode_ack, encode_packet, encode_publish, packet_size, publish_id_offset, publish_size,
)
from mqttc.proto.packet cimport (
    CONNECT, HAS_REASON_STRING, PUBACK, PUBCOMP, PUBLISH, SUBSCRIBE, UNSUBSCRIBE, Filter, Frame, Packet, Props,
)
from mqttc.proto.props cimport PROPERTY_SUBSCRIPTION_ID, PROPERTY_USER_PROPERTY, property_next
from mqttc.proto.wire cimport Cursor, text_flags, text_scan, text_valid
from mqttc.proto.wsframe cimport (
    WS_HEADER_MOST, WsHeader, ws_answer_check, ws_close_check, ws_header_check, ws_header_next, ws_header_put, ws_mask,
)

NEED_MORE = ST_NEED_MORE


cdef class Exact:
    """Owns a block of exactly as many bytes as were given."""
    cdef uint8_t *p
    cdef uint32_t n

    def __cinit__(self, data: bytes):
        self.n = <uint32_t> len(data)
        self.p = <uint8_t *> malloc(self.n if self.n else 1)
        if self.p == NULL:
            raise MemoryError
        if self.n:
            memcpy(self.p, <const char *> data, self.n)

    def __dealloc__(self):
        free(self.p)

    cdef Span span(self):
        return span_make(self.p, self.n)


cdef bytes text(Span span):
    return (<const char *> span.p)[:span.n] if span.n else b""


cdef dict props_said(const Props *props):
    return {
        "present": props.present, "session_expiry": props.session_expiry, "message_expiry": props.message_expiry,
        "will_delay": props.will_delay, "maximum_packet_size": props.maximum_packet_size, "subscription_id": props.subscription_id,
        "subscription_id_count": props.subscription_id_count, "receive_maximum": props.receive_maximum,
        "topic_alias_maximum": props.topic_alias_maximum, "topic_alias": props.topic_alias,
        "server_keep_alive": props.server_keep_alive, "user_property_count": props.user_property_count,
        "payload_format": props.payload_format, "request_problem_info": props.request_problem_info,
        "request_response_info": props.request_response_info, "maximum_qos": props.maximum_qos,
        "retain_available": props.retain_available, "wildcard_available": props.wildcard_available,
        "subscription_id_available": props.subscription_id_available, "shared_available": props.shared_available,
        "content_type": text(props.content_type), "response_topic": text(props.response_topic),
        "correlation_data": text(props.correlation_data), "assigned_client_id": text(props.assigned_client_id),
        "auth_method": text(props.auth_method), "auth_data": text(props.auth_data), "response_info": text(props.response_info),
        "server_reference": text(props.server_reference), "reason_string": text(props.reason_string), "raw": text(props.raw),
    }


cdef dict packet_said(const Dialect *dialect, const Packet *packet):
    cdef Span rest = packet.list
    cdef Filter one
    said = {
        "type": packet.type, "flags": packet.flags, "reason": packet.reason, "session_present": packet.session_present,
        "packet_id": packet.packet_id, "qos": packet.qos, "dup": packet.dup, "retain": packet.retain,
        "protocol_level": packet.protocol_level, "bridge": packet.bridge, "clean_start": packet.clean_start,
        "has_will": packet.has_will, "will_qos": packet.will_qos, "will_retain": packet.will_retain,
        "has_username": packet.has_username, "has_password": packet.has_password, "keep_alive": packet.keep_alive,
        "forward_bytes": packet.forward_bytes, "client_id": text(packet.client_id), "username": text(packet.username),
        "password": text(packet.password), "will_topic": text(packet.will_topic), "will_payload": text(packet.will_payload),
        "topic": text(packet.topic), "payload": text(packet.payload), "list": text(packet.list),
        "props": props_said(&packet.props), "will_props": props_said(&packet.will_props),
    }
    if packet.type == SUBSCRIBE or packet.type == UNSUBSCRIBE:
        filters = []
        while filter_next(dialect, packet.type, &rest, &one):
            filters.append((text(one.text), one.options))
        said["filters"] = filters
        said["list_left"] = rest.n
    return said


cdef dict hot_said(const Packet *packet):
    """Only the fields that decode_publish and decode_ack promise to set; the rest is rubbish."""
    cdef const Props *props = &packet.props
    said = {"type": packet.type, "flags": packet.flags, "packet_id": packet.packet_id}
    properties = {"present": props.present, "user_property_count": props.user_property_count, "raw": text(props.raw)}
    if packet.type == PUBLISH:
        said |= {
            "qos": packet.qos, "dup": packet.dup, "retain": packet.retain, "topic": text(packet.topic),
            "payload": text(packet.payload), "forward_bytes": packet.forward_bytes,
        }
        properties |= {
            "message_expiry": props.message_expiry, "subscription_id": props.subscription_id,
            "subscription_id_count": props.subscription_id_count, "topic_alias": props.topic_alias,
            "payload_format": props.payload_format, "content_type": text(props.content_type),
            "response_topic": text(props.response_topic), "correlation_data": text(props.correlation_data),
        }
    else:
        said["reason"] = packet.reason
        properties["reason_string"] = text(props.reason_string)
    said["props"] = properties
    return said


def frame(bytes data, uint32_t maximum=0):
    """(status, type, flags, body_bytes, total_bytes)"""
    cdef Exact exact = Exact(data)
    cdef Frame found
    found.type = found.flags = 0
    found.body_bytes = 0
    cdef int status = frame_next(exact.p, exact.p + exact.n, maximum, &found)
    return status, found.type, found.flags, found.body_bytes, found.total_bytes


def decode(uint8_t level, bytes data, bint hot=False):
    """(status, packet or None); hot: by decode_publish, decode_ack or decode_connect themselves, into a packet full of rubbish."""
    cdef Exact exact = Exact(data)
    cdef Frame found
    cdef Packet packet
    cdef const Dialect *dialect = dialect_for(level)
    cdef uint8_t *byte = <uint8_t *> &packet
    cdef size_t i
    for i in range(sizeof(Packet)):
        byte[i] = 0xA5
    cdef int status = frame_next(exact.p, exact.p + exact.n, 0, &found)
    if status != ST_OK:
        return status, None
    if hot and found.type == PUBLISH:
        status = decode_publish(dialect, &found, &packet)
    elif hot and PUBACK <= found.type <= PUBCOMP:
        status = decode_ack(dialect, &found, &packet)
    elif hot and found.type == CONNECT:
        status = decode_connect(&found, &packet)
    else:
        status = decode_packet(dialect, &found, &packet)
    if status != ST_OK:
        return status, packet.protocol_level if found.type == CONNECT else None
    if hot and PUBLISH <= found.type <= PUBCOMP:
        return status, hot_said(&packet)
    return status, packet_said(dialect, &packet)


def recode(uint8_t level, bytes data):
    """Decodes, then encodes from the decoded packet: the bytes. Its raw properties stand for the typed ones."""
    cdef Exact exact = Exact(data)
    cdef Frame found
    cdef Packet packet
    cdef const Dialect *dialect = dialect_for(level)
    if frame_next(exact.p, exact.p + exact.n, 0, &found) != ST_OK or decode_packet(dialect, &found, &packet) != ST_OK:
        raise ValueError(data.hex())
    packet.props.present = 0
    packet.will_props.present = 0
    cdef uint32_t size = packet_size(dialect, &packet)
    cdef Exact out = Exact(bytes(size))
    cdef uint32_t wrote = encode_packet(dialect, &packet, out.p)
    assert wrote == size, (wrote, size)
    return (<const char *> out.p)[:size]


cdef bytes extras(const Props *props):
    """What typed fields cannot hold: user properties, and subscription identifiers after the first."""
    cdef Cursor cursor
    cdef Span whole
    cdef uint8_t identifier
    cdef bint first = True
    found = []
    cursor.p = props.raw.p
    cursor.end = props.raw.p + props.raw.n
    while property_next(&cursor, &identifier, &whole):
        if identifier == PROPERTY_USER_PROPERTY:
            found.append(text(whole))
        elif identifier == PROPERTY_SUBSCRIPTION_ID:
            if not first:
                found.append(text(whole))
            first = False
    return b"".join(found)


def recode_typed(uint8_t level, bytes data):
    """Decodes, then encodes from the typed properties, as the broker builds its own packets. Room is exactly what the size said."""
    cdef Exact exact = Exact(data)
    cdef Frame found
    cdef Packet packet
    cdef const Dialect *dialect = dialect_for(level)
    if frame_next(exact.p, exact.p + exact.n, 0, &found) != ST_OK or decode_packet(dialect, &found, &packet) != ST_OK:
        raise ValueError(data.hex())
    cdef Exact more = Exact(extras(&packet.props))
    cdef Exact will_more = Exact(extras(&packet.will_props))
    packet.props.raw = more.span()
    packet.will_props.raw = will_more.span()
    cdef uint32_t size = packet_size(dialect, &packet)
    cdef Exact out = Exact(bytes(size))
    cdef uint32_t wrote = encode_packet(dialect, &packet, out.p)
    assert wrote == size, (wrote, size)
    return (<const char *> out.p)[:size]


def typed_size(uint8_t level, uint8_t kind, uint32_t byte_count, str field):
    """packet_size of a packet with one field of this many bytes, which do not exist: a size reads none of them."""
    cdef Packet packet
    cdef Span long_text = span_make(&packet, byte_count)
    memset(&packet, 0, sizeof(Packet))
    packet.type = kind
    if field == "reason_string":
        packet.props.present = HAS_REASON_STRING
        packet.props.reason_string = long_text
    elif field == "client_id":
        packet.client_id = long_text
    elif field == "topic":
        packet.topic = long_text
    elif field == "will_topic":
        packet.has_will = True
        packet.will_topic = long_text
    elif field == "will_payload":
        packet.has_will = True
        packet.will_payload = long_text
    elif field == "username":
        packet.has_username = True
        packet.username = long_text
    elif field == "password":
        packet.has_username = packet.has_password = True
        packet.password = long_text
    elif field == "list":
        packet.list = long_text
    elif field == "payload":
        packet.payload = long_text
    elif field == "raw":
        packet.props.raw = long_text
    else:
        raise ValueError(field)
    size = packet_size(dialect_for(level), &packet)
    if size == 0:
        assert encode_packet(dialect_for(level), &packet, NULL) == 0
    return size


def encode_publish_parts(
    uint8_t level, bytes topic, bytes payload, bytes properties=b"", uint8_t qos=0, uint8_t dup=0, uint8_t retain=0,
    uint16_t packet_id=0, uint16_t topic_alias=0, message_expiry=None, tuple subscription_ids=(),
):
    """(bytes, id offset)"""
    cdef PublishParts parts
    cdef uint32_t[8] ids
    cdef Exact topic_bytes = Exact(topic)
    cdef Exact payload_bytes = Exact(payload)
    cdef Exact property_bytes = Exact(properties)
    cdef const Dialect *dialect = dialect_for(level)
    parts.qos = qos
    parts.dup = dup
    parts.retain = retain
    parts.has_message_expiry = message_expiry is not None
    parts.message_expiry = message_expiry or 0
    parts.packet_id = packet_id
    parts.topic_alias = topic_alias
    parts.subscription_id_count = <uint32_t> len(subscription_ids)
    for i, number in enumerate(subscription_ids):
        ids[<int> i] = number
    parts.subscription_ids = ids
    parts.topic = topic_bytes.span()
    parts.properties = property_bytes.span()
    parts.payload = payload_bytes.span()
    cdef uint32_t size = publish_size(dialect, &parts)
    cdef Exact out = Exact(bytes(size))
    if size == 0:
        return b"", 0
    cdef uint32_t wrote = encode_publish(dialect, &parts, out.p)
    assert wrote == size, (wrote, size)
    return (<const char *> out.p)[:size], publish_id_offset(out.p)


def encode_ack_bytes(uint8_t level, uint8_t kind, uint16_t packet_id, uint8_t reason):
    cdef uint8_t[8] room
    cdef uint32_t n = encode_ack(dialect_for(level), kind, packet_id, reason, room)
    return (<const char *> room)[:n]


def forward(bytes raw):
    """The properties of a section that travel with the message."""
    cdef Exact exact = Exact(raw)
    cdef Exact out = Exact(bytes(forward_size(exact.span())))
    cdef uint32_t wrote = publish_forward(exact.span(), out.p)
    assert wrote == out.n
    return (<const char *> out.p)[:wrote]


def dialect(uint8_t level):
    """The table as a dict; None for an unknown level."""
    cdef const Dialect *it = dialect_for(level)
    if it == NULL:
        return None
    said = dict(it[0])
    said["connack_codes"] = bytes([it.connack_codes[i] for i in range(256)])
    said["suback_codes"] = bytes([it.suback_codes[i] for i in range(256)])
    return said


def reason_fits(uint8_t kind, uint8_t reason):
    return bool(reason_allowed(kind, reason))


def flags_of_text(bytes data):
    """(text_flags, text_scan, text_valid)"""
    cdef Exact exact = Exact(data)
    return text_flags(exact.p, exact.n), text_scan(exact.p, exact.n), bool(text_valid(exact.p, exact.n))


def utf8_check(bytes data):
    cdef Exact exact = Exact(data)
    return bool(topics.utf8_check(exact.span()))


def topic_check(bytes data):
    cdef Exact exact = Exact(data)
    return bool(topics.topic_check(exact.span()))


def filter_check(bytes data):
    cdef Exact exact = Exact(data)
    return bool(topics.filter_check(exact.span()))


def filter_has_wildcard(bytes data):
    cdef Exact exact = Exact(data)
    return bool(topics.filter_has_wildcard(exact.span()))


def level_count(bytes data):
    cdef Exact exact = Exact(data)
    return topics.level_count(exact.span())


def topic_matches(bytes filter, bytes topic):
    cdef Exact one = Exact(filter)
    cdef Exact other = Exact(topic)
    return bool(topics.topic_matches(one.span(), other.span()))


def share_split(bytes data):
    cdef Exact exact = Exact(data)
    cdef Span group = span_make(NULL, 0)
    cdef Span plain = span_make(NULL, 0)
    cdef int shared = topics.share_split(exact.span(), &group, &plain)
    return shared, text(group), text(plain)


def ws_header(bytes data):
    """(header bytes, opcode, fin, mask or None, payload bytes) of the WebSocket frame header that data begins with, or its status."""
    cdef Exact exact = Exact(data)
    cdef WsHeader found
    cdef int status = ws_header_next(exact.p, exact.p + exact.n, &found)
    if status != ST_OK:
        return status
    mask = (<const char *> found.mask)[:4] if found.masked else None
    return found.header_bytes, found.opcode, bool(found.fin), mask, found.payload_bytes


def ws_check(uint8_t opcode, bint masked, uint64_t payload_bytes, bint must_mask, bint fragmented, uint64_t most) -> int:
    cdef WsHeader header
    memset(&header, 0, sizeof(WsHeader))
    header.opcode = opcode
    header.masked = masked
    header.payload_bytes = payload_bytes
    return ws_header_check(&header, must_mask, fragmented, most)


def ws_put(uint8_t opcode, uint64_t payload_bytes, bytes mask=None) -> bytes:
    """Twice, so that room for exactly the header is known."""
    cdef uint8_t[WS_HEADER_MOST] room
    cdef const uint8_t *key = <const uint8_t *> <const char *> mask if mask is not None else NULL
    cdef Exact out = Exact(bytes(ws_header_put(room, opcode, payload_bytes, key)))
    ws_header_put(out.p, opcode, payload_bytes, key)
    return text(out.span())


def ws_mask_move(bytes data, bytes mask, uint32_t phase, uint32_t gap) -> bytes:
    """Masks data and moves it `gap` bytes forward in one buffer; what stands there then, the last `gap` bytes as they were left."""
    cdef Exact exact = Exact(bytes(gap) + data)
    ws_mask(exact.p, exact.p + gap, exact.n - gap, <const uint8_t *> <const char *> mask, phase)
    return text(exact.span())


def ws_mask_copy(bytes data, bytes mask, uint32_t phase) -> bytes:
    cdef Exact source = Exact(data)
    cdef Exact to = Exact(bytes(len(data)))
    ws_mask(to.p, source.p, source.n, <const uint8_t *> <const char *> mask, phase)
    return text(to.span())


def ws_close(bytes payload) -> int:
    cdef Exact exact = Exact(payload)
    return ws_close_check(exact.p, exact.n)


def ws_answer(bytes head, bytes accept) -> int:
    cdef Exact exact = Exact(head)
    cdef Exact wanted = Exact(accept)
    return ws_answer_check(exact.p, exact.p + exact.n, wanted.span())


def time_ws_mask(bytes data, uint32_t gap, uint32_t rounds) -> int:
    """Masks and moves the same bytes `gap` forwards again and again without leaving C; gives the number of bytes."""
    cdef Exact exact = Exact(bytes(gap) + data)
    cdef const uint8_t *key = b"\x37\xfa\x21\x3d"
    cdef uint32_t i
    with nogil:
        for i in range(rounds):
            ws_mask(exact.p, exact.p + gap, exact.n - gap, key, i)
    return len(data) * rounds


def time_decode(uint8_t level, bytes data, uint32_t rounds):
    """Decodes the same PUBLISH or ack again and again without leaving C; gives the number of rounds."""
    cdef Exact exact = Exact(data)
    cdef Frame found
    cdef Packet packet
    cdef const Dialect *dialect = dialect_for(level)
    cdef uint32_t i
    cdef int bad = 0
    with nogil:
        for i in range(rounds):
            bad |= frame_next(exact.p, exact.p + exact.n, 0, &found)
            bad |= decode_publish(dialect, &found, &packet) if found.type == PUBLISH else decode_ack(dialect, &found, &packet)
    if bad:
        raise ValueError(data.hex())
    return rounds


def time_encode(uint8_t level, bytes topic, bytes payload, uint8_t qos, uint32_t rounds):
    """publish_size and encode_publish again and again; gives the number of rounds."""
    cdef PublishParts parts
    cdef Exact topic_bytes = Exact(topic)
    cdef Exact payload_bytes = Exact(payload)
    cdef Exact out = Exact(bytes(len(topic) + len(payload) + 32))
    cdef const Dialect *dialect = dialect_for(level)
    cdef uint32_t i
    cdef uint32_t total = 0
    parts.qos = qos
    parts.dup = parts.retain = 0
    parts.has_message_expiry = False
    parts.message_expiry = 0
    parts.packet_id = 1
    parts.topic_alias = 0
    parts.subscription_id_count = 0
    parts.subscription_ids = NULL
    parts.topic = topic_bytes.span()
    parts.properties = span_make(NULL, 0)
    parts.payload = payload_bytes.span()
    with nogil:
        for i in range(rounds):
            if publish_size(dialect, &parts) <= out.n:
                total += encode_publish(dialect, &parts, out.p)
    return total
