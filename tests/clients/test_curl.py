"""curl on the HTTP side of ws and wss listeners: /, /health and /metrics over HTTP/1.1 and HTTP/2."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass

import pytest

from mqttc.server import Broker
from tests.clients.listeners import folder, listeners
from tests.conftest import BrokerFactory

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")

VERSIONS = {
    "http1.1": ("ws", ["--http1.1"], "1.1"),
    "http1.0": ("ws", ["--http1.0"], "1.1"),  # a server answers with its own version: RFC 9110 section 2.5
    "upgrade-to-h2c": ("ws", ["--http2"], "1.1"),  # which RFC 9113 has given up: the request is answered as it is
    "http2": ("ws", ["--http2-prior-knowledge"], "2"),
    "https1.1": ("wss", ["--http1.1"], "1.1"),
    "https2": ("wss", ["--http2"], "2"),
}
each_version = pytest.mark.parametrize("version", VERSIONS)


@pytest.fixture
def broker(broker_factory: BrokerFactory) -> Broker:
    return broker_factory({"listeners": listeners("ws", "wss")})


@dataclass(frozen=True)
class Answer:
    status: int
    version: str
    content_type: str
    body: str


MARK = "\n%{http_code} %{http_version} %{content_type}\n"


def curl(broker: Broker, version: str, *paths: str, options: tuple[str, ...] = ()) -> list[Answer]:
    """What curl got for each path, all in one run, and so over one connection where the server keeps it.

    curl 7.88 cannot use a connection of HTTP/2 twice that it began by prior knowledge (its issue 10634): there it runs once a path.
    """
    if version == "http2" and len(paths) > 1:
        return [answer for path in paths for answer in curl(broker, version, path, options=options)]
    scheme, switches, _ = VERSIONS[version]
    url = next(url for url in broker.urls if url.startswith(f"{scheme}:"))
    base = url.replace("ws", "http", 1).removesuffix("/mqtt")
    command = ["curl", "-sS", "--max-time", "20", "--cacert", str(folder() / "ca.pem"), *switches, *options, "-w", MARK]
    done = subprocess.run([*command, *(base + path for path in paths)], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    answers, body = [], []
    for line in done.stdout.splitlines():
        fields = line.split(" ", 2)
        if len(fields) == 3 and fields[0].isdigit() and fields[1] in ("1.0", "1.1", "2"):
            answers.append(Answer(int(fields[0]), fields[1], fields[2], "\n".join(body)))
            body = []
        else:
            body.append(line)
    assert len(answers) == len(paths)
    return answers


@each_version
def test_pages(broker: Broker, version: str) -> None:
    page, health, metrics, missing = curl(broker, version, "/", "/health", "/metrics", "/missing")
    expected = VERSIONS[version][2]
    assert {answer.version for answer in (page, health, metrics, missing)} == {expected}
    assert page.status == 200 and page.content_type.startswith("text/html") and "mqttc" in page.body
    assert health.status == 200 and json.loads(health.body)["status"]
    assert metrics.status == 200 and "mqttc_" in metrics.body
    assert missing.status == 404


@each_version
def test_one_connection_for_many_requests(broker: Broker, version: str) -> None:
    before = broker.stats()["accepted"]
    assert [answer.status for answer in curl(broker, version, *["/health"] * 20)] == [200] * 20
    connections = broker.stats()["accepted"] - before
    assert connections == (20 if version in ("http1.0", "http2") else 1)


@each_version
def test_other_methods(broker: Broker, version: str) -> None:
    (head,) = curl(broker, version, "/health", options=("--head",))
    assert head.status == 200
    (post,) = curl(broker, version, "/health", options=("--data", "x=1"))
    assert post.status == 405
    (large,) = curl(broker, version, "/missing", options=("--data", "x" * 100_000))
    assert large.status in (404, 413)


@each_version
def test_the_websocket_path_is_no_page(broker: Broker, version: str) -> None:
    (plain,) = curl(broker, version, "/mqtt")
    assert plain.status in (400, 404, 426)


@pytest.mark.parametrize("version", ["https1.1", "https2"])
def test_the_certificate_is_verified(broker: Broker, version: str) -> None:
    url = next(url for url in broker.urls if url.startswith("wss:")).replace("wss", "https", 1).removesuffix("/mqtt")
    command = ["curl", "-sS", "--max-time", "20", *VERSIONS[version][1], f"{url}/health"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 60, done.stderr
