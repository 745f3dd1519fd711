"""Which statements of the MQTT standards the conformance tests check: covered against due, per side and version.

Due are the statements in `tests/spec/mqtt311.csv` and `mqtt5.csv` that a server can break (`applies_to` is server, both or
codec), and of a client those that it can (client or both). A statement is covered when a test that pytest collects from
`tests/conformance/`, for a client from `tests/client/`, names it in a `spec` mark and is not marked to be skipped; or exempted
in `exemptions.csv` of that folder with a reason. Exit code 1 on a hole, on a mark or exemption that names no statement, and on an
exemption that is not needed.

    python tools/spec_coverage.py [--list]     # --list: the tests of every statement
"""

from __future__ import annotations

import csv
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TABLES = {"3.1.1": "mqtt311.csv", "5": "mqtt5.csv"}

Statement = tuple[str, str]


class Collector:
    """A pytest plugin that notes which statements the collected tests name."""

    def __init__(self) -> None:
        self.tests: defaultdict[Statement, list[str]] = defaultdict(list)
        self.collected = 0

    def pytest_configure(self, config: pytest.Config) -> None:
        config.addinivalue_line("markers", "spec(version, *ids): statements of one standard that the test checks")

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        for item in session.items:
            self.collected += 1
            if any(item.iter_markers("skip")) or any(item.iter_markers("xfail")):
                continue
            callspec = getattr(item, "callspec", None)
            level = callspec.params.get("version") if callspec is not None else None
            for mark in item.iter_markers("spec"):
                version, *statements = mark.args
                if level is not None and (version == "5") != (level == 5):
                    continue  # a test run for several versions checks each standard in its own version
                for statement in statements:
                    self.tests[version, statement].append(item.nodeid)


def read_due() -> dict[Statement, str]:
    """All statements with their applies_to."""
    found: dict[Statement, str] = {}
    for version, table in TABLES.items():
        with (ROOT / "tests" / "spec" / table).open(newline="", encoding="utf-8") as file:
            for line in csv.DictReader(file):
                found[version, line["id"]] = line["applies_to"]
    return found


@dataclass(frozen=True)
class Side:
    """Who is to keep to the statements, and where it is tested."""

    name: str
    folder: str
    due: tuple[str, ...]
    """Values of applies_to."""


SERVER = Side("server", "conformance", ("server", "both", "codec"))
CLIENT = Side("client", "client", ("client", "both"))


def read_exemptions(folder: str) -> dict[Statement, str]:
    """Exempted statements with their reasons."""
    with (ROOT / "tests" / folder / "exemptions.csv").open(newline="", encoding="utf-8") as file:
        return {(line["version"], line["id"]): line["reason"].strip() for line in csv.DictReader(file)}


def collect(folder: str) -> Collector | None:
    """The statements that the tests of a folder name."""
    collector = Collector()
    options = ["--collect-only", "-o", "addopts=", "-p", "no:cacheprovider", "-p", "no:terminal", "--noconftest"]
    status = pytest.main([*options, str(ROOT / "tests" / folder)], plugins=[collector])
    if status != 0 or not collector.collected:
        print(f"pytest could not collect the tests of {folder} (status {int(status)})")
        return None
    return collector


def report(side: Side, collector: Collector, statements: dict[Statement, str], every_test: bool) -> list[str]:
    """Prints what is covered; returns the faults."""
    exempt = read_exemptions(side.folder)
    faults = [f"a test names {v} {s}, which is no statement" for v, s in sorted(set(collector.tests) - set(statements))]
    faults += [f"{v} {s} is exempted, but is no statement" for v, s in sorted(set(exempt) - set(statements))]
    faults += [f"{v} {s} is exempted, but a test covers it" for v, s in sorted(set(exempt) & set(collector.tests))]
    faults += [f"{v} {s} is exempted without a reason" for (v, s), reason in sorted(exempt.items()) if not reason]
    for version in TABLES:
        due = [s for (v, s), applies in statements.items() if v == version and applies in side.due]
        tested = [s for s in due if (version, s) in collector.tests]
        excused = [s for s in due if (version, s) in exempt]
        others = sum((version, s) in collector.tests for (v, s), a in statements.items() if v == version and a not in side.due)
        print(
            f"MQTT {version}, {side.name}: {len(tested)} of {len(due)} due statements tested, {len(excused)} exempted"
            f" (and its side of {others} others)"
        )
        for s in excused:
            print(f"  exempted {s}: {exempt[version, s]}")
        faults += [f"MQTT {version}, {side.name}: no test for {s}" for s in due if s not in tested and s not in excused]
    if every_test:
        for (version, s), tests in sorted(collector.tests.items()):
            print(f"{version} {s}")
            for test in sorted(set(tests)):
                print(f"    {test}")
    print(f"{collector.collected} tests")
    return faults


def main(arguments: list[str]) -> int:
    statements = read_due()
    faults: list[str] = []
    for side in (SERVER, CLIENT):
        collector = collect(side.folder)
        if collector is None:
            return 1
        faults += report(side, collector, statements, "--list" in arguments)
    for fault in faults:
        print(f"HOLE: {fault}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
