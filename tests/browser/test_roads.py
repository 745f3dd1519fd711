"""Which HTTP a browser's WebSocket connections take, by what the browser itself reports: its net log."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.browser.conftest import HTTP2, PLAIN, TLS, BrowserFactory, Client, Road, message, name, page_url
from tests.browser.driver import Browser, Page

Serve = Callable[..., Any]


def talk(browser: Browser, page_of: str, url: str) -> None:
    """A page of one listener sends itself a message by another, or the same."""
    page = browser.open(page_url(page_of))
    client = Client(page, url, 5)
    topic = name()
    client.subscribe(topic)
    client.publish(topic, "hello", 1)
    assert client.next("message") == message(topic, "hello", 1)
    client.end()
    page.close()


class NetLog:
    """What a browser that has ended wrote about its connections."""

    def __init__(self, path: Path) -> None:
        log = json.loads(path.read_text("utf-8"))
        names = {number: name for name, number in log["constants"]["logEventTypes"].items()}
        self._events = [(names[event["type"]], event.get("params", {})) for event in log["events"]]

    def _heads(self, kind: str) -> list[dict[str, str]]:
        """Header fields; those of HTTP/2 that begin with a colon too."""
        heads = []
        for event, params in self._events:
            if event == kind:
                fields = [field.partition(": ") for field in params["headers"]]
                heads.append({key.lower(): value for key, _, value in fields} | {"line": params.get("line", "")})
        return heads

    def http2_websockets(self, url: str) -> list[dict[str, str]]:
        """Extended CONNECTs (RFC 8441) that were sent to a listener."""
        heads = self._heads("HTTP2_SESSION_SEND_HEADERS")
        return [head for head in heads if head.get(":protocol") == "websocket" and head[":authority"] == urlsplit(url).netloc]

    def http1_websockets(self, url: str) -> list[dict[str, str]]:
        """Upgrades (RFC 6455) that were sent to a listener."""
        heads = self._heads("HTTP_TRANSACTION_SEND_REQUEST_HEADERS")
        return [head for head in heads if head.get("upgrade") == "websocket" and head["host"] == urlsplit(url).netloc]


def test_wss_goes_over_http2_if_the_page_came_that_way(serve: Serve, start_browser: BrowserFactory, tmp_path: Path) -> None:
    """A browser opens no HTTP/2 connection for the sake of WebSocket; it uses the one of the same origin that is open."""
    broker = serve(PLAIN, TLS, HTTP2)
    plain, tls, http2 = broker.urls
    log = tmp_path / "net.json"
    with start_browser(f"--log-net-log={log}", "--net-log-capture-mode=Everything") as browser:
        for url in broker.urls:
            talk(browser, url, url)
        talk(browser, plain, http2)
    stats = broker.stats()
    assert stats["http_websockets"] == 1
    assert stats["connects_accepted"] == 4

    seen = NetLog(log)
    (head,) = seen.http2_websockets(http2)
    assert head[":method"] == "CONNECT"
    assert (head[":scheme"], head[":path"]) == ("https", "/mqtt")
    assert head["sec-websocket-protocol"] == "mqtt"
    assert head["origin"] == page_url(http2).rstrip("/")
    (foreign,) = seen.http1_websockets(http2)
    assert foreign["origin"] == page_url(plain).rstrip("/")
    for url in (plain, tls):
        assert seen.http2_websockets(url) == []
        (head,) = seen.http1_websockets(url)
        assert head["line"] == "GET /mqtt HTTP/1.1\r\n"
        assert head["sec-websocket-protocol"] == "mqtt"


@pytest.mark.parametrize("road", [TLS, HTTP2], ids=str)
def test_devtools_shows_the_same(serve: Serve, visit: Callable[..., Page], road: Road) -> None:
    broker = serve(road)
    page = visit(page_url(broker.urls[0]))
    assert page.evaluate("performance.getEntriesByType('navigation')[0].nextHopProtocol") == ("h2" if road.http2 else "http/1.1")
    Client(page, broker.urls[0], 5).end()
    (socket,) = page.sockets
    assert socket.status == (200 if road.http2 else 101)
