"""Tokens as passwords and as Authentication Data, by keys of a file and of a URL."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from mqttc.auth import tokens
from mqttc.auth.grant import Grant, Rule
from mqttc.auth.source import Answer, Outcome
from mqttc.auth.tokens import TokenSource
from mqttc.config import ConfigError
from mqttc.config_auth import Jwt
from tests.auth.conftest import Make, ask, attempt
from tests.auth.web import WebServer
from tests.broker.conftest import eventually, name
from tests.rawclient import AUTH, AUTH_DATA, AUTH_METHOD, CONNACK, DISCONNECT, connect_packet, packet, properties

SECRET = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
KEYS: dict[str, Any] = {
    "RS256": rsa.generate_private_key(65537, 2048),
    "ES256": ec.generate_private_key(ec.SECP256R1()),
    "EdDSA": ed25519.Ed25519PrivateKey.generate(),
}


def token(
    algorithm: str = "HS256", key: Any = SECRET, headers: dict[str, Any] | None = None, lasts: float | None = 60, **claims: Any
) -> bytes:
    full = {"sub": "alice", **({} if lasts is None else {"exp": time.time() + lasts}), **claims}
    return jwt.encode({name: value for name, value in full.items() if value is not None}, key, algorithm, headers).encode()


def decide(section: Jwt, *passwords: bytes | None, **keys: Any) -> list[Outcome]:
    async def run() -> list[Outcome]:
        source = TokenSource(section)
        await source.start()
        try:
            return [await source.decide(ask("u", password, **keys), {}) for password in passwords]
        finally:
            await source.close()

    return asyncio.run(run())


def one(section: dict[str, Any], password: bytes, **keys: Any) -> Outcome:
    return decide(Jwt(**{"algorithms": ["HS256"], "secret": SECRET, **section}), password, **keys)[0]


def public(algorithm: str, path: Path) -> str:
    path.write_bytes(KEYS[algorithm].public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return str(path)


@pytest.mark.parametrize("algorithm", ["HS256", "HS512"])
def test_secrets(algorithm: str, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(SECRET + "\n")
    section = {"algorithms": [algorithm], "secret": "", "secret_file": str(tmp_path / "secret")}
    outcome = one(section, token(algorithm))
    assert (outcome.answer, outcome.username) == (Answer.ALLOW, "alice")
    assert one(section, token(algorithm, SECRET + "x")).answer is Answer.DENY


@pytest.mark.parametrize("algorithm", KEYS)
def test_public_keys(algorithm: str, tmp_path: Path) -> None:
    section = {"algorithms": [algorithm], "secret": "", "key_file": public(algorithm, tmp_path / "key.pem")}
    assert one(section, token(algorithm, KEYS[algorithm])).answer is Answer.ALLOW
    for other in KEYS:
        if other != algorithm:
            assert one(section, token(other, KEYS[other])).answer is Answer.DENY
    assert one(section, token("HS256", SECRET)).answer is Answer.DENY


def test_no_other_algorithm(tmp_path: Path) -> None:
    """Neither none, nor one that is not listed, nor a public key used as a secret."""
    path = public("RS256", tmp_path / "key.pem")
    section = {"algorithms": ["RS256"], "secret": "", "key_file": path}
    assert one(section, token("none", None)).answer is Answer.DENY
    import base64
    import hashlib
    import hmac

    def b64(data: bytes) -> bytes:
        return base64.urlsafe_b64encode(data).rstrip(b"=")

    head = b64(b'{"alg":"HS256","typ":"JWT"}') + b"." + b64(json.dumps({"sub": "a", "exp": time.time() + 60}).encode())
    forged = head + b"." + b64(hmac.digest(Path(path).read_bytes(), head, hashlib.sha256))
    assert one(section, forged).answer is Answer.DENY
    assert one({"algorithms": ["HS384"]}, token("HS256")).answer is Answer.DENY


def test_a_certificate_has_its_key(tmp_path: Path) -> None:
    from mqttc import certs

    certs.make_authority(tmp_path)
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    key = load_pem_private_key((tmp_path / "ca.key").read_bytes(), None)
    section = {"algorithms": ["ES256"], "secret": "", "key_file": str(tmp_path / "ca.pem")}
    assert one(section, token("ES256", key)).answer is Answer.ALLOW


@pytest.mark.parametrize(
    ("section", "claims", "good"),
    [
        ({}, {"lasts": -1}, False), ({"leeway": 5.0}, {"lasts": -1}, True), ({}, {"lasts": None}, False),
        ({"require_expiry": False}, {"lasts": None}, True), ({}, {"nbf": 4102444800}, False), ({}, {"exp": "soon"}, False),
        ({"issuer": ["me"]}, {"iss": "me"}, True), ({"issuer": ["me", "you"]}, {"iss": "you"}, True),
        ({"issuer": ["me"]}, {"iss": "you"}, False),
        ({"issuer": ["me"]}, {}, False), ({"audience": ["mqtt"]}, {"aud": "mqtt"}, True),
        ({"audience": ["mqtt"]}, {"aud": ["x", "mqtt"]}, True),
        ({"audience": ["mqtt"]}, {"aud": "x"}, False), ({"audience": ["mqtt"]}, {}, False), ({}, {"aud": "x"}, False),
        ({}, {"sub": None}, False), ({}, {"sub": ""}, False), ({}, {"sub": "a\0"}, False),
        ({"user_claim": "user.name"}, {"user": {"name": "x"}}, True), ({"user_claim": "user.name"}, {"user.name": "x"}, True),
        ({"user_claim": "user.name"}, {"user": "x"}, False), ({"user_claim": "id"}, {"id": 5}, False),
        ({"client_id_claim": "cid"}, {"cid": "c"}, True), ({"client_id_claim": "cid"}, {"cid": "d"}, False),
        ({"client_id_claim": "cid"}, {}, False),
        ({"match_username": True}, {"sub": "u"}, True), ({"match_username": True}, {"sub": "v"}, False),
    ],
)  # fmt: skip
def test_claims(section: dict[str, Any], claims: dict[str, Any], good: bool) -> None:
    assert one(section, token(**claims)).answer is (Answer.ALLOW if good else Answer.DENY)


@pytest.mark.parametrize("password", [b"", b"plain", b"a.b", b"a.b.c.d"])
def test_what_is_no_token_is_for_others(password: bytes) -> None:
    assert one({}, password).answer is Answer.IGNORE


@pytest.mark.parametrize("password", [b"a.b.c", b"..", b"\xff.\xff.\xff", token()[:-2] + b"xx", token().replace(b".", b"..", 1)[:-1]])
def test_broken_tokens(password: bytes) -> None:
    assert one({}, password).answer in (Answer.DENY, Answer.IGNORE)
    assert one({}, b".." + b"a" * 20_000).answer is Answer.IGNORE


def test_what_the_library_would_let_through() -> None:
    """Dates that are no numbers, extensions that must be understood, user names that CONNECT cannot have, rules on what is no filter."""
    for claims in ({"exp": "4102444800"}, {"nbf": "1"}, {"iat": True}, {"sub": "\ud800"}, {"acl": {"publish": ["a/#/b"]}}):
        assert one({"acl_claim": "acl"} if "acl" in claims else {}, token(**claims)).answer is Answer.DENY, claims
    assert one({}, token(headers={"crit": ["x"], "x": 1})).answer is Answer.DENY


@pytest.mark.parametrize("version", [4, 5])
def test_a_token_that_never_ends_in_practice(make: Make, version: int) -> None:
    """The year 9999, or milliseconds where seconds are meant: as good as for ever."""
    bench = make({"jwt": {"algorithms": ["HS256"], "secret": SECRET}})
    for ends in (253_402_300_799, 4_102_444_800_000, 1e300):
        bench(version, username="a", password=token(exp=ends)).ping()


def test_ends_and_rules() -> None:
    now = time.time()
    outcome = one({"acl_claim": "mqtt.acl"}, token(lasts=50, mqtt={"acl": {"publish": ["a/#"]}}))
    assert outcome.expires is not None and 49 < outcome.expires - now < 51
    assert outcome.keep is not None and outcome.keep < 51
    assert outcome.grant == Grant([Rule(True, ("publish",), ("a/#",))], "deny")
    assert one({"acl_claim": "acl"}, token()).grant == Grant([], "deny")  # nothing is said to be allowed
    assert one({"acl_claim": "acl"}, token(acl="x")).answer is Answer.DENY
    assert one({"end_at_expiry": False}, token()).expires is None


@pytest.mark.parametrize(
    ("section", "told"),
    [
        ({"algorithms": ["HS256"], "secret": "short"}, "the secret has 5 bytes"),
        ({"algorithms": ["RS256"], "key_file": "missing.pem"}, "No such file"),
        ({"algorithms": ["RS256"], "key_file": "ec"}, "is no key for RS256"),
        ({"algorithms": ["ES256", "PS256"], "key_file": "weak"}, "no key for ES256"),
        ({"algorithms": ["PS256"], "key_file": "weak"}, "it has 1024 bits, RFC 7518 section 3.3 asks for 2048"),
        ({"algorithms": ["ES256"], "key_file": "private"}, "private key"),
        ({"algorithms": ["HS256"], "secret_file": "empty"}, "is empty"),
    ],
)
def test_keys_that_cannot_be_used(section: dict[str, Any], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    public("ES256", Path("ec"))
    Path("private").write_bytes(KEYS["ES256"].private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    weak = rsa.generate_private_key(65537, 1024).public_key()
    Path("weak").write_bytes(weak.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    Path("empty").touch()
    with pytest.raises(ConfigError, match=told):
        TokenSource(Jwt(**section))


def test_a_key_file_is_read_again(make: Make, tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text(SECRET)
    bench = make({"jwt": {"algorithms": ["HS256"], "secret_file": str(path)}})
    mine, other = token(), token(key="x" * 40)
    assert (attempt(bench, "a", mine).reason, attempt(bench, "a", other).reason) == (0, 0x86)
    path.write_text("x" * 40)
    bench.events.wait("auth_loaded")
    assert (attempt(bench, "a", mine).reason, attempt(bench, "a", other).reason) == (0x86, 0)


@pytest.mark.parametrize("version", [4, 5])
def test_the_connection_ends_with_the_token(make: Make, version: int) -> None:
    bench = make({"jwt": {"algorithms": ["HS256"], "secret": SECRET}})
    peer = bench(version, username="a", password=token(lasts=100))
    again = bench(version, username="a", password=token(lasts=200))
    bench.native.advance_clock(98)
    peer.ping()
    bench.native.advance_clock(3)
    assert [one.reason for one in peer.expect_close()] == ([0xA0] if version == 5 else [])
    again.ping()


def auth_packet(reason: int, data: bytes) -> bytes:
    return packet(AUTH << 4, bytes([reason]) + properties([(AUTH_METHOD, "JWT"), (AUTH_DATA, data)]))


def test_authentication_data_and_renewal(make: Make) -> None:
    """A client renews its token by a re-authentication, for the same user, and stays."""
    bench = make({"jwt": {"algorithms": ["HS256"], "secret": SECRET}})
    peer = bench.raw(5)
    peer.send(connect_packet("c", 5, props=((AUTH_METHOD, "JWT"), (AUTH_DATA, token(lasts=100)))))
    assert peer.expect(CONNACK, reason=0).prop(AUTH_METHOD) == "JWT"
    bench.native.advance_clock(90)
    peer.send(auth_packet(0x19, token(lasts=500)))
    peer.expect(AUTH, reason=0)
    bench.native.advance_clock(400)
    peer.ping()
    peer.send(auth_packet(0x19, token(sub="mallory")))
    assert [(one.type, one.reason) for one in peer.expect_close()] == [(DISCONNECT, 0x87)]
    late = bench.raw(5)  # asks to be asked
    late.send(connect_packet(name(), 5, props=((AUTH_METHOD, "JWT"),)))
    late.expect(AUTH, reason=0x18)
    late.send(auth_packet(0x18, b"a.b.c"))
    assert late.expect(CONNACK).reason == 0x87


# ---------------------------------------------------------------------------------- key sets


class Issuer:
    """Keys by their names, as a key set of a web server."""

    def __init__(self) -> None:
        self.keys: dict[str | None, str] = {"one": "RS256", "two": "ES256"}
        self.status = 200
        self.extra: list[Any] = [{"kty": "oct", "kid": "secret", "k": "AAAA"}, {"kty": "new"}, 5]
        self.body: bytes | None = None
        self.server = WebServer(lambda *_: (self.status, {}, self.set() if self.body is None else self.body))

    def set(self) -> bytes:
        made = []
        for kid, algorithm in self.keys.items():
            jwk = json.loads(jwt.get_algorithm_by_name(algorithm).to_jwk(KEYS[algorithm].public_key()))
            made.append({**jwk, **({} if kid is None else {"kid": kid})})
        return json.dumps({"keys": [*made, *self.extra]}).encode()


@pytest.fixture
def issuer(monkeypatch: pytest.MonkeyPatch) -> Iterator[Issuer]:
    monkeypatch.setattr(tokens, "SOONEST_REFRESH_S", 0.15)
    made = Issuer()
    yield made
    made.server.stop()


def of(kid: str | None, algorithm: str, **claims: Any) -> bytes:
    return token(algorithm, KEYS[algorithm], {} if kid is None else {"kid": kid}, **claims)


@pytest.fixture
def section(issuer: Issuer) -> Callable[..., Jwt]:
    return lambda **keys: Jwt(**{"algorithms": ["RS256", "ES256"], "jwks_url": issuer.server.url, **keys})


def test_key_sets(section: Callable[..., Jwt]) -> None:
    got = decide(
        section(), of("one", "RS256"), of("two", "ES256"), of("one", "ES256"), of("three", "RS256"), of(None, "RS256"),
        token("HS256", SECRET, {"kid": "secret"}),
    )  # fmt: skip
    assert [outcome.answer is Answer.ALLOW for outcome in got] == [True, True, False, False, False, False]


def test_keys_that_are_not_for_us(issuer: Issuer, section: Callable[..., Jwt]) -> None:
    """Private ones, weak ones, those for other algorithms or uses, and what is no key: each is passed over, and the others are used."""

    def jwk(key: Any, algorithm: str = "RS256") -> dict[str, Any]:
        return dict(json.loads(jwt.get_algorithm_by_name(algorithm).to_jwk(key)))

    weak = rsa.generate_private_key(65537, 1024)
    public = jwk(KEYS["RS256"].public_key())
    public.pop("key_ops", None)
    bad: list[dict[str, Any]] = [
        {**jwk(KEYS["RS256"]), "key_ops": ["verify"]}, jwk(weak.public_key()), {**public, "key_ops": ["sign"]}, {**public, "use": "enc"},
        {**public, "alg": []}, {**public, "n": 5}, {**public, "n": public["n"] + "{}"}, {**public, "e": ""}, {"kty": "RSA"},
    ]  # fmt: skip
    issuer.keys = {"good": "ES256"}
    issuer.extra = [{**item, "kid": f"bad-{number}"} for number, item in enumerate(bad)]
    issuer.extra += [{**public, "kid": []}, {**public, "kid": {}}, {**public, "kid": "other", "alg": "RS384"}, None]
    named = [of(f"bad-{number}", "RS256") for number in range(len(bad))]
    named[1] = token("RS256", weak, {"kid": "bad-1"})
    good, *others = decide(section(), of("good", "ES256"), *named, of("other", "RS256"))
    assert good.answer is Answer.ALLOW and {other.answer for other in others} == {Answer.DENY}
    issuer.extra = []
    issuer.body = b'{"keys":' + b"[" * 100_000
    assert decide(section(jwks_timeout=0.3), of("good", "ES256"))[0].answer is Answer.UNAVAILABLE


def test_the_only_key_need_not_be_named(issuer: Issuer, section: Callable[..., Jwt]) -> None:
    issuer.keys = {"one": "RS256"}
    assert decide(section(), of(None, "RS256"))[0].answer is Answer.ALLOW


def test_without_keys_nobody_is_refused_for_good(issuer: Issuer, section: Callable[..., Jwt]) -> None:
    issuer.status = 500
    assert decide(section(jwks_timeout=0.3), of("one", "RS256"))[0].answer is Answer.UNAVAILABLE
    issuer.status, issuer.body = 200, b"{" + b" " * 2_000_000
    assert decide(section(jwks_timeout=0.3), of("one", "RS256"))[0].answer is Answer.UNAVAILABLE


def test_new_keys_are_fetched_when_a_token_names_one(issuer: Issuer, section: Callable[..., Jwt]) -> None:
    """And the last good ones are kept while that fails; however many tokens name others, requests are few."""

    async def run() -> None:
        source = TokenSource(section())
        await source.start()

        async def good(kid: str, algorithm: str) -> bool:
            return (await source.decide(ask("u", of(kid, algorithm)), {})).answer is Answer.ALLOW

        assert await good("one", "RS256")
        issuer.keys = {"new": "ES256"}
        deadline = time.monotonic() + 5
        while not await good("new", "ES256"):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)
        assert not await good("one", "RS256")
        issuer.status = 500
        before = len(issuer.server.requests)
        while len(issuer.server.requests) < before + 2:
            assert not any(await asyncio.gather(*(good(f"x{number}", "RS256") for number in range(50))))
            assert time.monotonic() < deadline
        assert await good("new", "ES256")
        assert source.stats()["auth_jwks_failures"] >= 1
        await source.close()

    started = time.monotonic()
    asyncio.run(run())
    assert len(issuer.server.requests) <= 3 + (time.monotonic() - started) / 0.15


def test_a_broker_with_a_key_set_that_comes_late(issuer: Issuer, make: Make) -> None:
    issuer.status = 500
    bench = make({"jwt": {"algorithms": ["RS256"], "jwks_url": issuer.server.url, "jwks_timeout": 0.2}})
    assert attempt(bench, "a", of("one", "RS256")).reason == 0x88
    assert attempt(bench, "a", of("one", "RS256"), 4).reason == 3
    issuer.status = 200
    eventually(lambda: bench.stat("auth_jwks_loads") == 1)
    assert attempt(bench, "a", of("one", "RS256")).reason == 0
