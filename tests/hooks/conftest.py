"""Brokers with hooks, a loop for coroutine functions, and clients over sockets."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from mqttc.hooks import Hooks
from mqttc.server import Broker
from tests.conftest import BrokerFactory

from ..embed.conftest import peer as peer

Serve = Callable[..., Broker]
Shaped = Callable[[Callable[..., Any]], Callable[..., Any]]


class Loop:
    """The program's loop, in a thread of its own, which can be blocked."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.errors: list[dict[str, Any]] = []
        self.loop.set_exception_handler(lambda _, context: self.errors.append(context))
        self._go_on = threading.Event()
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()
        self.name = self._thread.name

    def block(self) -> None:
        """Until `release`."""
        busy = threading.Event()

        def wait() -> None:
            busy.set()
            self._go_on.wait()

        self.loop.call_soon_threadsafe(wait)
        busy.wait()

    def release(self) -> None:
        self._go_on.set()

    def tasks(self) -> int:
        """That are not over; asked on the loop, behind what it was told before."""

        async def count() -> int:
            return len(asyncio.all_tasks()) - 1

        return asyncio.run_coroutine_threadsafe(count(), self.loop).result()

    def close(self) -> None:
        self.release()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        left = asyncio.all_tasks(self.loop)
        self.loop.close()
        assert not left, f"tasks are left: {left}"
        assert not self.errors, f"errors that nobody heard: {self.errors}"


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    made.close()


@pytest.fixture
def hooks(loop: Loop) -> Hooks:
    return Hooks(loop=loop.loop, deadline=60)


@pytest.fixture
def serve(loop: Loop, hooks: Hooks, broker_factory: BrokerFactory) -> Serve:
    """Starts a broker with these hooks; it ends before the loop does."""

    def make(config: dict[str, Any] | None = None) -> Broker:
        return broker_factory(config, hooks=hooks)

    return make


@pytest.fixture(params=["plain", "coroutine"])
def shaped(request: pytest.FixtureRequest) -> Shaped:
    """The function as it is, or as a coroutine function."""

    def shape(function: Callable[..., Any]) -> Callable[..., Any]:
        if request.param == "plain":
            return function

        async def coroutine(*arguments: Any) -> Any:
            await asyncio.sleep(0)
            return function(*arguments)

        return coroutine

    return shape
