from libc.errno cimport EAGAIN, EINTR, ENOTCONN, errno
from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcpy

from mqttc.base.alloc cimport mem_alloc, mem_free
from mqttc.base.types cimport ST_AGAIN, ST_CLOSED, ST_OK, atomic_claim_ptr, atomic_load_ptr_acquire
from mqttc.net.openssl cimport (
    BIO, BIO_CTRL_EOF, BIO_CTRL_FLUSH, BIO_METHOD, BIO_TYPE_SOURCE_SINK, BIO_clear_retry_flags, BIO_get_data, BIO_meth_free, BIO_meth_new,
    BIO_meth_set_ctrl, BIO_meth_set_read, BIO_meth_set_write, BIO_new, BIO_set_data, BIO_set_init, BIO_set_retry_read, BIO_set_retry_write,
)
from mqttc.net.transport cimport iovec

cdef extern from "<sys/types.h>" nogil:
    ctypedef long ssize_t

cdef extern from "<sys/socket.h>" nogil:
    ssize_t recv(int fd, void *out, size_t n, int flags)

cdef extern from "mqttc/net/sockets.h" nogil:
    ssize_t socket_send(int fd, const iovec *parts, int count)

cdef enum:
    UNSENT_MOST = 256 << 10            # from which OpenSSL is told that the socket is full: a peer that asks for new keys and never reads


# ---------------------------------------------------------------------------------------------- input

cdef uint32_t receive(TlsSocket *end, uint8_t *room, uint32_t n) noexcept nogil:
    """Bytes received; 0: none are there, or `ended` or `failed` says why."""
    cdef ssize_t got = recv(end.fd, room, n, 0)
    while got < 0 and errno == EINTR:
        got = recv(end.fd, room, n, 0)
    if got <= 0:
        end.ended = got == 0
        end.failed = got < 0 and errno != EAGAIN and errno != ENOTCONN
        return 0
    if not end.heard:
        end.heard = True
        end.first = room[0]
    return <uint32_t> got


cdef void in_open(TlsSocket *end, uint8_t *room, uint32_t n) noexcept nogil:
    if n < WINDOW_LEAST:
        return
    end.windowed = True
    end.window = room + RECORD_MOST
    end.window_bytes = receive(end, room + RECORD_MOST, n - RECORD_MOST)
    end.in_full = end.window_bytes == n - RECORD_MOST


cdef void in_close(TlsSocket *end) noexcept nogil:
    end.windowed = False
    end.in_full = False
    end.window = NULL
    end.window_bytes = 0


# ---------------------------------------------------------------------------------------------- output

cdef uint32_t send_now(TlsSocket *end, const uint8_t *bytes, uint32_t n, bint *dead) noexcept nogil:
    """Bytes that the socket takes."""
    cdef uint32_t sent = 0
    cdef ssize_t taken
    cdef iovec part
    while sent < n:
        part.iov_base = <uint8_t *> bytes + sent
        part.iov_len = n - sent
        taken = socket_send(end.fd, &part, 1)
        if taken >= 0:
            sent += <uint32_t> taken
        elif errno == EAGAIN or errno == ENOTCONN:         # still connecting; a dead socket reports hangup
            break
        elif errno != EINTR:
            dead[0] = True
            break
    return sent


cdef bint keep(TlsSocket *end, const uint8_t *bytes, uint32_t n) noexcept nogil:
    """Behind what is unsent. False: no memory."""
    cdef uint32_t before = end.unsent_bytes - end.unsent_at
    cdef uint8_t *room = <uint8_t *> mem_alloc(before + n)
    if room == NULL:
        return False
    if before:
        memcpy(room, end.unsent + end.unsent_at, before)
    memcpy(room + before, bytes, n)
    mem_free(end.unsent)
    end.unsent = room
    end.unsent_at = 0
    end.unsent_bytes = before + n
    return True


cdef int out_flush(TlsSocket *end) noexcept nogil:
    cdef bint dead = False
    if end.unsent == NULL:
        return ST_OK
    end.held = False
    end.unsent_at += send_now(end, end.unsent + end.unsent_at, end.unsent_bytes - end.unsent_at, &dead)
    if dead:
        return ST_CLOSED
    if end.unsent_at < end.unsent_bytes:
        return ST_AGAIN
    mem_free(end.unsent)
    end.unsent = NULL
    end.unsent_at = 0
    end.unsent_bytes = 0
    return ST_OK


cdef int out_put(TlsSocket *end, const uint8_t *bytes, uint32_t n) noexcept nogil:
    """Sends, and keeps the rest. ST_OK; ST_AGAIN: some is kept; ST_CLOSED."""
    cdef uint32_t sent = 0
    cdef bint dead = False
    cdef int status
    if end.held:                       # together
        return out_flush(end) if keep(end, bytes, n) else ST_CLOSED
    status = out_flush(end)
    if status == ST_CLOSED:
        return status
    if status == ST_OK:
        sent = send_now(end, bytes, n, &dead)
    if dead:
        return ST_CLOSED
    if sent == n:
        return ST_OK
    return ST_AGAIN if keep(end, bytes + sent, n - sent) else ST_CLOSED


cdef void out_begin(TlsSocket *end, uint32_t records) noexcept nogil:
    if records > OUT_BATCH_RECORDS:
        records = OUT_BATCH_RECORDS
    end.batch = <uint8_t *> mem_alloc(records * RECORD_MOST)
    end.batch_capacity = records * RECORD_MOST if end.batch != NULL else 0
    end.batch_bytes = 0


cdef bint out_room(const TlsSocket *end) noexcept nogil:
    return end.batch == NULL or end.batch_capacity - end.batch_bytes >= RECORD_MOST


cdef bint out_stuck(const TlsSocket *end) noexcept nogil:
    return end.unsent_bytes - end.unsent_at > UNSENT_MOST


cdef int out_end(TlsSocket *end) noexcept nogil:
    cdef uint8_t *batch = end.batch
    cdef uint32_t n = end.batch_bytes
    cdef int status
    if batch == NULL:
        return ST_OK if end.unsent == NULL else ST_AGAIN
    end.batch = NULL
    end.batch_bytes = 0
    status = out_put(end, batch, n) if n else out_flush(end)
    mem_free(batch)
    return status


cdef void socket_free(TlsSocket *end) noexcept nogil:
    mem_free(end.batch)
    mem_free(end.unsent)
    end.batch = NULL
    end.unsent = NULL


# ---------------------------------------------------------------------------------------------- what OpenSSL sees

cdef int bio_read(BIO *bio, char *out, int n) noexcept nogil:
    cdef TlsSocket *end = <TlsSocket *> BIO_get_data(bio)
    cdef uint32_t got
    BIO_clear_retry_flags(bio)
    if end.windowed:
        got = end.window_bytes if end.window_bytes < <uint32_t> n else <uint32_t> n
    else:
        got = receive(end, <uint8_t *> out, <uint32_t> n)
    if end.heard and end.expected and end.first != end.expected:
        return -1
    if got == 0:
        if end.ended:
            return 0
        if not end.failed:
            BIO_set_retry_read(bio)
        return -1
    if end.windowed:
        memcpy(out, end.window, got)
        end.window += got
        end.window_bytes -= got
    return <int> got


cdef int bio_write(BIO *bio, const char *bytes, int n) noexcept nogil:
    cdef TlsSocket *end = <TlsSocket *> BIO_get_data(bio)
    BIO_clear_retry_flags(bio)
    if end.batch != NULL and end.batch_capacity - end.batch_bytes >= <uint32_t> n:
        memcpy(end.batch + end.batch_bytes, bytes, <size_t> n)
        end.batch_bytes += <uint32_t> n
        return n
    if end.batch_bytes:                # what came before leaves before
        if out_put(end, end.batch, end.batch_bytes) == ST_CLOSED:
            return -1
        end.batch_bytes = 0
    if end.windowed:                   # a window is drained in any case, its answers are few, and they leave together
        end.held |= end.unsent == NULL
        return n if keep(end, <const uint8_t *> bytes, <uint32_t> n) else -1
    if out_stuck(end) and out_flush(end) == ST_AGAIN:
        BIO_set_retry_write(bio)
        return -1
    return n if out_put(end, <const uint8_t *> bytes, <uint32_t> n) != ST_CLOSED else -1


cdef long bio_ctrl(BIO *bio, int command, long argument, void *pointer) noexcept nogil:
    if command == BIO_CTRL_EOF:
        return (<TlsSocket *> BIO_get_data(bio)).ended
    return command == BIO_CTRL_FLUSH       # everything leaves as soon as it can


cdef void *made                        # the BIO_METHOD, for all threads and for good


cdef BIO_METHOD *socket_method() noexcept nogil:
    """NULL: no memory."""
    cdef BIO_METHOD *method = <BIO_METHOD *> atomic_load_ptr_acquire(&made)
    if method != NULL:
        return method
    method = BIO_meth_new(BIO_TYPE_SOURCE_SINK, "mqttc socket")
    if method == NULL:
        return NULL
    BIO_meth_set_read(method, bio_read)
    BIO_meth_set_write(method, bio_write)
    BIO_meth_set_ctrl(method, bio_ctrl)
    if not atomic_claim_ptr(&made, method):
        BIO_meth_free(method)
    return <BIO_METHOD *> atomic_load_ptr_acquire(&made)


cdef BIO *socket_bio(TlsSocket *end) noexcept nogil:
    cdef BIO_METHOD *method = socket_method()
    cdef BIO *bio = BIO_new(method) if method != NULL else NULL
    if bio != NULL:
        BIO_set_data(bio, end)
        BIO_set_init(bio, 1)
    return bio
