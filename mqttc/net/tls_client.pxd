"""What the client side of TLS connections shares: whom to trust, who we are, and the ticket that was last given to us.

A context is immutable once it is built, but for the ticket and the counters; `tls_dial` of `tls` makes connections of it, on any thread.
"""

from libc.stdint cimport uint8_t, uint64_t

from mqttc.base.types cimport Span
from mqttc.net.openssl cimport SSL
from mqttc.net.tls_context cimport TlsCertificate, TlsFailure, TlsStats

cdef struct TlsClientSettings: # all borrowed for the call
    Span ca                    # PEM, trusted for the server's certificate; empty: those that this system trusts
    const char *server_name    # host name or address that the certificate must be for; a name is sent, too (RFC 6066 section 3). NULL: any, and none is sent
    const TlsCertificate *certificate      # ours; NULL: none
    Span alpn                  # protocol names, each behind its length; empty: none is offered
    const char *ciphers        # of TLS 1.2, OpenSSL's notation; NULL: forward secrecy and AEAD only
    const char *ciphersuites   # of TLS 1.3; NULL: OpenSSL's
    uint8_t minimum_version    # 2: TLS 1.2, 3: TLS 1.3
    uint8_t maximum_version    # the same; 0: none
    bint insecure              # the server's certificate is not looked at
    bint resume                # connections show the last ticket that any of them was given; without it, each makes a full handshake

cdef struct TlsClient          # private layout: see tls_client.pyx

cdef TlsClient *tls_client_build(const TlsClientSettings *settings, TlsFailure *failure) noexcept nogil        # one reference; NULL: failure says why
cdef TlsClient *tls_client_share(TlsClient *client) noexcept nogil             # [any thread]
cdef void tls_client_drop(TlsClient *client) noexcept nogil                    # [any thread]
cdef void tls_client_stats(TlsClient *client, TlsStats *stats) noexcept nogil  # [any thread]
cdef uint64_t tls_client_live() noexcept nogil                                 # contexts made and not yet freed, in this process
# For `tls`: a connection in connect state, NULL: no memory; and the counters, which are atomic and live as long as the context.
cdef SSL *tls_client_connection(TlsClient *client) noexcept nogil
cdef TlsStats *tls_client_counters(TlsClient *client) noexcept nogil
