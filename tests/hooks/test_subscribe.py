"""``on_subscribe``: what becomes of filters."""

from __future__ import annotations

import asyncio
import threading

import pytest

from mqttc.hooks import Hooks, Refuse, SubscriptionRequest, filters_overlap
from tests.rawclient import SUBACK, publish_packet, subscribe_packet

from ..embed.conftest import PeerFactory, run
from .conftest import Serve, Shaped

VERSIONS = pytest.mark.parametrize("version", [4, 5])


@VERSIONS
def test_per_filter(serve: Serve, hooks: Hooks, peer: PeerFactory, shaped: Shaped, version: int) -> None:
    seen: list[SubscriptionRequest] = []

    def look(request: SubscriptionRequest) -> object:
        seen.append(request)
        if request.topic_filter == "a/no":
            return Refuse(0x97)
        return request.replace(qos=0) if request.topic_filter == "a/down" else request.replace(topic_filter="moved/#")

    hooks.on_subscribe("a/+")(shaped(look))
    broker = serve()
    client = peer(broker, "c", version)
    codes = client.subscribe_many([("a/no", 2), ("b", 2), ("a/down", 2), ("a/moved", 1)])
    assert codes == [0x97 if version == 5 else 0x80, 2, 0, 1]
    assert [(one.topic_filter, one.qos, one.client.client_id) for one in seen] == [
        ("a/no", 2, "c"),
        ("a/down", 2, "c"),
        ("a/moved", 1, "c"),
    ]
    for topic in ("a/no", "a/moved", "a/down", "b", "moved/1"):
        client.publish(topic, b"", 2)
    assert [(one.topic, one.qos) for one in client.messages(3)] == [("a/down", 0), ("b", 2), ("moved/1", 1)]


def test_version_31_has_no_word_for_it(serve: Serve, hooks: Hooks, peer: PeerFactory) -> None:
    """It is acknowledged, and gets nothing."""
    hooks.on_subscribe("a")(lambda request: Refuse(0x97))
    client = peer(serve(), "c", 3)
    assert client.subscribe_many([("a", 1), ("b", 1)]) == [1, 1]
    client.publish("a", b"", 1)
    client.publish("b", b"", 1)
    assert client.message().topic == "b"


def test_options(serve: Serve, hooks: Hooks, peer: PeerFactory) -> None:
    seen: list[SubscriptionRequest] = []

    @hooks.on_subscribe("#")
    def look(request: SubscriptionRequest) -> SubscriptionRequest:
        seen.append(request)
        return request.replace(no_local=False, retain_handling=0)

    broker = serve()
    run(broker.publish("a", b"kept", retain=True))
    client = peer(broker, "c")
    client.subscribe("a", 0x2 | 0x4 | 0x8 | 0x20)
    assert (seen[0].no_local, seen[0].retain_as_published, seen[0].retain_handling) == (True, True, 2)
    assert client.message("a").payload == b"kept"
    client.publish("a", b"own", 1)
    assert client.message("a").payload == b"own"


def test_shared(serve: Serve, hooks: Hooks, peer: PeerFactory) -> None:
    """By the filter without ``$share/group/``."""
    hooks.on_subscribe("jobs/#")(lambda request: Refuse() if request.topic_filter.startswith("$share/") else None)
    client = peer(serve(), "c")
    assert client.subscribe_many([("$share/g/jobs/1", 0), ("jobs/1", 0), ("$share/g/else", 1)]) == [0x87, 0, 1]


@pytest.mark.parametrize("on_failure", ["allow", "deny"])
@pytest.mark.parametrize("how", ["raises", "nonsense", "no filter", "late"])
def test_failure(serve: Serve, hooks: Hooks, peer: PeerFactory, how: str, on_failure: str) -> None:
    async def fail(request: SubscriptionRequest) -> object:
        if how == "raises":
            raise RuntimeError("no")
        if how == "late":
            await asyncio.Event().wait()
        return request.replace(qos=3) if how == "no filter" else 7

    hooks.on_subscribe("a", on_failure=on_failure, deadline=0.05 if how == "late" else 60)(fail)
    client = peer(serve(), "c")
    assert client.subscribe_many([("a", 1), ("b", 1)]) == [1 if on_failure == "allow" else 0x83, 1]
    stats = hooks.stats()[0]
    assert (stats.late, stats.failed) == ((1, 0) if how == "late" else (0, 1))


def test_an_invalid_filter_is_refused_by_the_broker(serve: Serve, hooks: Hooks, peer: PeerFactory) -> None:
    hooks.on_subscribe("a")(lambda request: request.replace(topic_filter="a/#/b"))
    assert peer(serve(), "c").subscribe_many([("a", 0)]) == [0x8F]


def test_what_follows_waits(serve: Serve, hooks: Hooks, peer: PeerFactory) -> None:
    go_on = threading.Event()
    hooks.on_subscribe("a")(lambda request: go_on.wait() and None)
    client = peer(serve(), "c")
    client.send(subscribe_packet([("a", 0)], 5, packet_id=1), publish_packet("a", b"behind it", 5))
    go_on.set()
    client.expect(SUBACK, packet_id=1)
    assert client.message("a").payload == b"behind it"


@pytest.mark.parametrize(
    ("a", "b", "overlap"),
    [
        ("a", "a", True), ("a", "b", False), ("a/#", "a", True), ("#", "a/b", True), ("+", "a/b", False),
        ("+/b", "a/+", True), ("a/+/c", "a/b/#", True),
        ("a/+", "a/b/c", False), ("a/b/#", "a/+", True), ("a/b/c/#", "a/+", False), ("#", "$SYS/a", False),
        ("+/a", "$SYS/a", False), ("$SYS/#", "$SYS/+", True),
        ("a/", "a", False), ("+/+", "/a", True),
    ],
)  # fmt: skip
def test_overlap(a: str, b: str, overlap: bool) -> None:
    assert filters_overlap(a, b) is overlap
    assert filters_overlap(b, a) is overlap
