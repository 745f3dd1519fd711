"""``FaultProxy``: a port in front of a broker at which things go wrong."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Final, Self, Unpack
from urllib.parse import urlsplit

from mqttc.client.sync import LoopThread
from mqttc.codec import PacketType
from mqttc.embed.message import Payload
from mqttc.errors import BrokerError, ClosedError
from mqttc.server import Broker
from mqttc.testing.faults import FAULT_TIMEOUT_S, About, AboutEither, Fault, Kind, SeenPacket, Selection, Side, packet_type_of
from mqttc.testing.pipe import Connection, check_refusal

MAX_PACKETS: Final = 10_000
"""Packets that are remembered, the latest ones."""
_SHOWN: Final = 20


class FaultProxy:
    """Clients connect to ``url`` and reach the broker, except for what was told to go wrong. TCP listeners only.

    Each method of the second group makes a ``Fault``, for packets that come from then on. Arguments say for which of them:

    - ``packet``: a name of MQTT, as "PUBACK"; ``to``: "broker" or "client"; ``client_id``; ``topic``: a filter for PUBLISH, or a filter
      of SUBSCRIBE and UNSUBSCRIBE as it stands there; ``payload``: of PUBLISH;
    - ``nth``: from which one on, counted from 1 over all connections; ``times``: how many of them, None for all.

    Where several faults are about a packet, all count it, and the one that was made first strikes. Packets of one direction stay in
    order, as TCP keeps them. Everything happens at a packet or a call, nothing by chance.

    ``broker``: a ``Broker``, which may be stopped and started again meanwhile, or the URL of any other one. Use it ``with``, or by
    ``start`` and ``stop``. All methods may be called from any thread; those that wait block it.
    """

    def __init__(self, broker: Broker | str) -> None:
        self._broker = broker
        self._thread = LoopThread("fault proxy")
        self._listener: socket.socket | None = None
        self._port = 0
        self._changed = threading.Condition()
        self._packets: deque[SeenPacket] = deque(maxlen=MAX_PACKETS)
        self._faults: tuple[Fault, ...] = ()
        self._connections: dict[Connection, asyncio.Task[None]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None

    # ---- begin and end

    def start(self) -> None:
        """Begins once. Raises ``BrokerError`` for a broker that has no TCP listener, ``ValueError`` for a URL of something else."""
        if self._port:
            raise ClosedError("a proxy begins once")
        self._target()
        listener = socket.create_server(("127.0.0.1", 0))
        listener.setblocking(False)
        self._listener = listener
        self._port = listener.getsockname()[1]
        self._thread.call(self._begin(listener))

    async def _begin(self, listener: socket.socket) -> None:
        self._loop = asyncio.get_running_loop()
        self._accepting = self._loop.create_task(self._accept(listener))

    def stop(self) -> None:
        """Ends all connections. Idempotent."""
        self.clear()
        if self._listener is not None:
            try:
                self._thread.call(self._end())
            finally:
                self._thread.stop()
                self._listener.close()
                self._listener = self._loop = None

    async def _end(self) -> None:
        self._accepting.cancel()
        tasks = [self._accepting, *self._connections.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    @property
    def host(self) -> str:
        return "127.0.0.1"

    @property
    def port(self) -> int:
        if self._listener is None:
            raise ClosedError("the proxy is not running")
        return self._port

    @property
    def url(self) -> str:
        """For clients."""
        return f"mqtt://{self.host}:{self.port}"

    # ---- faults

    def drop(self, packet: PacketType | str, **about: Unpack[AboutEither]) -> Fault:
        """The packet does not arrive."""
        return self._strike(partial(Fault, Kind.DROP), packet, **about)

    def duplicate(self, packet: PacketType | str, *, copies: int = 1, **about: Unpack[AboutEither]) -> Fault:
        """The packet arrives ``copies`` more times, byte for byte."""
        if copies < 1:
            raise ValueError("copies is at least 1")
        return self._strike(partial(Fault, Kind.DUPLICATE, copies=copies), packet, **about)

    def corrupt(self, packet: PacketType | str, *, at_byte: int = -1, mask: int = 0xFF, **about: Unpack[AboutEither]) -> Fault:
        """The bits of ``mask`` of one byte of the packet are flipped. ``at_byte``: counted from 0, the fixed header included, or from
        the end by -1; past either end it is the last or the first byte.
        """
        if not 1 <= mask <= 255:
            raise ValueError("mask has 1 to 8 bits")
        return self._strike(partial(Fault, Kind.CORRUPT, at_byte=at_byte, mask=mask), packet, **about)

    def hold(self, packet: PacketType | str, **about: Unpack[AboutEither]) -> Fault:
        """The packet, and all behind it on that connection and in that direction, waits until ``Fault.release``."""
        return self._strike(partial(Fault, Kind.HOLD), packet, **about)

    def delay(self, packet: PacketType | str, seconds: float, **about: Unpack[AboutEither]) -> Fault:
        """As ``hold``, for ``seconds`` of real time: to see what latency does. Where order is all that matters, ``hold`` is exact."""
        if not 0 <= seconds <= 3600:
            raise ValueError("seconds: 0 to 3600")
        return self._strike(partial(Fault, Kind.DELAY, seconds=seconds), packet, **about)

    def cut(self, packet: PacketType | str, *, at_byte: int = 0, reset: bool = False, **about: Unpack[AboutEither]) -> Fault:
        """The connection breaks at the packet, of which ``at_byte`` bytes still arrive. ``reset``: by a TCP reset, which may also take
        away what the other side has not read yet, instead of an end of the stream.
        """
        if at_byte < 0:
            raise ValueError("at_byte is at least 0")
        return self._strike(partial(Fault, Kind.CUT, at_byte=at_byte, reset=reset), packet, **about)

    def cut_after(self, count: int, *, to: Side, client_id: str | None = None, reset: bool = False, times: int | None = 1) -> Fault:
        """A connection breaks when ``count`` bytes of it have gone in that direction, counted from its beginning. ``times``: how many
        connections. A client id is known behind CONNECT only.
        """
        if count < 0:
            raise ValueError("count is at least 0")
        return self._add(Fault(Kind.CUT_AFTER, Selection.of(None, to, client_id, None, None), 1, times, at_byte=count, reset=reset))

    def refuse(self, packet: PacketType | str, reason_code: int, **about: Unpack[About]) -> Fault:
        """A CONNECT, SUBSCRIBE, UNSUBSCRIBE or PUBLISH does not reach the broker, and is answered with this reason code, 0x80 or above.

        Clients of 3.x get the return code of CONNACK that means the same (3, server unavailable, where none does), and 0x80 in SUBACK,
        for which 3.1 has no value but a granted QoS 0. A message with QoS 1 or 2 cannot be refused there but by ending the connection,
        which then happens [MQTT-3.3.5-2]. With QoS 0 it is dropped.

        Raises ``ValueError`` for a reason code that does not stand in that answer.
        """
        kind = packet_type_of(packet)
        check_refusal(kind, reason_code)
        return self._strike(partial(Fault, Kind.REFUSE, reason_code=reason_code), kind, to="broker", **about)

    def stop_reading(self, from_: Side, *, client_id: str | None = None) -> Fault:
        """The proxy reads no more from clients, or from the broker, until ``Fault.release``: who sends there finds the stream full."""
        if from_ not in ("broker", "client"):
            raise ValueError(f"{from_!r} is neither 'broker' nor 'client'")
        way: Side = "client" if from_ == "broker" else "broker"
        return self._add(Fault(Kind.STOP_READING, Selection.of(None, way, client_id, None, None), 1, None))

    def cut_now(self, *, client_id: str | None = None, reset: bool = False) -> int:
        """Break all connections, or those of one client; how many there were."""
        return self._thread.call(self._cut_now(client_id, reset))

    async def _cut_now(self, client_id: str | None, reset: bool) -> int:
        cut = [one for one in self._connections if client_id in (None, one.client_id)]
        tasks = [self._connections[one] for one in cut]
        for one, task in zip(cut, tasks, strict=True):
            one.reset = reset
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return len(cut)

    def clear(self) -> None:
        """Remove all faults; what they hold goes on."""
        with self._changed:
            faults, self._faults = self._faults, ()
        for fault in faults:
            fault.remove()

    def _strike(
        self,
        make: Callable[..., Fault],
        packet: PacketType | str,
        *,
        to: Side | None = None,
        client_id: str | None = None,
        topic: str | None = None,
        payload: Payload | None = None,
        nth: int = 1,
        times: int | None = 1,
    ) -> Fault:
        return self._add(make(Selection.of(packet, to, client_id, topic, payload), nth, times))

    def _add(self, fault: Fault) -> Fault:
        fault._on_loop = self._on_loop
        with self._changed:
            self._faults += (fault,)
        return fault

    def _on_loop(self, call: Callable[[], None]) -> None:
        loop = self._loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(call)

    # ---- what came by

    @property
    def packets(self) -> list[SeenPacket]:
        """What came by, as it was sent, the latest 10,000."""
        with self._changed:
            return list(self._packets)

    @property
    def connection_count(self) -> int:
        """Connections of clients that are open."""
        return len(self._connections)

    def wait_for(
        self,
        packet: PacketType | str,
        *,
        to: Side | None = None,
        client_id: str | None = None,
        topic: str | None = None,
        payload: Payload | None = None,
        count: int = 1,
        timeout: float = FAULT_TIMEOUT_S,
    ) -> list[SeenPacket]:
        """Wait until so many of these packets have come by since the start, struck or not. ``AssertionError`` after ``timeout`` seconds."""
        __tracebackhide__ = True
        selection = Selection.of(packet, to, client_id, topic, payload)

        def found() -> list[SeenPacket]:
            return [seen for seen in self._packets if selection.takes(seen)]

        with self._changed:
            if not self._changed.wait_for(lambda: len(found()) >= count, timeout):
                lines = [f"  {seen.packet_type.name} to the {seen.to}, client {seen.client_id!r}" for seen in self._packets][-_SHOWN:]
                what = f"{len(found())} of {count} packets within {timeout:g} s: {selection}"
                raise AssertionError("\n".join([what, "What came by:" if lines else "Nothing came by.", *lines]))
            return found()

    # ---- for connections, on the loop

    @property
    def faults(self) -> tuple[Fault, ...]:
        """Those that were made and not removed."""
        return self._faults

    def saw(self, seen: SeenPacket) -> Fault | None:
        """Remembers the packet; the fault that strikes it."""
        with self._changed:
            self._packets.append(seen)
            self._changed.notify_all()
        striking = [fault for fault in self._faults if fault.strikes(seen)]
        return striking[0] if striking else None

    def _target(self) -> tuple[str, int]:
        if isinstance(self._broker, str):
            urls: tuple[str, ...] = (self._broker,)
        else:
            urls = self._broker.urls
        for url in urls:
            parts = urlsplit(url)
            if parts.scheme in ("tcp", "mqtt") and parts.hostname:
                return parts.hostname, parts.port or 1883
        if isinstance(self._broker, str):
            raise ValueError(f"{self._broker!r} is no URL of TCP: mqtt://host:port")
        raise BrokerError("the broker is not running, or has no TCP listener")

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            client, _ = await loop.sock_accept(listener)
            connection = Connection(self, client)
            task = loop.create_task(self._serve(connection))
            self._connections[connection] = task
            task.add_done_callback(lambda _, connection=connection: self._connections.pop(connection, None))  # type: ignore[misc]

    async def _serve(self, connection: Connection) -> None:
        try:
            await connection.run(self._target())
        except (OSError, BrokerError):
            connection.reset = True  # the broker is not there: neither is the proxy
        finally:
            connection.close()
