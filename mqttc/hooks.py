"""Hooks: functions of the program around the broker that have a say about clients, subscriptions and messages.

They are declared on a ``Hooks`` object, which is given to ``mqttc.Broker``; see docs/hooks.md. Plain functions run on a bounded pool of
threads, coroutine functions on the program's loop; no worker and no other client waits for them.
"""

from __future__ import annotations

import asyncio
import fnmatch
import inspect
import re
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, Self, TypeVar, overload

from mqttc.auth import NOT_AUTHORIZED, Request
from mqttc.auth.grant import Grant
from mqttc.codec import Properties, topic_matches, validate_filter

Function = Callable[..., Any]
F = TypeVar("F", bound=Function)
Kind = Literal["authenticate", "authorize", "on_connect", "on_disconnect", "on_subscribe", "on_publish"]
OnFailure = Literal["allow", "deny"]

KINDS: Final[tuple[Kind, ...]] = ("authenticate", "authorize", "on_connect", "on_disconnect", "on_subscribe", "on_publish")
OF_CONNECT: Final[tuple[Kind, ...]] = ("authenticate", "authorize", "on_connect")
MAXIMUM_DEADLINE: Final = 3600.0
"""Seconds."""


@dataclass(frozen=True, slots=True)
class HookClient:
    """Whom a hook is asked about. Text comes from the client: escape it before it is shown."""

    client_id: str
    username: str | None
    """Whom authentication has found it to be, else of CONNECT."""
    peer: str
    """``host:port`` or ``unix``; empty for an in-process client."""
    listener: str
    """Name or URL of the listener; empty for an in-process client."""
    transport: str
    """``tcp``, ``tls``, ``ws``, ``wss``, ``quic``, ``unix``, or ``inside`` for an in-process client."""
    protocol: int
    """Protocol level: 3 is MQTT 3.1, 4 is 3.1.1, 5 is 5.0."""


@dataclass(frozen=True, slots=True)
class Accept:
    """Of ``authenticate``: the client comes in, and nobody else is asked who it is."""

    user: str | None = None
    """Whom it was found to be; None: the name in CONNECT."""
    grant: Grant | None = None
    """What it may do; None: what the configuration says."""
    lasts: float | None = None
    """Seconds after which its connection ends (5.0: 0xA0); None: it does not."""


@dataclass(frozen=True, slots=True)
class Refuse:
    """A reason code of MQTT 5.0, 0x80 and above. 3.x clients get what comes nearest: see docs/hooks.md."""

    reason_code: int = NOT_AUTHORIZED

    def __post_init__(self) -> None:
        if not 0x80 <= self.reason_code <= 0xFF:
            raise ValueError("a refusal's reason code is within 0x80 .. 0xFF")


@dataclass(frozen=True, slots=True)
class Drop:
    """Of ``on_publish``: the message goes nowhere, and its publisher is told that all is well."""


@dataclass(frozen=True, slots=True)
class Publication:
    """A message on its way into the broker. ``replace`` gives a changed one, for the hook to return."""

    client: HookClient
    topic: str
    """A topic alias is resolved already."""
    payload: bytes = field(repr=False)
    qos: int
    retain: bool
    properties: Properties
    """What the message carries to its receivers (section 3.3.2.3), and its expiry interval."""

    def replace(self, **changes: Any) -> Publication:
        """With another ``topic``, ``payload``, ``qos``, ``retain`` or ``properties``; its publisher is answered by what it has sent."""
        if "client" in changes:
            raise TypeError("a message's client cannot be changed")
        return replace(self, **changes)


@dataclass(frozen=True, slots=True)
class SubscriptionRequest:
    """One filter of a SUBSCRIBE. ``replace`` gives a changed one, for the hook to return."""

    client: HookClient
    topic_filter: str
    """With ``$share/group/`` where there."""
    qos: int
    no_local: bool = False
    retain_as_published: bool = False
    retain_handling: int = 0

    def replace(self, **changes: Any) -> SubscriptionRequest:
        """With another filter or other options (section 3.8.3.1). The client unsubscribes from what was put in force."""
        if "client" in changes:
            raise TypeError("a subscription's client cannot be changed")
        return replace(self, **changes)


@dataclass(slots=True)
class HookStats:
    """Counters of one hook, over all brokers that it was given to."""

    kind: Kind
    name: str
    filters: tuple[str, ...]
    asked: int = 0
    refused: int = 0
    """Verdicts against: ``Refuse``, ``Drop``, False."""
    changed: int = 0
    late: int = 0
    """No answer by the deadline."""
    failed: int = 0
    """An exception, or an answer that is none."""
    overflowed: int = 0
    """Not called, because ``max_waiting`` calls were not over yet."""


class Hook:
    """A function and how it is to be called."""

    def __init__(
        self, kind: Kind, function: Function, deadline: float, on_failure: OnFailure, filters: tuple[str, ...], clients: str
    ) -> None:
        if not callable(function):
            raise TypeError(f"{kind} takes a function")
        if not 0 < deadline <= MAXIMUM_DEADLINE:
            raise ValueError(f"a hook's deadline is more than 0 and at most {MAXIMUM_DEADLINE:g} seconds")
        if on_failure not in ("allow", "deny"):
            raise ValueError('on_failure is "allow" or "deny"')
        self.kind = kind
        self.function = function
        called = getattr(type(function), "__call__", None)  # noqa: B004
        self.is_coroutine = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(called)
        self.deadline = deadline
        self.allows = on_failure == "allow"
        self.filters = filters
        self._clients = re.compile(fnmatch.translate(clients)) if clients != "*" else None
        self._lock = threading.Lock()
        self.stats = HookStats(kind, getattr(function, "__qualname__", type(function).__qualname__), filters)

    def concerns(self, client_id: str) -> bool:
        return self._clients is None or self._clients.fullmatch(client_id) is not None

    def concerns_topic(self, topic: str) -> bool:
        return any(topic_matches(one, topic) for one in self.filters)

    def concerns_filter(self, topic_filter: str) -> bool:
        return any(filters_overlap(one, topic_filter) for one in self.filters)

    def count(self, what: str) -> None:
        with self._lock:
            setattr(self.stats, what, getattr(self.stats, what) + 1)


class Hooks:
    """What the program wants to have a say about.

    ``loop``: for coroutine functions; None: the one that runs when the broker is started. ``deadline``: seconds for an answer, unless a
    hook says otherwise. ``threads``: how many plain functions run at a time. ``max_waiting``: calls of one broker that are not over, all
    hooks together; what is above is treated as a failure at once.

    ``authenticate``, ``authorize``, ``on_connect`` and ``on_disconnect`` take ``clients``, a shell pattern: a client whose id it does not
    match is no concern of theirs. ``on_connect``, ``on_subscribe`` and ``on_publish`` take ``on_failure``, what becomes of it when they
    fail or are late: ``"deny"`` or ``"allow"``. Hooks of one kind are asked in the order in which they were declared.
    """

    def __init__(
        self, *, loop: asyncio.AbstractEventLoop | None = None, deadline: float = 2.0, threads: int = 4, max_waiting: int = 1000
    ) -> None:
        if not 1 <= threads <= 256:
            raise ValueError("threads is within 1 .. 256")
        if not 1 <= max_waiting <= 1_000_000:
            raise ValueError("max_waiting is within 1 .. 1000000")
        self.loop = loop
        self.threads = threads
        self.max_waiting = max_waiting
        self._deadline = deadline
        self._lock = threading.RLock()
        self._hooks: tuple[Hook, ...] = ()
        self._brokers: list[Callable[[Hook | None], None]] = []

    # ---- declaring

    @overload
    def authenticate(self, function: F, /) -> F: ...
    @overload
    def authenticate(self, /, *, clients: str = ..., deadline: float | None = ...) -> Callable[[F], F]: ...
    def authenticate(self, function: F | None = None, /, *, clients: str = "*", deadline: float | None = None) -> Any:
        """``(request: mqttc.auth.Request) -> Accept | Refuse | None``: who is it? None: the next one, and at last the configuration, is
        asked."""
        return self._declare("authenticate", function, deadline, clients=clients)

    @overload
    def authorize(self, function: F, /) -> F: ...
    @overload
    def authorize(self, /, *, clients: str = ..., deadline: float | None = ...) -> Callable[[F], F]: ...
    def authorize(self, function: F | None = None, /, *, clients: str = "*", deadline: float | None = None) -> Any:
        """``(client: HookClient, action: "connect" | "subscribe", topic: str) -> bool | Refuse | Grant | None``: may it? None: the next
        one, and at last the configuration. The topic is empty, or the filter without ``$share/group/``. A grant is in
        force from then on, in place of the one before; by its rules the broker decides about messages, and nobody is asked about one.
        Before its ``ttl`` ends it is asked for ``connect`` again: another grant goes on, without one the client is disconnected."""
        return self._declare("authorize", function, deadline, clients=clients)

    @overload
    def on_connect(self, function: F, /) -> F: ...
    @overload
    def on_connect(self, /, *, clients: str = ..., deadline: float | None = ..., on_failure: OnFailure = ...) -> Callable[[F], F]: ...
    def on_connect(
        self, function: F | None = None, /, *, clients: str = "*", deadline: float | None = None, on_failure: OnFailure = "deny"
    ) -> Any:
        """``(client: HookClient) -> Refuse | None``: a client that was admitted, before it is told."""
        return self._declare("on_connect", function, deadline, on_failure, clients=clients)

    @overload
    def on_disconnect(self, function: F, /) -> F: ...
    @overload
    def on_disconnect(self, /, *, clients: str = ..., deadline: float | None = ...) -> Callable[[F], F]: ...
    def on_disconnect(self, function: F | None = None, /, *, clients: str = "*", deadline: float | None = None) -> Any:
        """``(event: mqttc.embed.Disconnected) -> None``: its connection has ended."""
        return self._declare("on_disconnect", function, deadline, clients=clients)

    def on_subscribe(self, *topic_filters: str, deadline: float | None = None, on_failure: OnFailure = "deny") -> Callable[[F], F]:
        """``(request: SubscriptionRequest) -> SubscriptionRequest | Refuse | bool | None``, about filters that can match a topic that one
        of ``topic_filters`` matches too."""
        filters = _checked("on_subscribe", topic_filters)
        declared: Callable[[F], F] = self._declare("on_subscribe", None, deadline, on_failure, filters)
        return declared

    def on_publish(self, *topic_filters: str, deadline: float | None = None, on_failure: OnFailure = "deny") -> Callable[[F], F]:
        """``(message: Publication) -> Publication | Refuse | Drop | bool | None``, about messages whose topic one of ``topic_filters``
        matches. Wills are not asked about."""
        filters = _checked("on_publish", topic_filters)
        declared: Callable[[F], F] = self._declare("on_publish", None, deadline, on_failure, filters)
        return declared

    def add(self, methods: object) -> Self:
        """Declare the methods of an object that are named like hooks. ``publish_filters`` and ``subscribe_filters`` of it say what
        ``on_publish`` and ``on_subscribe`` are about, ``on_failure`` and ``deadline`` hold for all of them."""
        deadline: float | None = getattr(methods, "deadline", None)
        on_failure: OnFailure = getattr(methods, "on_failure", "deny")
        found: list[Hook] = []
        for kind in KINDS:
            function = getattr(methods, kind, None)
            if function is None:
                continue
            filters: tuple[str, ...] = ()
            if kind in ("on_publish", "on_subscribe"):
                name = kind.removeprefix("on_") + "_filters"
                if not hasattr(methods, name):
                    raise TypeError(f"{kind} needs {name}")
                filters = _checked(kind, getattr(methods, name))
            found.append(Hook(kind, function, self._seconds(deadline), on_failure, filters, "*"))
        if not found:
            raise TypeError(f"{methods!r} has no method that is named like a hook")
        for hook in found:
            self._add(hook)
        return self

    def _seconds(self, deadline: float | None) -> float:
        return self._deadline if deadline is None else deadline

    def _declare(
        self,
        kind: Kind,
        function: F | None,
        deadline: float | None,
        on_failure: OnFailure = "deny",
        filters: tuple[str, ...] = (),
        clients: str = "*",
    ) -> Any:
        def declared(function: F) -> F:
            self._add(Hook(kind, function, self._seconds(deadline), on_failure, filters, clients))
            return function

        return declared if function is None else declared(function)

    def _add(self, hook: Hook) -> None:
        with self._lock:
            before = self._hooks
            self._hooks = (*before, hook)
            try:
                for told in self._brokers:
                    told(hook)
            except BaseException:
                self._hooks = before
                raise

    def remove(self, function: Function) -> None:
        """What it was declared for is asked no more. ``KeyError``: it was not declared."""
        with self._lock:
            gone = [hook for hook in self._hooks if hook.function == function]
            if not gone:
                raise KeyError(function)
            self._hooks = tuple(hook for hook in self._hooks if hook.function != function)
            for told in self._brokers:
                told(gone[0])

    # ---- for the broker

    def of(self, kind: Kind) -> list[Hook]:
        return [hook for hook in self._hooks if hook.kind == kind]

    @property
    def longest_deadline(self) -> float:
        return max((hook.deadline for hook in self._hooks), default=0.0)

    @property
    def asks_at_connect(self) -> bool:
        return any(hook.kind in OF_CONNECT for hook in self._hooks)

    @property
    def has_coroutines(self) -> bool:
        return any(hook.is_coroutine for hook in self._hooks)

    def attach(self, told: Callable[[Hook | None], None]) -> None:
        """It is called now, and with what is declared or removed from now on, one call at a time, and may refuse it."""
        with self._lock:
            told(None)
            self._brokers.append(told)

    def detach(self, told: Callable[[Hook | None], None]) -> None:
        with self._lock:
            if told in self._brokers:
                self._brokers.remove(told)

    def stats(self) -> list[HookStats]:
        """Counters by hook, in the order of declaration."""
        return [replace(hook.stats) for hook in self._hooks]


def _checked(kind: str, topic_filters: Iterable[str]) -> tuple[str, ...]:
    filters = (topic_filters,) if isinstance(topic_filters, str) else tuple(topic_filters)
    if not filters or not all(isinstance(one, str) for one in filters):
        raise TypeError(f'{kind} is declared with topic filters: @hooks.{kind}("rooms/#")')
    for one in filters:
        if one.startswith("$share/"):
            raise ValueError("a hook's filter has no $share")
        validate_filter(one)
    return filters


def plain_filter(topic_filter: str) -> str:
    """Without ``$share/group/``."""
    return topic_filter.split("/", 2)[-1] if topic_filter.startswith("$share/") else topic_filter


def filters_overlap(a: str, b: str) -> bool:
    """Whether there is a topic that both match. A wildcard at the first level matches no topic that begins with $ [MQTT-4.7.2-1]."""
    left, right = a.split("/"), b.split("/")
    for one, other in ((left[0], right[0]), (right[0], left[0])):
        if one in ("#", "+") and other.startswith("$"):
            return False
    for place in range(max(len(left), len(right))):
        here = left[place] if place < len(left) else None
        there = right[place] if place < len(right) else None
        if here == "#" or there == "#":  # it matches the parent level too
            return True
        if here is None or there is None or (here != there and "+" not in (here, there)):
            return False
    return True


__all__ = [
    "Accept",
    "Drop",
    "Grant",
    "HookClient",
    "HookStats",
    "Hooks",
    "Publication",
    "Refuse",
    "Request",
    "SubscriptionRequest",
]
