"""Thousands of numbered messages through real programs, and what many idle clients cost; `tools/soak.py` does the same at length."""

from __future__ import annotations

import os
import shutil
import sys

import pytest

from mqttc.server import Broker
from tests.conftest import WORKERS, tcp_address

pytest.importorskip("resource")
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(ROOT, "tools"))

import soak  # noqa: E402

COUNT = 5000
IDLE = 2000
IDLE_LIMIT = 900  # bytes; fewer connections than the 10 000 that the aim of 700 speaks of, so pages and tables weigh more


@pytest.mark.parametrize("qos", soak.QOS_LEVELS)
@pytest.mark.parametrize("road", ["mosquitto", "paho"])
def test_none_is_lost(road: str, qos: int, broker: Broker) -> None:
    if road == "mosquitto" and shutil.which("mosquitto_pub") is None:
        pytest.skip("mosquitto_pub and mosquitto_sub are not installed")
    through = {"mosquitto": soak.through_mosquitto, "paho": soak.through_paho}[road]
    running = soak.Running("mqttc", tcp_address(broker.urls[0])[1], os.getpid())
    assert through(running, qos, COUNT) == ""
    dropped = {name: count for name, count in broker.stats().items() if name.startswith("dropped") and count}
    assert dropped == {}


@pytest.mark.skipif("MQTTC_SANITIZER" in os.environ, reason="a sanitizer's own memory is not ours")
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("version", [4, 5])
def test_idle_connections_are_small(version: int) -> None:
    soak.raise_limit(IDLE + 1000)
    with soak.mqttc(WORKERS) as running:
        assert soak.measure(running, IDLE, version) <= IDLE_LIMIT
