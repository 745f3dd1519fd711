"""Dialect: what differs between 3.1, 3.1.1 and 5.0, as fields of constant tables. No version test stands outside proto/."""

from libc.stdint cimport uint8_t

cdef enum:
    CODE_NONE = 0xFF                # not a code of CONNACK in any version

cdef struct Dialect:
    uint8_t level                   # 3, 4, 5
    uint8_t layout                  # 0: without properties (3.x), 1: with (5.0); index of the broker's encode-once caches
    bint properties                 # packets carry properties
    bint strict_flags               # reserved flag bits are checked; 3.1 calls them unused, and sets DUP in PUBREL, SUBSCRIBE and UNSUBSCRIBE
    bint ack_reasons                # PUBACK, PUBREC, PUBREL, PUBCOMP carry reason codes; else a failed QoS > 0 PUBLISH can only be acknowledged or cut off
    bint unsuback_reasons
    bint suback_failure             # SUBACK can say 0x80 (3.1.1) or more (5.0); 3.1 cannot refuse
    bint server_disconnect          # the server may send DISCONNECT
    bint session_expiry             # the client tells the session's expiry; else configuration does for clean_start = 0, and 0 for clean_start = 1
    bint empty_client_id            # a zero-length client id is allowed
    bint empty_client_id_needs_clean   # [MQTT-3.1.3-8]
    bint session_present            # CONNACK can say it (3.1 cannot)
    bint password_alone             # a password without a user name is allowed [MQTT-3.1.2-22 of 3.1.1]
    bint auth                       # AUTH packets exist
    const uint8_t *connack_codes    # 256 entries: v5 reason code -> return code on the wire; CODE_NONE: none fits, close without CONNACK [MQTT-3.2.2-6 of 3.1.1]
    const uint8_t *suback_codes     # 256 entries: v5 reason code -> on the wire

cdef const Dialect *dialect_for(uint8_t level) noexcept nogil       # 3, 4, 5; NULL for any other level

# Whether MQTT 5.0 lets this reason code stand in this packet (CONNACK, acks, SUBACK, UNSUBACK, DISCONNECT, AUTH), from either side.
cdef bint reason_allowed(uint8_t packet_type, uint8_t reason) noexcept nogil
