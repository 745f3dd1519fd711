"""``mqttc-broker passwd``: keeps a password file.

Exit codes: 0 done (or ``--verify``: the password is right), 1 not (or it is wrong, or there is no such user), 2 wrong usage.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import getpass
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from mqttc.auth.hashing import make_hash, make_scram
from mqttc.auth.passwords import MAXIMUM_FILE_BYTES, parse_users
from mqttc.auth.source import read_limited
from mqttc.certs import write_file
from mqttc.config import ConfigError

_NO_LIMIT_KIB = 2**40


class PasswdError(ValueError):
    """What was asked for cannot be done; the text says why."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mqttc-broker passwd",
        description="Adds a user to a password file or changes the password, which is asked for, or read as one line from standard "
        "input if that is no terminal. The file is replaced at once, is for its owner alone, and a running broker notices.",
    )
    parser.add_argument("file", metavar="FILE", help="the password file, made if it is missing; -: only print the line")
    parser.add_argument("user", metavar="USER", nargs="?", help="the user's name")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--delete", action="store_true", help="remove the user")
    what.add_argument("--verify", action="store_true", help="tell by the exit code whether the password is the user's")
    what.add_argument("--batch", action="store_true", help="read lines user:password from standard input, all or none of them")
    parser.add_argument("--scram", action="store_true", help="make entries for SCRAM-SHA-256, which passwords can be checked by too")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = _parser()
    options = parser.parse_intermixed_args(arguments)
    if options.batch == (options.user is not None):
        parser.error("--batch takes no USER" if options.batch else "USER is missing")
    if options.file == "-" and (options.delete or options.verify):
        parser.error("--delete and --verify need a FILE")
    try:
        return _run(options)
    except ConfigError as error:
        message = str(error.problems[0].message)
    except OSError as error:
        message = f"{error.filename or options.file}: {error.strerror or error}"
    except ImportError as error:
        message = f"needs a package that is not installed ({error.name}): pip install argon2-cffi"
    except (PasswdError, EOFError, KeyboardInterrupt) as error:
        message = str(error) or "nothing was read, nothing is changed"
    print(f"mqttc-broker passwd: {message}", file=sys.stderr)
    return 1


def _run(options: argparse.Namespace) -> int:
    path = Path(os.path.realpath(options.file))
    if options.verify:
        return _verify(path, options.user)
    if options.delete:
        with _locked(path):
            lines = _read(path)
            if options.user.encode() not in lines:
                raise PasswdError(f"{path} has no user {options.user!r}")
            _write(path, lines, {options.user.encode(): None})
        return 0
    passwords = _batch() if options.batch else {_checked(options.user): _asked(twice=True)}
    made = {name.encode(): _line(name, password, options.scram) for name, password in passwords.items()}
    if options.file == "-":
        print("\n".join(line.decode() for line in made.values()))
        return 0
    with _locked(path):
        _write(path, _read(path, missing_is_empty=True), made)
    return 0


def _checked(name: str) -> str:
    if not name or name != name.strip() or name.startswith("#") or ":" in name or not name.isprintable() or len(name.encode()) > 65535:
        raise PasswdError(f"{name!a} is no user name for a password file: no colon, control character, leading # or outer blanks")
    return name


def _line(name: str, password: bytes, scram: bool) -> bytes:
    try:
        return f"{name}:{make_scram(password) if scram else make_hash(password)}".encode()
    except ValueError as error:
        raise PasswdError(str(error)) from None


def _asked(twice: bool) -> bytes:
    """From the terminal, or one line of standard input."""
    if sys.stdin.isatty():
        password = getpass.getpass("Password: ")
        if twice and getpass.getpass("Again: ") != password:
            raise PasswdError("the two are not the same")
        return _usable(password.encode())
    return _usable(sys.stdin.buffer.readline().removesuffix(b"\n").removesuffix(b"\r"))


def _usable(password: bytes) -> bytes:
    if not password:
        raise PasswdError("the password is empty")
    if len(password) > 65535:
        raise PasswdError("a password has at most 65535 bytes")
    return password


def _batch() -> dict[str, bytes]:
    passwords: dict[str, bytes] = {}
    for number, line in enumerate(sys.stdin.buffer, 1):
        if not line.strip():
            continue
        name, separator, password = line.removesuffix(b"\n").removesuffix(b"\r").partition(b":")
        try:
            if not separator:
                raise PasswdError("write user:password")
            passwords[_checked(name.decode())] = _usable(password)
        except (PasswdError, UnicodeDecodeError) as error:
            raise PasswdError(f"line {number}: {'is not UTF-8' if isinstance(error, UnicodeDecodeError) else error}") from None
    if not passwords:
        raise PasswdError("nothing was read, nothing is changed")
    return passwords


def _verify(path: Path, name: str) -> int:
    users = parse_users(str(path), read_limited("FILE", str(path), MAXIMUM_FILE_BYTES), _NO_LIMIT_KIB)
    password = _asked(twice=False)
    hashed = users.get(name)
    if hashed is not None and hashed.verify(password):
        return 0
    raise PasswdError(f"{path} has no user {name!r}" if hashed is None else "the password is wrong")


# ------------------------------------------------------------------------------------ the file


def _read(path: Path, missing_is_empty: bool = False) -> dict[bytes, bytes]:
    """Lines by their user, in order; comments and blank lines under themselves and their number. A file that cannot be used is an error."""
    if missing_is_empty and not path.exists():
        return {}
    data = read_limited("FILE", str(path), MAXIMUM_FILE_BYTES)
    parse_users(str(path), data, _NO_LIMIT_KIB)
    lines: dict[bytes, bytes] = {}
    for number, line in enumerate(data.splitlines()):
        stripped = line.strip()
        lines[b"\n%d" % number if not stripped or stripped.startswith(b"#") else stripped.partition(b":")[0]] = line
    return lines


def _write(path: Path, lines: dict[bytes, bytes], changes: Mapping[bytes, bytes | None]) -> None:
    for name, line in changes.items():
        if line is None:
            del lines[name]
        else:
            lines[name] = line
    try:
        status = os.stat(path)
    except FileNotFoundError:
        mode, owner = 0o600, None
    else:
        # Whoever may read it by its group goes on doing so: the broker, perhaps.
        mode, owner = 0o600 | (status.st_mode & 0o040), (status.st_uid, status.st_gid)
    write_file(path, b"".join(line + b"\n" for line in lines.values()), mode, owner)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Of two that change the file at the same time, one waits. The lock is on the directory, as the file itself is replaced."""
    descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
