"""Defaults of options from a TOML file: ``client.toml`` in the user's configuration directory, or what MQTTC_CLIENT_CONFIG names."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from typing import Any, Final

from mqttc.cli.arguments import Append, Parser, PropertyAction, UsageError, suggestion

VARIABLE: Final = "MQTTC_CLIENT_CONFIG"
_PLACES: Final = ("url", "host", "unix")
_SECRETS: Final = ("password", "password_file", "ask_password")


def file_name(environment: Mapping[str, str]) -> str | None:
    """None where there is none. An empty variable means none at all."""
    if VARIABLE in environment:
        return environment[VARIABLE] or None
    base = environment.get("XDG_CONFIG_HOME") or os.path.join(os.path.expanduser("~"), ".config")
    path = os.path.join(base, "mqttc", "client.toml")
    return path if os.path.exists(path) else None


def set_defaults(parser: Parser, command: str, commands: Sequence[str], environment: Mapping[str, str], arguments: Sequence[str]) -> None:
    """What the command line says about the broker's place (or a secret) replaces all that file and environment say about it.

    Raises ``UsageError``.
    """
    values: dict[str, Any] = {}
    file = file_name(environment)
    if file is not None:
        values = _read(parser, command, commands, file)
    if url := environment.get("MQTTC_URL"):
        values = {name: value for name, value in values.items() if name not in (*_PLACES, "port")} | {"url": url}
    if not values:
        return
    given = parser.parse(arguments)
    if any(getattr(given, name) for name in (*_PLACES, "port")):
        values = {name: value for name, value in values.items() if name not in (*_PLACES, "port")}
    in_url = "@" in (given.url or environment.get("MQTTC_URL") or "")
    if in_url or environment.get("MQTTC_PASSWORD") or any(getattr(given, name) for name in _SECRETS):
        values = {name: value for name, value in values.items() if name not in _SECRETS}
    if in_url or environment.get("MQTTC_USERNAME"):
        values.pop("username", None)
    parser.set_defaults(**values)


def _read(parser: Parser, command: str, commands: Sequence[str], file: str) -> dict[str, Any]:
    import tomllib

    try:
        with open(file, "rb") as opened:
            content = tomllib.load(opened)
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{file}: {getattr(error, 'strerror', None) or error}") from None
    values: dict[str, Any] = {}
    for key, value in content.items():
        name = key.replace("-", "_")
        if isinstance(value, dict):
            if name not in commands:
                raise UsageError(f"{file}: [{key}] is no command{suggestion(name, commands)}")
        elif name not in parser.common:
            raise UsageError(f"{file}: {key} is no option of a connection{suggestion(name, parser.common)}")
        else:
            values[name] = _value(parser.option(name), value, f"{file}: {key}")
    for key, value in content.get(command, {}).items():
        name = key.replace("-", "_")
        action = parser.option(name)
        if action is None or name in ("help", "version"):
            names = [known.dest for known in parser.options()]
            raise UsageError(f"{file}: {key} is no option of {command}{suggestion(name, names)}")
        values[name] = _value(action, value, f"{file}: [{command}] {key}")
    return values


def _value(action: argparse.Action | None, value: Any, where: str) -> Any:
    """As if it had been given on the command line."""
    assert action is not None
    if action.nargs == 0:
        if not isinstance(value, bool):
            raise UsageError(f"{where}: true or false")
        return value
    if isinstance(action, PropertyAction):
        raise UsageError(f"{where}: properties are of the command line")
    if isinstance(action, Append):
        items = value if isinstance(value, list) else [value]
        return tuple(_single(action, item, where) for item in items)
    return _single(action, value, where)


def _single(action: argparse.Action, value: Any, where: str) -> Any:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise UsageError(f"{where}: a text or a number")
    text = str(value)
    try:
        made = action.type(text) if callable(action.type) else text
    except (ValueError, argparse.ArgumentTypeError) as error:
        raise UsageError(f"{where}: {error}") from None
    if action.choices is not None and made not in action.choices:
        raise UsageError(f"{where}: {text!r} is not one of {', '.join(map(str, action.choices))}")
    return made
