"""Inbox: mail between threads. Any thread posts intrusive chains; the owner detaches the whole chain at once.

A mutex guards two pointers; nothing is allocated or freed under it. inbox_post says whether the box was empty: then, and only then, the
poster wakes the owner (one eventfd write, see inbox_wake).
"""

from libc.stdint cimport uint32_t

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_mutex_t:
        pass

cdef struct Mail:          # first member of every mail struct
    Mail *next
    uint32_t kind

cdef struct Inbox:
    pthread_mutex_t lock
    Mail *head             # under lock
    Mail *tail             # under lock
    int wake_read_fd       # in the owner's poller: an eventfd, or a pipe where there is none
    int wake_write_fd

cdef int inbox_init(Inbox *inbox) noexcept nogil                           # ST_OK or ST_ERROR (errno)
cdef void inbox_free(Inbox *inbox) noexcept nogil                          # mail left in it belongs to the caller: take it first
cdef bint inbox_post(Inbox *inbox, Mail *first, Mail *last) noexcept nogil # true: it was empty, call inbox_wake
cdef void inbox_wake(Inbox *inbox) noexcept nogil
cdef void inbox_drain_wake(Inbox *inbox) noexcept nogil                    # owner: read the wake descriptor empty
cdef Mail *inbox_take(Inbox *inbox) noexcept nogil                         # owner: the whole chain in posting order; NULL: none
cdef bint inbox_waits(Inbox *inbox) noexcept nogil                        # whether there is mail
