"""What a start makes of a file: rows that belong to nothing, rows of other versions of the configuration, and what is told of it."""

from __future__ import annotations

import pytest

from mqttc.server import Broker
from mqttc.store import StoreError

from ..broker.conftest import Events
from ..rawclient import PUBLISH, PUBREL
from .durable import Place, complete, fetch, name

LENT = 2**40


def session_id(place: Place, client_id: str) -> int:
    return int(place.query("SELECT id FROM session WHERE client_id = ?", client_id.encode())[0][0])


def message_row(number: int, topic: str, payload: str = "m", expires_ms: int = 0) -> str:
    return f"INSERT INTO message VALUES ({number}, CAST('{topic}' AS BLOB), x'', CAST('{payload}' AS BLOB), 2, 0, {expires_ms})"


def delivery_row(message: int, target: int, state: int = 0, packet_id: int = 0) -> str:
    return f"INSERT INTO delivery VALUES ({message}, {target}, 2, 0, {state}, {packet_id}, NULL)"


def test_what_belongs_to_nothing_is_dropped(place: Place, events: Events) -> None:
    client_id, topic = name(), name()
    place.session(5, client_id).subscribe(topic, 2)
    place.stop()
    own = session_id(place, client_id)
    place.write(
        message_row(500, topic, "kept"),
        message_row(501, topic, "nobody"),
        message_row(502, topic, "other"),
        delivery_row(500, own),
        delivery_row(502, 999),
        delivery_row(503, own),  # without its message
        delivery_row(504, 999, 2, 7),
        "INSERT INTO inbound VALUES (999, 5)",
        "INSERT INTO will VALUES (999, x'61', x'', x'', 0, 0, 0, -1)",
        "INSERT INTO subscription VALUES (999, x'61', 1, 0)",
        "INSERT INTO share_group VALUES (777, CAST('$share/g/x' AS BLOB))",
    )
    place.start()
    assert place.counts() == {"session": 1, "subscription": 1, "message": 1, "delivery": 1}
    told = events.wait("recovered")
    assert (told["sessions"], told["subscriptions"], told["deliveries"], told["orphans"], told["clean"]) == (1, 1, 1, 3, "true")
    assert fetch(place.session(5, client_id, present=True), 1) == [b"kept"]
    place.nothing_waits()


def test_ids_go_on_above_all_that_are_in_use(place: Place) -> None:
    client_id, topic = name(), name()
    place.session(5, client_id).subscribe(topic, 2)
    place.stop()
    own = session_id(place, client_id)
    place.write(message_row(5000, topic), delivery_row(5000, own), delivery_row(6000, own + 9 * LENT, 2, 9))
    place.start()
    place(5).publish(topic, b"new", 2)
    assert place.query("SELECT max(id) > 6000 FROM message") == [(1,)]
    other = name()
    place.session(5, other)
    assert own < session_id(place, other) < 1000
    peer = place.session(5, client_id)
    got = [peer.recv() for _ in range(3)]
    assert (got[0].type, got[0].packet_id) == (PUBREL, 9)
    assert [one.payload for one in got[1:]] == [b"m", b"new"] and all(one.packet_id != 9 for one in got[1:])
    for one in got:
        complete(peer, one)
    for _ in range(2):
        complete(peer, peer.expect(PUBREL))
    place.nothing_waits()


def test_packet_ids_at_the_end_of_their_range(place: Place) -> None:
    client_id, topic = name(), name()
    place.session(5, client_id).subscribe(topic, 2)
    place.stop()
    own = session_id(place, client_id)
    for number, packet_id in ((1, 65534), (2, 65535), (3, 1)):
        place.write(message_row(700 + number, topic, str(number)), delivery_row(700 + number, own, 1, packet_id))
    place.start()
    peer = place.session(5, client_id)
    again = [peer.expect(PUBLISH) for _ in range(3)]
    assert [(one.packet_id, one.payload, one.dup) for one in again] == [(65534, b"1", True), (65535, b"2", True), (1, b"3", True)]
    publisher = place(5)
    for number in range(3):
        publisher.publish(topic, b"%d" % number, 2)
    fresh = [peer.expect(PUBLISH) for _ in range(3)]
    assert [one.packet_id for one in fresh] == [2, 3, 4]
    for one in [*again, *fresh]:
        complete(peer, one)
    for _ in range(6):
        complete(peer, peer.expect(PUBREL))
    place.nothing_waits()


def test_two_rows_of_one_group(place: Place) -> None:
    """As a salvage may leave them: the first one holds, and members of the group are in one group."""
    one, two, topic = name(), name(), name()
    for member in (one, two):
        peer = place.session(5, member)
        peer.subscribe(f"$share/g/{topic}", 1)
        peer.disconnect()
    place.stop()
    place.write("INSERT INTO share_group SELECT id + 100, filter FROM share_group")
    place.start()
    publisher = place(5)
    for number in range(4):
        publisher.publish(topic, b"%d" % number, 1)
    assert fetch(place.session(5, one), 4) == [b"0", b"1", b"2", b"3"]
    place.nothing_waits()


def test_group_that_has_no_row(place: Place) -> None:
    one, two, topic = name(), name(), name()
    for member in (one, two):
        peer = place.session(5, member)
        peer.subscribe(f"$share/g/{topic}", 1)
        peer.disconnect()
    place.stop()
    place.write("DELETE FROM share_group")
    place.start()
    assert place.count("share_group") == 1
    place(5).publish(topic, b"m", 1)
    place.restart()
    assert fetch(place.session(5, two), 1) == [b"m"]
    place.nothing_waits()


def test_stored_subscription_beyond_the_limits(place: Place) -> None:
    place.session(5, name()).subscribe("a/b/c/d", 1)
    place.stop()
    with pytest.raises(StoreError, match="max_topic_levels"):
        place.start(limits={"max_topic_levels": 3})
    place.start(limits={})


def test_damage_that_is_found_while_reading(place: Place) -> None:
    """A start that cannot read everything does not serve with less."""
    topic = name()
    peer = place.session(5, name())
    peer.subscribe(topic, 1)
    peer.disconnect()
    publisher = place(5)
    for _ in range(50):
        publisher.publish(topic, b"m" * 3000, 1)
    place.stop()
    page = place.query("SELECT max(pageno) FROM dbstat WHERE name = 'message' AND pagetype = 'leaf'")[0][0]
    before = place.path.read_bytes()
    with place.path.open("r+b") as file:
        file.seek((page - 1) * 4096)
        file.write(b"\xff" * 4096)
    broker = Broker({"listeners": [{"url": "tcp://127.0.0.1:0"}], "data_dir": str(place.folder), "durability": {"mode": "written"}})
    with pytest.raises(StoreError, match="--recover"):
        broker.start()
    assert not broker.running
    for suffix in ("-wal", "-shm"):
        place.path.with_name(place.path.name + suffix).unlink(missing_ok=True)
    place.path.write_bytes(before)
    place.start()
    assert place.stat("messages_queued") == 50


def test_workers_may_change(place: Place) -> None:
    """Sessions and groups live on other workers then."""
    ids, topic = [name() for _ in range(6)], name()
    for client_id in ids:
        peer = place.session(5, client_id)
        peer.subscribe_many([(topic, 1), (f"$share/g/{topic}/s", 1)])
        peer.disconnect()
    publisher = place(5)
    publisher.publish(topic, b"all", 1)
    publisher.publish(topic + "/s", b"one", 1)
    for workers in (1, 3, 2):
        place.restart(workers=workers)
        assert (place.stat("messages_queued"), place.stat("group_backlog")) == (6, 1)
    got = place.drain()
    assert sorted(got) == [b"all"] * 6 + [b"one"]
    place.nothing_waits()
