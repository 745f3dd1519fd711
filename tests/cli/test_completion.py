"""Completion scripts, in the shells that are installed."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.cli.conftest import TIMEOUT_S, mqttc, ok

LINES = [
    ("mqttc ", {"pub", "sub", "request", "tap", "completion"}, {"--qos"}),
    ("mqttc t", {"tap"}, {"sub"}),
    ("mqttc pub --ret", {"--retain"}, {"--retain-handling", "--repeat"}),
    ("mqttc sub --retain", {"--retained-only", "--retain-handling", "--retain-as-published"}, {"--retain"}),
    ("mqttc pub --qos ", {"0", "1", "2"}, {"3", "--qos"}),
    ("mqttc sub --color a", {"auto", "always"}, {"never"}),
    ("mqttc tap --decode ", {"cbor", "msgpack"}, {"pub"}),
    ("mqttc request --bi", {"--bind"}, {"--psk"}),
    ("mqttc tap --psk", {"--psk", "--psk-file", "--psk-identity"}, {"--bind"}),
    ("mqttc completion z", {"zsh"}, {"bash"}),
]


@pytest.fixture(params=["bash", "zsh", "fish"])
def shell(request: pytest.FixtureRequest) -> str:
    if shutil.which(request.param) is None:
        pytest.skip(f"{request.param} is not installed")
    return str(request.param)


@pytest.fixture
def script(shell: str, tmp_path: Path) -> Path:
    path = tmp_path / f"mqttc.{shell}"
    path.write_bytes(ok(mqttc("completion", shell)))
    return path


def bash(script: Path, line: str) -> set[str]:
    words = line.split(" ")
    quoted = " ".join(f"'{word}'" for word in words)
    program = f'source {script}; COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; _mqttc; printf "%s\\n" "${{COMPREPLY[@]}}"'
    done = subprocess.run(["bash", "--norc", "-c", program], capture_output=True, text=True, timeout=TIMEOUT_S, check=True)
    return set(done.stdout.split()) if done.stderr == "" else {done.stderr}


def fish(script: Path, line: str) -> set[str]:
    done = subprocess.run(
        ["fish", "--no-config", "-c", f"source {script}; complete -C '{line}'"],
        capture_output=True, text=True, timeout=TIMEOUT_S, check=True, env={**os.environ, "HOME": str(script.parent)},
    )  # fmt: skip
    return {found.split("\t")[0] for found in done.stdout.splitlines()} if done.stderr == "" else {done.stderr}


def zsh(script: Path, line: str) -> set[str]:
    """In a terminal: zsh completes nowhere else. Its list is between what the line editor echoes and the mark that follows."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        ["zsh", "-f", "-i"], stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
        env={**os.environ, "HOME": str(script.parent), "TERM": "xterm", "COLUMNS": "200", "LINES": "200"},
    )  # fmt: skip
    os.close(slave)
    data = b""

    def until(mark: bytes) -> bytes:
        nonlocal data
        while mark not in data:
            assert select.select([master], [], [], TIMEOUT_S)[0], data
            data += os.read(master, 65536)
        before, _, data = data.partition(mark)
        return before

    try:
        setup = f"PS1='pro''mpt>' PS2=''; autoload -Uz compinit; compinit -D -u; source {script}; "
        setup += "LISTMAX=10000; setopt no_beep no_list_ambiguous; bindkey '^T' list-choices; bindkey '^U' kill-whole-line; "
        os.write(master, setup.encode() + b"\n")
        until(b"prompt>")
        os.write(master, line.encode() + b"\x14")  # lists the choices, in full
        os.write(master, b"\x15echo en''ded\n")
        listed = until(b"ended").decode("utf-8", "replace")
    finally:
        process.kill()
        process.wait()
        os.close(master)
    return set(re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", " ", listed).split())


@pytest.mark.parametrize(("line", "there", "absent"), LINES)
def test_what_the_tab_key_offers(shell: str, script: Path, line: str, there: set[str], absent: set[str]) -> None:
    found = {"bash": bash, "zsh": zsh, "fish": fish}[shell](script, line)
    assert there <= found
    assert not (absent - set(line.split())) & found


def test_files_are_offered(script: Path, shell: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "payload.json").touch()
    found = {"bash": bash, "zsh": zsh, "fish": fish}[shell](script, "mqttc pub --file pay")
    assert "payload.json" in found


def test_shells_that_are_none(capsys: pytest.CaptureFixture[str]) -> None:
    from mqttc.cli.main import main

    assert main(["completion", "tcsh"]) == 2
    assert "invalid choice: 'tcsh'" in capsys.readouterr().err
