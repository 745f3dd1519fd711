"""The control thread's duties, against an engine that only asks and records."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from mqttc import control, inside, server
from mqttc.auth import Request, Verdict
from mqttc.config import Config, Listener
from mqttc.embed import hub


@dataclass
class Question:
    id: int
    kind: int = 0
    listener: int = 0
    peer: str = "127.0.0.1:5"
    client_id: str = "c1"
    protocol: int = 5
    username: str | None = "alice"
    password: bytes | None = b"secret"
    auth_method: str | None = None
    auth_data: bytes | None = None
    certificate: bytes | None = None
    key_name: str | None = None
    common_name: str | None = None
    head: bytes | None = None
    remote: bool = False
    reason: int = 0


@dataclass
class LogEvent:
    level: int = logging.INFO
    event: int = 0
    reason: int = 0x8E
    worker: int = 1
    listener: int = 0
    wall_ms: int = 1_700_000_000_250
    client_id: str = "c\n1"
    peer: str = "127.0.0.1:5"
    detail: str = ""


@dataclass
class Answer:
    question: int
    reason_code: int
    auth_data: bytes | None


@dataclass
class Engine:
    """Asks what a test puts in; keeps the answers."""

    settings: dict[str, Any]
    waiting: list[Any] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    listeners: list[dict[str, Any]] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.event_fd, self.writer = os.pipe()
        os.set_blocking(self.event_fd, False)
        self.answered = threading.Condition()
        self.descriptors: list[int] = []

    def add_listener(self, fd: int, **options: Any) -> int:
        self.descriptors.append(fd)
        self.listeners.append(options)
        return len(self.listeners) - 1

    def put(self, *events: Any) -> None:
        self.waiting += events
        os.write(self.writer, b"x")

    def events(self) -> list[Any]:
        try:
            os.read(self.event_fd, 64)
        except BlockingIOError:
            pass
        taken, self.waiting = self.waiting, []
        return taken

    def verdicts(self, **fields: bool) -> None:
        """Nothing is remembered here."""

    def answer(self, question: int, reason_code: int, *, auth_data: bytes | None = None, **keys: Any) -> None:
        with self.answered:
            self.answers.append(Answer(question, reason_code, auth_data))
            self.answered.notify_all()

    def wait(self, count: int) -> dict[int, Answer]:
        with self.answered:
            assert self.answered.wait_for(lambda: len(self.answers) >= count, 5), self.answers
            return {answer.question: answer for answer in self.answers}

    def start(self) -> None:
        self.calls.append("start")

    def stop(self, timeout_ms: int) -> bool:
        self.calls.append(f"stop {timeout_ms}")
        return True

    def stats(self) -> dict[str, int]:
        return {"connections": 7}

    def advance_clock(self, milliseconds: int, wall_milliseconds: int, *, heard: bool = False) -> None:
        self.calls.append(f"advance {milliseconds} {wall_milliseconds}")

    def close(self) -> None:
        self.calls.append("close")
        for descriptor in [*self.descriptors, self.event_fd, self.writer]:
            os.close(descriptor)
        self.descriptors = []


class Port:
    """Of in-process clients: there are none."""

    def __init__(self, engine: Engine, kind: type) -> None:
        self.fd, writer = os.pipe()
        engine.descriptors += [self.fd, writer]

    def receive(self) -> list[Any]:
        return []


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> list[Engine]:
    """The engines that brokers of this test made."""
    made: list[Engine] = []

    def make(**settings: Any) -> Engine:
        made.append(Engine(settings))
        return made[-1]

    names = ("connected",)
    stand_in = SimpleNamespace(Engine=make, Question=Question, LogEvent=LogEvent, EVENT_NAMES=names)
    for module in (server, control):
        monkeypatch.setattr(module, "native", stand_in)
    monkeypatch.setattr(hub, "inside", SimpleNamespace(Port=Port, Answer=inside.Answer, Delivery=inside.Delivery))
    return made


@pytest.fixture
def records() -> Iterator[list[logging.LogRecord]]:
    """What the broker logs."""
    kept: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = kept.append  # type: ignore[method-assign, assignment]
    logger = logging.getLogger("mqttc.broker")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield kept
    logger.removeHandler(handler)
    logger.setLevel(level)


def config(**sections: Any) -> dict[str, Any]:
    return {"listeners": [{"url": "tcp://127.0.0.1:0"}], **sections}


def test_engine_gets_settings_and_listeners(engines: list[Engine]) -> None:
    listeners = [{"url": "tcp://127.0.0.1:0", "maximum_qos": 1, "name": "one"}, {"url": "tcp://127.0.0.1:0", "anonymous": False}]
    with server.Broker(config(listeners=listeners, workers=3, limits={"queue_policy": "disconnect"})) as broker:
        (engine,) = engines
        assert engine.settings["workers"] == 3
        assert engine.settings["queue_policy"] == 3
        assert engine.settings["response_information"] == ""
        assert engine.listeners[0] == {
            "name": "one", "family": 0, "durability": 0, "maximum_qos": 1, "max_connections": 0, "anonymous": 2, "auth": 0,
            "tcp_user_timeout_ms": 60_000, "keepalive_idle_s": 60, "server_reference": "", "tls": None, "http": False, "proxies": None,
            "proxied": False,
        }  # fmt: skip
        assert engine.listeners[1]["anonymous"] == 0
        assert engine.listeners[1]["name"] == broker.urls[1]
        assert broker.stats() == {"connections": 7}
        broker.advance_clock(1.5)
    assert engine.calls == ["start", "advance 1500 1500", "stop 5000", "close"]
    assert broker.urls == ()
    assert broker.stats() == {"connections": 7}


def test_lists_answer_questions(engines: list[Engine]) -> None:
    with server.Broker(config(auth={"allow": ["alice"], "deny": ["mallory"], "anonymous": False})):
        (engine,) = engines
        assert engine.listeners[0]["auth"] == 1
        engine.put(Question(1), Question(2, username="mallory"), Question(3, username=None), Question(4, auth_method="X"))
        answers = engine.wait(4)
    assert {number: answer.reason_code for number, answer in answers.items()} == {1: 0, 2: 0x87, 3: 0x87, 4: 0x8C}


def test_loopback_admits_nobody_behind_a_proxy(engines: list[Engine]) -> None:
    """Neither the engine, for clients without credentials, nor the control thread, for those with a name."""
    proxied = {"url": "tcp://127.0.0.1:0", "proxy_protocol": True, "trusted_proxies": ["127.0.0.1"]}
    with server.Broker(config(listeners=[{"url": "tcp://127.0.0.1:0"}, proxied], auth={"deny": ["mallory"]})):
        (engine,) = engines
        assert [listener["anonymous"] for listener in engine.listeners] == [2, 0]
        engine.put(Question(1, listener=0), Question(2, listener=1))
        answers = engine.wait(2)
    assert {number: answer.reason_code for number, answer in answers.items()} == {1: 0, 2: 0x87}


class Slow:
    """Decides when it is told to."""

    def __init__(self) -> None:
        self.open: dict[str, asyncio.Event] = {}
        self.cancelled: list[str] = []
        self.seen: list[Request] = []

    async def authenticate(self, request: Request) -> Verdict:
        self.seen.append(request)
        if request.client_id == "broken":
            raise OSError("no server")
        if request.client_id == "late":
            raise TimeoutError("its own")
        if request.client_id.startswith("wait"):
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                self.cancelled.append(request.client_id)
                raise
        return Verdict(0x18, b"challenge")


def test_slow_decisions_do_not_hold_up_others(engines: list[Engine], records: list[logging.LogRecord]) -> None:
    slow = Slow()
    with server.Broker(config(limits={"auth_timeout": 0.2}), authenticator=slow):
        (engine,) = engines
        assert engine.listeners[0]["auth"] == 1
        questions = [Question(1, client_id="wait1"), Question(2, client_id="broken"), Question(3, kind=1), Question(4, client_id="late")]
        engine.put(*questions)
        answers = engine.wait(3)
        assert (answers[2].reason_code, answers[4].reason_code) == (0x88, 0x88)
        assert answers[3] == Answer(3, 0x18, b"challenge")
        assert slow.seen[2].is_auth and slow.seen[2].anonymous_admitted
        deadline = time.monotonic() + 5
        while not slow.cancelled and time.monotonic() < deadline:
            time.sleep(0.01)
        assert slow.cancelled == ["wait1"]
        engine.put(Question(5, client_id="wait5"))
        deadline = time.monotonic() + 5
        while len(slow.seen) < 5 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert slow.cancelled == ["wait1", "wait5"]
    assert 1 not in engine.wait(3)
    assert sorted(record.fields["client_id"] for record in records) == ["broken", "late"]  # type: ignore[attr-defined]


def test_log_records(engines: list[Engine], records: list[logging.LogRecord]) -> None:
    broker = server.Broker(config(log={"level": "info"}))
    broker.start()
    (engine,) = engines
    engine.put(LogEvent(level=logging.DEBUG), LogEvent())
    engine.waiting.append(LogEvent(detail="told while stopping", listener=-1))
    broker.stop()
    first, second = (record.getMessage() for record in records)
    assert first.startswith(r'connected client_id="c\x0a1" reason=0x8e peer=127.0.0.1:5 listener=tcp://127.0.0.1:')
    assert second == r'connected client_id="c\x0a1" reason=0x8e peer=127.0.0.1:5 worker=1 detail="told while stopping"'
    assert records[0].created == 1_700_000_000.25


def test_reload(engines: list[Engine], records: list[logging.LogRecord]) -> None:
    with server.Broker(config(auth={"allow": ["alice"]})) as broker:
        (engine,) = engines
        result = broker.reload(config(auth={"allow": ["bob"], "anonymous": True}, log={"level": "error"}, workers=9))
        assert sorted(result.applied) == ["auth.allow", "log.level"]
        assert sorted(result.needs_restart) == ["auth.anonymous", "workers"]
        assert broker.config.auth.allow == ["bob"]
        assert (broker.config.auth.anonymous, broker.config.workers) == ("loopback", 0)
        engine.put(LogEvent(level=logging.WARNING), LogEvent(level=logging.ERROR), Question(1), Question(2, username="bob"))
        answers = engine.wait(2)
        assert (answers[1].reason_code, answers[2].reason_code) == (0x87, 0)
        assert [record.levelno for record in records] == [logging.ERROR]
        with pytest.raises(ValueError, match=r"unknown key auth\.alow"):
            broker.reload(config(auth={"alow": []}))
        assert broker.config.auth.allow == ["bob"]
        assert broker.reload(broker.config) == server.Reload((), ())


def test_level_below_that_of_the_start_needs_a_restart(engines: list[Engine]) -> None:
    with server.Broker(config(log={"level": "warning"})) as broker:
        assert engines[0].settings["log_level"] == logging.WARNING
        assert broker.reload(config(log={"level": "info"})).needs_restart == ("log.level",)
        assert broker.reload(config(log={"level": "error"})).applied == ("log.level",)
        assert broker.reload(config(log={"level": "warning"})).applied == ("log.level",)


def test_first_list_needs_a_restart(engines: list[Engine]) -> None:
    with server.Broker(config()) as broker:
        result = broker.reload(config(auth={"deny": ["bob"]}))
        assert result == server.Reload((), ("auth.deny",))
        assert broker.config.auth.deny == []


def test_nothing_is_left_of_a_failed_start(engines: list[Engine], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(engine: Engine) -> None:
        raise MemoryError("no threads")

    broker = server.Broker(config())
    with monkeypatch.context() as patched:
        patched.setattr(Engine, "start", refuse)
        with pytest.raises(MemoryError):
            broker.start()
    assert engines[0].calls == ["close"]
    assert not broker.running
    assert "mqttc-control" not in [thread.name for thread in threading.enumerate()]
    with broker:
        assert broker.running


def test_states(engines: list[Engine]) -> None:
    broker = server.Broker(config())
    assert broker.stop()
    with pytest.raises(server.BrokerError):
        broker.advance_clock(1)
    with broker, pytest.raises(server.BrokerError, match="running already"):
        broker.start()
    with broker:
        assert broker.running
    assert len(engines) == 2


def test_async_with(engines: list[Engine]) -> None:
    async def run() -> tuple[str, ...]:
        async with server.Broker(config()) as broker:
            return broker.urls

    (url,) = asyncio.run(run())
    assert url.startswith("tcp://127.0.0.1:")
    assert engines[0].calls == ["start", "stop 5000", "close"]


def test_cancelled_start_leaves_nothing(engines: list[Engine], monkeypatch: pytest.MonkeyPatch) -> None:
    entered, go_on = threading.Event(), threading.Event()

    def slow_start(engine: Engine) -> None:
        entered.set()
        assert go_on.wait(5)

    monkeypatch.setattr(Engine, "start", slow_start)

    async def run() -> None:
        async def serve() -> None:
            async with server.Broker(config()):
                pytest.fail("cancelled before")

        task = asyncio.create_task(serve())
        await asyncio.to_thread(entered.wait, 5)
        task.cancel()
        await asyncio.sleep(0)
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())
    assert engines[0].calls == ["stop 5000", "close"]


def test_stop_from_an_authenticator_is_refused(engines: list[Engine]) -> None:
    caught: list[BaseException] = []

    class Stopper:
        async def authenticate(self, request: Request) -> Verdict:
            try:
                broker.stop()
            except server.BrokerError as error:
                caught.append(error)
            return Verdict(0)

    with server.Broker(config(), authenticator=Stopper()) as broker:
        engines[0].put(Question(1))
        engines[0].wait(1)
    assert len(caught) == 1


def test_default_configuration_is_the_commands() -> None:
    assert server.Broker().config == Config(listeners=[Listener(url="tcp://127.0.0.1:1883")])
