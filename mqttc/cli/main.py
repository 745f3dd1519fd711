"""``mqttc``: publish, subscribe, ask and look, from the command line. See docs/cli.md; exit codes stand in `mqttc.cli.arguments`.

Each command is a module with `parser` and `run`; only the one that is asked for is imported, and asyncio and the client not before its
arguments are known to be good.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any, Final

from mqttc import __version__
from mqttc.cli.arguments import EXIT_INTERRUPTED, EXIT_OK, EXIT_USAGE, Parser, UsageError, suggestion
from mqttc.cli.terminal import complain, leave_standard_output

COMMANDS: Final = {
    "pub": "publish messages",
    "sub": "subscribe and print messages",
    "request": "publish a request and print the answers",
    "tap": "look at messages as they pass, laid out for people",
    "completion": "print a completion script for bash, zsh or fish",
}
_USAGE: Final = "usage: mqttc COMMAND [OPTION]...\n"


def parser_of(command: str) -> Parser:
    """A command's own."""
    made: Parser = import_module(f"mqttc.cli.{command}").parser()
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = _command(given)
        sys.stdout.flush()
        return code
    except SystemExit as exiting:  # of argparse: --help, --version, an error
        return _end(exiting)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        leave_standard_output()
        return EXIT_OK


def _end(exiting: SystemExit) -> int:
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        leave_standard_output()
    return exiting.code if isinstance(exiting.code, int) else EXIT_OK


def _command(given: list[str]) -> int:
    command, rest = (given[0], given[1:]) if given else ("", [])
    if command in ("--version", "-v", "version"):
        print(f"mqttc {__version__}")
        return EXIT_OK
    if command in ("--help", "-h", "help") and rest[:1] and rest[0] in COMMANDS:
        command, rest = rest[0], ["--help"]
    if command in ("--help", "-h", "help"):
        sys.stdout.write(_help())
        return EXIT_OK
    if command not in COMMANDS:
        what = f"{command} is no command{suggestion(command, COMMANDS)}" if command else "no command"
        complain("mqttc", f"{what}; there are {', '.join(COMMANDS)} (mqttc --help tells more)")
        return EXIT_USAGE
    module: Any = import_module(f"mqttc.cli.{command}")
    parser: Parser = module.parser()
    try:
        if parser.common:
            from mqttc.cli.defaults import set_defaults

            set_defaults(parser, command, tuple(COMMANDS), os.environ, rest)
        code: int = module.run(parser.parse(rest))
    except UsageError as error:
        complain(f"mqttc {command}", f"{error}; mqttc {command} --help tells more")
        return EXIT_USAGE
    return code


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {what}\n" for name, what in COMMANDS.items()]
    tail = "mqttc COMMAND --help tells of a command's options, mqttc --version of the version. The broker is mqttc-broker.\n"
    return _USAGE + "\nAn MQTT 3.1, 3.1.1 and 5.0 client.\n\n" + "".join(lines) + "\n" + tail


if __name__ == "__main__":
    sys.exit(main())
