"""The ACL file: what is accepted, and where errors stand; `explain` by file, by program and by a running broker."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from mqttc.auth.acl import AclTable
from mqttc.auth.rules import RulesInForce
from mqttc.cli.broker import main
from mqttc.config import ConfigError

from .conftest import MakeGuarded

FULL = """default = "allow"
denied_publish = "disconnect"
superusers = ["root", "ops-*"]
superuser_groups = ["admins"]
client_ids = ["%u-*"]

[groups]
admins = ["anna"]

[[rules]]
deny = ["publish", "retain"]
topics = ["$SYS/#", "50%%/+"]
users = ["bob"]
groups = ["admins"]
anonymous = true
clients = ["%u-*", "x?"]
listeners = ["main"]

[[rules]]
allow = "all"
topics = ["home/%u/%c"]

[[owners]]
groups = ["admins"]
client_ids = ["*"]
"""


def problems(tmp_path: Path, text: str) -> list[str]:
    file = tmp_path / "acl.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        AclTable.load(file).compile({"main": [0]})
    return [str(problem).removeprefix(f"{tmp_path}/") for problem in caught.value.problems]


def test_everything_is_accepted(tmp_path: Path) -> None:
    file = tmp_path / "acl.toml"
    file.write_text(FULL)
    AclTable.load(file).compile({"main": [0]})
    file.write_text("")
    assert AclTable.load(file).model.default == "deny"


RULE = '[[rules]]\nallow = ["publish"]\ntopics = ["a"]\n'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("default = 1", "acl.toml:1: default: "),
        ("\nsuperuser = []", "acl.toml:2: unknown key superuser, did you mean 'superusers'?"),
        ("[[rules]]\ntopics = ['a']", "acl.toml:1: rules.0: a rule has either allow or deny"),
        (RULE + 'deny = ["publish"]', "acl.toml:1: rules.0: a rule has either allow or deny"),
        (RULE + RULE + 'topic = "x"', "acl.toml:7: unknown key rules.1.topic, did you mean 'topics'?"),
        ('[[rules]]\nallow = ["read"]\ntopics = ["a"]', "acl.toml:2: rules.0.allow.0: "),
        ("[[rules]]\nallow = []\ntopics = ['a']", "acl.toml:2: rules.0.allow: "),
        ("[[rules]]\nallow = 'all'", "acl.toml:1: rules.0.topics is missing"),
        ("[[rules]]\nallow = 'all'\ntopics = ['a', \n'b/#/c']", "acl.toml:4: rules.0.topics.1: # stands alone in the last level"),
        ("[[rules]]\nallow = 'all'\ntopics = ['%x']", "acl.toml:3: rules.0.topics.0: after % comes c, u or another %"),
        ("[[rules]]\nallow = 'all'\ntopics = ['%']", "acl.toml:3: rules.0.topics.0: after %"),
        ("[[rules]]\nallow = 'all'\ntopics = ['$share/g/a']", "acl.toml:3: rules.0.topics.0: "),
        (
            RULE + 'groups = ["admin"]\n[groups]\nadmins = []',
            "acl.toml:4: rules.0.groups.0: there is no group 'admin', did you mean 'admins'?",
        ),
        (RULE + 'clients = ["%c"]', "acl.toml:4: rules.0.clients.0: after % comes u or another %"),
        (RULE + 'listeners = ["mian"]', "acl.toml:4: there is no listener 'mian', did you mean 'main'?"),
        ("[[owners]]\nusers = ['a']", "acl.toml:1: owners.0.client_ids is missing"),
        ("superuser_groups = ['x']", "acl.toml:1: superuser_groups.0: there is no group 'x'"),
        ("a = [", "acl.toml:"),
    ],
)
def test_errors_name_the_line(tmp_path: Path, text: str, expected: str) -> None:
    (problem,) = problems(tmp_path, text)
    assert problem.startswith(expected)


def test_all_problems_at_once(tmp_path: Path) -> None:
    assert len(problems(tmp_path, "x = 1\ndefault = 2\n[[rules]]\nallow = 'all'\n")) == 3


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "acl.toml").write_text(FULL.replace('default = "allow"\n', ""))
    config = tmp_path / "broker.toml"
    config.write_text(f'[[listeners]]\nurl = "tcp://127.0.0.1:1883"\nname = "main"\n[auth]\nacl_file = "{tmp_path}/acl.toml"\n')
    return config


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["--client", "bob-1", "--user", "bob", "publish", "home/bob/bob-1"], 0, "allowed: PATH:18: rule 2: allow publish, subscribe"),
        (["--client", "bob-1", "--user", "bob", "publish", "home/eve/bob-1"], 1, "denied: no rule matches: by default"),
        (
            ["--client", "bob-1", "--user", "bob", "--listener", "main", "publish", "50%/x"],
            1,
            "denied: PATH:9: rule 1: deny publish, retain on",
        ),
        (["--client", "bob-1", "--user", "bob", "publish", "50%/x"], 1, "denied: no rule"),
        (
            ["--client", "bob+1", "--user", "bob", "publish", "home/bob/x"],
            1,
            "denied: this user may not use this client id; PATH:4: client_ids",
        ),
        (
            ["--client", "bob-+", "--user", "bob", "publish", "home/bob/x"],
            1,
            "denied: the client id or user name must not stand in a filter; PATH:18",
        ),
        (["--client", "x", "--user", "ops-7", "publish", "any"], 0, "allowed: a superuser"),
        (["--client", "x", "--user", "anna", "subscribe", "#"], 0, "allowed: a superuser"),
        (["--client", "bob-1", "--user", "bob", "subscribe", "home/bob/#"], 1, "denied: no rule"),
        (["--client", "bob-1", "--user", "bob", "subscribe", "$share/g/home/bob/bob-1"], 0, "allowed: PATH:18"),
        (["--client", "bob-1", "--user", "bob", "receive", "home/bob/bob-1"], 0, "allowed: PATH:18"),
        (["--client", "c", "publish", "a/+"], 2, "'a/+' is a filter"),
        (["--client", "c", "--listener", "man", "publish", "a"], 2, "there is no listener 'man', did you mean 'main'?"),
    ],
)
def test_explain_command(
    files: Path, arguments: list[str], code: int, text: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.environ", {})
    assert main(["explain", "--config", str(files), *arguments]) == code
    captured = capsys.readouterr()
    assert text.replace("PATH", str(files.with_name("acl.toml"))) in (captured.out or captured.err)


def test_explain_and_check_without_or_with_bad_rules(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "--client", "c", "publish", "a"]) == 0
    assert main(["--check", "--config", str(files)]) == 0
    files.with_name("acl.toml").write_text("x = 1\n")
    assert main(["--check", "--config", str(files)]) == 2
    assert main(["explain", "--config", str(files), "--client", "c", "publish", "a"]) == 2
    assert capsys.readouterr().err.count("acl.toml:1: unknown key x") == 2


def test_explain_of_a_running_broker(guarded: MakeGuarded) -> None:
    here = guarded(
        '[[rules]]\nallow = ["publish"]\ntopics = ["a/%u"]\nlisteners = ["main"]\n',
        listeners=[{"url": "tcp://127.0.0.1:0", "name": "main"}],
    )

    def asked(listener: str | None) -> str:
        return str(asyncio.run(here.broker.explain("publish", "a/me", client_id="c", username="me", listener=listener)))

    assert asked("main") == f"allowed: {here.file}:1: rule 1: allow publish on a/%u for listeners main"
    assert asked(here.broker.urls[0]).startswith("allowed")
    assert asked(None) == "denied: no rule matches: by default"
    assert asyncio.run(here.broker.explain("retain", "a/me", client_id="c", username="me", listener="main")).allowed
    here.rewrite('default = "allow"\n')
    assert asked(None) == "allowed: no rule matches: by default"
    with pytest.raises(ValueError, match="no listener"):
        asked("elsewhere")
    with pytest.raises(ValueError, match="filter"):
        asyncio.run(here.broker.explain("publish", "#", client_id="c"))


class Engine:
    """Remembers the tables that it was given."""

    def __init__(self) -> None:
        self.tables: list[bytes] = []

    def set_acl(self, table: bytes) -> None:
        self.tables.append(table)


def test_a_file_that_is_being_written_is_left_alone(tmp_path: Path) -> None:
    """An empty file is valid, and denies everything: it is not what somebody means who is about to write the rest."""
    file = tmp_path / "acl.toml"
    file.write_text(RULE)
    engine = Engine()
    rules = RulesInForce(engine, str(file), {})
    assert not rules.check() and not rules.check()
    file.write_text("")
    assert not rules.check()
    file.write_text(RULE * 2)
    assert not rules.check()
    assert rules.check()
    assert not rules.check()
    assert engine.tables == [AclTable.load(file).compile({}) if count == 2 else engine.tables[0] for count in (1, 2)]
    file.write_text("x = 1")
    assert not rules.check()
    with pytest.raises(ConfigError):
        rules.check()
    assert not rules.check() and len(engine.tables) == 2
