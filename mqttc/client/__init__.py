"""The asyncio client of MQTT 3.1, 3.1.1 and 5.0, and its blocking face. See docs/client.md."""

from __future__ import annotations

from mqttc.client.client import Client
from mqttc.client.message import Message, PublishResult, UnsubscribeResult
from mqttc.client.options import Authentication, ClientOptions, Options, Reconnect, ServerLimits, Tls
from mqttc.client.state import State, Stats
from mqttc.client.store import SqliteStore
from mqttc.client.subscription import Subscription
from mqttc.client.sync import SyncClient, SyncSubscription
from mqttc.codec import Properties, QoS, ReasonCode, Will

__all__ = [
    "Authentication",
    "Client",
    "ClientOptions",
    "Message",
    "Options",
    "Properties",
    "PublishResult",
    "QoS",
    "ReasonCode",
    "Reconnect",
    "ServerLimits",
    "SqliteStore",
    "State",
    "Stats",
    "Subscription",
    "SyncClient",
    "SyncSubscription",
    "Tls",
    "UnsubscribeResult",
    "Will",
]
