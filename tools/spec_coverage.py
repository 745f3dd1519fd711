"""Which statements of the MQTT standards the conformance tests check: covered against due, per version.

Due are the statements in `tests/spec/mqtt311.csv` and `mqtt5.csv` that a server can break (`applies_to` is server, both or
codec). A statement is covered when a test that pytest collects from `tests/conformance/` names it in a `spec` mark and is
not marked to be skipped; or exempted in `tests/conformance/exemptions.csv` with a reason. Exit code 1 on a hole, on a mark
or exemption that names no statement, and on an exemption that is not needed.

    python tools/spec_coverage.py [--list]     # --list: the tests of every statement
"""

from __future__ import annotations

import csv
import sys
from collections import defaultdict
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


def read_exemptions() -> dict[Statement, str]:
    """Exempted statements with their reasons."""
    with (ROOT / "tests" / "conformance" / "exemptions.csv").open(newline="", encoding="utf-8") as file:
        return {(line["version"], line["id"]): line["reason"].strip() for line in csv.DictReader(file)}


def main(arguments: list[str]) -> int:
    collector = Collector()
    options = ["--collect-only", "-o", "addopts=", "-p", "no:cacheprovider", "-p", "no:terminal", "--noconftest"]
    status = pytest.main([*options, str(ROOT / "tests" / "conformance")], plugins=[collector])
    if status != 0 or not collector.collected:
        print(f"pytest could not collect the tests (status {int(status)})")
        return 1
    statements, exempt = read_due(), read_exemptions()
    faults = [f"a test names {v} {s}, which is no statement" for v, s in sorted(set(collector.tests) - set(statements))]
    faults += [f"{v} {s} is exempted, but is no statement" for v, s in sorted(set(exempt) - set(statements))]
    faults += [f"{v} {s} is exempted, but a test covers it" for v, s in sorted(set(exempt) & set(collector.tests))]
    faults += [f"{v} {s} is exempted without a reason" for (v, s), reason in sorted(exempt.items()) if not reason]
    for version in TABLES:
        due = [s for (v, s), applies in statements.items() if v == version and applies != "client"]
        tested = [s for s in due if (version, s) in collector.tests]
        excused = [s for s in due if (version, s) in exempt]
        client = sum((version, s) in collector.tests for (v, s), a in statements.items() if v == version and a == "client")
        print(
            f"MQTT {version}: {len(tested)} of {len(due)} due statements tested, {len(excused)} exempted"
            f" (and the server's side of {client} client statements)"
        )
        for s in excused:
            print(f"  exempted {s}: {exempt[version, s]}")
        faults += [f"MQTT {version}: no test for {s}" for s in due if s not in tested and s not in excused]
    if "--list" in arguments:
        for (version, s), tests in sorted(collector.tests.items()):
            print(f"{version} {s}")
            for test in sorted(set(tests)):
                print(f"    {test}")
    print(f"{collector.collected} tests")
    for fault in faults:
        print(f"HOLE: {fault}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
