"""net/tls below the broker: handshakes by hand, also behind a PROXY header, and every refused allocation (OpenSSL's own are granted)."""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.face.net_transport import AGAIN, ALLOC_TESTED, END, FAILED, Carrier, Rules, TlsFace, blocks_live, fail_allocations, live

needs_refusals = pytest.mark.skipif(not ALLOC_TESTED, reason="this build hands out memory as it is asked: make a debug build")

KEYS = [(b"a", b"0123456789"), (b"b", b"9876543210")]
HEADER = b"\r\n\r\n\0\r\nQUIT\n\x21\x11" + struct.pack(">H", 12 + 3 + 5 + 11)
HEADER += bytes([192, 0, 2, 7, 198, 51, 100, 1]) + struct.pack(">HH", 50_000, 8883)
HEADER += b"\x20\0\x10\7\0\0\0\0\x22\0\x08device-7"


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    before, blocks = live(), blocks_live()
    yield
    fail_allocations(-1)
    assert live() == before
    assert blocks_live() == blocks


class Client:
    """Python's TLS over one end of a socket pair; the other end is ours."""

    def __init__(self, folder: Path) -> None:
        ours, self.socket = socket.socketpair()
        ours.setblocking(False)
        self.carrier = Carrier(ours.detach())
        context = ssl.create_default_context(cafile=str(folder / "ca.pem"))
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_hostname="localhost")
        self.socket.setblocking(False)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exception: object) -> None:
        self.carrier.close()
        self.socket.close()

    def pump(self) -> None:
        if self.outgoing.pending:
            self.socket.sendall(self.outgoing.read())
        with contextlib.suppress(BlockingIOError):
            self.incoming.write(self.socket.recv(1 << 17))

    def handshake(self) -> object:
        """Turn by turn; what our last read said: AGAIN where the handshake is done."""
        for _ in range(20):
            done = True
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                done = False
            self.pump()
            got = self.carrier.read()
            if got != AGAIN or done:
                return got
            self.pump()
        raise AssertionError("the handshake does not end")

    def send(self, data: bytes) -> None:
        self.tls.write(data)
        self.pump()

    def receive(self) -> bytes:
        self.pump()
        return self.tls.read(1 << 16)


def settings(folder: Path, *names: str) -> dict[str, object]:
    return {
        "certificates": [((folder / f"{name}.pem").read_bytes(), (folder / f"{name}.key").read_bytes()) for name in names],
        "client_ca": (folder / "ca.pem").read_bytes(),
        "crl": (folder / "crl.pem").read_bytes(),
    }


def loaded(folder: Path) -> TlsFace:
    tls = TlsFace()
    assert tls.load(**settings(folder, "server")) is None
    return tls


def until_granted(attempt: Callable[[], bool]) -> int:
    """Refuses the first allocation, then the second, and so on, until it works; how often it did not."""
    refused = 0
    while True:
        fail_allocations(refused)
        worked = attempt()
        fail_allocations(-1)
        if worked:
            return refused
        refused += 1
        assert refused < 100


def test_a_connection_by_hand(folder: Path) -> None:
    tls = loaded(folder)
    with Client(folder) as client:
        assert client.carrier.tls_accept(tls) == 0
        assert client.carrier.write(b"too early") == FAILED
        assert client.carrier.failure == "no TLS handshake"
        assert client.handshake() == AGAIN
        assert client.carrier.failure is None
        client.send(b"x" * 40_000)
        got = b""
        while (part := client.carrier.read(1000)) != AGAIN:
            assert isinstance(part, bytes)
            got += part
        assert got == b"x" * 40_000
        assert client.carrier.write(b"an", b"swer") == 6
        assert client.receive() == b"answer"
        with contextlib.suppress(ssl.SSLError):
            client.tls.unwrap()
        client.pump()
        assert client.carrier.read() == END
    assert tls.stats["handshakes"] == 1 and tls.stats["failed"] == 0


def test_nothing_was_loaded() -> None:
    tls = TlsFace()
    carrier = Carrier()
    assert carrier.tls_accept(tls) == -1 and carrier.plain


@pytest.mark.parametrize("vouched", [True, False])
@pytest.mark.parametrize("together", [True, False])
def test_tls_behind_a_proxy_header(folder: Path, vouched: bool, together: bool) -> None:
    tls = loaded(folder)
    head = HEADER if vouched else b"PROXY TCP4 192.0.2.7 198.51.100.1 50000 8883\r\n"
    with Client(folder) as client:
        assert client.carrier.proxy_accept(Rules([(bytes(16), 0)], tls)) == 0
        if together:
            with pytest.raises(ssl.SSLWantReadError):
                client.tls.do_handshake()
            client.socket.sendall(head + client.outgoing.read())
        else:
            client.socket.sendall(head)
            assert client.carrier.read() == AGAIN
            assert client.carrier.failure == "no TLS handshake"
        assert client.handshake() == AGAIN
        assert client.carrier.peer_said == "192.0.2.7:50000"
        client.send(b"hello")
        assert client.carrier.read() == b"hello"
        assert client.carrier.write(b"answer") == 6 and client.receive() == b"answer"
        assert client.carrier.proof(2) == (b"device-7" if vouched else b"") and client.carrier.proof(0) == b""
    assert tls.stats["handshakes"] == 1


# ---------------------------------------------------------------------------------------------- refused memory


@needs_refusals
def test_refused_memory_of_a_listener() -> None:
    def build() -> bool:
        try:
            TlsFace()
        except MemoryError:
            return False
        return True

    assert until_granted(build) == 1


@needs_refusals
def test_refused_memory_of_loading(folder: Path) -> None:
    """What was in force stays so."""
    tls = loaded(folder)
    before = live()
    more = settings(folder, "server", "other") | {"keys": KEYS, "hint": b"hint", "alpn": b"\4mqtt"}

    def load() -> bool:
        why = tls.load(**more)
        if why is None:
            return True
        assert why == "no memory"
        assert live() == before and tls.stats["loads"] == 1
        fail_allocations(-1)
        with Client(folder) as client:
            assert client.carrier.tls_accept(tls) == 0
            assert client.handshake() == AGAIN
        return False

    assert until_granted(load) == 5, "context, ALPN, keys, their bytes, certificates"
    assert tls.stats["loads"] == 2 and live() == before


@needs_refusals
def test_refused_memory_of_a_first_load(folder: Path) -> None:
    tls = TlsFace()
    assert until_granted(lambda: tls.load(**settings(folder, "server")) is None) == 2
    with Client(folder) as client:
        assert client.carrier.tls_accept(tls) == 0
        assert client.handshake() == AGAIN


@needs_refusals
def test_refused_memory_of_a_connection(folder: Path) -> None:
    tls = loaded(folder)
    before = live()
    with Client(folder) as client:

        def accept() -> bool:
            status = client.carrier.tls_accept(tls)
            assert status == 0 or (status == -1 and client.carrier.plain and live() == before)
            return status == 0

        assert until_granted(accept) == 1
        assert client.handshake() == AGAIN


@needs_refusals
def test_a_handshake_takes_no_memory_of_ours(folder: Path) -> None:
    tls = loaded(folder)
    with Client(folder) as client:
        assert client.carrier.tls_accept(tls) == 0
        fail_allocations(0, False)
        assert client.handshake() == AGAIN
        client.send(b"hello")
        assert client.carrier.read() == b"hello"
        assert client.carrier.write(b"answer") == 6 and client.receive() == b"answer"


@needs_refusals
def test_refused_memory_of_the_reason(folder: Path) -> None:
    tls = loaded(folder)
    for refuse in (False, True):
        with Client(folder) as client:
            assert client.carrier.tls_accept(tls) == 0
            client.socket.sendall(b"\x10\x0c\0\4MQTT")
            if refuse:
                fail_allocations(0)
            assert client.carrier.read() == FAILED
            fail_allocations(-1)
            assert client.carrier.failure == "not TLS: the client speaks plain MQTT"
            assert client.carrier.read() == FAILED and client.carrier.write(b"x") == FAILED
    assert tls.stats["failed"] == 2


@needs_refusals
def test_refused_memory_behind_a_proxy_header(folder: Path) -> None:
    tls = loaded(folder)
    before = live()
    for refused in range(3):
        with Client(folder) as client:
            assert client.carrier.proxy_accept(Rules([(bytes(16), 0)], tls)) == 0
            client.socket.sendall(HEADER)
            fail_allocations(refused)
            got = client.carrier.read()
            fail_allocations(-1)
            if refused < 2:     # of the TLS connection, of what the proxy vouches for
                assert got == FAILED and client.carrier.failure == "no memory for the connection's transport"
                assert live() == before | {"proxy": 1}
                client.carrier.finish()
                assert client.socket.recv(1) == b"", "the descriptor was not closed behind our back"
            else:
                assert client.handshake() == AGAIN
                assert client.carrier.proof(2) == b"device-7"
