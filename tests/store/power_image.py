"""Disk images that a power cut could leave, from the log of power_shim.c.

Synced is what a sync of the file that began later has covered; names are synced with their directory. Of everything else any
part may be on the disk, in sectors of 512 bytes and in any order, but names change in their order, as on a file system with a
journal. A write never changes bytes beside it (what SQLite calls powersafe overwrite).
"""

from __future__ import annotations

import os
import random
import shutil
import struct
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

SECTOR = 512
WRITE, SYNC, TRUNCATE, CREATE, RENAME, UNLINK, SYNC_DIRECTORY = range(1, 8)
_HEADER = struct.Struct("=QQQIIHHI")
_SOURCE = Path(__file__).with_name("power_shim.c")


def compiler() -> str | None:
    return shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")


@cache
def shim() -> Path:
    """The shared object; built once a process, in a folder of its own that the caller's tests may leave to `forget_shim`."""
    made = Path(mkdtemp(prefix="mqttc-power-")) / "shim.so"
    found = compiler()
    assert found is not None, "no C compiler"
    subprocess.run([found, "-O2", "-Wall", "-Werror", "-shared", "-fPIC", "-pthread", "-o", str(made), str(_SOURCE), "-ldl"], check=True)
    return made


def forget_shim() -> None:
    if shim.cache_info().currsize:
        shutil.rmtree(shim().parent)
        shim.cache_clear()


def environment(data_dir: Path, log: Path | None = None, *, lie: str | None = None, sync_us: int = 0) -> Mapping[str, str]:
    """For a broker whose store lies in `data_dir`, which exists. `lie`: files whose names end like this are not synced."""
    before = os.environ.get("LD_PRELOAD", "")  # a sanitizer's, which wants to be the first
    made = {"LD_PRELOAD": f"{before}:{shim()}".lstrip(":"), "MQTTC_POWER_DIR": str(data_dir)}
    if log is not None:
        made["MQTTC_POWER_LOG"] = str(log)
    if lie is not None:
        made["MQTTC_POWER_LIE"] = lie
    if sync_us:
        made["MQTTC_POWER_SYNC_US"] = str(sync_us)
    return made


@dataclass(frozen=True)
class Operation:
    """One call that the shim has logged."""

    began_ns: int
    kind: int
    inode: int
    offset: int
    name: str
    other: str
    data: bytes


def read_log(path: Path) -> list[Operation]:
    """All operations; the process may have been killed while it wrote the last one. Inodes are numbered anew, each file its own."""
    found = []
    files: dict[int, int] = {}
    count = 0
    with path.open("rb") as file:
        while len(head := file.read(_HEADER.size)) == _HEADER.size:
            began_ns, inode, offset, kind, data_bytes, name_bytes, other_bytes, _ = _HEADER.unpack(head)
            rest = file.read(name_bytes + other_bytes + data_bytes)
            if len(rest) < name_bytes + other_bytes + data_bytes:
                break
            if kind == CREATE:
                count += 1
                files[inode] = count
            inode = files.get(inode, 0)
            name, other = rest[:name_bytes].decode(), rest[name_bytes : name_bytes + other_bytes].decode()
            found.append(Operation(began_ns, kind, inode, offset, name, other, rest[name_bytes + other_bytes :]))
    return found


def apply(content: bytearray, operation: Operation, parts: Iterator[tuple[int, int]]) -> None:
    """A write of those (offset, end) of its data, or a truncation."""
    if operation.kind == TRUNCATE:
        del content[operation.offset :]
        content.extend(bytes(operation.offset - len(content)))
        return
    for begin, end in parts:
        at = operation.offset + begin
        if len(content) < at:
            content.extend(bytes(at - len(content)))
        content[at : at + end - begin] = operation.data[begin:end]


def sectors(operation: Operation) -> Iterator[tuple[int, int]]:
    """The parts of a write that get to the disk, or not, each by itself."""
    begin = 0
    while begin < len(operation.data):
        end = min(len(operation.data), begin + SECTOR - (operation.offset + begin) % SECTOR)
        yield begin, end
        begin = end


def whole(operation: Operation) -> Iterator[tuple[int, int]]:
    yield 0, len(operation.data)


@dataclass
class Disk:
    """What is certainly on the disk, and what may be there beside it. Fed with operations in their order."""

    files: dict[int, bytearray] = field(default_factory=dict)
    pending: dict[int, list[Operation]] = field(default_factory=dict)
    names: dict[str, int] = field(default_factory=dict)
    pending_names: list[Operation] = field(default_factory=list)

    def feed(self, operation: Operation) -> None:
        if operation.kind in (WRITE, TRUNCATE):
            self.pending.setdefault(operation.inode, []).append(operation)
        elif operation.kind == SYNC:
            content = self.files.setdefault(operation.inode, bytearray())
            for one in self.pending.pop(operation.inode, []):
                apply(content, one, whole(one))
        elif operation.kind == SYNC_DIRECTORY:
            for one in self.pending_names:
                rename(self.names, one)
            self.pending_names.clear()
        else:
            self.pending_names.append(operation)

    def write(self, folder: Path, chance: random.Random) -> None:
        """An image with any part of what was not synced."""
        names = dict(self.names)
        for one in self.pending_names[: chance.randint(0, len(self.pending_names))]:
            rename(names, one)
        contents = {}
        for name, inode in names.items():
            content = contents[name] = bytearray(self.files.get(inode, b""))
            likely = chance.choice((0.0, 0.02, 0.5, 0.98, 1.0))
            for one in self.pending.get(inode, []):
                if one.kind == WRITE:
                    apply(content, one, (part for part in sectors(one) if chance.random() < likely))
                elif chance.random() < likely:
                    apply(content, one, whole(one))
        self._save(folder, contents)

    def write_all(self, folder: Path) -> None:
        """The files as the process saw them."""
        names = dict(self.names)
        for one in self.pending_names:
            rename(names, one)
        contents = {}
        for name, inode in names.items():
            content = contents[name] = bytearray(self.files.get(inode, b""))
            for one in self.pending.get(inode, []):
                apply(content, one, whole(one))
        self._save(folder, contents)

    def write_synced(self, folder: Path) -> None:
        """The least that can be there."""
        self._save(folder, {name: self.files.get(inode, bytearray()) for name, inode in self.names.items()})

    @staticmethod
    def _save(folder: Path, contents: Mapping[str, bytearray]) -> None:
        folder.mkdir(mode=0o700)
        for name, content in contents.items():
            (folder / name).write_bytes(content)
            (folder / name).chmod(0o600)


def rename(names: dict[str, int], operation: Operation) -> None:
    if operation.kind == CREATE:
        names[operation.name] = operation.inode
    elif operation.kind == UNLINK:
        names.pop(operation.name, None)
    elif operation.name in names:
        names[operation.other] = names.pop(operation.name)
