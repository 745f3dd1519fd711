"""Enhanced authentication and re-authentication, with an authenticator that challenges."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from ..rawclient import (
    AUTH,
    AUTH_DATA,
    AUTH_METHOD,
    CONNACK,
    DISCONNECT,
    MAXIMUM_PACKET_SIZE,
    PING,
    PINGRESP,
    REASON_STRING,
    USER_PROPERTY,
    Packet,
    Peer,
    Will,
    connect_packet,
    packet,
    properties,
    publish_packet,
    subscribe_packet,
)
from .conftest import Clients, MakeBroker, TestBroker
from .statements import each_version, spec

pytestmark = pytest.mark.transport

if TYPE_CHECKING:
    from mqttc.auth import Request, Verdict

METHOD = "PONG"


class Challenger:
    """Method PONG: asks "ping" and wants "pong"; "again" is asked anew, "slow" is answered late, all else is refused."""

    async def authenticate(self, request: Request) -> Verdict:
        from mqttc.auth import Verdict

        if request.auth_method is None:
            if request.username == "slow":
                await asyncio.sleep(0.05)
            return Verdict(0x86 if request.username == "bad" else 0)
        if request.auth_method != METHOD:
            return Verdict(0x8C)
        if request.auth_data == b"pong":
            return Verdict(0, b"welcome")
        if not request.is_auth or request.auth_data in (b"start", b"again"):
            return Verdict(0x18, b"ping")
        return Verdict(0x87)


@pytest.fixture(scope="module")
def challenging(make_broker: MakeBroker) -> TestBroker:
    return make_broker(authenticator=Challenger())


def auth_packet(reason: int, data: bytes = b"", method: str | None = METHOD) -> bytes:
    """An AUTH."""
    props: list[tuple[int, object]] = [] if method is None else [(AUTH_METHOD, method)]
    return packet(AUTH << 4, bytes([reason]) + properties([*props, *([(AUTH_DATA, data)] if data else [])]))


def begin(clients: Clients, broker: TestBroker, name: str, *, size: int = 1000, will: Will | None = None) -> Peer:
    """A connection that was asked its question."""
    peer = clients.raw(5, broker)
    peer.send(connect_packet(name, 5, props=((AUTH_METHOD, METHOD), (MAXIMUM_PACKET_SIZE, size)), will=will))
    check_question(peer.expect(AUTH))
    return peer


def check_question(got: Packet) -> None:
    assert (got.type, got.reason, got.prop(AUTH_METHOD), got.prop(AUTH_DATA)) == (AUTH, 0x18, METHOD, b"ping")


def admitted(clients: Clients, broker: TestBroker, name: str, will: Will | None = None) -> Peer:
    """A connection that answered its question well."""
    peer = begin(clients, broker, name, will=will)
    peer.send(auth_packet(0x18, b"pong"))
    assert peer.expect(CONNACK).reason == 0
    return peer


@spec("5", "MQTT-4.12.0-2", "MQTT-4.12.0-5", "MQTT-3.2.0-1", "MQTT-3.2.0-2", "MQTT-3.15.2-1", "MQTT-3.15.1-1")
@pytest.mark.parametrize("rounds", [1, 4])
def test_challenge(clients: Clients, challenging: TestBroker, name: str, rounds: int) -> None:
    """AUTH 0x18 for each question, then CONNACK, all with the method of CONNECT."""
    peer = begin(clients, challenging, name)
    for _ in range(rounds - 1):
        peer.send(auth_packet(0x18, b"again"))
        check_question(peer.recv())
    peer.send(auth_packet(0x18, b"pong"))
    connack = peer.expect(CONNACK, reason=0)
    assert (connack.prop(AUTH_METHOD), connack.prop(AUTH_DATA)) == (METHOD, b"welcome")
    peer.subscribe(name, 1)
    peer.publish(name, b"x", 1)
    assert peer.message().payload == b"x"


@spec("5", "MQTT-4.12.0-4", "MQTT-3.14.0-1", "MQTT-3.2.2-7")
def test_wrong_answer(clients: Clients, challenging: TestBroker, name: str) -> None:
    peer = begin(clients, challenging, name)
    peer.send(auth_packet(0x18, b"pang"))
    assert [(p.type, p.reason, p.session_present) for p in peer.expect_close()] == [(CONNACK, 0x87, False)]


@spec("5", "MQTT-4.12.0-1", "MQTT-3.14.0-1")
def test_unknown_method(clients: Clients, challenging: TestBroker, name: str) -> None:
    peer = clients.raw(5, challenging)
    peer.send(connect_packet(name, 5, props=((AUTH_METHOD, "X"),)))
    assert [(p.type, p.reason) for p in peer.expect_close()] in ([(CONNACK, 0x8C)], [(CONNACK, 0x87)])


@spec("5", "MQTT-3.15.2-2", "MQTT-3.15.2-3")
def test_auth_keeps_to_maximum_packet_size(clients: Clients, challenging: TestBroker, name: str) -> None:
    peer = clients.raw(5, challenging)
    peer.send(connect_packet(name, 5, props=((AUTH_METHOD, METHOD), (MAXIMUM_PACKET_SIZE, 40))))
    got = peer.expect(AUTH)
    check_question(got)
    assert len(got.raw) <= 40
    assert got.prop(REASON_STRING) is None
    assert got.prop(USER_PROPERTY) is None


@spec("5", "MQTT-4.12.0-5", "MQTT-4.12.0-3", "MQTT-3.1.2-30", "MQTT-3.14.0-1", "MQTT-3.15.1-1", "MQTT-3.15.2-1", "MQTT-3.1.0-2")
@pytest.mark.parametrize(
    "data",
    [
        pytest.param(auth_packet(0x18, b"pong", None), id="no-method"),
        pytest.param(auth_packet(0x18, b"pong", "PANG"), id="another-method"),
        pytest.param(auth_packet(0x19, b"pong"), id="re-authenticate"),
        pytest.param(auth_packet(0x00, b"pong"), id="success-from-client"),
        pytest.param(b"\xf1" + auth_packet(0x18, b"pong")[1:], id="flags"),
        pytest.param(b"\xf0\x00", id="bare"),
        pytest.param(PING, id="pingreq"),
        pytest.param(publish_packet("a", b"x", 5, retain=True), id="publish"),
        pytest.param(subscribe_packet([("a", 0)], 5), id="subscribe"),
        pytest.param(connect_packet("c", 5), id="connect"),
    ],
)
def test_what_may_not_come_during_authentication(clients: Clients, challenging: TestBroker, name: str, data: bytes) -> None:
    """CONNACK with an error or a bare close, never DISCONNECT; nothing is done, even if the right answer follows."""
    peer = begin(clients, challenging, name)
    peer.send(data, auth_packet(0x18, b"pong"))
    end = peer.expect_close()
    assert [p.type for p in end] in ([], [CONNACK])
    assert all(p.reason in (0x81, 0x82, 0x87, 0x8C) for p in end)


@spec("5", "MQTT-4.12.0-4", "MQTT-3.14.0-1")
def test_disconnect_during_authentication(clients: Clients, challenging: TestBroker, name: str) -> None:
    watcher = clients(5, broker=challenging)
    watcher.subscribe(f"{name}/w")
    peer = begin(clients, challenging, name, will=Will(f"{name}/w"))
    peer.send("E000")
    assert peer.expect_close() == []
    assert clients.drain(watcher, clients(5, name, broker=challenging)) == []


@spec("5", "MQTT-4.12.1-1", "MQTT-4.12.0-5", "MQTT-3.15.2-1")
def test_reauthentication(clients: Clients, challenging: TestBroker, name: str) -> None:
    """Other packets are served in between; the end of it is AUTH 0x00."""
    peer = admitted(clients, challenging, name)
    peer.subscribe(name, 1)
    for _ in range(2):
        peer.send(auth_packet(0x19, b"start"))
        check_question(peer.expect(AUTH))
        peer.publish(name, b"meanwhile", 1)
        assert peer.message().payload == b"meanwhile"
        peer.ping()
        peer.send(auth_packet(0x18, b"again"))
        check_question(peer.expect(AUTH))
        peer.send(auth_packet(0x18, b"pong"))
        done = peer.expect(AUTH, reason=0)
        assert done.prop(AUTH_METHOD) == METHOD
    peer.ping()


@spec("5", "MQTT-4.12.1-2", "MQTT-4.12.1-1")
@pytest.mark.parametrize(
    ("first", "second", "codes"),
    [
        (auth_packet(0x19, b"start"), auth_packet(0x18, b"pang"), (0x87,)),
        (auth_packet(0x19, b"pang"), None, (0x87,)),
        (auth_packet(0x19, b"start", "PANG"), None, (0x82, 0x8C)),
        (auth_packet(0x19, b"start", None), None, (0x82, 0x8C)),
        (auth_packet(0x18, b"start"), None, (0x82,)),
    ],
    ids=["wrong-answer", "wrong-data", "another-method", "no-method", "not-asked"],
)
def test_failed_reauthentication(
    clients: Clients, challenging: TestBroker, name: str, first: bytes, second: bytes | None, codes: tuple[int, ...]
) -> None:
    """DISCONNECT with the reason; the will goes out."""
    watcher = clients(5, broker=challenging)
    watcher.subscribe(f"{name}/w")
    peer = admitted(clients, challenging, name, will=Will(f"{name}/w"))
    peer.send(first)
    if second is not None:
        check_question(peer.expect(AUTH))
        peer.send(second)
    end = peer.expect_close()
    assert [p.type for p in end] in ([], [DISCONNECT])
    assert all(p.reason in codes for p in end)
    watcher.message(f"{name}/w")


@spec("5", "MQTT-4.12.0-6")
def test_no_method_no_auth(clients: Clients, challenging: TestBroker) -> None:
    peer = clients(5, username="good", password=b"x", broker=challenging)
    assert peer.connack.prop(AUTH_METHOD) is None
    peer.send(auth_packet(0x19, b"start"))
    assert [(p.type, p.reason) for p in peer.expect_close()] in ([(DISCONNECT, 0x82)], [])


@each_version
@spec("3.1.1", "MQTT-3.2.0-1", "MQTT-3.1.4-5")
@spec("5", "MQTT-3.2.0-1", "MQTT-3.1.4-6")
def test_packets_behind_a_connect_that_waits(clients: Clients, challenging: TestBroker, name: str, version: int) -> None:
    """While the decision takes its time nothing is answered; then CONNACK comes first and the rest is served."""
    peers = [clients.raw(version, challenging) for _ in range(5)]
    for i, peer in enumerate(peers):
        peer.send(
            connect_packet(f"{name}-{i}", version, username="slow"),
            subscribe_packet([(f"{name}/{i}", 0)], version),
            publish_packet(f"{name}/{i}", b"x", version),
            PING,
        )
    clients(version, broker=challenging).ping()  # nobody else waits
    for i, peer in enumerate(peers):
        assert peer.expect(CONNACK).reason == 0
        assert peer.await_packet(PINGRESP)
        peer.await_packet(9)
        assert peer.message(f"{name}/{i}").payload == b"x"
    refused = clients.raw(version, challenging)
    refused.send(connect_packet(name, version, username="bad"), PING)
    assert [(p.type, p.reason) for p in refused.expect_close()] == [(CONNACK, 0x86 if version == 5 else 4)]


@each_version
@spec("3.1.1", "MQTT-3.1.4-5")
@spec("5", "MQTT-4.12.0-4", "MQTT-3.14.0-1")
def test_leaving_while_the_decision_is_open(clients: Clients, challenging: TestBroker, name: str, version: int) -> None:
    """A client that goes before it is admitted leaves neither session nor will."""
    watcher = clients(version, broker=challenging)
    watcher.subscribe(f"{name}/w")
    peer = clients.raw(version, challenging)
    peer.send(connect_packet(name, version, username="slow", clean=False, expiry=60, will=Will(f"{name}/w")))
    peer.reset()
    again = clients(version, f"{name}-other", broker=challenging, username="slow")
    assert clients.drain(watcher, again) == []


@spec("5", "MQTT-4.12.0-4", "MQTT-3.14.0-1")
def test_authentication_has_a_deadline(clients: Clients, make_broker: MakeBroker, name: str) -> None:
    broker = make_broker(authenticator=Challenger(), limits={"auth_timeout": 5.0})
    peer = begin(clients, broker, name)
    broker.advance_clock(8)
    end = peer.expect_close()
    assert [p.type for p in end] in ([], [CONNACK])
    assert all(p.reason in (0x87, 0x82, 0x80, 0x88, 0x89) for p in end)
