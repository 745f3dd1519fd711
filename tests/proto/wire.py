"""Packets by hand, illegal ones included: nothing here knows the codec."""

from __future__ import annotations


def varint(n: int) -> bytes:
    out = bytearray()
    while n > 127:
        out.append(n & 0x7F | 0x80)
        n >>= 7
    return bytes([*out, n])


def string(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return len(data).to_bytes(2, "big") + data


def packet(first: int, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return bytes([first]) + varint(len(body)) + body


def section(*properties: bytes) -> bytes:
    """Properties with their length in front."""
    body = b"".join(properties)
    return varint(len(body)) + body


def connect(
    version: int, flags: int = 0x02, *fields: bytes, props: bytes = b"", first: int = 0x10, name: str | bytes | None = None,
    level: int | None = None,
) -> bytes:  # fmt: skip
    """CONNECT with client id c1 and whatever fields follow it."""
    name = name if name is not None else ("MQIsdp" if version == 3 else "MQTT")
    head = string(name) + bytes([version if level is None else level, flags]) + b"\0\x3c"
    return packet(first, head, section(props) if version == 5 else b"", string("c1"), *fields)


# One packet for each place that properties can stand in; `%s` is where the section goes.
PLACES = {
    "CONNECT": lambda props: packet(0x10, string("MQTT"), b"\x05\x02\0\x3c", props, string("c1")),
    "WILL": lambda props: packet(0x10, string("MQTT"), b"\x05\x06\0\x3c", b"\0", string("c1"), props, string("w"), string("x")),
    "CONNACK": lambda props: packet(0x20, b"\0\0", props),
    "PUBLISH": lambda props: packet(0x30, string("a"), props, b"payload"),
    "PUBACK": lambda props: packet(0x40, b"\0\x01\0", props),
    "PUBREC": lambda props: packet(0x50, b"\0\x01\0", props),
    "PUBREL": lambda props: packet(0x62, b"\0\x01\0", props),
    "PUBCOMP": lambda props: packet(0x70, b"\0\x01\0", props),
    "SUBSCRIBE": lambda props: packet(0x82, b"\0\x01", props, string("a"), b"\0"),
    "SUBACK": lambda props: packet(0x90, b"\0\x01", props, b"\0"),
    "UNSUBSCRIBE": lambda props: packet(0xA2, b"\0\x01", props, string("a")),
    "UNSUBACK": lambda props: packet(0xB0, b"\0\x01", props, b"\0"),
    "DISCONNECT": lambda props: packet(0xE0, b"\0", props),
    "AUTH": lambda props: packet(0xF0, b"\x18", props),
}

# By type as properties.csv names it: a valid value, and another one.
VALUES = {
    "Byte": (b"\x01", b"\x00"),
    "Two Byte Integer": (b"\x00\x05", b"\xff\xff"),
    "Four Byte Integer": (b"\x00\x00\x00\x05", b"\xff\xff\xff\xff"),
    "Variable Byte Integer": (b"\x05", b"\xff\xff\xff\x7f"),
    "UTF-8 Encoded String": (string("text"), string("")),
    "UTF-8 String Pair": (string("k") + string("v"), string("") + string("")),
    "Binary Data": (string(b"\x00\xff"), string(b"")),
}
