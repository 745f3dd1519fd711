"""Development commands: `python tools/dev.py COMMAND [arguments]`, run with the interpreter to build and test for.

build                     extension modules in place, test-only modules (faces) included
test [--matrix] [...]     build, then pytest with the arguments given; --matrix runs it once per protocol family and number of workers, and
                          what a transport can change (marker `transport`) over each but TCP; --transports does the latter alone
debug [...]               the same in a copy of the tree, without optimisation, with assertions and debug information
asan [...], tsan [...]    the same in a copy, with the address and undefined behaviour sanitizers, or the thread sanitizer
annotate                  Cython's annotated HTML, in build/annotate/build/c
lint                      ruff, mypy strict, pyright (where `test` has installed it), floors, hints
clean                     remove everything that was built

Faces. `tests/face/NAME.pyx` is the module `tests.face.NAME`: a dev-only extension with plain functions that call nogil code of the tree, so
that tests written in Python reach it. They are built by the commands here (MQTTC_FACES=1) and never shipped. On systems without kqueue the
kqueue poller is built too, as `tests.face.kqueue_poller`, over the stand-in for <sys/event.h> in tests/face/kqueue.

Tests read variables that --matrix sets: MQTTC_TEST_PROTOCOL (3 or 5; unset: both), MQTTC_TEST_WORKERS (1 or 4; unset: the default),
MQTTC_TEST_TRANSPORT (unset: tcp), MQTTC_TEST_WS_SPLIT and MQTTC_TEST_SHARED (see docs/testing.md).

Sanitizers. The copy lies in build/asan or build/tsan and is built and run with Debian's interpreter (MQTTC_SANITIZER_BASE names another;
one built by pyenv crashes under libtsan) in a virtual environment of its own, with the sanitizer's library preloaded. Whatever any process
reports lands in build/asan/reports or build/tsan/reports and fails the command. Tests of the source text (tests/source) are left out.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build"
Rows = Mapping[str, Mapping[str, str]]  # name: environment
FAMILY_ROWS: Rows = {
    f"protocol family {protocol}, {workers} worker(s)": {"MQTTC_TEST_PROTOCOL": protocol, "MQTTC_TEST_WORKERS": workers}
    for protocol in ("3", "5")
    for workers in ("1", "4")
}
TRANSPORT_ROWS: Rows = {
    "unix": {"MQTTC_TEST_TRANSPORT": "unix"},
    "tls": {"MQTTC_TEST_TRANSPORT": "tls"},
    "ws": {"MQTTC_TEST_TRANSPORT": "ws"},
    "ws, frames cut at random": {"MQTTC_TEST_TRANSPORT": "ws", "MQTTC_TEST_WS_SPLIT": "1"},
    "wss": {"MQTTC_TEST_TRANSPORT": "wss"},
    "h2": {"MQTTC_TEST_TRANSPORT": "h2"},
    "wss-h2, one connection a test": {"MQTTC_TEST_TRANSPORT": "wss-h2", "MQTTC_TEST_SHARED": "1"},
    "quic": {"MQTTC_TEST_TRANSPORT": "quic"},
    "quic, one connection a test": {"MQTTC_TEST_TRANSPORT": "quic", "MQTTC_TEST_SHARED": "1"},
}
"""Run with the tests marked `transport`, which lie in tests/conformance."""
COPIED = ["setup.py", "pyproject.toml", "README.md", "mqttc", "tests", "tools", "bench", "docs", "examples"]
NO_TESTS = 5  # pytest's exit code
NOT_COPIED = {".so", ".pyc", ".html"}


def run(command: Sequence[str | Path], where: Path, environment: Mapping[str, str] | None = None) -> int:
    """Runs a program with output passed through; returns its exit code."""
    print("+", " ".join(str(part) for part in command), flush=True)
    merged = {**os.environ, **(environment or {})}
    return subprocess.run([str(part) for part in command], cwd=where, env=merged, check=False).returncode


def must(command: Sequence[str | Path], where: Path, environment: Mapping[str, str] | None = None) -> None:
    code = run(command, where, environment)
    if code:
        raise SystemExit(code)


def build(where: Path = ROOT, python: str = sys.executable, environment: Mapping[str, str] | None = None) -> None:
    faces = {"MQTTC_FACES": "1", "PYTHONWARNINGS": "ignore", **(environment or {})}
    must([python, "setup.py", "-q", "build_ext", "--inplace"], where, faces)


def copy_tree(name: str) -> Path:
    """Brings build/NAME up to date with the tree: sources with their times, so that builds in it stay incremental."""
    target = BUILD / name
    wanted: set[Path] = set()
    for part in COPIED:
        top = ROOT / part
        for path in [top] if top.is_file() else sorted(top.rglob("*")):
            if path.is_dir() or path.suffix in NOT_COPIED or "__pycache__" in path.parts or "node_modules" in path.parts:
                continue
            relative = path.relative_to(ROOT)
            wanted.add(relative)
            to = target / relative
            if not to.is_file() or to.stat().st_mtime_ns != path.stat().st_mtime_ns or to.stat().st_size != path.stat().st_size:
                to.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(path, to)
    for part in COPIED:
        for path in sorted((target / part).rglob("*")):
            stale_module = path.suffix == ".so" and path.relative_to(target).parent / (path.name.split(".")[0] + ".pyx") not in wanted
            if path.is_file() and (stale_module or (path.suffix not in NOT_COPIED and path.relative_to(target) not in wanted)):
                if path.name.startswith(("poller.", "kqueue_poller.")):
                    continue  # built from poller_epoll.pyx or poller_kqueue.pyx, or made by the build
                path.unlink()
    # Node's modules are large and only read: the copy uses the tree's.
    for modules in ROOT.glob("tests/**/node_modules"):
        link = target / modules.relative_to(ROOT)
        if "node_modules" not in modules.parent.parts and not link.exists():
            link.symlink_to(modules, target_is_directory=True)
    return target


def pytest(arguments: Sequence[str], where: Path, python: str | Path, environment: Mapping[str, str] | None = None) -> int:
    return run([python, "-m", "pytest", *arguments], where, {"PYTHONPATH": str(where), **(environment or {})})


def node_modules() -> None:
    """Installs what the clients written for Node need, where a package.json below tests/ asks for it and npm is there."""
    npm = shutil.which("npm")
    for wanted in ROOT.glob("tests/**/package.json"):
        folder = wanted.parent
        if "node_modules" in folder.parts:
            continue
        lock, done = folder / "package-lock.json", folder / "node_modules" / ".package-lock.json"
        newest = max(path.stat().st_mtime_ns for path in (wanted, lock) if path.is_file())
        if done.is_file() and done.stat().st_mtime_ns >= newest:
            continue
        if npm is None:
            print(f"npm is missing: tests that need {folder.relative_to(ROOT)}/node_modules will be skipped", flush=True)
        elif run([npm, "ci" if lock.is_file() else "install", "--no-audit", "--no-fund", "--loglevel=error"], folder) == 0:
            done.touch()


def test(arguments: Sequence[str], rows: Rows, where: Path, python: str | Path, environment: Mapping[str, str] | None = None) -> int:
    """Once for each of the rows, or once if there are none."""
    if not rows:
        return pytest(arguments, where, python, environment)
    results = {}
    for name, row in rows.items():
        print(f"== {name}", flush=True)
        chosen = [*arguments, "-m", "transport"] if name in TRANSPORT_ROWS else arguments
        code = pytest(chosen, where, python, {**(environment or {}), **row})
        # Of tests that were named, none may be among those that a transport can change: no failure.
        results[name] = 0 if code == NO_TESTS and name in TRANSPORT_ROWS else code
    for name, code in results.items():
        print(f"{name}: {'passed' if code == 0 else f'exit code {code}'}")
    return max(results.values())


def test_requirements() -> list[str]:
    """What the tests need, from the package index alone: an extra that names others of ours stands for what they name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]

    def named(requirement: str) -> list[str]:
        own = re.fullmatch(r"mqttc\[([\w,-]+)\]", requirement)
        return [found for extra in own[1].split(",") for one in extras[extra] for found in named(one)] if own else [requirement]

    return [*project["dependencies"], *(found for one in extras["test"] for found in named(one))]


def sanitizer_python() -> Path:
    """An interpreter that runs under the sanitizers, in build/venv, with what the tests need."""
    base = os.environ.get("MQTTC_SANITIZER_BASE", "/usr/bin/python3")
    venv = BUILD / "venv"
    python = venv / "bin" / "python"
    done = venv / "requirements.txt"
    wanted = "\n".join(test_requirements())
    if not done.is_file() or done.read_text("utf-8") != wanted:
        must([base, "-m", "venv", "--clear", venv], ROOT)
        must([python, "-m", "pip", "install", "-q", *test_requirements()], ROOT)
        done.write_text(wanted, "utf-8")
    return python


def library(name: str) -> str:
    """Path of a runtime library of the compiler, by which LD_PRELOAD finds it."""
    compiler = os.environ.get("CC", "gcc")
    answer = subprocess.run([compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout.strip()
    if not os.path.isabs(answer):
        raise SystemExit(f"{compiler} has no {name}")
    return os.path.realpath(answer)


def our_part(report: str) -> str:
    """A report without the leaks that are not ours: of a leak, only what a module of the tree itself asked malloc for counts.

    The interpreter never frees its interned strings, static types and code objects, and modules hold constants to the end.
    """
    if "LeakSanitizer: detected memory leaks" not in report:
        return report
    kept = []
    for block in report.split("\n\n"):
        frames = re.findall(r"^ +#\d+ .*$", block, re.MULTILINE)
        callers = [frame for frame in frames if not re.search(r"lib[alt]san|interceptor|sanitizer", frame)]
        if "leak of" in block and callers and re.search(r"build/c/(mqttc|tests)/", callers[0]):
            kept.append(block)
        elif "LeakSanitizer" not in block and "leak of" not in block and "SUMMARY" not in block and block.strip("= \n"):
            kept.append(block)  # another report of the same process
    return "\n\n".join(kept)


def sanitize(name: str, kind: str, arguments: Sequence[str], rows: Rows) -> int:
    python = sanitizer_python()
    tree = copy_tree(name)
    build(tree, str(python), {"MQTTC_SANITIZE": kind})
    reports = tree / "reports"
    shutil.rmtree(reports, ignore_errors=True)
    reports.mkdir()
    common = f"log_path={reports}/report:exitcode=66"
    environment = {
        "PYTHONMALLOC": "malloc",
        "ASAN_OPTIONS": f"{common}:detect_leaks=1:strict_string_checks=1:allocator_may_return_null=1",
        # Python itself frees little at exit, so a leak says nothing by its exit code: the reports are read below.
        "LSAN_OPTIONS": "exitcode=0:print_suppressions=0",
        # This runtime ignores log_path: it ends the process, which the test then misses, with the report on its standard error.
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1:exitcode=66",
        # A second signal ends mqttc-broker at once, without joining its workers: that is no leak.
        "TSAN_OPTIONS": f"{common}:suppressions={ROOT}/tools/tsan.supp:second_deadlock_stack=1:history_size=4:report_thread_leaks=0",
    }
    preload = " ".join(library(part) for part in ({"address": ["libasan.so", "libubsan.so"], "thread": ["libtsan.so"]}[kind]))
    wrapper = tree / "python"
    wrapper.write_text(f'#!/bin/sh\nLD_PRELOAD="{preload}${{LD_PRELOAD:+ $LD_PRELOAD}}" exec "{python}" "$@"\n', "utf-8")
    wrapper.chmod(0o755)
    environment |= {"MQTTC_SANITIZER": kind, "MQTTC_SANITIZER_PYTHON": str(wrapper), "PYTHONPATH": f"{tree}{os.pathsep}{tree / 'tools'}"}
    arguments = ["-p", "sanitizer_plugin", "-p", "no:cacheprovider", "--ignore=tests/source", *arguments]
    code = test(arguments, rows, tree, wrapper, environment)
    found = {report: text for report in sorted(reports.iterdir()) if (text := our_part(report.read_text("utf-8", "replace")))}
    for report, text in found.items():
        print(f"== {report}\n{text}")
    if found:
        print(f"{name}: {len(found)} process(es) reported")
    return code or (1 if found else 0)


def pyright() -> int:
    """The second opinion on what users' programs see: the version that tests/typing/package.json names."""
    program = ROOT / "tests" / "typing" / "node_modules" / ".bin" / "pyright"
    if not program.is_file() or shutil.which("node") is None:
        print("pyright is missing: not run (`dev.py test` installs it, where there is npm)", flush=True)
        return 0
    return run([program, "--pythonpath", sys.executable], ROOT)


def lint() -> int:
    codes = [
        run([sys.executable, "-m", "ruff", "check", "."], ROOT),
        run([sys.executable, "-m", "mypy"], ROOT),
        run([sys.executable, "-m", "mypy", "--explicit-package-bases", "examples", "tests/typing/typed_use.py"], ROOT),
        pyright(),
        run([sys.executable, "tools/check_floors.py"], ROOT),
        run([sys.executable, "tools/check_hints.py"], ROOT),
    ]
    return max(codes)


def clean() -> None:
    shutil.rmtree(BUILD, ignore_errors=True)
    for folder in ("mqttc", "tests"):
        for module in (ROOT / folder).rglob("*.so"):
            module.unlink()


def main() -> int:
    parser = argparse.ArgumentParser(prog="dev.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["build", "test", "debug", "asan", "tsan", "annotate", "lint", "clean"])
    parser.add_argument("--matrix", action="store_true", help="once per protocol family and number of workers (1, 4), and --transports")
    parser.add_argument("--transports", action="store_true", help="what a transport can change, once over each but TCP")
    options, arguments = parser.parse_known_args()
    if arguments and options.command in ("build", "annotate", "lint", "clean"):
        parser.error(f"{options.command} takes no arguments: {' '.join(arguments)}")
    rows = {**(FAMILY_ROWS if options.matrix else {}), **(TRANSPORT_ROWS if options.matrix or options.transports else {})}
    match options.command:
        case "build":
            build()
        case "test":
            build()
            node_modules()
            return test(arguments, rows, ROOT, sys.executable)
        case "debug":
            tree = copy_tree("debug")
            build(tree, environment={"MQTTC_DEBUG": "1"})
            return test(arguments, rows, tree, sys.executable)
        case "asan":
            return sanitize("asan", "address", arguments, rows)
        case "tsan":
            return sanitize("tsan", "thread", arguments, rows)
        case "annotate":
            tree = copy_tree("annotate")
            build(tree, environment={"MQTTC_ANNOTATE": "1"})
            print(f"annotated sources: {tree / 'build' / 'c'}")
        case "lint":
            return lint()
        case "clean":
            clean()
    return 0


if __name__ == "__main__":
    sys.exit(main())
