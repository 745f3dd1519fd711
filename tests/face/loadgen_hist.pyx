"""The load generator's histogram for Python."""

from libc.stdint cimport uint32_t, uint64_t

from mqttc.base.alloc cimport mem_alloc_zeroed, mem_free
from mqttc.loadgen.hist cimport HIST_BUCKETS, Hist, hist_add, hist_bound, hist_index, hist_reset


def histogram(values, bint reset=False):
    """Upper bounds of the buckets to their counts, after these durations in ns (and a reset)."""
    cdef Hist *hist = <Hist *> mem_alloc_zeroed(1, sizeof(Hist))
    cdef uint32_t i
    cdef uint64_t value
    if hist == NULL:
        raise MemoryError()
    try:
        for value in values:
            hist_add(hist, value, 1)
        if reset:
            hist_reset(hist)
        return {hist_bound(i): hist.counts[i] for i in range(HIST_BUCKETS) if hist.counts[i]}
    finally:
        mem_free(hist)


def bound_of(uint64_t value):
    """The upper bound of a duration's bucket."""
    return hist_bound(hist_index(value))
