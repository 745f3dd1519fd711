"""Clients, sessions and retained messages, as the program sees them and handles them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from mqttc.codec import Properties, QoS, ReasonCode, RetainHandling
from mqttc.embed import ClientInfo, Page, SessionInfo, SubscriptionInfo
from mqttc.server import Broker
from tests.conftest import BrokerFactory
from tests.rawclient import DISCONNECT, Will
from tests.store.durable import Place

from .conftest import PeerFactory, eventually, run

pytestmark = pytest.mark.matrix


async def pages(ask: Callable[..., Awaitable[Page[Any]]], limit: int, *arguments: Any) -> list[Any]:
    found: list[Any] = []
    after = None
    while True:
        page = await ask(*arguments, limit=limit, after=after)
        assert len(page) <= limit
        found += page
        after = page.next
        if after is None:
            return found


def test_a_client(broker_factory: BrokerFactory, peer: PeerFactory) -> None:
    broker = broker_factory({"listeners": [{"url": "tcp://127.0.0.1:0"}, {"url": "tcp://127.0.0.1:0", "name": "second"}]})
    client = peer(broker, "c", 5, listener=1, username="user", password=b"p", keep_alive=77, clean=False, expiry=60, will=Will("w"))
    client.subscribe_many([("a/+", 1 | 4 | 8 | 0x10), ("$share/g/b", 2)], props=((0x0B, 7),))

    async def work() -> None:
        found = await broker.client("c")
        assert isinstance(found, ClientInfo)
        assert (found.client_id, found.connected, found.username, found.listener, found.transport) == ("c", True, "user", "second", "tcp")
        assert found.address == f"127.0.0.1:{client.socket.getsockname()[1]}"
        assert (found.protocol, found.keep_alive, found.expiry_interval, found.offline_for) == (5, 77, 60, None)
        assert (found.subscription_count, found.queued, found.in_flight, found.dropped, found.will) == (2, 0, 0, 0, True)
        assert found.subscriptions is not None
        assert sorted(found.subscriptions, key=lambda one: one.topic_filter) == [
            SubscriptionInfo("$share/g/b", QoS.EXACTLY_ONCE, False, False, RetainHandling.SEND, 7),
            SubscriptionInfo("a/+", QoS.AT_LEAST_ONCE, True, True, RetainHandling.SEND_IF_NEW, 7),
        ]
        listed = (await broker.clients()).items
        assert [(one.client_id, one.subscriptions) for one in listed] == [("c", None)]
        for number in range(3):
            await broker.publish("a/1", b"%d" % number, 1)
        again = await broker.client("c")
        assert again is not None and again.in_flight == 3
        assert await broker.client("nobody") is None

    run(work())
    client.messages(3)


def test_since_when(broker: Broker, peer: PeerFactory) -> None:
    peer(broker, "first")
    broker.advance_clock(1000)
    peer(broker, "second")

    async def work() -> None:
        first, second = await broker.client("first"), await broker.client("second")
        assert first is not None and second is not None
        assert 990 < second.connected_since - first.connected_since < 1030

    run(work())


def test_off_line(broker: Broker, peer: PeerFactory) -> None:
    client = peer(broker, "c", 5, clean=False, expiry=3600)
    client.subscribe("t", 1)
    client.disconnect()
    client.finish()

    async def work() -> None:
        await eventually(lambda: broker.stats()["disconnects_clean"] == 1)
        assert await broker.client("c") is None
        for _ in range(4):
            await broker.publish("t", b"12345", 1)
        broker.advance_clock(100)
        found = await broker.session("c")
        assert found is not None and not isinstance(found, ClientInfo)
        assert (found.connected, found.queued, found.expiry_interval) == (False, 4, 3600)
        assert found.queued_bytes >= 4 * 6
        assert found.offline_for is not None and 99 < found.offline_for < 130
        assert [one.client_id for one in await broker.sessions()] == ["c"]
        assert not (await broker.clients()).items
        broker.advance_clock(3600)
        assert await broker.session("c") is None

    run(work())


@pytest.mark.parametrize("workers", [1, 3])
def test_pages(broker_factory: BrokerFactory, peer: PeerFactory, workers: int) -> None:
    broker = broker_factory({"workers": workers})
    names = [f"c{number}" for number in range(30)]
    for name in names:
        peer(broker, name, 5, clean=False, expiry=60)
    leaving = peer(broker, "gone", 5, clean=False, expiry=60)
    leaving.disconnect()
    leaving.finish()

    async def work() -> None:
        await eventually(lambda: broker.stats()["disconnects_clean"] == 1)
        async with broker.subscribe("inside"):
            for limit in (1, 7, 30, 1000):
                assert sorted(one.client_id for one in await pages(broker.clients, limit)) == sorted(names)
                assert sorted(one.client_id for one in await pages(broker.sessions, limit)) == sorted([*names, "gone"])
        for wrong in ({"limit": 0}, {"limit": 1001}, {"after": "x"}, {"after": "99.0"}, {"after": "0.-1"}):
            with pytest.raises(ValueError):
                await broker.clients(**wrong)  # type: ignore[arg-type]
        assert not (await broker.clients(after="0.4000000000")).items or workers > 1

    run(work())


@pytest.mark.parametrize("version", [3, 4, 5])
def test_disconnect(broker: Broker, peer: PeerFactory, version: int) -> None:
    client = peer(broker, "c", version, clean=False, **({"expiry": 60} if version == 5 else {}))
    other = peer(broker, "other")
    other.subscribe("w", 0)
    doomed = peer(broker, "doomed", version, will=Will("w", b"gone"))

    async def work() -> None:
        assert await broker.disconnect("c", ReasonCode.QUOTA_EXCEEDED)
        assert await broker.disconnect("doomed")
        assert not await broker.disconnect("c")
        assert not await broker.disconnect("nobody")
        for code in (0, 0x7F, 0x80 + 0x7F, 0x85):
            with pytest.raises(ValueError):
                await broker.disconnect("other", code)
        found = await broker.session("c")
        assert isinstance(found, SessionInfo) and not found.connected

    run(work())
    for peer_, code in ((client, 0x97), (doomed, 0x98)):
        assert [(packet.type, packet.reason) for packet in peer_.expect_close()] == ([(DISCONNECT, code)] if version == 5 else [])
    assert other.message("w").payload == b"gone"


def test_delete_session(broker: Broker, peer: PeerFactory) -> None:
    connected = peer(broker, "connected", 5, clean=False, expiry=60, will=Will("w", b"gone"))
    away = peer(broker, "away", 5, clean=False, expiry=60)
    for client in (connected, away):
        client.subscribe("t", 1)
    away.disconnect()
    away.finish()

    async def work() -> None:
        await eventually(lambda: broker.stats()["disconnects_clean"] == 1)
        async with broker.subscribe("w") as wills:
            await broker.publish("t", b"x", 1)
            assert await broker.delete_session("connected")
            assert await broker.delete_session("away")
            assert not await broker.delete_session("away")
            assert (await wills.get()).payload == b"gone"
        assert not (await broker.sessions()).items
        assert broker.stats()["subscriptions"] == 0
        assert broker.stats()["dropped_session_end"] == 2

    run(work())
    assert connected.message("t").payload == b"x"
    assert [packet.reason for packet in connected.expect_close()] == [0x98]


def test_retained(broker: Broker) -> None:
    async def work() -> None:
        properties = Properties(content_type="t", message_expiry_interval=100)
        await broker.publish("a/1", b"one", 1, True, properties=properties)
        await broker.publish("a/2/3", b"", 2, True)
        await broker.publish("b", b"two", 2, True)
        await broker.publish("$s/x", b"hidden", 0, True)
        found = {one.topic: one for one in await pages(broker.retained, 1)}
        assert set(found) == {"a/1", "b"}
        assert (found["a/1"].payload, found["a/1"].qos, found["b"].qos) == (b"one", QoS.AT_LEAST_ONCE, QoS.EXACTLY_ONCE)
        left = found["a/1"].message_expiry
        assert left is not None and 98 <= left <= 100
        assert found["a/1"].properties == Properties(content_type="t", message_expiry_interval=left)
        assert [one.topic for one in await broker.retained("$s/#")] == ["$s/x"]
        one = await broker.retained_message("b")
        assert one is not None and (one.payload, one.message_expiry) == (b"two", None)
        assert await broker.retained_message("nothing") is None
        broker.advance_clock(200)
        assert await broker.retained_message("a/1") is None
        for wrong in ("a/#/b", "$share/g/a", ""):
            with pytest.raises(ValueError):
                await broker.retained(wrong)
        with pytest.raises(ValueError):
            await broker.retained_message("a/+")

    run(work())


@pytest.mark.parametrize("topic_filter", ["#", "r/#", "+/+/x", "r/1/x"])
def test_retained_pages(broker: Broker, topic_filter: str) -> None:
    """Whatever the stripes that topics lie in."""
    topics = {f"r/{number}/x" for number in range(60)} | {f"s{number}/{number}/x" for number in range(60)}

    async def work() -> None:
        await asyncio.gather(*(broker.publish(topic, topic, retain=True) for topic in topics))
        matches = {"#": topics, "+/+/x": topics, "r/#": {topic for topic in topics if topic[0] == "r"}}
        expected = matches.get(topic_filter, {topic_filter})
        for limit in (1, 7, 8, 1000):
            found = [one.topic for one in await pages(broker.retained, limit, topic_filter)]
            assert len(found) == len(set(found))
            assert set(found) == expected
        assert await broker.delete_retained(topic_filter) == len(expected)
        assert not (await broker.retained(topic_filter)).items
        assert broker.stats()["retained"] == len(topics) - len(expected)

    run(work())


def test_many_retained(broker: Broker) -> None:
    """More than one answer looks at, with few that match."""

    async def work() -> None:
        for start in range(0, 20_000, 500):
            topics = [f"n/{number}/{number % 10_000}" for number in range(start, start + 500)]
            await asyncio.gather(*(broker.publish(topic, b"x", retain=True) for topic in topics))
        assert sorted([one.topic async for one in every(broker, "n/+/9999")]) == ["n/19999/9999", "n/9999/9999"]
        assert await broker.delete_retained("n/+/9998") == 2
        assert await broker.delete_retained("#") == 19_998

    async def every(broker: Broker, topic_filter: str) -> Any:
        for one in await pages(broker.retained, 100, topic_filter):
            yield one

    run(work())


def test_deleted_retained_messages_stay_deleted(place: Place) -> None:
    """In the store too."""

    async def work() -> None:
        for name in "abc":
            await place.running.publish(f"r/{name}", b"x", 1, True)
        assert await place.running.delete_retained("r/+") == 3
        await place.running.publish("r/d", b"x", 1, True)

    run(work())
    place.restart()

    async def after() -> None:
        assert [one.topic for one in await place.running.retained()] == ["r/d"]
        assert await place.running.delete_retained("#") == 1

    run(after())


def test_deleted_sessions_stay_deleted(place: Place) -> None:
    for name in "ab":
        place.session(5, name).subscribe("t", 1)

    async def work() -> None:
        assert await place.running.delete_session("a")

    run(work())
    place.sessions.discard("a")
    place.restart()

    async def after() -> None:
        assert [one.client_id for one in await place.running.sessions()] == ["b"]
        found = await place.running.session("b")
        assert found is not None and found.durable

    run(after())
