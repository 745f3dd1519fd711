"""The load generator's engine (floor F5): MQTT clients as state machines on own threads without the GIL.

A ``Load`` holds clients in the order they were added; ranges of them are told what to do. Nothing here blocks: commands are mailed
to the threads, and ``counters`` shows what became of them. Client ``i`` lives on thread ``i % threads``, or where ``thread`` says.
"""

from collections.abc import Iterable
from typing import Final, Literal

HEADER_BYTES: Final[int]
"""Bytes at the start of every payload: publisher, sequence, time. No payload is shorter."""

class TlsClient:
    """What the clients' TLS connections share; given to any number of ``Load``s. Any thread."""

    def __init__(
        self,
        *,
        ca: bytes = b"",
        insecure: bool = False,
        server_name: str = "",
        certificate: bytes = b"",
        key: bytes = b"",
        password: bytes | None = None,
        alpn: Iterable[str] = (),
        minimum_version: Literal["1.2", "1.3"] = "1.2",
        maximum_version: Literal["1.2", "1.3"] = "1.3",
        ciphers: str = "",
        ciphersuites: str = "",
        resume: bool = False,
    ) -> None:
        """``ca``: certificates (PEM) that are trusted; empty: those that this system trusts. ``server_name``: host name or address that the
        server's certificate must be for. ``insecure``: it is not verified at all. ``certificate`` and ``key``: the clients' own, PEM or
        PKCS#12. ``resume``: each connection shows the last ticket that any was given; without it all make full handshakes. Raises
        ``ValueError`` with what cannot be used.
        """

    def stats(self) -> dict[str, int]:
        """handshakes (finished), resumed (of these), failed (that ended otherwise)."""

class Load:
    def __init__(
        self,
        address: str,
        port: int,
        *,
        threads: int = 1,
        version: int = 4,
        connect_batch: int = 200,
        tls: TlsClient | None = None,
        websocket_request: bytes = b"",
        websocket_accept: bytes = b"",
        websocket_frame_most: int = 256 << 20,
    ) -> None:
        """Clients of a broker at an IPv4 or IPv6 address, or a Unix socket's path (``port`` 0, ``address`` starting with / or @).

        ``version``: 4 or 5. ``connect_batch``: connections being made at the same time, per thread. ``tls``: they speak TLS.
        ``websocket_request``: they speak WebSocket (over TLS, with ``tls``), after this HTTP upgrade request (RFC 6455 section 4.1), the
        same for all; ``websocket_accept``: the Sec-WebSocket-Accept of its answer; ``websocket_frame_most``: bytes of a frame that a
        broker may send.
        """

    def add_client(
        self,
        client_id: str,
        *,
        username: str | None = None,
        password: bytes | None = None,
        clean: bool = True,
        session_expiry: int = 0,
        keep_alive: int = 0,
        source: str | None = None,
        verify: bool = True,
        ordered: bool = True,
        thread: int | None = None,
        again: bool = False,
    ) -> int:
        """One more client, not connected; its index.

        ``source``: local address to connect from. ``verify``: its deliveries are checked one by one, else by
        count and last sequence. ``ordered``: a publisher's messages come in the order in which they were sent; False: in any order, as
        retained messages do. ``again``: connect, DISCONNECT, and connect again for as long as it is told to connect (connect rate).
        """

    def subscribe_to(self, client: int, topic_filter: str, qos: int) -> None:
        """One more filter; sent with the others, as many as fit in a SUBSCRIBE of 60 000 bytes, after CONNACK."""

    def publish_to(
        self,
        client: int,
        topics: list[str],
        *,
        qos: int = 0,
        retain: bool = False,
        payload_least: int = 64,
        payload_most: int = 64,
        window: int = 10,
        burst: int = 1,
        rate: float = 0.0,
        copies: float = 1.0,
        loop: bool = True,
        timed: bool = False,
    ) -> None:
        """Makes the client a publisher: message n goes to topic n modulo their number.

        ``window``: messages under way at most; a message is through when it is acknowledged (QoS > 0) and
        delivered ``copies`` times (``loop``; without it the acknowledgement, or writing at QoS 0, is enough).
        ``burst``: messages of one write: sending waits until the window has room for that many. ``rate``: messages
        a second, sent when due whatever is under way (open loop), each stamped with the time it was due; 0: closed loop.
        ``timed``: its acknowledgements (PUBACK, PUBCOMP) count in ``acknowledgement_latency``; half a MiB for the client.
        """

    def start(self) -> None: ...
    def connect(self, first: int = 0, count: int | None = None) -> None: ...
    def disconnect(self, first: int = 0, count: int | None = None, *, abrupt: bool = False) -> None:
        """DISCONNECT and close; ``abrupt``: close without a word."""

    def publish(self, first: int = 0, count: int | None = None, *, messages: int = 0) -> None:
        """Publishers of the range start; each stops after ``messages`` more (0: when told)."""

    def stop_publishing(self) -> None: ...
    def reset(self) -> None:
        """End of the warm-up: the latency histogram starts anew. Sequences and totals go on."""

    def counters(self) -> dict[str, int]:
        """connected, subscribed (filters acknowledged), connects, refused (connections that did not come about), lost_connections,
        published, acknowledged, received, bytes_received, duplicates, reordered, foreign (not our payload),
        finished (publishers that sent all they were told to), errors, cpu_ns (of the threads)."""

    def failure(self) -> str | None:
        """Why the first connection that did not come about did not, where its transport can tell (TLS, WebSocket, dialling)."""

    def thread_cpu_ns(self) -> list[int]:
        """Processor time of each thread so far."""

    def delivered(self) -> list[int]:
        """Deliveries of each client's publications, duplicates not counted."""

    def published(self) -> list[int]:
        """Messages each client has published."""

    def received(self) -> list[int]:
        """Deliveries to each client, duplicates not counted."""

    def latency(self) -> dict[int, int]:
        """Histogram since ``reset``: upper bound of a bucket in ns (within 1 %) to its count, empty buckets left out."""

    def acknowledgement_latency(self) -> dict[int, int]:
        """The same from when a message was sent, or due, to when its publisher read the last acknowledgement; of ``timed`` publishers."""

    def close(self) -> None:
        """Stops the threads and frees everything. Idempotent."""
