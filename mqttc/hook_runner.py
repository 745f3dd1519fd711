"""Asking hooks: of one running broker, on its control loop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final

from mqttc import logs, native
from mqttc.auth import NOT_AUTHORIZED, SERVER_UNAVAILABLE, SUCCESS, Authenticator, Request, Verdict
from mqttc.auth.acl import compile_grant, read_groups
from mqttc.auth.grant import Grant, with_groups
from mqttc.codec import EncodeError
from mqttc.embed.events import Disconnected, Event, Listening
from mqttc.embed.message import decode_properties, encode_publish
from mqttc.errors import BrokerError
from mqttc.hooks import OF_CONNECT, Accept, Drop, Hook, HookClient, Hooks, Kind, Publication, Refuse, SubscriptionRequest, plain_filter

if TYPE_CHECKING:
    from mqttc.config import Config
    from mqttc.embed.hub import Hub

QUESTION_PUBLISH: Final = 3
QUESTION_SUBSCRIBE: Final = 4
QUESTION_INSIDE: Final = 5
QUESTION_GRANT: Final = 6
_PASS, _CHANGE, _REFUSE = 0, 1, 2
_FAILED: Final = 0x83
"""Implementation specific error: a hook was asked and has not answered."""
_COUNTERS: Final = ("asked", "refused", "changed", "late", "failed", "overflowed")
_logger: Final = logging.getLogger(logs.LOGGER_NAME)


class Unanswered(Exception):
    """A hook has failed, or was late, or was not called; it is counted, and logged."""


class _Call:
    """One call of a coroutine function on the program's loop; all but `start` and `_stop` is the control loop's."""

    def __init__(self, runner: HookRunner, loop: asyncio.AbstractEventLoop, hook: Hook, arguments: tuple[Any, ...]) -> None:
        self._runner = runner
        self._loop = loop
        self._hook = hook
        self._arguments = arguments
        self._cancelled = False
        self._task: asyncio.Task[Any] | None = None
        self.result: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        loop.call_soon_threadsafe(self.start)

    def start(self) -> None:
        if self._cancelled:
            self._runner.over(None)
        else:
            self._task = self._loop.create_task(self._run(), name="mqttc-hook")
            self._task.add_done_callback(self._done)

    async def _run(self) -> Any:
        return await self._hook.function(*self._arguments)

    def _done(self, task: asyncio.Task[Any]) -> None:
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        self._runner.over(self.result, None if error is not None else task.result(), error)

    def cancel(self) -> None:
        self._cancelled = True
        try:
            self._loop.call_soon_threadsafe(self._stop)
        except RuntimeError:
            pass  # the loop is closed, and the task gone with it

    def _stop(self) -> None:
        if self._task is not None:
            self._task.cancel()


class HookRunner:
    """Made before the engine starts (``BrokerError``: coroutine functions, and no loop); ``decide`` and ``ask`` belong to the control
    loop."""

    def __init__(self, hooks: Hooks, engine: native.Engine, hub: Hub, config: Config, loop: asyncio.AbstractEventLoop | None) -> None:
        self._hooks = hooks
        self._engine = engine
        self._hub = hub
        self._renew_before_s = config.limits.auth_timeout
        self._max_packet_size = config.limits.max_packet_size
        self._loop = hooks.loop or loop
        self._asks_at_connect = hooks.asks_at_connect
        self._pool = ThreadPoolExecutor(hooks.threads, thread_name_prefix="mqttc-hook")
        self._control: asyncio.AbstractEventLoop | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._waiting = 0
        self._in_threads = 0
        self._idle: asyncio.Event | None = None
        self._closed = False
        self._counts = dict.fromkeys(_COUNTERS, 0)
        self._listening = Listening((Disconnected,), None, self._disconnected)
        self.forget: Callable[[], None] = lambda: None
        if self._loop is None and hooks.has_coroutines:
            raise BrokerError("hooks that are coroutine functions need a loop: start the broker on it, or give it to Hooks(loop=...)")
        hooks.attach(self._changed)

    @property
    def asks_at_connect(self) -> bool:
        return self._asks_at_connect

    def _changed(self, hook: Hook | None) -> None:
        if hook is not None and hook.kind in OF_CONNECT and not self._asks_at_connect:
            raise BrokerError(f"{hook.kind} cannot be declared while a broker runs that was started without any such hook")
        if hook is not None and hook.is_coroutine and self._loop is None:
            raise BrokerError("hooks that are coroutine functions need a loop, and the broker runs without one")
        self._apply()
        self.forget()

    def _apply(self) -> None:
        publish, subscribe = self._hooks.of("on_publish"), self._hooks.of("on_subscribe")
        self._engine.hooks(
            publish={one for hook in publish for one in hook.filters},
            subscribe=bool(subscribe or self._hooks.of("authorize")),
            allow=all(hook.allows for hook in (*publish, *subscribe)) and not self._hooks.of("authorize"),
        )
        if self._hooks.of("on_disconnect"):
            self._hub.listen(self._listening)
        else:
            self._hub.unlisten(id(self._listening))

    # ---- its life, on the control loop

    def start(self) -> None:
        self._control = asyncio.get_running_loop()
        self._idle = asyncio.Event()

    def begin_stop(self) -> None:
        """Any thread: nobody is told of the clients that the broker's own end disconnects."""
        self._hooks.detach(self._changed)
        self._hub.unlisten(id(self._listening))

    async def close(self) -> None:
        """Calls that are not over are cancelled; plain functions cannot be, and are waited for until their deadline."""
        self._closed = True
        self.begin_stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._pool.shutdown(wait=False, cancel_futures=True)
        assert self._idle is not None
        try:
            async with asyncio.timeout(self._hooks.longest_deadline):
                while self._in_threads:
                    self._idle.clear()
                    await self._idle.wait()
        except TimeoutError:
            logs.emit(_logger, logging.WARNING, "hook_still_runs", {"detail": f"{self._in_threads} calls of plain functions"})

    def abandon(self) -> None:
        """Of a broker that did not start."""
        self._closed = True
        self._hooks.detach(self._changed)
        self._pool.shutdown(wait=False)

    def stats(self) -> dict[str, int]:
        """Counters, and the gauge ``hooks_waiting``; any thread."""
        return {f"hooks_{name}": count for name, count in self._counts.items()} | {"hooks_waiting": self._waiting}

    # ---- one call

    def _count(self, hook: Hook, what: str) -> None:
        self._counts[what] += 1
        hook.count(what)

    def over(self, result: asyncio.Future[Any] | None, answer: Any = None, error: BaseException | None = None) -> None:
        """Any thread: a call is over, whether or not somebody still wants to know."""
        assert self._control is not None
        try:
            self._control.call_soon_threadsafe(self._settle, result, answer, error)
        except RuntimeError:
            pass  # the broker has stopped

    def _settle(self, result: asyncio.Future[Any] | None, answer: Any, error: BaseException | None) -> None:
        self._waiting -= 1
        if result is None or result.done():
            return
        if error is not None:  # what is no Exception would end the control loop, and a future takes no StopIteration
            known = isinstance(error, Exception) and not isinstance(error, StopIteration)
            result.set_exception(error if known else RuntimeError(f"it ended with {error!r}"))
        else:
            result.set_result(answer)

    def _thread_over(self, result: asyncio.Future[Any], done: Future[Any]) -> None:
        if not done.cancelled() and done.exception() is None:
            self.over(result, done.result())
        else:
            self.over(result, None, asyncio.CancelledError() if done.cancelled() else done.exception())
        try:
            assert self._control is not None
            self._control.call_soon_threadsafe(self._thread_left)
        except RuntimeError:
            pass

    def _thread_left(self) -> None:
        self._in_threads -= 1
        assert self._idle is not None
        self._idle.set()

    def _begin(self, hook: Hook, arguments: tuple[Any, ...]) -> tuple[asyncio.Future[Any], Callable[[], object]]:
        """Its result, and how to cancel it. ``RuntimeError``: it cannot be called."""
        if hook.is_coroutine:
            if self._loop is None:
                raise RuntimeError("there is no loop")
            call = _Call(self, self._loop, hook, arguments)
            return call.result, call.cancel
        result: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        job = self._pool.submit(hook.function, *arguments)
        self._in_threads += 1
        job.add_done_callback(lambda done: self._thread_over(result, done))
        return result, job.cancel

    async def _call(self, hook: Hook, *arguments: Any) -> Any:
        """Its answer. ``Unanswered``."""
        self._count(hook, "asked")
        if self._closed or self._waiting >= self._hooks.max_waiting:
            self._count(hook, "overflowed")
            raise Unanswered
        try:
            result, cancel = self._begin(hook, arguments)
        except RuntimeError as error:
            self._failed(hook, error)
            raise Unanswered from error
        self._waiting += 1
        deadline = asyncio.timeout(hook.deadline)
        try:
            async with deadline:
                return await result
        except asyncio.CancelledError:
            cancel()
            raise
        except Exception as error:
            if deadline.expired():
                cancel()
                self._count(hook, "late")
                self._log(hook, "hook_late", {"seconds": hook.deadline})
            else:
                self._failed(hook, error)
            raise Unanswered from error

    def _failed(self, hook: Hook, error: BaseException) -> None:
        self._count(hook, "failed")
        self._log(hook, "hook_failed", {"error": repr(error)})

    def _log(self, hook: Hook, event: str, fields: dict[str, logs.Field]) -> None:
        logs.emit(_logger, logging.ERROR, event, {"hook": f"{hook.kind} {hook.stats.name}", **fields})

    def _no_answer(self, hook: Hook, answer: object) -> Unanswered:
        self._failed(hook, TypeError(f"{answer!r} is no answer of {hook.kind}"))
        return Unanswered()

    def _of(self, kind: Kind, client_id: str) -> list[Hook]:
        return [hook for hook in self._hooks.of(kind) if hook.concerns(client_id)]

    # ---- CONNECT and AUTH

    async def decide(self, request: Request, configured: Authenticator) -> Verdict:
        """What hooks, and where they leave it open the configuration, say of a client."""
        client_id = request.client_id
        concerned = any(self._of(kind, client_id) for kind in OF_CONNECT)
        verdict: Verdict | None = None
        if not request.is_auth and request.auth_method is None:
            verdict = await self._authenticated(request)
        if verdict is None:
            if request.username is None and request.password is None and request.auth_method is None and request.identity is None:
                verdict = Verdict(SUCCESS if request.anonymous_admitted else NOT_AUTHORIZED)
            else:
                verdict = await configured.authenticate(request)
        if not concerned:
            return verdict
        grant = verdict.grant
        if verdict.reason_code == SUCCESS:
            username = verdict.username if verdict.username is not None else request.username
            client = HookClient(client_id, username, request.peer, request.listener, request.transport, request.protocol)
            reason, granted = await self._authorized(client, "connect", "")
            if granted is not None and grant is not None:
                granted = with_groups(granted, grant.groups)  # who the client is does not change by what it is granted
            grant = granted or grant
            if reason == SUCCESS and not request.is_reauthentication:
                reason = await self._admitted(client)
            if reason != SUCCESS:
                return Verdict(reason)
        return Verdict(verdict.reason_code, verdict.auth_data, grant, verdict.username, verdict.lasts)

    async def _authenticated(self, request: Request) -> Verdict | None:
        for hook in self._of("authenticate", request.client_id):
            try:
                answer = await self._call(hook, request)
                if answer is None:
                    continue
                if isinstance(answer, Accept):
                    return Verdict(SUCCESS, grant=answer.grant, username=answer.user, lasts=answer.lasts)
                if not isinstance(answer, Refuse):
                    raise self._no_answer(hook, answer)
            except Unanswered:
                return Verdict(SERVER_UNAVAILABLE)
            self._count(hook, "refused")
            return Verdict(answer.reason_code)
        return None

    async def _authorized(self, client: HookClient, action: str, topic: str) -> tuple[int, Grant | None]:
        for hook in self._of("authorize", client.client_id):
            try:
                answer = await self._call(hook, client, action, topic)
                if answer is None:
                    continue
                if answer is True or isinstance(answer, Grant):
                    return SUCCESS, answer if isinstance(answer, Grant) else None
                if answer is not False and not isinstance(answer, Refuse):
                    raise self._no_answer(hook, answer)
            except Unanswered:
                return SERVER_UNAVAILABLE if action == "connect" else _FAILED, None
            self._count(hook, "refused")
            return (answer.reason_code if isinstance(answer, Refuse) else NOT_AUTHORIZED), None
        return SUCCESS, None

    async def _admitted(self, client: HookClient) -> int:
        for hook in self._of("on_connect", client.client_id):
            try:
                answer = await self._call(hook, client)
                if answer is None or answer is True:
                    continue
                if answer is not False and not isinstance(answer, Refuse):
                    raise self._no_answer(hook, answer)
            except Unanswered:
                if hook.allows:
                    continue
                return SERVER_UNAVAILABLE
            self._count(hook, "refused")
            return answer.reason_code if isinstance(answer, Refuse) else NOT_AUTHORIZED
        return SUCCESS

    def _disconnected(self, event: Event) -> None:
        for hook in self._of("on_disconnect", event.client_id):
            self._spawn(self._tell(hook, event))

    async def _tell(self, hook: Hook, event: Event) -> None:
        try:
            await self._call(hook, event)
        except Unanswered:
            pass

    # ---- PUBLISH and SUBSCRIBE

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def ask(self, question: native.Question, listener: str, transport: str) -> None:
        """Ask about it, and answer it."""
        inside = question.kind == QUESTION_INSIDE
        client = HookClient(
            question.client_id,
            question.username,
            question.peer,
            "" if inside else listener,
            "inside" if inside else transport,
            question.protocol,
        )
        kinds = {QUESTION_SUBSCRIBE: self._subscribe, QUESTION_GRANT: self._renew}
        self._spawn(kinds.get(question.kind, self._publish)(question, client))

    def authorizes(self, client_id: str) -> bool:
        """Whether a hook may say what this client may do, and so again when a grant ends."""
        return bool(self._of("authorize", client_id))

    async def _renew(self, question: native.Question, client: HookClient) -> None:
        """The client's grant ends soon. Without another one it does."""
        reason, granted = await self._authorized(client, "connect", "")
        if reason == SUCCESS and granted is not None:
            self._regrant(question, client, granted)

    def _regrant(self, question: native.Question, client: HookClient, grant: Grant) -> bool:
        """Whether it can be given. The client's groups are its own, whatever it is granted."""
        try:
            grant = with_groups(grant, read_groups(question.properties)) or grant
            compiled = compile_grant(grant, self._renew_before_s)
        except ValueError as error:
            logs.emit(_logger, logging.ERROR, "hooks_failed", {"client_id": client.client_id, "error": repr(error)})
            return False
        self._engine.regrant(question.id, compiled, whatever=question.kind == QUESTION_SUBSCRIBE)
        return True

    async def _publish(self, question: native.Question, client: HookClient) -> None:
        inside = question.kind == QUESTION_INSIDE
        try:
            verdict, reason, data = await self._published(question, client)
        except Exception as error:
            logs.emit(_logger, logging.ERROR, "hooks_failed", {"client_id": client.client_id, "error": repr(error)})
            verdict, reason, data = _REFUSE, _FAILED, b""
        self._engine.answer_hook(question.id, verdict, reason, data, inside=inside)

    async def _published(self, question: native.Question, client: HookClient) -> tuple[int, int, bytes]:
        flags = question.flags
        properties = decode_properties(question.properties, question.message_expiry)
        message = Publication(client, question.topic, question.payload, flags >> 1 & 3, bool(flags & 1), properties)
        data = b""
        for hook in self._hooks.of("on_publish"):
            if not hook.concerns_topic(message.topic):
                continue
            try:
                answer = await self._call(hook, message)
                if answer is None or answer is True:
                    continue
                if isinstance(answer, Publication):
                    if answer != message:
                        data = self._encoded(hook, answer)
                        self._count(hook, "changed")
                        message = answer
                    continue
                if answer is not False and not isinstance(answer, Refuse | Drop):
                    raise self._no_answer(hook, answer)
            except Unanswered:
                if hook.allows:
                    continue
                return _REFUSE, _FAILED, b""
            self._count(hook, "refused")
            if isinstance(answer, Drop):
                return _REFUSE, SUCCESS, b""
            return _REFUSE, answer.reason_code if isinstance(answer, Refuse) else NOT_AUTHORIZED, b""
        return (_CHANGE, SUCCESS, data) if data else (_PASS, SUCCESS, b"")

    def _encoded(self, hook: Hook, message: Publication) -> bytes:
        try:
            data = encode_publish(message.topic, message.payload, message.qos, message.retain, message.properties)
            if self._max_packet_size and len(data) > self._max_packet_size:
                raise EncodeError(f"a changed message has {len(data)} bytes, limits.max_packet_size is {self._max_packet_size}")
        except (ValueError, TypeError, AttributeError) as error:
            self._failed(hook, error)
            raise Unanswered from error
        return data

    async def _subscribe(self, question: native.Question, client: HookClient) -> None:
        try:
            verdict, data = await self._subscribed(question, client)
        except Exception as error:
            logs.emit(_logger, logging.ERROR, "hooks_failed", {"client_id": client.client_id, "error": repr(error)})
            verdict, data = _CHANGE, b""  # without a word about a filter it is refused
        self._engine.answer_hook(question.id, verdict, SUCCESS, data)

    async def _subscribed(self, question: native.Question, client: HookClient) -> tuple[int, bytes]:
        answers: list[bytes] = []
        passed = True
        for wanted in _requests(question.payload, client):
            reason, granted = await self._authorized(client, "subscribe", plain_filter(wanted.topic_filter))
            if granted is not None and not self._regrant(question, client, granted):
                reason = _FAILED
            found = wanted
            if reason == SUCCESS:
                reason, found = await self._one_filter(wanted)
            passed = passed and reason == SUCCESS and found == wanted
            text = found.topic_filter.encode()
            answers.append(bytes((reason, _options(found))) + len(text).to_bytes(2, "big") + text)
        return (_PASS, b"") if passed else (_CHANGE, b"".join(answers))

    async def _one_filter(self, request: SubscriptionRequest) -> tuple[int, SubscriptionRequest]:
        for hook in self._hooks.of("on_subscribe"):
            if not hook.concerns_filter(plain_filter(request.topic_filter)):
                continue
            try:
                answer = await self._call(hook, request)
                if answer is None or answer is True:
                    continue
                if isinstance(answer, SubscriptionRequest):
                    if answer != request:
                        self._check(hook, answer)
                        self._count(hook, "changed")
                        request = answer
                    continue
                if answer is not False and not isinstance(answer, Refuse):
                    raise self._no_answer(hook, answer)
            except Unanswered:
                if hook.allows:
                    continue
                return _FAILED, request
            self._count(hook, "refused")
            return answer.reason_code if isinstance(answer, Refuse) else NOT_AUTHORIZED, request
        return SUCCESS, request

    def _check(self, hook: Hook, request: SubscriptionRequest) -> None:
        try:
            if (
                not 0 < len(request.topic_filter.encode()) <= 65535
                or request.qos not in (0, 1, 2)
                or request.retain_handling not in (0, 1, 2)
            ):
                raise ValueError(f"{request!r} is no subscription")
            if request.no_local and request.topic_filter.startswith("$share/"):
                raise ValueError("no_local on a shared subscription [MQTT-3.8.3-4]")
        except (ValueError, TypeError, AttributeError) as error:
            self._failed(hook, error)
            raise Unanswered from error


def _options(request: SubscriptionRequest) -> int:
    """Section 3.8.3.1."""
    return request.qos | bool(request.no_local) << 2 | bool(request.retain_as_published) << 3 | request.retain_handling << 4


def _requests(data: bytes, client: HookClient) -> list[SubscriptionRequest]:
    """The filters of a SUBSCRIBE, which was checked already."""
    found: list[SubscriptionRequest] = []
    place = 0
    while place < len(data):
        end = place + 2 + int.from_bytes(data[place : place + 2], "big")
        options = data[end]
        text = data[place + 2 : end].decode("utf-8")
        found.append(SubscriptionRequest(client, text, options & 3, bool(options & 4), bool(options & 8), options >> 4 & 3))
        place = end + 1
    return found
