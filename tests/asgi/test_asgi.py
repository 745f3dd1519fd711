"""MQTT over WebSocket in applications of Starlette, FastAPI and Channels, under uvicorn and hypercorn."""

from __future__ import annotations

import asyncio
import base64
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from mqttc import Broker, ConfigError, SyncClient
from mqttc.asgi import AsgiApp, MqttLifespan, MqttMiddleware, MqttWebSocket, lifespan
from mqttc.cli.broker import main
from mqttc.errors import BrokerError, RefusedError
from tests.broker.conftest import eventually

from .conftest import Serve

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
PROGRAMS = sorted(EXAMPLES.glob("asgi_*.py"))
OPEN = {"listeners": [{"url": "asgi://"}], "auth": {"anonymous": True}}


def config(**listener: Any) -> dict[str, Any]:
    return {"listeners": [{"url": "asgi://", **listener}], "auth": {"anonymous": True}}


def starlette_app(broker: Broker) -> AsgiApp:
    from starlette.applications import Starlette
    from starlette.responses import PlainTextResponse
    from starlette.routing import Mount, Route, WebSocketRoute

    async def hello(request: Any) -> PlainTextResponse:
        return PlainTextResponse("hello")

    routes = [Route("/", hello), WebSocketRoute("/mqtt", MqttWebSocket(broker)), Mount("/below", MqttWebSocket(broker))]
    return Starlette(routes=routes, lifespan=lifespan(broker))


def fastapi_app(broker: Broker) -> AsgiApp:
    from fastapi import FastAPI
    from starlette.routing import WebSocketRoute

    app = FastAPI(routes=[WebSocketRoute("/mqtt", MqttWebSocket(broker))], lifespan=lifespan(broker))

    @app.get("/")
    async def hello() -> str:
        return "hello"

    return app


def channels_app(broker: Broker) -> AsgiApp:
    from channels.routing import ProtocolTypeRouter, URLRouter
    from django.conf import settings
    from django.urls import path

    if not settings.configured:
        settings.configure()

    async def hello(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"hello"})

    sockets = URLRouter([path("mqtt", MqttWebSocket(broker))])
    return ProtocolTypeRouter({"websocket": sockets, "http": hello, "lifespan": MqttLifespan(broker)})


def plain_app(broker: Broker) -> AsgiApp:
    """One that knows nothing of lifespan events."""

    async def hello(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"hello"})

    return MqttMiddleware(hello, broker)


APPS = {"starlette": starlette_app, "fastapi": fastapi_app, "channels": channels_app, "plain": plain_app}


@pytest.mark.parametrize("framework", APPS)
def test_messages_pages_and_the_life_of_both(serve: Serve, framework: str) -> None:
    for module in {"plain": (), "fastapi": ("fastapi",), "channels": ("channels", "django")}.get(framework, (framework,)):
        pytest.importorskip(module)
    broker = Broker(OPEN)
    large = os.urandom(300_000)
    with serve(APPS[framework](broker)) as address:
        with SyncClient(f"ws://{address}/mqtt", version=5) as one, SyncClient(f"ws://{address}/mqtt", version=4) as other:
            assert broker.running
            other.subscribe("rooms/#", qos=1)
            for payload in (b"21.5", b"", large):
                assert one.publish("rooms/1", payload, qos=1).reason_code == 0
                assert other.get(10).payload == payload
        with urllib.request.urlopen(f"http://{address}/", timeout=10) as answer:
            assert b"hello" in answer.read()
        eventually(lambda: broker.stats()["connections_open"] == 0)
        assert broker.stats()["disconnects_clean"] == 2
    assert not broker.running


def test_a_broker_that_runs_already_is_left_to_its_owner(served_by_uvicorn: Serve) -> None:
    with Broker(OPEN) as broker:
        with served_by_uvicorn(plain_app(broker)) as address, SyncClient(f"ws://{address}/mqtt"):
            pass
        assert broker.running


def test_stopped_broker_says_goodbye_through_the_server(served_by_uvicorn: Serve) -> None:
    broker = Broker(OPEN)
    with served_by_uvicorn(endpoint_only(broker)) as address:
        broker.start()
        with Peer(address) as peer:
            peer.frame(0x2, CONNECT)
            assert peer.next() == (0x2, b"\x20\x02\x00\x00")
            broker.stop()
            opcode, payload = peer.next()
            assert opcode == 0x8 and payload[:2] == (1001).to_bytes(2, "big")


def endpoint_only(broker: Broker) -> AsgiApp:
    endpoint = MqttWebSocket(broker)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            while True:
                kind = (await receive())["type"]
                await send({"type": f"{kind}.complete"})
                if kind == "lifespan.shutdown":
                    return
        await endpoint(scope, receive, send)

    return app


CONNECT = b"\x10\x0d\x00\x04MQTT\x04\x02\x00\x00\x00\x01a"


class Peer:
    """A WebSocket client of a few lines: what it sends is exactly what it is told."""

    def __init__(self, address: str, *headers: str, protocol: str = "mqtt", path: str = "/mqtt") -> None:
        host, _, port = address.rpartition(":")
        self.socket = socket.create_connection((host, int(port)), timeout=10)
        lines = [f"GET {path} HTTP/1.1", f"Host: {address}", "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13"]
        lines += ["Sec-WebSocket-Key: " + base64.b64encode(bytes(16)).decode(), *headers]
        if protocol:
            lines.append(f"Sec-WebSocket-Protocol: {protocol}")
        self.socket.sendall("\r\n".join([*lines, "", ""]).encode())
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            part = self.socket.recv(1)
            assert part, head
            head += part
        self.status = int(head.split()[1])
        self.head = head.decode().lower()

    def frame(self, opcode: int, payload: bytes) -> None:
        assert len(payload) < 126
        self.socket.sendall(bytes((0x80 | opcode, 0x80 | len(payload))) + bytes(4) + payload)

    def next(self) -> tuple[int, bytes]:
        first, length = self._exactly(2)
        return first & 15, self._exactly(length)

    def _exactly(self, n: int) -> bytes:
        data = b""
        while len(data) < n:
            part = self.socket.recv(n - len(data))
            assert part, "the connection has ended"
            data += part
        return data

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()


@pytest.mark.parametrize("protocol", ["mqtt", "mqttv3.1", "chat, mqtt"])
def test_sub_protocol_is_chosen(served_by_uvicorn: Serve, protocol: str) -> None:
    with served_by_uvicorn(plain_app(Broker(OPEN))) as address, Peer(address, protocol=protocol) as peer:
        assert peer.status == 101
        assert f"sec-websocket-protocol: {'mqttv3.1' if protocol == 'mqttv3.1' else 'mqtt'}\r\n" in peer.head


@pytest.mark.parametrize("protocol", ["", "chat"])
def test_no_sub_protocol_of_ours_is_refused(served_by_uvicorn: Serve, protocol: str) -> None:
    broker = Broker(OPEN)
    with served_by_uvicorn(plain_app(broker)) as address:
        with Peer(address, protocol=protocol) as peer:
            assert peer.status == 403
        assert broker.stats()["accepted"] == 0


def test_packets_in_pieces_and_several_in_a_message(served_by_uvicorn: Serve) -> None:
    with served_by_uvicorn(plain_app(Broker(OPEN))) as address, Peer(address) as peer:
        for byte in CONNECT:
            peer.frame(0x2, bytes([byte]))
        assert peer.next() == (0x2, b"\x20\x02\x00\x00")
        peer.frame(0x2, b"\xc0\x00" * 3)
        got = b""
        while len(got) < 6:
            got += peer.next()[1]
        assert got == b"\xd0\x00" * 3


def test_text_closes_with_1003(served_by_uvicorn: Serve) -> None:
    broker = Broker(OPEN)
    with served_by_uvicorn(plain_app(broker)) as address, Peer(address) as peer:
        peer.frame(0x1, b"hello")
        opcode, payload = peer.next()
        assert opcode == 0x8 and payload[:2] == (1003).to_bytes(2, "big")
        eventually(lambda: broker.stats()["connections_open"] == 0)


def test_protocol_error_ends_this_connection_alone(served_by_uvicorn: Serve) -> None:
    broker = Broker(OPEN)
    with served_by_uvicorn(plain_app(broker)) as address, SyncClient(f"ws://{address}/mqtt") as other, Peer(address) as peer:
        peer.frame(0x2, b"\xc0\x00")  # before CONNECT
        assert peer.next()[0] == 0x8
        other.publish("still/here", b"", qos=1)


def test_allowed_origins(served_by_uvicorn: Serve) -> None:
    broker = Broker(config(allowed_origins=["https://good.example"]))
    with served_by_uvicorn(plain_app(broker)) as address:
        for origin, status in (("https://good.example", 101), (f"http://{address}", 101), ("https://bad.example", 403)):
            with Peer(address, f"Origin: {origin}") as peer:
                assert peer.status == status, origin


@pytest.mark.parametrize("header", ["X-Forwarded-For: 127.0.0.1", "Origin: https://elsewhere.example"])
def test_loopback_rule_does_not_hold_for_what_is_handed_on(served_by_uvicorn: Serve, header: str) -> None:
    """A proxy's client, or a page from elsewhere, is no program of this machine."""
    broker = Broker({"listeners": [{"url": "asgi://"}], "auth": {"anonymous": "loopback"}})
    with served_by_uvicorn(plain_app(broker)) as address, Peer(address) as local, Peer(address, header) as remote:
        local.frame(0x2, CONNECT)
        remote.frame(0x2, CONNECT)
        assert local.next() == (0x2, b"\x20\x02\x00\x00")
        assert remote.next() == (0x2, b"\x20\x02\x00\x05")


def test_limit_of_connections(served_by_uvicorn: Serve) -> None:
    broker = Broker(config(max_connections=1))
    with served_by_uvicorn(plain_app(broker)) as address, Peer(address) as first:
        first.frame(0x2, CONNECT)
        assert first.next() == (0x2, b"\x20\x02\x00\x00")
        with Peer(address) as second:
            if second.status == 101:
                assert second.next()[0] == 0x8
            else:
                assert second.status == 403
        first.frame(0x2, b"\xc0\x00")
        assert first.next() == (0x2, b"\xd0\x00")


def test_client_that_vanishes_leaves_its_will(served_by_uvicorn: Serve) -> None:
    broker = Broker(OPEN)
    with served_by_uvicorn(plain_app(broker)) as address, SyncClient(f"ws://{address}/mqtt") as watcher:
        watcher.subscribe("wills")
        peer = Peer(address)
        peer.frame(0x2, b"\x10\x19\x00\x04MQTT\x04\x06\x00\x00\x00\x01b\x00\x05wills\x00\x03bye")
        assert peer.next() == (0x2, b"\x20\x02\x00\x00")
        peer.socket.close()
        assert watcher.get(10).payload == b"bye"


def test_reader_that_does_not_read_holds_nobody_up(served_by_uvicorn: Serve) -> None:
    """Its messages wait in the broker's bounded queue, as anywhere."""
    broker = Broker(OPEN | {"limits": {"max_output_bytes": 1 << 20}})
    with served_by_uvicorn(plain_app(broker)) as address, SyncClient(f"ws://{address}/mqtt") as writer, Peer(address) as reader:
        reader.frame(0x2, CONNECT)
        reader.next()
        reader.frame(0x2, b"\x82\x06\x00\x01\x00\x01f\x00")
        reader.next()
        block = bytes(200_000)
        while broker.stats()["dropped_output_full"] == 0:
            writer.publish("f", block)
            writer.publish("other", b"", qos=1)  # a fence


def test_plain_request_is_told_to_upgrade(served_by_uvicorn: Serve) -> None:
    with served_by_uvicorn(starlette_app(Broker(OPEN))) as address:
        with pytest.raises(urllib.error.HTTPError) as told:
            urllib.request.urlopen(f"http://{address}/below/", timeout=10)
        assert told.value.code == 426
        told.value.close()


def test_broker_that_cannot_start_fails_the_start_of_the_application() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        broker = Broker({"listeners": [{"url": "asgi://"}, {"url": f"tcp://127.0.0.1:{port}"}]})
        sent: list[Any] = []

        async def main() -> None:
            incoming = iter([{"type": "lifespan.startup"}])

            async def receive() -> Any:
                return next(incoming)

            async def send(message: Any) -> None:
                sent.append(message)

            await plain_app(broker)({"type": "lifespan"}, receive, send)

        asyncio.run(main())
        assert [message["type"] for message in sent] == ["lifespan.startup.failed"] and str(port) in sent[0]["message"]
        assert not broker.running


def test_application_that_fails_to_start_stops_the_broker() -> None:
    broker = Broker(OPEN)
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        assert broker.running
        await send({"type": "lifespan.startup.failed", "message": "no database"})

    async def main() -> None:
        async def receive() -> Any:
            return {"type": "lifespan.startup"}

        async def send(message: Any) -> None:
            sent.append(message)

        await MqttMiddleware(app, broker)({"type": "lifespan"}, receive, send)

    asyncio.run(main())
    assert [message["type"] for message in sent] == ["lifespan.startup.failed"] and not broker.running


def test_application_that_raises_while_it_starts_is_a_failed_start() -> None:
    """It knows of lifespan events, for it has asked for one: no application that goes without."""
    broker = Broker(OPEN)
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        raise RuntimeError("no database")

    async def main() -> None:
        async def receive() -> Any:
            return {"type": "lifespan.startup"}

        async def send(message: Any) -> None:
            sent.append(message)

        await MqttMiddleware(app, broker)({"type": "lifespan"}, receive, send)

    asyncio.run(main())
    assert [message["type"] for message in sent] == ["lifespan.startup.failed"] and "no database" in sent[0]["message"]
    assert not broker.running


def test_broker_that_does_not_run_refuses(served_by_uvicorn: Serve) -> None:
    with served_by_uvicorn(endpoint_only(Broker(OPEN))) as address, Peer(address) as peer:
        assert peer.status == 403


def test_which_listener() -> None:
    async def refuse(*_: Any) -> Any:
        return {"type": "websocket.connect"}

    scope = {"type": "websocket", "path": "/mqtt", "subprotocols": ["mqtt"], "headers": [], "client": ("127.0.0.1", 1)}
    with Broker({"listeners": [{"url": "asgi://one"}, {"url": "asgi://two"}]}) as broker:
        assert broker.urls == ("asgi://one", "asgi://two")
        with pytest.raises(ValueError, match="2 listeners"):
            asyncio.run(MqttWebSocket(broker)(scope, refuse, refuse))
        with pytest.raises(KeyError, match="asgi://three"):
            broker.adopt("asgi://three", "127.0.0.1:1")
    with Broker({"listeners": [{"url": "tcp://127.0.0.1:0"}]}) as broker, pytest.raises(KeyError):
        broker.adopt(broker.urls[0], "127.0.0.1:1")
    with pytest.raises(BrokerError):
        broker.adopt("asgi://", "127.0.0.1:1")


@pytest.mark.parametrize("url", ["asgi://with/path", "asgi://a b", "asgi://host:80"])
def test_urls_that_are_refused(url: str) -> None:
    with pytest.raises(ConfigError):
        Broker({"listeners": [{"url": url}]})


def test_the_broker_program_refuses_the_scheme(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["--listen", "asgi://web", "--check"]) == 2
    assert "asgi://web: asgi:// is for a broker inside a web application" in capfd.readouterr().err


def test_wrong_credentials_are_told_why(served_by_uvicorn: Serve) -> None:
    broker = Broker({"listeners": [{"url": "asgi://"}], "auth": {"anonymous": False}})
    with served_by_uvicorn(plain_app(broker)) as address, pytest.raises(RefusedError, match=r"(?i)not authorized"):
        SyncClient(f"ws://{address}/mqtt", version=5).connect()


def test_the_lifespan_application_serves_nothing_else() -> None:
    async def never(*_: Any) -> Any:
        raise AssertionError("nothing is received or sent")

    with pytest.raises(ValueError, match="not websocket"):
        asyncio.run(MqttLifespan(Broker(OPEN))({"type": "websocket", "path": "/mqtt"}, never, never))


def command(server: str, program: Path) -> list[str]:
    """How the program is served, on a free port: by uvicorn as its first line says."""
    if server == "hypercorn":
        return [sys.executable, "-m", "hypercorn", f"{program}:app", "--bind", "127.0.0.1:0"]
    told = re.search(r": (uvicorn .*)\"\"\"$", program.read_text("utf-8").split("\n")[0])
    assert told is not None
    return [sys.executable, "-m", *shlex.split(told[1]), "--port", "0"]


@pytest.mark.parametrize("server", ["uvicorn", "hypercorn"])
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.stem)
def test_examples(program: Path, server: str) -> None:
    for module in (server, *{"asgi_channels": ("channels", "django")}.get(program.stem, (program.stem.removeprefix("asgi_"),))):
        pytest.importorskip(module)
    environment = {**os.environ, "PYTHONPATH": str(EXAMPLES.parent)}
    streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command(server, program), cwd=EXAMPLES.parent, env=environment, start_new_session=True, **streams) as process:

        def kill() -> None:
            """With hypercorn's worker, a process of its own."""
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)

        watchdog = threading.Timer(60, kill)
        watchdog.start()
        try:
            assert process.stdout is not None
            lines: list[str] = []
            found = None
            while found is None:
                lines.append(process.stdout.readline())
                assert lines[-1], lines
                found = re.search(r"(?i)running on http://([\d.:]+)", lines[-1])
            with SyncClient(f"ws://{found[1]}/mqtt") as client:
                client.subscribe("greetings")
                urllib.request.urlopen(f"http://{found[1]}/greet?name=you", timeout=10).close()
                assert client.get(10).payload == b"hello you"
            process.send_signal(signal.SIGTERM)
            rest, _ = process.communicate()
            # uvicorn ends in order, and then by the same signal.
            assert process.returncode in (0, -signal.SIGTERM) and "Traceback" not in rest, (process.returncode, rest)
        finally:
            watchdog.cancel()
            kill()


def test_there_are_programs() -> None:
    assert [program.stem for program in PROGRAMS] == ["asgi_channels", "asgi_fastapi", "asgi_starlette"]
