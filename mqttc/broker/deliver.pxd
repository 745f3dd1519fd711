"""Deliver: from one publication to every session that its route names.

QoS 0 is encoded once per layout and retain flag into the worker's run and shared by extent; QoS > 0 is encoded once per layout into the first receiver's
queue, copied from there for the others, and gets its packet id patched.
"""

from mqttc.base.msg cimport Msg
from mqttc.broker.publication cimport Publication
from mqttc.broker.routes cimport Route
from mqttc.broker.state cimport Worker

cdef void fan_out(Worker *worker, Publication *pub, Route *route) noexcept nogil               # local sessions and groups directly, mail to the others
cdef void fan_out_slice(Worker *worker, Publication *pub, Route *route) noexcept nogil         # this worker's part only
cdef void publish_message(Worker *worker, Msg *msg) noexcept nogil                             # a will, or a message from inside: retained, route, fan-out; msg is borrowed
