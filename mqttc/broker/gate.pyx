from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from mqttc.base.alloc cimport mem_alloc, mem_alloc_zeroed, mem_free
from mqttc.base.inbox cimport inbox_post, inbox_wake
from mqttc.base.logring cimport logring_wake
from mqttc.base.types cimport ST_LIMIT, ST_NO_MEMORY, ST_OK, Span, span_make
from mqttc.broker.acl cimport Grant, grant_drop
from mqttc.broker.handle cimport handle_make
from mqttc.broker.rights cimport Rights
from mqttc.broker.state cimport (
    CONN_REMOTE, MAIL_ANSWER, MAIL_HEAD, MAIL_HOOK, QUESTION_AUTH, QUESTION_GRANT, QUESTION_HEAD, QUESTION_INSIDE, QUESTION_PUBLISH, QUESTION_SUBSCRIBE, AnswerMail, Conn, Engine, Gate,
    HeadMail, HookMail, Question, Session, Worker,
)
from mqttc.broker.stats cimport C_GATE_QUESTIONS, C_HOOK_QUESTIONS, stat
from mqttc.net.tcp cimport PeerAddress, peer_text
from mqttc.net.transport cimport PROOF_CERTIFICATE, PROOF_COMMON_NAME, PROOF_COUNT, PROOF_KEY_NAME, Transport, transport_proof
from mqttc.proto.decode cimport decode_connect, frame_next, publish_forward
from mqttc.proto.packet cimport HAS_AUTH_DATA, HAS_AUTH_METHOD, HAS_MESSAGE_EXPIRY, Frame, Packet

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_mutex_t:
        pass
    int pthread_mutex_init(pthread_mutex_t *mutex, void *attributes)
    int pthread_mutex_destroy(pthread_mutex_t *mutex)
    int pthread_mutex_lock(pthread_mutex_t *mutex)
    int pthread_mutex_unlock(pthread_mutex_t *mutex)


cdef void gate_init(Gate *gate, uint32_t limit, uint64_t limit_bytes) noexcept nogil:
    pthread_mutex_init(<pthread_mutex_t *> &gate.lock, NULL)
    gate.head = NULL
    gate.tail = NULL
    gate.count = 0
    gate.bytes = 0
    gate.limit = limit
    gate.limit_bytes = limit_bytes


cdef void gate_free(Gate *gate) noexcept nogil:
    cdef Question *question = gate_take(gate)
    cdef Question *next
    while question != NULL:
        next = question.next
        mem_free(question)
        question = next
    pthread_mutex_destroy(<pthread_mutex_t *> &gate.lock)


cdef Span keep(uint8_t **room, Span span) noexcept nogil:
    cdef Span kept = span_make(room[0], span.n)
    if span.n:
        memcpy(room[0], span.p, span.n)
    room[0] += span.n
    return kept


cdef Span keep_proof(uint8_t **room, Transport *transport, int kind, uint32_t n) noexcept nogil:
    cdef Span kept = span_make(NULL, 0)
    if n and transport_proof(transport, kind, room[0], n) == n:
        kept = span_make(room[0], n)
    room[0] += n
    return kept


cdef Question *question_build(Worker *worker, Conn *conn, uint8_t kind, uint32_t number, uint64_t bytes) noexcept nogil:
    """With room for `bytes` and, but for hooks, for what the transport proves, which is filled in. NULL: no memory."""
    cdef Transport *transport = &conn.link.transport
    cdef uint32_t[<int> PROOF_COUNT] proof_bytes
    cdef Question *question
    cdef uint8_t *room
    cdef int i
    for i in range(PROOF_COUNT):
        proof_bytes[i] = transport_proof(transport, i, NULL, 0) if kind < QUESTION_PUBLISH else 0
        bytes += proof_bytes[i]
    question = <Question *> mem_alloc_zeroed(1, sizeof(Question) + bytes)
    if question == NULL:
        return NULL
    room = <uint8_t *> (question + 1)
    question.bytes = sizeof(Question) + bytes
    question.worker = worker.index
    question.listener = conn.link.listener
    question.slot = conn.link.slot
    question.generation = conn.link.generation
    question.number = number
    question.kind = kind
    question.remote = conn.flags & CONN_REMOTE != 0
    if kind != QUESTION_INSIDE:
        question.peer_bytes = peer_text(&conn.link.peer, question.peer, sizeof(question.peer))
    question.certificate = keep_proof(&room, transport, PROOF_CERTIFICATE, proof_bytes[<int> PROOF_CERTIFICATE])
    question.key_name = keep_proof(&room, transport, PROOF_KEY_NAME, proof_bytes[<int> PROOF_KEY_NAME])
    question.common_name = keep_proof(&room, transport, PROOF_COMMON_NAME, proof_bytes[<int> PROOF_COMMON_NAME])
    question.room = room
    return question


cdef int question_put(Worker *worker, Question *question) noexcept nogil:
    """Takes it over: ST_OK, or ST_LIMIT and it is gone."""
    cdef Gate *gate = &worker.engine.gate
    cdef bint full, first
    cdef uint8_t kind = question.kind        # it is another thread's as soon as it is in the list
    pthread_mutex_lock(<pthread_mutex_t *> &gate.lock)
    full = gate.count >= gate.limit or gate.bytes + question.bytes > gate.limit_bytes
    first = gate.head == NULL
    if not full:
        if first:
            gate.head = question
        else:
            gate.tail.next = question
        gate.tail = question
        gate.count += 1
        gate.bytes += question.bytes
    pthread_mutex_unlock(<pthread_mutex_t *> &gate.lock)
    if full:
        mem_free(question)
        return ST_LIMIT
    stat(&worker.stats, C_HOOK_QUESTIONS if kind >= QUESTION_PUBLISH else C_GATE_QUESTIONS)
    if first:
        logring_wake(worker.engine.log)
    return ST_OK


cdef int gate_ask(Worker *worker, Conn *conn, uint8_t kind, uint32_t number, const Packet *packet) noexcept nogil:
    cdef Question *question
    cdef uint8_t *room
    cdef Packet connect
    cdef Frame frame
    cdef Span client_id = packet.client_id
    cdef Span username = packet.username
    if kind == QUESTION_AUTH:
        client_id = span_make(NULL, 0)
        if conn.session != NULL:
            client_id = span_make(conn.session.client_id, conn.session.client_id_bytes)
        elif conn.pending != NULL and frame_next(conn.pending.packet, conn.pending.packet + conn.pending.bytes, 0, &frame) == ST_OK:
            if decode_connect(&frame, &connect) == ST_OK:
                client_id = connect.client_id
        if conn.user != NULL:
            username = span_make(conn.user, conn.user_bytes)
    question = question_build(
        worker, conn, kind, number,
        <uint64_t> client_id.n + username.n + packet.password.n + packet.props.auth_method.n + packet.props.auth_data.n,
    )
    if question == NULL:
        return ST_NO_MEMORY
    room = question.room
    question.level = conn.dialect.level
    question.reason = packet.reason
    question.client_id = keep(&room, client_id)
    if kind == QUESTION_AUTH:
        question.has_username = conn.user != NULL
        if question.has_username:
            question.username = keep(&room, username)
    else:
        question.has_username = packet.has_username
        question.has_password = packet.has_password
        if packet.has_username:
            question.username = keep(&room, username)
        if packet.has_password:
            question.password = keep(&room, packet.password)
    if packet.props.present & HAS_AUTH_METHOD:
        question.auth_method = keep(&room, packet.props.auth_method)
    if packet.props.present & HAS_AUTH_DATA:
        question.auth_data = keep(&room, packet.props.auth_data)
    return question_put(worker, question)


cdef int gate_ask_head(Worker *worker, Conn *conn, uint32_t number, Span head) noexcept nogil:
    cdef Question *question = question_build(worker, conn, QUESTION_HEAD, number, head.n)
    cdef uint8_t *room
    if question == NULL:
        return ST_NO_MEMORY
    room = question.room
    question.head = keep(&room, head)
    return question_put(worker, question)


cdef Span groups_of(const Session *session) noexcept nogil:
    """As they came with the grant."""
    if session.rights == NULL or session.rights.grant == NULL:
        return span_make(NULL, 0)
    return span_make(session.rights.grant.group_bytes, session.rights.grant.group_total)


cdef int gate_ask_grant(Worker *worker, Conn *conn, uint32_t number) noexcept nogil:
    cdef Session *session = conn.session
    cdef Rights *rights = session.rights
    cdef Span client_id = span_make(session.client_id, session.client_id_bytes)
    cdef Span user = span_make(&rights.user[0], rights.user_bytes)
    cdef Span groups = groups_of(session)
    cdef Question *question = question_build(worker, conn, QUESTION_GRANT, number, <uint64_t> client_id.n + user.n + groups.n)
    cdef uint8_t *room
    if question == NULL:
        return ST_NO_MEMORY
    room = question.room
    question.level = conn.dialect.level
    question.client_id = keep(&room, client_id)
    question.has_username = rights.has_user
    question.username = keep(&room, user)
    question.properties = keep(&room, groups)
    return question_put(worker, question)


cdef int gate_ask_hook(Worker *worker, Conn *conn, uint8_t kind, uint32_t number, const Packet *packet, uint8_t flags) noexcept nogil:
    cdef Session *session = conn.session
    cdef Span client_id = span_make(session.client_id, session.client_id_bytes)
    cdef Span username = span_make(conn.user, conn.user_bytes) if conn.user != NULL else span_make(conn.username, conn.username_bytes)
    cdef Span payload = packet.list if kind == QUESTION_SUBSCRIBE else packet.payload
    cdef Span topic = span_make(NULL, 0) if kind == QUESTION_SUBSCRIBE else packet.topic
    cdef Span groups = groups_of(session) if kind == QUESTION_SUBSCRIBE else span_make(NULL, 0)
    cdef uint32_t forward = groups.n if kind == QUESTION_SUBSCRIBE else packet.forward_bytes
    cdef Question *question = question_build(worker, conn, kind, number, <uint64_t> client_id.n + username.n + topic.n + payload.n + forward)
    cdef uint8_t *room
    if question == NULL:
        return ST_NO_MEMORY
    if kind == QUESTION_INSIDE:
        question.slot = session.slot
        question.generation = session.generation
    room = question.room
    question.level = conn.dialect.level
    question.client_id = keep(&room, client_id)
    question.has_username = username.p != NULL
    question.username = keep(&room, username)
    question.payload = keep(&room, payload)
    if kind == QUESTION_SUBSCRIBE:
        question.properties = keep(&room, groups)
    else:
        question.flags = flags
        question.topic = keep(&room, topic)
        question.properties = span_make(room, forward)
        if forward:
            publish_forward(packet.props.raw, room)
        if packet.props.present & HAS_MESSAGE_EXPIRY:
            question.has_expiry = True
            question.message_expiry = packet.props.message_expiry
    return question_put(worker, question)


cdef Question *gate_take(Gate *gate) noexcept nogil:
    cdef Question *chain
    pthread_mutex_lock(<pthread_mutex_t *> &gate.lock)
    chain = gate.head
    gate.head = NULL
    gate.tail = NULL
    gate.count = 0
    gate.bytes = 0
    pthread_mutex_unlock(<pthread_mutex_t *> &gate.lock)
    return chain


cdef bint span_copy(Span span, uint8_t **copy) noexcept nogil:
    """False: no memory. NULL stays NULL."""
    copy[0] = NULL
    if span.p == NULL:
        return True
    copy[0] = <uint8_t *> mem_alloc(span.n if span.n else 1)
    if copy[0] == NULL:
        return False
    memcpy(copy[0], span.p, span.n)
    return True


cdef int gate_answer(
    Engine *engine, uint16_t worker, uint32_t slot, uint32_t generation, uint32_t number, uint8_t reason, Span auth_data, Span user, int64_t lasts_ms, int64_t keep_ms,
    Grant *grant,
) noexcept nogil:
    cdef AnswerMail *mail = <AnswerMail *> mem_alloc_zeroed(1, sizeof(AnswerMail))
    if mail == NULL:
        grant_drop(grant)
        return ST_NO_MEMORY
    mail.mail.kind = MAIL_ANSWER
    mail.slot = slot
    mail.generation = generation
    mail.question = number
    mail.reason = reason
    mail.grant = grant
    mail.lasts_ms = lasts_ms
    mail.keep_ms = keep_ms
    if not span_copy(auth_data, &mail.auth_data) or not span_copy(user, &mail.user):
        grant_drop(grant)
        mem_free(mail.auth_data)
        mem_free(mail)
        return ST_NO_MEMORY
    mail.auth_data_bytes = auth_data.n
    mail.user_bytes = <uint16_t> user.n
    if inbox_post(&engine.workers[worker].reactor.inbox, &mail.mail, &mail.mail):
        inbox_wake(&engine.workers[worker].reactor.inbox)
    return ST_OK


cdef int gate_answer_hook(
    Engine *engine, uint16_t worker, uint32_t slot, uint32_t generation, uint32_t number, bint inside, uint8_t verdict, uint8_t reason, Span data,
) noexcept nogil:
    cdef HookMail *mail = <HookMail *> mem_alloc_zeroed(1, sizeof(HookMail) + data.n)
    if mail == NULL:
        return ST_NO_MEMORY
    mail.mail.kind = MAIL_HOOK
    if inside:
        mail.session = handle_make(worker, slot, generation)
    mail.slot = slot
    mail.generation = generation
    mail.question = number
    mail.verdict = verdict
    mail.reason = reason
    mail.data_bytes = data.n
    if data.n:
        memcpy(mail.data, data.p, data.n)
    if inbox_post(&engine.workers[worker].reactor.inbox, &mail.mail, &mail.mail):
        inbox_wake(&engine.workers[worker].reactor.inbox)
    return ST_OK


cdef int gate_answer_head(
    Engine *engine, uint16_t worker, uint32_t slot, uint32_t generation, uint32_t number, uint8_t verdict, Span response, int fd, const PeerAddress *peer, bint remote,
) noexcept nogil:
    cdef HeadMail *mail = <HeadMail *> mem_alloc_zeroed(1, sizeof(HeadMail) + response.n)
    if mail == NULL:
        return ST_NO_MEMORY
    mail.mail.kind = MAIL_HEAD
    mail.slot = slot
    mail.generation = generation
    mail.question = number
    mail.verdict = verdict
    mail.remote = remote
    mail.fd = fd
    mail.peer = peer[0]
    mail.response_bytes = response.n
    if response.n:
        memcpy(mail.response, response.p, response.n)
    if inbox_post(&engine.workers[worker].reactor.inbox, &mail.mail, &mail.mail):
        inbox_wake(&engine.workers[worker].reactor.inbox)
    return ST_OK
