"""Topic names and filters against a reference that is too simple to be wrong."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mqttc import codec
from tests.face import proto

# Few letters, so that random filters and topics do match now and then.
pieces = st.sampled_from(["", "a", "b", "ab", "$", "$SYS", "é", "+", "#", "a+", "#b"])
plain = st.sampled_from(["", "a", "b", "ab", "$", "$SYS", "é"])
filters = st.lists(pieces, min_size=1, max_size=5).map("/".join)
topics = st.lists(plain, min_size=1, max_size=5).map("/".join)


def valid_filter(text: str) -> bool:
    levels = text.split("/")
    return text != "" and all(
        (level in ("+", "#") or not set("+#") & set(level)) and (level != "#" or place == len(levels) - 1)
        for place, level in enumerate(levels)
    )


def matches(topic_filter: str, topic: str) -> bool:
    """Section 4.7, recursively."""
    if topic[:1] == "$" and topic_filter[:1] in ("+", "#"):
        return False
    return matches_levels(topic_filter.split("/"), topic.split("/"))


def matches_levels(wanted: list[str], levels: list[str]) -> bool:
    if wanted == ["#"]:
        return True
    if not wanted or not levels:
        return not wanted and not levels
    return wanted[0] in ("+", levels[0]) and matches_levels(wanted[1:], levels[1:])


@settings(max_examples=1000)
@given(filters, topics)
@example("+", "$SYS")
@example("+/a", "$SYS/a")
@example("+/#", "$SYS/a")
@example("$SYS/+", "$SYS/a")
@example("a/#", "a")
@example("+/#", "a")
@example("#", "/")
@example("/+", "/a")
@example("+", "/a")
@example("+/+", "/a")
@example("#", "$SYS/a")
@example("$SYS/#", "$SYS/a")
@example("a/+/", "a/b/")
@example("a/+", "a/b/")
@example("", "")
def test_matching(topic_filter: str, topic: str) -> None:
    if topic and valid_filter(topic_filter):
        expected = matches(topic_filter, topic)
        assert proto.topic_matches(topic_filter.encode(), topic.encode()) == expected
        assert codec.topic_matches(topic_filter, topic) == expected
        assert codec.topic_matches(f"$share/group/{topic_filter}", topic) == expected


@given(filters)
def test_filters(text: str) -> None:
    data = text.encode()
    assert proto.filter_check(data) == valid_filter(text)
    assert proto.filter_has_wildcard(data) == ("+" in text or "#" in text)
    assert proto.level_count(data) == text.count("/") + 1
    if valid_filter(text):
        codec.validate_filter(text)
    else:
        with pytest.raises(codec.InvalidTopicError) as caught:
            codec.validate_filter(text)
        assert caught.value.reason_code == codec.ReasonCode.TOPIC_FILTER_INVALID


@given(filters)
def test_names(text: str) -> None:
    valid = text != "" and not set("+#") & set(text)
    assert proto.topic_check(text.encode()) == valid
    if valid:
        codec.validate_topic(text)
    else:
        with pytest.raises(codec.InvalidTopicError) as caught:
            codec.validate_topic(text)
        assert caught.value.reason_code == codec.ReasonCode.TOPIC_NAME_INVALID


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a", (0, "", "")), ("$share", (0, "", "")), ("$shared/g/a", (0, "", "")), ("$SHARE/g/a", (0, "", "")),
        ("$share/g/a", (1, "g", "a")), ("$share/g/a/#", (1, "g", "a/#")), ("$share/g//", (1, "g", "/")), ("$share/é/+", (1, "é", "+")),
    ],
)  # fmt: skip
def test_shared(text: str, expected: tuple[int, str, str]) -> None:
    shared, group, rest = proto.share_split(text.encode())
    assert (shared, group.decode(), rest.decode()) == expected
    codec.validate_filter(text)


@pytest.mark.parametrize(
    "text", ["$share/", "$share//a", "$share/g", "$share/g/", "$share/+/a", "$share/g+/a", "$share/#/a", "$share/g#/a"]
)
def test_ill_formed_shared(text: str) -> None:
    """[MQTT-4.8.2-1, MQTT-4.8.2-2]"""
    assert proto.share_split(text.encode())[0] == -1
    with pytest.raises(codec.InvalidTopicError):
        codec.validate_filter(text)


def reference_flags(data: bytes) -> int:
    """Bit 0: not UTF-8 or with NUL; bit 1: wildcards."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return 1
    if "\0" in text:
        return 1
    return 2 if set("+#") & set(text) else 0


texts = st.one_of(
    st.binary(max_size=24),
    st.text(max_size=24).map(str.encode),
    st.builds(lambda a, b, c: a + b + c, st.sampled_from([b"", b"a" * 7, b"a" * 8, b"a" * 16]), st.binary(max_size=4), st.just(b"a" * 9)),
)


@given(texts)
@example(b"\xed\x9f\xbf\xee\x80\x80\xf4\x8f\xbf\xbf")
def test_text_checks(data: bytes) -> None:
    flags, scanned, valid = proto.flags_of_text(data)
    expected = reference_flags(data)
    assert flags == scanned == expected
    assert valid == proto.utf8_check(data) == (expected != 1)


def test_every_byte_in_every_place_of_a_step() -> None:
    """The 8-byte step and its shorter ends, exhaustively."""
    for n in range(1, 20):
        for at in range(n):
            for byte in range(256):
                data = b"a" * at + bytes([byte]) + b"a" * (n - at - 1)
                expected = 1 if byte == 0 or byte >= 0x80 else 2 if byte in b"+#" else 0
                assert proto.flags_of_text(data) == (expected, expected, expected != 1), (n, at, byte)


def test_every_two_and_three_byte_sequence() -> None:
    for first in range(0x80, 0x100):
        for second in range(0x70, 0xD0):
            for rest in (b"", b"\x80", b"\xbf\xbf", b"\xc0", b"a"):
                data = bytes([first, second]) + rest
                assert proto.flags_of_text(data)[1] == reference_flags(data), data
