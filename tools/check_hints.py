"""Checks that Cython has no performance hint for the tree, and that no nogil function lacks an exception specification.

`python tools/check_hints.py`, also run by tests/source/test_hints.py. A nogil function without a specification takes the GIL after every
call, to look whether an exception is set: 38 to 63 ns instead of 1.5, and on a worker thread a wait for whoever holds it.

Every .pyx is translated with the directives of setup.py; results are kept under build/hints by a hash of all that they depend on.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from cython_tree import ROOT, Finding, imports, module_name, parse, sources, walk

HINT = re.compile(r"^performance hint: (?P<path>[^:]+):(?P<line>\d+):\d+: (?P<text>.*)")


def build_directives(root: Path = ROOT) -> dict[str, Any]:
    spec = importlib.util.spec_from_file_location("mqttc_setup", root / "setup.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return dict(module.DIRECTIVES)


def check_specifications(root: Path, path: Path) -> Iterator[Finding]:
    """Signatures and function pointer types that are nogil and say neither `noexcept` nor `except <value>`."""
    for node in walk(parse(root, path), into_extern=False):
        if type(node).__name__ == "CFuncDeclaratorNode" and node.nogil and node.exception_check and node.exception_value is None:
            where = path.relative_to(root).as_posix()
            yield Finding(where, node.pos[1], "nogil without noexcept or except <value>: every call takes the GIL")


def translate(root: str, source: str, name: str, directives: dict[str, Any]) -> list[str]:
    """Cython's performance hints for one module, as it prints them, or its errors."""
    from Cython.Compiler.Main import CompilationOptions, compile_single, default_options

    os.chdir(root)
    said = io.StringIO()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(said):
        options = CompilationOptions(
            default_options,
            compiler_directives=directives,
            include_path=["."],
            output_file=str(Path(folder) / "out.c"),
            language_level=3,
        )
        result = compile_single(source, options, full_module_name=name)
    if result.num_errors:
        return [f"does not compile:\n{said.getvalue()}"]
    return [line for line in said.getvalue().splitlines() if line.startswith("performance hint:")]


def declarations(root: Path, source: Path) -> list[Path]:
    """The .pxd files of ours that a .pyx depends on, through others too."""
    found: set[Path] = set()
    todo = [source]
    while todo:
        path = todo.pop()
        modules = [module_name(root, path)] if path.suffix == ".pyx" else []
        for item in imports(root, path):
            modules += [item.module, *(f"{item.module}.{name}" for name in item.names)]
        for module in modules:
            declared = root / (module.replace(".", "/") + ".pxd")
            if declared.is_file() and declared not in found:
                found.add(declared)
                todo.append(declared)
    return sorted(found)


def fingerprint(root: Path, source: Path, directives: dict[str, Any]) -> str:
    """A hash of the module, of the declarations it depends on and of how it is translated."""
    import Cython

    digest = hashlib.sha256(repr((Cython.__version__, sorted(directives.items()))).encode())
    for path in [source, *declarations(root, source)]:
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def check_performance(root: Path, names: dict[Path, str] | None = None, cache: Path | None = None) -> list[Finding]:
    directives = build_directives()
    modules = names if names is not None else tree_modules(root)
    kept: dict[str, list[str]] = {}
    if cache is not None and cache.is_file():
        kept = json.loads(cache.read_text("utf-8"))
    prints = {path: fingerprint(root, path, directives) for path in modules}
    missing = [path for path in modules if prints[path] not in kept]
    if missing:
        with ProcessPoolExecutor(max_workers=int(os.environ.get("MQTTC_JOBS") or os.cpu_count() or 1)) as pool:
            jobs = [pool.submit(translate, str(root), path.relative_to(root).as_posix(), modules[path], directives) for path in missing]
            for path, job in zip(missing, jobs, strict=True):
                kept[prints[path]] = job.result()
    if cache is not None:
        cache.parent.mkdir(parents=True, exist_ok=True)
        fresh = cache.with_suffix(f".{os.getpid()}")
        fresh.write_text(json.dumps({prints[path]: kept[prints[path]] for path in modules}), "utf-8")
        fresh.replace(cache)
    findings = []
    for path in modules:
        for line in kept[prints[path]]:
            match = HINT.match(line)
            if match:
                findings.append(Finding(match["path"], int(match["line"]), f"performance hint: {match['text']}"))
            else:
                findings.append(Finding(path.relative_to(root).as_posix(), 1, line))
    return findings


def tree_modules(root: Path) -> dict[Path, str]:
    """Every .pyx below mqttc and the module name it is built under; both pollers are the one module mqttc.net.poller."""
    modules = {path: module_name(root, path) for path in sources(root, ".pyx")}
    pollers = {"mqttc.net.poller_epoll", "mqttc.net.poller_kqueue"}
    return {path: "mqttc.net.poller" if name in pollers else name for path, name in modules.items()}


def check(root: Path = ROOT) -> list[Finding]:
    findings = [finding for path in sources(root, ".pyx", ".pxd") for finding in check_specifications(root, path)]
    return findings + check_performance(root, cache=root / "build" / "hints" / "hints.json")


def main() -> int:
    findings = check()
    for finding in findings:
        print(finding)
    if findings:
        print(f"check_hints: {len(findings)} found")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
