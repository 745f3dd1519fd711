"""PROXY protocol headers as data, over real sockets: what is read, what is left for those above, what is believed of a certificate."""

from __future__ import annotations

import ipaddress
import socket
import struct
import threading
from collections.abc import Iterator

import pytest

from tests.face.net_transport import AGAIN, ALLOC_TESTED, END, FAILED, Carrier, Rules, blocks_live, fail_allocations, live

BEHIND = bytes(range(256)) * 3
PROXY_ADDRESS = "127.0.0.1:9"


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    before, blocks = live(), blocks_live()
    yield
    fail_allocations(-1)
    assert live() == before
    assert blocks_live() == blocks


def mapped(text: str) -> bytes:
    """16 bytes; v4 is held v4-mapped."""
    address = ipaddress.ip_address(text)
    return address.packed if address.version == 6 else bytes(10) + b"\xff\xff" + address.packed


ALL = [(bytes(16), 0)]


class Wire:
    """A proxy's end of a connection, and ours."""

    def __init__(self, rules: Rules | None = None, family: int = 4, address: str = "127.0.0.1") -> None:
        ours, self.proxy = socket.socketpair()
        ours.setblocking(False)
        self.carrier = Carrier(ours.detach())
        self.rules = rules or Rules(ALL)
        assert self.carrier.proxy_accept(self.rules, family, mapped(address)) == 0

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *exception: object) -> None:
        self.carrier.close()
        assert self.carrier.fd == -1
        self.proxy.close()

    def refused(self) -> str:
        """Reads again say the same; nothing was ever sent."""
        for _ in range(2):
            assert self.carrier.read() == FAILED
        why = self.carrier.failure
        assert why
        assert self.carrier.write(b"x") == FAILED
        self.carrier.finish()
        assert self.proxy.recv(100) == b""
        return why


# ---------------------------------------------------------------------------------------------- headers


SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
TCP4, TCP6, UNSPEC, UNIX = 0x11, 0x21, 0x00, 0x31
PROXY, LOCAL = 0x21, 0x20


def header(command: int, over: int, body: bytes, length: int | None = None) -> bytes:
    return SIGNATURE + bytes([command, over]) + struct.pack(">H", len(body) if length is None else length) + body


def tcp(source: str = "192.0.2.7", source_port: int = 50_000, to: str = "198.51.100.1", port: int = 1883) -> bytes:
    return ipaddress.ip_address(source).packed + ipaddress.ip_address(to).packed + struct.pack(">HH", source_port, port)


def tlv(kind: int, value: bytes, length: int | None = None) -> bytes:
    return bytes([kind]) + struct.pack(">H", len(value) if length is None else length) + value


def crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def with_checksum(command: int, over: int, addresses: bytes, before: bytes = b"", behind: bytes = b"", wrong: int = 0) -> bytes:
    zeroed = header(command, over, addresses + before + tlv(3, bytes(4)) + behind)
    at = len(SIGNATURE) + 4 + len(addresses) + len(before) + 3
    return zeroed[:at] + struct.pack(">I", crc32c(zeroed) ^ wrong) + zeroed[at + 4 :]


def test_the_checksum_of_the_rfc() -> None:
    """RFC 3720 appendix B.4."""
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(b"\xff" * 32) == 0x62A8AB43
    assert crc32c(bytes(range(32))) == 0x46DD794E


UNIX_ADDRESSES = b"/run/client".ljust(108, b"\0") + b"/run/proxy".ljust(108, b"\0")
SSL = tlv(0x20, b"\x07" + bytes(4) + tlv(0x21, b"TLSv1.3") + tlv(0x22, b"device-7"))

VALID = {
    # name: (header, the client's address as it is told)
    "v1-tcp4": (b"PROXY TCP4 192.0.2.7 198.51.100.1 50000 1883\r\n", "192.0.2.7:50000"),
    "v1-tcp4-edges": (b"PROXY TCP4 255.255.255.255 0.0.0.0 65535 0\r\n", "255.255.255.255:65535"),
    "v1-tcp6": (b"PROXY TCP6 2001:db8::7 2001:db8::1 50000 1883\r\n", "[2001:db8::7]:50000"),
    "v1-tcp6-long": (
        b"PROXY TCP6 2001:0db8:1111:2222:3333:4444:5555:6666 2001:0db8:1111:2222:3333:4444:5555:7777 65535 65535\r\n",
        "[2001:db8:1111:2222:3333:4444:5555:6666]:65535",
    ),
    "v1-tcp6-mapped": (b"PROXY TCP6 ::ffff:192.0.2.7 ::1 50000 1883\r\n", "192.0.2.7:50000"),
    "v1-unknown": (b"PROXY UNKNOWN\r\n", PROXY_ADDRESS),
    "v1-unknown-more": (b"PROXY UNKNOWN ffff:f...f:ffff \0\xff 65535 65535\r\n", PROXY_ADDRESS),
    "v1-longest": (b"PROXY UNKNOWN " + b"x" * 91 + b"\r\n", PROXY_ADDRESS),
    "v2-tcp4": (header(PROXY, TCP4, tcp()), "192.0.2.7:50000"),
    "v2-tcp4-edges": (header(PROXY, TCP4, tcp("0.0.0.0", 65535)), "0.0.0.0:65535"),
    "v2-tcp6": (header(PROXY, TCP6, tcp("2001:db8::7", 1, "::1")), "[2001:db8::7]:1"),
    "v2-tcp6-mapped": (header(PROXY, TCP6, tcp("::ffff:192.0.2.7", 256, "::1")), "192.0.2.7:256"),
    "v2-unix": (header(PROXY, UNIX, UNIX_ADDRESSES), "unix"),
    "v2-unspec": (header(PROXY, UNSPEC, b""), PROXY_ADDRESS),
    "v2-unspec-tlv": (header(PROXY, UNSPEC, tlv(4, bytes(9))), PROXY_ADDRESS),
    "v2-local": (header(LOCAL, UNSPEC, b""), PROXY_ADDRESS),
    "v2-local-addresses": (header(LOCAL, TCP4, tcp()), PROXY_ADDRESS),
    "v2-local-rubbish": (header(LOCAL, 0xFF, b"\xff" * 50), PROXY_ADDRESS),
    "v2-tlvs": (header(PROXY, TCP4, tcp() + tlv(1, b"mqtt") + tlv(4, b"") + tlv(0xE5, bytes(500)) + SSL), "192.0.2.7:50000"),
    "v2-crc": (with_checksum(PROXY, TCP4, tcp()), "192.0.2.7:50000"),
    "v2-crc-between": (with_checksum(PROXY, TCP6, tcp("2001:db8::7", 1, "::1"), tlv(1, b"mqtt"), SSL), "[2001:db8::7]:1"),
    "v2-longest": (header(PROXY, TCP4, tcp() + tlv(4, bytes(16384 - 16 - 12 - 3))), "192.0.2.7:50000"),
}
for room in (95, 96, 97):       # around what has its place without memory of its own
    VALID[f"v2-{16 + room}-bytes"] = (header(PROXY, TCP4, tcp() + tlv(4, bytes(room - 15))), "192.0.2.7:50000")

by_header = pytest.mark.parametrize("name", VALID)


@by_header
def test_header_with_what_follows_at_once(name: str) -> None:
    head, client = VALID[name]
    with Wire() as wire:
        wire.proxy.sendall(head + BEHIND)
        assert wire.carrier.read(100) == BEHIND[:100]
        assert wire.carrier.read() == BEHIND[100:]
        assert wire.carrier.read() == AGAIN
        assert wire.carrier.peer_said == client
        assert wire.carrier.failure is None
        assert wire.carrier.write(b"answer") == 6 and wire.proxy.recv(100) == b"answer"
        if name not in ("v2-tlvs", "v2-crc-between"):
            assert wire.carrier.plain and not any(live().values()), "it has made way for the plain socket"


@by_header
def test_header_byte_by_byte(name: str) -> None:
    head, client = VALID[name]
    with Wire() as wire:
        slow = head if len(head) < 600 else head[:40]
        for byte in slow:
            assert wire.carrier.read() == AGAIN
            assert wire.carrier.failure == "no PROXY protocol header", "what is said if it never comes"
            assert wire.carrier.peer_said == PROXY_ADDRESS
            wire.proxy.sendall(bytes([byte]))
        if len(head) > len(slow):
            wire.proxy.sendall(head[40:-1])
            assert wire.carrier.read() == AGAIN
            wire.proxy.sendall(head[-1:])
        assert wire.carrier.read() == AGAIN
        assert wire.carrier.peer_said == client and wire.carrier.failure is None
        wire.proxy.sendall(b"then")
        assert wire.carrier.read() == b"then"
        wire.proxy.shutdown(socket.SHUT_WR)
        assert wire.carrier.read() == END


@by_header
def test_header_at_every_split(name: str) -> None:
    head, client = VALID[name]
    for cut in range(1, len(head)) if len(head) < 300 else (1, 12, 15, 16, 17, 111, 112, 113, len(head) - 1):
        with Wire() as wire:
            wire.proxy.sendall(head[:cut])
            assert wire.carrier.read() == AGAIN
            wire.proxy.sendall(head[cut:] + b"x")
            assert wire.carrier.read() == b"x"
            assert wire.carrier.peer_said == client


@by_header
def test_header_and_then_nothing(name: str) -> None:
    head, _ = VALID[name]
    for cut in range(len(head) + 1) if len(head) < 300 else (0, 5, 16, 100, len(head) - 1, len(head)):
        with Wire() as wire:
            wire.proxy.sendall(head[:cut])
            wire.proxy.shutdown(socket.SHUT_WR)
            if cut == len(head):
                assert wire.carrier.read() == END
            else:
                assert wire.refused() == "closed before the PROXY protocol header"


def test_header_that_arrives_while_it_is_read() -> None:
    """Between a look and the reading of what was seen more may come."""
    rounds = 300
    pairs = [Wire() for _ in range(rounds)]

    def send() -> None:
        for pair in pairs:
            for at in range(len(V1)):
                pair.proxy.send(V1[at : at + 1])
            pair.proxy.send(b"!")

    sender = threading.Thread(target=send)
    sender.start()
    got: list[object] = []
    for wire in pairs:
        while (one := wire.carrier.read()) == AGAIN:
            pass
        got.append(one)
    sender.join()
    for wire in pairs:
        with wire:
            assert wire.carrier.failure is None
    assert got == [b"!"] * rounds


def test_reset_before_the_header() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        proxy = socket.create_connection(server.getsockname())
        ours, _ = server.accept()
    ours.setblocking(False)
    carrier = Carrier(ours.detach())
    assert carrier.proxy_accept(Rules(ALL)) == 0
    proxy.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    proxy.close()
    assert carrier.read() == FAILED
    assert carrier.failure == "the connection broke before the PROXY protocol header"
    carrier.close()


ILL, NONE, LINE, LONG = (
    "PROXY protocol: the header is ill-formed",
    "no PROXY protocol header",
    "PROXY protocol: the header line is too long",
    "PROXY protocol: the header is too long",
)
V1 = b"PROXY TCP4 192.0.2.7 198.51.100.1 50000 1883\r\n"

REFUSED_HEADERS = {
    "mqtt": (b"\x10\x0c\0\4MQTT\4\2\0\0\0\0", NONE),
    "http": (b"GET / HTTP/1.1\r\n\r\n", NONE),
    "tls": (b"\x16\x03\x01\x02\x00\x01", NONE),
    **{f"v2-signature-{i}": (SIGNATURE[:i] + bytes([SIGNATURE[i] ^ 1]), NONE) for i in range(12)},
    "v1-too-long": (b"PROXY UNKNOWN " + b"x" * 92 + b"\r\n", LINE),
    "v1-without-end": (b"PROXY" + b" " * 200, LINE),
    **{
        f"v1-{i}": (line, ILL)
        for i, line in enumerate(
            [
                V1.replace(b"\r\n", b"\n"), V1.replace(b"\r\n", b" \r\n"), V1.replace(b"\r\n", b" 1\r\n"), V1.replace(b"\r", b"\r\r"),
                b"P\n", b"PROXY\r\n", b"PROXY \r\n", b"PROXY TCP4\r\n", b"PROXY TCP4 \r\n", b"PROXY TCP4 192.0.2.7\r\n",
                b"PROXY TCP4 192.0.2.7 198.51.100.1\r\n", b"PROXY TCP4 192.0.2.7 198.51.100.1 50000\r\n",
                b"PROXY TCP4 192.0.2.7 198.51.100.1 50000 \r\n", b"PROXY  TCP4 192.0.2.7 198.51.100.1 50000 1883\r\n",
                V1.replace(b"PROXY", b"PROXi"), V1.replace(b"PROXY", b"PROXYY"), V1.replace(b"TCP4", b"tcp4"), V1.replace(b"TCP4", b"TCP5"),
                V1.replace(b"TCP4", b"UDP4"), V1.replace(b"TCP4", b"TCP"), V1.replace(b"TCP4", b"TCP44"), V1.replace(b"TCP4", b"TCP6"),
                b"PROXY UNKNOWNx\r\n", b"PROXY unknown\r\n",
                V1.replace(b"192.0.2.7", b"2001:db8::7"), V1.replace(b"192.0.2.7", b"192.0.2.256"), V1.replace(b"192.0.2.7", b"192.0.2"),
                V1.replace(b"192.0.2.7", b"192.0.2.07"), V1.replace(b"192.0.2.7", b"192.0.2.7\0x"), V1.replace(b"192.0.2.7", b"localhost"),
                V1.replace(b"198.51.100.1", b"x"), V1.replace(b"198.51.100.1", b"198.51.100.1\0"), V1.replace(b" ", b"\t"),
                V1.replace(b"50000", b"65536"), V1.replace(b"50000", b"050000"), V1.replace(b"50000", b"05"), V1.replace(b"50000", b"-1"),
                V1.replace(b"50000", b"+1"), V1.replace(b"50000", b"x"), V1.replace(b"50000", b"999999"), V1.replace(b"50000", b"5 5"),
                V1.replace(b"1883", b"65536"), V1.replace(b"1883", b"18x3"), V1.replace(b"1883", b"1883\0"), V1.replace(b"1883", b""),
                b"PROXY TCP6 2001:db8::7%lo 2001:db8::1 1 2\r\n", b"PROXY TCP6 2001:db8::7::1 2001:db8::1 1 2\r\n",
                b"PROXY TCP6 2001:db8::7 192.0.2.7 1 2\r\n", b"PROXY TCP6 [2001:db8::7] 2001:db8::1 1 2\r\n",
            ]
        )
    },
    **{f"v2-version-{version}": (header(version << 4 | 1, TCP4, tcp()), ILL) for version in range(16) if version != 2},
    **{f"v2-command-{command}": (header(0x20 | command, TCP4, tcp()), ILL) for command in range(2, 16)},
    **{f"v2-family-{family}": (header(PROXY, family << 4 | 1, tcp()), ILL) for family in range(4, 16)},
    **{f"v2-protocol-{protocol}": (header(PROXY, 0x10 | protocol, tcp()), ILL) for protocol in range(3, 16)},
    "v2-tcp4-short": (header(PROXY, TCP4, tcp()[:11]), ILL),
    "v2-tcp4-nothing": (header(PROXY, TCP4, b""), ILL),
    "v2-tcp6-short": (header(PROXY, TCP6, tcp("::1", 1, "::1")[:35]), ILL),
    "v2-unix-short": (header(PROXY, UNIX, UNIX_ADDRESSES[:215]), ILL),
    "v2-too-long": (header(PROXY, TCP4, b"", 16385 - 16), LONG),
    "v2-longest": (header(PROXY, TCP4, b"", 65535), LONG),
    "v2-local-too-long": (header(LOCAL, UNSPEC, b"", 65535), LONG),
    "v2-tlv-cut-1": (header(PROXY, TCP4, tcp() + b"\4"), ILL),
    "v2-tlv-cut-2": (header(PROXY, TCP4, tcp() + b"\4\0"), ILL),
    "v2-tlv-cut-3": (header(PROXY, TCP4, tcp() + tlv(4, b"abc", 4)), ILL),
    "v2-tlv-far": (header(PROXY, TCP4, tcp() + tlv(4, b"abc", 65535)), ILL),
    "v2-second-tlv": (header(PROXY, TCP4, tcp() + tlv(4, b"abc") + tlv(5, b"", 1)), ILL),
    "v2-ssl-empty": (header(PROXY, TCP4, tcp() + tlv(0x20, b"")), ILL),
    "v2-ssl-short": (header(PROXY, TCP4, tcp() + tlv(0x20, b"\7\0\0\0")), ILL),
    "v2-ssl-cut": (header(PROXY, TCP4, tcp() + tlv(0x20, b"\7" + bytes(4) + b"\x22\0")), ILL),
    "v2-ssl-beyond": (header(PROXY, TCP4, tcp() + tlv(0x20, b"\7" + bytes(4) + tlv(0x22, b"name", 5)) + tlv(4, b"x")), ILL),
    "v2-crc-short": (header(PROXY, TCP4, tcp() + tlv(3, bytes(3))), ILL),
    "v2-crc-long": (header(PROXY, TCP4, tcp() + tlv(3, bytes(5))), ILL),
    "v2-crc-zero": (header(PROXY, TCP4, tcp() + tlv(3, bytes(4))), ILL),
    **{f"v2-crc-bit-{bit}": (with_checksum(PROXY, TCP4, tcp(), wrong=1 << bit), ILL) for bit in (0, 7, 8, 31)},
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED_HEADERS)
@pytest.mark.parametrize("slowly", [False, True])
def test_refused_header(name: str, slowly: bool) -> None:
    head, why = REFUSED_HEADERS[name]
    with Wire() as wire:
        if slowly:
            for byte in head[:-1]:
                wire.proxy.sendall(bytes([byte]))
                if wire.carrier.read() != AGAIN:
                    break
            else:
                wire.proxy.sendall(head[-1:])
        else:
            wire.proxy.sendall(head)
        assert wire.refused() == why
        assert wire.carrier.peer_said == PROXY_ADDRESS


@pytest.mark.parametrize("at", range(28))
def test_checksum_covers_every_byte(at: int) -> None:
    head = bytearray(with_checksum(PROXY, TCP4, tcp()))
    with Wire() as wire:
        if at in (12, 14):
            return              # version and length: refused or waited for, whatever the checksum says
        head[at] ^= 0x10 if at == 15 else 0x01
        wire.proxy.sendall(bytes(head) + bytes(64))
        assert wire.refused() in (ILL, NONE)


# ---------------------------------------------------------------------------------------------- certificates that a proxy has seen


def ssl_tlv(client: int, verify: int, *more: bytes) -> bytes:
    return tlv(0x20, bytes([client]) + struct.pack(">I", verify) + b"".join(more))


NAME, DER = tlv(0x22, b"device-7"), tlv(0x28, b"\x30\x82" + bytes(2000))


@pytest.mark.parametrize(
    ("tlvs", "certificate", "name"),
    [
        (ssl_tlv(7, 0, NAME), b"", b"device-7"),
        (ssl_tlv(3, 0, NAME), b"", b"device-7"),
        (ssl_tlv(5, 0, NAME), b"", b"device-7"),
        (ssl_tlv(7, 0, tlv(0x21, b"TLSv1.3"), DER, NAME, tlv(0x23, b"ECDHE")), b"\x30\x82" + bytes(2000), b"device-7"),
        (ssl_tlv(3, 0, DER), b"\x30\x82" + bytes(2000), b""),
        (tlv(1, b"mqtt") + ssl_tlv(7, 0, NAME) + tlv(4, b""), b"", b"device-7"),
        (ssl_tlv(7, 0, tlv(0x22, "größe".encode())), b"", "größe".encode()),
        # Nothing that a proxy has not verified is believed.
        (ssl_tlv(1, 0, NAME, DER), b"", b""),
        (ssl_tlv(0, 0, NAME, DER), b"", b""),
        (ssl_tlv(0xF9, 0, NAME, DER), b"", b""),
        (ssl_tlv(7, 1, NAME, DER), b"", b""),
        (ssl_tlv(7, 1 << 8, NAME, DER), b"", b""),
        (ssl_tlv(7, 1 << 16, NAME, DER), b"", b""),
        (ssl_tlv(7, 1 << 31, NAME, DER), b"", b""),
        (ssl_tlv(7, 0, tlv(0x22, b"")), b"", b""),
        (ssl_tlv(7, 0), b"", b""),
        (NAME + DER, b"", b""),
        (ssl_tlv(7, 0, tlv(0x20, NAME)), b"", b""),
    ],
)
@pytest.mark.parametrize("checksum", [False, True])
def test_certificate_of_the_client(tlvs: bytes, certificate: bytes, name: bytes, checksum: bool) -> None:
    head = with_checksum(PROXY, TCP4, tcp(), behind=tlvs) if checksum else header(PROXY, TCP4, tcp() + tlvs)
    with Wire() as wire:
        assert not wire.carrier.proves
        wire.proxy.sendall(head + BEHIND)
        assert wire.carrier.read() == BEHIND
        assert wire.carrier.proof(0) == certificate and wire.carrier.proof(1) == b"" and wire.carrier.proof(2) == name
        assert wire.carrier.proves is bool(certificate or name)
        assert wire.carrier.plain is not bool(certificate or name)
        if name:
            assert wire.carrier.proof(2, len(name) - 1) == len(name), "how much room it needs"
        assert wire.carrier.write(b"x") == 1 and wire.proxy.recv(2) == b"x"
        wire.carrier.finish()
        assert wire.proxy.recv(2) == b""


def test_certificate_of_a_local_connection_is_nobodys() -> None:
    with Wire() as wire:
        wire.proxy.sendall(header(LOCAL, TCP4, tcp() + ssl_tlv(7, 0, NAME, DER)) + b"x")
        assert wire.carrier.read() == b"x"
        assert wire.carrier.plain and not wire.carrier.proves


# ---------------------------------------------------------------------------------------------- who is trusted


def test_peer_that_is_not_trusted() -> None:
    for head in (V1, header(LOCAL, UNSPEC, b""), b""):
        with Wire(Rules([(mapped("192.0.2.0"), 120)])) as wire:
            wire.proxy.sendall(head)
            assert wire.refused() == "the peer is not one of trusted_proxies"
            assert wire.carrier.peer_said == PROXY_ADDRESS
    with Wire(Rules([]), family=1) as wire:
        wire.proxy.sendall(V1)
        assert wire.carrier.read() == AGAIN, "a Unix socket's permissions have let it in"
        assert wire.carrier.peer_said == "192.0.2.7:50000"


def test_trust_does_not_follow_the_address_that_is_told() -> None:
    with Wire(Rules([(mapped("127.0.0.1"), 128)])) as wire:
        wire.proxy.sendall(V1)
        assert wire.carrier.read() == AGAIN
        wire.proxy.sendall(V1)
        assert wire.carrier.read() == V1, "a second header is payload"


ADDRESSES = ["127.0.0.1", "10.255.1.2", "192.0.2.7", "0.0.0.0", "255.255.255.255", "::1", "::", "2001:db8:ff::7", "fe80::1", "ffff::ffff"]


@pytest.mark.parametrize("prefix", range(129))
def test_networks_of_every_prefix_length(prefix: int) -> None:
    for base in ADDRESSES:
        network = mapped(base)
        rules = Rules([(network, prefix)])
        bits = int.from_bytes(network, "big")
        mask = ((1 << prefix) - 1) << (128 - prefix)
        others = [*map(mapped, ADDRESSES), network]
        others += [(bits ^ 1 << bit).to_bytes(16, "big") for bit in range(128)]
        for address in others:
            inside = (int.from_bytes(address, "big") ^ bits) & mask == 0
            assert rules.trusts(4 if address[:12] == bytes(10) + b"\xff\xff" else 6, address) is inside


@pytest.mark.parametrize("text", ["10.0.0.0/8", "192.0.2.0/25", "192.0.2.7/32", "0.0.0.0/0", "2001:db8::/33", "fe80::/10", "::/0"])
def test_networks_as_python_has_them(text: str) -> None:
    network = ipaddress.ip_network(text)
    prefix = network.prefixlen + (96 if network.version == 4 else 0)
    rules = Rules([(mapped("203.0.113.1"), 128), (mapped(str(network.network_address)), prefix)])
    for other in (*ADDRESSES, "192.0.2.127", "192.0.2.128", "11.0.0.0", "2001:db8:7fff::", "2001:db8:8000::", "febf::1", "fec0::1"):
        address = ipaddress.ip_address(other)
        if address.version == network.version:
            assert rules.trusts(address.version, mapped(other)) is (address in network)
    assert rules.trusts(4, mapped("203.0.113.1"))
    assert Rules([]).trusts(1) and not Rules([]).trusts(4, mapped("127.0.0.1"))


# ---------------------------------------------------------------------------------------------- what follows, and refused memory


def test_upgrade_that_fails() -> None:
    with Wire(Rules(ALL, refused=True)) as wire:
        wire.proxy.sendall(header(PROXY, TCP4, tcp() + ssl_tlv(7, 0, NAME)) + b"x")
        assert wire.refused() == "no memory for the connection's transport"


needs_refusals = pytest.mark.skipif(not ALLOC_TESTED, reason="this build hands out memory as it is asked: make a debug build")


@needs_refusals
def test_refused_memory() -> None:
    ours, proxy = socket.socketpair()
    ours.setblocking(False)
    carrier = Carrier(ours.detach())
    fail_allocations(0)
    assert carrier.proxy_accept(Rules(ALL)) == -1 and carrier.plain
    assert carrier.write(b"x") == 1, "the socket is as it was"
    carrier.close()
    proxy.close()
    head = header(PROXY, TCP4, tcp() + ssl_tlv(7, 0, NAME, DER))
    for granted, why in ((0, "no memory for the PROXY protocol header"), (1, "no memory for the connection's transport")):
        with Wire() as wire:
            wire.proxy.sendall(head + b"x")
            fail_allocations(granted)
            assert wire.carrier.read() == FAILED
            assert wire.refused() == why
    with Wire() as wire:
        wire.proxy.sendall(head + b"x")
        fail_allocations(2)
        assert wire.carrier.read() == b"x"
