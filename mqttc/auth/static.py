"""The one authenticator of this version: user names allowed or denied by configuration."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from fnmatch import translate
from typing import Final

from mqttc.auth import BAD_AUTHENTICATION_METHOD, NOT_AUTHORIZED, SUCCESS, Request, Verdict
from mqttc.config import Auth

_KEEP_S: Final = 3600.0
"""A change of the lists is a reload, and that forgets what was decided by them."""


class StaticAuthenticator:
    """Admits by the lists of ``[auth]``. It cannot check passwords: a user name is only a claim.

    ``deny`` wins over ``allow``; a name on neither list is refused if there is an ``allow`` list and else
    treated like a client without name, by ``anonymous``. Authentication methods are not known: 0x8C.
    """

    def __init__(self, auth: Auth) -> None:
        self._delay_s = auth.delay
        self._allow = compile_patterns(auth.allow)
        self._deny = compile_patterns(auth.deny)

    async def authenticate(self, request: Request) -> Verdict:
        if self._delay_s:
            await asyncio.sleep(self._delay_s)
        return Verdict(self.decide(request), keep=0.0 if self._delay_s else _KEEP_S)

    def decide(self, request: Request) -> int:
        """The reason code."""
        if request.auth_method is not None:
            return BAD_AUTHENTICATION_METHOD
        if request.username is not None:
            if self._deny is not None and self._deny.fullmatch(request.username):
                return NOT_AUTHORIZED
            if self._allow is not None:
                return SUCCESS if self._allow.fullmatch(request.username) else NOT_AUTHORIZED
        return SUCCESS if request.anonymous_admitted else NOT_AUTHORIZED


def compile_patterns(patterns: Sequence[str]) -> re.Pattern[str] | None:
    """One expression for all shell patterns; None if there are none."""
    if not patterns:
        return None
    return re.compile("|".join(translate(pattern) for pattern in patterns))
