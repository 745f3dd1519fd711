"""Delays between attempts to connect: longer each time, and for each client another, so that a broker that comes back is not run over."""

from __future__ import annotations

from mqttc.client.options import Reconnect


def delay_s(reconnect: Reconnect, attempt: int, chance: float) -> float:
    """Before attempt number ``attempt`` (0: the first after a loss); ``chance`` is within 0 and 1."""
    try:
        full = min(reconnect.first_s * reconnect.factor**attempt, reconnect.most_s)
    except OverflowError:
        full = reconnect.most_s
    return full * (1 - reconnect.jitter * chance)
