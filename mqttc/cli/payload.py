"""What is to be sent: from the command line, a file, or standard input, whole or line by line."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Final

from mqttc.cli.arguments import Parser, UsageError

if TYPE_CHECKING:
    import asyncio

MAX_PAYLOAD_BYTES: Final = 268_435_455
"""More fits in no packet (section 1.5.5)."""
READ_BYTES: Final = 65536


def payload_options(parser: Parser, *, lines: bool) -> None:
    group = parser.add_argument_group("message")
    group.add_argument("-m", "--message", help="the message itself")
    group.add_argument("-f", "--file", metavar="FILE", help="what the file holds is the message")
    group.add_argument("-s", "--stdin-file", "--stdin", action="store_true", help="all of standard input is the message")
    if lines:
        group.add_argument("-l", "--stdin-line", "--lines", action="store_true", help="each line of standard input is a message")
    group.add_argument("-n", "--null-message", action="store_true", help="an empty message; retained, it clears the topic")


def source(options: argparse.Namespace, *, needed: bool) -> str | None:
    """Which of the options was given. Raises ``UsageError`` for several, and for none if one is needed."""
    given = [
        name
        for name in ("message", "file", "stdin_file", "stdin_line", "null_message")
        if getattr(options, name, None) not in (None, False)
    ]
    if len(given) > 1:
        raise UsageError("one message at a time: " + " and ".join(f"--{name.replace('_', '-')}" for name in given))
    if needed and not given:
        raise UsageError("no message: -m MESSAGE, -f FILE, -s, -l or -n")
    return given[0] if given else None


def whole(options: argparse.Namespace) -> bytes:
    """The message, but for `-l`. Raises ``UsageError``."""
    if options.message is not None:
        return str(options.message).encode("utf-8", "surrogateescape")
    if options.file is not None:
        try:
            with open(options.file, "rb") as opened:
                return _bounded(opened.read(MAX_PAYLOAD_BYTES + 1), options.file)
        except OSError as error:
            raise UsageError(f"{options.file}: {error.strerror}") from None
    if options.stdin_file:
        return _bounded(sys.stdin.buffer.read(MAX_PAYLOAD_BYTES + 1), "standard input")
    return b""


def _bounded(data: bytes, what: str) -> bytes:
    if len(data) > MAX_PAYLOAD_BYTES:
        raise UsageError(f"{what}: more than fits in a message, {MAX_PAYLOAD_BYTES} bytes")
    return data


async def lines(file_descriptor: int = 0) -> AsyncIterator[bytes]:
    """Without their line feeds; the last one may have none. Nothing is read before it is asked for. Raises ``UsageError``, ``OSError``."""
    rest = bytearray()
    searched = 0
    while True:
        end = rest.find(b"\n", searched)
        if end >= 0:
            yield bytes(rest[:end])
            del rest[: end + 1]
            searched = 0
            continue
        searched = len(rest)
        if searched > MAX_PAYLOAD_BYTES:
            raise UsageError(f"a line is longer than what fits in a message, {MAX_PAYLOAD_BYTES} bytes")
        data = await _read(file_descriptor)
        if not data:
            if rest:
                yield bytes(rest)
            return
        rest += data


async def _read(file_descriptor: int) -> bytes:
    """What is there; waits for it without holding up the loop."""
    import asyncio

    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    try:
        loop.add_reader(file_descriptor, _tell, ready)
    except PermissionError:
        return os.read(file_descriptor, READ_BYTES)  # a file, which never lets wait
    try:
        await ready
    finally:
        loop.remove_reader(file_descriptor)
    return os.read(file_descriptor, READ_BYTES)


def _tell(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)
