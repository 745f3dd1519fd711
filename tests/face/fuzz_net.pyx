"""Fuzz targets of mqttc.net: WebSocket and the PROXY header, whole and in pieces of any size. See fuzz_target.pxd for what a target is."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcmp, memcpy, memset

from mqttc.base.types cimport ST_OK, Span, span_make
from mqttc.net.proxy cimport ProxyRules, proxy_accept, proxy_live
from mqttc.net.tcp cimport PeerAddress, tcp_ops
from mqttc.net.transport cimport IO_AGAIN, IO_END, IO_FAILED, IO_REFUSED, WANTS_OUT, WANTS_READ, Transport, TransportOps, iovec
from mqttc.net.ws cimport ws_accept, ws_dial, ws_live
from mqttc.proto.wsframe cimport WS_BINARY, WS_CLOSE, WS_PONG, WsHeader, ws_header_next, ws_mask
from tests.face.fuzz_target cimport Targets

cdef extern from "<sys/types.h>" nogil:
    ctypedef long ssize_t

cdef extern from "<sys/socket.h>" nogil:
    int socketpair(int domain, int type, int protocol, int *fds)
    ssize_t send(int fd, const void *p, size_t n, int flags)
    int shutdown(int fd, int how)
    const int AF_UNIX
    const int SOCK_STREAM
    const int SHUT_WR

cdef extern from "<fcntl.h>" nogil:
    int fcntl(int fd, int command, int value)
    const int F_SETFL
    const int O_NONBLOCK

cdef extern from "mqttc/net/sockets.h" nogil:
    const int MQTTC_SEND_FLAGS

cdef extern from "<unistd.h>" nogil:
    int c_close "close"(int fd)

cdef enum:
    MOST = 8192                    # bytes of one input
    ROOM = 32768                   # bytes that a run may get or send
    FRAME_MOST = 4096              # payload of a frame that is let in

cdef const char *ANSWER = b"HTTP/1.1 101 x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: accept\r\n\r\n"
cdef enum:
    ANSWER_BYTES = 89


# ---------------------------------------------------------------------------------------------- a scripted transport

cdef struct Wire:
    const uint8_t *input           # borrowed
    size_t input_bytes
    size_t input_at
    uint8_t *output                # owned, ROOM bytes
    size_t output_bytes
    uint32_t noise                 # 0: everything at once
    int end                        # behind the input


cdef uint32_t noise_next(uint32_t *noise) noexcept nogil:
    noise[0] ^= noise[0] << 13
    noise[0] ^= noise[0] >> 17
    noise[0] ^= noise[0] << 5
    return noise[0]


cdef size_t piece(uint32_t *noise, size_t n) noexcept nogil:
    """How many of n bytes go in one call: all, or few."""
    cdef size_t some
    if noise[0] == 0:
        return n
    some = noise_next(noise) % 9
    return some if some < n else n


cdef int64_t wire_read(Transport *transport, uint8_t *out, uint32_t n) noexcept nogil:
    cdef Wire *wire = <Wire *> transport.state
    cdef size_t left = wire.input_bytes - wire.input_at
    transport.wants = 0
    if left == 0:
        return wire.end
    left = piece(&wire.noise, left if left < n else <size_t> n)
    if left == 0:
        return IO_AGAIN
    memcpy(out, wire.input + wire.input_at, left)
    wire.input_at += left
    return <int64_t> left


cdef int64_t wire_write(Transport *transport, const iovec *parts, int count) noexcept nogil:
    cdef Wire *wire = <Wire *> transport.state
    cdef size_t total = 0
    cdef size_t n
    cdef int i
    for i in range(count):
        n = piece(&wire.noise, parts[i].iov_len)
        if n > ROOM - wire.output_bytes:
            return IO_FAILED
        if n:
            memcpy(wire.output + wire.output_bytes, parts[i].iov_base, n)
        wire.output_bytes += n
        total += n
        if n < parts[i].iov_len:
            break
    return <int64_t> total if total else <int64_t> IO_AGAIN


cdef void wire_finish(Transport *transport) noexcept nogil:
    (<Wire *> transport.state).noise = 0


cdef void wire_close(Transport *transport) noexcept nogil:
    transport.fd = -1


cdef TransportOps wire_operations = TransportOps(wire_read, wire_write, wire_finish, wire_close, NULL, NULL)


# ---------------------------------------------------------------------------------------------- WebSocket

cdef struct Outcome:
    uint8_t *payload               # owned, ROOM bytes
    size_t payload_bytes
    int64_t end                    # IoResult
    uint32_t close_status          # of the close frame that was sent; 0: none
    size_t sent                    # payload bytes of our own frames


cdef const char *output_check(const Wire *wire, bint client, size_t skip, Outcome *outcome) noexcept nogil:
    """What was sent is frames: masked or not, nothing behind a close frame, the payload that was written."""
    cdef const uint8_t *p = wire.output + skip
    cdef const uint8_t *end = wire.output + wire.output_bytes
    cdef uint8_t[125] control
    cdef WsHeader header
    cdef size_t i, n
    outcome.close_status = 0
    outcome.sent = 0
    while p < end:
        if outcome.close_status:
            return "something was sent behind a close frame"
        if ws_header_next(p, end, &header) != ST_OK:
            return NULL                         # the last one, cut off where the peer took no more
        if header.masked != client or not header.fin:
            return "a frame was sent that this side may not send"
        p += header.header_bytes
        n = <size_t> (end - p) if header.payload_bytes > <size_t> (end - p) else <size_t> header.payload_bytes
        if header.opcode == WS_BINARY:
            for i in range(n):
                if p[i] ^ (header.mask[i & 3] if client else <uint8_t> 0) != <uint8_t> ((outcome.sent + i) * 7):
                    return "other bytes were sent than written"
            outcome.sent += n
        elif header.opcode == WS_CLOSE or header.opcode == WS_PONG:
            if header.payload_bytes > 125:
                return "a control frame that is too long was sent"
            if n == header.payload_bytes and header.opcode == WS_CLOSE:
                memset(control, 0, 125)
                if client:
                    ws_mask(control, p, n, header.mask, 0)
                else:
                    memcpy(control, p, n)
                outcome.close_status = <uint32_t> control[0] << 8 | control[1]
        else:
            return "a frame of a kind that nobody sends was sent"
        p += n
    return NULL


cdef const char *ws_play(Wire *wire, bint client, bint writes, Outcome *outcome) noexcept nogil:
    cdef Transport transport
    cdef iovec part
    cdef uint8_t[256] ours
    cdef uint8_t *room
    cdef uint64_t live = ws_live()
    cdef int64_t got, taken
    cdef size_t n, i
    cdef size_t written = 0
    cdef size_t idle = 0
    cdef const char *why = NULL
    transport.ops = &wire_operations
    transport.state = wire
    transport.fd = -1
    transport.wants = 0
    if client:
        if ws_dial(&transport, span_make(b"request", 7), span_make(b"accept", 6), FRAME_MOST) != ST_OK:
            return NULL
    elif ws_accept(&transport, span_make(b"response", 8), span_make(NULL, 0), FRAME_MOST) != ST_OK:
        return NULL
    outcome.payload_bytes = 0
    outcome.end = IO_AGAIN
    while why == NULL:
        n = piece(&wire.noise, 4096) * 3 + 1 if wire.noise else <size_t> 4096
        room = <uint8_t *> malloc(n)            # of exactly its size, so that a byte too many is seen
        if room == NULL:
            break
        got = transport.ops.read(&transport, room, <uint32_t> n)
        if got > <int64_t> n or got > <int64_t> (ROOM - outcome.payload_bytes):
            why = "more was read than there is"
        elif got > 0:
            memcpy(outcome.payload + outcome.payload_bytes, room, <size_t> got)
            outcome.payload_bytes += <size_t> got
            idle = 0
        free(room)
        if got == IO_END or got == IO_FAILED or got == IO_REFUSED:
            outcome.end = got
            break
        if got <= 0:
            # With no input left and nothing due the reactor would wait for an event; here none comes.
            if wire.input_at == wire.input_bytes and not transport.wants & (WANTS_READ | WANTS_OUT):
                if wire.end == IO_AGAIN:
                    break
            idle += 1
            if idle > 64 + 4 * wire.input_bytes + ROOM:
                why = "reading never ends"
        if writes and why == NULL and written < 8192:
            n = piece(&wire.noise, 256)
            for i in range(n):
                ours[i] = <uint8_t> ((written + i) * 7)
            part.iov_base = ours
            part.iov_len = n
            taken = transport.ops.write(&transport, &part, 1) if n else 0
            if taken > <int64_t> n:
                why = "more was written than there is"
            elif taken > 0:
                written += <size_t> taken
    wire.noise = 0
    transport.ops.finish(&transport)
    transport.ops.close(&transport)
    if why == NULL and ws_live() != live:
        why = "a link was not freed"
    if why == NULL:
        why = output_check(wire, client, 7 if client else 8, outcome)
    if why == NULL and outcome.sent > written:
        why = "more was sent than written"
    return why


cdef const char *ws_both(const uint8_t *data, size_t n, bint client, uint8_t how, uint8_t *memory) noexcept nogil:
    """The same bytes at once and in pieces."""
    cdef Wire wire
    cdef Outcome whole, parts
    cdef const char *why
    memset(&wire, 0, sizeof(Wire))
    wire.input = data
    wire.input_bytes = n
    wire.end = IO_END if how & 2 else IO_AGAIN
    wire.output = memory
    whole.payload = memory + ROOM
    parts.payload = memory + 2 * ROOM
    why = ws_play(&wire, client, False, &whole)
    if why != NULL:
        return why
    wire.input_at = 0
    wire.output_bytes = 0
    wire.noise = 0x9E3779B9U ^ (<uint32_t> how << 7)
    why = ws_play(&wire, client, how & 1, &parts)
    if why != NULL:
        return why
    if whole.payload_bytes != parts.payload_bytes or memcmp(whole.payload, parts.payload, whole.payload_bytes) != 0:
        return "in pieces another payload is read"
    if whole.end != parts.end:
        return "in pieces the link ends otherwise"
    if not how & 1 and whole.close_status != parts.close_status:
        return "in pieces another close frame is sent"
    return NULL


cdef const char *ws_run(const uint8_t *data, size_t n, bint client) noexcept nogil:
    cdef uint8_t *memory
    cdef uint8_t *input
    cdef size_t head = ANSWER_BYTES if client else 0
    cdef const char *why
    if n == 0 or n > MOST:
        return NULL
    memory = <uint8_t *> malloc(3 * ROOM)
    input = <uint8_t *> malloc(head + n)
    why = NULL
    if memory != NULL and input != NULL:
        if client:
            memcpy(input, ANSWER, head)
        memcpy(input + head, data + 1, n - 1)
        why = ws_both(input, head + n - 1, client, data[0], memory)
    free(memory)
    free(input)
    return why


cdef const char *fuzz_ws_server(const uint8_t *data, size_t n) noexcept nogil:
    """First byte: whether we write too, whether the stream ends, how it is cut; then a client's frames."""
    return ws_run(data, n, False)


cdef const char *fuzz_ws_client(const uint8_t *data, size_t n) noexcept nogil:
    """The same with a server's frames, behind its answer to the handshake."""
    return ws_run(data, n, True)


# ---------------------------------------------------------------------------------------------- PROXY header

cdef struct Proxied:
    uint8_t *payload               # owned, MOST bytes
    size_t payload_bytes
    bint failed
    PeerAddress peer


cdef const char *proxy_play(const uint8_t *data, size_t n, uint32_t noise, Proxied *outcome) noexcept nogil:
    cdef ProxyRules rules
    cdef Transport transport
    cdef int[2] fds
    cdef size_t sent = 0
    cdef size_t part
    cdef int64_t got
    cdef uint32_t turns = 0
    cdef bint over = False
    cdef uint64_t live = proxy_live()
    memset(&rules, 0, sizeof(ProxyRules))
    memset(&outcome.peer, 0, sizeof(PeerAddress))
    outcome.peer.family = 1                     # Unix sockets are trusted
    outcome.payload_bytes = 0
    outcome.failed = False
    if socketpair(AF_UNIX, SOCK_STREAM, 0, fds) != 0:
        return NULL
    fcntl(fds[0], F_SETFL, O_NONBLOCK)
    fcntl(fds[1], F_SETFL, O_NONBLOCK)
    transport.ops = tcp_ops()
    transport.state = NULL
    transport.fd = fds[0]
    transport.wants = 0
    if proxy_accept(&rules, &transport, &outcome.peer) != ST_OK:
        over = True
    while not over:
        turns += 1
        part = piece(&noise, n - sent)
        if part and send(fds[1], data + sent, part, MQTTC_SEND_FLAGS) != <ssize_t> part:
            break
        sent += part
        if sent == n:
            shutdown(fds[1], SHUT_WR)
        got = transport.ops.read(&transport, outcome.payload + outcome.payload_bytes, <uint32_t> (MOST - outcome.payload_bytes))
        if got > 0:
            outcome.payload_bytes += <size_t> got
        elif got != IO_AGAIN:
            outcome.failed = got != IO_END
            over = True
        elif sent == n and turns > 16 * n + 64:
            over = True
            outcome.failed = True
    transport.ops.close(&transport)
    c_close(fds[1])
    if proxy_live() != live:
        return "a link was not freed"
    return NULL


cdef const char *proxied_check(const uint8_t *data, size_t n, const Proxied *outcome) noexcept nogil:
    """The header, exactly, was taken away."""
    cdef size_t head = 0
    cdef uint32_t blanks = 0
    if outcome.failed:
        return NULL
    if data[0] == c'P':
        while head < n and data[head] != c'\n':
            blanks += data[head] == c' '
            head += 1
        head += 1
        if head < 8 or head > n or data[head - 2] != c'\r':
            return "a line that does not end with CR and LF was let in"
        if blanks != 5 and (n < 13 or memcmp(data, b"PROXY UNKNOWN", 13) != 0):
            return "a line of more or fewer words was let in"
        if head > 107:
            return "a header line that is too long was let in"
    elif n >= 16:
        head = 16 + (<size_t> data[14] << 8 | data[15])
    if head == 0 or head > n:
        return "a header that is not whole was let in"
    if outcome.payload_bytes != n - head or memcmp(outcome.payload, data + head, n - head) != 0:
        return "what stands behind the header did not come through"
    if outcome.peer.family != 1 and outcome.peer.family != 4 and outcome.peer.family != 6:
        return "an address of no family was let in"
    return NULL


cdef const char *fuzz_proxy(const uint8_t *data, size_t n) noexcept nogil:
    """First byte: how the bytes are cut; then a PROXY header and what follows it."""
    cdef uint8_t *memory
    cdef Proxied whole, parts
    cdef const char *why
    if n < 2 or n > MOST:
        return NULL
    memory = <uint8_t *> malloc(2 * MOST)
    if memory == NULL:
        return NULL
    whole.payload = memory
    parts.payload = memory + MOST
    why = proxy_play(data + 1, n - 1, 0, &whole)
    if why == NULL:
        why = proxied_check(data + 1, n - 1, &whole)
    if why == NULL:
        why = proxy_play(data + 1, n - 1, 0x9E3779B9U ^ (<uint32_t> data[0] << 7), &parts)
    if why == NULL:
        if whole.failed != parts.failed:
            why = "in pieces a header is judged otherwise"
        elif memcmp(whole.peer.address, parts.peer.address, 16) or whole.peer.port != parts.peer.port or whole.peer.family != parts.peer.family:
            why = "in pieces a header names another peer"
        elif not whole.failed and whole.payload_bytes != parts.payload_bytes:
            why = "in pieces another payload is read"
    free(memory)
    return why


# ---------------------------------------------------------------------------------------------- by name

cdef Targets targets = Targets()
targets.add("ws_server", fuzz_ws_server)
targets.add("ws_client", fuzz_ws_client)
targets.add("proxy", fuzz_proxy)
TARGETS = targets
