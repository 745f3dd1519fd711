"""WebSocket (RFC 6455) as a transport over another one: frames in, bytes out, and back. Which bytes they are is none of its business.

Sending: all that one flush hands over leaves as one binary frame; if the socket takes only a part, the rest of that frame comes first next time.
Receiving: payload is unmasked and moved together in the caller's own buffer; nothing is kept but the header or control frame under way. Frames of any
length pass through, up to a limit. A ping is answered once for each read, with the latest one's bytes (section 5.5.3). What the peer does wrong is
answered by a close frame with the status code of section 7.4.1, and ends the link.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from mqttc.base.types cimport Span
from mqttc.net.transport cimport Transport

# [owner] A transport on which the client's upgrade request was read becomes a WebSocket: it sends `response` (what the handshake is answered with; may be
# empty), then frames. rest: input behind the request, read already. Spans are copied. max_frame_bytes: payload of a frame; more is answered with 1009.
# ST_OK; ST_NO_MEMORY: unchanged.
cdef int ws_accept(Transport *transport, Span response, Span rest, uint64_t max_frame_bytes) noexcept nogil
# [owner] A transport, maybe still connecting, becomes a WebSocket client: it sends `request`, and fails unless the answer is 101 with `accept` as its
# Sec-WebSocket-Accept. Frames are masked.
cdef int ws_dial(Transport *transport, Span request, Span accept, uint64_t max_frame_bytes) noexcept nogil
# [owner] The program that the link belongs to ends: the close frame says so, status 1001 (section 7.4.1). Harmless where the transport is no WebSocket, or has
# said its last word.
cdef void ws_going_away(Transport *transport) noexcept nogil
cdef uint64_t ws_live() noexcept nogil                             # made and not yet freed, in this process
