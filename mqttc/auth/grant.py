"""Grant: what an authenticator says a client may do, beside admitting it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal, get_args

Action = Literal["publish", "subscribe", "receive", "retain", "will"]
ACTIONS: Final[tuple[Action, ...]] = get_args(Action)
MAXIMUM_GRANT_RULES: Final = 10_000
MAXIMUM_GROUPS: Final = 1000
"""Of one client."""
MAXIMUM_GROUP_BYTES: Final = 65_536
"""Of their names together."""
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
    groups: Sequence[str] = ()
    """Names of groups that the client is in for the ACL file, beside those that list its user name in ``[groups]``."""

    def __post_init__(self) -> None:
        if self.otherwise not in ("allow", "deny", "file"):
            raise ValueError('otherwise is "allow", "deny" or "file"')
        if self.ttl is not None and not 0 <= self.ttl <= MAXIMUM_TTL:
            raise ValueError(f"ttl is within 0 .. {MAXIMUM_TTL} seconds")
        if len(self.rules) > MAXIMUM_GRANT_RULES:
            raise ValueError(f"a grant has at most {MAXIMUM_GRANT_RULES} rules")
        check_groups(self.groups)


def check_groups(names: object) -> tuple[str, ...]:
    """``ValueError``: these are no names of groups, or too many. None is left away: it might be one that is denied something."""
    if not isinstance(names, Sequence) or isinstance(names, str) or any(not isinstance(name, str) or not name for name in names):
        raise ValueError("groups are a list of names")
    if len(names) > MAXIMUM_GROUPS or sum(len(name.encode()) for name in names) > MAXIMUM_GROUP_BYTES:
        raise ValueError(f"a client is in at most {MAXIMUM_GROUPS} groups, whose names have {MAXIMUM_GROUP_BYTES} bytes together")
    return tuple(names)


def with_groups(grant: Grant | None, names: object) -> Grant | None:
    """The grant, or a new one, with these groups beside its own. ``ValueError``: see `check_groups`."""
    found = check_groups(names)
    if not found:
        return grant
    grant = grant or Grant()
    return replace(grant, groups=tuple(dict.fromkeys((*grant.groups, *found))))
