"""The asyncio client: one session with a broker, over as many connections as it takes.

A client belongs to the loop in which it was connected, and to its thread. One task of its own, the supervisor, makes connections and waits
for their ends; nothing is started per message. Every call may be cancelled: what was not sent is taken back, what was is left to end.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Iterable
from types import TracebackType
from typing import Final, Self, Unpack

from mqttc import codec
from mqttc.client.connection import FLUSH_BYTES
from mqttc.client.core import ONLINE
from mqttc.client.engine import Engine
from mqttc.client.message import SENT, Message, PublishResult, UnsubscribeResult
from mqttc.client.options import ClientOptions, Options, ServerLimits
from mqttc.client.outgoing import Outgoing
from mqttc.client.requests import Request
from mqttc.client.state import State, Stats
from mqttc.client.subscription import Callback, Subscription
from mqttc.client.url import parse_url
from mqttc.codec import Properties, ReasonCode
from mqttc.errors import ClosedError, NotSupportedError, SubscribeError, reason_text

REQUEST_TIMEOUT_S: Final = 30.0
"""`Client.request`'s own."""

Filters = str | codec.Subscription | Iterable[str | codec.Subscription]
Payload = bytes | bytearray | memoryview | str


class Client:
    """`async with Client("mqtt://user:password@host:1883", ...) as client`. Options and their defaults: `Options`."""

    def __init__(self, url: str = "mqtt://localhost", **options: Unpack[ClientOptions]) -> None:
        """Raises ``ValueError`` for a URL or option that cannot be used."""
        target = parse_url(url)
        options.setdefault("username", target.username)
        options.setdefault("password", target.password)
        self._engine = Engine(target, Options(**options))
        self._inbox = self._engine.inbox
        self._response_lock = asyncio.Lock()
        self._response_topic: str | None = None
        self._request_count = 0

    def __repr__(self) -> str:
        return f"<Client {self.client_id!r} of {self._engine.target.shown}: {self.state.value}>"

    # ------------------------------------------------------------------------------------------------ what it is

    @property
    def options(self) -> Options:
        return self._engine.options

    @property
    def state(self) -> State:
        return self._engine.life.state

    @property
    def error(self) -> BaseException | None:
        """Why the last connection ended or could not be made; None while it is connected and after `close`."""
        return self._engine.life.error

    @property
    def connected(self) -> bool:
        return self.state is State.CONNECTED

    @property
    def closed(self) -> bool:
        return self.state is State.CLOSED

    @property
    def server(self) -> str:
        """The URL, without its password, of the broker that it is connected to or tries: not the first one after a redirection."""
        supervisor = self._engine.supervisor
        return self._engine.target.shown if supervisor is None else supervisor.target.shown

    @property
    def client_id(self) -> str:
        """The broker's choice, where it has made one."""
        core = self._engine.core
        return self.options.client_id if core is None else core.client_id

    @property
    def version(self) -> int:
        """Of the last connection: 3, 4 or 5."""
        core = self._engine.core
        return self.options.version if core is None else core.version

    @property
    def connack(self) -> codec.Connack:
        """The broker's last answer: session_present, and all properties."""
        return self._engine.require_core().connack

    @property
    def limits(self) -> ServerLimits:
        """What the broker has and allows."""
        return self._engine.require_core().limits

    @property
    def keep_alive(self) -> int:
        """Seconds that are in force."""
        return self._engine.require_core().keep_alive

    @property
    def stats(self) -> Stats:
        return self._engine.stats

    @property
    def queued(self) -> int:
        """Messages that wait for a connection or for the window."""
        core = self._engine.core
        return 0 if core is None else core.outgoing.queued

    @property
    def unfinished(self) -> int:
        """Messages that are queued, or sent with QoS 1 or 2 and not acknowledged."""
        core = self._engine.core
        return 0 if core is None else core.outgoing.unfinished

    async def wait_for(self, *states: State) -> State:
        """Until it is in one of them. A state that is passed through within one turn of the loop may be missed; `on_state` has them all."""
        return await self._engine.life.wait_for(*states)

    def states(self) -> AsyncIterator[State]:
        """The state now, and each further one, until CLOSED."""
        return self._engine.life.states()

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
        if self.state is not State.NEW:
            raise ClosedError(f"the client is {self.state.value} already")
        await self._engine.start()

    async def close(
        self, *, drain: bool = True, reason_code: int = ReasonCode.NORMAL_DISCONNECTION, properties: Properties | None = None
    ) -> None:
        """Waits for unfinished messages (while there is a connection, `close_timeout_s` at most), then DISCONNECT. Idempotent.

        With reason code DISCONNECT_WITH_WILL_MESSAGE the broker sends the will. `properties`: of DISCONNECT, such as another
        session_expiry_interval. Calls that still wait get ``ClosedError``, except that a durable store keeps their messages.
        """
        engine = self._engine
        if self.state in (State.CLOSED, State.NEW):
            engine.life.set(State.CLOSED, self.error)
            engine.inbox.end()
            engine.store.close()
            return
        if self.state is State.CLOSING:
            await self.wait_for(State.CLOSED)
            return
        connected = self.connected
        engine.life.set(State.CLOSING, None)
        try:
            if connected and drain:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self.options.close_timeout_s):
                        await engine.drained()
            await engine.leave(reason_code, properties)
        finally:
            await engine.shut(None)

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
        While there is a connection, a full queue makes both wait. Cancelled before it was sent, it is not sent.

        With a message_expiry_interval it waits here no longer than that, and is sent with what is left of it.
        Raises ``PublishError``, ``ExpiredError``, ``NotSupportedError``, ``QueueFullError``, ``ClosedError``, ``codec.EncodeError``.
        """
        if type(payload) is not bytes:
            payload = payload.encode() if isinstance(payload, str) else bytes(payload)
        if properties is not None:
            _check_publish_properties(properties)
        engine = self._engine
        while True:
            core, connection = engine.core, engine.connection
            if core is None or engine.life.over:
                raise ClosedError(f"the client is {self.state.value}")
            if qos or connection is None or core.phase is not ONLINE or core.outgoing.queued:
                break
            if not connection.writable:
                await connection.drain()
                continue
            core.publish_now(topic, payload, retain, properties)
            if core.out_bytes >= FLUSH_BYTES:
                await connection.drain()
            elif not connection.flush_due:
                connection.flush_soon()
            return SENT
        entry = Outgoing(topic, payload, qos, retain, properties)
        expires = properties is not None and core.expires(entry, properties)
        while not core.outgoing.idle_window and core.outgoing.full_for(entry) and engine.connection is not None:
            await engine.idle.wait()
        core.publish(entry)
        if expires and not entry.stage:
            engine.watch_expiry()
        connection = engine.connection
        if connection is None or not connection.flush_due:
            engine.flush_soon()
        if not wait:
            if engine.store.dirty:
                await engine.stored()
            return SENT
        return await engine.result(entry)

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
        core = self._engine.require_open()
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
        made = Subscription(self._engine, subscriptions, properties, callback, manual)
        self._engine.router.add(made)
        request = Request(subscriptions, properties=properties)
        try:
            await self._engine.ask(core, request)
            made.reason_codes, made.properties = request.reason_codes, request.result_properties
            if all(code >= 0x80 for code in request.reason_codes):
                what = ", ".join(made.topic_filters)
                text = f"the broker refused to subscribe {what}: {reason_text(request.reason_codes[0], request.result_properties)}"
                raise SubscribeError(text, request.reason_codes, request.result_properties)
        except BaseException:
            self._engine.drop(made)
            raise
        return made

    async def unsubscribe(self, filters: str | Iterable[str], *, properties: Properties | None = None) -> UnsubscribeResult:
        """One UNSUBSCRIBE. Subscriptions that have no other filter end. Raises as `subscribe` does."""
        topic_filters = (filters,) if isinstance(filters, str) else tuple(filters)
        if not topic_filters:
            raise ValueError("unsubscribe: no filter")
        return await self._engine.unsubscribe(topic_filters, properties)

    # ------------------------------------------------------------------------------------------------ receiving

    def __aiter__(self) -> AsyncIterator[Message]:
        return self._inbox

    async def __anext__(self) -> Message:
        return await self._inbox.__anext__()

    async def get(self) -> Message:
        """The next message that no subscription has claimed. Raises ``StopAsyncIteration`` after `close`, and why the client ended."""
        return await self._inbox.get()

    def take(self, most: int) -> list[Message]:
        """What can be had without waiting."""
        return self._inbox.take_many(most)

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
        core = self._engine.require_open()
        async with asyncio.timeout(timeout_s):
            async with self._response_lock:
                if self._response_topic is None:
                    base = core.connack.properties.response_information or f"mqttc/response/{core.client_id}"
                    response_topic = f"{base}/{secrets.token_hex(8)}"
                    if core.version == 5:
                        await self.subscribe(response_topic, 2, callback=self._engine.responses.answered)
                    self._response_topic = response_topic
            if core.version != 5:
                raise NotSupportedError("request: response topics are of MQTT 5.0")
            self._request_count += 1
            correlation = self._request_count.to_bytes(8, "big")
            told = {} if properties is None else properties.as_dict()
            told |= {"response_topic": self._response_topic, "correlation_data": correlation}
            waiter = self._engine.responses.ask(correlation)
            try:
                await self.publish(topic, payload, qos, properties=Properties(**told))
                return await waiter
            finally:
                self._engine.responses.forget(correlation)

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
        await self._engine.reauthenticate()


def _check_publish_properties(properties: Properties) -> None:
    if properties.subscription_identifiers or properties.topic_alias is not None:
        raise ValueError("properties: a client's message has no subscription identifiers [MQTT-3.3.4-6], and its aliases are seen to")
