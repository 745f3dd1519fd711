"""Each road to a broker: runs over it lose nothing, and what stands in the way is said. The broker's side of them is not on trial here."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mqttc.bench import relay, upstream_quic
from mqttc.bench.client import Probe, ProbeError
from mqttc.bench.profile import Profile, RunError
from mqttc.bench.relay import Relay
from mqttc.bench.result import Result
from mqttc.bench.road import Road, upgrade_request
from mqttc.bench.run import run
from mqttc.bench.upstream import WINDOW_BYTES
from mqttc.load import Load, TlsClient
from tests.bench.conftest import Target
from tests.bench.gateways import Gateway, H2Gateway, QuicGateway, WebSocketGateway
from tests.face.net_reactor import ALLOC_TESTED, blocks_live, fail_allocations

SMALL: dict[str, dict[str, Any]] = {
    "p2p": {"publishers": 5, "subscribers": 5, "messages": 200, "qos": 1},
    "fanout": {"publishers": 2, "subscribers": 10, "messages": 200, "payload_most": 3000},
    "retain": {"messages": 300, "subscribers": 2},
    "hold": {"connections": 40, "duration": 0.1},
    "conn": {"connections": 5, "duration": 0.3, "warmup": 0.1},
}
COUNTS = {"p2p": 1000, "fanout": 4000, "retain": 600, "hold": 40}


def small(url: str, scenario: str, **keys: Any) -> Result:
    result = run(scenario, Profile(scenario=scenario, url=url, window=200, **{**SMALL[scenario], **keys}))
    assert result.problems == []
    assert result.expected == result.delivered
    assert result.count == COUNTS[scenario] if scenario in COUNTS else result.count > 0
    return result


def eventually(done: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not done():
        assert time.monotonic() < end
        time.sleep(0.005)


def served(certificates: Path, name: str = "server", protocols: list[str] | None = None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / f"{name}.pem", certificates / f"{name}.key")
    if protocols:
        context.set_alpn_protocols(protocols)
    return context


# ---- TLS


@pytest.fixture
def tls_broker(broker_factory: Any, certificates: Path) -> Callable[..., tuple[Any, str]]:
    """A broker with a TLS listener, and its URL for us."""

    def make(**keys: Any) -> tuple[Any, str]:
        files = {"certificate": str(certificates / "server.pem"), "key": str(certificates / "server.key")}
        broker = broker_factory({"listeners": [{"url": "tls://127.0.0.1:0", **files, **keys}], "auth": {"anonymous": True}})
        return broker, broker.urls[0].replace("tls://", "mqtts://")

    return make


@pytest.mark.parametrize("scenario", SMALL)
def test_tls(tls_broker: Any, certificates: Path, scenario: str) -> None:
    broker, url = tls_broker()
    result = small(url, scenario, ca_file=str(certificates / "ca.pem"), threads=2)
    handshakes = broker.stats()["tls_handshakes"]
    assert result.tls_handshakes is not None and 3 <= result.tls_handshakes <= handshakes
    assert result.tls_resumed == broker.stats()["tls_handshakes_resumed"] == 0
    assert not any("Python" in note for note in result.notes)


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_handshakes_are_full_or_resumed_as_asked(tls_broker: Any, certificates: Path, version: str) -> None:
    _, url = tls_broker()
    ca = (certificates / "ca.pem").read_bytes()
    for resume in (False, True):
        tls = TlsClient(ca=ca, server_name="127.0.0.1", resume=resume, maximum_version=version)  # type: ignore[arg-type]
        load = Load("127.0.0.1", int(url.rpartition(":")[2]), tls=tls)
        try:
            load.add_client("again", again=True)
            load.start()
            load.connect()
            eventually(lambda load=load: load.counters()["connects"] >= 10)  # type: ignore[misc]
            load.disconnect()
            eventually(lambda load=load: load.counters()["connected"] == 0)  # type: ignore[misc]
        finally:
            load.close()
        stats = tls.stats()
        assert stats["handshakes"] >= 10 and stats["failed"] == 0
        assert stats["resumed"] >= stats["handshakes"] - 2 if resume else stats["resumed"] == 0


def test_a_resumed_run_is_reported(tls_broker: Any, certificates: Path) -> None:
    _, url = tls_broker()
    result = small(url, "conn", ca_file=str(certificates / "ca.pem"), resume=True)
    assert result.tls_handshakes and result.tls_resumed and result.tls_resumed > result.tls_handshakes // 2


def test_versions_that_do_not_meet(tls_broker: Any) -> None:
    _, url = tls_broker(minimum_tls_version="1.3")
    assert "version" in failure(url, TlsClient(insecure=True, maximum_version="1.2"))
    assert failure(url, TlsClient(insecure=True, ciphersuites="TLS_AES_128_CCM_SHA256")).startswith("TLS handshake failed: ")


def failure(url: str, tls: TlsClient, **options: Any) -> str:
    """What a native client says."""
    load = Load("127.0.0.1", int(url.rpartition(":")[2].partition("/")[0]), tls=tls, **options)
    try:
        load.add_client("one")
        load.start()
        assert load.failure() is None
        load.connect()
        eventually(lambda: load.counters()["refused"] == 1)
        assert load.counters()["connects"] == 0
        found = load.failure()
    finally:
        load.close()
    assert found is not None
    return found


def test_a_broker_that_is_not_trusted(tls_broker: Any, certificates: Path) -> None:
    """Probe and native clients say the same."""
    _, url = tls_broker()
    foreign = certificates / "foreign" / "ca.pem"
    with pytest.raises(ProbeError, match=r"TLS handshake failed: unable to get local issuer certificate"):
        small(url, "p2p", ca_file=str(foreign))
    tls = TlsClient(ca=foreign.read_bytes(), server_name="localhost")
    assert failure(url, tls) == "TLS handshake failed: unable to get local issuer certificate"
    assert tls.stats() == {"handshakes": 0, "resumed": 0, "failed": 1}
    assert failure(url, TlsClient(server_name="localhost")).startswith("TLS handshake failed: ")  # this system does not trust it either
    small(url, "p2p", insecure=True)


@pytest.mark.parametrize("name", ["other.test", "127.0.0.2"])
def test_a_certificate_for_somebody_else(tls_broker: Any, certificates: Path, name: str) -> None:
    _, url = tls_broker()
    tls = TlsClient(ca=(certificates / "ca.pem").read_bytes(), server_name=name)
    assert "mismatch" in failure(url, tls)
    _, url = tls_broker(certificate=str(certificates / "other.pem"), key=str(certificates / "other.key"))
    with pytest.raises(ProbeError, match=r"TLS handshake failed: .*mismatch"):
        small(url, "p2p", ca_file=str(certificates / "ca.pem"))


def test_client_certificate(tls_broker: Any, certificates: Path) -> None:
    ca, pem, key = (str(certificates / name) for name in ("ca.pem", "device.pem", "device.key"))
    _, url = tls_broker(client_ca=ca, client_certificate="required")
    small(url, "p2p", ca_file=ca, certificate_file=pem, key_file=key)
    with pytest.raises(ProbeError, match="certificate required"):
        small(url, "p2p", ca_file=ca)
    assert "certificate required" in failure(url, TlsClient(ca=Path(ca).read_bytes(), server_name="localhost"))


def test_a_broker_without_tls(mqttc_target: Target) -> None:
    url = mqttc_target.url.replace("mqtt://", "mqtts://")
    with pytest.raises(ProbeError, match=r"mqtts://127\.0\.0\.1:\d+: "):
        small(url, "p2p", insecure=True)
    assert "handshake" in failure(url, TlsClient(insecure=True))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"ca": b"nonsense", "server_name": "x"}, "CA certificates cannot be read"),
        ({"ca": b"x"}, "must be for somebody"),
        ({"insecure": True, "certificate": b"nonsense"}, "the certificate cannot be read"),
        ({"insecure": True, "ciphers": "NOTHING"}, "ciphers cannot be used"),
        ({"insecure": True, "ciphersuites": "NOTHING"}, "ciphersuites cannot be used"),
        ({"insecure": True, "alpn": [""]}, "1 to 255 bytes"),
        ({"insecure": True, "server_name": "a\0b"}, "no NUL"),
        ({"insecure": True, "minimum_version": "1.1"}, r"1\.2 or 1\.3"),
        ({"insecure": True, "minimum_version": "1.3", "maximum_version": "1.2"}, "the lower one first"),
    ],
)
def test_what_cannot_be_used(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TlsClient(**options)


def test_certificate_without_its_key(certificates: Path) -> None:
    with pytest.raises(ValueError, match="the key cannot be read"):
        TlsClient(insecure=True, certificate=(certificates / "device.pem").read_bytes())
    with pytest.raises(ValueError, match="cannot be used"):
        TlsClient(insecure=True, certificate=(certificates / "device.pem").read_bytes(), key=(certificates / "server.key").read_bytes())


@pytest.mark.parametrize("url", ["mqtts://127.0.0.1:1", "quic://127.0.0.1:1"])
def test_files_that_are_not_there(url: str, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"ca_file: .*none\.pem: No such file"):
        small(url, "p2p", ca_file=str(tmp_path / "none.pem"))
    with pytest.raises(RunError, match="certificate_file, key_file: No such file"):
        small(url, "p2p", certificate_file=str(tmp_path / "none.pem"))


# ---- WebSocket


@pytest.fixture
def gateway(mqttc_target: Target) -> Iterator[Callable[..., Any]]:
    """Starts a gateway before the broker."""
    with contextlib.ExitStack() as stack:

        def make(kind: type[Gateway], context: ssl.SSLContext | None = None, **options: Any) -> Any:
            return stack.enter_context(kind(options.pop("port", mqttc_target.port), context, **options))

        yield make


@pytest.mark.parametrize("scenario", SMALL)
def test_websocket(gateway: Any, scenario: str) -> None:
    made = gateway(WebSocketGateway)
    result = small(f"ws://127.0.0.1:{made.port}/a/path?x=y", scenario)
    assert set(made.paths) == {"/a/path?x=y"} and len(made.paths) >= 5
    assert result.tls_handshakes is None


@pytest.mark.parametrize("scenario", ["p2p", "conn"])
def test_websocket_over_tls(gateway: Any, certificates: Path, scenario: str) -> None:
    made = gateway(WebSocketGateway, served(certificates, protocols=["http/1.1"]))
    result = small(f"wss://localhost:{made.port}", scenario, ca_file=str(certificates / "ca.pem"))
    assert result.tls_handshakes is not None and result.tls_handshakes > 4
    assert set(made.paths) == {"/mqtt"}


def test_pings_are_answered(gateway: Any) -> None:
    made = gateway(WebSocketGateway, ping=True)
    result = small(f"ws://127.0.0.1:{made.port}", "p2p")
    assert result.delivered == 1000
    eventually(lambda: made.pings_answered == made.connections)


def test_websocket_refusals(gateway: Any, mqttc_target: Target) -> None:
    refusing, wrong = gateway(WebSocketGateway, status=404), gateway(WebSocketGateway, accept="wrong")
    with pytest.raises(ProbeError, match="the WebSocket handshake was answered with status 404"):
        small(f"ws://127.0.0.1:{refusing.port}", "p2p")
    with pytest.raises(ProbeError, match="does not speak WebSocket"):
        small(f"ws://127.0.0.1:{wrong.port}", "p2p")
    with pytest.raises(ProbeError, match=r"WebSocket|closed"):
        small(mqttc_target.url.replace("mqtt://", "ws://"), "p2p")
    for made in (refusing, wrong):
        url = f"ws://127.0.0.1:{made.port}"
        request, accept = upgrade_request(Profile(url=url).target())
        assert failure(url, None, websocket_request=request, websocket_accept=accept).startswith("WebSocket: ")  # type: ignore[arg-type]


def test_request_and_answer_belong_together() -> None:
    with pytest.raises(ValueError, match="belong together"):
        Load("127.0.0.1", 1, websocket_request=b"GET")
    request, accept = upgrade_request(Profile(url="wss://[::1]/mqtt").target())
    assert request.startswith(b"GET /mqtt HTTP/1.1\r\n") and b"\r\nHost: [::1]\r\n" in request and request.endswith(b"\r\n\r\n")
    assert len(accept) == 28


@pytest.mark.skipif(not ALLOC_TESTED, reason="this build cannot refuse allocations")
@pytest.mark.parametrize("once", [True, False])
def test_no_memory_costs_the_connection_and_not_the_process(gateway: Any, certificates: Path, once: bool) -> None:
    made = gateway(WebSocketGateway, served(certificates))
    ca = (certificates / "ca.pem").read_bytes()
    request, accept = upgrade_request(Profile(url=f"wss://localhost:{made.port}").target())
    before = blocks_live()
    stopped = refused = 0
    for granted in range(60):
        fail_allocations(granted, once)
        load = None
        try:
            tls = TlsClient(ca=ca, server_name="localhost")
            load = Load("127.0.0.1", made.port, tls=tls, websocket_request=request, websocket_accept=accept)
            load.add_client("one")
            load.start()
            load.connect()
            eventually(lambda load=load: load.counters()["refused"] + load.counters()["connects"] > 0)  # type: ignore[misc]
            refused += load.counters()["refused"]
        except (MemoryError, ValueError, OSError):
            stopped += 1
        finally:
            fail_allocations(-1)
            if load is not None:
                load.close()
        tls = load = None  # type: ignore[assignment]
        assert blocks_live() == before, granted
    assert stopped > 5 and refused > 1


# ---- HTTP/2 and QUIC: the relay


def start(gateway: Any, certificates: Path, kind: str, **options: Any) -> tuple[Any, str, dict[str, Any]]:
    """A gateway, its URL, and the keys that a profile needs for it."""
    trust = {"ca_file": str(certificates / "ca.pem")}
    if kind == "quic":
        made = gateway(QuicGateway, certificate=(certificates / "server.pem", certificates / "server.key"), **options)
        return made, f"quic://localhost:{made.port}", trust
    if kind == "wss+h2":
        made = gateway(H2Gateway, served(certificates, protocols=["h2"]), **options)
        return made, f"wss+h2://localhost:{made.port}", trust
    made = gateway(H2Gateway, **options)
    return made, f"ws+h2://127.0.0.1:{made.port}", {}


KINDS = ["ws+h2", "wss+h2", "quic"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scenario", ["p2p", "fanout", "conn"])
def test_relayed(gateway: Any, certificates: Path, kind: str, scenario: str) -> None:
    made, url, keys = start(gateway, certificates, kind)
    result = small(url, scenario, **keys)
    assert any("the client side of this run is Python" in note for note in result.notes)
    assert made.connections >= made.streams > 5  # one for each connection of a client; the last may have left before it had a stream
    assert scenario == "conn" or made.connections == made.streams


@pytest.mark.parametrize("kind", KINDS)
def test_streams_share_connections(gateway: Any, certificates: Path, kind: str) -> None:
    made, url, keys = start(gateway, certificates, kind)
    small(url, "p2p", streams=4, **keys)
    assert made.streams == 11  # a probe and ten clients
    assert made.connections in (3, 4)  # one is the probe's, if that has left before the others came


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_of_the_relay_stays(gateway: Any, certificates: Path, kind: str) -> None:
    _, url, keys = start(gateway, certificates, kind)
    before = set(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else set()
    with Road(Profile(url=url, streams=3, **keys)) as road:
        path = Path(road.address)
        assert path.is_socket() and path.parent.name.startswith("mqttc-bench-")
        assert road.port == 0
        with Probe(road.profile, "bench-look", road):
            assert road.thread_cpu_ns()[0] > 0
        assert road.failure() is None
    assert not path.parent.exists()
    if before:
        eventually(lambda: len(os.listdir("/proc/self/fd")) <= len(before) + 2)  # what the gateway has not closed yet


def test_relay_refusals(gateway: Any, certificates: Path) -> None:
    made, url, _ = start(gateway, certificates, "ws+h2", status=403)
    with pytest.raises(ProbeError, match="the WebSocket handshake was answered with status 403"):
        small(url, "p2p")
    made, url, _ = start(gateway, certificates, "ws+h2", plain=True)
    with pytest.raises(ProbeError, match="RFC 8441"):
        small(url, "p2p")
    tls = gateway(H2Gateway, served(certificates, protocols=["http/1.1"]))
    with pytest.raises(ProbeError, match=r"does not speak HTTP/2|ALPN|alpn"):
        small(f"wss+h2://localhost:{tls.port}", "p2p", ca_file=str(certificates / "ca.pem"))
    made, url, _ = start(gateway, certificates, "wss+h2")
    with pytest.raises(ProbeError, match="TLS handshake failed: unable to get local issuer certificate"):
        small(url, "p2p", ca_file=str(certificates / "foreign" / "ca.pem"))
    made, url, _ = start(gateway, certificates, "quic")
    with pytest.raises(ProbeError, match="certificate"):
        small(url, "p2p", ca_file=str(certificates / "foreign" / "ca.pem"))
    assert made.streams == 0


@pytest.mark.parametrize("scheme", ["ws+h2", "quic"])
def test_nobody_at_the_end_of_the_relay(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(ProbeError, match="refused"):
            small(f"{scheme}://127.0.0.1:{taken.getsockname()[1]}", "p2p", **({"insecure": True} if scheme == "quic" else {}))
    monkeypatch.setattr(relay, "TIMEOUT_S", 0.2)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM if scheme == "quic" else socket.SOCK_STREAM) as silent:
        silent.bind(("127.0.0.1", 0))
        if scheme != "quic":
            silent.listen()
        with pytest.raises(ProbeError, match=r"no answer within 0\.2 s"):
            small(f"{scheme}://127.0.0.1:{silent.getsockname()[1]}", "p2p", **({"insecure": True} if scheme == "quic" else {}))


# ---- our own broker's side of them


@pytest.mark.parametrize("scenario", ["p2p", "fanout", "retain", "conn", "hold"])
@pytest.mark.parametrize("scheme", ["ws", "wss", "ws+h2", "wss+h2", "quic"])
def test_our_own_broker(broker_factory: Any, certificates: Path, scheme: str, scenario: str) -> None:
    listener = {"url": f"{scheme.removesuffix('+h2')}://127.0.0.1:0"}
    trust = {}
    if scheme not in ("ws", "ws+h2"):
        listener |= {"certificate": str(certificates / "server.pem"), "key": str(certificates / "server.key")}
        trust = {"ca_file": str(certificates / "ca.pem")}
    broker = broker_factory({"listeners": [listener], "auth": {"anonymous": True}})
    port = broker.urls[0].split(":")[2].partition("/")[0]
    small(f"{scheme}://127.0.0.1:{port}", scenario, **trust)


def test_a_stream_that_is_not_answered(gateway: Any, certificates: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "TIMEOUT_S", 0.2)
    _, url, _ = start(gateway, certificates, "ws+h2", silent=True)
    with pytest.raises(ProbeError, match=r"no answer within 0\.2 s"):
        small(url, "p2p")


def test_no_more_are_dialled_at_a_time_than_the_relay_admits(gateway: Any, certificates: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "_BACKLOG", 2)
    made, url, _ = start(gateway, certificates, "ws+h2")
    small(url, "hold", streams=50, connect_batch=200)
    assert made.streams >= 41


class Ends:
    """The two ends of a relayed stream: a native client's socket, and what the broker would have accepted."""

    def __init__(self, gateway: Any, certificates: Path, kind: str, **options: Any) -> None:
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.gateway, url, keys = start(gateway, certificates, kind, port=self.listening.getsockname()[1], **options)
        self.relay = Relay(Profile(url=url, **keys), "127.0.0.1")
        self.relay.start()
        self.client = socket.socket(socket.AF_UNIX)
        self.client.settimeout(20)
        self.client.connect(self.relay.path)
        self.client.sendall(b"hello")
        self.listening.settimeout(20)
        self.broker, _ = self.listening.accept()
        self.broker.settimeout(20)
        assert everything(self.broker, 5) == b"hello"

    def close(self) -> None:
        for made in (self.client, self.broker, self.listening):
            made.close()
        self.relay.stop()


@pytest.fixture
def ends(gateway: Any, certificates: Path) -> Iterator[Callable[..., Ends]]:
    made: list[Ends] = []

    def make(kind: str, **options: Any) -> Ends:
        made.append(Ends(gateway, certificates, kind, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


def everything(reading: socket.socket, count: int) -> bytes:
    got = bytearray()
    while len(got) < count:
        data = reading.recv(1 << 16)
        assert data, len(got)
        got += data
    return bytes(got)


@pytest.mark.parametrize("kind", KINDS)
def test_ends_travel_both_ways(ends: Any, kind: str) -> None:
    for closing, other in (("client", "broker"), ("broker", "client")):
        made = ends(kind)
        made.client.sendall(b"up")
        assert everything(made.broker, 2) == b"up"
        made.broker.sendall(b"down")
        assert everything(made.client, 4) == b"down"
        getattr(made, closing).sendall(b"last words")
        getattr(made, closing).close()
        assert everything(getattr(made, other), 10) == b"last words"
        assert getattr(made, other).recv(1) == b""


@pytest.mark.parametrize("kind", KINDS)
def test_the_end_of_the_connection_is_told(ends: Any, kind: str) -> None:
    made = ends(kind)
    made.gateway.__exit__()
    assert made.client.recv(1) == b""
    assert made.relay.failure is not None


DATA = bytes(range(256)) * (48 << 10)  # 12 MiB: more than sockets and windows hold


def push(writing: socket.socket, gone: list[int]) -> None:
    """As much as is taken without waiting for more than a moment."""
    writing.settimeout(0.3)
    with contextlib.suppress(TimeoutError):
        while gone[0] < len(DATA):
            gone[0] += writing.send(DATA[gone[0] : gone[0] + (1 << 16)])


def rest(writing: socket.socket, reading: socket.socket, gone: int) -> bytes:
    """What is left follows while it is read."""
    import threading

    writing.settimeout(60)
    thread = threading.Thread(target=writing.sendall, args=(DATA[gone:],))
    thread.start()
    got = everything(reading, len(DATA))
    thread.join()
    return got


@pytest.mark.parametrize("kind", ["ws+h2", "quic"])
def test_what_a_client_does_not_read_is_not_taken_from_the_broker(ends: Any, kind: str) -> None:
    made = ends(kind)
    gone = [0]
    push(made.broker, gone)
    if kind == "quic":
        [upstream] = [shared.opening.result() for shared in made.relay._upstreams]
        eventually(lambda: bool(upstream.full))
        [stream] = upstream.full
        assert WINDOW_BYTES <= stream.inlet.held < WINDOW_BYTES + (1 << 16)
        assert len(upstream._held) <= upstream_quic.HELD_DATAGRAMS
    else:
        assert made.gateway.stalled.wait(20)
        assert gone[0] < len(DATA)
        # One window waits for the client, and one may be in the client's socket and the relay's writer.
        assert made.gateway.sent < 3 * WINDOW_BYTES
    assert rest(made.broker, made.client, gone[0]) == DATA


@pytest.mark.parametrize("kind", ["ws+h2", "quic"])
def test_what_the_broker_does_not_take_is_not_read_from_a_client(ends: Any, kind: str) -> None:
    made = ends(kind, deaf=True) if kind == "ws+h2" else ends(kind)
    if kind == "quic":
        made.gateway.hearing = False
    gone = [0]
    push(made.client, gone)
    assert gone[0] < 4 * WINDOW_BYTES < len(DATA)
    if kind == "quic":
        made.gateway.hearing = True
    else:
        made.gateway.listen_again()
    assert rest(made.client, made.broker, gone[0]) == DATA
