"""The states of a client, and its counters."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class State(enum.Enum):
    NEW = "new"
    CONNECTING = "connecting"
    """The first connection is being made."""
    CONNECTED = "connected"
    RECONNECTING = "reconnecting"
    """The connection was lost; the next one is on its way, or waited for."""
    CLOSING = "closing"
    CLOSED = "closed"
    """By `close`, or because coming again makes no sense: then `Client.error` says why."""


@dataclass(slots=True)
class Stats:
    """Counters of a client since it was made."""

    connections: int = 0
    connect_failures: int = 0
    sessions_lost: int = 0
    """Reconnected, and the broker knew nothing of the session."""
    sent: int = 0
    """PUBLISH packets, repeated ones included."""
    resent: int = 0
    received: int = 0
    """PUBLISH packets, repetitions included."""
    repetitions: int = 0
    """Received again and not given out again."""
    dropped: int = 0
    """QoS 0 messages that an unread stream had no room for."""
    unclaimed: int = 0
    """Acknowledgements that nobody waited for."""
    callback_errors: int = 0
    pings: int = 0
    pauses: int = 0
    """Times that the socket was not read because a stream was full."""
    queue_full: int = 0
    expired: int = 0
    """Messages whose message_expiry_interval ended before they were sent."""
    redirects: int = 0
    """To another broker that one has named."""
    bytes_sent: int = 0
    bytes_received: int = 0
