"""The native tables against the plain reference, and the corners by name."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mqttc.auth.acl import AclFile, AclTable, compile_grant
from mqttc.auth.grant import ACTIONS, Grant, Rule
from mqttc.native import acl_decide, live_objects

from .reference import Client, File, Line, decide, glob, topics_of

LISTENERS = {"main": [0], "other": [1, 2]}
LEVELS = ["a", "b", "", "%c", "%u", "x%c", "%u-%c", "%%", "dev", "devices", "$SYS", "long-level-name"]
NAMES = ["a", "b", "dev", "x", "u1", "%", "a*b", "a/b", "#", "+", "", "$SYS", "é", "c\0"]
PATTERNS = ["a", "*", "a*", "*b", "?", "%u", "%u-*", "a?b", "%%", "*a*b*"]

name_st = st.sampled_from(NAMES)
action_st = st.lists(st.sampled_from(ACTIONS), min_size=1, max_size=5, unique=True)


@st.composite
def filters(draw: Any, substitutions: bool = True) -> str:
    level = st.sampled_from([*(LEVELS if substitutions else [n for n in LEVELS if "%" not in n]), "+"])
    levels = draw(st.lists(level, min_size=1, max_size=4))
    if draw(st.booleans()):
        levels.append("#")
    text = "/".join(levels)
    return text if text else "a"


@st.composite
def topics(draw: Any) -> str:
    levels = draw(
        st.lists(
            st.sampled_from(["a", "b", "", "dev", "devices", "x", "xa", "u1", "$SYS", "%", "a-b", "long-level-name"]),
            min_size=1,
            max_size=4,
        )
    )
    return "/".join(levels) or "a"


@st.composite
def lines(draw: Any) -> Line:
    optional = lambda values: st.none() | st.lists(values, max_size=2)  # noqa: E731
    return Line(
        draw(st.booleans()),
        draw(action_st),
        draw(st.lists(filters(), min_size=1, max_size=2)),
        users=draw(optional(st.sampled_from([*NAMES[:-1], "a*", "?"]))),
        groups=draw(optional(st.sampled_from(["g", "h"]))),
        anonymous=draw(st.booleans()),
        clients=draw(optional(st.sampled_from(PATTERNS))),
        listeners=draw(optional(st.sampled_from(["main", "other"]))),
    )


files = st.builds(
    File,
    st.booleans(),
    st.lists(lines(), max_size=5),
    st.just({"g": ["a", "dev"], "h": ["u*"]}),
    st.lists(st.sampled_from(["root", "u?"]), max_size=1),
)
given_groups = st.lists(st.sampled_from(["g", "h", "elsewhere", "g/2"]), max_size=3)
clients = st.builds(Client, name_st, st.none() | name_st, st.sampled_from(["main", "other"]), given_groups)


def model_of(file: File) -> AclFile:
    rules = []
    for line in file.rules:
        rule: dict[str, Any] = {"allow" if line.allow else "deny": list(line.actions), "topics": list(line.topics)}
        for key in ("users", "groups", "clients", "listeners"):
            if getattr(line, key) is not None:
                rule[key] = list(getattr(line, key))
        if line.anonymous:
            rule["anonymous"] = True
        rules.append(rule)
    return AclFile.model_validate(
        {
            "default": "allow" if file.default else "deny",
            "groups": {name: list(users) for name, users in file.groups.items()},
            "superusers": list(file.superusers),
            "rules": rules,
        }
    )


def native(table: bytes, client: Client, action: str, text: str, **more: Any) -> bool:
    place = LISTENERS[client.listener][-1]
    if client.groups:
        more["grant"] = compile_grant(Grant(groups=client.groups))
    return acl_decide(table, action, text, client_id=client.client_id, username=client.username, listener=place, **more)[0]


@settings(max_examples=400, deadline=None)
@given(files, clients, st.sampled_from(ACTIONS), topics() | filters(substitutions=False))
@example(File(True, [Line(False, ["publish"], ["dev/%c/#"])]), Client("a/b"), "publish", "dev/x")
@example(File(False, [Line(True, ["publish"], ["%u/#"])]), Client("c", "$SYS"), "publish", "$SYS/broker")
@example(File(False, [Line(True, ["publish"], ["a/#"])]), Client("c"), "publish", "a")
def test_as_the_reference_says(file: File, client: Client, action: str, text: str) -> None:
    if action != "subscribe" and ("+" in text or "#" in text):
        action = "subscribe"
    table = AclTable(model_of(file)).compile(LISTENERS)
    assert native(table, client, action, text) == decide(file, client, action, text)


@settings(max_examples=400, deadline=None)
@given(files, clients, st.sampled_from(["receive", "subscribe"]), filters(substitutions=False))
@example(File(True, [Line(False, ["receive"], ["dev/%c/s"])]), Client("a+b"), "receive", "#")
@example(File(True, [Line(False, ["receive"], ["dev/%c/s"])]), Client("a/b"), "receive", "+/x")
@example(File(True, [Line(False, ["receive"], ["dev/x%u"])]), Client("c", "$SYS"), "receive", "dev/x+")
@example(File(True, [Line(False, ["receive"], ["$SYS/%c"])]), Client("#"), "receive", "#")
def test_whole_filters_as_the_reference_says(file: File, client: Client, action: str, text: str) -> None:
    """Of shared subscriptions, whose members get every message: nothing inside may be denied, nor what a name that is unsafe may mean."""
    table = AclTable(model_of(file)).compile(LISTENERS)
    assert native(table, client, action, text, whole=True) == decide(file, client, action, text, whole=True)


@settings(max_examples=20, deadline=None)
@given(st.lists(lines(), min_size=70, max_size=80), clients, topics())
def test_many_rules_for_one_client(rules: list[Line], client: Client, text: str) -> None:
    """More than a client's list holds: the table itself is gone through."""
    file = File(False, rules, {"g": ["a", "dev"], "h": ["u*"]})
    table = AclTable(model_of(file)).compile(LISTENERS)
    for action in ACTIONS:
        assert native(table, client, action, text) == decide(file, client, action, text)


ALL_TOPICS = ["/".join(parts) for n in (1, 2, 3) for parts in itertools.product(("a", "b", "$x"), repeat=n)]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(["a", "b", "+", "$x"]), min_size=1, max_size=3), st.booleans(), filters(substitutions=False))
def test_covers_and_meets_by_topics(levels: list[str], deep: bool, _: str) -> None:
    """Of all short topics: a covered filter has none outside, and with `whole` a denied one is met exactly when one topic is in both."""
    text = "/".join([*levels, *(["#"] if deep else [])])
    mine = [t for t in ALL_TOPICS if topics_of(text.split("/"), t.split("/"))]
    for denied in ("a/#", "+/b", "a/+/b", "#", "$x/#", "b", "+/+", "a/b/#"):
        theirs = [t for t in ALL_TOPICS if topics_of(denied.split("/"), t.split("/"))]
        file = File(True, [Line(False, ["receive", "subscribe"], [denied])])
        table = AclTable(model_of(file)).compile(LISTENERS)
        allowed_whole = native(table, Client("c"), "receive", text, whole=True)
        assert allowed_whole == (not set(mine) & set(theirs)), (text, denied)
        if not native(table, Client("c"), "subscribe", text):
            assert set(mine) <= set(theirs)


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(PATTERNS) | st.text(st.sampled_from("a*?b%"), max_size=6),
    st.text(st.sampled_from("aéb*%-"), max_size=8),
    st.none() | name_st,
)
def test_client_id_patterns(pattern: str, client_id: str, username: str | None) -> None:
    pattern = pattern.replace("%%", "%").replace("%", "%%") if not pattern.startswith("%u") else pattern
    model = AclFile.model_validate({"default": "allow", "client_ids": [pattern] if pattern else []})
    table = AclTable(model).compile(LISTENERS)
    allowed = acl_decide(table, "connect", "", client_id=client_id, username=username)[0]
    assert allowed == (bool(pattern) and glob(pattern, client_id, username))


def test_first_match_decides_and_is_named() -> None:
    model = AclFile.model_validate(
        {
            "rules": [
                {"deny": ["publish"], "topics": ["a/secret"]},
                {"allow": ["publish"], "topics": ["a/#"]},
            ]
        }
    )
    table = AclTable(model).compile({})
    assert acl_decide(table, "publish", "a/secret", client_id="c") == (False, "rule", False, 0)
    assert acl_decide(table, "publish", "a/b", client_id="c") == (True, "rule", False, 1)
    assert acl_decide(table, "publish", "b", client_id="c")[:2] == (False, "default")
    assert acl_decide(None, "publish", "b", client_id="c")[:2] == (True, "nothing")


def test_the_own_action_comes_before_the_one_that_speaks_for_it() -> None:
    model = AclFile.model_validate(
        {
            "rules": [
                {"allow": ["publish", "subscribe"], "topics": ["a/#"]},
                {"deny": ["retain", "receive", "will"], "topics": ["a/x"]},
            ]
        }
    )
    table = AclTable(model).compile({})
    for action in ("retain", "receive", "will"):
        assert not acl_decide(table, action, "a/x", client_id="c")[0]
        assert acl_decide(table, action, "a/y", client_id="c")[0]
    assert acl_decide(table, "publish", "a/x", client_id="c")[0]


@pytest.mark.parametrize("name", ["a/b", "+", "#", "a#", "x\0y", "", "$SYS"])
def test_names_do_not_widen(name: str) -> None:
    """Neither what they would match literally nor what they would match as wildcards."""
    model = AclFile.model_validate({"rules": [{"allow": "all", "topics": ["dev/%u/#", "%c"]}]})
    table = AclTable(model).compile({})
    for topic in ("dev/a/b/c", "dev/x/y", "dev/+/y", name or "z", "z"):
        assert acl_decide(table, "publish", topic, client_id="c", username=name)[0] is False
        assert acl_decide(table, "publish", topic, client_id=name, username="u")[0] is False
    assert acl_decide(table, "publish", "dev/z", client_id="c", username=name)[1] == "name"


@pytest.mark.parametrize("client_id", ["a+b", "a/b", "#"])
def test_names_do_not_widen_shared_subscriptions(client_id: str) -> None:
    """A client id that must not stand in a filter is no way round a rule that has `%c`."""
    rules = [{"deny": ["receive"], "topics": ["dev/%c/secret"]}, {"allow": "all", "topics": ["#"]}]
    table = AclTable(AclFile.model_validate({"rules": rules}))

    def may(text: str) -> bool:
        return table.explain("subscribe", f"$share/g/{text}", client_id=client_id, listeners={}).allowed

    assert not any(may(text) for text in ("#", "+/#", "dev/#", "+/a/secret", "dev/+/secret", "dev/a/b/secret"))
    assert may("other/#") and may("+") and may("developers/#")
    assert table.explain("subscribe", "#", client_id=client_id, listeners={}).allowed  # each message is looked at


def test_grant_before_file() -> None:
    table = AclTable(
        AclFile.model_validate({"rules": [{"allow": "all", "topics": ["file"]}, {"deny": "all", "topics": ["grant"]}]})
    ).compile({})

    def asked(grant: Grant, topic: str) -> tuple[bool, str, bool, int]:
        return acl_decide(table, "publish", topic, client_id="c", grant=compile_grant(grant))

    rules = [Rule(True, ["publish"], ["grant", "own/%c"]), Rule(False, ["publish"], ["file"])]
    assert asked(Grant(rules), "grant") == (True, "rule", True, 0)
    assert asked(Grant(rules), "own/c")[0]
    assert asked(Grant(rules), "file") == (False, "rule", True, 1)
    assert asked(Grant(), "file") == (True, "rule", False, 0)
    assert asked(Grant(otherwise="deny"), "file") == (False, "default", True, 0)
    assert asked(Grant(otherwise="allow"), "grant")[0]
    assert asked(Grant(superuser=True), "elsewhere")[1] == "superuser"
    assert not acl_decide(None, "publish", "x", client_id="c", grant=compile_grant(Grant(rules, otherwise="deny")))[0]
    assert acl_decide(None, "publish", "x", client_id="c", grant=compile_grant(Grant(rules)))[1] == "nothing"


def test_a_grants_user_name_is_the_user() -> None:
    table = AclTable(AclFile.model_validate({"rules": [{"allow": "all", "topics": ["%u/#"], "users": ["real"]}]})).compile({})
    grant = compile_grant(Grant(username="real"))
    assert acl_decide(table, "publish", "real/x", client_id="c", username="claimed", grant=grant)[0]
    assert not acl_decide(table, "publish", "claimed/x", client_id="c", username="claimed", grant=grant)[0]


@pytest.mark.parametrize(
    "rule",
    [Rule(True, ["publish"], ["a/#/b"]), Rule(True, ["publish"], ["%x"]), Rule(True, [], ["a"]), Rule(True, ["go"], ["a"])],  # type: ignore[list-item]
)
def test_bad_grants(rule: Rule) -> None:
    with pytest.raises(ValueError, match=r"topics|actions"):
        compile_grant(Grant([rule]))


def test_bad_grant_values() -> None:
    for values in ({"ttl": -1}, {"ttl": float("nan")}, {"otherwise": "x"}, {"rules": [Rule(True, ["publish"], ["a"])] * 10_001}):
        with pytest.raises(ValueError, match=r"ttl|otherwise|rules"):
            Grant(**values)  # type: ignore[arg-type]


def test_only_whole_tables_are_taken() -> None:
    """Whatever is cut off or written over, it is refused or it is a table; nothing is read outside."""
    model = AclFile.model_validate(
        {
            "groups": {"g": ["a", "b*"]},
            "superusers": ["s"],
            "client_ids": ["%u"],
            "rules": [{"allow": "all", "topics": ["a/%c", "b"], "users": ["x"], "groups": ["g"], "clients": ["*"], "listeners": ["main"]}],
        }
    )
    before = live_objects()["acls"]
    table = AclTable(model).compile(LISTENERS)
    for n in range(len(table)):
        with pytest.raises(ValueError, match="table"):
            acl_decide(table[:n], "publish", "a", client_id="c")
    with pytest.raises(ValueError, match="table"):
        acl_decide(table + b"\0", "publish", "a", client_id="c")
    for n in range(len(table)):
        for value in (0, 1, 255):
            try:
                acl_decide(table[:n] + bytes([value]) + table[n + 1 :], "publish", "a/c", client_id="c", username="x")
            except ValueError:
                continue
    assert live_objects()["acls"] == before
