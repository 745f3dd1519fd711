"""OpenSSL 3 as far as TLS needs it. Declarations alone: `tls_socket`, `tls_context`, `tls_client` and `tls` are the modules that call it and are linked to it."""

from libc.stdint cimport uint64_t

cdef extern from "<openssl/err.h>" nogil:
    void ERR_clear_error()
    unsigned long ERR_peek_error()
    unsigned long ERR_peek_last_error()
    const char *ERR_reason_error_string(unsigned long error)
    int ERR_GET_REASON(unsigned long error)

cdef extern from "<openssl/rand.h>" nogil:
    int RAND_bytes(unsigned char *out, int n)

cdef extern from "<openssl/crypto.h>" nogil:
    void OPENSSL_cleanse(void *p, size_t n)

cdef extern from "<openssl/evp.h>" nogil:
    ctypedef struct EVP_PKEY:
        pass
    ctypedef struct EVP_CIPHER:
        pass
    ctypedef struct EVP_CIPHER_CTX:
        pass
    ctypedef struct EVP_MAC_CTX:
        pass
    ctypedef struct ENGINE:
        pass
    ctypedef struct OSSL_PARAM:
        pass
    void EVP_PKEY_free(EVP_PKEY *key)
    const EVP_CIPHER *EVP_aes_256_cbc()
    int EVP_EncryptInit_ex(EVP_CIPHER_CTX *context, const EVP_CIPHER *cipher, ENGINE *engine, const unsigned char *key, const unsigned char *iv)
    int EVP_DecryptInit_ex(EVP_CIPHER_CTX *context, const EVP_CIPHER *cipher, ENGINE *engine, const unsigned char *key, const unsigned char *iv)
    int EVP_MAC_CTX_set_params(EVP_MAC_CTX *context, const OSSL_PARAM *params)

cdef extern from "<openssl/params.h>" nogil:
    OSSL_PARAM OSSL_PARAM_construct_octet_string(const char *key, void *bytes, size_t n)
    OSSL_PARAM OSSL_PARAM_construct_utf8_string(const char *key, char *text, size_t n)
    OSSL_PARAM OSSL_PARAM_construct_end()

cdef extern from "<openssl/bio.h>" nogil:
    ctypedef struct BIO:
        pass
    ctypedef struct BIO_METHOD:
        pass
    BIO *BIO_new_mem_buf(const void *bytes, int n)
    const int BIO_TYPE_SOURCE_SINK
    const int BIO_CTRL_EOF
    const int BIO_CTRL_FLUSH
    BIO_METHOD *BIO_meth_new(int type, const char *name)
    void BIO_meth_free(BIO_METHOD *method)
    int BIO_meth_set_read(BIO_METHOD *method, int (*read)(BIO *, char *, int) noexcept nogil)
    int BIO_meth_set_write(BIO_METHOD *method, int (*write)(BIO *, const char *, int) noexcept nogil)
    int BIO_meth_set_ctrl(BIO_METHOD *method, long (*ctrl)(BIO *, int, long, void *) noexcept nogil)
    BIO *BIO_new(const BIO_METHOD *method)
    void BIO_set_data(BIO *bio, void *data)
    void *BIO_get_data(BIO *bio)
    void BIO_set_init(BIO *bio, int yes)
    void BIO_set_retry_read(BIO *bio)
    void BIO_set_retry_write(BIO *bio)
    void BIO_clear_retry_flags(BIO *bio)
    int BIO_free(BIO *bio)

cdef extern from "<openssl/x509v3.h>" nogil:
    ctypedef struct X509:
        pass
    ctypedef struct X509_CRL:
        pass
    ctypedef struct X509_STORE:
        pass
    ctypedef struct X509_STORE_CTX:
        pass
    ctypedef struct X509_STACK "STACK_OF(X509)":
        pass
    ctypedef struct X509_VERIFY_PARAM:
        pass
    void X509_free(X509 *certificate)
    void X509_CRL_free(X509_CRL *crl)
    int X509_check_purpose(X509 *certificate, int purpose, int ca)      # purpose -1: only reads its extensions
    int i2d_X509(const X509 *certificate, unsigned char **out)
    int X509_check_host(X509 *certificate, const char *name, size_t n, unsigned int flags, char **peer_name)
    X509_STACK *sk_X509_new_null()
    int sk_X509_push(X509_STACK *stack, X509 *certificate)
    void sk_X509_pop_free(X509_STACK *stack, void (*free)(X509 *) noexcept nogil)
    int X509_STORE_add_cert(X509_STORE *store, X509 *certificate)
    int X509_STORE_add_crl(X509_STORE *store, X509_CRL *crl)
    int X509_STORE_set_flags(X509_STORE *store, unsigned long flags)
    const unsigned long X509_V_FLAG_CRL_CHECK
    const unsigned long X509_V_FLAG_PARTIAL_CHAIN
    const long X509_V_OK
    const char *X509_verify_cert_error_string(long n)
    X509_STORE_CTX *X509_STORE_CTX_new()
    void X509_STORE_CTX_free(X509_STORE_CTX *context)
    int X509_STORE_CTX_init(X509_STORE_CTX *context, X509_STORE *store, X509 *certificate, X509_STACK *untrusted)
    int X509_STORE_CTX_set_default(X509_STORE_CTX *context, const char *name)
    int X509_verify_cert(X509_STORE_CTX *context)
    int X509_VERIFY_PARAM_set1_host(X509_VERIFY_PARAM *rules, const char *name, size_t n)
    int X509_VERIFY_PARAM_set1_ip_asc(X509_VERIFY_PARAM *rules, const char *address)
    void X509_VERIFY_PARAM_set_hostflags(X509_VERIFY_PARAM *rules, unsigned int flags)
    const unsigned int X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS

cdef extern from "<openssl/pem.h>" nogil:
    ctypedef int (*PasswordCallback "pem_password_cb *")(char *room, int n, int writing, void *context) noexcept
    X509 *PEM_read_bio_X509(BIO *bio, X509 **out, PasswordCallback ask, void *context)
    X509_CRL *PEM_read_bio_X509_CRL(BIO *bio, X509_CRL **out, PasswordCallback ask, void *context)
    EVP_PKEY *PEM_read_bio_PrivateKey(BIO *bio, EVP_PKEY **out, PasswordCallback ask, void *context)

cdef extern from "<openssl/pkcs12.h>" nogil:
    ctypedef struct PKCS12:
        pass
    PKCS12 *d2i_PKCS12_bio(BIO *bio, PKCS12 **out)
    void PKCS12_free(PKCS12 *bundle)
    int PKCS12_parse(PKCS12 *bundle, const char *password, EVP_PKEY **key, X509 **certificate, X509_STACK **chain)

cdef extern from "<openssl/ssl.h>" nogil:
    ctypedef struct SSL:
        pass
    ctypedef struct SSL_CTX:
        pass
    ctypedef struct SSL_SESSION:
        pass
    ctypedef struct SSL_METHOD:
        pass
    const SSL_METHOD *TLS_server_method()
    const SSL_METHOD *TLS_client_method()
    SSL_CTX *SSL_CTX_new(const SSL_METHOD *method)
    void SSL_CTX_free(SSL_CTX *context)
    uint64_t SSL_CTX_set_options(SSL_CTX *context, uint64_t options)
    long SSL_CTX_set_mode(SSL_CTX *context, long mode)
    long SSL_set_mode(SSL *ssl, long mode)
    long SSL_clear_mode(SSL *ssl, long mode)
    int SSL_CTX_set_min_proto_version(SSL_CTX *context, int version)
    int SSL_CTX_set_max_proto_version(SSL_CTX *context, int version)
    int SSL_CTX_set_cipher_list(SSL_CTX *context, const char *list)
    int SSL_CTX_set_ciphersuites(SSL_CTX *context, const char *list)
    int SSL_CTX_use_cert_and_key(SSL_CTX *context, X509 *certificate, EVP_PKEY *key, X509_STACK *chain, int replace)
    void SSL_CTX_set_cert_cb(SSL_CTX *context, int (*callback)(SSL *, void *) noexcept nogil, void *argument)
    void SSL_CTX_set_verify(SSL_CTX *context, int mode, void *callback)
    int SSL_CTX_add_client_CA(SSL_CTX *context, X509 *certificate)
    X509_STORE *SSL_CTX_get_cert_store(const SSL_CTX *context)
    int SSL_CTX_set_default_verify_paths(SSL_CTX *context)
    X509_VERIFY_PARAM *SSL_CTX_get0_param(SSL_CTX *context)
    int SSL_CTX_set_alpn_protos(SSL_CTX *context, const unsigned char *protocols, unsigned int n)      # 0 is success
    long SSL_CTX_set_session_cache_mode(SSL_CTX *context, long mode)
    int SSL_CTX_set_session_id_context(SSL_CTX *context, const unsigned char *id, unsigned int n)
    void SSL_CTX_sess_set_new_cb(SSL_CTX *context, int (*callback)(SSL *, SSL_SESSION *) noexcept nogil)
    int SSL_CTX_set_ex_data(SSL_CTX *context, int index, void *data)
    void *SSL_CTX_get_ex_data(const SSL_CTX *context, int index)
    SSL_CTX *SSL_get_SSL_CTX(const SSL *ssl)
    long SSL_CTX_set_timeout(SSL_CTX *context, long seconds)
    int SSL_CTX_set_num_tickets(SSL_CTX *context, size_t n)
    void SSL_CTX_set_read_ahead(SSL_CTX *context, int yes)
    void SSL_CTX_set_psk_server_callback(SSL_CTX *context, unsigned int (*callback)(SSL *, const char *, unsigned char *, unsigned int) noexcept nogil)
    int SSL_CTX_use_psk_identity_hint(SSL_CTX *context, const char *hint)
    void SSL_CTX_set_alpn_select_cb(
        SSL_CTX *context,
        int (*callback)(SSL *, const unsigned char **, unsigned char *, const unsigned char *, unsigned int, void *) noexcept nogil, void *argument
    )
    int SSL_CTX_set_tlsext_ticket_key_evp_cb(
        SSL_CTX *context, int (*callback)(SSL *, unsigned char *, unsigned char *, EVP_CIPHER_CTX *, EVP_MAC_CTX *, int) noexcept nogil
    )
    int SSL_CTX_set_session_ticket_cb(
        SSL_CTX *context, int (*seal)(SSL *, void *) noexcept nogil,
        int (*unseal)(SSL *, SSL_SESSION *, const unsigned char *, size_t, int, void *) noexcept nogil, void *argument
    )
    SSL *SSL_new(SSL_CTX *context)
    void SSL_free(SSL *ssl)
    void SSL_set_bio(SSL *ssl, BIO *reads, BIO *writes)     # takes the one reference of a BIO that is both
    void SSL_set_accept_state(SSL *ssl)
    void SSL_set_connect_state(SSL *ssl)
    long SSL_set_tlsext_host_name(SSL *ssl, const char *name)
    int SSL_set_session(SSL *ssl, SSL_SESSION *session)
    SSL_SESSION *SSL_SESSION_dup(const SSL_SESSION *session)
    void SSL_SESSION_free(SSL_SESSION *session)
    int SSL_set_ex_data(SSL *ssl, int index, void *data)
    void *SSL_get_ex_data(const SSL *ssl, int index)
    int SSL_do_handshake(SSL *ssl)
    int SSL_read(SSL *ssl, void *out, int n)
    int SSL_write(SSL *ssl, const void *bytes, int n)
    int SSL_has_pending(const SSL *ssl)
    int SSL_shutdown(SSL *ssl)
    int SSL_get_error(const SSL *ssl, int result)
    int SSL_version(const SSL *ssl)
    int SSL_session_reused(SSL *ssl)
    long SSL_get_verify_result(const SSL *ssl)
    X509 *SSL_get0_peer_certificate(const SSL *ssl)
    const char *SSL_get_psk_identity(const SSL *ssl)
    const char *SSL_get_servername(const SSL *ssl, int kind)
    SSL_SESSION *SSL_get_session(const SSL *ssl)
    void SSL_certs_clear(SSL *ssl)
    int SSL_use_cert_and_key(SSL *ssl, X509 *certificate, EVP_PKEY *key, X509_STACK *chain, int replace)
    X509 *SSL_SESSION_get0_peer(SSL_SESSION *session)
    int SSL_SESSION_set1_ticket_appdata(SSL_SESSION *session, const void *data, size_t n)
    int SSL_SESSION_get0_ticket_appdata(SSL_SESSION *session, void **data, size_t *n)
    int SSL_select_next_proto(unsigned char **out, unsigned char *n, const unsigned char *ours, unsigned int our_n, const unsigned char *theirs, unsigned int their_n)
    const uint64_t SSL_OP_NO_RENEGOTIATION
    const uint64_t SSL_OP_NO_COMPRESSION
    const uint64_t SSL_OP_IGNORE_UNEXPECTED_EOF
    const uint64_t SSL_OP_CIPHER_SERVER_PREFERENCE
    const uint64_t SSL_OP_PRIORITIZE_CHACHA
    const long SSL_MODE_ENABLE_PARTIAL_WRITE
    const long SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER
    const long SSL_MODE_RELEASE_BUFFERS
    const long SSL_MODE_NO_AUTO_CHAIN
    const int SSL_VERIFY_PEER
    const int SSL_VERIFY_NONE
    const int SSL_VERIFY_FAIL_IF_NO_PEER_CERT
    const long SSL_SESS_CACHE_OFF
    const long SSL_SESS_CACHE_CLIENT
    const long SSL_SESS_CACHE_NO_INTERNAL
    const int SSL_ERROR_WANT_READ
    const int SSL_ERROR_WANT_WRITE
    const int SSL_ERROR_ZERO_RETURN
    const int SSL_R_CERTIFICATE_VERIFY_FAILED
    const int SSL_TLSEXT_ERR_OK
    const int SSL_TLSEXT_ERR_ALERT_FATAL
    const int OPENSSL_NPN_NEGOTIATED
    const int SSL_TICKET_SUCCESS
    const int SSL_TICKET_SUCCESS_RENEW
    const int SSL_TICKET_RETURN_USE
    const int SSL_TICKET_RETURN_USE_RENEW
    const int SSL_TICKET_RETURN_IGNORE_RENEW
    const int TLSEXT_NAMETYPE_host_name
    const int TLS1_2_VERSION
    const int TLS1_3_VERSION
