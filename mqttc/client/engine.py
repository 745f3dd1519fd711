"""What a client is made of, held together: core, supervisor, connection, streams; and what the core's events mean for those who wait.

Of the loop's thread, but for `acknowledge`. `Client` is the face of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import threading
import time
from collections.abc import Coroutine
from typing import Any, Final

from mqttc import codec
from mqttc.client.connection import Connection
from mqttc.client.core import Authenticated, Challenge, Connected, Core, Events, Phase
from mqttc.client.incoming import Receipt
from mqttc.client.lifecycle import Lifecycle
from mqttc.client.message import Message, PublishResult, UnsubscribeResult
from mqttc.client.options import Options, Tls
from mqttc.client.outgoing import Outgoing, run_end
from mqttc.client.pressure import Pressure
from mqttc.client.requests import Request
from mqttc.client.responses import Responses
from mqttc.client.router import Router, Sink, matches
from mqttc.client.state import State, Stats
from mqttc.client.store import MemoryStore, Store
from mqttc.client.stream import Stream
from mqttc.client.subscription import Subscription
from mqttc.client.supervisor import Supervisor
from mqttc.client.url import QUIC, UNIX, WEBSOCKET, Target
from mqttc.client.waiters import Waiter, Waiters, tell
from mqttc.codec import Properties, ReasonCode
from mqttc.errors import ClosedError, ConnectionLostError, MqttError, SubscribeError, reason_text

LONG_S: Final = 86400.0
"""A timer of asyncio is set for at most so long."""
NOT_OPEN: Final = frozenset({State.NEW, State.CLOSING, State.CLOSED})

log = logging.getLogger("mqttc.client")


class Engine:
    """See above. ``core`` is there from `start` on."""

    def __init__(self, target: Target, options: Options) -> None:
        if options.http2 and not (target.road == WEBSOCKET and target.secure):
            raise ValueError("http2: WebSocket over HTTP/2 is for wss only")
        if options.bind_address is not None and target.road == UNIX:
            raise ValueError("bind_address: a Unix socket has none")
        if isinstance(options.tls, Tls) and options.tls.psk is not None and target.road == QUIC:
            raise ValueError("psk: QUIC has no pre-shared keys here")
        self.target = target
        self.options = options
        self.store: Store = options.store if options.store is not None else MemoryStore()
        self.core: Core | None = None
        self.supervisor: Supervisor | None = None
        self.connection: Connection | None = None
        """The one that the broker has accepted."""
        self.life = Lifecycle(options.on_state)
        self.stats = Stats()
        self.idle = Waiters()
        """For room in the queue, or for the last acknowledgement."""
        self.pressure = Pressure(options.stall_timeout_s, self.stats, self._awaits_answer)
        self.inbox = self.make_stream(options.manual_ack)
        """What no subscription has claimed."""
        self.router = Router(self.inbox)
        self.responses = Responses(options.max_requests)
        self._tasks: set[asyncio.Task[None]] = set()
        """The supervisor's, those that ask `Authentication.respond`, and one for each callback that is a coroutine function."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0
        self._expiry: asyncio.TimerHandle | None = None
        self._commit_due = False
        self._committed: Waiter | None = None
        self._reauthenticated: Waiter | None = None

    # ------------------------------------------------------------------------------------------------ beginning and end

    async def start(self) -> None:
        """Until the first connection is there. Raises what `Client.connect` does."""
        options = self.options
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        client_id = options.client_id
        if not client_id and min(options.version, *options.fallback, 5) < 5:
            client_id = f"mqttc-{secrets.token_hex(6)}"  # 3.1 takes 23 characters at most, and wants one
        try:
            self.core = Core(options, client_id, self.store, self.stats, self.acknowledge, time.monotonic)
        except MqttError as error:
            self.life.set(State.CLOSED, error)
            self.inbox.end(error)
            raise
        self.life.set(State.CONNECTING, None)
        self.supervisor = Supervisor(self.target, options, self.core, self.store, self)
        self.watch_expiry()
        self.spawn(self._supervise(self.supervisor))
        try:
            await self.life.wait_for(State.CONNECTED, State.CLOSED)
        except BaseException:
            await self.shut(None)
            raise
        if self.life.state is State.CLOSED:
            raise self.life.error if self.life.error is not None else ClosedError("the client was closed")

    async def drained(self) -> None:
        """Until every message is acknowledged, or the connection is gone."""
        while self.connection is not None and self.core is not None and self.core.outgoing.unfinished:
            await self.idle.wait()

    async def leave(self, reason_code: int, properties: Properties | None) -> None:
        """DISCONNECT, and then the client is the one who closes [MQTT-3.14.4-1]."""
        connection, core = self.connection, self.core
        if connection is None or core is None or core.phase is not Phase.ONLINE:
            return
        if self.supervisor is not None:
            self.supervisor.leaving = True
        core.disconnect(reason_code, properties)
        connection.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.options.close_timeout_s):
                await asyncio.shield(connection.ended)

    async def shut(self, error: BaseException | None) -> None:
        """The end of everything, whatever state it is in. All that waits in it is the end of cancelled tasks."""
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.abort()
        self.pressure.stop()
        if self._expiry is not None:
            self._expiry.cancel()
        closed = error if error is not None else ClosedError("the client is closed")
        self.responses.fail(closed)
        for subscription in self._subscriptions():
            subscription.end(error)
        self.inbox.end(error)
        self._fail_waiters(closed)
        try:
            self.store.commit()
        except MqttError as failure:
            log.error("store_failed %s", failure)
        self.store.close()
        tasks = [task for task in self._tasks if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        try:
            await asyncio.gather(*tasks, return_exceptions=True)
        finally:
            self.life.set(State.CLOSED, error)

    def _fail_waiters(self, closed: BaseException) -> None:
        core = self.core
        if core is not None:
            if core.phase is not Phase.OFFLINE:
                core.lost()
            for entry in core.outgoing.entries():
                tell(entry.waiter, closed)
            for request in core.requests.entries():
                tell(request.waiter, closed)
        self.idle.wake(closed)
        tell(self._committed, closed)
        tell(self._reauthenticated, closed)

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """A task that ends with the client at the latest."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def require_core(self) -> Core:
        """Raises ``ClosedError``."""
        if self.core is None:
            raise ClosedError("the client has not been connected")
        return self.core

    def require_open(self) -> Core:
        """Raises ``ClosedError``."""
        if self.life.state in NOT_OPEN:
            raise ClosedError(f"the client is {self.life.state.value}")
        return self.require_core()

    # ------------------------------------------------------------------------------------------------ for the supervisor

    async def _supervise(self, supervisor: Supervisor) -> None:
        error = await supervisor.run()
        if not supervisor.leaving:  # else `shut` follows anyway
            await self.shut(error)

    def accepted(self, connection: Connection) -> None:
        self.connection = connection
        self.pressure.connected(connection)
        self.life.set(State.CONNECTED, None)
        self.idle.wake()

    def disconnected(self) -> None:
        self.connection = None
        self.pressure.connected(None)
        tell(self._reauthenticated, ConnectionLostError("the connection was lost"))
        self.idle.wake()

    def waiting(self, error: BaseException | None, first: bool) -> None:
        self.life.set(State.CONNECTING if first else State.RECONNECTING, error)

    # ------------------------------------------------------------------------------------------------ sending

    def flush_soon(self) -> None:
        """What there is to send, or to store, at the end of this turn."""
        connection = self.connection
        if connection is not None:
            connection.flush_soon()
        elif self.store.dirty:
            self._commit_soon()

    async def result(self, entry: Outgoing) -> PublishResult:
        """When it has ended. Raises its error. Cancelled: what was not sent is not sent."""
        waiter: Waiter = asyncio.get_running_loop().create_future()
        entry.waiter = waiter
        try:
            await waiter
        except asyncio.CancelledError:
            entry.waiter = None
            if self.core is not None and self.core.outgoing.withdraw(entry):
                self.idle.wake()
                self.flush_soon()
            raise
        if entry.error is not None:
            raise entry.error
        return entry.result

    def watch_expiry(self) -> None:
        """What is queued and expires is dropped when it does, whether there is a connection or not."""
        core = self.core
        if core is None or self.life.state is State.CLOSED:
            return
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None
        delay_s = core.next_expiry_s()
        if delay_s is not None:
            self._expiry = asyncio.get_running_loop().call_later(min(delay_s, LONG_S), self._expire)

    def _expire(self) -> None:
        self._expiry = None
        if self.core is not None:
            self.dispatch(self.core.expire())
            self.flush_soon()
            self.watch_expiry()

    async def stored(self) -> None:
        """Until the changes of this turn are in the store's file. Raises ``MqttError``."""
        if self._committed is None:
            self._committed = asyncio.get_running_loop().create_future()
            self._commit_soon()
        await asyncio.shield(self._committed)

    def _commit_soon(self) -> None:
        if not self._commit_due:
            self._commit_due = True
            asyncio.get_running_loop().call_soon(self._commit)

    def _commit(self) -> None:
        self._commit_due = False
        committed, self._committed = self._committed, None
        try:
            self.store.commit()
        except MqttError as error:
            log.error("store_failed %s", error)
            tell(committed, error)
        else:
            tell(committed)

    async def ask(self, core: Core, request: Request) -> None:
        """Sends a request and waits for its answer. Raises ``MqttError``, ``codec.EncodeError``."""
        waiter = request.waiter = asyncio.get_running_loop().create_future()
        core.request(request)
        self.flush_soon()
        try:
            await waiter
        finally:
            request.waiter = None
            if not request.answered and not core.requests.withdraw(request):
                request.abandoned = True
        if request.error is not None:
            raise request.error

    async def reauthenticate(self) -> None:
        """Raises ``NotSupportedError``, ``ConnectionLostError``."""
        self.require_open()
        assert self.supervisor is not None
        if self._reauthenticated is not None:
            raise MqttError("re-authentication is under way already")
        self._reauthenticated = asyncio.get_running_loop().create_future()
        try:
            await self.supervisor.reauthenticate()
            await self._reauthenticated
        finally:
            self._reauthenticated = None

    # ------------------------------------------------------------------------------------------------ events

    def dispatch(self, events: Events) -> None:
        progress = False
        at, count = 0, len(events)
        while at < count:
            event = events[at]
            at += 1
            if isinstance(event, Message):
                at = self._messages(events, at - 1, event)
            elif isinstance(event, Outgoing):
                progress = True
                waiters: list[Waiter] = []
                at = run_end(events, at - 1, waiters)
                for waiter in waiters:
                    tell(waiter)
            elif isinstance(event, Request):
                self._requested(event)
            elif isinstance(event, Connected):
                for entry in event.finished:
                    tell(entry.waiter)
                self.watch_expiry()
            elif isinstance(event, Challenge):
                assert self.supervisor is not None
                self.spawn(self.supervisor.challenged(event.data))
            elif isinstance(event, Authenticated):
                tell(self._reauthenticated)
        if progress and self.idle:
            self.idle.wake()

    def _messages(self, events: Events, at: int, message: Message) -> int:
        """To whom it goes, with those behind it that go the same way. The index of the next event."""
        sinks = self.router.sinks(message)
        if len(sinks) != 1 or self.pressure.overflow:
            self._route(message, sinks)
            return at + 1
        if message.receipt is None and not self.router.identified:
            end, size = codec.run_end(events, at)
            if end - at > 1:
                sinks[0].put_all(events[at:end], size)  # type: ignore[arg-type]
                return end
        sinks[0].put(message)
        return at + 1

    def _route(self, message: Message, sinks: tuple[Sink, ...]) -> None:
        """To several, or while a stream that is full loses what may be lost."""
        receipt = message.receipt
        if receipt is not None:
            receipt.holders = len(sinks)
        for sink in sinks:
            if sink.full and self.pressure.overflow and receipt is None:
                self.stats.dropped += 1
            else:
                sink.put(Message(message.topic, message.packet, receipt))  # each acknowledges its own

    def _requested(self, request: Request) -> None:
        if request.own:
            for topic_filter, code in zip(request.subscription_filters, request.reason_codes, strict=False):
                if code >= 0x80:
                    self._lost_filter(topic_filter, code, request)
        elif request.abandoned:
            self._unwanted(request)
        tell(request.waiter)

    def _lost_filter(self, topic_filter: str, code: ReasonCode, request: Request) -> None:
        """The broker has lost the session and does not give the subscription again."""
        text = f"the broker refused to subscribe {topic_filter} again: {reason_text(code, request.result_properties)}"
        log.warning("resubscribe_refused client_id=%r filter=%r reason=0x%02x", self.require_core().client_id, topic_filter, code)
        error = SubscribeError(text, (code,), request.result_properties)
        for subscription in self._subscriptions():
            subscription.refused(topic_filter, code, error)

    def _unwanted(self, request: Request) -> None:
        """A SUBSCRIBE that was cancelled when it had been sent: what it has brought is given back."""
        core = self.require_core()
        wanted = {name for subscription in self._subscriptions() for name in subscription.topic_filters}
        gone = tuple(name for name in request.subscription_filters if name not in wanted and name in core.filters)
        if gone and core.phase is Phase.ONLINE:
            with contextlib.suppress(MqttError):
                core.request(Request(topic_filters=gone))
                self.flush_soon()

    # ------------------------------------------------------------------------------------------------ receiving

    def make_stream(self, manual: bool) -> Stream:
        options, pressure = self.options, self.pressure
        handed_over = None if manual else self.hand_over
        return Stream(options.max_buffered_messages, options.max_buffered_bytes, pressure.stream_full, pressure.stream_room, handed_over)

    def hand_over(self, message: Message) -> None:
        """The application has the message. To acknowledge it once more does nothing."""
        receipt, message.receipt = message.receipt, None
        if receipt is not None:
            self._acknowledged(receipt, 0)

    def acknowledge(self, receipt: Receipt, reason_code: int) -> None:
        """It has dealt with it. From any thread."""
        if threading.get_ident() == self._thread:
            self._acknowledged(receipt, reason_code)
        elif self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._acknowledged, receipt, reason_code)

    def _acknowledged(self, receipt: Receipt, reason_code: int) -> None:
        core = self.core
        if core is not None:
            core.acknowledge(receipt, reason_code)
            if core.out or self.store.dirty:
                self.flush_soon()

    def _awaits_answer(self) -> bool:
        core = self.core
        return core is not None and bool(core.outgoing.inflight or core.outgoing.released or len(core.requests))

    # ------------------------------------------------------------------------------------------------ subscriptions

    def _subscriptions(self) -> list[Subscription]:
        return [route for route in self.router.routes if isinstance(route, Subscription)]

    def claim(self, subscription: Subscription, stream: Stream) -> None:
        """Its messages, those in the inbox too, go to this stream. What other unclaimed ones match too stays there for them."""
        others = [route for route in self.router.routes if route is not subscription and route.sink is self.inbox]
        self.router.changed()

        def only_its_own(message: Message) -> bool:
            if not matches(subscription, message.topic):
                return False
            if any(matches(route, message.topic) for route in others):
                if message.receipt is not None:
                    message.receipt.holders += 1
                stream.put(Message(message.topic, message.packet, message.receipt))
                return False
            return True

        for message in self.inbox.remove(only_its_own):
            stream.put(message)

    def drop(self, subscription: Subscription) -> None:
        self.router.remove(subscription)
        subscription.end()

    async def unsubscribe(self, topic_filters: tuple[str, ...], properties: Properties | None = None) -> UnsubscribeResult:
        """See `Client.unsubscribe`."""
        core = self.require_open()
        request = Request(topic_filters=topic_filters, properties=properties)
        await self.ask(core, request)
        codes = request.reason_codes
        if codes and all(code >= 0x80 for code in codes):
            text = f"the broker refused to unsubscribe: {reason_text(codes[0], request.result_properties)}"
            raise SubscribeError(text, codes, request.result_properties)
        for subscription in self._subscriptions():
            named = any(name in topic_filters for name in subscription.topic_filters)
            if named and not any(name in core.filters for name in subscription.topic_filters):
                self.drop(subscription)
        return UnsubscribeResult(codes, request.result_properties)

    async def end_subscription(self, subscription: Subscription) -> UnsubscribeResult:
        """See `Subscription.unsubscribe`."""
        self.require_open()
        others = {name for other in self._subscriptions() if other is not subscription for name in other.topic_filters}
        topic_filters = tuple(name for name in subscription.topic_filters if name not in others)
        try:
            if not topic_filters or subscription not in self.router.routes:
                return UnsubscribeResult()
            return await self.unsubscribe(topic_filters)
        finally:
            self.drop(subscription)
