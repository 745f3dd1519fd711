"""Where a client's connections come from (`bind_address`), and pre-shared keys instead of certificates."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mqttc import Client, SyncClient
from mqttc.client import Tls
from mqttc.client.dial import sources
from mqttc.errors import ConnectError
from tests.client.conftest import (
    KEY,
    SCHEMES,
    SOURCE,
    Curious,
    client_url,
    listeners,
    needs_psk,
    only_linux,
    run,
    without_certificate,
    without_psk,
)  # fmt: skip
from tests.client.test_cancel import at_every_await, only_connect
from tests.client.test_proxy import HttpProxy, SocksProxy
from tests.conftest import BrokerFactory

# ---------------------------------------------------------------------------------------------------- bind_address


@only_linux
@pytest.mark.parametrize("scheme", [*(scheme for scheme in SCHEMES if scheme != "unix"), "h2"])
def test_over_every_road(scheme: str, broker_factory: BrokerFactory, pki: Path, tmp_path: Path) -> None:
    curious, http2 = Curious(), scheme == "h2"
    scheme = "wss" if http2 else scheme
    broker = broker_factory({"listeners": listeners(pki, tmp_path, scheme)}, authenticator=curious)
    url = client_url(broker, scheme).replace("localhost", "127.0.0.1")

    async def work() -> None:
        for bind_address in (SOURCE, None, SOURCE):
            async with Client(url, http2=http2, username="u", tls=Tls(ca_file=pki / "ca.pem"), bind_address=bind_address) as client:
                await client.publish("a", b"x", 1)
        assert curious.hosts == [SOURCE, "127.0.0.1", SOURCE]
        assert await at_every_await(lambda: Client(url, username="u", tls=Tls(verify=False), bind_address=SOURCE), only_connect) >= 2

    run(work())


@only_linux
@pytest.mark.parametrize("proxy", [HttpProxy, SocksProxy])
def test_to_a_proxy(proxy: type[HttpProxy] | type[SocksProxy], url: str) -> None:
    if proxy is SocksProxy:
        pytest.importorskip("python_socks")
    seen: list[str] = []

    class Watched(proxy):  # type: ignore[misc, valid-type]
        async def _tunnel(self, reader: Any, writer: Any) -> None:
            seen.append(writer.get_extra_info("peername")[0])
            await super()._tunnel(reader, writer)

    async def work() -> None:
        async with Watched() as server:
            scheme = "http" if proxy is HttpProxy else "socks5h"
            async with Client(url, proxy=f"{scheme}://127.0.0.1:{server.port}", bind_address=SOURCE) as client:
                await client.publish("a", b"x", 1)
        assert seen == [SOURCE]

    run(work())


@only_linux
def test_of_a_sync_client_and_by_name(broker_factory: BrokerFactory) -> None:
    curious = Curious()
    broker = broker_factory(authenticator=curious)
    for bind_address in (SOURCE, "localhost"):
        with SyncClient(client_url(broker), username="u", bind_address=bind_address) as client:
            client.publish("a", b"x", 1)
    assert curious.hosts == [SOURCE, "127.0.0.1"]


@pytest.mark.parametrize("scheme", ["mqtt", "quic"])
@pytest.mark.parametrize(
    ("bind_address", "said"),
    [
        ("192.0.2.1", r"bind_address 192\.0\.2\.1: "),  # TEST-NET-1, nobody's (RFC 5737)
        ("::1", "bind_address ::1: there is no address of this family"),
        ("no.such.name.invalid", r"bind_address no\.such\.name\.invalid: "),
    ],
)
def test_an_address_that_cannot_be_had(bind_address: str, said: str, scheme: str, broker_factory: BrokerFactory, pki: Path) -> None:
    broker = broker_factory({"listeners": listeners(pki, pki, scheme)})
    url = client_url(broker, scheme).replace("localhost", "127.0.0.1")

    async def work() -> None:
        with pytest.raises(ConnectError, match=said):
            await Client(url, bind_address=bind_address, tls=Tls(ca_file=pki / "ca.pem")).connect()

    run(work())


def test_addresses_of_another_family_are_not_tried() -> None:
    six: tuple[Any, Any] = (socket.AF_INET6, ("::1", 1, 0, 0))
    four: tuple[Any, Any] = (socket.AF_INET, ("127.0.0.1", 1))

    async def work() -> None:
        assert await sources([six, four], None, socket.SOCK_STREAM) == {six: None, four: None}
        assert await sources([six, four], "127.0.0.1", socket.SOCK_STREAM) == {four: ("127.0.0.1", 0)}
        assert await sources([six, four], "::1", socket.SOCK_STREAM) == {six: ("::1", 0, 0, 0)}

    run(work())


def test_a_unix_socket_has_none() -> None:
    with pytest.raises(ValueError, match="bind_address: a Unix socket has none"):
        Client("unix:///s", bind_address=SOURCE)


# ---------------------------------------------------------------------------------------------------- pre-shared keys


@needs_psk
@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
@pytest.mark.parametrize("scheme", ["mqtts", "wss", "h2"])
def test_a_key_instead_of_certificates(
    scheme: str, version: str, broker_factory: BrokerFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both sides know the key; the broker knows who it is by it."""
    curious, http2 = Curious(), scheme == "h2"
    scheme = "wss" if http2 else scheme
    broker = broker_factory({"listeners": [without_certificate(scheme, tmp_path)], "auth": {"anonymous": True}}, authenticator=curious)
    only(version, monkeypatch)

    async def work() -> None:
        tls = Tls(psk=KEY, psk_identity="sensor-1")
        async with Client(client_url(broker, scheme), http2=http2, tls=tls) as client:
            await client.publish("a", b"x", 1)
        assert [request.identity.key_name for request in curious.requests if request.identity is not None] == ["sensor-1"]
        for wrong in (Tls(psk=KEY[::-1], psk_identity="sensor-1"), Tls(psk=KEY, psk_identity="nobody"), None):
            with pytest.raises(ConnectError):
                await Client(client_url(broker, scheme), http2=http2, tls=wrong).connect()
        assert len(curious.requests) == 1

    run(work())


@needs_psk
@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
def test_a_broker_that_does_not_know_the_key_is_not_believed(
    version: str, broker_factory: BrokerFactory, pki: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In TLS 1.3 it may go on with its certificate: then that is verified. In 1.2 nothing without the key is offered."""
    broker = broker_factory({"listeners": listeners(pki, tmp_path, "mqtts")})
    only(version, monkeypatch)

    async def work() -> None:
        with pytest.raises(ConnectError):
            await Client(client_url(broker, "mqtts"), tls=Tls(psk=KEY, psk_identity="sensor-1")).connect()
        trusting = Client(client_url(broker, "mqtts"), tls=Tls(ca_file=pki / "ca.pem", psk=KEY, psk_identity="sensor-1"))
        if version == "TLSv1_3":
            async with trusting:
                await trusting.publish("a", b"x", 1)
        else:
            with pytest.raises(ConnectError):
                await trusting.connect()

    run(work())


def only(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make: Callable[..., ssl.SSLContext] = ssl.create_default_context

    def limited(*arguments: Any, **options: Any) -> ssl.SSLContext:
        made = make(*arguments, **options)
        made.minimum_version = made.maximum_version = ssl.TLSVersion[version]
        return made

    monkeypatch.setattr(ssl, "create_default_context", limited)


@without_psk
def test_an_interpreter_without_says_so() -> None:
    with pytest.raises(ValueError, match=r"psk: pre-shared keys need Python 3\.13 or later"):
        Tls(psk=KEY, psk_identity="sensor-1")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"psk": KEY}, "neither is of use without the other"),
        ({"psk_identity": "a"}, "neither is of use without the other"),
        ({"psk": b"", "psk_identity": "a"}, "1 to 256 bytes, and 1 to 128"),
        ({"psk": KEY, "psk_identity": "é" * 65}, "1 to 256 bytes, and 1 to 128"),
        ({"psk": bytes(257), "psk_identity": "a"}, "1 to 256 bytes, and 1 to 128"),
    ],
)
def test_keys_that_are_none(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        Tls(**options)
    assert KEY.hex() not in str(caught.value) and repr(KEY) not in str(caught.value)


@needs_psk
def test_a_key_is_not_shown_and_not_for_quic() -> None:
    tls = Tls(psk=KEY, psk_identity="sensor-1")
    assert "0123" not in repr(tls) and repr(KEY) not in repr(tls)
    with pytest.raises(ValueError, match="psk: QUIC"):
        Client("quic://h", tls=tls)
