"""Tests of a small program with mqttc's pytest plugin: pytest examples/test_with_mqttc.py"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from mqttc import SyncClient
from mqttc.client import Reconnect
from mqttc.codec import Properties, ReasonCode, Will
from mqttc.testing import FaultProxy, LocalBroker, Recorder, VirtualClock

Clients = Callable[..., SyncClient]


class Door:
    """What is tested: a door that says whether it is open, and that it is lost when it has been away for a minute."""

    def __init__(self, url: str, name: str) -> None:
        self.topic = f"doors/{name}"
        will = Will(self.topic, b"lost", qos=1, retain=True, properties=Properties(will_delay_interval=60))
        self.client = SyncClient(url, client_id=name, session_expiry=3600, will=will, reconnect=Reconnect(first_s=0.01))

    def __enter__(self) -> Door:
        self.client.connect()
        return self

    def __exit__(self, *error: object) -> None:
        self.client.close(drain=False)

    def moved(self, state: str) -> None:
        self.client.publish(self.topic, state, qos=1, retain=True, wait=False)


@pytest.fixture
def door(mqtt_url: str) -> Iterator[Door]:
    with Door(mqtt_url, "front") as door:
        yield door


def test_what_it_says(door: Door, mqtt_recorder: Recorder, mqtt_client: Clients) -> None:
    door.moved("open")
    mqtt_recorder.expect("doors/front", payload="open", qos=1, retain=True, count=1)
    panel = mqtt_client(client_id="panel")
    assert panel.subscribe("doors/#", qos=1).get(5).text == "open", "also to who comes later"


def test_a_broken_connection_loses_nothing(mqtt_faults: FaultProxy, door: Door, mqtt_recorder: Recorder) -> None:
    broken = mqtt_faults.cut("PUBLISH", payload="closed", at_byte=3)
    door.moved("open")
    door.moved("closed")
    broken.wait()
    mqtt_recorder.expect("doors/front", payload="closed", count=1)
    mqtt_recorder.expect("doors/front", payload="open", count=1)


def test_a_lost_acknowledgement(mqtt_faults: FaultProxy, door: Door, mqtt_recorder: Recorder) -> None:
    lost = mqtt_faults.drop("PUBACK")
    door.moved("open")
    lost.wait()
    mqtt_faults.cut_now()
    assert len(mqtt_recorder.expect("doors/front", payload="open", count=2)) == 2, "at least once, so it may come twice"


def test_a_door_that_is_lost(mqtt_clock: VirtualClock, mqtt_faults: FaultProxy, door: Door, mqtt_recorder: Recorder) -> None:
    mqtt_faults.refuse("CONNECT", ReasonCode.SERVER_BUSY, times=None)
    mqtt_faults.cut_now()
    mqtt_recorder.expect_disconnected("front", clean=False)
    mqtt_clock.advance(59)
    mqtt_recorder.expect_none("doors/front")
    mqtt_clock.advance(1)
    mqtt_recorder.expect("doors/front", payload="lost", retain=True)


@pytest.mark.mqtt_broker(limits={"max_packet_size": 100})
def test_a_broker_with_little_room(mqtt_broker: LocalBroker, door: Door) -> None:
    assert door.client.limits.maximum_packet_size == mqtt_broker.config.limits.max_packet_size == 100
