"""Brokers to load, and the proxy that does what brokers must not."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from mqttc import certs
from tests.bench.faults import Faults, FaultyRelay

ROOT = Path(__file__).parents[2]

MOSQUITTO = """
listener {port} 127.0.0.1
allow_anonymous true
persistence false
max_queued_messages 0
max_inflight_messages 0
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    for _ in range(1000):
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            assert process.poll() is None, f"ended with {process.returncode}"
            time.sleep(0.01)
    raise AssertionError("the broker does not listen")


class Target:
    """A broker in a process of its own."""

    def __init__(self, name: str, port: int, process: subprocess.Popen[bytes]) -> None:
        self.name = name
        self.port = port
        self.url = f"mqtt://127.0.0.1:{port}"
        self.pid = process.pid


def start(name: str, folder: Path, stack: ExitStack) -> Target:
    port = free_port()
    if name == "mosquitto":
        program = shutil.which("mosquitto") or "/usr/sbin/mosquitto"
        if not Path(program).exists():
            pytest.skip("mosquitto is not installed")
        config = folder / "mosquitto.conf"
        config.write_text(MOSQUITTO.format(port=port))
        command = [program, "-c", str(config)]
    else:
        settings = ["log.level=warning", "limits.max_queued_messages=100000"]
        options = [part for setting in settings for part in ("--set", setting)]
        command = [sys.executable, "-m", "mqttc", "--listen", f"tcp://127.0.0.1:{port}", *options]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)

    def end() -> None:
        process.terminate()
        process.wait(20)

    stack.callback(end)
    wait_for(port, process)
    return Target(name, port, process)


@pytest.fixture(scope="session", params=["mqttc", "mosquitto"])
def target(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """Each broker that a run is tried against."""
    with ExitStack() as stack:
        yield start(request.param, tmp_path_factory.mktemp(request.param), stack)


@pytest.fixture(scope="session")
def mqttc_target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    with ExitStack() as stack:
        yield start("mqttc", tmp_path_factory.mktemp("own"), stack)


@pytest.fixture
def faulty(mqttc_target: Target) -> Iterator[Callable[[Faults], str]]:
    """Puts a relay with faults before the broker; its URL."""
    with ExitStack() as stack:

        def make(faults: Faults) -> str:
            relay = stack.enter_context(FaultyRelay(mqttc_target.port, faults))
            return f"mqtt://127.0.0.1:{relay.port}"

        yield make


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder: ca, server (localhost, 127.0.0.1), other (other.test), device (a client's); foreign/ca, which signed none of these."""
    made = tmp_path_factory.mktemp("certificates")
    certs.make_authority(made)
    certs.make_server(made, ["localhost", "127.0.0.1"])
    certs.make_server(made, ["other.test"], name="other")
    certs.make_client(made, "device")
    certs.make_authority(made / "foreign", "another CA")
    return made
