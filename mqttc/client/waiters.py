"""Who waits for something to change, on one loop."""

from __future__ import annotations

import asyncio

Waiter = asyncio.Future[None]


def tell(waiter: Waiter | None, error: BaseException | None = None) -> None:
    """Wakes one, if it still waits."""
    if waiter is not None and not waiter.done():
        if error is None:
            waiter.set_result(None)
        else:
            waiter.set_exception(error)


class Waiters:
    """Those that look again whenever they are woken. A cancelled one leaves nothing behind."""

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: list[Waiter] = []

    def __bool__(self) -> bool:
        return bool(self._waiting)

    async def wait(self) -> None:
        waiter: Waiter = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        try:
            await waiter
        finally:
            if waiter in self._waiting:
                self._waiting.remove(waiter)

    def wake(self, error: BaseException | None = None) -> None:
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            tell(waiter, error)
