"""The blocking client: the same names, from any thread, and nothing left when it ends."""

from __future__ import annotations

import inspect
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from mqttc import Client, SyncClient
from mqttc.client import Message, Properties, State, SyncSubscription, Tls
from mqttc.client.subscription import Subscription
from mqttc.errors import ClosedError, ConnectError, RefusedError
from tests.client.conftest import SCHEMES, client_url, free_port, listeners
from tests.conftest import BrokerFactory


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Any:
    before = {thread for thread in threading.enumerate() if thread.name == "mqttc client"}
    yield
    assert {thread for thread in threading.enumerate() if thread.name == "mqttc client"} <= before


@pytest.mark.parametrize(("one", "other"), [(Client, SyncClient), (Subscription, SyncSubscription)])
def test_the_names_are_the_same(one: type, other: type) -> None:
    internal = {"take", "states", "sink", "claim", "end", "refused", "waiting", "prepare"}
    assert {name for name in dir(one) if not name.startswith("_")} - internal <= {name for name in dir(other) if not name.startswith("_")}


@pytest.mark.parametrize("name", ["publish", "subscribe", "unsubscribe", "request", "respond", "close"])
def test_the_parameters_are_the_same(name: str) -> None:
    one, other = inspect.signature(getattr(Client, name)), inspect.signature(getattr(SyncClient, name))
    assert list(one.parameters.values()) == list(other.parameters.values())


@pytest.mark.parametrize("scheme", SCHEMES)
def test_over_every_road(scheme: str, broker_factory: BrokerFactory, pki: Path, tmp_path: Path) -> None:
    url = client_url(broker_factory({"listeners": listeners(pki, tmp_path, scheme)}), scheme)
    with SyncClient(url, tls=Tls(ca_file=pki / "ca.pem")) as client:
        assert client.connected and client.state is State.CONNECTED and client.version == 5 and client.keep_alive == 60
        subscription = client.subscribe("s/#", 2)
        assert subscription.reason_codes == (2,) and subscription.granted and subscription.topic_filters == ("s/#",)
        for number in range(300):
            client.publish("s/1", b"%d" % number, number % 3)
        assert [int(client.get(5).payload) for _ in range(300)] == list(range(300))
        client.publish("s/2", b"own", 1)
        assert subscription.get(5).payload == b"own"
        with pytest.raises(TimeoutError):
            subscription.get(0.01)
        with pytest.raises(TimeoutError):
            client.get(0.01)
        with pytest.raises(TimeoutError):
            client.wait_for(State.CLOSED, timeout_s=0.01)
        client.publish("s/3", b"last", 1)
        for message in subscription:
            assert message.payload == b"last"
            break
        with subscription:
            pass
        assert client.publish("s/1", b"", 1).reason_code == 0x10
        assert client.unfinished == client.queued == 0 and client.stats.sent >= 302 and client.limits.retain_available
        assert "SyncClient" in repr(client) and client.error is None and client.options.keep_alive == 60
    assert client.closed
    client.close()
    with pytest.raises(ClosedError):
        client.publish("s/1")
    with pytest.raises(StopIteration):
        client.get()


def test_request_and_response(url: str) -> None:
    with SyncClient(url) as client, SyncClient(url) as service:
        asked = service.subscribe("ask", 1)

        def serve() -> None:
            for message in asked:
                service.respond(message, message.payload[::-1], properties=Properties(content_type="x"))

        thread = threading.Thread(target=serve)
        thread.start()
        assert client.request("ask", b"abc").payload == b"cba"
        asked.unsubscribe()
        thread.join(5)
        assert not thread.is_alive()


def test_an_error_leaves_no_thread(broker_factory: BrokerFactory) -> None:
    url = client_url(broker_factory({"auth": {"anonymous": False}}))
    with pytest.raises(RefusedError, match="not authorized"), SyncClient(url):
        raise AssertionError
    with pytest.raises(ConnectError):
        SyncClient(f"mqtt://127.0.0.1:{free_port()}").connect()
    SyncClient(url).close()


def test_many_threads(url: str) -> None:
    with SyncClient(url) as client:
        client.subscribe("t", 1)
        got: list[bytes] = []
        lock = threading.Lock()

        def publish(number: int) -> None:
            for count in range(50):
                client.publish("t", b"%d %d" % (number, count), count % 2)

        def receive() -> None:
            for message in client:
                with lock:
                    got.append(message.payload)

        readers = [threading.Thread(target=receive) for _ in range(3)]
        writers = [threading.Thread(target=publish, args=(number,)) for number in range(4)]
        for thread in readers + writers:
            thread.start()
        for thread in writers:
            thread.join()
        with client.subscribe("fence", 1) as fence:
            client.publish("fence", b"", 1)
            fence.get(5)
    for thread in readers:
        thread.join(5)
        assert not thread.is_alive()  # closing ended their loops
    assert len(got) == 200 and len(set(got)) == 200


def test_manual_acknowledgement_from_a_thread(url: str) -> None:
    with SyncClient(url, manual_ack=True, receive_maximum=1) as client:
        client.subscribe("m", 1)
        for payload in (b"1", b"2"):
            client.publish("m", payload, 1)
        first = client.get(5)
        with pytest.raises(TimeoutError):
            client.get(0.05)
        first.acknowledge()
        assert client.get(5).payload == b"2"


def test_a_blocking_call_in_a_callback_is_refused(url: str) -> None:
    said: list[str] = []
    done = threading.Event()

    def callback(message: Message) -> None:
        try:
            client.publish("other")
        except RuntimeError as error:
            said.append(str(error))
        done.set()

    with SyncClient(url) as client:
        client.subscribe("a", callback=callback)
        client.publish("a")
        assert done.wait(5)
    assert said == ["a blocking call in a callback would wait for itself"]


def test_an_interrupted_call_is_cancelled(url: str) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with SyncClient(url) as client:
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            with pytest.raises(KeyboardInterrupt):
                client.get()
            client.publish("still", b"there", 1)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
