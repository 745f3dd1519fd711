"""What deciding about clients costs: `python bench/macro/authentications.py`

Clients of one worker that connect, leave, and connect again, as fast as they can, while others send messages at a steady rate:

anonymous  they show nothing, and the worker decides alone
cached     they show a user name and password, whose verdict the worker remembers
asked      the same, but the worker remembers nothing: the control thread does, and is asked each time
quiet      nobody comes: the steady messages alone

Told are connects a second, the broker's CPU for each, the time that the steady messages take, which is what a connecting client costs
others, and how long 99 % of the worker's turns took at most, to a quarter of a power of two.
Exit codes: 0, 1 a run failed or the verdicts were not decided where they should be, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from bench.macro import brokers, counted  # noqa: E402
from bench.macro.figures import StalledError, cores_of, cpu_ns, descriptors, median, quiet, show, wait_for, write  # noqa: E402
from mqttc.auth.hashing import make_hash  # noqa: E402
from mqttc.load import Load  # noqa: E402

KINDS = ("quiet", "anonymous", "cached", "asked")
PASSWORD = b"correct horse battery staple"
SOURCES = 200  # local addresses: a port that was closed rests for a while
HEAD = [
    *("kind", "connects a second", "broker CPU, µs each", "p50 of messages, µs", "p99 of messages, µs", "p99 of turns, µs"),
    *("rounds", "problems"),
]


@dataclass(slots=True)
class Run:
    kind: str
    round: int
    rate: float = 0.0
    each_cpu_us: float = 0.0
    p50_us: float = 0.0
    p99_us: float = 0.0
    turn_p99_us: float = 0.0
    problems: list[str] = field(default_factory=list)


def percentile(histogram: dict[int, int], share: float) -> float:
    """Upper bound of the bucket, µs."""
    left = share * sum(histogram.values())
    for bound in sorted(histogram):
        left -= histogram[bound]
        if left <= 0:
            return bound / 1000
    return 0.0


def storm(port: int, made: Run, options: argparse.Namespace) -> Load | None:
    """Clients that come and go."""
    if made.kind == "quiet":
        return None
    load = Load("127.0.0.1", port)
    for number in range(options.clients):
        shown = {} if made.kind == "anonymous" else {"username": f"user-{number % options.users}", "password": PASSWORD}
        load.add_client(f"storm-{number:05d}", source=f"127.0.{1 + number % SOURCES}.1", again=True, **shown)
    load.start()
    return load


def steady(port: int, options: argparse.Namespace) -> Load:
    """Pairs whose messages tell the time."""
    load = Load("127.0.0.1", port)
    for number in range(options.pairs):
        client = load.add_client(f"steady-{number}")
        load.subscribe_to(client, f"steady/{number}", 0)
        load.publish_to(client, [f"steady/{number}"], rate=options.messages / options.pairs)
    load.start()
    load.connect()
    wait_for("subscribing", lambda: load.counters()["subscribed"], options.pairs)
    load.publish()
    return load


def run(made: Run, port: int, pid: int, folder: Path, options: argparse.Namespace) -> None:
    observed = steady(port, options)
    coming = storm(port, made, options)
    try:
        if coming is not None:
            coming.connect()
        threading.Event().wait(options.warm_up)
        before, questions = counted.stats(folder), counted.stats(folder)["gate_questions"]
        observed.reset()
        started, spent = time.monotonic(), cpu_ns(pid)
        threading.Event().wait(options.seconds)
        spent, seconds = cpu_ns(pid) - spent, time.monotonic() - started
        histogram, after = observed.latency(), counted.stats(folder)
        connects = after["connects_accepted"] - before["connects_accepted"]
        made.rate = connects / seconds
        made.each_cpu_us = spent / 1000 / max(1, connects)
        made.turn_p99_us = after["turn_p99_us"]
        made.p50_us, made.p99_us = percentile(histogram, 0.5), percentile(histogram, 0.99)
        asked = after["gate_questions"] - questions
        if (made.kind == "asked") != (asked > connects / 2):
            made.problems.append(f"{asked} of {connects} were asked about")
        if after["connects_refused"]:
            made.problems.append(f"{after['connects_refused']} refused")
    finally:
        if coming is not None:
            coming.close()
        observed.close()
    quiet(pid)


def settings(kind: str, folder: Path, options: argparse.Namespace) -> list[str]:
    users = folder / "users.txt"
    hashed = make_hash(PASSWORD)
    users.write_text("".join(f"user-{number}:{hashed}\n" for number in range(options.users)))
    return [
        *("workers=1", f"auth.password_file={users}", "auth.cache.ttl=3600"),
        *(["limits.verdict_cache_entries=0"] if kind == "asked" else []),
    ]


def measure(kind: str, number: int, options: argparse.Namespace) -> Run:
    made = Run(kind, number)
    folder = Path(tempfile.mkdtemp(prefix="mqttc-bench-"))
    try:
        launch = counted.launch(*settings(kind, folder, options))
        with brokers.running(launch, folder, options.broker_core) as (port, pid), cores_of({options.load_core}):
            run(made, port, pid, folder, options)
    except (brokers.BrokerError, StalledError, OSError) as error:
        made.problems.append(str(error))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return made


def rows_of(runs: Sequence[Run], options: argparse.Namespace) -> list[list[str]]:
    rows = []
    for kind in options.kinds:
        mine = [made for made in runs if made.kind == kind]
        good = [made for made in mine if not made.problems]
        row = [kind, *["-"] * 6, "; ".join(sorted({problem for made in mine for problem in made.problems})) or "none"]
        if good:
            if kind != "quiet":
                row[1] = f"{median(made.rate for made in good):,.0f}"
                row[2] = f"{median(made.each_cpu_us for made in good):.1f}"
            row[3] = f"{median(made.p50_us for made in good):.0f}"
            p99 = [made.p99_us for made in good]
            row[4] = f"{median(p99):.0f} ({min(p99):.0f} to {max(p99):.0f})"
            row[5] = f"{median(made.turn_p99_us for made in good):.0f}"
            row[6] = str(len(good))
        rows.append(row)
    return rows


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="authentications.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    made.add_argument("--rounds", type=int, default=3)
    made.add_argument("--seconds", type=float, default=5.0, help="that are measured (%(default)s)")
    made.add_argument("--warm-up", type=float, default=2.0, help="seconds before that (%(default)s)")
    made.add_argument("--clients", type=int, default=20, help="that come and go (%(default)s)")
    made.add_argument("--users", type=int, default=10, help="different user names among them (%(default)s)")
    made.add_argument("--pairs", type=int, default=10, help="whose messages tell the time (%(default)s)")
    made.add_argument("--messages", type=float, default=1000.0, help="of theirs a second, together (%(default)s)")
    made.add_argument("--broker-core", type=int, default=0)
    made.add_argument("--load-core", type=int, default=1)
    made.add_argument("--out", type=Path, default=ROOT / "build" / "macro" / "authentications.json", help="(%(default)s)")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    descriptors()
    runs: list[Run] = []
    for number in range(options.rounds):
        for kind in options.kinds if number % 2 == 0 else options.kinds[::-1]:
            made = measure(kind, number, options)
            runs.append(made)
            found = "; ".join(made.problems) or f"{made.rate:,.0f} connects a second, p99 {made.p99_us:.0f} µs"
            print(f"round {number + 1}/{options.rounds}  {kind}  {found}", file=sys.stderr, flush=True)
    show(HEAD, rows_of(runs, options))
    write(options.out, {"cores": {"broker": options.broker_core, "load": options.load_core}, "runs": [asdict(made) for made in runs]})
    return int(any(made.problems for made in runs))


if __name__ == "__main__":
    sys.exit(main())
