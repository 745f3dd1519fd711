"""Long runs against a broker in a process of its own: `python tools/soak.py COMMAND [options]`.

messages    numbered messages through mosquitto_pub and mosquitto_sub, and through paho-mqtt, at each QoS: all have to arrive once, in order
idle        resident memory per idle connection with a session, next to mosquitto's where that is installed
"""

from __future__ import annotations

import argparse
import contextlib
import os
import queue
import re
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STALLED_S = 30.0  # nothing arrives for so long: the rest is lost
QOS_LEVELS = (0, 1, 2)
IP_BIND_ADDRESS_NO_PORT = 24  # linux/in.h: the port is chosen by connect(), so that each address has all of them


@dataclass(frozen=True)
class Running:
    name: str
    port: int
    pid: int


@contextlib.contextmanager
def mqttc(workers: int) -> Iterator[Running]:
    """A broker on a free port of all loopback addresses."""
    command = [sys.executable, "-m", "mqttc", "--listen", "tcp://0.0.0.0:0", "--set", f"workers={workers}", "--set", "log.level=warning"]
    # A configuration file of the folder it runs in would be read too.
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=folder, env=_environment())
        assert process.stderr is not None
        port = 0
        log: list[str] = []
        for line in process.stderr:
            log.append(line)
            found = re.search(r"tcp://[^ ]*:(\d+)", line)
            port = int(found[1]) if found else port
            if line.strip().endswith("ready"):
                break
        else:
            raise SystemExit("the broker did not start:\n" + "".join(log))
        rest = threading.Thread(target=_pass_on, args=(process,))
        rest.start()
        try:
            yield Running("mqttc", port, process.pid)
        finally:
            process.terminate()
            code = process.wait(60)
            rest.join()
            process.stderr.close()
    if code != 0:
        raise SystemExit(f"the broker ended with exit code {code}")


def _environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT)}


def _pass_on(process: subprocess.Popen[str]) -> None:
    """What the broker says while it runs belongs to the run's output."""
    assert process.stderr is not None
    for line in process.stderr:
        print(f"  broker: {line}", end="", flush=True)


@contextlib.contextmanager
def mosquitto() -> Iterator[Running]:
    """Debian's broker with the same freedoms."""
    program = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin")
    assert program is not None
    with socket.socket() as probe:
        probe.bind(("0.0.0.0", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        settings = Path(folder) / "mosquitto.conf"
        settings.write_text(f"listener {port} 0.0.0.0\nallow_anonymous true\nmax_queued_messages 0\nlog_type error\nlog_dest stderr\n")
        process = subprocess.Popen([program, "-c", str(settings)])
        try:
            deadline = time.monotonic() + STALLED_S
            while True:
                with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
                    break
                if time.monotonic() > deadline or process.poll() is not None:
                    raise SystemExit("mosquitto did not start")
            yield Running("mosquitto", port, process.pid)
        finally:
            process.terminate()
            process.wait(60)


# -------------------------------------------------------------------------------------------- messages


class Received:
    """Numbers as they arrive, compared with what was sent."""

    def __init__(self) -> None:
        self._numbers: queue.Queue[int] = queue.Queue()
        self.put = self._numbers.put

    def check(self, count: int) -> str:
        """Empty, or what is wrong."""
        for expected in range(count):
            try:
                number = self._numbers.get(timeout=STALLED_S)
            except queue.Empty:
                return f"{expected} of {count} arrived"
            if number != expected:
                return f"after {expected - 1} came {number}"
        return "" if self._numbers.empty() else f"more than {count} arrived"


def through_mosquitto(broker: Running, qos: int, count: int) -> str:
    road = ["-h", "127.0.0.1", "-p", str(broker.port), "-q", str(qos)]
    topic = f"soak/mosquitto/{qos}"
    ready = f"ready/mosquitto/{qos}"
    # The retained message tells that the subscription stands.
    subprocess.run(["mosquitto_pub", *road, "-t", ready, "-r", "-m", "-1"], check=True)
    subscriber = subprocess.Popen(["stdbuf", "-oL", "mosquitto_sub", *road, "-t", topic, "-t", ready], stdout=subprocess.PIPE, text=True)
    assert subscriber.stdout is not None
    received = Received()
    if subscriber.stdout.readline().strip() != "-1":
        return "mosquitto_sub did not start"
    output = subscriber.stdout

    def read() -> None:
        for line in output:
            received.put(int(line))

    reader = threading.Thread(target=read)
    reader.start()
    publisher = subprocess.Popen(["mosquitto_pub", *road, "-t", topic, "-l"], stdin=subprocess.PIPE, text=True)
    assert publisher.stdin is not None
    for number in range(count):
        publisher.stdin.write(f"{number}\n")
    publisher.stdin.close()
    wrong = received.check(count)
    code = publisher.wait(STALLED_S)
    subscriber.terminate()
    subscriber.wait(STALLED_S)
    reader.join()
    output.close()
    return wrong or ("" if code == 0 else f"mosquitto_pub ended with exit code {code}")


def through_paho(broker: Running, qos: int, count: int) -> str:
    import paho.mqtt.client as paho
    from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

    topic = f"soak/paho/{qos}"
    received = Received()
    subscribed = threading.Event()

    def client(name: str) -> paho.Client:
        made = paho.Client(CallbackAPIVersion.VERSION2, f"{name}-{qos}", protocol=MQTTProtocolVersion.MQTTv5, reconnect_on_failure=False)
        made.max_inflight_messages_set(1000)
        return made

    subscriber, publisher = client("subscriber"), client("publisher")
    subscriber.on_connect = lambda *_: subscriber.subscribe(topic, qos)
    subscriber.on_subscribe = lambda *_: subscribed.set()
    subscriber.on_message = lambda _client, _data, message: received.put(int(message.payload))
    for one in (subscriber, publisher):
        one.connect("127.0.0.1", broker.port)
        one.loop_start()
    try:
        if not subscribed.wait(STALLED_S):
            return "no SUBACK"
        last = None
        for number in range(count):
            last = publisher.publish(topic, str(number), qos)
        wrong = received.check(count)
        if not wrong and last is not None:
            last.wait_for_publish(STALLED_S)
            wrong = "" if last.is_published() else "the last message was not acknowledged"
        return wrong
    finally:
        for one in (publisher, subscriber):
            one.disconnect()
            one.loop_stop()


def messages(options: argparse.Namespace) -> int:
    roads = {"mosquitto": through_mosquitto, "paho": through_paho}
    failures = 0
    with mqttc(options.workers) as broker:
        for name in options.clients:
            if name == "mosquitto" and shutil.which("mosquitto_pub") is None:
                print("mosquitto_pub is not installed")
                failures += 1
                continue
            for qos in QOS_LEVELS:
                start = time.monotonic()
                wrong = roads[name](broker, qos, options.count)
                seconds = time.monotonic() - start
                failures += bool(wrong)
                print(f"{name:10} QoS {qos}: {wrong or f'all {options.count} in order, {seconds:.1f} s'}", flush=True)
    return 1 if failures else 0


# ------------------------------------------------------------------------------------------------ idle


def resident_bytes(pid: int) -> int:
    found = re.search(r"^VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text("ascii"), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


def connect_packet(number: int, version: int) -> bytes:
    """CONNECT of a session that outlives its connection: 16-byte client id, keep alive 1 hour."""
    client_id = b"client-%09d" % number
    properties = b"\x05\x11\x00\x00\x0e\x10" if version == 5 else b""
    body = b"\x00\x04MQTT" + bytes([version, 0]) + b"\x0e\x10" + properties + b"\x00\x10" + client_id
    return bytes([0x10, len(body)]) + body


def connect_many(broker: Running, count: int, version: int) -> list[socket.socket]:
    """Idle clients, from a loopback address for every 5000; a few at a time, so that no backlog fills."""
    made: list[socket.socket] = []
    batch: list[socket.socket] = []
    for number in range(count):
        connection = socket.socket()
        connection.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
        connection.bind((f"127.0.{1 + number // 5000}.1", 0))
        connection.connect(("127.0.0.1", broker.port))
        connection.sendall(connect_packet(number, version))
        batch.append(connection)
        if len(batch) == 100 or number == count - 1:
            for one in batch:
                one.settimeout(STALLED_S)
                answer = one.recv(256)
                if answer[:1] != b"\x20" or answer[3 if len(answer) < 128 else 4] != 0:
                    raise SystemExit(f"{broker.name} answered CONNECT with {answer!r}")
            made += batch
            batch = []
    return made


def measure(broker: Running, count: int, version: int) -> float:
    before = resident_bytes(broker.pid)
    connections = connect_many(broker, count, version)
    try:
        after = resident_bytes(broker.pid)
        return (after - before) / count
    finally:
        for connection in connections:
            connection.close()


def idle(options: argparse.Namespace) -> int:
    raise_limit(options.connections + 1000)
    programs = {"mqttc": lambda: mqttc(options.workers), "mosquitto": mosquitto}
    missing = shutil.which("mosquitto") is None and not Path("/usr/sbin/mosquitto").is_file()
    names = [name for name in options.brokers if name != "mosquitto" or not missing]
    within = True
    for version in (4, 5):
        for name in names:
            with programs[name]() as broker:
                each = measure(broker, options.connections, version)
            print(f"{name:10} version {version}: {each:.0f} bytes for each of {options.connections} idle connections", flush=True)
            within &= name != "mqttc" or each <= options.limit
    return 0 if within else 1


def raise_limit(wanted: int) -> None:
    """Descriptors of this process and, inherited, of the brokers."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= wanted:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, max(hard, wanted)))
    except (OSError, ValueError) as error:
        raise SystemExit(f"{wanted} descriptors are needed, {hard} allowed: {error}") from None


def main() -> int:
    parser = argparse.ArgumentParser(prog="soak.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("messages")
    command.add_argument("--count", type=int, default=50_000)
    command.add_argument("--clients", nargs="+", choices=["mosquitto", "paho"], default=["mosquitto", "paho"])
    command.add_argument("--workers", type=int, default=2)
    command.set_defaults(run=messages)
    command = commands.add_parser("idle")
    command.add_argument("--connections", type=int, default=10_000)
    command.add_argument("--brokers", nargs="+", choices=["mqttc", "mosquitto"], default=["mqttc", "mosquitto"])
    command.add_argument("--workers", type=int, default=2)
    command.add_argument("--limit", type=float, default=700, help="bytes per connection that mqttc may take (%(default)s)")
    command.set_defaults(run=idle)
    options = parser.parse_args()
    result: int = options.run(options)
    return result


if __name__ == "__main__":
    sys.exit(main())
