"""docs/hardening.md names a test for each attack, and counters and limits that there are."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from mqttc.config import Limits

ROOT = Path(__file__).parents[2]


def rows() -> list[list[str]]:
    text = (ROOT / "docs" / "hardening.md").read_text()
    table = text[text.index("| attack | what it meets |") :]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:] if line.startswith("|")]


def test_every_attack_has_a_test() -> None:
    for attack, _, _, tests in rows():
        named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", tests)
        assert named, attack
        for path, function in named:
            defined = {node.name for node in ast.walk(ast.parse((ROOT / path).read_text())) if isinstance(node, ast.FunctionDef)}
            assert function in defined, f"{path} has no {function}"


@pytest.mark.parametrize("file", ["test_known.py", "test_roads.py"])
def test_every_attack_of_this_folder_is_in_the_table(file: str) -> None:
    told = " ".join(row[3] for row in rows())
    defined = [n.name for n in ast.parse((Path(__file__).parent / file).read_text()).body if isinstance(n, ast.FunctionDef)]
    assert [name for name in defined if name.startswith("test_") and f"{file}::{name}`" not in told] == []


def test_limits_and_counters_exist() -> None:
    operations = (ROOT / "docs" / "operations.md").read_text()
    for attack, limits, counters, _ in rows():
        assert [
            name
            for name in re.findall(r"`(max_\w+|turn_\w+|connect_\w+|session_expiry|rate_\w+)`", limits)
            if name not in Limits.model_fields
        ] == []
        for name in re.findall(r"`(\w+)`", counters):
            family = re.sub(r"^(dropped|quic|connections_refused)_\w+", r"\1_*", name)
            assert f"`{name}`" in operations or f"`{family}`" in operations, f"{attack}: {name}"
