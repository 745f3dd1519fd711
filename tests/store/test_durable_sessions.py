"""Sessions over a restart: subscriptions with their options, expiry, endings; and what is none of the store's business."""

from __future__ import annotations

import pytest

from ..rawclient import CONNACK, PUBACK, SESSION_EXPIRY, SUBACK, SUBSCRIPTION_ID, Peer, connect_packet, publish_packet, subscribe_packet
from .conftest import MakePlace
from .durable import VERSIONS, Place, name

NO_LOCAL, RETAIN_AS_PUBLISHED = 4, 8


@pytest.mark.parametrize("version", VERSIONS)
def test_subscriptions_survive(place: Place, version: int) -> None:
    client_id, topics = name(), [name() for _ in range(3)]
    peer = place.session(version, client_id, present=False)
    for qos, topic in enumerate(topics):
        peer.subscribe(topic, qos)
    place.restart()
    peer = place.session(version, client_id, present=True)
    publisher = place(5)
    for topic in topics:
        publisher.publish(topic, topic, 2)
    got = sorted((peer.message() for _ in topics), key=lambda one: topics.index(one.topic))
    assert [(one.topic, one.qos) for one in got] == [(topic, qos) for qos, topic in enumerate(topics)]


def test_options_survive(place: Place) -> None:
    client_id, local, published, plain = name(), name(), name(), name()
    peer = place.session(5, client_id)
    peer.subscribe(local, 1 | NO_LOCAL)
    peer.subscribe(published, 1 | RETAIN_AS_PUBLISHED, 7)
    peer.subscribe(plain, 1, 268_435_455)
    place.restart()
    peer = place.session(5, client_id, present=True)
    for topic in (local, published, plain):
        peer.publish(topic, b"own", 1, retain=True)
    place(5).publish(local, b"other", 1)
    got = {one.topic: one for one in (peer.message() for _ in range(3))}
    assert got[local].payload == b"other", "no local"
    assert (got[published].retain, got[published].all_props(SUBSCRIPTION_ID)) == (True, [7])
    assert (got[plain].retain, got[plain].all_props(SUBSCRIPTION_ID)) == (False, [268_435_455])
    for topic in (local, published, plain):
        peer.publish(topic, b"", 0, retain=True)


def test_changes_of_subscriptions_survive(place: Place) -> None:
    client_id, changed, left, kept = name(), name(), name(), name()
    peer = place.session(5, client_id)
    peer.subscribe_many([(changed, 0), (left, 1), (kept, 1)])
    peer.subscribe(changed, 2, 9)
    peer.unsubscribe(left)
    assert place.count("subscription") == 2
    place.restart()
    peer = place.session(5, client_id, present=True)
    publisher = place(5)
    for topic in (left, changed, kept):
        publisher.publish(topic, topic, 2)
    got = {(one.topic, one.qos, one.prop(SUBSCRIPTION_ID)) for one in (peer.message(), peer.message())}
    assert got == {(changed, 2, 9), (kept, 1, None)}


@pytest.mark.parametrize("version", VERSIONS)
def test_clean_start_ends_the_stored_session(place: Place, version: int) -> None:
    client_id, topic = name(), name()
    peer = place.session(version, client_id)
    peer.subscribe(topic, 1)
    peer.disconnect()
    place(5).publish(topic, b"1", 1)
    place.until(delivery=1, message=1)
    place.restart()
    peer = place(version, client_id)
    assert place.counts() == {}, "its CONNACK came after the commit"
    peer.disconnect()
    place.restart()
    place.session(version, client_id, present=False)


@pytest.mark.parametrize("version", VERSIONS)
def test_sessions_of_a_connection_touch_nothing(place: Place, version: int) -> None:
    topic = name()
    peer, publisher = place(version), place(version)
    peer.subscribe(topic, 2)
    for qos in (0, 1, 2):
        publisher.publish(topic, b"%d" % qos, qos)
        assert peer.message().payload == b"%d" % qos
    peer.unsubscribe(topic)
    peer.disconnect()
    place(version, clean=True, keep_alive=10).disconnect()
    assert place.stat("journal_records") == 0 and place.counts() == {}


@pytest.mark.parametrize("version", VERSIONS)
def test_qos_0_touches_nothing(place: Place, version: int) -> None:
    topic, client_id = name(), name()
    peer = place.session(version, client_id)
    peer.subscribe_many([(topic, 0), (topic + "/1", 1)])
    place.settled()
    before = place.stat("journal_records")
    publisher = place(version)
    publisher.publish(topic, b"to QoS 0", 1)
    publisher.publish(topic + "/1", b"as QoS 0", 0)
    assert {peer.message().payload for _ in range(2)} == {b"to QoS 0", b"as QoS 0"}
    peer.ping()
    place.settled()
    assert place.count("message") == place.count("delivery") == 0
    assert place.stat("journal_records") <= before + 1, "the QoS 1 PUBLISH has a durable receiver"


def test_sessions_expire_while_nobody_runs(place: Place) -> None:
    ids = {expiry: name() for expiry in (100, 10_000, 0xFFFFFFFF)}
    place.stop()
    place.start(limits={"session_expiry": 0xFFFFFFFF})
    for expiry, client_id in ids.items():
        peer = place(5, client_id, clean=False, expiry=expiry)
        peer.subscribe(client_id, 1)
        peer.disconnect()
    publisher = place(5)
    for client_id in ids.values():
        publisher.publish(client_id, b"1", 1)
    place.stop()
    place.let_pass(99)
    place.start()
    assert place.stat("sessions") == 3
    place.stop()
    place.let_pass(2)
    place.start()
    assert place.stat("sessions") == 2
    assert place.counts() == {"session": 2, "subscription": 2, "message": 2, "delivery": 2}
    assert place.session(5, ids[100], present=False)
    place.stop()
    place.let_pass(1_000_000_000)
    place.start()
    place(5, ids[0xFFFFFFFF], clean=False, expiry=0xFFFFFFFF).message(ids[0xFFFFFFFF])
    assert place.query("SELECT client_id FROM session") == [(ids[0xFFFFFFFF].encode(),)]


def test_expiry_goes_on_after_a_restart(place: Place) -> None:
    client_id = name()
    place(5, client_id, clean=False, expiry=100).disconnect()
    place.stop()
    place.let_pass(60)
    place.start()
    place.running.advance_clock(35)
    place.session(5, client_id, present=True, expiry=100).disconnect()
    place.running.advance_clock(95)
    place.restart()
    assert place.stat("sessions") == 1
    place.running.advance_clock(6)
    place.until(session=0)
    assert place.stat("sessions_expired") == 1


def test_after_a_crash_expiry_counts_from_the_start(place: Place) -> None:
    client_id, away = name(), name()
    place(5, away, clean=False, expiry=100).disconnect()
    place(5, client_id, clean=False, expiry=100)
    place.until(session=2)
    place.settled()
    place.running.advance_clock(90)
    assert place.query("SELECT offline_since_ms FROM session WHERE client_id = ?", client_id.encode()) == [(0,)]
    place(5, name(), clean=False, expiry=1000).disconnect()  # so that the store knows the time
    place.settled()
    place.crash()
    place.running.advance_clock(50)
    place.session(5, away, present=False)
    place.session(5, client_id, present=True, expiry=100)


def test_expiry_of_disconnect_and_of_the_next_connect(place: Place) -> None:
    client_id = name()
    place(5, client_id, clean=False, expiry=100).disconnect(0, ((SESSION_EXPIRY, 500),))
    place.stop()
    place.let_pass(400)
    place.start()
    place.session(5, client_id, present=True, expiry=50).disconnect()
    place.stop()
    place.let_pass(60)
    place.start()
    place.session(5, client_id, present=False, expiry=50).disconnect(0, ((SESSION_EXPIRY, 0),))
    place.until(session=0)


def test_a_session_taken_up_without_expiry_ends_with_its_connection(place: Place) -> None:
    client_id, topic = name(), name()
    peer = place.session(5, client_id)
    peer.subscribe(topic, 1)
    peer.disconnect()
    peer = place(5, client_id, clean=False)
    assert peer.connack.session_present  # type: ignore[attr-defined]
    place.settled()
    place.crash()
    place.until(session=0, subscription=0)
    place.session(5, client_id, present=False)


def test_take_over(place: Place) -> None:
    client_id, topic = name(), name()
    first = place.session(5, client_id)
    first.subscribe(topic, 1)
    place.session(5, client_id, present=True)
    first.expect_close()
    place.settled()
    place.crash()
    peer = place.session(5, client_id, present=True)
    place(5).publish(topic, b"1", 1)
    peer.message(topic)


def test_many_sessions_and_subscriptions(make_place: MakePlace) -> None:
    place = make_place()
    ids = [name() for _ in range(60)]
    for client_id in ids:
        peer = place.session(4, client_id)
        peer.subscribe_many([(f"{client_id}/{i}/+", 1) for i in range(40)])
        peer.close()
    place.restart()
    assert (place.stat("sessions"), place.stat("subscriptions")) == (60, 2400)
    publisher = place(5)
    for client_id in ids:
        publisher.publish(f"{client_id}/39/x", client_id, 1)
    for client_id in ids:
        assert place.session(4, client_id, present=True).message().payload == client_id.encode()


def test_fewer_sessions_allowed_than_stored(place: Place) -> None:
    for _ in range(3):
        place.session(5, name()).disconnect()
    place.stop()
    with pytest.raises(OSError, match="more sessions than limits"):
        place.start(limits={"max_sessions": 2})
    place.start(limits={})


def test_first_packets_behind_connect(place: Place) -> None:
    """What comes with a CONNECT whose CONNACK waits is read after it."""
    for _ in range(8):  # on either worker
        client_id, topic = name(), name()
        peer: Peer = place.raw(5)
        place.sessions.add(client_id)
        peer.send(
            connect_packet(client_id, 5, clean=False, expiry=100),
            subscribe_packet([(topic, 1)], 5, packet_id=1),
            publish_packet(topic, b"m" * 5000, 5, qos=1, packet_id=2),
        )
        peer.expect(CONNACK, reason=0)
        peer.await_packet(SUBACK, 1)
        peer.await_packet(PUBACK, 2)
        assert peer.message(topic).payload == b"m" * 5000
