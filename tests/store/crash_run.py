"""A broker that is killed again and again under load, and what must have held when it is over."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from tests.rawclient import PUBLISH, Peer, PeerClosed, PeerTimeout, publish_packet

from .crash_clients import PATIENCE_S, Client, Gate, Habits, Mourned, Publisher, Subscriber, until
from .crash_model import MARKER, History, Key, Receiver, Sent, key_of, matches, missing, payload_of, wrong
from .power_image import environment

ROOT = Path(__file__).parents[2]
READY_S = 60.0
SETTINGS = {
    "durability.spill_after": "16",
    "limits.max_queued_messages": "1000000",
    "limits.max_queued_bytes": "1000000000",
    "limits.max_group_backlog": "1000000",
    "log.level": '"warning"',
}


class BrokerProcess:
    """``mqttc-broker`` with a store, on a Unix socket."""

    def __init__(
        self,
        folder: Path,
        mode: str,
        workers: int,
        history: History,
        *,
        data_dir: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.history = history
        self.address = str(folder / "socket")
        self.ready = threading.Event()
        settings = {
            "workers": str(workers),
            "durability.mode": mode,
            "data_dir": str(data_dir or folder / "data"),
            "auth.anonymous": "true",
            **SETTINGS,
        }  # fmt: skip
        arguments = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mqttc", "--listen", f"unix://{self.address}", *arguments],
            cwd=ROOT,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.history.note("broker", line.rstrip("\n"))
            if line.startswith("ready"):
                self.ready.set()

    def until_ready(self) -> bool:
        """False: it ended, or came to nothing in time."""
        deadline = time.monotonic() + READY_S
        while not self.ready.wait(0.02):
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.history.violation("broker", f"did not get ready, exit code {self.process.poll()}")
                return False
        return True

    def kill(self) -> None:
        if self.process.poll() is not None:
            self.history.violation("broker", f"ended by itself, exit code {self.process.returncode}")
        self.process.kill()
        self._gone()

    def end(self) -> None:
        self.process.terminate()
        try:
            code = self.process.wait(READY_S)
        except subprocess.TimeoutExpired:
            self.history.violation("broker", "does not end")
            self.process.kill()
        else:
            if code:
                self.history.violation("broker", f"ended with exit code {code}")
        self._gone()

    def _gone(self) -> None:
        self.process.wait()
        self.reader.join()
        assert self.process.stderr is not None
        self.process.stderr.close()


# ---------------------------------------------------------------------------------------------- the clients


@dataclass
class Cast:
    """All clients of a run."""

    publishers: list[Publisher]
    subscribers: list[Subscriber]
    mourned: list[Mourned]

    @property
    def clients(self) -> list[Client]:
        return [*self.subscribers, *self.publishers, *self.mourned]

    @property
    def messages(self) -> list[Sent]:
        """Also the wills, which nobody acknowledges."""
        found = [sent for publisher in self.publishers for sent in list(publisher.messages)]
        for one in self.mourned:
            found += [*one.sent, *one.wills]
        return found

    @property
    def receivers(self) -> list[Receiver]:
        return [one.receiver for one in self.subscribers]

    @property
    def deliveries(self) -> int:
        return sum(client.event_count for client in self.clients)


def streams_of(name: str, loads: int) -> list[tuple[str, int, bool]]:
    """What a publisher publishes: load with both QoS on the same topics, retained topics of its own, and one that all share."""
    load = [(f"load/{name}/{leaf}", qos, False) for leaf in "ab" for qos in (1, 2)]
    retained = [
        (f"state/{name}/1", 1, True),
        (f"state/{name}/2", 2, True),
        (f"clear/{name}", 1, True),
        ("joint/1", 1, True),
        ("clear/joint", 2, True),
    ]
    return load * loads + retained


def crash_cast(gate: Gate, seed: str, pause_s: float) -> Cast:
    """Everything that the issue of durability names."""
    publishers = [
        Publisher(f"p{number}", gate, version, seed, streams_of(f"p{number}", 4), window, pause_s)
        for number, (version, window) in enumerate([(4, 8), (5, 20), (5, 3), (4, 1)], 1)
    ]
    end = [(MARKER, 1)]
    heir = Subscriber("heir", gate, 5, seed, Habits([("will/#", 2), ("armed/#", 1), *end]))
    subscribers = [
        Subscriber("all-2", gate, 5, seed, Habits([("load/#", 2), *end])),
        Subscriber("all-1", gate, 4, seed, Habits([("load/+/a", 1), ("load/+/b", 1), *end], slow_s=0.1)),
        Subscriber("away", gate, 4, seed, Habits([("load/+/a", 2), ("state/#", 1), *end], leave_rate=1, away_s=0.8)),
        Subscriber("asks", gate, 5, seed, Habits(end, toggles=[("load/p1/#", 1), ("load/p2/+", 2), ("load/p3/b", 2)], slow_s=0.05)),
        Subscriber("states", gate, 5, seed, Habits([("load/+/b", 2), *end], again=[("state/#", 2)], slow_s=0.05)),
        Subscriber("g1-a", gate, 4, seed, Habits([("$share/one/load/#", 1), *end], slow_s=0.1)),
        Subscriber("g1-b", gate, 5, seed, Habits([("$share/one/load/#", 2), *end], leave_rate=1)),
        Subscriber("g2-a", gate, 5, seed, Habits([("$share/two/load/#", 2), *end], slow_s=0.1, receive_maximum=5)),
        Subscriber("g2-b", gate, 4, seed, Habits([("$share/two/load/#", 2), *end], leave_rate=1, away_s=0.3)),
        heir,
    ]  # fmt: skip
    mourned = [Mourned("comes-back", gate, seed, 3000, False, heir), Mourned("stays-away", gate, seed, 1, True, heir)]
    return Cast(publishers, subscribers, mourned)


# ---------------------------------------------------------------------------------------------- retained messages


def snapshot(address: str, filters: Iterable[str], complete: Iterable[str]) -> dict[str, bytes]:
    """The retained messages, by topic. Waits a little for topics of `complete`, should they not come at once."""
    peer = Peer(address, 5)
    try:
        peer.connect("snapshot")
        peer.subscribe_many([(one, 0) for one in filters])
        peer.ping()
        found = {got.topic: got.payload for got in peer.aside if got.type == PUBLISH and got.retain}
        peer.aside.clear()
        wanted = set(complete) - found.keys()
        deadline = time.monotonic() + 2
        while wanted and time.monotonic() < deadline:
            try:
                got = peer.recv(0.1)
            except PeerTimeout:
                continue
            if got.type == PUBLISH and got.retain:
                found[got.topic] = got.payload
                wanted.discard(got.topic)
        return found
    finally:
        peer.close()


RETAINED = ("state/#", "clear/#", "joint/#")


def retained_problems(found: Mapping[str, bytes], before: Iterable[Sent], after: Iterable[Sent]) -> list[str]:
    """Topics with one publisher: what is there must not be older than what was acknowledged before, nor newer than what was sent."""
    newest: dict[str, Sent] = {}
    sent: dict[str, set[int]] = {}
    for one in before:
        if one.acknowledged is not None and (one.key.topic not in newest or newest[one.key.topic].key.number < one.key.number):
            newest[one.key.topic] = one
    for one in after:
        sent.setdefault(one.key.topic, set()).add(one.key.number)
    problems = []
    for topic, one in newest.items():
        if topic.endswith("joint") or topic.startswith("joint") or not any(matches(f, topic) for f in RETAINED):
            continue
        floor = one.key.number
        payload = found.get(topic)
        if payload is None:
            # Taken back by every third message, if it is a topic where that is done.
            if not topic.startswith("clear/") or not any(number % 3 == 0 and number >= floor for number in sent[topic]):
                problems.append(f"{topic}: retained #{floor} was acknowledged, nothing is there")
            continue
        key = key_of(topic, payload)
        if key is None or key.number not in sent[topic]:
            problems.append(f"{topic}: retained bytes that nobody sent: {payload[:60]!r}")
        elif key.number < floor:
            problems.append(f"{topic}: retained #{floor} was acknowledged, #{key.number} is there")
    return problems


# ---------------------------------------------------------------------------------------------- a run


@dataclass(frozen=True)
class Outcome:
    """What a run came to."""

    kills: int
    acknowledged: int
    delivered: int
    violations: list[str]
    history: Path | None
    """Kept if there were violations."""

    def __str__(self) -> str:
        return (
            f"{self.kills} kills, {self.acknowledged} messages acknowledged, {self.delivered} events at clients,"
            f" {len(self.violations)} violations"
        )


class CrashRun:
    """``kills`` times a SIGKILL at a random moment.

    Everything random follows from the seed, but for what threads and processes make of it.
    """

    def __init__(
        self, mode: str, kills: int, seed: int, workers: int, *, life_s: tuple[float, float] = (0.1, 1.5), pause_s: float = 0.02,
        sync_us: int = 0, echo: TextIO | None = None,
    ) -> None:  # fmt: skip
        self.mode, self.kills, self.workers, self.life_s = mode, kills, workers, life_s
        self.random = random.Random(seed)
        self.folder = Path(tempfile.mkdtemp(prefix="mqttc-crash-"))
        self.history = History(self.folder / "history", echo)
        self.history.note("run", f"mode {mode}, {kills} kills, seed {seed}, {workers} workers")
        self.gate = Gate(str(self.folder / "socket"), self.history)
        self.cast = crash_cast(self.gate, str(seed), pause_s)
        self.broker: BrokerProcess | None = None
        (self.folder / "data").mkdir(0o700)
        # A slow disk: more lies between what was noted and what was committed.
        self.environment = environment(self.folder / "data", sync_us=sync_us) if sync_us else None
        self.killed = 0
        self.echo = echo

    def run(self) -> Outcome:
        try:
            self._run()
        except Exception as error:
            self.history.violation("run", f"failed: {error!r}")
            raise
        finally:
            self.gate.ended.set()
            if self.broker is not None and self.broker.process.poll() is None:
                self.broker.process.kill()
            for client in self.cast.clients:
                if client.thread.ident is not None:
                    client.thread.join()
            self.history.close()
        kept = None
        if self.history.violations:
            kept = self.history.path
        else:
            shutil.rmtree(self.folder)
        acknowledged = sum(sent.acknowledged is not None for sent in self.cast.messages)
        return Outcome(self.killed, acknowledged, self.cast.deliveries, self.history.violations, kept)

    def _run(self) -> None:
        if not self._start():
            return
        for client in self.cast.clients:
            client.start()
        while self.killed < self.kills:
            if self.history.broken.wait(self.random.uniform(*self.life_s)):
                return
            self._kill()
            if self.random.random() < 0.15:
                self._kill_early()
            if not self._start():
                return
            self._look_at_retained()
            if self.echo is not None and self.killed % 20 == 0:
                print(f"{self.killed} kills, {self.cast.deliveries} events", file=self.echo, flush=True)
        self.gate.draining.set()
        if not self._drain():
            return
        self._kill_at_rest()

    def _start(self) -> bool:
        self.broker = BrokerProcess(self.folder, self.mode, self.workers, self.history, environment=self.environment)
        if not self.broker.until_ready():
            return False
        self.gate.up.set()
        return True

    def _kill(self) -> None:
        assert self.broker is not None
        self.gate.up.clear()
        self.history.note("run", "kill")
        self.broker.kill()
        self.killed += 1

    def _kill_early(self) -> None:
        """Once more, while it starts and recovers."""
        self.broker = BrokerProcess(self.folder, self.mode, self.workers, self.history, environment=self.environment)
        self.history.broken.wait(self.random.uniform(0.2, 1.0))
        self._kill()

    def _look_at_retained(self) -> None:
        before = [Sent(s.key, s.at, s.acknowledged) for s in self.cast.messages if not s.key.topic.startswith("load/")]
        try:
            found = snapshot(self.gate.address, RETAINED, [])
        except (PeerClosed, PeerTimeout, OSError) as error:
            self.history.violation("run", f"no retained messages: {error!r}")
            return
        for problem in retained_problems(found, before, self.cast.messages):
            self.history.violation("retained", problem)

    def _drain(self) -> bool:
        """Nothing new; whatever was begun is brought to its end."""
        cast = self.cast
        if not drained(self.gate, cast):
            return False
        if not until(lambda: not any(one.due for one in cast.mourned), self.gate, lambda: cast.deliveries):
            self.history.violation("lost", f"wills did not go out: {[(one.name, one.life) for one in cast.mourned if one.due]}")
            return False
        return True

    def _kill_at_rest(self) -> None:
        """All is acknowledged and delivered: once more, and nothing may be different or come again."""
        topics = {sent.key.topic for sent in self.cast.messages}
        filters = [topic for topic in topics if any(matches(f, topic) for f in RETAINED)]
        before = snapshot(self.gate.address, filters, [])
        self._kill()
        if not self._start():
            return
        after = snapshot(self.gate.address, filters, before)
        for topic in before.keys() | after.keys():
            if before.get(topic) != after.get(topic):
                self.history.violation("retained", f"{topic}: {before.get(topic, b'')[:40]!r} became {after.get(topic, b'')[:40]!r}")
        mark_all(self.gate, self.cast)
        messages = self.cast.messages
        for what in retained_problems(after, messages, messages) + wrong(messages, self.cast.receivers):
            self.history.violation("run", what)
        for one in self.cast.mourned:
            if not one.stays_away and any(one.out(life) for life in range(1, one.life + 1)):
                self.history.violation(one.name, "its will went out although it came back")
        self.gate.up.clear()
        self.gate.ended.set()
        for client in self.cast.clients:
            client.thread.join()
        assert self.broker is not None
        self.broker.end()
        self._look_into_the_store()

    def _look_into_the_store(self) -> None:
        """Sound, and without what nobody waits for."""
        data = self.folder / "data"
        checked = subprocess.run(
            [sys.executable, "-m", "mqttc", "store", "check", "--data-dir", str(data)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        if checked.returncode:
            self.history.violation("store", f"check: {checked.stdout}{checked.stderr}")
        with closing(sqlite3.connect(data / "store.db")) as connection:
            for table in ("message", "delivery", "inbound"):
                count = connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
                if count:
                    self.history.violation("store", f"{count} rows are left in {table}, and nobody waits for anything")


def drained(gate: Gate, cast: Cast) -> bool:
    """Publishers and subscribers have what they wait for; else that is a violation."""
    if not until(lambda: all(one.idle for one in cast.publishers), gate, lambda: cast.deliveries):
        gate.history.violation("run", f"publishers still wait: {[one.name for one in cast.publishers if not one.idle]}")
        return False
    waiting = cast.messages

    def arrived() -> bool:
        left = {sent.key for sent, _ in missing(waiting, cast.receivers)}
        waiting[:] = [sent for sent in waiting if sent.key in left]
        return not waiting

    if not until(arrived, gate, lambda: cast.deliveries) and not arrived():
        for sent, where in missing(waiting, cast.receivers)[:20]:
            gate.history.violation("lost", f"{where}: {sent.key} was acknowledged and is lost")
        return False
    if not until(lambda: not any(one.ids for one in cast.subscribers), gate, lambda: cast.deliveries):
        for one in cast.subscribers:
            if one.ids:
                gate.history.violation(one.name, f"no PUBREL comes for {[(i, topic) for i, (topic, _) in list(one.ids.items())[:20]]}")
        return False
    return True


def mark_all(gate: Gate, cast: Cast) -> None:
    """A last message for everybody: behind it nothing comes any more."""
    key = Key("run", MARKER, 1, 1)
    peer = Peer(gate.address, 4)
    try:
        peer.connect("marker")
        peer.send(publish_packet(MARKER, payload_of(key), 4, qos=1, packet_id=1))
        peer.recv(PATIENCE_S)
    finally:
        peer.close()
    # A subscription to it that was not acknowledged yet need not get it.
    waiting = [one for one in cast.subscribers if one.granted(MARKER)]
    if not until(lambda: all(key in one.receiver.keys for one in waiting), gate, lambda: cast.deliveries):
        gate.history.violation("run", f"the last message did not come: {[one.name for one in waiting if key not in one.receiver.keys]}")
