"""Publication: one message on its way to its receivers, for one turn.

Its bytes are the read buffer's (spans) until somebody must keep the message: then, and only then, one Msg is built.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from mqttc.base.msg cimport Msg, msg_drop
from mqttc.base.types cimport Span
from mqttc.broker.state cimport Worker
from mqttc.net.outq cimport Chunk

cdef struct Publication:
    Span topic
    Span properties
    Span payload
    Msg *msg                           # one reference of the publication's own; NULL: not built yet
    int64_t expires_at_ms              # monotonic; 0: never
    uint64_t publisher                 # session handle; 0: none
    uint32_t message_expiry            # seconds remaining, where has_expiry
    bint has_expiry
    bint pressure                      # a receiver's queue is nearly full: brake the publisher
    uint8_t qos
    uint8_t retain
    # encoded forms of this turn, made when first needed; 0 bytes: not yet
    uint32_t run_bytes[4]              # [layout * 2 + retain], QoS 0
    uint32_t run_offset[4]
    Chunk *run_chunk[4]
    uint32_t encoded_bytes[2]          # [layout], QoS > 0
    uint32_t id_offset[2]
    uint8_t *encoded[2]

cdef inline void publication_init(Publication *pub) noexcept nogil:
    """All but topic, payload and properties, and what the bytes of the encoded forms say."""
    pub.msg = NULL
    pub.expires_at_ms = 0
    pub.publisher = 0
    pub.message_expiry = 0
    pub.has_expiry = False
    pub.pressure = False
    pub.qos = 0
    pub.retain = 0
    pub.run_bytes[0] = 0
    pub.run_bytes[1] = 0
    pub.run_bytes[2] = 0
    pub.run_bytes[3] = 0
    pub.encoded_bytes[0] = 0
    pub.encoded_bytes[1] = 0

cdef void publication_of(Worker *worker, Publication *pub, Msg *msg) noexcept nogil            # spans of msg; takes the caller's reference over
cdef Msg *publication_msg(Worker *worker, Publication *pub) noexcept nogil                     # builds it once; borrowed. NULL: no memory

cdef inline void publication_clear(Worker *worker, Publication *pub) noexcept nogil:
    if pub.msg != NULL:
        msg_drop(&worker.msgs, pub.msg)
        pub.msg = NULL
