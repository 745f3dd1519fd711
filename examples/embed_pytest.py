"""A broker for the tests of a program, as a fixture: pytest examples/embed_pytest.py"""

from collections.abc import Iterator

import pytest

from mqttc import BrokerThread, SyncClient


@pytest.fixture
def broker() -> Iterator[BrokerThread]:
    """Each test has its own, on a free port; it starts within milliseconds and leaves nothing."""
    with BrokerThread({"listeners": [{"url": "tcp://127.0.0.1:0"}], "workers": 1}) as broker:
        yield broker


def blink(url: str) -> None:
    """What is tested."""
    with SyncClient(url) as client:
        client.publish("lamp", "on", qos=1)
        client.publish("lamp", "off", qos=1)


def test_blink(broker: BrokerThread) -> None:
    with broker.subscribe("lamp") as messages:
        blink(broker.urls[0])
        assert [messages.get(10).text for _ in range(2)] == ["on", "off"]
