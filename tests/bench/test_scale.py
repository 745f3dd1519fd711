"""The scripts about scale: short runs against real brokers, and their judgement on made-up figures."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from bench.macro import authentications, churn, growth, memory, workers
from bench.macro.figures import StalledError, wait_for


def read(file: Path) -> list[dict[str, object]]:
    runs: list[dict[str, object]] = json.loads(file.read_text("utf-8"))["runs"]
    return runs


def test_growth(tmp_path: Path) -> None:
    out = tmp_path / "growth.json"
    kinds = ["--kinds", "subscribers", "levels", "--brokers", "mqttc", "--most", "2"]
    assert growth.main([*kinds, "--rounds", "1", "--seconds", "0.2", "--messages", "5000", "--out", str(out)]) == 0
    assert [(made["kind"], made["size"]) for made in read(out)] == [("subscribers", 1), ("levels", 1), ("levels", 2)]
    assert all(0 < float(str(made["broker_cpu_us"])) < 1000 for made in read(out))


def test_topics_have_as_many_levels_as_they_say() -> None:
    assert [growth.topic(levels, 7).count("/") + 1 for levels in growth.LEVELS] == list(growth.LEVELS)
    assert len(growth.topic(64, growth.MANY_TOPICS)) < 65536


def test_two_workers_lose_and_reorder_nothing(tmp_path: Path) -> None:
    out = tmp_path / "workers.json"
    # How much more CPU it takes is not judged here: the machine does other things.
    assert workers.main(["--loads", "p2p-qos1", "--rounds", "1", "--seconds", "0.5", "--most", "100", "--out", str(out)]) == 0
    one, two = read(out)
    assert isinstance(one["counters"], dict) and isinstance(two["counters"], dict)
    assert one["counters"]["mail_sent"] == 0 < two["counters"]["mail_sent"]
    assert two["counters"]["messages_sent"] > 0


def test_too_much_for_a_second_worker(tmp_path: Path) -> None:
    out = tmp_path / "workers.json"
    assert workers.main(["--loads", "p2p-qos0", "--rounds", "1", "--seconds", "0.3", "--most", "0.01", "--out", str(out)]) == 1


def test_ratios_are_within_rounds_and_failed_runs_have_none() -> None:
    runs = [
        workers.Run("wild", count, number, broker_cpu_us=cost)
        for number, costs in enumerate([(1.0, 1.1), (2.0, 2.2), (1.0, 9.0)])
        for count, cost in zip((1, 2), costs, strict=True)
    ]
    runs[-1].problems.append("3 lost")
    assert workers.more(runs, "wild", 2, 1) == pytest.approx([1.1, 1.1])


@pytest.mark.skipif("MQTTC_SANITIZER" in os.environ, reason="a sanitizer's own memory is not ours")
def test_memory(tmp_path: Path) -> None:
    out = tmp_path / "memory.json"
    counts = ["--subscriptions", "20000", "--retained", "20000", "--connections", "1000", "--tls-connections", "300"]
    assert memory.main(["--brokers", "mqttc", "--rounds", "1", *counts, "--out", str(out)]) == 0
    each = {str(made["what"]): float(str(made["each_bytes"])) for made in read(out)}
    assert each.keys() == memory.KINDS.keys()
    assert 4000 < each.pop(memory.TLS) < 100_000  # OpenSSL's, most of it
    assert all(64 < found < 4000 for found in each.values()), each


def test_authentications_are_decided_where_they_should_be(tmp_path: Path) -> None:
    out = tmp_path / "authentications.json"
    few = ["--rounds", "1", "--seconds", "0.5", "--warm-up", "1", "--clients", "4", "--users", "2"]
    assert authentications.main([*few, "--out", str(out)]) == 0
    assert [made["kind"] for made in read(out)] == list(authentications.KINDS)


def test_what_is_asked_where_it_should_be_remembered_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(authentications, "settings", lambda kind, *rest: real("asked", *rest))
    few = ["--kinds", "cached", "--rounds", "1", "--seconds", "0.3", "--warm-up", "1", "--clients", "2", "--users", "2"]
    assert authentications.main([*few, "--out", str(tmp_path / "out.json")]) == 1


real = authentications.settings


def test_churn_leaves_nothing(tmp_path: Path) -> None:
    out = tmp_path / "churn.json"
    few = ["--ids", "50", "--clients", "100", "--turns", "2"]
    assert churn.main(["--brokers", "mqttc", "mqttc-2", "--rounds", "1", *few, "--out", str(out)]) == 0
    assert {(made["what"], made["broker"]) for made in read(out)} == {(what, name) for what in churn.KINDS for name in ("mqttc", "mqttc-2")}


def test_what_is_left_behind_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made = churn.Run("churn", "mqttc", 0, first_bytes=50_000_000, last_bytes=60_000_000)
    after = dict.fromkeys(churn.GAUGES, 0) | {"sessions": 2}
    monkeypatch.setattr("bench.macro.counted.stats", lambda folder: after)
    churn.left_behind(made, dict.fromkeys(churn.GAUGES, 0), tmp_path)
    assert made.problems == ["sessions 0 -> 2", "10.0 MB more resident than after the first time"]


def test_waiting_ends() -> None:
    with pytest.raises(StalledError, match="nothing happens: 0 of 1"):
        wait_for("nothing happens", lambda: 0, 1, 0.05)
