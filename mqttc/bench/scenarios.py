"""Scenarios: a profile as clients of a ``Load``. Each says who publishes, how many copies a message has, and in which phases the run goes."""

from __future__ import annotations

import secrets
import socket
from dataclasses import dataclass, field

from mqttc.bench.profile import Profile, ProfileError
from mqttc.load import Load

# Filters that all match w/G/x/y/z, each in another way.
_SHAPES = ("w/{}/+/y/z", "w/{}/x/+/z", "w/{}/x/y/+", "w/{}/#", "+/{}/x/y/z", "w/{}/+/+/z", "w/{}/+/y/+", "w/{}/x/#")


@dataclass
class Plan:
    """The clients of a run: index ranges into the load, and what is expected of them."""

    load: Load
    clients: int = 0
    subscriptions: int = 0
    copies: dict[int, float] = field(default_factory=dict)
    """Deliveries of each message, by publisher."""
    receivers: list[int] = field(default_factory=list)
    publishers: list[int] = field(default_factory=list)


def resolve(profile: Profile) -> tuple[str, int]:
    """Numeric address of the broker."""
    host, port = profile.target()
    if port == 0:
        return host, 0
    try:
        return str(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][4][0]), port
    except OSError as error:
        raise ProfileError(f"{profile.url}: {error}") from error


def build(profile: Profile) -> Plan:
    """The clients that the profile's scenario needs, not connected."""
    address, port = resolve(profile)
    load = Load(address, port, threads=profile.threads, version=profile.version, connect_batch=profile.connect_batch)
    return _Builder(profile, Plan(load)).build()


class _Builder:
    def __init__(self, profile: Profile, plan: Plan) -> None:
        self.profile = profile
        self.plan = plan
        self.run = secrets.token_hex(4)
        self.user, self.password = profile.credentials()
        self.subscribe_qos = profile.qos if profile.subscribe_qos is None else profile.subscribe_qos
        connections = profile.connections if profile.scenario in ("hold", "conn") else profile.publishers + profile.subscribers
        self.sources = profile.sources or 1 + connections // 20000

    def build(self) -> Plan:
        getattr(self, f"_{self.profile.scenario}")()
        return self.plan

    # ---- clients

    def _client(self, *, verify: bool = True, clean: bool | None = None, thread: int | None = None, again: bool = False) -> int:
        index = self.plan.clients
        keep = not self.profile.clean if clean is None else not clean
        source = None if self.sources == 1 else f"127.0.{index % self.sources // 250}.{index % self.sources % 250 + 1}"
        made = self.plan.load.add_client(
            f"bench-{self.run}-{index:05d}",
            username=self.user,
            password=self.password,
            clean=not keep,
            session_expiry=300 if keep else 0,
            source=source,
            verify=verify,
            thread=thread,
            again=again,
        )
        self.plan.clients += 1
        return made

    def _receiver(self, filters: list[str], number: int, *, client: int | None = None, clean: bool | None = None, thread: int | None = None) -> int:
        verify = self.profile.verify == 0 or number < self.profile.verify
        if client is None:
            client = self._client(verify=verify, clean=clean, thread=thread)
        for topic_filter in filters:
            self.plan.load.subscribe_to(client, topic_filter, self.subscribe_qos)
        self.plan.subscriptions += len(filters)
        self.plan.receivers.append(client)
        return client

    def _publisher(
        self, topics: list[str], copies: float, *, client: int | None = None, loop: bool = True, retain: bool = False, share: int | None = None, thread: int | None = None
    ) -> int:
        profile = self.profile
        if client is None:
            client = self._client(thread=thread)
        window = min(max(profile.window // (share or profile.publishers), 1), 65000)
        burst = min(profile.burst or max(1, min(window // 2, 100)), window)
        self.plan.load.publish_to(
            client,
            topics,
            qos=profile.qos,
            retain=retain,
            payload_least=profile.payload,
            payload_most=profile.payload if profile.payload_most is None else profile.payload_most,
            window=window,
            burst=burst,
            rate=profile.rate / profile.publishers,
            copies=copies or 1.0,
            loop=loop and copies > 0,
        )
        self.plan.publishers.append(client)
        self.plan.copies[client] = copies
        return client

    def _topic(self, number: int = 0) -> str:
        return f"bench/{self.run}/{number}"

    # ---- scenarios

    def _fanout(self) -> None:
        for number in range(self.profile.subscribers):
            self._receiver([self._topic()], number)
        for _ in range(self.profile.publishers):
            self._publisher([self._topic()], self.profile.subscribers)

    _fanin = _publish_receive = _fanout

    def _p2p(self) -> None:
        for number in range(self.profile.publishers):
            thread = number % self.profile.threads
            self._receiver([self._topic(number)], number, thread=thread)
            self._publisher([self._topic(number)], 1, thread=thread)

    def _latency(self) -> None:
        if self.profile.subscribers != self.profile.publishers:
            self._fanout()
        else:
            self._p2p()

    def _subscribe_publish_receive(self) -> None:
        for number in range(self.profile.publishers):
            client = self._receiver([self._topic(number)], number)
            self._publisher([self._topic(number)], 1, client=client)

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
        topics = [self._topic(number) for number in range(self.profile.messages)]
        self._publisher(topics, self.profile.subscribers, loop=False, retain=True, share=1)
        for number in range(self.profile.subscribers):
            self._receiver([f"bench/{self.run}/#"], number)

    def _offline(self) -> None:
        self._publisher([self._topic()], self.profile.subscribers, loop=False, share=1)
        for number in range(self.profile.subscribers):
            self._receiver([self._topic()], number, clean=False)
