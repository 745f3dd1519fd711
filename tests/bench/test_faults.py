"""What the tool is for: it notices each message that is lost, repeated, out of order or damaged, and ends with status 1."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from mqttc.bench.result import Result
from mqttc.cli.bench import main
from tests.bench import faults

MESSAGES = 300


def bench(url: str, file: Path, *options: str) -> tuple[int, Result]:
    clients = ["--publishers", "2", "--subscribers", "3", "--messages", str(MESSAGES), "--window", "100", "--burst", "10"]
    code = main(["run", "fanout", *clients, "--drain", "0.3", "--url", url, "--quiet", "--plain", "--json", str(file), *options])
    return code, Result.load(file)


@pytest.mark.parametrize("verify", ["0", "1"], ids=["all verified", "one verified"])
@pytest.mark.parametrize(
    "make, lost, duplicated, reordered",
    [(faults.drop, 1, 0, 0), (faults.repeat, 0, 1, 0), (faults.reorder, 0, 0, 1)],
    ids=["drop", "repeat", "reorder"],
)
def test_fault_at_a_verified_subscriber(
    make: Callable[[int], faults.Faults],
    lost: int,
    duplicated: int,
    reordered: int,
    verify: str,
    faulty: Callable[[faults.Faults], str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, result = bench(faulty(make(100)), tmp_path / "result.json", "--verify", verify, "--subscribers", "1")
    assert code == 1
    assert (result.lost, result.duplicated, result.reordered) == (lost, duplicated, reordered)
    assert (result.expected, result.delivered) == (2 * MESSAGES, 2 * MESSAGES - lost)
    assert "FAILED" in capsys.readouterr().out


@pytest.mark.parametrize("make, lost, duplicated", [(faults.drop, 1, 0), (faults.repeat, 0, 1)], ids=["drop", "repeat"])
def test_counts_find_it_where_nobody_is_verified(
    make: Callable[[int], faults.Faults], lost: int, duplicated: int, faulty: Callable[[faults.Faults], str], tmp_path: Path
) -> None:
    """One subscriber of three is verified; whichever the fault hits, the number of deliveries tells."""
    code, result = bench(faulty(make(50)), tmp_path / "result.json", "--verify", "1")
    assert code == 1
    assert (result.lost, result.duplicated) == (lost, duplicated)
    assert result.verified.startswith("1 of 3 ")


@pytest.mark.parametrize("qos", ["1", "2"])
def test_drop_with_acknowledgements(qos: str, faulty: Callable[[faults.Faults], str], tmp_path: Path) -> None:
    code, result = bench(faulty(faults.drop(20)), tmp_path / "result.json", "--qos", qos)
    assert (code, result.lost, result.duplicated) == (1, 1, 0)


def test_damaged_payload(faulty: Callable[[faults.Faults], str], tmp_path: Path) -> None:
    code, result = bench(faulty(faults.damage(7)), tmp_path / "result.json")
    assert (code, result.foreign, result.lost) == (1, 1, 1)


def test_lost_connection(faulty: Callable[[faults.Faults], str], tmp_path: Path) -> None:
    code, result = bench(faulty(faults.cut(100)), tmp_path / "result.json")
    assert code == 1
    assert result.lost_connections == 1
    assert result.lost > 0


def test_fault_among_retained_messages(faulty: Callable[[faults.Faults], str], tmp_path: Path) -> None:
    """Their order is free, repeats and gaps are not."""
    for make, lost, duplicated in ((faults.reorder, 0, 0), (faults.drop, 1, 0), (faults.repeat, 0, 1)):
        file = tmp_path / "result.json"
        options = ["--url", faulty(make(500)), "--messages", "1000", "--drain", "0.3", "--quiet", "--plain", "--json", str(file)]
        code = main(["run", "retain", *options])
        result = Result.load(file)
        assert (code, result.lost, result.duplicated, result.reordered) == (1 if lost or duplicated else 0, lost, duplicated, 0)


def test_no_fault_no_complaint(faulty: Callable[[faults.Faults], str], tmp_path: Path) -> None:
    code, result = bench(faulty(lambda number, packet: [packet]), tmp_path / "result.json")
    assert (code, result.problems, result.delivered) == (0, [], 2 * 3 * MESSAGES)
