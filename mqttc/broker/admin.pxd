"""Admin: what the program around the broker asks about clients, sessions and retained messages, and what it does to them.

Each request is about the sessions of one worker, or about the retained store, looks at a bounded number of things, and says where to go on. Rows are packed
into request.result, in the machine's byte order; mqttc/embed/admin.py reads them.
"""

from libc.stdint cimport uint8_t

from mqttc.broker.state cimport RequestMail, Worker

cdef uint8_t on_admin(Worker *worker, RequestMail *request) noexcept nogil     # fills in the request: a reason code, RC_QUOTA_EXCEEDED: no memory
