"""What every real client can be asked for, whatever library or program does it."""

from __future__ import annotations

import abc
import queue
from collections.abc import Sequence
from dataclasses import dataclass

KEEP_ALIVE = 3600  # seconds; more than any test moves the clock by
TIMEOUT = 20.0  # seconds that any single event may take, on a loaded machine under a sanitizer too


@dataclass(frozen=True)
class Properties:
    """The properties of a 5.0 PUBLISH that reach its receivers."""

    content_type: str | None = None
    response_topic: str | None = None
    correlation_data: bytes | None = None
    user: tuple[tuple[str, str], ...] = ()
    message_expiry: int | None = None
    payload_format: int | None = None


@dataclass(frozen=True)
class Message:
    topic: str
    payload: bytes
    qos: int = 0
    retain: bool = False
    properties: Properties = Properties()


@dataclass(frozen=True)
class Options:
    """How a client connects, and what it subscribes to before it counts as open."""

    client_id: str
    version: int
    address: tuple[str, int] | str
    """Host and port, or the path of a Unix socket."""
    subscriptions: Sequence[tuple[str, int]] = ()
    session_expiry: int = 0
    """Seconds; 0 is a clean session that ends with the connection (3.x: any other value is clean session 0)."""
    will: Message | None = None
    topic_alias_maximum: int = 0
    transport: str = "tcp"
    """tcp, unix, tls, ws or wss; TLS trusts the CA of `listeners.folder`."""


class ClientError(AssertionError):
    """The client did not do what it was asked for, or not in time."""


class RealClient(abc.ABC):
    """One connection at a time. Every call waits for the broker's answer; nothing sleeps."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.messages: queue.Queue[Message] = queue.Queue()
        self.session_present: bool | None = None
        """Of the last CONNACK; None where the client does not tell."""

    leaves_with_will = False
    """Whether `close` asks for the will (5.0: reason 0x04)."""

    @abc.abstractmethod
    def open(self) -> None:
        """Connect and subscribe; returns after the SUBACK."""

    @abc.abstractmethod
    def publish(self, message: Message) -> None:
        """Returns after the PUBACK or PUBCOMP; at QoS 0 when it was sent."""

    @abc.abstractmethod
    def close(self) -> None:
        """Disconnect in order. Harmless when it is not open."""

    @abc.abstractmethod
    def abort(self) -> None:
        """Break the connection without a DISCONNECT."""

    def receive(self) -> Message:
        try:
            return self.messages.get(timeout=TIMEOUT)
        except queue.Empty:
            raise ClientError(f"{self.options.client_id} received nothing for {TIMEOUT} s") from None

    def tell(self, inbox: queue.Queue[tuple[RealClient, Message]]) -> None:
        """From now on put what arrives, with this client, in a queue that several clients share."""
        self.messages = _Shared(self, inbox)

    def receive_many(self, count: int) -> list[Message]:
        return [self.receive() for _ in range(count)]


class _Shared(queue.Queue[Message]):
    def __init__(self, client: RealClient, inbox: queue.Queue[tuple[RealClient, Message]]) -> None:
        super().__init__()
        self._client = client
        self._inbox = inbox

    def put(self, item: Message, block: bool = True, timeout: float | None = None) -> None:
        self._inbox.put((self._client, item), block, timeout)


_NAMES = {3: "3.1", 4: "3.1.1", 5: "5.0"}


@dataclass(frozen=True)
class Variant:
    """A client in one of the versions and over one of the transports that it speaks."""

    kind: str
    version: int
    transport: str = "tcp"

    def __str__(self) -> str:
        over = "" if self.transport == "tcp" else f"-{self.transport}"
        return f"{self.kind}-{_NAMES[self.version]}{over}"


VARIANTS = tuple(
    Variant(kind, version, transport)
    for kind, transports in {
        "paho": {"tcp": (3, 4, 5), "unix": (5,), "tls": (4, 5), "ws": (3, 5), "wss": (4, 5)},
        "aiomqtt": {"tcp": (3, 4, 5), "unix": (5,), "tls": (5,), "ws": (4,), "wss": (5,)},
        "gmqtt": {"tcp": (4, 5), "tls": (4, 5)},
        "mosquitto": {"tcp": (3, 4, 5), "unix": (4,), "tls": (4, 5)},
        "mqttjs": {"tcp": (3, 4, 5), "unix": (5,), "tls": (5,), "ws": (3, 4, 5), "wss": (4, 5)},
    }.items()
    for transport, versions in transports.items()
    for version in versions
)
