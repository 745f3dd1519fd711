"""How `mqttc sub` and `mqttc request` print a message: its payload, with its topic, as JSON, or by a format string."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from mqttc.cli.arguments import Parser, UsageError, color_option
from mqttc.cli.format import Format, NotJson
from mqttc.cli.terminal import Output, Paint, complain, harmless, printable, wants_color

if TYPE_CHECKING:
    from mqttc.client import Message


def printing_options(parser: Parser) -> None:
    group = parser.add_argument_group("output")
    group.add_argument("-v", "--verbose", action="store_true", help="print topic and payload")
    group.add_argument(
        "-F", "--format", metavar="FORMAT", help="%%t topic, %%p payload, %%q QoS, %%r retained, %%l length, ...: see docs/cli.md"
    )
    group.add_argument("-j", "--json", action="store_true", help="print each message as a JSON object on one line (-F %%j)")
    group.add_argument("--pretty", action="store_true", help="lay out JSON of -j, %%j and %%J over several lines")
    group.add_argument("-N", "--no-newline", action="store_true", help="no line feed behind a message")
    group.add_argument("--raw", action="store_true", help="let control characters through to a terminal too")
    color_option(group)


class Printer:
    """Raises ``UsageError`` for a format that is none."""

    def __init__(self, options: argparse.Namespace, output: Output) -> None:
        if options.json and options.format is not None:
            raise UsageError("--json is a format: without --format")
        self._program: str = options.program
        self._quiet: bool = options.quiet
        self._verbose: bool = options.verbose
        self._end = b"" if options.no_newline else b"\n"
        self._safe = output.is_terminal and not options.raw
        self._paint = Paint(wants_color(options.color))
        text = "%j" if options.json else options.format
        self._format = None if text is None else Format(text, safe=self._safe, pretty=options.pretty, paint=self._paint)

    def render(self, message: Message, when_ns: int) -> bytes | None:
        """None, and a line on standard error, where the format wants JSON and the payload is none."""
        if self._format is not None:
            try:
                return self._format.render(message, when_ns) + self._end
            except NotJson:
                if not self._quiet:
                    complain(self._program, f"the message on topic {message.topic} is not valid JSON")
                return None
        payload = harmless(message.payload, "\n\t").encode() if self._safe else message.payload
        if self._verbose:
            topic = printable(message.topic) if self._safe else message.topic
            return self._paint("topic", topic).encode() + b" " + (payload or b"(null)") + self._end
        return payload + self._end
