"""The name in a verified certificate as the user name."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

from mqttc.auth import PeerIdentity, Request
from mqttc.auth.grant import with_groups
from mqttc.auth.source import DENY, IGNORE, Answer, Outcome, Source
from mqttc.config_auth import ClientCertificate

_KINDS: Final = {"dns": "DNS:", "uri": "URI:", "email": "email:"}


class CertificateSource(Source):
    """What it looks at is there only if TLS has verified it: ``Request.identity``."""

    name = "certificate"

    def __init__(self, section: ClientCertificate) -> None:
        self._section = section
        self._pattern = re.compile(section.pattern) if section.pattern else None

    async def decide(self, request: Request, state: dict[str, Any]) -> Outcome:
        if request.identity is None:
            return IGNORE
        try:
            names = list(self._names(request.identity))
        except ValueError:  # a certificate that TLS takes and this library does not
            return DENY
        if not names:
            return IGNORE
        users = [user for name in names if (user := self._user(name)) is not None]
        if self._section.match_username and request.username is not None:
            users = [user for user in users if user == request.username]
        if not users:
            return DENY
        try:
            return Outcome(Answer.ALLOW, users[0], with_groups(None, self._groups(request.identity)))
        except ValueError:
            return Outcome(Answer.DENY, username=users[0])

    def _groups(self, identity: PeerIdentity) -> tuple[str, ...]:
        return identity.subject_values(self._section.groups) if self._section.groups else ()

    def _names(self, identity: PeerIdentity) -> Iterator[str]:
        kind = self._section.name
        if kind == "common_name":
            found = [identity.common_name]
        elif kind == "subject":
            found = [identity.subject]
        elif kind == "key_name":
            found = [identity.key_name]
        else:
            prefix = _KINDS[kind]
            found = [name.removeprefix(prefix) for name in identity.alternative_names if name.startswith(prefix)]
        yield from (name for name in found if name)

    def _user(self, name: str) -> str | None:
        """None: the pattern does not match, or what it makes is no user name of MQTT (UTF-8 without U+0000)."""
        user = name
        if self._pattern is not None:
            match = self._pattern.fullmatch(name)
            if match is None:
                return None
            if self._section.user:
                user = match.expand(self._section.user)
            elif self._pattern.groups:
                user = match[1] or ""
        return user if user and "\0" not in user and len(user.encode("utf-8", "replace")) <= 65535 else None
