"""``mqttc request``: publish a request and print what is answered (MQTT 5.0, section 4.10)."""

from __future__ import annotations

import argparse
import secrets
import time
from typing import TYPE_CHECKING, Any, Final

from mqttc.cli.arguments import EXIT_OK, Parser, UsageError, number, qos_option, seconds
from mqttc.cli.connection import VERSIONS, connected, connection_options, make_client, topic_to_publish, valid
from mqttc.cli.payload import payload_options, source, whole
from mqttc.cli.printing import Printer, printing_options
from mqttc.cli.properties import CONNECT, DISCONNECT, PUBLISH, WILL, collect, message_options, properties, property_options
from mqttc.cli.terminal import Output

if TYPE_CHECKING:
    from mqttc.client import Client, Subscription

TIMEOUT_S: Final = 30.0


def parser() -> Parser:
    made = Parser(
        "mqttc request",
        "Publishes a request with a response topic and correlation data, and prints the answers that bring them back.",
        "Before MQTT 5.0 there is neither: then -e names the topic, and every message there is an answer.",
    )
    made.add_argument("-t", "--topic", help="where to")
    payload_options(made, lines=False)
    qos_option(made, "of the request, and at most of the answers", 1)
    made.add_argument(
        "-C", "--count", type=number(0, 2**63, int, "a number"), default=1, metavar="N", help="answers; 0: all until the time is over (1)"
    )
    made.add_argument(
        "-W", "--timeout", type=seconds, default=TIMEOUT_S, metavar="SECONDS", help="for all answers; exit code 27 if they do not come (30)"
    )
    printing_options(made)
    message_options(made)
    property_options(made, CONNECT, PUBLISH, WILL, DISCONNECT)
    connection_options(made)
    return made


def run(options: argparse.Namespace) -> int:
    """Raises ``UsageError``."""
    options.topic = topic_to_publish(options)
    source(options, needed=False)
    old = options.protocol_version is not None and VERSIONS[options.protocol_version] < 5
    response_topic, options.response_topic = options.response_topic, None  # the client's version decides where it goes
    if old and response_topic is None:
        raise UsageError("before MQTT 5.0 there are no response topics: -e TOPIC says where the answers come")
    found = collect(options)
    response_topic = found[PUBLISH].pop("response_topic", None) if response_topic is None else response_topic
    if response_topic is not None:
        valid(response_topic, is_filter=old)
    payload = whole(options)
    from mqttc.cli import life

    output = Output()
    printer = Printer(options, output)
    client = make_client(options, found, 0, **({} if old else {"fallback": ()}))
    work = _request(options, client, found, payload, response_topic, output, printer)
    return life.run(options, work, timeout_s=options.timeout if options.count else None)


async def _request(
    options: argparse.Namespace, client: Client, found: dict[str, dict[str, Any]], payload: bytes, response_topic: str | None,
    output: Output, printer: Printer,
) -> int:  # fmt: skip
    import asyncio

    async with connected(client, found) as client:
        told = dict(found[PUBLISH])
        correlation = None
        if client.version == 5:
            base = client.connack.properties.response_information or f"mqttc/response/{client.client_id}"
            response_topic = response_topic or f"{base}/{secrets.token_hex(8)}"
            correlation = told.setdefault("correlation_data", secrets.token_bytes(8))
            told["response_topic"] = response_topic
        assert response_topic is not None
        async with await client.subscribe(response_topic, options.qos) as answers:
            await client.publish(options.topic, payload, options.qos, properties=properties(told))
            try:
                async with asyncio.timeout(None if options.count else options.timeout):
                    await _print_answers(answers, correlation, options.count, output, printer)
            except TimeoutError:
                pass  # all that came in this time were wanted
    return EXIT_OK


async def _print_answers(answers: Subscription, correlation: bytes | None, count: int, output: Output, printer: Printer) -> None:
    """So many; 0: until it is cancelled. Without correlation data every message is an answer."""
    printed = 0
    while not count or printed < count:
        answer = await answers.get()
        if correlation is not None and answer.correlation_data != correlation:
            continue
        piece = printer.render(answer, time.time_ns())
        if piece is not None:
            await output.write(piece)
        printed += 1
