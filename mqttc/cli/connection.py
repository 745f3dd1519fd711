"""Where the broker is and who the client is: the options that all commands share, and the client that they give."""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from mqttc.cli.arguments import Append, Parser, UsageError, number, seconds
from mqttc.cli.properties import CONNECT, DISCONNECT, WILL, properties
from mqttc.cli.terminal import complain

if TYPE_CHECKING:
    from mqttc.client import Client, State, Tls, Will

NEVER: Final = 0xFFFFFFFF
"""A session without end (section 3.1.2.11.2)."""
TLS_PORT: Final = 8883
PASSWORD_BYTES: Final = 65536
VERSIONS: Final = {
    "mqttv5": 5, "mqttv311": 4, "mqttv31": 3, "5": 5, "5.0": 5, "4": 4, "311": 4, "3.1.1": 4, "3": 3, "31": 3, "3.1": 3,
}  # fmt: skip
TOPIC_SCHEMES: Final = ("mqtt", "tcp", "mqtts", "tls", "quic")
"""Of URLs whose path, if they have one, is a topic."""


def _expiry(text: str) -> int:
    if text in ("-1", "∞", "never"):
        return NEVER
    value: int = number(0, NEVER, int, f"a number of seconds up to {NEVER}, -1 or never")(text)
    return value


def connection_options(parser: Parser) -> None:
    """Adds them; all may stand in the defaults' file."""
    before = {action.dest for action in parser.options()}
    place = parser.add_argument_group("broker")
    place.add_argument(
        "-L", "--url", help="mqtt://user@host:port, mqtts, ws, wss (with path), quic, unix:///path; an mqtt URL may end in a topic"
    )
    place.add_argument("-h", "--host", help="its name or address, instead of a URL (localhost)")
    place.add_argument("-p", "--port", type=number(1, 65535, int, "a port"), help="its port (1883; 8883 with TLS, which port 8883 implies)")
    place.add_argument("--unix", metavar="PATH", help="its Unix socket, instead of a URL")
    place.add_argument("-A", "--bind", metavar="ADDRESS", help="of this machine, that the connection comes from")
    place.add_argument("--proxy", metavar="URL", help='http, socks5 or socks5h://[user:password@]host:port, or "environment"')
    place.add_argument(
        "--header", dest="headers", action=Append, default=(), metavar="NAME: VALUE", help="of the WebSocket handshake; may be repeated"
    )
    place.add_argument("--connect-timeout", type=seconds, default=10.0, metavar="SECONDS", help="from the name to CONNACK (10)")
    place.add_argument("--reconnect-attempts", type=number(0, 2**31, int, "a number"), metavar="N", help="in a row after a lost connection")
    place.add_argument("--retry-first", action="store_true", help="repeat also the first attempt to connect")
    _identity_options(parser)
    _tls_options(parser)
    _will_options(parser)
    speech = parser.add_argument_group("messages of this program")
    speech.add_argument("-d", "--debug", action="store_true", help="tell on standard error what happens")
    speech.add_argument("--quiet", action="store_true", help="no messages on standard error")
    parser.common.update({action.dest for action in parser.options()} - before)


def _identity_options(parser: Parser) -> None:
    who = parser.add_argument_group("client")
    who.add_argument("-u", "--username", help="user name (variable MQTTC_USERNAME)")
    who.add_argument(
        "-P", "--password", "--pw", help="password; others see it in the list of processes: prefer the next two, or MQTTC_PASSWORD"
    )
    who.add_argument("--password-file", metavar="FILE", help="the password is the first line of this file")
    who.add_argument("--ask-password", action="store_true", help="ask for the password at the terminal")
    who.add_argument("-i", "--client-id", "--id", help="client id (one is made up)")
    who.add_argument("-I", "--id-prefix", metavar="PREFIX", help="client id: this and the number of the process")
    who.add_argument(
        "-V", "--protocol-version", choices=tuple(VERSIONS), metavar="VERSION", help="5, 3.1.1 or 3.1 (5, and what the broker has)"
    )
    who.add_argument(
        "-k", "--keep-alive", "--keepalive", type=number(0, 65535, int, "a number of seconds up to 65535"), default=60, metavar="SECONDS",
        help="0 for none (60)",
    )  # fmt: skip
    who.add_argument(
        "-c",
        "--keep-session",
        "--disable-clean-session",
        action="store_true",
        help="resume the session of this client id, and leave it there",
    )
    who.add_argument(
        "-x",
        "--session-expiry",
        type=_expiry,
        metavar="SECONDS",
        help="that the broker keeps the session; -1 for ever (0, with -c for ever)",
    )
    who.add_argument(
        "--receive-maximum", type=number(1, 65535, int, "a number up to 65535"), metavar="N", help="unacknowledged messages it may have"
    )


def _tls_options(parser: Parser) -> None:
    tls = parser.add_argument_group("TLS")
    tls.add_argument("--tls", action="store_true", help="with -h: TLS, with the system's authorities unless --cafile is given")
    tls.add_argument("--cafile", "--ca-file", metavar="FILE", help="PEM of the authorities to trust instead of the system's")
    tls.add_argument("--cert", metavar="FILE", help="PEM of the client's certificate")
    tls.add_argument("--key", metavar="FILE", help="PEM of its key, if it is not in the same file")
    tls.add_argument("--key-password-file", metavar="FILE", help="the key's password is the first line (or variable MQTTC_KEY_PASSWORD)")
    tls.add_argument("--insecure", action="store_true", help="believe anybody to be the broker: for tests only")
    tls.add_argument("--tls-server-name", metavar="NAME", help="for SNI and the certificate, instead of the host's name")
    tls.add_argument("--psk", metavar="HEX", help="pre-shared key; others see it in the list of processes: prefer the next one")
    tls.add_argument("--psk-file", metavar="FILE", help="the pre-shared key is the first line, in hexadecimal")
    tls.add_argument("--psk-identity", metavar="NAME", help="by which the broker finds the key")
    tls.add_argument("--tls-alpn", action=Append, default=(), metavar="PROTOCOL", help="may be repeated")


def _will_options(parser: Parser) -> None:
    will = parser.add_argument_group("will")
    will.add_argument("--will-topic", metavar="TOPIC", help="the broker publishes there when this client is lost")
    will.add_argument("--will-payload", metavar="MESSAGE", help="what it publishes (nothing)")
    will.add_argument("--will-qos", type=int, choices=(0, 1, 2), default=0, help="with which quality of service (0)")
    will.add_argument("--will-retain", action="store_true", help="retained")


def topic_to_publish(options: argparse.Namespace) -> str:
    """``-t``, or else the topic at the end of an mqtt URL. Raises ``UsageError``."""
    of_url = topic_of_url(options)
    topic = of_url if options.topic is None else options.topic
    if topic is None:
        raise UsageError("no topic: -t TOPIC")
    return valid(topic, "-t ")


def valid(topic: str, where: str = "", *, is_filter: bool = False) -> str:
    """The topic. Raises ``UsageError``, with what stands ``where`` before it, if it is none, or no filter."""
    from mqttc.codec import validate_filter, validate_topic

    try:
        (validate_filter if is_filter else validate_topic)(topic)
    except ValueError as error:
        raise UsageError(f"{where}{topic}: {error}") from None
    return topic


def topic_of_url(options: argparse.Namespace) -> str | None:
    """Takes the topic off an mqtt URL, where mosquitto_sub's `-L` has it."""
    url: str = options.url or ""
    scheme, _, rest = url.partition("://")
    authority, _, topic = rest.partition("/")
    if scheme.lower() not in TOPIC_SCHEMES or not topic:
        return None
    options.url = f"{scheme}://{authority}"
    return topic


def secret(file: str, what: str) -> str:
    """The first line of a file. Raises ``UsageError``."""
    try:
        with open(os.path.expanduser(file), encoding="utf-8") as opened:
            return opened.read(PASSWORD_BYTES).split("\n", 1)[0]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{what} {file}: {getattr(error, 'strerror', None) or error}") from None


def _url(options: argparse.Namespace) -> str:
    given = [name for name in ("url", "host", "unix") if getattr(options, name)]
    if len(given) > 1:
        raise UsageError(f"--{given[0]} and --{given[1]} both say where the broker is")
    if options.url:
        if options.port:
            raise UsageError("the port of a URL stands in it: -p is of -h")
        return str(options.url)
    if options.unix:
        return "unix://" + quote(os.path.abspath(options.unix))
    tls = options.tls or options.cafile or options.cert or options.insecure or options.tls_server_name or options.psk_identity
    host = options.host or "localhost"
    if ":" in host and not host.startswith("["):
        host = f"[{host}]"
    return f"{'mqtts' if tls or options.port == TLS_PORT else 'mqtt'}://{host}" + (f":{options.port}" if options.port else "")


def _credentials(options: argparse.Namespace) -> dict[str, Any]:
    """Without any, the client takes what the URL says; that comes before the variables."""
    told: dict[str, Any] = {}
    in_url = "@" in (options.url or "")
    environment = {} if in_url else os.environ
    username = options.username if options.username is not None else environment.get("MQTTC_USERNAME")
    password: str | None
    if options.ask_password:
        from getpass import getpass

        password = getpass("password: ")
    elif options.password is not None:
        password = options.password
    elif options.password_file is not None:
        password = secret(options.password_file, "--password-file")
    else:
        password = environment.get("MQTTC_PASSWORD")
    if username is not None:
        told["username"] = username
    if password is not None:
        told["password"] = password
    return told


def _session(options: argparse.Namespace, connect: dict[str, Any]) -> dict[str, Any]:
    client_id = options.client_id or (f"{options.id_prefix}{os.getpid()}" if options.id_prefix else "")
    if options.client_id and options.id_prefix:
        raise UsageError("-i and -I both say who the client is")
    if options.keep_session and not client_id:
        raise UsageError("-c: a session that is to be resumed needs a client id (-i)")
    expiry = options.session_expiry if options.session_expiry is not None else connect.pop("session_expiry_interval", None)
    if expiry is None:
        expiry = NEVER if options.keep_session else 0
    told = {"client_id": client_id, "clean_start": not options.keep_session, "session_expiry": expiry}
    receive_maximum = options.receive_maximum or connect.pop("receive_maximum", None)
    if receive_maximum:
        told["receive_maximum"] = receive_maximum
    for name, option in (("maximum_packet_size", "max_packet_size"), ("topic_alias_maximum", "topic_alias_maximum")):
        if name in connect:
            told[option] = connect.pop(name)
    return told


def _headers(options: argparse.Namespace) -> dict[str, str]:
    headers = {}
    for line in options.headers:
        name, colon, value = line.partition(":")
        if not colon or not name.strip():
            raise UsageError(f"--header {line}: NAME: VALUE")
        headers[name.strip()] = value.strip()
    return headers


def make_client(options: argparse.Namespace, found: dict[str, dict[str, Any]], attempts: int | None, **more: Any) -> Client:
    """`found`: what `collect` gave. `attempts`: to reconnect, where the options say nothing. Raises ``UsageError``."""
    from mqttc.client import Client, Reconnect

    version = VERSIONS[options.protocol_version] if options.protocol_version else None
    five_only = [command for command, fields in found.items() if fields]
    if version in (3, 4) and five_only:
        raise UsageError(f"properties are of MQTT 5.0, not of -V {options.protocol_version}: {', '.join(five_only)}")
    connect = dict(found.get(CONNECT, {}))
    told: dict[str, Any] = {**_credentials(options), **_session(options, connect), **more}
    tries = attempts if options.reconnect_attempts is None else options.reconnect_attempts
    told.update(
        version=version or 5,
        keep_alive=options.keep_alive,
        will=_will(options, found.get(WILL, {})),
        tls=_tls(options),
        proxy=options.proxy,
        bind_address=options.bind,
        headers=_headers(options),
        connect_properties=properties(connect),
        connect_timeout_s=options.connect_timeout,
        reconnect=Reconnect(attempts=tries),
        retry_first=options.retry_first,
        on_state=_Teller(options).tell,
    )
    if version is None and not five_only and ("username" in told or "password" not in told):
        told.setdefault("fallback", (4, 3))
    try:
        return Client(_url(options), **told)
    except ValueError as error:
        raise UsageError(str(error)) from None


def _will(options: argparse.Namespace, fields: dict[str, Any]) -> Will | None:
    if options.will_topic is None:
        if options.will_payload is not None or options.will_retain or options.will_qos or fields:
            raise UsageError("a will needs --will-topic")
        return None
    from mqttc.codec import Will

    topic = valid(options.will_topic, "--will-topic ")
    payload = (options.will_payload or "").encode("utf-8", "surrogateescape")
    return Will(topic, payload, qos=options.will_qos, retain=options.will_retain, properties=properties(fields))


def _tls(options: argparse.Namespace) -> Tls:
    from mqttc.client import Tls

    if options.key and not options.cert:
        raise UsageError("--key: without --cert there is no use for it")
    password = os.environ.get("MQTTC_KEY_PASSWORD")
    if options.key_password_file is not None:
        password = secret(options.key_password_file, "--key-password-file")
    try:
        return Tls(
            ca_file=options.cafile,
            certificate_file=options.cert,
            key_file=options.key,
            key_password=password,
            verify=not options.insecure,
            server_name=options.tls_server_name,
            alpn=tuple(options.tls_alpn),
            psk=_psk(options),
            psk_identity=options.psk_identity,
        )
    except ValueError as error:
        raise UsageError(str(error)) from None


def _psk(options: argparse.Namespace) -> bytes | None:
    """Raises ``UsageError``, without the key in its text."""
    if options.psk is not None and options.psk_file is not None:
        raise UsageError("--psk and --psk-file both say the key")
    key = options.psk if options.psk_file is None else secret(options.psk_file, "--psk-file").strip()
    try:
        return None if key is None else bytes.fromhex(key)
    except ValueError:
        raise UsageError(f"{'--psk' if options.psk_file is None else '--psk-file'}: not hexadecimal digits, two a byte") from None


class _Teller:
    """Says on standard error when a connection is lost and when the next one is there."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._lost = False

    def tell(self, state: State, error: BaseException | None) -> None:
        if self._options.quiet:
            return
        if state.value == "reconnecting":
            if not self._lost or self._options.debug:
                complain(self._options.program, f"{error or 'the connection was lost'}; connecting again")
            self._lost = True
        elif state.value == "connected" and (self._lost or self._options.debug):
            complain(self._options.program, "connected again" if self._lost else "connected")
            self._lost = False


@contextlib.asynccontextmanager
async def connected(client: Client, found: dict[str, dict[str, Any]], *, drain: bool = True) -> AsyncIterator[Client]:
    """The client between connect and close. Without an error it waits for what is unfinished, and DISCONNECT has its properties."""
    await client.connect()
    try:
        yield client
    except BaseException:
        await client.close(drain=False)
        raise
    await client.close(drain=drain, properties=properties(found.get(DISCONNECT, {})) if client.version == 5 else None)
