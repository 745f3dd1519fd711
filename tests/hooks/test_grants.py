"""Grants of ``authorize``: asked for again before they end, and given with a SUBSCRIBE."""

from __future__ import annotations

import threading
from contextlib import closing
from typing import Any

import pytest

from mqttc.auth import Request, Verdict
from mqttc.auth.grant import Grant, Rule
from mqttc.hooks import HookClient, Hooks
from tests.conftest import BrokerFactory, tcp_address
from tests.rawclient import AUTH, AUTH_DATA, AUTH_METHOD, CONNACK, DISCONNECT, Peer, connect_packet, packet, properties

from ..embed.conftest import PeerFactory, until
from .conftest import Loop, Serve, Shaped


def allow(*topics: str, **more: Any) -> Grant:
    return Grant([Rule(True, ["publish", "subscribe"], topics)], "deny", **more)


def reasons(peer: Peer, *topics: str) -> list[int]:
    return [peer.publish(topic, b"", 1).reason for topic in topics]  # type: ignore[union-attr]


YES, NO = 0x10, 0x87


@pytest.mark.parametrize("version", [3, 4, 5])
def test_it_is_asked_for_again(serve: Serve, hooks: Hooks, shaped: Shaped, peer: PeerFactory, version: int) -> None:
    """In time, for as long as there is another one: the client notices nothing but what it may do."""
    asked: list[tuple[str | None, str, str]] = []
    grants = [allow("one", ttl=100), allow("two", ttl=100), allow("three", ttl=1000)]

    def may(client: HookClient, action: str, topic: str) -> object:
        asked.append((client.username, action, topic))
        return grants[len(asked) - 1] if len(asked) <= len(grants) else None

    hooks.authorize(shaped(may))
    broker = serve({"auth": {"anonymous": True}, "limits": {"auth_timeout": 10.0}})
    client = peer(broker, "c", version, username="u", keep_alive=0)

    def renewed(seconds: float, count: int) -> None:
        broker.advance_clock(seconds)
        until(lambda: broker.stats()["grants_renewed"] == count)

    if version == 5:
        assert reasons(client, "one", "two") == [YES, NO]
    broker.advance_clock(89)
    assert len(asked) == 1
    renewed(2, 1)
    if version == 5:
        assert reasons(client, "one", "two") == [NO, YES]
    broker.advance_clock(50)
    client.ping()
    renewed(41, 2)
    if version == 5:
        assert reasons(client, "two", "three") == [NO, YES]
    assert asked == [("u", "connect", "")] * 3
    broker.advance_clock(989)
    client.ping()
    broker.advance_clock(2)
    until(lambda: len(asked) == 4)  # which says nothing, so that it ends
    client.ping()
    broker.advance_clock(10)
    assert [(one.type, one.reason) for one in client.expect_close()] == ([(DISCONNECT, 0x87)] if version == 5 else [])
    assert (broker.stats()["grants_renewed"], broker.stats()["grants_expired"]) == (2, 1)


@pytest.mark.parametrize("answer", [None, True, False, "broken", "no grant"])
def test_without_another_one_it_ends(serve: Serve, hooks: Hooks, peer: PeerFactory, answer: Any) -> None:
    asked: list[str] = []

    def may(client: HookClient, action: str, topic: str) -> object:
        asked.append(action)
        if len(asked) == 1:
            return allow("a", ttl=100)
        if answer == "broken":
            raise RuntimeError("broken")
        return Grant([Rule(True, ["publish"], ["a/#/b"])]) if answer == "no grant" else answer

    hooks.authorize(may)
    broker = serve({"auth": {"anonymous": True}, "limits": {"auth_timeout": 10.0}})
    client = peer(broker, "c", keep_alive=0)
    broker.advance_clock(91)
    until(lambda: len(asked) == 2)
    assert reasons(client, "a") == [YES]
    broker.advance_clock(10)
    assert [(one.type, one.reason) for one in client.expect_close()] == [(DISCONNECT, 0x87)]
    assert broker.stats()["grants_renewed"] == 0


def test_a_short_one_is_asked_for_at_half_its_time(serve: Serve, hooks: Hooks, peer: PeerFactory) -> None:
    asked: list[str] = []

    def may(client: HookClient, action: str, topic: str) -> Grant:
        asked.append(action)
        return allow("a", ttl=4)

    hooks.authorize(may)
    broker = serve({"auth": {"anonymous": True}, "limits": {"auth_timeout": 10.0}})
    client = peer(broker, "c", keep_alive=0)
    for count in range(1, 6):
        broker.advance_clock(1)
        broker.settle()
        assert len(asked) == count
        broker.advance_clock(1.5)
        until(lambda expected=count: broker.stats()["grants_renewed"] == expected)  # type: ignore[misc]
    client.ping()


def test_an_answer_that_comes_too_late(serve: Serve, hooks: Hooks, peer: PeerFactory) -> None:
    """The client is gone by then, or has come again with a grant of its own: it is nobody's."""
    go_on, asked = threading.Event(), threading.Event()
    count = 0

    def may(client: HookClient, action: str, topic: str) -> Grant:
        nonlocal count
        count += 1
        if count == 2:
            asked.set()
            go_on.wait(20)
            return allow("late", ttl=1000)
        return allow("own", ttl=100)

    hooks.authorize(may)
    broker = serve({"auth": {"anonymous": True}, "limits": {"auth_timeout": 10.0}})
    client = peer(broker, "c", keep_alive=0)
    broker.advance_clock(91)
    assert asked.wait(20)
    broker.advance_clock(10)
    client.expect_close()
    again = peer(broker, "c", keep_alive=0)
    go_on.set()
    assert reasons(again, "own") == [YES]
    assert hooks.stats()[0].asked == 3
    until(lambda: broker.stats()["hooks_waiting"] == 0)
    broker.settle()
    assert reasons(again, "own", "late") == [YES, NO]
    assert broker.stats()["grants_renewed"] == 0


def test_a_client_that_is_away_is_not_asked_about(serve: Serve, hooks: Hooks, peer: PeerFactory) -> None:
    asked: list[str] = []

    def may(client: HookClient, action: str, topic: str) -> Grant:
        asked.append(action)
        return allow("a", ttl=100)

    hooks.authorize(may)
    broker = serve({"auth": {"anonymous": True}, "limits": {"auth_timeout": 10.0}})
    peer(broker, "c", props=[(17, 1000)]).disconnect()
    until(lambda: broker.stats()["connections_open"] == 0)
    broker.advance_clock(101)
    until(lambda: broker.stats()["grants_expired"] == 1)
    assert asked == ["connect"]


class InGroups:
    async def authenticate(self, request: Request) -> Verdict:
        return Verdict(0, grant=Grant(groups=["operators"]), username="known")


def test_groups_and_the_user_stay(loop: Loop, hooks: Hooks, broker_factory: BrokerFactory, peer: PeerFactory, tmp_path: Any) -> None:
    """They say who the client is, and that does not change by what it is granted."""
    (tmp_path / "acl.toml").write_text(
        '[groups]\noperators = []\nothers = []\n[[rules]]\nallow = ["publish"]\ntopics = ["plant"]\ngroups = ["operators"]\n'
        '[[rules]]\nallow = ["publish"]\ntopics = ["other/%u"]\ngroups = ["others"]\n'
    )
    granted = 0

    def may(client: HookClient, action: str, topic: str) -> Grant | None:
        nonlocal granted
        granted += 1
        assert client.username == "known"
        return Grant([Rule(True, ["publish"], [f"g{granted}/%u"])], ttl=100, groups=["others"] if granted > 1 else [])

    hooks.authorize(may)
    config = {"auth": {"anonymous": False, "acl_file": str(tmp_path / "acl.toml")}, "limits": {"auth_timeout": 10.0}}
    broker = broker_factory(config, hooks=hooks, authenticator=InGroups())
    client = peer(broker, "c", username="u", keep_alive=0)
    assert reasons(client, "g1/known", "plant", "other/known") == [YES, YES, NO]
    for count in (1, 2):
        broker.advance_clock(91)
        until(lambda expected=count: broker.stats()["grants_renewed"] == expected)  # type: ignore[misc]
        assert reasons(client, f"g{count + 1}/known", "g1/known", "plant", "other/known") == [YES, NO, YES, YES]


class Exchange:
    """AUTH, and the user is known; each gets what the hook says."""

    async def authenticate(self, request: Request) -> Verdict:
        return Verdict(0, username="known")


def test_a_reauthentication_may_come_meanwhile(loop: Loop, hooks: Hooks, broker_factory: BrokerFactory) -> None:
    """While the next grant is asked for: both are answered, and the one that it brings is not put aside by the one that was asked for."""
    go_on, asked = threading.Event(), threading.Event()
    count = 0

    def may(client: HookClient, action: str, topic: str) -> Grant:
        nonlocal count
        count += 1
        if count == 2:
            asked.set()
            go_on.wait(20)
            return allow("renewed", ttl=1000)
        return allow("again" if count == 3 else "first", ttl=100)

    hooks.authorize(may)
    broker = broker_factory({"limits": {"auth_timeout": 10.0}}, hooks=hooks, authenticator=Exchange())
    with closing(Peer(tcp_address(broker.urls[0]), 5)) as client:
        client.send(connect_packet("c", 5, keep_alive=0, props=((AUTH_METHOD, "M"),)))
        assert client.expect(CONNACK).reason == 0
        broker.advance_clock(91)
        assert asked.wait(20)
        client.send(packet(AUTH << 4, b"\x19" + properties([(AUTH_METHOD, "M"), (AUTH_DATA, b"more")])))
        assert client.expect(AUTH).reason == 0
        assert reasons(client, "again", "first") == [YES, NO]
        go_on.set()
        until(lambda: broker.stats()["hooks_waiting"] == 0)
        broker.settle()
        assert reasons(client, "again", "renewed") == [YES, NO]


@pytest.mark.parametrize("first", [None, "connect"])
def test_with_a_subscribe(serve: Serve, hooks: Hooks, peer: PeerFactory, first: str | None) -> None:
    """It is in force when the filters are looked at, and from then on."""

    def may(client: HookClient, action: str, topic: str) -> object:
        if action == "connect":
            return allow("a", ttl=1000) if first else None
        return {"b/#": allow("b/#", "%u/x", ttl=500), "bad": Grant([Rule(True, ["publish"], ["a/#/b"])])}.get(topic)

    hooks.authorize(may)
    broker = serve({"auth": {"anonymous": True}})
    client = peer(broker, "c", username="u", keep_alive=0)
    assert reasons(client, "b/1") == [NO if first else YES]
    assert client.subscribe_many([("bad", 0)]) == [0x83], "a grant that is none"
    assert client.subscribe_many([("b/#", 1), ("b/1", 0), ("a", 0)]) == [1, 0, NO]
    assert reasons(client, "b/1", "a", "u/x") == [0, NO, YES]
    assert client.message("b/1")
    assert broker.stats()["grants_renewed"] == 1
    broker.advance_clock(501)
    until(lambda: broker.stats()["grants_expired"] == 1)
    assert client.expect_close()[-1].reason == 0x87
