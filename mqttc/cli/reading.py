"""Which messages a command wants, and how it reads them: filters, limits, retained messages; `mqttc sub` and `mqttc tap` share it."""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from mqttc.cli.arguments import Append, Parser, count, percent, qos_option, seconds
from mqttc.cli.connection import topic_of_url, valid
from mqttc.cli.properties import SUBSCRIBE, UNSUBSCRIBE, properties
from mqttc.cli.terminal import Output, complain

if TYPE_CHECKING:
    from mqttc.client import Client, Message

BATCH: Final = 256
"""Messages that are written at once, where so many are there."""
BATCH_BYTES: Final = 1 << 20
RETAIN_HANDLING: Final = {"always": 0, "new": 1, "never": 2}


def filter_options(parser: Parser, what: str) -> None:
    """What is subscribed, and how."""
    parser.add_argument("-t", "--topic", dest="topics", action=Append, default=(), metavar="FILTER", help=what)
    parser.add_argument(
        "-T", "--filter-out", action=Append, default=(), metavar="FILTER", help="leave out topics that match; may be repeated"
    )
    parser.add_argument("--share", metavar="GROUP", help="subscribe as a member of this group: $share/GROUP/FILTER")
    qos_option(parser, "at most")
    parser.add_argument("--no-local", action="store_true", help="not the messages of this client id itself (MQTT 5.0)")
    parser.add_argument("--retain-as-published", action="store_true", help="show the retained flag that the publisher has set (MQTT 5.0)")
    parser.add_argument(
        "--retain-handling", choices=tuple(RETAIN_HANDLING), default="always",
        help="retained messages at subscribing: always, new (only if the session does not have the subscription yet), never (MQTT 5.0)",
    )  # fmt: skip
    parser.add_argument("-R", "--no-retained", action="store_true", help="leave out retained messages")
    parser.add_argument("--retained-only", action="store_true", help="only retained messages: ends at the first one that is not")


def limit_options(parser: Parser) -> None:
    parser.add_argument("-C", "--count", type=count, metavar="N", help="end after so many messages")
    parser.add_argument("-W", "--timeout", type=seconds, metavar="SECONDS", help="end after so long, with exit code 27")


def filters_of(options: argparse.Namespace, default: Sequence[str] = ()) -> list[str]:
    """Raises ``UsageError`` for one that MQTT does not allow."""
    in_url = topic_of_url(options)
    given = [*((in_url,) if in_url else ()), *options.topics] or list(default)
    if options.share is not None:
        given = [f"$share/{options.share}/{one}" for one in given]
    for one in (*given, *options.filter_out, *getattr(options, "unsubscribe", ())):
        valid(one, is_filter=True)
    return given


async def subscribe(options: argparse.Namespace, client: Client, topic_filters: Sequence[str], found: dict[str, dict[str, Any]]) -> None:
    """Filters that the broker refuses, where it does not refuse all, are told of. Raises what `Client.subscribe` does."""
    if topic_filters:
        shared = any(one.startswith("$share/") for one in topic_filters)
        subscription = await client.subscribe(
            topic_filters, options.qos, no_local=options.no_local and not shared, retain_as_published=options.retain_as_published,
            retain_handling=RETAIN_HANDLING[options.retain_handling], properties=properties(found.get(SUBSCRIBE, {})),
        )  # fmt: skip
        for one, code in zip(subscription.topic_filters, subscription.reason_codes, strict=True):
            if options.quiet:
                continue
            if code >= 0x80:
                from mqttc.errors import reason_text

                complain(options.program, f"the broker refused to subscribe {one}: {reason_text(code, subscription.properties)}")
            elif options.debug:
                complain(options.program, f"subscribed {one}, QoS {int(code)}")
    if gone := tuple(getattr(options, "unsubscribe", ())):
        await client.unsubscribe(gone, properties=properties(found.get(UNSUBSCRIBE, {})))


class Sieve:
    """What is wanted, and when it is enough."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._enough = False
        self._filter_out: Sequence[str] = options.filter_out
        self._no_retained: bool = options.no_retained
        self._retained_only: bool = options.retained_only
        self._left: int | None = options.count
        self._share: float = getattr(options, "random_filter", 100.0)

    def enough(self) -> bool:
        """No further message is wanted."""
        return self._enough

    def wants(self, message: Message) -> bool:
        from mqttc.codec import topic_matches

        if self._retained_only and not message.retain:
            self._enough = True
            return False
        if self._no_retained and message.retain:
            return False
        if any(topic_matches(one, message.topic) for one in self._filter_out):
            return False
        return self._share >= 100 or random.random() * 100 < self._share

    def shown(self) -> None:
        """One message counts."""
        if self._left is not None:
            self._left -= 1
            self._enough = self._enough or self._left == 0


async def read(
    client: Client, sieve: Sieve, output: Output, render: Callable[[Message, int], bytes | None], cleared: bool = False
) -> AsyncIterator[list[Message]]:
    """Writes what is wanted, acknowledges what is written, and gives each batch of it, until it is enough.

    `render` gives None where a message cannot be shown. `cleared`: retained messages that were shown are cleared at the broker.
    The client has to have `manual_ack`.
    """
    while not sieve.enough():
        batch = [await client.get(), *client.take(BATCH - 1)]
        when_ns = time.time_ns()
        done: list[Message] = []
        shown: list[Message] = []
        pieces: list[bytes] = []
        size = 0
        for message in batch:
            if sieve.wants(message):
                piece = render(message, when_ns)
                shown.append(message)
                sieve.shown()
                if piece is not None:
                    pieces.append(piece)
                    size += len(piece)
            elif sieve.enough():
                break  # the message that ended it is not dealt with
            done.append(message)
            if sieve.enough():
                break
            if size >= BATCH_BYTES:
                await output.write(b"".join(pieces))
                pieces, size = [], 0
        await output.write(b"".join(pieces))
        if cleared:
            for message in shown:
                if message.retain:
                    await client.publish(message.topic, b"", 1, True)
        for message in done:
            message.acknowledge()
        yield shown


def random_option(parser: Parser) -> None:
    parser.add_argument(
        "--random-filter", type=percent, default=100.0, metavar="PERCENT", help="show so many of a hundred messages, at random"
    )
