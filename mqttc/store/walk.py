"""Reads what can be read of a table that lies on damaged pages.

SQLite stops at the first page that it cannot use. The walk goes around it: rows in key order up to the damage, in
reverse order from the other end, and then by probes into the keys between, each of which is followed both ways: first at
the keys by which the tree's inner pages tell its leaves apart, then in the middle of what is left. It sees what the tree
still leads to: under a damaged inner page nothing.
"""

from __future__ import annotations

import sqlite3
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from mqttc.store.database import is_unreadable
from mqttc.store.pages import Key, separators
from mqttc.store.schema import Table

MAXIMUM_HALVINGS: Final = 10
"""How often a gap without such keys is halved without a row being found. What lies in it is then given up; readable rows on less than a
thousandth of the gap's keys may be among it."""
MAXIMUM_PROBES: Final = 20_000
"""Per table, all gaps together."""

Row = tuple[Any, ...]

_INTEGER_BYTES: Final = 8
_OFFSET: Final = 2**63


class Walk:
    """One pass over a table; the figures are complete when ``rows`` has ended."""

    def __init__(self, connection: sqlite3.Connection, table: Table) -> None:
        self.table = table
        self.found = 0
        """Rows handed out."""
        self.misplaced = 0
        """Rows whose key is no key of this table."""
        self.unreadable = 0
        """Stretches of keys that could not be read."""
        self.cut_short = False
        """Whether the probes were used up before every gap was searched."""
        self._connection = connection
        self._key_places = [table.columns.index(column) for column in table.key]
        self._kinds = [str if table.name == "meta" else bytes if column in ("filter", "topic") else int for column in table.key]
        self._tail_bytes = 0
        self._end: Key | None = None
        self._seeds: list[bytes] = []

    def rows(self) -> Iterator[Row]:
        """Every row that can be read, once, in no particular order; one row is held at a time."""
        if (yield from self._scan(None, None, False)):
            return
        low = self._end
        if (yield from self._scan(low, None, True)):
            return
        if str in self._kinds:
            self.unreadable += 1  # meta, a handful of rows on one page
            return
        yield from self._search(self._encode(low), self._encode(self._end))

    def _search(self, low: bytes | None, high: bytes | None) -> Iterator[Row]:
        """Probe the middle of every gap, the wide ones first; ``low`` and ``high`` are its readable neighbours."""
        self._tail_bytes = max(len(low or b""), len(high or b""), _INTEGER_BYTES * len(self._kinds)) + 1
        self._seeds = self._separators()
        gaps = deque([(low, high, 0)])
        lost: list[tuple[bytes, bytes]] = []
        probes = 0
        while gaps:
            low, high, halvings = gaps.popleft()
            middle, halved = self._seed(low, high), False
            if middle is None and halvings < MAXIMUM_HALVINGS:
                middle, halved = self._between(low, high), True
            if middle is None or probes == MAXIMUM_PROBES:
                self.cut_short |= middle is not None
                lost.append((low or b"", b"\xff" * self._tail_bytes if high is None else high))
                continue
            probes += 1
            key = self._decode(middle)
            for upward in (True, False):
                found = self.found
                start, stop = (key, self._bound(high)) if upward else (self._bound(low), key)
                if not (yield from self._scan(start, stop, not upward, probe=True)):
                    end = self._encode(self._end)
                    steps = 0 if self.found > found else halvings + halved
                    gaps.append((end, high, steps) if upward else (low, end, steps))
        lost.sort()
        self.unreadable += bool(lost) + sum(left[1] < right[0] for left, right in pairwise(lost))

    def _separators(self) -> list[bytes]:
        """Keys in the file's inner pages, in order. Reads the file: nobody else may be using it."""
        (file,) = (row[2] for row in self._connection.execute("PRAGMA database_list") if row[1] == "main")
        (root,) = self._connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = ?", (self.table.name,)).fetchone()
        codes = (self._encode(key) for key in separators(Path(file), root, len(self._kinds)))
        return sorted(code for code in codes if code is not None)

    def _seed(self, low: bytes | None, high: bytes | None) -> bytes | None:
        """The middle one of the separators between the bounds."""
        first = 0 if low is None else bisect_right(self._seeds, low)
        last = len(self._seeds) if high is None else bisect_left(self._seeds, high)
        return self._seeds[(first + last) // 2] if first < last else None

    def _scan(self, low: Key | None, high: Key | None, descending: bool, *, probe: bool = False) -> Generator[Row, None, bool]:
        """Rows between the bounds, from ``low`` up or from ``high`` down. True: all of them; ``_end`` is the last key reached.

        A probe that goes up includes ``low``. Python asks SQLite for a row more than it hands out, so the one before the
        damage is asked for again, alone.
        """
        single = probe
        inclusive = probe and not descending
        while True:
            seen = False
            try:
                for row in self._connection.execute(*self._query(low, high, descending, inclusive, single)):
                    key = tuple(row[place] for place in self._key_places)
                    if self._advances(key, low, high, inclusive):
                        seen, inclusive = True, False
                        self.found += 1
                        low, high = (low, key) if descending else (key, high)
                        yield row
                    else:
                        self.misplaced += 1
                        if single:
                            return False
                if not (single and seen):
                    return True
                single = False
            except sqlite3.Error as error:
                if not is_unreadable(error):
                    raise
                if single:
                    return False
                single = True
            finally:
                self._end = high if descending else low

    def _query(self, low: Key | None, high: Key | None, descending: bool, inclusive: bool, single: bool) -> tuple[str, Sequence[object]]:
        key = ", ".join(self.table.key)
        marks = ", ".join("?" * len(self.table.key))
        bounds = [f"({key}) {'>=' if inclusive else '>'} ({marks})"] if low is not None else []
        bounds += [f"({key}) < ({marks})"] if high is not None else []
        where = f" WHERE {' AND '.join(bounds)}" if bounds else ""
        order = ", ".join(f"{column} DESC" if descending else column for column in self.table.key)
        limit = " LIMIT 1" if single else ""
        columns = ", ".join(self.table.columns)
        return f"SELECT {columns} FROM {self.table.name}{where} ORDER BY {order}{limit}", (*(low or ()), *(high or ()))

    def _advances(self, key: Key, low: Key | None, high: Key | None, inclusive: bool) -> bool:
        """Whether the key is one of this table's and lies where the row was found: on garbage the walk must not turn back."""
        code, floor, ceiling = self._encode(key), self._encode(low), self._encode(high)
        if code is None or (ceiling is not None and code >= ceiling):
            return False
        return floor is None or floor < code or (inclusive and floor == code)

    # Keys as bytes in the same order: integers as eight bytes, then the text or blob that may end a key.

    def _encode(self, key: Key | None) -> bytes | None:
        if key is None:
            return None
        parts = []
        for value, kind in zip(key, self._kinds, strict=True):
            if not isinstance(value, kind):
                return None
            match value:
                case int():
                    parts.append((value + _OFFSET).to_bytes(_INTEGER_BYTES))
                case str():
                    parts.append(value.encode())
                case _:
                    parts.append(value)
        return b"".join(parts)

    def _decode(self, code: bytes) -> Key:
        key: list[object] = []
        for kind in self._kinds:
            if kind is int:
                key.append(int.from_bytes(code[:_INTEGER_BYTES].ljust(_INTEGER_BYTES, b"\0")) - _OFFSET)
                code = code[_INTEGER_BYTES:]
            else:
                key.append(code)
        return tuple(key)

    def _bound(self, code: bytes | None) -> Key | None:
        return None if code is None else self._decode(code)

    def _between(self, low: bytes | None, high: bytes | None) -> bytes | None:
        """A key in the middle, both bounds excluded; None if there is none of at most the length looked for."""
        fixed = all(kind is int for kind in self._kinds)
        length = _INTEGER_BYTES * len(self._kinds) if fixed else self._tail_bytes
        first = int.from_bytes((low or b"")[:length].ljust(length, b"\0"))
        last = 256**length if high is None else int.from_bytes(high[:length].ljust(length, b"\0"))
        middle = (first + last) // 2
        if middle <= first:
            return None
        code = middle.to_bytes(length)
        return code if fixed else code.rstrip(b"\0")
