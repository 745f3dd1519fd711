"""Cancellation at every await: whatever an application is doing with a client, it may be stopped there, and nothing is left."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine, Generator
from pathlib import Path
from typing import Any

import pytest

from mqttc import Client
from mqttc.client import Message, Reconnect, SqliteStore, State, Tls
from tests.client.conftest import FaultProxy, client_url, listeners, run
from tests.client.test_proxy import HttpProxy, SocksProxy
from tests.conftest import BrokerFactory, tcp_address

MOST = 500
"""Awaits of one scenario; more means that it does not end."""

Scenario = Callable[[Client], Coroutine[Any, Any, None]]


class CancelAt:
    """Runs a coroutine and throws ``CancelledError`` into it when it waits for the ``at``-th time. ``reached``: whether it did."""

    def __init__(self, work: Coroutine[Any, Any, None], at: int) -> None:
        self.reached = False
        self._work = work
        self._at = at

    def __await__(self) -> Generator[Any, Any, None]:
        count = 0
        value: Any = None
        error: BaseException | None = None
        while True:
            try:
                waited = self._work.throw(error) if error is not None else self._work.send(value)
            except StopIteration:
                return
            error = None
            count += 1
            if count == self._at:
                self.reached = True
                if asyncio.isfuture(waited):
                    waited._asyncio_future_blocking = False  # type: ignore[misc]  # nobody waits for it any more
                    waited.cancel()
                error = asyncio.CancelledError()
                continue
            try:
                value = yield waited
            except BaseException as thrown:
                error = thrown


async def everything(client: Client) -> None:
    async with client:
        subscription = await client.subscribe("c/#", 2)
        for qos in (0, 1, 2):
            await client.publish("c/1", b"x", qos)
        async for message in subscription:
            if message.qos == 2:
                break

        async def answer(asked: Message) -> None:
            await client.respond(asked, b"yes")

        async with await client.subscribe("ask", 1, callback=lambda asked: client._engine.spawn(answer(asked))):
            await client.request("ask", b"?")
        await client.unsubscribe("c/#")


async def only_connect(client: Client) -> None:
    async with client:
        pass


async def connect_and_close(client: Client) -> None:
    """Without a context: the cancelled call itself has to tidy up, or `close` after it."""
    try:
        await client.connect()
        await client.publish("a", b"", 1)
    finally:
        await client.close()


def of_a_test(task: asyncio.Task[Any]) -> bool:
    """A proxy's, which ends with the test."""
    code = getattr(task.get_coro(), "cr_code", None)
    return code is not None and Path(code.co_filename).parent == Path(__file__).parent


async def at_every_await(make: Callable[[], Client], scenario: Scenario) -> int:
    """How many there were."""
    for at in range(1, MOST):
        client = make()
        runner = CancelAt(scenario(client), at)
        with contextlib.suppress(asyncio.CancelledError):
            await runner
        if not runner.reached:
            return at - 1
        await client.close()
        others = {task for task in asyncio.all_tasks() - {asyncio.current_task()} if not of_a_test(task)}
        assert not others, f"cancelled at await {at}: {others}"
        assert client.closed
        engine = client._engine
        assert engine.connection is None and not engine.idle and not len(engine.responses)
        assert len(engine.inbox._waiters) == 0
    raise AssertionError("it does not end")


@pytest.mark.parametrize("scenario", [everything, connect_and_close])
def test_over_tcp(scenario: Scenario, url: str) -> None:
    async def work() -> None:
        assert await at_every_await(lambda: Client(url), scenario) >= 3

    run(work(), 60)


@pytest.mark.parametrize("scheme", ["mqtts", "ws", "wss", "unix", "quic"])
def test_over_every_road(scheme: str, broker_factory: BrokerFactory, pki: Path, tmp_path: Path) -> None:
    url = client_url(broker_factory({"listeners": listeners(pki, tmp_path, scheme)}), scheme)

    async def work() -> None:
        assert await at_every_await(lambda: Client(url, tls=Tls(ca_file=pki / "ca.pem")), only_connect) >= 2

    run(work(), 60)


def test_with_a_store(url: str, tmp_path: Path) -> None:
    """A file that was left locked would stop the next client."""

    async def durable(client: Client) -> None:
        async with client:
            await client.publish("a", b"x", 2, wait=False)
            await client.publish("a", b"x", 1)

    async def work() -> None:
        store = tmp_path / "c.db"
        made = await at_every_await(lambda: Client(url, client_id="c", session_expiry=60, store=SqliteStore(store)), durable)
        assert made >= 3

    run(work(), 60)


def test_the_supervisor_at_every_await(url: str, pki: Path) -> None:
    """What the client's own task does while it connects is stopped by `close`, at any of its awaits too."""

    async def work() -> None:
        for turns in range(40):
            client = Client(url)
            connecting = asyncio.ensure_future(client.connect())
            for _ in range(turns):
                await asyncio.sleep(0)
            await client.close()
            await asyncio.gather(connecting, return_exceptions=True)
            assert not asyncio.all_tasks() - {asyncio.current_task()}
            assert client.closed

    run(work(), 60)


def test_a_publish_that_is_cancelled_is_sent_once_or_not_at_all(url: str) -> None:
    async def work() -> None:
        async with Client(url) as client, Client(url) as watcher:
            await watcher.subscribe("c", 2)

            async def publish() -> None:
                await client.publish("c", b"x", 2)

            for at in range(1, 10):
                runner = CancelAt(publish(), at)
                with contextlib.suppress(asyncio.CancelledError):
                    await runner
            await client.publish("c", b"last", 2)
            assert client.unfinished == 0
            got = []
            while b"last" not in got:
                got.append((await watcher.get()).payload)
            assert len(got) == 10

    run(work())


def test_a_subscribe_that_is_cancelled_is_taken_back(url: str) -> None:
    async def work() -> None:
        async with Client(url) as client:
            subscribing: Awaitable[object] = client.subscribe("c", 1)

            async def subscribe() -> None:
                await subscribing

            with contextlib.suppress(asyncio.CancelledError):
                await CancelAt(subscribe(), 1)
            await client.unsubscribe("other")  # behind SUBACK and the UNSUBSCRIBE that follows it
            await client.unsubscribe("other")
            assert (await client.publish("c", b"", 1)).reason_code == 0x10
            assert not client._engine.require_core().filters and not client._engine.router.routes

    run(work())


def test_over_a_reconnect(url: str) -> None:
    """While the connection is lost, made again, and what waited is sent."""

    async def work() -> None:
        async with FaultProxy(*tcp_address(url)) as proxy:

            async def cut(client: Client) -> None:
                async with client:
                    await client.subscribe("c", 1)
                    proxy.cut()
                    await client.wait_for(State.RECONNECTING)
                    await client.publish("c", b"x", 2)
                    await client.wait_for(State.CONNECTED)
                    proxy.cut()
                    await client.subscribe("d", 1)
                    await client.get()

            made = await at_every_await(lambda: Client(proxy.url, reconnect=Reconnect(first_s=0, most_s=0.01)), cut)
            assert made >= 6

    run(work(), 60)


@pytest.mark.parametrize("scheme", ["http", "socks5h"])
def test_through_proxies(scheme: str, url: str) -> None:
    if scheme == "socks5h":
        pytest.importorskip("python_socks")

    async def work() -> None:
        async with HttpProxy() if scheme == "http" else SocksProxy() as proxy:
            where = f"{scheme}://127.0.0.1:{proxy.port}"
            assert await at_every_await(lambda: Client(url, proxy=where), only_connect) >= 2
            for turns in range(40):
                client = Client(url, proxy=where)
                connecting = asyncio.ensure_future(client.connect())
                for _ in range(turns):
                    await asyncio.sleep(0)
                await client.close()
                await asyncio.gather(connecting, return_exceptions=True)

    run(work(), 60)
