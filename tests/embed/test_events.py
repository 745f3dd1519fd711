"""`Broker.events` and `Broker.on_event`."""

from __future__ import annotations

import asyncio
import gc
import threading

import pytest

from mqttc.codec import QoS
from mqttc.embed import Connected, Disconnected, Dropped, Event, SessionExpired, Subscribed, Unsubscribed
from mqttc.server import Broker
from tests.conftest import BrokerFactory, tcp_address
from tests.rawclient import Peer

from .conftest import PeerFactory, eventually, run, until

pytestmark = pytest.mark.matrix


def test_a_clients_life(broker: Broker, peer: PeerFactory) -> None:
    async def work() -> None:
        async with broker.events() as events:
            client = peer(broker, "c", 5, username="user", password=b"p")
            client.subscribe("a/+", 1)
            client.unsubscribe("a/+", "never")
            client.disconnect(4)
            got = [await events.get() for _ in range(5)]
            assert [type(event) for event in got] == [Connected, Subscribed, Unsubscribed, Unsubscribed, Disconnected]
            for event in got:
                assert (event.client_id, event.listener, event.protocol, event.username) == ("c", broker.urls[0], 5, "user")
                assert event.address.startswith("127.0.0.1:")
                assert abs(event.time - got[0].time) < 60
            _, subscribed, unsubscribed, never, disconnected = got
            assert isinstance(subscribed, Subscribed) and (subscribed.topic_filter, subscribed.qos) == ("a/+", QoS.AT_LEAST_ONCE)
            assert isinstance(unsubscribed, Unsubscribed) and (unsubscribed.topic_filter, unsubscribed.reason_code) == ("a/+", 0)
            assert isinstance(never, Unsubscribed) and (never.topic_filter, never.reason_code) == ("never", 0x11)
            assert isinstance(disconnected, Disconnected) and disconnected.clean

    run(work())


def test_why_it_went(broker: Broker, peer: PeerFactory) -> None:
    async def work() -> None:
        async with broker.events(Disconnected) as events:
            peer(broker, "c", keep_alive=10)
            second = peer(broker, "c", keep_alive=10)
            taken = await events.get()
            second.reset()
            lost = await events.get()
            peer(broker, "k", keep_alive=10)
            broker.advance_clock(20)
            silent = await events.get()
            last = peer(broker, "s")
            assert last.client_id == "s"
            stopping = asyncio.create_task(asyncio.to_thread(broker.stop))
            closing = await events.get()
            await stopping
            got = [event for event in (taken, lost, silent, closing) if isinstance(event, Disconnected)]
            found = [(event.client_id, event.reason_code, event.clean) for event in got]
            assert found == [("c", 0x8E, False), ("c", 0, False), ("k", 0x8D, False), ("s", 0x8B, False)]
            assert [event async for event in events] == []

    run(work())


def test_sessions_and_loss(broker_factory: BrokerFactory, peer: PeerFactory) -> None:
    broker = broker_factory({"limits": {"max_queued_messages": 2}})

    async def work() -> None:
        async with broker.events(Dropped, SessionExpired) as events:
            client = peer(broker, "c", 5, clean=False, expiry=30)
            client.subscribe("t", 1)
            client.disconnect()
            client.finish()
            for _ in range(2 + 5):
                await broker.publish("t", qos=1)
            got = [await events.get() for _ in range(3)]
            assert [(type(event), event.client_id, getattr(event, "total", None)) for event in got] == [
                (Dropped, "c", 1),
                (Dropped, "c", 2),
                (Dropped, "c", 4),
            ]
            assert isinstance(got[0], Dropped) and got[0].reason == "queue full"
            broker.advance_clock(60)
            expired = await events.get()
            assert isinstance(expired, SessionExpired) and expired.client_id == "c"

    run(work())


def test_text_is_whole(broker: Broker, peer: PeerFactory) -> None:
    """Unlike in log lines."""
    name, topic_filter = "ü" * 500, "f/" * 60 + "g" * 3000

    async def work() -> None:
        async with broker.events(Subscribed) as events:
            peer(broker, name).subscribe(topic_filter, 0)
            event = await events.get()
            assert isinstance(event, Subscribed)
            assert (event.client_id, event.topic_filter) == (name, topic_filter)

    run(work())


def test_a_stream_is_bounded(broker: Broker, peer: PeerFactory) -> None:
    async def work() -> None:
        async with broker.events(Subscribed, max_waiting=3) as events:
            client = peer(broker, "c")
            for number in range(10):
                client.subscribe(f"t/{number}", 0)
            await eventually(lambda: events.lost == 7)
            got = [event.topic_filter for event in events.take(10) if isinstance(event, Subscribed)]
            assert got == ["t/0", "t/1", "t/2"]
            client.subscribe("again", 0)
            again = await events.get()
            assert isinstance(again, Subscribed) and again.topic_filter == "again"
        with pytest.raises(ValueError):
            broker.events(max_waiting=0)
        with pytest.raises(TypeError):
            broker.events(int)  # type: ignore[type-var]

    run(work())


def test_what_waits_for_the_program_is_bounded(broker_factory: BrokerFactory) -> None:
    """As long as nobody takes events, workers keep so many, and count the others."""
    broker = broker_factory({"workers": 1, "limits": {"max_subscriptions": 70_000}})
    assert broker._running is not None
    loop, go_on = broker._running.control._loop, threading.Event()
    assert loop is not None
    got: list[Event] = []
    broker.on_event(got.append, Subscribed)
    loop.call_soon_threadsafe(go_on.wait)
    client = Peer(tcp_address(broker.urls[0]), 5)
    try:
        client.connect("c")
        for start in range(0, 66_000, 1000):
            client.subscribe_many([(f"{number}", 0) for number in range(start, start + 1000)])
        lost = broker.stats()["events_lost"]
    finally:
        go_on.set()
        client.close()
    assert lost == 66_000 - 65_536
    until(lambda: len(got) == 65_536, lambda: len(got))


def test_nobody_listens(broker: Broker, peer: PeerFactory) -> None:
    """Nothing is made for nobody, also after somebody has gone without a word."""

    async def work() -> None:
        assert broker._running is not None
        heard = broker._running.hub._listening
        stream = broker.events()
        assert not heard
        step = asyncio.create_task(stream.get())
        await asyncio.sleep(0)
        assert len(heard) == 1
        peer(broker, "c")
        assert isinstance(await step, Connected)
        del step, stream
        gc.collect()
        assert not heard
        peer(broker, "d")
        assert broker.stats()["events_lost"] == 0

    run(work())


def test_callbacks(broker: Broker, peer: PeerFactory) -> None:
    """On the loop where it was asked for, else on the control thread; what one raises does not keep others from it."""
    threads: dict[str, list[threading.Thread]] = {"loop": [], "control": []}

    def on_control(event: Event) -> None:
        threads["control"].append(threading.current_thread())
        raise ValueError("on purpose")

    def on_loop(event: Event) -> None:
        threads["loop"].append(threading.current_thread())

    end = broker.on_event(on_control, Connected)

    async def work() -> None:
        end_loop = broker.on_event(on_loop, Connected)
        peer(broker, "a")
        await eventually(lambda: threads["loop"] and threads["control"])
        end_loop()
        peer(broker, "b")
        await eventually(lambda: len(threads["control"]) == 2)

    run(work())
    assert broker._running is not None
    assert threads == {"loop": [threading.current_thread()], "control": [broker._running.control.thread] * 2}
    end()
    end()

    async def wrong() -> None:
        async def callback(event: Event) -> None: ...

        with pytest.raises(TypeError):
            broker.on_event(callback)

    run(wrong())


def test_in_process_clients_are_no_events(broker: Broker) -> None:
    async def work() -> None:
        async with broker.events() as events:
            async with broker.subscribe("t") as messages:
                await broker.publish("t")
                await messages.get()
                await messages.unsubscribe("t")
            await broker.publish("t")
            assert events.waiting == 0

    run(work())
