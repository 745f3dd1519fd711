"""A broker whose power is cut at many moments. `tools/crash_test.py --images` has the long run."""

from __future__ import annotations

import os
import random
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import WORKERS
from tests.rawclient import CONNACK, PUBLISH, PUBREC, PUBREL, Peer, ack_packet, connect_packet

from .crash_model import History
from .crash_run import BrokerProcess
from .power_image import (
    CREATE,
    RENAME,
    SYNC,
    SYNC_DIRECTORY,
    TRUNCATE,
    UNLINK,
    WRITE,
    Disk,
    Operation,
    compiler,
    environment,
    forget_shim,
    read_log,
)
from .power_run import PowerRun, differing_bytes

SEED = int(os.environ.get("MQTTC_TEST_SEED") or random.randrange(10**6))

pytestmark = pytest.mark.skipif(compiler() is None or not sys.platform.startswith("linux"), reason="needs Linux and a C compiler")


@pytest.fixture(scope="module", autouse=True)
def shim_is_removed() -> Iterator[None]:
    yield
    forget_shim()


@pytest.mark.slow
def test_power_cuts_in_synced_mode() -> None:
    print(f"seed {SEED}: MQTTC_TEST_SEED={SEED} makes the same clients")
    outcome = PowerRun("synced", 10, SEED, WORKERS, load_s=1.0, echo=sys.stdout).run()
    assert not outcome.violations, f"seed {SEED}, {outcome.folder}: {outcome.violations[:5]}"
    assert outcome.images == 10 and outcome.syncs > 10 and outcome.acknowledged > 100


@pytest.mark.parametrize("names", ["-wal", ""], ids=["of the WAL", "all"])
def test_syncs_that_are_left_out_are_noticed(names: str) -> None:
    outcome = PowerRun("synced", 20, SEED, WORKERS, load_s=0.5, lie=names, enough=1).run()
    assert outcome.violations, f"seed {SEED}: {outcome}"


# ---------------------------------------------------------------------------------------------- the least that is on the disk


def test_qos_2_goes_on_with_what_was_synced(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Each step of a delivery is on the disk before the client sees it: SENT before PUBLISH, RELEASED before PUBREL."""
    folder = tmp_path_factory.mktemp("p")
    history = History(folder / "history")
    data, log = folder / "data", folder / "log"
    data.mkdir(0o700)
    broker = BrokerProcess(folder, "synced", 1, history, environment=environment(data, log))
    images = []
    try:
        assert broker.until_ready()
        peer, other = Peer(broker.address), Peer(broker.address)
        peer.connect("s", clean=False)
        peer.subscribe("t", 2)
        other.connect("other")
        other.publish("t", b"x", 2)
        got = peer.message("t", answer=False)
        images.append(synced_image(log, folder / "sent"))
        peer.send(ack_packet(PUBREC, got.packet_id))
        peer.expect(PUBREL, packet_id=got.packet_id)
        images.append(synced_image(log, folder / "released"))
        peer.close()
        other.close()
    finally:
        broker.kill()
    for image, kind in zip(images, (PUBLISH, PUBREL), strict=True):
        broker = BrokerProcess(folder, "synced", 1, history, data_dir=image)
        try:
            assert broker.until_ready()
            peer = Peer(broker.address)
            assert peer.connect("s", clean=False).session_present
            peer.expect(kind, packet_id=got.packet_id)
            peer.close()
        finally:
            broker.kill()
    history.close()
    assert not history.violations


def test_release_and_return_in_one_turn(tmp_path_factory: pytest.TempPathFactory) -> None:
    """PUBREC, the connection's end and the next CONNECT are read in one turn: PUBREL waits for the disk all the same."""
    folder = tmp_path_factory.mktemp("p")
    history = History(folder / "history")
    data, log = folder / "data", folder / "log"
    data.mkdir(0o700)
    broker = BrokerProcess(folder, "synced", 1, history, environment=environment(data, log, sync_us=100_000))
    try:
        assert broker.until_ready()
        peer, other = Peer(broker.address), Peer(broker.address)
        peer.connect("s", clean=False)
        peer.subscribe("t", 2)
        other.connect("other")
        other.publish("t", b"x", 2)
        got = peer.message("t", answer=False)
        back = Peer(broker.address)
        other.ping()
        other.ping()  # it has been accepted
        os.kill(broker.process.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, broker.process.pid, os.WSTOPPED | os.WNOWAIT)
        peer.send(ack_packet(PUBREC, got.packet_id))
        peer.close()
        back.send(connect_packet("s", clean=False))
        os.kill(broker.process.pid, signal.SIGCONT)
        assert back.expect(CONNACK).session_present
        kind = back.recv().type
        image = synced_image(log, folder / "image")
        back.close()
        other.close()
    finally:
        os.kill(broker.process.pid, signal.SIGCONT)
        broker.kill()
    assert kind == PUBREL
    broker = BrokerProcess(folder, "synced", 1, history, data_dir=image)
    try:
        assert broker.until_ready()
        peer = Peer(broker.address)
        peer.connect("s", clean=False)
        peer.expect(PUBREL, packet_id=got.packet_id)
        peer.close()
    finally:
        broker.kill()
    history.close()
    assert not history.violations


def test_session_is_present_when_it_is_on_the_disk(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Its first client has gone before its CONNACK; the second one is told no sooner."""
    folder = tmp_path_factory.mktemp("p")
    history = History(folder / "history")
    data, log = folder / "data", folder / "log"
    data.mkdir(0o700)
    broker = BrokerProcess(folder, "synced", 1, history, environment=environment(data, log, sync_us=100_000))
    try:
        assert broker.until_ready()
        first, second, other = Peer(broker.address), Peer(broker.address), Peer(broker.address)
        other.connect("other")
        first.send(connect_packet("s", clean=False))
        other.ping()
        first.close()
        other.ping()
        assert second.connect("s", clean=False).session_present
        image = synced_image(log, folder / "image")
        second.close()
        other.close()
    finally:
        broker.kill()
    broker = BrokerProcess(folder, "synced", 1, history, data_dir=image)
    try:
        assert broker.until_ready()
        peer = Peer(broker.address)
        assert peer.connect("s", clean=False).session_present
        peer.close()
    finally:
        broker.kill()
    history.close()
    assert not history.violations


def synced_image(log: Path, folder: Path) -> Path:
    disk = Disk()
    for operation in read_log(log):
        disk.feed(operation)
    disk.write_synced(folder)
    return folder


# ---------------------------------------------------------------------------------------------- images by hand


def operation(kind: int, inode: int = 1, offset: int = 0, data: bytes = b"", name: str = "", other: str = "") -> Operation:
    return Operation(0, kind, inode, offset, name, other, data)


def test_image_keeps_what_was_synced_and_any_sectors_of_the_rest(tmp_path: Path) -> None:
    disk = Disk(names={"f": 1})
    disk.feed(operation(WRITE, data=b"a" * 2048))
    disk.feed(operation(SYNC))
    disk.feed(operation(WRITE, offset=100, data=b"b" * 1948))
    chance = random.Random(1)
    seen = set()
    for number in range(200):
        disk.write(tmp_path / str(number), chance)
        content = (tmp_path / str(number) / "f").read_bytes()
        assert len(content) == 2048 and content[:100] == b"a" * 100
        parts = (content[100:512], *(content[at : at + 512] for at in (512, 1024, 1536)))
        assert all(len(set(part)) == 1 for part in parts), "a sector is written whole or not at all"
        seen.add(tuple(part[0] for part in parts))
    assert len(seen) == 16, "every part may be there without the others"
    disk.write_synced(tmp_path / "synced")
    assert (tmp_path / "synced" / "f").read_bytes() == b"a" * 2048
    disk.write_all(tmp_path / "all")
    assert (tmp_path / "all" / "f").read_bytes() == b"a" * 100 + b"b" * 1948


def test_names_are_synced_with_their_directory(tmp_path: Path) -> None:
    disk = Disk()
    disk.feed(operation(CREATE, inode=1, name="new"))
    disk.feed(operation(WRITE, inode=1, data=b"x"))
    disk.feed(operation(SYNC, inode=1))
    disk.feed(operation(RENAME, inode=1, name="new", other="file"))
    disk.write_synced(tmp_path / "before")
    assert list((tmp_path / "before").iterdir()) == []
    disk.feed(operation(SYNC_DIRECTORY, inode=0))
    disk.write_synced(tmp_path / "after")
    assert [(path.name, path.read_bytes()) for path in (tmp_path / "after").iterdir()] == [("file", b"x")]
    disk.feed(operation(TRUNCATE, inode=1, offset=0))
    disk.feed(operation(UNLINK, name="file"))
    disk.write_synced(tmp_path / "again")
    assert (tmp_path / "again" / "file").read_bytes() == b"x"
    disk.write_all(tmp_path / "gone")
    assert list((tmp_path / "gone").iterdir()) == []


@pytest.mark.parametrize(
    ("a", "b", "differing"),
    [(b"", b"", 0), (b"abc", b"abc", 0), (b"abcd", b"aXYd", 2), (b"abcd", b"Xbcd", 1), (b"ab", b"abcd", 2), (b"Xb", b"abc", 3)],
)
def test_how_much_differs(a: bytes, b: bytes, differing: int) -> None:
    assert differing_bytes(a, b) == differing_bytes(b, a) == differing
