"""The program around the broker: it publishes and subscribes without a socket, hears of events, looks after clients and sessions.

What a program uses of this are methods of `mqttc.Broker`, and the types that they give; see docs/embedding.md.
"""

from mqttc.embed.admin import ClientInfo, Page, RetainedMessage, SessionInfo, SubscriptionInfo
from mqttc.embed.events import Connected, Disconnected, Dropped, Event, EventStream, SessionExpired, Subscribed, Unsubscribed
from mqttc.embed.explain import LiveExplanation, Receiver
from mqttc.embed.message import Message, Published
from mqttc.embed.publisher import Publisher
from mqttc.embed.subscription import Subscription

__all__ = [
    "ClientInfo",
    "Connected",
    "Disconnected",
    "Dropped",
    "Event",
    "EventStream",
    "LiveExplanation",
    "Message",
    "Page",
    "Published",
    "Publisher",
    "Receiver",
    "RetainedMessage",
    "SessionExpired",
    "SessionInfo",
    "Subscribed",
    "Subscription",
    "SubscriptionInfo",
    "Unsubscribed",
]
