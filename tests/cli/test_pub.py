"""`mqttc pub`: where the message comes from, what goes with it, and how it ends."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mqttc import SyncClient
from mqttc.cli.payload import lines
from mqttc.cli.sender import Sender
from mqttc.client import Message, PublishResult
from mqttc.codec import ReasonCode
from tests.cli.conftest import MOSQUITTO_PUB, TIMEOUT_S, Start, environment, mqttc, needs_mosquitto_clients, ok
from tests.client.conftest import (
    KEY,
    SCHEMES,
    SOURCE,
    Curious,
    Mosquitto,
    ScriptedServer,
    client_url,
    listeners,
    needs_psk,
    only_linux,
    read_packet,
    run,
    settled,
    without_certificate,
    without_psk,
)  # fmt: skip
from tests.conftest import BrokerFactory


def got(client: SyncClient, count: int) -> list[Message]:
    return [client.get(timeout_s=TIMEOUT_S) for _ in range(count)]


def payloads(client: SyncClient, count: int) -> list[bytes]:
    return [message.payload for message in got(client, count)]


@pytest.mark.parametrize("text", ["hello", "-5", "--topic", "=x", "", "zoë"])
@pytest.mark.parametrize("name", ["-m", "--message"])
def test_message_by_option(name: str, text: str, url: str, client: SyncClient) -> None:
    ok(mqttc("pub", "-L", url, "-t", "a", name, text))
    assert payloads(client, 1) == [text.encode()]


def test_message_from_a_file(url: str, client: SyncClient, tmp_path: Path) -> None:
    data = bytes(range(256)) * 400
    (tmp_path / "data").write_bytes(data)
    ok(mqttc("pub", "-L", url, "-t", "a", "-f", str(tmp_path / "data"), "-q", "1"))
    assert payloads(client, 1) == [data]
    done = mqttc("pub", "-L", url, "-t", "a", "-f", str(tmp_path / "none"))
    assert done.returncode == 2 and b"none: No such file" in done.stderr


def test_standard_input_whole_and_nothing(url: str, client: SyncClient) -> None:
    ok(mqttc("pub", "-L", url, "-t", "a", "-s", data=b"one\ntwo\n"))
    ok(mqttc("pub", "-L", url, "-t", "a", "-n"))
    assert payloads(client, 2) == [b"one\ntwo\n", b""]


@pytest.mark.parametrize("qos", ["0", "1", "2"])
@needs_mosquitto_clients
def test_lines_as_mosquitto_pub_sends_them(qos: str, url: str, client: SyncClient) -> None:
    data = b"one\n\ntwo\r\n last"
    ok(mqttc("pub", "-L", url, "-t", "a", "-l", "-q", qos, data=data))
    ours = payloads(client, 4)
    assert MOSQUITTO_PUB is not None
    port = url.rpartition(":")[2]
    subprocess.run([MOSQUITTO_PUB, "-p", port, "-t", "a", "-l", "-q", qos], input=data, check=True, timeout=TIMEOUT_S)
    assert ours == payloads(client, 4) == [b"one", b"", b"two\r", b" last"]


@pytest.mark.parametrize("qos", ["0", "1", "2"])
def test_many_lines_keep_their_order(qos: str, url: str, client: SyncClient, tmp_path: Path) -> None:
    (tmp_path / "lines").write_text("".join(f"{number}\n" for number in range(3000)))
    with (tmp_path / "lines").open("rb") as opened:  # a file cannot be waited for
        done = subprocess.run(
            [sys.executable, "-m", "mqttc.cli", "pub", "-L", url, "-t", "a", "-l", "-q", qos, "-M", "100"],
            stdin=opened,
            timeout=TIMEOUT_S,
            check=False,
            env=environment(),
        )
    assert done.returncode == 0
    assert payloads(client, 3000) == [b"%d" % number for number in range(3000)]


def test_lines_arrive_as_they_are_written(url: str, client: SyncClient, start: Start) -> None:
    running = start("pub", "-L", url, "-t", "a", "-l", "-q", "1")
    assert running.process.stdin is not None
    for text in (b"one", b"two"):
        running.process.stdin.write(text + b"\n")
        running.process.stdin.flush()
        assert payloads(client, 1) == [text]
    assert running.end(signal.SIGTERM) == 130


def test_lines_are_read_only_when_they_are_asked_for() -> None:
    async def reading() -> None:
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        written = 0
        try:
            source = lines(reader)
            os.write(writer, b"a\nb\n")
            assert [await anext(source), await anext(source)] == [b"a", b"b"]
            with pytest.raises(BlockingIOError):
                while True:
                    written += os.write(writer, b"x" * 65535 + b"\n")
        finally:
            os.close(writer)
        assert len(await anext(source)) == 65535
        await source.aclose()  # type: ignore[attr-defined]
        os.close(reader)

    run(reading())


class SlowClient:
    """Acknowledges when it is told to."""

    def __init__(self) -> None:
        self.waiting: list[asyncio.Future[PublishResult]] = []
        self.payloads: list[bytes] = []

    async def publish(self, topic: str, payload: bytes, *rest: Any, **more: Any) -> PublishResult:
        self.payloads.append(payload)
        self.waiting.append(asyncio.get_running_loop().create_future())
        return await self.waiting[-1]


def test_the_window_holds_the_sender_back() -> None:
    async def sending() -> None:
        client = SlowClient()
        sender = Sender(client, "a", 1, False, None, 2)  # type: ignore[arg-type]
        for payload in (b"1", b"2"):
            await sender.send(payload)
        third = asyncio.ensure_future(sender.send(b"3"))
        await settled(lambda: len(client.waiting) == 2)
        await asyncio.sleep(0)
        assert not third.done()
        client.waiting[1].set_result(PublishResult(ReasonCode.NO_MATCHING_SUBSCRIBERS))
        await third
        await settled(lambda: len(client.waiting) == 3)
        big = asyncio.ensure_future(sender.send(b"x" * 17_000_000))  # more than the bound: it waits until it is alone
        client.waiting[0].set_result(PublishResult())
        for _ in range(3):
            await asyncio.sleep(0)
        assert not big.done()
        client.waiting[2].set_result(PublishResult())
        await big
        await settled(lambda: len(client.waiting) == 4)
        client.waiting[3].set_exception(ConnectionError("gone"))
        with pytest.raises(ConnectionError):
            await sender.finish()
        assert (sender.sent, sender.unmatched) == (3, 1)

    run(sending())


def test_repeat(url: str, client: SyncClient) -> None:
    ok(mqttc("pub", "-L", url, "-t", "a", "-m", "x", "--repeat", "3", "--repeat-delay", "0.01", "-q", "2"))
    assert payloads(client, 3) == [b"x"] * 3


def test_qos_and_retain(url: str, client: SyncClient) -> None:
    for qos in (0, 1, 2):
        ok(mqttc("pub", "-L", url, "-t", "a", "-m", "x", "-q", str(qos), "-r"))
    assert [message.qos for message in got(client, 3)] == [0, 1, 2]
    with SyncClient(url) as late:
        late.subscribe("a")
        assert late.get(timeout_s=TIMEOUT_S).retain


PROPERTIES = {
    "content_type": "text/plain", "response_topic": "r/t", "correlation_data": b"\xc3\xa9", "message_expiry_interval": 60,
    "payload_format_indicator": 1, "user_properties": (("a", "b=c"), ("a", "d")),
}  # fmt: skip


def test_properties_by_options(url: str, client: SyncClient) -> None:
    ok(
        mqttc(
            *("pub", "-L", url, "-t", "a", "-m", "x", "--content-type", "text/plain", "-e", "r/t", "--correlation-data", "é"),
            *("--message-expiry", "60", "--payload-format", "text", "--user-property", "a=b=c", "--user-property", "a=d"),
        )
    )
    found = got(client, 1)[0].properties.as_dict()
    found.pop("topic_alias", None)  # the broker's own, towards the reader
    assert found == PROPERTIES


@needs_mosquitto_clients
def test_properties_by_d_as_mosquitto_pub_has_them(url: str, client: SyncClient) -> None:
    arguments = ["-t", "a", "-m", "x"]
    for name, *values in (
        ("content-type", "text/plain"), ("response-topic", "r/t"), ("correlation-data", "é"), ("message-expiry-interval", "60"),
        ("payload-format-indicator", "1"), ("user-property", "a", "b=c"), ("user-property", "a", "d"), ("topic-alias", "4"),
    ):  # fmt: skip
        arguments += ["-D", "publish", name, *values]
    ok(mqttc("pub", "-L", url, *arguments))
    assert MOSQUITTO_PUB is not None
    subprocess.run([MOSQUITTO_PUB, "-V", "5", "-p", url.rpartition(":")[2], *arguments], check=True, timeout=TIMEOUT_S)
    ours, theirs = (message.properties.as_dict() for message in got(client, 2))
    for found in (ours, theirs):
        found.pop("topic_alias", None)  # the broker's own, towards the reader
    assert ours == theirs == PROPERTIES


@pytest.mark.parametrize(("version", "told"), [("mqttv5", 5), ("3.1.1", 4), ("mqttv31", 3)])
def test_versions(version: str, told: int, url: str, start: Start) -> None:
    seen: list[bytes] = []

    async def accepting(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await read_packet(reader))
        writer.write(b"\x20\x03\0\0\0" if told == 5 else b"\x20\x02\0\0")
        await reader.read()

    async def publishing() -> None:
        async with ScriptedServer(accepting) as server:
            done = await asyncio.to_thread(mqttc, "pub", "-L", server.url, "-t", "a", "-m", "x", "-V", version, "-i", "me")
            ok(done)

    run(publishing())
    assert seen[0][8 if told != 3 else 10] == told


def test_a_broker_that_has_no_5_gets_3_1_1() -> None:
    async def old(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        packet = await read_packet(reader)
        writer.write(b"\x20\x02\0\x01" if packet[8] == 5 else b"\x20\x02\0\0")
        await reader.read()

    async def publishing() -> None:
        async with ScriptedServer(old) as server:
            ok(await asyncio.to_thread(mqttc, "pub", "-L", server.url, "-t", "a", "-m", "x"))
            done = await asyncio.to_thread(mqttc, "pub", "-L", server.url, "-t", "a", "-m", "x", "--content-type", "t")
            assert done.returncode == 1 and b"mqttc pub: mqtt://" in done.stderr  # what only 5.0 has is not left out

    run(publishing())


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_road(scheme: str, broker_factory: BrokerFactory, pki: Path, tmp_path: Path) -> None:
    broker = broker_factory({"listeners": listeners(pki, tmp_path, "mqtt", *({scheme} - {"mqtt"}))})
    with SyncClient(client_url(broker)) as client:
        client.subscribe("#", qos=1)
        tls = ("--cafile", str(pki / "ca.pem")) if scheme in ("mqtts", "wss", "quic") else ()
        ok(mqttc("pub", "-L", client_url(broker, scheme), "-t", "a", "-m", scheme, "-q", "1", *tls))
        assert payloads(client, 1) == [scheme.encode()]
        port = client_url(broker, scheme).rpartition(":")[2]
        if scheme == "mqtts":
            ok(mqttc("pub", "-h", "localhost", "-p", port, "-t", "a", "-m", "host", "-q", "1", *tls))
            ok(mqttc("pub", "-h", "127.0.0.1", "-p", port, "--tls", "--insecure", "-t", "a", "-m", "any", "-q", "1"))
            ok(mqttc("pub", "-h", "127.0.0.1", "-p", port, *tls, "--tls-server-name", "localhost", "-t", "a", "-m", "sni", "-q", "1"))
            assert payloads(client, 3) == [b"host", b"any", b"sni"]
            done = mqttc("pub", "-h", "localhost", "-p", port, "--tls", "-t", "a", "-m", "x")
            assert done.returncode == 1 and b"TLS handshake failed" in done.stderr
        if scheme == "mqtt":
            ok(mqttc("pub", "-h", "127.0.0.1", "-p", port, "-t", "a", "-m", "host", "-q", "1"))
            ok(mqttc("pub", "-L", client_url(broker) + "/in/url", "-m", "topic", "-q", "1"))
            assert [(message.topic, message.payload) for message in got(client, 2)] == [("a", b"host"), ("in/url", b"topic")]
        if scheme == "unix":
            ok(mqttc("pub", "--unix", str(tmp_path / "socket"), "-t", "a", "-m", "path", "-q", "1"))
            assert payloads(client, 1) == [b"path"]


@only_linux
@pytest.mark.parametrize("option", ["-A", "--bind"])
def test_the_address_that_it_comes_from(option: str, broker_factory: BrokerFactory) -> None:
    curious = Curious()
    url = client_url(broker_factory(authenticator=curious))
    ok(mqttc("pub", "-L", url, "-u", "u", "-t", "a", "-m", "x", "-q", "1", option, SOURCE))
    assert curious.hosts == [SOURCE]
    done = mqttc("pub", "-L", url, "-u", "u", "-t", "a", "-m", "x", option, "192.0.2.1")
    assert done.returncode == 1 and b"bind_address 192.0.2.1: " in done.stderr


@needs_psk
def test_a_pre_shared_key(broker_factory: BrokerFactory, tmp_path: Path) -> None:
    curious = Curious()
    broker = broker_factory({"listeners": [without_certificate("mqtts", tmp_path)], "auth": {"anonymous": True}}, authenticator=curious)
    port = client_url(broker, "mqtts").rpartition(":")[2]
    place = ("pub", "-h", "localhost", "-p", port, "-t", "a", "-m", "x", "-q", "1", "--psk-identity", "sensor-1")
    (tmp_path / "key").write_text(KEY.hex() + "\nnot this\n")
    ok(mqttc(*place, "--psk", KEY.hex()))
    ok(mqttc(*place, "--psk-file", str(tmp_path / "key")))
    assert [request.identity.key_name for request in curious.requests if request.identity is not None] == ["sensor-1"] * 2
    assert mqttc(*place, "--psk", KEY[::-1].hex()).returncode == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--psk", "0g", "--psk-identity", "a"), b"--psk: not hexadecimal digits"),
        (("--psk", "00"), b"neither is of use without the other"),
        (("--psk-identity", "a"), b"neither is of use without the other"),
        (("--psk", "00", "--psk-file", "f", "--psk-identity", "a"), b"--psk and --psk-file"),
        (("--psk-file", "/no/such", "--psk-identity", "a"), b"--psk-file /no/such: "),
        (("--unix", "s", "-A", "127.0.0.1"), b"a Unix socket has none"),
        pytest.param(("--psk", "00", "--psk-identity", "a"), b"need Python 3.13 or later", marks=without_psk),
    ],
)
def test_keys_and_addresses_that_are_none(arguments: tuple[str, ...], said: bytes) -> None:
    done = mqttc("pub", "-t", "a", "-m", "x", *arguments)
    assert done.returncode == 2 and said in done.stderr and b"0g" not in done.stderr


def test_client_certificate(broker_factory: BrokerFactory, pki: Path, tmp_path: Path) -> None:
    given = listeners(pki, tmp_path, "mqtts")
    given[0] |= {"client_ca": str(pki / "ca.pem"), "client_certificate": "required"}
    broker = broker_factory({"listeners": given})
    own = ("--cert", str(pki / "device.pem"), "--key", str(pki / "device.key"))
    arguments = ("pub", "-L", client_url(broker, "mqtts"), "--cafile", str(pki / "ca.pem"), "-t", "a", "-m", "x", "-q", "1")
    assert mqttc(*arguments).returncode == 1
    ok(mqttc(*arguments, *own))


def test_passwords(guarded: str, tmp_path: Path) -> None:
    def connect(password: bytes | None, *arguments: str, **variables: str) -> None:
        seen: list[bytes] = []

        async def accepting(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            seen.append(await read_packet(reader))
            writer.write(b"\x20\x03\0\0\0")
            await reader.read()

        async def publishing() -> None:
            async with ScriptedServer(accepting) as server:
                place = server.url.removeprefix("mqtt://")
                told = [argument.replace("PLACE", place) for argument in arguments]
                ok(await asyncio.to_thread(lambda: mqttc("pub", "-t", "a", "-m", "x", *told, **variables)))

        run(publishing())
        wanted = b"" if password is None else len(password).to_bytes(2, "big") + password
        assert seen[0].endswith(b"\0\5alice" + wanted)

    file = tmp_path / "password"
    file.write_text("from file\nnot this\n")
    connect(b"pw", "-L", "mqtt://alice:pw@PLACE", MQTTC_USERNAME="bob", MQTTC_PASSWORD="env")
    connect(None, "-L", "mqtt://alice@PLACE", MQTTC_PASSWORD="env")
    connect(b"pw", "-L", "mqtt://PLACE", "-u", "alice", "-P", "pw")
    connect(b"from file", "-L", "mqtt://alice@PLACE", "--password-file", str(file), MQTTC_PASSWORD="env")
    connect(b"env", "-L", "mqtt://PLACE", MQTTC_USERNAME="alice", MQTTC_PASSWORD="env")
    done = mqttc("pub", "-L", guarded, "-t", "a", "-m", "x", "--password-file", str(tmp_path / "none"))
    assert done.returncode == 2 and b"none: No such file" in done.stderr


def test_a_refused_connection_gives_the_reason_code(guarded: str) -> None:
    done = mqttc("pub", "-L", guarded, "-t", "a", "-m", "x", "-u", "mallory", "-P", "x")
    assert done.returncode == 0x87 and b"not authorized (0x87)" in done.stderr
    ok(mqttc("pub", "-L", guarded, "-t", "a", "-m", "x", "-u", "alice", "-P", "x"))
    done = mqttc("pub", "-L", guarded, "-t", "a", "-m", "x", "--quiet")
    assert done.returncode >= 0x80 and done.stderr == b""


def test_a_refused_message_gives_the_reason_code(tmp_path: Path, pki: Path) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    (tmp_path / "acl").write_text("topic readwrite open/#\n")
    tmp_path.chmod(0o755)
    broker = Mosquitto(folder, pki, f"acl_file {tmp_path / 'acl'}")
    if not MOSQUITTO_PUB:
        pytest.skip("mosquitto is not installed")
    broker.start()
    try:
        ok(mqttc("pub", "-L", broker.url("mqtt"), "-t", "open/a", "-m", "x", "-q", "2"))
        for qos in ("1", "2"):
            done = mqttc("pub", "-L", broker.url("mqtt"), "-t", "closed", "-m", "x", "-q", qos)
            assert done.returncode == 0x87 and b"not authorized (0x87)" in done.stderr, done
    finally:
        broker.stop()


def test_nobody_there() -> None:
    done = mqttc("pub", "-h", "127.0.0.1", "-p", "1", "-t", "a", "-m", "x")
    assert (done.returncode, done.stderr) == (1, b"mqttc pub: mqtt://127.0.0.1:1: Connection refused\n")


def test_timeout_and_lost_connection() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_packet(reader)
        writer.write(b"\x20\x03\0\0\0")
        await reader.read()

    accepted: list[bytes] = []

    async def rude(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Ends the first connection at its second packet, and all others at once."""
        accepted.append(await read_packet(reader))
        if len(accepted) == 1:
            writer.write(b"\x20\x03\0\0\0")
            await read_packet(reader)

    async def publishing() -> None:
        arguments = ("-t", "a", "-m", "x", "-q", "1")
        async with ScriptedServer(silent) as server:
            done = await asyncio.to_thread(mqttc, "pub", "-L", server.url, *arguments, "-W", "0.5")
            assert (done.returncode, done.stderr) == (27, b"mqttc pub: timed out after 0.5 s\n")
        async with ScriptedServer(rude) as server:
            done = await asyncio.to_thread(mqttc, "pub", "-L", server.url, *arguments)
            assert done.returncode == 1 and done.stderr, done
            assert server.connections == 1
        accepted.clear()
        async with ScriptedServer(rude) as server:
            done = await asyncio.to_thread(mqttc, "pub", "-L", server.url, *arguments, "--reconnect-attempts", "1")
            assert done.returncode == 1 and b"connecting again" in done.stderr
            assert server.connections == 2

    run(publishing())


def test_will(url: str, client: SyncClient, start: Start) -> None:
    running = start(
        *("pub", "-L", url, "-t", "a", "-l", "-q", "1", "--will-topic", "w", "--will-payload", "gone", "--will-qos", "1", "--will-retain"),
        *("-D", "will", "content-type", "text/plain"),
    )
    assert running.process.stdin is not None
    running.process.stdin.write(b"x\n")
    running.process.stdin.flush()
    assert got(client, 1)[0].topic == "a"
    running.kill()
    will = got(client, 1)[0]
    assert (will.topic, will.payload, will.qos, will.properties.content_type) == ("w", b"gone", 1, "text/plain")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-m", "x"], "no topic"),
        (["-t", "a"], "no message"),
        (["-t", "a/#", "-m", "x"], "-t a/#"),
        (["-t", "a", "-m", "x", "-n"], "one message at a time"),
        (["-t", "a", "-l", "--repeat", "2"], "--repeat"),
        (["-t", "a", "-m", "x", "-q", "3"], "invalid choice"),
        (["-t", "a", "-m", "x", "-D", "publish", "content-typ", "x"], "did you mean content-type?"),
        (["-t", "a", "-m", "x", "-D", "publsh", "content-type", "x"], "did you mean publish?"),
        (["-t", "a", "-m", "x", "-D", "publish", "message-expiry-interval", "soon"], "'soon' is not a number"),
        (["-t", "a", "-m", "x", "-D", "publish", "user-property", "x"], "NAME and VALUE expected"),
        (["-t", "a", "-m", "x", "-D", "publish"], "-D publish"),
        (["-t", "a", "-m", "x", "-V", "311", "--content-type", "t"], "properties are of MQTT 5.0"),
        (["-t", "a", "-m", "x", "--user-property", "x"], "NAME=VALUE"),
        (["-t", "a", "-m", "x", "-c"], "client id"),
        (["-t", "a", "-m", "x", "-i", "a", "-I", "b"], "-i and -I"),
        (["-t", "a", "-m", "x", "--will-payload", "b"], "--will-topic"),
        (["-t", "a", "-m", "x", "-L", "mqt://h"], "not the scheme"),
        (["-t", "a", "-m", "x", "-L", "mqtt://h", "-h", "h"], "both say where"),
        (["-t", "a", "-m", "x", "-L", "mqtt://h", "-p", "1"], "the port of a URL"),
        (["-t", "a", "-m", "x", "--key", "k"], "--cert"),
        (["-t", "a", "-m", "x", "--header", "x"], "NAME: VALUE"),
        (["-t", "a", "-m", "x", "--retian"], "did you mean --retain?"),
        (["-t", "a", "-m", "x", "-h"], "-h is the host"),
        (["-t", "a", "-m", "x", "extra"], "unknown argument extra"),
    ],
)
def test_wrong_usage(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    from mqttc.cli.main import main

    assert main(["pub", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("mqttc pub: ") and said in error and "--help" in error
