"""``mqttc-broker clients``, ``client ID``, ``disconnect ID`` and ``retained``: the running broker of this machine, by its control socket.

Exit codes: 0 done, 1 there is no such client or retained message, 2 wrong usage or configuration, or no broker answers.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
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
    "retained": "Lists the retained messages of the running broker whose topics match, or deletes one; subscribers are not told.",
}
_NONE = {"retained": "no such message"}


def add_options(parser: argparse.ArgumentParser) -> None:
    """How a command finds the broker's configuration, and by that its control socket."""
    parser.add_argument("--config", metavar="FILE", help="TOML file of the broker")
    parser.add_argument("--listen", metavar="URL", action="append", default=[], help="as for mqttc-broker; may be repeated")
    parser.add_argument("--set", metavar="section.key=value", action="append", default=[], dest="settings", help="as for mqttc-broker")
    parser.add_argument("--control", metavar="PATH", help="control socket of the running broker, instead of the configuration's")


def _parser(command: str) -> argparse.ArgumentParser:
    none = _NONE.get(command, "no such client")
    parser = argparse.ArgumentParser(prog=f"mqttc-broker {command}", description=f"{_TEXT[command]} Exit codes: 0, 1 {none}, 2.")
    add_options(parser)
    if command in ("clients", "retained"):
        what = "clients" if command == "clients" else "messages"
        parser.add_argument("--limit", metavar="NUMBER", type=int, default=1000, help=f"most {what} to list (1000)")
    if command == "retained":
        which = parser.add_mutually_exclusive_group()
        which.add_argument("--clear", metavar="TOPIC", help="delete the retained message of that topic instead")
        which.add_argument("filter", metavar="FILTER", nargs="?", default="#", help="topic filter (#, all but what begins with $)")
    elif command != "clients":
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
                return _list(client, "clients", _summary, options.limit)
            if command == "retained":
                return _retained(client, options)
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


def _list(client: ControlClient, verb: str, line: Callable[[dict[str, Any]], str], limit: int, **arguments: Any) -> int:
    limit = max(1, limit)
    shown, after = 0, None
    while shown < limit:
        page = client.ask(verb, limit=min(_PAGE, limit - shown), after=after, **arguments)
        for one in page["items"]:
            print(line(one))
        shown, after = shown + len(page["items"]), page["next"]
        if after is None:
            return 0
    print("there are more: --limit", file=sys.stderr)
    return 0


def _summary(one: dict[str, Any]) -> str:
    parts = [one["client_id"], one["address"], one["listener"], f"user={one['username']}" if one["username"] else ""]
    parts += [f"queued={one['queued']}", f"in_flight={one['in_flight']}", f"subscriptions={one['subscription_count']}"]
    return printable("  ".join(part for part in parts if part))


def _retained(client: ControlClient, options: argparse.Namespace) -> int:
    if options.clear is None:
        return _list(client, "retained", _retained_summary, options.limit, topic_filter=options.filter)
    if client.ask("clear_retained", topic=options.clear):
        return 0
    print(f"{printable(options.clear)} has no retained message", file=sys.stderr)
    return _EXIT_NONE


def _retained_summary(one: dict[str, Any]) -> str:
    parts = [one["topic"], f"qos={one['qos']}", f"bytes={one['payload_bytes']}"]
    if one["message_expiry"] is not None:
        parts.append(f"expiry={one['message_expiry']}")
    return printable("  ".join(parts))


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
