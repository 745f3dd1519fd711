"""Face of the transports: one connection, its ops called by hand.

Below lies a real socket, or a scripted one: what it reads and how much it takes is said by the test. Its memory comes from malloc itself, so that refused
allocations are those of the transports alone. Every read goes into a block of exactly the size asked for.
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcpy, memmove, memset

from mqttc.base.alloc cimport mem_alloc_zeroed, mem_fail_after, mem_free, mem_freed, mem_made, mem_tested
from mqttc.base.types cimport ST_ERROR, ST_NO_MEMORY, ST_OK, Span, span_make
from mqttc.net.proxy cimport Network, ProxyRules, proxy_accept, proxy_live, proxy_trusts
from mqttc.net.tcp cimport PeerAddress, peer_text, tcp_ops
from mqttc.net.tls cimport (
    Tls, TlsCertificate, TlsFailure, TlsKey, TlsSettings, TlsStats, tls_accept, tls_build, tls_drop, tls_live, tls_load, tls_rotate, tls_stats,
)
from mqttc.net.transport cimport (
    IO_AGAIN, IO_END, IO_FAILED, IO_REFUSED, WANTS_IN, WANTS_OUT, WANTS_READ, Transport, TransportOps, iovec, transport_failure, transport_proof,
    transport_proves,
)
from mqttc.net.vouched cimport Proofs, vouched_live, vouched_wrap
from mqttc.net.ws cimport ws_accept, ws_dial, ws_going_away, ws_live

AGAIN, END, FAILED, REFUSED = IO_AGAIN, IO_END, IO_FAILED, IO_REFUSED
OUT, READ, IN = WANTS_OUT, WANTS_READ, WANTS_IN
ALLOC_TESTED = mem_tested()


def blocks_live() -> int:
    """Debug builds: blocks of memory made and not freed."""
    return mem_made() - mem_freed()


def fail_allocations(int64_t granted, bint once=True) -> None:
    mem_fail_after(granted, once)


def live() -> dict:
    return {"ws": ws_live(), "proxy": proxy_live(), "vouched": vouched_live(), "tls": tls_live()}


# ---------------------------------------------------------------------------------------------- the scripted transport

cdef struct Script:
    uint8_t *input                 # owned
    size_t input_bytes
    size_t input_at
    uint8_t *output                # owned
    size_t output_bytes
    size_t output_capacity
    size_t read_most               # bytes a read gives
    int64_t room                   # bytes that are taken, then IO_AGAIN; below 0: all
    size_t write_most              # bytes one write takes
    int end                        # what a read says behind the input; IO_FAILED once, then IO_END, as sockets do
    uint32_t reads
    uint32_t writes
    uint32_t finished
    uint32_t closed
    uint32_t read_wants            # set by reads
    uint32_t write_wants           # set by writes that answer IO_AGAIN
    bint dead                      # writes fail


cdef int64_t script_read(Transport *transport, uint8_t *out, uint32_t n) noexcept nogil:
    cdef Script *script = <Script *> transport.state
    cdef size_t left = script.input_bytes - script.input_at
    cdef int end
    script.reads += 1
    transport.wants = script.read_wants
    if left == 0:
        end = script.end
        if end == IO_FAILED:
            script.end = IO_END
        return end
    if left > n:
        left = n
    if left > script.read_most:
        left = script.read_most
    memcpy(out, script.input + script.input_at, left)
    script.input_at += left
    return <int64_t> left


cdef int64_t script_write(Transport *transport, const iovec *parts, int count) noexcept nogil:
    cdef Script *script = <Script *> transport.state
    cdef size_t total = 0
    cdef size_t n
    cdef uint8_t *grown
    cdef int i
    script.writes += 1
    transport.wants &= ~<uint32_t> WANTS_IN
    if script.dead:
        return IO_FAILED
    for i in range(count):
        n = parts[i].iov_len
        if n > script.write_most - total:
            n = script.write_most - total
        if script.room >= 0 and n > <size_t> script.room:
            n = <size_t> script.room
        if script.output_bytes + n > script.output_capacity:
            grown = <uint8_t *> realloc(script.output, (script.output_bytes + n) * 2)
            if grown == NULL:
                return IO_FAILED
            script.output = grown
            script.output_capacity = (script.output_bytes + n) * 2
        if n:
            memcpy(script.output + script.output_bytes, parts[i].iov_base, n)
        script.output_bytes += n
        if script.room >= 0:
            script.room -= <int64_t> n
        total += n
        if n < parts[i].iov_len:
            break
    if total == 0:
        transport.wants |= script.write_wants
        return IO_AGAIN
    return <int64_t> total


cdef void script_finish(Transport *transport) noexcept nogil:
    (<Script *> transport.state).finished += 1


cdef void script_close(Transport *transport) noexcept nogil:
    (<Script *> transport.state).closed += 1
    transport.fd = -1


cdef uint32_t script_proof(Transport *transport, int kind, uint8_t *out, uint32_t n) noexcept nogil:
    if kind != 0:
        return 0
    if n >= 9:
        memcpy(out, b"messenger", 9)
    return 9


cdef const char *script_failure(Transport *transport) noexcept nogil:
    if (<Script *> transport.state).dead:
        return "the scripted transport is dead"
    return NULL


cdef TransportOps script_operations = TransportOps(script_read, script_write, script_finish, script_close, script_proof, script_failure)


cdef Span span_of(bytes data):
    return span_make(<const char *> data, <size_t> len(data)) if data else span_make(NULL, 0)


cdef int refuse_upgrade(void *context, Transport *transport) noexcept nogil:
    return ST_NO_MEMORY


cdef class Rules:
    """What a listener behind proxies knows. networks: (16 bytes, prefix)."""
    cdef ProxyRules rules
    cdef TlsFace tls

    def __cinit__(self, networks=(), TlsFace tls=None, bint refused=False):
        cdef uint32_t i
        cdef bytes address
        self.rules.trusted_count = <uint32_t> len(networks)
        self.rules.trusted = <Network *> calloc(len(networks) + 1, sizeof(Network))
        if self.rules.trusted == NULL:
            raise MemoryError
        for i, (address, prefix) in enumerate(networks):
            memcpy(self.rules.trusted[i].address, <const char *> address, 16)
            self.rules.trusted[i].prefix_bits = prefix
        self.tls = tls
        if tls is not None:
            self.rules.upgrade = tls_accept
            self.rules.upgrade_context = tls.tls
        elif refused:
            self.rules.upgrade = refuse_upgrade

    def __dealloc__(self):
        free(self.rules.trusted)

    def trusts(self, int family, bytes address=bytes(16)) -> bool:
        cdef PeerAddress peer
        memset(&peer, 0, sizeof(peer))
        peer.family = <uint8_t> family
        memcpy(peer.address, <const char *> address, 16)
        return proxy_trusts(&self.rules, &peer)


cdef class Carrier:
    """A connection. fd: a non-blocking socket that becomes its own; -1: a scripted one."""
    cdef Transport transport
    cdef Script *script
    cdef PeerAddress peer
    cdef Rules rules           # borrowed by the transport
    cdef object tls            # kept: outlives the connection

    def __cinit__(self, int fd=-1):
        self.transport.fd = fd
        if fd >= 0:
            self.transport.ops = tcp_ops()
            return
        self.script = <Script *> calloc(1, sizeof(Script))
        if self.script == NULL:
            raise MemoryError
        self.script.room = -1
        self.script.read_most = self.script.write_most = <size_t> -1
        self.script.end = IO_AGAIN
        self.transport.ops = &script_operations
        self.transport.state = self.script

    def __dealloc__(self):
        if self.transport.ops != NULL:
            self.transport.ops.close(&self.transport)
        if self.script != NULL:
            free(self.script.input)
            free(self.script.output)
            free(self.script)

    # ------------------------------------------------------------------ the script

    def feed(self, bytes data) -> None:
        """Input behind what was not read yet."""
        cdef size_t left = self.script.input_bytes - self.script.input_at
        cdef uint8_t *made = <uint8_t *> malloc(left + <size_t> len(data) + 1)
        if made == NULL:
            raise MemoryError
        if left:
            memcpy(made, self.script.input + self.script.input_at, left)
        memcpy(made + left, <const char *> data, <size_t> len(data))
        free(self.script.input)
        self.script.input = made
        self.script.input_bytes = left + <size_t> len(data)
        self.script.input_at = 0

    @property
    def unread(self) -> int:
        return self.script.input_bytes - self.script.input_at

    @property
    def waiting(self) -> bool:
        """Whether the script has input that was not read."""
        return self.script != NULL and self.script.input_bytes > self.script.input_at

    def sent(self) -> bytes:
        """What was taken since the last time."""
        data = (<const char *> self.script.output)[:self.script.output_bytes] if self.script.output_bytes else b""
        self.script.output_bytes = 0
        return data

    def limit(self, room=None, write_most=None, read_most=None) -> None:
        """room: bytes that are taken before IO_AGAIN, below 0 for all; the others: bytes of one call."""
        if room is not None:
            self.script.room = room
        if write_most is not None:
            self.script.write_most = write_most
        if read_most is not None:
            self.script.read_most = read_most

    def end(self, int result) -> None:
        self.script.end = result

    def die(self) -> None:
        self.script.dead = True

    def inner_wants(self, uint32_t reads=0, uint32_t writes=0) -> None:
        self.script.read_wants = reads
        self.script.write_wants = writes

    @property
    def counts(self) -> dict:
        return {
            "reads": self.script.reads, "writes": self.script.writes, "finished": self.script.finished, "closed": self.script.closed,
        }

    # ------------------------------------------------------------------ what is put over it

    def ws_accept(self, bytes response=b"", bytes rest=b"", uint64_t most=1 << 24) -> int:
        return ws_accept(&self.transport, span_of(response), span_of(rest), most)

    def ws_going_away(self):
        ws_going_away(&self.transport)

    def ws_dial(self, bytes request, bytes accept, uint64_t most=1 << 24) -> int:
        return ws_dial(&self.transport, span_of(request), span_of(accept), most)

    def vouch(self, bytes certificate=b"", bytes key_name=b"", bytes common_name=b"") -> int:
        cdef Proofs proofs
        proofs.of[0] = span_of(certificate)
        proofs.of[1] = span_of(key_name)
        proofs.of[2] = span_of(common_name)
        return vouched_wrap(&self.transport, &proofs)

    def proxy_accept(self, Rules rules not None, int family=4, bytes address=bytes(10) + b"\xff\xff\x7f\0\0\1", uint16_t port=9) -> int:
        self.rules = rules
        memset(&self.peer, 0, sizeof(PeerAddress))
        self.peer.family = <uint8_t> family
        self.peer.port = port
        memcpy(self.peer.address, <const char *> address, 16)
        return proxy_accept(&rules.rules, &self.transport, &self.peer)

    def tls_accept(self, TlsFace tls not None) -> int:
        self.tls = tls
        return tls_accept(tls.tls, &self.transport)

    @property
    def peer_said(self) -> str:
        cdef uint8_t[80] room
        return (<const char *> room)[:peer_text(&self.peer, room, 80)].decode()

    @property
    def peer_family(self) -> int:
        return self.peer.family

    # ------------------------------------------------------------------ its ops

    def read(self, uint32_t n=65536):
        """The bytes, or what stands for none."""
        cdef uint8_t *room = <uint8_t *> malloc(n if n else 1)
        cdef int64_t got
        if room == NULL:
            raise MemoryError
        with nogil:
            got = self.transport.ops.read(&self.transport, room, n)
        try:
            return (<const char *> room)[:got] if got > 0 else int(got)
        finally:
            free(room)

    def write(self, *parts) -> int:
        """Bytes taken, or what stands for none."""
        cdef iovec[64] vector
        cdef int count = <int> len(parts)
        cdef int i
        cdef int64_t taken
        cdef bytes part
        if count > 64:
            raise ValueError(count)
        for i in range(count):
            part = parts[i]
            vector[i].iov_base = <char *> part
            vector[i].iov_len = <size_t> len(part)
        with nogil:
            taken = self.transport.ops.write(&self.transport, vector, count)
        return taken

    def finish(self) -> None:
        self.transport.ops.finish(&self.transport)

    def close(self) -> None:
        self.transport.ops.close(&self.transport)

    @property
    def wants(self) -> int:
        return self.transport.wants

    @property
    def fd(self) -> int:
        return self.transport.fd

    @property
    def plain(self) -> bool:
        """Whether nothing lies over the socket."""
        return self.transport.ops == tcp_ops() or self.transport.ops == &script_operations

    @property
    def failure(self):
        cdef const char *why = transport_failure(&self.transport)
        return None if why == NULL else why.decode()

    @property
    def proves(self) -> bool:
        return transport_proves(&self.transport)

    def proof(self, int kind, uint32_t room=65536):
        """The bytes, or their number where there is not that much room."""
        cdef uint8_t *out = <uint8_t *> malloc(room if room else 1)
        cdef uint32_t n
        if out == NULL:
            raise MemoryError
        n = transport_proof(&self.transport, kind, out, room)
        try:
            return (<const char *> out)[:n] if n <= room else n
        finally:
            free(out)


# ---------------------------------------------------------------------------------------------- TLS

cdef class TlsFace:
    cdef Tls *tls

    def __cinit__(self):
        self.tls = tls_build()
        if self.tls == NULL:
            raise MemoryError

    def __dealloc__(self):
        if self.tls != NULL:
            tls_drop(self.tls)

    def load(self, certificates=(), bytes client_ca=b"", bytes crl=b"", keys=(), bytes hint=None, bytes alpn=b"", int peer_certificate=0):
        """None, or why not. certificates: (chain, key); keys: (name, key), in the order of their names."""
        cdef TlsSettings settings
        cdef TlsFailure failure
        cdef TlsCertificate[8] chains
        cdef TlsKey[8] secrets
        cdef int i, status
        if len(certificates) > 8 or len(keys) > 8:
            raise ValueError("more than this face takes")
        memset(&settings, 0, sizeof(settings))
        memset(&failure, 0, sizeof(failure))
        memset(chains, 0, sizeof(chains))
        for i, (chain, key) in enumerate(certificates):
            chains[i].chain = span_of(chain)
            chains[i].key = span_of(key)
        for i, (name, key) in enumerate(keys):
            secrets[i].name = span_of(name)
            secrets[i].key = span_of(key)
        settings.certificates = chains
        settings.certificate_count = <uint32_t> len(certificates)
        settings.client_ca = span_of(client_ca)
        settings.crl = span_of(crl)
        settings.keys = secrets
        settings.key_count = <uint32_t> len(keys)
        settings.key_hint = <const char *> hint if hint is not None else NULL
        settings.alpn = span_of(alpn)
        settings.minimum_version = 2
        settings.peer_certificate = <uint8_t> peer_certificate
        with nogil:
            status = tls_load(self.tls, &settings, &failure)
        if status == ST_OK:
            return None
        if status != ST_ERROR:
            raise AssertionError(status)
        return failure.text.decode()

    def rotate(self) -> bool:
        return tls_rotate(self.tls) == ST_OK

    @property
    def stats(self) -> dict:
        cdef TlsStats stats
        tls_stats(self.tls, &stats)
        return stats


# ---------------------------------------------------------------------------------------------- for bench/micro

cdef bytes masked_frames(uint32_t size, uint32_t count):
    head = bytes([0x82, 0x80 | size]) if size < 126 else bytes([0x82, 0xFE, size >> 8, size & 255])
    return (head + b"\0\0\0\0" + bytes(size)) * count


def time_ws_read(uint32_t size, uint32_t count, uint32_t rounds) -> int:
    """Reads the same frames again and again without leaving C; payload bytes."""
    cdef Carrier carrier = Carrier()
    cdef uint8_t *room = <uint8_t *> malloc(1 << 17)
    cdef int64_t got
    cdef int64_t total = 0
    cdef uint32_t i
    if room == NULL:
        raise MemoryError
    carrier.ws_accept()
    carrier.feed(masked_frames(size, count))
    with nogil:
        for i in range(rounds):
            carrier.script.input_at = 0
            got = 1
            while got > 0:
                got = carrier.transport.ops.read(&carrier.transport, room, 1 << 17)
                total += got if got > 0 else 0
    free(room)
    return total


def time_ws_write(uint32_t size, bint client, uint32_t rounds) -> int:
    """Writes frames of one part again and again without leaving C; payload bytes."""
    cdef Carrier carrier = Carrier()
    cdef bytes data = bytes(size)
    cdef iovec part
    cdef int64_t total = 0
    cdef uint32_t i
    if client:
        carrier.ws_dial(b"request", b"accept")
        carrier.feed(b"HTTP/1.1 101 x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: accept\r\n\r\n")
        carrier.read()
    else:
        carrier.ws_accept()
    part.iov_base = <char *> data
    part.iov_len = size
    with nogil:
        for i in range(rounds):
            carrier.script.output_bytes = 0
            total += carrier.transport.ops.write(&carrier.transport, &part, 1)
    return total
