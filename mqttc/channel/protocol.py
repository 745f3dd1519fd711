"""What both ends of the control socket know: one JSON object a line, each request answered by one line, in order."""

from __future__ import annotations

import json
from typing import Any, Final, Literal, get_args

VERSION: Final = 1
"""Of requests and answers; a broker refuses others by the error ``version``."""
MAXIMUM_REQUEST_BYTES: Final = 512 * 1024
"""A line, which has room for the longest client id and topic with every character escaped."""
MAXIMUM_ANSWER_BYTES: Final = 16 * 1024 * 1024
"""A line."""

ErrorName = Literal["syntax", "version", "verb", "arguments", "too_large", "busy", "not_permitted", "timeout", "stopped", "failed"]
ERRORS: Final[tuple[str, ...]] = get_args(ErrorName)


class ControlError(Exception):
    """A request was refused. ``name``: which of `ERRORS`."""

    def __init__(self, name: str, detail: str) -> None:
        super().__init__(f"{detail} ({name})")
        self.name = name
        self.detail = detail


def request_line(verb: str, arguments: dict[str, Any]) -> bytes:
    """Without a newline in it but the last."""
    return _line({"version": VERSION, "verb": verb, "arguments": arguments})


def result_line(result: Any) -> bytes:
    """An answer. ``ControlError``: it is too large."""
    line = _line({"version": VERSION, "result": result})
    if len(line) > MAXIMUM_ANSWER_BYTES:
        raise ControlError("too_large", f"the answer has more than {MAXIMUM_ANSWER_BYTES} bytes")
    return line


def error_line(name: ErrorName, detail: str) -> bytes:
    return _line({"version": VERSION, "error": name, "detail": detail})


def parse_request(line: bytes) -> tuple[str, dict[str, Any]]:
    """Verb and arguments; raises ``ControlError``."""
    try:
        request = json.loads(line)
    except (ValueError, RecursionError):
        request = None
    if not isinstance(request, dict):
        raise ControlError("syntax", "a request is a JSON object on one line")
    if request.get("version") != VERSION:
        raise ControlError("version", f"this broker speaks version {VERSION}")
    verb, arguments = request.get("verb"), request.get("arguments", {})
    if not isinstance(verb, str) or not isinstance(arguments, dict) or request.keys() - {"version", "verb", "arguments"}:
        raise ControlError("syntax", 'a request has "version", "verb" and, an object, "arguments"')
    return verb, arguments


def parse_answer(line: bytes) -> Any:
    """The result; raises ``ControlError``, and ``ValueError`` for what is no answer."""
    answer = json.loads(line)
    if not isinstance(answer, dict) or answer.get("version") != VERSION:
        raise ValueError(f"not an answer of version {VERSION}")
    if "error" in answer:
        raise ControlError(str(answer["error"]), str(answer.get("detail", "")))
    return answer.get("result")


def _line(value: dict[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode("ascii") + b"\n"
