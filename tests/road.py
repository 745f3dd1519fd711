"""Where a peer of the tests goes, and what can go wrong before it is there."""

from __future__ import annotations

import functools
import os
import ssl
from dataclasses import dataclass
from pathlib import Path

TIMEOUT = float(os.environ.get("MQTTC_TEST_TIMEOUT", "5"))
TRANSPORTS = ("tcp", "unix", "tls", "ws", "wss", "h2", "wss-h2", "quic")
SECURE = ("tls", "wss", "wss-h2", "quic")
WEBSOCKET = ("ws", "wss", "h2", "wss-h2")
STREAMED = ("h2", "wss-h2", "quic")
"""Their connections carry several streams."""
SCHEMES = {"tcp": "tcp", "unix": "unix", "tls": "tls", "ws": "ws", "wss": "wss", "h2": "ws", "wss-h2": "wss", "quic": "quic"}
"""Of the listener that serves each."""

Address = tuple[str, int] | str


class TransportError(ConnectionError):
    """The road could not be opened: a handshake failed or was refused."""


class Refused(TransportError):
    """The server answered a WebSocket handshake with something else; `status` and `headers` (names in lower case) are its response's."""

    def __init__(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes = b"") -> None:
        super().__init__(f"status {status}: {body!r}")
        self.status = status
        self.headers = {bytes(name).decode(): bytes(value).decode() for name, value in headers}
        self.body = body


@dataclass(frozen=True)
class Road:
    """How to reach a listener. `ca`: file of the CA that its certificate is of; `certificate`, `key`: files of the client's own."""

    transport: str = "tcp"
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    host: str = "localhost"
    path: str = "/mqtt"
    split: bool = False
    """WebSocket: cut what is sent into frames and fragments at random, with pings in between."""
    headers: tuple[tuple[bytes, bytes], ...] = ()
    """Further ones of the WebSocket handshake."""
    subprotocols: tuple[str, ...] = ("mqtt",)

    def context(self) -> ssl.SSLContext:
        alpn = {"wss-h2": "h2", "wss": "http/1.1"}.get(self.transport, "")
        return _context(self.ca, self.certificate, self.key, alpn)


@functools.cache
def _context(ca: Path | None, certificate: Path | None, key: Path | None, alpn: str) -> ssl.SSLContext:
    made = ssl.create_default_context(cafile=None if ca is None else str(ca))
    if certificate is not None:
        made.load_cert_chain(certificate, key)
    if alpn:
        made.set_alpn_protocols([alpn])
    return made
