"""Words that every floor shares: spans, status codes, atomics.

Status is an int: 0 is done, above 0 is flow (come again, need more bytes, parked), below 0 is an error. Values from -255 to -128 are a
negated MQTT reason code (a decoder returns -0x81 for a Malformed Packet), so that no layer translates.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

cdef enum Status:
    ST_OK = 0
    ST_AGAIN = 1          # would block, come again
    ST_NEED_MORE = 2      # the bytes at hand end inside an item
    ST_PARKED = 3         # the answer comes by mail
    ST_NO_MEMORY = -1
    ST_CLOSED = -2        # the peer is gone
    ST_ERROR = -3         # see errno or the out parameter
    ST_LIMIT = -4         # a named limit was met
    ST_NOT_FOUND = -5

cdef extern from "mqttc/base/native.h" nogil:
    ctypedef struct Span:
        const uint8_t *p
        uint32_t n
    Span span_make(const void *p, size_t n) noexcept
    bint span_equal(Span a, Span b) noexcept
    bint likely "MQTTC_LIKELY" (bint x) noexcept
    bint unlikely "MQTTC_UNLIKELY" (bint x) noexcept
    uint32_t atomic_load_u32_relaxed(const uint32_t *p) noexcept
    uint32_t atomic_load_u32_acquire(const uint32_t *p) noexcept
    void atomic_store_u32_relaxed(uint32_t *p, uint32_t v) noexcept
    void atomic_store_u32_release(uint32_t *p, uint32_t v) noexcept
    uint32_t atomic_add_u32_relaxed(uint32_t *p, uint32_t v) noexcept
    uint32_t atomic_sub_u32_acq_rel(uint32_t *p, uint32_t v) noexcept
    uint64_t atomic_load_u64_relaxed(const uint64_t *p) noexcept
    uint64_t atomic_load_u64_acquire(const uint64_t *p) noexcept
    void atomic_store_u64_relaxed(uint64_t *p, uint64_t v) noexcept
    void atomic_store_u64_release(uint64_t *p, uint64_t v) noexcept
    uint64_t atomic_add_u64_relaxed(uint64_t *p, uint64_t v) noexcept
    void *atomic_load_ptr_acquire(void *const *p) noexcept
    bint atomic_claim_ptr(void **p, void *v) noexcept           # sets it if it is NULL; False: another was first
    int64_t atomic_load_i64_relaxed(const int64_t *p) noexcept
    void atomic_store_i64_relaxed(int64_t *p, int64_t v) noexcept
    int64_t atomic_add_i64_relaxed(int64_t *p, int64_t v) noexcept
    void counter_add(uint64_t *p, uint64_t v) noexcept
    void counter_sub(uint64_t *p, uint64_t v) noexcept
    void thread_slack(unsigned long ns) noexcept
