"""What the scripts about scale share: placement, medians, memory, tables and files."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mqttc.bench import process
from mqttc.bench.result import machine

POLL_S = 0.002


class StalledError(RuntimeError):
    """Something did not come about in time."""


@contextlib.contextmanager
def cores_of(cores: set[int]) -> Iterator[None]:
    """This thread, and those that it starts meanwhile, on these cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def descriptors() -> int:
    """Takes as many as are allowed, for this process and what it starts; how many that is."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def cpu_ns(pid: int) -> int:
    """On a processor so far, all threads that live."""
    times = process.thread_times(pid)
    if times is None:
        raise StalledError(f"process {pid} has ended, or this kernel does not count the time of threads")
    return sum(times.values())


def resident_bytes(pid: int) -> int:
    found = re.search(r"^VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text("ascii"), re.MULTILINE)
    if found is None:
        raise StalledError(f"process {pid} has ended")
    return int(found[1]) * 1024


def wait_for(what: str, progress: Callable[[], int], target: int, patience_s: float = 30.0) -> None:
    """Until ``progress`` reaches ``target``; raises ``StalledError`` when it stands still for too long."""
    best, since = -1, time.monotonic()
    while (reached := progress()) < target:
        now = time.monotonic()
        if reached != best:
            best, since = reached, now
        elif now - since > patience_s:
            raise StalledError(f"{what}: {reached} of {target}, then nothing for {patience_s:g} s")
        time.sleep(POLL_S)


def quiet(pid: int, share: float = 0.02, patience_s: float = 60.0) -> None:
    """Until the process does next to nothing: what it was given is done."""
    end = time.monotonic() + patience_s
    before = cpu_ns(pid)
    while time.monotonic() < end:
        time.sleep(0.2)
        now = cpu_ns(pid)
        if now - before < share * 0.2e9:
            return
        before = now
    raise StalledError(f"process {pid} does not come to rest")


def median(values: Iterable[float]) -> float:
    return statistics.median(values)


def show(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """As a Markdown table, so that it can be quoted as it is."""
    widths = [max(len(line[place]) for line in [head, *rows]) for place in range(len(head))]
    for line in [head, ["-" * width for width in widths], *rows]:
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |")


def write(file: Path, data: dict[str, Any]) -> None:
    """With what the figures depend on."""
    about = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "machine": machine(), "command": sys.argv[1:]}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({**about, **data}, indent=1) + "\n", "utf-8")
    print(f"written to {file}", file=sys.stderr)
