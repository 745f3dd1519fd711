"""MQTT.js in a page, over each road: what a web application does with a broker."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.broker.conftest import Events, eventually
from tests.browser.conftest import ROADS, Client, Road, message, name, page_url
from tests.browser.driver import Page

MEBIBYTE = 1_048_576
NORMAL = {"code": 1000, "wasClean": True}
GOING_AWAY = {"code": 1001, "wasClean": True}
"""A WebSocket close that both sides have agreed on: RFC 6455 section 7.1.4."""

Serve = Callable[..., Any]
Visit = Callable[..., Page]

each_road = pytest.mark.parametrize("road", ROADS, ids=str)


@each_road
@pytest.mark.parametrize("version", [3, 4, 5])
def test_each_qos_and_a_clean_end(serve: Serve, visit: Visit, events: Events, road: Road, version: int) -> None:
    broker = serve(road)
    page = visit(page_url(broker.urls[0]))
    client = Client(page, broker.urls[0], version)
    topic, other = name(), name()
    client.subscribe(topic)
    client.subscribe(other)
    for qos in (0, 1, 2):
        client.publish(topic, f"at {qos}", qos)
        assert client.next("message") == message(topic, f"at {qos}", qos)
    client.unsubscribe(topic)
    client.publish(topic, "for nobody", 1)
    client.publish(other, "for us", 1)
    assert client.next("message") == message(other, "for us", 1)

    client.end()
    assert events.wait("disconnected", client_id=client.name)["level"] == "INFO"
    assert not events.find("protocol error")
    (socket,) = page.sockets
    assert socket.url == broker.urls[0]
    assert socket.by_upgrade != road.http2
    assert socket.request["Sec-WebSocket-Protocol"] == ("mqttv3.1" if version == 3 else "mqtt")
    assert socket.closed
    assert socket.errors == []
    assert page.call("closes") == [NORMAL]
    assert page.said == []
    stats = broker.stats()
    assert stats["disconnects_clean"] == 1
    assert stats["http_websockets"] == int(road.http2)


@each_road
def test_retained_message(serve: Serve, visit: Visit, road: Road) -> None:
    broker = serve(road)
    page = visit(page_url(broker.urls[0]))
    early, *others = (Client(page, broker.urls[0], version) for version in (5, 4, 5, 4, 5))
    topic, live = name(), name()
    early.publish(topic, "kept", 1, retain=True)
    for late in others[:2]:
        late.subscribe(topic)
        assert late.next("message") == message(topic, "kept", 1, retain=True)
    early.publish(topic, "", 1, retain=True)
    for late in others[:2]:
        assert late.next("message") == message(topic, "", 1)
    for later in others[2:]:
        later.subscribe(topic)
        later.subscribe(live)
    early.publish(live, "live", 1)
    for later in others[2:]:
        assert later.next("message") == message(live, "live", 1)
    assert broker.stats()["retained"] == 0


@each_road
def test_a_mebibyte_there_and_back(serve: Serve, visit: Visit, road: Road) -> None:
    """The browser splits it into frames as it likes; over HTTP/2 it is more than the windows of both sides."""
    broker = serve(road, limits={"max_packet_size": 2 * MEBIBYTE})
    page = visit(page_url(broker.urls[0]))
    old, new = Client(page, broker.urls[0], 4), Client(page, broker.urls[0], 5)
    for sender, receiver, qos in ((old, new, 0), (new, old, 1), (old, new, 2)):
        topic = name()
        receiver.subscribe(topic)
        sender.publish(topic, MEBIBYTE, qos)
        assert receiver.next("message") == message(topic, {"size": MEBIBYTE, "intact": True}, qos)


@each_road
def test_too_large_a_packet_ends_that_client_alone(serve: Serve, visit: Visit, events: Events, road: Road) -> None:
    broker = serve(road, limits={"max_packet_size": 100_000})
    page = visit(page_url(broker.urls[0]))
    large, other = Client(page, broker.urls[0], 4), Client(page, broker.urls[0], 5)
    topic = name()
    other.subscribe(topic)
    # At QoS 0 MQTT.js counts a message as sent when the browser has taken it.
    large.publish(topic, MEBIBYTE)
    large.next("close")
    assert events.wait("protocol error", client_id=large.name)["reason"] == "0x95"
    other.publish(topic, "still here", 1)
    assert other.next("message") == message(topic, "still here", 1)


@each_road
def test_several_clients_in_one_page(serve: Serve, visit: Visit, road: Road) -> None:
    """Of both versions, each heard by all. Over HTTP/2 they are streams of the one connection that brought the page."""
    broker = serve(road)
    page = visit(page_url(broker.urls[0]))
    clients = [Client(page, broker.urls[0], version) for version in (3, 4, 5, 3, 4, 5)]
    topic = name()
    for client in clients:
        client.subscribe(topic)
    for client in clients:
        client.publish(topic, client.name, 2)
    for client in clients:
        received = [client.next("message") for _ in clients]  # of several publishers, in any order
        assert sorted(received, key=str) == sorted((message(topic, other.name, 2) for other in clients), key=str)
    stats = broker.stats()
    assert stats["sessions"] == len(clients)
    assert stats["http_websockets"] == (len(clients) if road.http2 else 0)
    assert stats["accepted"] == (1 if road.http2 else 1 + len(clients))
    for client in clients:
        client.end()
    eventually(lambda: broker.stats()["disconnects_clean"] == len(clients))
    assert page.call("closes") == [NORMAL] * len(clients)


@each_road
def test_reconnects_after_a_restart_of_the_broker(serve: Serve, visit: Visit, road: Road) -> None:
    """A page outlives its broker. MQTT.js comes back, by HTTP/1.1 as no HTTP/2 connection is open, and subscribes again."""
    broker = serve(road)
    url = broker.urls[0]
    page = visit(page_url(url))
    old, new = (Client(page, url, version, reconnectPeriod=100) for version in (4, 5))
    topic = name()
    old.subscribe(topic)
    new.subscribe(topic)
    broker.stop()
    old.next("close")
    new.next("close")
    assert old.unread("disconnect") == []
    assert new.unread("disconnect") == [0x8B]
    assert page.call("closes").count(GOING_AWAY) == 2  # what is tried meanwhile ends otherwise

    again = serve(road, port=urlsplit(url).port)
    assert again.urls[0] == url
    old.next("connect")
    new.next("connect")
    eventually(lambda: again.stats()["subscriptions"] == 2)
    assert [socket.status for socket in page.sockets if socket.status][-2:] == [101, 101]
    old.publish(topic, "again", 2)
    assert old.next("message") == new.next("message") == message(topic, "again", 2)
    old.end()
    new.end()
    assert page.call("closes")[-2:] == [NORMAL, NORMAL]
