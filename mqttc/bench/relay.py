"""HTTP/2 (RFC 8441) and QUIC for the native clients: a thread that listens on a Unix socket; each connection has a stream to the broker.

Ends and failures travel both ways. So does flow control: what one side does not take is not read from the other. At most about
``WINDOW_BYTES`` lie here for each stream and direction.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import threading
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar, cast

from mqttc.bench.profile import Profile, RunError, Target
from mqttc.bench.road import TIMEOUT_S, tls_context
from mqttc.bench.upstream import Upstream, UpstreamError, UpstreamStream

READ_BYTES = 1 << 16
LINGER_S = 5.0
"""For the broker to end its half, once a client has ended its own."""
_BACKLOG = 4096

T = TypeVar("T")


async def _in_time(answer: Coroutine[Any, Any, T]) -> T:
    try:
        async with asyncio.timeout(TIMEOUT_S):
            return await answer
    except TimeoutError:
        raise UpstreamError(f"no answer within {TIMEOUT_S:g} s") from None


class _Shared:
    """An upstream, perhaps still on its way. It ends with the last of its streams: who connects again gets another, as over TCP."""

    def __init__(self, profile: Profile, address: str) -> None:
        self.given = 0
        """Streams so far."""
        self.used = 0
        """Those that have not ended."""
        self.opening: asyncio.Task[Upstream] = asyncio.create_task(self._open(profile, address))

    async def _open(self, profile: Profile, address: str) -> Upstream:
        from mqttc.bench.upstream_h2 import open_h2  # late: a run needs one of the two
        from mqttc.bench.upstream_quic import open_quic

        if profile.target().relay == "quic":
            return await _in_time(open_quic(profile, address))
        return await _in_time(open_h2(profile, address))

    @property
    def usable(self) -> bool:
        if not self.opening.done():
            return True
        return not self.opening.cancelled() and self.opening.exception() is None and self.opening.result().usable

    async def shut(self) -> None:
        self.opening.cancel()
        [made] = await asyncio.gather(self.opening, return_exceptions=True)
        if not isinstance(made, BaseException):
            await made.shut()


class Relay:
    """The thread. ``path`` is where the native clients connect, from ``start`` to ``stop``."""

    def __init__(self, profile: Profile, address: str) -> None:
        self.path = ""
        self.failure: str | None = None
        """Why the first stream or connection to the broker that failed did."""
        self._profile = profile
        self._target: Target = profile.target()
        self._address = address
        self._ready = threading.Event()
        self._start_error: OSError | None = None
        self._thread = threading.Thread(target=self._run, name="mqttc-bench relay", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None
        self._upstreams: list[_Shared] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._ended_cpu_ns = 0

    @property
    def backlog(self) -> int:
        """Connections that may be dialled at a time: a Unix socket refuses more."""
        try:
            return min(_BACKLOG, int(Path("/proc/sys/net/core/somaxconn").read_text("ascii")))
        except (OSError, ValueError):
            return 128  # not Linux

    def start(self) -> None:
        """Raises ``RunError``."""
        if self._target.tls:
            tls_context(self._profile)  # what is wrong with the files is told here
        self._thread.start()
        self._ready.wait()
        if self._start_error is not None:
            self._thread.join()
            raise RunError(f"the relay cannot listen: {self._start_error}") from self._start_error

    def stop(self) -> None:
        """Ends all connections and the thread. Idempotent."""
        if self._loop is not None and self._stopping is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: it has ended already
                self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join()

    def cpu_ns(self) -> int:
        """Of the thread, so far."""
        if not self._thread.is_alive() or self._thread.ident is None:
            return self._ended_cpu_ns
        return time.clock_gettime_ns(time.pthread_getcpuclockid(self._thread.ident))

    def _run(self) -> None:
        asyncio.run(self._main())
        self._ended_cpu_ns = time.thread_time_ns()

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        with tempfile.TemporaryDirectory(prefix="mqttc-bench-") as folder:
            try:
                path = f"{folder}/relay"
                server = await asyncio.start_unix_server(self._serve, path, backlog=_BACKLOG, limit=READ_BYTES)
            except OSError as error:
                self._start_error = error
                self._ready.set()
                return
            self.path = path
            self._ready.set()
            await self._stopping.wait()
            server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await server.wait_closed()
            for shared in self._upstreams:
                await shared.shut()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = cast("asyncio.Task[None]", asyncio.current_task())
        self._tasks.add(task)
        try:
            await self._carry(reader, writer)
        except* UpstreamError as group:
            self._note(group.exceptions[0])
        except* OSError:
            pass  # the client went away
        except* asyncio.CancelledError:
            pass  # stop: nobody waits for the rest
        finally:
            writer.close()
            self._tasks.discard(task)

    def _note(self, error: BaseException) -> None:
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        if self.failure is None:
            self.failure = str(error)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        shared = self._place()
        try:
            upstream = await asyncio.shield(shared.opening)
            stream: UpstreamStream = await _in_time(upstream.stream())
            try:
                async with asyncio.TaskGroup() as group:
                    down = group.create_task(_down(stream, writer))
                    while data := await reader.read(READ_BYTES):
                        await stream.send(data)
                    await stream.end()
                    await asyncio.wait([down], timeout=LINGER_S)
                    down.cancel()
            finally:
                stream.abort()
        finally:
            shared.used -= 1
            if not shared.used and shared in self._upstreams:
                self._upstreams.remove(shared)
                await shared.shut()

    def _place(self) -> _Shared:
        """The newest connection while it has a stream left, or a new one."""
        newest = self._upstreams[-1] if self._upstreams else None
        if newest is None or newest.given == self._profile.streams or not newest.usable:
            newest = _Shared(self._profile, self._address)
            self._upstreams.append(newest)
        newest.given += 1
        newest.used += 1
        return newest


async def _down(stream: UpstreamStream, writer: asyncio.StreamWriter) -> None:
    while data := await stream.receive():
        writer.write(data)
        await writer.drain()
    writer.write_eof()
