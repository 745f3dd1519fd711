"""Gate: questions that the data plane does not decide: CONNECT and AUTH of listeners that ask, and requests of HTTP. A bounded list under a mutex,
drained by the control plane; answers come back as mail. The connection is parked meanwhile, with a deadline."""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from mqttc.base.types cimport Span
from mqttc.broker.acl cimport Grant
from mqttc.broker.state cimport Conn, Engine, Gate, Question, Worker
from mqttc.net.tcp cimport PeerAddress
from mqttc.proto.packet cimport Packet

cdef void gate_init(Gate *gate, uint32_t limit, uint64_t limit_bytes) noexcept nogil        # questions, and bytes of theirs, at the same time
cdef void gate_free(Gate *gate) noexcept nogil
# ST_OK: asked; ST_LIMIT: too many questions are open; ST_NO_MEMORY. packet: the CONNECT, or the AUTH (client_id, username then come from nowhere).
cdef int gate_ask(Worker *worker, Conn *conn, uint8_t kind, uint32_t number, const Packet *packet) noexcept nogil
cdef int gate_ask_head(Worker *worker, Conn *conn, uint32_t number, Span head) noexcept nogil   # the same of an HTTP request
# [worker] The same of a PUBLISH, resolved (type, topic, payload, properties), or of a SUBSCRIBE that hooks are asked about.
cdef int gate_ask_hook(Worker *worker, Conn *conn, uint8_t kind, uint32_t number, const Packet *packet, uint8_t flags) noexcept nogil
# [worker] The same about the connection's client, whose grant ends soon; what comes back is a grant under that number, or nothing.
cdef int gate_ask_grant(Worker *worker, Conn *conn, uint32_t number) noexcept nogil
cdef Question *gate_take(Gate *gate) noexcept nogil                            # [control plane] all open ones, in order; free() each
# [any thread] What becomes of an HTTP connection (HeadVerdict). fd: taken over, -1: none; peer.family 0: unchanged. ST_NO_MEMORY: fd is still the caller's.
cdef int gate_answer_head(
    Engine *engine, uint16_t worker, uint32_t slot, uint32_t generation, uint32_t number, uint8_t verdict, Span response, int fd, const PeerAddress *peer, bint remote,
) noexcept nogil
# [any thread] What hooks say (HookVerdict) of the question that slot, generation and number name; inside: an in-process client's. data is copied.
cdef int gate_answer_hook(
    Engine *engine, uint16_t worker, uint32_t slot, uint32_t generation, uint32_t number, bint inside, uint8_t verdict, uint8_t reason, Span data,
) noexcept nogil
# [any thread] The answer to a question; auth_data and user may be NULL and are copied; user: at most 65535 bytes; lasts_ms and keep_ms: see AnswerMail;
# grant may be NULL and is taken over. ST_NO_MEMORY.
cdef int gate_answer(
    Engine *engine, uint16_t worker, uint32_t slot, uint32_t generation, uint32_t number, uint8_t reason, Span auth_data, Span user, int64_t lasts_ms, int64_t keep_ms,
    Grant *grant,
) noexcept nogil
