"""The package as users' type checkers see it: mypy, and pyright, which is skipped where node or npm are missing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PLACES = ["examples", "tests/typing/typed_use.py"]
WRONG = "from mqttc import Client\n\nClient('mqtt://h', keep_alive='x')\nClient('mqtt://h', nonsense=1)\n"


def mypy(*arguments: str) -> str:
    """Its complaints; none is the empty text."""
    pytest.importorskip("mypy")
    command = [sys.executable, "-m", "mypy", "--strict", "--explicit-package-bases", *arguments]
    environment = {**os.environ, "MYPYPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr
    return "" if done.returncode == 0 else done.stdout


@pytest.fixture(scope="module")
def pyright() -> Path:
    """The program, in the version that package.json names."""
    programs = {program: shutil.which(program) for program in ("node", "npm")}
    missing = [program for program, path in programs.items() if path is None]
    if missing:
        pytest.skip(f"pyright needs {' and '.join(missing)}")
    if not (HERE / "node_modules" / ".package-lock.json").is_file():
        # `tools/dev.py test` installs it before pytest begins; this is for those who call pytest themselves.
        subprocess.run([str(programs["npm"]), "ci", "--no-audit", "--no-fund", "--loglevel=error"], cwd=HERE, check=True)
    return HERE / "node_modules" / ".bin" / "pyright"


def check(pyright: Path, *places: str) -> tuple[list[str], int]:
    """What it complains of, and how many files it has read. Without places: as pyproject.toml says."""
    command = [str(pyright), "--outputjson", "--pythonpath", sys.executable, *places]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    complaints = [f"{one['file']}:{one['range']['start']['line'] + 1}: {one['message']}" for one in found["generalDiagnostics"]]
    return complaints, found["summary"]["filesAnalyzed"]


def test_mypy_finds_nothing_in_examples_and_an_application() -> None:
    assert mypy(*PLACES) == ""


def test_mypy_sees_what_is_wrong(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.py"
    wrong.write_text(WRONG)
    said = mypy(str(wrong))
    assert "keep_alive" in said and "nonsense" in said


@pytest.mark.slow
def test_pyright_finds_nothing_in_examples_and_an_application(pyright: Path) -> None:
    complaints, files = check(pyright)
    assert complaints == []
    assert files > len(list((ROOT / "examples").glob("*.py"))), "pyproject.toml names the examples, and more"


def test_pyright_sees_what_is_wrong(pyright: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.py"
    wrong.write_text(WRONG)
    complaints, _ = check(pyright, str(wrong))
    assert len(complaints) == 2 and "keep_alive" in complaints[0] and "nonsense" in complaints[1]
