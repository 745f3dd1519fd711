"""The client for scripts and threads: the same names, blocking. A thread of its own runs the loop of one `Client`.

Any thread may call; calls of several threads run beside each other. An interrupted call (Ctrl-C) is cancelled as one of `Client` is.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections import deque
from collections.abc import Coroutine, Iterable
from types import TracebackType
from typing import Any, Final, Self, TypeVar, Unpack

from mqttc import codec
from mqttc.client.client import REQUEST_TIMEOUT_S, Client, Filters, Payload
from mqttc.client.message import Message, PublishResult, UnsubscribeResult
from mqttc.client.options import ClientOptions, Options, ServerLimits
from mqttc.client.state import State, Stats
from mqttc.client.subscription import Callback, Subscription
from mqttc.codec import Properties, ReasonCode
from mqttc.errors import ClosedError

BATCH: Final = 100
"""Messages of QoS 0 that change threads at a time; those of QoS 1 and 2, which are acknowledged then, go singly."""

T = TypeVar("T")


class LoopThread:
    """A thread that runs a loop, from the first `call` to `stop`, for `what`."""

    def __init__(self, what: str = "client") -> None:
        self._what = what
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._stopped = False

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Its result; raises what it does. An exception in the calling thread cancels it. Raises ``ClosedError`` after `stop`."""
        with self._lock:  # so that whatever is begun is begun before `stop`, which ends it
            try:
                future = asyncio.run_coroutine_threadsafe(work, self._started())
            except BaseException:
                work.close()
                raise
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            raise ClosedError(f"the {self._what} is closed") from None
        except BaseException:
            future.cancel()
            raise

    def stop(self) -> None:
        """Idempotent. Calls of other threads that still wait end with ``ClosedError``. Not to be called from the thread itself."""
        with self._lock:
            self._stopped = True
            loop, thread = self._loop, self._thread
            self._loop = self._thread = None
        if loop is not None and thread is not None:
            loop.call_soon_threadsafe(loop.stop)
            thread.join()

    def _started(self) -> asyncio.AbstractEventLoop:
        if self._stopped:
            raise ClosedError(f"the {self._what} is closed")
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=self._run, args=(self._loop,), name=f"mqttc {self._what}", daemon=True)
            self._thread.start()
        elif threading.current_thread() is self._thread:
            raise RuntimeError("a blocking call in a callback would wait for itself")
        return self._loop

    @staticmethod
    def _run(loop: asyncio.AbstractEventLoop) -> None:
        asyncio.set_event_loop(loop)
        try:
            loop.run_forever()
            loop.run_until_complete(_end_all())
            loop.run_until_complete(loop.shutdown_asyncgens())
        finally:
            loop.close()


async def _end_all() -> None:
    await asyncio.sleep(0)  # what has its answer already takes it
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


class Inflow:
    """Messages of a stream as an iterator of any thread; several threads share them out."""

    def __init__(self, thread: LoopThread, source: Client | Subscription) -> None:
        self._thread = thread
        self._source = source
        self._ready: deque[Message] = deque()

    def get(self, timeout_s: float | None) -> Message:
        """Raises ``StopIteration`` at the end, ``TimeoutError``."""
        try:
            return self._ready.popleft()
        except IndexError:
            pass
        found = self._thread.call(self._next(timeout_s))
        if not found:
            raise StopIteration
        self._ready.extend(found[1:])
        return found[0]

    async def _next(self, timeout_s: float | None) -> list[Message]:
        source = self._source
        async with asyncio.timeout(timeout_s):
            try:
                found = [await source.get()]
            except StopAsyncIteration:
                found = []
        while found and len(found) < BATCH and not found[-1].qos:
            more = source.take(1)
            if not more:
                break
            found += more
        return found


class SyncSubscription:
    """See `Subscription`."""

    def __init__(self, thread: LoopThread, subscription: Subscription) -> None:
        self._thread = thread
        self._subscription = subscription
        self._inflow = Inflow(thread, subscription)

    @property
    def topic_filters(self) -> tuple[str, ...]:
        return self._subscription.topic_filters

    @property
    def reason_codes(self) -> tuple[ReasonCode, ...]:
        return self._subscription.reason_codes

    @property
    def properties(self) -> Properties:
        return self._subscription.properties

    @property
    def granted(self) -> bool:
        return self._subscription.granted

    def unsubscribe(self) -> UnsubscribeResult:
        return self._thread.call(self._subscription.unsubscribe())

    def get(self, timeout_s: float | None = None) -> Message:
        """The next message. Raises ``TimeoutError``, and ``StopIteration`` after the end."""
        return _first(self._inflow, timeout_s)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Message:
        return self.get()

    def __enter__(self) -> Self:
        self._thread.call(self._prepare())
        return self

    async def _prepare(self) -> None:
        self._subscription.prepare()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self.unsubscribe()
        except ClosedError:
            pass  # it has ended with the client


class SyncClient:
    """`with SyncClient("mqtt://user:password@host:1883", ...) as client`. Callbacks run in the client's thread and must not block."""

    def __init__(self, url: str = "mqtt://localhost", **options: Unpack[ClientOptions]) -> None:
        """Raises ``ValueError`` for a URL or option that cannot be used."""
        self._client = Client(url, **options)
        self._thread = LoopThread()
        self._inflow = Inflow(self._thread, self._client)

    def __repr__(self) -> str:
        return f"<Sync{repr(self._client)[1:]}"

    @property
    def options(self) -> Options:
        return self._client.options

    @property
    def state(self) -> State:
        return self._client.state

    @property
    def error(self) -> BaseException | None:
        return self._client.error

    @property
    def connected(self) -> bool:
        return self._client.connected

    @property
    def closed(self) -> bool:
        return self._client.closed

    @property
    def server(self) -> str:
        return self._client.server

    @property
    def client_id(self) -> str:
        return self._client.client_id

    @property
    def version(self) -> int:
        return self._client.version

    @property
    def connack(self) -> codec.Connack:
        return self._client.connack

    @property
    def limits(self) -> ServerLimits:
        return self._client.limits

    @property
    def keep_alive(self) -> int:
        return self._client.keep_alive

    @property
    def stats(self) -> Stats:
        return self._client.stats

    @property
    def queued(self) -> int:
        return self._client.queued

    @property
    def unfinished(self) -> int:
        return self._client.unfinished

    def __enter__(self) -> Self:
        self.connect()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close(drain=error is None)

    def connect(self) -> None:
        """See `Client.connect`. After an error nothing of it is left, the thread neither."""
        try:
            self._thread.call(self._client.connect())
        except BaseException:
            self.close(drain=False)
            raise

    def close(
        self, *, drain: bool = True, reason_code: int = ReasonCode.NORMAL_DISCONNECTION, properties: Properties | None = None
    ) -> None:
        """See `Client.close`. Idempotent."""
        try:
            self._thread.call(self._client.close(drain=drain, reason_code=reason_code, properties=properties))
        except ClosedError:
            pass  # the thread has stopped
        finally:
            self._thread.stop()

    def wait_for(self, *states: State, timeout_s: float | None = None) -> State:
        """Raises ``TimeoutError``."""

        async def work() -> State:
            async with asyncio.timeout(timeout_s):
                return await self._client.wait_for(*states)

        return self._thread.call(work())

    def publish(
        self,
        topic: str,
        payload: Payload = b"",
        qos: int = 0,
        retain: bool = False,
        *,
        properties: Properties | None = None,
        wait: bool = True,
    ) -> PublishResult:
        """See `Client.publish`."""
        return self._thread.call(self._client.publish(topic, payload, qos, retain, properties=properties, wait=wait))

    def subscribe(
        self,
        filters: Filters,
        qos: int = 0,
        *,
        no_local: bool = False,
        retain_as_published: bool = False,
        retain_handling: int = 0,
        properties: Properties | None = None,
        callback: Callback | None = None,
        manual_ack: bool | None = None,
    ) -> SyncSubscription:
        """See `Client.subscribe`."""
        made = self._thread.call(
            self._client.subscribe(
                filters,
                qos,
                no_local=no_local,
                retain_as_published=retain_as_published,
                retain_handling=retain_handling,
                properties=properties,
                callback=callback,
                manual_ack=manual_ack,
            )
        )
        return SyncSubscription(self._thread, made)

    def unsubscribe(self, filters: str | Iterable[str], *, properties: Properties | None = None) -> UnsubscribeResult:
        """See `Client.unsubscribe`."""
        return self._thread.call(self._client.unsubscribe(filters, properties=properties))

    def get(self, timeout_s: float | None = None) -> Message:
        """The next message that no subscription has claimed. Raises ``TimeoutError``, and ``StopIteration`` after the end."""
        return _first(self._inflow, timeout_s)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Message:
        return self.get()

    def request(
        self,
        topic: str,
        payload: Payload = b"",
        qos: int = 1,
        *,
        properties: Properties | None = None,
        timeout_s: float = REQUEST_TIMEOUT_S,
    ) -> Message:
        """See `Client.request`."""
        return self._thread.call(self._client.request(topic, payload, qos, properties=properties, timeout_s=timeout_s))

    def respond(
        self, message: Message, payload: Payload = b"", qos: int | None = None, *, properties: Properties | None = None
    ) -> PublishResult:
        """See `Client.respond`."""
        return self._thread.call(self._client.respond(message, payload, qos, properties=properties))

    def reauthenticate(self) -> None:
        """See `Client.reauthenticate`."""
        self._thread.call(self._client.reauthenticate())


def _first(inflow: Inflow, timeout_s: float | None) -> Message:
    try:
        return inflow.get(timeout_s)
    except ClosedError:
        raise StopIteration from None
