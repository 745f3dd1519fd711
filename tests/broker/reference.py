"""The tree and the retained store as one would write them without caring for speed: what the tests compare with."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from hypothesis import strategies as st

OPT_NO_LOCAL = 0x04
OPT_RETAIN_AS_PUBLISHED = 0x08

# Few names, so that filters and topics meet; empty levels, $ in every place, prefixes of one another, bytes around '/' and '$', UTF-8.
NAMES = ["a", "b", "", "ab", "$", "$SYS", "a$", "a.b", "!", "%", "0", "é", "x" * 40]
levels = st.lists(st.sampled_from(NAMES), min_size=1, max_size=6)
topics = levels.map("/".join).filter(bool).map(str.encode)


def _filter(parts: list[str], deep: bool) -> bytes:
    return "/".join([*parts, "#"] if deep else parts).encode()


filters = st.builds(_filter, st.lists(st.sampled_from([*NAMES, "+", "+", "+"]), max_size=6), st.booleans()).filter(bool)


def matches(filter: bytes, topic: bytes) -> bool:
    wanted, found = filter.split(b"/"), topic.split(b"/")
    if topic.startswith(b"$") and wanted[0] in (b"+", b"#"):
        return False
    if wanted[-1] == b"#":
        wanted.pop()
        if len(found) < len(wanted):
            return False
        found = found[: len(wanted)]
    return len(wanted) == len(found) and all(w in (b"+", f) for w, f in zip(wanted, found, strict=True))


def place(topic: bytes) -> bytes:
    """Sorts as the store does: '/' below all else."""
    return topic.replace(b"/", b"\0")


@dataclass
class Tree:
    """subscriptions: (filter, session) to (options, id). groups: (group, filter) to members; ids: to what the tree called the group."""

    subscriptions: dict[tuple[bytes, int], tuple[int, int]] = field(default_factory=dict)
    groups: Counter[tuple[bytes, bytes]] = field(default_factory=Counter)
    ids: dict[tuple[bytes, bytes], int] = field(default_factory=dict)

    def match(self, topic: bytes) -> list[tuple[int, int, int, int]]:
        found = [(s, 0, i, o) for (f, s), (o, i) in self.subscriptions.items() if matches(f, topic)]
        found += [(0, self.ids[key], 0, 0) for key, members in self.groups.items() if members and matches(key[1], topic)]
        return sorted(found)

    @property
    def count(self) -> int:
        return len(self.subscriptions) + self.groups.total()

    @property
    def nodes(self) -> int:
        """A node for each different beginning of a filter, '#' not counted as a level."""
        used = {f for f, _ in self.subscriptions} | {f for (_, f), members in self.groups.items() if members}
        beginnings: set[tuple[bytes, ...]] = set()
        for text in used:
            parts = text.split(b"/")
            if parts[-1] == b"#":
                parts.pop()
            beginnings |= {tuple(parts[: i + 1]) for i in range(len(parts))}
        return len(beginnings)


def together(*jobs: Callable[[], object]) -> list[object]:
    """Runs all jobs at once, each on a thread of its own; their results in order. A job that raises fails the test."""
    results: list[object] = [None] * len(jobs)
    start = threading.Barrier(len(jobs))

    def run(i: int) -> None:
        start.wait()
        try:
            results[i] = jobs[i]()
        except BaseException as error:
            results[i] = error

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results
