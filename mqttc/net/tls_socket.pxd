"""TlsSocket: what OpenSSL takes for the socket: a BIO whose system calls are those of a plain connection, one to read and one to write.

OpenSSL reads a record in two calls, its head and the rest, and writes record by record, 16 KiB each: their system calls, the other end woken by each, and the
turn of the loop that an event is worth cost more than the encryption.

Input. Between `in_open` and `in_close` records come out of a window of bytes that one call has received; OpenSSL drains it. Outside, or where the caller's
room is too small for a window, it is given what the socket has. A peer whose very first byte is not the expected one is not passed on: its bytes are not TLS.

Output. Between `out_begin` and `out_end` records are put together and leave in one call. OpenSSL never hears that the socket is full: what is encrypted is
kept here, up to a bound, and goes first when the socket takes output again. What OpenSSL itself has to say while a window is open (a session ticket) is held
and leaves with what is written next, or by `out_flush`.
"""

from libc.stdint cimport uint8_t, uint32_t

from mqttc.net.openssl cimport BIO

cdef enum:
    RECORD_MOST = 16384 + 512          # an encrypted record
    OUT_BATCH_RECORDS = 8
    WINDOW_LEAST = 4 * RECORD_MOST     # room from which a window is worth it

cdef struct TlsSocket:
    int fd                             # borrowed
    # input
    const uint8_t *window              # borrowed, of this read: received, and not yet taken by OpenSSL
    uint32_t window_bytes
    uint8_t windowed                   # between in_open and in_close: the socket itself is not read
    uint8_t in_full                    # the socket has filled the window, and may hold more
    uint8_t ended                      # the peer has closed its side
    uint8_t failed                     # receiving has failed
    uint8_t heard                      # a first byte has come
    uint8_t first                      # that byte
    uint8_t expected                   # what it must be to be passed on; 0: anything
    # output
    uint8_t *batch                     # owned: records of this write; NULL: each leaves by itself
    uint32_t batch_bytes
    uint32_t batch_capacity
    uint8_t *unsent                    # owned: records that the socket has not taken; NULL: none
    uint32_t unsent_at
    uint32_t unsent_bytes
    uint8_t held                       # the socket was not asked yet: answers that OpenSSL gave while the window was open

cdef BIO *socket_bio(TlsSocket *end) noexcept nogil                    # one reference; NULL: no memory. `end` is borrowed and must outlive it
cdef void socket_free(TlsSocket *end) noexcept nogil

# Receives behind the first RECORD_MOST bytes of `room`: plaintext is shorter than its records, so that written from the start of `room` it never overtakes
# them, whatever OpenSSL held before (less than one record). Too small a room: no window.
cdef void in_open(TlsSocket *end, uint8_t *room, uint32_t n) noexcept nogil
cdef void in_close(TlsSocket *end) noexcept nogil

cdef void out_begin(TlsSocket *end, uint32_t records) noexcept nogil   # up to so many records are put together; without memory each leaves by itself
cdef bint out_room(const TlsSocket *end) noexcept nogil                # for a further record
cdef int out_end(TlsSocket *end) noexcept nogil                        # sends them. ST_OK; ST_AGAIN: some are unsent; ST_CLOSED: the socket is dead
cdef int out_flush(TlsSocket *end) noexcept nogil                      # sends what is unsent; as out_end
cdef bint out_stuck(const TlsSocket *end) noexcept nogil               # more is unsent than may be: nothing is to be read before it has left
