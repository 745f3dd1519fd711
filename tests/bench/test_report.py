"""Profiles, results as files, tables, plots, comparison, and the command line around them."""

from __future__ import annotations

import csv
import functools
import io
import json
import os
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

from mqttc.bench import report
from mqttc.bench.process import Watch
from mqttc.bench.profile import Profile, ProfileError, RunError, Target, load_profile, named_profiles
from mqttc.bench.result import Result, Sample
from mqttc.bench.road import Road
from mqttc.bench.scenarios import Plan, build
from mqttc.cli.bench import main
from tests.bench.conftest import Target as Broker

ROOT = Path(__file__).parents[2]


def result(**values: object) -> Result:
    made = Result("fanout", Profile(url="mqtt://me:secret@127.0.0.1:1").record())
    made.count, made.seconds, made.per_second, made.expected, made.delivered = 1000, 2.0, 500.0, 1000, 1000
    made.latency_ms = {"p50": 0.5, "max": 2000.0}
    made.histogram = {"500000": 600, "510000": 300, "2000000000": 100}
    warm = Sample(0.5, "warmup", 100, 110, 3, 10**8, 10**8, 1 << 20)
    made.samples = [warm, Sample(1.0, "measure", 400, 410, 3, 2 * 10**8, 3 * 10**8, 1 << 21)]
    for name, value in values.items():
        setattr(made, name, value)
    return made


# ---- profiles


def test_every_named_profile_is_valid() -> None:
    for name in named_profiles():
        assert load_profile(name, {}).scenario


def test_own_profiles_win(tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    own.write_text('[fanout]\nscenario = "fanout"\nsubscribers = 7\n[mine]\nscenario = "p2p"\n')
    assert load_profile("fanout", {"qos": 1}, own).subscribers == 7
    assert load_profile("mine", {}, own).scenario == "p2p"
    own.write_text("[fanout")
    with pytest.raises(ProfileError, match=r"own\.toml"):
        load_profile("fanout", {}, own)


@pytest.mark.parametrize(
    "name, values, message",
    [
        ("nowhere", {}, "no profile or scenario 'nowhere'"),
        ("fanout", {"qos": 3}, "qos"),
        ("fanout", {"payload": 20}, "payload"),
        ("fanout", {"colour": 1}, "colour"),
        ("fanout", {"payload": 100, "payload_most": 50}, "payload_most is less than payload"),
        ("latency", {"rate": 0}, "latency needs a rate"),
        ("retain", {"messages": 0}, "needs a number of messages"),
        ("offline", {"qos": 0}, "QoS 1 or 2"),
        ("offline", {"qos": 2, "subscribe_qos": 0}, "QoS 1 or 2"),
        ("wild", {"subscribers": 2}, "as many subscribers as matches"),
        ("shared", {"subscribers": 2}, "at least one subscriber"),
        ("fanout", {"url": "http://u:secret@x"}, r"http://x: not unix:///path or SCHEME://"),
        ("fanout", {"url": "mqtt://"}, "names no host"),
        ("fanout", {"ca_file": "ca.pem"}, "ca_file: mqtt://127.0.0.1:1883 has no TLS"),
        ("fanout", {"insecure": True, "url": "ws://x"}, "insecure: ws://x has no TLS"),
        ("fanout", {"insecure": True, "ca_file": "ca.pem", "url": "wss://x"}, "exclude each other"),
        ("fanout", {"key_file": "k.pem", "url": "mqtts://x"}, "key_file without certificate_file"),
        ("fanout", {"resume": True, "url": "quic://x"}, "resume is not for a relay"),
        ("fanout", {"streams": 2, "url": "wss://x"}, "streams: wss://x has none"),
    ],
)
def test_wrong_profiles(name: str, values: dict[str, object], message: str) -> None:
    with pytest.raises(ProfileError, match=message):
        load_profile(name, values)


def test_credentials_stay_out_of_files() -> None:
    profile = Profile(url="mqtt://me:s%20ecret@host:7", username="you")
    assert profile.credentials() == ("you", b"s ecret")
    text = Result("x", profile.record()).to_json()
    assert "ecret" not in text and "you" not in text
    assert profile.shown_url() == "mqtt://host:7"


@pytest.mark.parametrize(
    "url, target, authority",
    [
        ("unix:///run/broker", Target("/run/broker", 0), None),
        ("unix://@name", Target("@name", 0), None),
        ("mqtt://h", Target("h", 1883), None),
        ("tls://h", Target("h", 8883, tls=True), None),
        ("ws://h/a?b=c", Target("h", 80, "/a?b=c", websocket=True), "h"),
        ("wss://[::1]:8443", Target("::1", 8443, "/mqtt", tls=True, websocket=True), "[::1]:8443"),
        ("wss+h2://h", Target("h", 443, "/mqtt", tls=True, websocket=True, relay="h2"), "h"),
        ("quic://h", Target("h", 14567, tls=True, relay="quic"), None),
    ],
)
def test_urls(url: str, target: Target, authority: str | None) -> None:
    found = Profile(url=url).target()
    assert found == target
    assert authority is None or found.authority == authority


def plan_of(profile: Profile, receive_maximum: int = 65535) -> Plan:
    with Road(profile) as road:
        return build(profile, road, receive_maximum)


def test_plans_fit_their_scenarios() -> None:
    plan = plan_of(Profile(scenario="wild", subscribers=7, filters=100, matches=5, publishers=3))
    assert (plan.clients, plan.subscriptions, set(plan.copies.values())) == (10, 100, {5})
    plan = plan_of(Profile(scenario="retain", messages=10, subscribers=2, repeats=3, clean=False))
    assert (plan.clients, len(plan.retained), plan.copies, len(plan.persistent)) == (7, 10, {0: 6}, 6)
    plan = plan_of(Profile(scenario="p2p", publishers=3, subscribers=3, threads=2))
    assert plan.hears == {0: [1], 2: [3], 4: [5]}
    plan = plan_of(Profile(scenario="fanout", publishers=10, window=1000, qos=1), 20)
    assert plan.window == 200


# ---- results and tables


def test_json_round_trip(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    report.write_json(result(notes=["n"]), file)
    assert Result.load(file) == result(notes=["n"], started=Result.load(file).started)
    data = json.loads(file.read_text())
    for wrong in ({**data, "format": 99}, {**data, "colour": 1}, []):
        file.write_text(json.dumps(wrong))
        with pytest.raises(ProfileError):
            Result.load(file)


def test_problems() -> None:
    assert result().problems == []
    for name in ("lost", "duplicated", "reordered", "foreign", "lost_connections", "errors"):
        assert len(result(**{name: 3}).problems) == 1


@pytest.mark.parametrize("plain", [True, False])
def test_table(plain: bool) -> None:
    out = io.StringIO()
    report.show(result(lost=3, notes=["mind this"], broker_cpu_us=0.5, verified="1 of 3"), plain=plain, stream=out)
    text = out.getvalue()
    for part in ("1 000 in 2 s", "500 µs", "2 s", "0.5 µs", "note: mind this", "FAILED: 3 lost", "1 of 3", "3, 0, 0"):
        assert part in text
    assert ("│" in text) is not plain
    assert "secret" not in text


def test_numbers() -> None:
    assert [report.number(value) for value in (0.01234, 12.345, 999.9, 1234567.8)] == ["0.0123", "12.3", "1 000", "1 234 568"]
    assert [report.milliseconds(value) for value in (0.0151, 1.5, 1500.0)] == ["15 µs", "1.5 ms", "1.5 s"]
    assert [report.size(value) for value in (700, 2048, 3 << 20, 5 << 30)] == ["700 B", "2 KiB", "3 MiB", "5 GiB"]


def test_csv_has_a_row_for_each_sample(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    report.write_csv(result(), file)
    rows = list(csv.DictReader(file.open()))
    assert [row["phase"] for row in rows] == ["warmup", "measure"]
    assert [float(row["received_per_second"]) for row in rows] == [200.0, 600.0]


@pytest.mark.parametrize("unit", ["messages", "connections"])
@pytest.mark.parametrize("name", ["a.png", "a.svg"])
def test_plot(tmp_path: Path, name: str, unit: str) -> None:
    pytest.importorskip("matplotlib")
    file = tmp_path / name
    report.write_plot(result(unit=unit, histogram={} if unit == "connections" else result().histogram), file)
    assert file.stat().st_size > 5000
    with pytest.raises(RunError, match="xyz"):
        report.write_plot(result(), tmp_path / "a.xyz")


def test_progress() -> None:
    out = io.StringIO()
    plain = report.PlainProgress(out)
    plain.phase("measure")
    first, second = result().samples
    plain.sample(second, first, {"p50": 0.25})
    assert "measure, 1.0 s  delivered 600 messages/s" in out.getvalue()
    assert "broker 40% of a processor, 2 MiB" in out.getvalue() and "latency p50 250 µs" in out.getvalue()


def test_rich_progress(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("rich")
    with report.RichProgress() as progress:
        progress.phase("measure")
        progress.sample(result().samples[0], None, {})
    assert isinstance(report.progress(), report.PlainProgress)  # standard error is no terminal here


def test_comparison(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report.write_json(result(broker_cpu_us=2.0), tmp_path / "a.json")
    report.write_json(result(broker_cpu_us=0.5, per_second=1500.0, profile=Profile(qos=1).record()), tmp_path / "b.json")
    assert main(["compare", str(tmp_path / "a.json"), str(tmp_path / "b.json"), "--plain"]) == 0
    lines = {line.split("  ")[0]: line.split() for line in capsys.readouterr().out.splitlines()}
    assert lines["per second"][-4:] == ["1", "500", "3.00", "x"]
    assert lines["broker CPU µs each"][-2:] == ["0.25", "x"]
    assert lines["latency p50, ms"][-2:] == ["1.00", "x"]
    assert any("qos: 0 and 1" in name for name in lines)
    assert main(["compare", str(tmp_path / "a.json"), str(tmp_path / "none.json")]) == 2


# ---- the command


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert listed == list(named_profiles())


def test_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "nowhere"]) == 2
    assert main(["run", "fanout", "--qos", "3"]) == 2
    assert main(["run", "fanout", "--url", "mqtt://127.0.0.1:1", "--quiet"]) == 3
    assert main(["run", "fanout", "--url", "mqtt://no.such.host.invalid", "--quiet"]) == 3
    assert main(["run", "fanout", "--pid", "4194305", "--quiet"]) == 3
    capsys.readouterr()
    for wrong in (["run", "fanout", "--colour", "1"], ["run", "fanout", "--qos", "many"], ["run"], []):
        with pytest.raises(SystemExit) as ended:
            main(wrong)
        assert ended.value.code == 2


def test_every_key_is_an_option(mqttc_target: Broker, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = {
        "publishers": "2", "subscribers": "3", "qos": "2", "subscribe-qos": "1", "payload": "30", "payload-most": "90", "messages": "50",
        "version": "5", "clean": "false", "threads": "2", "verify": "1", "window": "20", "burst": "2", "username": "u", "password": "p",
        "rate": "0", "drain": "2.5", "sources": "3", "connect-batch": "1", "topic-levels": "9",
    }  # fmt: skip
    file = tmp_path / "a.json"
    pairs = [part for key, value in options.items() for part in (f"--{key}", value)]
    assert main(["run", "fanout", "--url", mqttc_target.url, "--json", str(file), "--csv", str(tmp_path / "a.csv"), *pairs]) == 0
    profile = Result.load(file).profile
    assert {key: profile[key.replace("-", "_")] for key in options if key not in ("username", "password")} == {
        "publishers": 2, "subscribers": 3, "qos": 2, "subscribe-qos": 1, "payload": 30, "payload-most": 90, "messages": 50,
        "version": 5, "clean": False, "threads": 2, "verify": 1, "window": 20, "burst": 2, "rate": 0.0, "drain": 2.5, "sources": 3,
        "connect-batch": 1, "topic-levels": 9,
    }  # fmt: skip
    captured = capsys.readouterr()
    assert "300 of 300 deliveries" in captured.out
    assert "delivered" in captured.err  # progress
    assert len(list(csv.DictReader((tmp_path / "a.csv").open()))) >= 1


@pytest.mark.parametrize(
    "package, options, code, text",
    [
        ("psutil", ["--pid", str(os.getpid())], 3, "--pid needs the package psutil: pip install 'mqttc[bench]'"),
        ("matplotlib", ["--plot", "a.png"], 3, "--plot needs the package matplotlib: pip install 'mqttc[bench]'"),
        ("rich", [], 0, "lost, duplicated, reordered"),
    ],
)
def test_without_a_package(
    package: str,
    options: list[str],
    code: int,
    text: str,
    mqttc_target: Broker,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in [package, *(name for name in sys.modules if name.startswith(f"{package}."))]:
        monkeypatch.setitem(sys.modules, name, None)  # type: ignore[arg-type]
    arguments = ["--url", mqttc_target.url, "--messages", "10", "--subscribers", "2", *options]
    assert main(["run", "publish_receive", *arguments]) == code
    captured = capsys.readouterr()
    assert text in captured.out + captured.err


def test_interrupt(mqttc_target: Broker) -> None:
    command = [sys.executable, "-m", "mqttc.cli.bench", "run", "fanout", "--url", mqttc_target.url, "--duration", "60"]
    # A suite that runs in the background of a shell has SIGINT ignored, and so would its children.
    default = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, preexec_fn=default)
    assert process.stderr is not None
    for line in process.stderr:
        if b"warmup" in line:
            break
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode == 130


def test_entry_point_and_extras() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert project["scripts"]["mqttc-bench"] == "mqttc.cli.bench:main"
    assert set(project["optional-dependencies"]["bench"]) <= set(project["optional-dependencies"]["test"])


# ---- watching a process


def test_watch_counts_processor_time_of_threads_and_children() -> None:
    program = """
import os, threading, time
if os.fork() == 0: time.sleep(30)
threading.Thread(target=time.sleep, args=(30,)).start()
print(flush=True)
end = time.process_time() + 0.2
while time.process_time() < end: pass
print(flush=True)
time.sleep(30)
"""
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, process_group=0)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        watch = Watch(process.pid)
        before = watch.usage()
        process.stdout.readline()
        time.sleep(0.05)
        after = watch.usage()
        assert 150e6 < after.cpu_ns - before.cpu_ns < 1e9
        assert after.busiest_ns(before) == pytest.approx(after.cpu_ns - before.cpu_ns, rel=0.1)
        assert len({process_id for process_id, _ in after.threads}) == 2
        assert after.rss_bytes > 5 << 20
        assert "time.process_time()" in watch.command
    finally:
        os.killpg(process.pid, 9)
        process.wait()
    with pytest.raises(RunError, match="has ended"):
        watch.usage()
