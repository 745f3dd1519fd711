"""Lint, types, and what every module has to bring along."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
BELOW_F5 = ("base", "proto", "net", "broker", "loadgen")


def run(tool: str, *arguments: str) -> None:
    if importlib.util.find_spec(tool) is None:
        pytest.skip(f"{tool} is not installed")
    done = subprocess.run([sys.executable, "-m", tool, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_ruff_is_clean():
    run("ruff", "check", ".")


def test_mypy_strict_is_clean():
    run("mypy")


def test_compiled_modules_that_python_sees_have_stubs():
    compiled = [*sorted((ROOT / "mqttc").glob("*.pyx")), *sorted((ROOT / "mqttc" / "client").glob("*.pyx"))]
    assert compiled
    assert [path.name for path in compiled if not path.with_suffix(".pyi").is_file()] == []


def test_modules_below_f5_have_a_contract():
    missing = []
    for package in BELOW_F5:
        for path in sorted((ROOT / "mqttc" / package).glob("*.pyx")):
            if not path.with_suffix(".pxd").is_file() and not path.name.startswith("poller_"):
                missing.append(path.relative_to(ROOT).as_posix())
    assert missing == []
    assert (ROOT / "mqttc/net/poller.pxd").is_file()


def test_contracts_have_an_implementation():
    """A .pxd that declares functions outside an extern block, and is not inline throughout, needs its .pyx."""
    pytest.importorskip("Cython")
    from cython_tree import parse, walk

    missing = []
    for package in BELOW_F5:
        for path in sorted((ROOT / "mqttc" / package).glob("*.pxd")):
            if path.with_suffix(".pyx").is_file() or path.name == "poller.pxd":
                continue
            nodes = list(walk(parse(ROOT, path), into_extern=False))
            fields = {id(field) for node in nodes for field in getattr(node, "attributes", None) or ()}
            variables = [node for node in nodes if type(node).__name__ == "CVarDefNode" and id(node) not in fields]
            if any(type(item).__name__ == "CFuncDeclaratorNode" for node in variables for item in node.declarators):
                missing.append(path.relative_to(ROOT).as_posix())
    assert missing == []


def test_the_package_ships_its_types_and_declarations():
    assert (ROOT / "mqttc/py.typed").is_file()
    for package in ("", *BELOW_F5):
        assert (ROOT / "mqttc" / package / "__init__.pxd").is_file(), package
