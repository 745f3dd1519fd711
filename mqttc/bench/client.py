"""A small blocking client: the questions before a run (does the broker answer, what does it grant?) and tidying up after it."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterable
from types import TracebackType
from typing import Self

from mqttc import codec
from mqttc.bench.profile import Profile, RunError
from mqttc.bench.scenarios import resolve

_TIMEOUT_S = 10.0
_BATCH = 500


class ProbeError(RunError):
    """The broker cannot be reached, or does not want us."""


class Probe:
    """One connection to the profile's broker."""

    def __init__(self, profile: Profile, client_id: str) -> None:
        self._profile = profile
        self._client_id = client_id
        self._version = profile.version
        self._decoder = codec.Decoder(profile.version)
        self._answered = False
        self._socket: socket.socket | None = None
        self.connack = codec.Connack()

    def __enter__(self) -> Self:
        host, port = resolve(self._profile)
        try:
            if port == 0:
                self._socket = socket.socket(socket.AF_UNIX)
                self._socket.settimeout(_TIMEOUT_S)
                self._socket.connect("\0" + host[1:] if host.startswith("@") else host)
            else:
                self._socket = socket.create_connection((host, port), _TIMEOUT_S)
            self._connect()
        except OSError as error:
            self._close()
            raise ProbeError(f"{self._profile.shown_url()}: {error.strerror or error}") from error
        except codec.CodecError as error:
            self._close()
            raise ProbeError(f"{self._profile.shown_url()}: what answers there does not speak MQTT: {error}") from error
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._socket is not None and error is None:
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
            raise ProbeError(f"{self._profile.shown_url()}: {error.strerror or error}") from error

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
        assert self._socket is not None
        self._socket.sendall(b"".join(codec.encode(packet, self._version) for packet in packets))

    def _receive(self) -> codec.Packet:
        assert self._socket is not None
        while True:
            for packet in self._decoder:
                return packet
            data = self._socket.recv(65536)
            if not data:
                raise ConnectionResetError("the broker closed the connection")
            if not self._answered and data[0] >> 4 not in (codec.PacketType.CONNACK, codec.PacketType.AUTH):
                raise ProbeError(f"{self._profile.shown_url()}: what answers there does not speak MQTT")
            self._answered = True
            self._decoder.feed(data)

    def _close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def _reason(code: codec.ReasonCode) -> str:
    return f"{code.name.replace('_', ' ').lower()} (0x{code:02x})"
