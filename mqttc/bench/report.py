"""How a run is shown: live progress, the final table, files, and the comparison of two results."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from mqttc.bench.profile import RunError
from mqttc.bench.result import Result, Sample

if TYPE_CHECKING:
    from rich.live import Live

Row = tuple[str, str]


# ---- numbers


def number(value: float) -> str:
    """Three digits or more, thousands apart."""
    if abs(value) >= 99.95:
        return f"{value:,.0f}".replace(",", " ")
    return f"{value:.3g}"


def milliseconds(value: float) -> str:
    return f"{value * 1000:.0f} µs" if value < 1 else f"{value:.3g} ms" if value < 1000 else f"{value / 1000:.3g} s"


def size(value: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if abs(value) < 1024:
            return f"{value:.4g} {unit}"
        value /= 1024
    return f"{value:.4g} GiB"


def rate(sample: Sample, before: Sample | None, what: str) -> float:
    """Per second since the sample before."""
    start, earlier = (before.seconds, getattr(before, what)) if before is not None else (0.0, 0)
    return float((getattr(sample, what) - earlier) / (sample.seconds - start)) if sample.seconds > start else 0.0


# ---- live


class PlainProgress:
    """Progress as lines of text; also what is used where rich is not installed or the output is no terminal."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._phase = ""

    def __enter__(self) -> PlainProgress:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def phase(self, name: str) -> None:
        self._phase = name

    def sample(self, sample: Sample, before: Sample | None, latency_ms: dict[str, float]) -> None:
        print(progress_line(self._phase, sample, before, latency_ms), file=self._stream, flush=True)


class RichProgress:
    """Progress as a table that is written anew at each sample."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live

        self._live: Live = Live(console=Console(stderr=True), auto_refresh=False, transient=True)
        self._phase = ""

    def __enter__(self) -> RichProgress:
        self._live.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._live.__exit__(*error)

    def phase(self, name: str) -> None:
        self._phase = name

    def sample(self, sample: Sample, before: Sample | None, latency_ms: dict[str, float]) -> None:
        from rich.table import Table

        table = Table(show_header=False, box=None)
        for name, value in progress_rows(self._phase, sample, before, latency_ms):
            table.add_row(name, value)
        self._live.update(table, refresh=True)


def progress(*, plain: bool = False) -> PlainProgress | RichProgress:
    """Rich's where it is installed and standard error is a terminal, else plain lines."""
    if not plain and sys.stderr.isatty():
        try:
            return RichProgress()
        except ImportError:
            print("mqttc-bench: plain progress; for a better one: pip install 'mqttc[bench]'", file=sys.stderr)
    return PlainProgress()


def progress_rows(phase: str, sample: Sample, before: Sample | None, latency_ms: dict[str, float]) -> list[Row]:
    rows = [
        ("phase", f"{phase}, {sample.seconds:.1f} s"),
        ("delivered", f"{number(rate(sample, before, 'received'))} messages/s"),
        ("published", f"{number(rate(sample, before, 'published'))} messages/s"),
        ("connects", f"{number(rate(sample, before, 'connects'))} /s"),
        ("generator", f"{rate(sample, before, 'generator_cpu_ns') / 1e9:.0%} of a processor"),
    ]
    if sample.broker_cpu_ns is not None and before is not None and before.broker_cpu_ns is not None:
        rows.append(("broker", f"{rate(sample, before, 'broker_cpu_ns') / 1e9:.0%} of a processor, {size(sample.broker_rss_bytes or 0)}"))
    if latency_ms:
        rows.append(("latency", ", ".join(f"{name} {milliseconds(value)}" for name, value in latency_ms.items())))
    return rows


def progress_line(phase: str, sample: Sample, before: Sample | None, latency_ms: dict[str, float]) -> str:
    rows = progress_rows(phase, sample, before, latency_ms)
    return "  ".join(value if name == "phase" else f"{name} {value}" for name, value in rows)


# ---- the final table


def rows_of(result: Result) -> Iterator[Row]:
    yield "profile", f"{result.name} ({result.profile.get('scenario')}), {result.profile.get('url')}"
    yield result.unit, f"{number(result.count)} in {result.seconds:.3g} s"
    yield f"{result.unit} per second", number(result.per_second)
    if result.published_per_second:
        yield "published per second", number(result.published_per_second)
    if result.bytes_per_second:
        yield "payload per second", size(result.bytes_per_second)
    for name, value in result.latency_ms.items():
        yield f"latency {name}", milliseconds(value)
    if result.broker_cpu_us is not None:
        yield f"broker CPU per {result.unit.removesuffix('s')}", f"{result.broker_cpu_us:.3g} µs"
    if result.broker_cpu_us and result.unit == "connections":
        yield "connections per second of broker CPU", number(1e6 / result.broker_cpu_us)
    if result.broker_cpu_share is not None:
        yield "broker CPU", f"{result.broker_cpu_share:.0%} of a processor"
    if result.broker_rss_bytes is not None:
        yield "broker memory", size(result.broker_rss_bytes)
    if result.rss_per_connection is not None:
        yield "broker memory per connection", f"{result.rss_per_connection:,.0f} B".replace(",", " ")
    if result.tls_handshakes is not None:
        yield "TLS handshakes, whole run", f"{number(result.tls_handshakes)}, {number(result.tls_resumed or 0)} of them resumed"
    yield "generator CPU", f"{result.generator_cpu_share:.0%} of a processor (busiest thread)"
    if result.expected or result.delivered:
        yield "whole run", f"{number(result.delivered)} of {number(result.expected)} deliveries"
        yield "checked", result.verified
    yield "lost, duplicated, reordered", f"{result.lost}, {result.duplicated}, {result.reordered}"


def show(result: Result, *, plain: bool = False, stream: TextIO | None = None) -> None:
    """The final table, notes, and what was wrong."""
    table(["", ""], list(rows_of(result)), plain=plain, stream=stream)
    out = stream or sys.stdout
    for note in result.notes:
        print(f"note: {note}", file=out)
    if result.problems:
        print(f"FAILED: {', '.join(result.problems)}", file=out)


def table(head: list[str], rows: list[Any], *, plain: bool = False, stream: TextIO | None = None) -> None:
    """Print a table: rich's where it is installed, columns of text elsewhere."""
    out = stream or sys.stdout
    if not plain:
        try:
            from rich.console import Console
            from rich.table import Table
        except ImportError:
            plain = True
        else:
            boxed = Table(*head, show_header=any(head))
            for row in rows:
                boxed.add_row(*row)
            Console(file=out, width=None if out.isatty() else 160).print(boxed)
    if plain:
        lines = [*([head] if any(head) else []), *(list(row) for row in rows)]
        widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
        for line in lines:
            print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip(), file=out)


# ---- files


def write_json(result: Result, file: Path) -> None:
    _write(file, result.to_json())


def _write(file: Path, text: str) -> None:
    try:
        file.write_text(text, "utf-8")
    except OSError as error:
        raise RunError(f"{file}: {error.strerror}") from error


def write_csv(result: Result, file: Path) -> None:
    """A row for each sample: its totals, and the rates since the one before."""
    try:
        with file.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow([*(entry.name for entry in fields(Sample)), "received_per_second", "published_per_second"])
            before: Sample | None = None
            for sample in result.samples:
                rates = (f"{rate(sample, before, what):.1f}" for what in ("received", "published"))
                writer.writerow([*asdict(sample).values(), *rates])
                before = sample
    except OSError as error:
        raise RunError(f"{file}: {error.strerror}") from error


def need_plots() -> None:
    """Raise ``RunError`` where matplotlib is missing; before the run, not after it."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise RunError("--plot needs the package matplotlib: pip install 'mqttc[bench]'") from None


def write_plot(result: Result, file: Path) -> None:
    """Throughput over time, and the histogram of latency where there is one."""
    need_plots()
    from matplotlib.figure import Figure

    histogram = sorted((int(bound) / 1e6, count) for bound, count in result.histogram.items())
    figure = Figure(figsize=(12 if histogram else 7, 4.5), layout="constrained")
    axes = figure.subplots(1, 2 if histogram else 1, squeeze=False)[0]
    what = "connects" if result.unit == "connections" else "received" if result.delivered else "published"
    rates = [rate(sample, last, what) for sample, last in zip(result.samples, [None, *result.samples], strict=False)]
    axes[0].plot([sample.seconds for sample in result.samples], rates)
    axes[0].set(xlabel="seconds", ylabel=f"{what} per second", title=f"{result.name}: {number(result.per_second)} {result.unit}/s")
    axes[0].set_ylim(bottom=0)
    if histogram:
        bounds, counts = _coarse(histogram)
        axes[1].step(bounds, counts, where="mid")
        axes[1].fill_between(bounds, counts, step="mid", alpha=0.3)
        for name, value in result.latency_ms.items():
            axes[1].axvline(value, linewidth=0.8, linestyle=":", color="black")
            axes[1].text(value, max(counts), name, rotation=90, va="top", ha="right", fontsize=8)
        title = f"{result.profile.get('scenario')}, QoS {result.profile.get('qos')}"
        axes[1].set(xscale="log", xlabel="latency, ms", ylabel="messages", title=title)
    try:
        figure.savefig(file)
    except (OSError, ValueError) as error:
        raise RunError(f"{file}: {error}") from error


def _coarse(histogram: list[tuple[float, int]]) -> tuple[list[float], list[int]]:
    """The histogram in steps of 5 %, for the eye."""
    bounds: list[float] = []
    counts: list[int] = []
    for bound, count in histogram:
        if bounds and bound <= bounds[-1] * 1.05:
            counts[-1] += count
        else:
            bounds.append(bound)
            counts.append(count)
    return bounds, counts


# ---- comparison

_COMPARED = {
    "per_second": "per second",
    "published_per_second": "published per second",
    "broker_cpu_us": "broker CPU µs each",
    "broker_rss_bytes": "broker memory, bytes",
    "rss_per_connection": "memory per connection, bytes",
    "generator_cpu_share": "generator CPU share",
}


def compare_rows(first: Result, second: Result) -> list[tuple[str, str, str, str]]:
    """Name, both values, and the second as a multiple of the first."""
    rows: list[tuple[str, str, str, str]] = []
    pairs = [(title, getattr(first, name), getattr(second, name)) for name, title in _COMPARED.items()]
    pairs += [(f"latency {name}, ms", first.latency_ms.get(name), second.latency_ms.get(name)) for name in first.latency_ms]
    for title, one, other in pairs:
        if one is not None and other is not None and (one or other):
            rows.append((title, number(one), number(other), f"{other / one:.2f} x" if one else "-"))
    for title in ("lost", "duplicated", "reordered"):
        rows.append((title, str(getattr(first, title)), str(getattr(second, title)), ""))
    return rows


def differences(first: Result, second: Result) -> list[str]:
    """What else differs, so that the ratios may not mean what they seem to."""
    found = [
        f"{key}: {first.profile.get(key)} and {second.profile.get(key)}"
        for key in sorted(first.profile.keys() | second.profile.keys())
        if key != "url" and first.profile.get(key) != second.profile.get(key)
    ]
    for key in ("host", "processor", "usable"):
        if first.machine.get(key) != second.machine.get(key):
            found.append(f"{key}: {first.machine.get(key)} and {second.machine.get(key)}")
    return found


def show_comparison(first: Result, second: Result, names: tuple[str, str], *, plain: bool = False, stream: TextIO | None = None) -> None:
    table(["", *names, "ratio"], compare_rows(first, second), plain=plain, stream=stream)
    for difference in differences(first, second):
        print(f"note: the runs differ in {difference}", file=stream or sys.stdout)
