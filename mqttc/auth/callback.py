"""A web service that decides: one POST for each client, with a JSON object about it.

It is sent ``client_id``, ``username``, ``password`` (or ``password_base64``, if it is no UTF-8), ``address``, ``listener``, ``transport``,
``protocol`` and ``certificate``; what is not known is null. It answers with status 200 and an object: ``result`` is ``allow``, ``deny`` or
``ignore``; ``username``, ``acl``, ``groups``, ``superuser`` and ``expires_in`` (seconds) may stand beside ``allow``. ``Cache-Control:
max-age`` says for how long that may be remembered. Everything else is a failure.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import math
import re
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from mqttc import logs
from mqttc.auth import Request
from mqttc.auth.claims import grant_of
from mqttc.auth.grant import Grant, with_groups
from mqttc.auth.source import BUSY, FAILED, IGNORE, UNAVAILABLE, Answer, Outcome, Source, missing_extra, secret_text
from mqttc.auth.web import read_bounded, tls_context, web_client
from mqttc.config_auth import WebService

if TYPE_CHECKING:
    import httpx

MAXIMUM_ANSWER_BYTES: Final = 1024 * 1024
_WHERE: Final = "auth.http"
_KNOWN: Final = frozenset({"result", "username", "acl", "groups", "superuser", "expires_in"})
_MAX_AGE = re.compile(r"(?:^|[,\s])max-age\s*=\s*\"?(\d{1,10})")
_logger: Final = logging.getLogger(logs.LOGGER_NAME)


class HttpSource(Source):
    name = "http"
    depends = frozenset({"client_id", "address"})
    takes_passwords = True

    def __init__(self, section: WebService) -> None:
        self._section = section
        try:
            import httpx  # noqa: F401
        except ImportError as error:
            raise missing_extra(_WHERE, "auth-http", error) from None
        tls_context(_WHERE, section.ca, section.certificate, section.key)  # so that files are looked at now
        token = secret_text(_WHERE, section.token_file, section.token)
        self._headers = {"content-type": "application/json", "accept": "application/json"}
        if token:
            self._headers["authorization"] = f"Bearer {token}"
        self._client: httpx.AsyncClient | None = None
        self._slots: asyncio.Semaphore | None = None
        self._waiting = 0
        self._requests = 0
        self._failures = 0

    async def start(self) -> None:
        section = self._section
        self._slots = asyncio.Semaphore(section.max_concurrent)
        self._client = web_client(
            _WHERE, "auth-http", section.timeout, section.ca, limit=section.max_concurrent, certificate=section.certificate, key=section.key
        )

    async def close(self) -> None:
        if self._client is not None:
            await self._client.aclose()

    async def decide(self, request: Request, state: dict[str, Any]) -> Outcome:
        if request.auth_method is not None:
            return IGNORE
        assert self._client is not None and self._slots is not None
        if self._waiting >= self._section.max_waiting:
            return BUSY
        self._waiting += 1
        try:
            async with self._slots, asyncio.timeout(self._section.timeout):
                self._requests += 1
                return await self._ask(self._client, request)
        except Exception as error:  # of the network, of TLS, of what was answered: none of them is an answer
            self._failures += 1
            logs.emit(_logger, logging.ERROR, "auth_http_failed", {"client_id": request.client_id, "problem": repr(error)[:300]})
            return FAILED if self._section.on_failure == "deny" else UNAVAILABLE
        finally:
            self._waiting -= 1

    async def _ask(self, client: httpx.AsyncClient, request: Request) -> Outcome:
        body = json.dumps(_described(request)).encode("utf-8")
        async with client.stream("POST", self._section.url, content=body, headers=self._headers) as response:
            if response.status_code != 200:
                raise ValueError(f"status {response.status_code}")
            answer = json.loads(await read_bounded(response, MAXIMUM_ANSWER_BYTES))
            return replace(_outcome(answer), keep=_max_age(response.headers.get("cache-control", "")))

    def stats(self) -> dict[str, int]:
        return {"auth_http_requests": self._requests, "auth_http_failures": self._failures}


def _described(request: Request) -> dict[str, Any]:
    described: dict[str, Any] = {
        "client_id": request.client_id,
        "username": request.username,
        "password": None,
        "address": request.host,
        "listener": request.listener,
        "transport": request.transport,
        "protocol": request.protocol,
        "certificate": None,
    }
    if request.password is not None:
        try:
            described["password"] = request.password.decode("utf-8")
        except UnicodeDecodeError:
            described["password_base64"] = base64.b64encode(request.password).decode("ascii")
    identity = request.identity
    if identity is not None:
        described["certificate"] = {
            "common_name": identity.common_name,
            "subject": identity.subject,
            "alternative_names": list(identity.alternative_names),
            "fingerprint": identity.fingerprint,
            "key_name": identity.key_name,
        }
    return described


def _outcome(answer: object) -> Outcome:
    if not isinstance(answer, Mapping) or answer.keys() - _KNOWN or answer.get("result") not in ("allow", "deny", "ignore"):
        raise ValueError("the answer is no object with a result of allow, deny or ignore, and what may stand beside it")
    if answer["result"] != "allow":
        return Outcome(Answer(answer["result"]))
    username, lasts, superuser = answer.get("username"), answer.get("expires_in"), answer.get("superuser", False)
    if not (username is None or (isinstance(username, str) and username and "\0" not in username)):
        raise ValueError("username is text")
    if not isinstance(superuser, bool):
        raise ValueError("superuser is true or false")
    if lasts is not None and (isinstance(lasts, bool) or not isinstance(lasts, int | float) or not 0 < lasts < 1e9 or math.isnan(lasts)):
        raise ValueError("expires_in is a number of seconds")
    grant = grant_of(answer["acl"]) if answer.get("acl") is not None else None
    if answer.get("groups") is not None:
        grant = with_groups(grant, answer["groups"])
    if superuser:
        grant = replace(grant or Grant(), superuser=True)
    return Outcome(Answer.ALLOW, username, grant, None if lasts is None else time.time() + lasts)


def _max_age(header: str) -> float:
    """RFC 9111 section 5.2.2; without one nothing is remembered."""
    lower = header.lower()
    match = _MAX_AGE.search(lower)
    return 0.0 if match is None or "no-store" in lower or "no-cache" in lower else float(match[1])
