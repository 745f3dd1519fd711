"""Brokers killed under load, and at chosen moments. `tools/crash_test.py` has the long run."""

from __future__ import annotations

import contextlib
import os
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import WORKERS
from tests.rawclient import (
    PUBACK,
    PUBCOMP,
    PUBLISH,
    PUBREC,
    PUBREL,
    SUBACK,
    UNSUBACK,
    Packet,
    Peer,
    ack_packet,
    publish_packet,
    subscribe_packet,
    unsubscribe_packet,
)  # fmt: skip

from .crash_model import History
from .crash_run import BrokerProcess, CrashRun
from .power_image import compiler, environment, forget_shim

SEED = int(os.environ.get("MQTTC_TEST_SEED") or random.randrange(10**6))


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["written", "synced"])
def test_killed_under_load(mode: str) -> None:
    print(f"seed {SEED}: MQTTC_TEST_SEED={SEED} makes the same clients")
    outcome = CrashRun(mode, 6, SEED, WORKERS, life_s=(0.1, 0.8), echo=sys.stdout).run()
    assert not outcome.violations, f"seed {SEED}, {outcome.history}: {outcome.violations[:5]}"
    assert outcome.kills >= 6 and outcome.acknowledged > 100


def test_the_run_notices_a_broker_that_keeps_nothing() -> None:
    outcome = CrashRun("off", 1, SEED, WORKERS, life_s=(0.5, 0.5)).run()
    assert any("its session is gone" in one or "was acknowledged, nothing is there" in one for one in outcome.violations)
    assert outcome.history is not None
    forget(outcome.history.parent)


def forget(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    folder.rmdir()


# ---------------------------------------------------------------------------------------------- chosen moments


class Scene:
    """A broker that can be killed and started again on the same store."""

    def __init__(self, folder: Path, sync_us: int = 0) -> None:
        self.folder = folder
        self.history = History(folder / "history")
        (folder / "data").mkdir(0o700)
        self.environment = environment(folder / "data", sync_us=sync_us) if sync_us else None
        self.peers: list[Peer] = []
        self.broker = self._broker()

    def _broker(self) -> BrokerProcess:
        broker = BrokerProcess(self.folder, "synced", WORKERS, self.history, environment=self.environment)
        assert broker.until_ready(), self.history.violations
        return broker

    def crash(self) -> None:
        self.broker.kill()
        for peer in self.peers:
            peer.close()
        self.peers.clear()
        self.broker = self._broker()

    def peer(self, name: str, version: int = 5, *, present: bool | None = None, clean: bool = False) -> Peer:
        """Connected with a session that outlives everything here, or with a clean one."""
        peer = Peer(self.broker.address, version)
        self.peers.append(peer)
        answer = peer.connect(name, clean=clean, expiry=0 if clean else 3600)
        assert present is None or answer.session_present == present
        return peer

    def end(self) -> None:
        for peer in self.peers:
            peer.close()
        self.broker.end()
        self.history.close()
        assert not self.history.violations


Stage = Callable[..., Scene]


@pytest.fixture
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """Makes scenes; on a slow disk with `sync_us`."""
    scenes: list[Scene] = []

    def make(sync_us: int = 0) -> Scene:
        if sync_us and (compiler() is None or not sys.platform.startswith("linux")):
            pytest.skip("needs Linux and a C compiler")
        scenes.append(Scene(tmp_path_factory.mktemp("s"), sync_us))
        return scenes[-1]

    with contextlib.ExitStack() as stack:
        stack.callback(forget_shim)
        yield make
        for scene in scenes:
            stack.callback(scene.end)


def test_what_rests_on_nothing_new_is_answered_at_once(stage: Stage) -> None:
    """There is no commit to wait for, and nobody else makes one."""
    scene = stage()
    peer = scene.peer("quiet")
    peer.send(publish_packet("t", b"x", 5, qos=2, packet_id=1))
    peer.expect(PUBREC, packet_id=1)
    peer.send(publish_packet("t", b"x", 5, qos=2, packet_id=1, dup=True))
    peer.expect(PUBREC, packet_id=1)
    peer.send(unsubscribe_packet(["nothing"], 5, packet_id=2))
    peer.expect(UNSUBACK, packet_id=2)
    peer.send(subscribe_packet([("a/#/b", 0)], 5, packet_id=3))
    assert peer.expect(SUBACK, packet_id=3).reasons == [0x8F]
    peer.subscribe("q", 2)
    scene.peer("other", clean=True).publish("q", b"1", 2)
    got = peer.message("q", answer=False)
    for _ in range(2):
        peer.send(ack_packet(PUBREC, got.packet_id))
        peer.expect(PUBREL, packet_id=got.packet_id)


def retained_to(peer: Peer, topic: str) -> Packet:
    got = peer.message(topic, answer=False)
    assert got.retain
    return got


@pytest.mark.parametrize("version", [4, 5])
def test_retained_message_at_qos_2_keeps_its_packet_id(stage: Stage, version: int) -> None:
    """It was received and not released when the broker crashed: its id must not come with another message, which would be taken for it."""
    scene = stage()
    scene.peer("other", clean=True).publish("r", b"kept", 2, retain=True)
    peer = scene.peer("s", version)
    peer.send(subscribe_packet([("r", 2), ("t", 2)], version, packet_id=1))
    peer.await_packet(SUBACK, 1)
    first = retained_to(peer, "r")
    assert first.qos == 2
    scene.crash()
    other = scene.peer("other", clean=True)
    for number in range(3):
        other.publish("t", b"%d" % number, 2)
    peer = scene.peer("s", version, present=True)
    again = retained_to(peer, "r")
    assert (again.packet_id, again.dup, again.payload) == (first.packet_id, True, b"kept")
    peer.answer(again)
    got = [peer.message("t", answer=False) for _ in range(3)]
    assert [one.payload for one in got] == [b"0", b"1", b"2"]
    assert again.packet_id not in [one.packet_id for one in got]


def test_retained_message_at_qos_1_comes_again(stage: Stage) -> None:
    """The hand-out was at its end, the message not acknowledged."""
    scene = stage()
    scene.peer("other", clean=True).publish("r", b"kept", 1, retain=True)
    peer = scene.peer("s")
    peer.subscribe("r", 1)
    first = retained_to(peer, "r")
    peer.subscribe("another", 1)  # committed behind the hand-out's end
    scene.crash()
    again = retained_to(scene.peer("s", present=True), "r")
    assert (again.payload, again.qos) == (b"kept", 1)
    scene.peers[-1].answer(again)
    scene.peers[-1].ping()
    scene.crash()
    peer = scene.peer("s", present=True)
    peer.ping()
    assert not [one for one in peer.aside if one.packet_id != first.packet_id]


def test_packet_id_is_not_free_before_its_release_is_committed(stage: Stage) -> None:
    """PUBREL twice, the second one on a connection for which the id is gone already.

    A PUBCOMP at once would let the client use it for another message, which a broker that has lost the release takes for the
    first one.
    """
    scene = stage(sync_us=150_000)
    scene.peer("s").subscribe("t", 2)
    scene.peers[-1].close()
    peer = scene.peer("p")
    peer.send(publish_packet("t", b"first", 5, qos=2, packet_id=7))
    peer.expect(PUBREC, packet_id=7)
    other = scene.peer("other", clean=True)
    other.send(publish_packet("r", b"x", 5, qos=1, retain=True, packet_id=1))
    other.ping()  # that is on its way to the disk now, and what comes next waits for the next commit
    peer.send(ack_packet(PUBREL, 7))
    peer.ping()
    assert not peer.aside, "its PUBCOMP waits for the disk"
    peer.reset()
    peer = scene.peer("p", present=True)
    peer.send(ack_packet(PUBREL, 7))
    peer.expect(PUBCOMP, packet_id=7)
    scene.crash()
    peer = scene.peer("p", present=True)
    peer.send(publish_packet("t", b"second", 5, qos=2, packet_id=7, dup=True))  # it was sent, and its PUBREC is lost
    peer.expect(PUBREC, packet_id=7)
    peer.send(ack_packet(PUBREL, 7))
    peer.expect(PUBCOMP, packet_id=7)
    assert [one.payload for one in scene.peer("s", present=True).messages(2)] == [b"first", b"second"]


def test_received_packet_id_outlives_the_crash(stage: Stage) -> None:
    """A repeated QoS 2 PUBLISH is the same message, also for a broker that has started since. [MQTT-4.3.3-10]"""
    scene = stage()
    scene.peer("s").subscribe("t", 2)
    peer = scene.peer("p", 4)
    peer.send(publish_packet("t", b"once", 4, qos=2, packet_id=9))
    peer.expect(PUBREC, packet_id=9)
    scene.crash()
    peer = scene.peer("p", 4, present=True)
    peer.send(publish_packet("t", b"once", 4, qos=2, packet_id=9, dup=True))
    peer.expect(PUBREC, packet_id=9)
    peer.send(ack_packet(PUBREL, 9))
    peer.expect(PUBCOMP, packet_id=9)
    peer.publish("t", b"next", 2)
    assert [one.payload for one in scene.peer("s", present=True).messages(2)] == [b"once", b"next"]


@pytest.mark.parametrize("answered", [False, True], ids=["PUBREC unsent", "PUBREC sent"])
def test_sent_message_goes_on_where_it_stood(stage: Stage, answered: bool) -> None:
    scene = stage()
    peer = scene.peer("s", 4)
    peer.subscribe("t", 2)
    scene.peer("other", clean=True).publish("t", b"x", 2)
    got = peer.message("t", answer=False)
    if answered:
        peer.send(ack_packet(PUBREC, got.packet_id))
        peer.expect(PUBREL, packet_id=got.packet_id)
    scene.crash()
    peer = scene.peer("s", 4, present=True)
    if answered:
        peer.expect(PUBREL, packet_id=got.packet_id)
        peer.send(ack_packet(PUBCOMP, got.packet_id))
    else:
        again = peer.expect(PUBLISH, packet_id=got.packet_id, dup=True, payload=b"x")
        peer.answer(again)
    peer.ping()
    assert not peer.aside


def test_acknowledged_messages_do_not_come_again(stage: Stage) -> None:
    scene = stage()
    peer = scene.peer("s")
    peer.subscribe("t", 1)
    other = scene.peer("other")
    for number in range(100):
        other.publish("t", b"%d" % number, 1)
    peer.messages(100)
    peer.subscribe("u", 1)  # its SUBACK is committed behind the acknowledgements
    scene.crash()
    peer = scene.peer("s", present=True)
    other = scene.peer("other", present=True)
    other.send(publish_packet("t", b"last", 5, qos=1, packet_id=1))
    other.expect(PUBACK, packet_id=1)
    assert peer.message().payload == b"last"
