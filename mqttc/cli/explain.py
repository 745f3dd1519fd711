"""``mqttc-broker explain``: which rule decides, by the configuration's files.

A running broker has no channel for such questions: what it has in force is what its files said when it read them last, which it logs. In a
program, ``Broker.explain`` asks the running one.

Exit codes: 0 allowed, 1 denied, 2 wrong usage or configuration.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from mqttc.auth.acl import AclTable, listener_ids
from mqttc.auth.grant import ACTIONS
from mqttc.cli.terminal import printable
from mqttc.config import Config, ConfigError


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mqttc-broker explain",
        description="Says whether a client may do something, and which rule of auth.acl_file decides. It reads the files and asks "
        "no running broker. What an authenticator grants is not known here. Exit codes: 0 allowed, 1 denied, "
        "2 wrong usage or configuration.",
    )
    parser.add_argument("--config", metavar="FILE", help="TOML file of the broker")
    parser.add_argument("--listen", metavar="URL", action="append", default=[], help="as for mqttc-broker; may be repeated")
    parser.add_argument("--set", metavar="section.key=value", action="append", default=[], dest="settings", help="as for mqttc-broker")
    parser.add_argument("--client", metavar="ID", required=True, help="client id")
    parser.add_argument("--user", metavar="NAME", help="user name that was checked; without it the client is anonymous")
    parser.add_argument("--listener", metavar="NAME", help="name or URL of the listener; without it one that no rule names")
    parser.add_argument("action", choices=ACTIONS)
    parser.add_argument("topic", help="a topic, or for subscribe a filter")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    options = _parser().parse_args(arguments)
    try:
        config = Config.load(options.config, os.environ, options.listen, options.settings)
        if not config.auth.acl_file:
            print("allowed: there are no rules, auth.acl_file is not set")
            return 0
        explanation = AclTable.load(config.auth.acl_file).explain(
            options.action,
            options.topic,
            client_id=options.client,
            username=options.user,
            listener=options.listener,
            listeners=listener_ids(config),
        )
    except ConfigError as error:
        for problem in error.problems:
            print(f"mqttc-broker explain: {printable(str(problem))}", file=sys.stderr)
        return error.exit_code
    except ValueError as error:
        print(f"mqttc-broker explain: {printable(str(error))}", file=sys.stderr)
        return 2
    print(printable(str(explanation)))
    return 0 if explanation.allowed else 1
