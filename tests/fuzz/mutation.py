"""Inputs near those of a corpus, for targets in Python, and for the suite, which plays the same ones each time."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random
from types import CodeType, FrameType
from typing import Any

import mqttc

LONGEST = 4096  # bytes

_BYTES = (0, 1, 0x7F, 0x80, 0xFF)


def _changed(data: bytearray, corpus: Sequence[bytes], words: Sequence[bytes], random: Random) -> None:
    """One change, in place."""
    at = random.randrange(len(data) + 1)
    what = random.randrange(9)
    if what == 0 and data:
        data[at % len(data)] ^= 1 << random.randrange(8)
    elif what == 1 and data:
        data[at % len(data)] = random.choice(_BYTES)
    elif what == 2 and data:
        data[at % len(data)] = random.randrange(256)
    elif what == 3:
        data[at:at] = random.randbytes(random.randrange(1, 5))
    elif what == 4:
        del data[at : at + random.choice((1, 2, 8, 64))]
    elif what == 5:
        data[at:at] = data[at : at + random.choice((1, 4, 16, 256))]
    elif what == 6 and words:
        word = random.choice(words)
        data[at : at + random.choice((0, len(word)))] = word
    elif what == 7 and corpus:
        other = random.choice(corpus)
        start = random.randrange(len(other) + 1)
        data[at:] = other[start:]
    elif data:
        data[at % len(data)] = (data[at % len(data)] + random.choice((-1, 1))) & 255


def inputs(corpus: Sequence[bytes], words: Sequence[bytes], random: Random) -> Iterator[bytes]:
    """The corpus as it is, then for ever inputs with one to eight changes. What joins the corpus meanwhile is changed too."""
    yield from list(corpus)
    while True:
        data = bytearray(random.choice(corpus) if corpus and random.random() < 0.95 else random.randbytes(random.randrange(40)))
        for _ in range(1 << random.randrange(4)):
            _changed(data, corpus, words, random)
        yield bytes(data[:LONGEST])


class Lines:
    """Lines of the package that calls have reached."""

    def __init__(self) -> None:
        self.seen: set[tuple[CodeType, int]] = set()
        self._folder = str(Path(mqttc.__file__).parent)

    def _call(self, frame: FrameType, event: str, argument: Any) -> Any:
        return self._line if frame.f_code.co_filename.startswith(self._folder) else None

    def _line(self, frame: FrameType, event: str, argument: Any) -> Any:
        self.seen.add((frame.f_code, frame.f_lineno))
        return self._line

    def reached(self, call: Callable[[bytes], None], data: bytes) -> int:
        """Makes the call; the number of lines that none before it had reached."""
        before = len(self.seen)
        sys.settrace(self._call)
        try:
            call(data)
        finally:
            sys.settrace(None)
        return len(self.seen) - before


def fewest(corpus: Sequence[bytes], call: Callable[[bytes], None]) -> list[bytes]:
    """Of the corpus those, short ones first, that reach lines which the ones before them do not."""
    lines = Lines()
    return [data for data in sorted(corpus, key=len) if lines.reached(call, data)]
