"""The examples of docs/client.md and the programs of examples/ run as they stand."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from mqttc.client import Options

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "client.md"
PROGRAMS = sorted((ROOT / "examples").glob("client_*.py"))


def test_examples(url: str) -> None:
    examples = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert len(examples) == 7
    names: dict[str, object] = {"URL": url}
    for example in examples:
        exec(compile(example, str(PAGE), "exec"), names)


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
