"""Through a proxy to the broker: HTTP (CONNECT, RFC 9110 section 9.3.6) by h11, and SOCKS5 (RFC 1928) by python-socks."""

from __future__ import annotations

import asyncio
import base64
import socket
from typing import Final
from urllib.parse import SplitResult, unquote, urlsplit

from mqttc.client.dial import connect_tcp, resolve
from mqttc.errors import ConnectError

ENVIRONMENT: Final = "environment"
SCHEMES: Final = {"http": 80, "socks5": 1080, "socks5h": 1080}
"""With the port of each. socks5 looks the broker's name up here, socks5h has the proxy do it."""
HEAD_BYTES: Final = 16384
"""Of a proxy's answer."""
NO_DEADLINE_S: Final = 86400.0
"""`connect_timeout_s` is the deadline of the whole attempt."""
USAGE: Final = "proxy: http://, socks5:// or socks5h://[user:password@]host[:port], or environment"


def parse_proxy(proxy: str) -> SplitResult:
    """Raises ``ValueError``, without the password in its text. Without a scheme it is an HTTP proxy."""
    parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    try:
        there = parts.scheme in SCHEMES and parts.hostname and parts.port != 0
    except ValueError:  # of the port
        there = False
    if not there or parts.path not in ("", "/") or parts.query or parts.fragment:
        raise ValueError(USAGE)
    return parts


def proxy_for(proxy: str | None, host: str, secure: bool) -> str | None:
    """The URL of the proxy to use; with "environment" what http_proxy or https_proxy, else all_proxy, and no_proxy say, in either case."""
    if proxy != ENVIRONMENT:
        return proxy
    from urllib.request import getproxies, proxy_bypass  # late: it takes a while to import, and few have a proxy

    if proxy_bypass(host):
        return None
    said = getproxies()
    return said.get("https" if secure else "http") or said.get("all")


async def connect_through(proxy: str, host: str, port: int, bind_address: str | None) -> socket.socket:
    """A tunnel to host and port. Raises ``ConnectError`` where the proxy refuses, ``ValueError`` for its URL, ``OSError``."""
    parts = parse_proxy(proxy)
    name, number = parts.hostname or "", parts.port or SCHEMES[parts.scheme]
    username = None if parts.username is None else unquote(parts.username)
    password = unquote(parts.password or "")
    if parts.scheme == "socks5":
        [(_, address), *_] = await resolve(host, port, socket.SOCK_STREAM)
        host = address[0]
    if parts.scheme != "http":
        return await _socks((name, number), (host, port), username, password, bind_address)
    made = await connect_tcp(name, number, bind_address)
    try:
        await _tunnel(made, host, port, username, password)
    except BaseException:
        made.close()
        raise
    return made


async def _socks(
    proxy: tuple[str, int], to: tuple[str, int], username: str | None, password: str, bind_address: str | None
) -> socket.socket:
    try:
        from python_socks import ProxyConnectionError, ProxyError, ProxyType
        from python_socks.async_.asyncio import Proxy
    except ImportError as error:
        raise ConnectError("a SOCKS proxy needs the package python-socks: pip install mqttc[socks]") from error
    dialled = Proxy(ProxyType.SOCKS5, *proxy, username, None if username is None else password, rdns=True)
    try:
        source = None if bind_address is None else (bind_address, 0)
        return await dialled.connect(*to, timeout=NO_DEADLINE_S, local_addr=source)
    except ProxyConnectionError as error:
        raise ConnectError(str(error)) from error
    except ProxyError as error:
        raise ConnectError(f"the proxy: {str(error) or 'it closed the connection'}") from error


async def _tunnel(made: socket.socket, host: str, port: int, username: str | None, password: str) -> None:
    import h11  # late: the same

    loop = asyncio.get_running_loop()
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    headers = [("Host", where)]
    if username is not None:
        credentials = f"{username}:{password}".encode()
        headers.append(("Proxy-Authorization", "Basic " + base64.b64encode(credentials).decode()))
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=HEAD_BYTES)
    request = connection.send(h11.Request(method="CONNECT", target=where, headers=headers))
    await loop.sock_sendall(made, request or b"")
    await loop.sock_sendall(made, connection.send(h11.EndOfMessage()) or b"")
    try:
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                data = await loop.sock_recv(made, 4096)
                if not data:
                    raise ConnectError("the proxy closed the connection")
                connection.receive_data(data)
            elif isinstance(event, h11.Response):
                if not 200 <= event.status_code < 300:
                    raise ConnectError(f"the proxy answered with status {event.status_code}")
                if connection.trailing_data[0]:
                    raise ConnectError("the proxy sent more than its answer")
                return
            elif not isinstance(event, h11.InformationalResponse):
                raise ConnectError("the proxy closed the connection")
    except h11.RemoteProtocolError as error:
        raise ConnectError(f"the proxy does not speak HTTP: {error}") from error
