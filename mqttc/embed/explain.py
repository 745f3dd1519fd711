"""What a running broker decides about one question, and who would receive a message."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal

from mqttc import codec, inside
from mqttc.auth.acl import Explanation, action_bit, actions_of, questions_of
from mqttc.auth.grant import Action
from mqttc.codec import QoS
from mqttc.embed.admin import PAGE_BYTES, Page, Reader, SubscriptionInfo, checked, page_limit, place_of, read_subscription

if TYPE_CHECKING:
    from mqttc.auth.rules import RulesInForce
    from mqttc.embed.hub import Hub

_DECISION: Final = struct.Struct("=BBBBBI")
_RECEIVER: Final = struct.Struct("=BIII")
_LISTENER: Final = struct.Struct("=H")
_ONLINE, _INSIDE, _CONTINUED, _UNCERTAIN, _QUEUES = 1, 2, 4, 8, 16
_WHOLE: Final = 128
_SOURCES: Final = ("rule", "default", "superuser", "name", "expiry", "memory", "nothing")
"""In the order of rights.AclSource."""
_PUBLICATIONS: Final = ("publish", "retain", "will")

Outcome = Literal["delivered", "queued", "not queued", "shared", "own", "refused"]


@dataclass(frozen=True, slots=True)
class Receiver:
    """A session with filters that match a topic. Text comes from the client: escape it before it is shown."""

    client_id: str
    username: str | None
    """Whom the rules take it for; where there are no rules, what CONNECT says."""
    outcome: Outcome
    """``"delivered"``; ``"queued"``: its client is away, and the message waits; ``"not queued"``: it is away, and has asked for QoS 0;
    ``"shared"``: only as a member of shared groups; ``"own"``: it is the publisher's, and it wants none of its own messages
    (section 3.8.3.1, No Local); ``"refused"``: the rules or its grant deny it, as ``decision`` says."""
    connected: bool
    in_process: bool
    """The program's own subscription."""
    qos: QoS
    """The highest that was granted to the filters that match; the message's own may be lower."""
    filters: tuple[SubscriptionInfo, ...]
    """Those that match, shared ones with ``$share/group/`` in front; of very many only some."""
    filter_count: int
    """How many match."""
    queued: int
    """Messages that wait for it already."""
    decision: Explanation
    """About ``receive``."""

    @property
    def groups(self) -> tuple[str, ...]:
        """Shared filters by which one member of each group, perhaps this one, gets the message."""
        return tuple(one.topic_filter for one in self.filters if _is_shared(one))


@dataclass(frozen=True, slots=True)
class LiveExplanation(Explanation):
    """What a running broker decides about one question."""

    connected: bool = False
    """It was asked of the connected client itself, so that its grant counts; else of the rules in force alone."""
    receivers: Page[Receiver] | None = None
    """For ``publish``, ``retain`` and ``will``, where that is allowed: a page of those whose filters match. Hooks are not asked."""


def _is_shared(subscription: SubscriptionInfo) -> bool:
    return subscription.topic_filter.startswith("$share/")


async def explain(
    hub: Hub,
    rules: RulesInForce | None,
    action: Action,
    topic: str,
    *,
    client_id: str,
    username: str | None,
    listener: str | None,
    groups: Sequence[str],
    limit: int,
    after: str | None,
) -> LiveExplanation:
    """See ``Broker.explain``."""
    page_limit(limit)
    questions = questions_of(action, topic)  # before anybody is asked: it may be no topic
    own = None if groups else await _of_client(hub, rules, questions, client_id, username, listener)
    if own is not None:
        found = own
    elif rules is not None:
        found = rules.explain(action, topic, client_id=client_id, username=username, listener=listener, groups=groups)
    else:
        found = Explanation(True, "nothing")
    receivers = None
    if found.allowed and action in _PUBLICATIONS:
        receivers = await list_receivers(hub, rules, topic, limit, after, client_id)
    return LiveExplanation(found.allowed, found.by, found.rule, found.granted, own is not None, receivers)


async def _of_client(
    hub: Hub,
    rules: RulesInForce | None,
    questions: Sequence[tuple[Action, str, bool]],
    client_id: str,
    username: str | None,
    listener: str | None,
) -> Explanation | None:
    """By the rights of the connected client. None: it is not connected, or it is not by that user and listener."""
    encoded = client_id.encode("utf-8", "surrogatepass")
    decision: Explanation | None = None
    for action, text, whole in questions:
        answer = checked(
            await hub.ask(
                inside.DECIDE,
                worker=hub.port.home(encoded),
                options=action_bit(action) | _WHOLE * whole,
                split=len(encoded),
                data=encoded + text.encode(),
            )
        )
        if not answer.count:
            return None
        reader = Reader(answer.result)
        decision = _decision(reader, rules)
        (place,) = reader.take(_LISTENER)
        user = reader.text()
        if username is not None and username != user:
            return None
        served = hub.served.get(place)
        names = set() if served is None else {served.name, served.listener.address.url(), served.bound.url}
        if listener is not None and listener not in names:
            return None
        if not decision.allowed:
            return decision
    return decision


def _decision(reader: Reader, rules: RulesInForce | None) -> Explanation:
    allowed, source, granted, allows, actions, number = reader.take(_DECISION)
    topic = reader.text()
    by = _SOURCES[source]
    text = ""
    if by in ("rule", "name"):
        said = f"{'allow' if allows else 'deny'} {', '.join(actions_of(actions))} on {topic}"
        text = f"the client's grant: rule {number + 1}: {said}"
        if not granted:
            table = None if rules is None else rules.table
            # Meanwhile the file may have been read again: then its rules are not those that were asked.
            known = table is not None and number < len(table.model.rules) and topic in table.spelled(number)
            text = table.rule_text(number) if table is not None and known else f"{'' if table is None else table.file}: {said}"
    return Explanation(bool(allowed), by, text, bool(granted))  # type: ignore[arg-type]


async def list_receivers(
    hub: Hub, rules: RulesInForce | None, topic: str, limit: int, after: str | None, publisher: str | None
) -> Page[Receiver]:
    """Worker after worker, in the order of their tables; at most ``limit``, and fewer where they are large."""
    wanted = page_limit(limit)
    codec.validate_topic(topic)
    worker, cursor = place_of(hub, after)
    found: list[Receiver] = []
    size = 0
    while worker < hub.port.workers:
        answer = checked(
            await hub.ask(inside.RECEIVERS, worker=worker, number=max(1, wanted - len(found)), cursor=cursor, data=topic.encode())
        )
        size += len(answer.result)
        reader = Reader(answer.result)
        for _ in range(answer.count):
            made, continued = _receiver(reader, hub, rules, publisher)
            if continued and found and found[-1].client_id == made.client_id:
                found[-1] = _joined(found[-1], made)
            else:
                found.append(made)
        worker, cursor = (worker, answer.cursor) if answer.cursor else (worker + 1, 0)
        if (len(found) >= wanted or size >= PAGE_BYTES) and not cursor >> 32:
            break
    return Page(tuple(found), f"{worker}.{cursor}" if worker < hub.port.workers else None)


def _receiver(reader: Reader, hub: Hub, rules: RulesInForce | None, publisher: str | None) -> tuple[Receiver, bool]:
    flags, queued, matched, listed = reader.take(_RECEIVER)
    decision = _decision(reader, rules)
    client_id, user = reader.text(), reader.text()
    filters = tuple(read_subscription(reader) for _ in range(listed))
    if flags & _UNCERTAIN:
        decision = Explanation(True, "unknown")
    made = Receiver(
        client_id=client_id,
        username=user or None,
        outcome="delivered",
        connected=bool(flags & _ONLINE),
        in_process=bool(flags & _INSIDE),
        qos=QoS.AT_MOST_ONCE,
        filters=filters,
        filter_count=matched,
        queued=queued,
        decision=decision,
    )
    return _settled(made, hub.config.limits.queue_qos0_offline, client_id == publisher), bool(flags & _CONTINUED)


def _settled(receiver: Receiver, queues_qos0: bool, is_publisher: bool) -> Receiver:
    """With what follows from its filters. Members of shared groups are not asked message by message: they may have all, or are none."""
    plain = [one for one in receiver.filters if not _is_shared(one)]
    reached = [one for one in plain if not (is_publisher and one.no_local)]
    qos = max((one.qos for one in reached or receiver.filters), default=QoS.AT_MOST_ONCE)
    outcome: Outcome = "delivered"
    if not receiver.decision.allowed and plain:
        outcome = "refused"
    elif not plain:
        outcome = "shared"
    elif not reached:
        outcome = "own"
    elif not receiver.connected:
        outcome = "queued" if qos or queues_qos0 else "not queued"
    return replace(receiver, qos=qos, outcome=outcome)


_STRENGTH: Final[Sequence[Outcome]] = ("refused", "delivered", "queued", "not queued", "own", "shared")


def _joined(first: Receiver, second: Receiver) -> Receiver:
    """Of one session that was too large for one look."""
    return replace(
        first,
        outcome=min(first.outcome, second.outcome, key=_STRENGTH.index),
        qos=max(first.qos, second.qos),
        filters=first.filters + second.filters,
        filter_count=first.filter_count + second.filter_count,
    )
