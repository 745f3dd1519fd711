"""Known: which id of the file a session or shared group of this run has, and how many deliveries hold a message.

A batch that cannot be committed is written again later, so what it changes here is noted and can be taken back with the transaction.
"""

from libc.stdint cimport int64_t, uint64_t

from mqttc.base.map cimport Map
from mqttc.base.vec cimport Vec

cdef enum:
    COUNT_MOST = 1048575               # deliveries of a message from which on they are not counted any more

cdef struct Known:                     # a session or group that rows name
    uint64_t handle
    uint64_t id
    int64_t owed                       # its deliveries in the file, committed
    int64_t owed_change                # by this batch
    int64_t joined                     # RECORD_GROUPs of a group, committed
    int64_t joined_change
    bint touched
    bint online                        # a session's client, as far as records tell
    Known *touched_next

cdef struct Names:
    Map sessions                       # handle -> Known *
    Map groups                         # group id -> Known *
    Map counts                         # message << 20 | deliveries
    Vec undo                           # Undo
    Known *touched                     # by this batch
    uint64_t next_target               # the next id for a session or group
    uint64_t lent                      # deliveries under LENT_SHIFT
    uint64_t lent_committed
    bint no_memory                     # this batch cannot be committed

cdef void names_init(Names *names) noexcept nogil
cdef void names_free(Names *names) noexcept nogil
cdef void names_undo(Names *names) noexcept nogil                                                      # this batch's changes are taken back
cdef void names_settle(Names *names) noexcept nogil                                                    # they are committed
cdef Known *known_find(Names *names, bint group, uint64_t handle) noexcept nogil
cdef Known *known_add(Names *names, bint group, uint64_t handle, uint64_t id) noexcept nogil           # for good; NULL: no memory
cdef Known *known_make(Names *names, bint group, uint64_t handle) noexcept nogil                       # found, or new; NULL: no memory, and the batch has failed
cdef Known *known_forget(Names *names, bint group, uint64_t handle) noexcept nogil                     # what it was, until the batch is committed; NULL as above, or it was not known
cdef void known_touch(Names *names, Known *known) noexcept nogil                                       # before joined_change is changed
cdef void known_owes(Names *names, Known *known, int n) noexcept nogil
cdef uint64_t count_get(Names *names, uint64_t message) noexcept nogil                                 # 0: unknown
cdef int count_set(Names *names, uint64_t message, uint64_t count) noexcept nogil                      # for good; ST_OK, ST_NO_MEMORY
cdef void count_change(Names *names, uint64_t message, uint64_t count) noexcept nogil
