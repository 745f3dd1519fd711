"""The recorder: assertions that wait, and what they say when they fail."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable

import pytest

from mqttc import BrokerError, SyncClient
from mqttc.codec import Properties
from mqttc.embed.events import Connected, Subscribed
from mqttc.errors import ClosedError
from mqttc.testing import LocalBroker, Recorder, recorder

Clients = Callable[..., SyncClient]


def failure(call: Callable[[], object]) -> str:
    with pytest.raises(AssertionError) as caught:
        call()
    return str(caught.value)


def test_it_waits_for_what_comes(mqtt_client: Clients, mqtt_recorder: Recorder) -> None:
    client = mqtt_client()
    found: list[bytes] = []
    waiting = threading.Thread(target=lambda: found.append(mqtt_recorder.expect("a/+", payload="late").payload))
    waiting.start()
    client.publish("a/b", b"early", qos=1)
    client.publish("a/b", b"late", qos=1)
    waiting.join(5)
    assert found == [b"late"]


def test_each_part_of_a_message(mqtt_client: Clients, mqtt_recorder: Recorder) -> None:
    client = mqtt_client()
    properties = Properties(content_type="text", user_properties=[("a", "b")])
    client.publish("a", b"x", qos=2, retain=True, properties=properties)
    client.publish("a", b"x", qos=1)
    message = mqtt_recorder.expect(
        "a", payload=b"x", qos=2, retain=True, properties={"content_type": "text"}, where=lambda message: message.user_properties
    )
    assert (message.topic, message.payload, message.qos, message.retain) == ("a", b"x", 2, True)
    assert mqtt_recorder.expect(retain=False).qos == 1
    assert len(mqtt_recorder.expect("a", count=2)) == 2
    for wrong in (
        {"topic_filter": "b"},
        {"payload": b"y"},
        {"qos": 0},
        {"properties": {"content_type": "other"}},
        {"where": lambda message: False},
    ):
        mqtt_recorder.expect_none(**wrong)


def test_too_few(mqtt_client: Clients, mqtt_recorder: Recorder) -> None:
    mqtt_client(client_id="sensor").publish("room/1/temperature", b"21.5", qos=1)
    text = failure(lambda: mqtt_recorder.expect("room/+/temperature", payload=b"22", qos=1, count=2, timeout=0.05))
    assert text.startswith("0 of 2 messages within 0.05 s: 'room/+/temperature', payload=b'22', qos=1\n")
    assert "'room/1/temperature' payload=b'21.5' qos=1  (payload)" in text
    assert "Connected(" in text
    assert "client_id='sensor'" in text
    text = failure(lambda: mqtt_recorder.expect("other", retain=True, timeout=0.05))
    assert "(topic, retain)" in text


def test_the_most_similar_message_is_told_first(mqtt_client: Clients, mqtt_recorder: Recorder) -> None:
    client = mqtt_client()
    for topic, payload in (("c", b"1"), ("b", b"2"), ("a", b"3")):
        client.publish(topic, payload, qos=1)
    text = failure(lambda: mqtt_recorder.expect("a", payload=b"2", qos=1, timeout=0.01))
    found = [row.split()[0] for row in text.splitlines() if row.startswith("  '")]
    assert found == ["'b'", "'a'", "'c'"]


def test_nothing_came(mqtt_recorder: Recorder) -> None:
    assert failure(lambda: mqtt_recorder.expect("a", timeout=0.01)) == "no message within 0.01 s: 'a'\nNothing came.\nNo events."


def test_too_many(mqtt_client: Clients, mqtt_recorder: Recorder) -> None:
    client = mqtt_client()
    for payload in (b"1", b"2", b"3"):
        client.publish("a", payload)  # QoS 0: on its way when the assertion is made
    text = failure(lambda: mqtt_recorder.expect("a", count=2))
    assert "3 messages instead of 2: 'a'" in text
    assert "payload=b'3'" in text


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_none_is_sure(mqtt_brokers: Callable[..., LocalBroker], workers: int) -> None:
    """What was sent before is seen, without any sleep, also QoS 0 and from another worker."""
    broker = mqtt_brokers(workers=workers)
    with Recorder(broker) as recorder:
        for number in range(30):
            with SyncClient(broker.url, client_id=f"client {number}") as client:
                client.publish(f"a/{number}", b"x")
                text = failure(lambda number=number: recorder.expect_none(f"a/{number}"))  # type: ignore[misc]
                assert f"1 messages instead of none: 'a/{number}'" in text
        recorder.expect_none("b")


LARGE = b"\x30" + b"\xe3\xd4\x03" + b"\x00\x01b" + bytes(60_000)
BURST = LARGE * 100 + b"\x30\x03\x00\x01a"
"""More than a worker reads in a turn, and than it has read when the last byte is with the system."""


def connected(broker: LocalBroker, name: bytes) -> socket.socket:
    client = socket.create_connection((broker.host, broker.port))
    client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 << 20)
    client.sendall(b"\x10\x0d\x00\x04MQTT\x04\x02\x00\x00\x00\x01" + name)
    assert client.recv(4) == b"\x20\x02\x00\x00"
    return client


@pytest.mark.parametrize("workers", [1, 4])
def test_whatever_is_in_the_sockets_counts(mqtt_brokers: Callable[..., LocalBroker], workers: int) -> None:
    """Megabytes, unacknowledged, are on their way when the assertion is made, which the last message belies."""
    broker = mqtt_brokers(workers=workers)
    with Recorder(broker, "a") as recorder:
        for name in (b"1", b"2", b"3", b"4"):
            with connected(broker, name) as client:
                recorder.clear()
                broker.publish_sync("a", b"first", qos=1)
                recorder.expect("a", payload="first")
                client.sendall(BURST)
                if name in b"12":
                    assert "1 messages instead of none: 'a'" in failure(lambda: recorder.expect_none("a", payload=b""))
                else:
                    assert "2 messages instead of 1: 'a'" in failure(lambda: recorder.expect("a", count=1))


def test_settle(mqtt_brokers: Callable[..., LocalBroker]) -> None:
    broker = mqtt_brokers(workers=2)
    received = 0
    for name in (b"1", b"2", b"3", b"4"):
        with connected(broker, name) as client:
            client.sendall(BURST)
            broker.settle()
            received += 15 + len(BURST)
            assert broker.stats()["bytes_received"] == received
    broker.stop()
    with pytest.raises(BrokerError, match="not running"):
        broker.settle()


def test_events(mqtt_client: Clients, mqtt_recorder: Recorder) -> None:
    client = mqtt_client(client_id="panel", username="anna")
    client.subscribe("a/#", qos=1)
    mqtt_recorder.expect_connected("panel", username="anna", protocol=5)
    assert mqtt_recorder.expect_subscribed("a/#", client_id="panel").qos == 1
    client.unsubscribe("a/#")
    mqtt_recorder.expect_unsubscribed("a/#", reason_code=0)
    mqtt_recorder.expect_no_event(Subscribed, client_id="other")
    text = failure(lambda: mqtt_recorder.expect_no_event(Connected, client_id="panel"))
    assert text.startswith("1 events instead of none: Connected(client_id='panel')\nThey were:\n  Connected(")
    client.close()
    assert mqtt_recorder.expect_disconnected("panel", clean=True).reason_code == 0
    text = failure(lambda: mqtt_recorder.expect_connected("nobody", timeout=0.01))
    assert text.startswith("no event within 0.01 s: Connected(client_id='nobody')\nEvents:\n  Connected(")
    with pytest.raises(TypeError, match="Connected has no field 'user'"):
        mqtt_recorder.expect_connected(user="anna")


def test_clear_forgets_also_what_is_on_its_way(mqtt_client: Clients, mqtt_recorder: Recorder) -> None:
    client = mqtt_client()
    client.publish("a", b"x")
    mqtt_recorder.clear()
    assert (mqtt_recorder.messages, mqtt_recorder.events) == ([], [])
    client.publish("a", b"y")
    assert mqtt_recorder.expect("a", count=1)[0].payload == b"y"


def test_what_is_recorded_can_be_chosen(mqtt_broker: LocalBroker, mqtt_client: Clients) -> None:
    with Recorder(mqtt_broker, "a/#", "$b/#") as some:
        client = mqtt_client()
        for topic in ("a/1", "c", "$b/1"):
            client.publish(topic, b"", qos=1)
        some.fence()
        assert [message.topic for message in some.messages] == ["a/1", "$b/1"]


def test_it_is_a_subscriber_that_keeps_nothing(mqtt_broker: LocalBroker, mqtt_client: Clients) -> None:
    client = mqtt_client()
    client.publish("a", b"before", qos=1, retain=True)
    with Recorder(mqtt_broker) as recorder:
        recorder.expect_none()
    with pytest.raises(ClosedError):
        recorder.fence()
    mqtt_broker.settle()
    assert mqtt_broker.stats()["sessions"] == 1
    recorder.stop()


def test_what_there_is_no_room_for_fails(mqtt_client: Clients, mqtt_recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "MAX_RECORDS", 3)
    client = mqtt_client()
    for number in range(5):
        client.publish("a", str(number), qos=1)
    mqtt_recorder.fence()
    assert [message.payload for message in mqtt_recorder.messages] == [b"0", b"1", b"2"]
    assert mqtt_recorder.lost == 2
    assert "2 messages or events were not recorded" in failure(lambda: mqtt_recorder.expect_none("b"))
    assert "were not recorded" in failure(lambda: mqtt_recorder.expect("a"))


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"topic_filter": "a/#/b"}, ValueError),
        ({"count": 0}, ValueError),
        ({"properties": {"colour": 1}}, TypeError),
        ({"colour": 1}, TypeError),
    ],
)
def test_what_cannot_be_expected(mqtt_recorder: Recorder, arguments: dict[str, object], error: type[Exception]) -> None:
    with pytest.raises(error):
        mqtt_recorder.expect(**arguments)  # type: ignore[call-overload]


def test_coroutines(mqtt_broker: LocalBroker, mqtt_recorder: Recorder) -> None:
    from mqttc import Client

    async def main() -> None:
        seen = mqtt_recorder.aio
        async with Client(mqtt_broker.url, client_id="a") as client:
            waiting = asyncio.ensure_future(seen.expect("a", count=1))
            await client.subscribe("b")
            await client.publish("a", b"x", qos=1)
            assert [message.payload for message in await waiting] == [b"x"]
            await seen.expect_connected("a")
            await seen.expect_subscribed("b")
            await seen.expect_none("c")
            await client.unsubscribe("b")
            await seen.expect_unsubscribed("b")
            await seen.expect_no_event(Connected, client_id="b")
            await seen.fence()
            await seen.clear()
        await seen.expect_disconnected("a")
        with pytest.raises(AssertionError, match="no message within"):
            await seen.expect("a", timeout=0.01)

    asyncio.run(main())
