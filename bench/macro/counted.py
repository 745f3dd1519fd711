"""mqttc that tells its counters: the broker inside a Python process, which answers each connection to a Unix socket with `Broker.stats()`.

    python bench/macro/counted.py PORT FOLDER [section.key=value ...]

The socket is FOLDER/stats. Those who measure use `launch` and `stats`.
"""

from __future__ import annotations

import json
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from bench.macro.brokers import Launch  # noqa: E402
from mqttc.config import Config  # noqa: E402
from mqttc.server import Broker  # noqa: E402

FIXED = ("log.level=warning", "limits.max_queued_messages=1000000", "limits.max_queued_bytes=1073741824")
ANSWER_S = 10.0


def launch(*settings: str) -> Callable[[int, Path], Launch]:
    """To be started by `brokers.running`; ``settings`` win over those that every measured broker has."""

    def made(port: int, folder: Path) -> Launch:
        command = [sys.executable, str(Path(__file__).resolve()), str(port), str(folder), *FIXED, *settings]
        return Launch(command, {"PYTHONPATH": str(ROOT)})

    return made


def stats(folder: Path) -> dict[str, int]:
    """The counters of the broker that was started with this folder, now."""
    with socket.socket(socket.AF_UNIX) as road:
        road.settimeout(ANSWER_S)
        road.connect(str(folder / "stats"))
        with road.makefile("rb") as answer:
            found: dict[str, int] = json.load(answer)
    return found


def serve(port: int, folder: Path, settings: list[str]) -> None:
    """Until SIGTERM."""
    config = Config.load(listen=[f"tcp://127.0.0.1:{port}"], settings=settings)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "stats"))  # first: whoever sees the port open may ask
        listener.listen()
        with Broker(config) as broker:
            while True:
                road, _ = listener.accept()
                with road:
                    road.sendall(json.dumps(broker.stats()).encode("ascii"))


if __name__ == "__main__":
    serve(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
