from libc.stdint cimport uint32_t

from mqttc.base.alloc cimport mem_alloc_zeroed, mem_free
from mqttc.base.msg cimport MsgPool, msg_drop


cdef Record *record_build(uint32_t kind, uint32_t data_bytes) noexcept nogil:
    cdef Record *record = <Record *> mem_alloc_zeroed(1, sizeof(Record) + <size_t> data_bytes)
    if record == NULL:
        return NULL
    record.mail.kind = kind
    record.bytes = <uint32_t> sizeof(Record) + data_bytes
    return record


cdef void record_release(MsgPool *pool, Record *record) noexcept nogil:
    cdef RecordTarget *targets
    cdef uint32_t i
    if record.mail.kind == RECORD_MESSAGE:
        targets = record_targets(record)
        for i in range(record.count):
            mem_free(targets[i].identifiers)
    if record.msg != NULL:
        msg_drop(pool, record.msg)
    mem_free(record)
