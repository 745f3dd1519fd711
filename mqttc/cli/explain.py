"""``mqttc-broker explain``: whether a client may do something, which rule decides, and who would receive what it publishes.

The running broker is asked by its control socket, where the configuration leads to one that answers: then what an authenticator granted
counts, and receivers are known. Else the configuration's files decide.

Exit codes: 0 allowed, 1 denied, 2 wrong usage or configuration, or the socket of ``--control`` does not answer.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any

from mqttc.auth.acl import AclTable, Explanation, listener_ids
from mqttc.auth.grant import ACTIONS
from mqttc.channel.client import ControlClient
from mqttc.channel.protocol import ControlError
from mqttc.cli.control import add_options, no_answer
from mqttc.cli.terminal import printable
from mqttc.config import Config, ConfigError

_PAGE = 500
_OUTCOMES = {
    "delivered": "connected",
    "queued": "off line, would queue",
    "not queued": "off line, nothing waits for QoS 0",
    "own": "the publisher, wants none of its own (No Local)",
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mqttc-broker explain",
        description="Says whether a client may do something, which rule decides, and who would receive what it publishes. It asks the "
        "running broker by its control socket; where none answers it reads the files, and then knows neither what an authenticator has "
        "granted nor who would receive. Exit codes: 0 allowed, 1 denied, 2 wrong usage or configuration, or --control does not answer.",
    )
    add_options(parser)
    parser.add_argument("--client", metavar="ID", required=True, help="client id")
    parser.add_argument(
        "--user", metavar="NAME", help="user name that was checked; without it a connected client's own, else the client is anonymous"
    )
    parser.add_argument("--listener", metavar="NAME", help="name or URL of the listener; without it one that no rule names")
    parser.add_argument(
        "--group", metavar="NAME", action="append", default=[], help="a group that an authenticator finds it in; may be repeated"
    )
    parser.add_argument("--limit", metavar="NUMBER", type=int, default=100, help="most receivers to list (100)")
    parser.add_argument("action", choices=ACTIONS)
    parser.add_argument("topic", help="a topic, or for subscribe a filter")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    options = _parser().parse_args(arguments)
    try:
        config = Config.load(options.config, os.environ, options.listen, options.settings)
        path = options.control or config.control_path
        why = "the configuration has no control socket"
        if path is not None:
            try:
                with ControlClient(path) as client:
                    return _ask(client, path, options)
            except OSError as error:
                why = f"{path}: {no_answer(error)}"
                if options.control:
                    raise ValueError(f"no broker answers at {why}") from error
        return _by_files(config, options, why)
    except ConfigError as error:
        for problem in error.problems:
            print(f"mqttc-broker explain: {printable(str(problem))}", file=sys.stderr)
        return error.exit_code
    except (ValueError, ControlError) as error:
        print(f"mqttc-broker explain: {printable(str(error))}", file=sys.stderr)
        return 2


def _by_files(config: Config, options: argparse.Namespace, why: str) -> int:
    explanation = Explanation(True, "nothing")
    if config.auth.acl_file:
        explanation = AclTable.load(config.auth.acl_file).explain(
            options.action,
            options.topic,
            client_id=options.client,
            username=options.user,
            listener=options.listener,
            listeners=listener_ids(config),
            groups=options.group,
        )
    print(printable(str(explanation)))
    print(printable(f"by the files, no running broker was asked ({why}): grants and receivers are not known"))
    return 0 if explanation.allowed else 1


def _ask(client: ControlClient, path: str, options: argparse.Namespace) -> int:
    wanted = max(1, options.limit)
    receivers: list[dict[str, Any]] = []
    after: str | None = None
    while True:
        found = client.ask(
            "explain",
            action=options.action,
            topic=options.topic,
            client_id=options.client,
            username=options.user,
            listener=options.listener,
            groups=options.group,
            limit=min(_PAGE, wanted - len(receivers)),
            after=after,
        )
        page = found["receivers"]
        if page is None:
            break
        receivers += page["items"]
        after = page["next"]
        if after is None or len(receivers) >= wanted:
            break
    whose = "the connected client's own rights" if found["connected"] else "the rules in force, for no such client is connected"
    print(printable(found["text"]))
    print(printable(f"by the running broker at {path}: {whose}"))
    if options.action in ("publish", "retain", "will") and not found["allowed"]:
        print("receives: nobody")
    if page is not None:
        for line in _receivers(receivers):
            print(printable(line))
        if after is not None:
            print("there are more receivers: --limit")
    return 0 if found["allowed"] else 1


def _receivers(receivers: Sequence[dict[str, Any]]) -> list[str]:
    """Lines about who gets a message, who does not, and of which groups one member does."""
    lines = [_line(one) for one in receivers if one["outcome"] in ("delivered", "queued")]
    groups: dict[str, list[str]] = {}
    for one in receivers:
        for name in one["groups"]:
            groups.setdefault(name, []).append(_named(one) if one["connected"] else f"{_named(one)} (off line)")
    lines += [f"one member of the group  {name}: {', '.join(members)}" for name, members in sorted(groups.items())]
    lines = [f"receives: {line}" for line in lines] or ["receives: nobody"]
    lines += [f"refused: {_named(one)}  {_filters(one)}: {one['decision']['text']}" for one in receivers if one["outcome"] == "refused"]
    lines += [f"does not receive: {_line(one)}" for one in receivers if one["outcome"] in ("not queued", "own")]
    return lines


def _named(one: dict[str, Any]) -> str:
    name = "the program around the broker" if one["in_process"] else one["client_id"]
    return f"{name} (user {one['username']})" if one["username"] else str(name)


def _filters(one: dict[str, Any]) -> str:
    names = [f["topic_filter"] for f in one["filters"] if f["topic_filter"] not in one["groups"]]
    more = one["filter_count"] - len(one["filters"])
    return ", ".join(names) + (f" and {more} more" if more else "")


def _line(one: dict[str, Any]) -> str:
    note = f"; {one['decision']['text']}" if one["decision"]["by"] == "unknown" else ""
    return f"{_named(one)}  {_filters(one)}  QoS {one['qos']}  {_OUTCOMES[one['outcome']]}{note}"
