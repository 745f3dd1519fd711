"""What a broker is made of: structs only. Read this page first.

An Engine has N Workers (a thread each). A Worker owns its Reactor, its Conns (one per network connection, embedding the reactor's Link), the Sessions
that hash to it, the Groups that hash to it, and its caches. What crosses threads: Mail (through inboxes), Msg, Route and SubscriptionIds (immutable,
counted), the Trie and the RetainStore (locked inside). Everything else is touched by its worker alone.
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from mqttc.base.inbox cimport Inbox, Mail
from mqttc.base.logring cimport LogRing
from mqttc.base.map cimport Map
from mqttc.base.msg cimport Msg, MsgPool
from mqttc.base.ring cimport Ring
from mqttc.base.timer cimport TimerNode
from mqttc.base.types cimport Span
from mqttc.base.vec cimport Vec
from mqttc.broker.acl cimport Acl, Grant
from mqttc.broker.journal cimport Journal
from mqttc.broker.record cimport Body, Record
from mqttc.broker.retain cimport RetainCursor, RetainStore
from mqttc.broker.rights cimport Rights
from mqttc.broker.routes cimport Route, RouteCache, RouteRules, SubscriptionIds
from mqttc.broker.stats cimport Stats
from mqttc.broker.trie cimport Trie
from mqttc.net.outq cimport Chunk
from mqttc.net.proxy cimport ProxyRules
from mqttc.net.reactor cimport Clock, Link, LinkParcel, Reactor
from mqttc.net.tcp cimport PeerAddress
from mqttc.net.tls cimport TlsGauge
from mqttc.net.transport cimport Transport
from mqttc.proto.dialect cimport Dialect

cdef extern from "<pthread.h>" nogil:
    ctypedef unsigned long pthread_t
    ctypedef struct pthread_mutex_t:
        pass

cdef struct Conn
cdef struct Session
cdef struct Worker
cdef struct RequestMail
cdef struct Engine

cdef enum:
    MAX_WORKERS = 255
    NEVER = 0xFFFFFFFF                 # session expiry interval: does not expire

cdef enum QueuePolicy:                 # what gives way when a session's queue is full
    DROP_OLDEST = 0
    DROP_NEWEST = 1
    DROP_QOS0_FIRST = 2                # the oldest QoS 0 message, if there is none the oldest
    DISCONNECT_SLOW = 3                # an on-line client is disconnected (0x97); for off-line ones the newest is dropped

cdef enum GroupStrategy:
    ROUND_ROBIN = 0
    LEAST_IN_FLIGHT = 1

cdef struct Settings:                  # read only once workers run; units in names; 0 means no limit only where config says so
    uint32_t workers
    uint32_t max_packet_size           # bytes
    uint32_t max_connections
    uint32_t max_sessions
    uint32_t max_subscriptions         # per session
    uint32_t max_queued_messages       # per session
    uint64_t max_queued_bytes          # per session
    uint32_t max_output_bytes          # per connection, unsent
    uint32_t queue_policy
    uint32_t receive_maximum
    uint32_t max_inflight
    uint32_t topic_alias_maximum
    uint32_t topic_alias_out
    uint32_t session_expiry_s
    uint32_t max_keep_alive_s
    uint32_t retain_available
    uint32_t wildcard_available
    uint32_t shared_available
    uint32_t subscription_ids_available
    uint64_t max_retained_messages
    uint64_t max_retained_bytes
    uint32_t max_topic_levels
    uint32_t max_topic_bytes
    uint32_t max_client_id_bytes
    uint32_t connect_timeout_ms
    uint32_t auth_timeout_ms
    uint32_t shutdown_timeout_ms
    uint32_t max_group_backlog
    uint32_t group_strategy
    uint32_t route_cache_entries       # per worker
    uint32_t turn_bytes
    uint32_t max_request_head          # bytes, of HTTP
    uint32_t max_frame_size            # bytes, of WebSocket
    uint32_t verdict_cache_entries     # per worker; 0: none are remembered
    uint32_t queue_qos0_offline
    uint32_t durability                # Durability of every message; filters and listeners may ask for more
    uint32_t spill_after               # messages of an off-line session whose bodies stay in memory
    uint32_t log_level
    uint32_t max_connections_per_address
    uint32_t max_connections_per_user
    uint32_t connect_rate              # connections a second
    uint32_t connect_rate_per_address
    uint32_t connect_rate_addresses    # remembered without a connection
    uint32_t max_pending_connections   # whose CONNECT is not accepted yet
    uint32_t max_tls_handshakes        # under way
    uint32_t max_connect_packet        # bytes, until then
    uint64_t max_unauthenticated_bytes
    uint32_t max_message_rate          # of a client, a second
    uint32_t max_byte_rate
    uint32_t max_message_rate_out
    uint32_t max_byte_rate_out
    uint32_t rate_patience_ms
    uint32_t max_filter_wildcards
    uint32_t max_unreleased            # QoS 2 ids of a 3.x session
    uint32_t max_wills
    uint32_t max_will_bytes
    uint64_t max_total_queued_messages
    uint64_t max_total_queued_bytes
    uint64_t max_memory                # bytes
    uint32_t turn_time_ms
    uint32_t busy_turn_time_ms

cdef struct Listener:                  # read only once workers run, but for the gauge
    int fd                             # -1: none, its connections are adopted
    uint8_t unix_socket
    uint8_t maximum_qos
    uint8_t anonymous                  # 0 deny, 1 allow, 2 loopback
    uint8_t ask_gate                   # 1: CONNECTs with credentials or an authentication method become questions; 2: all do
    uint8_t http                       # connections begin with an HTTP request
    uint8_t proxied                    # a connection's address is not the client's until its CONNECT comes
    uint8_t durability                 # at least, of what its clients publish
    uint32_t max_connections
    uint32_t tcp_user_timeout_ms
    uint32_t keepalive_idle_s
    uint8_t *server_reference          # owned; NULL: no redirection
    uint32_t server_reference_bytes
    int (*upgrade)(void *context, Transport *transport) noexcept nogil         # puts its transport on an accepted socket; NULL: plain
    void *upgrade_context
    void (*upgrade_drop)(void *context) noexcept nogil                         # gives up upgrade_context
    ProxyRules *proxy                  # owned; NULL: no PROXY protocol header
    uint32_t open_count                # atomic gauge [any worker]

# ---- limits that are counted across workers, and rates: see guard.pxd

cdef struct GuardEntry:                # of an address or a user; under its table's lock
    uint64_t key[2]
    GuardEntry *older                  # where count is 0: the list of those kept for their rate alone
    GuardEntry *newer
    int64_t tokens                     # thousandths of a connection
    int64_t stamp_ms
    uint32_t count                     # connections
    uint32_t hash

cdef struct GuardTable:
    pthread_mutex_t lock
    Map entries                        # GuardEntry *
    GuardEntry *oldest                 # with count 0
    GuardEntry *newest
    uint32_t idle_count
    uint64_t key[2]                    # of the hash

cdef struct Guard:
    GuardTable addresses
    GuardTable users
    int64_t tokens                     # of connect_rate; under addresses.lock
    int64_t stamp_ms
    TlsGauge handshakes
    uint32_t pending                   # atomic gauges
    uint64_t early_bytes
    uint64_t overload                  # atomic: OverloadStage [worker 0]

cdef enum OverloadStage:               # of memory, from 80, 90 and 100 percent of max_memory
    OVERLOAD_NONE = 0
    OVERLOAD_REFUSE = 1                # no new sessions and subscriptions
    OVERLOAD_SHED = 2                  # and no QoS 0, nothing retained
    OVERLOAD_DROP = 3                  # and who keeps most waiting is dropped

cdef struct Bucket:
    int64_t tokens                     # thousandths; below 0: owed
    int64_t stamp_ms

cdef struct Rates:                     # of a connection
    Bucket messages_in
    Bucket bytes_in
    Bucket messages_out
    Bucket bytes_out
    int64_t over_since_ms              # 0: it is within its rates
    uint32_t sent                      # messages appended to the output since it was flushed last

cdef struct ConnGuard:                 # of a connection that is counted, or has rates
    GuardEntry *address                # counts it; NULL: none
    GuardEntry *user
    bint rated
    Rates rates                        # where rated

cdef enum GuardFlag:
    GUARD_PENDING = 1                  # in guard.pending
    GUARD_YIELDED = 2                  # in worker.yielded
    GUARD_THROTTLED = 4                # in worker.throttled
    GUARD_OVER_NUMBER = 8              # decided when it was accepted, told when its version is known
    GUARD_OVER_RATE = 16

# ---- messages on their way to a client

cdef enum EntryState:
    OUT_DONE = 0                       # acknowledged, not yet at the front of the ring (or given back to a group)
    OUT_SENT = 1                       # PUBLISH was sent (on this or an earlier connection)
    OUT_RELEASED = 2                   # PUBREC came, PUBREL was sent; the message is gone
    OUT_HELD = 3                       # has a packet id that is not in the journal's file yet: QoS 2 waits for that
    OUT_READY = 4                      # that is done: it may be sent for the first time

cdef enum QueueEntryFlag:
    QE_RETAIN = 1                      # send with RETAIN 1
    QE_COUNTED = 2                     # takes a slot of the window on this connection
    QE_JOURNALED = 4                   # the journal knows this delivery
    QE_STORED = 8                      # its body lies in the journal's file alone: see QueueEntry.msg

cdef struct QueueEntry:                # a message in a session's queue or in-flight ring; owns one reference each of msg and subscription_ids
    Msg *msg                           # QE_STORED: its id in the journal instead (entry_id)
    SubscriptionIds *subscription_ids  # NULL: none
    uint32_t member                    # 1 + index in session.memberships; 0: not from a shared group. QE_STORED: bytes of the body
    uint16_t packet_id                 # in flight only
    uint8_t qos
    uint8_t state                      # EntryState (low 4 bits), QueueEntryFlag (high 4 bits, shifted)

cdef struct Subscription:              # one of a session's
    uint8_t *filter                    # owned, with $share/group/ where there
    uint16_t filter_bytes
    uint8_t options
    uint8_t spare
    uint32_t id                        # subscription identifier, 0: none
    uint32_t hash
    uint32_t membership                # 1 + index in session.memberships; 0: not shared

cdef struct Membership:                # a session's part in a shared group
    uint64_t group                     # id; 0: left (the slot is free when outstanding is 0)
    uint64_t left                      # where group is 0: which it was; what is outstanding goes back there when the session ends
    uint64_t origin                    # what the journal has its entries under; 0: the session
    uint32_t outstanding               # entries of the session's rings that came from the group
    uint32_t owed                      # credit to grant at the end of the turn

cdef struct Handout:                   # retained messages still due to one subscription
    RetainCursor cursor
    SubscriptionIds *subscription_ids
    uint64_t after                     # the sequence that its SUBACK waits for: not before it is committed
    uint8_t qos
    uint8_t spare[7]

cdef struct Will:
    Msg *msg                           # one reference
    uint32_t delay_s
    uint32_t expiry_s                  # message expiry, counted from publication
    bint has_expiry

cdef enum SessionFlag:
    SESSION_CREDIT_DIRTY = 1           # in worker.credit_dirty
    SESSION_HANDOUT_TURN = 2           # whose turn it is: queue or hand-out
    SESSION_QOS0_QUEUED = 8            # since the queue was empty last, a QoS 0 message came into it: later ones go behind it
    SESSION_RECHECK = 16               # its rights have changed since a message came into the queue: asked again before it is sent
    SESSION_SPARSE = 4                 # the packet ids of the in-flight ring are not consecutive (a client acknowledges out of order)

cdef enum:
    TIMER_CONN = 1                     # Link.timer: CONNECT deadline, question deadline, keep alive
    TIMER_SESSION = 2                  # Session.timer: will delay, session expiry
    TIMER_BRAKE = 3                    # Worker.brake_timer
    TIMER_SWEEP = 4                    # Worker.sweep_timer
    TIMER_SHUTDOWN = 5                 # Worker.shutdown_timer
    TIMER_THROTTLE = 6                 # Worker.throttle_timer

cdef struct Session:
    TimerNode timer                    # off line: the next of will delay and expiry
    uint32_t slot
    uint32_t generation
    Conn *conn                         # NULL: off line
    uint8_t *client_id                 # owned
    uint16_t client_id_bytes
    uint16_t next_packet_id
    uint16_t receive_maximum           # outbound window of this connection
    uint16_t window_used               # QE_COUNTED entries
    uint32_t expiry_s                  # session expiry interval; NEVER
    uint32_t client_hash
    uint32_t resend                    # in-flight entries before this index were sent on this connection
    uint32_t dropped                   # messages dropped, all reasons
    uint8_t flags
    uint8_t durable                    # the journal knows it: it outlives its connection
    uint8_t reading                    # bodies of its queue are on their way
    uint16_t pressure_id               # next_packet_id when it was last looked at
    int64_t offline_since_ms
    int64_t pressure_since_ms          # its publishers are slowed since then; 0: they are not
    uint64_t queued_bytes
    uint64_t made                      # the journal's sequence that holds it: before that is committed no CONNACK says that there is one
    Ring inflight                      # QueueEntry; packet ids are consecutive (0 skipped), so look-up is by subtraction (but see SESSION_SPARSE)
    Ring queue                         # QueueEntry not yet sent
    Vec *inbound                       # uint16_t packet ids of QoS 2 PUBLISH received, PUBREL not yet; NULL: never used
    Vec *subscriptions                 # Subscription; NULL: none
    Map *subscription_map              # filter -> index + 1, only for many
    Vec *memberships                   # Membership; NULL: none
    Vec *handouts                      # Handout; NULL: none
    Will *will
    Rights *rights                     # owned; NULL: everything is allowed
    uint32_t rights_epoch              # see permit.pxd
    uint32_t denied                    # publications, subscriptions and wills not allowed
    Session *credit_next

# ---- connections

cdef enum ConnPhase:
    CONN_NEW = 0                       # CONNECT is due
    CONN_ASKED = 1                     # parked: a question is with the gate
    CONN_AUTHENTICATING = 2            # AUTH of the client is due
    CONN_UP = 3                        # CONNACK with success was sent
    CONN_DONE = 4                      # closing; no session any more
    CONN_HEAD = 5                      # the head of an HTTP request is due
    CONN_HEAD_ASKED = 6                # parked: the head is with the gate
    CONN_UPGRADING = 7                 # resumed: it becomes a WebSocket with what was read so far
    CONN_TUNNEL = 8                    # bytes go through to `partner`, unread
    CONN_COMMITTING = 9                # parked: its CONNACK waits for the journal
    CONN_INSIDE = 10                   # an in-process client: it has no link, see Inside

cdef enum ConnFlag:
    CONN_BRAKED = 1                    # acks are held until brake_until_ms
    CONN_BRAKE_PAUSED = 2              # reading is paused by the brake
    CONN_QUIET = 4                     # Request Problem Information 0: no reason strings
    CONN_ASKED_AGAIN = 8               # re-authentication question open
    CONN_COUNTED = 16                  # in engine.connections and the listener's gauge
    CONN_QUESTION_OPEN = 32            # the gate has not answered yet: one question at a time
    CONN_REMOTE = 64                   # no program of this machine, whatever its address says
    CONN_BRAKE_JOURNAL = 128           # paused until less waits for the disk

cdef struct AliasIn:
    uint8_t *topic                     # owned; NULL: not set
    uint32_t topic_bytes
    Route *route                       # counted; NULL: none yet
    uint32_t permit_epoch              # as Conn's
    uint8_t permit

cdef struct AliasesIn:
    uint32_t count                     # topic_alias_maximum
    AliasIn items[1]

cdef struct AliasOut:
    uint8_t *topic                     # owned
    uint16_t topic_bytes
    uint16_t alias
    uint32_t hash
    uint32_t used                      # age stamp

cdef struct AliasesOut:
    uint32_t count                     # set so far
    uint32_t capacity                  # min(client's topic alias maximum, ours); 0: none, but the fan-out's short way is not for this connection
    uint32_t stamp
    uint32_t bytes
    AliasOut items[1]

cdef struct HeldAck:                   # or another reply that waits for the journal
    uint64_t until                     # sequence of this worker's journal that must be committed; 0: none
    uint8_t *packet                    # owned: encoded, where it is no plain acknowledgement; NULL
    uint32_t packet_bytes
    uint16_t packet_id
    uint8_t packet_type
    uint8_t reason

cdef struct PendingConnect:            # while a question is open or the connection moves
    uint64_t verdict_key[2]            # where remembers: under what its verdict is remembered
    uint32_t verdict_epoch
    uint8_t remembers
    uint32_t bytes
    uint8_t packet[1]                  # the whole CONNECT as received (bytes of it)

cdef struct Parked:                    # a PUBLISH or SUBSCRIBE that hooks are asked about; meanwhile its connection is not read
    uint32_t body_bytes
    uint8_t type
    uint8_t flags
    uint8_t body[1]                    # body_bytes of them, as received

cdef struct Conn:
    Link link                          # must be first
    Session *session                   # CONN_UP
    const Dialect *dialect
    Route *last_route                  # counted: of the last topic published here
    AliasesIn *aliases_in
    AliasesOut *aliases_out
    PendingConnect *pending
    Conn *partner                      # the other end of a tunnel, on this worker
    Parked *parked                     # owned; NULL: no hook is asked
    uint8_t *auth_method               # owned: of the enhanced authentication in use
    uint8_t *user                      # owned: whom that has found the client to be; NULL: nobody was named
    uint8_t *username                  # owned: of CONNECT; NULL: none
    Ring *held_acks                    # HeldAck; NULL: none
    int64_t brake_until_ms
    int64_t last_packet_ms
    int64_t question_due_ms            # where CONN_QUESTION_OPEN
    int64_t ends_ms                    # its authentication runs out; 0: never
    uint64_t waits_until               # the last sequence for which it stands in worker.waits
    uint32_t maximum_packet_size       # what the client takes, bytes; 0: no limit
    uint32_t keep_alive_ms             # 1.5 x keep alive; 0: none
    uint32_t question                  # number of the last question; answers to others are stale
    uint32_t hook_question             # the same of questions to hooks
    uint32_t reply_bytes               # acknowledgements and other replies, since the output was empty last
    uint32_t head_bytes                # of the HTTP head: looked through so far, then its size
    uint16_t auth_method_bytes
    uint16_t user_bytes
    uint16_t username_bytes
    uint8_t phase
    uint8_t flags
    uint8_t maximum_qos
    uint8_t disconnect_reason          # RC of the client's or our DISCONNECT
    uint8_t keep_will                  # the will goes out at the end (no clean DISCONNECT)
    uint8_t layout                     # dialect.layout, at hand for the fan-out
    uint8_t permit                     # PublishPermit of last_route's topic
    uint8_t guarded                    # GuardFlag
    uint16_t early_kib                 # its part of guard.early_bytes
    uint32_t permit_epoch              # of permit: under this rights_epoch of the session
    uint32_t connected_wall_s          # Unix time of CONNECT, until 2106
    ConnGuard *guard                   # owned; NULL: it is counted nowhere and has no rates

# ---- in-process clients: the program around the broker publishes and subscribes through them

cdef enum:
    INSIDE_WINDOW = 1024               # messages that the program may have taken and not dealt with, per client
    INSIDE_WINDOW_BYTES = 4 << 20      # and their bytes
    DELIVERY_ITEMS = 62

cdef struct Inside:                    # conn.phase is CONN_INSIDE, conn.session its session; what is sent to it waits in the session's queue
    Conn conn                          # must be first; its link is not the reactor's: never open
    Inside *next                       # in worker.inside_due or inside_later
    bint due
    uint8_t refused                    # of the publication under way: why the connection would end
    uint32_t taken                     # messages with the program
    uint64_t taken_bytes
    Ring awaiting                      # RequestMail *: publications not answered yet, in the order of their acknowledgements
    RequestMail *asked                 # the one that hooks are asked about, the last of awaiting; NULL: none
    RequestMail *later_first           # what came after it, and waits for it
    RequestMail *later_last

# ---- shared groups

cdef struct Member:
    uint64_t session                   # handle
    uint32_t credit                    # messages that may be sent to it
    uint32_t in_flight                 # sent and not yet credited back
    uint32_t subscription_id
    uint8_t qos
    uint8_t retain_as_published
    bint online

cdef struct Group:
    uint64_t id
    Vec members                        # Member
    Ring backlog                       # Msg *, one reference each
    uint32_t next                      # round robin
    uint32_t joined                    # durable members so far, as noted in the journal
    uint32_t credit_total              # of all members on line
    uint32_t online_count
    int64_t pressure_since_ms          # its publishers are slowed since then; 0: they are not

# ---- mail between workers

cdef enum MailKind:
    MAIL_PUBLISH = 1
    MAIL_ADOPT = 2
    MAIL_BLOCKS = 3
    MAIL_GROUP = 4
    MAIL_ANSWER = 5
    MAIL_BRAKE = 6
    MAIL_SHUTDOWN = 7
    MAIL_HEAD = 8
    MAIL_LINK = 9
    MAIL_COMMITTED = 10
    MAIL_BODIES = 11
    MAIL_REQUEST = 12                  # from the program to a worker, and back as the answer
    MAIL_DELIVERY = 13                 # from a worker to the program, and back to be freed
    MAIL_EVENT = 14                    # from a worker to the program
    MAIL_ACL = 15                      # of the control plane: another table of rules
    MAIL_HOOK = 16                     # of the control plane: what hooks say of a PUBLISH or SUBSCRIBE

cdef enum:
    PUBLISH_MAIL_ITEMS = 62

cdef struct PublishItem:               # one reference each
    Msg *msg
    Route *route

cdef struct PublishMail:
    Mail mail
    uint32_t count
    uint64_t bytes                     # of the messages, and a share of the mail for each
    PublishItem items[62]

cdef struct Admission:                 # what is known of a client that is let in
    Span auth_data                     # for CONNACK; p NULL: none
    Grant *grant                       # borrowed; NULL: none
    bint checked                       # by the gate: its user name is no mere claim

cdef struct AdoptMail:
    Mail mail
    LinkParcel parcel
    Grant *grant                       # one reference; NULL: none
    uint8_t checked
    uint8_t *auth_data                 # owned: for CONNACK
    uint8_t *user                      # owned: Conn.user
    ConnGuard *guard                   # Conn.guard
    int64_t ends_ms                    # Conn.ends_ms
    uint32_t auth_data_bytes
    uint16_t user_bytes
    uint32_t bytes
    uint8_t packet[1]                  # the CONNECT

cdef struct BlocksMail:
    Mail mail
    Msg *chain

cdef enum GroupVerb:
    GROUP_JOIN = 1                     # session, qos, subscription_id, retain_as_published, credit, online
    GROUP_LEAVE = 2                    # session
    GROUP_ONLINE = 3                   # session, credit
    GROUP_OFFLINE = 4                  # session
    GROUP_CREDIT = 5                   # session, credit
    GROUP_RETURN = 6                   # msg: not sent, or its member broke off; to the front of the backlog
    GROUP_DELIVER = 7                  # home to member: session, msg, qos, subscription_id, retain_as_published
    GROUP_OFFER = 8                    # home to itself: msg, for a group without members; their JOIN or ONLINE may lie before it in the inbox
    GROUP_CLOSE = 9                    # home to itself, behind what lies in the inbox: the group ends if it still has no members

cdef struct GroupMail:
    Mail mail
    uint64_t group
    uint64_t session
    Msg *msg                           # one reference, where there
    uint32_t credit
    uint32_t subscription_id
    uint8_t verb
    uint8_t qos
    uint8_t online
    uint8_t retain_as_published
    uint8_t noted                      # JOIN: a new member, of which the journal knows

cdef struct AnswerMail:                # of the gate
    Mail mail
    uint32_t slot
    uint32_t generation
    uint32_t question
    uint8_t reason
    uint8_t *auth_data                 # owned
    uint32_t auth_data_bytes
    uint16_t user_bytes
    uint8_t *user                      # owned: whom the client was found to be; NULL: not told
    int64_t lasts_ms                   # until the connection ends; 0: for ever
    int64_t keep_ms                    # the verdict may be remembered for as long; 0: not
    Grant *grant                       # one reference; NULL: none

cdef struct AclMail:                   # of the control plane: another table
    Mail mail
    Acl *acl                           # one reference; NULL: none

cdef enum HookVerdict:
    HOOK_PASS = 0                      # as it came
    HOOK_CHANGE = 1                    # data: PUBLISH of 5.0; or for each filter of SUBSCRIBE: reason (below 0x80: subscribe), options, length (2), filter
    HOOK_REFUSE = 2                    # PUBLISH only; a reason below 0x80: it is acknowledged, and goes nowhere

cdef enum HookBit:                     # of Engine.hooks
    HOOKS_PUBLISH = 1
    HOOKS_SUBSCRIBE = 2
    HOOKS_ALLOW = 4                    # what cannot be asked passes

cdef struct HookMail:
    Mail mail
    uint64_t session                   # handle of an in-process client; 0: a connection's, slot and generation
    uint32_t slot
    uint32_t generation
    uint32_t question
    uint8_t verdict                    # HookVerdict
    uint8_t reason
    uint32_t data_bytes
    uint8_t data[1]                    # data_bytes of them

cdef enum HeadVerdict:
    HEAD_UPGRADE = 0                   # response is sent, and frames follow
    HEAD_RESPOND = 1                   # response is sent, and that is all
    HEAD_SPLICE = 2                    # everything goes through fd, to and fro

cdef struct HeadMail:                  # of the gate: what becomes of an HTTP connection
    Mail mail
    uint32_t slot
    uint32_t generation
    uint32_t question
    uint8_t verdict                    # HeadVerdict
    uint8_t remote                     # see CONN_REMOTE
    int fd                             # owned; -1: none
    PeerAddress peer                   # family not 0: the client's, told by a trusted proxy
    uint32_t response_bytes
    uint8_t response[1]                # response_bytes of them

cdef struct LinkMail:                  # of the control plane: a connection that an adapter has made
    Mail mail
    Transport transport                # owned
    PeerAddress peer
    uint16_t listener
    uint8_t remote                     # see CONN_REMOTE

cdef struct BrakeMail:                 # a receiver of this publisher's messages is slow
    Mail mail
    uint64_t session
    bint pause                         # its messages are QoS 0: no acknowledgement to hold

cdef enum RequestVerb:
    REQUEST_OPEN = 1                   # -> session
    REQUEST_CLOSE = 2                  # session
    REQUEST_PUBLISH = 3                # session, data: a PUBLISH, 5.0 -> reason, count: sessions and groups that it is for
    REQUEST_SUBSCRIBE = 4              # session, options, number: subscription identifier, data: filter -> reason
    REQUEST_UNSUBSCRIBE = 5            # session, data: filter -> reason
    REQUEST_TAKEN = 6                  # session, number: messages, cursor: their bytes. Not answered
    REQUEST_LIST = 7                   # options 1: those on line only, number: at most, cursor: slot -> count, cursor, result
    REQUEST_LOOK = 8                   # data: client id -> count, result with its subscriptions
    REQUEST_DISCONNECT = 9             # options: reason code, data: client id -> count
    REQUEST_END = 10                   # data: client id -> count: its session has ended
    REQUEST_RETAINED = 11              # options 1: without properties and payloads, but their sizes, number: at most, cursor: stripe, split, data: filter and last topic -> count, cursor, result
    REQUEST_CLEAR = 12                 # the same -> count, cursor, split: about number of them are deleted
    REQUEST_RECEIVERS = 13             # number: at most, cursor: slot, in its upper half a subscription, data: topic -> count, cursor, result
    REQUEST_DECIDE = 14                # options: AclAction and DECIDE_WHOLE, split, data: client id and topic or filter -> count, result

cdef enum:
    DECIDE_WHOLE = 128                 # see rights_allow

cdef struct RequestMail:
    Mail mail
    uint64_t ticket                    # the asker's; 0: no answer
    uint64_t session                   # handle
    uint64_t cursor
    uint64_t count
    uint32_t number
    uint32_t split                     # bytes of data's first part: REQUEST_RETAINED: the filter, then the topic to go on after; REQUEST_DECIDE: the client id
    uint16_t worker
    uint8_t verb
    uint8_t options
    uint8_t reason
    uint8_t *result                    # owned; NULL: none
    uint32_t result_bytes
    uint32_t data_bytes
    uint8_t data[1]                    # data_bytes of them

cdef struct DeliveryItem:              # one reference each
    Msg *msg
    SubscriptionIds *subscription_ids  # NULL: none
    uint32_t message_expiry            # seconds left
    uint8_t has_expiry
    uint8_t qos
    uint8_t retain

cdef struct DeliveryMail:
    Mail mail
    uint64_t session
    uint64_t bytes
    uint32_t count
    uint32_t dropped                   # messages that the client has lost so far
    uint16_t worker
    DeliveryItem items[62]

cdef struct EventMail:
    Mail mail
    int64_t wall_ms
    uint32_t dropped                   # messages that the client has lost so far
    uint16_t event                     # report.LogEvent
    uint16_t listener
    uint8_t reason
    uint8_t level                      # of the protocol; 0: no connection
    uint8_t peer_bytes
    uint8_t peer[64]
    uint32_t client_id_bytes
    uint32_t username_bytes
    uint32_t detail_bytes
    uint8_t data[1]                    # client id, user name, detail

cdef struct PlainMail:
    Mail mail

cdef struct CommittedMail:             # of the journal
    Mail mail
    uint64_t sequence

cdef struct BodiesMail:                # of the journal: what a session had asked for
    Mail mail
    uint64_t session
    Body *bodies                       # owned
    uint32_t count

cdef enum WaitKind:
    WAIT_CONN = 0                      # replies of a connection
    WAIT_OFFER = 1                     # a QoS 2 message that is offered when it is safe
    WAIT_SESSION = 2                   # QoS 2 deliveries whose packet ids are safe then, up to packet_id
    WAIT_INSIDE = 3                    # replies to an in-process client

cdef struct Wait:                      # for a sequence of this worker's journal
    uint64_t until
    uint64_t session                   # handle; of WAIT_CONN: slot and generation of the link
    Msg *msg                           # one reference
    Route *route                       # one reference
    uint16_t packet_id
    uint8_t kind

# ---- the gate

cdef enum QuestionKind:
    QUESTION_CONNECT = 0
    QUESTION_AUTH = 1
    QUESTION_HEAD = 2                  # of an HTTP request
    QUESTION_PUBLISH = 3
    QUESTION_SUBSCRIBE = 4
    QUESTION_INSIDE = 5                # PUBLISH of an in-process client: slot and generation are its session's
    QUESTION_GRANT = 6                 # a grant ends soon: hooks may give another

cdef enum:                             # numbers of answers that bring a grant and are no verdict
    GRANT_NUMBER = 1 << 30             # a bit that no other question's number has
    GRANT_ANY = 0x7FFFFFFF             # in place of whatever the client has now; else of the one whose end the number tells

cdef struct Question:                  # owned by whoever holds the pointer: worker, ring, reader
    Question *next
    uint16_t worker
    uint16_t listener
    uint32_t slot
    uint32_t generation
    uint32_t number
    uint8_t kind
    uint8_t level
    uint8_t has_username
    uint8_t has_password
    uint8_t reason                     # of AUTH
    uint8_t remote                     # see CONN_REMOTE
    uint64_t bytes                     # of the struct and what stands behind it
    uint8_t *room                      # behind it, not used yet
    uint32_t peer_bytes
    uint8_t peer[64]
    # these point into the bytes behind the struct
    Span client_id
    Span username
    Span password
    Span auth_method
    Span auth_data
    Span certificate                   # of the peer, DER, verified by the transport
    Span key_name                      # of the pre-shared key that the peer holds
    Span common_name                   # of the peer's certificate, as a trusted proxy says
    Span head                          # of the HTTP request, up to its empty line
    Span topic                         # of PUBLISH
    Span payload                       # of PUBLISH; of SUBSCRIBE: its filters, in the layout of its version
    Span properties                    # of PUBLISH, what is forwarded; of SUBSCRIBE and a grant: the groups of the client's grant
    uint32_t message_expiry            # of PUBLISH, where has_expiry
    uint8_t has_expiry
    uint8_t flags                      # of PUBLISH: the low bits of its first byte

cdef struct Gate:
    pthread_mutex_t lock
    Question *head                     # under lock
    Question *tail                     # under lock
    uint32_t count                     # under lock
    uint64_t bytes                     # under lock
    uint32_t limit
    uint64_t limit_bytes

# ---- verdicts that are remembered

cdef struct VerdictEntry:
    uint64_t key[2]
    int64_t until_ms                   # 0: free
    int64_t ends_ms                    # Conn.ends_ms of who comes in by it
    uint8_t reason

cdef struct VerdictCache:
    VerdictEntry *entries              # owned: sets of four; NULL: none yet
    uint32_t sets
    uint32_t epoch                     # of the entries

cdef struct VerdictRules:              # what all workers' caches share
    uint64_t key[2]                    # of the hash; random, made once
    uint32_t fields                    # atomic: VerdictField [control plane]
    uint32_t epoch                     # atomic: entries of another one do not hold [control plane]

# ---- worker and engine

cdef struct Run:                       # QoS 0 packets that many receivers share, encoded once
    Chunk *chunk                       # one reference; NULL: none yet

cdef struct Worker:
    Reactor *reactor
    Engine *engine
    uint16_t index
    bint shutting_down
    bint thread_started
    uint32_t unsent                    # connections with output left when the loop ended
    int64_t shutdown_since_ms
    PlainMail shutdown_mail            # posted once, by engine_stop
    MsgPool msgs
    Acl *acl                           # one reference; NULL: none
    uint32_t rights_epoch              # the last one given out
    RouteCache routes
    VerdictCache verdicts
    Map clients                        # client id -> Session *
    Map groups                         # group id -> Group *
    Vec session_pages                  # Session * to a page of 64
    Vec session_free                   # uint32_t slots
    uint32_t session_count
    Run runs[4]                        # [layout * 2 + retain]
    Session *credit_dirty
    Vec braked                         # uint64_t session handles
    TimerNode brake_timer
    TimerNode sweep_timer
    TimerNode shutdown_timer
    TimerNode throttle_timer
    Vec throttled                      # uint64_t: slot and generation of links
    Vec yielded                        # the same: their input goes on in the next turn
    int64_t looked_ms                  # when memory and totals were looked at last
    int64_t shed_ms                    # when somebody was dropped last
    uint32_t shed_slot                 # where the search goes on
    bint turn_over                     # this turn has lasted long enough: the rest of what came is left for the next
    int64_t busy_until_ms              # a turn was so long that no new client is taken until then
    bint queues_full                   # what waits for all sessions together has met its limit
    uint8_t overload                   # OverloadStage
    Record *journal_first              # records of this turn
    Record *journal_last
    Record *journal_events             # a page of events, not linked yet
    uint64_t journal_bytes
    uint64_t journal_sequence          # of this turn's chain
    uint64_t journal_committed
    Ring waits                         # Wait, in the order of `until`
    Mail *post_first[256]              # mail of this turn, per worker
    Mail *post_last[256]
    uint64_t post_bytes[256]           # of the publications among it
    uint8_t crowded[256]               # that worker is behind with its mail: publishers to it are braked
    Mail *port_first                   # mail of this turn for the program
    Mail *port_last
    Inside *inside_due                 # in-process clients with something to take
    Inside *inside_later               # the same, in the next turn
    pthread_t thread
    Stats stats
    uint8_t apart[64]                  # what others write stands on a cache line of its own
    uint64_t mail_bytes                # atomic: publications on their way to this worker [any worker adds, this one subtracts]
    uint8_t apart_too[64]

cdef struct Engine:
    Settings settings
    Clock clock
    int64_t heard_ms                   # atomic: connections count as heard from until then, whatever they sent; see engine_advance
    Trie *trie
    RetainStore *retain
    Journal *journal                   # NULL: nothing outlives the process
    bint guarded                       # sessions have rights even without a grant; read only once workers run
    uint32_t acl_swaps                 # atomic: how often a worker has taken a table over
    bint synced                        # something is kept as DURABILITY_SYNCED
    RouteRules rules                   # what routes are told beside the tree
    LogRing *log
    Gate gate
    Guard guard
    VerdictRules verdict_rules
    Listener *listeners[256]
    uint32_t listener_count
    uint32_t connections               # atomic gauge
    uint32_t sessions                  # atomic gauge
    uint32_t stopping                  # atomic: graceful shutdown has begun
    uint32_t heard                     # atomic: bit of each report.LogEvent that the program wants to hear of
    uint32_t hooks                     # atomic: HookBit
    uint32_t events_waiting            # atomic gauge
    Inbox port                         # of the program
    bint port_open
    uint8_t *response_information      # owned; NULL: none
    uint32_t response_information_bytes
    Worker *workers[256]
