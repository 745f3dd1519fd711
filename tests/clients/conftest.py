"""Real clients for the tests: one factory for all of them, and MQTT.js where npm can be had.

`MQTTC_TEST_PROTOCOL` (3 or 5) keeps the tests of that family; those that join versions run in both.
"""

from __future__ import annotations

import logging
import os
import queue
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mqttc.server import Broker
from tests.clients.asyncio_clients import AiomqttClient, GmqttClient, LoopThread
from tests.clients.listeners import address, listeners
from tests.clients.model import TIMEOUT, Message, Options, RealClient, Variant
from tests.clients.mosquitto import MosquittoClient, programs
from tests.clients.mqttjs import MqttJsClient, NodeBridge
from tests.clients.paho_client import PahoClient
from tests.conftest import BrokerFactory

HERE = Path(__file__).parent
FAMILY = os.environ.get("MQTTC_TEST_PROTOCOL", "")

OpenClient = Callable[..., RealClient]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    other = set()
    for item in items:
        if HERE not in item.path.parents:
            continue
        item.add_marker("matrix")
        variant = getattr(item, "callspec", None) and item.callspec.params.get("variant")
        if variant is not None and FAMILY in ("3", "5") and (variant.version == 5) != (FAMILY == "5"):
            other.add(item)
    if other:
        config.hook.pytest_deselected(items=list(other))
        items[:] = [item for item in items if item not in other]


@pytest.fixture(scope="package")
def loop_thread() -> Iterator[LoopThread]:
    loop = LoopThread()
    yield loop
    loop.stop()


@pytest.fixture(scope="package")
def node_bridge() -> Iterator[NodeBridge]:
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.skip("MQTT.js needs node and npm")
    if not (HERE / "node_modules" / ".package-lock.json").is_file():
        # `tools/dev.py test` installs it before pytest begins; this is for those who call pytest themselves.
        subprocess.run([npm, "ci", "--no-audit", "--no-fund", "--loglevel=error"], cwd=HERE, check=True)
    bridge = NodeBridge(node)
    yield bridge
    bridge.stop()


class Departures(logging.Handler):
    """Which clients the broker has seen leave, from its log."""

    def __init__(self) -> None:
        super().__init__()
        self._gone: queue.Queue[str] = queue.Queue()

    def emit(self, record: logging.LogRecord) -> None:
        if getattr(record, "event", "") in ("disconnected", "connection lost"):
            self._gone.put(record.fields["client_id"])  # type: ignore[attr-defined]

    def wait(self, client_id: str) -> None:
        while self._gone.get(timeout=TIMEOUT) != client_id:
            pass


class ClientFactory:
    """Makes clients of any variant; they end with the fixture."""

    def __init__(self, request: pytest.FixtureRequest) -> None:
        self._request = request
        self._made: list[RealClient] = []
        self._count = 0
        self._departures = Departures()
        self._logger = logging.getLogger("mqttc.broker")
        self._level = self._logger.level
        self._logger.setLevel(logging.INFO)
        self._logger.addHandler(self._departures)

    def __call__(self, variant: Variant, broker: Any, *, name: str = "", **options: Any) -> RealClient:
        """A client, not connected, of a broker that listens for the variant's transport."""
        self._count += 1
        client_id = name or f"{variant.kind}{self._count}"
        chosen = Options(client_id, variant.version, address(broker, variant), transport=variant.transport, **options)
        client = self._build(variant.kind, chosen)
        self._made.append(client)
        return client

    def open(self, variant: Variant, broker: Any, **options: Any) -> RealClient:
        """The same, connected and subscribed."""
        client = self(variant, broker, **options)
        client.open()
        return client

    def leave(self, client: RealClient, *, abort: bool = False) -> None:
        """Close or abort, and wait until the broker has noticed."""
        client.abort() if abort else client.close()
        self._departures.wait(client.options.client_id)

    def _build(self, kind: str, options: Options) -> RealClient:
        match kind:
            case "paho":
                return PahoClient(options)
            case "aiomqtt":
                return AiomqttClient(options, self._request.getfixturevalue("loop_thread"))
            case "gmqtt":
                return GmqttClient(options, self._request.getfixturevalue("loop_thread"))
            case "mosquitto":
                if programs() is None:
                    pytest.skip("mosquitto_pub and mosquitto_sub are not installed")
                return MosquittoClient(options)
            case _:
                return MqttJsClient(options, self._request.getfixturevalue("node_bridge"))

    def close(self) -> None:
        for client in self._made:
            client.close()
        self._logger.removeHandler(self._departures)
        self._logger.setLevel(self._level)


@pytest.fixture
def broker(request: pytest.FixtureRequest, broker_factory: BrokerFactory) -> Broker:
    """A broker of this test's own: over TCP, and over the transport of the test's variant."""
    variant = getattr(request.node, "callspec", None) and request.node.callspec.params.get("variant")
    other = () if variant is None or variant.transport == "tcp" else (variant.transport,)
    return broker_factory({"listeners": listeners("tcp", *other)})


@pytest.fixture
def client(request: pytest.FixtureRequest, broker_factory: Any) -> Iterator[ClientFactory]:
    """Set up after the brokers, so that clients end before them."""
    factory = ClientFactory(request)
    yield factory
    factory.close()


def payloads(messages: list[Message]) -> list[bytes]:
    return [message.payload for message in messages]
