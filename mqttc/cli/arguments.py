"""The arguments of `mqttc`'s commands: argparse with the letters of mosquitto_pub and mosquitto_sub (``-h`` is the host)."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, NoReturn

from mqttc import __version__

EXIT_OK: Final = 0
EXIT_FAILURE: Final = 1
EXIT_USAGE: Final = 2
EXIT_TIMEOUT: Final = 27
"""mosquitto_sub's, of `-W`."""
EXIT_INTERRUPTED: Final = 130

EXIT_CODES: Final = (
    "Exit codes: 0 done, 1 no connection or another failure, 2 wrong usage, 27 the time given by -W is over, 128 to 162 the reason "
    "code by which the broker refused (0x87, not authorized: 135), 130 interrupted before all was done."
)

SEPARATOR: Final = "\0"
"""Between the parts of a `-D`: no argument of a program can contain it."""


class UsageError(Exception):
    """What was asked for makes no sense, in words."""


class Append(argparse.Action):
    """Collects; what the command line says replaces what the defaults' file says (which is a tuple)."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option_string: str | None = None
    ) -> None:
        there = getattr(namespace, self.dest)
        setattr(namespace, self.dest, [*(there if isinstance(there, list) else ()), values])


class PropertyAction(Append):
    """``-D COMMAND NAME VALUE``, which `Parser.parse` has joined to one word."""


class Parser(argparse.ArgumentParser):
    """`common` are the options that the defaults' file may have outside of a command's table."""

    def __init__(self, program: str, description: str, epilog: str = "") -> None:
        super().__init__(
            prog=program,
            usage=f"{program} [OPTION]...",
            description=description,
            epilog=f"{epilog} {EXIT_CODES}".strip(),
            add_help=False,
            allow_abbrev=False,
        )
        self.common: set[str] = set()
        self.add_argument("--help", action="help", help="show this and exit")
        self.add_argument("--version", action="version", version=f"mqttc {__version__}", help="show the version and exit")

    def options(self) -> list[argparse.Action]:
        """Those that have a name."""
        return [action for action in self._actions if action.option_strings]

    def option(self, name: str) -> argparse.Action | None:
        """By its key in the defaults' file."""
        return next((action for action in self.options() if action.dest == name), None)

    def parse(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Exits with 2, and says why, where they cannot be understood."""
        options, rest = self.parse_known_args(self._joined(arguments))
        if rest:
            unknown = rest[0].partition("=")[0]
            names = [name for action in self.options() for name in action.option_strings]
            self.error(f"unknown argument {unknown}{suggestion(unknown, names)}")
        options.program = self.prog
        return options

    def _joined(self, arguments: Sequence[str]) -> list[str]:
        """An option's value may begin with a dash: ``-m -5``, ``-m --``."""
        by_name = {name: action for action in self.options() for name in action.option_strings}
        joined: list[str] = []
        waiting = iter(arguments)
        for word in waiting:
            action = by_name.get(word)
            if isinstance(action, PropertyAction):
                parts = [part for _, part in zip(range(3), waiting, strict=False)]
                if parts[1:2] == ["user-property"]:
                    parts += [part for _, part in zip(range(1), waiting, strict=False)]
                joined.append(f"{action.option_strings[-1]}={SEPARATOR.join(parts)}")
            elif action is not None and action.nargs is None and (value := next(waiting, None)) is not None:
                long = next(name for name in action.option_strings if name.startswith("--"))
                joined.append(f"{long}={value}")
            else:
                joined.append(word)
        return joined

    def error(self, message: str) -> NoReturn:
        from mqttc.cli.terminal import complain

        hint = " (-h is the host)" if "-h/--host" in message else ""
        complain(self.prog, f"{message}{hint}; {self.prog} --help tells more")
        raise SystemExit(EXIT_USAGE)


def suggestion(word: str, known: Iterable[str]) -> str:
    """`, did you mean …?`, or nothing."""
    from difflib import get_close_matches  # late: only who errs waits for it

    found = get_close_matches(word, sorted(set(known)), n=1)
    return f", did you mean {found[0]}?" if found else ""


def number(least: float, most: float, kind: Callable[[str], float], what: str) -> Callable[[str], Any]:
    """A type of argparse's."""

    def read(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
        return value

    return read


seconds = number(0.001, 1e9, float, "a number of seconds above 0")
pause = number(0, 1e9, float, "a number of seconds")
count = number(1, 2**63, int, "a number above 0")
percent = number(0, 100, float, "a number from 0 to 100")


def qos_option(parser: argparse._ActionsContainer, what: str, default: int = 0) -> None:
    parser.add_argument("-q", "--qos", type=int, choices=(0, 1, 2), default=default, help=f"quality of service {what} ({default})")


def color_option(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--color",
        choices=("auto", "always", "never"),
        default="auto",
        help="colours: on a terminal (auto; NO_COLOR turns them off), always or never",
    )
