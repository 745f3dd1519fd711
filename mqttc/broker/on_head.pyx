from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcpy

from posix.unistd cimport close

from mqttc.base.alloc cimport mem_alloc, mem_free
from mqttc.base.timer cimport wheel_cancel
from mqttc.base.types cimport ST_OK, Span, span_make
from mqttc.broker.gate cimport gate_ask_head
from mqttc.broker.guard cimport guard_settle
from mqttc.broker.on_connect cimport conn_init
from mqttc.broker.reply cimport END_REFUSED
from mqttc.broker.report cimport EV_HTTP_REFUSED, LOG_INFO, report, text
from mqttc.broker.state cimport (
    CONN_DONE, CONN_HEAD, CONN_HEAD_ASKED, CONN_NEW, CONN_REMOTE, CONN_TUNNEL, CONN_UPGRADING, HEAD_RESPOND, HEAD_SPLICE, Conn, HeadMail, PendingConnect, Worker,
)
from mqttc.broker.stats cimport C_HTTP_REFUSED, C_HTTP_SPLICED, C_WEBSOCKETS_UPGRADED, stat
from mqttc.net.outq cimport outq_reserve
from mqttc.net.reactor cimport END_NO_MEMORY, LINK_NOTIFY, LINK_PAUSED, link_close, link_dirty, link_open, link_pause, link_resume, reactor_link
from mqttc.net.tcp cimport tcp_ops
from mqttc.net.transport cimport Transport
from mqttc.net.ws cimport ws_accept

cdef enum:
    TUNNEL_BYTES = 64 << 10            # unsent, from which the other end is not read any more
    BYTE_TLS = 0x16
    BYTE_CONNECT = 0x10

cdef const char *BAD_REQUEST = "HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
cdef const char *TOO_LONG = "HTTP/1.1 431 Request Header Fields Too Large\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
cdef const char *UNAVAILABLE = "HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


cdef void respond(Worker *worker, Conn *conn, Span response) noexcept nogil:
    """The last thing that is said here."""
    cdef uint8_t *out
    conn.phase = CONN_DONE
    if response.n:
        out = outq_reserve(&worker.reactor.chunks, &conn.link.out, response.n)
        if out != NULL:
            memcpy(out, response.p, response.n)
            link_dirty(worker.reactor, &conn.link)
    link_close(worker.reactor, &conn.link, END_REFUSED)


cdef void refuse(Worker *worker, Conn *conn, Span response, Span detail) noexcept nogil:
    stat(&worker.stats, C_HTTP_REFUSED)
    report(worker, LOG_INFO, EV_HTTP_REFUSED, 0, conn, NULL, detail)
    respond(worker, conn, response)


cdef uint32_t head_end(const uint8_t *bytes, uint32_t start, uint32_t n) noexcept nogil:
    """Size of the head that ends with the first empty line; 0: it does not end yet."""
    cdef uint32_t i
    for i in range(start, n):
        if bytes[i] == c'\n' and i >= 3 and bytes[i - 1] == c'\r' and bytes[i - 2] == c'\n' and bytes[i - 3] == c'\r':
            return i + 1
    return 0


cdef void head_look(Worker *worker, Conn *conn, const uint8_t *bytes, uint32_t n) noexcept nogil:
    cdef uint32_t most = worker.engine.settings.max_request_head
    cdef uint32_t end
    if not c'A' <= bytes[0] <= c'Z':                            # no method begins so
        if bytes[0] == BYTE_TLS:
            refuse(worker, conn, span_make(NULL, 0), text("the client speaks TLS, this listener HTTP without it"))
        elif bytes[0] == BYTE_CONNECT:
            refuse(worker, conn, span_make(NULL, 0), text("the client speaks plain MQTT, this listener WebSocket"))
        else:
            refuse(worker, conn, text(BAD_REQUEST), text("not an HTTP request"))
        return
    end = head_end(bytes, conn.head_bytes, n if n < most else most)
    conn.head_bytes = n
    if end == 0:
        if n >= most:
            refuse(worker, conn, text(TOO_LONG), text("the request head is longer than limits.max_request_head"))
        return
    conn.head_bytes = end
    conn.question += 1
    if gate_ask_head(worker, conn, conn.question, span_make(bytes, end)) != ST_OK:
        refuse(worker, conn, text(UNAVAILABLE), text("too many open questions"))
        return
    conn.phase = CONN_HEAD_ASKED                                # the deadline of CONNECT goes on
    link_pause(worker.reactor, &conn.link)


cdef void websocket_begin(Worker *worker, Conn *conn, const uint8_t *bytes, uint32_t n) noexcept nogil:
    """The input so far is the head and what came behind it."""
    cdef PendingConnect *response = conn.pending
    cdef int status = ws_accept(
        &conn.link.transport, span_make(response.packet, response.bytes), span_make(bytes + conn.head_bytes, n - conn.head_bytes),
        worker.engine.settings.max_frame_size,
    )
    mem_free(response)
    conn.pending = NULL
    if status != ST_OK:
        link_close(worker.reactor, &conn.link, END_NO_MEMORY)
        return
    conn.phase = CONN_NEW
    stat(&worker.stats, C_WEBSOCKETS_UPGRADED)


cdef void tunnel_data(Worker *worker, Conn *conn, const uint8_t *bytes, uint32_t n) noexcept nogil:
    cdef Conn *partner = conn.partner
    cdef uint8_t *out
    if partner == NULL or n == 0:
        return
    out = outq_reserve(&worker.reactor.chunks, &partner.link.out, n)
    if out == NULL:
        link_close(worker.reactor, &conn.link, END_NO_MEMORY)
        return
    memcpy(out, bytes, n)
    link_dirty(worker.reactor, &partner.link)
    if partner.link.out.bytes > TUNNEL_BYTES:
        partner.link.flags |= LINK_NOTIFY
        link_pause(worker.reactor, &conn.link)


cdef uint32_t head_data(Worker *worker, Conn *conn, const uint8_t *bytes, uint32_t n) noexcept nogil:
    if conn.phase == CONN_TUNNEL:
        tunnel_data(worker, conn, bytes, n)
        return n
    if conn.phase == CONN_UPGRADING:
        websocket_begin(worker, conn, bytes, n)
        return n
    if conn.phase == CONN_HEAD:
        head_look(worker, conn, bytes, n)
    return 0                                                    # kept, and read once more as what the gate makes of it


cdef void tunnel_drained(Worker *worker, Conn *conn) noexcept nogil:
    if conn.partner != NULL and conn.partner.link.flags & LINK_PAUSED:
        link_resume(worker.reactor, &conn.partner.link)


cdef void tunnel_ended(Worker *worker, Conn *conn) noexcept nogil:
    cdef Conn *partner = conn.partner
    if partner == NULL:
        return
    conn.partner = NULL
    partner.partner = NULL
    link_close(worker.reactor, &partner.link, END_REFUSED)


cdef void splice(Worker *worker, Conn *conn, HeadMail *mail) noexcept nogil:
    cdef Transport transport
    cdef Conn *partner
    transport.ops = tcp_ops()
    transport.state = NULL
    transport.fd = mail.fd
    transport.wants = 0
    partner = <Conn *> link_open(worker.reactor, &transport, &conn.link.peer, conn.link.listener)
    if partner == NULL:
        refuse(worker, conn, text(UNAVAILABLE), text("no memory for the connection"))
        return
    mail.fd = -1
    conn_init(worker, partner)
    partner.phase = CONN_TUNNEL
    partner.partner = conn
    conn.phase = CONN_TUNNEL
    conn.partner = partner
    wheel_cancel(worker.reactor.wheel, &conn.link.timer)
    guard_settle(worker, conn)
    stat(&worker.stats, C_HTTP_SPLICED)
    link_resume(worker.reactor, &conn.link)


cdef void answer_apply(Worker *worker, Conn *conn, HeadMail *mail) noexcept nogil:
    cdef PendingConnect *pending
    if mail.peer.family:
        conn.link.peer = mail.peer
    if mail.remote:
        conn.flags |= CONN_REMOTE
    if mail.verdict == HEAD_SPLICE:
        splice(worker, conn, mail)
    elif mail.verdict == HEAD_RESPOND:
        stat(&worker.stats, C_HTTP_REFUSED)                     # whoever answered has told the log why
        respond(worker, conn, span_make(mail.response, mail.response_bytes))
    else:
        pending = <PendingConnect *> mem_alloc(sizeof(PendingConnect) + mail.response_bytes)
        if pending == NULL:
            link_close(worker.reactor, &conn.link, END_NO_MEMORY)
            return
        pending.bytes = mail.response_bytes
        memcpy(pending.packet, mail.response, mail.response_bytes)
        conn.pending = pending
        conn.phase = CONN_UPGRADING
        link_resume(worker.reactor, &conn.link)


cdef void on_head_answer(Worker *worker, HeadMail *mail) noexcept nogil:
    cdef Conn *conn = <Conn *> reactor_link(worker.reactor, mail.slot, mail.generation)
    if conn != NULL and conn.phase == CONN_HEAD_ASKED and conn.question == mail.question:
        answer_apply(worker, conn, mail)
    if mail.fd >= 0:
        close(mail.fd)
