"""The client's small parts: URLs, options, keep alive, back-off, streams, routes, the store. Time is an argument, nothing is waited for."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from mqttc import codec
from mqttc.client import Client, Reconnect, SqliteStore, Tls
from mqttc.client.backoff import delay_s
from mqttc.client.keepalive import Due, KeepAlive
from mqttc.client.message import Message
from mqttc.client.options import _RANGES, Authentication, ClientOptions, Options
from mqttc.client.outgoing import Outgoing, run_end
from mqttc.client.packet_ids import PacketIds
from mqttc.client.router import CACHED_TOPICS, Router
from mqttc.client.stream import Stream
from mqttc.client.url import QUIC, TCP, UNIX, WEBSOCKET, parse_url
from mqttc.codec import Properties
from mqttc.errors import MqttError
from tests.client.conftest import run
from tests.client.wire import Wire, messages
from tests.conformance.statements import spec

# ---------------------------------------------------------------------------------------------------- URLs


@pytest.mark.parametrize(
    ("url", "road", "secure", "host", "port", "path"),
    [
        ("mqtt://h", TCP, False, "h", 1883, ""),
        ("tcp://h:1", TCP, False, "h", 1, ""),
        ("mqtts://h/", TCP, True, "h", 8883, "/"),
        ("TLS://h", TCP, True, "h", 8883, ""),
        ("ws://h", WEBSOCKET, False, "h", 80, "/mqtt"),
        ("wss://h:8443/a?b=c", WEBSOCKET, True, "h", 8443, "/a?b=c"),
        ("quic://[::1]", QUIC, True, "::1", 14567, ""),
        ("unix:///run/a%20b", UNIX, False, "", 0, "/run/a b"),
    ],
)
def test_urls(url: str, road: str, secure: bool, host: str, port: int, path: str) -> None:
    target = parse_url(url)
    assert (target.road, target.secure, target.host, target.port) == (road, secure, host, port)
    assert road in (TCP, QUIC) or target.path == path


@pytest.mark.parametrize("password", ["zq/xv", "12/34", "zq?xv", "zq#xv", "zq@xv/12"])
def test_a_password_that_is_not_encoded_is_not_shown(password: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_url(f"mqtt://user:{password}@host")
    assert not any(part in str(caught.value) for part in ("zq", "xv", "12", "34"))


def test_credentials_of_a_url_are_used_and_not_shown() -> None:
    client = Client("mqtt://us%40er:p%3Aw@h")
    assert (client.options.username, client.options.password) == ("us@er", "p:w")
    assert "p:w" not in repr(client) + repr(client.options) and "p%3Aw" not in repr(client)
    assert Client("mqtt://user:pw@h", username="other").options.username == "other"
    assert parse_url("wss://h").authority == "h" and parse_url("ws://[::1]:81").authority == "[::1]:81"


@pytest.mark.parametrize(
    "url",
    ["h:1883", "http://h", "mqtt://", "mqtt://h:99999", "mqtt://h/path", "mqtt://h?a=b", "unix://h/p", "unix://p", "ws://h/ä", "mqtt://h#f"],
)
def test_urls_that_are_none(url: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        Client(url)
    with pytest.raises(ValueError, match=r".") as caught:
        Client(url.replace("://", "://user:secret@"))
    assert "secret" not in str(caught.value)


# ---------------------------------------------------------------------------------------------------- options


def test_options_and_their_types_name_the_same() -> None:
    assert sorted(ClientOptions.__annotations__) == sorted(Options.names())


@pytest.mark.parametrize(("name", "least", "most"), _RANGES)
def test_every_limit_of_an_option(name: str, least: float, most: float) -> None:
    for value in (least - 1, most + 1):
        with pytest.raises(ValueError, match=f"{name}: "):
            Client(**{name: value})
    for value in (least, most):
        assert getattr(Options(**{"client_id": "c", name: value}), name) == value


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"version": 6}, "version"),
        ({"fallback": (2,)}, "fallback"),
        ({"store": SqliteStore("x")}, "store"),
        ({"clean_start": False}, "clean_start"),
        ({"version": 4, "authentication": Authentication("m", lambda data: data)}, "authentication"),
        ({"version": 4, "password": "p"}, "password"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        Client(**options)
    with pytest.raises(TypeError):
        Client(nonsense=1)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="synchronous"):
        SqliteStore("x", "perhaps")
    assert Tls().verify


# ---------------------------------------------------------------------------------------------------- time


@spec("3.1.1", "MQTT-3.1.2-23")
@spec("5", "MQTT-3.1.2-20")
def test_keep_alive() -> None:
    keep_alive = KeepAlive(10, 3, now=100)
    assert keep_alive.next_at() == 109 and keep_alive.due(108.9, True) is Due.NOTHING
    keep_alive.sent_at = 105  # what is sent puts PINGREQ off
    assert keep_alive.due(109, True) is Due.NOTHING and keep_alive.next_at() == 114
    assert keep_alive.due(114, True) is Due.PING  # within the interval
    keep_alive.sent_at = 114
    assert keep_alive.next_at() == 117 and keep_alive.due(116.9, True) is Due.NOTHING
    keep_alive.received_at = 116
    assert keep_alive.due(117, True) is Due.NOTHING and keep_alive.next_at() == 123
    assert keep_alive.due(123, True) is Due.PING
    keep_alive.sent_at = 123
    assert keep_alive.due(126, True) is Due.DEAD


def test_keep_alive_says_nothing_of_a_broker_that_is_not_listened_to() -> None:
    keep_alive = KeepAlive(10, 3, now=0)
    assert keep_alive.due(9, False) is Due.PING
    keep_alive.sent_at = 9
    assert keep_alive.due(12, False) is Due.NOTHING
    assert keep_alive.due(18, False) is Due.PING
    keep_alive.sent_at = 18
    assert keep_alive.due(21, True) is Due.DEAD


def test_an_interval_shorter_than_the_wait_for_the_answer() -> None:
    keep_alive = KeepAlive(10, 100, now=0)
    assert keep_alive.due(9, True) is Due.PING
    keep_alive.sent_at = 9
    assert keep_alive.next_at() == 18  # the broker waits one and a half intervals, whatever we wait for
    keep_alive.received_at = 10
    for now in range(18, 118, 9):
        assert keep_alive.due(now, True) is Due.PING
        keep_alive.sent_at = now
    assert keep_alive.next_at() == 118 and keep_alive.due(118, True) is Due.DEAD  # of the first that has no answer


def test_no_keep_alive() -> None:
    keep_alive = KeepAlive(0, 3, now=0)
    assert keep_alive.next_at() is None and keep_alive.due(10**9, True) is Due.NOTHING


def test_back_off() -> None:
    reconnect = Reconnect(first_s=1, most_s=10, factor=2, jitter=0.5)
    assert [delay_s(reconnect, n, 0) for n in range(6)] == [1, 2, 4, 8, 10, 10]
    assert [delay_s(reconnect, n, 1) for n in range(3)] == [0.5, 1, 2]
    assert delay_s(reconnect, 10**6, 0) == 10


# ---------------------------------------------------------------------------------------------------- streams


def message(payload: bytes = b"", topic: str = "t", qos: int = 0) -> Message:
    wire = Wire()
    wire.connect()
    [made] = messages(wire.give(codec.Publish(topic, payload, qos=qos, packet_id=qos)))
    return made


class Told:
    """A stream, and what it told."""

    def __init__(self, max_messages: int = 4, max_bytes: int = 10**6) -> None:
        self.said: list[str] = []
        self.handed: list[Message] = []
        self.stream = Stream(
            max_messages, max_bytes, lambda _: self.said.append("full"), lambda _: self.said.append("room"), self.handed.append
        )


def test_a_stream_says_when_it_is_full_and_when_half_is_free() -> None:
    told = Told()
    for _ in range(5):
        told.stream.put(message())
    assert told.said == ["full"] and told.stream.full and len(told.stream) == 5
    for _ in range(2):
        told.stream.take()
    assert told.said == ["full"]
    told.stream.take()
    assert told.said == ["full", "room"] and not told.stream.full


def test_a_stream_counts_bytes() -> None:
    told = Told(max_messages=1000, max_bytes=3000)
    for _ in range(2):
        told.stream.put(message(b"x" * 1500))
    assert told.said == ["full"]
    told.stream.take()
    assert told.said == ["full"]
    told.stream.take()
    assert told.said == ["full", "room"] and told.stream.held_bytes == 0


def test_only_messages_that_want_it_are_handed_over() -> None:
    told = Told()
    for qos in (0, 1, 2):
        told.stream.put(message(qos=qos))
    assert told.handed == []
    while told.stream.take() is not None:
        pass
    assert [m.qos for m in told.handed] == [1, 2]


def test_the_end_of_a_stream_comes_after_what_it_holds() -> None:
    told = Told()
    told.stream.put(message(b"last"))
    told.stream.end()

    async def work() -> None:
        assert (await told.stream.get()).payload == b"last"
        with pytest.raises(StopAsyncIteration):
            await told.stream.get()

    run(work())


def test_an_error_ends_all_readers() -> None:
    told = Told()

    async def work() -> None:
        readers = [asyncio.create_task(told.stream.get()) for _ in range(3)]
        await asyncio.sleep(0)
        told.stream.end(MqttError("over"))
        results = await asyncio.gather(*readers, return_exceptions=True)
        assert [str(result) for result in results] == ["over"] * 3

    run(work())


def test_a_reader_that_is_cancelled_takes_nothing_with_it() -> None:
    """Woken and cancelled in the same turn, it wakes the next."""
    told = Told()

    async def work() -> None:
        first, second = (asyncio.create_task(told.stream.get()) for _ in range(2))
        await asyncio.sleep(0)
        told.stream.put(message(b"one"))
        first.cancel()
        assert (await second).payload == b"one"
        with pytest.raises(asyncio.CancelledError):
            await first

    run(work())


# ---------------------------------------------------------------------------------------------------- routes


class Route:
    def __init__(self, *topic_filters: str, identifier: int | None = None, sink: Any = None) -> None:
        self.topic_filters = topic_filters
        self.identifier = identifier
        self.sink = sink if sink is not None else Told().stream


def test_routes() -> None:
    inbox = Told().stream
    router = Router(inbox)
    one, two = Route("a/#"), Route("a/b", "c")
    router.add(one)
    router.add(two)
    assert set(router.sinks(message(topic="a/b"))) == {one.sink, two.sink}
    assert router.sinks(message(topic="a/x")) == (one.sink,)
    assert router.sinks(message(topic="other")) == (inbox,)
    router.remove(one)
    assert router.sinks(message(topic="a/x")) == (inbox,)
    both = Route("a/b", sink=two.sink)
    router.add(both)
    assert router.sinks(message(topic="a/b")) == (two.sink,)  # once, though two subscriptions bring it


def test_subscription_identifiers_decide_where_both_have_them() -> None:
    router = Router(Told().stream)
    one, two, plain = Route("a/#", identifier=1), Route("a/b", identifier=2), Route("a/+")
    for route in (one, two, plain):
        router.add(route)
    wire = Wire()
    wire.connect()
    [told] = messages(wire.give(codec.Publish("a/b", properties=Properties(subscription_identifiers=[2]))))
    assert set(router.sinks(told)) == {two.sink, plain.sink}
    assert set(router.sinks(message(topic="a/b"))) == {one.sink, two.sink, plain.sink}


def test_the_cache_of_topics_is_bounded() -> None:
    router = Router(Told().stream)
    template = message()
    for number in range(CACHED_TOPICS + 10):
        router.sinks(Message(f"t{number}", template.packet))
    assert len(router._cache) == 10


# ---------------------------------------------------------------------------------------------------- the store


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "client.db"


def opened(path: Path, **options: Any) -> Wire:
    return Wire(store=SqliteStore(path), session_expiry=60, clean_start=False, **options)


def store_of(wire: Wire) -> SqliteStore:
    store = wire.core.incoming._store
    assert isinstance(store, SqliteStore)
    return store


def stop(wire: Wire, commit: bool = True) -> None:
    """The end of the process, before or after the end of the turn."""
    if commit:
        store_of(wire).commit()
    store_of(wire).close()


def test_a_store_remembers_what_is_on_its_way(path: Path) -> None:
    wire = opened(path)
    wire.connect()
    properties = {"content_type": "x", "user_properties": [("a", "b")], "message_expiry_interval": 9}
    sent = wire.publish("sent", b"\0\xff", 1, True, **properties)
    released, done = wire.publish("released", qos=2), wire.publish("done")
    store_of(wire).commit()
    wire.give(codec.Pubrec(released.packet_id), codec.Puback(done.packet_id))
    for message in messages(wire.give(*(codec.Publish("in", qos=2, packet_id=n) for n in (5, 6)))):
        message.acknowledge()
    wire.give(codec.Pubrel(5))
    wire.cut()
    wire.publish("queued", qos=0)
    stop(wire)

    again = opened(path)
    assert again.core.outgoing.unfinished == 3
    assert again.open().clean_start is False
    again.cut()
    release, resent, queued = again.connect(session_present=True)
    assert isinstance(release, codec.Pubrel) and release.packet_id == released.packet_id
    assert isinstance(resent, codec.Publish) and isinstance(queued, codec.Publish)
    assert (resent.topic, resent.payload, resent.retain, resent.dup, resent.packet_id) == ("sent", b"\0\xff", True, True, sent.packet_id)
    assert resent.properties.user_properties == (("a", "b"),) and resent.properties.message_expiry_interval == 9
    assert (queued.topic, queued.qos) == ("queued", 0)
    assert messages(again.give(codec.Publish("in", qos=2, packet_id=6, dup=True))) == []
    assert len(messages(again.give(codec.Publish("in", qos=2, packet_id=5)))) == 1
    new = again.publish("new")
    assert new.packet_id not in (sent.packet_id, released.packet_id) and new.number > sent.number
    again.give(codec.Pubcomp(released.packet_id), codec.Puback(sent.packet_id), codec.Puback(new.packet_id))
    stop(again)

    last = opened(path)
    assert last.core.outgoing.unfinished == 0
    stop(last)


def test_a_session_that_is_gone_is_gone_from_the_file(path: Path) -> None:
    wire = opened(path)
    wire.connect()
    wire.publish("sent")
    [arrived] = messages(wire.give(codec.Publish("in", qos=2, packet_id=6)))
    arrived.acknowledge()
    stop(wire)
    again = opened(path)
    [packet] = again.connect(session_present=False)
    assert isinstance(packet, codec.Publish) and not packet.dup
    assert len(messages(again.give(codec.Publish("in", qos=2, packet_id=6, dup=True)))) == 1
    stop(again)


def test_what_comes_and_goes_within_a_turn_is_not_written(path: Path) -> None:
    wire = opened(path)
    wire.connect()
    store_of(wire).commit()
    entry = wire.publish()
    assert store_of(wire).dirty
    wire.give(codec.Puback(entry.packet_id))
    assert not store_of(wire).dirty
    stop(wire)


def test_what_is_not_committed_is_not_there(path: Path) -> None:
    wire = opened(path)
    wire.connect()
    wire.publish()
    stop(wire, commit=False)
    again = opened(path)
    assert again.core.outgoing.unfinished == 0
    stop(again)


def test_a_store_has_one_user(path: Path) -> None:
    wire = opened(path)
    with pytest.raises(MqttError, match="locked"):
        opened(path)
    with pytest.raises(MqttError, match="in use"):
        store_of(wire).load()
    stop(wire)


def test_files_that_are_no_store(path: Path, tmp_path: Path) -> None:
    with sqlite3.connect(path) as base:
        base.execute("CREATE TABLE theirs (a)")
    base.close()
    for name, said in ((path, "not a client's store"), (tmp_path / "no" / "folder", "unable to open")):
        with pytest.raises(MqttError, match=said):
            SqliteStore(name).load()
    (tmp_path / "noise").write_bytes(b"noise" * 1000)
    with pytest.raises(MqttError, match="not a database"):
        SqliteStore(tmp_path / "noise").load()
    base = sqlite3.connect(path)
    assert base.execute("SELECT name FROM sqlite_master").fetchall() == [("theirs",)]
    base.close()


@pytest.mark.parametrize(("packet_id", "stage"), [(65536, 1), (0, 1), (0, 2), (-1, 1), (1, 0), (1, 3)])
def test_a_file_with_an_identifier_that_cannot_be(path: Path, packet_id: int, stage: int) -> None:
    wire = opened(path)
    wire.connect()
    wire.publish()
    stop(wire)
    with contextlib.closing(sqlite3.connect(path)) as base, base:
        base.execute("UPDATE outgoing SET packet_id = ?, stage = ?", (packet_id, stage))
    with pytest.raises(MqttError, match=f"message 1 has the packet identifier {packet_id} and is in stage {stage}"):
        opened(path)


def test_a_commit_that_fails_is_told_and_can_be_tried_again(path: Path) -> None:
    wire = opened(path)
    wire.connect()
    store = store_of(wire)
    store.commit()
    assert store._base is not None
    store._base.execute("PRAGMA query_only=1")
    wire.publish("kept")
    with pytest.raises(MqttError, match="readonly"):
        store.commit()
    assert store.dirty
    store._base.execute("PRAGMA query_only=0")
    stop(wire)
    again = opened(path)
    assert again.core.outgoing.unfinished == 1
    stop(again)


def full_stream(count: int, told: list[str]) -> tuple[Stream, list[Message]]:
    packet = codec.Publish("t", b"x")
    messages = [Message("t", packet) for _ in range(count)]
    return Stream(10, 1 << 20, lambda _: told.append("full"), lambda _: told.append("room"), None), messages


def test_a_stream_that_gets_many_at_once() -> None:
    """It is full once, whoever reads is counted, and there is room when half is read."""
    told: list[str] = []
    stream, messages = full_stream(20, told)
    stream.put_all(messages, 20)
    assert told == ["full"]

    async def read() -> None:
        for left in range(19, 4, -1):
            await anext(stream)
            assert len(stream) == left and stream.taken == 20 - left
            assert told == (["full"] if left > 5 else ["full", "room"])

    asyncio.run(read())


def test_as_many_readers_wake_as_there_are_messages() -> None:
    stream, messages = full_stream(2, [])

    async def read() -> None:
        readers = [asyncio.ensure_future(stream.get()) for _ in range(3)]
        await asyncio.sleep(0)
        stream.put_all(messages, 2)
        for _ in range(3):
            await asyncio.sleep(0)
        assert [reader.done() for reader in readers] == [True, True, False]
        readers[2].cancel()

    asyncio.run(read())


# ---------------------------------------------------------------------------------------------------- what is compiled


@spec("5", "MQTT-2.2.1-3")
def test_no_packet_identifier_is_given_twice() -> None:
    ids = PacketIds()
    ids.claim(3)
    ids.claim(3)
    taken = [ids.take() for _ in range(65534)]
    assert taken == [number for number in range(1, 65536) if number != 3]
    assert ids.exhausted and len(ids) == 65535 and 65535 in ids and 0 not in ids and 65536 not in ids
    for number in (64, 63, 63):
        ids.free(number)
    assert not ids.exhausted and len(ids) == 65533 and 63 not in ids
    assert [ids.take(), ids.take()] == [63, 64] and ids.exhausted


def test_packet_identifiers_are_used_round() -> None:
    """So that a late answer meets nobody."""
    ids = PacketIds()
    for expected in (*range(1, 65536), 1, 2):
        assert ids.take() == expected
        ids.free(expected)


@pytest.mark.parametrize("number", [-1, 0, 65536])
def test_what_is_no_packet_identifier(number: int) -> None:
    ids = PacketIds()
    for refuse in (ids.claim, ids.free):
        with pytest.raises(ValueError, match="must be 1 to 65535"):
            refuse(number)
    assert len(ids) == 0


def test_messages_that_have_ended_together() -> None:
    """With those who wait for them; another event ends the run."""
    entries = [Outgoing("t", b"", 1, False, None) for _ in range(4)]
    entries[0].waiter, entries[2].waiter = "a", "b"
    events = [None, entries[0], entries[1], entries[2], None, entries[3]]
    waiters: list[str] = []
    assert run_end(events, 1, waiters) == 4 and waiters == ["a", "b"]
    assert run_end(events, 5, waiters) == 6 and run_end(events, 0, waiters) == 0 and waiters == ["a", "b"]
