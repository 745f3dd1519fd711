"""One packet for all versions: what a decoder fills in and an encoder writes out. Which fields exist on the wire, and how, says the Dialect.

Every span is borrowed from the decoded frame (or from the caller, when encoding). Nothing here owns memory. Fields that a version or packet type
does not carry hold their defaults, so that no reader asks for the version.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t

from mqttc.base.types cimport Span

cdef enum PacketType:          # [MQTT-2.1.2] the high four bits of the first byte
    CONNECT = 1
    CONNACK = 2
    PUBLISH = 3
    PUBACK = 4
    PUBREC = 5
    PUBREL = 6
    PUBCOMP = 7
    SUBSCRIBE = 8
    SUBACK = 9
    UNSUBSCRIBE = 10
    UNSUBACK = 11
    PINGREQ = 12
    PINGRESP = 13
    DISCONNECT = 14
    AUTH = 15

cdef enum Reason:              # MQTT 5.0, section 2.4
    RC_SUCCESS = 0x00          # also Normal disconnection, Granted QoS 0
    RC_GRANTED_QOS_1 = 0x01
    RC_GRANTED_QOS_2 = 0x02
    RC_DISCONNECT_WITH_WILL = 0x04
    RC_NO_MATCHING_SUBSCRIBERS = 0x10
    RC_NO_SUBSCRIPTION_EXISTED = 0x11
    RC_CONTINUE_AUTHENTICATION = 0x18
    RC_REAUTHENTICATE = 0x19
    RC_UNSPECIFIED_ERROR = 0x80
    RC_MALFORMED_PACKET = 0x81
    RC_PROTOCOL_ERROR = 0x82
    RC_IMPLEMENTATION_SPECIFIC_ERROR = 0x83
    RC_UNSUPPORTED_PROTOCOL_VERSION = 0x84
    RC_CLIENT_IDENTIFIER_NOT_VALID = 0x85
    RC_BAD_USER_NAME_OR_PASSWORD = 0x86
    RC_NOT_AUTHORIZED = 0x87
    RC_SERVER_UNAVAILABLE = 0x88
    RC_SERVER_BUSY = 0x89
    RC_BANNED = 0x8A
    RC_SERVER_SHUTTING_DOWN = 0x8B
    RC_BAD_AUTHENTICATION_METHOD = 0x8C
    RC_KEEP_ALIVE_TIMEOUT = 0x8D
    RC_SESSION_TAKEN_OVER = 0x8E
    RC_TOPIC_FILTER_INVALID = 0x8F
    RC_TOPIC_NAME_INVALID = 0x90
    RC_PACKET_IDENTIFIER_IN_USE = 0x91
    RC_PACKET_IDENTIFIER_NOT_FOUND = 0x92
    RC_RECEIVE_MAXIMUM_EXCEEDED = 0x93
    RC_TOPIC_ALIAS_INVALID = 0x94
    RC_PACKET_TOO_LARGE = 0x95
    RC_MESSAGE_RATE_TOO_HIGH = 0x96
    RC_QUOTA_EXCEEDED = 0x97
    RC_ADMINISTRATIVE_ACTION = 0x98
    RC_PAYLOAD_FORMAT_INVALID = 0x99
    RC_RETAIN_NOT_SUPPORTED = 0x9A
    RC_QOS_NOT_SUPPORTED = 0x9B
    RC_USE_ANOTHER_SERVER = 0x9C
    RC_SERVER_MOVED = 0x9D
    RC_SHARED_SUBSCRIPTIONS_NOT_SUPPORTED = 0x9E
    RC_CONNECTION_RATE_EXCEEDED = 0x9F
    RC_MAXIMUM_CONNECT_TIME = 0xA0
    RC_SUBSCRIPTION_IDENTIFIERS_NOT_SUPPORTED = 0xA1
    RC_WILDCARD_SUBSCRIPTIONS_NOT_SUPPORTED = 0xA2

cdef enum PropertyBit:         # in Props.present; a bit is set when the property stands in the packet
    HAS_PAYLOAD_FORMAT = 1 << 0
    HAS_MESSAGE_EXPIRY = 1 << 1
    HAS_CONTENT_TYPE = 1 << 2
    HAS_RESPONSE_TOPIC = 1 << 3
    HAS_CORRELATION_DATA = 1 << 4
    HAS_SUBSCRIPTION_ID = 1 << 5
    HAS_SESSION_EXPIRY = 1 << 6
    HAS_ASSIGNED_CLIENT_ID = 1 << 7
    HAS_SERVER_KEEP_ALIVE = 1 << 8
    HAS_AUTH_METHOD = 1 << 9
    HAS_AUTH_DATA = 1 << 10
    HAS_REQUEST_PROBLEM_INFO = 1 << 11
    HAS_WILL_DELAY = 1 << 12
    HAS_REQUEST_RESPONSE_INFO = 1 << 13
    HAS_RESPONSE_INFO = 1 << 14
    HAS_SERVER_REFERENCE = 1 << 15
    HAS_REASON_STRING = 1 << 16
    HAS_RECEIVE_MAXIMUM = 1 << 17
    HAS_TOPIC_ALIAS_MAXIMUM = 1 << 18
    HAS_TOPIC_ALIAS = 1 << 19
    HAS_MAXIMUM_QOS = 1 << 20
    HAS_RETAIN_AVAILABLE = 1 << 21
    HAS_USER_PROPERTY = 1 << 22
    HAS_MAXIMUM_PACKET_SIZE = 1 << 23
    HAS_WILDCARD_AVAILABLE = 1 << 24
    HAS_SUBSCRIPTION_ID_AVAILABLE = 1 << 25
    HAS_SHARED_AVAILABLE = 1 << 26

cdef struct Props:
    uint32_t present                       # PropertyBit; a field without its bit holds the standard's default
    uint32_t session_expiry                # seconds; 0xFFFFFFFF: never
    uint32_t message_expiry                # seconds
    uint32_t will_delay                    # seconds
    uint32_t maximum_packet_size           # bytes; 0: no limit (never 0 on the wire)
    uint32_t subscription_id               # the first; PUBLISH may hold more: iterate `raw`
    uint16_t subscription_id_count
    uint16_t receive_maximum               # default 65535
    uint16_t topic_alias_maximum
    uint16_t topic_alias
    uint16_t server_keep_alive             # seconds
    uint16_t user_property_count
    uint8_t payload_format
    uint8_t request_problem_info           # default 1
    uint8_t request_response_info
    uint8_t maximum_qos                    # default 2
    uint8_t retain_available               # default 1
    uint8_t wildcard_available             # default 1
    uint8_t subscription_id_available      # default 1
    uint8_t shared_available               # default 1
    Span content_type
    Span response_topic
    Span correlation_data
    Span assigned_client_id
    Span auth_method
    Span auth_data
    Span response_info
    Span server_reference
    Span reason_string
    Span raw                               # decoded: the whole property section. Encoding: ready wire bytes appended as they are
                                           # (user properties, further subscription identifiers), in this order, after the typed ones

cdef struct Packet:
    uint8_t type                           # PacketType
    uint8_t flags                          # low four bits of the first byte
    uint8_t reason                         # CONNACK, acks, DISCONNECT, AUTH: v5 reason code, whatever the version on the wire
    uint8_t session_present                # CONNACK
    uint16_t packet_id
    # PUBLISH
    uint8_t qos
    uint8_t dup
    uint8_t retain
    # CONNECT
    uint8_t protocol_level                 # 3, 4, 5 (bridge bit 0x80 removed)
    uint8_t bridge                         # 3.1.1 bit 0x80, as old bridges set it
    uint8_t clean_start
    uint8_t has_will
    uint8_t will_qos
    uint8_t will_retain
    uint8_t has_username
    uint8_t has_password
    uint16_t keep_alive                    # seconds
    uint32_t forward_bytes                 # PUBLISH: bytes of the properties to forward (see publish_forward); == props.raw.n: all of raw, as it stands
    Span client_id
    Span username
    Span password
    Span will_topic
    Span will_payload
    Span topic                             # PUBLISH
    Span payload                           # PUBLISH
    Span list                              # SUBSCRIBE, UNSUBSCRIBE: the filters, see filter_next; SUBACK, UNSUBACK: reason codes (v5 meaning)
    Props props
    Props will_props                       # CONNECT

cdef struct Frame:
    const uint8_t *body                    # after the fixed header
    uint32_t body_bytes
    uint32_t total_bytes                   # fixed header included; with ST_NEED_MORE: of the packet if its length is known, else 0
    uint8_t type
    uint8_t flags

cdef enum SubscriptionOption:              # the options byte of one filter, v5 layout (3.x: QoS only)
    OPT_QOS_MASK = 0x03
    OPT_NO_LOCAL = 0x04
    OPT_RETAIN_AS_PUBLISHED = 0x08
    OPT_RETAIN_HANDLING_MASK = 0x30        # 0x00 send, 0x10 send if new, 0x20 do not send

cdef struct Filter:
    Span text                              # as sent, with $share/group/ where there
    uint8_t options                        # SUBSCRIBE
