"""The fixtures, in runs of pytest of their own."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytest_plugins = ("pytester",)

INSTALLED = any(point.value == "mqttc.pytest_plugin" for point in importlib.metadata.entry_points(group="pytest11"))
LOAD = () if INSTALLED else ("-p", "mqttc.pytest_plugin")
ASYNCIO = ("-o", "asyncio_default_fixture_loop_scope=function")
NO_ASYNCIO = ("-p", "no:asyncio")


@pytest.fixture(autouse=True)
def path_of_mqttc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)


def passes(pytester: pytest.Pytester, source: str, count: int, *arguments: str) -> pytest.RunResult:
    """Errors and warnings of any kind fail, and so do sockets, threads and coroutines that are left."""
    pytester.makepyfile(source)
    result = pytester.runpytest_subprocess(*LOAD, "-W", "error", "--strict-markers", "-p", "no:cacheprovider", *(arguments or NO_ASYNCIO))
    result.assert_outcomes(passed=count)
    return result


def test_brokers(pytester: pytest.Pytester) -> None:
    passes(
        pytester,
        """
        import pytest
        import mqttc

        used = set()

        @pytest.fixture
        def mqtt_broker_config():
            return {"limits": {"max_packet_size": 1000, "receive_maximum": 7}}

        @pytest.fixture(scope="session")
        def mqtt_session_broker_config():
            return {"workers": 2, "limits": {"receive_maximum": 9}}

        @pytest.mark.parametrize("number", [1, 2])
        def test_each_has_its_own(mqtt_broker, mqtt_client, number):
            assert mqtt_broker not in used
            used.add(mqtt_broker)
            client = mqtt_client()
            assert client.subscribe("state").granted
            with pytest.raises(TimeoutError):
                client.get(0)
            client.publish("state", b"x", qos=1, retain=True)
            assert client.limits.receive_maximum == 7
            assert mqtt_broker.config.worker_count() == 1
            assert mqtt_broker.url == f"mqtt://{mqtt_broker.host}:{mqtt_broker.port}"

        def test_they_have_ended():
            assert len(used) == 2 and not any(broker.running for broker in used)

        @pytest.mark.parametrize("number", [1, 2])
        def test_the_session_has_one(mqtt_session_broker, mqtt_broker, mqtt_client, number):
            with mqtt_client(mqtt_session_broker.url) as client:
                client.publish(f"was/{number}", b"", qos=1, retain=False)
                assert client.limits.receive_maximum == 9
            assert mqtt_session_broker.config.worker_count() == 2
            used.add(mqtt_session_broker)
            assert len(used) == 3

        @pytest.mark.mqtt_broker(limits={"receive_maximum": 5}, listeners=[{"url": "tcp://127.0.0.1:0"}, {"url": "ws://127.0.0.1:0/mqtt"}])
        class TestMarked:
            def test_of_the_class(self, mqtt_broker, mqtt_client):
                assert mqtt_client(mqtt_broker.urls[1]).limits.receive_maximum == 5
                assert mqtt_broker.config.limits.max_packet_size == 1000

            @pytest.mark.mqtt_broker(limits={"receive_maximum": 4}, workers=2)
            def test_of_the_function(self, mqtt_broker, mqtt_client):
                assert mqtt_client().limits.receive_maximum == 4
                assert mqtt_broker.config.worker_count() == 2 and len(mqtt_broker.urls) == 2

        def test_further_ones(mqtt_brokers):
            first, second = mqtt_brokers(), mqtt_brokers(limits={"receive_maximum": 3})
            assert first.port != second.port and second.config.limits.receive_maximum == 3
            used.update([first, second])

        def test_all_have_ended(mqtt_session_broker):
            assert [broker for broker in used if broker.running] == [mqtt_session_broker]
        """,
        9,
    )


def test_clients_are_closed(pytester: pytest.Pytester) -> None:
    passes(
        pytester,
        """
        import threading

        made = []

        def test_it(mqtt_client, mqtt_recorder):
            made.extend([mqtt_client(client_id="a", version=4), mqtt_client(client_id="b")])
            with made[1]:
                made[1].publish("x", b"")
            mqtt_recorder.expect("x")
            mqtt_recorder.expect_disconnected("b", clean=True)

        def test_closed():
            assert [client.closed for client in made] == [True, True]
            assert [thread for thread in threading.enumerate() if "mqttc" in thread.name] == []
        """,
        2,
    )


def test_a_fault_that_holds_does_not_hold_up_the_end(pytester: pytest.Pytester) -> None:
    result = passes(
        pytester,
        """
        def test_it(mqtt_client, mqtt_faults, mqtt_url):
            assert mqtt_url == mqtt_faults.url
            client = mqtt_client(client_id="a", close_timeout_s=100)
            mqtt_faults.stop_reading("client")
            for _ in range(20):
                client.publish("a", b"x" * 1_000_000, qos=1, wait=False)
        """,
        1,
    )
    assert result.duration < 90, "its close_timeout_s"


BODY = """
    async def test_with(mqtt_async_client, mqtt_recorder):
        async with mqtt_async_client(client_id="a") as client:
            await client.publish("a", b"x", qos=1)
            await mqtt_recorder.aio.expect("a", count=1)
            made.append(client)
        await mqtt_recorder.aio.expect_disconnected("a", clean=True)

    async def test_several(mqtt_async_client, mqtt_faults):
        async with mqtt_async_client(client_id="a") as a, mqtt_async_client(client_id="b", version=4) as b:
            messages = await a.subscribe("x")
            await b.publish("x", b"y", qos=1)
            assert (await messages.get()).payload == b"y"
            assert [seen.client_id for seen in mqtt_faults.wait_for("PUBACK")] == ["b"]

    async def test_never_entered(mqtt_async_client):
        mqtt_async_client()

    def test_closed():
        assert [client.closed for client in made] == [True]
"""


def test_pytest_asyncio(pytester: pytest.Pytester) -> None:
    pytest.importorskip("pytest_asyncio")
    source = "    import pytest\n    made = []\n    pytestmark = pytest.mark.asyncio\n" + BODY.replace(
        "def test_closed", "async def test_closed"
    )
    passes(pytester, source, 4, *ASYNCIO)


def test_anyio(pytester: pytest.Pytester) -> None:
    pytest.importorskip("anyio")
    source = """
    import pytest
    made = []

    @pytest.fixture
    def anyio_backend():
        return "asyncio"
    """ + BODY.replace("    async def test_", "    @pytest.mark.anyio\n    async def test_")
    passes(pytester, source, 4)


def test_a_client_that_is_left_open_is_an_error(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import asyncio

        def test_it(mqtt_async_client):
            client = mqtt_async_client(client_id="a")
            asyncio.run(client.connect())
        """
    )
    result = pytester.runpytest_subprocess(*LOAD, *NO_ASYNCIO)
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*<Client 'a'*was not closed: `async with mqtt_async_client() as client` does it*"])


def test_the_clock_is_that_of_the_test(pytester: pytest.Pytester) -> None:
    passes(
        pytester,
        """
        import time
        import pytest
        from mqttc.testing import VirtualClock

        def test_it(mqtt_broker, mqtt_clock, mqtt_client, mqtt_recorder, mqtt_brokers):
            mqtt_clock.advance(86400)
            mqtt_client(client_id="a")
            assert mqtt_recorder.expect_connected("a").time == round(mqtt_clock.time, 3)
            mqtt_brokers()

        def test_real_time(mqtt_broker, mqtt_client, mqtt_recorder):
            mqtt_client(client_id="a")
            assert abs(mqtt_recorder.expect_connected("a").time - time.time()) < 3600

        class TestOwn:
            @pytest.fixture
            def mqtt_clock(self):
                return VirtualClock(1_000_000)

            def test_it(self, mqtt_clock, mqtt_client, mqtt_recorder):
                mqtt_client(client_id="a")
                assert mqtt_recorder.expect_connected("a").time == 1_000_000
        """,
        3,
    )


@pytest.mark.parametrize(
    ("marker", "text"),
    [
        ("limits={'max_packet': 1}", "*max_packet*"),
        ("colour=1", "*colour*"),
        ("{'limits': {}}", "*keyword arguments only*"),
    ],
)
def test_wrong_configuration_is_told(pytester: pytest.Pytester, marker: str, text: str) -> None:
    pytester.makepyfile(f"import pytest\n@pytest.mark.mqtt_broker({marker})\ndef test_it(mqtt_broker): pass\n")
    result = pytester.runpytest_subprocess(*LOAD, *NO_ASYNCIO)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines([text])


def test_an_assertion_that_fails_shows_no_line_of_ours(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_it(mqtt_recorder):\n    mqtt_recorder.expect('a/+', timeout=0.01)\n")
    result = pytester.runpytest_subprocess(*LOAD, *NO_ASYNCIO)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["E * no message within 0.01 s: 'a/+'", "E * Nothing came."])
    assert "_wait(" not in result.stdout.str()


def test_the_marker_and_the_fixtures_are_listed(pytester: pytest.Pytester) -> None:
    result = pytester.runpytest_subprocess(*LOAD, *NO_ASYNCIO, "--markers")
    result.stdout.fnmatch_lines(["@pytest.mark.mqtt_broker(*"])
    result = pytester.runpytest_subprocess(*LOAD, *NO_ASYNCIO, "--fixtures")
    for name in ("async_client", "broker", "brokers", "client", "clock", "faults", "recorder", "session_broker", "url"):
        result.stdout.fnmatch_lines([f"mqtt_{name} *"])


def test_a_run_that_does_not_use_it_pays_nothing() -> None:
    code = (
        "import sys, pytest\nbefore = set(sys.modules)\nimport mqttc.pytest_plugin\n"
        "print(sorted(name for name in set(sys.modules) - before if not name.startswith('_')))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['mqttc', 'mqttc.pytest_plugin']"


def test_the_package_names_it() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    (module,) = project["entry-points"]["pytest11"].values()
    assert importlib.util.find_spec(module) is not None
