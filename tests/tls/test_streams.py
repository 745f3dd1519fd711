"""Bytes through TLS: large, slow, in odd pieces, from one worker to another."""

from __future__ import annotations

import random
import socket
import ssl
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.broker.conftest import eventually
from tests.conftest import tcp_address
from tests.rawclient import Peer, connect_packet, publish_packet
from tests.tls.conftest import Peers, name


@pytest.mark.parametrize("version", ["1.2", "1.3"])
@pytest.mark.parametrize("size", [1, 16383, 16384, 16385, 130_000, 900_000])
def test_large_messages_both_ways(start: Any, context: Any, peers: Peers, size: int, version: str) -> None:
    broker = start()
    tls = context(version=version)
    receiver, sender = peers(broker, tls), peers(broker, tls)
    receiver.subscribe("big", 1)
    body = random.Random(size).randbytes(size)
    for qos in (0, 1):
        sender.publish("big", body, qos)
        assert receiver.message().payload == body


def test_many_packets_in_pieces_of_any_size(start: Any, context: Any, peers: Peers) -> None:
    """Records end inside packets, and packets inside records."""
    broker = start()
    receiver = peers(broker, context())
    receiver.subscribe("odd", 0)
    choice = random.Random(7)
    bodies = [choice.randbytes(choice.choice([0, 1, 10, 300, 20_000])) for _ in range(150)]
    sender = peers(broker, context())
    stream = b"".join(publish_packet("odd", body) for body in bodies)
    done = threading.Thread(target=sender.send_split, args=(stream, lambda: choice.choice([1, 7, 500, 16384, 40_000])))
    done.start()
    assert [receiver.message().payload for _ in bodies] == bodies
    done.join()


def slow_peer(peers: Peers, broker: Any, tls: Any) -> Peer:
    """Its socket holds little of what it was sent and did not read."""
    plain = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    plain.settimeout(10)
    plain.connect(tcp_address(broker.urls[0]))
    peer = Peer.__new__(Peer)
    connect, socket.create_connection = socket.create_connection, lambda *_, **__: plain  # type: ignore[assignment]
    try:
        peer.__init__(("", 0), 4, tls=tls)  # type: ignore[misc]
    finally:
        socket.create_connection = connect
    peers.made.append(peer)
    assert peer.connect(name()).reason == 0
    return peer


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_slow_reader_gets_everything_in_order(start: Any, context: Any, peers: Peers, version: str) -> None:
    """The socket fills up in the middle of records; sizes from small to large make the queue gather and refer."""
    broker = start({"limits": {"max_output_bytes": 64 << 20, "max_queued_messages": 100_000, "max_inflight": 65535}})
    slow = slow_peer(peers, broker, context(version=version))
    slow.subscribe("flood", 0)
    sender = peers(broker, context(version=version))
    choice = random.Random(5)
    bodies = [b"%06d" % i + choice.randbytes(choice.choice([0, 5, 100, 2000, 5000, 60_000])) for i in range(700)]
    for body in bodies:
        sender.publish("flood", body, 0)
    sender.ping()
    eventually(lambda: broker.stats()["short_writes"] > 0)
    assert [slow.message().payload for _ in bodies] == bodies
    assert broker.stats()["dropped_output_full"] == 0


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_connections_move_between_four_workers(start: Any, context: Any, peers: Peers, version: str) -> None:
    """CONNECT and what follows come in one record, so that the rest moves with the connection, partly still encrypted."""
    broker = start({"workers": 4})
    tls = context(version=version)
    watcher = peers(broker, tls)
    watcher.subscribe("moved/#", 1)
    numbers = set()
    for number in range(60):
        peer = peers.raw(broker, tls)
        body = b"%d" % number
        peer.send(connect_packet(name()) + publish_packet("moved/a", body) + publish_packet("moved/b", body + b"x" * 30_000))
        assert peer.recv().reason == 0
        peer.ping()
        numbers.add(number)
    got = [watcher.message() for _ in range(120)]
    assert {int(message.payload) for message in got if message.topic == "moved/a"} == numbers
    assert all(len(message.payload) > 30_000 for message in got if message.topic == "moved/b")


@pytest.mark.skipif(not hasattr(socket, "TCP_MAXSEG"), reason="segments cannot be made small")
def test_handshake_waits_for_a_client_that_reads_late(start: Any, context: Any, peers: Peers, folder: Path, tmp_path: Path) -> None:
    """The certificate message is larger than what the sockets hold: the handshake itself waits for room."""
    chain = tmp_path / "chain.pem"
    chain.write_text((folder / "server.pem").read_text() + (folder / "device.pem").read_text() * 180)
    broker = start(certificate=str(chain))
    plain = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2304)
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 536)
    plain.settimeout(20)
    plain.connect(tcp_address(broker.urls[0]))
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context().wrap_bio(incoming, outgoing, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    plain.sendall(outgoing.read())
    waiting = broker.stats
    eventually(lambda: waiting()["reads"] > 0)
    turns = waiting()["turns"]
    peers(broker, context())  # others go on
    assert waiting()["tls_handshakes"] == 1 and waiting()["turns"] - turns < 100  # and nothing spins
    while True:
        try:
            client.do_handshake()
            break
        except ssl.SSLWantReadError:
            plain.sendall(outgoing.read())
            incoming.write(plain.recv(4096))
    client.write(connect_packet(name()))
    plain.sendall(outgoing.read())
    while True:
        try:
            assert client.read(4) == b"\x20\x02\x00\x00"
            break
        except ssl.SSLWantReadError:
            incoming.write(plain.recv(4096))
    plain.close()


@pytest.mark.parametrize("sent", [0, 5], ids=["nothing", "half a CONNECT"])
def test_session_ticket_waits_for_no_answer(start: Any, context: Any, sent: int) -> None:
    """It leaves together with the answer to what came behind the handshake; here there is none to give yet."""
    broker = start()
    plain = socket.create_connection(tcp_address(broker.urls[0]), timeout=10)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context(version="1.3").wrap_bio(incoming, outgoing, server_hostname="localhost")
    packet = connect_packet(name())
    while True:
        try:
            client.do_handshake()
            break
        except ssl.SSLWantReadError:
            plain.sendall(outgoing.read())
            incoming.write(plain.recv(4096))
    if sent:
        client.write(packet[:sent])
    plain.sendall(outgoing.read())
    incoming.write(plain.recv(4096))
    with pytest.raises(ssl.SSLWantReadError):
        client.read(1)
    assert client.session is not None and client.session.has_ticket
    client.write(packet[sent:])
    plain.sendall(outgoing.read())
    incoming.write(plain.recv(4096))
    assert client.read(4) == b"\x20\x02\x00\x00"
    plain.close()


def test_stopping_the_broker_says_goodbye(start: Any, context: Any, peers: Peers) -> None:
    broker = start()
    peer = peers(broker, context(), version=5)
    unfinished = socket.create_connection(tcp_address(broker.urls[0]))
    eventually(lambda: broker.stats()["connections_open"] == 2)
    broker.stop()
    assert peer.recv().reason == 0x8B
    peer.expect_close()
    unfinished.close()


def test_data_and_goodbye_in_one_segment(start: Any, context: Any, peers: Peers) -> None:
    """close_notify behind the last packet is held by OpenSSL and raises no event; the connection must end all the same."""
    broker = start()
    watcher = peers(broker, context())
    watcher.subscribe("last", 1)
    peer = peers(broker, context(version="1.3"))
    peer.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 0)
    peer.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
    peer.send(publish_packet("last", b"word"))
    peer.socket.settimeout(0)
    try:
        peer.socket.unwrap()
    except OSError:
        pass  # it waits for the broker's answer
    plain = socket.socket(fileno=peer.socket.detach())
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 0)
    assert watcher.message().payload == b"word"
    eventually(lambda: broker.stats()["connections_open"] == 1)  # although the socket is still open
    plain.close()
