"""A broker in this process, clients over sockets, and loops for what the program does inside."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import pytest

from mqttc.server import Broker
from tests.conftest import tcp_address
from tests.rawclient import Peer

from ..store.conftest import make_place as make_place
from ..store.conftest import place as place

TIMEOUT = float(os.environ.get("MQTTC_TEST_TIMEOUT", "5")) * 4
"""Seconds for a whole test's coroutine; what takes longer hangs."""

T = TypeVar("T")
PeerFactory = Callable[..., Peer]


def run(work: Coroutine[Any, Any, T]) -> T:
    """Its result, on a loop of its own. Fails where tasks are left, or an error went nowhere."""
    unheard: list[dict[str, Any]] = []

    async def main() -> T:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: unheard.append(context))
        async with asyncio.timeout(TIMEOUT):
            result = await work
        await asyncio.sleep(0)
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left, f"tasks are left: {left}"
        return result

    try:
        return asyncio.run(main())
    finally:
        gc.collect()
        assert not unheard, f"errors that nobody heard: {unheard}"


def until(check: Callable[[], object], what: Callable[[], object] = lambda: "it did not come to that") -> None:
    """Look until it holds."""
    deadline = time.monotonic() + TIMEOUT
    pause = threading.Event()
    while not check():
        assert time.monotonic() < deadline, what()
        pause.wait(0.002)


async def eventually(check: Callable[[], object], what: Callable[[], object] = lambda: "it did not come to that") -> None:
    """Let the loop run until it holds."""
    deadline = time.monotonic() + TIMEOUT
    while not check():
        assert time.monotonic() < deadline, what()
        await asyncio.sleep(0.002)


@pytest.fixture
def peer(request: pytest.FixtureRequest) -> PeerFactory:
    """Connected clients that are closed with the test: `peer(broker, "id", version=4, expiry=60)`."""

    def make(broker: Broker, client_id: str, version: int = 5, listener: int = 0, **options: Any) -> Peer:
        made = Peer(tcp_address(broker.urls[listener]), version)
        request.addfinalizer(made.close)
        assert made.connect(client_id, **options).reason == 0
        return made

    return make
