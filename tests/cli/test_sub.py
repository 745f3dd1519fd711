"""`mqttc sub`: what it prints, what it leaves out, and how it ends."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import pty
import re
import select
import signal
import subprocess
import time
from collections.abc import Callable
from typing import Any

import pytest

from mqttc import SyncClient, codec
from mqttc.client import Properties
from tests.cli.conftest import MOSQUITTO_SUB, TIMEOUT_S, Running, Start, mqttc, needs_mosquitto_clients, ok
from tests.client.conftest import ScriptedServer, read_packet, run

Subscribing = Callable[..., Running]

PROPERTIES = Properties(
    content_type="text/x", response_topic="r/tt", correlation_data=b"cor", message_expiry_interval=6000, payload_format_indicator=1,
    user_properties=[("k", "v"), ("k2", "v2")],
)  # fmt: skip


def mosquitto_sub(url: str, *arguments: str) -> bytes:
    assert MOSQUITTO_SUB is not None
    command = [MOSQUITTO_SUB, "-V", "5", "-p", url.rpartition(":")[2], *arguments]
    return subprocess.run(command, stdout=subprocess.PIPE, timeout=TIMEOUT_S, check=True, env={**os.environ, "TZ": "UTC"}).stdout


FORMATS = [
    "%t", "%p", "%q", "%r", "%l", "%m", "%C", "%D", "%F", "%P", "%R", "%x", "%X", "%%", "@@", "plain",
    "[%10t|%-10t|%.2t|%10.2t|%010t|%.0t|%.t]", "[%12C|%-12C|%012C|%.3C]", "[%.1R]", "[%05l|%5l|%-5l|%3.1l]", "[%05m|%5m|%-5m]",
    "[%03F|%3F|%-3F]", "%3q%03r%3P%3D", "\\\\\\0\\a\\e\\n\\r\\t\\v", "%t\\t%p\\n@Y",
    "@Y-@m-@d @j", "%S|%05S", "zoë %t",
]  # fmt: skip


@pytest.mark.parametrize("text", FORMATS)
@pytest.mark.parametrize("message", ["full", "bare"])
@needs_mosquitto_clients
def test_formats_as_mosquitto_sub_prints_them(text: str, message: str, url: str) -> None:
    with SyncClient(url) as client:
        if message == "full":
            client.publish("full", b"full \xc3\xa9", 1, True, properties=PROPERTIES)
        else:
            client.publish("bare", b"x", 0, True)
        arguments = ("-t", message, "-q", "1", "-C", "1", "-D", "subscribe", "subscription-identifier", "7", "-F", text)
        ours = ok(mqttc("sub", "-L", url, *arguments))
        assert ours == mosquitto_sub(url, *arguments)


def test_widths_are_least_widths(url: str) -> None:
    """mosquitto_sub's manual; its version 2.0 cuts payloads to the width, and pads no absent response topic."""
    with SyncClient(url) as client:
        client.publish("a", b"ab\xff", retain=True)
    shown = ok(mqttc("sub", "-L", url, "-t", "a", "-C", "1", "-F", "[%5p|%-5p|%1p|%8x|%-8X|%08x|%2x|%3R]"))
    assert shown == b"[  ab\xff|ab\xff  |ab\xff|  6162ff|6162FF  |006162ff|6162ff|   ]\n"


def test_formats_of_the_time(url: str) -> None:
    with SyncClient(url) as client:
        client.publish("a", b"x", retain=True)
    before = time.time_ns()
    line = ok(mqttc("sub", "-L", url, "-t", "a", "-C", "1", "-F", "%U|%I|@N|@Y|%30I|%.4I")).decode().rstrip("\n")
    unix, iso, nanoseconds, year, wide, cut = line.split("|")
    seconds, rest = unix.split(".")
    assert before <= int(seconds) * 10**9 + int(rest) <= time.time_ns()
    assert iso == time.strftime("%Y-%m-%dT%H:%M:%S+0000", time.gmtime(int(seconds)))
    assert nanoseconds == rest and len(rest) == 9
    assert (year, wide, cut) == (iso[:4], iso.rjust(30), iso[:4])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("\\q", "\\q is no escape"),
        ("%", "letter is missing"),
        ("a\\", "is no escape"),
        ("@", "strftime"),
        ("%z", "%z is unknown"),
        ("%5", "missing"),
        ("%.", "missing"),
        ("%-", "missing"),
    ],
)
def test_bad_formats(text: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    from mqttc.cli.main import main

    assert main(["sub", "-t", "a", "-F", text]) == 2
    assert said in capsys.readouterr().err


@needs_mosquitto_clients
def test_json_as_mosquitto_sub_prints_it(url: str) -> None:
    with SyncClient(url) as client:
        client.publish("a", 'q"\\\n\t\x01 zoë', 1, True, properties=PROPERTIES)
        arguments = ("-t", "a", "-q", "1", "-C", "1", "-F", "%j", "-D", "subscribe", "subscription-identifier", "7")
        ours, theirs = json.loads(ok(mqttc("sub", "-L", url, *arguments))), json.loads(mosquitto_sub(url, *arguments))
        for found in (ours, theirs):
            assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z?\+0000$", found.pop("tst"))
            assert 5990 <= found["properties"].pop("message-expiry-interval") <= 6000
        assert ours == theirs
        assert list(ours) == list(theirs)


def test_json(url: str) -> None:
    with SyncClient(url) as client:
        client.publish("a", b"\xff\x00", 1, True, properties=Properties(user_properties=[("k", "1"), ("l", "2"), ("k", "3")]))
        found = json.loads(ok(mqttc("sub", "-L", url, "-t", "a", "-C", "1", "--json")))
        assert base64.b64decode(found["payload_base64"]) == b"\xff\x00" and "payload" not in found and "mid" not in found
        assert found["properties"] == {"user-properties": {"k": ["1", "3"], "l": "2"}}
        client.publish("b", '{"n": 1.50, "big": 123456789012345678901234567890,\n "e": [], "s": "a\\u0041 ,:[]{}"}', retain=True)
        line = ok(mqttc("sub", "-L", url, "-t", "b", "-C", "1", "-F", "%J"))
        wanted = b'"payload":{"n":1.50,"big":123456789012345678901234567890,"e":[],"s":"a\\u0041 ,:[]{}"}}\n'
        assert line.endswith(wanted) and json.loads(line)["payload"]["e"] == []
        pretty = ok(mqttc("sub", "-L", url, "-t", "b", "-C", "1", "-F", "%J", "--pretty")).decode()
        assert '\n  "topic": "b",\n' in pretty and '\n    "e": [],\n' in pretty and json.loads(pretty)["payload"]["n"] == 1.5
        for bad in (b"nope", b"\xff", b"NaN", b"[" * 100000):
            client.publish("c", bad, retain=True)
            done = mqttc("sub", "-L", url, "-t", "c", "-C", "1", "-F", "%J")
            assert (done.returncode, done.stdout) == (0, b"") and b"topic c is not valid JSON" in done.stderr


@needs_mosquitto_clients
def test_plain_verbose_and_without_line_feed(url: str) -> None:
    with SyncClient(url) as client:
        for payload in (b"text", b"", bytes(range(256))):
            client.publish("a", payload or b"x", retain=True)
            for arguments in ((), ("-v",), ("-N",), ("-v", "-N"), ("-vN",)):
                both = ("-t", "a", "-C", "1", *arguments)
                if arguments != ("-vN",):
                    assert ok(mqttc("sub", "-L", url, *both)) == mosquitto_sub(url, *both)
                else:
                    assert ok(mqttc("sub", "-L", url, *both)) == b"a " + (payload or b"x")


def test_an_empty_payload_with_verbose(subscribing: Subscribing, url: str) -> None:
    running = subscribing("-t", "a", "-v", "-C", "1")
    with SyncClient(url) as client:
        client.publish("a")
    assert running.rest() == (0, b"a (null)\n")  # mosquitto_sub's words


def test_several_filters_and_filter_out(subscribing: Subscribing, url: str) -> None:
    running = subscribing("-t", "a/#", "-t", "b", "-T", "a/x/#", "-T", "a/+/no", "-v", "-C", "3")
    with SyncClient(url) as client:
        for topic in ("a/1", "a/x/2", "a/y/no", "c", "b", "a/y/yes"):
            client.publish(topic, "m")
    assert running.rest() == (0, b"a/1 m\nb m\na/y/yes m\n")


def test_filter_of_the_url(url: str) -> None:
    with SyncClient(url) as client:
        client.publish("in/the/url", "m", retain=True)
    assert ok(mqttc("sub", "-L", url + "/in/#", "-C", "1", "-v")) == b"in/the/url m\n"


def test_retained(url: str) -> None:
    with SyncClient(url) as client:
        for topic in ("r/1", "r/2", "r/3"):
            client.publish(topic, "old", retain=True, qos=1)
        only = ("sub", "-L", url, "-t", "r/#", "--retained-only", "-v")
        assert sorted(ok(mqttc(*only, "-C", "3")).split(b"\n")) == [b"", b"r/1 old", b"r/2 old", b"r/3 old"]
        assert mqttc("sub", "-L", url, "-t", "r/#", "-R", "-W", "0.5").stdout == b""
        assert mqttc("sub", "-L", url, "-t", "r/#", "--retain-handling", "never", "-W", "0.5").stdout == b""
        assert len(ok(mqttc(*only, "-T", "r/2", "--remove-retained", "-C", "2")).splitlines()) == 2
        assert ok(mqttc(*only, "-C", "1")) == b"r/2 old\n"


def test_retained_only_ends_with_the_first_that_is_not(subscribing: Subscribing, url: str) -> None:
    running = subscribing("-t", "r", "--retained-only")
    with SyncClient(url) as client:
        client.publish("r", "new")
    assert running.rest() == (0, b"")


@pytest.mark.parametrize(("option", "flag"), [([], b"0"), (["--retain-as-published"], b"1")])
def test_retain_as_published(option: list[str], flag: bytes, subscribing: Subscribing, url: str) -> None:
    running = subscribing("-t", "r", "-F", "%r", "-C", "1", *option)
    with SyncClient(url) as client:
        client.publish("r", "new", retain=True)
    assert running.rest() == (0, flag + b"\n")


def test_shared_subscription(subscribing: Subscribing, url: str) -> None:
    both = [subscribing("-t", "s/#", "--share", "g", "-q", "1"), subscribing("-t", "$share/g/s/#", "-q", "1")]
    alone = subscribing("-t", "s/1", "-C", "20", "-q", "1")
    with SyncClient(url) as client:
        for number in range(20):
            client.publish("s/1", str(number), 1)
    assert alone.rest()[0] == 0
    found = b""
    pipes = [running.process.stdout for running in both if running.process.stdout is not None]
    while found.count(b"\n") < 20:
        ready, _, _ = select.select(pipes, [], [], TIMEOUT_S)
        assert ready, found
        found += b"".join(os.read(pipe.fileno(), 65536) for pipe in ready)
    assert [running.end() for running in both] == [0, 0]
    assert sorted(map(int, found.split())) == list(range(20))


def test_subscription_identifier(url: str) -> None:
    with SyncClient(url) as client:
        client.publish("a", "m", retain=True)
    assert ok(mqttc("sub", "-L", url, "-t", "a", "--subscription-identifier", "77", "-F", "%S", "-C", "1")) == b"77\n"


def test_no_local(url: str) -> None:
    """What the same client id publishes does not come back to its session."""
    keep = ("sub", "-L", url, "-i", "me", "-c", "-x", "60", "-q", "1", "-E")
    ok(mqttc(*keep, "-t", "a", "--no-local"))
    ok(mqttc("pub", "-L", url, "-i", "me", "-c", "-x", "60", "-t", "a", "-m", "own", "-q", "1"))
    ok(mqttc("pub", "-L", url, "-t", "a", "-m", "other", "-q", "1"))
    assert ok(mqttc("sub", "-L", url, "-i", "me", "-c", "-t", "b", "-C", "1")) == b"other\n"


def test_persistent_session_and_unsubscribe(url: str) -> None:
    me = ("sub", "-L", url, "-i", "me", "-c", "-q", "1")
    ok(mqttc(*me, "-t", "a", "-t", "b", "-E"))
    with SyncClient(url) as client:
        for number in range(3):
            client.publish("a", str(number), 1)
        assert ok(mqttc(*me, "-t", "a", "-C", "1")) == b"0\n"
        assert ok(mqttc(*me, "-t", "a", "-C", "2")) == b"1\n2\n"  # those that were not printed are still there
        ok(mqttc(*me, "-U", "a", "-E"))
        client.publish("a", "not", 1)
        client.publish("b", "this", 1)
        assert ok(mqttc(*me, "-t", "b", "-C", "1")) == b"this\n"


def test_time_limit(url: str) -> None:
    done = mqttc("sub", "-L", url, "-t", "a", "-W", "0.3")
    assert (done.returncode, done.stderr) == (27, b"mqttc sub: timed out after 0.3 s\n")
    assert (
        MOSQUITTO_SUB is None
        or subprocess.run([MOSQUITTO_SUB, "-p", url.rpartition(":")[2], "-t", "a", "-W", "1"], check=False).returncode == 27
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_it_in_order(number: int, subscribing: Subscribing, url: str) -> None:
    running = subscribing("-t", "a", "--will-topic", "w", "-v")
    with SyncClient(url) as client:
        client.subscribe("w")
        client.publish("a", "m")
        assert running.process.stdout is not None and running.process.stdout.readline() == b"a m\n"
        assert running.end(number) == 0
        client.publish("w", "mine")
        assert client.get(timeout_s=TIMEOUT_S).text == "mine"  # and no will before it


def test_a_reader_that_leaves_ends_it_quietly(subscribing: Subscribing, url: str) -> None:
    running = subscribing("-t", "a")
    assert running.process.stdout is not None
    with SyncClient(url) as client:
        client.publish("a", "m")
        assert running.process.stdout.readline() == b"m\n"
        running.process.stdout.close()
        client.publish("a", "m")
    running.process.stdout = None
    assert running.process.wait(TIMEOUT_S) == 0
    assert running.process.stderr is not None and running.process.stderr.read() == b""


def test_a_reader_that_pauses_does_not_hold_up_the_connection(start: Start) -> None:
    """Its pipe is full, and the connection is kept alive."""
    size = 40 * 65536

    async def flooding(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, pinged: asyncio.Event) -> None:
        await read_packet(reader)
        writer.write(b"\x20\x03\0\0\0")
        subscribe = await read_packet(reader)
        writer.write(b"\x90\x04" + subscribe[2:4] + b"\0\0")
        for _ in range(40):
            writer.write(codec.encode(codec.Publish("a", b"x" * 65536), version=5))
        for _ in range(2):
            while (await read_packet(reader))[0] != 0xC0:
                pass
            writer.write(b"\xd0\0")
        pinged.set()
        await reader.read()

    async def pausing() -> None:
        pinged = asyncio.Event()
        async with ScriptedServer(lambda reader, writer: flooding(reader, writer, pinged)) as server:
            running = start("sub", "-L", server.url, "-t", "a", "-k", "1", "-N")
            await pinged.wait()
            assert running.process.stdout is not None
            pipe = running.process.stdout.fileno()
            read = 0
            while read < size:
                read += len(await asyncio.to_thread(os.read, pipe, 1 << 20))
            assert await asyncio.to_thread(running.end) == 0
            assert (read, running.lines) == (size, [])

    run(pausing())


def test_refused_filters() -> None:
    """By a scripted broker: one of two is told of, all end the command with the reason code."""
    for codes, code in ((b"\x00\x87", 0), (b"\x97\x87", 0x97)):

        async def refusing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, codes: bytes = codes) -> None:
            await read_packet(reader)
            writer.write(b"\x20\x03\0\0\0")
            subscribe = await read_packet(reader)
            writer.write(b"\x90\x05" + subscribe[2:4] + b"\0" + codes)
            await reader.read()

        async def subscribing_both(code: int = code) -> None:
            async with ScriptedServer(refusing) as server:
                done = await asyncio.to_thread(mqttc, "sub", "-L", server.url, "-t", "a", "-t", "b", "-E")
                assert done.returncode == code
                assert (b"refused to subscribe b: not authorized (0x87)" in done.stderr) == (code == 0)
                assert (b"quota exceeded (0x97)" in done.stderr) == (code != 0)

        run(subscribing_both())


def test_random_filter(subscribing: Subscribing, url: str) -> None:
    running = subscribing("-t", "a", "--random-filter", "0", "-W", "1")
    with SyncClient(url) as client:
        client.publish("a", "m")
    assert running.rest() == (27, b"")


class Terminal:
    """A pseudo terminal, and what was written to it."""

    def __init__(self) -> None:
        self.master, self.slave = pty.openpty()
        self.data = b""

    def until(self, text: bytes) -> bytes:
        while text not in self.data:
            assert select.select([self.master], [], [], TIMEOUT_S)[0], self.data
            self.data += os.read(self.master, 65536)
        return self.data

    def close(self) -> None:
        os.close(self.master)
        os.close(self.slave)


@pytest.fixture
def terminal() -> Any:
    made = Terminal()
    yield made
    made.close()


BINARY = b"\x1b]0;title\x07\x9b\xff\xc2\x9b" + "\u202e".encode() + b"end"


@pytest.mark.parametrize("how", [(), ("-v",), ("-F", "%t %p"), ("-j",), ("-F", "%p %C")])
def test_binary_does_not_drive_the_terminal(how: tuple[str, ...], terminal: Terminal, subscribing: Subscribing, url: str) -> None:
    running = subscribing("-t", "a/#", "--color", "never", "-C", "1", *how, stdout=terminal.slave)
    with SyncClient(url) as client:
        client.publish("a/\u202e", BINARY, properties=Properties(content_type="\u202eend"))
    seen = terminal.until(b"\n")
    assert running.rest()[0] == 0
    assert b"\x1b" not in seen and "\u202e".encode() not in seen and b"\x9b" not in seen and b"\x07" not in seen
    assert b"end" in seen or "-j" in how


def test_raw_and_pipes_get_the_bytes(terminal: Terminal, subscribing: Subscribing, url: str) -> None:
    raw, piped = subscribing("-t", "a", "--raw", "-C", "1", stdout=terminal.slave), subscribing("-t", "a", "-C", "1")
    with SyncClient(url) as client:
        client.publish("a", BINARY)
    assert BINARY in terminal.until(b"end")
    assert raw.rest()[0] == 0
    assert piped.rest() == (0, BINARY + b"\n")


@pytest.mark.parametrize(
    ("options", "variables", "coloured"),
    [
        ((), {"TERM": "xterm"}, True),
        ((), {"TERM": "xterm", "NO_COLOR": "1"}, False),
        ((), {"TERM": "dumb"}, False),
        (("--color", "never"), {"TERM": "xterm"}, False),
        (("--color", "always"), {"TERM": "xterm", "NO_COLOR": "1"}, True),
    ],
)
def test_colours(options: Any, variables: dict[str, str], coloured: bool, terminal: Terminal, subscribing: Subscribing, url: str) -> None:
    running = subscribing("-t", "a", "-v", "-C", "1", *options, stdout=terminal.slave, variables=variables)
    with SyncClient(url) as client:
        client.publish("a", "m")
    wanted = b"\x1b[1;36ma\x1b[0m m" if coloured else b"a m"
    assert terminal.until(b"\n").startswith(wanted)
    assert running.rest()[0] == 0


def test_no_colour_in_a_pipe(subscribing: Subscribing, url: str) -> None:
    running = subscribing("-t", "a", "-v", "-C", "1", variables={"TERM": "xterm"})
    with SyncClient(url) as client:
        client.publish("a", "m")
    assert running.rest() == (0, b"a m\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "no topic filter"),
        (["-t", "a/#/b"], "a/#/b"),
        (["-t", "a", "-T", "b#"], "b#"),
        (["-t", "a", "-R", "--retained-only"], "leave nothing"),
        (["-t", "a", "-j", "-F", "%p"], "without --format"),
        (["-t", "a", "-C", "0"], "'0' is not a number above 0"),
        (["-t", "a", "-W", "soon"], "'soon' is not a number of seconds"),
        (["-t", "a", "--retain-handling", "sometimes"], "invalid choice"),
        (["-t", "a", "--random-filter", "101"], "from 0 to 100"),
    ],
)
def test_wrong_usage(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    from mqttc.cli.main import main

    assert main(["sub", *arguments]) == 2
    assert said in capsys.readouterr().err
