"""New certificates, CAs and revocation lists while clients are connected, and what becomes of their session tickets."""

from __future__ import annotations

import os
import shutil
import ssl
from pathlib import Path
from typing import Any

import pytest

from mqttc import certs, control
from mqttc.config import ConfigError
from tests import transports
from tests.broker.conftest import Events, eventually
from tests.conftest import tcp_address
from tests.rawclient import Peer, PeerClosed
from tests.tls.conftest import Peers
from tests.transports import SCHEMES, Road


@pytest.fixture
def own(folder: Path, tmp_path: Path) -> Path:
    """A copy of the CA's directory that a test may change."""
    return Path(shutil.copytree(folder, tmp_path / "own"))


def reissue(own: Path) -> str:
    """A new certificate for the server; its text."""
    certs.make_server(own, ["localhost", "127.0.0.1"])
    return (own / "server.pem").read_text()


def config(own: Path, **keys: Any) -> dict[str, Any]:
    files = {key: str(own / keys[key]) for key in ("client_ca", "crl", "psk_file") if key in keys}
    table = {"url": "tls://127.0.0.1:0", "certificate": str(own / "server.pem"), "key": str(own / "server.key"), **keys, **files}
    return {"listeners": [table], "auth": {"anonymous": True}, "log": {"level": "debug"}, "workers": 2}


def shown(peer: Peer) -> str:
    return ssl.DER_cert_to_PEM_cert(peer.socket.getpeercert(True))


def leave(peer: Peer) -> ssl.SSLSession:
    """The session for a later connection; a ticket of TLS 1.3 has come with the first bytes read."""
    peer.ping()
    session = peer.socket.session
    peer.close()
    return session


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_tickets_outlive_a_reload(broker_factory: Any, context: Any, peers: Peers, own: Path, version: str) -> None:
    broker = broker_factory(config(own))
    tls = context(version=version)
    session = leave(peers(broker, tls))
    new = reissue(own)
    broker.reload(config(own))
    again = peers(broker, tls, session=session)
    assert again.socket.session_reused
    assert broker.stats()["tls_handshakes_resumed"] == 1
    fresh = peers(broker, context(version=version))
    assert not fresh.socket.session_reused and shown(fresh) == new


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_ticket_keys_are_replaced_in_two_steps(broker_factory: Any, context: Any, peers: Peers, own: Path, version: str) -> None:
    broker = broker_factory(config(own))
    tls = context(version=version)
    session = leave(peers(broker, tls))
    broker._running.files[0].native.rotate()
    assert peers(broker, tls, session=session).socket.session_reused
    broker._running.files[0].native.rotate()
    assert not peers(broker, tls, session=session).socket.session_reused


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_a_ticket_does_not_outlive_the_certificate_in_it(broker_factory: Any, context: Any, peers: Peers, own: Path, version: str) -> None:
    keys = {"client_ca": "ca.pem", "client_certificate": "required", "crl": "crl.pem"}
    broker = broker_factory(config(own, **keys))
    tls = context("device", version=version)
    session = leave(peers(broker, tls))
    again = peers(broker, tls, session=session)
    assert again.socket.session_reused
    session = leave(again)
    certs.make_revocations(own, [own / "device.pem"])
    broker.reload(config(own, **keys))
    with pytest.raises((ssl.SSLError, ConnectionError, PeerClosed)):
        peers(broker, tls, session=session)


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_a_ticket_does_not_stand_in_for_a_required_certificate(
    broker_factory: Any, context: Any, peers: Peers, own: Path, version: str
) -> None:
    broker = broker_factory(config(own, client_ca="ca.pem", client_certificate="optional"))
    tls = context(version=version)
    session = leave(peers(broker, tls))
    broker.reload(config(own, client_ca="ca.pem", client_certificate="required"))
    with pytest.raises((ssl.SSLError, ConnectionError, PeerClosed)):
        peers(broker, tls, session=session)


@pytest.mark.parametrize(("transport", "count"), [("tls", 500), ("wss", 500), ("wss-h2", 50), ("quic", 50)])
def test_reload_under_many_connections_loses_none(broker_factory: Any, own: Path, transport: str, count: int) -> None:
    """Messages go through all of them after each reload, and who connects then sees the new certificate."""
    url = f"{SCHEMES[transport]}://127.0.0.1:0"
    broker = broker_factory(config(own, url=url))
    road = Road(transport, ca=own / "ca.pem")
    live: list[Peer] = []
    try:
        for number in range(count):
            live.append(Peer(tcp_address(broker.urls[0]), road=road))
            assert live[-1].connect(f"live{number}").reason == 0
            live[-1].subscribe("news", 1)
        for round_ in range(3):
            new = reissue(own)
            broker.reload(config(own, url=url))
            live[round_].publish("news", b"%d" % round_, 1)
            for peer in live:
                assert peer.message().payload == b"%d" % round_
            live.append(Peer(tcp_address(broker.urls[0]), road=road))
            assert live[-1].connect(f"new{round_}").reason == 0
            live[-1].subscribe("news", 1)
            if transport in ("tls", "wss"):
                assert shown(live[-1]) == new
        stats = broker.stats()
        assert stats["connects_accepted"] == count + 3 and stats["disconnects_abrupt"] == stats["disconnects_clean"] == 0
        loads = stats["quic_loads" if transport == "quic" else "tls_loads"]
        assert loads >= (3 if transport == "quic" else 4)  # more where the broker has seen the files before it was told
    finally:
        for peer in live:
            peer.close()
        transports.stop()


def test_files_are_watched(
    broker_factory: Any, context: Any, peers: Peers, own: Path, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also through a symbolic link, which is how Kubernetes and certbot replace files."""
    monkeypatch.setattr(control, "_WATCH_S", 0.02)
    first, second, link = own / "first", own / "second", own / "current"
    for target in (first, second):
        reissue(own)
        target.mkdir()
        for file in ("server.pem", "server.key"):
            shutil.copy(own / file, target / file)
    link.symlink_to(first)
    broker = broker_factory(config(link))
    live = peers(broker, context())
    assert shown(live) == (first / "server.pem").read_text()
    (own / "next").symlink_to(second)
    os.replace(own / "next", link)
    events.wait("certificates_loaded")
    assert shown(peers(broker, context())) == (second / "server.pem").read_text()
    live.ping()


def test_a_bad_file_leaves_the_old_one_in_force(
    broker_factory: Any, context: Any, peers: Peers, own: Path, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "_WATCH_S", 0.02)
    broker = broker_factory(config(own))
    old = (own / "server.pem").read_text()
    certs.write_file(own / "server.pem", b"nonsense", 0o644)
    assert "cannot be read" in events.wait("certificates_refused")["problem"]
    with pytest.raises(ConfigError, match="cannot be read"):
        broker.reload(config(own))
    assert shown(peers(broker, context())) == old
    new = reissue(own)
    eventually(lambda: shown(peers(broker, context())) == new)


def test_keys_of_a_listener_change_live(broker_factory: Any, context: Any, peers: Peers, own: Path) -> None:
    broker = broker_factory(config(own))
    peers(broker, context(version="1.2"))
    change = broker.reload(config(own, minimum_tls_version="1.3"))
    assert change.applied == ("listeners",) and change.needs_restart == ()
    with pytest.raises((ssl.SSLError, ConnectionError)):
        peers(broker, context(version="1.2"))
    change = broker.reload(config(own, minimum_tls_version="1.2", maximum_qos=1))
    assert change.needs_restart == ("listeners",)
