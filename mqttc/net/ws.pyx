"""Read it from `ws_read` and `ws_write` on.

Output. A frame header promises bytes that only later calls bring: `frame_left` counts them, and nothing else may leave before they have. What stands
between frames (the handshake, a pong, a close frame) waits in `unsent`.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memmove

from mqttc.base.alloc cimport mem_alloc, mem_alloc_zeroed, mem_free
from mqttc.base.map cimport random_bytes
from mqttc.base.types cimport ST_NEED_MORE, ST_NO_MEMORY, ST_OK, Span, atomic_add_u64_relaxed, atomic_load_u64_relaxed, span_make
from mqttc.net.transport cimport (
    IO_AGAIN, IO_END, IO_FAILED, IO_REFUSED, WANTS_IN, WANTS_OUT, WANTS_READ, Transport, TransportOps, iovec, transport_failure, transport_proof,
)
from mqttc.proto.wsframe cimport (
    WS_ANSWER_GOOD, WS_ANSWER_REFUSAL, WS_BINARY, WS_CLOSE, WS_HEADER_MOST, WS_NORMAL, WS_NOT_TEXT, WS_PING, WS_PONG, WS_TOO_BIG, WS_UNSUPPORTED,
    WsHeader, ws_answer_check, ws_close_check, ws_header_check, ws_header_next, ws_header_put, ws_mask,
)

cdef enum:
    PARTS = 64                     # of one write call, see outq; one more for the header
    MASKED_BYTES = 16384           # payload of a client's frame: shared chunks are masked in a copy
    ANSWER_MOST = 8192             # bytes of the server's answer to a client's handshake
    RAW_MOST = 1 << 20             # bytes that one read looks at: frames without payload, which come fast enough, would keep it for ever
    CONTROL = 0x08
    WS_GOING_AWAY = 1001           # status of a close frame: the endpoint goes down (RFC 6455, section 7.4.1)

cdef struct Control:               # a control frame under way, or a ping that is to be answered
    uint32_t bytes
    uint8_t payload[125]

cdef struct WsLink:                # transport.state; its worker's alone
    Transport inner
    uint64_t max_frame_bytes
    uint64_t payload_left          # of the frame that is being read
    uint64_t frame_left            # payload that the last frame header promised and that has not been sent
    uint8_t *held                  # owned: raw input that was read before; NULL: none
    uint8_t *unsent                # owned: raw output between frames; NULL: none
    Control *control               # owned: of the control frame that is being read; NULL: none
    Control *ping                  # owned: to be answered; NULL: none
    uint8_t *accept                # owned: a client whose handshake is not answered yet; NULL: frames
    const char *why                # what failed; NULL: nothing
    int64_t over                   # IoResult that the transport below has ended with; IO_AGAIN: it goes on
    uint32_t held_at
    uint32_t held_bytes
    uint32_t unsent_at
    uint32_t unsent_bytes
    uint32_t accept_bytes
    uint32_t phase                 # payload bytes of this frame before those to come, modulo 4
    uint32_t header_bytes          # of `header`, so far
    uint32_t out_header_at
    uint32_t out_header_bytes
    uint32_t phase_out             # payload bytes of the frame that is being sent, modulo 4
    uint32_t noise                 # a client's masks
    uint32_t close_status          # of a close frame that is still to come: it waits for the end of a frame under way, or of the link; 0: none
    uint8_t header[14]
    uint8_t out_header[14]
    uint8_t mask[4]
    uint8_t out_mask[4]
    uint8_t opcode                 # of the frame that is being read
    uint8_t client
    uint8_t fragmented             # a message is under way: its last frame has not begun
    uint8_t fin
    uint8_t close_sent
    uint8_t ended                  # the peer has said close
    uint8_t broken                 # no frame is read any more
    uint8_t refused                # the reactor knows

cdef uint64_t live                 # atomic
cdef TransportOps ws_operations = TransportOps(ws_read, ws_write, ws_finish, ws_close, ws_proof, ws_failure)       # constant from import on


cdef uint64_t ws_live() noexcept nogil:
    return atomic_load_u64_relaxed(&live)


# ---------------------------------------------------------------------------------------------- making and freeing

cdef void link_free(WsLink *link) noexcept nogil:
    mem_free(link.held)
    mem_free(link.unsent)
    mem_free(link.control)
    mem_free(link.ping)
    mem_free(link.accept)
    mem_free(link)
    atomic_add_u64_relaxed(&live, <uint64_t> -1)


cdef uint8_t *copy_of(Span span) noexcept nogil:
    cdef uint8_t *copy = <uint8_t *> mem_alloc(span.n)
    if copy != NULL:
        memcpy(copy, span.p, span.n)
    return copy


cdef WsLink *link_build(Transport *transport, Span unsent, Span held, uint64_t max_frame_bytes) noexcept nogil:
    """NULL: no memory."""
    cdef WsLink *link = <WsLink *> mem_alloc_zeroed(1, sizeof(WsLink))
    if link == NULL:
        return NULL
    atomic_add_u64_relaxed(&live, 1)
    link.inner = transport[0]
    link.max_frame_bytes = max_frame_bytes
    link.over = IO_AGAIN
    if unsent.n:
        link.unsent = copy_of(unsent)
        link.unsent_bytes = unsent.n
    if held.n:
        link.held = copy_of(held)
        link.held_bytes = held.n
    if (unsent.n and link.unsent == NULL) or (held.n and link.held == NULL):
        link_free(link)
        return NULL
    return link


cdef void link_install(WsLink *link, Transport *transport) noexcept nogil:
    transport.ops = &ws_operations
    transport.state = link
    transport.wants = 0


cdef int ws_accept(Transport *transport, Span response, Span rest, uint64_t max_frame_bytes) noexcept nogil:
    cdef WsLink *link = link_build(transport, response, rest, max_frame_bytes)
    if link == NULL:
        return ST_NO_MEMORY
    link_install(link, transport)
    return ST_OK


cdef int ws_dial(Transport *transport, Span request, Span accept, uint64_t max_frame_bytes) noexcept nogil:
    cdef WsLink *link = link_build(transport, request, span_make(NULL, 0), max_frame_bytes)
    if link == NULL:
        return ST_NO_MEMORY
    link.client = True
    link.accept = copy_of(accept)
    link.accept_bytes = accept.n
    if link.accept == NULL or random_bytes(&link.noise, sizeof(link.noise)) != ST_OK:
        link_free(link)
        return ST_NO_MEMORY
    link_install(link, transport)
    return ST_OK


# ---------------------------------------------------------------------------------------------- between frames

cdef int64_t unsent_flush(WsLink *link) noexcept nogil:
    """1: nothing waits any more; else IoResult."""
    cdef iovec part
    cdef int64_t taken
    while link.unsent != NULL:
        part.iov_base = link.unsent + link.unsent_at
        part.iov_len = link.unsent_bytes - link.unsent_at
        taken = link.inner.ops.write(&link.inner, &part, 1)
        if taken < 0:
            return taken
        link.unsent_at += <uint32_t> taken
        if link.unsent_at == link.unsent_bytes:
            mem_free(link.unsent)
            link.unsent = NULL
            link.unsent_at = 0
            link.unsent_bytes = 0
    return 1


cdef inline bint between_frames(const WsLink *link) noexcept nogil:
    return link.frame_left == 0 and link.accept == NULL


cdef bint control_put(WsLink *link, uint8_t opcode, const uint8_t *payload, uint32_t n) noexcept nogil:
    """A control frame behind what is unsent. False: no memory."""
    cdef uint32_t before = link.unsent_bytes - link.unsent_at
    cdef uint8_t mask[4]
    cdef uint8_t *room = <uint8_t *> mem_alloc(before + WS_HEADER_MOST + n)
    cdef uint32_t header_bytes
    if room == NULL:
        return False
    if before:
        memcpy(room, link.unsent + link.unsent_at, before)
    mask_next(link, mask)
    header_bytes = ws_header_put(room + before, opcode, n, mask if link.client else NULL)
    if link.client:
        ws_mask(room + before + header_bytes, payload, n, mask, 0)
    elif n:
        memcpy(room + before + header_bytes, payload, n)
    mem_free(link.unsent)
    link.unsent = room
    link.unsent_at = 0
    link.unsent_bytes = before + header_bytes + n
    return True


cdef int64_t pong_flush(WsLink *link) noexcept nogil:
    """Answers the latest ping, if no frame is under way, and sends what stands between frames. As unsent_flush."""
    cdef int64_t status
    if not between_frames(link):
        return 1
    # First the last answer has to leave: pings that come faster than the peer reads are answered by one.
    status = unsent_flush(link)
    if status != 1 or link.ping == NULL or link.close_sent or not control_put(link, WS_PONG, link.ping.payload, link.ping.bytes):
        return status
    mem_free(link.ping)
    link.ping = NULL
    return unsent_flush(link)


cdef void close_send(WsLink *link, uint32_t status) noexcept nogil:
    """The close frame, as far as the socket lets it through. A frame under way comes first: then `ws_finish` sends it."""
    cdef uint8_t payload[2]
    if link.close_sent:
        return
    if not between_frames(link):
        link.close_status = status
        return
    payload[0] = <uint8_t> (status >> 8)
    payload[1] = <uint8_t> status
    link.close_sent = True
    if control_put(link, WS_CLOSE, payload, 2):
        unsent_flush(link)


cdef const char *reason_text(int status) noexcept nogil:
    if status == -WS_UNSUPPORTED:
        return "WebSocket: a text frame"
    if status == -WS_TOO_BIG:
        return "WebSocket: a frame is too large"
    if status == -WS_NOT_TEXT:
        return "WebSocket: the reason in a close frame is not UTF-8"
    return "WebSocket: protocol error"


cdef void link_break(WsLink *link, int status) noexcept nogil:
    """The peer has broken the rules: `status` is the negated code that tells it so."""
    link.broken = True
    link.why = reason_text(status)
    close_send(link, <uint32_t> -status)


cdef int64_t link_refuse(WsLink *link) noexcept nogil:
    link.refused = True
    return IO_REFUSED


# ---------------------------------------------------------------------------------------------- input

cdef void frame_end(WsLink *link) noexcept nogil:
    cdef int status
    if not link.opcode & CONTROL:
        link.fragmented = not link.fin
        return
    if link.opcode == WS_PING:
        mem_free(link.ping)
        link.ping = link.control
        link.control = NULL
    elif link.opcode == WS_CLOSE:
        status = ws_close_check(link.control.payload, link.control.bytes)
        if status < 0:
            link_break(link, status)
        else:
            link.ended = True
            close_send(link, <uint32_t> status)
    mem_free(link.control)
    link.control = NULL


cdef void frame_begin(WsLink *link, const WsHeader *header) noexcept nogil:
    cdef int status = ws_header_check(header, not link.client, link.fragmented, link.max_frame_bytes)
    if status != ST_OK:
        link_break(link, status)
        return
    link.opcode = header.opcode
    link.fin = header.fin
    link.payload_left = header.payload_bytes
    link.phase = 0
    memcpy(link.mask, header.mask, 4)
    if header.opcode & CONTROL:
        link.control = <Control *> mem_alloc(sizeof(Control))
        if link.control == NULL:
            link.broken = True
            link.why = "WebSocket: no memory"
            link.over = IO_FAILED               # not the peer's fault
            return
        link.control.bytes = 0
    if link.payload_left == 0:
        frame_end(link)


cdef uint32_t header_take(WsLink *link, const uint8_t *p, const uint8_t *end) noexcept nogil:
    """Bytes of a frame header, whole or in part; a whole one begins its frame."""
    cdef WsHeader header
    cdef uint32_t before = link.header_bytes
    cdef uint32_t n
    cdef int status
    if before == 0:
        status = ws_header_next(p, end, &header)
        n = <uint32_t> (end - p)
    else:
        n = WS_HEADER_MOST - before
        if <uint32_t> (end - p) < n:
            n = <uint32_t> (end - p)
        memcpy(link.header + before, p, n)
        status = ws_header_next(link.header, link.header + before + n, &header)
    if status == ST_NEED_MORE:
        if before == 0:
            memcpy(link.header, p, n)
        link.header_bytes = before + n
        return n
    link.header_bytes = 0
    if status != ST_OK:
        link_break(link, status)
        return n
    frame_begin(link, &header)
    return header.header_bytes - before


cdef uint32_t frames_take(WsLink *link, uint8_t *bytes, uint32_t n) noexcept nogil:
    """Reads frames; their payload is moved together at the front of `bytes`. Returns its size. Stops where the link has ended or broken."""
    cdef uint8_t *to = bytes
    cdef uint8_t *p = bytes
    cdef uint8_t *end = bytes + n
    cdef uint32_t part
    while p < end and not link.ended and not link.broken:
        if link.payload_left == 0:
            p += header_take(link, p, end)
            continue
        part = <uint32_t> (end - p) if link.payload_left > <uint64_t> (end - p) else <uint32_t> link.payload_left
        if link.opcode & CONTROL:
            if link.client:
                memcpy(link.control.payload + link.control.bytes, p, part)
            else:
                ws_mask(link.control.payload + link.control.bytes, p, part, link.mask, link.phase)
            link.control.bytes += part
        else:
            if link.client:
                memmove(to, p, part)
            else:
                ws_mask(to, p, part, link.mask, link.phase)
            to += part
        link.phase = (link.phase + part) & 3
        link.payload_left -= part
        p += part
        if link.payload_left == 0:
            frame_end(link)
    return <uint32_t> (to - bytes)


cdef int64_t raw_read(WsLink *link, uint8_t *out, uint32_t n) noexcept nogil:
    """What was read before, then the transport's."""
    cdef uint32_t part
    if link.held == NULL:
        return link.inner.ops.read(&link.inner, out, n)
    part = link.held_bytes - link.held_at
    if part > n:
        part = n
    memcpy(out, link.held + link.held_at, part)
    link.held_at += part
    if link.held_at == link.held_bytes:
        mem_free(link.held)
        link.held = NULL
    return part


cdef int64_t ws_read(Transport *transport, uint8_t *out, uint32_t n) noexcept nogil:
    cdef WsLink *link = <WsLink *> transport.state
    cdef uint32_t total = 0
    cdef uint64_t raw = 0
    cdef int64_t got
    cdef int64_t status
    cdef bint more = True                       # the transport below may have more although no event tells
    transport.wants = 0
    link.inner.wants = 0
    if link.accept != NULL:
        status = answer_read(transport, link, out, n)
        if status != 1:
            return status
    if link.refused:                            # the peer was told why: what it still sends is read away while the link lingers
        got = link.inner.ops.read(&link.inner, out, n)
        transport.wants |= link.inner.wants & (WANTS_OUT | WANTS_READ)
        return got
    while more and link.over == IO_AGAIN and n - total > n >> 2 and not link.ended and not link.broken:
        more = link.held != NULL
        got = raw_read(link, out + total, n - total)
        if got <= 0:
            link.over = got
            break
        raw += <uint64_t> got
        more = link.held != NULL or (raw < RAW_MOST and (more or got == n - total or link.inner.wants & WANTS_READ != 0))
        total += frames_take(link, out + total, <uint32_t> got)
    if not link.broken and pong_flush(link) == IO_AGAIN:
        transport.wants |= WANTS_OUT
    transport.wants |= link.inner.wants & (WANTS_OUT | WANTS_READ)
    status = IO_END if link.ended else link.over
    if total == 0 and link.broken and status != IO_FAILED:
        return link_refuse(link)
    if total == 0:
        return status
    if status != IO_AGAIN or link.broken or link.held != NULL or transport.wants & WANTS_OUT:
        transport.wants |= WANTS_READ           # it comes again
    return total


# ---------------------------------------------------------------------------------------------- a client's handshake

cdef int64_t answer_fail(WsLink *link, const char *why) noexcept nogil:
    link.broken = True
    link.why = why
    return IO_FAILED


cdef int64_t answer_check(WsLink *link) noexcept nogil:
    """Of the head that ends at `held_at`. 1, or IO_FAILED."""
    cdef int status = ws_answer_check(link.held, link.held + link.held_at - 4, span_make(link.accept, link.accept_bytes))
    if status == WS_ANSWER_GOOD:
        return 1
    return answer_fail(
        link, "WebSocket: the server has not agreed to it" if status == WS_ANSWER_REFUSAL else "WebSocket: the server's handshake is wrong"
    )


cdef int64_t answer_read(Transport *transport, WsLink *link, uint8_t *out, uint32_t n) noexcept nogil:
    """The server's answer to our request. 1: frames follow; else IoResult."""
    cdef uint8_t *grown
    cdef int64_t got, flushed
    cdef uint32_t i
    cdef uint32_t before = link.held_bytes
    if link.broken:
        return IO_FAILED
    got = link.inner.ops.read(&link.inner, out, n if n < ANSWER_MOST - before else ANSWER_MOST - before)
    transport.wants |= link.inner.wants & (WANTS_OUT | WANTS_READ)
    flushed = unsent_flush(link)                # a TLS handshake may have ended just now: the request can go
    if flushed == IO_FAILED:
        return IO_FAILED
    if flushed == IO_AGAIN and not link.inner.wants & WANTS_IN:
        transport.wants |= WANTS_OUT
    if got <= 0:
        return got
    grown = <uint8_t *> mem_alloc(link.held_bytes + <uint32_t> got)
    if grown == NULL:
        return answer_fail(link, "WebSocket: no memory")
    if link.held_bytes:
        memcpy(grown, link.held, link.held_bytes)
    memcpy(grown + link.held_bytes, out, <size_t> got)
    mem_free(link.held)
    link.held = grown
    link.held_bytes += <uint32_t> got
    for i in range(before + 1 if before > 3 else 4, link.held_bytes + 1):
        if memcmp(link.held + i - 4, b"\r\n\r\n", 4) == 0:
            link.held_at = i
            if answer_check(link) != 1:
                return IO_FAILED
            if link.held_at == link.held_bytes:
                mem_free(link.held)
                link.held = NULL
                link.held_bytes = 0
                link.held_at = 0
            mem_free(link.accept)
            link.accept = NULL
            return 1
    if link.held_bytes == ANSWER_MOST:
        return answer_fail(link, "WebSocket: the server's answer is too long")
    return IO_AGAIN


# ---------------------------------------------------------------------------------------------- output

cdef void mask_next(WsLink *link, uint8_t *mask) noexcept nogil:
    link.noise ^= link.noise << 13              # xorshift: our clients are load generators, not browsers that must be kept from cheating proxies
    link.noise ^= link.noise >> 17
    link.noise ^= link.noise << 5
    memcpy(mask, &link.noise, 4)


cdef uint32_t parts_slice(const iovec *parts, int count, uint64_t skip, uint64_t want, iovec *out) noexcept nogil:
    """Lists `want` bytes of the parts, behind the first `skip`; the number of iovecs."""
    cdef uint32_t made = 0
    cdef uint64_t n
    cdef int i
    for i in range(count):
        if want == 0:
            break
        n = parts[i].iov_len
        if skip >= n:
            skip -= n
            continue
        out[made].iov_base = <uint8_t *> parts[i].iov_base + skip
        out[made].iov_len = n - skip if n - skip < want else want
        want -= out[made].iov_len
        made += 1
        skip = 0
    return made


cdef uint32_t parts_mask(WsLink *link, iovec *parts, uint32_t count, uint64_t offset, uint8_t *room) noexcept nogil:
    """A masked copy of the parts, all of one frame, of which `offset` bytes have been sent; they become one part."""
    cdef uint32_t n = 0
    cdef uint32_t i
    for i in range(count):
        ws_mask(room + n, <const uint8_t *> parts[i].iov_base, parts[i].iov_len, link.out_mask, <uint32_t> ((offset + n) & 3))
        n += <uint32_t> parts[i].iov_len
    parts[0].iov_base = room
    parts[0].iov_len = n
    return 1


cdef void frame_open(WsLink *link, uint64_t n) noexcept nogil:
    if link.client:
        if n > MASKED_BYTES:
            n = MASKED_BYTES
        mask_next(link, link.out_mask)
        link.phase_out = 0
    link.frame_left = n
    link.out_header_at = 0
    link.out_header_bytes = ws_header_put(link.out_header, WS_BINARY, n, link.out_mask if link.client else NULL)


cdef int64_t ws_write(Transport *transport, const iovec *parts, int count) noexcept nogil:
    cdef WsLink *link = <WsLink *> transport.state
    cdef iovec[PARTS + 1] list
    cdef uint8_t[MASKED_BYTES] room
    cdef uint64_t available = 0
    cdef uint64_t total = 0
    cdef uint64_t offered, header_left
    cdef int64_t taken
    cdef uint32_t used, made
    cdef int i
    transport.wants &= ~<uint32_t> WANTS_IN
    if link.broken or link.close_sent:
        return IO_FAILED
    if link.accept != NULL:
        taken = unsent_flush(link)
        if taken == IO_FAILED:
            return IO_FAILED
        transport.wants |= link.inner.wants & WANTS_IN if taken == IO_AGAIN else <uint32_t> WANTS_IN
        return IO_AGAIN
    for i in range(count):
        available += parts[i].iov_len
    while total < available:
        if link.frame_left == 0:
            taken = pong_flush(link)
            if taken != 1:
                return <int64_t> total if total and taken == IO_AGAIN else taken
            frame_open(link, available - total)
        used = 0
        header_left = link.out_header_bytes - link.out_header_at
        if header_left:
            list[0].iov_base = link.out_header + link.out_header_at
            list[0].iov_len = header_left
            used = 1
        offered = available - total if available - total < link.frame_left else link.frame_left
        made = parts_slice(parts, count, total, offered, list + used)
        if link.client:
            made = parts_mask(link, list + used, made, link.phase_out, room)
        taken = link.inner.ops.write(&link.inner, list, <int> (used + made))
        if taken < 0:
            return <int64_t> total if total and taken == IO_AGAIN else taken
        if <uint64_t> taken < header_left:
            link.out_header_at += <uint32_t> taken
            return <int64_t> total if total else IO_AGAIN
        link.out_header_at = link.out_header_bytes
        taken -= <int64_t> header_left
        link.frame_left -= <uint64_t> taken
        link.phase_out = (link.phase_out + <uint32_t> taken) & 3
        total += <uint64_t> taken
        if <uint64_t> taken < offered:
            return <int64_t> total if total else IO_AGAIN
    if pong_flush(link) == IO_AGAIN:
        transport.wants |= WANTS_OUT            # the reactor comes back by a read
    return <int64_t> total


cdef void ws_going_away(Transport *transport) noexcept nogil:
    cdef WsLink *link = <WsLink *> transport.state
    if transport.ops == &ws_operations and link != NULL and link.close_status == 0:
        link.close_status = WS_GOING_AWAY


cdef void ws_finish(Transport *transport) noexcept nogil:
    cdef WsLink *link = <WsLink *> transport.state
    if not link.broken:
        close_send(link, link.close_status if link.close_status else <uint32_t> WS_NORMAL)
    unsent_flush(link)                          # a close frame that did not fit before; the last occasion
    link.inner.ops.finish(&link.inner)


cdef void ws_close(Transport *transport) noexcept nogil:
    cdef WsLink *link = <WsLink *> transport.state
    transport.fd = -1
    if link != NULL:
        link.inner.ops.close(&link.inner)
        link_free(link)
        transport.state = NULL


cdef uint32_t ws_proof(Transport *transport, int kind, uint8_t *out, uint32_t n) noexcept nogil:
    return transport_proof(&(<WsLink *> transport.state).inner, kind, out, n)


cdef const char *ws_failure(Transport *transport) noexcept nogil:
    cdef WsLink *link = <WsLink *> transport.state
    cdef const char *why
    if link == NULL:
        return NULL
    why = link.why if link.why != NULL else transport_failure(&link.inner)
    if why == NULL and link.accept != NULL:
        return "the WebSocket handshake was not finished"
    return why
