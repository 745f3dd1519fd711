"""For the tests of programs that use MQTT: a broker, what it has seen, what goes wrong on the way to it, and its time.

Nothing here needs pytest; ``mqttc.pytest_plugin`` makes fixtures of it. Names are imported when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mqttc.clock import VirtualClock as VirtualClock
    from mqttc.testing.broker import LocalBroker as LocalBroker
    from mqttc.testing.faults import Fault as Fault
    from mqttc.testing.faults import SeenPacket as SeenPacket
    from mqttc.testing.proxy import FaultProxy as FaultProxy
    from mqttc.testing.recorder import Recorder as Recorder

_HOMES = {
    "Fault": "mqttc.testing.faults",
    "FaultProxy": "mqttc.testing.proxy",
    "LocalBroker": "mqttc.testing.broker",
    "Recorder": "mqttc.testing.recorder",
    "SeenPacket": "mqttc.testing.faults",
    "VirtualClock": "mqttc.clock",
}

__all__ = ["Fault", "FaultProxy", "LocalBroker", "Recorder", "SeenPacket", "VirtualClock"]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'mqttc.testing' has no attribute {name!r}")
    value: object = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
