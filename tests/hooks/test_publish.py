"""``on_publish``: what becomes of messages."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from mqttc.codec import Properties, ReasonCode
from mqttc.errors import PublishError
from mqttc.hooks import Drop, Hooks, OnFailure, Publication, Refuse
from tests.conftest import BrokerFactory
from tests.rawclient import CONTENT_TYPE, MESSAGE_EXPIRY, PUBACK, PUBREC, TOPIC_ALIAS, USER_PROPERTY, disconnect_packet, publish_packet

from ..embed.conftest import PeerFactory, run, until
from ..embed.test_publish import control_is_busy
from .conftest import Loop, Serve, Shaped

VERSIONS = pytest.mark.parametrize("version", [3, 4, 5])
LEVELS = pytest.mark.parametrize("qos", [0, 1, 2])


@VERSIONS
@LEVELS
def test_passes(serve: Serve, hooks: Hooks, peer: PeerFactory, shaped: Shaped, version: int, qos: int) -> None:
    seen: list[Publication] = []
    hooks.on_publish("a/+")(shaped(seen.append))
    broker = serve()
    reader, writer = peer(broker, "reader"), peer(broker, "writer", version)
    reader.subscribe("#", 2)
    properties = [(CONTENT_TYPE, "text/plain"), (MESSAGE_EXPIRY, 60), (USER_PROPERTY, ("k", "v"))] if version == 5 else []
    writer.publish("a/b", b"x", qos, props=properties)
    writer.publish("c", b"y", qos)
    message = reader.message("a/b")
    assert (message.payload, message.qos) == (b"x", qos)
    assert reader.message("c").payload == b"y"
    assert len(seen) == 1
    asked = seen[0]
    assert (asked.topic, asked.payload, asked.qos, asked.retain) == ("a/b", b"x", qos, False)
    assert (asked.client.client_id, asked.client.protocol, asked.client.transport) == ("writer", version, "tcp")
    if version == 5:
        assert asked.properties == Properties(content_type="text/plain", message_expiry_interval=60, user_properties=[("k", "v")])
        assert message.prop(USER_PROPERTY) == ("k", "v")
        assert message.prop(MESSAGE_EXPIRY) <= 60


@VERSIONS
@LEVELS
def test_changes(serve: Serve, hooks: Hooks, peer: PeerFactory, shaped: Shaped, version: int, qos: int) -> None:
    properties = Properties(content_type="text/plain", user_properties=[("by", "hook")])
    hooks.on_publish("a/#")(
        shaped(lambda message: message.replace(topic="b/c", payload=message.payload * 2, qos=1, retain=True, properties=properties))
    )
    broker = serve()
    reader, writer = peer(broker, "reader"), peer(broker, "writer", version)
    reader.subscribe("#", 2)
    writer.publish("a/b", b"x", qos)
    message = reader.message()
    assert (message.topic, message.payload, message.qos) == ("b/c", b"xx", 1)
    assert (message.prop(CONTENT_TYPE), message.prop(USER_PROPERTY)) == ("text/plain", ("by", "hook"))
    late = peer(broker, "late")
    late.subscribe("#", 2)
    assert (late.message("b/c").payload, broker.stats()["retained"]) == (b"xx", 1)
    assert broker.stats()["hooks_changed"] == 1


@VERSIONS
@LEVELS
def test_refuses(serve: Serve, hooks: Hooks, peer: PeerFactory, shaped: Shaped, version: int, qos: int) -> None:
    hooks.on_publish("a/#")(shaped(lambda message: Refuse(0x99)))
    broker = serve()
    reader, writer = peer(broker, "reader"), peer(broker, "writer", version)
    reader.subscribe("#", 2)
    if qos == 0:
        writer.publish("a/b", b"x", 0)
    else:
        writer.send(publish_packet("a/b", b"x", version, qos=qos, packet_id=7, retain=True))
        answer = writer.expect(PUBACK if qos == 1 else PUBREC, packet_id=7)
        assert (answer.reason or 0) == (0x99 if version == 5 else 0)
        if qos == 2 and version != 5:
            writer.answer(answer)
    writer.publish("c", b"y", 1)
    assert reader.message().topic == "c"
    assert (broker.stats()["retained"], broker.stats()["hooks_refused"]) == (0, 1)


@VERSIONS
@LEVELS
def test_drops(serve: Serve, hooks: Hooks, peer: PeerFactory, version: int, qos: int) -> None:
    hooks.on_publish("a/#")(lambda message: Drop())
    broker = serve()
    reader, writer = peer(broker, "reader"), peer(broker, "writer", version)
    reader.subscribe("#", 2)
    writer.publish("a/b", b"x", qos)
    writer.publish("c", b"y", qos)
    assert reader.message().topic == "c"


@LEVELS
def test_in_process(serve: Serve, hooks: Hooks, peer: PeerFactory, shaped: Shaped, qos: int) -> None:
    def check(message: Publication) -> object:
        assert (message.client.transport, message.client.listener, message.client.peer) == ("inside", "", "")
        return {b"1": None, b"2": message.replace(payload=b"two"), b"3": Refuse(0x97), b"4": Drop()}[message.payload]

    hooks.on_publish("a")(shaped(check))
    broker = serve()
    reader = peer(broker, "reader")
    reader.subscribe("#", 2)
    for payload in (b"1", b"2"):
        assert run(broker.publish("a", payload, qos)).receivers == 1
    with pytest.raises(PublishError) as refused:
        run(broker.publish("a", b"3", qos))
    assert refused.value.reason_code == 0x97
    assert run(broker.publish("a", b"4", qos)).receivers == 0
    assert run(broker.publish("b", b"5", qos)).receivers == 1
    assert [message.payload for message in reader.messages(3)] == [b"1", b"two", b"5"]
    assert hooks.stats()[0].failed == 0


def test_order_of_a_publisher(serve: Serve, hooks: Hooks, peer: PeerFactory) -> None:
    """What comes behind a message that waits, waits too, whatever its topic; other publishers do not."""
    entered, go_on = threading.Event(), threading.Event()

    def wait(message: Publication) -> None:
        entered.set()
        go_on.wait()

    hooks.on_publish("slow")(wait)
    broker = serve()
    reader, writer, other = peer(broker, "reader"), peer(broker, "writer"), peer(broker, "other")
    reader.subscribe("#", 2)
    writer.send(*(publish_packet(topic, b"", 5, qos=1, packet_id=n) for n, topic in enumerate(("slow", "a", "slow", "b"), 1)))
    entered.wait()
    other.publish("bystander", b"", 2)
    assert reader.message().topic == "bystander"
    publisher = broker.publisher()
    waiting = [threading.Thread(target=publisher.publish_sync, args=(topic, b"", 2)) for topic in ("slow", "inside")]
    for thread in waiting:
        before = broker.stats()["hooks_waiting"]
        thread.start()
        until(lambda before=before: broker.stats()["hooks_waiting"] > before or before == 2)
    go_on.set()
    got = [message.topic for message in reader.messages(6)]
    assert [topic for topic in got if topic in ("a", "b")] == ["a", "b"]
    assert got.index("a") > got.index("slow")
    assert [writer.expect(PUBACK).packet_id for _ in range(4)] == [1, 2, 3, 4]
    for thread in waiting:
        thread.join()
    publisher.close()


def test_many_in_order(serve: Serve, hooks: Hooks, peer: PeerFactory, shaped: Shaped) -> None:
    hooks.on_publish("n/+")(shaped(lambda message: message.replace(qos=0) if message.payload[-1] % 3 else None))
    broker = serve()
    reader, writers = peer(broker, "reader"), [peer(broker, f"writer {n}", 4) for n in range(3)]
    reader.subscribe("#", 2)
    for n, writer in enumerate(writers):
        writer.send(*(publish_packet(f"n/{n}", b"%d" % k, 4, qos=1, packet_id=k) for k in range(1, 51)))

    async def inside() -> None:
        async with broker.publisher() as publisher:
            await asyncio.gather(*(publisher.publish("n/inside", b"%d" % k, 2) for k in range(1, 51)))

    run(inside())
    got = reader.messages(200)
    for topic in ("n/0", "n/1", "n/2", "n/inside"):
        assert [int(message.payload) for message in got if message.topic == topic] == list(range(1, 51))
    for writer in writers:
        assert [writer.expect(PUBACK).packet_id for _ in range(50)] == list(range(1, 51))


def test_alias_and_large(serve: Serve, hooks: Hooks, peer: PeerFactory) -> None:
    hooks.on_publish("a")(lambda message: message.replace(topic="z") if message.payload == b"2" else None)
    broker = serve({"limits": {"max_packet_size": 2_000_000}})
    reader, writer = peer(broker, "reader"), peer(broker, "writer")
    reader.subscribe("#", 2)
    writer.send(publish_packet("a", b"1", 5, props=[(TOPIC_ALIAS, 1)]))
    writer.send(publish_packet("", b"2", 5, props=[(TOPIC_ALIAS, 1)]))
    writer.send(publish_packet("", b"3" * 1_000_000, 5, props=[(TOPIC_ALIAS, 1)]))
    writer.send(publish_packet("", b"4", 5, props=[(TOPIC_ALIAS, 1)]))
    assert [(one.topic, one.payload[:1], len(one.payload)) for one in reader.messages(4)] == [
        ("a", b"1", 1), ("z", b"2", 1), ("a", b"3", 1_000_000), ("a", b"4", 1),
    ]  # fmt: skip


def test_leaving_behind_it(serve: Serve, hooks: Hooks, peer: PeerFactory) -> None:
    """DISCONNECT behind a message that waits comes after it."""
    go_on = threading.Event()
    hooks.on_publish("a")(lambda message: go_on.wait() and None)
    broker = serve()
    reader, writer = peer(broker, "reader"), peer(broker, "writer", 4)
    reader.subscribe("a", 2)
    writer.send(publish_packet("a", b"x", 4), disconnect_packet())
    writer.close()
    until(lambda: broker.stats()["hooks_asked"] == 1)
    go_on.set()
    assert reader.message("a").payload == b"x"
    until(lambda: broker.stats()["disconnects_clean"] == 1)


def test_several_hooks(serve: Serve, hooks: Hooks, peer: PeerFactory) -> None:
    """In the order of declaration, each with what the one before has made of it; the first refusal is the last word."""
    hooks.on_publish("a", "other")(lambda message: message.replace(topic="b", payload=message.payload + b"1"))
    hooks.on_publish("a")(lambda message: Refuse())
    hooks.on_publish("b")(lambda message: message.replace(payload=message.payload + b"2"))
    broker = serve()
    reader = peer(broker, "reader")
    reader.subscribe("#", 2)
    assert run(broker.publish("a", b"0", 1)).receivers == 1
    message = reader.message()
    assert (message.topic, message.payload) == ("b", b"012")
    assert [one.asked for one in hooks.stats()] == [1, 0, 1]


@pytest.mark.parametrize("on_failure", ["allow", "deny"])
@pytest.mark.parametrize("how", ["raises", "nonsense", "not a message", "late", "stop iteration"])
@pytest.mark.parametrize("version", [4, 5])
def test_failure(serve: Serve, hooks: Hooks, peer: PeerFactory, loop: Loop, how: str, on_failure: str, version: int) -> None:
    async def fail(message: Publication) -> object:
        if how == "raises":
            raise RuntimeError("no")
        if how == "stop iteration":
            raise StopAsyncIteration
        if how == "late":
            await asyncio.Event().wait()
        return message.replace(topic="a/#") if how == "not a message" else 7

    hooks.on_publish("a", on_failure=on_failure, deadline=0.05 if how == "late" else 60)(fail)
    broker = serve()
    reader, writer = peer(broker, "reader"), peer(broker, "writer", version)
    reader.subscribe("#", 2)
    writer.send(publish_packet("a", b"x", version, qos=1, packet_id=1))
    reason = writer.expect(PUBACK, packet_id=1).reason or 0
    assert reason == (0x83 if on_failure == "deny" and version == 5 else 0)
    writer.publish("b", b"", 1)
    assert reader.message().topic == ("a" if on_failure == "allow" else "b")
    stats = hooks.stats()[0]
    assert (stats.asked, stats.late, stats.failed) == ((1, 1, 0) if how == "late" else (1, 0, 1))
    until(lambda: broker.stats()["hooks_waiting"] == 0 and loop.tasks() == 0)


def test_too_many_waiting(loop: Loop, broker_factory: BrokerFactory, peer: PeerFactory) -> None:
    """A blocked loop: calls that are late still count, so that nothing piles up."""
    hooks = Hooks(loop=loop.loop, deadline=0.05, max_waiting=2)

    @hooks.on_publish("a", on_failure="allow")
    async def slow(message: Publication) -> None: ...

    broker = broker_factory(hooks=hooks)
    reader, writer = peer(broker, "reader"), peer(broker, "writer")
    reader.subscribe("#", 1)
    loop.block()
    for _ in range(5):
        writer.publish("a", b"", 1)
    assert len(reader.messages(5)) == 5
    stats = hooks.stats()[0]
    assert (stats.asked, stats.late, stats.overflowed, broker.stats()["hooks_waiting"]) == (5, 2, 3, 2)
    loop.release()
    until(lambda: broker.stats()["hooks_waiting"] == 0)
    writer.publish("a", b"", 1)
    assert hooks.stats()[0].late == 2


@pytest.mark.parametrize("on_failure", ["allow", "deny"])
def test_too_many_questions(serve: Serve, hooks: Hooks, peer: PeerFactory, on_failure: OnFailure) -> None:
    """64 MiB of them that the control thread has not taken: nobody is asked about the rest."""
    hooks.on_publish("a", on_failure=on_failure)(lambda message: Refuse(0x99))
    broker = serve({"limits": {"max_packet_size": 2_000_000}})
    writers = [peer(broker, f"writer {number}") for number in range(36)]
    with control_is_busy(broker):
        for count, writer in enumerate(writers, 1):
            writer.send(publish_packet("a", bytes(1_900_000), 5, qos=1))
            until(lambda count=count: broker.stats()["hook_questions"] + broker.stats()["hooks_unasked"] == count)
        assert broker.stats()["hooks_unasked"] == 1
        assert writers[-1].expect(PUBACK).reason == (0x97 if on_failure == "deny" else 0x10)
    for writer in writers[:-1]:
        assert writer.expect(PUBACK).reason == 0x99


def test_declared_and_removed_while_it_runs(serve: Serve, hooks: Hooks, peer: PeerFactory) -> None:
    broker = serve()
    for topic in ("a/b", "a/b"):
        assert run(broker.publish(topic, b"", 1)).reason_code is ReasonCode.NO_MATCHING_SUBSCRIBERS
    refuse = hooks.on_publish("a/+", "x")(lambda message: Refuse())
    with pytest.raises(PublishError):
        run(broker.publish("a/b", b"", 1))
    also = hooks.on_publish("a/+")(lambda message: None)
    hooks.remove(refuse)
    run(broker.publish("a/b", b"", 1))
    asked = broker.stats()["hook_questions"]
    hooks.remove(also)
    run(broker.publish("a/b", b"", 1))
    assert broker.stats()["hook_questions"] == asked == 2
    with pytest.raises(KeyError):
        hooks.remove(also)


def test_nothing_is_asked_elsewhere(serve: Serve, hooks: Hooks, peer: PeerFactory) -> None:
    hooks.on_publish("a/+/c", "$SYS/x")(lambda message: Refuse())
    broker = serve()
    for topic in ("a/b", "a/b/c/d", "b", "/a/b/c"):
        run(broker.publish(topic, b"", 1))
    assert broker.stats()["hook_questions"] == 0


def test_durable(tmp_path: Path, loop: Loop, broker_factory: BrokerFactory, peer: PeerFactory) -> None:
    """Of QoS 2 and a durable publisher: changed to QoS 0, refused, passed; ids come free, and queues have what was said."""
    config = {"durability": {"mode": "written"}, "data_dir": str(tmp_path)}
    hooks = Hooks(loop=loop.loop)
    verdicts = {b"0": lambda message: message.replace(qos=0), b"1": lambda message: Refuse(), b"2": lambda message: None}
    hooks.on_publish("#")(lambda message: verdicts[message.payload](message))
    broker = broker_factory(config, hooks=hooks)
    reader = peer(broker, "reader", clean=False, expiry=3600)
    reader.subscribe("#", 2)
    reader.disconnect()
    until(lambda: broker.stats()["disconnects_clean"] == 1)
    writer = peer(broker, "writer", 4, clean=False)
    for number in range(3):
        writer.publish("a", b"%d" % number, 2, packet_id=5)
    writer.publish("a", b"2", 1)
    broker.stop()
    again = broker_factory(config)
    reader = peer(again, "reader", clean=False, expiry=3600)
    assert [message.payload for message in reader.messages(2)] == [b"2", b"2"]
    reader.ping()
    assert again.stats()["messages_queued"] == 0
