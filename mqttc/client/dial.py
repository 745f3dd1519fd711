"""From a host's name to a connected socket: happy eyeballs (RFC 8305), and HTTP proxies (CONNECT, RFC 9110 section 9.3.6)."""

from __future__ import annotations

import asyncio
import base64
import socket
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from itertools import zip_longest
from typing import Any, Final, TypeVar
from urllib.parse import unquote, urlsplit

from mqttc.errors import ConnectError

ATTEMPT_DELAY_S: Final = 0.25
"""RFC 8305's Connection Attempt Delay."""
PROXY_HEAD_BYTES: Final = 16384
"""Of a proxy's answer."""

T = TypeVar("T")
Address = tuple[Any, ...]
Info = tuple[socket.AddressFamily, Address]


async def resolve(host: str, port: int, kind: socket.SocketKind) -> list[Info]:
    """Addresses in the order in which they are to be tried: families alternate, the system's first choice first."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=kind)
    infos = list(dict.fromkeys((family, address) for family, _, _, _, address in found))
    first = [info for info in infos if info[0] == infos[0][0]]
    others = [info for info in infos if info[0] != infos[0][0]]
    return [info for pair in zip_longest(first, others) for info in pair if info is not None]


async def race(
    infos: Iterable[Info], attempt: Callable[[Info], Awaitable[T]], drop: Callable[[T], None], delay_s: float = ATTEMPT_DELAY_S
) -> T:
    """The first attempt that succeeds. The next one begins when the last one failed, or after the delay; what comes too late is dropped.

    Raises the first attempt's ``OSError`` when all have failed.
    """
    waiting = deque(infos)
    running: set[asyncio.Future[T]] = set()
    errors: list[BaseException] = []
    try:
        while waiting or running:
            if waiting:
                running.add(asyncio.ensure_future(attempt(waiting.popleft())))
            done, running = await asyncio.wait(running, timeout=delay_s if waiting else None, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                error = task.exception()
                if error is None:
                    running |= done - {task}
                    return task.result()
                if not isinstance(error, OSError):
                    running |= done - {task}
                    raise error
                errors.append(error)
        raise errors[0] if errors else OSError("no address")
    finally:
        for task in running:
            task.cancel()
            task.add_done_callback(lambda late: _drop(late, drop))
        if running:
            await asyncio.wait(running)


def _drop(task: asyncio.Future[T], drop: Callable[[T], None]) -> None:
    if not task.cancelled() and task.exception() is None:
        drop(task.result())


async def connect_tcp(host: str, port: int) -> socket.socket:
    """Connected and not blocking; the caller owns it. Raises ``OSError``."""
    return await race(await resolve(host, port, socket.SOCK_STREAM), _connect, socket.socket.close)


async def _connect(info: Info) -> socket.socket:
    family, address = info
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setblocking(False)
        await asyncio.get_running_loop().sock_connect(made, address)
    except BaseException:
        made.close()
        raise
    return made


def proxy_for(proxy: str | None, host: str, secure: bool) -> str | None:
    """The URL of the proxy to use; with "environment" what the variables http_proxy, https_proxy and no_proxy say."""
    if proxy != "environment":
        return proxy
    from urllib.request import getproxies, proxy_bypass  # late: it takes a while to import, and few have a proxy

    return None if proxy_bypass(host) else getproxies().get("https" if secure else "http")


async def connect_through(proxy: str, host: str, port: int) -> socket.socket:
    """A tunnel to host and port. Raises ``ConnectError`` where the proxy refuses, ``ValueError`` for its URL, ``OSError``."""
    parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    if parts.scheme != "http" or not parts.hostname:
        raise ValueError("proxy: http://[user:password@]host:port")
    made = await connect_tcp(parts.hostname, parts.port or 80)
    try:
        await _tunnel(made, host, port, parts.username, parts.password)
    except BaseException:
        made.close()
        raise
    return made


async def _tunnel(made: socket.socket, host: str, port: int, username: str | None, password: str | None) -> None:
    import h11  # late: the same

    loop = asyncio.get_running_loop()
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    headers = [("Host", where)]
    if username is not None:
        credentials = f"{unquote(username)}:{unquote(password or '')}".encode()
        headers.append(("Proxy-Authorization", "Basic " + base64.b64encode(credentials).decode()))
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=PROXY_HEAD_BYTES)
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
