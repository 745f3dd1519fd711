"""What is safe without being asked for, and what is told where it is not."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from mqttc.cli.broker import main
from mqttc.config import Config
from mqttc.server import warn_of_plain_passwords
from tests.auth.conftest import ALICE, BOB, Make, ask, attempt
from tests.broker.conftest import Events, name
from tests.rawclient import connect_packet


@pytest.mark.parametrize(
    ("url", "auth", "keys", "warned"),
    [
        ("tcp://0.0.0.0:1883", {"password_file": "x"}, {}, True),
        ("tcp://*:1883", {"ldap": {"url": "ldaps://x", "user_dn": "uid=%u"}}, {}, True),
        ("ws://192.0.2.1:80", {"http": {"url": "https://x/"}}, {}, True),
        ("tcp://[2001:db8::1]:1883", {"sql": {"url": "sqlite:///x"}}, {}, True),
        ("tcp://0.0.0.0:1883", {"jwt": {"algorithms": ["HS256"], "secret": "x"}}, {}, True),
        ("tcp://127.0.0.1:1883", {"password_file": "x"}, {}, False),
        ("tcp://localhost:1883", {"password_file": "x"}, {}, False),
        ("tcp://[::1]:1883", {"password_file": "x"}, {}, False),
        ("tls://0.0.0.0:8883", {"password_file": "x"}, {"certificate": "c"}, False),
        ("wss://0.0.0.0:443", {"password_file": "x"}, {"certificate": "c"}, False),
        ("unix:///x", {"password_file": "x"}, {}, False),
        ("tcp://0.0.0.0:1883", {"certificate": {}}, {}, False),
        ("tcp://0.0.0.0:1883", {}, {}, False),
        ("tcp://0.0.0.0:1883", {"password_file": "x"}, {"proxy_protocol": True, "trusted_proxies": ["192.0.2.1"]}, False),
    ],
)
def test_plain_passwords(events: Events, url: str, auth: dict[str, Any], keys: dict[str, Any], warned: bool) -> None:
    warn_of_plain_passwords(Config.of({"listeners": [{"url": url, **keys}], "auth": auth}))
    found = events.find("plain_passwords")
    assert len(found) == warned
    assert all(one["level"] == "WARNING" for one in found)


def test_the_start_says_so(make: Make, users: Path) -> None:
    bench = make({"password_file": str(users)}, listeners=[{"url": "tcp://0.0.0.0:0"}, {"url": "tcp://127.0.0.1:0"}])
    assert [one["listener"] for one in bench.events.find("plain_passwords")] == ["tcp://0.0.0.0:0"]


def test_no_secret_in_logs(make: Make, users: Path, caplog: pytest.LogCaptureFixture) -> None:
    """At the level of debug, whatever goes well or wrong."""
    with caplog.at_level(logging.DEBUG):
        bench = make({"password_file": str(users), "failures": {"per_user": 2}}, log={"level": "debug"})
        secrets = [ALICE, BOB, b"wrong-secret-1", b"wrong-secret-2", b"wrong-secret-3"]
        for version in (3, 4, 5):
            for secret in secrets:
                attempt(bench, "alice", secret, version)
        broken = bench.raw(5)
        broken.send(connect_packet(name(), 5, username="alice", password=b"half-secret")[:-3])
        broken.close()
        bench.events.wait("auth_limited")
    for secret in (*secrets, b"half-secret"):
        assert secret.decode() not in caplog.text
        assert secret.decode() not in str(bench.events.seen)
    assert "pw-secret" not in repr(ask("u", b"pw-secret"))


def test_a_verdict_shows_no_secret() -> None:
    from mqttc.auth import Verdict
    from mqttc.auth.source import Answer, Outcome

    assert "data" not in repr(Verdict(0x18, b"secret")) or "secret" not in repr(Verdict(0x18, b"secret"))
    assert "secret" not in repr(Outcome(Answer.CONTINUE, data=b"secret"))


def test_check_reads_what_authenticators_read(users: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--check", "--set", f"auth.password_file={users}"]) == 0
    assert main(["--check", "--set", "auth.password_file=missing.txt"]) == 2
    assert "auth.password_file: missing.txt: No such file" in capsys.readouterr().err


def test_metrics_have_a_word_for_each_counter(make: Make, users: Path) -> None:
    from mqttc.web.metrics import HELP

    bench = make({"password_file": str(users)})
    counters = [counter for counter in bench.native.stats() if counter.startswith(("auth_", "verdicts_"))]
    assert len(counters) > 10
    assert [counter for counter in counters if counter not in HELP] == []
