"""The seeded hash: every byte and the length count, the seed differs per process, the bits are spread evenly."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from tests.face.base_containers import hash32, hash64, hash_of_pair, multiply
from tests.face.base_containers import random as random_bytes

ROOT = Path(__file__).parents[2]


@given(st.binary(max_size=120))
def test_same_bytes_same_hash_wherever_they_lie(key: bytes) -> None:
    for offset in range(8):
        moved = memoryview(bytes(offset) + key + b"tail")[offset : offset + len(key)]
        assert hash64(moved) == hash64(key)
    assert hash32(key) == hash64(key) >> 32


def test_every_bit_and_the_length_count() -> None:
    for n in range(120):
        key = bytes(n)
        seen = {hash64(key), hash64(bytes(n + 1))}
        for bit in range(8 * n):
            flipped = bytearray(key)
            flipped[bit // 8] ^= 1 << bit % 8
            seen.add(hash64(flipped))
        assert len(seen) == 2 + 8 * n


def test_one_flipped_bit_changes_half_of_the_hash() -> None:
    source = random.Random(1)
    for n in (1, 3, 4, 8, 15, 16, 17, 31, 32, 33, 64, 100):
        changed = trials = 0
        for _ in range(400):
            key = source.randbytes(n)
            flipped = bytearray(key)
            flipped[source.randrange(n)] ^= 1 << source.randrange(8)
            changed += (hash64(key) ^ hash64(flipped)).bit_count()
            trials += 64
        assert 0.45 < changed / trials < 0.55, n


def test_topics_fill_buckets_evenly() -> None:
    """Chi squared over 1024 buckets of the bits that a map uses; 8 sigma is far beyond what a fair hash shows."""
    buckets = [0] * 1024
    for i in range(64 * 1024):
        buckets[hash32(b"building/%d/floor/%d/sensor/%d" % (i % 7, i % 31, i)) % 1024] += 1
    chi_squared = sum((count - 64) ** 2 / 64 for count in buckets)
    assert abs(chi_squared - 1023) < 8 * (2 * 1023) ** 0.5


def test_pairs_are_ordered_and_spread() -> None:
    hashes = {hash_of_pair(a, b) for a in range(200) for b in range(200)}
    assert len(hashes) > 39_990
    assert hash_of_pair(1, 2) != hash_of_pair(2, 1)


def test_the_seed_differs_per_process() -> None:
    program = "from tests.face.base_containers import hash64; print(hash64(b'sensors/1'))"
    printed = {subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, check=True).stdout for _ in range(2)}
    assert len(printed) == 2


def test_random_bytes_are_filled_and_differ() -> None:
    assert random_bytes(0) == b""
    first, second = random_bytes(1000), random_bytes(1000)
    assert first != second
    assert len(set(first)) > 200 and first[-8:] != bytes(8)


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
def test_wide_multiplication_with_and_without_a_128_bit_integer(a: int, b: int) -> None:
    assert multiply(a, b) == [divmod(a * b, 2**64)] * 2
    assert multiply(a, 2**64 - 1) == [divmod(a * (2**64 - 1), 2**64)] * 2
