"""Every client publishes to every other, all versions on one broker."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mqttc.server import Broker
from tests.clients.conftest import ClientFactory
from tests.clients.listeners import listeners
from tests.clients.model import VARIANTS, Message, Properties, RealClient, Variant
from tests.conftest import broker_config


@pytest.fixture(scope="module")
def one_broker() -> Iterator[Broker]:
    with Broker(broker_config({"listeners": listeners("tcp", "unix", "tls", "ws", "wss")})) as broker:
        yield broker


@pytest.fixture(scope="module")
def subscribers(request: pytest.FixtureRequest, one_broker: Broker) -> Iterator[dict[Variant, RealClient]]:
    """One client of each variant, at QoS 2 to everything."""
    factory = ClientFactory(request)
    yield {variant: factory.open(variant, one_broker, subscriptions=[("all/#", 2)]) for variant in VARIANTS}
    factory.close()


# Named so that the matrix repeats it in both rows: it joins the versions.
@pytest.mark.parametrize("origin", VARIANTS, ids=str)
def test_from_one_to_all(
    origin: Variant, request: pytest.FixtureRequest, one_broker: Broker, subscribers: dict[Variant, RealClient]
) -> None:
    factory = ClientFactory(request)
    publisher = factory.open(origin, one_broker, name=f"from-{origin}")
    properties = Properties(content_type="text/plain", user=(("from", str(origin)),)) if origin.version == 5 else Properties()
    sent = [Message(f"all/{origin}", f"{origin} at {qos}: grün €".encode(), qos, properties=properties) for qos in (0, 1, 2)]
    for message in sent:
        publisher.publish(message)
    for variant, subscriber in subscribers.items():
        expected = sent if variant.version == 5 else [Message(message.topic, message.payload, message.qos) for message in sent]
        assert subscriber.receive_many(3) == expected, variant
        assert subscriber.messages.empty(), variant
    factory.close()
