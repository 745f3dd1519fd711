"""Hypothesis strategies for every packet, and what is left of a packet in a version that cannot say all of it."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from mqttc import codec
from mqttc.codec import Properties, QoS, ReasonCode

VERSIONS = (3, 4, 5)

# Weighted to the edges: empty, ASCII around eight bytes (the decoder's step), several bytes a character, the byte order mark.
characters = st.characters(exclude_categories=("Cs",), exclude_characters="\0")
texts = st.one_of(
    st.text(st.characters(min_codepoint=1, max_codepoint=126), max_size=20),
    st.text(characters, max_size=20),
    st.sampled_from(["", "\ufeffa", "x" * 8, "x" * 255, "é" * 9, "\U0010ffff", "\x01\x7f"]),
)
topics = texts.map(lambda text: text.replace("+", "-").replace("#", "-")).filter(bool)
levels = st.one_of(st.just("+"), texts.map(lambda text: text.replace("+", "-").replace("#", "-").replace("/", "-")))
filters = st.builds(
    lambda parts, rest: "/".join([*parts, *rest]) or "#", st.lists(levels, max_size=4), st.sampled_from([[], ["#"], [""], ["a"]])
).filter(lambda text: not text.startswith("$share/"))
groups = texts.map(lambda text: "".join(c for c in text if c not in "+#/")).filter(bool)
shared_filters = st.builds(lambda group, plain: f"$share/{group}/{plain}", groups, filters)
binaries = st.one_of(st.binary(max_size=20), st.binary(min_size=126, max_size=130))
payloads = st.one_of(st.binary(max_size=40), st.sampled_from([b"\0" * 127, b"\xff" * 128, b"p" * 16384]))
packet_ids = st.one_of(st.integers(1, 65535), st.sampled_from([1, 255, 256, 65535]))
u16 = st.integers(0, 65535)
u32 = st.one_of(st.integers(0, 0xFFFFFFFF), st.sampled_from([0, 0xFFFFFFFF]))
subscription_ids = st.one_of(st.integers(1, 268435455), st.sampled_from([1, 127, 128, 16383, 16384, 2097151, 2097152, 268435455]))
pairs = st.lists(st.tuples(texts, texts), max_size=3).map(tuple)

VALUES: dict[str, st.SearchStrategy[Any]] = {
    "payload_format_indicator": st.integers(0, 1),
    "message_expiry_interval": u32,
    "content_type": texts,
    "response_topic": topics,
    "correlation_data": binaries,
    "subscription_identifiers": st.lists(subscription_ids, max_size=3).map(tuple),
    "session_expiry_interval": u32,
    "assigned_client_identifier": texts,
    "server_keep_alive": u16,
    "authentication_method": texts,
    "authentication_data": binaries,
    "request_problem_information": st.booleans(),
    "will_delay_interval": u32,
    "request_response_information": st.booleans(),
    "response_information": texts,
    "server_reference": texts,
    "reason_string": texts,
    "receive_maximum": st.integers(1, 65535),
    "topic_alias_maximum": u16,
    "topic_alias": st.integers(1, 65535),
    "maximum_qos": st.sampled_from([QoS.AT_MOST_ONCE, QoS.AT_LEAST_ONCE]),
    "retain_available": st.booleans(),
    "user_properties": pairs,
    "maximum_packet_size": st.integers(1, 0xFFFFFFFF),
    "wildcard_subscription_available": st.booleans(),
    "subscription_identifier_available": st.booleans(),
    "shared_subscription_available": st.booleans(),
}
ACK = ("reason_string", "user_properties")
WILL = (
    *("payload_format_indicator", "message_expiry_interval", "content_type", "response_topic", "correlation_data"),
    *("will_delay_interval", "user_properties"),
)
PUBLISH = (*WILL[:5], "user_properties", "subscription_identifiers", "topic_alias")
CONNECT = (
    *("session_expiry_interval", "request_problem_information", "request_response_information", "receive_maximum"),
    *("topic_alias_maximum", "user_properties", "maximum_packet_size", "authentication_method"),
)
CONNACK = (
    *("session_expiry_interval", "assigned_client_identifier", "server_keep_alive", "authentication_method", "response_information"),
    *("server_reference", "reason_string", "receive_maximum", "topic_alias_maximum", "maximum_qos", "retain_available"),
    *("user_properties", "maximum_packet_size", "wildcard_subscription_available", "subscription_identifier_available"),
    "shared_subscription_available",
)


def properties(*names: str) -> st.SearchStrategy[Properties]:
    """Any subset of these, in any order."""
    return st.builds(
        lambda values, order: Properties(**{name: values[name] for name in order if name in values}),
        st.fixed_dictionaries({}, optional={name: VALUES[name] for name in names}),
        st.permutations(names),
    )


def reasons(packet_type: int, codes: str) -> st.SearchStrategy[ReasonCode]:
    return st.sampled_from([ReasonCode(code) for code in bytes.fromhex(codes)])


SUBACK_CODES = "00 01 02 80 83 87 8F 91 97 9E A1 A2"
CONNACK_CODES = "80 81 82 83 84 85 86 87 88 89 8A 8C 90 95 97 99 9A 9B 9C 9D 9F"
PUBLISH_CODES = "00 10 80 83 87 90 91 97 99"
DISCONNECT_CODES = (
    "00 04 80 81 82 83 87 89 8B 8C 8D 8E 8F 90 93 94 95 96 97 98 99 9A 9B 9C 9D 9E 9F A0 A1 A2"
)

wills = st.builds(
    codec.Will, topics, binaries, qos=st.integers(0, 2), retain=st.booleans(), properties=properties(*WILL)
)


@st.composite
def connects(draw: st.DrawFn) -> codec.Connect:
    chosen = draw(properties(*CONNECT))
    if chosen.authentication_method is not None and draw(st.booleans()):
        chosen = Properties(**chosen.as_dict(), authentication_data=draw(binaries))
    username = draw(st.none() | texts)
    return codec.Connect(
        draw(texts),
        clean_start=draw(st.booleans()),
        keep_alive=draw(u16),
        username=username,
        password=draw(st.none() | binaries) if username is not None else None,
        will=draw(st.none() | wills),
        bridge=draw(st.booleans()),
        properties=chosen,
    )


@st.composite
def publishes(draw: st.DrawFn) -> codec.Publish:
    chosen = draw(properties(*PUBLISH))
    qos = draw(st.integers(0, 2))
    return codec.Publish(
        draw(topics),
        draw(payloads),
        qos=qos,
        retain=draw(st.booleans()),
        dup=bool(qos) and draw(st.booleans()),
        packet_id=draw(packet_ids) if qos else 0,
        properties=chosen,
    )


subscriptions = st.one_of(
    st.builds(
        codec.Subscription, filters, st.integers(0, 2), no_local=st.booleans(), retain_as_published=st.booleans(),
        retain_handling=st.integers(0, 2),
    ),
    st.builds(codec.Subscription, shared_filters, st.integers(0, 2), retain_handling=st.integers(0, 2)),
)  # fmt: skip
single_id = st.builds(
    lambda number, user: Properties(subscription_identifiers=number, user_properties=user),
    st.lists(subscription_ids, max_size=1), pairs,
)  # fmt: skip

packets: st.SearchStrategy[codec.Packet] = st.one_of(
    connects(),
    st.builds(codec.Connack, session_present=st.booleans(), properties=properties(*CONNACK)),
    st.builds(codec.Connack, reasons(2, CONNACK_CODES), properties=properties(*CONNACK)),
    publishes(),
    st.builds(codec.Puback, packet_ids, reasons(4, PUBLISH_CODES), properties=properties(*ACK)),
    st.builds(codec.Pubrec, packet_ids, reasons(5, PUBLISH_CODES), properties=properties(*ACK)),
    st.builds(codec.Pubrel, packet_ids, reasons(6, "00 92"), properties=properties(*ACK)),
    st.builds(codec.Pubcomp, packet_ids, reasons(7, "00 92"), properties=properties(*ACK)),
    st.builds(codec.Subscribe, packet_ids, st.lists(subscriptions, min_size=1, max_size=4), properties=single_id),
    st.builds(codec.Suback, packet_ids, st.lists(reasons(9, SUBACK_CODES), min_size=1, max_size=4), properties=properties(*ACK)),
    st.builds(
        codec.Unsubscribe, packet_ids, st.lists(st.one_of(filters, shared_filters), min_size=1, max_size=4),
        properties=properties("user_properties"),
    ),
    st.builds(
        codec.Unsuback, packet_ids, st.lists(reasons(11, "00 11 80 83 87 8F 91"), min_size=1, max_size=4), properties=properties(*ACK)
    ),
    st.just(codec.Pingreq()),
    st.just(codec.Pingresp()),
    st.builds(
        codec.Disconnect, reasons(14, DISCONNECT_CODES), properties=properties(*ACK, "session_expiry_interval", "server_reference")
    ),
    st.builds(
        lambda code, method, data, rest: codec.Auth(
            code, properties=Properties(authentication_method=method, authentication_data=data, **rest.as_dict())
        ),
        reasons(15, "00 18 19"), texts, st.none() | binaries, properties(*ACK),
    ),
)  # fmt: skip

# What a refusal becomes on the wire of 3.x and is read as again; every other code has no counterpart there.
CONNACK_3 = {
    0x00: 0x00, 0x84: 0x84, 0x85: 0x85, 0x88: 0x88, 0x89: 0x88, 0x8B: 0x88, 0x97: 0x88, 0x9C: 0x88, 0x9D: 0x88, 0x9F: 0x88,
    0x86: 0x86, 0x87: 0x87, 0x8A: 0x87, 0x8C: 0x87,
}  # fmt: skip


def left_over(packet: codec.Packet, version: int) -> codec.Packet | None:
    """The packet that a receiver of this version sees; None if the version cannot say it."""
    if version == 5:
        return packet.replace(bridge=False) if isinstance(packet, codec.Connect) else packet
    none = Properties()
    match packet:
        case codec.Connect(will=will):
            return packet.replace(properties=none, will=will and will.replace(properties=none))
        case codec.Connack(reason_code=code):
            if code not in CONNACK_3:
                return None
            return codec.Connack(CONNACK_3[code], session_present=packet.session_present and version == 4)
        case codec.Publish():
            return packet.replace(properties=none)
        case codec.Puback() | codec.Pubrec() | codec.Pubrel() | codec.Pubcomp():
            return type(packet)(packet.packet_id)
        case codec.Subscribe():
            return codec.Subscribe(packet.packet_id, [codec.Subscription(one.topic_filter, one.qos) for one in packet.subscriptions])
        case codec.Suback():
            failure = 0x80 if version == 4 else 0x00
            return codec.Suback(packet.packet_id, [code if code < 0x80 else failure for code in packet.reason_codes])
        case codec.Unsubscribe():
            return packet.replace(properties=none)
        case codec.Unsuback():
            return codec.Unsuback(packet.packet_id)
        case codec.Disconnect():
            return codec.Disconnect()
        case codec.Auth():
            return None
    return packet
