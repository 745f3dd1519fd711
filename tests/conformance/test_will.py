"""Wills: when they are published, when not, their delay and what they carry."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ..rawclient import SESSION_EXPIRY, WILL_DELAY, Peer, Will, connect_packet, disconnect_packet
from .conftest import Clients, TestBroker
from .statements import each_version, spec

pytestmark = pytest.mark.transport


def watch(clients: Clients, version: int, name: str) -> Peer:
    peer = clients(version)
    peer.subscribe(f"{name}/w", 2)
    return peer


ENDINGS: dict[str, Callable[[Clients, Peer, str, int], object]] = {
    "end-of-stream": lambda clients, peer, name, version: peer.drop(),
    "reset": lambda clients, peer, name, version: peer.reset(),
    "closed": lambda clients, peer, name, version: peer.close(),
    "malformed": lambda clients, peer, name, version: peer.send("0000"),
    "disconnect-with-flags": lambda clients, peer, name, version: peer.send("E100"),
    "half-a-packet": lambda clients, peer, name, version: (peer.send("30"), peer.close()),
    "take-over": lambda clients, peer, name, version: clients(version, name),
    "second-connect": lambda clients, peer, name, version: peer.send(connect_packet(name, version)),
    "disconnect-with-will": lambda clients, peer, name, version: peer.send("E00104" if version == 5 else "E100"),
}


@each_version
@pytest.mark.parametrize("ending", ENDINGS)
@spec("3.1.1", "MQTT-3.1.2-8", "MQTT-3.14.1-1")
@spec("5", "MQTT-3.1.2-7", "MQTT-3.1.2-8", "MQTT-3.14.4-3", "MQTT-3.14.1-1")
def test_published(clients: Clients, name: str, version: int, ending: str) -> None:
    watcher = watch(clients, version, name)
    peer = clients(version, name, will=Will(f"{name}/w", b"gone", 1))
    ENDINGS[ending](clients, peer, name, version)
    got = watcher.message(f"{name}/w")
    assert (got.payload, got.qos, got.retain, got.dup) == (b"gone", 1, False, False)


@each_version
@pytest.mark.parametrize("session", [False, True])
@spec("3.1.1", "MQTT-3.14.4-3", "MQTT-3.1.2-10")
@spec("5", "MQTT-3.14.4-3", "MQTT-3.1.2-8", "MQTT-3.1.2-10")
def test_deleted_by_disconnect(clients: Clients, broker: TestBroker, name: str, version: int, session: bool) -> None:
    """Also with a delay and a session that ends later, and not revived by a later abnormal end."""
    watcher = watch(clients, version, name)
    for data in (b"\xe0\0", b"\xe0\1\0") if version == 5 else (b"\xe0\0",):
        will = Will(f"{name}/w", props=((WILL_DELAY, 1),) if session else ())
        peer = clients(version, name, clean=not session, expiry=2 if session else 0, will=will)
        peer.send(data)
        assert peer.expect_close() == []
        assert clients.drain(watcher, clients(version, f"{name}-other")) == []
    if session and version == 5:
        broker.advance_clock(3.5)
    clients(version, name, clean=not session).drop()
    assert clients.drain(watcher, clients(version, name)) == []


@each_version
@spec("3.1.1", "MQTT-3.1.2-10", "MQTT-3.1.2-12")
@spec("5", "MQTT-3.1.2-10")
def test_published_once(clients: Clients, name: str, version: int) -> None:
    """The next connection of the session has no will unless it brings one."""
    watcher = watch(clients, version, name)
    clients.session(version, name, will=Will(f"{name}/w", b"first")).drop()
    assert watcher.message().payload == b"first"
    clients.session(version, name, present=True).drop()
    assert clients.drain(watcher, clients.session(version, name, present=True)) == []


@each_version
@spec("3.1.1", "MQTT-3.1.2-12")
@spec("5", "MQTT-3.1.2-7")
def test_no_will_no_message(clients: Clients, name: str, version: int) -> None:
    watcher = clients(version)
    watcher.subscribe("#")
    clients(version, name).drop()
    clients(version, name).reset()
    assert [p for p in clients.drain(watcher, clients(version, name)) if p.topic.startswith(name) or not p.topic] == []


@spec("5", "MQTT-3.1.2-8")
def test_delay(clients: Clients, broker: TestBroker, name: str) -> None:
    watcher = watch(clients, 5, name)
    clients.session(5, name, will=Will(f"{name}/w", b"late", props=((WILL_DELAY, 4),))).drop()
    broker.advance_clock(2.5)
    assert clients.drain(watcher, clients(5)) == []
    broker.advance_clock(3)
    assert watcher.message().payload == b"late"
    assert clients.session(5, name, present=True)


@spec("5", "MQTT-3.1.2-8", "MQTT-4.1.0-2")
@pytest.mark.parametrize("expiry", [0, 1])
def test_delay_ends_with_the_session(clients: Clients, broker: TestBroker, name: str, expiry: int) -> None:
    watcher = watch(clients, 5, name)
    clients(5, name, expiry=expiry, will=Will(f"{name}/w", b"ended", props=((WILL_DELAY, 1000),))).drop()
    if expiry:
        broker.advance_clock(2.5)
    assert watcher.message().payload == b"ended"


@spec("5", "MQTT-3.1.3-9", "MQTT-3.1.2-8")
def test_delay_is_cancelled_by_coming_back(clients: Clients, broker: TestBroker, name: str) -> None:
    watcher = watch(clients, 5, name)
    will = Will(f"{name}/w", b"late", props=((WILL_DELAY, 2),))
    clients.session(5, name, will=will).drop()
    back = clients.session(5, name, present=True)
    broker.advance_clock(4)
    assert clients.drain(watcher, back) == []
    back.drop()
    broker.advance_clock(4)
    assert clients.drain(watcher, clients.session(5, name, present=True)) == []


@spec("5", "MQTT-3.1.3-9", "MQTT-3.1.4-3")
def test_take_over_within_the_delay(clients: Clients, broker: TestBroker, name: str) -> None:
    """A session that goes on cancels the delayed will; one that ends publishes it."""
    watcher = watch(clients, 5, name)
    will = Will(f"{name}/w", b"late", props=((WILL_DELAY, 2),))
    clients.session(5, name, will=will)
    second = clients.session(5, name, present=True, will=will)
    broker.advance_clock(4)
    assert clients.drain(watcher, second) == []
    clients(5, name)
    assert watcher.message().payload == b"late"


@spec("5", "MQTT-3.1.3-9", "MQTT-3.1.2-8", "MQTT-3.1.2-4")
def test_clean_start_within_the_delay(clients: Clients, name: str) -> None:
    """The old session ends, so its will is due."""
    watcher = watch(clients, 5, name)
    clients.session(5, name, will=Will(f"{name}/w", b"late", props=((WILL_DELAY, 1000),))).drop()
    clients(5, name)
    assert watcher.message().payload == b"late"


@spec("5", "MQTT-3.1.2-8", "MQTT-3.14.4-3")
def test_disconnect_with_will_keeps_the_delay(clients: Clients, broker: TestBroker, name: str) -> None:
    watcher = watch(clients, 5, name)
    peer = clients.session(5, name, will=Will(f"{name}/w", b"late", props=((WILL_DELAY, 4),)))
    peer.send(disconnect_packet(4, ((SESSION_EXPIRY, 100),)))
    peer.expect_close()
    broker.advance_clock(2)
    assert clients.drain(watcher, clients(5)) == []
    broker.advance_clock(3.5)
    assert watcher.message().payload == b"late"


@each_version
@spec("3.1.1", "MQTT-3.1.2-8")
@spec("5", "MQTT-3.1.2-7")
def test_payload_is_carried_as_it_is(clients: Clients, name: str, version: int) -> None:
    watcher = watch(clients, version, name)
    payload = bytes(range(256)) * 200
    clients(version, name, will=Will(f"{name}/w", payload, 2)).drop()
    got = watcher.message()
    assert (got.payload, got.qos) == (payload, 2)
