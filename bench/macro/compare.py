"""The speed comparison, repeatable by anybody: `python bench/macro/compare.py --rounds 7`.

Starts each broker anew for each run, on one core, and loads it from another; rounds are interleaved (every broker has its turn at a row
before the next row comes), so that a machine that grows slower does so for all. Prints medians and, of the ratios within each round, median
and a 95 % bootstrap interval; writes results.json, table.md and plots to --out. Exit codes: 0 no target was missed, 1 one was, or a run
failed or lost messages, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from bench.macro import brokers  # noqa: E402
from bench.macro.brokers import BrokerError, Launch  # noqa: E402
from mqttc.bench import report  # noqa: E402
from mqttc.bench.profile import RunError, load_profile  # noqa: E402
from mqttc.bench.result import machine  # noqa: E402
from mqttc.bench.run import run  # noqa: E402

OURS = "mqttc"
LEAST_S = 2.0
BOOTSTRAPS = 2000


@dataclass(frozen=True, slots=True)
class Target:
    """A bound for a figure of mqttc: absolute, or as a multiple of another broker's figure in the same round."""

    metric: str = "broker_cpu_us"
    of: str | None = None
    most: float | None = None
    better: float | None = None
    limit: float | None = None
    stretch: float | None = None

    def __post_init__(self) -> None:
        if sum(bound is not None for bound in (self.most, self.better, self.limit)) != 1 or (self.of is None) != (self.limit is not None):
            raise ValueError("a target has `of` and one of `most` and `better`, or a `limit` alone")

    @property
    def bound(self) -> float:
        """The most that the ratio (or the figure) may be."""
        if self.better is not None:
            return 1 / self.better
        return self.most if self.most is not None else self.limit or 0.0


@dataclass(frozen=True, slots=True)
class Row:
    name: str
    profile: str
    title: str = ""
    keys: dict[str, Any] = field(default_factory=dict)
    scheme: str = "mqtt"
    """Of the URL: the transport."""
    targets: tuple[Target, ...] = ()
    without: tuple[str, ...] = ()


@dataclass(slots=True)
class Run:
    """One broker's turn."""

    row: str
    broker: str
    round: int
    per_second: float = 0.0
    broker_cpu_us: float | None = None
    broker_cpu_share: float | None = None
    generator_cpu_share: float = 0.0
    generator_waited_share: float | None = None
    generator_limited: bool = False
    broker_rss_bytes: int | None = None
    rss_per_connection: float | None = None
    p50: float | None = None
    p99: float | None = None
    seconds: float = 0.0
    count: int = 0
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Interval:
    median: float
    low: float
    high: float
    rounds: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """``state``: met (the whole interval is within the bound), missed (none of it is), open."""

    row: str
    target: Target
    interval: Interval
    state: str


def rows_of(file: Path) -> list[Row]:
    rows = []
    for entry in tomllib.loads(file.read_text("utf-8"))["row"]:
        entry["targets"] = tuple(Target(**target) for target in entry.get("targets", ()))
        entry["without"] = tuple(entry.get("without", ()))
        rows.append(Row(**entry))
    return rows


# ---- running


def measure(row: Row, name: str, launch: Callable[[int, Path], Launch], number: int, options: argparse.Namespace) -> Run:
    """One run against a broker started for it."""
    made = Run(row.name, name, number)
    folder = Path(tempfile.mkdtemp(prefix="mqttc-bench-"))
    try:
        if row.scheme != "mqtt":
            launch = brokers.over(name, options.settings, row.scheme)
        with brokers.running(launch, folder, options.broker_core) as (port, pid):
            keys = {"duration": options.seconds, **row.keys, **brokers.way(row.scheme, port, folder)}
            with brokers.on_core(options.load_core):
                found = run(row.profile, load_profile(row.profile, keys), pid=pid)
    except (BrokerError, RunError) as error:
        made.problems.append(str(error))
        return made
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    for key in ("per_second", "broker_cpu_us", "broker_cpu_share", "generator_cpu_share", "generator_waited_share", "generator_limited"):
        setattr(made, key, getattr(found, key))
    for key in ("broker_rss_bytes", "rss_per_connection", "seconds", "count"):
        setattr(made, key, getattr(found, key))
    made.p50, made.p99 = found.latency_ms.get("p50"), found.latency_ms.get("p99")
    made.problems, made.notes = found.problems, found.notes
    return made


def play(rows: list[Row], contenders: dict[str, Callable[[int, Path], Launch]], options: argparse.Namespace) -> list[Run]:
    runs: list[Run] = []
    for number in range(options.rounds):
        for row in rows:
            names = [name for name in contenders if name not in row.without]
            turn = number % len(names) if names else 0
            for name in names[turn:] + names[:turn]:
                made = measure(row, name, contenders[name], number, options)
                runs.append(made)
                cost = "-" if made.broker_cpu_us is None else f"{made.broker_cpu_us:.3f} µs"
                what = "; ".join(made.problems) if made.problems else f"{report.number(made.per_second)}/s {cost}"
                print(f"round {number + 1}/{options.rounds}  {row.name:14} {name:12} {what}", file=sys.stderr, flush=True)
    return runs


# ---- judging


def values(runs: Sequence[Run], row: str, broker: str, metric: str) -> dict[int, float]:
    """A figure by round; runs that failed have none."""
    found = ((made.round, getattr(made, metric)) for made in runs if made.row == row and made.broker == broker and not made.problems)
    return {number: float(value) for number, value in found if value is not None}


def interval(figures: Sequence[float]) -> Interval:
    """Median, and where 95 % of the medians of resamples lie; with fewer than five rounds, the extremes."""
    if len(figures) < 5:
        return Interval(statistics.median(figures), min(figures), max(figures), len(figures))
    chance = random.Random(1)
    medians = sorted(statistics.median(chance.choices(figures, k=len(figures))) for _ in range(BOOTSTRAPS))
    return Interval(statistics.median(figures), medians[int(BOOTSTRAPS * 0.025)], medians[int(BOOTSTRAPS * 0.975) - 1], len(figures))


def ratios(runs: Sequence[Run], row: str, metric: str, of: str) -> list[float]:
    """mqttc's figure over the other's, round by round."""
    ours, theirs = values(runs, row, OURS, metric), values(runs, row, of, metric)
    return [ours[number] / theirs[number] for number in sorted(ours.keys() & theirs.keys()) if theirs[number]]


def judge(runs: Sequence[Run], rows: Sequence[Row]) -> list[Verdict]:
    verdicts = []
    for row in rows:
        for target in row.targets:
            if target.of is None:
                figures = list(values(runs, row.name, OURS, target.metric).values())
            else:
                figures = ratios(runs, row.name, target.metric, target.of)
            if not figures:
                continue
            found = interval(figures)
            state = "met" if found.high <= target.bound else "missed" if found.low > target.bound else "open"
            verdicts.append(Verdict(row.name, target, found, state))
    return verdicts


# ---- showing


def _figure(value: float | None) -> str:
    return "-" if value is None else report.number(value)


def median_of(runs: Sequence[Run], row: str, broker: str, metric: str) -> float | None:
    found = values(runs, row, broker, metric)
    return statistics.median(found.values()) if found else None


FIGURES = ["row", "broker", "per second", "CPU µs each", "broker CPU", "load CPU", "memory", "p50", "p99", "remarks"]


def figure_rows(runs: Sequence[Run], rows: Sequence[Row], names: Sequence[str]) -> list[list[str]]:
    table = []
    for row in rows:
        for name in names:
            mine = [made for made in runs if made.row == row.name and made.broker == name]
            if not mine:
                continue

            def figure(metric: str, row: Row = row, name: str = name) -> float | None:
                return median_of(runs, row.name, name, metric)

            share, load = figure("broker_cpu_share"), figure("generator_cpu_share")
            memory, each = figure("broker_rss_bytes"), figure("rss_per_connection")
            remarks = sorted({problem for made in mine for problem in made.problems})
            limited = sum(made.generator_limited for made in mine)
            if limited:
                remarks.append(f"load was the limit in {limited} of {len(mine)}")
            table.append(
                [
                    row.title or row.name,
                    name,
                    _figure(figure("per_second")),
                    _figure(figure("broker_cpu_us")),
                    "-" if share is None else f"{share:.0%}",
                    "-" if load is None else f"{load:.0%}",
                    f"{each:.0f} B each" if each is not None else "-" if memory is None else report.size(memory),
                    "-" if (p50 := figure("p50")) is None else report.milliseconds(p50),
                    "-" if (p99 := figure("p99")) is None else report.milliseconds(p99),
                    "; ".join(remarks),
                ]
            )
    return table


RATIOS = ["row", "figure", "mqttc takes", "interval", "target", "verdict"]


def verdict_rows(verdicts: Sequence[Verdict], rows: Sequence[Row]) -> list[list[str]]:
    titles = {row.name: row.title or row.name for row in rows}
    table = []
    for verdict in verdicts:
        target, found = verdict.target, verdict.interval
        unit = " B" if target.of is None else f" x {target.of}"
        if target.better is not None:
            shown = f"1/{1 / found.median:.1f}{unit}"
            between = f"1/{1 / found.low:.1f} .. 1/{1 / found.high:.1f}"
            wanted = f"1/{target.better:g}"
        else:
            shown = f"{found.median:.3g}{unit}"
            between = f"{found.low:.3g} .. {found.high:.3g}"
            wanted = f"{target.bound:g}" + (f", stretch {target.stretch:g}" if target.stretch else "")
        stretch = target.stretch is not None and found.high <= target.stretch
        table.append([titles[verdict.row], target.metric, shown, between, wanted, verdict.state + (", stretch met" if stretch else "")])
    return table


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


def versions(names: Sequence[str]) -> dict[str, str]:
    """What the brokers say about themselves."""
    found = {"mqttc": revision()}
    if "mosquitto" in names:
        try:
            done = subprocess.run([brokers.program("mosquitto"), "-h"], capture_output=True, text=True, check=False)
            found["mosquitto"] = (done.stdout or done.stderr).split("\n")[0]
        except BrokerError as error:
            found["mosquitto"] = str(error)
    return found


def revision() -> str:
    done = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def draw(runs: Sequence[Run], rows: Sequence[Row], names: Sequence[str], verdicts: Sequence[Verdict], out: Path) -> None:
    """CPU per message of every broker, and the ratios with their intervals against the targets."""
    report.need_plots()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(7, 1.1 * len(rows)), 5), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / max(len(names), 1)
    for place, name in enumerate(names):
        costs = [(number, median_of(runs, row.name, name, "broker_cpu_us")) for number, row in enumerate(rows)]
        known = [(number + place * width, cost) for number, cost in costs if cost]
        axes.bar([at for at, _ in known], [cost for _, cost in known], width, label=name)
    axes.set(yscale="log", ylabel="broker CPU, µs per message", xticks=[number + 0.4 - width / 2 for number in range(len(rows))])
    axes.set_xticklabels([row.name for row in rows], rotation=40, ha="right")
    axes.legend()
    figure.savefig(out / "cpu.png")
    relative = [verdict for verdict in verdicts if verdict.target.of is not None]
    if not relative:
        return
    figure = Figure(figsize=(7, 1 + 0.4 * len(relative)), layout="constrained")
    axes = figure.subplots()
    for place, verdict in enumerate(relative):
        found, bound = verdict.interval, verdict.target.bound
        low, high = (found.median - found.low) / bound, (found.high - found.median) / bound
        colour = {"met": "C2", "open": "C1", "missed": "C3"}[verdict.state]
        axes.errorbar(found.median / bound, -place, xerr=[[low], [high]], fmt="o", capsize=3, color=colour)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set(xscale="log", xlabel="share of what the target allows (left of the line: met)")
    axes.set_yticks([-place for place in range(len(relative))])
    axes.set_yticklabels([f"{verdict.row}, {verdict.target.metric} / {verdict.target.of}" for verdict in relative])
    figure.savefig(out / "targets.png")


def write(runs: Sequence[Run], rows: Sequence[Row], names: Sequence[str], verdicts: Sequence[Verdict], options: argparse.Namespace) -> None:
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    about = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine() | {"libc": " ".join(platform.libc_ver())},
        "versions": versions(names),
        "cores": {"broker": options.broker_core, "load": options.load_core},
        "rounds": options.rounds,
        "seconds": options.seconds,
        "settings": options.settings,
    }
    data = {**about, "runs": [asdict(made) for made in runs], "verdicts": [asdict(verdict) for verdict in verdicts]}
    (out / "results.json").write_text(json.dumps(data, indent=1) + "\n", "utf-8")
    facts = [f"- {key}: {value}" for key, value in about.items()]
    tables = [markdown(FIGURES, figure_rows(runs, rows, names))]
    if verdicts:
        tables.append(markdown(RATIOS, verdict_rows(verdicts, rows)))
    (out / "table.md").write_text("\n".join([*facts, "", *tables]), "utf-8")
    try:
        draw(runs, rows, names, verdicts, out)
    except RunError as error:
        print(f"no plots: {error}", file=sys.stderr)


# ---- the command


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="compare.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--file", type=Path, default=ROOT / "bench" / "macro" / "rows.toml", help="the rows (%(default)s)")
    made.add_argument("--rows", default="", help="names of rows, separated by commas; all without it")
    made.add_argument("--brokers", default="mqttc,mosquitto,relay", help=f"of {', '.join(brokers.KNOWN)} (%(default)s)")
    more = "one more broker by its command line, with {port} and {folder} in it"
    made.add_argument("--broker", action="append", default=[], metavar="NAME=COMMAND", help=more)
    setting = "a setting of mqttc, workers=2 say"
    made.add_argument("--set", action="append", default=[], metavar="section.key=value", dest="settings", help=setting)
    made.add_argument("--rounds", type=int, default=3)
    made.add_argument("--seconds", type=float, default=3.0, help=f"of measuring, at least {LEAST_S:g} for figures that mean something")
    made.add_argument("--broker-core", type=int, default=0)
    made.add_argument("--load-core", type=int, default=1)
    made.add_argument("--out", type=Path, default=ROOT / "build" / "macro", help="folder for results.json, table.md, plots (%(default)s)")
    made.add_argument("--list", action="store_true", help="names of the rows")
    return made


def contenders_of(options: argparse.Namespace) -> dict[str, Callable[[int, Path], Launch]]:
    """Those that can be started here; the others are named and left out."""
    found: dict[str, Callable[[int, Path], Launch]] = {}
    for name in filter(None, options.brokers.split(",")):
        if name not in brokers.KNOWN:
            raise ValueError(f"no broker {name!r}; known: {', '.join(brokers.KNOWN)}; any other with --broker NAME=COMMAND")
        found[name] = brokers.KNOWN[name]
        if name == OURS:
            found[name] = brokers.mqttc(options.settings)
        elif name == f"{OURS}-acl":
            found[name] = brokers.mqttc_with_rules(options.settings)
    for entry in options.broker:
        name, separator, command = entry.partition("=")
        if not separator or "{port}" not in command:
            raise ValueError(f"--broker {entry!r}: NAME=COMMAND with {{port}} in it")
        found[name] = brokers.template(command)
    with tempfile.TemporaryDirectory(prefix="mqttc-bench-") as folder:
        for name in list(found):
            try:
                found[name](brokers.free_port(), Path(folder))
            except BrokerError as error:
                print(f"without {name}: {error}", file=sys.stderr)
                del found[name]
    return found


def prepare(options: argparse.Namespace) -> None:
    """Descriptors for all, and cores where the system lets us choose."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    if not {options.broker_core, options.load_core} <= usable:
        print("not pinned: these cores cannot be chosen here, so the figures include what the two do to each other", file=sys.stderr)
        options.broker_core = options.load_core = None
    if options.seconds < LEAST_S:
        print(f"--seconds {options.seconds:g}: too short for figures, enough to see that it works", file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    try:
        rows = rows_of(options.file)
        if options.list:
            print("\n".join(row.name for row in rows))
            return 0
        wanted = [name for name in options.rows.split(",") if name]
        unknown = set(wanted) - {row.name for row in rows}
        if unknown:
            raise ValueError(f"no rows {', '.join(sorted(unknown))}; known: {', '.join(row.name for row in rows)}")
        rows = [row for row in rows if row.name in wanted or not wanted]
        contenders = contenders_of(options)
    except (OSError, TypeError, ValueError) as error:
        print(f"compare.py: {error}", file=sys.stderr)
        return 2
    prepare(options)
    runs = play(rows, contenders, options)
    names = list(contenders)
    verdicts = judge(runs, rows)
    report.table(FIGURES, figure_rows(runs, rows, names))
    if verdicts:
        report.table(RATIOS, verdict_rows(verdicts, rows))
    write(runs, rows, names, verdicts, options)
    print(f"written to {options.out}")
    return 1 if any(verdict.state == "missed" for verdict in verdicts) or any(made.problems for made in runs) else 0


if __name__ == "__main__":
    sys.exit(main())
