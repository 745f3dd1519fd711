"""What the modes write and sync, clocks, and who may have a data directory."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest

from mqttc.server import Broker
from mqttc.store import StoreError

from ..conftest import WORKERS, BrokerFactory, tcp_address
from ..rawclient import MESSAGE_EXPIRY, PUBCOMP, PUBLISH, PUBREC, PUBREL, WILL_DELAY, Peer, Will, ack_packet, publish_packet
from .conftest import MakePlace
from .durable import Place, complete, name

OFF = {"mode": "off"}


# ---------------------------------------------------------------------------------------------------- modes


def test_nothing_is_written_by_default(broker_factory: BrokerFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    broker = broker_factory({"data_dir": str(tmp_path / "data")})
    peer = Peer(tcp_address(broker.urls[0]), 5)
    peer.connect(name(), clean=False, expiry=1000)
    peer.subscribe("a", 2)
    peer.publish("a", b"m", 2, retain=True)
    assert "journal_records" not in broker.stats()
    broker.stop()
    peer.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mode", ["written", "synced"])
def test_synced_commits_reach_the_disk(make_place: MakePlace, mode: str) -> None:
    place = make_place(durability={"mode": mode})
    topic, client_id = name(), name()
    peer = place.session(5, client_id)
    peer.subscribe(topic, 2)
    publisher = place(5)
    place.settled()
    for qos in (1, 2):
        before = place.stat("journal_syncs")
        publisher.publish(topic, b"m", qos)
        peer.message()
        place.nothing_waits()
        assert (place.stat("journal_syncs") > before) is (mode == "synced")


def test_qos_2_state_is_synced_step_by_step(make_place: MakePlace) -> None:
    """Whatever the other side is told of: packet id, PUBREC, PUBREL."""
    place = make_place(durability={"mode": "synced"})
    topic, client_id, sender = name(), name(), name()
    peer, publisher = place.session(5, client_id), place.session(5, sender)
    peer.subscribe(topic, 2)
    place.settled()
    before = place.stat("journal_syncs")
    publisher.send(publish_packet(topic, b"m", 5, qos=2, packet_id=1))
    publisher.expect(PUBREC)
    got = peer.expect(PUBLISH)
    peer.send(ack_packet(PUBREC, got.packet_id))
    peer.expect(PUBREL)
    publisher.send(ack_packet(PUBREL, 1))
    publisher.expect(PUBCOMP)
    assert place.stat("journal_syncs") >= before + 4, "each of them has waited for the one before it"
    peer.send(ack_packet(PUBCOMP, got.packet_id))
    place.nothing_waits()


def test_the_stronger_of_mode_filter_and_listener(make_place: MakePlace) -> None:
    plain, better = {"url": "tcp://127.0.0.1:0"}, {"url": "tcp://127.0.0.1:0", "durability": "synced"}
    place = make_place(
        listeners=[plain, better],
        durability={
            "mode": "written",
            "filters": [{"filter": "orders/#", "mode": "synced"}, {"filter": "orders/old/#", "mode": "written"}],
        },
    )
    peer = place.session(5, name())
    peer.subscribe("#", 1)
    peer.disconnect()
    publishers = [place(5, listener=0), place(5, listener=1)]
    for topic, listener, wanted in (
        ("a", 0, False),
        ("orders/1", 0, True),
        ("orders/old/1", 0, True),
        ("order/1", 0, False),
        ("a", 1, True),
        ("orders/1", 1, True),
    ):
        place.settled()
        before = place.stat("journal_syncs")
        publishers[listener].publish(topic, b"m", 1)
        assert (place.stat("journal_syncs") > before) is wanted, (topic, listener)
    assert place.count("message") == 6


def test_only_what_a_filter_or_listener_names(make_place: MakePlace) -> None:
    plain, better = {"url": "tcp://127.0.0.1:0"}, {"url": "tcp://127.0.0.1:0", "durability": "written"}
    place = make_place(listeners=[plain, better], durability={"mode": "off", "filters": [{"filter": "+/kept", "mode": "written"}]})
    client_id = name()
    peer = place.session(5, client_id)
    peer.subscribe("#", 2)
    peer.disconnect()
    publisher, other = place.session(5, name(), listener=0), place(5, listener=1)
    for qos in (1, 2):
        publisher.publish("a/lost", b"m", qos)
    assert place.count("message") == 0
    publisher.publish("a/kept", b"1", 1)
    other.publish("a/lost", b"2", 1)
    publisher.publish("a/kept", b"3", 2)
    assert place.count("message") == 3
    place.settled()
    place.crash()
    peer = place.session(5, client_id, present=True)
    assert [peer.message().payload for _ in range(3)] == [b"1", b"2", b"3"]
    place.nothing_waits()


@pytest.mark.parametrize("sent", ["on line", "queued"])
def test_packet_id_of_what_is_not_kept(make_place: MakePlace, sent: str) -> None:
    """A crash in the middle of a QoS 2 exchange: its packet id comes to its end before another message can have it."""
    place = make_place(durability={"mode": "off", "filters": [{"filter": "kept", "mode": "written"}]})
    client_id = name()
    peer, publisher = place.session(5, client_id), place(5)
    peer.subscribe("#", 2)
    if sent == "queued":
        peer.disconnect()
        publisher.publish("lost", b"1", 2)
        peer = place.session(5, client_id, present=True)
    else:
        publisher.publish("lost", b"1", 2)
    first = peer.expect(PUBLISH)
    assert (place.count("delivery"), place.count("message")) == (1, 0)
    peer.send(ack_packet(PUBREC, first.packet_id))
    peer.expect(PUBREL, packet_id=first.packet_id)
    place.crash()
    publisher = place(5)
    publisher.publish("kept", b"2", 2)
    peer = place.session(5, client_id, present=True)
    peer.expect(PUBREL, packet_id=first.packet_id)
    second = peer.expect(PUBLISH)
    assert second.payload == b"2" and second.packet_id != first.packet_id
    peer.send(ack_packet(PUBREC, second.packet_id), ack_packet(PUBCOMP, first.packet_id))
    complete(peer, peer.expect(PUBREL, packet_id=second.packet_id))
    place.nothing_waits()
    publisher.publish("lost", b"3", 2)
    third = peer.expect(PUBLISH)
    peer.send(ack_packet(PUBREC, third.packet_id))
    complete(peer, peer.expect(PUBREL, packet_id=third.packet_id))
    place.nothing_waits()


def test_what_is_not_kept_waits_for_its_packet_id(make_place: MakePlace) -> None:
    """Nobody is sent a packet id that a crash could give away; at QoS 1, and to a session that ends with its connection, nothing waits."""
    place = make_place(durability={"mode": "off", "filters": [{"filter": "kept", "mode": "written"}]})
    peer, brief, publisher = place.session(5, name()), place(5), place(5)
    for each in (peer, brief):
        each.subscribe("#", 2)
    with place.blocked():
        publisher.publish("lost", b"1", 1)
        assert peer.message().payload == b"1"
        publisher.publish("lost", b"2", 2)
        assert [brief.message().payload for _ in range(2)] == [b"1", b"2"]
        peer.ping()
        assert not peer.aside
    assert peer.message().payload == b"2"
    place.nothing_waits()


def test_will_of_a_filter(make_place: MakePlace) -> None:
    place = make_place(durability={"mode": "off", "filters": [{"filter": "kept/#", "mode": "written"}]})
    client_id = name()
    peer = place.session(5, client_id)
    peer.subscribe("#", 1)
    peer.disconnect()
    place(5, will=Will("kept/1", b"m", 1)).reset()
    place(5, will=Will("lost/1", b"m", 1)).reset()
    place.until(message=1)
    place.restart()
    assert place.session(5, client_id).message().topic == "kept/1"


# ---------------------------------------------------------------------------------------------------- clocks


def test_clock_behind_the_store(place: Place) -> None:
    """A machine whose clock has lost its battery: the store's time goes on from where it was, in this run and in the next ones."""
    topic, client_id, brief = name(), name(), name()
    place(5, brief, clean=False, expiry=50).disconnect()
    peer = place(5, client_id, clean=False, expiry=1000)
    peer.subscribe(topic, 1)
    peer.disconnect()
    publisher = place(5)
    publisher.publish(topic, b"1", 1, props=((MESSAGE_EXPIRY, 500),))
    publisher.publish(topic + "/r", b"1", 1, retain=True, props=((MESSAGE_EXPIRY, 700),))
    place.stop()
    ahead = 10**10  # milliseconds by which all that is in the file, and the file's clock, are ahead of this machine's
    place.let_pass(-ahead / 1000)
    for _ in range(2):  # sessions neither die nor live for ever
        place.start()
        assert place.stat("sessions") == 2
        publisher = place(5)
        publisher.publish(topic, b"2", 1, props=((MESSAGE_EXPIRY, 300),))
        place.running.advance_clock(20)
        place.stop()
        (clock,) = place.query("SELECT value FROM meta WHERE key = 'clock'")[0]
        assert clock >= ahead
    place.start()
    place.running.advance_clock(15)
    place.until(session=1)
    peer = place(5, client_id, clean=False, expiry=1000)
    assert peer.connack.session_present  # type: ignore[attr-defined]
    got = [peer.message() for _ in range(3)]
    assert [one.payload for one in got] == [b"1", b"2", b"2"]
    assert [one.prop(MESSAGE_EXPIRY) // 10 for one in got] == pytest.approx([44, 24, 26], abs=1)
    publisher = place(5)
    publisher.publish(topic + "/r", b"", 1, retain=True)


def test_clock_that_is_right_again(place: Place) -> None:
    """The run after one whose clock was behind: what was noted then counts from its time in the store."""
    client_id, topic = name(), name()
    place.session(5, name()).disconnect()
    place.stop()
    place.write("UPDATE meta SET value = value + 3600000 WHERE key = 'clock'")
    place.start()
    peer = place(5, client_id, clean=False, expiry=5000)
    peer.subscribe(topic, 1)
    peer.disconnect()
    place(5).publish(topic, b"m", 1, props=((MESSAGE_EXPIRY, 5000),))
    place.stop()
    place.let_pass(3600)  # as if the machine's clock, set right, were that much later
    place.let_pass(1000)
    place.start()
    peer = place(5, client_id, clean=False, expiry=5000)
    assert peer.connack.session_present  # type: ignore[attr-defined]
    assert peer.message().prop(MESSAGE_EXPIRY) == pytest.approx(4000, abs=10)


def test_wall_clock_set_while_it_runs(place: Place) -> None:
    """Only the monotonic clock makes anything older."""
    topic, client_id = name(), name()
    peer = place(5, client_id, clean=False, expiry=1000)
    peer.subscribe(topic, 1)
    peer.disconnect()
    engine = place.running._running.engine  # type: ignore[union-attr]
    for step_ms in (-(10**9), 10**9, 10**10):
        engine.advance_clock(0, step_ms)
        place(5).publish(topic, b"m", 1, props=((MESSAGE_EXPIRY, 100),))
    place.running.advance_clock(50)
    place.restart()
    peer = place(5, client_id, clean=False, expiry=1000)
    assert peer.connack.session_present  # type: ignore[attr-defined]
    for _ in range(3):
        assert 40 <= peer.message().prop(MESSAGE_EXPIRY) <= 50
    place.nothing_waits()


def test_will_delay_and_a_set_clock(place: Place) -> None:
    topic = name()
    watcher = place.session(5, name())
    watcher.subscribe(topic, 1)
    place.session(5, name(), will=Will(topic, b"m", 1, props=((WILL_DELAY, 100),))).reset()
    engine = place.running._running.engine  # type: ignore[union-attr]
    engine.advance_clock(0, 10**10)
    place.running.advance_clock(50)
    watcher.ping()
    assert not watcher.aside
    place.running.advance_clock(51)
    watcher.message(topic)


# ---------------------------------------------------------------------------------------------------- who has it


def test_second_broker_is_refused(place: Place) -> None:
    other = Broker({"listeners": [{"url": "tcp://127.0.0.1:0"}], "data_dir": str(place.folder), "durability": {"mode": "written"}})
    with pytest.raises(StoreError, match="in use"):
        other.start()
    peer = place.session(5, name())
    peer.publish("a", b"m", 1)
    peer.ping()


def test_end_in_order_is_marked(place: Place) -> None:
    clean = "SELECT value FROM meta WHERE key = 'clean'"
    assert place.query(clean) == [(1,)]
    place.session(5, name())
    place.settled()
    assert place.query(clean) == [(0,)]
    place.stop()
    assert not place.path.with_name(place.path.name + "-wal").exists(), "all is in the file itself"
    assert place.query(clean) == [(1,)]
    place.start()


def descriptors() -> list[str]:
    """What this process has open, where the system tells."""
    found = []
    for link in Path("/proc/self/fd").glob("*"):
        with contextlib.suppress(OSError):
            found.append(str(link.readlink()))
    return found


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_fork(place: Place) -> None:
    """A child may live and end: the parent's store stays its own, and locked."""
    peer = place.session(5, name())
    peer.subscribe("a", 1)
    reading, writing = os.pipe()
    eventfds = descriptors().count("anon_inode:[eventfd]")
    child = os.fork()
    if child == 0:
        try:
            os.close(writing)
            os.read(reading, 1)
            if descriptors().count("anon_inode:[eventfd]") > eventfds - WORKERS - 2:
                os._exit(8)  # of each worker, of the journal and of the log
            if any(str(place.path) in one for one in descriptors()):
                os._exit(9)
            place.running.stats()
        except BaseException:
            os._exit(7)  # as every call of a forked child
        os._exit(0)
    os.close(reading)
    peer.publish("a", b"m", 1)
    peer.message("a")
    os.close(writing)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    other = Broker({"listeners": [{"url": "tcp://127.0.0.1:0"}], "data_dir": str(place.folder), "durability": {"mode": "written"}})
    with pytest.raises(StoreError):
        other.start()
    peer.publish("a", b"m", 1)
    peer.message("a")
    place.nothing_waits()
