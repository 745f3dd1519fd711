"""Fuzz targets of who may come in and what he may do: password files, SCRAM, ACL files, tokens, and the key sets of their issuers."""

from __future__ import annotations

import base64
import functools
import hmac
import itertools
import re
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import replace
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from mqttc.auth import Request
from mqttc.auth.acl import AclFile, AclTable, Explanation, Who, compile_grant
from mqttc.auth.grant import ACTIONS, Action, Grant
from mqttc.auth.hashing import Hash, Scram
from mqttc.auth.passwords import parse_users
from mqttc.auth.scram import ScramSource
from mqttc.auth.source import Answer, Outcome
from mqttc.auth.tokens import KeySetError, TokenSource, parse_key_set
from mqttc.config import ConfigError
from mqttc.config_auth import Jwt
from mqttc.config_auth import Scram as ScramSection
from tests.acl import reference as acl_reference
from tests.auth import reference as token_reference
from tests.fuzz.workplace import folder

_PEER = "192.0.2.9:5000"


def _at_once(turn: Coroutine[Any, Any, Outcome]) -> Outcome:
    """Of what need not wait for anything."""
    try:
        turn.send(None)
    except StopIteration as end:
        assert isinstance(end.value, Outcome)
        return end.value
    raise AssertionError("it waits for something")


# ------------------------------------------------------------------------------------------- passwords and SCRAM


def fuzz_passwords(data: bytes) -> None:
    """A password file."""
    try:
        users = parse_users("users", data, 65536)
    except ConfigError as error:
        assert "\n" not in str(error), ascii(str(error))
        return
    for name, hashed in users.items():
        assert ":" not in name and hashed.text.isascii(), f"{name}: {hashed.text!a}"
        assert hashed.text not in repr(hashed), "the hash is shown"
        if hashed.kind[0] == "sha512":  # the only one that costs nothing
            assert not hashed.verify(b"wrong")


_SALT = b"0123456789abcdef"


def fuzz_scram(data: bytes) -> None:
    """What a client says, in messages that NUL parts; it does not know the password."""
    verifier = Hash(("scram", 1), "", scram=Scram(1, _SALT, bytes(32), bytes(32)))
    source = ScramSource(ScramSection(), lambda name: (verifier, ()) if name == "user" else None)
    state: dict[str, Any] = {}
    for number, message in enumerate(data.split(b"\0")[:4]):
        exchange = state.get("scram")
        if exchange is not None:  # our part of the nonce is not to be guessed
            message = message.replace(b"NONCE", exchange.nonce.encode())
        request = Request("c", _PEER, False, 5, is_auth=number > 0, auth_method="SCRAM-SHA-256", auth_data=message)
        outcome = _at_once(source.decide(request, state))
        assert outcome.answer in (Answer.DENY, Answer.CONTINUE), outcome
        if outcome.answer is Answer.DENY:
            return


# ----------------------------------------------------------------------------------------------------- rules

_LISTENERS = {"main": [0], "other": [1, 2]}
_QUESTIONS = 6


def _line(who: Who, allow: bool = True, actions: list[Action] | None = None, topics: list[str] | None = None) -> acl_reference.Line:
    return acl_reference.Line(
        allow, actions or [], topics or [], who.users, who.groups, bool(who.anonymous), clients=who.clients, listeners=who.listeners
    )


def _reference_of(model: AclFile) -> acl_reference.File:
    owners = [(owner.client_ids, _line(owner)) for owner in model.owners]
    if model.client_ids is not None:
        owners.append((model.client_ids, acl_reference.Line(True, [], [])))
    return acl_reference.File(
        model.default == "allow",
        [_line(rule, rule.allow is not None, rule.allow or rule.deny, rule.topics) for rule in model.rules],
        model.groups,
        [*model.superusers, *(user for group in model.superuser_groups for user in model.groups[group])],
        owners,
    )


def _expected(file: acl_reference.File, client: acl_reference.Client, action: Action, topic: str) -> bool:
    if client.client_id and not acl_reference.may_use(file, client):
        return False
    _, _, bare = topic.split("/", 2) if action == "subscribe" and topic.startswith("$share/") else ("", "", topic)
    needed: list[str] = ["publish", action] if action == "retain" else [action]
    return all(acl_reference.decide(file, client, one, bare) for one in needed) and (
        bare == topic or acl_reference.decide(file, client, "receive", bare, whole=True)
    )


def _check_rule(file: acl_reference.File, client: acl_reference.Client, topic: str, told: Explanation) -> None:
    """The rule that is named is one that says so, and about this client."""
    number = int(re.findall(r": rule (\d+): ", told.rule)[-1]) - 1
    only = replace(file, default=not told.allowed, rules=[file.rules[number]], superusers=(), owners=())
    bare = topic.split("/", 2)[-1] if topic.startswith("$share/") else topic
    asked = itertools.product(ACTIONS, (False, True))
    assert any(acl_reference.decide(only, client, action, bare, whole) == told.allowed for action, whole in asked), told


def fuzz_acl(data: bytes) -> None:
    """An ACL file; behind a NUL questions, one a line: action, topic, client id, user name (`-`: none) and listener, with tabs between."""
    text, _, rest = data.partition(b"\0")
    path = folder() / "acl.toml"
    path.write_bytes(text)
    try:
        table = AclTable.load(path)
        table.compile(_LISTENERS)
    except ConfigError as error:
        told = [str(problem) for problem in error.problems]
        assert told and all(one.startswith(str(path)) and "\n" not in one for one in told), told
        return
    file = _reference_of(table.model)
    for line in rest.decode("utf-8", "replace").split("\n")[:_QUESTIONS]:
        asked, topic, client_id, name, listener = [*line.split("\t"), "", "", "", ""][:5]
        client = acl_reference.Client(client_id, None if name == "-" else name, listener if listener in _LISTENERS else "main")
        actions: tuple[Action, ...] = tuple(action for action in ACTIONS if action == asked) or ACTIONS
        for action in actions:
            try:
                told_by = table.explain(
                    action, topic, client_id=client_id, username=client.username, listener=client.listener, listeners=_LISTENERS
                )
            except ValueError as error:
                assert topic == "" or any(sign in topic for sign in "+#$\0"), error
                continue
            assert told_by.allowed == _expected(file, client, action, topic), f"{client} {action} {topic!r}: {told_by}"
            if told_by.by == "rule":
                _check_rule(file, client, topic, told_by)


# ---------------------------------------------------------------------------------------------------- tokens

_SECRET = b"0123456789abcdef" * 4
_Sign = Callable[[bytes], bytes]


@functools.cache
def _rsa() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


@functools.cache
def _ec() -> ec.EllipticCurvePrivateKey:
    return ec.derive_private_key(0x1234567, ec.SECP256R1())


@functools.cache
def _ed() -> ed25519.Ed25519PrivateKey:
    return ed25519.Ed25519PrivateKey.from_private_bytes(bytes(range(32)))


@functools.cache
def _pem(key: Any) -> bytes:
    made: bytes = key().public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return made


def _sign_ec(data: bytes) -> bytes:
    r, s = decode_dss_signature(_ec().sign(data, ec.ECDSA(hashes.SHA256())))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


_SIGNERS: tuple[_Sign, ...] = (
    lambda data: hmac.digest(_SECRET, data, "sha256"),
    lambda data: hmac.digest(_SECRET, data, "sha512"),
    lambda data: _rsa().sign(data, padding.PKCS1v15(), hashes.SHA256()),
    lambda data: _rsa().sign(data, padding.PSS(padding.MGF1(hashes.SHA256()), 32), hashes.SHA256()),
    _sign_ec,
    lambda data: _ed().sign(data),
    lambda data: hmac.digest(_pem(_rsa), data, "sha256"),  # a public key taken for a secret
    lambda data: b"",
)


def _packed(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def _token(how: int, data: bytes) -> bytes:
    """Header and claims that a NUL parts, signed; or the token as it is."""
    if how >= len(_SIGNERS):
        return data
    header, _, claims = data.partition(b"\0")
    body = _packed(header) + b"." + _packed(claims)
    return body + b"." + _packed(_SIGNERS[how](body))


@functools.cache
def _sources() -> tuple[tuple[TokenSource, Jwt, Any], ...]:
    """Verifiers with their sections, and their keys for the reference."""
    made: list[tuple[TokenSource, Jwt, Any]] = []

    def add(key: Any, **values: Any) -> None:
        if not isinstance(key, bytes):
            path = folder() / f"key-{len(made)}.pem"
            path.write_bytes(_pem(key))
            values["key_file"] = str(path)
        section = Jwt(**values)
        made.append((TokenSource(section), section, key if isinstance(key, bytes) else key().public_key()))

    add(_SECRET, algorithms=["HS256", "HS512"], secret=_SECRET.decode())
    claims = {"acl_claim": "mqtt.acl", "client_id_claim": "cid", "leeway": 30.0}
    add(_rsa, algorithms=["RS256", "PS256"], issuer=["me", "you"], audience=["mqtt"], **claims)
    add(_ec, algorithms=["ES256"], user_claim="user.name", match_username=True)
    add(_ed, algorithms=["EdDSA"], require_expiry=False, acl_claim="acl", groups_claim="groups")
    return tuple(made)


def _check_token(source: TokenSource, section: Jwt, keys_for: token_reference.KeysFor, token: bytes) -> None:
    request = Request("c", _PEER, False, 5, username="user", password=token)
    outcome = _at_once(source.decide(request, {}))
    assert outcome.answer in (Answer.ALLOW, Answer.DENY, Answer.IGNORE), outcome
    if outcome.answer is not Answer.ALLOW:
        return
    user = token_reference.user_of(token, section, keys_for, client_id="c", username="user", now=time.time())
    assert user is not None and outcome.username == user, f"{token!r} was accepted for {outcome.username!r}, not {user!r}"
    compile_grant(replace(outcome.grant or Grant(), username=user))  # what the data plane is told
    assert outcome.expires is None or outcome.expires > time.time() - 60


def fuzz_jwt(data: bytes) -> None:
    """Which verifier, and who signs; then header and claims that a NUL parts, or a token that nobody signs."""
    if len(data) < 2:
        return
    source, section, key = _sources()[data[0] % 4]
    _check_token(source, section, lambda header: [key], _token(data[1] % 16, data[2:]))


class _Keys:
    """What a source has in place of a set that is fetched (`mqttc.auth.tokens.KeySet`)."""

    def __init__(self, keys: Mapping[str | None, Any]) -> None:
        self._keys = keys

    async def find(self, name: str | None) -> Any:
        return self._keys.get(name)


_SET = Jwt(algorithms=["RS256", "PS256", "ES256", "EdDSA"], jwks_url="https://localhost/keys", require_expiry=False)


def fuzz_key_set(data: bytes) -> None:
    """Who signs, a key set in which words stand for his keys, and behind a NUL header and claims as those of `jwt`."""
    if not data:
        return
    document, _, rest = data[1:].partition(b"\0")
    for word, value in _key_words().items():
        document = document.replace(word, value)
    try:
        keys = parse_key_set(document)
    except KeySetError as error:
        assert str(error).isprintable(), ascii(str(error))
        return
    assert keys
    listed = [item for item in token_reference.members(document) if isinstance(item, dict)]

    def keys_for(header: Mapping[str, Any]) -> list[Any]:
        meant = [item for item in listed if "kid" not in header or item.get("kid") == header["kid"]]
        keys = [token_reference.key_of(item) for item in meant if item.get("alg", header["alg"]) == header["alg"]]
        return [key for key in keys if key is not None]

    source = TokenSource(_SET)
    source._set = _Keys(keys)  # type: ignore[assignment]
    _check_token(source, _SET, keys_for, _token(data[0] % 16, rest))


@functools.cache
def _key_words() -> Mapping[bytes, bytes]:
    """Our keys by words, as they cannot stand in a corpus: one of them is another in each process."""
    numbers = _rsa().private_numbers()
    point = _ec().public_key().public_numbers()

    def number(value: int) -> bytes:
        return _packed(value.to_bytes((value.bit_length() + 7) // 8, "big"))

    return {
        b"RSA_N": number(numbers.public_numbers.n), b"RSA_D": number(numbers.d), b"RSA_P": number(numbers.p), b"RSA_Q": number(numbers.q),
        b"RSA_1": number(numbers.dmp1), b"RSA_2": number(numbers.dmq1), b"RSA_I": number(numbers.iqmp),
        b"EC_X": number(point.x), b"EC_Y": number(point.y), b"EC_D": _packed((0x1234567).to_bytes(32, "big")),
        b"ED_X": _packed(_ed().public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)), b"ED_D": _packed(bytes(range(32))),
    }  # fmt: skip


TARGETS: dict[str, Callable[[bytes], None]] = {
    "passwords": fuzz_passwords,
    "scram": fuzz_scram,
    "acl": fuzz_acl,
    "jwt": fuzz_jwt,
    "key_set": fuzz_key_set,
}
