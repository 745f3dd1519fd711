"""Configuration: sources and their order, and that every error names the place."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqttc.config import Config, ConfigError, TcpAddress, UnixAddress, _TomlLines, parse_url, schema


def load(tmp_path: Path, text: str, **options: Any) -> Config:
    file = tmp_path / "broker.toml"
    file.write_text(text)
    return Config.load(file, **options)


def problems(tmp_path: Path, text: str = "", **options: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text, **options)
    return [str(problem).removeprefix(f"{tmp_path}/") for problem in caught.value.problems]


def test_defaults_are_the_contract() -> None:
    config = Config()
    assert [listener.url for listener in config.listeners] == ["tcp://127.0.0.1:1883"]
    assert config.auth.anonymous == "loopback"
    assert config.durability.mode == "off"
    assert (config.workers, config.data_dir) == (0, "mqttc-data")
    limits = config.limits
    assert (limits.max_packet_size, limits.max_connections) == (1_048_576, 0)
    assert (limits.max_queued_messages, limits.max_queued_bytes) == (10_000, 16_777_216)
    assert (limits.receive_maximum, limits.topic_alias_maximum) == (1024, 64)
    assert (limits.session_expiry, limits.max_keep_alive, limits.retain_available) == (86_400, 65_535, True)


def test_file(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        """
        workers = 3
        [[listeners]]
        url = "tcp://0.0.0.0:0"
        maximum_qos = 1
        [[listeners]]
        url = "unix:///run/mqttc.sock?mode=0660"
        [limits]
        max_packet_size = 65536
        connect_timeout = 2
        [auth]
        anonymous = true
        allow = ["sensor-*"]
        """,
    )
    assert config.workers == config.worker_count() == 3
    assert config.listeners[0].maximum_qos == 1
    assert config.listeners[1].address == UnixAddress("/run/mqttc.sock", False)
    assert config.listeners[1].permissions == 0o660
    assert config.engine_settings()["max_packet_size"] == 65536
    assert config.engine_settings()["connect_timeout_ms"] == 2000
    assert config.auth.allow == ["sensor-*"]


def test_later_sources_win(tmp_path: Path) -> None:
    text = "[limits]\nmax_packet_size = 1000\nreceive_maximum = 10\nmax_inflight = 11\n"
    environment = {"MQTTC_LIMITS__RECEIVE_MAXIMUM": "20", "MQTTC_LIMITS__MAX_INFLIGHT": "21"}
    config = load(tmp_path, text, environment=environment, settings=["limits.max_inflight=31"])
    assert config.limits.max_packet_size == 1000
    assert config.limits.receive_maximum == 20
    assert config.limits.max_inflight == 31


def test_listen_replaces_listeners_and_set_reaches_them(tmp_path: Path) -> None:
    text = '[[listeners]]\nurl = "tcp://10.0.0.1:1"\n[[listeners]]\nurl = "tcp://10.0.0.1:2"\n'
    config = load(tmp_path, text, listen=["mqtt://localhost"], settings=["listeners.0.maximum_qos=0"])
    assert [listener.url for listener in config.listeners] == ["mqtt://localhost"]
    assert config.listeners[0].maximum_qos == 0


def test_values_given_as_text() -> None:
    environment = {
        "MQTTC_AUTH__ANONYMOUS": "false",
        "MQTTC_AUTH__ALLOW": '["a", "b"]',
        "MQTTC_LIMITS__CONNECT_TIMEOUT": "2.5",
        "MQTTC_BROKER__RESPONSE_INFORMATION": "123",
        "MQTTC_DATA_DIR": "/var/lib/mqttc",
        "MQTTC_LISTENERS": '[{url = "tcp://127.0.0.1:0"}]',
    }
    config = Config.load(environment=environment, settings=["log.level=debug"])
    assert config.auth.anonymous is False
    assert config.auth.allow == ["a", "b"]
    assert config.limits.connect_timeout == 2.5
    assert config.broker.response_information == "123"
    assert config.data_dir == "/var/lib/mqttc"
    assert config.listeners[0].address == TcpAddress("127.0.0.1", 0)
    assert config.log.level == "debug"


def test_foreign_variables_are_left_alone() -> None:
    environment = {"MQTTC_PORT": "tcp://10.0.0.7:1883", "MQTTC_SERVICE_HOST": "10.0.0.7", "MQTTC_TEST_WORKERS": "4", "WORKERS": "9"}
    assert Config.load(environment=environment) == Config()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("workers = -1", "broker.toml:1: workers: should be greater than or equal to 0 (got -1)"),
        ("\n\nworkes = 1", "broker.toml:3: unknown key workes, did you mean workers?"),
        ("[limits]\n\nmax_packet_siz = 5", "broker.toml:3: unknown key limits.max_packet_siz, did you mean max_packet_size?"),
        ("limits.receive_maximum = 0", "broker.toml:1: limits.receive_maximum: should be greater than or equal to 1 (got 0)"),
        ('limits = { max_inflight = "1" }', "broker.toml:1: limits.max_inflight: should be a valid integer (got '1')"),
        ('[auth]\nanonymous = "yes"', "broker.toml:2: auth.anonymous: must be false, true or \"loopback\" (got 'yes')"),
        ("[auth]\nallow = [\n'a',\n1]", "broker.toml:4: auth.allow.1: should be a valid string (got 1)"),
        ("[[listeners]]\nmaximum_qos = 1", "broker.toml:1: listeners.0.url is missing"),
        ("listeners = []", "broker.toml:1: listeners: List should have at least 1 item after validation, not 0 (got [])"),
        ('[[listeners]]\nurl = "tcp://a:1"\n[[listeners]]\nurl = "x"', "broker.toml:4: listeners.1.url: 'x' is not a URL"),
        ("[log]\nlevel = 'loud'", "broker.toml:2: log.level: should be 'debug', 'info', 'warning' or 'error' (got 'loud')"),
        ("limits = 5", "broker.toml:1: limits: should be a valid dictionary or instance of Limits (got 5)"),
        ("a = 1\nb = = 2", "broker.toml:2: Invalid value, column 5"),
        ('a = "', "broker.toml:1: "),
        ('[[listeners]]\nurl = "tls://a:1"', "broker.toml:1: listeners.0 needs a certificate"),
    ],
)
def test_errors_name_file_and_line(tmp_path: Path, text: str, expected: str) -> None:
    (problem,) = problems(tmp_path, text)
    assert problem.startswith(expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('[auth]\npassword_file = "users.txt"', "broker.toml:2: auth.password_file is"),
        ('[auth]\nacl_file = "acl.toml"', "broker.toml:2: auth.acl_file is"),
        ('[durability]\nmode = "synced"', 'broker.toml:2: durability.mode = "synced" is'),
        ('[durability]\nmode = "written"', 'broker.toml:2: durability.mode = "written" is'),
        *(
            (f'[[listeners]]\nurl = "{scheme}://a:1"', f"broker.toml:2: listeners.0.url: {scheme}:// is")
            for scheme in ("ws", "wss", "quic")
        ),
    ],
)
def test_what_is_not_built_is_refused_by_name(tmp_path: Path, text: str, expected: str) -> None:
    assert problems(tmp_path, text) == [f"{expected} not available in this version"]


def test_errors_name_variable_and_option(tmp_path: Path) -> None:
    found = problems(
        tmp_path,
        "[limits]\nmax_inflight = 5\n",
        environment={"MQTTC_LIMITS__MAX_INFLIGHT": "0", "MQTTC_LIMITS__NONE": "1", "MQTTC_WORKER": "1", "MQTTC_WORKERS__A": "1"},
        settings=["limits.max_conections=1", "nonsense", "listeners.4.url=tcp://a:1", "auth.delay=x"],
        listen=["tcp://::1:1883"],
    )
    assert found == [
        "MQTTC_WORKER: unknown key 'worker', did you mean workers?",
        "--set nonsense: write --set section.key=value",
        "--set listeners.4.url=tcp://a:1: listeners has 1 entries, counted from 0; write listeners.0.key",
        "MQTTC_WORKERS__A: workers: should be a valid integer (got {'A': 1})".replace("'A'", "'a'"),
        "--listen tcp://::1:1883: 'tcp://::1:1883': put the IPv6 address in brackets, tcp://[::1]:1883",
        "MQTTC_LIMITS__MAX_INFLIGHT: limits.max_inflight: should be greater than or equal to 1 (got 0)",
        "MQTTC_LIMITS__NONE: unknown key limits.none",
        "--set limits.max_conections=1: unknown key limits.max_conections, did you mean max_connections?",
        "--set auth.delay=x: auth.delay: should be a valid number (got 'x')",
    ]


def test_unreadable_files(tmp_path: Path) -> None:
    missing = tmp_path / "none.toml"
    with pytest.raises(ConfigError, match=r"none\.toml: No such file or directory"):
        Config.load(missing)
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"# fine\n\xff\n")
    with pytest.raises(ConfigError, match=r"binary\.toml:2: is not UTF-8"):
        Config.load(binary)


def test_mapping_is_checked_like_a_file() -> None:
    assert Config.of({"workers": 2}).workers == 2
    assert Config.of(None) == Config()
    config = Config()
    assert Config.of(config) is config
    with pytest.raises(ConfigError, match=r"^unknown key limits\.a$"):
        Config.of({"limits": {"a": 1}})


@pytest.mark.parametrize(
    ("url", "address", "normal"),
    [
        ("tcp://127.0.0.1:1", TcpAddress("127.0.0.1", 1), "tcp://127.0.0.1:1"),
        ("mqtt://broker.example", TcpAddress("broker.example", 1883), "tcp://broker.example:1883"),
        ("TCP://[::1]:0", TcpAddress("::1", 0), "tcp://[::1]:0"),
        ("tcp://", TcpAddress("*", 1883), "tcp://*:1883"),
        ("tcp://:5", TcpAddress("*", 5), "tcp://*:5"),
        ("tcp://*:5/", TcpAddress("*", 5), "tcp://*:5"),
        ("unix:///run/a%20b.sock", UnixAddress("/run/a b.sock", False), "unix:///run/a b.sock"),
        ("unix://@name", UnixAddress("name", True), "unix://@name"),
    ],
)
def test_urls(url: str, address: TcpAddress | UnixAddress, normal: str) -> None:
    assert parse_url(url) == (address, {})
    assert address.url() == normal


@pytest.mark.parametrize(
    "url",
    [
        "", "localhost:1883", "http://a:1", "tcp://a:65536", "tcp://a:b", "tcp://::1:1", "tcp://[::1:1", "tcp://u:p@a:1", "tcp://a:1/x",
        "tcp://a:1#x", "tcp://a:1?x", "tcp://a:1?backlog=1&backlog=2", "unix://relative", "unix://", "unix://@", "unix:///%00",
        "unix:///" + "x" * 108, "tcp://a\n:1", "tcp://a b:1",
    ],
)  # fmt: skip
def test_bad_urls(url: str) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        parse_url(url)


def test_options_in_urls() -> None:
    (listener,) = Config.load(listen=["tcp://a:1?maximum_qos=1&anonymous=true&name=7"]).listeners
    assert (listener.maximum_qos, listener.anonymous, listener.name) == (1, True, "7")
    for bad in ("tcp://a:1?mode=0660", "unix://@a?mode=0660", "tcp://a:1?maxmum_qos=1", "tcp://a:1?url=x", "unix:///a?mode=9"):
        with pytest.raises(ConfigError):
            Config.load(listen=[bad])
    with pytest.raises(ConfigError, match="both in the URL and beside it"):
        Config.of({"listeners": [{"url": "tcp://a:1?backlog=5", "backlog": 5}]})


def test_schema_knows_every_key() -> None:
    described = json.loads(schema())
    assert set(described["properties"]) == set(Config.model_fields)
    assert "max_packet_size" in described["$defs"]["Limits"]["properties"]
    undescribed = [key for key, value in described["$defs"]["Limits"]["properties"].items() if "description" not in value]
    assert undescribed == []


def test_documentation_knows_every_key() -> None:
    text = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text()
    sections = [Config.model_fields["limits"].default, Config.model_fields["auth"].default, Config.model_fields["log"].default]
    keys = {key for section in sections for key in type(section).model_fields} | set(type(Config().listeners[0]).model_fields)
    assert [key for key in sorted(keys) if f"`{key}`" not in text] == []


def test_lines_of_hard_toml() -> None:
    text = '''a = """
# not a comment
[not.a.table]
"""
"quoted.key" . b = 'x' # [c]
[t] # comment
d = [ # comment
  { e = 1, "f]" = "}" },
  [ 2,
    3 ],
]
[[l.m]]
g = """x\\"""y"""
[l.m.n]
h = 1
[[l.m]]
i = 1979-05-27T07:32:00Z
'''
    assert tomllib.loads(text)
    lines = _TomlLines(text).lines
    expected: dict[tuple[str | int, ...], int] = {
        ("a",): 1, ("quoted.key", "b"): 5, ("t",): 6, ("t", "d"): 7, ("t", "d", 0, "e"): 8, ("t", "d", 0, "f]"): 8, ("t", "d", 1, 1): 10,
        ("l", "m", 0): 12, ("l", "m", 0, "g"): 13, ("l", "m", 0, "n", "h"): 15, ("l", "m", 1, "i"): 17,
    }  # fmt: skip
    assert {path: lines.get(path) for path in expected} == expected


keys = st.text("ab-_1", min_size=1, max_size=3)
values = st.recursive(
    st.one_of(st.integers(), st.booleans(), st.text('a"\\#[]{}=,\n', max_size=6)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(keys, inner, max_size=3)),
    max_leaves=8,
)


def as_toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "[" + ",\n".join(map(as_toml, value)) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {as_toml(inner)}" for key, inner in value.items()) + "}"
    return json.dumps(value)


@given(st.dictionaries(keys, values, max_size=4))
def test_lines_are_found_in_any_document(document: dict[str, Any]) -> None:
    text, starts = "", {}
    for key, value in document.items():
        starts[key] = text.count("\n") + 1
        text += f"{key} = {as_toml(value)} # {{[\n"
    try:
        assert tomllib.loads(text) == document
    except tomllib.TOMLDecodeError:
        return  # older parsers refuse a line break in an inline table
    lines = _TomlLines(text).lines
    assert {key: lines[key,] for key in document} == starts
