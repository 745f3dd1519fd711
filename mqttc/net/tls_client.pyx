from libc.stdint cimport uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.string cimport memcpy, memset, strlen

from mqttc.base.alloc cimport mem_alloc, mem_alloc_zeroed, mem_free
from mqttc.base.types cimport ST_NO_MEMORY, ST_OK, atomic_add_u32_relaxed, atomic_add_u64_relaxed, atomic_load_u64_relaxed, atomic_sub_u32_acq_rel
from mqttc.net.openssl cimport (
    ERR_clear_error, SSL, SSL_CTX, SSL_CTX_free, SSL_CTX_get0_param, SSL_CTX_get_ex_data, SSL_CTX_new, SSL_CTX_sess_set_new_cb, SSL_CTX_set_alpn_protos,
    SSL_CTX_set_max_proto_version, TLS1_2_VERSION, TLS1_3_VERSION,
    SSL_CTX_set_default_verify_paths, SSL_CTX_set_ex_data, SSL_CTX_set_session_cache_mode, SSL_CTX_set_verify, SSL_CTX_use_cert_and_key, SSL_SESSION,
    SSL_SESSION_dup, SSL_SESSION_free,
    SSL_SESS_CACHE_CLIENT, SSL_SESS_CACHE_NO_INTERNAL, SSL_SESS_CACHE_OFF, SSL_VERIFY_NONE, SSL_VERIFY_PEER, SSL_free, SSL_get_SSL_CTX,
    SSL_new, SSL_set_connect_state, SSL_set_session, SSL_set_tlsext_host_name, TLS_client_method, X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS, X509_VERIFY_PARAM,
    X509_VERIFY_PARAM_set1_host, X509_VERIFY_PARAM_set1_ip_asc, X509_VERIFY_PARAM_set_hostflags,
)
from mqttc.net.tls_context cimport (
    Identity, context_protocol, context_trust_ca, identity_free, identity_read, tls_fail, tls_stats_read,
)

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_mutex_t:
        pass
    int pthread_mutex_init(pthread_mutex_t *lock, const void *attributes)
    int pthread_mutex_destroy(pthread_mutex_t *lock)
    int pthread_mutex_lock(pthread_mutex_t *lock)
    int pthread_mutex_unlock(pthread_mutex_t *lock)

cdef const char *CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20:!aNULL"

cdef struct TlsClient:
    uint32_t refs              # atomic: its owner, and every connection
    SSL_CTX *ssl
    char *host                 # owned: the name that is sent; NULL: none
    pthread_mutex_t lock
    SSL_SESSION *session       # under lock: what a ticket of the server resumes; NULL: none yet, or not wanted
    TlsStats stats             # atomic

cdef uint64_t live             # atomic: contexts


cdef int on_session(SSL *ssl, SSL_SESSION *session) noexcept nogil:
    """A ticket has come. 1: its reference is ours now."""
    cdef TlsClient *client = <TlsClient *> SSL_CTX_get_ex_data(SSL_get_SSL_CTX(ssl), 0)
    cdef SSL_SESSION *before
    pthread_mutex_lock(&client.lock)
    before = client.session
    client.session = session
    pthread_mutex_unlock(&client.lock)
    SSL_SESSION_free(before)
    return 1


cdef int client_name(TlsClient *client, const TlsClientSettings *settings, TlsFailure *failure) noexcept nogil:
    """Whose certificate it must be (RFC 6125; addresses, RFC 5280 section 4.2.1.6)."""
    cdef X509_VERIFY_PARAM *rules = SSL_CTX_get0_param(client.ssl)
    cdef size_t n
    if settings.server_name == NULL:
        return ST_OK
    if X509_VERIFY_PARAM_set1_ip_asc(rules, settings.server_name) == 1:
        return ST_OK
    ERR_clear_error()
    n = strlen(settings.server_name)
    X509_VERIFY_PARAM_set_hostflags(rules, X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS)
    if X509_VERIFY_PARAM_set1_host(rules, settings.server_name, n) != 1:
        return tls_fail(failure, "the server's name cannot be used")
    client.host = <char *> mem_alloc(n + 1)
    if client.host == NULL:
        return ST_NO_MEMORY
    memcpy(client.host, settings.server_name, n + 1)
    return ST_OK


cdef int client_identity(TlsClient *client, const TlsClientSettings *settings, TlsFailure *failure) noexcept nogil:
    cdef Identity identity
    cdef int status
    if settings.certificate == NULL:
        return ST_OK
    memset(&identity, 0, sizeof(Identity))
    status = identity_read(&identity, settings.certificate, failure)
    if status == ST_OK and SSL_CTX_use_cert_and_key(client.ssl, identity.certificate, identity.key, identity.chain, 1) != 1:
        status = tls_fail(failure, "the certificate and the key cannot be used")
    identity_free(&identity)
    return status


cdef int client_fill(TlsClient *client, const TlsClientSettings *settings, TlsFailure *failure) noexcept nogil:
    cdef int status = context_protocol(
        client.ssl, settings.minimum_version, settings.ciphers if settings.ciphers != NULL else CIPHERS, settings.ciphersuites, failure
    )
    if status == ST_OK and settings.maximum_version:
        if SSL_CTX_set_max_proto_version(client.ssl, TLS1_3_VERSION if settings.maximum_version == 3 else TLS1_2_VERSION) != 1:
            status = tls_fail(failure, "maximum_version cannot be set")
    if status == ST_OK and not settings.insecure:
        if settings.ca.n:
            status = context_trust_ca(client.ssl, settings.ca, False, "the CA certificates cannot be read", failure)
        elif SSL_CTX_set_default_verify_paths(client.ssl) != 1:
            status = tls_fail(failure, "this system's CA certificates cannot be used")
    if status == ST_OK:
        status = client_name(client, settings, failure)
    if status == ST_OK:
        status = client_identity(client, settings, failure)
    if status != ST_OK:
        return status
    SSL_CTX_set_verify(client.ssl, SSL_VERIFY_NONE if settings.insecure else SSL_VERIFY_PEER, NULL)
    if settings.alpn.n and SSL_CTX_set_alpn_protos(client.ssl, settings.alpn.p, settings.alpn.n) != 0:
        return tls_fail(failure, "these ALPN names cannot be used")
    SSL_CTX_set_session_cache_mode(client.ssl, SSL_SESS_CACHE_CLIENT | SSL_SESS_CACHE_NO_INTERNAL if settings.resume else SSL_SESS_CACHE_OFF)
    if settings.resume:
        SSL_CTX_sess_set_new_cb(client.ssl, on_session)
    return ST_OK


cdef TlsClient *tls_client_build(const TlsClientSettings *settings, TlsFailure *failure) noexcept nogil:
    cdef TlsClient *client = <TlsClient *> mem_alloc_zeroed(1, sizeof(TlsClient))
    cdef int status = ST_NO_MEMORY
    if client == NULL or pthread_mutex_init(&client.lock, NULL) != 0:
        mem_free(client)
        snprintf(failure.text, sizeof(failure.text), "no memory")
        return NULL
    atomic_add_u64_relaxed(&live, 1)
    client.refs = 1
    ERR_clear_error()
    client.ssl = SSL_CTX_new(TLS_client_method())
    if client.ssl != NULL and SSL_CTX_set_ex_data(client.ssl, 0, client) == 1:
        status = client_fill(client, settings, failure)
    if status == ST_OK:
        return client
    if status == ST_NO_MEMORY:
        snprintf(failure.text, sizeof(failure.text), "no memory")
    ERR_clear_error()
    tls_client_drop(client)
    return NULL


cdef TlsClient *tls_client_share(TlsClient *client) noexcept nogil:
    atomic_add_u32_relaxed(&client.refs, 1)
    return client


cdef void tls_client_drop(TlsClient *client) noexcept nogil:
    if atomic_sub_u32_acq_rel(&client.refs, 1) != 1:
        return
    SSL_SESSION_free(client.session)
    SSL_CTX_free(client.ssl)
    pthread_mutex_destroy(&client.lock)
    mem_free(client.host)
    mem_free(client)
    atomic_add_u64_relaxed(&live, <uint64_t> -1)


cdef void tls_client_stats(TlsClient *client, TlsStats *stats) noexcept nogil:
    tls_stats_read(&client.stats, stats)


cdef uint64_t tls_client_live() noexcept nogil:
    return atomic_load_u64_relaxed(&live)


cdef bint show_ticket(TlsClient *client, SSL *ssl) noexcept nogil:
    """A copy of the session: OpenSSL takes one that it has resumed in TLS 1.3 for used up, and servers need not give another."""
    cdef SSL_SESSION *session = NULL
    cdef bint shown = True
    pthread_mutex_lock(&client.lock)
    if client.session != NULL:
        session = SSL_SESSION_dup(client.session)
        shown = session != NULL
    pthread_mutex_unlock(&client.lock)
    if session != NULL:
        shown = SSL_set_session(ssl, session) == 1
        SSL_SESSION_free(session)
    return shown


cdef SSL *tls_client_connection(TlsClient *client) noexcept nogil:
    cdef SSL *ssl = SSL_new(client.ssl)
    if ssl == NULL:
        return NULL
    SSL_set_connect_state(ssl)
    if (client.host == NULL or SSL_set_tlsext_host_name(ssl, client.host) == 1) and show_ticket(client, ssl):
        return ssl
    ERR_clear_error()
    SSL_free(ssl)
    return NULL


cdef TlsStats *tls_client_counters(TlsClient *client) noexcept nogil:
    return &client.stats
