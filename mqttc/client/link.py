"""One connection to the broker as a stream of bytes: TCP, TLS and Unix sockets here, WebSocket and QUIC beside.

A link belongs to the loop's thread. What it has read it gives to its handler at once; it holds no input. `write` never waits: the handler
is told when more than its share is unsent, and when there is room again.
"""

from __future__ import annotations

import asyncio
import os
import ssl
import sys
from typing import TYPE_CHECKING, Final, Protocol, cast

from mqttc.client.dial import connect_tcp
from mqttc.client.options import Options, Tls
from mqttc.client.proxy import connect_through, proxy_for
from mqttc.client.url import QUIC, UNIX, WEBSOCKET, Target
from mqttc.errors import ConnectError

if TYPE_CHECKING:
    from mqttc.client.link_websocket import WebSocketLink


PSK_CIPHERS: Final = "kECDHEPSK:kDHEPSK:kPSK:!eNULL:!SHA1"
"""Of TLS 1.2 with a pre-shared key, those with forward secrecy first. TLS 1.3 has its own."""


class Handler(Protocol):
    """Who uses a link."""

    def received(self, data: bytes) -> None: ...
    def room(self, there_is: bool) -> None:
        """Whether there is room to write."""
        ...

    def lost(self, error: BaseException | None) -> None:
        """The last call. None: the broker has ended the connection, or `close` did."""
        ...


class Link(Protocol):
    def write(self, data: bytes) -> None: ...
    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...
    def close(self) -> None:
        """Ends it once all is sent."""
        ...

    def abort(self) -> None:
        """Ends it now."""
        ...


class StreamLink(asyncio.Protocol):
    """Over a transport of asyncio."""

    def __init__(self, handler: Handler, max_write_bytes: int) -> None:
        self._handler = handler
        self._max_write_bytes = max_write_bytes
        self._transport: asyncio.Transport | None = None
        self._paused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(self._max_write_bytes)

    def data_received(self, data: bytes) -> None:
        self._handler.received(data)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._transport = None
        self._handler.lost(exc)

    def pause_writing(self) -> None:
        self._handler.room(False)

    def resume_writing(self) -> None:
        self._handler.room(True)

    def write(self, data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def pause_reading(self) -> None:
        if self._transport is not None and not self._paused and not self._transport.is_closing():
            self._paused = True
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        if self._transport is not None and self._paused:
            self._paused = False
            if not self._transport.is_closing():
                self._transport.resume_reading()

    def close(self) -> None:
        if self._transport is not None:
            self.resume_reading()  # TLS has to see the end of the other side
            self._transport.close()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()


def tls_context(tls: Tls | ssl.SSLContext | None, protocols: tuple[str, ...] = ()) -> ssl.SSLContext:
    """Raises ``ConnectError`` naming the file that cannot be used."""
    if isinstance(tls, ssl.SSLContext):
        return tls
    chosen = Tls() if tls is None else tls
    try:
        made = ssl.create_default_context(cafile=chosen.ca_file)
        if not chosen.verify:
            made.check_hostname = False
            made.verify_mode = ssl.CERT_NONE
        if chosen.certificate_file is not None:
            # without a password an encrypted key would ask the terminal
            made.load_cert_chain(chosen.certificate_file, chosen.key_file, password=chosen.key_password or "")
    except OSError as error:
        files = ", ".join(os.fspath(name) for name in (chosen.ca_file, chosen.certificate_file, chosen.key_file) if name is not None)
        raise ConnectError(f"tls: {files}: {os_text(error)}") from error
    if chosen.psk is not None:
        _share_key(made, chosen.psk_identity or "", chosen.psk)
    if chosen.alpn or protocols:
        made.set_alpn_protocols(chosen.alpn or protocols)
    return made


def _share_key(made: ssl.SSLContext, identity: str, key: bytes) -> None:
    """A broker that goes on with its certificate all the same, as TLS 1.3 lets it, is verified like any other."""
    if sys.version_info >= (3, 13):
        made.set_psk_client_callback(lambda hint: (identity, key))
        made.set_ciphers(PSK_CIPHERS)


def os_text(error: BaseException) -> str:
    """What went wrong, in words."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"TLS handshake failed: {error.verify_message}"
    if isinstance(error, ssl.SSLError) and error.reason:
        return f"TLS: {error.reason.lower().replace('_', ' ')}"
    if isinstance(error, OSError) and error.errno is not None and error.errno > 0:
        return os.strerror(error.errno)
    return str(error) or type(error).__name__


async def open_link(target: Target, options: Options, handler: Handler) -> Link:
    """Connected, handshakes done. Raises ``ConnectError``, ``OSError``. After a cancellation nothing is left."""
    if target.road == QUIC:
        from mqttc.client.link_quic import open_quic  # late: aioquic takes a while to import

        return await open_quic(target, options, handler)
    if target.road == WEBSOCKET:
        from mqttc.client.link_websocket import WebSocketLink  # late: the same

        if options.http2:
            from mqttc.client.link_http2 import Http2Link

            websocket: WebSocketLink = Http2Link(handler, options.max_write_bytes, target, options.headers)
        else:
            websocket = WebSocketLink(handler, options.max_write_bytes, target, options.headers)
        await _open_stream(target, options, websocket)
        return await _shaken(websocket)
    link = StreamLink(handler, options.max_write_bytes)
    await _open_stream(target, options, link)
    return link


async def _shaken(websocket: WebSocketLink) -> WebSocketLink:
    try:
        await websocket.accepted
    except BaseException:
        websocket.abort()
        raise
    return websocket


def _protocols(target: Target, options: Options) -> tuple[str, ...]:
    """What ALPN offers, if the application does not say otherwise."""
    if target.road != WEBSOCKET:
        return ()
    return ("h2",) if options.http2 else ("http/1.1",)


async def _open_stream(target: Target, options: Options, protocol: StreamLink) -> None:
    loop = asyncio.get_running_loop()
    if target.road == UNIX:
        await loop.create_unix_connection(lambda: protocol, target.path)
        return
    context = server_name = None
    if target.secure:
        context = tls_context(options.tls, _protocols(target, options))
        server_name = (options.tls.server_name if isinstance(options.tls, Tls) else None) or target.host
    proxy = proxy_for(options.proxy, target.host, target.secure)
    if proxy is None:
        connection = await connect_tcp(target.host, target.port, options.bind_address)
    else:
        connection = await connect_through(proxy, target.host, target.port, options.bind_address)
    try:
        await loop.create_connection(lambda: protocol, sock=connection, ssl=context, server_hostname=server_name)
    except BaseException:
        connection.close()
        protocol.abort()
        raise
