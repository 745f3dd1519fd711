"""The roads that Python drives: HTTP/1.1, HTTP/2 and QUIC. Each ends in ducts, which a worker of the broker serves like any connection.

Everything here runs on the control loop and is plain Python. Broker code cannot tell these roads from a socket.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a connection comes from; what an authenticator will be told of it."""

    listener: int
    """Id that ``Engine.add_listener`` returned."""
    peer: str
    """``host:port``, IPv6 in brackets; ``unix``."""
    secure: bool = False
    """TLS or QUIC between the client and us."""
    certificate: bytes | None = field(default=None, repr=False)
    """The client's X.509 certificate, DER, verified."""
    key_name: str | None = None
    """Name of the pre-shared key that the client holds."""
    proxied: bool = False
    """A proxy has handed it on, whose word ``peer`` may be, or a page from elsewhere has made it: it never counts as a client
    of this machine."""


Adopt = Callable[[Origin, bool], socket.socket]
"""``adopt(origin, websocket)``: a non-blocking end of a socket pair whose other end a worker has taken as a new MQTT connection.

``websocket``: the bytes are WebSocket frames (RFC 6455 section 5) rather than bare MQTT. Raises ``OSError`` where there is no
descriptor, or none of the connections that the limits allow, left.
"""
