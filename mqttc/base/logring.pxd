"""Log ring: what workers have to say, for the control plane. A bounded ring of fixed-size records under a mutex; when it is full the record is
dropped and counted. Never blocks longer than one copy; the reader is woken by an eventfd when the ring was empty. A reader
drains the descriptor first and then pops until false: a record that comes between makes it readable again."""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from mqttc.base.types cimport Span

cdef struct LogRecord:
    int64_t wall_ms
    uint16_t event             # an enum of the writer's floor
    uint8_t level              # 10 debug, 20 info, 30 warning, 40 error
    uint8_t reason             # MQTT reason code, 0: none
    uint16_t worker
    uint16_t listener
    uint8_t client_id_bytes    # truncated to the room below
    uint8_t peer_bytes
    uint8_t detail_bytes
    uint8_t client_id[64]
    uint8_t peer[56]
    uint8_t detail[112]

cdef struct LogRing            # private layout: see logring.pyx

cdef LogRing *logring_build(uint32_t capacity) noexcept nogil              # NULL: no memory or no descriptor
cdef void logring_free(LogRing *ring) noexcept nogil
cdef void logring_abandon(LogRing *ring) noexcept nogil                    # in a forked child: closes its copies of the descriptors, touches nothing else
cdef bint logring_push(LogRing *ring, const LogRecord *record) noexcept nogil     # false: full, counted; any thread
cdef bint logring_pop(LogRing *ring, LogRecord *out) noexcept nogil               # reader; false: empty
cdef int logring_fd(const LogRing *ring) noexcept nogil                           # readable when records (or questions) came
cdef void logring_wake(LogRing *ring) noexcept nogil                              # any thread: make the descriptor readable (questions wait)
cdef void logring_drain_wake(LogRing *ring) noexcept nogil                        # reader
cdef uint64_t logring_dropped(const LogRing *ring) noexcept nogil
cdef void log_text(uint8_t *room, uint8_t *room_bytes, uint32_t room_capacity, Span text) noexcept nogil    # copy, truncated at a UTF-8 border
