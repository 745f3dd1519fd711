"""What becomes of a connection's first request head: WebSocket, a refusal, or the HTTP server; and who the client is behind proxies.

Pure functions: bytes in, decision out. HTTP/2's extended CONNECT (RFC 8441) is judged by the same `check_websocket`, and each
later request of a connection by the same `ambiguity`.
"""

from __future__ import annotations

import base64
import binascii
import enum
import ipaddress
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus
from typing import Final

import h11
import wsproto
from wsproto.events import AcceptConnection, Request
from wsproto.utilities import ProtocolError

HTTP2_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
"""RFC 9113 section 3.4; its first 18 bytes look like a request head, so that a reader of heads stops there."""
HTTP2_HEAD: Final = HTTP2_PREFACE[:18]
SUBPROTOCOLS: Final = ("mqtt", "mqttv3.1")
"""What a client has to offer one of [MQTT-6.0.0-3]; the first that it offers is selected [MQTT-6.0.0-4]."""
WEBSOCKET_VERSION: Final = b"13"

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Headers = Sequence[tuple[bytes, bytes]]
"""Names in lower case."""

PROXY_HEADERS: Final = frozenset((b"x-forwarded-for", b"forwarded", b"x-real-ip", b"via"))
"""A request with one of these was handed on by a proxy, whoever it was."""
_ONCE: Final = frozenset((b"host", b"content-length", b"transfer-encoding", b"sec-websocket-key", b"sec-websocket-version", b"origin"))
_LONE_LINE_END: Final = re.compile(rb"\r(?!\n)|(?<!\r)\n")
_TARGET_URL: Final = re.compile(rb"(?i)(https?|wss?)://[^/?#]*")
_DIGITS: Final = re.compile(r"[0-9]{1,5}")


class Kind(enum.Enum):
    UPGRADE = enum.auto()
    """Send ``Decision.response``; WebSocket frames follow."""
    RESPOND = enum.auto()
    """Send ``Decision.response``, then close."""
    SPLICE = enum.auto()
    """The whole stream, this head first, goes to the HTTP server."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What a listener demands of WebSocket clients, and whom it believes."""

    path: str
    """Path of MQTT over WebSocket, as it stands in a request: ``/mqtt``."""
    allowed_origins: tuple[str, ...] = ()
    """Origins (RFC 6454, ``https://example.org``) whose pages may connect; empty: any. Clients that are no browsers send none."""
    trusted_proxies: tuple[Network, ...] = ()
    """Peers whose X-Forwarded-For is believed."""


@dataclass(frozen=True, slots=True)
class Decision:
    """The answer to a first request head."""

    kind: Kind
    peer: str
    """The client as ``host:port``. On SPLICE the connection's peer: its requests may be of several clients of a proxy."""
    proxied: bool = False
    """A proxy has handed the request on, believed or not: it is not of this machine even if ``peer`` is."""
    response: bytes = b""
    reason: str = ""
    """Why it was refused, for a log line."""
    foreign_page: bool = False
    """The script of a page from elsewhere has made it: no program of this machine even if ``peer`` is."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """An HTTP error: what the client is told, which is also the log line's reason."""

    status: int
    reason: str
    headers: tuple[tuple[bytes, bytes], ...] = ()


# ------------------------------------------------------------------------------------- responses


def date_header() -> tuple[bytes, bytes]:
    """RFC 9110 section 6.6.1."""
    return b"date", formatdate(usegmt=True).encode()


def error_headers(refusal: Refusal) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """Header fields and plain text body of a refusal, for either HTTP version."""
    body = f"{refusal.status} {HTTPStatus(refusal.status).phrase}: {refusal.reason}\n".encode()
    headers = [
        date_header(),
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", b"%d" % len(body)),
        (b"cache-control", b"no-store"),
        (b"x-content-type-options", b"nosniff"),
        *refusal.headers,
    ]
    return headers, body


def error_response(refusal: Refusal, *, body: bool = True) -> bytes:
    """A whole HTTP/1.1 response after which the connection closes. ``body``: False answers HEAD."""
    headers, text = error_headers(refusal)
    server = h11.Connection(h11.SERVER)
    response = h11.Response(
        status_code=refusal.status, reason=HTTPStatus(refusal.status).phrase.encode(), headers=[*headers, (b"connection", b"close")]
    )
    return server.send(response) + (text if body else b"")


# ---------------------------------------------------------------------------------------- checks


def ambiguity(head: bytes) -> str:
    """What another HTTP implementation might read differently in a head; "" if nothing: RFC 9112 section 11.2, request smuggling."""
    if _LONE_LINE_END.search(head):
        return "a line ends with CR or LF alone"
    first = head.partition(b"\r\n")[0]
    if not first.endswith((b" HTTP/1.1", b" HTTP/1.0")):
        return "the request line does not end with HTTP/1.1"
    seen: set[bytes] = set()
    for line in head.split(b"\r\n")[1:]:
        if line[:1] in (b" ", b"\t"):
            return "a header field is folded"
        name, _, value = line.partition(b":")
        name = name.lower()
        if name in _ONCE and name in seen:
            return f"{name.decode()} is given twice"
        if name == b"content-length" and not value.strip(b" \t").isdigit():
            return "content-length is not a number"
        seen.add(name)
    if b"transfer-encoding" in seen and b"content-length" in seen:
        return "both transfer-encoding and content-length are given"
    if b"transfer-encoding" in seen and first.endswith(b"0"):
        return "transfer-encoding is for HTTP/1.1"
    return ""


def split_target(target: bytes) -> tuple[bytes, bytes]:
    """Path and query of a request target in origin or absolute form (RFC 9112 section 3.2); other forms have no path."""
    url = _TARGET_URL.match(target)
    if url:
        target = target[url.end() :]
        target = target if target.startswith(b"/") else b"/" + target
    path, _, query = target.partition(b"?")
    return (path, query) if path.startswith(b"/") else (b"", b"")


def check_websocket(path: bytes, headers: Headers, rules: Rules) -> str | Refusal:
    """The sub-protocol to select for a WebSocket request, of HTTP/1.1 or HTTP/2, or why it is refused.

    ``path``: without the query.
    """
    if path != rules.path.encode():
        return Refusal(HTTPStatus.NOT_FOUND, "there is no MQTT over WebSocket at this path")
    origins = _values(headers, b"origin")
    if len(origins) > 1:
        return Refusal(HTTPStatus.BAD_REQUEST, "origin is given twice")
    if origins and rules.allowed_origins and origins[0].lower() not in (origin.lower().encode() for origin in rules.allowed_origins):
        return Refusal(HTTPStatus.FORBIDDEN, "pages of this origin may not connect")
    if _values(headers, b"sec-websocket-version") != [WEBSOCKET_VERSION]:
        return Refusal(
            HTTPStatus.UPGRADE_REQUIRED,
            "sec-websocket-version has to be 13",
            ((b"sec-websocket-version", WEBSOCKET_VERSION), (b"upgrade", b"websocket")),
        )
    offered = _tokens(headers, b"sec-websocket-protocol")
    for name in SUBPROTOCOLS:
        if name.encode() in offered:
            return name
    return Refusal(HTTPStatus.BAD_REQUEST, "sec-websocket-protocol has to offer mqtt")


def is_upgrade(headers: Headers) -> bool:
    """Whether a request asks for WebSocket, RFC 6455 section 4.2.1."""
    return any(token.lower() == b"websocket" for token in _tokens(headers, b"upgrade"))


def _values(headers: Headers, name: bytes) -> list[bytes]:
    return [value for key, value in headers if key == name]


def _tokens(headers: Headers, name: bytes) -> list[bytes]:
    """The members of a list field, which may stand in several lines: RFC 9110 section 5.6.1."""
    return [token.strip(b" \t") for value in _values(headers, name) for token in value.split(b",")]


# ------------------------------------------------------------------------------- the client's address


def client_of(peer: str, headers: Headers, trusted: Sequence[Network]) -> tuple[str, bool]:
    """The client of a request as ``host:port``, and whether a proxy has handed it on.

    X-Forwarded-For is read from the right, where the nearest proxy has written, past the trusted ones. What is not
    an address there leaves ``peer``, the other end of the connection.
    """
    proxied = any(name in PROXY_HEADERS for name, _ in headers)
    nearest = parse_peer(peer)
    if nearest is None or not _trusts(trusted, nearest[0]):
        return peer, proxied
    client = peer
    for entry in reversed(_tokens(headers, b"x-forwarded-for")):
        found = parse_peer(entry.decode("latin-1").strip('"'))
        if found is None or b"%" in entry:
            return peer, proxied
        address, port = found
        client = f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"
        if not _trusts(trusted, address):
            break
    return client, proxied


def parse_peer(text: str) -> tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, int] | None:
    """Address and port of ``host:port``, ``host``, ``[host]:port`` or ``[host]``; 0 if there is no port; None if it is no address."""
    host, port = text, "0"
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            return None
        port = rest[1:] if rest else "0"
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
    if not _DIGITS.fullmatch(port) or int(port) > 65535:
        return None
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address, int(port)


def _trusts(trusted: Iterable[Network], address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    return any(address.version == network.version and address in network for network in trusted)


# ----------------------------------------------------------------------------------- the decision


def decide(head: bytes, rules: Rules, origin_secure: bool, peer: str) -> Decision:
    """Decide about a connection by its first request head: everything up to and with the first empty line.

    ``origin_secure``: over TLS; a target in absolute form has to agree. ``peer``: the other end of the connection.
    """
    if head == HTTP2_HEAD:
        return Decision(Kind.SPLICE, peer)
    request = _parse(head)
    if isinstance(request, Refusal):
        return _refuse(request, peer, False)
    client, proxied = client_of(peer, list(request.headers), rules.trusted_proxies)
    if not is_upgrade(list(request.headers)):
        return Decision(Kind.SPLICE, peer, proxied)
    answer = _handshake(head, request, rules, origin_secure)
    if isinstance(answer, Refusal):
        return _refuse(answer, client, proxied)
    return Decision(Kind.UPGRADE, client, proxied, answer, foreign_page=is_foreign_page(list(request.headers), rules))


def is_foreign_page(headers: Headers, rules: Rules) -> bool:
    """Whether a browser sent this for a page of another host that ``allowed_origins`` does not name: a page from anywhere can reach
    what listens on the loopback of its reader's machine."""
    origins = [value.decode("latin-1").lower() for value in _values(headers, b"origin")]
    hosts = [value.decode("latin-1").lower() for value in _values(headers, b"host")]
    return any(origin not in rules.allowed_origins and origin.partition("://")[2] not in hosts for origin in origins)


def _refuse(refusal: Refusal, peer: str, proxied: bool) -> Decision:
    return Decision(Kind.RESPOND, peer, proxied, error_response(refusal), refusal.reason)


def _parse(head: bytes) -> h11.Request | Refusal:
    if not head.endswith(b"\r\n\r\n") or head.count(b"\r\n\r\n") != 1:
        return Refusal(HTTPStatus.BAD_REQUEST, "this is not an HTTP request head")
    problem = ambiguity(head)
    if problem:
        return Refusal(HTTPStatus.BAD_REQUEST, problem)
    parser = h11.Connection(h11.SERVER, max_incomplete_event_size=len(head))
    try:
        parser.receive_data(head)
        event = parser.next_event()
    except h11.RemoteProtocolError as error:
        return Refusal(error.error_status_hint, "this is not a valid HTTP request")
    if not isinstance(event, h11.Request):
        return Refusal(HTTPStatus.BAD_REQUEST, "this is not an HTTP request head")
    return event


def _handshake(head: bytes, request: h11.Request, rules: Rules, secure: bool) -> bytes | Refusal:
    """The 101 response of a WebSocket handshake, RFC 6455 section 4.2."""
    headers = list(request.headers)
    if request.method != b"GET" or request.http_version != b"1.1":
        return Refusal(HTTPStatus.BAD_REQUEST, "a WebSocket handshake is a GET of HTTP/1.1")
    if _values(headers, b"transfer-encoding") or any(value.strip(b"0") for value in _values(headers, b"content-length")):
        return Refusal(HTTPStatus.BAD_REQUEST, "a WebSocket handshake has no body")
    url = _TARGET_URL.match(request.target)
    if url and (url[1].lower() in (b"https", b"wss")) != secure:
        return Refusal(HTTPStatus.BAD_REQUEST, "the target names another scheme")
    verdict = check_websocket(split_target(request.target)[0], headers, rules)
    if isinstance(verdict, Refusal):
        return verdict
    if not _is_key(_values(headers, b"sec-websocket-key")):
        return Refusal(HTTPStatus.BAD_REQUEST, "sec-websocket-key has to be 16 bytes in base64")
    server = wsproto.WSConnection(wsproto.ConnectionType.SERVER)
    try:
        server.receive_data(head)
        if not any(isinstance(event, Request) for event in server.events()):
            return Refusal(HTTPStatus.BAD_REQUEST, "this is not a WebSocket handshake")
        return server.send(AcceptConnection(subprotocol=verdict, extra_headers=[date_header()]))
    except (ProtocolError, UnicodeError) as error:
        return Refusal(HTTPStatus.BAD_REQUEST, f"this is not a WebSocket handshake ({_plain(str(error))})")


def _is_key(values: list[bytes]) -> bool:
    try:
        return len(values) == 1 and len(base64.b64decode(values[0], validate=True)) == 16
    except binascii.Error:
        return False


def _plain(text: str) -> str:
    return "".join(character for character in text if " " <= character <= "~")[:100]
