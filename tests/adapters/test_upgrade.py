"""The decision about a connection's first request head; wsproto's client is the oracle of every accepted upgrade."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

import h11
import pytest
import wsproto
from wsproto.events import AcceptConnection, Request

from mqttc.adapters.upgrade import HTTP2_HEAD, Decision, Kind, Refusal, Rules, ambiguity, check_websocket, client_of, decide, parse_peer

KEY = b"dGhlIHNhbXBsZSBub25jZQ=="
RULES = Rules("/mqtt", ("https://good.example",), (ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("fd00::/8")))
PEER = "192.0.2.9:5000"

Fields = dict[bytes, bytes | None]


def head(changes: Fields | None = None, *, request: bytes = b"GET /mqtt HTTP/1.1", more: Sequence[bytes] = ()) -> bytes:
    """A good handshake with some fields changed, removed (None) or added."""
    fields: Fields = {
        b"Host": b"broker.example",
        b"Upgrade": b"websocket",
        b"Connection": b"Upgrade",
        b"Sec-WebSocket-Key": KEY,
        b"Sec-WebSocket-Version": b"13",
        b"Sec-WebSocket-Protocol": b"mqtt",
    }
    fields |= changes or {}
    lines = [request, *(name + b": " + value for name, value in fields.items() if value is not None), *more]
    return b"\r\n".join(lines) + b"\r\n\r\n"


def judge(data: bytes, rules: Rules = RULES, peer: str = PEER) -> Decision:
    return decide(data, rules, False, peer)


def status_of(decision: Decision) -> int:
    """Status of a whole, final response, as an HTTP client reads it."""
    assert decision.kind is Kind.RESPOND and decision.reason
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method="GET", target="/", headers=[("host", "x")]))
    client.send(h11.EndOfMessage())
    client.receive_data(decision.response)
    client.receive_data(b"")
    response = client.next_event()
    assert isinstance(response, h11.Response)
    body = client.next_event()
    assert isinstance(body, h11.Data) and decision.reason.encode() in bytes(body.data)
    assert isinstance(client.next_event(), h11.EndOfMessage)
    assert (b"connection", b"close") in list(response.headers)
    return response.status_code


@pytest.mark.parametrize(
    ("offered", "selected"),
    [
        (["mqtt"], "mqtt"),
        (["mqttv3.1"], "mqttv3.1"),
        (["mqttv3.1", "mqtt"], "mqtt"),
        (["chat", "mqtt", "mqttv3.1"], "mqtt"),
    ],
)
def test_a_websocket_client_accepts_what_we_answer(offered: list[str], selected: str) -> None:
    client = wsproto.WSConnection(wsproto.ConnectionType.CLIENT)
    data = client.send(Request(host="broker.example", target="/mqtt?x=1", subprotocols=offered, extensions=[]))
    decision = judge(data)
    assert decision.kind is Kind.UPGRADE and decision.peer == PEER and not decision.proxied
    client.receive_data(decision.response)
    (event,) = client.events()
    assert isinstance(event, AcceptConnection) and event.subprotocol == selected


def test_compression_is_never_accepted() -> None:
    decision = judge(head({b"Sec-WebSocket-Extensions": b"permessage-deflate; client_max_window_bits"}))
    assert decision.kind is Kind.UPGRADE and b"extensions" not in decision.response.lower()


@pytest.mark.parametrize(
    "data",
    [
        head({b"Connection": b"keep-alive, Upgrade", b"Upgrade": b"WebSocket"}),
        head({b"Sec-WebSocket-Protocol": b"chat"}, more=[b"sec-websocket-protocol: mqtt"]),
        head({b"Origin": b"https://GOOD.example"}),
        head({b"Content-Length": b"0"}),
        head(request=b"GET http://broker.example/mqtt HTTP/1.1"),
        head(request=b"GET /mqtt?client=1 HTTP/1.1"),
    ],
    ids=["tokens", "two lines", "origin", "no body", "absolute form", "query"],
)
def test_other_ways_to_say_the_same(data: bytes) -> None:
    assert judge(data).kind is Kind.UPGRADE


@pytest.mark.parametrize(
    ("status", "data"),
    [
        (404, head(request=b"GET / HTTP/1.1")),
        (404, head(request=b"GET /mqtt/ HTTP/1.1")),
        (404, head(request=b"GET /MQTT HTTP/1.1")),
        (403, head({b"Origin": b"https://evil.example"})),
        (403, head({b"Origin": b"null"})),
        (403, head({b"Origin": b""})),
        (426, head({b"Sec-WebSocket-Version": b"8"})),
        (426, head({b"Sec-WebSocket-Version": None})),
        (400, head({b"Sec-WebSocket-Protocol": None})),
        (400, head({b"Sec-WebSocket-Protocol": b"MQTT"})),
        (400, head({b"Sec-WebSocket-Protocol": b"\xff\xfe"})),
        (400, head({b"Sec-WebSocket-Key": None})),
        (400, head({b"Sec-WebSocket-Key": b"c2hvcnQ="})),
        (400, head({b"Sec-WebSocket-Key": b"!!!!"})),
        (400, head({b"Connection": b"keep-alive"})),
        (400, head({b"Upgrade": b"h2c, websocket"})),
        (400, head({b"Host": b"\xff\xfe\xfd"})),
        (400, head({b"Host": None})),
        (400, head(request=b"POST /mqtt HTTP/1.1")),
        (400, head(request=b"GET /mqtt HTTP/1.0")),
        (400, head(request=b"GET https://broker.example/mqtt HTTP/1.1")),
        (400, head({b"Transfer-Encoding": b"chunked"})),
        (400, head({b"Content-Length": b"5"})),
    ],
)
def test_refused_handshakes(status: int, data: bytes) -> None:
    decision = judge(data)
    assert status_of(decision) == status
    assert (b"sec-websocket-version: 13" in decision.response.lower()) == (status == 426)


@pytest.mark.parametrize(
    "data",
    [
        head(more=[b"Host: other.example"]),
        head(more=[b"Content-Length: 0", b"Content-Length: 0"]),
        head(more=[b"Content-Length: 0, 0"]),
        head(more=[b"Content-Length: +0"]),
        head(more=[b"Content-Length: 0", b"Transfer-Encoding: chunked"]),
        head(more=[b"Transfer-Encoding: chunked", b"transfer-encoding: identity"]),
        head(more=[b"Sec-WebSocket-Key: " + KEY]),
        head(more=[b"Sec-WebSocket-Version: 13"]),
        head(more=[b"Origin: https://good.example", b"Origin: https://evil.example"]),
        head(more=[b"X: a", b" folded: b"]),
        head(more=[b"X: a\nTransfer-Encoding: chunked"]),
        head(more=[b"X: a\rY: b"]),
        head(more=[b"X : a"]),
        head(more=[b"X: a\0b"]),
        head(more=[b"no colon"]),
        b"GET / HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
        b"GET / HTTP/3.7x\r\nHost: x\r\n\r\n",
        b"GET /\r\n\r\n",
        b"\x16\x03\x01\x02\x00\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n",
        b"GET / HTTP/1.1\nHost: x\n\n",
        b"\r\n\r\n",
        b"",
        HTTP2_HEAD + b"x\r\n\r\n",
        b"PRI * HTTP/2.0\r\nHost: x\r\n\r\n",
    ],
)
def test_ill_formed_and_ambiguous_heads_are_refused(data: bytes) -> None:
    assert status_of(judge(data)) in (400, 501)


@pytest.mark.parametrize(
    "data",
    [
        HTTP2_HEAD,
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /mqtt HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n",
        head({b"Upgrade": b"h2c"}),
        head({b"Upgrade": None}),
    ],
)
def test_everything_else_goes_to_the_http_server(data: bytes) -> None:
    decision = judge(data)
    assert decision.kind is Kind.SPLICE and decision.peer == PEER and decision.response == b""


def test_a_spliced_connection_keeps_its_own_peer() -> None:
    decision = judge(b"GET / HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: 198.51.100.1\r\n\r\n", peer="10.0.0.1:80")
    assert (decision.kind, decision.peer, decision.proxied) == (Kind.SPLICE, "10.0.0.1:80", True)


def test_tls_has_to_agree_with_an_absolute_target() -> None:
    data = head(request=b"GET https://broker.example/mqtt HTTP/1.1")
    assert decide(data, RULES, True, PEER).kind is Kind.UPGRADE


def test_any_origin_where_none_is_listed() -> None:
    assert judge(head({b"Origin": b"https://evil.example"}), Rules("/mqtt")).kind is Kind.UPGRADE


def test_two_origins_of_http2_are_refused() -> None:
    fields = [(b"origin", b"https://good.example"), (b"origin", b"https://evil.example")]
    verdict = check_websocket(b"/mqtt", fields, RULES)
    assert isinstance(verdict, Refusal) and verdict.status == 400


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("192.0.2.9:5000", [b"198.51.100.1"], "192.0.2.9:5000"),
        ("10.0.0.1:5000", [], "10.0.0.1:5000"),
        ("10.0.0.1:5000", [b"198.51.100.1"], "198.51.100.1:0"),
        ("10.0.0.1:5000", [b"198.51.100.1:700"], "198.51.100.1:700"),
        ("10.0.0.1:5000", [b"1.2.3.4, 198.51.100.1, 10.0.0.2"], "198.51.100.1:0"),
        ("10.0.0.1:5000", [b"1.2.3.4", b"198.51.100.1", b"10.0.0.2"], "198.51.100.1:0"),
        ("10.0.0.1:5000", [b"10.0.0.3:9, 10.0.0.2"], "10.0.0.3:9"),
        ("10.0.0.1:5000", [b"nonsense, 198.51.100.1"], "198.51.100.1:0"),
        ("10.0.0.1:5000", [b"nonsense, 10.0.0.2"], "10.0.0.1:5000"),
        ("10.0.0.1:5000", [b""], "10.0.0.1:5000"),
        ("10.0.0.1:5000", [b"198.51.100.1:99999"], "10.0.0.1:5000"),
        ("10.0.0.1:5000", [b"198.51.100.1:\xc2\xb2"], "10.0.0.1:5000"),
        ("10.0.0.1:5000", [b"fe80::1%evil\x1b"], "10.0.0.1:5000"),
        ("10.0.0.1:5000", [b"2001:db8::7"], "[2001:db8::7]:0"),
        ("10.0.0.1:5000", [b'"[2001:db8::7]:77"'], "[2001:db8::7]:77"),
        ("10.0.0.1:5000", [b"[2001:db8::7"], "10.0.0.1:5000"),
        ("[fd00::1]:5000", [b"198.51.100.1"], "198.51.100.1:0"),
        ("[::ffff:10.0.0.1]:5000", [b"::ffff:198.51.100.1"], "198.51.100.1:0"),
        ("unix", [b"198.51.100.1"], "unix"),
    ],
)
def test_the_client_behind_proxies(peer: str, forwarded: list[bytes], client: str) -> None:
    fields = [(b"x-forwarded-for", value) for value in forwarded]
    assert client_of(peer, fields, RULES.trusted_proxies) == (client, bool(forwarded))
    decision = judge(head(more=[b"X-Forwarded-For: " + value for value in forwarded]), peer=peer)
    assert (decision.kind, decision.peer, decision.proxied) == (Kind.UPGRADE, client, bool(forwarded))


def test_a_refusal_names_the_client_too() -> None:
    decision = judge(head({b"X-Forwarded-For": b"198.51.100.1"}, request=b"GET /no HTTP/1.1"), peer="10.0.0.1:1")
    assert status_of(decision) == 404 and decision.peer == "198.51.100.1:0"


@pytest.mark.parametrize("text", ["", ":", "host:1", "1.2.3.4:", "1.2.3.4:-1", "[::1]1", "1.2.3", "::1:"])
def test_what_is_no_address(text: str) -> None:
    assert parse_peer(text) is None


def test_an_ordinary_head_is_unambiguous() -> None:
    assert ambiguity(b"GET / HTTP/1.1\r\nHost: x\r\nCookie: a\r\nCookie: b\r\n\r\n") == ""
