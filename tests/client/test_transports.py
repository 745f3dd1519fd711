"""The client over every road, with our broker and with Debian's mosquitto; and what is said when a road is closed."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from mqttc import Client, codec
from mqttc.client import Tls
from mqttc.client.dial import Info, connect_tcp, race, resolve
from mqttc.client.state import State
from mqttc.errors import ClosedError, ConnectError, ConnectionLostError
from tests.client.conftest import SCHEMES, Mosquitto, ScriptedServer, client_url, free_port, listeners, read_packet, run, settled
from tests.conformance.statements import spec
from tests.conftest import BrokerFactory

VERSIONS = (3, 4, 5)
MOSQUITTO_SCHEMES = ("mqtt", "mqtts", "ws", "wss", "unix")


async def exchange(url: str, most: int = 300_000, **options: Any) -> None:
    """Every QoS, small and large, both ways."""
    async with Client(url, **options) as client:
        assert client.state is State.CONNECTED
        subscription = await client.subscribe("road/#", qos=2)
        assert subscription.reason_codes == (2,)
        bodies = [b"", b"x" * 100, bytes(range(256)) * (most // 256)]
        for qos in (0, 1, 2):
            for body in bodies:
                await client.publish("road/to", body, qos)
        got = [await anext(client) for _ in range(9)]
        assert sorted((message.qos, message.payload) for message in got) == sorted((qos, body) for qos in (0, 1, 2) for body in bodies)
        assert {message.topic for message in got} == {"road/to"}
    assert client.state is State.CLOSED and client.error is None


@spec("3.1.1", "MQTT-7.1.2-1")
@spec("5", "MQTT-4.2.0-1")
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_our_broker(scheme: str, version: int, broker_factory: BrokerFactory, pki: Path, tmp_path: Path) -> None:
    broker = broker_factory({"listeners": listeners(pki, tmp_path, scheme)})
    run(exchange(client_url(broker, scheme), version=version, tls=Tls(ca_file=pki / "ca.pem")))


@spec("3.1.1", "MQTT-7.0.0-2", "MQTT-7.1.2-1")
@spec("5", "MQTT-4.2.0-1")
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("scheme", MOSQUITTO_SCHEMES)
def test_mosquitto(scheme: str, version: int, mosquitto: Mosquitto, pki: Path) -> None:
    most = 10_000 if scheme in ("ws", "wss") else 300_000  # 2.0.11 leaves the rest of a larger one lying, until something else comes
    run(exchange(mosquitto.url(scheme), most, version=version, tls=Tls(ca_file=pki / "ca.pem")))


@pytest.mark.parametrize("version", VERSIONS)
def test_our_broker_over_http2(version: int, broker_factory: BrokerFactory, pki: Path, tmp_path: Path) -> None:
    broker = broker_factory({"listeners": listeners(pki, tmp_path, "wss")})
    run(exchange(client_url(broker, "wss"), version=version, http2=True, tls=Tls(ca_file=pki / "ca.pem")))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_on_uvloop(scheme: str, broker_factory: BrokerFactory, pki: Path, tmp_path: Path) -> None:
    uvloop = pytest.importorskip("uvloop")
    broker = broker_factory({"listeners": listeners(pki, tmp_path, scheme)})
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(exchange(client_url(broker, scheme), tls=Tls(ca_file=pki / "ca.pem")))


# ---------------------------------------------------------------------------------------------------- TLS


@pytest.mark.parametrize("scheme", ["mqtts", "wss", "quic"])
def test_a_certificate_that_nobody_vouches_for(scheme: str, broker_factory: BrokerFactory, pki: Path, tmp_path: Path) -> None:
    broker = broker_factory({"listeners": listeners(pki, tmp_path, scheme)})

    async def work() -> None:
        with pytest.raises(ConnectError, match=r"(?i)certificate"):
            await Client(client_url(broker, scheme), connect_timeout_s=10).connect()

    run(work())


@pytest.mark.parametrize("scheme", ["mqtts", "wss"])
def test_a_certificate_for_another_host(scheme: str, broker_factory: BrokerFactory, pki: Path, tmp_path: Path) -> None:
    broker = broker_factory({"listeners": listeners(pki, tmp_path, scheme)})

    async def work() -> None:
        with pytest.raises(ConnectError, match=r"(?i)hostname mismatch"):
            await Client(client_url(broker, scheme), tls=Tls(ca_file=pki / "ca.pem", server_name="other.example")).connect()

    run(work())


@pytest.mark.parametrize("scheme", ["mqtts", "wss", "quic"])
def test_client_certificate(scheme: str, broker_factory: BrokerFactory, pki: Path, tmp_path: Path) -> None:
    [listener] = listeners(pki, tmp_path, scheme)
    required = {**listener, "client_ca": str(pki / "ca.pem"), "client_certificate": "required", "anonymous": True}
    broker = broker_factory({"listeners": [required]})
    own = Tls(ca_file=pki / "ca.pem", certificate_file=pki / "device.pem", key_file=pki / "device.key")

    async def work() -> None:
        async with Client(client_url(broker, scheme), tls=own) as client:
            await client.publish("t", b"x", 1)
        with pytest.raises(ConnectError):
            await Client(client_url(broker, scheme), tls=Tls(ca_file=pki / "ca.pem")).connect()

    run(work())


def test_an_ssl_context_of_ones_own(broker_factory: BrokerFactory, pki: Path, tmp_path: Path) -> None:
    broker = broker_factory({"listeners": listeners(pki, tmp_path, "mqtts", "quic")})
    context = ssl.create_default_context(cafile=pki / "ca.pem")

    async def work() -> None:
        async with Client(client_url(broker, "mqtts"), tls=context) as client:
            await client.publish("t", b"x", 1)
        with pytest.raises(ConnectError, match="QUIC takes Tls"):
            await Client(client_url(broker, "quic"), tls=context).connect()

    run(work())


def test_files_that_cannot_be_used_are_named(tmp_path: Path, url: str) -> None:
    async def work() -> None:
        with pytest.raises(ConnectError, match=r"missing\.pem"):
            await Client(url.replace("mqtt:", "mqtts:"), tls=Tls(ca_file=tmp_path / "missing.pem")).connect()

    run(work())


def test_verification_can_be_turned_off(broker_factory: BrokerFactory, pki: Path, tmp_path: Path) -> None:
    broker = broker_factory({"listeners": listeners(pki, tmp_path, "mqtts", "wss", "quic")})

    async def work() -> None:
        for scheme in ("mqtts", "wss", "quic"):
            async with Client(client_url(broker, scheme), tls=Tls(verify=False)) as client:
                await client.publish("t", b"x", 1)

    run(work())


# ---------------------------------------------------------------------------------------------------- WebSocket


async def answer_http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
    await writer.drain()


async def answer_nonsense(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(1)
    writer.write(b"SSH-2.0-server\r\n\r\n")
    await writer.drain()
    await reader.read()


async def answer_without_subprotocol(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    from wsproto.utilities import generate_accept_token

    head = await reader.readuntil(b"\r\n\r\n")
    key = next(line.split(b": ")[1] for line in head.split(b"\r\n") if line.lower().startswith(b"sec-websocket-key"))
    token = generate_accept_token(key)
    writer.write(b"HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: " + token + b"\r\n\r\n")
    await writer.drain()
    await reader.read()


async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(1)


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (answer_http, "status 404"),
        (answer_nonsense, "does not speak WebSocket"),
        (answer_without_subprotocol, "subprotocol mqtt"),
        (hang_up, "during the WebSocket handshake"),
    ],
)
def test_a_websocket_handshake_that_fails(script: Any, said: str) -> None:
    async def work() -> None:
        async with ScriptedServer(script) as server:
            with pytest.raises(ConnectError, match=said):
                await Client(f"ws://127.0.0.1:{server.port}/mqtt").connect()

    run(work())


@spec("3.1.1", "MQTT-6.0.0-3")
@spec("5", "MQTT-6.0.0-3")
def test_the_websocket_request_says_what_it_is_told(url: str) -> None:
    """Path and query, host, our headers, and the subprotocol mqtt [MQTT-6.0.0-3]."""
    heads: list[bytes] = []

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))

    async def work() -> None:
        async with ScriptedServer(script) as server:
            with pytest.raises(ConnectError):
                await Client(f"ws://127.0.0.1:{server.port}/a/b?c=d", headers={"X-Token": "abc"}).connect()
            lines = heads[0].decode().lower().split("\r\n")
            assert lines[0] == "get /a/b?c=d http/1.1"
            assert f"host: 127.0.0.1:{server.port}" in lines
            assert "x-token: abc" in lines and "sec-websocket-protocol: mqtt" in lines

    run(work())


def websocket_script(frames: list[tuple[str, bytes]], got: list[bytes]) -> Any:
    """Answers the handshake and CONNECT, sends these frames, and notes what comes."""
    from wsproto import ConnectionType, WSConnection
    from wsproto.events import AcceptConnection, BytesMessage, CloseConnection, Ping, Request, TextMessage

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = WSConnection(ConnectionType.SERVER)
        while data := await reader.read(65536):
            connection.receive_data(data)
            for event in connection.events():
                if isinstance(event, Request):
                    writer.write(connection.send(AcceptConnection(subprotocol="mqtt")))
                elif isinstance(event, BytesMessage):
                    got.append(bytes(event.data))
                    for kind, body in frames if len(got) == 1 else []:
                        made = BytesMessage(body) if kind == "bytes" else TextMessage("x") if kind == "text" else Ping(body)
                        writer.write(connection.send(made))
                elif isinstance(event, CloseConnection):
                    got.append(b"close %d" % event.code)
                else:
                    got.append(type(event).__name__.encode())
            await writer.drain()

    return script


@spec("3.1.1", "MQTT-6.0.0-1", "MQTT-6.0.0-2")
@spec("5", "MQTT-6.0.0-1", "MQTT-6.0.0-2")
def test_packets_do_not_keep_to_frames() -> None:
    """CONNACK and two messages in frames of a byte, then a message in one frame with half of the next; pings are answered in between."""
    stream = codec.encode(codec.Connack(), 5) + b"".join(codec.encode(codec.Publish("t", b"%d" % n), 5) for n in range(4))
    frames = [("bytes", stream[n : n + 1]) for n in range(15)] + [("ping", b"!"), ("bytes", stream[15:30]), ("bytes", stream[30:])]
    got: list[bytes] = []

    async def work() -> None:
        async with ScriptedServer(websocket_script(frames, got)) as server:
            async with Client(f"ws://127.0.0.1:{server.port}") as client:
                assert [(await client.get()).text for _ in range(4)] == ["0", "1", "2", "3"]
                await settled(lambda: b"Pong" in got)
            await settled(lambda: bytes.fromhex("e0 00") in got)

    run(work())
    assert got[0][:1] == b"\x10"  # CONNECT, and at last DISCONNECT, came in binary frames


@spec("3.1.1", "MQTT-6.0.0-1")
@spec("5", "MQTT-6.0.0-1")
def test_a_text_frame_ends_the_connection() -> None:
    got: list[bytes] = []

    async def work() -> None:
        script = websocket_script([("bytes", codec.encode(codec.Connack(), 5)), ("text", b"")], got)
        async with ScriptedServer(script) as server:
            client = Client(f"ws://127.0.0.1:{server.port}", reconnect=None)
            await client.connect()
            await client.wait_for(State.CLOSED)
            assert isinstance(client.error, ConnectionLostError)
            await settled(lambda: b"close 1003" in got)

    run(work())


# ---------------------------------------------------------------------------------------------------- dialling


def test_what_does_not_speak_mqtt() -> None:
    async def work() -> None:
        async with ScriptedServer(answer_nonsense) as server:
            with pytest.raises(ConnectError, match="does not speak MQTT"):
                await Client(server.url).connect()

    run(work())


def test_nobody_listens(tmp_path: Path) -> None:
    async def work() -> None:
        for url in (f"mqtt://127.0.0.1:{free_port()}", f"ws://127.0.0.1:{free_port()}", f"unix://{tmp_path}/none", f"quic://127.0.0.1:{free_port()}"):
            with pytest.raises(ConnectError, match=r"(?i)refused|no such file"):
                await Client(url).connect()

    run(work())


@pytest.mark.parametrize("scheme", ["mqtt", "ws", "mqtts"])
def test_the_deadline_covers_every_handshake(scheme: str) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async def work() -> None:
        async with ScriptedServer(silent) as server:
            with pytest.raises(TimeoutError, match=r"no answer within 0\.2 s"):
                await Client(f"{scheme}://127.0.0.1:{server.port}", connect_timeout_s=0.2).connect()

    run(work())


def test_the_deadline_of_quic() -> None:
    silent = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    silent.bind(("127.0.0.1", 0))

    async def work() -> None:
        with pytest.raises(TimeoutError, match=r"no answer within 0\.2 s"):
            await Client(f"quic://127.0.0.1:{silent.getsockname()[1]}", connect_timeout_s=0.2).connect()

    try:
        run(work())
    finally:
        silent.close()


def scripted(outcomes: dict[str, Callable[[], Awaitable[str]]]) -> Callable[[Info], Awaitable[str]]:
    return lambda info: outcomes[info[1][0]]()


async def never() -> str:
    await asyncio.Event().wait()
    raise AssertionError


async def refused() -> str:
    raise ConnectionRefusedError("no")


def infos(*names: str) -> list[Info]:
    return [(socket.AF_INET, (name, 1)) for name in names]


def test_happy_eyeballs_goes_on_when_one_hangs() -> None:
    async def good() -> str:
        return "good"

    async def work() -> None:
        hung = scripted({"a": never, "b": good})
        assert await race(infos("a", "b"), hung, lambda _: None, delay_s=0.01) == "good"

    run(work())


def test_happy_eyeballs_does_not_wait_after_a_failure() -> None:
    async def good() -> str:
        return "good"

    async def work() -> None:
        assert await race(infos("a", "b"), scripted({"a": refused, "b": good}), lambda _: None, delay_s=3600) == "good"
        with pytest.raises(ConnectionRefusedError):
            await race(infos("a", "b"), scripted({"a": refused, "b": refused}), lambda _: None, delay_s=3600)

    run(work())


def test_happy_eyeballs_tell_what_was_answered() -> None:
    """An address that leads nowhere is no news where another one's peer has no good certificate."""

    async def distrusted() -> str:
        raise ConnectError("certificate")

    async def nobody() -> str:
        raise ConnectError("nobody") from ConnectionRefusedError()

    async def work() -> None:
        for silent in (refused, nobody):
            with pytest.raises(ConnectError, match="certificate"):
                await race(infos("a", "b"), scripted({"a": silent, "b": distrusted}), lambda _: None, delay_s=3600)

    run(work())


def test_happy_eyeballs_drops_who_comes_second() -> None:
    dropped: list[str] = []

    async def work() -> None:
        gate = asyncio.Event()

        async def late(name: str) -> str:
            try:
                await gate.wait()
            except asyncio.CancelledError:
                return name  # connected in the very moment in which it was given up
            return name

        async def good() -> str:
            return "good"

        found = await race(infos("a", "b"), scripted({"a": lambda: late("a"), "b": good}), dropped.append, delay_s=0.01)
        assert found == "good"
        await settled(lambda: bool(dropped))
        assert dropped == ["a"]

    run(work())


def test_families_alternate(monkeypatch: pytest.MonkeyPatch) -> None:
    six, four = socket.AF_INET6, socket.AF_INET
    found = [(six, 0, 0, "", ("::1", 1)), (six, 0, 0, "", ("::2", 1)), (four, 0, 0, "", ("1.1.1.1", 1)), (four, 0, 0, "", ("2.2.2.2", 1))]

    async def work() -> None:
        async def look_up(*args: Any, **options: Any) -> Any:
            return found

        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", look_up)
        order = [address[0] for _, address in await resolve("name", 1, socket.SOCK_STREAM)]
        assert order == ["::1", "1.1.1.1", "::2", "2.2.2.2"]

    run(work())


def test_an_address_that_hangs_is_passed_over(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A listener whose backlog is full neither accepts nor refuses."""
    full = socket.create_server(("127.0.0.1", 0), backlog=0)
    port = int(url.rpartition(":")[2])
    fillers = []
    for _ in range(3):
        filler = socket.socket()
        filler.setblocking(False)
        filler.connect_ex(full.getsockname())
        fillers.append(filler)

    async def work() -> None:
        async def look_up(*args: Any, **options: Any) -> Any:
            return [(socket.AF_INET, 0, 0, "", full.getsockname()), (socket.AF_INET, 0, 0, "", ("127.0.0.1", port))]

        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", look_up)
        connected = await connect_tcp("two", port)
        assert connected.getpeername() == ("127.0.0.1", port)
        connected.close()

    try:
        run(work())
    finally:
        for filler in fillers:
            filler.close()
        full.close()


def test_a_refused_connection_does_not_hold_up_what_is_closed() -> None:
    """`close` while the first packet is awaited."""

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_packet(reader)
        await reader.read()

    async def work() -> None:
        async with ScriptedServer(silent) as server:
            client = Client(server.url)
            connecting = asyncio.create_task(client.connect())
            await settled(lambda: server.connections == 1)
            await client.close()
            with pytest.raises(ClosedError):
                await connecting
            assert client.state is State.CLOSED

    run(work())
