"""Grant: what an authenticator says a client may do, beside admitting it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, get_args

Action = Literal["publish", "subscribe", "receive", "retain", "will"]
ACTIONS: Final[tuple[Action, ...]] = get_args(Action)
MAXIMUM_GRANT_RULES: Final = 10_000
MAXIMUM_TTL: Final = 10 * 365 * 86_400
"""Seconds."""


@dataclass(frozen=True, slots=True)
class Rule:
    """Allows or denies actions on topics. ``%c`` in a filter is the client id, ``%u`` the user name, ``%%`` a percent sign.

    ``publish`` also speaks for retained messages and wills that no rule on ``retain`` or ``will`` decides about, ``subscribe`` for
    deliveries that no rule on ``receive`` decides about.
    """

    allow: bool
    actions: Sequence[Action]
    topics: Sequence[str]
    """Topic filters; without ``$share``."""


@dataclass(frozen=True, slots=True)
class Grant:
    """What one client may do from its CONNECT on. Compiled once; nobody is asked per message.

    The rules come before those of the ACL file, the first that matches decides.
    """

    rules: Sequence[Rule] = ()
    otherwise: Literal["allow", "deny", "file"] = "file"
    """What holds where no rule matches; ``"file"``: what the ACL file says, without one everything is allowed."""
    ttl: float | None = None
    """Seconds from now; then the client is disconnected (0x87), and its session may do and gets nothing until it connects again.
    A re-authentication (MQTT 5.0, section 4.12.1) brings a new grant in time. None: no end."""
    superuser: bool = False
    """May do everything; ``ttl`` still holds."""
    username: str | None = None
    """The user for the rules and for ``%u``, instead of the name in CONNECT; a certificate's or token's subject for example."""

    def __post_init__(self) -> None:
        if self.otherwise not in ("allow", "deny", "file"):
            raise ValueError('otherwise is "allow", "deny" or "file"')
        if self.ttl is not None and not 0 <= self.ttl <= MAXIMUM_TTL:
            raise ValueError(f"ttl is within 0 .. {MAXIMUM_TTL} seconds")
        if len(self.rules) > MAXIMUM_GRANT_RULES:
            raise ValueError(f"a grant has at most {MAXIMUM_GRANT_RULES} rules")
