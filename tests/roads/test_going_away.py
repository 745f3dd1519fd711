"""What a WebSocket hears when the broker ends: a close frame with status 1001 (RFC 6455 section 7.4.1), after a 5.0 client's DISCONNECT."""

from __future__ import annotations

import pytest

from tests.rawclient import DISCONNECT, Peer, disconnect_packet
from tests.transports import WEBSOCKET, WebSocketPipe

from .conftest import StartSite

NORMAL, GOING_AWAY = 1000, 1001
SHUTTING_DOWN = 0x8B


def close_code(peer: Peer) -> int | None:
    pipe = peer.pipe
    assert isinstance(pipe, WebSocketPipe)
    return pipe.close_code


@pytest.mark.parametrize("transport", WEBSOCKET)
def test_the_broker_ends(start: StartSite, transport: str) -> None:
    """Whether a client has an MQTT version yet or not; one that had ended before was told that all was well."""
    site = start("ws", "wss")
    left = site(transport, 4)
    left.send(disconnect_packet())
    assert left.expect_close() == []
    assert close_code(left) == NORMAL
    peers = {version: site(transport, version) for version in (3, 4, 5)}
    silent = site.raw(transport)
    site.broker.stop()
    for version, peer in peers.items():
        said = [(packet.type, packet.reason) for packet in peer.expect_close()]
        assert said == ([(DISCONNECT, SHUTTING_DOWN)] if version == 5 else [])
        assert close_code(peer) == GOING_AWAY
    assert silent.expect_close() == []
    assert close_code(silent) == GOING_AWAY
