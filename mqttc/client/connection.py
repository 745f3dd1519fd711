"""A live connection: what the core wants sent goes out once a turn of the loop, what is read goes into the core; keep alive and deadlines.

It belongs to the loop's thread and to one client, and is used once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from mqttc import codec
from mqttc.client.core import Connected, Core, Events, Phase, Refused, Violation
from mqttc.client.keepalive import Due, KeepAlive
from mqttc.client.link import Link, os_text
from mqttc.client.store import Store
from mqttc.client.waiters import Waiters
from mqttc.errors import ConnectError, ConnectionLostError, DisconnectedError, MqttError, RefusedError, reason_text

FLUSH_BYTES: Final = 65536
"""What is gathered within a turn before it is sent in its middle; then the sender lets others run."""
LAST_WORDS_S: Final = 1.0
"""For a peer that is told why the connection ends to take it."""


class Connection:
    """The handler of a link. ``dispatch`` gets the core's events.

    `answered` is done at CONNACK, `ended` when the connection is gone; its result says why.
    """

    def __init__(self, core: Core, store: Store, shown: str, dispatch: Callable[[Events], None]) -> None:
        self.loop = asyncio.get_running_loop()
        self.link: Link | None = None
        self.answered: asyncio.Future[Connected] = self.loop.create_future()
        self.ended: asyncio.Future[MqttError | None] = self.loop.create_future()
        self.writable = True
        self.flush_due = False
        self._core = core
        self._store = store
        self._shown = shown
        self._dispatch = dispatch
        self._error: MqttError | None = None
        self._leaving = False
        self._heard = False
        self._reading = True
        self._room = Waiters()
        self._keep_alive: KeepAlive | None = None
        self._timer: asyncio.TimerHandle | None = None

    # ------------------------------------------------------------------------------------------------ Handler

    def received(self, data: bytes) -> None:
        if self.ended.done() or self._leaving:
            return
        core = self._core
        first = core.phase is Phase.CONNECTING
        if not self._heard and data[0] >> 4 not in (codec.PacketType.CONNACK, codec.PacketType.AUTH):
            self.fail(ConnectError(f"{self._shown}: what answers there does not speak MQTT"))
            return
        self._heard = True
        if self._keep_alive is not None:
            self._keep_alive.received_at = self.loop.time()
        events = core.receive(data)
        if first or core.phase is Phase.LEAVING:
            self._look(events)
        if events:
            self._dispatch(events)
        if core.out and not self.flush_due:
            self.flush_soon()

    def room(self, there_is: bool) -> None:
        self.writable = there_is
        if there_is:
            self._room.wake()

    def lost(self, error: BaseException | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.link = None
        if self._error is None and not self._leaving:
            text = os_text(error) if error is not None else "the broker closed the connection"
            self._error = ConnectionLostError(f"{self._shown}: {text}")
            self._error.__cause__ = error
        self.room(True)
        if not self.answered.done():
            self.answered.set_exception(_connect_error(self._error, self._shown))
            self.answered.exception()  # whoever waits gets it; nobody need
        if not self.ended.done():
            self.ended.set_result(self._error)

    # ------------------------------------------------------------------------------------------------ for the client

    def opened(self, link: Link) -> None:
        self.link = link
        if not self._reading:
            link.pause_reading()

    def flush_soon(self) -> None:
        """At the end of this turn."""
        if not self.flush_due:
            self.flush_due = True
            self.loop.call_soon(self._flush_due)

    def flush(self) -> None:
        """Now. What the store has to remember is written before the packets that say so."""
        core = self._core
        if self._store.dirty:
            try:
                self._store.commit()
            except MqttError as error:
                self.fail(error)
                return
        if core.out and self.link is not None:
            if self._keep_alive is not None:
                self._keep_alive.sent_at = self.loop.time()
            self.link.write(core.take())

    async def drain(self) -> None:
        """Sends what there is, lets others run, and waits until the transport has room."""
        self.flush()
        await asyncio.sleep(0)
        while not self.writable:
            await self._room.wait()

    def pause_reading(self) -> None:
        self._reading = False
        if self.link is not None:
            self.link.pause_reading()

    def resume_reading(self) -> None:
        self._reading = True
        if self.link is not None:
            self.link.resume_reading()

    def fail(self, error: MqttError) -> None:
        """Ends the connection because of this."""
        self._error = self._error or error
        self.abort()

    def abort(self) -> None:
        if self.link is not None:
            self._leaving = True
            self.link.abort()

    def close(self) -> None:
        """Ends it once what was written is sent."""
        self._leaving = True
        self.flush()
        if self.link is not None:
            self.link.close()

    # ------------------------------------------------------------------------------------------------ inside

    def _flush_due(self) -> None:
        self.flush_due = False
        self.flush()

    def _look(self, events: Events) -> None:
        """What the events mean for the connection itself."""
        for event in events:
            if isinstance(event, Connected):
                self._begin_keep_alive()
                if not self.answered.done():
                    self.answered.set_result(event)
            elif isinstance(event, Refused):
                packet = event.packet
                text = f"{self._shown}: the broker refused the connection: {reason_text(packet.reason_code, packet.properties)}"
                self._finish(RefusedError(text, packet.reason_code, packet.properties))
            elif isinstance(event, Violation):
                text = f"{self._shown}: the broker broke the protocol: {event.error}"
                self._finish(ConnectionLostError(text, event.error.reason_code))
        last = events[-1] if events else None
        ended = getattr(last, "packet", None)
        if isinstance(ended, codec.Disconnect):
            text = f"{self._shown}: the broker ended the connection: {reason_text(ended.reason_code, ended.properties)}"
            self._finish(DisconnectedError(text, ended.reason_code, ended.properties))

    def _finish(self, error: MqttError) -> None:
        """The last words are on their way; a peer that does not take them is not waited for."""
        self._error = self._error or error
        self.close()
        if self.link is not None:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self.loop.call_later(LAST_WORDS_S, self.abort)

    def _begin_keep_alive(self) -> None:
        self._keep_alive = KeepAlive(self._core.keep_alive, self._core.options.ping_timeout_s, self.loop.time())
        self._arm()

    def _arm(self) -> None:
        keep_alive = self._keep_alive
        if keep_alive is not None and (at := keep_alive.next_at()) is not None:
            self._timer = self.loop.call_at(at, self._ring)

    def _ring(self) -> None:
        self._timer = None
        if self._leaving or self._keep_alive is None:
            return
        due = self._keep_alive.due(self.loop.time(), self._reading)
        if due is Due.DEAD:
            self.fail(ConnectionLostError(f"{self._shown}: no answer to PINGREQ within {self._core.options.ping_timeout_s:g} s"))
            return
        if due is Due.PING:
            self._core.ping()
            self.flush()
        self._arm()


def _connect_error(error: MqttError | None, shown: str) -> MqttError:
    """The same as what a failed attempt raises."""
    if error is None:
        return ConnectError(f"{shown}: the connection was given up")
    if isinstance(error, ConnectError):
        return error
    made = ConnectError(f"{error}, before CONNACK", error.reason_code, error.properties)
    made.__cause__ = error.__cause__
    return made
