"""examples/service.py as a process under a supervisor: readiness, signals, reload, watchdog, log lines, exit codes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mqttc import SyncClient
from mqttc.codec import ReasonCode
from mqttc.errors import ConnectionLostError
from tests.conftest import tcp_address
from tests.control.test_systemd import Manager
from tests.control.test_systemd import manager as manager
from tests.rawclient import flooded

ROOT = Path(__file__).resolve().parents[2]
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts the service; whatever it does, it ends with the test."""
    started: list[tuple[subprocess.Popen[str], threading.Timer]] = []

    def make(*arguments: str, **environment: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "examples" / "service.py"), *arguments],
            env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
            stderr=subprocess.PIPE,
            text=True,
        )
        watchdog = threading.Timer(60, process.kill)
        watchdog.start()
        started.append((process, watchdog))
        return process

    yield make
    for process, watchdog in started:
        watchdog.cancel()
        with process:
            process.kill()


def write(file: Path, *, too_hot: object, port: int = 0) -> None:
    file.write_text(
        f'too_hot = {too_hot}\n[broker]\nworkers = 2\nlisteners = [{{ url = "tcp://127.0.0.1:{port}" }}]\nauth = {{ anonymous = true }}\n'
    )


@pytest.fixture
def file(tmp_path: Path) -> Path:
    made = tmp_path / "rooms.toml"
    write(made, too_hot=30)
    return made


def reload(process: subprocess.Popen[str], manager: Manager) -> None:
    process.send_signal(signal.SIGHUP)
    assert manager.next()["RELOADING"] == "1"
    assert manager.next()["READY"] == "1"


def test_ready_reload_and_end(start: Start, manager: Manager, file: Path) -> None:
    process = start(str(file), NOTIFY_SOCKET=manager.path)
    ready = manager.next()
    assert ready["READY"] == "1"
    with SyncClient(ready["STATUS"].removeprefix("listening on "), client_id="thermometer", reconnect=None) as client:
        told = client.subscribe("rooms/1/hot", qos=1)

        def hot(celsius: str) -> str:
            client.publish("rooms/1/temp", celsius, qos=1)
            return told.get(10).text

        assert (hot("29"), hot("31")) == ("no", "yes")
        client.publish("rooms/1/temp", "warm", qos=1)  # is passed over
        write(file, too_hot=32)
        reload(process, manager)
        assert hot("31") == "no"
        for wrong in ('"x"', "20\nnonsense = 1", "20\n]"):
            write(file, too_hot=wrong)
            reload(process, manager)
            assert hot("31") == "no", wrong
        write(file, too_hot=20, port=1)
        reload(process, manager)
        assert hot("31") == "yes"
        process.send_signal(signal.SIGTERM)
        assert manager.next() == {"STOPPING": "1"}
        with pytest.raises(ConnectionLostError) as lost:
            client.get(10)
        assert lost.value.reason_code == ReasonCode.SERVER_SHUTTING_DOWN
    _, said = process.communicate()
    assert process.returncode == 0
    lines = said.splitlines()
    for text in (
        " info connected client_id=thermometer ",
        "warning rooms/1/temp: could not convert string to float",
        "error the old configuration stays in force: 1 validation error for Settings",
        "info reloaded; waiting for a restart: listeners",
    ):
        assert [line for line in lines if text in line], (text, lines)
    assert lines[-1].endswith(" info ended")


def test_interrupted_without_a_supervisor(start: Start, file: Path) -> None:
    process = start(str(file))
    assert process.stderr is not None
    assert "listening on tcp://127.0.0.1:" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    _, said = process.communicate()
    assert process.returncode == 0 and said.splitlines()[-1].endswith(" info ended")


def test_a_second_signal_cuts_the_ending_short(start: Start, manager: Manager, file: Path) -> None:
    file.write_text(file.read_text() + "limits = { shutdown_timeout = 3600 }\n")
    process = start(str(file), NOTIFY_SOCKET=manager.path)
    address = tcp_address(manager.next()["STATUS"].removeprefix("listening on "))
    with flooded(address):
        process.send_signal(signal.SIGTERM)
        assert manager.next() == {"STOPPING": "1"}
        process.send_signal(signal.SIGTERM)
        assert process.wait() == -signal.SIGTERM


def test_the_watchdog_is_told_again_and_again(start: Start, manager: Manager, file: Path) -> None:
    process = start(str(file), NOTIFY_SOCKET=manager.path, WATCHDOG_USEC="400000")
    for _ in range(3):
        assert manager.until("WATCHDOG") == {"WATCHDOG": "1"}
    process.send_signal(signal.SIGTERM)
    manager.until("STOPPING")
    process.communicate()
    assert process.returncode == 0


def test_a_supervisor_that_is_gone_is_worth_a_line(start: Start, file: Path, tmp_path: Path) -> None:
    process = start(str(file), NOTIFY_SOCKET=str(tmp_path / "nobody"))
    assert process.stderr is not None
    while "NOTIFY_SOCKET: No such file" not in (line := process.stderr.readline()):
        assert line
    process.send_signal(signal.SIGTERM)
    process.communicate()
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "No such file"),
        ("too_hot = 'x'", "too_hot"),
        ("[broker]\nnonsense = 1", "nonsense"),
        ("[broker.auth]\nacl_file = '/nowhere/at/all'", "/nowhere/at/all"),
    ],
)
def test_a_wrong_configuration_is_exit_2(start: Start, tmp_path: Path, text: str | None, said: str) -> None:
    file = tmp_path / "rooms.toml"
    if text is not None:
        file.write_text(text)
    process = start(str(file))
    _, lines = process.communicate()
    assert process.returncode == 2 and said in lines and "Traceback" not in lines


def test_wrong_usage_is_exit_2(start: Start) -> None:
    process = start()
    _, lines = process.communicate()
    assert process.returncode == 2 and "usage" in lines


def test_an_address_in_use_is_exit_1(start: Start, file: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        write(file, too_hot=30, port=taken.getsockname()[1])
        process = start(str(file))
        _, lines = process.communicate()
    assert process.returncode == 1 and "cannot run" in lines and "Traceback" not in lines
