"""What a second worker costs: `python bench/macro/workers.py --rounds 5`.

The same load against brokers with 1, 2, ... workers, rounds interleaved, a broker anew for each run. Prints broker CPU per delivered
message, how much more it is than with the first number of workers in the same round, and the counters of contention, each per 1 000
deliveries. Loss, repetition and reordering are looked for over each whole run. Exit codes: 0 all is within --most, 1 it is not, or
messages were lost or out of order, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from bench.macro import brokers, counted  # noqa: E402
from bench.macro.figures import cores_of, descriptors, median, show, write  # noqa: E402
from mqttc.bench.profile import RunError, load_profile  # noqa: E402
from mqttc.bench.run import run  # noqa: E402

LOADS: dict[str, tuple[str, dict[str, Any]]] = {
    "p2p-qos0": ("p2p", {}),
    "p2p-qos1": ("p2p", {"qos": 1}),
    "p2p-qos2": ("p2p", {"qos": 2}),
    "wild": ("wild", {}),
    "fanout": ("fanout", {}),
    "shared": ("shared", {}),
}
PER_THOUSAND = ("mail_sent", "turns", "reads", "writes", "route_misses", "tree_lock_waits")


@dataclass(slots=True)
class Run:
    load: str
    workers: int
    round: int
    broker_cpu_us: float = 0.0
    per_second: float = 0.0
    broker_cpu_share: float = 0.0
    waited_share: float | None = None
    counters: dict[str, int] = field(default_factory=dict)
    """Differences over the whole run, the connecting included."""
    problems: list[str] = field(default_factory=list)

    def each(self, counter: str) -> float:
        """Per 1 000 deliveries."""
        return 1000 * self.counters[counter] / max(self.counters["messages_sent"], 1)


def measure(load: str, workers: int, number: int, options: argparse.Namespace) -> Run:
    made = Run(load, workers, number)
    profile, keys = LOADS[load]
    folder = Path(tempfile.mkdtemp(prefix="mqttc-bench-"))
    try:
        with brokers.running(counted.launch(f"workers={workers}"), folder, None) as (port, pid):
            pin(pid, options.broker_cores)
            before = counted.stats(folder)
            wanted = {**keys, "duration": options.seconds, "threads": options.threads, "url": f"mqtt://127.0.0.1:{port}"}
            with cores_of(options.load_cores):
                found = run(load, load_profile(profile, wanted), pid=pid)
            after = counted.stats(folder)
    except (brokers.BrokerError, RunError, OSError) as error:
        made.problems.append(str(error))
        return made
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    made.broker_cpu_us = found.broker_cpu_us or 0.0
    made.per_second = found.per_second
    made.broker_cpu_share = found.broker_cpu_share or 0.0
    made.waited_share = found.generator_waited_share
    made.counters = {name: value - before[name] for name, value in after.items()}
    made.problems = found.problems + [f"{value} {name}" for name, value in made.counters.items() if value and name.startswith("dropped_")]
    return made


def pin(pid: int, cores: set[int]) -> None:
    """All threads of a process that is there already."""
    for entry in os.scandir(f"/proc/{pid}/task"):
        os.sched_setaffinity(int(entry.name), cores)


def more(runs: Sequence[Run], load: str, workers: int, base: int) -> list[float]:
    """CPU per message over that of the first number of workers, round by round."""
    cost = {(made.workers, made.round): made.broker_cpu_us for made in runs if made.load == load and not made.problems}
    rounds = sorted({number for _, number in cost})
    return [cost[workers, number] / cost[base, number] for number in rounds if cost.get((base, number)) and (workers, number) in cost]


def rows_of(runs: Sequence[Run], options: argparse.Namespace) -> list[list[str]]:
    rows = []
    for load in options.loads:
        for workers in options.workers:
            mine = [made for made in runs if made.load == load and made.workers == workers]
            good = [made for made in mine if not made.problems]
            if not good:
                rows.append([load, str(workers), *["-"] * (5 + len(PER_THOUSAND)), "; ".join(mine[0].problems)])
                continue
            ratios = more(runs, load, workers, options.workers[0])
            rows.append(
                [
                    load,
                    str(workers),
                    f"{median(made.per_second for made in good):,.0f}",
                    f"{median(made.broker_cpu_us for made in good):.3f}",
                    f"{statistics.median(ratios):.2f}" if ratios else "-",
                    f"{min(ratios):.2f} .. {max(ratios):.2f}" if ratios else "-",
                    f"{median(made.broker_cpu_share for made in good):.0%}",
                    *[f"{median(made.each(name) for made in good):.2f}" for name in PER_THOUSAND],
                    "; ".join(sorted({problem for made in mine for problem in made.problems})) or "all arrived, in order",
                ]
            )
    return rows


COUNTED = [f"{name} / 1000" for name in PER_THOUSAND]
HEAD = ["load", "workers", "per second", "CPU µs each", "ratio", "rounds", "broker CPU", *COUNTED, "messages"]


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="workers.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--loads", nargs="+", choices=sorted(LOADS), default=["p2p-qos0", "p2p-qos1", "wild"])
    made.add_argument("--workers", nargs="+", type=int, default=[1, 2], help="the first is what the others are compared with (1 2)")
    made.add_argument("--rounds", type=int, default=5)
    made.add_argument("--seconds", type=float, default=3.0, help="of measuring (%(default)s)")
    made.add_argument("--threads", type=int, default=1, help="of the load (%(default)s)")
    made.add_argument("--most", type=float, default=1.25, help="the most that CPU per message may rise (%(default)s)")
    every = sorted(os.sched_getaffinity(0))
    made.add_argument("--broker-cores", nargs="+", type=int, default=every, help="(all)")
    made.add_argument("--load-cores", nargs="+", type=int, default=every, help="(all)")
    made.add_argument("--out", type=Path, default=ROOT / "build" / "macro" / "workers.json", help="(%(default)s)")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    options.broker_cores, options.load_cores = set(options.broker_cores), set(options.load_cores)
    descriptors()
    runs: list[Run] = []
    for number in range(options.rounds):
        for load in options.loads:
            for workers in options.workers if number % 2 == 0 else options.workers[::-1]:
                made = measure(load, workers, number, options)
                runs.append(made)
                what = "; ".join(made.problems) or f"{made.per_second:,.0f}/s {made.broker_cpu_us:.3f} µs"
                print(f"round {number + 1}/{options.rounds}  {load:10} {workers} workers  {what}", file=sys.stderr, flush=True)
    show(HEAD, rows_of(runs, options))
    about = {"broker_cores": sorted(options.broker_cores), "load_cores": sorted(options.load_cores), "seconds": options.seconds}
    write(options.out, {**about, "runs": [asdict(made) for made in runs]})
    failed = any(made.problems for made in runs)
    for load in options.loads:
        for workers in options.workers[1:]:
            ratios = more(runs, load, workers, options.workers[0])
            if not ratios or statistics.median(ratios) > options.most:
                failed = True
                print(f"{load}: {workers} workers take more than {options.most:g} times the CPU per message")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
