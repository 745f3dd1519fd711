"""Short runs of every scenario: everything arrives, the figures hang together, nothing is left behind. No speed is asserted."""

from __future__ import annotations

import secrets
import time
from typing import Any

import pytest

from mqttc import codec
from mqttc.bench.client import Probe, ProbeError
from mqttc.bench.profile import Profile, RunError
from mqttc.bench.result import Result, Sample
from mqttc.bench.run import run
from mqttc.load import Load
from tests.bench.conftest import Target

SCENARIOS: dict[str, dict[str, Any]] = {
    "fanout": {"publishers": 2, "subscribers": 10, "verify": 3},
    "fanin": {"publishers": 10, "subscribers": 1, "qos": 1},
    "p2p": {"publishers": 5, "subscribers": 5, "qos": 2},
    "wild": {"publishers": 3, "subscribers": 10, "filters": 500, "matches": 8},
    "shared": {"publishers": 2, "subscribers": 6, "groups": 3, "qos": 1},
    "latency": {"publishers": 4, "subscribers": 4, "rate": 400.0},
    "conn": {"connections": 10},
    "hold": {"connections": 100},
    "retain": {"messages": 2000, "subscribers": 2, "repeats": 2},
    "offline": {"messages": 2000, "subscribers": 2, "qos": 1, "repeats": 2},
    "publish": {"publishers": 3, "messages": 500, "qos": 2},
    "publish_receive": {"publishers": 3, "subscribers": 2, "messages": 500, "payload_most": 2000},
    "subscribe_publish_receive": {"publishers": 3, "messages": 500, "qos": 1, "clean": False},
}


def bench(target: Target, scenario: str, **values: Any) -> Result:
    settings: dict[str, Any] = {"duration": 0.2, "warmup": 0.1, "window": 200, "drain": 3.0, "url": target.url}
    return run(scenario, Profile(scenario=scenario, **{**settings, **SCENARIOS.get(scenario, {}), **values}), pid=target.pid)


EXACT = {
    "hold": 100,
    "retain": 2 * 2 * 2000,
    "offline": 2 * 2 * 2000,
    "publish": 1500,
    "publish_receive": 3000,
    "subscribe_publish_receive": 1500,
}


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_scenario(target: Target, scenario: str) -> None:
    for version in (4, 5) if target.name == "mqttc" else (5 if scenario in ("shared", "offline") else 4,):
        check(target, scenario, version)


def check(target: Target, scenario: str, version: int) -> None:
    result = bench(target, scenario, version=version)
    assert result.problems == []
    assert result.count == EXACT[scenario] if scenario in EXACT else result.count > 0
    assert result.per_second == pytest.approx(result.count / result.seconds)
    assert result.expected == result.delivered
    assert result.broker["pid"] == target.pid
    assert result.broker_cpu_us is not None and result.broker_cpu_us > 0
    assert result.broker_rss_bytes is not None and result.broker_rss_bytes > 1 << 20
    assert result.samples[0].seconds < 0.5
    if scenario in ("fanout", "fanin", "p2p", "wild", "shared", "latency"):
        assert list(result.latency_ms) == ["p50", "p90", "p99", "p99.9", "max"]
        assert list(result.latency_ms.values()) == sorted(result.latency_ms.values())
        assert sum(result.histogram.values()) > 0
    if scenario == "publish":  # of acknowledgements
        assert sum(result.histogram.values()) == result.count


@pytest.mark.parametrize("scenario", ["fanout", "p2p", "shared", "subscribe_publish_receive", "hold"])
def test_several_threads(mqttc_target: Target, scenario: str) -> None:
    result = bench(mqttc_target, scenario, threads=3)
    assert result.problems == []
    assert result.delivered == result.expected
    assert result.count > 0


def test_open_loop_keeps_its_rate(mqttc_target: Target) -> None:
    """Latency counts from when a message was due; the number of messages is that of the rate, give or take a pause of the machine."""
    result = bench(mqttc_target, "latency", duration=1.0)
    assert result.count == pytest.approx(400 * result.seconds, rel=0.2)
    assert not any("limit" in note for note in result.notes)


def test_impossible_rate_is_said(mqttc_target: Target) -> None:
    result = bench(mqttc_target, "latency", rate=50_000_000.0, duration=0.5, payload=1000, drain=10.0, publishers=1, subscribers=0)
    assert result.generator_limited
    assert any("rate was not held" in note for note in result.notes)


def test_nothing_stays_behind(target: Target) -> None:
    """Retained messages are gone, sessions too: the same client ids find none."""
    seen: list[str] = []
    add_client = Load.add_client

    class Spy(Load):
        def add_client(self, client_id: str, **options: Any) -> int:
            seen.append(client_id)
            return add_client(self, client_id, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mqttc.bench.road.Load", Spy)
        bench(target, "retain")
        bench(target, "offline")
    assert len(set(seen)) == 1 + 4 + 1 + 2
    assert len(seen) == len(set(seen)) + 2  # those with a session came again to end it
    with Probe(Profile(url=target.url), "bench-look") as probe:
        probe._send(codec.Subscribe(1, [codec.Subscription("bench/#")]), codec.Pingreq())
        answers = [probe._receive(), probe._receive()]
        assert sorted(type(answer).__name__ for answer in answers) == ["Pingresp", "Suback"]
    for client_id in set(seen):
        assert not session_present(target, client_id)


def session_present(target: Target, client_id: str) -> bool:
    import socket

    with socket.create_connection(("127.0.0.1", target.port), 5) as connection:
        connection.sendall(codec.encode(codec.Connect(client_id, clean_start=False), 4))
        connack = next(codec.Decoder(4).feed(connection.recv(100)))
        assert isinstance(connack, codec.Connack)
        connection.sendall(codec.encode(codec.Disconnect(), 4))
        return connack.session_present


def test_unix_socket(broker_factory: Any, tmp_path: Any) -> None:
    broker_factory({"listeners": [{"url": f"unix://{tmp_path}/broker"}]})
    profile = Profile(scenario="p2p", url=f"unix://{tmp_path}/broker", publishers=2, subscribers=2, messages=100)
    result = run("p2p", profile)
    assert (result.problems, result.count) == ([], 200)


def test_receive_maximum_of_the_broker_bounds_the_window(broker_factory: Any) -> None:
    broker = broker_factory({"limits": {"receive_maximum": 10}})
    url = broker.urls[0].replace("tcp://", "mqtt://")
    result = run("fanout", Profile(scenario="fanout", url=url, version=5, qos=1, messages=500, window=100))
    assert (result.problems, result.count) == ([], 500)
    assert any("receive maximum" in note for note in result.notes)


def test_observer_sees_phases_and_samples(mqttc_target: Target) -> None:
    class Seen:
        def __init__(self) -> None:
            self.phases: list[str] = []
            self.samples: list[Sample] = []

        def phase(self, name: str) -> None:
            self.phases.append(name)

        def sample(self, sample: Sample, before: Sample | None, latency_ms: dict[str, float]) -> None:
            assert before == (self.samples[-1] if self.samples else None)
            self.samples.append(sample)

    seen = Seen()
    profile = Profile(scenario="fanout", url=mqttc_target.url, window=100, warmup=0.6, duration=1.2)
    result = run("fanout", profile, observer=seen)
    assert seen.phases == ["connect", "subscribe", "warmup", "measure", "drain"] == list(result.phases)
    assert seen.samples == result.samples
    assert [sample.phase for sample in seen.samples].count("measure") >= 2


def test_no_broker_refusal_and_nonsense_are_told(broker_factory: Any) -> None:
    import socket
    import threading

    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        with pytest.raises(ProbeError, match="refused"):
            run("fanout", Profile(url=f"mqtt://127.0.0.1:{silent.getsockname()[1]}"))
        silent.listen()

        def answer() -> None:
            connection, _ = silent.accept()
            with connection:
                connection.recv(100)
                connection.sendall(b"HTTP/1.0 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(ProbeError, match="does not speak MQTT"):
            run("fanout", Profile(url=f"mqtt://127.0.0.1:{silent.getsockname()[1]}"))
        thread.join()
    broker = broker_factory({"auth": {"anonymous": False}})
    with pytest.raises(ProbeError, match="refused the connection: not authorized"):
        run("fanout", Profile(url=broker.urls[0].replace("tcp://", "mqtt://"), version=5))


def test_refused_connections_end_the_run(broker_factory: Any) -> None:
    broker = broker_factory({"limits": {"max_connections": 5}})
    start = time.monotonic()
    with pytest.raises(RunError, match=r"did not come about|closed"):
        run("hold", Profile(scenario="hold", url=broker.urls[0].replace("tcp://", "mqtt://"), connections=20))
    assert time.monotonic() - start < 30


def test_probe_tidies_what_it_is_told(mqttc_target: Target) -> None:
    topic = f"tidy/{secrets.token_hex(4)}"
    with Probe(Profile(url=mqttc_target.url), "bench-look") as probe:
        probe.ask(*(codec.Publish(f"{topic}/{number}", b"x", retain=True) for number in range(1200)))
        probe.forget_retained(f"{topic}/{number}" for number in range(1200))
        probe._send(codec.Subscribe(1, [codec.Subscription(f"{topic}/#")]), codec.Pingreq())
        assert sorted(type(probe._receive()).__name__ for _ in range(2)) == ["Pingresp", "Suback"]
