"""Binding: families, ports, Unix paths with mode and left-over files, abstract names, clear errors."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import stat
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from mqttc.config import Listener
from mqttc.listen import _UDP_RECEIVE_BYTES, BoundListener, ListenError, bind_all


def bind(url: str, **keys: int) -> BoundListener:
    return BoundListener(Listener.model_validate({"url": url, **keys}))


def reachable(family: socket.AddressFamily, target: tuple[str, int] | str) -> bool:
    with socket.socket(family) as client:
        return client.connect_ex(target) == 0


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6 loopback")
linux = pytest.mark.skipif(sys.platform != "linux", reason="abstract names are Linux's")


def port_of(bound: BoundListener) -> int:
    port = urlsplit(bound.url).port
    assert port is not None
    return port


def udp_reaches(bound: BoundListener, family: socket.AddressFamily, host: str) -> bool:
    """Whether a datagram that is sent there arrives at the listener's socket of this family."""
    with socket.socket(family, socket.SOCK_DGRAM) as client:
        client.connect((host, port_of(bound)))
        client.send(b"probe")
        ready, _, _ = select.select(bound.sockets, [], [], 5)
        return [made.recv(16) for made in ready] == [b"probe"]


def test_free_port_is_told() -> None:
    bound = bind("tcp://127.0.0.1:0")
    try:
        assert port_of(bound) == bound.sockets[0].getsockname()[1] != 0
        assert bound.url.startswith("tcp://127.0.0.1:")
        assert reachable(socket.AF_INET, ("127.0.0.1", port_of(bound)))
    finally:
        bound.close()


def test_sockets_are_fit_for_the_data_plane() -> None:
    bound = bind("tcp://127.0.0.1:0")
    try:
        (made,) = bound.sockets
        assert not made.getblocking()
        assert not os.get_inheritable(made.fileno())
        assert made.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)
        assert made.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    finally:
        bound.close()


@needs_ipv6
def test_star_is_both_families() -> None:
    bound = bind("tcp://*:0")
    try:
        assert bound.url == f"tcp://*:{port_of(bound)}"
        assert reachable(socket.AF_INET, ("127.0.0.1", port_of(bound)))
        assert reachable(socket.AF_INET6, ("::1", port_of(bound)))
    finally:
        bound.close()


@needs_ipv6
def test_literal_is_its_family_only() -> None:
    six, four = bind("tcp://[::]:0"), bind("tcp://0.0.0.0:0")
    try:
        assert six.url == f"tcp://[::]:{port_of(six)}"
        assert reachable(socket.AF_INET6, ("::1", port_of(six)))
        assert not reachable(socket.AF_INET, ("127.0.0.1", port_of(six)))
        assert reachable(socket.AF_INET, ("127.0.0.1", port_of(four)))
        assert not reachable(socket.AF_INET6, ("::1", port_of(four)))
    finally:
        six.close()
        four.close()


def test_all_addresses_of_a_name_share_the_port() -> None:
    bound = bind("tcp://localhost:0")
    try:
        assert {made.getsockname()[1] for made in bound.sockets} == {port_of(bound)}
        families = {family for family, *_ in socket.getaddrinfo("localhost", 1, type=socket.SOCK_STREAM)}
        assert len(bound.sockets) >= (len(families) if has_ipv6() else 1)
    finally:
        bound.close()


def test_name_without_this_family_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name may resolve to an address that this machine does not have; the others serve."""
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, 0)) for host in ("192.0.2.1", "127.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *arguments, **options: found)
    bound = bind("tcp://name.example:0")
    try:
        assert [made.getsockname()[0] for made in bound.sockets] == ["127.0.0.1"]
    finally:
        bound.close()


def test_address_in_use() -> None:
    bound = bind("tcp://127.0.0.1:0")
    try:
        with pytest.raises(ListenError) as caught:
            bind(bound.url)
        assert str(caught.value) == f"cannot listen on {bound.url}: the address is in use"
        assert caught.value.exit_code == 1
    finally:
        bound.close()


def test_foreign_address_and_unknown_name() -> None:
    with pytest.raises(ListenError, match=r"cannot listen on tcp://192\.0\.2\.1:0: this machine has no such address"):
        bind("tcp://192.0.2.1:0")
    with pytest.raises(ListenError, match=r"cannot listen on tcp://no\.invalid:0: no\.invalid: "):
        bind("tcp://no.invalid:0")


def test_port_is_free_at_once_after_close() -> None:
    bound = bind("tcp://127.0.0.1:0")
    with socket.create_connection(("127.0.0.1", port_of(bound))):
        accepted, _ = socket.socket.accept(_blocking(bound.sockets[0]))
        accepted.close()
        bound.close()
        bind(bound.url).close()


def _blocking(made: socket.socket) -> socket.socket:
    made.setblocking(True)
    return made


def test_all_or_none() -> None:
    first = bind("tcp://127.0.0.1:0")
    free = bind("tcp://127.0.0.1:0")
    free.close()
    try:
        with pytest.raises(ListenError):
            bind_all([Listener(url=free.url), Listener(url=first.url)])
        bind(free.url).close()
    finally:
        first.close()


@pytest.mark.parametrize(("url", "normal"), [("ws://127.0.0.1:0", "/mqtt"), ("wss://127.0.0.1:0/", "/"), ("ws://127.0.0.1:0/a/b", "/a/b")])
def test_websocket_is_tcp_with_a_path(url: str, normal: str) -> None:
    bound = bind(url)
    try:
        assert (bound.is_unix, bound.is_quic) == (False, False)
        assert bound.url == f"{url.partition(':')[0]}://127.0.0.1:{port_of(bound)}{normal}"
        assert bound.sockets[0].getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        assert reachable(socket.AF_INET, ("127.0.0.1", port_of(bound)))
        with pytest.raises(ListenError) as caught:
            bind(bound.url)
        assert str(caught.value) == f"cannot listen on {bound.url}: the address is in use"
    finally:
        bound.close()


def test_quic_is_a_udp_socket() -> None:
    bound = bind("quic://127.0.0.1:0")
    try:
        (made,) = bound.sockets
        assert (bound.is_unix, bound.is_quic) == (False, True)
        assert made.type == socket.SOCK_DGRAM
        assert not made.getblocking()
        assert not os.get_inheritable(made.fileno())
        assert not made.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)
        assert bound.url == f"quic://127.0.0.1:{made.getsockname()[1]}" != "quic://127.0.0.1:0"
        assert udp_reaches(bound, socket.AF_INET, "127.0.0.1")
    finally:
        bound.close()


def test_udp_receive_buffer_is_asked_for_and_not_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As large as the system allows; a system that refuses altogether is no error."""
    asked: list[int] = []

    class Refusing(socket.socket):
        def setsockopt(self, level: int, option: int, value: int) -> None:  # type: ignore[override]
            if (level, option) == (socket.SOL_SOCKET, socket.SO_RCVBUF):
                asked.append(value)
                raise OSError(errno.ENOBUFS, "no buffer space")
            super().setsockopt(level, option, value)

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as plain:
        usual = plain.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        with contextlib.suppress(OSError):
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _UDP_RECEIVE_BYTES)
        largest = plain.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
    bound = bind("quic://127.0.0.1:0")
    assert bound.sockets[0].getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == largest >= usual
    bound.close()
    monkeypatch.setattr(socket, "socket", Refusing)
    bound = bind("quic://127.0.0.1:0")
    assert asked == [_UDP_RECEIVE_BYTES]
    assert len(bound.sockets) == 1
    bound.close()


@needs_ipv6
def test_quic_star_is_both_families() -> None:
    bound = bind("quic://*:0")
    try:
        assert bound.url == f"quic://*:{port_of(bound)}"
        assert len(bound.sockets) == 1
        assert udp_reaches(bound, socket.AF_INET, "127.0.0.1")
        assert udp_reaches(bound, socket.AF_INET6, "::1")
    finally:
        bound.close()


@needs_ipv6
def test_quic_literal_is_its_family_only() -> None:
    six = bind("quic://[::]:0")
    try:
        assert six.url == f"quic://[::]:{port_of(six)}"
        assert six.sockets[0].getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == 1
        assert udp_reaches(six, socket.AF_INET6, "::1")
    finally:
        six.close()


def test_all_addresses_of_a_name_share_the_udp_port() -> None:
    bound = bind("quic://localhost:0")
    try:
        assert {made.getsockname()[1] for made in bound.sockets} == {port_of(bound)}
        assert {made.type for made in bound.sockets} == {socket.SOCK_DGRAM}
        families = {family for family, *_ in socket.getaddrinfo("localhost", 1, type=socket.SOCK_DGRAM)}
        assert len(bound.sockets) >= (len(families) if has_ipv6() else 1)
    finally:
        bound.close()


@pytest.mark.parametrize("second", ["quic://127.0.0.1:{}", "quic://0.0.0.0:{}", "quic://*:{}"])
def test_udp_port_in_use(second: str) -> None:
    bound = bind("quic://127.0.0.1:0")
    url = second.format(port_of(bound))
    try:
        with pytest.raises(ListenError) as caught:
            bind(url)
        assert str(caught.value) == f"cannot listen on {url}: the address is in use"
        assert caught.value.errno == errno.EADDRINUSE
    finally:
        bound.close()
    bind(url).close()


def test_quic_and_tls_may_have_the_same_number() -> None:
    tls = bind("tls://127.0.0.1:0")
    try:
        quic = bind(f"quic://127.0.0.1:{port_of(tls)}")
        assert udp_reaches(quic, socket.AF_INET, "127.0.0.1")
        quic.close()
    finally:
        tls.close()


def test_quic_on_a_foreign_address_and_an_unknown_name() -> None:
    with pytest.raises(ListenError, match=r"cannot listen on quic://192\.0\.2\.1:0: this machine has no such address"):
        bind("quic://192.0.2.1:0")
    with pytest.raises(ListenError, match=r"cannot listen on quic://no\.invalid:0: no\.invalid: "):
        bind("quic://no.invalid:0")


def test_unix_path_has_its_mode_and_goes_away(tmp_path: Path) -> None:
    path = tmp_path / "broker.sock"
    bound = bind(f"unix://{path}?mode=0600")
    assert bound.url == f"unix://{path}"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert reachable(socket.AF_UNIX, str(path))
    bound.close()
    assert not path.exists()


def test_unix_left_over_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "broker.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    assert path.exists()
    bound = bind(f"unix://{path}")
    assert reachable(socket.AF_UNIX, str(path))
    bound.close()


def test_unix_live_socket_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "broker.sock"
    bound = bind(f"unix://{path}")
    try:
        with pytest.raises(ListenError, match="another process listens there"):
            bind(f"unix://{path}")
        assert reachable(socket.AF_UNIX, str(path))
    finally:
        bound.close()


def test_unix_live_socket_with_a_full_queue_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "broker.sock"
    clients = []
    bound = bind(f"unix://{path}", backlog=1)
    try:
        for _ in range(8):
            client = socket.socket(socket.AF_UNIX)
            client.setblocking(False)
            client.connect_ex(str(path))
            clients.append(client)
        with pytest.raises(ListenError, match="another process listens there"):
            bind(f"unix://{path}")
        assert path.exists()
    finally:
        for client in clients:
            client.close()
        bound.close()


def test_unix_other_files_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "precious.txt"
    path.write_text("data")
    with pytest.raises(ListenError, match="exists and is not a socket"):
        bind(f"unix://{path}")
    assert path.read_text() == "data"


def test_unix_file_of_a_successor_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "broker.sock"
    bound = bind(f"unix://{path}")
    path.unlink()
    successor = bind(f"unix://{path}")
    bound.close()
    assert reachable(socket.AF_UNIX, str(path))
    successor.close()


def test_unix_missing_directory(tmp_path: Path) -> None:
    with pytest.raises(ListenError, match="No such file or directory"):
        bind(f"unix://{tmp_path}/none/broker.sock")


@linux
def test_abstract_name() -> None:
    name = f"mqttc-test-{os.getpid()}"
    bound = bind(f"unix://@{name}")
    try:
        assert bound.url == f"unix://@{name}"
        assert reachable(socket.AF_UNIX, f"\0{name}")
        with pytest.raises(ListenError, match="the address is in use"):
            bind(f"unix://@{name}")
    finally:
        bound.close()
    assert not reachable(socket.AF_UNIX, f"\0{name}")
