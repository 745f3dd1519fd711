"""Actor: an MQTT client as a state machine on our own reactor, and the threads they live on.

A Field is one run: its actors, threads and totals. Actors are made before the threads start and are then touched by their thread alone; commands come by
mail. What several threads add up (deliveries per publisher) is atomic. Every payload begins with 24 bytes: magic and publisher, sequence (from 1), and the
time in ns at which the message was sent or, at a fixed rate, due.
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from mqttc.base.inbox cimport Mail
from mqttc.base.msg cimport MsgPool
from mqttc.base.ring cimport Ring
from mqttc.base.types cimport Span
from mqttc.base.vec cimport Vec
from mqttc.loadgen.hist cimport Hist
from mqttc.net.reactor cimport Clock, Link, Reactor
from mqttc.net.tcp cimport PeerAddress
from mqttc.net.tls_client cimport TlsClient
from mqttc.proto.dialect cimport Dialect

cdef extern from "<pthread.h>" nogil:
    ctypedef unsigned long pthread_t

cdef enum:
    PAYLOAD_HEADER = 24
    PAYLOAD_MAGIC = 0x6D710001
    MAX_THREADS = 64
    FAILURE_BYTES = 128
    PACKET_IDS = 65536

cdef enum ActorState:
    ACTOR_IDLE = 0
    ACTOR_WAITING = 1                  # told to connect, its turn will come (connect_batch)
    ACTOR_CONNECTING = 2               # CONNECT was written, CONNACK is due
    ACTOR_UP = 3

cdef enum ActorVerb:
    VERB_CONNECT = 1
    VERB_DISCONNECT = 2
    VERB_ABORT = 3
    VERB_PUBLISH = 4
    VERB_STOP_PUBLISHING = 5
    VERB_RESET = 6

cdef enum Total:                       # counters of a thread
    T_CONNECTED = 0                    # gauge
    T_SUBSCRIBED
    T_CONNECTS
    T_REFUSED
    T_LOST_CONNECTIONS
    T_PUBLISHED
    T_ACKNOWLEDGED
    T_RECEIVED
    T_BYTES_RECEIVED
    T_DUPLICATES
    T_REORDERED
    T_FOREIGN
    T_FINISHED
    T_ERRORS
    T_COUNT

cdef struct Publishing:                # of a publisher; immutable but for the last group
    uint8_t *topics                    # all of them, one after the other
    uint32_t *topic_ends
    uint32_t topic_count
    uint8_t qos
    uint8_t retain
    bint loop                          # deliveries count for the window
    uint32_t payload_least
    uint32_t payload_most
    uint32_t window
    uint32_t burst
    double copies
    double interval_ns                 # 0: closed loop
    # owner thread
    uint64_t *stamps                   # by packet id: when it was sent or due; owned; NULL: acknowledgements are not timed
    bint running
    bint in_ready
    uint64_t sequence                  # of the last message
    uint64_t until                     # last sequence to send; 0: no end
    uint64_t acknowledged
    uint64_t first_due_ns
    uint64_t due_count
    uint64_t random
    uint16_t next_packet_id
    Actor *next_ready

cdef struct Seen:                      # of one publisher by one subscriber
    uint64_t last                      # highest sequence
    uint64_t window                    # ordered: bit i: sequence last - i was seen
    uint64_t *bits                     # not ordered: bit i: sequence i was seen; owned, NULL until the first delivery
    uint64_t bit_words

cdef struct Actor:
    Link *link                         # NULL: no connection
    Crew *crew
    uint32_t index
    uint32_t thread
    uint8_t state
    bint clean
    bint verify
    bint unordered                     # deliveries come in any order (retained messages): repeats are found by a bit per message
    bint again
    bint quitting                      # said DISCONNECT
    bint unwanted                      # told to leave while it waits for its turn to connect
    uint16_t keep_alive
    uint32_t session_expiry
    uint8_t *client_id                 # owned, as are the next four
    uint16_t client_id_bytes
    uint8_t *username                  # NULL: none
    uint16_t username_bytes
    uint8_t *password
    uint16_t password_bytes
    PeerAddress source                 # family 0: any
    Vec filters                        # ActorFilter
    Publishing *publishing             # NULL: does not publish
    Seen *seen                         # per publisher (index), made at the first delivery; NULL: none yet
    uint32_t seen_count
    uint64_t received                  # deliveries, duplicates not counted [read by others]
    Actor *next_waiting

cdef struct ActorFilter:
    uint8_t *text
    uint16_t bytes
    uint8_t qos

cdef struct ActorLink:                 # the reactor's link of an actor
    Link link                          # must be first
    Actor *actor

cdef struct Crew:                      # one thread
    Field *field
    Reactor *reactor
    MsgPool msgs
    uint32_t index
    uint32_t quit                      # atomic, set by field_free
    bint started
    pthread_t thread
    Actor *ready                       # publishers whose window may have opened
    Actor *waiting                     # to connect
    Actor *waiting_tail
    uint32_t connecting
    Vec paced                          # Actor * that publish at a rate
    uint64_t now_ns                    # of this input
    uint8_t *scratch                   # for payloads
    uint64_t totals[16]
    Hist *latency                      # of deliveries
    Hist *acknowledging                # of acknowledgements of publishers that time them
    char failure[128]                  # why the first connection that did not come about did not, as far as its transport tells; ends with 0
    uint32_t failure_known             # atomic: failure is written, once, by this thread

cdef struct Road:                      # how a field's connections reach the broker; all but `tls` is copied
    PeerAddress target
    Span unix_path                     # family 1
    TlsClient *tls                     # one reference; NULL: plain
    Span ws_request                    # the upgrade's whole request head, the same for all; empty: no WebSocket
    Span ws_accept                     # the Sec-WebSocket-Accept that answers it
    uint64_t ws_frame_most             # bytes of a frame that the broker may send

cdef struct Field:
    const Dialect *dialect
    Road road
    uint32_t connect_batch
    uint32_t thread_count
    uint32_t actor_count
    uint32_t payload_most
    Actor **actors
    uint64_t *delivered                # per actor as publisher: deliveries anywhere [any thread, atomic]
    Clock clock
    Crew *crews[64]

cdef struct Command:
    Mail mail
    uint32_t verb
    uint32_t first
    uint32_t end
    uint64_t messages

cdef Field *field_build(const Dialect *dialect, const Road *road, uint32_t threads, uint32_t connect_batch) noexcept nogil   # shares road.tls; NULL: no memory
cdef int field_start(Field *field, Actor **actors, uint32_t count) noexcept nogil      # takes the array over
cdef int field_tell(Field *field, uint32_t verb, uint32_t first, uint32_t end, uint64_t messages) noexcept nogil   # to every thread; ST_NO_MEMORY
cdef void field_free(Field *field) noexcept nogil                                      # ends the threads first
cdef Actor *actor_build() noexcept nogil
cdef void actor_free(Actor *actor) noexcept nogil
