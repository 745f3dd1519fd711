"""`Broker.subscribe`: what comes, by which way, and what happens when nobody takes it."""

from __future__ import annotations

import asyncio
import threading

import pytest

from mqttc import BrokerError
from mqttc.codec import Properties, ReasonCode, RetainHandling
from mqttc.embed import Dropped, Message
from mqttc.errors import SubscribeError
from mqttc.server import Broker
from tests.conftest import BrokerFactory, tcp_address
from tests.rawclient import CONTENT_TYPE, CORRELATION_DATA, RESPONSE_TOPIC, Peer

from .conftest import PeerFactory, eventually, run, until

pytestmark = pytest.mark.matrix


@pytest.mark.parametrize("qos", [0, 1, 2])
@pytest.mark.parametrize("version", [4, 5])
def test_what_clients_publish(broker: Broker, peer: PeerFactory, qos: int, version: int) -> None:
    client = peer(broker, "c", version)
    props = ((CONTENT_TYPE, "text/plain"), (RESPONSE_TOPIC, "back"), (CORRELATION_DATA, b"7")) if version == 5 else ()

    async def work() -> None:
        async with broker.subscribe("a/#", qos=1) as messages:
            client.publish("a/b", "hällo", qos, props=props)
            message = await messages.get()
            assert (message.topic, message.text, message.qos, message.retain) == ("a/b", "hällo", min(qos, 1), False)
            if version == 5:
                assert message.properties == Properties(content_type="text/plain", response_topic="back", correlation_data=b"7")
                assert (message.response_topic, message.correlation_data) == ("back", b"7")
            else:
                assert message.properties == Properties()
            assert messages.filters_of(message) == ("a/#",)

    run(work())


def test_many_in_order(broker: Broker, peer: PeerFactory) -> None:
    """More than are handed over at a time, from a client and from inside."""
    client = peer(broker, "c")

    async def work() -> None:
        async with broker.subscribe("t/#", qos=1) as messages:

            async def publish() -> None:
                for number in range(3000):
                    await broker.publish("t/inside", b"%d" % number, number % 2)

            task = asyncio.create_task(publish())
            thread = threading.Thread(target=lambda: [client.publish("t/client", b"%d" % number, 1) for number in range(1000)])
            thread.start()
            got: dict[str, list[int]] = {"t/inside": [], "t/client": []}
            for _ in range(4000):
                message = await messages.get()
                got[message.topic].append(int(message.payload))
            assert got == {"t/inside": list(range(3000)), "t/client": list(range(1000))}
            assert (messages.waiting, messages.dropped, messages.take(5)) == (0, 0, [])
            thread.join()
            await task

    run(work())


def test_large_messages(broker: Broker) -> None:
    """Twenty times what is handed over at a time."""

    async def work() -> None:
        async with broker.subscribe("t") as messages:
            for number in range(80):
                await broker.publish("t", bytes([number]) * 1_000_000)
                if number % 5 == 4:
                    for expected in range(number - 4, number + 1):
                        assert (await messages.get()).payload == bytes([expected]) * 1_000_000

    run(work())


def test_several_filters(broker: Broker) -> None:
    """A message that several match comes once, and says by which."""

    async def work() -> None:
        async with broker.subscribe("a/+", "a/#", "b", qos=2) as messages:
            assert messages.topic_filters == ("a/+", "a/#", "b")
            assert messages.reason_codes == dict.fromkeys(messages.topic_filters, ReasonCode.GRANTED_QOS_2)
            for topic in ("a/1", "a/1/2", "b"):
                await broker.publish(topic, qos=2)
            found = [messages.filters_of(await messages.get()) for _ in range(3)]
            assert [sorted(names) for names in found] == [["a/#", "a/+"], ["a/#"], ["b"]]
            await messages.unsubscribe("a/#")
            assert messages.topic_filters == ("a/+", "b")
            for topic in ("a/1/2", "b"):
                await broker.publish(topic)
            assert (await messages.get()).topic == "b"
            with pytest.raises(SubscribeError):
                await messages.unsubscribe("a/#")

    run(work())
    assert broker.stats()["subscriptions"] == broker.stats()["sessions"] - 1 == 0  # the broker's own publisher is left


def test_retained_messages(broker: Broker, peer: PeerFactory) -> None:
    """First, all of them, and by retain handling."""
    for number in range(200):
        broker.publish_sync(f"r/{number}", b"%d" % number, 1, retain=True)
    client = peer(broker, "c")

    async def work() -> None:
        async with broker.subscribe("r/#", qos=1) as messages:
            got = [await messages.get() for _ in range(200)]
            assert sorted(int(message.payload) for message in got) == list(range(200))
            assert all(message.retain and message.qos == 1 and messages.filters_of(message) == ("r/#",) for message in got)
            client.publish("r/1", b"live", 1, retain=True)
            message = await messages.get()
            assert (message.payload, message.retain) == (b"live", False)
        async with broker.subscribe("r/1", retain_handling=RetainHandling.DO_NOT_SEND, retain_as_published=True) as messages:
            client.publish("r/1", b"again", 1, retain=True)
            message = await messages.get()
            assert (message.payload, message.retain) == (b"again", True)

    run(work())


def test_retained_messages_beyond_the_window(broker: Broker) -> None:
    for number in range(1500):
        broker.publish_sync(f"r/{number}", b"x", retain=True)

    async def work() -> None:
        async with broker.subscribe("r/#") as messages:
            await eventually(lambda: messages.waiting == 1024)
            topics = {(await messages.get()).topic for _ in range(1500)}
            assert len(topics) == 1500

    run(work())


def test_no_local(broker: Broker) -> None:
    async def work() -> None:
        async with broker.subscribe("t", no_local=True) as mine, broker.subscribe("t") as all_of_them:
            await mine.publish("t", b"mine")
            await broker.publish("t", b"another's")
            assert (await mine.get()).payload == b"another's"
            assert {(await all_of_them.get()).payload for _ in range(2)} == {b"mine", b"another's"}

    run(work())


def test_shared_with_clients(broker: Broker, peer: PeerFactory) -> None:
    client = peer(broker, "c")
    client.subscribe("$share/g/t", 1)

    async def work() -> None:
        async with broker.subscribe("$share/g/t", qos=1) as messages:
            for number in range(100):
                await broker.publish("t", b"%d" % number, 1)
            await eventually(lambda: broker.stats()["messages_sent"] + messages.waiting == 100)
            here = [int(message.payload) for message in messages.take(100)]
            there = [int(message.payload) for message in client.messages(100 - len(here))]
            assert sorted(here + there) == list(range(100))
            assert here and there
            assert here == sorted(here)

    run(work())


def test_shared_beyond_the_window(broker: Broker) -> None:
    """A group's credit comes back as messages are taken."""

    async def work() -> None:
        async with broker.subscribe("$share/g/t", qos=1) as messages:

            async def publish() -> None:
                for number in range(4000):
                    await broker.publish("t", b"%d" % number, 1)

            task = asyncio.create_task(publish())
            assert [int((await messages.get()).payload) for _ in range(4000)] == list(range(4000))
            await task

    run(work())


def test_callbacks(broker: Broker, peer: PeerFactory) -> None:
    """Each filter has its own; a coroutine function has one message at a time; what one raises does not keep the others."""
    client = peer(broker, "c")
    plain: list[str] = []
    slow: list[str] = []
    running = 0

    def raises(message: Message) -> None:
        plain.append(message.topic)
        raise ValueError("on purpose")

    async def waits(message: Message) -> None:
        nonlocal running
        running += 1
        assert running == 1
        await asyncio.sleep(0)
        slow.append(message.topic)
        running -= 1

    async def work() -> None:
        async with broker.subscribe("both/#", callback=raises) as messages:
            await messages.subscribe("slow/#", 1, callback=waits)
            await messages.subscribe("both/+", callback=waits)
            with pytest.raises(TypeError):
                await messages.get()
            for topic in ("slow/1", "both/1", "slow/2", "both/2/3"):
                client.publish(topic, qos=1)
            await eventually(lambda: len(slow) == 3 and len(plain) == 2)
        assert slow == ["slow/1", "both/1", "slow/2"]
        assert plain == ["both/1", "both/2/3"]

    run(work())


def test_a_callback_may_publish_and_close(broker: Broker) -> None:
    async def work() -> None:
        ended = asyncio.Event()

        async def answer(message: Message) -> None:
            await messages.publish("answer", message.payload * 2)
            await messages.close()
            ended.set()

        async with broker.subscribe("answer") as answers, broker.subscribe("question", callback=answer) as messages:
            await broker.publish("question", b"x")
            assert (await answers.get()).payload == b"xx"
            await ended.wait()

    run(work())


def test_refused(broker_factory: BrokerFactory) -> None:
    broker = broker_factory({"limits": {"max_subscriptions": 1, "shared_subscription_available": False}})

    async def work() -> None:
        with pytest.raises(ValueError):
            broker.subscribe("a/#/b")
        with pytest.raises(ValueError):
            broker.subscribe("a", qos=3)
        for filters, code in (
            (("$share/g/a",), ReasonCode.SHARED_SUBSCRIPTIONS_NOT_SUPPORTED),
            (("a", "b"), ReasonCode.QUOTA_EXCEEDED),
        ):
            with pytest.raises(SubscribeError) as refused:
                async with broker.subscribe(*filters):
                    pass
            assert refused.value.reason_codes == (code,)

    run(work())
    assert broker.stats()["sessions"] == 0


def test_use_out_of_order(broker: Broker) -> None:
    async def work() -> None:
        messages = broker.subscribe("t")
        for call in (messages.get, messages.__anext__):
            with pytest.raises(BrokerError):
                await call()
        async with messages:
            with pytest.raises(BrokerError):
                async with messages:
                    pass
            await broker.publish("t", b"left over")
            await eventually(lambda: messages.waiting)
        with pytest.raises(BrokerError):
            await messages.subscribe("u")
        assert [message.payload async for message in messages] == [b"left over"]
        await messages.close()

    run(work())


@pytest.mark.parametrize("policy", ["drop_oldest", "drop_newest", "disconnect"])
def test_loss_is_counted(broker_factory: BrokerFactory, policy: str) -> None:
    """Nobody reads: the queue fills, its policy acts, and what came and what was lost is all there was."""
    broker = broker_factory({"limits": {"max_queued_messages": 50, "queue_policy": policy}, "workers": 1})

    async def work() -> None:
        async with broker.subscribe("t") as messages, broker.publisher() as publisher:
            sent = 0
            while broker.stats()["dropped_queue_full"] < 100:
                await publisher.publish("t", b"%d" % sent)
                sent += 1
            lost = broker.stats()["dropped_queue_full"]
            got = [int((await messages.get()).payload) for _ in range(sent - lost)]
            assert messages.dropped == lost
            assert got == sorted(got)
            assert (got[-1] == sent - 1) is (policy == "drop_oldest")
            await publisher.publish("t", b"%d" % sent)
            assert int((await messages.get()).payload) == sent

    run(work())


def test_expired_in_the_queue(broker: Broker) -> None:
    async def work() -> None:
        async with broker.subscribe("t") as messages:
            for _ in range(1024 + 40):
                await broker.publish("t", properties=Properties(message_expiry_interval=10))
            await eventually(lambda: messages.waiting == 1024)
            broker.advance_clock(20)
            assert {(await messages.get()).message_expiry for _ in range(1024)} <= {9, 10}
            await broker.publish("t", b"last")
            assert (await messages.get()).payload == b"last"
            assert messages.dropped == broker.stats()["dropped_expired"] == 40

    run(work())


def test_nobody_takes_it_over(broker_factory: BrokerFactory) -> None:
    """A client that knows the id of an in-process client is refused."""
    broker = broker_factory({"limits": {"max_queued_messages": 1}})

    async def work() -> None:
        async with broker.events(Dropped) as events, broker.subscribe("t") as messages:
            while not events.waiting:
                await broker.publish("t")
            event = await events.get()
            for version, code in ((4, 2), (5, 0x85)):
                client = Peer(tcp_address(broker.urls[0]), version)
                assert client.connect(event.client_id).reason == code
                client.close()
            assert await broker.session(event.client_id) is None
            assert not await broker.delete_session(event.client_id)
            assert not await broker.disconnect(event.client_id)
            messages.take(10**6)
            await broker.publish("t", b"still here")

    run(work())


def test_the_end_of_the_broker(broker_factory: BrokerFactory) -> None:
    """What is at hand can be read, then the iteration ends."""
    broker = broker_factory()

    async def work() -> None:
        async with broker.subscribe("t") as messages, broker.subscribe("nothing") as silent:
            reader = asyncio.create_task(silent.get())
            await broker.publish("t", b"1")
            await broker.publish("t", b"2")
            await eventually(lambda: messages.waiting == 2)
            await asyncio.to_thread(broker.stop)
            assert [message.payload async for message in messages] == [b"1", b"2"]
            with pytest.raises((StopAsyncIteration, RuntimeError)):
                await reader
            with pytest.raises(BrokerError):
                await messages.publish("t")

    run(work())


def test_a_loop_that_is_gone(broker: Broker) -> None:
    """A program that has closed its loop without an end of its subscription: the broker ends it, and others go on."""
    loop = asyncio.new_event_loop()
    messages = broker.subscribe("t")
    loop.run_until_complete(messages.__aenter__())
    loop.close()

    async def work() -> None:
        async with broker.subscribe("t") as others:
            await broker.publish("t", b"1")
            assert (await others.get()).payload == b"1"

    run(work())
    until(lambda: broker.stats()["subscriptions"] == 0)


def test_several_loops(broker: Broker) -> None:
    """Each in a thread of its own."""
    got: dict[int, list[bytes]] = {}

    async def listen(name: int, ready: threading.Barrier) -> None:
        async with broker.subscribe("t") as messages:
            await asyncio.to_thread(ready.wait, 20)
            got[name] = [(await messages.get()).payload for _ in range(100)]

    ready = threading.Barrier(4)
    threads = [threading.Thread(target=lambda name=name: run(listen(name, ready))) for name in range(3)]
    for thread in threads:
        thread.start()
    ready.wait(20)
    for number in range(100):
        broker.publish_sync("t", b"%d" % number)
    for thread in threads:
        thread.join()
    assert got == {name: [b"%d" % number for number in range(100)] for name in range(3)}
