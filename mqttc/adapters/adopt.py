"""A way into a worker for connections whose bytes come through Python: one end of a socket pair."""

from __future__ import annotations

import socket

from mqttc import native
from mqttc.adapters import Origin


def socket_pair() -> tuple[socket.socket, socket.socket]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    return ours, theirs


def adopt(engine: native.Engine, origin: Origin, websocket: bool) -> socket.socket:
    """A socket pair whose other end a worker serves as a new connection; see `adapters.Adopt`."""
    ours, theirs = socket_pair()
    try:
        engine.adopt(
            theirs.detach(),
            origin.listener,
            peer=origin.peer,
            websocket=websocket,
            certificate=origin.certificate,
            key_name=origin.key_name,
            remote=origin.proxied,
        )
    except (MemoryError, RuntimeError) as error:
        ours.close()
        raise OSError(str(error)) from error
    return ours
