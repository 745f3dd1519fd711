"""A whole broker against the reference: sessions, QoS, windows, retained messages, wills, shared groups, clients of all versions.

`MQTTC_TEST_EXAMPLES` is the number of histories (always the same ones; with a number, different ones each time). The long run,
different histories for `MQTTC_FUZZ_SECONDS`, is that of `tools/fuzz.py sessions`.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from ..conftest import WORKERS
from .clients import Clients

EXAMPLES = os.environ.get("MQTTC_TEST_EXAMPLES")
SECONDS = float(os.environ.get("MQTTC_FUZZ_SECONDS", "0"))
STEPS = 50


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logger = logging.getLogger("mqttc.broker")
    level = logger.level
    yield
    logger.setLevel(level)


def play(workers: int, examples: int, *, derandomize: bool) -> None:
    class ForWorkers(Clients):
        pass

    ForWorkers.workers = workers
    run_state_machine_as_test(
        ForWorkers,
        settings=settings(
            max_examples=examples,
            derandomize=derandomize,
            database=None,
            stateful_step_count=STEPS,
            deadline=None,
            report_multiple_bugs=False,
            phases=[Phase.generate] if derandomize else [Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.parametrize("workers", sorted({1, WORKERS}))
def test_clients_against_the_reference(workers: int) -> None:
    play(workers, int(EXAMPLES or 200), derandomize=EXAMPLES is None)


@pytest.mark.skipif(not SECONDS, reason="MQTTC_FUZZ_SECONDS is not set: the long run is that of tools/fuzz.py sessions")
def test_long_run() -> None:
    end = time.monotonic() + SECONDS
    histories = 0
    while time.monotonic() < end:
        for workers in (1, 2, 4):
            play(workers, 20, derandomize=False)
            histories += 20
    print(f"sessions: {histories} histories of {STEPS} steps")
