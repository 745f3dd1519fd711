"""Every action in every version, as clients see it."""

from __future__ import annotations

import asyncio

import pytest

from ..rawclient import (
    PUBACK,
    PUBREC,
    SUBACK,
    TOPIC_ALIAS,
    Peer,
    PeerTimeout,
    Will,
    publish_packet,
    subscribe_packet,
)
from .conftest import Guarded, MakeGuarded

VERSIONS = (3, 4, 5)
each_version = pytest.mark.parametrize("version", VERSIONS)

RULES = """
superusers = ["root"]

[[rules]]
deny = "all"
topics = ["secret/#"]

[[rules]]
allow = "all"
topics = ["open/#", "own/%c/#", "home/%u/#"]

[[rules]]
allow = ["subscribe"]
topics = ["#"]
users = ["reader"]

[[rules]]
allow = ["publish"]
topics = ["plain/#"]

[[rules]]
deny = ["retain", "will"]
topics = ["plain/#"]
"""


def quiet(peer: Peer) -> None:
    """Nothing but the answer to a ping comes."""
    peer.ping()
    assert not peer.aside, peer.aside


@each_version
def test_publish(guarded: MakeGuarded, version: int) -> None:
    """Allowed: it arrives. Denied: 5.0 hears 0x87, 3.x gets its acknowledgement, nobody gets the message. [MQTT-3.3.5-2]"""
    here = guarded(RULES)
    root = here.client("root", "root")
    root.subscribe("#", 2)
    mine = here.client("mine", "me", version)
    for topic in ("open/a", "own/mine/x", "home/me/x"):
        for qos in (0, 1, 2):
            mine.publish(topic, b"yes", qos)
    assert [m.topic for m in root.messages(9)] == [t for t in ("open/a", "own/mine/x", "home/me/x") for _ in range(3)]
    reason = 0x87 if version == 5 else 0
    for topic in ("secret/a", "own/other/x", "home/other/x", "elsewhere"):
        mine.publish(topic, b"no", 0)
        first, second = mine.publish(topic, b"no", 1), mine.publish(topic, b"no", 2)
        assert first is not None and second is not None
        assert (first.type, first.reason, second.type, second.reason) == (PUBACK, reason, PUBREC, reason)
    mine.publish("open/end", b"", 1)
    root.message("open/end")
    assert here.stat("denied_publish") == 12


@pytest.mark.parametrize("version", [3, 4])
def test_publish_denied_disconnects(guarded: MakeGuarded, version: int) -> None:
    here = guarded('denied_publish = "disconnect"\n' + RULES)
    old, new = here.client("old", version=version), here.client("new")
    refused = new.publish("secret/a", b"", 1)
    assert refused is not None and refused.reason == 0x87
    old.publish("secret/a", b"", 0)
    old.ping()
    old.send(publish_packet("secret/a", b"", version, qos=1, packet_id=1))
    assert old.expect_close() == []
    quiet(new)


@each_version
def test_retain(guarded: MakeGuarded, version: int) -> None:
    here = guarded(RULES)
    peer = here.client("c", version=version)
    reason = 0x87 if version == 5 else 0
    for topic, allowed in (("plain/a", False), ("open/a", True)):
        got = peer.publish(topic, b"kept", 1, retain=True)
        assert got is not None and got.reason in ((0, 0x10) if allowed else (reason,))
        got = peer.publish(topic, b"not kept", 1)
        assert got is not None and got.reason in (0, 0x10)
    root = here.client("root", "root")
    root.subscribe("#")
    assert [(m.topic, m.payload) for m in (root.message(),)] == [("open/a", b"kept")]
    quiet(root)
    assert here.stat("denied_retain") == 1


@each_version
def test_will(guarded: MakeGuarded, version: int) -> None:
    """A will that is not allowed refuses the CONNECT."""
    here = guarded(RULES)
    refused = 0x87 if version == 5 else 5
    for will in (Will("secret/x"), Will("plain/x"), Will("own/other/w"), Will("plain/x", retain=True)):
        peer = here.peer(version)
        assert peer.connect("c", will=will).reason == refused
        assert peer.expect_close() == []
    assert here.stat("denied_will") == 4
    root = here.client("root", "root")
    root.subscribe("#")
    here.client("c", version=version, will=Will("own/c/w", b"gone")).reset()
    assert root.message("own/c/w").payload == b"gone"


def test_will_is_asked_again_when_it_is_due(guarded: MakeGuarded) -> None:
    here = guarded(RULES)
    root = here.client("root", "root")
    root.subscribe("#")
    peer = here.client("c", will=Will("open/w", b"gone"))
    here.rewrite(RULES.replace('"open/#", ', ""))
    peer.reset()
    here.await_stat("denied_will", 1)
    quiet(root)


@each_version
def test_subscribe(guarded: MakeGuarded, version: int) -> None:
    """The filter must lie inside. 5.0: 0x87; 3.1.1: 0x80; 3.1 acknowledges, for it has no word, and delivers nothing."""
    here = guarded(RULES)
    peer = here.client("c", "me", version)
    refused = {3: 1, 4: 0x80, 5: 0x87}[version]
    filters = ["open/+", "own/c/#", "home/me", "own/#", "+/c", "#", "secret/a", "open"]
    expected = [1, 1, 1, refused, refused, refused, refused, 1]
    packet_id = peer.packet_id()
    peer.send(subscribe_packet([(f, 1) for f in filters], version, packet_id=packet_id))
    assert peer.await_packet(SUBACK, packet_id).reasons == expected
    assert here.stat("denied_subscribe") == 4
    assert here.stat("subscriptions") == 4
    root = here.client("root", "root")
    for topic in ("open/1", "own/c/1", "home/me", "own/d/1", "secret/a", "else", "open"):
        root.publish(topic, b"", 1)
    assert [m.topic for m in peer.messages(4)] == ["open/1", "own/c/1", "home/me", "open"]
    quiet(peer)


@each_version
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_deliveries_of_a_wider_filter(guarded: MakeGuarded, version: int, qos: int) -> None:
    """A filter may be wider than what is delivered: denied messages are kept from it, live and retained."""
    here = guarded(RULES)
    root = here.client("root", "root")
    for topic in ("open/r", "secret/r"):
        root.publish(topic, b"kept", 1, retain=True)
    reader = here.client("r", "reader", version)
    reader.subscribe("#", qos)
    assert reader.message().topic == "open/r"
    for _ in range(3):
        for topic in ("secret/a", "open/a", "else/a"):
            root.publish(topic, b"", qos)
    assert [m.topic for m in reader.messages(6)] == ["open/a", "else/a"] * 3
    quiet(reader)
    assert here.stat("denied_receive") == 4


@each_version
def test_receive_alone(guarded: MakeGuarded, version: int) -> None:
    """A rule on receive is about deliveries, not subscriptions, and comes before what subscribe says."""
    rules = '[[rules]]\nallow = ["subscribe", "publish"]\ntopics = ["#"]\n'
    here = guarded(rules + '[[rules]]\ndeny = ["receive"]\ntopics = ["+/private"]\nclients = ["no*"]\n')
    peers = [here.client(name, version=version) for name in ("nobody", "body")]
    for peer in peers:
        peer.subscribe("#", 1)
    peers[0].publish("a/private", b"", 1)
    peers[0].publish("a/b", b"", 1)
    assert peers[0].message().topic == "a/b"
    assert [m.topic for m in peers[1].messages(2)] == ["a/private", "a/b"]


def test_topic_aliases_are_asked_by_their_topics(guarded: MakeGuarded) -> None:
    """An alias is learnt from a denied PUBLISH too; what it stands for stays denied, and an alias taught anew is asked anew."""
    here = guarded(RULES)
    root, peer = here.client("root", "root"), here.client("c")
    root.subscribe("#")

    def publish(topic: str, alias: int) -> int:
        got = peer.publish(topic, b"", 1, props=((TOPIC_ALIAS, alias),))
        assert got is not None
        return got.reason

    assert [publish("secret/x", 1), publish("", 1), publish("open/x", 2), publish("", 2)] == [0x87, 0x87, 0, 0]
    assert [publish("open/y", 1), publish("", 1), publish("secret/y", 2), publish("", 2)] == [0, 0, 0x87, 0x87]
    assert [m.topic for m in root.messages(4)] == ["open/x", "open/x", "open/y", "open/y"]
    quiet(root)


def test_many_publishers_of_one_topic(guarded: MakeGuarded) -> None:
    """What is kept for one client is not another one's."""
    here = guarded('[[rules]]\nallow = "all"\ntopics = ["t"]\nclients = ["a*"]\n', workers=1)
    peers = [here.client(name) for name in ("a1", "b1", "a2", "b2")]
    for _ in range(3):
        reasons = []
        for peer in peers:
            for topic in ("t", "other", "t"):
                got = peer.publish(topic, b"", 1)
                assert got is not None
                reasons.append(got.reason)
        assert reasons == ([0x10, 0x87, 0x10] + [0x87] * 3) * 2


def test_retain_after_a_plain_publish(guarded: MakeGuarded) -> None:
    """The verdict that is kept of a plain message says nothing of a retained one, and the other way round."""
    here = guarded(RULES)
    peer = here.client("c")
    for _ in range(3):
        for retain in (False, True):
            got = peer.publish("plain/x", b"", 1, retain=retain)
            assert got is not None and got.reason == (0x87 if retain else 0x10)


@each_version
def test_client_id_ownership(guarded: MakeGuarded, version: int) -> None:
    owners = '[[owners]]\nanonymous = true\nclient_ids = ["guest-*"]\n[[owners]]\nusers = ["shop"]\nclient_ids = ["till?"]\n'
    here = guarded('default = "allow"\nclient_ids = ["%u", "%u-*"]\n' + owners)
    refused = 0x85 if version == 5 else 2
    cases = [
        ("anna", "anna", 0),
        ("anna-1", "anna", 0),
        ("annb", "anna", refused),
        ("bob-1", "anna", refused),
        ("guest-1", None, 0),
        ("anna-1", None, refused),
        ("till1", "shop", 0),
        ("till12", "shop", refused),
        ("shop-1", "shop", refused),
        ("x", "*", refused),
    ]
    for client_id, username, reason in cases:
        assert here.peer(version).connect(client_id, username=username).reason == reason, (client_id, username)
    assert here.stat("denied_client_id") == sum(1 for case in cases if case[2])
    if version == 5:  # an id that the broker makes belongs to nobody else
        assert here.peer(5).connect("", username="anna").reason == 0


def test_nobody_elses_session_is_touched(guarded: MakeGuarded) -> None:
    """A refused client id does not take the session over that has it."""
    here = guarded('default = "allow"\nclient_ids = ["%u"]\n')
    anna = here.client("anna", "anna")
    assert here.peer().connect("anna", username="bob").reason == 0x85
    quiet(anna)


def test_listeners(guarded: MakeGuarded) -> None:
    here = guarded(
        '[[rules]]\nallow = "all"\ntopics = ["#"]\nlisteners = ["inside"]\n[[rules]]\nallow = ["publish"]\ntopics = ["in/#"]\n',
        listeners=[{"url": "tcp://127.0.0.1:0", "name": "inside"}, {"url": "tcp://127.0.0.1:0", "name": "outside"}],
    )
    inside, outside = here.client("i"), here.client("o", listener=1)
    inside.subscribe("#", 1)
    assert outside.subscribe_many([("in/#", 0)]) == [0x87]
    for topic, reason in (("x", 0x87), ("in/x", 0)):
        got = outside.publish(topic, b"", 1)
        assert got is not None and got.reason == reason
    assert inside.message().topic == "in/x"


def test_a_name_that_nobody_checked_is_none(guarded: MakeGuarded) -> None:
    """Without an authenticator a user name is a claim: it gives no rights, and none of anonymous clients' are lost by it."""
    rules = '[[rules]]\nallow = "all"\ntopics = ["admin/#"]\nusers = ["admin"]\n'
    rules += '[[rules]]\nallow = "all"\ntopics = ["any/#"]\nanonymous = true\n'
    here = guarded(rules)
    here.broker.stop()
    here.config["auth"].pop("allow")
    here.broker = type(here.broker)(here.config)
    here.broker.start()
    try:
        peer = here.client("c", "admin")
        got = [peer.publish(topic, b"", 1) for topic in ("admin/x", "any/x")]
        assert [one.reason for one in got if one is not None] == [0x87, 0x10]
    finally:
        here.broker.stop()


def test_unsafe_names_are_counted_and_logged(guarded: MakeGuarded, caplog: pytest.LogCaptureFixture) -> None:
    here = guarded('[[rules]]\nallow = "all"\ntopics = ["own/%c/#", "home/%u/#", "open"]\n')
    with caplog.at_level("WARNING", logger="mqttc"):
        for client_id, username in (("a/b", "u"), ("c", "+"), ("#", None)):
            peer = here.client(client_id, username)
            topics = [f"own/{client_id}/x".replace("#", "z"), f"home/{username}/x".replace("+", "z"), "open"]
            got = [peer.publish(topic, b"", 1) for topic in topics]
            reasons = [one.reason for one in got if one is not None]
            assert reasons[2] == 0x10
            if client_id != "c":
                assert reasons[0] == 0x87
            if username != "u":
                assert reasons[1] == 0x87
        here.broker.stop()
    # a user "+" stands in no filter, a client without user meets no %u, a user "u" may use its own
    assert here.stat("unsafe_name_denials") == 3
    assert sum("name unsafe in filters" in record.getMessage() for record in caplog.records) == 3
    assert any("publish denied" in record.getMessage() for record in caplog.records)


def test_the_log_is_bounded(guarded: MakeGuarded, caplog: pytest.LogCaptureFixture) -> None:
    """1st, 2nd, 4th, 8th, ... denial of a session."""
    here = guarded(RULES)
    with caplog.at_level("WARNING", logger="mqttc"):
        peer = here.client("c")
        for _ in range(100):
            peer.publish("secret/x", b"", 1)
        here.broker.stop()
    assert sum("publish denied" in record.getMessage() for record in caplog.records) == 7
    assert here.stat("denied_publish") == 100


def test_shared_subscriptions_are_all_or_nothing(guarded: MakeGuarded) -> None:
    """A group's message that one member may not have would be lost to the others: a filter with anything denied inside is refused."""
    here = guarded(RULES)
    reader = here.client("r", "reader")
    assert reader.subscribe_many([("$share/g/#", 1)]) == [0x87]
    assert reader.subscribe_many([("$share/g/open/#", 1)]) == [1]
    assert reader.subscribe_many([("$share/g/else/+", 1)]) == [1]
    assert reader.subscribe_many([("$share/g/+/x", 1)]) == [0x87]
    here.client("root", "root").publish("open/x", b"", 1)
    assert reader.message().topic == "open/x"


def test_queued_for_a_client_that_is_away(guarded: MakeGuarded) -> None:
    """Its rights are those it came with; what is denied is not queued."""
    here = guarded(RULES)
    reader = here.client("r", "reader", expiry=600)
    reader.subscribe("#", 1)
    reader.disconnect()
    root = here.client("root", "root")
    for topic in ("secret/1", "open/1"):
        root.publish(topic, b"", 1)
    here.await_stat("messages_queued", 1)
    again = here.peer()
    assert again.connect("r", username="reader", clean=False).session_present
    assert again.message().topic == "open/1"


def test_another_user_gets_nothing_of_the_queue(guarded: MakeGuarded) -> None:
    """The client id's session goes on under another user: what waits is looked at by the new rights."""
    here = guarded(RULES)
    reader = here.client("r", "reader", expiry=600)
    reader.subscribe("#", 1)
    reader.disconnect()
    root = here.client("root", "root")
    for topic in ("else/1", "open/1", "else/2"):
        root.publish(topic, b"", 1)
    here.await_stat("messages_queued", 3)
    again = here.peer()
    assert again.connect("r", username="me", clean=False, expiry=600).session_present
    assert again.message().topic == "open/1"
    root.publish("else/3", b"", 1)
    root.publish("open/2", b"", 1)
    assert again.message().topic == "open/2"
    assert here.stat("denied_receive") == 3


def test_no_local_and_identifiers_as_ever(guarded: MakeGuarded) -> None:
    """Both entries of a session with mixed No Local have their verdicts."""
    here = guarded(RULES)
    reader = here.client("r", "reader")
    reader.subscribe("+/x", 1 | 4)
    reader.subscribe("#", 1)
    root = here.client("root", "root")
    for _ in range(2):
        root.publish("secret/x", b"", 1)
        root.publish("open/x", b"", 1)
    reader.publish("open/x", b"", 1)
    assert [m.topic for m in reader.messages(3)] == ["open/x"] * 3
    with pytest.raises(PeerTimeout):
        reader.recv(timeout=0.05)


def test_no_rules_no_rights(guarded: MakeGuarded) -> None:
    here: Guarded = guarded(None)
    peer = here.client("c")
    peer.subscribe("#", 1)
    peer.publish("anything", b"", 1)
    peer.message("anything")
    assert asyncio.run(here.broker.explain("publish", "x", client_id="c")).by == "nothing"
