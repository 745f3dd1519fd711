"""Brokers for the client's tests: ours on every road, Debian's mosquitto, a scripted one; and the check that a client leaves nothing."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import getpass
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import pytest

from mqttc import certs
from mqttc.auth import Request, Verdict
from tests.conftest import BrokerFactory

TIMEOUT = float(os.environ.get("MQTTC_TEST_TIMEOUT", "5")) * 4
"""Seconds for a whole test's coroutine; what takes longer hangs."""
ROOT = Path(__file__).resolve().parents[2]
SCHEMES = ("mqtt", "mqtts", "ws", "wss", "unix", "quic")
MOSQUITTO = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin")

SOURCE = "127.0.0.2"
"""Also of the loopback, where it has more than one address."""
KEY = bytes.fromhex("0123456789abcdef0123456789abcdef")

only_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere the loopback has one address")
needs_psk = pytest.mark.skipif(not getattr(ssl, "HAS_PSK", False), reason="this interpreter's ssl has no pre-shared keys")
without_psk = pytest.mark.skipif(getattr(ssl, "HAS_PSK", False), reason="this interpreter's ssl has pre-shared keys")

T = TypeVar("T")


def run(work: Coroutine[Any, Any, T], timeout_s: float = TIMEOUT, *, count_sockets: bool = True) -> T:
    """Its result, on a loop of its own. Fails where tasks or sockets are left, or an error went nowhere.

    `count_sockets=False`: for work that starts a broker in this process.
    """
    unheard: list[dict[str, Any]] = []

    async def main() -> T:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: unheard.append(context))
        sockets = open_sockets()
        try:
            async with asyncio.timeout(timeout_s):
                return await work
        finally:
            await asyncio.sleep(0)  # who has just said that the client is closed comes to its own end
            left = asyncio.all_tasks() - {asyncio.current_task()}
            assert not left, f"tasks are left: {left}"
            await settled(lambda: not count_sockets or open_sockets() <= sockets)

    try:
        return asyncio.run(main())
    finally:
        gc.collect()
        assert not unheard, f"errors that nobody heard: {unheard}"


def open_sockets() -> int:
    """Sockets of this process that are connected or may be, its brokers' listeners too."""
    links = []
    for name in os.listdir("/proc/self/fd"):
        try:
            links.append(os.readlink(f"/proc/self/fd/{name}"))
        except OSError:
            continue
    return sum(link.startswith("socket:") for link in links)


async def settled(condition: Callable[[], bool], timeout_s: float = TIMEOUT) -> None:
    """Until it holds; for what happens where nobody tells: on a broker's threads, or in the kernel."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.002)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "spec(version, *ids): statements of one standard that the test checks")


@pytest.fixture(scope="session")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CA, and certificates of it for localhost and for a client called device."""
    made = tmp_path_factory.mktemp("client-pki")
    certs.make_authority(made)
    certs.make_server(made, ["localhost", "127.0.0.1"])
    certs.make_client(made, "device")
    return made


def listeners(pki: Path, folder: Path, *schemes: str) -> list[dict[str, Any]]:
    """A listener of ours for each of the client's schemes, on free ports."""
    tls = {"certificate": str(pki / "server.pem"), "key": str(pki / "server.key")}
    urls = {
        "mqtt": "tcp://127.0.0.1:0", "mqtts": "tls://127.0.0.1:0", "ws": "ws://127.0.0.1:0/mqtt", "wss": "wss://127.0.0.1:0/mqtt",
        "unix": f"unix://{folder}/socket", "quic": "quic://127.0.0.1:0",
    }  # fmt: skip
    return [{"url": urls[scheme], **(tls if scheme in ("mqtts", "wss", "quic") else {})} for scheme in schemes]


def without_certificate(scheme: str, folder: Path) -> dict[str, Any]:
    """A listener that has KEY, of a client called sensor-1, and nothing else."""
    [listener] = listeners(folder, folder, scheme)
    (folder / "keys").write_text(f"sensor-1:{KEY.hex()}\n")
    return {"url": listener["url"], "psk_file": str(folder / "keys")}


def client_url(broker: Any, scheme: str = "mqtt") -> str:
    """Where a client finds the listener of that scheme; by name where a certificate is checked."""
    own = {"mqtt": "tcp", "mqtts": "tls"}.get(scheme, scheme)
    url = next(url for url in broker.urls if url.startswith(f"{own}:"))
    if scheme == "unix":
        return str(url)
    parts = urlsplit(url)
    host = "localhost" if scheme in ("mqtts", "wss", "quic") else "127.0.0.1"
    return f"{scheme}://{host}:{parts.port}{parts.path}"


@pytest.fixture
def url(broker_factory: BrokerFactory) -> str:
    """Of a broker over TCP."""
    return client_url(broker_factory())


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Mosquitto:
    """Debian's broker with listeners for every road that it has; killed and started again on the same ports, with its database."""

    def __init__(self, folder: Path, pki: Path, extra: str = "") -> None:
        self.ports = {scheme: free_port() for scheme in ("mqtt", "mqtts", "ws", "wss")}
        tls = f"certfile {pki}/server.pem\nkeyfile {pki}/server.key\n"
        lines = [f"user {getpass.getuser()}", "allow_anonymous true", "persistence true", f"persistence_location {folder}/"]
        lines += ["max_inflight_messages 0", "max_queued_messages 0", "set_tcp_nodelay true", extra]
        for scheme, port in self.ports.items():
            lines.append(f"listener {port} 127.0.0.1")
            if scheme.startswith("ws"):
                lines.append("protocol websockets")
            if scheme in ("mqtts", "wss"):
                lines.append(tls)
        lines += [f"listener 0 {folder}/m.sock", ""]
        self.socket_path = folder / "m.sock"
        self._config = folder / "mosquitto.conf"
        self._config.write_text("\n".join(lines))
        (folder / "log").touch()
        self._log = folder / "log"
        folder.chmod(0o777)
        self._process: subprocess.Popen[bytes] | None = None

    def url(self, scheme: str) -> str:
        if scheme == "unix":
            return f"unix://{self.socket_path}"
        return f"{scheme}://{'localhost' if scheme in ('mqtts', 'wss') else '127.0.0.1'}:{self.ports[scheme]}"

    def start(self) -> None:
        assert MOSQUITTO is not None
        with self._log.open("ab") as log:
            self._process = subprocess.Popen([MOSQUITTO, "-c", str(self._config)], stderr=log, stdout=log)
        for port in self.ports.values():
            self._await(socket.AF_INET, ("127.0.0.1", port))
        self._await(socket.AF_UNIX, str(self.socket_path))

    def _await(self, family: int, address: Any) -> None:
        while True:
            assert self._process is not None and self._process.poll() is None, self._log.read_text()
            with socket.socket(family) as probe, contextlib.suppress(ConnectionRefusedError, FileNotFoundError):
                probe.connect(address)
                return

    def stop(self, how: int = signal.SIGTERM) -> None:
        """SIGTERM lets it write its database, SIGKILL does not."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(TIMEOUT)
            self._process = None


@pytest.fixture(scope="session")
def mosquitto(tmp_path_factory: pytest.TempPathFactory, pki: Path) -> Iterator[Mosquitto]:
    """One for all tests that do not stop it."""
    yield from _mosquitto(tmp_path_factory.mktemp("mosquitto"), pki)


@pytest.fixture
def own_mosquitto(tmp_path: Path, pki: Path) -> Iterator[Mosquitto]:
    """For a test that stops and starts it."""
    folder = tmp_path / "m"
    folder.mkdir()
    yield from _mosquitto(folder, pki)


def _mosquitto(folder: Path, pki: Path) -> Iterator[Mosquitto]:
    if MOSQUITTO is None:
        pytest.skip("mosquitto is not installed")
    made = Mosquitto(folder, pki)
    made.start()
    yield made
    made.stop()


class BrokerProcess:
    """`mqttc-broker` in a process of its own, with durability `written`, killed and started again on the same port and directory."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.url = f"mqtt://127.0.0.1:{self.port}"
        self._folder = folder
        self._log = folder / "log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        settings = ["workers=2", f"data_dir={self._folder}", "durability.mode=written", "auth.anonymous=true"]
        command = [sys.executable, "-m", "mqttc", "--listen", f"tcp://127.0.0.1:{self.port}"]
        command += [part for setting in settings for part in ("--set", setting)]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        while True:
            assert self._process.poll() is None, self._log.read_text()
            with socket.socket() as probe, contextlib.suppress(ConnectionRefusedError):
                probe.connect(("127.0.0.1", self.port))
                return
            time.sleep(0.01)  # it has no way to tell us but its log

    def stop(self, how: int = signal.SIGKILL) -> None:
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(TIMEOUT)
            self._process = None


@pytest.fixture
def durable_broker(tmp_path: Path) -> Iterator[BrokerProcess]:
    folder = tmp_path / "broker"
    folder.mkdir()
    made = BrokerProcess(folder)
    made.start()
    yield made
    made.stop(signal.SIGTERM)


class FaultProxy:
    """A TCP port before a broker's, which cuts connections when it is told to, or after so many bytes in either direction."""

    def __init__(self, host: str, port: int) -> None:
        self.port = 0
        self.connections = 0
        self.cut_after: Callable[[], int] | None = None
        """Gives the bytes after which the next connection is cut."""
        self.delay_s: Callable[[], float] | None = None
        """Gives the seconds by which what has just been read is held back."""
        self.open = asyncio.Event()
        """Cleared: nothing is passed on."""
        self.open.set()
        self._to = (host, port)
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> FaultProxy:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *error: object) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def url(self) -> str:
        return f"mqtt://127.0.0.1:{self.port}"

    def cut(self) -> None:
        """All connections, without a last word."""
        for writer in self._writers:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        left = [self.cut_after() if self.cut_after is not None else 1 << 60]
        writers = {writer}
        self._writers.add(writer)
        try:
            other_reader, other_writer = await asyncio.open_connection(*self._to)
            writers.add(other_writer)
            self._writers.add(other_writer)
            ways = [self._pass(reader, other_writer, left), self._pass(other_reader, writer, left)]
            tasks = [asyncio.create_task(way) for way in ways]
            try:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for one in tasks:
                    one.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
        except (OSError, asyncio.CancelledError):
            pass  # asyncio's server takes a cancelled handler for a failed one
        finally:
            for one in writers:
                one.transport.abort()
            self._writers -= writers
            self._tasks.discard(task)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, left: list[int]) -> None:
        while data := await reader.read(65536):
            await self.open.wait()
            if self.delay_s is not None:
                await asyncio.sleep(self.delay_s())
            writer.write(data[: left[0]])  # a packet may be cut in its middle
            left[0] -= len(data)
            if left[0] <= 0:
                return
            await writer.drain()


Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class ScriptedServer:
    """A TCP port at which a coroutine of the test's plays the broker. Its errors fail the test."""

    def __init__(self, script: Handler) -> None:
        self.port = 0
        self.connections = 0
        self._script = script
        self._tasks: set[asyncio.Task[None]] = set()
        self._errors: list[BaseException] = []

    async def __aenter__(self) -> ScriptedServer:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *error: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._errors and error[0] is None:
            raise self._errors[0]

    @property
    def url(self) -> str:
        return f"mqtt://127.0.0.1:{self.port}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        try:
            await self._script(reader, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # asyncio's server takes a cancelled handler for a failed one
        except Exception as error:
            self._errors.append(error)
        finally:
            writer.transport.abort()
            self._tasks.discard(task)


async def read_packet(reader: asyncio.StreamReader) -> bytes:
    """One whole packet, by its fixed header."""
    data = await reader.readexactly(2)
    while data[-1] & 0x80:
        data += await reader.readexactly(1)
    size = sum((digit & 0x7F) << 7 * place for place, digit in enumerate(data[1:]))
    return data + await reader.readexactly(size)


class Curious:
    """Admits everybody and remembers who came."""

    def __init__(self) -> None:
        self.requests: list[Request] = []

    async def authenticate(self, request: Request) -> Verdict:
        self.requests.append(request)
        return Verdict(0)

    @property
    def hosts(self) -> list[str]:
        return [request.peer.rpartition(":")[0] for request in self.requests]
