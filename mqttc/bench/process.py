"""What a broker's process costs, seen from outside: processor time and memory of it and its children."""

from __future__ import annotations

import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mqttc.bench.profile import RunError

_LIST_S = 5.0  # how long the list of children holds: making it looks at every process of the machine
_PROC = Path("/proc")


class MissingPackageError(RunError):
    """A package that only this option needs is not installed."""

    def __init__(self, package: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs the package {package}: pip install 'mqttc[bench]'")


@dataclass(frozen=True, slots=True)
class Usage:
    """Of all processes watched. ``threads`` holds the time of each thread, so that the busiest can be told."""

    cpu_ns: int
    rss_bytes: int
    threads: dict[tuple[int, int], int]

    def busiest_ns(self, before: Usage) -> int:
        """Most time that a single thread spent since ``before``."""
        return max((time - before.threads.get(thread, 0) for thread, time in self.threads.items()), default=0)


class Watch:
    """A process, by id, and its children.

    Linux counts the time of each thread in nanoseconds (``/proc/PID/task/*/schedstat``); elsewhere psutil gives what the system has,
    often in steps of 10 ms. A thread that ends between two looks counts with what it had at the last look.
    """

    def __init__(self, pid: int) -> None:
        try:
            import psutil
        except ImportError:
            raise MissingPackageError("psutil", "--pid") from None
        self._psutil: Any = psutil
        try:
            self._process: Any = psutil.Process(pid)
        except psutil.NoSuchProcess:
            raise RunError(f"--pid {pid}: there is no such process") from None
        self._threads: dict[tuple[int, int], int] = {}
        self._children: list[Any] = []
        self._listed = -math.inf
        self.pid = pid

    @property
    def command(self) -> str:
        """The command line."""
        try:
            return " ".join(self._process.cmdline())
        except self._psutil.Error:
            return ""

    def usage(self) -> Usage:
        """What was spent so far. Raises ``RunError`` once the process has ended."""
        try:
            now = time.monotonic()
            if now - self._listed > _LIST_S:
                self._children = self._process.children(recursive=True)
                self._listed = now
            rss = 0
            for process in (self._process, *self._children):
                rss += self._one(process)
        except self._psutil.NoSuchProcess:
            if not self._process.is_running():
                raise RunError(f"the broker (process {self.pid}) has ended") from None
            self._listed = -math.inf
            return self.usage()  # a child ended while it was looked at
        except self._psutil.AccessDenied:
            raise RunError(f"--pid {self.pid}: not permitted to look at this process") from None
        return Usage(sum(self._threads.values()), rss, dict(self._threads))

    def _one(self, process: Any) -> int:
        times = thread_times(process.pid)
        if times is None:
            spent = process.cpu_times()
            times = {process.pid: int((spent.user + spent.system) * 1e9)}
        self._threads.update({(process.pid, thread): time for thread, time in times.items()})
        return int(process.memory_info().rss)


def thread_times(pid: int) -> dict[int, int] | None:
    """Nanoseconds on a processor by thread id; None where the kernel does not tell."""
    times: dict[int, int] = {}
    try:
        for entry in os.scandir(_PROC / str(pid) / "task"):
            try:
                times[int(entry.name)] = int(Path(entry.path, "schedstat").read_text("ascii").split()[0])
            except (FileNotFoundError, ProcessLookupError):
                if not (_PROC / str(pid) / "schedstat").exists():
                    return None
    except OSError:
        return None
    return times or None


def own_run_delay_ns() -> int | None:
    """How long this process's threads have waited for a processor so far; None where the kernel does not tell."""
    total = 0
    try:
        for entry in os.scandir(_PROC / "self" / "task"):
            total += int(Path(entry.path, "schedstat").read_text("ascii").split()[1])
    except (OSError, IndexError):
        return None
    return total
