"""Cancellation at every await: whatever an application is doing with a client, it may be stopped there, and nothing is left."""

from __future__ import annotations

import asyncio
import contextlib
import selectors
from collections.abc import Awaitable, Callable, Coroutine, Generator
from pathlib import Path
from typing import Any

import pytest

from mqttc import Client
from mqttc.client import Message, Reconnect, SqliteStore, State, Tls
from mqttc.client.engine import Engine
from mqttc.client.supervisor import Supervisor
from tests.client.conftest import SCHEMES, TIMEOUT, FaultProxy, client_url, listeners, run, settled
from tests.client.test_proxy import HttpProxy, SocksProxy
from tests.conftest import BrokerFactory, tcp_address

MOST = 500
"""Awaits of one scenario; more means that it does not end."""

ROADS = (*SCHEMES, "h2")

Scenario = Callable[[Client], Coroutine[Any, Any, None]]

pytestmark = pytest.mark.filterwarnings("error::ResourceWarning")
"""A transport or socket that only the garbage collector closes is one that was left."""


class CancelAt:
    """Runs a coroutine and throws ``CancelledError`` into it when it waits for the ``at``-th time; or calls ``instead`` then.

    ``reached``: whether it did.
    """

    def __init__(self, work: Coroutine[Any, Any, None], at: int, instead: Callable[[], None] | None = None) -> None:
        self.reached = False
        self._work = work
        self._at = at
        self._instead = instead

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
            if count == self._at and self._instead is not None:
                self._instead()
            elif count == self._at:
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


async def lose_and_come_again(client: Client) -> None:
    """The connection breaks, and the next one takes what waited; twice."""
    async with client:
        await client.subscribe("c", 1)
        lose(client)
        await client.wait_for(State.RECONNECTING, State.CLOSED)
        await client.publish("c", b"x", 2)
        await client.wait_for(State.CONNECTED, State.CLOSED)
        lose(client)
        await client.subscribe("d", 1)
        await client.get()


def lose(client: Client) -> None:
    connection = client._engine.connection
    if connection is not None and connection.link is not None:
        connection.link.abort()


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


def descriptors() -> int:
    """That the loop watches: the connections of clients and of a test's proxies, not those of the brokers' threads."""
    selector: selectors.BaseSelector = asyncio.get_running_loop()._selector  # type: ignore[attr-defined]
    return len(selector.get_map())


async def check_ended(client: Client, at: int, before: int) -> None:
    """``before``: descriptors. Sooner than a broker gives a connection up that was left."""
    assert client.closed
    others = {task for task in asyncio.all_tasks() - {asyncio.current_task()} if not of_a_test(task)}
    assert not others, f"stopped at await {at}: {others}"
    try:
        await settled(lambda: descriptors() <= before, TIMEOUT / 4)
    except TimeoutError:
        raise AssertionError(f"stopped at await {at}: {descriptors()} descriptors, not {before}") from None


async def at_every_await(make: Callable[[], Client], scenario: Scenario) -> int:
    """How many there were."""
    before = descriptors()
    for at in range(1, MOST):
        client = make()
        runner = CancelAt(scenario(client), at)
        with contextlib.suppress(asyncio.CancelledError):
            await runner
        if not runner.reached:
            return at - 1
        await client.close()
        await check_ended(client, at, before)
        engine = client._engine
        assert engine.connection is None and not engine.idle and not len(engine.responses)
        assert len(engine.inbox._waiters) == 0
    raise AssertionError("it does not end")


@pytest.fixture(params=ROADS)
def road(request: pytest.FixtureRequest, broker_factory: BrokerFactory, pki: Path, tmp_path: Path) -> Callable[[], Client]:
    """Makes clients of a broker over one road."""
    scheme = "wss" if request.param == "h2" else request.param
    url = client_url(broker_factory({"listeners": listeners(pki, tmp_path, scheme)}), scheme)
    tls, again = Tls(ca_file=pki / "ca.pem"), Reconnect(first_s=0, most_s=0.01)
    return lambda: Client(url, http2=request.param == "h2", tls=tls, reconnect=again)


@pytest.mark.parametrize("scenario", [everything, connect_and_close, lose_and_come_again])
def test_over_every_road(scenario: Scenario, road: Callable[[], Client]) -> None:
    async def work() -> None:
        assert await at_every_await(road, scenario) >= 3

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


def test_the_supervisor_at_every_await(road: Callable[[], Client], monkeypatch: pytest.MonkeyPatch) -> None:
    """What the client's own task does while it connects, for the first time and again, is stopped by `close`, at any of its awaits too."""
    supervise = Engine._supervise

    async def stopped_at(at: int) -> bool:
        reached = asyncio.Event()
        before = descriptors()

        async def watched(engine: Engine, supervisor: Supervisor) -> None:
            await CancelAt(supervise(engine, supervisor), at, reached.set)

        monkeypatch.setattr(Engine, "_supervise", watched)
        client = road()
        working = asyncio.ensure_future(lose_and_come_again(client))
        waiting = asyncio.ensure_future(reached.wait())
        await asyncio.wait({working, waiting}, return_when=asyncio.FIRST_COMPLETED)
        await client.close()
        waiting.cancel()
        await asyncio.gather(working, waiting, return_exceptions=True)
        await check_ended(client, at, before)
        return reached.is_set()

    async def work() -> None:
        at = 1
        while await stopped_at(at):
            at += 1
        assert at > 3 * 3  # of each of three connections: the way to the broker, CONNACK, the end

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
                    await client.wait_for(State.RECONNECTING, State.CLOSED)
                    await client.publish("c", b"x", 2)
                    await client.wait_for(State.CONNECTED, State.CLOSED)
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
