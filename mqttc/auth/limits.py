"""How often somebody may be wrong, and what was decided lately: tables with a bound, both for one event loop."""

from __future__ import annotations

import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from mqttc.config_auth import Failures

_V = TypeVar("_V")


class Remembered(Generic[_V]):
    """Values under keys, each until its time; the oldest give way to new ones."""

    def __init__(self, entries: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._entries = entries
        self._clock = clock
        self._values: OrderedDict[bytes | int, tuple[float, _V]] = OrderedDict()
        self.evicted = 0

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: bytes | int) -> _V | None:
        entry = self._values.get(key)
        if entry is None:
            return None
        if self._clock() >= entry[0]:
            del self._values[key]
            return None
        return entry[1]

    def put(self, key: bytes | int, value: _V, seconds: float) -> None:
        self._values.pop(key, None)
        while len(self._values) >= self._entries:
            self._values.popitem(last=False)
            self.evicted += 1
        self._values[key] = (self._clock() + seconds, value)

    def pop(self, key: bytes | int) -> _V | None:
        value = self.get(key)
        self._values.pop(key, None)
        return value

    def clear(self) -> None:
        self._values.clear()


@dataclass(slots=True)
class _Account:
    failures: float
    """They leak away: ``limit`` of them in ``interval`` seconds."""
    at: float
    told: bool = False


class Limiter:
    """Counts failures of addresses and of user names."""

    def __init__(self, failures: Failures, clock: Callable[[], float] = time.monotonic) -> None:
        self._failures = failures
        self._clock = clock
        self._accounts: OrderedDict[tuple[str, str], _Account] = OrderedDict()
        self.evicted = 0

    def __len__(self) -> int:
        return len(self._accounts)

    def blocked(self, host: str, username: str | None) -> tuple[str, bool] | None:
        """``address`` or ``user``, whichever has failed too often, and whether that is told for the first time; None: neither has."""
        for key, limit in self._keys(host, username):
            account = self._accounts.get(key)
            if account is not None and self._level(account, limit) > limit - 1:
                first, account.told = not account.told, True
                return key[0], first
        return None

    def failed(self, host: str, username: str | None) -> None:
        for key, limit in self._keys(host, username):
            account = self._accounts.get(key)
            if account is None:
                while len(self._accounts) >= self._failures.entries:
                    self._accounts.popitem(last=False)
                    self.evicted += 1
                self._accounts[key] = _Account(1.0, self._clock())
                continue
            account.failures = self._level(account, limit) + 1
            account.at = self._clock()
            account.told = account.told and account.failures > limit - 1
            self._accounts.move_to_end(key)

    def _level(self, account: _Account, limit: int) -> float:
        gone = (self._clock() - account.at) * limit / self._failures.interval
        return max(0.0, account.failures - gone)

    def _keys(self, host: str, username: str | None) -> list[tuple[tuple[str, str], int]]:
        keys = []
        if self._failures.per_address and host != "unix":
            keys.append((("address", network_of(host)), self._failures.per_address))
        if self._failures.per_user and username is not None:
            keys.append((("user", username[:256]), self._failures.per_user))
        return keys


def network_of(host: str) -> str:
    """An IPv4 address, or the /64 network of an IPv6 one, of which one machine has all addresses."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.IPv6Network((address, 64), strict=False))
