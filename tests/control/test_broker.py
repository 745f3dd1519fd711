"""`Broker` in this process with the real data plane."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mqttc import native
from mqttc.auth import Request, Verdict
from mqttc.config import Config
from mqttc.server import Broker, BrokerError
from tests.conftest import BrokerFactory, broker_config, tcp_address
from tests.rawclient import Peer

pytestmark = pytest.mark.matrix


@pytest.fixture
def peer(request: pytest.FixtureRequest) -> Callable[..., Peer]:
    """Clients that are closed with the test."""

    def make(broker: Broker, version: int = 5, listener: int = 0) -> Peer:
        url = broker.urls[listener]
        made = Peer(url.removeprefix("unix://") if url.startswith("unix:") else tcp_address(url), version)
        request.addfinalizer(made.close)
        return made

    return make


def test_publish_between_versions(broker: Broker, peer: Callable[..., Peer]) -> None:
    subscriber, publisher = peer(broker, 5), peer(broker, 4)
    subscriber.connect("s")
    subscriber.subscribe("a/#", 1)
    publisher.connect("p")
    publisher.publish("a/b", b"payload", 1)
    message = subscriber.message("a/b")
    assert message.payload == b"payload"


def test_all_settings_are_known() -> None:
    """Every key of the configuration reaches the data plane, and it refuses those it does not know."""
    engine = native.Engine(response_information="", **Config().engine_settings())
    engine.close()
    engine.close()
    with pytest.raises(TypeError, match="nonsense"):
        native.Engine(nonsense=1)


def test_close_waits_for_nobody(request: pytest.FixtureRequest) -> None:
    """While one thread stops the engine, another one cannot free it."""
    engine = native.Engine(response_information="", **Config().engine_settings())
    listening = socket.create_server(("127.0.0.1", 0))
    listening.setblocking(False)
    address = listening.getsockname()
    engine.add_listener(
        listening.detach(),
        name="",
        family=0,
        maximum_qos=2,
        max_connections=0,
        anonymous=1,
        auth=0,
        tcp_user_timeout_ms=0,
        keepalive_idle_s=0,
        server_reference="",
    )
    engine.start()
    client = Peer(address, 5)
    request.addfinalizer(client.close)
    client.connect("stays")  # and does not close its side, so that stopping takes a moment
    stopping = threading.Thread(target=engine.stop, args=(5000,))
    stopping.start()
    while not any(isinstance(event, native.LogEvent) and native.EVENT_NAMES[event.event] == "shutting down" for event in engine.events()):
        assert stopping.is_alive()
    with pytest.raises(RuntimeError, match="another thread"):
        engine.close()
    stopping.join()
    engine.close()


def test_stats_before_and_after(broker_factory: BrokerFactory, peer: Callable[..., Peer]) -> None:
    broker = broker_factory()
    peer(broker).connect("c1")
    assert all(isinstance(value, int) for value in broker.stats().values())
    assert 1 in broker.stats().values()
    broker.stop()
    assert broker.stats()


def test_maximum_qos_per_listener(broker_factory: BrokerFactory, peer: Callable[..., Peer]) -> None:
    broker = broker_factory({"listeners": [{"url": "tcp://127.0.0.1:0?maximum_qos=1"}, {"url": "tcp://127.0.0.1:0"}]})
    assert peer(broker).connect("c1").prop(0x24) == 1
    assert peer(broker, listener=1).connect("c2").prop(0x24) is None


def test_unix_listener_counts_as_this_machine(broker_factory: BrokerFactory, peer: Callable[..., Peer], tmp_path: Path) -> None:
    broker = broker_factory({"listeners": [{"url": f"unix://{tmp_path}/b.sock"}]})
    assert peer(broker).connect("c1").reason == 0
    broker.stop()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("anonymous", "reason"), [(True, 0), ("loopback", 0), (False, 0x87)])
@pytest.mark.parametrize("username", [None, "alice"])
def test_anonymous(broker_factory: BrokerFactory, peer: Callable[..., Peer], anonymous: Any, reason: int, username: str | None) -> None:
    """Without lists a user name proves nothing, so it changes nothing."""
    broker = broker_factory({"auth": {"anonymous": anonymous}})
    assert peer(broker).connect("c1", username=username).reason == reason
    assert peer(broker, 4).connect("c2", username=username).reason == (5 if reason else 0)


def test_lists_and_reload(broker_factory: BrokerFactory, peer: Callable[..., Peer]) -> None:
    broker = broker_factory({"auth": {"allow": ["alice"], "anonymous": False}})

    def reasons() -> list[int | None]:
        return [peer(broker).connect("c1", username=name).reason for name in ("alice", "bob", None)]

    assert reasons() == [0, 0x87, 0x87]
    assert peer(broker, 3).connect("c1", username="bob").reason == 5
    broker.reload({**broker_config(), "auth": {"allow": ["bob"], "anonymous": False}})
    assert reasons() == [0x87, 0, 0x87]


class Challenge:
    """A method with one challenge; `gate` holds every decision back until a test lets it go."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.asked = threading.Semaphore(0)
        self.requests: list[Request] = []

    async def authenticate(self, request: Request) -> Verdict:
        self.requests.append(request)
        self.asked.release()
        await asyncio.to_thread(self.gate.wait, 5)
        if request.auth_method is None:
            return Verdict(0)
        if request.is_auth:
            return Verdict(0 if request.auth_data == b"answer" else 0x87, b"welcome")
        return Verdict(0x18, b"challenge")


def test_parked_clients_hold_up_nobody(broker_factory: BrokerFactory, peer: Callable[..., Peer]) -> None:
    challenge = Challenge()
    broker = broker_factory({"auth": {"anonymous": True}}, authenticator=challenge)
    parked = peer(broker)
    waiting = threading.Thread(target=parked.connect, args=("parked",), kwargs={"username": "alice", "password": b"secret"})
    waiting.start()
    assert challenge.asked.acquire(timeout=5)
    assert peer(broker).connect("quick").reason == 0
    assert waiting.is_alive()
    challenge.gate.set()
    waiting.join(5)
    assert not waiting.is_alive()
    (request,) = challenge.requests
    assert (request.client_id, request.username, request.password, request.protocol) == ("parked", "alice", b"secret", 5)
    assert request.peer.startswith("127.0.0.1:")
    parked.ping()


def test_deadline_of_a_decision(broker_factory: BrokerFactory, peer: Callable[..., Peer]) -> None:
    challenge = Challenge()
    broker = broker_factory({"limits": {"auth_timeout": 0.2}}, authenticator=challenge)
    connack = peer(broker).connect("c1", username="alice")
    challenge.gate.set()
    assert connack.reason is not None and connack.reason >= 0x80


def test_stop_with_a_parked_client(broker_factory: BrokerFactory, peer: Callable[..., Peer]) -> None:
    """A decision that comes after the end meets nothing."""
    challenge = Challenge()
    broker = broker_factory(authenticator=challenge)
    parked = peer(broker)
    parked.send("10 16 00 04 4D 51 54 54 05 82 00 3C 00 00 02 63 31 00 05 61 6C 69 63 65")
    assert challenge.asked.acquire(timeout=5)
    stopping = threading.Thread(target=broker.stop)
    stopping.start()
    challenge.gate.set()
    stopping.join(10)
    assert not stopping.is_alive()


def test_clock_moves(broker_factory: BrokerFactory, peer: Callable[..., Peer]) -> None:
    broker = broker_factory()
    client = peer(broker)
    client.connect("c1", keep_alive=10)
    broker.advance_clock(16)
    assert [packet.reason for packet in client.expect_close() if packet.type == 14] == [0x8D]


def test_two_brokers_know_nothing_of_each_other(broker_factory: BrokerFactory, peer: Callable[..., Peer]) -> None:
    one, other = broker_factory(), broker_factory()
    publisher, subscriber = peer(one), peer(other)
    publisher.connect("c1")
    subscriber.connect("c1")
    subscriber.subscribe("a", 0)
    publisher.publish("a", b"x", 1)
    publisher.ping()
    one.stop()
    subscriber.ping()
    assert other.running


def test_restart_is_empty_and_frees_everything(peer: Callable[..., Peer]) -> None:
    broker = Broker(broker_config())
    for _ in range(3):
        with broker:
            client = peer(broker)
            assert not client.connect("c1", clean=False, expiry=100).session_present
            client.subscribe("a", 2)
            client.publish("a", b"kept", 1, retain=True)
        assert {kind: count for kind, count in native.live_objects().items() if count} == {}


def test_async_with(peer: Callable[..., Peer]) -> None:
    async def run() -> None:
        async with Broker(broker_config()) as broker:
            connack = await asyncio.to_thread(peer(broker).connect, "c1")
            assert connack.reason == 0

    asyncio.run(run())


def test_writes_no_files(broker_factory: BrokerFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    broker_factory().stop()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_every_call_raises_in_a_forked_child(broker: Broker, peer: Callable[..., Peer]) -> None:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            calls: list[Callable[[], object]] = [
                broker.stop,
                broker.start,
                broker.stats,
                lambda: broker.urls,
                lambda: broker.advance_clock(1),
            ]
            refused = 0
            for call in calls:
                try:
                    call()
                except BrokerError:
                    refused += 1
            code = 0 if refused == len(calls) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert peer(broker).connect("c1").reason == 0


@pytest.mark.parametrize("end", ["", "import sys; sys.exit(3)", "raise KeyError('x')"])
def test_program_that_forgets_to_stop_ends(end: str) -> None:
    code = f"from mqttc import Broker\nb = Broker({broker_config()!r})\nb.start()\n{end}\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == {"": 0, "import sys; sys.exit(3)": 3}.get(end, 1)
    assert "Fatal" not in done.stderr
