"""The asking side of the control socket, blocking, for the command line."""

from __future__ import annotations

import socket
from types import TracebackType
from typing import Any, Final, Self

from mqttc.channel.protocol import MAXIMUM_ANSWER_BYTES, parse_answer, request_line

TIMEOUT_S: Final = 30.0
_READ_BYTES: Final = 65536


class ControlClient:
    """A connection to the broker that listens at a path. Raises ``OSError`` where nobody does."""

    def __init__(self, path: str, timeout_s: float = TIMEOUT_S) -> None:
        """``timeout_s``: for each wait of its own."""
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._rest = b""
        try:
            self._sock.settimeout(timeout_s)
            self._sock.connect(path)
        except BaseException:
            self._sock.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._sock.close()

    def ask(self, verb: str, **arguments: Any) -> Any:
        """The result. Raises ``ControlError`` where the broker refuses, ``OSError`` where it is gone or says what is no answer."""
        try:
            self._sock.sendall(request_line(verb, arguments))
        except BrokenPipeError:
            pass  # it has said why, and closed
        try:
            return parse_answer(self._read())
        except ValueError as error:
            raise OSError(f"the broker's answer cannot be read: {error}") from error

    def _read(self) -> bytes:
        parts = [self._rest]
        size = len(self._rest)
        while b"\n" not in parts[-1]:
            data = self._sock.recv(_READ_BYTES)
            if not data:
                raise ConnectionResetError("the broker has closed the connection")
            parts.append(data)
            size += len(data)
            if size > MAXIMUM_ANSWER_BYTES + _READ_BYTES:
                raise OSError("the broker's answer is too long")
        line, _, self._rest = b"".join(parts).partition(b"\n")
        return line
