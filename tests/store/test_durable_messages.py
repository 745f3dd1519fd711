"""Messages over a restart: queued, in flight both ways, retained; packet ids; and that nothing is left of them when they are through."""

from __future__ import annotations

import pytest

from ..rawclient import (
    CONTENT_TYPE,
    MESSAGE_EXPIRY,
    PUBACK,
    PUBCOMP,
    PUBLISH,
    PUBREC,
    PUBREL,
    SUBACK,
    SUBSCRIPTION_ID,
    USER_PROPERTY,
    Packet,
    Peer,
    ack_packet,
    publish_packet,
    subscribe_packet,
)
from .conftest import MakePlace
from .durable import VERSIONS, Place, complete, eventually, fetch, name


def kind(got: Packet) -> tuple[int, int]:
    return got.type, got.packet_id


# ---------------------------------------------------------------------------------------------------- queued


@pytest.mark.parametrize("version", VERSIONS)
def test_queue_survives_in_order(place: Place, version: int) -> None:
    client_id, topic = name(), name()
    peer = place.session(version, client_id)
    peer.subscribe(topic, 2)
    peer.disconnect()
    publisher = place(version)
    wanted = [b"%d" % number * 100 for number in range(30)]
    for number, payload in enumerate(wanted):
        publisher.publish(topic, payload, 1 + number % 2)
    assert (place.count("message"), place.count("delivery")) == (30, 30), "all are acknowledged, so all are in the file"
    place.restart()
    assert place.stat("messages_queued") == 30
    peer = place.session(version, client_id, present=True)
    got = peer.expect(PUBLISH)
    assert (got.payload, got.qos, got.dup) == (wanted[0], 1, False)
    complete(peer, got)
    assert fetch(peer, 29) == wanted[1:]
    place.nothing_waits()


def test_properties_and_identifiers_survive(place: Place) -> None:
    client_id, topic = name(), name()
    peer = place.session(5, client_id)
    peer.subscribe(topic, 2, 3)
    peer.subscribe(topic + "/#", 1, 4)
    peer.disconnect()
    props = ((CONTENT_TYPE, "text/plain"), (USER_PROPERTY, ("a", "1")), (USER_PROPERTY, ("a", "2")), (MESSAGE_EXPIRY, 1000))
    place(5).publish(topic, b"\x00\xff", 2, props=props)
    place.stop()
    place.let_pass(600)
    place.start()
    got = place.session(5, client_id, present=True).message(topic)
    assert (got.payload, got.qos, got.retain) == (b"\x00\xff", 2, False)
    assert got.prop(CONTENT_TYPE) == "text/plain" and got.all_props(USER_PROPERTY) == [("a", "1"), ("a", "2")]
    assert sorted(got.all_props(SUBSCRIPTION_ID)) == [3, 4]
    assert 390 <= got.prop(MESSAGE_EXPIRY) <= 400
    place.nothing_waits()


def test_retain_as_published_survives_in_the_queue(place: Place) -> None:
    client_id, topic = name(), name()
    peer = place.session(5, client_id)
    peer.subscribe(topic, 1 | 8)
    peer.disconnect()
    publisher = place(5)
    publisher.publish(topic, b"1", 1, retain=True)
    publisher.publish(topic, b"2", 1)
    place.restart()
    peer = place.session(5, client_id)
    assert [(one.payload, one.retain) for one in (peer.message(), peer.message())] == [(b"1", True), (b"2", False)]
    peer.publish(topic, b"", 0, retain=True)
    peer.message()


def test_messages_expire_while_nobody_runs(place: Place) -> None:
    client_id, topic = name(), name()
    peer = place.session(5, client_id)
    peer.subscribe(topic, 1)
    peer.disconnect()
    publisher = place(5)
    publisher.publish(topic, b"short", 1, props=((MESSAGE_EXPIRY, 100),))
    publisher.publish(topic, b"long", 1, props=((MESSAGE_EXPIRY, 1000),))
    publisher.publish(topic, b"for good", 1)
    place.stop()
    place.let_pass(200)
    place.start()
    assert place.counts() == {"session": 1, "subscription": 1, "message": 2, "delivery": 2}
    place.running.advance_clock(500)
    place.restart()
    peer = place.session(5, client_id)
    long = peer.message()
    assert long.payload == b"long" and 290 <= long.prop(MESSAGE_EXPIRY) <= 300
    assert peer.message().payload == b"for good"
    place.nothing_waits()


def test_messages_expire_after_a_restart(place: Place) -> None:
    client_id, topic = name(), name()
    peer = place.session(5, client_id)
    peer.subscribe(topic, 1)
    peer.disconnect()
    place(5).publish(topic, b"short", 1, props=((MESSAGE_EXPIRY, 100),))
    place.restart()
    place.running.advance_clock(101)
    peer = place.session(5, client_id)
    place.nothing_waits()
    assert place.stat("dropped_expired") == 1
    peer.ping()
    assert not peer.aside


def test_body_is_stored_once(place: Place) -> None:
    topic, ids = name(), [name() for _ in range(6)]
    for client_id in ids:
        peer = place.session(5, client_id)
        peer.subscribe(topic, 1)
        peer.disconnect()
    place(5).publish(topic, b"m" * 10_000, 1)
    assert (place.count("message"), place.count("delivery")) == (1, 6)
    place.restart()
    for left, client_id in reversed(list(enumerate(ids))):
        assert place.session(5, client_id).message().payload == b"m" * 10_000
        place.until(message=1 if left else 0, delivery=left)


def test_acknowledged_before_the_commit_leaves_no_trace(place: Place) -> None:
    client_id, topic = name(), name()
    peer = place.session(5, client_id)
    peer.subscribe(topic, 1)
    publisher = place(5)
    with place.blocked():
        records = place.stat("journal_records")
        place.session(5, client_id)  # a batch that cannot be committed; the next one grows meanwhile
        eventually(lambda: place.stat("journal_records") > records)
        peer = place.peers[-1]
        publisher.send(*(publish_packet(topic, b"%d" % number, 5, qos=1, packet_id=number) for number in range(1, 41)))
        for number in range(1, 41):
            assert peer.message().payload == b"%d" % number
        peer.ping()
    for number in range(1, 41):
        publisher.expect(PUBACK, packet_id=number)
    place.nothing_waits()
    place.settled()
    assert place.stat("journal_cancelled") == 40


def send_numbered(publisher: Peer, topic: str, count: int) -> None:
    publisher.send(*(publish_packet(topic, b"%d" % number, 5, qos=1, packet_id=number) for number in range(1, count + 1)))
    for number in range(1, count + 1):
        publisher.expect(PUBACK, packet_id=number)


def test_batches_grow_where_deliveries_are_over_at_once(place: Place) -> None:
    topic = name()
    peer = place.session(5, name())
    peer.subscribe(topic, 1)
    publisher = place(5)
    for _ in range(50):
        send_numbered(publisher, topic, 200)
        peer.send(*(ack_packet(PUBACK, peer.expect(PUBLISH).packet_id) for _ in range(200)))
        place.nothing_waits()
        if place.stat("journal_gathers"):
            break
    assert place.stat("journal_gathers") > 0


def queued_topic(place: Place) -> str:
    """A topic whose only subscriber is away."""
    topic = name()
    peer = place.session(5, name())
    peer.subscribe(topic, 1)
    peer.disconnect()
    return topic


def test_a_batch_waits_for_publishers_that_speak_together(place: Place) -> None:
    topic = queued_topic(place)
    publishers = [place(5) for _ in range(10)]
    for number in range(1, 500):
        for publisher in publishers:
            publisher.send(publish_packet(topic, b"together", 5, qos=1, packet_id=number))
        for publisher in publishers:
            publisher.expect(PUBACK, packet_id=number)
        if place.stat("journal_rests"):
            break
    assert place.stat("journal_rests") > 0


def test_no_batch_waits_for_a_publisher_alone(place: Place) -> None:
    topic = queued_topic(place)
    publisher = place(5)
    for number in range(1, 101):
        publisher.send(publish_packet(topic, b"alone", 5, qos=1, packet_id=number))
        publisher.expect(PUBACK, packet_id=number)
        if number == 50:
            before = place.stat("journal_rests")
    assert place.stat("journal_rests") == before


def test_batches_do_not_grow_for_a_queue(place: Place) -> None:
    """Nobody fetches these yet: to wait would save nothing, and cost every publisher time."""
    client_id, topic = name(), name()
    peer = place.session(5, client_id)
    peer.subscribe(topic, 1)
    peer.disconnect()
    publisher = place(5)
    for _ in range(5):
        send_numbered(publisher, topic, 200)
    assert place.stat("messages_queued") == 1000
    assert place.stat("journal_gathers") == 0
    peer = place.session(5, client_id)
    assert len(fetch(peer, 1000)) == 1000
    place.nothing_waits()


# ---------------------------------------------------------------------------------------------------- in flight, to the client


@pytest.mark.parametrize("crash", [False, True], ids=["end", "crash"])
@pytest.mark.parametrize("version", VERSIONS)
def test_sent_and_not_acknowledged(place: Place, version: int, crash: bool) -> None:
    client_id, topic = name(), name()
    peer = place.session(version, client_id)
    peer.subscribe(topic, 2)
    publisher = place(version)
    for number in range(4):
        publisher.publish(topic, b"%d" % number, 1 + number % 2)
    sent = [peer.expect(PUBLISH) for _ in range(4)]
    place.settled()
    (place.crash if crash else place.restart)()
    peer = place.session(version, client_id, present=True)
    again = [peer.expect(PUBLISH) for _ in range(4)]
    assert all(one.dup for one in again)
    assert [(one.payload, one.packet_id, one.qos) for one in again] == [(one.payload, one.packet_id, one.qos) for one in sent]
    place(version).publish(topic, b"new", 2)
    fresh = peer.expect(PUBLISH)
    assert fresh.packet_id not in [one.packet_id for one in sent] and not fresh.dup
    for one in [*again, fresh]:
        complete(peer, one)
    for _ in range(3):
        complete(peer, peer.expect(PUBREL))
    place.nothing_waits()


@pytest.mark.parametrize("crash", [False, True], ids=["end", "crash"])
@pytest.mark.parametrize("version", VERSIONS)
def test_released_and_not_complete(place: Place, version: int, crash: bool) -> None:
    client_id, topic = name(), name()
    peer = place.session(version, client_id)
    peer.subscribe(topic, 2)
    publisher = place(version)
    publisher.publish(topic, b"1", 2)
    publisher.publish(topic, b"2", 2)
    first, second = peer.expect(PUBLISH), peer.expect(PUBLISH)
    peer.send(ack_packet(PUBREC, first.packet_id))
    peer.expect(PUBREL, packet_id=first.packet_id)
    assert place.query("SELECT state, packet_id FROM delivery ORDER BY packet_id") == [(2, first.packet_id), (1, second.packet_id)]
    assert place.count("message") == 1, "the client has the first one"
    (place.crash if crash else place.restart)()
    peer = place.session(version, client_id, present=True)
    assert {kind(peer.recv()), kind(peer.recv())} == {(PUBREL, first.packet_id), (PUBLISH, second.packet_id)}
    publisher = place(version)
    publisher.publish(topic, b"3", 2)
    third = peer.expect(PUBLISH)
    assert third.packet_id not in (first.packet_id, second.packet_id)
    peer.send(ack_packet(PUBCOMP, first.packet_id))
    for one in (second, third):
        peer.send(ack_packet(PUBREC, one.packet_id))
        complete(peer, peer.expect(PUBREL, packet_id=one.packet_id))
    place.nothing_waits()


def test_packet_id_is_in_the_file_before_it_is_sent(place: Place) -> None:
    client_id, topic = name(), name()
    peer = place.session(5, client_id)
    peer.subscribe(topic, 2)
    publisher = place(5)
    for _ in range(20):
        publisher.send(publish_packet(topic, b"m", 5, qos=2, packet_id=publisher.packet_id()))
        got = peer.expect(PUBLISH)
        assert place.query("SELECT state, packet_id FROM delivery") == [(1, got.packet_id)]
        peer.send(ack_packet(PUBREC, got.packet_id))
        peer.expect(PUBREL)
        assert place.query("SELECT state, packet_id FROM delivery") == [(2, got.packet_id)]
        peer.send(ack_packet(PUBCOMP, got.packet_id))
        place.nothing_waits()


def test_given_up_by_the_client(place: Place) -> None:
    """PUBACK and PUBREC with a failure end the delivery; a second PUBREC changes nothing."""
    client_id, topic = name(), name()
    peer = place.session(5, client_id)
    peer.subscribe(topic, 2)
    publisher = place(5)
    for qos in (1, 2, 2):
        publisher.publish(topic, b"m", qos)
    one, two, three = (peer.expect(PUBLISH) for _ in range(3))
    peer.send(ack_packet(PUBACK, one.packet_id, 0x80), ack_packet(PUBREC, two.packet_id, 0x80))
    place.until(message=1, delivery=1)
    for _ in range(3):
        peer.send(ack_packet(PUBREC, three.packet_id))
        peer.expect(PUBREL, packet_id=three.packet_id)
    place.until(message=0, delivery=1)
    peer.send(ack_packet(PUBCOMP, three.packet_id))
    place.nothing_waits()


# ---------------------------------------------------------------------------------------------------- in flight, from the client


@pytest.mark.parametrize("crash", [False, True], ids=["end", "crash"])
@pytest.mark.parametrize("version", VERSIONS)
def test_inbound_qos_2_id_is_kept(place: Place, version: int, crash: bool) -> None:
    client_id, receiver, topic = name(), name(), name()
    peer = place.session(version, receiver)
    peer.subscribe(topic, 2)
    publisher = place.session(version, client_id)
    publisher.send(publish_packet(topic, b"once", version, qos=2, packet_id=77))
    publisher.expect(PUBREC, packet_id=77)
    assert place.query("SELECT packet_id FROM inbound") == [(77,)]
    complete(peer, peer.expect(PUBLISH))
    complete(peer, peer.expect(PUBREL))
    place.nothing_waits()
    (place.crash if crash else place.restart)()
    peer = place.session(version, receiver)
    publisher = place.session(version, client_id, present=True)
    publisher.send(publish_packet(topic, b"once", version, qos=2, packet_id=77, dup=True))
    publisher.expect(PUBREC, packet_id=77)
    publisher.send(ack_packet(PUBREL, 77))
    publisher.expect(PUBCOMP, packet_id=77, reason=0)
    assert place.count("inbound") == 0, "PUBCOMP came after the commit"
    publisher.publish(topic, b"new", 2, packet_id=77)
    assert peer.message().payload == b"new"
    place.nothing_waits()


def test_replies_that_rest_on_nothing_new(place: Place) -> None:
    """What was committed before, or changes nothing, is answered although nothing comes to the journal."""
    client_id, topic = name(), name()
    peer = place.session(5, client_id)
    for _ in range(3):
        peer.send(publish_packet(topic, b"m", 5, qos=2, packet_id=5))
        peer.expect(PUBREC, packet_id=5)
        place.settled()
    peer.send(ack_packet(PUBREL, 5))
    peer.expect(PUBCOMP, packet_id=5, reason=0)
    peer.send(ack_packet(PUBREL, 5))
    peer.expect(PUBCOMP, packet_id=5, reason=0x92)
    assert peer.subscribe_many([("a/#/b", 0)]) == [0x8F]
    assert peer.unsubscribe("never").reasons == [0x11]


def test_id_that_is_used_again_at_once(place: Place) -> None:
    """PUBREL and a PUBLISH with the same id in one segment: the client does not wait for PUBCOMP, the file has the new one all the same."""
    peer = place.session(5, name())
    peer.send(publish_packet("a", b"1", 5, qos=2, packet_id=9))
    peer.expect(PUBREC)
    peer.send(ack_packet(PUBREL, 9), publish_packet("a", b"2", 5, qos=2, packet_id=9))
    peer.expect(PUBCOMP)
    peer.expect(PUBREC)
    assert place.query("SELECT packet_id FROM inbound") == [(9,)]
    peer.send(ack_packet(PUBREL, 9))
    peer.expect(PUBCOMP)


def test_qos_2_is_offered_after_its_commit(place: Place) -> None:
    topic = name()
    receiver = place(5)
    receiver.subscribe(topic, 2)
    publisher = place.session(5, name())
    with place.blocked():
        publisher.send(publish_packet(topic, b"m", 5, qos=2, packet_id=1))
        publisher.ping()
        receiver.ping()
        assert not receiver.aside and not publisher.aside
    publisher.expect(PUBREC, packet_id=1)
    receiver.message(topic)
    publisher.send(ack_packet(PUBREL, 1))
    publisher.expect(PUBCOMP)


# ---------------------------------------------------------------------------------------------------- one message, several ways


@pytest.mark.parametrize("qos", [1, 2])
def test_subscribed_directly_and_in_groups(place: Place, qos: int) -> None:
    """One session gets one message three times; each of them has a state of its own."""
    client_id, topic = name(), name()
    peer = place.session(5, client_id)
    peer.subscribe(topic, qos)
    peer.subscribe(f"$share/a/{topic}", qos)
    peer.subscribe(f"$share/b/{topic}", qos)
    publisher = place(5)
    publisher.publish(topic, b"m", qos)
    sent = [peer.expect(PUBLISH) for _ in range(3)]
    assert len({one.packet_id for one in sent}) == 3
    publisher.publish(topic + "/other", b"the journal goes on", qos)
    place.settled()
    assert place.stat("journal_failing") == 0
    assert (place.count("message"), place.count("delivery")) == (1, 3)
    if qos == 2:
        peer.send(ack_packet(PUBREC, sent[1].packet_id))
        peer.expect(PUBREL, packet_id=sent[1].packet_id)
    place.restart()
    peer = place.session(5, client_id)
    again = [peer.recv() for _ in range(3)]
    if qos == 2:
        assert {kind(one) for one in again} == {(PUBLISH, sent[0].packet_id), (PUBREL, sent[1].packet_id), (PUBLISH, sent[2].packet_id)}
    for one in again:
        complete(peer, one)
    if qos == 2:
        complete(peer, peer.expect(PUBREL))
        complete(peer, peer.expect(PUBREL))
    place.nothing_waits()


def test_sessions_that_end_take_their_rows_along(place: Place) -> None:
    topic, ids = name(), [name() for _ in range(4)]
    for client_id in ids:
        peer = place.session(5, client_id)
        peer.subscribe_many([(topic, 2), (f"$share/g/{topic}", 2)])
    publisher = place(5)
    for qos in (1, 2):
        publisher.publish(topic, b"m", qos)
    place.restart()
    place(5, name()).publish(topic, b"m", 1)
    for client_id in ids:
        place(5, client_id)
    place.until(message=0, delivery=0, session=0, subscription=0, share_group=0)


def test_publishing_while_sessions_end(place: Place) -> None:
    """Messages that are on their way to a session, or to a group, when it ends leave nothing in the file."""
    topic, client_id = name(), name()
    publisher = place(5)
    for round_number in range(40):
        peer = place.session(5, client_id)
        peer.subscribe_many([(topic, 1), (f"$share/g/{topic}", 1)])
        peer.close()
        publisher.send(*(publish_packet(topic, b"m", 5, qos=1, packet_id=1 + round_number * 5 + n) for n in range(5)))
        place(5, client_id).close()
    for _ in range(200):
        publisher.expect(PUBACK)
    place.nothing_waits()
    place.until(share_group=0)


# ---------------------------------------------------------------------------------------------------- retained


@pytest.mark.parametrize("version", VERSIONS)
def test_retained_survive(place: Place, version: int) -> None:
    topic = name()
    publisher = place(version)
    for qos in (0, 1, 2):
        publisher.publish(f"{topic}/{qos}", b"%d" % qos, qos, retain=True)
    publisher.publish(f"{topic}/gone", b"x", 1, retain=True)
    publisher.publish(f"{topic}/new", b"old", 1, retain=True)
    publisher.publish(f"{topic}/new", b"new", 1, retain=True)
    publisher.publish(f"{topic}/gone", b"", 1, retain=True)
    assert place.count("retained") == 4 and place.count("message") == 0
    place.restart()
    peer = place(version)
    peer.subscribe(f"{topic}/#", 2)
    got = sorted((peer.message() for _ in range(4)), key=lambda one: one.topic)
    assert [(one.topic.rpartition("/")[2], one.payload, one.qos, one.retain) for one in got] == [
        ("0", b"0", 0, True),
        ("1", b"1", 1, True),
        ("2", b"2", 2, True),
        ("new", b"new", 1, True),
    ]
    for one in got:
        place(version).publish(one.topic, b"", 1, retain=True)
    assert place.count("retained") == 0
    place.restart()
    assert place.stat("retained") == 0


def test_retained_expire_over_a_restart(place: Place) -> None:
    topic = name()
    publisher = place(5)
    publisher.publish(topic + "/1", b"m", 1, retain=True, props=((MESSAGE_EXPIRY, 100), (CONTENT_TYPE, "x")))
    publisher.publish(topic + "/2", b"m", 0, retain=True, props=((MESSAGE_EXPIRY, 1000),))
    place.stop()
    place.let_pass(300)
    place.start()
    assert (place.count("retained"), place.stat("retained")) == (1, 1)
    place.running.advance_clock(300)
    peer = place(5)
    peer.subscribe(topic + "/#", 1)
    got = peer.message(topic + "/2")
    assert 390 <= got.prop(MESSAGE_EXPIRY) <= 400
    place.running.advance_clock(500)
    place(5).publish(topic + "/3", b"m", 1, retain=True)
    place.until(retained=1)  # what has expired leaves the file while the broker runs
    assert place.query("SELECT topic FROM retained") == [((topic + "/3").encode(),)]


def test_retained_changes_by_many_at_once(place: Place) -> None:
    """Sets and removals of a few topics from all workers: the file has in the end what subscribers are told."""
    topic = name()
    publishers = [place(5) for _ in range(6)]
    for round_number in range(60):
        for number, publisher in enumerate(publishers):
            where = f"{topic}/{(round_number + number) % 3}"
            payload = b"" if (round_number + number) % 2 else b"%d" % round_number
            publisher.send(publish_packet(where, payload, 5, qos=1, retain=True, packet_id=round_number + 1))
    for publisher in publishers:
        for _ in range(60):
            publisher.expect(PUBACK)
    there = {bytes(row[0]).decode(): bytes(row[1]) for row in place.query("SELECT topic, payload FROM retained")}
    peer = place(5)
    peer.subscribe(topic + "/+", 0)
    peer.subscribe(topic + "/end", 0)
    publishers[0].publish(topic + "/end", b"", 0)
    told = {one.topic: one.payload for one in peer.messages_until(topic + "/end")}
    assert there == told


@pytest.mark.parametrize("version", VERSIONS)
def test_hand_out_goes_on_after_a_crash(place: Place, version: int) -> None:
    """What was due to a new subscription is due still; QoS 2 keeps its packet ids, so that no id stands for two messages."""
    topic, client_id = name(), name()
    publisher = place(version)
    for number in range(10):
        publisher.publish(f"{topic}/{number}", b"%d" % number, 2, retain=True)
    peer = place.session(version, client_id)
    peer.subscribe(topic + "/#", 2)
    sent = [peer.expect(PUBLISH) for _ in range(10)]
    assert all(one.retain for one in sent)
    for one in sent[:5]:
        peer.send(ack_packet(PUBREC, one.packet_id))
        peer.expect(PUBREL)
    place.settled()
    place.crash()
    peer = place.session(version, client_id, present=True)
    got: dict[int, bytes] = {}
    released: set[int] = set()
    while len(released) < 5 or len(got) < 5:
        one = peer.recv()
        if one.type == PUBREL:
            released.add(one.packet_id)
        else:
            assert got.setdefault(one.packet_id, one.payload) == one.payload
    assert {one.packet_id for one in sent[:5]} == released
    assert {(one.packet_id, one.payload) for one in sent[5:]} <= set(got.items())
    assert not released & set(got), "an id that the client may hold is not given to another message"
    for one in sent:
        place(version).publish(one.topic, b"", 0, retain=True)


def test_retained_come_after_suback(place: Place) -> None:
    topic = name()
    place(5).publish(topic, b"m", 1, retain=True)
    peer = place.session(5, name())
    with place.blocked():
        peer.send(subscribe_packet([(topic, 1)], 5, packet_id=3))
        peer.ping()
        assert not peer.aside
    peer.expect(SUBACK, packet_id=3)
    peer.message(topic)
    peer.publish(topic, b"", 1, retain=True)
    peer.message(topic)


def test_fewer_retained_allowed_than_stored(make_place: MakePlace) -> None:
    place = make_place()
    publisher = place(5)
    for number in range(5):
        publisher.publish(f"r/{number}", b"m", 1, retain=True)
    place.restart(limits={"max_retained_messages": 3})
    assert (place.stat("retained"), place.stat("dropped_retained_limit"), place.count("retained")) == (3, 2, 5)
    place.restart(limits={})
    assert place.stat("retained") == 5
