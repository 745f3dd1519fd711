"""Who may connect: the questions the gate asks, and the authenticators that answer them.

The data plane decides alone about clients without credentials (``auth.anonymous``). Every other CONNECT, and
every AUTH, is parked while an authenticator here makes up its mind; no worker waits for it.
"""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import dataclass, field
from typing import Final, Protocol

SUCCESS: Final = 0x00
CONTINUE_AUTHENTICATION: Final = 0x18
NOT_AUTHORIZED: Final = 0x87
SERVER_UNAVAILABLE: Final = 0x88
BAD_AUTHENTICATION_METHOD: Final = 0x8C


@dataclass(frozen=True, slots=True)
class Request:
    """A CONNECT, or an AUTH of an enhanced authentication, that waits for a verdict."""

    client_id: str
    peer: str
    anonymous_admitted: bool
    """The listener's ``anonymous`` rule would admit this client without credentials."""
    protocol: int
    """Protocol level: 3 is MQTT 3.1, 4 is 3.1.1, 5 is 5.0."""
    is_auth: bool = False
    """An AUTH packet rather than a CONNECT."""
    username: str | None = None
    password: bytes | None = field(default=None, repr=False)
    auth_method: str | None = None
    auth_data: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Verdict:
    """An MQTT 5.0 reason code: 0x00 admits, 0x18 goes on with an AUTH packet, 0x80 and above refuses.

    For 3.x clients a refusal becomes the return code that comes nearest.
    """

    reason_code: int
    auth_data: bytes | None = field(default=None, repr=False)


class Authenticator(Protocol):
    """Decides about clients. Called on the broker's control loop, many calls at a time."""

    def authenticate(self, request: Request) -> Awaitable[Verdict]:
        """Take as long as needed; after ``limits.auth_timeout`` the client is refused and this is cancelled."""
