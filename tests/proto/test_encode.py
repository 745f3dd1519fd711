"""Exact bytes, what the encoder refuses, and the native encoder's own entry points."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mqttc import codec
from mqttc.codec import (
    Auth,
    Connack,
    Connect,
    Disconnect,
    Pingreq,
    Pingresp,
    Properties,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Suback,
    Subscribe,
    Subscription,
    Unsuback,
    Unsubscribe,
    Will,
)  # fmt: skip
from tests.face import proto
from tests.proto.wire import packet, section, string

ALL = Connect("c1", username="u", password=b"p", will=Will("w", b"x"))
METHOD = Properties(authentication_method="m")


@pytest.mark.parametrize(
    ("version", "value", "expected"),
    [
        (4, Connect("c1"), "100E00044D51545404 02003C00026331"),
        (5, Connect("c1"), "100F00044D51545405 02003C0000026331"),
        (3, Connect("c1"), "101000064D514973647003 02003C00026331"),
        (4, Connect("c1", bridge=True), "100E00044D51545484 02003C00026331"),
        (4, ALL, "101A00044D51545404C6003C00026331000177000178000175000170"),
        (5, ALL, "101C00044D51545405C6003C000002633100000177000178000175000170"),
        (5, Connect("c1", password=b"p"), "101200044D5154540542003C0000026331000170"),
        (4, Connect(""), "100C00044D5154540402003C0000"),
        (4, Publish("a", b"x"), "300400016178"),
        (5, Publish("a", b"x"), "30050001610078"),
        (5, Publish("a", b"x", qos=2, packet_id=0x1234, dup=True, retain=True), "3D070001611234 0078"),
        (4, Puback(1), "40020001"), (4, Pubrec(1), "50020001"), (4, Pubrel(1), "62020001"), (4, Pubcomp(1), "70020001"),
        (5, Puback(1), "40020001"), (5, Puback(1, 0x10), "4003000110"), (4, Puback(1, 0x10), "40020001"),
        (5, Pubrel(1, 0x92), "6203000192"),
        (5, Pubrec(1, properties=Properties(reason_string="r")), "500800010004 1F000172"),
        (4, Subscribe(1, [Subscription("a"), Subscription("b", 1)]), "820A0001000161000001 6201"),
        (5, Subscribe(1, [Subscription("a", 1, no_local=True, retain_as_published=True, retain_handling=2)]), "82070001000001 612D"),
        (4, Subscribe(1, [Subscription("a", 1, no_local=True, retain_as_published=True, retain_handling=2)]), "8206000100016101"),
        (4, Suback(1, [0, 1, 2, 0x80, 0x87]), "900700010001028080"),
        (3, Suback(1, [0, 1, 2, 0x80]), "9006000100010200"),
        (5, Suback(1, [0, 0x87]), "90050001000087"),
        (4, Unsubscribe(1, ["a", "b"]), "A2080001000161000162"), (5, Unsubscribe(1, ["a", "b"]), "A209000100000161000162"),
        (4, Unsuback(1, [0, 0x11]), "B0020001"), (5, Unsuback(1, [0, 0x11]), "B0050001000011"), (4, Unsuback(1), "B0020001"),
        (4, Pingreq(), "C000"), (5, Pingresp(), "D000"),
        (4, Disconnect(), "E000"), (5, Disconnect(), "E000"), (5, Disconnect(4), "E00104"), (4, Disconnect(4), "E000"),
        (5, Auth(), "F000"), (5, Auth(0x18, properties=METHOD), "F0061804150001 6D"),
        (4, Connack(), "20020000"), (5, Connack(), "2003000000"), (4, Connack(session_present=True), "20020100"),
        (3, Connack(session_present=True), "20020000"), (4, Connack(0x87), "20020005"), (5, Connack(0x87), "2003008700"),
    ],
)  # fmt: skip
def test_bytes(version: int, value: codec.Packet, expected: str) -> None:
    assert codec.encode(value, version).hex() == bytes.fromhex(expected).hex()


@pytest.mark.parametrize(
    "build",
    [
        lambda: Publish(""), lambda: Publish("a/#"), lambda: Publish("a/+"), lambda: Publish("a\0"), lambda: Publish("\ud800"),
        lambda: Publish("x" * 65536), lambda: Publish("a", qos=3), lambda: Publish("a", qos=-1), lambda: Publish("a", dup=True),
        lambda: Publish("a", packet_id=1), lambda: Publish("a", qos=1, packet_id=65536), lambda: Publish("a", qos=1, packet_id=-1),
        lambda: Puback(0), lambda: Puback(65536), lambda: Puback(1, 0x92), lambda: Pubrel(1, 0x80), lambda: Puback(1, 256),
        lambda: Puback(1, -1), lambda: Connack(0x8D), lambda: Connack(0x87, session_present=True),
        lambda: Connect("a\0"), lambda: Connect("x" * 65536), lambda: Connect(keep_alive=65536), lambda: Connect(keep_alive=-1),
        lambda: Connect(username="\ud800"), lambda: Connect(username="x" * 65536), lambda: Connect(password=b"x" * 65536),
        lambda: Will("a/#"), lambda: Will(""), lambda: Will("a", b"x" * 65536), lambda: Will("a", qos=3),
        lambda: Subscribe(1, []), lambda: Subscribe(0, [Subscription("a")]), lambda: Subscription("a/#/b"), lambda: Subscription(""),
        lambda: Subscription("a", 3), lambda: Subscription("a", retain_handling=3), lambda: Subscription("$share/g/a", no_local=True),
        lambda: Subscription("a\0"), lambda: Subscription("x" * 65536), lambda: Unsubscribe(1, []), lambda: Unsubscribe(1, ["a+"]),
        lambda: Suback(1, [3]), lambda: Unsuback(1, [1]), lambda: Disconnect(1), lambda: Auth(0x18), lambda: Auth(0x80, properties=METHOD),
        lambda: Auth(0, properties=Properties(reason_string="r")),
    ],
)  # fmt: skip
def test_refused_when_built(build: Callable[[], object]) -> None:
    with pytest.raises(codec.EncodeError):
        build()


@pytest.mark.parametrize(
    ("version", "value"),
    [
        (4, Auth()), (3, Auth(0x18, properties=METHOD)), (4, Connect("c", password=b"p")), (3, Connect("c", password=b"p")),
        (4, Connack(0x81)), (3, Connack(0x95)), (4, Publish("a", qos=1)), (5, Publish("a", qos=2)),
        (4, Publish("", properties=Properties(topic_alias=1))), (4, Suback(1, [])), (5, Suback(1, [])), (5, Unsuback(1)),
        (4, Publish("a", bytes(268435455))),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_refused_when_encoded(version: int, value: codec.Packet) -> None:
    with pytest.raises(codec.EncodeError):
        codec.encode(value, version)


@pytest.mark.parametrize("build", [
    lambda: Publish(b"a"), lambda: Publish("a", "text"), lambda: Publish("a", 5), lambda: Publish(), lambda: Connect(b"c"),
    lambda: Subscribe(1, ["a"]), lambda: Unsubscribe(1, [b"a"]), lambda: Puback("1"), lambda: Puback(1, properties={}),
    lambda: codec.encode(b"x"), lambda: codec.encode(None), lambda: codec.Packet(), lambda: codec.validate_topic(b"a"),
])  # fmt: skip
def test_wrong_types(build: Callable[[], object]) -> None:
    with pytest.raises(TypeError):
        build()


def test_packets_are_immutable() -> None:
    publish = Publish("a", b"x", qos=1)
    for name in ("topic", "payload", "qos", "packet_id", "retain", "dup", "properties"):
        with pytest.raises(AttributeError):
            setattr(publish, name, getattr(publish, name))
    changed = publish.replace(packet_id=7, dup=True)
    assert (changed.packet_id, changed.dup, changed.topic, publish.packet_id) == (7, True, "a", 0)
    payload = bytearray(b"x")
    publish = Publish("a", payload)
    payload[0] = 0
    assert publish.payload == b"x"


@pytest.mark.parametrize("kind", [
    Auth, Connack, Connect, Disconnect, Pingreq, Pingresp, Properties, Puback, Pubcomp, Publish, Pubrec, Pubrel, Suback, Subscribe,
    Subscription, Unsuback, Unsubscribe, Will, codec.Packet, codec.Value, codec.Ack, codec.Decoder,
])  # fmt: skip
def test_objects_that_were_never_initialised_do_no_harm(kind: type) -> None:
    bare, other = kind.__new__(kind), kind.__new__(kind)
    attributes = {name: getattr(bare, name) for name in dir(kind) if not name.startswith("_") and name != "packet_type"}
    assert repr(bare) and attributes
    if kind is not codec.Decoder:
        assert bare == other and hash(bare) == hash(other)
    for version in (4, 5):
        if isinstance(bare, codec.Packet):
            try:
                assert isinstance(codec.encode(bare, version), bytes)
            except (codec.EncodeError, NotImplementedError, ValueError) as error:
                assert str(error) or type(error) is NotImplementedError
        if isinstance(bare, Will):
            assert codec.encode(Connect("c", will=bare), version)
        if isinstance(bare, Properties):
            assert codec.encode(Publish("a", properties=bare), version)
        if isinstance(bare, Subscription):
            with pytest.raises(codec.EncodeError):
                Subscribe(1, [bare])


def test_a_password_is_not_shown() -> None:
    assert "secret" not in repr(Connect("c", username="u", password="secret"))


def test_the_longest_topic() -> None:
    """[MQTT-4.7.3-3]"""
    longest = Publish("x" * 65535)
    assert list(codec.Decoder(4).feed(codec.encode(longest, 4))) == [longest]


@given(st.integers(0, 268435455 - 3))
def test_fixed_header_lengths(n: int) -> None:
    """[MQTT-1.5.5-1], around the borders without making the payloads."""
    for body in (n, 127, 128, 16383, 16384, 2097151, 2097152, 268435455):
        length = packet_head(body)
        assert proto.frame(b"\x30" + length) == (proto.NEED_MORE if body else 0, 3, 0, body, 1 + len(length) + body)


def packet_head(n: int) -> bytes:
    out = bytearray()
    while True:
        n, low = divmod(n, 128)
        out.append(low | (0x80 if n else 0))
        if not n:
            return bytes(out)


@pytest.mark.parametrize("size", [0, 123, 124, 125, 16379, 16380, 16381, 2097147, 2097148, 2097149])
def test_lengths_around_the_borders(size: int) -> None:
    data = codec.encode(Publish("a", bytes(size)), 4)
    assert data == packet(0x30, string("a"), bytes(size))


def test_publish_parts() -> None:
    """Properties in the order alias, expiry, subscription ids, forwarded."""
    forwarded = bytes.fromhex("0101 2600016B000176")
    data, offset = proto.encode_publish_parts(
        5, b"topic", b"payload", forwarded, qos=1, retain=1, packet_id=0x1234, topic_alias=5, message_expiry=7,
        subscription_ids=(1, 128, 268435455),
    )  # fmt: skip
    props = section(bytes.fromhex("230005 0200000007 0B01 0B8001 0BFFFFFF7F"), forwarded)
    assert data == packet(0x33, string("topic"), b"\x12\x34", props, b"payload")
    assert data[offset : offset + 2] == b"\x12\x34"
    data, _ = proto.encode_publish_parts(4, b"topic", b"payload", forwarded, topic_alias=5, message_expiry=7, subscription_ids=(1,))
    assert data == packet(0x30, string("topic"), b"payload")
    assert proto.encode_publish_parts(5, b"", b"", dup=1)[0] == packet(0x30, string(""), b"\0")
    assert proto.encode_publish_parts(4, b"x" * 65536, b"")[0] == b""


@given(st.binary(max_size=300), st.binary(max_size=20000), st.integers(1, 2), st.sampled_from([4, 5]))
@example(b"x" * 130, b"", 1, 4)
@example(b"topic", b"x" * 20000, 2, 5)
@example(b"topic", b"x" * 2097152, 1, 4)
def test_the_place_of_the_packet_id(topic: bytes, payload: bytes, qos: int, version: int) -> None:
    data, offset = proto.encode_publish_parts(version, topic, payload, qos=qos, packet_id=0xBEEF)
    assert data[offset : offset + 2] == b"\xbe\xef"
    assert data[offset - len(topic) - 2 : offset] == string(topic)


@pytest.mark.parametrize("version", [3, 4, 5])
def test_acks(version: int) -> None:
    for kind in (4, 5, 6, 7):
        first = kind << 4 | (2 if kind == 6 else 0)
        assert proto.encode_ack_bytes(version, kind, 0x1234, 0) == bytes([first, 2, 0x12, 0x34])
        expected = bytes([first, 3, 0x12, 0x34, 0x92]) if version == 5 else bytes([first, 2, 0x12, 0x34])
        assert proto.encode_ack_bytes(version, kind, 0x1234, 0x92) == expected


@pytest.mark.parametrize(
    ("kind", "field", "most"),
    [
        (1, "client_id", 65535), (1, "will_topic", 65535), (1, "will_payload", 65535), (1, "username", 65535), (1, "password", 65535),
        (2, "reason_string", 65535), (3, "topic", 65535), (14, "reason_string", 65535), (3, "payload", 268435455 - 3),
        (8, "list", 268435455 - 3), (9, "list", 268435455 - 3), (11, "list", 268435455 - 3), (4, "raw", 268435455 - 7),
        (15, "raw", 268435455 - 5),
    ],
)  # fmt: skip
def test_the_native_encoder_refuses_what_does_not_fit(kind: int, field: str, most: int) -> None:
    """Sizes only: nothing is read from the bytes."""
    assert proto.typed_size(5, kind, most, field) > most
    assert proto.typed_size(5, kind, most + 1, field) == 0


def test_dialects() -> None:
    three, four, five = (proto.dialect(level) for level in (3, 4, 5))
    assert proto.dialect(2) is None and proto.dialect(6) is None and proto.dialect(0x84) is None
    assert [it["level"] for it in (three, four, five)] == [3, 4, 5]
    assert [it["layout"] for it in (three, four, five)] == [0, 0, 1]
    yes = {
        "properties": "5", "strict_flags": "45", "ack_reasons": "5", "unsuback_reasons": "5", "suback_failure": "45",
        "server_disconnect": "5", "session_expiry": "5", "empty_client_id": "45", "empty_client_id_needs_clean": "4",
        "session_present": "45", "password_alone": "5", "auth": "5",
    }  # fmt: skip
    for name, levels in yes.items():
        assert [bool(it[name]) for it in (three, four, five)] == [level in levels for level in "345"], name
    assert set(yes) | {"level", "layout", "connack_codes", "suback_codes"} == set(five)
    assert five["connack_codes"] == five["suback_codes"] == bytes(range(256))
    assert set(four["connack_codes"]) == {0, 1, 2, 3, 4, 5, 0xFF} and four["connack_codes"][0] == 0
    assert set(four["suback_codes"]) == {0, 1, 2, 0x80}


def test_reason_codes_are_those_of_the_table() -> None:
    kinds = {
        "CONNACK": 2, "PUBACK": 4, "PUBREC": 5, "PUBREL": 6, "PUBCOMP": 7, "SUBACK": 9, "UNSUBACK": 11, "DISCONNECT": 14, "AUTH": 15,
    }  # fmt: skip
    table: set[tuple[int, int]] = set()
    with (Path(__file__).parent.parent / "spec" / "reason_codes.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["version"] == "5":
                table |= {(kinds[name], int(row["code"], 16)) for name in row["packets"].split(";")}
    assert {(kind, code) for kind in range(16) for code in range(256) if proto.reason_fits(kind, code)} == table
    assert {code for _, code in table} == set(codec.ReasonCode)
