"""Dialect: what differs between 3.1, 3.1.1 and 5.0, as fields of constant tables. No version test stands outside proto/."""

from libc.stdint cimport uint8_t

cdef struct Dialect:
    uint8_t level                   # 3, 4, 5
    uint8_t layout                  # 0: without properties (3.x), 1: with (5.0); index of the broker's encode-once caches
    bint properties                 # packets carry properties
    bint ack_reasons                # PUBACK, PUBREC, PUBREL, PUBCOMP carry reason codes; else a failed QoS > 0 PUBLISH can only be acknowledged or cut off
    bint unsuback_reasons
    bint suback_failure             # SUBACK can say 0x80 (3.1.1) or more (5.0); 3.1 cannot refuse
    bint server_disconnect          # the server may send DISCONNECT
    bint session_expiry             # the client tells the session's expiry; else configuration does for clean_start = 0, and 0 for clean_start = 1
    bint empty_client_id            # a zero-length client id is allowed
    bint empty_client_id_needs_clean   # [MQTT-3.1.3-8]
    bint session_present            # CONNACK can say it (3.1 cannot)
    bint auth                       # AUTH packets exist
    const uint8_t *connack_codes    # 256 entries: v5 reason code -> return code on the wire
    const uint8_t *suback_codes     # 256 entries: v5 reason code -> on the wire

cdef const Dialect *dialect_for(uint8_t level) noexcept nogil       # 3, 4, 5; NULL for any other level
