"""WebSocket frame headers, masking and close payloads (RFC 6455 section 5 and 7.4), against their definition and against wsproto."""

from __future__ import annotations

import itertools
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wsproto.frame_protocol import FrameProtocol, ParseFailed

from tests.face.proto import NEED_MORE, ws_answer, ws_check, ws_close, ws_header, ws_mask_copy, ws_mask_move, ws_put

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
DATA = (CONTINUATION, TEXT, BINARY)
CONTROL = (CLOSE, PING, PONG)
PROTOCOL_ERROR, UNSUPPORTED, NOT_TEXT, TOO_BIG = 1002, 1003, 1007, 1009
EDGES = [0, 1, 124, 125, 126, 127, 128, 255, 256, 65534, 65535, 65536, 65537, 2**31, 2**32 - 1, 2**32, 2**63 - 1]

sizes = st.one_of(st.sampled_from(EDGES), st.integers(0, 2**63 - 1))
masks = st.binary(min_size=4, max_size=4)


def header(first: int, length: int, width: int = 0, mask: bytes | None = None) -> bytes:
    """Any header, right or wrong; width: 0, 2 or 8 bytes of extended length."""
    short = {0: length, 2: 126, 8: 127}[width]
    extended = {0: b"", 2: struct.pack(">H", length & 0xFFFF), 8: struct.pack(">Q", length)}[width]
    return bytes([first, short | (0x80 if mask is not None else 0)]) + extended + (mask or b"")


def least_width(n: int) -> int:
    return 0 if n < 126 else 2 if n < 65536 else 8


# ---------------------------------------------------------------------------------------------- headers


@given(opcode=st.sampled_from([*DATA, *CONTROL]), n=sizes, mask=st.none() | masks)
def test_round_trip(opcode: int, n: int, mask: bytes | None) -> None:
    if opcode in CONTROL:
        n %= 126
    made = ws_put(opcode, n, mask)
    assert made == header(0x80 | opcode, n, least_width(n), mask), "the least number of bytes"
    for behind in (b"", b"\xff" * 20):
        assert ws_header(made + behind) == (len(made), opcode, True, mask, n)
    for cut in range(len(made)):
        assert ws_header(made[:cut]) == NEED_MORE


@given(opcode=st.sampled_from(DATA), n=sizes, mask=st.none() | masks)
def test_a_frame_that_is_not_the_last(opcode: int, n: int, mask: bytes | None) -> None:
    made = header(opcode, n, least_width(n), mask)
    assert ws_header(made) == (len(made), opcode, False, mask, n)


@pytest.mark.parametrize("reserved", range(1, 8))
@pytest.mark.parametrize("opcode", range(16))
def test_reserved_bits(reserved: int, opcode: int) -> None:
    assert ws_header(header(0x80 | reserved << 4 | opcode, 0, mask=bytes(4))) == -PROTOCOL_ERROR


@pytest.mark.parametrize("opcode", [3, 4, 5, 6, 7, 11, 12, 13, 14, 15])
@pytest.mark.parametrize("fin", [0, 0x80])
def test_reserved_opcodes(opcode: int, fin: int) -> None:
    for n in (0, 1, 125):
        assert ws_header(header(fin | opcode, n, mask=bytes(4))) == -PROTOCOL_ERROR


@pytest.mark.parametrize("opcode", CONTROL)
def test_control_frames_are_short_and_whole(opcode: int) -> None:
    assert ws_header(header(0x80 | opcode, 125, mask=bytes(4))) == (6, opcode, True, bytes(4), 125)
    assert ws_header(header(opcode, 0, mask=bytes(4))) == -PROTOCOL_ERROR, "a fragment"
    for width, n in ((2, 126), (2, 5), (8, 65536), (8, 5)):
        assert ws_header(header(0x80 | opcode, n, width, bytes(4))) == -PROTOCOL_ERROR
        assert ws_header(header(0x80 | opcode, n, width)[:2]) == -PROTOCOL_ERROR, "known before the length has come"


@pytest.mark.parametrize(
    ("width", "n"),
    [
        *((2, n) for n in (0, 1, 124, 125)),
        *((8, n) for n in (0, 1, 125, 126, 65534, 65535)),
        *((8, 2**63 + n) for n in (0, 1, 65536, 2**63 - 1)),
    ],
)
@pytest.mark.parametrize("mask", [None, b"abcd"])
def test_lengths_that_are_not_minimal_or_have_the_highest_bit(width: int, n: int, mask: bytes | None) -> None:
    made = header(0x80 | BINARY, n, width, mask)
    assert ws_header(made) == -PROTOCOL_ERROR
    assert ws_header(made[: 1 + width]) == NEED_MORE


@given(data=st.binary(min_size=0, max_size=18))
def test_any_bytes_as_wsproto_reads_them(data: bytes) -> None:
    """What begins with these bytes is a header for both, or for neither. wsproto refuses a length before the mask has come, we with it."""
    ours = ws_header(data)
    protocol = FrameProtocol(client=len(data) > 1 and not data[1] & 0x80, extensions=[])
    decoder = protocol._frame_decoder
    decoder.receive_bytes(data)
    try:
        whole = decoder.parse_header()
    except ParseFailed:
        assert ours == -PROTOCOL_ERROR or ours == NEED_MORE
        if ours == NEED_MORE:
            assert ws_header(data + b"\0" * 12) == -PROTOCOL_ERROR
        return
    if not whole:
        assert ours == NEED_MORE or (ours == -PROTOCOL_ERROR and data[0] & 0x70), "wsproto looks at reserved bits behind the length"
        return
    found = decoder.header
    assert found is not None and isinstance(ours, tuple)
    assert (ours[1], ours[2], ours[4]) == (found.opcode, found.fin, found.payload_len)
    assert ours[0] == len(data) - len(decoder.buffer)


# ---------------------------------------------------------------------------------------------- which frame may come


@pytest.mark.parametrize("opcode", [*DATA, *CONTROL])
@pytest.mark.parametrize("must_mask", [False, True])
@pytest.mark.parametrize("fragmented", [False, True])
def test_masked_as_the_role_wants_it(opcode: int, must_mask: bool, fragmented: bool) -> None:
    assert ws_check(opcode, not must_mask, 0, must_mask, fragmented, 1000) == -PROTOCOL_ERROR


@pytest.mark.parametrize(
    ("opcode", "fragmented", "answer"),
    [
        (CONTINUATION, False, -PROTOCOL_ERROR), (CONTINUATION, True, 0), (BINARY, False, 0), (BINARY, True, -PROTOCOL_ERROR),
        (TEXT, False, -UNSUPPORTED), (TEXT, True, -PROTOCOL_ERROR),
        *((opcode, fragmented, 0) for opcode in CONTROL for fragmented in (False, True)),
    ],
)  # fmt: skip
def test_order_of_frames(opcode: int, fragmented: bool, answer: int) -> None:
    assert ws_check(opcode, True, 100, True, fragmented, 1000) == answer


@pytest.mark.parametrize("most", [0, 1, 1000, 2**32, 2**63 - 1])
def test_limit_of_a_frame(most: int) -> None:
    for opcode, fragmented in ((BINARY, False), (CONTINUATION, True)):
        assert ws_check(opcode, True, most, True, fragmented, most) == 0
        assert ws_check(opcode, True, most + 1, True, fragmented, most) == -TOO_BIG
    assert ws_check(PING, True, 125, True, False, most) == 0, "control frames have their own limit"


# ---------------------------------------------------------------------------------------------- masking


def naive(data: bytes, mask: bytes, phase: int) -> bytes:
    return bytes(byte ^ mask[(phase + i) % 4] for i, byte in enumerate(data))


PATTERN = bytes((i * 167 + 13) & 255 for i in range(300))


@pytest.mark.parametrize("phase", range(8))
def test_mask_of_every_length(phase: int) -> None:
    for n in (*range(80), 255, 300):
        masked = ws_mask_copy(PATTERN[:n], b"\x11\x80\xfe\x37", phase)
        assert masked == naive(PATTERN[:n], b"\x11\x80\xfe\x37", phase)
        assert ws_mask_copy(masked, b"\x11\x80\xfe\x37", phase) == PATTERN[:n]


@pytest.mark.parametrize("gap", range(20))
@pytest.mark.parametrize("phase", range(4))
def test_mask_that_moves_forwards_in_one_buffer(gap: int, phase: int) -> None:
    for n in (*range(64), 300):
        moved = ws_mask_move(PATTERN[:n], b"\x9a\x01\x77\xf0", phase, gap)
        assert moved[:n] == naive(PATTERN[:n], b"\x9a\x01\x77\xf0", phase)
        behind = (bytes(gap) + PATTERN[:n])[n:]
        assert moved[n:] == behind, "behind the payload nothing is written"


@given(data=st.binary(max_size=400), mask=masks, cuts=st.lists(st.integers(0, 400), max_size=6), gap=st.integers(0, 40))
def test_mask_in_pieces(data: bytes, mask: bytes, cuts: list[int], gap: int) -> None:
    edges = sorted({0, len(data), *(min(cut, len(data)) for cut in cuts)})
    pieces = [ws_mask_move(data[a:b], mask, a & 3, gap)[: b - a] for a, b in itertools.pairwise(edges)]
    assert b"".join(pieces) == naive(data, mask, 0)


# ---------------------------------------------------------------------------------------------- close


def test_every_close_status() -> None:
    """As the RFC and the registry have it; wsproto agrees but for 1014, which it does not know."""
    legal = {*range(1000, 1004), *range(1007, 1015), *range(3000, 5000)}
    for status in range(65536):
        payload = struct.pack(">H", status)
        assert ws_close(payload) == (status if status in legal else -PROTOCOL_ERROR)
        if status != 1014 and (status < 1100 or status % 97 == 0 or status in (2999, 3000, 4999, 5000)):
            try:
                FrameProtocol(client=False, extensions=[])._process_close(close_frame(payload))
            except ParseFailed:
                assert status not in legal
            else:
                assert status in legal


def close_frame(payload: bytes):  # type: ignore[no-untyped-def]
    from wsproto.frame_protocol import Frame, Opcode

    return Frame(Opcode.CLOSE, payload, True, True)


def test_close_without_a_status() -> None:
    assert ws_close(b"") == 1000
    for byte in range(256):
        assert ws_close(bytes([byte])) == -PROTOCOL_ERROR


@given(reason=st.one_of(st.binary(max_size=123), st.text(max_size=40).map(lambda text: text.encode("utf-8", "surrogatepass")[:123])))
def test_reason_is_utf8(reason: bytes) -> None:
    try:
        reason.decode()
    except UnicodeDecodeError:
        assert ws_close(struct.pack(">H", 1000) + reason) == -NOT_TEXT
        assert ws_close(struct.pack(">H", 999) + reason) == -PROTOCOL_ERROR
    else:
        assert ws_close(struct.pack(">H", 3210) + reason) == 3210


@pytest.mark.parametrize(
    ("reason", "good"),
    [
        (b"\0", True), (b"a\0b\0", True), ("κόσμε\0ü".encode(), True), (b"\xc3\0\xa9", False), (b"\0\xc3", False), (b"\xed\xa0\x80", False),
        (b"\xc0\x80", False), (b"\xf4\x8f\xbf\xbf", True), (b"\xf4\x90\x80\x80", False), (b"\xef\xbf\xbe", True), (b"\x7f\x01", True),
    ],
)  # fmt: skip
def test_reasons(reason: bytes, good: bool) -> None:
    assert ws_close(struct.pack(">H", 1000) + reason) == (1000 if good else -NOT_TEXT)


# ---------------------------------------------------------------------------------------------- the answer to a client's handshake

GOOD, REFUSAL, WRONG = 0, 1, 2
ACCEPT = b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
LINES = [b"HTTP/1.1 101 Switching Protocols", b"Upgrade: websocket", b"Connection: Upgrade", b"Sec-WebSocket-Accept: " + ACCEPT]


def answer(*lines: bytes) -> bytes:
    return b"\r\n".join(lines)


def test_answer_in_any_order_and_with_more() -> None:
    for lines in itertools.permutations(LINES[1:]):
        assert ws_answer(answer(LINES[0], *lines), ACCEPT) == GOOD
        assert ws_answer(answer(LINES[0], b"", b":", b"X", *lines, b"Server: x", b"\r"), ACCEPT) == GOOD


@pytest.mark.parametrize("missing", range(1, 4))
def test_answer_without_a_line(missing: int) -> None:
    assert ws_answer(answer(*LINES[:missing], *LINES[missing + 1 :]), ACCEPT) == WRONG


def test_answer_cut_anywhere() -> None:
    head = answer(*LINES)
    for cut in range(len(head)):
        assert ws_answer(head[:cut], ACCEPT) == (REFUSAL if cut < len(b"HTTP/1.1 101") else WRONG)


@given(head=st.binary(max_size=200), begun=st.booleans())
def test_answer_of_any_bytes(head: bytes, begun: bool) -> None:
    assert ws_answer(b"HTTP/1.1 101 x\r\n" + head if begun else head, ACCEPT) == (WRONG if begun else REFUSAL)
