"""How a run's connections reach the broker: its numeric address, TLS, WebSocket, and where the native clients do not speak it, a relay."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import ssl
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

from mqttc.bench.profile import Profile, RunError, Target
from mqttc.load import Load, TlsClient

if TYPE_CHECKING:
    from wsproto import WSConnection

    from mqttc.bench.relay import Relay

TIMEOUT_S = 10.0
"""For each step of a blocking connection: dialling, handshakes, an answer."""


class Stream(Protocol):
    """A blocking connection; sockets are such."""

    def sendall(self, data: bytes, /) -> None: ...
    def recv(self, most: int, /) -> bytes:
        """Empty at the end."""
        ...

    def close(self) -> None: ...


class HandshakeError(ConnectionError):
    """What answers does not speak WebSocket, or refuses us."""


def reason_of(error: OSError) -> str:
    """What went wrong, in words."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"TLS handshake failed: {error.verify_message}"
    if isinstance(error, ssl.SSLError) and error.reason:
        return f"TLS: {error.reason.lower().replace('_', ' ')}"
    if isinstance(error, ConnectionError) and error.errno:
        return os.strerror(error.errno)  # asyncio's own text names the address instead
    return error.strerror or str(error)


class WebSocketStream:
    """A blocking WebSocket client over another stream."""

    def __init__(self, stream: Stream, target: Target) -> None:
        from wsproto import ConnectionType, WSConnection
        from wsproto.events import Request

        self._stream = stream
        self._connection = WSConnection(ConnectionType.CLIENT)
        self._ready = bytearray()
        self._ended = False
        self._accepted = False
        stream.sendall(self._connection.send(Request(host=target.authority, target=target.path, subprotocols=["mqtt"])))
        while not self._accepted:
            if self._ended:
                raise HandshakeError("closed during the WebSocket handshake")
            self._read()

    def sendall(self, data: bytes, /) -> None:
        from wsproto.events import BytesMessage

        self._stream.sendall(self._connection.send(BytesMessage(data)))

    def recv(self, most: int, /) -> bytes:
        while not self._ready and not self._ended:
            self._read()
        data = bytes(self._ready[:most])
        del self._ready[:most]
        return data

    def close(self) -> None:
        self._stream.close()

    def _read(self) -> None:
        from wsproto.events import AcceptConnection, BytesMessage, CloseConnection, Ping, RejectConnection, TextMessage
        from wsproto.utilities import RemoteProtocolError

        data = self._stream.recv(65536)
        if not data:
            self._ended = True
            return
        try:
            self._connection.receive_data(data)
            for event in self._connection.events():
                if isinstance(event, AcceptConnection):
                    if event.subprotocol != "mqtt":
                        raise HandshakeError("what answers there does not agree to the WebSocket subprotocol mqtt")
                    self._accepted = True
                elif isinstance(event, RejectConnection):
                    raise HandshakeError(f"the WebSocket handshake was answered with status {event.status_code}")
                elif isinstance(event, BytesMessage):
                    self._ready += event.data
                elif isinstance(event, Ping):
                    self._stream.sendall(self._connection.send(event.response()))
                elif isinstance(event, CloseConnection):
                    self._ended = True
                elif isinstance(event, TextMessage):
                    raise HandshakeError("a WebSocket text message: what answers there does not speak MQTT")
        except RemoteProtocolError as error:
            raise HandshakeError(f"what answers there does not speak WebSocket: {error}") from error


def upgrade_request(target: Target) -> tuple[bytes, bytes]:
    """A WebSocket handshake's request head, and the Sec-WebSocket-Accept that answers it (RFC 6455 section 4)."""
    from wsproto import ConnectionType, WSConnection
    from wsproto.events import Request
    from wsproto.utilities import generate_accept_token

    connection: WSConnection = WSConnection(ConnectionType.CLIENT)
    request = connection.send(Request(host=target.authority, target=target.path, subprotocols=["mqtt"]))
    key = re.search(rb"(?i)\r\nsec-websocket-key: *(\S+)\r\n", request)
    assert key is not None
    return request, generate_accept_token(key[1])


def tls_context(profile: Profile, protocols: list[str] | None = None) -> ssl.SSLContext:
    """For what Python's ssl does. Raises ``RunError`` naming the file that cannot be used."""
    try:
        context = ssl.create_default_context(cafile=profile.ca_file)
    except OSError as error:
        raise RunError(f"ca_file: {profile.ca_file}: {reason_of(error)}") from error
    if profile.insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if profile.certificate_file is not None:
        try:
            context.load_cert_chain(profile.certificate_file, profile.key_file, password="")  # an encrypted key would ask the terminal
        except OSError as error:
            raise RunError(f"certificate_file, key_file: {reason_of(error)}") from error
    if protocols:
        context.set_alpn_protocols(protocols)
    return context


def _read(key: str, path: str | None) -> bytes:
    if path is None:
        return b""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise RunError(f"{key}: {path}: {error.strerror or error}") from error


class Road:
    """The way of a profile's connections. Within ``with``, what it needs is there: a relay's thread and its socket."""

    def __init__(self, profile: Profile) -> None:
        self.profile = profile
        self.target = profile.target()
        self.address = self.target.host
        self.port = self.target.port
        self.tls: TlsClient | None = None
        self._context: ssl.SSLContext | None = None
        self._relay: Relay | None = None

    def __enter__(self) -> Self:
        target = self.target
        if target.port:
            try:
                self.address = str(socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)[0][4][0])
            except OSError as error:
                raise RunError(f"{self.profile.shown_url()}: {error.strerror or error}") from error
        if target.relay:
            from mqttc.bench.relay import Relay

            self._relay = Relay(self.profile, self.address)
            self._relay.start()
            self.address, self.port = self._relay.path, 0
        elif target.tls:
            self._context = tls_context(self.profile, ["http/1.1"] if target.websocket else None)
            self.tls = self._native_tls()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._relay is not None:
            self._relay.stop()

    def load(self, *, threads: int = 1) -> Load:
        """A load generator whose clients take this way."""
        batch = self.profile.connect_batch
        if self._relay is not None:
            batch = max(1, min(batch, self._relay.backlog // threads))
        request, accept = upgrade_request(self.target) if self.target.websocket and not self.target.relay else (b"", b"")
        return Load(
            self.address,
            self.port,
            threads=threads,
            version=self.profile.version,
            connect_batch=batch,
            tls=self.tls,
            websocket_request=request,
            websocket_accept=accept,
        )

    def dial(self) -> Stream:
        """A blocking connection with all its layers. Raises ``OSError``."""
        made: socket.socket
        if self.port == 0:
            made = socket.socket(socket.AF_UNIX)
            made.settimeout(TIMEOUT_S)
        else:
            made = socket.create_connection((self.address, self.port), TIMEOUT_S)
        with contextlib.ExitStack() as undo:
            undo.callback(lambda: made.close())
            if self.port == 0:
                made.connect("\0" + self.address[1:] if self.address.startswith("@") else self.address)
            if self._context is not None:
                made = self._context.wrap_socket(made, server_hostname=self.target.host)
            stream: Stream = made
            if self.target.websocket and self._relay is None:
                stream = WebSocketStream(made, self.target)
            undo.pop_all()
        return stream

    def failure(self) -> str | None:
        """Why the relay could not reach the broker, or lost it."""
        return self._relay.failure if self._relay is not None else None

    def thread_cpu_ns(self) -> list[int]:
        """Processor time of the client side's Python threads: none without a relay."""
        return [] if self._relay is None else [self._relay.cpu_ns()]

    def descriptors(self, clients: int) -> int:
        """That many clients need."""
        return clients if self._relay is None else clients * 2 + -(-clients // self.profile.streams)

    def remarks(self) -> list[str]:
        """What a reader of the figures must know."""
        if self._relay is None:
            return []
        kind = {"h2": "HTTP/2", "quic": "QUIC"}[self.target.relay]
        return [
            f"the client side of this run is Python: {kind} is spoken by a relay, not by the native clients. "
            "Messages per second and latency are the relay's; broker CPU is the broker's"
        ]

    def _native_tls(self) -> TlsClient:
        profile = self.profile
        try:
            return TlsClient(
                ca=_read("ca_file", profile.ca_file),
                insecure=profile.insecure,
                server_name=self.target.host,
                certificate=_read("certificate_file", profile.certificate_file),
                key=_read("key_file", profile.key_file),
                alpn=["http/1.1"] if self.target.websocket else [],
                resume=profile.resume,
            )
        except ValueError as error:
            raise RunError(f"ca_file, certificate_file, key_file: {error}") from error
