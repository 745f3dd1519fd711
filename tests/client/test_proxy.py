"""The client through proxies: HTTP (CONNECT) and SOCKS5, by option and by environment."""

from __future__ import annotations

import asyncio
import base64
import socket
from pathlib import Path

import pytest

from mqttc import Client
from mqttc.client import Tls
from mqttc.errors import ConnectError
from tests.client.conftest import ScriptedServer, client_url, listeners, run
from tests.client.test_transports import exchange
from tests.conftest import BrokerFactory


class HttpProxy(ScriptedServer):
    """CONNECT only. With a password it wants it."""

    def __init__(self, password: str = "", status: str = "200 OK", more: bytes = b"") -> None:
        super().__init__(self._tunnel)
        self.asked: list[bytes] = []
        self._password = password
        self._status = status
        self._more = more

    async def _tunnel(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        self.asked.append(head)
        wanted = b"basic " + base64.b64encode(f"user:{self._password}".encode())
        if self._password and wanted.lower() not in head.lower():
            writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
            await writer.drain()
            return
        writer.write(f"HTTP/1.1 {self._status}\r\n\r\n".encode() + self._more)
        await writer.drain()
        host, _, port = head.split()[1].decode().rpartition(":")
        await join(reader, writer, host, int(port))


class SocksProxy(ScriptedServer):
    """SOCKS5 (RFC 1928), with a password (RFC 1929) if there is one; `reply` other than 0 refuses. `asked` has what it is to connect to."""

    def __init__(self, password: str = "", reply: int = 0, elsewhere: int | None = None) -> None:
        super().__init__(self._tunnel)
        self.asked: list[tuple[str, int]] = []
        self._password = password
        self._reply = reply
        self._elsewhere = elsewhere
        """The port that names lead to."""

    async def _tunnel(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        version, count = await reader.readexactly(2)
        assert version == 5
        methods = await reader.readexactly(count)
        method = 2 if self._password else 0
        writer.write(bytes([5, method if method in methods else 0xFF]))
        if method not in methods:
            await writer.drain()
            return
        if method:
            assert await reader.readexactly(1) == b"\x01"
            name = await reader.readexactly((await reader.readexactly(1))[0])
            password = await reader.readexactly((await reader.readexactly(1))[0])
            good = (name, password) == (b"user", self._password.encode())
            writer.write(bytes([1, 0 if good else 1]))
            if not good:
                await writer.drain()
                return
        version, command, _, kind = await reader.readexactly(4)
        assert (version, command) == (5, 1)
        if kind == 1:
            host = ".".join(str(part) for part in await reader.readexactly(4))
        elif kind == 4:
            host = socket.inet_ntop(socket.AF_INET6, await reader.readexactly(16))
        else:
            assert kind == 3
            host = (await reader.readexactly((await reader.readexactly(1))[0])).decode()
        port = int.from_bytes(await reader.readexactly(2), "big")
        self.asked.append((host, port))
        writer.write(bytes([5, self._reply, 0, 1]) + bytes(6))
        await writer.drain()
        if not self._reply:
            await join(reader, writer, "127.0.0.1", self._elsewhere or port)


async def join(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str, port: int) -> None:
    other_reader, other_writer = await asyncio.open_connection(host, port)
    try:
        ways = [asyncio.create_task(pump(reader, other_writer)), asyncio.create_task(pump(other_reader, writer))]
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)
    finally:
        other_writer.transport.abort()


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()


@pytest.mark.parametrize("scheme", ["ws", "wss", "mqtt"])
def test_through_a_proxy(scheme: str, broker_factory: BrokerFactory, pki: Path, tmp_path: Path) -> None:
    broker = broker_factory({"listeners": listeners(pki, tmp_path, scheme)})
    url = client_url(broker, scheme)

    async def work() -> None:
        async with HttpProxy(password="p@ss") as proxy:
            where = f"http://user:p%40ss@127.0.0.1:{proxy.port}"
            await exchange(url, proxy=where, tls=Tls(ca_file=pki / "ca.pem"))
            [head] = proxy.asked
            assert head.startswith(f"CONNECT {url.split('/')[2]} HTTP/1.1".encode())
            with pytest.raises(ConnectError, match="407"):
                await Client(url, proxy=f"http://127.0.0.1:{proxy.port}", tls=Tls(ca_file=pki / "ca.pem")).connect()

    run(work())


def test_the_environments_proxy(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        async with HttpProxy() as proxy:
            monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.port}")
            async with Client(url, proxy="environment"):
                assert len(proxy.asked) == 1
            monkeypatch.setenv("no_proxy", "127.0.0.1")
            async with Client(url, proxy="environment"):
                assert len(proxy.asked) == 1

    run(work())


@pytest.mark.parametrize(
    ("status", "more", "said"),
    [("502 Bad Gateway", b"", "502"), ("200 OK", b"too early", "more than its answer"), ("nonsense", b"", "does not speak HTTP")],
)
def test_a_proxy_that_does_not_do_it(status: str, more: bytes, said: str, url: str) -> None:
    async def work() -> None:
        async with HttpProxy(status=status, more=more) as proxy:
            with pytest.raises(ConnectError, match=said):
                await Client(url, proxy=f"http://127.0.0.1:{proxy.port}").connect()

    run(work())


def port_of(url: str) -> int:
    return int(url.split("/")[2].rpartition(":")[2])


@pytest.mark.parametrize("scheme", ["ws", "wss", "mqtt", "mqtts"])
def test_through_socks(scheme: str, broker_factory: BrokerFactory, pki: Path, tmp_path: Path) -> None:
    pytest.importorskip("python_socks")
    url = client_url(broker_factory({"listeners": listeners(pki, tmp_path, scheme)}), scheme)

    async def work() -> None:
        tls = Tls(ca_file=pki / "ca.pem")
        async with SocksProxy(password="p@ss") as proxy:
            await exchange(url, proxy=f"socks5h://user:p%40ss@127.0.0.1:{proxy.port}", tls=tls)
            assert proxy.asked == [(url.split("/")[2].rpartition(":")[0], port_of(url))]
            for wrong in ("user:wrong@", ""):
                with pytest.raises(ConnectError, match="the proxy"):
                    await Client(url, proxy=f"socks5h://{wrong}127.0.0.1:{proxy.port}", tls=tls).connect()

    run(work())


def test_who_looks_the_name_up(url: str) -> None:
    pytest.importorskip("python_socks")
    port = port_of(url)

    async def work() -> None:
        async with SocksProxy(elsewhere=port) as proxy:
            async with Client(f"mqtt://only-the-proxy-knows.example:{port}", proxy=f"socks5h://127.0.0.1:{proxy.port}"):
                pass
            async with Client(f"mqtt://127.0.0.1:{port}", proxy=f"socks5://127.0.0.1:{proxy.port}"):
                pass
            async with Client(f"mqtt://localhost:{port}", proxy=f"socks5://127.0.0.1:{proxy.port}"):
                pass
            assert [host for host, _ in proxy.asked[:2]] == ["only-the-proxy-knows.example", "127.0.0.1"]
            assert proxy.asked[2][0] in ("127.0.0.1", "::1")

    run(work())


def test_a_socks_proxy_that_does_not_do_it(url: str) -> None:
    pytest.importorskip("python_socks")

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)

    async def work() -> None:
        async with SocksProxy(reply=2) as proxy:
            with pytest.raises(ConnectError, match=r"the proxy: .*not allowed"):
                await Client(url, proxy=f"socks5h://127.0.0.1:{proxy.port}").connect()
        async with ScriptedServer(hang_up) as proxy:
            with pytest.raises(ConnectError, match="the proxy"):
                await Client(url, proxy=f"socks5h://127.0.0.1:{proxy.port}").connect()
        with pytest.raises(ConnectError, match=r"Could not connect to proxy|refused"):
            await Client(url, proxy=f"socks5h://127.0.0.1:{proxy.port}").connect()

    run(work())


def test_all_proxy_is_for_what_no_other_variable_names(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("python_socks")
    for name in ("http_proxy", "https_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)

    async def work() -> None:
        async with SocksProxy() as socks, HttpProxy() as http:
            monkeypatch.setenv("ALL_PROXY", f"socks5h://127.0.0.1:{socks.port}")
            async with Client(url, proxy="environment"):
                pass
            assert (len(socks.asked), len(http.asked)) == (1, 0)
            monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{http.port}")
            async with Client(url, proxy="environment"):
                pass
            assert (len(socks.asked), len(http.asked)) == (1, 1)
            monkeypatch.setenv("NO_PROXY", "127.0.0.1")
            async with Client(url, proxy="environment"), Client(url):
                pass
            assert (len(socks.asked), len(http.asked)) == (1, 1)

    run(work())


@pytest.mark.parametrize("proxy", ["ftp://h:1", "socks5://", "http://h:99999", "http://h/path", "socks4://h:1"])
def test_a_url_that_is_no_proxys(proxy: str) -> None:
    with pytest.raises(ValueError, match="proxy:"):
        Client("mqtt://localhost", proxy=proxy)


def test_the_password_is_not_told() -> None:
    with pytest.raises(ValueError, match="proxy:") as told:
        Client("mqtt://localhost", proxy="ftp://user:secret@h:1")
    assert "secret" not in str(told.value)
