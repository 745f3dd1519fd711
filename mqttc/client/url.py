"""Where a broker is: its URL, taken apart and checked."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final
from urllib.parse import SplitResult, unquote, urlsplit

TCP: Final = "tcp"
UNIX: Final = "unix"
WEBSOCKET: Final = "websocket"
QUIC: Final = "quic"

_SCHEMES: Final = {
    "mqtt": (TCP, False, 1883),
    "tcp": (TCP, False, 1883),
    "mqtts": (TCP, True, 8883),
    "tls": (TCP, True, 8883),
    "ws": (WEBSOCKET, False, 80),
    "wss": (WEBSOCKET, True, 443),
    "unix": (UNIX, False, 0),
    "quic": (QUIC, True, 14567),
}


@dataclass(frozen=True, slots=True)
class Target:
    """`path`: of the socket for unix, of the request (with its query) for WebSocket. `shown` is the URL without its password."""

    scheme: str
    road: str
    secure: bool
    host: str
    port: int
    path: str
    username: str | None
    password: str | None = field(repr=False)
    shown: str

    @property
    def authority(self) -> str:
        """For a Host header: the port is left out where it is the scheme's own."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.secure else 80) else f"{host}:{self.port}"


def parse_url(url: str) -> Target:
    """Raises ``ValueError``, never with the password in its text."""
    parts = urlsplit(url)
    scheme = parts.scheme.lower()
    if scheme not in _SCHEMES:
        raise ValueError(f"{scheme or '(none)'}: not the scheme of a broker's URL, which are {', '.join(_SCHEMES)}")
    road, secure, port = _SCHEMES[scheme]
    shown = _shown(parts, scheme)
    try:
        port = parts.port or port
    except ValueError:
        raise ValueError(f"{shown}: the port is not a number within 1 and 65535") from None
    if parts.fragment or (parts.query and road != WEBSOCKET):
        raise ValueError(f"{shown}: there is no use for what stands behind the path")
    username, password = _credential(parts.username), _credential(parts.password)
    host, path = parts.hostname or "", parts.path
    if road == UNIX:
        if host or not path.startswith("/"):
            raise ValueError(f"{shown}: a Unix socket is unix:///and/its/path")
        path = unquote(path)
    elif not host:
        raise ValueError(f"{shown}: there is no host")
    elif road == WEBSOCKET:
        path = (path or "/mqtt") + (f"?{parts.query}" if parts.query else "")
        if not path.isascii() or any(character <= " " for character in path):
            raise ValueError(f"{shown}: what is not ASCII in a path has to be percent-encoded")
    elif path not in ("", "/"):
        raise ValueError(f"{shown}: only WebSocket and Unix sockets have a path")
    return Target(scheme, road, secure, host, port, path, username, password, shown)


def _credential(text: str | None) -> str | None:
    return None if text is None else unquote(text)


def _shown(parts: SplitResult, scheme: str) -> str:
    """Without user name and password: also where these end behind a /, ? or # that should have been percent-encoded."""
    behind = f"{parts.path}?{parts.query}#{parts.fragment}"
    if "@" in behind:
        return f"{scheme}://…@…"
    return f"{scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
