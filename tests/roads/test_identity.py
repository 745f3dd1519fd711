"""What a client proves in its TLS or QUIC handshake, on whichever road, reaches the authenticator with its address."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from tests import transports
from tests.rawclient import PeerClosed
from tests.roads.conftest import Curious, StartSite, name
from tests.transports import SCHEMES, SECURE, STREAMED

each_transport = pytest.mark.parametrize("transport", SECURE)


@each_transport
@pytest.mark.parametrize("rule", ["none", "optional", "required"])
def test_client_certificates(start: StartSite, folder: Path, transport: str, rule: str) -> None:
    """With and without one, by the listener's rule."""
    curious = Curious()
    keys = {"client_certificate": rule, **({} if rule == "none" else {"client_ca": str(folder / "ca.pem")})}
    site = start(SCHEMES[transport], authenticator=curious, **{SCHEMES[transport]: keys})
    own = {"certificate": folder / "device.pem", "key": folder / "device.key"}
    assert site.raw(transport, 5, **own).connect(name(), username="u").reason == 0
    (request,) = curious.requests
    assert request.peer.startswith("127.0.0.1:")
    if rule == "none":
        assert request.identity is None
    else:
        der = x509.load_pem_x509_certificate((folder / "device.pem").read_bytes()).public_bytes(Encoding.DER)
        assert request.identity is not None and request.identity.certificate == der and request.identity.common_name == "device"
    if rule == "required":
        with pytest.raises((OSError, PeerClosed)):  # TLS 1.3 tells a client behind its own handshake
            site.raw(transport, 5).connect(name(), username="u")
        assert len(curious.requests) == 1
    else:
        assert site.raw(transport, 5).connect(name(), username="u").reason == 0
        assert curious.requests[1].identity is None


@pytest.mark.parametrize("transport", [transport for transport in STREAMED if transport in SECURE])
def test_streams_share_their_connections_identity(start: StartSite, folder: Path, transport: str) -> None:
    curious = Curious()
    keys = {"client_certificate": "required", "client_ca": str(folder / "ca.pem")}
    site = start(SCHEMES[transport], authenticator=curious, **{SCHEMES[transport]: keys})
    own = {"certificate": folder / "device.pem", "key": folder / "device.key"}
    link = transports.open_link(site.address(SCHEMES[transport]), site.road(transport, **own))
    for _ in range(3):
        assert site.raw(transport, 5, link=link).connect(name(), username="u").reason == 0
    assert [request.identity.common_name for request in curious.requests if request.identity is not None] == ["device"] * 3
    assert len({request.peer for request in curious.requests}) == 1
    transports.close_link(link)
