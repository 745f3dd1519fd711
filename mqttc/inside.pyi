"""The border between the program around the broker and the workers (floor F5).

Everything here may be called from any Python thread. No worker waits for it or takes the GIL: requests lie in the worker's
inbox, and what a worker has to say lies in one inbox for all, which makes ``Port.fd`` readable. `mqttc.embed` stands on this.
"""

from collections.abc import Iterable
from typing import Final, Generic, TypeVar

from mqttc.native import Engine

OPEN: Final[int]
"""A new in-process client on ``worker``; the answer's ``session`` names it."""
CLOSE: Final[int]
"""``session`` ends."""
PUBLISH: Final[int]
"""``session`` publishes ``data``, an encoded PUBLISH of MQTT 5.0. Answered when it would be acknowledged; ``count``: for how
many sessions and shared groups it is. With a ticket."""
SUBSCRIBE: Final[int]
"""``session`` subscribes to the filter ``data`` with ``options`` (section 3.8.3.1) and the subscription identifier ``number``."""
UNSUBSCRIBE: Final[int]
"""``session`` unsubscribes from the filter ``data``."""
TAKEN: Final[int]
"""``session`` is done with ``number`` messages of ``cursor`` bytes. Not answered."""
LIST: Final[int]
"""Sessions of ``worker`` (``options`` 1: those whose client is connected), ``number`` at most, from slot ``cursor`` on; the
answer's ``cursor`` says where to go on, 0: it was the last page."""
LOOK: Final[int]
"""The session of the client ``data``, with its subscriptions; ``count`` 0: there is none."""
DISCONNECT: Final[int]
"""The client ``data`` is disconnected with the reason code ``options``; ``count`` 0: it is not connected."""
END: Final[int]
"""The session of the client ``data`` ends; ``count`` 0: there is none."""
RETAINED: Final[int]
"""``number`` retained messages at most; ``data`` is the filter (``split`` bytes) and the topic behind which to go on, ``cursor``
65535 or what the answer before said. The answer's last ``split`` bytes are that topic; ``cursor`` 65535: it was the last.
``options`` 1: of properties and payloads their sizes alone."""
CLEAR: Final[int]
"""Retained messages are deleted, about ``number``; all else as in ``RETAINED``."""
RECEIVERS: Final[int]
"""Sessions of ``worker`` with a filter that matches the topic ``data``, ``number`` at most, from ``cursor`` on; see ``LIST``."""
DECIDE: Final[int]
"""Whether the connected client that ``data`` begins with (``split`` bytes) may do the action ``options`` on the topic or filter behind
it; with 128 added, on all that lies in the filter. ``count`` 0: it is not connected."""

CONNECTED: Final[int]
DISCONNECTED: Final[int]
CONNECTION_LOST: Final[int]
TAKEN_OVER: Final[int]
SUBSCRIBED: Final[int]
UNSUBSCRIBED: Final[int]
DROPPED: Final[int]
SESSION_EXPIRED: Final[int]

class RawMessage:
    """A message for an in-process client. ``Port`` makes these, as the subclass that it was given."""

    @property
    def topic(self) -> str: ...
    @property
    def payload(self) -> bytes: ...
    @property
    def qos(self) -> int: ...
    @property
    def retain(self) -> bool: ...
    @property
    def message_expiry(self) -> int | None:
        """Seconds left when it was handed over; None: it does not expire."""
    @property
    def raw_properties(self) -> bytes:
        """The properties that are forwarded (section 3.3.2.3), encoded, without a length in front."""
    @property
    def identifiers(self) -> tuple[int, ...]:
        """Subscription identifiers of the filters that it came by."""

Message = TypeVar("Message", bound=RawMessage)

class Delivery(Generic[Message]):
    """Messages for one in-process client, in order; it owes a ``TAKEN`` for them."""

    session: Final[int]
    size: Final[int]
    """Bytes of all of them."""
    dropped: Final[int]
    """Messages that this client has lost so far."""
    @property
    def messages(self) -> list[Message]: ...

class Answer:
    """Of a request with a ticket."""

    ticket: Final[int]
    session: Final[int]
    cursor: Final[int]
    count: Final[int]
    split: Final[int]
    reason: Final[int]
    """MQTT 5.0 reason code."""
    result: Final[bytes]

class RawEvent:
    """Something that ``Port.hear`` asked for. Text comes from the peer."""

    kind: Final[int]
    reason: Final[int]
    listener: Final[int]
    """Id that ``Engine.add_listener`` returned, -1 where the event belongs to no connection."""
    level: Final[int]
    """Of the protocol: 3, 4 or 5; 0 where the event belongs to no connection."""
    wall_ms: Final[int]
    dropped: Final[int]
    """Messages that this client has lost so far."""
    peer: Final[str]
    client_id: Final[str]
    username: Final[str]
    detail: Final[str]

class Port(Generic[Message]):
    """What the program asks of the workers of one engine, and what they tell it."""

    def __init__(self, owner: Engine, kind: type[Message]) -> None:
        """``kind``: the class of messages."""
    @property
    def fd(self) -> int:
        """Readable as long as something waits for ``receive``."""
    @property
    def workers(self) -> int: ...
    def hear(self, events: Iterable[int]) -> None:
        """The workers tell of these events from now on, and of no others."""
    def home(self, client_id: bytes) -> int:
        """The worker that has the session of that client, if there is one."""
    def ask(
        self,
        verb: int,
        *,
        worker: int = -1,
        ticket: int = 0,
        session: int = 0,
        cursor: int = 0,
        number: int = 0,
        split: int = 0,
        options: int = 0,
        data: bytes = b"",
    ) -> None:
        """Send a request to ``worker``, without one to the worker of ``session``; ``ticket`` 0: no answer is wanted.

        ``RuntimeError`` if the engine does not run.
        """
    def receive(self) -> list[Answer | Delivery[Message] | RawEvent]:
        """Take all that waits, in the order of each worker."""
