"""Publishers and subscribers for the crash and power-loss tests: correct clients with persistent sessions, each in a thread of its own.

They do what sections 4.3 and 4.4 of the standards ask of a client whose connection breaks: what was not acknowledged is sent
again, in its order, PUBLISH with DUP, PUBREL as it was; packet ids of received QoS 2 messages are kept until their PUBREL.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Self

from tests.rawclient import (
    CONNACK,
    DISCONNECT,
    PUBACK,
    PUBCOMP,
    PUBLISH,
    PUBREC,
    PUBREL,
    RECEIVE_MAXIMUM,
    SUBACK,
    UNSUBACK,
    WILL_DELAY,
    Packet,
    Peer,
    PeerClosed,
    PeerTimeout,
    Will,
    ack_packet,
    connect_packet,
    publish_packet,
    subscribe_packet,
    unsubscribe_packet,
)  # fmt: skip

from .crash_model import History, Key, Receiver, Sent, Stream, Subscribed, delivered, key_of, payload_of, stream_of

PATIENCE_S = 20.0
"""How long a client that is connected waits for an answer before it says that none comes."""
EXPIRY_S = 3600
Event = tuple[int, str, tuple[Any, ...]]


class Gate:
    """Whether the broker is there, and whether clients shall go on making things up. Any thread.

    ``keeps_events``: clients can be made again as they were at any moment, which takes memory.
    """

    def __init__(self, address: str, history: History, *, keeps_events: bool = False) -> None:
        self.address = address
        self.history = history
        self.keeps_events = keeps_events
        self.up = threading.Event()
        self.draining = threading.Event()
        self.ended = threading.Event()

    def pause(self, seconds: float) -> None:
        """Let time pass, unless the run ends."""
        self.ended.wait(seconds)


class Client:
    """A session's client: its thread, its connection, and the events that make its state."""

    def __init__(self, name: str, gate: Gate, version: int, seed: str) -> None:
        self.name = name
        self.gate = gate
        self.version = version
        self.seed = seed
        self.random = random.Random(f"{seed}/{name}")
        self.events: list[Event] = []
        self.event_count = 0
        self.peer: Peer | None = None
        self.known = False
        """Whether the broker has promised the session."""
        self.thread = threading.Thread(target=self._main, name=name, daemon=True)
        self.changed = threading.Condition()

    # ---- events

    def record(self, kind: str, *values: Any) -> None:
        now = time.monotonic_ns()
        self.gate.history.note(self.name, f"{kind} {' '.join(str(value) for value in values)}")
        with self.changed:
            if self.gate.keeps_events:
                self.events.append((now, kind, values))
            self.event_count += 1
            self.apply(now, kind, *values)
            self.changed.notify_all()

    def apply(self, now: int, kind: str, *values: Any) -> None:
        getattr(self, f"on_{kind}")(now, *values)

    def restore(self, events: Iterable[Event], until: int) -> Self:
        """Become what the client of these events was at that time."""
        for event in events:
            if event[0] >= until:
                break
            self.apply(event[0], event[1], *event[2])
        return self

    def on_session(self, now: int) -> None:
        self.known = True

    def violation(self, what: str) -> None:
        self.gate.history.violation(self.name, what)

    # ---- connection

    def start(self) -> None:
        self.thread.start()

    def _main(self) -> None:
        try:
            while not self.gate.ended.is_set():
                if not self.gate.up.wait(0.1):
                    continue
                try:
                    self.turn()
                except (PeerClosed, OSError) as error:
                    self.gate.history.note(self.name, f"connection is gone: {error!r}")
                self.close()
        except BaseException as error:
            self.violation(f"the client failed: {error!r}")
            raise

    def turn(self) -> None:
        """One connection, from CONNECT to its end."""
        raise NotImplementedError

    def connect_options(self) -> dict[str, Any]:
        return {"clean": False, "expiry": EXPIRY_S, "keep_alive": 0}

    def open(self) -> Peer:
        """Connected, CONNACK read and judged."""
        peer = Peer(self.gate.address, self.version)
        old, self.peer = self.peer, peer
        try:
            peer.send(connect_packet(self.name, self.version, **self.connect_options()))
            try:
                answer = peer.recv(PATIENCE_S)
            except PeerTimeout:
                self.violation("no CONNACK")
                raise PeerClosed from None
        finally:
            if old is not None:
                old.close()
        if answer.type != CONNACK or answer.reason:
            self.violation(f"refused: {answer}")
            raise PeerClosed
        self.gate.history.note(self.name, f"connected, session present {answer.session_present}")
        if self.known and not answer.session_present:
            self.violation("its session is gone")
        if not self.known:
            self.record("session")
        return peer

    def close(self) -> None:
        if self.peer is not None:
            self.peer.close()
            self.peer = None

    def leave(self, peer: Peer) -> None:
        """End the connection in one of the ways in which connections end, or keep it for a take-over."""
        way = self.random.choice(("disconnect", "reset", "close", "take-over"))
        self.gate.history.note(self.name, f"leaves: {way}")
        if way == "disconnect":
            peer.send(bytes([DISCONNECT << 4, 0]))
        elif way == "reset":
            peer.reset()
        elif way == "take-over":
            return
        self.close()


# ---------------------------------------------------------------------------------------------- publishers


@dataclass
class Outgoing:
    """A message that its publisher must still look after."""

    sent: Sent
    retain: bool
    released: bool = False


class Publisher(Client):
    """Publishes rising numbers on its topics with a window of unacknowledged messages.

    ``streams``: (topic, QoS, retain). A message of a retained stream whose topic begins with ``clear/`` takes back every third one.
    """

    def __init__(
        self, name: str, gate: Gate, version: int, seed: str, streams: list[tuple[str, int, bool]], window: int, pause_s: float
    ) -> None:
        super().__init__(name, gate, version, seed)
        self.streams = streams
        self.window = window
        self.pause_s = pause_s
        self.open_ids: dict[int, Outgoing] = {}
        self.messages: list[Sent] = []
        self.numbers: dict[Stream, int] = {}
        self.next_id = 1

    @staticmethod
    def bytes_of(key: Key) -> bytes:
        return b"" if key.topic.startswith("clear/") and key.number % 3 == 0 else payload_of(key)

    # ---- events

    def on_publish(self, now: int, packet_id: int, key: Key, retain: bool) -> None:
        sent = Sent(key, now)
        self.messages.append(sent)
        self.numbers[stream_of(key)] = key.number
        self.open_ids[packet_id] = Outgoing(sent, retain)

    def on_puback(self, now: int, packet_id: int, reason: int) -> None:
        self._taken(now, self.open_ids.pop(packet_id).sent, reason)

    def on_pubrec(self, now: int, packet_id: int, reason: int) -> None:
        if reason >= 0x80:
            self._taken(now, self.open_ids.pop(packet_id).sent, reason)
            return
        out = self.open_ids[packet_id]
        self._taken(now, out.sent, reason)
        out.released = True

    def on_pubcomp(self, now: int, packet_id: int, reason: int) -> None:
        del self.open_ids[packet_id]

    @staticmethod
    def _taken(now: int, sent: Sent, reason: int) -> None:
        if reason >= 0x80:
            sent.refused = True
        elif sent.acknowledged is None:
            sent.acknowledged = now

    # ---- the connection

    def packet(self, packet_id: int, out: Outgoing, dup: bool) -> bytes:
        key = out.sent.key
        return publish_packet(key.topic, self.bytes_of(key), self.version, qos=key.qos, retain=out.retain, dup=dup, packet_id=packet_id)

    def turn(self) -> None:
        peer = self.open()
        again = [ack_packet(PUBREL, i) for i, out in self.open_ids.items() if out.released]
        again += [self.packet(i, out, True) for i, out in self.open_ids.items() if not out.released]
        if again:
            peer.send(*again)
        waiting_since = time.monotonic()
        leave_at = time.monotonic() + self.random.expovariate(0.5)
        while not self.gate.ended.is_set():
            if not self.gate.draining.is_set():
                if time.monotonic() > leave_at:
                    self.leave(peer)
                    return
                if len(self.open_ids) < self.window:
                    self.publish(peer)
            try:
                self.take(peer, peer.recv(self.random.random() * self.pause_s))
                waiting_since = time.monotonic()
            except PeerTimeout:
                if not self.open_ids:
                    waiting_since = time.monotonic()
                elif time.monotonic() - waiting_since > PATIENCE_S:
                    self.violation(
                        f"nothing is acknowledged any more: {[(i, str(o.sent.key), o.released) for i, o in self.open_ids.items()]}"
                    )
                    return

    def free_id(self) -> int:
        """The lowest that is free: ids are used again as soon as the standard allows."""
        return next(i for i in range(1, 65536) if i not in self.open_ids)

    def publish(self, peer: Peer) -> None:
        topic, qos, retain = self.random.choice(self.streams)
        key = Key(self.name, topic, qos, self.numbers.get(Stream(self.name, topic, qos), 0) + 1)
        packet_id = self.free_id()
        self.record("publish", packet_id, key, retain)
        peer.send(self.packet(packet_id, self.open_ids[packet_id], False))

    def take(self, peer: Peer, got: Packet) -> None:
        out = self.open_ids.get(got.packet_id)
        if got.type == PUBACK:
            if out is None or out.sent.key.qos != 1:
                self.violation(f"PUBACK for what is not open: {got}")
            else:
                self.record("puback", got.packet_id, got.reason)
        elif got.type == PUBREC:
            if out is None or out.sent.key.qos != 2:
                self.violation(f"PUBREC for what is not open: {got}")
            else:
                self.record("pubrec", got.packet_id, got.reason)
                if got.reason < 0x80:
                    peer.send(ack_packet(PUBREL, got.packet_id))
        elif got.type == PUBCOMP:
            if out is None or not out.released:
                self.violation(f"PUBCOMP for what is not released: {got}")
            else:
                self.record("pubcomp", got.packet_id, got.reason)
        else:
            self.violation(f"unexpected: {got}")
        if got.reason >= 0x80 and not (got.type == PUBCOMP and got.reason == 0x92):  # its PUBREL had arrived before
            self.violation(f"refused: {got}")

    @property
    def idle(self) -> bool:
        return not self.open_ids


# ---------------------------------------------------------------------------------------------- subscribers


@dataclass
class Habits:
    """What a subscriber does besides receiving; rates are per second."""

    filters: list[tuple[str, int]] = field(default_factory=list)
    toggles: list[tuple[str, int]] = field(default_factory=list)
    """Subscribed and unsubscribed in turn."""
    again: list[tuple[str, int]] = field(default_factory=list)
    """Subscribed again and again, for their retained messages."""
    ask_rate: float = 5.0
    leave_rate: float = 0.3
    away_s: float = 0.1
    """Mean time off line."""
    slow_s: float = 0.0
    """Acknowledgements are held back for up to this long."""
    receive_maximum: int = 12


class Subscriber(Client):
    """Receives and acknowledges as the standard demands."""

    def __init__(self, name: str, gate: Gate, version: int, seed: str, habits: Habits) -> None:
        super().__init__(name, gate, version, seed)
        self.habits = habits
        self.receiver = Receiver(name, ordered=not any(f.startswith("$share/") for f, _ in habits.filters))
        self.ids: dict[int, tuple[str, bytes]] = {}
        """QoS 2 messages that are not released yet: topic and payload."""
        self.asked: dict[int, tuple[str, list[Subscribed]]] = {}
        self.last: bytes = b""
        self.history = gate.history

    # ---- events

    def on_message(self, now: int, packet_id: int, qos: int, dup: bool, retain: bool, topic: str, payload: bytes) -> None:
        if qos == 2:
            if packet_id in self.ids:
                if self.ids[packet_id] != (topic, payload):
                    self.violation(
                        f"packet id {packet_id} is in use for {self.ids[packet_id][1][:40]!r}, and comes with {topic} {payload[:40]!r}"
                    )
                return
            self.ids[packet_id] = (topic, payload)
        key = key_of(topic, payload)
        if key is None:
            self.violation(f"{topic} came with other bytes: {payload[:60]!r}")
        elif not retain:
            delivered(self.receiver, now, key, qos, dup, self.history)

    def on_released(self, now: int, packet_id: int) -> None:
        self.ids.pop(packet_id, None)

    def on_subscribe(self, now: int, packet_id: int, filters: tuple[tuple[str, int], ...]) -> None:
        made = []
        for topic_filter, qos in filters:
            standing = [one for one in self.receiver.subscriptions if one.topic_filter == topic_filter and one.granted and one.left is None]
            if not standing:
                standing = [Subscribed(topic_filter, qos, now)]
                self.receiver.subscriptions += standing
                self.receiver.latest[topic_filter] = standing[0]
            made += standing
        self.asked[packet_id] = ("subscribe", made)

    def on_suback(self, now: int, packet_id: int) -> None:
        for one in self.asked.pop(packet_id)[1]:
            if one.granted is None:
                one.granted = now
                self.receiver.granted.setdefault(one.topic_filter, []).append(one)

    def on_unsubscribe(self, now: int, packet_id: int, topic_filter: str) -> None:
        ending = [one for one in self.receiver.subscriptions if one.topic_filter == topic_filter and one.gone is None]
        for one in ending:
            one.left = now if one.left is None else one.left
        self.asked[packet_id] = ("unsubscribe", ending)

    def on_unsuback(self, now: int, packet_id: int) -> None:
        for one in self.asked.pop(packet_id)[1]:
            one.gone = now

    # ---- the connection

    def connect_options(self) -> dict[str, Any]:
        return {**super().connect_options(), "props": ((RECEIVE_MAXIMUM, self.habits.receive_maximum),)}

    def turn(self) -> None:
        peer = self.open()
        habits = self.habits
        self.asked.clear()
        left = [f for f in habits.filters if not self.granted(f[0])]
        if left:
            self.subscribe(peer, left)
        acks: list[bytes] = []
        ack_at = 0.0
        now = time.monotonic()
        leave_at = now + self.random.expovariate(habits.leave_rate)
        ask_at = now + self.random.expovariate(habits.ask_rate)
        while not self.gate.ended.is_set():
            now = time.monotonic()
            draining = self.gate.draining.is_set()
            if acks and now >= ack_at:
                peer.send(*acks)
                acks.clear()
            if not draining and now > leave_at:
                self.leave(peer)
                self.gate.pause(self.random.expovariate(1 / habits.away_s))
                return
            if not draining and now > ask_at and not self.asked:
                self.ask(peer)
                ask_at = now + self.random.expovariate(habits.ask_rate)
            waiting = bool(acks)
            try:
                got = peer.recv(max(0.0, ack_at - now) if acks else 0.02)
                while True:
                    self.take(peer, got, acks)
                    got = peer.recv(0)
            except PeerTimeout:
                pass
            if acks and not waiting:
                ack_at = now + (0 if draining else self.random.random() * habits.slow_s)

    def granted(self, topic_filter: str) -> bool:
        return any(one.topic_filter == topic_filter and one.granted is not None and one.gone is None for one in self.receiver.subscriptions)

    def ask(self, peer: Peer) -> None:
        topic_filter, qos = self.random.choice(self.habits.toggles + self.habits.again or [("", 0)])
        if not topic_filter:
            return
        if (topic_filter, qos) in self.habits.toggles and any(
            one.topic_filter == topic_filter and one.gone is None for one in self.receiver.subscriptions
        ):
            packet_id = peer.packet_id()
            self.record("unsubscribe", packet_id, topic_filter)
            peer.send(unsubscribe_packet([topic_filter], self.version, packet_id=packet_id))
        else:
            self.subscribe(peer, [(topic_filter, qos)])

    def subscribe(self, peer: Peer, filters: list[tuple[str, int]]) -> None:
        packet_id = peer.packet_id()
        self.record("subscribe", packet_id, tuple(filters))
        peer.send(subscribe_packet(filters, self.version, packet_id=packet_id))

    def take(self, peer: Peer, got: Packet, acks: list[bytes]) -> None:
        if got.type == PUBLISH:
            self.record("message", got.packet_id, got.qos, got.dup, got.retain, got.topic, got.payload)
            if got.qos:
                acks.append(ack_packet(PUBACK if got.qos == 1 else PUBREC, got.packet_id))
        elif got.type == PUBREL:
            known = got.packet_id in self.ids
            self.record("released", got.packet_id)
            acks.append(ack_packet(PUBCOMP, got.packet_id, None if known or self.version != 5 else 0x92))
        elif got.type in (SUBACK, UNSUBACK) and got.packet_id in self.asked:
            if any(reason >= 0x80 for reason in got.reasons):
                self.violation(f"refused: {got}")
            self.record("suback" if got.type == SUBACK else "unsuback", got.packet_id)
        else:
            self.violation(f"unexpected: {got}")


# ---------------------------------------------------------------------------------------------- wills


class Mourned(Client):
    """A client whose connection only ever ends with the broker.

    ``stays_away``: its will must go out before it comes back; else it must never.
    """

    def __init__(self, name: str, gate: Gate, seed: str, delay_s: int, stays_away: bool, heir: Subscriber) -> None:
        super().__init__(name, gate, 5, seed)
        self.delay_s = delay_s
        self.stays_away = stays_away
        self.heir = heir
        self.life = 0
        self.armed = 0
        """The last life of which the broker has certainly kept the will."""
        self.wills: list[Sent] = []
        self.sent: list[Sent] = []

    def on_born(self, now: int, life: int) -> None:
        self.life = life
        self.wills.append(Sent(self.will_key(life), now))
        self.sent.append(Sent(self.proof_key(life), now))

    def on_armed(self, now: int, life: int) -> None:
        self.armed = life
        self.sent[-1].acknowledged = now

    def will_key(self, life: int) -> Key:
        return Key(self.name, f"will/{self.name}", 2, life)

    def proof_key(self, life: int) -> Key:
        """A message behind the CONNECT: whose PUBACK comes, the journal has the will too."""
        return Key(self.name, f"armed/{self.name}", 1, life)

    def connect_options(self) -> dict[str, Any]:
        key = self.will_key(self.life)
        will = Will(key.topic, payload_of(key), 2, props=((WILL_DELAY, self.delay_s),))
        return {**super().connect_options(), "will": will}

    def out(self, life: int) -> bool:
        with self.heir.changed:
            return self.will_key(life) in self.heir.receiver.keys

    @property
    def due(self) -> bool:
        """Its will is to come, and has not come yet."""
        return self.stays_away and self.armed == self.life > 0 and self.peer is None and not self.out(self.life)

    def turn(self) -> None:
        if self.due:
            with self.heir.changed:
                self.heir.changed.wait(0.1)
            return
        if self.gate.draining.is_set():
            self.gate.pause(0.05)
            return
        self.record("born", self.life + 1)
        peer = self.open()
        peer.send(publish_packet(f"armed/{self.name}", payload_of(self.proof_key(self.life)), 5, qos=1, packet_id=1))
        if peer.recv(PATIENCE_S).type == PUBACK:
            self.record("armed", self.life)
        while not self.gate.ended.is_set():
            try:
                peer.recv(0.1)
            except PeerTimeout:
                continue


def until(condition: Callable[[], bool], gate: Gate, progress: Callable[[], int], patience_s: float = PATIENCE_S) -> bool:
    """Wait for a condition as long as there is progress; False: it never came true."""
    last, since = progress(), time.monotonic()
    while not condition():
        if gate.history.broken.wait(0.02):
            return False
        now = progress()
        if now != last:
            last, since = now, time.monotonic()
        elif time.monotonic() - since > patience_s:
            return False
    return True
