"""A small blocking client: the questions before a run (does the broker answer, what does it grant?) and tidying up after it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from types import TracebackType
from typing import Self

from mqttc import codec
from mqttc.bench.profile import Profile, RunError
from mqttc.bench.road import Road, Stream, reason_of

_BATCH = 500


class ProbeError(RunError):
    """The broker cannot be reached, or does not want us."""


class Probe:
    """One connection to the profile's broker, by ``road`` or one of its own."""

    def __init__(self, profile: Profile, client_id: str, road: Road | None = None) -> None:
        self._profile = profile
        self._given_road = road
        self._undo = contextlib.ExitStack()
        self._client_id = client_id
        self._version = profile.version
        self._decoder = codec.Decoder(profile.version)
        self._answered = False
        self._stream: Stream | None = None
        self.connack = codec.Connack()

    def __enter__(self) -> Self:
        self._road = self._given_road if self._given_road is not None else self._undo.enter_context(Road(self._profile))
        try:
            self._stream = self._road.dial()
            self._connect()
        except OSError as error:
            said = self._said(error)
            self._close()
            raise ProbeError(said) from error
        except codec.CodecError as error:
            self._close()
            raise ProbeError(f"{self._profile.shown_url()}: what answers there does not speak MQTT: {error}") from error
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._stream is not None and error is None:
            with contextlib.suppress(OSError):  # the broker may have closed first; there is nothing left to say
                self._send(codec.Disconnect())
        self._close()

    def ask(self, *packets: codec.Packet) -> None:
        """Send, and wait until the broker has worked through it (PINGRESP)."""
        try:
            self._send(*packets, codec.Pingreq())
            while not isinstance(self._receive(), codec.Pingresp):
                pass
        except OSError as error:
            raise ProbeError(self._said(error)) from error

    def forget_retained(self, topics: Iterable[str]) -> None:
        """Remove the retained messages of these topics."""
        batch: list[codec.Packet] = []
        for topic in topics:
            batch.append(codec.Publish(topic, retain=True))
            if len(batch) == _BATCH:
                self.ask(*batch)
                batch.clear()
        self.ask(*batch)

    def _connect(self) -> None:
        user, password = self._profile.credentials()
        self._send(codec.Connect(self._client_id, keep_alive=0, username=user, password=password))
        answer = self._receive()
        if not isinstance(answer, codec.Connack):
            raise ProbeError(f"{self._profile.shown_url()}: the broker answered CONNECT with {type(answer).__name__.upper()}")
        if answer.reason_code:
            raise ProbeError(f"{self._profile.shown_url()}: the broker refused the connection: {_reason(answer.reason_code)}")
        self.connack = answer

    def _send(self, *packets: codec.Packet) -> None:
        assert self._stream is not None
        self._stream.sendall(b"".join(codec.encode(packet, self._version) for packet in packets))

    def _receive(self) -> codec.Packet:
        assert self._stream is not None
        while True:
            for packet in self._decoder:
                return packet
            data = self._stream.recv(65536)
            if not data:
                raise ConnectionResetError("the broker closed the connection")
            if not self._answered and data[0] >> 4 not in (codec.PacketType.CONNACK, codec.PacketType.AUTH):
                raise ProbeError(f"{self._profile.shown_url()}: what answers there does not speak MQTT")
            self._answered = True
            self._decoder.feed(data)

    def _said(self, error: OSError) -> str:
        return f"{self._profile.shown_url()}: {self._road.failure() or reason_of(error)}"

    def _close(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None
        self._undo.close()


def _reason(code: codec.ReasonCode) -> str:
    return f"{code.name.replace('_', ' ').lower()} (0x{code:02x})"
