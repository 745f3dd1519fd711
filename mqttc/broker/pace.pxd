"""Pace: how long the journal's thread rests before it takes a batch, in nanoseconds. Pure functions of the last such rest and what came of it.

A rest costs those who wait for the batch, and saves whoever would have come a moment later a second commit, or the disk what is over by then.
"""

from libc.stdint cimport uint32_t, uint64_t

cdef enum:
    GATHER_MANY = 256                  # deliveries of a batch from which on processor time is worth more than a millisecond of theirs
    GATHER_MOST_NS = 2000000
    COMPANY_MOST_NS = 500000

# Deliveries end soon after they begin: the batch just committed rested `ns` for that, 0: not yet; of its `begun` deliveries `ended` were over.
cdef uint64_t pace_gather(uint64_t ns, uint64_t commit_ns, uint64_t begun, uint64_t ended) noexcept nogil
# The first batch after idleness rested `ns` and got `chains` of workers; `more`: others had come by the end of its commit.
cdef uint64_t pace_company(uint64_t ns, uint64_t commit_ns, uint32_t chains, bint more) noexcept nogil
