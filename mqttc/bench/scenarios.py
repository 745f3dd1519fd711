"""Scenarios: a profile as clients of a ``Load``. Each says who publishes, who receives, and how many copies a message has."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field

from mqttc.bench.profile import Profile
from mqttc.bench.road import Road
from mqttc.load import Load

# Filters that all match w/G/x/y/z, each in another way.
_SHAPES = ("w/{}/+/y/z", "w/{}/x/+/z", "w/{}/x/y/+", "w/{}/#", "+/{}/x/y/z", "w/{}/+/+/z", "w/{}/+/y/+", "w/{}/x/#")


@dataclass
class Plan:
    """The clients of a run: index ranges into the load, and what is expected of them."""

    load: Load
    client_ids: list[str] = field(default_factory=list)
    persistent: list[str] = field(default_factory=list)
    """Client ids whose sessions outlive their connections."""
    retained: list[str] = field(default_factory=list)
    """Topics that have a retained message after the run."""
    window: int = 0
    """Messages under way at most, over all publishers."""
    subscriptions: int = 0
    copies: dict[int, float] = field(default_factory=dict)
    """Deliveries of each message, by publisher."""
    receivers: list[int] = field(default_factory=list)
    publishers: list[int] = field(default_factory=list)
    hears: dict[int, list[int]] = field(default_factory=dict)
    """Receivers that get everything of these publishers, once; not those that get a part (shared, wild)."""

    @property
    def clients(self) -> int:
        return len(self.client_ids)


def build(profile: Profile, road: Road, receive_maximum: int = 65535) -> Plan:
    """The clients that the profile's scenario needs, not connected. ``receive_maximum``: the broker's, no publisher's window is larger."""
    return _Builder(profile, Plan(road.load(threads=profile.threads)), road.address, receive_maximum).build()


class _Builder:
    def __init__(self, profile: Profile, plan: Plan, address: str, receive_maximum: int) -> None:
        self.profile = profile
        self.plan = plan
        self.run = secrets.token_hex(4)
        self.user, self.password = profile.credentials()
        self.subscribe_qos = profile.qos if profile.subscribe_qos is None else profile.subscribe_qos
        self.receive_maximum = receive_maximum
        self.sources = profile.sources or 1
        if not profile.sources and address.startswith("127."):
            # A source address has 28 000 ports, and one that was closed rests for a second or a minute. Linux tries half of them first, one
            # after the other, so that a connection costs ten times as much once that half is taken.
            if profile.scenario == "conn":
                self.sources = 64
            else:
                clients = profile.publishers + profile.subscribers * profile.repeats
                self.sources = 1 + (profile.connections if profile.scenario == "hold" else clients) // 8000

    def build(self) -> Plan:
        getattr(self, f"_{self.profile.scenario}")()
        return self.plan

    # ---- clients

    def _client(self, *, verify: bool = True, clean: bool | None = None, thread: int | None = None, again: bool = False) -> int:
        index = self.plan.clients
        client_id = f"bench-{self.run}-{index:05d}"
        keep = not self.profile.clean if clean is None else not clean
        source = None if self.sources == 1 else f"127.0.{index % self.sources // 250}.{index % self.sources % 250 + 1}"
        made = self.plan.load.add_client(
            client_id,
            username=self.user,
            password=self.password,
            clean=not keep,
            session_expiry=300 if keep else 0,
            source=source,
            verify=verify,
            ordered=self.profile.scenario != "retain",
            thread=thread,
            again=again,
        )
        self.plan.client_ids.append(client_id)
        if keep:
            self.plan.persistent.append(client_id)
        return made

    def _receiver(
        self, filters: list[str], number: int, *, client: int | None = None, clean: bool | None = None, thread: int | None = None
    ) -> int:
        verify = self.profile.verify == 0 or number < self.profile.verify
        if client is None:
            client = self._client(verify=verify, clean=clean, thread=thread)
        for topic_filter in filters:
            self.plan.load.subscribe_to(client, topic_filter, self.subscribe_qos)
        self.plan.subscriptions += len(filters)
        self.plan.receivers.append(client)
        return client

    def _publisher(self, topics: list[str], copies: float, *, client: int | None = None, thread: int | None = None) -> int:
        """A publisher of the run: closed loop with its part of the window, or open loop with its part of the rate."""
        if client is None:
            client = self._client(thread=thread)
        share = self._window(self.profile.publishers, self.profile.qos)
        self._publish_to(client, topics, self.profile.qos, share, copies, rate=self.profile.rate / self.profile.publishers, loop=copies > 0)
        return client

    def _filler(self, topics: list[str], copies: float, *, retain: bool) -> int:
        """The one publisher whose messages are to wait for somebody, acknowledged."""
        client = self._client(clean=True)
        qos = max(self.profile.qos, 1)
        self._publish_to(client, topics, qos, self._window(1, qos), copies, retain=retain, loop=False)
        return client

    def _window(self, publishers: int, qos: int) -> int:
        window = min(max(self.profile.window // publishers, 1), 65000, self.receive_maximum if qos else 65000)
        self.plan.window = window * publishers
        return window

    def _publish_to(
        self, client: int, topics: list[str], qos: int, window: int, copies: float, *, rate: float = 0.0, loop: bool, retain: bool = False
    ) -> None:
        profile = self.profile
        self.plan.load.publish_to(
            client,
            topics,
            qos=qos,
            retain=retain,
            payload_least=profile.payload,
            payload_most=profile.payload if profile.payload_most is None else profile.payload_most,
            window=window,
            burst=min(profile.burst or max(1, min(window // 2, 100)), window),
            rate=rate,
            copies=copies or 1.0,
            loop=loop,
            timed=not copies,
        )
        self.plan.publishers.append(client)
        self.plan.copies[client] = copies

    def _all_hear_all(self) -> None:
        for receiver in self.plan.receivers:
            self.plan.hears[receiver] = self.plan.publishers

    def _topic(self, number: int = 0) -> str:
        return f"bench/{self.run}/{number}" + "/level" * (self.profile.topic_levels - 3)

    # ---- scenarios

    def _fanout(self) -> None:
        for number in range(self.profile.subscribers):
            self._receiver([self._topic()], number)
        for _ in range(self.profile.publishers):
            self._publisher([self._topic()], self.profile.subscribers)
        self._all_hear_all()

    _fanin = _publish_receive = _fanout

    def _p2p(self) -> None:
        for number in range(self.profile.publishers):
            thread = number % self.profile.threads
            receiver = self._receiver([self._topic(number)], number, thread=thread)
            self.plan.hears[receiver] = [self._publisher([self._topic(number)], 1, thread=thread)]

    def _latency(self) -> None:
        if self.profile.subscribers != self.profile.publishers:
            self._fanout()
        else:
            self._p2p()

    def _subscribe_publish_receive(self) -> None:
        for number in range(self.profile.publishers):
            client = self._receiver([self._topic(number)], number)
            self.plan.hears[client] = [self._publisher([self._topic(number)], 1, client=client)]

    def _publish(self) -> None:
        for number in range(self.profile.publishers):
            self._publisher([self._topic(number)], 0)

    def _wild(self) -> None:
        profile = self.profile
        prefix = f"bench/{self.run}/"
        sets = max(1, profile.filters // profile.matches)
        filters: list[list[str]] = [[] for _ in range(profile.subscribers)]
        for number in range(sets):
            for way in range(profile.matches):
                filters[(number * profile.matches + way) % profile.subscribers].append(prefix + _SHAPES[way].format(number))
        for number, mine in enumerate(filters):
            self._receiver(mine, number)
        for number in range(profile.publishers):
            topics = [f"{prefix}w/{topic}/x/y/z" for topic in range(number, sets, profile.publishers)]
            self._publisher(topics or [f"{prefix}w/0/x/y/z"], profile.matches)

    def _shared(self) -> None:
        for number in range(self.profile.subscribers):
            self._receiver([f"$share/{self.run}-{number % self.profile.groups}/{self._topic()}"], number)
        for _ in range(self.profile.publishers):
            self._publisher([self._topic()], self.profile.groups)

    def _conn(self) -> None:
        for _ in range(self.profile.connections):
            self._client(again=True)

    def _hold(self) -> None:
        for _ in range(self.profile.connections):
            self._client(clean=False)

    def _retain(self) -> None:
        count = self.profile.subscribers * self.profile.repeats
        self.plan.retained = [self._topic(number) for number in range(self.profile.messages)]
        self._filler(self.plan.retained, count, retain=True)
        for number in range(count):
            self._receiver([f"bench/{self.run}/#"], number)
        self._all_hear_all()

    def _offline(self) -> None:
        self._filler([self._topic()], self.profile.subscribers, retain=False)
        for number in range(self.profile.subscribers):
            self._receiver([self._topic()], number, clean=False)
        self._all_hear_all()
