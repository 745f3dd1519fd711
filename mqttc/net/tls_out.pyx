from libc.errno cimport EAGAIN, EINTR, ENOTCONN, errno
from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcpy

from mqttc.base.alloc cimport mem_alloc, mem_free
from mqttc.base.types cimport ST_AGAIN, ST_CLOSED, ST_OK, atomic_claim_ptr, atomic_load_ptr_acquire
from mqttc.net.openssl cimport (
    BIO, BIO_CTRL_FLUSH, BIO_METHOD, BIO_TYPE_SOURCE_SINK, BIO_clear_retry_flags, BIO_get_data, BIO_meth_free, BIO_meth_new, BIO_meth_set_ctrl,
    BIO_meth_set_write, BIO_new, BIO_set_data, BIO_set_init, BIO_set_retry_write,
)
from mqttc.net.transport cimport iovec

cdef extern from "<sys/types.h>" nogil:
    ctypedef long ssize_t

cdef extern from "mqttc/net/sockets.h" nogil:
    ssize_t socket_send(int fd, const iovec *parts, int count)

cdef enum:
    UNSENT_MOST = 256 << 10            # from which OpenSSL is told that the socket is full: a peer that asks for new keys and never reads


cdef uint32_t send_now(TlsOut *out, const uint8_t *bytes, uint32_t n, bint *dead) noexcept nogil:
    """Bytes that the socket takes."""
    cdef uint32_t sent = 0
    cdef ssize_t taken
    cdef iovec part
    while sent < n:
        part.iov_base = <uint8_t *> bytes + sent
        part.iov_len = n - sent
        taken = socket_send(out.fd, &part, 1)
        if taken >= 0:
            sent += <uint32_t> taken
        elif errno == EAGAIN or errno == ENOTCONN:         # still connecting; a dead socket reports hangup
            break
        elif errno != EINTR:
            dead[0] = True
            break
    return sent


cdef bint keep(TlsOut *out, const uint8_t *bytes, uint32_t n) noexcept nogil:
    """Behind what is unsent. False: no memory."""
    cdef uint32_t before = out.unsent_bytes - out.unsent_at
    cdef uint8_t *room = <uint8_t *> mem_alloc(before + n)
    if room == NULL:
        return False
    if before:
        memcpy(room, out.unsent + out.unsent_at, before)
    memcpy(room + before, bytes, n)
    mem_free(out.unsent)
    out.unsent = room
    out.unsent_at = 0
    out.unsent_bytes = before + n
    return True


cdef int out_flush(TlsOut *out) noexcept nogil:
    cdef bint dead = False
    if out.unsent == NULL:
        return ST_OK
    out.unsent_at += send_now(out, out.unsent + out.unsent_at, out.unsent_bytes - out.unsent_at, &dead)
    if dead:
        return ST_CLOSED
    if out.unsent_at < out.unsent_bytes:
        return ST_AGAIN
    mem_free(out.unsent)
    out.unsent = NULL
    out.unsent_at = 0
    out.unsent_bytes = 0
    return ST_OK


cdef int out_put(TlsOut *out, const uint8_t *bytes, uint32_t n) noexcept nogil:
    """Sends, and keeps the rest. ST_OK; ST_AGAIN: some is kept; ST_CLOSED."""
    cdef uint32_t sent = 0
    cdef bint dead = False
    cdef int status = out_flush(out)
    if status == ST_CLOSED:
        return status
    if status == ST_OK:
        sent = send_now(out, bytes, n, &dead)
    if dead:
        return ST_CLOSED
    if sent == n:
        return ST_OK
    return ST_AGAIN if keep(out, bytes + sent, n - sent) else ST_CLOSED


cdef void out_begin(TlsOut *out, uint32_t records) noexcept nogil:
    if records > OUT_BATCH_RECORDS:
        records = OUT_BATCH_RECORDS
    out.batch = <uint8_t *> mem_alloc(records * OUT_RECORD_MOST)
    out.batch_capacity = records * OUT_RECORD_MOST if out.batch != NULL else 0
    out.batch_bytes = 0


cdef bint out_room(const TlsOut *out) noexcept nogil:
    return out.batch == NULL or out.batch_capacity - out.batch_bytes >= OUT_RECORD_MOST


cdef int out_end(TlsOut *out) noexcept nogil:
    cdef uint8_t *batch = out.batch
    cdef uint32_t n = out.batch_bytes
    cdef int status
    if batch == NULL:
        return ST_OK if out.unsent == NULL else ST_AGAIN
    out.batch = NULL
    out.batch_bytes = 0
    status = out_put(out, batch, n) if n else out_flush(out)
    mem_free(batch)
    return status


cdef void out_free(TlsOut *out) noexcept nogil:
    mem_free(out.batch)
    mem_free(out.unsent)
    out.batch = NULL
    out.unsent = NULL


# ---------------------------------------------------------------------------------------------- what OpenSSL sees

cdef int bio_write(BIO *bio, const char *bytes, int n) noexcept nogil:
    cdef TlsOut *out = <TlsOut *> BIO_get_data(bio)
    BIO_clear_retry_flags(bio)
    if out.batch != NULL and out.batch_capacity - out.batch_bytes >= <uint32_t> n:
        memcpy(out.batch + out.batch_bytes, bytes, <size_t> n)
        out.batch_bytes += <uint32_t> n
        return n
    if out.batch_bytes:                # what came before leaves before
        if out_put(out, out.batch, out.batch_bytes) == ST_CLOSED:
            return -1
        out.batch_bytes = 0
    if out.unsent_bytes - out.unsent_at > UNSENT_MOST and out_flush(out) == ST_AGAIN:
        BIO_set_retry_write(bio)
        return -1
    return n if out_put(out, <const uint8_t *> bytes, <uint32_t> n) != ST_CLOSED else -1


cdef long bio_ctrl(BIO *bio, int command, long argument, void *pointer) noexcept nogil:
    return command == BIO_CTRL_FLUSH       # everything leaves as soon as it can


cdef void *made                        # the BIO_METHOD, for all threads and for good


cdef BIO_METHOD *records_method() noexcept nogil:
    """NULL: no memory."""
    cdef BIO_METHOD *method = <BIO_METHOD *> atomic_load_ptr_acquire(&made)
    if method != NULL:
        return method
    method = BIO_meth_new(BIO_TYPE_SOURCE_SINK, "mqttc records")
    if method == NULL:
        return NULL
    BIO_meth_set_write(method, bio_write)
    BIO_meth_set_ctrl(method, bio_ctrl)
    if not atomic_claim_ptr(&made, method):
        BIO_meth_free(method)
    return <BIO_METHOD *> atomic_load_ptr_acquire(&made)


cdef BIO *out_bio(TlsOut *out) noexcept nogil:
    cdef BIO_METHOD *method = records_method()
    cdef BIO *bio = BIO_new(method) if method != NULL else NULL
    if bio != NULL:
        BIO_set_data(bio, out)
        BIO_set_init(bio, 1)
    return bio
