"""Inputs near those of a corpus: where nothing counts branches, and in the suite, which plays the same ones each time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random

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
    """The corpus as it is, then for ever inputs with one to eight changes."""
    yield from corpus
    while True:
        data = bytearray(random.choice(corpus) if corpus and random.random() < 0.95 else random.randbytes(random.randrange(40)))
        for _ in range(1 << random.randrange(4)):
            _changed(data, corpus, words, random)
        yield bytes(data[:LONGEST])
