"""`Broker.publish` and its relatives."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator

import pytest

from mqttc import BrokerError, codec
from mqttc.codec import Properties, ReasonCode
from mqttc.embed import Connected
from mqttc.errors import PublishError, QueueFullError
from mqttc.server import Broker
from tests.conftest import BrokerFactory
from tests.rawclient import CONTENT_TYPE, MESSAGE_EXPIRY, USER_PROPERTY
from tests.store.durable import Place

from .conftest import PeerFactory, eventually, run, until

pytestmark = pytest.mark.matrix


@contextlib.contextmanager
def control_is_busy(broker: Broker) -> Iterator[None]:
    """Nothing that the workers answer reaches anybody meanwhile."""
    assert broker._running is not None
    loop, busy, go_on = broker._running.control._loop, threading.Event(), threading.Event()
    assert loop is not None

    def block() -> None:
        busy.set()
        go_on.wait()

    loop.call_soon_threadsafe(block)
    busy.wait()
    try:
        yield
    finally:
        go_on.set()


@pytest.mark.parametrize("qos", [0, 1, 2])
@pytest.mark.parametrize("version", [4, 5])
def test_clients_get_it(broker: Broker, peer: PeerFactory, qos: int, version: int) -> None:
    client = peer(broker, "c", version)
    client.subscribe("a/+", 2)
    properties = Properties(content_type="text/plain", message_expiry_interval=60, user_properties=[("k", "v")])
    result = run(broker.publish("a/b", "hällo", qos, properties=properties))
    assert result.reason_code is ReasonCode.SUCCESS
    assert result.receivers == 1
    message = client.message("a/b")
    assert (message.payload, message.qos, message.retain) == ("hällo".encode(), qos, False)
    if version == 5:
        assert message.prop(CONTENT_TYPE) == "text/plain"
        assert message.prop(USER_PROPERTY) == ("k", "v")
        assert 58 <= message.prop(MESSAGE_EXPIRY) <= 60


def test_receivers_are_sessions_and_groups(broker: Broker, peer: PeerFactory) -> None:
    for name in "abc":
        peer(broker, name).subscribe("t", 1)
    for name in "de":
        peer(broker, name).subscribe("$share/g/t", 1)
    assert run(broker.publish("t", b"x", 1)).receivers == 4
    nobody = run(broker.publish("nobody", b"x", 1))
    assert (nobody.reason_code, nobody.receivers) == (ReasonCode.NO_MATCHING_SUBSCRIBERS, 0)


def test_retained(broker: Broker, peer: PeerFactory) -> None:
    run(broker.publish("r", b"kept", 1, retain=True))
    client = peer(broker, "c")
    client.subscribe("r", 1)
    message = client.message("r")
    assert (message.payload, message.retain) == (b"kept", True)
    run(broker.publish("r", b"", retain=True))
    assert broker.stats()["retained"] == 0


@pytest.mark.parametrize("qos", [0, 1, 2])
def test_what_the_broker_refuses(broker_factory: BrokerFactory, qos: int) -> None:
    broker = broker_factory({"limits": {"max_packet_size": 1000, "retain_available": False, "max_topic_levels": 3}})

    async def work() -> None:
        for arguments, code in (
            (("t", bytes(1000), qos), ReasonCode.PACKET_TOO_LARGE),
            (("t", b"x", qos, True), ReasonCode.RETAIN_NOT_SUPPORTED),
            (("a/b/c/d", b"x", qos), ReasonCode.TOPIC_NAME_INVALID),
        ):
            with pytest.raises(PublishError) as refused:
                await broker.publish(*arguments)
            assert refused.value.reason_code is code
        assert (await broker.publish("t", b"x", qos)).receivers == 0

    run(work())


def test_what_is_no_message(broker: Broker) -> None:
    async def work() -> None:
        for topic in ("", "a/#", "a\0b"):
            with pytest.raises(ValueError):
                await broker.publish(topic)
        for properties in (Properties(topic_alias=1), Properties(subscription_identifiers=[1]), Properties(receive_maximum=1)):
            with pytest.raises(codec.EncodeError):
                await broker.publish("t", properties=properties)
        with pytest.raises(ValueError):
            await broker.publish("t", qos=3)

    run(work())


def test_order_of_one_publisher(broker_factory: BrokerFactory, peer: PeerFactory) -> None:
    """More tasks than its window lets through: those that wait are not overtaken, whatever their QoS."""
    broker = broker_factory({"limits": {"receive_maximum": 3}})
    client = peer(broker, "c")
    client.subscribe("t", 0)

    async def work() -> None:
        async with broker.publisher() as publisher:
            await asyncio.gather(*(publisher.publish("t", b"%d" % number, number % 3) for number in range(300)))

    run(work())
    assert [int(message.payload) for message in client.messages(300)] == list(range(300))


def test_a_small_message_does_not_overtake_a_large_one(broker_factory: BrokerFactory) -> None:
    """That waits for room, which would be enough for the small one."""
    broker = broker_factory({"limits": {"max_queued_bytes": 10_000}})

    async def work() -> None:
        async with broker.publisher() as publisher, broker.subscribe("t") as messages:
            await publisher.publish("t")
            with control_is_busy(broker):
                tasks = [asyncio.create_task(publisher.publish("t", bytes(size))) for size in (6000, 6001, 10)]
                await asyncio.sleep(0)
            await asyncio.gather(*tasks)
            assert [len((await messages.get()).payload) for _ in range(4)] == [0, 6000, 6001, 10]

    run(work())


def test_a_cancelled_publication_that_waited_is_not_sent(broker_factory: BrokerFactory) -> None:
    broker = broker_factory({"limits": {"receive_maximum": 1}})

    async def work() -> None:
        async with broker.publisher() as publisher, broker.subscribe("t") as messages:
            await publisher.publish("t", b"first")
            with control_is_busy(broker):
                tasks = [asyncio.create_task(publisher.publish("t", payload)) for payload in (b"second", b"third", b"fourth")]
                await asyncio.sleep(0)
                tasks[1].cancel()
                await asyncio.sleep(0)
            await tasks[2]
            assert [(await messages.get()).payload for _ in range(3)] == [b"first", b"second", b"fourth"]
            with pytest.raises(asyncio.CancelledError):
                await tasks[1]

    run(work())


def test_publishers_are_spread_over_the_workers(broker_factory: BrokerFactory) -> None:
    broker = broker_factory({"workers": 2})

    async def work() -> None:
        publishers = [broker.publisher() for _ in range(4)]
        for publisher in publishers:
            await publisher.publish("t")
        sessions = [publisher._outlet.session or 0 for publisher in publishers]
        assert sorted(session >> 56 for session in sessions) == [0, 0, 1, 1]
        for publisher in publishers:
            publisher.close()
            publisher.close()
            with pytest.raises(BrokerError):
                await publisher.publish("t")

    run(work())
    until(lambda: broker.stats()["sessions"] == 0)


def test_from_other_threads(broker: Broker, peer: PeerFactory) -> None:
    client = peer(broker, "c")
    client.subscribe("t/#", 1)

    def publish(name: str) -> None:
        for number in range(50):
            assert broker.publish_sync(f"t/{name}", b"%d" % number, 1, timeout_s=20).receivers == 1
            broker.publish_nowait(f"t/{name}/also", b"%d" % number)

    threads = [threading.Thread(target=publish, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    messages = client.messages(300)
    for thread in threads:
        thread.join()
    for name in "abc":
        for topic in (f"t/{name}", f"t/{name}/also"):
            assert [int(message.payload) for message in messages if message.topic == topic] == list(range(50))


def test_nowait_does_not_wait(broker_factory: BrokerFactory) -> None:
    broker = broker_factory({"limits": {"receive_maximum": 2}})
    with broker.publisher() as publisher:
        assert publisher.publish_sync("t").receivers == 0
        with control_is_busy(broker):
            publisher.publish_nowait("t")
            publisher.publish_nowait("t")
            with pytest.raises(QueueFullError):
                publisher.publish_nowait("t")
            with pytest.raises(TimeoutError):
                publisher.publish_sync("t", timeout_s=0.01)
        publisher.publish_sync("t")
    until(lambda: broker.stats()["messages_received"] == 4)


def test_bytes_on_their_way_are_bounded(broker_factory: BrokerFactory) -> None:
    broker = broker_factory({"limits": {"max_queued_bytes": 10_000}})
    with broker.publisher() as publisher:
        publisher.publish_sync("t", bytes(100_000))  # larger than the bound: alone
        with control_is_busy(broker):
            publisher.publish_nowait("t", bytes(6000))
            with pytest.raises(QueueFullError):
                publisher.publish_nowait("t", bytes(6000))
            publisher.publish_nowait("t", bytes(3000))


def test_the_control_thread_cannot_wait_for_itself(broker: Broker, peer: PeerFactory) -> None:
    found: list[BaseException] = []

    def heard(event: object) -> None:
        try:
            broker.publish_sync("t")
        except BaseException as error:
            found.append(error)
        broker.publish_nowait("t")

    broker.on_event(heard, Connected)
    peer(broker, "c")
    until(lambda: found)
    assert isinstance(found[0], BrokerError)
    until(lambda: broker.stats()["messages_received"] == 1)


def test_committed_before_it_returns(place: Place) -> None:
    """Where the message must outlive the process."""
    place.session(5, "durable").subscribe("t", 2)
    broker = place.running
    broker.publish_sync("opens", b"the client")

    async def held() -> None:
        for qos in (1, 2):
            with place.blocked():
                task = asyncio.create_task(broker.publish("t", b"%d" % qos, qos))
                async with broker.publisher() as other:
                    await other.publish("elsewhere", b"x")
                assert not task.done()
            assert (await task).receivers == 1

    run(held())
    place.peers[0].messages(2)


def test_slow_receivers_slow_it(broker_factory: BrokerFactory) -> None:
    """As they slow a client: answers are held back before anything is lost."""
    broker = broker_factory({"limits": {"max_queued_messages": 200}})

    async def work() -> None:
        async with broker.subscribe("t", qos=1) as messages:
            sent = 0
            while not broker.stats()["publishers_braked"]:
                await broker.publish("t", b"%d" % sent, 1)
                sent += 1
            assert 1024 + 150 < sent <= 1024 + 200
            assert [int((await messages.get()).payload) for _ in range(sent)] == list(range(sent))
            assert messages.dropped == 0

    run(work())


def test_not_running() -> None:
    broker = Broker({"listeners": [{"url": "tcp://127.0.0.1:0"}]})
    with pytest.raises(BrokerError):
        run(broker.publish("t"))
    with pytest.raises(BrokerError):
        broker.publish_nowait("t")
    with broker:
        publisher = broker.publisher()
        publisher.publish_sync("t")
    for call in (broker.publish_sync, broker.publish_nowait, publisher.publish_sync, publisher.publish_nowait):
        with pytest.raises(BrokerError):
            call("t")
    publisher.close()


def test_stopped_meanwhile(broker_factory: BrokerFactory) -> None:
    """Who waits for an answer is told."""
    broker = broker_factory({"limits": {"receive_maximum": 1}})

    async def work() -> None:
        async with broker.publisher() as publisher:
            await publisher.publish("t")
            with control_is_busy(broker):
                tasks = [asyncio.create_task(publisher.publish("t")) for _ in range(3)]
                stopping = asyncio.create_task(asyncio.to_thread(broker.stop))
                assert broker._running is not None
                engine = broker._running.engine
                await eventually(lambda: engine.stopped)
            await stopping
            results = await asyncio.gather(*tasks, return_exceptions=True)
        assert any(isinstance(result, BrokerError) for result in results)
        assert all(isinstance(result, BrokerError) or not isinstance(result, BaseException) for result in results)

    run(work())
