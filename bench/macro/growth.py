"""How broker CPU per delivered message grows: `python bench/macro/growth.py --rounds 3`.

subscribers   one publisher to 1, 10, 100, 1 000, 5 000 subscribers of its topic
filters       10^2 .. 10^6 filters with + and #, 5 of them at different subscribers match each message; the topics come round, so that
              a route cache serves them as far as it reaches
levels        one publisher, one subscriber, topics of 1 .. 64 levels that come round: few (they stay in a route cache) and, as
              levels-many, more than a cache holds, so that each message is matched in the tree

Brokers are started anew for each run, on one core, and loaded from another; rounds are interleaved. Exit codes: 0, 1 a run failed or lost
messages, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from bench.macro import brokers  # noqa: E402
from bench.macro.figures import StalledError, cores_of, cpu_ns, descriptors, median, resident_bytes, show, wait_for, write  # noqa: E402
from mqttc.bench.profile import RunError, load_profile  # noqa: E402
from mqttc.bench.run import run  # noqa: E402
from mqttc.load import Load  # noqa: E402

SUBSCRIBERS = (1, 10, 100, 1000, 5000)
FILTERS = (100, 1000, 10_000, 100_000, 1_000_000)
LEVELS = (1, 2, 4, 8, 16, 32, 64)
FEW_TOPICS, MANY_TOPICS = 100, 200_000
WINDOW = 1000
FANOUT_WINDOW = 200
MOST_SUBSCRIPTIONS = 1_000_000


@dataclass(frozen=True, slots=True)
class Case:
    kind: str
    size: int


@dataclass(slots=True)
class Run:
    kind: str
    size: int
    broker: str
    round: int
    broker_cpu_us: float = 0.0
    per_second: float = 0.0
    rss_bytes: int = 0
    problems: list[str] = field(default_factory=list)


def measure(case: Case, name: str, number: int, options: argparse.Namespace) -> Run:
    made = Run(case.kind, case.size, name, number)
    folder = Path(tempfile.mkdtemp(prefix="mqttc-bench-"))
    launch = LAUNCH[name]
    try:
        with brokers.running(launch, folder, options.broker_core) as (port, pid), cores_of({options.load_core}):
            KINDS[case.kind](made, port, pid, options)
    except (brokers.BrokerError, RunError, StalledError) as error:
        made.problems.append(str(error))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return made


def by_profile(made: Run, port: int, pid: int, profile: str, keys: dict[str, Any]) -> None:
    found = run(profile, load_profile(profile, {**keys, "url": f"mqtt://127.0.0.1:{port}"}), pid=pid)
    made.broker_cpu_us = found.broker_cpu_us or 0.0
    made.per_second = found.per_second
    made.rss_bytes = found.broker_rss_bytes or 0
    made.problems = found.problems


def subscribers(made: Run, port: int, pid: int, options: argparse.Namespace) -> None:
    """Window and burst are the same for all sizes: they decide how many messages a write carries, and that decides most of the cost."""
    keys = {"subscribers": made.size, "window": FANOUT_WINDOW, "burst": 100, "duration": options.seconds, "drain": 20.0}
    by_profile(made, port, pid, "fanout", keys)


def filters(made: Run, port: int, pid: int, options: argparse.Namespace) -> None:
    # Every topic once before measuring: what is measured is the steady state, not the filling of caches.
    warmup = 2.0 if made.size < 1_000_000 else 6.0
    keys = {"filters": made.size, "duration": options.seconds, "warmup": warmup, "patience": 60.0, "drain": 20.0}
    by_profile(made, port, pid, "wild", keys)


def topic(levels: int, number: int) -> str:
    return "/".join([str(number), *["level"] * (levels - 1)])


def levels(made: Run, port: int, pid: int, options: argparse.Namespace, count: int = FEW_TOPICS) -> None:
    """Own subscriptions, each topic's first level its number; a filter with + in the last level from the second level on."""
    topics = [topic(made.size, number) for number in range(count)]
    with_plus = [one.rpartition("/")[0] + "/+" if made.size > 1 else one for one in topics[:FEW_TOPICS]]
    load = Load("127.0.0.1", port)
    try:
        receiver = load.add_client("levels-receiver")
        # The many topics share one filter, else the tree would be what is measured.
        wanted = with_plus if count == FEW_TOPICS else ["/".join(["+"] * made.size)]
        for one in wanted:
            load.subscribe_to(receiver, one, 0)
        publisher = load.add_client("levels-publisher")
        load.publish_to(publisher, topics, window=WINDOW, burst=100)
        load.start()
        load.connect()
        wait_for("subscribing", lambda: load.counters()["subscribed"], len(wanted))
        wait_for("connecting", lambda: load.counters()["connected"], 2)
        messages = max(count, 20_000)
        load.publish(publisher, 1, messages=messages)  # warm-up: each topic once
        wait_for("warming up", lambda: load.counters()["received"], messages)
        before, spent = load.counters()["received"], cpu_ns(pid)
        load.publish(publisher, 1, messages=options.messages)
        wait_for("receiving", lambda: load.counters()["received"], before + options.messages)
        made.broker_cpu_us = (cpu_ns(pid) - spent) / 1e3 / options.messages
        made.rss_bytes = resident_bytes(pid)
        counters = load.counters()
        wrong = {name: counters[name] for name in ("duplicates", "reordered", "foreign", "errors", "lost_connections")}
        made.problems = [f"{value} {name}" for name, value in wrong.items() if value]
    finally:
        load.close()


def levels_many(made: Run, port: int, pid: int, options: argparse.Namespace) -> None:
    levels(made, port, pid, options, MANY_TOPICS)


KINDS: dict[str, Callable[[Run, int, int, argparse.Namespace], None]] = {
    "subscribers": subscribers,
    "filters": filters,
    "levels": levels,
    "levels-many": levels_many,
}
SIZES = {"subscribers": SUBSCRIBERS, "filters": FILTERS, "levels": LEVELS, "levels-many": LEVELS}
LAUNCH = {"mqttc": brokers.mqttc([f"limits.max_subscriptions={MOST_SUBSCRIPTIONS}"]), "mosquitto": brokers.mosquitto}
HEAD = ["what", "size", "broker", "broker CPU, µs each", "rounds", "per second", "memory, MB", "remarks"]


def rows_of(runs: Sequence[Run], cases: Sequence[Case], names: Sequence[str]) -> list[list[str]]:
    rows = []
    for case in cases:
        for name in names:
            mine = [made for made in runs if (made.kind, made.size, made.broker) == (case.kind, case.size, name)]
            good = [made for made in mine if not made.problems]
            row = [case.kind, f"{case.size:,}", name, "-", "-", "-", "-"]
            if good:
                costs = [made.broker_cpu_us for made in good]
                rate = median(made.per_second for made in good)
                memory = median(made.rss_bytes for made in good) / 1e6
                row[3:5] = [f"{median(costs):.3f}", f"{min(costs):.3f} .. {max(costs):.3f}"]
                row[5:7] = [f"{rate:,.0f}" if rate else "-", f"{memory:.0f}"]
            rows.append([*row, "; ".join(sorted({problem for made in mine for problem in made.problems}))])
    return rows


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="growth.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    made.add_argument("--brokers", nargs="+", choices=list(LAUNCH), default=list(LAUNCH))
    made.add_argument("--most", type=int, default=1_000_000, help="the largest size to try (%(default)s)")
    made.add_argument("--rounds", type=int, default=3)
    made.add_argument("--seconds", type=float, default=2.0, help="of measuring (%(default)s)")
    made.add_argument("--messages", type=int, default=300_000, help="measured for levels (%(default)s)")
    made.add_argument("--broker-core", type=int, default=0)
    made.add_argument("--load-core", type=int, default=1)
    made.add_argument("--out", type=Path, default=ROOT / "build" / "macro" / "growth.json", help="(%(default)s)")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    descriptors()
    cases = [Case(kind, size) for kind in options.kinds for size in SIZES[kind] if size <= options.most]
    runs: list[Run] = []
    for number in range(options.rounds):
        for case in cases:
            for name in options.brokers if number % 2 == 0 else options.brokers[::-1]:
                made = measure(case, name, number, options)
                runs.append(made)
                what = "; ".join(made.problems) or f"{made.broker_cpu_us:.3f} µs"
                print(f"round {number + 1}/{options.rounds}  {case.kind} {case.size}  {name}  {what}", file=sys.stderr, flush=True)
    show(HEAD, rows_of(runs, cases, options.brokers))
    write(options.out, {"cores": {"broker": options.broker_core, "load": options.load_core}, "runs": [asdict(made) for made in runs]})
    return int(any(made.problems for made in runs))


if __name__ == "__main__":
    sys.exit(main())
