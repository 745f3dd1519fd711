"""Web servers in this process, each on a thread and a loop of its own, for ASGI applications that carry MQTT."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest

from mqttc.asgi import AsgiApp

Serve = Callable[[AsgiApp], AbstractContextManager[str]]
"""``with serve(app) as address``: ``host:port``; the server has ended its lifespan when it returns."""


@contextlib.contextmanager
def uvicorn(app: AsgiApp) -> Iterator[str]:
    import uvicorn

    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, ws="wsproto", log_level="critical", lifespan="on", timeout_graceful_shutdown=10))
    started = threading.Event()
    original = server.startup

    async def startup(*arguments: Any, **options: Any) -> None:
        await original(*arguments, **options)
        started.set()

    server.startup = startup  # type: ignore[method-assign]
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, name="uvicorn")
    thread.start()
    try:
        assert started.wait(20)
        host, port = listening.getsockname()
        yield f"{host}:{port}"
    finally:
        server.should_exit = True
        thread.join(20)
        listening.close()
    assert not thread.is_alive()


@contextlib.contextmanager
def hypercorn(app: AsgiApp) -> Iterator[str]:
    from hypercorn.asyncio import serve
    from hypercorn.config import Config

    listening = socket.create_server(("127.0.0.1", 0))
    host, port = listening.getsockname()
    config = Config()
    config.bind = [f"fd://{listening.fileno()}"]
    config.errorlog = None
    loop: list[asyncio.AbstractEventLoop] = []
    end: list[asyncio.Event] = []
    ready = threading.Event()

    async def main() -> None:
        loop.append(asyncio.get_running_loop())
        end.append(asyncio.Event())
        ready.set()
        await serve(app, config, shutdown_trigger=end[0].wait)  # type: ignore[arg-type]

    thread = threading.Thread(target=lambda: asyncio.run(main()), name="hypercorn")
    thread.start()
    try:
        assert ready.wait(20)
        yield f"{host}:{port}"  # connections wait in the socket's queue until it serves
    finally:
        loop[0].call_soon_threadsafe(end[0].set)
        thread.join(20)
        listening.detach()  # hypercorn has closed it
    assert not thread.is_alive()


@pytest.fixture(params=["uvicorn", "hypercorn"])
def serve(request: pytest.FixtureRequest, nothing_left: None) -> Serve:
    pytest.importorskip(request.param)
    return {"uvicorn": uvicorn, "hypercorn": hypercorn}[request.param]


@pytest.fixture
def served_by_uvicorn(nothing_left: None) -> Serve:
    pytest.importorskip("uvicorn")
    return uvicorn
