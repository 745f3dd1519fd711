"""Parked: a PUBLISH or SUBSCRIBE that hooks are asked about waits with its connection, which is not read meanwhile. An in-process client has no link to pause:
`inside` keeps its later requests."""

from libc.stdint cimport uint8_t

from mqttc.broker.state cimport Conn, HookMail, Parked, Worker
from mqttc.proto.packet cimport Frame, Packet

# Sets it aside and asks hooks about it. False: it cannot be asked about, and HOOKS_ALLOW decides. kind: QuestionKind; packet: decoded, resolved.
cdef bint park(Worker *worker, Conn *conn, uint8_t kind, const Frame *frame, const Packet *packet) noexcept nogil
# What hooks say has come: the packet that was set aside, taken over from the connection, which is read again; frame: of it. NULL: it is no answer for it.
cdef Parked *unpark(Worker *worker, Conn *conn, const HookMail *mail, Frame *frame) noexcept nogil
