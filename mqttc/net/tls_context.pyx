"""Read it from `identity_read` on: PEM or PKCS#12 becomes what OpenSSL's contexts take."""

from libc.stdint cimport uint8_t, uint64_t
from libc.stdio cimport snprintf
from libc.string cimport memcpy, memset, strlen

from mqttc.base.types cimport ST_ERROR, ST_NO_MEMORY, ST_OK, Span, atomic_load_u64_relaxed
from mqttc.net.openssl cimport (
    BIO, BIO_free, BIO_new_mem_buf, ERR_clear_error, ERR_peek_last_error, ERR_reason_error_string, EVP_PKEY_free, PEM_read_bio_PrivateKey,
    PEM_read_bio_X509, PKCS12, PKCS12_free, PKCS12_parse, SSL_CTX, SSL_CTX_add_client_CA, SSL_CTX_get_cert_store, SSL_CTX_set_cipher_list,
    SSL_CTX_set_ciphersuites, SSL_CTX_set_min_proto_version, SSL_CTX_set_mode, SSL_CTX_set_options, SSL_CTX_set_read_ahead, SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER,
    SSL_MODE_ENABLE_PARTIAL_WRITE, SSL_MODE_NO_AUTO_CHAIN, SSL_MODE_RELEASE_BUFFERS, SSL_OP_IGNORE_UNEXPECTED_EOF, SSL_OP_NO_COMPRESSION,
    SSL_OP_NO_RENEGOTIATION, TLS1_2_VERSION, TLS1_3_VERSION, X509, X509_STORE, X509_STORE_add_cert, X509_STORE_set_flags, X509_V_FLAG_PARTIAL_CHAIN,
    X509_check_purpose, X509_free, d2i_PKCS12_bio, sk_X509_new_null, sk_X509_pop_free, sk_X509_push,
)


cdef int tls_fail(TlsFailure *failure, const char *what) noexcept nogil:
    cdef unsigned long error = ERR_peek_last_error()
    cdef const char *reason = ERR_reason_error_string(error) if error != 0 else NULL
    if reason != NULL:
        snprintf(failure.text, sizeof(failure.text), "%s: %s", what, reason)
    else:
        snprintf(failure.text, sizeof(failure.text), "%s", what)
    ERR_clear_error()
    return ST_ERROR


cdef int tls_password(char *room, int n, int writing, void *context) noexcept nogil:
    cdef size_t length
    if context == NULL:
        return -1
    length = strlen(<const char *> context)
    if <size_t> n < length:
        return -1
    memcpy(room, context, length)
    return <int> length


cdef void identity_free(Identity *identity) noexcept nogil:
    X509_free(identity.certificate)
    EVP_PKEY_free(identity.key)
    if identity.chain != NULL:
        sk_X509_pop_free(identity.chain, X509_free)
    memset(identity, 0, sizeof(Identity))


cdef int identity_from_bundle(Identity *identity, const TlsCertificate *given, TlsFailure *failure) noexcept nogil:
    cdef BIO *bio = BIO_new_mem_buf(given.chain.p, <int> given.chain.n)
    cdef PKCS12 *bundle
    cdef int done
    if bio == NULL:
        return ST_NO_MEMORY
    bundle = d2i_PKCS12_bio(bio, NULL)
    BIO_free(bio)
    if bundle == NULL:
        return tls_fail(failure, "the certificate is neither PEM nor PKCS#12")
    done = PKCS12_parse(bundle, given.password, &identity.key, &identity.certificate, &identity.chain)
    PKCS12_free(bundle)
    if not done:
        return tls_fail(failure, "the PKCS#12 file cannot be opened (is key_password right?)")
    if identity.key == NULL or identity.certificate == NULL:
        return tls_fail(failure, "the PKCS#12 file has no certificate with its key")
    return ST_OK


cdef int identity_chain(Identity *identity, Span pem) noexcept nogil:
    """The certificates behind the first. ST_OK, ST_ERROR (the last error says why), ST_NO_MEMORY."""
    cdef BIO *bio = BIO_new_mem_buf(pem.p, <int> pem.n)
    cdef X509 *more
    if bio == NULL:
        return ST_NO_MEMORY
    ERR_clear_error()
    identity.certificate = PEM_read_bio_X509(bio, NULL, tls_password, NULL)
    if identity.certificate == NULL:
        BIO_free(bio)
        return ST_ERROR
    while True:
        more = PEM_read_bio_X509(bio, NULL, tls_password, NULL)
        if more == NULL:
            break
        if identity.chain == NULL:
            identity.chain = sk_X509_new_null()
        if identity.chain == NULL or sk_X509_push(identity.chain, more) == 0:
            X509_free(more)
            BIO_free(bio)
            return ST_NO_MEMORY
    BIO_free(bio)
    ERR_clear_error()          # no further start line
    return ST_OK


cdef int identity_read(Identity *identity, const TlsCertificate *given, TlsFailure *failure) noexcept nogil:
    cdef Span pem = given.key if given.key.n else given.chain
    cdef BIO *bio
    cdef int status
    if given.chain.n and given.chain.p[0] == 0x30:             # a SEQUENCE of DER
        return identity_from_bundle(identity, given, failure)
    status = identity_chain(identity, given.chain)
    if status == ST_NO_MEMORY:
        return status
    if status != ST_OK:
        return tls_fail(failure, "the certificate cannot be read")
    bio = BIO_new_mem_buf(pem.p, <int> pem.n)
    if bio == NULL:
        return ST_NO_MEMORY
    identity.key = PEM_read_bio_PrivateKey(bio, NULL, tls_password, <void *> given.password)
    BIO_free(bio)
    if identity.key == NULL:
        return tls_fail(failure, "the key cannot be read (is key_password right?)" if given.password != NULL else "the key cannot be read")
    return ST_OK


cdef int context_trust_ca(SSL_CTX *ssl, Span pem, bint announced, const char *complaint, TlsFailure *failure) noexcept nogil:
    cdef X509_STORE *store = SSL_CTX_get_cert_store(ssl)
    cdef BIO *bio = BIO_new_mem_buf(pem.p, <int> pem.n)
    cdef X509 *certificate
    cdef size_t count = 0
    cdef bint taken = True
    if bio == NULL:
        return ST_NO_MEMORY
    while taken:
        certificate = PEM_read_bio_X509(bio, NULL, tls_password, NULL)
        if certificate == NULL:
            break
        X509_check_purpose(certificate, -1, 0)     # else OpenSSL reads the extensions at the first handshakes, on all their threads
        taken = X509_STORE_add_cert(store, certificate) == 1 and (not announced or SSL_CTX_add_client_CA(ssl, certificate) == 1)
        X509_free(certificate)
        count += 1
    BIO_free(bio)
    if not taken or count == 0:
        return tls_fail(failure, complaint)
    X509_STORE_set_flags(store, X509_V_FLAG_PARTIAL_CHAIN)     # an intermediate CA may stand there alone
    ERR_clear_error()                                          # no further start line
    return ST_OK


cdef int context_protocol(SSL_CTX *ssl, uint8_t minimum_version, const char *ciphers, const char *ciphersuites, TlsFailure *failure) noexcept nogil:
    SSL_CTX_set_options(ssl, SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_COMPRESSION | SSL_OP_IGNORE_UNEXPECTED_EOF)
    SSL_CTX_set_mode(ssl, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER | SSL_MODE_RELEASE_BUFFERS | SSL_MODE_NO_AUTO_CHAIN)
    SSL_CTX_set_read_ahead(ssl, 1)
    if SSL_CTX_set_min_proto_version(ssl, TLS1_3_VERSION if minimum_version == 3 else TLS1_2_VERSION) != 1:
        return tls_fail(failure, "minimum_tls_version cannot be set")
    if SSL_CTX_set_cipher_list(ssl, ciphers) != 1:
        return tls_fail(failure, "ciphers cannot be used")
    if ciphersuites != NULL and SSL_CTX_set_ciphersuites(ssl, ciphersuites) != 1:
        return tls_fail(failure, "ciphersuites cannot be used")
    return ST_OK


cdef void tls_stats_read(const TlsStats *stats, TlsStats *out) noexcept nogil:
    out.handshakes = atomic_load_u64_relaxed(&stats.handshakes)
    out.resumed = atomic_load_u64_relaxed(&stats.resumed)
    out.failed = atomic_load_u64_relaxed(&stats.failed)
    out.loads = atomic_load_u64_relaxed(&stats.loads)
