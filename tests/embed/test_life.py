"""Brokers come and go inside a program: several at a time, nothing left behind, nothing alive in a forked child."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from mqttc import Broker, BrokerError, BrokerThread
from mqttc.embed import Event
from tests.conftest import BrokerFactory, broker_config

from .conftest import run

pytestmark = pytest.mark.matrix


def descriptors() -> set[str]:
    """What this process has open, and as what."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            found.add(f"{name} {os.readlink(f'/proc/self/fd/{name}')}")
        except OSError:
            pass  # the directory itself
    return found


def system_threads() -> int:
    return len(os.listdir("/proc/self/task"))


async def busy(broker: Broker) -> None:
    """Everything that can be open, at the end of the broker."""
    events: list[Event] = []
    broker.on_event(events.append)
    stream = broker.events()
    step = asyncio.create_task(stream.get())
    messages = broker.subscribe("t", qos=1)
    await messages.__aenter__()
    publisher = broker.publisher()
    for number in range(2000):
        await publisher.publish("t", b"%d" % number, number % 3, properties=None)
    publisher.publish_nowait("t")
    await broker.publish("r", b"x", retain=True)
    await broker.clients()
    await asyncio.to_thread(broker.stop)
    with pytest.raises((StopAsyncIteration, RuntimeError)):
        await step
    await messages.close()


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts with /proc")
def test_nothing_is_left(tmp_path: Path) -> None:
    before_warm_up = threading.active_count()
    with Broker(broker_config()) as broker:
        run(busy(broker))
    gc.collect()
    open_before, threads_before, files_before = descriptors(), system_threads(), sorted(os.listdir("."))
    for _ in range(3):
        with Broker(broker_config()) as broker:
            run(busy(broker))
        with BrokerThread(broker_config()) as threaded, threaded.subscribe("t") as messages:
            threaded.publish("t")
            messages.get(20)
    gc.collect()
    assert threading.active_count() == before_warm_up
    assert system_threads() == threads_before
    assert descriptors() == open_before
    assert sorted(os.listdir(".")) == files_before


def test_several_brokers(broker_factory: BrokerFactory) -> None:
    """In one loop, each with its own messages, sessions and end."""
    brokers = [broker_factory() for _ in range(3)]

    async def work() -> None:
        async with brokers[0].subscribe("t") as first, brokers[1].subscribe("t") as second, brokers[2].subscribe("t") as third:
            for number, broker in enumerate(brokers):
                assert (await broker.publish("t", b"%d" % number)).receivers == 1
            await asyncio.to_thread(brokers[0].stop)
            assert (await second.get()).payload == b"1"
            assert (await third.get()).payload == b"2"
            await brokers[2].publish("t", b"again")
            assert (await third.get()).payload == b"again"
            assert [message.payload async for message in first] == [b"0"]

    run(work())


def test_started_again_it_is_empty() -> None:
    broker = Broker(broker_config())
    for _ in range(2):
        with broker:
            assert broker.publish_sync("r", b"x", retain=True).receivers == 0
            assert broker.stats()["retained"] == 1
            assert broker.stats()["messages_received"] == 1


def in_child(broker: Broker, calls: list[Any]) -> int:
    """How many calls raise BrokerError in a forked child; each other one counts 1000."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        count = 0
        try:
            for call in calls:
                try:
                    result = call()
                    if asyncio.iscoroutine(result):
                        result.send(None)
                    count += 1000
                except BrokerError:
                    count += 1
                except BaseException:
                    count += 1000
            os.write(write, b"%d" % count)
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    count = int(os.read(read, 100))
    os.close(read)
    os.close(write)
    return count


def test_after_a_fork_every_call_raises(broker: Broker) -> None:
    publisher = broker.publisher()
    publisher.publish_sync("t")
    loop = asyncio.new_event_loop()
    messages = broker.subscribe("t")
    loop.run_until_complete(messages.__aenter__())
    calls = [
        lambda: broker.publish_nowait("t"),
        lambda: broker.publish_sync("t"),
        lambda: broker.publish("t"),
        lambda: broker.publisher(),
        lambda: broker.clients(),
        lambda: broker.client("c"),
        lambda: broker.disconnect("c"),
        lambda: broker.sessions(),
        lambda: broker.session("c"),
        lambda: broker.delete_session("c"),
        lambda: broker.retained(),
        lambda: broker.retained_message("t"),
        lambda: broker.delete_retained("t"),
        lambda: broker.on_event(print),
        lambda: broker.subscribe("t").__aenter__(),
        lambda: broker.events().__aenter__(),
        lambda: publisher.publish_nowait("t"),
        lambda: publisher.publish_sync("t"),
        lambda: publisher.close(),
    ]
    assert in_child(broker, calls) == len(calls)
    assert publisher.publish_sync("t").receivers == 1  # here all goes on
    loop.run_until_complete(messages.close())
    loop.close()
