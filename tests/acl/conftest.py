"""Brokers with an ACL file, and their clients."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mqttc.server import Broker

from ..conftest import BrokerFactory, tcp_address
from ..rawclient import TIMEOUT, Peer


class Guarded:
    """A broker, its ACL file, and peers that end with the test. User names count as checked (`auth.allow`)."""

    def __init__(self, broker: Broker, file: Path, peers: list[Peer], config: dict[str, Any]) -> None:
        self.broker = broker
        self.file = file
        self.config = config
        self._peers = peers

    def peer(self, version: int = 5, listener: int = 0) -> Peer:
        """A connection without CONNECT."""
        made = Peer(tcp_address(self.broker.urls[listener]), version)
        self._peers.append(made)
        return made

    def client(self, client_id: str, username: str | None = None, version: int = 5, listener: int = 0, **options: Any) -> Peer:
        """A connection that was admitted."""
        made = self.peer(version, listener)
        assert made.connect(client_id, username=username, **options).reason == 0
        return made

    def rewrite(self, rules: str) -> None:
        """Another ACL; when this returns it is in force."""
        self.file.write_text(rules)
        self.broker.reload(self.config)

    def stat(self, name: str) -> int:
        return self.broker.stats()[name]

    def await_stat(self, name: str, value: int) -> None:
        deadline = time.monotonic() + TIMEOUT
        while self.stat(name) != value:
            assert time.monotonic() < deadline, f"{name} is {self.stat(name)}, not {value}"
            time.sleep(0.002)


MakeGuarded = Callable[..., Guarded]


@pytest.fixture
def guarded(broker_factory: BrokerFactory, tmp_path: Path) -> Iterator[MakeGuarded]:
    """`guarded(rules, authenticator=..., section={...})`"""
    peers: list[Peer] = []

    def make(rules: str | None, *, authenticator: Any = None, **sections: Any) -> Guarded:
        file = tmp_path / "acl.toml"
        auth: dict[str, Any] = {"anonymous": True, "allow": ["*"]}
        if rules is not None:
            file.write_text(rules)
            auth["acl_file"] = str(file)
        config = {"listeners": [{"url": "tcp://127.0.0.1:0"}], "workers": 2, "auth": auth, **sections}
        return Guarded(broker_factory(config, authenticator=authenticator), file, peers, config)

    yield make
    for peer in peers:
        peer.close()
