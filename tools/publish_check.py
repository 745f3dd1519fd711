"""Publishes through a running broker and receives it back: `python tools/publish_check.py HOST PORT`. Needs nothing but Python.

Two MQTT 3.1.1 connections; the message goes at QoS 1 to a subscriber. Exit code 0 when what arrives is what was sent.
"""

from __future__ import annotations

import os
import socket
import sys


def packet(first: int, body: bytes) -> bytes:
    assert len(body) < 128
    return bytes([first, len(body)]) + body


def text(value: bytes) -> bytes:
    return len(value).to_bytes(2, "big") + value


def receive(connection: socket.socket) -> tuple[int, bytes]:
    """First byte and body of the next packet; all that come here are shorter than 128 bytes."""

    def exactly(count: int) -> bytes:
        data = b""
        while len(data) < count:
            more = connection.recv(count - len(data))
            if not more:
                raise ConnectionError("the broker closed the connection")
            data += more
        return data

    first, length = exactly(2)
    assert length < 128
    return first, exactly(length)


def expect(connection: socket.socket, first: int, body: bytes) -> None:
    got = receive(connection)
    if got != (first, body):
        raise AssertionError(f"expected {first:#x} {body!r}, got {got[0]:#x} {got[1]!r}")


def connect(address: tuple[str, int], client_id: bytes) -> socket.socket:
    connection = socket.create_connection(address, timeout=10)
    connection.sendall(packet(0x10, text(b"MQTT") + bytes([4, 2, 0, 30]) + text(client_id)))
    expect(connection, 0x20, b"\0\0")
    return connection


def publish_check(host: str, port: int) -> None:
    topic, payload = b"check/" + os.urandom(4).hex().encode(), os.urandom(16)
    with connect((host, port), b"check-receiver") as receiver, connect((host, port), b"check-sender") as sender:
        receiver.sendall(packet(0x82, b"\0\1" + text(topic) + b"\1"))
        expect(receiver, 0x90, b"\0\1\1")
        sender.sendall(packet(0x32, text(topic) + b"\0\7" + payload))
        expect(sender, 0x40, b"\0\7")
        first, body = receive(receiver)
        packet_id = body[2 + len(topic) : 4 + len(topic)]
        if first != 0x32 or body != text(topic) + packet_id + payload:
            raise AssertionError(f"another message came: {first:#x} {body!r}")
        receiver.sendall(packet(0x40, packet_id))
        for connection in (receiver, sender):
            connection.sendall(packet(0xE0, b""))


if __name__ == "__main__":
    publish_check(sys.argv[1], int(sys.argv[2]))
    print("published at QoS 1 and received")
