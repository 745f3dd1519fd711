"""`mqttc-broker explain`, `clients`, `client`, `disconnect` and `retained` against a broker that the command runs."""

from __future__ import annotations

import re
import signal
from contextlib import ExitStack, closing
from pathlib import Path

from tests.conftest import tcp_address
from tests.rawclient import DISCONNECT, MESSAGE_EXPIRY, Peer

from .test_command import Start, command, run

__all__ = ["command"]  # the fixture

RULES = 'default = "allow"\n[[rules]]\ndeny = ["receive"]\ntopics = ["t/secret"]\nclients = ["spy"]\n'


def configuration(tmp_path: Path, control: str = "") -> str:
    (tmp_path / "acl.toml").write_text(RULES)
    file = tmp_path / "b.toml"
    file.write_text(
        f'data_dir = "{tmp_path}/d"\n[[listeners]]\nurl = "tcp://127.0.0.1:0"\n[auth]\nanonymous = true\nacl_file = "{tmp_path}/acl.toml"\n'
        f'[durability]\nmode = "written"\n{control}'
    )
    return str(file)


def test_explain_asks_the_running_broker(command: Start, tmp_path: Path) -> None:
    config = configuration(tmp_path)
    socket = tmp_path / "d" / "control.sock"
    asked = ["explain", "--config", config, "--client", "pub", "publish", "t/secret"]
    broker = command("--config", config)
    address = tcp_address(broker.urls()[0])
    filters = {"spy": "t/#", "dash\x1b[2J": "t/+", "one": "$share/g/t/#", "away": "#"}
    with ExitStack() as stack:
        peers = [stack.enter_context(closing(Peer(address, 5))) for _ in filters]
        spy, _, _, away = peers
        for peer, (name, topic_filter) in zip(peers, filters.items(), strict=True):
            peer.connect(name, props=[(17, 60)])
            peer.subscribe(topic_filter, 1)
        away.disconnect()
        away.expect_close()
        found = run(*asked)
        assert (found.returncode, found.stderr) == (0, "")
        assert found.stdout.splitlines()[:2] == [
            "allowed: no rule matches: by default",
            f"by the running broker at {socket}: the rules in force, for no such client is connected",
        ]
        assert sorted(found.stdout.splitlines()[2:]) == [
            "receives: away  #  QoS 1  off line, would queue",
            "receives: dash\\x1b[2J  t/+  QoS 1  connected",
            "receives: one member of the group  $share/g/t/#: one",
            f"refused: spy  t/#: denied: {tmp_path}/acl.toml:2: rule 1: deny receive on t/secret for clients spy",
        ]
        own = run(*asked[:-4], "--client", "spy", "receive", "t/secret")
        assert own.returncode == 1
        assert f"by the running broker at {socket}: the connected client's own rights" in own.stdout
        limited = run(*asked, "--limit", "1")
        assert "there are more receivers: --limit" in limited.stdout

        listed = run("clients", "--config", config)
        names = sorted(line.split("  ")[0] for line in listed.stdout.splitlines())
        assert (listed.returncode, names) == (0, ["dash\\x1b[2J", "one", "spy"])
        assert run("clients", "--config", config, "--limit", "2").stderr == "there are more: --limit\n"
        shown = run("client", "--control", str(socket), "spy")
        assert shown.returncode == 0 and "subscription: t/#  QoS 1" in shown.stdout.splitlines()
        assert run("client", "--config", config, "nobody").returncode == 1
        assert run("disconnect", "--config", config, "spy").returncode == 0
        assert spy.expect(DISCONNECT).reason == 0x98
        assert run("disconnect", "--config", config, "nobody").returncode == 1
    assert broker.end() == 0
    assert any("control_disconnect" in line and "client_id=spy" in line for line in broker.lines)
    assert not socket.exists()

    found = run(*asked)
    assert found.returncode == 0
    assert found.stdout.splitlines() == [
        "allowed: no rule matches: by default",
        f"by the files, no running broker was asked ({socket}: No such file or directory): grants and receivers are not known",
    ]
    refused = run(*asked[:1], "--control", str(socket), *asked[1:])
    assert (refused.returncode, refused.stdout) == (2, "") and f"no broker answers at {socket}" in refused.stderr
    assert run("clients", "--config", config).returncode == 2


def test_retained(command: Start, tmp_path: Path) -> None:
    """Listed by filter and cleared one by one; what was cleared stays so after a restart."""
    config = configuration(tmp_path)
    broker = command("--config", config)
    with closing(Peer(tcp_address(broker.urls()[0]), 5)) as peer:
        peer.connect("pub")
        for topic in ("r/1", "r/2", "r/\u2028"):
            peer.publish(topic, b"four", 1, retain=True)
        peer.publish("s", b"", 2, retain=True)
        peer.publish("s", b"six by", 2, retain=True, props=((MESSAGE_EXPIRY, 1000),))
    listed = run("retained", "--config", config, "r/#")
    assert (listed.returncode, listed.stderr) == (0, "")
    assert sorted(listed.stdout.splitlines()) == ["r/1  qos=1  bytes=4", "r/2  qos=1  bytes=4", "r/\\u2028  qos=1  bytes=4"]
    assert re.fullmatch(r"s  qos=2  bytes=6  expiry=\d+\n", run("retained", "--config", config, "+").stdout)
    limited = run("retained", "--config", config, "--limit", "3")
    assert (len(limited.stdout.splitlines()), limited.stderr) == (3, "there are more: --limit\n")
    assert run("retained", "--config", config, "--clear", "r/1").returncode == 0
    again = run("retained", "--config", config, "--clear", "r/1")
    assert (again.returncode, again.stderr) == (1, "r/1 has no retained message\n")
    wrong = run("retained", "--config", config, "--clear", "r/#")
    assert (wrong.returncode, wrong.stdout) == (2, "") and "(arguments)" in wrong.stderr
    assert run("retained", "--config", config, "--clear", "r/2", "r/#").returncode == 2
    assert run("retained", "--config", config, "a/#/b").returncode == 2
    assert broker.end() == 0
    assert any("control_clear_retained" in line and "topic=r/1" in line for line in broker.lines)
    broker = command("--config", config)
    broker.until("ready")
    assert len(run("retained", "--config", config).stdout.splitlines()) == 3
    assert broker.end() == 0


def test_a_killed_brokers_socket_is_taken_over(command: Start, tmp_path: Path) -> None:
    config = configuration(tmp_path)
    first = command("--config", config)
    first.until("ready")
    first.end(signal.SIGKILL)
    assert (tmp_path / "d" / "control.sock").exists()
    assert "Connection refused" in run("explain", "--config", config, "--client", "a", "publish", "t").stdout
    second = command("--config", config)
    second.until("ready")
    assert "by the running broker" in run("explain", "--config", config, "--client", "a", "publish", "t").stdout
    assert second.end() == 0


def test_a_live_brokers_socket_is_not(command: Start, tmp_path: Path) -> None:
    path = tmp_path / "c"
    options = ["--listen", "tcp://127.0.0.1:0", "--set", f"control.socket={path}"]
    first = command(*options)
    first.until("ready")
    second = command(*options)
    assert second.rest() == 1
    assert "another process listens there" in second.lines[-1]
    assert run("clients", "--control", str(path)).returncode == 0
    assert first.end() == 0
    assert not path.exists()


def test_turned_off(command: Start, tmp_path: Path) -> None:
    config = configuration(tmp_path, "[control]\nsocket = false\n")
    broker = command("--config", config)
    broker.until("ready")
    assert sorted(one.name for one in (tmp_path / "d").iterdir() if "sock" in one.name) == []
    found = run("explain", "--config", config, "--client", "a", "publish", "t")
    assert "(the configuration has no control socket)" in found.stdout
    assert "set control.socket" in run("clients", "--config", config).stderr
    assert broker.end() == 0
