"""Each client, in each version that it speaks: what its users do every day."""

from __future__ import annotations

import queue

import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties as PahoProperties

from mqttc.server import Broker
from tests.clients.asyncio_clients import GmqttClient
from tests.clients.conftest import ClientFactory, payloads
from tests.clients.model import TIMEOUT, VARIANTS, Message, Options, Properties, RealClient, Variant
from tests.clients.mqttjs import MqttJsClient
from tests.clients.paho_client import PahoClient

every_variant = pytest.mark.parametrize("variant", VARIANTS, ids=str)
every_5 = pytest.mark.parametrize("variant", [variant for variant in VARIANTS if variant.version == 5], ids=str)
COUNT = 20


@every_variant
def test_each_qos_both_ways(variant: Variant, broker: Broker, client: ClientFactory) -> None:
    """What is published at each QoS arrives once, in order, at the lower of it and the subscription's."""
    subscriber = client.open(variant, broker, subscriptions=[("at2/#", 2)])
    lower = client.open(variant, broker, subscriptions=[("at2/#", 1)])
    publisher = client.open(variant, broker)
    sent, came = [], []
    for qos in (0, 1, 2):
        for number in range(3):
            message = Message(f"at2/{qos}", b"%d.%d" % (qos, number), qos)
            publisher.publish(message)
            sent.append(message)
            if qos == 0:  # mosquitto_pub is a connection for each message, and nothing is acknowledged: the next could overtake it
                came.append(subscriber.receive())
    assert came + subscriber.receive_many(len(sent) - len(came)) == sent
    assert [message.qos for message in lower.receive_many(len(sent))] == [min(message.qos, 1) for message in sent]
    assert subscriber.messages.empty() and lower.messages.empty()


@every_variant
def test_retained(variant: Variant, broker: Broker, client: ClientFactory) -> None:
    """A retained message is replaced, told to a new subscriber with RETAIN, and removed by an empty one."""
    publisher = client.open(variant, broker)
    for payload in (b"old", b"new"):
        publisher.publish(Message("kept/a", payload, 1, retain=True))
    first = client.open(variant, broker, subscriptions=[("kept/+", 1)])
    assert first.receive() == Message("kept/a", b"new", 1, retain=True)
    publisher.publish(Message("kept/a", b"live", 1, retain=True))
    assert first.receive() == Message("kept/a", b"live", 1, retain=False)
    publisher.publish(Message("kept/a", b"", 1, retain=True))
    assert first.receive() == Message("kept/a", b"", 1, retain=False)
    second = client.open(variant, broker, subscriptions=[("kept/+", 1)])
    publisher.publish(Message("kept/b", b"after", 1))
    assert second.receive() == Message("kept/b", b"after", 1)


@every_variant
def test_will(variant: Variant, broker: Broker, client: ClientFactory) -> None:
    """A broken connection publishes the will, an orderly end only if it asks to; a retained will is kept."""
    observer = client.open(variant, broker, subscriptions=[("wills/#", 2)])
    orderly = client.open(variant, broker, will=Message("wills/orderly", b"asked for", 1))
    client.leave(orderly)
    if orderly.leaves_with_will:
        assert observer.receive() == Message("wills/orderly", b"asked for", 1)
    broken = client.open(variant, broker, will=Message("wills/broken", b"gone", 2, retain=True))
    client.leave(broken, abort=True)
    assert observer.receive() == Message("wills/broken", b"gone", 2)
    late = client.open(variant, broker, subscriptions=[("wills/#", 2)])
    assert late.receive() == Message("wills/broken", b"gone", 2, retain=True)
    assert observer.messages.empty()


@every_variant
def test_persistent_session(variant: Variant, broker: Broker, client: ClientFactory) -> None:
    """A session that was left in order or broken off keeps its subscription and collects QoS 1 and 2."""
    publisher = client.open(variant, broker)
    subscriber = client.open(variant, broker, name="kept", session_expiry=3600, subscriptions=[("offline/#", 2)])
    assert not subscriber.session_present
    for abort in (False, True):
        client.leave(subscriber, abort=abort)
        sent = [Message("offline/x", b"%d" % number, 1 + number % 2) for number in range(COUNT)]
        for message in sent:
            publisher.publish(message)
        subscriber.open()
        assert subscriber.session_present in (True, None)
        received = subscriber.receive_many(COUNT)
        for qos in (1, 2):  # a client hands out QoS 2 only after the PUBREL, so the two overtake each other
            assert [message for message in received if message.qos == qos] == [message for message in sent if message.qos == qos]
    client.leave(subscriber)
    # A clean session of the same name ends the old one.
    fresh = client.open(variant, broker, name="kept")
    assert not fresh.session_present
    publisher.publish(Message("offline/x", b"nobody", 1))
    client.leave(fresh)
    again = client.open(variant, broker, name="kept", session_expiry=3600, subscriptions=[("other", 1)])
    assert not again.session_present
    publisher.publish(Message("other", b"first", 1))
    assert again.receive().payload == b"first"


@every_variant
def test_shared_subscription(variant: Variant, broker: Broker, client: ClientFactory) -> None:
    """Each message goes to one member of the group, and every member has its share."""
    inbox: queue.Queue[tuple[RealClient, Message]] = queue.Queue()
    members = [client.open(variant, broker, subscriptions=[("$share/team/work/#", 1)]) for _ in range(2)]
    for member in members:
        member.tell(inbox)
    publisher = client.open(variant, broker)
    sent = [b"%d" % number for number in range(COUNT)]
    for payload in sent:
        publisher.publish(Message("work/1", payload, 1))
    received = [inbox.get(timeout=TIMEOUT) for _ in sent]
    shares = [[message.payload for who, message in received if who is member] for member in members]
    assert sorted(shares[0] + shares[1], key=int) == sent
    for share in shares:
        assert share
        assert share == sorted(share, key=int)


@every_variant
@pytest.mark.parametrize("size", [65_536, 900_000])
def test_large_messages(variant: Variant, broker: Broker, client: ClientFactory, size: int) -> None:
    """Over several reads, TLS records and frames, both ways."""
    subscriber = client.open(variant, broker, subscriptions=[("large/#", 1)])
    publisher = client.open(variant, broker)
    payload = (b"%07d\n" * (size // 8)) % tuple(range(size // 8))
    for qos in (0, 1):
        publisher.publish(Message("large/x", payload, qos))
        assert subscriber.receive() == Message("large/x", payload, qos)


PROPERTIES = Properties(
    content_type="text/plain",
    response_topic="answers/42",
    correlation_data=b"request 42",
    user=(("first", "1"), ("second", "zwei")),
    message_expiry=600,
    payload_format=1,
)


@every_5
def test_properties_pass_through(variant: Variant, broker: Broker, client: ClientFactory) -> None:
    """Live, retained and queued: a receiver sees what the publisher wrote; the expiry is what remains of it."""
    live = client.open(variant, broker, subscriptions=[("props/#", 1)])
    queued = client.open(variant, broker, name="queued", session_expiry=3600, subscriptions=[("props/#", 1)])
    client.leave(queued)
    publisher = client.open(variant, broker)
    sent = Message("props/x", b"payload", 1, retain=True, properties=PROPERTIES)
    publisher.publish(sent)
    assert live.receive().properties == PROPERTIES
    broker.advance_clock(100)
    late = client.open(variant, broker, subscriptions=[("props/#", 1)])
    queued.open()
    for receiver in (late, queued):
        received = receiver.receive().properties
        assert received.message_expiry is not None and 480 <= received.message_expiry <= 500
        assert Properties(**{**vars(received), "message_expiry": 600}) == PROPERTIES
    broker.advance_clock(600)
    publisher.publish(Message("props/y", b"sentinel", 1))
    too_late = client.open(variant, broker, subscriptions=[("props/x", 1), ("after", 1)])
    publisher.publish(Message("after", b"after", 1))
    assert too_late.receive().payload == b"after"


@pytest.mark.parametrize("variant", [Variant("gmqtt", 5), Variant("mqttjs", 5)], ids=str)
def test_topic_aliases_towards_the_client(variant: Variant, broker: Broker, client: ClientFactory) -> None:
    """The broker names topics by alias, and the client understands them: more topics than aliases, twice around."""
    subscriber = client.open(variant, broker, topic_alias_maximum=3, subscriptions=[("many/#", 1)])
    assert isinstance(subscriber, GmqttClient | MqttJsClient)
    publisher = client.open(variant, broker)
    topics = [f"many/{number % 5}" for number in (0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 0, 0)]
    for topic in topics:
        publisher.publish(Message(topic, topic.encode(), 1))
    received = subscriber.receive_many(len(topics))
    assert [message.topic for message in received] == topics
    assert payloads(received) == [topic.encode() for topic in topics]
    assert subscriber.aliases and set(subscriber.aliases) <= {1, 2, 3}


@pytest.mark.parametrize("variant", [Variant("mqttjs", 5)], ids=str)
def test_topic_aliases_of_mqttjs(variant: Variant, broker: Broker, client: ClientFactory) -> None:
    """autoAssignTopicAlias: MQTT.js replaces the topics it repeats."""
    subscriber = client.open(Variant("paho", 5), broker, subscriptions=[("own/#", 1)])
    publisher = client.open(variant, broker, topic_alias_maximum=10)
    topics = [f"own/{number % 3}" for number in range(12)]
    for topic in topics:
        publisher.publish(Message(topic, topic.encode(), 1))
    assert [message.topic for message in subscriber.receive_many(len(topics))] == topics


@pytest.mark.parametrize("variant", [Variant("paho", 5)], ids=str)
def test_topic_aliases_of_paho(variant: Variant, broker: Broker, client: ClientFactory) -> None:
    subscriber = client.open(variant, broker, subscriptions=[("own/#", 1)])
    publisher = client.open(variant, broker)
    assert isinstance(publisher, PahoClient)
    for topic, alias in (("own/a", 1), ("own/b", 2), ("", 1), ("", 2), ("own/c", 1), ("", 1)):
        properties = PahoProperties(PacketTypes.PUBLISH)
        properties.TopicAlias = alias
        publisher.paho.publish(topic, b"x", 1, properties=properties).wait_for_publish()
    topics = [message.topic for message in subscriber.receive_many(6)]
    assert topics == ["own/a", "own/b", "own/a", "own/b", "own/c", "own/c"]


@pytest.mark.parametrize("variant", [Variant("paho", version) for version in (3, 4, 5)], ids=str)
@pytest.mark.parametrize("qos", [1, 2])
def test_what_was_not_acknowledged(variant: Variant, qos: int, broker: Broker, client: ClientFactory) -> None:
    """A client breaks off before PUBACK or PUBCOMP. QoS 1 comes again, in order, marked as duplicate; QoS 2 does not."""
    address = client(variant, broker).options.address
    subscriber = PahoClient(Options("again", variant.version, address, [("again/#", qos)], session_expiry=3600), manual_ack=True)
    publisher = client.open(variant, broker)
    subscriber.open()
    sent = [b"%d" % number for number in range(COUNT)]
    for payload in sent:
        publisher.publish(Message("again/x", payload, qos))
    assert payloads(subscriber.receive_many(COUNT)) == sent
    client.leave(subscriber, abort=True)
    subscriber.duplicates.clear()
    subscriber.open()
    assert subscriber.session_present in (True, None)
    if qos == 1:
        assert payloads(subscriber.receive_many(COUNT)) == sent
        assert subscriber.duplicates == [True] * COUNT
        for message in subscriber.unacknowledged:
            subscriber.paho.ack(message.mid, message.qos)
    publisher.publish(Message("again/x", b"next", qos))
    assert subscriber.receive().payload == b"next"
    subscriber.close()
