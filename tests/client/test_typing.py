"""The client as users' type checkers see it. mypy needs no network; pyright, where it is installed, is run by `dev.py lint`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PLACES = ["examples", "tests/client/typed_use.py"]


def mypy(*arguments: str) -> str:
    """Its complaints; none is the empty text."""
    pytest.importorskip("mypy")
    command = [sys.executable, "-m", "mypy", "--strict", "--explicit-package-bases", *arguments]
    environment = {**os.environ, "MYPYPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr
    return "" if done.returncode == 0 else done.stdout


def test_examples_and_an_application() -> None:
    assert mypy(*PLACES) == ""


def test_what_is_wrong_is_seen(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.py"
    wrong.write_text("from mqttc import Client\n\nClient('mqtt://h', keep_alive='x', nonsense=1)\n")
    said = mypy(str(wrong))
    assert "keep_alive" in said and "nonsense" in said
