"""Reactor: one thread's event loop over links, listeners, timers and mail. It knows no MQTT: an upper floor fills in LinkHooks and embeds Link as the
first member of its own connection struct.

A turn: poll, read the clock once, then ready links (accept, read -> on_data), mail -> on_mail, timers -> on_timer, resumed links -> on_data, closing
links -> on_end, on_turn_end, flush of every dirty link, freeing of the closed. Nothing in a turn waits.

Everything belongs to the reactor's thread, but for the functions marked [any thread].
"""

from libc.stdint cimport int16_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from mqttc.base.inbox cimport Inbox, Mail
from mqttc.base.msg cimport Msg, MsgPool
from mqttc.base.timer cimport TimerNode, TimerWheel
from mqttc.base.types cimport Span
from mqttc.net.outq cimport ChunkPool, GatherBuffer, OutQ
from mqttc.net.poller cimport Poller
from mqttc.net.tcp cimport PeerAddress
from mqttc.net.transport cimport Transport

cdef enum LinkState:
    LINK_FREE = 0
    LINK_OPEN = 1
    LINK_CLOSING = 2           # on_end is due or done; what is queued still leaves, then the stream ends
    LINK_LINGERING = 3         # write side ended; reads and discards until the peer ends or the time is up, so that the peer can read our last words

cdef enum LinkFlag:
    LINK_PAUSED = 1            # no on_data until link_resume; no reading either; a reset still closes at once
    LINK_WANTS_OUT = 2         # a short write happened: READY_OUT is armed
    LINK_DIRTY = 4             # in the flush list
    LINK_RESUMING = 8          # in the resume list
    LINK_ENDED = 16            # on_end was called
    LINK_READ_OFF = 32         # READY_IN is not armed
    LINK_NOTIFY = 64           # set by the upper floor: call on_drained once when the output queue has become empty (short write or not)
    LINK_UNPOLLED = 128        # paused, the peer hung up, and input still waits: out of the poller until link_resume
    LINK_END_SEEN = 256        # the peer's stream has ended: only output is left
    LINK_NO_LINGER = 512       # set by the upper floor: the peer has said goodbye and reads no last words; closed as soon as nothing is left to send
    LINK_READ_WANTS_OUT = 1024 # the transport's read waits for READY_OUT, which is armed
    LINK_WRITE_WANTS_IN = 2048 # the transport's write waits for input: the next read puts the link in the flush list again
    LINK_METERED = 4096        # set by the upper floor: call on_flushed after each flush
    LINK_THROTTLED = 8192      # set by the upper floor, on a metered link: while it is open nothing is written, as if the peer did not read; see link_unthrottle

cdef enum TimerKind:
    TIMER_NET = 0              # the reactor's own; all other values go to on_timer

cdef struct Link:
    TimerNode timer            # the upper floor's while the link is open (kind > 0)
    uint32_t slot
    uint32_t generation
    Transport transport
    OutQ out
    Link *dirty_next
    Link *close_next           # closing or resume list
    uint8_t *partial           # input that ends inside a packet, or is held while paused; NULL: none
    Msg *block                 # a large packet under way, received straight into its block (partial_bytes of it are there)
    uint32_t partial_bytes
    uint32_t partial_capacity
    uint32_t want_bytes        # set by on_data: total size of the packet that the leftover begins with; 0: unknown
    uint16_t listener
    uint16_t flags             # LinkFlag
    int64_t last_read_ms       # monotonic, of the turn that last read bytes
    PeerAddress peer
    int16_t end_reason         # what link_close was given
    uint8_t state              # LinkState

cdef struct LinkHooks:
    # A new link was accepted; the timer is free to use, and the transport may be replaced (its ops and state). ST_OK, or < 0: close it at once (a limit; on_end is not called then).
    int (*on_open)(void *context, Link *link) noexcept nogil
    # Bytes at hand: what is left of before and what was just read, contiguous. Returns the bytes consumed (0..n); the rest is kept and comes again,
    # together with more. May set link.want_bytes, call link_pause, link_close, link_detach (then the return value is ignored). When link.block
    # is set, bytes are exactly that block's data and the packet is whole: the hook may keep the block by setting link.block = NULL.
    # A packet larger than read_buffer_bytes needs want_bytes; without it, or with a whole block neither consumed nor paused, the link ends.
    uint32_t (*on_data)(void *context, Link *link, const uint8_t *bytes, uint32_t n) noexcept nogil
    # Exactly once for each link that on_open accepted or link_adopt made and that was not detached. reason: what link_close was given.
    void (*on_end)(void *context, Link *link, int reason) noexcept nogil
    void (*on_drained)(void *context, Link *link) noexcept nogil               # everything was sent after a write that had to wait, or see LINK_NOTIFY
    void (*on_timer)(void *context, TimerNode *node) noexcept nogil
    void (*on_mail)(void *context, Mail *chain) noexcept nogil                 # takes the chain over
    void (*on_turn_end)(void *context) noexcept nogil                          # last chance to append output and to post mail
    void (*on_accept_error)(void *context, uint16_t listener, int error) noexcept nogil
    void (*on_flushed)(void *context, Link *link, uint64_t written) noexcept nogil     # of metered links: may set LINK_THROTTLED

cdef enum EndReason:           # reasons that the reactor itself gives to on_end; upper floors use values >= 16
    END_PEER_CLOSED = 1
    END_PEER_RESET = 2
    END_WRITE_FAILED = 3
    END_NO_MEMORY = 4
    END_SHUTDOWN = 5
    END_PEER_REFUSED = 6       # the transport refused what it sent

cdef enum:
    TURN_CLASSES = 124         # of a turn's length: four to a power of two, see turn_class_us
    TURN_WINDOW_MS = 10000     # the histogram is of the last one to two of these

cdef struct NetStats:          # written by the owner (counter_add), read by any thread
    uint64_t accepted
    uint64_t accept_errors
    uint64_t links_open        # gauge
    uint64_t bytes_in
    uint64_t bytes_out
    uint64_t reads
    uint64_t writes
    uint64_t short_writes
    uint64_t turns
    uint64_t mails             # chains taken from the inbox
    uint64_t turn_us           # microseconds of all turns, without their waiting
    uint64_t turn_last_us      # gauges: the last turn, and the longest one
    uint64_t turn_longest_us
    uint64_t turns_over_10ms   # turns that took as long
    uint64_t turns_over_100ms
    uint64_t turns_over_1s
    uint64_t turn_classes[2][124]      # turns by length, of this window and the one before

cdef struct Clock:             # the time seam: offsets that tests move, one for all reactors of an engine [any thread]
    int64_t mono_offset_ms
    int64_t wall_offset_ms
    int64_t held_mono_ms       # where a clock that is held stands, and moves only by clock_move
    int64_t held_wall_ms
    uint32_t held

cdef struct LinkParcel:        # a link on its way to another reactor
    Transport transport
    PeerAddress peer
    uint16_t listener
    int64_t last_read_ms
    uint8_t *leftover          # from mem_alloc; NULL: none. Owned by the parcel
    uint32_t leftover_bytes

cdef struct Reactor:
    int64_t now_ms             # monotonic, of this turn
    int64_t wall_ms            # Unix time, of this turn
    int64_t turn_ns            # when it began, by the system's monotonic clock
    int64_t turn_window_ms     # when this window of turn_classes began
    uint32_t turn_window       # its index
    int64_t turn_ms            # as now_ms, but also in on_timer of a held clock the time to which it has jumped; now_ms is the timer's deadline there
    void *context
    const LinkHooks *hooks
    MsgPool *msg_pool          # the upper floor's, for large packets
    TimerWheel *wheel
    Inbox inbox                # [any thread] posts
    ChunkPool chunks
    GatherBuffer gather
    Poller poller
    NetStats stats
    const Clock *clock
    uint8_t *read_buffer
    uint32_t read_buffer_bytes
    uint32_t turn_bytes        # read budget per link and turn
    uint32_t link_bytes        # size of the upper floor's struct
    Link *dirty
    Link *closing
    Link *resuming
    void *private              # link slab, listeners: see reactor.pyx
    bint stopping              # leave reactor_run after this turn
    bint held                  # this turn's clock is held

cdef Reactor *reactor_build(const LinkHooks *hooks, void *context, MsgPool *msg_pool, const Clock *clock, uint32_t link_bytes, uint32_t turn_bytes) noexcept nogil
cdef void reactor_free(Reactor *reactor) noexcept nogil                   # closes what is still open, without on_end
cdef void reactor_run(Reactor *reactor) noexcept nogil                    # until reactor.stopping
cdef void reactor_turn(Reactor *reactor, int max_wait_ms) noexcept nogil  # one turn (tests, load generator)
# A listening descriptor, non-blocking (several reactors may listen on the same one; the caller closes it after all have removed it).
cdef int reactor_listen(Reactor *reactor, int fd, uint16_t listener) noexcept nogil
cdef void reactor_unlisten(Reactor *reactor) noexcept nogil               # all listeners
cdef Link *reactor_link(Reactor *reactor, uint32_t slot, uint32_t generation) noexcept nogil    # NULL when that link is gone
cdef Link *reactor_next_link(Reactor *reactor, uint32_t *cursor) noexcept nogil                 # iterate open links; NULL at the end
cdef uint32_t reactor_ending(Reactor *reactor, uint32_t *unsent) noexcept nogil                  # links on their way out; unsent: those of them with output left
cdef void reactor_abandon(Reactor *reactor) noexcept nogil                # in a forked child: closes its copies of the descriptors, touches nothing else
cdef Link *link_open(Reactor *reactor, const Transport *transport, const PeerAddress *peer, uint16_t listener) noexcept nogil   # an own socket (load generator); connecting ones too
cdef void link_close(Reactor *reactor, Link *link, int reason) noexcept nogil        # what is queued still leaves; harmless when closing already
cdef void link_pause(Reactor *reactor, Link *link) noexcept nogil
cdef void link_resume(Reactor *reactor, Link *link) noexcept nogil                   # on_data with what was held, this turn or the next
cdef void link_unthrottle(Reactor *reactor, Link *link) noexcept nogil               # what waits is written at the end of this turn
cdef int64_t reactor_spent_ns(const Reactor *reactor) noexcept nogil                 # since this turn began; reads the clock
cdef uint64_t turn_class_us(uint32_t turn_class) noexcept nogil                      # the longest turn of that class of NetStats.turn_classes
# Takes the link out of this reactor, with its descriptor and `leftover` (NULL: with the input that the link holds itself). Unsent output is tried
# once and then dropped. ST_CLOSED: it is closing already, unchanged.
cdef int link_detach(Reactor *reactor, Link *link, const uint8_t *leftover, uint32_t leftover_bytes, LinkParcel *parcel) noexcept nogil  # the link is gone after this; ST_NO_MEMORY: unchanged
cdef Link *link_adopt(Reactor *reactor, LinkParcel *parcel) noexcept nogil           # paused, leftover at hand; link_resume starts it with a read. NULL: no memory, parcel unchanged

cdef void clock_hold(Clock *clock, int64_t wall_ms) noexcept nogil        # time stands still from now on, the wall clock at wall_ms; before any reactor runs
cdef void clock_move(Clock *clock, int64_t mono_ms, int64_t wall_ms) noexcept nogil              # forward by so much; reactors see it when they are woken
cdef void clock_release(Clock *clock) noexcept nogil                      # time goes on from where it stands
cdef int64_t clock_now_ms(const Clock *clock) noexcept nogil              # monotonic
cdef int64_t clock_wall_ms(const Clock *clock) noexcept nogil             # Unix time by it [any thread]
cdef void reactor_clock(Reactor *reactor) noexcept nogil                  # reads it, as each turn does; before reactor_run

cdef inline void link_dirty(Reactor *reactor, Link *link) noexcept nogil:
    """Puts the link in this turn's flush list; call after appending to link.out."""
    if not link.flags & LINK_DIRTY:
        link.flags |= LINK_DIRTY
        link.dirty_next = reactor.dirty
        reactor.dirty = link
