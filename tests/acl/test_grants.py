"""Grants of an authenticator: what they allow, their end, and their renewal."""

from __future__ import annotations

from typing import Any

import pytest

from mqttc.auth import Request, Verdict
from mqttc.auth.grant import Grant, Rule

from ..rawclient import AUTH, AUTH_DATA, AUTH_METHOD, CONNACK, DISCONNECT, Will, connect_packet, packet, properties
from .conftest import MakeGuarded

FILE = '[[rules]]\nallow = "all"\ntopics = ["file/#"]\n'


class Granter:
    """Gives what stands under the client id, else no grant."""

    def __init__(self, **grants: Any) -> None:
        self.grants = grants

    async def authenticate(self, request: Request) -> Verdict:
        if request.auth_data == b"more":
            return Verdict(0, grant=self.grants["more"])
        return Verdict(0, grant=self.grants.get(request.client_id))


def allow(*topics: str, **values: Any) -> Grant:
    return Grant([Rule(True, ["publish", "subscribe"], topics)], **values)


def reasons(peer: Any, *topics: str) -> list[int]:
    return [peer.publish(topic, b"", 1).reason for topic in topics]


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("rules", [None, FILE])
def test_rights_by_grant(guarded: MakeGuarded, rules: str | None, workers: int) -> None:
    """With and without a file, on whichever worker the client lives; without a grant the file alone decides."""
    granter = Granter(a=allow("a/%c", "%u/#"), b=allow("b/#", otherwise="deny"), s=Grant(superuser=True))
    here = guarded(rules, authenticator=granter, workers=workers)
    open_to_all = 0x10 if rules is None else 0x87
    a, b, s, n = (here.client(name, "user") for name in ("a", "b", "s", "n"))
    assert reasons(a, "a/a", "user/x", "file/x", "a/b") == [0x10, 0x10, 0x10, open_to_all]
    assert reasons(b, "b/x", "file/x", "a/a") == [0x10, 0x87, 0x87]
    assert reasons(s, "any/thing") == [0x10]
    assert reasons(n, "file/x", "a/n") == [0x10, open_to_all]
    b.subscribe("b/+", 1)
    assert b.subscribe_many([("#", 1), ("file/x", 1)]) == [0x87, 0x87]
    s.publish("b/1", b"", 1)
    assert b.message().topic == "b/1"


def test_a_will_by_grant(guarded: MakeGuarded) -> None:
    here = guarded(None, authenticator=Granter(a=allow("w/%c", otherwise="deny")))
    assert here.peer().connect("a", username="u", will=Will("w/b")).reason == 0x87
    assert here.peer().connect("a", username="u", will=Will("w/a")).reason == 0


@pytest.mark.parametrize("version", [3, 4, 5])
def test_the_end_of_a_grant(guarded: MakeGuarded, version: int) -> None:
    """The client is disconnected, its session gets nothing until it is back; its will, allowed at CONNECT, goes out."""
    here = guarded(FILE, authenticator=Granter(a=allow("a/#", ttl=100)), limits={"session_expiry": 10_000})
    root = here.client("root", "u")
    root.subscribe("file/#", 1)
    options = {"expiry": 1000} if version == 5 else {}
    peer = here.client("a", "u", version, clean=False, will=Will("file/w", b"gone"), **options)
    peer.subscribe("a/#", 1)
    peer.subscribe("file/#", 1)
    here.broker.advance_clock(99)
    peer.publish("a/x", b"", 1)
    assert peer.message().topic == "a/x"
    here.broker.advance_clock(2)
    closing = peer.expect_close()
    assert [(p.type, p.reason) for p in closing] == ([(DISCONNECT, 0x87)] if version == 5 else [])
    assert here.stat("grants_expired") == 1
    assert root.message().payload == b"gone"
    root.publish("file/x", b"", 1)
    root.message("file/x")
    assert here.stat("messages_queued") == 0
    again = here.client("a", "u", version, clean=False, **options)
    root.publish("file/y", b"", 1)
    assert again.message().topic == "file/y"


def test_the_end_of_a_grant_with_nobody_there(guarded: MakeGuarded) -> None:
    here = guarded(FILE, authenticator=Granter(a=allow("a/#", ttl=100)))
    peer = here.client("a", "u", expiry=1000)
    peer.subscribe("file/#", 1)
    peer.disconnect()
    root = here.client("root", "u")
    root.publish("file/1", b"", 1)
    here.await_stat("messages_queued", 1)
    here.broker.advance_clock(101)
    here.await_stat("grants_expired", 1)
    root.publish("file/2", b"", 1)
    again = here.peer()
    assert again.connect("a", username="u", clean=False).session_present
    assert again.message().topic == "file/1", "queued while it was allowed, and it is again"
    root.publish("file/3", b"", 1)
    assert again.message().topic == "file/3"


def test_keep_alive_does_not_put_the_end_off(guarded: MakeGuarded) -> None:
    here = guarded(FILE, authenticator=Granter(a=allow("a/#", ttl=10_000)))
    peer = here.client("a", "u", keep_alive=6000)
    here.broker.advance_clock(8990)
    peer.ping()
    here.broker.advance_clock(20)  # past 9000, when the client would have been late had it not spoken
    here.broker.advance_clock(980)
    peer.ping()
    here.broker.advance_clock(11)
    assert [(p.type, p.reason) for p in peer.expect_close()] == [(DISCONNECT, 0x87)]


def test_a_grant_without_time_admits_nobody(guarded: MakeGuarded) -> None:
    here = guarded(FILE, authenticator=Granter(a=allow("a/#", ttl=0)))
    assert here.peer().connect("a", username="u").reason == 0x87


@pytest.mark.parametrize("rules", [None, FILE])
def test_reauthentication_brings_a_new_grant(guarded: MakeGuarded, rules: str | None) -> None:
    """In time the connection goes on; what the old grant allowed and the new one does not is over, the user is the same."""
    more = allow("more/%u", ttl=100, otherwise="deny")
    here = guarded(rules, authenticator=Granter(a=allow("a/#", ttl=100, username="real"), more=more))
    peer = here.peer()
    peer.send(connect_packet("a", 5, props=((AUTH_METHOD, "M"),), username="claimed"))
    assert peer.expect(CONNACK).reason == 0
    peer.subscribe("a/#", 1)
    assert reasons(peer, "a/1") == [0]
    peer.message("a/1")
    here.broker.advance_clock(99)
    peer.ping()
    peer.send(packet(AUTH << 4, b"\x19" + properties([(AUTH_METHOD, "M"), (AUTH_DATA, b"more")])))
    assert peer.expect(AUTH).reason == 0
    assert reasons(peer, "a/1", "more/real", "more/claimed") == [0x87, 0x10, 0x87]
    here.client("s", "u").publish("a/2", b"", 1)
    peer.ping()
    assert not peer.aside
    here.broker.advance_clock(99)
    peer.ping()
    here.broker.advance_clock(2)
    assert [(p.type, p.reason) for p in peer.expect_close()] == [(DISCONNECT, 0x87)]


def test_a_grant_lasts_over_a_reload(guarded: MakeGuarded) -> None:
    here = guarded(FILE, authenticator=Granter(a=allow("a/#")))
    peer = here.client("a", "u")
    assert reasons(peer, "a/1", "file/1", "other") == [0x10, 0x10, 0x87]
    here.rewrite(FILE.replace("file/#", "other"))
    assert reasons(peer, "a/1", "file/1", "other") == [0x10, 0x87, 0x10]


def test_a_bad_grant_is_the_authenticators_failure(guarded: MakeGuarded, caplog: pytest.LogCaptureFixture) -> None:
    here = guarded(FILE, authenticator=Granter(a=Grant([Rule(True, ["publish"], ["a/#/b"])])))
    assert here.peer().connect("a", username="u").reason == 0x88
    here.broker.stop()
    assert any("authenticator_failed" in record.getMessage() for record in caplog.records)


class Named:
    """Finds everybody to be somebody, and lets the verdict be kept."""

    def __init__(self, username: str | None) -> None:
        self.username = username
        self.asked = 0

    async def authenticate(self, request: Request) -> Verdict:
        self.asked += 1
        return Verdict(0, username=self.username, keep=60)


def test_whom_the_client_was_found_to_be_is_the_user(guarded: MakeGuarded) -> None:
    """Also the second time: such a verdict is not given without asking."""
    named = Named("real")
    here = guarded('[[rules]]\nallow = "all"\ntopics = ["%u/#"]\n', authenticator=named)
    for _ in range(2):
        assert reasons(here.client("c", "claimed"), "real/x", "claimed/x") == [0x10, 0x87]
    assert named.asked == 2


def test_a_remembered_verdict_has_checked_the_name(guarded: MakeGuarded) -> None:
    """CONNECTs that a worker admits without asking have the user of the one before."""
    named = Named(None)
    here = guarded('[[rules]]\nallow = "all"\ntopics = ["%u/#"]\n', authenticator=named, workers=1)
    for _ in range(3):
        assert reasons(here.client("c", "me"), "me/x", "you/x") == [0x10, 0x87]
    assert named.asked == 1


class Short:
    """Ends connections after 10 s, or what is granted after 10 s, whichever is asked for."""

    async def authenticate(self, request: Request) -> Verdict:
        lasts, ttl = (10, 100) if request.client_id == "lasts" else (100, 10)
        return Verdict(0, grant=Grant(ttl=ttl), lasts=lasts)


@pytest.mark.parametrize(("client_id", "reason"), [("lasts", 0xA0), ("ttl", 0x87)])
def test_whichever_end_comes_first(guarded: MakeGuarded, client_id: str, reason: int) -> None:
    here = guarded(FILE, authenticator=Short())
    peer = here.client(client_id, "u")
    here.broker.advance_clock(11)
    assert [(p.type, p.reason) for p in peer.expect_close()] == [(DISCONNECT, reason)]
