"""TLS on a stream socket, of both sides: OpenSSL 3, called natively on the socket itself; its objects are never shared with others.

A Tls stands for one listener. It holds the context in force, which all workers use, and the keys that session tickets are sealed with. Loading puts a
new context in force at once: handshakes that begin later use it, connections keep theirs until they end, and tickets outlive it, for the keys stay.

A ticket is not proof enough for ever: when one comes back, the client's certificate in it is verified again, by the CA certificates and the revocation
list in force. Tickets of clients that came in with a pre-shared key are not honoured; these show their key again, which costs no more.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from mqttc.base.types cimport Span
from mqttc.net.tls_context cimport TlsCertificate, TlsFailure, TlsStats
from mqttc.net.transport cimport Transport

cdef enum PeerCertificate:
    PEER_CERTIFICATE_NONE = 0      # not asked for
    PEER_CERTIFICATE_OPTIONAL = 1  # one that is shown must be good
    PEER_CERTIFICATE_REQUIRED = 2

cdef struct TlsKey:            # a pre-shared key
    Span name
    Span key                   # 1 to 256 bytes

cdef struct TlsSettings:       # all borrowed for the call
    const TlsCertificate *certificates     # the first is for clients that name no host, or an unknown one
    uint32_t certificate_count
    Span client_ca             # PEM
    Span crl                   # PEM; empty: no revocation list
    const TlsKey *keys         # in the order of their names (bytes, then length)
    uint32_t key_count
    const char *key_hint       # NULL: none
    const char *ciphers        # of TLS 1.2, OpenSSL's notation; NULL: forward secrecy and AEAD only
    const char *ciphersuites   # of TLS 1.3; NULL: OpenSSL's
    Span alpn                  # protocol names, each behind its length; empty: the extension is ignored
    uint8_t minimum_version    # 2: TLS 1.2, 3: TLS 1.3
    uint8_t peer_certificate   # PeerCertificate

cdef struct TlsGauge:          # handshakes of accepted connections that are under way, of all listeners that share it
    uint32_t open              # atomic
    uint32_t most              # 0: no limit
    uint64_t refused           # atomic: connections that were one too many

cdef struct Tls                # private layout: see tls.pyx

cdef Tls *tls_build() noexcept nogil                                   # one reference; NULL: no memory or no randomness. It admits nobody before tls_load
cdef Tls *tls_share(Tls *tls) noexcept nogil                           # [any thread]
cdef void tls_drop(Tls *tls) noexcept nogil                            # [any thread] the last one frees; connections must have ended
cdef int tls_load(Tls *tls, const TlsSettings *settings, TlsFailure *failure) noexcept nogil      # [any thread] ST_OK, or ST_ERROR and why; then nothing changes
cdef int tls_rotate(Tls *tls) noexcept nogil                           # [any thread] new ticket keys; those before still open tickets, until the next time
cdef void tls_bind(Tls *tls, TlsGauge *gauge) noexcept nogil           # before its connections, which the gauge outlives
cdef void tls_stats(Tls *tls, TlsStats *stats) noexcept nogil
cdef int tls_accept(void *tls, Transport *transport) noexcept nogil    # [worker] an accepted plain socket becomes TLS; its reads make the handshake. ST_NO_MEMORY, ST_LIMIT (of the gauge): unchanged
# [worker] a plain socket of our own, which may still be connecting, becomes TLS; `client` is a TlsClient, shared. Its writes begin the handshake and its
# reads go on with it; what is to be sent waits meanwhile (WANTS_IN). ST_NO_MEMORY: unchanged.
cdef int tls_dial(void *client, Transport *transport) noexcept nogil
cdef uint64_t tls_live() noexcept nogil                                # contexts and connections made and not yet freed, in this process
