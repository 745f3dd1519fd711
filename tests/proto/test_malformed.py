"""What is not a packet, as data: (version, statements, label, bytes, reason code). Decoded natively and by the Python decoder.

Statements are ids of the version's standard without `MQTT-`; a section number stands where the standard gives no id.
"""

from __future__ import annotations

import pytest

from mqttc import codec
from tests.face import proto
from tests.proto.wire import connect, packet, section, string

MALFORMED, PROTOCOL, VERSION, TOPIC = 0x81, 0x82, 0x84, 0x90
Row = tuple[int, str, str, bytes, int]


def h(text: str) -> bytes:
    return bytes.fromhex(text)


ILL_FORMED = {
    "ff": b"\xff", "cut": b"\xc3\x28", "overlong-2": b"\xc0\xaf", "overlong-3": b"\xe0\x80\xaf", "overlong-4": b"\xf0\x80\x80\xaf",
    "surrogate": b"\xed\xa0\x80", "last-surrogate": b"\xed\xbf\xbf", "past-10ffff": b"\xf4\x90\x80\x80", "f5": b"\xf5\x80\x80\x80",
    "lone-continuation": b"\x80", "unfinished": b"long enough \xe2\x82", "nul": b"a\0b", "nul-late": b"0123456789\0",
    "bad-late": b"0123456789abcdef\xff",
}  # fmt: skip


def strings() -> list[Row]:
    rows: list[Row] = []
    for version in (3, 4, 5):
        none = b"\0" if version == 5 else b""
        ids = "1.5.4-1 1.5.4-2 4.7.3-2" if version == 5 else "1.5.3-1 1.5.3-2 4.7.3-2"
        name = string("MQIsdp" if version == 3 else "MQTT")
        first = b"\0\1" + none + string("a") + b"\0"
        for label, bad in ILL_FORMED.items():
            head = name + bytes([version])
            rows += [
                (version, f"{ids} 3.1.3-4", f"client-id-{label}", packet(0x10, head, b"\x02\0\x3c", none, string(bad)), MALFORMED),
                (version, f"{ids} 3.1.3-11", f"will-topic-{label}", connect(version, 0x06, none, string(bad), string("x")), MALFORMED),
                (version, f"{ids} 3.1.3-12", f"user-name-{label}", connect(version, 0x82, string(bad)), MALFORMED),
                (version, f"{ids} 3.3.2-1", f"topic-{label}", packet(0x30, string(bad), none, b"x"), MALFORMED),
                (version, f"{ids} 3.8.3-1", f"filter-{label}", packet(0x82, b"\0\1", none, string(bad), b"\0"), MALFORMED),
                (version, f"{ids} 3.8.3-1", f"second-{label}", packet(0x82, first, string(bad), b"\0"), MALFORMED),
                (version, f"{ids} 3.10.3-1", f"unsubscribe-{label}", packet(0xA2, b"\0\1", none, string(bad)), MALFORMED),
            ]
    return rows


def connects() -> list[Row]:
    rows: list[Row] = []
    for version in (3, 4, 5):
        none = b"\0" if version == 5 else b""
        will = none + string("w") + string("x")
        rows += [
            (version, "3.1.2-11", "will-qos-without-will", connect(version, 0x0A), MALFORMED),
            (version, "3.1.2-13", "will-retain-without-will", connect(version, 0x22), MALFORMED),
            (version, "3.1.2-12", "will-qos-3", connect(version, 0x1E, will), MALFORMED),
            (version, "3.1.2-9", "will-missing", connect(version, 0x06), MALFORMED),
            (version, "3.1.2-9", "will-payload-missing", connect(version, 0x06, none, string("w")), MALFORMED),
            (version, "4.7.0-1", "will-topic-wildcard", connect(version, 0x06, none, string("a/#"), string("x")), TOPIC),
            (version, "4.7.3-1", "will-topic-empty", connect(version, 0x06, none, string(""), string("x")), TOPIC),
            (version, "3.1.2-16", "trailing-user-name", connect(version, 0x02, string("u")), MALFORMED),
            (version, "3.1.2-18", "trailing-password", connect(version, 0x82, string("u"), string("p")), MALFORMED),
            (version, "3.1.2-16", "trailing-byte", connect(version, 0x02, b"\0"), MALFORMED),
            (version, "3.1.2-17", "user-name-past-the-end", connect(version, 0x82, b"\0\x02u"), MALFORMED),
            (version, "3.1.2-1", "no-name", b"\x10\x00", MALFORMED),
            (version, "3.1.2-1", "name-past-the-end", h("1002 0004"), MALFORMED),
            (version, "3.1.2-1", "level-missing", packet(0x10, string("MQTT")), MALFORMED),
            (version, "3.1.2-1", "wrong-name", connect(version, name="MQTX"), MALFORMED),
            (version, "3.1.2-1", "name-in-lower-case", connect(version, name="mqtt"), MALFORMED),
            (version, "3.1.2-1", "short-name", connect(version, name="MQT"), MALFORMED),
            (version, "3.1.2-2", "level-6", connect(version, level=6), VERSION),
            (version, "3.1.2-2", "level-0", connect(version, level=0), VERSION),
            (version, "3.1.2-2", "level-133", connect(version, level=0x85), VERSION),
            (version, "3.1.2-2", "other-name", connect(version, name="MQTT" if version == 3 else "MQIsdp"), VERSION),
        ]
        if version > 3:
            rows += [
                (version, "2.1.3-1", "reserved-header-flag", connect(version, first=0x11), MALFORMED),
                (version, "3.1.2-3", "reserved-flag", connect(version, 0x03), MALFORMED),
                (version, "3.1.2-17", "user-name-missing", connect(version, 0x82), MALFORMED),
                (version, "3.1.2-19", "password-missing", connect(version, 0xC2, string("u")), MALFORMED),
            ]
        if version < 5:
            rows.append((version, "3.1.2-22", "password-without-user-name", connect(version, 0x42, string("p")), MALFORMED))
    rows += [
        (4, "3.1.3-3", "no-client-id", packet(0x10, string("MQTT"), h("0402003C")), MALFORMED),
        (5, "3.1.3-3", "no-client-id", packet(0x10, string("MQTT"), h("0502003C00")), MALFORMED),
        (5, "2.2.2-1", "no-properties", packet(0x10, string("MQTT"), h("0502003C"), string("c1")), MALFORMED),
    ]
    return rows


def others() -> list[Row]:
    rows: list[Row] = []
    for version in (3, 4, 5):
        none = b"\0" if version == 5 else b""
        ids = "2.1.3-1" if version == 5 else "2.2.2-2"
        rows += [
            (version, "2.1.2", "type-0", b"\x00\x00", MALFORMED),
            (version, "3.3.1-4", "qos-3", packet(0x36, string("a"), b"\0\1", none, b"x"), MALFORMED),
            (version, "2.2.1-3", "publish-id-0", packet(0x32, string("a"), b"\0\0", none, b"x"), PROTOCOL),
            (version, "2.2.1-3", "publish-id-missing", packet(0x32, string("a")), MALFORMED),
            (version, "2.2.1-3", "publish-id-cut", packet(0x32, string("a"), b"\0"), MALFORMED),
            (version, "3.3.2-1", "topic-past-the-end", h("3002 0005"), MALFORMED),
            (version, "3.3.2-1", "no-topic", h("3001 00"), MALFORMED),
            (version, "3.3.2-2", "topic-hash", packet(0x30, string("a/#"), none, b"x"), TOPIC),
            (version, "3.3.2-2", "topic-plus", packet(0x30, string("a/+/long enough to be read by words"), none, b"x"), TOPIC),
            (version, "3.3.2-2", "topic-plus-late", packet(0x30, string("long enough to be read by words/+"), none, b"x"), TOPIC),
            (version, "3.3.2-2", "topic-wildcard-after-other-text", packet(0x30, string("été/+"), none, b"x"), TOPIC),
            (version, "4.7.3-1", "topic-empty", packet(0x30, string(""), none, b"x"), PROTOCOL),
            (version, "2.2.1-3", "subscribe-id-0", packet(0x82, b"\0\0", none, string("a"), b"\0"), PROTOCOL),
            (version, "2.2.1-3", "unsubscribe-id-0", packet(0xA2, b"\0\0", none, string("a")), PROTOCOL),
            (version, "3.8.3-2", "subscribe-empty", packet(0x82, b"\0\1", none), PROTOCOL),
            (version, "3.10.3-2", "unsubscribe-empty", packet(0xA2, b"\0\1", none), PROTOCOL),
            (version, "3.8.3-1", "filter-past-the-end", packet(0x82, b"\0\1", none, b"\0\x09a\0"), MALFORMED),
            (version, "3.8.3-1", "options-missing", packet(0x82, b"\0\1", none, string("a")), MALFORMED),
            (version, "3.8.3-1", "second-filter-cut", packet(0x82, b"\0\1", none, string("a"), b"\0", b"\0"), MALFORMED),
            (version, "3.10.3-1", "unsubscribe-past-the-end", packet(0xA2, b"\0\1", none, b"\0\x09a"), MALFORMED),
            (version, "3.8", "subscribe-id-cut", packet(0x82, b"\0"), MALFORMED),
            (version, "3.12", "pingreq-with-body", h("C00100"), MALFORMED),
            (version, "3.13", "pingresp-with-body", h("D00100"), MALFORMED),
            (version, "3.2", "connack-empty", h("2000"), MALFORMED),
            (version, "3.2", "connack-cut", h("200100"), MALFORMED),
            (version, "3.9.3-2", "suback-empty", packet(0x90, b"\0\1", none), PROTOCOL),
            (version, "3.9.3-2", "suback-code-3", packet(0x90, b"\0\1", none, b"\x03"), PROTOCOL),
            (version, "3.9.3-2", "suback-code-7f", packet(0x90, b"\0\1", none, b"\x7f"), PROTOCOL),
            (version, "2.2.1-3", "suback-id-0", packet(0x90, b"\0\0", none, b"\0"), PROTOCOL),
            (version, "2.2.1-3", "unsuback-id-cut", packet(0xB0, b"\0"), MALFORMED),
        ]
        for kind in (0x40, 0x50, 0x62, 0x70):
            rows += [
                (version, "2.2.1-5", f"ack-{kind:02x}-empty", packet(kind), MALFORMED),
                (version, "2.2.1-5", f"ack-{kind:02x}-cut", packet(kind, b"\0"), MALFORMED),
                (version, "2.2.1-5", f"ack-{kind:02x}-id-0", packet(kind, b"\0\0"), PROTOCOL),
            ]
            if version < 5:
                rows.append((version, "3.4", f"ack-{kind:02x}-trailing", packet(kind, b"\0\1\0"), MALFORMED))
            else:
                rows += [
                    (5, "3.4.2-1", f"ack-{kind:02x}-unknown-reason", packet(kind, b"\0\1\x05"), PROTOCOL),
                    (5, "3.4.2-1", f"ack-{kind:02x}-reason-of-another", packet(kind, b"\0\1\x8e"), PROTOCOL),
                    (5, "3.4.2", f"ack-{kind:02x}-trailing", packet(kind, b"\0\1\0\0\0"), MALFORMED),
                ]
        if version > 3:
            for first, rest in [
                *((kind | flag, b"\0\1") for kind, flag in [(0x40, 1), (0x50, 8), (0x60, 0), (0x60, 3), (0x60, 0xA), (0x70, 2)]),
                *((kind, b"\0\1" + none + string("a") + b"\0") for kind in (0x80, 0x81, 0x83, 0x8A)),
                *((kind, b"\0\1" + none + string("a")) for kind in (0xA0, 0xA3)),
                (0x21, b"\0\0" + none), (0x92, b"\0\1" + none + b"\0"), (0xB1, b"\0\1" + (none and b"\0\0")),
                (0xC1, b""), (0xD8, b""), (0xE1, b""),
            ]:  # fmt: skip
                rows.append((version, ids, f"flags-{first:02x}", packet(first, rest), MALFORMED))
            rows += [
                (version, "3.3.1-2", "dup-with-qos-0", packet(0x38, string("a"), none, b"x"), MALFORMED),
                (version, "3.2.2-1", "connack-flags", packet(0x20, b"\2\0", none), MALFORMED),
                (version, "3.2.2-6", "session-present-with-refusal", h("20020105" if version == 4 else "2003018700"), PROTOCOL),
            ]
        if version < 5:
            rows += [
                (version, "3.8.3-4", "subscribe-qos-3", packet(0x82, b"\0\1", string("a"), b"\x03"), MALFORMED),
                (version, "3.8.3-4", "subscribe-reserved-4", packet(0x82, b"\0\1", string("a"), b"\x04"), MALFORMED),
                (version, "3.8.3-4", "subscribe-reserved-80", packet(0x82, b"\0\1", string("a"), b"\x80"), MALFORMED),
                (version, "3.2.2.3", "connack-code-6", h("20020006"), PROTOCOL),
                (version, "3.2", "connack-trailing", h("2003000000"), MALFORMED),
                (version, "3.11", "unsuback-trailing", h("B003000100"), MALFORMED),
                (version, "3.9.3-2", "suback-code-of-5", h("9003000187"), PROTOCOL),
                (version, "3.14", "disconnect-with-body", h("E00100"), MALFORMED),
                (version, "2.2.1", "auth", h("F000"), MALFORMED),
            ]
    rows += [
        (5, "3.8.3-5", "options-reserved-40", packet(0x82, h("000100"), string("a"), b"\x40"), MALFORMED),
        (5, "3.8.3-5", "options-reserved-80", packet(0x82, h("000100"), string("a"), b"\x80"), MALFORMED),
        (5, "3.8.3.1", "options-qos-3", packet(0x82, h("000100"), string("a"), b"\x03"), PROTOCOL),
        (5, "3.8.3.1", "options-retain-handling-3", packet(0x82, h("000100"), string("a"), b"\x30"), PROTOCOL),
        (5, "2.2.2-1", "publish-without-properties", h("3003000161"), MALFORMED),
        (5, "2.2.2-1", "subscribe-without-properties", h("820600010001 6100"), MALFORMED),
        (5, "2.2.2-1", "connack-without-properties", h("20020000"), MALFORMED),
        (5, "3.2.2-8", "connack-reason-8d", h("2003008D00"), PROTOCOL),
        (5, "3.2", "connack-trailing", h("200400000000"), MALFORMED),
        (5, "3.9.3-2", "suback-reason-11", packet(0x90, h("000100"), b"\x11"), PROTOCOL),
        (5, "3.11.3-2", "unsuback-reason-01", packet(0xB0, h("000100"), b"\x01"), PROTOCOL),
        (5, "3.11.3-1", "unsuback-empty", packet(0xB0, h("000100")), PROTOCOL),
        (5, "3.14.2-1", "disconnect-reason-01", h("E00101"), PROTOCOL),
        (5, "3.14.2", "disconnect-trailing", h("E003000000"), MALFORMED),
        (5, "3.14.1-1", "disconnect-flags", h("E10100"), MALFORMED),
        (5, "3.15.1-1", "auth-flags", packet(0xF1, b"\x18", section(b"\x15" + string("m"))), MALFORMED),
        (5, "3.15.2-1", "auth-reason-80", packet(0xF0, b"\x80", section(b"\x15" + string("m"))), PROTOCOL),
        (5, "3.15.2.1", "auth-properties-missing", h("F00118"), MALFORMED),
        (5, "3.15.2.2.2", "auth-without-method", h("F0021800"), PROTOCOL),
        (5, "3.15.2", "auth-trailing", packet(0xF0, b"\x18", section(b"\x15" + string("m")), b"\0"), MALFORMED),
    ]
    return rows


def lengths() -> list[Row]:
    """The Remaining Length itself."""
    rows: list[Row] = []
    for version in (3, 4, 5):
        rows += [
            (version, "1.5.5-1", "overlong-0", h("C08000"), MALFORMED),
            (version, "1.5.5-1", "overlong-2", h("408200 0001"), MALFORMED),
            (version, "1.5.5-1", "overlong-4", h("C080808000"), MALFORMED),
            (version, "1.5.5-1", "five-bytes", h("C0FFFFFFFF01"), MALFORMED),
            (version, "1.5.5-1", "five-bytes-cut", h("C080808080"), MALFORMED),
        ]
    return rows


ROWS = [*strings(), *connects(), *others(), *lengths()]
NAMED = [pytest.param(version, data, code, id=f"v{version}-{label}") for version, _, label, data, code in ROWS]


@pytest.mark.parametrize(("version", "data", "code"), NAMED)
def test_refused(version: int, data: bytes, code: int) -> None:
    assert proto.decode(version, data)[0] == -code
    assert proto.decode(version, data, True)[0] == -code


@pytest.mark.parametrize(("version", "data", "code"), NAMED)
def test_refused_by_the_decoder_however_it_comes(version: int, data: bytes, code: int) -> None:
    errors = {MALFORMED: codec.MalformedPacketError, PROTOCOL: codec.ProtocolViolationError, VERSION: codec.UnsupportedVersionError}
    ping = codec.encode(codec.Pingreq())
    for pieces in ([data], [ping + data], [data[at : at + 1] for at in range(len(data))]):
        decoder = codec.Decoder(version)
        with pytest.raises(errors.get(code, codec.DecodeError)) as caught:
            for piece in pieces:
                for got in decoder.feed(piece):
                    assert got == codec.Pingreq()
        assert caught.value.reason_code == code
        with pytest.raises(type(caught.value)) as again:
            next(decoder.feed(ping))
        assert again.value.reason_code == code and str(again.value) == str(caught.value)
        assert decoder.buffered == 0


def test_the_level_is_told_with_a_refusal() -> None:
    """So that the refusal can be in the client's own version."""
    assert proto.decode(5, connect(5, 0x03)) == (-MALFORMED, 5)
    assert proto.decode(5, connect(4, 0x03)) == (-MALFORMED, 4)
    assert proto.decode(5, connect(4, level=9)) == (-VERSION, 9)
    assert proto.decode(5, connect(3, level=0x84)) == (-VERSION, 4)
    assert proto.decode(5, connect(4, name="HTTP")) == (-MALFORMED, 0)


def test_what_3_1_leaves_open() -> None:
    """3.1 calls flag bits unused, repeats SUBSCRIBE and PUBREL with DUP, and lets the length decide about user name and password."""
    for data in ("6A020001", "8A06000100016100", "AA050001000161", "C100", "3803000161"):
        assert proto.decode(3, h(data))[0] == 0
    assert proto.decode(3, h("3803000161"))[1]["dup"] == 0
    bare = proto.decode(3, connect(3, 0xC2))[1]
    assert (bare["has_username"], bare["has_password"]) == (0, 0)
    half = proto.decode(3, connect(3, 0xC2, string("u")))[1]
    assert (half["username"], half["has_password"]) == (b"u", 0)
    assert proto.decode(3, connect(3, 0x03))[0] == 0
    assert proto.decode(3, h("20020100"))[1]["session_present"] == 0


def test_bridges() -> None:
    for version in (3, 4):
        decoded = proto.decode(version, connect(version, level=version | 0x80))[1]
        assert (decoded["protocol_level"], decoded["bridge"]) == (version, 1)


def test_password_without_user_name_is_legal_in_5() -> None:
    assert proto.decode(5, connect(5, 0x42, string("p")))[1]["password"] == b"p"


def test_an_alias_stands_for_an_empty_topic() -> None:
    assert proto.decode(5, packet(0x30, string(""), section(h("230005")), b"x"))[1]["props"]["topic_alias"] == 5


def test_the_byte_order_mark_stays() -> None:
    """[MQTT-1.5.4-3]"""
    (publish,) = codec.Decoder(4).feed(packet(0x30, string(b"\xef\xbb\xbfa"), b"x"))
    assert isinstance(publish, codec.Publish) and publish.topic == "\ufeffa"


def test_connack_codes_of_3_1_1() -> None:
    for wire, code in enumerate((0x00, 0x84, 0x85, 0x88, 0x86, 0x87)):
        assert proto.decode(4, bytes([0x20, 2, 0, wire]))[1]["reason"] == code
