"""Packet identifiers: 1 to 65535, none given while it is in use [MQTT-2.2.1-3]."""

from libc.stdint cimport uint64_t

cdef enum:
    PACKET_IDS = 65535                      # how many there are, and the last of them


cdef class PacketIds:
    cdef uint64_t used[1024]                # one bit each; 0 is none
    cdef int count                          # of those in use
    cdef int last                           # given
    cdef int next(self) noexcept            # the next free one, taken; not to be called when none is
    cdef int give_back(self, int packet_id) noexcept
