"""``mqttc-broker store`` and ``mqttc-broker backup``: look at, check, export and copy what a broker keeps; also while it runs.

Exit codes: 0 done (``check``: sound), 1 not (``check``: not sound), 2 wrong usage or configuration.
"""

from __future__ import annotations

import argparse
import datetime
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from mqttc import store
from mqttc.cli.terminal import printable
from mqttc.config import Config, ConfigError

_EXIT_OK = 0
_EXIT_FAILED = 1


def _add_place(parser: argparse.ArgumentParser) -> None:
    place = parser.add_mutually_exclusive_group()
    place.add_argument("--data-dir", metavar="DIR", help="the broker's data_dir")
    place.add_argument("--config", metavar="FILE", help="the broker's configuration, which names it; MQTTC_DATA_DIR is read too")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mqttc-broker store",
        description="Looks at what a broker keeps. Nothing is changed; the broker may run meanwhile.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (
        ("info", "print sizes, counts, schema version and state"),
        ("check", "read everything and print what is wrong with it; exit code 1 if anything is"),
        ("export", "print everything as JSON lines, one object a row"),
    ):
        _add_place(commands.add_parser(name, help=text, description=text))
    return parser


def _backup_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mqttc-broker backup",
        description="Copies the store as it is at this moment to a new file, checked, which can be used as store.db; the broker may run.",
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="must not exist")
    _add_place(parser)
    return parser


def _path(options: argparse.Namespace) -> Path:
    folder = options.data_dir or Config.load(options.config, os.environ).data_dir
    return Path(folder) / store.FILE_NAME


def _say(text: str) -> None:
    print(f"mqttc-broker: {printable(text)}", file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``store``; return its exit code."""
    return _run(_parser().parse_args(arguments))


def main_backup(arguments: Sequence[str] | None = None) -> int:
    """Run ``backup``; return its exit code."""
    options = _backup_parser().parse_args(arguments)
    options.command = "backup"
    return _run(options)


def _run(options: argparse.Namespace) -> int:
    try:
        path = _path(options)
        match options.command:
            case "info":
                print(_described(store.info(path)))
            case "check":
                problems = store.check(path, _say)
                for problem in problems:
                    _say(f"{path}: {problem}")
                print("not sound" if problems else "sound")
                return _EXIT_FAILED if problems else _EXIT_OK
            case "backup":
                _say(f"{options.file}: {store.backup(path, options.file, _say)} bytes")
            case _:
                _export(path)
    except ConfigError as error:
        for line in map(str, error.problems):
            _say(line)
        return error.exit_code
    except BrokenPipeError:
        # Who read the lines has seen enough; what is still buffered must not be written at the exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _EXIT_FAILED
    except OSError as error:
        _say(str(error))
        return _EXIT_FAILED
    return _EXIT_OK


def _export(path: Path) -> None:
    """JSON is UTF-8 (RFC 8259 section 8.1), whatever the terminal's encoding."""
    with open(sys.stdout.fileno(), "w", encoding="utf-8", newline="\n", closefd=False) as output:
        store.export(path, output)


def _described(info: store.StoreInfo) -> str:
    clock = "unknown" if info.clock_ms is None else _time(info.clock_ms)
    lines = {
        "file": str(info.path),
        "schema version": info.version,
        "last commit": clock,
        "ended in order": "yes" if info.clean else "no, or in use",
        "next id": "unknown" if info.next_id is None else info.next_id,
        "file bytes": info.file_bytes,
        "WAL bytes": info.wal_bytes,
        "free bytes": info.free_bytes,
        **{f"{table} rows": count for table, count in info.rows.items()},
        "messages nobody waits for": info.unclaimed,
    }
    return "\n".join(f"{name + ':':<27}{value}" for name, value in lines.items())


def _time(milliseconds: int) -> str:
    try:
        moment = datetime.datetime.fromtimestamp(milliseconds / 1000, datetime.UTC)
    except (ValueError, OverflowError, OSError):
        return f"{milliseconds} ms"
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def recover(data_dir: str) -> int:
    """``mqttc-broker --recover``: check, and salvage if need be; the exit code if the broker must not start."""
    try:
        with store.open_store(data_dir, recover=True, progress=_say) as opened:
            if opened.recovery is None:
                _say(f"{opened.path} {'did not exist; an empty one was made' if opened.created else 'is sound; nothing was changed'}")
            else:
                for line in opened.recovery.lines():
                    _say(line)
    except store.StoreError as error:
        _say(str(error))
        return error.exit_code
    return _EXIT_OK
