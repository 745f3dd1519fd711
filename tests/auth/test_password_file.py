"""The password file: who gets in by it, how it changes while the broker runs, and the command that keeps it."""

from __future__ import annotations

import io
import os
import shutil
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from mqttc.auth.hashing import make_hash
from mqttc.cli.broker import main
from mqttc.config import ConfigError
from mqttc.server import Broker
from tests.auth.conftest import ALICE, BOB, Make, attempt
from tests.broker.conftest import Bench


@pytest.mark.parametrize("version", [3, 4, 5])
def test_who_gets_in(make: Make, users: Path, version: int) -> None:
    bench = make({"password_file": str(users)})
    for username, password, good in (
        ("alice", ALICE, True),
        ("bob", BOB, True),
        ("alice", BOB, False),
        ("alice", b"", False),
        ("alice", ALICE + b"\0", False),
        ("Alice", ALICE, False),
        ("carol", ALICE, False),
        ("", ALICE, False),
    ):
        reason = attempt(bench, username, password, version).reason
        assert reason == (0 if good else 0x86 if version == 5 else 4), (username, password)
    assert attempt(bench, "alice", None, version).reason == (0x87 if version == 5 else 5)
    assert attempt(bench, None, None, version).reason == (0x87 if version == 5 else 5)


def test_lists_restrict(make: Make, users: Path) -> None:
    """With authenticators a name on `allow` still needs its password."""
    bench = make({"password_file": str(users), "allow": ["a*"], "deny": ["root"]})
    assert attempt(bench, "alice", ALICE).reason == 0
    assert attempt(bench, "alice", BOB).reason == 0x86
    assert attempt(bench, "abc", b"x").reason == 0x86
    assert attempt(bench, "bob", BOB).reason == 0x87


def test_anonymous_clients_beside(make: Make, users: Path) -> None:
    bench = make({"password_file": str(users), "anonymous": "loopback"})
    assert attempt(bench, None, None).reason == 0
    assert attempt(bench, "alice", b"wrong").reason == 0x86  # who says a name has to prove it


@pytest.mark.parametrize("how", ["replace", "rewrite", "link"])
def test_it_is_read_again(make: Make, tmp_path: Path, how: str) -> None:
    """What was remembered of the old file does not hold any more."""
    path, other = tmp_path / "users", tmp_path / "other"
    first, second = f"alice:{make_hash(ALICE)}\n", f"bob:{make_hash(BOB)}\n"
    if how == "link":
        (tmp_path / "one").write_text(first)
        path.symlink_to(tmp_path / "one")
    else:
        path.write_text(first)
    bench = make({"password_file": str(path)})
    assert attempt(bench, "alice", ALICE).reason == 0
    assert attempt(bench, "bob", BOB).reason == 0x86
    if how == "rewrite":
        path.write_text(second)
    elif how == "replace":
        other.write_text(second)
        os.replace(other, path)
    else:
        (tmp_path / "two").write_text(second)
        other.symlink_to(tmp_path / "two")
        os.replace(other, path)
    bench.events.wait("auth_loaded")
    assert attempt(bench, "alice", ALICE).reason == 0x86
    assert attempt(bench, "bob", BOB).reason == 0


def test_a_bad_file_leaves_the_old_one(make: Make, tmp_path: Path) -> None:
    path = tmp_path / "users"
    path.write_text(f"alice:{make_hash(ALICE)}\n")
    bench = make({"password_file": str(path)})
    path.write_text("alice:plain text\n")
    told = bench.events.wait("auth_refused")
    assert "users:1" in told["problem"] and "plain text" not in told["problem"]
    with pytest.raises(ConfigError):
        bench.native.reload(
            {**bench.native.config.model_dump(), "log": {"level": "warning"}, "auth": {"password_file": str(path), "delay": 0.5}}
        )
    path.unlink()
    assert attempt(bench, "alice", ALICE).reason == 0


def test_reload(make: Make, users: Path, tmp_path: Path) -> None:
    """SIGHUP takes another file, other authenticators, and forgets; who is connected stays."""
    bench = make({"password_file": str(users)})
    alice = bench(5, username="alice", password=ALICE)
    other = tmp_path / "other"
    other.write_text(f"carol:{make_hash(b'c')}\n")
    config = {"listeners": [{"url": "tcp://127.0.0.1:0"}], "workers": bench.native.config.workers}
    done = bench.native.reload({**config, "auth": {"anonymous": False, "password_file": str(other)}})
    assert "auth.password_file" in done.applied
    assert attempt(bench, "alice", ALICE).reason == 0x86
    assert attempt(bench, "carol", b"c").reason == 0
    alice.ping()
    other.write_text("carol")
    with pytest.raises(ConfigError, match="user:hash"):
        bench.native.reload({**config, "auth": {"anonymous": False, "password_file": str(other)}})
    assert attempt(bench, "carol", b"c").reason == 0


def test_a_broker_that_asked_nobody_needs_a_restart(users: Path) -> None:
    with Broker({"listeners": [{"url": "tcp://127.0.0.1:0"}]}) as broker:
        done = broker.reload({"listeners": [{"url": "tcp://127.0.0.1:0"}], "auth": {"password_file": str(users)}})
        assert done.needs_restart == ("auth.password_file",)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"alice\n", "users:1: write user:hash"),
        (b"# x\nalice:secret-thing\n", "users:2: the hash has no format"),
        (b"a:$6$c2FsdA==$AAAA\n", "users:1: the hash has not the length of SHA-512"),
        (b"a\xff:$6$c2FsdA==$AAAA\n", "users:1: is not UTF-8"),
        (b"a:$argon2id$v=19$m=4194304,t=1,p=1$c2FsdHNhbHRzYWx0$c2FsdHNhbHRzYWx0c2FsdA\n", "more than auth.hashing.memory"),
        (b"a:$argon2id$v=19$m=8,t=100000,p=1$c2FsdHNhbHRzYWx0$c2FsdHNhbHRzYWx0c2FsdA\n", "out of range"),
        (b"a:$7$99999999$c2FsdA==$c2FsdHNhbHRzYWx0c2FsdHNhbHQ=\n", "iterations"),
        (None, "No such file"),
    ],
)
def test_files_that_cannot_be_used(tmp_path: Path, content: bytes | None, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`--check` and the start say where and why, and nothing of the hash."""
    path = tmp_path / "users"
    if content is not None:
        path.write_bytes(content)
    broker = Broker({"listeners": [{"url": "tcp://127.0.0.1:0"}], "auth": {"password_file": str(path)}})
    with pytest.raises(ConfigError, match=told.replace("$", r"\$")):
        broker.start()
    assert main(["--check", "--set", f"auth.password_file={path}"]) == 2
    shown = capsys.readouterr().err
    assert told in shown and "secret-thing" not in shown and "c2FsdHNhbHR" not in shown


def test_twice_the_same_user(tmp_path: Path) -> None:
    path = tmp_path / "users"
    path.write_text("".join(f"alice:{make_hash(password)}\n" for password in (ALICE, BOB)))
    with pytest.raises(ConfigError, match="users:2: this user was there already"):
        Broker({"auth": {"password_file": str(path)}, "listeners": [{"url": "tcp://127.0.0.1:0"}]}).start()


@pytest.mark.skipif(shutil.which("mosquitto_passwd") is None, reason="needs mosquitto_passwd")
@pytest.mark.parametrize("kind", ["sha512", "sha512-pbkdf2"])
def test_files_of_mosquitto(make: Make, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "users"
    path.touch(mode=0o600)
    subprocess.run(["mosquitto_passwd", "-H", kind, "-b", str(path), "alice", "some word"], check=True)
    assert ("$6$" if kind == "sha512" else "$7$") in path.read_text()
    bench = make({"password_file": str(path)})
    assert attempt(bench, "alice", b"some word").reason == 0
    assert attempt(bench, "alice", b"some words").reason == 0x86
    assert attempt(bench, "nobody", b"some word").reason == 0x86


# ---------------------------------------------------------------------------------- the command


class Command:
    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._patch, self._output = monkeypatch, capsys

    def __call__(self, *arguments: str, stdin: bytes = b"") -> tuple[int, str, str]:
        """Exit code, stdout, stderr."""
        self._patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        try:
            code = main(["passwd", *arguments])
        except SystemExit as end:
            code = int(end.code or 0)
        captured = self._output.readouterr()
        return code, captured.out, captured.err


@pytest.fixture
def passwd(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(monkeypatch, capsys)


def test_passwd(passwd: Command, tmp_path: Path) -> None:
    path = tmp_path / "users"
    assert passwd(str(path), "alice", stdin=ALICE + b"\n") == (0, "", "")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.write_text("# kept\n" + path.read_text())
    assert passwd(str(path), "bob", "--scram", stdin=BOB) == (0, "", "")
    assert passwd(str(path), "--verify", "alice", stdin=ALICE)[0] == 0
    assert passwd(str(path), "--verify", "bob", stdin=BOB)[0] == 0
    assert passwd(str(path), "--verify", "alice", stdin=BOB)[0] == 1
    assert passwd(str(path), "--verify", "carol", stdin=BOB)[0] == 1
    assert passwd(str(path), "alice", stdin=b"new\r\n")[0] == 0
    assert passwd(str(path), "--verify", "alice", stdin=b"new")[0] == 0
    assert passwd(str(path), "--delete", "bob")[0] == 0
    code, _, told = passwd(str(path), "--delete", "bob")
    assert code == 1 and "has no user 'bob'" in told
    lines = path.read_text().splitlines()
    assert lines[0] == "# kept" and len(lines) == 2 and lines[1].startswith("alice:$argon2id$")
    assert list(tmp_path.iterdir()) == [path]


def test_passwd_batch(passwd: Command, tmp_path: Path) -> None:
    path = tmp_path / "users"
    assert passwd(str(path), "--batch", stdin=b"a:one\n\nb:two:with colon\n")[0] == 0
    assert passwd(str(path), "--verify", "b", stdin=b"two:with colon")[0] == 0
    before = path.read_bytes()
    code, _, told = passwd(str(path), "--batch", stdin=b"a:new\nb\n")
    assert code == 1 and "line 2: write user:password" in told
    assert passwd(str(path), "--batch")[0] == 1
    assert path.read_bytes() == before


@pytest.mark.parametrize("user", ["", "a:b", " a", "#a", "a\nb", "a\0"])
def test_passwd_refuses_names_that_a_file_cannot_hold(passwd: Command, tmp_path: Path, user: str) -> None:
    assert passwd(str(tmp_path / "users"), user, stdin=b"x")[0] == 1
    assert not (tmp_path / "users").exists()


@pytest.mark.parametrize("arguments", [["f"], ["f", "a", "--batch"], ["f", "a", "--delete", "--verify"], ["-", "a", "--delete"]])
def test_passwd_usage(passwd: Command, arguments: list[str]) -> None:
    assert passwd(*arguments, stdin=b"x")[0] == 2


def test_passwd_prints(passwd: Command) -> None:
    code, line, _ = passwd("-", "alice", stdin=b"x\n")
    assert code == 0 and line.startswith("alice:$argon2id$v=19$")
    assert passwd("-", "alice", stdin=b"\n")[0] == 1  # no empty password


def test_passwd_leaves_a_bad_file_alone(passwd: Command, tmp_path: Path) -> None:
    path = tmp_path / "users"
    path.write_text("alice")
    assert passwd(str(path), "bob", stdin=b"x")[0] == 1
    assert path.read_text() == "alice"


def test_passwd_follows_links_and_keeps_the_group(passwd: Command, tmp_path: Path) -> None:
    (tmp_path / "real").touch(mode=0o640)
    (tmp_path / "real").chmod(0o644)
    (tmp_path / "users").symlink_to(tmp_path / "real")
    assert passwd(str(tmp_path / "users"), "a", stdin=b"x")[0] == 0
    assert (tmp_path / "users").is_symlink()
    assert stat.S_IMODE((tmp_path / "real").stat().st_mode) == 0o640  # nobody else's


def test_passwd_at_the_same_time(tmp_path: Path) -> None:
    """Nobody's change is lost."""
    path = tmp_path / "users"
    commands = [
        subprocess.Popen(
            [
                sys.executable,
                "-c",
                "import sys; from mqttc.cli.broker import main; sys.exit(main(sys.argv[1:]))",
                "passwd",
                str(path),
                f"u{i}",
            ],
            stdin=subprocess.PIPE,
        )
        for i in range(4)
    ]
    for command in commands:
        command.communicate(b"x\n")
        assert command.returncode == 0
    assert sorted(line.partition(":")[0] for line in path.read_text().splitlines()) == ["u0", "u1", "u2", "u3"]


def test_many_at_once_stay_within_their_memory(make: Make, users: Path) -> None:
    """Clients that come together with different passwords wait for their turn."""
    from mqttc.auth.hashing import ARGON2_MEMORY_KIB

    bench = make(
        {
            "password_file": str(users),
            "hashing": {"threads": 8, "memory": 2 * ARGON2_MEMORY_KIB * 1024},
            "failures": {"per_address": 0, "per_user": 0},
        }
    )
    reasons: list[int] = []

    def one(bench: Bench, number: int) -> None:
        reasons.append(attempt(bench, "alice", b"%d" % number, client_id=f"m{number}").reason)

    threads = [threading.Thread(target=one, args=(bench, number)) for number in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert reasons == [0x86] * 40
    assert bench.stat("auth_hashing_most_kib") == 2 * ARGON2_MEMORY_KIB
    assert bench.stat("auth_hashing_waiting") == 0
