"""A broker of a few pages, as the standards have it: what each session, group and topic holds, and what is due to whom. No I/O, no clock.

Only what has one right answer is here: the order of messages that come from different places is left to who compares.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

UNLIMITED = 65535


def matches(topic_filter: str, topic: str) -> bool:
    """Section 4.7, without the rule for $ topics, of which there are none here."""
    wanted, given = topic_filter.split("/"), topic.split("/")
    for i, level in enumerate(wanted):
        if level == "#":
            return True
        if i >= len(given) or level not in ("+", given[i]):
            return False
    return len(wanted) == len(given)


@dataclass(frozen=True)
class Message:
    topic: str
    payload: bytes
    qos: int
    retain: bool = False
    props: tuple[tuple[int, Any], ...] = ()
    """Properties that travel with it."""
    subscription_ids: tuple[int, ...] = ()
    publisher: str | None = None
    """The client; None: one without subscriptions."""


@dataclass
class Sent:
    """In flight. `released`: PUBREC was sent, so that PUBREL is what comes again."""

    message: Message
    packet_id: int
    released: bool = False
    identified: bool = True
    """Whether its Subscription Identifiers were sent: when it was sent to a 3.x client they are not, and need not come again."""


Due = list[Message | Sent]
"""What a client must get, in this order."""


@dataclass(frozen=True)
class Subscription:
    qos: int
    no_local: bool = False
    retain_as_published: bool = False
    subscription_id: int = 0


@dataclass(frozen=True)
class LastWill:
    message: Message
    delay: int = 0


@dataclass
class Session:
    expiry: int
    """Seconds that it outlives its connection; 0: none."""
    window: int = UNLIMITED
    subscriptions: dict[str, Subscription] = field(default_factory=dict)
    inflight: list[Sent] = field(default_factory=list)
    queue: list[Message] = field(default_factory=list)
    inbound: set[int] = field(default_factory=set)
    """Identifiers of QoS 2 messages that were received and not released."""
    online: bool = False
    will: LastWill | None = None
    will_at: int | None = None
    """When a delayed will goes out."""
    ends_at: int | None = None


@dataclass
class Group:
    members: list[str] = field(default_factory=list)
    backlog: list[Message] = field(default_factory=list)


@dataclass
class Outcome:
    """Of one publication: what is due to which sessions, and to one member of which groups."""

    sessions: dict[str, Message] = field(default_factory=dict)
    groups: dict[str, Message] = field(default_factory=dict)
    matched: bool = False


class Reference:
    """``now``: seconds, moved by ``pass_time``."""

    def __init__(self) -> None:
        self.sessions: dict[str, Session] = {}
        self.retained: dict[str, Message] = {}
        self.groups: dict[str, Group] = {}
        self.now = 0

    # ------------------------------------------------------------------------------ messages

    def publish(self, message: Message) -> Outcome:
        """Retains it, queues it for who is away, and tells what comes at once."""
        if message.retain and message.payload:
            self.retained[message.topic] = message
        elif message.retain:
            self.retained.pop(message.topic, None)
        outcome = Outcome()
        for client, session in self.sessions.items():
            copy = self._copy_for(session, message, client == message.publisher)
            if copy is None:
                continue
            outcome.matched = True
            if not session.online:
                if copy.qos:
                    session.queue.append(copy)
            elif copy.qos and (session.queue or len(session.inflight) >= session.window):
                session.queue.append(copy)
            else:
                outcome.sessions[client] = copy
        for key, group in self.groups.items():
            if matches(key.split("/", 2)[2], message.topic):
                outcome.matched = True
                plain = replace(message, retain=False)
                if self.members_online(key):
                    outcome.groups[key] = plain
                elif message.qos:
                    group.backlog.append(plain)
        return outcome

    @staticmethod
    def _copy_for(session: Session, message: Message, own: bool) -> Message | None:
        """One copy for all subscriptions that match: the highest QoS [MQTT-3.3.4-2], all identifiers [MQTT-3.3.4-4]."""
        found = [
            one
            for topic_filter, one in session.subscriptions.items()
            if not topic_filter.startswith("$share/") and matches(topic_filter, message.topic) and not (own and one.no_local)
        ]
        if not found:
            return None
        return replace(
            message,
            qos=min(message.qos, max(one.qos for one in found)),
            retain=message.retain and any(one.retain_as_published for one in found),
            subscription_ids=tuple(sorted(one.subscription_id for one in found if one.subscription_id)),
        )

    def members_online(self, key: str) -> list[str]:
        return [client for client in self.groups[key].members if self.sessions[client].online]

    def next_queued(self, session: Session) -> Message | None:
        """What the window lets go next."""
        if session.online and session.queue and len(session.inflight) < session.window:
            return session.queue.pop(0)
        return None

    def backlog(self, client: str, key: str) -> Due:
        """What waited for this group; the client has just come."""
        group = self.groups.get(key)
        if group is None:
            return []
        waiting, group.backlog = group.backlog, []
        qos = self.sessions[client].subscriptions[key].qos
        return [replace(message, qos=min(message.qos, qos)) for message in waiting]

    # ------------------------------------------------------------------------------ subscriptions

    def subscribe(self, client: str, topic_filter: str, options: Subscription, retain_handling: int) -> list[Message]:
        """The retained messages that are due."""
        session = self.sessions[client]
        fresh = topic_filter not in session.subscriptions
        session.subscriptions[topic_filter] = options
        if topic_filter.startswith("$share/"):
            if fresh:
                self.groups.setdefault(topic_filter, Group()).members.append(client)
            return []
        if retain_handling == 2 or (retain_handling == 1 and not fresh):
            return []
        ids = (options.subscription_id,) if options.subscription_id else ()
        return [
            replace(message, qos=min(message.qos, options.qos), subscription_ids=ids)
            for message in self.retained.values()
            if matches(topic_filter, message.topic)
        ]

    def unsubscribe(self, client: str, topic_filter: str) -> bool:
        """Whether there was one."""
        had = self.sessions[client].subscriptions.pop(topic_filter, None) is not None
        if had:
            self._leave(client, topic_filter)
        return had

    def _leave(self, client: str, topic_filter: str) -> None:
        if topic_filter.startswith("$share/"):
            group = self.groups[topic_filter]
            group.members.remove(client)
            if not group.members:
                del self.groups[topic_filter]

    # ------------------------------------------------------------------------------ sessions

    def connect(self, client: str, *, clean: bool, expiry: int, window: int, will: LastWill | None) -> tuple[bool, list[Message]]:
        """Whether a session is present, and the wills of the one that ends by this. A connection that is taken over was lost before."""
        old = self.sessions.get(client)
        wills = []
        if old is not None:
            assert not old.online
            if clean:
                wills = self.end(client)
            else:
                old.will, old.will_at = None, None  # [MQTT-3.1.3-9]
        present = client in self.sessions
        session = self.sessions.setdefault(client, Session(0))
        session.expiry, session.window, session.will, session.online, session.ends_at = expiry, window, will, True, None
        return present, wills

    def lose(self, client: str, *, with_will: bool) -> list[Message]:
        """The connection has ended; the wills that go out at once."""
        session = self.sessions[client]
        session.online = False
        if not with_will:
            session.will = None
        if session.expiry == 0:
            return self.end(client)
        session.ends_at = self.now + session.expiry
        if session.will is None:
            return []
        if session.will.delay == 0:
            message, session.will = session.will.message, None
            return [message]
        session.will_at = self.now + session.will.delay
        return []

    def end(self, client: str) -> list[Message]:
        """A session ends, and its will goes out at the latest now [MQTT-3.1.3-9]."""
        session = self.sessions.pop(client)
        for topic_filter in session.subscriptions:
            self._leave(client, topic_filter)
        return [session.will.message] if session.will is not None else []

    # ------------------------------------------------------------------------------ time

    def events(self) -> list[int]:
        """When something happens by itself, in order."""
        times = [at for one in self.sessions.values() for at in (one.will_at, one.ends_at) if at is not None and not one.online]
        return sorted(times)

    def pass_time(self, to: int) -> list[Message]:
        """The wills that go out meanwhile."""
        self.now = to
        wills = []
        for client, session in list(self.sessions.items()):
            if session.online:
                continue
            if session.ends_at is not None and session.ends_at <= to:
                wills += self.end(client)
            elif session.will_at is not None and session.will_at <= to and session.will is not None:
                wills.append(session.will.message)
                session.will, session.will_at = None, None
        return wills

    # ------------------------------------------------------------------------------ figures

    def gauges(self) -> dict[str, int]:
        """As ``Broker.stats`` names them."""
        sessions: Iterable[Session] = self.sessions.values()
        return {
            "sessions": len(self.sessions),
            "connections_open": sum(session.online for session in sessions),
            "messages_inflight": sum(len(session.inflight) for session in sessions),
            "messages_queued": sum(len(session.queue) for session in sessions),
            "group_backlog": sum(len(group.backlog) for group in self.groups.values()),
            "subscriptions": sum(len(session.subscriptions) for session in sessions),
            "retained": len(self.retained),
        }
