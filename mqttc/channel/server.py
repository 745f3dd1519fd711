"""The control thread's side of the control socket."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import struct
import sys
import weakref
from typing import Final

from mqttc import logs
from mqttc.channel.protocol import MAXIMUM_REQUEST_BYTES, ControlError, error_line, parse_request, result_line
from mqttc.channel.verbs import Verbs
from mqttc.config import MAXIMUM_UNIX_PATH_BYTES, Config, Listener, UnixAddress
from mqttc.errors import BrokerError
from mqttc.listen import BoundListener, ListenError

_MODE: Final = "0600"
_BACKLOG: Final = 16
_UCRED: Final = struct.Struct("3i")
_XUCRED: Final = struct.Struct("IIh16I")
_SOL_LOCAL: Final = 0
_LOCAL_PEERCRED: Final = 1
_logger: Final = logging.getLogger(logs.LOGGER_NAME)


def peer_user(sock: socket.socket) -> int | None:
    """Numeric id of the user whose process has connected, as the system vouches for it; None: the system does not say."""
    if hasattr(socket, "SO_PEERCRED"):
        _, user, _ = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
        return int(user)
    if sys.platform == "darwin" or "freebsd" in sys.platform:
        return int(_XUCRED.unpack_from(sock.getsockopt(_SOL_LOCAL, _LOCAL_PEERCRED, 76))[1])
    return None


class Channel:
    """On the control loop; made there. ``open`` before anybody is served, ``close`` at the end."""

    def __init__(self, config: Config, verbs: Verbs) -> None:
        self._config = config
        self._verbs = verbs
        self._bound: BoundListener | None = None
        self._server: asyncio.Server | None = None
        self._serving: dict[asyncio.Task[None], int] = {}
        self._listening = -1
        self._opened = False
        self._counts = dict.fromkeys(("control_accepted", "control_refused", "control_requests", "control_errors"), 0)

    async def open(self) -> None:
        """Nothing where there is to be none. ``ListenError``: the path that the configuration names cannot be had; with the usual
        one it is only logged."""
        path = self._config.control_path
        if path is None:
            return
        try:
            self._bound = _bind(path)
        except ListenError as error:
            if isinstance(self._config.control.socket, str):
                raise
            logs.emit(_logger, logging.WARNING, "control_socket_refused", {"path": path, "problem": str(error)})
            return
        sock = self._bound.sockets.pop()
        self._listening = sock.fileno()
        self._opened = True
        _channels.add(self)
        self._server = await asyncio.start_unix_server(self._accepted, sock=sock, limit=MAXIMUM_REQUEST_BYTES)

    async def close(self) -> None:
        """Take the path away, end what is asked."""
        _channels.discard(self)
        self._listening = -1
        if self._server is not None:
            self._server.close()
            self._server = None
        if self._bound is not None:
            self._bound.close()
            self._bound = None
        serving = list(self._serving)
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)

    def stats(self) -> dict[str, int]:
        """Counters and gauges, none where there is no socket; any thread."""
        return self._counts | {"control_connections": len(self._serving)} if self._opened else {}

    def let_go(self) -> None:
        """In a forked child: the descriptors go on to lead nowhere, so that the socket is the parent's alone."""
        with contextlib.suppress(OSError):
            nowhere = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
            for descriptor in (self._listening, *self._serving.values()):
                if descriptor >= 0:
                    os.dup2(nowhere, descriptor, inheritable=False)
            os.close(nowhere)

    # ------------------------------------------------------------------------------------ one connection

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.set_write_buffer_limits(high=0)  # so that `drain` waits until all is with the system
        sock = writer.get_extra_info("socket")
        task = asyncio.current_task()
        assert task is not None
        try:
            user = peer_user(sock)
            if user not in (os.geteuid(), 0):
                self._counts["control_refused"] += 1
                logs.emit(_logger, logging.WARNING, "control_peer_refused", {"user": "unknown" if user is None else str(user)})
                await self._send(writer, error_line("not_permitted", "this socket is for the broker's own user and root"))
            elif len(self._serving) >= self._config.control.max_connections:
                self._counts["control_refused"] += 1
                await self._send(writer, error_line("busy", "there are control.max_connections already"))
            else:
                self._counts["control_accepted"] += 1
                self._serving[task] = sock.fileno()
                await self._serve(reader, writer, user)
        except (OSError, TimeoutError, asyncio.CancelledError):
            pass  # it is gone, does not read, or the broker stops
        finally:
            self._serving.pop(task, None)
            writer.transport.abort()  # what was to be sent is, or its peer does not read

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, user: int | None) -> None:
        patience_s = self._config.control.timeout
        while True:
            try:
                async with asyncio.timeout(patience_s):
                    line = await reader.readuntil(b"\n")
            except asyncio.IncompleteReadError:
                return
            except asyncio.LimitOverrunError:
                await self._fail(writer, ControlError("too_large", f"a request has at most {MAXIMUM_REQUEST_BYTES} bytes"))
                return
            except TimeoutError:
                await self._fail(writer, ControlError("timeout", f"no request within {patience_s:g} s"))
                return
            await self._send(writer, await self._answer(line, user))

    async def _answer(self, line: bytes, user: int | None) -> bytes:
        self._counts["control_requests"] += 1
        patience_s = self._config.control.timeout
        try:
            verb, arguments = parse_request(line)
            async with asyncio.timeout(patience_s):
                result = await self._verbs.run(verb, arguments)
            made = result_line(result)
        except ControlError as error:
            return self._error(error)
        except TimeoutError:
            return self._error(ControlError("timeout", f"no answer within {patience_s:g} s"))
        except BrokerError as error:
            return self._error(ControlError("stopped", str(error)))
        except Exception as error:  # what it is must not end the others
            logs.emit(_logger, logging.ERROR, "control_failed", {"error": repr(error)})
            return self._error(ControlError("failed", "the broker's log says why"))
        if verb == "disconnect":
            logs.emit(_logger, logging.INFO, "control_disconnect", {"client_id": str(arguments.get("client_id")), "user": str(user)})
        elif verb == "clear_retained":
            logs.emit(_logger, logging.INFO, "control_clear_retained", {"topic": str(arguments.get("topic")), "user": str(user)})
        return made

    def _error(self, error: ControlError) -> bytes:
        self._counts["control_errors"] += 1
        return error_line(error.name, error.detail)  # type: ignore[arg-type]

    async def _fail(self, writer: asyncio.StreamWriter, error: ControlError) -> None:
        await self._send(writer, self._error(error))

    async def _send(self, writer: asyncio.StreamWriter, line: bytes) -> None:
        """All of it is with the system when this returns. ``TimeoutError``: the peer does not read."""
        writer.write(line)
        async with asyncio.timeout(self._config.control.timeout):
            await writer.drain()


def _bind(path: str) -> BoundListener:
    """0600 from the first moment; a left-over is replaced, what somebody listens on is not. ``ListenError``."""
    url = UnixAddress(path, False).url()
    if len(os.fsencode(path)) > MAXIMUM_UNIX_PATH_BYTES:
        raise ListenError(url, f"a socket's path has at most {MAXIMUM_UNIX_PATH_BYTES} bytes; control.socket names another")
    return BoundListener(Listener(url=url, mode=_MODE, backlog=_BACKLOG))


_channels: Final[weakref.WeakSet[Channel]] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for channel in list(_channels):
        channel.let_go()


os.register_at_fork(after_in_child=_after_fork_in_child)
