"""HTTP/2 on spliced connections: requests, WebSocket streams to a worker, flow control from end to end, and hostile frames.

h2 is the client where a client would do what the test does, frames by hyperframe where it would not; Node.js is an independent one.
"""

from __future__ import annotations

import asyncio
import ipaddress
import itertools
import random
import re
import shutil
import socket
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.settings
import hpack
import pytest
import wsproto
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    ExtensionFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    PriorityFrame,
    PushPromiseFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)
from wsproto.frame_protocol import FrameProtocol, Opcode

from mqttc.adapters import Origin
from mqttc.adapters.exchange import HttpLimits, Receive, Scope, Send
from mqttc.adapters.http2 import Budget, Frames, FrameTooLargeError, Http2
from mqttc.adapters.upgrade import HTTP2_PREFACE
from mqttc.web.app import make_app
from tests.adapters.http_peer import PEER, RULES, WAIT_S, Bench, Peer, run, until

Codes = h2.errors.ErrorCodes
SHORT = HttpLimits(http_timeout=0.25)
GET = ((":method", "GET"), (":scheme", "http"), (":authority", "broker.example"), (":path", "/a"))
CONNECT = (
    *((":method", "CONNECT"), (":protocol", "websocket"), (":scheme", "http"), (":authority", "broker.example"), (":path", "/mqtt")),
    *(("sec-websocket-version", "13"), ("sec-websocket-protocol", "mqtt")),
)

Fields = tuple[tuple[str, str], ...]


def changed(fields: Fields, **changes: str | None) -> Fields:
    """Fields with some values changed (None: removed) or added; ``_`` stands for ``-``, a leading one for the colon."""
    named = {re.sub("^-", ":", name.replace("_", "-")): value for name, value in changes.items()}
    kept = [(name, named.pop(name, value)) for name, value in fields]
    return tuple((name, value) for name, value in [*kept, *named.items()] if value is not None)


class Client:
    """An HTTP/2 client that reads only when it is asked to, and acknowledges only what ``take`` is asked for."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.http = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))
        self.status: dict[int, int] = {}
        self.headers: dict[int, dict[str, str]] = {}
        self.data: dict[int, bytes] = {}
        self.unacknowledged: dict[int, int] = {}
        self.ended: set[int] = set()
        self.informed: set[int] = set()
        self.reset: dict[int, int] = {}
        self.goaway: int | None = None
        self.closed = False
        self.order: list[int] = []
        """Streams in the order of their DATA."""
        self.http.initiate_connection()

    async def flush(self) -> None:
        await self.peer.send(self.http.data_to_send())

    async def open(self, fields: Fields = GET, body: bytes | None = None) -> int:
        """Send a request; a WebSocket request's stream stays open. ``body`` may be larger than the window."""
        stream_id = self.http.get_next_available_stream_id()
        connect = dict(fields)[":method"] == "CONNECT"
        self.http.send_headers(stream_id, fields, end_stream=not connect and body is None)
        await self.flush()
        if body is not None:
            await self.write(stream_id, body, end=True)
        return stream_id

    async def write(self, stream_id: int, data: bytes, *, end: bool = False) -> None:
        """Send within the windows, as they open."""
        rest = data
        while rest or not data:
            size = min(self.http.local_flow_control_window(stream_id), self.http.max_outbound_frame_size, len(rest))
            if size <= 0 and data:
                await self.read()
                continue
            self.http.send_data(stream_id, rest[:size], end_stream=end and size == len(rest))
            rest = rest[size:]
            await self.flush()
            if not data:
                break

    async def read(self) -> None:
        await self.flush_if_any()
        data = await self.peer.recv()
        if not data:
            self.closed = True
        for event in self.http.receive_data(data):
            self.take_event(event)

    async def flush_if_any(self) -> None:
        data = self.http.data_to_send()
        if data and not self.closed:
            await self.peer.send(data)

    def take_event(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.ResponseReceived):
            fields = {str(name): str(value) for name, value in event.headers or ()}
            self.headers[event.stream_id or 0] = fields
            self.status[event.stream_id or 0] = int(fields[":status"])
        elif isinstance(event, h2.events.InformationalResponseReceived):
            self.informed.add(event.stream_id or 0)
        elif isinstance(event, h2.events.DataReceived):
            stream_id = event.stream_id or 0
            self.data[stream_id] = self.data.get(stream_id, b"") + (event.data or b"")
            self.order.append(stream_id)
            self.unacknowledged[stream_id] = self.unacknowledged.get(stream_id, 0) + (event.flow_controlled_length or 0)
        elif isinstance(event, h2.events.StreamEnded):
            self.ended.add(event.stream_id or 0)
        elif isinstance(event, h2.events.StreamReset):
            self.reset[event.stream_id or 0] = int(event.error_code or 0)
        elif isinstance(event, h2.events.ConnectionTerminated):
            self.goaway = int(event.error_code or 0)

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            assert not self.closed, "the connection has ended"
            await self.read()

    async def acknowledge(self, stream_id: int) -> None:
        """Give the server back the window that it has used."""
        self.http.acknowledge_received_data(self.unacknowledged.pop(stream_id, 0), stream_id)
        await self.flush_if_any()

    async def response(self, stream_id: int) -> tuple[int, bytes]:
        while stream_id not in self.ended:
            assert not self.closed and stream_id not in self.reset
            await self.read()
            if self.unacknowledged.get(stream_id):
                await self.acknowledge(stream_id)
        return self.status[stream_id], self.data.get(stream_id, b"")

    async def ask(self, fields: Fields = GET, body: bytes | None = None) -> tuple[int, bytes]:
        return await self.response(await self.open(fields, body))


async def websocket(bench: Bench, client: Client, fields: Fields = CONNECT) -> tuple[int, Peer]:
    """A WebSocket stream that is open, and the worker's end of it."""
    count = len(bench.adopted)
    stream_id = await client.open(fields)
    await client.until(lambda: stream_id in client.status)
    assert client.status[stream_id] == 200
    return stream_id, bench.adopted[count][2]


async def exactly(peer: Peer, size: int) -> bytes:
    got = b""
    while len(got) < size:
        data = await peer.recv()
        assert data
        got += data
    return got


class Raw:
    """A peer that sends frames of its own making; knows how to read what comes back."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.encoder = hpack.Encoder()
        self.frames: list[Frame] = []

    async def send(self, *frames: Frame, preface: bool = False) -> None:
        """Quietly if the server has ended already."""
        data = (HTTP2_PREFACE if preface else b"") + b"".join(frame.serialize() for frame in frames)
        try:
            await self.peer.send(data)
        except (BrokenPipeError, ConnectionResetError):
            pass

    async def start(self) -> None:
        await self.send(SettingsFrame(0), preface=True)

    def headers(self, stream_id: int, fields: Fields = GET, end: bool = True) -> HeadersFrame:
        frame = HeadersFrame(stream_id, self.encoder.encode(fields))
        frame.flags.add("END_HEADERS")
        if end:
            frame.flags.add("END_STREAM")
        return frame

    async def goaway(self) -> int:
        """Read to the end, which has to be an orderly one with a GOAWAY; its code."""
        data = await self.peer.rest()
        while data:
            frame, length = Frame.parse_frame_header(memoryview(data[:9]))
            frame.parse_body(memoryview(data[9 : 9 + length]))
            self.frames.append(frame)
            data = data[9 + length :]
        last = self.frames[-1]
        assert isinstance(last, GoAwayFrame)
        return last.error_code


# --------------------------------------------------------------------------------------- requests


def test_requests() -> None:
    async def scenario(bench: Bench) -> None:
        client = Client(bench.connect())
        assert await client.ask() == (200, b"GET /a ")
        assert await client.ask(changed(GET, _method="POST"), b"") == (200, b"POST /a ")
        body = bytes(range(256)) * 256
        assert await client.ask(changed(GET, _method="POST", _path="/b%20c?d"), body) == (200, b"POST /b c " + body)
        assert await client.ask(changed(GET, _method="HEAD")) == (200, b"")
        assert "date" in client.headers[1] and bench.side.stats()["http_requests"] == 4
        assert client.http.remote_settings.enable_connect_protocol == 1
        assert client.http.remote_settings.max_concurrent_streams == 100

    run(scenario)


def test_the_scope() -> None:
    scopes: list[Scope] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scopes.append(scope)
        headers = [(b"Connection", b"close"), (b"TE", b"gzip"), (b"X-A", b" b ")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b""})

    async def scenario(bench: Bench) -> None:
        client = Client(bench.connect(secure=True))
        await client.ask(changed(GET, _path="/p%C3%A4th?q", via="2 proxy"))
        (scope,) = scopes
        assert (scope["http_version"], scope["scheme"], scope["path"], scope["query_string"]) == ("2", "https", "/päth", b"q")
        assert scope["client"] == ("192.0.2.9", 5000) and (b"host", b"broker.example") in scope["headers"]
        assert scope["extensions"]["mqttc"]["proxied"] is True
        assert client.headers[1]["x-a"] == "b" and "connection" not in client.headers[1]

    run(scenario, app=app)


def test_both_versions_are_served_by_the_real_application() -> None:
    async def scenario(bench: Bench) -> None:
        client = Client(bench.connect())
        assert (await client.ask(changed(GET, _path="/health")))[0] == 200
        assert (await client.ask(changed(GET, _path="/metrics")))[0] == 403
        status, page = await client.ask(changed(GET, _path="/"))
        assert status == 200 and b"ws://broker.example/mqtt" in page

    run(scenario, app=make_app(dict))


def test_a_body_beyond_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mqttc.adapters.http2.LINGER_S", 0.5)

    async def scenario(bench: Bench) -> None:
        client = Client(bench.connect())
        post = changed(GET, _method="POST")
        stream_id = client.http.get_next_available_stream_id()
        client.http.send_headers(stream_id, post)
        await client.flush()
        await client.write(stream_id, bytes(65537))
        assert (await client.response(stream_id))[0] == 413
        # More of it is thrown away, and paid back, lest the client be stuck.
        await client.write(stream_id, bytes(150_000))
        # The stream is ended for good although the client never ends it; the connection goes on.
        await client.until(lambda: client.reset.get(stream_id) == Codes.NO_ERROR)
        announced = client.http.get_next_available_stream_id()
        client.http.send_headers(announced, changed(post, content_length="65537"))
        await client.flush()
        assert (await client.response(announced))[0] == 413
        assert await client.ask() == (200, b"GET /a ")
        assert bench.side.stats()["http_refused"] == 2

    run(scenario)


def test_100_continue() -> None:
    async def scenario(bench: Bench) -> None:
        client = Client(bench.connect())
        stream_id = client.http.get_next_available_stream_id()
        client.http.send_headers(stream_id, changed(GET, _method="POST", expect="100-continue"))
        await client.flush()
        await client.until(lambda: stream_id in client.informed)
        await client.write(stream_id, b"abc", end=True)
        assert await client.response(stream_id) == (200, b"POST /a abc")

    run(scenario)


def test_a_body_that_does_not_come() -> None:
    async def scenario(bench: Bench) -> None:
        client = Client(bench.connect())
        stream_id = client.http.get_next_available_stream_id()
        client.http.send_headers(stream_id, changed(GET, _method="POST"))
        await client.flush()
        assert (await client.response(stream_id))[0] == 408
        assert bench.side.stats()["http_timeouts"] == 1

    run(scenario, limits=SHORT)


@pytest.mark.parametrize("when", ["before", "within", "bad header", "bad status"])
def test_an_application_that_fails(when: str) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/a":
            if when == "bad header":
                await send({"type": "http.response.start", "status": 200, "headers": [(b"x", b"a\r\nb: c")]})
            if when == "bad status":
                await send({"type": "http.response.start", "status": 101})
            if when == "within":
                await send({"type": "http.response.start", "status": 200})
                await send({"type": "http.response.body", "body": b"x", "more_body": True})
            raise ValueError("broken")
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body"})

    async def scenario(bench: Bench) -> None:
        client = Client(bench.connect())
        stream_id = await client.open()
        if when != "within":
            assert (await client.response(stream_id))[0] == 500
        else:
            await client.until(lambda: client.reset.get(stream_id) == Codes.INTERNAL_ERROR)
        assert (await client.ask(changed(GET, _path="/good")))[0] == 200
        assert bench.side.stats()["http_app_errors"] == 1 and "http_app_failed" in bench.events

    run(scenario, app=app)


def test_a_response_that_gets_no_window_is_broken_off() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": bytes(200_000)})

    async def scenario(bench: Bench) -> None:
        client = Client(bench.connect())
        stream_id = await client.open()
        await client.until(lambda: stream_id in client.reset)
        assert len(client.data[stream_id]) == 65535 and bench.side.stats()["http_timeouts"] == 1

    run(scenario, app=app, limits=SHORT)


def test_a_request_that_is_reset_is_cancelled() -> None:
    cancelled = asyncio.Event()
    running = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        running.set()
        try:
            await receive()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    async def scenario(bench: Bench) -> None:
        client = Client(bench.connect())
        stream_id = await client.open()
        await asyncio.wait_for(running.wait(), WAIT_S)
        client.http.reset_stream(stream_id)
        await client.flush()
        await asyncio.wait_for(cancelled.wait(), WAIT_S)

    run(scenario, app=app)


# ------------------------------------------------------------------------------- WebSocket streams


def test_a_websocket_stream_reaches_a_worker() -> None:
    async def scenario(bench: Bench) -> None:
        client = Client(bench.connect(secure=True))
        stream_id, worker = await websocket(bench, client)
        assert client.headers[stream_id]["sec-websocket-protocol"] == "mqtt"
        assert "sec-websocket-accept" not in client.headers[stream_id]
        origin, is_websocket, _ = bench.adopted[0]
        assert origin == Origin(1, PEER, secure=True) and is_websocket
        # The frames pass as they are: those of a client are masked, which is for the worker to undo.
        frame = FrameProtocol(client=True, extensions=[]).send_data(b"\x10\x00", True)
        await client.write(stream_id, bytes(frame))
        sent = await exactly(worker, len(frame))
        assert sent == bytes(frame)
        workers_side = wsproto.connection.Connection(wsproto.ConnectionType.SERVER)
        workers_side.receive_data(sent)
        assert [event.data for event in workers_side.events()] == [b"\x10\x00"]  # type: ignore[attr-defined]
        assert frame[0] & 0x0F == Opcode.BINARY
        await worker.send(b"\x82\x02\x20\x02")
        await client.until(lambda: client.data.get(stream_id) == b"\x82\x02\x20\x02")

    run(scenario)


def test_the_client_behind_a_trusted_proxy() -> None:
    async def scenario(bench: Bench) -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        peer = Peer(theirs)
        bench.peers.append(peer)
        rules = replace(RULES, trusted_proxies=(ipaddress.ip_network("192.0.2.0/24"),))
        bench.side.serve(ours, Origin(1, PEER), rules)
        client = Client(peer)
        await websocket(bench, client, changed(CONNECT, x_forwarded_for="198.51.100.7"))
        await websocket(bench, client, changed(CONNECT, x_forwarded_for="198.51.100.8:99"))
        assert [(origin.peer, origin.proxied) for origin, _, _ in bench.adopted] == [("198.51.100.7:0", True), ("198.51.100.8:99", True)]

    run(scenario)


@pytest.mark.parametrize(
    ("status", "fields"),
    [
        (404, changed(CONNECT, _path="/other")),
        (403, changed(CONNECT, origin="https://evil.example")),
        (426, changed(CONNECT, sec_websocket_version="8")),
        (426, changed(CONNECT, sec_websocket_version=None)),
        (400, changed(CONNECT, sec_websocket_protocol="chat")),
        (400, changed(CONNECT, sec_websocket_protocol=None)),
        (501, changed(CONNECT, _protocol="connect-udp")),
        (501, changed(CONNECT, _protocol=None, _path=None, _scheme=None)),
    ],
)
def test_refused_websocket_streams(status: int, fields: Fields) -> None:
    async def scenario(bench: Bench) -> None:
        client = Client(bench.connect())
        assert (await client.response(await client.open(fields)))[0] == status
        assert bench.adopted == [] and bench.fields("http_refused")["status"] == status
        await websocket(bench, client)

    run(scenario)


def test_a_worker_without_room() -> None:
    async def scenario(bench: Bench) -> None:
        client = Client(bench.connect())
        bench.refuse_adoption = True
        assert (await client.response(await client.open(CONNECT)))[0] == 503
        assert bench.side.stats()["http_adopt_errors"] == 1 and bench.fields("http_adopt_failed")["error"] == "no connection left"
        bench.refuse_adoption = False
        await websocket(bench, client)

    run(scenario)


def test_the_ends_of_a_stream() -> None:
    async def scenario(bench: Bench) -> None:
        client = Client(bench.connect())
        # The client ends its side, the worker answers and ends too.
        first, worker = await websocket(bench, client)
        client.http.end_stream(first)
        await client.flush()
        assert await worker.recv() == b""
        await worker.send(b"last")
        worker.sock.close()
        assert await client.response(first) == (200, b"last")
        # The worker ends first; the client ends its side then.
        second, worker = await websocket(bench, client)
        await worker.send(b"bye")
        worker.sock.close()
        assert await client.response(second) == (200, b"bye")
        client.http.end_stream(second)
        await client.flush()
        # The client breaks off.
        third, worker = await websocket(bench, client)
        client.http.reset_stream(third, Codes.CANCEL)
        await client.flush()
        assert await worker.recv() == b""
        fourth, worker = await websocket(bench, client)
        await client.write(fourth, b"x")
        assert await exactly(worker, 1) == b"x" and client.reset == {}

    run(scenario)


def test_a_client_that_does_not_end_its_side_loses_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mqttc.adapters.http2.LINGER_S", 0.05)

    async def scenario(bench: Bench) -> None:
        client = Client(bench.connect())
        stream_id, worker = await websocket(bench, client)
        worker.sock.close()
        await client.until(lambda: stream_id in client.ended)
        await client.until(lambda: client.reset.get(stream_id) == Codes.NO_ERROR)

    run(scenario)


def test_a_lost_connection_closes_its_streams() -> None:
    async def scenario(bench: Bench) -> None:
        client = Client(bench.connect())
        workers = [(await websocket(bench, client))[1] for _ in range(3)]
        client.peer.sock.close()
        for worker in workers:
            assert await worker.recv() == b""

    run(scenario)


def test_a_publisher_whose_broker_does_not_read_runs_out_of_window_and_holds_up_nobody() -> None:
    async def scenario(bench: Bench) -> None:
        client = Client(bench.connect())
        braked, braked_worker = await websocket(bench, client)
        free, free_worker = await websocket(bench, client)
        sent = 0
        # Until the pair of sockets is full and the window used up.
        while True:
            await drain_replies(client)
            size = min(client.http.local_flow_control_window(braked), 16384)
            if size == 0:
                break
            client.http.send_data(braked, bytes(size))
            await client.flush()
            sent += size
        assert 65535 <= sent < 4_000_000
        # The other stream has its own window, several times over.
        data = bytes(range(256)) * 2048
        writing = asyncio.create_task(client.write(free, data))
        assert await exactly(free_worker, len(data)) == data
        await writing
        assert client.http.local_flow_control_window(braked) == 0
        # The broker reads again: so does the window open, and nothing was lost.
        assert len(await exactly(braked_worker, sent)) == sent
        await client.until(lambda: client.http.local_flow_control_window(braked) > 0)

    run(scenario)


async def drain_replies(client: Client) -> None:
    """Read what the server has to say until it has nothing more: the answer to a PING comes behind all that."""
    answered = False
    client.http.ping(b"12345678")
    await client.flush()
    while not answered:
        for event in client.http.receive_data(await client.peer.recv()):
            client.take_event(event)
            answered |= isinstance(event, h2.events.PingAckReceived)
        await client.flush_if_any()


def test_a_slow_receiver_pauses_its_worker_only() -> None:
    async def scenario(bench: Bench) -> None:
        client = Client(bench.connect())
        slow, slow_worker = await websocket(bench, client)
        fast, fast_worker = await websocket(bench, client)
        # The connection's own window is not what this test is about.
        client.http.increment_flow_control_window(2**24)
        await client.flush()
        written = 0
        await drain_replies(client)
        while True:  # until the socket pair is full: the server reads no more
            try:
                written += slow_worker.sock.send(bytes(16384))
            except BlockingIOError:
                await drain_replies(client)
                before = written
                try:
                    written += slow_worker.sock.send(bytes(16384))
                except BlockingIOError:
                    break
                assert written > before
        assert len(client.data[slow]) == 65535 and written < 4_000_000
        await fast_worker.send(b"fast")
        await client.until(lambda: client.data.get(fast) == b"fast")
        assert len(client.data[slow]) == 65535
        while len(client.data[slow]) < written:
            await client.acknowledge(slow)
            await client.read()
        assert client.data[slow] == bytes(written)

    run(scenario)


def test_streams_send_in_turn() -> None:
    async def scenario(bench: Bench) -> None:
        client = Client(bench.connect())
        client.http.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 0})
        streams = [await websocket(bench, client) for _ in range(4)]
        for _, worker in streams:
            await worker.send(bytes(65536))
        await drain_replies(client)
        client.http.increment_flow_control_window(2**20)
        client.http.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 2**20})
        await client.until(lambda: all(len(client.data.get(stream_id, b"")) == 65536 for stream_id, _ in streams))
        assert len(client.order) == 16
        for first in range(0, 16, 4):
            assert len(set(client.order[first : first + 4])) == 4

    run(scenario)


def test_a_peer_that_reads_nothing_costs_bounded_memory() -> None:
    async def scenario(bench: Bench) -> None:
        client = Client(bench.connect())
        client.http.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 2**24})
        client.http.increment_flow_control_window(2**30)
        streams = [await websocket(bench, client) for _ in range(4)]
        written = 0
        blocked = 0
        while blocked < 200:  # many turns of the server's loop without room anywhere
            blocked += 1
            for _, worker in streams:
                try:
                    written += worker.sock.send(bytes(16384))
                    blocked = 0
                except BlockingIOError:
                    pass
            await asyncio.sleep(0)
        assert written < 4_000_000
        await client.until(lambda: sum(map(len, client.data.values())) == written)

    run(scenario)


def test_windows_of_zero_and_below() -> None:
    async def scenario(bench: Bench) -> None:
        client = Client(bench.connect())
        stream_id, worker = await websocket(bench, client)
        await worker.send(bytes(100_000))
        await client.until(lambda: len(client.data.get(stream_id, b"")) == 65535)
        client.http.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 0})
        await client.flush()
        await drain_replies(client)
        other, other_worker = await websocket(bench, client)
        await other_worker.send(b"waits")
        other_worker.sock.close()
        await drain_replies(client)
        assert other not in client.data and other not in client.ended
        client.http.increment_flow_control_window(2**20)
        client.http.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 2**20})
        await client.flush()
        await client.until(lambda: len(client.data[stream_id]) == 100_000 and other in client.ended)
        assert client.data[other] == b"waits"

    run(scenario)


# ------------------------------------------------------------------------------- limits and ends


def test_streams_beyond_the_limit_are_refused_and_the_others_go_on() -> None:
    async def scenario(bench: Bench) -> None:
        raw = Raw(bench.connect())
        await raw.start()
        await raw.send(*(raw.headers(1 + 2 * i, CONNECT, end=False) for i in range(5)))
        await until(lambda: bench.side.stats()["http_streams_refused"] == 2)
        assert len(bench.adopted) == 3
        payload = DataFrame(1, b"still here")
        await raw.send(payload)
        assert await exactly(bench.adopted[0][2], 10) == b"still here"
        closing = asyncio.create_task(bench.side.close(0.01))
        assert await raw.peer.rest()
        await closing

    run(scenario, limits=HttpLimits(max_http_streams=3))


def test_an_idle_connection_ends_and_a_used_one_does_not() -> None:
    async def scenario(bench: Bench) -> None:
        idle, used = Client(bench.connect()), Client(bench.connect())
        stream_id, worker = await websocket(bench, used)
        while not idle.closed:
            await idle.read()
        assert idle.goaway == Codes.NO_ERROR
        await worker.send(b"alive")
        await used.until(lambda: used.data.get(stream_id) == b"alive")
        worker.sock.close()
        await used.until(lambda: stream_id in used.ended)
        used.http.end_stream(stream_id)
        await used.flush()
        while not used.closed:
            await used.read()
        assert used.goaway == Codes.NO_ERROR

    run(scenario, limits=SHORT)


def test_pings_keep_no_connection() -> None:
    async def scenario(bench: Bench) -> None:
        client = Client(bench.connect())
        while not client.closed:
            if client.goaway is None:
                client.http.ping(b"12345678")
            await client.read()

    run(scenario, limits=HttpLimits(http_timeout=0.05, http_event_burst=10**9))


def test_closing_lets_streams_end() -> None:
    async def scenario(bench: Bench) -> None:
        raw = Raw(bench.connect())
        await raw.start()
        await raw.send(raw.headers(1, CONNECT, end=False))
        await asyncio.wait_for(bench.adopting.wait(), WAIT_S)
        worker = bench.adopted[0][2]
        closing = asyncio.create_task(bench.side.close(WAIT_S))
        await asyncio.sleep(0)
        # A new stream is refused, the old one goes on to its end.
        await raw.send(raw.headers(3), DataFrame(1, b"to the worker"))
        assert await exactly(worker, 13) == b"to the worker"
        await worker.send(b"server shutting down")
        worker.sock.close()
        end = DataFrame(1, b"")
        end.flags.add("END_STREAM")
        await raw.send(end)
        data = await raw.peer.rest()
        raw.peer.sock.close()
        await closing
        assert b"server shutting down" in data and bench.side.stats()["http_streams_refused"] == 1
        goaway = GoAwayFrame(0, last_stream_id=1).serialize()
        assert goaway in data and data.index(goaway) < data.index(b"server shutting down")
        reset = RstStreamFrame(3, error_code=Codes.REFUSED_STREAM)
        assert reset.serialize() in data

    run(scenario)


def test_a_peer_that_says_goodbye() -> None:
    async def scenario(bench: Bench) -> None:
        raw = Raw(bench.connect())
        await raw.start()
        await raw.send(raw.headers(1, CONNECT, end=False), GoAwayFrame(0))
        await asyncio.wait_for(bench.adopting.wait(), WAIT_S)
        await raw.send(DataFrame(1, b"still sent"))
        assert await exactly(bench.adopted[0][2], 10) == b"still sent"
        await raw.send(RstStreamFrame(1))
        assert await raw.goaway() == Codes.NO_ERROR
        raw = Raw(bench.connect())
        await raw.start()
        await raw.send(raw.headers(1, CONNECT, end=False), GoAwayFrame(0, error_code=Codes.INTERNAL_ERROR))
        assert await raw.goaway() == Codes.NO_ERROR
        assert await bench.adopted[1][2].recv() == b""

    run(scenario)


def test_connections_beyond_the_limit_are_told_in_http2() -> None:
    async def scenario(bench: Bench) -> None:
        await Client(bench.connect()).ask()
        ours, theirs = socket.socketpair()
        with theirs:
            ours.setblocking(False)
            theirs.setblocking(False)
            raw = Raw(Peer(theirs))
            await raw.start()
            bench.side.serve(ours, Origin(1, PEER), RULES)
            assert await raw.goaway() == Codes.ENHANCE_YOUR_CALM

    run(scenario, limits=HttpLimits(max_http_connections=1))


# ---------------------------------------------------------------------------------- hostile frames


def unfinished_block(count: int, size: int) -> list[Frame]:
    return [HeadersFrame(1, b""), *(ContinuationFrame(1, bytes(size)) for _ in range(count))]


def bomb(raw: Raw) -> list[Frame]:
    """A field that the table holds, referred to again and again: 1 byte each."""
    block = raw.encoder.encode([*GET, ("x", "a" * 3000)])
    frame = HeadersFrame(1, block + b"\xbe" * 5000)
    frame.flags.add("END_HEADERS")
    return [frame]


def settings(values: dict[int, int]) -> Frame:
    """SETTINGS with any identifiers, of which hyperframe sends one byte only."""
    return Crooked(SettingsFrame(0), b"".join(struct.pack(">HL", code, value) for code, value in values.items()), 0)


FLOODS: dict[str, Callable[[Raw], list[Frame]]] = {
    "rapid reset": lambda raw: [
        frame for i in range(60) for frame in (raw.headers(1 + 2 * i), RstStreamFrame(1 + 2 * i, error_code=Codes.CANCEL))
    ],
    "rapid reset of websockets": lambda raw: [
        frame for i in range(60) for frame in (raw.headers(1 + 2 * i, CONNECT, end=False), RstStreamFrame(1 + 2 * i))
    ],
    "settings": lambda _: [SettingsFrame(0)] * 60,
    "large settings": lambda _: [settings({0x1000 + i: 1 for i in range(33)})],
    "ping": lambda _: [PingFrame(0, b"12345678")] * 60,
    "priority": lambda _: [PriorityFrame(1 + 2 * i) for i in range(60)],
    "empty data": lambda raw: [raw.headers(1, CONNECT, end=False), *([DataFrame(1, b"")] * 60)],
    "padding": lambda raw: [raw.headers(1, CONNECT, end=False), *([DataFrame(1, b"", pad_length=10, flags=["PADDED"])] * 60)],
    "data on ended streams": lambda raw: [raw.headers(1, CONNECT, end=False), RstStreamFrame(1), *([DataFrame(1, b"x")] * 60)],
    "headers on ended streams": lambda raw: [
        raw.headers(1, CONNECT, end=False),
        RstStreamFrame(1),
        *(raw.headers(1) for _ in range(60)),
    ],
    "window updates": lambda _: [WindowUpdateFrame(0, window_increment=1)] * 60,
    "window updates of a stream": lambda raw: [
        raw.headers(1, CONNECT, end=False),
        *([WindowUpdateFrame(1, window_increment=1)] * 60),
    ],
    "unknown frames": lambda _: [Crooked(ExtensionFrame(0xBE, 0), b"x", 0)] * 60,
    "continuation without bytes": lambda _: unfinished_block(60, 0),
    "continuation with bytes": lambda _: unfinished_block(2, 16384),
    "header list": lambda raw: [raw.headers(1, changed(GET, x="a" * 9000, y="b" * 8000))],
    "header bomb": bomb,
    "requests that are refused": lambda raw: [
        raw.headers(1 + 2 * i, changed(CONNECT, _path="/no")) for i in range(60)
    ],
    "streams that are refused": lambda raw: [raw.headers(1 + 2 * i, CONNECT, end=False) for i in range(60)],
}


@pytest.mark.parametrize("name", FLOODS)
def test_floods_are_cut_off(name: str) -> None:
    async def scenario(bench: Bench) -> None:
        bystander = Client(bench.connect())
        stream_id, worker = await websocket(bench, bystander)
        raw = Raw(bench.connect(peer="198.51.100.66:6"))
        await raw.start()
        sending = asyncio.create_task(raw.send(*FLOODS[name](raw)))
        assert await raw.goaway() == Codes.ENHANCE_YOUR_CALM
        await sending
        events = [event for event in bench.events if event in ("http_flood", "http_protocol_error")]
        assert len(events) == 1 and bench.fields(events[0])["peer"] == "198.51.100.66:6"
        assert bench.side.stats()["http_floods"] + bench.side.stats()["http_protocol_errors"] == 1
        for _, _, flooded in bench.adopted[1:]:
            while await flooded.recv():
                pass
        # Answers to the flood were bounded, and somebody else's stream has noticed nothing.
        assert len(raw.frames) < 150
        await worker.send(b"fine")
        await bystander.until(lambda: bystander.data.get(stream_id) == b"fine")

    clock = 0.0
    run(scenario, limits=HttpLimits(http_event_burst=50, max_http_streams=8), clock=lambda: clock)


def test_much_input_of_one_peer_leaves_others_their_turn() -> None:
    """Ninety requests in one piece: the single one of somebody else is answered between them, and none of them is lost."""
    ticks = itertools.count()

    async def scenario(bench: Bench) -> None:
        greedy, other = Client(bench.connect()), Client(bench.connect())
        for client in (greedy, other):
            assert (await client.ask())[0] == 200
        many: list[int] = []
        for _ in range(90):
            many.append(greedy.http.get_next_available_stream_id())
            greedy.http.send_headers(many[-1], GET, end_stream=True)
        await greedy.flush()
        assert (await other.ask())[0] == 200
        assert bench.side.stats()["http_requests"] < 60
        await greedy.until(lambda: greedy.ended >= set(many))
        assert bench.side.stats()["http_requests"] == 93 and bench.side.stats()["http_floods"] == 0

    run(scenario, clock=lambda: next(ticks) / 1000)


def test_what_is_spread_over_time_is_no_flood() -> None:
    now = [0.0]

    async def scenario(bench: Bench) -> None:
        client = Client(bench.connect())
        for _ in range(300):
            await drain_replies(client)
            now[0] += 0.1
        assert bench.side.stats()["http_floods"] == 0

    run(scenario, limits=HttpLimits(http_event_burst=20, http_event_rate=10), clock=lambda: now[0])


def test_a_receiver_may_open_its_window_for_every_frame() -> None:
    async def scenario(bench: Bench) -> None:
        client = Client(bench.connect())
        stream_id, worker = await websocket(bench, client)
        for count in range(1, 200):
            await worker.send(b"x")
            await client.until(lambda count=count: len(client.data.get(stream_id, b"")) == count)  # type: ignore[misc]
            client.http.increment_flow_control_window(1)
            client.http.increment_flow_control_window(1, stream_id)
            await client.flush()
        assert bench.side.stats()["http_floods"] == 0

    run(scenario, limits=HttpLimits(http_event_burst=20), clock=lambda: 0.0)


def test_settings_of_a_peer_take_bounded_memory() -> None:
    async def scenario(bench: Bench) -> None:
        raw = Raw(bench.connect())
        await raw.start()
        for i in range(300):
            await raw.send(settings({1: i * 1000, **{0x1000 + i * 31 + k: 1 for k in range(31)}}))
        ping = PingFrame(0, b"12345678", flags=["ACK"]).serialize()
        await raw.send(PingFrame(0, b"12345678"))
        got = b""
        while ping not in got:
            got += await raw.peer.recv()
        (line,) = bench.side._lines
        http = line.speaker
        assert isinstance(http, Http2)
        assert len(http._h2.remote_settings) <= len(h2.settings.SettingCodes)
        assert http._h2.encoder.header_table_size <= 4096 and len(http._h2.encoder.table_size_changes) <= 3

    run(scenario)


def test_a_peer_that_reads_no_replies_is_not_read() -> None:
    async def scenario(bench: Bench) -> None:
        raw = Raw(bench.connect())
        await raw.start()
        data = PingFrame(0, b"12345678").serialize() * 1000
        sent = 0
        blocked = 0
        while blocked < 200:
            blocked += 1
            try:
                sent += raw.peer.sock.send(data)
                blocked = 0
            except BlockingIOError:
                await asyncio.sleep(0)
        assert sent < 4_000_000
        (line,) = bench.side._lines
        assert line.unsent < 400_000

    run(scenario, limits=HttpLimits(http_event_burst=10**9))


def overlong() -> bytes:
    return b"\x00\x40\x01\x00\x00\x00\x00\x00\x01"


ILLEGAL: dict[str, tuple[Codes, Callable[[Raw], list[Frame]]]] = {
    "data on an idle stream": (Codes.PROTOCOL_ERROR, lambda _: [DataFrame(1, b"x")]),
    "even stream": (Codes.PROTOCOL_ERROR, lambda raw: [raw.headers(2)]),
    "stream that goes back": (Codes.PROTOCOL_ERROR, lambda raw: [raw.headers(5), raw.headers(3)]),
    "naked continuation": (Codes.PROTOCOL_ERROR, lambda _: [ContinuationFrame(1, b"")]),
    "frame in a header block": (Codes.PROTOCOL_ERROR, lambda _: [HeadersFrame(1, b""), PingFrame(0, b"12345678")]),
    "bad compression": (Codes.PROTOCOL_ERROR, lambda _: [HeadersFrame(1, b"\xff\xff\xff\xff\xff", flags=["END_HEADERS"])]),
    "push": (Codes.PROTOCOL_ERROR, lambda _: [PushPromiseFrame(1, 2, b"", flags=["END_HEADERS"])]),
    "no method": (Codes.PROTOCOL_ERROR, lambda raw: [raw.headers(1, changed(GET, _method=None))]),
    "connection header": (Codes.PROTOCOL_ERROR, lambda raw: [raw.headers(1, changed(GET, connection="close"))]),
    "upper case": (Codes.PROTOCOL_ERROR, lambda raw: [raw.headers(1, (*GET, ("Upper", "x")))]),
    "two paths": (Codes.PROTOCOL_ERROR, lambda raw: [raw.headers(1, (GET[3], *GET))]),
    "line end in a value": (Codes.PROTOCOL_ERROR, lambda raw: [raw.headers(1, changed(GET, x="a\r\nb: c"))]),
    "length that lies": (
        Codes.PROTOCOL_ERROR,
        lambda raw: [
            raw.headers(1, changed(GET, _method="POST", content_length="3"), end=False),
            DataFrame(1, b"four", flags=["END_STREAM"]),
        ],
    ),
    "window overflow": (Codes.FLOW_CONTROL_ERROR, lambda _: [WindowUpdateFrame(0, window_increment=2**31 - 1)] * 2),
    "window exceeded": (
        Codes.FLOW_CONTROL_ERROR,
        lambda raw: [raw.headers(1, CONNECT, end=False), *([DataFrame(1, bytes(16384))] * 200)],
    ),
    "initial window": (Codes.FLOW_CONTROL_ERROR, lambda _: [SettingsFrame(0, settings={4: 2**31})]),
    "frame size": (Codes.PROTOCOL_ERROR, lambda _: [SettingsFrame(0, settings={5: 1})]),
    "padding": (Codes.PROTOCOL_ERROR, lambda raw: [raw.headers(1, CONNECT, end=False), Crooked(DataFrame(1, b""), b"\x05ab", 0x8)]),
    "short ping": (Codes.FRAME_SIZE_ERROR, lambda _: [Crooked(PingFrame(0), b"short", 0)]),
    "short window update": (Codes.FRAME_SIZE_ERROR, lambda _: [Crooked(WindowUpdateFrame(0), b"ab", 0)]),
    "settings of odd length": (Codes.FRAME_SIZE_ERROR, lambda _: [Crooked(SettingsFrame(0), b"abcd", 0)]),
    "goaway on a stream": (Codes.PROTOCOL_ERROR, lambda _: [Crooked(GoAwayFrame(0), bytes(8), 0, stream_id=1)]),
    "short goaway": (Codes.FRAME_SIZE_ERROR, lambda _: [Crooked(GoAwayFrame(0), b"ab", 0)]),
    "overlong frame": (Codes.FRAME_SIZE_ERROR, lambda _: [Crooked(DataFrame(1), bytes(16385), 0)]),
}


class Crooked(Frame):
    """A frame of another's type with any payload."""

    def __init__(self, like: Frame, payload: bytes, flags: int, stream_id: int | None = None) -> None:
        self.like = like
        self.payload = payload
        self.bits = flags
        self.on = like.stream_id if stream_id is None else stream_id

    def serialize(self) -> bytes:
        kind = self.like.type
        assert kind is not None
        return len(self.payload).to_bytes(3) + bytes([kind, self.bits]) + self.on.to_bytes(4) + self.payload


@pytest.mark.parametrize("name", ILLEGAL)
def test_illegal_frames_end_their_connection_with_a_reason(name: str) -> None:
    code, frames = ILLEGAL[name]

    async def scenario(bench: Bench) -> None:
        bystander = Client(bench.connect())
        raw = Raw(bench.connect())
        await raw.start()
        sending = asyncio.create_task(raw.send(*frames(raw)))
        got = await raw.goaway()
        await sending
        # h2 tells a frame of wrong size as a protocol error now and then, which RFC 9113 section 5.4 allows.
        assert got in (code, Codes.PROTOCOL_ERROR)
        assert bench.fields("http_protocol_error")["peer"] == PEER and bench.side.stats()["http_protocol_errors"] == 1
        assert "http_failed" not in bench.events
        assert await bystander.ask() == (200, b"GET /a ")

    run(scenario)


def test_a_preface_that_is_not_whole() -> None:
    async def scenario(bench: Bench) -> None:
        peer = bench.connect()
        await peer.send(HTTP2_PREFACE[:18])
        await peer.send(b"XX\r\n\r\n")
        assert await peer.rest()
        assert bench.fields("http_protocol_error")["detail"] == "the preface is not HTTP/2's"

    run(scenario)


def test_a_connection_byte_by_byte() -> None:
    async def scenario(bench: Bench) -> None:
        peer = bench.connect()
        raw = Raw(peer)
        for byte in HTTP2_PREFACE + SettingsFrame(0).serialize() + raw.headers(1).serialize():
            await peer.send(bytes([byte]))
        peer_client = h2.connection.H2Connection()
        peer_client.initiate_connection()
        peer_client.send_headers(1, GET, end_stream=True)
        ended = False
        while not ended:
            ended = any(isinstance(event, h2.events.StreamEnded) for event in peer_client.receive_data(await peer.recv()))

    run(scenario)


def test_damaged_streams_of_frames() -> None:
    """Whatever bytes come, the connection ends or goes on in order, and nobody else notices."""

    async def scenario(bench: Bench) -> None:
        chance = random.Random(7)
        for _ in range(150):
            peer = bench.connect()
            raw = Raw(peer)
            frames: list[Frame] = [SettingsFrame(0, settings={4: 100}), raw.headers(1, CONNECT, end=False), DataFrame(1, b"abc")]
            frames += [WindowUpdateFrame(1, window_increment=5), raw.headers(3), RstStreamFrame(1)]
            data = bytearray(b"".join(frame.serialize() for frame in frames))
            for _ in range(chance.randint(1, 4)):
                data[chance.randrange(len(data))] = chance.randrange(256)
            await peer.send(HTTP2_PREFACE + bytes(data))
            peer.sock.shutdown(socket.SHUT_WR)
            await peer.rest()
            peer.sock.close()
        assert "http_failed" not in bench.events
        assert await Client(bench.connect()).ask() == (200, b"GET /a ")

    run(scenario)


# ---------------------------------------------------------------------------------------- the parts


def test_the_budget() -> None:
    budget = Budget(3, 2.0, 100.0)
    assert [budget.spend(1, 100.0) for _ in range(4)] == [True, True, True, False]
    assert not budget.spend(1, 100.5)
    assert budget.spend(1, 101.5) and budget.spend(1, 101.5) is False
    budget = Budget(3, 2.0, 0.0)
    budget.earn(100)
    assert budget.spend(3, 1000.0) and not budget.spend(1, 1000.0)


def test_the_cutter_of_frames() -> None:
    frames = [PingFrame(0, b"12345678"), DataFrame(7, b"x" * 16384), SettingsFrame(0)]
    data = b"".join(frame.serialize() for frame in frames)
    for size in (1, 7, 16384, len(data)):
        cutter = Frames()
        cut = [frame for start in range(0, len(data), size) for frame in cutter.cut(data[start : start + size])]
        assert b"".join(frame.data for frame in cut) == data
        assert [(frame.kind, frame.stream_id, frame.length) for frame in cut] == [(6, 0, 8), (0, 7, 16384), (4, 0, 0)]
    with pytest.raises(FrameTooLargeError):
        list(Frames().cut(overlong()))


NODE = """
const http2 = require('node:http2')
const client = http2.connect('http://127.0.0.1:' + process.argv[2])
client.on('error', error => { console.log('error ' + error.message); process.exit(1) })
client.on('remoteSettings', settings => {
  if (!settings.enableConnectProtocol) { console.log('no extended CONNECT'); process.exit(1) }
  const streams = [0, 1, 2].map(number => {
    const stream = client.request({':method': 'CONNECT', ':protocol': 'websocket', ':path': '/mqtt',
      'sec-websocket-version': '13', 'sec-websocket-protocol': 'mqtt'})
    let got = ''
    stream.on('response', headers => stream.write(headers[':status'] + headers['sec-websocket-protocol'] + number))
    stream.on('data', data => { got += data; if (got.length >= 100000) stream.end() })
    return new Promise(done => stream.on('close', () => done(number + ':' + got.length + ':' + stream.rstCode)))
  })
  Promise.all(streams).then(ended => { console.log(ended.join(' ')); client.close() })
})
"""


def test_node(tmp_path: Path) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("Node.js is not installed")
    script = tmp_path / "client.js"
    script.write_text(NODE)

    async def serve(worker: Peer) -> bytes:
        first = await worker.recv()
        await worker.send(bytes([97]) * 100_000)
        assert await worker.recv() == b""
        worker.sock.close()
        return first

    async def scenario(bench: Bench) -> None:
        port = await bench.listen()
        process = await asyncio.create_subprocess_exec(node, str(script), str(port), stdout=asyncio.subprocess.PIPE)
        try:
            await until(lambda: len(bench.adopted) == 3)
            firsts = await asyncio.gather(*(serve(worker) for _, _, worker in bench.adopted))
            assert sorted(firsts) == [b"200mqtt0", b"200mqtt1", b"200mqtt2"]
            output, _ = await asyncio.wait_for(process.communicate(), 30)
            assert output == b"0:100000:0 1:100000:0 2:100000:0\n"
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()

    run(scenario)
