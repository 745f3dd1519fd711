"""Packet identifiers: 1 to 65535, none given while it is in use [MQTT-2.2.1-3]."""

from __future__ import annotations

LAST = 65535


class PacketIds:
    """Those of one session, of PUBLISH, SUBSCRIBE and UNSUBSCRIBE together. They are used round, so that late answers meet nobody."""

    def __init__(self) -> None:
        self._used: set[int] = set()
        self._last = 0

    def __len__(self) -> int:
        return len(self._used)

    def __contains__(self, packet_id: int) -> bool:
        return packet_id in self._used

    @property
    def exhausted(self) -> bool:
        return len(self._used) == LAST

    def take(self) -> int:
        """The next free one; not to be called when `exhausted`."""
        used = self._used
        packet_id = self._last
        while True:
            packet_id = packet_id + 1 if packet_id < LAST else 1
            if packet_id not in used:
                used.add(packet_id)
                self._last = packet_id
                return packet_id

    def claim(self, packet_id: int) -> None:
        """One that a stored session holds."""
        self._used.add(packet_id)

    def free(self, packet_id: int) -> None:
        self._used.discard(packet_id)
