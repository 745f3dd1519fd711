"""Properties of MQTT 5.0 (section 2.2.2): read, checked and written as one section, for every packet type by one table.

Errors are negated reason codes: unknown, not allowed in this packet or of wrong shape -0x81; repeated or out of range -0x82; topic alias 0 -0x94.
"""

from libc.stdint cimport uint8_t, uint32_t

from mqttc.base.types cimport Span
from mqttc.proto.packet cimport Props
from mqttc.proto.wire cimport Cursor

cdef enum:
    PLACE_WILL = 0                          # will properties have no packet type of their own; type 0 is reserved
    PLACE_ANY = 16                          # every property, for a section that has no packet yet

cdef void props_clear(Props *props) noexcept nogil                         # every field at the standard's default
cdef void props_clear_publish(Props *props) noexcept nogil                 # only the fields a PUBLISH has

# Reads a section (length in front) off the cursor into props, which was cleared. place: a PacketType or PLACE_WILL.
# forward_bytes: bytes of it that travel on with a message.
cdef int props_decode(Cursor *cursor, uint8_t place, Props *props, uint32_t *forward_bytes) noexcept nogil

# Bytes of the section without its length; UINT32_MAX when it cannot be encoded: a string is too long, a value out of range.
# Takes only those typed properties that the place allows.
cdef uint32_t props_size(const Props *props, uint8_t place) noexcept nogil
cdef uint8_t *props_put(const Props *props, uint8_t place, uint8_t *out) noexcept nogil

# Takes one property off a section that was checked: its identifier, and all its bytes (identifier included). False at the end.
cdef bint property_next(Cursor *cursor, uint8_t *identifier, Span *whole) noexcept nogil

cdef uint32_t props_allowed(uint8_t place) noexcept nogil                  # PropertyBits that may stand there
cdef uint32_t property_bit(uint8_t identifier) noexcept nogil              # 0: unknown

# Checks one property as props_decode does, wherever it may stand; ST_OK only if it takes all the bytes.
cdef int property_check(Span whole) noexcept nogil

cdef enum PropertyId:
    PROPERTY_PAYLOAD_FORMAT = 0x01
    PROPERTY_MESSAGE_EXPIRY = 0x02
    PROPERTY_CONTENT_TYPE = 0x03
    PROPERTY_RESPONSE_TOPIC = 0x08
    PROPERTY_CORRELATION_DATA = 0x09
    PROPERTY_SUBSCRIPTION_ID = 0x0B
    PROPERTY_SESSION_EXPIRY = 0x11
    PROPERTY_ASSIGNED_CLIENT_ID = 0x12
    PROPERTY_SERVER_KEEP_ALIVE = 0x13
    PROPERTY_AUTH_METHOD = 0x15
    PROPERTY_AUTH_DATA = 0x16
    PROPERTY_REQUEST_PROBLEM_INFO = 0x17
    PROPERTY_WILL_DELAY = 0x18
    PROPERTY_REQUEST_RESPONSE_INFO = 0x19
    PROPERTY_RESPONSE_INFO = 0x1A
    PROPERTY_SERVER_REFERENCE = 0x1C
    PROPERTY_REASON_STRING = 0x1F
    PROPERTY_RECEIVE_MAXIMUM = 0x21
    PROPERTY_TOPIC_ALIAS_MAXIMUM = 0x22
    PROPERTY_TOPIC_ALIAS = 0x23
    PROPERTY_MAXIMUM_QOS = 0x24
    PROPERTY_RETAIN_AVAILABLE = 0x25
    PROPERTY_USER_PROPERTY = 0x26
    PROPERTY_MAXIMUM_PACKET_SIZE = 0x27
    PROPERTY_WILDCARD_AVAILABLE = 0x28
    PROPERTY_SUBSCRIPTION_ID_AVAILABLE = 0x29
    PROPERTY_SHARED_AVAILABLE = 0x2A
