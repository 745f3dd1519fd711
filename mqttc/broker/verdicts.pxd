"""Verdicts that the gate has given, remembered by the worker that asked: a client that comes again with the same credentials is decided here.

A fixed table of sets of four, made at the first verdict; a new one takes the place of what has expired, else of what expires first. Keys are
128 bits of SipHash under a key of this engine, made at its start, so that neither the table nor a collision tells anything of a password. What
they are made of: the listener, the version, user name, password and what the transport proves, whether the client would get in without
credentials, and, where the authenticators look at them, client id and address. Cleared by counting up the rules' epoch; a question that was asked
in an earlier epoch leaves no verdict.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from mqttc.broker.state cimport Conn, VerdictCache, VerdictEntry, VerdictRules, Worker
from mqttc.proto.packet cimport Packet

cdef enum VerdictField:                # of VerdictRules.fields
    VERDICT_ON = 1                     # verdicts are remembered
    VERDICT_CLIENT_ID = 2              # they depend on the client id
    VERDICT_ADDRESS = 4                # they depend on the client's address, without the port

cdef int verdicts_init(VerdictRules *rules) noexcept nogil                               # ST_ERROR: no randomness
cdef void verdicts_configure(VerdictRules *rules, uint32_t fields) noexcept nogil        # [any thread] and forget all
cdef void verdicts_free(VerdictCache *cache) noexcept nogil
# Whether such CONNECTs are remembered; then key and epoch. admitted: the client would get in without credentials.
cdef bint verdict_key(Worker *worker, Conn *conn, const Packet *packet, bint admitted, uint64_t *key, uint32_t *epoch) noexcept nogil
cdef VerdictEntry *verdict_find(Worker *worker, const uint64_t *key, uint32_t epoch) noexcept nogil      # NULL: none; good for this turn
# Nothing is kept of an earlier epoch, or without memory.
cdef void verdict_keep(Worker *worker, const uint64_t *key, uint32_t epoch, uint8_t reason, int64_t until_ms, int64_t ends_ms) noexcept nogil
