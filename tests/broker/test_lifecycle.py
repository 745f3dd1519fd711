"""Brokers start, stop, fork and run out of descriptors; what they held is freed, and clients hear of it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from typing import Any

import pytest

from ..conftest import check_live_objects
from ..rawclient import DISCONNECT, PUBLISH, RECEIVE_MAXIMUM, PeerClosed, Will, publish_packet
from .conftest import Make, name


def test_stop_tells_clients(make: Make) -> None:
    """5.0 clients are told 0x8B, 3.x clients see a close; those that had not connected a bare close."""
    bench = make()
    peers = [bench(v) for v in (3, 4, 5) * 4]
    silent = bench.raw()
    bench.until("connections_open", 13)
    assert bench.native.stop()
    for peer in peers:
        assert [(p.type, p.reason) for p in peer.expect_close()] == ([(DISCONNECT, 0x8B)] if peer.version == 5 else [])
    assert silent.expect_close() == []
    assert not bench.native.running


def test_stop_sends_what_is_queued(make: Make) -> None:
    """What had been sent to a client that reads slowly still reaches it, the DISCONNECT last."""
    bench = make(workers=2)
    topic, publisher = name(), bench(5)
    slow = bench(5)
    slow.subscribe(topic)
    payload = bytes(100_000)
    for _ in range(60):
        publisher.publish(topic, payload)
    publisher.ping()
    bench.until("messages_sent", 60)
    result: list[bool] = []
    stopping = threading.Thread(target=lambda: result.append(bench.native.stop(5)))
    stopping.start()
    got = slow.expect_close()
    stopping.join()
    assert result == [True]
    assert [p.type for p in got] == [PUBLISH] * 60 + [DISCONNECT]
    assert all(p.payload == payload for p in got[:-1])


def test_stop_is_bounded(make: Make, unix: dict[str, Any]) -> None:
    """A peer that never reads does not hold it up for longer than the time given, and stop() says so."""
    bench = make(listeners=[unix], limits={"shutdown_timeout": 0.3})
    topic, publisher, slow = name(), bench(5), bench(5)
    slow.subscribe(topic)
    for _ in range(40):
        publisher.publish(topic, bytes(100_000))
    publisher.ping()
    bench.until("messages_sent", 40)
    started = time.monotonic()
    assert not bench.native.stop()
    assert 0.2 < time.monotonic() - started < 3


def test_stop_with_everything_under_way(make: Make) -> None:
    """Mail between workers, parts of packets, queues, groups, wills, hand-outs: all is freed."""
    for round_ in range(8):
        bench = make(workers=4)
        topic = name()
        peers = [bench.session(5, f"c{i}", props=((RECEIVE_MAXIMUM, 2),), will=Will(f"{topic}/w", bytes(100), 1)) for i in range(8)]
        for i, peer in enumerate(peers):
            peer.subscribe(f"{topic}/#", 1)
            peer.subscribe(f"$share/g{i % 2}/{topic}/#", 2)
        for peer in peers:
            for n in range(30):
                peer.send(publish_packet(f"{topic}/{n}", bytes(500), 5, qos=n % 3, packet_id=n + 1, retain=n % 4 == 0))
            peer.send(publish_packet(f"{topic}/part", bytes(50_000), 5)[: 20_000 + round_])
        if round_ % 2:
            for peer in peers[:4]:
                peer.reset()
        bench.native.stop(0)
        check_live_objects()


def test_start_and_stop_many_times(make: Make) -> None:
    bench = make()
    for i in range(50):
        bench.native.stop()
        check_live_objects()
        bench.native.start()
        peer = bench(5)
        peer.subscribe("t", 1)
        peer.publish("t", b"x", 1)
        peer.messages(1)
        if i % 10 < 9:
            peer.disconnect()


def test_descriptors_are_given_back(make: Make) -> None:
    def count() -> int:
        return len(os.listdir("/proc/self/fd"))

    bench = make()
    bench.native.stop()
    before = count()
    for _ in range(10):
        bench.native.start()
        peers = [bench() for _ in range(10)]
        bench.native.stop(0)
        for peer in peers:
            peer.close()
    assert count() <= before


def test_several_brokers_side_by_side(make: Make) -> None:
    benches = [make() for _ in range(4)]
    peers = [bench(5, "same") for bench in benches]
    for peer in peers:
        peer.subscribe("t", 1)
    for i, peer in enumerate(peers):
        peer.publish("t", b"%d" % i, 1)
    for i, peer in enumerate(peers):
        assert peer.message("t").payload == b"%d" % i
    benches[0].native.stop()
    for peer in peers[1:]:
        peer.ping()
        assert not peer.aside
    assert [bench.stat("messages_received") for bench in benches] == [1] * 4


def test_fork(make: Make) -> None:
    """The child closes its copies and its calls raise; the parent goes on, and its clients' connections end when it ends them."""
    from mqttc.server import BrokerError

    bench = make()
    peer = bench(5)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            raised = 0
            for call in (
                bench.native.stats,
                bench.native.stop,
                bench.native.start,
                lambda: bench.native.advance_clock(1),
                lambda: bench.native.urls,
            ):
                try:
                    call()
                except BrokerError:
                    raised += 1
            sockets = [fd for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")]
            links = [os.readlink(f"/proc/self/fd/{fd}") for fd in sockets]
            os.write(write, f"{raised} {sum(link.startswith('socket:') for link in links)}".encode())
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert status == 0
    raised, sockets = os.read(read, 100).split()
    os.close(read)
    os.close(write)
    assert int(raised) == 5
    # The peer's own socket, and what the test runner and asyncio have; none of the broker's listener and connection.
    mine = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")]
    assert int(sockets) <= sum(link.startswith("socket:") for link in mine) - 2
    peer.publish("t", b"x", 1)
    bench.native.stop()
    assert [p.type for p in peer.expect_close()] == [DISCONNECT]


EMFILE = """
import os, resource, socket, sys, logging
logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(message)s")
from mqttc.server import Broker
from tests.conftest import tcp_address
from tests.rawclient import Peer, connect_packet

broker = Broker({"listeners": [{"url": "tcp://127.0.0.1:0"}], "workers": int(sys.argv[1])})
broker.start()
address = tcp_address(broker.urls[0])
first = Peer(address)
first.connect("first")
peers = [Peer(address) for _ in range(40)]
for peer in peers[:10]:
    peer.connect(str(id(peer)))
while broker.stats()["connections_open"] < 41:
    first.ping()
used = len(os.listdir("/proc/self/fd"))
resource.setrlimit(resource.RLIMIT_NOFILE, (used + 8, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
spare = []
try:
    while True:
        spare.append(os.open("/dev/null", os.O_RDONLY))
except OSError as error:
    assert error.errno == 24, error
os.close(spare.pop())
waiting = [Peer(address)]  # has the last descriptor, so that there is none for the broker's end
while not broker.stats()["accept_errors"]:
    first.ping()
turns = broker.stats()["turns"]
for _ in range(200):
    first.ping()
assert broker.stats()["turns"] - turns < 2000, "it spins"
first.publish("t", b"x", 1)
for peer in peers:
    peer.close()
for fd in spare:
    os.close(fd)
broker.advance_clock(1)
for peer in waiting:
    assert peer.connect(str(id(peer))).reason == 0
first.ping()
print(broker.stop(), broker.stats()["accept_errors"] > 0, len(waiting) > 0)
"""


@pytest.mark.parametrize("workers", [1, 4])
def test_out_of_descriptors(workers: int) -> None:
    """Those that are connected go on; the others wait, without a spinning loop, and are served as soon as there is room."""
    done = subprocess.run(
        [sys.executable, "-c", EMFILE, str(workers)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.stdout.strip() == "True True True", done.stderr
    assert "accept failed" in done.stderr or "accept_failed" in done.stderr


def test_a_flooding_client_does_not_starve_others(make: Make) -> None:
    """While one sends as fast as it can, another one's requests are answered, each within few turns."""
    bench = make(workers=1)
    flooder, other = bench(), bench()
    ended = threading.Event()

    def flood() -> None:
        part = publish_packet("flood", bytes(16)) * 5000
        try:
            while not ended.is_set():
                flooder.send(part)
        except (PeerClosed, OSError):
            pass

    thread = threading.Thread(target=flood)
    thread.start()
    try:
        for _ in range(100):
            before = bench.stat("turns")
            other.ping()
            assert bench.stat("turns") - before < 50
    finally:
        ended.set()
        flooder.socket.shutdown(2)
        thread.join()


def test_objects_are_freed_while_the_broker_runs(make: Make) -> None:
    """Counts return to where they were when clients, messages and subscriptions have gone."""
    from mqttc import native

    bench = make()

    def life(number: int) -> None:
        peers = [bench.session(5, f"c{number}-{i}", will=Will("w", b"x")) for i in range(10)]
        for peer in peers:
            peer.subscribe("a/#", 1, 5)
            peer.subscribe("$share/g/a/+", 1)
            peer.publish("a/b", bytes(1000), 1)
        for i in range(10):
            peers[i].disconnect(0)
        bench.native.advance_clock(4000)
        bench.until("sessions", 0)
        bench.until("connections_open", 0)

    life(0)
    life(1)
    before = native.live_objects()
    for number in range(2, 12):
        life(number)
    after = native.live_objects()
    for kind in ("subscription_ids", "routes"):  # some are in the workers' caches; each of the ten lives made more than that
        assert after[kind] <= before[kind] + 40, kind
    for counter in ("messages_queued", "messages_queued_bytes", "messages_inflight", "group_backlog", "subscriptions"):
        assert bench.stat(counter) == 0, counter


def test_every_limit_of_the_configuration_has_a_test() -> None:
    """A limit that is added to the configuration is named by a test of this directory, of all roads, or of authenticators."""
    from pathlib import Path

    from mqttc.config import Limits

    here = Path(__file__).parent
    text = "".join(path.read_text() for folder in (here, here.parent / "roads", here.parent / "auth") for path in folder.glob("test_*.py"))
    assert [key for key in Limits.model_fields if f'"{key}"' not in text] == []
