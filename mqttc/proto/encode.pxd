"""Packets to bytes. Sizes first, then writing into room that the caller has; never writes more than the size said."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t

from mqttc.base.types cimport Span
from mqttc.proto.dialect cimport Dialect
from mqttc.proto.packet cimport Packet

# Any packet but PUBLISH from a message (that is PublishParts below). 0: it does not fit the protocol (string over 65535 bytes, over 268435455 in all).
cdef uint32_t packet_size(const Dialect *dialect, const Packet *packet) noexcept nogil
cdef uint32_t encode_packet(const Dialect *dialect, const Packet *packet, uint8_t *out) noexcept nogil       # bytes written

# PUBACK, PUBREC, PUBREL, PUBCOMP without properties: at most 5 bytes; reason 0 (or a dialect without reasons) takes 4.
cdef uint32_t encode_ack(const Dialect *dialect, uint8_t packet_type, uint16_t packet_id, uint8_t reason, uint8_t *out) noexcept nogil

cdef struct PublishParts:          # a PUBLISH to encode; the properties are in the order alias, expiry, subscription ids, forwarded
    uint8_t qos
    uint8_t dup
    uint8_t retain
    bint has_message_expiry
    uint16_t packet_id             # QoS > 0
    uint16_t topic_alias           # 0: none
    uint32_t message_expiry        # seconds remaining
    uint32_t subscription_id_count
    const uint32_t *subscription_ids
    Span topic                     # empty when an alias stands for it
    Span properties                # wire bytes without length (msg_properties)
    Span payload

cdef uint32_t publish_size(const Dialect *dialect, const PublishParts *parts) noexcept nogil
cdef uint32_t encode_publish(const Dialect *dialect, const PublishParts *parts, uint8_t *out) noexcept nogil
# Where the packet id stands in an encoded QoS > 0 PUBLISH, counted from its first byte.
cdef uint32_t publish_id_offset(const uint8_t *encoded) noexcept nogil
