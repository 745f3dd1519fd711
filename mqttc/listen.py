"""Binding of listening sockets, before the data plane takes them over.

Ordinary Python, because it happens once: name look-up, both families, Unix sockets with permissions and
left-over files. What comes out is bound, listening (but for QUIC's UDP sockets), non-blocking and close-on-exec.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import ipaddress
import os
import socket
import stat
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mqttc.config import AsgiAddress, InetAddress, Listener, UnixAddress
from mqttc.systemd import Inherited

_DIRECTORY_LOCK_S = 2.0
_PORT_ATTEMPTS = 16
_UDP_RECEIVE_BYTES = 4 * 1024 * 1024
"""Asked for as a UDP socket's receive buffer, so that bursts wait; the system may give less (Linux: net.core.rmem_max)."""


class ListenError(OSError):
    """A listener cannot be bound; the text has its URL and the system's reason."""

    exit_code = 1

    def __init__(self, url: str, reason: str, code: int = 0) -> None:
        super().__init__(code, f"cannot listen on {url}: {reason}")
        self.url = url

    def __str__(self) -> str:
        return str(self.strerror)


@dataclass(frozen=True, slots=True)
class _SocketFile:
    """A Unix socket's path and which file it was, so that only our own file is removed."""

    path: str
    device: int
    inode: int

    def remove(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            status = os.stat(self.path, follow_symlinks=False)
            if (status.st_dev, status.st_ino) == (self.device, self.inode):
                os.unlink(self.path)


class BoundListener:
    """One configured listener with its sockets: several where a host name has several addresses, none of ``asgi``."""

    def __init__(self, listener: Listener, inherited: list[Inherited] | None = None) -> None:
        """Bind, or take over those of ``inherited`` that are this listener's; raises ``ListenError`` and leaves nothing behind."""
        self.listener = listener
        self.sockets: list[socket.socket] = []
        self._file: _SocketFile | None = None
        address = listener.address
        self.is_unix = isinstance(address, UnixAddress)
        self.is_quic = isinstance(address, InetAddress) and address.quic
        try:
            if isinstance(address, AsgiAddress):
                self.url = address.url()
            elif inherited and self._take_over(inherited):
                self.url = address.url(self.sockets[0].getsockname()[1]) if isinstance(address, InetAddress) else address.url()
            elif isinstance(address, InetAddress):
                self._bind_inet(address)
                self.url = address.url(self.sockets[0].getsockname()[1])
            else:
                self._bind_unix(address)
                self.url = address.url()
        except BaseException:
            self.close()
            raise

    def _take_over(self, inherited: list[Inherited]) -> bool:
        """Those with the listener's name, or else, of the others, with its address."""
        named = [one for one in inherited if self.listener.name and one.name == self.listener.name]
        for one in named or [one for one in inherited if _has_address(one.sock, self.listener)]:
            if one.sock.type != self._kind or (one.sock.family == socket.AF_UNIX) != self.is_unix:
                raise ListenError(self.listener.address.url(), f"the inherited socket {one.name} is of another kind")
            if not self.is_quic:
                one.sock.listen(self.listener.backlog)
            inherited.remove(one)
            self.sockets.append(one.sock)
        return bool(self.sockets)

    @property
    def _kind(self) -> socket.SocketKind:
        return socket.SOCK_DGRAM if self.is_quic else socket.SOCK_STREAM

    def close(self) -> None:
        """Close the sockets that nobody has taken over, and remove the socket's file."""
        while self.sockets:
            self.sockets.pop().close()
        self.remove_file()

    def remove_file(self) -> None:
        """Remove the Unix socket's path if it still is the file that was made here."""
        if self._file is not None:
            self._file.remove()
            self._file = None

    # ----------------------------------------------------------------------------- TCP and UDP

    def _bind_inet(self, address: InetAddress) -> None:
        for attempt in range(_PORT_ATTEMPTS):
            try:
                self._bind_addresses(address)
                return
            except OSError as error:
                while self.sockets:
                    self.sockets.pop().close()
                # A free port of the first address can be taken at the second one.
                again = error.errno == errno.EADDRINUSE and address.port == 0
                if isinstance(error, ListenError):
                    raise
                if not again or attempt == _PORT_ATTEMPTS - 1:
                    raise ListenError(address.url(), _reason(error), error.errno or 0) from error

    def _bind_addresses(self, address: InetAddress) -> None:
        if address.host == "*":
            try:
                self._bind_one(socket.AF_INET6, ("::", address.port), dual_stack=True)
            except OSError as error:
                if error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
                    raise
                self._bind_one(socket.AF_INET, ("0.0.0.0", address.port))
            return
        port = address.port
        unavailable: OSError | None = None
        for family, target in self._resolve(address):
            try:
                self._bind_one(family, (target[0], port, *target[2:]))
            except OSError as error:
                # A name can have an IPv6 address on a machine without IPv6.
                if error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
                    raise
                unavailable = error
                continue
            port = self.sockets[0].getsockname()[1]
        if not self.sockets and unavailable is not None:
            raise unavailable

    def _resolve(self, address: InetAddress) -> list[tuple[socket.AddressFamily, tuple[Any, ...]]]:
        try:
            found = socket.getaddrinfo(address.host, address.port, type=self._kind, flags=socket.AI_PASSIVE)
        except (socket.gaierror, UnicodeError) as error:
            reason = error.strerror if isinstance(error, socket.gaierror) else str(error)
            raise ListenError(address.url(), f"{address.host}: {reason}") from error
        return list(dict.fromkeys((family, target) for family, _, _, _, target in found))

    def _bind_one(self, family: socket.AddressFamily, target: tuple[Any, ...], dual_stack: bool = False) -> None:
        made = socket.socket(family, self._kind)
        try:
            if self.is_quic:
                # No SO_REUSEADDR: over UDP it would let a second broker have the port too.
                with contextlib.suppress(OSError):
                    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _UDP_RECEIVE_BYTES)
            else:
                made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(not dual_stack))
            made.bind(target)
            if not self.is_quic:
                made.listen(self.listener.backlog)
            made.setblocking(False)
        except BaseException:
            made.close()
            raise
        self.sockets.append(made)

    # ------------------------------------------------------------------------------------ Unix

    def _bind_unix(self, address: UnixAddress) -> None:
        if not hasattr(socket, "AF_UNIX") or (address.abstract and sys.platform != "linux"):
            raise ListenError(address.url(), "this system has no such sockets", errno.EAFNOSUPPORT)
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            if address.abstract:
                made.bind("\0" + address.path)
                made.listen(self.listener.backlog)
            else:
                with _directory_lock(address):
                    self._bind_path(made, address)
            made.setblocking(False)
        except ListenError:
            made.close()
            raise
        except OSError as error:
            made.close()
            raise ListenError(address.url(), _reason(error), error.errno or 0) from error
        except BaseException:
            made.close()
            raise
        self.sockets.append(made)

    def _bind_path(self, made: socket.socket, address: UnixAddress) -> None:
        if self.listener.permissions is not None:
            # Linux gives the path the socket's own permissions, less the umask: it never has others. Elsewhere this is refused.
            with contextlib.suppress(OSError):
                os.fchmod(made.fileno(), self.listener.permissions)
        try:
            made.bind(address.path)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            _remove_stale(address)
            made.bind(address.path)
        status = os.stat(address.path, follow_symlinks=False)
        self._file = _SocketFile(address.path, status.st_dev, status.st_ino)
        # Nobody can connect before listen(), so the permissions hold from the first connection on.
        if self.listener.permissions is not None:
            os.chmod(address.path, self.listener.permissions)
        made.listen(self.listener.backlog)


def bind_all(listeners: Sequence[Listener], inherited: Sequence[Inherited] = ()) -> list[BoundListener]:
    """Bind every listener or none. ``inherited``: sockets that are open already; each must be some listener's, and all are owned now."""
    bound: list[BoundListener] = []
    left = list(inherited)
    try:
        for listener in listeners:
            bound.append(BoundListener(listener, left))
        if left:
            raise ListenError(left[0].name, f"the inherited socket at {_spelled(left[0].sock)} is no listener's by name or address")
    except BaseException:
        for made in bound:
            made.close()
        for one in left:
            one.sock.close()
        raise
    return bound


def _has_address(sock: socket.socket, listener: Listener) -> bool:
    address, bound = listener.address, sock.getsockname()
    if isinstance(address, UnixAddress):
        return sock.family == socket.AF_UNIX and os.fsdecode(bound) == ("\0" if address.abstract else "") + address.path
    if not isinstance(address, InetAddress) or sock.family not in (socket.AF_INET, socket.AF_INET6) or bound[1] != address.port:
        return False
    kind = socket.SOCK_DGRAM if address.quic else socket.SOCK_STREAM
    if sock.type != kind:
        return False
    if address.host == "*":
        return bound[0] in ("0.0.0.0", "::")
    try:
        return ipaddress.ip_address(bound[0].partition("%")[0]) == ipaddress.ip_address(address.host.partition("%")[0])
    except ValueError:
        return False  # a host's name: give the socket the listener's name


def _spelled(sock: socket.socket) -> str:
    found = sock.getsockname()
    return f"{found[0]}:{found[1]}" if isinstance(found, tuple) else os.fsdecode(found)


@dataclass(frozen=True, slots=True)
class Served:
    """What the control plane knows of a listener, under the id that the engine gave it."""

    listener: Listener
    name: str
    is_unix: bool
    anonymous: bool | str
    bound: BoundListener

    def admits_anonymous(self, peer: str, remote: bool = False) -> bool:
        """``remote``: it is no program of this machine whatever its address says (``native.Question.remote``)."""
        if self.anonymous == "loopback":
            return not remote and (self.is_unix or is_loopback(peer))
        return bool(self.anonymous)


def is_loopback(peer: str) -> bool:
    """Whether ``host:port`` (IPv6 in brackets) is an address of this machine's loopback."""
    host = peer.rpartition(":")[0].strip("[]").partition("%")[0]
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


@contextlib.contextmanager
def _directory_lock(address: UnixAddress) -> Iterator[None]:
    """Keep other brokers from judging a path that is bound but not yet listening to be a left-over.

    The lock is on the directory, so no file is made for it.
    """
    descriptor = os.open(os.path.dirname(address.path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        deadline = time.monotonic() + _DIRECTORY_LOCK_S
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise ListenError(address.url(), "its directory stays locked", errno.EWOULDBLOCK) from None
                time.sleep(0.01)
        yield
    finally:
        os.close(descriptor)


def _remove_stale(address: UnixAddress) -> None:
    """Remove a socket's file that nobody listens on any more; refuse everything else."""
    try:
        status = os.stat(address.path, follow_symlinks=False)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(status.st_mode):
        raise ListenError(address.url(), "the path exists and is not a socket; it was left alone", errno.EEXIST)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        code = probe.connect_ex(address.path)
    if code == errno.ECONNREFUSED:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(address.path)
    elif code != errno.ENOENT:
        # Connected, or its queue is full, or it is not ours to judge: a live socket in any case.
        raise ListenError(address.url(), "another process listens there", errno.EADDRINUSE)


def _reason(error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return "the address is in use"
    if error.errno == errno.EADDRNOTAVAIL:
        return "this machine has no such address"
    if error.errno == errno.EACCES:
        return "permission denied"
    return error.strerror or str(error)
