"""Brokers as processes on a core of their own: how each is configured and started."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mqttc import certs

ROOT = Path(__file__).resolve().parents[2]
START_S = 60.0
ACL_RULES = 1000
END_S = 20.0

MOSQUITTO = """\
listener {port} 127.0.0.1
allow_anonymous true
persistence false
max_queued_messages 0
max_queued_bytes 0
max_inflight_messages 0
max_connections -1
log_type error
"""
NATS = """\
server_name: bench
listen: "127.0.0.1:{other}"
jetstream {{ store_dir: "{folder}" }}
mqtt {{ listen: "127.0.0.1:{port}" }}
"""
RABBITMQ = """\
listeners.tcp = none
mqtt.listeners.tcp.1 = 127.0.0.1:{port}
mqtt.allow_anonymous = true
anonymous_login_user = guest
anonymous_login_pass = guest
log.console.level = error
"""
AMQTT = """\
listeners:
  default:
    type: tcp
    bind: 127.0.0.1:{port}
plugins:
  amqtt.plugins.authentication.AnonymousAuthPlugin:
    allow_anonymous: true
"""


# Schemes of the load's URL to those of mqttc's listeners. HTTP/2 comes to the listener of WebSocket.
LISTENERS = {"mqtt": "tcp", "mqtts": "tls", "ws": "ws", "wss": "wss", "ws+h2": "ws", "wss+h2": "wss", "quic": "quic"}
TLS_SCHEMES = ("mqtts", "wss", "wss+h2", "quic")


class BrokerError(RuntimeError):
    """A broker that is not there or does not start."""


@dataclass(frozen=True, slots=True)
class Launch:
    command: list[str]
    environment: Mapping[str, str]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def program(name: str) -> str:
    """Where an installed program is."""
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin:/usr/lib/rabbitmq/bin")
    if found is None:
        raise BrokerError(f"{name} is not installed")
    return found


def mqttc(settings: list[str]) -> Callable[[int, Path], Launch]:
    """One worker, nothing stored, queues that hold what the rows queue; ``settings`` come last and win."""
    fixed = ["workers=1", "log.level=warning", "limits.max_queued_messages=1000000", "limits.max_queued_bytes=1073741824"]

    def launch(port: int, folder: Path) -> Launch:
        command = [sys.executable, "-m", "mqttc", "--listen", f"tcp://127.0.0.1:{port}"]
        for setting in [*fixed, *settings]:
            command += ["--set", setting]
        return Launch(command, {"PYTHONPATH": str(ROOT)})

    return launch


def mqttc_with_rules(settings: list[str]) -> Callable[[int, Path], Launch]:
    """The same broker with ACL_RULES rules for everybody, the last of which allows what the rows do."""

    def launch(port: int, folder: Path) -> Launch:
        rules = [f'[[rules]]\nallow = "all"\ntopics = ["plant/{number}/%c/#"]\n' for number in range(ACL_RULES - 1)]
        acl = folder / "acl.toml"
        acl.write_text("".join([*rules, '[[rules]]\nallow = "all"\ntopics = ["#"]\n']), "utf-8")
        return mqttc([*settings, f"auth.acl_file={acl}"])(port, folder)

    return launch


def mosquitto(port: int, folder: Path) -> Launch:
    """No queue limits, nothing stored."""
    return mosquitto_over("mqtt")(port, folder)


def mqttc_over(settings: list[str], scheme: str) -> Callable[[int, Path], Launch]:
    """The same broker behind another transport. With TLS, the certificate is of `certificates`."""

    def launch(port: int, folder: Path) -> Launch:
        tables = [f'[[listeners]]\nurl = "{LISTENERS[scheme]}://127.0.0.1:{port}"\n']
        if scheme in TLS_SCHEMES:
            server = certificates(folder)
            tables[0] += f'certificate = "{server.certificate}"\nkey = "{server.key}"\n'
        if scheme == "quic":  # UDP and TCP have ports of their own, and `running` looks for a TCP one
            tables.append(f'[[listeners]]\nurl = "tcp://127.0.0.1:{port}"\n')
        config = folder / "mqttc.toml"
        config.write_text("\n".join(tables), "utf-8")
        start = mqttc(settings)(port, folder)
        place = start.command.index("--listen")
        return Launch([*start.command[:place], "--config", str(config), *start.command[place + 2 :]], start.environment)

    return launch


def mosquitto_over(scheme: str) -> Callable[[int, Path], Launch]:
    """TCP and TLS."""
    if scheme not in ("mqtt", "mqtts"):
        raise BrokerError(f"mosquitto is not started for {scheme} here")

    def launch(port: int, folder: Path) -> Launch:
        lines = MOSQUITTO.format(port=port)
        if scheme in TLS_SCHEMES:
            server = certificates(folder)
            # Started by root, it could not read them as another user.
            lines += f"certfile {server.certificate}\nkeyfile {server.key}\nuser root\n"
        config = folder / "mosquitto.conf"
        config.write_text(lines, "utf-8")
        return Launch([program("mosquitto"), "-c", str(config)], {})

    return launch


def over(name: str, settings: list[str], scheme: str) -> Callable[[int, Path], Launch]:
    """A known broker behind a transport other than TCP."""
    if name == "mqttc":
        return mqttc_over(settings, scheme)
    if name == "mosquitto":
        return mosquitto_over(scheme)
    raise BrokerError(f"how {name} is started for {scheme} is not known here")


def certificates(folder: Path) -> certs.Pair:
    """A server's for this machine, signed by a CA of its own (ca.pem): ECDSA, P-256."""
    certs.make_authority(folder)
    return certs.make_server(folder, ["localhost", "127.0.0.1"])


def way(scheme: str, port: int, folder: Path) -> dict[str, Any]:
    """The keys of a profile that lead to a broker which was started in `folder`."""
    keys = {"url": f"{scheme}://127.0.0.1:{port}"}
    if scheme in TLS_SCHEMES:
        keys["ca_file"] = str(folder / "ca.pem")
    return keys


def relay(port: int, folder: Path) -> Launch:
    """Compiled where it is older than its source."""
    source = ROOT / "bench" / "macro" / "relay.c"
    binary = ROOT / "build" / "macro" / "relay"
    if not binary.is_file() or binary.stat().st_mtime < source.stat().st_mtime:
        binary.parent.mkdir(parents=True, exist_ok=True)
        compiler = os.environ.get("CC", "cc")
        done = subprocess.run([compiler, "-O2", "-o", str(binary), str(source)], capture_output=True, text=True, check=False)
        if done.returncode:
            raise BrokerError(f"the relay does not compile: {done.stderr}")
    return Launch([str(binary), str(port)], {})


def nats(port: int, folder: Path) -> Launch:
    config = folder / "nats.conf"
    config.write_text(NATS.format(port=port, other=free_port(), folder=folder / "jetstream"), "utf-8")
    return Launch([program("nats-server"), "-c", str(config)], {})


def rabbitmq(port: int, folder: Path) -> Launch:
    config, plugins = folder / "rabbitmq.conf", folder / "plugins"
    config.write_text(RABBITMQ.format(port=port), "utf-8")
    plugins.write_text("[rabbitmq_mqtt].\n", "utf-8")
    environment = {
        "RABBITMQ_NODENAME": f"bench{port}@localhost",
        "RABBITMQ_CONFIG_FILE": str(config),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(plugins),
        "RABBITMQ_MNESIA_BASE": str(folder / "data"),
        "RABBITMQ_LOG_BASE": str(folder / "log"),
        "RABBITMQ_DIST_PORT": str(free_port()),
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 1:1",
    }
    return Launch([program("rabbitmq-server")], environment)


def amqtt(port: int, folder: Path) -> Launch:
    config = folder / "amqtt.yaml"
    config.write_text(AMQTT.format(port=port), "utf-8")
    return Launch([program("amqtt"), "-c", str(config)], {})


def template(command: str) -> Callable[[int, Path], Launch]:
    """Any broker by a command line with ``{port}`` and ``{folder}`` (its own) in it; ``sh -c '...; exec ...'`` may write a file."""

    def launch(port: int, folder: Path) -> Launch:
        filled = [part.replace("{port}", str(port)).replace("{folder}", str(folder)) for part in shlex.split(command)]
        return Launch([program(filled[0]), *filled[1:]], {})

    return launch


KNOWN: dict[str, Callable[[int, Path], Launch]] = {
    "mqttc": mqttc([]),
    "mqttc-acl": mqttc_with_rules([]),
    "mosquitto": mosquitto,
    "relay": relay,
    "nats": nats,
    "rabbitmq": rabbitmq,
    "amqtt": amqtt,
}


@contextlib.contextmanager
def on_core(core: int | None) -> Iterator[None]:
    """This thread, and what it starts meanwhile, on one core."""
    if core is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextlib.contextmanager
def running(launch: Callable[[int, Path], Launch], folder: Path, core: int | None) -> Iterator[tuple[int, int]]:
    """A broker that listens: its port and process id. It is ended afterwards."""
    port = free_port()
    folder.mkdir(parents=True, exist_ok=True)
    start = launch(port, folder)
    log = folder / "log.txt"
    with log.open("ab") as output, on_core(core):
        process = subprocess.Popen(
            start.command,
            cwd=folder,
            env={**os.environ, **start.environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            process_group=0,
        )
    try:
        end = time.monotonic() + START_S
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            if process.poll() is not None or time.monotonic() > end:
                tail = log.read_text("utf-8", "replace")[-500:]
                raise BrokerError(f"{start.command[0]} does not listen (exit code {process.poll()}): {tail}")
            time.sleep(0.02)
        yield port, process.pid
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """The process group: some brokers are scripts that start another program."""
    for number in (15, 9):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        try:
            process.wait(END_S)
            return
        except subprocess.TimeoutExpired:
            continue
    raise BrokerError(f"process {process.pid} does not end")
