"""See packet_ids.pxd."""

from libc.stdint cimport uint64_t
from libc.string cimport memset


cdef inline uint64_t bit_of(int packet_id) noexcept:
    return <uint64_t> 1 << (packet_id & 63)


cdef int checked(int packet_id) except -1:
    if not 1 <= packet_id <= PACKET_IDS:
        raise ValueError(f"packet identifier {packet_id}: must be 1 to {PACKET_IDS}")
    return packet_id


cdef class PacketIds:
    """Those of one session, of PUBLISH, SUBSCRIBE and UNSUBSCRIBE together. They are used round, so that late answers meet nobody."""

    def __cinit__(self):
        memset(self.used, 0, sizeof(self.used))
        self.count = self.last = 0

    def __len__(self):
        return self.count

    def __contains__(self, int packet_id):
        return 1 <= packet_id <= PACKET_IDS and self.used[packet_id >> 6] & bit_of(packet_id) != 0

    @property
    def exhausted(self):
        return self.count == PACKET_IDS

    def take(self):
        """The next free one; not to be called when `exhausted`."""
        return self.next()

    def claim(self, int packet_id):
        """One that a stored session holds."""
        cdef uint64_t *word = &self.used[checked(packet_id) >> 6]
        if not word[0] & bit_of(packet_id):
            word[0] |= bit_of(packet_id)
            self.count += 1

    def free(self, int packet_id):
        self.give_back(checked(packet_id))

    cdef int next(self) noexcept:
        cdef int packet_id = self.last
        while True:
            packet_id = packet_id + 1 if packet_id < PACKET_IDS else 1
            if not self.used[packet_id >> 6] & bit_of(packet_id):
                self.used[packet_id >> 6] |= bit_of(packet_id)
                self.count += 1
                self.last = packet_id
                return packet_id

    cdef int give_back(self, int packet_id) noexcept:
        cdef uint64_t *word = &self.used[packet_id >> 6]
        if word[0] & bit_of(packet_id):
            word[0] &= ~bit_of(packet_id)
            self.count -= 1
        return 0
