"""`mqttc request`: answers are those that bring the correlation data back."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator

import pytest

from mqttc import SyncClient
from mqttc.client import Message, Properties
from tests.cli.conftest import mqttc, ok


@contextlib.contextmanager
def service(url: str, answer: Callable[[SyncClient, Message], None]) -> Iterator[None]:
    """A thread that gives each message on topic `ask` to the function."""
    with SyncClient(url) as client:
        client.subscribe(["ask", "end"], qos=2)

        def work() -> None:
            for message in client:
                if message.topic == "end":
                    return
                answer(client, message)

        thread = threading.Thread(target=work)
        thread.start()
        try:
            yield
        finally:
            client.publish("end", qos=1)
            thread.join()


@pytest.fixture
def twice(url: str) -> Iterator[None]:
    """Answers with the wrong correlation data, and then with the payload, and twice the payload."""

    def answer(client: SyncClient, message: Message) -> None:
        assert message.response_topic is not None
        for payload, correlation in ((b"wrong", b"wrong"), (message.payload, None), (message.payload * 2, None)):
            told = Properties(correlation_data=correlation or message.correlation_data, content_type=message.properties.content_type)
            client.publish(message.response_topic, payload, 1, properties=told)

    with service(url, answer):
        yield


def test_one_answer(twice: None, url: str) -> None:
    assert ok(mqttc("request", "-L", url, "-t", "ask", "-m", "ab")) == b"ab\n"
    assert ok(mqttc("request", "-L", url + "/ask", "-s", data=b"in\0put")) == b"in\0put\n"


def test_several_answers(twice: None, url: str) -> None:
    assert ok(mqttc("request", "-L", url, "-t", "ask", "-m", "ab", "-C", "2")) == b"ab\nabab\n"


def test_all_answers_until_the_time_is_over(twice: None, url: str) -> None:
    assert ok(mqttc("request", "-L", url, "-t", "ask", "-m", "ab", "-C", "0", "-W", "1")) == b"ab\nabab\n"


def test_too_few_answers(twice: None, url: str) -> None:
    done = mqttc("request", "-L", url, "-t", "ask", "-m", "ab", "-C", "3", "-W", "1")
    assert (done.returncode, done.stdout, done.stderr) == (27, b"ab\nabab\n", b"mqttc request: timed out after 1 s\n")


def test_topic_correlation_data_and_properties_of_ones_own(twice: None, url: str) -> None:
    done = mqttc(
        "request",
        "-L",
        url,
        "-t",
        "ask",
        "-m",
        "x",
        "-e",
        "my/answers",
        "--correlation-data",
        "c7",
        "-F",
        "%t %D %C",
        "--content-type",
        "t/x",
    )
    assert ok(done) == b"my/answers c7 t/x\n"
    told = json.loads(ok(mqttc("request", "-L", url, "-t", "ask", "-m", "x", "--json", "-D", "publish", "response-topic", "d/r")))
    assert (told["topic"], told["payload"]) == ("d/r", "x")


def test_before_5_a_topic_has_to_be_agreed_upon(url: str) -> None:
    def answer(client: SyncClient, message: Message) -> None:
        client.publish("answers", message.payload + b"!")

    with service(url, answer):
        assert ok(mqttc("request", "-L", url, "-V", "311", "-t", "ask", "-m", "x", "-e", "answers")) == b"x!\n"
    done = mqttc("request", "-L", url, "-V", "311", "-t", "ask", "-m", "x")
    assert done.returncode == 2 and b"-e TOPIC" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "no topic"),
        (["-t", "a/#"], "a/#"),
        (["-t", "a", "-e", "b/+"], "b/+"),
        (["-t", "a", "-m", "x", "-n"], "one message"),
        (["-t", "a", "-C", "-1"], "'-1'"),
    ],
)
def test_wrong_usage(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    from mqttc.cli.main import main

    assert main(["request", *arguments]) == 2
    assert said in capsys.readouterr().err
