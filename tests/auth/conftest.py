"""Brokers that check who connects, and what they are told."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from mqttc.auth import Request
from tests.broker.conftest import Bench, Events, name
from tests.conftest import WORKERS
from tests.rawclient import Packet

Make = Callable[..., Bench]

ALICE = b"correct horse"
BOB = b"battery staple"


@pytest.fixture
def events() -> Iterator[Events]:
    handler = Events()
    logger = logging.getLogger("mqttc.broker")
    old = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield handler
    logger.removeHandler(handler)
    logger.setLevel(old)


@pytest.fixture
def make(events: Events, nothing_left: None) -> Iterator[Make]:
    """Starts brokers: `make({section of auth}, key=value...)`, on a free loopback port, without anonymous clients."""
    made: list[Bench] = []

    def start(auth: Mapping[str, Any], **keys: Any) -> Bench:
        config = {"listeners": [{"url": "tcp://127.0.0.1:0"}], "workers": WORKERS, "auth": {"anonymous": False, **auth}, **keys}
        bench = Bench(config, events)
        made.append(bench)
        return bench

    yield start
    for bench in made:
        for peer in bench.peers:
            peer.close()
        bench.native.stop()


def attempt(bench: Bench, username: str | None, password: bytes | None, version: int = 5, client_id: str = "", **options: Any) -> Packet:
    """The CONNACK that a client gets."""
    return bench.raw(version).connect(client_id or name(), username=username, password=password, **options)


def ask(username: str | None = "alice", password: bytes | None = b"pw", **keys: Any) -> Request:
    """A CONNECT, as an authenticator is asked about it."""
    values: dict[str, Any] = {"client_id": "c", "peer": "192.0.2.1:5", "anonymous_admitted": False, "protocol": 5, **keys}
    return Request(username=username, password=password, **values)


@pytest.fixture(scope="session")
def users(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A password file with alice, in argon2id, and bob, in a SCRAM verifier. It is not changed."""
    from mqttc.auth.hashing import make_hash, make_scram

    path = tmp_path_factory.mktemp("users") / "users.txt"
    path.write_text(f"# users\nalice:{make_hash(ALICE)}\n\nbob:{make_scram(BOB)}\n")
    return path
