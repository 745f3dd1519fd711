"""HTTP/1.1 on spliced connections, with h11 as the client and raw bytes where a client would refuse to send them."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess

import h11
import pytest

from mqttc.adapters import Origin
from mqttc.adapters.exchange import HttpLimits, Receive, Scope, Send
from mqttc.adapters.http1 import Http1
from mqttc.web.app import make_app
from tests.adapters.http_peer import PEER, RULES, WAIT_S, Bench, Peer, echo_app, run, until

SHORT = HttpLimits(http_timeout=0.25)


class Client:
    """An HTTP/1.1 client on a peer; keeps the connection."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.http = h11.Connection(h11.CLIENT)

    async def request(self, method: str, target: str, body: bytes = b"", headers: tuple[tuple[str, str], ...] = ()) -> None:
        fields = [("host", "broker.example"), *headers]
        if body:
            fields.append(("content-length", str(len(body))))
        data = self.http.send(h11.Request(method=method, target=target, headers=fields))
        if body:
            data += self.http.send(h11.Data(data=body))
        await self.peer.send(data + self.http.send(h11.EndOfMessage()))

    async def event(self) -> object:
        while True:
            event = self.http.next_event()
            if event is not h11.NEED_DATA:
                return event
            self.http.receive_data(await self.peer.recv())

    async def response(self) -> tuple[h11.Response, bytes]:
        response = await self.event()
        assert isinstance(response, h11.Response)
        body = b""
        while isinstance(event := await self.event(), h11.Data):
            body += event.data
        assert isinstance(event, h11.EndOfMessage)
        return response, body

    async def ask(self, method: str, target: str, body: bytes = b"") -> tuple[int, bytes]:
        await self.request(method, target, body)
        response, text = await self.response()
        return response.status_code, text

    def again(self) -> None:
        self.http.start_next_cycle()


def last_status(data: bytes) -> int:
    """Status of the last response in what a connection has sent; its body is text without a status line."""
    return int(data[data.rindex(b"HTTP/1.1 ") :].split(b" ", 2)[1])


def test_requests_on_one_connection() -> None:
    async def scenario(bench: Bench) -> None:
        client = Client(bench.connect())
        assert await client.ask("GET", "/a%20b?c=d") == (200, b"GET /a b ")
        client.again()
        assert await client.ask("POST", "/x", b"y" * 65536) == (200, b"POST /x " + b"y" * 65536)
        client.again()
        assert await client.ask("GET", "http://broker.example/z") == (200, b"GET /z ")
        assert bench.side.connections == 1 and bench.side.stats()["http_requests"] == 3

    run(scenario)


def test_head_has_no_body() -> None:
    async def scenario(bench: Bench) -> None:
        client = Client(bench.connect())
        await client.request("HEAD", "/health")
        response, body = await client.response()
        assert response.status_code == 200 and body == b""
        assert int(dict(response.headers)[b"content-length"]) > 0
        client.again()
        assert (await client.ask("GET", "/health"))[0] == 200

    run(scenario, app=make_app(dict))


def test_the_scope() -> None:
    scopes: list[Scope] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scopes.append(scope)
        await send({"type": "http.response.start", "status": 204})
        await send({"type": "http.response.body"})

    async def scenario(bench: Bench) -> None:
        client = Client(bench.connect(secure=True, peer="[2001:db8::1]:77"))
        await client.request("GET", "/p%C3%A4th?q=1%20", headers=(("X-One", "1"), ("X-Forwarded-For", "127.0.0.1")))
        await client.response()
        (scope,) = scopes
        assert (scope["type"], scope["http_version"], scope["method"], scope["scheme"]) == ("http", "1.1", "GET", "https")
        assert (scope["path"], scope["raw_path"], scope["query_string"]) == ("/päth", b"/p%C3%A4th", b"q=1%20")
        assert scope["client"] == ("2001:db8::1", 77)
        assert (b"x-one", b"1") in scope["headers"]
        assert scope["extensions"]["mqttc"] == {"proxied": True, "unix": False, "websocket_path": "/mqtt"}

    run(scenario, app=app)


def test_pipelined_requests_are_answered_in_order_and_read_as_they_are_answered() -> None:
    held = 0
    benches: list[Bench] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal held
        (line,) = benches[0].side._lines
        assert isinstance(line.speaker, Http1)
        held = max(held, len(line.speaker._input))
        for _ in range(3):
            await asyncio.sleep(0)  # let more come in
        await echo_app(scope, receive, send)

    async def scenario(bench: Bench) -> None:
        benches.append(bench)
        peer = bench.connect()
        count = 3000
        requests = b"".join(b"POST /%d HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc" % i for i in range(count))
        sending = asyncio.create_task(peer.send(requests + b"GET /end HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"))
        got = await peer.rest()
        await sending
        assert [int(part.split(b" ", 1)[0]) for part in got.split(b"POST /")[1:]] == list(range(count))
        assert b"GET /end " in got and bench.side.stats()["http_requests"] == count + 1
        assert 0 < held <= 2 * 16384

    run(scenario, app=app)


def test_a_request_byte_by_byte() -> None:
    async def scenario(bench: Bench) -> None:
        peer = bench.connect()
        for byte in b"\r\nPOST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n3\r\nabc\r\n0\r\n\r\n":
            await peer.send(bytes([byte]))
        assert b"POST / abc" in await peer.rest()

    run(scenario)


def test_http_1_0_closes() -> None:
    async def scenario(bench: Bench) -> None:
        peer = bench.connect()
        await peer.send(b"GET /old HTTP/1.0\r\n\r\n")
        got = await peer.rest()
        assert got.endswith(b"GET /old ") and b"chunked" not in got

    run(scenario)


def test_a_client_that_ends_its_side_gets_its_response() -> None:
    async def scenario(bench: Bench) -> None:
        peer = bench.connect()
        await peer.send(b"GET /last HTTP/1.1\r\nHost: x\r\n\r\n")
        peer.sock.shutdown(socket.SHUT_WR)
        assert b"GET /last " in await peer.rest()

    run(scenario)


def test_a_response_waits_for_its_reader() -> None:
    written = 0
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal written
        await send({"type": "http.response.start", "status": 200})
        for _ in range(400):
            await send({"type": "http.response.body", "body": bytes(16384), "more_body": True})
            written += 16384
        await send({"type": "http.response.body"})

    async def scenario(bench: Bench) -> None:
        client = Client(bench.connect())
        await client.request("GET", "/")
        await client.event()
        before = -1
        while before != written:  # until it stands still, which is when socket and line are full
            before = written
            for _ in range(50):
                await asyncio.sleep(0)
        assert 0 < written < 2_000_000
        size = 0
        while isinstance(event := await client.event(), h11.Data):
            size += len(event.data)
        assert size == 400 * 16384

    run(scenario, app=app)


def test_a_response_that_nobody_reads_is_broken_off() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200})
        while True:
            await send({"type": "http.response.body", "body": bytes(65536), "more_body": True})

    async def scenario(bench: Bench) -> None:
        peer = bench.connect()
        await peer.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await until(lambda: bench.side.connections == 0)
        assert bench.side.stats()["http_timeouts"] == 1 and bench.events == ["http_timeout"]

    run(scenario, app=app, limits=SHORT)


def test_100_continue() -> None:
    async def scenario(bench: Bench) -> None:
        peer = bench.connect()
        await peer.send(b"POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 3\r\nConnection: close\r\n\r\n")
        assert await peer.recv() == b"HTTP/1.1 100 \r\n\r\n"
        await peer.send(b"abc")
        assert b"POST / abc" in await peer.rest()
        peer = bench.connect()
        await peer.send(b"POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 70000\r\n\r\n")
        assert last_status(await peer.rest()) == 413

    run(scenario)


@pytest.mark.parametrize(
    ("status", "data"),
    [
        (413, b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 65537\r\n\r\n"),
        (413, b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + (b"4000\r\n" + bytes(16384) + b"\r\n") * 5),
        (431, b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 17000 + b"\r\n\r\n"),
        (431, b"GET /" + b"a" * 17000),
        (400, b"GET / HTTP/1.1\nHost: x\n\n"),
        (400, b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n"),
        (400, b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        (400, b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"),
        (501, b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n"),
        (400, b"GET / HTTP/1.1\r\n\r\n"),
        (400, b"CONNECT x:80 HTTP/1.1\r\nHost: x\r\n\r\n"),
        (400, b"GET x HTTP/1.1\r\nHost: x\r\n\r\n"),
        (400, b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n"),
        (400, b"PRI * HTTP/2.0\r\nHost: x\r\n\r\n"),
        (400, b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"),
    ],
)
def test_bad_requests_are_answered_and_end_the_connection(status: int, data: bytes) -> None:
    async def scenario(bench: Bench) -> None:
        # The first request on a connection, and one on a connection that was kept.
        for before in (b"", b"GET /good HTTP/1.1\r\nHost: x\r\n\r\n"):
            peer = bench.connect()
            other = Client(bench.connect())
            await peer.send(before + data)
            got = await peer.rest()
            assert last_status(got) == status and b"connection: close" in got
            assert got.count(b"HTTP/1.1 ") == 1 + bool(before)
            assert await other.ask("GET", "/other") == (200, b"GET /other ")
        assert bench.side.stats()["http_refused"] == 2
        assert bench.events == ["http_refused"] * 2 and bench.records[0].fields["peer"] == PEER  # type: ignore[attr-defined]
        assert bench.records[0].fields["status"] == status  # type: ignore[attr-defined]

    run(scenario)


def test_the_bound_of_a_head_is_exact() -> None:
    async def scenario(bench: Bench) -> None:
        start = b"GET / HTTP/1.1\r\nHost: x\r\nX: "
        for size, status in ((512, 200), (513, 431)):
            peer = bench.connect()
            await peer.send(start + b"a" * (size - len(start) - 4) + b"\r\n\r\n")
            peer.sock.shutdown(socket.SHUT_WR)
            assert last_status(await peer.rest()) == status

    run(scenario, limits=HttpLimits(max_request_head=512))


def test_a_refused_body_is_read_until_the_peer_has_read_the_answer() -> None:
    async def scenario(bench: Bench) -> None:
        peer = bench.connect()
        await peer.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4000000\r\n\r\n")
        await peer.send(bytes(4_000_000))
        peer.sock.shutdown(socket.SHUT_WR)
        assert last_status(await peer.rest()) == 413
        await until(lambda: bench.side.connections == 0)

    run(scenario)


def test_a_peer_that_does_not_close_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mqttc.adapters.line.LINGER_S", 0.05)

    async def scenario(bench: Bench) -> None:
        peer = bench.connect()
        await peer.send(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert last_status(await peer.rest()) == 200
        await until(lambda: bench.side.connections == 0)

    run(scenario)


def test_what_is_pipelined_behind_the_last_request_does_not_keep_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mqttc.adapters.line.LINGER_S", 1000)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for _ in range(20):
            await asyncio.sleep(0)  # let the rest come in
        await echo_app(scope, receive, send)

    async def scenario(bench: Bench) -> None:
        peer = bench.connect()
        await peer.send(b"GET /last HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        await peer.send(b"GET /lost HTTP/1.1\r\nHost: x\r\n\r\n" * 1000)
        got = await peer.rest()
        assert b"GET /last " in got and b"/lost" not in got
        peer.sock.close()
        await until(lambda: bench.side.connections == 0)

    run(scenario, app=app)


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"", None),
        (b"P", None),
        (b"GET / HT", 408),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nab", 408),
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", 200),
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\nGET ", 408),
    ],
    ids=["silent", "unclear", "half a head", "half a body", "idle", "half a second head"],
)
def test_who_is_slow_or_idle_is_sent_away(data: bytes, status: int | None) -> None:
    async def scenario(bench: Bench) -> None:
        peer = bench.connect()
        await peer.send(data)
        got = await peer.rest()
        if status is None:
            assert got == b""
        else:
            assert last_status(got) == status
        assert bench.side.stats()["http_timeouts"] == int(status != 200)

    run(scenario, limits=SHORT)


@pytest.mark.parametrize("when", ["before", "within", "never"])
def test_an_application_that_fails(when: str) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if when == "within":
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"10")]})
            await send({"type": "http.response.body", "body": b"12345", "more_body": True})
        if when != "never":
            raise ValueError("broken\n")

    async def scenario(bench: Bench) -> None:
        client = Client(bench.connect())
        await client.request("GET", "/")
        response = await client.event()
        assert isinstance(response, h11.Response)
        if when == "within":
            assert response.status_code == 200
            with pytest.raises((h11.RemoteProtocolError, ConnectionResetError)):
                while True:
                    await client.event()
        else:
            assert response.status_code == 500
        assert bench.side.stats()["http_app_errors"] == 1
        assert bench.fields("http_app_failed")["peer"] == PEER
        assert "\n" not in bench.records[0].getMessage()

    run(scenario, app=app)


@pytest.mark.parametrize(
    "messages",
    [
        [{"type": "http.response.body", "body": b"x"}],
        [{"type": "http.response.start", "status": 200, "headers": [(b"bad name", b"x")]}, {"type": "http.response.body"}],
        [{"type": "http.response.start", "status": 200, "headers": [(b"x", b"a\r\nb: c")]}, {"type": "http.response.body"}],
        [{"type": "websocket.accept"}],
    ],
)
def test_an_application_that_breaks_the_rules(messages: list[dict[str, object]]) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for message in messages:
            await send(message)

    async def scenario(bench: Bench) -> None:
        assert (await Client(bench.connect()).ask("GET", "/"))[0] == 500
        assert bench.events == ["http_app_failed"]

    run(scenario, app=app)


def test_an_application_is_cancelled_when_its_peer_goes() -> None:
    ended = asyncio.Event()
    running = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        running.set()
        try:
            await receive()
        finally:
            ended.set()

    async def scenario(bench: Bench) -> None:
        peer = bench.connect()
        await peer.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await asyncio.wait_for(running.wait(), WAIT_S)
        peer.sock.close()
        # Nothing is written yet, so the end of the peer's side alone says nothing; closing the server does.
        await bench.side.close(0)
        await asyncio.wait_for(ended.wait(), WAIT_S)

    run(scenario, app=app)


def test_connections_beyond_the_limit_are_turned_away() -> None:
    async def scenario(bench: Bench) -> None:
        first, second = Client(bench.connect()), Client(bench.connect())
        assert (await first.ask("GET", "/"))[0] == (await second.ask("GET", "/"))[0] == 200
        ours, theirs = socket.socketpair()
        with theirs:
            theirs.setblocking(False)
            peer = Peer(theirs)
            await peer.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            ours.setblocking(False)
            bench.side.serve(ours, Origin(1, PEER), RULES)
            assert ours.fileno() == -1
            assert last_status(await peer.rest()) == 503
        assert bench.side.connections == 2 and bench.side.stats()["http_connections_refused"] == 1
        assert bench.fields("http_connection_limit") == {"peer": PEER, "limit": 2}
        second.peer.sock.close()
        await until(lambda: bench.side.connections == 1)
        assert (await Client(bench.connect()).ask("GET", "/"))[0] == 200

    run(scenario, limits=HttpLimits(max_http_connections=2))


def test_closing_ends_idle_connections_and_waits_for_responses() -> None:
    go = asyncio.Event()
    running = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        running.set()
        await go.wait()
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b"whole"})

    async def scenario(bench: Bench) -> None:
        idle, busy = bench.connect(), Client(bench.connect())
        await busy.request("GET", "/")
        await asyncio.wait_for(running.wait(), WAIT_S)
        closing = asyncio.create_task(bench.side.close(WAIT_S))
        assert await idle.rest() == b""
        idle.sock.close()
        late = bench.connect()
        assert await late.rest() == b""
        go.set()
        response, body = await busy.response()
        assert body == b"whole" and (b"connection", b"close") in [(name, value.lower()) for name, value in response.headers]
        assert await busy.peer.recv() == b""
        busy.peer.sock.close()
        await closing

    run(scenario, app=app)


def test_ended_connections_are_forgotten() -> None:
    async def scenario(bench: Bench) -> None:
        for _ in range(3):
            peer = bench.connect()
            await peer.send(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            await peer.rest()
            peer.sock.close()
        await until(lambda: bench.side.connections == 0)

    run(scenario)


@pytest.mark.parametrize(("option", "version"), [("--http1.1", "1.1"), ("--http2-prior-knowledge", "2")])
def test_curl(option: str, version: str) -> None:
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("curl is not installed")

    async def scenario(bench: Bench) -> None:
        port = await bench.listen()
        form = "%{http_version} %{http_code} %{size_download}"
        for path, status in (("/health", 200), ("/", 200), ("/nothing", 404)):
            url = f"http://127.0.0.1:{port}{path}"
            command = [curl, "-s", "--noproxy", "*", "-m", "10", option, "-w", form, "-o", os.devnull, url]
            done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=False)
            got_version, got_status, size = done.stdout.split()
            assert (got_version, got_status) == (version, str(status)) and int(size) > 0, done.stderr

    run(scenario, app=make_app(dict))
