"""`mqttc-broker` under a service manager: readiness, reload, watchdog, sockets that are open already, and another user."""

from __future__ import annotations

import os
import pwd
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mqttc import Broker
from mqttc.config import Listener
from mqttc.listen import ListenError, bind_all
from mqttc.systemd import Inherited, Notifier, NotifyError, inherited_sockets, keep_watch
from tests.conftest import tcp_address
from tests.rawclient import Peer

from .test_command import ROOT, Start, run
from .test_command import command as command


class Manager:
    """The service manager's end of NOTIFY_SOCKET."""

    def __init__(self, folder: Path) -> None:
        self.path = str(folder / "notify")
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(self.path)
        self.socket.settimeout(20)

    def next(self) -> dict[str, str]:
        return dict(line.split("=", 1) for line in self.socket.recv(4096).decode().splitlines())

    def until(self, key: str) -> dict[str, str]:
        while True:
            found = self.next()
            if key in found:
                return found


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    made = Manager(tmp_path)
    yield made
    made.socket.close()


def test_ready_reload_and_end(command: Start, manager: Manager, tmp_path: Path) -> None:
    config = tmp_path / "mqttc.toml"
    config.write_text('[[listeners]]\nurl = "tcp://127.0.0.1:0"\n')
    running = command("--config", str(config), NOTIFY_SOCKET=manager.path)
    ready = manager.next()
    assert ready["READY"] == "1" and ready["STATUS"].startswith("listening on tcp://127.0.0.1:")
    with socket.create_connection(tcp_address(ready["STATUS"].removeprefix("listening on ")), timeout=10):
        pass
    running.process.send_signal(signal.SIGHUP)
    told = manager.next()
    assert told["RELOADING"] == "1" and int(told["MONOTONIC_USEC"]) > 0
    assert manager.next()["READY"] == "1"
    running.process.send_signal(signal.SIGTERM)
    assert manager.next() == {"STOPPING": "1"}
    assert running.process.wait(20) == 0


def test_watchdog_is_told_again_and_again(command: Start, manager: Manager) -> None:
    running = command("--listen", "tcp://127.0.0.1:0", NOTIFY_SOCKET=manager.path, WATCHDOG_USEC="400000")
    manager.until("READY")
    for _ in range(3):
        assert manager.until("WATCHDOG") == {"WATCHDOG": "1"}
    running.process.send_signal(signal.SIGTERM)
    manager.until("STOPPING")
    assert running.process.wait(20) == 0


def test_nobody_is_told_that_a_stuck_broker_is_well(manager: Manager) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": manager.path, "WATCHDOG_USEC": "1000000", "WATCHDOG_PID": str(os.getpid())})
    assert notifier.watchdog_s == 1.0
    asked: list[float] = []

    def answer(well: bool) -> Callable[[float], bool]:
        return lambda timeout: (asked.append(timeout), well)[1]

    assert keep_watch(notifier, answer(True), 5.0, 4.0) == 5.0 and not asked
    assert keep_watch(notifier, answer(False), 5.0, 5.0) == 5.5 and asked == [0.5]
    assert keep_watch(notifier, answer(True), 5.5, 5.6) == 6.1
    assert manager.next() == {"WATCHDOG": "1"}
    manager.socket.setblocking(False)
    with pytest.raises(BlockingIOError):
        manager.socket.recv(100)


def test_a_watchdog_of_another_process_is_not_ours(manager: Manager) -> None:
    environment = {"NOTIFY_SOCKET": manager.path, "WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"}
    assert Notifier(environment).watchdog_s is None
    assert not environment, "children would take it for theirs"


def test_without_a_manager_nothing_is_told() -> None:
    silent = Notifier({})
    silent.ready("x")
    silent.alive()
    assert silent.watchdog_s is None
    with pytest.raises(NotifyError, match="NOTIFY_SOCKET"):
        Notifier({"NOTIFY_SOCKET": "/nowhere/at/all"}).ready("x")


def test_a_manager_that_cannot_be_told_does_not_hold_the_watch_up() -> None:
    failures: list[NotifyError] = []
    notifier = Notifier({"NOTIFY_SOCKET": "/nowhere/at/all", "WATCHDOG_USEC": "1000000"}, on_error=failures.append)
    notifier.ready("x")
    assert keep_watch(notifier, lambda timeout: True, 5.0, 5.0) == 5.5
    assert [str(error) for error in failures] == ["[Errno 2] NOTIFY_SOCKET: No such file or directory"] * 2


def test_responsive() -> None:
    broker = Broker({"listeners": [{"url": "tcp://127.0.0.1:0"}], "workers": 3})
    assert not broker.responsive()
    with broker:
        assert broker.responsive()
        held = threading.Event()
        assert broker._running is not None
        loop = broker._running.control._loop
        assert loop is not None
        loop.call_soon_threadsafe(held.wait, 20)
        assert not broker.responsive(0.05)  # the control thread stands
        held.set()
        assert broker.responsive()


# ------------------------------------------------------------------------------------- sockets that are open already


def activated(arguments: list[str], sockets: list[socket.socket], names: list[str], environment: dict[str, str]) -> subprocess.Popen[str]:
    """The program with descriptors 3, 4, ... and the variables of sd_listen_fds(3), whose LISTEN_PID is its own."""
    moves = " ".join(f"{3 + index}<&{sock.fileno()}" for index, sock in enumerate(sockets))
    program = shlex.join([sys.executable, "-m", "mqttc", *arguments])
    script = f"export LISTEN_PID=$$ LISTEN_FDS={len(sockets)} LISTEN_FDNAMES={':'.join(names)}; exec {program} {moves}"
    return subprocess.Popen(
        ["bash", "-c", script],
        cwd=ROOT,
        env={**os.environ, **environment},
        pass_fds=[sock.fileno() for sock in sockets],
        stderr=subprocess.PIPE,
        text=True,
    )


def far(sock: socket.socket) -> socket.socket:
    """The same socket under a high number, so that moving it to 3, 4, ... treads on nothing."""
    import fcntl

    made = socket.socket(fileno=fcntl.fcntl(sock.fileno(), fcntl.F_DUPFD, 40))
    sock.close()
    return made


def test_sockets_by_address_and_by_name(tmp_path: Path, manager: Manager) -> None:
    by_address = far(socket.create_server(("127.0.0.1", 0)))
    by_name = far(socket.create_server(("127.0.0.1", 0)))
    port = by_address.getsockname()[1]
    config = tmp_path / "mqttc.toml"
    config.write_text(
        f'[[listeners]]\nurl = "tcp://127.0.0.1:{port}"\n[[listeners]]\nurl = "tcp://localhost:1"\nname = "second"\n'
        '[[listeners]]\nurl = "tcp://127.0.0.1:0"\n[auth]\nanonymous = true\n'
    )
    process = activated(["--config", str(config)], [by_address, by_name], ["", "second"], {"NOTIFY_SOCKET": manager.path})
    try:
        urls = manager.next()["STATUS"].split()[2:]
        assert urls[0] == f"tcp://127.0.0.1:{port}" and urls[1].endswith(f":{by_name.getsockname()[1]}") and len(urls) == 3
        for sock in (by_address, by_name):
            peer = Peer(sock.getsockname(), 4)
            assert peer.connect("a").reason == 0
            peer.close()
    finally:
        process.terminate()
        assert process.wait(20) == 0
        assert process.stderr is not None
        process.stderr.close()
        by_address.close()
        by_name.close()


def test_a_socket_that_no_listener_is_for_is_an_error() -> None:
    stray = far(socket.create_server(("127.0.0.1", 0)))
    process = activated(["--listen", "tcp://127.0.0.1:0"], [stray], ["stray"], {})
    _, said = process.communicate(timeout=30)
    assert process.returncode == 1 and f"127.0.0.1:{stray.getsockname()[1]} is no listener's" in said
    stray.close()


def test_a_socket_of_another_kind_is_an_error(tmp_path: Path) -> None:
    for sock in (socket.socket(socket.AF_UNIX), socket.socket(socket.AF_INET, socket.SOCK_DGRAM)):
        with sock, pytest.raises(ListenError, match="of another kind"):
            bind_all([Listener(url="tcp://127.0.0.1:1", name="mine")], [Inherited("mine", sock)])


def test_unix_socket_by_its_path(tmp_path: Path) -> None:
    path = tmp_path / "mqtt"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        found = bind_all([Listener(url=f"unix://{path}")], [Inherited("unknown", sock.dup())])
        assert len(found) == 1 and found[0].sockets[0].getsockname() == str(path)
        found[0].close()
        assert path.exists(), "the file is the service manager's"


def test_variables_of_another_process_are_left_alone() -> None:
    environment = {"LISTEN_FDS": "2", "LISTEN_PID": "1", "LISTEN_FDNAMES": "a:b"}
    assert inherited_sockets(environment) == [] and not environment
    assert inherited_sockets({}) == []


# ------------------------------------------------------------------------------------------------- another user


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_rights_are_given_up_in_all_threads(command: Start) -> None:
    nobody = pwd.getpwnam("nobody")
    running = command("--listen", "tcp://127.0.0.1:0", "--set", "user=nobody")
    running.until("ready")
    for task in Path(f"/proc/{running.process.pid}/task").iterdir():
        status = dict(line.split(":\t", 1) for line in (task / "status").read_text().splitlines() if ":\t" in line)
        assert set(status["Uid"].split()) == {str(nobody.pw_uid)} and set(status["Gid"].split()) == {str(nobody.pw_gid)}
        assert "0" not in status["Groups"].split() and int(status["CapEff"], 16) == 0
    running.process.send_signal(signal.SIGTERM)
    assert running.process.wait(20) == 0


def test_an_unknown_user_is_exit_1() -> None:
    found = run("--listen", "tcp://127.0.0.1:0", "--set", "user=no-such-user")
    assert found.returncode == 1 and "no-such-user" in found.stderr


def test_a_group_needs_a_user() -> None:
    found = run("--check", "--set", "group=daemon")
    assert found.returncode == 2 and "group needs user" in found.stderr


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_unit_files_are_valid(tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    units = sorted((ROOT / "examples" / "systemd").iterdir())
    assert len(units) == 3
    for unit in units:
        text = re.sub(r"(?m)^ExecStart=\S+", f"ExecStart={program}", unit.read_text("utf-8"))
        (tmp_path / unit.name).write_text(re.sub(r"(?m)^User=.*", "User=root", text))
    found = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *(str(tmp_path / unit.name) for unit in units)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "mqttc-broker" not in found.stderr and "rooms" not in found.stderr, found.stderr
