"""The authenticator that decides by lists, and what counts as this machine."""

from __future__ import annotations

import asyncio
import time

import pytest

from mqttc.auth import BAD_AUTHENTICATION_METHOD, NOT_AUTHORIZED, SUCCESS, Request
from mqttc.auth.static import StaticAuthenticator
from mqttc.config import Auth
from mqttc.listen import is_loopback


def request(username: str | None, *, admitted: bool = False, method: str | None = None) -> Request:
    return Request(
        client_id="c", peer="192.0.2.1:5", anonymous_admitted=admitted, protocol=5, username=username, password=b"p", auth_method=method
    )


@pytest.mark.parametrize(
    ("allow", "deny", "username", "admitted", "reason"),
    [
        (["alice"], [], "alice", False, SUCCESS),
        (["alice"], [], "alice2", True, NOT_AUTHORIZED),
        (["alice"], [], "Alice", True, NOT_AUTHORIZED),
        (["alice"], ["alice"], "alice", True, NOT_AUTHORIZED),
        (["sensor-*", "a?"], [], "sensor-12", False, SUCCESS),
        (["sensor-*", "a?"], [], "ab", False, SUCCESS),
        (["sensor-*", "a?"], [], "abc", False, NOT_AUTHORIZED),
        (["*"], ["root"], "root", True, NOT_AUTHORIZED),
        (["*"], ["root"], "line\nbreak", False, SUCCESS),
        ([], ["root"], "root", True, NOT_AUTHORIZED),
        ([], ["root"], "alice", True, SUCCESS),
        ([], ["root"], "alice", False, NOT_AUTHORIZED),
        (["alice"], [], None, True, SUCCESS),
        (["alice"], [], None, False, NOT_AUTHORIZED),
        (["alice"], [], "", True, NOT_AUTHORIZED),
    ],
)
def test_lists(allow: list[str], deny: list[str], username: str | None, admitted: bool, reason: int) -> None:
    authenticator = StaticAuthenticator(Auth(allow=allow, deny=deny))
    assert authenticator.decide(request(username, admitted=admitted)) == reason


def test_no_method_is_known() -> None:
    authenticator = StaticAuthenticator(Auth(allow=["*"]))
    assert authenticator.decide(request("alice", admitted=True, method="SCRAM-SHA-256")) == BAD_AUTHENTICATION_METHOD


def test_delay() -> None:
    started = time.monotonic()
    verdict = asyncio.run(StaticAuthenticator(Auth(allow=["*"], delay=0.1)).authenticate(request("alice")))
    assert verdict.reason_code == SUCCESS
    assert time.monotonic() - started >= 0.1


def test_secrets_are_not_shown() -> None:
    assert "password" not in repr(request("alice"))


@pytest.mark.parametrize(
    ("peer", "local"),
    [
        ("127.0.0.1:5", True),
        ("127.9.9.9:5", True),
        ("[::1]:5", True),
        ("[::ffff:127.0.0.1]:5", True),
        ("[::ffff:192.0.2.1]:5", False),
        ("192.0.2.1:5", False),
        ("[fe80::1%eth0]:5", False),
        ("", False),
        ("localhost:5", False),
    ],
)
def test_loopback(peer: str, local: bool) -> None:
    assert is_loopback(peer) is local
