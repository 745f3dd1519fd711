"""Killed processes: our broker with durability `written`, and the client with its store. Nothing is lost, and nothing doubled at QoS 2."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mqttc import Client
from mqttc.client import SqliteStore, State
from tests.client.conftest import ROOT, BrokerProcess, FaultProxy, free_port, run, settled
from tests.client.test_reconnect import AT_ONCE, Numbered

KILLS = int(os.environ.get("MQTTC_TEST_KILLS", "6"))
MESSAGES = 300
"""Of each QoS in a store."""


@pytest.mark.parametrize("version", [4, 5])
def test_our_broker_is_killed(version: int, durable_broker: BrokerProcess) -> None:
    """Again and again, while connections are cut and what passes is held back now and then."""
    chance = random.Random(version)
    options: dict[str, Any] = {"version": version, "session_expiry": 3600, "reconnect": AT_ONCE, "max_inflight": 20, "receive_maximum": 20}

    async def work() -> None:
        numbered = Numbered()
        done = asyncio.Event()
        async with FaultProxy("127.0.0.1", durable_broker.port) as near, FaultProxy("127.0.0.1", durable_broker.port) as far:
            subscriber = Client(far.url, client_id="s", **options)
            publisher = Client(near.url, client_id="p", **options)
            async with subscriber, publisher:
                await subscriber.subscribe("numbered/+", 2)
                for proxy in (near, far):
                    proxy.cut_after = lambda: chance.randrange(500, 5000)
                    proxy.delay_s = lambda: chance.choice((0, 0, 0.001))
                reading = asyncio.create_task(numbered.receive(subscriber))
                writing = [asyncio.create_task(numbered.publish(publisher, qos, done)) for qos in (1, 2)]
                for _ in range(KILLS):
                    enough = min(numbered.published.values()) + chance.randrange(5, 60)
                    await settled(lambda enough=enough: min(numbered.published.values()) > enough)  # type: ignore[misc]
                    await asyncio.to_thread(durable_broker.stop)
                    await publisher.wait_for(State.RECONNECTING)
                    await asyncio.to_thread(durable_broker.start)
                for proxy in (near, far):
                    proxy.cut_after = proxy.delay_s = None
                    proxy.cut()
                done.set()
                await asyncio.gather(*writing)
                await settled(lambda: numbered.complete)
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)
                assert publisher.stats.sessions_lost == subscriber.stats.sessions_lost == 0
        numbered.check()

    run(work(), 60 + 10 * KILLS)


SENDER = """
import asyncio, sys
from mqttc import Client
from mqttc.client import Reconnect, SqliteStore

async def main():
    options = {"client_id": "sender", "session_expiry": 3600, "clean_start": False, "max_inflight": 10, "version": int(sys.argv[3])}
    client = Client(sys.argv[1], store=SqliteStore(sys.argv[2]), retry_first=True, reconnect=Reconnect(first_s=0, most_s=0.01), **options)
    async with client:
        while client.unfinished:
            await asyncio.sleep(0.001)

asyncio.run(main())
"""


def sender(url: str, store: Path, version: int) -> subprocess.Popen[bytes]:
    """A process that sends what is in its store, and ends."""
    return subprocess.Popen(
        [sys.executable, "-c", SENDER, url, str(store), str(version)], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )


@pytest.mark.parametrize("version", [4, 5])
def test_the_client_is_killed_with_its_store(version: int, durable_broker: BrokerProcess, tmp_path: Path) -> None:
    """And the broker too, every other time."""
    chance = random.Random(version)
    store = tmp_path / "sender.db"
    options: dict[str, Any] = {"version": version, "session_expiry": 3600, "reconnect": AT_ONCE}

    async def filled() -> None:
        client = Client(
            f"mqtt://127.0.0.1:{free_port()}", client_id="sender", session_expiry=3600, store=SqliteStore(store), retry_first=True
        )
        connecting = asyncio.create_task(client.connect())
        await client.wait_for(State.CONNECTING)
        for number in range(MESSAGES):
            for qos in (1, 2):
                await client.publish(f"numbered/{qos}", b"%d" % number, qos, wait=False)
        await client.close()
        await asyncio.gather(connecting, return_exceptions=True)

    async def work() -> None:
        await filled()
        numbered = Numbered()
        numbered.published = {1: MESSAGES, 2: MESSAGES}
        async with Client(durable_broker.url, client_id="s", **options) as subscriber:
            await subscriber.subscribe("numbered/+", 2)
            reading = asyncio.create_task(numbered.receive(subscriber))
            kills = 0
            process = sender(durable_broker.url, store, version)
            try:
                for turn in range(KILLS):
                    seen = len(numbered.received[2])
                    enough = min(seen + chance.randrange(5, 2 * MESSAGES // KILLS), MESSAGES)
                    await settled(lambda enough=enough, sent=process: len(numbered.received[2]) >= enough or sent.poll() is not None)  # type: ignore[misc]
                    if process.poll() is not None:
                        break
                    process.kill()
                    await asyncio.to_thread(process.wait)
                    kills += 1
                    if turn % 2:
                        await asyncio.to_thread(durable_broker.stop)
                        await subscriber.wait_for(State.RECONNECTING)
                        await asyncio.to_thread(durable_broker.start)
                    process = sender(durable_broker.url, store, version)
                assert await asyncio.to_thread(process.wait, 30) == 0
            finally:
                process.kill()
                process.wait()
            await settled(lambda: numbered.complete)
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            assert subscriber.stats.sessions_lost == 0 and kills >= 2
        numbered.check()

    run(work(), 60 + 10 * KILLS)


def test_a_receiver_is_stopped_with_its_store(durable_broker: BrokerProcess, tmp_path: Path) -> None:
    """Another client with the same file goes on where the first was cut off: what it has given out at QoS 2 does not come again."""
    options: dict[str, Any] = {"client_id": "r", "session_expiry": 3600, "receive_maximum": 5, "reconnect": None}
    count = 60

    async def work() -> None:
        numbered = Numbered()
        numbered.published = {1: 0, 2: count}
        async with Client(durable_broker.url) as publisher:
            async with Client(durable_broker.url, **options) as first:
                await first.subscribe("numbered/2", 2)
            for number in range(count):
                await publisher.publish("numbered/2", b"%d" % number, 2, wait=False)
            rounds = 0
            while count - 1 not in numbered.received[2]:
                rounds += 1
                async with FaultProxy("127.0.0.1", durable_broker.port) as proxy:
                    proxy.cut_after = lambda: 250
                    client = Client(proxy.url, clean_start=False, store=SqliteStore(tmp_path / "r.db"), **options)
                    await client.connect()
                    try:
                        async for message in client:
                            numbered.received[2].append(int(message.payload))
                            if message.payload == b"%d" % (count - 1):
                                break
                    except Exception:
                        pass  # cut off
                    await client.close()
            assert rounds > 3
        numbered.check()

    run(work(), 60)


def test_sigterm_is_no_loss_either(durable_broker: BrokerProcess) -> None:
    async def work() -> None:
        options: dict[str, Any] = {"session_expiry": 3600, "reconnect": AT_ONCE}
        async with Client(durable_broker.url, client_id="s", **options) as client:
            await client.subscribe("a", 2)
            await client.publish("a", b"1", 2)
            await asyncio.to_thread(durable_broker.stop, signal.SIGTERM)
            await client.wait_for(State.RECONNECTING)
            await client.publish("a", b"2", 2, wait=False)
            await asyncio.to_thread(durable_broker.start)
            assert [(await client.get()).payload for _ in range(2)] == [b"1", b"2"]
            assert client.stats.sessions_lost == 0

    run(work())
