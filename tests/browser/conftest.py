"""A browser for all tests here, and the roads by which its pages reach a broker. Skipped where chromium, node or npm are missing."""

from __future__ import annotations

import base64
import hashlib
import itertools
import logging
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from mqttc import certs
from tests.broker.conftest import Events
from tests.browser.driver import HERE, Browser, Page
from tests.conftest import BrokerFactory

_numbers = itertools.count(1)


def name() -> str:
    """A client id or topic that nobody else uses."""
    return f"w{next(_numbers)}"


@dataclass(frozen=True)
class Road:
    """How WebSocket connections of a page to the listener that it came from are made."""

    scheme: str
    http2: bool = False

    def __str__(self) -> str:
        return self.scheme + ("-http2" if self.http2 else "-http1" if self.scheme == "wss" else "")


PLAIN, TLS, HTTP2 = ROADS = (Road("ws"), Road("wss"), Road("wss", http2=True))


def page_url(url: str) -> str:
    """The address of the page of a listener."""
    return url.replace("ws", "http", 1).removesuffix("mqtt")


@pytest.fixture(scope="package")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a CA and a server's certificate for localhost and 127.0.0.1."""
    made = tmp_path_factory.mktemp("browser")
    certs.make_authority(made)
    certs.make_server(made, ["localhost", "127.0.0.1"])
    return made


BrowserFactory = Callable[..., Browser]


@pytest.fixture(scope="package")
def start_browser(authority: Path) -> BrowserFactory:
    """Starts a browser that trusts our server's key and nothing else that is not signed as usual."""
    programs = {program: shutil.which(program) for program in ("chromium", "node", "npm")}
    missing = [program for program, path in programs.items() if path is None]
    if missing:
        pytest.skip(f"a browser with MQTT.js needs {' and '.join(missing)}")
    if not (HERE / "node_modules" / ".package-lock.json").is_file():
        # `tools/dev.py test` installs it before pytest begins; this is for those who call pytest themselves.
        subprocess.run([str(programs["npm"]), "ci", "--no-audit", "--no-fund", "--loglevel=error"], cwd=HERE, check=True)
    key = certs.read_certificate(authority / "server.pem").public_key()
    digest = hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).digest()
    trust = f"--ignore-certificate-errors-spki-list={base64.b64encode(digest).decode()}"
    return lambda *arguments: Browser(str(programs["node"]), str(programs["chromium"]), [trust, *arguments])


@pytest.fixture(scope="package")
def browser(start_browser: BrowserFactory) -> Iterator[Browser]:
    with start_browser() as made:
        yield made


@pytest.fixture
def events() -> Iterator[Events]:
    """The brokers' log events. Asked for before brokers, so that it sees their ends."""
    handler = Events()
    logger = logging.getLogger("mqttc.broker")
    level = logger.level
    logger.setLevel(logging.DEBUG)
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)
    logger.setLevel(level)


@pytest.fixture
def listener(authority: Path) -> Callable[..., dict[str, Any]]:
    """A listener's table: `listener(road, port=..., allowed_origins=...)`."""

    def make(road: Road, *, port: int = 0, **keys: Any) -> dict[str, Any]:
        table = {"url": f"{road.scheme}://127.0.0.1:{port}/mqtt", **keys}
        if road.scheme == "wss":
            table |= {"certificate": str(authority / "server.pem"), "key": str(authority / "server.key")}
            table |= {} if road.http2 else {"alpn": ["http/1.1"]}
        return table

    return make


@pytest.fixture
def serve(events: Events, broker_factory: BrokerFactory, listener: Callable[..., dict[str, Any]]) -> Callable[..., Any]:
    """Starts a broker with a listener for each road: `serve(HTTP2, limits={...})`."""

    def make(*roads: Road, port: int = 0, limits: dict[str, Any] | None = None, **keys: Any) -> Any:
        tables = [listener(road, port=port, **keys) for road in roads]
        return broker_factory({"listeners": tables, "auth": {"anonymous": True}, "log": {"level": "debug"}, "limits": limits or {}})

    return make


@pytest.fixture
def visit(browser: Browser, serve: Callable[..., Any]) -> Iterator[Callable[..., Page]]:
    """Opens pages that end with the test, before its brokers."""
    opened: list[Page] = []

    def make(url: str, *, inject: bool = True) -> Page:
        opened.append(browser.open(url, inject=inject))
        return opened[-1]

    yield make
    for page in opened:
        page.close()


class Client:
    """MQTT.js in a page, connected when it is made."""

    def __init__(self, page: Page, url: str, version: int, **options: Any) -> None:
        self.name = name()
        self._page = page
        protocol = {"protocolVersion": version, "protocolId": "MQIsdp" if version == 3 else "MQTT"}
        page.call("connect", name=self.name, url=url, options={**protocol, **options})
        self.next("connect")

    def next(self, kind: str) -> Any:
        """What MQTT.js tells next of one kind: connect, message, error, close, disconnect."""
        return self._page.call("next", name=self.name, kind=kind)

    def unread(self, kind: str) -> list[Any]:
        unread: list[Any] = self._page.call("unread", name=self.name, kind=kind)
        return unread

    def subscribe(self, topic: str, qos: int = 2) -> None:
        assert self._page.call("subscribe", name=self.name, topic=topic, qos=qos) == qos

    def unsubscribe(self, topic: str) -> None:
        self._page.call("unsubscribe", name=self.name, topic=topic)

    def publish(self, topic: str, payload: str | int, qos: int = 0, retain: bool = False) -> None:
        """Returns when it is acknowledged. ``payload``: text, or the size of a pattern."""
        self._page.call("publish", name=self.name, topic=topic, payload=payload, qos=qos, retain=retain)

    def end(self) -> None:
        """Disconnect, and wait until the connection is closed."""
        self._page.call("end", name=self.name)


def message(topic: str, payload: Any, qos: int = 0, retain: bool = False) -> dict[str, Any]:
    """A message as `Client.next` gives it."""
    return {"topic": topic, "payload": payload, "qos": qos, "retain": retain}
