"""Packets that a server must refuse, as tables: (statements, packet, reason codes that are allowed in version 5).

Each row is sent on a connection of its own. A version 3 connection must end without another packet (before CONNACK: without
any). A version 5 connection may be told first: by CONNACK before the connection is accepted, by DISCONNECT after it. In no
case may the packet have an effect: a watcher subscribed to everything sees nothing.
"""

from __future__ import annotations

import pytest

from ..rawclient import CONNACK, DISCONNECT, Will, connect_packet, hexed, packet, properties, publish_packet, string
from .conftest import Clients
from .statements import spec

pytestmark = pytest.mark.transport

MALFORMED, PROTOCOL = 0x81, 0x82


def row(version: str, statements: str, label: str, data: str | bytes, *codes: int) -> object:
    """One row of a table; `statements` are ids without their prefix, blank-separated."""
    marks = [spec(version, *(f"MQTT-{s}" for s in statements.split()))]
    raw = hexed(data) if isinstance(data, str) else data
    return pytest.param(5 if version == "5" else 4, raw, set(codes), marks=marks, id=f"v{version[0]}-{label}")


ILL_FORMED = {
    "cut": b"\xc3\x28",
    "bytes-ff-fe": b"\xff\xfe",
    "surrogate": b"\xed\xa0\x80",
    "last-surrogate": b"\xed\xbf\xbf",
    "overlong": b"\xc0\xaf",
    "overlong-3": b"\xe0\x80\xaf",
    "past-10ffff": b"\xf4\x90\x80\x80",
    "lone-continuation": b"\x80",
    "unfinished": b"a\xe2\x82",
}
NUL = b"a\x00b"


def connect_fields(version: int, field: str, value: bytes) -> bytes:
    """A CONNECT with `value` in one of its string fields."""
    will = Will(value if field == "will-topic" else "w") if field.startswith("will") else None
    if version == 5 and field == "will-property":
        will = Will("w", props=((0x26, (b"k", value)),))
    return connect_packet(
        value if field == "client-id" else "c1",
        version,
        will=will,
        username=value if field == "user-name" else None,
        props=((0x26, (value, b"v")),) if field == "property" else (),
    )


def v(version: str) -> int:
    return 5 if version == "5" else 4


UTF8 = {"3.1.1": "1.5.3-1", "5": "1.5.4-1"}
NO_NUL = {"3.1.1": "1.5.3-2", "5": "1.5.4-2"}
FIELD_STATEMENTS = {
    ("3.1.1", "client-id"): "3.1.3-4", ("5", "client-id"): "3.1.3-4", ("3.1.1", "will-topic"): "3.1.3-10",
    ("5", "will-topic"): "3.1.3-11", ("3.1.1", "user-name"): "3.1.3-11", ("5", "user-name"): "3.1.3-12",
    ("5", "property"): "1.5.7-1", ("5", "will-property"): "1.5.7-1",
}  # fmt: skip

BAD_CONNECT_STRINGS = [
    row(
        version,
        f"{(NO_NUL if bad == 'nul' else UTF8)[version]} {FIELD_STATEMENTS[version, field]}",
        f"{field}-{bad}",
        connect_fields(v(version), field, value),
        MALFORMED, 0x85, 0x90,
    )
    for version in ("3.1.1", "5")
    for field in ("client-id", "will-topic", "user-name", *(("property", "will-property") if version == "5" else ()))
    for bad, value in [*ILL_FORMED.items(), ("nul", NUL)]
]  # fmt: skip

BAD_CONNECT_311 = [
    row("3.1.1", "3.1.2-3", "reserved-flag", "100E00044D5154540403003C00026331"),
    row("3.1.1", "3.1.2-9", "will-flag-no-will", "100E00044D5154540406003C00026331"),
    row("3.1.1", "3.1.2-9", "will-topic-no-message", "101100044D5154540406003C00026331000177"),
    row("3.1.1", "3.1.2-11 3.1.2-13", "no-will-qos-1", "100E00044D515454040A003C00026331"),
    row("3.1.1", "3.1.2-11 3.1.4-1", "no-will-flag-but-will", "101400044D5154540402003C00026331000177000178"),
    row("3.1.1", "3.1.2-13", "no-will-qos-2", "100E00044D5154540412003C00026331"),
    row("3.1.1", "3.1.2-14", "will-qos-3", "101400044D515454041E003C00026331000177000178"),
    row("3.1.1", "3.1.2-15 3.1.2-11", "no-will-retain", "100E00044D5154540422003C00026331"),
    row("3.1.1", "3.1.2-18", "user-name-without-flag", "101100044D5154540402003C00026331000175"),
    row("3.1.1", "3.1.2-19", "user-name-missing", "100E00044D5154540482003C00026331"),
    row("3.1.1", "3.1.2-20", "password-without-flag", "101400044D5154540482003C00026331000175000170"),
    row("3.1.1", "3.1.2-21", "password-missing", "101100044D51545404C2003C00026331000175"),
    row("3.1.1", "3.1.2-22", "password-without-user-name", "101100044D5154540442003C00026331000170"),
    row("3.1.1", "3.1.3-3 3.1.4-1", "no-payload", "100A00044D5154540402003C"),
    row("3.1.1", "3.1.3-4", "client-id-not-utf8", "100E00044D5154540402003C0002FFFE"),
    row("3.1.1", "3.1.4-1", "truncated-client-id", "100D00044D5154540402003C000563"),
    row("3.1.1", "3.1.4-1", "trailing-bytes", "100F00044D5154540402003C0002633100"),
    row("3.1.1", "3.1.4-1 2.2.2-2", "fixed-header-flags", "110E00044D5154540402003C00026331"),
    row("3.1.1", "3.1.4-1", "empty", "1000"),
    row("3.1.1", "3.1.4-1", "cut-in-keep-alive", "100900044D515454040200"),
    row("3.1.1", "3.1.2-1", "name-MQTX", "100E00044D5154580402003C00026331"),
    row("3.1.1", "3.1.2-1", "name-lower-case", "100E00046D7174740402003C00026331"),
    row("3.1.1", "3.1.2-1", "name-empty", "100A00000402003C00026331"),
]

BAD_CONNECT_5 = [
    row("5", "3.1.2-3", "reserved-flag", "100F00044D5154540503003C0000026331", MALFORMED),
    row("5", "3.1.2-9", "will-flag-no-will", "100F00044D5154540506003C0000026331", MALFORMED),
    row("5", "3.1.2-9", "will-payload-missing", "101300044D5154540506003C000002633100000177", MALFORMED),
    row("5", "3.1.2-11", "no-will-qos-1", "100F00044D515454050A003C0000026331", MALFORMED),
    row("5", "3.1.2-11", "no-will-qos-2", "100F00044D5154540512003C0000026331", MALFORMED),
    row("5", "3.1.2-12", "will-qos-3", "101600044D515454051E003C000002633100000177000178", MALFORMED),
    row("5", "3.1.2-13", "no-will-retain", "100F00044D5154540522003C0000026331", MALFORMED),
    row("5", "3.1.2-16", "user-name-without-flag", "101200044D5154540502003C0000026331000175", MALFORMED),
    row("5", "3.1.2-17", "user-name-missing", "100F00044D5154540582003C0000026331", MALFORMED),
    row("5", "3.1.2-18", "password-without-flag", "101500044D5154540582003C0000026331000175000170", MALFORMED),
    row("5", "3.1.2-19", "password-missing", "101200044D51545405C2003C0000026331000175", MALFORMED),
    row("5", "3.1.3-3", "no-payload", "100B00044D5154540502003C00", MALFORMED),
    row("5", "3.1.3-4 1.5.4-1", "client-id-not-utf8", "100F00044D5154540502003C000002FFFE", MALFORMED, 0x85),
    row("5", "3.1.4-1", "truncated-client-id", "100E00044D5154540502003C00000563", MALFORMED),
    row("5", "3.1.4-1", "trailing-byte", "101000044D5154540502003C000002633100", MALFORMED),
    row("5", "3.1.4-1 4.13.1-1", "unknown-property", "101100044D5154540502003C027F0000026331", MALFORMED),
    row("5", "3.1.4-1 4.13.1-1", "property-of-connack", "101200044D5154540502003C0313000A00026331", MALFORMED),
    row("5", "3.1.4-1 4.13.1-1", "receive-maximum-repeated",
        "101500044D5154540502003C0621000A21000A00026331", PROTOCOL),
    row("5", "3.1.4-1 3.3.4-9", "receive-maximum-0", "101200044D5154540502003C0321000000026331", PROTOCOL),
    row("5", "3.1.4-1", "maximum-packet-size-0", "101400044D5154540502003C05270000000000026331", PROTOCOL),
    row("5", "3.1.4-1", "request-problem-2", "101100044D5154540502003C02170200026331", PROTOCOL),
    row("5", "3.1.4-1", "request-response-2", "101100044D5154540502003C02190200026331", PROTOCOL),
    row("5", "3.1.4-1", "session-expiry-repeated",
        "101900044D5154540502003C0A1100000001110000000100026331", PROTOCOL),
    row("5", "3.1.4-1", "auth-data-without-method", "101300044D5154540502003C041600015800026331", PROTOCOL),
    row("5", "3.1.4-1", "property-cut", "101100044D5154540502003C02210000026331", MALFORMED),
    row("5", "3.1.4-1", "will-delay-repeated",
        connect_packet("c1", 5, will=Will("w", props=((0x18, 1), (0x18, 1)))), PROTOCOL),
    row("5", "3.1.4-1", "will-property-of-connect", connect_packet("c1", 5, will=Will("w", props=((0x11, 1),))), MALFORMED),
    row("5", "3.1.4-1", "will-payload-format-2", connect_packet("c1", 5, will=Will("w", props=((0x01, 2),))), PROTOCOL),
    row("5", "1.5.5-1", "property-length-overlong", "101000044D5154540502003C800000026331", MALFORMED),
    row("5", "1.5.5-1", "remaining-length-overlong", "108F0000044D5154540502003C0000026331", MALFORMED),
    row("5", "1.5.5-1", "remaining-length-5-bytes", "10FFFFFFFF01", MALFORMED),
    row("5", "2.1.3-1", "fixed-header-flags", "110F00044D5154540502003C0000026331", MALFORMED),
    row("5", "3.1.2-1", "name-MQTX", "100F00044D5154580502003C0000026331", 0x84, MALFORMED),
    row("5", "3.1.2-1", "name-lower-case", "100F00046D7174740502003C0000026331", 0x84, MALFORMED),
    row("5", "3.1.2-1", "name-3-bytes", "100E00034D51540502003C0000026331", 0x84, MALFORMED),
    row("5", "4.7.0-1", "will-topic-wildcard", connect_packet("c1", 5, will=Will("a/#")), MALFORMED, PROTOCOL, 0x90),
    row("5", "3.3.2-14", "will-response-topic-wildcard",
        connect_packet("c1", 5, will=Will("a", props=((0x08, "a/+"),))), MALFORMED, PROTOCOL, 0x90),
    row("5", "4.7.3-1", "will-topic-empty", connect_packet("c1", 5, will=Will("")), MALFORMED, PROTOCOL, 0x90),
]  # fmt: skip

WILL_TOPIC_311 = [
    row("3.1.1", "4.7.1-1 3.3.2-2", "will-topic-hash", connect_packet("c1", 4, will=Will("a/#"))),
    row("3.1.1", "4.7.1-1 3.3.2-2", "will-topic-plus", connect_packet("c1", 4, will=Will("+/a"))),
    row("3.1.1", "4.7.3-1", "will-topic-empty", connect_packet("c1", 4, will=Will(""))),
]

# What a connection may not begin with.
NOT_CONNECT = [
    row("3.1.1", "3.1.0-1", "pingreq", "C000"),
    row("3.1.1", "3.1.0-1", "subscribe", "8206000100016100"),
    row("3.1.1", "3.1.0-1", "publish", "300400016178"),
    row("3.1.1", "3.1.0-1 4.8.0-1", "connack", "20020000"),
    row("3.1.1", "3.1.0-1", "disconnect", "E000"),
    row("3.1.1", "3.1.0-1 4.8.0-1", "type-0", "0000"),
    row("3.1.1", "3.1.0-1 4.8.0-1", "type-15", "F000"),
    row("5", "3.1.0-1 3.14.0-1", "pingreq", "C000"),
    row("5", "3.1.0-1 3.14.0-1", "auth", "F000"),
    row("5", "3.1.0-1 3.14.0-1", "publish", "30050001610078"),
    row("5", "3.1.0-1 3.14.0-1", "subscribe", "820700010000016100"),
    row("5", "3.1.0-1 3.14.0-1 4.13.1-1", "type-0", "0000"),
]


@pytest.mark.parametrize(("version", "data", "codes"), BAD_CONNECT_STRINGS + BAD_CONNECT_311 + BAD_CONNECT_5 + WILL_TOPIC_311 + NOT_CONNECT)
@spec("3.1.1", "MQTT-3.1.4-1")
@spec("5", "MQTT-3.14.0-1", "MQTT-4.13.1-1", "MQTT-4.13.2-1", "MQTT-3.2.2-7")
def test_refused_before_connack(clients: Clients, version: int, data: bytes, codes: set[int]) -> None:
    peer = clients.raw(version)
    peer.send(data)
    got = peer.expect_close()
    if version == 4:
        assert got == []
        return
    assert [p.type for p in got] in ([], [CONNACK])
    for connack in got:
        assert connack.reason in codes, f"CONNACK {connack.reason:#x}, allowed {[hex(c) for c in codes]}"
        assert not connack.session_present


BAD_STRINGS = [
    row(
        version,
        f"{(NO_NUL if bad == 'nul' else UTF8)[version]} {statement}",
        f"{kind}-{bad}",
        make(v(version), value),
        MALFORMED,
    )
    for version in ("3.1.1", "5")
    for kind, statement, make in (
        ("publish", "3.3.2-1", lambda n, t: publish_packet(t, b"x", n)),
        ("subscribe", "3.8.3-1", lambda n, t: packet(0x82, b"\0\1" + b"\0" * (n == 5) + string(t) + b"\0")),
        ("unsubscribe", "3.10.3-1", lambda n, t: packet(0xA2, b"\0\1" + b"\0" * (n == 5) + string(t))),
    )
    for bad, value in [*ILL_FORMED.items(), ("nul", NUL)]
] + [
    row("5", f"{'1.5.4-2' if bad == 'nul' else '1.5.4-1'} {statement}", f"publish-{kind}-{bad}",
        publish_packet("a", b"x", 5, props=((identifier, make(value)),)), MALFORMED)
    for kind, statement, identifier, make in (
        ("response-topic", "3.3.2-13", 0x08, lambda t: t),
        ("content-type", "3.3.2-19", 0x03, lambda t: t),
        ("user-property-name", "1.5.7-1", 0x26, lambda t: (t, b"v")),
        ("user-property-value", "1.5.7-1", 0x26, lambda t: (b"k", t)),
    )
    for bad, value in [*ILL_FORMED.items(), ("nul", NUL)]
]  # fmt: skip

BAD_311 = [
    row("3.1.1", "2.2.2-2", "pingreq-flags", "C100"),
    row("3.1.1", "2.2.2-2", "puback-flags", "41020001"),
    row("3.1.1", "2.2.2-2", "pubrec-flags", "51020001"),
    row("3.1.1", "2.2.2-2", "pubcomp-flags", "71020001"),
    row("3.1.1", "2.2.2-2 3.14.1-1", "disconnect-flags", "E100"),
    row("3.1.1", "2.3.1-1", "subscribe-id-0", "8206000000016100"),
    row("3.1.1", "2.3.1-1", "unsubscribe-id-0", "A2050000000161"),
    row("3.1.1", "2.3.1-1", "publish-qos-1-id-0", "3206000161000078"),
    row("3.1.1", "2.3.1-1", "publish-qos-2-id-0", "3406000161000078"),
    row("3.1.1", "3.1.0-2", "second-connect", "100E00044D5154540402003C00026331"),
    row("3.1.1", "3.3.1-2", "qos-0-dup", "380400016178"),
    row("3.1.1", "3.3.1-4", "qos-3", "3606000161000178"),
    row("3.1.1", "3.3.1-4", "qos-3-dup-retain", "3F06000161000178"),
    row("3.1.1", "3.3.2-1", "publish-topic-cut", "300100"),
    row("3.1.1", "3.3.2-1", "publish-topic-past-end", "30020005"),
    row("3.1.1", "3.3.2-1", "publish-empty", "3000"),
    row("3.1.1", "3.3.2-1", "publish-qos-1-no-id", "3203000161"),
    row("3.1.1", "3.3.2-2 4.7.1-1", "publish-hash", "30060003612F2378"),
    row("3.1.1", "3.3.2-2 4.7.1-1", "publish-plus", "30060003612F2B78"),
    row("3.1.1", "4.7.3-1", "publish-empty-topic", "3003000078"),
    row("3.1.1", "4.7.3-2", "publish-nul", "3006000361006278"),
    row("3.1.1", "4.7.3-2", "subscribe-nul", "82080001000361006200"),
    row("3.1.1", "3.6.1-1", "pubrel-flags-0", "60020001"),
    row("3.1.1", "3.6.1-1", "pubrel-flags-3", "63020001"),
    row("3.1.1", "3.6.1-1", "pubrel-flags-6", "66020001"),
    row("3.1.1", "3.8.1-1", "subscribe-flags-0", "8006000100016100"),
    row("3.1.1", "3.8.1-1", "subscribe-flags-3", "8306000100016100"),
    row("3.1.1", "3.8.3-1", "subscribe-filter-past-end", "8206000100096100"),
    row("3.1.1", "3.8.3-3", "subscribe-no-filter", "82020001"),
    row("3.1.1", "3.8.3-4", "subscribe-qos-3", "8206000100016103"),
    row("3.1.1", "3.8.3-4", "subscribe-option-4", "8206000100016104"),
    row("3.1.1", "3.8.3-4", "subscribe-option-80", "8206000100016180"),
    row("3.1.1", "3.8.3-4", "subscribe-no-qos", "82050001000161"),
    row("3.1.1", "3.10.1-1", "unsubscribe-flags-0", "A0050001000161"),
    row("3.1.1", "3.10.1-1", "unsubscribe-flags-3", "A3050001000161"),
    row("3.1.1", "3.10.3-2", "unsubscribe-no-filter", "A2020001"),
    row("3.1.1", "4.8.0-1", "connack", "20020000"),
    row("3.1.1", "4.8.0-1", "suback", "9003000100"),
    row("3.1.1", "4.8.0-1", "unsuback", "B0020001"),
    row("3.1.1", "4.8.0-1", "pingresp", "D000"),
    row("3.1.1", "4.8.0-1", "type-0", "0000"),
    row("3.1.1", "4.8.0-1", "type-15", "F000"),
    row("3.1.1", "4.8.0-1", "puback-length-1", "400100"),
    row("3.1.1", "4.8.0-1", "puback-length-3", "4003000100"),
    row("3.1.1", "4.8.0-1", "pingreq-with-body", "C00100"),
    row("3.1.1", "4.8.0-1", "disconnect-with-body", "E00100"),
    row("3.1.1", "4.8.0-1", "remaining-length-5-bytes", "C0FFFFFFFF01"),
    row("3.1.1", "4.8.0-1", "remaining-length-overlong", "C08000"),
]

TOPIC_CODES = (0x90, MALFORMED, PROTOCOL)
BAD_5 = [
    row("5", "1.5.5-1", "remaining-length-overlong", "C08000", MALFORMED),
    row("5", "1.5.5-1", "property-length-overlong", "3006000161800078", MALFORMED),
    row("5", "1.5.5-1 4.13.1-1", "remaining-length-5-bytes", "C0FFFFFFFF01", MALFORMED),
    row("5", "1.5.7-1", "user-property-ill-formed", "300C00016107260001C300016278", MALFORMED),
    row("5", "2.1.3-1", "pingreq-flags", "C100", MALFORMED),
    row("5", "2.1.3-1", "puback-flags", "41020001", MALFORMED),
    row("5", "2.1.3-1", "pubrec-flags", "51020001", MALFORMED),
    row("5", "2.1.3-1", "pubcomp-flags", "71020001", MALFORMED),
    row("5", "2.2.1-3", "subscribe-id-0", "820700000000016100", MALFORMED, PROTOCOL),
    row("5", "2.2.1-3", "unsubscribe-id-0", "A206000000000161", MALFORMED, PROTOCOL),
    row("5", "2.2.1-3", "publish-qos-1-id-0", "320700016100000078", MALFORMED, PROTOCOL),
    row("5", "2.2.1-3", "publish-qos-2-id-0", "340700016100000078", MALFORMED, PROTOCOL),
    row("5", "2.2.2-1", "subscribe-without-properties", "8206000100016100", MALFORMED),
    row("5", "3.1.0-2 3.2.0-2", "second-connect", "100F00044D5154540502003C0000026331", PROTOCOL),
    row("5", "3.3.1-2", "qos-0-dup", "38050001610078", MALFORMED, PROTOCOL),
    row("5", "3.3.1-4", "qos-3", "360700016100010078", MALFORMED),
    row("5", "3.3.2-1", "publish-topic-past-end", "30020005", MALFORMED),
    row("5", "3.3.2-1", "publish-empty", "3000", MALFORMED),
    row("5", "3.3.2-1", "publish-properties-past-end", "30050001610578", MALFORMED),
    row("5", "3.3.2-2 4.7.0-1", "publish-plus", "30070003612F2B0078", *TOPIC_CODES),
    row("5", "3.3.2-2 4.7.0-1", "publish-hash", "30070003612F230078", *TOPIC_CODES),
    row("5", "4.7.3-1", "publish-empty-topic", "300400000078", PROTOCOL),
    row("5", "4.7.3-2", "publish-nul", "300700036100620078", MALFORMED),
    row("5", "4.7.3-2", "subscribe-nul", "8209000100000361006200", MALFORMED),
    row("5", "3.3.2-8", "alias-0", "30080001610323000078", 0x94),
    row("5", "3.3.2-9 3.2.2-17 3.2.2-18", "alias-above-any-maximum", "30080001610323FFFF78", 0x94),
    row("5", "3.3.2-7", "alias-never-set", "300700000323000178", PROTOCOL),
    row("5", "3.3.2-14", "response-topic-plus", "300B00016106080003612F2B78", *TOPIC_CODES),
    row("5", "3.3.2-14", "response-topic-hash", "300B00016106080003612F2378", *TOPIC_CODES),
    row("5", "3.3.4-6", "subscription-id-from-client", "3007000161020B0178", PROTOCOL),
    row("5", "4.13.1-1", "publish-unknown-property", "3007000161027F0178", MALFORMED),
    row("5", "4.13.1-1", "publish-property-of-connect", "300A00016105110000000178", MALFORMED),
    row("5", "4.13.1-1", "publish-content-type-repeated", "300D00016108030001740300017478", PROTOCOL),
    row("5", "4.13.1-1", "publish-expiry-repeated",
        publish_packet("a", b"x", 5, props=((0x02, 1), (0x02, 1))), PROTOCOL),
    row("5", "4.13.1-1", "publish-payload-format-2", "300700016102010278", PROTOCOL),
    row("5", "4.13.1-1", "publish-alias-repeated",
        publish_packet("a", b"x", 5, props=((0x23, 1), (0x23, 1))), PROTOCOL),
    row("5", "3.6.1-1", "pubrel-flags-0", "60020001", MALFORMED),
    row("5", "3.6.1-1", "pubrel-flags-3", "63020001", MALFORMED),
    row("5", "3.6.1-1", "pubrel-flags-a", "6A020001", MALFORMED),
    row("5", "3.8.1-1", "subscribe-flags-0", "800700010000016100", MALFORMED),
    row("5", "3.8.1-1", "subscribe-flags-3", "830700010000016100", MALFORMED),
    row("5", "3.8.3-1", "subscribe-filter-past-end", "820700010000096100", MALFORMED),
    row("5", "3.8.3-2", "subscribe-no-filter", "8203000100", PROTOCOL),
    row("5", "3.8.3-4", "no-local-on-shared", "8210000100000A2473686172652F672F6104", PROTOCOL),
    row("5", "3.8.3-5", "subscribe-options-40", "820700010000016140", MALFORMED),
    row("5", "3.8.3-5", "subscribe-options-80", "820700010000016180", MALFORMED),
    row("5", "3.8.3-5", "subscribe-options-c0", "8207000100000161C0", MALFORMED),
    row("5", "3.8.3-5", "subscribe-qos-3", "820700010000016103", PROTOCOL),
    row("5", "3.8.3-5", "subscribe-retain-handling-3", "820700010000016130", PROTOCOL),
    row("5", "4.13.1-1", "subscription-id-0", "82090001020B0000016100", PROTOCOL),
    row("5", "4.13.1-1", "subscription-id-repeated", "820B0001040B010B0200016100", PROTOCOL),
    row("5", "4.13.1-1", "subscribe-property-of-publish", "8209000102010100016100", MALFORMED),
    row("5", "3.10.1-1", "unsubscribe-flags-0", "A006000100000161", MALFORMED),
    row("5", "3.10.1-1", "unsubscribe-flags-3", "A306000100000161", MALFORMED),
    row("5", "3.10.3-2", "unsubscribe-no-filter", "A203000100", PROTOCOL),
    row("5", "3.4.2-1", "puback-undefined-code", "4003000105", MALFORMED, PROTOCOL),
    row("5", "3.5.2-1", "pubrec-undefined-code", "5003000105", MALFORMED, PROTOCOL),
    row("5", "3.6.2-1", "pubrel-undefined-code", "6203000180", MALFORMED, PROTOCOL),
    row("5", "3.7.2-1", "pubcomp-undefined-code", "7003000180", MALFORMED, PROTOCOL),
    row("5", "3.14.1-1", "disconnect-flags", "E100", MALFORMED),
    row("5", "3.14.2-1", "disconnect-undefined-code", "E00103", MALFORMED, PROTOCOL),
    row("5", "3.14.2-2", "disconnect-expiry-after-none", "E0070005110000003C", PROTOCOL),
    row("5", "4.13.1-1", "disconnect-property-of-connect", "E005000321000A", MALFORMED),
    row("5", "3.15.1-1", "auth-flags", "F100", MALFORMED),
    row("5", "3.15.2-1", "auth-undefined-code", "F0020100", MALFORMED, PROTOCOL),
    row("5", "4.12.0-7", "auth-without-method-in-connect", "F006190415000158", PROTOCOL),
    row("5", "4.12.0-5 4.12.0-7", "auth-without-method", "F0021800", PROTOCOL),
    row("5", "4.13.1-1", "type-0", "0000", MALFORMED, PROTOCOL),
    row("5", "4.13.1-1", "connack", "2003000000", PROTOCOL, MALFORMED),
    row("5", "4.13.1-1", "suback", "900400010000", PROTOCOL, MALFORMED),
    row("5", "4.13.1-1", "unsuback", "B00400010000", PROTOCOL, MALFORMED),
    row("5", "4.13.1-1", "pingresp", "D000", PROTOCOL, MALFORMED),
    row("5", "4.13.1-1", "subscribe-3.1.1-without-filter", "82020001", MALFORMED, PROTOCOL),
    row("5", "4.13.1-1", "puback-length-1", "400100", MALFORMED),
    row("5", "4.13.1-1", "pingreq-with-body", "C00100", MALFORMED),
]  # fmt: skip


@pytest.mark.parametrize(("version", "data", "codes"), BAD_STRINGS + BAD_311 + BAD_5)
@spec("3.1.1", "MQTT-4.8.0-1")
@spec("5", "MQTT-4.13.1-1", "MQTT-4.13.2-1", "MQTT-3.14.4-2", "MQTT-3.14.2-2")
def test_refused_after_connack(clients: Clients, name: str, version: int, data: bytes, codes: set[int]) -> None:
    watcher = clients(version)
    watcher.subscribe("#", 0)
    watcher.subscribe(f"{name}/w")
    peer = clients(version, name, will=Will(f"{name}/w", b"gone"))
    peer.send(data)
    got = peer.expect_close()
    if version == 4:
        assert got == []
    else:
        assert [p.type for p in got] in ([], [DISCONNECT])
        assert got or not clients.broker.ours, "closed without telling the reason"
        for end in got:
            assert end.reason in codes, f"DISCONNECT {end.reason:#x}, allowed {[hex(c) for c in codes]}"
    # The will shows that the end was not a normal one, and that nothing of the packet came before it.
    while True:
        message = watcher.message()
        if message.topic == f"{name}/w":
            break
        assert message.topic != "a" and not message.topic.startswith("a"), f"delivered: {message}"
    # The others are unaffected.
    watcher.ping()


FILTERS = [
    ("hash-not-alone", "a#", "4.7.1-2", "4.7.1-1"),
    ("hash-not-last", "a/#/b", "4.7.1-2", "4.7.1-1"),
    ("two-hashes", "##", "4.7.1-2", "4.7.1-1"),
    ("plus-after-text", "a+", "4.7.1-3", "4.7.1-2"),
    ("plus-before-text", "+a/b", "4.7.1-3", "4.7.1-2"),
    ("plus-inside", "a/b+c/d", "4.7.1-3", "4.7.1-2"),
    ("empty", "", "4.7.3-1", "4.7.3-1"),
    ("share-name-empty", "$share//a", "", "4.8.2-1"),
    ("share-name-plus", "$share/g+/a", "", "4.8.2-2"),
    ("share-name-hash", "$share/#/a", "", "4.8.2-2"),
    ("share-no-filter", "$share/g", "", "4.8.2-2"),
    ("share-empty-filter", "$share/g/", "", "4.8.2-2"),
    ("share-bad-filter", "$share/g/a#", "", "4.7.1-1"),
]
BAD_FILTERS = [
    pytest.param(4 if version == "3.1.1" else 5, bad, marks=spec(version, f"MQTT-{statement}"), id=f"v{version[0]}-{label}")
    for label, bad, *statements in FILTERS
    for version, statement in zip(("3.1.1", "5"), statements, strict=True)
    if statement
]


@pytest.mark.parametrize(("version", "bad"), BAD_FILTERS)
@spec("3.1.1", "MQTT-3.9.3-2")
@spec("5", "MQTT-3.9.3-2", "MQTT-3.8.4-7")
def test_bad_filter_is_never_granted(clients: Clients, version: int, bad: str) -> None:
    """Refused in SUBACK (0x8F, in 3.1.1 0x80) or by closing."""
    peer = clients(version)
    data = b"\0\1" + (properties(()) if version == 5 else b"") + string(bad) + b"\0"
    peer.send(packet(0x82, data), "C000", "E000")
    got = peer.expect_close()
    if got and got[0].type == 9:
        assert got[0].reasons == [0x8F if version == 5 else 0x80]
        assert [p.type for p in got[1:]] == [13]
    else:
        assert [p.type for p in got] in ([], [DISCONNECT] if version == 5 else [])
        assert all(p.reason in (0x8F, MALFORMED, PROTOCOL) for p in got)


@pytest.mark.parametrize(("version", "bad"), BAD_FILTERS)
@spec("5", "MQTT-3.11.3-2")
def test_bad_filter_in_unsubscribe(clients: Clients, version: int, bad: str) -> None:
    """Answered (0x8F or 0x11 in version 5) or closed, never silent."""
    peer = clients(version)
    data = b"\0\1" + (properties(()) if version == 5 else b"") + string(bad)
    peer.send(packet(0xA2, data), "E000")
    got = peer.expect_close()
    if got and got[0].type == 11:
        assert len(got) == 1
        assert got[0].reasons in ([0x8F], [0x11]) if version == 5 else got[0].packet_id == 1
    else:
        assert all(p.type == DISCONNECT and p.reason in (0x8F, MALFORMED, PROTOCOL) for p in got)


@pytest.mark.parametrize("version", [4, 5])
@spec("3.1.1", "MQTT-1.5.3-1")
@spec("5", "MQTT-1.5.4-1", "MQTT-1.5.4-2")
def test_unusual_but_legal_characters_pass(clients: Clients, name: str, version: int) -> None:
    """Control characters, non-characters and every UTF-8 length are legal and come back byte for byte."""
    topic = f"{name}/\u0001\u001f\u007f\u009f/\u00e9/\u20ac/\U0001f600/\ufffd/\ufffe/\uffff/\ue000/\ud7ff/\U0010ffff"
    peer = clients(version)
    peer.subscribe(topic)
    peer.publish(topic, topic.encode())
    assert peer.message(topic).payload == topic.encode()
