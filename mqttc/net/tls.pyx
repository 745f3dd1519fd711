"""Read it from `tls_accept` on: a connection's reads make its handshake (a client's first writes, too), and say by `transport.wants` what the poller
cannot know.

Errors. OpenSSL keeps a queue of errors per thread, and SSL_get_error looks at it: it is emptied before calls that may fail. Its text is copied at once.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.string cimport memcmp, memcpy, memset, strlen

from mqttc.base.alloc cimport mem_alloc, mem_alloc_zeroed, mem_free
from mqttc.base.types cimport (
    ST_AGAIN, ST_CLOSED, ST_ERROR, ST_LIMIT, ST_NO_MEMORY, ST_OK, Span, atomic_add_u32_relaxed, atomic_add_u64_relaxed, atomic_load_u64_relaxed,
    atomic_sub_u32_acq_rel, span_make,
)
from mqttc.net.openssl cimport (
    BIO, BIO_free, BIO_new_mem_buf, ERR_GET_REASON, ERR_clear_error, ERR_peek_error, ERR_reason_error_string, EVP_CIPHER_CTX, EVP_DecryptInit_ex,
    EVP_EncryptInit_ex, EVP_MAC_CTX, EVP_MAC_CTX_set_params, EVP_aes_256_cbc, OPENSSL_NPN_NEGOTIATED, OPENSSL_cleanse, OSSL_PARAM,
    OSSL_PARAM_construct_end, OSSL_PARAM_construct_octet_string, OSSL_PARAM_construct_utf8_string, PEM_read_bio_X509_CRL, RAND_bytes, SSL,
    SSL_CTX, SSL_CTX_free, SSL_CTX_get_cert_store, SSL_CTX_new, SSL_CTX_set_alpn_select_cb, SSL_CTX_set_cert_cb, SSL_CTX_set_num_tickets,
    SSL_CTX_set_options, SSL_CTX_set_psk_server_callback, SSL_CTX_set_session_cache_mode, SSL_CTX_set_session_id_context,
    SSL_CTX_set_session_ticket_cb, SSL_CTX_set_timeout, SSL_CTX_set_tlsext_ticket_key_evp_cb, SSL_CTX_set_verify, SSL_CTX_use_cert_and_key,
    SSL_CTX_use_psk_identity_hint, SSL_ERROR_WANT_READ, SSL_ERROR_WANT_WRITE, SSL_ERROR_ZERO_RETURN, SSL_MODE_RELEASE_BUFFERS, SSL_OP_CIPHER_SERVER_PREFERENCE,
    SSL_OP_PRIORITIZE_CHACHA, SSL_R_CERTIFICATE_VERIFY_FAILED, SSL_SESSION, SSL_SESSION_get0_peer, SSL_SESSION_get0_ticket_appdata,
    SSL_SESSION_set1_ticket_appdata, SSL_SESS_CACHE_OFF, SSL_TICKET_RETURN_IGNORE_RENEW, SSL_TICKET_RETURN_USE, SSL_TICKET_RETURN_USE_RENEW,
    SSL_TICKET_SUCCESS, SSL_TICKET_SUCCESS_RENEW, SSL_TLSEXT_ERR_ALERT_FATAL, SSL_TLSEXT_ERR_OK, SSL_VERIFY_FAIL_IF_NO_PEER_CERT, SSL_VERIFY_PEER,
    SSL_certs_clear, SSL_clear_mode, SSL_do_handshake, SSL_free, SSL_get0_peer_certificate, SSL_get_error, SSL_get_ex_data, SSL_get_psk_identity,
    SSL_get_servername, SSL_get_session, SSL_get_verify_result, SSL_has_pending, SSL_new, SSL_read, SSL_select_next_proto, SSL_session_reused,
    SSL_set_accept_state, SSL_set_bio, SSL_set_ex_data, SSL_set_mode, SSL_shutdown, SSL_use_cert_and_key, SSL_version, SSL_write, TLS1_3_VERSION, TLS_server_method,
    TLSEXT_NAMETYPE_host_name, X509, X509_CRL, X509_CRL_free, X509_STORE, X509_STORE_CTX, X509_STORE_CTX_free, X509_STORE_CTX_init,
    X509_STORE_CTX_new, X509_STORE_CTX_set_default, X509_STORE_add_crl, X509_STORE_set_flags, X509_V_FLAG_CRL_CHECK, X509_V_OK, X509_check_host,
    X509_verify_cert, X509_verify_cert_error_string, i2d_X509,
)
from mqttc.net.tls_client cimport TlsClient, tls_client_connection, tls_client_drop, tls_client_live, tls_client_share, tls_client_counters
from mqttc.net.tls_context cimport (
    Identity, TlsCertificate, TlsFailure, TlsStats, context_protocol, context_trust_ca, identity_free, identity_read, tls_fail, tls_password, tls_stats_read,
)
from mqttc.net.tls_socket cimport TlsSocket, in_close, in_open, out_begin, out_end, out_flush, out_room, out_stuck, socket_bio, socket_free
from mqttc.net.transport cimport IO_AGAIN, IO_END, IO_FAILED, PROOF_CERTIFICATE, PROOF_KEY_NAME, WANTS_IN, WANTS_OUT, WANTS_READ, Transport, TransportOps, iovec

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_mutex_t:
        pass
    int pthread_mutex_init(pthread_mutex_t *lock, const void *attributes)
    int pthread_mutex_destroy(pthread_mutex_t *lock)
    int pthread_mutex_lock(pthread_mutex_t *lock)
    int pthread_mutex_unlock(pthread_mutex_t *lock)

cdef extern from "<unistd.h>" nogil:
    int c_close "close"(int fd)

cdef extern from "<sys/socket.h>" nogil:
    long recv(int fd, void *out, size_t n, int flags)
    int shutdown(int fd, int how)
    const int SHUT_WR

cdef enum:
    RECORD_BYTES = 16384       # payload of a record at most
    WORTH_A_RECORD = 8192      # of a part: a record of its own costs less than copying what fills one
    TICKET_SECONDS = 7200
    KEY_NAME_BYTES = 16
    SECRET_BYTES = 32
    WHY_BYTES = 112
    RECORD_HANDSHAKE = 22      # the first byte that a TLS client sends
    BYTE_CONNECT = 0x10        # the first byte of a plain client that we know best

cdef const char *CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20:!aNULL"
# A client that offers ciphers of pre-shared keys has such a key: they come first. In TLS 1.3 a key goes with SHA-256 alone.
cdef const char *CIPHERS_WITH_KEYS = "kECDHEPSK+CHACHA20:kECDHEPSK+AES:kPSK+AESGCM:kPSK+CHACHA20:kPSK+AES:ECDHE+AESGCM:ECDHE+CHACHA20:!aNULL:!eNULL"
# The least expensive first: of the AES suites the shorter key, whose hash is cheaper too. Clients without AES in hardware say so by their own order.
cdef const char *SUITES = "TLS_AES_128_GCM_SHA256:TLS_CHACHA20_POLY1305_SHA256:TLS_AES_256_GCM_SHA384"

cdef struct Context:           # immutable once in force, but for refs
    uint32_t refs              # atomic: the Tls, and every connection
    SSL_CTX *ssl
    Tls *owner                 # borrowed: outlives all connections
    Identity *identities
    uint32_t identity_count
    TlsKey *keys               # spans into key_bytes
    uint32_t key_count
    uint8_t *key_bytes
    size_t key_bytes_count
    uint8_t *alpn
    uint32_t alpn_bytes
    uint8_t peer_certificate

cdef struct TicketKey:
    uint8_t name[16]
    uint8_t cipher[32]
    uint8_t mac[32]

cdef struct Tls:
    pthread_mutex_t lock
    uint32_t refs              # atomic
    Context *context           # under lock; NULL: nothing was loaded yet
    TicketKey tickets[2]       # under lock: of now, and before
    TlsStats stats             # atomic
    TlsGauge *gauge            # NULL: handshakes are not counted

cdef struct TlsLink:           # transport.state; its worker's alone
    SSL *ssl
    Context *context           # one reference; NULL: we are the client
    TlsClient *client          # one reference; NULL: we are the server
    TlsStats *stats            # of either
    TlsGauge *gauge            # that counts this handshake; NULL: none, or it is over
    char *key_name             # owned: pre-shared key that the client named in this handshake; NULL: none
    char *why                  # owned: what failed; NULL: nothing
    TlsSocket end              # what OpenSSL takes for the socket
    uint8_t owed               # bytes that were encrypted although they counted as not taken: see tls_write
    uint8_t up                 # the handshake is done
    uint8_t broken             # no further call but SSL_free
    uint8_t ended              # the peer has said close_notify

cdef uint64_t live             # atomic: contexts and links
cdef TransportOps tls_operations = TransportOps(tls_read, tls_write, tls_finish, tls_close, tls_proof, tls_failure)     # constant from import on


# ---------------------------------------------------------------------------------------------- a context

cdef void context_drop(Context *context) noexcept nogil:
    cdef uint32_t i
    if atomic_sub_u32_acq_rel(&context.refs, 1) != 1:
        return
    SSL_CTX_free(context.ssl)
    for i in range(context.identity_count):
        identity_free(&context.identities[i])
    mem_free(context.identities)
    mem_free(context.keys)
    if context.key_bytes != NULL:
        OPENSSL_cleanse(context.key_bytes, context.key_bytes_count)
        mem_free(context.key_bytes)
    mem_free(context.alpn)
    mem_free(context)
    atomic_add_u64_relaxed(&live, <uint64_t> -1)


cdef int context_identities(Context *context, const TlsSettings *settings, TlsFailure *failure) noexcept nogil:
    cdef uint32_t i
    cdef int status
    cdef Identity *identity
    if settings.certificate_count == 0:
        return ST_OK
    context.identities = <Identity *> mem_alloc_zeroed(settings.certificate_count, sizeof(Identity))
    if context.identities == NULL:
        return ST_NO_MEMORY
    context.identity_count = settings.certificate_count
    for i in range(settings.certificate_count):
        status = identity_read(&context.identities[i], &settings.certificates[i], failure)
        if status != ST_OK:
            return status
    for i in range(settings.certificate_count, 0, -1):         # each is tried, the first one stays
        identity = &context.identities[i - 1]
        if SSL_CTX_use_cert_and_key(context.ssl, identity.certificate, identity.key, identity.chain, 1) != 1:
            return tls_fail(failure, "the certificate and the key cannot be used")
    return ST_OK


cdef int context_revocations(Context *context, const TlsSettings *settings, TlsFailure *failure) noexcept nogil:
    cdef X509_STORE *store = SSL_CTX_get_cert_store(context.ssl)
    cdef BIO *bio
    cdef X509_CRL *crl
    cdef uint32_t count = 0
    cdef bint taken = True
    if settings.crl.n == 0:
        return ST_OK
    bio = BIO_new_mem_buf(settings.crl.p, <int> settings.crl.n)
    if bio == NULL:
        return ST_NO_MEMORY
    while taken:
        crl = PEM_read_bio_X509_CRL(bio, NULL, tls_password, NULL)
        if crl == NULL:
            break
        taken = X509_STORE_add_crl(store, crl) == 1
        X509_CRL_free(crl)
        count += 1
    BIO_free(bio)
    if not taken or count == 0:
        return tls_fail(failure, "crl cannot be read")
    X509_STORE_set_flags(store, X509_V_FLAG_CRL_CHECK)
    ERR_clear_error()
    return ST_OK


cdef int context_keys(Context *context, const TlsSettings *settings, TlsFailure *failure) noexcept nogil:
    cdef size_t n = 0
    cdef uint32_t i
    cdef uint8_t *room
    if settings.key_count == 0:
        return ST_OK
    for i in range(settings.key_count):
        n += settings.keys[i].name.n + settings.keys[i].key.n
    context.keys = <TlsKey *> mem_alloc_zeroed(settings.key_count, sizeof(TlsKey))
    context.key_bytes = <uint8_t *> mem_alloc(n)
    context.key_bytes_count = n if context.key_bytes != NULL else 0
    if context.keys == NULL or context.key_bytes == NULL:
        return ST_NO_MEMORY
    room = context.key_bytes
    for i in range(settings.key_count):
        context.keys[i].name = span_make(room, settings.keys[i].name.n)
        memcpy(room, settings.keys[i].name.p, settings.keys[i].name.n)
        room += settings.keys[i].name.n
        context.keys[i].key = span_make(room, settings.keys[i].key.n)
        memcpy(room, settings.keys[i].key.p, settings.keys[i].key.n)
        room += settings.keys[i].key.n
    context.key_count = settings.key_count
    SSL_CTX_set_psk_server_callback(context.ssl, on_key_name)
    if settings.key_hint != NULL and SSL_CTX_use_psk_identity_hint(context.ssl, settings.key_hint) != 1:
        return tls_fail(failure, "psk_hint cannot be used")
    return ST_OK


cdef int context_rules(Context *context, const TlsSettings *settings, TlsFailure *failure) noexcept nogil:
    """Versions, ciphers, tickets, ALPN: everything that is no certificate and no key."""
    cdef SSL_CTX *ssl = context.ssl
    cdef const char *ciphers = settings.ciphers
    cdef const char *suites = settings.ciphersuites
    cdef int verify = 0
    if ciphers == NULL:
        ciphers = CIPHERS_WITH_KEYS if settings.key_count else CIPHERS
    if suites == NULL:
        suites = SUITES
    SSL_CTX_set_options(ssl, SSL_OP_CIPHER_SERVER_PREFERENCE | SSL_OP_PRIORITIZE_CHACHA)
    if context_protocol(ssl, settings.minimum_version, ciphers, suites, failure) != ST_OK:
        return ST_ERROR
    if settings.peer_certificate != PEER_CERTIFICATE_NONE:
        verify = SSL_VERIFY_PEER
        if settings.peer_certificate == PEER_CERTIFICATE_REQUIRED:
            verify |= SSL_VERIFY_FAIL_IF_NO_PEER_CERT
    SSL_CTX_set_verify(ssl, verify, NULL)
    # A session belongs to the rule about certificates that it was made under.
    context.peer_certificate = settings.peer_certificate
    SSL_CTX_set_session_id_context(ssl, &context.peer_certificate, 1)
    SSL_CTX_set_session_cache_mode(ssl, SSL_SESS_CACHE_OFF)    # tickets only: nothing is kept here
    SSL_CTX_set_timeout(ssl, TICKET_SECONDS)
    SSL_CTX_set_num_tickets(ssl, 1)
    SSL_CTX_set_tlsext_ticket_key_evp_cb(ssl, on_ticket_key)
    SSL_CTX_set_session_ticket_cb(ssl, on_ticket_seal, on_ticket_unseal, context)
    if settings.certificate_count > 1:
        SSL_CTX_set_cert_cb(ssl, on_certificate, context)
    if settings.alpn.n:
        context.alpn = <uint8_t *> mem_alloc(settings.alpn.n)
        if context.alpn == NULL:
            return ST_NO_MEMORY
        memcpy(context.alpn, settings.alpn.p, settings.alpn.n)
        context.alpn_bytes = settings.alpn.n
        SSL_CTX_set_alpn_select_cb(ssl, on_alpn, context)
    return ST_OK


cdef int context_fill(Context *context, const TlsSettings *settings, TlsFailure *failure) noexcept nogil:
    cdef int status = context_rules(context, settings, failure)
    if status == ST_OK and settings.client_ca.n:
        status = context_trust_ca(context.ssl, settings.client_ca, True, "client_ca cannot be read", failure)
    if status == ST_OK:
        status = context_revocations(context, settings, failure)
    if status == ST_OK:
        status = context_keys(context, settings, failure)
    if status == ST_OK:
        status = context_identities(context, settings, failure)
    return status


cdef Context *context_build(Tls *tls, const TlsSettings *settings, TlsFailure *failure) noexcept nogil:
    """One reference. NULL: failure says why."""
    cdef Context *context = <Context *> mem_alloc_zeroed(1, sizeof(Context))
    cdef int status
    if context == NULL:
        snprintf(failure.text, sizeof(failure.text), "no memory")
        return NULL
    atomic_add_u64_relaxed(&live, 1)
    context.refs = 1
    context.owner = tls
    ERR_clear_error()
    context.ssl = SSL_CTX_new(TLS_server_method())
    status = context_fill(context, settings, failure) if context.ssl != NULL else ST_NO_MEMORY
    if status == ST_OK:
        return context
    if status == ST_NO_MEMORY:
        snprintf(failure.text, sizeof(failure.text), "no memory")
    context_drop(context)
    return NULL


# ---------------------------------------------------------------------------------------------- what a handshake asks

cdef const TlsKey *key_find(const Context *context, const char *name) noexcept nogil:
    cdef uint32_t low = 0
    cdef uint32_t high = context.key_count
    cdef uint32_t middle, shorter
    cdef uint32_t n = <uint32_t> strlen(name)
    cdef const TlsKey *key
    cdef int order
    while low < high:
        middle = (low + high) // 2
        key = &context.keys[middle]
        shorter = n if n < key.name.n else key.name.n
        order = memcmp(name, key.name.p, shorter)
        if order == 0:
            if n == key.name.n:
                return key
            order = -1 if n < key.name.n else 1
        if order < 0:
            high = middle
        else:
            low = middle + 1
    return NULL


cdef void link_key_name(TlsLink *link, const char *name) noexcept nogil:
    cdef size_t n
    mem_free(link.key_name)
    link.key_name = NULL
    if name != NULL:
        n = strlen(name) + 1
        link.key_name = <char *> mem_alloc(n)
        if link.key_name != NULL:
            memcpy(link.key_name, name, n)


cdef unsigned int on_key_name(SSL *ssl, const char *name, unsigned char *out, unsigned int n) noexcept nogil:
    """The pre-shared key of that name; 0: none. A name is worth something only once the handshake has shown that the client holds the key."""
    cdef TlsLink *link = <TlsLink *> SSL_get_ex_data(ssl, 0)
    cdef const TlsKey *key
    if name == NULL:
        return 0
    key = key_find(link.context, name)
    if key == NULL or key.key.n > n:
        return 0
    link_key_name(link, name)
    if link.key_name == NULL:
        return 0
    memcpy(out, key.key.p, key.key.n)
    return key.key.n


cdef int on_certificate(SSL *ssl, void *argument) noexcept nogil:
    """The certificates for the host that the client names (RFC 6066 section 3), of several kinds of key if there are such; else the first one stays."""
    cdef Context *context = <Context *> argument
    cdef const char *host = SSL_get_servername(ssl, TLSEXT_NAMETYPE_host_name)
    cdef Identity *identity
    cdef uint32_t i
    cdef bint found = False
    if host == NULL:
        return 1
    for i in range(context.identity_count, 0, -1):             # of two with one kind of key, the earlier one
        identity = &context.identities[i - 1]
        if X509_check_host(identity.certificate, host, strlen(host), 0, NULL) != 1:
            continue
        if not found:
            SSL_certs_clear(ssl)
            found = True
        if SSL_use_cert_and_key(ssl, identity.certificate, identity.key, identity.chain, 1) != 1:
            return 0
    return 1


cdef int on_alpn(SSL *ssl, const unsigned char **out, unsigned char *out_bytes, const unsigned char *offered, unsigned int n, void *argument) noexcept nogil:
    """Our order decides. A client that offers protocols, but none of ours, is no client of ours (RFC 7301 section 3.2)."""
    cdef Context *context = <Context *> argument
    if SSL_select_next_proto(<unsigned char **> out, out_bytes, context.alpn, context.alpn_bytes, offered, n) == OPENSSL_NPN_NEGOTIATED:
        return SSL_TLSEXT_ERR_OK
    return SSL_TLSEXT_ERR_ALERT_FATAL


cdef int on_ticket_key(SSL *ssl, unsigned char *name, unsigned char *iv, EVP_CIPHER_CTX *cipher, EVP_MAC_CTX *mac, int sealing) noexcept nogil:
    """Keys to seal a ticket with, or to open one by its key's name. 1: here they are; 2: open it, but make a new one; 0: not ours; -1: failed."""
    cdef Tls *tls = (<TlsLink *> SSL_get_ex_data(ssl, 0)).context.owner
    cdef TicketKey key
    cdef OSSL_PARAM[3] params
    cdef int found = 0
    cdef int i
    pthread_mutex_lock(&tls.lock)
    if sealing:
        key = tls.tickets[0]
        found = 1
    else:
        for i in range(2):
            if memcmp(name, tls.tickets[i].name, KEY_NAME_BYTES) == 0:
                key = tls.tickets[i]
                found = 1 + i
                break
    pthread_mutex_unlock(&tls.lock)
    if found == 0:
        return 0
    params[0] = OSSL_PARAM_construct_octet_string("key", key.mac, SECRET_BYTES)
    params[1] = OSSL_PARAM_construct_utf8_string("digest", "SHA256", 0)
    params[2] = OSSL_PARAM_construct_end()
    if sealing:
        memcpy(name, key.name, KEY_NAME_BYTES)
        if RAND_bytes(iv, 16) != 1 or EVP_EncryptInit_ex(cipher, EVP_aes_256_cbc(), NULL, key.cipher, iv) != 1:
            found = -1
    elif EVP_DecryptInit_ex(cipher, EVP_aes_256_cbc(), NULL, key.cipher, iv) != 1:
        found = -1
    if found > 0 and EVP_MAC_CTX_set_params(mac, params) != 1:
        found = -1
    OPENSSL_cleanse(&key, sizeof(key))
    return found


cdef bint used_key(TlsLink *link) noexcept nogil:
    """Whether the client has come in by the pre-shared key that it named."""
    if SSL_version(link.ssl) == TLS1_3_VERSION:
        return link.key_name != NULL and SSL_session_reused(link.ssl) == 1
    return SSL_get_psk_identity(link.ssl) != NULL


cdef int on_ticket_seal(SSL *ssl, void *argument) noexcept nogil:
    cdef uint8_t mark = used_key(<TlsLink *> SSL_get_ex_data(ssl, 0))
    return SSL_SESSION_set1_ticket_appdata(SSL_get_session(ssl), &mark, 1)


cdef bint still_trusted(const Context *context, X509 *certificate) noexcept nogil:
    """Whether a certificate that was good when the ticket was made would be so today."""
    cdef X509_STORE_CTX *verification = X509_STORE_CTX_new()
    cdef bint good
    if verification == NULL:
        return False
    good = (
        X509_STORE_CTX_init(verification, SSL_CTX_get_cert_store(context.ssl), certificate, NULL) == 1
        and X509_STORE_CTX_set_default(verification, "ssl_client") == 1 and X509_verify_cert(verification) == 1
    )
    X509_STORE_CTX_free(verification)
    ERR_clear_error()
    return good


cdef int on_ticket_unseal(SSL *ssl, SSL_SESSION *session, const unsigned char *name, size_t n, int status, void *argument) noexcept nogil:
    """Whether a ticket spares a full handshake."""
    cdef Context *context = <Context *> argument
    cdef X509 *certificate
    cdef void *mark = NULL
    cdef size_t mark_bytes = 0
    if status != SSL_TICKET_SUCCESS and status != SSL_TICKET_SUCCESS_RENEW:
        return SSL_TICKET_RETURN_IGNORE_RENEW
    if SSL_SESSION_get0_ticket_appdata(session, &mark, &mark_bytes) != 1 or mark_bytes != 1 or (<uint8_t *> mark)[0] != 0:
        return SSL_TICKET_RETURN_IGNORE_RENEW
    certificate = SSL_SESSION_get0_peer(session)
    if certificate == NULL:
        if context.peer_certificate == PEER_CERTIFICATE_REQUIRED:
            return SSL_TICKET_RETURN_IGNORE_RENEW
    elif not still_trusted(context, certificate):
        return SSL_TICKET_RETURN_IGNORE_RENEW
    link_key_name(<TlsLink *> SSL_get_ex_data(ssl, 0), NULL)
    return SSL_TICKET_RETURN_USE if status == SSL_TICKET_SUCCESS else SSL_TICKET_RETURN_USE_RENEW


# ---------------------------------------------------------------------------------------------- a listener's TLS

cdef Tls *tls_build() noexcept nogil:
    cdef Tls *tls = <Tls *> mem_alloc_zeroed(1, sizeof(Tls))
    if tls == NULL:
        return NULL
    tls.refs = 1
    if RAND_bytes(<unsigned char *> tls.tickets, sizeof(tls.tickets)) != 1 or pthread_mutex_init(&tls.lock, NULL) != 0:
        mem_free(tls)
        return NULL
    return tls


cdef Tls *tls_share(Tls *tls) noexcept nogil:
    atomic_add_u32_relaxed(&tls.refs, 1)
    return tls


cdef void tls_drop(Tls *tls) noexcept nogil:
    if atomic_sub_u32_acq_rel(&tls.refs, 1) != 1:
        return
    if tls.context != NULL:
        context_drop(tls.context)
    pthread_mutex_destroy(&tls.lock)
    OPENSSL_cleanse(tls.tickets, sizeof(tls.tickets))
    mem_free(tls)


cdef int tls_load(Tls *tls, const TlsSettings *settings, TlsFailure *failure) noexcept nogil:
    cdef Context *context = context_build(tls, settings, failure)
    cdef Context *before
    if context == NULL:
        return ST_ERROR
    pthread_mutex_lock(&tls.lock)
    before = tls.context
    tls.context = context
    pthread_mutex_unlock(&tls.lock)
    if before != NULL:
        context_drop(before)
    atomic_add_u64_relaxed(&tls.stats.loads, 1)
    return ST_OK


cdef int tls_rotate(Tls *tls) noexcept nogil:
    cdef TicketKey key
    if RAND_bytes(<unsigned char *> &key, sizeof(key)) != 1:
        return ST_ERROR
    pthread_mutex_lock(&tls.lock)
    tls.tickets[1] = tls.tickets[0]
    tls.tickets[0] = key
    pthread_mutex_unlock(&tls.lock)
    OPENSSL_cleanse(&key, sizeof(key))
    return ST_OK


cdef void tls_bind(Tls *tls, TlsGauge *gauge) noexcept nogil:
    tls.gauge = gauge


cdef void tls_stats(Tls *tls, TlsStats *stats) noexcept nogil:
    tls_stats_read(&tls.stats, stats)


cdef uint64_t tls_live() noexcept nogil:
    return atomic_load_u64_relaxed(&live) + tls_client_live()


# ---------------------------------------------------------------------------------------------- a connection

cdef bint gauge_take(TlsGauge *gauge) noexcept nogil:
    """One handshake more, unless that is too many; however many workers count at once."""
    if gauge == NULL or atomic_add_u32_relaxed(&gauge.open, 1) < gauge.most or gauge.most == 0:
        return True
    atomic_add_u32_relaxed(&gauge.open, <uint32_t> -1)
    atomic_add_u64_relaxed(&gauge.refused, 1)
    return False


cdef void gauge_leave(TlsLink *link) noexcept nogil:
    """Its handshake is over; harmless when called again."""
    if link.gauge != NULL:
        atomic_add_u32_relaxed(&link.gauge.open, <uint32_t> -1)
        link.gauge = NULL


cdef int tls_accept(void *owner, Transport *transport) noexcept nogil:
    cdef Tls *tls = <Tls *> owner
    cdef TlsLink *link
    if not gauge_take(tls.gauge):
        return ST_LIMIT
    link = <TlsLink *> mem_alloc_zeroed(1, sizeof(TlsLink))
    if link == NULL:
        if tls.gauge != NULL:
            atomic_add_u32_relaxed(&tls.gauge.open, <uint32_t> -1)
        return ST_NO_MEMORY
    link.gauge = tls.gauge
    atomic_add_u64_relaxed(&live, 1)
    pthread_mutex_lock(&tls.lock)
    link.context = tls.context
    if link.context != NULL:
        atomic_add_u32_relaxed(&link.context.refs, 1)
    pthread_mutex_unlock(&tls.lock)
    link.stats = &tls.stats
    link.end.expected = RECORD_HANDSHAKE
    ERR_clear_error()
    if link.context != NULL:
        link.ssl = SSL_new(link.context.ssl)
        if link.ssl != NULL:
            SSL_set_accept_state(link.ssl)
    return link_attach(link, transport)


cdef int tls_dial(void *client, Transport *transport) noexcept nogil:
    cdef TlsLink *link = <TlsLink *> mem_alloc_zeroed(1, sizeof(TlsLink))
    if link == NULL:
        return ST_NO_MEMORY
    atomic_add_u64_relaxed(&live, 1)
    link.client = tls_client_share(<TlsClient *> client)
    link.stats = tls_client_counters(link.client)
    ERR_clear_error()
    link.ssl = tls_client_connection(link.client)
    return link_attach(link, transport)


cdef int link_attach(TlsLink *link, Transport *transport) noexcept nogil:
    """The plain socket becomes TLS. ST_NO_MEMORY: it is unchanged, and the link is gone."""
    cdef BIO *bio = socket_bio(&link.end)
    if link.ssl == NULL or bio == NULL or SSL_set_ex_data(link.ssl, 0, link) != 1:
        ERR_clear_error()
        BIO_free(bio)
        link_free(link)
        return ST_NO_MEMORY
    link.end.fd = transport.fd
    SSL_set_bio(link.ssl, bio, bio)
    transport.ops = &tls_operations
    transport.state = link
    transport.wants = 0
    return ST_OK


cdef void link_free(TlsLink *link) noexcept nogil:
    gauge_leave(link)
    SSL_free(link.ssl)
    socket_free(&link.end)
    if link.context != NULL:
        context_drop(link.context)
    if link.client != NULL:
        tls_client_drop(link.client)
    mem_free(link.key_name)
    mem_free(link.why)
    mem_free(link)
    atomic_add_u64_relaxed(&live, <uint64_t> -1)


cdef int64_t link_break(TlsLink *link, const char *what) noexcept nogil:
    """IO_FAILED; keeps the reason: `what`, or OpenSSL's."""
    cdef unsigned long error = ERR_peek_error()
    cdef const char *reason = NULL
    link.broken = True
    if not link.up:
        atomic_add_u64_relaxed(&link.stats.failed, 1)
    if what == NULL and error != 0:
        if ERR_GET_REASON(error) == SSL_R_CERTIFICATE_VERIFY_FAILED:
            reason = X509_verify_cert_error_string(SSL_get_verify_result(link.ssl))
        else:
            reason = ERR_reason_error_string(error)
    ERR_clear_error()
    if reason == NULL:
        reason = "the connection broke"
    link.why = <char *> mem_alloc(WHY_BYTES)
    if link.why != NULL:
        if what != NULL:
            snprintf(link.why, WHY_BYTES, "%s", what)
        else:
            snprintf(link.why, WHY_BYTES, "%s: %s", <const char *> "TLS" if link.up else <const char *> "TLS handshake failed", reason)
    return IO_FAILED


cdef const char *not_tls(const TlsLink *link) noexcept nogil:
    """Why what the peer has sent is no handshake; NULL: it may be one. A plain client gets no sense from a TLS alert, a log line none from OpenSSL's error."""
    if not link.end.heard and link.end.ended:
        return "closed before the TLS handshake"
    if not link.end.heard or not link.end.expected or link.end.first == link.end.expected:
        return NULL
    if link.end.first == BYTE_CONNECT:
        return "not TLS: the client speaks plain MQTT"
    return "not TLS: no handshake"


cdef int64_t link_handshake(Transport *transport, TlsLink *link, uint32_t wants_in, uint32_t wants_out) noexcept nogil:
    """1: done; else IoResult. A read that needs output says so, and a write that needs input: `wants_in` and `wants_out` are what each adds to wants."""
    cdef int result, error
    ERR_clear_error()
    result = SSL_do_handshake(link.ssl)
    if result == 1:
        link.up = True
        gauge_leave(link)
        atomic_add_u64_relaxed(&link.stats.handshakes, 1)
        if SSL_session_reused(link.ssl):
            atomic_add_u64_relaxed(&link.stats.resumed, 1)
        return 1
    error = SSL_get_error(link.ssl, result)
    if error == SSL_ERROR_WANT_READ and (link.end.held or link.end.unsent == NULL):
        transport.wants |= wants_in
        return IO_AGAIN
    if error == SSL_ERROR_WANT_READ or error == SSL_ERROR_WANT_WRITE:
        transport.wants |= wants_out
        return IO_AGAIN
    if error == SSL_ERROR_ZERO_RETURN:
        return link_break(link, "closed during the TLS handshake")
    return link_break(link, not_tls(link))


cdef int64_t tls_read(Transport *transport, uint8_t *out, uint32_t n) noexcept nogil:
    cdef TlsLink *link = <TlsLink *> transport.state
    cdef int64_t got
    cdef int status
    transport.wants = 0
    if link.broken:
        return IO_FAILED
    if link.ended:
        return IO_END
    status = out_flush(&link.end)
    if status == ST_CLOSED:
        return link_break(link, NULL)
    if status == ST_AGAIN and (not link.up or out_stuck(&link.end)):
        transport.wants |= WANTS_OUT
        return IO_AGAIN
    in_open(&link.end, out, n)
    got = records_read(transport, link, out, n)
    if got > 0 and link.end.in_full:
        transport.wants |= WANTS_READ
    in_close(&link.end)
    if got <= 0 or link.broken:
        out_flush(&link.end)           # else it leaves with the answer to what was read
    if link.end.unsent != NULL and not link.broken and not link.owed:          # with `owed`, the link's queue waits for it already
        transport.wants |= WANTS_OUT
    return got


cdef int64_t records_read(Transport *transport, TlsLink *link, uint8_t *out, uint32_t n) noexcept nogil:
    """Record after record, until `out` is full or no whole one is left: what OpenSSL holds raises no event, what waits in the socket does."""
    cdef uint32_t total = 0
    cdef int64_t status
    cdef int got, error
    if not link.up:
        status = link_handshake(transport, link, 0, WANTS_OUT)
        if status != 1:
            return status
    while True:
        ERR_clear_error()
        got = SSL_read(link.ssl, out + total, <int> (n - total))
        if got > 0:
            total += <uint32_t> got
            if link.end.window_bytes == 0 and not SSL_has_pending(link.ssl):
                return total
            if total == n:
                transport.wants |= WANTS_READ
                return total
            continue
        error = SSL_get_error(link.ssl, got)
        status = IO_AGAIN
        if error == SSL_ERROR_WANT_WRITE:
            transport.wants |= WANTS_OUT
        elif error == SSL_ERROR_ZERO_RETURN:
            link.ended = True
            status = IO_END
        elif error != SSL_ERROR_WANT_READ:
            status = link_break(link, NULL)
        if total == 0:
            return status
        if error != SSL_ERROR_WANT_READ:
            transport.wants |= WANTS_READ
        return total


cdef uint32_t parts_gather(const iovec *parts, int count, int index, size_t offset, uint8_t *room, uint32_t want) noexcept nogil:
    """Copies up to `want` bytes from there on; returns their number."""
    cdef uint32_t have = 0
    cdef size_t n
    while index < count and have < want:
        n = parts[index].iov_len - offset
        if n > want - have:
            n = want - have
        memcpy(room + have, <const uint8_t *> parts[index].iov_base + offset, n)
        have += <uint32_t> n
        index += 1
        offset = 0
    return have


cdef int64_t records_write(TlsLink *link, const iovec *parts, int count, uint64_t skip, uint64_t available) noexcept nogil:
    """Encrypts the parts behind the first `skip` of `available` bytes, as far as the batch goes: bytes taken, or IO_FAILED."""
    cdef uint8_t[RECORD_BYTES] room
    cdef const uint8_t *p
    cdef uint32_t n
    cdef size_t here
    cdef size_t offset = 0
    cdef uint64_t step = skip
    cdef uint64_t total = skip
    cdef int index = 0
    cdef int taken, error
    cdef bint several = available - skip > RECORD_BYTES
    if several:
        SSL_clear_mode(link.ssl, SSL_MODE_RELEASE_BUFFERS)     # all records but the last leave OpenSSL its buffer
    ERR_clear_error()
    while total < available and out_room(&link.end):
        while step >= parts[index].iov_len - offset:
            step -= parts[index].iov_len - offset
            index += 1
            offset = 0
        offset += step
        here = parts[index].iov_len - offset
        if here >= WORTH_A_RECORD or index == count - 1:
            p = <const uint8_t *> parts[index].iov_base + offset
            n = RECORD_BYTES if here >= RECORD_BYTES else <uint32_t> here
        else:
            p = room
            n = parts_gather(parts, count, index, offset, room, RECORD_BYTES)
        if several and total + n == available:
            SSL_set_mode(link.ssl, SSL_MODE_RELEASE_BUFFERS)
        taken = SSL_write(link.ssl, p, <int> n)
        if taken <= 0:
            error = SSL_get_error(link.ssl, taken)
            if error == SSL_ERROR_WANT_WRITE:
                return link_break(link, "TLS: the connection broke")
            return link_break(link, NULL)
        step = <uint64_t> taken
        total += step
    if several:
        SSL_set_mode(link.ssl, SSL_MODE_RELEASE_BUFFERS)
    return <int64_t> (total - skip)


cdef int64_t tls_write(Transport *transport, const iovec *parts, int count) noexcept nogil:
    """Records of at most 16 KiB, several in one system call: short parts are put together. A client's first ones make the handshake.

    What is encrypted is sent or kept (see tls_socket). While some is kept, the last byte counts as not taken: its owner's queue is not empty before all has
    left, and the byte is passed over when it comes again.
    """
    cdef TlsLink *link = <TlsLink *> transport.state
    cdef uint64_t available = 0
    cdef int64_t total, taken
    cdef int i, status
    transport.wants &= ~<uint32_t> (WANTS_IN | WANTS_OUT)      # `owed` says the rest
    if link.broken:
        return IO_FAILED
    if not link.up and link.client == NULL:
        return IO_FAILED       # nobody has said anything yet that could be answered
    status = ST_OK if link.end.held else out_flush(&link.end)
    if status != ST_OK:
        if status == ST_AGAIN:
            return IO_AGAIN
        return link_break(link, "TLS: the connection broke")
    if not link.up:
        total = link_handshake(transport, link, WANTS_IN, 0)
        if total != 1:
            return total
    total = link.owed
    link.owed = 0
    for i in range(count):
        available += parts[i].iov_len
    while <uint64_t> total < available:
        if available - <uint64_t> total > RECORD_BYTES:
            out_begin(&link.end, <uint32_t> ((available - <uint64_t> total + RECORD_BYTES - 1) // RECORD_BYTES))
        taken = records_write(link, parts, count, <uint64_t> total, available)
        status = out_end(&link.end)
        if taken < 0:
            return taken
        if status == ST_CLOSED:
            return link_break(link, "TLS: the connection broke")
        total += taken
        if status == ST_AGAIN:
            link.owed = 1
            return total - 1 if total > 1 else IO_AGAIN
    return total


cdef void tls_finish(Transport *transport) noexcept nogil:
    cdef TlsLink *link = <TlsLink *> transport.state
    if link.up and not link.broken:
        out_flush(&link.end)
        ERR_clear_error()
        SSL_shutdown(link.ssl)         # close_notify, if the socket takes it: the end of the stream says the same
        ERR_clear_error()
    shutdown(transport.fd, SHUT_WR)


cdef void discard_input(int fd) noexcept nogil:
    """Closing with unread input resets the connection, and the alert that says why would be lost on its way."""
    cdef uint8_t[4096] room
    cdef int i
    shutdown(fd, SHUT_WR)
    for i in range(16):
        if recv(fd, room, sizeof(room), 0) <= 0:
            return


cdef void tls_close(Transport *transport) noexcept nogil:
    cdef TlsLink *link = <TlsLink *> transport.state
    if link != NULL:
        if link.broken and not link.up:
            discard_input(transport.fd)
        link_free(link)
        transport.state = NULL
    if transport.fd >= 0:
        c_close(transport.fd)
        transport.fd = -1


cdef uint32_t tls_proof(Transport *transport, int kind, uint8_t *out, uint32_t n) noexcept nogil:
    cdef TlsLink *link = <TlsLink *> transport.state
    cdef X509 *certificate
    cdef const char *name
    cdef unsigned char *p = out
    cdef int size
    if not link.up or link.broken:
        return 0
    if kind == PROOF_CERTIFICATE:
        certificate = SSL_get0_peer_certificate(link.ssl)
        if certificate == NULL or SSL_get_verify_result(link.ssl) != X509_V_OK:
            return 0
        size = i2d_X509(certificate, NULL)
        if size > 0 and <uint32_t> size <= n:
            i2d_X509(certificate, &p)
        return <uint32_t> size if size > 0 else 0
    if kind != PROOF_KEY_NAME or not used_key(link):
        return 0
    name = link.key_name
    if name == NULL:
        name = SSL_get_psk_identity(link.ssl)
    size = <int> strlen(name)
    if <uint32_t> size <= n:
        memcpy(out, name, <size_t> size)
    return <uint32_t> size


cdef const char *tls_failure(Transport *transport) noexcept nogil:
    cdef TlsLink *link = <TlsLink *> transport.state
    if link == NULL:
        return NULL
    if link.why != NULL:
        return link.why
    if link.up:
        return NULL
    if not_tls(link) != NULL:
        return not_tls(link)
    if not link.end.heard:
        return "no TLS handshake"
    return "the TLS handshake was not finished"
