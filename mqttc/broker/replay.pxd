"""Replay: what a crashed run left in the log (window.pxd) becomes the rows that it stands for, at the start."""

from mqttc.broker.sqlite cimport sqlite3

# Within the caller's transaction; of sessions that are there. ST_OK; ST_ERROR: sqlite3_errmsg says why; ST_LIMIT: a row of the log does not mean anything.
cdef int log_replay(sqlite3 *file) noexcept nogil
