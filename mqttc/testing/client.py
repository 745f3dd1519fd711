"""Clients as fixtures give them."""

from __future__ import annotations

from typing import Self

from mqttc.client import SyncClient


class ConnectedClient(SyncClient):
    """A ``SyncClient`` that is connected already: ``with`` only closes it."""

    def __enter__(self) -> Self:
        return self
