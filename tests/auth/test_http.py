"""The web service that decides: what it is told, what its answers mean, and what happens when it does not answer."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mqttc import certs
from mqttc.auth import PeerIdentity
from mqttc.auth.callback import HttpSource
from mqttc.auth.claims import grant_of
from mqttc.auth.grant import Grant, Rule
from mqttc.auth.source import Answer
from mqttc.config_auth import WebService
from tests.auth.conftest import ask, attempt
from tests.auth.web import WebServer
from tests.conftest import WORKERS

from .conftest import Make

Start = Callable[..., WebServer]


@pytest.fixture
def serve() -> Iterator[Start]:
    made: list[WebServer] = []

    def start(status: int = 200, answer: Any = None, headers: dict[str, str] | None = None, **keys: Any) -> WebServer:
        body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        server = WebServer(keys.pop("call", lambda *_: (status, headers or {}, body)), **keys)
        made.append(server)
        return server

    yield start
    for server in made:
        server.stop()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("web")
    certs.make_authority(made)
    certs.make_server(made, ["localhost"])
    certs.make_client(made, "broker")
    return made


def decide(section: WebService, request: Any = None) -> Any:
    async def run() -> Any:
        source = HttpSource(section)
        await source.start()
        try:
            return await source.decide(request or ask(), {})
        finally:
            await source.close()

    return asyncio.run(run())


def test_what_it_is_told(serve: Start, tmp_path: Path) -> None:
    server = serve(answer={"result": "ignore"})
    (tmp_path / "token").write_text("abc\n")
    section = WebService(url=server.url, token_file=str(tmp_path / "token"))
    decide(section, ask("al", "pä".encode(), peer="[2001:db8::1]:7", listener="l", transport="tls"))
    headers, body = server.requests[0]
    assert headers["authorization"] == "Bearer abc" and headers["content-type"] == "application/json"
    assert json.loads(body) == {
        "client_id": "c", "username": "al", "password": "pä", "address": "2001:db8::1", "listener": "l", "transport": "tls", "protocol": 5,
        "certificate": None,
    }  # fmt: skip
    decide(section, ask(None, b"\xff", identity=PeerIdentity(key_name="k")))
    told = json.loads(server.requests[1][1])
    assert (told["password"], told["password_base64"], told["certificate"]["key_name"]) == (None, "/w==", "k")


@pytest.mark.parametrize(
    ("answer", "result"),
    [
        ({"result": "allow"}, (Answer.ALLOW, None, None)),
        ({"result": "deny"}, (Answer.DENY, None, None)),
        ({"result": "ignore"}, (Answer.IGNORE, None, None)),
        ({"result": "allow", "username": "x"}, (Answer.ALLOW, "x", None)),
        ({"result": "allow", "superuser": True}, (Answer.ALLOW, None, Grant(superuser=True))),
        (
            {"result": "allow", "acl": [{"topics": ["a/#"], "actions": ["publish"]}, {"topics": ["b"], "allow": False}]},
            (
                Answer.ALLOW,
                None,
                Grant([Rule(True, ("publish",), ("a/#",)), Rule(False, ("publish", "subscribe"), ("b",))], "deny"),
            ),
        ),
        ({"result": "allow", "acl": {"subscribe": ["a"]}}, (Answer.ALLOW, None, Grant([Rule(True, ("subscribe",), ("a",))], "deny"))),
    ],
)
def test_answers(serve: Start, answer: Any, result: tuple[Any, ...]) -> None:
    outcome = decide(WebService(url=serve(answer=answer).url))
    assert (outcome.answer, outcome.username, outcome.grant, outcome.keep) == (*result, 0.0)


@pytest.mark.parametrize(
    ("status", "answer"),
    [
        (200, {"result": "yes"}), (200, {}), (200, []), (200, b"{"), (200, b""), (200, {"result": "allow", "usrname": "x"}),
        (200, {"result": "allow", "username": 1}), (200, {"result": "allow", "expires_in": 0}),
        (200, {"result": "allow", "expires_in": True}),
        (200, {"result": "allow", "acl": "x"}), (200, {"result": "allow", "acl": [{"topics": []}]}),
        (200, {"result": "allow", "superuser": 1}),
        (200, {"result": "allow", "expires_in": float("nan")}),
        (204, b""), (201, {"result": "allow"}), (401, {"result": "allow"}), (403, b""), (500, {"result": "allow"}),
        (200, b'{"result": "allow", "username": "' + b"x" * 2_000_000 + b'"}'),
    ],
)  # fmt: skip
def test_everything_else_is_a_failure(serve: Start, status: int, answer: Any) -> None:
    url = serve(status, answer).url
    assert decide(WebService(url=url)).answer is Answer.FAILED
    assert decide(WebService(url=url, on_failure="next")).answer is Answer.UNAVAILABLE


def test_redirections_are_not_followed(serve: Start) -> None:
    other = serve(answer={"result": "allow"})
    for status in (301, 302, 307, 308):
        assert decide(WebService(url=serve(status, b"", {"location": other.url}).url)).answer is Answer.FAILED
    assert other.requests == []


def test_nobody_there() -> None:
    assert decide(WebService(url="http://127.0.0.1:1/")).answer is Answer.FAILED


def test_no_answer_in_time(serve: Start) -> None:
    go = threading.Event()
    server = serve(call=lambda *_: (200, {}, b"") if go.wait(10) else (500, {}, b""))
    assert decide(WebService(url=server.url, timeout=0.05)).answer is Answer.FAILED
    go.set()


def test_requests_at_a_time_are_bounded(serve: Start) -> None:
    most, now, lock, go = [0], [0], threading.Lock(), threading.Event()

    def call(*_: object) -> tuple[int, dict[str, str], bytes]:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
            if now[0] == 3:
                go.set()
        go.wait(10)
        with lock:
            now[0] -= 1
        return 200, {}, b'{"result": "allow"}'

    async def run() -> list[Answer]:
        source = HttpSource(WebService(url=serve(call=call).url, max_concurrent=3, max_waiting=10))
        await source.start()
        outcomes = await asyncio.gather(*(source.decide(ask(), {}) for _ in range(13)))
        await source.close()
        return [outcome.answer for outcome in outcomes]

    answers = asyncio.run(run())
    assert answers.count(Answer.ALLOW) == 10 and answers.count(Answer.BUSY) == 3
    assert most[0] == 3


@pytest.mark.parametrize(
    ("header", "keep"),
    [
        ("max-age=60", 60.0), ("private, max-age=5", 5.0), ('max-age="7"', 7.0), ("no-store, max-age=9", 0.0), ("s-maxage=9", 0.0),
        ("", 0.0),
        ("Max-Age=3", 3.0), ("max-age=x", 0.0),
    ],
)  # fmt: skip
def test_max_age(serve: Start, header: str, keep: float) -> None:
    assert decide(WebService(url=serve(answer={"result": "deny"}, headers={"cache-control": header}).url)).keep == keep


def test_the_servers_certificate_is_checked(serve: Start, folder: Path) -> None:
    server = serve(answer={"result": "allow"}, certificate=(folder / "server.pem", folder / "server.key"))
    assert decide(WebService(url=server.url)).answer is Answer.FAILED  # another CA
    assert decide(WebService(url=server.url, ca=str(folder / "ca.pem"))).answer is Answer.ALLOW
    assert (
        decide(WebService(url=server.url.replace("localhost", "127.0.0.1"), ca=str(folder / "ca.pem"))).answer is Answer.FAILED
    )  # another name


def test_the_broker_shows_its_certificate(serve: Start, folder: Path) -> None:
    ca = folder / "ca.pem"
    server = serve(answer={"result": "allow"}, certificate=(folder / "server.pem", folder / "server.key"), client_ca=ca)
    assert decide(WebService(url=server.url, ca=str(ca))).answer is Answer.FAILED
    own = {"certificate": str(folder / "broker.pem"), "key": str(folder / "broker.key")}
    assert decide(WebService(url=server.url, ca=str(ca), **own)).answer is Answer.ALLOW


def test_a_broker_with_it(serve: Start, make: Make) -> None:
    """Reason codes, what is remembered, and that a client that fails costs a request once."""

    def call(_: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        asked = json.loads(body)
        if asked["username"] == "broken":
            return 500, {}, b""
        result = "allow" if asked["password"] == "good" else "deny"
        return 200, {"cache-control": "max-age=60"}, json.dumps({"result": result}).encode()

    server = serve(call=call)
    bench = make({"http": {"url": server.url}}, workers=1)
    for version, codes in ((5, (0, 0x86, 0x88)), (4, (0, 4, 3)), (3, (0, 4, 3))):
        for _ in range(3):
            got = [attempt(bench, username, password, version, "c").reason for username, password in
                   (("a", b"good"), ("a", b"bad"), ("broken", b"x"))]  # fmt: skip
            assert tuple(got) == codes
    assert len(server.requests) == 3 * (1 + 1 + 3)
    assert (bench.stat("auth_http_requests"), bench.stat("auth_http_failures")) == (15, 9)
    assert bench.stat("verdicts_reused") == 3 * 2 * 2


def test_expires_in(serve: Start, make: Make) -> None:
    server = serve(answer={"result": "allow", "expires_in": 100})
    bench = make({"http": {"url": server.url}}, workers=WORKERS)
    peer = bench(5, username="a", password=b"x")
    bench.native.advance_clock(98)
    peer.ping()
    bench.native.advance_clock(3)
    assert [one.reason for one in peer.expect_close()] == [0xA0]


@pytest.mark.parametrize(
    "wrong", [1, "x", [1], [{}], [{"topics": "a"}], [{"topics": ["a"], "actions": ["fly"]}], {"fly": ["a"]}, {"publish": "a"}]
)
def test_rules_that_are_none(wrong: Any) -> None:
    with pytest.raises(ValueError):
        grant_of(wrong)
