"""The lock that lets one broker at a time use a data directory.

Two kinds are taken on ``store.lock``, as file systems differ in which they keep: ``flock``, which belongs to the open
file, and a POSIX lock, which belongs to the process. The file is never deleted: whoever waits for it holds its inode.
"""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from pathlib import Path
from typing import Final

from mqttc.store.database import FILE_MODE, StoreError

_HELD_ERRORS: Final = frozenset({errno.EAGAIN, errno.EACCES, errno.EWOULDBLOCK})
_UNSUPPORTED_ERRORS: Final = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL})
_MOUNTS: Final = Path("/proc/self/mountinfo")
_PID_BYTES: Final = 20

_Inode = tuple[int, int]


class StoreLock:
    """Held from construction to ``release``; raises ``StoreError`` if somebody else has it.

    A child made by fork closes its copy, so that the lock ends with this process even if the child lives on.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = -1
        with _guard:
            # Looked up, not opened: a second descriptor's close would end the POSIX lock of the first.
            if _inode(path) in _held:
                raise StoreError(f"{path.parent} is in use by another broker of this process")
            try:
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, FILE_MODE)
            except OSError as error:
                raise StoreError(f"{path}: {error.strerror}") from error
            try:
                self._take(descriptor)
                status = os.fstat(descriptor)
                self._inode = (status.st_dev, status.st_ino)
                if _inode(path) != self._inode:
                    raise StoreError(f"{path} was replaced while it was being locked")
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, b"%d\n" % os.getpid(), 0)
            except BaseException as error:
                os.close(descriptor)
                if isinstance(error, StoreError) or not isinstance(error, OSError):
                    raise
                raise StoreError(f"{path}: {error.strerror}") from error
            self._descriptor = descriptor
            _held[self._inode] = self

    def _take(self, descriptor: int) -> None:
        for lock in (fcntl.flock, fcntl.lockf):
            try:
                lock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in _HELD_ERRORS:
                    raise StoreError(f"{self.path.parent} is in use by another broker{self._holder(descriptor)}") from error
                if error.errno in _UNSUPPORTED_ERRORS:
                    kind = _file_system(self.path)
                    raise StoreError(
                        f"{self.path}: the file system{f' ({kind})' if kind else ''} does not support locks"
                        f" ({lock.__name__}: {error.strerror}); set a data_dir on a local one"
                    ) from error
                raise

    @staticmethod
    def _holder(descriptor: int) -> str:
        text = os.pread(descriptor, _PID_BYTES, 0).strip()
        return f" (process {text.decode()})" if text.isdigit() else ""

    @property
    def held(self) -> bool:
        return self._descriptor >= 0

    def release(self) -> None:
        """Give it up; does nothing the second time, and in a forked child."""
        with _guard:
            if self._descriptor < 0:
                return
            descriptor, self._descriptor = self._descriptor, -1
            del _held[self._inode]
            try:
                os.ftruncate(descriptor, 0)
                # Not left to close(): another process that is between fork and exec may have a copy.
                fcntl.flock(descriptor, fcntl.LOCK_UN)
            finally:
                os.close(descriptor)


def _inode(path: Path) -> _Inode | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _file_system(path: Path) -> str:
    """The name of the file system that ``path`` lies on (``nfs4``), where the system tells it."""
    device = path.stat().st_dev
    try:
        lines = _MOUNTS.read_text("utf-8", "replace").splitlines()
    except OSError:
        return ""
    for line in lines:
        mount, _, kind = line.partition(" - ")
        if mount.split()[2:3] == [f"{os.major(device)}:{os.minor(device)}"]:
            return kind.split(" ")[0]
    return ""


_guard = threading.Lock()
_held: dict[_Inode, StoreLock] = {}


def _forget_in_child() -> None:
    """Close the copies; no unlocking, which would unlock the parent's too."""
    for lock in _held.values():
        os.close(lock._descriptor)
        lock._descriptor = -1
    _held.clear()
    _guard.release()


os.register_at_fork(before=_guard.acquire, after_in_parent=_guard.release, after_in_child=_forget_in_child)
