"""WebSocket frames (RFC 6455 section 5): headers, masking, and which frame may follow which; and the answer to a client's handshake (section 4.1).
Sans-I/O, no clock.

What a peer did wrong is told as the negated status code that the RFC gives for it (section 7.4.1), so that no layer translates.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from mqttc.base.types cimport Span

cdef enum WsOpcode:
    WS_CONTINUATION = 0
    WS_TEXT = 1
    WS_BINARY = 2
    WS_CLOSE = 8
    WS_PING = 9
    WS_PONG = 10

cdef enum WsStatus:                # status codes of a close frame
    WS_NORMAL = 1000
    WS_PROTOCOL_ERROR = 1002
    WS_UNSUPPORTED = 1003          # a text frame: MQTT is binary [MQTT-6.0.0-1]
    WS_NOT_TEXT = 1007             # a close frame's reason that is not UTF-8
    WS_TOO_BIG = 1009

cdef enum:
    WS_HEADER_MOST = 14            # bytes
    WS_CONTROL_MOST = 125          # payload of a control frame, bytes

cdef enum WsAnswer:                # what a server has said to a client's handshake
    WS_ANSWER_GOOD = 0
    WS_ANSWER_REFUSAL = 1          # not 101
    WS_ANSWER_WRONG = 2            # no WebSocket, another key's accept, or an extension although we offer none

cdef struct WsHeader:
    uint64_t payload_bytes
    uint32_t header_bytes
    uint8_t mask[4]
    uint8_t opcode
    bint fin
    bint masked

# The header that p begins with. ST_OK, ST_NEED_MORE, or a negated status code.
cdef int ws_header_next(const uint8_t *p, const uint8_t *end, WsHeader *header) noexcept nogil
# Whether that frame may come now. masked: what the peer has to do (clients mask, servers do not); fragmented: a message is under way;
# most: bytes that a frame may carry. ST_OK or a negated status code.
cdef int ws_header_check(const WsHeader *header, bint masked, bint fragmented, uint64_t most) noexcept nogil
cdef uint32_t ws_header_put(uint8_t *out, uint8_t opcode, uint64_t payload_bytes, const uint8_t *mask) noexcept nogil    # of a whole message; mask NULL: none. Bytes written
# Moves n bytes, masked or unmasked on the way; phase: bytes of the payload before them. Forwards, so `to` may lie before `source` in one buffer.
cdef void ws_mask(uint8_t *to, const uint8_t *source, size_t n, const uint8_t *mask, uint32_t phase) noexcept nogil
cdef int ws_close_check(const uint8_t *payload, uint32_t n) noexcept nogil     # status code to answer a close frame with; negated: it was ill-formed
# The head of a server's answer, p to end, without the empty line behind it; accept: what Sec-WebSocket-Accept has to be. A WsAnswer.
cdef int ws_answer_check(const uint8_t *p, const uint8_t *end, Span accept) noexcept nogil
