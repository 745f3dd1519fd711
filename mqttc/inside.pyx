"""The border between in-process clients and the workers: see inside.pyi for what is promised."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from mqttc.base.alloc cimport mem_alloc_zeroed, mem_free
from mqttc.base.inbox cimport Mail, inbox_drain_wake, inbox_post, inbox_take, inbox_wake
from mqttc.base.msg cimport Msg, msg_payload, msg_properties, msg_topic
from mqttc.base.types cimport Span, atomic_add_u32_relaxed, atomic_store_u32_relaxed, span_make
from mqttc.broker.handle cimport handle_worker
from mqttc.broker.port cimport request_free
from mqttc.broker.report cimport (
    EV_CONNECTED, EV_CONNECTION_LOST, EV_DISCONNECTED, EV_MESSAGES_DROPPED, EV_SESSION_EXPIRED, EV_SUBSCRIBED, EV_TAKEN_OVER, EV_UNSUBSCRIBED,
)
from mqttc.broker.session cimport client_hash
from mqttc.broker.state cimport (
    MAIL_DELIVERY, MAIL_EVENT, MAIL_REQUEST, REQUEST_CLEAR, REQUEST_CLOSE, REQUEST_DECIDE, REQUEST_DISCONNECT, REQUEST_END, REQUEST_LIST, REQUEST_LOOK, REQUEST_OPEN,
    REQUEST_PUBLISH, REQUEST_RECEIVERS, REQUEST_RETAINED, REQUEST_SUBSCRIBE, REQUEST_TAKEN, REQUEST_UNSUBSCRIBE, DeliveryItem, DeliveryMail, Engine as NativeEngine, EventMail,
    RequestMail,
)
from mqttc.native cimport Engine

OPEN = REQUEST_OPEN
CLOSE = REQUEST_CLOSE
PUBLISH = REQUEST_PUBLISH
SUBSCRIBE = REQUEST_SUBSCRIBE
UNSUBSCRIBE = REQUEST_UNSUBSCRIBE
TAKEN = REQUEST_TAKEN
LIST = REQUEST_LIST
LOOK = REQUEST_LOOK
DISCONNECT = REQUEST_DISCONNECT
END = REQUEST_END
RETAINED = REQUEST_RETAINED
CLEAR = REQUEST_CLEAR
RECEIVERS = REQUEST_RECEIVERS
DECIDE = REQUEST_DECIDE

CONNECTED = EV_CONNECTED
DISCONNECTED = EV_DISCONNECTED
CONNECTION_LOST = EV_CONNECTION_LOST
TAKEN_OVER = EV_TAKEN_OVER
SUBSCRIBED = EV_SUBSCRIBED
UNSUBSCRIBED = EV_UNSUBSCRIBED
DROPPED = EV_MESSAGES_DROPPED
SESSION_EXPIRED = EV_SESSION_EXPIRED


cdef bytes bytes_of(Span span):
    return span.p[:span.n] if span.n else b""


cdef str text_of(const uint8_t *p, uint32_t n):
    return p[:n].decode("utf-8", "replace") if n else ""


cdef class RawMessage:
    cdef readonly str topic
    cdef readonly bytes payload
    cdef readonly int qos
    cdef readonly bint retain
    cdef readonly object message_expiry
    cdef readonly bytes raw_properties
    cdef readonly tuple identifiers


cdef class Delivery:
    cdef readonly uint64_t session
    cdef readonly uint64_t size
    cdef readonly uint32_t dropped
    cdef readonly list messages


cdef class Answer:
    cdef readonly uint64_t ticket
    cdef readonly uint64_t session
    cdef readonly uint64_t cursor
    cdef readonly uint64_t count
    cdef readonly uint32_t split
    cdef readonly int reason
    cdef readonly bytes result


cdef class RawEvent:
    cdef readonly int kind
    cdef readonly int reason
    cdef readonly int listener
    cdef readonly int level
    cdef readonly uint64_t wall_ms
    cdef readonly uint32_t dropped
    cdef readonly str peer
    cdef readonly str client_id
    cdef readonly str username
    cdef readonly str detail


cdef RawMessage message_of(const DeliveryItem *item, type kind):
    cdef RawMessage message = kind.__new__(kind)
    cdef const Msg *msg = item.msg
    cdef Span topic = msg_topic(msg)
    cdef uint32_t i
    message.topic = text_of(topic.p, topic.n)
    message.payload = bytes_of(msg_payload(msg))
    message.raw_properties = bytes_of(msg_properties(msg))
    message.qos = item.qos
    message.retain = item.retain
    message.message_expiry = item.message_expiry if item.has_expiry else None
    message.identifiers = ()
    if item.subscription_ids != NULL:
        message.identifiers = tuple([item.subscription_ids.ids[i] for i in range(item.subscription_ids.count)])
    return message


cdef Delivery delivery_of(const DeliveryMail *mail, type kind):
    cdef Delivery delivery = Delivery.__new__(Delivery)
    cdef uint32_t i
    delivery.session = mail.session
    delivery.size = mail.bytes
    delivery.dropped = mail.dropped
    delivery.messages = [message_of(&mail.items[i], kind) for i in range(mail.count)]
    return delivery


cdef Answer answer_of(const RequestMail *mail):
    cdef Answer answer = Answer.__new__(Answer)
    answer.ticket = mail.ticket
    answer.session = mail.session
    answer.cursor = mail.cursor
    answer.count = mail.count
    answer.split = mail.split
    answer.reason = mail.reason
    answer.result = bytes_of(span_make(mail.result, mail.result_bytes))
    return answer


cdef RawEvent event_of(EventMail *mail):
    cdef RawEvent event = RawEvent.__new__(RawEvent)
    cdef const uint8_t *room = mail.data
    event.kind = mail.event
    event.reason = mail.reason
    event.listener = mail.listener if mail.peer_bytes else -1
    event.level = mail.level
    event.wall_ms = <uint64_t> mail.wall_ms
    event.dropped = mail.dropped
    event.peer = text_of(mail.peer, mail.peer_bytes)
    event.client_id = text_of(room, mail.client_id_bytes)
    event.username = text_of(room + mail.client_id_bytes, mail.username_bytes)
    event.detail = text_of(room + mail.client_id_bytes + mail.username_bytes, mail.detail_bytes)
    return event


cdef class Port:
    cdef Engine owner
    cdef type kind

    def __init__(self, Engine owner, type kind):
        if not issubclass(kind, RawMessage):
            raise TypeError("messages are made as a subclass of RawMessage")
        self.owner = owner
        self.kind = kind

    @property
    def fd(self):
        return self.owner.alive().port.wake_read_fd

    @property
    def workers(self):
        return self.owner.alive().settings.workers

    def hear(self, events):
        cdef NativeEngine *engine = self.owner.alive()
        cdef uint32_t bits = 0
        for event in events:
            bits |= <uint32_t> 1 << <int> event
        atomic_store_u32_relaxed(&engine.heard, bits)

    def home(self, bytes client_id):
        return client_hash(span_make(<const char *> client_id, len(client_id))) % self.owner.alive().settings.workers

    def ask(
        self, int verb, *, int worker=-1, uint64_t ticket=0, uint64_t session=0, uint64_t cursor=0, uint32_t number=0, uint32_t split=0, uint8_t options=0,
        bytes data=b"",
    ):
        cdef NativeEngine *engine = self.owner.alive()
        cdef RequestMail *mail
        cdef Py_ssize_t n = len(data)
        cdef uint16_t to = handle_worker(session) if worker < 0 else <uint16_t> worker
        if to >= engine.settings.workers or not REQUEST_OPEN <= verb <= REQUEST_DECIDE or split > n or (verb == REQUEST_PUBLISH and ticket == 0):
            raise ValueError("no such request")
        if not self.owner.started or self.owner.stopped:
            raise RuntimeError("the workers do not run")
        mail = <RequestMail *> mem_alloc_zeroed(1, sizeof(RequestMail) + n)
        if mail == NULL:
            raise MemoryError()
        mail.mail.kind = MAIL_REQUEST
        mail.ticket = ticket
        mail.session = session
        mail.cursor = cursor
        mail.number = number
        mail.split = split
        mail.worker = to
        mail.verb = <uint8_t> verb
        mail.options = options
        mail.data_bytes = <uint32_t> n
        if n:
            memcpy(mail.data, <const char *> data, n)
        if inbox_post(&engine.workers[to].reactor.inbox, &mail.mail, &mail.mail):
            inbox_wake(&engine.workers[to].reactor.inbox)

    def receive(self):
        cdef NativeEngine *engine = self.owner.alive()
        cdef Mail *mail
        cdef Mail *next
        cdef list taken = []
        inbox_drain_wake(&engine.port)
        mail = inbox_take(&engine.port)
        while mail != NULL:
            next = mail.next
            if mail.kind == MAIL_REQUEST:
                taken.append(answer_of(<RequestMail *> mail))
                request_free(<RequestMail *> mail)
            elif mail.kind == MAIL_DELIVERY:
                taken.append(delivery_of(<DeliveryMail *> mail, self.kind))
                give_back(engine, <DeliveryMail *> mail)
            elif mail.kind == MAIL_EVENT:
                taken.append(event_of(<EventMail *> mail))
                atomic_add_u32_relaxed(&engine.events_waiting, <uint32_t> -1)
                mem_free(mail)
            mail = next
        return taken


cdef void give_back(NativeEngine *engine, DeliveryMail *mail) noexcept nogil:
    """The blocks belong to the worker that handed them out."""
    if inbox_post(&engine.workers[mail.worker].reactor.inbox, &mail.mail, &mail.mail):
        inbox_wake(&engine.workers[mail.worker].reactor.inbox)
