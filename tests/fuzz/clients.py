"""Clients that do anything, compared with the reference: what comes, in which order, with which flags; and the broker's gauges."""

from __future__ import annotations

import itertools
import logging
import select
import time
from dataclasses import replace
from typing import Any

from hypothesis import assume
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ..broker.conftest import Bench, Events
from ..conftest import check_live_objects
from ..rawclient import (
    CONTENT_TYPE,
    CORRELATION_DATA,
    PUBACK,
    PUBCOMP,
    PUBLISH,
    PUBREC,
    PUBREL,
    RECEIVE_MAXIMUM,
    SESSION_EXPIRY,
    SUBSCRIPTION_ID,
    TIMEOUT,
    USER_PROPERTY,
    WILL_DELAY,
    Packet,
    Peer,
    Will,
    ack_packet,
    packet_end,
    publish_packet,
)
from .reference import UNLIMITED, Due, LastWill, Message, Reference, Sent, Session, Subscription

CLIENTS = ("c0", "c1", "c2", "c3")
NARROW = "narrow"
"""A client of MQTT 5.0 that takes two unacknowledged messages at a time."""
WINDOW = 2
TOPICS = ("a/b", "a/c", "a", "d/b", "s/x", "s/y")
FILTERS = ("a/b", "a/+", "a/#", "+/b", "d/b", "a")
# Where a client takes its own connection over, a will at QoS 0, or to a group, may or may not find the new one there: no such wills.
WILL_TOPICS = ("w/1", "w/2", "a/b")
WILL_QOS = st.integers(1, 2)
WILL_FILTERS = ("w/+", "w/#")
SHARED = ("$share/g/s/+", "$share/h/s/+", "$share/g/s/x")
PROPERTIES = ((), ((CONTENT_TYPE, "t"), (USER_PROPERTY, ("k", "v")), (USER_PROPERTY, ("k", "w"))), ((CORRELATION_DATA, b"\0"),))
FOR_EVER = 10**9  # seconds: what the configuration gives 3.x sessions
UNIT = 400
"""Seconds. The model's clock stands at multiples of this, and what happens by itself does so half-way between two: the broker's
clock, which runs on while a history is played, is never on the other side of it."""
WillChoice = tuple[str, int, bool, bool]
"""Topic, QoS, RETAIN, and whether it is delayed."""
SOON, LATE = 1, 20  # units: of a will's delay, of a session
HELD_IDS = 20_000  # identifiers of QoS 2 messages that are held open begin here

clients = st.sampled_from((*CLIENTS, NARROW))


class Clients(RuleBasedStateMachine):
    workers = 1

    def __init__(self) -> None:
        super().__init__()
        logging.getLogger("mqttc.broker").setLevel(logging.ERROR)
        config = {"listeners": [{"url": "tcp://127.0.0.1:0"}], "workers": self.workers, "auth": {"anonymous": True}}
        self.bench = Bench({**config, "limits": {"session_expiry": FOR_EVER}}, Events())
        self.publisher = self.bench(5, "publisher")
        self.reference = Reference()
        self.peers: dict[str, Peer] = {}
        self.manners: dict[str, str] = {}
        """How a client acknowledges: "full", "half" (PUBREC only) or "none"."""
        self.count = 0

    def teardown(self) -> None:
        self.bench.close()
        check_live_objects()

    # ------------------------------------------------------------------------------ what the clients see

    def follow(self, message: Message) -> None:
        """A publication, and what all clients see of it."""
        outcome = self.reference.publish(message)
        for client, copy in outcome.sessions.items():
            self.read(client, [[copy]])
        if outcome.groups:
            self.read_groups(outcome.groups)

    def read(self, client: str, streams: list[Due]) -> None:
        """Exactly these packets come: each stream in its order, among each other in any; then what the window lets go."""
        peer = self.peers[client]
        while any(streams):
            got = peer.recv()
            for stream in streams:
                if stream and self.is_that(peer, got, stream[0]):
                    self.take(client, got, stream.pop(0))
                    break
            else:
                raise AssertionError(f"{client}: {got} came, due are {[s[:1] for s in streams]}")
        self.pump(client)

    def pump(self, client: str) -> None:
        session = self.reference.sessions[client]
        while (message := self.reference.next_queued(session)) is not None:
            peer = self.peers[client]
            got = peer.recv()
            assert self.is_that(peer, got, message), f"{client}: {got} came, due is {message}"
            self.take(client, got, message)

    def is_that(self, peer: Peer, got: Packet, due: Message | Sent) -> bool:
        if isinstance(due, Sent) and due.released:
            return (got.type, got.packet_id) == (PUBREL, due.packet_id)
        message = due.message if isinstance(due, Sent) else due
        if (got.type, got.topic, got.payload, got.qos, got.retain) != (
            PUBLISH,
            message.topic,
            message.payload,
            message.qos,
            message.retain,
        ):
            return False
        if got.dup != isinstance(due, Sent) or (isinstance(due, Sent) and got.packet_id != due.packet_id):
            return False
        if peer.version != 5:
            return True
        props = tuple(one for one in got.props if one[0] != SUBSCRIPTION_ID)
        ids = tuple(sorted(got.all_props(SUBSCRIPTION_ID)))
        optional = isinstance(due, Sent) and not due.identified and ids == ()
        return props == message.props and (ids == message.subscription_ids or optional)

    def take(self, client: str, got: Packet, due: Message | Sent) -> None:
        """Acknowledged as the client's manners are; messages of groups always to the end."""
        session = self.reference.sessions[client]
        if isinstance(due, Message):
            if due.qos == 0:
                return
            assert all(sent.packet_id != got.packet_id for sent in session.inflight), "a packet id that is in use"
            due = Sent(due, got.packet_id, identified=self.peers[client].version == 5)
            session.inflight.append(due)
            assert len(session.inflight) <= session.window, "more is in flight than the client takes"
        if due.message.topic.startswith("s/") or self.manners[client] == "full":
            self.finish(client, due)
        elif self.manners[client] == "half" and due.message.qos == 2 and not due.released:
            self.release(client, due)

    def release(self, client: str, sent: Sent) -> None:
        peer = self.peers[client]
        peer.send(ack_packet(PUBREC, sent.packet_id))
        peer.await_packet(PUBREL, sent.packet_id)
        sent.released = True

    def finish(self, client: str, sent: Sent) -> None:
        peer = self.peers[client]
        if sent.message.qos == 1:
            peer.send(ack_packet(PUBACK, sent.packet_id))
        else:
            if not sent.released:
                self.release(client, sent)
            peer.send(ack_packet(PUBCOMP, sent.packet_id))
        self.reference.sessions[client].inflight.remove(sent)

    def read_groups(self, groups: dict[str, Message]) -> None:
        """Of each group one member, and just one, gets it. Some are members of several."""
        members = {key: self.reference.members_online(key) for key in groups}
        concerned = sorted({client for clients in members.values() for client in clients})
        deadline = time.monotonic() + TIMEOUT
        while True:
            for peer in map(self.peers.__getitem__, concerned):
                while packet_end(peer.buffer) is not None:
                    peer.aside.append(peer._read())
            came = [(client, packet) for client in concerned for packet in self.peers[client].aside]
            if len(came) >= len(groups):
                break
            sockets = {self.peers[client].socket: self.peers[client] for client in concerned}
            ready = select.select(list(sockets), [], [], max(deadline - time.monotonic(), 0))[0]
            assert ready, f"of {groups} only {came} came"
            for socket in ready:
                sockets[socket].aside.append(sockets[socket]._read())
        for keys in itertools.permutations(groups):
            copies = [self.copy_of(key, client, groups[key]) for key, (client, _) in zip(keys, came, strict=True)]
            pairs = list(zip(came, copies, strict=True))
            if all(copy is not None and self.is_that(self.peers[client], packet, copy) for (client, packet), copy in pairs):
                for (client, packet), copy in pairs:
                    assert copy is not None
                    self.peers[client].aside.remove(packet)
                    self.take(client, packet, copy)
                return
        raise AssertionError(f"{came} came, due are {groups} to {members}")

    def copy_of(self, key: str, client: str, message: Message) -> Message | None:
        """As this member gets it; None: it is none."""
        if client not in self.reference.groups[key].members:
            return None
        return replace(message, qos=min(message.qos, self.reference.sessions[client].subscriptions[key].qos))

    # ------------------------------------------------------------------------------ what clients do

    def online(self) -> list[str]:
        return list(self.peers)

    def drawn(self, data: st.DataObject) -> tuple[str, Session, Peer]:
        client = data.draw(st.sampled_from(self.online()))
        return client, self.reference.sessions[client], self.peers[client]

    def lost(self, client: str, *, with_will: bool) -> None:
        self.peers.pop(client).close()
        for will in self.reference.lose(client, with_will=with_will):
            self.follow(will)

    @initialize(versions=st.tuples(*[st.sampled_from((4, 5, 5))] * 4), manners=st.tuples(*[st.sampled_from(("full", "half", "none"))] * 5))
    def begin(self, versions: tuple[int, ...], manners: tuple[str, ...]) -> None:
        """All are there, with subscriptions that overlap, so that every step has company."""
        for number, client in enumerate((*CLIENTS, NARROW)):
            version = 5 if client == NARROW else versions[number]
            will = (WILL_TOPICS[number % 2], 1 + number % 2, number == 0, True) if version == 5 else None
            self.come(client, version, clean=False, expires=True, manners=manners[number], will=will)
            for topic_filter in (FILTERS[number], FILTERS[(number + 2) % len(FILTERS)], WILL_FILTERS[number % 2]):
                self.ask(
                    client, [topic_filter], number % 3, no_local=number == 1, as_published=number == 2, handling=0, subscription_id=number
                )
            if client != NARROW and number % 2:
                self.ask(client, [SHARED[number // 2]], number % 3)

    @rule(
        client=clients,
        version=st.sampled_from((3, 4, 5)),
        clean=st.booleans(),
        expires=st.booleans(),
        manners=st.sampled_from(("full", "half", "none")),
        will=st.none() | st.tuples(st.sampled_from(WILL_TOPICS), WILL_QOS, st.booleans(), st.booleans()),
    )
    def connect(self, client: str, version: int, clean: bool, expires: bool, manners: str, will: WillChoice | None) -> None:
        self.come(client, version, clean=clean, expires=expires, manners=manners, will=will)

    def period(self, units: int) -> int:
        """Seconds, each time others, so that hardly two things happen at one time."""
        return UNIT * (units + self.count) + UNIT // 2

    def come(self, client: str, version: int, *, clean: bool, expires: bool, manners: str, will: WillChoice | None) -> None:
        self.count += 1
        if client == NARROW:
            version = 5
        last, packet_will = None, None
        if will is not None:
            topic, qos, retain, delayed = will
            delay = self.period(SOON) if delayed and version == 5 else 0
            last = LastWill(Message(topic, b"will %d" % self.count, qos, retain, publisher=client), delay)
            packet_will = Will(topic, last.message.payload, qos, retain, ((WILL_DELAY, delay),) if delay else ())
        window = WINDOW if client == NARROW else UNLIMITED
        until = self.period(LATE) if expires else 0
        expiry = until if version == 5 else 0 if clean else FOR_EVER
        peer = self.bench.raw(version)
        props = ((RECEIVE_MAXIMUM, window),) if client == NARROW else ()
        connack = peer.connect(client, clean=clean, expiry=expiry, will=packet_will, props=props)
        assert connack.reason == 0
        if client in self.peers:
            # Taken over: its will is due, a delayed one only if the session ends by this [MQTT-3.1.4-3, MQTT-3.1.3-9].
            self.lost(client, with_will=True)
        present, wills = self.reference.connect(client, clean=clean, expiry=expiry, window=window, will=last)
        assert version == 3 or connack.session_present is present
        self.peers[client], self.manners[client] = peer, manners
        session = self.reference.sessions[client]
        stored: Due = list(session.inflight)
        if window == UNLIMITED:
            stored += session.queue
            session.queue = []
        due: list[Due] = [stored, *(self.reference.backlog(client, key) for key in session.subscriptions)]
        self.read(client, due)
        for message in wills:
            self.follow(message)

    @precondition(lambda self: self.peers)
    @rule(
        data=st.data(),
        filters=st.lists(st.sampled_from(FILTERS + WILL_FILTERS + SHARED), min_size=1, max_size=3, unique=True),
        qos=st.integers(0, 2),
        no_local=st.booleans(),
        as_published=st.booleans(),
        handling=st.integers(0, 2),
        subscription_id=st.sampled_from((0, 1, 300)),
    )
    def subscribe(
        self,
        data: st.DataObject,
        filters: list[str],
        qos: int,
        no_local: bool,
        as_published: bool,
        handling: int,
        subscription_id: int,
    ) -> None:
        client, _, _ = self.drawn(data)
        if client == NARROW:
            # What a member without room gets, and how hand-outs share the window, is the broker's choice.
            filters = [one for one in filters if not one.startswith("$share/")]
            handling = 2
        assume(filters)
        self.ask(client, filters, qos, no_local=no_local, as_published=as_published, handling=handling, subscription_id=subscription_id)

    def ask(
        self,
        client: str,
        filters: list[str],
        qos: int,
        *,
        no_local: bool = False,
        as_published: bool = False,
        handling: int = 0,
        subscription_id: int = 0,
    ) -> None:
        """One SUBSCRIBE. What 5.0 alone has is left out for other versions, and where one of the filters is shared."""
        peer = self.peers[client]
        plain = peer.version != 5 or any(one.startswith("$share/") for one in filters)
        if plain:
            no_local, as_published, handling, subscription_id = False, False, 0, 0
        wanted = {one: Subscription(qos, no_local and not one.startswith("$share/"), as_published, subscription_id) for one in filters}
        options = [(one, qos | it.no_local << 2 | it.retain_as_published << 3 | handling << 4) for one, it in wanted.items()]
        props = ((SUBSCRIPTION_ID, subscription_id),) if subscription_id else ()
        assert peer.subscribe_many(options, props) == [qos] * len(filters)
        streams: list[Due] = []
        for topic_filter, it in wanted.items():
            streams += [[message] for message in self.reference.subscribe(client, topic_filter, it, handling)]
            if topic_filter.startswith("$share/"):
                streams.append(self.reference.backlog(client, topic_filter))
        self.read(client, streams)

    @precondition(lambda self: self.peers)
    @rule(data=st.data(), topic_filter=st.sampled_from(FILTERS + WILL_FILTERS + SHARED))
    def unsubscribe(self, data: st.DataObject, topic_filter: str) -> None:
        client, _, peer = self.drawn(data)
        answer = peer.unsubscribe(topic_filter)
        had = self.reference.unsubscribe(client, topic_filter)
        assert peer.version != 5 or answer.reasons == [0 if had else 0x11]

    def sender(self, data: st.DataObject) -> tuple[str | None, Peer]:
        client = data.draw(st.sampled_from([None, *self.online()]))
        return client, self.publisher if client is None else self.peers[client]

    @rule(
        data=st.data(),
        topic=st.sampled_from(TOPICS),
        qos=st.integers(0, 2),
        retain=st.booleans(),
        empty=st.integers(0, 4),
        props=st.sampled_from(PROPERTIES),
    )
    def publish(self, data: st.DataObject, topic: str, qos: int, retain: bool, empty: int, props: tuple[Any, ...]) -> None:
        self.count += 1
        payload = b"" if retain and empty == 0 else b"%d" % self.count
        client, peer = self.sender(data)
        props = props if peer.version == 5 else ()
        answer = peer.publish(topic, payload, qos, retain=retain, props=props)
        assert answer is None or answer.reason in (0, 0x10)
        peer.ping()
        self.follow(Message(topic, payload, qos, retain, props, publisher=client))

    # QoS 2 towards the broker, step by step.

    @precondition(lambda self: self.peers)
    @rule(data=st.data(), topic=st.sampled_from(TOPICS))
    def begin_exchange(self, data: st.DataObject, topic: str) -> None:
        self.count += 1
        client, session, peer = self.drawn(data)
        packet_id = HELD_IDS + self.count
        message = Message(topic, b"%d" % self.count, 2, publisher=client)
        peer.send(publish_packet(topic, message.payload, peer.version, qos=2, packet_id=packet_id))
        assert peer.await_packet(PUBREC, packet_id).reason in (0, 0x10)
        session.inbound.add(packet_id)
        peer.ping()
        self.follow(message)

    @precondition(lambda self: any(self.reference.sessions[client].inbound for client in self.peers))
    @rule(data=st.data(), again=st.booleans())
    def go_on_with_exchange(self, data: st.DataObject, again: bool) -> None:
        """PUBLISH once more, which is no new message, or PUBREL."""
        client = data.draw(st.sampled_from([one for one in self.peers if self.reference.sessions[one].inbound]))
        session, peer = self.reference.sessions[client], self.peers[client]
        packet_id = data.draw(st.sampled_from(sorted(session.inbound)))
        if again:
            peer.send(publish_packet("a/b", b"again", peer.version, qos=2, packet_id=packet_id, dup=True))
            assert peer.await_packet(PUBREC, packet_id).reason == 0
        else:
            peer.send(ack_packet(PUBREL, packet_id))
            assert peer.await_packet(PUBCOMP, packet_id).reason == 0
            session.inbound.remove(packet_id)

    @precondition(lambda self: self.peers)
    @rule(data=st.data())
    def release_what_is_unknown(self, data: st.DataObject) -> None:
        _, _, peer = self.drawn(data)
        peer.send(ack_packet(PUBREL, HELD_IDS - 1))
        assert peer.await_packet(PUBCOMP, HELD_IDS - 1).reason == (0x92 if peer.version == 5 else 0)

    # Acknowledgements that were withheld.

    @precondition(lambda self: self.peers)
    @rule(data=st.data())
    def acknowledge(self, data: st.DataObject) -> None:
        """All that is open, in order; from now on at once."""
        client, session, _ = self.drawn(data)
        self.manners[client] = "full"
        for sent in list(session.inflight):
            self.finish(client, sent)
            self.pump(client)

    @precondition(lambda self: any(self.reference.sessions[client].inflight for client in self.peers))
    @rule(data=st.data(), refused=st.booleans())
    def acknowledge_one(self, data: st.DataObject, refused: bool) -> None:
        """Any of them; a refusal ends its exchange too [MQTT-4.4.0-2]."""
        client = data.draw(st.sampled_from([one for one in self.peers if self.reference.sessions[one].inflight]))
        session, peer = self.reference.sessions[client], self.peers[client]
        sent = data.draw(st.sampled_from(session.inflight))
        if refused and peer.version == 5 and not sent.released:
            peer.send(ack_packet(PUBACK if sent.message.qos == 1 else PUBREC, sent.packet_id, 0x80))
            session.inflight.remove(sent)
        else:
            self.finish(client, sent)
        self.pump(client)

    # Ends.

    @precondition(lambda self: self.peers)
    @rule(data=st.data(), how=st.sampled_from(("goodbye", "with will", "drop", "reset")), expires=st.sampled_from((None, False, True)))
    def disconnect(self, data: st.DataObject, how: str, expires: bool | None) -> None:
        self.count += 1
        client, session, peer = self.drawn(data)
        if how == "drop":
            peer.drop()
        elif how == "reset":
            peer.reset()
        elif peer.version == 5:
            props = None
            if expires is not None and session.expiry:
                session.expiry = self.period(LATE) if expires else 0
                props = ((SESSION_EXPIRY, session.expiry),)
            peer.disconnect(4 if how == "with will" else 0, props)
        else:
            peer.disconnect()
        abrupt = how in ("drop", "reset") or (how == "with will" and peer.version == 5)
        self.bench.until("connections_open", len(self.peers))  # one fewer, and the publisher
        self.lost(client, with_will=abrupt)

    @rule(far=st.booleans())
    def time_passes(self, far: bool) -> None:
        """Up to the next thing that happens by itself, and past it; or past all of them."""
        events = [at for at in self.reference.events() if at < self.reference.now + FOR_EVER // 2]
        if len(set(events)) < len(events):
            return  # which of two wills comes first would not be known
        for at in events if far else events[:1]:
            self.move_clock(at - UNIT // 2)
            self.nothing_more_came()
            self.gauges()
            self.move_clock(at + UNIT // 2)

    def move_clock(self, to: int) -> None:
        self.bench.native.advance_clock(to - self.reference.now)
        for will in self.reference.pass_time(to):
            self.follow(will)

    # ------------------------------------------------------------------------------ what must always hold

    @invariant()
    def gauges(self) -> None:
        for name, value in self.reference.gauges().items():
            self.bench.until(name, value + (name in ("sessions", "connections_open")))

    @invariant()
    def nothing_more_came(self) -> None:
        for client, peer in self.peers.items():
            peer.ping()
            assert not peer.aside, f"{client}: nobody expected {peer.aside}"
