"""The border between the data plane and Python (floor F5).

Everything here may be called from any Python thread unless a line says otherwise. No worker thread ever
takes the GIL: what a worker has to tell waits in a ring and makes ``Engine.event_fd`` readable.
"""

from collections.abc import Iterable, Mapping, Sequence
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
    """What waits, its connection parked: a CONNECT or AUTH for ``Engine.answer``, an HTTP request for ``upgrade``,
    ``respond`` or ``splice``, a PUBLISH or SUBSCRIBE for ``answer_hook``."""

    id: Final[int]
    kind: Final[int]
    """0 CONNECT, 1 AUTH, 2 an HTTP request, of which only ``head`` and what is said of the peer are there; for hooks 3 PUBLISH,
    4 SUBSCRIBE, 5 PUBLISH of an in-process client."""
    listener: Final[int]
    peer: Final[str]
    client_id: Final[str]
    protocol: Final[int]
    """Protocol level of the CONNECT: 3, 4 or 5."""
    reason: Final[int]
    """Of an AUTH: 0x18 goes on with an exchange, 0x19 begins one."""
    username: Final[str | None]
    """Of an AUTH: what the answer before it named, if it was an admission."""
    password: Final[bytes | None]
    auth_method: Final[str | None]
    auth_data: Final[bytes | None]
    certificate: Final[bytes | None]
    """The client's X.509 certificate, DER, verified in the TLS handshake."""
    key_name: Final[str | None]
    """Name of the pre-shared key that the client has shown in the TLS handshake to hold."""
    common_name: Final[str | None]
    """Of a certificate that a trusted proxy has verified (PROXY protocol version 2)."""
    head: Final[bytes | None]
    """The head of the request with its empty line; of HTTP/2 the first 18 bytes of its preface."""
    topic: Final[str]
    """Of PUBLISH, its alias resolved."""
    payload: Final[bytes]
    """Of PUBLISH; of SUBSCRIBE its filters with their options, as received."""
    properties: Final[bytes]
    """Of PUBLISH, what is forwarded."""
    message_expiry: Final[int | None]
    """Of PUBLISH, seconds."""
    flags: Final[int]
    """Of PUBLISH, the low four bits of its first byte."""
    remote: Final[bool]
    """A proxy or a web page from elsewhere has made the connection: no program of this machine, whatever ``peer`` says."""

class Tls:
    """The TLS of a listener: certificates in force, and the keys that session tickets are sealed with.

    ``Engine.add_listener`` keeps a reference of its own. Nobody is admitted before the first ``load``.
    """

    def load(
        self,
        *,
        certificates: Sequence[tuple[bytes, bytes, bytes | None]],
        client_ca: bytes,
        crl: bytes,
        client_certificate: int,
        minimum_version: str,
        ciphers: str,
        ciphersuites: str,
        alpn: Sequence[str],
        keys: Mapping[bytes, bytes],
        key_hint: str,
    ) -> None:
        """Put this in force for handshakes that begin from now on; connections keep what they have.

        ``certificates``: chain (PEM or PKCS#12), key (PEM; empty: it stands in the chain) and password of each; the
        first one is for clients that name no host or an unknown one. ``client_certificate``: 0 not asked for,
        1 optional, 2 required. ``minimum_version``: ``1.2`` or ``1.3``. Empty ``ciphers`` (1.2) and ``ciphersuites``
        (1.3): the default. ``alpn``: in the order of preference; none: the extension is ignored. ``keys``: pre-shared
        keys by name. ``ValueError`` says what cannot be used; then the old ones stay in force.
        """

    def rotate(self) -> None:
        """Seal tickets with new keys; the keys before still open tickets until the next call."""

    def stats(self) -> dict[str, int]:
        """Handshakes: finished, of these resumed, failed; and loads."""

CompiledGrant = tuple[bytes | None, int, bool, str | None, bytes, int]
"""What `mqttc.auth.acl.compile_grant` makes: a table of rules or None, the time to live in milliseconds or -1, whether the client may do
everything, the user for the rules or None for CONNECT's, groups, and the milliseconds after which another is asked for or -1."""

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
        tls: Tls | None = None,
        http: bool = False,
        proxies: Sequence[str] | None = None,
        durability: int = 0,
        proxied: bool = False,
    ) -> int:
        """Take ownership of a bound, listening, non-blocking socket, before ``start``; return the listener's id.

        ``fd`` -1: no socket, the listener's connections come by ``adopt``. ``http``: connections begin with an HTTP
        request. ``proxies``: with a PROXY protocol header (before TLS), from these addresses or networks alone.
        ``proxied``: a connection's address is the client's only when its CONNECT is there, so it is counted then.

        ``family``: 0 TCP, 1 Unix. ``anonymous``: 0 deny, 1 allow, 2 loopback only (a Unix socket is
        loopback). ``auth``: 0 the ``anonymous`` rule decides about every CONNECT, 1 a CONNECT with
        credentials or an authentication method becomes a ``Question``, 2 every one does.
        If it raises, the descriptor still belongs to the caller.
        """

    def open_store(self, path: str, *, max_backlog_bytes: int, retry_ms: int, filters: Sequence[tuple[str, int]]) -> None:
        """Open the journal's file, which ``mqttc.store`` has made and checked, and bring back what it holds; before ``start``.

        ``filters``: topic filters with the durability (1 written, 2 synced) that messages have at least. The GIL is released
        meanwhile. ``ValueError`` says what is wrong with the file.
        """

    def recovered(self) -> dict[str, int]:
        """What ``open_store`` has brought back so far: sessions, subscriptions, deliveries, retained, expired, orphans."""

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

    def hold_clock(self, wall_milliseconds: int) -> None:
        """Time stands still from now on, at that Unix time, until ``advance_clock`` moves it and ``stop`` lets it go.

        RuntimeError after ``open_store`` or ``start``.
        """

    def advance_clock(self, milliseconds: int, wall_milliseconds: int, *, heard: bool = False) -> None:
        """Move the monotonic and the wall clock of all workers forward (test seam), and return when their timers have run.

        ``heard``: connections count as heard from meanwhile, so that keep alive ends none.
        """

    @property
    def event_fd(self) -> int:
        """Readable as long as log records or questions wait."""

    def events(self) -> list[LogEvent | Question]:
        """Take what waits, oldest first; maybe only a part, then ``event_fd`` stays readable."""

    def set_acl(self, table: bytes) -> None:
        """Put rules in force that ``mqttc.auth.acl`` has compiled. The first time before ``start``; later calls, one at a time,
        return when every worker has taken them over. ``ValueError``: not such a table.
        """

    def verdicts(self, *, on: bool, client_id: bool, address: bool) -> None:
        """Forget all remembered verdicts; ``on``: remember them from now on, those that ``answer`` allows it of.

        ``client_id``, ``address``: they depend on these too. What always counts: listener, version, user name,
        password, what the transport proves, and whether the client would get in without credentials.
        """

    def answer(
        self,
        question: int,
        reason_code: int,
        *,
        auth_data: bytes | None = None,
        username: str | None = None,
        lasts_ms: int = 0,
        keep_ms: int = 0,
        grant: CompiledGrant | None = None,
    ) -> None:
        """Decide a question: 0 admits, 0x18 goes on with an AUTH, 0x80 and above refuses.

        ``username``: whom the client was found to be; questions about its AUTH packets tell it again. ``lasts_ms``: its
        connection ends after as long (5.0: 0xA0), 0: never. ``keep_ms``: a worker may give the same verdict about the
        same CONNECT by itself for as long, 0: it must ask; not with a ``grant``. See
        `CompiledGrant`.

        A question whose deadline passed or whose connection is gone is ignored.
        """

    def regrant(self, question: int, grant: CompiledGrant, *, whatever: bool = False) -> None:
        """Another grant for the connected client that a question of a SUBSCRIBE or about a grant's end is about. ``whatever``: in place of
        any that it has; else only of the one whose end was asked about."""

    def hooks(self, *, publish: Iterable[str] = (), subscribe: bool = False, allow: bool = False) -> None:
        """From now on ask about messages whose topic one of these filters matches, and about every SUBSCRIBE, in place of what was
        asked about before.

        Questions are of the kinds 3 (PUBLISH), 4 (SUBSCRIBE) and 5 (PUBLISH of an in-process client). ``allow``: what cannot be asked
        about, because too many questions are open, passes; else it is refused. ``ValueError``: no topic filter. Callers take turns.
        """
    def answer_hook(self, question: int, verdict: int, reason_code: int = 0, data: bytes = b"", *, inside: bool = False) -> None:
        """What becomes of a PUBLISH or SUBSCRIBE; any thread. An answer that comes too late is nobody's.

        ``verdict``: 0 as it came; 1 ``data`` instead: a PUBLISH of MQTT 5.0, or for each filter of SUBSCRIBE a reason code (below 0x80:
        it is subscribed to), options, length (two bytes) and filter; 2 refuse a PUBLISH with ``reason_code``, below 0x80: acknowledge
        it only.
        ``inside``: the question was of kind 5.
        """
    def upgrade(self, question: int, response: bytes, *, peer: str | None = None, remote: bool = False) -> None:
        """The HTTP connection gets this response (101) and becomes a WebSocket.

        ``peer``: the client, where a proxy has told. ``remote``: see ``Question.remote``.
        """

    def respond(self, question: int, response: bytes) -> None:
        """The HTTP connection gets this response, whole, and ends."""

    def splice(self, question: int, fd: int) -> None:
        """All of the HTTP connection's bytes, the head first, go through ``fd``, a stream socket that is taken over."""

    def adopt(
        self,
        fd: int,
        listener: int,
        *,
        peer: str,
        websocket: bool,
        certificate: bytes | None = None,
        key_name: str | None = None,
        remote: bool = False,
    ) -> None:
        """A worker serves ``fd``, a non-blocking stream socket that is taken over, like a connection of that listener.

        ``websocket``: its bytes are WebSocket frames. ``certificate``, ``key_name``: what the client has proved to the caller.
        """

def acl_decide(
    table: bytes | None,
    action: str,
    text: str,
    *,
    client_id: str,
    username: str | None = None,
    listener: int = 0,
    grant: CompiledGrant | None = None,
    whole: bool = False,
) -> tuple[bool, str, bool, int]:
    """What workers would decide: whether it is allowed, what decided (``rule``, ``default``, ``superuser``, ``name``, ``nothing``),
    whether that stands in the grant, and the rule's number.

    ``action``: one of ``mqttc.auth.grant.ACTIONS``, or ``connect``: may this user have that client id? ``whole``: of a filter,
    nothing inside it may be denied.
    """

def live_objects() -> dict[str, int]:
    """Objects made and not yet freed, by kind, over all engines of the process."""
