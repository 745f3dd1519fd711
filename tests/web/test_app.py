"""The application by itself, called as an ASGI server calls it."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from mqttc import __version__, native
from mqttc.adapters.exchange import COUNTERS, App
from mqttc.hooks import Hooks
from mqttc.server import Broker
from mqttc.web import metrics
from mqttc.web.app import make_app

SAMPLE = re.compile(r'(mqttc_[a-z0-9_]+)(?:\{([a-z]+)="([a-z0-9_]+)"\})? (-?[0-9]+)')


def ask(app: App, method: str = "GET", path: str = "/", **changes: Any) -> tuple[int, dict[str, str], str]:
    scope: dict[str, Any] = {
        "type": "http",
        "method": method,
        "path": path,
        "scheme": "http",
        "headers": [(b"host", b"broker.example:8080")],
        "client": ("127.0.0.1", 5),
        "extensions": {"mqttc": {"proxied": False, "unix": False, "websocket_path": "/mqtt"}},
        **changes,
    }
    sent: list[Mapping[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Mapping[str, Any]) -> None:
        sent.append(message)

    asyncio.run(app(scope, receive, send))  # type: ignore[arg-type]
    start, body = sent
    headers = {name.decode(): value.decode() for name, value in start["headers"]}
    assert len(headers) == len(start["headers"])
    if method != "HEAD":
        assert int(headers["content-length"]) == len(body["body"])
    return start["status"], headers, body["body"].decode()


def extension(**changes: Any) -> dict[str, Any]:
    return {"mqttc": {"proxied": False, "unix": False, "websocket_path": "/mqtt", **changes}}


@pytest.mark.parametrize("path", ["/", "/health", "/metrics", "/nothing"])
def test_every_answer_is_locked_down(path: str) -> None:
    _, headers, _ = ask(make_app(dict), path=path)
    assert headers["content-security-policy"].startswith("default-src 'none'; ")
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff" and headers["x-frame-options"] == "DENY"
    assert headers["cache-control"] == "no-store" and headers["referrer-policy"] == "no-referrer"


class Page(HTMLParser):
    """Checks that tags are balanced and collects what matters."""

    VOID = ("meta", "link", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.links: list[str] = []
        self.style = ""
        self.text = ""
        self.tags: set[str] = set()
        self.feed(text)
        self.close()
        assert self.stack == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag not in self.VOID:
            self.stack.append(tag)
        for name, value in attrs:
            assert name != "style" and not name.startswith("on")
            if name in ("href", "src"):
                self.links.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.stack and self.stack[-1] == "style":
            self.style += data
        else:
            self.text += data


def test_the_page() -> None:
    status, headers, body = ask(make_app(dict))
    assert status == 200 and headers["content-type"] == "text/html; charset=utf-8"
    page = Page(body)
    assert f"mqttc {__version__}" in page.text and "ws://broker.example:8080/mqtt" in page.text
    assert 'mqtt.connect("ws://broker.example:8080/mqtt")' in page.text
    # Nothing comes from elsewhere, and the one style is the one that the policy names.
    assert page.links == ["data:,", "/health"] and "script" not in page.tags and "url(" not in page.style
    digest = base64.b64encode(hashlib.sha256(page.style.encode()).digest()).decode()
    assert f"style-src 'sha256-{digest}'" in headers["content-security-policy"]


def test_the_page_names_what_the_listener_serves() -> None:
    _, _, body = ask(make_app(dict), scheme="https", extensions=extension(websocket_path="/a&b"))
    assert "wss://broker.example:8080/a&b" in Page(body).text
    _, _, body = ask(make_app(dict, websocket_path="/other"), extensions=None)
    assert "ws://broker.example:8080/other" in Page(body).text


@pytest.mark.parametrize("host", [b"<script>alert(1)</script>", b'"', b"a b", b"x:999999", b"", b"\xff", b"user@host", b"a\n"])
def test_no_host_gets_into_the_page_that_is_none(host: bytes) -> None:
    _, _, body = ask(make_app(dict), headers=[(b"host", host)])
    assert "ws://this-host/mqtt" in Page(body).text and "alert" not in body
    assert "ws://this-host/mqtt" in Page(ask(make_app(dict), headers=[])[2]).text


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]:8080", "broker.example"])
def test_hosts(host: str) -> None:
    assert f"ws://{host}/mqtt" in Page(ask(make_app(dict), headers=[(b"host", host.encode())])[2]).text


def test_pages_can_be_off() -> None:
    app = make_app(dict, pages=False)
    assert ask(app)[0] == 404 and ask(app, path="/health")[0] == 200


def test_health() -> None:
    stopping = False
    app = make_app(dict, stopping=lambda: stopping)
    status, headers, body = ask(app, path="/health")
    assert status == 200 and headers["content-type"] == "application/health+json"
    assert json.loads(body) == {"status": "pass", "version": __version__.split(".")[0], "releaseId": __version__}
    stopping = True
    status, _, body = ask(app, path="/health")
    assert status == 503 and json.loads(body)["status"] == "fail"


def test_methods_and_paths() -> None:
    app = make_app(dict)
    for path in ("/", "/health", "/metrics"):
        status, headers, _ = ask(app, "POST", path)
        assert status == 405 and headers["allow"] == "GET, HEAD"
        status, headers, body = ask(app, "HEAD", path)
        assert status == 200 and body == "" and headers["content-length"] == ask(app, "GET", path)[1]["content-length"]
    for path in ("/x", "", "*", "/health/", "/../health"):
        assert ask(app, "GET", path)[0] == ask(app, "DELETE", path)[0] == 404


@pytest.mark.parametrize(
    ("allowed", "changes"),
    [
        (True, {"client": ("127.0.0.1", 5)}),
        (True, {"client": ("127.8.8.8", 5)}),
        (True, {"client": ("::1", 5)}),
        (True, {"client": ("::ffff:127.0.0.1", 5)}),
        (True, {"client": None, "extensions": extension(unix=True)}),
        (False, {"client": None}),
        (False, {"client": None, "extensions": {}}),
        (False, {"client": ("192.0.2.1", 5)}),
        (False, {"client": ("localhost", 5)}),
        (False, {"client": ("127.0.0.1", 5), "extensions": extension(proxied=True)}),
        (False, {"client": None, "extensions": extension(unix=True, proxied=True)}),
        (False, {"headers": [(b"x-forwarded-for", b"127.0.0.1")], "extensions": None}),
        (False, {"headers": [(b"forwarded", b"for=127.0.0.1")]}),
    ],
)
def test_metrics_for_this_machine_only(allowed: bool, changes: dict[str, Any]) -> None:
    status, _, body = ask(make_app(lambda: {"takeovers": 3}), path="/metrics", **changes)
    assert status == (200 if allowed else 403) and ("takeovers" in body) == allowed
    assert ask(make_app(dict, metrics=True), path="/metrics", **changes)[0] == 200
    assert ask(make_app(dict, metrics=False), path="/metrics", **changes)[0] == 403


def parse(text: str) -> tuple[dict[str, int], dict[str, str]]:
    """Samples by the broker's own names, and types by metric; strict about the format."""
    assert text.endswith("\n")
    samples: dict[str, int] = {}
    types: dict[str, str] = {}
    metric = ""
    lines = text.splitlines()
    for index, line in enumerate(lines):
        if line.startswith("# HELP "):
            _, _, metric, text = line.split(" ", 3)
            assert metric not in types and text.endswith(".") and "\\" not in text
            assert lines[index + 1].startswith(f"# TYPE {metric} ")
        elif line.startswith("# TYPE "):
            types[metric] = line.rpartition(" ")[2]
        else:
            found = SAMPLE.fullmatch(line)
            assert found and found[1] == metric, line
            name = metric.removeprefix("mqttc_").removesuffix("_total")
            if found[2]:
                name = name.replace("messages_dropped", "dropped") + "_" + found[3]
            assert name not in samples
            samples[name] = int(found[4])
    return samples, types


def test_metrics_have_every_number_of_a_broker() -> None:
    with Broker({"listeners": [{"url": "tcp://127.0.0.1:0"}], "workers": 1}) as broker:
        stats = broker.stats()
    status, headers, body = ask(make_app(lambda: stats), path="/metrics")
    assert status == 200 and headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    samples, types = parse(body)
    assert samples == stats
    for metric, kind in types.items():
        assert (kind == "counter") == metric.endswith("_total") and kind in ("counter", "gauge")


@pytest.fixture
def counted(tmp_path: Path) -> set[str]:
    """Everything that a broker with a store, authenticators and hooks counts."""
    kept: dict[str, Any] = {"auth": {"certificate": {}}, "data_dir": str(tmp_path / "data"), "durability": {"mode": "written"}}
    with Broker({"listeners": [{"url": "tcp://127.0.0.1:0"}], "workers": 1, **kept}, hooks=Hooks()) as broker:
        return set(broker.stats())


def test_what_goes_down_too_is_a_gauge(counted: set[str]) -> None:
    names = {*counted, "control_connections", "http_connections", "quic_connections", "quic_half_open", "quic_streams", "quic_tickets"}
    assert names >= metrics.GAUGES
    _, types = parse(metrics.exposition(dict.fromkeys(sorted(names), 1)))
    assert {metric.removeprefix("mqttc_") for metric, kind in types.items() if kind == "gauge"} == metrics.GAUGES


def test_every_number_is_explained(counted: set[str]) -> None:
    names = {*counted, *COUNTERS, *native.Tls().stats()}
    prefixes = ("packets_received_", "packets_sent_", "dropped_", "denied_")
    assert [name for name in sorted(names) if not name.startswith(prefixes) and name not in metrics.HELP] == []


def test_a_number_that_is_not_known() -> None:
    samples, types = parse(metrics.exposition({"something_new": 4}))
    assert samples == {"something_new": 4} and types == {"mqttc_something_new_total": "counter"}


def test_other_servers_may_ask_for_a_lifespan() -> None:
    told: list[str] = []

    async def main() -> None:
        messages = iter(("lifespan.startup", "lifespan.shutdown"))

        async def receive() -> dict[str, str]:
            return {"type": next(messages)}

        async def send(message: Mapping[str, Any]) -> None:
            told.append(message["type"])

        await make_app(dict)({"type": "lifespan"}, receive, send)
        with pytest.raises(ValueError, match="websocket"):
            await make_app(dict)({"type": "websocket"}, receive, send)

    asyncio.run(main())
    assert told == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
