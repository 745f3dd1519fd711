"""CONNECT and CONNACK: what is accepted, what is refused and how, client identifiers, the first packets of a connection."""

from __future__ import annotations

import contextlib

import pytest

from ..rawclient import (
    ALIAS_MAXIMUM,
    ASSIGNED_ID,
    AUTH,
    AUTH_METHOD,
    CONNACK,
    DISCONNECT,
    MAXIMUM_PACKET_SIZE,
    MAXIMUM_QOS,
    PING,
    PINGRESP,
    REASON_STRING,
    RECEIVE_MAXIMUM,
    REQUEST_RESPONSE,
    RESPONSE_INFO,
    RETAIN_AVAILABLE,
    SERVER_KEEP_ALIVE,
    SERVER_REFERENCE,
    SESSION_EXPIRY,
    SHARED_AVAILABLE,
    SUBACK,
    SUBSCRIPTION_ID,
    SUBSCRIPTION_ID_AVAILABLE,
    TOPIC_ALIAS,
    USER_PROPERTY,
    WILDCARD_AVAILABLE,
    PeerTimeout,
    Will,
    connect_packet,
    publish_packet,
    subscribe_packet,
)
from .conftest import Clients, MakeBroker
from .statements import each_version, spec

pytestmark = pytest.mark.transport

BEFORE_BYTES = pytest.mark.not_over("quic", reason="a stream begins with its first byte; the connection has a time limit of its own")


@spec("3.1.1", "MQTT-3.1.4-4", "MQTT-2.2.2-1", "MQTT-7.1.1-1", "MQTT-7.0.0-2")
def test_connect_311_is_acknowledged(clients: Clients) -> None:
    peer = clients.raw(4)
    peer.send("10 0E 00 04 4D 51 54 54 04 02 00 3C 00 02 63 31")
    assert peer.recv().raw.hex() == "20020000"
    peer.send(PING)
    assert peer.recv().raw.hex() == "d000"


@spec("5", "MQTT-3.1.4-5", "MQTT-2.1.3-1", "MQTT-2.2.2-1", "MQTT-4.2.0-1", "MQTT-3.2.2-1", "MQTT-3.2.2-8")
def test_connect_5_is_acknowledged(clients: Clients) -> None:
    peer = clients.raw(5)
    peer.send("10 0F 00 04 4D 51 54 54 05 02 00 3C 00 00 02 63 31")
    connack = peer.expect(CONNACK)
    assert connack.raw[0] == 0x20
    assert connack.raw[2:4] == b"\0\0"
    peer.send(PING)
    assert peer.recv().raw.hex() == "d000"


@spec("5", "MQTT-3.1.2-28", "MQTT-4.12.0-6", "MQTT-3.2.2-8")
def test_connack_5_properties(clients: Clients) -> None:
    """Only announced when due, with values in their ranges."""
    peer = clients(5, username="u", password=b"p")
    connack = peer.connack
    for absent in (RESPONSE_INFO, AUTH_METHOD, ASSIGNED_ID):
        assert connack.prop(absent) is None
    assert connack.prop(MAXIMUM_QOS, 0) in (0, 1)
    assert connack.prop(RECEIVE_MAXIMUM, 1) > 0
    assert connack.prop(MAXIMUM_PACKET_SIZE, 1) > 0
    for flag in (RETAIN_AVAILABLE, WILDCARD_AVAILABLE, SUBSCRIPTION_ID_AVAILABLE, SHARED_AVAILABLE):
        assert connack.prop(flag, 1) in (0, 1)
    asked = clients(5, props=((REQUEST_RESPONSE, 1),)).connack
    assert asked.reason == 0
    assert clients(5, props=((REQUEST_RESPONSE, 0),)).connack.prop(RESPONSE_INFO) is None


@pytest.mark.parametrize("level", [0, 2, 3, 6, 127, 255])
@spec("3.1.1", "MQTT-3.1.2-2", "MQTT-3.2.2-5", "MQTT-3.2.2-4", "MQTT-3.2.2-6")
@spec("5", "MQTT-3.1.2-2")
def test_unknown_protocol_level_is_refused(clients: Clients, level: int) -> None:
    """CONNACK 0x01 in the form of 3.1.1 or 0x84 in that of 5, then the end."""
    peer = clients.raw(5)
    peer.send(connect_packet("c1", 4, level=level) if level < 6 else connect_packet("c1", 5, level=level))
    got = peer.expect_close()
    assert len(got) == 1
    assert got[0].raw.hex() == "20020001" or (got[0].raw[0] == 0x20 and got[0].raw[2:4] == b"\0\x84")


@each_version
@spec("3.1.1", "MQTT-3.1.0-2", "MQTT-3.1.2-8")
@spec("5", "MQTT-3.1.0-2", "MQTT-3.2.0-2", "MQTT-3.1.2-8")
def test_second_connect_ends_the_connection(clients: Clients, name: str, version: int) -> None:
    watcher = clients(version)
    watcher.subscribe(f"{name}/w")
    peer = clients(version, name, will=Will(f"{name}/w", b"gone"))
    peer.send(connect_packet(name, version))
    got = peer.expect_close()
    assert [p.type for p in got] in ([], [DISCONNECT] if version == 5 else [])
    assert all(p.reason == 0x82 for p in got)
    assert watcher.message(f"{name}/w").payload == b"gone"


@each_version
@spec("3.1.1", "MQTT-3.1.3-5")
@spec("5", "MQTT-3.1.3-5")
@pytest.mark.parametrize("client_id", ["q", "0123456789abcdefghijklm", "ABCXYZ0189", "nopqrstuvwxyzABCDEFGHIJ", "KLMNOPQRSTUVWXYZ"])
def test_plain_client_ids_are_accepted(clients: Clients, version: int, client_id: str) -> None:
    clients(version, client_id).ping()


@spec("3.1.1", "MQTT-3.1.3-6")
def test_empty_client_id_311(clients: Clients, name: str) -> None:
    """Each gets an identity of its own: neither takes the other over, and messages reach both."""
    first, second = clients(4, ""), clients(4, "")
    assert first.connack.raw.hex() == second.connack.raw.hex() == "20020000"
    for peer in (first, second):
        peer.subscribe(name, 1)
    second.publish(name, b"1", 1)
    for peer in (first, second):
        assert peer.message(name).payload == b"1"
        peer.ping()


@spec("5", "MQTT-3.1.3-6", "MQTT-3.1.3-7", "MQTT-3.2.2-16")
def test_empty_client_id_5(clients: Clients) -> None:
    peers = [clients(5, "", expiry=60) for _ in range(30)]
    assigned = [p.connack.prop(ASSIGNED_ID) for p in peers]
    assert all(assigned)
    assert len(set(assigned)) == 30
    for peer in peers:
        peer.ping()
    peers[0].subscribe("assigned/+", 1)
    peers[0].disconnect()
    again = clients.session(5, assigned[0], present=True)
    assert again.connack.prop(ASSIGNED_ID) is None
    unclean = clients(5, "", clean=False, expiry=60)
    assert not unclean.connack.session_present
    assert unclean.connack.prop(ASSIGNED_ID) not in (None, "", *assigned)


@spec("3.1.1", "MQTT-3.1.3-8", "MQTT-3.1.3-9", "MQTT-3.2.2-5", "MQTT-3.2.2-4")
def test_empty_client_id_with_clean_session_0(clients: Clients) -> None:
    peer = clients.raw(4)
    peer.send("10 0C 00 04 4D 51 54 54 04 00 00 3C 00 00")
    assert [p.raw.hex() for p in peer.expect_close()] == ["20020002"]


@spec("5", "MQTT-3.1.3-8")
def test_client_id_that_is_too_long_or_fine(clients: Clients) -> None:
    """An identifier of any length is either served or refused with 0x85."""
    peer = clients.raw(5)
    peer.send(connect_packet("L" * 65535, 5))
    connack = peer.expect(CONNACK)
    if connack.reason:
        assert connack.reason in (0x85, 0x95)
        assert peer.expect_close() == []
    else:
        peer.ping()


@each_version
@spec("3.1.1", "MQTT-3.1.4-5")
@spec("5", "MQTT-3.1.4-6", "MQTT-3.14.0-1", "MQTT-3.2.2-7")
def test_nothing_is_done_after_a_refusal(clients: Clients, name: str, version: int) -> None:
    """The packets behind a refused CONNECT in one segment have no effect."""
    refused = connect_packet("", 4, clean=False) if version == 4 else connect_packet("c", 5, props=((AUTH_METHOD, "none such"),))
    watcher = clients(version)
    watcher.subscribe(f"{name}/#", 0)
    peer = clients.raw(version)
    peer.send(
        refused,
        publish_packet(f"{name}/a", b"x", version, retain=True),
        subscribe_packet([(f"{name}/#", 0)], version),
        publish_packet(f"{name}/b", b"x", version, qos=1),
        PING,
    )
    got = peer.expect_close()
    assert [p.type for p in got] in ([CONNACK], [])
    assert clients.drain(watcher, watcher) == []
    late = clients(version)
    late.subscribe(f"{name}/#", 0)
    assert clients.drain(late, watcher) == []


@each_version
@spec("3.1.1", "MQTT-3.1.4-5", "MQTT-3.2.2-5", "MQTT-3.2.2-4", "MQTT-3.2.2-6")
@spec("5", "MQTT-3.1.4-2", "MQTT-3.1.4-6", "MQTT-3.2.2-6", "MQTT-3.2.2-7", "MQTT-3.2.2-8")
def test_not_authorized(clients: Clients, make_broker: MakeBroker, version: int) -> None:
    broker = make_broker(auth={"anonymous": False})
    peer = clients.raw(version, broker)
    peer.send(connect_packet("c1", version, clean=False), subscribe_packet([("a", 0)], version), PING)
    got = peer.expect_close()
    assert len(got) == 1
    assert got[0].type == CONNACK
    assert got[0].reason in ((0x86, 0x87) if version == 5 else (4, 5))
    assert not got[0].session_present


@spec("5", "MQTT-3.2.2-19", "MQTT-3.2.2-20", "MQTT-3.2.2-7")
def test_refusal_keeps_to_maximum_packet_size(clients: Clients) -> None:
    """A CONNACK that says no, to a client that can take no more than the bare one."""
    peer = clients.raw(5)
    peer.send(connect_packet("c1", 5, props=((AUTH_METHOD, "X"), (MAXIMUM_PACKET_SIZE, 5))))
    for got in peer.expect_close():
        assert got.type == CONNACK
        assert len(got.raw) <= 5
        assert got.prop(REASON_STRING) is None
        assert got.prop(USER_PROPERTY) is None


@spec("5", "MQTT-3.1.2-24", "MQTT-3.2.2-19", "MQTT-3.2.2-20")
def test_connack_above_maximum_packet_size(clients: Clients) -> None:
    """Not even CONNACK may be longer than the client allows: its properties fit, or the connection ends."""
    for limit in (5, 8, 20, 64):
        peer = clients.raw(5)
        peer.send(connect_packet("", 5, props=((MAXIMUM_PACKET_SIZE, limit),)), "E000")
        for got in peer.expect_close():
            assert len(got.raw) <= limit


@spec("5", "MQTT-4.12.0-1", "MQTT-4.12.0-2", "MQTT-4.12.0-4", "MQTT-3.15.2-2", "MQTT-3.15.2-3", "MQTT-3.15.2-1")
@spec("5", "MQTT-4.12.0-5", "MQTT-3.2.0-1")
def test_authentication_method(clients: Clients) -> None:
    """An unknown method is refused with 0x8C or 0x87; a known one goes on with AUTH 0x18 and the same method."""
    peer = clients.raw(5)
    peer.send(connect_packet("c1", 5, props=((AUTH_METHOD, "X"), (MAXIMUM_PACKET_SIZE, 40))))
    got = peer.recv()
    if got.type == AUTH:
        assert got.reason == 0x18
        assert got.prop(AUTH_METHOD) == "X"
        assert len(got.raw) <= 40
        peer.send("F0 06 18 04 15 00 01 59")  # another method
        end = peer.expect_close()
        assert [p.type for p in end] in ([], [CONNACK])
        assert all(p.reason in (0x82, 0x8C, 0x87) for p in end)
    else:
        assert got.type == CONNACK
        assert got.reason in (0x8C, 0x87)
        assert peer.expect_close() == []


@spec("5", "MQTT-4.12.0-3", "MQTT-3.1.2-30", "MQTT-3.14.0-1")
def test_other_packets_during_authentication(clients: Clients, name: str) -> None:
    watcher = clients(5)
    watcher.subscribe(name)
    peer = clients.raw(5)
    peer.send(connect_packet(name, 5, props=((AUTH_METHOD, "X"),)), publish_packet(name, b"x", 5))
    got = peer.expect_close()
    assert all(p.type in (CONNACK, AUTH) for p in got)
    assert [p for p in got if p.type == CONNACK and p.reason == 0] == []
    assert clients.drain(watcher, clients(5, name)) == []


@spec("5", "MQTT-4.12.1-1", "MQTT-4.12.1-2", "MQTT-4.12.0-7", "MQTT-4.12.0-6", "MQTT-3.2.0-2")
def test_reauthentication_without_method(clients: Clients, name: str) -> None:
    """AUTH on a connection that named no method is a Protocol Error; it ends as abnormally as any other."""
    watcher = clients(5)
    watcher.subscribe(f"{name}/w")
    peer = clients(5, name, will=Will(f"{name}/w", b"gone"))
    peer.send("F0 06 19 04 15 00 01 58")
    got = peer.expect_close()
    assert [p.type for p in got] in ([], [DISCONNECT])
    assert all(p.reason in (0x82, 0x8C, 0x87) for p in got)
    assert watcher.message().payload == b"gone"


@each_version
@spec("3.1.1", "MQTT-3.2.0-1")
@spec("5", "MQTT-3.2.0-1")
def test_connack_comes_first(clients: Clients, name: str, version: int) -> None:
    """Even when a session with queued messages is resumed and packets follow CONNECT in the same segment."""
    clients.session(version, name).subscribe(f"{name}/q", 1)
    publisher = clients(version)
    clients.made[0].disconnect()
    for i in range(20):
        publisher.publish(f"{name}/q", str(i), 1)
    peer = clients.raw(version)
    peer.send(connect_packet(name, version, clean=False, expiry=60), subscribe_packet([(f"{name}/s", 0)], version, packet_id=9), PING)
    assert peer.recv().type == CONNACK
    peer.await_packet(SUBACK, 9)
    peer.await_packet(PINGRESP)
    assert [p.payload for p in peer.messages(20)] == [str(i).encode() for i in range(20)]


@each_version
@spec("3.1.1", "MQTT-3.1.3-1")
@spec("5", "MQTT-3.1.3-1", "MQTT-3.1.2-19")
def test_payload_fields_in_order(clients: Clients, name: str, version: int) -> None:
    """All fields at once: the will's and the credentials' fields are not mixed up."""
    watcher = clients(version)
    watcher.subscribe(f"{name}/will")
    peer = clients(
        version, name, will=Will(f"{name}/will", b"payload", props=((USER_PROPERTY, ("k", "v")),)), username="user", password=b"pass"
    )
    peer.drop()
    got = watcher.message(f"{name}/will")
    assert got.payload == b"payload"
    if version == 5:
        assert got.all_props(USER_PROPERTY) == [("k", "v")]


@spec("3.1.1", "MQTT-3.1.3-1")
def test_the_standard_example_of_all_fields(clients: Clients) -> None:
    peer = clients.raw(4)
    peer.send("10 1A 00 04 4D 51 54 54 04 C6 00 3C 00 02 63 31 00 01 77 00 01 78 00 01 75 00 01 70")
    assert peer.recv().raw.hex() == "20020000"


@spec("5", "MQTT-3.1.2-19", "MQTT-3.1.2-17")
def test_password_without_user_name_is_legal_in_5(clients: Clients) -> None:
    peer = clients.raw(5)
    peer.send("10 12 00 04 4D 51 54 54 05 42 00 3C 00 00 02 63 31 00 01 70")
    assert peer.expect(CONNACK).reason == 0


@each_version
@pytest.mark.parametrize("qos", [0, 1, 2])
@spec("3.1.1", "MQTT-3.1.2-14", "MQTT-3.1.2-9")
@spec("5", "MQTT-3.1.2-12", "MQTT-3.1.2-9")
def test_will_qos_values(clients: Clients, name: str, version: int, qos: int) -> None:
    """QoS 0, 1 and 2 are accepted and kept; a will without payload is legal."""
    watcher = clients(version)
    watcher.subscribe(f"{name}/w", 2)
    clients(version, name, will=Will(f"{name}/w", b"", qos)).drop()
    got = watcher.message(f"{name}/w")
    assert (got.payload, got.qos) == (b"", qos)


@each_version
@spec("3.1.1", "MQTT-2.3.1-7", "MQTT-3.12.4-1")
@spec("5", "MQTT-2.2.1-6", "MQTT-3.12.4-1")
def test_ten_pings(clients: Clients, version: int) -> None:
    peer = clients(version)
    peer.send(PING * 10)
    for _ in range(10):
        assert peer.recv().raw.hex() == "d000"
    peer.disconnect()


@spec("5", "MQTT-3.2.2-9", "MQTT-3.2.2-10", "MQTT-3.2.2-11", "MQTT-3.2.2-12")
@pytest.mark.parametrize("maximum", [0, 1])
def test_maximum_qos(clients: Clients, make_broker: MakeBroker, name: str, maximum: int) -> None:
    broker = make_broker(listener={"maximum_qos": maximum})
    peer = clients(5, broker=broker)
    assert peer.connack.prop(MAXIMUM_QOS) == maximum
    codes = peer.subscribe_many([(name, 2), (f"{name}/1", 1), (f"{name}/0", 0)])
    assert codes == [min(2, maximum), min(1, maximum), 0]
    peer.publish(name, b"ok", maximum)
    assert peer.message(name).qos == maximum
    peer.send(publish_packet(name, b"no", 5, qos=maximum + 1, packet_id=99))
    end = peer.expect_close()
    assert [(p.type, p.reason) for p in end] in ([], [(DISCONNECT, 0x9B)])
    refused = clients.raw(5, broker)
    refused.send(connect_packet("w", 5, will=Will("w", qos=maximum + 1)))
    end = refused.expect_close()
    assert [(p.type, p.reason) for p in end] in ([], [(CONNACK, 0x9B)])
    clients(5, "w", broker=broker, will=Will("w", qos=maximum)).disconnect()


@spec("5", "MQTT-3.2.2-9")
def test_full_qos_is_not_announced(clients: Clients) -> None:
    assert clients(5).connack.prop(MAXIMUM_QOS) is None


@spec("3.1.1", "MQTT-4.8.0-1", "MQTT-3.8.4-6")
def test_maximum_qos_of_the_listener_for_311(clients: Clients, make_broker: MakeBroker, name: str) -> None:
    """3.1.1 has no way to be told: the grant is lowered, a publication above it ends the connection or is taken lower."""
    broker = make_broker(listener={"maximum_qos": 1})
    peer = clients(4, broker=broker)
    assert peer.subscribe_many([(name, 2)]) == [1]
    peer.publish(name, b"ok", 1)
    assert peer.message(name).qos == 1


@spec("5", "MQTT-3.2.2-13", "MQTT-3.2.2-14")
def test_retain_not_available(clients: Clients, make_broker: MakeBroker, name: str) -> None:
    broker = make_broker(limits={"retain_available": False})
    peer = clients(5, broker=broker)
    assert peer.connack.prop(RETAIN_AVAILABLE) == 0  # 1 is the default and need not be told
    peer.subscribe(name)
    peer.publish(name, b"ok")
    assert peer.message(name).payload == b"ok"
    peer.send(publish_packet(name, b"no", 5, retain=True))
    end = peer.expect_close()
    assert [(p.type, p.reason) for p in end] in ([], [(DISCONNECT, 0x9A)])
    refused = clients.raw(5, broker)
    refused.send(connect_packet("w", 5, will=Will("w", retain=True)))
    end = refused.expect_close()
    assert [(p.type, p.reason) for p in end] in ([], [(CONNACK, 0x9A)])


@spec("5", "MQTT-3.2.2-15", "MQTT-4.13.2-1")
@spec("3.1.1", "MQTT-4.8.0-2")
@pytest.mark.parametrize("version", [4, 5])
def test_packet_above_the_servers_maximum(clients: Clients, make_broker: MakeBroker, name: str, version: int) -> None:
    """Refused from the header alone; the other connections go on."""
    broker = make_broker(limits={"max_packet_size": 1000})
    watcher = clients(version, broker=broker)
    watcher.subscribe(name)
    peer = clients(version, broker=broker)
    if version == 5:
        assert peer.connack.prop(MAXIMUM_PACKET_SIZE) == 1000
    frame = len(publish_packet(name, bytes(900), version)) - 900
    peer.publish(name, bytes(1000 - frame))
    assert len(watcher.message(name).raw) == 1000
    peer.send(publish_packet(name, bytes(1001 - frame), version)[:20])
    end = peer.expect_close()
    assert [(p.type, p.reason) for p in end] in ([], [(DISCONNECT, 0x95)] if version == 5 else [])
    assert clients.drain(watcher, watcher) == []


@spec("5", "MQTT-3.1.2-22", "MQTT-3.2.2-22")
def test_server_keep_alive(clients: Clients, make_broker: MakeBroker) -> None:
    """A maximum keep alive is told to version 5 clients and counts from then on."""
    broker = make_broker(limits={"max_keep_alive": 10})
    assert clients(5, broker=broker, keep_alive=5).connack.prop(SERVER_KEEP_ALIVE) in (None, 5)
    peer = clients(5, broker=broker, keep_alive=60)
    assert peer.connack.prop(SERVER_KEEP_ALIVE) == 10
    broker.advance_clock(12)
    peer.ping()
    broker.advance_clock(17)
    end = peer.expect_close()
    assert [(p.type, p.reason) for p in end] in ([], [(DISCONNECT, 0x8D)])


@spec("5", "MQTT-3.2.2-17", "MQTT-3.2.2-18", "MQTT-3.3.2-9")
def test_no_topic_alias_announced(clients: Clients, make_broker: MakeBroker, name: str) -> None:
    broker = make_broker(limits={"topic_alias_maximum": 0})
    peer = clients(5, broker=broker)
    assert peer.connack.prop(ALIAS_MAXIMUM, 0) == 0
    peer.send(publish_packet(name, b"x", 5, props=((TOPIC_ALIAS, 1),)))
    end = peer.expect_close()
    assert [(p.type, p.reason) for p in end] in ([], [(DISCONNECT, 0x94)])


@spec("5", "MQTT-4.13.1-1", "MQTT-3.2.2-8")
@pytest.mark.parametrize(
    ("limit", "announced", "topic_filter", "options", "code"),
    [
        ("wildcard_subscription_available", WILDCARD_AVAILABLE, "{}/#", 0, 0xA2),
        ("wildcard_subscription_available", WILDCARD_AVAILABLE, "{}/+/x", 0, 0xA2),
        ("shared_subscription_available", SHARED_AVAILABLE, "$share/g/{}", 0, 0x9E),
        ("subscription_identifier_available", SUBSCRIPTION_ID_AVAILABLE, "{}", 7, 0xA1),
    ],
)
def test_what_is_switched_off(
    clients: Clients, make_broker: MakeBroker, name: str, limit: str, announced: int, topic_filter: str, options: int, code: int
) -> None:
    """Announced in CONNACK; used all the same it is refused with its own code, in SUBACK or by DISCONNECT."""
    broker = make_broker(limits={limit: False})
    peer = clients(5, broker=broker)
    assert peer.connack.prop(announced) == 0
    peer.subscribe(name)
    props = ((SUBSCRIPTION_ID, options),) if options else ()
    peer.send(subscribe_packet([(topic_filter.format(name), 0)], 5, packet_id=9, props=props), "E000")
    got = peer.expect_close()
    assert [(p.type, p.reasons or [p.reason]) for p in got] in ([], [(SUBACK, [code])], [(DISCONNECT, [code])])


@spec("3.1.1", "MQTT-3.8.3-2")
def test_wildcards_switched_off_311(clients: Clients, make_broker: MakeBroker, name: str) -> None:
    broker = make_broker(limits={"wildcard_subscription_available": False})
    peer = clients(4, broker=broker)
    assert peer.subscribe_many([(f"{name}/a", 1), (f"{name}/#", 0), ("+", 0)]) == [1, 0x80, 0x80]


@each_version
@spec("3.1.1", "MQTT-3.1.3-9", "MQTT-3.2.2-5")
@spec("5", "MQTT-3.1.3-8", "MQTT-3.2.2-7")
def test_client_id_above_the_limit(clients: Clients, make_broker: MakeBroker, version: int) -> None:
    broker = make_broker(limits={"max_client_id_bytes": 30})
    clients(version, "i" * 30, broker=broker).ping()
    peer = clients.raw(version, broker)
    peer.send(connect_packet("i" * 31, version, clean=False), PING)
    end = peer.expect_close()
    assert [(p.type, p.reason, p.session_present) for p in end] == [(CONNACK, 0x85 if version == 5 else 2, False)]


@each_version
@spec("3.1.1", "MQTT-3.1.4-5", "MQTT-3.2.2-4", "MQTT-3.2.2-5")
@spec("5", "MQTT-3.1.4-2", "MQTT-3.2.2-6", "MQTT-3.2.2-7")
@pytest.mark.parametrize("delay", [0.0, 0.05])
def test_refused_by_name(clients: Clients, make_broker: MakeBroker, name: str, version: int, delay: float) -> None:
    """With a session stored under the id: refused without Session Present, the session and its messages as they were."""
    broker = make_broker(auth={"deny": ["bad*"], "delay": delay})
    owner = clients.session(version, name, broker=broker, username="good")
    owner.subscribe(f"{name}/q", 1)
    owner.disconnect()
    refused = clients.raw(version, broker)
    refused.send(
        connect_packet(name, version, username="badly", clean=False, expiry=9, will=Will(f"{name}/q", b"will")),
        publish_packet(f"{name}/q", b"no", version),
        PING,
    )
    end = refused.expect_close()
    assert [(p.type, p.reason in ((0x86, 0x87) if version == 5 else (4, 5)), p.session_present) for p in end] == [(CONNACK, True, False)]
    publisher = clients(version, broker=broker, username="good")
    publisher.publish(f"{name}/q", b"yes", 1)
    owner = clients.session(version, name, present=True, broker=broker, username="good")
    assert [p.payload for p in clients.drain(owner, publisher)] == [b"yes"]


@spec("5", "MQTT-3.1.2-28")
def test_response_information(clients: Clients, make_broker: MakeBroker) -> None:
    broker = make_broker(broker={"response_information": "answers/"})
    assert clients(5, broker=broker).connack.prop(RESPONSE_INFO) is None
    assert clients(5, broker=broker, props=((REQUEST_RESPONSE, 0),)).connack.prop(RESPONSE_INFO) is None
    assert clients(5, broker=broker, props=((REQUEST_RESPONSE, 1),)).connack.prop(RESPONSE_INFO) == "answers/"


@spec("5", "MQTT-3.2.2-7", "MQTT-3.2.2-8")
def test_server_redirection(clients: Clients, make_broker: MakeBroker) -> None:
    broker = make_broker(listener={"server_reference": "other.example:1883"})
    peer = clients.raw(5, broker)
    peer.send(connect_packet("c", 5))
    end = peer.expect_close()
    assert [(p.type, p.reason, p.prop(SERVER_REFERENCE)) for p in end] == [(CONNACK, 0x9C, "other.example:1883")]
    old = clients.raw(4, broker)
    old.send(connect_packet("c", 4))
    assert all(p.type == CONNACK and p.reason in (3, 5) for p in old.expect_close())


@spec("5", "MQTT-3.14.4-1", "MQTT-3.14.2-2", "MQTT-3.14.4-2")
def test_shutting_down(clients: Clients, make_broker: MakeBroker, name: str) -> None:
    """A broker that stops says 0x8B to version 5 clients and just closes the others."""
    broker = make_broker(listener={"name": "stopping"})
    five, four = clients(5, broker=broker), clients(4, broker=broker)
    broker.stop()
    assert [(p.type, p.reason, p.prop(SESSION_EXPIRY)) for p in five.expect_close()] == [(DISCONNECT, 0x8B, None)]
    assert four.expect_close() == []


@spec("5", "MQTT-4.13.2-1")
def test_a_client_that_does_not_read_is_closed_too(clients: Clients, make_broker: MakeBroker, name: str) -> None:
    """With its receive window full DISCONNECT cannot be written; the connection ends all the same."""
    broker = make_broker(limits={"max_queued_messages": 50})
    watcher, deaf, publisher = clients(5, broker=broker), clients(5, broker=broker, will=Will(f"{name}/w")), clients(5, broker=broker)
    watcher.subscribe(f"{name}/w")
    deaf.subscribe(f"{name}/t")
    for _ in range(16):  # more than the system's buffers hold, less than the broker's
        publisher.send(publish_packet(f"{name}/t", bytes(500_000), 5))
    publisher.ping()
    deaf.send("0000")
    broker.advance_clock(30)
    assert watcher.message().topic == f"{name}/w"


@each_version
@pytest.mark.parametrize("sent", [pytest.param(0, marks=BEFORE_BYTES), 1, 10])
def test_connect_has_a_deadline(clients: Clients, make_broker: MakeBroker, version: int, sent: int) -> None:
    """A connection without a whole CONNECT is closed without a word."""
    broker = make_broker(limits={"connect_timeout": 5.0})
    peer = clients.raw(version, broker)
    if sent:
        peer.send(connect_packet("c1", version)[:sent])
    for _ in range(50):  # the time counts from accepting, which may come after the first step of the clock
        broker.advance_clock(7)
        with contextlib.suppress(PeerTimeout):
            assert peer.expect_close(0.1) == []
            return
    pytest.fail("still open")
