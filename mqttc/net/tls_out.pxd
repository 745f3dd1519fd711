"""TlsOut: where OpenSSL's records go: a BIO that sends several at once, and keeps what the socket does not take.

OpenSSL writes record by record, 16 KiB each; a system call each, and the other end woken by each, cost more than their encryption. Between `out_begin` and
`out_end` records are put together and leave in one call. OpenSSL never hears that the socket is full: what is encrypted is kept here, up to a bound, and
goes first when the socket takes output again.
"""

from libc.stdint cimport uint8_t, uint32_t

from mqttc.net.openssl cimport BIO

cdef enum:
    OUT_RECORD_MOST = 16384 + 512      # an encrypted record
    OUT_BATCH_RECORDS = 8

cdef struct TlsOut:
    int fd                             # borrowed
    uint8_t *batch                     # owned: records of this write; NULL: each leaves by itself
    uint32_t batch_bytes
    uint32_t batch_capacity
    uint8_t *unsent                    # owned: records that the socket has not taken; NULL: none
    uint32_t unsent_at
    uint32_t unsent_bytes

cdef BIO *out_bio(TlsOut *out) noexcept nogil                  # one reference; NULL: no memory. `out` is borrowed and must outlive it
cdef void out_begin(TlsOut *out, uint32_t records) noexcept nogil      # up to so many records are put together; without memory each leaves by itself
cdef bint out_room(const TlsOut *out) noexcept nogil           # for a further record
cdef int out_end(TlsOut *out) noexcept nogil                   # sends them. ST_OK; ST_AGAIN: some are unsent; ST_CLOSED: the socket is dead
cdef int out_flush(TlsOut *out) noexcept nogil                 # sends what is unsent; as out_end
cdef void out_free(TlsOut *out) noexcept nogil
