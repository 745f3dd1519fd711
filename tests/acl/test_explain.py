"""`Broker.explain` of a running broker: whose rights decide, and who would receive."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from mqttc import BrokerThread
from mqttc.auth import Request, Verdict
from mqttc.auth.grant import Grant, Rule
from mqttc.embed import LiveExplanation, Receiver

from .conftest import Guarded, MakeGuarded

NO_LOCAL = 4
PERSISTENT = [(17, 3600)]
SPIES = 'default = "allow"\n[[rules]]\ndeny = ["receive"]\ntopics = ["a/secret"]\nclients = ["spy*"]\n'


class Granter:
    """Gives what stands under the client id, else no grant."""

    def __init__(self, **grants: Grant) -> None:
        self.grants = grants

    async def authenticate(self, request: Request) -> Verdict:
        return Verdict(0, grant=self.grants.get(request.client_id))


def ask(here: Guarded, action: Any, topic: str, client_id: str, **options: Any) -> LiveExplanation:
    return asyncio.run(here.broker.explain(action, topic, client_id=client_id, **options))


def receivers(here: Guarded, topic: str, client_id: str = "nobody", **options: Any) -> dict[str, Receiver]:
    found = ask(here, "publish", topic, client_id, **options)
    assert found.receivers is not None
    assert found.receivers.next is None
    return {one.client_id: one for one in found.receivers}


@pytest.mark.parametrize("workers", [1, 3])
def test_who_receives(guarded: MakeGuarded, workers: int) -> None:
    """What it says is what then happens."""
    here = guarded(SPIES, workers=workers)
    plain, both, spy, pub, far = (here.client(name) for name in ("plain", "both", "spy1", "pub", "far"))
    away, slow = (here.client(name, props=PERSISTENT) for name in ("away", "slow"))
    plain.subscribe("a/+", 1)
    both.subscribe("#", 0)
    both.subscribe("a/secret", 2)
    spy.subscribe("a/#", 1)
    pub.subscribe("a/#", 1 | NO_LOCAL)
    far.subscribe("b/#", 1)
    far.subscribe("+/secret/x", 1)
    away.subscribe("a/#", 1)
    away.disconnect()
    slow.subscribe("a/#", 0)
    slow.disconnect()
    here.await_stat("connections_open", 5)

    found = receivers(here, "a/secret", "pub")
    assert {name: one.outcome for name, one in found.items()} == {
        "plain": "delivered",
        "both": "delivered",
        "spy1": "refused",
        "pub": "own",
        "away": "queued",
        "slow": "not queued",
    }
    assert {name: int(one.qos) for name, one in found.items() if one.outcome in ("delivered", "queued")} == {
        "plain": 1,
        "both": 2,
        "away": 1,
    }
    assert [one.topic_filter for one in found["both"].filters] == ["#", "a/secret"]
    assert str(found["spy1"].decision) == f"denied: {here.file}:2: rule 1: deny receive on a/secret for clients spy*"
    assert {name for name, one in found.items() if not one.connected} == {"away", "slow"}

    assert pub.publish("a/secret", b"x", 1).reason == 0
    assert both.message("a/secret").qos == 1
    assert plain.message("a/secret").qos == 1
    for other in (spy, pub):
        other.ping()
    assert receivers(here, "a/secret", "pub")["away"].queued == 1
    assert receivers(here, "a/secret", "pub")["slow"].queued == 0
    assert receivers(here, "a/open", "spy1")["spy1"].outcome == "delivered"
    assert receivers(here, "$SYS/x") == {}


def test_shared_groups(guarded: MakeGuarded) -> None:
    here = guarded(None)
    one, two, plain = (here.client(name) for name in ("one", "two", "plain"))
    one.subscribe("$share/g/jobs/#", 1)
    two.subscribe("$share/g/jobs/#", 0)
    two.subscribe("$share/other/jobs/+", 1)
    plain.subscribe("jobs/#", 0)
    plain.subscribe("$share/g/elsewhere", 1)
    found = receivers(here, "jobs/1")
    assert {name: one.outcome for name, one in found.items()} == {"one": "shared", "two": "shared", "plain": "delivered"}
    groups: dict[str, list[str]] = {}
    for receiver in found.values():
        for name in receiver.groups:
            groups[name] = sorted([*groups.get(name, []), receiver.client_id])
    assert groups == {"$share/g/jobs/#": ["one", "two"], "$share/other/jobs/+": ["two"]}


def test_the_programs_own_subscription(guarded: MakeGuarded) -> None:
    here = guarded(SPIES)

    async def asked() -> list[Receiver]:
        async with here.broker.subscribe("a/#", qos=1):
            found = await here.broker.explain("publish", "a/secret", client_id="x")
        assert found.receivers is not None
        return list(found.receivers)

    (own,) = asyncio.run(asked())
    assert (own.in_process, own.connected, own.outcome, int(own.qos)) == (True, True, "delivered", 1)


def test_pages(guarded: MakeGuarded) -> None:
    """All of them come, each once, whatever the size of the page; one session's many filters are told together."""
    here = guarded(None)
    peers = [here.client(f"c{number}") for number in range(7)]
    for peer in peers:
        peer.subscribe_many([("a/#", 1), ("a/+", 1)])
    peers[0].subscribe_many([(f"a/{'+/' * number}#", 1) for number in range(20)] + [(f"{'+/' * number}#", 1) for number in range(1, 20)])
    for limit in (1, 2, 3, 100):
        seen: list[Receiver] = []
        after = None
        while True:
            found = ask(here, "publish", "a/" + "/".join("x" * 19), "p", limit=limit, after=after)
            assert found.receivers is not None and len(found.receivers) <= limit
            seen += found.receivers
            after = found.receivers.next
            if after is None:
                break
        assert sorted(one.client_id for one in seen) == sorted(f"c{number}" for number in range(7))
        (many,) = (one for one in seen if one.client_id == "c0")
        assert many.filter_count == 39 and 0 < len(many.filters) < 39
    for wrong in ("x", "9.0", "0.-1", "0"):
        with pytest.raises(ValueError, match="next"):
            ask(here, "publish", "a/b", "p", after=wrong)
    for limit in (0, 1001):
        with pytest.raises(ValueError, match="limit"):
            ask(here, "publish", "a/b", "p", limit=limit)


def test_a_session_that_takes_more_than_one_look(guarded: MakeGuarded) -> None:
    """Its filters are more than a worker looks at for one request; it still is one receiver."""
    here = guarded(None, workers=1, limits={"max_subscriptions": 100_000, "max_topic_levels": 10})
    many, other = here.client("many"), here.client("other")
    other.subscribe("topic", 0)
    many.subscribe("+", 2)
    for first in range(0, 40_000, 1000):
        many.subscribe_many([(f"none/{number}", 0) for number in range(first, first + 1000)])
    many.subscribe("topic", 1)
    for limit in (1, 100):
        found = ask(here, "publish", "topic", "p", limit=limit).receivers
        assert found is not None
        assert (found.items[0].client_id, found.items[0].filter_count) == ("many", 2)
    assert {name: int(one.qos) for name, one in receivers(here, "topic").items()} == {"many": 2, "other": 0}


def test_what_was_granted_counts(guarded: MakeGuarded) -> None:
    granter = Granter(
        a=Grant([Rule(True, ["publish"], ["a/%c"]), Rule(False, ["subscribe", "receive"], ["x/#"])], otherwise="deny"),
        s=Grant(superuser=True),
        u=Grant([Rule(True, ["subscribe"], ["#"]), Rule(False, ["receive"], ["a/+"])], username="ursula"),
    )
    here = guarded('[[rules]]\nallow = ["publish"]\ntopics = ["file"]\nusers = ["ursula"]\n', authenticator=granter)
    assert str(ask(here, "publish", "a/a", "a")) == "denied: no rule matches: by default"
    assert not ask(here, "publish", "a/a", "a").connected
    here.client("a", "user")
    u = here.client("u", "user")
    u.subscribe("#", 1)
    found = ask(here, "publish", "a/a", "a")
    assert (found.allowed, found.connected, found.granted) == (True, True, True)
    assert str(found) == "allowed: the client's grant: rule 1: allow publish on a/%c"
    assert str(ask(here, "publish", "b", "a")) == "denied: no rule of the grant matches: by default"
    assert str(ask(here, "receive", "x/y", "a")) == "denied: the client's grant: rule 2: deny subscribe, receive on x/#"
    assert not ask(here, "subscribe", "$share/g/x/#", "a").allowed
    assert ask(here, "publish", "a/a", "a", username="user").connected
    assert not ask(here, "publish", "a/a", "a", username="other").connected
    assert found.receivers is not None
    (refused,) = found.receivers
    assert (refused.client_id, refused.username, refused.outcome) == ("u", "ursula", "refused")
    assert str(refused.decision) == "denied: the client's grant: rule 2: deny receive on a/+"
    here.client("s", "user")
    assert ask(here, "will", "any", "s").by == "superuser"
    assert str(ask(here, "publish", "file", "u")) == f"allowed: {here.file}:1: rule 1: allow publish on file for user ursula"
    url = here.broker.urls[0]
    assert ask(here, "publish", "file", "u", listener=url).connected
    with pytest.raises(ValueError, match="no listener"):
        ask(here, "publish", "file", "u", listener="elsewhere")


def test_a_grant_that_has_ended(guarded: MakeGuarded) -> None:
    here = guarded(None, authenticator=Granter(a=Grant(ttl=60)))
    a = here.client("a", "user", props=PERSISTENT)
    a.subscribe("t", 1)
    assert receivers(here, "t")["a"].outcome == "delivered"
    here.broker.advance_clock(61)
    a.expect_close()
    here.await_stat("grants_expired", 1)
    found = receivers(here, "t")["a"]
    assert (found.outcome, str(found.decision)) == ("refused", "denied: the client's grant has ended")


def test_rules_that_have_changed_are_asked_at_once(guarded: MakeGuarded) -> None:
    here = guarded('default = "allow"\n')
    a = here.client("a")
    a.subscribe("t", 1)
    assert receivers(here, "t")["a"].outcome == "delivered"
    here.rewrite('default = "allow"\n[[rules]]\ndeny = ["receive"]\ntopics = ["50%%/x", "t"]\n')
    found = receivers(here, "t")["a"]
    assert (found.outcome, found.decision.rule) == ("refused", f"{here.file}:2: rule 1: deny receive on 50%%/x, t for everybody")


def test_a_denied_message_has_no_receivers(guarded: MakeGuarded) -> None:
    here = guarded("")
    assert ask(here, "publish", "t", "a").receivers is None
    assert ask(here, "receive", "t", "a").receivers is None
    with pytest.raises(ValueError, match="filter"):
        ask(here, "publish", "#", "a")


def test_without_asyncio() -> None:
    with BrokerThread({"listeners": [{"url": "tcp://127.0.0.1:0"}], "workers": 1}) as broker:
        found = broker.explain("publish", "t", client_id="a")
        assert found.allowed and found.receivers is not None and not found.receivers.items
