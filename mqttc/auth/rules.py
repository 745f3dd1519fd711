"""The rules of a running broker: read, put in force, and looked after while it runs."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from typing import Final, Protocol

from mqttc.auth.acl import AclTable, Explanation
from mqttc.auth.grant import Action

_Identity = tuple[int, int, int, int] | None


class TakesTables(Protocol):
    """``native.Engine``, as far as it is needed here."""

    def set_acl(self, table: bytes) -> None: ...


class RulesInForce:
    """An ACL file and the engine that decides by it. Any thread.

    An invalid file changes nothing; the rules before it stay in force.
    """

    def __init__(self, engine: TakesTables, file: str, listeners: Mapping[str, Sequence[int]]) -> None:
        """Before the engine starts; raises ``ConfigError``."""
        self._engine: Final = engine
        self._listeners = listeners
        self._lock = threading.Lock()
        self._identity: _Identity = None
        self._seen: _Identity = None
        self.apply(file)

    @property
    def table(self) -> AclTable:
        return self._in_force[0]

    def read(self, file: str) -> tuple[AclTable, bytes]:
        """Read and check a file, and put nothing in force; raises ``ConfigError``."""
        table = AclTable.load(file)
        return table, table.compile(self._listeners)

    def apply(self, file: str) -> None:
        """Read the file and put it in force; returns when it is. Raises ``ConfigError``."""
        with self._lock:
            self._apply(file)

    def _apply(self, file: str) -> None:
        identity = _identity(file)  # before it is read, so that no later change is missed
        self._identity = identity  # an invalid file is told of once
        table, compiled = self.read(file)
        self._engine.set_acl(compiled)
        self._in_force, self._file = (table, compiled), file

    def check(self) -> bool:
        """Whether the file has changed and is in force now. Raises ``ConfigError`` if it has changed and is invalid.

        It is read only when it is as the last call has seen it: of a file that is being written the first half may be valid, and an
        empty one denies everything.
        """
        with self._lock:
            identity = _identity(self._file)
            stands, self._seen = identity == self._seen, identity
            if identity is None or identity == self._identity or not stands:
                return False  # gone, perhaps in the middle of being replaced
            self._apply(self._file)
            return True

    def explain(
        self, action: Action, topic: str, *, client_id: str, username: str | None, listener: str | None, groups: Sequence[str]
    ) -> Explanation:
        """See ``AclTable.explain``."""
        table, compiled = self._in_force
        return table.explain(
            action,
            topic,
            client_id=client_id,
            username=username,
            listener=listener,
            listeners=self._listeners,
            groups=groups,
            compiled=compiled,
        )


def _identity(file: str) -> _Identity:
    """What changes when the file's content does, or the file that a symbolic link leads to."""
    try:
        status = os.stat(file)
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size
