"""How authenticators work together, what is remembered, and who is held up for failing too often."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from mqttc.auth import PeerIdentity, Request, Verdict
from mqttc.auth.chain import AllOf, AnyOf, ChainAuthenticator, One
from mqttc.auth.grant import Grant
from mqttc.auth.limits import Limiter, Remembered, network_of
from mqttc.auth.source import Answer, Outcome, Source
from mqttc.config import Config, ConfigError
from mqttc.config_auth import Failures
from tests.auth.conftest import ask

A, D, I, U, F, B = Answer.ALLOW, Answer.DENY, Answer.IGNORE, Answer.UNAVAILABLE, Answer.FAILED, Answer.BUSY  # noqa: E741


class Scripted(Source):
    """Says what it is told to, and counts how often it is asked."""

    takes_passwords = True

    def __init__(self, answer: Answer, methods: tuple[str, ...] = (), **keys: Any) -> None:
        self.outcome = Outcome(answer, **keys)
        self.methods = frozenset(methods)
        self.asked = 0
        self.wait: asyncio.Event | None = None

    async def decide(self, request: Request, state: dict[str, Any]) -> Outcome:
        self.asked += 1
        if self.wait is not None:
            await self.wait.wait()
        return self.outcome


def decide(node: Any, request: Request | None = None) -> Outcome:
    return asyncio.run(node.decide(request or ask(), {}))


@pytest.mark.parametrize(
    ("answers", "result", "asked"),
    [
        ([A, D], A, 1), ([D, A], A, 2), ([I, A], A, 2), ([U, A], A, 2), ([B, A], A, 2), ([F, A], F, 1), ([D, I], D, 2), ([I, D], D, 2),
        ([I, I], I, 2), ([D, U], U, 2), ([U, D], U, 2), ([I, U], U, 2), ([B, D], B, 2), ([I, F, A], F, 2), ([A], A, 1), ([D], D, 1),
    ],
)  # fmt: skip
def test_any(answers: list[Answer], result: Answer, asked: int) -> None:
    sources = [Scripted(answer) for answer in answers]
    assert decide(AnyOf([One(source) for source in sources])).answer is result
    assert sum(source.asked for source in sources) == asked


@pytest.mark.parametrize(
    ("answers", "result", "asked"),
    [([A, A], A, 2), ([A, D], D, 2), ([D, A], D, 1), ([A, I], I, 2), ([U, A], U, 1), ([A, F], F, 2), ([A, B], B, 2), ([A], A, 1)],
)
def test_all(answers: list[Answer], result: Answer, asked: int) -> None:
    sources = [Scripted(answer) for answer in answers]
    assert decide(AllOf([One(source) for source in sources])).answer is result
    assert sum(source.asked for source in sources) == asked


def test_nested_for_every_combination() -> None:
    """any of (all of x, y) and z admits as the words say."""
    for x, y, z in itertools.product((A, D, I), repeat=3):
        one, two, three = (One(Scripted(answer)) for answer in (x, y, z))
        admitted = decide(AnyOf([AllOf([one, two]), three])).answer is A
        assert admitted == ((x is A and y is A) or z is A)
        admitted = decide(AllOf([AnyOf([one, two]), three])).answer is A
        assert admitted == ((x is A or y is A) and z is A)


def test_what_all_of_them_say_together() -> None:
    grant = Grant()
    outcome = decide(
        AllOf(
            [
                One(Scripted(A, expires=30.0, keep=5.0)),
                One(Scripted(A, username="first", expires=20.0, grant=grant)),
                One(Scripted(A, username="second", keep=1.0)),
            ]
        )
    )
    assert (outcome.username, outcome.expires, outcome.keep, outcome.grant) == ("first", 20.0, 1.0, grant)


def test_any_remembers_no_longer_than_who_was_asked() -> None:
    assert decide(AnyOf([One(Scripted(I, keep=0.0)), One(Scripted(A, keep=9.0))])).keep == 0.0


def test_a_method_is_for_who_speaks_it() -> None:
    """Others of `any` do not end its exchange; of `all` all are asked."""
    other, speaks = Scripted(A), Scripted(Answer.CONTINUE, ("M",))
    request = replace(ask(None, None), auth_method="M")
    assert decide(AnyOf([One(other), One(speaks)]), request).answer is Answer.CONTINUE
    assert (other.asked, speaks.asked) == (0, 1)
    assert decide(AllOf([One(other), One(speaks)]), request).answer is Answer.CONTINUE
    assert (other.asked, speaks.asked) == (1, 2)


# ---------------------------------------------------------------------------------- the whole authenticator


def chained(source: Source, **auth: Any) -> ChainAuthenticator:
    """With this one authenticator."""
    config = Config.of({"auth": {"certificate": {}, **auth}})
    made = ChainAuthenticator(config)
    made._root = One(source)
    return made


def verdicts(chain: ChainAuthenticator, *requests: Request) -> list[Verdict]:
    async def run() -> list[Verdict]:
        await chain.start()
        try:
            return [await chain.authenticate(request) for request in requests]
        finally:
            await chain.close()

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("answer", "request_", "code"),
    [
        (A, ask(), 0), (D, ask(), 0x86), (I, ask(), 0x86), (D, ask("a", None), 0x87), (I, ask("a", None), 0x87), (U, ask(), 0x88),
        (F, ask(), 0x88), (B, ask(), 0x89),
        (I, ask(None, None, identity=PeerIdentity(key_name="k")), 0x87),
        (I, ask(None, None, identity=PeerIdentity(key_name="k"), anonymous_admitted=True), 0),
        (D, ask(None, None, identity=PeerIdentity(key_name="k"), anonymous_admitted=True), 0x87),
        (I, ask("a", b"p", anonymous_admitted=True), 0x86), (I, ask("a", None, anonymous_admitted=True), 0x87),
    ],
)  # fmt: skip
def test_reason_codes(answer: Answer, request_: Request, code: int) -> None:
    assert verdicts(chained(Scripted(answer)), request_)[0].reason_code == code


def test_answers_are_remembered() -> None:
    source = Scripted(A)
    chain = chained(source)
    one = ask(client_id="one")
    assert [verdict.reason_code for verdict in verdicts(chain, one, one, replace(one, client_id="two"))] == [0, 0, 0]
    assert source.asked == 1
    assert chain.stats()["auth_remembered"] == 2


@pytest.mark.parametrize(
    "other",
    [
        {"username": "alicep"}, {"username": "alice", "password": b"w"}, {"password": None}, {"protocol": 4}, {"listener": "b"},
        {"identity": PeerIdentity(key_name="k")}, {"identity": PeerIdentity(certificate=b"c")}, {"anonymous_admitted": True},
        {"transport": "tls"},
    ],
)  # fmt: skip
def test_they_are_for_the_same_question_alone(other: dict[str, Any]) -> None:
    source = Scripted(A)
    verdicts(chained(source), ask(), replace(ask(), **other))
    assert source.asked == 2


@pytest.mark.parametrize(("depends", "asked"), [((), 1), (("client_id",), 2), (("address",), 2)])
def test_client_id_and_address_count_where_they_are_looked_at(depends: tuple[str, ...], asked: int) -> None:
    source = Scripted(A)
    chain = chained(source)
    chain.depends_on_client_id = "client_id" in depends
    chain.depends_on_address = "address" in depends
    other = {"client_id": "d"} if "address" not in depends else {"peer": "192.0.2.2:5"}
    verdicts(chain, ask(), replace(ask(), **other))
    assert source.asked == asked


def test_failures_of_a_back_end_are_not_remembered() -> None:
    source = Scripted(U)
    verdicts(chained(source), ask(), ask())
    assert source.asked == 2


def test_an_answer_says_how_long_it_holds() -> None:
    for keep, asked in ((0.0, 2), (None, 1), (100.0, 1)):
        source = Scripted(A, keep=keep)
        first, second = verdicts(chained(source), ask(), ask())
        assert source.asked == asked
        assert first.keep <= 60
        assert second.keep <= first.keep


def test_what_ends_is_not_remembered_beyond_its_end() -> None:
    import time

    source = Scripted(A, expires=time.time() + 30)
    first, _ = verdicts(chained(source), ask(), ask())
    assert first.lasts is not None and 0 < first.lasts <= 30 and first.keep <= first.lasts
    source = Scripted(A, expires=time.time() - 1)
    verdicts(chained(source), ask(), ask())
    assert source.asked == 2


def test_the_same_question_is_asked_once_at_a_time() -> None:
    """A hundred clients that share a password and come together, of whom some leave."""
    source = Scripted(A)
    chain = chained(source, cache={"ttl": 0.0})

    async def run() -> None:
        source.wait = asyncio.Event()
        tasks = [asyncio.ensure_future(chain.authenticate(ask(client_id=str(number)))) for number in range(100)]
        await asyncio.sleep(0)
        tasks[0].cancel()
        await asyncio.sleep(0)
        source.wait.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(results[0], asyncio.CancelledError)
        assert all(isinstance(result, Verdict) and result.reason_code == 0 for result in results[1:])
        await chain.close()

    asyncio.run(run())
    assert source.asked == 1


def test_another_name_brings_a_grant_for_it() -> None:
    """So that access rules speak about who it is, not about what it says."""
    verdict = verdicts(chained(Scripted(A, username="real")), ask("claimed"))[0]
    assert verdict.username == "real" and verdict.grant == Grant(username="real")
    assert verdicts(chained(Scripted(A, username="alice")), ask("alice"))[0].grant is None


def test_lists_speak_about_the_name_that_was_found_too() -> None:
    chain = chained(Scripted(A, username="root"), deny=["root"])
    assert verdicts(chain, ask("claimed"))[0].reason_code == 0x87


def test_an_unknown_method() -> None:
    request = replace(ask(None, None), auth_method="X")
    assert verdicts(chained(Scripted(A)), request)[0].reason_code == 0x8C


# ---------------------------------------------------------------------------------- failures


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(("host", "username", "by"), [("192.0.2.1", "other", "address"), ("192.0.2.2", "alice", "user")])
def test_limiter(host: str, username: str, by: str) -> None:
    clock = Clock()
    limiter = Limiter(Failures(per_address=5, per_user=5, interval=10.0), clock)
    for _ in range(5):
        assert limiter.blocked("192.0.2.1", "alice") is None
        limiter.failed("192.0.2.1", "alice")
    assert limiter.blocked(host, username) == (by, True)
    assert limiter.blocked(host, username) == (by, False)  # told once
    assert limiter.blocked("192.0.2.3", "carol") is None
    clock.now += 2.5
    assert limiter.blocked(host, username) is None
    clock.now += 100
    for _ in range(4):
        limiter.failed("192.0.2.1", "alice")
    assert limiter.blocked(host, username) is None


def test_limiter_is_bounded_and_can_be_off() -> None:
    limiter = Limiter(Failures(per_address=1, per_user=1, entries=16))
    for number in range(100):
        limiter.failed(f"192.0.2.{number}", f"u{number}")
    assert (len(limiter), limiter.evicted) == (16, 184)
    off = Limiter(Failures(per_address=0, per_user=0))
    off.failed("192.0.2.1", "a")
    assert len(off) == 0 and off.blocked("192.0.2.1", "a") is None
    unix = Limiter(Failures(per_address=1, per_user=0))
    unix.failed("unix", "a")
    assert unix.blocked("unix", "a") is None


@pytest.mark.parametrize(
    ("host", "network"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8::1:2:3:4", "2001:db8::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("unix", "unix"),
    ],
)
def test_networks(host: str, network: str) -> None:
    assert network_of(host) == network


def test_who_was_admitted_is_not_held_up() -> None:
    source = Scripted(A)
    chain = chained(source, failures={"per_address": 3, "per_user": 3}, cache={"negative_ttl": 0.0})
    good, bad = ask("alice", b"good"), ask("alice", b"bad")

    async def run() -> list[int]:
        codes = [(await chain.authenticate(good)).reason_code]
        source.outcome = Outcome(D)
        codes += [(await chain.authenticate(replace(bad, password=b"bad%d" % number))).reason_code for number in range(5)]
        codes.append((await chain.authenticate(good)).reason_code)
        codes.append((await chain.authenticate(replace(good, username="bob"))).reason_code)
        await chain.close()
        return codes

    assert asyncio.run(run()) == [0, 0x86, 0x86, 0x86, 0x9F, 0x9F, 0, 0x9F]
    assert chain.stats()["auth_limited"] == 3


def test_remembered() -> None:
    clock = Clock()
    table: Remembered[str] = Remembered(3, clock)
    for number in range(5):
        table.put(number, str(number), 10 + number)
    assert [table.get(number) for number in range(5)] == [None, None, "2", "3", "4"]
    assert (len(table), table.evicted) == (3, 2)
    clock.now = 12
    assert table.get(2) is None and table.pop(3) == "3" and table.get(3) is None and len(table) == 1


# ---------------------------------------------------------------------------------- configuration


@pytest.mark.parametrize(
    ("auth", "told"),
    [
        ({"chain": "sql"}, "auth.chain names sql, but there is no auth.sql"),
        ({"chain": {"any": ["x"]}}, "knows no authenticator 'x'"),
        ({"chain": {"some": ["sql"]}}, "is the name of an authenticator"),
        ({"chain": {"any": []}}, "at least one member"),
        ({"chain": {"all": ["sql"], "any": ["sql"]}}, "is the name of an authenticator"),
        ({"scram": {}}, "auth.scram needs auth.password_file"),
        ({"jwt": {"algorithms": [], "secret": "x"}}, "auth.jwt.algorithms"),
        ({"jwt": {"algorithms": ["none"], "secret": "x"}}, "auth.jwt.algorithms"),
        ({"jwt": {"algorithms": ["RS256"], "secret": "x"}}, "a secret is for HS256"),
        ({"jwt": {"algorithms": ["HS256"], "key_file": "x"}}, "a public key is no secret"),
        ({"jwt": {"algorithms": ["RS256"], "jwks_url": "http://example.org/"}}, "unencrypted"),
        ({"http": {"url": "http://192.0.2.1/"}}, "unencrypted"),
        ({"http": {"url": "https://u:p@example.org/"}}, "no user name or password"),
        ({"ldap": {"url": "ldap://192.0.2.1", "user_dn": "uid=%u"}}, "unencrypted"),
        ({"ldap": {"url": "ldaps://x", "user_dn": "uid=x"}}, "needs %u"),
        ({"sql": {"url": "mysql://x"}}, "sqlite:/// or postgresql://"),
        ({"certificate": {"pattern": "(a", "name": "dns"}}, "no regular expression"),
        ({"certificate": {"pattern": "a", "user": "\\1"}}, "does not fit"),
    ],
)  # fmt: skip
def test_sections_that_make_no_sense(auth: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Config.of({"auth": auth})
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("path", "value"),
    [("auth.ldap.bind_password", "1234"), ("auth.jwt.secret", "[1]"), ("auth.http.token", "12"), ("auth.sql.password", "98765")],
)
def test_secrets_are_not_shown(path: str, value: str) -> None:
    """Neither in errors nor where they came from, nor in the representation."""
    with pytest.raises(ConfigError) as caught:
        Config.load(None, {}, (), [f"{path}='{value}x'", "auth.nonsense=1"])
    assert value not in str(caught.value)
    with pytest.raises(ConfigError) as caught:
        Config.load(None, {"MQTTC_" + path.upper().replace(".", "__"): value}, (), [])
    assert value not in str(caught.value)
    made = Config.of({"auth": {"sql": {"url": "postgresql://u:hidden@h/d", "password": "hidden"}}})
    assert "hidden" not in repr(made)


def test_secrets_from_files(tmp_path: Any) -> None:
    from mqttc.auth.source import read_secret

    (tmp_path / "real").write_bytes(b" two words\r\n")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert read_secret("x", str(tmp_path / "link")) == b" two words"
    for content in (b"", b"\n", b"x" * 70_000):
        (tmp_path / "real").write_bytes(content)
        with pytest.raises(ConfigError):
            read_secret("x", str(tmp_path / "link"))


MISSING: list[tuple[str, str, dict[str, Any]]] = [
    ("sqlalchemy", "auth-sql", {"sql": {"url": "sqlite:///x"}}),
    ("jwt", "auth-jwt", {"jwt": {"algorithms": ["HS256"], "secret": "x" * 32}}),
    ("httpx", "auth-http", {"http": {"url": "https://example.org/"}}),
    ("ldap3", "auth-ldap", {"ldap": {"url": "ldaps://x", "user_dn": "uid=%u"}}),
]


@pytest.mark.parametrize(("module", "extra", "auth"), MISSING, ids=[row[1] for row in MISSING])
def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, module: str, extra: str, auth: dict[str, Any]) -> None:
    import builtins

    real: Callable[..., Any] = builtins.__import__

    def without(name: str, *rest: Any, **keys: Any) -> Any:
        if name.partition(".")[0] == module:
            raise ImportError(f"No module named {name!r}", name=name)
        return real(name, *rest, **keys)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=rf"mqttc\[{extra}\]"):
        ChainAuthenticator(Config.of({"auth": auth}))
