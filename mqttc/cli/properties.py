"""Properties of MQTT 5.0 on the command line: ``-D COMMAND NAME VALUE`` as mosquitto_pub has it, and options for the common ones."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from mqttc.cli.arguments import SEPARATOR, Append, Parser, PropertyAction, UsageError, number, suggestion

if TYPE_CHECKING:
    from mqttc.codec import Properties

PUBLISH: Final = "publish"
WILL: Final = "will"
CONNECT: Final = "connect"
SUBSCRIBE: Final = "subscribe"
UNSUBSCRIBE: Final = "unsubscribe"
DISCONNECT: Final = "disconnect"


def _integer(most: int, least: int = 0) -> Callable[[str], int]:
    return number(least, most, int, f"a number from {least} to {most}")


def _data(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


_SECONDS = _integer(0xFFFFFFFF)
_USER: Final = ("user_properties", str)
_MESSAGE: Final[dict[str, tuple[str, Callable[[str], Any]]]] = {
    "content-type": ("content_type", str),
    "correlation-data": ("correlation_data", _data),
    "message-expiry-interval": ("message_expiry_interval", _SECONDS),
    "payload-format-indicator": ("payload_format_indicator", _integer(1)),
    "response-topic": ("response_topic", str),
    "user-property": _USER,
}
TABLE: Final[dict[str, dict[str, tuple[str, Callable[[str], Any]]]]] = {
    CONNECT: {
        "maximum-packet-size": ("maximum_packet_size", _integer(268435460, 16)),
        "receive-maximum": ("receive_maximum", _integer(65535, 1)),
        "request-problem-information": ("request_problem_information", _integer(1)),
        "request-response-information": ("request_response_information", _integer(1)),
        "session-expiry-interval": ("session_expiry_interval", _SECONDS),
        "topic-alias-maximum": ("topic_alias_maximum", _integer(65535)),
        "user-property": _USER,
    },
    PUBLISH: {**_MESSAGE, "topic-alias": ("topic_alias", _integer(65535, 1))},
    WILL: {**_MESSAGE, "will-delay-interval": ("will_delay_interval", _SECONDS)},
    SUBSCRIBE: {"subscription-identifier": ("subscription_identifiers", _integer(268435455, 1)), "user-property": _USER},
    UNSUBSCRIBE: {"user-property": _USER},
    DISCONNECT: {"session-expiry-interval": ("session_expiry_interval", _SECONDS), "user-property": _USER},
}
"""By command: the property's name, its field in `codec.Properties`, and what reads its value."""


def property_options(parser: Parser, *commands: str) -> None:
    """``-D`` for these commands."""
    parser.set_defaults(property_commands=commands)
    parser.add_argument(
        "-D",
        "--property",
        dest="properties",
        action=PropertyAction,
        default=(),
        metavar="COMMAND NAME VALUE",
        help=f"a property of MQTT 5.0; COMMAND is {', '.join(commands)}; user-property has two values, name and value",
    )


def message_options(parser: Parser) -> None:
    """Of a message that is published."""
    group = parser.add_argument_group("properties of the message (MQTT 5.0)")
    group.add_argument("--content-type", metavar="TYPE", help="what the payload is, such as application/json")
    group.add_argument("--response-topic", "-e", metavar="TOPIC", help="where an answer is expected")
    group.add_argument("--correlation-data", metavar="DATA", help="what the answer is to bring back")
    group.add_argument("--message-expiry", type=_SECONDS, metavar="SECONDS", help="the broker drops it undelivered after so long")
    group.add_argument("--payload-format", choices=("bytes", "text"), help="text: the payload is UTF-8")
    group.add_argument("--user-property", dest="user_properties", action=Append, default=(), metavar="NAME=VALUE", help="may be repeated")


def collect(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """By command, the fields that were given. Raises ``UsageError``."""
    found: dict[str, dict[str, Any]] = {command: {} for command in options.property_commands}
    for word in options.properties:
        _add(found, word.split(SEPARATOR))
    message = found.get(PUBLISH, {})
    for name, field in (
        ("content_type", "content_type"),
        ("response_topic", "response_topic"),
        ("message_expiry", "message_expiry_interval"),
    ):
        if (value := getattr(options, name, None)) is not None:
            message[field] = value
    if (data := getattr(options, "correlation_data", None)) is not None:
        message["correlation_data"] = _data(data)
    if (kind := getattr(options, "payload_format", None)) is not None:
        message["payload_format_indicator"] = int(kind == "text")
    for pair in getattr(options, "user_properties", ()):
        name, equals, value = pair.partition("=")
        if not equals:
            raise UsageError(f"--user-property {pair}: NAME=VALUE")
        message.setdefault("user_properties", []).append((name, value))
    message.pop("topic_alias", None)  # checked; which topics have numbers is for the client to see to
    return found


def _add(found: dict[str, dict[str, Any]], parts: list[str]) -> None:
    """One ``-D``."""
    command, name, *values = [*parts, "", ""][: max(len(parts), 2)]
    if command not in found:
        raise UsageError(f"-D {command}: not one of {', '.join(found)}{suggestion(command, found)}")
    table = TABLE[command]
    if name not in table:
        raise UsageError(f"-D {command} {name}: not one of {', '.join(table)}{suggestion(name, table)}")
    if len(values) != (2 if name == "user-property" else 1):
        raise UsageError(f"-D {command} {name}: {'NAME and VALUE' if name == 'user-property' else 'a value'} expected")
    field, read = table[name]
    if name == "user-property":
        found[command].setdefault(field, []).append((values[0], values[1]))
        return
    if field in found[command]:
        raise UsageError(f"-D {command} {name} is given twice")
    try:
        value = read(values[0])
    except argparse.ArgumentTypeError as error:
        raise UsageError(f"-D {command} {name}: {error}") from None
    found[command][field] = (value,) if field == "subscription_identifiers" else value


def properties(fields: dict[str, Any]) -> Properties | None:
    """What the codec takes; None for none."""
    if not fields:
        return None
    from mqttc.codec import Properties

    for name in ("request_problem_information", "request_response_information"):
        if name in fields:
            fields = {**fields, name: bool(fields[name])}
    return Properties(**fields)
