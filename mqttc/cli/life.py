"""The life of a command that is connected: signals, the time limit, and errors as exit codes."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
from collections.abc import Coroutine
from typing import Any

from mqttc.cli.arguments import EXIT_FAILURE, EXIT_INTERRUPTED, EXIT_OK, EXIT_TIMEOUT, EXIT_USAGE
from mqttc.cli.terminal import complain, leave_standard_output, printable
from mqttc.codec import CodecError
from mqttc.errors import DisconnectedError, MqttError, NotSupportedError, PublishError, RefusedError, SubscribeError


def run(
    options: argparse.Namespace, work: Coroutine[Any, Any, int], *, interrupted: int = EXIT_INTERRUPTED, timeout_s: float | None = None
) -> int:
    """The exit code. The first SIGINT or SIGTERM ends the work in order and gives `interrupted`, a second one ends at once."""
    _log(options)
    return asyncio.run(_main(options, work, interrupted, timeout_s))


async def _main(options: argparse.Namespace, work: Coroutine[Any, Any, int], interrupted: int, timeout_s: float | None) -> int:
    loop = asyncio.get_running_loop()
    task = loop.create_task(_limited(work, timeout_s))
    came: list[int] = []

    def end(number: int) -> None:
        if came:
            os._exit(128 + number)
        came.append(number)
        task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, end, number)
    try:
        return await task
    except asyncio.CancelledError:
        return interrupted
    except _TimeIsOver:
        return _failed(options, f"timed out after {timeout_s:g} s", EXIT_TIMEOUT)
    except BrokenPipeError as error:
        if isinstance(error, MqttError):
            return _failed(options, str(error), EXIT_FAILURE)
        leave_standard_output()
        return EXIT_OK  # the reader has what it wanted
    except CodecError as error:
        return _failed(options, str(error), EXIT_USAGE)
    except MqttError as error:
        return _failed(options, str(error), exit_code(error))
    except TimeoutError as error:
        return _failed(options, str(error), EXIT_FAILURE)
    except OSError as error:
        return _failed(options, error.strerror or str(error), EXIT_FAILURE)


class _TimeIsOver(Exception):
    """The command's own limit, not a TimeoutError of the client's."""


async def _limited(work: Coroutine[Any, Any, int], timeout_s: float | None) -> int:
    try:
        async with asyncio.timeout(timeout_s) as limit:
            return await work
    except TimeoutError:
        if limit.expired():
            raise _TimeIsOver from None
        raise


def exit_code(error: MqttError) -> int:
    """The broker's reason code, where it has given one; not the client's own, for a broker that breaks the protocol."""
    told = isinstance(error, RefusedError | DisconnectedError | PublishError | SubscribeError | NotSupportedError)
    return int(error.reason_code) if told and error.reason_code is not None and error.reason_code >= 0x80 else EXIT_FAILURE


def _failed(options: argparse.Namespace, text: str, code: int) -> int:
    if not options.quiet:
        complain(options.program, text)
    return code


class _Lines(logging.Formatter):
    """What the client logs quotes what peers sent."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record), keep="\n")


def _log(options: argparse.Namespace) -> None:
    logger = logging.getLogger("mqttc.client")
    logger.propagate = False
    if options.quiet:
        logger.addHandler(logging.NullHandler())
        return
    handler = logging.StreamHandler()
    handler.setFormatter(_Lines(f"{options.program}: %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG if options.debug else logging.WARNING)
