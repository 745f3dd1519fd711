"""Face of what crosses threads: inbox, log ring and message blocks. The loops run without the GIL, so that threads really meet."""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memset

from mqttc.base.alloc cimport mem_alloc, mem_alloc_zeroed, mem_free
from mqttc.base.inbox cimport Inbox, Mail, inbox_drain_wake, inbox_free, inbox_init, inbox_post, inbox_take, inbox_wake
from mqttc.base.logring cimport (
    LogRecord, LogRing, log_text, logring_build, logring_drain_wake, logring_dropped, logring_fd, logring_free, logring_pop, logring_push,
    logring_wake,
)
from mqttc.base.msg cimport (
    Msg, MsgPool, msg_alloc, msg_come_home, msg_data, msg_drop, msg_payload, msg_properties, msg_share, msg_take_strays, msg_topic, pool_free,
    pool_init,
)
from mqttc.base.types cimport ST_OK, Span, span_make

cdef extern from "mqttc/base/native.h" nogil:
    int wake_open_pipe(int *read_fd, int *write_fd) noexcept
    void wake_close(int *read_fd, int *write_fd) noexcept

cdef extern from "<poll.h>" nogil:
    cdef struct pollfd:
        int fd
        short events
        short revents
    enum:
        POLLIN
    int poll(pollfd *fds, unsigned long n, int timeout_ms) noexcept


cdef bint readable_within(int fd, int timeout_ms) noexcept nogil:
    cdef pollfd waited
    waited.fd = fd
    waited.events = POLLIN
    waited.revents = 0
    return poll(&waited, 1, timeout_ms) == 1


cdef struct Letter:
    Mail mail
    uint32_t sender
    uint32_t number


cdef class InboxFace:
    cdef Inbox inbox

    def __cinit__(self, bint over_pipe=False):
        """over_pipe: with the descriptors of a system that has no eventfd."""
        if inbox_init(&self.inbox) != ST_OK:
            raise OSError("inbox_init")
        if over_pipe:
            wake_close(&self.inbox.wake_read_fd, &self.inbox.wake_write_fd)
            if wake_open_pipe(&self.inbox.wake_read_fd, &self.inbox.wake_write_fd) != 0:
                raise OSError("wake_open_pipe")

    def wake(self, uint32_t times) -> None:
        for _ in range(times):
            inbox_wake(&self.inbox)

    def __dealloc__(self):
        cdef Mail *mail = inbox_take(&self.inbox)
        cdef Mail *following
        while mail != NULL:
            following = mail.next
            mem_free(mail)
            mail = following
        inbox_free(&self.inbox)

    @property
    def fds(self) -> tuple:
        return self.inbox.wake_read_fd, self.inbox.wake_write_fd

    def readable(self, int timeout_ms=0) -> bool:
        return readable_within(self.inbox.wake_read_fd, timeout_ms)

    def drain_wake(self) -> None:
        inbox_drain_wake(&self.inbox)

    def post(self, uint32_t sender, uint32_t first_number, uint32_t count, uint32_t batch) -> int:
        """Posts count letters in chains of batch, and wakes whenever the box was empty; how often that was. -1: no memory."""
        cdef int64_t woken = 0
        with nogil:
            woken = letters_post(&self.inbox, sender, first_number, count, batch)
        return woken

    def take(self) -> list:
        cdef Mail *mail = inbox_take(&self.inbox)
        cdef Mail *following
        taken = []
        while mail != NULL:
            taken.append(((<Letter *> mail).sender, (<Letter *> mail).number))
            following = mail.next
            mem_free(mail)
            mail = following
        return taken

    def receive(self, uint32_t senders, uint64_t expected, int timeout_ms) -> tuple:
        """Waits on the descriptor as a reactor does. (letters received, letters out of their sender's order)"""
        cdef uint64_t received = 0
        cdef uint64_t disordered = 0
        cdef uint32_t *next_number = <uint32_t *> mem_alloc_zeroed(senders, sizeof(uint32_t))
        cdef Mail *mail
        cdef Letter *letter
        if next_number == NULL:
            raise MemoryError
        with nogil:
            while received < expected and readable_within(self.inbox.wake_read_fd, timeout_ms):
                inbox_drain_wake(&self.inbox)
                mail = inbox_take(&self.inbox)
                while mail != NULL:
                    letter = <Letter *> mail
                    mail = mail.next
                    if letter.sender >= senders or letter.number != next_number[letter.sender]:
                        disordered += 1
                    else:
                        next_number[letter.sender] += 1
                    received += 1
                    mem_free(letter)
        mem_free(next_number)
        return received, disordered


cdef int64_t letters_post(Inbox *inbox, uint32_t sender, uint32_t first_number, uint32_t count, uint32_t batch) noexcept nogil:
    cdef int64_t woken = 0
    cdef uint32_t sent = 0
    cdef uint32_t i
    cdef Letter *letter
    cdef Mail *first
    cdef Mail *last
    while sent < count:
        first = NULL
        last = NULL
        for i in range(batch):
            if sent == count:
                break
            letter = <Letter *> mem_alloc(sizeof(Letter))
            if letter == NULL:
                return -1
            letter.sender = sender
            letter.number = first_number + sent
            letter.mail.next = NULL
            if first == NULL:
                first = &letter.mail
            else:
                last.next = &letter.mail
            last = &letter.mail
            sent += 1
        if inbox_post(inbox, first, last):
            inbox_wake(inbox)
            woken += 1
    return woken


cdef class LogRingFace:
    cdef LogRing *ring

    def __cinit__(self, uint32_t capacity):
        self.ring = logring_build(capacity)
        if self.ring == NULL:
            raise MemoryError

    def __dealloc__(self):
        logring_free(self.ring)

    @property
    def fd(self) -> int:
        return logring_fd(self.ring)

    @property
    def dropped(self) -> int:
        return logring_dropped(self.ring)

    def readable(self, int timeout_ms=0) -> bool:
        return readable_within(logring_fd(self.ring), timeout_ms)

    def wake(self) -> None:
        logring_wake(self.ring)

    def drain_wake(self) -> None:
        logring_drain_wake(self.ring)

    def push(self, uint16_t worker, int64_t first_number, uint32_t count) -> int:
        """Pushes count records that carry their number; how many found room."""
        cdef LogRecord record
        cdef uint32_t pushed = 0
        cdef uint32_t i
        with nogil:
            memset(&record, 0, sizeof(record))
            record.worker = worker
            for i in range(count):
                record.wall_ms = first_number + i
                memset(record.detail, <int> ((first_number + i) & 0xFF), sizeof(record.detail))
                pushed += logring_push(self.ring, &record)
        return pushed

    def pop(self) -> tuple | None:
        cdef LogRecord record
        if not logring_pop(self.ring, &record):
            return None
        return record.worker, record.wall_ms

    def receive(self, uint32_t workers, uint64_t produced, int timeout_ms) -> tuple:
        """Until received + dropped is what was produced, or nothing comes in time: (received, records disordered or torn)"""
        cdef uint64_t received = 0
        cdef uint64_t wrong = 0
        cdef int64_t *newest = <int64_t *> mem_alloc_zeroed(workers, sizeof(int64_t))
        cdef LogRecord record
        cdef uint32_t i
        if newest == NULL:
            raise MemoryError
        with nogil:
            while received + logring_dropped(self.ring) < produced:
                if not readable_within(logring_fd(self.ring), timeout_ms):
                    break
                logring_drain_wake(self.ring)
                while logring_pop(self.ring, &record):
                    received += 1
                    if record.worker >= workers or record.wall_ms <= newest[record.worker]:
                        wrong += 1
                        continue
                    newest[record.worker] = record.wall_ms
                    for i in range(sizeof(record.detail)):
                        if record.detail[i] != (record.wall_ms & 0xFF):
                            wrong += 1
                            break
        mem_free(newest)
        return received, wrong


def log_text_cut(bytes text, uint32_t room_capacity) -> bytes:
    cdef uint8_t room[256]
    cdef uint8_t room_bytes = 77
    memset(room, 0xEE, sizeof(room))
    log_text(room, &room_bytes, room_capacity, span_make(<const char *> text, len(text)))
    for i in range(room_bytes, 256):
        assert room[i] == 0xEE
    return bytes(room[:room_bytes])


cdef class Block:
    """A reference that the test must give up by drop()."""
    cdef Msg *msg

    @property
    def fields(self) -> dict:
        cdef Msg *msg = self.msg
        return {
            "expires_at_ms": msg.expires_at_ms, "publisher": msg.publisher, "topic_offset": msg.topic_offset,
            "properties_offset": msg.properties_offset, "payload_offset": msg.payload_offset, "properties_bytes": msg.properties_bytes,
            "payload_bytes": msg.payload_bytes, "topic_bytes": msg.topic_bytes, "qos": msg.qos, "retain": msg.retain,
        }

    @property
    def address(self) -> int:
        return <size_t> self.msg

    @property
    def capacity(self) -> int:
        return self.msg.capacity

    @property
    def size_class(self) -> int:
        return self.msg.size_class

    @property
    def owner(self) -> int:
        return self.msg.owner

    @property
    def refs(self) -> int:
        return self.msg.refs

    def share(self, uint32_t n) -> None:
        msg_share(self.msg, n)

    def fill(self, int value) -> None:
        """Every byte of the room, and the topic in front: so that a sanitizer sees a room that is too small."""
        memset(msg_data(self.msg), value, self.msg.capacity)

    def runs(self, bytes topic, bytes properties, bytes payload) -> tuple:
        cdef Msg *msg = self.msg
        data = topic + properties + payload
        assert len(data) <= msg.capacity
        for i in range(len(data)):
            msg_data(msg)[i] = <uint8_t> data[i]
        msg.topic_offset, msg.topic_bytes = 0, len(topic)
        msg.properties_offset, msg.properties_bytes = len(topic), len(properties)
        msg.payload_offset, msg.payload_bytes = len(topic) + len(properties), len(payload)
        cdef Span t = msg_topic(msg)
        cdef Span q = msg_properties(msg)
        cdef Span p = msg_payload(msg)
        return t.p[:t.n], q.p[:q.n], p.p[:p.n]


cdef class PoolFace:
    cdef MsgPool pool

    def __cinit__(self, uint16_t owner, uint32_t owners_count):
        if pool_init(&self.pool, owner, owners_count) != ST_OK:
            raise MemoryError

    def __dealloc__(self):
        pool_free(&self.pool)

    def alloc(self, uint32_t capacity) -> Block | None:
        cdef Block block = Block()
        block.msg = msg_alloc(&self.pool, capacity)
        return None if block.msg == NULL else block

    def drop(self, Block block) -> None:
        msg_drop(&self.pool, block.msg)

    def strays(self, uint16_t owner) -> int:
        return self.pool.stray_count[owner]

    def mail_home(self, PoolFace home) -> int:
        cdef uint32_t count = 0
        cdef Msg *chain = msg_take_strays(&self.pool, home.pool.owner, &count)
        msg_come_home(&home.pool, chain)
        return count

    def cached(self) -> list:
        return [self.pool.free_count[i] for i in range(8)]

    @property
    def made(self) -> int:
        return self.pool.made

    @property
    def freed(self) -> int:
        return self.pool.freed


cdef struct Parcel:                # mail that carries one reference, or a chain of dead blocks
    Mail mail
    Msg *msg

cdef enum:
    PARCEL_REFERENCE = 1
    PARCEL_STRAYS = 2


cdef struct Peer:
    MsgPool pool
    Inbox inbox


cdef int parcel_post(Peer *to, uint32_t kind, Msg *msg) noexcept nogil:
    cdef Parcel *parcel = <Parcel *> mem_alloc(sizeof(Parcel))
    if parcel == NULL:
        return -1
    parcel.mail.kind = kind
    parcel.msg = msg
    if inbox_post(&to.inbox, &parcel.mail, &parcel.mail):
        inbox_wake(&to.inbox)
    return 0


cdef class Exchange:
    """Workers that publish to one another: what the broker does with blocks, without the broker."""
    cdef Peer *peers
    cdef uint32_t count

    def __cinit__(self, uint16_t count):
        cdef uint16_t i
        self.peers = <Peer *> mem_alloc_zeroed(count, sizeof(Peer))
        if self.peers == NULL:
            raise MemoryError
        self.count = count
        for i in range(count):
            if pool_init(&self.peers[i].pool, i, count) != ST_OK or inbox_init(&self.peers[i].inbox) != ST_OK:
                raise MemoryError

    def __dealloc__(self):
        cdef uint32_t i
        if self.peers == NULL:
            return
        for i in range(self.count):
            pool_free(&self.peers[i].pool)
            inbox_free(&self.peers[i].inbox)
        mem_free(self.peers)

    def run(self, uint16_t me, uint32_t messages, int timeout_ms) -> tuple:
        """Makes so many blocks, gives a reference to every peer and drops its own; reads and drops what the peers send until all has come.
        (references received, blocks with wrong contents)"""
        cdef Peer *self_ = &self.peers[me]
        cdef uint64_t expected = <uint64_t> messages * (self.count - 1)
        cdef uint64_t received = 0
        cdef uint64_t wrong = 0
        cdef uint32_t sent = 0
        cdef uint32_t i
        cdef Msg *msg
        with nogil:
            while sent < messages or received < expected:
                if sent < messages:
                    msg = msg_alloc(&self_.pool, 1 + (sent * 37) % 900)
                    if msg == NULL:
                        wrong += 1
                        break
                    msg.payload_bytes = 1 + (sent * 37) % 900
                    memset(msg_data(msg), <int> (sent & 0xFF), msg.payload_bytes)
                    msg_share(msg, self.count - 1)
                    for i in range(self.count):
                        if i != me and parcel_post(&self.peers[i], PARCEL_REFERENCE, msg) != 0:
                            wrong += 1
                    msg_drop(&self_.pool, msg)
                    sent += 1
                elif not readable_within(self_.inbox.wake_read_fd, timeout_ms):
                    break
                if sent % 16 == 0 or sent == messages:
                    exchange_read(self.peers, self.count, self_, &received, &wrong)
        return received, wrong

    def settle(self) -> None:
        """After all threads are done: the blocks that are still on their way come home."""
        cdef uint64_t received = 0
        cdef uint64_t wrong = 0
        for _ in range(2):
            for i in range(self.count):
                exchange_read(self.peers, self.count, &self.peers[i], &received, &wrong)
        assert received == 0 and wrong == 0

    def counters(self) -> list:
        return [(self.peers[i].pool.made, self.peers[i].pool.freed) for i in range(self.count)]

    def cached(self) -> list:
        return [sum(self.peers[i].pool.free_count[k] for k in range(8)) for i in range(self.count)]


cdef void exchange_read(Peer *peers, uint32_t count, Peer *me, uint64_t *received, uint64_t *wrong) noexcept nogil:
    cdef Parcel *parcel
    cdef Mail *mail
    cdef Msg *strays
    cdef Span payload
    cdef uint32_t i
    inbox_drain_wake(&me.inbox)
    mail = inbox_take(&me.inbox)
    while mail != NULL:
        parcel = <Parcel *> mail
        mail = mail.next
        if parcel.mail.kind == PARCEL_STRAYS:
            msg_come_home(&me.pool, parcel.msg)
        else:
            received[0] += 1
            payload = msg_payload(parcel.msg)
            for i in range(payload.n):
                if payload.p[i] != payload.p[0]:
                    wrong[0] += 1
                    break
            msg_drop(&me.pool, parcel.msg)
        mem_free(parcel)
    for i in range(count):
        strays = msg_take_strays(&me.pool, <uint16_t> i, NULL)
        if strays != NULL and parcel_post(&peers[i], PARCEL_STRAYS, strays) != 0:
            wrong[0] += 1
