"""What an application does with a client, against a broker of ours over TCP, or one that the test plays."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable
from typing import Any

import pytest

from mqttc import Client, codec
from mqttc.client import Authentication, Message, Will
from mqttc.client.link import StreamLink
from mqttc.client.state import State
from mqttc.codec import Properties, ReasonCode
from mqttc.errors import (
    ClosedError,
    ConnectError,
    ConnectionLostError,
    DisconnectedError,
    MqttError,
    NotSupportedError,
    QueueFullError,
    RefusedError,
    SubscribeError,
)
from tests.client.conftest import ScriptedServer, client_url, read_packet, run, settled
from tests.conformance.statements import each_version, spec
from tests.conftest import BrokerFactory

Broker = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any]


def played(*answers: codec.Packet, version: int = 5, then: Broker | None = None, sent: list[codec.Packet] | None = None) -> Broker:
    """A broker that answers CONNECT with these packets, notes what comes, and goes on with `then`."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_packet(reader)
        writer.write(b"".join(codec.encode(answer, version) for answer in answers))
        await writer.drain()
        if then is not None:
            await then(reader, writer)
            return
        while True:
            data = await read_packet(reader)
            if sent is not None:
                sent.extend(codec.Decoder(version).feed(data))

    return script


# ---------------------------------------------------------------------------------------------------- coming and going


@each_version
def test_a_refused_connect_says_why(version: int, broker_factory: BrokerFactory) -> None:
    url = client_url(broker_factory({"auth": {"anonymous": False}}))

    async def work() -> None:
        client = Client(url, version=version)
        with pytest.raises(RefusedError, match="not authorized") as caught:
            await client.connect()
        assert caught.value.reason_code == ReasonCode.NOT_AUTHORIZED
        assert client.state is State.CLOSED and client.error is caught.value
        assert isinstance(caught.value, MqttError) and isinstance(caught.value, ConnectionError)
        with pytest.raises(RefusedError):
            await client.get()
        with pytest.raises(ClosedError):
            await client.publish("t")

    run(work())


def test_a_refusal_names_another_server() -> None:
    moved = codec.Connack(ReasonCode.SERVER_MOVED, properties=Properties(server_reference="other:1883", reason_string="went away"))

    async def work() -> None:
        async with ScriptedServer(played(moved)) as server:
            with pytest.raises(RefusedError, match="went away") as caught:
                await Client(server.url, retry_first=True).connect()  # there is no use in trying again
            assert caught.value.server_reference == "other:1883" and server.connections == 1

    run(work())


@pytest.mark.parametrize("how", ["refused", "closed", "nonsense"])
def test_falling_back_to_an_older_version(how: str) -> None:
    seen: list[int] = []

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        [connect] = (decoder := codec.Decoder()).feed(await read_packet(reader))
        assert isinstance(connect, codec.Connect) and decoder.version is not None
        seen.append(decoder.version)
        if decoder.version == 5 and how == "closed":
            return
        if decoder.version == 5:
            writer.write(bytes.fromhex("20 03 00 84 00") if how == "refused" else bytes.fromhex("20 02 00 01"))
            await writer.drain()
            return
        writer.write(bytes.fromhex("20 02 00 00") if decoder.version == 3 else bytes.fromhex("20 02 00 01"))
        await writer.drain()
        while data := await reader.read(100):
            if data == bytes.fromhex("e0 00"):
                return

    async def work() -> None:
        async with ScriptedServer(script) as server:
            with pytest.raises(ConnectError):
                await Client(server.url).connect()
            assert seen == [5]
            async with Client(server.url, fallback=(4, 3)) as client:
                assert client.version == 3
            assert seen == [5, 5, 4, 3]

    run(work())


def test_states_can_be_observed(url: str) -> None:
    told: list[State] = []

    async def work() -> None:
        client = Client(url, on_state=lambda state, error: told.append(state))
        seen: list[State] = []

        async def watch() -> None:
            async for state in client.states():
                seen.append(state)

        watcher = asyncio.create_task(watch())
        assert client.state is State.NEW
        async with client:
            assert client.connected
            assert await client.wait_for(State.CONNECTED) is State.CONNECTED
        await watcher
        assert told == [State.CONNECTING, State.CONNECTED, State.CLOSING, State.CLOSED]
        assert seen[-1] is State.CLOSED and State.CONNECTED in seen
        await client.close()
        with pytest.raises(ClosedError):
            await client.connect()
        with pytest.raises(ClosedError):
            await client.subscribe("a")

    run(work())


def test_an_observer_that_fails_is_logged(url: str, caplog: pytest.LogCaptureFixture) -> None:
    def observer(state: State, error: BaseException | None) -> None:
        raise RuntimeError("observer")

    async def work() -> None:
        async with Client(url, on_state=observer) as client:
            await client.publish("a", b"", 1)

    with caplog.at_level(logging.ERROR, "mqttc.client"):
        run(work())
    assert "on_state_failed" in caplog.text


def test_a_client_that_was_never_connected_can_be_closed() -> None:
    async def work() -> None:
        client = Client()
        with pytest.raises(ClosedError):
            await client.publish("a")
        await client.close()
        assert client.closed
        with pytest.raises(StopAsyncIteration):
            await client.get()

    run(work())


@spec("3.1.1", "MQTT-3.14.4-1")
@spec("5", "MQTT-3.14.4-2")
@each_version
def test_the_client_closes_after_disconnect(version: int) -> None:
    """DISCONNECT is the last packet, and the end of the stream comes without the broker's doing anything."""
    got: list[bytes] = []

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_packet(reader)
        writer.write(codec.encode(codec.Connack(), version))
        got.append(await reader.read())

    async def work() -> None:
        async with ScriptedServer(script) as server:
            async with Client(server.url, version=version) as client:
                await client.publish("a", b"x")
            await settled(lambda: bool(got))
        assert got[0].endswith(bytes.fromhex("e0 00"))

    run(work())


def test_close_waits_for_acknowledgements(broker_factory: BrokerFactory) -> None:
    url = client_url(broker_factory())

    async def work() -> None:
        async with Client(url) as reader:
            await reader.subscribe("a", 2)
            async with Client(url) as writer:
                for number in range(500):
                    await writer.publish("a", b"%d" % number, 2, wait=False)
                assert writer.unfinished == 500
            assert writer.unfinished == 0
            assert [int((await reader.get()).payload) for _ in range(500)] == list(range(500))

    run(work())


def test_close_gives_up_in_time() -> None:
    """A broker that acknowledges nothing; what waits is told."""

    async def work() -> None:
        async with ScriptedServer(played(codec.Connack())) as server:
            client = Client(server.url, close_timeout_s=0.05)
            await client.connect()
            waiting = asyncio.create_task(client.publish("a", b"", 1))
            asking = asyncio.create_task(client.subscribe("a"))
            reading = asyncio.create_task(client.get())
            await asyncio.sleep(0)
            closing = asyncio.create_task(client.close())
            await client.close()
            await closing
            for task in (waiting, asking):
                with pytest.raises(ClosedError):
                    await task
            with pytest.raises(StopAsyncIteration):
                await reading

    run(work())


@each_version
def test_the_will(version: int, broker_factory: BrokerFactory) -> None:
    url = client_url(broker_factory())

    async def work() -> None:
        async with Client(url) as watcher:
            await watcher.subscribe("will/#", 1)
            will = Will("will/1", b"gone", qos=1, properties=Properties(content_type="text/plain") if version == 5 else None)
            async with Client(url, version=version, will=will):
                pass
            lost = Client(url, version=version, will=will, reconnect=None)
            await lost.connect()
            assert lost._engine.connection is not None
            lost._engine.connection.abort()
            await lost.wait_for(State.CLOSED)
            message = await watcher.get()
            assert (message.topic, message.payload, message.qos) == ("will/1", b"gone", 1)
            assert message.properties.content_type == ("text/plain" if version == 5 else None)
            if version == 5:
                asked = Client(url, will=Will("will/2", b"asked"))
                await asked.connect()
                await asked.close(reason_code=ReasonCode.DISCONNECT_WITH_WILL_MESSAGE)
                assert (await watcher.get()).topic == "will/2"

    run(work())


def test_the_broker_says_goodbye() -> None:
    goodbye = codec.Disconnect(ReasonCode.ADMINISTRATIVE_ACTION, properties=Properties(reason_string="tidying"))

    async def work() -> None:
        async with ScriptedServer(played(codec.Connack(), goodbye)) as server:
            client = Client(server.url, reconnect=None)
            with contextlib.suppress(DisconnectedError):
                await client.connect()
            with pytest.raises(DisconnectedError, match="tidying") as caught:
                await client.get()
            assert caught.value.reason_code == ReasonCode.ADMINISTRATIVE_ACTION

    run(work())


def test_taken_over_means_not_to_fight(url: str) -> None:
    async def work() -> None:
        first = Client(url, client_id="same")
        await first.connect()
        async with Client(url, client_id="same") as second:
            await first.wait_for(State.CLOSED)
            assert isinstance(first.error, DisconnectedError) and first.error.reason_code == ReasonCode.SESSION_TAKEN_OVER
            await second.publish("a", b"", 1)

    run(work())


def test_a_silent_broker_is_noticed() -> None:
    async def work() -> None:
        async with ScriptedServer(played(codec.Connack(properties=Properties(server_keep_alive=1)))) as server:
            client = Client(server.url, keep_alive=600, ping_timeout_s=0.05, reconnect=None)
            await client.connect()
            assert client.keep_alive == 1
            with pytest.raises(ConnectionLostError, match="PINGREQ"):
                await client.get()
            assert client.stats.pings == 1

    run(work())


# ---------------------------------------------------------------------------------------------------- publishing


def test_everything_of_v5_arrives(url: str) -> None:
    told = Properties(
        payload_format_indicator=1, message_expiry_interval=100, content_type="text/plain", response_topic="answer/here",
        correlation_data=b"\x01\x02", user_properties=[("a", "1"), ("a", "2")],
    )  # fmt: skip

    async def work() -> None:
        async with Client(url) as client:
            await client.subscribe("a", 1, properties=Properties(subscription_identifiers=[7]))
            result = await client.publish("a", "grüße", 1, properties=told)
            assert result.reason_code == 0
            message = await client.get()
            assert message.text == "grüße" and message.user_properties == (("a", "1"), ("a", "2"))
            properties = message.properties
            assert (properties.content_type, properties.payload_format_indicator) == ("text/plain", 1)
            assert message.response_topic == "answer/here" and message.correlation_data == b"\x01\x02"
            assert properties.message_expiry_interval in (99, 100) and properties.subscription_identifiers == (7,)
            nobody = await client.publish("nobody", b"", 1)
            assert nobody.reason_code == ReasonCode.NO_MATCHING_SUBSCRIBERS
            for payload in (bytearray(b"x"), memoryview(b"x"), "x"):
                await client.publish("a", payload)
                assert (await client.get()).payload == b"x"
            with pytest.raises(ValueError, match="subscription identifiers"):
                await client.publish("a", properties=Properties(subscription_identifiers=[1]))
            with pytest.raises(codec.InvalidTopicError):
                await client.publish("a/#", b"", 1)

    run(work())


def test_retained_messages_and_subscription_options(url: str) -> None:
    async def work() -> None:
        async with Client(url) as client:
            await client.publish("r/1", b"old", 1, True)
            await client.subscribe("r/#", retain_handling=2)
            await client.subscribe("r/1", 1, retain_as_published=True)
            message = await client.get()
            assert message.retain and message.payload == b"old" and message.qos == 1
            await client.publish("r/1", b"new", 1, True)
            assert (await client.get()).retain
            await client.unsubscribe(["r/1", "r/#"])
            await client.subscribe(codec.Subscription("own/#", 1, no_local=True))
            await client.publish("own/1", b"", 1)
            await client.subscribe("end")
            await client.publish("end")
            assert (await client.get()).topic == "end"

    run(work())


def test_a_full_window_makes_publishing_wait() -> None:
    """Receive Maximum 1 and a queue of 2: the fourth waits for room, whether it waits for its acknowledgement or not."""
    release = asyncio.Event()
    seen: list[int] = []

    async def then(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            for packet in codec.Decoder(5).feed(await read_packet(reader)):
                if isinstance(packet, codec.Publish):
                    seen.append(packet.packet_id)
                    await release.wait()
                    writer.write(codec.encode(codec.Puback(packet.packet_id), 5))

    async def work() -> None:
        connack = codec.Connack(properties=Properties(receive_maximum=1))
        async with ScriptedServer(played(connack, then=then)) as server, Client(server.url, max_queued_messages=2) as client:
            tasks = [asyncio.create_task(client.publish("a", b"", 1)) for _ in range(4)]
            await settled(lambda: len(seen) == 1)
            assert client.queued == 2 and client.unfinished == 3
            tasks.append(asyncio.create_task(client.publish("a", b"", 1, wait=False)))
            await asyncio.sleep(0)
            assert client.queued == 2 and not tasks[-1].done()
            release.set()
            await asyncio.gather(*tasks)
            await settled(lambda: len(seen) == 5)

    run(work())


def test_a_message_that_is_cancelled_before_it_is_sent_is_not_sent() -> None:
    sent: list[codec.Packet] = []

    async def work() -> None:
        connack = codec.Connack(properties=Properties(receive_maximum=1))
        async with ScriptedServer(played(connack, sent=sent)) as server:
            client = Client(server.url, close_timeout_s=0.01)
            await client.connect()
            first, second = (asyncio.create_task(client.publish(name, b"", 1)) for name in ("a", "b"))
            await settled(lambda: len(sent) == 1)
            second.cancel()
            first.cancel()
            await asyncio.gather(first, second, return_exceptions=True)
            assert client.queued == 0 and client.unfinished == 1
            await client.close()
        assert [packet.topic for packet in sent if isinstance(packet, codec.Publish)] == ["a"]

    run(work())


def test_a_broker_that_does_not_read_makes_qos_0_wait() -> None:
    """What is unsent is bounded, and the loop goes on."""
    reading = asyncio.Event()

    async def then(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reading.wait()
        while await reader.read(1 << 20):
            pass

    async def work() -> None:
        async with ScriptedServer(played(codec.Connack(), then=then)) as server:
            async with Client(server.url, max_write_bytes=1 << 16) as client:

                async def flood() -> None:
                    for _ in range(1000):
                        await client.publish("a", bytes(1 << 16))

                task = asyncio.create_task(flood())
                connection = client._engine.connection
                assert connection is not None and isinstance(connection.link, StreamLink)
                await settled(lambda: not connection.writable)
                transport = connection.link._transport
                assert transport is not None and transport.get_write_buffer_size() < 4 << 16
                for _ in range(20):  # giving up and coming again does not get around the bound
                    with pytest.raises(TimeoutError):
                        async with asyncio.timeout(0):
                            await client.publish("a", bytes(1 << 16))
                assert transport.get_write_buffer_size() + client._engine.require_core().out_bytes < 4 << 16
                assert not task.done()
                reading.set()
                await task
            assert 1000 <= client.stats.sent < 1005

    run(work())


# ---------------------------------------------------------------------------------------------------- subscribing


def test_reason_codes_of_subscriptions() -> None:
    async def then(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for codes in ([1, 0x87], [0x87]):
            [packet] = codec.Decoder(5).feed(await read_packet(reader))
            assert isinstance(packet, codec.Subscribe)
            writer.write(codec.encode(codec.Suback(packet.packet_id, codes, properties=Properties(reason_string="partly")), 5))
        [packet] = codec.Decoder(5).feed(await read_packet(reader))
        assert isinstance(packet, codec.Unsubscribe)
        writer.write(codec.encode(codec.Unsuback(packet.packet_id, [0x87]), 5))
        await reader.read()

    async def work() -> None:
        async with ScriptedServer(played(codec.Connack(), then=then)) as server, Client(server.url) as client:
            subscription = await client.subscribe(["a", "b"], 1)
            assert subscription.reason_codes == (1, ReasonCode.NOT_AUTHORIZED) and not subscription.granted
            assert subscription.properties.reason_string == "partly"
            with pytest.raises(SubscribeError, match="secret") as caught:
                await client.subscribe("secret")
            assert caught.value.reason_codes == (0x87,)
            with pytest.raises(SubscribeError):
                await client.unsubscribe("a")
            assert len(client._engine.router.routes) == 1

    run(work())


def test_filters_that_are_none(url: str) -> None:
    async def work() -> None:
        async with Client(url) as client:
            for bad in ("a/#/b", "", "a+"):
                with pytest.raises(codec.CodecError):
                    await client.subscribe(bad)
                with pytest.raises(codec.CodecError):
                    await client.unsubscribe(bad)
            with pytest.raises(ValueError, match="no filter"):
                await client.subscribe([])
            with pytest.raises(ValueError, match="no filter"):
                await client.unsubscribe([])
            await client.publish("still", b"", 1)
            assert not client._engine.router.routes

    run(work())


def test_where_messages_go(url: str) -> None:
    """To the subscription that is iterated over, to the callback, to the client; to several where several match."""
    called: list[str] = []

    async def slowly(message: Message) -> None:
        await asyncio.sleep(0)
        called.append("async " + message.topic)

    async def work() -> None:
        async with Client(url) as client:
            plain = await client.subscribe("plain/#", 1)
            own = await client.subscribe("own/#", 1)
            await client.subscribe("call/#", 1, callback=lambda message: called.append(message.topic))
            await client.subscribe("task/#", 1, callback=slowly)
            for topic in ("own/1", "plain/1", "call/1", "task/1", "task/2"):
                await client.publish(topic, b"", 1)
            iterator = aiter(own)  # from here on; what has come already too
            await client.publish("own/2", b"", 1)
            assert [(await anext(iterator)).topic for _ in range(2)] == ["own/1", "own/2"]
            assert (await client.get()).topic == "plain/1"
            await settled(lambda: len(called) == 3)
            assert called == ["call/1", "async task/1", "async task/2"]
            both = await client.subscribe("own/b", 1)
            assert both.waiting == 0
            await client.publish("own/b", b"", 1)
            assert (await own.get()).topic == (await client.get()).topic == "own/b"
            with pytest.raises(TypeError):
                aiter(await client.subscribe("x", callback=called.append))  # type: ignore[arg-type]
            assert plain.granted
            await own.unsubscribe()
            with pytest.raises(StopAsyncIteration):
                await own.get()
            await client.publish("own/b", b"again", 1)  # the filter of `both` is still there
            assert (await client.get()).payload == b"again"

    run(work())


def test_a_subscription_as_context_ends_at_its_end(url: str) -> None:
    async def work() -> None:
        async with Client(url) as client:
            async with await client.subscribe("a/#") as messages:
                await client.publish("a/1", b"x")
                async for message in messages:
                    assert message.payload == b"x"
                    break
            result = await client.publish("a/1", b"", 1)
            assert result.reason_code == ReasonCode.NO_MATCHING_SUBSCRIBERS
            assert await messages.unsubscribe() is not None
            async with await client.subscribe("a/#"):
                await client.close()

    run(work())


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_callback_that_fails_is_logged_and_the_next_message_comes(kind: str, url: str, caplog: pytest.LogCaptureFixture) -> None:
    called: list[bytes] = []

    def plain(message: Message) -> None:
        called.append(message.payload)
        if message.payload == b"1":
            raise RuntimeError("callback")

    async def coroutine(message: Message) -> None:
        plain(message)

    async def work() -> None:
        async with Client(url) as client:
            await client.subscribe("a", 1, callback=plain if kind == "sync" else coroutine)
            for payload in (b"1", b"2"):
                await client.publish("a", payload, 1)
            await settled(lambda: called == [b"1", b"2"])
            assert client.stats.callback_errors == 1
            await client.subscribe("b", 1)
            await client.publish("b", b"", 1)
            await client.get()

    with caplog.at_level(logging.ERROR, "mqttc.client"):
        run(work())
    assert "callback_failed" in caplog.text and "RuntimeError" in caplog.text


def test_closing_from_within_a_callback(url: str) -> None:
    async def work() -> None:
        client = Client(url)
        await client.connect()

        async def leave(message: Message) -> None:
            await client.close()

        await client.subscribe("a", callback=leave)
        await client.publish("a")
        await client.wait_for(State.CLOSED)

    run(work())


# ---------------------------------------------------------------------------------------------------- acknowledging


@pytest.mark.parametrize("how", ["client", "subscription"])
@pytest.mark.parametrize("qos", [1, 2])
def test_manual_acknowledgement(how: str, qos: int, url: str) -> None:
    """What is not acknowledged comes again; from another thread too, once."""
    options: dict[str, Any] = {"client_id": "manual", "session_expiry": 100}

    async def work() -> None:
        async with Client(url, manual_ack=how == "client", receive_maximum=2, **options) as client:
            await client.subscribe("m", qos, manual_ack=None if how == "client" else True)
            for number in range(3):
                await client.publish("m", b"%d" % number, 1, wait=False)
            messages = await client.subscribe("never") if how == "client" else None
            assert messages is None or messages.granted
            stream = client if how == "client" else client._engine.router.routes[0]
            first, second = await stream.get(), await stream.get()  # type: ignore[attr-defined]
            await client.publish("other", b"", 1)
            assert client.take(1) == []  # Receive Maximum holds the third back
            thread = threading.Thread(target=first.acknowledge)
            thread.start()
            thread.join()
            third = await stream.get()  # type: ignore[attr-defined]
            assert (second.payload, third.payload) == (b"1", b"2")
            first.acknowledge()
        async with Client(url, clean_start=False, **options) as client:
            again = [await client.get() for _ in range(2)]
            assert [(message.payload, message.dup) for message in again] == [(b"1", True), (b"2", True)]

    run(work())


def test_messages_are_acknowledged_when_they_are_handed_over(url: str) -> None:
    async def work() -> None:
        async with Client(url, client_id="auto", session_expiry=100, receive_maximum=2) as client:
            await client.subscribe("m", 1)
            for number in range(4):
                await client.publish("m", b"%d" % number, 1, wait=False)
            assert (await client.get()).payload == b"0"
        async with Client(url, client_id="auto", clean_start=False, session_expiry=100) as client:
            assert [(await client.get()).payload for _ in range(3)] == [b"1", b"2", b"3"]

    run(work())


@pytest.mark.parametrize("manual", [False, True])
@pytest.mark.parametrize("late", [False, True])
def test_a_message_for_two_is_acknowledged_when_both_have_it(manual: bool, late: bool) -> None:
    """Whether the streams are there before the message, or take it out of the client's."""
    go = asyncio.Event()
    sent: list[codec.Packet] = []

    async def then(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(2):
            [packet] = codec.Decoder(5).feed(await read_packet(reader))
            assert isinstance(packet, codec.Subscribe)
            writer.write(codec.encode(codec.Suback(packet.packet_id, [1]), 5))
        if not late:
            await go.wait()
        writer.write(codec.encode(codec.Publish("a", qos=1, packet_id=3), 5))
        while True:
            sent.extend(codec.Decoder(5).feed(await read_packet(reader)))

    async def work() -> None:
        async with ScriptedServer(played(codec.Connack(), then=then)) as server, Client(server.url, manual_ack=manual) as client:
            one, two = [await client.subscribe(name, 1) for name in ("a", "+")]
            if late:
                await settled(lambda: client.stats.received == 1)
            one.claim()
            two.claim()
            go.set()
            first = await one.get()
            first.acknowledge()
            first.acknowledge()
            await client.publish("x")
            await settled(lambda: len(sent) == 1)
            second = await two.get()
            if manual:
                second.acknowledge()
            await settled(lambda: len(sent) == 2)
            assert isinstance(sent[1], codec.Puback)

    run(work())


# ---------------------------------------------------------------------------------------------------- back-pressure


def test_an_unread_stream_holds_up_the_socket(url: str) -> None:
    """Nothing is lost, and what is here stays bounded."""

    async def work() -> None:
        async with Client(url, max_buffered_messages=10) as reader, Client(url) as writer:
            await reader.subscribe("a")
            for number in range(2000):
                await writer.publish("a", b"%04d" % number + bytes(60))
            await settled(lambda: reader.stats.pauses >= 1)
            held = len(reader._engine.inbox)
            assert held < 2000
            got = [int((await reader.get()).payload[:4]) for _ in range(2000)]
            assert got == list(range(2000)) and reader.stats.dropped == 0

    run(work())


def test_who_waits_for_an_answer_and_does_not_read_is_not_stuck(url: str) -> None:
    """The acknowledgement stands behind messages that nobody reads: after a while those of QoS 0 are dropped, and counted."""

    async def work() -> None:
        async with Client(url, max_buffered_messages=10, stall_timeout_s=0.05) as client, Client(url) as writer:
            await client.subscribe("a", 1)
            for _ in range(500):
                await writer.publish("a", bytes(5000))
            await writer.publish("a", b"kept", 1)
            await settled(lambda: client.stats.pauses >= 1)
            await client.publish("b", b"", 1)
            assert client.stats.dropped > 0
            received = []
            while b"kept" not in received:
                received.append((await client.get()).payload)
            assert len(received) + client.stats.dropped == 501
            await client.publish("a", b"after", 0)
            assert (await client.get()).payload == b"after"

    run(work())


# ---------------------------------------------------------------------------------------------------- request and response


def test_request_and_response(url: str) -> None:
    async def work() -> None:
        async with Client(url) as client, Client(url, client_id="service") as service:

            async def serve(message: Message) -> None:
                await service.respond(message, message.payload.upper(), properties=Properties(content_type="x"))

            await service.subscribe("ask/#", 2, callback=serve)
            answers = await asyncio.gather(*(client.request("ask/1", b"q%d" % number, number % 3) for number in range(20)))
            assert [answer.payload for answer in answers] == [b"Q%d" % number for number in range(20)]
            assert answers[1].properties.content_type == "x" and answers[1].qos == 1
            with pytest.raises(TimeoutError):
                await client.request("nobody", timeout_s=0.01)
            assert len(client._engine.responses) == 0
            topic = answers[0].topic
            await service.publish(topic, b"late", properties=Properties(correlation_data=b"none"))
            assert (await client.request("ask/2", b"x")).payload == b"X"
            with pytest.raises(ValueError, match="no response topic"):
                await client.respond(answers[0])
        old = Client(url, version=4)
        async with old:
            with pytest.raises(NotSupportedError):
                await old.request("ask/1")

    run(work())


def test_requests_are_bounded(url: str) -> None:
    async def work() -> None:
        async with Client(url, max_requests=2) as client:
            asked = [asyncio.create_task(client.request("nobody", timeout_s=0.2)) for _ in range(2)]
            await settled(lambda: len(client._engine.responses) == 2)
            with pytest.raises(QueueFullError, match="max_requests 2"):
                await client.request("nobody")
            for task in asked:
                with pytest.raises(TimeoutError):
                    await task

    run(work())


# ---------------------------------------------------------------------------------------------------- authentication


@pytest.mark.parametrize("kind", ["function", "coroutine function"])
def test_enhanced_authentication(kind: str) -> None:
    asked: list[bytes | None] = []

    def respond(data: bytes | None) -> bytes:
        asked.append(data)
        return b"<" + (data or b"") + b">"

    async def later(data: bytes | None) -> bytes:
        await asyncio.sleep(0)
        return respond(data)

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        [connect] = codec.Decoder().feed(await read_packet(reader))
        assert isinstance(connect, codec.Connect) and connect.properties.authentication_data == b"<>"
        for round_ in range(2):
            method = Properties(authentication_method="m", authentication_data=b"%d" % round_)
            writer.write(codec.encode(codec.Auth(0x18, properties=method), 5))
            [answer] = codec.Decoder(5).feed(await read_packet(reader))
            assert isinstance(answer, codec.Auth) and answer.properties.authentication_data == b"<%d>" % round_
            if round_ == 0:
                writer.write(codec.encode(codec.Connack(properties=Properties(authentication_method="m")), 5))
                [again] = codec.Decoder(5).feed(await read_packet(reader))
                assert isinstance(again, codec.Auth) and again.reason_code == 0x19
        writer.write(codec.encode(codec.Auth(0, properties=Properties(authentication_method="m")), 5))
        await reader.read()

    async def work() -> None:
        async with ScriptedServer(script) as server:
            authentication = Authentication("m", respond if kind == "function" else later)
            async with Client(server.url, authentication=authentication) as client:
                await client.reauthenticate()
        assert asked == [None, b"0", None, b"1"]

    run(work())


def test_a_method_that_fails_at_once_is_told() -> None:
    def respond(data: bytes | None) -> bytes:
        raise RuntimeError("no key")

    async def work() -> None:
        client = Client("mqtt://127.0.0.1:1", authentication=Authentication("m", respond), retry_first=True)
        with pytest.raises(RuntimeError, match="no key"):
            await client.connect()
        assert client.closed and client.stats.connect_failures == 0
        with pytest.raises(UnicodeError):
            await Client("mqtt://" + "x" * 100, retry_first=True).connect()

    run(work())


def test_a_method_that_fails_ends_the_attempt(caplog: pytest.LogCaptureFixture) -> None:
    def respond(data: bytes | None) -> bytes | None:
        if data is not None:
            raise RuntimeError("no answer")
        return None

    challenge = codec.Auth(0x18, properties=Properties(authentication_method="m", authentication_data=b"?"))

    async def work() -> None:
        async with ScriptedServer(played(challenge)) as server:
            with pytest.raises(ConnectError, match="no answer"):
                await Client(server.url, authentication=Authentication("m", respond)).connect()
        async with ScriptedServer(played(codec.Connack())) as server, Client(server.url) as plain:
            with pytest.raises(NotSupportedError):
                await plain.reauthenticate()

    run(work())


def test_subscriptions_with_identifiers_share_a_topic() -> None:
    """What comes together, about one topic, goes to each by its identifier."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_packet(reader)
        writer.write(codec.encode(codec.Connack(), 5))
        for _ in range(2):
            [packet] = codec.Decoder(5).feed(await read_packet(reader))
            assert isinstance(packet, codec.Subscribe)
            writer.write(codec.encode(codec.Suback(packet.packet_id, [0]), 5))
        told = [codec.Publish("a", b"%d" % n, properties=Properties(subscription_identifiers=[n])) for n in (1, 2, 1, 2)]
        writer.write(b"".join(codec.encode(packet, 5) for packet in told))
        await reader.read()

    async def work() -> None:
        async with ScriptedServer(script) as server, Client(server.url) as client:
            seen: list[tuple[int, bytes]] = []
            for number in (1, 2):
                told = Properties(subscription_identifiers=[number])
                await client.subscribe("+", properties=told, callback=lambda m, n=number: seen.append((n, m.payload)))
            await settled(lambda: len(seen) == 4)
            assert seen == [(1, b"1"), (2, b"2"), (1, b"1"), (2, b"2")]

    run(work())
