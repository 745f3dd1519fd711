"""What the crash and power-loss tests know about messages, and what a broker that kept its word must have done with them.

Clients are event-sourced: all that they know follows from events with a time (``CLOCK_MONOTONIC``, ns), so that the world of an
earlier moment can be made again. An event is recorded before anything is sent that rests on it, and after the packet that caused
it has been read.
"""

from __future__ import annotations

import threading
import time
import zlib
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import NamedTuple, TextIO

MARKER = "marker"
"""The last topic of a run: who has its message has had all that waited before it."""


class Key(NamedTuple):
    """One message: the number-th of its publisher on that topic with that QoS."""

    publisher: str
    topic: str
    qos: int
    number: int

    def __str__(self) -> str:
        return f"{self.topic} {self.publisher}#{self.number} QoS {self.qos}"


class Stream(NamedTuple):
    """Messages among which the order holds [MQTT-4.6.0-6]."""

    publisher: str
    topic: str
    qos: int


def stream_of(key: Key) -> Stream:
    return Stream(key.publisher, key.topic, key.qos)


def payload_of(key: Key) -> bytes:
    """Says which message it is, and is of a size of its own: mostly some hundred bytes, now and then several pages of the store."""
    mark = zlib.crc32(repr(tuple(key)).encode())
    size = 20 + mark % 400 if mark % 16 else 4000 + mark % 9000
    return f"{key.publisher} {key.qos} {key.number} ".encode() + mark.to_bytes(4, "big") * (size // 4)


def key_of(topic: str, payload: bytes) -> Key | None:
    """None: these are not the bytes of any message that was sent."""
    parts = payload.split(b" ", 3)
    try:
        key = Key(parts[0].decode(), topic, int(parts[1]), int(parts[2]))
    except (ValueError, IndexError):
        return None
    return key if payload == payload_of(key) else None


@cache
def matches(topic_filter: str, topic: str) -> bool:
    """Section 4.7; no topic here starts with ``$``."""
    wanted, levels = topic_filter.split("/"), topic.split("/")
    for at, level in enumerate(wanted):
        if level == "#":
            return True
        if at == len(levels) or level not in ("+", levels[at]):
            return False
    return len(wanted) == len(levels)


def share_of(topic_filter: str) -> tuple[str, str]:
    """Group (empty: none) and filter."""
    if topic_filter.startswith("$share/"):
        _, group, plain = topic_filter.split("/", 2)
        return group, plain
    return "", topic_filter


@dataclass
class Sent:
    """A message as its publisher knows it."""

    key: Key
    at: int
    acknowledged: int | None = None
    refused: bool = False


@dataclass
class Subscribed:
    """A subscription from its SUBACK to its UNSUBSCRIBE; afterwards nothing new may come once that is acknowledged."""

    topic_filter: str
    qos: int
    asked: int
    granted: int | None = None
    left: int | None = None
    gone: int | None = None


@dataclass
class Receiver:
    """What a session's client has received."""

    name: str
    subscriptions: list[Subscribed] = field(default_factory=list)
    latest: dict[str, Subscribed] = field(default_factory=dict)
    """By filter: the last of its subscriptions."""
    granted: dict[str, list[Subscribed]] = field(default_factory=dict)
    """By filter: those that were acknowledged, in their order; one has left before the next is granted."""
    times: Counter[tuple[Key, int]] = field(default_factory=Counter)
    """How often each message came at each QoS; what a QoS 2 receiver has to leave out is not counted."""
    keys: set[Key] = field(default_factory=set)
    newest: dict[tuple[Stream, int], int] = field(default_factory=dict)
    """Per stream and QoS that it came with: the highest number so far."""
    late: list[tuple[Key, int, str]] = field(default_factory=list)
    """What came first behind a later one of its stream, and when; judged at the end, see `wrong`."""
    ordered: bool = True
    """Members of shared groups get a message late that another one has not taken."""


class History:
    """All that happened, a line each, in a file; and the violations, which end the run. Any thread."""

    def __init__(self, path: Path, echo: TextIO | None = None) -> None:
        self.path = path
        self.violations: list[str] = []
        self.broken = threading.Event()
        self._lock = threading.Lock()
        self._file = path.open("w", encoding="utf-8")
        self._echo = echo

    def note(self, who: str, what: str) -> None:
        line = f"{time.monotonic_ns() / 1e9:.6f} {who} {what}\n"
        with self._lock:
            self._file.write(line)

    def violation(self, who: str, what: str) -> None:
        self.note(who, f"VIOLATION {what}")
        with self._lock:
            if self._echo is not None:
                print(f"{who}: {what}", file=self._echo, flush=True)
            self.violations.append(f"{who}: {what}")
        self.broken.set()

    def close(self) -> None:
        with self._lock:
            self._file.close()


def delivered(receiver: Receiver, now: int, key: Key, qos: int, dup: bool, history: History) -> None:
    """A message has reached the application of that client."""
    stream = stream_of(key), qos
    first = key not in receiver.keys
    if qos == 2 and receiver.times[key, 2]:
        history.violation(receiver.name, f"{key} came twice at QoS 2")
    if first and receiver.ordered and key.number < receiver.newest.get(stream, 0):
        receiver.late.append((key, now, f"came first after #{receiver.newest[stream]}, at QoS {qos}"))
    if not first and qos == 1 and not dup and receiver.ordered:
        # Sent anew, not sent again: only a restart that has forgotten that it was sent excuses that [MQTT-3.3.1-1].
        history.note(receiver.name, f"{key} came again without DUP")
    receiver.times[key, qos] += 1
    receiver.keys.add(key)
    receiver.newest[stream] = max(key.number, receiver.newest.get(stream, 0))


def due(receiver: Receiver, sent: Sent) -> int | None:
    """The QoS with which an acknowledged message must reach this receiver; None: it need not."""
    found = []
    for topic_filter, granted in receiver.granted.items():
        if topic_filter.startswith("$share/") or not matches(topic_filter, sent.key.topic):
            continue
        at = bisect_left(granted, sent.at, key=lambda one: one.granted or 0) - 1
        if at >= 0 and (granted[at].left is None or (sent.acknowledged is not None and sent.acknowledged < (granted[at].left or 0))):
            found.append(granted[at].qos)
    return min(max(found), sent.key.qos) if found else None


def wanted(receiver: Receiver, sent: Sent) -> bool:
    """Whether it may have come at all: some subscription was perhaps in force after it was sent."""
    return any(
        (one.gone is None or one.gone > sent.at) and matches(share_of(topic_filter)[1], sent.key.topic)
        for topic_filter, one in receiver.latest.items()
    )


def groups_of(receivers: Iterable[Receiver]) -> dict[str, list[tuple[Receiver, Subscribed]]]:
    found: dict[str, list[tuple[Receiver, Subscribed]]] = {}
    for receiver in receivers:
        for one in receiver.subscriptions:
            if one.topic_filter.startswith("$share/") and one.granted is not None:
                found.setdefault(one.topic_filter, []).append((receiver, one))
    return found


def missing(messages: Iterable[Sent], receivers: list[Receiver]) -> list[tuple[Sent, str]]:
    """Acknowledged messages that have not arrived where they must, and where that is."""
    lost: list[tuple[Sent, str]] = []
    groups = groups_of(receivers)
    for sent in messages:
        if sent.acknowledged is None:
            continue
        for receiver in receivers:
            if sent.key not in receiver.keys and due(receiver, sent) is not None:
                lost.append((sent, receiver.name))
        for name, members in groups.items():
            if (
                matches(share_of(name)[1], sent.key.topic)
                and min(one.granted or 0 for _, one in members) < sent.at
                and not any(sent.key in receiver.keys for receiver, _ in members)
            ):
                lost.append((sent, name))
    return lost


def wrong(messages: Iterable[Sent], receivers: list[Receiver]) -> list[str]:
    """What should not have come, or not so: twice to a group at QoS 2, after UNSUBACK, never sent, out of order.

    All that is due has arrived.
    """
    known = {sent.key: sent for sent in messages}
    found = []
    for receiver in receivers:
        for key in receiver.keys:
            sent = known.get(key)
            if sent is None:
                if key.topic != MARKER:
                    found.append(f"{receiver.name}: {key} came, and nobody sent it")
            elif not wanted(receiver, sent):
                found.append(f"{receiver.name}: {key} came, sent after UNSUBACK")
            elif (
                (qos := due(receiver, sent)) is not None
                and sent.acknowledged is not None
                and not receiver.times[key, qos]
                and receiver.ordered
            ):
                found.append(f"{receiver.name}: {key} came, but not at QoS {qos}")
        for key, now, what in receiver.late:
            # One that was sent before SUBACK, or around an UNSUBSCRIBE, may be missed, and come when its publisher sends it again
            # after a crash.
            if (sent := known.get(key)) is not None and any(
                one.granted is not None
                and one.granted < sent.at
                and (one.left is None or one.left > now)
                and matches(one.topic_filter, key.topic)
                for one in receiver.subscriptions
            ):
                found.append(f"{receiver.name}: {key} {what}")
    for name, members in groups_of(receivers).items():
        if all(one.qos == 2 for _, one in members):
            times = Counter(key for receiver, _ in members for (key, qos), count in receiver.times.items() if qos == 2 and count)
            found += [
                f"{name}: {key} went to {count} members at QoS 2" for key, count in times.items() if count > 1 and key.topic != MARKER
            ]
    return found
