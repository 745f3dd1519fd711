"""`mqttc` itself: commands, help, defaults from a file and the environment, and what it does not import."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mqttc import SyncClient, __version__
from mqttc.cli.main import COMMANDS, main, parser_of
from tests.cli.conftest import TIMEOUT_S, environment, mqttc, ok


def test_version_and_help() -> None:
    for arguments in (["--version"], ["version"], ["pub", "--version"]):
        assert ok(mqttc(*arguments)) == f"mqttc {__version__}\n".encode()
    for arguments in (["--help"], ["help"], ["-h"]):
        assert all(name.encode() in ok(mqttc(*arguments)) for name in COMMANDS)
    assert ok(mqttc("help", "sub")) == ok(mqttc("sub", "--help"))


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_each_command(command: str) -> None:
    shown = " ".join(ok(mqttc(command, "--help")).decode().split())
    assert "Exit codes: 0 done" in shown
    if command != "completion":
        assert "--password-file" in shown and "MQTTC_PASSWORD" in shown


@pytest.mark.parametrize("command", COMMANDS)
def test_each_option_has_a_help_text_and_a_long_name(command: str) -> None:
    parser = parser_of(command)
    for action in parser.options():
        assert action.help, action.option_strings
        assert any(name.startswith("--") for name in action.option_strings)
    assert parser.format_help()


def test_commands_that_are_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pubb"]) == 2
    assert capsys.readouterr().err.startswith("mqttc: pubb is no command, did you mean pub?; there are pub, sub")
    assert main([]) == 2
    assert "no command" in capsys.readouterr().err


def test_help_into_a_closed_pipe() -> None:
    reader = subprocess.Popen(["true"], stdin=subprocess.PIPE)
    assert reader.stdin is not None
    reader.wait()
    done = subprocess.run(
        [sys.executable, "-m", "mqttc.cli", "sub", "--help"],
        stdout=reader.stdin,
        stderr=subprocess.PIPE,
        env=environment(),
        timeout=TIMEOUT_S,
        check=False,
    )
    reader.stdin.close()
    assert (done.returncode, done.stderr) == (0, b"")


# ---------------------------------------------------------------------------------------------------- defaults


def retained(url: str, text: str) -> None:
    with SyncClient(url) as client:
        client.publish("a", text, 1, True)


def test_defaults_of_a_file(url: str, tmp_path: Path) -> None:
    retained(url, "m")
    file = tmp_path / "mqttc" / "client.toml"
    file.parent.mkdir()
    file.write_text(
        f'url = "{url}"\nkeep-alive = 5\nquiet = false\n[sub]\nverbose = true\ntopic = ["a"]\ncount = 1\n[pub]\nqos = 1\n'.replace(
            "topic =", "topics ="
        )
    )
    assert ok(mqttc("sub", MQTTC_CLIENT_CONFIG=str(file))) == b"a m\n"
    done = mqttc("sub", "-t", "b", "-W", "0.3", MQTTC_CLIENT_CONFIG=str(file))
    assert (done.returncode, done.stdout) == (27, b"")  # what the command line says replaces what the file says
    own = environment(XDG_CONFIG_HOME=str(tmp_path))
    del own["MQTTC_CLIENT_CONFIG"]
    done = subprocess.run([sys.executable, "-m", "mqttc.cli", "sub"], env=own, capture_output=True, timeout=TIMEOUT_S, check=False)
    assert done.stdout == b"a m\n"
    done = mqttc("sub", "-h", "127.0.0.1", "-p", "1", MQTTC_CLIENT_CONFIG=str(file))
    assert done.returncode == 1 and b"mqtt://127.0.0.1:1:" in done.stderr


def test_url_of_the_environment(url: str, tmp_path: Path) -> None:
    retained(url, "m")
    assert ok(mqttc("sub", "-t", "a", "-C", "1", MQTTC_URL=url)) == b"m\n"
    file = tmp_path / "c.toml"
    file.write_text('host = "127.0.0.1"\nport = 1\n')
    assert ok(mqttc("sub", "-t", "a", "-C", "1", MQTTC_URL=url, MQTTC_CLIENT_CONFIG=str(file))) == b"m\n"
    done = mqttc("sub", "-t", "a", "-L", "mqtt://127.0.0.1:1", MQTTC_URL=url)
    assert b"mqtt://127.0.0.1:1:" in done.stderr


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("hots = 'x'", "hots is no option of a connection, did you mean host?"),
        ("[sbu]", "[sbu] is no command, did you mean sub?"),
        ("[sub]\nverbos = true", "verbos is no option of sub, did you mean verbose?"),
        ("[sub]\nverbose = 1", "[sub] verbose: true or false"),
        ("[sub]\nqos = 3", "'3' is not one of 0, 1, 2"),
        ("[sub]\nqos = true", "a text or a number"),
        ("[sub]\ncount = 'x'", "'x' is not a number above 0"),
        ("[sub]\nproperties = ['x']", "properties are of the command line"),
        ("not toml", "Expected"),
    ],
)
def test_bad_defaults(text: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "c.toml"
    file.write_text(text)
    monkeypatch.setenv("MQTTC_CLIENT_CONFIG", str(file))
    assert main(["sub", "-t", "a"]) == 2
    error = capsys.readouterr().err
    assert str(file) in error and said in error


def test_a_named_file_that_is_not_there(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    monkeypatch.setenv("MQTTC_CLIENT_CONFIG", str(tmp_path / "none.toml"))
    assert main(["pub", "-t", "a", "-m", "x"]) == 2
    assert "none.toml: No such file" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------- imports


@pytest.mark.parametrize(
    ("arguments", "absent"),
    [
        (["--version"], ["asyncio", "mqttc.client", "mqttc.codec", "mqttc.config"]),
        (["pub", "--help"], ["asyncio", "mqttc.client", "mqttc.codec", "mqttc.config", "difflib"]),
        (
            ["pub", "-t", "a", "-m", "x", "-p", "1"],
            ["mqttc.config", "pydantic", "h11", "urllib.request", "aioquic", "wsproto", "difflib", "tomllib"],
        ),
    ],
)
def test_what_is_not_needed_is_not_imported(arguments: list[str], absent: list[str]) -> None:
    code = (
        "import sys\nfrom mqttc.cli.main import main\n"
        f"main({arguments!r})\nprint([name for name in {absent!r} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, timeout=TIMEOUT_S, check=True)
    assert done.stderr.splitlines()[-1] == "[]"
