"""`BrokerThread`: the broker for programs without asyncio."""

from __future__ import annotations

import asyncio
import threading

import pytest

from mqttc import BrokerError, BrokerThread
from mqttc.embed import Connected, Event, Message
from mqttc.errors import ClosedError, SubscribeError
from tests.conftest import broker_config, tcp_address
from tests.rawclient import Peer

from .conftest import until

pytestmark = pytest.mark.matrix


def test_messages() -> None:
    with BrokerThread(broker_config()) as broker:
        with broker.subscribe("a/#", qos=1) as messages:
            assert broker.publish("a/b", "hello", 1).receivers == 1
            message = messages.get(20)
            assert (message.topic, message.text, messages.filters_of(message)) == ("a/b", "hello", ("a/#",))
            for number in range(500):
                broker.publish("a/n", b"%d" % number)
            got: list[int] = []
            for message in messages:
                got.append(int(message.payload))
                if len(got) == 500:
                    break
            assert got == list(range(500))
            with pytest.raises(TimeoutError):
                messages.get(0.01)
            messages.subscribe("b")
            messages.unsubscribe("a/#")
            assert messages.topic_filters == ("b",)
            messages.publish("b", b"from here")
            assert messages.get(20).payload == b"from here"
        with pytest.raises(SubscribeError), broker.subscribe("a") as messages:
            messages.unsubscribe("b")
        assert broker.running


def test_callbacks_run_in_its_thread() -> None:
    seen: list[tuple[str, threading.Thread]] = []
    failures: list[BaseException] = []

    async def called(message: Message) -> None:
        seen.append((message.topic, threading.current_thread()))
        try:
            broker.clients()
        except RuntimeError as error:
            failures.append(error)

    with BrokerThread(broker_config()) as broker, broker.subscribe("t", callback=called):
        broker.publish("t")
        broker.publish("t")
        until(lambda: len(seen) == 2)
    assert [topic for topic, _ in seen] == ["t", "t"]
    assert len({thread for _, thread in seen}) == 1
    assert seen[0][1] is not threading.main_thread()
    assert len(failures) == 2


def test_events_and_administration() -> None:
    called: list[Event] = []
    with BrokerThread(broker_config()) as broker:
        end = broker.on_event(called.append, Connected)
        with broker.events(Connected) as events:
            client = Peer(tcp_address(broker.urls[0]), 5)
            client.connect("c", clean=False, expiry=60)
            assert events.get(20).client_id == "c"
            assert events.lost == 0
        until(lambda: called)
        end()
        assert [one.client_id for one in broker.clients()] == ["c"]
        found = broker.client("c")
        assert found is not None and found.client_id == "c"
        assert broker.disconnect("c")
        client.expect_close()
        assert [one.client_id for one in broker.sessions()] == ["c"]
        assert broker.session("c") is not None
        assert broker.delete_session("c")
        broker.publish("r", b"x", retain=True)
        assert [one.topic for one in broker.retained()] == ["r"]
        assert broker.retained_message("r") is not None
        assert broker.delete_retained("#") == 1
        with broker.publisher() as publisher:
            assert publisher.publish_sync("t").receivers == 0
        assert broker.reload(broker.config).needs_restart == ()
        assert broker.stats()["takeovers"] == 0
        client.close()


def test_the_end_comes_to_all_threads() -> None:
    """A thread that waits for a message comes out when another one stops the broker."""
    broker = BrokerThread(broker_config())
    broker.start()
    waiting = threading.Event()
    got: list[list[bytes]] = []

    def read() -> None:
        with broker.subscribe("t") as messages:
            waiting.set()
            got.append([message.payload for message in messages])

    thread = threading.Thread(target=read)
    thread.start()
    waiting.wait()
    broker.publish("t", b"1")
    until(lambda: broker.stats()["messages_queued"] == 0)
    assert broker.stop()
    thread.join()
    assert got in ([[b"1"]], [[]])
    with pytest.raises(BrokerError):
        broker.publish("t")
    with pytest.raises(ClosedError):
        broker.clients()
    broker.start()
    assert broker.publish("t").receivers == 0
    assert broker.clients().items == ()
    broker.stop()


def test_in_a_program_with_a_loop() -> None:
    """Its thread is not the program's loop; from a coroutine it would block, but it works."""

    async def main() -> None:
        with BrokerThread(broker_config()) as broker:
            assert (await asyncio.to_thread(broker.publish, "t")).receivers == 0
            async with broker.broker.subscribe("t") as messages:
                await broker.broker.publish("t", b"x")
                assert (await messages.get()).payload == b"x"

    asyncio.run(main())
