"""``mqttc-broker clients``, ``client ID`` and ``disconnect ID``: the running broker of this machine, by its control socket.

Exit codes: 0 done, 1 there is no such client, 2 wrong usage or configuration, or no broker answers.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any

from mqttc.channel.client import ControlClient
from mqttc.channel.protocol import ControlError
from mqttc.cli.terminal import printable
from mqttc.config import Config, ConfigError

_EXIT_NONE = 1
_EXIT_USAGE = 2
_PAGE = 500
_TEXT = {
    "clients": "Lists the clients that are connected to the running broker.",
    "client": "Shows a connected client of the running broker, with its subscriptions.",
    "disconnect": "Disconnects a client of the running broker; 5.0 clients are told 0x98. Its session stays, its will goes out.",
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """How a command finds the broker's configuration, and by that its control socket."""
    parser.add_argument("--config", metavar="FILE", help="TOML file of the broker")
    parser.add_argument("--listen", metavar="URL", action="append", default=[], help="as for mqttc-broker; may be repeated")
    parser.add_argument("--set", metavar="section.key=value", action="append", default=[], dest="settings", help="as for mqttc-broker")
    parser.add_argument("--control", metavar="PATH", help="control socket of the running broker, instead of the configuration's")


def _parser(command: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"mqttc-broker {command}", description=f"{_TEXT[command]} Exit codes: 0, 1 no such client, 2.")
    add_options(parser)
    if command == "clients":
        parser.add_argument("--limit", metavar="NUMBER", type=int, default=1000, help="most clients to list (1000)")
    else:
        parser.add_argument("client", metavar="ID", help="client id")
    return parser


def main(arguments: Sequence[str]) -> int:
    """Run the command that the first argument names; return its exit code."""
    command = arguments[0]
    options = _parser(command).parse_args(arguments[1:])
    try:
        path = options.control or Config.load(options.config, os.environ, options.listen, options.settings).control_path
        if path is None:
            raise OSError("the configuration has no control socket: set control.socket")
        with ControlClient(path) as client:
            if command == "clients":
                return _list(client, max(1, options.limit))
            if command == "client":
                return _show(client, options.client)
            if client.ask("disconnect", client_id=options.client):
                return 0
            print(f"{printable(options.client)} is not connected", file=sys.stderr)
            return _EXIT_NONE
    except ConfigError as error:
        for problem in error.problems:
            print(f"mqttc-broker {command}: {printable(str(problem))}", file=sys.stderr)
        return _EXIT_USAGE
    except (OSError, ControlError) as error:
        print(f"mqttc-broker {command}: {printable(no_answer(error))}", file=sys.stderr)
        return _EXIT_USAGE


def no_answer(error: Exception) -> str:
    """Why a broker could not be asked."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _list(client: ControlClient, limit: int) -> int:
    shown, after = 0, None
    while shown < limit:
        page = client.ask("clients", limit=min(_PAGE, limit - shown), after=after)
        for one in page["items"]:
            print(_summary(one))
        shown, after = shown + len(page["items"]), page["next"]
        if after is None:
            return 0
    print("there are more: --limit", file=sys.stderr)
    return 0


def _summary(one: dict[str, Any]) -> str:
    parts = [one["client_id"], one["address"], one["listener"], f"user={one['username']}" if one["username"] else ""]
    parts += [f"queued={one['queued']}", f"in_flight={one['in_flight']}", f"subscriptions={one['subscription_count']}"]
    return printable("  ".join(part for part in parts if part))


def _show(client: ControlClient, client_id: str) -> int:
    found = client.ask("client", client_id=client_id)
    if found is None:
        print(f"{printable(client_id)} is not connected", file=sys.stderr)
        return _EXIT_NONE
    for key, value in found.items():
        if key != "subscriptions" and value is not None:
            print(printable(f"{key}: {value}"))
    for one in found["subscriptions"] or ():
        print(printable(f"subscription: {one['topic_filter']}  QoS {one['qos']}"))
    return 0
