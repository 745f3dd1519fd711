"""Hist: a histogram of durations with buckets of equal relative width, HDR style: 128 for each power of two, so that a value is known within 1 %.

One writer; any thread may read while it counts.
"""

from libc.stdint cimport uint32_t, uint64_t

cdef extern from * nogil:
    int leading_zeros "__builtin_clzll"(unsigned long long value) noexcept

cdef enum:
    HIST_SUB_BITS = 8                  # below 256 ns every nanosecond is a bucket
    HIST_BUCKETS = 8704                # up to 2^41 ns, half an hour; longer ones count in the last

cdef struct Hist:
    uint64_t counts[8704]

cdef inline uint32_t hist_index(uint64_t ns) noexcept nogil:
    """The bucket of a duration."""
    cdef uint32_t shift, index
    if ns < 1 << HIST_SUB_BITS:
        return <uint32_t> ns
    shift = 64 - HIST_SUB_BITS - <uint32_t> leading_zeros(ns)
    index = (shift << HIST_SUB_BITS) + <uint32_t> (ns >> shift)
    return index if index < HIST_BUCKETS else HIST_BUCKETS - 1

cdef inline uint64_t hist_bound(uint32_t index) noexcept nogil:
    """The largest duration of a bucket, ns."""
    cdef uint32_t shift = index >> HIST_SUB_BITS
    return ((<uint64_t> (index - (shift << HIST_SUB_BITS)) + 1) << shift) - 1

cdef void hist_add(Hist *hist, uint64_t ns, uint64_t n) noexcept nogil
cdef void hist_reset(Hist *hist) noexcept nogil
