"""``mqttc pub``: publish messages."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from mqttc.cli.arguments import EXIT_OK, Parser, UsageError, count, number, pause, qos_option, seconds
from mqttc.cli.connection import connected, connection_options, make_client, topic_to_publish
from mqttc.cli.payload import lines, payload_options, source, whole
from mqttc.cli.properties import CONNECT, DISCONNECT, PUBLISH, WILL, collect, message_options, properties, property_options

if TYPE_CHECKING:
    from mqttc.client import Client


def parser() -> Parser:
    made = Parser(
        "mqttc pub",
        "Publishes a message, or each line of standard input as one, and waits for the broker's acknowledgements.",
        "Of QoS 1 and 2 nothing counts as done before it is acknowledged; the first message that the broker refuses ends the command.",
    )
    made.add_argument("-t", "--topic", help="where to")
    payload_options(made, lines=True)
    how = made.add_argument_group("delivery")
    qos_option(how, "of the messages")
    how.add_argument("-r", "--retain", action="store_true", help="the broker keeps the message for later subscribers")
    how.add_argument("--repeat", type=count, metavar="N", help="publish the message so many times (1)")
    how.add_argument("--repeat-delay", type=pause, default=0.0, metavar="SECONDS", help="between two of them (0)")
    how.add_argument(
        "-M", "--max-inflight", type=number(1, 65535, int, "a number up to 65535"), default=1000, metavar="N",
        help="of QoS 1 and 2: sent and not acknowledged (1000)",
    )  # fmt: skip
    how.add_argument("-W", "--timeout", type=seconds, metavar="SECONDS", help="give up after so long, with exit code 27")
    message_options(made)
    property_options(made, CONNECT, PUBLISH, WILL, DISCONNECT)
    connection_options(made)
    return made


def run(options: argparse.Namespace) -> int:
    """Raises ``UsageError``."""
    options.topic = topic_to_publish(options)
    by_line = source(options, needed=True) == "stdin_line"
    if by_line and (options.repeat or options.repeat_delay):
        raise UsageError("--repeat is of a message, not of --stdin-line")
    found = collect(options)
    payload = b"" if by_line else whole(options)
    from mqttc.cli import life

    client = make_client(options, found, None if by_line else 0, max_inflight=options.max_inflight)
    return life.run(options, _publish(options, client, found, payload, by_line), timeout_s=options.timeout)


async def _publish(options: argparse.Namespace, client: Client, found: dict[str, dict[str, object]], payload: bytes, by_line: bool) -> int:
    import asyncio

    from mqttc.cli.sender import Sender

    async with connected(client, found) as client:
        sender = Sender(client, options.topic, options.qos, options.retain, properties(found[PUBLISH]), options.max_inflight)
        try:
            if by_line:
                async for line in lines():
                    await sender.send(line)
            else:
                for place in range(options.repeat or 1):
                    if place and options.repeat_delay:
                        await asyncio.sleep(options.repeat_delay)
                    await sender.send(payload)
            await sender.finish()
        finally:
            await sender.drop()
        if options.debug:
            from mqttc.cli.terminal import complain

            nobody = f", {sender.unmatched} of them without a subscriber" if sender.unmatched else ""
            complain(options.program, f"{sender.sent} messages {'acknowledged' if options.qos else 'sent'}{nobody}")
    return EXIT_OK
