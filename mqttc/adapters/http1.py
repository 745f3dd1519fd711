"""HTTP/1.1 on a spliced connection: h11 parses and serialises, one request at a time, the application answers.

A head is cut out of the stream before h11 sees it, so that its bound is exact and what another implementation could read
differently is refused (`upgrade.ambiguity`). While a response runs, at most one read of pipelined requests is held.
"""

from __future__ import annotations

import asyncio
import logging
from http import HTTPStatus
from typing import Final

import h11

from mqttc.adapters import Origin
from mqttc.adapters.exchange import Exchange, Shared, make_scope
from mqttc.adapters.line import Line
from mqttc.adapters.upgrade import Refusal, Rules, ambiguity, date_header, error_response, is_upgrade, split_target

_HEAD_END: Final = b"\r\n\r\n"


class Http1:
    """Speaker of a line; see `line.Speaker`. Also the outlet of its one response at a time; see `exchange.Outlet`."""

    def __init__(self, line: Line, shared: Shared, origin: Origin, rules: Rules) -> None:
        self._line = line
        self._shared = shared
        self._origin = origin
        self._rules = rules
        self._input = bytearray()
        """Part of a head, or what came behind the request that runs."""
        self._parser: h11.Connection | None = None
        """Of the request that is read or answered; None between requests."""
        self._request: h11.Request | None = None
        self._body = bytearray()
        self._exchange: Exchange | None = None
        self._ending = False
        self._drained = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._arm()

    # ------------------------------------------------------------------------------ the line's calls

    def received(self, data: bytes) -> None:
        if self._exchange is not None:
            self._input += data
            self._line.pause()
        elif self._parser is not None:
            self._feed(data)
        else:
            self._input += data
            self._next()

    def room(self) -> None:
        self._drained.set()

    def ended(self) -> None:
        self._ending = True
        if self._exchange is None:
            self._line.finish()

    def lost(self) -> None:
        self._disarm()
        if self._exchange is not None:
            self._exchange.cancel()
            self._exchange = None

    def end(self) -> None:
        self._ending = True
        if self._exchange is None:
            self._line.finish()

    # ------------------------------------------------------------------------------ reading a request

    def _next(self) -> None:
        """Look for a head in the input."""
        while self._input.startswith(b"\r\n"):  # RFC 9112 section 2.2
            del self._input[:2]
        limit = self._shared.limits.max_request_head
        end = self._input.find(_HEAD_END)
        if (end < 0 and len(self._input) > limit) or end + len(_HEAD_END) > limit:
            self._refuse(Refusal(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"the head has more than {limit} bytes"))
        elif end < 0:
            line_end = self._input.find(b"\n")
            if line_end == 0 or (line_end > 0 and self._input[line_end - 1] != ord("\r")):
                # Such a head never ends for us.
                self._refuse(Refusal(HTTPStatus.BAD_REQUEST, "a line ends with LF alone"))
        else:
            head = bytes(self._input[: end + len(_HEAD_END)])
            rest = bytes(self._input[end + len(_HEAD_END) :])
            self._input.clear()
            self._arm()
            self._begin(head, rest)

    def _begin(self, head: bytes, rest: bytes) -> None:
        limits = self._shared.limits
        problem = ambiguity(head)
        if problem:
            self._refuse(Refusal(HTTPStatus.BAD_REQUEST, problem))
            return
        self._parser = h11.Connection(h11.SERVER, max_incomplete_event_size=limits.max_request_head)
        try:
            self._parser.receive_data(head)
            event = self._parser.next_event()
        except h11.RemoteProtocolError as error:
            self._refuse(Refusal(error.error_status_hint, "this is not a valid HTTP request"))
            return
        if not isinstance(event, h11.Request):
            self._refuse(Refusal(HTTPStatus.BAD_REQUEST, "this is not an HTTP request"))
            return
        self._request = event
        self._body.clear()
        headers = list(event.headers)
        if is_upgrade(headers):
            self._refuse(Refusal(HTTPStatus.BAD_REQUEST, "WebSocket is for the first request of a connection: open a new one"))
        elif any(name == b"content-length" and int(value) > limits.max_request_body for name, value in headers):
            self._refuse_body()
        elif event.method == b"CONNECT" or not (split_target(event.target)[0] or event.target == b"*"):
            self._refuse(Refusal(HTTPStatus.BAD_REQUEST, "this is no proxy"))
        else:
            if self._parser.they_are_waiting_for_100_continue and not rest:
                self._line.write(self._parser.send(h11.InformationalResponse(status_code=100, headers=[])))
            self._feed(rest)

    def _feed(self, data: bytes) -> None:
        parser = self._parser
        assert parser is not None
        try:
            if data:
                parser.receive_data(data)
            while True:
                event = parser.next_event()
                if isinstance(event, h11.Data):
                    self._body += event.data
                    if len(self._body) > self._shared.limits.max_request_body:
                        self._refuse_body()
                        return
                elif isinstance(event, h11.EndOfMessage):
                    self._input += parser.trailing_data[0]
                    self._run()
                    return
                else:
                    return
        except h11.RemoteProtocolError as error:
            self._refuse(Refusal(error.error_status_hint, "the body is not well-formed"))

    def _run(self) -> None:
        request = self._request
        assert request is not None
        self._disarm()
        path, query = split_target(request.target)
        scope = make_scope(
            method=request.method,
            path=path or request.target,
            query=query,
            headers=list(request.headers),
            http_version=request.http_version.decode(),
            origin=self._origin,
            rules=self._rules,
        )
        body = bytes(self._body)
        self._body.clear()
        self._exchange = Exchange(self._shared, self._origin, scope, body, self, self._done)

    def _refuse_body(self) -> None:
        limit = self._shared.limits.max_request_body
        self._refuse(Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the body has more than {limit} bytes"))

    def _refuse(self, refusal: Refusal) -> None:
        """Answer a request that does not reach the application, and close."""
        self._shared.count("http_refused")
        self._shared.log(logging.INFO, "http_refused", self._origin, status=int(refusal.status), detail=refusal.reason)
        self.refuse(refusal)

    # --------------------------------------------------------------------------- the exchange's calls

    def start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        assert self._parser is not None
        fields = headers if any(name == b"date" for name, _ in headers) else [*headers, date_header()]
        if self._ending:
            fields = [*fields, (b"connection", b"close")]
        reason = HTTPStatus(status).phrase.encode()
        self._line.write(self._parser.send(h11.Response(status_code=status, reason=reason, headers=fields)))

    def write(self, data: bytes) -> None:
        assert self._parser is not None
        self._line.write(self._parser.send(h11.Data(data=data)))

    async def drain(self) -> None:
        while self._line.full:
            self._drained.clear()
            await self._drained.wait()

    def complete(self) -> None:
        assert self._parser is not None
        self._line.write(self._parser.send(h11.EndOfMessage()))

    def refuse(self, refusal: Refusal) -> None:
        self._disarm()
        self._ending = True
        self._parser = None
        head_only = self._request is not None and self._request.method == b"HEAD"
        self._line.write(error_response(refusal, body=not head_only))
        self._line.finish()

    def abort(self) -> None:
        self._line.abort()

    def _done(self) -> None:
        """The response is written: the next request, or the end."""
        self._exchange = None
        parser, self._parser, self._request = self._parser, None, None
        if not self._line.open:
            return
        if self._ending or parser is None or parser.our_state is not h11.DONE or parser.their_state is not h11.DONE:
            self._line.finish()
            return
        self._arm()
        if self._input:
            self._next()
        if self._exchange is None:
            # Not before what is here was answered: input is held for one request at most.
            self._line.resume()

    # ------------------------------------------------------------------------------------------ time

    def _arm(self) -> None:
        """Idle, head and body have ``http_timeout`` each; of a response the exchange takes care."""
        self._disarm()
        self._timer = self._shared.loop.call_later(self._shared.limits.http_timeout, self._expired)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _expired(self) -> None:
        self._timer = None
        if self._parser is None and not self._input:
            self._line.finish()  # idle
            return
        self._shared.count("http_timeouts")
        self._refuse(Refusal(HTTPStatus.REQUEST_TIMEOUT, "the request takes too long"))
