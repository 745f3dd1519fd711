"""An application of the client's, and tests with `mqttc.testing`, as type checkers see them: `test_typing.py` and `dev.py lint` check
them strictly; nobody runs them.
"""

# pyright: reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

from typing import assert_type

from mqttc import Client, SyncClient, codec
from mqttc.client import (
    Message,
    Options,
    Properties,
    PublishResult,
    QoS,
    Reconnect,
    SqliteStore,
    State,
    Stats,
    Subscription,
    SyncSubscription,
    Tls,
    UnsubscribeResult,
    Will,
)
from mqttc.embed import Message as PublishedMessage
from mqttc.errors import MqttError, RefusedError
from mqttc.testing import Fault, FaultProxy, Recorder


def told(state: State, error: BaseException | None) -> None:
    print(state.value, error)


async def made() -> Client:
    return Client(
        "mqtt://h", tls=Tls(ca_file="a"), reconnect=Reconnect(first_s=1), store=SqliteStore("x"), will=Will("a", b"x", qos=1), redirects=3,
        http2=False, proxy="environment", on_state=told, client_id="c", session_expiry=60, fallback=(4,), headers={"a": "b"},
    )  # fmt: skip


async def sending(client: Client) -> None:
    async with client as entered:
        assert_type(entered, Client)
    assert_type(await client.publish("a", "x", properties=Properties(content_type="a")), PublishResult)
    assert_type(await client.publish("a", bytearray(b"x"), QoS.AT_LEAST_ONCE, retain=True, wait=False), PublishResult)
    assert_type(await client.request("a", b"x"), Message)
    assert_type(await client.unsubscribe(["a", "b"]), UnsubscribeResult)
    assert_type((client.state, client.options, client.stats, client.server), tuple[State, Options, Stats, str])
    async for state in client.states():
        assert_type(state, State)
    await client.publish("a", 5)  # type: ignore
    Client("x", nonsense=1)  # type: ignore


async def receiving(client: Client) -> None:
    async def later(message: Message) -> None:
        assert_type(await client.respond(message, message.payload), PublishResult)

    subscription = await client.subscribe("a", 1, callback=lambda message: print(message.text))
    assert_type(subscription, Subscription)
    assert_type(subscription.reason_codes, tuple[codec.ReasonCode, ...])
    await client.subscribe(["a", codec.Subscription("b", 2)], callback=later)
    async for message in client:
        assert_type(message, Message)
        assert_type((message.topic, message.payload, message.text), tuple[str, bytes, str])
        assert_type((message.qos, message.retain, message.dup), tuple[QoS, bool, bool])
        assert_type((message.properties, message.response_topic), tuple[Properties, str | None])
        message.acknowledge(0x80)
    async with subscription:
        async for message in subscription:
            assert_type(message, Message)
    assert_type(client.take(5), list[Message])


async def failing(client: Client) -> None:
    try:
        await client.connect()
    except RefusedError as error:
        assert_type(error.server_reference, str | None)
    except MqttError as error:
        assert_type((error.reason_code, error.properties), tuple[codec.ReasonCode | None, Properties])


def blocking() -> None:
    with SyncClient("mqtt://h", keep_alive=5) as client:
        assert_type(client, SyncClient)
        assert_type(client.subscribe("a"), SyncSubscription)
        assert_type(client.publish("a", b"x", 1), PublishResult)
        assert_type(client.get(timeout_s=1), Message)
        for message in client:
            assert_type(message, Message)


def faults(proxy: FaultProxy) -> None:
    assert_type(proxy.drop("PUBACK", to="broker", client_id="a", topic="a/#", payload=b"x", nth=2, times=None), Fault)
    assert_type(proxy.cut("PUBLISH", at_byte=3, reset=True, payload="x"), Fault)
    assert_type(proxy.refuse("CONNECT", 0x88, times=3), Fault)
    proxy.refuse("CONNECT", 0x88, to="client")  # type: ignore
    proxy.hold("PUBLISH", to="nobody")  # type: ignore
    proxy.drop("PUBLISH", copies=2)  # type: ignore


async def recording(recorder: Recorder) -> None:
    assert_type(recorder.expect("a", payload="x", qos=1, retain=True, where=lambda message: message.text, timeout=1), PublishedMessage)
    assert_type(recorder.expect("a", count=2, properties={"content_type": "a"}), list[PublishedMessage])
    assert_type(await recorder.aio.expect("a", payload="x", timeout=1), PublishedMessage)
    assert_type(await recorder.aio.expect(count=2, where=lambda message: message.text), list[PublishedMessage])
    recorder.expect_none("a", qos="x")  # type: ignore
    await recorder.aio.expect("a", nonsense=1)  # type: ignore
