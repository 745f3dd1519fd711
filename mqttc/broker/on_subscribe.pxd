"""SUBSCRIBE and UNSUBSCRIBE."""

from mqttc.broker.state cimport Conn, Worker
from mqttc.proto.packet cimport Packet

cdef void on_subscribe(Worker *worker, Conn *conn, Packet *packet) noexcept nogil
cdef void on_unsubscribe(Worker *worker, Conn *conn, Packet *packet) noexcept nogil
