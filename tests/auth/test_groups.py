"""Groups that authenticators find a client in: where each takes them from, and what the ACL file makes of them."""

from __future__ import annotations

import asyncio
import datetime
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from mqttc.auth import PeerIdentity, Request, Verdict
from mqttc.auth.callback import _outcome
from mqttc.auth.certificates import CertificateSource
from mqttc.auth.chain import AllOf, Node
from mqttc.auth.grant import MAXIMUM_GROUP_BYTES, MAXIMUM_GROUPS, Grant, Rule, with_groups
from mqttc.auth.hashing import make_hash, make_scram
from mqttc.auth.source import Answer, Outcome
from mqttc.config import ConfigError
from mqttc.config_auth import ClientCertificate, Ldap, Sql
from mqttc.hooks import HookClient, Hooks
from mqttc.server import Broker
from tests.auth.conftest import ALICE, Make, ask, attempt
from tests.auth.test_jwt import one, token
from tests.auth.test_sql import decide as decide_sql
from tests.auth.test_sql import postgres as postgres
from tests.conftest import broker_config, tcp_address
from tests.rawclient import AUTH, AUTH_DATA, AUTH_METHOD, Peer, connect_packet, packet, properties

RULES = """default = "deny"
superuser_groups = ["root"]
client_ids = ["*"]
[groups]
operators = ["olga"]
interns = []
root = []
[[rules]]
deny = ["publish"]
topics = ["plant/secret"]
groups = ["interns"]
[[rules]]
allow = "all"
topics = ["plant/#"]
groups = ["operators", "interns"]
[[rules]]
allow = "all"
topics = ["open/#"]
[[owners]]
groups = ["interns"]
client_ids = ["intern-*"]
"""


def groups_of(outcome: Outcome) -> tuple[str, ...] | None:
    assert outcome.answer is Answer.ALLOW
    return None if outcome.grant is None else tuple(outcome.grant.groups)


# --------------------------------------------------------------------------------------------- where from


@pytest.mark.parametrize(
    ("claims", "groups"),
    [
        ({}, None),
        ({"groups": []}, None),
        ({"groups": ["a", "b c"]}, ("a", "b c")),
        ({"groups": "a b"}, ("a", "b")),
        ({"groups": ["a", "a"]}, ("a",)),
        ({"groups": None}, None),
    ],
)
def test_claim(claims: dict[str, Any], groups: tuple[str, ...] | None) -> None:
    assert groups_of(one({"groups_claim": "groups"}, token(**claims))) == groups


def test_claim_of_an_object_beside_rules() -> None:
    outcome = one({"groups_claim": "realm.roles", "acl_claim": "acl"}, token(realm={"roles": ["x"]}, acl={"publish": ["a"]}))
    assert outcome.grant == Grant([Rule(True, ("publish",), ("a",))], "deny", groups=("x",))
    assert one({}, token(groups=["x"])).grant is None


MANY: list[list[str]] = [["x" + str(number) for number in range(MAXIMUM_GROUPS + 1)], ["x" * (MAXIMUM_GROUP_BYTES + 1)]]


@pytest.mark.parametrize("wrong", [7, {"a": 1}, [1], [""], ["a", None], ["x" + str(number) for number in range(MAXIMUM_GROUPS + 1)]])
def test_claims_that_are_none(wrong: Any) -> None:
    """Whoever might be in a group that is denied something is not let in without it."""
    assert one({"groups_claim": "groups"}, token(groups=wrong)).answer is Answer.DENY


def test_bounds() -> None:
    for names in MANY:
        with pytest.raises(ValueError, match="at most"):
            Grant(groups=names)
        with pytest.raises(ValueError, match="at most"):
            with_groups(Grant(), names)
    assert len(Grant(groups=MANY[0][:-1]).groups) == MAXIMUM_GROUPS


def test_answer_of_a_web_service() -> None:
    assert _outcome({"result": "allow", "groups": ["a", "b"]}).grant == Grant(groups=("a", "b"))
    assert _outcome({"result": "allow", "groups": ["a"], "superuser": True}).grant == Grant(superuser=True, groups=("a",))
    assert _outcome({"result": "allow", "groups": []}).grant is None
    for wrong in ("a", [1], {"a": 1}, [""]):
        with pytest.raises(ValueError, match="groups"):
            _outcome({"result": "allow", "groups": wrong})


def test_column(tmp_path: Path) -> None:
    path = tmp_path / "users.db"
    rows = [("alice", " a, b ,,c "), ("bob", None), ("carol", ""), ("many", ",".join(MANY[0]))]
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE users (username TEXT PRIMARY KEY, teams TEXT, password_hash TEXT)")
        connection.executemany("INSERT INTO users VALUES (?, ?, ?)", [(name, teams, make_hash(ALICE)) for name, teams in rows])
    connection.close()
    table = Sql(url=f"sqlite:///{path}", groups_column="teams")
    query = Sql(
        url=f"sqlite:///{path}",
        groups_column="teams",
        query="SELECT password_hash, 1 AS other, teams FROM users WHERE username = :username",
    )
    for section in (table, query):
        alice, bob, carol, many, wrong = decide_sql(
            section, ("alice", ALICE), ("bob", ALICE), ("carol", ALICE), ("many", ALICE), ("alice", b"wrong")
        )
        assert [groups_of(outcome) for outcome in (alice, bob, carol)] == [("a", "b", "c"), None, None]
        assert (many.answer, wrong.answer, wrong.grant) == (Answer.DENY, Answer.DENY, None)
    missing = Sql(url=f"sqlite:///{path}", groups_column="teams", query="SELECT password_hash FROM users WHERE username = :username")
    assert decide_sql(missing, ("alice", ALICE))[0].answer is Answer.DENY


def test_column_of_a_table_that_is_made(tmp_path: Path) -> None:
    path = tmp_path / "new.db"
    section = Sql(url=f"sqlite:///{path}", create_table=True, groups_column="teams")
    assert decide_sql(section, ("alice", ALICE))[0].answer is Answer.IGNORE
    with sqlite3.connect(path) as connection:
        connection.execute("INSERT INTO users (username, password_hash, teams) VALUES (?, ?, ?)", ("alice", make_hash(ALICE), "x"))
    connection.close()
    assert groups_of(decide_sql(section, ("alice", ALICE))[0]) == ("x",)


def test_array_of_postgresql(postgres: str) -> None:
    query = (
        "SELECT hash, teams AS Teams FROM (VALUES ('alice', CAST(:hash AS text), ARRAY['a, b', 'c'])) AS t (name, hash, teams) "
        "WHERE name = :username"
    ).replace(":hash", f"'{make_hash(ALICE)}'")
    section = Sql(url=postgres, query=query, groups_column="Teams")
    assert groups_of(decide_sql(section, ("alice", ALICE))[0]) == ("a, b", "c")


def certificate(*units: str) -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    names = [x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, unit) for unit in units]
    subject = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "plant"), *names, x509.NameAttribute(NameOID.COMMON_NAME, "d")])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder(subject, subject, key.public_key(), 1, now, now + datetime.timedelta(days=1))
    return builder.sign(key, SHA256()).public_bytes(Encoding.DER)


def test_subject_of_a_certificate() -> None:
    def decide(section: dict[str, Any], identity: PeerIdentity) -> Outcome:
        return asyncio.run(CertificateSource(ClientCertificate(**section)).decide(ask(None, None, identity=identity), {}))

    shown = PeerIdentity(certificate=certificate("operators", "night shift"))
    assert groups_of(decide({"groups": "organizational_unit"}, shown)) == ("operators", "night shift")
    assert groups_of(decide({"groups": "organization"}, shown)) == ("plant",)
    assert groups_of(decide({}, shown)) is None
    assert groups_of(decide({"groups": "organizational_unit"}, PeerIdentity(certificate=certificate()))) is None
    assert groups_of(decide({"groups": "organizational_unit"}, PeerIdentity(proxied_name="d"))) is None


class Says(Node):
    def __init__(self, outcome: Outcome) -> None:
        self.outcome = outcome

    async def decide(self, request: Request, state: dict[str, Any]) -> Outcome:
        return self.outcome


def test_all_of_a_chain_say_groups() -> None:
    first = Outcome(Answer.ALLOW, grant=Grant([Rule(True, ["publish"], ["a"])], "deny", groups=("x", "y")))
    second = Outcome(Answer.ALLOW, grant=Grant(superuser=True, groups=("y", "z")))
    found = asyncio.run(AllOf([Says(first), Says(Outcome(Answer.ALLOW)), Says(second)]).decide(ask(), {}))
    assert found.grant == Grant([Rule(True, ["publish"], ["a"])], "deny", groups=("x", "y", "z"))
    assert asyncio.run(AllOf([Says(Outcome(Answer.ALLOW)), Says(second)]).decide(ask(), {})).grant == second.grant


def test_keys_that_make_no_sense() -> None:
    base = {"url": "ldap://localhost", "base": "dc=x"}
    for keys, told in (
        ({"groups_attribute": "memberOf", "groups_base": "ou=g"}, "exclude each other"),
        ({"groups_base": "ou=g", "groups_filter": "(member=x)"}, "groups_filter needs %d"),
    ):
        with pytest.raises(ValueError, match=told):
            Ldap(**base, **keys)
    with pytest.raises(ValueError, match="groups_column"):
        Sql(url="sqlite:///x", groups_column="a b")
    with pytest.raises(ConfigError, match="groups"):
        Broker({"auth": {"certificate": {"groups": "common_name"}}})


# ------------------------------------------------------------------------------------------ what of them


class Fixed:
    """Finds the client in the groups that stand in its password."""

    async def authenticate(self, request: Request) -> Verdict:
        names = (request.password or b"").decode().split()
        return Verdict(0, grant=Grant(groups=names) if names else None)


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    file = tmp_path / "acl.toml"
    file.write_text(RULES)
    return file


def reasons(peer: Peer, *topics: str) -> list[int]:
    return [peer.publish(topic, b"", 1).reason for topic in topics]  # type: ignore[union-attr]


def test_rules_about_groups(rules: Path) -> None:
    """Beside the users that the file lists; superusers, owners and rules alike; and again when the file changes."""
    config = broker_config({"auth": {"anonymous": False, "acl_file": str(rules)}})
    topics = ("plant/secret", "plant/x", "open/x", "else")
    yes, no = 0x10, 0x87
    with Broker(config, authenticator=Fixed()) as broker:

        def client(client_id: str, username: str | None, groups: bytes) -> Peer:
            peer = Peer(tcp_address(broker.urls[0]), 5)
            assert peer.connect(client_id, username=username, password=groups).reason == 0
            return peer

        olga, olaf, none, intern, root = (
            client("olga", "olga", b""),
            client("olaf", "olaf", b"zzz operators aaa"),
            client("none", "none", b"elsewhere"),
            client("intern-1", "tim", b"interns operators"),
            client("any", "rita", b"root"),
        )
        unnamed = client("unnamed", None, b"operators")
        assert reasons(olga, *topics) == reasons(olaf, *topics) == reasons(unnamed, *topics) == [yes, yes, yes, no]
        assert reasons(none, *topics) == [no, no, yes, no]
        assert reasons(intern, *topics) == [no, yes, yes, no]
        assert reasons(root, *topics) == [yes] * 4
        refused = Peer(tcp_address(broker.urls[0]), 5)
        assert refused.connect("mine", username="tim", password=b"interns").reason == 0x85
        found = asyncio.run(broker.explain("publish", "plant/secret", client_id="intern-1"))
        assert (found.connected, str(found)) == (
            True,
            f"denied: {rules}:8: rule 1: deny publish on plant/secret for group interns",
        )
        asked = asyncio.run(broker.explain("publish", "plant/x", client_id="x", username="x", groups=["operators"]))
        assert (asked.allowed, asked.connected) == (True, False)
        rules.write_text(RULES.replace('deny = ["publish"]\ntopics = ["plant/secret"]', 'deny = "all"\ntopics = ["plant/#"]'))
        broker.reload(config)
        assert reasons(intern, "plant/x") == [no]
        assert reasons(olaf, "plant/x") == [yes]
        for peer in (olga, olaf, none, intern, root, unnamed, refused):
            peer.close()


def test_a_hooks_grant_does_not_take_them_away(rules: Path) -> None:
    hooks = Hooks()

    @hooks.authorize
    def grant(client: HookClient, action: str, topic: str) -> Grant | None:
        return Grant([Rule(True, ["publish"], ["else"])]) if action == "connect" else None

    config = broker_config({"auth": {"anonymous": False, "acl_file": str(rules)}})
    with Broker(config, authenticator=Fixed(), hooks=hooks) as broker:
        peer = Peer(tcp_address(broker.urls[0]), 5)
        assert peer.connect("c", username="u", password=b"operators").reason == 0
        assert reasons(peer, "else", "plant/x", "nothing") == [0x10, 0x10, 0x87]
        peer.close()


def test_a_reauthentication_brings_new_ones(make: Make, rules: Path) -> None:
    from tests.auth.test_jwt import SECRET

    section = {"algorithms": ["HS256"], "secret": SECRET, "groups_claim": "groups"}
    bench = make({"jwt": section, "acl_file": str(rules)})
    peer = bench.raw(5)
    peer.send(connect_packet("c", 5, props=((AUTH_METHOD, "JWT"), (AUTH_DATA, token(groups=["operators"])))))
    assert peer.recv().reason == 0
    assert reasons(peer, "plant/x", "open/x") == [0x10, 0x10]
    for groups, reason in ((["others"], 0x87), (["operators"], 0x10), ([], 0x87)):
        peer.send(packet(AUTH << 4, b"\x19" + properties([(AUTH_METHOD, "JWT"), (AUTH_DATA, token(groups=groups))])))
        assert peer.expect(AUTH).reason == 0
        assert reasons(peer, "plant/x") == [reason]


def test_remembered_decisions_keep_them(make: Make, rules: Path, tmp_path: Path) -> None:
    """Of a database, by password and by SCRAM; the second client with the same password is not looked up."""
    from tests.auth.test_scram import through

    path = tmp_path / "users.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE users (username TEXT PRIMARY KEY, password_hash TEXT, teams TEXT)")
        connection.execute("INSERT INTO users VALUES (?, ?, ?)", ("alice", make_scram(ALICE), "operators"))
    connection.close()
    bench = make({"sql": {"url": f"sqlite:///{path}", "groups_column": "teams"}, "scram": {"users": "sql"}, "acl_file": str(rules)})
    for client_id in ("one", "two"):
        peer = bench.raw(5)
        assert peer.connect(client_id, username="alice", password=ALICE).reason == 0
        assert reasons(peer, "plant/x", "else") == [0x10, 0x87]
    peer = bench.raw(5)
    assert through(peer, "alice", ALICE)[0].reason == 0
    assert reasons(peer, "plant/x", "else") == [0x10, 0x87]
    assert attempt(bench, "alice", b"wrong").reason == 0x86
