"""What a packet costs in an output queue, appended and flushed, without a system call; `ns_each` in the extra information is the figure.

`private` is what acks and QoS > 0 packets do, `shared` what the fan-out of QoS 0 does: extents of one run, neighbours or not.
"""

from __future__ import annotations

import pytest
from pytest_benchmark.fixture import BenchmarkFixture
from tests.face.net_outq import Bench

PACKETS = 100_000
SIZES = [4, 16, 64, 256, 1024, 2048, 16384]


def measure(benchmark: BenchmarkFixture, total: int) -> None:
    if benchmark.stats is not None:
        benchmark.extra_info["ns_each"] = round(benchmark.stats.stats.min / total * 1e9, 2)


@pytest.mark.parametrize("messages", [1, 64])
@pytest.mark.parametrize("size", SIZES)
def test_private(benchmark: BenchmarkFixture, size: int, messages: int) -> None:
    turns = PACKETS // messages // (1 if size < 4096 else 10)
    assert benchmark(Bench().private, messages, size, turns) == turns * messages * size
    measure(benchmark, turns * messages)


@pytest.mark.parametrize("neighbours", [True, False], ids=["neighbours", "scattered"])
@pytest.mark.parametrize("messages", [1, 64])
@pytest.mark.parametrize("size", SIZES)
def test_shared(benchmark: BenchmarkFixture, size: int, messages: int, neighbours: bool) -> None:
    turns = PACKETS // messages
    assert benchmark(Bench().shared, messages, size, turns, neighbours) == turns * messages * size
    measure(benchmark, turns * messages)
