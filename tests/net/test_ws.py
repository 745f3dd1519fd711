"""WebSocket over another transport: frames as data (ws_cases.txt), wsproto as oracle; then output, limits, handshakes, refused memory."""

from __future__ import annotations

import base64
import hashlib
import itertools
import random
import socket
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from wsproto import ConnectionType, WSConnection
from wsproto.connection import Connection, ConnectionState
from wsproto.events import AcceptConnection, BytesMessage, CloseConnection, Ping, Pong, TextMessage
from wsproto.events import Request as UpgradeRequest

from tests.face.net_transport import (
    AGAIN,
    ALLOC_TESTED,
    END,
    FAILED,
    IN,
    OUT,
    READ,
    REFUSED,
    Carrier,
    blocks_live,
    fail_allocations,
    live,
)

FRAME_MOST = 131072
OPCODES = {"more": 0, "text": 1, "binary": 2, "close": 8, "ping": 9, "pong": 10}
MASK = b"\x37\xfa\x21\x3d"


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    before, blocks = live(), blocks_live()
    yield
    fail_allocations(-1)
    assert live() == before
    assert blocks_live() == blocks


# ---------------------------------------------------------------------------------------------- cases


def value(text: str) -> bytes:
    made = b""
    for part in text.split("+"):
        if part not in (".", "-"):
            count, _, byte = part.rpartition("*")
            made += bytes.fromhex(byte) * int(count or 1)
    return made


def xor(data: bytes, mask: bytes) -> bytes:
    n = len(data)
    return (int.from_bytes(data, "big") ^ int.from_bytes((mask * (n // 4 + 1))[:n], "big")).to_bytes(n, "big")


def frame(
    opcode: int, payload: bytes = b"", first: int = 0x80, mask: bytes | None = MASK, width: int | None = None, says: int | None = None
) -> bytes:
    """A frame, right or wrong. first: FIN and reserved bits."""
    n = len(payload) if says is None else says
    if width is None:
        width = 0 if n < 126 else 2 if n < 65536 else 8
    masked = 0x80 if mask is not None else 0
    head = bytes([first | opcode, masked | {0: n, 2: 126, 8: 127}[width]])
    if width:
        head += struct.pack(">H" if width == 2 else ">Q", n)
    return head + (mask + xor(payload, mask) if mask is not None else payload)


def token_bytes(token: str) -> bytes:
    name, _, text = token.partition("=")
    kind, *flags = name.split("/")
    payload = value(text)
    if kind == "raw":
        return payload
    named = {flag.partition(":")[0]: flag.partition(":")[2] for flag in flags}
    first = 0 if "open" in named else 0x80
    first |= 0x40 * ("rsv1" in named) | 0x20 * ("rsv2" in named) | 0x10 * ("rsv4" in named)
    assert named.keys() <= {"open", "rsv1", "rsv2", "rsv4", "plain", "len2", "len8", "says"}
    return frame(
        OPCODES[kind] if kind in OPCODES else int(kind.removeprefix("op")),
        payload,
        first,
        None if "plain" in named else MASK,
        2 if "len2" in named else 8 if "len8" in named else None,
        int(named["says"]) if "says" in named else None,
    )


@dataclass
class Case:
    name: str
    frames: list[bytes]
    payload: bytes
    pongs: list[bytes]
    status: int | None      # of the close frame
    refused: bool
    apart: str

    @property
    def wire(self) -> bytes:
        return b"".join(self.frames)


def cases() -> list[Case]:
    made = []
    for line in (Path(__file__).parent / "ws_cases.txt").read_text("utf-8").splitlines():
        if line.strip() and not line.startswith("#"):
            name, frames, payload, pongs, end, apart = (column.strip() for column in line.split("|"))
            made.append(
                Case(
                    name,
                    [token_bytes(token) for token in frames.split()],
                    value(payload),
                    [] if pongs == "-" else [value(pong) for pong in pongs.split()],
                    None if end == "-" else int(end.lstrip("!")),
                    end.startswith("!"),
                    apart,
                )
            )
    return made


CASES = cases()


@dataclass
class Said:
    """What one side made of the other's bytes."""

    payload: bytes = b""
    pongs: list[bytes] = field(default_factory=list)
    status: int | None = None
    result: int = AGAIN


def server_said(sent: bytes) -> Said:
    """What our server's frames say, by wsproto's client, which finds fault with them if there is one."""
    said = Said()
    client = Connection(ConnectionType.CLIENT)
    if sent[-4:] == b"\x88\x02\x03\xf6":     # 1014: wsproto does not know it
        sent, said.status = sent[:-4], 1014
    client.receive_data(sent)
    for event in client.events():
        if isinstance(event, CloseConnection):
            assert client.state is ConnectionState.REMOTE_CLOSING, "a fault in our frames"
        assert said.status is None, "nothing behind a close frame"
        if isinstance(event, Pong):
            said.pongs.append(bytes(event.payload))
        elif isinstance(event, CloseConnection):
            said.status = event.code
            assert not event.reason
        else:
            assert isinstance(event, BytesMessage), event
            said.payload += event.data
    return said


def wsproto_said(wire: bytes) -> Said:
    said = Said()
    server = Connection(ConnectionType.SERVER)
    server.receive_data(wire)
    for event in server.events():
        if isinstance(event, Ping):
            said.pongs.append(bytes(event.payload))
        elif isinstance(event, CloseConnection):
            said.status = 1000 if event.code == 1005 else int(event.code)
            said.result = END if server.state is ConnectionState.REMOTE_CLOSING else REFUSED
            break
        elif isinstance(event, BytesMessage):
            said.payload += bytes(event.data)
        elif isinstance(event, TextMessage):
            said.payload += event.data.encode()
    return said


def listen(carrier: Carrier, said: Said, n: int = 1 << 18) -> bool:
    """Reads until nothing more comes; whether the connection goes on."""
    while True:
        got = carrier.read(n)
        if isinstance(got, bytes):
            said.payload += got
        elif got == AGAIN:
            if not carrier.waiting:         # what waits in a socket raises another event
                return True
        else:
            said.result = got
            return False


def play(chunks: list[bytes], n: int = 1 << 18) -> Said:
    carrier = Carrier()
    assert carrier.ws_accept(most=FRAME_MOST) == 0
    said = Said()
    for chunk in chunks:
        carrier.feed(chunk)
        if not listen(carrier, said, n):
            break
    answer = server_said(carrier.sent())
    assert not answer.payload
    said.pongs, said.status = answer.pongs, answer.status
    if said.result == AGAIN:
        assert carrier.failure is None
        assert carrier.write(b"x") == 1
    else:
        assert carrier.write(b"x") == FAILED, "nothing behind the close frame"
        assert (carrier.failure is not None) is (said.result == REFUSED)
        carrier.finish()
        carrier.finish()
        assert carrier.sent() == b"" and carrier.counts["finished"] == 2
    carrier.close()
    assert carrier.counts["closed"] == 1 and carrier.fd == -1 and carrier.failure is None
    return said


def check(case: Case, said: Said) -> None:
    assert said.payload == case.payload
    assert said.status == case.status
    assert said.result == (AGAIN if case.status is None else REFUSED if case.refused else END)


by_name = pytest.mark.parametrize("case", CASES, ids=[case.name.replace(" ", "-") for case in CASES])


@by_name
def test_case_whole(case: Case) -> None:
    said = play([case.wire])
    check(case, said)
    assert said.pongs == (case.pongs[-1:] if case.status is None else []), "one for each read; none behind a close frame"


def single(byte: int) -> bytes:
    return bytes([byte])


@by_name
def test_case_byte_by_byte(case: Case) -> None:
    if len(case.wire) > 3000:       # the edges of frames byte by byte, their inside in pieces
        chunks = []
        for one in case.frames:
            chunks += [*map(single, one[:20]), one[20:-20], *map(single, one[-20:])]
    else:
        chunks = [*map(single, case.wire)]
    said = play(chunks)
    check(case, said)
    assert said.pongs == case.pongs


@by_name
def test_case_at_random_splits(case: Case) -> None:
    chance = random.Random(case.name)
    long = len(case.wire) > 3000
    for most in (5000, 70_000) if long else (3, 10, 100):
        edges = [0]
        while edges[-1] < len(case.wire):
            edges.append(edges[-1] + chance.randint(1, most))
        chunks = [case.wire[a:b] for a, b in itertools.pairwise(edges)]
        for n in (1000, 70_000) if long else chance.sample([1, 2, 3, 4, 5, 7, 64, 1000], 3):
            said = play(chunks, n)
            check(case, said)
            rest = iter(case.pongs)
            assert all(pong in rest for pong in said.pongs), "in their order, none that was not asked for"
            if case.status is None:
                assert said.pongs[-1:] == case.pongs[-1:]


@by_name
def test_wsproto_agrees(case: Case) -> None:
    oracle = wsproto_said(case.wire)
    ours = (case.payload, case.pongs, case.status, AGAIN if case.status is None else REFUSED if case.refused else END)
    theirs = (oracle.payload, oracle.pongs, oracle.status, oracle.result)
    assert (ours == theirs) is not bool(case.apart), oracle


@by_name
def test_case_over_a_socket(case: Case) -> None:
    ours, peer = socket.socketpair()
    with peer:
        ours.setblocking(False)
        peer.setblocking(False)
        carrier = Carrier(ours.detach())
        assert carrier.ws_accept(most=FRAME_MOST) == 0
        said = Said()
        wire = case.wire
        while wire and said.result == AGAIN:
            try:
                wire = wire[peer.send(wire) :]
            except BlockingIOError:
                pass
            listen(carrier, said, 30_000)
        carrier.finish()
        sent = b""
        while part := peer.recv(65536):
            sent += part
        answer = server_said(sent)
        said.status = answer.status if said.result != AGAIN else None
        check(case, said)
        assert answer.status == (case.status if case.status is not None else 1000), "where nobody has closed, we do"
        assert answer.pongs[-1:] == (case.pongs[-1:] if case.status is None else [])
        carrier.close()


def test_every_number_of_every_section_is_there_once() -> None:
    names = [case.name.partition(" ")[0] for case in CASES]
    assert len(set(names)) == len(names)
    assert {name.partition(".")[0] for name in names} == {"1", "2", "3", "4", "5", "7", "9", "10"}


def test_random_frames_as_wsproto_has_them() -> None:
    """Thousands of streams of mostly legal frames, at random splits; text is left out, which is refused on purpose."""
    chance = random.Random(7)
    outcomes = set()
    for _ in range(1000):
        wire = b""
        for _ in range(chance.randrange(1, 12)):
            opcode = chance.choice([0, 0, 2, 2, 2, 8, 9, 9, 10, chance.choice([3, 11])])
            n = chance.choice([0, 1, 2, 5, 125, 126, 300])
            if opcode >= 8:
                n %= 126
            payload = chance.randbytes(n)
            if opcode == 8 and chance.random() < 0.7:
                payload = struct.pack(">H", chance.choice([999, 1000, 1001, 1005, 3000])) + b"bye"
            first = 0x80 if chance.random() < 0.7 or opcode >= 8 else 0
            first |= 0x40 if chance.random() < 0.02 else 0
            wire += frame(opcode, payload, first, chance.randbytes(4) if chance.random() < 0.98 else None)
        oracle = wsproto_said(wire)
        if oracle.status is not None and 1014 in struct.unpack(f">{len(wire) // 2}H", wire[: len(wire) // 2 * 2]):
            continue
        chunks = []
        left = wire
        while left:
            n = chance.choice([1, 2, 5, 20, 1000])
            chunks.append(left[:n])
            left = left[n:]
        said = play(chunks, chance.choice([1, 3, 16, 17, 100, 4096]))
        assert (said.payload, said.status, said.result) == (oracle.payload, oracle.status, oracle.result), wire.hex()
        outcomes.add((said.status, bool(said.payload), bool(said.pongs)))
    assert len(outcomes) > 12


# ---------------------------------------------------------------------------------------------- what a read leaves for the next


def accepted(response: bytes = b"", rest: bytes = b"", most: int = FRAME_MOST, role: str = "server") -> Carrier:
    carrier = Carrier()
    if role == "server":
        assert carrier.ws_accept(response, rest, most) == 0
    else:
        carrier = dialled(most)
    return carrier


def test_response_goes_first() -> None:
    carrier = accepted(b"HTTP/1.1 101 Yes\r\n\r\n")
    assert carrier.read() == AGAIN
    assert carrier.sent() == b"HTTP/1.1 101 Yes\r\n\r\n"
    carrier = accepted(b"HTTP/1.1 101 Yes\r\n\r\n")
    assert carrier.write(b"ab", b"c") == 3
    assert carrier.sent() == b"HTTP/1.1 101 Yes\r\n\r\n\x82\x03abc"


@pytest.mark.parametrize("room", range(21))
def test_response_that_the_socket_takes_in_part(room: int) -> None:
    response = b"HTTP/1.1 101 Yes\r\n\r\n"
    carrier = accepted(response)
    carrier.limit(room=room)
    assert carrier.read() == AGAIN
    assert bool(carrier.wants & OUT) is (room < len(response)), "it goes on when the socket takes more"
    assert carrier.write(b"abc") == AGAIN
    assert carrier.sent() == response[:room]
    carrier.limit(room=-1)
    assert carrier.write(b"abc") == 3
    assert carrier.sent() == (response + b"\x82\x03abc")[room:]


def test_ping_behind_the_request_is_answered_behind_the_response() -> None:
    carrier = accepted(b"yes", frame(9, b"now"))
    assert carrier.read() == AGAIN
    assert carrier.sent() == b"yes\x8a\x03now", "without an event that would bring another read"
    carrier = accepted(b"yes", frame(9, b"now"))
    carrier.limit(room=1)
    assert carrier.read() == AGAIN and carrier.wants & OUT
    carrier.limit(room=-1)
    assert carrier.read() == AGAIN and not carrier.wants & OUT
    assert carrier.sent() == b"yes\x8a\x03now"


@pytest.mark.parametrize("n", [1, 2, 5, 100])
def test_rest_comes_before_the_socket(n: int) -> None:
    wire = frame(2, b"0123456789") + frame(9, b"p") + frame(2, b"abcdef")
    for cut in range(len(wire) + 1):
        carrier = accepted(b"", wire[:cut])
        carrier.feed(wire[cut:])
        said = Said()
        assert listen(carrier, said, n)
        assert said.payload == b"0123456789abcdef"
        assert server_said(carrier.sent()).pongs == [b"p"]
        assert not carrier.wants


def test_held_bytes_ask_for_another_read() -> None:
    """No event tells of what lies here already."""
    carrier = accepted(b"", frame(2, b"a" * 100) + frame(2, b"b" * 100))
    assert carrier.read(80) == b"a" * 74, "a header, and what has room behind it"
    assert carrier.wants & READ
    carrier.inner_wants(reads=READ)
    assert carrier.read(1000) == b"a" * 26 + b"b" * 100
    assert carrier.wants & READ, "the transport below has more"


@pytest.mark.parametrize("result", [END, FAILED])
def test_what_the_transport_below_ends_with(result: int) -> None:
    for rest in (b"", frame(2, b"last"), frame(2, b"last")[:7]):
        carrier = accepted(b"", rest)
        carrier.end(result)
        got = carrier.read()
        if isinstance(got, bytes):
            assert got == b"last"[: len(rest) - 6] and carrier.wants & READ
            got = carrier.read()
        assert got == result, "also where it came behind payload of the same read"
        assert carrier.read() == (END if result == END else got)
    carrier = accepted()
    carrier.die()
    assert carrier.write(b"x") == FAILED
    assert carrier.failure == "the scripted transport is dead"


def test_what_the_peer_still_sends_once_it_was_refused() -> None:
    carrier = accepted()
    carrier.feed(frame(2, b"good") + frame(1, b"text") + frame(2, b"not read"))
    assert carrier.read() == b"good" and carrier.wants & READ
    assert carrier.read() == REFUSED
    assert carrier.failure == "WebSocket: a text frame"
    carrier.feed(frame(2, b"more"))
    assert isinstance(carrier.read(), bytes), "read away, raw, so that closing does not reset the connection"
    carrier.end(END)
    assert carrier.read() == END
    assert server_said(carrier.sent()).status == 1003


# ---------------------------------------------------------------------------------------------- pings


def test_pings_of_one_read_get_one_pong() -> None:
    for count in (1, 2, 50, 3000):
        carrier = accepted()
        carrier.feed(b"".join(frame(9, b"%d" % i) for i in range(count)))
        assert carrier.read() == AGAIN
        assert server_said(carrier.sent()).pongs == [b"%d" % (count - 1)]


def test_pong_waits_for_a_full_socket() -> None:
    carrier = accepted()
    carrier.limit(room=0)
    for i in range(5):
        carrier.feed(frame(9, b"%d" % i))
        assert carrier.read() == AGAIN
        assert carrier.wants & OUT, "the reactor comes back by a read"
    for _ in range(4):
        carrier.limit(room=1)
        assert carrier.read() == AGAIN
    assert carrier.wants & OUT
    carrier.limit(room=-1)
    assert carrier.read() == AGAIN
    assert not carrier.wants & OUT
    assert server_said(carrier.sent()).pongs == [b"0", b"4"], "what was promised, then the latest"


def test_ping_flood_at_a_full_socket_takes_no_memory() -> None:
    carrier = accepted()
    carrier.limit(room=0)
    flood = b"".join(frame(9, b"x" * 125) for _ in range(500))
    carrier.feed(flood)
    assert carrier.read() == AGAIN
    held = blocks_live()
    for _ in range(20):
        carrier.feed(flood)
        assert carrier.read() == AGAIN
    if ALLOC_TESTED:
        assert blocks_live() <= held + 1
    carrier.limit(room=-1)
    assert carrier.read() == AGAIN
    assert len(server_said(carrier.sent()).pongs) == 2


@pytest.mark.parametrize(
    "one",
    [frame(2), frame(10), frame(9), frame(9, b"p" * 50), frame(0, first=0)],
    ids=["binary", "pong", "ping", "ping-50", "fragment"],
)
def test_floods_that_bring_nothing(one: bytes) -> None:
    """Thousands of frames without payload: no memory, and one call does not read for ever."""
    carrier = accepted()
    opened = frame(2, first=0) if one[0] == 0 else b""
    count = (4 << 20) // len(one)
    carrier.feed(opened + one * count)
    held = blocks_live()
    calls = 0
    while carrier.unread:
        before = carrier.unread
        assert carrier.read(65536) == AGAIN
        assert 0 < before - carrier.unread <= (1 << 20) + 65536
        calls += 1
    assert calls >= 4
    if ALLOC_TESTED:
        assert blocks_live() <= held + 1
    carrier.feed(frame(0 if opened else 2, b"alive"))
    assert carrier.read() == b"alive"


def test_a_flood_out_of_a_transport_that_raises_no_events_asks_to_be_read_again() -> None:
    carrier = accepted()
    carrier.inner_wants(reads=READ)
    carrier.feed(frame(10) * 400_000)
    assert carrier.read(65536) == AGAIN
    assert carrier.unread and carrier.wants & READ


# ---------------------------------------------------------------------------------------------- output


def written(carrier: Carrier, parts: list[bytes], rounds: int = 10_000) -> int:
    """Hands over the parts as an output queue does, until all is taken; calls that it took. Each call must bring something or say AGAIN."""
    data = b"".join(parts)
    calls = 0
    while data:
        taken = carrier.write(data[:5], data[5:]) if len(data) > 5 else carrier.write(data)
        calls += 1
        if taken == AGAIN:
            return calls
        assert 0 < taken <= len(data)
        data = data[taken:]
        assert calls < rounds
    return calls


@pytest.mark.parametrize("sizes", [[0, 1], [1], [125], [60, 66], [1] * 64, [0] * 63 + [1], [65535], [40_000, 30_000], [1 << 20]])
def test_one_frame_for_one_write(sizes: list[int]) -> None:
    parts = [bytes([65 + i % 26]) * n for i, n in enumerate(sizes)]
    carrier = accepted()
    assert carrier.write(*parts) == sum(sizes)
    data = b"".join(parts)
    assert carrier.sent() == frame(2, data, mask=None)
    assert carrier.counts["writes"] == 1, "the header goes with the payload"


def test_nothing_to_write() -> None:
    carrier = accepted()
    assert carrier.write() == 0 and carrier.write(b"") == 0
    assert carrier.sent() == b""


@pytest.mark.parametrize("n", [1, 125, 126, 300])
def test_short_writes_at_every_byte(n: int) -> None:
    data = bytes(i * 7 & 255 for i in range(n))
    whole = frame(2, data, mask=None)
    head = len(whole) - n
    for room in range(len(whole) + 1):
        carrier = accepted()
        carrier.limit(room=room)
        taken = carrier.write(data[: n // 2], data[n // 2 :])
        assert taken == (room - head if room > head else AGAIN)
        assert not carrier.wants
        assert carrier.sent() == whole[:room]
        carrier.limit(room=-1)
        left = data[max(taken, 0) :]
        if left:
            assert carrier.write(left + b"next") == len(left) + 4, "what was promised, and a frame of its own for the rest"
        assert carrier.sent() == whole[room:] + (frame(2, b"next", mask=None) if left else b"")


@pytest.mark.parametrize("step", [1, 2, 3, 5, 100, 1000])
def test_a_socket_that_takes_a_little_at_a_time(step: int) -> None:
    data = bytes(i * 11 & 255 for i in range(3000))
    carrier = accepted()
    carrier.limit(write_most=step)
    left = data
    while left:
        taken = carrier.write(left[:7], left[7:])
        if taken != AGAIN:
            left = left[taken:]
    assert carrier.sent() == frame(2, data, mask=None)


@pytest.mark.parametrize("cut", range(1, 12))
def test_pong_waits_until_the_frame_is_whole(cut: int) -> None:
    data = b"0123456789"
    carrier = accepted()
    carrier.limit(room=cut)
    taken = max(carrier.write(data), 0)
    carrier.feed(frame(9, b"first"))
    assert carrier.read() == AGAIN
    carrier.limit(room=-1)
    carrier.feed(frame(9, b"now"))
    assert carrier.read() == AGAIN
    assert not carrier.wants & OUT, "the output queue brings the rest of the frame"
    assert carrier.sent() == frame(2, data, mask=None)[:cut], "no byte of a pong inside a frame"
    assert carrier.write(data[taken:]) == len(data) - taken
    assert carrier.sent() == frame(2, data, mask=None)[cut:] + frame(10, b"now", mask=None)


def test_pong_behind_a_frame_that_fills_the_socket() -> None:
    carrier = accepted()
    carrier.limit(room=4)
    assert carrier.write(b"abcdef") == 2
    carrier.feed(frame(9, b"now"))
    assert carrier.read() == AGAIN
    carrier.limit(room=4)
    assert carrier.write(b"cdef") == 4
    assert carrier.wants & OUT, "nothing of the queue is left that would bring it"
    assert carrier.write(b"more") == AGAIN, "behind the pong"
    carrier.limit(room=3)
    assert carrier.read() == AGAIN and carrier.wants & OUT
    carrier.limit(room=-1)
    assert carrier.read() == AGAIN and not carrier.wants & OUT
    assert carrier.sent() == b"\x82\x06abcdef\x8a\x03now"


@pytest.mark.parametrize("cut", range(1, 12))
def test_close_and_refusal_in_the_middle_of_a_frame(cut: int) -> None:
    """A close frame cannot stand inside a frame: it comes when that is whole, or not at all."""
    data = b"0123456789"
    whole = frame(2, data, mask=None)
    carrier = accepted()
    carrier.limit(room=cut)
    taken = max(carrier.write(data), 0)
    carrier.limit(room=-1)
    carrier.feed(frame(8, struct.pack(">H", 1001)))
    assert carrier.read() == END
    assert carrier.write(data[taken:]) == len(data) - taken
    carrier.finish()
    assert carrier.sent() == whole + frame(8, struct.pack(">H", 1001), mask=None), "with the status that the peer gave"
    assert carrier.write(b"x") == FAILED
    carrier = accepted()
    carrier.limit(room=cut)
    carrier.write(data)
    carrier.limit(room=-1)
    carrier.feed(frame(1, b"text"))
    assert carrier.read() == REFUSED
    assert carrier.write(data[taken:]) == FAILED
    carrier.finish()
    assert carrier.sent() == whole[:cut]


@pytest.mark.parametrize("room", range(5))
def test_close_frame_that_the_socket_takes_in_part(room: int) -> None:
    for opcode, result, wanted in ((8, END, b"\x88\x02\x03\xe8"), (1, REFUSED, b"\x88\x02\x03\xeb")):
        carrier = accepted()
        carrier.limit(room=room)
        carrier.feed(frame(opcode))
        assert carrier.read() == result
        assert carrier.sent() == wanted[:room]
        carrier.limit(room=-1)
        carrier.finish()
        assert carrier.sent() == wanted[room:], "its rest goes before the end of the stream"
        assert carrier.counts["finished"] == 1


def test_we_close_first() -> None:
    carrier = accepted(b"yes")
    carrier.finish()
    assert carrier.sent() == b"yes\x88\x02\x03\xe8"
    carrier.feed(frame(2, b"still under way") + frame(9, b"p") + frame(8, struct.pack(">H", 1000)))
    assert carrier.read() == b"still under way"
    assert carrier.read() == END
    assert carrier.sent() == b"", "no pong and no second close frame"


def test_going_away() -> None:
    """Said with the last word; to who has closed first his own status is answered. Nothing happens to what is no WebSocket."""
    carrier = accepted(b"yes")
    carrier.ws_going_away()
    assert carrier.write(b"last") == 4
    carrier.finish()
    assert carrier.sent() == b"yes\x82\x04last\x88\x02\x03\xe9"
    carrier = accepted()
    carrier.feed(frame(8, struct.pack(">H", 3000)))
    assert carrier.read() == END
    carrier.ws_going_away()
    carrier.finish()
    assert carrier.sent() == frame(8, struct.pack(">H", 3000), mask=None)
    carrier.close()
    carrier.ws_going_away()
    plain = Carrier()
    plain.ws_going_away()
    plain.finish()
    assert plain.sent() == b""


# ---------------------------------------------------------------------------------------------- a client

KEY = "dGhlIHNhbXBsZSBub25jZQ=="
ACCEPT = base64.b64encode(hashlib.sha1(KEY.encode() + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
REQUEST = (
    "GET /mqtt HTTP/1.1\r\nHost: broker\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: " + KEY + "\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: mqtt\r\n\r\n"
).encode()
ANSWER = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: " + ACCEPT + b"\r\n\r\n"


def answered(request: bytes) -> tuple[WSConnection, bytes]:
    """wsproto's server, and its answer."""
    server = WSConnection(ConnectionType.SERVER)
    server.receive_data(request)
    (event,) = server.events()
    assert isinstance(event, UpgradeRequest) and event.target == "/mqtt" and event.subprotocols == ["mqtt"]
    return server, server.send(AcceptConnection(subprotocol="mqtt"))


def dialled(most: int = FRAME_MOST) -> Carrier:
    """A client whose handshake is done."""
    carrier = Carrier()
    assert carrier.ws_dial(REQUEST, ACCEPT, most) == 0
    carrier.feed(ANSWER)
    assert carrier.read() == AGAIN
    assert carrier.sent() == REQUEST
    return carrier


def client_said(server: WSConnection, sent: bytes) -> list[object]:
    server.receive_data(sent)
    return list(server.events())


def test_client_and_wsproto_server() -> None:
    carrier = Carrier()
    assert carrier.ws_dial(REQUEST, ACCEPT) == 0
    assert carrier.write(b"too early") == AGAIN
    assert carrier.wants & IN, "it goes on when the answer was read"
    server, answer = answered(carrier.sent())
    carrier.feed(answer)
    assert carrier.read() == AGAIN
    assert carrier.failure is None
    assert carrier.write(b"now", b"", b"then") == 7
    assert not carrier.wants & IN
    sent = carrier.sent()
    assert sent[1] == 0x80 | 7
    (message,) = client_said(server, sent)
    assert isinstance(message, BytesMessage) and message.data == b"nowthen"
    carrier.feed(server.send(BytesMessage(data=b"answer")) + server.send(Ping(payload=b"p")))
    assert carrier.read() == b"answer"
    (pong,) = client_said(server, carrier.sent())
    assert isinstance(pong, Pong) and pong.payload == b"p"
    carrier.finish()
    (close,) = client_said(server, carrier.sent())
    assert isinstance(close, CloseConnection) and close.code == 1000
    carrier.feed(server.send(close.response()))
    assert carrier.read() == END


@pytest.mark.parametrize("n", [1, 7, 100_000])
def test_answer_at_every_split(n: int) -> None:
    behind = frame(2, b"and at once", mask=None)
    for cut in range(len(ANSWER) + len(behind) + 1):
        carrier = Carrier()
        assert carrier.ws_dial(REQUEST, ACCEPT) == 0
        said = Said()
        carrier.feed((ANSWER + behind)[:cut])
        assert listen(carrier, said, n)
        if cut < len(ANSWER):
            assert carrier.write(b"x") == AGAIN and carrier.failure == "the WebSocket handshake was not finished"
        carrier.feed((ANSWER + behind)[cut:])
        assert listen(carrier, said, n)
        assert said.payload == b"and at once"


def test_frames_behind_the_answer_are_not_counted_as_its_length() -> None:
    behind = frame(2, b"z" * 60_000, mask=None)
    carrier = Carrier()
    assert carrier.ws_dial(REQUEST, ACCEPT) == 0
    carrier.feed(ANSWER + behind)
    said = Said()
    assert listen(carrier, said)
    assert said.payload == b"z" * 60_000


NOT_AGREED, WRONG, TOO_LONG = "the server has not agreed to it", "the server's handshake is wrong", "the server's answer is too long"


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", NOT_AGREED),
        (b"HTTP/1.1 200 OK\r\nSec-WebSocket-Accept: " + ACCEPT + b"\r\n\r\n", NOT_AGREED),
        (b"HTTP/1.1 1010 Odd\r\n" + ANSWER.partition(b"\r\n")[2], NOT_AGREED),
        (ANSWER.replace(b"HTTP/1.1", b"HTTP/1.0"), NOT_AGREED),
        (b"\r\n\r\n", NOT_AGREED),
        (b"SSH-2.0-x\r\n\r\n", NOT_AGREED),
        (ANSWER.replace(ACCEPT, ACCEPT.swapcase()), WRONG),
        (ANSWER.replace(ACCEPT, ACCEPT[:-1]), WRONG),
        (ANSWER.replace(ACCEPT, ACCEPT + b"="), WRONG),
        (ANSWER.replace(ACCEPT, b""), WRONG),
        (ANSWER.replace(b"Sec-WebSocket-Accept", b"X-Sec-WebSocket-Accept"), WRONG),
        (ANSWER.replace(b"Sec-WebSocket-Accept", b"Sec-WebSocket-Accept2"), WRONG),
        (ANSWER.replace(b"Upgrade: websocket\r\n", b""), WRONG),
        (ANSWER.replace(b"Upgrade: websocket", b"Upgrade: h2c"), WRONG),
        (ANSWER.replace(b"Connection: Upgrade\r\n", b""), WRONG),
        (ANSWER.replace(b"Connection: Upgrade", b"Connection: keep-alive"), WRONG),
        (ANSWER.replace(b"\r\n\r\n", b"\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n"), WRONG),
        (b"HTTP/1.1 101 Yes\r\n\r\n", WRONG),
        (ANSWER.replace(b"\r\n\r\n", b"\r\nX: " + b"y" * 9000 + b"\r\n\r\n"), TOO_LONG),
        (b"HTTP/1.1 101 " + b"y" * 20_000, TOO_LONG),
    ],
)
@pytest.mark.parametrize("read_most", [1, 1 << 20])
def test_answers_that_are_refused(answer: bytes, why: str, read_most: int) -> None:
    carrier = Carrier()
    carrier.limit(read_most=read_most)
    assert carrier.ws_dial(REQUEST, ACCEPT) == 0
    carrier.feed(answer)
    got: object = AGAIN
    while got == AGAIN and carrier.unread:
        got = carrier.read()
    assert got == FAILED
    assert carrier.failure == "WebSocket: " + why
    assert carrier.read() == FAILED and carrier.write(b"x") == FAILED
    carrier.finish()
    assert carrier.sent() == REQUEST, "no close frame before frames were agreed to"


@pytest.mark.parametrize(
    "answer",
    [
        ANSWER.replace(b"Sec-WebSocket-Accept: ", b"sec-websocket-ACCEPT:\t "),
        ANSWER.replace(ACCEPT, ACCEPT + b" \t"),
        ANSWER.replace(b"Connection: Upgrade", b"Connection: keep-alive , uPGRADE"),
        ANSWER.replace(b"Upgrade: websocket", b"uPgrade:WebSocket"),
        ANSWER.replace(b"101 Switching Protocols", b"101"),
        ANSWER.replace(b"\r\n\r\n", b"\r\nX: " + b"y" * 7000 + b"\r\n\r\n"),
    ],
)
def test_answers_that_are_good(answer: bytes) -> None:
    carrier = Carrier()
    assert carrier.ws_dial(REQUEST, ACCEPT) == 0
    carrier.feed(answer)
    assert carrier.read() == AGAIN
    assert carrier.failure is None and carrier.write(b"x") == 1


@pytest.mark.parametrize("result", [END, FAILED])
def test_server_that_goes_away_during_the_handshake(result: int) -> None:
    carrier = Carrier()
    assert carrier.ws_dial(REQUEST, ACCEPT) == 0
    carrier.feed(ANSWER[:30])
    assert carrier.read() == AGAIN
    carrier.end(result)
    assert carrier.read() == result
    assert carrier.failure == "the WebSocket handshake was not finished"
    carrier.finish()
    assert carrier.sent() == REQUEST


@pytest.mark.parametrize("room", [0, 1, 50, len(REQUEST) - 1])
def test_request_that_the_socket_takes_in_part(room: int) -> None:
    carrier = Carrier()
    carrier.limit(room=room)
    assert carrier.ws_dial(REQUEST, ACCEPT) == 0
    assert carrier.write(b"x") == AGAIN
    assert not carrier.wants & IN, "it is the socket that is waited for"
    assert carrier.read() == AGAIN
    assert carrier.wants & OUT, "nothing else would bring the rest of the request"
    carrier.limit(room=-1)
    assert carrier.read() == AGAIN
    assert not carrier.wants & OUT and carrier.sent() == REQUEST


def test_request_waits_for_a_handshake_below() -> None:
    carrier = Carrier()
    carrier.limit(room=0)
    carrier.inner_wants(writes=IN)
    assert carrier.ws_dial(REQUEST, ACCEPT) == 0
    assert carrier.write(b"x") == AGAIN and carrier.wants & IN
    assert carrier.read() == AGAIN
    assert not carrier.wants & OUT, "a socket that takes output would not help, and would be reported again and again"
    carrier.limit(room=-1)
    assert carrier.read() == AGAIN
    assert carrier.sent() == REQUEST


@pytest.mark.parametrize("n", [1, 125, 126, 16383, 16384, 16385, 50_000])
def test_client_frames_at_every_pace(n: int) -> None:
    data = bytes(i * 13 & 255 for i in range(n))
    for step in (1, 2, 3, 7, 1000, 100_000):
        if n // step > 20_000:
            continue
        carrier = Carrier()
        assert carrier.ws_dial(REQUEST, ACCEPT) == 0
        assert carrier.write(b"x") == AGAIN
        server, answer = answered(carrier.sent())
        carrier.feed(answer)
        assert carrier.read() == AGAIN
        carrier.limit(write_most=step)
        left = data
        while left:
            taken = carrier.write(left[:1], left[1:1000], left[1000:])
            if taken != AGAIN:
                left = left[taken:]
        got = b""
        for event in client_said(server, carrier.sent()):
            assert isinstance(event, BytesMessage)
            got += bytes(event.data)
        assert got == data


def test_client_masks_differ() -> None:
    carrier = dialled()
    found = set()
    for _ in range(50):
        carrier.write(b"x")
        found.add(carrier.sent()[2:6])
    assert len(found) == 50


@pytest.mark.parametrize(
    ("wire", "status"),
    [
        (frame(2, b"x"), 1002), (frame(9, b"x"), 1002), (frame(1, b"x", mask=None), 1003), (frame(0, b"x", mask=None), 1002),
        (frame(2, b"x" * (FRAME_MOST + 1), mask=None), 1009), (frame(8, b"\3\xe8\xff", mask=None), 1007),
    ],
)  # fmt: skip
def test_servers_that_break_the_rules(wire: bytes, status: int) -> None:
    carrier = dialled()
    carrier.feed(frame(2, b"good", mask=None) + wire)
    assert carrier.read() == b"good"
    assert carrier.read() == REFUSED
    sent = carrier.sent()
    assert sent[:2] == b"\x88\x82" and xor(sent[6:], sent[2:6]) == struct.pack(">H", status)


# ---------------------------------------------------------------------------------------------- under another identity, and refused memory


def test_proofs_are_those_of_the_transport_below() -> None:
    carrier = Carrier()
    assert carrier.ws_accept() == 0
    assert carrier.proves and carrier.proof(0) == b"messenger" and carrier.proof(0, 8) == 9 and carrier.proof(2) == b""
    carrier = Carrier()
    assert carrier.vouch(b"DER", b"", b"client") == 0
    assert carrier.ws_accept() == 0
    assert carrier.proof(0) == b"DER" and carrier.proof(0, 2) == 3 and carrier.proof(1) == b"" and carrier.proof(2) == b"client"
    carrier.feed(frame(2, b"through both"))
    assert carrier.read() == b"through both" and carrier.write(b"x") == 1
    assert carrier.failure is None


def test_vouched_for_nothing_is_no_layer() -> None:
    carrier = Carrier()
    before = live()
    assert carrier.vouch() == 0
    assert live() == before and carrier.plain and carrier.proof(0) == b"messenger"


def test_vouched_passes_everything_through() -> None:
    carrier = Carrier()
    assert carrier.vouch(common_name=b"client") == 0
    assert carrier.proof(0) == b"", "what the messenger can prove is not the client's"
    carrier.feed(b"in")
    carrier.inner_wants(reads=READ | OUT, writes=IN)
    assert carrier.read() == b"in" and carrier.wants == READ | OUT
    carrier.inner_wants()
    assert carrier.read() == AGAIN and carrier.wants == 0
    assert carrier.write(b"o", b"ut") == 3 and carrier.sent() == b"out"
    carrier.limit(room=0)
    carrier.inner_wants(writes=IN)
    assert carrier.write(b"x") == AGAIN and carrier.wants & IN
    carrier.die()
    assert carrier.write(b"x") == FAILED and carrier.failure == "the scripted transport is dead"
    carrier.finish()
    carrier.close()
    assert carrier.counts["finished"] == carrier.counts["closed"] == 1 and carrier.failure is None


needs_refusals = pytest.mark.skipif(not ALLOC_TESTED, reason="this build hands out memory as it is asked: make a debug build")


def until_granted(attempt: Callable[[], bool]) -> int:
    """Refuses the first allocation, then the second, and so on, until it works; how often it did not."""
    refused = 0
    while True:
        fail_allocations(refused)
        worked = attempt()
        fail_allocations(-1)
        if worked:
            return refused
        refused += 1
        assert refused < 100


@needs_refusals
def test_refused_memory_of_making() -> None:
    for make, refusals in (
        (lambda one: one.ws_accept(b"response", b"rest"), 3),
        (lambda one: one.ws_accept(), 1),
        (lambda one: one.ws_dial(REQUEST, ACCEPT), 3),
        (lambda one: one.vouch(b"DER"), 1),
    ):
        carrier = Carrier()
        before = live()

        def attempt(carrier: Carrier = carrier, make: Callable[[Carrier], int] = make, before: dict[str, int] = before) -> bool:
            status = make(carrier)
            if status == 0:
                return True
            assert status == -1 and carrier.plain and live() == before
            assert carrier.write(b"x") == 1, "the transport is as it was"
            return False

        assert until_granted(attempt) == refusals
        carrier.close()


@needs_refusals
def test_refused_memory_of_a_control_frame() -> None:
    carrier = accepted()
    carrier.feed(frame(2, b"good") + frame(9, b"p"))
    fail_allocations(0)
    assert carrier.read() == b"good"
    assert carrier.read() == FAILED, "the peer has done nothing wrong"
    assert carrier.failure == "WebSocket: no memory"
    assert carrier.read() == FAILED and carrier.write(b"x") == FAILED
    carrier.finish()
    assert carrier.sent() == b""


@needs_refusals
def test_refused_memory_of_a_pong() -> None:
    carrier = accepted()
    carrier.feed(frame(9, b"p"))
    fail_allocations(1)
    assert carrier.read() == AGAIN and carrier.sent() == b""
    assert carrier.read() == AGAIN and carrier.sent() == b"\x8a\x01p", "at the next occasion"


@needs_refusals
def test_refused_memory_of_a_close_frame() -> None:
    for opcode, result in ((8, END), (1, REFUSED)):
        carrier = accepted()
        carrier.feed(frame(opcode))
        fail_allocations(1 if opcode == 8 else 0)
        assert carrier.read() == result
        carrier.finish()
        assert carrier.sent() == b"" and carrier.counts["finished"] == 1
    carrier = accepted()
    fail_allocations(0)
    carrier.finish()
    assert carrier.sent() == b"" and carrier.counts["finished"] == 1


@needs_refusals
def test_refused_memory_of_an_answer() -> None:
    carrier = Carrier()
    assert carrier.ws_dial(REQUEST, ACCEPT) == 0
    carrier.feed(ANSWER)
    fail_allocations(0)
    assert carrier.read() == FAILED and carrier.failure == "WebSocket: no memory"
    assert carrier.read() == FAILED
