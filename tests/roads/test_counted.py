"""`connections_open`: every connection once, whatever road it has come by."""

from __future__ import annotations

from contextlib import closing
from http.client import HTTPConnection

import pytest

from tests import transports
from tests.broker.conftest import eventually
from tests.rawclient import TIMEOUT
from tests.transports import SCHEMES, STREAMED, TRANSPORTS

from .conftest import Site, StartSite, name

OVER_HTTP2 = ("h2", "wss-h2")


def open_count(site: Site, wanted: int) -> None:
    eventually(lambda: site.stat("connections_open") == wanted)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_each_with_a_connection_of_its_own(start: StartSite, transport: str) -> None:
    """Over HTTP/2 a stream is a connection, and what carries it is one, too."""
    site = start(SCHEMES[transport])
    each = 2 if transport in OVER_HTTP2 else 1
    peers = [site(transport, 5) for _ in range(3)]
    assert site.stat("connections_open") == 3 * each
    peers.pop().disconnect()
    open_count(site, 2 * each)
    for peer in peers:
        peer.close()
    open_count(site, 0)


@pytest.mark.parametrize("transport", STREAMED)
def test_many_on_one(start: StartSite, transport: str) -> None:
    """A connection of QUIC is none of TCP's: `quic_connections` counts it."""
    site = start(SCHEMES[transport])
    carrier = 1 if transport in OVER_HTTP2 else 0
    link = transports.open_link(site.address(SCHEMES[transport]), site.road(transport))
    open_count(site, carrier)
    peers = [site.raw(transport, 5, link=link) for _ in range(3)]
    for peer in peers:
        assert peer.connect(name()).reason == 0
    assert site.stat("connections_open") == carrier + 3
    for peer in peers:
        peer.disconnect()
    open_count(site, carrier)
    transports.close_link(link)
    open_count(site, 0)


def test_one_that_asks_for_pages(start: StartSite) -> None:
    site = start("ws")
    address = site.address("ws")
    assert isinstance(address, tuple)
    with closing(HTTPConnection(*address, timeout=TIMEOUT)) as one:
        for _ in range(2):
            one.request("GET", "/health")
            answer = one.getresponse()
            assert answer.status == 200 and answer.read()
            assert site.stat("connections_open") == 1
    open_count(site, 0)
