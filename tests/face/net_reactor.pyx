"""Face of the reactor: a small framed protocol over it, driven turn by turn from the test, or by `run` in a thread of its own.

A frame is one command byte, the body's length in four bytes (most significant first), and the body:

    e  echo the frame               s  sink: count the body and sum its bytes
    p  pause, the frame is taken    h  hold: pause, the frame is not taken and comes again (then it counts as a sink)
    c  answer "bye", close          d  detach, with what follows as leftover
    w  write as many bytes as the body's four bytes say, and ask for on_drained
    k  keep the block that the frame came in (a sink otherwise)
    x  take nothing although the frame is whole
"""

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memmove, memset

from mqttc.base.alloc cimport mem_alloc, mem_alloc_zeroed, mem_fail_after, mem_free, mem_made, mem_freed, mem_tested
from mqttc.base.inbox cimport Mail, inbox_post, inbox_take, inbox_wake
from mqttc.base.msg cimport Msg, MsgPool, msg_data, msg_drop, pool_free, pool_init
from mqttc.base.timer cimport TimerNode, wheel_add
from mqttc.base.types cimport ST_LIMIT, ST_OK, atomic_add_i64_relaxed, atomic_load_u64_relaxed, counter_add, counter_sub
from mqttc.net.outq cimport outq_reserve
from mqttc.net.reactor cimport (
    LINK_NOTIFY, LINK_PAUSED, LINK_UNPOLLED, LINK_WANTS_OUT, LINK_WRITE_WANTS_IN, Clock, Link, LinkHooks, LinkParcel, Reactor, link_adopt, link_close, link_detach,
    link_dirty, link_open, link_pause, link_resume, reactor_build, reactor_free, reactor_link, reactor_listen, reactor_next_link, reactor_run,
    reactor_turn, reactor_unlisten,
)
from mqttc.net.tcp cimport PeerAddress, peer_is_loopback, peer_text, tcp_keep_alive, tcp_ops
from mqttc.net.transport cimport IO_AGAIN, WANTS_IN, WANTS_READ, Transport, TransportOps, iovec

cdef extern from "mqttc/net/sockets.h" nogil:
    const bint MQTTC_NET_DEBUG

cdef extern from "<unistd.h>" nogil:
    int c_dup "dup"(int fd)

DEBUG = MQTTC_NET_DEBUG
ALLOC_TESTED = mem_tested()


def blocks_live() -> int:
    """Debug builds: blocks of memory made and not freed."""
    return mem_made() - mem_freed()


def fail_allocations(int64_t granted, bint once=True) -> None:
    mem_fail_after(granted, once)


cdef enum:
    MAIL_NOTE = 1
    MAIL_STOP = 2
    ENDS_KEPT = 8192

cdef struct Conn:
    Link link
    uint64_t received          # bytes of body
    uint64_t reads             # calls of on_data
    uint64_t most              # bytes at one call
    bint held                  # the h frame was seen once

cdef struct Letter:
    Mail mail

cdef struct Harness:
    Reactor *reactor
    uint64_t opened
    uint64_t ended
    uint64_t drained
    uint64_t frames
    uint64_t bytes
    uint64_t sum
    uint64_t blocks            # frames that came in a block of their own
    uint64_t notes
    uint64_t timers
    uint64_t late_timers       # fired before their time
    uint64_t accept_errors
    uint64_t detached
    int last_accept_error
    uint32_t refuse            # on_open refuses so many
    uint32_t detach_on_open
    uint32_t pause_on_open
    Msg *kept
    const uint8_t *last_bytes  # what on_data was given last, to look at after the turn
    LinkParcel parcel
    uint32_t slots[ENDS_KEPT]
    int reasons[ENDS_KEPT]


cdef int on_open(void *context, Link *link) noexcept nogil:
    cdef Harness *harness = <Harness *> context
    if harness.refuse:
        harness.refuse -= 1
        return ST_LIMIT
    counter_add(&harness.opened, 1)
    if harness.pause_on_open:
        link_pause(harness.reactor, link)
    if harness.detach_on_open:
        harness.detach_on_open -= 1
        if link_detach(harness.reactor, link, NULL, 0, &harness.parcel) == ST_OK:
            counter_add(&harness.detached, 1)
    return ST_OK


cdef void append(Harness *harness, Link *link, const uint8_t *bytes, uint32_t n) noexcept nogil:
    cdef uint8_t *out = outq_reserve(&harness.reactor.chunks, &link.out, n)
    if out == NULL:
        link_close(harness.reactor, link, 4)
        return
    memcpy(out, bytes, n)
    link_dirty(harness.reactor, link)


cdef void append_pattern(Harness *harness, Link *link, uint32_t n) noexcept nogil:
    cdef uint32_t piece, at = 0, i
    cdef uint8_t *out
    while at < n:
        piece = n - at if n - at < 4000 else 4000
        out = outq_reserve(&harness.reactor.chunks, &link.out, piece)
        if out == NULL:
            link_close(harness.reactor, link, 4)
            return
        for i in range(piece):
            out[i] = <uint8_t> ((at + i) * 31 >> 3)
        at += piece
    link.flags |= LINK_NOTIFY
    link_dirty(harness.reactor, link)


cdef inline uint32_t get_u32(const uint8_t *p) noexcept nogil:
    return <uint32_t> p[0] << 24 | <uint32_t> p[1] << 16 | <uint32_t> p[2] << 8 | p[3]


cdef void sink(Harness *harness, Conn *conn, const uint8_t *body, uint32_t n) noexcept nogil:
    cdef uint64_t sum = 0
    cdef uint32_t i
    for i in range(n):
        sum += body[i]
    conn.received += n
    counter_add(&harness.bytes, n)
    counter_add(&harness.sum, sum)


cdef uint32_t on_data(void *context, Link *link, const uint8_t *bytes, uint32_t n) noexcept nogil:
    cdef Harness *harness = <Harness *> context
    cdef Reactor *reactor = harness.reactor
    cdef Conn *conn = <Conn *> link
    cdef uint32_t at = 0, body, total
    cdef uint8_t command
    conn.reads += 1
    conn.most = n if n > conn.most else conn.most
    harness.last_bytes = bytes
    while n - at >= 5:
        command = bytes[at]
        body = get_u32(bytes + at + 1)
        total = body + 5
        if n - at < total:
            link.want_bytes = total
            return at
        if command == c'x':
            return at
        if command == c'h' and not conn.held:
            conn.held = True
            link_pause(reactor, link)
            return at
        if link.block != NULL:
            counter_add(&harness.blocks, 1)
            if command == c'k' and harness.kept == NULL:
                harness.kept = link.block
                link.block = NULL
        counter_add(&harness.frames, 1)
        if command == c'e':
            append(harness, link, bytes + at, total)
        elif command == c'c':
            append(harness, link, b"bye", 3)
            link_close(reactor, link, 16 + <int> body)
            return n
        elif command == c'd':
            if link_detach(reactor, link, bytes + at + total, n - at - total, &harness.parcel) == ST_OK:
                counter_add(&harness.detached, 1)
            return n
        elif command == c'w' and body >= 4:
            append_pattern(harness, link, get_u32(bytes + at + 5))
        else:
            sink(harness, conn, bytes + at + 5, body)
        at += total
        if command == c'p':
            link_pause(reactor, link)
            return at
    return at


cdef void on_end(void *context, Link *link, int reason) noexcept nogil:
    cdef Harness *harness = <Harness *> context
    if harness.ended < ENDS_KEPT:
        harness.slots[harness.ended] = link.slot
        harness.reasons[harness.ended] = reason
    counter_add(&harness.ended, 1)


cdef void on_drained(void *context, Link *link) noexcept nogil:
    counter_add(&(<Harness *> context).drained, 1)


cdef void on_timer(void *context, TimerNode *node) noexcept nogil:
    cdef Harness *harness = <Harness *> context
    counter_add(&harness.timers, 1)
    if harness.reactor.now_ms < node.deadline_ms:
        counter_add(&harness.late_timers, 1)


cdef void on_mail(void *context, Mail *chain) noexcept nogil:
    cdef Harness *harness = <Harness *> context
    cdef Mail *following
    while chain != NULL:
        following = chain.next
        if chain.kind == MAIL_STOP:
            harness.reactor.stopping = True
        else:
            counter_add(&harness.notes, 1)
        mem_free(chain)
        chain = following


cdef void on_turn_end(void *context) noexcept nogil:
    pass


cdef void on_accept_error(void *context, uint16_t listener, int error) noexcept nogil:
    cdef Harness *harness = <Harness *> context
    harness.last_accept_error = error
    counter_add(&harness.accept_errors, 1)


cdef struct Shy:               # a transport's state
    uint32_t due               # bytes that the peer must send before anything is written
    uint64_t refused           # writes answered with WANTS_IN
    bint greeted


cdef int64_t shy_read(Transport *transport, uint8_t *out, uint32_t n) noexcept nogil:
    """What is due is taken and not delivered."""
    cdef Shy *shy = <Shy *> transport.state
    cdef int64_t got = tcp_ops().read(transport, out, n)
    cdef uint32_t taken
    transport.wants = 0
    if got <= 0 or shy.due == 0:
        return got
    taken = shy.due if shy.due < got else <uint32_t> got
    shy.due -= taken
    memmove(out, out + taken, <size_t> (got - taken))
    return got - taken if got > taken else IO_AGAIN


cdef int64_t shy_write(Transport *transport, const iovec *parts, int count) noexcept nogil:
    """Like a client of TLS: a greeting first, then nothing until the peer's answer was read."""
    cdef Shy *shy = <Shy *> transport.state
    cdef iovec greeting
    cdef uint8_t mark = c'?'
    cdef int64_t status
    transport.wants &= ~<uint32_t> WANTS_IN
    if not shy.greeted:
        greeting.iov_base = &mark
        greeting.iov_len = 1
        status = tcp_ops().write(transport, &greeting, 1)
        if status != 1:
            return status      # still connecting
        shy.greeted = True
    if shy.due:
        transport.wants |= WANTS_IN
        shy.refused += 1
        return IO_AGAIN
    return tcp_ops().write(transport, parts, count)


cdef void shy_finish(Transport *transport) noexcept nogil:
    tcp_ops().finish(transport)


cdef void shy_close(Transport *transport) noexcept nogil:
    mem_free(transport.state)
    transport.state = NULL
    tcp_ops().close(transport)


cdef TransportOps shy_ops = TransportOps(shy_read, shy_write, shy_finish, shy_close, NULL, NULL)

cdef LinkHooks hooks = LinkHooks(on_open, on_data, on_end, on_drained, on_timer, on_mail, on_turn_end, on_accept_error)


cdef struct Coy:               # a transport that takes input off the socket, and gives it at the next read only
    Transport inner
    int64_t got
    uint8_t bytes[4096]


cdef int64_t coy_read(Transport *transport, uint8_t *out, uint32_t n) noexcept nogil:
    cdef Coy *coy = <Coy *> transport.state
    cdef int64_t got = coy.got
    transport.wants = 0
    if got > 0 and got <= n:
        memcpy(out, coy.bytes, <size_t> got)
        coy.got = 0
        return got
    got = coy.inner.ops.read(&coy.inner, coy.bytes, 4096)
    if got > 0:
        coy.got = got
        transport.wants = WANTS_READ
        return IO_AGAIN
    return got


cdef int64_t coy_write(Transport *transport, const iovec *parts, int count) noexcept nogil:
    cdef Coy *coy = <Coy *> transport.state
    return coy.inner.ops.write(&coy.inner, parts, count)


cdef void coy_finish(Transport *transport) noexcept nogil:
    cdef Coy *coy = <Coy *> transport.state
    coy.inner.ops.finish(&coy.inner)


cdef void coy_close(Transport *transport) noexcept nogil:
    cdef Coy *coy = <Coy *> transport.state
    if coy != NULL:
        coy.inner.ops.close(&coy.inner)
        mem_free(coy)
    transport.state = NULL
    transport.fd = -1


cdef TransportOps coy_operations = TransportOps(coy_read, coy_write, coy_finish, coy_close, NULL, NULL)


cdef class ClockFace:
    """Offsets that several reactors share."""
    cdef Clock clock

    def move(self, int64_t mono_ms, int64_t wall_ms=0) -> None:
        atomic_add_i64_relaxed(&self.clock.mono_offset_ms, mono_ms)
        atomic_add_i64_relaxed(&self.clock.wall_offset_ms, wall_ms)


cdef class Parcel:
    cdef LinkParcel parcel

    @property
    def leftover(self) -> bytes:
        return PyBytes_FromStringAndSize(<const char *> self.parcel.leftover, self.parcel.leftover_bytes) if self.parcel.leftover_bytes else b""

    @property
    def fd(self) -> int:
        return self.parcel.transport.fd

    def __dealloc__(self):
        mem_free(self.parcel.leftover)


cdef class ReactorFace:
    cdef Reactor *reactor
    cdef Harness *harness
    cdef MsgPool pool
    cdef readonly ClockFace clock

    def __cinit__(self, uint32_t turn_bytes=1 << 20, ClockFace clock=None, bint with_pool=True):
        self.clock = clock or ClockFace()
        self.harness = <Harness *> mem_alloc_zeroed(1, sizeof(Harness))
        if self.harness == NULL:
            raise MemoryError
        if pool_init(&self.pool, 0, 1) != ST_OK:
            mem_free(self.harness)
            self.harness = NULL
            raise MemoryError
        self.reactor = reactor_build(&hooks, self.harness, &self.pool if with_pool else NULL, &self.clock.clock, sizeof(Conn), turn_bytes)
        if self.reactor == NULL:
            raise MemoryError
        self.harness.reactor = self.reactor

    def free(self) -> None:
        """Frees the reactor. Nothing else of this object may be used then, but `pool_live`."""
        cdef Mail *mail
        cdef Mail *following
        if self.reactor != NULL:
            mail = inbox_take(&self.reactor.inbox)
            while mail != NULL:
                following = mail.next
                mem_free(mail)
                mail = following
            reactor_free(self.reactor)
            self.reactor = NULL
        if self.harness != NULL:
            if self.harness.kept != NULL:
                msg_drop(&self.pool, self.harness.kept)
            mem_free(self.harness)
            self.harness = NULL
            pool_free(&self.pool)

    def __dealloc__(self):
        self.free()

    # ------------------------------------------------------------------ turns

    def turn(self, int max_wait_ms=0, uint32_t times=1) -> None:
        cdef uint32_t i
        with nogil:
            for i in range(times):
                reactor_turn(self.reactor, max_wait_ms)

    def run(self) -> None:
        """Until `stop`, without the GIL."""
        with nogil:
            reactor_run(self.reactor)

    def post(self, uint32_t kind) -> None:
        """[any thread]"""
        cdef Mail *mail = <Mail *> mem_alloc_zeroed(1, sizeof(Letter))
        if mail == NULL:
            raise MemoryError
        mail.kind = kind
        if inbox_post(&self.reactor.inbox, mail, mail):
            inbox_wake(&self.reactor.inbox)

    def note(self) -> None:
        """[any thread]"""
        self.post(MAIL_NOTE)

    def stop(self) -> None:
        """[any thread]"""
        self.post(MAIL_STOP)

    def wake(self) -> None:
        """[any thread]"""
        inbox_wake(&self.reactor.inbox)

    # ------------------------------------------------------------------ listeners and links

    def listen(self, int fd, uint16_t listener=0) -> bool:
        return reactor_listen(self.reactor, fd, listener) == ST_OK

    def unlisten(self) -> None:
        reactor_unlisten(self.reactor)

    def open_fd(self, int fd) -> tuple:
        """(slot, generation) of a link over an own socket, whose descriptor it takes over."""
        cdef Transport transport
        cdef Link *link
        transport.ops = tcp_ops()
        transport.state = NULL
        transport.fd = fd
        link = link_open(self.reactor, &transport, NULL, 7)
        if link == NULL:
            raise MemoryError
        return link.slot, link.generation

    def open_shy(self, int fd, uint32_t due) -> tuple:
        """The same over a transport that greets with one byte and then writes nothing before `due` bytes were read, which it keeps."""
        cdef Transport transport
        cdef Link *link
        cdef Shy *shy = <Shy *> mem_alloc_zeroed(1, sizeof(Shy))
        if shy == NULL:
            raise MemoryError
        shy.due = due
        transport.ops = &shy_ops
        transport.state = shy
        transport.fd = fd
        transport.wants = 0
        link = link_open(self.reactor, &transport, NULL, 7)
        if link == NULL:
            mem_free(shy)
            raise MemoryError
        return link.slot, link.generation

    def refused_writes(self, handle) -> int:
        return (<Shy *> self.at(handle).transport.state).refused

    def open_coy(self, int fd) -> tuple:
        """As open_fd, of a link whose reads hold back what they have read, of which no event tells."""
        cdef Transport transport
        cdef Link *link
        cdef Coy *coy = <Coy *> mem_alloc_zeroed(1, sizeof(Coy))
        if coy == NULL:
            raise MemoryError
        coy.inner.ops = tcp_ops()
        coy.inner.fd = fd
        memset(&transport, 0, sizeof(Transport))
        transport.ops = &coy_operations
        transport.state = coy
        transport.fd = fd
        link = link_open(self.reactor, &transport, NULL, 7)
        if link == NULL:
            mem_free(coy)
            raise MemoryError
        return link.slot, link.generation

    def links(self) -> list:
        """(slot, generation) of the open ones."""
        cdef uint32_t cursor = 0
        cdef Link *link
        found = []
        while True:
            link = reactor_next_link(self.reactor, &cursor)
            if link == NULL:
                return found
            found.append((link.slot, link.generation))

    cdef Link *at(self, handle) except NULL:
        cdef Link *link = reactor_link(self.reactor, handle[0], handle[1])
        if link == NULL:
            raise LookupError(handle)
        return link

    def alive(self, handle) -> bool:
        return reactor_link(self.reactor, handle[0], handle[1]) != NULL

    def pause(self, handle) -> None:
        link_pause(self.reactor, self.at(handle))

    def resume(self, handle) -> None:
        link_resume(self.reactor, self.at(handle))

    def close(self, handle, int reason=16) -> None:
        link_close(self.reactor, self.at(handle), reason)

    def send(self, handle, bytes data) -> None:
        append(self.harness, self.at(handle), <const uint8_t *> data, <uint32_t> len(data))

    def send_pattern(self, handle, uint32_t n) -> None:
        append_pattern(self.harness, self.at(handle), n)

    def arm_timer(self, handle, int64_t delay_ms) -> None:
        cdef Link *link = self.at(handle)
        link.timer.kind = 5
        wheel_add(self.reactor.wheel, &link.timer, self.reactor.now_ms + delay_ms)

    def detach(self, handle) -> Parcel:
        cdef Parcel parcel = Parcel()
        cdef int status = link_detach(self.reactor, self.at(handle), NULL, 0, &parcel.parcel)
        if status != ST_OK:
            raise OSError(status)
        return parcel

    def take_parcel(self) -> Parcel:
        """What the d frame, or detach_on_open, left."""
        cdef Parcel parcel = Parcel()
        parcel.parcel = self.harness.parcel
        memset(&self.harness.parcel, 0, sizeof(LinkParcel))
        return parcel

    def adopt(self, Parcel parcel not None) -> tuple:
        cdef Link *link = link_adopt(self.reactor, &parcel.parcel)
        if link == NULL:
            raise MemoryError
        return link.slot, link.generation

    def state(self, handle) -> dict:
        cdef Link *link = self.at(handle)
        cdef Conn *conn = <Conn *> link
        cdef uint8_t[64] text
        cdef uint32_t n = peer_text(&link.peer, text, 64)
        return {
            "partial_bytes": link.partial_bytes, "partial_capacity": link.partial_capacity, "has_partial": link.partial != NULL,
            "has_block": link.block != NULL, "out_bytes": link.out.bytes, "owns_output": link.out.extents != NULL or link.out.tail != NULL,
            "paused": link.flags & LINK_PAUSED != 0, "wants_out": link.flags & LINK_WANTS_OUT != 0,
            "wants_in": link.flags & LINK_WRITE_WANTS_IN != 0,
            "unpolled": link.flags & LINK_UNPOLLED != 0, "listener": link.listener, "peer": text[:n].decode(),
            "loopback": peer_is_loopback(&link.peer), "fd": link.transport.fd, "reads": conn.reads, "most": conn.most,
            "received": conn.received, "last_read_ms": link.last_read_ms,
        }

    def keep_alive(self, handle, uint32_t idle_s, uint32_t user_timeout_ms) -> None:
        tcp_keep_alive(self.at(handle).transport.fd, idle_s, user_timeout_ms)

    # ------------------------------------------------------------------ what happened

    def refuse(self, uint32_t count) -> None:
        self.harness.refuse = count

    def detach_on_open(self, uint32_t count) -> None:
        self.harness.detach_on_open = count

    def pause_on_open(self, bint on) -> None:
        self.harness.pause_on_open = on

    @property
    def stats(self) -> dict:
        """[any thread]"""
        cdef const uint64_t *net = <const uint64_t *> &self.reactor.stats
        cdef const uint64_t *ours = &self.harness.opened
        names = (
            "accepted", "accept_errors", "links_open", "bytes_in", "bytes_out", "reads", "writes", "short_writes", "turns", "mails",
        )
        harness = (
            "opened", "ended", "drained", "frames", "bytes", "sum", "blocks", "notes", "timers", "late_timers", "accept_errors_told", "detached",
        )
        found = {name: atomic_load_u64_relaxed(&net[i]) for i, name in enumerate(names)}
        for i, name in enumerate(harness):
            found[name] = atomic_load_u64_relaxed(&ours[i])
        return found

    @property
    def ends(self) -> list:
        """Reasons in order."""
        return [self.harness.reasons[i] for i in range(min(self.harness.ended, <uint64_t> ENDS_KEPT))]

    @property
    def last_accept_error(self) -> int:
        return self.harness.last_accept_error

    @property
    def now_ms(self) -> int:
        return self.reactor.now_ms

    @property
    def wall_ms(self) -> int:
        return self.reactor.wall_ms

    @property
    def pool_live(self) -> int:
        """Message blocks made and not freed."""
        return self.pool.made - self.pool.freed

    @property
    def chunks_live(self) -> int:
        return self.reactor.chunks.made - self.reactor.chunks.freed

    @property
    def chunks_made(self) -> int:
        return self.reactor.chunks.made

    def last_byte(self) -> int:
        """The first byte of what on_data was given last, if that was the read buffer."""
        assert self.harness.last_bytes == self.reactor.read_buffer
        return self.harness.last_bytes[0]

    def kept(self) -> bytes:
        """Data of the block that the k frame kept."""
        cdef Msg *msg = self.harness.kept
        return PyBytes_FromStringAndSize(<const char *> msg_data(msg), msg.capacity) if msg != NULL else b""
