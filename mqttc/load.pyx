"""The load generator's border with Python: see load.pyi for what is promised."""

import ipaddress

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset
from posix.time cimport clock_gettime, timespec

from mqttc.base.alloc cimport mem_alloc, mem_alloc_zeroed, mem_free
from mqttc.base.types cimport Span, atomic_load_u32_acquire, atomic_load_u64_relaxed, span_make
from mqttc.base.vec cimport vec_push
from mqttc.loadgen.actor cimport (
    MAX_THREADS, PACKET_IDS, PAYLOAD_HEADER, T_COUNT, VERB_ABORT, VERB_CONNECT, VERB_DISCONNECT, VERB_PUBLISH, VERB_RESET, VERB_STOP_PUBLISHING, Actor,
    ActorFilter, Field, Publishing, Road, actor_build, actor_free, field_build, field_free, field_start, field_tell,
)
from mqttc.loadgen.hist cimport HIST_BUCKETS, Hist, hist_bound
from mqttc.net.tcp cimport PeerAddress
from mqttc.net.tls_client cimport TlsClient as NativeTlsClient, TlsClientSettings, tls_client_build, tls_client_drop, tls_client_stats
from mqttc.net.tls_context cimport TlsCertificate, TlsFailure, TlsStats
from mqttc.proto.dialect cimport dialect_for

cdef extern from "<time.h>" nogil:
    ctypedef int clockid_t

cdef extern from "<pthread.h>" nogil:
    ctypedef unsigned long pthread_t
    int pthread_getcpuclockid(pthread_t thread, clockid_t *clock)

HEADER_BYTES = PAYLOAD_HEADER

# In the order of actor.Total.
cdef tuple TOTALS = (
    "connected", "subscribed", "connects", "refused", "lost_connections", "published", "acknowledged", "received", "bytes_received", "duplicates",
    "reordered", "foreign", "finished", "errors",
)
assert len(TOTALS) == T_COUNT


cdef int address_of(str text, int port, PeerAddress *out) except -1:
    cdef bytes packed
    parsed = ipaddress.ip_address(text)
    memset(out, 0, sizeof(PeerAddress))
    packed = parsed.packed if parsed.version == 6 else b"\0" * 10 + b"\xff\xff" + parsed.packed
    memcpy(out.address, <const char *> packed, 16)
    out.port = <uint16_t> port
    out.family = <uint8_t> parsed.version
    return 0


cdef uint8_t *kept(bytes data) except NULL:
    cdef uint8_t *copy = <uint8_t *> mem_alloc(len(data) if data else 1)
    if copy == NULL:
        raise MemoryError()
    memcpy(copy, <const char *> data, len(data))
    return copy


cdef bytes utf8(str text):
    cdef bytes data = text.encode()
    if len(data) > 65535:
        raise ValueError("a string of MQTT has at most 65535 bytes")
    return data


cdef const char *text_or_null(bytes value):
    return <const char *> value if value else NULL


cdef class TlsClient:
    cdef NativeTlsClient *client

    def __cinit__(
        self, *, bytes ca=b"", bint insecure=False, str server_name="", bytes certificate=b"", bytes key=b"", bytes password=None, alpn=(),
        str minimum_version="1.2", str maximum_version="1.3", str ciphers="", str ciphersuites="", bint resume=False,
    ):
        cdef TlsClientSettings settings
        cdef TlsCertificate identity
        cdef TlsFailure failure
        cdef bytes name = server_name.encode("idna" if not server_name.isascii() else "ascii")
        cdef bytes cipher_bytes = ciphers.encode(), suite_bytes = ciphersuites.encode()
        cdef list names = [protocol.encode() for protocol in alpn]
        cdef bytes protocols
        if minimum_version not in ("1.2", "1.3") or maximum_version not in ("1.2", "1.3") or minimum_version > maximum_version:
            raise ValueError("minimum_version and maximum_version are 1.2 or 1.3, the lower one first")
        if not insecure and not name:
            raise ValueError("a certificate that is verified must be for somebody: server_name")
        if any(not 0 < len(protocol) < 256 for protocol in names):
            raise ValueError("the name of a protocol has 1 to 255 bytes")
        if any(b"\0" in value for value in (name, cipher_bytes, suite_bytes, password or b"")):
            raise ValueError("these texts have no NUL")
        protocols = b"".join(bytes([len(protocol)]) + protocol for protocol in names)
        memset(&settings, 0, sizeof(TlsClientSettings))
        memset(&identity, 0, sizeof(TlsCertificate))
        settings.ca = span_make(<const char *> ca, len(ca))
        settings.server_name = text_or_null(name)
        if certificate:
            identity.chain = span_make(<const char *> certificate, len(certificate))
            identity.key = span_make(<const char *> key, len(key))
            if password is not None:
                identity.password = <const char *> password
            settings.certificate = &identity
        settings.alpn = span_make(<const char *> protocols, len(protocols))
        settings.ciphers = text_or_null(cipher_bytes)
        settings.ciphersuites = text_or_null(suite_bytes)
        settings.minimum_version = 3 if minimum_version == "1.3" else 2
        settings.maximum_version = 3 if maximum_version == "1.3" else 2
        settings.insecure = insecure
        settings.resume = resume
        self.client = tls_client_build(&settings, &failure)
        if self.client == NULL:
            raise ValueError((<bytes> failure.text).decode("utf-8", "replace"))

    def __dealloc__(self):
        if self.client != NULL:
            tls_client_drop(self.client)

    def stats(self):
        cdef TlsStats stats
        tls_client_stats(self.client, &stats)
        return {"handshakes": stats.handshakes, "resumed": stats.resumed, "failed": stats.failed}


cdef class Load:
    cdef Field *field
    cdef list made                     # actors before start, as addresses
    cdef bint started
    cdef uint32_t threads

    def __init__(
        self, str address, int port, *, uint32_t threads=1, int version=4, uint32_t connect_batch=200, TlsClient tls=None, bytes websocket_request=b"",
        bytes websocket_accept=b"", uint64_t websocket_frame_most=256 << 20,
    ):
        cdef Road road
        cdef bytes path = b""
        if not 1 <= threads <= MAX_THREADS:
            raise ValueError(f"threads must be within 1 .. {MAX_THREADS}")
        if version != 4 and version != 5:
            raise ValueError("version is 4 (MQTT 3.1.1) or 5")
        if connect_batch < 1:
            raise ValueError("connect_batch must be at least 1")
        if self.field != NULL:
            raise RuntimeError("a Load is made once")
        if bool(websocket_request) != bool(websocket_accept):
            raise ValueError("websocket_request and websocket_accept belong together")
        memset(&road, 0, sizeof(Road))
        if address.startswith("/") or address.startswith("@"):
            path = address.encode()
            path = b"\0" + path[1:] if path[:1] == b"@" else path
            if len(path) > 107:
                raise ValueError("a Unix socket's path has at most 107 bytes")
            road.target.family = 1
        else:
            address_of(address, port, &road.target)
        road.unix_path = span_make(<const char *> path, len(path))
        road.ws_request = span_make(<const char *> websocket_request, len(websocket_request))
        road.ws_accept = span_make(<const char *> websocket_accept, len(websocket_accept))
        road.ws_frame_most = websocket_frame_most
        if tls is not None:
            road.tls = tls.client
        self.field = field_build(dialect_for(<uint8_t> version), &road, threads, connect_batch)
        if self.field == NULL:
            raise MemoryError()
        self.threads = threads
        self.made = []

    def __dealloc__(self):
        self.end()

    cdef void end(self):
        cdef Field *field = self.field
        self.field = NULL
        if field == NULL:
            return
        if not self.started:
            for address in self.made or ():
                actor_free(<Actor *> <size_t> address)
        with nogil:
            field_free(field)

    def close(self):
        self.end()

    cdef Actor *actor(self, int client) except NULL:
        if self.field == NULL:
            raise RuntimeError("closed")
        if self.started:
            raise RuntimeError("clients are described before start")
        return <Actor *> <size_t> self.made[client]

    def add_client(
        self, str client_id, *, username=None, password=None, bint clean=True, uint32_t session_expiry=0, uint16_t keep_alive=0, source=None,
        bint verify=True, bint ordered=True, thread=None, bint again=False,
    ):
        cdef Actor *actor
        cdef bytes data
        cdef int index = len(self.made)
        if self.field == NULL or self.started:
            raise RuntimeError("clients are added before start")
        if thread is not None and not 0 <= thread < self.threads:
            raise ValueError("there is no such thread")
        actor = actor_build()
        if actor == NULL:
            raise MemoryError()
        try:
            actor.index = <uint32_t> index
            actor.thread = <uint32_t> (index % self.threads if thread is None else thread)
            actor.clean = clean
            actor.verify = verify
            actor.unordered = not ordered
            actor.again = again
            actor.keep_alive = keep_alive
            actor.session_expiry = session_expiry
            data = utf8(client_id)
            actor.client_id = kept(data)
            actor.client_id_bytes = <uint16_t> len(data)
            if username is not None:
                data = utf8(username)
                actor.username = kept(data)
                actor.username_bytes = <uint16_t> len(data)
            if password is not None:
                data = bytes(password)
                if len(data) > 65535:
                    raise ValueError("a password has at most 65535 bytes")
                actor.password = kept(data)
                actor.password_bytes = <uint16_t> len(data)
            if source is not None:
                address_of(source, 0, &actor.source)
        except BaseException:
            actor_free(actor)
            raise
        self.made.append(<size_t> actor)
        return index

    def subscribe_to(self, int client, str topic_filter, int qos):
        cdef Actor *actor = self.actor(client)
        cdef bytes data = utf8(topic_filter)
        cdef uint8_t *copy
        cdef ActorFilter *filter
        if not data or not 0 <= qos <= 2:
            raise ValueError("a filter is not empty, its QoS 0, 1 or 2")
        copy = kept(data)
        filter = <ActorFilter *> vec_push(&actor.filters)
        if filter == NULL:
            mem_free(copy)
            raise MemoryError()
        filter.text = copy
        filter.bytes = <uint16_t> len(data)
        filter.qos = <uint8_t> qos

    def publish_to(
        self, int client, list topics, *, int qos=0, bint retain=False, uint32_t payload_least=64, uint32_t payload_most=64, uint32_t window=10, uint32_t burst=1,
        double rate=0.0, double copies=1.0, bint loop=True, bint timed=False,
    ):
        cdef Actor *actor = self.actor(client)
        cdef Publishing *publishing
        cdef bytes data
        cdef list encoded = [utf8(topic) for topic in topics]
        cdef uint32_t i
        cdef uint32_t end = 0
        if actor.publishing != NULL:
            raise ValueError("this client publishes already")
        if not encoded or not all(encoded):
            raise ValueError("topics are not empty")
        if not 0 <= qos <= 2 or not PAYLOAD_HEADER <= payload_least <= payload_most <= 200 << 20:
            raise ValueError(f"QoS is 0, 1 or 2; payloads have from {PAYLOAD_HEADER} bytes to 200 MiB")
        if not 1 <= window <= 65000 or not 1 <= burst <= window or rate < 0 or copies <= 0:
            raise ValueError("window is within 1 .. 65000, burst within 1 .. window, rate not negative, copies above 0")
        publishing = <Publishing *> mem_alloc_zeroed(1, sizeof(Publishing))
        if publishing == NULL:
            raise MemoryError()
        actor.publishing = publishing   # freed with the actor from here on
        data = b"".join(encoded)
        publishing.topics = kept(data)
        publishing.topic_ends = <uint32_t *> mem_alloc(len(encoded) * sizeof(uint32_t))
        if publishing.topic_ends == NULL:
            raise MemoryError()
        for i in range(<uint32_t> len(encoded)):
            end += <uint32_t> len(encoded[i])
            publishing.topic_ends[i] = end
        publishing.topic_count = <uint32_t> len(encoded)
        publishing.qos = <uint8_t> qos
        publishing.retain = retain
        publishing.loop = loop
        publishing.payload_least = payload_least
        publishing.payload_most = payload_most
        publishing.window = window
        publishing.burst = burst
        publishing.copies = copies
        publishing.interval_ns = 1e9 / rate if rate else 0.0
        publishing.random = 0x9E3779B97F4A7C15 + actor.index
        publishing.next_packet_id = 1
        if timed and qos:
            publishing.stamps = <uint64_t *> mem_alloc_zeroed(PACKET_IDS, sizeof(uint64_t))
            if publishing.stamps == NULL:
                raise MemoryError()
        if payload_most > self.field.payload_most:
            self.field.payload_most = payload_most

    def start(self):
        cdef uint32_t count = <uint32_t> len(self.made)
        cdef Actor **actors
        cdef Field *field = self.field
        cdef uint32_t i
        cdef int status
        if field == NULL or self.started:
            raise RuntimeError("started once, before close")
        actors = <Actor **> mem_alloc((count if count else 1) * sizeof(Actor *))
        if actors == NULL:
            raise MemoryError()
        for i in range(count):
            actors[i] = <Actor *> <size_t> self.made[i]
        self.started = True             # the field owns the actors now
        with nogil:
            status = field_start(field, actors, count)
        if status != 0:
            raise OSError("the threads could not be started")

    cdef int tell(self, uint32_t verb, int first, object count, uint64_t messages) except -1:
        cdef Field *field = self.field
        cdef uint32_t end
        if field == NULL or not self.started:
            raise RuntimeError("not started")
        if not 0 <= first <= <int> field.actor_count or (count is not None and not 0 <= count <= <int> field.actor_count - first):
            raise IndexError("there are no such clients")
        end = field.actor_count if count is None else <uint32_t> (first + count)
        if field_tell(field, verb, <uint32_t> first, end, messages) != 0:
            raise MemoryError()
        return 0

    def connect(self, int first=0, count=None):
        self.tell(VERB_CONNECT, first, count, 0)

    def disconnect(self, int first=0, count=None, *, bint abrupt=False):
        self.tell(VERB_ABORT if abrupt else VERB_DISCONNECT, first, count, 0)

    def publish(self, int first=0, count=None, *, uint64_t messages=0):
        self.tell(VERB_PUBLISH, first, count, messages)

    def stop_publishing(self):
        self.tell(VERB_STOP_PUBLISHING, 0, None, 0)

    def reset(self):
        self.tell(VERB_RESET, 0, None, 0)

    cdef Field *running(self) except NULL:
        if self.field == NULL or not self.started:
            raise RuntimeError("not running")
        return self.field

    def counters(self):
        cdef Field *field = self.running()
        cdef dict counters = {}
        cdef uint64_t total
        cdef uint32_t i
        cdef int which
        for which in range(T_COUNT):
            total = 0
            for i in range(field.thread_count):
                total += atomic_load_u64_relaxed(&field.crews[i].totals[which])
            counters[TOTALS[which]] = total
        counters["cpu_ns"] = sum(self.thread_cpu_ns())
        return counters

    def failure(self):
        cdef Field *field = self.running()
        cdef uint32_t i
        for i in range(field.thread_count):
            if atomic_load_u32_acquire(&field.crews[i].failure_known):
                return (<bytes> field.crews[i].failure).decode("utf-8", "replace")
        return None

    def thread_cpu_ns(self):
        cdef Field *field = self.running()
        cdef uint32_t i
        cdef clockid_t clock
        cdef timespec spent
        cdef list threads = []
        for i in range(field.thread_count):
            if pthread_getcpuclockid(field.crews[i].thread, &clock) != 0 or clock_gettime(clock, &spent) != 0:
                raise OSError("the threads' processor time cannot be read")
            threads.append(<uint64_t> spent.tv_sec * 1000000000 + <uint64_t> spent.tv_nsec)
        return threads

    def delivered(self):
        cdef Field *field = self.running()
        cdef uint32_t i
        return [atomic_load_u64_relaxed(&field.delivered[i]) for i in range(field.actor_count)]

    def received(self):
        cdef Field *field = self.running()
        cdef uint32_t i
        return [atomic_load_u64_relaxed(&field.actors[i].received) for i in range(field.actor_count)]

    def published(self):
        cdef Field *field = self.running()
        cdef uint32_t i
        return [
            atomic_load_u64_relaxed(&field.actors[i].publishing.sequence) if field.actors[i].publishing != NULL else 0 for i in range(field.actor_count)
        ]

    cdef dict histogram(self, bint acknowledging):
        cdef Field *field = self.running()
        cdef Hist *hist
        cdef dict buckets = {}
        cdef uint64_t total
        cdef uint32_t i, k
        for k in range(HIST_BUCKETS):
            total = 0
            for i in range(field.thread_count):
                hist = field.crews[i].acknowledging if acknowledging else field.crews[i].latency
                total += atomic_load_u64_relaxed(&hist.counts[k])
            if total:
                buckets[hist_bound(k)] = total
        return buckets

    def latency(self):
        return self.histogram(False)

    def acknowledgement_latency(self):
        return self.histogram(True)
