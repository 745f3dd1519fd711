"""Fuzz targets written in Python: what any bytes must lead to. Each takes an input and raises where a promise is broken."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import itertools
import logging
import re
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import hyperframe.frame

from mqttc import codec
from mqttc.adapters import Origin
from mqttc.adapters.exchange import COUNTERS, HttpLimits, Receive, Scope, Send, Shared
from mqttc.adapters.http1 import Http1
from mqttc.adapters.http2 import Http2
from mqttc.adapters.upgrade import HTTP2_PREFACE, Decision, Rules, decide
from mqttc.client.url import parse_url as parse_broker_url
from mqttc.config import Config, ConfigError
from mqttc.config import parse_url as parse_listener_url
from mqttc.store import StoreError, check, info, open_store, schema
from tests.fuzz import auth_targets
from tests.fuzz.workplace import folder
from tests.store.stores import add_session, make_store, writing

_DATE = re.compile(rb"date: [^\r]*\r\n")
_STATUS = re.compile(rb"^HTTP/1\.1 ([0-9]{3}) ", re.MULTILINE)
_PEER = "192.0.2.9:5000"
TURNS = 16
_RULES = Rules("/mqtt", ("https://good.example",), (ipaddress.ip_network("192.0.2.0/24"),))


def pieces(data: bytes, seed: int) -> Iterator[bytes]:
    """The same bytes in pieces, few or many."""
    random = Random(seed)
    most = random.choice((1, 3, 20, 200))
    at = 0
    while at < len(data):
        size = random.randrange(1, most + 1)
        yield data[at : at + size]
        at += size


# ---------------------------------------------------------------------------------------------------- codec


def _decoded(parts: Iterator[bytes] | list[bytes], version: int | None, views: bool) -> tuple[list[codec.Packet], str, int | None]:
    decoder = codec.Decoder(version, max_packet_size=4096, payload_views=views)
    got: list[codec.Packet] = []
    try:
        for part in parts:
            got.extend(decoder.feed(part))
    except codec.DecodeError as error:
        assert 0x80 <= error.reason_code <= 0xFF, f"{error!r} has no reason code of an error"
        return got, f"{type(error).__name__}: {error}", decoder.version
    return got, "", decoder.version


def fuzz_codec(data: bytes) -> None:
    """First byte: version, and whether payloads are views; then a stream, at once and in pieces."""
    if not data:
        return
    version = (None, 3, 4, 5)[data[0] & 3]
    whole = _decoded([data[1:]], version, False)
    parts = _decoded(pieces(data[1:], data[0]), version, bool(data[0] & 4))
    assert whole == parts, f"at once {whole}, in pieces {parts}"
    spoken = whole[2]
    for packet in whole[0]:
        repr(packet)
        assert spoken is not None
        wire = codec.encode(packet, spoken)
        (again,) = codec.Decoder(spoken).feed(wire)
        if spoken == 3 and isinstance(packet, codec.Suback):  # 3.1 can only grant: 0x80 is read, and written as QoS 0
            packet = codec.Suback(packet.packet_id, [0 if code >= 0x80 else code for code in packet.reason_codes])
        assert again == packet, f"{again} is not {packet}"
        assert codec.encode(again, spoken) == wire


# ------------------------------------------------------------------------------------------- configuration


def fuzz_config(data: bytes) -> None:
    """A TOML file; behind a NUL settings of the command line, and URLs to listen on, one a line."""
    text, _, rest = data.partition(b"\0")
    words = rest.decode("utf-8", "replace").split("\n") if rest else []
    file = folder() / "mqttc.toml"
    file.write_bytes(text)
    try:
        config = Config.load(
            file, listen=[word for word in words if "://" in word], settings=[word for word in words if word and "://" not in word]
        )
    except ConfigError as error:
        assert error.problems and all(str(problem) for problem in error.problems) and str(error)
        return
    for name, value in config.engine_settings().items():
        assert isinstance(value, int) and -1 <= value < 1 << 63, (name, value)
    assert config.listeners and 1 <= config.worker_count() <= 256
    assert Config.of(config) == config
    repr(config)


def fuzz_url(data: bytes) -> None:
    """A URL of a listener, and of a broker for the client."""
    text = data.decode("utf-8", "replace")
    with contextlib.suppress(ValueError):
        address, _ = parse_listener_url(text)
        said = address.url()
        assert not any(character.isspace() for character in said), ascii(said)
        assert parse_listener_url(said) == (address, {}), f"{address} is written as {said}"
    try:
        target = parse_broker_url(text)
    except ValueError as error:
        password = re.match(r"[a-zA-Z]+://[^/?#:@]*:(.{8,})@", text)
        if password is not None and text.count(password[1]) == 1:
            assert password[1] not in str(error), "the password is in the error"
        return
    assert 0 <= target.port <= 65535 and target.authority is not None
    assert target.password is None or len(target.password) < 8 or f":{target.password}@" not in repr(target)


# ---------------------------------------------------------------------------------------------------- HTTP


class Line:
    """What a speaker has instead of a connection (`mqttc.adapters.line.Line`)."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._postponed = False
        self.out = bytearray()
        self.open = True
        self.full = False
        self.unsent = 0

    def write(self, data: bytes) -> None:
        if self.open:
            self.out += data

    def pause(self) -> None: ...

    def resume(self) -> None: ...

    def postpone(self, work: Callable[[], None]) -> None:
        if not self._postponed:
            self._postponed = True
            self._loop.call_soon(self._go_on, work)

    def _go_on(self, work: Callable[[], None]) -> None:
        self._postponed = False
        if self.open:
            work()

    def finish(self) -> None:
        self.open = False

    abort = finish


class Stage:
    """A speaker over such a line, with an application that answers and workers that take streams."""

    def __init__(self, speaker: Callable[[Any, Shared, Origin, Rules], Any], tick_s: float) -> None:
        self.loop = asyncio.new_event_loop()
        self.unhandled: list[Any] = []
        self.loop.set_exception_handler(lambda _, context: self.unhandled.append(context))
        self.sockets: list[socket.socket] = []
        self.line = Line(self.loop)
        clock = itertools.count()
        logger = logging.Logger("fuzz", logging.CRITICAL + 1)
        counters = dict.fromkeys(COUNTERS, 0)
        limits = HttpLimits(http_timeout=86_400)  # the machine may be slow, or the process stopped for a while
        self.shared = Shared(self.loop, self.app, self.adopt, limits, logger, counters, set(), lambda: next(clock) * tick_s)
        asyncio.set_event_loop(self.loop)
        self.speaker = speaker(self.line, self.shared, Origin(1, _PEER), _RULES)

    async def app(self, scope: Scope, receive: Receive, send: Send) -> None:
        message = await receive()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
        await send({"type": "http.response.body", "body": b"%d" % len(message["body"])})

    def adopt(self, origin: Origin, websocket: bool) -> socket.socket:
        if len(self.sockets) > 20:
            raise OSError("no connection left")
        ours, workers = socket.socketpair()
        for one in (ours, workers):
            one.setblocking(False)
        self.sockets.append(workers)
        return ours

    async def settled(self) -> None:
        """Turns of the loop until nobody has anything to do, or can for want of the peer's window."""
        for turn in range(TURNS):
            await asyncio.sleep(0)
            if turn > 2 and not self.shared.tasks:
                break

    def feed(self, parts: Iterator[bytes] | list[bytes]) -> bytes:
        for part in parts:
            if not self.line.open:
                break
            self.speaker.received(part)
            self.loop.run_until_complete(self.settled())
        return bytes(self.line.out)

    def close(self) -> None:
        self.speaker.lost()
        for task in self.shared.tasks:
            task.cancel()
        self.loop.run_until_complete(self.settled())
        for one in self.sockets:
            one.close()
        self.loop.run_until_complete(self.settled())
        asyncio.set_event_loop(None)
        self.loop.close()
        assert not self.unhandled, self.unhandled
        assert not self.shared.counters["http_app_errors"], "the application was given a request that it could not answer"


@contextlib.contextmanager
def stage(speaker: Callable[[Any, Shared, Origin, Rules], Any], tick_s: float = 0.0) -> Iterator[Stage]:
    """``tick_s``: by which the time moves on whenever it is looked at."""
    made = Stage(speaker, tick_s)
    try:
        yield made
    finally:
        made.close()


def fuzz_http1(data: bytes) -> None:
    """A stream of requests, at once and in pieces; its first head also as that of a new connection."""
    end = data.find(b"\r\n\r\n")
    decision = decide(data if end < 0 else data[: end + 4], _RULES, False, _PEER)
    assert isinstance(decision, Decision) and decision.reason.isprintable()
    answers = []
    for parts in ([data], pieces(data, len(data))):
        with stage(Http1) as one:
            answers.append([status for status in _STATUS.findall(_DATE.sub(b"", one.feed(parts))) if status != b"100"])
    assert answers[0] == answers[1], f"at once {answers[0]}, in pieces {answers[1]}"


def fuzz_http2(data: bytes) -> None:
    """Frames behind the preface, unless the first byte is odd."""
    if not data:
        return
    stream = data[1:] if data[0] & 1 else HTTP2_PREFACE + data[1:]
    for parts, tick_s in (([stream], 0.0), (pieces(stream, data[0]), 0.001)):  # in the latter turns end behind some frames
        with stage(Http2, tick_s) as one:
            out = memoryview(one.feed(parts))
        while out:
            frame, length = hyperframe.frame.Frame.parse_frame_header(out[:9])
            assert length <= 16384 and 9 + length <= len(out), "what was sent is no frame"
            frame.parse_body(out[9 : 9 + length])
            out = out[9 + length :]


# --------------------------------------------------------------------------------------------------- store

_stores: list[dict[str, bytes]] = []
_counts: list[dict[str, int]] = []
_copies = itertools.count()


def _samples() -> list[dict[str, bytes]]:
    """Files of a store that was closed, and of one whose broker was killed."""
    if not _stores:
        closed = folder() / "closed"
        path = make_store(closed, 3, 40)
        _counts.append(info(path).rows)
        _stores.append({"store.db": path.read_bytes()})
        killed = folder() / "killed"
        path = make_store(killed, 2, 10)
        with writing(path) as connection:
            add_session(connection, 9, 10)
            _stores.append({name: (killed / name).read_bytes() for name in ("store.db", "store.db-wal")})
        _counts.append(info(path).rows)
    return _stores


def _damage(file: bytearray, step: bytes) -> None:
    kind, high, low, value = step
    place = high << 8 | low
    at = place % len(file) if kind & 8 else place * len(file) // 65536
    page = at // schema.PAGE_BYTES * schema.PAGE_BYTES
    match kind & 7:
        case 0 | 1:
            file[at] = value
        case 2:
            file[at] ^= 1 << (value & 7)
        case 3:
            file[page : page + schema.PAGE_BYTES] = bytes([value]) * len(file[page : page + schema.PAGE_BYTES])
        case 4:
            del file[max(at, 1) :]
        case 5:
            file[at : at + value % 64 + 1] = bytes(len(file[at : at + value % 64 + 1]))
        case 6:
            file[page + value % 100] = low
        case 7:
            file += file[page : page + schema.PAGE_BYTES]


def fuzz_store(data: bytes) -> None:
    """First byte: which files; then steps of four bytes that damage them. Never a crash, and never an empty store in their place."""
    if len(data) < 5:
        return
    which = data[0] % len(_samples())
    files = {name: bytearray(content) for name, content in _samples()[which].items()}
    for at in range(1, min(len(data) - 3, 64), 4):
        names = list(files)
        _damage(files[names[(data[at] >> 4) % len(names)]], data[at : at + 4])
    home = folder() / f"damaged-{next(_copies)}"
    home.mkdir()
    try:
        for name, content in files.items():
            (home / name).write_bytes(content)
        _open_damaged(home, {name: bytes(content) for name, content in files.items()}, _counts[which])
    finally:
        shutil.rmtree(home)


def _open_damaged(home: Path, files: dict[str, bytes], counts: dict[str, int]) -> None:
    path = home / "store.db"
    before = path.read_bytes()
    try:
        with open_store(home) as store:
            assert not store.created and store.recovery is None
    except StoreError:
        assert path.read_bytes() == before, "a store that was refused is not as it was"
    try:
        found = check(path)
    except StoreError:
        found = ["refused"]
    try:
        with open_store(home, recover=True) as store:
            recovery = store.recovery
            assert not store.created, "a new store was made in place of a damaged one"
    except StoreError as error:
        assert str(error).isprintable(), ascii(str(error))
        assert path.read_bytes() == before, "a store that was refused is not as it was"
        return
    assert check(path) == [], "a recovered store is not sound"
    rows = info(path).rows
    if recovery is None:
        assert not found, f"{found} was found, and nothing recovered"
        if "store.db-wal" not in files:
            assert rows == counts, f"rows are lost that nobody misses: {rows} of {counts}"
        return
    assert recovery.reasons and recovery.lines()
    assert recovery.moved_to.is_file(), "the damaged file was not kept"
    for name, table in recovery.tables.items():
        assert table.kept == table.read - table.damaged - table.orphans, f"{name}: {table}"
        assert name == "meta" or rows[name] == table.kept, f"{name}: {table}, {rows[name]} rows"  # what meta lacks is written anew


TARGETS: dict[str, Callable[[bytes], None]] = {
    "codec": fuzz_codec,
    "config": fuzz_config,
    "url": fuzz_url,
    **auth_targets.TARGETS,
    "http1": fuzz_http1,
    "http2": fuzz_http2,
    "store": fuzz_store,
}
