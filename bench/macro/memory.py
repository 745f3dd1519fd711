"""What is kept costs memory: `python bench/macro/memory.py`, resident bytes for each

subscription     100 000 filters over 100 clients: `exact` ones, and `wild` ones with + and #
retained         1 000 000 topics with payloads of 64 bytes; the client that stored them has gone
connection       idle, with a session, 16-byte client id (what tools/soak.py idle measures), MQTT 3.1.1 and 5.0
connection TLS   the same behind TLS (3.1.1, full handshakes)

next to mosquitto. A broker is started anew for each figure; what it took at start is not counted. Exit codes: 0, 1 a run failed, 2 wrong
usage.
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

from bench.macro import brokers  # noqa: E402
from bench.macro.figures import StalledError, cpu_ns, descriptors, median, quiet, resident_bytes, show, wait_for, write  # noqa: E402
from mqttc.load import Load, TlsClient  # noqa: E402
from tools import soak  # noqa: E402

SUBSCRIBERS = 100
PAYLOAD = 64
WINDOW = 500
SHAPES: dict[str, str] = {"exact": "site/{0}/device/{1}/state", "wild": "site/{0}/+/{1}/#"}


@dataclass(slots=True)
class Run:
    what: str
    count: int
    broker: str
    round: int
    each_bytes: float = 0.0
    each_cpu_us: float = 0.0
    start_bytes: int = 0
    problems: list[str] = field(default_factory=list)


def subscriptions(made: Run, port: int, pid: int, shape: str) -> None:
    load = Load("127.0.0.1", port)
    try:
        for number in range(SUBSCRIBERS):
            load.add_client(f"memory-{number:04d}")
            for device in range(made.count // SUBSCRIBERS):
                load.subscribe_to(number, SHAPES[shape].format(number, device), 0)
        # The connections are not to be counted: as many others come and go first.
        idle = Load("127.0.0.1", port)
        try:
            for number in range(SUBSCRIBERS):
                idle.add_client(f"idle-{number:04d}")
            idle.start()
            idle.connect()
            wait_for("connecting", lambda: idle.counters()["connected"], SUBSCRIBERS)
            begin(made, pid)
            load.start()
            load.connect()
            wait_for("subscribing", lambda: load.counters()["subscribed"], made.count // SUBSCRIBERS * SUBSCRIBERS)
            end(made, pid)
            refused = load.counters()["errors"]
            if refused:
                made.problems.append(f"{refused} subscriptions refused")
        finally:
            idle.close()
    finally:
        load.close()


def retained(made: Run, port: int, pid: int) -> None:
    topics = [f"site/{number // 1000}/device/{number % 1000}/state" for number in range(made.count)]
    load = Load("127.0.0.1", port)
    try:
        filler = load.add_client("filler")
        sizes = {"payload_least": PAYLOAD, "payload_most": PAYLOAD}
        load.publish_to(filler, topics, qos=1, retain=True, window=WINDOW, burst=100, loop=False, **sizes)
        begin(made, pid)
        load.start()
        load.connect()
        wait_for("connecting", lambda: load.counters()["connected"], 1)
        load.publish(filler, 1, messages=made.count)
        wait_for("filling", lambda: load.counters()["acknowledged"], made.count)
        load.disconnect()
        wait_for("leaving", lambda: 1 - load.counters()["connected"], 1)
        end(made, pid)
    finally:
        load.close()


def idle(made: Run, port: int, pid: int, version: int) -> None:
    made.start_bytes = resident_bytes(pid)
    before = cpu_ns(pid)
    made.each_bytes = soak.measure(soak.Running(made.broker, port, pid), made.count, version)
    made.each_cpu_us = (cpu_ns(pid) - before) / 1e3 / made.count


def idle_tls(made: Run, port: int, pid: int, folder: Path) -> None:
    tls = TlsClient(ca=(folder / "ca.pem").read_bytes(), server_name="127.0.0.1")
    load = Load("127.0.0.1", port, tls=tls)
    try:
        for number in range(made.count):
            load.add_client(f"client-{number:09d}", clean=False, source=f"127.0.{1 + number // 5000}.1")
        begin(made, pid)
        load.start()
        load.connect()
        wait_for("connecting", lambda: load.counters()["connected"], made.count)
        end(made, pid)
    finally:
        load.close()


def begin(made: Run, pid: int) -> None:
    quiet(pid)
    made.start_bytes = resident_bytes(pid)
    made.each_cpu_us = -cpu_ns(pid) / 1e3


def end(made: Run, pid: int) -> None:
    quiet(pid)
    made.each_bytes = (resident_bytes(pid) - made.start_bytes) / made.count
    made.each_cpu_us = (made.each_cpu_us + cpu_ns(pid) / 1e3) / made.count


TLS = "connection TLS"
KINDS: dict[str, Callable[[Run, int, int, Path], None]] = {
    "subscription exact": lambda made, port, pid, folder: subscriptions(made, port, pid, "exact"),
    "subscription wild": lambda made, port, pid, folder: subscriptions(made, port, pid, "wild"),
    "retained": lambda made, port, pid, folder: retained(made, port, pid),
    "connection 3.1.1": lambda made, port, pid, folder: idle(made, port, pid, 4),
    "connection 5.0": lambda made, port, pid, folder: idle(made, port, pid, 5),
    TLS: idle_tls,
}
BROKERS = ("mqttc", "mosquitto")
HEAD = ["what", "count", "broker", "bytes each", "rounds", "at start, MB", "broker CPU, µs each", "remarks"]


def measure(what: str, count: int, name: str, number: int) -> Run:
    made = Run(what, count, name, number)
    folder = Path(tempfile.mkdtemp(prefix="mqttc-bench-"))
    try:
        with brokers.running(brokers.over(name, [], "mqtts" if what == TLS else "mqtt"), folder, None) as (port, pid):
            KINDS[what](made, port, pid, folder)
    except (brokers.BrokerError, StalledError, OSError) as error:
        made.problems.append(str(error))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return made


def rows_of(runs: Sequence[Run], names: Sequence[str]) -> list[list[str]]:
    rows = []
    for what in dict.fromkeys(made.what for made in runs):
        for name in names:
            mine = [made for made in runs if (made.what, made.broker) == (what, name)]
            good = [made for made in mine if not made.problems]
            row = [what, f"{mine[0].count:,}", name, "-", "-", "-", "-"]
            if good:
                each = [made.each_bytes for made in good]
                start = median(made.start_bytes / 1e6 for made in good)
                cost = median(made.each_cpu_us for made in good)
                row[3:] = [f"{median(each):.0f}", f"{min(each):.0f} .. {max(each):.0f}", f"{start:.1f}", f"{cost:.2f}"]
            rows.append([*row, "; ".join(sorted({problem for made in mine for problem in made.problems}))])
    return rows


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="memory.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS), metavar="KIND", help=f"of {', '.join(KINDS)}")
    made.add_argument("--brokers", nargs="+", choices=BROKERS, default=list(BROKERS))
    made.add_argument("--rounds", type=int, default=3)
    made.add_argument("--subscriptions", type=int, default=100_000)
    made.add_argument("--retained", type=int, default=1_000_000)
    made.add_argument("--connections", type=int, default=19_700, help="as many as descriptors allow (%(default)s)")
    made.add_argument("--tls-connections", type=int, default=5_000, help="the load's side of each takes memory too (%(default)s)")
    made.add_argument("--out", type=Path, default=ROOT / "build" / "macro" / "memory.json", help="(%(default)s)")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    allowed = descriptors() - 200
    connections = min(options.connections, allowed)
    counts = {"subscription": options.subscriptions, "retained": options.retained, "connection": connections}
    of = {what: counts[what.partition(" ")[0]] for what in KINDS} | {TLS: min(options.tls_connections, allowed)}
    runs: list[Run] = []
    for number in range(options.rounds):
        for what in options.kinds:
            for name in options.brokers:
                made = measure(what, of[what], name, number)
                runs.append(made)
                found = "; ".join(made.problems) or f"{made.each_bytes:.0f} bytes each"
                print(f"round {number + 1}/{options.rounds}  {what}  {name}  {found}", file=sys.stderr, flush=True)
    show(HEAD, rows_of(runs, options.brokers))
    write(options.out, {"runs": [asdict(made) for made in runs]})
    return int(any(made.problems for made in runs))


if __name__ == "__main__":
    sys.exit(main())
