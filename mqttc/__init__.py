"""mqttc: an MQTT 3.1, 3.1.1 and 5.0 broker, codec and client.

Names are imported when they are first used, so that the codec needs neither the configuration nor asyncio.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mqttc import codec as codec
    from mqttc.broker_thread import BrokerThread as BrokerThread
    from mqttc.client import Client as Client
    from mqttc.client import SyncClient as SyncClient
    from mqttc.config import Config as Config
    from mqttc.config import ConfigError as ConfigError
    from mqttc.errors import BrokerError as BrokerError
    from mqttc.errors import MqttError as MqttError
    from mqttc.hooks import Hooks as Hooks
    from mqttc.listen import ListenError as ListenError
    from mqttc.server import Broker as Broker

__version__ = "0.1.0"

_HOMES = {
    "Broker": "mqttc.server",
    "BrokerError": "mqttc.errors",
    "BrokerThread": "mqttc.broker_thread",
    "Client": "mqttc.client",
    "Config": "mqttc.config",
    "ConfigError": "mqttc.config",
    "Hooks": "mqttc.hooks",
    "ListenError": "mqttc.listen",
    "MqttError": "mqttc.errors",
    "SyncClient": "mqttc.client",
}
_MODULES = ("codec",)

__all__ = [
    "Broker",
    "BrokerError",
    "BrokerThread",
    "Client",
    "Config",
    "ConfigError",
    "Hooks",
    "ListenError",
    "MqttError",
    "SyncClient",
    "__version__",
    "codec",
]


def __getattr__(name: str) -> object:
    if name in _HOMES:
        value: object = getattr(import_module(_HOMES[name]), name)
    elif name in _MODULES:
        value = import_module(f"mqttc.{name}")
    else:
        raise AttributeError(f"module 'mqttc' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
