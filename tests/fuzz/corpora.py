"""Corpora: of each target a text file, one input a line in hexadecimal, and words that inputs are made of."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from pathlib import Path

FOLDER = Path(__file__).resolve().parent / "corpus"

_HTTP = (
    b"GET / HTTP/1.1\r\n",
    b"Host: a\r\n",
    b"Upgrade: websocket\r\n",
    b"Connection: Upgrade\r\n",
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n",
    b"Sec-WebSocket-Version: 13\r\n",
    b"Sec-WebSocket-Protocol: mqtt\r\n",
    b"Content-Length: 1\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"\r\n\r\n",
    b"Sec-WebSocket-Accept: accept",
    b"HTTP/1.1 101 x\r\n",
    b"Sec-WebSocket-Extensions: ",
    b", ",
)
_PROXY = (
    b"\r\n\r\n\0\r\nQUIT\n",
    b"\x21\x11\0\x0c",
    b"\x21\x21\0\x24",
    b"\x21\x31\0\xd8",
    b"\x20\0\0\0",
    b"PROXY TCP4 ",
    b"PROXY TCP6 ",
    b"PROXY UNKNOWN",
    b"1.2.3.4 ",
    b"::1 ",
    b"::ffff:1.2.3.4 ",
    b"65535",
    b"\r\n",
    b"\x20\0\x05",
    b"\x22\0\x01a",
    b"\x28\0\x01a",
    b"\x03\0\x04",
)
_MQTT = (
    b"\0\x04MQTT\x04",
    b"\0\x04MQTT\x05",
    b"\0\x06MQIsdp\x03",
    b"\x10",
    b"\x30",
    b"\x82",
    b"\xa2",
    b"\xc0\0",
    b"\xe0\0",
    b"\0\x01a",
    b"\0\x01\0",
    b"\xff\xff\xff\x7f",
    b"\x80\x01",
    b"\0\x0d$share/g/a/#\0",
    b"\xf0\x9f\x98\x80",
    b"\xed\xa0\x80",
    b"\xef\xbf\xbf",
)
_PROPERTIES = tuple(
    bytes([identifier])
    for identifier in (1, 2, 3, 8, 9, 11, 17, 18, 19, 21, 22, 23, 24, 25, 26, 28, 31, 33, 34, 35, 36, 37, 38, 39, 40, 41, 42)
)
_WEBSOCKET = (
    b"\x82\x80\0\0\0\0",
    b"\x02\x80\0\0\0\0",
    b"\x80\x80\0\0\0\0",
    b"\x89\x80\0\0\0\0",
    b"\x88\x82\0\0\0\0\x03\xe8",
    b"\x82\xfe\0\x7e\0\0\0\0",
    b"\x82\0",
    b"\x89\0",
    b"\x88\x02\x03\xe8",
)
_TOPICS = (b"/", b"+", b"#", b"/#", b"+/", b"$", b"$SYS/", b"$share/", b"a/b", b"\0")
_TOML = (
    b"[[listeners]]\n",
    b"[limits]\n",
    b"[auth]\n",
    b"[tls]\n",
    b"[http]\n",
    b"[log]\n",
    b"[durability]\n",
    b"[broker]\n",
    b"url = ",
    b"workers = ",
    b"anonymous = ",
    b'"tcp://127.0.0.1:0"',
    b'"unix:/x?mode=600"',
    b'"wss://[::1]:1/mqtt?origins=*"',
    b"mqtt://",
    b"mqtts://",
    b"ws://",
    b"quic://",
    b"true",
    b"false",
    b'"loopback"',
    b"-1",
    b"1e400",
    b"99999999999999999999",
    b"[]",
    b"{}",
    b"nan",
    b"1979-05-27T07:32:00Z",
    b"max_packet_size = ",
    b"mode = ",
    b'"synced"',
    b"path = ",
)
_ACL = (
    b"[[rules]]\n", b"[[owners]]\n", b"[groups]\n", b"topics = ", b"allow = ", b"deny = ", b"users = ", b"groups = ", b"clients = ",
    b"listeners = ", b"anonymous = ", b"client_ids = ", b"superusers = ", b"superuser_groups = ", b"default = ", b"denied_publish = ",
    b'"all"', b'["all"]', b'["publish"]', b'["subscribe", "receive"]', b'["retain", "will"]', b'["a/%c/#", "%u/+"]', b'["*"]', b'["main"]',
    b'"allow"', b'"deny"', b"true", b"[]", b"%c", b"%u", b"%%", b"+", b"#", b"/", b"*", b"?", b"$SYS", b"$share/g/", b"\0", b"\t", b"\n",
    b"publish\t", b"subscribe\t", b"receive\t", b"retain\t", b"will\t", b"\t-\t", b"\tmain", b"\tother",
)  # fmt: skip
_CLAIMS = (
    b'"alg":"HS256"', b'"alg":"HS512"', b'"alg":"RS256"', b'"alg":"PS256"', b'"alg":"ES256"', b'"alg":"EdDSA"', b'"alg":"none"',
    b'"kid":"a"', b'"kid":[]', b'"crit":["exp"]', b'"b64":false', b'"typ":"JWT"', b'"zip":"DEF"', b'"jwk":{}', b'"sub":"a"', b'"exp":',
    b'"nbf":', b'"iat":', b'"iss":"me"', b'"aud":"mqtt"', b'"aud":["mqtt"]', b'"cid":"c"', b'"user":{"name":"user"}', b'"user.name":"user"',
    b'"acl":', b'"groups":', b'"mqtt":{"acl":', b'{"publish":["a/#"]}', b'{"topics":["a"],"actions":["will"],"allow":false}', b"4102444800",
    b'"4102444800"', b"1e400", b"-1", b"NaN", b"Infinity", b"true", b"null", b"[]", b"{}", b'"\\ud800"', b'"\\u0000"',
    b"{", b"}", b"[", b"]", b",", b":", b"\0",
)  # fmt: skip
_KEY_SET = (
    b'{"keys":[', b'"kty":"RSA"', b'"kty":"EC"', b'"kty":"OKP"', b'"kty":"oct"', b'"n":"RSA_N"', b'"e":"AQAB"', b'"d":"RSA_D"',
    b'"crv":"P-256"', b'"crv":"P-384"', b'"crv":"Ed25519"', b'"crv":"Ed448"', b'"x":"EC_X"', b'"y":"EC_Y"', b'"x":"ED_X"', b'"d":"ED_D"',
    b'"kid":[]', b'"kid":null', b'"use":"enc"', b'"key_ops":["sign"]', b'"key_ops":["verify"]', b'"alg":5', b'"k":"AAAA"', b'"x5c":[]',
)  # fmt: skip


def _frame(kind: int, flags: int, stream: int, body: bytes) -> bytes:
    return struct.pack(">I", len(body))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + body


_H2 = (
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    _frame(4, 0, 0, b""),
    _frame(4, 1, 0, b""),
    _frame(6, 0, 0, bytes(8)),
    _frame(8, 0, 0, b"\0\0\x10\0"),
    _frame(3, 0, 1, bytes(4)),
    _frame(7, 0, 0, bytes(8)),
    _frame(0, 1, 1, b"x"),
    _frame(1, 5, 1, b"\x82\x84\x86\x41\x01a"),
    _frame(2, 0, 1, bytes(5)),
)

_WORDS: dict[str, tuple[bytes, ...]] = {
    "decode": _MQTT + _PROPERTIES,
    "recode": _MQTT + _PROPERTIES,
    "properties": (*_PROPERTIES, b"\x00\x01a", b"\x00\x00", b"\xff\xff\xff\x7f", b"\x00\x00\x00\x01"),
    "text": (b"\xf0\x9f\x98\x80", b"\xed\xa0\x80", b"\xc0\x80", b"\xef\xbf\xbf", b"\xf4\x90\x80\x80", b"+", b"#", b"aaaaaaaa"),
    "topics": _TOPICS,
    "ws_frame": _WEBSOCKET,
    "ws_answer": _HTTP,
    "ws_server": _WEBSOCKET,
    "ws_client": _WEBSOCKET,
    "proxy": _PROXY,
    "codec": _MQTT + _PROPERTIES,
    "config": _TOML,
    "url": (*_TOML, b"?", b"&", b"=", b"[", b"]", b"%", b":", b"@", b"/"),
    "passwords": (b"\n", b":", b"#", b"$argon2id$v=19$m=19456,t=2,p=1$", b"$7$101$", b"$6$", b"SCRAM-SHA-256$4096:", b"$", b"==", b"AAAA"),
    "scram": (b"n,,", b"y,,", b"p=tls-unique,,", b"n=user", b",r=", b"c=biws", b",r=NONCE", b",p=", b"=2C", b"=3D", b",m=", b"\0", b"AAAA"),
    "acl": _ACL,
    "jwt": _CLAIMS,
    "key_set": _KEY_SET + _CLAIMS,
    "http1": _HTTP,
    "http2": _H2,
}


def path_of(name: str) -> Path:
    return FOLDER / f"{name}.txt"


def words(name: str) -> tuple[bytes, ...]:
    return _WORDS.get(name, ())


def read(name: str) -> list[bytes]:
    path = path_of(name)
    return [bytes.fromhex(line) for line in path.read_text("ascii").splitlines()] if path.is_file() else []


def write(name: str, inputs: Iterable[bytes]) -> None:
    """The shortest first, so that a change is easy to read."""
    FOLDER.mkdir(exist_ok=True)
    ordered = sorted(set(inputs), key=lambda data: (len(data), data))
    path_of(name).write_text("".join(data.hex() + "\n" for data in ordered), "ascii")
