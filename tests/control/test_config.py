"""Configuration: sources and their order, and that every error names the place."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqttc.config import (
    _CONTROL_LIMITS,
    MAXIMUM_DURABLE_FILTERS,
    MAXIMUM_ORIGINS,
    MAXIMUM_PATH_BYTES,
    MAXIMUM_TRUSTED_PROXIES,
    Auth,
    Config,
    ConfigError,
    Durability,
    Http,
    InetAddress,
    Limits,
    Listener,
    UnixAddress,
    _TomlLines,
    parse_url,
    schema,
)
from mqttc.config_auth import Cache, ClientCertificate, Failures, Hashing, Jwt, Ldap, Scram, Sql, WebService


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
    durability = config.durability
    assert (durability.mode, durability.filters, durability.spill_after) == ("off", [], 1000)
    assert (durability.max_backlog, durability.retry, config.stores) == (67_108_864, 1.0, False)
    assert (config.workers, config.data_dir) == (0, "mqttc-data")
    limits = config.limits
    assert (limits.max_packet_size, limits.max_connections) == (1_048_576, 0)
    assert (limits.max_queued_messages, limits.max_queued_bytes) == (10_000, 16_777_216)
    assert (limits.receive_maximum, limits.topic_alias_maximum) == (1024, 64)
    assert (limits.session_expiry, limits.max_keep_alive, limits.retain_available) == (86_400, 65_535, True)
    assert (limits.max_request_head, limits.max_frame_size, limits.http_timeout) == (16_384, 16_777_216, 30.0)
    assert (limits.max_http_connections, limits.max_http_streams) == (1024, 256)
    assert (limits.max_quic_connections, limits.max_quic_streams) == (10_000, 100)
    assert (config.http.metrics, config.http.pages) == ("loopback", True)
    (listener,) = config.listeners
    assert (listener.allowed_origins, listener.proxy_protocol, listener.trusted_proxies) == ([], False, [])
    assert listener.durability is None
    assert (listener.early_data, listener.idle_timeout, listener.stateless_retry, listener.alpn) == (False, 30.0, "auto", None)


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
    assert config.listeners[0].address == InetAddress("tcp", "127.0.0.1", 0)
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
        ("tcp://127.0.0.1:1", InetAddress("tcp", "127.0.0.1", 1), "tcp://127.0.0.1:1"),
        ("mqtt://broker.example", InetAddress("tcp", "broker.example", 1883), "tcp://broker.example:1883"),
        ("TCP://[::1]:0", InetAddress("tcp", "::1", 0), "tcp://[::1]:0"),
        ("tcp://", InetAddress("tcp", "*", 1883), "tcp://*:1883"),
        ("tcp://:5", InetAddress("tcp", "*", 5), "tcp://*:5"),
        ("tcp://*:5/", InetAddress("tcp", "*", 5), "tcp://*:5"),
        ("mqtts://h", InetAddress("tls", "h", 8883), "tls://h:8883"),
        ("ws://127.0.0.1:8080", InetAddress("ws", "127.0.0.1", 8080, "/mqtt"), "ws://127.0.0.1:8080/mqtt"),
        ("ws://h/", InetAddress("ws", "h", 80, "/"), "ws://h:80/"),
        ("WSS://[::1]/a/B.c;v=1/", InetAddress("wss", "::1", 443, "/a/B.c;v=1/"), "wss://[::1]:443/a/B.c;v=1/"),
        ("wss://", InetAddress("wss", "*", 443, "/mqtt"), "wss://*:443/mqtt"),
        ("quic://:0", InetAddress("quic", "*", 0), "quic://*:0"),
        ("quic://h/", InetAddress("quic", "h", 14567), "quic://h:14567"),
        ("unix:///run/a%20b.sock", UnixAddress("/run/a b.sock", False), "unix:///run/a%20b.sock"),
        ("unix:///run/a%3Fmode=600", UnixAddress("/run/a?mode=600", False), "unix:///run/a%3Fmode=600"),
        ("unix://@50%25", UnixAddress("50%", True), "unix://@50%25"),
        ("unix:///run/%E2%80%8B%C3%A9", UnixAddress("/run/\u200bé", False), "unix:///run/%E2%80%8Bé"),
        ("unix://@name", UnixAddress("name", True), "unix://@name"),
    ],
)
def test_urls(url: str, address: InetAddress | UnixAddress, normal: str) -> None:
    assert parse_url(url) == (address, {})
    assert address.url() == normal
    assert parse_url(normal) == (address, {})


def test_a_path_of_the_longest_kind() -> None:
    path = "/" + "x" * (MAXIMUM_PATH_BYTES - 1)
    assert parse_url(f"ws://h{path}")[0] == InetAddress("ws", "h", 80, path)
    with pytest.raises(ValueError, match="a path has at most 255 bytes"):
        parse_url(f"ws://h{path}x")


def test_the_actual_port_stands_before_the_path() -> None:
    assert InetAddress("ws", "::1", 0, "/mqtt").url(8080) == "ws://[::1]:8080/mqtt"


@pytest.mark.parametrize(
    ("scheme", "tls", "http", "quic"),
    [
        *(("tcp", False, False, False), ("tls", True, False, False), ("ws", False, True, False)),
        *(("wss", True, True, False), ("quic", True, False, True), ("unix", False, False, False)),
    ],
)
def test_kinds_of_listener(scheme: str, tls: bool, http: bool, quic: bool) -> None:
    listener = Listener(url="unix:///x" if scheme == "unix" else f"{scheme}://h:1")
    assert (listener.scheme, listener.is_tls, listener.is_http, listener.is_quic) == (scheme, tls, http, quic)
    address = listener.address
    if isinstance(address, InetAddress):
        assert (address.scheme, address.tls, address.http, address.quic) == (scheme, tls, http, quic)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://a:1", "unknown scheme 'http'; use tcp://, tls://, ws://, wss://, quic:// or unix://"),
        ("wsss://a:1", "unknown scheme 'wsss', did you mean wss"),
        ("tcp://a:1/x", "nothing but options may follow the port"),
        ("quic://a:1/mqtt", "nothing but options may follow the port"),
        ("ws://a:1/x#y", "nothing but a path and options may follow the port"),
        ("tcp://a:1#", "nothing but options may follow the port"),
        ("quic://::1:1", r"put the IPv6 address in brackets, quic://\[::1\]:14567"),
        ("tcp://[::1]x:1", "put the IPv6 address in brackets"),
        ("wss://a:65536", "the port is a number from 0 to 65535"),
        ("ws://u@a:1", "no user name or password"),
        *((f"ws://a:1{path}", "write the path as in /mqtt") for path in ("/a/../b", "/..", "/./a", "/a/.", "//", "/a//b", "/%2e%2e", "/ä")),
        *((f"ws://a:1{path}", "write the path as in /mqtt") for path in ("/a\\b", "/a|b", '/"', "/<a>", "/{a}", "/a%20b")),
        ("ws://a:1/a b", "a blank or a control character"),
    ],
)
def test_bad_urls_are_explained(url: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_url(url)


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


WITH_CERTIFICATE = {"url": "quic://h", "certificate": "c"}


@pytest.mark.parametrize(
    ("listener", "message"),
    [
        *(
            ({"url": "quic://h", "certificate": "c", key: value}, f"{key} is not for quic:// listeners")
            for key, value in {
                "certificates": [{"certificate": "d"}], "ciphers": "ALL", "ciphersuites": "TLS_AES_128_GCM_SHA256",
                "minimum_tls_version": "1.3", "psk_file": "p", "psk_hint": "h", "backlog": 5, "tcp_user_timeout": 0,
                "tcp_keepalive_idle": 0, "allowed_origins": ["http://a"], "proxy_protocol": True, "trusted_proxies": ["::1"],
            }.items()
        ),
        *(
            ({"url": url, key: value}, f"{key} is for quic:// listeners")
            for key, value in {"early_data": True, "idle_timeout": 5, "stateless_retry": False}.items()
            for url in ("tcp://h", "tls://h?certificate=c", "ws://h", "wss://h?certificate=c", "unix:///x")
        ),
        *(
            ({"url": url, "allowed_origins": ["http://a"]}, "allowed_origins is for ws://, wss:// and asgi:// listeners")
            for url in ("tcp://h", "tls://h?certificate=c", "unix:///x")
        ),
        *(({"url": url, "key": "k"}, "key is for tls://, wss:// and quic:// listeners") for url in ("tcp://h", "ws://h", "unix:///x")),
        ({"url": "unix:///x", "trusted_proxies": ["::1"]}, "trusted_proxies is for tcp://, tls://, ws:// and wss:// listeners"),
        ({"url": "tcp://h", "trusted_proxies": ["::1"]}, "trusted_proxies needs proxy_protocol = true on tcp:// listeners"),
        ({"url": "mqtts://h?certificate=c", "trusted_proxies": ["::1"]}, "trusted_proxies needs proxy_protocol = true on tls:// listeners"),
        *(
            ({"url": url, "proxy_protocol": True}, "proxy_protocol needs trusted_proxies")
            for url in ("tcp://h", "tls://h?certificate=c", "ws://h", "wss://h?certificate=c")
        ),
        *(({"url": f"{scheme}://h", "mode": "0660"}, "mode is for Unix sockets with a path") for scheme in ("ws", "quic")),
        ({**WITH_CERTIFICATE, "alpn": []}, "alpn cannot be empty on quic:// listeners"),
    ],
)  # fmt: skip
def test_keys_are_refused_where_they_do_nothing(listener: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Config.of({"listeners": [listener]})
    (problem,) = caught.value.problems
    assert problem.message.startswith(f"listeners.0.url: {message}")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("early_data", "yes", "early_data: should be a valid boolean (got 'yes')"),
        ("idle_timeout", 0, "idle_timeout: should be greater than 0 (got 0)"),
        ("idle_timeout", 86401, "idle_timeout: should be less than or equal to 86400 (got 86401)"),
        ("stateless_retry", "always", "stateless_retry: must be false, true or \"auto\" (got 'always')"),
        ("stateless_retry", 1, 'stateless_retry: must be false, true or "auto" (got 1)'),
        ("alpn", [""], "alpn.0: String should have at least 1 character (got '')"),
        ("alpn", "mqtt", "alpn: should be a valid list (got 'mqtt')"),
    ],
)
def test_bad_values_of_quic(key: str, value: object, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Config.of({"listeners": [{**WITH_CERTIFICATE, key: value}]})
    assert [problem.message for problem in caught.value.problems] == [f"listeners.0.{message}"]


def test_a_quic_listener() -> None:
    (listener,) = Config.load(
        listen=["quic://h?certificate=c.p12&key_password=1&early_data=true&idle_timeout=2.5&stateless_retry=true"]
    ).listeners
    assert (listener.early_data, listener.idle_timeout, listener.stateless_retry) == (True, 2.5, True)
    assert (listener.certificate, listener.key_password) == ("c.p12", "1")
    (listener,) = Config.load(listen=["quic://h?certificate=c&client_ca=d&client_certificate=required&stateless_retry=auto"]).listeners
    assert (listener.client_certificate, listener.stateless_retry) == ("required", "auto")


@pytest.mark.parametrize(
    ("url", "others"),
    [
        ("tls://h", "psk_file, or tls.self_signed = true"),
        ("wss://h", "psk_file, or tls.self_signed = true"),
        ("quic://h", "tls.self_signed = true"),
    ],
)
def test_whoever_speaks_tls_needs_a_certificate(url: str, others: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Config.load(listen=[url])
    assert str(caught.value) == f"--listen {url}: listeners.0 needs a certificate (or {others})"
    config = Config.load(listen=[url], settings=["tls.self_signed=true"])
    assert config.listeners[0].self_signed(config)
    config = Config.of({"listeners": [{"url": url, "certificate": "c"}], "tls": {"self_signed": True}})
    assert not config.listeners[0].self_signed(config)


def test_protocols() -> None:
    urls = ("tcp://h", "unix:///x", "ws://h", "tls://h", "wss://h", "quic://h")
    config = Config.load(listen=urls, settings=["tls.self_signed=true"])
    expected = [[], [], [], ["mqtt"], ["h2", "http/1.1"], ["mqtt", "mqtt-quic"]]
    assert [listener.protocols for listener in config.listeners] == expected
    assert Listener(url="wss://h", alpn=["http/1.1"]).protocols == ["http/1.1"]
    assert Listener(url="tls://h", alpn=[]).protocols == Listener(url="wss://h", alpn=[]).protocols == []


@pytest.mark.parametrize(
    ("written", "normal"),
    [
        ("https://example.org", "https://example.org"),
        ("HTTPS://Example.ORG:443", "https://example.org"),
        ("http://localhost:80", "http://localhost"),
        ("http://localhost:443", "http://localhost:443"),
        ("https://[::0001]:8443", "https://[::1]:8443"),
        ("chrome-extension://abcdef", "chrome-extension://abcdef"),
    ],
)
def test_origins(written: str, normal: str) -> None:
    assert Listener(url="ws://h", allowed_origins=[written]).allowed_origins == [normal]


@pytest.mark.parametrize(
    "origin",
    [
        "", "null", "*", "example.org", "https://", "https://a/", "https://a/b", "https://*.a", "https://a:0", "https://a:65536", "https://a:",
        "https://ä", "https://\u212a.org", "https://u@a", "https://a b", "https://[::g]", "https://[::1", "https://a\n", "https://a?b",
    ],
)  # fmt: skip
def test_bad_origins(origin: str) -> None:
    with pytest.raises(ConfigError, match=r"listeners\.0\.allowed_origins\.0: (must be scheme://host|.* is no IPv6 address)"):
        Config.of({"listeners": [{"url": "ws://h", "allowed_origins": [origin]}]})


@pytest.mark.parametrize(
    ("written", "normal"),
    [
        ("10.1.2.3", "10.1.2.3/32"),
        ("10.1.2.3/8", "10.0.0.0/8"),
        ("::1", "::1/128"),
        ("2001:DB8:0::5/32", "2001:db8::/32"),
        ("::ffff:10.0.0.1", "10.0.0.1/32"),
        ("::ffff:10.1.2.3/104", "10.0.0.0/8"),
        ("::ffff:0:0/96", "0.0.0.0/0"),
        ("::/0", "::/0"),
    ],
)
def test_trusted_proxies(written: str, normal: str) -> None:
    assert Listener(url="ws://h", trusted_proxies=[written]).trusted_proxies == [normal]


@pytest.mark.parametrize("network", ["", "localhost", "10.0.0.1:80", "10.0.0.0/33", "[::1]", "fe80::1%eth0", "010.0.0.1", "10.0.0.1 "])
def test_bad_trusted_proxies(network: str) -> None:
    with pytest.raises(ConfigError, match=r"listeners\.0\.trusted_proxies\.0: must be an address or a network, for example"):
        Config.of({"listeners": [{"url": "ws://h", "trusted_proxies": [network]}]})


def test_lists_of_a_listener_are_bounded() -> None:
    proxies = [f"10.0.0.{number}" for number in range(MAXIMUM_TRUSTED_PROXIES)]
    origins = [f"http://a:{number}" for number in range(1, MAXIMUM_ORIGINS + 1)]
    listener = Listener(url="ws://h", trusted_proxies=proxies, allowed_origins=origins)
    assert (len(listener.trusted_proxies), len(listener.allowed_origins)) == (64, 64)
    for key, value in (("trusted_proxies", [*proxies, "::1"]), ("allowed_origins", [*origins, "http://b"])):
        with pytest.raises(ConfigError, match=rf"listeners\.0\.{key}: List should have at most 64 items"):
            Config.of({"listeners": [{"url": "ws://h", key: value}]})
    with pytest.raises(ConfigError, match=r"allowed_origins\.0: String should have at most 300 characters"):
        Config.of({"listeners": [{"url": "ws://h", "allowed_origins": ["http://" + "a" * 300]}]})


@pytest.mark.parametrize(
    ("listener", "proxied"),
    [
        ({"url": "tcp://h"}, False),
        ({"url": "unix:///x"}, False),
        ({"url": "ws://h"}, False),
        ({"url": "quic://h"}, False),
        ({"url": "tcp://h", "proxy_protocol": True, "trusted_proxies": ["::1"]}, True),
        ({"url": "tls://h", "proxy_protocol": True, "trusted_proxies": ["::1"]}, True),
        ({"url": "unix:///x", "proxy_protocol": True}, True),
        ({"url": "ws://h", "trusted_proxies": ["::1"]}, True),
        ({"url": "wss://h", "proxy_protocol": True, "trusted_proxies": ["::1"]}, True),
    ],
)
def test_loopback_never_holds_behind_a_proxy(listener: dict[str, Any], proxied: bool) -> None:
    made = Listener.model_validate(listener)
    assert made.behind_proxy is proxied
    loopback: bool | str = False if proxied else "loopback"
    assert [made.effective_anonymous(Auth(anonymous=rule)) for rule in (False, True, "loopback")] == [False, True, loopback]
    assert [made.effective_metrics(Http(metrics=rule)) for rule in (False, True, "loopback")] == [False, True, loopback]
    own = {rule: Listener.model_validate({**listener, "anonymous": rule}) for rule in (False, True, "loopback")}
    assert [own[rule].effective_anonymous(Auth(anonymous=True)) for rule in own] == [False, True, loopback]
    assert own["loopback"].effective_metrics(Http(metrics=True)) is True


@pytest.mark.parametrize(
    ("name", "lowest", "highest"),
    [
        ("max_request_head", 1024, 65536),
        ("max_frame_size", 1024, 2**31 - 1),
        ("max_http_connections", 1, 2**31 - 1),
        ("max_http_streams", 1, 10_000),
        ("max_quic_connections", 1, 2**31 - 1),
        ("max_quic_handshakes", 1, 2**31 - 1),
        ("max_quic_streams", 1, 10_000),
        ("max_tls_handshakes", 0, 2**31 - 1),
    ],
)
def test_bounds_of_limits(name: str, lowest: int, highest: int) -> None:
    for value in (lowest, highest):
        assert getattr(Config.of({"limits": {name: value}}).limits, name) == value
    for value, words in ((lowest - 1, "greater than or equal to"), (highest + 1, "less than or equal to")):
        with pytest.raises(ConfigError, match=rf"limits\.{name}: should be {words}"):
            Config.of({"limits": {name: value}})


def test_bounds_of_http_timeout() -> None:
    assert Config.of({"limits": {"http_timeout": 0.5}}).limits.http_timeout == 0.5
    for value in (0, 86401, float("inf")):
        with pytest.raises(ConfigError, match=r"limits\.http_timeout: should be"):
            Config.of({"limits": {"http_timeout": value}})


def test_limits_of_the_control_plane_are_not_the_engines() -> None:
    assert set(_CONTROL_LIMITS) < set(Limits.model_fields)
    settings = Config().engine_settings()
    assert [name for name in settings if name.removesuffix("_ms") in _CONTROL_LIMITS] == []


def test_http_section(tmp_path: Path) -> None:
    config = load(tmp_path, "[http]\npages = false\n", environment={"MQTTC_HTTP__METRICS": "true"})
    assert (config.http.pages, config.http.metrics) == (False, True)
    assert problems(tmp_path, "[http]\nmetrics = 1\npage = true\n") == [
        'broker.toml:2: http.metrics: must be false, true or "loopback" (got 1)',
        "broker.toml:3: unknown key http.page, did you mean pages?",
    ]


def test_schema_knows_every_key() -> None:
    described = json.loads(schema())
    assert set(described["properties"]) == set(Config.model_fields)
    assert "max_packet_size" in described["$defs"]["Limits"]["properties"]
    for section in ("Limits", "Listener", "Http"):
        undescribed = [key for key, value in described["$defs"][section]["properties"].items() if "description" not in value]
        assert undescribed == []
    listener = described["$defs"]["Listener"]["properties"]
    assert listener["stateless_retry"]["default"] == "auto"
    assert listener["trusted_proxies"]["maxItems"] == MAXIMUM_TRUSTED_PROXIES


_SECTION_NAMES = {ClientCertificate: "certificate", WebService: "http"}


def test_documentation_knows_every_key() -> None:
    text = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text()
    sections = [Config.model_fields["limits"].default, Config.model_fields["auth"].default, Config.model_fields["log"].default]
    keys = {key for section in sections for key in type(section).model_fields} | set(type(Config().listeners[0]).model_fields)
    keys |= {f"http.{key}" for key in Http.model_fields} | set(Durability.model_fields)
    for section in (Sql, Jwt, ClientCertificate, WebService, Scram, Ldap, Cache, Failures, Hashing):
        keys |= {f"{_SECTION_NAMES.get(section, section.__name__.lower())}.{key}" for key in section.model_fields}
    assert [key for key in sorted(keys) if f"`{key}`" not in text] == []


def test_documentation_has_the_defaults_of_the_limits() -> None:
    text = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text()
    wrong = []
    for key, default in Limits().model_dump().items():
        shown = f'"{default}"' if isinstance(default, str) else str(default).lower().removesuffix(".0")
        if f"| `{key}` | {shown} |" not in text and f"| `{key}` | `{shown}` |" not in text:
            wrong.append((key, shown))
    assert wrong == []


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


@pytest.mark.parametrize(
    ("text", "stores"),
    [
        ("", False),
        ('[durability]\nmode = "off"', False),
        ('[durability]\nmode = "written"', True),
        ('[durability]\nmode = "synced"', True),
        ('[durability]\nfilters = [{ filter = "orders/#", mode = "synced" }]', True),
        ('[[listeners]]\nurl = "tcp://:0"\ndurability = "written"', True),
        ('[[listeners]]\nurl = "tcp://:0?durability=synced"', True),
        ('[[listeners]]\nurl = "unix:///x"\ndurability = "off"', False),
    ],
)
def test_whether_anything_is_kept(tmp_path: Path, text: str, stores: bool) -> None:
    config = load(tmp_path, text)
    assert config.stores is stores
    assert config.engine_settings()["spill_after"] == config.durability.spill_after


def test_durability_from_every_source(tmp_path: Path) -> None:
    text = """
        [durability]
        mode = "written"
        spill_after = 16
        max_backlog = 1048576
        retry = 0.5
        filters = [
            { filter = "+/orders/#", mode = "synced" },
            { filter = "$SYS/x", mode = "written" },
        ]
        """
    durability = load(tmp_path, text, environment={"MQTTC_DURABILITY__SPILL_AFTER": "20"}, settings=["durability.mode=synced"]).durability
    assert (durability.mode, durability.spill_after, durability.max_backlog, durability.retry) == ("synced", 20, 2**20, 0.5)
    assert [(one.filter, one.mode) for one in durability.filters] == [("+/orders/#", "synced"), ("$SYS/x", "written")]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('mode = "fsync"', "broker.toml:2: durability.mode: should be 'off', 'written' or 'synced' (got 'fsync')"),
        ("spill_after = 15", "broker.toml:2: durability.spill_after: should be greater than or equal to 16 (got 15)"),
        ("max_backlog = 1048575", "broker.toml:2: durability.max_backlog: should be greater than or equal to 1048576 (got 1048575)"),
        ("retry = 0", "broker.toml:2: durability.retry: should be greater than 0 (got 0)"),
        ("sync = true", "broker.toml:2: unknown key durability.sync"),
        ('filters = [{ filter = "a" }]', "broker.toml:2: durability.filters.0.mode is missing"),
        (
            'filters = [{ filter = "a", mode = "off" }]',
            "broker.toml:2: durability.filters.0.mode: should be 'written' or 'synced' (got 'off')",
        ),
        ('filters = [\n{ filter = "a", mod = "synced" }]', "broker.toml:3: unknown key durability.filters.0.mod, did you mean mode?"),
    ],
)
def test_durability_refusals(tmp_path: Path, text: str, expected: str) -> None:
    assert problems(tmp_path, f"[durability]\n{text}")[-1] == expected


@pytest.mark.parametrize("topic_filter", ["", "a/#/b", "a#", "a+", "+a/b", "#/", "a\0b", "$share/g/a", "x" * 65_536, "\ud800"])
def test_filters_that_are_none(topic_filter: str) -> None:
    with pytest.raises(ConfigError, match=r"durability\.filters\.0\.filter: "):
        Config.of({"durability": {"filters": [{"filter": topic_filter, "mode": "synced"}]}})


@pytest.mark.parametrize("topic_filter", ["#", "+", "a", "/", "a//#", "+/+/#", "$SYS/#", "x" * 65_535, "$shared/a", "ä/+"])
def test_filters_that_are_taken(topic_filter: str) -> None:
    config = Config.of({"durability": {"filters": [{"filter": topic_filter, "mode": "synced"}]}})
    assert config.durability.filters[0].filter == topic_filter


def test_durable_filters_are_limited() -> None:
    entries = [{"filter": f"a/{number}", "mode": "synced"} for number in range(MAXIMUM_DURABLE_FILTERS + 1)]
    assert len(Config.of({"durability": {"filters": entries[1:]}}).durability.filters) == MAXIMUM_DURABLE_FILTERS == 64
    with pytest.raises(ConfigError, match=r"durability\.filters: .*at most 64"):
        Config.of({"durability": {"filters": entries}})


def test_durability_of_a_listener_is_a_mode() -> None:
    with pytest.raises(ConfigError, match=r"listeners\.0\.durability: should be 'off', 'written' or 'synced'"):
        Config.of({"listeners": [{"url": "tcp://:0", "durability": "fsync"}]})
