"""Faults between a client and a broker, each against paho-mqtt and our own client."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import paho.mqtt.client as paho
import pytest

from mqttc import BrokerError, SyncClient, codec
from mqttc.client import Reconnect, State
from mqttc.embed.events import Dropped
from mqttc.errors import ClosedError, MqttError, PublishError, RefusedError, SubscribeError
from mqttc.testing import FaultProxy, LocalBroker, Recorder

TIMEOUT = 5.0


class Ours:
    """Our client, as these tests use any."""

    def __init__(self, url: str, client_id: str, version: int = 5, **options: Any) -> None:
        options.setdefault("reconnect", Reconnect(first_s=0.01, most_s=0.05))
        self.client = SyncClient(url, client_id=client_id, version=version, session_expiry=1000, **options)
        self.published: list[Future[Any]] = []
        self.client.connect()

    def publish(self, topic: str, payload: bytes, qos: int) -> None:
        work = self.client._client.publish(topic, payload, qos)
        self.published.append(asyncio.run_coroutine_threadsafe(work, self.client._thread._started()))

    def finished(self) -> None:
        for one in self.published:
            one.result(TIMEOUT)

    def subscribe(self, topic_filter: str, qos: int) -> None:
        self.subscription = self.client.subscribe(topic_filter, qos)

    def get(self) -> bytes:
        return bytes(self.subscription.get(TIMEOUT).payload)

    def close(self) -> None:
        self.client.close(drain=False)


class Paho:
    """paho-mqtt, as these tests use any."""

    def __init__(self, url: str, client_id: str, version: int = 5, **options: Any) -> None:
        if version < 5:
            options["clean_session"] = False
        self.client = paho.Client(
            paho.CallbackAPIVersion.VERSION2, client_id=client_id, protocol=paho.MQTTProtocolVersion(version), **options
        )
        self.client.reconnect_delay_set(0, 0)
        self.connected = threading.Event()
        self.subscribed = threading.Event()
        self.code: Any = None
        self.client.on_connect = self._connected
        self.client.on_subscribe = lambda *arguments: self.subscribed.set()
        self.messages: list[bytes] = []
        self.arrived = threading.Semaphore(0)
        self.client.on_message = self._message
        self.infos: list[paho.MQTTMessageInfo] = []
        host, port = url.removeprefix("mqtt://").split(":")
        properties = None
        if version == 5:
            from paho.mqtt.packettypes import PacketTypes
            from paho.mqtt.properties import Properties

            properties = Properties(PacketTypes.CONNECT)
            properties.SessionExpiryInterval = 1000
        self.client.connect(host, int(port), properties=properties)
        self.client.loop_start()
        assert self.connected.wait(TIMEOUT)

    def _connected(self, client: Any, userdata: Any, flags: Any, code: Any, properties: Any) -> None:
        self.code = code
        self.connected.set()

    def _message(self, client: Any, userdata: Any, message: paho.MQTTMessage) -> None:
        self.messages.append(message.payload)
        self.arrived.release()

    def publish(self, topic: str, payload: bytes, qos: int) -> None:
        self.infos.append(self.client.publish(topic, payload, qos))

    def finished(self) -> None:
        for info in self.infos:
            info.wait_for_publish(TIMEOUT)
            assert info.is_published(), "not acknowledged"

    def subscribe(self, topic_filter: str, qos: int) -> None:
        self.subscribed.clear()
        self.client.subscribe(topic_filter, qos)
        assert self.subscribed.wait(TIMEOUT)

    def get(self) -> bytes:
        assert self.arrived.acquire(timeout=TIMEOUT)
        return self.messages.pop(0)

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


Make = Callable[..., "Ours | Paho"]


@pytest.fixture(params=[Ours, Paho], ids=["mqttc", "paho"])
def client_of(request: pytest.FixtureRequest, mqtt_faults: FaultProxy) -> Iterator[Make]:
    made: list[Ours | Paho] = []

    def make(client_id: str = "client", version: int = 5, url: str = "", **options: Any) -> Ours | Paho:
        made.append(request.param(url or mqtt_faults.url, client_id, version, **options))
        return made[-1]

    yield make
    mqtt_faults.clear()
    for client in made:
        client.close()


# ---------------------------------------------------------------------------------------------- transparent


@pytest.mark.parametrize("version", [3, 4, 5])
def test_without_faults_nothing_is_different(client_of: Make, mqtt_faults: FaultProxy, mqtt_recorder: Recorder, version: int) -> None:
    client = client_of(version=version)
    client.subscribe("a/#", 2)
    for qos in (0, 1, 2):
        client.publish(f"a/{qos}", b"x" * 100_000, qos)
        assert client.get() == b"x" * 100_000
    client.finished()
    mqtt_recorder.expect("a/#", count=3)
    types = [seen.packet_type.name for seen in mqtt_faults.wait_for("PUBCOMP", count=2)]
    assert types == ["PUBCOMP", "PUBCOMP"]
    assert {seen.client_id for seen in mqtt_faults.packets} == {"client"}
    assert all(seen.packet is not None for seen in mqtt_faults.packets)
    assert mqtt_faults.connection_count == 1


def test_what_is_no_mqtt_goes_through() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        FaultProxy(f"mqtt://127.0.0.1:{server.getsockname()[1]}") as proxy,
        socket.create_connection((proxy.host, proxy.port)) as client,
    ):
        peer, _ = server.accept()
        with peer:
            for sent in (b"\x00GET / HTTP/1.1\r\n", b"\x30\xff\xff\xff\xff\xff"):
                client.sendall(sent)
                assert _exactly(peer, len(sent)) == sent
            peer.sendall(b"\x30\x05abc")  # begun, not ended
            peer.shutdown(socket.SHUT_WR)
            assert _exactly(client, 5) == b"\x30\x05abc"
            assert client.recv(1) == b""
            client.sendall(b"still open")
            assert _exactly(peer, 10) == b"still open"


def _exactly(peer: socket.socket, count: int) -> bytes:
    peer.settimeout(TIMEOUT)
    found = b""
    while len(found) < count and (piece := peer.recv(count - len(found))):
        found += piece
    return found


# ---------------------------------------------------------------------------------------------- faults


def test_a_dropped_puback(client_of: Make, mqtt_faults: FaultProxy, mqtt_recorder: Recorder) -> None:
    """The second PUBACK is lost, then the connection: the message comes again as a duplicate, and no other does."""
    fault = mqtt_faults.drop("PUBACK", nth=2, client_id="client")
    client = client_of()
    for payload in (b"1", b"2", b"3"):
        client.publish("a", payload, 1)
    fault.wait()
    mqtt_faults.wait_for("PUBACK", count=3)
    assert mqtt_faults.cut_now() == 1
    client.finished()
    assert [message.payload for message in mqtt_recorder.expect("a", count=4)] == [b"1", b"2", b"3", b"2"]
    again = mqtt_faults.wait_for("PUBLISH", to="broker", payload=b"2", count=2)[1]
    assert isinstance(again.packet, codec.Publish)
    assert again.packet.dup
    assert (fault.hits, fault.seen, len(fault.struck)) == (1, 4, 1)


@pytest.mark.parametrize("packet", ["PUBREC", "PUBREL", "PUBCOMP"])
def test_qos_2_is_exactly_once_whatever_is_lost(client_of: Make, mqtt_faults: FaultProxy, mqtt_recorder: Recorder, packet: str) -> None:
    fault = mqtt_faults.drop(packet)
    client = client_of()
    client.publish("a", b"x", 2)
    fault.wait()
    mqtt_faults.cut_now(reset=True)
    client.finished()
    mqtt_recorder.expect("a", count=1)


def test_a_duplicate(client_of: Make, mqtt_faults: FaultProxy, mqtt_recorder: Recorder) -> None:
    mqtt_faults.duplicate("PUBLISH", to="broker", topic="once/+", times=None)
    mqtt_faults.duplicate("PUBLISH", to="broker", topic="twice", copies=2)
    client = client_of()
    client.publish("once/2", b"x", 2)
    client.publish("twice", b"x", 0)
    client.finished()
    mqtt_recorder.expect("once/2", count=1)
    mqtt_recorder.expect("twice", count=3)


def test_a_corrupt_byte(client_of: Make, mqtt_faults: FaultProxy, mqtt_recorder: Recorder) -> None:
    mqtt_faults.corrupt("PUBLISH", topic="payload", mask=0x01)
    fault = mqtt_faults.corrupt("PUBLISH", at_byte=0, mask=0x06, topic="header", payload=b"x")
    client = client_of()
    client.publish("payload", b"a", 1)
    client.publish("header", b"x", 1)  # QoS 2 instead of 1, or 3: malformed; in any case not what the client sent
    fault.wait()
    mqtt_recorder.expect("payload", payload=b"`")
    with pytest.raises(ValueError, match="mask"):
        mqtt_faults.corrupt("PUBLISH", mask=0)


def test_a_malformed_packet_ends_the_connection(client_of: Make, mqtt_faults: FaultProxy, mqtt_recorder: Recorder) -> None:
    mqtt_faults.corrupt("PUBLISH", at_byte=0, mask=0x04, topic="a")  # QoS 1 becomes 3
    client = client_of()
    client.publish("a", b"x", 1)
    assert mqtt_recorder.expect_disconnected("client").reason_code == codec.ReasonCode.MALFORMED_PACKET
    if isinstance(client, Ours):
        assert client.client.wait_for(State.CLOSED, timeout_s=TIMEOUT), "it does not try again what the broker calls malformed"
    else:
        client.finished()
        mqtt_recorder.expect("a", payload=b"x", count=1)


def test_held_packets_keep_their_order(client_of: Make, mqtt_faults: FaultProxy, mqtt_recorder: Recorder) -> None:
    fault = mqtt_faults.hold("PUBLISH", payload=b"2")
    client = client_of()
    for payload in (b"1", b"2", b"3"):
        client.publish("a", payload, 1)
    fault.wait()
    mqtt_recorder.expect("a", payload=b"1")
    mqtt_recorder.expect_none("a", where=lambda message: message.payload != b"1")
    fault.release()
    client.finished()
    assert [message.payload for message in mqtt_recorder.expect("a", count=3)] == [b"1", b"2", b"3"]


def test_delay(client_of: Make, mqtt_faults: FaultProxy) -> None:
    fault = mqtt_faults.delay("PUBACK", 0.05, times=2)
    client = client_of()
    begun = time.monotonic()
    client.publish("a", b"1", 1)
    client.finished()
    assert time.monotonic() - begun >= 0.05
    fault.wait()


def test_cut_at_a_packet(client_of: Make, mqtt_faults: FaultProxy, mqtt_recorder: Recorder) -> None:
    fault = mqtt_faults.cut("PUBLISH", nth=2, to="broker")
    client = client_of()
    client.publish("a", b"1", 1)
    client.publish("a", b"2", 1)
    fault.wait()
    event = mqtt_recorder.expect_disconnected("client", clean=False)
    assert event.reason_code == 0
    client.finished()
    mqtt_recorder.expect("a", payload=b"2", count=1)
    mqtt_faults.wait_for("CONNECT", count=2)


def test_cut_in_the_middle_of_a_packet(client_of: Make, mqtt_faults: FaultProxy, mqtt_recorder: Recorder, mqtt_broker: LocalBroker) -> None:
    fault = mqtt_faults.cut("PUBLISH", at_byte=5, reset=True, to="client")
    client = client_of()
    client.subscribe("a", 1)
    mqtt_broker.publish_sync("a", b"x", qos=1)
    fault.wait()
    assert client.get() == b"x"
    assert len(mqtt_faults.wait_for("PUBLISH", to="client", count=2)) == 2


@pytest.mark.parametrize("to", ["broker", "client"])
def test_cut_after_bytes(mqtt_faults: FaultProxy, mqtt_broker: LocalBroker, to: Any) -> None:
    mqtt_faults.cut_after(3, to=to)
    with socket.create_connection((mqtt_faults.host, mqtt_faults.port)) as client:
        client.settimeout(TIMEOUT)
        client.sendall(b"\x10\x0d\x00\x04MQTT\x04\x02\x00\x00\x00\x01a")
        found = b""
        while piece := client.recv(10):
            found += piece
        assert found == (b"" if to == "broker" else b"\x20\x02\x00")
    mqtt_broker.settle()
    assert mqtt_broker.stats()["bytes_received"] == (3 if to == "broker" else 15)
    with socket.create_connection((mqtt_faults.host, mqtt_faults.port)) as client:
        client.sendall(b"\x10\x0d\x00\x04MQTT\x04\x02\x00\x00\x00\x01a")
        assert _exactly(client, 4) == b"\x20\x02\x00\x00", "the next connection is whole"


@pytest.mark.parametrize("reset", [False, True])
def test_what_a_client_sees_of_a_cut(mqtt_faults: FaultProxy, reset: bool) -> None:
    mqtt_faults.cut("CONNACK", at_byte=2)
    mqtt_faults.cut("PINGRESP", reset=reset)
    for after_connack in (False, True):
        with socket.create_connection((mqtt_faults.host, mqtt_faults.port)) as client:
            client.settimeout(TIMEOUT)
            client.sendall(b"\x10\x0d\x00\x04MQTT\x04\x02\x00\x00\x00\x01a")
            if not after_connack:
                assert _exactly(client, 2) == b"\x20\x02"
            else:
                assert _exactly(client, 4) == b"\x20\x02\x00\x00"
                client.sendall(b"\xc0\x00")
            if after_connack and reset:
                with pytest.raises(ConnectionResetError):
                    client.recv(1)
            else:
                assert client.recv(1) == b""


def test_a_reset_goes_through() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        FaultProxy(f"mqtt://127.0.0.1:{server.getsockname()[1]}") as proxy,
        socket.create_connection((proxy.host, proxy.port)) as client,
    ):
        client.settimeout(TIMEOUT)
        client.sendall(b"\xc0\x00")
        peer, _ = server.accept()
        assert _exactly(peer, 2) == b"\xc0\x00"
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.close()
        with pytest.raises(ConnectionResetError):
            client.recv(1)


def test_cut_after_bytes_of_clients(client_of: Make, mqtt_faults: FaultProxy, mqtt_recorder: Recorder) -> None:
    fault = mqtt_faults.cut_after(1000, to="broker", client_id="client")
    client = client_of()
    client.publish("a", b"x" * 2000, 1)
    fault.wait()
    client.finished()
    mqtt_recorder.expect("a", count=1)


@pytest.mark.parametrize("version", [4, 5])
def test_a_refused_connect(mqtt_faults: FaultProxy, mqtt_recorder: Recorder, version: int) -> None:
    fault = mqtt_faults.refuse("CONNECT", codec.ReasonCode.NOT_AUTHORIZED, client_id="ours", times=None)
    with pytest.raises(RefusedError):
        Ours(mqtt_faults.url, "ours", version, reconnect=None)
    mqtt_faults.refuse("CONNECT", codec.ReasonCode.SERVER_BUSY, client_id="theirs", times=None)
    theirs = Paho(mqtt_faults.url, "theirs", version)
    assert theirs.code.is_failure
    theirs.close()
    assert fault.hits == 1
    mqtt_recorder.fence()
    assert mqtt_recorder.events == [], "the broker has seen nothing of it"


def test_a_refused_subscribe(client_of: Make, mqtt_faults: FaultProxy, mqtt_broker: LocalBroker) -> None:
    fault = mqtt_faults.refuse("SUBSCRIBE", codec.ReasonCode.NOT_AUTHORIZED, topic="secret/#", times=None)
    client = client_of()
    if isinstance(client, Ours):
        with pytest.raises(SubscribeError):
            client.subscribe("secret/#", 1)
    else:
        client.subscribe("secret/#", 1)
        (answer,) = [seen for seen in mqtt_faults.packets if seen.packet_type.name == "SUBACK"] or [None]
        assert answer is None, "the broker was not asked"
    assert fault.hits == 1
    client.subscribe("open/#", 1)
    mqtt_broker.publish_sync("secret/a", b"no")
    mqtt_broker.publish_sync("open/a", b"yes")
    assert client.get() == b"yes"


@pytest.mark.parametrize("qos", [1, 2])
def test_a_refused_publish(client_of: Make, mqtt_faults: FaultProxy, mqtt_recorder: Recorder, qos: int) -> None:
    mqtt_faults.refuse("PUBLISH", codec.ReasonCode.QUOTA_EXCEEDED, topic="full", times=None)
    client = client_of()
    if isinstance(client, Ours):
        with pytest.raises(PublishError) as caught:
            client.client.publish("full", b"x", qos)
        assert caught.value.reason_code == codec.ReasonCode.QUOTA_EXCEEDED
    else:
        client.publish("full", b"x", qos)
        client.finished()
    client.publish("full", b"x", 0)
    client.publish("free", b"x", qos)
    client.finished()
    mqtt_recorder.expect("free", count=1)
    mqtt_recorder.expect_none("full")


def test_a_refused_publish_of_3_1_1_ends_the_connection(client_of: Make, mqtt_faults: FaultProxy, mqtt_recorder: Recorder) -> None:
    mqtt_faults.refuse("PUBLISH", codec.ReasonCode.QUOTA_EXCEEDED)
    client = client_of(version=4)
    client.publish("a", b"x", 1)
    client.finished()
    mqtt_faults.wait_for("CONNECT", count=2)
    mqtt_recorder.expect("a", count=1)


def test_a_refused_unsubscribe(mqtt_faults: FaultProxy) -> None:
    mqtt_faults.refuse("UNSUBSCRIBE", codec.ReasonCode.NOT_AUTHORIZED)
    client = Ours(mqtt_faults.url, "a")
    client.subscribe("a", 0)
    with pytest.raises(SubscribeError, match="not authorized"):
        client.client.unsubscribe("a")
    client.close()


def test_a_client_that_is_not_read(client_of: Make, mqtt_faults: FaultProxy, mqtt_recorder: Recorder) -> None:
    client = client_of()
    fault = mqtt_faults.stop_reading("client")
    client.publish("small", b"x", 0)
    fault.wait()
    mqtt_recorder.expect_none("small")
    for _ in range(64):
        client.publish("a", b"x" * 200_000, 1)
    mqtt_recorder.expect_none()
    fault.release()
    client.finished()
    mqtt_recorder.expect("small", count=1)
    mqtt_recorder.expect("a", count=64)


def test_a_broker_that_is_not_read(mqtt_broker: LocalBroker, mqtt_faults: FaultProxy, mqtt_recorder: Recorder) -> None:
    """What does not fit its queue is lost, and told."""
    client = Ours(mqtt_faults.url, "slow", version=4)
    client.subscribe("a", 0)
    fault = mqtt_faults.stop_reading("broker", client_id="slow")
    for _ in range(200):
        mqtt_broker.publish_sync("a", b"x" * 100_000)
    fault.wait()
    mqtt_recorder.expect_event(Dropped, client_id="slow")
    fault.remove()
    assert client.get() == b"x" * 100_000
    client.close()


# ---------------------------------------------------------------------------------------------- which packets


def test_several_faults_count_each_packet_and_the_first_strikes(client_of: Make, mqtt_faults: FaultProxy, mqtt_recorder: Recorder) -> None:
    first = mqtt_faults.drop("PUBLISH", topic="a", nth=2)
    second = mqtt_faults.duplicate("PUBLISH", topic="a", nth=2, times=2)
    client = client_of()
    for payload in (b"1", b"2", b"3", b"4"):
        client.publish("a", payload, 0)
    assert [message.payload for message in mqtt_recorder.expect("a", count=4)] == [b"1", b"3", b"3", b"4"]
    assert (first.hits, second.hits, first.seen, second.seen) == (1, 1, 4, 4)


def test_a_removed_fault_strikes_no_more(client_of: Make, mqtt_faults: FaultProxy, mqtt_recorder: Recorder) -> None:
    fault = mqtt_faults.drop("PUBLISH", times=None)
    client = client_of()
    client.publish("a", b"1", 0)
    fault.wait()
    fault.remove()
    client.publish("a", b"2", 0)
    assert [message.payload for message in mqtt_recorder.expect("a", count=1)] == [b"2"]


def test_topics_behind_aliases(mqtt_faults: FaultProxy, mqtt_recorder: Recorder) -> None:
    """A message that is lost does not take with it the alias that it has set."""
    fault = mqtt_faults.drop("PUBLISH", topic="a/+", times=2)
    client = Ours(mqtt_faults.url, "a")
    for payload in (b"1", b"2", b"3", b"4"):
        client.client.publish("a/b", payload, 0)
    fault.wait(hits=2)
    assert [message.payload for message in mqtt_recorder.expect("a/b", count=2)] == [b"3", b"4"]
    seen = mqtt_faults.wait_for("PUBLISH", to="broker", topic="a/b", count=4)
    assert [one.packet.topic for one in seen if isinstance(one.packet, codec.Publish)] == ["a/b", "", "", ""]
    client.close()


def test_an_assigned_client_id_is_known(mqtt_faults: FaultProxy) -> None:
    with SyncClient(mqtt_faults.url) as client:
        mqtt_faults.drop("PINGREQ", client_id=client.client_id)
        assert [seen.client_id for seen in mqtt_faults.packets] == ["", client.client_id]


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda proxy: proxy.drop("PUBLISHED"), "no MQTT packet"),
        (lambda proxy: proxy.drop("PUBACK", to="server"), "neither"),
        (lambda proxy: proxy.drop("CONNACK", to="broker"), "CONNACK goes to the client"),
        (lambda proxy: proxy.drop("PUBLISH", topic="a/#/b"), "#"),
        (lambda proxy: proxy.drop("PUBLISH", nth=0), "at least 1"),
        (lambda proxy: proxy.duplicate("PUBLISH", copies=0), "at least 1"),
        (lambda proxy: proxy.delay("PUBLISH", -1), "seconds"),
        (lambda proxy: proxy.cut("PUBLISH", at_byte=-1), "at_byte"),
        (lambda proxy: proxy.cut_after(-1, to="client"), "count"),
        (lambda proxy: proxy.refuse("PINGREQ", 0x80), "PINGREQ cannot be refused"),
        (lambda proxy: proxy.refuse("PUBLISH", 0x10), "0x80"),
        (lambda proxy: proxy.refuse("PUBLISH", 0x8D), "0x8D"),
        (lambda proxy: proxy.stop_reading("server"), "neither"),
    ],
)
def test_what_is_no_fault(mqtt_faults: FaultProxy, call: Callable[[FaultProxy], object], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        call(mqtt_faults)


@pytest.mark.parametrize(
    "call",
    [
        lambda proxy: proxy.drop("PUBLISH", copies=2),
        lambda proxy: proxy.refuse("CONNECT", 0x88, to="client"),
        lambda proxy: proxy.cut("PUBLISH", colour=1),
    ],
)
def test_what_no_fault_has(mqtt_faults: FaultProxy, call: Callable[[FaultProxy], object]) -> None:
    with pytest.raises(TypeError):
        call(mqtt_faults)
    assert mqtt_faults.faults == ()


def test_what_did_not_happen_is_told(mqtt_faults: FaultProxy) -> None:
    fault = mqtt_faults.drop("PUBACK", client_id="a")
    with pytest.raises(AssertionError, match=r"drop PUBACK client_id='a': struck 0 times instead of 1 within 0.01 s, of 0 packets"):
        fault.wait(0.01)
    with pytest.raises(AssertionError, match=r"0 of 1 packets within 0.01 s: PUBACK\nNothing came by"):
        mqtt_faults.wait_for("PUBACK", timeout=0.01)
    with SyncClient(mqtt_faults.url, client_id="a"), pytest.raises(AssertionError, match="CONNACK to the client, client 'a'"):
        mqtt_faults.wait_for("PUBACK", timeout=0.01)


# ---------------------------------------------------------------------------------------------- the broker behind


def test_a_broker_that_is_started_again(mqtt_faults: FaultProxy, mqtt_broker: LocalBroker) -> None:
    """It has another port then; the proxy has not."""
    client = Ours(mqtt_faults.url, "a")
    mqtt_broker.stop()
    with pytest.raises(MqttError):
        Ours(mqtt_faults.url, "b", reconnect=None)
    mqtt_broker.start()
    client.publish("a", b"x", 1)
    client.finished()
    client.close()


def test_a_proxy_begins_once(mqtt_broker: LocalBroker) -> None:
    with FaultProxy(mqtt_broker) as proxy:
        with pytest.raises(ClosedError, match="begins once"):
            proxy.start()
        assert proxy.url.startswith("mqtt://127.0.0.1:")
    proxy.stop()
    with pytest.raises(ClosedError, match="not running"):
        proxy.url  # noqa: B018


def test_what_cannot_be_in_front_of() -> None:
    with pytest.raises(BrokerError, match="not running"):
        FaultProxy(LocalBroker()).start()
    with pytest.raises(ValueError, match="no URL of TCP"):
        FaultProxy("ws://127.0.0.1/mqtt").start()
