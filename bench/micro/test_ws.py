"""What a WebSocket frame costs on its way in and out, without a system call; `ns_each` in the extra information is the figure."""

from __future__ import annotations

import pytest
from pytest_benchmark.fixture import BenchmarkFixture
from tests.face.net_transport import time_ws_read, time_ws_write
from tests.face.proto import time_ws_mask

FRAMES = 20_000
SIZES = [4, 16, 64, 125, 256, 1024, 16384]


def measure(benchmark: BenchmarkFixture, total: int) -> None:
    if benchmark.stats is not None:
        benchmark.extra_info["ns_each"] = round(benchmark.stats.stats.min / total * 1e9, 2)


@pytest.mark.parametrize("gap", [0, 6, 8])
@pytest.mark.parametrize("size", SIZES)
def test_mask(benchmark: BenchmarkFixture, size: int, gap: int) -> None:
    """Unmasked and moved over the header that stood before it."""
    assert benchmark(time_ws_mask, bytes(size), gap, FRAMES) == FRAMES * size
    measure(benchmark, FRAMES)


@pytest.mark.parametrize("size", SIZES)
def test_read(benchmark: BenchmarkFixture, size: int) -> None:
    count = max(65536 // (size + 14), 1)
    rounds = max(FRAMES // count, 1)
    assert benchmark(time_ws_read, size, count, rounds) == size * count * rounds
    measure(benchmark, count * rounds)


@pytest.mark.parametrize("client", [False, True], ids=["server", "client"])
@pytest.mark.parametrize("size", SIZES)
def test_write(benchmark: BenchmarkFixture, size: int, client: bool) -> None:
    assert benchmark(time_ws_write, size, client, FRAMES) == size * FRAMES
    measure(benchmark, FRAMES)
