"""Keys that stand in the inner pages of a table's tree: where its leaves begin, so that a walk can step over damaged ones.

The file's own pages are looked at, not those in its WAL, and nothing in them is believed: a key from here only says where to
look. SQLite's file format, sections 1.6 (b-tree pages) and 2.1 (records).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

from mqttc.store.schema import PAGE_BYTES

MAXIMUM_SEPARATORS: Final = 100_000
"""Of one table; of a larger tree those of its upper levels are taken, which lie evenly."""

_INNER_INDEX: Final = 2
_INNER_TABLE: Final = 5
_HEADER_BYTES: Final = 12
_INTEGER_SIZES: Final = (0, 1, 2, 3, 4, 6, 8)

Key = tuple[object, ...]


def separators(path: Path, root: int, columns: int) -> list[Key]:
    """Keys of ``columns`` values, level by level from the tree's root; what cannot be understood is passed over."""
    found: list[Key] = []
    level, seen = [root], {root}
    with path.open("rb") as file:
        while level:
            keys: list[Key] = []
            children: list[int] = []
            for number in level:
                for child, key in _cells(file, number, columns):
                    if child not in seen:
                        seen.add(child)
                        children.append(child)
                    if key is not None:
                        keys.append(key)
                if len(found) + len(keys) > MAXIMUM_SEPARATORS:
                    return found
            found += keys
            level = children
    return found


def _cells(file: BinaryIO, number: int, columns: int) -> Iterator[tuple[int, Key | None]]:
    """The children of an inner page, each but the last with the key that ends it; nothing of any other page."""
    if number < 1:
        return
    file.seek((number - 1) * PAGE_BYTES)
    page = file.read(PAGE_BYTES)
    if len(page) < PAGE_BYTES or page[0] not in (_INNER_INDEX, _INNER_TABLE):
        return
    for place in range(int.from_bytes(page[3:5])):
        pointer = _HEADER_BYTES + 2 * place
        cell = int.from_bytes(page[pointer : pointer + 2])
        if not _HEADER_BYTES <= cell <= PAGE_BYTES - 5:
            continue
        value, rest = _varint(page, cell + 4)
        key: Key | None = (value,) if page[0] == _INNER_TABLE else _record(page[rest:], columns)
        yield int.from_bytes(page[cell : cell + 4]), key
    yield int.from_bytes(page[8:12]), None


def _record(data: bytes, columns: int) -> Key | None:
    """The first columns of a record; a long last one may be cut."""
    end, place = _varint(data, 0)
    values: list[object] = []
    for _ in range(columns):
        kind, place = _varint(data, place)
        if place > end or kind in (0, 7, 10, 11):
            return None
        if kind in (8, 9):
            size = 0
            values.append(kind - 8)
        elif kind < len(_INTEGER_SIZES):
            size = _INTEGER_SIZES[kind]
            values.append(int.from_bytes(data[end : end + size], signed=True))
        else:
            size = (kind - 12) // 2
            values.append(data[end : end + size])
        data = data[:end] + data[end + size :]
    return tuple(values)


def _varint(data: bytes, place: int) -> tuple[int, int]:
    """A number of one to nine bytes, as a signed one, and the place after it."""
    value = 0
    for count in range(9):
        byte = data[place + count] if place + count < len(data) else 0
        if count == 8:
            value = value << 8 | byte
            break
        value = value << 7 | byte & 0x7F
        if not byte & 0x80:
            break
    return value - 2**64 if value >= 2**63 else value, place + count + 1
