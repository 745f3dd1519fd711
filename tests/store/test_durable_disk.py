"""A disk that is full, and a broker that is killed: as processes of their own."""

from __future__ import annotations

import contextlib
import resource
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mqttc.store import FILE_NAME, check

from ..conftest import tcp_address
from ..control.test_command import Command
from ..control.test_command import command as command
from ..rawclient import PUBACK, PUBREC, PUBREL, Peer, PeerTimeout, ack_packet, connect_packet, publish_packet
from .durable import complete, name

pytestmark = pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="limits of another process cannot be set here")

Start = Callable[..., Command]
UNLIMITED = resource.RLIM_INFINITY


class Served:
    """A broker process on a data directory."""

    def __init__(self, start: Start, folder: Path, *arguments: str) -> None:
        self.path = folder / FILE_NAME
        listen = () if "--config" in arguments else ("--listen", "tcp://127.0.0.1:0")
        self.command = start(*listen, "--set", f"data_dir={folder}", "--set", "durability.retry=0.05", *arguments)
        self.urls = self.command.urls()

    def peer(self, version: int, client_id: str, *, clean: bool = False, listener: int = 0) -> Peer:
        peer = Peer(tcp_address(self.urls[listener]), version)
        assert peer.connect(client_id, clean=clean, expiry=None if clean else 3600).reason == 0
        return peer

    def limit_files(self, more: int | None) -> None:
        """How many bytes more the WAL may have; None: as many as there is room for."""
        wal = self.path.with_name(self.path.name + "-wal")
        size = UNLIMITED if more is None else wal.stat().st_size + more
        resource.prlimit(self.command.process.pid, resource.RLIMIT_FSIZE, (size, UNLIMITED))


def fill(peer: Peer, topic: str, version: int, first: int, *, body: int = 5000) -> int:
    """QoS 1 messages until one is refused, or not acknowledged; how many were."""
    for packet_id in range(first, first + 1000):
        peer.send(publish_packet(topic, b"%05d" % packet_id * (body // 5), version, qos=1, packet_id=packet_id))
        try:
            if peer.recv(1.0).reason >= 0x80:
                return packet_id - first
        except PeerTimeout:
            return packet_id - first
    raise AssertionError("the disk is not full")


@pytest.mark.parametrize("mode", ["written", "synced"])
def test_full_disk(command: Start, tmp_path: Path, mode: str) -> None:
    served = Served(command, tmp_path, "--set", f"durability.mode={mode}")
    topic, receiver, client_3, client_5 = name(), name(), name(), name()
    peer = served.peer(5, receiver)
    peer.subscribe(topic, 2)
    peer.disconnect()
    five, three = served.peer(5, client_5), served.peer(4, client_3)
    served.limit_files(200_000)
    acknowledged = fill(three, topic, 4, 1)
    assert acknowledged > 10
    assert "disk I/O error" in served.command.until("store fails"), "SQLite's word for EFBIG"
    # 5.0 is told, 3.1.1 waits; both connections go on, and what the store is not asked for works
    assert five.publish(topic, b"refused", 1).reason == 0x97  # type: ignore[union-attr]
    assert five.publish(topic, b"refused", 2).reason == 0x97  # type: ignore[union-attr]
    five.send(publish_packet(topic, b"refused", 5, retain=True))
    three.send(publish_packet(topic, b"late", 4, qos=2, packet_id=5000))
    for one in (five, three):
        one.ping()
        assert not one.aside
    other = served.peer(5, name(), clean=True)
    other.subscribe("plain", 1)
    other.publish("plain", b"m", 1)
    other.message("plain")
    refused = Peer(tcp_address(served.urls[0]), 5)
    refused.send(connect_packet(name(), 5, clean=False, expiry=100))
    assert refused.recv().reason == 0x97
    for expiry, client_id in ((3600, client_5), (None, name())):  # a session that is there, and one that ends with its connection
        taken = Peer(tcp_address(served.urls[0]), 5)
        assert taken.connect(client_id, clean=False, expiry=expiry).reason == 0
        taken.ping()
    five = served.peer(5, client_5)
    # room again
    served.limit_files(None)
    served.command.until("store holds again")
    assert [(one.type, one.packet_id) for one in (three.recv(), three.recv())] == [(PUBACK, acknowledged + 1), (PUBREC, 5000)]
    assert five.publish(topic, b"taken", 1).reason == 0  # type: ignore[union-attr]
    three.send(ack_packet(PUBREL, 5000))
    three.recv()
    served.command.process.kill()
    served.command.rest()
    assert check(served.path) == []
    served = Served(command, tmp_path, "--set", f"durability.mode={mode}")
    peer = served.peer(5, receiver)
    got: list[bytes] = []
    while len(got) < acknowledged + 3:
        got += complete(peer, peer.recv())
    assert [int(payload[:5]) for payload in got[:-2]] == list(range(1, acknowledged + 2))
    assert got[-2:] == [b"late", b"taken"]
    assert served.command.end() == 0


@contextlib.contextmanager
def small_disk(folder: Path, kilobytes: int) -> Iterator[None]:
    """A file system of its own; skips the test where this process may not mount one."""
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if made.returncode != 0:
        pytest.skip(f"no file system can be mounted here: {made.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.skipif(shutil.which("mount") is None, reason="no mount here")
def test_disk_without_room(command: Start, tmp_path: Path) -> None:
    """A file system that is full in earnest, also for the pages of SQLite's index of the WAL; what fills it is removed later."""
    folder = tmp_path / "disk"
    with small_disk(folder, 4000):
        served = Served(command, folder, "--set", "durability.mode=synced")
        topic, receiver = name(), name()
        peer = served.peer(5, receiver)
        peer.subscribe(topic, 1)
        peer.disconnect()
        (folder / "ballast").write_bytes(bytes(3_000_000))
        three, five = served.peer(4, name()), served.peer(5, name())
        acknowledged = fill(three, topic, 4, 1)
        assert acknowledged > 10
        assert "full" in served.command.until("store fails"), "SQLite's word for ENOSPC"
        assert five.publish(topic, b"refused", 1).reason == 0x97  # type: ignore[union-attr]
        peer = served.peer(5, receiver)  # what is there can be fetched
        assert peer.message().payload.startswith(b"00001")
        peer.disconnect()
        (folder / "ballast").unlink()
        served.command.until("store holds again")
        assert three.recv().packet_id == acknowledged + 1
        served.command.process.kill()
        served.command.rest()
        assert check(served.path) == []
        served = Served(command, folder, "--set", "durability.mode=synced")
        peer = served.peer(5, receiver)
        got: list[bytes] = []
        while b"%05d" % (acknowledged + 1) not in {payload[:5] for payload in got}:
            got += complete(peer, peer.recv())
        assert [int(payload[:5]) for payload in got] in ([*range(1, acknowledged + 2)], [*range(2, acknowledged + 2)])
        assert served.command.end() == 0


def test_full_disk_at_the_end(command: Start, tmp_path: Path) -> None:
    """What could not be written is not called an orderly end; what was acknowledged is there."""
    served = Served(command, tmp_path, "--set", "durability.mode=written")
    topic, receiver = name(), name()
    peer = served.peer(5, receiver)
    peer.subscribe(topic, 1)
    peer.disconnect()
    publisher = served.peer(4, name())
    served.limit_files(100_000)
    acknowledged = fill(publisher, topic, 4, 1)
    served.command.end()
    with sqlite3.connect(f"file:{served.path}?mode=ro", uri=True) as connection:
        assert connection.execute("SELECT value FROM meta WHERE key = 'clean'").fetchone() == (0,)
    served = Served(command, tmp_path, "--set", "durability.mode=written")
    peer = served.peer(5, receiver)
    for number in range(1, acknowledged + 1):
        assert peer.message().payload.startswith(b"%05d" % number)


def survives(command: Start, tmp_path: Path, topic: str, *arguments: str, listener: int = 0) -> bool:
    """Whether a message that was acknowledged to a listener's client is there after the broker was killed."""
    receiver = name()
    served = Served(command, tmp_path, *arguments)
    peer = served.peer(5, receiver)
    peer.subscribe("#", 1)
    peer.disconnect()
    publisher = served.peer(5, name(), clean=True, listener=listener)
    publisher.publish(topic, b"m", 1)
    served.command.process.kill()
    served.command.rest()
    served = Served(command, tmp_path, *arguments)
    peer = served.peer(5, receiver)
    served.peer(5, name(), clean=True, listener=listener).publish(topic, b"last", 1)
    first = peer.message().payload
    served.command.end()
    return first == b"m"


@pytest.mark.parametrize("filtered", [True, False])
def test_filter_keeps_better(command: Start, tmp_path: Path, filtered: bool) -> None:
    config = tmp_path / "c.toml"
    rules = '[durability]\nmode = "off"\nfilters = [{ filter = "orders/+/#", mode = "written" }]\n'
    config.write_text('[[listeners]]\nurl = "tcp://127.0.0.1:0"\n' + rules)
    topic = "orders/1/2" if filtered else "order/1/2"
    assert survives(command, tmp_path / "data", topic, "--config", str(config)) is filtered


@pytest.mark.parametrize("listener", [0, 1])
def test_listener_keeps_better(command: Start, tmp_path: Path, listener: int) -> None:
    config = tmp_path / "c.toml"
    config.write_text('[[listeners]]\nurl = "tcp://127.0.0.1:0"\n[[listeners]]\nurl = "tcp://127.0.0.1:0"\ndurability = "written"\n')
    assert survives(command, tmp_path / "data", "a", "--config", str(config), listener=listener) is bool(listener)


def test_killed_again_and_again(command: Start, tmp_path: Path) -> None:
    """A chain of messages through a session that is never given the time to end in order."""
    receiver, sender, topic = name(), name(), name()
    count = 0
    got: list[bytes] = []
    for _ in range(4):
        served = Served(command, tmp_path, "--set", "durability.mode=written")
        peer, publisher = served.peer(4, receiver), served.peer(4, sender)
        if not count:
            peer.subscribe(topic, 2)
        for _ in range(25):
            count += 1
            publisher.publish(topic, b"%d" % count, 2, packet_id=count)
        while len(got) < count - 10:
            got += complete(peer, peer.recv())
        served.command.process.kill()
        served.command.rest()
    served = Served(command, tmp_path, "--set", "durability.mode=written")
    peer = served.peer(4, receiver)
    while len(set(got)) < count:
        got += complete(peer, peer.recv())
    assert sorted(set(got), key=int) == [b"%d" % number for number in range(1, count + 1)]
    assert served.command.end() == 0
