"""The examples of docs/client.md and docs/tutorial.md, and the programs of examples/ run as they stand."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from mqttc import Broker
from mqttc.client import Options

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "client.md"
TUTORIAL = ROOT / "docs" / "tutorial.md"
PROGRAMS = sorted((ROOT / "examples").glob("client_*.py"))


def blocks(page: Path) -> list[tuple[int, str]]:
    """Python blocks, each with the number of its first line."""
    text = page.read_text("utf-8")
    found = re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [(text.count("\n", 0, block.start(1)), block[1]) for block in found]


def execute(page: Path, names: dict[str, object]) -> None:
    """In order; a failure names the page's line."""
    for before, example in blocks(page):
        exec(compile("\n" * before + example, str(page), "exec"), names)


def test_examples(url: str) -> None:
    assert len(blocks(PAGE)) == 7
    execute(PAGE, {"URL": url})


def test_tutorial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert len(blocks(TUTORIAL)) == 10
    names: dict[str, object] = {}
    try:
        execute(TUTORIAL, names)
    finally:
        broker = names.get("broker")
        if isinstance(broker, Broker):
            broker.stop()


def test_the_table_of_options_is_true() -> None:
    rows = re.findall(r"^\| (`[^|]*`) \| ([\d, ]+) \|", PAGE.read_text("utf-8"), re.MULTILINE)
    found = 0
    for names, defaults in rows:
        for name, default in zip(re.findall(r"`(\w+)`", names), defaults.split(","), strict=True):
            assert getattr(Options(), name) == float(default), name
            found += 1
    assert found >= 15


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.name)
def test_programs(program: Path, url: str) -> None:
    command = [sys.executable, str(program), url]
    done = subprocess.run(command, cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout


def test_there_are_programs() -> None:
    assert len(PROGRAMS) >= 3
