"""``mqttc sub``: subscribe and print messages."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from mqttc.cli.arguments import EXIT_OK, Append, Parser, UsageError, number
from mqttc.cli.connection import connected, connection_options, make_client
from mqttc.cli.printing import Printer, printing_options
from mqttc.cli.properties import CONNECT, DISCONNECT, SUBSCRIBE, UNSUBSCRIBE, WILL, collect, property_options
from mqttc.cli.reading import Sieve, filter_options, filters_of, limit_options, random_option, read, subscribe
from mqttc.cli.terminal import Output

if TYPE_CHECKING:
    from mqttc.client import Client


def parser() -> Parser:
    made = Parser(
        "mqttc sub",
        "Prints messages of the topics that it subscribes to. A message is acknowledged when it is written.",
        "SIGINT and SIGTERM end it with exit code 0, and so does a reader of its output that has gone.",
    )
    filter_options(made, "topic filter, also $share/GROUP/FILTER; may be repeated")
    made.add_argument(
        "-U", "--unsubscribe", action=Append, default=(), metavar="FILTER", help="unsubscribe, of a kept session; may be repeated"
    )
    made.add_argument("--remove-retained", action="store_true", help="clear at the broker the retained messages that are printed")
    made.add_argument(
        "--subscription-identifier",
        type=number(1, 268435455, int, "a number from 1 to 268435455"),
        metavar="N",
        help="of the subscription (MQTT 5.0)",
    )
    random_option(made)
    limit_options(made)
    made.add_argument("-E", "--exit-subscribed", action="store_true", help="end when the broker has acknowledged the subscriptions")
    printing_options(made)
    property_options(made, CONNECT, SUBSCRIBE, UNSUBSCRIBE, WILL, DISCONNECT)
    connection_options(made)
    return made


def run(options: argparse.Namespace) -> int:
    """Raises ``UsageError``."""
    topic_filters = filters_of(options)
    if not topic_filters and not options.unsubscribe:
        raise UsageError("no topic filter: -t FILTER")
    if options.retained_only and options.no_retained:
        raise UsageError("--retained-only and --no-retained leave nothing")
    found = collect(options)
    if options.subscription_identifier is not None:
        found[SUBSCRIBE]["subscription_identifiers"] = (options.subscription_identifier,)
    output = Output()
    printer = Printer(options, output)
    client = make_client(options, found, None, manual_ack=True)
    from mqttc.cli import life

    work = _subscribe(options, client, topic_filters, found, output, printer)
    return life.run(options, work, interrupted=EXIT_OK, timeout_s=options.timeout)


async def _subscribe(
    options: argparse.Namespace,
    client: Client,
    topic_filters: list[str],
    found: dict[str, dict[str, Any]],
    output: Output,
    printer: Printer,
) -> int:
    sieve = Sieve(options)
    async with connected(client, found, drain=False) as client:
        await subscribe(options, client, topic_filters, found)
        if options.exit_subscribed:
            return EXIT_OK
        async for _ in read(client, sieve, output, printer.render, options.remove_retained):
            pass
    return EXIT_OK
