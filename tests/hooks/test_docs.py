"""The examples of docs/hooks.md run as they stand, and its tables name what there is."""

from __future__ import annotations

import re
from pathlib import Path

from mqttc.hooks import KINDS, Hooks

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "hooks.md").read_text("utf-8")


def test_examples() -> None:
    examples = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert len(examples) == 1
    for example in examples:
        exec(compile(example, "docs/hooks.md", "exec"), {})


def test_names() -> None:
    assert [kind for kind in KINDS if f"`@{kind}" not in PAGE] == []
    hooks = Hooks()
    assert f"| {hooks.max_waiting} |" in PAGE
    assert f"threads={hooks.threads})" in PAGE
    operations = (ROOT / "docs" / "operations.md").read_text("utf-8")
    for name in ("asked", "refused", "changed", "late", "failed", "overflowed", "waiting", "unasked", "abandoned"):
        assert f"`hooks_{name}`" in operations
