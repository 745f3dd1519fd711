"""The statements of the standards that bind a client, each against the core alone: no socket, no clock."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from mqttc import codec
from mqttc.client.core import Authenticated, Challenge, Connected, Ended, Phase, Refused, Violation
from mqttc.client.options import Authentication
from mqttc.client.outgoing import Outgoing, Stage
from mqttc.client.requests import Request
from mqttc.client.store import SqliteStore
from mqttc.codec import Properties, ReasonCode
from mqttc.errors import ExpiredError, NotSupportedError, PublishError, QueueFullError
from tests.client.wire import Wire, ended, messages
from tests.conformance.statements import each_version, spec


def kinds(packets: list[codec.Packet]) -> list[str]:
    return [type(packet).__name__ for packet in packets]


def publish(
    topic: str = "t", payload: bytes = b"x", qos: int = 1, packet_id: int = 1, dup: bool = False, **properties: Any
) -> codec.Publish:
    """The broker's."""
    told = Properties(**properties) if properties else None
    return codec.Publish(topic, payload, qos=qos, packet_id=packet_id if qos else 0, dup=dup, properties=told)


# ---------------------------------------------------------------------------------------------------- CONNECT


@spec("3.1.1", "MQTT-3.1.0-1")
@spec("5", "MQTT-3.1.0-1")
@each_version
def test_connect_is_the_first_packet_whatever_waits(version: int) -> None:
    wire = Wire(version)
    wire.publish()
    wire.subscribe("a")
    assert not wire.core.out
    wire.open()  # asserts that CONNECT is all
    assert kinds(wire.connect()) == ["Subscribe", "Publish"]


@spec("3.1.1", "MQTT-3.1.3-7")
def test_an_empty_client_id_comes_with_clean_session() -> None:
    wire = Wire(4, client_id="")
    assert wire.open().clean_start
    with pytest.raises(ValueError, match="client_id"):
        Wire(4, client_id="", clean_start=False)


@pytest.mark.parametrize("version", [3, 4])
def test_a_session_that_lasts_is_no_clean_one(version: int) -> None:
    assert not Wire(version, session_expiry=1).open().clean_start
    assert Wire(version, session_expiry=0).open().clean_start


@spec("5", "MQTT-3.1.2-4")
def test_clean_start_is_for_the_first_connection() -> None:
    wire = Wire(session_expiry=60)
    connect = wire.open()
    assert connect.clean_start and connect.properties.session_expiry_interval == 60
    wire.connect()
    wire.cut()
    assert not wire.open().clean_start


def test_connect_says_what_the_client_takes() -> None:
    wire = Wire(receive_maximum=7, max_packet_size=1000, topic_alias_maximum=3, keep_alive=9, username="u", password="p",
                connect_properties=Properties(user_properties=[("a", "b")], request_response_information=True))  # fmt: skip
    connect = wire.open()
    told = connect.properties
    assert (told.receive_maximum, told.maximum_packet_size, told.topic_alias_maximum) == (7, 1000, 3)
    assert told.user_properties == (("a", "b"),) and told.request_response_information
    assert (connect.keep_alive, connect.username, connect.password) == (9, "u", b"p")


@spec("5", "MQTT-3.2.2-4")
@spec("3.1.1", "MQTT-3.1.2-6", "MQTT-4.8.0-1")
@each_version
def test_session_present_after_a_clean_start_ends_the_connection(version: int) -> None:
    wire = Wire(version)
    sent = wire.connect(session_present=True)
    assert isinstance(wire.events[-1], Violation) and ended(wire)
    assert sent == []


@spec("5", "MQTT-3.2.2-5", "MQTT-3.1.2-23", "MQTT-4.1.0-1")
@spec("3.1.1", "MQTT-3.1.2-4", "MQTT-4.1.0-1", "MQTT-4.1.0-2")
@each_version
def test_state_is_kept_with_the_session_and_discarded_without(version: int) -> None:
    wire = Wire(version, session_expiry=60)
    wire.connect()
    [held] = messages(wire.give(publish(qos=2, packet_id=9)))
    held.acknowledge()
    wire.sent()
    wire.cut()
    wire.connect(session_present=True)
    assert messages(wire.give(publish(qos=2, packet_id=9, dup=True))) == []  # the identifier was remembered
    wire.cut()
    wire.connect(session_present=False)
    assert len(messages(wire.give(publish(qos=2, packet_id=9, dup=True)))) == 1  # and forgotten


@spec("5", "MQTT-3.1.2-21", "MQTT-3.2.2-21")
def test_the_servers_keep_alive_rules() -> None:
    wire = Wire(keep_alive=60)
    wire.connect(server_keep_alive=5)
    assert wire.core.keep_alive == 5
    wire.cut()
    wire.connect()
    assert wire.core.keep_alive == 60


@spec("3.1.1", "MQTT-3.1.3-2")
@spec("5", "MQTT-3.1.3-2")
def test_the_broker_may_name_the_client() -> None:
    wire = Wire(client_id="")
    wire.connect(assigned_client_identifier="given")
    wire.cut()
    assert wire.open().client_id == "given"


@spec("5", "MQTT-4.13.2-1")
@pytest.mark.parametrize("code", [0x80, 0x84, 0x87, 0x9C])
def test_a_refusal(code: int) -> None:
    wire = Wire()
    wire.publish()
    wire.connect(reason_code=code, reason_string="because")
    [event] = wire.events
    assert isinstance(event, Refused) and event.packet.reason_code == code and ended(wire)
    assert not wire.core.out and wire.core.outgoing.queued == 1


# ---------------------------------------------------------------------------------------------------- what may not come


@spec("3.1.1", "MQTT-2.2.2-2", "MQTT-3.3.1-4", "MQTT-3.6.1-1", "MQTT-4.8.0-1", "MQTT-4.8.0-2")
@spec("5", "MQTT-3.3.1-4", "MQTT-3.6.1-1", "MQTT-3.14.1-1", "MQTT-3.15.1-1", "MQTT-3.8.1-1", "MQTT-3.10.1-1", "MQTT-4.13.2-1")
@each_version
@pytest.mark.parametrize(
    "data",
    [
        "36 05 00 01 61 00 01",  # both QoS bits
        "60 02 00 01",  # PUBREL without its flag
        "41 02 00 01",  # PUBACK with one
        "e1 00",  # DISCONNECT with a reserved bit
        "f1 00",  # AUTH with one
        "82 06 00 01 00 01 61 00",  # a client's SUBSCRIBE
        "a2 05 00 01 00 01 61",  # and UNSUBSCRIBE
        "c0 00",  # and PINGREQ
        "20 02 00 00",  # a second CONNACK
        "00 00",
    ],
)
def test_what_is_malformed_or_not_a_brokers_ends_the_connection(version: int, data: str) -> None:
    wire = Wire(version)
    wire.connect()
    [event] = wire.raw(data if version == 4 or data != "20 02 00 00" else "20 03 00 00 00")
    assert isinstance(event, Violation) and ended(wire)
    sent = wire.sent()
    assert kinds(sent) == (["Disconnect"] if version == 5 else [])
    if version == 5:
        assert sent[0].reason_code in (ReasonCode.MALFORMED_PACKET, ReasonCode.PROTOCOL_ERROR)  # type: ignore[attr-defined]


@spec("5", "MQTT-3.14.2-1")
def test_what_is_said_of_a_packet_that_is_too_large() -> None:
    wire = Wire(max_packet_size=100)
    wire.connect()
    [event] = wire.give(publish(payload=b"x" * 200))
    assert isinstance(event, Violation)
    [said] = wire.sent()
    assert isinstance(said, codec.Disconnect) and said.reason_code == ReasonCode.PACKET_TOO_LARGE


@each_version
def test_nothing_comes_before_connack(version: int) -> None:
    wire = Wire(version)
    wire.open()
    [event] = wire.give(publish(qos=0))
    assert isinstance(event, Violation) and wire.sent() == []


def test_a_disconnect_of_the_brokers() -> None:
    wire = Wire()
    wire.connect()
    [event] = wire.give(codec.Disconnect(ReasonCode.SERVER_MOVED, properties=Properties(server_reference="other")))
    assert isinstance(event, Ended) and event.packet.properties.server_reference == "other" and ended(wire)
    old = Wire(4)
    old.connect()
    [broken] = old.raw("e0 00")
    assert isinstance(broken, Violation)


@spec("3.1.1", "MQTT-3.14.4-2")
@spec("5", "MQTT-3.14.4-1")
@each_version
def test_nothing_follows_disconnect(version: int) -> None:
    wire = Wire(version)
    wire.connect()
    [message] = messages(wire.give(publish()))
    wire.core.disconnect()
    message.acknowledge()
    wire.publish()
    wire.core.ping()
    wire.core.disconnect()
    assert wire.give(publish(packet_id=2), codec.Pingresp()) == []
    assert kinds(wire.sent()) == ["Disconnect"]


# ---------------------------------------------------------------------------------------------------- sending


@spec("3.1.1", "MQTT-4.3.1-1", "MQTT-2.3.1-1")
@spec("5", "MQTT-4.3.1-1")
@each_version
def test_qos_0(version: int) -> None:
    wire = Wire(version)
    wire.connect()
    wire.core.publish_now("t", b"x", False, None)
    [packet] = wire.sent()
    assert isinstance(packet, codec.Publish) and (packet.qos, packet.dup, packet.packet_id) == (0, False, 0)


@spec("3.1.1", "MQTT-4.3.2-1", "MQTT-2.3.1-1", "MQTT-2.3.1-2")
@spec("5", "MQTT-4.3.2-1", "MQTT-4.3.2-2", "MQTT-4.3.2-3", "MQTT-2.2.1-3")
@each_version
def test_qos_1(version: int) -> None:
    wire = Wire(version)
    wire.connect()
    first, second = wire.publish("a"), wire.publish("b")
    packets = wire.sent()
    assert [(p.qos, p.dup) for p in packets] == [(1, False)] * 2  # type: ignore[attr-defined]
    assert first.packet_id != second.packet_id and 0 not in (first.packet_id, second.packet_id)
    assert wire.core.outgoing.unfinished == 2
    assert wire.give(codec.Puback(first.packet_id)) == [first]
    assert first.stage == Stage.DONE and second.stage == Stage.SENT


@spec("3.1.1", "MQTT-4.3.3-1", "MQTT-2.3.1-6")
@spec("5", "MQTT-4.3.3-1", "MQTT-4.3.3-2", "MQTT-4.3.3-3", "MQTT-4.3.3-4", "MQTT-4.3.3-5", "MQTT-2.2.1-5")
@each_version
def test_qos_2(version: int) -> None:
    wire = Wire(version)
    wire.connect()
    entry = wire.publish(qos=2)
    [packet] = wire.sent()
    assert isinstance(packet, codec.Publish) and (packet.qos, packet.dup) == (2, False)
    assert wire.give(codec.Puback(entry.packet_id)) == []  # that is no answer to it
    assert wire.give(codec.Pubcomp(entry.packet_id)) == []  # nor is this, before PUBREC
    assert entry.stage == Stage.SENT
    assert wire.give(codec.Pubrec(entry.packet_id)) == []
    [release] = wire.sent()
    assert isinstance(release, codec.Pubrel) and release.packet_id == entry.packet_id and release.reason_code == 0
    assert wire.core.outgoing.unfinished == 1
    wire.give(codec.Pubrec(entry.packet_id))  # again
    assert kinds(wire.sent()) == ["Pubrel"]
    assert wire.give(codec.Pubcomp(entry.packet_id)) == [entry]
    assert wire.core.outgoing.unfinished == 0 and wire.core.stats.unclaimed == 2


@spec("3.1.1", "MQTT-2.3.1-2", "MQTT-2.3.1-3")
@spec("5", "MQTT-2.2.1-3")
@each_version
def test_identifiers_in_use_are_not_given_again(version: int) -> None:
    """All kinds share them; three stay in use while all others go round."""
    wire = Wire(version, max_inflight=100)
    wire.connect()
    held = [wire.publish(), wire.publish(qos=2)]
    request = wire.subscribe("a")
    taken = {held[0].packet_id, held[1].packet_id, request.packet_id}
    assert len(taken) == 3
    wire.give(codec.Pubrec(held[1].packet_id))
    wire.core.take()
    seen = set()
    for _ in range(65535):
        entry = wire.publish(payload=b"")
        seen.add(entry.packet_id)
        wire.give(codec.Puback(entry.packet_id))
        wire.core.take()
    assert seen == set(range(1, 65536)) - taken


def test_when_every_identifier_is_in_use_messages_wait() -> None:
    wire = Wire(4, max_inflight=65535, max_queued_messages=10)
    wire.connect()
    entries = [wire.publish(payload=b"") for _ in range(65535)]
    waiting, asked = wire.publish(), wire.subscribe("a")
    wire.core.take()
    assert waiting.stage == Stage.QUEUED and asked.packet_id == 0
    wire.give(codec.Puback(entries[4].packet_id), codec.Puback(entries[7].packet_id))
    assert {asked.packet_id, waiting.packet_id} == {entries[4].packet_id, entries[7].packet_id}


@spec("3.1.1", "MQTT-3.3.2-2", "MQTT-4.7.1-1", "MQTT-4.7.3-1")
@spec("5", "MQTT-3.3.2-2", "MQTT-4.7.0-1", "MQTT-4.7.3-1")
@each_version
@pytest.mark.parametrize("topic", ["a/+", "#", "", "a\0b"])
@pytest.mark.parametrize("online", [False, True])
def test_a_topic_that_is_none_is_never_sent(version: int, topic: str, online: bool) -> None:
    wire = Wire(version)
    if online:
        wire.connect(**({"topic_alias_maximum": 5} if version == 5 else {}))
    for qos in (0, 1, 2):
        with pytest.raises(codec.InvalidTopicError):
            wire.publish(topic, qos=qos)
    if online:
        with pytest.raises(codec.InvalidTopicError):
            wire.core.publish_now(topic, b"", False, None)
    assert not wire.core.out and wire.core.outgoing.unfinished == 0
    if online:
        wire.publish("good")
        assert kinds(wire.sent()) == ["Publish"]


@spec("5", "MQTT-3.3.2-14")
def test_a_response_topic_has_no_wildcards() -> None:
    with pytest.raises(codec.CodecError):
        Wire().publish(response_topic="a/#")


@spec("3.1.1", "MQTT-3.8.3-3", "MQTT-3.10.3-2", "MQTT-4.7.1-2", "MQTT-4.7.1-3", "MQTT-4.7.3-1")
@spec("5", "MQTT-3.8.3-2", "MQTT-3.10.3-2", "MQTT-4.7.1-1", "MQTT-4.7.1-2", "MQTT-4.8.2-1", "MQTT-4.8.2-2", "MQTT-3.8.3-4")
def test_requests_that_the_standard_forbids() -> None:
    for name in ("a/b#", "#/a", "a+", "", "$share//a", "$share/x", "$share/a+b/c"):
        with pytest.raises(codec.CodecError):
            codec.Subscription(name)
        with pytest.raises(codec.CodecError):
            Wire().core.request(Request(topic_filters=(name,)))
    with pytest.raises(codec.CodecError):
        codec.Subscribe(1, [])
    with pytest.raises(codec.CodecError):
        codec.Unsubscribe(1, [])
    with pytest.raises(codec.CodecError):
        codec.encode(codec.Subscribe(1, [codec.Subscription("$share/g/a", no_local=True)]), 5)


@spec("3.1.1", "MQTT-3.8.1-1", "MQTT-3.10.1-1", "MQTT-3.6.1-1")
@each_version
def test_flags_of_what_is_sent(version: int) -> None:
    wire = Wire(version)
    wire.connect()
    entry = wire.publish(qos=2)
    wire.core.take()
    wire.subscribe("a")
    assert wire.core.take()[0] == 0x82
    wire.core.request(Request(topic_filters=("a",)))
    assert wire.core.take()[0] == 0xA2
    wire.give(codec.Pubrec(entry.packet_id))
    assert wire.core.take()[0] == 0x62


@spec("5", "MQTT-4.4.0-2")
@pytest.mark.parametrize("qos", [1, 2])
def test_a_refused_message_is_acknowledged_and_gone(qos: int) -> None:
    wire = Wire(session_expiry=60)
    wire.connect(receive_maximum=1)
    entry, other = wire.publish(qos=qos), wire.publish(qos=qos)
    answer = codec.Puback if qos == 1 else codec.Pubrec
    assert wire.give(answer(entry.packet_id, 0x87, properties=Properties(reason_string="no"))) == [entry]
    assert isinstance(entry.error, PublishError) and entry.error.reason_code == 0x87 and "no" in str(entry.error)
    assert other.stage == Stage.SENT  # its place in the window is free
    assert kinds(wire.sent()) == ["Publish", "Publish"]
    wire.cut()
    assert [p.packet_id for p in wire.connect(session_present=True)] == [other.packet_id]  # type: ignore[attr-defined]


@spec("5", "MQTT-4.3.3-5")
def test_a_pubcomp_that_was_lost() -> None:
    """The broker does not know the identifier any more when PUBREL comes again: the message is delivered all the same."""
    wire = Wire(session_expiry=60)
    wire.connect()
    entry = wire.publish(qos=2)
    wire.give(codec.Pubrec(entry.packet_id, 0x10))
    wire.cut()
    wire.connect(session_present=True)
    assert wire.give(codec.Pubcomp(entry.packet_id, ReasonCode.PACKET_IDENTIFIER_NOT_FOUND)) == [entry]
    assert entry.error is None and entry.result.reason_code == ReasonCode.NO_MATCHING_SUBSCRIBERS


def test_an_answer_with_properties_is_handed_on() -> None:
    wire = Wire()
    wire.connect()
    entry = wire.publish()
    wire.give(codec.Puback(entry.packet_id, 0x10, properties=Properties(user_properties=[("k", "v")])))
    assert entry.result.reason_code == ReasonCode.NO_MATCHING_SUBSCRIBERS
    assert entry.result.properties.user_properties == (("k", "v"),)


# ---------------------------------------------------------------------------------------------------- sending again


@spec("3.1.1", "MQTT-3.3.1-1", "MQTT-4.4.0-1", "MQTT-4.6.0-1", "MQTT-4.6.0-4", "MQTT-2.3.1-3")
@spec("5", "MQTT-3.3.1-1", "MQTT-4.4.0-1", "MQTT-4.6.0-1", "MQTT-4.6.0-4", "MQTT-4.3.3-6")
@each_version
def test_what_has_no_acknowledgement_is_sent_again(version: int) -> None:
    wire = Wire(version, session_expiry=60)
    wire.connect()
    entries = [wire.publish(f"t{number}", qos=1 + number % 2) for number in range(6)]
    ids = [entry.packet_id for entry in entries]
    wire.give(codec.Pubrec(ids[5]), codec.Pubrec(ids[1]), codec.Puback(ids[0]))
    assert [p.packet_id for p in wire.sent() if isinstance(p, codec.Pubrel)] == [ids[5], ids[1]]
    wire.cut()
    assert not wire.core.out
    again = wire.connect(session_present=True)
    assert [p.packet_id for p in again if isinstance(p, codec.Pubrel)] == [ids[5], ids[1]]
    sent = [p for p in again if isinstance(p, codec.Publish)]
    assert [(p.topic, p.packet_id, p.dup) for p in sent] == [(f"t{n}", ids[n], True) for n in (2, 3, 4)]
    assert wire.core.stats.resent == 3


def test_what_is_sent_again_keeps_to_the_window() -> None:
    wire = Wire(session_expiry=60)
    wire.connect()
    entries = [wire.publish() for _ in range(5)]
    wire.publish()
    wire.core.take()
    wire.cut()
    assert [p.packet_id for p in wire.connect(session_present=True, receive_maximum=2)] == [e.packet_id for e in entries[:2]]  # type: ignore[attr-defined]
    wire.give(codec.Puback(entries[0].packet_id))
    [third] = wire.sent()
    assert isinstance(third, codec.Publish) and third.packet_id == entries[2].packet_id and third.dup


@spec("3.1.1", "MQTT-3.1.2-6")
@spec("5", "MQTT-3.2.2-5")
@each_version
def test_when_the_session_is_gone_messages_are_new_ones(version: int) -> None:
    """The broker knows no identifier any more. What it asked to be released it has had."""
    wire = Wire(version, session_expiry=60)
    wire.connect()
    released, waiting = wire.publish("r", qos=2), wire.publish("w", qos=2)
    wire.give(codec.Pubrec(released.packet_id))
    wire.cut()
    late = wire.publish("late")
    sent = wire.connect(session_present=False)
    connected = wire.events[0]
    assert isinstance(connected, Connected) and connected.finished == [released]
    assert [(p.topic, p.dup) for p in sent] == [("w", False), ("late", False)]  # type: ignore[attr-defined]
    assert waiting.stage == late.stage == Stage.SENT


@each_version
def test_subscriptions_are_made_again_when_the_session_is_gone(version: int) -> None:
    wire = Wire(version, session_expiry=60)
    wire.connect()
    first = wire.subscribe("a", "b/#", qos=1)
    wire.give(codec.Suback(first.packet_id, [1, 0x80]))
    wire.core.take()
    wire.cut()
    assert wire.connect(session_present=True) == []
    wire.cut()
    [again] = wire.connect(session_present=False)
    assert isinstance(again, codec.Subscribe) and again.subscriptions == (codec.Subscription("a", 1),)
    wire.cut()  # before SUBACK: the broker may have a session by now, but who knows about the subscription
    [once_more] = wire.connect(session_present=True)
    assert isinstance(once_more, codec.Subscribe)
    [event] = wire.give(codec.Suback(once_more.packet_id, [0x80]))
    assert isinstance(event, Request) and event.own and not wire.core.filters
    wire.cut()
    assert wire.connect(session_present=False) == []


def test_subscribing_again_keeps_identifiers_apart_and_packets_small() -> None:
    wire = Wire()
    wire.connect()
    numbered = wire.subscribe("numbered", properties=Properties(subscription_identifiers=[7]))
    many = [wire.subscribe(f"{number}/" + "x" * 3000) for number in range(5)]
    for request in (numbered, *many):
        wire.give(codec.Suback(request.packet_id, [2]))
    wire.core.take()
    wire.cut()
    packets = [p for p in wire.connect() if isinstance(p, codec.Subscribe)]
    assert [len(p.subscriptions) for p in packets] == [1, 2, 2, 1]
    assert packets[0].properties.subscription_identifiers == (7,)
    assert len({p.packet_id for p in packets}) == 4


def test_a_request_without_an_answer_is_sent_again() -> None:
    wire = Wire(session_expiry=60)
    wire.connect()
    request = wire.subscribe("a")
    wire.core.take()
    wire.cut()
    [again] = wire.connect(session_present=True)
    assert isinstance(again, codec.Subscribe)
    assert wire.give(codec.Suback(again.packet_id, [2])) == [request]
    assert request.reason_codes == (2,)


def test_an_answer_of_the_wrong_length_ends_the_connection() -> None:
    wire = Wire()
    wire.connect()
    request = wire.subscribe("a", "b")
    [event] = wire.give(codec.Suback(request.packet_id, [0]))
    assert isinstance(event, Violation)


def test_answers_that_nobody_waits_for_are_counted() -> None:
    wire = Wire()
    wire.connect()
    assert wire.give(codec.Puback(9), codec.Pubcomp(9), codec.Suback(9, [0]), codec.Unsuback(9, [0])) == []
    assert wire.core.stats.unclaimed == 4
    wire.give(codec.Pubrec(9))
    [answer] = wire.sent()
    assert isinstance(answer, codec.Pubrel) and answer.reason_code == ReasonCode.PACKET_IDENTIFIER_NOT_FOUND


# ---------------------------------------------------------------------------------------------------- what the broker allows


@spec("5", "MQTT-3.3.4-7", "MQTT-4.9.0-1", "MQTT-4.9.0-2")
def test_receive_maximum_of_the_broker() -> None:
    wire = Wire()
    wire.connect(receive_maximum=2)
    entries = [wire.publish(qos=2), *(wire.publish() for _ in range(3))]
    assert len(wire.sent()) == 2
    wire.give(codec.Pubrec(entries[0].packet_id))
    assert kinds(wire.sent()) == ["Pubrel"]  # the place is free at PUBCOMP only
    wire.give(codec.Pubcomp(entries[0].packet_id))
    assert kinds(wire.sent()) == ["Publish"]
    wire.give(codec.Puback(entries[1].packet_id), codec.Puback(entries[1].packet_id))
    assert kinds(wire.sent()) == ["Publish"]
    assert wire.core.outgoing.queued == 0


@spec("5", "MQTT-3.3.4-8", "MQTT-4.9.0-3")
def test_a_full_window_holds_nothing_else_up() -> None:
    wire = Wire()
    wire.connect(receive_maximum=1)
    for _ in range(3):
        wire.publish()
    wire.core.take()
    [message] = messages(wire.give(publish(qos=2, packet_id=5)))
    message.acknowledge()
    wire.give(codec.Pubrel(5))
    wire.core.ping()
    wire.subscribe("a")
    wire.core.request(Request(topic_filters=("a",)))
    assert kinds(wire.sent()) == ["Pubrec", "Pubcomp", "Pingreq", "Subscribe", "Unsubscribe"]


@spec("5", "MQTT-3.2.2-11")
def test_maximum_qos() -> None:
    wire = Wire()
    queued = wire.publish(qos=2)
    wire.connect(maximum_qos=0)
    assert isinstance(queued.error, NotSupportedError) and queued in wire.events
    for qos in (1, 2):
        with pytest.raises(NotSupportedError) as caught:
            wire.publish(qos=qos)
        assert caught.value.reason_code == ReasonCode.QOS_NOT_SUPPORTED
    wire.core.publish_now("t", b"", False, None)
    assert [p.qos for p in wire.sent()] == [0]  # type: ignore[attr-defined]


@spec("5", "MQTT-3.2.2-14")
def test_no_retained_messages() -> None:
    wire = Wire()
    queued = wire.publish(retain=True)
    wire.connect(retain_available=False)
    assert isinstance(queued.error, NotSupportedError)
    with pytest.raises(NotSupportedError):
        wire.publish(retain=True)
    with pytest.raises(NotSupportedError):
        wire.core.publish_now("t", b"", True, None)
    assert wire.sent() == [] and wire.core.outgoing.unfinished == 0


@spec("5", "MQTT-3.2.2-15")
def test_maximum_packet_size_of_the_broker() -> None:
    wire = Wire()
    queued, small = wire.publish(payload=b"x" * 100), wire.publish(payload=b"y")
    sent = wire.connect(maximum_packet_size=50, topic_alias_maximum=5)
    assert isinstance(queued.error, NotSupportedError) and queued.error.reason_code == ReasonCode.PACKET_TOO_LARGE
    assert [p.payload for p in sent] == [b"y"]  # type: ignore[attr-defined]
    with pytest.raises(NotSupportedError):
        wire.publish("new", payload=b"x" * 100)
    with pytest.raises(NotSupportedError):
        wire.core.publish_now("new", b"x" * 100, False, None)
    large = wire.subscribe("f" * 60)
    assert isinstance(large.error, NotSupportedError) and wire.sent() == []
    wire.core.publish_now("new", b"", False, None)
    [packet] = wire.sent()
    assert packet.topic == "new"  # type: ignore[attr-defined]  # its alias was not taken for told
    assert small.stage == Stage.SENT


@pytest.mark.parametrize(
    ("name", "topic_filter", "code"),
    [
        ("wildcard_subscription_available", "a/+", ReasonCode.WILDCARD_SUBSCRIPTIONS_NOT_SUPPORTED),
        ("shared_subscription_available", "$share/g/a", ReasonCode.SHARED_SUBSCRIPTIONS_NOT_SUPPORTED),
        ("subscription_identifier_available", "a", ReasonCode.SUBSCRIPTION_IDENTIFIERS_NOT_SUPPORTED),
    ],
)
def test_subscriptions_that_the_broker_does_not_have(name: str, topic_filter: str, code: ReasonCode) -> None:
    wire = Wire()
    wire.connect(**{name: False})
    with pytest.raises(NotSupportedError) as caught:
        wire.subscribe(topic_filter, properties=Properties(subscription_identifiers=[1]))
    assert caught.value.reason_code == code and wire.sent() == []


@spec("5", "MQTT-3.2.2-17", "MQTT-3.3.2-9", "MQTT-3.3.2-8", "MQTT-3.3.2-7")
def test_topic_aliases_of_ours() -> None:
    wire = Wire(session_expiry=60)
    wire.connect(topic_alias_maximum=2)
    for topic in ("a", "b", "a", "c", "a", "b"):
        wire.core.publish_now(topic, b"", False, None)
    shown = [(p.topic, p.properties.topic_alias) for p in wire.sent()]  # type: ignore[attr-defined]
    assert shown == [("a", 1), ("b", 2), ("", 1), ("c", 1), ("a", 2), ("b", 1)]
    entry = wire.publish("b")
    assert [(p.topic, p.properties.topic_alias) for p in wire.sent()] == [("", 1)]  # type: ignore[attr-defined]
    wire.cut()
    [again] = wire.connect(session_present=True, topic_alias_maximum=2)
    assert isinstance(again, codec.Publish) and again.topic == "b" and entry.packet_id == again.packet_id


@spec("5", "MQTT-3.2.2-18")
def test_no_topic_alias_where_none_is_allowed() -> None:
    wire = Wire()
    for told in ({}, {"topic_alias_maximum": 0}):
        wire.connect(**told)
        for _ in range(2):
            wire.core.publish_now("a", b"", False, None)
        assert [(p.topic, p.properties.topic_alias) for p in wire.sent()] == [("a", None)] * 2  # type: ignore[attr-defined]
        wire.cut()


def test_an_alias_beside_properties() -> None:
    wire = Wire()
    wire.connect(topic_alias_maximum=2)
    own = Properties(content_type="text/plain", user_properties=[("a", "b"), ("a", "c")])
    for topic in ("short", "x" * 40, "x" * 40):
        wire.core.publish_now(topic, b"", False, own)
    packets = wire.sent()
    assert [(len(p.topic), p.properties.topic_alias) for p in packets] == [(5, None), (40, 1), (0, 1)]  # type: ignore[attr-defined]
    assert all(p.properties.user_properties == own.user_properties for p in packets)
    assert all(p.properties.content_type == "text/plain" for p in packets)


@spec("5", "MQTT-3.3.4-6")
def test_a_message_of_ours_has_no_subscription_identifier() -> None:
    from mqttc.client.client import _check_publish_properties

    with pytest.raises(ValueError, match=r"MQTT-3\.3\.4-6"):
        _check_publish_properties(Properties(subscription_identifiers=[1]))
    with pytest.raises(ValueError, match="aliases"):
        _check_publish_properties(Properties(topic_alias=1))
    _check_publish_properties(Properties(content_type="x"))


# ---------------------------------------------------------------------------------------------------- receiving


@spec("3.1.1", "MQTT-3.3.4-1", "MQTT-4.3.2-2", "MQTT-4.5.0-2", "MQTT-2.3.1-6")
@spec("5", "MQTT-3.3.4-1", "MQTT-4.3.2-4", "MQTT-4.3.2-5", "MQTT-4.5.0-2", "MQTT-2.2.1-5")
@each_version
def test_answers_to_qos_0_and_1(version: int) -> None:
    wire = Wire(version)
    wire.connect()
    events = messages(wire.give(publish(qos=0), publish(packet_id=7)))
    events[0].acknowledge()
    assert wire.sent() == []
    events[1].acknowledge()
    events[1].acknowledge()
    [answer] = wire.sent()
    assert isinstance(answer, codec.Puback) and answer.packet_id == 7
    assert len(messages(wire.give(publish(packet_id=7, dup=True)))) == 1  # acknowledged: the identifier is a new message's


@spec("3.1.1", "MQTT-4.3.3-2", "MQTT-2.3.1-6")
@spec("5", "MQTT-4.3.3-8", "MQTT-4.3.3-10", "MQTT-4.3.3-11", "MQTT-4.3.3-12", "MQTT-2.2.1-5")
@each_version
def test_answers_to_qos_2(version: int) -> None:
    wire = Wire(version)
    wire.connect()
    [message] = messages(wire.give(publish(qos=2, packet_id=7)))
    assert wire.give(publish(qos=2, packet_id=7, dup=True)) == [] and wire.sent() == []  # still unread
    message.acknowledge()
    assert [(type(p), p.packet_id) for p in wire.sent()] == [(codec.Pubrec, 7)]  # type: ignore[attr-defined]
    assert wire.give(publish(qos=2, packet_id=7, dup=True)) == []
    assert [(type(p), p.packet_id) for p in wire.sent()] == [(codec.Pubrec, 7)]  # type: ignore[attr-defined]
    assert wire.give(codec.Pubrel(7)) == []
    assert [(type(p), p.packet_id) for p in wire.sent()] == [(codec.Pubcomp, 7)]  # type: ignore[attr-defined]
    assert wire.core.stats.repetitions == 2
    assert len(messages(wire.give(publish(qos=2, packet_id=7)))) == 1


@spec("5", "MQTT-4.3.3-9", "MQTT-3.5.2-1", "MQTT-3.4.2-1", "MQTT-3.6.2-1", "MQTT-3.7.2-1")
def test_refusing_a_message() -> None:
    wire = Wire()
    wire.connect()
    [one, two] = messages(wire.give(publish(packet_id=1), publish(qos=2, packet_id=2)))
    one.acknowledge(ReasonCode.QUOTA_EXCEEDED)
    two.acknowledge(ReasonCode.PAYLOAD_FORMAT_INVALID)
    assert [p.reason_code for p in wire.sent()] == [0x97, 0x99]  # type: ignore[attr-defined]
    assert len(messages(wire.give(publish(qos=2, packet_id=2, dup=True)))) == 1  # refused: it is a new one
    wire.give(codec.Pubrel(9))
    [unknown] = wire.sent()
    assert isinstance(unknown, codec.Pubcomp) and unknown.reason_code == ReasonCode.PACKET_IDENTIFIER_NOT_FOUND


@spec("3.1.1", "MQTT-4.6.0-2", "MQTT-4.6.0-3")
@spec("5", "MQTT-4.6.0-2", "MQTT-4.6.0-3")
@each_version
def test_acknowledgements_leave_in_the_order_of_arrival(version: int) -> None:
    wire = Wire(version)
    wire.connect()
    arrived = messages(wire.give(*(publish(qos=1 + number % 2, packet_id=number + 1) for number in range(6))))
    for number in (4, 5, 2, 3):
        arrived[number].acknowledge()
    assert wire.sent() == []
    arrived[0].acknowledge()
    assert [(type(p), p.packet_id) for p in wire.sent()] == [(codec.Puback, n) for n in (1, 3, 5)]  # type: ignore[attr-defined]
    arrived[1].acknowledge()
    assert [(type(p), p.packet_id) for p in wire.sent()] == [(codec.Pubrec, n) for n in (2, 4, 6)]  # type: ignore[attr-defined]


@each_version
def test_what_is_unread_is_not_given_out_twice_after_a_reconnect(version: int) -> None:
    """Read before the broker sends it again, after, or not at all."""
    wire = Wire(version, session_expiry=60)
    wire.connect()
    arriving = [publish(packet_id=1), publish(packet_id=2), publish(qos=2, packet_id=3), publish(packet_id=4)]
    before, after, unread, refused = messages(wire.give(*arriving))
    wire.cut()
    before.acknowledge()
    assert not wire.core.out
    wire.connect(session_present=True)
    assert wire.give(*(publish(qos=1, packet_id=n, dup=True) for n in (1, 2)), publish(qos=2, packet_id=3, dup=True)) == []
    assert [(type(p), p.packet_id) for p in wire.sent()] == [(codec.Puback, 1)]  # type: ignore[attr-defined]
    after.acknowledge()
    assert [(type(p), p.packet_id) for p in wire.sent()] == [(codec.Puback, 2)]  # type: ignore[attr-defined]
    unread.acknowledge()
    assert [(type(p), p.packet_id) for p in wire.sent()] == [(codec.Pubrec, 3)]  # type: ignore[attr-defined]
    [other] = messages(wire.give(publish(payload=b"new", packet_id=4)))  # without DUP it is another message
    refused.acknowledge()
    assert wire.sent() == [] and other.payload == b"new"
    other.acknowledge()
    assert kinds(wire.sent()) == ["Puback"]


def test_acknowledgements_of_a_session_that_is_gone_go_nowhere() -> None:
    wire = Wire(session_expiry=60)
    wire.connect()
    [old] = messages(wire.give(publish(packet_id=1)))
    wire.cut()
    wire.connect(session_present=False)
    [new] = messages(wire.give(publish(packet_id=1)))
    old.acknowledge()
    assert wire.sent() == []
    new.acknowledge()
    assert kinds(wire.sent()) == ["Puback"]


def test_more_than_receive_maximum_ends_the_connection() -> None:
    wire = Wire(receive_maximum=2)
    wire.connect()
    [first] = messages(wire.give(publish(qos=2, packet_id=1)))
    first.acknowledge()  # PUBREC frees nothing yet
    assert len(messages(wire.give(publish(packet_id=2)))) == 1
    [event] = wire.give(publish(packet_id=3))
    assert isinstance(event, Violation)
    said = wire.sent()[-1]
    assert isinstance(said, codec.Disconnect) and said.reason_code == ReasonCode.RECEIVE_MAXIMUM_EXCEEDED
    fine = Wire(receive_maximum=1)
    fine.connect()
    for number in range(1, 5):
        [message] = messages(fine.give(publish(qos=2, packet_id=number)))
        message.acknowledge()
        fine.give(codec.Pubrel(number))
    assert fine.core.phase is Phase.ONLINE


@spec("5", "MQTT-3.3.2-10", "MQTT-3.3.2-7")
def test_topic_aliases_of_the_broker() -> None:
    wire = Wire(topic_alias_maximum=3)
    wire.connect()
    for number in (1, 2, 3):
        wire.give(publish(f"t{number}", qos=0, topic_alias=number))
    found = [message.topic for number in (3, 1, 2) for message in messages(wire.give(publish("", qos=0, topic_alias=number)))]
    assert found == ["t3", "t1", "t2"]
    wire.give(publish("other", qos=0, topic_alias=1))
    assert messages(wire.give(publish("", qos=0, topic_alias=1)))[0].topic == "other"
    wire.cut()
    wire.connect()
    [event] = wire.give(publish("", qos=0, topic_alias=1))
    assert isinstance(event, Violation)


@pytest.mark.parametrize("told", [{"topic_alias": 4}, {"topic_alias": 2}, {}])
def test_an_alias_that_means_nothing_ends_the_connection(told: dict[str, int]) -> None:
    wire = Wire(topic_alias_maximum=3)
    wire.connect()
    data = bytes.fromhex("30 03 00 00 00") if not told else codec.encode(publish("", qos=0, **told), 5)
    [event] = wire.core.receive(data)
    assert isinstance(event, Violation) and ended(wire)


@spec("5", "MQTT-4.3.3-7", "MQTT-4.3.3-13")
def test_message_expiry_changes_nothing_of_an_exchange_that_has_begun() -> None:
    wire = Wire(session_expiry=60)
    wire.connect()
    wire.publish(qos=2, message_expiry_interval=1)
    wire.core.take()
    wire.cut()
    [again] = wire.connect(session_present=True)
    assert isinstance(again, codec.Publish) and again.dup and again.properties.message_expiry_interval == 1
    [message] = messages(wire.give(publish(qos=2, packet_id=9, message_expiry_interval=1)))
    message.acknowledge()
    assert kinds(wire.sent()) == ["Pubrec"]


_LEAVE_OUT = ("MQTT-3.4.2-2", "MQTT-3.4.2-3", "MQTT-3.5.2-2", "MQTT-3.5.2-3", "MQTT-3.6.2-2", "MQTT-3.6.2-3", "MQTT-3.7.2-2")
_LEAVE_OUT_TOO = ("MQTT-3.7.2-3", "MQTT-3.14.2-3", "MQTT-3.14.2-4", "MQTT-3.15.2-2", "MQTT-3.15.2-3")


@spec("5", *_LEAVE_OUT, *_LEAVE_OUT_TOO)
def test_answers_have_no_reason_string_and_no_user_properties() -> None:
    """So that they never exceed the broker's Maximum Packet Size."""
    wire = Wire(authentication=Authentication("m", lambda data: data))
    wire.connect(authentication_method="m")
    entry = wire.publish(qos=2)
    wire.core.take()
    one, two = messages(wire.give(publish(packet_id=1), publish(qos=2, packet_id=2)))
    one.acknowledge(0x80)
    two.acknowledge()
    wire.give(codec.Pubrel(2), codec.Pubrec(entry.packet_id))
    wire.core.authenticate(b"x", again=True)
    wire.core.disconnect(0x81)
    packets = wire.sent()
    assert sorted(kinds(packets)) == ["Auth", "Disconnect", "Puback", "Pubcomp", "Pubrec", "Pubrel"]
    assert all(p.properties.reason_string is None and not p.properties.user_properties for p in packets)


# ---------------------------------------------------------------------------------------------------- authentication


@spec("5", "MQTT-3.1.2-30", "MQTT-4.12.0-3", "MQTT-4.12.0-5", "MQTT-3.15.2-1")
def test_enhanced_authentication() -> None:
    wire = Wire(authentication=Authentication("m", lambda data: data))
    wire.publish()
    wire.subscribe("a")
    connect = wire.open()
    assert connect.properties.authentication_method == "m"
    told = Properties(authentication_method="m", authentication_data=b"who?")
    for _ in range(2):
        [event] = wire.give(codec.Auth(0x18, properties=told))
        assert isinstance(event, Challenge) and event.data == b"who?"
        wire.core.ping()
        wire.core.authenticate(b"me")
        [answer] = wire.sent()  # nothing but AUTH, whatever waits
        assert isinstance(answer, codec.Auth) and answer.reason_code == 0x18
        assert (answer.properties.authentication_method, answer.properties.authentication_data) == ("m", b"me")
    wire.give(codec.Connack(properties=Properties(authentication_method="m")))
    assert kinds(wire.sent()) == ["Subscribe", "Publish"]


@spec("5", "MQTT-4.12.1-1", "MQTT-4.12.1-2")
def test_re_authentication() -> None:
    wire = Wire(authentication=Authentication("m", lambda data: data))
    wire.connect(authentication_method="m")
    wire.core.authenticate(b"1", again=True)
    [begin] = wire.sent()
    assert isinstance(begin, codec.Auth) and begin.reason_code == 0x19 and begin.properties.authentication_method == "m"
    wire.give(codec.Auth(0x18, properties=Properties(authentication_method="m")))
    wire.core.authenticate(b"2")
    wire.sent()
    [event] = wire.give(codec.Auth(0, properties=Properties(authentication_method="m")))
    assert isinstance(event, Authenticated)
    wire.core.authenticate(b"1", again=True)
    [failed] = wire.give(codec.Disconnect(0x87))
    assert isinstance(failed, Ended) and ended(wire)


@spec("5", "MQTT-4.12.0-7")
def test_no_auth_without_a_method() -> None:
    wire = Wire()
    wire.connect()
    with pytest.raises(NotSupportedError):
        wire.core.authenticate(b"x", again=True)
    assert wire.sent() == []
    [event] = wire.give(codec.Auth(0x18, properties=Properties(authentication_method="m")))
    assert isinstance(event, Violation) and kinds(wire.sent()) == ["Disconnect"]


def test_auth_of_another_method_ends_the_connection() -> None:
    wire = Wire(authentication=Authentication("m", lambda data: data))
    wire.open()
    [event] = wire.give(codec.Auth(0x18, properties=Properties(authentication_method="other")))
    assert isinstance(event, Violation)


# ---------------------------------------------------------------------------------------------------- bounds


@each_version
def test_the_queue_is_bounded_in_messages_and_in_bytes(version: int) -> None:
    wire = Wire(version, max_queued_messages=3)
    entries = [wire.publish(qos=number % 3) for number in range(3)]
    with pytest.raises(QueueFullError, match="max_queued_messages 3"):
        wire.publish()
    assert wire.core.outgoing.withdraw(entries[1]) and not wire.core.outgoing.withdraw(entries[1])
    wire.publish("last")
    assert [p.topic for p in wire.connect()] == ["t", "t", "last"]  # type: ignore[attr-defined]
    small = Wire(version, max_queued_bytes=1000)
    small.publish(payload=b"x" * 500)
    with pytest.raises(QueueFullError, match="max_queued_bytes 1000"):
        small.publish(payload=b"x" * 500)
    assert small.core.outgoing.queued == 1


def test_requests_are_bounded() -> None:
    wire = Wire(max_requests=2)
    wire.subscribe("a")
    wire.subscribe("b")
    with pytest.raises(QueueFullError, match="max_requests 2"):
        wire.subscribe("c")
    assert kinds(wire.connect()) == ["Subscribe", "Subscribe"]


def test_a_message_cannot_be_taken_back_once_it_is_sent() -> None:
    wire = Wire()
    wire.connect()
    entry = wire.publish()
    assert not wire.core.outgoing.withdraw(entry)


def test_any_split_of_what_is_read_means_the_same() -> None:
    packets = [publish(qos=0), publish(packet_id=1), codec.Pingresp(), publish(qos=2, packet_id=2)]
    data = b"".join(codec.encode(packet, 5) for packet in packets)
    for at in range(len(data)):
        wire = Wire()
        wire.connect()
        events = wire.core.receive(data[:at]) + wire.core.receive(data[at:])
        assert [m.qos for m in messages(events)] == [0, 1, 2]


def test_events_before_a_violation_are_not_lost() -> None:
    wire = Wire()
    wire.connect()
    entry = wire.publish()
    data = codec.encode(codec.Puback(entry.packet_id), 5) + codec.encode(publish(qos=0), 5) + b"\x00\x00"
    events = wire.core.receive(data)
    assert entry in events[:2] and isinstance(entry, Outgoing)
    assert len(messages(events)) == 1 and isinstance(events[-1], Violation)


# ---------------------------------------------------------------------------------------------------- messages that expire


def test_what_is_left_of_the_interval_is_sent() -> None:
    """Of what waited, and of what is sent again, as a broker does [MQTT-3.3.2-6]; never 0, which would be another meaning to some."""
    wire = Wire(session_expiry=60)
    waiting = wire.publish(payload=b"1", message_expiry_interval=10, content_type="a")
    wire.publish(payload=b"2", qos=0, message_expiry_interval=3)
    wire.now += 1.5
    first, second = wire.connect()
    assert isinstance(first, codec.Publish) and isinstance(second, codec.Publish)
    assert first.properties.as_dict() == {"message_expiry_interval": 9, "content_type": "a"}
    assert second.properties.message_expiry_interval == 2
    wire.publish(payload=b"3", message_expiry_interval=5)
    [third] = wire.sent()
    assert isinstance(third, codec.Publish) and third.properties.message_expiry_interval == 5
    wire.cut()
    wire.now += 100
    again = [packet for packet in wire.connect(session_present=True) if isinstance(packet, codec.Publish)]
    assert [(packet.payload, packet.dup) for packet in again] == [(b"1", True), (b"3", True)]
    assert [packet.properties.message_expiry_interval for packet in again] == [1, 1]
    assert waiting.properties == Properties(message_expiry_interval=10, content_type="a")


def test_what_waited_for_too_long_is_not_sent() -> None:
    wire = Wire()
    gone = [wire.publish(payload=b"%d" % qos, qos=qos, message_expiry_interval=10) for qos in (0, 1, 2)]
    kept = wire.publish(payload=b"kept", message_expiry_interval=20)
    wire.publish(payload=b"for ever")
    assert wire.core.next_expiry_s() == 10 and wire.core.expire() == []
    wire.now += 10
    assert wire.core.next_expiry_s() == 0
    sent = wire.connect()
    assert [packet.payload for packet in sent if isinstance(packet, codec.Publish)] == [b"kept", b"for ever"]
    assert [event for event in wire.events if isinstance(event, Outgoing)] == gone
    assert all(isinstance(entry.error, ExpiredError) and entry.stage == Stage.DONE for entry in gone)
    assert kept.error is None and wire.core.stats.expired == 3 and wire.core.outgoing.queued_bytes == 0


def test_they_expire_without_a_connection_too() -> None:
    wire = Wire()
    entry = wire.publish(message_expiry_interval=10)
    wire.publish(message_expiry_interval=30)
    wire.now += 10
    assert wire.core.expire() == [entry] and wire.core.outgoing.queued == 1
    assert wire.core.next_expiry_s() == 20
    wire.now += 20
    assert len(wire.core.expire()) == 1 and wire.core.next_expiry_s() is None


def test_what_the_broker_has_forgotten_expires_as_what_is_new_does() -> None:
    wire = Wire(session_expiry=60)
    wire.connect()
    entry = wire.publish(qos=1, message_expiry_interval=10)
    released = wire.publish(qos=2, message_expiry_interval=10)
    wire.give(codec.Pubrec(released.packet_id))
    wire.sent()
    wire.cut()
    wire.now += 10
    assert wire.core.expire() == []
    assert not [packet for packet in wire.connect(session_present=False) if isinstance(packet, codec.Publish)]
    assert isinstance(entry.error, ExpiredError) and released.error is None


@pytest.mark.parametrize("version", [3, 4])
def test_in_older_versions_the_client_alone_knows(version: int) -> None:
    wire = Wire(version)
    wire.publish(payload=b"gone", message_expiry_interval=1)
    wire.publish(payload=b"kept", message_expiry_interval=2)
    wire.now += 1
    sent = [packet for packet in wire.connect() if isinstance(packet, codec.Publish)]
    assert [(packet.payload, packet.properties.as_dict()) for packet in sent] == [(b"kept", {})]


def test_the_store_keeps_when_they_expire(tmp_path: Path) -> None:
    """By the clock on the wall, which other processes have too; and a file of layout 1 is taken over."""
    path = tmp_path / "s.db"

    def store(wall: float, now: float) -> SqliteStore:
        made = SqliteStore(path)
        made._wall_clock, made._clock = (lambda: wall), (lambda: now)
        return made

    first = Wire(store=(held := store(1e9, 1000)), session_expiry=60)
    first.publish(payload=b"a", message_expiry_interval=100)
    first.publish(payload=b"b")
    held.commit()
    held.close()
    second = Wire(store=(held := store(1e9 + 60, 7)), session_expiry=60)
    assert [entry.expires_at for entry in second.core.outgoing.entries()] == [47, None]
    held.close()
    with contextlib.closing(sqlite3.connect(path)) as base:
        base.executescript("ALTER TABLE outgoing DROP COLUMN expires_at; PRAGMA user_version=1")
    third = Wire(store=(held := store(1e9, 0)), session_expiry=60)
    assert [(entry.payload, entry.expires_at) for entry in third.core.outgoing.entries()] == [(b"a", None), (b"b", None)]
    held.close()


def test_an_acknowledgement_of_nothing_opens_no_window() -> None:
    wire = Wire(max_inflight=1)
    wire.connect()
    first, second = wire.publish(), wire.publish()
    wire.sent()
    wire.give(codec.Puback(77), codec.Puback(second.packet_id or 78))
    assert wire.core.stats.unclaimed == 2 and not wire.sent()
    wire.give(codec.Puback(first.packet_id))
    assert len(wire.sent()) == 1


@spec("5", "MQTT-4.9.0-2")
def test_what_was_released_on_another_connection_does_not_widen_the_window() -> None:
    wire = Wire(max_inflight=1, session_expiry=60)
    wire.connect()
    released = wire.publish(qos=2)
    wire.give(codec.Pubrec(released.packet_id))
    wire.cut()
    assert kinds(wire.connect(session_present=True)) == ["Pubrel"]
    wire.give(codec.Pubcomp(released.packet_id))
    wire.publish()
    wire.publish()
    assert kinds(wire.sent()) == ["Publish"]


def test_topics_behind_one_alias_are_one_object() -> None:
    """So that they are handed out together."""
    wire = Wire()
    wire.connect()
    told = Properties(topic_alias=1)
    again = [codec.Publish("", b"%d" % number, properties=told) for number in (1, 2)]
    received = messages(wire.give(publish("long/topic", b"0", 0, topic_alias=1), *again))
    assert [message.topic for message in received] == ["long/topic"] * 3
    assert codec.run_end(received, 1) == (3, 2)
