"""WebSocket over HTTP/2 (RFC 8441): what the client says, what it does not take, and how windows hold it up."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.settings
import pytest
from wsproto import ConnectionType
from wsproto.connection import Connection
from wsproto.events import BytesMessage, TextMessage

from mqttc import Client, SyncClient, codec
from mqttc.client import State, Tls
from mqttc.client.link_http2 import Http2Link
from mqttc.errors import ConnectError, ConnectionLostError
from tests.client.conftest import client_url, listeners, run, settled
from tests.conftest import BrokerFactory


class Http2Server:
    """A TLS port that speaks HTTP/2 and, on one stream, MQTT: it answers CONNECT and the first PUBLISH of QoS 1, and what it is told to."""

    def __init__(
        self, pki: Path, *, alpn: str = "h2", extended: int = 1, answer: dict[str, str] | None = None, window: int = 65535
    ) -> None:
        self.context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.context.load_cert_chain(pki / "server.pem", pki / "server.key")
        self.context.set_alpn_protocols([alpn])
        self.headers: dict[str, str] = {}
        self.received = bytearray()
        self.tls = Tls(ca_file=pki / "ca.pem")
        self.first = b""
        """Bytes of frames that follow CONNACK."""
        self.end = ""
        """What comes behind them: `reset`, `stream`, `goaway` or `nonsense`."""
        self._extended = extended
        self._answer = {":status": "200", "sec-websocket-protocol": "mqtt"} if answer is None else answer
        self._window = window
        self._accepted = False
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Http2Server:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self.context)
        self.url = f"wss://localhost:{self._server.sockets[0].getsockname()[1]}/mqtt"
        return self

    async def __aexit__(self, *error: object) -> None:
        self._server.close()
        await settled(lambda: self._accepted)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def release(self, size: int) -> None:
        """The windows of stream and connection are opened by so much."""
        self._http.increment_flow_control_window(size)
        self._http.increment_flow_control_window(size, self._stream)
        self._writer.write(self._http.data_to_send())

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._accepted = True
        http = self._http = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="utf-8"))
        self._writer = writer
        codes = h2.settings.SettingCodes
        values = {codes.ENABLE_CONNECT_PROTOCOL: self._extended, codes.INITIAL_WINDOW_SIZE: self._window}
        http.local_settings = h2.settings.Settings(client=False, initial_values=values)
        http.initiate_connection()
        writer.write(http.data_to_send())
        frames, decoder = Connection(ConnectionType.SERVER), codec.Decoder(5)
        try:
            while data := await reader.read(65536):
                for event in http.receive_data(data):
                    if isinstance(event, h2.events.RequestReceived):
                        self.headers, self._stream = dict(event.headers), event.stream_id
                        http.send_headers(event.stream_id, list(self._answer.items()), end_stream=self._answer[":status"] != "200")
                    elif isinstance(event, h2.events.DataReceived):
                        frames.receive_data(event.data)
                for message in frames.events():
                    if isinstance(message, BytesMessage):
                        self.received += message.data
                        for packet in decoder.feed(bytes(message.data)):
                            self._answer_packet(packet, frames)
                writer.write(http.data_to_send())
                if self.end == "nonsense" and b"nonsense" in self.received:
                    writer.write(bytes(9))  # DATA of stream 0
        except (OSError, asyncio.CancelledError):
            pass  # asyncio's server takes a cancelled handler for a failed one
        finally:
            writer.transport.abort()
            self._tasks.discard(task)

    def _answer_packet(self, packet: codec.Packet, frames: Connection) -> None:
        def say(answer: codec.Packet) -> bytes:
            return frames.send(BytesMessage(codec.encode(answer, 5)))

        data = b""
        if isinstance(packet, codec.Connect):
            data = say(codec.Connack()) + self.first
        elif isinstance(packet, codec.Publish) and packet.qos:
            data = say(codec.Puback(packet.packet_id))
        if data:
            self._http.send_data(self._stream, data, end_stream=self.end == "stream")
        if isinstance(packet, codec.Connect) and self.end == "reset":
            self._http.reset_stream(self._stream)
        elif isinstance(packet, codec.Connect) and self.end == "goaway":
            self._http.close_connection()


def test_what_the_request_says(pki: Path) -> None:
    async def work() -> None:
        async with Http2Server(pki) as server:
            async with Client(server.url + "?a=b", http2=True, tls=server.tls, headers={"X-Token": "abc"}) as client:
                await client.publish("t", b"x", 1)
            authority = server.url.split("/")[2]
            assert server.headers == {
                ":method": "CONNECT", ":protocol": "websocket", ":scheme": "https", ":authority": authority, ":path": "/mqtt?a=b",
                "sec-websocket-version": "13", "sec-websocket-protocol": "mqtt", "x-token": "abc",
            }  # fmt: skip
            await settled(lambda: server.received.endswith(bytes.fromhex("e0 00")))

    run(work())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"alpn": "http/1.1"}, "does not speak HTTP/2"),
        ({"extended": 0}, "RFC 8441"),
        ({"answer": {":status": "404"}}, "status 404"),
        ({"answer": {":status": "200"}}, "subprotocol mqtt"),
    ],
)
def test_a_handshake_that_fails(options: dict[str, Any], said: str, pki: Path) -> None:
    async def work() -> None:
        async with Http2Server(pki, **options) as server:
            with pytest.raises(ConnectError, match=said):
                await Client(server.url, http2=True, tls=server.tls).connect()

    run(work())


def test_a_handshake_that_fails_when_nobody_waits_any_more(pki: Path) -> None:
    """Cancelled in the turn in which the answer comes."""

    async def work() -> None:
        async with Http2Server(pki, alpn="http/1.1") as server:
            client = Client(server.url, http2=True, tls=server.tls)
            failing: list[str] = []
            fail = Http2Link._fail

            def seen(link: Http2Link, text: str, *hint: Any) -> None:
                failing.append(text)
                fail(link, text, *hint)
                connecting.cancel()

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(Http2Link, "_fail", seen)
                connecting = asyncio.ensure_future(client.connect())
                await asyncio.gather(connecting, return_exceptions=True)
            assert connecting.cancelled() and failing

    run(work())


@pytest.mark.parametrize("end", ["reset", "stream", "goaway", "nonsense"])
def test_a_connection_that_ends(end: str, pki: Path) -> None:
    async def work() -> None:
        async with Http2Server(pki) as server:
            server.end = end
            client = Client(server.url, http2=True, tls=server.tls, reconnect=None)
            await client.connect()
            if end == "nonsense":
                await client.publish("nonsense")
            await client.wait_for(State.CLOSED)
            assert isinstance(client.error, ConnectionLostError)

    run(work())


def test_a_text_frame_ends_it(pki: Path) -> None:
    async def work() -> None:
        async with Http2Server(pki) as server:
            server.first = Connection(ConnectionType.SERVER).send(TextMessage("x"))
            client = Client(server.url, http2=True, tls=server.tls, reconnect=None)
            await client.connect()
            await client.wait_for(State.CLOSED)

    run(work())


def test_windows_hold_the_publisher_up(pki: Path) -> None:
    """What they do not let through waits, up to max_write_bytes; at the end it is sent before the connection is closed."""

    async def work() -> None:
        async with Http2Server(pki, window=20_000) as server:
            async with Client(server.url, http2=True, tls=server.tls, max_write_bytes=50_000) as client:
                count = 0

                async def publish() -> None:
                    nonlocal count
                    while count < 100:
                        await client.publish("t", b"x" * 2000)
                        count += 1

                publishing = asyncio.create_task(publish())
                connection = client._engine.connection
                assert connection is not None
                await settled(lambda: not connection.writable)
                assert not publishing.done() and count < 70
                assert len(server.received) <= 20_000
                while not publishing.done():
                    server.release(10_000)
                    await asyncio.sleep(0)
                for _ in range(10):
                    await client.publish("t", b"x" * 2000)
                link: Any = connection.link
                connection.flush()
                assert len(link._waiting) > 15_000
                closing = asyncio.create_task(client.close())
                while not closing.done():
                    server.release(1000)
                    await asyncio.sleep(0)
            await settled(lambda: server.received.endswith(bytes.fromhex("e0 00")))
            assert server.received.count(b"x" * 2000) == 110

    run(work())


def test_a_full_transport_holds_the_publisher_up_too(pki: Path) -> None:
    async def work() -> None:
        async with Http2Server(pki) as server, Client(server.url, http2=True, tls=server.tls) as client:
            connection = client._engine.connection
            assert connection is not None and connection.writable
            link: Any = connection.link
            link.pause_writing()
            assert not connection.writable
            link.resume_writing()
            assert connection.writable

    run(work())


def test_large_messages_both_ways(broker_factory: BrokerFactory, pki: Path, tmp_path: Path) -> None:
    broker = broker_factory({"listeners": listeners(pki, tmp_path, "wss"), "limits": {"max_packet_size": 8_000_000}})

    async def work() -> None:
        async with Client(client_url(broker, "wss"), http2=True, tls=Tls(ca_file=pki / "ca.pem")) as client:
            await client.subscribe("big", 1)
            body = bytes(range(256)) * 12_000
            for _ in range(3):
                await client.publish("big", body, 1)
                assert (await client.get()).payload == body

    run(work())


def test_an_unread_stream_holds_the_broker_up(broker_factory: BrokerFactory, pki: Path, tmp_path: Path) -> None:
    broker = broker_factory({"listeners": listeners(pki, tmp_path, "mqtt", "wss")})

    async def work() -> None:
        options: dict[str, Any] = {"http2": True, "tls": Tls(ca_file=pki / "ca.pem"), "max_buffered_messages": 10}
        async with Client(client_url(broker, "wss"), **options) as client, Client(client_url(broker)) as other:
            await client.subscribe("t", 1)
            for number in range(3000):
                await other.publish("t", b"%d" % number, 1, wait=False)
            await settled(lambda: client.stats.pauses > 0)
            assert [int((await client.get()).payload) for _ in range(3000)] == list(range(3000))

    run(work())


@pytest.mark.parametrize("url", ["ws://h", "mqtts://h", "quic://h", "unix:///s"])
def test_only_wss(url: str) -> None:
    for kind in (Client, SyncClient):
        with pytest.raises(ValueError, match="http2"):
            kind(url, http2=True)
