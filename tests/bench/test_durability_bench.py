"""bench/macro/durability.py: short runs against real brokers, and its judgement on made-up figures."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from bench.macro import brokers, durability
from bench.macro.durability import Run
from tests.store import power_image


def runs_of(tmp_path: Path, command: str, *options: str) -> list[dict[str, Any]]:
    """All that it measured; every run without a problem. Whether targets were met is the machine's business."""
    out = tmp_path / "out.json"
    code = durability.main([command, "--rounds", "1", "--folder", str(tmp_path / "disk"), "--out", str(out), *options])
    data = json.loads(out.read_text("utf-8"))
    assert not any(made["problems"] for made in data["runs"]), data["runs"]
    assert code == any(verdict["state"] == "missed" for verdict in data["verdicts"])
    assert list((tmp_path / "disk").iterdir()) == []
    runs: list[dict[str, Any]] = data["runs"]
    return runs


def test_speed(tmp_path: Path) -> None:
    runs = runs_of(tmp_path, "speed", "--brokers", "off", "written", "synced", "--messages", "20000", "--seconds", "0.3")
    assert [(made["load"], made["broker"]) for made in runs] == [(load, mode) for load in durability.LOADS for mode in durability.MODES]
    for made in runs:
        assert made["count"] == 20000 or made["load"] == "p2p"
        assert made["broker_cpu_us"] > 0 and made["fsync_ms"] > 0
        assert (made["commits"] is None) == (made["broker"] == "off")
        assert (made["drained_per_second"] is None) == (made["load"] != "queued")


def test_latency(tmp_path: Path) -> None:
    off, synced = runs_of(tmp_path, "latency", "--brokers", "off", "synced", "--seconds", "0.5", "--warmup", "0.2", "--rate", "1000")
    assert 0 < off["p50"] <= off["p99"]
    assert 0 < synced["p50"] <= synced["p99"]
    assert synced["commits"] > 0
    assert 0 <= off["over"] <= 1


def test_latency_of_retained_messages_beside_the_bare_disk(tmp_path: Path) -> None:
    options = ["--seconds", "0.5", "--warmup", "0.2", "--rate", "1000", "--retained", "1000"]
    bare, synced = runs_of(tmp_path, "latency", "--brokers", "disk", "synced", *options)
    assert bare["count"] == 500 and bare["broker_cpu_us"] is None
    assert 0 < bare["p50"] <= bare["p99"] and synced["p50"] > 0
    assert synced["commits"] > 0
    assert synced["load"] == "scattered"


def test_a_disk_that_is_slower(tmp_path: Path) -> None:
    if power_image.compiler() is None:
        pytest.skip("no C compiler")
    options = ["--seconds", "0.5", "--warmup", "0.2", "--rate", "1000", "--slower", "5"]
    off, synced = runs_of(tmp_path, "latency", "--brokers", "off", "synced", *options)
    assert off["fsync_ms"] == synced["fsync_ms"] > 5
    assert synced["p50"] > 5


def test_recovery_brings_everything_back(tmp_path: Path) -> None:
    runs = runs_of(tmp_path, "recovery", "--brokers", "written", "--messages", "3000")
    assert [made["load"] for made in runs] == list(durability.KINDS)
    nothing, *kept = runs
    assert nothing["file_bytes"] < 200_000 < min(made["file_bytes"] for made in kept)
    assert all(0 < made["rss_bytes"] <= made["peak_bytes"] and made["start_s"] > 0 for made in runs)


def test_mosquitto_keeps_what_it_is_ended_with(tmp_path: Path) -> None:
    try:
        brokers.program("mosquitto")
    except brokers.BrokerError as error:
        pytest.skip(str(error))
    runs_of(tmp_path, "recovery", "--brokers", "mosquitto", "--messages", "3000")


def test_what_is_lost_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that is gone at the second start."""

    def lose(folder: Path) -> list[Path]:
        shutil.rmtree(folder / "store")
        return []

    monkeypatch.setattr(durability, "kept", lose)
    monkeypatch.setattr(durability, "PATIENCE_S", 3.0)
    out = tmp_path / "out.json"
    options = ["--loads", "queued", "--brokers", "written", "--messages", "100", "--folder", str(tmp_path), "--out", str(out)]
    assert durability.main(["recovery", *options]) == 1
    assert json.loads(out.read_text("utf-8"))["runs"][0]["problems"] == ["draining: 0 of 100, then nothing for 3 s"]


def test_targets() -> None:
    runs = [
        Run("queued", "off", 0, 1.0, per_second=1_000_000.0),
        Run("queued", "synced", 0, 1.0, per_second=60_000.0),
        Run("queued", "off", 1, 1.0, per_second=100_000.0),
        Run("queued", "synced", 1, 1.0, per_second=30_000.0),  # 40 % would be 40 000
        Run("p2p", "off", 0, 1.0, broker_cpu_us=1.0),
        Run("p2p", "synced", 0, 1.0, broker_cpu_us=1.7),
        Run("p2p", "written", 0, 1.0, broker_cpu_us=1.5),
        Run("latency", "off", 0, 0.2, p99=0.2, over=0.004),
        Run("latency", "disk", 0, 0.2, p99=0.3, over=0.006),
        Run("latency", "synced", 0, 0.2, p99=0.9, over=0.009),
    ]
    found = durability.judge(runs)
    assert [verdict.state for verdict in found] == ["open", "met", "missed", "met", "met", "met"]
    assert [verdict.found.median for verdict in found] == pytest.approx([0.975, 1.5, 1.7, 4.5, 0.5, 0.3])
    assert (found[0].found.low, found[0].found.high) == pytest.approx((0.75, 1.2))
    runs[-1].problems.append("3 duplicates")
    assert len(durability.judge(runs)) == 3


def test_the_page_takes_a_table_at_its_place(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- durability.py speed: begin -->\nold\n<!-- durability.py speed: end -->\nafter\n", "utf-8")
    durability.put(page, "speed", "new\n")
    assert page.read_text("utf-8") == "before\n<!-- durability.py speed: begin -->\nnew\n<!-- durability.py speed: end -->\nafter\n"
    with pytest.raises(ValueError, match="no place for latency"):
        durability.put(page, "latency", "new\n")
