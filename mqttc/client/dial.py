"""From a host's name to a connected socket: happy eyeballs (RFC 8305)."""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from itertools import zip_longest
from typing import Any, Final, TypeVar

from mqttc.errors import ConnectError

ATTEMPT_DELAY_S: Final = 0.25
"""RFC 8305's Connection Attempt Delay."""

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

    Raises an ``OSError`` when all have failed: of the first one that somebody answered, or of the first one where nobody is there.
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
        raise next(filter(_answered, errors), errors[0] if errors else OSError("no address"))
    finally:
        for task in running:
            task.cancel()
            task.add_done_callback(lambda late: _drop(late, drop))
        if running:
            await asyncio.wait(running)


def _answered(error: BaseException) -> bool:
    """Whether it is a peer's doing, a certificate for one: that says more than that another address leads nowhere."""
    return isinstance(error, ConnectError) and error.__cause__ is None


def _drop(task: asyncio.Future[T], drop: Callable[[T], None]) -> None:
    if not task.cancelled() and task.exception() is None:
        drop(task.result())


async def sources(infos: list[Info], bind_address: str | None, kind: socket.SocketKind) -> dict[Info, Address | None]:
    """What can be reached from `bind_address`, a name or address of this machine, each with that of ours to bind; None: the system chooses.

    Raises ``ConnectError``.
    """
    if bind_address is None:
        return dict.fromkeys(infos)
    try:
        own = dict(reversed(await resolve(bind_address, 0, kind)))
    except OSError as error:
        raise ConnectError(f"bind_address {bind_address}: {error.strerror}") from error
    found: dict[Info, Address | None] = {info: own[info[0]] for info in infos if info[0] in own}
    if not found:
        raise ConnectError(f"bind_address {bind_address}: there is no address of this family to connect to")
    return found


async def connect_tcp(host: str, port: int, bind_address: str | None = None) -> socket.socket:
    """Connected and not blocking; the caller owns it. Raises ``ConnectError``, ``OSError``."""
    found = await sources(await resolve(host, port, socket.SOCK_STREAM), bind_address, socket.SOCK_STREAM)
    return await race(found, lambda info: _connect(info, found[info]), socket.socket.close)


async def _connect(info: Info, source: Address | None) -> socket.socket:
    family, address = info
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setblocking(False)
        if source is not None:
            _bind(made, source)
        await asyncio.get_running_loop().sock_connect(made, address)
    except BaseException:
        made.close()
        raise
    return made


def _bind(made: socket.socket, source: Address) -> None:
    try:
        made.bind(source)
    except OSError as error:
        raise ConnectError(f"bind_address {source[0]}: {error.strerror}") from error
