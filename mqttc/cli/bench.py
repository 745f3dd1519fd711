"""``mqttc-bench``: load for any MQTT broker.

Exit codes: 0 the run was made and every message arrived once and in order, 1 messages were lost, duplicated or reordered (or damaged, or
connections were lost), 2 wrong usage, 3 the run could not be made, 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from mqttc import __version__
from mqttc.bench.profile import Profile, ProfileError, RunError, load_profile, named_profiles
from mqttc.bench.result import Result

EXIT_OK = 0
EXIT_MESSAGES = 1
EXIT_USAGE = 2
EXIT_CANNOT_RUN = 3
EXIT_INTERRUPTED = 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mqttc-bench",
        description="Load for any MQTT broker, with every message accounted for.",
        epilog="Exit codes: 0 every message arrived once and in order, 1 messages were lost, duplicated or reordered, "
        "2 wrong usage, 3 the run could not be made, 130 interrupted.",
    )
    parser.add_argument("--version", action="version", version=f"mqttc-bench {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _run_options(commands.add_parser("run", help="make a run", description="Make the run that a profile describes."))
    listing = commands.add_parser("list", help="the named profiles", description="List the named profiles.")
    listing.add_argument("--profiles", metavar="FILE", type=Path, help="TOML file with more profiles")
    comparing = commands.add_parser("compare", help="two results", description="Compare two results written by run --json.")
    comparing.add_argument("first", metavar="A.json", type=Path)
    comparing.add_argument("second", metavar="B.json", type=Path)
    comparing.add_argument("--plain", action="store_true", help="no box around the table")
    return parser


def _run_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="a named profile, or a scenario with nothing but defaults")
    parser.add_argument("--profiles", metavar="FILE", type=Path, help="TOML file with more profiles; its own win")
    parser.add_argument("--pid", type=int, help="the broker's process id: processor time and memory are reported, children's too")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the result")
    parser.add_argument("--csv", metavar="FILE", type=Path, help="write a row for each sample")
    parser.add_argument("--plot", metavar="FILE", type=Path, help="draw throughput and latency (png, svg, pdf)")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    parser.add_argument("--plain", action="store_true", help="progress as lines, no box around the table")
    keys = parser.add_argument_group("profile", "each overrides what the named profile says")
    for key, entry in Profile.model_fields.items():
        default = "" if entry.default is None else f" ({entry.default})"
        keys.add_argument(
            f"--{key.replace('_', '-')}",
            dest=f"key_{key}",
            metavar=key.split("_")[-1].upper(),
            default=argparse.SUPPRESS,
            type=_converter(entry.annotation),
            help=((entry.description or key) + default).replace("%", "%%"),
        )


def _converter(annotation: Any) -> type[Any] | Any:
    """What reads a value of the command line; pydantic checks it."""
    if get_origin(annotation) is not None and get_origin(annotation) is not Literal:
        annotation = next(choice for choice in get_args(annotation) if choice is not type(None))
    if get_origin(annotation) is Union:
        return str
    if get_origin(annotation) is Literal:
        annotation = type(get_args(annotation)[0])
    return str if annotation is bool else annotation


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    options = _parser().parse_args(arguments)
    try:
        if options.command == "list":
            return _list(options)
        if options.command == "compare":
            return _compare(options)
        return _run(options)
    except ProfileError as error:
        print(f"mqttc-bench: {error}", file=sys.stderr)
        return EXIT_USAGE
    except RunError as error:
        print(f"mqttc-bench: {error}", file=sys.stderr)
        return EXIT_CANNOT_RUN
    except KeyboardInterrupt:
        print("mqttc-bench: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED


def _list(options: argparse.Namespace) -> int:
    for name, values in named_profiles(options.profiles).items():
        settings = ", ".join(f"{key} {value}" for key, value in values.items() if key != "scenario")
        print(f"{name:28} {values.get('scenario', 'fanout'):28} {settings}".rstrip())
    return EXIT_OK


def _compare(options: argparse.Namespace) -> int:
    from mqttc.bench import report

    first, second = Result.load(options.first), Result.load(options.second)
    names = (options.first.name, options.second.name)
    report.show_comparison(first, second, names, plain=options.plain)
    return EXIT_OK


def _run(options: argparse.Namespace) -> int:
    from mqttc.bench import report
    from mqttc.bench.run import Silent, run

    overrides = {key.removeprefix("key_"): value for key, value in vars(options).items() if key.startswith("key_")}
    profile = load_profile(options.name, overrides, options.profiles)
    if options.plot is not None:
        report.need_plots()
    if options.quiet:
        result = run(options.name, profile, pid=options.pid, observer=Silent())
    else:
        with report.progress(plain=options.plain) as observer:
            result = run(options.name, profile, pid=options.pid, observer=observer)
    report.show(result, plain=options.plain)
    for file, write in ((options.json, report.write_json), (options.csv, report.write_csv), (options.plot, report.write_plot)):
        if file is not None:
            write(result, file)
    return EXIT_MESSAGES if result.problems else EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
