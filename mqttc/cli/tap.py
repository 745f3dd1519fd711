"""``mqttc tap``: a live look at what passes, laid out for people. It is a client like any other, and sees what the broker gives to one."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import time
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from mqttc.cli.arguments import EXIT_OK, Parser, UsageError, color_option, count, seconds
from mqttc.cli.connection import connected, connection_options, make_client
from mqttc.cli.pretty import LIBRARIES, Layout
from mqttc.cli.properties import CONNECT, DISCONNECT, SUBSCRIBE, UNSUBSCRIBE, WILL, collect, property_options
from mqttc.cli.reading import Sieve, filter_options, filters_of, limit_options, random_option, read, subscribe
from mqttc.cli.terminal import Output, Paint, complain, printable, wants_color

if TYPE_CHECKING:
    import asyncio

    from mqttc.client import Client, Message

MAX_TOPICS: Final = 100_000
"""That are counted one by one; messages of further ones count in the sums."""
BUSIEST: Final = 3
"""Topics that a line of rates names."""
LIMITS: Final = (
    "It sees what the broker gives to a subscriber with its rights: no message that it may not read, none that the broker stores or drops "
    "undelivered, not who published it, with which QoS it was published (only the lower of that and -q), nor what other clients get, "
    "acknowledge or subscribe. Topics that begin with $ are seen with --sys, or by their own filter."
)


def parser() -> Parser:
    made = Parser("mqttc tap", "Shows messages as they pass: time, topic, QoS, size, payload. Without -t, all topics.", LIMITS)
    filter_options(made, "topic filter (#); may be repeated")
    made.add_argument("--sys", action="store_true", help="$SYS/# too")
    random_option(made)
    limit_options(made)
    look = made.add_argument_group("output")
    look.add_argument("--compact", action="store_true", help="JSON on one line")
    look.add_argument("--max-bytes", type=count, default=4096, metavar="N", help="of a payload that are shown (4096)")
    look.add_argument("--no-payload", action="store_true", help="only the line about the message")
    look.add_argument("--properties", dest="show_properties", action="store_true", help="all properties of MQTT 5.0, a line each")
    look.add_argument("--decode", choices=tuple(LIBRARIES), help="read every payload as this, not only where its content type says so")
    look.add_argument("--date", action="store_true", help="the date with the time")
    look.add_argument("--rates", type=seconds, metavar="SECONDS", help="every so often a line with messages and bytes a second")
    color_option(look)
    property_options(made, CONNECT, SUBSCRIBE, UNSUBSCRIBE, WILL, DISCONNECT)
    connection_options(made)
    return made


def run(options: argparse.Namespace) -> int:
    """Raises ``UsageError``."""
    topic_filters = filters_of(options, ["#"])
    if options.sys:
        topic_filters.append("$SYS/#")
    if options.decode and importlib.util.find_spec(LIBRARIES[options.decode]) is None:
        raise UsageError(f"--decode {options.decode} needs the Python package {LIBRARIES[options.decode]}")
    found = collect(options)
    client = make_client(options, found, None, manual_ack=True)
    from mqttc.cli import life

    return life.run(options, _tap(options, client, topic_filters, found), interrupted=EXIT_OK, timeout_s=options.timeout)


async def _tap(options: argparse.Namespace, client: Client, topic_filters: list[str], found: dict[str, dict[str, Any]]) -> int:
    import asyncio

    output = Output()
    view = View(options, Paint(wants_color(options.color)))
    rates = Rates(time.monotonic())
    writing = asyncio.Lock()
    try:
        async with connected(client, found, drain=False) as client:
            await subscribe(options, client, topic_filters, found)
            rates = Rates(time.monotonic())
            reporter = asyncio.ensure_future(_report(options.rates, rates, output, writing)) if options.rates else None
            try:
                async for messages in read(client, Sieve(options), _Locked(output, writing), view.render):
                    for message in messages:
                        rates.add(message.topic, len(message.payload))
            finally:
                if reporter is not None:
                    reporter.cancel()
                    with contextlib.suppress(asyncio.CancelledError):
                        await reporter
    finally:
        if not options.quiet and client.stats.connections:
            complain(options.program, rates.summary(time.monotonic()))
    return EXIT_OK


class _Locked(Output):
    """A line of rates does not come within a message."""

    def __init__(self, output: Output, lock: asyncio.Lock) -> None:
        self._output = output
        self._lock = lock
        self.is_terminal = output.is_terminal

    async def write(self, data: bytes) -> None:
        async with self._lock:
            await self._output.write(data)


async def _report(every_s: float, rates: Rates, output: Output, lock: asyncio.Lock) -> None:
    import asyncio

    with contextlib.suppress(OSError):  # the writer of messages meets it too, and ends the command
        while True:
            await asyncio.sleep(every_s)
            text = printable(rates.line(time.monotonic()))
            async with lock:
                await output.write(f"-- {text}\n".encode())


class View:
    """A message as lines."""

    def __init__(self, options: argparse.Namespace, paint: Paint) -> None:
        self._paint = paint
        self._date: bool = options.date
        self._payload: bool = not options.no_payload
        self._properties: bool = options.show_properties
        self._layout = Layout(paint, most_bytes=options.max_bytes, compact=options.compact, decode=options.decode)

    def render(self, message: Message, when_ns: int) -> bytes:
        local = time.localtime(when_ns // 1_000_000_000)
        clock = time.strftime("%Y-%m-%d %H:%M:%S" if self._date else "%H:%M:%S", local) + f".{when_ns // 1_000_000 % 1000:03d}"
        marks = [f"q{int(message.qos)}"]
        if message.retain:
            marks.append(self._paint("mark", "retained"))
        if message.dup:
            marks.append("dup")
        content_type = message.properties.content_type
        if content_type:
            marks.append(printable(content_type))
        size = self._paint("faint", sized(len(message.payload)))
        head = f"{self._paint('faint', clock)} {self._paint('topic', printable(message.topic))} {' '.join(marks)} {size}"
        lines = [head]
        if self._properties:
            lines += [f"  {self._paint('key', name)}: {value}" for name, value in property_lines(message)]
        if self._payload:
            body = self._layout.lines(message)
            if len(body) == 1 and len(lines) == 1:
                lines = [f"{head}  {body[0]}"]
            else:
                lines += [f"  {line}" for line in body]
        return ("\n".join(lines) + "\n").encode("utf-8", "surrogateescape")


def property_lines(message: Message) -> list[tuple[str, str]]:
    """Names as the standard has them, with `-` for blanks."""
    found: list[tuple[str, str]] = []
    for field, value in message.properties.as_dict().items():
        if field == "user_properties":
            found += [("user-property", printable(f"{name}={text}")) for name, text in value]
        elif field == "subscription_identifiers":
            found += [("subscription-identifier", str(one)) for one in value]
        elif isinstance(value, bytes):
            found.append((field.replace("_", "-"), printable(value.decode("utf-8", "backslashreplace"))))
        elif field != "topic_alias":
            found.append((field.replace("_", "-"), printable(str(int(value) if isinstance(value, int) else value))))
    return found


def sized(size: float) -> str:
    """`17 B`, `1.5 kB`: powers of ten."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5 or unit == "GB":
            break
        size /= 1000
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"


class Rates:
    """Messages and bytes, since the beginning and since the last line. `now`: seconds of one clock."""

    def __init__(self, now: float) -> None:
        self._began = self._last = now
        self._messages = self._bytes = 0
        self._seen_messages = self._seen_bytes = 0
        self._topics: Counter[str] = Counter()
        self._recent: Counter[str] = Counter()

    def add(self, topic: str, size: int) -> None:
        self._messages += 1
        self._bytes += size
        for counted in (self._topics, self._recent):
            if topic in counted or len(counted) < MAX_TOPICS:
                counted[topic] += 1

    def line(self, now: float) -> str:
        """Of the time since the last one."""
        span = max(now - self._last, 1e-9)
        messages, size = self._messages - self._seen_messages, self._bytes - self._seen_bytes
        busiest = ", ".join(f"{topic} {number / span:.1f}/s" for topic, number in self._recent.most_common(BUSIEST))
        text = f"{messages / span:.1f} messages/s, {sized(size / span)}/s" + (f"; {busiest}" if busiest else "")
        self._last, self._seen_messages, self._seen_bytes = now, self._messages, self._bytes
        self._recent.clear()
        return text

    def summary(self, now: float) -> str:
        span = max(now - self._began, 1e-9)
        more = " or more" if len(self._topics) >= MAX_TOPICS else ""
        return (
            f"{self._messages} messages of {len(self._topics)}{more} topics, {sized(self._bytes)} in {span:.1f} s"
            f" ({self._messages / span:.1f} messages/s, {sized(self._bytes / span)}/s)"
        )
