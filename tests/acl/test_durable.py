"""Rules and sessions that outlive the process."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..store.durable import Place, eventually

RULES = '[[rules]]\ndeny = "all"\ntopics = ["secret/#"]\nclients = ["r*"]\n[[rules]]\nallow = "all"\ntopics = ["#"]\n'


@pytest.fixture
def place(nothing_left: None, tmp_path: Path) -> Iterator[Place]:
    file = tmp_path / "acl.toml"
    file.write_text(RULES)
    made = Place(tmp_path / "data", auth={"anonymous": True, "acl_file": str(file)})
    made.start()
    yield made
    made.stop()


@pytest.mark.parametrize("qos", [1, 2])
@pytest.mark.parametrize("online", [True, False])
def test_a_denied_delivery_leaves_nothing_in_the_store(place: Place, qos: int, online: bool) -> None:
    """Its target was noted by a worker that does not know its rights."""
    readers = [place.session(5, f"r{i}") for i in range(4)]
    for reader in readers:
        reader.subscribe("#", qos)
        if not online:
            reader.disconnect()
    writer = place(5, "w")
    for _ in range(3):
        writer.publish("secret/x", b"x", qos)
    eventually(lambda: place.stat("denied_receive") == 12)
    place.nothing_waits()


def test_what_comes_back_is_looked_at_when_it_is_sent(place: Place, tmp_path: Path) -> None:
    """After a restart nobody knows whose session it is until its client comes: what waits is kept, and sent if it may be then."""
    reader = place.session(5, "r1")
    reader.subscribe("#", 1)
    reader.disconnect()
    writer = place(5, "w")
    for topic in ("open/1", "later/1"):
        writer.publish(topic, b"x", 1)
    eventually(lambda: place.stat("messages_queued") == 2)
    (tmp_path / "acl.toml").write_text(RULES.replace("secret/#", "later/#"))
    place.restart()
    told = asyncio.run(place.running.explain("publish", "later/2", client_id="w")).receivers
    assert told is not None
    assert [(one.client_id, one.outcome, one.decision.by, one.queued) for one in told] == [("r1", "queued", "unknown", 2)]
    writer = place(5, "w")
    for topic in ("later/2", "open/2"):
        writer.publish(topic, b"x", 1)
    again = place.session(5, "r1", present=True)
    assert [m.topic for m in again.messages(2)] == ["open/1", "open/2"]
    assert place.stat("denied_receive") == 2
    again.ping()
    assert not again.aside
    place.nothing_waits()
