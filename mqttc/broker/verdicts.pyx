from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memset

from mqttc.base.alloc cimport mem_alloc, mem_alloc_zeroed, mem_free
from mqttc.base.map cimport random_bytes
from mqttc.base.siphash cimport SipHash, sip_add, sip_begin, sip_end
from mqttc.base.types cimport ST_OK, Span, atomic_add_u32_relaxed, atomic_load_u32_acquire, atomic_store_u32_release
from mqttc.broker.state cimport Conn, VerdictCache, VerdictEntry, VerdictRules, Worker
from mqttc.broker.stats cimport C_VERDICTS_KEPT, stat
from mqttc.net.transport cimport PROOF_COUNT, Transport, transport_proof
from mqttc.proto.packet cimport HAS_AUTH_METHOD, Packet

cdef enum:
    WAYS = 4                           # entries of a set


cdef int verdicts_init(VerdictRules *rules) noexcept nogil:
    memset(rules, 0, sizeof(VerdictRules))
    return random_bytes(<uint8_t *> rules.key, sizeof(rules.key))


cdef void verdicts_configure(VerdictRules *rules, uint32_t fields) noexcept nogil:
    atomic_store_u32_release(&rules.fields, fields)
    atomic_add_u32_relaxed(&rules.epoch, 1)


cdef void verdicts_free(VerdictCache *cache) noexcept nogil:
    mem_free(cache.entries)
    cache.entries = NULL


cdef void field_add(SipHash *sip, const uint8_t *bytes, uint32_t n) noexcept nogil:
    """With its length before it, so that no two lists of fields read the same."""
    cdef uint8_t[4] length
    length[0] = <uint8_t> n
    length[1] = <uint8_t> (n >> 8)
    length[2] = <uint8_t> (n >> 16)
    length[3] = <uint8_t> (n >> 24)
    sip_add(sip, length, 4)
    if n:
        sip_add(sip, bytes, n)


cdef bint proofs_add(SipHash *sip, Transport *transport) noexcept nogil:
    """False: no memory."""
    cdef uint8_t *room
    cdef uint32_t n
    cdef int kind
    for kind in range(PROOF_COUNT):
        n = transport_proof(transport, kind, NULL, 0)
        if n == 0:
            field_add(sip, NULL, 0)
            continue
        room = <uint8_t *> mem_alloc(n)
        if room == NULL:
            return False
        if transport_proof(transport, kind, room, n) != n:
            mem_free(room)
            return False
        field_add(sip, room, n)
        mem_free(room)
    return True


cdef bint verdict_key(Worker *worker, Conn *conn, const Packet *packet, bint admitted, uint64_t *key, uint32_t *epoch) noexcept nogil:
    cdef VerdictRules *rules = &worker.engine.verdict_rules
    cdef SipHash sip
    cdef uint8_t[8] head
    cdef uint32_t fields
    epoch[0] = atomic_load_u32_acquire(&rules.epoch)           # before the fields: those of a later epoch do no harm
    fields = atomic_load_u32_acquire(&rules.fields)
    if not fields & VERDICT_ON or packet.props.present & HAS_AUTH_METHOD or worker.engine.settings.verdict_cache_entries == 0:
        return False
    head[0] = <uint8_t> fields
    head[1] = conn.dialect.level
    head[2] = admitted
    head[3] = <uint8_t> (packet.has_username | packet.has_password << 1)
    head[4] = <uint8_t> conn.link.listener
    head[5] = <uint8_t> (conn.link.listener >> 8)
    head[6] = conn.link.peer.family if fields & VERDICT_ADDRESS else 0
    head[7] = 0
    sip_begin(&sip, rules.key)
    sip_add(&sip, head, 8)
    field_add(&sip, packet.username.p, packet.username.n if packet.has_username else 0)
    field_add(&sip, packet.password.p, packet.password.n if packet.has_password else 0)
    if fields & VERDICT_CLIENT_ID:
        field_add(&sip, packet.client_id.p, packet.client_id.n)
    if fields & VERDICT_ADDRESS:
        field_add(&sip, conn.link.peer.address, 16)
    if not proofs_add(&sip, &conn.link.transport):
        return False
    sip_end(&sip, key)
    return True


cdef VerdictEntry *set_of(Worker *worker, const uint64_t *key) noexcept nogil:
    return worker.verdicts.entries + (key[1] % worker.verdicts.sets) * WAYS


cdef VerdictEntry *verdict_find(Worker *worker, const uint64_t *key, uint32_t epoch) noexcept nogil:
    cdef VerdictEntry *entry
    cdef int i
    if worker.verdicts.entries == NULL or worker.verdicts.epoch != epoch:
        return NULL
    entry = set_of(worker, key)
    for i in range(WAYS):
        if entry[i].key[0] == key[0] and entry[i].key[1] == key[1] and worker.reactor.now_ms < entry[i].until_ms:
            return entry + i
    return NULL


cdef void verdict_keep(Worker *worker, const uint64_t *key, uint32_t epoch, uint8_t reason, int64_t until_ms, int64_t ends_ms) noexcept nogil:
    cdef VerdictCache *cache = &worker.verdicts
    cdef VerdictEntry *entry
    cdef VerdictEntry *place
    cdef int i
    if epoch != atomic_load_u32_acquire(&worker.engine.verdict_rules.epoch):
        return
    if cache.entries == NULL:
        cache.sets = (worker.engine.settings.verdict_cache_entries + WAYS - 1) // WAYS
        cache.entries = <VerdictEntry *> mem_alloc_zeroed(<uint64_t> cache.sets * WAYS, sizeof(VerdictEntry))
        if cache.entries == NULL:
            return
        cache.epoch = epoch
    if cache.epoch != epoch:
        memset(cache.entries, 0, <uint64_t> cache.sets * WAYS * sizeof(VerdictEntry))
        cache.epoch = epoch
    entry = set_of(worker, key)
    place = entry
    for i in range(WAYS):
        if entry[i].key[0] == key[0] and entry[i].key[1] == key[1]:
            place = entry + i
            break
        if entry[i].until_ms < place.until_ms:
            place = entry + i
    place.key[0] = key[0]
    place.key[1] = key[1]
    place.until_ms = until_ms
    place.ends_ms = ends_ms
    place.reason = reason
    stat(&worker.stats, C_VERDICTS_KEPT)
