"""The border between the data plane and Python: see native.pyi for what is promised. Above it Python, below it no GIL."""

import contextlib
import ipaddress
import os
import time
import weakref

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from mqttc.base.alloc cimport mem_alloc, mem_alloc_zeroed, mem_free, mem_freed, mem_made
from mqttc.base.logring cimport LogRecord, logring_drain_wake, logring_dropped, logring_fd, logring_pop, logring_wake
from mqttc.base.types cimport Span, atomic_load_u32_relaxed, atomic_load_u64_relaxed, atomic_store_u32_relaxed, span_make
from mqttc.broker.acl cimport (
    ACL_PUBLISH, ACL_RECEIVE, ACL_RETAIN, ACL_SUBSCRIBE, ACL_WILL, Acl, Grant, acl_build, acl_drop, acl_live, grant_build, grant_drop, grant_join,
)
from mqttc.broker.gate cimport gate_answer, gate_answer_head, gate_answer_hook, gate_take
from mqttc.broker.handle cimport handle_make
from mqttc.broker.journal cimport Journal, journal_open
from mqttc.broker.overload cimport engine_memory
from mqttc.broker.recover cimport engine_recover
from mqttc.broker.rights cimport AclDecision, Rights, rights_allow, rights_build, rights_free, rights_own
from mqttc.broker.routes cimport HOOKS_WORKER, DurableFilter, routes_live, subscription_ids_live
from mqttc.broker.state cimport (
    GRANT_ANY, GRANT_NUMBER, HEAD_RESPOND, HEAD_SPLICE, HEAD_UPGRADE, HOOKS_ALLOW, HOOKS_PUBLISH, HOOKS_SUBSCRIBE, QUESTION_PUBLISH, Engine as NativeEngine, Listener, Question as NativeQuestion,
    Settings, Worker,
)
from mqttc.broker.stats cimport C_COUNT
from mqttc.broker.trie cimport trie_subscribe, trie_unsubscribe
from mqttc.broker.verdicts cimport VERDICT_ADDRESS, VERDICT_CLIENT_ID, VERDICT_ON, verdicts_configure
from mqttc.broker.worker cimport (
    engine_abandon, engine_acl, engine_adopt, engine_advance, engine_build, engine_counter, engine_free, engine_hold, engine_listen, engine_start, engine_stop,
)
from mqttc.net.proxy cimport Network, ProxyRules, proxy_live
from mqttc.net.reactor cimport TURN_CLASSES, NetStats, turn_class_us
from mqttc.net.tcp cimport PeerAddress
from mqttc.net.tls cimport (
    Tls as NativeTls, TlsKey, TlsSettings, tls_accept, tls_bind, tls_build, tls_drop, tls_live, tls_load, tls_rotate, tls_share, tls_stats,
)
from mqttc.net.tls_context cimport TlsCertificate, TlsFailure, TlsStats
from mqttc.net.transport cimport PROOF_CERTIFICATE, PROOF_KEY_NAME
from mqttc.net.vouched cimport Proofs, vouched_live
from mqttc.net.ws cimport ws_live
from mqttc.proto.topic cimport filter_check

# In the order of report.LogEvent.
EVENT_NAMES = (
    "connected", "disconnected", "connect refused", "protocol error", "taken over", "keep alive timeout", "connect timeout", "connection lost",
    "session expired", "messages dropped", "accept failed", "connection limit", "no memory", "shutting down", "subscribed", "unsubscribed",
    "retained limit", "handshake failed", "http request refused", "store fails", "store holds again",
    "authentication expired", "publish denied", "retain denied", "will denied", "subscribe denied", "grant expired", "name unsafe in filters", "overload",
)

cdef tuple PACKET_NAMES = (
    "reserved", "connect", "connack", "publish", "puback", "pubrec", "pubrel", "pubcomp", "subscribe", "suback", "unsubscribe", "unsuback", "pingreq",
    "pingresp", "disconnect", "auth",
)

# In the order of stats.Counter, from C_CONNECTS_ACCEPTED on.
cdef tuple COUNTER_NAMES = tuple(f"packets_received_{name}" for name in PACKET_NAMES) + tuple(f"packets_sent_{name}" for name in PACKET_NAMES) + (
    "connects_accepted", "connects_refused", "takeovers", "sessions_resumed", "sessions_expired", "disconnects_clean", "disconnects_abrupt",
    "protocol_errors", "keep_alive_timeouts", "connect_timeouts",
    "connections_refused_limit", "connections_refused_address", "connections_refused_user", "connections_refused_rate", "connections_refused_pending",
    "connections_refused_overload", "addresses_forgotten", "clients_slowed", "clients_ended_rate", "clients_throttled", "turns_cut", "clients_ended_overload", "subscriptions_refused",
    "gate_questions", "gate_timeouts", "verdicts_kept", "verdicts_reused", "auth_expired", "messages_received", "messages_sent",
    "messages_resent", "wills_published", "wills", "will_bytes", "retained_handed_out", "messages_queued", "messages_queued_bytes", "messages_inflight", "group_backlog",
    "subscriptions", "dropped_queue_full", "dropped_output_full", "dropped_expired", "dropped_too_large", "dropped_session_end", "dropped_group_full",
    "dropped_group_end", "dropped_no_memory", "dropped_retained_limit", "dropped_overload", "rejected_by_client", "publishers_braked", "mail_sent", "journal_notes_lost", "journal_refused",
    "websockets_upgraded", "http_requests_refused", "http_connections_spliced", "events_lost",
    "denied_publish", "denied_retain", "denied_will", "denied_subscribe", "denied_receive", "denied_client_id", "unsafe_name_denials", "grants_expired",
    "grants_renewed",
    "hook_questions", "hooks_unasked", "hooks_abandoned",
)
assert len(COUNTER_NAMES) == C_COUNT

cdef dict NAMES = {}                   # settings: name -> largest value
NAMES.update(dict.fromkeys((
    "workers", "max_packet_size", "max_connections", "max_sessions", "max_subscriptions", "max_queued_messages", "max_output_bytes", "queue_policy",
    "receive_maximum", "max_inflight", "topic_alias_maximum", "topic_alias_out", "session_expiry_s", "max_keep_alive_s", "retain_available",
    "wildcard_available", "shared_available", "subscription_ids_available", "max_topic_levels", "max_topic_bytes", "max_client_id_bytes",
    "connect_timeout_ms", "auth_timeout_ms", "shutdown_timeout_ms", "max_group_backlog", "group_strategy", "route_cache_entries", "turn_bytes",
    "max_request_head", "max_frame_size", "verdict_cache_entries", "queue_qos0_offline",
    "durability", "spill_after", "log_level",
    "max_connections_per_address", "max_connections_per_user", "connect_rate", "connect_rate_per_address", "connect_rate_addresses", "max_pending_connections", "max_tls_handshakes", "max_connect_packet",
    "max_message_rate", "max_byte_rate", "max_message_rate_out", "max_byte_rate_out", "rate_patience_ms", "max_filter_wildcards", "max_unreleased", "max_wills",
    "max_will_bytes", "turn_time_ms", "busy_turn_time_ms",
), 0xFFFFFFFF))
NAMES.update(dict.fromkeys((
    "max_queued_bytes", "max_retained_messages", "max_retained_bytes", "max_unauthenticated_bytes", "max_total_queued_messages", "max_total_queued_bytes", "max_memory",
), 0xFFFFFFFFFFFFFFFF))
NAMES.update(workers=255, receive_maximum=65535, max_inflight=65535, topic_alias_maximum=65535, topic_alias_out=65535, max_keep_alive_s=65535, max_topic_bytes=65535)

cdef dict ACL_ACTIONS = {"publish": ACL_PUBLISH, "subscribe": ACL_SUBSCRIBE, "receive": ACL_RECEIVE, "retain": ACL_RETAIN, "will": ACL_WILL}
cdef tuple ACL_SOURCES = ("rule", "default", "superuser", "name", "expiry", "loss", "nothing")     # in the order of rights.AclSource

cdef int64_t MOST_MS = 3153600000000   # a hundred years

cdef object ENGINES = weakref.WeakSet()


cdef str text_of(const uint8_t *p, uint32_t n):
    return p[:n].decode("utf-8", "replace")


cdef str span_text(Span span):
    return text_of(span.p, span.n)


cdef bytes span_bytes(Span span):
    return span.p[:span.n]


cdef class LogEvent:
    cdef readonly int64_t wall_ms
    cdef readonly int level
    cdef readonly int event
    cdef readonly int reason
    cdef readonly int worker
    cdef readonly int listener
    cdef readonly str client_id
    cdef readonly str peer
    cdef readonly str detail

    def __repr__(self):
        return f"<LogEvent {EVENT_NAMES[self.event]} client_id={self.client_id!r} reason=0x{self.reason:02x} detail={self.detail!r}>"


cdef class Question:
    cdef readonly object id
    cdef readonly int kind
    cdef readonly int listener
    cdef readonly str peer
    cdef readonly str client_id
    cdef readonly int protocol
    cdef readonly int reason
    cdef readonly object username
    cdef readonly object password
    cdef readonly object auth_method
    cdef readonly object auth_data
    cdef readonly object certificate
    cdef readonly object key_name
    cdef readonly object common_name
    cdef readonly object head
    cdef readonly str topic
    cdef readonly bytes payload
    cdef readonly bytes properties
    cdef readonly object message_expiry
    cdef readonly int flags
    cdef readonly bint remote

    def __repr__(self):
        return f"<Question {self.id} kind={self.kind} client_id={self.client_id!r} peer={self.peer}>"      # no secrets


cdef LogEvent log_event(const LogRecord *record):
    cdef LogEvent event = LogEvent.__new__(LogEvent)
    event.wall_ms = record.wall_ms
    event.level = record.level
    event.event = record.event
    event.reason = record.reason
    event.worker = record.worker
    event.listener = record.listener if record.peer_bytes else -1
    event.client_id = text_of(record.client_id, record.client_id_bytes)
    event.peer = text_of(record.peer, record.peer_bytes)
    event.detail = text_of(record.detail, record.detail_bytes)
    return event


cdef Question question(const NativeQuestion *native):
    cdef Question made = Question.__new__(Question)
    made.id = (<object> handle_make(native.worker, native.slot, native.generation) << 64) | (<object> native.generation << 32) | native.number
    made.kind = native.kind
    made.listener = native.listener
    made.peer = text_of(native.peer, native.peer_bytes)
    made.client_id = span_text(native.client_id)
    made.protocol = native.level
    made.reason = native.reason
    made.username = span_text(native.username) if native.has_username else None
    made.password = span_bytes(native.password) if native.has_password else None
    made.auth_method = span_text(native.auth_method) if native.auth_method.p != NULL else None
    made.auth_data = span_bytes(native.auth_data) if native.auth_data.p != NULL else None
    made.certificate = span_bytes(native.certificate) if native.certificate.p != NULL else None
    made.key_name = span_text(native.key_name) if native.key_name.p != NULL else None
    made.common_name = span_text(native.common_name) if native.common_name.p != NULL else None
    made.remote = native.remote
    made.head = span_bytes(native.head) if native.head.p != NULL else None
    if native.kind >= QUESTION_PUBLISH:
        made.topic = span_text(native.topic)
        made.payload = span_bytes(native.payload)
        made.properties = span_bytes(native.properties)
        made.message_expiry = native.message_expiry if native.has_expiry else None
        made.flags = native.flags
    return made


cdef Span span_of(bytes value):
    """Borrows: the bytes must be kept."""
    return span_make(<const char *> value, len(value))


cdef const char *text_or_null(bytes value):
    return <const char *> value if value else NULL


cdef int address_of(object address, PeerAddress *out) except -1:
    """From "host:port", IPv6 in brackets, or "unix"."""
    cdef bytes packed
    memset(out, 0, sizeof(PeerAddress))
    if address == "unix":
        out.family = 1
        return 0
    host, _, port = address.rpartition(":")
    parsed = ipaddress.ip_address(host.strip("[]").partition("%")[0])
    packed = packed_of(parsed)
    memcpy(out.address, <const char *> packed, 16)
    out.port = <uint16_t> int(port)
    out.family = 4 if parsed.version == 4 or parsed.ipv4_mapped is not None else 6
    return 0


cdef bytes packed_of(object address):
    """16 bytes, v4 as v4-mapped."""
    return address.packed if address.version == 6 else b"\0" * 10 + b"\xff\xff" + address.packed


cdef ProxyRules *proxy_rules(list networks) except NULL:
    cdef ProxyRules *rules = <ProxyRules *> mem_alloc_zeroed(1, sizeof(ProxyRules))
    cdef bytes packed
    cdef uint32_t i
    if rules != NULL:
        rules.trusted = <Network *> mem_alloc_zeroed(len(networks) + 1, sizeof(Network))
    if rules == NULL or rules.trusted == NULL:
        mem_free(rules)
        raise MemoryError()
    for i, network in enumerate(networks):
        packed = packed_of(network.network_address)
        memcpy(rules.trusted[i].address, <const char *> packed, 16)
        rules.trusted[i].prefix_bits = <uint8_t> (network.prefixlen + (96 if network.version == 4 else 0))
    rules.trusted_count = <uint32_t> len(networks)
    return rules


cdef void upgrade_drop(void *context) noexcept nogil:
    tls_drop(<NativeTls *> context)


cdef Grant *grant_of(tuple grant) except NULL:
    """From (table of rules or None, time to live in milliseconds or -1, superuser, user name or None, groups, milliseconds after which another is asked for or -1)."""
    cdef Acl *rules = NULL
    cdef Grant *made
    cdef bytes table, groups, name = b"" if grant[3] is None else grant[3].encode()
    cdef int64_t ttl_ms = grant[1]
    cdef bint superuser = grant[2]
    if grant[0] is not None:
        table = grant[0]
        rules = acl_build(span_of(table))
        if rules == NULL:
            raise ValueError("not a table of rules")
    made = grant_build(rules, ttl_ms, superuser, grant[3] is not None, span_of(name))
    if made == NULL:
        raise MemoryError()
    made.renew_ms = grant[5]
    groups = grant[4]
    if not grant_join(made, span_of(groups)):
        grant_drop(made)
        raise ValueError("not a list of groups")
    return made


def acl_decide(bytes table, str action, str text, *, str client_id, username=None, int listener=0, grant=None, bint whole=False):
    cdef Acl *acl = acl_build(span_of(table)) if table is not None else NULL
    cdef bytes client = client_id.encode(), topic = text.encode(), user = b"" if username is None else username.encode()
    cdef Span name = span_make(<const char *> user, len(user)) if username is not None else span_make(NULL, 0)
    cdef Grant *given = NULL
    cdef Rights *rights = NULL
    cdef AclDecision decision
    cdef bint allowed
    if table is not None and acl == NULL:
        raise ValueError("not a table of rules")
    try:
        if grant is not None:
            given = grant_of(grant)
        rights = rights_build(acl, given, span_of(client), name, <uint16_t> listener, 0)
        if rights == NULL:
            raise MemoryError()
        if action == "connect":
            allowed = rights_own(rights, span_of(client), &decision)
        else:
            allowed = rights_allow(rights, span_of(client), ACL_ACTIONS[action], span_of(topic), whole, &decision)
        return allowed, ACL_SOURCES[decision.source], bool(decision.granted), decision.number
    finally:
        rights_free(rights)
        grant_drop(given)
        acl_drop(acl)


cdef class Tls:
    cdef NativeTls *tls

    def __cinit__(self):
        self.tls = tls_build()
        if self.tls == NULL:
            raise MemoryError("no memory or no randomness for TLS")

    def __dealloc__(self):
        if self.tls != NULL:
            tls_drop(self.tls)

    def load(
        self, *, certificates, bytes client_ca, bytes crl, int client_certificate, str minimum_version, str ciphers, str ciphersuites, alpn, keys,
        str key_hint,
    ):
        cdef TlsSettings settings
        cdef TlsFailure failure
        cdef TlsCertificate *items
        cdef TlsKey *key_items
        cdef list kept = [(bytes(chain), bytes(key), password) for chain, key, password in certificates]
        cdef list sorted_keys = sorted((bytes(name), bytes(key)) for name, key in keys.items())
        cdef bytes cipher_bytes = ciphers.encode(), suite_bytes = ciphersuites.encode(), hint = key_hint.encode()
        cdef bytes protocols = b"".join(bytes([len(name)]) + name.encode() for name in alpn)
        cdef int status
        cdef uint32_t i
        if not 0 <= client_certificate <= 2 or minimum_version not in ("1.2", "1.3"):
            raise ValueError("client_certificate is 0, 1 or 2; minimum_version is 1.2 or 1.3")
        if any(b"\0" in name or not name or not 0 < len(key) <= 256 for name, key in sorted_keys):
            raise ValueError("a pre-shared key has a name without NUL, and 1 to 256 bytes")
        memset(&settings, 0, sizeof(TlsSettings))
        items = <TlsCertificate *> mem_alloc_zeroed(len(kept) + 1, sizeof(TlsCertificate))
        key_items = <TlsKey *> mem_alloc_zeroed(len(sorted_keys) + 1, sizeof(TlsKey))
        try:
            if items == NULL or key_items == NULL:
                raise MemoryError()
            for i, (chain, key, password) in enumerate(kept):
                items[i].chain = span_of(chain)
                items[i].key = span_of(key)
                if password is not None:
                    items[i].password = <const char *> (<bytes> password)
            for i, (name, key) in enumerate(sorted_keys):
                key_items[i].name = span_of(name)
                key_items[i].key = span_of(key)
            settings.certificates = items
            settings.certificate_count = <uint32_t> len(kept)
            settings.keys = key_items
            settings.key_count = <uint32_t> len(sorted_keys)
            settings.client_ca = span_of(client_ca)
            settings.crl = span_of(crl)
            settings.key_hint = text_or_null(hint)
            settings.ciphers = text_or_null(cipher_bytes)
            settings.ciphersuites = text_or_null(suite_bytes)
            settings.alpn = span_of(protocols)
            settings.minimum_version = 3 if minimum_version == "1.3" else 2
            settings.peer_certificate = <uint8_t> client_certificate
            status = tls_load(self.tls, &settings, &failure)
        finally:
            mem_free(items)
            mem_free(key_items)
        if status != 0:
            raise ValueError((<bytes> failure.text).decode("utf-8", "replace"))

    def rotate(self):
        if tls_rotate(self.tls) != 0:
            raise OSError("no randomness for ticket keys")

    def stats(self):
        cdef TlsStats stats
        tls_stats(self.tls, &stats)
        return {
            "tls_handshakes": stats.handshakes, "tls_handshakes_resumed": stats.resumed, "tls_handshakes_failed": stats.failed, "tls_loads": stats.loads,
        }


cdef void guard_settings(Settings *native, dict settings):
    """Those of the guard and of overload."""
    native.max_connections_per_address = settings["max_connections_per_address"]
    native.max_connections_per_user = settings["max_connections_per_user"]
    native.connect_rate = settings["connect_rate"]
    native.connect_rate_per_address = settings["connect_rate_per_address"]
    native.connect_rate_addresses = settings["connect_rate_addresses"]
    native.max_pending_connections = settings["max_pending_connections"]
    native.max_tls_handshakes = settings["max_tls_handshakes"]
    native.max_connect_packet = settings["max_connect_packet"]
    native.max_unauthenticated_bytes = settings["max_unauthenticated_bytes"]
    native.max_message_rate = settings["max_message_rate"]
    native.max_byte_rate = settings["max_byte_rate"]
    native.max_message_rate_out = settings["max_message_rate_out"]
    native.max_byte_rate_out = settings["max_byte_rate_out"]
    native.rate_patience_ms = settings["rate_patience_ms"]
    native.max_filter_wildcards = settings["max_filter_wildcards"]
    native.max_unreleased = settings["max_unreleased"]
    native.max_wills = settings["max_wills"]
    native.max_will_bytes = settings["max_will_bytes"]
    native.max_total_queued_messages = settings["max_total_queued_messages"]
    native.max_total_queued_bytes = settings["max_total_queued_bytes"]
    native.max_memory = settings["max_memory"]
    native.turn_time_ms = settings["turn_time_ms"]
    native.busy_turn_time_ms = settings["busy_turn_time_ms"]


cdef uint64_t turn_percentile(const uint64_t *classes, uint64_t total, uint32_t per_mille):
    """Microseconds that so many thousandths of the turns did not exceed, as the histogram's classes tell."""
    cdef uint64_t wanted = (total * per_mille + 999) // 1000
    cdef uint64_t seen = 0
    cdef uint32_t i
    for i in range(TURN_CLASSES):
        seen += classes[i]
        if wanted and seen >= wanted:
            return turn_class_us(i)
    return 0


cdef dict turn_stats(NativeEngine *engine):
    """How long turns take, of all workers together."""
    cdef uint64_t[124] classes
    cdef uint64_t total = 0, us = 0, last = 0, longest = 0, over_10ms = 0, over_100ms = 0, over_1s = 0
    cdef uint32_t i, k
    cdef NetStats *net
    memset(classes, 0, sizeof(classes))
    for i in range(engine.settings.workers):
        net = &engine.workers[i].reactor.stats
        us += atomic_load_u64_relaxed(&net.turn_us)
        last = max(last, atomic_load_u64_relaxed(&net.turn_last_us))
        longest = max(longest, atomic_load_u64_relaxed(&net.turn_longest_us))
        over_10ms += atomic_load_u64_relaxed(&net.turns_over_10ms)
        over_100ms += atomic_load_u64_relaxed(&net.turns_over_100ms)
        over_1s += atomic_load_u64_relaxed(&net.turns_over_1s)
        for k in range(TURN_CLASSES):
            classes[k] += atomic_load_u64_relaxed(&net.turn_classes[0][k]) + atomic_load_u64_relaxed(&net.turn_classes[1][k])
    for k in range(TURN_CLASSES):
        total += classes[k]
    return {
        "turn_us": us, "turn_last_us": last, "turn_longest_us": longest, "turn_p50_us": turn_percentile(classes, total, 500),
        "turn_p99_us": turn_percentile(classes, total, 990), "turns_over_10ms": over_10ms, "turns_over_100ms": over_100ms, "turns_over_1s": over_1s,
    }


cdef class Engine:
    def __init__(self, *, str response_information="", **settings):
        cdef Settings native
        cdef bytes information = response_information.encode()
        if self.engine != NULL:
            raise RuntimeError("an engine is made once")
        memset(&native, 0, sizeof(Settings))
        for name, value in settings.items():
            largest = NAMES.get(name)
            if largest is None:
                raise TypeError(f"Engine has no setting {name!r}")
            if not 0 <= value <= largest:
                raise ValueError(f"{name} = {value} is not within 0 .. {largest}")
        missing = NAMES.keys() - settings.keys()
        if missing:
            raise TypeError(f"Engine needs the settings {', '.join(sorted(missing))}")
        if not 1 <= settings["workers"] <= 255:
            raise ValueError("workers must be within 1 .. 255")
        native.workers = settings["workers"]
        native.max_packet_size = settings["max_packet_size"]
        native.max_connections = settings["max_connections"]
        native.max_sessions = settings["max_sessions"]
        native.max_subscriptions = settings["max_subscriptions"]
        native.max_queued_messages = settings["max_queued_messages"]
        native.max_queued_bytes = settings["max_queued_bytes"]
        native.max_output_bytes = settings["max_output_bytes"]
        native.queue_policy = settings["queue_policy"]
        native.receive_maximum = settings["receive_maximum"]
        native.max_inflight = settings["max_inflight"]
        native.topic_alias_maximum = settings["topic_alias_maximum"]
        native.topic_alias_out = settings["topic_alias_out"]
        native.session_expiry_s = settings["session_expiry_s"]
        native.max_keep_alive_s = settings["max_keep_alive_s"]
        native.retain_available = settings["retain_available"]
        native.wildcard_available = settings["wildcard_available"]
        native.shared_available = settings["shared_available"]
        native.subscription_ids_available = settings["subscription_ids_available"]
        native.max_retained_messages = settings["max_retained_messages"]
        native.max_retained_bytes = settings["max_retained_bytes"]
        native.max_topic_levels = settings["max_topic_levels"]
        native.max_topic_bytes = settings["max_topic_bytes"]
        native.max_client_id_bytes = settings["max_client_id_bytes"]
        native.connect_timeout_ms = settings["connect_timeout_ms"]
        native.auth_timeout_ms = settings["auth_timeout_ms"]
        native.shutdown_timeout_ms = settings["shutdown_timeout_ms"]
        native.max_group_backlog = settings["max_group_backlog"]
        native.group_strategy = settings["group_strategy"]
        native.route_cache_entries = settings["route_cache_entries"]
        native.turn_bytes = settings["turn_bytes"]
        native.max_request_head = settings["max_request_head"]
        native.max_frame_size = settings["max_frame_size"]
        native.verdict_cache_entries = settings["verdict_cache_entries"]
        native.queue_qos0_offline = settings["queue_qos0_offline"]
        native.durability = settings["durability"]
        native.spill_after = settings["spill_after"]
        native.log_level = settings["log_level"]
        guard_settings(&native, settings)
        self.engine = engine_build(&native)
        if self.engine == NULL:
            raise MemoryError("no memory or no descriptors for an engine")
        self.process = os.getpid()
        if information:
            self.engine.response_information = <uint8_t *> mem_alloc(len(information))
            if self.engine.response_information == NULL:
                raise MemoryError()
            memcpy(self.engine.response_information, <const char *> information, len(information))
            self.engine.response_information_bytes = <uint32_t> len(information)
        ENGINES.add(self)

    def __dealloc__(self):
        cdef NativeEngine *engine = self.engine
        self.engine = NULL
        if engine == NULL or os.getpid() != self.process:
            return                      # in a forked child nothing may be joined or freed
        with nogil:
            engine_stop(engine, 0)
            engine_free(engine)

    cdef NativeEngine *alive(self) except NULL:
        if self.engine == NULL:
            raise RuntimeError("the engine is closed")
        if os.getpid() != self.process:
            raise RuntimeError("the engine belongs to the process that made it")
        return self.engine

    def add_listener(
        self, int fd, *, str name, int family, int maximum_qos, int max_connections, int anonymous, int auth, uint32_t tcp_user_timeout_ms,
        uint32_t keepalive_idle_s, str server_reference, Tls tls=None, bint http=False, proxies=None, int durability=0, bint proxied=False,
    ):
        cdef NativeEngine *engine = self.alive()
        cdef Listener *listener
        cdef bytes reference = server_reference.encode()
        cdef int index
        cdef list networks = None if proxies is None else [ipaddress.ip_network(network, strict=False) for network in proxies]
        if self.started:
            raise RuntimeError("listeners are added before start")
        if not 0 <= maximum_qos <= 2 or not 0 <= anonymous <= 2 or not 0 <= auth <= 2 or max_connections < 0:
            raise ValueError("maximum_qos, anonymous and auth are 0, 1 or 2; max_connections is not negative")
        listener = <Listener *> mem_alloc_zeroed(1, sizeof(Listener))
        if listener == NULL:
            raise MemoryError()
        if reference:
            listener.server_reference = <uint8_t *> mem_alloc(len(reference))
            if listener.server_reference == NULL:
                mem_free(listener)
                raise MemoryError()
            memcpy(listener.server_reference, <const char *> reference, len(reference))
            listener.server_reference_bytes = <uint32_t> len(reference)
        if networks is not None:
            try:
                listener.proxy = proxy_rules(networks)
            except BaseException:
                mem_free(listener.server_reference)
                mem_free(listener)
                raise
        listener.http = http
        listener.proxied = proxied
        listener.durability = <uint8_t> durability
        listener.fd = fd
        listener.unix_socket = family == 1
        listener.maximum_qos = <uint8_t> maximum_qos
        listener.anonymous = <uint8_t> anonymous
        listener.ask_gate = <uint8_t> auth
        listener.max_connections = <uint32_t> max_connections
        listener.tcp_user_timeout_ms = tcp_user_timeout_ms
        listener.keepalive_idle_s = keepalive_idle_s
        if tls is not None:
            listener.upgrade = tls_accept
            listener.upgrade_context = tls_share(tls.tls)
            listener.upgrade_drop = upgrade_drop
            engine.guard.handshakes.most = engine.settings.max_tls_handshakes
            tls_bind(tls.tls, &engine.guard.handshakes)
        if listener.proxy != NULL:
            listener.proxy.upgrade = listener.upgrade
            listener.proxy.upgrade_context = listener.upgrade_context
        index = engine_listen(engine, listener)
        if index < 0:
            if tls is not None:
                tls_drop(tls.tls)
            if listener.proxy != NULL:
                mem_free(listener.proxy.trusted)
            mem_free(listener.proxy)
            mem_free(listener.server_reference)
            mem_free(listener)
            raise ValueError("too many listeners")
        return index

    def open_store(self, str path, *, uint64_t max_backlog_bytes, uint32_t retry_ms, filters):
        cdef NativeEngine *engine = self.alive()
        cdef bytes encoded = os.fsencode(path)
        cdef const char *name = encoded
        cdef char[200] why
        cdef int status
        if self.started or engine.journal != NULL:
            raise RuntimeError("the store is opened once, before start")
        items = [(text.encode(), mode) for text, mode in filters]
        if items:
            engine.rules.filters = <DurableFilter *> mem_alloc_zeroed(len(items), sizeof(DurableFilter))
            if engine.rules.filters == NULL:
                raise MemoryError()
        for text, mode in items:
            engine.rules.filters[engine.rules.filter_count].text = <uint8_t *> mem_alloc(len(text))
            if engine.rules.filters[engine.rules.filter_count].text == NULL:
                raise MemoryError()
            memcpy(engine.rules.filters[engine.rules.filter_count].text, <const char *> (<bytes> text), len(text))
            engine.rules.filters[engine.rules.filter_count].bytes = <uint32_t> len(text)
            engine.rules.filters[engine.rules.filter_count].durability = <uint8_t> mode
            engine.rules.filter_count += 1
        engine.rules.durability = <uint8_t> engine.settings.durability
        memset(&self.recovery, 0, sizeof(self.recovery))
        self.inside += 1
        self.store = path
        with nogil:
            engine.journal = journal_open(name, engine.settings.workers, max_backlog_bytes, retry_ms, why)
            status = engine_recover(engine, &self.recovery, why) if engine.journal != NULL else -3
        self.inside -= 1
        if status != 0:
            raise ValueError((<bytes> why).decode("utf-8", "replace"))

    def recovered(self):
        return {
            "sessions": atomic_load_u64_relaxed(&self.recovery.sessions), "subscriptions": atomic_load_u64_relaxed(&self.recovery.subscriptions),
            "deliveries": atomic_load_u64_relaxed(&self.recovery.deliveries), "retained": atomic_load_u64_relaxed(&self.recovery.retained),
            "expired": atomic_load_u64_relaxed(&self.recovery.expired), "orphans": atomic_load_u64_relaxed(&self.recovery.orphans),
        }

    def start(self):
        cdef NativeEngine *engine = self.alive()
        cdef int status
        if self.started:
            raise RuntimeError("the engine was started already")
        self.started = True
        self.started_at = time.monotonic()
        self.inside += 1
        with nogil:
            status = engine_start(engine)
        self.inside -= 1
        if status != 0:
            self.stop(0)
            raise OSError("the workers could not be started")

    def stop(self, uint32_t timeout_ms):
        cdef NativeEngine *engine = self.alive()
        cdef bint flushed
        if self.stopped:
            return True
        self.stopped = True
        self.inside += 1
        with nogil:
            flushed = engine_stop(engine, timeout_ms)
        self.inside -= 1
        return flushed

    def close(self):
        cdef NativeEngine *engine = self.engine
        if engine == NULL:
            return
        self.alive()
        if not self.stopped:
            self.stop(0)
        if self.inside:
            raise RuntimeError("another thread is still starting or stopping the engine, or moving its clock")
        self.engine = NULL
        with nogil:
            engine_free(engine)

    def stats(self):
        cdef NativeEngine *engine = self.alive()
        cdef dict stats = {}
        cdef NetStats *net
        cdef Worker *worker
        cdef uint32_t i
        cdef int counter
        for counter in range(C_COUNT):
            stats[COUNTER_NAMES[counter]] = engine_counter(engine, counter)
        for name in (
            "accepted", "accept_errors", "bytes_received", "bytes_sent", "reads", "writes", "short_writes", "turns", "route_hits", "route_misses",
        ):
            stats[name] = 0
        for i in range(engine.settings.workers):
            worker = engine.workers[i]
            net = &worker.reactor.stats
            stats["accepted"] += atomic_load_u64_relaxed(&net.accepted)
            stats["accept_errors"] += atomic_load_u64_relaxed(&net.accept_errors)
            stats["bytes_received"] += atomic_load_u64_relaxed(&net.bytes_in)
            stats["bytes_sent"] += atomic_load_u64_relaxed(&net.bytes_out)
            stats["reads"] += atomic_load_u64_relaxed(&net.reads)
            stats["writes"] += atomic_load_u64_relaxed(&net.writes)
            stats["short_writes"] += atomic_load_u64_relaxed(&net.short_writes)
            stats["turns"] += atomic_load_u64_relaxed(&net.turns)
            stats["route_hits"] += atomic_load_u64_relaxed(&worker.routes.hits)
            stats["route_misses"] += atomic_load_u64_relaxed(&worker.routes.misses)
        stats.update(turn_stats(engine))
        stats["connections_open"] = atomic_load_u32_relaxed(&engine.connections)
        stats["connections_pending"] = atomic_load_u32_relaxed(&engine.guard.pending)
        stats["tls_handshakes_open"] = atomic_load_u32_relaxed(&engine.guard.handshakes.open)
        stats["connections_refused_handshakes"] = atomic_load_u64_relaxed(&engine.guard.handshakes.refused)
        stats["unauthenticated_bytes"] = atomic_load_u64_relaxed(&engine.guard.early_bytes)
        stats["memory_bytes"] = engine_memory(engine)
        stats["overload_stage"] = atomic_load_u64_relaxed(&engine.guard.overload)
        stats["sessions"] = atomic_load_u32_relaxed(&engine.sessions)
        stats["retained"] = atomic_load_u64_relaxed(&engine.retain.count)
        stats["retained_bytes"] = atomic_load_u64_relaxed(&engine.retain.bytes)
        stats["tree_nodes"] = atomic_load_u64_relaxed(&engine.trie.node_count)
        stats["tree_lock_waits"] = atomic_load_u64_relaxed(&engine.trie.lock_waits)
        stats["uptime_seconds"] = int(time.monotonic() - self.started_at) if self.started else 0
        if engine.journal != NULL:
            stats["journal_commits"] = atomic_load_u64_relaxed(&engine.journal.stats.commits)
            stats["journal_syncs"] = atomic_load_u64_relaxed(&engine.journal.stats.syncs)
            stats["journal_records"] = atomic_load_u64_relaxed(&engine.journal.stats.records)
            stats["journal_cancelled"] = atomic_load_u64_relaxed(&engine.journal.stats.cancelled)
            stats["journal_logged"] = atomic_load_u64_relaxed(&engine.journal.stats.logged)
            stats["journal_folded"] = atomic_load_u64_relaxed(&engine.journal.stats.folded)
            stats["journal_failures"] = atomic_load_u64_relaxed(&engine.journal.stats.failures)
            stats["journal_gathers"] = atomic_load_u64_relaxed(&engine.journal.stats.gathers)
            stats["journal_rests"] = atomic_load_u64_relaxed(&engine.journal.stats.rests)
            stats["journal_reads"] = atomic_load_u64_relaxed(&engine.journal.stats.reads)
            stats["journal_commit_us"] = atomic_load_u64_relaxed(&engine.journal.stats.commit_ns) // 1000
            stats["journal_last_commit_us"] = atomic_load_u64_relaxed(&engine.journal.stats.last_commit_ns) // 1000
            stats["journal_longest_commit_us"] = atomic_load_u64_relaxed(&engine.journal.stats.longest_commit_ns) // 1000
            stats["journal_backlog_bytes"] = atomic_load_u64_relaxed(&engine.journal.stats.backlog_bytes)
            stats["journal_failing"] = atomic_load_u32_relaxed(&engine.journal.failing)
        stats["log_records_dropped"] = logring_dropped(engine.log)
        return stats

    def hold_clock(self, int64_t wall_milliseconds):
        cdef NativeEngine *engine = self.alive()
        if self.started or engine.journal != NULL:
            raise RuntimeError("the clock is held before open_store and start, or not")
        engine_hold(engine, wall_milliseconds)

    def advance_clock(self, int64_t milliseconds, int64_t wall_milliseconds, *, bint heard=False):
        cdef NativeEngine *engine = self.alive()
        if milliseconds < 0:
            raise ValueError("the monotonic clock does not go back")
        self.inside += 1
        with nogil:
            engine_advance(engine, milliseconds, wall_milliseconds, heard)
        self.inside -= 1

    @property
    def event_fd(self):
        return logring_fd(self.alive().log)

    def events(self):
        cdef NativeEngine *engine = self.alive()
        cdef LogRecord record
        cdef NativeQuestion *waiting
        cdef NativeQuestion *next
        cdef list taken = []
        cdef int room = 1000
        logring_drain_wake(engine.log)
        waiting = gate_take(&engine.gate)
        while waiting != NULL:
            next = waiting.next
            taken.append(question(waiting))
            mem_free(waiting)
            waiting = next
        while room and logring_pop(engine.log, &record):
            taken.append(log_event(&record))
            room -= 1
        if room == 0:
            logring_wake(engine.log)
        return taken

    def set_acl(self, bytes table):
        cdef NativeEngine *engine = self.alive()
        cdef Acl *acl = acl_build(span_of(table))
        cdef bint running = self.started
        cdef int status
        if acl == NULL:
            raise ValueError("not a table of rules")
        if running and not engine.guarded:
            acl_drop(acl)
            raise RuntimeError("an engine that was started without rules gets none")
        self.inside += 1
        with nogil:
            status = engine_acl(engine, acl, running)
            acl_drop(acl)
        self.inside -= 1
        if status != 0:
            raise MemoryError()

    def verdicts(self, *, bint on, bint client_id, bint address):
        cdef NativeEngine *engine = self.alive()
        verdicts_configure(&engine.verdict_rules, VERDICT_ON * on | VERDICT_CLIENT_ID * client_id | VERDICT_ADDRESS * address)

    def answer(self, question, int reason_code, *, auth_data=None, str username=None, int64_t lasts_ms=0, int64_t keep_ms=0, grant=None):
        cdef NativeEngine *engine = self.alive()
        cdef Grant *given = NULL
        cdef bytes data, name
        cdef Span span = span_make(NULL, 0)
        cdef Span user = span_make(NULL, 0)
        cdef uint16_t worker = <uint16_t> ((question >> 120) & 0xFF)
        if not 0 <= reason_code <= 255:
            raise ValueError("a reason code is a byte")
        if not (0 <= lasts_ms <= MOST_MS and 0 <= keep_ms <= MOST_MS):
            raise ValueError("lasts_ms and keep_ms are from 0 to a hundred years")
        if username is not None:
            name = username.encode()
            if len(name) > 65535:
                raise ValueError("a user name is longer than 65535 bytes")
            user = span_of(name)
        if self.stopped or worker >= engine.settings.workers:
            return
        if auth_data is not None:
            data = bytes(auth_data)
            if len(data) > 65535:
                raise ValueError("authentication data is longer than 65535 bytes")
            span = span_make(<const char *> data, len(data))
        if grant is not None:
            given = grant_of(grant)
        if gate_answer(
            engine, worker, <uint32_t> ((question >> 64) & 0xFFFFFFFF), <uint32_t> ((question >> 32) & 0xFFFFFFFF), <uint32_t> (question & 0xFFFFFFFF),
            <uint8_t> reason_code, span, user, lasts_ms, 0 if grant is not None else keep_ms, given,
        ) != 0:
            raise MemoryError()

    def regrant(self, question, grant, *, bint whatever=False):
        cdef NativeEngine *engine = self.alive()
        cdef Span nothing = span_make(NULL, 0)
        cdef uint16_t worker = <uint16_t> ((question >> 120) & 0xFF)
        cdef uint32_t number = <uint32_t> (question & 0xFFFFFFFF)
        if self.stopped or worker >= engine.settings.workers:
            return
        if whatever:
            number = <uint32_t> GRANT_ANY
        elif not number & <uint32_t> GRANT_NUMBER:
            raise ValueError("that question was not about a grant")
        if gate_answer(
            engine, worker, <uint32_t> ((question >> 64) & 0xFFFFFFFF), <uint32_t> ((question >> 32) & 0xFFFFFFFF), number, 0, nothing, nothing, 0, 0, grant_of(grant),
        ) != 0:
            raise MemoryError()

    cdef int answer_head(self, question, int verdict, bytes response, int fd, peer, bint remote) except -1:
        cdef NativeEngine *engine = self.alive()
        cdef uint16_t worker = <uint16_t> ((question >> 120) & 0xFF)
        cdef PeerAddress address
        memset(&address, 0, sizeof(PeerAddress))
        if peer is not None:
            address_of(peer, &address)
        if self.stopped or worker >= engine.settings.workers:
            if fd >= 0:
                os.close(fd)
            return 0
        if gate_answer_head(
            engine, worker, <uint32_t> ((question >> 64) & 0xFFFFFFFF), <uint32_t> ((question >> 32) & 0xFFFFFFFF), <uint32_t> (question & 0xFFFFFFFF),
            <uint8_t> verdict, span_of(response), fd, &address, remote,
        ) != 0:
            raise MemoryError()
        return 0

    def hooks(self, *, publish=(), bint subscribe=False, bint allow=False):
        cdef NativeEngine *engine = self.alive()
        cdef uint64_t handle = handle_make(<uint16_t> HOOKS_WORKER, 0, 1)
        cdef uint32_t bits = HOOKS_SUBSCRIBE * subscribe | HOOKS_ALLOW * allow
        cdef bint existed = False
        cdef Span filter
        cdef set wanted = {text.encode() for text in publish}
        cdef bytes text_bytes
        for text_bytes in wanted:
            filter = span_of(text_bytes)
            if not filter_check(filter) or trie_subscribe(engine.trie, filter, handle, 0, 0, &existed) != 0:
                raise ValueError(f"not a topic filter for a hook: {text_bytes.decode()!r}")
        # A topic may be asked about once too often meanwhile, never once too seldom: what is new is in the tree, what is old goes last.
        atomic_store_u32_relaxed(&engine.hooks, bits | (HOOKS_PUBLISH if wanted else 0))
        for text_bytes in self.hooked or ():
            if text_bytes not in wanted:
                trie_unsubscribe(engine.trie, span_of(text_bytes), handle)
        self.hooked = wanted

    def answer_hook(self, question, int verdict, int reason_code=0, bytes data=b"", *, bint inside=False):
        cdef NativeEngine *engine = self.alive()
        cdef uint16_t worker = <uint16_t> ((question >> 120) & 0xFF)
        if not 0 <= verdict <= 2 or not 0 <= reason_code <= 255:
            raise ValueError("a verdict is 0, 1 or 2, a reason code a byte")
        if self.stopped or worker >= engine.settings.workers:
            return
        if gate_answer_hook(
            engine, worker, <uint32_t> ((question >> 64) & 0xFFFFFFFF), <uint32_t> ((question >> 32) & 0xFFFFFFFF), <uint32_t> (question & 0xFFFFFFFF),
            inside, <uint8_t> verdict, <uint8_t> reason_code, span_of(data),
        ) != 0:
            raise MemoryError()

    def upgrade(self, question, bytes response, *, peer=None, bint remote=False):
        self.answer_head(question, HEAD_UPGRADE, response, -1, peer, remote)

    def respond(self, question, bytes response):
        self.answer_head(question, HEAD_RESPOND, response, -1, None, False)

    def splice(self, question, int fd):
        self.answer_head(question, HEAD_SPLICE, b"", fd, None, False)

    def adopt(self, int fd, int listener, *, str peer, bint websocket, certificate=None, key_name=None, bint remote=False):
        cdef NativeEngine *engine = self.alive()
        cdef PeerAddress address
        cdef Proofs proofs
        cdef bytes certificate_bytes, name_bytes
        cdef uint16_t worker
        cdef bint gone = self.stopped
        memset(&proofs, 0, sizeof(Proofs))
        address_of(peer, &address)
        if not 0 <= listener < <int> engine.listener_count:
            raise ValueError("there is no such listener")
        if certificate is not None:
            certificate_bytes = bytes(certificate)
            proofs.of[<int> PROOF_CERTIFICATE] = span_of(certificate_bytes)
        if key_name is not None:
            name_bytes = key_name.encode()
            proofs.of[<int> PROOF_KEY_NAME] = span_of(name_bytes)
        if gone:
            os.close(fd)
            return
        worker = <uint16_t> (self.adopted % engine.settings.workers)
        self.adopted += 1
        if engine_adopt(engine, worker, fd, <uint16_t> listener, &address, &proofs, websocket, remote) != 0:
            raise MemoryError()


def live_objects():
    return {"routes": routes_live(), "subscription_ids": subscription_ids_live(), "blocks": mem_made() - mem_freed(), "tls": tls_live(),
        "websockets": ws_live(), "proxied": proxy_live(), "vouched": vouched_live(), "acls": acl_live()}


def _close_store(path):
    """SQLite does not tell its descriptors: whatever is open on its files. Locks are the parent's, and stay."""
    files = set()
    for suffix in ("", "-wal", "-shm"):
        with contextlib.suppress(OSError):
            status = os.stat(f"{path}{suffix}")
            files.add((status.st_dev, status.st_ino))
    with contextlib.suppress(OSError):
        for name in os.listdir("/dev/fd"):
            with contextlib.suppress(OSError, ValueError):
                status = os.fstat(int(name))
                if (status.st_dev, status.st_ino) in files:
                    os.close(int(name))


def _after_fork_in_child():
    cdef Engine engine
    for engine in list(ENGINES):
        if engine.engine != NULL:
            engine_abandon(engine.engine)
            if engine.store is not None:
                _close_store(engine.store)


os.register_at_fork(after_in_child=_after_fork_in_child)
