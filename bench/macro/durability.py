"""What durability costs: `python bench/macro/durability.py speed`, `latency` or `recovery`. mqttc with durability off, written and
synced, beside mosquitto with its persistence; a broker anew for each run, on one core, the load on another, rounds interleaved.

speed      queued    QoS 1 into the queue of a session that is off line, which then comes back and drains it
           p2p       QoS 1 between pairs of clients on line, all with a session that outlives the connection
           retained  QoS 1 updates of retained messages
latency    PUBLISH to PUBACK at a fixed rate into such a queue, counted from when a message was due; also in fsyncs of this disk. What takes
           over five of them with `off`, which never writes, and with `disk`, is the machine's. --retained N: as retained messages of N
           topics in random order, whose rows lie scattered in the file. --slower 1: each sync takes a millisecond longer
recovery   a broker with many queued and many retained messages is killed: time until it listens again, memory then; all must be there

`disk` is no broker: a bare loop on the broker's core that writes three pages over old ones and syncs them whenever the messages of all
publishers are due: what a message waits for at least, and how often the machine makes it wait longer.

Processor time is that of all threads of the broker, the one that writes included; not that of the kernel's own for the disk. An fsync is
4 KiB appended to a file of the same folder, median of 200, before each round. mosquitto (2.0) never syncs for a message and acknowledges
without: what it knows is written whole, every autosave_interval and at its end. `mosquitto` has 1 s, the least that can be set as a time;
`mosquitto-1800` has its default. Exit codes: 0 no target was missed, 1 one was, or a run failed or lost messages, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from bench.macro import brokers, counted  # noqa: E402
from bench.macro.brokers import BrokerError, Launch  # noqa: E402
from bench.macro.compare import Interval, interval, markdown  # noqa: E402
from bench.macro.figures import StalledError, cpu_ns, descriptors, quiet, resident_bytes, show, wait_for, write  # noqa: E402
from mqttc.bench.profile import RunError, load_profile  # noqa: E402
from mqttc.bench.result import percentiles  # noqa: E402
from mqttc.bench.run import run  # noqa: E402
from mqttc.load import Load  # noqa: E402
from tests.store import power_image  # noqa: E402

MODES = ("off", "written", "synced")
AUTOSAVE_S = {"mosquitto": 1, "mosquitto-1800": 1800}
CONTENDERS = (*MODES, *AUTOSAVE_S)
LOADS = ("queued", "p2p", "retained")
DISK = "disk"
DISK_BYTES = 3 * 4096  # of a batch
DISK_ROOM = 16 << 20  # written over and over, as the WAL is
PUBLISHERS = 10
WINDOW = 1000  # of each publisher; all of them: 10 000, some ten milliseconds' messages
PAYLOAD = 64
RETAINED_TOPICS = 10_000
FSYNCS = 200
FSYNC_BYTES = 4096
SESSIONS = 10  # of the recovery
SESSION_EXPIRY_S = 3600
QUIET = 0.7  # load average before a run: above it the machine does something else, too
PATIENCE_S = 30.0  # without progress

THROUGHPUT = 50_000.0  # synced into a queue: messages a second, or
THROUGHPUT_SHARE = 0.4  # this part of what `off` does, if that is less
P2P_CPU = 1.6  # on line: most processor time, in that of `off`
LATENCY_FSYNCS = 5.0  # p99 of PUBACK, synced

MOSQUITTO = """\
listener {port} 127.0.0.1
allow_anonymous true
persistence true
persistence_location {folder}/
autosave_interval {seconds}
autosave_on_changes false
max_queued_messages 0
max_queued_bytes 0
max_inflight_messages 0
max_connections -1
log_type error
user root
"""


@dataclass(slots=True)
class Run:
    """One broker's turn. Of latency, times are in milliseconds."""

    load: str
    broker: str
    round: int
    fsync_ms: float
    count: int = 0
    per_second: float = 0.0
    broker_cpu_us: float | None = None
    drained_per_second: float | None = None
    commits: int | None = None
    commit_ms: float | None = None
    p50: float | None = None
    p99: float | None = None
    over: float | None = None
    """Share of what took longer than LATENCY_FSYNCS."""
    start_s: float | None = None
    """From the program's start until it listens."""
    start_cpu_s: float | None = None
    rss_bytes: int | None = None
    peak_bytes: int | None = None
    file_bytes: int | None = None
    waited_share: float | None = None
    """Of the time, in which the load waited for a processor."""
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def batch(self) -> float | None:
        """Messages of a commit."""
        return self.count / self.commits if self.commits else None

    @property
    def p99_fsyncs(self) -> float | None:
        return None if self.p99 is None else self.p99 / self.fsync_ms


@dataclass(frozen=True, slots=True)
class Verdict:
    what: str
    found: Interval
    bound: float
    least: bool
    """``bound`` is the least that is wanted; else the most."""

    @property
    def state(self) -> str:
        """met (the whole interval is within the bound), missed (none of it is), open."""
        low, high = self.found.low, self.found.high
        if self.least:
            return "met" if low >= self.bound else "missed" if high < self.bound else "open"
        return "met" if high <= self.bound else "missed" if low > self.bound else "open"


# ---- brokers


def launch(name: str, slower_ms: float = 0.0) -> Callable[[int, Path], Launch]:
    """What it keeps lies in the folder that it is started with, and is found there again. Each sync takes `slower_ms` longer."""
    if name in MODES:

        def ours(port: int, folder: Path) -> Launch:
            (folder / "store").mkdir(mode=0o700, exist_ok=True)
            found = counted.launch("workers=1", f"durability.mode={name}", f"data_dir={folder / 'store'}")(port, folder)
            slower = power_image.environment(folder / "store", sync_us=round(slower_ms * 1000)) if slower_ms else {}
            return Launch(found.command, {**found.environment, **slower})

        return ours

    def made(port: int, folder: Path) -> Launch:
        config = folder / "mosquitto.conf"
        config.write_text(MOSQUITTO.format(port=port, folder=folder, seconds=AUTOSAVE_S[name]), "utf-8")
        return Launch([brokers.program("mosquitto"), "-c", str(config)], {})

    return made


def fsync_ms(folder: Path, times: int = FSYNCS) -> float:
    """p50 of an append of one page with fsync, milliseconds."""
    spent = []
    page = os.urandom(FSYNC_BYTES)
    with tempfile.TemporaryFile(dir=folder) as file:
        for _ in range(times):
            file.write(page)
            file.flush()
            begun = time.perf_counter_ns()
            os.fsync(file.fileno())
            spent.append((time.perf_counter_ns() - begun) / 1e6)
    return statistics.median(spent)


@dataclass(frozen=True, slots=True)
class Journal:
    """mqttc's counters of what it wrote."""

    commits: int = 0
    commit_us: int = 0
    waiting_bytes: int = 0

    @classmethod
    def of(cls, name: str, folder: Path) -> Journal:
        if name not in MODES or name == "off":
            return cls()
        found = counted.stats(folder)
        return cls(found["journal_commits"], found["journal_commit_us"], found["journal_backlog_bytes"])


def written_out(name: str, folder: Path) -> None:
    """`written` acknowledges before: until nothing waits for the file any more."""
    if name in MODES and name != "off":
        until("writing", lambda: -Journal.of(name, folder).waiting_bytes, 0)


# ---- loads


def until(what: str, progress: Callable[[], int], target: int) -> None:
    wait_for(what, progress, target, PATIENCE_S)


@contextmanager
def loading(port: int) -> Iterator[Load]:
    load = Load("127.0.0.1", port)
    try:
        yield load
    finally:
        load.close()


def add_publishers(load: Load, topics: Callable[[int], list[str]], *, retain: bool = False, rate: float = 0.0) -> None:
    """PUBLISHERS clients from index 0 on: so that a later Load knows their messages, too."""
    for number in range(PUBLISHERS):
        client = load.add_client(f"durable-publisher-{number}")
        sizes = {"payload_least": PAYLOAD, "payload_most": PAYLOAD}
        each = rate / PUBLISHERS
        load.publish_to(
            client, topics(number), qos=1, retain=retain, window=WINDOW, burst=100, loop=False, timed=rate > 0, rate=each, **sizes
        )


def connect(load: Load, first: int, count: int) -> None:
    before = load.counters()["connected"]
    load.connect(first, count)
    until("connecting", lambda: load.counters()["connected"] - before, count)


def leave(load: Load, first: int, count: int) -> None:
    before = load.counters()["connected"]
    load.disconnect(first, count)
    until("leaving", lambda: before - load.counters()["connected"], count)


def add_sessions(load: Load, count: int, topics: Callable[[int], str]) -> None:
    """Behind the publishers."""
    for number in range(count):
        client = load.add_client(f"durable-session-{number}", clean=False, session_expiry=SESSION_EXPIRY_S)
        load.subscribe_to(client, topics(number), 1)


def fill(load: Load, count: int) -> None:
    """All publishers together, until everything is acknowledged."""
    each = count // PUBLISHERS
    before = load.counters()["acknowledged"]
    load.publish(0, PUBLISHERS, messages=each)
    until("publishing", lambda: load.counters()["acknowledged"] - before, each * PUBLISHERS)


def filling(made: Run, load: Load, pid: int, folder: Path, count: int) -> None:
    """Measures it. What is acknowledged before it is written counts once it is written."""
    quiet(pid)
    journal, spent, begun = Journal.of(made.broker, folder), cpu_ns(pid), time.monotonic()
    fill(load, count)
    written_out(made.broker, folder)
    seconds = time.monotonic() - begun
    quiet(pid)
    made.count = count // PUBLISHERS * PUBLISHERS
    made.per_second = made.count / seconds
    made.broker_cpu_us = (cpu_ns(pid) - spent) / 1e3 / made.count
    journal_figures(made, journal, Journal.of(made.broker, folder))


def journal_figures(made: Run, before: Journal, after: Journal) -> None:
    commits = after.commits - before.commits
    if commits:
        made.commits = commits
        made.commit_ms = (after.commit_us - before.commit_us) / 1e3 / commits


def look(made: Run, load: Load) -> None:
    """What should not have happened."""
    counters = load.counters()
    for name in ("duplicates", "reordered", "foreign", "errors", "lost_connections", "refused"):
        if counters[name]:
            made.problems.append(f"{counters[name]} {name}")


def queued(made: Run, port: int, pid: int, folder: Path, options: argparse.Namespace) -> None:
    with loading(port) as load:
        add_publishers(load, lambda number: ["durable/queue"])
        add_sessions(load, 1, lambda number: "durable/queue")
        load.start()
        connect(load, PUBLISHERS, 1)
        until("subscribing", lambda: load.counters()["subscribed"], 1)
        leave(load, PUBLISHERS, 1)
        connect(load, 0, PUBLISHERS)
        filling(made, load, pid, folder, options.messages)
        begun = time.monotonic()
        connect(load, PUBLISHERS, 1)
        until("draining", lambda: load.counters()["received"], made.count)
        made.drained_per_second = made.count / (time.monotonic() - begun)
        look(made, load)


def retained(made: Run, port: int, pid: int, folder: Path, options: argparse.Namespace) -> None:
    each = RETAINED_TOPICS // PUBLISHERS
    with loading(port) as load:
        add_publishers(load, lambda number: [f"durable/{number}/device/{device}" for device in range(each)], retain=True)
        load.start()
        connect(load, 0, PUBLISHERS)
        fill(load, RETAINED_TOPICS)  # what follows are updates
        written_out(made.broker, folder)
        filling(made, load, pid, folder, options.messages)
        look(made, load)


def p2p(made: Run, port: int, pid: int, folder: Path, options: argparse.Namespace) -> None:
    journal = Journal.of(made.broker, folder)
    keys = {"qos": 1, "clean": False, "version": 5, "duration": options.seconds, "url": f"mqtt://127.0.0.1:{port}"}
    found = run("p2p", load_profile("p2p", keys), pid=pid)
    made.count, made.per_second, made.broker_cpu_us = found.count, found.per_second, found.broker_cpu_us or 0.0
    made.problems, made.waited_share = found.problems, found.generator_waited_share
    journal_figures(made, journal, Journal.of(made.broker, folder))
    if made.commits:  # the whole run's, of which the measured part is one
        made.commits = round(made.commits * found.count / found.delivered)


def scattered(number: int, count: int) -> list[str]:
    """`count` topics over all publishers, in an order that is the same each time."""
    topics = [f"durable/{number}/{topic}" for topic in range(count // PUBLISHERS)]
    random.Random(number).shuffle(topics)
    return topics


def disk(made: Run, folder: Path, options: argparse.Namespace) -> None:
    page = os.urandom(DISK_BYTES)
    gap = PUBLISHERS / options.rate
    took = []
    with brokers.on_core(options.broker_core), tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        file.write(os.urandom(DISK_ROOM))
        os.fsync(file.fileno())
        begun = time.perf_counter() + gap
        for number in range(int((options.warmup + options.seconds) / gap)):
            due = begun + number * gap
            time.sleep(max(0.0, due - time.perf_counter()))
            os.pwrite(file.fileno(), page, number * DISK_BYTES % (DISK_ROOM - DISK_BYTES))
            os.fdatasync(file.fileno())
            time.sleep(options.slower / 1e3)
            took.append((time.perf_counter() - due) * 1e3)
    took = sorted(took[int(options.warmup / gap) :])
    made.count = len(took) * PUBLISHERS
    made.per_second = made.count / options.seconds
    made.p50, made.p99 = took[len(took) // 2], took[len(took) * 99 // 100]
    made.over = sum(ms > LATENCY_FSYNCS * made.fsync_ms for ms in took) / len(took)


def latency(made: Run, port: int, pid: int, folder: Path, options: argparse.Namespace) -> None:
    with loading(port) as load:
        if options.retained:
            add_publishers(load, lambda number: scattered(number, options.retained), retain=True, rate=options.rate)
            load.start()
        else:
            add_publishers(load, lambda number: ["durable/queue"], rate=options.rate)
            add_sessions(load, 1, lambda number: "durable/queue")
            load.start()
            connect(load, PUBLISHERS, 1)
            until("subscribing", lambda: load.counters()["subscribed"], 1)
            leave(load, PUBLISHERS, 1)
        connect(load, 0, PUBLISHERS)
        load.publish(0, PUBLISHERS)
        time.sleep(options.warmup)
        load.reset()
        journal, spent, begun = Journal.of(made.broker, folder), cpu_ns(pid), time.monotonic()
        before = load.counters()["acknowledged"]
        time.sleep(options.seconds)
        seconds, spent = time.monotonic() - begun, cpu_ns(pid) - spent
        made.count = load.counters()["acknowledged"] - before
        took = load.acknowledgement_latency()
        found = percentiles(took)
        made.over = sum(count for ns, count in took.items() if ns > LATENCY_FSYNCS * made.fsync_ms * 1e6) / max(sum(took.values()), 1)
        journal_figures(made, journal, Journal.of(made.broker, folder))
        load.stop_publishing()
        made.p50, made.p99 = found.get("p50"), found.get("p99")
        made.per_second = made.count / seconds
        made.broker_cpu_us = spent / 1e3 / max(made.count, 1)
        if made.per_second < 0.98 * options.rate:
            made.notes.append(f"the rate was not held: {made.per_second:.0f} of {options.rate:.0f} messages a second")
        look(made, load)


MEASURES: dict[str, Callable[[Run, int, int, Path, argparse.Namespace], None]] = {
    "queued": queued,
    "p2p": p2p,
    "retained": retained,
    "latency": latency,
    "scattered": latency,
}


def measure(load: str, name: str, number: int, fsync: float, options: argparse.Namespace) -> Run:
    made = Run(load, name, number, fsync)
    folder = Path(tempfile.mkdtemp(prefix="durability-", dir=options.folder))
    try:
        if name == DISK:
            disk(made, folder, options)
            return made
        with brokers.running(launch(name, options.slower), folder, options.broker_core) as (port, pid), brokers.on_core(options.load_core):
            MEASURES[load](made, port, pid, folder, options)
    except (BrokerError, RunError, StalledError, OSError) as error:
        made.problems.append(str(error))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return made


# ---- recovery

KINDS = ("nothing", "queued", "retained", "both")


def recover(kind: str, name: str, number: int, fsync: float, options: argparse.Namespace) -> Run:
    """Fill, kill (mosquitto: end, or it keeps nothing), start, look, count."""
    made = Run(kind, name, number, fsync)
    folder = Path(tempfile.mkdtemp(prefix="durability-", dir=options.folder))
    try:
        with brokers.running(launch(name), folder, options.broker_core) as (port, pid), brokers.on_core(options.load_core):
            provide(kind, port, options)
            written_out(name, folder)
            if name in MODES:
                os.kill(pid, signal.SIGKILL)
        (folder / "stats").unlink(missing_ok=True)  # the killed one's socket
        made.file_bytes = sum(entry.stat().st_size for entry in kept(folder))
        with ExitStack() as stack:
            begun = time.monotonic()
            port, pid = stack.enter_context(brokers.running(launch(name), folder, options.broker_core))
            made.start_s, made.start_cpu_s = time.monotonic() - begun, cpu_ns(pid) / 1e9
            made.rss_bytes, made.peak_bytes = resident_bytes(pid), peak_bytes(pid)
            stack.enter_context(brokers.on_core(options.load_core))
            receive(made, kind, port, options)
    except (BrokerError, RunError, StalledError, OSError) as error:
        made.problems.append(str(error))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return made


def kept(folder: Path) -> list[Path]:
    return [file for file in folder.rglob("*") if file.is_file() and (file.parent.name == "store" or file.suffix == ".db")]


def peak_bytes(pid: int) -> int:
    found = re.search(r"^VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text("ascii"), re.MULTILINE)
    if found is None:
        raise StalledError(f"process {pid} has ended")
    return int(found[1]) * 1024


def site(number: int, of: int) -> list[str]:
    return [f"site/{number}/device/{device}/state" for device in range(of)]


def provide(kind: str, port: int, options: argparse.Namespace) -> None:
    if kind in ("queued", "both"):
        with loading(port) as load:
            add_publishers(load, lambda number: [f"durable/{number % SESSIONS}"])
            add_sessions(load, SESSIONS, lambda number: f"durable/{number}")
            load.start()
            connect(load, PUBLISHERS, SESSIONS)
            until("subscribing", lambda: load.counters()["subscribed"], SESSIONS)
            leave(load, PUBLISHERS, SESSIONS)
            connect(load, 0, PUBLISHERS)
            fill(load, options.messages)
    if kind in ("retained", "both"):
        with loading(port) as load:
            add_publishers(load, lambda number: site(number, options.messages // PUBLISHERS), retain=True)
            load.start()
            connect(load, 0, PUBLISHERS)
            fill(load, options.messages)


def receive(made: Run, kind: str, port: int, options: argparse.Namespace) -> None:
    """All of it must come, each message once."""
    made.count = options.messages // PUBLISHERS * PUBLISHERS
    if kind in ("queued", "both"):
        with loading(port) as load:
            add_publishers(load, lambda number: ["durable/none"])
            add_sessions(load, SESSIONS, lambda number: f"durable/{number}")
            load.start()
            begun = time.monotonic()
            load.connect(PUBLISHERS, SESSIONS)
            until("draining", lambda: load.counters()["received"], made.count)
            made.drained_per_second = made.count / (time.monotonic() - begun)
            look(made, load)
    if kind in ("retained", "both"):
        with loading(port) as load:
            add_publishers(load, lambda number: ["durable/none"])
            # Not looked at one by one: retained messages come in any order, and what is late by much is taken for a repeat.
            load.subscribe_to(load.add_client("durable-reader", verify=False), "site/#", 1)
            load.start()
            load.connect(PUBLISHERS, 1)
            until("reading retained messages", lambda: load.counters()["received"] + load.counters()["duplicates"], made.count)


# ---- judging and showing


def figures(runs: Sequence[Run], load: str, broker: str, metric: str) -> dict[int, float]:
    """By round; runs that failed have none."""
    found = ((made.round, getattr(made, metric)) for made in runs if (made.load, made.broker) == (load, broker) and not made.problems)
    return {number: float(value) for number, value in found if value is not None}


def judge(runs: Sequence[Run]) -> list[Verdict]:
    verdicts = []
    off, synced = figures(runs, "queued", "off", "per_second"), figures(runs, "queued", "synced", "per_second")
    shares = [synced[number] / min(THROUGHPUT, THROUGHPUT_SHARE * off[number]) for number in sorted(off.keys() & synced.keys())]
    if shares:
        what = f"queued, synced: messages a second, in the lesser of {THROUGHPUT:,.0f} and {THROUGHPUT_SHARE:.0%} of off"
        verdicts.append(Verdict(what, interval(shares), 1.0, least=True))
    for mode in ("written", "synced"):
        off, ours = figures(runs, "p2p", "off", "broker_cpu_us"), figures(runs, "p2p", mode, "broker_cpu_us")
        ratios = [ours[number] / off[number] for number in sorted(off.keys() & ours.keys()) if off[number]]
        if ratios:
            verdicts.append(Verdict(f"p2p, {mode}: processor time a message, in that of off", interval(ratios), P2P_CPU, least=False))
    waits = list(figures(runs, "latency", "synced", "p99_fsyncs").values())
    if waits:
        verdicts.append(Verdict("latency, synced: p99 in fsyncs of this disk", interval(waits), LATENCY_FSYNCS, least=False))
    for name in ("off", DISK):
        floor, synced = figures(runs, "latency", name, "over"), figures(runs, "latency", "synced", "over")
        more = [(synced[number] - floor[number]) * 100 for number in sorted(floor.keys() & synced.keys())]
        if more:
            what = f"latency, synced: messages over {LATENCY_FSYNCS:g} fsyncs, in a hundred, less those of {name}, which are the machine's"
            verdicts.append(Verdict(what, interval(more), 1.0, least=False))
    return verdicts


def shown(runs: Sequence[Run], load: str, broker: str, metric: str, form: str, scale: float = 1.0) -> str:
    """The median of the rounds."""
    values = figures(runs, load, broker, metric)
    return form.format(statistics.median(values.values()) * scale) if values else "-"


COLUMNS: dict[str, list[tuple[str, str, str, float]]] = {
    "speed": [
        ("per second", "per_second", "{:,.0f}", 1),
        ("broker CPU, µs each", "broker_cpu_us", "{:.2f}", 1),
        ("messages a commit", "batch", "{:,.0f}", 1),
        ("ms a commit", "commit_ms", "{:.2f}", 1),
        ("drained per second", "drained_per_second", "{:,.0f}", 1),
    ],
    "latency": [
        ("per second", "per_second", "{:,.0f}", 1),
        ("p50, ms", "p50", "{:.2f}", 1),
        ("p99, ms", "p99", "{:.2f}", 1),
        ("p99, fsyncs", "p99_fsyncs", "{:.1f}", 1),
        (f"over {LATENCY_FSYNCS:g} fsyncs, %", "over", "{:.2f}", 100),
        ("broker CPU, µs each", "broker_cpu_us", "{:.2f}", 1),
        ("messages a commit", "batch", "{:,.1f}", 1),
    ],
    "recovery": [
        ("start, s", "start_s", "{:.2f}", 1),
        ("its CPU, s", "start_cpu_s", "{:.2f}", 1),
        ("resident then, MB", "rss_bytes", "{:,.0f}", 1e-6),
        ("at most, MB", "peak_bytes", "{:,.0f}", 1e-6),
        ("files, MB", "file_bytes", "{:,.0f}", 1e-6),
        ("drained per second", "drained_per_second", "{:,.0f}", 1),
    ],
}


def table(runs: Sequence[Run], command: str) -> tuple[list[str], list[list[str]]]:
    columns = COLUMNS[command]
    rows = []
    for load, broker in dict.fromkeys((made.load, made.broker) for made in runs):
        mine = [made for made in runs if (made.load, made.broker) == (load, broker)]
        remarks = sorted({remark for made in mine for remark in [*made.problems, *made.notes]})
        waited = max((made.waited_share or 0.0 for made in mine), default=0.0)
        if waited > 0.1:
            remarks.append(f"the load waited for a processor, up to {waited:.0%} of a round")
        cells = [shown(runs, load, broker, metric, form, scale) for _, metric, form, scale in columns]
        rows.append([load, f"mqttc {broker}" if broker in MODES else broker, *cells, "; ".join(remarks)])
    head = ["kept" if command == "recovery" else "load", "broker", *[title for title, *_ in columns], "remarks"]
    if not any(row[-1] for row in rows):
        head, rows = head[:-1], [row[:-1] for row in rows]
    return head, rows


VERDICTS = ["target", "found", "rounds between", "wanted", "verdict"]


def verdict_rows(verdicts: Sequence[Verdict]) -> list[list[str]]:
    return [
        [
            verdict.what,
            f"{verdict.found.median:.2f}",
            f"{verdict.found.low:.2f} .. {verdict.found.high:.2f}",
            f"{'at least' if verdict.least else 'at most'} {verdict.bound:g}",
            verdict.state,
        ]
        for verdict in verdicts
    ]


def facts(runs: Sequence[Run], command: str, options: argparse.Namespace) -> str:
    fsync = statistics.median({made.round: made.fsync_ms for made in runs}.values())
    counts = f"{options.seconds:g} s" if command == "latency" else f"{options.messages:,} messages"
    others = f" The machine was not its own: a load of {options.before:.1f} before the run." if options.before > QUIET else ""
    rounds = "One round" if options.rounds == 1 else f"Medians of {options.rounds} rounds"
    slower = f", made slower by {options.slower:g} ms" if options.slower else ""
    return f"{rounds}; {counts}; an fsync of this disk{slower} (p50): {fsync:.3f} ms.{others}"


def mark(options: argparse.Namespace) -> str:
    """What a page calls the place of this table."""
    return f"{options.command}{'-retained' if options.retained else ''}{'-slower' if options.slower else ''}"


def places(page: Path, command: str) -> tuple[int, int] | None:
    """Where the page's text for that command begins and ends."""
    begin, end = f"<!-- durability.py {command}: begin -->\n", f"<!-- durability.py {command}: end -->"
    text = page.read_text("utf-8")
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        return None
    return text.index(begin) + len(begin), text.index(end)


def put(page: Path, command: str, text: str) -> None:
    """Between the page's marks for that command. Raises ``ValueError`` where they are missing."""
    found = places(page, command)
    if found is None:
        raise ValueError(f"{page} has no place for {command}")
    old = page.read_text("utf-8")
    page.write_text(old[: found[0]] + text + old[found[1] :], "utf-8")


# ---- the command


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="durability.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = made.add_subparsers(dest="command", required=True)
    defaults = (("speed", LOADS, 500_000, 4.0), ("latency", ("latency",), 0, 5.0), ("recovery", KINDS, 1_000_000, 0.0))
    for command, kinds, messages, seconds in defaults:
        # Of the file that is written at the end; one that is written whole each second makes filling quadratic.
        contenders = [DISK, *CONTENDERS] if command == "latency" else list(CONTENDERS)
        names = ["written", "mosquitto-1800"] if command == "recovery" else contenders
        one = commands.add_parser(command, formatter_class=argparse.RawDescriptionHelpFormatter)
        one.add_argument("--brokers", nargs="+", choices=contenders, default=names)
        one.add_argument("--rounds", type=int, default=1 if command == "recovery" else 5)
        if len(kinds) > 1:
            one.add_argument("--loads", nargs="+", choices=kinds, default=list(kinds))
        else:
            one.set_defaults(loads=list(kinds))
        if messages:
            one.add_argument("--messages", type=int, default=messages, help="of each load but p2p, at most 1000000 (%(default)s)")
        if seconds:
            one.add_argument("--seconds", type=float, default=seconds, help="of measuring, for loads that take a time (%(default)s)")
        if command == "latency":
            one.add_argument("--rate", type=float, default=5000.0, help="messages a second over all publishers (%(default)s)")
            one.add_argument("--warmup", type=float, default=4.0, help="seconds before measuring (%(default)s)")
            retained = "updates of so many retained messages in random order, instead of a queue"
            one.add_argument("--retained", type=int, default=0, metavar="TOPICS", help=retained)
            slower = "lengthens each sync of mqttc's, as a slower disk would; needs a C compiler (%(default)s)"
            one.add_argument("--slower", type=float, default=0.0, metavar="MS", help=slower)
        else:
            one.set_defaults(slower=0.0, retained=0)
        one.add_argument("--broker-core", type=int, default=0)
        one.add_argument("--load-core", type=int, default=1)
        one.add_argument("--folder", type=Path, default=ROOT / "build" / "macro", help="on the disk that is measured")
        one.add_argument("--out", type=Path, default=ROOT / "build" / "macro" / f"durability-{command}.json")
        one.add_argument("--page", type=Path, help="a Markdown page with marks for it, into which the table is written")
    return made


def play(options: argparse.Namespace) -> list[Run]:
    runs: list[Run] = []
    take = recover if options.command == "recovery" else measure
    for number in range(options.rounds):
        fsync = fsync_ms(options.folder) + options.slower
        for load in options.loads:
            turn = number % len(options.brokers)
            for name in options.brokers[turn:] + options.brokers[:turn]:
                made = take(load, name, number, fsync, options)
                runs.append(made)
                spent = f", {made.broker_cpu_us:.2f} µs" if made.broker_cpu_us is not None else ""
                found = f"{made.per_second:,.0f}/s{spent}" if made.start_s is None else f"{made.start_s:.2f} s"
                what = "; ".join([*made.problems, *made.notes]) or found
                print(f"round {number + 1}/{options.rounds}  {load:8} {name:14} {what}", file=sys.stderr, flush=True)
    order = {pair: place for place, pair in enumerate((load, name) for load in options.loads for name in options.brokers)}
    return sorted(runs, key=lambda made: order[made.load, made.broker])


def main(arguments: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    made = parser()
    options = made.parse_args(given)
    if options.page and not places(options.page, mark(options)):
        made.error(f"{options.page} has no place for {mark(options)}")
    if options.retained and options.retained < PUBLISHERS:
        made.error(f"--retained is at least {PUBLISHERS}, one topic of each publisher")
    if options.rounds < 1 or not 0 <= getattr(options, "messages", PUBLISHERS) <= 1_000_000:
        made.error("--rounds is at least 1, --messages at most 1000000")
    if options.retained:
        options.loads = ["scattered"]
    options.folder.mkdir(parents=True, exist_ok=True)
    if not {options.broker_core, options.load_core} <= os.sched_getaffinity(0):
        print("not pinned: these cores cannot be chosen here, so the figures include what the two do to each other", file=sys.stderr)
        options.broker_core = options.load_core = None
    descriptors()
    options.before = os.getloadavg()[0]
    try:
        runs = play(options)
    finally:
        power_image.forget_shim()
    head, rows = table(runs, options.command)
    verdicts = judge(runs)
    about = facts(runs, options.command, options)
    print(about)
    show(head, rows)
    if verdicts:
        show(VERDICTS, verdict_rows(verdicts))
    write(options.out, {"runs": [asdict(one) for one in runs], "verdicts": [{**asdict(one), "state": one.state} for one in verdicts]})
    if options.page:
        text = f"`python bench/macro/durability.py {' '.join(given)}`. {about}\n\n{markdown(head, rows)}"
        put(options.page, mark(options), text + (f"\n{markdown(VERDICTS, verdict_rows(verdicts))}" if verdicts else ""))
    return int(any(one.problems for one in runs) or any(verdict.state == "missed" for verdict in verdicts))


if __name__ == "__main__":
    sys.exit(main())
