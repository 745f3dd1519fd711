"""The examples of docs/testing-your-program.md, and the program of examples/, pass as they stand."""

from __future__ import annotations

import re

import pytest

from tests.plugin.test_fixtures import LOAD, NO_ASYNCIO, ROOT

pytest_plugins = ("pytester",)
PAGE = ROOT / "docs" / "testing-your-program.md"


def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, source: str) -> pytest.RunResult:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    pytester.makepyfile(source)
    return pytester.runpytest_subprocess(*LOAD, *NO_ASYNCIO, "-W", "error", "--strict-markers")


def test_the_page(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    examples = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert len(examples) == 7
    run(pytester, monkeypatch, "\n\n".join(examples)).assert_outcomes(passed=8)


def test_the_program(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    run(pytester, monkeypatch, (ROOT / "examples" / "test_with_mqttc.py").read_text("utf-8")).assert_outcomes(passed=5)


def test_the_table_of_fixtures_is_true() -> None:
    from mqttc import pytest_plugin

    text = PAGE.read_text("utf-8")
    listed = {name for row in re.findall(r"^\| (`mqtt_[^|]*) \|", text, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)}
    fixtures = {name for name, value in vars(pytest_plugin).items() if type(value).__name__ == "FixtureFunctionDefinition"}
    assert listed == fixtures


def test_the_table_of_faults_is_true() -> None:
    from mqttc.testing import FaultProxy

    text = PAGE.read_text("utf-8").split("## What goes wrong")[1]
    names = re.findall(r"^\| `(\w+)", text, re.MULTILINE)
    assert len(names) == 7
    assert all(hasattr(FaultProxy, name) for name in names)
