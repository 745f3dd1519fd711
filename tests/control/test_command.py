"""`mqttc-broker` as a process: its lines, its signals, its exit codes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from mqttc import __version__, certs
from mqttc.cli.broker import _hints, _load, _parser, main
from tests.conftest import WORKERS, tcp_address
from tests.rawclient import Peer, flooded

ROOT = Path(__file__).parents[2]


class Command:
    """A running command and the lines that it has written to stderr."""

    def __init__(self, arguments: Sequence[str], environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mqttc", *arguments],
            cwd=ROOT,
            env={**os.environ, "MQTTC_WORKERS": str(WORKERS), **environment},
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines: list[str] = []
        self.watchdog = threading.Timer(60, self.process.kill)  # a command that hangs fails, and does not hang the suite
        self.watchdog.daemon = True
        self.watchdog.start()

    def until(self, text: str) -> str:
        """Read on to the line that has the text."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line.rstrip("\n"))
            if text in line:
                return self.lines[-1]
        raise AssertionError(f"no line with {text!r} in {self.lines}")

    def urls(self) -> list[str]:
        """The listeners' lines, after `ready`."""
        self.until("ready")
        return [line.removeprefix("listening on ") for line in self.lines if line.startswith("listening on ")]

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.rest()

    def rest(self) -> int:
        """Read to the end; the exit code."""
        _, text = self.process.communicate(timeout=20)
        self.watchdog.cancel()
        self.lines += text.splitlines()
        return self.process.returncode


Start = Callable[..., Command]


@pytest.fixture
def command() -> Iterator[Start]:
    """Starts the command: arguments, and variables by keyword; it is killed if a test leaves it running."""
    started: list[Command] = []

    def start(*arguments: str, **environment: str) -> Command:
        started.append(Command(arguments, environment))
        return started[-1]

    yield start
    for one in started:
        one.watchdog.cancel()
        if one.process.poll() is None:
            one.process.kill()
        one.process.communicate()


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mqttc", *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )


def test_version_schema_and_check(tmp_path: Path) -> None:
    assert run("--version").stdout == f"mqttc-broker {__version__}\n"
    assert "properties" in json.loads(run("--schema").stdout)
    good = tmp_path / "good.toml"
    good.write_text("workers = 1\n")
    done = run("--config", str(good), "--check")
    assert (done.returncode, done.stderr) == (0, "mqttc-broker: the configuration is valid\n")
    done = run("--check", MQTTC_LIMITS__X="1")
    assert (done.returncode, done.stderr) == (2, "mqttc-broker: MQTTC_LIMITS__X: unknown key limits.x\n")


@pytest.mark.parametrize("scheme", ["tls", "wss", "quic"])
def test_check_reads_the_files_of_whoever_speaks_tls(scheme: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    listen = f"{scheme}://127.0.0.1:0?certificate={tmp_path}/server.pem&key={tmp_path}/server.key"
    assert main(["--check", "--listen", listen]) == 2
    assert "server.pem: No such file" in capsys.readouterr().err
    certs.make_authority(tmp_path)
    certs.make_server(tmp_path, ["localhost"])
    assert main(["--check", "--listen", listen]) == 0
    (tmp_path / "server.key").write_text("no key")
    assert main(["--check", "--listen", listen]) == 2


@pytest.mark.parametrize("url", ["ws://:8080/mqtt", "ws://", "unix:///x?proxy_protocol=true", "ws://h?trusted_proxies=%5B%22::1%22%5D"])
def test_check_takes_every_scheme(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--check", "--listen", url]) == 0
    assert capsys.readouterr().err == "mqttc-broker: the configuration is valid\n"


def test_help_names_every_scheme(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    missing = [name for name in ("tcp", "tls", "ws", "wss", "quic") if f"{name}://host:port" not in text]
    assert missing == [] and "unix:///path" in text


@pytest.mark.parametrize(
    ("options", "hinted"),
    [
        (["auth.anonymous=true"], False),
        (["listeners.0.anonymous=false"], False),
        (['auth.allow=["alice"]'], False),
        (["auth.anonymous=true", "listeners.0.anonymous=loopback"], True),
        ([], True),
    ],
)
def test_hint_behind_a_proxy(options: list[str], hinted: bool) -> None:
    arguments = ["--listen", "unix:///x?proxy_protocol=true", *(word for option in options for word in ("--set", option))]
    parsed = _parser().parse_args(arguments)
    hints = _hints(_load(parsed), parsed)
    hint = 'unix:///x: behind a proxy anonymous = "loopback" admits nobody; set the listener\'s anonymous to true, or auth.allow'
    assert hints == [hint] * hinted
    assert _hints(_load(_parser().parse_args(["--listen", "unix:///x"])), parsed) == []


def test_wrong_usage_is_exit_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--nonsense"])
    assert caught.value.code == 2
    assert main(["--check", "--set", "limits.max_inflight=\x1b[0m"]) == 2
    assert "\x1b" not in capsys.readouterr().err


def test_lines_and_clean_end(command: Start) -> None:
    broker = command("--listen", "tcp://127.0.0.1:0", "--listen", "tcp://127.0.0.1:0")
    first, second = broker.urls()
    assert broker.lines == [f"listening on {first}", f"listening on {second}", "ready"]
    client = Peer(tcp_address(second), 5)
    assert client.connect("c1").reason == 0
    broker.process.send_signal(signal.SIGTERM)
    assert client.expect(14).reason == 0x8B
    client.expect_close()
    client.close()
    assert broker.rest() == 0


def test_interrupt_ends_cleanly_and_removes_the_socket(command: Start, tmp_path: Path) -> None:
    broker = command("--listen", f"unix://{tmp_path}/b.sock?mode=0600")
    assert broker.urls() == [f"unix://{tmp_path}/b.sock"]
    client = Peer(f"{tmp_path}/b.sock", 4)
    assert client.connect("c1").reason == 0
    client.close()
    assert broker.end(signal.SIGINT) == 0
    assert list(tmp_path.iterdir()) == []


def test_killed_brokers_socket_is_taken_over(command: Start, tmp_path: Path) -> None:
    first = command("--listen", f"unix://{tmp_path}/b.sock")
    first.urls()
    first.end(signal.SIGKILL)
    second = command("--listen", f"unix://{tmp_path}/b.sock")
    second.urls()
    client = Peer(f"{tmp_path}/b.sock", 4)
    assert client.connect("c1").reason == 0
    client.close()
    assert second.end() == 0


def test_address_in_use_is_exit_1() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        done = run("--listen", f"tcp://127.0.0.1:{port}")
    assert (done.returncode, done.stderr) == (1, f"mqttc-broker: cannot listen on tcp://127.0.0.1:{port}: the address is in use\n")


def test_udp_address_in_use_is_exit_1(tmp_path: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", 0))
        port = other.getsockname()[1]
        done = run("--listen", f"quic://127.0.0.1:{port}", "--tls-self-signed", MQTTC_DATA_DIR=str(tmp_path))
    assert (done.returncode, done.stderr) == (1, f"mqttc-broker: cannot listen on quic://127.0.0.1:{port}: the address is in use\n")


def test_default_is_the_loopback_and_says_how_to_open_it(command: Start) -> None:
    try:
        socket.create_server(("127.0.0.1", 1883)).close()
    except OSError:
        pytest.skip("something else listens on port 1883 here")
    broker = command()
    assert broker.urls() == ["tcp://127.0.0.1:1883"]
    assert "--listen tcp://0.0.0.0:1883" in broker.lines[0]
    assert broker.end() == 0


def test_second_signal_cuts_the_ending_short(command: Start) -> None:
    broker = command("--listen", "tcp://127.0.0.1:0", "--set", "limits.shutdown_timeout=60")
    (url,) = broker.urls()
    with flooded(tcp_address(url)):
        broker.process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        assert broker.process.poll() is None
        assert broker.end(signal.SIGTERM) == 128 + signal.SIGTERM


def test_hangup_reloads(command: Start, tmp_path: Path) -> None:
    file = tmp_path / "broker.toml"
    text = '[[listeners]]\nurl = "tcp://127.0.0.1:0"\n[auth]\nallow = ["{}"]\n[log]\nformat = "{}"\n'
    file.write_text(text.format("alice", "text"))
    broker = command("--config", str(file))
    (url,) = broker.urls()
    address = tcp_address(url)

    def reason(name: str) -> int | None:
        client = Peer(address, 5)
        try:
            return client.connect("c1", username=name, password=b"x").reason
        finally:
            client.close()

    assert (reason("alice"), reason("bob")) == (0, 0x87)
    file.write_text("[auth]\nalow = []\n")
    broker.process.send_signal(signal.SIGHUP)
    assert f"{file}:2" in broker.until("reload_refused")
    assert (reason("alice"), reason("bob")) == (0, 0x87)
    file.write_text(text.format("bob", "json"))
    broker.process.send_signal(signal.SIGHUP)
    line = json.loads(broker.until('"reloaded"'))
    assert line["applied"] == "auth.allow,log.format" or sorted(line["applied"].split(",")) == ["auth.allow", "log.format"]
    assert (reason("alice"), reason("bob")) == (0x87, 0)
    assert broker.end() == 0


def test_changed_file_reloads(command: Start, tmp_path: Path) -> None:
    """By a symbolic link that changes its target, as mounted configurations do."""
    for name, level in (("one", "info"), ("two", "error")):
        (tmp_path / name).write_text(f'listeners = [{{url = "tcp://127.0.0.1:0"}}]\nworkers = 1\nlog.level = "{level}"\n')
    link = tmp_path / "broker.toml"
    link.symlink_to(tmp_path / "one")
    broker = command("--config", str(link))
    broker.urls()
    (tmp_path / "new").symlink_to(tmp_path / "two")
    os.replace(tmp_path / "new", link)
    assert broker.until("reloaded").endswith("reloaded applied=log.level")
    assert broker.end() == 0


def test_log_lines_have_client_id_and_reason(command: Start) -> None:
    broker = command("--listen", "tcp://127.0.0.1:0", "--set", "log.format=json", "--set", "log.level=debug")
    (url,) = broker.urls()
    client = Peer(tcp_address(url), 4)
    client.connect("evil\x7f id")
    client.send(b"\xf0\x00")
    client.expect_close()
    client.close()
    assert broker.end() == 0
    entries = [json.loads(line) for line in broker.lines[broker.lines.index("ready") + 1 :]]
    about = [entry for entry in entries if entry.get("client_id") == "evil\x7f id"]
    assert about
    assert "0x81" in {entry["reason"] for entry in about}
