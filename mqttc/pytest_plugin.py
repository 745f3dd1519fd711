"""The pytest plugin: a broker for each test that asks for one. See docs/testing-your-program.md.

pytest imports this module in every run in which mqttc is installed, so it imports nothing of mqttc but the empty package: fixtures do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from mqttc.client import Client, SyncClient
    from mqttc.clock import VirtualClock
    from mqttc.config import Config
    from mqttc.testing.broker import LocalBroker
    from mqttc.testing.proxy import FaultProxy
    from mqttc.testing.recorder import Recorder

    SyncClients = Callable[..., SyncClient]
    AsyncClients = Callable[..., Client]
    Brokers = Callable[..., LocalBroker]

MARKER = "mqtt_broker"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "mqtt_broker(**config): configuration of the broker of mqttc's fixtures, by sections: limits={'max_packet_size': 1000}, "
        "listeners=[{'url': 'tls://127.0.0.1:0', ...}], workers=2",
    )


def _marked(node: pytest.Item) -> dict[str, Any]:
    """What the markers say, the nearest last."""
    config: dict[str, Any] = {}
    for marker in reversed(list(node.iter_markers(MARKER))):
        if marker.args:
            raise pytest.UsageError(f"{node.nodeid}: the marker mqtt_broker has keyword arguments only, one for each section")
        config = _merged(config, marker.kwargs)
    return config


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Sections are merged key by key, all else is replaced."""
    merged = dict(base)
    for name, value in over.items():
        before = merged.get(name)
        merged[name] = {**before, **value} if isinstance(before, Mapping) and isinstance(value, Mapping) else value
    return merged


@pytest.fixture
def mqtt_broker_config() -> Mapping[str, Any] | Config:
    """Override it to configure the broker of all tests of a module or directory; the marker is laid over a mapping."""
    return {}


@pytest.fixture(scope="session")
def mqtt_session_broker_config() -> Mapping[str, Any] | Config:
    """Override it to configure ``mqtt_session_broker``."""
    return {}


@pytest.fixture
def mqtt_clock() -> VirtualClock:
    """The time of ``mqtt_broker`` and of what ``mqtt_brokers`` makes, which stands still until ``advance``, if a test asks for it."""
    from mqttc.clock import VirtualClock

    return VirtualClock()


def _clock(request: pytest.FixtureRequest) -> VirtualClock | None:
    clock: VirtualClock | None = request.getfixturevalue("mqtt_clock") if "mqtt_clock" in request.fixturenames else None
    return clock


@pytest.fixture
def mqtt_brokers(request: pytest.FixtureRequest) -> Iterator[Brokers]:
    """Make further brokers: ``mqtt_brokers(limits={...}, ...)``; they are running, and are stopped at the end."""
    from mqttc.testing.broker import LocalBroker

    clock = _clock(request)
    with ExitStack() as stack:

        def make(**config: Any) -> LocalBroker:
            return stack.enter_context(LocalBroker(config, clock=clock))

        yield make


@pytest.fixture
def mqtt_broker(request: pytest.FixtureRequest, mqtt_broker_config: Mapping[str, Any] | Config) -> Iterator[LocalBroker]:
    """A broker on a free port, empty, for this test alone."""
    from mqttc.testing.broker import LocalBroker

    config: Mapping[str, Any] | Config = mqtt_broker_config
    marked = _marked(request.node)
    if marked:
        if not isinstance(config, Mapping):
            raise pytest.UsageError(f"{request.node.nodeid}: the marker mqtt_broker needs an mqtt_broker_config that is a mapping")
        config = _merged(config, marked)
    with LocalBroker(config, clock=_clock(request)) as broker:
        yield broker


@pytest.fixture(scope="session")
def mqtt_session_broker(mqtt_session_broker_config: Mapping[str, Any] | Config) -> Iterator[LocalBroker]:
    """One broker for the whole run, in real time. What tests leave in it, such as retained messages, others find."""
    from mqttc.testing.broker import LocalBroker

    with LocalBroker(mqtt_session_broker_config) as broker:
        yield broker


@pytest.fixture
def mqtt_recorder(mqtt_broker: LocalBroker) -> Iterator[Recorder]:
    """What clients of ``mqtt_broker`` publish and do, with assertions that wait for it."""
    from mqttc.testing.recorder import Recorder

    with Recorder(mqtt_broker) as recorder:
        yield recorder


@pytest.fixture
def mqtt_faults(mqtt_broker: LocalBroker) -> Iterator[FaultProxy]:
    """A port in front of ``mqtt_broker`` at which things go wrong. Clients of a test that asks for it connect there by default."""
    from mqttc.testing.proxy import FaultProxy

    with FaultProxy(mqtt_broker) as proxy:
        yield proxy


@pytest.fixture
def mqtt_url(request: pytest.FixtureRequest, mqtt_broker: LocalBroker) -> str:
    """Where the program under test is to connect: ``mqtt_faults`` if the test asks for it, else ``mqtt_broker``."""
    url: str = request.getfixturevalue("mqtt_faults").url if "mqtt_faults" in request.fixturenames else mqtt_broker.url
    return url


def _options(options: dict[str, Any]) -> dict[str, Any]:
    """A test does not wait for the delays that spare a broker in use."""
    from mqttc.client import Reconnect

    options.setdefault("reconnect", Reconnect(first_s=0.01, most_s=0.1))
    return options


def _end_faults(request: pytest.FixtureRequest) -> None:
    """So that no client waits for what a fault holds back."""
    if "mqtt_faults" in request.fixturenames:
        request.getfixturevalue("mqtt_faults").clear()


@pytest.fixture
def mqtt_client(request: pytest.FixtureRequest, mqtt_url: str) -> Iterator[SyncClients]:
    """Make connected clients: ``mqtt_client(client_id="a", version=4)`` is a ``SyncClient`` of ``mqtt_url``, or of the URL that comes
    first. Closed at the end, or by ``with``. By default they reconnect within 0.1 s.
    """
    from mqttc.testing.client import ConnectedClient

    clients: list[SyncClient] = []

    def connect(url: str | None = None, **options: Any) -> SyncClient:
        client = ConnectedClient(url or mqtt_url, **_options(options))
        client.connect()
        clients.append(client)
        return client

    yield connect
    _end_faults(request)
    for client in reversed(clients):
        client.close(drain=False)


@pytest.fixture
def mqtt_async_client(request: pytest.FixtureRequest, mqtt_url: str) -> Iterator[AsyncClients]:
    """Make clients for coroutines on asyncio, whichever plugin runs them: ``async with mqtt_async_client(client_id="a") as client``
    connects and closes it. See ``mqtt_client``. One that is left open is an error: its loop is gone when the test has ended.
    """
    from mqttc.client import Client, State

    clients: list[Client] = []

    def make(url: str | None = None, **options: Any) -> Client:
        client = Client(url or mqtt_url, **_options(options))
        clients.append(client)
        return client

    yield make
    _end_faults(request)
    left = [client for client in clients if client.state not in (State.NEW, State.CLOSED)]
    if left:
        pytest.fail(f"{left[0]!r} was not closed: `async with mqtt_async_client() as client` does it", pytrace=False)
