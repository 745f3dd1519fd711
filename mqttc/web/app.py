"""The application: a page for people, health for orchestrators, metrics for Prometheus. ASGI 3, nothing but the standard library.

It keeps no state and reads no files. Where it runs behind mqttc's own HTTP server, ``scope["extensions"]["mqttc"]`` tells
whether a proxy handed the request on and at which path MQTT over WebSocket is (`adapters.exchange.make_scope`).
"""

from __future__ import annotations

import base64
import hashlib
import html
import ipaddress
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from mqttc import __version__
from mqttc.adapters.exchange import EXTENSION, App, Receive, Scope, Send
from mqttc.adapters.upgrade import PROXY_HEADERS
from mqttc.web import metrics as prometheus

_HOST: Final = re.compile(rb"[A-Za-z0-9.\-]{1,253}(:[0-9]{1,5})?|\[[0-9A-Fa-f:.]{2,45}\](:[0-9]{1,5})?")
_METHODS: Final = ("GET", "HEAD")

_STYLE: Final = """
:root{color-scheme:light dark;--text:#1d2530;--soft:#5b6675;--back:#f7f8fa;--card:#fff;--line:#dfe3e8;--mark:#0b6e6e}
@media(prefers-color-scheme:dark){:root{--text:#e4e8ee;--soft:#98a3b3;--back:#12161c;--card:#1a2028;--line:#2c3540;--mark:#5cc4c0}}
*{box-sizing:border-box}
body{margin:0;background:var(--back);color:var(--text);font:16px/1.6 system-ui,sans-serif}
main{max-width:42rem;margin:0 auto;padding:4rem 1.5rem}
h1{margin:0;font-size:1.9rem;letter-spacing:-.01em}
h2{margin:2.2rem 0 .5rem;font-size:1rem}
p{margin:.5rem 0}
.soft{color:var(--soft)}
.card{margin-top:2rem;padding:1.2rem 1.4rem;border:1px solid var(--line);border-radius:.6rem;background:var(--card)}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.4rem 1.2rem;margin:0}
dt{color:var(--soft)}
dd{margin:0;overflow-wrap:anywhere}
code,pre{font:.92em/1.5 ui-monospace,monospace}
pre{margin:.6rem 0;padding:.8rem 1rem;border:1px solid var(--line);border-radius:.5rem;background:var(--card);overflow-x:auto}
a{color:var(--mark)}
"""

_PAGE: Final = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width,initial-scale=1">
<title>mqttc &#8211; MQTT broker</title>
<link rel="icon" href="data:,">
<style>{style}</style>
</head>
<body>
<main>
<h1>mqttc</h1>
<p class="soft">An MQTT broker is running here. It has no user interface: connect with an MQTT client.</p>
<div class="card">
<dl>
<dt>Broker</dt><dd>mqttc {version}</dd>
<dt>Protocols</dt><dd>MQTT 5.0, 3.1.1 and 3.1</dd>
<dt>WebSocket</dt><dd><code>{url}</code></dd>
<dt>Sub-protocol</dt><dd><code>mqtt</code></dd>
<dt>Health</dt><dd><a href="/health">/health</a></dd>
</dl>
</div>
<h2>Connect from a browser or Node.js</h2>
<p class="soft">With MQTT.js; other libraries that speak MQTT over WebSocket take the same address.</p>
<pre><code>const client = mqtt.connect({quoted})
client.subscribe("hello/#")
client.publish("hello/world", "hi")</code></pre>
</main>
</body>
</html>
"""

_STYLE_HASH: Final = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
_SECURITY: Final = (
    (
        b"content-security-policy",
        f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; img-src data:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'".encode(),
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
)


@dataclass(frozen=True, slots=True)
class _Response:
    status: int
    content_type: bytes
    body: bytes
    headers: tuple[tuple[bytes, bytes], ...] = ()


def make_app(
    status: Callable[[], Mapping[str, int]],
    *,
    pages: bool = True,
    metrics: bool | Literal["loopback"] = "loopback",
    stopping: Callable[[], bool] = lambda: False,
    websocket_path: str = "/mqtt",
) -> App:
    """The application.

    ``status``: the broker's counters and gauges, as ``Broker.stats`` gives them; called for each ``/metrics``. ``pages``:
    whether ``/`` is shown. ``metrics``: who may read ``/metrics``: nobody, everybody, or clients of this machine that
    no proxy handed on. ``stopping``: whether ``/health`` says that the broker goes down. ``websocket_path``: what the page names
    where the scope does not say it.
    """

    def respond(scope: Scope) -> _Response:
        path = scope["path"]
        known = path in ("/health", "/metrics") or (path == "/" and pages)
        if not known:
            return _text(404, "there is nothing here")
        if scope["method"] not in _METHODS:
            return _text(405, "this can only be read", ((b"allow", ", ".join(_METHODS).encode()),))
        if path == "/health":
            return _health(stopping())
        if path == "/":
            return _page(scope, websocket_path)
        if metrics is True or (metrics == "loopback" and _is_local(scope)):
            return _Response(200, prometheus.CONTENT_TYPE, prometheus.exposition(status()).encode())
        return _text(403, "metrics are not for you")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        if scope["type"] != "http":
            raise ValueError(f"{scope['type']} is not served")
        response = respond(scope)
        length = b"%d" % len(response.body)
        headers = [(b"content-type", response.content_type), (b"content-length", length), *_SECURITY, *response.headers]
        await send({"type": "http.response.start", "status": response.status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else response.body})

    return app


async def _lifespan(receive: Receive, send: Send) -> None:
    """Other servers ask; there is nothing to do."""
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return


def _text(status: int, text: str, headers: tuple[tuple[bytes, bytes], ...] = ()) -> _Response:
    return _Response(status, b"text/plain; charset=utf-8", f"{status}: {text}\n".encode(), headers)


def _health(stopping: bool) -> _Response:
    """The health check response format of draft-inadarei-api-health-check."""
    body = {"status": "fail" if stopping else "pass", "version": __version__.partition(".")[0], "releaseId": __version__}
    if stopping:
        body["output"] = "the broker is stopping"
    return _Response(503 if stopping else 200, b"application/health+json", json.dumps(body).encode() + b"\n")


def _page(scope: Scope, websocket_path: str) -> _Response:
    path = _extension(scope).get("websocket_path", websocket_path)
    host = next((value for name, value in scope["headers"] if name == b"host"), b"")
    name = host.decode() if _HOST.fullmatch(host) else "this-host"
    url = f"{'wss' if scope.get('scheme') == 'https' else 'ws'}://{name}{path}"
    page = _PAGE.format(style=_STYLE, version=html.escape(__version__), url=html.escape(url), quoted=html.escape(json.dumps(url)))
    return _Response(200, b"text/html; charset=utf-8", page.encode())


def _extension(scope: Scope) -> Mapping[str, Any]:
    found: Mapping[str, Any] = (scope.get("extensions") or {}).get(EXTENSION, {})
    return found


def _is_local(scope: Scope) -> bool:
    """Whether the client is on this machine; never through a proxy, which is on this machine for whomever it serves."""
    extension = _extension(scope)
    if extension.get("proxied", False) or any(name in PROXY_HEADERS for name, _ in scope["headers"]):
        return False
    client = scope.get("client")
    if client is None:
        return bool(extension.get("unix", False))
    try:
        address = ipaddress.ip_address(client[0].partition("%")[0])
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback
