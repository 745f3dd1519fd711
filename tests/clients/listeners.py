"""Listeners for every transport that real clients speak, and what the clients need to know of them."""

from __future__ import annotations

import atexit
import functools
import itertools
import shutil
import ssl
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mqttc import certs
from tests.clients.model import Options, Variant
from tests.conftest import tcp_address

SECURE = ("tls", "wss")
WEBSOCKET = ("ws", "wss")
PATH = "/mqtt"
_numbers = itertools.count(1)


@functools.cache
def folder() -> Path:
    """A CA and a server's certificate of it for localhost and 127.0.0.1; Unix sockets lie here too."""
    made = Path(tempfile.mkdtemp(prefix="mqttc-clients-"))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    certs.make_authority(made)
    certs.make_server(made, ["localhost", "127.0.0.1"])
    return made


@functools.cache
def context() -> ssl.SSLContext:
    """A client's, that trusts the CA."""
    return ssl.create_default_context(cafile=str(folder() / "ca.pem"))


def listeners(*transports: str) -> list[dict[str, Any]]:
    """One for each transport."""
    tables: list[dict[str, Any]] = []
    for transport in transports:
        url = f"unix://{folder()}/{next(_numbers)}.sock" if transport == "unix" else f"{transport}://127.0.0.1:0"
        files = {"certificate": str(folder() / "server.pem"), "key": str(folder() / "server.key")}
        tables.append({"url": url, **(files if transport in SECURE else {})})
    return tables


def address(broker: Any, variant: Variant) -> tuple[str, int] | str:
    """Of the broker's listener for the variant's transport."""
    url = next(url for url in broker.urls if url.startswith(f"{variant.transport}:"))
    return urlsplit(url).path if variant.transport == "unix" else tcp_address(url)


def is_secure(options: Options) -> bool:
    return options.transport in SECURE


def is_websocket(options: Options) -> bool:
    return options.transport in WEBSOCKET
