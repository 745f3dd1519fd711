"""What a broker inside a program costs: to start and stop, and per message between the program and its workers.

`ms_start` of `test_start` is the figure to look at: from `Broker(...)` to the return of `start`, once the package is imported.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from mqttc import Broker

CONFIG: dict[str, Any] = {"listeners": [{"url": "tcp://127.0.0.1:0"}]}
MESSAGES = 5000


def test_start(benchmark: BenchmarkFixture) -> None:
    """With one worker per core, as without a configuration."""
    starts: list[float] = []

    def start_and_stop() -> None:
        begun = time.perf_counter()
        broker = Broker(CONFIG)
        broker.start()
        starts.append(time.perf_counter() - begun)
        broker.stop()

    benchmark.pedantic(start_and_stop, rounds=30, warmup_rounds=1)
    benchmark.extra_info["ms_start"] = round(sorted(starts)[len(starts) // 2] * 1000, 2)


@pytest.mark.parametrize("qos", [0, 1])
@pytest.mark.parametrize("together", [1, 100])
def test_publish(benchmark: BenchmarkFixture, qos: int, together: int) -> None:
    """`await broker.publish`, so many at a time; to nobody."""

    async def publish(broker: Broker) -> None:
        for _ in range(MESSAGES // together):
            if together == 1:
                await broker.publish("t", b"x" * 64, qos)
            else:
                await asyncio.gather(*(broker.publish("t", b"x" * 64, qos) for _ in range(together)))

    with Broker(CONFIG) as broker:
        benchmark.pedantic(lambda: asyncio.run(publish(broker)), rounds=5, warmup_rounds=1)
    if benchmark.stats is not None:
        benchmark.extra_info["us_each"] = round(benchmark.stats.stats.min / MESSAGES * 1e6, 2)


def test_receive(benchmark: BenchmarkFixture) -> None:
    """From an in-process publisher that does not wait for answers to an in-process subscriber."""

    async def work(broker: Broker) -> None:
        async with broker.subscribe("t") as messages, broker.publisher() as publisher:

            async def publish() -> None:
                for _ in range(MESSAGES // 100):
                    await asyncio.gather(*(publisher.publish("t", b"x" * 64) for _ in range(100)))

            task = asyncio.create_task(publish())
            for _ in range(MESSAGES):
                await messages.get()
            await task

    with Broker(CONFIG) as broker:
        benchmark.pedantic(lambda: asyncio.run(work(broker)), rounds=5, warmup_rounds=1)
    if benchmark.stats is not None:
        benchmark.extra_info["us_each"] = round(benchmark.stats.stats.min / MESSAGES * 1e6, 2)
