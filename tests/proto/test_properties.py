"""All 27 properties in all places, from the table of the standard."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from mqttc import codec
from tests.face import proto
from tests.proto.wire import PLACES, VALUES, section, string

MALFORMED, PROTOCOL, ALIAS = -0x81, -0x82, -0x94
with (Path(__file__).parent.parent / "spec" / "properties.csv").open(encoding="utf-8", newline="") as file:
    ROWS = {int(row["id"], 16): row for row in csv.DictReader(file)}
METHOD = b"\x15" + string("m")
# AUTH, and CONNECT and CONNACK with authentication data, need the method beside them.
BESIDE = {("AUTH", identifier): METHOD for identifier in ROWS if identifier != 0x15} | {
    ("CONNECT", 0x16): METHOD,
    ("CONNACK", 0x16): METHOD,
}
PAIRS = [(place, identifier) for place in PLACES for identifier in ROWS]


def allowed(place: str, identifier: int) -> bool:
    return place in ROWS[identifier]["packets"].split(";")


def status_of(place: str, *properties: bytes) -> int:
    status: int = proto.decode(5, PLACES[place](section(*properties)))[0]
    return status


def one(identifier: int, which: int = 0) -> bytes:
    return bytes([identifier]) + VALUES[ROWS[identifier]["type"]][which]


def test_the_table_has_all_27() -> None:
    assert len(ROWS) == 27


@pytest.mark.parametrize(("place", "identifier"), PAIRS)
def test_placement(place: str, identifier: int) -> None:
    status = status_of(place, BESIDE.get((place, identifier), b""), one(identifier))
    assert status == (0 if allowed(place, identifier) else MALFORMED)


@pytest.mark.parametrize(("place", "identifier"), [pair for pair in PAIRS if allowed(*pair)])
def test_repeats(place: str, identifier: int) -> None:
    beside = BESIDE.get((place, identifier), b"")
    may_repeat = identifier == 0x26 or (place, identifier) == ("PUBLISH", 0x0B)
    assert status_of(place, beside, one(identifier), one(identifier)) == (0 if may_repeat else PROTOCOL)


@pytest.mark.parametrize(("place", "identifier"), [pair for pair in PAIRS if allowed(*pair)])
def test_every_cut_of_a_property_is_malformed(place: str, identifier: int) -> None:
    whole = one(identifier)
    beside = BESIDE.get((place, identifier), b"")
    for n in range(1, len(whole)):
        assert status_of(place, beside, whole[:n]) == MALFORMED


@pytest.mark.parametrize("place", PLACES)
def test_unknown_identifiers(place: str) -> None:
    for identifier in range(256):
        if identifier not in ROWS:
            assert status_of(place, METHOD if place == "AUTH" else b"", bytes([identifier]) + b"\0" * 8) == MALFORMED


@pytest.mark.parametrize("place", PLACES)
def test_section_lengths(place: str) -> None:
    """A length that is overlong, that runs past the packet, or that ends inside a property."""
    make = PLACES[place]
    user = one(0x26)
    assert proto.decode(5, make(b"\x80\x00"))[0] == MALFORMED
    assert proto.decode(5, make(b"\xff\xff\xff\x7f"))[0] == MALFORMED
    assert proto.decode(5, make(b"\x80\x80\x80\x80\x01"))[0] == MALFORMED
    assert proto.decode(5, make(bytes([len(user) - 1]) + user))[0] == MALFORMED


@pytest.mark.parametrize(
    ("place", "wire", "status"),
    [
        ("PUBLISH", "0102", PROTOCOL),
        ("WILL", "01FF", PROTOCOL),
        ("PUBLISH", "0B00", PROTOCOL),
        ("PUBLISH", "0B8000", MALFORMED),
        ("PUBLISH", "0BFFFFFFFF01", MALFORMED),
        ("SUBSCRIBE", "0B00", PROTOCOL),
        ("CONNECT", "1702", PROTOCOL),
        ("CONNECT", "1902", PROTOCOL),
        ("CONNECT", "210000", PROTOCOL),
        ("CONNECT", "2700000000", PROTOCOL),
        ("CONNECT", "160000", PROTOCOL),
        ("CONNACK", "160000", PROTOCOL),
        ("CONNACK", "210000", PROTOCOL),
        ("CONNACK", "2402", PROTOCOL),
        ("CONNACK", "2502", PROTOCOL),
        ("CONNACK", "2700000000", PROTOCOL),
        ("CONNACK", "2802", PROTOCOL),
        ("CONNACK", "2902", PROTOCOL),
        ("CONNACK", "2A02", PROTOCOL),
        ("AUTH", "1F0000", PROTOCOL),
        ("AUTH", "160000", PROTOCOL),
        ("PUBLISH", "230000", ALIAS),
        ("PUBLISH", "080003612F23", PROTOCOL),
        ("PUBLISH", "0800012B", PROTOCOL),
        ("WILL", "08000123", PROTOCOL),
        ("PUBLISH", "08000161", 0),
        ("PUBLISH", "080000", 0),
        ("CONNECT", "22 0000", 0),
        ("PUBLISH", "0200000000", 0),
    ],
)
def test_ranges(place: str, wire: str, status: int) -> None:
    assert status_of(place, bytes.fromhex(wire)) == status


ILL_FORMED = [b"\xff", b"\xc3\x28", b"\xc0\xaf", b"\xe0\x80\xaf", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"a\xe2\x82", b"\0", b"\x80"]


@pytest.mark.parametrize(
    ("place", "identifier"), [pair for pair in PAIRS if allowed(*pair) and "UTF-8" in ROWS[pair[1]]["type"]]
)
def test_strings_are_utf8_without_nul(place: str, identifier: int) -> None:
    beside = BESIDE.get((place, identifier), b"")
    for bad in ILL_FORMED:
        values = [string(bad)]
        if identifier == 0x26:
            values = [string(bad) + string("v"), string("k") + string(bad)]
        for value in values:
            assert status_of(place, beside, bytes([identifier]) + value) == MALFORMED, bad


def test_values_and_defaults() -> None:
    """Every field of the native Props, given and not given."""
    given = {
        "CONNECT": ("11 00000102 17 00 19 01 21 0007 22 0008 27 00000304 15 0001 6D 16 0001 64", {
            "session_expiry": 0x102, "request_problem_info": 0, "request_response_info": 1, "receive_maximum": 7,
            "topic_alias_maximum": 8, "maximum_packet_size": 0x304, "auth_method": b"m", "auth_data": b"d",
        }),
        "CONNACK": ("12 0001 63 13 0009 1A 0001 69 1C 0001 73 1F 0001 72 24 00 25 00 28 00 29 00 2A 00", {
            "assigned_client_id": b"c", "server_keep_alive": 9, "response_info": b"i", "server_reference": b"s",
            "reason_string": b"r", "maximum_qos": 0, "retain_available": 0, "wildcard_available": 0,
            "subscription_id_available": 0, "shared_available": 0,
        }),
        "PUBLISH": ("01 01 02 00000003 03 0001 63 08 0001 74 09 0001 64 0B 05 0B 06 23 000A 26 0001 6B 0001 76", {
            "payload_format": 1, "message_expiry": 3, "content_type": b"c", "response_topic": b"t", "correlation_data": b"d",
            "subscription_id": 5, "subscription_id_count": 2, "topic_alias": 10, "user_property_count": 1,
        }),
    }  # fmt: skip
    seen = 0
    for place, (wire, values) in given.items():
        raw = bytes.fromhex(wire)
        props = proto.decode(5, PLACES[place](section(raw)))[1]["props"]
        assert {name: props[name] for name in values} == values
        assert props["raw"] == raw
        seen |= props["present"]
    will = proto.decode(5, PLACES["WILL"](section(bytes.fromhex("18 00000004"))))[1]["will_props"]
    assert will["will_delay"] == 4
    assert seen | will["present"] == (1 << 27) - 1, "every property was seen"
    defaults = {"receive_maximum": 65535, "request_problem_info": 1, "maximum_qos": 2}
    defaults |= dict.fromkeys(("retain_available", "wildcard_available", "subscription_id_available", "shared_available"), 1)
    for version, data in [(4, "300300 0161"), (5, "300400 016100"), (4, "20020000"), (5, "2003000000")]:
        props = proto.decode(version, bytes.fromhex(data))[1]["props"]
        for name, value in props.items():
            assert value == defaults.get(name, b"" if isinstance(value, bytes) else 0), name


def test_what_travels_with_a_message() -> None:
    raw = bytes.fromhex("230001 0101 0200000001 0B05 03000163 080001 74 09000164 0B06 260001 6B0001 76 260001 6B0001 77")
    rest = bytes.fromhex("0101 03000163 08000174 09000164 2600016B000176 2600016B000177")
    decoded = proto.decode(5, PLACES["PUBLISH"](section(raw)))[1]
    assert decoded["forward_bytes"] == len(rest)
    assert proto.forward(raw) == rest
    assert proto.decode(5, PLACES["PUBLISH"](section(rest)))[1]["forward_bytes"] == len(rest)
    assert proto.forward(bytes.fromhex("1800000005 0200000001") + rest) == rest
    assert proto.forward(b"") == b""


def test_python_properties() -> None:
    none = codec.Properties()
    assert not none and none.as_dict() == {} and none.topic_alias is None and none.user_properties == ()
    one_way = codec.Properties(topic_alias=3, content_type="t")
    other_way = codec.Properties(content_type="t", topic_alias=3, reason_string=None)
    assert one_way == other_way and hash(one_way) == hash(other_way)
    assert one_way != codec.Properties(topic_alias=4, content_type="t")
    assert codec.Properties(user_properties=[("a", "1"), ("a", "2")]) != codec.Properties(user_properties=[("a", "2"), ("a", "1")])
    assert codec.Properties(subscription_identifiers=[]) == none
    with pytest.raises(AttributeError):
        _ = none.topic_aliases  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "values",
    [
        {"payload_format_indicator": 2}, {"payload_format_indicator": 256}, {"payload_format_indicator": -1},
        {"message_expiry_interval": -1}, {"message_expiry_interval": 1 << 32}, {"receive_maximum": 0}, {"receive_maximum": 65536},
        {"maximum_packet_size": 0}, {"topic_alias": 0}, {"maximum_qos": 2}, {"subscription_identifiers": [0]},
        {"subscription_identifiers": [268435456]}, {"response_topic": "a/#"}, {"content_type": "a\0"},
        {"content_type": "x" * 65536}, {"correlation_data": b"x" * 65536}, {"content_type": "\ud800"},
        {"user_properties": [("a\0", "b")]}, {"user_properties": [("a", "\udfff")]}, {"user_properties": [("a", "x" * 65536)]},
    ],
    ids=lambda values: f"{next(iter(values))}",
)  # fmt: skip
def test_python_values_out_of_range(values: dict[str, object]) -> None:
    with pytest.raises(codec.EncodeError):
        codec.Properties(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "values", [{"no_such": 1}, {"content_type": b"x"}, {"correlation_data": "x"}, {"topic_alias": "x"}, {"user_properties": [("a", 1)]}]
)
def test_python_values_of_the_wrong_type(values: dict[str, object]) -> None:
    with pytest.raises(TypeError):
        codec.Properties(**values)  # type: ignore[arg-type]


def test_properties_that_do_not_stand_in_a_packet_are_refused_when_it_is_built() -> None:
    alias = codec.Properties(topic_alias=1)
    for build in (
        lambda: codec.Connect("c", properties=alias), lambda: codec.Connack(properties=alias), lambda: codec.Will("w", properties=alias),
        lambda: codec.Puback(1, properties=alias), lambda: codec.Subscribe(1, [codec.Subscription("a")], properties=alias),
        lambda: codec.Suback(1, [0], properties=alias), lambda: codec.Unsubscribe(1, ["a"], properties=alias),
        lambda: codec.Unsuback(1, [0], properties=alias), lambda: codec.Disconnect(properties=alias),
        lambda: codec.Auth(properties=alias), lambda: codec.Publish("a", properties=codec.Properties(receive_maximum=1)),
    ):  # fmt: skip
        with pytest.raises(codec.EncodeError, match=r"topic_alias|receive_maximum"):
            build()
    with pytest.raises(codec.EncodeError, match="at most one"):
        codec.Subscribe(1, [codec.Subscription("a")], properties=codec.Properties(subscription_identifiers=[1, 2]))
