"""The floors hold in the tree, and the checker notices when they do not."""

from pathlib import Path

import pytest

pytest.importorskip("Cython")

import check_floors


def test_the_tree_keeps_its_floors():
    findings = check_floors.check()
    assert not findings, "\n".join(map(str, findings))


def test_every_module_is_listed_once():
    assert len(check_floors.FLOORS) == sum(
        map(len, (getattr(check_floors, name) for name in ("BASE", "PROTO", "NET", "BROKER", "LOADGEN", "NATIVE", "PYTHON")))
    )


BAD = {
    "upwards": ("mqttc/base/map.pxd", "from mqttc.net.reactor cimport Reactor\n", "imports point down only"),
    "later in the floor": ("mqttc/base/vec.pxd", "from mqttc.base.map cimport Map\n", "must not see it"),
    "a package's name": ("mqttc/base/vec.pxd", "from mqttc.net cimport reactor\n", "imports point down only"),
    "loadgen sees broker": ("mqttc/loadgen/actor.pyx", "from mqttc.broker.trie cimport Trie\n", "mqttc.loadgen must not see mqttc.broker"),
    "codec sees net": ("mqttc/codec.pyx", "from mqttc.net.tcp cimport Tcp\n", "mqttc.codec must not see mqttc.net"),
    "native sees config": ("mqttc/native.pyx", "from mqttc.config import Config\n", "imports point down only"),
    "native code in F6": ("mqttc/client/outgoing.pyx", "from mqttc.base.vec cimport Vec\n", "native code is seen through F5 only"),
    "Python, relative, upwards": ("mqttc/config.py", "from .cli import broker\n", "must not see it"),
    "Python, in a function": ("mqttc/config.py", "def f():\n    import mqttc.server\n", "must not see it"),
    "Python, by name": ("mqttc/config.py", "import importlib\nimportlib.import_module('mqttc.server')\n", "must not see it"),
    "a module on no floor": ("mqttc/base/novel.pyx", "cdef int f() noexcept nogil:\n    return 0\n", "stands on no floor"),
    "Python below F5": ("mqttc/base/vec.py", "x = 1\n", "a Python file below F5"),
    "import below F5": ("mqttc/base/vec.pyx", "import os\n", "import of os below F5"),
    "interpreter's API below F5": ("mqttc/base/vec.pyx", "from cpython.mem cimport PyMem_Malloc\n", "only libc, posix and mqttc"),
    "star": ("mqttc/base/vec.pyx", "from libc.stdint cimport *\n", "star cimport"),
    "include": ("mqttc/base/vec.pyx", 'include "other.pxi"\n', "include:"),
    "DEF": ("mqttc/base/vec.pyx", "DEF SIZE = 4\n", "DEF and IF"),
    "directive comment": ("mqttc/native.pyx", "# cython: boundscheck=True\n", "directives stand once"),
    "directive decorator": ("mqttc/native.pyx", "cimport cython\n@cython.wraparound(True)\ndef f():\n    pass\n", "directives stand once"),
    "def": ("mqttc/base/vec.pyx", "def f():\n    return 1\n", "def below F5"),
    "class": ("mqttc/base/vec.pyx", "class A:\n    pass\n", "class below F5"),
    "cdef class": ("mqttc/base/vec.pyx", "cdef class A:\n    pass\n", "class below F5"),
    "cpdef": ("mqttc/base/vec.pyx", "cpdef int f() noexcept nogil:\n    return 1\n", "cpdef below F5"),
    "cpdef enum": ("mqttc/base/vec.pxd", "cpdef enum A:\n    B\n", "cpdef enum"),
    "with gil": ("mqttc/net/tcp.pyx", "cdef int f() noexcept nogil:\n    with gil:\n        pass\n    return 0\n", "with gil"),
    "function with gil": ("mqttc/net/tcp.pyx", "cdef int f() noexcept with gil:\n    return 0\n", "with gil"),
    "no nogil": ("mqttc/proto/wire.pxd", "cdef int f() noexcept\n", "noexcept nogil"),
    "no noexcept": ("mqttc/proto/wire.pxd", "cdef int f() nogil\n", "noexcept nogil"),
    "except -1": ("mqttc/proto/wire.pxd", "cdef int f() except -1 nogil\n", "noexcept nogil"),
    "function pointer": ("mqttc/proto/wire.pxd", "ctypedef int (*F)(int)\n", "noexcept nogil"),
    "pointer in a struct": ("mqttc/proto/wire.pxd", "cdef struct S:\n    int (*f)(int) noexcept\n", "noexcept nogil"),
    "pointer as argument": ("mqttc/proto/wire.pxd", "cdef int f(int (*g)(int) nogil) noexcept nogil\n", "noexcept nogil"),
    "object variable": ("mqttc/proto/wire.pyx", "cdef object cache\n", "Python object (object)"),
    "object argument": ("mqttc/proto/wire.pxd", "cdef int f(bytes data) noexcept nogil\n", "Python object (bytes)"),
    "module level value": ("mqttc/proto/wire.pyx", "LIMIT = 4\n", "at module level"),
    "module level statement": ("mqttc/proto/wire.pyx", "if 1:\n    print(1)\n", "at module level"),
    "call of a foreign function at import": ("mqttc/proto/wire.pyx", "print()\n", "at module level"),
    "another error at import": ("mqttc/proto/wire.pyx", "if 1:\n    raise OSError('no')\n", "nothing there raises"),
    "raise": ("mqttc/proto/wire.pyx", "cdef int f() noexcept nogil:\n    raise ValueError\n", "nothing there raises"),
    "assert": ("mqttc/proto/wire.pyx", "cdef int f(int x) noexcept nogil:\n    assert x\n    return x\n", "nothing there raises"),
}


@pytest.mark.parametrize("case", BAD)
def test_the_checker_notices(case: str, tmp_path: Path):
    path, text, expected = BAD[case]
    for module in ("base", "net", "proto", "broker", "loadgen", "client"):
        (tmp_path / "mqttc" / module).mkdir(parents=True)
        (tmp_path / "mqttc" / module / "__init__.py").touch()
    for other in ("mqttc/net/reactor.pxd", "mqttc/cli.py", "mqttc/server.py", "mqttc/config.py"):
        (tmp_path / other).touch()
    (tmp_path / path).write_text(text)
    findings = [str(finding) for finding in check_floors.check(tmp_path)]
    assert any(expected in finding and finding.startswith(path) for finding in findings), findings


def test_what_is_right_is_not_reported(tmp_path: Path):
    for name, text in {
        "mqttc/__init__.py": '__version__ = "1"\n',
        "mqttc/base/types.pxd": 'from libc.stdint cimport uint8_t\ncdef extern from "x.h" nogil:\n    int f(int)\ncdef enum:\n    OK\n',
        "mqttc/base/vec.pxd": "from mqttc.base.types cimport OK\nctypedef int (*F)(void *p) noexcept nogil\n",
        "mqttc/base/vec.pyx": '"""Vec."""\ncdef int count = 0\ncdef int f() noexcept nogil:\n    return OK\n'
        "cdef int table[2]\ntable[0] = 1\ncdef void fill() noexcept nogil:\n    table[1] = 2\nfill()\n"
        "if f() != OK:\n    raise ImportError('no seed')\n",
        "mqttc/native.pyx": "from mqttc.base.vec cimport F\ncdef class Broker:\n    def close(self):\n        raise ValueError\n",
        "mqttc/server.py": "from . import native\nfrom mqttc import config\nimport asyncio\n",
        "mqttc/config.py": "import os\n",
        "mqttc/client/outgoing.pyx": "from mqttc.client.packet_ids cimport PacketIds\nfrom mqttc import codec\n",
        "mqttc/client/packet_ids.pxd": "cdef class PacketIds:\n    cdef int last\n",
        "mqttc/cli/broker.py": "from ..server import Broker\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert check_floors.check(tmp_path) == []
