"""Connections that break, brokers that are killed and come back: nothing is lost at QoS 1 and 2, nothing doubled at QoS 2."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from mqttc import Client, codec
from mqttc.client import Reconnect, SqliteStore, Tls
from mqttc.client.state import State
from mqttc.codec import Properties
from mqttc.errors import ClosedError, ConnectError, ConnectionLostError, ExpiredError, MqttError, QueueFullError, SubscribeError
from tests.client.conftest import FaultProxy, Mosquitto, ScriptedServer, client_url, free_port, listeners, read_packet, run, settled
from tests.conformance.statements import each_version
from tests.conftest import BrokerFactory, tcp_address

AT_ONCE = Reconnect(first_s=0, most_s=0.01)
RECONNECTS = int(os.environ.get("MQTTC_TEST_RECONNECTS", "100"))
"""Of each version; 1000 are for a release."""


class Numbered:
    """What was published, by QoS, and what came."""

    def __init__(self) -> None:
        self.published: dict[int, int] = {1: 0, 2: 0}
        self.received: dict[int, list[int]] = {1: [], 2: []}

    def check(self, doubles: bool = True) -> None:
        for qos in (1, 2):
            wanted = set(range(self.published[qos]))
            assert set(self.received[qos]) == wanted, f"lost at QoS {qos}: {sorted(wanted - set(self.received[qos]))[:10]}"
        if not doubles:
            return
        doubled = [number for number, count in Counter(self.received[2]).items() if count > 1]
        assert not doubled, f"doubled at QoS 2: {doubled[:10]}"
        assert self.received[2] == sorted(self.received[2])

    @property
    def complete(self) -> bool:
        return all(self.published[qos] == len(set(self.received[qos])) for qos in (1, 2))

    async def publish(self, client: Client, qos: int, until: asyncio.Event) -> None:
        while not until.is_set():
            await client.publish(f"numbered/{qos}", b"%d" % self.published[qos], qos)
            self.published[qos] += 1

    async def receive(self, client: Client) -> None:
        async for message in client:
            self.received[message.qos].append(int(message.payload))


async def through_faults(
    host: str,
    port: int,
    version: int,
    reconnects: int,
    seed: int,
    *,
    url: str = "mqtt://127.0.0.1:{}",
    most_bytes: int = 1500,
    doubles: bool = True,
    **more: Any,
) -> None:
    """A publisher and a subscriber, each behind a proxy of its own that cuts after a number of bytes, in the middle of packets."""
    chance = random.Random(seed)
    numbered = Numbered()
    done = asyncio.Event()
    options: dict[str, Any] = {"version": version, "session_expiry": 3600, "reconnect": AT_ONCE, "max_inflight": 20, "receive_maximum": 20}
    options |= more
    async with FaultProxy(host, port) as near, FaultProxy(host, port) as far:
        publisher = Client(url.format(near.port), client_id=f"publisher{version}", **options)
        subscriber = Client(url.format(far.port), client_id=f"subscriber{version}", **options)
        async with publisher, subscriber:
            await subscriber.subscribe("numbered/+", 2)
            for proxy in (near, far):
                proxy.cut_after = lambda: chance.randrange(20, most_bytes)
                proxy.cut()
            reading = asyncio.create_task(numbered.receive(subscriber))
            writing = [asyncio.create_task(numbered.publish(publisher, qos, done)) for qos in (1, 2)]
            await settled(lambda: near.connections + far.connections > reconnects, 600)
            near.cut_after = far.cut_after = None
            near.cut()
            far.cut()
            done.set()
            await asyncio.gather(*writing)
            await settled(lambda: numbered.complete)
            assert publisher.stats.connections + subscriber.stats.connections > reconnects // (2 if most_bytes == 1500 else 10)
            assert publisher.stats.sessions_lost == subscriber.stats.sessions_lost == 0
            assert publisher.stats.resent > 0
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
    numbered.check(doubles)
    assert numbered.published[1] > reconnects // 10 and numbered.published[2] > reconnects // 10


@each_version
def test_many_reconnects(version: int, broker_factory: BrokerFactory) -> None:
    host, port = tcp_address(broker_factory().urls[0])
    run(through_faults(host, port, version, RECONNECTS, seed=version), timeout_s=600)


@each_version
def test_a_hundred_reconnects_with_mosquitto(version: int, mosquitto: Mosquitto) -> None:
    """Nothing is lost. Once in some dozens of runs mosquitto 2.0.11 sends a PUBLISH again whose PUBREL it has sent (see below)."""
    run(through_faults("127.0.0.1", mosquitto.ports["mqtt"], version, 100, seed=version, doubles=False), timeout_s=120)


@pytest.mark.parametrize("road", ["mqtts", "ws", "wss", "http2"])
def test_reconnects_on_every_road(road: str, broker_factory: BrokerFactory, pki: Path, tmp_path: Path) -> None:
    scheme = "wss" if road == "http2" else road
    url = client_url(broker_factory({"listeners": listeners(pki, tmp_path, scheme)}), scheme)
    parts = urlsplit(url)
    assert parts.hostname is not None and parts.port is not None
    where = f"{scheme}://{parts.hostname}:{{}}{parts.path}"
    more: dict[str, Any] = {"tls": Tls(ca_file=pki / "ca.pem"), "http2": road == "http2"}
    run(through_faults("127.0.0.1", parts.port, 5, RECONNECTS // 2, 5, url=where, most_bytes=12_000, **more), timeout_s=600)


# ---------------------------------------------------------------------------------------------------- brokers that go and come


def test_a_broker_that_is_restarted_with_its_sessions(own_mosquitto: Mosquitto) -> None:
    """Nothing is lost. mosquitto 2.0.11 does not keep to more across a restart: it sends PUBLISH again whose PUBREL it has sent
    (against MQTT-4.3.3-1), which no client can tell from a new message, and forgets the sessions of 5.0 clients."""
    options: dict[str, Any] = {"version": 4, "session_expiry": 3600, "reconnect": AT_ONCE}
    url = own_mosquitto.url("mqtt")

    async def work() -> None:
        numbered = Numbered()
        done = asyncio.Event()
        async with Client(url, client_id="s", **options) as subscriber, Client(url, client_id="p", **options) as publisher:
            await subscriber.subscribe("numbered/+", 2)
            reading = asyncio.create_task(numbered.receive(subscriber))
            writing = [asyncio.create_task(numbered.publish(publisher, qos, done)) for qos in (1, 2)]
            for _ in range(3):
                enough = min(numbered.published.values()) + 20
                await settled(lambda enough=enough: min(numbered.published.values()) > enough)  # type: ignore[misc]
                await asyncio.to_thread(own_mosquitto.stop)
                await publisher.wait_for(State.RECONNECTING)
                await asyncio.to_thread(own_mosquitto.start)
                await publisher.wait_for(State.CONNECTED)
                await subscriber.wait_for(State.CONNECTED)
            done.set()
            await asyncio.gather(*writing)
            await settled(lambda: numbered.complete)
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            assert publisher.stats.sessions_lost == 0
        numbered.check(doubles=False)

    run(work(), 60)


@each_version
def test_a_broker_that_is_killed_and_has_forgotten_everything(version: int, own_mosquitto: Mosquitto) -> None:
    """The client subscribes again, and what was not acknowledged is published to the new broker."""
    url = own_mosquitto.url("mqtt")

    async def work() -> None:
        options: dict[str, Any] = {"version": version, "session_expiry": 3600, "reconnect": AT_ONCE, "client_id": "c"}
        async with Client(url, **options) as client:
            subscription = await client.subscribe("a/#", 2)
            await client.publish("a/1", b"one", 2)
            assert (await client.get()).payload == b"one"
            await asyncio.to_thread(own_mosquitto.stop, signal.SIGKILL)
            await client.wait_for(State.RECONNECTING)
            assert isinstance(client.error, ConnectionLostError | ConnectError)
            waiting = [asyncio.create_task(client.publish("a/2", b"%d" % qos, qos)) for qos in (0, 1, 2)]
            await asyncio.to_thread(own_mosquitto.start)
            await asyncio.gather(*waiting)
            got = sorted([(await client.get()).payload for _ in range(3)])
            assert got == [b"0", b"1", b"2"]
            assert client.stats.sessions_lost == 1 and subscription.granted

    run(work(), 60)


def test_our_broker_restarted_on_its_port(broker_factory: BrokerFactory) -> None:
    port = free_port()
    config = {"listeners": [{"url": f"tcp://127.0.0.1:{port}"}]}
    first = broker_factory(config)

    async def work() -> None:
        async with Client(client_url(first), reconnect=AT_ONCE) as client:
            await client.subscribe("a", 1)
            await asyncio.to_thread(first.stop)
            await client.wait_for(State.RECONNECTING)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await client.publish("a", b"cancelled", 1)
            await client.publish("a", b"queued", 1, wait=False)
            await asyncio.to_thread(broker_factory, config)
            assert (await client.get()).payload == b"queued"

    run(work())


def test_the_first_attempt_may_be_repeated_too(broker_factory: BrokerFactory) -> None:
    port = free_port()

    async def work() -> None:
        client = Client(f"mqtt://127.0.0.1:{port}", retry_first=True, reconnect=AT_ONCE)
        connecting = asyncio.create_task(client.connect())
        await settled(lambda: client.stats.connect_failures > 2)
        assert client.state is State.CONNECTING and isinstance(client.error, ConnectError)
        await client.publish("a", b"early", 1, wait=False)
        await asyncio.to_thread(broker_factory, {"listeners": [{"url": f"tcp://127.0.0.1:{port}"}]})
        await connecting
        await client.close()
        assert client.unfinished == 0

    run(work(), count_sockets=False)


def test_attempts_are_counted() -> None:
    async def work() -> None:
        client = Client(f"mqtt://127.0.0.1:{free_port()}", retry_first=True, reconnect=Reconnect(first_s=0, attempts=3))
        with pytest.raises(ConnectError):
            await client.connect()
        assert client.stats.connect_failures == 4 and client.closed

    run(work())


def test_without_reconnecting_an_end_is_an_end(url: str) -> None:
    async def work() -> None:
        async with FaultProxy(*tcp_address(url)) as proxy:
            client = Client(proxy.url, reconnect=None)
            await client.connect()
            subscription = await client.subscribe("a")
            proxy.open.clear()
            waiting = [
                asyncio.create_task(client.publish("a", b"", 1)), asyncio.create_task(client.subscribe("b")),
                asyncio.create_task(client.get()), asyncio.create_task(subscription.get()),
            ]  # fmt: skip
            await asyncio.sleep(0)
            proxy.cut()
            for task in waiting:
                with pytest.raises(ConnectionLostError):
                    await task
            assert client.state is State.CLOSED
            with pytest.raises(ConnectionLostError):
                async for _ in client:
                    raise AssertionError
            with pytest.raises(ClosedError):
                await client.publish("a")

    run(work())


def test_a_subscription_that_is_not_given_again(caplog: pytest.LogCaptureFixture) -> None:
    """The broker has lost the session and has changed its mind."""
    connections = 0

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await read_packet(reader)
        writer.write(codec.encode(codec.Connack(), 5))
        for _ in range(2 if connections == 1 else 1):
            [packet] = codec.Decoder(5).feed(await read_packet(reader))
            assert isinstance(packet, codec.Subscribe)
            codes = [1] if connections == 1 else [0x87 if s.topic_filter == "lost" else 1 for s in packet.subscriptions]
            writer.write(codec.encode(codec.Suback(packet.packet_id, codes), 5))
        if connections > 1:
            await reader.read()

    async def work() -> None:
        async with ScriptedServer(script) as server, Client(server.url, reconnect=AT_ONCE) as client:
            lost, kept = await client.subscribe("lost", 1), await client.subscribe("kept", 1)
            with pytest.raises(SubscribeError, match="lost again"):
                await lost.get()
            assert kept.granted and not lost.granted
            assert list(client._engine.require_core().filters) == ["kept"]

    with caplog.at_level(logging.WARNING, "mqttc.client"):
        run(work())
    assert "resubscribe_refused" in caplog.text


def test_the_offline_queue(url: str) -> None:
    """Bounded, in order, at every QoS; and a message that is cancelled is taken back."""

    async def work() -> None:
        async with FaultProxy(*tcp_address(url)) as proxy, Client(url) as watcher:
            await watcher.subscribe("q", 2)
            client = Client(proxy.url, reconnect=Reconnect(first_s=3600, most_s=3600), max_queued_messages=5)
            await client.connect()
            proxy.cut()
            await client.wait_for(State.RECONNECTING)
            tasks = [asyncio.create_task(client.publish("q", b"%d" % n, n % 3)) for n in range(5)]
            await asyncio.sleep(0)
            assert client.queued == 5
            with pytest.raises(QueueFullError, match="max_queued_messages 5"):
                await client.publish("q", b"", 1)
            tasks[2].cancel()
            await asyncio.gather(tasks[2], return_exceptions=True)
            assert client.queued == 4 and client.stats.queue_full == 1
            await client.close()
            for task in (tasks[0], tasks[1], tasks[3], tasks[4]):
                with pytest.raises(ClosedError):
                    await task

    run(work())


def test_a_queue_that_outlives_the_process(url: str, tmp_path: Path) -> None:
    """Published without a connection, sent by another client with the same file."""
    options: dict[str, Any] = {"client_id": "durable", "session_expiry": 3600}

    async def work() -> None:
        async with Client(url) as watcher:
            await watcher.subscribe("q", 2)
            offline = Client(f"mqtt://127.0.0.1:{free_port()}", store=SqliteStore(tmp_path / "q.db"), retry_first=True, **options)
            connecting = asyncio.create_task(offline.connect())
            await settled(lambda: offline.stats.connect_failures > 0)
            for number in range(10):
                await offline.publish("q", b"%d" % number, number % 3, wait=False)
            other = Client(url, store=SqliteStore(tmp_path / "q.db"), **options)
            with pytest.raises(MqttError, match="locked"):
                await other.connect()
            assert other.closed
            await offline.close()
            with pytest.raises(ClosedError):
                await connecting
            async with Client(url, store=SqliteStore(tmp_path / "q.db"), **options) as client:
                await client.publish("q", b"10", 1)
            assert sorted([int((await watcher.get()).payload) for _ in range(11)]) == list(range(11))
            async with Client(url, store=SqliteStore(tmp_path / "q.db"), **options) as client:
                assert client.unfinished == 0

    run(work())


def test_a_store_that_fails_ends_the_client(url: str, tmp_path: Path) -> None:
    """What could not be written is not sent, and the reason is told."""

    async def work() -> None:
        store = SqliteStore(tmp_path / "q.db")
        client = Client(url, client_id="c", session_expiry=60, store=store)
        await client.connect()
        assert store._base is not None
        store._base.execute("PRAGMA query_only=1")
        with pytest.raises(MqttError, match="readonly"):
            await client.publish("a", b"", 1)
        await client.wait_for(State.CLOSED)
        assert "readonly" in str(client.error)

    run(work())


def test_a_session_is_resumed_by_another_client(url: str) -> None:
    async def work() -> None:
        options: dict[str, Any] = {"client_id": "resumed", "session_expiry": 60}
        async with Client(url, **options) as client:
            await client.subscribe("a", 1)
        async with Client(url) as other:
            await other.publish("a", b"meanwhile", 1)
        async with Client(url, clean_start=False, **options) as client:
            assert client.connack.session_present
            assert (await client.get()).payload == b"meanwhile"
        async with Client(url, **options) as client:
            assert not client.connack.session_present

    run(work())


def test_a_queued_message_that_expires_is_told(url: str) -> None:
    """Whoever waits for it hears so when it happens, not when there is a connection again."""

    async def work() -> None:
        async with FaultProxy(*tcp_address(url)) as proxy, Client(url) as watcher:
            await watcher.subscribe("e", 2)
            client = Client(proxy.url, reconnect=Reconnect(first_s=3600, most_s=3600))
            await client.connect()
            proxy.cut()
            await client.wait_for(State.RECONNECTING)
            lasting = asyncio.create_task(client.publish("e", b"", 1, properties=Properties(message_expiry_interval=3600)))
            await asyncio.sleep(0)
            for qos in (0, 1, 2):
                with pytest.raises(ExpiredError, match="message_expiry_interval"):
                    await client.publish("e", b"", qos, properties=Properties(message_expiry_interval=0))
            waiting = client.publish("e", b"", 1, properties=Properties(message_expiry_interval=1))
            client._engine.require_core()._clock = lambda: time.monotonic() + 0.99  # as if most of it were over
            with pytest.raises(ExpiredError):
                await waiting
            assert client.stats.expired == 4 and client.queued == 1
            await client.close()
            with pytest.raises(ClosedError):
                await lasting

    run(work())


def test_the_broker_gets_what_is_left(broker_factory: BrokerFactory) -> None:
    port = free_port()

    async def work() -> None:
        client = Client(f"mqtt://127.0.0.1:{port}", retry_first=True, reconnect=AT_ONCE)
        connecting = asyncio.create_task(client.connect())
        await settled(lambda: client.stats.connect_failures > 0)
        for interval in (2, 100):
            await client.publish("e", b"%d" % interval, 1, properties=Properties(message_expiry_interval=interval), wait=False)
        subscribing = asyncio.create_task(client.subscribe("e", 1))
        await asyncio.sleep(0)
        client._engine.require_core()._clock = lambda: time.monotonic() + 50
        await asyncio.to_thread(broker_factory, {"listeners": [{"url": f"tcp://127.0.0.1:{port}"}]})
        await connecting
        await subscribing
        message = await client.get()
        left = message.properties.message_expiry_interval
        assert message.payload == b"100" and left is not None and 40 <= left <= 50
        await client.close()

    run(work(), count_sockets=False)
