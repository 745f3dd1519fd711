"""Checks the floors of docs/design.md, section 3: `python tools/check_floors.py`, also run by tests/source/test_floors.py.

1. Imports and cimports point down only; inside a floor only to what stands earlier in its list below.
2. Below F5 there is no GIL, no `def`, no class, no Python object, nothing that raises; every function is `noexcept nogil`.
3. A compiled module of F6 is Python with typed fields: it cimports nothing of ours but its own package.
4. cimport by name from the owner: no star, no relative cimport, no `include`, no DEF or IF, no compiler directives in a source file.

A module that is not in the lists is an error too: say here, and in docs/design.md, where it stands.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

from cython_tree import ROOT, Finding, Import, imports, module_name, parse, sources, walk

# Lowest first. A name is a module below mqttc or a package, which then stands for all that is in it.
BASE = ["types", "alloc", "vec", "map", "ring", "msg", "timer", "inbox", "logring", "siphash"]
PROTO = ["wire", "packet", "dialect", "props", "topic", "decode", "encode", "wsframe"]
NET = [
    *("transport", "tcp", "openssl", "tls_socket", "tls_context", "tls_client", "tls", "vouched", "proxy", "ws"),
    *("outq", "listener", "poller", "poller_epoll", "poller_kqueue", "reactor"),
]
BROKER = [
    *("handle", "stats", "acl", "rights", "sqlite", "record", "known", "rows", "window", "replay", "checkpoint", "pace", "journal"),
    *("trie", "routes", "retain", "state", "port", "report", "permit", "mail", "durable", "reply", "guard"),
    *("session", "group", "publication", "send", "shared", "deliver", "pump", "presence", "will", "overload", "gate", "parked", "verdicts"),
    *("on_subscribe", "admit", "on_connect", "on_head", "on_publish", "conn", "admin", "inside", "worker", "recover"),
]
LOADGEN = ["hist", "actor"]
NATIVE = ["codec", "load", "native", "inside"]
PYTHON = [
    *("errors", "logs", "sections", "config_auth", "config", "systemd", "listen", "certs", "tls", "auth", "hooks"),
    *("store", "adapters", "web", "roads", "embed", "channel", "hook_runner", "control", "clock", "server", "client", "broker_thread"),
    *("asgi", "testing", "pytest_plugin", "bench", "cli"),
]

FLOORS: dict[str, tuple[int, int]] = {}
for floor, package, names in (
    (1, "base", BASE),
    (2, "proto", PROTO),
    (3, "net", NET),
    (4, "broker", BROKER),
    (4, "loadgen", LOADGEN),
    (5, "", NATIVE),
    (6, "", PYTHON),
):
    FLOORS |= {f"mqttc.{package}.{name}" if package else f"mqttc.{name}": (floor, place) for place, name in enumerate(names)}

# What stands outside the order of its floor: (who, what it must not see although it is lower or beside it).
FORBIDDEN = [
    ("mqttc.broker", "mqttc.loadgen"),
    ("mqttc.loadgen", "mqttc.broker"),
    ("mqttc.codec", "mqttc.net"),
    ("mqttc.codec", "mqttc.broker"),
    ("mqttc.codec", "mqttc.loadgen"),
    ("mqttc.load", "mqttc.broker"),
    ("mqttc.load", "mqttc.codec"),
    ("mqttc.native", "mqttc.loadgen"),
    ("mqttc.native", "mqttc.codec"),
    ("mqttc.native", "mqttc.load"),
    ("mqttc.inside", "mqttc.loadgen"),
    ("mqttc.inside", "mqttc.codec"),
    ("mqttc.inside", "mqttc.load"),
]
# Packages and entry points that may see everything: they are above the highest floor.
TOP = {"mqttc", "mqttc.__main__"}
PACKAGES = {"mqttc.base", "mqttc.proto", "mqttc.net", "mqttc.broker", "mqttc.loadgen"}

PYTHON_TYPES = {
    *("object", "bytes", "bytearray", "str", "unicode", "list", "dict", "tuple", "set", "frozenset", "type", "memoryview"),
    *("Exception", "BaseException"),
}
NATIVE_LIBRARIES = ("libc", "posix")
MODULE_LEVEL = {
    *("StatListNode", "CImportStatNode", "FromCImportStatNode", "CDefExternNode", "CVarDefNode", "CTypeDefNode"),
    *("CStructOrUnionDefNode", "CEnumDefNode", "CFuncDefNode", "PassStatNode"),
}
TEXT_RULES = [
    (re.compile(r"^\s*include\s+[\"']"), "include: one .pyx is one module, cimport by name instead"),
    (re.compile(r"^\s*(DEF\s+\w+\s*=|IF\s+.*:\s*$)"), "DEF and IF are not used: an enum, or a table in setup.py"),
    (re.compile(r"^#\s*(cython|distutils)\s*:"), "directives stand once, in setup.py"),
    (re.compile(r"^\s*@\s*cython\s*\."), "directives stand once, in setup.py"),
]


def inside(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def floor_of(name: str) -> tuple[int, int] | None:
    """Floor and place in it; the longest listed name that the module is, or is in."""
    while name:
        if name in FLOORS:
            return FLOORS[name]
        name = name.rpartition(".")[0]
    return None


def listed(name: str) -> str:
    while name and name not in FLOORS:
        name = name.rpartition(".")[0]
    return name


def targets(item: Import, known: set[str]) -> Iterator[str]:
    """The modules of ours that one import statement names."""
    if not inside(item.module, "mqttc"):
        return
    submodules = [f"{item.module}.{name}" for name in item.names]
    for module in submodules:
        if module in known:
            yield module
    if not item.names or any(module not in known for module in submodules):
        yield item.module


def check_imports(root: Path, path: Path, found: list[Import], known: set[str]) -> Iterator[Finding]:
    name = module_name(root, path)
    where = path.relative_to(root).as_posix()
    place = floor_of(name)
    if name in TOP:
        return
    if name in PACKAGES:
        for item in found:
            yield Finding(where, item.line, "a package below F5 imports nothing")
        return
    if place is None:
        yield Finding(where, 1, f"{name} stands on no floor: enter it in tools/check_floors.py and docs/design.md")
        return
    for item in found:
        if item.is_cimport and "*" in item.names:
            yield Finding(where, item.line, f"star cimport from {item.module}: cimport by name")
        if place[0] < 5 and not item.is_cimport:
            yield Finding(where, item.line, f"import of {item.module} below F5: there are no Python objects there")
        if place[0] < 5 and item.is_cimport and not inside(item.module, "mqttc") and item.module.split(".")[0] not in NATIVE_LIBRARIES:
            yield Finding(where, item.line, f"cimport of {item.module} below F5: only libc, posix and mqttc")
        for target in targets(item, known):
            if target == name or target == "mqttc":
                continue
            for who, what in FORBIDDEN:
                if inside(name, who) and inside(target, what):
                    yield Finding(where, item.line, f"{who} must not see {what} ({target})")
            other = floor_of(target)
            if place[0] == 6 and item.is_cimport and listed(target) != listed(name):
                yield Finding(where, item.line, f"cimport of {target} in F6: native code is seen through F5 only")
            if other is None:
                if target not in PACKAGES:
                    yield Finding(where, item.line, f"{target} stands on no floor: enter it in tools/check_floors.py and docs/design.md")
                continue
            if listed(target) == listed(name):
                continue
            if other[0] > place[0]:
                yield Finding(where, item.line, f"{name} (F{place[0]}) sees {target} (F{other[0]}): imports point down only")
            elif other[0] == place[0] and other[1] > place[1]:
                yield Finding(where, item.line, f"{name} stands before {target} in F{place[0]} and must not see it")


def check_native(root: Path, path: Path, tree: object) -> Iterator[Finding]:
    """Rules for what stands below F5."""
    where = path.relative_to(root).as_posix()

    def finding(node: object, text: str) -> Finding:
        return Finding(where, node.pos[1], text)  # type: ignore[attr-defined]

    allowed: set[int] = set()
    native = _native_names(tree)
    for node in _module_level(tree):
        if _fills_table(node, native):
            continue
        if _refuses_import(node):
            allowed |= {id(below) for below in walk(node)}
        elif type(node).__name__ not in MODULE_LEVEL | {"DefNode", "PyClassDefNode", "CClassDefNode", "CppClassNode"}:
            yield finding(node, "a statement that runs at import, or a Python object at module level, below F5")
    for node in walk(tree, into_extern=False):
        kind = type(node).__name__
        if id(node) in allowed:
            continue
        if kind in ("DefNode", "LambdaNode", "AsyncDefNode"):
            yield finding(node, "def below F5")
        elif kind in ("PyClassDefNode", "CClassDefNode", "CppClassNode"):
            yield finding(node, "class below F5")
        elif kind == "GILStatNode" and node.state == "gil":
            yield finding(node, "with gil below F5")
        elif kind in ("RaiseStatNode", "ReraiseStatNode", "AssertStatNode", "TryExceptStatNode"):
            yield finding(node, "raise, assert or except below F5: nothing there raises")
        elif kind == "CEnumDefNode" and node.create_wrapper:
            yield finding(node, "cpdef enum below F5 makes Python objects")
        elif kind == "CSimpleBaseTypeNode" and not node.is_basic_c_type and not node.module_path and node.name in PYTHON_TYPES:
            yield finding(node, f"Python object ({node.name}) below F5")
        elif kind == "CVarDefNode" and type(node.base_type).__name__ == "CSimpleBaseTypeNode" and node.base_type.name is None:
            yield finding(node, "untyped variable, which is a Python object, below F5")
        elif kind == "CFuncDefNode" and node.overridable:
            yield finding(node, "cpdef below F5")
        elif kind == "CFuncDeclaratorNode":
            if node.with_gil:
                yield finding(node, "with gil below F5")
            if not node.nogil or node.exception_check or node.exception_value is not None:
                yield finding(node, f"{_declared(node)}: every function and function pointer below F5 ends in noexcept nogil")


def _module_level(tree: object) -> Iterator[object]:
    body = tree.body  # type: ignore[attr-defined]
    todo = [body]
    while todo:
        node = todo.pop(0)
        if type(node).__name__ == "StatListNode":
            todo = list(node.stats) + todo
        else:
            yield node


def _native_names(tree: object) -> set[str]:
    """Functions and variables that the file defines without Python objects."""
    names = set()
    for node in _module_level(tree):
        if type(node).__name__ == "CVarDefNode":
            names |= {_declared(item) for item in node.declarators}  # type: ignore[attr-defined]
        elif type(node).__name__ == "CFuncDefNode":
            names.add(_declared(node.declarator))  # type: ignore[attr-defined]
    return names


def _fills_table(node: object, native: set[str]) -> bool:
    """`tables_fill()` or `table.field = value` at module level, of this file's own: constants that C cannot initialise, set at import."""
    kind = type(node).__name__
    if kind == "ExprStatNode" and type(node.expr).__name__ == "SimpleCallNode":  # type: ignore[attr-defined]
        return not node.expr.args and getattr(node.expr.function, "name", None) in native  # type: ignore[attr-defined]
    if kind == "SingleAssignmentNode":
        target = node.lhs  # type: ignore[attr-defined]
        while type(target).__name__ in ("AttributeNode", "IndexNode"):
            target = target.obj if type(target).__name__ == "AttributeNode" else target.base
        return getattr(target, "name", None) in native
    return False


def _refuses_import(node: object) -> bool:
    """`if something_native(...) != OK: raise ImportError(...)` at module level: runs once, at import, before any thread of ours."""
    if type(node).__name__ != "IfStatNode" or node.else_clause is not None:  # type: ignore[attr-defined]
        return False
    bodies = [clause.body for clause in node.if_clauses]  # type: ignore[attr-defined]
    raised = [getattr(body.stats[0], "exc_type", None) if hasattr(body, "stats") and len(body.stats) == 1 else body for body in bodies]
    raised = [getattr(item, "exc_type", item) for item in raised]
    return all(getattr(getattr(item, "function", None), "name", None) == "ImportError" for item in raised)


def _declared(node: object) -> str:
    while True:
        name = getattr(node, "name", None)
        if name:
            return str(name)
        node = getattr(node, "base", None)
        if node is None:
            return "function pointer"


def check_text(root: Path, path: Path) -> Iterator[Finding]:
    where = path.relative_to(root).as_posix()
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        for rule, text in TEXT_RULES:
            if rule.search(line):
                yield Finding(where, number, text)


def check(root: Path = ROOT) -> list[Finding]:
    paths = sources(root, ".pyx", ".pxd", ".py")
    known = {module_name(root, path) for path in paths}
    findings: list[Finding] = []
    for path in paths:
        name = module_name(root, path)
        if path.suffix == ".py":
            findings += check_imports(root, path, imports(root, path), known)
            place = floor_of(name)
            if place is not None and place[0] < 5:
                findings.append(Finding(path.relative_to(root).as_posix(), 1, "a Python file below F5"))
            continue
        broken = list(check_text(root, path))
        findings += broken
        if any("include:" in finding.text for finding in broken):
            continue  # the parser would read the included file in its place
        tree = parse(root, path)
        findings += check_imports(root, path, imports(root, path, tree), known)
        place = floor_of(name)
        if name in PACKAGES or (place is not None and place[0] < 5):
            findings += check_native(root, path, tree)
    return findings


def main() -> int:
    findings = check()
    for finding in findings:
        print(finding)
    if findings:
        print(f"check_floors: {len(findings)} found")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
