"""A broker for one test."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from mqttc.auth import Authenticator
from mqttc.config import Config
from mqttc.errors import BrokerError
from mqttc.server import Broker

if TYPE_CHECKING:
    from mqttc.clock import VirtualClock

_DEFAULTS: Final[Mapping[str, Any]] = {"listeners": [{"url": "tcp://127.0.0.1:0"}], "workers": 1}
_SCHEMES: Final = {"tcp": "mqtt", "tls": "mqtts"}


class LocalBroker(Broker):
    """A ``Broker`` on a free port of the loopback with one worker, unless the mapping ``config`` says otherwise."""

    def __init__(
        self,
        config: Config | Mapping[str, Any] | None = None,
        *,
        authenticator: Authenticator | None = None,
        clock: VirtualClock | None = None,
    ) -> None:
        if not isinstance(config, Config):
            config = {**_DEFAULTS, **(config or {})}
        super().__init__(config, authenticator=authenticator, clock=clock)

    @property
    def url(self) -> str:
        """Of the first listener, as clients write it: ``mqtt://127.0.0.1:40123``."""
        scheme, rest = self._first().split("://", 1)
        return f"{_SCHEMES.get(scheme, scheme)}://{rest}"

    @property
    def host(self) -> str:
        """Of the first listener. Raises ``BrokerError`` where it has none, as a Unix domain socket."""
        return self._address()[0]

    @property
    def port(self) -> int:
        """See ``host``."""
        return self._address()[1]

    def _first(self) -> str:
        if not self.urls:
            raise BrokerError("the broker is not running" if not self.running else "the broker has no listener")
        return self.urls[0]

    def _address(self) -> tuple[str, int]:
        parts = urlsplit(self._first())
        if parts.hostname is None or parts.port is None:
            raise BrokerError(f"{self._first()} has no host and port")
        return parts.hostname, parts.port
