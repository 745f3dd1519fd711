"""The event loop. Read it from `reactor_turn` on: each phase of a turn is one function below it.

Lists. A link stands at most once in `dirty` (flag LINK_DIRTY), and its `close_next` in one of three: `resuming` (flag LINK_RESUMING), `closing`
(state LINK_CLOSING, not yet ended), or the private `freed` (state LINK_FREE). Closing or freeing a link that stands in `resuming` leaves it there;
the resume phase passes it on. A slot is used again only when no list holds it any more.

Generations. Releasing a link raises its generation, and events, hooks that return, and mail compare it: what names a gone link is ignored.
"""

from libc.errno cimport EAGAIN, ECONNABORTED, EINTR, ENOMEM, EPERM, errno
from libc.stdint cimport int16_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memmove, memset
from posix.time cimport CLOCK_MONOTONIC, CLOCK_REALTIME, clock_gettime, clockid_t, timespec

from mqttc.base.alloc cimport mem_alloc, mem_alloc_zeroed, mem_free, mem_resize
from mqttc.base.inbox cimport Mail, inbox_drain_wake, inbox_free, inbox_init, inbox_take
from mqttc.base.msg cimport Msg, MsgPool, msg_alloc, msg_data, msg_drop
from mqttc.base.timer cimport TimerNode, wheel_add, wheel_build, wheel_cancel, wheel_expire, wheel_expire_exact, wheel_free, wheel_next_ms
from mqttc.base.types cimport ST_AGAIN, ST_CLOSED, ST_ERROR, ST_NO_MEMORY, ST_OK, atomic_add_i64_relaxed, atomic_load_i64_relaxed, atomic_load_u32_acquire, atomic_store_i64_relaxed, atomic_store_u32_release, atomic_store_u64_relaxed, counter_add, counter_sub, unlikely
from mqttc.net.outq cimport chunk_pool_free, chunk_pool_init, outq_clear, outq_flush
from mqttc.net.poller cimport (
    READY_HANGUP, READY_IN, READY_OUT, READY_SHARED, PollEvent, poller_add, poller_change, poller_close, poller_open, poller_remove, poller_wait,
)
from mqttc.net.tcp cimport PeerAddress, tcp_accept, tcp_ops, tcp_tune
from mqttc.net.transport cimport IO_AGAIN, IO_END, IO_REFUSED, WANTS_IN, WANTS_OUT, WANTS_READ, Transport

cdef extern from "mqttc/base/native.h" nogil:
    uint32_t bit_highest_u64(uint64_t v) noexcept

cdef extern from "<errno.h>" nogil:
    const int EPROTO

cdef extern from "<unistd.h>" nogil:
    int c_close "close"(int fd)

cdef extern from "mqttc/net/sockets.h" nogil:
    const bint MQTTC_NET_DEBUG
    int socket_error(int fd)
    int socket_unread(int fd)

cdef enum:
    READ_BUFFER_BYTES = 128 << 10
    GATHER_BYTES = 64 << 10
    BLOCK_ABOVE = 16 << 10     # a packet larger than this, begun but not whole, is received into its own block
    EVENTS = 256               # per turn
    ACCEPTS = 64               # per listener and turn
    ACCEPT_REST_MS = 500       # after an error such as too many open files
    LINGER_MS = 2000           # for the last output, and again for the peer to read it
    LINGER_BYTES = 8 << 20     # discarded meanwhile; more than socket buffers hold
    LAST_READ_BYTES = 1 << 20  # read once more after a failed write, for the peer's last words
    LONGEST_WAIT_MS = 3600000
    TICK_MS = 64               # of the timer wheel
    LINKS_PER_PAGE = 64
    PARTIAL_LEAST = 64
    PARTIAL_CLASSES = 12       # 64 bytes to 128 KiB
    PARTIALS_KEPT = 8          # per class
    TOKEN_LINK = 0
    TOKEN_LISTENER = 1
    TOKEN_WAKE = 2
    GENERATION_BITS = 0x3fffffff       # as far as a token carries it

cdef struct Listener:
    TimerNode timer            # while it rests after an error
    Listener *next
    uint32_t number            # in tokens
    int fd
    uint16_t listener
    bint armed

cdef struct Private:
    char **pages               # link slab: pages of LINKS_PER_PAGE links, never moved, freed with the reactor
    uint32_t page_count
    uint32_t page_capacity
    uint32_t read_used         # of the read buffer, this turn (debug builds)
    uint32_t listeners_made
    bint inbox_made
    bint woken                 # the wake descriptor is readable
    bint turn_ended            # on_turn_end was called
    bint hurry                 # hooks ran after it: the next turn must not wait
    Link *free_links           # by close_next
    Link *freed                # this turn, by close_next
    Listener *listeners
    void *partials[PARTIAL_CLASSES]    # free buffers; the first bytes of each point to the next
    uint32_t partial_count[PARTIAL_CLASSES]
    PollEvent events[EVENTS]


cdef inline Private *private_of(Reactor *reactor) noexcept nogil:
    return <Private *> reactor.private


cdef inline uint64_t token_make(uint64_t kind, uint32_t generation, uint32_t slot) noexcept nogil:
    return kind << 62 | <uint64_t> (generation & GENERATION_BITS) << 32 | slot


# ---------------------------------------------------------------------------------------------- link slab

cdef inline Link *slab_at(Reactor *reactor, uint32_t slot) noexcept nogil:
    cdef Private *private = private_of(reactor)
    cdef uint32_t page = slot // LINKS_PER_PAGE
    if page >= private.page_count:
        return NULL
    return <Link *> (private.pages[page] + <size_t> (slot % LINKS_PER_PAGE) * reactor.link_bytes)


cdef int slab_grow(Reactor *reactor) noexcept nogil:
    cdef Private *private = private_of(reactor)
    cdef uint32_t i, capacity
    cdef void *pages
    cdef char *page
    cdef Link *link
    if private.page_count == private.page_capacity:
        capacity = private.page_capacity * 2 if private.page_capacity else 16
        pages = mem_resize(private.pages, capacity, sizeof(char *))
        if pages == NULL:
            return ST_NO_MEMORY
        private.pages = <char **> pages
        private.page_capacity = capacity
    page = <char *> mem_alloc_zeroed(LINKS_PER_PAGE, reactor.link_bytes)
    if page == NULL:
        return ST_NO_MEMORY
    private.pages[private.page_count] = page
    private.page_count += 1
    for i in range(LINKS_PER_PAGE, 0, -1):
        link = <Link *> (page + <size_t> (i - 1) * reactor.link_bytes)
        link.slot = (private.page_count - 1) * LINKS_PER_PAGE + i - 1
        link.generation = 1
        link.close_next = private.free_links
        private.free_links = link
    return ST_OK


cdef Link *slab_take(Reactor *reactor) noexcept nogil:
    """A zeroed link, open, with slot and generation; NULL: no memory."""
    cdef Private *private = private_of(reactor)
    cdef Link *link
    cdef uint32_t slot, generation
    if private.free_links == NULL and slab_grow(reactor) != ST_OK:
        return NULL
    link = private.free_links
    private.free_links = link.close_next
    slot = link.slot
    generation = link.generation
    memset(link, 0, reactor.link_bytes)
    link.slot = slot
    link.generation = generation
    link.state = LINK_OPEN
    link.transport.fd = -1
    link.last_read_ms = reactor.now_ms
    return link


cdef Link *reactor_link(Reactor *reactor, uint32_t slot, uint32_t generation) noexcept nogil:
    cdef Link *link = slab_at(reactor, slot)
    if link == NULL or link.generation != generation or link.state == LINK_FREE or link.flags & LINK_ENDED:
        return NULL
    return link


cdef Link *reactor_next_link(Reactor *reactor, uint32_t *cursor) noexcept nogil:
    cdef Link *link
    while True:
        link = slab_at(reactor, cursor[0])
        if link == NULL:
            return NULL
        cursor[0] += 1
        if link.state == LINK_OPEN:
            return link


cdef uint32_t reactor_ending(Reactor *reactor, uint32_t *unsent) noexcept nogil:
    cdef uint32_t slot = 0
    cdef uint32_t ending = 0
    cdef Link *link = slab_at(reactor, 0)
    unsent[0] = 0
    while link != NULL:
        if link.state == LINK_CLOSING or link.state == LINK_LINGERING:
            ending += 1
            if link.out.bytes:
                unsent[0] += 1
        slot += 1
        link = slab_at(reactor, slot)
    return ending


cdef void reactor_abandon(Reactor *reactor) noexcept nogil:
    # Only close: what the poller watches is shared with the parent, and other threads may have been at work on every structure when the fork came.
    cdef uint32_t slot = 0
    cdef Link *link = slab_at(reactor, 0)
    while link != NULL:
        if link.state != LINK_FREE and link.transport.fd >= 0:
            c_close(link.transport.fd)
        slot += 1
        link = slab_at(reactor, slot)
    poller_close(&reactor.poller)
    c_close(reactor.inbox.wake_read_fd)
    if reactor.inbox.wake_write_fd != reactor.inbox.wake_read_fd:
        c_close(reactor.inbox.wake_write_fd)


# ---------------------------------------------------------------------------------------------- buffers of partial input

cdef inline uint32_t partial_class(uint32_t n) noexcept nogil:
    cdef uint32_t partial = 0
    while <uint32_t> PARTIAL_LEAST << partial < n:
        partial += 1
    return partial


cdef uint8_t *partial_take(Reactor *reactor, uint32_t n, uint32_t *capacity) noexcept nogil:
    cdef Private *private = private_of(reactor)
    cdef uint32_t partial = partial_class(n)
    cdef void *buffer
    capacity[0] = <uint32_t> PARTIAL_LEAST << partial
    if partial < PARTIAL_CLASSES and private.partials[partial] != NULL:
        buffer = private.partials[partial]
        private.partials[partial] = (<void **> buffer)[0]
        private.partial_count[partial] -= 1
        return <uint8_t *> buffer
    return <uint8_t *> mem_alloc(capacity[0])


cdef void partial_give(Reactor *reactor, uint8_t *buffer, uint32_t capacity) noexcept nogil:
    cdef Private *private = private_of(reactor)
    cdef uint32_t partial
    if buffer == NULL:
        return
    partial = partial_class(capacity)
    if partial < PARTIAL_CLASSES and capacity == <uint32_t> PARTIAL_LEAST << partial and private.partial_count[partial] < PARTIALS_KEPT:
        (<void **> buffer)[0] = private.partials[partial]
        private.partials[partial] = buffer
        private.partial_count[partial] += 1
        return
    mem_free(buffer)                    # a parcel's leftover has any size


cdef void link_drop_input(Reactor *reactor, Link *link) noexcept nogil:
    partial_give(reactor, link.partial, link.partial_capacity)
    if link.block != NULL:
        msg_drop(reactor.msg_pool, link.block)
    link.partial = NULL
    link.block = NULL
    link.partial_bytes = 0
    link.partial_capacity = 0
    link.want_bytes = 0


# ---------------------------------------------------------------------------------------------- interest, release, lists

cdef int link_arm(Reactor *reactor, Link *link) noexcept nogil:
    """Tells the poller what the flags say."""
    cdef uint32_t interest = 0
    if link.flags & LINK_UNPOLLED:
        return ST_OK
    if not link.flags & LINK_READ_OFF:
        interest |= READY_IN
    if link.flags & (LINK_WANTS_OUT | LINK_READ_WANTS_OUT):
        interest |= READY_OUT
    return poller_change(&reactor.poller, link.transport.fd, interest, token_make(TOKEN_LINK, link.generation, link.slot))


cdef void link_retire(Reactor *reactor, Link *link) noexcept nogil:
    """Empties a link whose descriptor has left the poller; its slot is free at the end of the turn."""
    cdef Private *private = private_of(reactor)
    wheel_cancel(reactor.wheel, &link.timer)
    link_drop_input(reactor, link)
    outq_clear(&reactor.chunks, &link.out)
    link.state = LINK_FREE
    link.generation += 1
    if link.generation & GENERATION_BITS == 0:
        link.generation += 1
    if not link.flags & LINK_RESUMING:
        link.close_next = private.freed
        private.freed = link


cdef void link_release(Reactor *reactor, Link *link) noexcept nogil:
    """The descriptor is closed and nobody hears of this link again. Taken from the poller first: a child's copy would keep it registered."""
    poller_remove(&reactor.poller, link.transport.fd)
    link.transport.ops.close(&link.transport)
    link_retire(reactor, link)


cdef void link_fail(Reactor *reactor, Link *link, int reason) noexcept nogil:
    """The link is of no use any more, whatever its state."""
    if link.state == LINK_OPEN:
        link_close(reactor, link, reason)
    elif link.flags & LINK_ENDED:
        link_release(reactor, link)     # otherwise on_end is due, with the reason of the one who was first


cdef void link_close(Reactor *reactor, Link *link, int reason) noexcept nogil:
    if link.state != LINK_OPEN:
        return
    link.state = LINK_CLOSING
    link.end_reason = <int16_t> reason
    if not link.flags & LINK_RESUMING:
        link.close_next = reactor.closing
        reactor.closing = link


cdef void link_again(Reactor *reactor, Link *link) noexcept nogil:
    """Into the resume list."""
    if not link.flags & LINK_RESUMING:
        link.flags |= LINK_RESUMING
        link.close_next = reactor.resuming
        reactor.resuming = link


cdef void link_pause(Reactor *reactor, Link *link) noexcept nogil:
    # READY_IN stays armed until input arrives: most pauses are over before that.
    link.flags |= LINK_PAUSED


cdef void link_resume(Reactor *reactor, Link *link) noexcept nogil:
    if link.state == LINK_OPEN and link.flags & LINK_PAUSED:
        link.flags &= ~<uint16_t> LINK_PAUSED
        link_again(reactor, link)


# ---------------------------------------------------------------------------------------------- input

cdef void link_keep(Reactor *reactor, Link *link, const uint8_t *bytes, uint32_t n, uint8_t *buffer, uint32_t capacity) noexcept nogil:
    """Keeps n bytes (they may lie inside `buffer`, an own one of that capacity, which is used again or given back)."""
    cdef uint32_t fresh_capacity = 0
    cdef uint8_t *fresh
    if link.want_bytes > BLOCK_ABOVE and n < link.want_bytes and reactor.msg_pool != NULL:
        link.block = msg_alloc(reactor.msg_pool, link.want_bytes)
        if link.block == NULL:
            partial_give(reactor, buffer, capacity)
            link_close(reactor, link, END_NO_MEMORY)
            return
        memcpy(msg_data(link.block), bytes, n)
        partial_give(reactor, buffer, capacity)
    elif buffer != NULL and n <= capacity and (n >= capacity // 4 or capacity <= 256):
        memmove(buffer, bytes, n)
        link.partial = buffer
        link.partial_capacity = capacity
    else:
        fresh = partial_take(reactor, n, &fresh_capacity)
        if fresh == NULL:
            partial_give(reactor, buffer, capacity)
            link_close(reactor, link, END_NO_MEMORY)
            return
        memcpy(fresh, bytes, n)
        partial_give(reactor, buffer, capacity)
        link.partial = fresh
        link.partial_capacity = fresh_capacity
    link.partial_bytes = n


cdef bint link_deliver(Reactor *reactor, Link *link, const uint8_t *bytes, uint32_t n) noexcept nogil:
    """on_data with bytes of the read buffer, or of link.partial itself. False: the link is gone, closing or paused."""
    cdef uint8_t *buffer = link.partial
    cdef uint32_t capacity = link.partial_capacity
    cdef uint32_t generation = link.generation
    cdef uint32_t used
    link.partial = NULL
    link.partial_bytes = 0
    link.partial_capacity = 0
    link.want_bytes = 0
    used = reactor.hooks.on_data(reactor.context, link, bytes, n)
    if link.generation != generation or link.state != LINK_OPEN or used >= n:
        partial_give(reactor, buffer, capacity)
        return link.generation == generation and link.state == LINK_OPEN and not link.flags & LINK_PAUSED
    link_keep(reactor, link, bytes + used, n - used, buffer, capacity)
    return link.state == LINK_OPEN and not link.flags & LINK_PAUSED


cdef bint link_deliver_block(Reactor *reactor, Link *link) noexcept nogil:
    """on_data with a whole block. False: the link is gone, closing or paused."""
    cdef uint32_t generation = link.generation
    cdef uint32_t n = link.want_bytes
    cdef uint32_t used = reactor.hooks.on_data(reactor.context, link, msg_data(link.block), n)
    if link.generation != generation or link.state != LINK_OPEN:
        return False
    if link.block != NULL and used < n:
        if link.flags & LINK_PAUSED:
            link.want_bytes = n         # it comes again
        else:
            link_close(reactor, link, END_NO_MEMORY)
        return False
    if link.block != NULL:
        msg_drop(reactor.msg_pool, link.block)
        link.block = NULL
    link.partial_bytes = 0
    link.want_bytes = 0
    return not link.flags & LINK_PAUSED


cdef inline bint link_deliver_held(Reactor *reactor, Link *link) noexcept nogil:
    """on_data with what the link holds, as far as it is due without new input. False: the link is gone, closing or paused."""
    if link.block != NULL:
        return link.partial_bytes < link.want_bytes or link_deliver_block(reactor, link)
    return link.partial_bytes == 0 or link_deliver(reactor, link, link.partial, link.partial_bytes)


cdef void link_read_wants_out(Reactor *reactor, Link *link) noexcept nogil:
    """The transport must write before it can read on (a handshake, a new key), and the descriptor is full."""
    if not link.flags & LINK_READ_WANTS_OUT:
        link.flags |= LINK_READ_WANTS_OUT
        if link_arm(reactor, link) != ST_OK:
            link_fail(reactor, link, END_NO_MEMORY)


cdef inline int64_t link_receive(Reactor *reactor, Link *link, uint8_t *out, uint32_t n) noexcept nogil:
    """The transport's read. Whatever came of it, a write that waits for input is tried again at the end of the turn."""
    cdef int64_t got = link.transport.ops.read(&link.transport, out, n)
    counter_add(&reactor.stats.reads, 1)
    if unlikely(link.flags & LINK_WRITE_WANTS_IN):
        link.flags &= ~<uint16_t> LINK_WRITE_WANTS_IN
        link_dirty(reactor, link)
    return got


cdef void link_read(Reactor *reactor, Link *link, int64_t budget, bint hangup) noexcept nogil:
    """Reads and delivers until the transport has no more, the budget is used up, or the link is paused or closed."""
    cdef Private *private = private_of(reactor)
    cdef uint32_t room
    cdef int64_t n
    while budget > 0:
        if link.block != NULL:
            room = link.want_bytes - link.partial_bytes
            room = room if room < budget else <uint32_t> budget
            n = link_receive(reactor, link, msg_data(link.block) + link.partial_bytes, room)
        else:
            if link.partial_bytes >= reactor.read_buffer_bytes:
                link_close(reactor, link, END_NO_MEMORY)
                return
            room = reactor.read_buffer_bytes - link.partial_bytes
            room = room if room < budget else <uint32_t> budget
            n = link_receive(reactor, link, reactor.read_buffer + link.partial_bytes, room)
        if n <= 0:
            if n == IO_REFUSED and not hangup:
                outq_clear(&reactor.chunks, &link.out)
                link_close(reactor, link, END_PEER_REFUSED)
            elif n != IO_AGAIN or hangup:
                link.flags |= LINK_END_SEEN
                link_close(reactor, link, END_PEER_CLOSED if n == IO_END else END_PEER_RESET)
            elif link.transport.wants & WANTS_OUT:
                link_read_wants_out(reactor, link)
            elif link.transport.wants & WANTS_READ:
                link_again(reactor, link)
            return
        budget -= n
        counter_add(&reactor.stats.bytes_in, <uint64_t> n)
        link.last_read_ms = reactor.now_ms
        if unlikely(link.transport.wants & WANTS_OUT):
            link_dirty(reactor, link)
        if link.block != NULL:
            link.partial_bytes += <uint32_t> n
            if link.partial_bytes == link.want_bytes and not link_deliver_block(reactor, link):
                return
        else:
            n += link.partial_bytes
            if link.partial_bytes:
                memcpy(reactor.read_buffer, link.partial, link.partial_bytes)
                room += link.partial_bytes
            if n > private.read_used:
                private.read_used = <uint32_t> n
            if not link_deliver(reactor, link, reactor.read_buffer, <uint32_t> n):
                return
        if n < room:
            if link.transport.wants & WANTS_READ:
                link_again(reactor, link)
            return
    if link.transport.wants & WANTS_READ:
        link_again(reactor, link)       # decrypted bytes raise no event


cdef void link_discard(Reactor *reactor, Link *link) noexcept nogil:
    """Input of an ended link: read away, so that closing does not reset the connection under our last words."""
    cdef Private *private = private_of(reactor)
    cdef int64_t n
    while True:
        n = link_receive(reactor, link, reactor.read_buffer, reactor.read_buffer_bytes)
        if n > 0:
            counter_add(&reactor.stats.bytes_in, <uint64_t> n)
            if n > private.read_used:
                private.read_used = <uint32_t> n
            link.want_bytes += <uint32_t> n
            if link.want_bytes > LINGER_BYTES:
                link_release(reactor, link)
                return
            if n < reactor.read_buffer_bytes and not link.transport.wants & WANTS_READ:
                return
        elif n == IO_AGAIN:
            if link.transport.wants & WANTS_OUT:
                link_read_wants_out(reactor, link)
            return
        elif n == IO_END and link.state == LINK_CLOSING:
            link.flags |= LINK_END_SEEN | LINK_READ_OFF         # it has stopped talking but may still listen
            if link_arm(reactor, link) != ST_OK:
                link_release(reactor, link)
            return
        else:
            link_release(reactor, link)
            return


# ---------------------------------------------------------------------------------------------- output and end

cdef void link_stall(Reactor *reactor, Link *link) noexcept nogil:
    """The transport takes no more now. READY_OUT is armed only where it would help: for a write that waits for input it would come at once, for ever."""
    cdef uint16_t before = link.flags & LINK_WANTS_OUT
    if link.transport.wants & WANTS_IN:
        link.flags |= LINK_WRITE_WANTS_IN | LINK_NOTIFY
        link.flags &= ~<uint16_t> LINK_WANTS_OUT
    elif not before:
        counter_add(&reactor.stats.short_writes, 1)
        link.flags |= LINK_WANTS_OUT
    if link.flags & LINK_WANTS_OUT != before and link_arm(reactor, link) != ST_OK:
        link_fail(reactor, link, END_NO_MEMORY)


cdef void link_hold(Reactor *reactor, Link *link) noexcept nogil:
    """Throttled with output left: READY_OUT would come at once, for ever."""
    link.flags |= LINK_NOTIFY
    if link.flags & LINK_WANTS_OUT:
        link.flags &= ~<uint16_t> LINK_WANTS_OUT
        if link_arm(reactor, link) != ST_OK:
            link_fail(reactor, link, END_NO_MEMORY)


cdef void link_unthrottle(Reactor *reactor, Link *link) noexcept nogil:
    link.flags &= ~<uint16_t> LINK_THROTTLED
    link_dirty(reactor, link)


cdef void link_flush(Reactor *reactor, Link *link) noexcept nogil:
    cdef uint64_t written = 0
    cdef uint32_t generation = link.generation
    cdef bint drained
    cdef int status = ST_OK
    if unlikely(link.flags & LINK_THROTTLED) and link.state == LINK_OPEN:
        link.flags |= LINK_NOTIFY
        return
    if link.out.count:
        status = outq_flush(&reactor.chunks, &link.out, &link.transport, &reactor.gather, &written)
        counter_add(&reactor.stats.writes, 1)
        counter_add(&reactor.stats.bytes_out, written)
    if link.transport.wants & WANTS_OUT and status != ST_CLOSED:
        link_read_wants_out(reactor, link)      # the transport has something to say that is not in the queue
        if link.generation != generation:
            return
    if unlikely(link.flags & LINK_METERED) and status != ST_CLOSED and link.state == LINK_OPEN:
        reactor.hooks.on_flushed(reactor.context, link, written)
        if status == ST_AGAIN and link.flags & LINK_THROTTLED:
            link_hold(reactor, link)
            return
    if status == ST_AGAIN:
        link_stall(reactor, link)
        return
    if status != ST_OK:
        outq_clear(&reactor.chunks, &link.out)
        # What the peer sent before it went away still counts (a publisher that says DISCONNECT and closes).
        if link.state == LINK_OPEN and not link.flags & LINK_PAUSED:
            private_of(reactor).hurry |= private_of(reactor).turn_ended
            link_read(reactor, link, LAST_READ_BYTES, False)
        if link.generation == generation:
            link_fail(reactor, link, END_WRITE_FAILED)
        return
    drained = link.flags & (LINK_WANTS_OUT | LINK_NOTIFY) != 0
    link.flags &= ~<uint16_t> LINK_NOTIFY
    if link.flags & LINK_WANTS_OUT:
        link.flags &= ~<uint16_t> LINK_WANTS_OUT
        if link_arm(reactor, link) != ST_OK:
            link_fail(reactor, link, END_NO_MEMORY)
            return
    if drained and link.state == LINK_OPEN:
        private_of(reactor).hurry |= private_of(reactor).turn_ended     # the hook may have mail to post
        reactor.hooks.on_drained(reactor.context, link)
    if link.state == LINK_CLOSING and link.flags & LINK_ENDED:
        link_finish(reactor, link)


cdef void link_finish(Reactor *reactor, Link *link) noexcept nogil:
    """All output of an ended link has left."""
    link.transport.ops.finish(&link.transport)
    if link.flags & (LINK_END_SEEN | LINK_NO_LINGER):
        link_release(reactor, link)
        return
    link.state = LINK_LINGERING
    wheel_add(reactor.wheel, &link.timer, reactor.now_ms + LINGER_MS)
    link_discard(reactor, link)


cdef void link_end(Reactor *reactor, Link *link) noexcept nogil:
    """Tells the upper floor, and starts the way out."""
    cdef bint hard
    counter_sub(&reactor.stats.links_open, 1)
    if not link.flags & LINK_ENDED:     # else on_open refused it
        link.flags |= LINK_ENDED
        reactor.hooks.on_end(reactor.context, link, link.end_reason)
    wheel_cancel(reactor.wheel, &link.timer)
    link_drop_input(reactor, link)
    hard = link.end_reason in (END_PEER_RESET, END_WRITE_FAILED, END_NO_MEMORY)
    if hard or (link.out.count == 0 and link.flags & (LINK_END_SEEN | LINK_NO_LINGER)):
        link_release(reactor, link)
        return
    link.timer.kind = TIMER_NET
    wheel_add(reactor.wheel, &link.timer, reactor.now_ms + LINGER_MS)
    link_dirty(reactor, link)           # flushed, or finished, at the end of this turn
    if link.flags & LINK_END_SEEN:
        link.flags |= LINK_READ_OFF
    elif link.flags & (LINK_READ_OFF | LINK_UNPOLLED):
        link.flags &= ~<uint16_t> LINK_READ_OFF
    else:
        return
    if link.flags & LINK_UNPOLLED or link_arm(reactor, link) != ST_OK:
        link_release(reactor, link)


# ---------------------------------------------------------------------------------------------- links from and to elsewhere

cdef int link_poll(Reactor *reactor, Link *link) noexcept nogil:
    return poller_add(&reactor.poller, link.transport.fd, READY_IN, token_make(TOKEN_LINK, link.generation, link.slot))


cdef Link *link_start(Reactor *reactor, const Transport *transport, const PeerAddress *peer, uint16_t listener) noexcept nogil:
    """A link in the poller. NULL: no memory, the descriptor is untouched."""
    cdef Private *private = private_of(reactor)
    cdef Link *link = slab_take(reactor)
    if link == NULL:
        return NULL
    link.transport = transport[0]
    if peer != NULL:
        link.peer = peer[0]
    link.listener = listener
    if link_poll(reactor, link) != ST_OK:
        link.state = LINK_FREE
        link.close_next = private.free_links
        private.free_links = link
        return NULL
    counter_add(&reactor.stats.links_open, 1)
    return link


cdef Link *link_open(Reactor *reactor, const Transport *transport, const PeerAddress *peer, uint16_t listener) noexcept nogil:
    return link_start(reactor, transport, peer, listener)


cdef int link_detach(Reactor *reactor, Link *link, const uint8_t *leftover, uint32_t leftover_bytes, LinkParcel *parcel) noexcept nogil:
    cdef uint8_t *copy = NULL
    cdef uint64_t written = 0
    if link.state != LINK_OPEN:
        return ST_CLOSED
    if leftover == NULL:
        leftover_bytes = link.partial_bytes
        leftover = msg_data(link.block) if link.block != NULL else link.partial
    if leftover_bytes:
        copy = <uint8_t *> mem_alloc(leftover_bytes)
        if copy == NULL:
            return ST_NO_MEMORY
        memcpy(copy, leftover, leftover_bytes)
    if link.out.count:
        outq_flush(&reactor.chunks, &link.out, &link.transport, &reactor.gather, &written)
        counter_add(&reactor.stats.writes, 1)
        counter_add(&reactor.stats.bytes_out, written)
    parcel.transport = link.transport
    parcel.peer = link.peer
    parcel.listener = link.listener
    parcel.last_read_ms = link.last_read_ms
    parcel.leftover = copy
    parcel.leftover_bytes = leftover_bytes
    poller_remove(&reactor.poller, link.transport.fd)
    link.transport.fd = -1
    link.transport.state = NULL
    counter_sub(&reactor.stats.links_open, 1)
    link_retire(reactor, link)
    return ST_OK


cdef Link *link_adopt(Reactor *reactor, LinkParcel *parcel) noexcept nogil:
    cdef Link *link = link_start(reactor, &parcel.transport, &parcel.peer, parcel.listener)
    if link == NULL:
        return NULL
    link.flags |= LINK_PAUSED
    link.last_read_ms = parcel.last_read_ms
    link.partial = parcel.leftover
    link.partial_bytes = parcel.leftover_bytes
    link.partial_capacity = parcel.leftover_bytes
    parcel.leftover = NULL
    parcel.leftover_bytes = 0
    return link


# ---------------------------------------------------------------------------------------------- listeners

cdef int reactor_listen(Reactor *reactor, int fd, uint16_t listener) noexcept nogil:
    cdef Private *private = private_of(reactor)
    cdef Listener *made = <Listener *> mem_alloc_zeroed(1, sizeof(Listener))
    if made == NULL:
        return ST_NO_MEMORY
    made.fd = fd
    made.listener = listener
    made.number = private.listeners_made
    made.timer.kind = TIMER_NET
    if not listener_arm(reactor, made):
        mem_free(made)
        return ST_ERROR
    private.listeners_made += 1
    made.next = private.listeners
    private.listeners = made
    return ST_OK


cdef void reactor_unlisten(Reactor *reactor) noexcept nogil:
    cdef Private *private = private_of(reactor)
    cdef Listener *listener
    while private.listeners != NULL:
        listener = private.listeners
        private.listeners = listener.next
        wheel_cancel(reactor.wheel, &listener.timer)
        if listener.armed:
            poller_remove(&reactor.poller, listener.fd)
        mem_free(listener)


cdef bint listener_arm(Reactor *reactor, Listener *listener) noexcept nogil:
    listener.armed = poller_add(&reactor.poller, listener.fd, READY_IN | READY_SHARED, token_make(TOKEN_LISTENER, 0, listener.number)) == ST_OK
    return listener.armed


cdef void listener_rest(Reactor *reactor, Listener *listener, int error) noexcept nogil:
    """Counts an accept that failed; an error that will not pass by itself takes the listener out of the poller for a while."""
    counter_add(&reactor.stats.accept_errors, 1)
    if error not in (EINTR, ECONNABORTED, EPROTO, EPERM):
        poller_remove(&reactor.poller, listener.fd)
        listener.armed = False
        wheel_add(reactor.wheel, &listener.timer, reactor.now_ms + ACCEPT_REST_MS)
    reactor.hooks.on_accept_error(reactor.context, listener.listener, error)


cdef int listener_accept(Reactor *reactor, Listener *listener) noexcept nogil:
    """One connection. ST_OK: come again; ST_AGAIN: none waits; ST_ERROR: see listener_rest."""
    cdef PeerAddress peer
    cdef Link *link
    cdef uint32_t generation
    cdef int fd = tcp_accept(listener.fd, &peer)
    cdef int error = errno
    if fd < 0:
        if error == EAGAIN:
            return ST_AGAIN
        listener_rest(reactor, listener, error)
        return ST_ERROR
    tcp_tune(fd, &peer)
    link = slab_take(reactor)
    if link == NULL:
        c_close(fd)
        listener_rest(reactor, listener, ENOMEM)
        return ST_ERROR
    link.transport.ops = tcp_ops()
    link.transport.fd = fd
    link.peer = peer
    link.listener = listener.listener
    generation = link.generation
    counter_add(&reactor.stats.accepted, 1)
    counter_add(&reactor.stats.links_open, 1)
    if reactor.hooks.on_open(reactor.context, link) < 0:
        if link.generation == generation:
            link_close(reactor, link, END_NO_MEMORY)
            link.end_reason = END_NO_MEMORY     # nothing is waited for
            link.flags |= LINK_ENDED            # and on_end is not called
    elif link.generation == generation and link_poll(reactor, link) != ST_OK:
        link_close(reactor, link, END_NO_MEMORY)
    return ST_OK


# ---------------------------------------------------------------------------------------------- events

cdef void listener_ready(Reactor *reactor, uint32_t number) noexcept nogil:
    cdef Listener *listener = private_of(reactor).listeners
    cdef int i
    while listener != NULL and listener.number != number:
        listener = listener.next
    if listener == NULL:
        return
    for i in range(ACCEPTS):
        # A hook may have removed the listeners; errors that pass by themselves go on with the next connection.
        if private_of(reactor).listeners == NULL or not listener.armed or listener_accept(reactor, listener) == ST_AGAIN:
            return


cdef void link_hangup_paused(Reactor *reactor, Link *link) noexcept nogil:
    """The peer of a paused link is gone. After an orderly end (Unix sockets report it so) input that still waits is kept for link_resume."""
    if socket_error(link.transport.fd) != 0:
        link_close(reactor, link, END_PEER_RESET)
    elif link.partial_bytes == 0 and not link.transport.wants & WANTS_READ and socket_unread(link.transport.fd) == 0:
        link_close(reactor, link, END_PEER_CLOSED)
    else:
        poller_remove(&reactor.poller, link.transport.fd)
        link.flags |= LINK_UNPOLLED


cdef void link_ready(Reactor *reactor, Link *link, uint32_t ready) noexcept nogil:
    cdef uint32_t generation = link.generation
    if link.flags & LINK_ENDED:
        if ready & READY_HANGUP:
            link_release(reactor, link)
            return
    elif link.state != LINK_OPEN:
        return                          # its end is due in this turn
    if ready & READY_OUT and link.flags & LINK_WANTS_OUT:
        link_flush(reactor, link)
        if link.generation != generation:
            return
    if ready & READY_OUT and link.flags & LINK_READ_WANTS_OUT:
        ready |= READY_IN
        link.flags &= ~<uint16_t> LINK_READ_WANTS_OUT
        if link_arm(reactor, link) != ST_OK:
            link_fail(reactor, link, END_NO_MEMORY)
            return
    if link.flags & LINK_ENDED:
        if ready & READY_IN:
            link_discard(reactor, link)
    elif link.state != LINK_OPEN:
        return
    elif link.flags & LINK_PAUSED:
        if ready & READY_HANGUP:
            link_hangup_paused(reactor, link)
        elif ready & READY_IN and not link.flags & LINK_READ_OFF:
            link.flags |= LINK_READ_OFF
            if link_arm(reactor, link) != ST_OK:
                link_close(reactor, link, END_NO_MEMORY)
    elif ready & (READY_IN | READY_HANGUP):
        link_read(reactor, link, reactor.turn_bytes, ready & READY_HANGUP != 0)


cdef void reactor_event(Reactor *reactor, const PollEvent *event) noexcept nogil:
    cdef uint64_t kind = event.token >> 62
    cdef Link *link
    if kind == TOKEN_LINK:
        link = slab_at(reactor, <uint32_t> event.token)
        if link != NULL and link.state != LINK_FREE and link.generation & GENERATION_BITS == event.token >> 32:
            link_ready(reactor, link, event.ready)
    elif kind == TOKEN_LISTENER:
        listener_ready(reactor, <uint32_t> event.token)
    else:
        private_of(reactor).woken = True


# ---------------------------------------------------------------------------------------------- phases of a turn

cdef inline int64_t system_ns(clockid_t which) noexcept nogil:
    cdef timespec now
    clock_gettime(which, &now)
    return <int64_t> now.tv_sec * 1000000000 + now.tv_nsec


cdef inline int64_t system_ms(clockid_t which) noexcept nogil:
    return system_ns(which) // 1000000


cdef void reactor_clock(Reactor *reactor) noexcept nogil:
    cdef const Clock *clock = reactor.clock
    reactor.turn_ns = system_ns(CLOCK_MONOTONIC)
    reactor.held = clock != NULL and atomic_load_u32_acquire(&clock.held)
    if reactor.held:
        reactor.now_ms = atomic_load_i64_relaxed(&clock.held_mono_ms)
        reactor.wall_ms = atomic_load_i64_relaxed(&clock.held_wall_ms)
    else:
        reactor.now_ms = reactor.turn_ns // 1000000
        reactor.wall_ms = system_ms(CLOCK_REALTIME)
        if clock != NULL:
            reactor.now_ms += atomic_load_i64_relaxed(&clock.mono_offset_ms)
            reactor.wall_ms += atomic_load_i64_relaxed(&clock.wall_offset_ms)
    reactor.turn_ms = reactor.now_ms


cdef void clock_hold(Clock *clock, int64_t wall_ms) noexcept nogil:
    atomic_store_i64_relaxed(&clock.held_mono_ms, system_ms(CLOCK_MONOTONIC) + atomic_load_i64_relaxed(&clock.mono_offset_ms))
    atomic_store_i64_relaxed(&clock.held_wall_ms, wall_ms)
    atomic_store_u32_release(&clock.held, 1)


cdef void clock_move(Clock *clock, int64_t mono_ms, int64_t wall_ms) noexcept nogil:
    if atomic_load_u32_acquire(&clock.held):
        atomic_add_i64_relaxed(&clock.held_wall_ms, wall_ms)
        mono_ms += atomic_add_i64_relaxed(&clock.held_mono_ms, mono_ms)
        # Who has only the offset to go by is not behind, and before the next move as far ahead as real time has gone.
        atomic_store_i64_relaxed(&clock.mono_offset_ms, mono_ms - system_ms(CLOCK_MONOTONIC))
    else:
        atomic_add_i64_relaxed(&clock.mono_offset_ms, mono_ms)
        atomic_add_i64_relaxed(&clock.wall_offset_ms, wall_ms)


cdef void clock_release(Clock *clock) noexcept nogil:
    # By a tick more: see wheel_expire_exact.
    if atomic_load_u32_acquire(&clock.held):
        atomic_store_i64_relaxed(&clock.mono_offset_ms, atomic_load_i64_relaxed(&clock.held_mono_ms) + TICK_MS - system_ms(CLOCK_MONOTONIC))
        atomic_store_i64_relaxed(&clock.wall_offset_ms, atomic_load_i64_relaxed(&clock.held_wall_ms) + TICK_MS - system_ms(CLOCK_REALTIME))
        atomic_store_u32_release(&clock.held, 0)


cdef int64_t clock_now_ms(const Clock *clock) noexcept nogil:
    if atomic_load_u32_acquire(&clock.held):
        return atomic_load_i64_relaxed(&clock.held_mono_ms)
    return system_ms(CLOCK_MONOTONIC) + atomic_load_i64_relaxed(&clock.mono_offset_ms)


cdef int64_t clock_wall_ms(const Clock *clock) noexcept nogil:
    if atomic_load_u32_acquire(&clock.held):
        return atomic_load_i64_relaxed(&clock.held_wall_ms)
    return system_ms(CLOCK_REALTIME) + atomic_load_i64_relaxed(&clock.wall_offset_ms)


cdef int64_t reactor_spent_ns(const Reactor *reactor) noexcept nogil:
    return system_ns(CLOCK_MONOTONIC) - reactor.turn_ns


cdef inline uint32_t turn_class(uint64_t us) noexcept nogil:
    cdef uint32_t highest
    if us < 4:
        return <uint32_t> us
    highest = bit_highest_u64(us)
    if highest > 31:
        return TURN_CLASSES - 1
    return 4 * (highest - 1) + <uint32_t> (us >> (highest - 2) & 3)


cdef uint64_t turn_class_us(uint32_t turn_class) noexcept nogil:
    cdef uint32_t highest
    if turn_class < 4:
        return turn_class
    highest = turn_class // 4 + 1
    return (<uint64_t> (turn_class % 4 + 5) << (highest - 2)) - 1


cdef void reactor_measure(Reactor *reactor) noexcept nogil:
    """The turn is over: how long it took."""
    cdef NetStats *stats = &reactor.stats
    cdef uint64_t us = <uint64_t> reactor_spent_ns(reactor) // 1000
    cdef uint32_t i
    if reactor.now_ms - reactor.turn_window_ms >= TURN_WINDOW_MS:
        reactor.turn_window_ms = reactor.now_ms
        reactor.turn_window ^= 1
        for i in range(TURN_CLASSES):
            atomic_store_u64_relaxed(&stats.turn_classes[reactor.turn_window][i], 0)
    counter_add(&stats.turn_classes[reactor.turn_window][turn_class(us)], 1)
    counter_add(&stats.turn_us, us)
    atomic_store_u64_relaxed(&stats.turn_last_us, us)
    if us > stats.turn_longest_us:
        atomic_store_u64_relaxed(&stats.turn_longest_us, us)
    if unlikely(us >= 10000):
        counter_add(&stats.turns_over_10ms, 1)
        if us >= 100000:
            counter_add(&stats.turns_over_100ms, 1)
        if us >= 1000000:
            counter_add(&stats.turns_over_1s, 1)


cdef int reactor_timeout(Reactor *reactor, int max_wait_ms) noexcept nogil:
    """Milliseconds to wait at most; -1: until something happens."""
    cdef int64_t wait_ms
    cdef bint hurry = private_of(reactor).hurry
    private_of(reactor).hurry = False
    if hurry or reactor.dirty != NULL or reactor.closing != NULL or reactor.resuming != NULL:
        return 0
    if reactor.held:
        return max_wait_ms              # time does not come by itself, and who moves it wakes us
    wait_ms = wheel_next_ms(reactor.wheel, reactor.now_ms)
    if wait_ms < 0:
        return max_wait_ms
    wait_ms -= reactor.now_ms
    if wait_ms < 0:
        wait_ms = 0
    if wait_ms > LONGEST_WAIT_MS:
        wait_ms = LONGEST_WAIT_MS
    return max_wait_ms if 0 <= max_wait_ms < wait_ms else <int> wait_ms


cdef void reactor_mail(Reactor *reactor) noexcept nogil:
    cdef Mail *chain
    private_of(reactor).woken = False
    inbox_drain_wake(&reactor.inbox)    # before taking: mail posted in between wakes again
    chain = inbox_take(&reactor.inbox)
    if chain != NULL:
        counter_add(&reactor.stats.mails, 1)
        reactor.hooks.on_mail(reactor.context, chain)


cdef void reactor_timer(Reactor *reactor, TimerNode *node) noexcept nogil:
    """A timer of our own: of a listener that rests, or of a link that lingers."""
    cdef Listener *listener = private_of(reactor).listeners
    while listener != NULL and &listener.timer != node:
        listener = listener.next
    if listener == NULL:
        link_release(reactor, <Link *> node)
    elif not listener_arm(reactor, listener):
        wheel_add(reactor.wheel, &listener.timer, reactor.now_ms + ACCEPT_REST_MS)


cdef void reactor_resume_links(Reactor *reactor) noexcept nogil:
    cdef Private *private = private_of(reactor)
    cdef Link *link = reactor.resuming
    cdef Link *following
    reactor.resuming = NULL
    while link != NULL:
        following = link.close_next
        link.flags &= ~<uint16_t> LINK_RESUMING
        if link.state == LINK_FREE:
            link.close_next = private.freed
            private.freed = link
        elif link.state == LINK_CLOSING:
            link.close_next = reactor.closing
            reactor.closing = link
        elif not link.flags & LINK_PAUSED:
            link_continue(reactor, link)
        link = following


cdef void link_continue(Reactor *reactor, Link *link) noexcept nogil:
    """A resumed link: what was held, then a read, since bytes that a transport has already decrypted raise no event."""
    cdef int status = ST_OK
    if link.flags & LINK_UNPOLLED:
        link.flags &= ~<uint16_t> (LINK_UNPOLLED | LINK_READ_OFF)
        status = link_poll(reactor, link)
        if status == ST_OK and link.flags & (LINK_WANTS_OUT | LINK_READ_WANTS_OUT):
            status = link_arm(reactor, link)
    elif link.flags & LINK_READ_OFF:
        link.flags &= ~<uint16_t> LINK_READ_OFF
        status = link_arm(reactor, link)
    if status != ST_OK:
        link_close(reactor, link, END_NO_MEMORY)
    elif link_deliver_held(reactor, link):
        link_read(reactor, link, reactor.turn_bytes, False)


cdef void reactor_end_links(Reactor *reactor) noexcept nogil:
    """Also those that on_end of others closes."""
    cdef Link *link
    cdef Link *following
    while reactor.closing != NULL:
        link = reactor.closing
        reactor.closing = NULL
        while link != NULL:
            following = link.close_next
            link_end(reactor, link)
            link = following


cdef void reactor_flush_links(Reactor *reactor) noexcept nogil:
    """Every link that has new output, once; those whose last write had to wait go on by an event, or by a read."""
    cdef Link *link = reactor.dirty
    cdef Link *following
    reactor.dirty = NULL
    while link != NULL:
        following = link.dirty_next
        link.flags &= ~<uint16_t> LINK_DIRTY
        if link.state == LINK_LINGERING:
            outq_clear(&reactor.chunks, &link.out)
        elif link.state != LINK_FREE and not link.flags & (LINK_WANTS_OUT | LINK_WRITE_WANTS_IN):
            link_flush(reactor, link)
        link = following


cdef void reactor_free_links(Reactor *reactor) noexcept nogil:
    cdef Private *private = private_of(reactor)
    cdef Link *link = private.freed
    cdef Link *following
    private.freed = NULL
    while link != NULL:
        following = link.close_next
        if link.flags & LINK_DIRTY:     # still in the flush list, of the next turn
            link.close_next = private.freed
            private.freed = link
        else:
            link.close_next = private.free_links
            private.free_links = link
        link = following


cdef void reactor_timers(Reactor *reactor, int64_t before_ms) noexcept nogil:
    """All that are due. A held clock jumps; its timers see the time for which they were set, so that what they set in turn is not late."""
    cdef int64_t now_ms = reactor.now_ms
    cdef int64_t wall_ms = reactor.wall_ms
    cdef TimerNode *node
    while True:
        node = wheel_expire_exact(reactor.wheel, now_ms) if reactor.held else wheel_expire(reactor.wheel, now_ms)
        if node == NULL:
            break
        if reactor.held:
            before_ms = max(before_ms, node.deadline_ms)
            reactor.now_ms = min(before_ms, now_ms)
            reactor.wall_ms = wall_ms - (now_ms - reactor.now_ms)
        if node.kind == TIMER_NET:
            reactor_timer(reactor, node)
        else:
            reactor.hooks.on_timer(reactor.context, node)
        reactor.now_ms = now_ms
        reactor.wall_ms = wall_ms


cdef void reactor_turn(Reactor *reactor, int max_wait_ms) noexcept nogil:
    cdef Private *private = private_of(reactor)
    cdef int64_t before_ms = reactor.now_ms
    cdef int i, n
    n = poller_wait(&reactor.poller, private.events, EVENTS, reactor_timeout(reactor, max_wait_ms))
    reactor_clock(reactor)
    counter_add(&reactor.stats.turns, 1)
    for i in range(n):
        reactor_event(reactor, &private.events[i])
    if private.woken:
        reactor_mail(reactor)
    reactor_timers(reactor, before_ms)
    reactor_resume_links(reactor)
    reactor_end_links(reactor)
    reactor.hooks.on_turn_end(reactor.context)
    private.turn_ended = True
    reactor_flush_links(reactor)
    private.turn_ended = False
    reactor_free_links(reactor)
    reactor_measure(reactor)
    if MQTTC_NET_DEBUG and private.read_used:
        memset(reactor.read_buffer, 0xDD, private.read_used)    # spans die with the turn
        private.read_used = 0


cdef void reactor_run(Reactor *reactor) noexcept nogil:
    while not reactor.stopping:
        reactor_turn(reactor, -1)


# ---------------------------------------------------------------------------------------------- build and free

cdef Reactor *reactor_build(const LinkHooks *hooks, void *context, MsgPool *msg_pool, const Clock *clock, uint32_t link_bytes, uint32_t turn_bytes) noexcept nogil:
    cdef Reactor *reactor = <Reactor *> mem_alloc_zeroed(1, sizeof(Reactor))
    cdef Private *private
    if reactor == NULL:
        return NULL
    reactor.poller.fd = -1
    reactor.hooks = hooks
    reactor.context = context
    reactor.msg_pool = msg_pool
    reactor.clock = clock
    reactor.link_bytes = (link_bytes + 15) & ~<uint32_t> 15
    reactor.turn_bytes = turn_bytes
    reactor.read_buffer_bytes = READ_BUFFER_BYTES
    chunk_pool_init(&reactor.chunks)
    reactor_clock(reactor)
    private = <Private *> mem_alloc_zeroed(1, sizeof(Private))
    reactor.private = private
    reactor.read_buffer = <uint8_t *> mem_alloc(READ_BUFFER_BYTES)
    reactor.gather.bytes = <uint8_t *> mem_alloc(GATHER_BYTES)
    reactor.gather.capacity = GATHER_BYTES
    reactor.wheel = wheel_build(reactor.now_ms)
    if private == NULL or reactor.read_buffer == NULL or reactor.gather.bytes == NULL or reactor.wheel == NULL:
        reactor_free(reactor)
        return NULL
    if inbox_init(&reactor.inbox) == ST_OK:
        private.inbox_made = True
        if poller_open(&reactor.poller) == ST_OK:
            if poller_add(&reactor.poller, reactor.inbox.wake_read_fd, READY_IN, token_make(TOKEN_WAKE, 0, 0)) == ST_OK:
                return reactor
    reactor_free(reactor)
    return NULL


cdef void private_free(Reactor *reactor) noexcept nogil:
    """The link slab with what its links own, listeners, buffers, inbox."""
    cdef Private *private = private_of(reactor)
    cdef Link *link
    cdef void *buffer
    cdef uint32_t i
    for i in range(private.page_count * LINKS_PER_PAGE):
        link = slab_at(reactor, i)
        if link.state != LINK_FREE:
            link.transport.ops.close(&link.transport)
            link_drop_input(reactor, link)
            outq_clear(&reactor.chunks, &link.out)
    for i in range(private.page_count):
        mem_free(private.pages[i])
    mem_free(private.pages)
    for i in range(PARTIAL_CLASSES):
        while private.partials[i] != NULL:
            buffer = private.partials[i]
            private.partials[i] = (<void **> buffer)[0]
            mem_free(buffer)
    if reactor.wheel != NULL:
        reactor_unlisten(reactor)
    if private.inbox_made:
        inbox_free(&reactor.inbox)
    mem_free(private)


cdef void reactor_free(Reactor *reactor) noexcept nogil:
    if reactor.private != NULL:
        private_free(reactor)
    poller_close(&reactor.poller)
    chunk_pool_free(&reactor.chunks)
    if reactor.wheel != NULL:
        wheel_free(reactor.wheel)
    mem_free(reactor.read_buffer)
    mem_free(reactor.gather.bytes)
    mem_free(reactor)
