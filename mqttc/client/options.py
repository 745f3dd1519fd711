"""What a client is told, with unit and default of each; and what its broker says it has."""

from __future__ import annotations

import os
import platform
import ssl
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Final, TypedDict

from mqttc.client.proxy import ENVIRONMENT, parse_proxy
from mqttc.codec import Properties, QoS, ReasonCode, Will

if TYPE_CHECKING:
    from mqttc.client.state import State
    from mqttc.client.store import Store

VERSIONS = (3, 4, 5)
PSK_BYTES: Final = 256
PSK_IDENTITY_BYTES: Final = 128
"""What every implementation has to take (RFC 4279 section 5.3); of a key these are 64, and OpenSSL takes 256."""


@dataclass(frozen=True, slots=True)
class Tls:
    """Certificates for mqtts, wss and quic. Without it the system's authorities are trusted, and the host of the URL has to be in the
    broker's certificate."""

    ca_file: str | os.PathLike[str] | None = None
    """PEM of the authorities to trust instead of the system's."""
    certificate_file: str | os.PathLike[str] | None = None
    """PEM of the client's own certificate, with intermediate ones behind it."""
    key_file: str | os.PathLike[str] | None = None
    """PEM; may stand in the certificate's file."""
    key_password: str | None = None
    verify: bool = True
    """False believes anybody to be the broker."""
    server_name: str | None = None
    """Instead of the URL's host: for SNI and for the check of the certificate."""
    alpn: tuple[str, ...] = ()
    """By default none is offered by mqtts, http/1.1 by wss, and mqtt by quic, which cannot do without."""
    psk: bytes | None = field(default=None, repr=False)
    """A key that the broker has too (RFC 4279, RFC 8446 section 2.2): neither needs a certificate. Python 3.13 or later; not for quic."""
    psk_identity: str | None = None
    """By which the broker finds the key."""

    def __post_init__(self) -> None:
        if (self.psk is None) != (self.psk_identity is None):
            raise ValueError("psk, psk_identity: neither is of use without the other")
        if self.psk is None or self.psk_identity is None:
            return
        if not 1 <= len(self.psk) <= PSK_BYTES or not 1 <= len(self.psk_identity.encode()) <= PSK_IDENTITY_BYTES:
            raise ValueError(f"psk, psk_identity: 1 to {PSK_BYTES} bytes, and 1 to {PSK_IDENTITY_BYTES}")
        if not getattr(ssl, "HAS_PSK", False):
            what = f"{platform.python_implementation()} {platform.python_version()} with {ssl.OPENSSL_VERSION}"
            raise ValueError(f"psk: pre-shared keys need Python 3.13 or later, and an OpenSSL that has them; this is {what}")


@dataclass(frozen=True, slots=True)
class Reconnect:
    """Delays between attempts: `first_s`, then `factor` times more up to `most_s`; of each a random part, at most `jitter`, is left out."""

    first_s: float = 0.5
    most_s: float = 60.0
    factor: float = 2.0
    jitter: float = 0.5
    attempts: int | None = None
    """In a row without success, then the client gives up; None: never."""


@dataclass(frozen=True, slots=True)
class Authentication:
    """Enhanced authentication (section 4.12, 5.0 only). `respond` gets the broker's data, None at the beginning, and gives the next."""

    method: str
    respond: Callable[[bytes | None], bytes | Awaitable[bytes | None] | None]


class ClientOptions(TypedDict, total=False):
    """The keyword arguments of `Client` and `SyncClient`; `Options` has their defaults and what they mean."""

    client_id: str
    username: str | None
    password: str | bytes | None
    version: int
    fallback: tuple[int, ...]
    clean_start: bool
    session_expiry: int
    keep_alive: int
    ping_timeout_s: float
    will: Will | None
    connect_properties: Properties | None
    authentication: Authentication | None
    connect_timeout_s: float
    close_timeout_s: float
    reconnect: Reconnect | None
    retry_first: bool
    tls: Tls | ssl.SSLContext | None
    proxy: str | None
    bind_address: str | None
    http2: bool
    redirects: int
    headers: Mapping[str, str]
    receive_maximum: int
    max_inflight: int
    max_packet_size: int
    topic_alias_maximum: int
    max_buffered_messages: int
    max_buffered_bytes: int
    max_queued_messages: int
    max_queued_bytes: int
    max_write_bytes: int
    max_requests: int
    stall_timeout_s: float
    manual_ack: bool
    store: Store | None
    on_state: Callable[[State, BaseException | None], None] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Checked when it is made: raises ``ValueError`` naming the option."""

    client_id: str = ""
    """Empty: the broker gives one (5.0), or one is made up."""
    username: str | None = None
    password: str | bytes | None = field(default=None, repr=False)
    version: int = 5
    """3 for MQTT 3.1, 4 for 3.1.1, 5 for 5.0."""
    fallback: tuple[int, ...] = ()
    """Versions to try in turn where a broker does not have `version`."""
    clean_start: bool = True
    """The first connection begins a new session. Further ones of the same client always resume, if the session lasts."""
    session_expiry: int = 0
    """Seconds that the broker keeps the session after a connection; 0xFFFFFFFF: for ever. In 3.x any but 0 means for ever."""
    keep_alive: int = 60
    """Seconds, 0 for none; a broker of 5.0 may set another."""
    ping_timeout_s: float = 10.0
    """Without any answer to a PINGREQ for so long the connection is given up."""
    will: Will | None = None
    connect_properties: Properties | None = None
    """Further ones of CONNECT: user_properties, request_response_information, request_problem_information."""
    authentication: Authentication | None = None
    connect_timeout_s: float = 10.0
    """For everything from the look-up of the name to CONNACK."""
    close_timeout_s: float = 5.0
    """For unfinished messages when the client is closed, and once more for the connection to end."""
    reconnect: Reconnect | None = Reconnect()
    """None: the first connection is the only one."""
    retry_first: bool = False
    """Also the first attempt is repeated as `reconnect` says, instead of raising."""
    tls: Tls | ssl.SSLContext | None = None
    proxy: str | None = None
    """`http://[user:password@]host:port` (CONNECT), `socks5://` or, with names looked up by the proxy, `socks5h://`; or "environment" for
    what http_proxy, https_proxy, all_proxy and no_proxy say. Not for unix and quic."""
    bind_address: str | None = None
    """Of this machine, an address or a name, that connections come from; None: the system chooses. Not for unix."""
    http2: bool = False
    """WebSocket over HTTP/2 (RFC 8441). Only for wss."""
    redirects: int = 0
    """Brokers in a row that are gone on to because one names another (section 4.11); 0: the error that says so is raised."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Further ones of the WebSocket handshake."""
    receive_maximum: int = 1000
    """Messages of QoS 1 and 2 that may be here unacknowledged (told to the broker in 5.0, and enforced there)."""
    max_inflight: int = 1000
    """Messages of QoS 1 and 2 sent and not acknowledged; a broker of 5.0 may allow fewer."""
    max_packet_size: int = 16 * 1024 * 1024
    """Bytes of a packet that is received."""
    topic_alias_maximum: int = 64
    """Aliases the broker may use; ours follow from what it allows."""
    max_buffered_messages: int = 1000
    """In one stream that the application has not read; then the socket is not read."""
    max_buffered_bytes: int = 16 * 1024 * 1024
    max_queued_messages: int = 10_000
    """That wait for a connection or for the window."""
    max_queued_bytes: int = 64 * 1024 * 1024
    max_write_bytes: int = 256 * 1024
    """Unsent bytes of the connection from which on publishing waits."""
    max_requests: int = 1000
    """SUBSCRIBE, UNSUBSCRIBE and `request` calls that wait for their answer, each."""
    stall_timeout_s: float = 1.0
    """An unread stream may hold up the socket for so long while an acknowledgement is awaited; then its QoS 0 messages are dropped."""
    manual_ack: bool = False
    """Messages of QoS 1 and 2 are acknowledged by `Message.acknowledge`, not when they are handed over."""
    store: Store | None = None
    """What remembers messages beyond this process: `SqliteStore(path)`."""
    on_state: Callable[[State, BaseException | None], None] | None = None
    """Called on the loop at each change of state; must not block."""

    def __post_init__(self) -> None:
        if self.version not in VERSIONS or any(version not in VERSIONS for version in self.fallback):
            raise ValueError("version, fallback: 3 (MQTT 3.1), 4 (3.1.1) or 5 (5.0)")
        for name, least, most in _RANGES:
            value = getattr(self, name)
            if not least <= value <= most:
                raise ValueError(f"{name}: {value} is not within {least} and {most}")
        if self.proxy is not None and self.proxy != ENVIRONMENT:
            parse_proxy(self.proxy)
        if self.store is not None and self.store.durable and not (self.client_id and self.session_expiry):
            raise ValueError("store: what outlives the process needs a client_id and a session_expiry")
        if not self.client_id and not self.clean_start:
            raise ValueError("clean_start: a session that is to be resumed needs a client_id")
        if self.authentication is not None and (self.version != 5 or self.fallback):
            raise ValueError("authentication: enhanced authentication is of MQTT 5.0 only")
        if self.password is not None and self.username is None and (self.version != 5 or set(self.fallback) - {5}):
            raise ValueError("password: without username only in MQTT 5.0")

    @classmethod
    def names(cls) -> list[str]:
        return [item.name for item in fields(cls)]


_RANGES: list[tuple[str, float, float]] = [
    ("session_expiry", 0, 0xFFFFFFFF),
    ("keep_alive", 0, 65535),
    ("ping_timeout_s", 0.001, 86400),
    ("connect_timeout_s", 0.001, 86400),
    ("close_timeout_s", 0, 86400),
    ("receive_maximum", 1, 65535),
    ("max_inflight", 1, 65535),
    ("max_packet_size", 16, 268435460),
    ("topic_alias_maximum", 0, 65535),
    ("max_buffered_messages", 1, 10**9),
    ("max_buffered_bytes", 1, 2**40),
    ("max_queued_messages", 0, 10**9),
    ("max_queued_bytes", 0, 2**40),
    ("max_write_bytes", 1, 2**30),
    ("max_requests", 1, 60000),
    ("redirects", 0, 1000),
    ("stall_timeout_s", 0.001, 86400),
]


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """What the broker has and allows: CONNACK's properties with the defaults of section 3.2.2.3. Older versions: all of it."""

    receive_maximum: int = 65535
    maximum_qos: QoS = QoS.EXACTLY_ONCE
    retain_available: bool = True
    maximum_packet_size: int | None = None
    topic_alias_maximum: int = 0
    wildcard_subscription_available: bool = True
    subscription_identifier_available: bool = True
    shared_subscription_available: bool = True

    @classmethod
    def of(cls, properties: Properties) -> ServerLimits:
        told: dict[str, Any] = {name: getattr(properties, name) for name in cls.__dataclass_fields__}
        return cls(**{name: value for name, value in told.items() if value is not None})


PERMANENT = frozenset(
    {
        ReasonCode.MALFORMED_PACKET,
        ReasonCode.PROTOCOL_ERROR,
        ReasonCode.UNSUPPORTED_PROTOCOL_VERSION,
        ReasonCode.CLIENT_IDENTIFIER_NOT_VALID,
        ReasonCode.BAD_USER_NAME_OR_PASSWORD,
        ReasonCode.NOT_AUTHORIZED,
        ReasonCode.BANNED,
        ReasonCode.BAD_AUTHENTICATION_METHOD,
        ReasonCode.SESSION_TAKEN_OVER,
        ReasonCode.TOPIC_NAME_INVALID,
        ReasonCode.PACKET_TOO_LARGE,
        ReasonCode.PAYLOAD_FORMAT_INVALID,
        ReasonCode.RETAIN_NOT_SUPPORTED,
        ReasonCode.QOS_NOT_SUPPORTED,
        ReasonCode.USE_ANOTHER_SERVER,
        ReasonCode.SERVER_MOVED,
    }
)
"""Codes after which coming again would change nothing, or would begin a fight over the session."""
