"""Declaring hooks, and the end of a broker that has some."""

from __future__ import annotations

import asyncio
import functools
import threading
from typing import Any

import pytest

from mqttc import Broker, BrokerError, BrokerThread, Hooks
from mqttc.codec import ReasonCode
from mqttc.errors import PublishError
from mqttc.hooks import Drop, Publication, Refuse
from tests.conftest import BrokerFactory, broker_config
from tests.rawclient import publish_packet, subscribe_packet

from ..embed.conftest import PeerFactory, run, until
from .conftest import Loop, Serve


class Guard:
    """Hooks as methods."""

    publish_filters = ("a/#",)
    subscribe_filters = "b"
    on_failure = "allow"

    def __init__(self) -> None:
        self.calls: list[str] = []

    async def on_publish(self, message: Publication) -> Drop:
        self.calls.append("publish")
        return Drop()

    def on_subscribe(self, request: object) -> bool:
        self.calls.append("subscribe")
        return False

    def on_connect(self, client: object) -> None:
        self.calls.append("connect")
        raise RuntimeError


def test_methods(serve: Serve, hooks: Hooks, peer: PeerFactory) -> None:
    guard = Guard()
    hooks.add(guard)
    client = peer(serve(), "c")
    assert client.subscribe_many([("b", 0), ("c", 0)]) == [0x87, 0]
    client.publish("a/b", b"", 1)
    assert guard.calls == ["connect", "subscribe", "publish"]


def test_what_is_a_coroutine_function(serve: Serve, hooks: Hooks, loop: Loop) -> None:
    """Partial applications and objects too."""
    threads: list[str] = []

    async def coroutine(name: str, message: Publication) -> None:
        threads.append(threading.current_thread().name)

    class Callable:
        async def __call__(self, message: Publication) -> None:
            await coroutine("", message)

    hooks.on_publish("a")(functools.partial(coroutine, "name"))
    hooks.on_publish("a")(Callable())
    hooks.on_publish("a")(lambda message: threads.append(threading.current_thread().name))
    run(serve().publish("a", b"", 1))
    assert threads[0] == threads[1] == loop.name
    assert threads[2].startswith("mqttc-hook")


def test_declaring_wrongly() -> None:
    hooks = Hooks()

    def hook(message: object) -> None: ...

    with pytest.raises(TypeError, match="topic filters"):
        hooks.on_publish()
    with pytest.raises(TypeError, match="topic filters"):
        hooks.on_publish(hook)  # type: ignore[arg-type]
    for wrong in ("a/#/b", "", "$share/g/a"):
        with pytest.raises(ValueError):
            hooks.on_publish(wrong)
    with pytest.raises(ValueError, match="deadline"):
        hooks.on_publish("a", deadline=0)(hook)
    with pytest.raises(ValueError, match="on_failure"):
        hooks.on_connect(hook, on_failure="perhaps")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="takes a function"):
        hooks.authenticate(7)  # type: ignore[type-var]
    with pytest.raises(TypeError, match="no method"):
        hooks.add(object())
    with pytest.raises(ValueError):
        Refuse(0)
    with pytest.raises(ValueError):
        Hooks(threads=0)
    with pytest.raises(ValueError):
        Hooks(max_waiting=0)
    assert hooks.stats() == []


def test_no_loop(broker_factory: BrokerFactory) -> None:
    hooks = Hooks()

    async def hook(message: object) -> None: ...

    hooks.on_publish("a")(hook)
    with pytest.raises(BrokerError, match="loop"):
        broker_factory(hooks=hooks)
    hooks.remove(hook)
    broker = broker_factory(hooks=hooks)
    with pytest.raises(BrokerError, match="loop"):
        hooks.on_publish("a")(hook)
    with pytest.raises(BrokerError, match="authenticate"):
        hooks.authenticate(lambda request: None)
    assert hooks.stats() == []
    broker.stop()
    hooks.authenticate(lambda request: None)


def test_the_loop_that_starts_it() -> None:
    async def main() -> None:
        hooks, loops = Hooks(), []

        @hooks.on_publish("a")
        async def hook(message: Publication) -> Publication:
            loops.append(asyncio.get_running_loop())
            return message.replace(payload=b"changed")

        async with Broker(broker_config(), hooks=hooks) as broker, broker.subscribe("a") as messages:
            await broker.publish("a", b"", 1)
            assert (await messages.get()).payload == b"changed"
        assert loops == [asyncio.get_running_loop()]

    run(main())


def test_broker_thread() -> None:
    hooks = Hooks()

    @hooks.on_publish("a")
    async def hook(message: Publication) -> Refuse:
        return Refuse(0x99)

    with BrokerThread(broker_config(), hooks=hooks) as broker, pytest.raises(PublishError) as refused:
        broker.publish("a")
    assert refused.value.reason_code == ReasonCode.PAYLOAD_FORMAT_INVALID


def test_two_brokers_and_a_second_start(loop: Loop, broker_factory: BrokerFactory) -> None:
    hooks = Hooks(loop=loop.loop)
    hooks.on_publish("a")(lambda message: None)
    one, other = broker_factory(hooks=hooks), broker_factory(hooks=hooks)
    for broker in (one, other):
        run(broker.publish("a"))
    one.stop()
    one.start()
    run(one.publish("a"))
    assert hooks.stats()[0].asked == 3
    assert (one.stats()["hooks_asked"], other.stats()["hooks_asked"]) == (1, 1)


@pytest.mark.parametrize("blocked", [False, True])
def test_stop_while_hooks_are_asked(serve: Serve, hooks: Hooks, loop: Loop, peer: PeerFactory, blocked: bool) -> None:
    """Nothing is waited for, and nothing is left: the fixtures look for objects, tasks and errors."""
    cancelled: list[str] = []

    async def never(*arguments: object) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append("cancelled")
            raise

    hooks.on_publish("a")(never)
    hooks.on_subscribe("a")(never)
    broker = serve()
    for version in (4, 5):
        peer(broker, f"p{version}", version).send(publish_packet("a", b"", version, qos=2))
        peer(broker, f"s{version}", version).send(subscribe_packet([("a", 0)], version))
    errors: list[BaseException] = []

    def publish() -> None:
        try:
            broker.publish_sync("a", b"", 2)
        except BrokerError as error:
            errors.append(error)

    waiting = [threading.Thread(target=publish) for _ in range(3)]
    for thread in waiting:
        thread.start()
    until(lambda: broker.stats()["hooks_waiting"] == 5)
    if blocked:
        loop.block()
    broker.stop()
    for thread in waiting:
        thread.join()
    assert len(errors) == 3
    assert broker.stats()["hooks_abandoned"] == 4
    loop.release()
    assert loop.tasks() == 0
    assert len(cancelled) == 5


def test_stop_waits_for_plain_functions(serve: Serve, hooks: Hooks, peer: PeerFactory) -> None:
    """They cannot be cancelled; those that have not begun are."""
    go_on, ended = threading.Event(), []

    def wait(message: Publication) -> None:
        go_on.wait()
        ended.append(message.topic)

    hooks.on_publish("+")(wait)
    broker = serve()
    for number in range(6):
        peer(broker, f"p{number}").send(publish_packet(f"{number}", b"", 5))
    until(lambda: broker.stats()["hooks_waiting"] == 6)
    stopping = threading.Thread(target=broker.stop)
    stopping.start()
    until(lambda: not any("mqttc-worker" in thread.name for thread in threading.enumerate()) and broker._last_stats is not None)
    go_on.set()
    stopping.join()
    assert len(ended) <= 6
    until(lambda: not [thread for thread in threading.enumerate() if thread.name.startswith("mqttc-")])


def test_a_client_that_is_gone(serve: Serve, hooks: Hooks, peer: PeerFactory) -> None:
    """Its message is lost, counted, and the answer nobody's."""
    go_on = threading.Event()
    hooks.on_publish("a")(lambda message: go_on.wait() and None)
    broker = serve()
    client = peer(broker, "c")
    client.send(publish_packet("a", b"", 5, qos=1))
    until(lambda: hooks.stats()[0].asked == 1)
    again = peer(broker, "c")
    until(lambda: broker.stats()["hooks_abandoned"] == 1)
    go_on.set()
    again.publish("b", b"", 1)
    assert broker.stats()["messages_received"] == 1


def test_keep_alive_stands_still(serve: Serve, hooks: Hooks, peer: PeerFactory) -> None:
    go_on = threading.Event()
    hooks.on_publish("a")(lambda message: go_on.wait() and None)
    broker = serve()
    client = peer(broker, "c", keep_alive=10)
    client.send(publish_packet("a", b"", 5, qos=1))
    until(lambda: hooks.stats()[0].asked == 1)
    for _ in range(5):
        broker.advance_clock(12)
    go_on.set()
    client.ping()
    assert broker.stats()["keep_alive_timeouts"] == 0


def test_logged(serve: Serve, hooks: Hooks, caplog: Any) -> None:
    def fail(message: Publication) -> None:
        raise RuntimeError("this one")

    hooks.on_publish("a")(fail)
    with pytest.raises(PublishError):
        run(serve().publish("a"))
    lines = [record.getMessage() for record in caplog.records]
    assert any("hook_failed" in line and "this one" in line and "fail" in line for line in lines), lines
