"""Brokers that send the client elsewhere (section 4.11): told always, followed by choice."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from mqttc import Client, codec
from mqttc.client import Reconnect, State, Tls
from mqttc.client.redirect import MOST_NAMED, SETTLED_S, Servers, named_by
from mqttc.client.url import parse_url
from mqttc.codec import Properties, ReasonCode
from mqttc.errors import ConnectError, ConnectionLostError, DisconnectedError, MqttError, RefusedError
from tests.client.conftest import ScriptedServer, client_url, free_port, listeners, read_packet, run, settled
from tests.conftest import BrokerFactory

ANOTHER, MOVED = ReasonCode.USE_ANOTHER_SERVER, ReasonCode.SERVER_MOVED
AT_ONCE = Reconnect(first_s=0, most_s=0.01)

Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def told(code: int, reference: str | None, refused: bool = True) -> MqttError:
    kind = RefusedError if refused else DisconnectedError
    return kind("", ReasonCode(code), Properties(server_reference=reference) if reference else None)


def names(reference: str, by: str) -> list[str]:
    return [f"{target.scheme}://{target.authority}{target.path}" for target in named_by(reference, parse_url(by))]


@pytest.mark.parametrize(
    ("reference", "by", "found"),
    [
        ("b", "mqtt://a:99", ["mqtt://b:1883"]),
        ("b:7 [::1]:8 10.0.0.1", "mqtts://a", ["mqtts://b:7", "mqtts://[::1]:8", "mqtts://10.0.0.1:8883"]),
        ("b", "wss://a/path?q=1", ["wss://b/path?q=1"]),
        ("mqtts://b wss://c/x quic://d", "mqtt://a", ["mqtts://b:8883", "wss://c/x", "quic://d:14567"]),
        ("mqtt://b ws://c", "mqtts://a", []),
        ("b unix:///s", "unix:///t", ["unix:///s"]),
        ("unix:///s", "mqtt://a", []),
        ("b:99999 ::1 b/x http://b ok", "mqtt://a", ["mqtt://ok:1883"]),
        ("", "mqtt://a", []),
    ],
)
def test_what_a_reference_names(reference: str, by: str, found: list[str]) -> None:
    made = names(reference, by)
    assert [name.replace("unix://:0", "unix://") for name in made] == found
    assert len(named_by("b " * 100, parse_url("mqtt://a"))) == MOST_NAMED


def test_for_now_and_for_ever() -> None:
    servers = Servers(parse_url("mqtt://a"), 5)
    servers.accepted(0)
    assert servers.refer(told(ANOTHER, "b", refused=False), 1) and servers.target.host == "b"
    servers.accepted(1)
    servers.ended()
    assert servers.target.host == "a"
    assert servers.refer(told(MOVED, "c"), 2) and servers.target.host == "c"
    servers.accepted(3)
    servers.ended()
    assert servers.target.host == "c"


def test_those_that_are_not_there_are_passed_over() -> None:
    servers = Servers(parse_url("mqtt://a"), 5)
    assert servers.refer(told(MOVED, "b c"), 0)
    assert servers.failed() and servers.target.host == "c"
    assert not servers.failed() and servers.target.host == "a"


def test_a_circle_ends() -> None:
    servers = Servers(parse_url("mqtt://a"), 3)
    for now, host in enumerate("bab"):
        servers.accepted(now)
        assert servers.refer(told(ANOTHER, host, refused=False), now) and servers.target.host == host
    servers.accepted(4)
    assert not servers.refer(told(ANOTHER, "a", refused=False), 4 + SETTLED_S / 2)
    assert servers.refer(told(ANOTHER, "a", refused=False), 4 + SETTLED_S)


@pytest.mark.parametrize(
    "error", [None, told(ANOTHER, None), told(ReasonCode.SERVER_BUSY, "b"), ConnectionLostError(""), told(ANOTHER, "mqtt://x y://z /")]
)
def test_what_names_nobody(error: MqttError | None) -> None:
    assert not Servers(parse_url("mqtts://a"), 3).refer(error, 0)


# ---------------------------------------------------------------------------------------------------- with brokers


def refusing(reference: Callable[[], str], code: int = ANOTHER) -> Script:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_packet(reader)
        writer.write(codec.encode(codec.Connack(code, properties=Properties(server_reference=reference())), 5))
        await writer.drain()

    return script


def accepting(reference: Callable[[], str], code: int = ANOTHER) -> Script:
    """DISCONNECT follows when the first PUBLISH has come."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_packet(reader)
        writer.write(codec.encode(codec.Connack(), 5))
        await read_packet(reader)
        writer.write(codec.encode(codec.Disconnect(code, properties=Properties(server_reference=reference())), 5))
        await writer.drain()

    return script


def test_by_default_it_is_told_and_not_followed(url: str) -> None:
    where = url.split("//")[1]

    async def work() -> None:
        async with ScriptedServer(refusing(lambda: where)) as server:
            client = Client(server.url)
            with pytest.raises(RefusedError) as refused:
                await client.connect()
            assert (refused.value.reason_code, refused.value.server_reference) == (ANOTHER, where)
        async with ScriptedServer(accepting(lambda: where)) as server:
            client = Client(server.url)
            await client.connect()
            await client.publish("a", wait=False)
            await client.wait_for(State.CLOSED)
            assert isinstance(client.error, DisconnectedError) and client.error.server_reference == where
            assert client.stats.redirects == 0

    run(work())


@pytest.mark.parametrize("make", [refusing, accepting])
def test_followed(make: Callable[..., Script], url: str) -> None:
    """What was published and subscribed is at the other broker then."""
    where = url.split("//")[1]

    async def work() -> None:
        async with ScriptedServer(make(lambda: where)) as server, Client(server.url, redirects=1, reconnect=AT_ONCE) as client:
            if make is accepting:
                await client.publish("a", wait=False)
            await settled(lambda: client.server.endswith(where) and client.connected)
            await client.subscribe("t", 1)
            await client.publish("t", b"x", 1)
            assert (await client.get()).payload == b"x"
            assert client.stats.redirects == 1

    run(work())


def test_our_broker_sends_elsewhere(broker_factory: BrokerFactory, pki: Path, tmp_path: Path) -> None:
    """Over TLS, to a port that is dead and then to one that is not."""
    there = client_url(broker_factory({"listeners": listeners(pki, tmp_path, "mqtts")}), "mqtts")
    [listener] = listeners(pki, tmp_path, "mqtts")
    reference = f"localhost:{free_port()} {there.split('//')[1]}"
    here = client_url(broker_factory({"listeners": [{**listener, "server_reference": reference}]}), "mqtts")

    async def work() -> None:
        tls = Tls(ca_file=pki / "ca.pem")
        with pytest.raises(RefusedError, match="0x9c"):
            await Client(here, tls=tls).connect()
        async with Client(here, tls=tls, redirects=2) as client:
            assert client.server == there
            await client.publish("t", b"x", 1)

    run(work())


def test_two_that_send_to_each_other() -> None:
    async def work() -> None:
        servers: list[ScriptedServer] = []
        one = ScriptedServer(refusing(lambda: f"127.0.0.1:{servers[1].port}"))
        other = ScriptedServer(refusing(lambda: f"127.0.0.1:{servers[0].port}"))
        async with one, other:
            servers += [one, other]
            client = Client(one.url, redirects=5)
            with pytest.raises(RefusedError):
                await client.connect()
            assert client.stats.redirects == 5 and one.connections + other.connections == 6

    run(work())


@pytest.mark.parametrize("code", [ANOTHER, MOVED])
def test_back_again_or_not(code: int) -> None:
    """The other broker drops the connection: after 0x9C the first one is asked again, after 0x9D it is not."""

    async def drops(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_packet(reader)
        writer.write(codec.encode(codec.Connack(), 5))
        await writer.drain()

    async def work() -> None:
        async with ScriptedServer(drops) as there, ScriptedServer(refusing(lambda: f"127.0.0.1:{there.port}", code)) as here:
            async with Client(here.url, redirects=1, reconnect=AT_ONCE):
                await settled(lambda: there.connections >= 3)
                asked = here.connections
            assert asked >= 2 if code == ANOTHER else asked == 1

    run(work())


def test_nobody_is_where_it_is_sent() -> None:
    async def work() -> None:
        async with ScriptedServer(refusing(lambda: f"127.0.0.1:{free_port()}")) as server:
            with pytest.raises(ConnectError, match="refused"):
                await Client(server.url, redirects=1).connect()

    run(work())
