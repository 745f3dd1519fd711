"""Profiles: everything that decides what a run does, with names, units and defaults; from TOML files and the command line."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Literal
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


class Profile(BaseModel):
    """One run. Numbers of clients are totals over all threads."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    scenario: Scenario = Field("fanout", description="what the clients do, see docs/benchmarking.md")
    url: str = Field("mqtt://127.0.0.1:1883", description="the broker: mqtt://[user[:password]@]host[:port] or unix:///path")
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
        self.target()
        return self

    def target(self) -> tuple[str, int]:
        """Address and port for ``mqttc.load``; host names are resolved there where the run begins."""
        parts = urlsplit(self.url)
        if parts.scheme == "unix":
            return unquote(parts.netloc + parts.path), 0
        if parts.scheme not in ("mqtt", "tcp"):
            raise ValueError(f"{self.url}: mqttc-bench speaks mqtt:// and unix:// in this version")
        if not parts.hostname:
            raise ValueError(f"{self.url}: names no host")
        return parts.hostname, parts.port or 1883

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
