"""The speed comparison: its judgement on made-up figures, and one short round against real brokers."""

from __future__ import annotations

import json
import os
import random
import shutil
import statistics
import sys
from pathlib import Path

import pytest

from bench.macro import brokers, compare
from bench.macro.compare import Interval, Row, Run, Target, interval, judge, main, median_of, ratios, rows_of
from mqttc.bench.profile import load_profile

ROOT = Path(__file__).parents[2]
ROWS = ROOT / "bench" / "macro" / "rows.toml"
TRANSPORTS = ROOT / "bench" / "macro" / "transports.toml"


def runs_of(costs: dict[str, list[float]]) -> list[Run]:
    return [
        Run("row", broker, number, broker_cpu_us=cost, per_second=1e6 / cost)
        for broker, figures in costs.items()
        for number, cost in enumerate(figures)
    ]


def test_rows_name_profiles_that_can_run() -> None:
    rows = rows_of(ROWS)
    assert len({row.name for row in rows}) == len(rows) > 10
    for row in rows:
        profile = load_profile(row.profile, row.keys)
        assert (profile.version, profile.payload) in ((4, 64), (4, 1024))
        for target in row.targets:
            assert target.of not in row.without
            assert hasattr(Run("", "", 0), target.metric)


def test_rows_of_transports_can_run() -> None:
    rows = rows_of(TRANSPORTS)
    assert len({row.name for row in rows}) == len(rows) > 10
    for row in rows:
        keys = {**row.keys, **brokers.way(row.scheme, 1, Path("folder"))}
        assert load_profile(row.profile, keys).target().tls == (row.scheme in brokers.TLS_SCHEMES)
        for name in {"mqttc", "mosquitto"} - set(row.without):
            assert callable(brokers.over(name, [], row.scheme))
    assert {row.scheme for row in rows} >= {"mqtt", "mqtts", "ws", "ws+h2", "quic"}
    for name, scheme in (("mosquitto", "quic"), ("nats", "mqtts")):
        with pytest.raises(brokers.BrokerError, match=scheme):
            brokers.over(name, [], scheme)


@pytest.mark.parametrize("name", ["mqttc", "mosquitto"])
@pytest.mark.parametrize("row", ["fanin-tls", "handshake", "handshake-resumed"])
def test_a_short_round_over_tls(tmp_path: Path, name: str, row: str) -> None:
    if name == "mosquitto" and shutil.which("mosquitto", path=f"{os.environ['PATH']}:/usr/sbin") is None:
        pytest.skip("mosquitto is not installed")
    short = ["--file", str(TRANSPORTS), "--rows", row, "--rounds", "1", "--seconds", "0.3", "--out", str(tmp_path), "--brokers", name]
    code = main(short)
    [made] = json.loads((tmp_path / "results.json").read_text())["runs"]
    assert made["problems"] == []
    assert code == 0 and made["broker_cpu_us"] > 0 and made["count"] > 0


def test_every_row_of_the_comparison_has_a_target() -> None:
    rows = {row.name: row for row in rows_of(ROWS)}
    assert all(row.targets for row in rows.values())
    assert rows["fanout-qos0"].targets[0].bound == 4.0
    assert rows["wild"].targets[0].bound == pytest.approx(1 / 22)
    assert rows["hold"].targets[0].bound == 700


@pytest.mark.parametrize(
    "wrong", [{}, {"of": "relay"}, {"most": 1.0}, {"of": "relay", "limit": 1.0}, {"of": "relay", "most": 1.0, "better": 2.0}]
)
def test_wrong_targets(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="a target has"):
        Target(**wrong)  # type: ignore[arg-type]


def test_ratios_are_within_rounds() -> None:
    """A machine twice as slow in one round changes nothing."""
    runs = runs_of({"mqttc": [2.0, 4.0, 2.0], "relay": [1.0, 2.0, 1.0]})
    assert ratios(runs, "row", "broker_cpu_us", "relay") == [2.0, 2.0, 2.0]
    assert median_of(runs, "row", "mqttc", "broker_cpu_us") == 2.0
    runs[0].problems.append("3 lost")
    assert len(ratios(runs, "row", "broker_cpu_us", "relay")) == 2


def test_interval() -> None:
    assert interval([3.0, 1.0, 2.0]) == Interval(2.0, 1.0, 3.0, 3)
    chance = random.Random(3)
    held = 0
    for _ in range(40):
        found = interval([chance.gauss(10, 1) for _ in range(15)])
        assert found.low <= found.median <= found.high
        held += found.low <= 10 <= found.high
    assert held >= 34  # 95 % of 40 is 38
    assert statistics.median([1.0]) == interval([1.0]).median


@pytest.mark.parametrize(
    "most, state", [(3.0, "met"), (2.0, "open"), (1.0, "missed")]
)
def test_verdicts(most: float, state: str) -> None:
    runs = runs_of({"mqttc": [1.5, 2.0, 2.5], "relay": [1.0, 1.0, 1.0]})
    [verdict] = judge(runs, [Row("row", "fanout", targets=(Target(of="relay", most=most),))])
    assert verdict.state == state
    assert verdict.interval == Interval(2.0, 1.5, 2.5, 3)
    assert judge(runs, [Row("row", "fanout", targets=(Target(of="nobody", most=1.0),))]) == []


def test_better_and_limit() -> None:
    runs = runs_of({"mqttc": [0.5] * 5, "mosquitto": [11.0] * 5})
    row = Row("row", "wild", targets=(Target(of="mosquitto", better=22.0), Target(of="mosquitto", better=23.0), Target(limit=0.4)))
    verdicts = judge(runs, [row])
    assert [verdict.state for verdict in verdicts] == ["met", "missed", "missed"]
    shown = compare.verdict_rows(verdicts, [row])
    assert shown[0][2:5] == ["1/22.0 x mosquitto", "1/22.0 .. 1/22.0", "1/22"]
    assert shown[2][2] == "0.5 B"
    assert compare.markdown(["a"], [["x|y"]]) == "| a |\n| --- |\n| x\\|y |\n"


@pytest.mark.skipif("MQTTC_SANITIZER" in os.environ, reason="the relay is not built for the sanitizer that is preloaded")
def test_a_short_round(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if shutil.which("cc") is None:
        pytest.skip("there is no C compiler for the relay")
    own = f"own={sys.executable} -m mqttc --listen tcp://127.0.0.1:{{port}} --set workers=1"
    arguments = ["--rows", "fanin-qos1,p2p-qos0", "--rounds", "1", "--seconds", "0.3", "--out", str(tmp_path), "--brokers", "mqttc,relay"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        assert main([*arguments, "--broker", own, "--set", "workers=2"]) in (0, 1)  # whether targets are met is no matter here
    data = json.loads((tmp_path / "results.json").read_text())
    assert [(made["row"], made["broker"]) for made in data["runs"]] == [
        (row, name) for row in ("fanin-qos1", "p2p-qos0") for name in ("mqttc", "relay", "own")
    ]
    for made in data["runs"]:
        assert made["problems"] == []
        assert made["broker_cpu_us"] > 0 and made["count"] > 0
    assert {verdict["row"] for verdict in data["verdicts"]} == {"fanin-qos1", "p2p-qos0"}
    assert data["settings"] == ["workers=2"] and data["machine"]["processors"] >= 1
    assert "| p2p QoS 0, 100 pairs | relay |" in (tmp_path / "table.md").read_text()
    assert (tmp_path / "cpu.png").stat().st_size > 5000 and (tmp_path / "targets.png").stat().st_size > 5000
    assert "verdict" in capsys.readouterr().out


def test_usage(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["--list"]) == 0
    assert capsys.readouterr().out.split()[0] == "fanout-qos0"
    nowhere = str(tmp_path / "none")
    for wrong in (["--rows", "nothing"], ["--brokers", "nobody"], ["--broker", "x"], ["--broker", "x=y"], ["--file", nowhere]):
        assert main(wrong) == 2
        assert "compare.py: " in capsys.readouterr().err
    options = compare.parser().parse_args(["--brokers", "mqttc", "--broker", "gone=no-such-program {port}"])
    assert list(compare.contenders_of(options)) == ["mqttc"]
    assert "without gone: no-such-program is not installed" in capsys.readouterr().err


def test_a_broker_that_ends_at_once_is_told(tmp_path: Path) -> None:
    launch = brokers.template(f"{sys.executable} -c 'print(1, {{port}}); raise SystemExit(3)'")
    with pytest.raises(brokers.BrokerError, match=r"does not listen \(exit code 3\): 1"), brokers.running(launch, tmp_path, None):
        pass
