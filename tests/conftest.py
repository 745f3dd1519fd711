"""What all tests share: brokers inside this process, and the check that they free what they made.

`MQTTC_TEST_WORKERS` is the number of workers (2).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from mqttc.server import Broker

# No deadlines for examples: the same tests run under sanitizers and on busy machines.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

WORKERS = int(os.environ.get("MQTTC_TEST_WORKERS", "2"))

BrokerFactory = Callable[..., "Broker"]


def broker_config(config: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The configuration with a free loopback port and the number of workers under test filled in."""
    return {"listeners": [{"url": "tcp://127.0.0.1:0"}], "workers": WORKERS, **(config or {})}


def tcp_address(url: str) -> tuple[str, int]:
    """Host and port of a broker's URL."""
    parts = urlsplit(url)
    assert parts.hostname is not None and parts.port is not None
    return parts.hostname, parts.port


def check_live_objects(faces: bool = False) -> None:
    """Fail if the data plane holds objects although no broker runs. With faces, blocks may be a face's that a fixture still holds."""
    native, server = sys.modules.get("mqttc.native"), sys.modules.get("mqttc.server")
    if native is None or server is None or server._running_brokers:
        return
    left = {kind: count for kind, count in native.live_objects().items() if count and not (faces and kind == "blocks")}
    assert not left, f"made and not freed: {left}"


@pytest.fixture(scope="session", autouse=True)
def nothing_left_at_the_end() -> Iterator[None]:
    """Set up before the brokers that live as long as the session, so it looks after their end."""
    yield
    check_live_objects()


@pytest.fixture(autouse=True)
def nothing_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Look after each test whose brokers have all ended."""
    yield
    here = vars(request.module).values()
    check_live_objects(any(getattr(value, "__module__", None) and value.__module__.startswith("tests.face") for value in here))


@pytest.fixture
def broker_factory(nothing_left: None) -> Iterator[BrokerFactory]:
    """Starts brokers: `broker_factory(config, authenticator=...)`; they end with the test."""
    from mqttc.server import Broker

    made: list[Broker] = []

    def make(config: Mapping[str, Any] | None = None, **options: Any) -> Broker:
        broker = Broker(broker_config(config), **options)
        broker.start()
        made.append(broker)
        return broker

    yield make
    for broker in made:
        broker.stop()


@pytest.fixture
def broker(broker_factory: BrokerFactory) -> Broker:
    """A broker of this test's own, on a free port."""
    return broker_factory()
