"""The asyncio client: one session with a broker, over as many connections as it takes.

A client belongs to the loop in which it was connected, and to its thread. One task of its own, the supervisor, makes connections and waits
for their ends; nothing is started per message. Every call may be cancelled: what was not sent is taken back, what was is left to end.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import random
import secrets
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from types import TracebackType
from typing import Any, Final, Self, Unpack

from mqttc import codec
from mqttc.client.backoff import delay_s
from mqttc.client.connection import FLUSH_BYTES, Connection
from mqttc.client.core import Authenticated, Challenge, Connected, Core, Events, Phase
from mqttc.client.incoming import Receipt
from mqttc.client.link import open_link, os_text
from mqttc.client.message import SENT, Message, PublishResult, UnsubscribeResult
from mqttc.client.options import PERMANENT, ClientOptions, Options, ServerLimits
from mqttc.client.outgoing import Outgoing
from mqttc.client.requests import Request
from mqttc.client.responses import Responses
from mqttc.client.router import Router, matches
from mqttc.client.state import State, Stats
from mqttc.client.store import MemoryStore, Store
from mqttc.client.stream import Stream
from mqttc.client.subscription import Callback, Subscription
from mqttc.client.url import parse_url
from mqttc.codec import Properties, ReasonCode
from mqttc.errors import (
    ClosedError,
    ConnectError,
    ConnectionLostError,
    DisconnectedError,
    MqttError,
    NotSupportedError,
    RefusedError,
    SubscribeError,
    reason_text,
)

REQUEST_TIMEOUT_S: Final = 30.0
"""`Client.request`'s own."""

log = logging.getLogger("mqttc.client")

Filters = str | codec.Subscription | Iterable[str | codec.Subscription]
Payload = bytes | bytearray | memoryview | str


class Client:
    """`async with Client("mqtt://user:password@host:1883", ...) as client`. Options and their defaults: `Options`."""

    def __init__(self, url: str = "mqtt://localhost", **options: Unpack[ClientOptions]) -> None:
        """Raises ``ValueError`` for a URL or option that cannot be used."""
        self._target = parse_url(url)
        options.setdefault("username", self._target.username)
        options.setdefault("password", self._target.password)
        self.options = Options(**options)
        self._store: Store = self.options.store if self.options.store is not None else MemoryStore()
        self._core: Core | None = None
        self._connection: Connection | None = None
        self._state = State.NEW
        self._error: BaseException | None = None
        self._state_waiters: list[asyncio.Future[None]] = []
        self._supervisor: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        """Those that ask `Authentication.respond`, and one for each coroutine function that is a callback."""
        self._thread = 0
        self._stats = Stats()
        self._spoke = False
        """The last attempt came as far as CONNECT."""
        self._opening: Connection | None = None
        self._versions: tuple[int, ...] = (self.options.version, *self.options.fallback)
        self._idle_waiters: list[asyncio.Future[None]] = []
        self._committed: asyncio.Future[None] | None = None
        self._reauthenticated: asyncio.Future[None] | None = None
        self._full: set[Stream] = set()
        self._overflow = False
        self._stall_timer: asyncio.TimerHandle | None = None
        self._stall_mark = 0
        self._taken = 0
        self.inbox = self.make_stream(self.options.manual_ack)
        """What no subscription has claimed."""
        self._router = Router(self.inbox)
        self._responses = Responses(self.options.max_requests)
        self._response_lock = asyncio.Lock()
        self._response_topic: str | None = None
        self._request_count = 0

    def __repr__(self) -> str:
        return f"<Client {self.client_id!r} of {self._target.shown}: {self._state.value}>"

    # ------------------------------------------------------------------------------------------------ what it is

    @property
    def state(self) -> State:
        return self._state

    @property
    def error(self) -> BaseException | None:
        """Why the last connection ended or could not be made; None while it is connected and after `close`."""
        return self._error

    @property
    def connected(self) -> bool:
        return self._state is State.CONNECTED

    @property
    def closed(self) -> bool:
        return self._state is State.CLOSED

    @property
    def client_id(self) -> str:
        """The broker's choice, where it has made one."""
        return self.options.client_id if self._core is None else self._core.client_id

    @property
    def version(self) -> int:
        """Of the last connection: 3, 4 or 5."""
        return self.options.version if self._core is None else self._core.version

    @property
    def connack(self) -> codec.Connack:
        """The broker's last answer: session_present, and all properties."""
        return self._require_core().connack

    @property
    def limits(self) -> ServerLimits:
        """What the broker has and allows."""
        return self._require_core().limits

    @property
    def keep_alive(self) -> int:
        """Seconds that are in force."""
        return self._require_core().keep_alive

    @property
    def stats(self) -> Stats:
        return self._stats

    @property
    def queued(self) -> int:
        """Messages that wait for a connection or for the window."""
        return 0 if self._core is None else self._core.outgoing.queued

    @property
    def unfinished(self) -> int:
        """Messages that are queued, or sent with QoS 1 or 2 and not acknowledged."""
        return 0 if self._core is None else self._core.outgoing.unfinished

    async def wait_for(self, *states: State) -> State:
        """Until it is in one of them. A state that is passed through within one turn of the loop may be missed; `on_state` has them all."""
        while self._state not in states:
            await self._wait(self._state_waiters)
        return self._state

    async def states(self) -> AsyncIterator[State]:
        """The state now, and each one that is there when it is looked for, until CLOSED."""
        while True:
            state = self._state
            yield state
            if state is State.CLOSED:
                return
            while self._state is state:
                await self._wait(self._state_waiters)

    # ------------------------------------------------------------------------------------------------ coming and going

    async def __aenter__(self) -> Self:
        await self.connect()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close(drain=error is None)

    async def connect(self) -> None:
        """Returns when the broker has accepted. To be called once.

        Raises ``RefusedError``, ``ConnectError``, ``TimeoutError``; then the client is closed.
        """
        if self._state is not State.NEW:
            raise ClosedError(f"the client is {self._state.value} already")
        self._thread = threading.get_ident()
        client_id = self.options.client_id
        if not client_id and min(self._versions) < 5:
            client_id = f"mqttc-{secrets.token_hex(6)}"  # 3.1 takes 23 characters at most, and wants one
        self._core = Core(self.options, client_id, self._store, self._acknowledge)
        self._core.stats = self._stats
        self._set_state(State.CONNECTING)
        self._supervisor = asyncio.get_running_loop().create_task(self._supervise(), name=f"mqttc client {client_id}")
        try:
            await self.wait_for(State.CONNECTED, State.CLOSED)
        except BaseException:
            await self._shut(None)
            raise
        if self.closed:
            raise self._error if self._error is not None else ClosedError("the client was closed")

    async def close(
        self, *, drain: bool = True, reason_code: int = ReasonCode.NORMAL_DISCONNECTION, properties: Properties | None = None
    ) -> None:
        """Waits for unfinished messages (while there is a connection, `close_timeout_s` at most), then DISCONNECT. Idempotent.

        With reason code DISCONNECT_WITH_WILL_MESSAGE the broker sends the will. `properties`: of DISCONNECT, such as another
        session_expiry_interval. Calls that still wait get ``ClosedError``, except that a durable store keeps their messages.
        """
        if self._state in (State.CLOSED, State.NEW):
            self._set_state(State.CLOSED)
            self.inbox.end()
            self._store.close()
            return
        if self._state is State.CLOSING:
            await self.wait_for(State.CLOSED)
            return
        connected = self.connected
        self._set_state(State.CLOSING)
        try:
            if connected and drain:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self.options.close_timeout_s):
                        await self._drained()
            await self._leave(reason_code, properties)
        finally:
            await self._shut(None)

    async def _drained(self) -> None:
        while self._connection is not None and self.unfinished:
            await self._wait(self._idle_waiters)

    async def _leave(self, reason_code: int, properties: Properties | None) -> None:
        connection, core = self._connection, self._core
        if connection is None or core is None or core.phase is not Phase.ONLINE:
            return
        core.disconnect(reason_code, properties)
        connection.close()  # the client is the one who closes [MQTT-3.14.4-1]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.options.close_timeout_s):
                await asyncio.shield(connection.ended)

    async def _shut(self, error: BaseException | None) -> None:
        """The end of everything, whatever state it is in. What can wait in it is the end of tasks that are cancelled."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.abort()
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None
        current = asyncio.current_task()
        tasks = [task for task in (self._supervisor, *self._tasks) if task is not None and task is not current]
        self._supervisor = None
        closed = error if error is not None else ClosedError("the client is closed")
        self._responses.fail(closed)
        for route in self._router.routes:
            assert isinstance(route, Subscription)
            route.end(error)
        self.inbox.end(error)
        self._fail_waiters(closed)
        self._store_close()
        self._error = error
        for task in tasks:
            task.cancel()
        self._set_state(State.CLOSED)
        await asyncio.gather(*tasks, return_exceptions=True)

    def _store_close(self) -> None:
        try:
            self._store.commit()
        except MqttError as error:
            log.error("store_failed %s", error)
        self._store.close()

    def _fail_waiters(self, closed: BaseException) -> None:
        core = self._core
        if core is None:
            return
        if core.phase is not Phase.OFFLINE:
            core.lost()
        for entry in core.outgoing.entries():
            _tell(entry.waiter, closed)
        for request in core.requests.entries():
            _tell(request.waiter, closed)
        for waiter in (*self._idle_waiters, self._committed, self._reauthenticated):
            _tell(waiter, closed)

    # ------------------------------------------------------------------------------------------------ publishing

    async def publish(
        self,
        topic: str,
        payload: Payload = b"",
        qos: int = 0,
        retain: bool = False,
        *,
        properties: Properties | None = None,
        wait: bool = True,
    ) -> PublishResult:
        """QoS 1 and 2: returns when the broker has acknowledged, over as many connections as it takes. QoS 0: when it is written.

        `wait=False` returns as soon as the message is on its way or queued, with a durable store when it is in its file.
        Cancelled before it was sent, it is not sent.

        Raises ``PublishError`` (the broker refused it), ``NotSupportedError``, ``QueueFullError`` (there is no connection and
        no room; with a connection it waits for room, unless `wait=False`), ``ClosedError``, and ``codec.EncodeError``.
        """
        if type(payload) is not bytes:
            payload = payload.encode() if isinstance(payload, str) else bytes(payload)
        if properties is not None:
            _check_publish_properties(properties)
        core = self._core
        connection = self._connection
        if core is None or self._state is State.CLOSED or self._state is State.CLOSING:
            raise ClosedError(f"the client is {self._state.value}")
        if not qos and connection is not None and core.phase is Phase.ONLINE and not core.outgoing.queued:
            core.publish_now(topic, payload, retain, properties)
            if core.out_bytes >= FLUSH_BYTES or not connection.writable:
                await connection.drain()
            elif not connection.flush_due:
                connection.flush_soon()
            return SENT
        entry = Outgoing(topic, payload, qos, retain, properties)
        if connection is not None and wait and core.outgoing.full_for(entry):
            await self._room_for(entry)
            if self.closed:
                raise ClosedError("the client is closed")
        try:
            core.publish(entry)
        except MqttError:
            self._stats.queue_full += core.outgoing.full_for(entry)
            raise
        self._flush_soon()
        if not wait:
            if self._store.dirty:
                await self._stored()
            return SENT
        waiter = entry.waiter = asyncio.get_running_loop().create_future()
        try:
            await waiter
        finally:
            entry.waiter = None
            if (not waiter.done() or waiter.cancelled()) and core.outgoing.withdraw(entry):
                self._progress()
                self._flush_soon()
        if entry.error is not None:
            raise entry.error
        return entry.result

    async def _room_for(self, entry: Outgoing) -> None:
        core = self._require_core()
        while self._connection is not None and core.outgoing.queued and core.outgoing.full_for(entry):
            await self._wait(self._idle_waiters)

    async def _stored(self) -> None:
        """Until the changes of this turn are in the store's file."""
        if self._committed is None:
            self._committed = asyncio.get_running_loop().create_future()
        await asyncio.shield(self._committed)

    def _flush_soon(self) -> None:
        connection = self._connection
        if self._store.dirty and (connection is None or self._committed is not None or not connection.flush_due):
            asyncio.get_running_loop().call_soon(self._commit)
        if connection is not None:
            connection.flush_soon()

    def _commit(self) -> None:
        committed, self._committed = self._committed, None
        try:
            if self._connection is not None:
                self._connection.flush()
            self._store.commit()
        except MqttError as error:
            _tell(committed, error)
            if self._connection is not None:
                self._connection.fail(error)
        else:
            _tell(committed, None)

    # ------------------------------------------------------------------------------------------------ subscribing

    async def subscribe(
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
    ) -> Subscription:
        """One SUBSCRIBE. The options are of filters given as text; a ``codec.Subscription`` has its own.

        `callback`: a function that is called for each message, or a coroutine function, which has one at a time.
        `properties`: subscription_identifiers, user_properties. Returns when the broker has answered, over as many connections as it takes.

        Raises ``SubscribeError`` where every filter was refused (else see `Subscription.reason_codes`), ``NotSupportedError``,
        ``QueueFullError``, ``ClosedError``, ``codec.EncodeError``.
        """
        core = self._require_open()
        given = (filters,) if isinstance(filters, str | codec.Subscription) else tuple(filters)
        subscriptions = tuple(
            item
            if isinstance(item, codec.Subscription)
            else codec.Subscription(
                item, qos, no_local=no_local, retain_as_published=retain_as_published, retain_handling=retain_handling
            )
            for item in given
        )
        if not subscriptions:
            raise ValueError("subscribe: no filter")
        codec.Subscribe(1, subscriptions, properties=properties)  # what is wrong is told at once
        manual = self.options.manual_ack if manual_ack is None else manual_ack
        made = Subscription(self, subscriptions, properties, callback, manual)
        self._router.add(made)
        request = Request(subscriptions, properties=properties)
        try:
            await self._ask(core, request)
            made.reason_codes, made.properties = request.reason_codes, request.result_properties
            if all(code >= 0x80 for code in request.reason_codes):
                what = ", ".join(made.topic_filters)
                text = f"the broker refused to subscribe {what}: {reason_text(request.reason_codes[0], request.result_properties)}"
                raise SubscribeError(text, request.reason_codes, request.result_properties)
        except BaseException:
            self._drop_subscription(made)
            raise
        return made

    async def unsubscribe(self, filters: str | Iterable[str], *, properties: Properties | None = None) -> UnsubscribeResult:
        """One UNSUBSCRIBE. Subscriptions that have no other filter end. Raises as `subscribe` does."""
        core = self._require_open()
        topic_filters = (filters,) if isinstance(filters, str) else tuple(filters)
        if not topic_filters:
            raise ValueError("unsubscribe: no filter")
        request = Request(topic_filters=topic_filters, properties=properties)
        await self._ask(core, request)
        codes = request.reason_codes
        if codes and all(code >= 0x80 for code in codes):
            text = f"the broker refused to unsubscribe: {reason_text(codes[0], request.result_properties)}"
            raise SubscribeError(text, codes, request.result_properties)
        for route in self._router.routes:
            if not any(topic_filter in core.filters for topic_filter in route.topic_filters):
                assert isinstance(route, Subscription)
                if any(topic_filter in topic_filters for topic_filter in route.topic_filters):
                    self._drop_subscription(route)
        return UnsubscribeResult(codes, request.result_properties)

    async def end_subscription(self, subscription: Subscription) -> UnsubscribeResult:
        """For `Subscription.unsubscribe`."""
        self._require_open()
        others = {name for route in self._router.routes if route is not subscription for name in route.topic_filters}
        topic_filters = [name for name in subscription.topic_filters if name not in others]
        if not topic_filters or subscription not in self._router.routes:
            self._drop_subscription(subscription)
            return UnsubscribeResult()
        try:
            return await self.unsubscribe(topic_filters)
        finally:
            self._drop_subscription(subscription)

    def _drop_subscription(self, subscription: Subscription) -> None:
        self._router.remove(subscription)
        subscription.end()

    async def _ask(self, core: Core, request: Request) -> None:
        """Sends a request and waits for its answer."""
        waiter = request.waiter = asyncio.get_running_loop().create_future()
        core.request(request)
        self._flush_soon()
        try:
            await waiter
        finally:
            request.waiter = None
            if not request.answered and not core.requests.withdraw(request):
                request.abandoned = True
        if request.error is not None:
            raise request.error

    # ------------------------------------------------------------------------------------------------ receiving

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Message:
        message = self.inbox.take()
        return message if message is not None else await self.inbox.get()

    async def get(self) -> Message:
        """The next message that no subscription has claimed. Raises ``StopAsyncIteration`` after `close`, and why the client ended."""
        return await self.inbox.get()

    def take(self, most: int) -> list[Message]:
        """What can be had without waiting."""
        found: list[Message] = []
        while len(found) < most and (message := self.inbox.take()) is not None:
            found.append(message)
        return found

    # ------------------------------------------------------------------------------------------------ request and response

    async def request(
        self,
        topic: str,
        payload: Payload = b"",
        qos: int = 1,
        *,
        properties: Properties | None = None,
        timeout_s: float = REQUEST_TIMEOUT_S,
    ) -> Message:
        """Publishes a request and returns its response (section 4.10): response topic and correlation data are seen to. 5.0 only.

        Raises ``TimeoutError``, ``NotSupportedError``, and what `subscribe` and `publish` raise.
        """
        core = self._require_open()
        async with asyncio.timeout(timeout_s):
            async with self._response_lock:
                if self._response_topic is None:
                    base = core.connack.properties.response_information or f"mqttc/response/{core.client_id}"
                    response_topic = f"{base}/{secrets.token_hex(8)}"
                    if core.version == 5:
                        await self.subscribe(response_topic, qos, callback=self._responses.answered)
                    self._response_topic = response_topic
            if core.version != 5:
                raise NotSupportedError("request: response topics are of MQTT 5.0")
            self._request_count += 1
            correlation = self._request_count.to_bytes(8, "big")
            told = {} if properties is None else properties.as_dict()
            told |= {"response_topic": self._response_topic, "correlation_data": correlation}
            waiter = self._responses.ask(correlation)
            try:
                await self.publish(topic, payload, qos, properties=Properties(**told))
                return await waiter
            finally:
                self._responses.forget(correlation)

    async def respond(
        self, message: Message, payload: Payload = b"", qos: int | None = None, *, properties: Properties | None = None
    ) -> PublishResult:
        """Answers a request, with its QoS if none is given. Raises ``ValueError`` for a message that asks for no response."""
        topic = message.response_topic
        if topic is None:
            raise ValueError("the message has no response topic")
        told = {} if properties is None else properties.as_dict()
        if message.correlation_data is not None:
            told["correlation_data"] = message.correlation_data
        return await self.publish(topic, payload, message.qos if qos is None else qos, properties=Properties(**told))

    async def reauthenticate(self) -> None:
        """Goes through the authentication method again (section 4.12.1). Returns when the broker is content.

        Raises ``NotSupportedError``, ``ConnectionLostError`` where it is not.
        """
        core = self._require_open()
        authentication = self.options.authentication
        if authentication is None:
            raise NotSupportedError("there is no authentication method to authenticate with")
        if self._reauthenticated is not None:
            raise MqttError("it is under way already")
        self._reauthenticated = asyncio.get_running_loop().create_future()
        try:
            core.authenticate(await _respond(authentication.respond, None), again=True)
            self._flush_soon()
            await self._reauthenticated
        finally:
            self._reauthenticated = None

    # ------------------------------------------------------------------------------------------------ supervisor

    async def _supervise(self) -> None:
        """Makes connections, one after the other, until `close` or a reason not to come again."""
        options = self.options
        attempt = 0
        first = True
        while True:
            error: BaseException | None
            try:
                connection = await self._open()
            except (MqttError, OSError, ValueError) as failure:
                error = failure
                self._stats.connect_failures += 1
                permanent = not isinstance(failure, MqttError | OSError) or getattr(failure, "reason_code", None) in PERMANENT
                if permanent or (first and not options.retry_first):
                    break
            else:
                first, attempt = False, 0
                error = await self._live(connection)
                if isinstance(error, DisconnectedError) and error.reason_code in PERMANENT:
                    break
                if error is not None and not isinstance(error, ConnectionLostError):
                    break
            reconnect = options.reconnect
            if reconnect is None or (reconnect.attempts is not None and attempt >= reconnect.attempts):
                break
            delay = delay_s(reconnect, attempt, random.random())
            attempt += 1
            self._error = error
            log.info("reconnecting client_id=%r delay_s=%.3f: %s", self.client_id, delay, error)
            self._set_state(State.CONNECTING if first else State.RECONNECTING)
            await asyncio.sleep(delay)
        await self._shut(error if error is not None else ConnectionLostError(f"{self._target.shown}: the connection was given up"))

    async def _live(self, connection: Connection) -> BaseException | None:
        """From CONNACK to the end of the connection, whose reason it returns."""
        core = self._require_core()
        self._error = None
        self._connection = connection
        if self._full:
            connection.pause_reading()
        self._set_state(State.CONNECTED)
        self._progress()
        connection.flush_soon()
        try:
            return await connection.ended
        finally:
            connection.abort()
            self._connection = None
            core.lost()
            _tell(self._reauthenticated, ConnectionLostError("the connection was lost"))
            self._progress()

    async def _open(self) -> Connection:
        """A connection that the broker has accepted, in the first version that it takes. Raises ``MqttError``, ``OSError``."""
        core = self._require_core()
        while True:
            version = self._versions[0]
            try:
                return await self._attempt(core, version)
            except ConnectError as error:
                unsupported = error.reason_code == ReasonCode.UNSUPPORTED_PROTOCOL_VERSION
                silent = not isinstance(error, RefusedError) and core.stats.connections == 0 and self._spoke
                if len(self._versions) == 1 or not (unsupported or silent):
                    raise
                log.info("fallback client_id=%r from=%d to=%d: %s", self.client_id, version, self._versions[1], error)
                self._versions = self._versions[1:]

    async def _attempt(self, core: Core, version: int) -> Connection:
        connection = Connection(core, self._store, self._target.shown, self._dispatch)
        authentication = self.options.authentication
        self._spoke = False
        self._opening = connection
        try:
            async with asyncio.timeout(self.options.connect_timeout_s):
                data = None if authentication is None else await _respond(authentication.respond, None)
                connection.opened(await open_link(self._target, self.options, connection))
                self._spoke = True
                core.begin(version, data)
                connection.flush()
                await connection.answered
                return connection
        except BaseException as error:
            connection.abort()
            core.lost()
            if isinstance(error, TimeoutError) and not error.args:
                text = f"{self._target.shown}: no answer within {self.options.connect_timeout_s:g} s"
                raise TimeoutError(text) from error
            if isinstance(error, OSError) and not isinstance(error, MqttError | TimeoutError):
                raise ConnectError(f"{self._target.shown}: {os_text(error)}") from error
            raise

    # ------------------------------------------------------------------------------------------------ events

    def _dispatch(self, events: Events) -> None:
        progress = False
        for event in events:
            kind = type(event)
            if kind is Message:
                self._route(event)  # type: ignore[arg-type]
            elif kind is Outgoing:
                progress = True
                _tell(event.waiter, None)  # type: ignore[union-attr]
            elif kind is Request:
                self._requested(event)  # type: ignore[arg-type]
            elif isinstance(event, Connected):
                for entry in event.finished:
                    _tell(entry.waiter, None)
            elif isinstance(event, Challenge):
                self.spawn(self._challenged(event.data))
            elif isinstance(event, Authenticated):
                _tell(self._reauthenticated, None)
        if progress and self._idle_waiters:
            self._progress()

    def _route(self, message: Message) -> None:
        sinks = self._router.sinks(message)
        if len(sinks) > 1 and message.receipt is not None:
            message.receipt.holders = len(sinks)
        for sink in sinks:
            if self._overflow and sink.full and message.receipt is None:
                self._stats.dropped += 1
            else:
                sink.put(message)

    def _requested(self, request: Request) -> None:
        if request.own:
            for topic_filter, code in zip(request.subscription_filters, request.reason_codes, strict=False):
                if code >= 0x80:
                    self._lost_filter(topic_filter, code, request)
        elif request.abandoned:
            self._unwanted(request)
        _tell(request.waiter, None)

    def _lost_filter(self, topic_filter: str, code: ReasonCode, request: Request) -> None:
        """The broker has lost the session and does not give the subscription again."""
        text = f"the broker refused to subscribe {topic_filter} again: {reason_text(code, request.result_properties)}"
        log.warning("resubscribe_refused client_id=%r filter=%r reason=0x%02x", self.client_id, topic_filter, code)
        error = SubscribeError(text, (code,), request.result_properties)
        for route in self._router.routes:
            if topic_filter in route.topic_filters:
                assert isinstance(route, Subscription)
                route.reason_codes = tuple(
                    code if name == topic_filter else old for name, old in zip(route.topic_filters, route.reason_codes, strict=True)
                )
                if not any(old < 0x80 for old in route.reason_codes):
                    route.end(error)

    def _unwanted(self, request: Request) -> None:
        """A SUBSCRIBE that was cancelled when it had been sent: what it has brought is given back."""
        core = self._require_core()
        wanted = {name for route in self._router.routes for name in route.topic_filters}
        gone = tuple(name for name in request.subscription_filters if name not in wanted and name in core.filters)
        if gone and core.phase is Phase.ONLINE:
            with contextlib.suppress(MqttError):
                core.request(Request(topic_filters=gone))
                self._flush_soon()

    async def _challenged(self, data: bytes | None) -> None:
        core, connection = self._require_core(), self._connection or self._opening
        authentication = self.options.authentication
        assert authentication is not None
        try:
            answer = await _respond(authentication.respond, data)
        except Exception as error:
            log.exception("authentication_failed client_id=%r", self.client_id)
            if connection is not None:
                connection.fail(ConnectError(f"{self._target.shown}: the answer to the broker's challenge failed: {error}"))
            return
        if connection is None:
            return
        if connection.link is not None and core.phase in (Phase.CONNECTING, Phase.ONLINE):
            core.authenticate(answer)
            connection.flush()

    # ------------------------------------------------------------------------------------------------ acknowledging, back-pressure

    def hand_over(self, message: Message) -> None:
        """For streams: the application has the message."""
        receipt = message.receipt
        if receipt is not None:
            core = self._require_core()
            core.acknowledge(receipt)
            if core.out or self._store.dirty:
                self._flush_soon()

    def _acknowledge(self, receipt: Receipt, reason_code: int) -> None:
        if threading.get_ident() != self._thread:
            loop = self._supervisor.get_loop() if self._supervisor is not None else None
            if loop is not None:
                loop.call_soon_threadsafe(self._acknowledge, receipt, reason_code)
            return
        core = self._require_core()
        core.acknowledge(receipt, reason_code)
        self._flush_soon()

    def make_stream(self, manual: bool) -> Stream:
        options = self.options
        handed_over = None if manual else self.hand_over
        return Stream(options.max_buffered_messages, options.max_buffered_bytes, self._stream_full, self._stream_room, handed_over)

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """A task that ends with the client at the latest."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def claim(self, subscription: Subscription, stream: Stream) -> None:
        """For subscriptions: its messages, those in the inbox too, go to this stream."""
        others = [route for route in self._router.routes if route is not subscription and route.sink is self.inbox]
        self._router.changed()

        def only_its_own(message: Message) -> bool:
            return matches(subscription, message.topic) and not any(matches(route, message.topic) for route in others)

        for message in self.inbox.remove(only_its_own):
            stream.put(message)

    def _stream_full(self, stream: Stream) -> None:
        self._full.add(stream)
        if not self._overflow:
            self._stats.pauses += 1
            if self._connection is not None:
                self._connection.pause_reading()
            self._watch_stall()

    def _stream_room(self, stream: Stream) -> None:
        self._full.discard(stream)
        self._overflow = False
        if not self._full and self._connection is not None:
            self._connection.resume_reading()

    def _watch_stall(self) -> None:
        if self._stall_timer is None:
            self._stall_mark = self._taken_now()
            self._stall_timer = asyncio.get_running_loop().call_later(self.options.stall_timeout_s, self._stalled)

    def _taken_now(self) -> int:
        return sum(stream.taken for stream in self._full)

    def _stalled(self) -> None:
        """Nothing was read for a while. If an answer of the broker's is awaited, it has to be read: past messages that may be dropped."""
        self._stall_timer = None
        core = self._core
        if not self._full or self._overflow or core is None or self._state is State.CLOSED:
            return
        awaited = core.outgoing.inflight or core.outgoing.released or len(core.requests)
        if self._taken_now() == self._stall_mark and awaited and self._connection is not None:
            log.warning("stalled client_id=%r: a stream is not read; its QoS 0 messages are dropped", self.client_id)
            self._overflow = True
            self._connection.resume_reading()
        self._watch_stall()

    # ------------------------------------------------------------------------------------------------ inside

    def _require_core(self) -> Core:
        if self._core is None:
            raise ClosedError("the client has not been connected")
        return self._core

    def _require_open(self) -> Core:
        if self._state in (State.NEW, State.CLOSING, State.CLOSED):
            raise ClosedError(f"the client is {self._state.value}")
        return self._require_core()

    def _set_state(self, state: State) -> None:
        if state is self._state:
            return
        self._state = state
        waiters, self._state_waiters = self._state_waiters, []
        for waiter in waiters:
            _tell(waiter, None)
        if self.options.on_state is not None:
            try:
                self.options.on_state(state, self._error)
            except Exception:
                log.exception("on_state_failed")

    def _progress(self) -> None:
        waiters, self._idle_waiters = self._idle_waiters, []
        for waiter in waiters:
            _tell(waiter, None)

    async def _wait(self, waiters: list[asyncio.Future[None]]) -> None:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiters.append(waiter)
        try:
            await waiter
        finally:
            if waiter in waiters:
                waiters.remove(waiter)


def _tell(waiter: asyncio.Future[None] | None, error: BaseException | None) -> None:
    if waiter is not None and not waiter.done():
        if error is None:
            waiter.set_result(None)
        else:
            waiter.set_exception(error)


def _check_publish_properties(properties: Properties) -> None:
    if properties.subscription_identifiers or properties.topic_alias is not None:
        raise ValueError("properties: a client's message has no subscription identifiers [MQTT-3.3.4-6], and its aliases are seen to")


async def _respond(respond: Callable[[bytes | None], Any], data: bytes | None) -> bytes | None:
    answer: bytes | Awaitable[bytes | None] | None = respond(data)
    if inspect.isawaitable(answer):
        return await answer
    return answer
