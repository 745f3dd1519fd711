"""Clients that do anything, against a broker of a page: sessions, QoS, retained messages, wills, shared groups.

`MQTTC_TEST_EXAMPLES` is the number of runs (80, always the same ones; with a number, different ones each time). After each step the
broker's gauges must be the model's.
"""

from __future__ import annotations

import logging
import os
import select
import time
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from ..conftest import WORKERS, check_live_objects
from ..rawclient import PUBACK, PUBCOMP, PUBLISH, PUBREC, PUBREL, TIMEOUT, Packet, Peer, Will, ack_packet, packet_end
from .conftest import Bench, Events

CLIENTS = ("c0", "c1", "c2", "c3", "c4")
TOPICS = ("a/b", "a/c", "a", "d/b", "s/x", "s/y")
FILTERS = ("a/b", "a/+", "a/#", "+/b", "d/b", "a")
SHARED = ("$share/g/s/+", "$share/h/s/+", "$share/g/s/x")
EXPIRY = 100
FOR_EVER = 86_400  # what the configuration gives 3.x sessions


def matches(topic_filter: str, topic: str) -> bool:
    wanted, given = topic_filter.split("/"), topic.split("/")
    for i, level in enumerate(wanted):
        if level == "#":
            return True
        if i >= len(given) or level not in ("+", given[i]):
            return False
    return len(wanted) == len(given)


@dataclass
class Message:
    topic: str
    payload: bytes
    qos: int
    retain: bool = False

    def at(self, qos: int, retain: bool = False) -> Message:
        return Message(self.topic, self.payload, min(qos, self.qos), retain)


@dataclass
class Sent:
    """In flight: `released` when PUBREC was sent, so that PUBREL is what comes again."""

    message: Message
    packet_id: int
    released: bool = False


@dataclass
class Session:
    expiry: int
    subscriptions: dict[str, int] = field(default_factory=dict)
    inflight: list[Sent] = field(default_factory=list)
    queue: list[Message] = field(default_factory=list)
    will: Message | None = None
    peer: Peer | None = None
    manners: str = "full"  # how it acknowledges: "full", "half" (PUBREC only) or "none"


@dataclass
class Group:
    members: list[str] = field(default_factory=list)
    backlog: list[Message] = field(default_factory=list)


class Clients(RuleBasedStateMachine):
    workers = 1

    def __init__(self) -> None:
        super().__init__()
        logging.getLogger("mqttc.broker").setLevel(logging.ERROR)
        self.bench = Bench({"listeners": [{"url": "tcp://127.0.0.1:0"}], "workers": self.workers, "auth": {"anonymous": True}}, Events())
        self.publisher = self.bench(5, "publisher")
        self.sessions: dict[str, Session] = {}
        self.retained: dict[str, Message] = {}
        self.groups: dict[str, Group] = {}
        self.count = 0

    def teardown(self) -> None:
        self.bench.close()
        check_live_objects()

    # ------------------------------------------------------------------------------ the broker of a page

    def route(self, message: Message) -> None:
        """What every session and group makes of a publication, and what the clients see of it."""
        if message.retain:
            if message.payload:
                self.retained[message.topic] = message
            else:
                self.retained.pop(message.topic, None)
        for session in self.sessions.values():
            granted = [qos for f, qos in session.subscriptions.items() if not f.startswith("$share") and matches(f, message.topic)]
            if granted:
                copy = message.at(max(granted))
                if session.peer is not None:
                    self.read(session, [[copy]])
                elif copy.qos:
                    session.queue.append(copy)
        for key, group in self.groups.items():
            if matches(key.split("/", 2)[2], message.topic):
                online = [c for c in group.members if self.sessions[c].peer is not None]
                if online:
                    self.read_one_of(key, online, message)
                elif message.qos:
                    group.backlog.append(message)

    def go_offline(self, client: str, *, ending: bool = False, with_will: bool) -> None:
        session = self.sessions[client]
        session.peer = None
        will, session.will = session.will, None
        if will is not None and with_will:
            self.route(will)
        if ending or session.expiry == 0:
            self.end(client)

    def end(self, client: str) -> None:
        session = self.sessions.pop(client)
        for topic_filter in session.subscriptions:
            self.leave(client, topic_filter)

    def leave(self, client: str, topic_filter: str) -> None:
        if topic_filter.startswith("$share"):
            group = self.groups[topic_filter]
            group.members.remove(client)
            if not group.members:
                del self.groups[topic_filter]

    # ------------------------------------------------------------------------------ what the clients see

    def read(self, session: Session, streams: list[list[Message | Sent]]) -> None:
        """Exactly these packets come: each stream in its order, among each other in any."""
        peer = session.peer
        assert peer is not None
        while any(streams):
            got = peer.recv()
            for stream in streams:
                if stream and self.is_that(got, stream[0]):
                    self.take(session, got, stream.pop(0))
                    break
            else:
                raise AssertionError(f"{got} came, due are {[s[:1] for s in streams]}")

    def is_that(self, got: Packet, due: Message | Sent) -> bool:
        if isinstance(due, Sent):
            if due.released:
                return (got.type, got.packet_id) == (PUBREL, due.packet_id)
            again = due.message
            return (got.type, got.packet_id, got.dup, got.topic, got.payload, got.qos, got.retain) == (
                PUBLISH,
                due.packet_id,
                True,
                again.topic,
                again.payload,
                again.qos,
                again.retain,
            )
        return (got.type, got.dup, got.topic, got.payload, got.qos, got.retain) == (
            PUBLISH,
            False,
            due.topic,
            due.payload,
            due.qos,
            due.retain,
        )

    def take(self, session: Session, got: Packet, due: Message | Sent) -> None:
        """Acknowledged as the client's manners are; messages of groups always to the end."""
        if isinstance(due, Message):
            if due.qos == 0:
                return
            assert all(s.packet_id != got.packet_id for s in session.inflight), "a packet id that is in use"
            due = Sent(due, got.packet_id)
            session.inflight.append(due)
        if due.message.topic.startswith("s/") or session.manners == "full":
            self.finish(session, due)
        elif session.manners == "half" and due.message.qos == 2 and not due.released:
            self.release(session, due)

    def release(self, session: Session, sent: Sent) -> None:
        assert session.peer is not None
        session.peer.send(ack_packet(PUBREC, sent.packet_id))
        session.peer.await_packet(PUBREL, sent.packet_id)
        sent.released = True

    def finish(self, session: Session, sent: Sent) -> None:
        assert session.peer is not None
        if sent.message.qos == 1:
            session.peer.send(ack_packet(PUBACK, sent.packet_id))
        else:
            if not sent.released:
                self.release(session, sent)
            session.peer.send(ack_packet(PUBCOMP, sent.packet_id))
        session.inflight.remove(sent)

    def read_one_of(self, key: str, members: list[str], message: Message) -> None:
        """One member, and just one, gets it."""
        sessions = [self.sessions[c] for c in members]
        deadline = time.monotonic() + TIMEOUT
        while True:
            for session in sessions:
                peer = session.peer
                assert peer is not None
                copy = message.at(session.subscriptions[key])
                while packet_end(peer.buffer) is not None:
                    peer.aside.append(peer._read())
                found = next((p for p in peer.aside if self.is_that(p, copy)), None)
                if found is not None:
                    peer.aside.remove(found)
                    self.take(session, found, copy)
                    return
            sockets = {s.peer.socket: s.peer for s in sessions if s.peer is not None}
            ready = select.select(list(sockets), [], [], max(deadline - time.monotonic(), 0))[0]
            assert ready, f"no member of {key} got {message}"
            for socket in ready:
                sockets[socket].aside.append(sockets[socket]._read())

    def come_online(self, client: str) -> None:
        """All that is due to a session when its client is back."""
        session = self.sessions[client]
        queue, session.queue = session.queue, []
        streams: list[list[Message | Sent]] = [[*session.inflight, *queue]]
        self.read(session, streams + [self.backlog(client, key) for key in session.subscriptions])

    def backlog(self, client: str, key: str) -> list[Message | Sent]:
        group = self.groups.get(key)
        if group is None:
            return []
        waiting, group.backlog = group.backlog, []
        return [m.at(self.sessions[client].subscriptions[key]) for m in waiting]

    # ------------------------------------------------------------------------------ what clients do

    def connected(self) -> list[str]:
        return [c for c, s in self.sessions.items() if s.peer is not None]

    @rule(
        client=st.sampled_from(CLIENTS),
        version=st.sampled_from((3, 4, 5)),
        clean=st.booleans(),
        expiry=st.sampled_from((0, EXPIRY)),
        manners=st.sampled_from(("full", "half", "none")),
        will=st.none() | st.tuples(st.sampled_from(TOPICS), st.integers(0, 2), st.booleans()),
    )
    def connect(self, client: str, version: int, clean: bool, expiry: int, manners: str, will: tuple[str, int, bool] | None) -> None:
        self.count += 1
        last = None if will is None else Message(will[0], b"will %d" % self.count, will[1], will[2])
        peer = self.bench.raw(version)
        packet_will = None if last is None else Will(last.topic, last.payload, last.qos, last.retain)
        connack = peer.connect(client, clean=clean, expiry=expiry, will=packet_will)
        assert connack.reason == 0
        session = self.sessions.get(client)
        if session is not None and session.peer is not None:
            session.peer.close()
            self.go_offline(client, ending=clean, with_will=True)
        elif session is not None and clean:
            self.end(client)
        session = self.sessions.get(client)
        assert version == 3 or connack.session_present is (session is not None)
        if session is None:
            session = self.sessions[client] = Session(0)
        session.expiry = expiry if version == 5 else 0 if clean else FOR_EVER
        session.peer, session.manners, session.will = peer, manners, last
        self.come_online(client)

    @precondition(lambda self: self.connected())
    @rule(data=st.data(), topic_filter=st.sampled_from(FILTERS + SHARED), qos=st.integers(0, 2))
    def subscribe(self, data: st.DataObject, topic_filter: str, qos: int) -> None:
        client = data.draw(st.sampled_from(self.connected()))
        session = self.sessions[client]
        assert session.peer is not None
        fresh = topic_filter not in session.subscriptions
        session.peer.subscribe(topic_filter, qos)
        session.subscriptions[topic_filter] = qos
        if topic_filter.startswith("$share"):
            if fresh:
                self.groups.setdefault(topic_filter, Group()).members.append(client)
            self.read(session, [self.backlog(client, topic_filter)])
        else:
            self.read(session, [[m.at(qos, True)] for m in self.retained.values() if matches(topic_filter, m.topic)])

    @precondition(lambda self: self.connected())
    @rule(data=st.data(), topic_filter=st.sampled_from(FILTERS + SHARED))
    def unsubscribe(self, data: st.DataObject, topic_filter: str) -> None:
        client = data.draw(st.sampled_from(self.connected()))
        session = self.sessions[client]
        assert session.peer is not None
        answer = session.peer.unsubscribe(topic_filter)
        had = session.subscriptions.pop(topic_filter, None) is not None
        assert session.peer.version != 5 or answer.reasons == [0 if had else 0x11]
        if had:
            self.leave(client, topic_filter)

    @rule(data=st.data(), topic=st.sampled_from(TOPICS), qos=st.integers(0, 2), retain=st.booleans(), empty=st.integers(0, 4))
    def publish(self, data: st.DataObject, topic: str, qos: int, retain: bool, empty: int) -> None:
        self.count += 1
        payload = b"" if retain and empty == 0 else b"%d" % self.count
        client = data.draw(st.sampled_from([None, *self.connected()]))
        peer = self.publisher if client is None else self.sessions[client].peer
        assert peer is not None
        peer.publish(topic, payload, qos, retain=retain)
        peer.ping()
        self.route(Message(topic, payload, qos, retain))

    @precondition(lambda self: self.connected())
    @rule(data=st.data(), with_will=st.booleans())
    def disconnect(self, data: st.DataObject, with_will: bool) -> None:
        client = data.draw(st.sampled_from(self.connected()))
        peer = self.sessions[client].peer
        assert peer is not None
        if with_will:
            peer.drop()
        else:
            peer.disconnect()
        self.go_offline(client, with_will=with_will)

    @precondition(lambda self: self.connected())
    @rule(data=st.data())
    def acknowledge(self, data: st.DataObject) -> None:
        """All that is open, in order; from now on at once."""
        session = self.sessions[data.draw(st.sampled_from(self.connected()))]
        session.manners = "full"
        for sent in list(session.inflight):
            self.finish(session, sent)

    @rule()
    def time_passes(self) -> None:
        self.bench.native.advance_clock(EXPIRY * 2)
        for client, session in list(self.sessions.items()):
            if session.peer is None and session.expiry == EXPIRY:
                self.end(client)

    # ------------------------------------------------------------------------------ what must always hold

    @invariant()
    def gauges(self) -> None:
        sessions = self.sessions.values()
        self.bench.until("sessions", len(sessions) + 1)
        self.bench.until("connections_open", len(self.connected()) + 1)
        self.bench.until("messages_inflight", sum(len(s.inflight) for s in sessions))
        self.bench.until("messages_queued", sum(len(s.queue) for s in sessions))
        self.bench.until("group_backlog", sum(len(g.backlog) for g in self.groups.values()))
        self.bench.until("subscriptions", sum(len(s.subscriptions) for s in sessions))
        self.bench.until("retained", len(self.retained))

    @invariant()
    def nothing_more_came(self) -> None:
        for session in self.sessions.values():
            if session.peer is not None:
                session.peer.ping()
                assert not session.peer.aside, f"nobody expected {session.peer.aside}"


@pytest.mark.parametrize("workers", sorted({1, WORKERS}))
def test_clients_against_the_model(workers: int) -> None:
    wanted = os.environ.get("MQTTC_TEST_EXAMPLES")

    class ForWorkers(Clients):
        pass

    ForWorkers.workers = workers
    level = logging.getLogger("mqttc.broker").level
    try:
        run_state_machine_as_test(
            ForWorkers,
            settings=settings(
                max_examples=int(wanted or 80),
                derandomize=wanted is None,
                database=None,
                stateful_step_count=50,
                deadline=None,
                phases=[Phase.generate] if wanted is None else list(Phase),
                suppress_health_check=list(HealthCheck),
            ),
        )
    finally:
        logging.getLogger("mqttc.broker").setLevel(level)
