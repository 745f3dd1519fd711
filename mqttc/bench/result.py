"""What a run found: figures, verdict, and their way to and from JSON."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from mqttc import __version__
from mqttc.bench.profile import ProfileError

FORMAT = 1
QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999, "max": 1.0}


def percentiles(histogram: Mapping[int, int]) -> dict[str, float]:
    """Milliseconds by name; empty without a delivery. A value is the upper bound of its bucket, at most 1 % more than the truth."""
    count = sum(histogram.values())
    if not count:
        return {}
    found: dict[str, float] = {}
    wanted = list(QUANTILES.items())
    seen = 0
    for bound in sorted(histogram):
        seen += histogram[bound]
        while wanted and seen >= wanted[0][1] * count:
            found[wanted.pop(0)[0]] = bound / 1e6
    return found


def machine() -> dict[str, Any]:
    """Where the run took place, as far as its figures depend on it."""
    model = ""
    try:
        for line in Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines():
            if line.lower().startswith(("model name", "hardware")):
                model = line.partition(":")[2].strip()
                break
    except OSError:
        model = platform.processor()  # not Linux
    return {
        "host": platform.node(),
        "system": f"{platform.system()} {platform.release()}",
        "architecture": platform.machine(),
        "processor": model or platform.processor(),
        "processors": os.cpu_count(),
        "usable": sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "python": platform.python_version(),
    }


@dataclass(frozen=True, slots=True)
class Sample:
    """State at a moment of the run; counts are totals since its beginning."""

    seconds: float
    """Since the run began."""
    phase: str
    received: int
    published: int
    connects: int
    generator_cpu_ns: int
    broker_cpu_ns: int | None
    broker_rss_bytes: int | None


@dataclass(slots=True)
class Result:
    """A run. Times in seconds, latency in milliseconds, memory in bytes."""

    name: str
    profile: dict[str, Any]
    started: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    program: str = f"mqttc-bench {__version__}"
    format: int = FORMAT
    machine: dict[str, Any] = field(default_factory=machine)
    broker: dict[str, Any] = field(default_factory=dict)
    """Process id and command line, with ``--pid``."""
    phases: dict[str, float] = field(default_factory=dict)

    unit: str = "messages"
    """What ``count`` and ``per_second`` count: messages (delivered; published and acknowledged where nobody receives) or connections."""
    count: int = 0
    seconds: float = 0.0
    per_second: float = 0.0
    published_per_second: float = 0.0
    bytes_per_second: float = 0.0
    latency_ms: dict[str, float] = field(default_factory=dict)
    histogram: dict[str, int] = field(default_factory=dict)

    expected: int = 0
    """Deliveries over the whole run, warm-up included."""
    delivered: int = 0
    lost: int = 0
    duplicated: int = 0
    reordered: int = 0
    foreign: int = 0
    lost_connections: int = 0
    errors: int = 0
    verified: str = ""

    broker_cpu_us: float | None = None
    """Per message or connection."""
    broker_cpu_share: float | None = None
    """Of one processor, while measuring; above 1 when several threads work."""
    broker_rss_bytes: int | None = None
    rss_per_connection: float | None = None
    tls_handshakes: int | None = None
    """Of the native clients over the whole run."""
    tls_resumed: int | None = None
    """Of these, by a ticket."""
    generator_cpu_share: float = 0.0
    """Of the busiest generator thread."""
    generator_waited_share: float | None = None
    """Time that the generator's threads were ready and had no processor, as a share of one."""
    generator_limited: bool = False
    notes: list[str] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)

    @property
    def problems(self) -> list[str]:
        """What makes the exit status 1."""
        named = {
            "lost": self.lost,
            "duplicated": self.duplicated,
            "reordered": self.reordered,
            "not ours or damaged": self.foreign,
            "connections lost": self.lost_connections,
            "protocol errors": self.errors,
        }
        return [f"{count} {name}" for name, count in named.items() if count]

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def load(cls, file: Path) -> Self:
        """Read what ``--json`` wrote."""
        try:
            data = json.loads(file.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise ProfileError(f"{file}: {error}") from error
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise ProfileError(f"{file}: not a result of mqttc-bench, or of another version of it")
        samples = [Sample(**sample) for sample in data.pop("samples", [])]
        unknown = data.keys() - {entry.name for entry in fields(cls)}
        if unknown:
            raise ProfileError(f"{file}: unknown keys {', '.join(sorted(unknown))}")
        return cls(**data, samples=samples)
