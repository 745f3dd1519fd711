"""The durable store's control plane: start, check, migration, salvage, export and backup of ``store.db``.

Writing is the data plane's: its journal thread has the file from ``open_store`` to ``OpenStore.close``. What stands here and
reads a store in use (``check``, ``info``, ``export``, ``backup``) belongs into another process than the broker's, or needs the
same copy of the SQLite library there: POSIX locks do not tell two copies in one process apart.
"""

from __future__ import annotations

from mqttc.store.check import StoreInfo, check, info
from mqttc.store.database import DamageError, ForeignError, StoreError, VersionError
from mqttc.store.export import backup, export
from mqttc.store.opening import FILE_NAME, LOCK_NAME, OpenStore, open_store
from mqttc.store.salvage import Recovery, TableRecovery

__all__ = [
    "FILE_NAME",
    "LOCK_NAME",
    "DamageError",
    "ForeignError",
    "OpenStore",
    "Recovery",
    "StoreError",
    "StoreInfo",
    "TableRecovery",
    "VersionError",
    "backup",
    "check",
    "export",
    "info",
    "open_store",
]
