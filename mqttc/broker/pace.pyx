from libc.stdint cimport uint32_t, uint64_t


cdef uint64_t pace_gather(uint64_t ns, uint64_t commit_ns, uint64_t begun, uint64_t ended) noexcept nogil:
    """Where receivers are on line, a delivery is over a moment after it began, and one whose end comes into its own batch is never written.

    As long as a commit takes, so that no acknowledgement waits for more than three. Where batches are large, processor time is short, and what is written in
    vain costs most of it: too few were over, so the rest grows; nearly all were, so a shorter one may do. Where the longest is in vain (receivers far away) it
    begins again."""
    cdef uint64_t least = commit_ns if commit_ns < GATHER_MOST_NS else GATHER_MOST_NS
    if ns == 0 or begun < GATHER_MANY or ns == GATHER_MOST_NS and 2 * ended < begun:
        return least
    if 8 * ended > 7 * begun:
        return ns - ns // 64
    ns += ns // 8
    return ns if ns < GATHER_MOST_NS else GATHER_MOST_NS


cdef uint64_t pace_company(uint64_t ns, uint64_t commit_ns, uint32_t chains, bint more) noexcept nogil:
    """Publishers that speak at the same moment are heard one after the other: a batch that is taken at the first word lets the others wait for two commits
    instead of one.

    Where that happened the next rests longer, at most for half a commit, otherwise a little less. After one that rested in vain it is much less, in the end
    none: a publisher alone, who sends when he is acknowledged, loses nothing."""
    cdef uint64_t most = commit_ns // 2 if commit_ns // 2 < COMPANY_MOST_NS else COMPANY_MOST_NS
    if more:
        ns = ns * 2 if ns else commit_ns // 8
    elif chains == 1:
        ns = ns // 2 if ns > commit_ns // 8 else 0
    else:
        ns -= ns // 64
    return ns if ns < most else most
