"""What a QUIC listener proves with, and what it asks of its clients: certificates, keys, revocation lists, session tickets.

aioquic asks a client for its certificate and checks that the client holds the key, but not who signed it: that is done here, by OpenSSL
through ``pyOpenSSL``, with the rules that TLS listeners have. Belongs to the loop's thread.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from aioquic.tls import AlertDescription, SessionTicket
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from cryptography.hazmat.primitives.serialization.pkcs12 import load_pkcs12
from cryptography.x509.oid import ExtendedKeyUsageOID
from OpenSSL import crypto

MAX_TICKETS: Final = 4096
"""Session tickets that a listener remembers; the oldest goes."""

_PEM: Final = b"-----BEGIN "
_PEM_REVOCATIONS: Final = b"-----BEGIN X509 CRL-----"
_PEM_REVOCATIONS_END: Final = b"-----END X509 CRL-----"

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey

# X509_V_ERR_* of OpenSSL's x509_vfy.h -> the alert of RFC 8446 section 6.2 that OpenSSL itself sends.
_ALERTS: Final = {
    **dict.fromkeys((2, 3, 18, 19, 20, 24, 33), AlertDescription.unknown_ca),
    **dict.fromkeys((10, 12), AlertDescription.certificate_expired),
    23: AlertDescription.certificate_revoked,
    26: AlertDescription.unsupported_certificate,
}


@dataclass(frozen=True, slots=True)
class QuicSettings:
    """One QUIC listener. What stands in files comes as their bytes."""

    certificate: bytes
    """PEM chain, the server's own certificate first; or PKCS#12."""
    key: bytes = field(default=b"", repr=False)
    """PEM; empty: it stands in ``certificate``."""
    key_password: bytes | None = field(default=None, repr=False)
    """Of the key, or of the PKCS#12."""
    client_ca: bytes = b""
    """PEM; an intermediate CA may stand there alone."""
    client_certificate: Literal["none", "optional", "required"] = "none"
    crl: bytes = b""
    """PEM; every CA that issues clients' certificates needs its list."""
    alpn: tuple[str, ...] = ("mqtt", "mqtt-quic")
    """In the order of preference; a client has to offer one of them [RFC 9001 section 8.1]."""
    idle_timeout_s: float = 60.0
    """After this time without a packet, or without a stream, a connection ends."""
    handshake_timeout_s: float = 10.0
    early_data: bool = False
    """Session tickets that allow 0-RTT; not together with client certificates."""
    stateless_retry: bool | Literal["auto"] = "auto"
    """Whether an address is validated before any state is kept for it [RFC 9000 section 8.1.2]; auto: under load."""
    max_connections: int = 10_000
    max_handshakes: int = 1024
    """Unfinished ones; from a quarter of them on ``auto`` is "under load"."""
    max_streams: int = 100
    """Open at once in one connection; each is one MQTT connection."""


class CertificateRefusedError(Exception):
    """A client's certificate, or its lack; ``alert`` is what the client is told."""

    def __init__(self, alert: AlertDescription, text: str) -> None:
        super().__init__(text)
        self.alert = alert


class ClientVerifier:
    """Whom a listener lets in by certificate."""

    def __init__(
        self, authorities: Sequence[x509.Certificate], revocations: Sequence[x509.CertificateRevocationList], required: bool
    ) -> None:
        self.required = required
        self._store = crypto.X509Store()
        flags = crypto.X509StoreFlags.PARTIAL_CHAIN
        for authority in authorities:
            self._store.add_cert(crypto.X509.from_cryptography(authority))
        for revocation in revocations:
            self._store.add_crl(revocation)
        if revocations:
            flags |= crypto.X509StoreFlags.CRL_CHECK | crypto.X509StoreFlags.CRL_CHECK_ALL
        self._store.set_flags(flags)

    def verify(self, certificate: x509.Certificate | None, chain: Sequence[x509.Certificate]) -> bytes | None:
        """The certificate, DER, or None where the client has none and need not. Raises `CertificateRefusedError`."""
        if certificate is None:
            if self.required:
                raise CertificateRefusedError(AlertDescription.certificate_required, "the client has no certificate")
            return None
        try:
            context = crypto.X509StoreContext(
                self._store, crypto.X509.from_cryptography(certificate), [crypto.X509.from_cryptography(one) for one in chain]
            )
            verified = [one.to_cryptography() for one in context.get_verified_chain()]
        except crypto.X509StoreContextError as error:
            alert = _ALERTS.get(error.errors[0], AlertDescription.bad_certificate)
            raise CertificateRefusedError(alert, str(error)) from error
        except (crypto.Error, ValueError, TypeError) as error:
            raise CertificateRefusedError(AlertDescription.bad_certificate, "the certificate cannot be read") from error
        if not all(_for_clients(one, one == certificate) for one in verified[:-1] or verified):
            raise CertificateRefusedError(AlertDescription.unsupported_certificate, "not a certificate for clients")
        return certificate.public_bytes(Encoding.DER)


def _for_clients(certificate: x509.Certificate, own: bool) -> bool:
    """Whether the extensions allow TLS client authentication [RFC 5280 section 4.2.1.3, 4.2.1.12]; ``own``: the client's, not a CA's."""
    try:
        extensions = certificate.extensions
    except ValueError:
        return False
    for extension in extensions:
        value = extension.value
        if isinstance(value, x509.ExtendedKeyUsage) and ExtendedKeyUsageOID.CLIENT_AUTH not in value:
            return False
        if own and isinstance(value, x509.KeyUsage) and not (value.digital_signature or value.key_agreement):
            return False
    return True


@dataclass(frozen=True, slots=True)
class Credentials:
    """A listener's certificate with its key, and its demands, read and checked."""

    certificate: x509.Certificate
    chain: list[x509.Certificate]
    key: PrivateKey = field(repr=False)
    verifier: ClientVerifier | None
    """None: clients are not asked for a certificate."""

    @classmethod
    def load(cls, settings: QuicSettings) -> Credentials:
        """Raises ``ValueError``, whose text names the setting."""
        _check(settings)
        certificate, chain, key = _load_pair(settings)
        if not _usable(key):
            raise ValueError("key: QUIC takes RSA, Ed25519, Ed448 and elliptic curves P-256 and P-384 only")
        if _public(key.public_key()) != _public(certificate.public_key()):
            raise ValueError("key: it does not belong to the certificate")
        verifier = None
        if settings.client_certificate != "none":
            authorities = _load_certificates("client_ca", settings.client_ca)
            revocations = _load_revocations(settings.crl) if settings.crl else []
            verifier = ClientVerifier(authorities, revocations, settings.client_certificate == "required")
        return cls(certificate, chain, key, verifier)


def _check(settings: QuicSettings) -> None:
    if not settings.alpn or any(not 1 <= len(one.encode()) <= 255 for one in settings.alpn):
        raise ValueError("alpn: QUIC needs at least one protocol, of 1 to 255 bytes")
    if settings.early_data and settings.client_certificate != "none":
        raise ValueError("early_data: not with client certificates, which a resumed connection does not show")
    for name in ("idle_timeout_s", "handshake_timeout_s", "max_connections", "max_streams"):
        if getattr(settings, name) <= 0:
            raise ValueError(f"{name}: must be above 0")
    if settings.client_certificate != "none" and not settings.client_ca:
        raise ValueError("client_ca: needed to ask for client certificates")


def _public(key: object) -> bytes:
    data: bytes = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)  # type: ignore[attr-defined]
    return data


def _usable(key: object) -> bool:
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return isinstance(key.curve, ec.SECP256R1 | ec.SECP384R1)
    return isinstance(key, rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey)


def _load_pair(settings: QuicSettings) -> tuple[x509.Certificate, list[x509.Certificate], PrivateKey]:
    if _PEM not in settings.certificate:
        try:
            bundle = load_pkcs12(settings.certificate, settings.key_password)
        except ValueError as error:
            raise ValueError("certificate: neither PEM nor PKCS#12 that this key_password opens") from error
        if bundle.cert is None or bundle.key is None:
            raise ValueError("certificate: the PKCS#12 has no certificate with its key")
        return bundle.cert.certificate, [one.certificate for one in bundle.additional_certs], bundle.key  # type: ignore[return-value]
    certificates = _load_certificates("certificate", settings.certificate)
    pem = settings.key or settings.certificate[_key_offset(settings.certificate) :]
    try:
        key = load_pem_private_key(pem, settings.key_password if b"ENCRYPTED" in pem else None)
    except (ValueError, TypeError) as error:
        raise ValueError("key: not a private key in PEM that this key_password opens") from error
    except Exception as error:  # cryptography.exceptions.UnsupportedAlgorithm
        raise ValueError(f"key: {error}") from error
    return certificates[0], certificates[1:], key  # type: ignore[return-value]


def _key_offset(pem: bytes) -> int:
    """Where the private key begins in a file that has certificates too."""
    for line in pem.splitlines(keepends=True):
        if line.startswith(_PEM) and b"PRIVATE KEY-----" in line:
            return pem.index(line)
    raise ValueError("key: none given, and there is none beside the certificate")


def _load_certificates(name: str, pem: bytes) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError as error:
        raise ValueError(f"{name}: not a certificate in PEM: {error}") from error


def _load_revocations(pem: bytes) -> list[x509.CertificateRevocationList]:
    found = []
    for part in pem.split(_PEM_REVOCATIONS)[1:]:
        try:
            found.append(x509.load_pem_x509_crl(_PEM_REVOCATIONS + part.split(_PEM_REVOCATIONS_END)[0] + _PEM_REVOCATIONS_END + b"\n"))
        except ValueError as error:
            raise ValueError(f"crl: not a revocation list in PEM: {error}") from error
    if not found:
        raise ValueError("crl: no revocation list in PEM")
    return found


class Tickets:
    """Sessions that clients may resume: each once, which is what keeps early data from being replayed [RFC 8446 section 8.1].

    At most `MAX_TICKETS`, in memory only.
    """

    def __init__(self) -> None:
        self._kept: OrderedDict[bytes, tuple[SessionTicket, str | None]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def put(self, ticket: SessionTicket, alpn: str | None) -> None:
        self._kept[ticket.ticket] = ticket, alpn
        while len(self._kept) > MAX_TICKETS:
            self._kept.popitem(last=False)

    def take(self, name: bytes, alpn: str | None) -> SessionTicket | None:
        """The ticket, which is spent, if it is of a connection with this protocol [RFC 9001 section 4.6.3]."""
        ticket, spoken = self._kept.pop(name, (None, None))
        return ticket if spoken == alpn else None

    def clear(self) -> None:
        self._kept.clear()
