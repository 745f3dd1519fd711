"""Time that stands still: everything that a broker does by time, to the millisecond and without waiting."""

from __future__ import annotations

import asyncio
import datetime
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from mqttc import Broker, BrokerError, BrokerThread, SyncClient
from mqttc.auth import Request, Verdict
from mqttc.codec import Properties, ReasonCode, Will
from mqttc.testing import LocalBroker, Recorder, VirtualClock

Clients = Callable[..., SyncClient]
DAY = 86_400
WORKERS = [pytest.param(workers, id=f"{workers} workers") for workers in (1, 2, 4)]


def silent(clock: VirtualClock, seconds: float, check: Callable[[], None]) -> None:
    """Nothing is due a millisecond before the time, and everything at it."""
    clock.advance(seconds - 0.001)
    check()
    clock.advance(0.001)


@pytest.mark.parametrize("workers", WORKERS)
def test_session_expiry(mqtt_brokers: Callable[..., LocalBroker], mqtt_clock: VirtualClock, workers: int) -> None:
    from mqttc.embed.events import SessionExpired

    broker = mqtt_brokers(workers=workers)
    with Recorder(broker) as recorder:
        for number in range(8):  # on all workers
            with SyncClient(broker.url, client_id=f"device {number}", session_expiry=10 + number):
                pass
        for number in range(8):
            recorder.expect_disconnected(f"device {number}")
        silent(mqtt_clock, 10, lambda: recorder.expect_no_event(SessionExpired))
        recorder.expect_session_expired("device 0")
        recorder.expect_no_event(SessionExpired, client_id="device 1")
        mqtt_clock.advance(365 * DAY)
        for number in range(8):
            event = recorder.expect_session_expired(f"device {number}")
            assert event.time == pytest.approx(mqtt_clock.time - 365 * DAY + number, abs=0.002), "each has its own time"
        assert broker.stats()["sessions"] == 1, "the recorder's"


def test_a_client_that_comes_back_has_its_whole_time_again(mqtt_broker: LocalBroker, mqtt_clock: VirtualClock) -> None:
    for present in (False, True, True):
        with SyncClient(mqtt_broker.url, client_id="device", clean_start=False, session_expiry=100) as client:
            assert client.connack.session_present is present
        mqtt_broker.settle()
        mqtt_clock.advance(99.999)
    mqtt_clock.advance(0.001)
    with SyncClient(mqtt_broker.url, client_id="device", clean_start=False) as client:
        assert not client.connack.session_present


def test_message_expiry(mqtt_broker: LocalBroker, mqtt_clock: VirtualClock, mqtt_client: Clients, mqtt_recorder: Recorder) -> None:
    with mqtt_client(client_id="away", session_expiry=1000) as away:
        away.subscribe("#", qos=1)
    mqtt_recorder.expect_disconnected("away")
    sender = mqtt_client()
    for seconds in (10, 11, 500):
        sender.publish(f"lasts/{seconds}", b"x", qos=1, properties=Properties(message_expiry_interval=seconds))
    mqtt_clock.advance(10)
    back = mqtt_client(client_id="away", clean_start=False, session_expiry=1000)
    found = [back.get(5) for _ in range(2)]
    assert [(one.topic, one.properties.message_expiry_interval) for one in found] == [("lasts/11", 1), ("lasts/500", 490)]
    with pytest.raises(TimeoutError):
        back.get(0)


def test_retained_messages_expire(mqtt_broker: LocalBroker, mqtt_clock: VirtualClock, mqtt_client: Clients) -> None:
    client = mqtt_client()
    client.publish("state", b"on", qos=1, retain=True, properties=Properties(message_expiry_interval=60))
    mqtt_clock.advance(59.999)
    found = asyncio.run(mqtt_broker.retained_message("state"))
    assert found is not None and found.message_expiry == 1
    mqtt_clock.advance(0.001)
    assert asyncio.run(mqtt_broker.retained_message("state")) is None
    mqtt_clock.advance(10)
    assert mqtt_broker.stats()["retained"] == 0, "and is swept away"


def test_will_delay(mqtt_broker: LocalBroker, mqtt_clock: VirtualClock, mqtt_client: Clients, mqtt_recorder: Recorder) -> None:
    will = Will("state", b"gone", qos=1, properties=Properties(will_delay_interval=30))
    client = mqtt_client(client_id="device", session_expiry=100, will=will)
    client.close(reason_code=ReasonCode.DISCONNECT_WITH_WILL_MESSAGE)
    mqtt_recorder.expect_disconnected("device")
    silent(mqtt_clock, 30, lambda: mqtt_recorder.expect_none("state"))
    mqtt_recorder.expect("state", payload=b"gone", count=1)


def test_what_a_timer_sets_in_turn_counts_from_its_own_time(
    mqtt_broker: LocalBroker, mqtt_clock: VirtualClock, mqtt_client: Clients, mqtt_recorder: Recorder
) -> None:
    """A will at the 30th second that lasts for 60 is over at the 90th, also if the clock jumps to the 91st."""
    properties = Properties(will_delay_interval=30, message_expiry_interval=60)
    for number, (jump, kept) in enumerate([(89.999, True), (90.0, False)]):
        topic = f"state/{number}"
        client = mqtt_client(
            client_id=f"device {number}", session_expiry=100, will=Will(topic, b"gone", retain=True, properties=properties)
        )
        client.close(reason_code=ReasonCode.DISCONNECT_WITH_WILL_MESSAGE)
        mqtt_recorder.expect_disconnected(f"device {number}")
        mqtt_clock.advance(jump)
        assert (asyncio.run(mqtt_broker.retained_message(topic)) is not None) is kept


@pytest.mark.parametrize("workers", WORKERS)
def test_what_follows_is_sent_when_advance_returns(
    mqtt_brokers: Callable[..., LocalBroker], mqtt_clock: VirtualClock, workers: int
) -> None:
    """Also to clients of other workers."""
    broker = mqtt_brokers(workers=workers)
    with socket.create_connection((broker.host, broker.port)) as panel:
        panel.sendall(b"\x10\x0d\x00\x04MQTT\x04\x02\x00\x00\x00\x01a" + b"\x82\x06\x00\x01\x00\x01w\x00")
        while len(panel.recv(9, socket.MSG_PEEK)) < 9:
            pass
        assert panel.recv(9) == b"\x20\x02\x00\x00\x90\x03\x00\x01\x00"
        panel.setblocking(False)
        for turn in range(5):
            for number in range(8):
                will = Will("w", b"", properties=Properties(will_delay_interval=10))
                client = SyncClient(broker.url, client_id=f"device {turn} {number}", session_expiry=100, will=will)
                client.connect()
                client.close(reason_code=ReasonCode.DISCONNECT_WITH_WILL_MESSAGE)
            broker.settle()
            mqtt_clock.advance(10)
            assert panel.recv(1000) == b"\x30\x03\x00\x01w" * 8


@pytest.mark.parametrize("workers", WORKERS)
def test_keep_alive_only_if_the_test_wants(mqtt_brokers: Callable[..., LocalBroker], mqtt_clock: VirtualClock, workers: int) -> None:
    from mqttc.embed.events import Disconnected

    broker = mqtt_brokers(workers=workers)
    clients = [SyncClient(broker.url, client_id=f"device {number}", keep_alive=10, reconnect=None) for number in range(4)]
    with Recorder(broker) as recorder:
        for client in clients:
            client.connect()
        mqtt_clock.advance(DAY)
        mqtt_clock.advance(14.999, keep_alive=True)
        recorder.expect_no_event(Disconnected)
        assert all(client.connected for client in clients)
        mqtt_clock.advance(0.001, keep_alive=True)
        for client in clients:
            recorder.expect_disconnected(client.client_id, reason_code=ReasonCode.KEEP_ALIVE_TIMEOUT)
            client.close()


def test_a_client_that_sends_lives_on(mqtt_broker: LocalBroker, mqtt_clock: VirtualClock, mqtt_client: Clients) -> None:
    client = mqtt_client(keep_alive=10, reconnect=None)
    for _ in range(5):
        mqtt_clock.advance(14, keep_alive=True)
        client.publish("here", b"", qos=1)
    assert client.connected


def test_connect_timeout(mqtt_broker: LocalBroker, mqtt_clock: VirtualClock) -> None:
    timeout = mqtt_broker.config.limits.connect_timeout
    with socket.create_connection((mqtt_broker.host, mqtt_broker.port)) as silent_one:
        mqtt_broker.settle()
        mqtt_clock.advance(timeout - 0.001)
        silent_one.setblocking(False)
        with pytest.raises(BlockingIOError):
            silent_one.recv(1)
        mqtt_clock.advance(0.001)
        silent_one.settimeout(5)
        assert silent_one.recv(1) == b""


def test_authentication_timeout(mqtt_clock: VirtualClock) -> None:
    asked = threading.Event()

    class Never:
        async def authenticate(self, request: Request) -> Verdict:
            asked.set()
            await asyncio.Event().wait()
            raise AssertionError

    with LocalBroker(clock=mqtt_clock, authenticator=Never()) as broker:
        client = SyncClient(broker.url, username="anna", password="x")
        failures: list[BaseException] = []

        def connect() -> None:
            try:
                client.connect()
            except Exception as error:
                failures.append(error)

        thread = threading.Thread(target=connect)
        thread.start()
        assert asked.wait(5)
        mqtt_clock.advance(broker.config.limits.auth_timeout)
        thread.join(5)
        assert "0x87" in repr(failures) or "authorized" in str(failures[0]).lower(), failures


# ---------------------------------------------------------------------------------------------- the clock itself


def test_a_clock_stands_still(mqtt_broker: LocalBroker, mqtt_clock: VirtualClock, mqtt_client: Clients, mqtt_recorder: Recorder) -> None:
    mqtt_client(client_id="a")
    mqtt_client(client_id="b")
    times = {event.time for event in mqtt_recorder.events if mqtt_recorder.expect_connected("b")}
    assert len(times) <= 1
    assert mqtt_recorder.expect_connected("b").time == round(mqtt_clock.time, 3)


def test_where_a_clock_begins() -> None:
    start = datetime.datetime(2030, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)
    clock = VirtualClock(start)
    clock.advance(0.5)
    assert (clock.datetime, clock.elapsed, clock.time) == (start + datetime.timedelta(seconds=0.5), 0.5, start.timestamp() + 0.5)
    with LocalBroker(clock=clock) as broker, Recorder(broker) as recorder, SyncClient(broker.url, client_id="a"):
        assert recorder.expect_connected("a").time == clock.time
    assert "2030-01-02T03:04:05.5" in repr(clock)


@pytest.mark.parametrize("wrong", [-1, float("nan"), float("inf"), 1e11])
def test_time_that_does_not_pass(wrong: float) -> None:
    clock = VirtualClock(1000)
    with pytest.raises(ValueError, match="is not advanced by"):
        clock.advance(wrong)
    assert clock.elapsed == 0
    with pytest.raises(ValueError, match="Unix time"):
        VirtualClock(wrong)


def test_a_datetime_needs_a_time_zone() -> None:
    with pytest.raises(ValueError, match="time zone"):
        VirtualClock(datetime.datetime(2030, 1, 1))


def test_a_real_broker_beside_it_keeps_real_time(mqtt_clock: VirtualClock) -> None:
    with LocalBroker(clock=mqtt_clock) as virtual, LocalBroker() as real:
        for broker in (virtual, real):
            with SyncClient(broker.url, client_id="device", session_expiry=3600):
                pass
            broker.settle()
        mqtt_clock.advance(3600)
        assert (virtual.stats()["sessions"], real.stats()["sessions"]) == (0, 1)


def test_several_brokers_share_a_clock(mqtt_clock: VirtualClock) -> None:
    with LocalBroker(clock=mqtt_clock) as first:
        mqtt_clock.advance(50)
        with LocalBroker({"workers": 2}, clock=mqtt_clock) as second:
            for broker in (first, second):
                with SyncClient(broker.url, client_id="device", session_expiry=10):
                    pass
                broker.settle()
            mqtt_clock.advance(10)
            assert (first.stats()["sessions"], second.stats()["sessions"]) == (0, 0)


def test_threads_may_advance_it(mqtt_broker: LocalBroker, mqtt_clock: VirtualClock) -> None:
    threads = [threading.Thread(target=lambda: [mqtt_clock.advance(1) for _ in range(20)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert mqtt_clock.elapsed == 80


def test_a_broker_with_a_clock_has_no_other(mqtt_broker: LocalBroker, mqtt_clock: VirtualClock) -> None:
    with pytest.raises(BrokerError, match="clock of its own"):
        mqtt_broker.advance_clock(1)
    assert mqtt_broker._running is not None
    with pytest.raises(RuntimeError, match="before open_store and start"):
        mqtt_broker._running.engine.hold_clock(0)


def test_a_broker_ends_in_real_time(mqtt_clock: VirtualClock) -> None:
    """A peer that does not go is waited for, but not for ever."""
    with LocalBroker({"limits": {"shutdown_timeout": 0.2}}, clock=mqtt_clock) as broker:
        peer = socket.create_connection((broker.host, broker.port))
        peer.sendall(b"\x10\x0d\x00\x04MQTT\x04\x02\x00\x00\x00\x01a")
        assert peer.recv(4) == b"\x20\x02\x00\x00"
    peer.close()
    mqtt_clock.advance(1)  # of no broker


def test_broker_thread_takes_a_clock(mqtt_clock: VirtualClock) -> None:
    with BrokerThread({"listeners": [{"url": "tcp://127.0.0.1:0"}], "workers": 2}, clock=mqtt_clock) as broker:
        broker.publish("a", b"x", retain=True, properties=Properties(message_expiry_interval=5))
        assert broker.retained_message("a") is not None
        mqtt_clock.advance(5)
        assert broker.retained_message("a") is None


def test_a_store_that_is_opened_again(tmp_path: Path, mqtt_clock: VirtualClock) -> None:
    """Sessions and messages also grow old while no broker runs."""
    config = {
        "listeners": [{"url": "tcp://127.0.0.1:0"}],
        "workers": 2,
        "data_dir": str(tmp_path / "store"),
        "durability": {"mode": "written"},
    }
    with LocalBroker(config, clock=mqtt_clock) as broker:
        for number in (1, 2):
            with SyncClient(broker.url, client_id=f"device {number}", session_expiry=1000 * number):
                pass
        with SyncClient(broker.url) as client:
            for number in (1, 2):
                properties = Properties(message_expiry_interval=1000 * number)
                client.publish(f"state/{number}", b"x", qos=1, retain=True, properties=properties)
        broker.settle()
        mqtt_clock.advance(400)
    mqtt_clock.advance(700)
    with LocalBroker(config, clock=mqtt_clock) as broker:
        present = []
        for number in (1, 2):
            with SyncClient(broker.url, client_id=f"device {number}", clean_start=False) as client:
                present.append(client.connack.session_present)
        assert present == [False, True]
        page = asyncio.run(_retained(broker))
        assert [(one.topic, one.message_expiry) for one in page] == [("state/2", 900)]


async def _retained(broker: Broker) -> list[object]:
    return list(await broker.retained())
