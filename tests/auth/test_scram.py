"""SCRAM-SHA-256 over AUTH packets: with another implementation's client, step by step, and what is refused."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
from pathlib import Path
from typing import Any

import pytest
import scramp

from mqttc.auth.hashing import Hash, make_hash, make_scram, parse_hash
from mqttc.auth.scram import METHOD, Find, ScramSource
from mqttc.auth.source import Answer, Outcome
from mqttc.config_auth import Scram
from tests.auth.conftest import ALICE, BOB, Make, ask, attempt
from tests.broker.conftest import Bench, name
from tests.rawclient import AUTH, AUTH_DATA, AUTH_METHOD, CONNACK, DISCONNECT, Packet, Peer, connect_packet, packet, properties

USERS = {"user": make_scram(b"pencil"), "plain": make_hash(b"pencil"), "a,b=c": make_scram(b"x"), "IX": make_scram("\u2168".encode())}


def auth_packet(reason: int, data: str, method: str = METHOD) -> bytes:
    return packet(AUTH << 4, bytes([reason]) + properties([(AUTH_METHOD, method), (AUTH_DATA, data.encode())]))


class Exchange:
    """One, without a network: `first(data)`, then `last(data)`."""

    def __init__(self, find: Find | None = None) -> None:
        self.source = ScramSource(Scram(), find or (lambda user: (parse_hash(USERS[user]), ()) if user in USERS else None))
        self.state: dict[str, Any] = {}

    def __call__(self, data: str | None, *, is_auth: bool = False, username: str | None = None) -> Outcome:
        keys = {"auth_method": METHOD, "auth_data": None if data is None else data.encode(), "is_auth": is_auth}
        return asyncio.run(self.source.decide(ask(username, None, **keys), self.state))


def answer_to(first: str, server_first: str, password: bytes, nonce: str | None = None, channel: str = "biws", tail: str = "") -> str:
    """The client's last message, by RFC 5802 section 3."""
    fields = dict(field.split("=", 1) for field in server_first.split(","))
    without = f"c={channel},r={nonce or fields['r']}{tail}"
    salted = hashlib.pbkdf2_hmac("sha256", password, base64.b64decode(fields["s"]), int(fields["i"]))
    key = hmac.digest(salted, b"Client Key", "sha256")
    message = f"{first.removeprefix('n,,').removeprefix('y,,')},{server_first},{without}".encode()
    proof = bytes(a ^ b for a, b in zip(key, hmac.digest(hashlib.sha256(key).digest(), message, "sha256"), strict=True))
    return f"{without},p={base64.b64encode(proof).decode()}"


def test_the_example_of_rfc_7677() -> None:
    """Section 3, with its salt; the server's nonce is its own, so only what does not depend on it is compared."""
    salt = base64.b64decode("W22ZaJ0SNY7soEsUEjb6gQ==")
    from mqttc.auth.hashing import Scram as Verifier
    from mqttc.auth.hashing import scram_verifier

    verifier = scram_verifier(b"pencil", salt, 4096)
    assert verifier is not None and isinstance(verifier, Verifier)
    message = (
        b"n=user,r=rOprNGfwEbeRWgbNEkqO,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096,"
        b"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0"
    )
    signature = hmac.digest(verifier.stored_key, message, "sha256")
    proof = base64.b64decode("dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=")
    key = bytes(a ^ b for a, b in zip(proof, signature, strict=True))
    assert hashlib.sha256(key).digest() == verifier.stored_key
    assert base64.b64encode(hmac.digest(verifier.server_key, message, "sha256")) == b"6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="


@pytest.mark.parametrize(
    ("first", "password", "user"),
    [("n,,n=user,r=abc", b"pencil", "user"), ("y,,n=user,r=abc", b"pencil", "user"), ("n,,n=a=2Cb=3Dc,r=abc", b"x", "a,b=c"),
     ("n,,n=\u2168,r=abc", b"IX", "IX"), ("n,,n=user,r=abc,x=unknown extension", b"pencil", "user")],
)  # fmt: skip
def test_it_is_good(first: str, password: bytes, user: str) -> None:
    exchange = Exchange()
    asked = exchange(first)
    assert asked.answer is Answer.CONTINUE and asked.data is not None
    channel = base64.b64encode(first[:3].encode()).decode()
    done = exchange(answer_to(first, asked.data.decode(), password, channel=channel), is_auth=True)
    assert (done.answer, done.username) == (Answer.ALLOW, user)


@pytest.mark.parametrize(
    "first",
    [
        "", "n", "n,,", "n,,n=user", "n,,r=abc", "n,,n=,r=abc", "n,,n=user,r=", "p=tls-unique,,n=user,r=abc", "n,a=other,n=user,r=abc",
        "x,,n=user,r=abc", "n,,m=ext,n=user,r=abc", "n,,n=us=er,r=abc", "n,,n=us=2cer,r=abc", "n,,r=abc,n=user", "n,,n=\u0007,r=abc",
        "n,,n=user,r=abc,m=must", "n,,n=user,r=" + "a" * 5000,
    ],
)  # fmt: skip
def test_first_messages_that_are_none(first: str) -> None:
    exchange = Exchange()
    assert exchange(first).answer is Answer.DENY
    assert exchange.state == {}


@pytest.mark.parametrize(
    "change",
    [
        {"password": b"pen"}, {"nonce": "abc"}, {"nonce": "abcother"}, {"channel": "eSws"}, {"channel": "!"}, {"tail": ",m=x"},
    ],
)  # fmt: skip
def test_last_messages_that_are_wrong(change: dict[str, Any]) -> None:
    exchange = Exchange()
    data = exchange("n,,n=user,r=abc").data
    assert data is not None
    wrong = answer_to("n,,n=user,r=abc", data.decode(), **{"password": b"pencil", **change})
    assert exchange(wrong, is_auth=True).answer is Answer.DENY


@pytest.mark.parametrize("last", ["", "c=biws", "c=biws,r=x,p=", "c=biws,r=x,p=!", "p=AAAA", "c=biws,r=x,p=AAAA", "n,,n=user,r=abc"])
def test_last_messages_that_are_none(last: str) -> None:
    exchange = Exchange()
    exchange("n,,n=user,r=abc")
    assert exchange(last, is_auth=True).answer is Answer.DENY


def test_a_proof_that_is_not_ascii() -> None:
    exchange = Exchange()
    data = exchange("n,,n=user,r=abc").data
    assert data is not None
    nonce = data.decode().partition(",")[0]
    assert exchange(f"c=biws,{nonce},p=\u00e9", is_auth=True).answer is Answer.DENY


def test_who_is_not_there_looks_like_who_is() -> None:
    """The same salt and cost each time; a user whose entry is no verifier too; the proof is looked at, and never good."""
    exchange = Exchange()
    for user in ("nobody", "plain"):
        first = f"n,,n={user},r=abc"
        told = []
        for _ in range(2):
            exchange.state.clear()
            data = exchange(first).data
            assert data is not None
            told.append(dict(field.split("=", 1) for field in data.decode().split(",")))
        assert told[0]["s"] == told[1]["s"] and told[0]["i"] == "4096" and told[0]["r"] != told[1]["r"]
        assert len(base64.b64decode(told[0]["s"])) == 16
        assert exchange(answer_to(first, data.decode(), b"pencil"), is_auth=True).answer is Answer.DENY
    assert Exchange()("n,,n=nobody,r=abc").data != exchange("n,,n=nobody,r=abc").data


def test_the_name_of_connect_is_the_same_or_none() -> None:
    assert Exchange()("n,,n=user,r=abc", username="user").answer is Answer.CONTINUE
    assert Exchange()("n,,n=user,r=abc", username="other").answer is Answer.DENY
    assert Exchange()("n,,n=user,r=abc", username="other", is_auth=True).answer is Answer.DENY  # it waited to be asked


def test_users_that_cannot_be_looked_up() -> None:
    def find(_: str) -> Hash | None:
        raise OSError("away")

    assert Exchange(find)("n,,n=user,r=abc").answer is Answer.UNAVAILABLE


# ---------------------------------------------------------------------------------- over the network


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "users"
    path.write_text(f"alice:{make_scram(ALICE)}\nbob:{make_scram(BOB, 5000)}\nplain:{make_hash(ALICE)}\n")
    return path


def through(peer: Peer, user: str, password: bytes, client_id: str | None = None, again: bool = False) -> tuple[Packet, scramp.ScramClient]:
    """Another implementation's client goes through it; the packet that ends it."""
    client = scramp.ScramClient(["SCRAM-SHA-256"], user, password.decode())
    first = client.get_client_first()
    if again:
        peer.send(auth_packet(0x19, first))
    else:
        peer.send(connect_packet(client_id or name(), 5, props=((AUTH_METHOD, METHOD), (AUTH_DATA, first.encode()))))
    asked = peer.expect(AUTH, reason=0x18)
    client.set_server_first(asked.prop(AUTH_DATA).decode())
    peer.send(auth_packet(0x18, client.get_client_final()))
    return peer.recv(), client


@pytest.mark.parametrize("workers", [1, 4])
def test_another_implementation(make: Make, file: Path, workers: int) -> None:
    """The server proves itself too; over and over on the living connection."""
    bench = make({"password_file": str(file), "scram": {}}, workers=workers)
    for user, password in (("alice", ALICE), ("bob", BOB)) * 3:
        peer = bench.raw(5)
        end, client = through(peer, user, password)
        assert (end.type, end.reason) == (CONNACK, 0)
        client.set_server_final(end.prop(AUTH_DATA).decode())
        for _ in range(2):
            end, client = through(peer, user, password, again=True)
            assert (end.type, end.reason) == (AUTH, 0)
            client.set_server_final(end.prop(AUTH_DATA).decode())
        peer.ping()


def test_refusals(make: Make, file: Path) -> None:
    bench = make({"password_file": str(file), "scram": {}})
    for user, password in (("alice", BOB), ("nobody", ALICE), ("plain", ALICE)):
        peer = bench.raw(5)
        assert through(peer, user, password)[0].reason == 0x86
        peer.expect_close()
    peer = bench.raw(5)
    peer.send(connect_packet(name(), 5, props=((AUTH_METHOD, "SCRAM-SHA-1"),)))
    assert [(one.type, one.reason) for one in peer.expect_close()] == [(CONNACK, 0x8C)]
    assert attempt(bench, "alice", ALICE).reason == 0  # passwords are good beside it


def test_a_session_does_not_change_hands(make: Make, file: Path) -> None:
    """A re-authentication as somebody else, or with a wrong password, ends the connection."""
    bench = make({"password_file": str(file), "scram": {}})
    for user, password in (("bob", BOB), ("alice", BOB)):
        peer = bench.raw(5)
        through(peer, "alice", ALICE)
        end, _ = through(peer, user, password, again=True)
        assert (end.type, end.reason) == (DISCONNECT, 0x87)
        peer.expect_close()


def test_passwords_can_be_left_out(make: Make, file: Path) -> None:
    """A chain of SCRAM alone admits nobody by a password that crosses the network."""
    bench = make({"password_file": str(file), "scram": {}, "chain": "scram"})
    assert attempt(bench, "alice", ALICE).reason == 0x86
    assert through(bench.raw(5), "alice", ALICE)[0].reason == 0


def test_the_client_may_wait_to_be_asked(make: Make, file: Path) -> None:
    bench = make({"password_file": str(file), "scram": {}})
    peer = bench.raw(5)
    peer.send(connect_packet(name(), 5, props=((AUTH_METHOD, METHOD),)))
    asked = peer.expect(AUTH, reason=0x18)
    assert asked.prop(AUTH_DATA) is None
    client = scramp.ScramClient(["SCRAM-SHA-256"], "alice", ALICE.decode())
    peer.send(auth_packet(0x18, client.get_client_first()))
    client.set_server_first(peer.expect(AUTH, reason=0x18).prop(AUTH_DATA).decode())
    peer.send(auth_packet(0x18, client.get_client_final()))
    client.set_server_final(peer.expect(CONNACK, reason=0).prop(AUTH_DATA).decode())


def test_exchanges_do_not_mix(make: Make, file: Path) -> None:
    """Many at a time, their steps interleaved."""
    bench = make({"password_file": str(file), "scram": {}})
    clients = [
        (bench.raw(5), scramp.ScramClient(["SCRAM-SHA-256"], *who)) for who in (("alice", ALICE.decode()), ("bob", BOB.decode())) * 10
    ]
    for peer, client in clients:
        data = client.get_client_first().encode()
        peer.send(connect_packet(name(), 5, props=((AUTH_METHOD, METHOD), (AUTH_DATA, data))))
    for peer, client in clients:
        client.set_server_first(peer.expect(AUTH, reason=0x18).prop(AUTH_DATA).decode())
    for peer, client in reversed(clients):
        peer.send(auth_packet(0x18, client.get_client_final()))
    for peer, client in clients:
        client.set_server_final(peer.expect(CONNACK, reason=0).prop(AUTH_DATA).decode())


def test_failures_are_limited(make: Make, file: Path) -> None:
    bench = make({"password_file": str(file), "scram": {}, "failures": {"per_address": 3, "per_user": 0}})
    for _ in range(3):
        assert through(bench.raw(5), "alice", BOB)[0].reason == 0x86
    peer = bench.raw(5)
    peer.send(connect_packet(name(), 5, props=((AUTH_METHOD, METHOD),)))
    assert peer.expect(CONNACK).reason == 0x9F
    assert attempt(bench, "alice", ALICE, 4).reason == 3
    told = bench.events.wait("auth_limited")
    assert told["by"] == "address"


def test_from_a_database(make: Make, tmp_path: Path) -> None:
    import sqlite3

    path = tmp_path / "users.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE users (username TEXT PRIMARY KEY, password_hash TEXT)")
        connection.execute("INSERT INTO users VALUES (?, ?)", ("alice", make_scram(ALICE)))
    connection.close()
    bench: Bench = make({"sql": {"url": f"sqlite:///{path}"}, "scram": {"users": "sql"}})
    assert through(bench.raw(5), "alice", ALICE)[0].reason == 0
    assert through(bench.raw(5), "bob", ALICE)[0].reason == 0x86
    path.unlink()
    gone = bench.raw(5)
    gone.send(connect_packet(name(), 5, props=((AUTH_METHOD, METHOD), (AUTH_DATA, b"n,,n=alice,r=x"))))
    gone.recv()
