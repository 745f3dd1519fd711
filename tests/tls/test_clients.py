"""Clients and tools that others made: mosquitto_pub and mosquitto_sub, paho-mqtt, openssl s_client."""

from __future__ import annotations

import queue
import shutil
import ssl
import subprocess
from pathlib import Path
from typing import Any

import pytest

from mqttc.auth import Request, Verdict
from tests.broker.conftest import Events
from tests.conftest import tcp_address

KEY = "0123456789abcdef0123456789abcdef"

mosquitto = pytest.mark.skipif(shutil.which("mosquitto_pub") is None, reason="mosquitto_pub is not installed")


def publish(broker: Any, *options: str) -> subprocess.CompletedProcess[str]:
    port = tcp_address(broker.urls[0])[1]
    command = ["mosquitto_pub", "-h", "localhost", "-p", str(port), "-t", "m/t", "-m", "hello", "-q", "1", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)


def through(broker: Any, events: Events, *options: str) -> str:
    """What mosquitto_sub prints of what mosquitto_pub sends, both with these options."""
    port = tcp_address(broker.urls[0])[1]
    command = ["mosquitto_sub", "-h", "localhost", "-p", str(port), "-t", "m/#", "-C", "1", "-W", "15", "-v", "-i", "receiver", *options]
    receiver = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        events.wait("subscribed", client_id="receiver")
        sent = publish(broker, *options)
        assert sent.returncode == 0, sent.stderr
        return receiver.communicate(timeout=20)[0].strip()
    finally:
        receiver.kill()
        receiver.wait()


@mosquitto
@pytest.mark.parametrize("version", ["tlsv1.2", "tlsv1.3"])
@pytest.mark.parametrize("own", [False, True], ids=["server certificate", "client certificate"])
def test_mosquitto(start: Any, folder: Path, events: Events, version: str, own: bool) -> None:
    keys = {"client_ca": "ca.pem", "client_certificate": "required"} if own else {}
    broker = start(**keys)
    options = ["--cafile", str(folder / "ca.pem"), "--tls-version", version, "--tls-alpn", "mqtt"]
    if own:
        assert publish(broker, *options).returncode != 0
        options += ["--cert", str(folder / "device.pem"), "--key", str(folder / "device.key")]
    assert through(broker, events, *options) == "m/t hello"


class Curious:
    """Admits everybody and remembers what was asked."""

    def __init__(self) -> None:
        self.requests: list[Request] = []

    async def authenticate(self, request: Request) -> Verdict:
        self.requests.append(request)
        return Verdict(0)


@mosquitto
@pytest.mark.parametrize("certificate", [False, True], ids=["keys only", "keys and certificate"])
@pytest.mark.parametrize("version", ["tlsv1.2", "tlsv1.3"])
def test_mosquitto_with_a_pre_shared_key(start: Any, events: Events, version: str, certificate: bool) -> None:
    keys = {} if certificate else {"certificate": None, "key": None}
    curious = Curious()
    broker = start(**keys, psk_file="keys", psk_hint="mqttc", authenticator=curious)
    options = ["--tls-version", version, "--psk"]
    assert through(broker, events, *options, KEY, "--psk-identity", "sensor-1") == "m/t hello"
    assert [request.identity.key_name for request in curious.requests if request.identity is not None] == ["sensor-1", "sensor-1"]
    assert publish(broker, *options, "00ff", "--psk-identity", "with:colon").returncode == 0
    before = len(curious.requests)
    assert publish(broker, *options, KEY[::-1], "--psk-identity", "sensor-1").returncode != 0
    refused = publish(broker, *options, KEY, "--psk-identity", "nobody")
    events.wait("handshake failed", times=1 if certificate else 2)       # the client knows before it is counted
    if certificate:
        # TLS 1.3 goes on with the certificate, and mosquitto_pub with --psk looks at none: it is a client like any other.
        assert refused.returncode == 0 and broker.stats()["tls_handshakes_failed"] == 1
    else:
        assert refused.returncode != 0 and broker.stats()["tls_handshakes_failed"] == 2
    assert len(curious.requests) == before


def s_client(broker: Any, folder: Path, *options: str) -> str:
    host, port = tcp_address(broker.urls[0])
    command = ["openssl", "s_client", "-connect", f"{host}:{port}", "-CAfile", str(folder / "ca.pem"), *options]
    done = subprocess.run(command, input="", capture_output=True, text=True, timeout=20, check=False)
    return (done.stdout + done.stderr).replace("CN = ", "CN=")  # as OpenSSL writes it from 3.2 on


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_openssl_sees_what_was_configured(start: Any, folder: Path, version: str) -> None:
    broker = start(certificates=[{"certificate": "other.pem", "key": "other.key"}])
    said = s_client(broker, folder, version, "-alpn", "mqtt", "-servername", "localhost")
    assert "Verify return code: 0 (ok)" in said and "ALPN protocol: mqtt" in said and "CN=localhost" in said
    assert "Compression: NONE" in said
    assert "CN=other.test" in s_client(broker, folder, version, "-servername", "b.wild.test")
    assert "no application protocol" in s_client(broker, folder, version, "-alpn", "h2,http/1.1")


def test_openssl_resumes(start: Any, folder: Path) -> None:
    said = s_client(start(), folder, "-tls1_2", "-reconnect")
    assert said.count("Reused, TLSv1.2") == 5


@pytest.mark.parametrize("certificate", [False, True], ids=["keys only", "keys and certificate"])
def test_pre_shared_keys_of_tls_1_2(start: Any, folder: Path, certificate: bool) -> None:
    keys = {} if certificate else {"certificate": None, "key": None}
    broker = start(**keys, psk_file="keys", psk_hint="site 7")
    said = s_client(broker, folder, "-tls1_2", "-psk", KEY, "-psk_identity", "sensor-1")
    assert "Cipher is ECDHE-PSK-CHACHA20-POLY1305" in said and "PSK identity hint: site 7" in said
    assert "unknown psk identity" in s_client(broker, folder, "-tls1_2", "-psk", KEY, "-psk_identity", "nobody")
    assert "alert" in s_client(broker, folder, "-tls1_2", "-psk", KEY[::-1], "-psk_identity", "sensor-1")


@pytest.mark.parametrize("version", ["-tls1", "-tls1_1"])
def test_old_versions_are_refused(start: Any, folder: Path, version: str) -> None:
    assert "Cipher is (NONE)" in s_client(start(), folder, version, "-cipher", "DEFAULT@SECLEVEL=0")


@pytest.mark.parametrize("own", [False, True])
def test_paho(start: Any, folder: Path, own: bool) -> None:
    import paho.mqtt.client as paho

    keys = {"client_ca": "ca.pem", "client_certificate": "required"} if own else {}
    broker = start(**keys)
    got: queue.Queue[bytes] = queue.Queue()
    subscribed: queue.Queue[Any] = queue.Queue()
    client = paho.Client(paho.CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
    pair = {"certfile": str(folder / "device.pem"), "keyfile": str(folder / "device.key")} if own else {}
    client.tls_set(str(folder / "ca.pem"), tls_version=ssl.PROTOCOL_TLS_CLIENT, **pair)
    client.on_message = lambda _client, _data, message: got.put(message.payload)
    client.on_subscribe = lambda *arguments: subscribed.put(arguments)
    client.connect("localhost", tcp_address(broker.urls[0])[1])
    client.loop_start()
    try:
        client.subscribe("p/#", 2)
        subscribed.get(timeout=10)
        for size in (1, 70_000):
            client.publish("p/t", b"x" * size, 2)
            assert got.get(timeout=10) == b"x" * size
    finally:
        client.disconnect()
        client.loop_stop()
