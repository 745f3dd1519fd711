"""Configuration: the models, where values come from, and errors that name the place.

Sources, later ones win: the defaults, a TOML file, the environment (``MQTTC_LIMITS__MAX_PACKET_SIZE``),
the command line (``--listen``, then ``--set section.key=value``). Every problem is reported, each with the
line of the file, the variable or the option that caused it. ``docs/configuration.md`` explains the keys.
"""

from __future__ import annotations

import difflib
import ipaddress
import json
import logging
import os
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Final, Literal, get_args
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, ValidationError, model_validator

from mqttc.config_auth import SOURCES, Cache, Chain, ClientCertificate, Failures, Hashing, Jwt, Ldap, Scram, Sql, WebService, chain_names
from mqttc.sections import Bytes, Count, PositiveCount, Seconds
from mqttc.sections import Section as _Section

ENVIRONMENT_PREFIX = "MQTTC_"
DEFAULT_URL = "tcp://127.0.0.1:1883"
DEFAULT_PATH = "/mqtt"
MAXIMUM_UNIX_PATH_BYTES = 107
MAXIMUM_PATH_BYTES = 255
MAXIMUM_TRUSTED_PROXIES = 64
MAXIMUM_ORIGINS = 64
MAXIMUM_DURABLE_FILTERS = 64
MAXIMUM_TOPIC_BYTES = 65_535

KeyPath = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong: where it was written, and what about it."""

    where: str
    message: str

    def __str__(self) -> str:
        return f"{self.where}: {self.message}" if self.where else self.message


class ConfigError(ValueError):
    """The configuration cannot be used. ``problems`` has every reason, in the order of the sources."""

    exit_code = 2

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = tuple(problems)


# ---------------------------------------------------------------------------------- listener URLs


InetScheme = Literal["tcp", "tls", "ws", "wss", "quic"]


@dataclass(frozen=True, slots=True)
class InetAddress:
    """``scheme`` is the main name of several (``tcp`` for ``mqtt``); ``host`` is a name or a literal without
    brackets, ``*`` is every address of both families; ``path`` is empty but for ``ws`` and ``wss``."""

    scheme: InetScheme
    host: str
    port: int
    path: str = ""

    @property
    def tls(self) -> bool:
        """Whether clients speak TLS here, which QUIC always has inside."""
        return self.scheme in ("tls", "wss", "quic")

    @property
    def http(self) -> bool:
        """Whether a connection begins with HTTP: WebSocket, and the pages beside it."""
        return self.scheme in ("ws", "wss")

    @property
    def quic(self) -> bool:
        """Whether this is a UDP port; all others are TCP."""
        return self.scheme == "quic"

    def url(self, port: int | None = None) -> str:
        """The URL in its normal form, with the actual port if the configured one was 0."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port if port is None else port}{self.path}"


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """A path in the file system, or a name in Linux's abstract space."""

    path: str
    abstract: bool

    def url(self) -> str:
        """As ``parse_url`` reads it: what ends or hides a path stands percent-encoded."""
        path = "".join(quote(one, errors="surrogateescape") if one in " %?" or not one.isprintable() else one for one in self.path)
        return f"unix://@{path}" if self.abstract else f"unix://{path}"


@dataclass(frozen=True, slots=True)
class AsgiAddress:
    """Connections that an ASGI application of the same program hands on (`mqttc.asgi`)."""

    name: str

    def url(self) -> str:
        return f"asgi://{self.name}"


Address = InetAddress | UnixAddress | AsgiAddress

_INET_SCHEMES: Final[Mapping[str, tuple[InetScheme, int]]] = {
    "tcp": ("tcp", 1883),
    "mqtt": ("tcp", 1883),
    "tls": ("tls", 8883),
    "mqtts": ("tls", 8883),
    "ws": ("ws", 80),
    "wss": ("wss", 443),
    "quic": ("quic", 14567),
}
"""What a URL may begin with besides ``unix``: the scheme's main name and its default port."""
_PATH = re.compile(r"(?:/[A-Za-z0-9._~!$&'()*+,;=:@-]+)*/?")
"""Segments of RFC 3986 section 3.3, none empty but the last, and no percent-encoding: each path has one spelling."""


def parse_url(url: str) -> tuple[Address, dict[str, str]]:
    """Split a listener URL into its address and the keys of its query; ``ValueError`` says what is wrong."""
    if any(not character.isprintable() or character == " " for character in url):
        raise ValueError(f"{url!r} contains a blank or a control character")
    scheme, separator, _ = url.partition("://")
    scheme = scheme.lower()
    if not separator:
        raise ValueError(f"{url!r} is not a URL; write tcp://host:port or unix:///path")
    if scheme == "unix":
        rest, _, query = url[len("unix://") :].partition("?")
        address: Address = _unix_address(unquote(rest), url)
    elif scheme == "asgi":
        name, _, query = url[len("asgi://") :].partition("?")
        if not re.fullmatch(r"[A-Za-z0-9._-]*", name):
            raise ValueError(f"{url!r}: write asgi:// or asgi://name, of letters, digits and ._-")
        address = AsgiAddress(name)
    elif scheme in _INET_SCHEMES:
        try:
            parts = urlsplit(url)
        except ValueError:  # from Python 3.14 on, of what stands in and behind brackets
            raise ValueError(_unbracketed(url, scheme)) from None
        query = parts.query
        address = _inet_address(url, parts)
    else:
        hint = _suggestion(scheme, (*_INET_SCHEMES, "unix", "asgi"))
        raise ValueError(f"unknown scheme {scheme!r}{hint}; use tcp://, tls://, ws://, wss://, quic:// or unix://")
    pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))
    options = dict(pairs)
    if len(options) != len(pairs):
        raise ValueError(f"an option of {url!r} is given twice")
    return address, options


def _unix_address(path: str, url: str) -> UnixAddress:
    abstract = path.startswith("@")
    name = path[1:] if abstract else path
    if not name or "\0" in name or (not abstract and not name.startswith("/")):
        raise ValueError(f"{url!r}: write unix:///absolute/path, or unix://@name for an abstract socket")
    if len(os.fsencode(name)) > MAXIMUM_UNIX_PATH_BYTES - abstract:
        raise ValueError(f"{url!r}: a socket's path has at most {MAXIMUM_UNIX_PATH_BYTES} bytes")
    return UnixAddress(name, abstract)


def _unbracketed(url: str, scheme: str) -> str:
    name, port = _INET_SCHEMES[scheme]
    return f"{url!r}: put the IPv6 address in brackets, {name}://[::1]:{port}"


def _inet_address(url: str, parts: SplitResult) -> InetAddress:
    scheme, default_port = _INET_SCHEMES[parts.scheme]
    http = scheme in ("ws", "wss")
    if "@" in parts.netloc:
        raise ValueError("a listener's URL has no user name or password")
    if "#" in url or (not http and parts.path not in ("", "/")):
        raise ValueError(f"{url!r}: nothing but {'a path and ' if http else ''}options may follow the port")
    if parts.netloc.count(":") > 1 and not re.match(r"\[[^\]]*\](:|$)", parts.netloc):
        raise ValueError(_unbracketed(url, parts.scheme))
    try:
        port = parts.port
    except ValueError:
        raise ValueError(f"{url!r}: the port is a number from 0 to 65535") from None
    path = _http_path(url, parts.path) if http else ""
    return InetAddress(scheme, parts.hostname or "*", default_port if port is None else port, path)


def _http_path(url: str, path: str) -> str:
    """The path that WebSocket clients name; browsers resolve dots and decode nothing, so neither may stand in it."""
    if len(path) > MAXIMUM_PATH_BYTES:
        raise ValueError(f"{url!r}: a path has at most {MAXIMUM_PATH_BYTES} bytes")
    if not _PATH.fullmatch(path) or any(segment in (".", "..") for segment in path.split("/")):
        raise ValueError(f"{url!r}: write the path as in /mqtt: letters, digits and -._~!$&'()*+,;=:@ between single slashes, no . or ..")
    return path or DEFAULT_PATH


# ------------------------------------------------------------------------------------- the models


def _check_anonymous(value: object) -> object:
    if value is True or value is False or value == "loopback":
        return value
    raise ValueError('must be false, true or "loopback"')


def _check_socket(value: object) -> object:
    if isinstance(value, bool) or (isinstance(value, str) and value and "\0" not in value):
        return value
    raise ValueError("must be a path, true or false")


def _check_mode(value: object) -> object:
    """Permissions are text, because TOML's 0660 would be an error and 660 another number."""
    if isinstance(value, str) and re.fullmatch(r"0?o?[0-7]{3}", value):
        return value
    raise ValueError('must be the octal permissions as text, for example "0660"')


def _topic_filter(text: str) -> str:
    """A topic filter by [MQTT-4.7.1-1..2], [MQTT-4.7.3-1..3]; of topics, so none of a shared subscription."""
    levels = text.split("/")
    if not text or "\0" in text or len(text.encode("utf-8", "surrogatepass")) > MAXIMUM_TOPIC_BYTES:
        raise ValueError(f"a topic filter has 1 to {MAXIMUM_TOPIC_BYTES} bytes and no U+0000")
    if any(0xD800 <= ord(character) <= 0xDFFF for character in text):
        raise ValueError("a topic filter has no surrogates")
    if any("#" in level for level in levels[:-1]) or any(len(level) > 1 and ("#" in level or "+" in level) for level in levels):
        raise ValueError("# stands alone in the last level, + alone in its level")
    if levels[0] == "$share":
        raise ValueError("must be a filter of topics, without $share")
    return text


def _check_retry(value: object) -> object:
    if value is True or value is False or value == "auto":
        return value
    raise ValueError('must be false, true or "auto"')


def _network(text: str) -> str:
    """An address or network in its normal form; one of IPv4 addresses mapped into IPv6 becomes IPv4."""
    try:
        network = ipaddress.ip_network(text, strict=False)
    except ValueError:
        network = None
    if network is None or "%" in text:
        raise ValueError('must be an address or a network, for example "10.0.0.0/8" or "::1"')
    if isinstance(network, ipaddress.IPv6Network) and network.prefixlen >= 96 and (mapped := network.network_address.ipv4_mapped):
        return f"{mapped}/{network.prefixlen - 96}"
    return str(network)


_ORIGIN = re.compile(r"([a-z][a-z0-9+.-]*)://([a-z0-9_.-]+|\[[0-9a-f:.]+\])(?::([0-9]{1,5}))?")
_ORIGIN_PORTS = {"http": 80, "https": 443}


def _origin(text: str) -> str:
    """An origin as browsers write it (RFC 6454 section 6.2): in small letters, without the scheme's default port."""
    match = _ORIGIN.fullmatch(text.lower()) if text.isascii() else None
    if match is None or (match[3] is not None and not 0 < int(match[3]) <= 65535):
        raise ValueError('must be scheme://host or scheme://host:port in ASCII, without a path, for example "https://example.org"')
    scheme, host, port = match[1], match[2], None if match[3] is None else int(match[3])
    if host.startswith("["):
        try:
            host = f"[{ipaddress.IPv6Address(host[1:-1])}]"
        except ValueError:
            raise ValueError(f"{host} is no IPv6 address") from None
    return f"{scheme}://{host}" if port in (None, _ORIGIN_PORTS.get(scheme)) else f"{scheme}://{host}:{port}"


Anonymous = Annotated[bool | Literal["loopback"], BeforeValidator(_check_anonymous)]
Retry = Annotated[bool | Literal["auto"], BeforeValidator(_check_retry)]
Mode = Annotated[str, BeforeValidator(_check_mode)]
Network = Annotated[str, AfterValidator(_network)]
TopicFilter = Annotated[str, AfterValidator(_topic_filter)]
Origin = Annotated[str, Field(max_length=300), AfterValidator(_origin)]
QUEUE_POLICIES = ("drop_oldest", "drop_newest", "drop_qos0_first", "disconnect")
GROUP_STRATEGIES = ("round_robin", "least_in_flight")
DURABILITY_MODES = ("off", "written", "synced")


TLS_KEYS = (
    *("certificate", "key", "key_password", "certificates", "client_ca", "client_certificate", "crl", "ciphers", "ciphersuites"),
    *("minimum_tls_version", "alpn", "psk_file", "psk_hint"),
)
"""Keys of a listener that only TLS has; all of them can change while it runs."""

_TCP_SCHEMES = ("tcp", "tls", "ws", "wss")
_KEY_SCHEMES: Final[Mapping[str, tuple[str, ...]]] = {
    **dict.fromkeys(("backlog", "tcp_user_timeout", "tcp_keepalive_idle"), (*_TCP_SCHEMES, "unix")),
    **dict.fromkeys(TLS_KEYS, ("tls", "wss", "quic")),
    # QUIC is TLS 1.3 by another library: one certificate, that library's cipher suites, no pre-shared keys.
    **dict.fromkeys(("certificates", "ciphers", "ciphersuites", "minimum_tls_version", "psk_file", "psk_hint"), ("tls", "wss")),
    "allowed_origins": ("ws", "wss", "asgi"),
    "proxy_protocol": (*_TCP_SCHEMES, "unix"),
    "trusted_proxies": _TCP_SCHEMES,
    **dict.fromkeys(("early_data", "idle_timeout", "stateless_retry"), ("quic",)),
}
"""Keys of a listener that not every scheme has, and the schemes that have them."""

_PROTOCOLS: Final[Mapping[str, tuple[str, ...]]] = {
    "tls": ("mqtt",),
    "wss": ("h2", "http/1.1"),
    "quic": ("mqtt", "mqtt-quic"),
}
"""ALPN protocol names of a listener without ``alpn``, the preferred one first."""


class Certificate(_Section):
    """One of a listener's further ``certificates``, for clients that name a host which stands in it."""

    certificate: str
    """File: a PEM chain, the server's own certificate first, or PKCS#12."""
    key: str = ""
    """File of the private key, PEM; not given: it stands in ``certificate``."""
    key_password: Annotated[str, Field(repr=False)] = ""
    """What the key or the PKCS#12 file is encrypted with."""


class Listener(_Section):
    """One ``[[listeners]]`` table. Every key but ``url`` may stand in the URL's query too."""

    url: str
    """``tcp://host:port`` (``mqtt://`` is the same), ``tls://host:port`` (``mqtts://``), ``ws://host:port/path``,
    ``wss://host:port/path``, ``quic://host:port``, ``unix:///path`` or ``unix://@name``. Host ``*`` or none: every
    address, IPv4 and IPv6. Port 0: a free one; no port: 1883, 8883, 80, 443, 14567. No path: ``/mqtt``. Inside a program also
    ``asgi://name``: connections that its web application hands on (``mqttc.asgi``)."""
    name: str = ""
    """What log lines call it; the URL if empty."""
    mode: Mode | None = None
    """Octal permissions of a Unix socket's path, for example ``"0660"``; default: as the umask says."""
    backlog: Annotated[int, Field(ge=1, le=65535)] = 1024
    """Connections that may wait to be accepted; not for ``quic``."""
    maximum_qos: Annotated[int, Field(ge=0, le=2)] = 2
    """Highest QoS that clients of this listener may publish with."""
    max_connections: Count = 0
    """Connections at the same time over each bound address of this listener; 0: no limit of its own."""
    anonymous: Anonymous | None = None
    """Overrides ``auth.anonymous`` for this listener. ``"loopback"`` admits nobody behind a proxy."""
    tcp_user_timeout: Annotated[float, Field(ge=0, le=86400, allow_inf_nan=False)] = 60.0
    """Seconds that sent bytes may stay unacknowledged, for clients without keep alive; 0: the system's."""
    tcp_keepalive_idle: Annotated[int, Field(ge=0, le=32767)] = 60
    """Seconds of silence before TCP probes a client without keep alive; 0: no probes."""
    certificate: str = ""
    """TLS: file of the server's certificate, a PEM chain, its own first, or PKCS#12."""
    key: str = ""
    """TLS: file of the private key, PEM; not given: it stands in ``certificate``."""
    key_password: Annotated[str, Field(repr=False)] = ""
    """TLS: what the key or the PKCS#12 file is encrypted with."""
    certificates: list[Certificate] = []
    """TLS: further certificates, chosen by the host that the client names (SNI)."""
    client_ca: str = ""
    """TLS: file of the CA certificates, PEM, that clients' certificates are verified by."""
    client_certificate: Literal["none", "optional", "required"] = "none"
    """TLS: whether clients must show a certificate. One that is shown must be good."""
    crl: str = ""
    """TLS: file of certificate revocation lists, PEM, of the CAs that issue clients' certificates."""
    ciphers: str = ""
    """TLS 1.2: cipher list in OpenSSL's notation; empty: forward secrecy and AEAD only."""
    ciphersuites: str = ""
    """TLS 1.3: cipher suites in OpenSSL's notation; empty: AES-128-GCM first, the least expensive."""
    minimum_tls_version: Literal["1.2", "1.3"] = "1.2"
    """TLS: oldest version that is spoken."""
    alpn: list[Annotated[str, Field(min_length=1, max_length=255, pattern=r"^[ -~]+$")]] | None = None
    """TLS: protocol names for clients that offer some; if none of theirs is here, they are refused. Empty: ignored, which
    QUIC cannot do. Default: ``mqtt`` for ``tls``, ``h2`` and ``http/1.1`` for ``wss``, ``mqtt`` and ``mqtt-quic`` for ``quic``."""
    psk_file: str = ""
    """TLS: file of pre-shared keys, a line each, ``name:key`` with the key in hexadecimal."""
    psk_hint: Annotated[str, Field(max_length=127)] = ""
    """TLS 1.2: the hint for clients with several pre-shared keys."""
    allowed_origins: Annotated[list[Origin], Field(max_length=MAXIMUM_ORIGINS)] = []
    """WebSocket: origins (``https://example.org``) of the pages that browsers may connect from (RFC 6455 section 10.2). At
    most 64; empty: any."""
    proxy_protocol: bool = False
    """TCP, TLS, WebSocket, Unix: every connection begins with a PROXY protocol header, version 1 or 2, from one of
    ``trusted_proxies``; who connects over a Unix socket is trusted."""
    trusted_proxies: Annotated[list[Network], Field(max_length=MAXIMUM_TRUSTED_PROXIES)] = []
    """Addresses and networks (``10.0.0.0/8``, ``::1``) whose PROXY protocol headers are believed, or, without
    ``proxy_protocol`` and for WebSocket only, their X-Forwarded-For. At most 64."""
    early_data: bool = False
    """QUIC: whether returning clients may send data with their first packet (0-RTT). Whoever records that packet can send
    it again, and a CONNECT and PUBLISH in it are then carried out again (RFC 9001 section 9.2)."""
    idle_timeout: Seconds = 30.0
    """QUIC: seconds without a packet after which a connection ends, with all the MQTT connections on it."""
    stateless_retry: Retry = "auto"
    """QUIC: whether new connections have to prove their address by a Retry first, which takes a round trip (RFC 9000
    section 8.1.2); ``"auto"``: only while many handshakes are half open."""
    durability: Literal["off", "written", "synced"] | None = None
    """What clients of this listener publish is kept at least like this, whatever ``[durability]`` says of its topic."""
    server_reference: str = ""
    """If set, every client that connects here is sent elsewhere: 0x9C and this Server Reference."""

    @model_validator(mode="before")
    @classmethod
    def _take_query(cls, data: Any) -> Any:
        if not isinstance(data, Mapping) or not isinstance(data.get("url"), str):
            return data
        address, options = parse_url(data["url"])
        merged = dict(data)
        for key, text in options.items():
            if key == "url" or key not in cls.model_fields:
                known = [name for name in cls.model_fields if name != "url"]
                raise ValueError(f"unknown option {key!r} in the URL{_suggestion(key, known)}")
            if key in data:
                raise ValueError(f"{key} stands both in the URL and beside it")
            merged[key] = _value_of_text(text, _is_text(cls, key))
        if merged.get("mode") is not None and (not isinstance(address, UnixAddress) or address.abstract):
            raise ValueError("mode is for Unix sockets with a path")
        return merged

    @model_validator(mode="after")
    def _check_schemes(self) -> Listener:
        scheme = self.scheme
        for name, schemes in _KEY_SCHEMES.items():
            if scheme not in schemes and getattr(self, name) != type(self).model_fields[name].default:
                where = "not for quic://" if scheme == "quic" else f"for {_enumerated([f'{one}://' for one in schemes])}"
                raise ValueError(f"{name} is {where} listeners")
        return self

    @model_validator(mode="after")
    def _check_proxies(self) -> Listener:
        if self.proxy_protocol and not self.trusted_proxies and self.scheme != "unix":
            raise ValueError("proxy_protocol needs trusted_proxies")
        if self.trusted_proxies and not self.proxy_protocol and not self.is_http:
            raise ValueError(f"trusted_proxies needs proxy_protocol = true on {self.scheme}:// listeners")
        return self

    @model_validator(mode="after")
    def _check_tls(self) -> Listener:
        if self.is_quic and self.alpn == []:
            raise ValueError("alpn cannot be empty on quic:// listeners, QUIC always negotiates one (RFC 9001 section 8.1)")
        if self.key and not self.certificate:
            raise ValueError("key needs certificate")
        if (self.client_certificate != "none" or self.crl) and not self.client_ca:
            raise ValueError(f"{'crl' if self.crl else 'client_certificate'} needs client_ca")
        if self.client_ca and self.client_certificate == "none":
            raise ValueError('client_ca needs client_certificate = "optional" or "required"')
        return self

    @property
    def scheme(self) -> str:
        """The URL's scheme by its main name: ``tcp``, ``tls``, ``ws``, ``wss``, ``quic``, ``unix`` or ``asgi``."""
        address = self.address
        if isinstance(address, InetAddress):
            return address.scheme
        return "unix" if isinstance(address, UnixAddress) else "asgi"

    @property
    def is_tls(self) -> bool:
        """Whether it needs a certificate: ``tls``, ``wss`` and ``quic``."""
        address = self.address
        return isinstance(address, InetAddress) and address.tls

    @property
    def is_http(self) -> bool:
        """``ws`` and ``wss``."""
        address = self.address
        return isinstance(address, InetAddress) and address.http

    @property
    def is_quic(self) -> bool:
        address = self.address
        return isinstance(address, InetAddress) and address.quic

    @property
    def protocols(self) -> list[str]:
        """The ALPN protocol names in force, the preferred one first: ``alpn``, or the scheme's own."""
        return list(_PROTOCOLS.get(self.scheme, ()) if self.alpn is None else self.alpn)

    @property
    def behind_proxy(self) -> bool:
        """Whether a connection's address is what somebody else says, which proves nothing about this machine."""
        return self.proxy_protocol or bool(self.trusted_proxies)

    def effective_anonymous(self, auth: Auth) -> bool | Literal["loopback"]:
        """The rule for clients without credentials: ``anonymous``, or else that of ``[auth]``."""
        return self._unless_proxied(auth.anonymous if self.anonymous is None else self.anonymous)

    def effective_metrics(self, http: Http) -> bool | Literal["loopback"]:
        """Who may read ``/metrics`` here."""
        return self._unless_proxied(http.metrics)

    def _unless_proxied(self, rule: bool | Literal["loopback"]) -> bool | Literal["loopback"]:
        """``"loopback"`` never holds behind a proxy."""
        return False if rule == "loopback" and self.behind_proxy else rule

    def self_signed(self, config: Config) -> bool:
        """Whether this listener uses the self-signed certificate."""
        return self.is_tls and config.tls.self_signed and not (self.certificate or self.psk_file)

    @property
    def address(self) -> Address:
        return parse_url(self.url)[0]

    @property
    def permissions(self) -> int | None:
        """``mode`` as a number."""
        return None if self.mode is None else int(self.mode.replace("o", ""), 8)


class Limits(_Section):
    """``[limits]``. Each has a default; 0 means no limit only where a line says so."""

    max_packet_size: Annotated[int, Field(ge=64, le=268_435_460)] = 1_048_576
    """Bytes of a whole packet that a client may send; told to 5.0 clients as Maximum Packet Size."""
    max_connections: Count = 0
    """Connections at the same time, all listeners together; 0: as many as the system has descriptors for."""
    max_sessions: Count = 0
    """Sessions, connected or not; 0: no limit."""
    max_subscriptions: PositiveCount = 10_000
    """Subscriptions of one session."""
    max_queued_messages: PositiveCount = 10_000
    """Messages that wait for one session."""
    max_queued_bytes: Bytes = 16_777_216
    """Bytes of the messages that wait for one session."""
    max_output_bytes: Annotated[int, Field(ge=4096, le=2**32 - 1)] = 8_388_608
    """Encoded bytes that one connection may leave unsent."""
    queue_policy: Literal["drop_oldest", "drop_newest", "drop_qos0_first", "disconnect"] = "drop_oldest"
    """What happens when a session's queue is full; what is lost is counted by reason."""
    queue_qos0_offline: bool = False
    """Whether QoS 0 messages too wait for a session whose client is away."""
    receive_maximum: Annotated[int, Field(ge=1, le=65535)] = 1024
    """QoS 1 and 2 messages that a client may have unacknowledged towards the broker."""
    max_inflight: Annotated[int, Field(ge=1, le=65535)] = 1024
    """QoS 1 and 2 messages unacknowledged towards a client; its own Receive Maximum may say less."""
    topic_alias_maximum: Annotated[int, Field(ge=0, le=65535)] = 64
    """Topic aliases that a client may use towards the broker; 0: none."""
    topic_alias_out: Annotated[int, Field(ge=0, le=65535)] = 64
    """Topic aliases that the broker uses towards a client, if its Topic Alias Maximum allows; 0: none."""
    session_expiry: Annotated[int, Field(ge=0, le=4_294_967_295)] = 86_400
    """Seconds that a session outlives its connection at most; 3.x sessions without clean session get
    this. 0: sessions end with the connection; 4294967295: they never expire."""
    max_keep_alive: Annotated[int, Field(ge=1, le=65535)] = 65_535
    """Seconds; a 5.0 client that asks for more is told this as Server Keep Alive."""
    retain_available: bool = True
    """Whether retained messages are kept."""
    wildcard_subscription_available: bool = True
    """Whether filters may have ``+`` and ``#``."""
    shared_subscription_available: bool = True
    """Whether ``$share`` filters are accepted."""
    subscription_identifier_available: bool = True
    """Whether Subscription Identifiers are accepted."""
    max_retained_messages: Count = 0
    """Retained messages; 0: no limit."""
    max_retained_bytes: Annotated[int, Field(ge=0, le=2**40)] = 0
    """Bytes of all retained messages; 0: no limit."""
    max_topic_levels: Annotated[int, Field(ge=1, le=65535)] = 128
    """Levels of a topic name or filter."""
    max_topic_bytes: Annotated[int, Field(ge=1, le=65535)] = 65_535
    """Bytes of a topic name or filter."""
    max_client_id_bytes: Annotated[int, Field(ge=23, le=65535)] = 65_535
    """Bytes of a Client Identifier."""
    connect_timeout: Seconds = 10.0
    """Seconds from the accepted connection to its complete CONNECT."""
    auth_timeout: Seconds = 10.0
    """Seconds that a decision about a CONNECT or AUTH may take; then the client is refused."""
    shutdown_timeout: Annotated[float, Field(ge=0, le=3600, allow_inf_nan=False)] = 5.0
    """Seconds for sending what is queued when the broker stops."""
    max_group_backlog: PositiveCount = 10_000
    """Messages that wait for one shared subscription whose members have no room."""
    group_strategy: Literal["round_robin", "least_in_flight"] = "round_robin"
    """Which member of a shared subscription gets the next message."""
    route_cache_entries: Annotated[int, Field(ge=1, le=2**24)] = 65_536
    """Topics whose receivers each worker remembers."""
    turn_bytes: Annotated[int, Field(ge=4096, le=2**30)] = 262_144
    """Bytes read from one connection before the others have their turn."""
    max_request_head: Annotated[int, Field(ge=1024, le=65536)] = 16_384
    """Bytes of an HTTP request's head, that of a WebSocket upgrade included."""
    max_frame_size: Annotated[int, Field(ge=1024, le=2**31 - 1)] = 16_777_216
    """Bytes of one WebSocket frame that a client may send."""
    max_http_connections: PositiveCount = 1024
    """Connections at the same time that ask for pages or speak HTTP/2; a WebSocket over HTTP/1.1 is none of them."""
    max_http_streams: Annotated[int, Field(ge=1, le=10_000)] = 256
    """Concurrent streams of one HTTP/2 connection."""
    max_quic_connections: PositiveCount = 10_000
    """QUIC connections at the same time, all listeners together."""
    max_quic_handshakes: PositiveCount = 1024
    """Those of them whose handshake is not finished; a further one is dropped, and the client tries again. From a quarter of that on
    ``stateless_retry = "auto"`` asks for a validated address."""
    max_quic_streams: Annotated[int, Field(ge=1, le=10_000)] = 100
    """MQTT connections, each a bidirectional stream, at the same time on one QUIC connection."""
    max_connections_per_address: Count = 0
    """Connections of one address at the same time, of IPv6 the first 64 bits; 0: no limit of its own. One more is told so, twice as
    many are closed unread."""
    max_connections_per_user: Count = 0
    """Connections of one user name at the same time; 0: no limit of its own. Where passwords are not checked, a name is only a claim."""
    connect_rate: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    """Connections a second, all listeners together, with as many at once; 0: no limit."""
    connect_rate_per_address: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    """Connections a second of one address; 0: no limit."""
    connect_rate_addresses: Annotated[int, Field(ge=1, le=2**24)] = 65_536
    """Addresses without a connection that are remembered for ``connect_rate_per_address``, about 80 bytes each; the oldest give way."""
    max_pending_connections: Count = 0
    """Connections at the same time whose CONNECT is not accepted yet; 0: no limit of its own."""
    max_tls_handshakes: Count = 0
    """TLS handshakes under way at the same time, all listeners together; QUIC has its own limit. 0: no limit of its own."""
    max_connect_packet: Annotated[int, Field(ge=64, le=16_777_216)] = 131_072
    """Bytes of a whole packet until then; ``max_packet_size`` if that is less."""
    max_unauthenticated_bytes: Annotated[int, Field(ge=65_536, le=2**40)] = 268_435_456
    """Bytes that all connections together may take until then: what they have announced, and a flat 2 KiB each, 40 KiB more with TLS."""
    max_message_rate: Annotated[int, Field(ge=0, le=10_000_000)] = 0
    """PUBLISH, SUBSCRIBE and UNSUBSCRIBE a second of one client, with as many at once; beyond that it is not read for a while.
    0: no limit."""
    max_byte_rate: Annotated[int, Field(ge=0, le=2**32 - 1)] = 0
    """Bytes a second of one client, in packets of all types; 0: no limit."""
    max_message_rate_out: Annotated[int, Field(ge=0, le=10_000_000)] = 0
    """Messages a second to one client; beyond that it is treated as if it read slowly. 0: no limit."""
    max_byte_rate_out: Annotated[int, Field(ge=0, le=2**32 - 1)] = 0
    """Bytes a second to one client; 0: no limit."""
    rate_patience: Annotated[float, Field(ge=0, le=86400, allow_inf_nan=False)] = 30.0
    """Seconds after which a client that goes on sending more than its rates is disconnected (0x96); 0: it is only slowed."""
    max_filter_wildcards: Annotated[int, Field(ge=0, le=65535)] = 32
    """``+`` and ``#`` in one topic filter."""
    max_unreleased: Annotated[int, Field(ge=1, le=65535)] = 16_384
    """QoS 2 messages of one 3.x client that it has not released; of 5.0 clients ``receive_maximum`` is the limit."""
    max_wills: Count = 0
    """Wills at the same time; 0: no limit of its own."""
    max_will_bytes: Annotated[int, Field(ge=0, le=2**28)] = 131_072
    """Bytes of one will's topic, properties and payload."""
    max_total_queued_messages: Annotated[int, Field(ge=0, le=2**40)] = 0
    """Messages that wait for all sessions together; from then on queues are treated as full. 0: no limit."""
    max_total_queued_bytes: Annotated[int, Field(ge=0, le=2**40)] = 0
    """Bytes of the messages that wait for all sessions together; 0: no limit."""
    max_memory: Annotated[int, Field(ge=0, le=2**44)] = 0
    """Bytes that the broker may take as it counts them (``memory_bytes``). From 80 % on nothing new is taken, from 90 % on no QoS 0, at
    the limit those who keep most waiting are dropped. 0: no limit."""
    turn_time: Annotated[float, Field(ge=0, le=60, allow_inf_nan=False)] = 0.05
    """Seconds after which a worker leaves the rest of what a client has sent for its next turn; 0: it never does."""
    busy_turn_time: Annotated[float, Field(ge=0, le=60, allow_inf_nan=False)] = 1.0
    """Seconds; after a turn of its loop that took as long, a worker takes no new clients (0x89) for a second; 0: it always does."""
    verdict_cache_entries: Annotated[int, Field(ge=0, le=2**24)] = 65_536
    """Decisions about clients that each worker remembers, 48 bytes each once there is one; 0: every client is asked about."""
    http_timeout: Seconds = 30.0
    """Seconds that an HTTP connection may stay without a request or a stream."""


class Auth(_Section):
    """``[auth]``: who may connect. Without any authenticator passwords are not checked: a name is only a claim then."""

    anonymous: Anonymous = "loopback"
    """Clients that no other rule decides about: false refuses them, true admits them, ``"loopback"``
    admits those of this machine (Unix sockets, 127.0.0.0/8, ::1)."""
    allow: list[str] = []
    """User names to admit, shell patterns (``sensor-*``). If there are any, other names are refused. Where there are
    authenticators, names on the list still have to prove who they are."""
    deny: list[str] = []
    """User names to refuse, shell patterns; they win over ``allow``."""
    delay: Annotated[float, Field(ge=0, le=60, allow_inf_nan=False)] = 0.0
    """Seconds before a client with a user name is told the decision; slows down guessing."""
    acl_file: str = ""
    """TOML file of what clients may publish and subscribe to; empty: everything is allowed."""
    password_file: str = ""
    """File of users and password hashes; empty: none. ``mqttc-broker passwd`` makes it."""
    sql: Sql | None = None
    jwt: Jwt | None = None
    certificate: ClientCertificate | None = None
    http: WebService | None = None
    scram: Scram | None = None
    ldap: Ldap | None = None
    chain: Chain | None = None
    """How the authenticators work together: the name of one, ``{ any = […] }`` or ``{ all = […] }`` of names and further such
    tables; default: any of those that there are, in the order in which they are listed here."""
    cache: Cache = Cache()
    failures: Failures = Failures()
    hashing: Hashing = Hashing()

    @model_validator(mode="after")
    def _check_sources(self) -> Auth:
        if self.scram is not None and not getattr(self, self.scram.users):
            raise ValueError(f"auth.scram needs auth.{self.scram.users}, whose users it admits")
        named = set(self.sources if self.chain is None else chain_names(self.chain))
        for name in named - set(self.sources):
            raise ValueError(f"auth.chain names {name}, but there is no auth.{name}")
        return self

    @property
    def sources(self) -> tuple[str, ...]:
        """The authenticators that there are."""
        return tuple(name for name in SOURCES if getattr(self, name))


class DurableFilter(_Section):
    """One of ``durability.filters``."""

    filter: TopicFilter
    """Of topics: ``orders/#``."""
    mode: Literal["written", "synced"]
    """At least this for what is published to them."""


class Durability(_Section):
    """``[durability]``: what outlives the process, in ``data_dir``. Of all modes that apply to a message (this section's, those
    of the filters that match, its listener's) the strongest holds."""

    mode: Literal["off", "written", "synced"] = "off"
    """``"off"``: nothing outlives the process. ``"written"``: sessions, subscriptions, queued and retained messages outlive
    a crash of the process (kill -9), but not a loss of power. ``"synced"``: that too, as PUBACK, PUBREC, PUBCOMP, SUBACK,
    UNSUBACK and a CONNACK that makes or discards a session leave only after the commit (fsync) that holds them."""
    filters: Annotated[list[DurableFilter], Field(max_length=MAXIMUM_DURABLE_FILTERS)] = []
    """Topics that are kept better than ``mode`` says. At most 64."""
    spill_after: Annotated[int, Field(ge=16, le=2**31 - 1)] = 1000
    """Messages of an off-line session that stay in memory; what comes after them lies in the store alone."""
    max_backlog: Annotated[int, Field(ge=2**20, le=2**40)] = 67_108_864
    """Bytes of what waits for the disk; at more, publishers are slowed."""
    retry: Seconds = 1.0
    """Seconds after which a failed write is tried again."""


class Tls(_Section):
    """``[tls]``: the self-signed certificate, for TLS listeners without ``certificate`` and ``psk_file``."""

    self_signed: bool = False
    """Whether one is made, in ``data_dir``, and renewed when two thirds of its 90 days are over."""
    hosts: list[Annotated[str, Field(min_length=1, max_length=253)]] = []
    """Names and addresses in it; none: localhost, the machine's name, 127.0.0.1 and ::1."""


class Http(_Section):
    """``[http]``: what ``ws`` and ``wss`` listeners answer besides WebSocket."""

    metrics: Anonymous = "loopback"
    """Who may read ``/metrics``: false nobody, true everybody, ``"loopback"`` this machine alone, and nobody on a
    listener behind a proxy."""
    pages: bool = True
    """Whether ``/`` answers with a page that says what this is."""


class Log(_Section):
    """``[log]``: lines on stderr. Embedded, the lines go to Python's ``logging``, logger ``mqttc.broker``."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["text", "json"] = "text"
    """``text``: time, level, event, key=value; ``json``: one object a line."""


class ControlSocket(_Section):
    """``[control]``: the Unix socket by which ``mqttc-broker explain`` and its like ask the running broker."""

    socket: Annotated[bool | str, BeforeValidator(_check_socket)] = True
    """Its path; true: ``control.sock`` in ``data_dir`` where something is kept there, else there is none; false: there is none."""
    max_connections: Annotated[int, Field(ge=1, le=1000)] = 16
    """Connections to it at the same time."""
    timeout: Seconds = 10.0
    """Seconds for a request to come whole, for its answer to be found, and for that to be read."""


class BrokerSection(_Section):
    """``[broker]``: what the broker tells about itself."""

    response_information: Annotated[str, Field(max_length=1024)] = ""
    """Response Information for 5.0 clients that request it; empty: none is sent."""


class Config(_Section):
    """The whole configuration, immutable."""

    workers: Annotated[int, Field(ge=0, le=256)] = 0
    """Worker threads; 0: one for each core that this process may use."""
    data_dir: str = "mqttc-data"
    """Directory for what shall outlive the process: the store of ``[durability]``, the self-signed certificate of ``[tls]``."""
    user: str = ""
    """Name of the user that ``mqttc-broker``, started as root, becomes once all listeners are bound; empty: it stays who it is.
    Files that are read again (certificates, password files) and ``data_dir`` must then be that user's to read and write."""
    group: str = ""
    """Name of the group to go with ``user``; empty: that user's own."""
    listeners: Annotated[list[Listener], Field(min_length=1)] = [Listener(url=DEFAULT_URL)]
    limits: Limits = Limits()
    auth: Auth = Auth()
    durability: Durability = Durability()
    tls: Tls = Tls()
    http: Http = Http()
    log: Log = Log()
    broker: BrokerSection = BrokerSection()
    control: ControlSocket = ControlSocket()

    @model_validator(mode="after")
    def _check_user(self) -> Config:
        if self.group and not self.user:
            raise ValueError("group needs user")
        return self

    @model_validator(mode="after")
    def _check_certificates(self) -> Config:
        for index, listener in enumerate(self.listeners):
            if listener.is_tls and not (listener.certificate or listener.psk_file or self.tls.self_signed):
                others = "tls.self_signed = true" if listener.is_quic else "psk_file, or tls.self_signed = true"
                raise ValueError(f"listeners.{index} needs a certificate (or {others})")
        return self

    @classmethod
    def load(
        cls,
        file: str | os.PathLike[str] | None = None,
        environment: Mapping[str, str] | None = None,
        listen: Sequence[str] = (),
        settings: Sequence[str] = (),
    ) -> Config:
        """Read all sources. ``settings`` are texts ``section.key=value``; raises ``ConfigError``."""
        sources = _Sources()
        if file is not None:
            sources.add_file(Path(file))
        sources.add_environment(environment or {})
        sources.add_command_line(listen, settings)
        return sources.build()

    @classmethod
    def of(cls, value: Config | Mapping[str, Any] | None) -> Config:
        """A configuration from what a program passes; nothing else is read; raises ``ConfigError``."""
        if isinstance(value, Config):
            return value
        sources = _Sources()
        sources.data = dict(value or {})
        return sources.build()

    def worker_count(self) -> int:
        """``workers``, or the number of cores that this process may use."""
        if self.workers:
            return self.workers
        if hasattr(os, "sched_getaffinity"):
            return min(256, len(os.sched_getaffinity(0)))
        return min(256, os.cpu_count() or 1)

    @property
    def stores(self) -> bool:
        """Whether anything is kept in ``data_dir``: any mode of the section, its filters or a listener is not ``"off"``."""
        modes = [self.durability.mode, *(one.mode for one in self.durability.filters), *(one.durability for one in self.listeners)]
        return any(mode not in ("off", None) for mode in modes)

    @property
    def control_path(self) -> str | None:
        """Absolute path of the control socket; None: there is none."""
        if isinstance(self.control.socket, str):
            return os.path.abspath(self.control.socket)
        return os.path.abspath(os.path.join(self.data_dir, "control.sock")) if self.control.socket and self.stores else None

    def engine_settings(self) -> dict[str, int]:
        """The integers that the data plane takes, times in the units of its names."""
        limits = self.limits.model_dump(exclude=set(_CONTROL_LIMITS))
        settings = {"workers": self.worker_count(), "log_level": logging.getLevelNamesMapping()[self.log.level.upper()]}
        settings["durability"] = DURABILITY_MODES.index(self.durability.mode)
        settings["spill_after"] = self.durability.spill_after
        settings["queue_policy"] = QUEUE_POLICIES.index(limits.pop("queue_policy"))
        settings["group_strategy"] = GROUP_STRATEGIES.index(limits.pop("group_strategy"))
        for name, engine_name in _ENGINE_NAMES.items():
            settings[engine_name] = int(limits.pop(name))
        for name in ("connect_timeout", "auth_timeout", "shutdown_timeout", "rate_patience", "turn_time", "busy_turn_time"):
            seconds = limits.pop(name)
            settings[f"{name}_ms"] = max(round(seconds * 1000), 1 if seconds else 0)
        settings.update((name, int(value)) for name, value in limits.items())
        return settings


_ENGINE_NAMES = {
    "session_expiry": "session_expiry_s",
    "max_keep_alive": "max_keep_alive_s",
    "wildcard_subscription_available": "wildcard_available",
    "shared_subscription_available": "shared_available",
    "subscription_identifier_available": "subscription_ids_available",
}

_CONTROL_LIMITS = (
    "max_http_connections",
    "max_http_streams",
    "max_quic_connections",
    "max_quic_handshakes",
    "max_quic_streams",
    "http_timeout",
)
"""Limits that the control plane alone keeps."""


def schema() -> str:
    """The JSON schema of the configuration file, as text."""
    return json.dumps(Config.model_json_schema(), indent=2)


# ------------------------------------------------------------------------------------ the sources


def read_toml(file: Path) -> tuple[dict[str, Any], dict[KeyPath, str]]:
    """What a TOML file says, and where each of its keys stands, as ``file:line``; raises ``ConfigError``."""
    try:
        text = file.read_bytes().decode("utf-8")
    except OSError as error:
        raise ConfigError([Problem(str(file), error.strerror or str(error))]) from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ConfigError([Problem(f"{file}:{line}", "is not UTF-8")]) from error
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError([_syntax_problem(file, text, str(error))]) from error
    lines = _TomlLines(text.replace("\r\n", "\n")).lines
    return data, {path: f"{file}:{line}" for path, line in lines.items()}


class _Sources:
    """What was read so far, and for every key where it was written."""

    def __init__(self) -> None:
        self.data: dict[str, Any] = {}
        self.origins: dict[KeyPath, str] = {}
        self.problems: list[Problem] = []

    def add_file(self, file: Path) -> None:
        self.data, self.origins = read_toml(file)

    def add_environment(self, environment: Mapping[str, str]) -> None:
        top_level = list(Config.model_fields)
        for variable in sorted(environment):
            if not variable.startswith(ENVIRONMENT_PREFIX):
                continue
            name = variable[len(ENVIRONMENT_PREFIX) :].lower()
            path = name.split("__")
            if len(path) == 1 and name not in top_level:
                # Others own such names too: Kubernetes sets MQTTC_PORT for a service called mqttc.
                hint = _suggestion(name, top_level, cutoff=0.8)
                if hint:
                    self.problems.append(Problem(variable, f"unknown key {name!r}{hint}"))
                continue
            self._set(path, environment[variable], variable)

    def add_command_line(self, listen: Sequence[str], settings: Sequence[str]) -> None:
        if listen:
            for path in [path for path in self.origins if path[0] == "listeners"]:
                del self.origins[path]
            self.data["listeners"] = [{"url": url} for url in listen]
            for index, url in enumerate(listen):
                self.origins["listeners", index] = f"--listen {url}"
        for setting in settings:
            key, separator, value = setting.partition("=")
            where = f"--set {key}=…" if _is_secret(key.strip().rpartition(".")[2]) else f"--set {setting}"
            if not separator or not key.strip():
                self.problems.append(Problem(where, "write --set section.key=value"))
                continue
            self._set(key.strip().split("."), value, where)

    def _set(self, keys: Sequence[str], text: str, where: str) -> None:
        """Put a value given as text where ``keys`` lead, making tables on the way."""
        node: Any = self.data
        model: type[BaseModel] | None = Config
        path: KeyPath = ()
        for depth, key in enumerate(keys):
            last = depth == len(keys) - 1
            if isinstance(node, list):
                if not key.isdecimal() or int(key) >= len(node) or last:
                    name = ".".join(map(str, path))
                    self.problems.append(Problem(where, f"{name} has {len(node)} entries, counted from 0; write {name}.0.key"))
                    return
                node, path, model = node[int(key)], (*path, int(key)), Listener
                continue
            if not isinstance(node, dict):
                self.problems.append(Problem(where, f"{'.'.join(map(str, path))} is not a section"))
                return
            path = (*path, key)
            if last:
                node[key] = _value_of_text(text, model is not None and _is_text(model, key))
                for stale in [known for known in self.origins if known[: len(path)] == path]:
                    del self.origins[stale]
                self.origins[path] = where
                return
            if key == "listeners" and len(path) == 1 and key not in node:
                node[key] = [{"url": DEFAULT_URL}]
            if key not in node:
                node[key] = {}
                self.origins[path] = where
            node = node[key]
            field = model.model_fields.get(key) if model is not None else None
            model = _model_of(field.annotation) if field is not None else None

    def build(self) -> Config:
        config: Config | None = None
        try:
            config = Config.model_validate(self.data)
        except ValidationError as error:
            for detail in error.errors(include_url=False):
                problem = self._problem(detail)
                if problem not in self.problems:
                    self.problems.append(problem)
        if self.problems or config is None:
            raise ConfigError(self.problems)
        return config

    def _where(self, path: KeyPath) -> str:
        """The origin of the key, or of the nearest thing around it."""
        for end in range(len(path), 0, -1):
            if path[:end] in self.origins:
                return self.origins[path[:end]]
        return ""

    def _problem(self, detail: Any) -> Problem:
        path: KeyPath = tuple(detail["loc"])
        kind = detail["type"]
        if kind == "value_error" and len(path) == 2 and path[0] == "listeners":
            path = (*path, "url")  # where the listener as a whole stands
        message = detail["msg"].removeprefix("Value error, ").removeprefix("Input ")
        if kind == "value_error" and not path and (listener := re.match(r"listeners\.(\d+) ", message)):
            return Problem(self._where(("listeners", int(listener[1]))), message)
        name = ".".join(map(str, path)) or "configuration"
        if kind == "extra_forbidden":
            known = _known_keys(path[:-1])
            return Problem(self._where(path), f"unknown key {name}{_suggestion(str(path[-1]), known)}")
        if kind == "missing":
            return Problem(self._where(path), f"{name} is missing")
        value = detail["input"]
        hidden = (kind == "value_error" and isinstance(value, Mapping)) or any(_is_secret(str(part)) for part in path)
        got = "" if hidden else f" (got {_shown(value)})"
        where = self._where(path)
        return Problem(where, message if where.startswith("--listen ") else f"{name}: {message}{got}")


def _is_secret(key: str) -> bool:
    """Whether a key's value must not be shown."""
    return key in ("password", "bind_password", "key_password", "secret", "token")


def _model_of(annotation: Any) -> type[BaseModel] | None:
    """The section that a key's type is, or is beside None."""
    kinds = [kind for kind in get_args(annotation) if kind is not NoneType] or [annotation]
    return kinds[0] if isinstance(kinds[0], type) and issubclass(kinds[0], BaseModel) else None


def _shown(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _known_keys(path: KeyPath) -> list[str]:
    model: type[BaseModel] = Config
    for part in path:
        if isinstance(part, int):
            continue
        annotation = model.model_fields[part].annotation
        items = get_args(annotation)
        model = items[0] if items else annotation  # type: ignore[assignment]
    return list(model.model_fields)


def _enumerated(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _suggestion(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f", did you mean {close[0]}?" if close else ""


def _is_text(model: type[BaseModel], key: str) -> bool:
    """Whether the key's value is text, so that a variable's ``1`` is not taken for a number."""
    field = model.model_fields.get(key)
    return field is not None and (field.annotation is str or key == "mode")


def _value_of_text(text: str, is_text: bool) -> Any:
    """A variable's or option's value: TOML if it is, else the text itself."""
    if is_text and not (len(text) > 1 and text[0] == text[-1] and text[0] in "\"'"):
        return text
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return parsed["value"] if len(parsed) == 1 else text


def _syntax_problem(file: Path, text: str, message: str) -> Problem:
    match = re.search(r" \(at (?:line (\d+), column (\d+)|end of document)\)$", message)
    if match is None:
        return Problem(str(file), message)
    line = match[1] or str(text.count("\n") + 1)
    column = f", column {match[2]}" if match[2] else ""
    return Problem(f"{file}:{line}", f"{message[: match.start()]}{column}")


class _TomlLines:
    """Finds the line of every key of a document that ``tomllib`` has accepted.

    ``tomllib`` tells no positions. This walks keys, strings and brackets only, so it relies on the
    document being valid; dates, numbers and escapes need no understanding.
    """

    _BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
    _STRING = re.compile(
        r'"""(?:\\.|[^\\])*?"""(?:"(?!")|"")?' r"|'''.*?'''(?:'(?!')|'')?" r'|"(?:\\.|[^"\\\n])*"' r"|'[^'\n]*'",
        re.DOTALL,
    )
    _BLANK = re.compile(r"(?:[ \t\n]|#[^\n]*)*")
    _SCALAR = re.compile(r"[^,\]}\n#]*")

    def __init__(self, text: str) -> None:
        self.text = text
        self.position = 0
        self.lines: dict[KeyPath, int] = {}
        self._array_lengths: dict[KeyPath, int] = {}
        self._walk()

    def _walk(self) -> None:
        table: KeyPath = ()
        while self._skip_blank() < len(self.text):
            if self.text[self.position] == "[":
                table = self._header()
            else:
                self._pair(table)

    def _skip_blank(self) -> int:
        match = self._BLANK.match(self.text, self.position)
        self.position = match.end() if match else self.position
        return self.position

    def _take(self, character: str) -> bool:
        self._skip_blank()
        if self.text.startswith(character, self.position):
            self.position += len(character)
            return True
        return False

    def _record(self, path: KeyPath) -> None:
        self.lines.setdefault(path, self.text.count("\n", 0, self.position) + 1)

    def _key(self) -> list[str]:
        """A dotted key."""
        parts: list[str] = []
        while True:
            self._skip_blank()
            string = self._STRING.match(self.text, self.position)
            match = string or self._BARE_KEY.match(self.text, self.position)
            if match is None:
                return parts
            parts.append(next(iter(tomllib.loads(f"{match[0]} = 0"))))
            self.position = match.end()
            if not self._take("."):
                return parts

    def _header(self) -> KeyPath:
        is_array = self._take("[[") or not self._take("[")
        path: KeyPath = ()
        parts = self._key()
        for depth, part in enumerate(parts):
            path = (*path, part)
            last = depth == len(parts) - 1
            self._record(path)
            if last and is_array:
                self._array_lengths[path] = self._array_lengths.get(path, 0) + 1
            if path in self._array_lengths:
                path = (*path, self._array_lengths[path] - 1)
                self._record(path)
        self._take("]]" if is_array else "]")
        return path

    def _pair(self, table: KeyPath) -> None:
        self._skip_blank()
        path = table
        start = self.position
        parts = self._key()
        after, self.position = self.position, start
        for part in parts:
            path = (*path, part)
            self._record(path)
        self.position = after
        self._take("=")
        self._value(path)

    def _value(self, path: KeyPath) -> None:
        self._skip_blank()
        if self._take("["):
            index = 0
            while not self._take("]"):
                self._skip_blank()
                self._record((*path, index))
                self._value((*path, index))
                index += 1
                self._take(",")
        elif self._take("{"):
            while not self._take("}"):
                self._pair(path)
                self._take(",")
        else:
            string = self._STRING.match(self.text, self.position)
            match = string or self._SCALAR.match(self.text, self.position)
            self.position = match.end() if match else self.position
