"""Worker and engine: threads, hooks of the reactor, start and stop.

An engine is built, given listeners, started, stopped and freed, by one thread at a time that is not a worker. Workers are plain threads with all signals
blocked; stop joins them.
"""

from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t

from mqttc.broker.acl cimport Acl
from mqttc.broker.state cimport Engine, Listener, Settings, Worker
from mqttc.net.tcp cimport PeerAddress
from mqttc.net.vouched cimport Proofs

cdef Engine *engine_build(const Settings *settings) noexcept nogil             # NULL: no memory or no descriptor
cdef int engine_listen(Engine *engine, Listener *listener) noexcept nogil      # before start; takes the struct over: its index, or ST_LIMIT
cdef int engine_start(Engine *engine) noexcept nogil                           # ST_OK, ST_ERROR (errno), ST_NO_MEMORY
# Listeners close, clients get 0x8B where their version has it, output is flushed within timeout_ms, threads are joined. True: all output left in time.
cdef bint engine_stop(Engine *engine, uint32_t timeout_ms) noexcept nogil
cdef void engine_free(Engine *engine) noexcept nogil                           # stopped, or never started
cdef void engine_abandon(Engine *engine) noexcept nogil                        # in a forked child: closes its copies of all descriptors, frees nothing
# [any thread] A connection that an adapter made. fd, a stream socket, non-blocking, is taken over; ST_NO_MEMORY: and closed.
cdef int engine_adopt(
    Engine *engine, uint16_t worker, int fd, uint16_t listener, const PeerAddress *peer, const Proofs *proofs, bint websocket, bint remote,
) noexcept nogil
# One caller at a time. Another table of rules, shared, for all workers; returns when each has taken it over (or after 2 s, where one does not turn).
# Before start, where running is false, it is also what makes sessions have rights at all. ST_NO_MEMORY: the old one stays.
cdef int engine_acl(Engine *engine, Acl *acl, bint running) noexcept nogil
cdef void engine_hold(Engine *engine, int64_t wall_ms) noexcept nogil                          # before engine_start, and before the store is read: see clock_hold
# [any thread] moves the clock of all workers. heard: what clients have sent or not is no matter meanwhile, their keep alive begins anew where it ends.
cdef void engine_advance(Engine *engine, int64_t mono_ms, int64_t wall_ms, bint heard) noexcept nogil
cdef uint64_t engine_counter(const Engine *engine, int counter) noexcept nogil                 # [any thread] sum over workers
