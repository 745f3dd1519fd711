"""Counters of one worker: written by it alone, read by any thread. Their names for Python stand in native.pyx, in the same order."""

from libc.stdint cimport uint64_t

from mqttc.base.types cimport counter_add, counter_sub

cdef enum Counter:
    C_RECEIVED = 0                     # + packet type: packets in, 16 of them
    C_SENT = 16                        # + packet type: packets out, 16 of them
    C_CONNECTS_ACCEPTED = 32
    C_CONNECTS_REFUSED
    C_TAKEOVERS
    C_SESSIONS_RESUMED
    C_SESSIONS_EXPIRED
    C_DISCONNECTS_CLEAN
    C_DISCONNECTS_ABRUPT
    C_PROTOCOL_ERRORS
    C_KEEP_ALIVE_TIMEOUTS
    C_CONNECT_TIMEOUTS
    C_REFUSED_LIMIT                    # connections beyond max_connections, all or of a listener
    C_REFUSED_ADDRESS                  # beyond their address's number
    C_REFUSED_USER                     # beyond their user's number
    C_REFUSED_RATE                     # beyond a connect rate
    C_REFUSED_PENDING                  # too many connections, or bytes of them, wait for their CONNECT to be accepted
    C_REFUSED_OVERLOAD                 # the broker's memory is nearly used up, or its turns are too long
    C_ADDRESSES_FORGOTTEN              # for want of room: their connect rate begins anew
    C_SLOWED                           # times a client was not read for a while because of its rates
    C_ENDED_RATE                       # clients that ended because that did not help
    C_THROTTLED                        # times a client was not written to for a while because of its rates
    C_TURNS_CUT                        # times a connection's input was left for the next turn because this one was long
    C_ENDED_OVERLOAD                   # clients that ended to give memory back
    C_SUBSCRIPTIONS_REFUSED            # filters refused by a limit
    C_GATE_QUESTIONS
    C_GATE_TIMEOUTS
    C_VERDICTS_KEPT                    # remembered
    C_VERDICTS_REUSED                  # CONNECTs decided by them
    C_AUTH_EXPIRED                     # connections whose authentication ran out
    C_MESSAGES_IN                      # PUBLISH accepted
    C_MESSAGES_OUT                     # PUBLISH sent, all QoS, resent ones too
    C_MESSAGES_RESENT
    C_WILLS_PUBLISHED
    C_WILLS                            # gauge: wills of this worker's sessions
    C_WILL_BYTES                       # gauge
    C_RETAINED_HANDED_OUT
    C_QUEUED                           # gauge: messages in queues of this worker's sessions
    C_QUEUED_BYTES                     # gauge
    C_INFLIGHT                         # gauge
    C_GROUP_BACKLOG                    # gauge
    C_SUBSCRIPTIONS                    # gauge
    C_DROPPED_QUEUE_FULL               # from here: loss, by reason
    C_DROPPED_OUTPUT_FULL              # QoS 0 to a slow reader
    C_DROPPED_EXPIRED
    C_DROPPED_TOO_LARGE                # for the receiver's maximum packet size
    C_DROPPED_SESSION_END
    C_DROPPED_GROUP_FULL
    C_DROPPED_GROUP_END
    C_DROPPED_NO_MEMORY
    C_DROPPED_RETAINED_LIMIT
    C_DROPPED_OVERLOAD                 # the broker's memory is nearly used up
    C_REJECTED_BY_CLIENT               # PUBACK or PUBREC with a failure
    C_BRAKED
    C_MAIL_SENT
    C_JOURNAL_LOST                     # notes that found no memory: after a crash something comes again
    C_JOURNAL_REFUSED                  # PUBLISH refused while the journal cannot be written
    C_WEBSOCKETS_UPGRADED
    C_HTTP_REFUSED                     # requests that are none, too long, or answered with an error
    C_HTTP_SPLICED                     # connections handed through to the control plane
    C_EVENTS_LOST                      # that the program around the broker wanted to hear of
    C_DENIED_PUBLISH                   # from here: not allowed, by reason
    C_DENIED_RETAIN                    # PUBLISH that may not be retained
    C_DENIED_WILL                      # CONNECT, or a will when it was due
    C_DENIED_SUBSCRIBE
    C_DENIED_RECEIVE                   # deliveries
    C_DENIED_CLIENT_ID                 # CONNECT
    C_DENIED_UNSAFE_NAME               # of these: a client id or user name that must not stand in a filter
    C_GRANTS_EXPIRED
    C_GRANTS_RENEWED                   # that hooks have given to clients that are here
    C_HOOK_QUESTIONS                   # PUBLISH and SUBSCRIBE that hooks were asked about
    C_HOOKS_UNASKED                    # the same, but too many questions were open
    C_HOOKS_ABANDONED                  # the same, but their connection ended before the answer
    C_COUNT

cdef struct Stats:
    uint64_t v[128]

cdef inline void stat(Stats *stats, int counter) noexcept nogil:
    counter_add(&stats.v[counter], 1)

cdef inline void stat_add(Stats *stats, int counter, uint64_t n) noexcept nogil:
    counter_add(&stats.v[counter], n)

cdef inline void stat_sub(Stats *stats, int counter, uint64_t n) noexcept nogil:
    counter_sub(&stats.v[counter], n)
