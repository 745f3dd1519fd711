"""What the commands write: to a terminal only what is harmless, in colour only where that is wanted, and never so that the loop waits."""

from __future__ import annotations

import os
import select
import stat
import sys
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import asyncio

PIECE_BYTES: Final = 4096
"""A pipe that is writable takes so many bytes without waiting (PIPE_BUF), and so does a terminal."""
FILE_PIECE_BYTES: Final = 1 << 20

CODES: Final = {"topic": "1;36", "key": "34", "string": "32", "number": "33", "word": "35", "faint": "2", "mark": "1;33"}
"""What is painted how (SGR parameters of ECMA-48)."""


def printable(text: str, keep: str = "") -> str:
    """Messages quote what peers sent or what was configured; a control character in it must not reach the terminal."""
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() or character in keep else ascii(character)[1:-1] for character in text)


def harmless(data: bytes, keep: str = "") -> str:
    """Bytes as text for a terminal: what is not UTF-8, or not printable, as an escape sequence of Python's."""
    return printable(data.decode("utf-8", "backslashreplace"), keep)


def wants_color(choice: str, file_descriptor: int = 1) -> bool:
    """`choice` is auto, always or never. auto: on a terminal, unless NO_COLOR is set (and not empty) or TERM is dumb."""
    if choice != "auto":
        return choice == "always"
    return os.isatty(file_descriptor) and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


class Paint:
    """Colours text, or does not."""

    def __init__(self, on: bool) -> None:
        self.on = on

    def __call__(self, what: str, text: str) -> str:
        return f"\x1b[{CODES[what]}m{text}\x1b[0m" if self.on and text else text


class Output:
    """Standard output, written piece by piece as it takes them: a reader that pauses holds back this writer, not the event loop."""

    def __init__(self, file_descriptor: int = 1) -> None:
        self._file_descriptor = file_descriptor
        self.is_terminal = os.isatty(file_descriptor)
        is_file = stat.S_ISREG(os.fstat(file_descriptor).st_mode)
        self._piece_bytes = FILE_PIECE_BYTES if is_file else PIECE_BYTES
        self._poll = select.poll()
        self._poll.register(file_descriptor, select.POLLOUT)

    async def write(self, data: bytes) -> None:
        """Returns when all is written. Raises ``OSError``, ``BrokenPipeError`` where the reader has gone."""
        rest = memoryview(data)
        while rest:
            if not self._poll.poll(0):
                await self._room()
                continue
            try:
                written = os.write(self._file_descriptor, rest[: self._piece_bytes])
            except BlockingIOError:
                await self._room()
                continue
            rest = rest[written:]

    async def _room(self) -> None:
        import asyncio

        loop = asyncio.get_running_loop()
        ready: asyncio.Future[None] = loop.create_future()
        loop.add_writer(self._file_descriptor, _tell, ready)
        try:
            await ready
        finally:
            loop.remove_writer(self._file_descriptor)


def _tell(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


def complain(program: str, text: str) -> None:
    """A line on standard error."""
    try:
        print(f"{program}: {printable(text)}", file=sys.stderr, flush=True)
    except OSError:
        pass  # nobody reads it: the exit code tells


def leave_standard_output() -> None:
    """The reader of standard output has gone: what the interpreter would still write at its end has no place to go, and is no error."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):
        pass
