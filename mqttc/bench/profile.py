"""Profiles: everything that decides what a run does, with names, units and defaults; from TOML files and the command line."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.parse import unquote, urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

Scenario = Literal[
    "fanout", "fanin", "p2p", "wild", "shared", "conn", "hold", "latency", "retain", "offline",
    "publish", "publish_receive", "subscribe_publish_receive",
]


class ProfileError(ValueError):
    """A profile that does not exist or cannot be run."""


class RunError(RuntimeError):
    """A run that cannot be made: no broker, no permission, something is not installed."""


@dataclass(frozen=True, slots=True)
class Target:
    """What a URL names. ``host`` is a Unix socket's path where ``port`` is 0."""

    host: str
    port: int
    path: str = ""
    """Of the HTTP request, with WebSocket."""
    tls: bool = False
    websocket: bool = False
    relay: Literal["", "h2", "quic"] = ""
    """What the native clients do not speak."""

    @property
    def authority(self) -> str:
        """Host and port as HTTP writes them, the scheme's own port left out."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.tls else 80) else f"{host}:{self.port}"


class _Way(NamedTuple):
    port: int
    tls: bool = False
    websocket: bool = False
    relay: Literal["", "h2", "quic"] = ""


_SCHEMES = {
    "mqtt": _Way(1883),
    "tcp": _Way(1883),
    "mqtts": _Way(8883, tls=True),
    "tls": _Way(8883, tls=True),
    "ws": _Way(80, websocket=True),
    "wss": _Way(443, tls=True, websocket=True),
    "ws+h2": _Way(80, websocket=True, relay="h2"),
    "wss+h2": _Way(443, tls=True, websocket=True, relay="h2"),
    "quic": _Way(14567, tls=True, relay="quic"),
}


_URLS = f"unix:///path or SCHEME://[user[:password]@]host[:port][/path], of {', '.join(_SCHEMES)}"


class Profile(BaseModel):
    """One run. Numbers of clients are totals over all threads."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    scenario: Scenario = Field("fanout", description="what the clients do, see docs/benchmarking.md")
    url: str = Field("mqtt://127.0.0.1:1883", description=f"the broker, {_URLS}")
    ca_file: str | None = Field(None, description="CA certificates (PEM) for the broker's; None: those that this system trusts")
    insecure: bool = Field(False, description="the broker's certificate is not verified")
    certificate_file: str | None = Field(None, description="the clients' certificate chain (PEM)")
    key_file: str | None = Field(None, description="and its key (PEM, not encrypted); None: it stands in certificate_file")
    resume: bool = Field(False, description="TLS connections show a ticket; without it each makes a full handshake. Not with a relay")
    streams: int = Field(1, ge=1, le=1000, description="ws+h2, wss+h2, quic: clients that share a connection, a stream each")
    version: Literal[4, 5] = Field(4, description="protocol level: 4 (MQTT 3.1.1) or 5")
    publishers: int = Field(1, ge=1, le=60000)
    subscribers: int = Field(1, ge=0, le=60000)
    groups: int = Field(1, ge=1, description="shared: number of groups the subscribers are divided into")
    filters: int = Field(100_000, ge=1, description="wild: distinct filters")
    matches: int = Field(5, ge=1, le=8, description="wild: filters that each message matches")
    connections: int = Field(1000, ge=1, description="hold: idle connections; conn: clients that connect again and again")
    messages: int = Field(0, ge=0, description="messages of each publisher; 0: until the duration is over. retain, offline: in all")
    topic_levels: int = Field(3, ge=3, le=64, description="levels of a topic, not for wild")
    qos: Literal[0, 1, 2] = 0
    subscribe_qos: Literal[0, 1, 2] | None = Field(None, description="None: the same as qos")
    payload: int = Field(64, ge=24, description="bytes; the first 24 carry publisher, sequence and time")
    payload_most: int | None = Field(None, description="bytes; None: all payloads have the same size")
    window: int = Field(1000, ge=1, description="messages under way at the same time, over all publishers (closed loop)")
    burst: int = Field(0, ge=0, description="messages of one write of a publisher; 0: half its window, at most 100")
    rate: float = Field(0.0, ge=0, description="messages a second over all publishers, sent when due (open loop); 0: closed loop")
    warmup: float = Field(1.0, ge=0, description="seconds before measuring")
    duration: float = Field(5.0, gt=0, description="seconds of measuring")
    drain: float = Field(5.0, gt=0, description="seconds without any delivery after which what is missing counts as lost")
    patience: float = Field(10.0, gt=0, description="seconds without progress after which connecting, subscribing and filling end")
    repeats: int = Field(1, ge=1, le=1000, description="retain, offline: how often what is measured is done")
    clean: bool = Field(True, description="clean sessions; offline keeps its session in any case")
    threads: int = Field(1, ge=1, le=64)
    verify: int = Field(0, ge=0, description="subscribers checked message by message, the others by count and last sequence; 0: all")
    connect_batch: int = Field(200, ge=1, description="connections being made at the same time, per thread")
    sources: int = Field(0, ge=0, description="local addresses 127.0.x.y to connect from; 0: as needed, for a broker at such an address")
    username: str | None = None
    password: str | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Profile:
        if self.payload_most is not None and self.payload_most < self.payload:
            raise ValueError("payload_most is less than payload")
        if self.scenario == "latency" and not self.rate:
            raise ValueError("latency needs a rate")
        if self.scenario in ("retain", "offline") and not self.messages:
            raise ValueError(f"{self.scenario} needs a number of messages")
        if self.scenario == "offline" and not (self.qos and self.subscribe_qos != 0):
            raise ValueError("offline needs QoS 1 or 2: brokers need not keep QoS 0 messages")
        if self.scenario == "wild" and self.subscribers < self.matches:
            raise ValueError("wild needs at least as many subscribers as matches")
        if self.scenario == "shared" and self.subscribers < self.groups:
            raise ValueError("shared needs at least one subscriber for each group")
        self._check_tls()
        return self

    def target(self) -> Target:
        """What the URL names; host names are resolved where the run begins."""
        parts = urlsplit(self.url)
        if parts.scheme == "unix":
            return Target(unquote(parts.netloc + parts.path), 0)
        way = _SCHEMES.get(parts.scheme)
        if way is None:
            raise ValueError(f"{self.shown_url()}: not {_URLS}")
        if not parts.hostname:
            raise ValueError(f"{self.shown_url()}: names no host")
        path = (parts.path or "/mqtt") + (f"?{parts.query}" if parts.query else "")
        return Target(parts.hostname, parts.port or way.port, path if way.websocket else "", way.tls, way.websocket, way.relay)

    def _check_tls(self) -> None:
        """Files that a run would not look at are a mistake."""
        target = self.target()
        given = [key for key in ("ca_file", "insecure", "certificate_file", "key_file", "resume") if getattr(self, key)]
        if given and not target.tls:
            raise ValueError(f"{', '.join(given)}: {self.shown_url()} has no TLS")
        if self.ca_file is not None and self.insecure:
            raise ValueError("ca_file and insecure exclude each other")
        if self.key_file is not None and self.certificate_file is None:
            raise ValueError("key_file without certificate_file")
        if self.resume and target.relay:
            raise ValueError("resume is not for a relay")
        if self.streams > 1 and not target.relay:
            raise ValueError(f"streams: {self.shown_url()} has none")

    def shown_url(self) -> str:
        """The URL without credentials."""
        parts = urlsplit(self.url)
        return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl() if parts.scheme != "unix" else self.url

    def record(self) -> dict[str, Any]:
        """All values, credentials left out: what may be written to a file."""
        return {**self.model_dump(exclude={"username", "password"}), "url": self.shown_url()}

    def credentials(self) -> tuple[str | None, bytes | None]:
        parts = urlsplit(self.url)
        user = self.username if self.username is not None else (unquote(parts.username) if parts.username else None)
        password = self.password if self.password is not None else (unquote(parts.password) if parts.password else None)
        return user, None if password is None else password.encode()


def named_profiles(file: Path | None = None) -> dict[str, dict[str, Any]]:
    """The profiles that come with mqttc, and those of a file, which win."""
    text = resources.files("mqttc.bench").joinpath("profiles.toml").read_text("utf-8")
    profiles: dict[str, dict[str, Any]] = tomllib.loads(text)
    if file is not None:
        try:
            profiles.update(tomllib.loads(file.read_text("utf-8")))
        except (OSError, tomllib.TOMLDecodeError) as error:
            raise ProfileError(f"{file}: {error}") from error
    return profiles


def load_profile(name: str, overrides: Mapping[str, Any], file: Path | None = None) -> Profile:
    """The profile of that name (or the bare scenario), with values of the command line on top."""
    profiles = named_profiles(file)
    values = dict(profiles.get(name, {"scenario": name}))
    values.update(overrides)
    try:
        return Profile(**values)
    except ValidationError as error:
        if name not in profiles and any(part["loc"] == ("scenario",) for part in error.errors()):
            raise ProfileError(f"there is no profile or scenario {name!r}; known: {', '.join(sorted(profiles))}") from None
        problems = [
            f"{'.'.join((name, *map(str, part['loc'])))}: {part['msg'].removeprefix('Value error, ')}"
            for part in error.errors()
        ]
        raise ProfileError("; ".join(problems)) from None
