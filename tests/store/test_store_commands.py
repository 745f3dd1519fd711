"""`mqttc-broker store`, `backup` and `--recover`; export and backup while somebody writes."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mqttc.cli.broker import main
from mqttc.store import StoreError, VersionError, backup, check, database, export, info, open_store
from mqttc.store.schema import PAGE_BYTES
from tests.store.stores import ROOT, add_session, count, damage_page, make_store, overwrite, pages_of, writing

PER_SESSION = 20


@contextlib.contextmanager
def busy(folder: Path) -> Iterator[Path]:
    """A store into which a thread writes, a session with all that is its own in one transaction, over and over."""
    with open_store(folder) as store, writing(store.path) as connection:
        for number in range(1, 101):
            add_session(connection, number, PER_SESSION)
        stop, written = threading.Event(), threading.Semaphore(0)
        failures: list[BaseException] = []

        def write() -> None:
            number = 100
            try:
                with writing(store.path) as own:
                    while not stop.is_set():
                        number += 1
                        add_session(own, number, PER_SESSION)
                        written.release()
            except BaseException as error:
                failures.append(error)

        thread = threading.Thread(target=write)
        thread.start()
        try:
            written.acquire()
            yield store.path
            for _ in range(20):  # it went on all the while
                assert written.acquire(timeout=20)
        finally:
            stop.set()
            thread.join()
        assert failures == []


class Slow(io.StringIO):
    """Lets the writer get on between the lines."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.sessions: list[int] = []

    def write(self, text: str) -> int:
        if len(self.sessions) < 5 or '"type": "retained"' in text:
            self.sessions.append(count(self.path, "session"))
        return super().write(text)


def test_export_is_of_one_moment_while_somebody_writes(tmp_path: Path) -> None:
    with busy(tmp_path) as path:
        output = Slow(path)
        lines = export(path, output)
    entries = [json.loads(line) for line in output.getvalue().splitlines()]
    assert len(entries) == lines
    by_type: dict[str, list[dict[str, Any]]] = {}
    for entry in entries:
        by_type.setdefault(entry.pop("type"), []).append(entry)
    sessions = {entry["id"] for entry in by_type["session"]}
    assert sessions == set(range(1, len(sessions) + 1))
    assert output.sessions[-1] > len(sessions)  # more were written before the export had ended
    for table in ("subscription", "inbound", "will"):
        assert {entry["session"] for entry in by_type[table]} == sessions
    assert len(by_type["message"]) == len(by_type["delivery"]) == PER_SESSION * len(sessions)
    assert len(by_type["retained"]) == len(sessions)


def test_export_has_every_byte(tmp_path: Path) -> None:
    path = make_store(tmp_path, 0)
    payload, text = bytes(range(256)), "Grüße\n\x00\u2028"
    with writing(path) as connection:
        connection.execute("INSERT INTO session VALUES (1, ?, 4294967295, 1700000000000)", (b"\xc3\xa9",))
        connection.execute("INSERT INTO message VALUES (2, x'612f62', ?, ?, 2, 1, 5)", (b"\x01\x01", payload))
        connection.execute("INSERT INTO message VALUES (3, x'612f62', x'', ?, 1, 0, 0)", (text.encode(),))
        connection.execute("INSERT INTO delivery VALUES (2, 1, 2, 1, 1, 77, ?)", (bytes.fromhex("0700000001010000"),))
        connection.execute("INSERT INTO delivery VALUES (3, 1, 1, 0, 0, 0, NULL)")
        connection.execute("INSERT INTO delivery VALUES (3, 1 | (5 << 40), 1, 2, 1, 5, ?)", ((7 << 33).to_bytes(8, "little"),))
        connection.execute("UPDATE meta SET value = 4 WHERE key = 'next_id'")
    output = io.StringIO()
    export(path, output)
    entries = [json.loads(line) for line in output.getvalue().split("\n")[:-1]]
    assert entries[0] == {"type": "store", "version": 2}
    assert [entry["key"] for entry in entries if entry["type"] == "meta"] == ["clean", "clock", "next_id"]
    assert [entry for entry in entries if entry["type"] not in ("store", "meta")] == [
        {"type": "session", "id": 1, "client_id": "é", "expiry_s": 4294967295, "offline_since_ms": 1700000000000},
        {
            "type": "message",
            "id": 2,
            "topic": "a/b",
            "properties": "\x01\x01",
            "payload_base64": base64.b64encode(payload).decode(),
            "qos": 2,
            "retain": 1,
            "expires_ms": 5,
        },
        {"type": "message", "id": 3, "topic": "a/b", "properties": "", "payload": text, "qos": 1, "retain": 0, "expires_ms": 0},
        {"type": "delivery", "message": 2, "target": 1, "qos": 2, "flags": 1, "state": 1, "packet_id": 77, "identifiers": [7, 257]},
        {"type": "delivery", "message": 3, "target": 1, "qos": 1, "flags": 0, "state": 0, "packet_id": 0, "identifiers": None},
        {"type": "delivery", "message": 3, "target": 1 | 5 << 40, "qos": 1, "flags": 2, "state": 1, "packet_id": 5, "lent_by": 7 << 33},
    ]


def test_backup_while_somebody_writes(tmp_path: Path) -> None:
    target = tmp_path / "backup.db"
    lines: list[str] = []
    with busy(tmp_path / "data") as path:
        size = backup(path, target, lines.append)
    assert lines == [f"copying {path}", f"checking {target}"]
    assert os.listdir(tmp_path) != [] and sorted(os.listdir(tmp_path)) == ["backup.db", "data"]
    assert (target.stat().st_size, stat.S_IMODE(target.stat().st_mode)) == (size, 0o600)
    restored = tmp_path / "restored"
    restored.mkdir()
    os.rename(target, restored / "store.db")
    with open_store(restored) as store:
        assert not store.created
    assert check(store.path) == []
    sessions = count(store.path, "session")
    assert 100 < sessions < count(path, "session")
    assert count(store.path, "message") == count(store.path, "delivery") == PER_SESSION * sessions
    assert count(store.path, "will") == sessions


@pytest.mark.parametrize("kind", ["file", "dangling"])
def test_backup_replaces_nothing(tmp_path: Path, kind: str) -> None:
    path = make_store(tmp_path / "data")
    target = tmp_path / "backup.db"
    if kind == "file":
        target.write_text("mine")
    else:
        target.symlink_to(tmp_path / "nowhere")
    with pytest.raises(StoreError, match=r"backup\.db exists; a backup replaces nothing"):
        backup(path, target)
    assert sorted(os.listdir(tmp_path)) == ["backup.db", "data"]
    assert kind == "dangling" or target.read_text() == "mine"


def test_backup_does_not_replace_what_appears_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_store(tmp_path / "data")
    target = tmp_path / "backup.db"
    for links in (True, False):
        if not links:

            def no_links(source: Path, name: Path) -> None:
                raise PermissionError(1, "no links here")

            monkeypatch.setattr(os, "link", no_links)
        with pytest.raises(StoreError, match="replaces nothing"):
            backup(path, target, lambda line: target.write_text("mine") if line.startswith("checking") else None)
        assert target.read_text() == "mine"
        target.unlink()
    backup(path, target)  # where there are no links
    assert sorted(os.listdir(tmp_path)) == ["backup.db", "data"]
    assert count(target, "session") == 3


def test_backup_of_what_is_damaged_or_not_there(tmp_path: Path) -> None:
    target = tmp_path / "backup.db"
    with pytest.raises(StoreError, match="there is no store"):
        backup(tmp_path / "store.db", target)
    with pytest.raises(StoreError, match=r"/nowhere/b: No such file"):
        backup(tmp_path / "store.db", tmp_path / "nowhere" / "b")
    path = make_store(tmp_path / "data", 1, 500)
    leaf = pages_of(path, "message", "leaf")[10]
    overwrite(path, (leaf - 1) * PAGE_BYTES + 3, b"\0\1")  # the number of rows on it
    with pytest.raises(StoreError, match=r"data/store\.db is damaged: the copy has \d+ faults, the first: "):
        backup(path, target)
    damage_page(path, leaf)
    with pytest.raises(StoreError, match=r"data/store\.db is damaged: database disk image is malformed"):
        backup(path, target)
    assert os.listdir(tmp_path) == ["data"]


def test_backup_without_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_store(tmp_path / "data", 1, 500)
    connect = database.connect

    def small(file: Path, mode: str) -> database.sqlite3.Connection:
        connection = connect(file, mode)
        if file.name.endswith(".partial"):
            connection.execute("PRAGMA max_page_count = 12")
        return connection

    monkeypatch.setattr(database, "connect", small)
    with pytest.raises(StoreError, match="full"):
        backup(path, tmp_path / "backup.db")
    assert os.listdir(tmp_path) == ["data"]


def test_readers_change_nothing_and_need_no_lock(tmp_path: Path) -> None:
    with open_store(tmp_path) as store, writing(store.path) as connection:
        add_session(connection, 1, 5)
        before = store.path.read_bytes(), (tmp_path / "store.db-wal").read_bytes()
        assert check(store.path) == []
        figures = info(store.path)
        assert (store.path.read_bytes(), (tmp_path / "store.db-wal").read_bytes()) == before
    assert (figures.version, figures.clean, figures.next_id, figures.unclaimed) == (2, True, 1_000_006, 0)
    assert figures.wal_bytes == len(before[1])
    assert figures.rows == {
        "meta": 3, "session": 1, "subscription": 1, "share_group": 0, "message": 5, "delivery": 5, "log": 0,
            "inbound": 1, "will": 1, "retained": 1,
    }  # fmt: skip


@pytest.mark.parametrize("work", [info, check, lambda path: backup(path, path.with_name("b")), lambda path: export(path, io.StringIO())])
def test_readers_refuse_a_newer_store(tmp_path: Path, work: Callable[[Path], object]) -> None:
    path = make_store(tmp_path)
    with writing(path) as connection:
        connection.execute("PRAGMA user_version = 3")
    with pytest.raises(VersionError):
        work(path)


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mqttc", *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_commands(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    path = make_store(folder)
    file = tmp_path / "broker.toml"
    file.write_text(f"data_dir = '{folder}'\n")
    for place, variables in ((["--data-dir", str(folder)], {}), (["--config", str(file)], {}), ([], {"MQTTC_DATA_DIR": str(folder)})):
        done = run("store", "info", *place, **variables)
        assert done.returncode == 0, done.stderr
        shown = dict(line.split(":", 1) for line in done.stdout.splitlines())
        assert {key: shown[key].strip() for key in ("file", "schema version", "ended in order", "message rows", "next id")} == {
            "file": str(path),
            "schema version": "2",
            "ended in order": "yes",
            "message rows": "15",
            "next id": "3000006",
        }
    done = run("store", "check", "--data-dir", str(folder))
    assert (done.returncode, done.stdout) == (0, "sound\n")
    done = run("store", "export", "--data-dir", str(folder), PYTHONIOENCODING="ascii")
    assert done.returncode == 0
    assert [json.loads(line)["type"] for line in done.stdout.splitlines()].count("message") == 15
    done = run("backup", str(tmp_path / "copy"), "--data-dir", str(folder))
    assert done.returncode == 0 and done.stderr.endswith(f"copy: {(tmp_path / 'copy').stat().st_size} bytes\n")
    done = run("backup", str(tmp_path / "copy"), "--data-dir", str(folder))
    assert (done.returncode, done.stderr) == (1, f"mqttc-broker: {tmp_path}/copy exists; a backup replaces nothing\n")


def test_check_is_exit_1_with_findings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = make_store(tmp_path)
    with writing(path) as connection:
        connection.execute("INSERT INTO inbound VALUES (99, 1)")
    assert main(["store", "check", "--data-dir", str(tmp_path)]) == 1
    captured = capsys.readouterr()
    assert captured.out == "not sound\n"
    assert captured.err.endswith(f"mqttc-broker: {path}: 1 inbound packet ids without session\n")


@pytest.mark.parametrize("command", [["store", "info"], ["store", "check"], ["store", "export"], ["backup", "x"]])
def test_commands_without_a_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str]) -> None:
    monkeypatch.chdir(tmp_path)
    done = run(*command, "--data-dir", str(tmp_path / "data"))
    assert (done.returncode, done.stdout) == (1, "")
    assert f"mqttc-broker: {tmp_path}/data/store.db: there is no store\n" in done.stderr


def test_wrong_usage_and_configuration_are_exit_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["store"], ["store", "repair"], ["backup"], ["store", "info", "--config", "a", "--data-dir", "b"]):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 2
    assert main(["store", "info", "--config", str(tmp_path / "none.toml")]) == 2
    assert "none.toml: No such file" in capsys.readouterr().err


def test_export_ends_quietly_when_nobody_reads_on(tmp_path: Path) -> None:
    make_store(tmp_path, 1, 5000)
    process = subprocess.Popen(
        [sys.executable, "-m", "mqttc", "store", "export", "--data-dir", str(tmp_path)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None and process.stderr is not None
    assert json.loads(process.stdout.readline())["type"] == "store"
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(20) == 1
    process.stderr.close()


def test_recover_then_serve(tmp_path: Path) -> None:
    path = make_store(tmp_path, 1, 500)
    damage_page(path, pages_of(path, "message", "leaf")[10])
    arguments = ["--recover", "--listen", "tcp://127.0.0.1:0", "--set", f"data_dir={tmp_path}", "--set", "durability.mode=written"]
    process = subprocess.Popen([sys.executable, "-m", "mqttc", *arguments], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    watchdog = threading.Timer(60, process.kill)
    watchdog.start()
    assert process.stderr is not None
    lines: list[str] = []
    for line in process.stderr:
        lines.append(line.rstrip("\n"))
        if line == "ready\n":
            break
    process.send_signal(signal.SIGTERM)
    process.communicate()
    watchdog.cancel()
    assert process.returncode == 0
    assert any("stretches of unknown size unreadable" in line for line in lines)
    assert any("data was lost" in line for line in lines)
    assert lines[-1] == "ready"
    (kept,) = tmp_path.glob("store.db.damaged-*Z")
    assert f"mqttc-broker: the damaged file is kept as {kept}" in lines
    assert check(path) == []


def test_recover_that_cannot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--recover", "--set", f"data_dir={tmp_path}"]) == 2
    assert "nothing is kept, durability.mode is off" in capsys.readouterr().err
    (tmp_path / "store.db").write_text("my notes\n" * 1000)
    assert main(["--recover", "--set", f"data_dir={tmp_path}", "--set", "durability.mode=synced"]) == 1
    assert "is not a store of mqttc" in capsys.readouterr().err
    with open_store(tmp_path / "used"):
        assert main(["--recover", "--set", f"data_dir={tmp_path}/used", "--set", "durability.mode=synced"]) == 1
    assert "is in use by another broker of this process" in capsys.readouterr().err


def test_nothing_a_damaged_file_holds_steers_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = make_store(tmp_path)
    with writing(path) as connection:
        connection.execute('CREATE TABLE "a\x1b[31m" (a)')
    assert main(["store", "check", "--data-dir", str(tmp_path)]) == 1
    captured = capsys.readouterr()
    assert "does not belong" in captured.err and "\x1b" not in captured.err
    overwrite(path, 0, b"\x1b" * 16)
    assert main(["store", "info", "--data-dir", str(tmp_path)]) == 1
    assert "\x1b" not in capsys.readouterr().err
