"""Percentiles: the native histogram and what is read from it, against exact values."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqttc.bench.result import QUANTILES, percentiles
from tests.face.loadgen_hist import bound_of, histogram

LONGEST = 2**41


def exact(values: list[int], quantile: float) -> int:
    """The smallest value that at least this part of all does not exceed."""
    ordered = sorted(values)
    return next(value for rank, value in enumerate(ordered, 1) if rank >= quantile * len(ordered))


@given(st.lists(st.integers(0, LONGEST - 1), min_size=1, max_size=300))
def test_percentiles_are_within_a_percent(values: list[int]) -> None:
    found = percentiles(histogram(values))
    for name, quantile in QUANTILES.items():
        truth = exact(values, quantile)
        assert truth <= round(found[name] * 1e6) <= truth * 1.01 + 1


def test_percentiles_of_a_distribution() -> None:
    chance = random.Random(7)
    values = [int(chance.lognormvariate(13, 1.5)) for _ in range(100_000)]
    found = percentiles(histogram(values))
    for name, quantile in QUANTILES.items():
        assert found[name] * 1e6 == pytest.approx(exact(values, quantile), rel=0.01)


def test_exact_values() -> None:
    """Below 256 ns a bucket is a nanosecond."""
    found = percentiles(histogram(range(1, 101)))
    assert found == {"p50": 50e-6, "p90": 90e-6, "p99": 99e-6, "p99.9": 100e-6, "max": 100e-6}
    assert percentiles({5_000_000: 999, 9_000_000: 1}) == {"p50": 5.0, "p90": 5.0, "p99": 5.0, "p99.9": 5.0, "max": 9.0}
    assert percentiles({}) == {}


def test_buckets_are_contiguous_and_narrow() -> None:
    for power in range(1, 41):
        for value in (2**power - 1, 2**power, 2**power + 1):
            bound = bound_of(value)
            assert value <= bound <= value * (1 + 1 / 128)
            assert bound_of(bound) == bound
            assert bound_of(bound + 1) > bound


def test_endless_durations_count_in_the_last_bucket() -> None:
    assert histogram([2**63, 2**41]) == {bound_of(2**62): 2}


def test_reset() -> None:
    assert histogram([1, 2, 3], reset=True) == {}
