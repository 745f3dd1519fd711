"""Record: one thing that workers note for the journal, from a session that was made to a page of deliveries that are over.

A record is mail: workers chain those of a turn and post the chain. It owns its message, its data stands behind it.
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from mqttc.base.inbox cimport Mail
from mqttc.base.msg cimport Msg, MsgPool

cdef enum Durability:                  # of a message: the strongest of those that apply
    DURABILITY_OFF = 0
    DURABILITY_WRITTEN = 1             # survives the process
    DURABILITY_SYNCED = 2              # survives the power

cdef enum RecordKind:                  # Mail.kind of a Record, and what its fields mean there
    RECORD_MESSAGE = 1                 # message, msg, targets (count); handle and packet_id: QoS 2 of that session; version: retained; time_ms: expiry
    RECORD_EVENTS = 2                  # count Events in data
    RECORD_SESSION = 6                 # handle, expiry_s, data: client id
    RECORD_SESSION_END = 7             # handle
    RECORD_PRESENCE = 8                # handle, expiry_s, time_ms: off line since then; 0: on line
    RECORD_SUBSCRIBE = 9               # handle, options, number: identifier, data: filter
    RECORD_UNSUBSCRIBE = 10            # handle, data: filter
    RECORD_HANDED_OUT = 11             # handle, data: filter: its retained messages were
    RECORD_WILL = 12                   # handle, msg, number: delay, expiry_s; has_expiry
    RECORD_WILL_DONE = 13              # handle
    RECORD_GROUP = 14                  # handle: group, data: $share/group/filter
    RECORD_GROUP_END = 15              # handle: group, count: the RECORD_GROUPs that its home knows of
    RECORD_READ = 16                   # handle, worker, count ids in data: answered by `bodies`
    RECORD_BLOCKS = 17                 # msg: a chain of dead blocks of the journal's making

cdef enum DeliveryState:
    DELIVERY_QUEUED = 0
    DELIVERY_SENT = 1
    DELIVERY_RELEASED = 2

cdef enum DeliveryFlag:                # of a stored delivery
    DELIVERY_RETAIN = 1
    DELIVERY_LENT = 2                  # a session's, at QoS 1, of a shared group that it has left: `identifiers` is the group's id (uint64)

cdef enum:
    HANDOUT_PENDING = 0x80             # in the options of a stored subscription
    LENT_SHIFT = 40                    # of the packet id in delivery.target; below it the id of a session or group

cdef struct RecordTarget:
    uint64_t handle                    # session, or group
    uint32_t *identifiers              # owned, their count before them; NULL: none
    void *record                       # [journal thread] the record that it is in, where it stands in the window's map
    uint16_t packet_id
    uint8_t qos
    uint8_t flags                      # 1: RETAIN
    uint8_t group
    uint8_t state                      # DeliveryState
    uint8_t cancelled                  # over: it is not written any more
    uint8_t mapped                     # [journal thread] it stands in the window's map

cdef enum EventKind:
    EVENT_DONE = 1                     # the delivery is over
    EVENT_SENT = 2                     # with packet_id; from group: the session has it for good
    EVENT_RELEASED = 3                 # PUBREC came
    EVENT_INBOUND_DONE = 4             # PUBREL came: handle, packet_id
    EVENT_NOTHING = 5                  # came and went within the batch
    EVENT_RETURNED = 7                 # with packet_id: what a session had SENT from `group` is the group's again, for the session ends
    EVENT_RESERVED = 6                 # handle, packet_id: of a QoS 2 message that is not kept; until it is DONE (message 0, WAS_RELEASED)

cdef enum EventFlag:
    EVENT_OF_GROUP = 1                 # handle is a group
    EVENT_WAS_RELEASED = 2             # the message was given up at PUBREC
    EVENT_AT_QOS_1 = 4                 # SENT from a group

cdef struct Event:                     # of one delivery
    uint64_t message
    uint64_t handle                    # session or group
    uint64_t group                     # SENT: of that group until now; 0: of the session. RETURNED: of that group from now on
    uint16_t packet_id                 # 0: none was given yet
    uint8_t kind
    uint8_t flags

cdef enum:
    EVENTS_PER_RECORD = 128

cdef struct Record:                    # then data: targets, events, bytes or ids
    Mail mail
    uint64_t sequence                  # of the worker's chain, on its last record; else 0
    uint64_t message
    uint64_t handle
    uint64_t version
    int64_t time_ms                    # wall clock
    Msg *msg                           # one reference; NULL: none
    void *log_row                      # [journal thread] where the log has it; NULL: nowhere
    uint32_t count
    uint32_t bytes                     # counted in the backlog
    uint32_t expiry_s
    uint32_t number
    uint16_t worker
    uint16_t packet_id
    uint8_t synced                     # the commit must reach the disk
    uint8_t options
    uint8_t has_expiry
    uint8_t cancelled                  # nothing to do

cdef struct Body:                      # of a message that was read back
    uint64_t message
    Msg *msg                           # one reference; NULL: it is not there
    int64_t expires_wall_ms            # 0: never

cdef Record *record_build(uint32_t kind, uint32_t data_bytes) noexcept nogil                           # zeroed; NULL: no memory
cdef void record_release(MsgPool *pool, Record *record) noexcept nogil                                 # gives its message up, by that pool's thread

cdef inline uint8_t *record_data(Record *record) noexcept nogil:
    return <uint8_t *> (record + 1)

cdef inline Event *record_events(Record *record) noexcept nogil:
    return <Event *> (record + 1)

cdef inline RecordTarget *record_targets(Record *record) noexcept nogil:
    return <RecordTarget *> (record + 1)
