"""The stream has no packet boundaries: whole sessions byte by byte, at random cuts, and many packets in one segment."""

from __future__ import annotations

import random
import re

import pytest

from ..rawclient import (
    CONNACK,
    PING,
    PINGRESP,
    PUBACK,
    PUBCOMP,
    PUBLISH,
    PUBREC,
    PUBREL,
    SUBACK,
    UNSUBACK,
    USER_PROPERTY,
    Peer,
    Will,
    ack_packet,
    connect_packet,
    publish_packet,
    subscribe_packet,
    unsubscribe_packet,
)
from .conftest import Clients
from .statements import each_version, spec

STREAM_311 = spec("3.1.1", "MQTT-7.1.1-1")
STREAM_5 = spec("5", "MQTT-4.2.0-1")

pytestmark = pytest.mark.transport


def session_bytes(name: str, version: int) -> bytes:
    """All packets of a client from CONNECT to DISCONNECT."""
    props = ((USER_PROPERTY, ("key", "value")), (0x03, "text/plain"))
    will = Will(f"{name}/w", b"will", 1, props=((0x18, 5),))
    return b"".join(
        (
            connect_packet(name, version, will=will, username="user", password=b"pass"),
            subscribe_packet([(f"{name}/t", 0), (f"{name}/u", 2)], version, packet_id=1),
            publish_packet(f"{name}/t", b"zero", version, props=props),
            publish_packet(f"{name}/t", b"one", version, qos=1, packet_id=2, props=props),
            publish_packet(f"{name}/t", b"two", version, qos=2, packet_id=3, props=props),
            ack_packet(PUBREL, 3),
            publish_packet(f"{name}/t", bytes(range(256)) * 2, version, props=props),
            publish_packet(f"{name}/t", b"", version),
            PING,
            unsubscribe_packet([f"{name}/t"], version, packet_id=4),
            b"\xe0\0",
        )
    )


def check_session(peer: Peer) -> None:
    """The answers to `session_bytes`, whatever its cuts: acknowledgements and messages each in their order."""
    got = peer.expect_close()
    assert got[0].type == CONNACK
    others = [(p.type, p.packet_id) for p in got if p.type != PUBLISH]
    assert others == [(CONNACK, 0), (SUBACK, 1), (PUBACK, 2), (PUBREC, 3), (PUBCOMP, 3), (PINGRESP, 0), (UNSUBACK, 4)]
    messages = [p for p in got if p.type == PUBLISH]
    assert [p.payload for p in messages if p.payload != b"two"] == [b"zero", b"one", bytes(range(256)) * 2, b""]
    assert len(messages) == 5


@STREAM_311
@STREAM_5
@each_version
def test_byte_by_byte(clients: Clients, name: str, version: int) -> None:
    peer = clients.raw(version)
    peer.send_split(session_bytes(name, version))
    check_session(peer)


@STREAM_311
@STREAM_5
@each_version
@pytest.mark.parametrize("seed", range(10))
def test_random_cuts(clients: Clients, name: str, version: int, seed: int) -> None:
    cuts = random.Random(seed)
    peer = clients.raw(version)
    peer.send_split(session_bytes(name, version), lambda: cuts.choice((1, 2, 3, 5, 17, 64, 200)))
    check_session(peer)


@STREAM_311
@STREAM_5
@each_version
def test_every_cut(clients: Clients, name: str, version: int) -> None:
    """In two segments, cut at every place in turn."""
    size = len(session_bytes(name, version))
    for at in range(1, size, 3):
        peer = clients.raw(version)
        data = session_bytes(f"{name}x{at}", version)
        peer.send(data[:at])
        peer.send(data[at:])
        check_session(peer)
        peer.close()


@STREAM_311
@STREAM_5
@each_version
def test_one_segment(clients: Clients, name: str, version: int) -> None:
    """CONNECT, SUBSCRIBE and PUBLISH without waiting for CONNACK."""
    peer = clients.raw(version)
    peer.send(session_bytes(name, version))
    check_session(peer)


@STREAM_311
@STREAM_5
@each_version
def test_many_sessions_in_one_segment_each(clients: Clients, name: str, version: int) -> None:
    """At the same time, with ids that belong to different threads."""
    peers = [clients.raw(version) for _ in range(30)]
    for i, peer in enumerate(peers):
        peer.send(session_bytes(f"{name}-{i}", version))
    for peer in peers:
        check_session(peer)


@STREAM_311
@STREAM_5
@each_version
def test_sixteen_megabytes_in_odd_segments(clients: Clients, name: str, version: int) -> None:
    peer, publisher = clients(version), clients(version)
    peer.subscribe(name, 1)
    cuts = random.Random(version)
    count, size = 64, 250_000
    received = 0
    for i in range(count):
        payload = bytes([i]) * size
        publisher.send_split(publish_packet(name, payload, version, qos=1, packet_id=i + 1), lambda: cuts.randrange(1, 65521))
        got = peer.message()
        assert got.payload == payload
        publisher.expect(PUBACK, packet_id=i + 1)
        received += len(got.payload)
    assert received == count * size


@STREAM_311
@STREAM_5
@each_version
@pytest.mark.parametrize("cut", [1, 2, 3, 5, 9, 14])
def test_a_half_connect_is_nothing(clients: Clients, name: str, version: int, cut: int) -> None:
    """A connection that ends inside CONNECT leaves no session and no will behind."""
    watcher = clients(version)
    watcher.subscribe(f"{name}/w")
    data = connect_packet(name, version, clean=False, expiry=60, will=Will(f"{name}/w"))
    peer = clients.raw(version)
    peer.send(data[:cut])
    peer.drop()
    peer = clients.raw(version)
    peer.send(data[:-1])
    peer.drop()
    assert clients.drain(watcher, clients.session(version, name, present=False)) == []


def test_hints_and_helpers_agree(name: str) -> None:
    """The peer's own writing, checked against packets of the standards' examples."""
    assert connect_packet("c1", 4, keep_alive=60).hex(" ").upper() == "10 0E 00 04 4D 51 54 54 04 02 00 3C 00 02 63 31"
    assert connect_packet("c1", 5, keep_alive=60).hex(" ").upper() == "10 0F 00 04 4D 51 54 54 05 02 00 3C 00 00 02 63 31"
    five = connect_packet("c1", 5, keep_alive=60, clean=False, expiry=60).hex(" ").upper()
    assert five == "10 14 00 04 4D 51 54 54 05 00 00 3C 05 11 00 00 00 3C 00 02 63 31"
    assert re.fullmatch(r"820b00010[0-9a-f]0b01.*", subscribe_packet([("a/#", 0)], 5, props=((0x0B, 1),)).hex())
    assert publish_packet("a", b"x", 5, qos=1).hex() == "320700016100010078"
