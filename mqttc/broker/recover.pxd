"""Recover: what the journal's file holds becomes sessions, queues and retained messages again, before the threads start.

Sessions that were on line when the process ended are off line since now: their will's delay and their expiry count from the start. Times are those of the
wall clock that the file was told last, should the machine's clock stand behind it: a clock that has lost its battery makes nobody older or younger.
Messages of queues stay in the file and are read back when their client comes; those that were sent and not acknowledged, and those of shared groups, are read.
"""

from libc.stdint cimport uint64_t

from mqttc.broker.state cimport Engine

cdef struct Recovery:                  # what was found; may be read by another thread while it goes on
    uint64_t sessions
    uint64_t subscriptions
    uint64_t deliveries
    uint64_t retained
    uint64_t expired                   # sessions, deliveries and retained messages whose time was over
    uint64_t orphans                   # deliveries that belong to nothing any more

# ST_OK; ST_NO_MEMORY; ST_ERROR: why says what is wrong with the file (200 bytes). Nothing of it may be served then.
cdef int engine_recover(Engine *engine, Recovery *found, char *why) noexcept nogil
