"""Fuzz targets of mqttc.proto: what any bytes must lead to. See fuzz_target.pxd for what a target is."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcmp, memcpy, memset

from mqttc.base.types cimport ST_NEED_MORE, ST_OK, Span, span_equal, span_make
from mqttc.proto.decode cimport (
    decode_ack, decode_connect, decode_packet, decode_publish, filter_next, forward_size, frame_next, publish_forward,
)
from mqttc.proto.dialect cimport CODE_NONE, Dialect, dialect_for
from mqttc.proto.encode cimport PublishParts, encode_packet, encode_publish, packet_size, publish_id_offset, publish_size
from mqttc.proto.packet cimport (
    CONNACK, CONNECT, HAS_MESSAGE_EXPIRY, HAS_SUBSCRIPTION_ID, OPT_QOS_MASK, OPT_RETAIN_HANDLING_MASK, PUBACK, PUBCOMP, PUBLISH, RC_MALFORMED_PACKET,
    RC_PACKET_TOO_LARGE, SUBACK, SUBSCRIBE, UNSUBSCRIBE, Filter, Frame, Packet, Props,
)
from mqttc.proto.props cimport (
    PLACE_WILL, PROPERTY_SUBSCRIPTION_ID, PROPERTY_USER_PROPERTY, property_bit, property_check, property_next, props_allowed, props_clear,
    props_decode, props_put, props_size,
)
from mqttc.proto.topic cimport filter_check, filter_has_wildcard, level_count, share_split, topic_check, topic_matches, utf8_check
from mqttc.proto.wire cimport TEXT_BAD, TEXT_WILDCARD, Cursor, put_varint, take_varint, text_flags, text_scan, text_valid, varint_bytes
from mqttc.proto.wsframe cimport (
    WS_ANSWER_GOOD, WS_ANSWER_WRONG, WS_HEADER_MOST, WS_NOT_TEXT, WS_PROTOCOL_ERROR, WsHeader, ws_answer_check, ws_close_check, ws_header_check,
    ws_header_next, ws_header_put, ws_mask,
)
from tests.face.fuzz_target cimport Targets

cdef enum:
    PREFIXES = 40                  # cuts of a packet that are tried
    IDS = 64                       # Subscription Identifiers that are carried over


# ---------------------------------------------------------------------------------------------- what is equal

cdef bint props_same(const Props *a, const Props *b) noexcept nogil:
    """All that stands in typed fields."""
    return (
        a.present == b.present and a.session_expiry == b.session_expiry and a.message_expiry == b.message_expiry
        and a.will_delay == b.will_delay and a.maximum_packet_size == b.maximum_packet_size and a.subscription_id == b.subscription_id
        and a.subscription_id_count == b.subscription_id_count and a.receive_maximum == b.receive_maximum
        and a.topic_alias_maximum == b.topic_alias_maximum and a.topic_alias == b.topic_alias and a.server_keep_alive == b.server_keep_alive
        and a.user_property_count == b.user_property_count and a.payload_format == b.payload_format
        and a.request_problem_info == b.request_problem_info and a.request_response_info == b.request_response_info
        and a.maximum_qos == b.maximum_qos and a.retain_available == b.retain_available and a.wildcard_available == b.wildcard_available
        and a.subscription_id_available == b.subscription_id_available and a.shared_available == b.shared_available
        and span_equal(a.content_type, b.content_type) and span_equal(a.response_topic, b.response_topic)
        and span_equal(a.correlation_data, b.correlation_data) and span_equal(a.assigned_client_id, b.assigned_client_id)
        and span_equal(a.auth_method, b.auth_method) and span_equal(a.auth_data, b.auth_data)
        and span_equal(a.response_info, b.response_info) and span_equal(a.server_reference, b.server_reference)
        and span_equal(a.reason_string, b.reason_string)
    )


cdef bint packet_same(const Packet *a, const Packet *b) noexcept nogil:
    """The fixed header's flags aside: versions that do not check them let odd ones in, and none sends them."""
    return (
        a.type == b.type and a.reason == b.reason and a.session_present == b.session_present and a.packet_id == b.packet_id and a.qos == b.qos
        and a.dup == b.dup and a.retain == b.retain and a.protocol_level == b.protocol_level and a.bridge == b.bridge
        and a.clean_start == b.clean_start and a.has_will == b.has_will and a.will_qos == b.will_qos and a.will_retain == b.will_retain
        and a.has_username == b.has_username and a.has_password == b.has_password and a.keep_alive == b.keep_alive
        and a.forward_bytes == b.forward_bytes and span_equal(a.client_id, b.client_id) and span_equal(a.username, b.username)
        and span_equal(a.password, b.password) and span_equal(a.will_topic, b.will_topic) and span_equal(a.will_payload, b.will_payload)
        and span_equal(a.topic, b.topic) and span_equal(a.payload, b.payload) and span_equal(a.list, b.list)
        and props_same(&a.props, &b.props) and props_same(&a.will_props, &b.will_props)
    )


cdef bint publish_same(const Packet *a, const Packet *b) noexcept nogil:
    """The fields that decode_publish sets."""
    return (
        a.type == b.type and a.flags == b.flags and a.packet_id == b.packet_id and a.qos == b.qos and a.dup == b.dup and a.retain == b.retain
        and a.forward_bytes == b.forward_bytes and span_equal(a.topic, b.topic) and span_equal(a.payload, b.payload)
        and a.props.present == b.props.present and a.props.message_expiry == b.props.message_expiry
        and a.props.subscription_id == b.props.subscription_id and a.props.subscription_id_count == b.props.subscription_id_count
        and a.props.topic_alias == b.props.topic_alias and a.props.user_property_count == b.props.user_property_count
        and a.props.payload_format == b.props.payload_format and span_equal(a.props.content_type, b.props.content_type)
        and span_equal(a.props.response_topic, b.props.response_topic) and span_equal(a.props.correlation_data, b.props.correlation_data)
        and span_equal(a.props.raw, b.props.raw)
    )


cdef bint within(Span span, const uint8_t *p, const uint8_t *end) noexcept nogil:
    return span.n == 0 or (span.p >= p and span.p <= end and span.n <= <size_t> (end - span.p))


cdef bint props_within(const Props *props, const uint8_t *p, const uint8_t *end) noexcept nogil:
    return (
        within(props.content_type, p, end) and within(props.response_topic, p, end) and within(props.correlation_data, p, end)
        and within(props.assigned_client_id, p, end) and within(props.auth_method, p, end) and within(props.auth_data, p, end)
        and within(props.response_info, p, end) and within(props.server_reference, p, end) and within(props.reason_string, p, end)
        and within(props.raw, p, end)
    )


cdef inline bint is_refusal(int status) noexcept nogil:
    """A negated reason code."""
    return -255 <= status <= -128


# ---------------------------------------------------------------------------------------------- decoder

cdef const char *cut_check(const uint8_t *p, const uint8_t *end, uint32_t maximum, int status, const Frame *whole) noexcept nogil:
    """Of a packet that comes in pieces no piece says anything but what all of it says, or that more is needed."""
    cdef Frame frame
    cdef size_t n = <size_t> (end - p)
    cdef size_t cut
    cdef int said
    if status == ST_OK:
        n = whole.total_bytes
    for cut in range(n if n < PREFIXES else <size_t> PREFIXES):
        said = frame_next(p, p + cut, maximum, &frame)
        if said == ST_NEED_MORE:
            if frame.total_bytes != 0 and status == ST_OK and frame.total_bytes != whole.total_bytes:
                return "a part of a packet tells another length than the whole"
            if frame.total_bytes != 0 and frame.total_bytes <= cut:
                return "more is needed of a packet that is there"
        elif said != status or said == ST_OK:
            return "a part of a packet is judged otherwise than the whole"
    if status == ST_OK and frame_next(p, p + n - 1, maximum, &frame) != ST_NEED_MORE:
        return "the last byte of a packet is not missed"
    return NULL


cdef const char *filters_check(const Dialect *dialect, const Packet *packet) noexcept nogil:
    cdef Span rest = packet.list
    cdef Filter one
    cdef uint32_t found = 0
    while filter_next(dialect, packet.type, &rest, &one):
        found += 1
        if not within(one.text, packet.list.p, packet.list.p + packet.list.n):
            return "a filter lies outside its list"
        if not text_valid(one.text.p, one.text.n):
            return "a filter is not UTF-8"
        if one.options & OPT_QOS_MASK == 3 or one.options & OPT_RETAIN_HANDLING_MASK == OPT_RETAIN_HANDLING_MASK or one.options & 0xC0:
            return "options that do not exist were let in"
    if rest.n == 0 and found:
        return NULL
    return "a list of filters that was checked does not end where it should"


cdef const char *hot_check(const Dialect *dialect, const Frame *frame, int status, const Packet *packet) noexcept nogil:
    """The special decoders, over rubbish, say what the general one says."""
    cdef Packet hot
    cdef int said
    memset(&hot, 0xA5, sizeof(Packet))
    if frame.type == PUBLISH:
        said = decode_publish(dialect, frame, &hot)
        if said != status or (said == ST_OK and not publish_same(packet, &hot)):
            return "decode_publish and decode_packet disagree"
    elif PUBACK <= frame.type <= PUBCOMP:
        said = decode_ack(dialect, frame, &hot)
        if said != status or (said == ST_OK and not (
            packet.packet_id == hot.packet_id and packet.reason == hot.reason and packet.props.present == hot.props.present
            and span_equal(packet.props.reason_string, hot.props.reason_string) and span_equal(packet.props.raw, hot.props.raw)
        )):
            return "decode_ack and decode_packet disagree"
    elif frame.type == CONNECT:
        said = decode_connect(frame, &hot)
        if said != status or (said == ST_OK and not packet_same(packet, &hot)):
            return "decode_connect and decode_packet disagree"
    return NULL


cdef const char *packet_check(const Dialect *dialect, const Frame *frame, int status, const Packet *packet) noexcept nogil:
    cdef const uint8_t *p = frame.body
    cdef const uint8_t *end = frame.body + frame.body_bytes
    cdef const char *why = hot_check(dialect, frame, status, packet)
    if why != NULL:
        return why
    if status != ST_OK:
        if is_refusal(status):
            return NULL
        return "a packet is refused without a reason code"
    if not (
        within(packet.client_id, p, end) and within(packet.username, p, end) and within(packet.password, p, end)
        and within(packet.will_topic, p, end) and within(packet.will_payload, p, end) and within(packet.topic, p, end)
        and within(packet.payload, p, end) and within(packet.list, p, end) and props_within(&packet.props, p, end)
        and props_within(&packet.will_props, p, end)
    ):
        return "a field lies outside its packet"
    if packet.type != frame.type:
        return "a packet has another type than its frame"
    if packet.type == CONNECT and not 3 <= packet.protocol_level <= 5:
        return "a protocol level that does not exist was let in"
    if packet.type == PUBLISH and (packet.qos > 2 or (packet.qos > 0) != (packet.packet_id > 0)):
        return "QoS and Packet Identifier do not fit"
    if packet.type == PUBLISH and text_scan(packet.topic.p, packet.topic.n):
        return "a Topic Name with wildcards or bad UTF-8 was let in"
    if packet.type == SUBSCRIBE or packet.type == UNSUBSCRIBE:
        return filters_check(dialect, packet)
    return NULL


cdef const char *fuzz_decode(const uint8_t *data, size_t n) noexcept nogil:
    """First byte: version, and the largest packet that is allowed; then a stream of packets."""
    cdef const Dialect *dialect
    cdef const uint8_t *p
    cdef const uint8_t *end = data + n
    cdef Frame frame
    cdef Packet packet
    cdef const char *why
    cdef uint32_t maximum
    cdef int status
    if n == 0:
        return NULL
    dialect = dialect_for(3 + data[0] % 3)
    maximum = <uint32_t> 4 << (data[0] >> 4) if data[0] & 8 else 0
    p = data + 1
    while p < end:
        status = frame_next(p, end, maximum, &frame)
        why = cut_check(p, end, maximum, status, &frame)
        if why != NULL:
            return why
        if status == ST_NEED_MORE or status == -RC_MALFORMED_PACKET or (maximum and status == -RC_PACKET_TOO_LARGE):
            return NULL
        if status != ST_OK:
            return "frame_next says what it should not"
        if frame.total_bytes > <size_t> (end - p) or frame.body + frame.body_bytes != p + frame.total_bytes:
            return "a frame lies outside its bytes"
        if maximum and frame.total_bytes > maximum:
            return "a packet over the limit was let in"
        memset(&packet, 0xA5, sizeof(Packet))
        status = decode_packet(dialect, &frame, &packet)
        why = packet_check(dialect, &frame, status, &packet)
        if why != NULL:
            return why
        if status == ST_OK and packet.type == CONNECT:
            dialect = dialect_for(packet.protocol_level)
        p += frame.total_bytes
    return NULL


# ---------------------------------------------------------------------------------------------- encode of decode

cdef struct Block:
    uint8_t *p                     # owned
    uint32_t n


cdef bint block_make(Block *block, uint32_t n) noexcept nogil:
    block.n = n
    block.p = <uint8_t *> malloc(n if n else 1)
    return block.p != NULL


cdef bint extras_take(const Props *props, Block *block) noexcept nogil:
    """User properties, and Subscription Identifiers after the first: what typed fields cannot hold. False: no memory."""
    cdef Cursor cursor
    cdef Span whole
    cdef uint8_t identifier
    cdef bint first = True
    cdef uint32_t n = 0
    if not block_make(block, props.raw.n):
        return False
    cursor.p = props.raw.p
    cursor.end = props.raw.p + props.raw.n
    while property_next(&cursor, &identifier, &whole):
        if identifier == PROPERTY_USER_PROPERTY or (identifier == PROPERTY_SUBSCRIPTION_ID and not first):
            memcpy(block.p + n, whole.p, whole.n)
            n += whole.n
        if identifier == PROPERTY_SUBSCRIPTION_ID:
            first = False
    block.n = n
    return True


cdef const char *encoded_check(const Dialect *dialect, const Packet *from_wire, const Packet *packet, bint exact) noexcept nogil:
    """Encodes `packet`; decoded again it must be `from_wire`. exact: and encoded once more the same bytes."""
    cdef Packet again
    cdef Frame frame
    cdef Block out, second
    cdef const char *why = NULL
    cdef uint32_t size = packet_size(dialect, packet)
    if size == 0:
        return "what was decoded cannot be encoded"
    if not block_make(&out, size):
        return NULL
    if encode_packet(dialect, packet, out.p) != size:
        why = "another number of bytes was written than the size said"
    elif frame_next(out.p, out.p + size, 0, &frame) != ST_OK or frame.total_bytes != size:
        why = "what was encoded is no packet"
    elif decode_packet(dialect, &frame, &again) != ST_OK:
        why = "what was encoded cannot be decoded"
    elif not packet_same(from_wire, &again):
        why = "what was encoded says something else"
    elif exact:
        again.props.present = 0
        again.will_props.present = 0
        if packet_size(dialect, &again) != size or not block_make(&second, size):
            why = "encoded twice it has another size"
        else:
            encode_packet(dialect, &again, second.p)
            if memcmp(out.p, second.p, size) != 0:
                why = "encoded twice it has other bytes"
            free(second.p)
    free(out.p)
    return why


cdef const char *publish_check(const Dialect *dialect, const Packet *packet) noexcept nogil:
    """The message as the broker sends it on: properties that travel, and those of its own in front."""
    cdef PublishParts parts
    cdef Packet again
    cdef Frame frame
    cdef Block forward, out
    cdef Cursor cursor
    cdef Span whole
    cdef uint8_t identifier
    cdef uint32_t[IDS] ids
    cdef uint32_t size
    cdef const char *why = NULL
    memset(&parts, 0, sizeof(PublishParts))
    if forward_size(packet.props.raw) != packet.forward_bytes:
        return "forward_bytes is not what forward_size says"
    if packet.props.subscription_id_count > IDS or not block_make(&forward, packet.forward_bytes):
        return NULL
    cursor.p = packet.props.raw.p
    cursor.end = packet.props.raw.p + packet.props.raw.n
    while property_next(&cursor, &identifier, &whole):
        if identifier == PROPERTY_SUBSCRIPTION_ID:
            cursor.p = whole.p + 1
            if not take_varint(&cursor, &ids[parts.subscription_id_count]):
                why = "a Subscription Identifier that was checked cannot be read"
                break
            parts.subscription_id_count += 1
    if publish_forward(packet.props.raw, forward.p) != packet.forward_bytes:
        why = "publish_forward wrote something else than forward_bytes"
    parts.qos = packet.qos
    parts.dup = packet.dup
    parts.retain = packet.retain
    parts.packet_id = packet.packet_id
    parts.topic_alias = packet.props.topic_alias
    parts.has_message_expiry = packet.props.present & HAS_MESSAGE_EXPIRY != 0
    parts.message_expiry = packet.props.message_expiry
    parts.subscription_ids = ids
    parts.topic = packet.topic
    parts.payload = packet.payload
    parts.properties = span_make(forward.p, forward.n)
    size = publish_size(dialect, &parts)
    if why == NULL and size == 0:
        why = "a PUBLISH that was decoded cannot be sent on"
    if why == NULL and block_make(&out, size):
        if encode_publish(dialect, &parts, out.p) != size:
            why = "encode_publish wrote another number of bytes than publish_size said"
        elif frame_next(out.p, out.p + size, 0, &frame) != ST_OK or decode_packet(dialect, &frame, &again) != ST_OK or not packet_same(packet, &again):
            why = "a PUBLISH sent on says something else"
        elif packet.qos and memcmp(out.p + publish_id_offset(out.p), packet.topic.p + packet.topic.n, 2) != 0:
            why = "publish_id_offset points elsewhere"
        free(out.p)
    free(forward.p)
    return why


cdef bint is_sayable(const Dialect *dialect, const Packet *packet) noexcept nogil:
    """3.1 has no code for a refused filter; from brokers that send one all the same it is read, but never sent."""
    cdef uint32_t i
    if packet.type == SUBACK and not dialect.suback_failure:
        for i in range(packet.list.n):
            if packet.list.p[i] > 2:
                return False
    return True


cdef const char *recode_check(const Dialect *dialect, const Packet *packet) noexcept nogil:
    cdef Packet other = packet[0]
    cdef Block extras, will_extras
    cdef const char *why
    if not is_sayable(dialect, packet):
        return NULL
    # Raw properties stand for the typed ones.
    other.props.present = 0
    other.will_props.present = 0
    why = encoded_check(dialect, packet, &other, True)
    if why != NULL or not extras_take(&packet.props, &extras):
        return why
    if not extras_take(&packet.will_props, &will_extras):
        free(extras.p)
        return NULL
    # Typed ones, as the broker builds its own packets.
    other = packet[0]
    other.props.raw = span_make(extras.p, extras.n)
    other.will_props.raw = span_make(will_extras.p, will_extras.n)
    why = encoded_check(dialect, packet, &other, False)
    free(extras.p)
    free(will_extras.p)
    if why == NULL and packet.type == PUBLISH:
        why = publish_check(dialect, packet)
    return why


cdef const char *fuzz_recode(const uint8_t *data, size_t n) noexcept nogil:
    """First byte: version; then packets."""
    cdef const Dialect *dialect
    cdef const uint8_t *p
    cdef const uint8_t *end = data + n
    cdef Frame frame
    cdef Packet packet
    cdef const char *why
    if n == 0:
        return NULL
    dialect = dialect_for(3 + data[0] % 3)
    p = data + 1
    while p < end and frame_next(p, end, 0, &frame) == ST_OK:
        if decode_packet(dialect, &frame, &packet) == ST_OK:
            if packet.type == CONNECT:
                dialect = dialect_for(packet.protocol_level)
            why = recode_check(dialect, &packet)
            if why != NULL:
                return why
        p += frame.total_bytes
    return NULL


# ---------------------------------------------------------------------------------------------- properties

cdef const char *fuzz_properties(const uint8_t *data, size_t n) noexcept nogil:
    """First byte: where the section stands; then its bytes, the length in front made here."""
    cdef Block section, out, extras
    cdef Props props, again
    cdef Cursor cursor, walk
    cdef Span whole
    cdef uint8_t place, identifier
    cdef uint32_t head, size
    cdef uint32_t forward_bytes = 0
    cdef uint32_t allowed, found
    cdef const char *why = NULL
    cdef int status
    if n == 0 or n > 100000:
        return NULL
    place = data[0] % 17
    allowed = props_allowed(place)
    head = varint_bytes(<uint32_t> (n - 1))
    if not block_make(&section, head + <uint32_t> (n - 1)):
        return NULL
    put_varint(section.p, <uint32_t> (n - 1))
    memcpy(section.p + head, data + 1, n - 1)
    cursor.p = section.p
    cursor.end = section.p + section.n
    props_clear(&props)
    status = props_decode(&cursor, place, &props, &forward_bytes)
    if status != ST_OK:
        free(section.p)
        if is_refusal(status):
            return NULL
        return "properties are refused without a reason code"
    if cursor.p != cursor.end or not props_within(&props, section.p, cursor.end):
        why = "a section was not read to its end"
    if props.present & ~allowed:
        why = "a property was let in where it may not stand"
    found = 0
    walk.p = props.raw.p
    walk.end = props.raw.p + props.raw.n
    while property_next(&walk, &identifier, &whole):
        found |= property_bit(identifier)
        if property_check(whole) != ST_OK:
            why = "property_check refuses what props_decode let in"
    if found != props.present or walk.p != walk.end:
        why = "a walk over the section finds other properties"
    if why == NULL and (place == PUBLISH or place == PLACE_WILL) and forward_size(props.raw) != forward_bytes:
        why = "forward_bytes is not what forward_size says"
    # PLACE_ANY takes repeats that no packet may have.
    if why == NULL and place < 16 and extras_take(&props, &extras):
        again = props
        again.raw = span_make(extras.p, extras.n)
        size = props_size(&again, place)
        if size > section.n:
            why = "typed properties take more room than they came in"
        elif block_make(&out, varint_bytes(size) + size):
            if props_put(&again, place, put_varint(out.p, size)) != out.p + out.n:
                why = "another number of bytes was written than props_size said"
            else:
                cursor.p = out.p
                cursor.end = out.p + out.n
                props_clear(&again)
                if props_decode(&cursor, place, &again, &forward_bytes) != ST_OK or not props_same(&props, &again):
                    why = "properties that were written say something else"
            free(out.p)
        free(extras.p)
    free(section.p)
    return why


# ---------------------------------------------------------------------------------------------- texts

cdef uint32_t reference_scan(const uint8_t *p, size_t n) noexcept nogil:
    """TextFlag by the definition: code points one by one (Unicode, table 3-7)."""
    cdef size_t i = 0
    cdef size_t more, k
    cdef uint32_t code, least
    cdef uint32_t flags = 0
    while i < n:
        if p[i] < 0x80:
            more, code, least = 0, p[i], 1
        elif p[i] & 0xE0 == 0xC0:
            more, code, least = 1, p[i] & 0x1F, 0x80
        elif p[i] & 0xF0 == 0xE0:
            more, code, least = 2, p[i] & 0x0F, 0x800
        elif p[i] & 0xF8 == 0xF0:
            more, code, least = 3, p[i] & 0x07, 0x10000
        else:
            return TEXT_BAD
        if more >= n - i:
            return TEXT_BAD
        for k in range(1, more + 1):
            if p[i + k] & 0xC0 != 0x80:
                return TEXT_BAD
            code = code << 6 | (p[i + k] & 0x3F)
        if code < least or code > 0x10FFFF or 0xD800 <= code <= 0xDFFF:
            return TEXT_BAD
        if code == c'+' or code == c'#':
            flags = TEXT_WILDCARD
        i += more + 1
    return flags


cdef const char *fuzz_text(const uint8_t *data, size_t n) noexcept nogil:
    """First byte: where the text begins, so that every alignment comes."""
    cdef const uint8_t *p
    cdef uint32_t flags, scanned, expected
    if n == 0 or n - 1 < (data[0] & 7):
        return NULL
    p = data + 1 + (data[0] & 7)
    n -= 1 + (data[0] & 7)
    expected = reference_scan(p, n)
    flags = text_flags(p, <uint32_t> n)
    scanned = text_scan(p, <uint32_t> n)
    if (flags & TEXT_BAD != 0) != (expected == TEXT_BAD) or (expected != TEXT_BAD and flags != expected):
        return "text_flags judges a text wrongly"
    if (scanned & TEXT_BAD != 0) != (expected == TEXT_BAD) or (expected != TEXT_BAD and scanned != expected):
        return "text_scan judges a text wrongly"
    if text_valid(p, <uint32_t> n) != (expected != TEXT_BAD):
        return "text_valid judges a text wrongly"
    if utf8_check(span_make(p, n)) != (expected != TEXT_BAD):
        return "utf8_check judges a text wrongly"
    return NULL


# ---------------------------------------------------------------------------------------------- topics

cdef bint reference_filter(const uint8_t *p, size_t n) noexcept nogil:
    cdef size_t i
    for i in range(n):
        if p[i] == c'#' and (i + 1 != n or (i > 0 and p[i - 1] != c'/')):
            return False
        if p[i] == c'+' and ((i > 0 and p[i - 1] != c'/') or (i + 1 < n and p[i + 1] != c'/')):
            return False
    return n > 0


cdef bint reference_matches(const uint8_t *f, const uint8_t *f_end, const uint8_t *t, const uint8_t *t_end) noexcept nogil:
    """Character by character, both at the start of a level."""
    while True:
        if f < f_end and f[0] == c'#':
            return True
        if f < f_end and f[0] == c'+':
            f += 1
            while t < t_end and t[0] != c'/':
                t += 1
        else:
            while f < f_end and t < t_end and f[0] == t[0] and f[0] != c'/':
                f += 1
                t += 1
        if (f < f_end and f[0] != c'/') or (t < t_end and t[0] != c'/'):
            return False
        if t == t_end:
            return f == f_end or (f_end - f == 2 and f[1] == c'#')
        if f == f_end:
            return False
        f += 1
        t += 1


cdef const char *share_check(Span filter) noexcept nogil:
    cdef Span group = span_make(NULL, 0)
    cdef Span plain = span_make(NULL, 0)
    cdef size_t i
    cdef int said = share_split(filter, &group, &plain)
    if (filter.n >= 7 and memcmp(filter.p, b"$share/", 7) == 0) != (said != 0):
        return "share_split takes one kind of filter for the other"
    if said == 1:
        if group.n == 0 or plain.n == 0 or group.p != filter.p + 7 or plain.p != group.p + group.n + 1 or plain.p + plain.n != filter.p + filter.n:
            return "share_split cuts in the wrong place"
        for i in range(group.n):
            if group.p[i] == c'/' or group.p[i] == c'+' or group.p[i] == c'#':
                return "share_split lets a group's name have what it may not"
    return NULL


cdef const char *fuzz_topics(const uint8_t *data, size_t n) noexcept nogil:
    """A filter, NUL, a Topic Name."""
    cdef size_t cut = 0
    cdef size_t i
    cdef uint32_t levels = 1
    cdef bint wild = False
    cdef bint expected
    cdef Span filter, topic
    while cut < n and data[cut] != 0:
        cut += 1
    filter = span_make(data, cut)
    topic = span_make(data + cut + 1, n - cut - 1) if cut < n else span_make(data + n, 0)
    if not utf8_check(filter) or not utf8_check(topic):
        return NULL
    for i in range(filter.n):
        wild = wild or filter.p[i] == c'+' or filter.p[i] == c'#'
        levels += filter.p[i] == c'/'
    if filter_check(filter) != reference_filter(filter.p, filter.n):
        return "filter_check judges a filter wrongly"
    if topic_check(filter) != (filter.n > 0 and not wild):
        return "topic_check judges a Topic Name wrongly"
    if not reference_filter(filter.p, filter.n):
        return NULL
    if filter_has_wildcard(filter) != wild:
        return "filter_has_wildcard is wrong"
    if level_count(filter) != levels:
        return "level_count is wrong"
    if topic_check(topic):
        expected = reference_matches(filter.p, filter.p + filter.n, topic.p, topic.p + topic.n)
        if topic.p[0] == c'$' and (filter.p[0] == c'+' or filter.p[0] == c'#'):
            expected = False
        if topic_matches(filter, topic) != expected:
            return "topic_matches is wrong"
    return share_check(filter)


# ---------------------------------------------------------------------------------------------- WebSocket

cdef const char *header_check(const uint8_t *p, size_t n, uint8_t how) noexcept nogil:
    cdef WsHeader header, part
    cdef uint8_t[WS_HEADER_MOST] room
    cdef size_t cut
    cdef uint32_t wrote
    cdef int said
    cdef int status = ws_header_next(p, p + n, &header)
    if status == ST_NEED_MORE:
        if n < WS_HEADER_MOST:
            return NULL
        return "more than a header needs more"
    for cut in range(n if n < WS_HEADER_MOST else <size_t> WS_HEADER_MOST):
        said = ws_header_next(p, p + cut, &part)
        if said == ST_OK and (status != ST_OK or cut < header.header_bytes):
            return "a part of a header is taken for a whole one"
        if said != ST_OK and said != ST_NEED_MORE and said != status:
            return "a part of a header is judged otherwise than the whole"
    if status != ST_OK:
        if status == -WS_PROTOCOL_ERROR:
            return NULL
        return "a header is refused with another code than 1002"
    if header.header_bytes > n or header.header_bytes > WS_HEADER_MOST:
        return "a header lies outside its bytes"
    if header.fin:
        wrote = ws_header_put(room, header.opcode, header.payload_bytes, header.mask if header.masked else NULL)
        if wrote != header.header_bytes or memcmp(room, p, wrote) != 0:
            return "a header that is written again has other bytes"
    said = ws_header_check(&header, how & 1, how & 2 != 0, 1000)
    if said == ST_OK and (header.payload_bytes > 1000 or header.masked != (how & 1) or header.opcode == 1):
        return "ws_header_check lets a frame in that may not come"
    return NULL


cdef const char *mask_check(const uint8_t *p, size_t n, uint8_t phase) noexcept nogil:
    """A copy, masked, and one masked within its own buffer, are what the definition says (RFC 6455 section 5.3)."""
    cdef uint8_t[4] mask
    cdef uint8_t *room
    cdef size_t i
    cdef size_t gap = phase >> 2 & 15
    cdef const char *why = NULL
    if n < 4:
        return NULL
    memcpy(mask, p, 4)
    room = <uint8_t *> malloc(n + gap)
    if room == NULL:
        return NULL
    memcpy(room + gap, p, n)
    ws_mask(room, room + gap, n, mask, phase & 3)
    for i in range(n):
        if room[i] != p[i] ^ mask[(i + (phase & 3)) & 3]:
            why = "ws_mask masks wrongly"
    free(room)
    return why


cdef const char *close_check(const uint8_t *p, size_t n) noexcept nogil:
    cdef int said
    if n > 125:
        n = 125
    said = ws_close_check(p, <uint32_t> n)
    if said == -WS_PROTOCOL_ERROR or said == -WS_NOT_TEXT:
        return NULL
    if n >= 2 and said != (<int> p[0] << 8 | p[1]):
        return "a close frame is answered with another code"
    if 1000 <= said <= 4999 and not 1004 <= said <= 1006:
        return NULL
    return "a code is answered that no close frame may have"


cdef const char *fuzz_ws_frame(const uint8_t *data, size_t n) noexcept nogil:
    """First byte: how; then a header, which is also taken as a payload and as a close frame's."""
    cdef const char *why
    if n == 0:
        return NULL
    why = header_check(data + 1, n - 1, data[0])
    if why == NULL:
        why = mask_check(data + 1, n - 1, data[0])
    return why if why != NULL else close_check(data + 1, n - 1)


cdef const char *fuzz_ws_answer(const uint8_t *data, size_t n) noexcept nogil:
    """The head of a server's answer, without the empty line behind it; its key is accepted as `accept`."""
    cdef int said = ws_answer_check(data, data + n, span_make(b"accept", 6))
    if said < WS_ANSWER_GOOD or said > WS_ANSWER_WRONG:
        return "an answer is judged by no WsAnswer"
    if said == WS_ANSWER_GOOD and (n < 60 or memcmp(data, b"HTTP/1.1 101", 12) != 0):
        return "an answer is taken that cannot be one"
    return NULL


# ---------------------------------------------------------------------------------------------- by name

cdef Targets targets = Targets()
targets.add("decode", fuzz_decode)
targets.add("recode", fuzz_recode)
targets.add("properties", fuzz_properties)
targets.add("text", fuzz_text)
targets.add("topics", fuzz_topics)
targets.add("ws_frame", fuzz_ws_frame)
targets.add("ws_answer", fuzz_ws_answer)
TARGETS = targets
