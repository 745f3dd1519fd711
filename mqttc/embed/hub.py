"""The hub: what the workers have for the program goes to whoever asked for it, on their thread or loop.

It is read on the control thread. Everything for one asyncio loop is handed over by one wake-up of that loop.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import itertools
import logging
import os
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from mqttc import inside, logs, native
from mqttc.embed.message import Message
from mqttc.errors import BrokerError

if TYPE_CHECKING:
    from mqttc.config import Config
    from mqttc.embed.events import Listening
    from mqttc.embed.publisher import Publisher
    from mqttc.embed.subscription import Subscription
    from mqttc.listen import Served

Answer = inside.Answer
Loop = asyncio.AbstractEventLoop
Waiter = asyncio.Future[Answer] | concurrent.futures.Future[Answer]
Work = list[tuple[Callable[..., object], tuple[Any, ...]]]

_logger: Final = logging.getLogger(logs.LOGGER_NAME)


class Hub:
    """Of one running engine. Any thread, but ``drain``, which is the control thread's."""

    def __init__(self, engine: native.Engine, served: Mapping[int, Served], config: Config) -> None:
        self.port = inside.Port(engine, Message)
        self.served = served
        self.config = config
        self._process = os.getpid()
        self.thread: threading.Thread | None = None
        """The control thread; who waited on it for an answer would wait for ever."""
        self._lock = threading.RLock()
        self._tickets = itertools.count(1)
        self._turn = itertools.count()
        self._waiters: dict[int, tuple[Waiter | None, Callable[[Answer | None], None] | None]] = {}
        self._subscriptions: dict[int, Subscription] = {}
        self._listening: dict[int, Listening] = {}
        self._publisher: Publisher | None = None
        self._closed = False

    def check_process(self) -> None:
        """Before any lock is taken: in a forked child another thread may have had it, and is not there to let it go."""
        if os.getpid() != self._process:
            raise BrokerError("a broker does not survive a fork; make a new one in the child")

    # ---- requests

    def next_worker(self) -> int:
        """In-process clients are spread over the workers."""
        return next(self._turn) % self.port.workers

    def send(self, verb: int, waiter: Waiter | None = None, then: Callable[[Answer | None], None] | None = None, /, **request: Any) -> None:
        """The answer settles ``waiter``, and ``then`` is called with it on the control thread; with None if the broker stops before."""
        self.check_process()
        with self._lock:
            if self._closed:
                raise stopped()
            ticket = next(self._tickets)
            self._waiters[ticket] = (waiter, then)
            try:
                self.port.ask(verb, ticket=ticket, **request)
            except RuntimeError as error:
                del self._waiters[ticket]
                raise stopped() from error
            except BaseException:
                del self._waiters[ticket]
                raise

    def tell(self, verb: int, **request: Any) -> None:
        """Without an answer; to a broker that has stopped, nothing."""
        self.check_process()
        with self._lock:
            if not self._closed:
                try:
                    self.port.ask(verb, **request)
                except RuntimeError:
                    pass  # it is stopping, and ends everything by itself

    async def ask(self, verb: int, **request: Any) -> Answer:
        waiter: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self.send(verb, waiter, None, **request)
        return await waiter

    def responsive(self, timeout_s: float) -> bool:
        """Every worker is asked for a session that does not exist, and the control thread brings the answers."""
        waiting = set(range(self.port.workers))
        answered = threading.Event()

        def heard(worker: int, answer: Answer | None) -> None:
            waiting.discard(worker)
            if not waiting:
                answered.set()

        for worker in range(self.port.workers):
            self.send(inside.LOOK, None, functools.partial(heard, worker), worker=worker, data=b"")
        return answered.wait(timeout_s)

    # ---- who gets what

    def add_subscription(self, session: int, subscription: Subscription) -> None:
        with self._lock:
            if self._closed:
                raise stopped()
            self._subscriptions[session] = subscription

    def remove_subscription(self, session: int) -> None:
        with self._lock:
            self._subscriptions.pop(session, None)

    def listen(self, listening: Listening) -> None:
        self.check_process()
        with self._lock:
            if self._closed:
                raise stopped()
            self._listening[id(listening)] = listening
            self._hear()

    def unlisten(self, key: int) -> None:
        if os.getpid() != self._process:
            return
        with self._lock:
            if self._listening.pop(key, None) is not None and not self._closed:
                self._hear()

    def _hear(self) -> None:
        self.port.hear({kind for listening in self._listening.values() for kind in listening.kinds})

    def default_publisher(self) -> Publisher:
        """What ``Broker.publish`` publishes through, made at its first use."""
        from mqttc.embed.publisher import Publisher

        with self._lock:
            if self._publisher is None:
                self._publisher = Publisher(self)
            return self._publisher

    # ---- the control thread

    def drain(self) -> int:
        """Hand over what waits; the number of things."""
        from mqttc.embed.events import event_of

        taken = self.port.receive()
        work: dict[Loop, Work] = {}
        for one in taken:
            if isinstance(one, inside.Answer):
                self._answered(one, work)
            elif isinstance(one, inside.Delivery):
                with self._lock:
                    subscription = self._subscriptions.get(one.session)
                if subscription is not None:
                    work.setdefault(subscription.loop, []).append((subscription.put, (one,)))
            else:
                with self._lock:
                    hearers = [listening for listening in self._listening.values() if one.kind in listening.kinds]
                event = event_of(one, self.served)
                for listening in hearers:
                    if listening.loop is None:
                        _run([(listening.put, (event,))])
                    else:
                        work.setdefault(listening.loop, []).append((listening.put, (event,)))
        for loop, items in work.items():
            self._hand_over(loop, items)
        return len(taken)

    def _answered(self, answer: Answer, work: dict[Loop, Work]) -> None:
        with self._lock:
            waiter, then = self._waiters.pop(answer.ticket, (None, None))
        if then is not None:
            then(answer)
        if isinstance(waiter, concurrent.futures.Future):
            if waiter.set_running_or_notify_cancel():
                waiter.set_result(answer)
        elif waiter is not None:
            work.setdefault(waiter.get_loop(), []).append((_settle, (waiter, answer)))

    def _hand_over(self, loop: Loop, items: Work) -> None:
        try:
            loop.call_soon_threadsafe(_run, items)
        except RuntimeError:  # that loop is closed, and with it whoever was there
            with self._lock:
                gone = [one for one in self._subscriptions.values() if one.loop is loop]
                deaf = [key for key, one in self._listening.items() if one.loop is loop]
            for subscription in gone:
                subscription.abandon()
            for key in deaf:
                self.unlisten(key)

    def close(self) -> None:
        """The workers have stopped and all was drained: who still waits is told, iterations end."""
        with self._lock:
            self._closed = True
            waiters, self._waiters = self._waiters, {}
            subscriptions, self._subscriptions = self._subscriptions, {}
            listening, self._listening = self._listening, {}
            self._publisher = None
        work: dict[Loop, Work] = {}
        for waiter, then in waiters.values():
            if then is not None:
                then(None)
            if isinstance(waiter, concurrent.futures.Future):
                if waiter.set_running_or_notify_cancel():
                    waiter.set_exception(stopped())
            elif waiter is not None:
                work.setdefault(waiter.get_loop(), []).append((_settle, (waiter, None)))
        for subscription in subscriptions.values():
            work.setdefault(subscription.loop, []).append((subscription.end, ()))
        for one in listening.values():
            if one.loop is not None:
                work.setdefault(one.loop, []).append((one.end, ()))
        for loop, items in work.items():
            self._hand_over(loop, items)


def stopped() -> BrokerError:
    return BrokerError("the broker is not running")


def settle(waiter: Waiter | None, error: BaseException) -> None:
    """From any thread: whoever waits gets the error."""
    if isinstance(waiter, concurrent.futures.Future):
        if waiter.set_running_or_notify_cancel():
            waiter.set_exception(error)
    elif waiter is not None:
        try:
            waiter.get_loop().call_soon_threadsafe(_fail, waiter, error)
        except RuntimeError:
            pass  # its loop is closed


def _fail(waiter: asyncio.Future[Answer], error: BaseException) -> None:
    if not waiter.done():
        waiter.set_exception(error)


def _settle(waiter: asyncio.Future[Answer], answer: Answer | None) -> None:
    if waiter.done():
        return
    if answer is None:
        waiter.set_exception(stopped())
    else:
        waiter.set_result(answer)


def _run(items: Work) -> None:
    for call, arguments in items:
        try:
            call(*arguments)
        except Exception as error:
            logs.emit(_logger, logging.ERROR, "callback_failed", {"error": repr(error)})
