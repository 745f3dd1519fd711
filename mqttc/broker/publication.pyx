from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t, uint8_t
from libc.string cimport memcpy

from mqttc.base.msg cimport Msg, msg_alloc, msg_data, msg_expiry_left, msg_payload, msg_properties, msg_topic
from mqttc.broker.state cimport Worker
from mqttc.broker.stats cimport C_DROPPED_NO_MEMORY, stat


cdef void publication_of(Worker *worker, Publication *pub, Msg *msg) noexcept nogil:
    publication_init(pub)
    pub.msg = msg
    pub.topic = msg_topic(msg)
    pub.properties = msg_properties(msg)
    pub.payload = msg_payload(msg)
    pub.publisher = msg.publisher
    pub.qos = msg.qos
    pub.retain = msg.retain
    pub.expires_at_ms = msg.expires_at_ms
    if msg.expires_at_ms:
        pub.has_expiry = True
        pub.message_expiry = msg_expiry_left(msg, worker.reactor.now_ms)


cdef Msg *publication_msg(Worker *worker, Publication *pub) noexcept nogil:
    cdef Msg *msg = pub.msg
    cdef uint8_t *data
    cdef uint64_t n
    if msg != NULL:
        return msg
    n = <uint64_t> pub.topic.n + pub.properties.n + pub.payload.n
    msg = msg_alloc(&worker.msgs, <uint32_t> n)
    if msg == NULL:
        stat(&worker.stats, C_DROPPED_NO_MEMORY)
        return NULL
    data = msg_data(msg)
    memcpy(data, pub.topic.p, pub.topic.n)
    if pub.properties.n:
        memcpy(data + pub.topic.n, pub.properties.p, pub.properties.n)
    if pub.payload.n:
        memcpy(data + pub.topic.n + pub.properties.n, pub.payload.p, pub.payload.n)
    msg.topic_bytes = <uint16_t> pub.topic.n
    msg.properties_offset = pub.topic.n
    msg.properties_bytes = pub.properties.n
    msg.payload_offset = pub.topic.n + pub.properties.n
    msg.payload_bytes = pub.payload.n
    msg.publisher = pub.publisher
    msg.qos = pub.qos
    msg.retain = pub.retain
    msg.expires_at_ms = pub.expires_at_ms
    pub.msg = msg
    return msg
