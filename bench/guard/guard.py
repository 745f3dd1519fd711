"""The speed regression guard: `python bench/guard/guard.py [--update] [--only NAME,...]`, after `python tools/dev.py build`.

Counts instructions with callgrind for fixed work and compares them with bench/guard/figures.toml. Each work is done twice, with one count
and with another, and only the difference is taken: what starting Python costs cancels out. Exit codes: 0 nothing rose by more than the
tolerance, 1 something did, 2 wrong usage, 3 it cannot be measured here (no valgrind, nothing built, no figures for this architecture).
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from mqttc.bench.profile import Profile, RunError  # noqa: E402
from mqttc.bench.run import run  # noqa: E402

FIGURES = ROOT / "bench" / "guard" / "figures.toml"
TOLERANCE = 0.05
COUNTS = (20_000, 120_000)
MESSAGES = (1_000, 31_000)
START_S = 120.0

# A broker's turns: one publisher writes a hundred messages at once and waits until all have arrived everywhere, which fixes what can be
# batched.
TURNS = {
    "fanout-qos0": {"scenario": "fanout", "subscribers": 20, "qos": 0},
    "fanout-qos1": {"scenario": "fanout", "subscribers": 20, "qos": 1},
    "p2p-qos0": {"scenario": "fanout", "subscribers": 1, "qos": 0},
    "p2p-qos1": {"scenario": "fanout", "subscribers": 1, "qos": 1},
    "p2p-qos2": {"scenario": "fanout", "subscribers": 1, "qos": 2},
}
WORK = (
    *("decode-publish", "decode-publish-properties", "decode-puback", "encode-publish", "encode-publish5"),
    *("match", "route-hit", "queue-private", "queue-shared"),
)


RUNS = {"match": 3, "route-hit": 3, "fanout-qos1": 3}
"""Runs of which the median counts: the hash seed decides what collides, and acknowledgements of many come in groups as they come."""


class GuardError(RuntimeError):
    """It cannot be measured."""


@dataclass(frozen=True, slots=True)
class Change:
    """Instructions each, as stored and as found."""

    name: str
    stored: float | None
    found: float

    @property
    def rise(self) -> float:
        return self.found / self.stored - 1 if self.stored else 0.0


# ---- counting


def _valgrind(log: Path) -> list[str]:
    program = shutil.which("valgrind")
    if program is None:
        raise GuardError("valgrind is not installed")
    return [program, "--tool=callgrind", "--callgrind-out-file=/dev/null", f"--log-file={log}", sys.executable]


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"}


def _collected(log: Path) -> int:
    text = log.read_text("utf-8", "replace")
    found = re.search(r"Collected : (\d+)", text)
    if found is None:
        raise GuardError(f"callgrind counted nothing: {text[-500:]}")
    return int(found[1])


def instructions(name: str, count: int) -> int:
    """All that a process needs that does the work so often."""
    with tempfile.TemporaryDirectory(prefix="mqttc-guard-") as folder:
        log = Path(folder, "log")
        command = [*_valgrind(log), "-m", "bench.guard.work", name, str(count)]
        done = subprocess.run(command, cwd=ROOT, env=_environment(), capture_output=True, text=True, check=False)
        if done.returncode:
            raise GuardError(f"{name}: {done.stderr[-500:]}")
        return _collected(log)


def broker_instructions(name: str, messages: int) -> int:
    """All that a broker needs from its start to its end, for so many messages."""
    with tempfile.TemporaryDirectory(prefix="mqttc-guard-") as folder:
        log, path = Path(folder, "log"), Path(folder, "broker")
        settings = ["workers=1", "log.level=warning"]
        options = [part for setting in settings for part in ("--set", setting)]
        command = [*_valgrind(log), "-m", "mqttc", "--listen", f"unix://{path}", *options]
        broker = subprocess.Popen(command, cwd=ROOT, env=_environment(), stderr=subprocess.PIPE, text=True)
        try:
            assert broker.stderr is not None
            seen = []
            for line in broker.stderr:
                seen.append(line)
                if line.strip() == "ready":
                    break
            else:
                raise GuardError(f"{name}: the broker does not start: {''.join(seen)[-500:]}")
            fixed = {"url": f"unix://{path}", "window": 100, "burst": 100, "messages": messages, "drain": START_S, "patience": START_S}
            result = run(name, Profile(**{**TURNS[name], **fixed}))
            if result.problems:
                raise GuardError(f"{name}: {', '.join(result.problems)}")
        except RunError as error:
            raise GuardError(f"{name}: {error}") from error
        finally:
            broker.send_signal(signal.SIGTERM)
            broker.communicate(timeout=START_S)
        return _collected(log)


def measure(name: str) -> float:
    """Instructions for one packet, match or message."""
    count, counts = (broker_instructions, MESSAGES) if name in TURNS else (instructions, COUNTS)
    found = []
    for _ in range(RUNS.get(name, 1)):
        low, high = (count(name, times) for times in counts)
        found.append((high - low) / (counts[1] - counts[0]))
    return statistics.median(found)


# ---- figures


def compiler() -> str:
    done = subprocess.run([os.environ.get("CC", "cc"), "--version"], capture_output=True, text=True, check=False)
    return done.stdout.split("\n")[0]


def stored_figures(file: Path, architecture: str) -> dict[str, float]:
    """Empty where there are none for this architecture."""
    if not file.is_file():
        return {}
    section = tomllib.loads(file.read_text("utf-8")).get(architecture, {})
    return {name: float(value) for name, value in section.get("instructions", {}).items()}


def store_figures(file: Path, architecture: str, figures: Mapping[str, float], built_by: str) -> None:
    """Writes this architecture's figures and leaves the others'."""
    data = tomllib.loads(file.read_text("utf-8")) if file.is_file() else {}
    data[architecture] = {"compiler": built_by, "instructions": dict(figures)}
    lines = ["# Instructions for each packet, match, look-up, queued packet or published message: written by guard.py --update."]
    for name in sorted(data):
        lines += ["", f"[{name}]", f'compiler = "{data[name]["compiler"]}"', "", f"[{name}.instructions]"]
        lines += [f"{work} = {value:.1f}" for work, value in data[name]["instructions"].items()]
    file.write_text("\n".join(lines) + "\n", "utf-8")


def changes(stored: Mapping[str, float], found: Mapping[str, float]) -> list[Change]:
    return [Change(name, stored.get(name), value) for name, value in found.items()]


def risen(all_changes: Sequence[Change], tolerance: float) -> list[Change]:
    return [change for change in all_changes if change.rise > tolerance]


def show(all_changes: Sequence[Change], tolerance: float) -> None:
    for change in all_changes:
        if change.stored is None:
            verdict = "new: --update stores it"
        elif change.rise > tolerance:
            verdict = f"ROSE by {change.rise:.1%}"
        elif change.rise < -tolerance:
            verdict = f"fell by {-change.rise:.1%}: --update keeps it there"
        else:
            verdict = f"{change.rise:+.1%}"
        was = "-" if change.stored is None else f"{change.stored:.1f}"
        print(f"{change.name:28} {was:>10} {change.found:10.1f}  {verdict}", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="guard.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--update", action="store_true", help="store what is found")
    parser.add_argument("--only", default="", metavar="NAME,...", help=f"of {', '.join((*WORK, *TURNS))}")
    parser.add_argument("--figures", type=Path, default=FIGURES, metavar="FILE", help="instead of %(default)s")
    parser.add_argument("--tolerance", type=float, default=TOLERANCE, help="rise that is let through (%(default)s)")
    options = parser.parse_args(arguments)
    wanted = [name for name in options.only.split(",") if name] or [*WORK, *TURNS]
    unknown = [name for name in wanted if name not in WORK and name not in TURNS]
    if unknown:
        parser.error(f"there is no {', '.join(unknown)}")
    architecture = platform.machine()
    stored = stored_figures(options.figures, architecture)
    if not stored and not options.update:
        print(f"guard.py: there are no figures for {architecture}: --update stores some", file=sys.stderr)
        return 3
    found: dict[str, float] = {}
    try:
        for name in wanted:
            found[name] = measure(name)
            show(changes(stored, {name: found[name]}), options.tolerance)
    except GuardError as error:
        print(f"guard.py: {error}", file=sys.stderr)
        return 3
    if options.update:
        store_figures(options.figures, architecture, {**stored, **found}, compiler())
        return 0
    rose = risen(changes(stored, found), options.tolerance)
    if rose:
        print(f"{len(rose)} of {len(found)} rose by more than {options.tolerance:.0%}: {', '.join(change.name for change in rose)}")
    return 1 if rose else 0


if __name__ == "__main__":
    sys.exit(main())
