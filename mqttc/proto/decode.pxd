"""Bytes to packets. Sans I/O, no clock, no allocation; spans point into the frame. Errors are negated reason codes (-RC_MALFORMED_PACKET, ...)."""

from libc.stdint cimport uint8_t, uint32_t

from mqttc.base.types cimport Span
from mqttc.proto.dialect cimport Dialect
from mqttc.proto.packet cimport Filter, Frame, Packet

# ST_OK; ST_NEED_MORE (frame.total_bytes when known); -RC_MALFORMED_PACKET (length field); -RC_PACKET_TOO_LARGE (total > maximum, decided as
# soon as the length is known). maximum 0: the protocol's limit. Overlong lengths are malformed.
cdef int frame_next(const uint8_t *p, const uint8_t *end, uint32_t maximum_packet_size, Frame *frame) noexcept nogil

# CONNECT, before a dialect is known: reads protocol name and level, then decodes by that dialect.
# -RC_UNSUPPORTED_PROTOCOL_VERSION with packet.protocol_level = the level asked for when name is MQTT (or MQIsdp) but level is unknown.
# On any other failure packet.protocol_level is the level if it was read (so that the refusal is in the client's own version), else 0.
cdef int decode_connect(const Frame *frame, Packet *packet) noexcept nogil

# PUBLISH, the hot path: touches only the fields a PUBLISH has. Checks flags, QoS 3, DUP with QoS 0, packet id 0, topic UTF-8, NUL and
# wildcards, and every property; topic may be empty only where a topic alias is present (v5).
cdef int decode_publish(const Dialect *dialect, const Frame *frame, Packet *packet) noexcept nogil

# PUBACK, PUBREC, PUBREL, PUBCOMP: hot too.
cdef int decode_ack(const Dialect *dialect, const Frame *frame, Packet *packet) noexcept nogil

# Any packet, both directions (also calls the three above; CONNECT ignores the dialect). Checks fixed header flags, and the whole list of filters.
cdef int decode_packet(const Dialect *dialect, const Frame *frame, Packet *packet) noexcept nogil

# Filters of a decoded SUBSCRIBE or UNSUBSCRIBE: advances list; false at its end. The list was checked when decoded: UTF-8, NUL, lengths,
# option bits (not: filter syntax, see topic.filter_check).
cdef bint filter_next(const Dialect *dialect, uint8_t packet_type, Span *list, Filter *out) noexcept nogil

# Writes the forwardable properties of a decoded PUBLISH or will (no topic alias, message expiry, will delay, subscription identifier), as received,
# to out, which has room for forward_bytes; gives the bytes written.
cdef uint32_t publish_forward(const Span raw, uint8_t *out) noexcept nogil
cdef uint32_t forward_size(const Span raw) noexcept nogil
