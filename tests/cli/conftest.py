"""Runs `mqttc` as a program."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mqttc import SyncClient
from tests.client.conftest import client_url, listeners, mosquitto, own_mosquitto, pki, url
from tests.conftest import BrokerFactory

__all__ = ["client_url", "listeners", "mosquitto", "own_mosquitto", "pki", "url"]

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 30
MOSQUITTO_SUB = shutil.which("mosquitto_sub")
MOSQUITTO_PUB = shutil.which("mosquitto_pub")
needs_mosquitto_clients = pytest.mark.skipif(MOSQUITTO_SUB is None, reason="mosquitto_sub is not installed")


def environment(**variables: str) -> dict[str, str]:
    """Without what the person who runs the tests has set for himself."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("MQTTC_") and name != "NO_COLOR"}
    return own | {"MQTTC_CLIENT_CONFIG": "", "PYTHONPATH": str(ROOT), "TZ": "UTC"} | variables


def mqttc(*arguments: str, data: bytes | None = None, **variables: str) -> subprocess.CompletedProcess[bytes]:
    """Runs it to its end."""
    return subprocess.run(
        [sys.executable, "-m", "mqttc.cli", *arguments],
        env=environment(**variables),
        input=b"" if data is None else data,
        capture_output=True,
        timeout=TIMEOUT_S,
        check=False,
    )


def ok(done: subprocess.CompletedProcess[bytes]) -> bytes:
    """What it wrote, where it ended well and complained of nothing."""
    assert (done.returncode, done.stderr) == (0, b""), done
    return done.stdout


class Running:
    """A command that has been started; what it tells on standard error is read line by line."""

    def __init__(self, *arguments: str, **options: Any) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mqttc.cli", *arguments],
            env=environment(**options.pop("variables", {})),
            stderr=subprocess.PIPE,
            **{"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, **options},
        )
        self.lines: list[str] = []
        self._watchdog = threading.Timer(TIMEOUT_S, self.process.kill)
        self._watchdog.daemon = True
        self._watchdog.start()

    def until(self, text: str) -> None:
        """Reads on to the line that has the text."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line.decode().rstrip("\n"))
            if text in self.lines[-1]:
                return
        raise AssertionError(f"no line with {text!r} in {self.lines}")

    def end(self, number: int = signal.SIGINT) -> int:
        self.process.send_signal(number)
        return self.rest()[0]

    def rest(self) -> tuple[int, bytes]:
        """Exit code, and what it wrote."""
        out, errors = self.process.communicate(timeout=TIMEOUT_S)
        self.lines += errors.decode().splitlines()
        self._watchdog.cancel()
        return self.process.returncode, out

    def kill(self) -> None:
        self._watchdog.cancel()
        if self.process.poll() is None:
            self.process.kill()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()
        self.process.wait()


Start = Callable[..., Running]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a command; it is killed if the test leaves it running."""
    started: list[Running] = []

    def run(*arguments: str, **options: Any) -> Running:
        started.append(Running(*arguments, **options))
        return started[-1]

    yield run
    for one in started:
        one.kill()


@pytest.fixture
def subscribing(start: Start, url: str) -> Callable[..., Running]:
    """`mqttc sub`, when the broker has acknowledged its subscription."""

    def run(*arguments: str, **options: Any) -> Running:
        made = start("sub", "-L", url, "-d", *arguments, **options)
        made.until("subscribed ")
        return made

    return run


@pytest.fixture
def client(url: str) -> Iterator[SyncClient]:
    """A client of the same broker, subscribed to all topics."""
    with SyncClient(url) as made:
        made.subscribe("#", qos=2)
        yield made


@pytest.fixture
def guarded(broker_factory: BrokerFactory) -> str:
    """URL of a broker that admits nobody but alice."""
    return client_url(broker_factory({"auth": {"anonymous": False, "allow": ["alice"]}}))
