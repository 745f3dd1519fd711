"""What coming and going costs: `python bench/macro/churn.py`, broker CPU for each

takeover   a client id that comes again on another connection while the first is up, 1 000 ids, again and again; with sessions that end
           with the connection (clean) and with sessions that stay (kept), which the new connection takes over with its subscription
churn      10 000 clients, each: connect, subscribe to a topic of its own, publish to it, receive that, leave; again and again

next to mosquitto, with one worker and with two of mqttc. Of mqttc the gauges have to be what they were before (connections, sessions,
subscriptions, tree nodes, queued, in flight), and resident memory what it was after the first time. Exit codes: 0, 1 a run failed or
something was left behind, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from bench.macro import brokers, counted  # noqa: E402
from bench.macro.figures import StalledError, cores_of, cpu_ns, descriptors, median, quiet, resident_bytes, show, wait_for, write  # noqa: E402
from mqttc.load import Load  # noqa: E402

SOURCES = 200  # local addresses: a port that was closed rests for a while
GAUGES = (
    "connections_open", "sessions", "subscriptions", "tree_nodes",
    "messages_queued", "messages_queued_bytes", "messages_inflight", "retained", "group_backlog",
)  # fmt: skip
SPARE_BYTES = 4_000_000  # of resident memory that may come and go between the first time and the last


@dataclass(slots=True)
class Run:
    what: str
    broker: str
    round: int
    count: int = 0
    each_cpu_us: float = 0.0
    first_bytes: int = 0
    """Resident once everybody has left for the first time."""
    last_bytes: int = 0
    problems: list[str] = field(default_factory=list)


def source(number: int) -> str:
    return f"127.0.{1 + number % SOURCES}.1"


def takeover(made: Run, port: int, pid: int, folder: Path, options: argparse.Namespace, clean: bool) -> None:
    """Each turn's connections push those of the turn before out."""
    ids, turns = options.ids, options.turns
    before = gauges(made, folder)
    load = Load("127.0.0.1", port)
    try:
        for number in range(ids * (turns + 1)):
            client = load.add_client(f"storm-{number % ids:05d}", clean=clean, source=source(number))
            load.subscribe_to(client, f"storm/{number % ids}", 1)
        load.start()
        for turn in range(turns + 1):
            if turn == 2:  # the first two have warmed it up
                quiet(pid)
                made.first_bytes, spent = resident_bytes(pid), cpu_ns(pid)
            load.connect(turn * ids, ids)
            wait_for("taking over", lambda: load.counters()["subscribed"], (turn + 1) * ids)
        quiet(pid)
        made.count = ids * (turns - 1)
        made.each_cpu_us = (cpu_ns(pid) - spent) / 1e3 / made.count
        made.last_bytes = resident_bytes(pid)
        counters = load.counters()
        if counters["connected"] != ids or counters["lost_connections"] != ids * turns:
            made.problems.append(f"{counters['connected']} of {ids} connected, {counters['lost_connections']} of {ids * turns} pushed out")
        if made.broker != "mosquitto":
            told = counted.stats(folder)["takeovers"]
            if told != ids * turns:
                made.problems.append(f"{told} of {ids * turns} take-overs counted")
        load.disconnect()
        wait_for("leaving", lambda: ids - load.counters()["connected"], ids)
    finally:
        load.close()
    if not clean:
        end_sessions(port, ids)
    quiet(pid)
    left_behind(made, before, folder)


def end_sessions(port: int, ids: int) -> None:
    load = Load("127.0.0.1", port)
    try:
        for number in range(ids):
            load.add_client(f"storm-{number:05d}", source=source(number))
        load.start()
        load.connect()
        wait_for("ending sessions", lambda: load.counters()["connected"], ids)
        load.disconnect()
        wait_for("leaving", lambda: ids - load.counters()["connected"], ids)
    finally:
        load.close()


def churn(made: Run, port: int, pid: int, folder: Path, options: argparse.Namespace) -> None:
    clients, turns = options.clients, options.turns
    before = gauges(made, folder)
    load = Load("127.0.0.1", port)
    try:
        for number in range(clients):
            client = load.add_client(f"churn-{number:05d}", source=source(number))
            load.subscribe_to(client, f"churn/{number}", 0)
            load.publish_to(client, [f"churn/{number}"], window=1)
        load.start()
        spent = 0
        for turn in range(turns + 1):
            if turn == 1:
                quiet(pid)
                made.first_bytes, spent = resident_bytes(pid), cpu_ns(pid)
            load.connect()
            wait_for("subscribing", lambda: load.counters()["subscribed"], (turn + 1) * clients)
            load.publish(messages=1)
            wait_for("receiving", lambda: load.counters()["received"], (turn + 1) * clients)
            load.disconnect()
            wait_for("leaving", lambda: clients - load.counters()["connected"], clients)
        quiet(pid)
        made.count = clients * turns
        made.each_cpu_us = (cpu_ns(pid) - spent) / 1e3 / made.count
        made.last_bytes = resident_bytes(pid)
        counters = load.counters()
        wrong = {name: counters[name] for name in ("refused", "lost_connections", "duplicates", "reordered", "foreign", "errors")}
        made.problems += [f"{value} {name}" for name, value in wrong.items() if value]
    finally:
        load.close()
    left_behind(made, before, folder)


def gauges(made: Run, folder: Path) -> dict[str, int]:
    """None of a broker that does not tell."""
    if made.broker == "mosquitto":
        return {}
    stats = counted.stats(folder)
    return {name: stats[name] for name in GAUGES}


def left_behind(made: Run, before: dict[str, int], folder: Path) -> None:
    after = gauges(made, folder)
    made.problems += [f"{name} {before[name]} -> {after[name]}" for name in before if after[name] != before[name]]
    if before and made.last_bytes > made.first_bytes + SPARE_BYTES:
        made.problems.append(f"{(made.last_bytes - made.first_bytes) / 1e6:.1f} MB more resident than after the first time")


KINDS: dict[str, Callable[[Run, int, int, Path, argparse.Namespace], None]] = {
    "takeover-clean": lambda made, port, pid, folder, options: takeover(made, port, pid, folder, options, True),
    "takeover-kept": lambda made, port, pid, folder, options: takeover(made, port, pid, folder, options, False),
    "churn": churn,
}
LAUNCH = {
    "mqttc": counted.launch("workers=1"),
    "mqttc-2": counted.launch("workers=2"),
    "mosquitto": brokers.mosquitto,
}
HEAD = ["what", "broker", "count", "broker CPU, µs each", "rounds", "MB after the first time", "MB at the end", "left behind"]


def measure(what: str, name: str, number: int, options: argparse.Namespace) -> Run:
    made = Run(what, name, number)
    folder = Path(tempfile.mkdtemp(prefix="mqttc-bench-"))
    try:
        with brokers.running(LAUNCH[name], folder, options.broker_core) as (port, pid), cores_of({options.load_core}):
            KINDS[what](made, port, pid, folder, options)
    except (brokers.BrokerError, StalledError, OSError) as error:
        made.problems.append(str(error))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return made


def rows_of(runs: Sequence[Run], options: argparse.Namespace) -> list[list[str]]:
    rows = []
    for what in options.kinds:
        for name in options.brokers:
            mine = [made for made in runs if (made.what, made.broker) == (what, name)]
            good = [made for made in mine if not made.problems]
            row = [what, name, *["-"] * 5, "; ".join(sorted({problem for made in mine for problem in made.problems}))]
            if good:
                costs = [made.each_cpu_us for made in good]
                row[2:5] = [f"{good[0].count:,}", f"{median(costs):.1f}", f"{min(costs):.1f} .. {max(costs):.1f}"]
                row[5] = f"{median(made.first_bytes for made in good) / 1e6:.1f}"
                row[6] = f"{median(made.last_bytes for made in good) / 1e6:.1f}"
                row[7] = row[7] or ("not told" if name == "mosquitto" else "nothing")
            rows.append(row)
    return rows


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="churn.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    made.add_argument("--brokers", nargs="+", choices=list(LAUNCH), default=list(LAUNCH))
    made.add_argument("--rounds", type=int, default=3)
    made.add_argument("--ids", type=int, default=1000, help="client ids of the storm (%(default)s)")
    made.add_argument("--clients", type=int, default=10_000, help="that churn (%(default)s)")
    made.add_argument("--turns", type=int, default=6, help="that are measured, after one that is not (%(default)s)")
    made.add_argument("--broker-core", type=int, default=0)
    made.add_argument("--load-core", type=int, default=1)
    made.add_argument("--out", type=Path, default=ROOT / "build" / "macro" / "churn.json", help="(%(default)s)")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    if options.turns < 2:
        print("churn.py: --turns: at least 2", file=sys.stderr)
        return 2
    descriptors()
    runs: list[Run] = []
    for number in range(options.rounds):
        for what in options.kinds:
            for name in options.brokers if number % 2 == 0 else options.brokers[::-1]:
                made = measure(what, name, number, options)
                runs.append(made)
                found = "; ".join(made.problems) or f"{made.each_cpu_us:.1f} µs each"
                print(f"round {number + 1}/{options.rounds}  {what}  {name}  {found}", file=sys.stderr, flush=True)
    show(HEAD, rows_of(runs, options))
    write(options.out, {"cores": {"broker": options.broker_core, "load": options.load_core}, "runs": [asdict(made) for made in runs]})
    return int(any(made.problems for made in runs))


if __name__ == "__main__":
    sys.exit(main())
