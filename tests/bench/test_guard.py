"""The speed regression guard notices a rise, and counts what it says it counts."""

from __future__ import annotations

import os
import platform
import shutil
import tomllib
from pathlib import Path

import pytest

from bench.guard import guard
from bench.guard.guard import FIGURES, TURNS, WORK, Change, GuardError, changes, main, risen, store_figures, stored_figures

ROOT = Path(__file__).parents[2]
HERE = platform.machine()


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """What callgrind would find."""
    found = dict.fromkeys((*WORK, *TURNS), 1000.0)
    monkeypatch.setattr(guard, "measure", found.__getitem__)
    return found


def test_a_rise_is_noticed(counted: dict[str, float], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "figures.toml"
    store_figures(file, HERE, counted, "cc")
    assert main(["--figures", str(file)]) == 0
    counted["match"] = 1049.0
    assert main(["--figures", str(file)]) == 0
    counted["match"] = 1051.0
    assert main(["--figures", str(file)]) == 1
    assert "1 of 14 rose by more than 5%: match" in capsys.readouterr().out
    assert main(["--figures", str(file), "--only", "route-hit"]) == 0
    assert main(["--figures", str(file), "--tolerance", "0.1"]) == 0
    counted["match"] = 900.0
    assert main(["--figures", str(file)]) == 0
    assert "fell by 10.0%" in capsys.readouterr().out


def test_update_stores_what_was_found(counted: dict[str, float], tmp_path: Path) -> None:
    file = tmp_path / "figures.toml"
    store_figures(file, "other", {"match": 7.0}, "another compiler")
    assert main(["--figures", str(file)]) == 3  # nothing for this architecture
    assert main(["--figures", str(file), "--update"]) == 0
    counted["match"] = 2000.0
    assert main(["--figures", str(file), "--update", "--only", "match"]) == 0
    assert stored_figures(file, HERE) == counted
    assert stored_figures(file, "other") == {"match": 7.0}


def test_changes() -> None:
    found = changes({"a": 100.0}, {"a": 110.0, "b": 5.0})
    assert found == [Change("a", 100.0, 110.0), Change("b", None, 5.0)]
    assert [change.name for change in risen(found, 0.05)] == ["a"]
    assert risen(found, 0.11) == []


def test_stored_figures_are_complete() -> None:
    for section in tomllib.loads(FIGURES.read_text("utf-8")).values():
        assert set(section["instructions"]) == {*WORK, *TURNS}
        assert all(value > 10 for value in section["instructions"].values())


def test_unknown_work_and_no_valgrind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--only", "nothing"])
    assert ended.value.code == 2
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(GuardError, match="valgrind is not installed"):
        guard.measure("decode-puback")


def test_callgrind_counts_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one round, an ack's decoding: more than its bytes, less than Python would need."""
    if shutil.which("valgrind") is None:
        pytest.skip("valgrind is not installed")
    if "MQTTC_SANITIZER" in os.environ:
        pytest.skip("a sanitizer's build does not run under valgrind")
    monkeypatch.setattr(guard, "COUNTS", (10_000, 60_000))
    assert 20 < guard.measure("decode-puback") < 1000
