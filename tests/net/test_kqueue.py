"""The whole reactor over the kqueue poller: its tests again, in a process where that poller stands in the place of this system's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="this system's own poller is kqueue")
@pytest.mark.skipif(os.environ.get("MQTTC_TEST_POLLER") == "kqueue", reason="this is that process")
def test_the_reactor_over_kqueue() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/net/test_reactor.py"],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=ROOT,
        env={**os.environ, "MQTTC_TEST_POLLER": "kqueue", "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
