from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from mqttc.base.alloc cimport mem_alloc, mem_free
from mqttc.base.types cimport ST_NO_MEMORY, ST_OK, atomic_add_u64_relaxed, atomic_load_u64_relaxed, span_make
from mqttc.net.transport cimport PROOF_COUNT, Transport, TransportOps, iovec, transport_failure

cdef struct VouchedLink:           # transport.state; the proofs' bytes stand behind it
    Transport inner
    Proofs proofs

cdef uint64_t live                 # atomic
cdef TransportOps vouched_operations = TransportOps(vouched_read, vouched_write, vouched_finish, vouched_close, vouched_proof, vouched_failure)


cdef uint64_t vouched_live() noexcept nogil:
    return atomic_load_u64_relaxed(&live)


cdef int vouched_wrap(Transport *transport, const Proofs *proofs) noexcept nogil:
    cdef uint32_t i
    cdef size_t n = 0
    cdef VouchedLink *link
    cdef uint8_t *room
    for i in range(PROOF_COUNT):
        n += proofs.of[i].n
    if n == 0:
        return ST_OK
    link = <VouchedLink *> mem_alloc(sizeof(VouchedLink) + n)
    if link == NULL:
        return ST_NO_MEMORY
    room = <uint8_t *> (link + 1)
    link.inner = transport[0]
    for i in range(PROOF_COUNT):
        link.proofs.of[i] = span_make(room, proofs.of[i].n)
        if proofs.of[i].n:
            memcpy(room, proofs.of[i].p, proofs.of[i].n)
        room += proofs.of[i].n
    transport.ops = &vouched_operations
    transport.state = link
    atomic_add_u64_relaxed(&live, 1)
    return ST_OK


cdef int64_t vouched_read(Transport *transport, uint8_t *out, uint32_t n) noexcept nogil:
    cdef VouchedLink *link = <VouchedLink *> transport.state
    cdef int64_t got
    link.inner.wants = 0                        # plain sockets leave it as it is
    got = link.inner.ops.read(&link.inner, out, n)
    transport.wants = link.inner.wants
    return got


cdef int64_t vouched_write(Transport *transport, const iovec *parts, int count) noexcept nogil:
    cdef VouchedLink *link = <VouchedLink *> transport.state
    cdef int64_t taken = link.inner.ops.write(&link.inner, parts, count)
    transport.wants = link.inner.wants
    return taken


cdef void vouched_finish(Transport *transport) noexcept nogil:
    cdef VouchedLink *link = <VouchedLink *> transport.state
    link.inner.ops.finish(&link.inner)


cdef void vouched_close(Transport *transport) noexcept nogil:
    cdef VouchedLink *link = <VouchedLink *> transport.state
    transport.fd = -1
    if link != NULL:
        link.inner.ops.close(&link.inner)
        mem_free(link)
        transport.state = NULL
        atomic_add_u64_relaxed(&live, <uint64_t> -1)


cdef uint32_t vouched_proof(Transport *transport, int kind, uint8_t *out, uint32_t n) noexcept nogil:
    cdef VouchedLink *link = <VouchedLink *> transport.state
    if link.proofs.of[kind].n and link.proofs.of[kind].n <= n:
        memcpy(out, link.proofs.of[kind].p, link.proofs.of[kind].n)
    return link.proofs.of[kind].n


cdef const char *vouched_failure(Transport *transport) noexcept nogil:
    cdef VouchedLink *link = <VouchedLink *> transport.state
    return transport_failure(&link.inner) if link != NULL else NULL
