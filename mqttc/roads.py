"""The roads into a broker that Python drives: what HTTP requests become, and QUIC.

Everything but `QuicFiles` belongs to the control loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import socket
from collections import Counter
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Final

from mqttc import logs, native
from mqttc.adapters import Origin
from mqttc.adapters.adopt import adopt, socket_pair
from mqttc.adapters.exchange import HttpLimits
from mqttc.adapters.http import HttpSide
from mqttc.adapters.quic import QuicListener
from mqttc.adapters.quic_tls import Credentials, QuicSettings
from mqttc.adapters.upgrade import Decision, Kind, Refusal, Rules, decide, error_response
from mqttc.config import Certificate, Config, Listener
from mqttc.listen import Served
from mqttc.tls import ListenerFiles, read_file
from mqttc.web.app import make_app

_logger: Final = logging.getLogger(logs.LOGGER_NAME)


class QuicFiles(ListenerFiles):
    """A QUIC listener's files, as what its adapter takes."""

    listening: QuicListener | None = None
    """Where new settings go, with the loop that it belongs to."""
    loop: asyncio.AbstractEventLoop | None = None

    def load(self, config: Config, listener: Listener, certificates: list[Certificate]) -> None:
        own = certificates[0]
        settings = QuicSettings(
            certificate=read_file("certificate", own.certificate),
            key=read_file("key", own.key),
            key_password=own.key_password.encode() or None,
            client_ca=read_file("client_ca", listener.client_ca),
            client_certificate=listener.client_certificate,
            crl=read_file("crl", listener.crl),
            alpn=tuple(listener.protocols),
            idle_timeout_s=listener.idle_timeout,
            early_data=listener.early_data,
            stateless_retry=listener.stateless_retry,
            max_connections=config.limits.max_quic_connections,
            max_handshakes=config.limits.max_quic_handshakes,
            max_streams=config.limits.max_quic_streams,
            handshake_timeout_s=config.limits.connect_timeout,
        )
        Credentials.load(settings)  # ValueError says what cannot be used
        self.settings = settings
        if self.listening is not None and self.loop is not None:
            self.loop.call_soon_threadsafe(self.listening.reload, settings)


def _rules(listener: Listener) -> Rules:
    path = getattr(listener.address, "path", "") if listener.is_http else ""
    proxies = tuple(ipaddress.ip_network(network) for network in listener.trusted_proxies)
    return Rules(path, tuple(listener.allowed_origins), proxies)


class Roads:
    """``status``: counters and gauges of the whole broker, for its pages. ``quic``: the files of each QUIC listener, whose
    sockets are ours now."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        engine: native.Engine,
        served: Mapping[int, Served],
        quic: Mapping[int, QuicFiles],
        config: Config,
        status: Callable[[], Mapping[str, int]],
    ) -> None:
        limits = config.limits
        self._engine = engine
        self._served = served
        self._rules = {identifier: _rules(one.listener) for identifier, one in served.items()}
        self._stopping = False
        app = make_app(status, pages=config.http.pages, metrics=config.http.metrics, stopping=lambda: self._stopping)
        self._http = HttpSide(
            loop,
            app,
            self._adopted,
            HttpLimits(
                max_request_head=limits.max_request_head,
                max_http_connections=limits.max_http_connections,
                max_http_streams=limits.max_http_streams,
                http_timeout=limits.http_timeout,
            ),
        )
        self._quic: list[QuicListener] = []
        for identifier, files in quic.items():
            one = served[identifier]
            sockets = [one.bound.sockets.pop(0) for _ in list(one.bound.sockets)]
            files.listening = QuicListener(loop, sockets, self._adopted, identifier, _logger, files.settings, one.name, self._quic)
            files.loop = loop
            self._quic.append(files.listening)

    def stats(self) -> dict[str, int]:
        """Any thread."""
        total = Counter(self._http.stats())
        for listening in self._quic:
            total.update(listening.stats())
        return dict(total)

    async def end_http(self) -> None:
        """HTTP clients are told; their connections end as the engine ends what they carry, or after a moment."""
        self._stopping = True
        await self._http.close()

    async def close(self) -> None:
        """End QUIC, after the engine."""
        for listening in self._quic:
            await listening.close()

    def head(self, question: native.Question) -> None:
        """Answer what becomes of an HTTP connection whose first request head is here."""
        served = self._served[question.listener]
        try:
            decision = decide(question.head or b"", self._rules[question.listener], served.listener.is_tls, question.peer)
            self._answer(question, served, decision)
        except Exception as error:
            logs.emit(_logger, logging.ERROR, "http_failed", {"peer": question.peer, "listener": served.name, "error": repr(error)})
            with contextlib.suppress(Exception):
                self._engine.respond(question.id, error_response(Refusal(HTTPStatus.INTERNAL_SERVER_ERROR, "internal error")))

    def _answer(self, question: native.Question, served: Served, decision: Decision) -> None:
        if decision.kind is Kind.UPGRADE:
            remote = decision.proxied or decision.foreign_page
            self._engine.upgrade(question.id, decision.response, peer=decision.peer, remote=remote)
        elif decision.kind is Kind.RESPOND:
            fields: dict[str, logs.Field] = {"peer": decision.peer, "listener": served.name, "detail": decision.reason}
            logs.emit(_logger, logging.INFO, "http request refused", fields)
            self._engine.respond(question.id, decision.response)
        else:
            origin = Origin(
                listener=question.listener,
                peer=question.peer,
                secure=served.listener.is_tls,
                certificate=question.certificate,
                key_name=question.key_name,
                proxied=served.listener.proxy_protocol,
            )
            ours, theirs = socket_pair()
            self._engine.splice(question.id, theirs.detach())
            self._http.serve(ours, origin, self._rules[question.listener])

    def _adopted(self, origin: Origin, websocket: bool) -> socket.socket:
        return adopt(self._engine, origin, websocket)
