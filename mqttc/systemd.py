"""What a service manager and its service tell each other: readiness, reloads, the watchdog (sd_notify(3)) and sockets that are open
already (sd_listen_fds(3)). Nothing here needs a library; without such a manager nothing happens.
"""

from __future__ import annotations

import os
import socket
import stat
import time
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass

_FIRST_DESCRIPTOR = 3
_UNKNOWN = "unknown"


class NotifyError(OSError):
    """The service manager's socket cannot be used; the text says why."""


class Notifier:
    """``environment``: where ``NOTIFY_SOCKET``, ``WATCHDOG_USEC`` and ``WATCHDOG_PID`` are taken out of, so that no child inherits them.

    ``on_error`` is called where the service manager cannot be told; without it that raises ``NotifyError``.
    """

    def __init__(
        self, environment: MutableMapping[str, str] = os.environ, *, on_error: Callable[[NotifyError], object] | None = None
    ) -> None:
        self._on_error = on_error
        self._address = environment.pop("NOTIFY_SOCKET", "")
        if self._address.startswith("@"):
            self._address = "\0" + self._address[1:]
        interval, process = environment.pop("WATCHDOG_USEC", ""), environment.pop("WATCHDOG_PID", "")
        mine = self._address and interval.isdecimal() and process in ("", str(os.getpid()))
        self.watchdog_s = int(interval) / 1e6 if mine and int(interval) else None
        """Seconds within which ``alive`` must be called again; None: nobody watches."""

    def ready(self, status: str) -> None:
        """All listeners are bound and serve, at the start and after a reload."""
        self._send(f"READY=1\nSTATUS={status}")

    def reloading(self) -> None:
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self) -> None:
        self._send("STOPPING=1")

    def alive(self) -> None:
        self._send("WATCHDOG=1")

    def _send(self, state: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.sendto(state.encode(), self._address)
        except OSError as error:
            failure = NotifyError(error.errno, f"NOTIFY_SOCKET: {error.strerror or error}")
            if self._on_error is None:
                raise failure from error
            self._on_error(failure)


@dataclass(slots=True)
class Inherited:
    """A socket that is open already, and what the service manager calls it (``FileDescriptorName=``)."""

    name: str
    sock: socket.socket


def inherited_sockets(environment: MutableMapping[str, str] = os.environ) -> list[Inherited]:
    """The sockets that were handed to this process, which now owns them; the variables are taken out of ``environment``.

    Raises ``OSError`` for a descriptor that is no socket.
    """
    count, process = environment.pop("LISTEN_FDS", ""), environment.pop("LISTEN_PID", "")
    names = environment.pop("LISTEN_FDNAMES", "").split(":")
    if not count.isdecimal() or process != str(os.getpid()):
        return []
    found: list[Inherited] = []
    for index in range(int(count)):
        descriptor = _FIRST_DESCRIPTOR + index
        if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
            raise OSError(f"descriptor {descriptor} of LISTEN_FDS is no socket")
        os.set_inheritable(descriptor, False)
        made = socket.socket(fileno=descriptor)
        made.setblocking(False)
        found.append(Inherited(names[index] if index < len(names) else _UNKNOWN, made))
    return found


def become(user: str, group: str) -> None:
    """Give up root's rights for good, in all threads: ``group`` (the user's own if empty) with the user's further groups, then ``user``.

    Raises ``OSError`` or ``KeyError`` where there is no such user or group, or this process may not.
    """
    import grp
    import pwd

    found = pwd.getpwnam(user)
    chosen = grp.getgrnam(group).gr_gid if group else found.pw_gid
    if (os.geteuid(), os.getegid()) == (found.pw_uid, chosen):
        return
    os.initgroups(user, chosen)
    os.setresgid(chosen, chosen, chosen)
    os.setresuid(found.pw_uid, found.pw_uid, found.pw_uid)


def keep_watch(notifier: Notifier, healthy: Callable[[float], bool], due: float, now: float) -> float:
    """Tell the watchdog that all is well if it is time and it is true; when it is to be asked again, on the same monotonic clock."""
    if notifier.watchdog_s is None or now < due:
        return due
    if healthy(notifier.watchdog_s / 2):
        notifier.alive()
    return now + notifier.watchdog_s / 2
