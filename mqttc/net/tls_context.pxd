"""What the contexts of both sides are made of: certificates with their keys, trust, versions and ciphers; and how it is said that something fails."""

from libc.stdint cimport uint8_t, uint64_t

from mqttc.base.types cimport Span
from mqttc.net.openssl cimport EVP_PKEY, SSL_CTX, X509, X509_STACK

cdef struct TlsCertificate:
    Span chain                 # PEM, the owner's own first; or PKCS#12, with the key
    Span key                   # PEM; empty: it stands in `chain`
    const char *password       # NULL: none

cdef struct TlsFailure:
    char text[200]             # ends with 0

cdef struct TlsStats:          # [any thread] of a listener, or of a client's context
    uint64_t handshakes        # finished
    uint64_t resumed           # of these, by a ticket or a pre-shared key of TLS 1.3
    uint64_t failed            # handshakes that ended otherwise
    uint64_t loads             # of a listener

cdef struct Identity:          # a certificate with its key
    X509 *certificate
    EVP_PKEY *key
    X509_STACK *chain          # NULL: none

cdef int tls_fail(TlsFailure *failure, const char *what) noexcept nogil        # ST_ERROR, with what OpenSSL has to say about it
cdef int tls_password(char *room, int n, int writing, void *context) noexcept nogil    # OpenSSL's callback; context: the password, NULL: none. Its own would ask the terminal
cdef int identity_read(Identity *identity, const TlsCertificate *given, TlsFailure *failure) noexcept nogil    # into a zeroed one, to be freed in any case. ST_OK, ST_ERROR, ST_NO_MEMORY
cdef void identity_free(Identity *identity) noexcept nogil
# CA certificates for the other side's; announced: also named to clients, so that they can choose theirs. ST_OK; ST_ERROR: `complaint` and why; ST_NO_MEMORY.
cdef int context_trust_ca(SSL_CTX *ssl, Span pem, bint announced, const char *complaint, TlsFailure *failure) noexcept nogil
# Oldest version, ciphers, and how OpenSSL reads and writes. minimum_version 2: TLS 1.2, 3: TLS 1.3; ciphersuites NULL: OpenSSL's. ST_OK or ST_ERROR.
cdef int context_protocol(SSL_CTX *ssl, uint8_t minimum_version, const char *ciphers, const char *ciphersuites, TlsFailure *failure) noexcept nogil
cdef void tls_stats_read(const TlsStats *stats, TlsStats *out) noexcept nogil  # [any thread]
