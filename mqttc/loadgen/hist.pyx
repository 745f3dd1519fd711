from libc.stdint cimport uint32_t, uint64_t

from mqttc.base.types cimport atomic_store_u64_relaxed, counter_add


cdef void hist_add(Hist *hist, uint64_t ns, uint64_t n) noexcept nogil:
    counter_add(&hist.counts[hist_index(ns)], n)


cdef void hist_reset(Hist *hist) noexcept nogil:
    cdef uint32_t i
    for i in range(HIST_BUCKETS):
        atomic_store_u64_relaxed(&hist.counts[i], 0)
