"""``authenticate``, ``authorize``, ``on_connect`` and ``on_disconnect``."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from mqttc.auth import Request, Verdict
from mqttc.auth.grant import Grant, Rule
from mqttc.embed import Disconnected
from mqttc.hooks import Accept, HookClient, Hooks, Refuse
from mqttc.server import Broker
from tests.conftest import BrokerFactory, tcp_address
from tests.rawclient import AUTH, AUTH_DATA, AUTH_METHOD, CONNACK, Packet, Peer, connect_packet, packet, properties

from ..embed.conftest import PeerFactory, until
from .conftest import Loop, Serve, Shaped

VERSIONS = pytest.mark.parametrize("version", [3, 4, 5])


def connect(broker: Broker, client_id: str, version: int = 5, **options: Any) -> Packet:
    """Its CONNACK."""
    made = Peer(tcp_address(broker.urls[0]), version)
    try:
        return made.connect(client_id, **options)
    finally:
        made.close()


@VERSIONS
def test_authenticate(serve: Serve, hooks: Hooks, shaped: Shaped, version: int) -> None:
    """The first that has an opinion; without one the configuration decides."""
    seen: list[Request] = []

    def who(request: Request) -> object:
        seen.append(request)
        return {"in": Accept(), "out": Refuse(0x86)}.get(request.username or "")

    hooks.authenticate(shaped(who))
    hooks.authenticate(shaped(lambda request: Accept() if request.username == "second" else None))
    broker = serve({"auth": {"anonymous": False, "allow": ["listed"]}})
    assert connect(broker, "a", version, username="in", password=b"secret").reason == 0
    assert (seen[0].password, seen[0].protocol, seen[0].transport) == (b"secret", version, "tcp")
    assert connect(broker, "b", version, username="out").reason == (0x86 if version == 5 else 4)
    assert connect(broker, "c", version, username="second").reason == 0
    assert connect(broker, "d", version, username="listed").reason == 0
    assert connect(broker, "e", version, username="nobody").reason == (0x87 if version == 5 else 5)
    assert connect(broker, "f", version).reason == (0x87 if version == 5 else 5)
    assert len(seen) == 6


def test_anonymous_clients_are_asked_about(serve: Serve, hooks: Hooks) -> None:
    hooks.authenticate(lambda request: Refuse(0x8A) if request.client_id == "bad" else None)
    broker = serve()
    assert connect(broker, "bad").reason == 0x8A
    assert connect(broker, "good").reason == 0


def test_what_was_decided_is_not_remembered_for_others(serve: Serve, hooks: Hooks) -> None:
    """The lists' verdicts are remembered by workers, but not for clients that a hook is about."""
    hooks.on_connect(lambda client: Refuse(), clients="watched-*")
    broker = serve({"auth": {"allow": ["u"]}, "workers": 1})
    for _ in range(2):
        assert connect(broker, "free", username="u").reason == 0
        assert connect(broker, "watched-1", username="u").reason == 0x87
    assert hooks.stats()[0].asked == 2
    assert broker.stats()["verdicts_reused"] == 1


@VERSIONS
def test_on_connect(serve: Serve, hooks: Hooks, shaped: Shaped, version: int) -> None:
    seen: list[HookClient] = []

    def look(client: HookClient) -> object:
        seen.append(client)
        return Refuse(0x8A) if client.username == "banned" else None

    hooks.authenticate(lambda request: Accept(user="banned") if request.username == "alias" else None)
    hooks.on_connect(shaped(look))
    broker = serve({"auth": {"allow": ["u"]}})
    assert connect(broker, "a", version, username="u").reason == 0
    assert (seen[0].client_id, seen[0].username, seen[0].protocol) == ("a", "u", version)
    assert connect(broker, "b", version, username="alias").reason == (0x8A if version == 5 else 5)
    assert connect(broker, "c", version, username="not listed").reason != 0
    assert len(seen) == 2, "who was refused before is not asked about"


def test_authorize(serve: Serve, hooks: Hooks, peer: PeerFactory, shaped: Shaped) -> None:
    asked: list[tuple[str, str, str]] = []

    def may(client: HookClient, action: str, topic: str) -> object:
        asked.append((client.client_id, action, topic))
        if action == "connect":
            return client.client_id != "out"
        return {"ok/#": True, "bad/#": False, "worse": Refuse(0x97)}.get(topic)

    hooks.authorize(shaped(may))
    broker = serve()
    assert connect(broker, "out").reason == 0x87
    client = peer(broker, "in")
    assert client.subscribe_many([("ok/#", 1), ("bad/#", 1), ("$share/g/bad/#", 0), ("worse", 0), ("unknown", 2)]) == [
        1,
        0x87,
        0x87,
        0x97,
        2,
    ]
    assert asked[1:] == [("in", "connect", "")] + [("in", "subscribe", topic) for topic in ("ok/#", "bad/#", "bad/#", "worse", "unknown")]
    before = len(asked)
    client.publish("ok/1", b"", 1)
    assert client.message("ok/1")
    assert len(asked) == before, "nobody is asked per message"


def test_a_grant(serve: Serve, hooks: Hooks, peer: PeerFactory) -> None:
    """By its rules the broker decides without asking, before hooks about messages and behind those about filters."""
    rules = [Rule(True, ["publish", "subscribe"], ["own/%c/#"])]
    hooks.authorize(lambda client, action, topic: Grant(rules, otherwise="deny") if action == "connect" else True)
    asked: list[str] = []
    hooks.on_publish("#")(lambda message: asked.append(message.topic))
    client = peer(serve(), "c")
    assert client.subscribe_many([("own/c/#", 1), ("other", 1)]) == [1, 0x87]
    other, own = client.publish("other", b"", 1), client.publish("own/c/1", b"", 1)
    assert other is not None and own is not None and (other.reason, own.reason) == (0x87, 0)
    assert client.message("own/c/1")
    assert asked == ["own/c/1"]


class Exchange:
    """One round of AUTH, and the user is known."""

    async def authenticate(self, request: Request) -> Verdict:
        return Verdict(0, username="known") if request.is_auth else Verdict(0x18, auth_data=b"who?")


def test_enhanced_authentication(loop: Loop, broker_factory: BrokerFactory) -> None:
    """The client is known by its id too when hooks are asked; of a re-authentication only what it may do."""
    hooks = Hooks(loop=loop.loop)
    seen: list[tuple[str, str, str | None]] = []
    hooks.on_connect(lambda client: seen.append(("on_connect", client.client_id, client.username)), clients="watched")
    hooks.authorize(lambda client, action, topic: seen.append(("authorize", client.client_id, client.username)), clients="watched")
    broker = broker_factory(hooks=hooks, authenticator=Exchange())
    client = Peer(tcp_address(broker.urls[0]), 5)
    try:
        client.send(connect_packet("watched", 5, props=[(AUTH_METHOD, "m")]))
        client.expect(AUTH)
        for kind, reason in ((CONNACK, 0x18), (AUTH, 0x19)):
            client.send(packet(AUTH << 4, bytes([reason]) + properties([(AUTH_METHOD, "m"), (AUTH_DATA, b"me")])))
            assert client.expect(kind).reason == 0
    finally:
        client.close()
    assert seen == [("authorize", "watched", "known"), ("on_connect", "watched", "known"), ("authorize", "watched", "known")]


def test_on_disconnect(serve: Serve, hooks: Hooks, peer: PeerFactory, shaped: Shaped) -> None:
    seen: list[Disconnected] = []
    hooks.on_disconnect(shaped(seen.append), clients="a*")
    broker = serve()
    peer(broker, "b1").disconnect()
    peer(broker, "a1").disconnect()
    peer(broker, "a2", 4).close()
    until(lambda: len(seen) == 2)
    assert {(event.client_id, event.clean) for event in seen} == {("a1", True), ("a2", False)}


@pytest.mark.parametrize("kind", ["authenticate", "authorize", "on_connect"])
@pytest.mark.parametrize("how", ["raises", "nonsense", "late"])
def test_failure(serve: Serve, hooks: Hooks, loop: Loop, kind: str, how: str) -> None:
    """They deny: 0x88, server unavailable."""

    async def fail(*arguments: object) -> object:
        if how == "raises":
            raise ValueError("no")
        if how == "late":
            await asyncio.Event().wait()
        return "yes"

    getattr(hooks, kind)(fail, deadline=0.05 if how == "late" else 60)
    broker = serve()
    assert connect(broker, "a").reason == 0x88
    assert connect(broker, "a", 4).reason == 3
    assert broker.stats()["hooks_late" if how == "late" else "hooks_failed"] == 2
    until(lambda: broker.stats()["hooks_waiting"] == 0 and loop.tasks() == 0)


def test_a_failing_observer_may_be_harmless(serve: Serve, hooks: Hooks) -> None:
    @hooks.on_connect(on_failure="allow")
    def fail(client: HookClient) -> None:
        raise RuntimeError

    assert connect(serve(), "a").reason == 0
    assert hooks.stats()[0].failed == 1


def test_a_blocked_loop_holds_up_nobody_else(serve: Serve, hooks: Hooks, loop: Loop, peer: PeerFactory) -> None:
    """Clients, topics and filters that hooks are not about; and plain functions, which have threads."""

    @hooks.authenticate(clients="slow-*")
    async def who(request: Request) -> Accept:
        return Accept()

    @hooks.on_publish("slow")
    async def message(message: object) -> None: ...

    @hooks.on_subscribe("slow/#")
    async def subscription(request: object) -> None: ...

    hooks.on_connect(lambda client: None)
    broker = serve()
    loop.block()
    answers: list[int] = []
    slow = threading.Thread(target=lambda: answers.append(connect(broker, "slow-1").reason))
    slow.start()
    until(lambda: hooks.stats()[0].asked == 1)
    bystander = peer(broker, "bystander")
    bystander.subscribe("fast/#", 1)
    bystander.publish("fast/1", b"", 1)
    assert bystander.message("fast/1")
    assert not answers
    loop.release()
    slow.join()
    assert answers == [0]


def test_reload(serve: Serve, hooks: Hooks) -> None:
    """Another configuration leaves hooks as they are, and is asked where they have no opinion."""
    hooks.authenticate(lambda request: Refuse(0x8A) if request.username == "banned" else None)
    broker = serve({"auth": {"anonymous": False, "allow": ["a"]}})
    config = broker.config.model_copy(update={"auth": broker.config.auth.model_copy(update={"allow": ["b"]})})
    for name, wanted in (("banned", 0x8A), ("a", 0), ("b", 0x87)):
        assert connect(broker, "c", username=name).reason == wanted
    assert "auth.allow" in broker.reload(config).applied
    for name, wanted in (("banned", 0x8A), ("a", 0x87), ("b", 0)):
        assert connect(broker, "c", username=name).reason == wanted


def test_without_lists_nothing_changes(broker_factory: BrokerFactory) -> None:
    """Without hooks about clients none is asked about."""
    hooks = Hooks()
    hooks.on_publish("a")(lambda message: None)
    broker = broker_factory(hooks=hooks)
    assert connect(broker, "a", username="u").reason == 0
    assert broker.stats()["gate_questions"] == 0
