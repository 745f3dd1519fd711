"""What the relay asks of a connection to the broker, and what arrives on a stream of it."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Protocol

WINDOW_BYTES = 1 << 20
"""For each stream and direction: what the broker may send unasked, and what may wait to be sent."""


class UpstreamError(ConnectionError):
    """The broker cannot be reached by this way, or a stream or connection to it broke; the text says why."""


class Upstream(Protocol):
    """One connection to the broker, of a number of streams."""

    async def stream(self) -> UpstreamStream: ...
    async def shut(self) -> None: ...
    @property
    def usable(self) -> bool:
        """False once it is lost."""
        ...


class UpstreamStream(Protocol):
    """One client's road to the broker. Each call may raise ``UpstreamError``."""

    async def send(self, data: bytes) -> None:
        """Returns when there is room for more."""
        ...

    async def end(self) -> None:
        """Nothing more is sent."""
        ...

    async def receive(self) -> bytes:
        """What has come, empty at the end. A call says that what the one before gave has gone."""
        ...

    def abort(self) -> None: ...


class Inlet:
    """What has come on a stream and was not asked for yet."""

    def __init__(self) -> None:
        self._chunks: deque[tuple[bytes, int]] = deque()
        self._ended = False
        self._failure: str | None = None
        self._stirred = asyncio.Event()
        self.held = 0

    @property
    def over(self) -> bool:
        return self._ended or self._failure is not None

    def feed(self, data: bytes, cost: int) -> None:
        """``cost``: what the peer's flow control counted for it."""
        if data or cost:
            self._chunks.append((data, cost))
            self.held += cost
            self._stirred.set()

    def end(self) -> None:
        self._ended = True
        self._stirred.set()

    def fail(self, why: str) -> None:
        if not self.over:
            self._failure = why
        self._stirred.set()

    def check(self) -> None:
        if self._failure is not None:
            raise UpstreamError(self._failure)

    async def take(self) -> tuple[bytes, int]:
        """The next chunk, even where the stream broke later; (b"", 0) at the end."""
        while not self._chunks:
            self.check()
            if self._ended:
                return b"", 0
            self._stirred.clear()
            await self._stirred.wait()
        data, cost = self._chunks.popleft()
        self.held -= cost
        return data, cost
