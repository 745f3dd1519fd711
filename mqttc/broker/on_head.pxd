"""HTTP listeners: one bounded request head, then a WebSocket, an answer, or a tunnel to the control plane.

The head goes to the gate as it is; what it means is decided there. A tunnel is two connections of one worker that pass bytes to each other, each reading only
while the other's output is short.
"""

from libc.stdint cimport uint8_t, uint32_t

from mqttc.broker.state cimport Conn, HeadMail, Worker

cdef uint32_t head_data(Worker *worker, Conn *conn, const uint8_t *bytes, uint32_t n) noexcept nogil   # see LinkHooks.on_data; of phases from CONN_HEAD on
cdef void on_head_answer(Worker *worker, HeadMail *mail) noexcept nogil        # takes what the mail holds, not the mail
cdef void tunnel_drained(Worker *worker, Conn *conn) noexcept nogil
cdef void tunnel_ended(Worker *worker, Conn *conn) noexcept nogil              # the other end is closed too, behind what it has still to send
