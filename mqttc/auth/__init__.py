"""Who may connect: the questions the gate asks, and the authenticators that answer them.

The data plane decides alone about clients without credentials (``auth.anonymous``). Every other CONNECT, and
every AUTH, is parked while an authenticator here makes up its mind; no worker waits for it.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Awaitable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal, Protocol

from mqttc.auth.grant import Grant

if TYPE_CHECKING:
    from cryptography import x509


SUCCESS: Final = 0x00
CONTINUE_AUTHENTICATION: Final = 0x18
BAD_USER_NAME_OR_PASSWORD: Final = 0x86
NOT_AUTHORIZED: Final = 0x87
SERVER_UNAVAILABLE: Final = 0x88
SERVER_BUSY: Final = 0x89
BAD_AUTHENTICATION_METHOD: Final = 0x8C
CONNECTION_RATE_EXCEEDED: Final = 0x9F


@dataclass(frozen=True)
class PeerIdentity:
    """A client's verified certificate, the pre-shared key that it holds, or what a trusted proxy says of its certificate."""

    certificate: bytes | None = field(default=None, repr=False)
    """X.509, DER."""
    key_name: str | None = None
    """Name (identity) of the pre-shared key."""
    proxied_name: str | None = None
    """Common name of a certificate that a trusted proxy has verified (PROXY protocol), where it tells no more of it."""

    @property
    def fingerprint(self) -> str | None:
        """SHA-256 of the certificate, hexadecimal."""
        return None if self.certificate is None else hashlib.sha256(self.certificate).hexdigest()

    @functools.cached_property
    def _parsed(self) -> x509.Certificate | None:
        if self.certificate is None:
            return None
        from cryptography import x509

        return x509.load_der_x509_certificate(self.certificate)

    @property
    def subject(self) -> str | None:
        """The certificate's subject as RFC 4514 writes it. Needs the ``cryptography`` package."""
        return None if self._parsed is None else self._parsed.subject.rfc4514_string()

    @property
    def common_name(self) -> str | None:
        """The first common name of the subject. Needs the ``cryptography`` package."""
        if self._parsed is None:
            return self.proxied_name
        from cryptography.x509.oid import NameOID

        names = self._parsed.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        return str(names[0].value) if names else None

    def subject_values(self, part: Literal["organizational_unit", "organization"]) -> tuple[str, ...]:
        """All values that the certificate's subject has of that part, in their order. Needs the ``cryptography`` package."""
        if self._parsed is None:
            return ()
        from cryptography.x509.oid import NameOID

        oid = NameOID.ORGANIZATIONAL_UNIT_NAME if part == "organizational_unit" else NameOID.ORGANIZATION_NAME
        return tuple(str(one.value) for one in self._parsed.subject.get_attributes_for_oid(oid))

    @property
    def alternative_names(self) -> tuple[str, ...]:
        """Subject alternative names: ``DNS:…``, ``URI:…``, ``IP:…``, ``email:…``. Needs the ``cryptography`` package."""
        if self._parsed is None:
            return ()
        from cryptography import x509

        try:
            names = self._parsed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except x509.ExtensionNotFound:
            return ()
        kinds: dict[type, str] = {
            x509.DNSName: "DNS",
            x509.UniformResourceIdentifier: "URI",
            x509.IPAddress: "IP",
            x509.RFC822Name: "email",
        }
        return tuple(f"{kinds[type(name)]}:{name.value}" for name in names if type(name) in kinds)


@dataclass(frozen=True, slots=True)
class Request:
    """A CONNECT, or an AUTH of an enhanced authentication, that waits for a verdict."""

    client_id: str
    peer: str
    anonymous_admitted: bool
    """The listener's ``anonymous`` rule would admit this client without credentials."""
    protocol: int
    """Protocol level: 3 is MQTT 3.1, 4 is 3.1.1, 5 is 5.0."""
    is_auth: bool = False
    """An AUTH packet rather than a CONNECT."""
    username: str | None = None
    password: bytes | None = field(default=None, repr=False)
    auth_method: str | None = None
    auth_data: bytes | None = field(default=None, repr=False)
    identity: PeerIdentity | None = None
    """What the client has proved in the TLS handshake; None: nothing."""
    listener: str = ""
    """Name or URL of the listener."""
    transport: str = ""
    """``tcp``, ``tls``, ``ws``, ``wss``, ``quic`` or ``unix``."""
    connection: int = 0
    """The same for all questions about one connection until it is admitted, and again for all after that."""
    is_reauthentication: bool = False
    """An AUTH of a client that is admitted already, and that begins (0x19) an authentication. ``username`` is then what the
    verdict before it has named."""

    @property
    def host(self) -> str:
        """``peer`` without its port; IPv6 without brackets; ``unix`` over a Unix socket."""
        return self.peer.rpartition(":")[0].strip("[]") or self.peer


@dataclass(frozen=True, slots=True)
class Verdict:
    """An MQTT 5.0 reason code: 0x00 admits, 0x18 goes on with an AUTH packet, 0x80 and above refuses.

    For 3.x clients a refusal becomes the return code that comes nearest.
    """

    reason_code: int
    auth_data: bytes | None = field(default=None, repr=False)
    grant: Grant | None = None
    """With 0x00: what the client may do; None: what the ACL file says. A re-authentication's replaces the one before."""
    username: str | None = None
    """Whom the client was found to be; None: what CONNECT says."""
    lasts: float | None = None
    """Seconds after which the connection ends (5.0: 0xA0); None: it does not."""
    keep: float = 0.0
    """Seconds for which worker threads may give the same verdict about the same CONNECT (same client id, user name, password,
    address, certificate, listener and version) without asking. Not heeded with a ``grant``."""


class Authenticator(Protocol):
    """Decides about clients. Called on the broker's control loop, many calls at a time."""

    def authenticate(self, request: Request) -> Awaitable[Verdict]:
        """Take as long as needed; after ``limits.auth_timeout`` the client is refused and this is cancelled."""
