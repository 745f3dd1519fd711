"""The three tables, and which reason code may stand in which packet."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memset

from mqttc.proto.packet cimport (
    AUTH, CONNACK, DISCONNECT, PUBACK, PUBCOMP, PUBREC, PUBREL, SUBACK, UNSUBACK,
    RC_BAD_AUTHENTICATION_METHOD, RC_BAD_USER_NAME_OR_PASSWORD, RC_BANNED, RC_CLIENT_IDENTIFIER_NOT_VALID,
    RC_CONNECTION_RATE_EXCEEDED, RC_GRANTED_QOS_1, RC_GRANTED_QOS_2, RC_NOT_AUTHORIZED, RC_QUOTA_EXCEEDED, RC_SERVER_BUSY,
    RC_SERVER_MOVED, RC_SERVER_SHUTTING_DOWN, RC_SERVER_UNAVAILABLE, RC_SUCCESS, RC_UNSUPPORTED_PROTOCOL_VERSION,
    RC_USE_ANOTHER_SERVER,
)

# Filled once at import, constant afterwards.
cdef Dialect DIALECT_3
cdef Dialect DIALECT_4
cdef Dialect DIALECT_5
cdef uint8_t[256] CONNACK_3                 # 3.1 and 3.1.1, table 3.1
cdef uint8_t[256] SUBACK_3                  # 3.1: granted QoS only
cdef uint8_t[256] SUBACK_4                  # 3.1.1 [MQTT-3.9.3-2]
cdef uint8_t[256] SAME                      # 5.0
cdef uint16_t[256] REASONS                  # reason code -> packet types, bit 1 << PacketType


cdef void _reasons_add(uint32_t first, uint32_t last, uint32_t types) noexcept nogil:
    cdef uint32_t code
    for code in range(first, last + 1):
        REASONS[code] |= <uint16_t> types


cdef void _reasons_fill() noexcept nogil:
    """MQTT 5.0, section 2.4 and the tables of each packet."""
    cdef uint32_t connack = 1 << CONNACK
    cdef uint32_t publish = (1 << PUBACK) | (1 << PUBREC)
    cdef uint32_t release = (1 << PUBREL) | (1 << PUBCOMP)
    cdef uint32_t suback = 1 << SUBACK
    cdef uint32_t unsuback = 1 << UNSUBACK
    cdef uint32_t disconnect = 1 << DISCONNECT
    cdef uint32_t auth = 1 << AUTH
    memset(REASONS, 0, sizeof(REASONS))
    _reasons_add(0x00, 0x00, connack | publish | release | suback | unsuback | disconnect | auth)
    _reasons_add(0x01, 0x02, suback)
    _reasons_add(0x04, 0x04, disconnect)
    _reasons_add(0x10, 0x10, publish)
    _reasons_add(0x11, 0x11, unsuback)
    _reasons_add(0x18, 0x19, auth)
    _reasons_add(0x80, 0x80, connack | publish | suback | unsuback | disconnect)
    _reasons_add(0x81, 0x82, connack | disconnect)
    _reasons_add(0x83, 0x83, connack | publish | suback | unsuback | disconnect)
    _reasons_add(0x84, 0x86, connack)
    _reasons_add(0x87, 0x87, connack | publish | suback | unsuback | disconnect)
    _reasons_add(0x88, 0x88, connack)
    _reasons_add(0x89, 0x89, connack | disconnect)
    _reasons_add(0x8A, 0x8A, connack)
    _reasons_add(0x8B, 0x8B, disconnect)
    _reasons_add(0x8C, 0x8C, connack | disconnect)
    _reasons_add(0x8D, 0x8E, disconnect)
    _reasons_add(0x8F, 0x8F, suback | unsuback | disconnect)
    _reasons_add(0x90, 0x90, connack | publish | disconnect)
    _reasons_add(0x91, 0x91, publish | suback | unsuback)
    _reasons_add(0x92, 0x92, release)
    _reasons_add(0x93, 0x94, disconnect)
    _reasons_add(0x95, 0x95, connack | disconnect)
    _reasons_add(0x96, 0x96, disconnect)
    _reasons_add(0x97, 0x97, connack | publish | suback | disconnect)
    _reasons_add(0x98, 0x98, disconnect)
    _reasons_add(0x99, 0x99, connack | publish | disconnect)
    _reasons_add(0x9A, 0x9D, connack | disconnect)
    _reasons_add(0x9E, 0x9E, suback | disconnect)
    _reasons_add(0x9F, 0x9F, connack | disconnect)
    _reasons_add(0xA0, 0xA0, disconnect)
    _reasons_add(0xA1, 0xA2, suback | disconnect)


cdef void _code_set(uint8_t *codes, uint32_t reason, uint8_t code) noexcept nogil:
    codes[reason] = code


cdef void _codes_fill() noexcept nogil:
    cdef uint32_t code
    memset(CONNACK_3, CODE_NONE, sizeof(CONNACK_3))
    _code_set(CONNACK_3, RC_SUCCESS, 0)
    _code_set(CONNACK_3, RC_UNSUPPORTED_PROTOCOL_VERSION, 1)
    _code_set(CONNACK_3, RC_CLIENT_IDENTIFIER_NOT_VALID, 2)
    _code_set(CONNACK_3, RC_SERVER_UNAVAILABLE, 3)
    _code_set(CONNACK_3, RC_SERVER_BUSY, 3)
    _code_set(CONNACK_3, RC_SERVER_SHUTTING_DOWN, 3)
    _code_set(CONNACK_3, RC_QUOTA_EXCEEDED, 3)
    _code_set(CONNACK_3, RC_USE_ANOTHER_SERVER, 3)
    _code_set(CONNACK_3, RC_SERVER_MOVED, 3)
    _code_set(CONNACK_3, RC_CONNECTION_RATE_EXCEEDED, 3)
    _code_set(CONNACK_3, RC_BAD_USER_NAME_OR_PASSWORD, 4)
    _code_set(CONNACK_3, RC_NOT_AUTHORIZED, 5)
    _code_set(CONNACK_3, RC_BANNED, 5)
    _code_set(CONNACK_3, RC_BAD_AUTHENTICATION_METHOD, 5)
    for code in range(256):
        SAME[code] = <uint8_t> code
        SUBACK_4[code] = 0x80
        SUBACK_3[code] = 0
    _code_set(SUBACK_4, RC_SUCCESS, 0)
    _code_set(SUBACK_4, RC_GRANTED_QOS_1, 1)
    _code_set(SUBACK_4, RC_GRANTED_QOS_2, 2)
    _code_set(SUBACK_3, RC_GRANTED_QOS_1, 1)
    _code_set(SUBACK_3, RC_GRANTED_QOS_2, 2)


cdef void _dialects_fill() noexcept nogil:
    memset(&DIALECT_3, 0, sizeof(Dialect))
    DIALECT_3.level = 3
    DIALECT_3.connack_codes = CONNACK_3
    DIALECT_3.suback_codes = SUBACK_3

    memset(&DIALECT_4, 0, sizeof(Dialect))
    DIALECT_4.level = 4
    DIALECT_4.strict_flags = True
    DIALECT_4.suback_failure = True
    DIALECT_4.empty_client_id = True
    DIALECT_4.empty_client_id_needs_clean = True
    DIALECT_4.session_present = True
    DIALECT_4.connack_codes = CONNACK_3
    DIALECT_4.suback_codes = SUBACK_4

    memset(&DIALECT_5, 0, sizeof(Dialect))
    DIALECT_5.level = 5
    DIALECT_5.layout = 1
    DIALECT_5.properties = True
    DIALECT_5.strict_flags = True
    DIALECT_5.ack_reasons = True
    DIALECT_5.unsuback_reasons = True
    DIALECT_5.suback_failure = True
    DIALECT_5.server_disconnect = True
    DIALECT_5.session_expiry = True
    DIALECT_5.empty_client_id = True
    DIALECT_5.session_present = True
    DIALECT_5.password_alone = True
    DIALECT_5.auth = True
    DIALECT_5.connack_codes = SAME
    DIALECT_5.suback_codes = SAME

_reasons_fill()
_codes_fill()
_dialects_fill()


cdef const Dialect *dialect_for(uint8_t level) noexcept nogil:
    if level == 5:
        return &DIALECT_5
    if level == 4:
        return &DIALECT_4
    if level == 3:
        return &DIALECT_3
    return NULL


cdef bint reason_allowed(uint8_t packet_type, uint8_t reason) noexcept nogil:
    return (REASONS[reason] >> (packet_type & 15)) & 1
