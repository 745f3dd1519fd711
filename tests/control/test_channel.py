"""The control socket: what it answers, to whom, its file, and its bounds."""

from __future__ import annotations

import errno
import json
import os
import select
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

import mqttc.listen
from mqttc.channel import protocol
from mqttc.channel.client import ControlClient
from mqttc.channel.protocol import ControlError
from mqttc.config import Config, ConfigError
from mqttc.listen import ListenError
from mqttc.server import Broker
from tests.conftest import BrokerFactory, tcp_address
from tests.rawclient import DISCONNECT, MESSAGE_EXPIRY, Peer

TIMEOUT_S = 20.0
NOBODY = 65_534


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "c.sock")


@pytest.fixture
def serving(broker_factory: BrokerFactory, path: str) -> Callable[..., Broker]:
    """`serving(max_connections=…)`: a broker whose control socket is at `path`."""

    def make(config: dict[str, Any] | None = None, **control: Any) -> Broker:
        return broker_factory({**(config or {}), "control": {"socket": path, **control}})

    return make


class Raw:
    """A connection that says anything."""

    def __init__(self, path: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(TIMEOUT_S)
        self.socket.connect(path)
        self.file = self.socket.makefile("rb")

    def say(self, data: bytes) -> None:
        with suppress(BrokenPipeError):
            self.socket.sendall(data)

    def line(self) -> Any:
        data = self.file.readline()
        return json.loads(data) if data else None

    def ended(self) -> bool:
        try:
            return self.file.read(1) == b""
        except ConnectionResetError:
            return True

    def close(self) -> None:
        self.file.close()
        self.socket.close()


@pytest.fixture
def raw(path: str) -> Iterator[Callable[[], Raw]]:
    made: list[Raw] = []

    def connect() -> Raw:
        made.append(Raw(path))
        return made[-1]

    yield connect
    for one in made:
        one.close()


def await_stat(broker: Broker, name: str, value: int) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while broker.stats()[name] != value:
        assert time.monotonic() < deadline, f"{name} is {broker.stats()[name]}, not {value}"
        time.sleep(0.005)


# ---------------------------------------------------------------------------------------- what it answers


def test_clients_and_sessions(serving: Callable[..., Broker], path: str) -> None:
    broker = serving()
    with closing(Peer(tcp_address(broker.urls[0]), 5)) as peer, ControlClient(path) as control:
        assert peer.connect("a b", props=[(17, 60)]).reason == 0
        peer.subscribe("t/#", 1)
        page = control.ask("clients", limit=10)
        assert [one["client_id"] for one in page["items"]] == ["a b"] and page["next"] is None
        found = control.ask("client", client_id="a b")
        assert (found["protocol"], found["subscriptions"][0]["topic_filter"]) == (5, "t/#")
        assert control.ask("client", client_id="other") is None
        assert control.ask("disconnect", client_id="other") is False
        assert control.ask("disconnect", client_id="a b", reason_code=0x98) is True
        assert peer.expect(DISCONNECT).reason == 0x98
        assert control.ask("session", client_id="a b")["connected"] is False
        assert [one["connected"] for one in control.ask("sessions")["items"]] == [False]
        assert control.ask("session", client_id="other") is None
        explained = control.ask("explain", action="publish", topic="t/1", client_id="x")
        assert (explained["allowed"], explained["text"], explained["connected"]) == (True, "allowed: there are no rules", False)
        (receiver,) = explained["receivers"]["items"]
        assert (receiver["client_id"], receiver["outcome"], receiver["groups"]) == ("a b", "queued", [])
    assert broker.stats()["control_requests"] == 9


def test_retained_messages(serving: Callable[..., Broker], path: str) -> None:
    """By filter, a page at a time, without their payloads; one of them is cleared."""
    broker = serving()
    topics = [f"r/{number}" for number in range(25)]
    with closing(Peer(tcp_address(broker.urls[0]), 5)) as peer, ControlClient(path) as control:
        assert peer.connect("a").reason == 0
        for topic in topics:
            peer.publish(topic, b"x" * 100, 1, retain=True)
        peer.publish("$x", b"hidden", 1, retain=True)
        peer.publish("s", b"four", 2, retain=True, props=((MESSAGE_EXPIRY, 100),))
        peer.publish("r/5", b"", 1, retain=True)
        found, after, sizes = [], None, []
        while not sizes or after is not None:
            page = control.ask("retained", topic_filter="r/+", limit=10, after=after)
            found += page["items"]
            sizes.append(len(page["items"]))
            after = page["next"]
        assert sizes == [10, 10, 4]
        assert sorted(one["topic"] for one in found) == sorted(set(topics) - {"r/5"})
        assert {(one["qos"], one["payload_bytes"], one["message_expiry"]) for one in found} == {(1, 100, None)}
        (one,) = (one for one in control.ask("retained")["items"] if one["topic"][0] != "r")
        assert 98 <= one.pop("message_expiry") <= 100
        assert one == {"topic": "s", "qos": 2, "payload_bytes": 4}
        assert [one["topic"] for one in control.ask("retained", topic_filter="$x")["items"]] == ["$x"]
        assert control.ask("clear_retained", topic="r/7") is True
        assert control.ask("clear_retained", topic="r/7") is False
        assert control.ask("retained", topic_filter="r/7") == {"items": [], "next": None}
        assert broker.stats()["retained"] == 25


def test_a_page_of_retained_messages_is_bounded(serving: Callable[..., Broker], path: str) -> None:
    """By bytes, too: topics may be long. What messages say is not among these."""
    broker = serving()
    with closing(Peer(tcp_address(broker.urls[0]), 5)) as peer, ControlClient(path) as control:
        assert peer.connect("a").reason == 0
        topics = [f"{number}/" + "t" * 60_000 for number in range(10, 50)]
        for topic in topics:
            peer.publish(topic, b"x" * 100_000, 1, retain=True)
        found, after, pages = [], None, 0
        while pages == 0 or after is not None:
            page = control.ask("retained", limit=1000, after=after)
            found += [one["topic"] for one in page["items"]]
            after = page["next"]
            pages += 1
        assert sorted(found) == topics and 2 <= pages <= 4


@pytest.mark.parametrize(
    ("request_", "name", "detail"),
    [
        (b"hello", "syntax", "JSON object"),
        (b"[1]", "syntax", "JSON object"),
        (b"\xff\xfe", "syntax", "JSON object"),
        (b"[" * 100_000, "syntax", "JSON object"),
        (b'{"version": 2, "verb": "clients"}', "version", "version 1"),
        (b'{"verb": "clients"}', "version", "version 1"),
        (b'{"version": 1}', "syntax", '"verb"'),
        (b'{"version": 1, "verb": "clients", "arguments": []}', "syntax", "arguments"),
        (b'{"version": 1, "verb": "clients", "more": 1}', "syntax", "arguments"),
        (b'{"version": 1, "verb": "stop"}', "verb", "there is no 'stop'; there are explain, clients"),
        (b'{"version": 1, "verb": "client"}', "arguments", "client_id: Field required"),
        (b'{"version": 1, "verb": "client", "arguments": {"client_id": 7}}', "arguments", "client_id"),
        (b'{"version": 1, "verb": "clients", "arguments": {"limit": 1001}}', "arguments", "limit"),
        (b'{"version": 1, "verb": "clients", "arguments": {"after": "x"}}', "arguments", "'x' is not `next`"),
        (b'{"version": 1, "verb": "clients", "arguments": {"x": 1}}', "arguments", "x: "),
        (b'{"version": 1, "verb": "disconnect", "arguments": {"client_id": "a", "reason_code": 0}}', "arguments", "0x80"),
        (b'{"version": 1, "verb": "retained", "arguments": {"topic_filter": "a/#/b"}}', "arguments", "filter"),
        (b'{"version": 1, "verb": "retained", "arguments": {"topic_filter": "$share/g/a"}}', "arguments", "shared"),
        (b'{"version": 1, "verb": "retained", "arguments": {"after": "\\ud800"}}', "arguments", "after"),
        (b'{"version": 1, "verb": "retained", "arguments": {"limit": 0}}', "arguments", "limit"),
        (b'{"version": 1, "verb": "clear_retained", "arguments": {"topic": "a/#"}}', "arguments", "topic"),
        (b'{"version": 1, "verb": "clear_retained"}', "arguments", "topic: Field required"),
        (b'{"version": 1, "verb": "explain", "arguments": {"action": "fly", "topic": "a", "client_id": "a"}}', "arguments", "action"),
        (b'{"version": 1, "verb": "explain", "arguments": {"action": "publish", "topic": "#", "client_id": "a"}}', "arguments", "filter"),
        (b'{"version": 1, "verb": "client", "arguments": {"client_id": "\\ud800"}}', "arguments", "client_id"),
    ],
)
def test_errors_have_names(serving: Callable[..., Broker], raw: Callable[[], Raw], request_: bytes, name: str, detail: str) -> None:
    """And the connection goes on."""
    broker = serving()
    one = raw()
    one.say(request_ + b"\n")
    answer = one.line()
    assert (answer["version"], answer["error"]) == (1, name) and detail in answer["detail"]
    one.say(protocol.request_line("clients", {}))
    assert one.line()["result"]["items"] == []
    assert broker.stats()["control_errors"] == 1


def test_requests_may_come_in_pieces_and_together(serving: Callable[..., Broker], raw: Callable[[], Raw]) -> None:
    serving()
    one = raw()
    request = protocol.request_line("clients", {})
    for byte in request:
        one.say(bytes((byte,)))
    one.say(request * 3)
    assert [one.line()["result"]["next"] for _ in range(4)] == [None] * 4


# ------------------------------------------------------------------------------------------------ its file


def test_its_mode_is_its_users_alone_from_the_first_moment(
    serving: Callable[..., Broker], path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def chmod(name: str, mode: int) -> None:
        seen.append(stat.S_IMODE(os.stat(name).st_mode))
        real(name, mode)

    real = os.chmod
    monkeypatch.setattr(mqttc.listen.os, "chmod", chmod)
    before = os.umask(0)
    try:
        broker = serving()
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    if sys.platform == "linux":
        assert seen == [0o600]
    broker.stop()
    assert not os.path.exists(path)


def test_where_it_is(tmp_path: Path) -> None:
    def path(**config: Any) -> str | None:
        return Config.of({"data_dir": str(tmp_path), **config}).control_path

    kept = {"durability": {"mode": "written"}}
    assert path() is None
    assert path(**kept) == str(tmp_path / "control.sock")
    assert path(**kept, control={"socket": False}) is None
    assert path(control={"socket": "x/y"}) == os.path.abspath("x/y")
    loaded = Config.load(None, {}, [], ["control.socket=/run/x.sock", "control.timeout=2.5"])
    assert (loaded.control_path, loaded.control.timeout) == ("/run/x.sock", 2.5)
    assert Config.load(None, {"MQTTC_CONTROL__SOCKET": "false"}, [], []).control.socket is False
    for wrong in ("", "a\0b", 7):
        with pytest.raises(ConfigError, match="control"):
            path(control={"socket": wrong})


def test_a_left_over_is_replaced_and_nothing_else(serving: Callable[..., Broker], broker_factory: BrokerFactory, path: str) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(path)
    serving()
    with pytest.raises(ListenError, match="another process listens there"):
        broker_factory({"control": {"socket": path}})
    with ControlClient(path) as control:
        assert control.ask("clients")["items"] == []
    Path(path + "2").write_text("mine")
    with pytest.raises(ListenError, match="not a socket"):
        broker_factory({"control": {"socket": path + "2"}})
    assert Path(path + "2").read_text() == "mine"
    for wrong, message in (("/nowhere/x/y", "No such file"), (path + "x" * 110, "107 bytes")):
        with pytest.raises(ListenError, match=message):
            broker_factory({"control": {"socket": wrong}})


def test_a_data_directory_whose_path_is_too_long_for_it(
    broker_factory: BrokerFactory, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is not what the broker is there for, and nobody has asked for it."""
    folder = tmp_path / ("x" * 100)
    broker = broker_factory({"data_dir": str(folder), "durability": {"mode": "written"}})
    assert broker.running and not (folder / "control.sock").exists()
    assert "control_socket_refused" in caplog.text


def test_a_forked_child_keeps_nothing_of_it(serving: Callable[..., Broker], raw: Callable[[], Raw], path: str) -> None:
    broker = serving()
    one = raw()
    one.say(protocol.request_line("clients", {}))
    assert one.line()["result"]["items"] == []
    os.link(path, path + "2")
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(writer)
        os.read(reader, 1)
        os._exit(0)
    try:
        os.close(reader)
        broker.stop()
        assert one.ended()
        with socket.socket(socket.AF_UNIX) as probe:
            assert probe.connect_ex(path + "2") == errno.ECONNREFUSED
    finally:
        os.close(writer)
        os.waitpid(child, 0)


# ---------------------------------------------------------------------------------------------- its bounds


def test_a_line_that_is_too_long(serving: Callable[..., Broker], raw: Callable[[], Raw], path: str) -> None:
    serving()
    one = raw()
    one.say(b"x" * (protocol.MAXIMUM_REQUEST_BYTES + 65_536))
    assert one.line()["error"] == "too_large"
    assert one.ended()
    with ControlClient(path) as control, pytest.raises(ControlError, match="too_large"):
        control.ask("clients", after="x" * (4 * protocol.MAXIMUM_REQUEST_BYTES))


def test_the_longest_request_fits(serving: Callable[..., Broker], path: str) -> None:
    serving()
    with ControlClient(path) as control:
        assert control.ask("client", client_id="\x01" * 65_535) is None
        with pytest.raises(ControlError, match="arguments"):
            control.ask("client", client_id="\x01" * 65_536)


def test_an_answer_that_is_too_long(serving: Callable[..., Broker], path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    serving()
    monkeypatch.setattr(protocol, "MAXIMUM_ANSWER_BYTES", 40)
    with ControlClient(path) as control, pytest.raises(ControlError, match="too_large"):
        control.ask("clients")


def test_who_does_not_finish(serving: Callable[..., Broker], raw: Callable[[], Raw]) -> None:
    broker = serving(timeout=0.1)
    one = raw()
    one.say(b'{"version": 1, ')
    assert one.line()["error"] == "timeout"
    assert one.ended()
    await_stat(broker, "control_connections", 0)


def test_who_does_not_read(serving: Callable[..., Broker], raw: Callable[[], Raw]) -> None:
    """Its connection ends, and others are answered meanwhile."""
    broker = serving(timeout=0.2, max_connections=3)
    one = raw()
    one.socket.setblocking(False)
    sent = protocol.request_line("nothing", {}) * 100
    ended = False
    deadline = time.monotonic() + TIMEOUT_S
    while not ended:
        assert time.monotonic() < deadline
        select.select([], [one.socket], [], 1)
        try:
            one.socket.send(sent)
        except BlockingIOError:
            with ControlClient(one.socket.getpeername()) as control:
                assert control.ask("clients")["items"] == []
        except (BrokenPipeError, ConnectionResetError):
            ended = True
    await_stat(broker, "control_connections", 0)


def test_too_many_connections(serving: Callable[..., Broker], raw: Callable[[], Raw]) -> None:
    broker = serving(max_connections=2)
    request = protocol.request_line("clients", {})
    first, second = raw(), raw()
    for one in (first, second):
        one.say(request)
        assert one.line()["result"]["items"] == []
    third = raw()
    assert third.line()["error"] == "busy" and third.ended()
    assert broker.stats()["control_refused"] == 1
    first.close()
    await_stat(broker, "control_connections", 1)
    fourth = raw()
    fourth.say(request)
    assert fourth.line()["result"]["items"] == []


def test_it_ends_with_the_broker(serving: Callable[..., Broker], raw: Callable[[], Raw], path: str) -> None:
    broker = serving()
    one = raw()
    one.say(protocol.request_line("clients", {}))
    one.line()
    broker.stop()
    assert one.ended()
    assert not os.path.exists(path)
    broker.start()
    with ControlClient(path) as control:
        assert control.ask("clients")["items"] == []


ASK = """
import os, socket, sys
os.setgroups([])
os.setgid(int(sys.argv[2]))
os.setuid(int(sys.argv[2]))
s = socket.socket(socket.AF_UNIX)
try:
    s.connect(sys.argv[1])
    s.settimeout(20)
    sys.stdout.write(s.makefile().readline())
except PermissionError as error:
    print(error)
"""


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root may become another user")
def test_another_user_is_refused(broker_factory: BrokerFactory, caplog: pytest.LogCaptureFixture) -> None:
    """By the file's mode, and where somebody has opened that, by whom the system says that it is."""
    folder = Path(tempfile.mkdtemp())  # pytest's own are closed to other users
    try:
        folder.chmod(0o755)
        path = str(folder / "c")
        broker = broker_factory({"control": {"socket": path}})

        def ask() -> str:
            command = [sys.executable, "-I", "-c", ASK, path, str(NOBODY)]
            return subprocess.run(command, capture_output=True, text=True, check=True, timeout=TIMEOUT_S).stdout

        assert "Permission denied" in ask()
        os.chmod(path, 0o666)
        assert json.loads(ask())["error"] == "not_permitted"
        assert broker.stats()["control_refused"] == 1
        assert "control_peer_refused" in caplog.text
    finally:
        shutil.rmtree(folder)
