"""Certificates that the program makes, and the command line around TLS."""

from __future__ import annotations

import datetime
import os
import signal
import ssl
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from mqttc import certs
from mqttc.cli.broker import main
from mqttc.config import Config, ConfigError
from tests.conftest import tcp_address
from tests.rawclient import Peer
from tests.tls.conftest import Peers


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_command_makes_a_ca_with_certificates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--dir", str(tmp_path)]
    assert main(["cert", "ca", *where]) == 0
    assert main(["cert", "server", *where, "--host", "broker.test", "--host", "::1"]) == 0
    assert main(["cert", "client", *where, "--name", "pump 1/../x"]) == 0
    assert main(["cert", "revoke", *where, str(tmp_path / "pump_1_.._x.pem")]) == 0
    assert capsys.readouterr().out.split() == [
        str(tmp_path / name) for name in ("ca.pem", "ca.key", "server.pem", "server.key", "pump_1_.._x.pem", "pump_1_.._x.key", "crl.pem")
    ]
    assert [mode(path) for path in sorted(tmp_path.glob("*.key"))] == [0o600] * 3
    for purpose, file in (("sslserver", "server.pem"), ("sslclient", "pump_1_.._x.pem")):
        verify = ["openssl", "verify", "-x509_strict", "-purpose", purpose, "-CAfile", str(tmp_path / "ca.pem"), str(tmp_path / file)]
        assert subprocess.run(verify, capture_output=True, check=False).returncode == 0
    checked = [*verify[:-1], "-crl_check", "-CRLfile", str(tmp_path / "crl.pem"), verify[-1]]
    assert b"certificate revoked" in subprocess.run(checked, capture_output=True, check=False).stderr


def test_a_ca_is_not_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cert", "ca", "--dir", str(tmp_path)]) == 0
    key = (tmp_path / "ca.key").read_bytes()
    assert main(["cert", "ca", "--dir", str(tmp_path)]) == 1
    assert "has a CA already" in capsys.readouterr().err
    assert main(["cert", "client", "--dir", str(tmp_path), "--name", "ca"]) == 1
    assert (tmp_path / "ca.key").read_bytes() == key


def test_revocations_add_up(tmp_path: Path) -> None:
    certs.make_authority(tmp_path)
    pairs = [certs.make_client(tmp_path, f"c{i}") for i in range(2)]
    for pair in pairs:
        certs.make_revocations(tmp_path, [pair.certificate])
    revoked = {entry.serial_number for entry in x509.load_pem_x509_crl((tmp_path / "crl.pem").read_bytes())}
    assert revoked == {certs.read_certificate(pair.certificate).serial_number for pair in pairs}


def test_self_signed_is_kept_while_it_fits(tmp_path: Path) -> None:
    pair, made = certs.ensure_self_signed(tmp_path / "new", ["localhost", "127.0.0.1"])
    assert made and mode(pair.key) == 0o600
    names = certs.read_certificate(pair.certificate).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(name.value) for name in names] == ["localhost", "127.0.0.1"]
    assert certs.ensure_self_signed(tmp_path / "new", ["localhost", "127.0.0.1"]) == (pair, False)
    assert certs.ensure_self_signed(tmp_path / "new", ["localhost"]) == (pair, True)
    certs.make_authority(tmp_path)
    other = certs.make_server(tmp_path, ["localhost"])
    other.key.replace(pair.key)
    assert certs.ensure_self_signed(tmp_path / "new", ["localhost"]) == (pair, True)


def test_self_signed_is_renewed_before_it_expires(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pair, _ = certs.ensure_self_signed(tmp_path, ["localhost"], days=90)
    old = pair.certificate.read_bytes()
    now = datetime.datetime.now(datetime.UTC)
    monkeypatch.setattr(certs, "_now", lambda: now + datetime.timedelta(days=59))
    assert certs.ensure_self_signed(tmp_path, ["localhost"])[1] is False
    monkeypatch.setattr(certs, "_now", lambda: now + datetime.timedelta(days=61))
    assert certs.ensure_self_signed(tmp_path, ["localhost"])[1] is True
    assert pair.certificate.read_bytes() != old


def test_a_running_broker_renews(broker_factory: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, peers: Peers) -> None:
    config = {"listeners": [{"url": "tls://localhost:0"}], "tls": {"self_signed": True}, "data_dir": str(tmp_path)}
    broker = broker_factory({**config, "workers": 1})
    tls = broker._running.files[0]
    pem = tmp_path / "tls" / "self-signed.pem"
    old = pem.read_text()
    assert tls.check() is False
    now = datetime.datetime.now(datetime.UTC)
    monkeypatch.setattr(certs, "_now", lambda: now + datetime.timedelta(days=61))
    tls._looked -= 3601
    assert tls.check() is True
    assert pem.read_text() != old
    monkeypatch.undo()
    context = ssl.create_default_context(cafile=str(pem))
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    peer = peers(broker, context)
    assert ssl.DER_cert_to_PEM_cert(peer.socket.getpeercert(True)) == pem.read_text()


def test_host_that_is_none(tmp_path: Path) -> None:
    for host in ("", "a b", "x/y", "-"):
        with pytest.raises(certs.CertificateError, match="neither a host name nor an address"):
            certs.ensure_self_signed(tmp_path, [host])


def test_program_with_a_self_signed_certificate(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mqttc", "--listen", "mqtts://127.0.0.1:0", "--tls-self-signed", "--tls-host", "localhost"]
    environment = {**os.environ, "MQTTC_DATA_DIR": str(tmp_path / "data")}
    program = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        assert program.stderr is not None
        url = program.stderr.readline().split()[-1]
        assert url.startswith("tls://") and program.stderr.readline() == "ready\n"
        context = ssl.create_default_context(cafile=str(tmp_path / "data" / "tls" / "self-signed.pem"))
        peer = Peer(tcp_address(url), tls=context)
        assert peer.connect("c").reason == 0
        os.kill(program.pid, signal.SIGHUP)
        assert "reloaded" in next(line for line in program.stderr if "reloaded" in line)
        peer.ping()
        peer.close()
        program.send_signal(signal.SIGTERM)
        assert program.wait(10) == 0
    finally:
        program.kill()
        program.wait()
        program.stderr.close()


def test_check_reads_the_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    listen = f"tls://127.0.0.1:0?certificate={tmp_path}/server.pem&key={tmp_path}/server.key"
    assert main(["--check", "--listen", listen]) == 2
    assert "server.pem: No such file" in capsys.readouterr().err
    certs.make_authority(tmp_path)
    certs.make_server(tmp_path, ["localhost"])
    assert main(["--check", "--listen", listen]) == 0


@pytest.mark.parametrize(
    ("listener", "message"),
    [
        ({"url": "tls://:1"}, "needs a certificate"),
        ({"url": "tcp://:1", "certificate": "x"}, "certificate is for tls://, wss:// and quic:// listeners"),
        ({"url": "unix:///x", "alpn": ["a"]}, "alpn is for tls://, wss:// and quic:// listeners"),
        ({"url": "tls://:1", "certificate": "x", "client_certificate": "required"}, "client_certificate needs client_ca"),
        ({"url": "tls://:1", "certificate": "x", "client_ca": "y"}, "client_ca needs client_certificate"),
        ({"url": "tls://:1", "certificate": "x", "crl": "y"}, "crl needs client_ca"),
        ({"url": "tls://:1", "psk_file": "x", "key": "y"}, "key needs certificate"),
        ({"url": "tls://:1", "certificate": "x", "minimum_tls_version": "1.1"}, "minimum_tls_version"),
        ({"url": "tls://:1", "certificate": "x", "certificates": [{"certificat": "y"}]}, "did you mean certificate"),
    ],
)
def test_what_a_listener_must_have(listener: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Config.of({"listeners": [listener]})


def test_urls_of_tls() -> None:
    config = Config.of({"listeners": [{"url": "mqtts://h?psk_file=x"}, {"url": "tls://[::1]:1?certificate=c&alpn=%5B%22a%22%5D"}]})
    assert [listener.address.url() for listener in config.listeners] == ["tls://h:8883", "tls://[::1]:1"]
    assert config.listeners[1].alpn == ["a"]
    hidden = Config.of({"listeners": [{"url": "tls://h", "certificate": "c", "key_password": "secret"}]})
    assert hidden.listeners[0].key_password == "secret" and "secret" not in repr(hidden)
