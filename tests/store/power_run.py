"""A broker whose power is cut, at many moments of one run.

The disk and all clients are made again as they were then, and the broker starts on that.
"""

from __future__ import annotations

import random
import shutil
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from .crash_clients import Gate, Habits, Publisher, Subscriber
from .crash_model import MARKER, History, Sent, wrong
from .crash_run import RETAINED, BrokerProcess, Cast, drained, mark_all, retained_problems, snapshot, streams_of
from .power_image import SYNC, WRITE, Disk, Operation, environment, read_log

MOST_OF_A_WRITE = 4096
"""Bytes: a page, the largest that SQLite writes at once."""


def power_cast(gate: Gate, seed: str) -> Cast:
    """Fewer clients than for the crash test: what matters here is the file."""
    publishers = [
        Publisher(f"p{number}", gate, version, seed, streams_of(f"p{number}", 3), window, 0.01)
        for number, (version, window) in enumerate([(4, 6), (5, 16)], 1)
    ]
    end = [(MARKER, 1)]
    subscribers = [
        Subscriber("all-2", gate, 5, seed, Habits([("load/#", 2), *end], slow_s=0.02)),
        Subscriber("all-1", gate, 4, seed, Habits([("load/#", 1), ("state/#", 2), *end], leave_rate=1)),
        Subscriber("away", gate, 4, seed, Habits([("load/+/a", 2), *end], leave_rate=1, away_s=1.0)),
        Subscriber("asks", gate, 5, seed, Habits(end, toggles=[("load/p1/#", 1), ("load/p2/+", 2)])),
        Subscriber("g-a", gate, 4, seed, Habits([("$share/one/load/#", 2), *end], slow_s=0.05)),
        Subscriber("g-b", gate, 5, seed, Habits([("$share/one/load/#", 2), *end], leave_rate=1)),
    ]  # fmt: skip
    return Cast(publishers, subscribers, [])


def join(gate: Gate, cast: Cast) -> None:
    gate.ended.set()
    for client in cast.clients:
        if client.thread.ident is not None:
            client.thread.join()


@dataclass(frozen=True)
class Outcome:
    """What the images of a run came to."""

    images: int
    operations: int
    syncs: int
    checkpoints: int
    acknowledged: int
    violations: list[str]
    """With the number of the operation before which the power was cut."""
    folder: Path | None
    """Histories and images of what went wrong, if there was anything."""

    def __str__(self) -> str:
        return (
            f"{self.images} images of {self.operations} operations with {self.syncs} syncs and {self.checkpoints} checkpoints,"
            f" {self.acknowledged} messages acknowledged, {len(self.violations)} violations"
        )


def differing_bytes(a: bytes, b: bytes) -> int:
    """From the first byte in which they differ to the last; what only the longer one has differs."""
    common = min(len(a), len(b))
    first = next((at for at in range(common) if a[at] != b[at]), common)
    if len(a) != len(b):
        return max(len(a), len(b)) - first
    return next(at for at in reversed(range(common)) if a[at] != b[at]) + 1 - first if first < common else 0


class PowerRun:
    """One run under load, then `images` images. With `lie` files whose names end like that are not
    synced, and nobody is told: the images must lose messages, or the test is blind."""

    def __init__(
        self,
        mode: str,
        images: int,
        seed: int,
        workers: int,
        *,
        load_s: float = 3.0,
        lie: str | None = None,
        enough: int | None = None,
        echo: TextIO | None = None,
    ) -> None:
        self.mode, self.images, self.seed, self.workers, self.load_s, self.lie = mode, images, seed, workers, load_s, lie
        self.enough = enough
        """Violating images after which no more are looked at."""
        self.random = random.Random(seed)
        self.folder = Path(tempfile.mkdtemp(prefix="mqttc-power-"))
        self.echo = echo
        self.violations: list[str] = []
        self.looked = 0
        self.cast: Cast

    def run(self) -> Outcome:
        kept: Path | None = None
        try:
            operations = self._record()
            if not self.violations:
                self._cut(operations)
        finally:
            if (self.violations and self.lie is None) or sys.exc_info()[0] is not None:
                kept = self.folder
            else:
                shutil.rmtree(self.folder)
        store = {one.inode for one in operations if one.kind == WRITE and one.offset == 0 and one.data.startswith(b"SQLite format 3")}
        return Outcome(
            self.looked,
            len(operations),
            sum(one.kind == SYNC for one in operations),
            sum(one.kind == SYNC and one.inode in store for one in operations),
            sum(sent.acknowledged is not None for sent in self.cast.messages),
            self.violations,
            kept,
        )

    def _record(self) -> list[Operation]:
        data, log = self.folder / "data", self.folder / "log"
        data.mkdir(0o700)
        history = History(self.folder / "history", self.echo)
        history.note("run", f"mode {self.mode}, seed {self.seed}, {self.workers} workers, lie {self.lie}")
        gate = Gate(str(self.folder / "socket"), history, keeps_events=True)
        self.cast = power_cast(gate, str(self.seed))
        broker = BrokerProcess(self.folder, self.mode, self.workers, history, environment=environment(data, log, lie=self.lie))
        try:
            if broker.until_ready():
                gate.up.set()
                for client in self.cast.clients:
                    client.start()
                history.broken.wait(self.load_s)
                gate.up.clear()
                broker.kill()
        finally:
            if broker.process.poll() is None:
                broker.process.kill()
            join(gate, self.cast)
            history.close()
        self.violations += history.violations
        operations = read_log(log)
        self._compare(operations, data)
        return operations

    def _compare(self, operations: Iterable[Operation], data: Path) -> None:
        """The log knows every byte: all of it makes the files that are there, but for one write that the kill left without a line."""
        disk = Disk()
        for operation in operations:
            disk.feed(operation)
        disk.write_all(self.folder / "whole")
        missed = {}
        for path in (self.folder / "whole").iterdir():
            logged, there = path.read_bytes(), (data / path.name).read_bytes()
            if logged != there:
                missed[path.name] = differing_bytes(logged, there)
        if len(missed) > 1 or sum(missed.values()) > MOST_OF_A_WRITE:
            self.violations += [f"the log misses something of {name}" for name in missed]
        shutil.rmtree(self.folder / "whole")

    def _cut(self, operations: list[Operation]) -> None:
        syncs = [at for at, one in enumerate(operations) if one.kind == SYNC]
        cuts = []
        for count in range(self.images):
            at = self.random.randint(1, len(operations))
            if count % 4 == 1 and syncs:  # right behind a sync, when acknowledgements are on their way
                at = min(len(operations), self.random.choice(syncs) + self.random.randint(1, 2))
            cuts.append(at)
        disk, fed, bad = Disk(), 0, 0
        for at in sorted(cuts):
            for operation in operations[fed:at]:
                disk.feed(operation)
            fed = at
            when = operations[at].began_ns if at < len(operations) else 2**63
            found = self._image(disk, at, when)
            self.violations += [f"cut before operation {at}: {what}" for what in found]
            bad += bool(found)
            self.looked += 1
            if self.echo is not None and self.looked % 20 == 0:
                print(f"{self.looked} images, {len(self.violations)} violations", file=self.echo, flush=True)
            if self.enough is not None and bad >= self.enough:
                return

    def _image(self, disk: Disk, at: int, when: int) -> list[str]:
        """What is wrong when the broker starts on an image of that moment and the clients come back as they were then."""
        folder = self.folder / f"cut-{at}-{self.looked}"
        folder.mkdir()
        disk.write(folder / "data", self.random)
        shutil.copytree(folder / "data", folder / "image")
        history = History(folder / "history", self.echo)
        gate = Gate(str(folder / "socket"), history)
        cast = power_cast(gate, str(self.seed))
        for new, old in zip(cast.clients, self.cast.clients, strict=True):
            new.restore(old.events, when)
        broker = BrokerProcess(folder, self.mode, self.workers, history)
        try:
            if broker.until_ready():
                self._look(gate, cast)
                gate.up.clear()
                broker.kill()
        finally:
            if broker.process.poll() is None:
                broker.process.kill()
            join(gate, cast)
            history.close()
        if not history.violations:
            shutil.rmtree(folder)
        return history.violations

    @staticmethod
    def _look(gate: Gate, cast: Cast) -> None:
        before = [Sent(one.key, one.at, one.acknowledged) for one in cast.messages]
        problems = retained_problems(snapshot(gate.address, RETAINED, []), before, before)
        gate.draining.set()
        gate.up.set()
        for client in cast.clients:
            client.start()
        if drained(gate, cast):
            mark_all(gate, cast)
            problems += wrong(cast.messages, cast.receivers)
        for what in problems:
            gate.history.violation("run", what)
