from libc.stdint cimport uint8_t
from libc.string cimport memcpy

from mqttc.base.alloc cimport mem_alloc, mem_free
from mqttc.base.types cimport ST_OK
from mqttc.broker.gate cimport gate_ask_hook
from mqttc.broker.state cimport CONN_BRAKE_PAUSED, CONN_INSIDE, CONN_UP, QUESTION_INSIDE, Conn, HookMail, Parked, Worker
from mqttc.broker.stats cimport C_HOOKS_UNASKED, stat
from mqttc.net.reactor cimport link_pause, link_resume
from mqttc.proto.packet cimport Frame, Packet


cdef bint park(Worker *worker, Conn *conn, uint8_t kind, const Frame *frame, const Packet *packet) noexcept nogil:
    cdef Parked *parked = <Parked *> mem_alloc(sizeof(Parked) + frame.body_bytes)
    if parked != NULL:
        parked.body_bytes = frame.body_bytes
        parked.type = frame.type
        parked.flags = frame.flags
        memcpy(parked.body, frame.body, frame.body_bytes)
        conn.hook_question += 1
        if gate_ask_hook(worker, conn, kind, conn.hook_question, packet, frame.flags) == ST_OK:
            conn.parked = parked
            if kind != QUESTION_INSIDE:
                link_pause(worker.reactor, &conn.link)
            return True
    mem_free(parked)
    stat(&worker.stats, C_HOOKS_UNASKED)
    return False


cdef Parked *unpark(Worker *worker, Conn *conn, const HookMail *mail, Frame *frame) noexcept nogil:
    cdef Parked *parked = conn.parked
    if parked == NULL or conn.hook_question != mail.question or conn.session == NULL or (conn.phase != CONN_UP and conn.phase != CONN_INSIDE):
        return NULL
    conn.parked = NULL
    frame.type = parked.type
    frame.flags = parked.flags
    frame.body = parked.body
    frame.body_bytes = parked.body_bytes
    frame.total_bytes = parked.body_bytes
    if conn.phase == CONN_UP:
        conn.last_packet_ms = worker.reactor.now_ms             # keep alive stood still meanwhile
        if not conn.flags & CONN_BRAKE_PAUSED:
            link_resume(worker.reactor, &conn.link)
    return parked
