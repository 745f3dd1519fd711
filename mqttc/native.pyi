"""The border between the data plane and Python (floor F5).

Everything here may be called from any Python thread unless a line says otherwise. No worker thread ever
takes the GIL: what a worker has to tell waits in a ring and makes ``Engine.event_fd`` readable.
"""

from typing import Final

EVENT_NAMES: Final[tuple[str, ...]]
"""Text of ``LogEvent.event``, indexed by it."""

class LogEvent:
    """One log record of a worker. Text comes from the peer: escape it before it is shown."""

    wall_ms: Final[int]
    """Wall clock at the event, milliseconds since 1970."""
    level: Final[int]
    """A level of the ``logging`` module."""
    event: Final[int]
    """Index into ``EVENT_NAMES``."""
    reason: Final[int]
    """MQTT 5.0 reason code, 0 where there is none."""
    worker: Final[int]
    listener: Final[int]
    """Id that ``Engine.add_listener`` returned, -1 where the event belongs to no listener."""
    client_id: Final[str]
    peer: Final[str]
    detail: Final[str]

class Question:
    """A CONNECT or AUTH that waits, its connection parked, for ``Engine.answer``."""

    id: Final[int]
    kind: Final[int]
    """0 CONNECT, 1 AUTH."""
    listener: Final[int]
    peer: Final[str]
    client_id: Final[str]
    protocol: Final[int]
    """Protocol level of the CONNECT: 3, 4 or 5."""
    username: Final[str | None]
    password: Final[bytes | None]
    auth_method: Final[str | None]
    auth_data: Final[bytes | None]

class Engine:
    """The data plane: worker threads, sessions, retained messages, routing."""

    def __init__(self, *, response_information: str = ..., **settings: int) -> None:
        """Take the limits by name; an unknown name is a ``TypeError``."""

    def add_listener(
        self,
        fd: int,
        *,
        name: str,
        family: int,
        maximum_qos: int,
        max_connections: int,
        anonymous: int,
        auth: int,
        tcp_user_timeout_ms: int,
        keepalive_idle_s: int,
        server_reference: str,
    ) -> int:
        """Take ownership of a bound, listening, non-blocking socket, before ``start``; return the listener's id.

        ``family``: 0 TCP, 1 Unix. ``anonymous``: 0 deny, 1 allow, 2 loopback only (a Unix socket is
        loopback). ``auth``: 0 the ``anonymous`` rule decides about every CONNECT, 1 a CONNECT with
        credentials or an authentication method becomes a ``Question``.
        If it raises, the descriptor still belongs to the caller.
        """

    def start(self) -> None:
        """Start the worker threads."""

    def stop(self, timeout_ms: int) -> bool:
        """Close the listeners, disconnect clients (5.0: 0x8B), flush within the bound, join the threads.

        The GIL is released meanwhile. True if everything was flushed in time. Waiting log records
        and questions stay readable by ``events`` until ``close``.
        """

    def close(self) -> None:
        """Free everything. May be called again; stops first if that was not done.

        RuntimeError while another thread is in `start`, `stop` or `advance_clock`.
        """

    def stats(self) -> dict[str, int]:
        """Counters and gauges. Usable from ``__init__`` to ``close``."""

    def advance_clock(self, milliseconds: int, wall_milliseconds: int) -> None:
        """Move the monotonic and the wall clock of all workers forward (test seam)."""

    @property
    def event_fd(self) -> int:
        """Readable as long as log records or questions wait."""

    def events(self) -> list[LogEvent | Question]:
        """Take what waits, oldest first; maybe only a part, then ``event_fd`` stays readable."""

    def answer(self, question: int, reason_code: int, *, auth_data: bytes | None = None) -> None:
        """Decide a question: 0 admits, 0x18 goes on with an AUTH, 0x80 and above refuses.

        A question whose deadline passed or whose connection is gone is ignored.
        """

def live_objects() -> dict[str, int]:
    """Objects made and not yet freed, by kind, over all engines of the process."""
