from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memchr, memcmp, memcpy, memset

from mqttc.base.alloc cimport mem_alloc, mem_alloc_zeroed, mem_free
from mqttc.base.types cimport ST_ERROR, ST_LIMIT, ST_NEED_MORE, ST_NO_MEMORY, ST_OK, atomic_add_u64_relaxed, atomic_load_u64_relaxed, span_make
from mqttc.net.tcp cimport PeerAddress, tcp_ops
from mqttc.net.transport cimport IO_AGAIN, IO_FAILED, PROOF_CERTIFICATE, PROOF_COMMON_NAME, Transport, TransportOps, iovec
from mqttc.net.vouched cimport Proofs, vouched_wrap

cdef extern from "<sys/types.h>" nogil:
    ctypedef long ssize_t

cdef extern from "<sys/socket.h>" nogil:
    ssize_t recv(int fd, void *out, size_t n, int flags)
    int shutdown(int fd, int how)
    const int MSG_PEEK
    const int SHUT_WR

cdef extern from "<arpa/inet.h>" nogil:
    int inet_pton(int family, const char *text, void *out)
    const int AF_INET
    const int AF_INET6

cdef extern from "<unistd.h>" nogil:
    int c_close "close"(int fd)

cdef enum:
    LINE_MOST = 107                # bytes of a version 1 header
    HEAD = 16                      # fixed part of version 2
    HEADER_MOST = 16384            # bytes of a version 2 header that are read: a certificate has its place, padding has not
    COMMAND_LOCAL = 0
    COMMAND_PROXY = 1
    OVER_IP4 = 1
    OVER_IP6 = 2
    OVER_UNIX = 3
    TLV_CRC32C = 0x03
    TLV_SSL = 0x20
    TLV_SSL_COMMON_NAME = 0x22
    TLV_SSL_CERTIFICATE = 0x28     # DER
    CRC32C_POLYNOMIAL = 0x82F63B78
    SSL_WITH_CERTIFICATE = 0x02 | 0x04     # shown on this connection, or when its TLS session began

cdef const char *SIGNATURE = b"\x0d\x0a\x0d\x0a\x00\x0d\x0a\x51\x55\x49\x54\x0a"

cdef struct ProxyLink:             # transport.state; its worker's alone
    const ProxyRules *rules        # borrowed
    PeerAddress *peer              # borrowed: the link's
    uint8_t *long_header           # owned: a version 2 header longer than `header`; NULL: none
    const char *why                # what failed; NULL: nothing
    uint32_t have
    uint32_t total                 # bytes of the version 2 header, once known
    uint8_t header[112]

cdef uint64_t live                 # atomic
cdef TransportOps proxy_operations = TransportOps(proxy_read, proxy_write, proxy_finish, proxy_close, NULL, proxy_failure)      # constant from import on


cdef uint64_t proxy_live() noexcept nogil:
    return atomic_load_u64_relaxed(&live)


cdef bint proxy_trusts(const ProxyRules *rules, const PeerAddress *peer) noexcept nogil:
    cdef const Network *network
    cdef uint32_t i, whole
    cdef uint8_t rest
    if peer.family == 1:
        return True
    for i in range(rules.trusted_count):
        network = &rules.trusted[i]
        whole = network.prefix_bits // 8
        rest = <uint8_t> (0xFF00 >> (network.prefix_bits % 8))
        if memcmp(peer.address, network.address, whole) == 0 and (whole == 16 or (peer.address[whole] ^ network.address[whole]) & rest == 0):
            return True
    return False


cdef int proxy_accept(const ProxyRules *rules, Transport *transport, PeerAddress *peer) noexcept nogil:
    cdef ProxyLink *link = <ProxyLink *> mem_alloc_zeroed(1, sizeof(ProxyLink))
    if link == NULL:
        return ST_NO_MEMORY
    link.rules = rules
    link.peer = peer
    transport.ops = &proxy_operations
    transport.state = link
    transport.wants = 0
    atomic_add_u64_relaxed(&live, 1)
    return ST_OK


cdef void link_free(ProxyLink *link) noexcept nogil:
    mem_free(link.long_header)
    mem_free(link)
    atomic_add_u64_relaxed(&live, <uint64_t> -1)


# ---------------------------------------------------------------------------------------------- reading the header

cdef int64_t fail(ProxyLink *link, const char *why) noexcept nogil:
    link.why = why
    return IO_FAILED


cdef inline uint8_t *header_of(ProxyLink *link) noexcept nogil:
    return link.long_header if link.long_header != NULL else link.header


cdef int64_t take(Transport *transport, ProxyLink *link, uint32_t n) noexcept nogil:
    """Moves at most n bytes from the socket behind the header; > 0: bytes; else IoResult."""
    cdef ssize_t got
    while True:
        got = recv(transport.fd, header_of(link) + link.have, n, 0)
        if got > 0:
            link.have += <uint32_t> got
            return got
        if got == 0:
            return fail(link, "closed before the PROXY protocol header")
        if errno == EAGAIN:
            return IO_AGAIN
        if errno != EINTR:
            return fail(link, "the connection broke before the PROXY protocol header")


cdef int64_t line_take(Transport *transport, ProxyLink *link) noexcept nogil:
    """Of a version 1 header, up to its line feed. 1: it is whole; else IoResult."""
    cdef uint8_t[LINE_MOST] peeked
    cdef ssize_t got, n
    cdef int64_t taken
    while True:
        got = recv(transport.fd, peeked, LINE_MOST - link.have, MSG_PEEK)
        n = 0
        while n < got and peeked[n] != c'\n':
            n += 1
        if n < got or got <= 0:                 # nothing, an end or an error: taking one byte says the same, and why, or meets what has come meanwhile
            n += 1
        taken = take(transport, link, <uint32_t> n)
        if taken <= 0:
            return taken
        if link.header[link.have - 1] == c'\n':
            return 1
        if link.have == LINE_MOST:
            return fail(link, "PROXY protocol: the header line is too long")


cdef int64_t header_take(Transport *transport, ProxyLink *link) noexcept nogil:
    """1: the header is whole; else IoResult."""
    cdef int64_t status
    while True:
        if link.have == 0:
            status = take(transport, link, 1)
        elif link.header[0] == c'P':
            return line_take(transport, link)
        elif link.have < HEAD:
            status = take(transport, link, HEAD - link.have)
        elif link.have < link.total:
            status = take(transport, link, link.total - link.have)
        else:
            return 1
        if status <= 0:
            return status
        if link.header[0] != c'P' and memcmp(link.header, SIGNATURE, link.have if link.have < 12 else 12) != 0:
            return fail(link, "no PROXY protocol header")
        if link.have == HEAD and link.total == 0:
            link.total = HEAD + (<uint32_t> link.header[14] << 8 | link.header[15])
            if link.total > HEADER_MOST:
                return fail(link, "PROXY protocol: the header is too long")
            if link.total > sizeof(link.header):
                link.long_header = <uint8_t *> mem_alloc(link.total)
                if link.long_header == NULL:
                    return fail(link, "no memory for the PROXY protocol header")
                memcpy(link.long_header, link.header, HEAD)


# ---------------------------------------------------------------------------------------------- what it says

cdef uint32_t word(const uint8_t *line, uint32_t n, uint32_t *at, uint8_t *out) noexcept nogil:
    """The next word of a version 1 line, ended by NUL in `out` (108 bytes); its length. Words stand one blank apart."""
    cdef uint32_t start = at[0]
    cdef uint32_t length
    while at[0] < n and line[at[0]] != c' ':
        at[0] += 1
    length = at[0] - start
    memcpy(out, line + start, length)
    out[length] = 0
    at[0] += 1
    return length


cdef bint port_of(const uint8_t *digits, uint32_t n, uint16_t *port) noexcept nogil:
    cdef uint32_t value = 0
    cdef uint32_t i
    if not 1 <= n <= 5 or (n > 1 and digits[0] == c'0'):
        return False
    for i in range(n):
        if not c'0' <= digits[i] <= c'9':
            return False
        value = value * 10 + digits[i] - c'0'
    port[0] = <uint16_t> value
    return value <= 65535


cdef inline bint is_mapped(const uint8_t *address) noexcept nogil:
    return memcmp(address, b"\0\0\0\0\0\0\0\0\0\0\xff\xff", 12) == 0


cdef bint line_read(const uint8_t *line, uint32_t n, PeerAddress *peer) noexcept nogil:
    """A version 1 line without its end. False: ill-formed."""
    cdef uint8_t[108] text
    cdef uint8_t[16] spare
    cdef PeerAddress told
    cdef uint16_t port
    cdef uint32_t at = 0
    cdef uint32_t length
    cdef int family
    memset(&told, 0, sizeof(PeerAddress))
    if word(line, n, &at, text) != 5 or memcmp(text, b"PROXY", 5) != 0:
        return False
    length = word(line, n, &at, text) if at <= n else 0
    if length == 7 and memcmp(text, b"UNKNOWN", 7) == 0:
        return True                 # the rest of the line is to be ignored, the connection's own address holds
    if memchr(line, 0, n) != NULL:
        return False                # inet_pton would read no further
    if length != 4 or memcmp(text, b"TCP", 3) != 0 or (text[3] != c'4' and text[3] != c'6'):
        return False
    told.family = text[3] - c'0'
    family = AF_INET if told.family == 4 else AF_INET6
    if told.family == 4:
        told.address[10] = told.address[11] = 0xFF
    if at > n or word(line, n, &at, text) == 0 or inet_pton(family, <const char *> text, told.address + (12 if told.family == 4 else 0)) != 1:
        return False
    if at > n or word(line, n, &at, text) == 0 or inet_pton(family, <const char *> text, spare) != 1:
        return False
    if at > n:
        return False
    length = word(line, n, &at, text)
    if not port_of(text, length, &told.port) or at > n:
        return False
    length = word(line, n, &at, text)
    if not port_of(text, length, &port) or at != n + 1:
        return False
    if is_mapped(told.address):
        told.family = 4
    peer[0] = told
    return True


cdef uint32_t crc32c(uint32_t crc, const uint8_t *p, uint32_t n) noexcept nogil:
    """RFC 3720 appendix B.4, bit by bit: once per connection."""
    cdef uint32_t i, bit
    for i in range(n):
        crc ^= p[i]
        for bit in range(8):
            crc = crc >> 1 ^ (<uint32_t> CRC32C_POLYNOMIAL if crc & 1 else <uint32_t> 0)
    return crc


cdef bint checksum_holds(const uint8_t *header, uint32_t n, const uint8_t *checksum) noexcept nogil:
    cdef uint8_t[4] zeros
    cdef uint32_t at = <uint32_t> (checksum - header)
    cdef uint32_t crc
    memset(zeros, 0, 4)
    crc = crc32c(~<uint32_t> 0, header, at)
    crc = crc32c(crc, zeros, 4)
    crc = crc32c(crc, header + at + 4, n - at - 4) ^ ~<uint32_t> 0
    return crc == (<uint32_t> checksum[0] << 24 | <uint32_t> checksum[1] << 16 | <uint32_t> checksum[2] << 8 | checksum[3])


cdef int tlv_next(const uint8_t **p, const uint8_t *end, uint8_t *kind, const uint8_t **value, uint32_t *n) noexcept nogil:
    """ST_OK; ST_NEED_MORE: none is left; ST_ERROR: ill-formed."""
    if p[0] == end:
        return ST_NEED_MORE
    if end - p[0] < 3:
        return ST_ERROR
    kind[0] = p[0][0]
    n[0] = <uint32_t> p[0][1] << 8 | p[0][2]
    value[0] = p[0] + 3
    if <uint32_t> (end - value[0]) < n[0]:
        return ST_ERROR
    p[0] = value[0] + n[0]
    return ST_OK


cdef bint ssl_read(const uint8_t *p, const uint8_t *end, Proofs *proofs) noexcept nogil:
    """What the proxy says of the client's TLS. Only a certificate that it has verified is worth something."""
    cdef const uint8_t *value
    cdef uint32_t n
    cdef uint8_t kind, client
    cdef uint32_t verify
    cdef int status
    if end - p < 5:
        return False
    client = p[0]
    verify = p[1] | p[2] | p[3] | p[4]
    p += 5
    while True:
        status = tlv_next(&p, end, &kind, &value, &n)
        if status != ST_OK:
            break
        if client & SSL_WITH_CERTIFICATE and verify == 0:
            if kind == TLV_SSL_COMMON_NAME:
                proofs.of[<int> PROOF_COMMON_NAME] = span_make(value, n)
            elif kind == TLV_SSL_CERTIFICATE:
                proofs.of[<int> PROOF_CERTIFICATE] = span_make(value, n)
    return status == ST_NEED_MORE


cdef bint tlvs_read(const uint8_t *header, uint32_t total, const uint8_t *p, Proofs *proofs) noexcept nogil:
    cdef const uint8_t *end = header + total
    cdef const uint8_t *value
    cdef uint32_t n
    cdef uint8_t kind
    cdef int status
    while True:
        status = tlv_next(&p, end, &kind, &value, &n)
        if status != ST_OK:
            return status == ST_NEED_MORE
        if kind == TLV_CRC32C and (n != 4 or not checksum_holds(header, total, value)):
            return False
        if kind == TLV_SSL and not ssl_read(value, value + n, proofs):
            return False


cdef bint binary_read(const uint8_t *header, uint32_t total, PeerAddress *peer, Proofs *proofs) noexcept nogil:
    """A version 2 header. False: ill-formed."""
    cdef const uint8_t *addresses = header + HEAD
    cdef uint32_t room = total - HEAD
    cdef uint8_t command = header[12] & 0x0F
    cdef uint8_t over = header[13] >> 4
    cdef uint32_t address_bytes
    cdef PeerAddress told
    if header[12] >> 4 != 2 or command > COMMAND_PROXY:
        return False
    if command == COMMAND_LOCAL:
        return True                 # the proxy speaks for itself (a health check): whatever else the header says is to be ignored
    if over > OVER_UNIX or header[13] & 0x0F > 2:
        return False
    address_bytes = 12 if over == OVER_IP4 else 36 if over == OVER_IP6 else 216 if over == OVER_UNIX else 0
    if room < address_bytes:
        return False
    memset(&told, 0, sizeof(PeerAddress))
    if over == OVER_IP4:
        told.family = 4
        told.address[10] = told.address[11] = 0xFF
        memcpy(told.address + 12, addresses, 4)
        told.port = <uint16_t> addresses[8] << 8 | addresses[9]
    elif over == OVER_IP6:
        memcpy(told.address, addresses, 16)
        told.family = 4 if is_mapped(told.address) else 6
        told.port = <uint16_t> addresses[32] << 8 | addresses[33]
    elif over == OVER_UNIX:
        told.family = 1
    if not tlvs_read(header, total, addresses + address_bytes, proofs):
        return False
    if told.family:
        peer[0] = told
    return True


# ---------------------------------------------------------------------------------------------- the transport

cdef int64_t make_way(Transport *transport, ProxyLink *link, const Proofs *proofs) noexcept nogil:
    """What follows takes this transport's place. 1, or IO_FAILED."""
    cdef Transport below
    cdef int status
    below.ops = tcp_ops()
    below.state = NULL
    below.fd = transport.fd
    below.wants = 0
    if link.rules.upgrade != NULL:
        status = link.rules.upgrade(link.rules.upgrade_context, &below)
        if status != ST_OK:
            return fail(link, "too many TLS handshakes at once" if status == ST_LIMIT else "no memory for the connection's transport")
    if vouched_wrap(&below, proofs) != ST_OK:
        below.fd = -1               # it stays ours
        below.ops.close(&below)
        return fail(link, "no memory for the connection's transport")
    transport[0] = below
    link_free(link)
    return 1


cdef int64_t proxy_read(Transport *transport, uint8_t *out, uint32_t n) noexcept nogil:
    cdef ProxyLink *link = <ProxyLink *> transport.state
    cdef uint8_t *header
    cdef Proofs proofs
    cdef int64_t status
    cdef uint32_t end
    cdef bint good
    transport.wants = 0
    if link.why != NULL:
        return IO_FAILED
    if link.have == 0 and not proxy_trusts(link.rules, link.peer):
        return fail(link, "the peer is not one of trusted_proxies")
    status = header_take(transport, link)
    if status != 1:
        return status
    memset(&proofs, 0, sizeof(Proofs))
    header = header_of(link)
    if header[0] == c'P':
        end = link.have - 2
        good = link.have >= 2 and header[end] == c'\r' and line_read(header, end, link.peer)
    else:
        good = binary_read(header, link.total, link.peer, &proofs)
    if not good:
        return fail(link, "PROXY protocol: the header is ill-formed")
    status = make_way(transport, link, &proofs)
    return transport.ops.read(transport, out, n) if status == 1 else status


cdef int64_t proxy_write(Transport *transport, const iovec *parts, int count) noexcept nogil:
    return IO_FAILED                # nobody has said anything yet that could be answered


cdef void proxy_finish(Transport *transport) noexcept nogil:
    shutdown(transport.fd, SHUT_WR)


cdef void proxy_close(Transport *transport) noexcept nogil:
    if transport.state != NULL:
        link_free(<ProxyLink *> transport.state)
        transport.state = NULL
    if transport.fd >= 0:
        c_close(transport.fd)
        transport.fd = -1


cdef const char *proxy_failure(Transport *transport) noexcept nogil:
    cdef ProxyLink *link = <ProxyLink *> transport.state
    if link == NULL:
        return NULL
    if link.why != NULL:
        return link.why
    return "no PROXY protocol header"
