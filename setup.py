"""Build of mqttc: every ``.pyx`` becomes one extension module. Metadata is in ``pyproject.toml``.

Compiler directives and compiler flags stand here and nowhere else. What the environment may say:

``MQTTC_ONLY=mqttc.base,mqttc.proto``  build only these modules and what is below them in the dotted name.
``MQTTC_DEBUG=1``                      -O0, debug information, assertions, ``MQTTC_DEBUG`` defined for C, nothing stripped.
``MQTTC_SANITIZE=address|thread``      address (with undefined behaviour) or thread sanitizer; ``tools/dev.py`` does this in a tree copy.
``MQTTC_SANITIZE=fuzz``                the former with libFuzzer's counters, by clang; ``tools/fuzz.py`` does this in a tree copy.
``MQTTC_FACES=1``                      also build the test-only modules ``tests.face.*``, the kqueue poller over a stand-in header too.
``MQTTC_ANNOTATE=1``                   write Cython's annotated HTML next to the C files under ``build/c``.
``MQTTC_JOBS=n``                       parallel jobs; by default one per core.

Layout check. Cython compares function signatures between modules, never struct layouts, so a module built against an older ``.pxd``
would read the wrong bytes. Each module therefore carries a hash of every ``.pxd`` and ``.h`` that it depends on, and `mqttc/layout.h`,
included by the command line in each of them, compares these at import with what the modules imported before it carry. Only a module's own
dependencies are baked in, so that editing one ``.pxd`` rebuilds what depends on it and nothing else.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
BUILD_C = Path("build") / "c"

DIRECTIVES: dict[str, object] = {
    "language_level": 3,
    "binding": False,
    "boundscheck": False,
    "wraparound": False,
    "cdivision": True,
    "initializedcheck": False,
    "nonecheck": False,
    "embedsignature": False,
    "freethreading_compatible": True,
    "show_performance_hints": True,
}

BSD = sys.platform == "darwin" or "bsd" in sys.platform or sys.platform.startswith("dragonfly")
EPOLL = sys.platform.startswith("linux")

# The poller is one contract, mqttc/net/poller.pxd, and one implementation, chosen here.
POLLER_SOURCES = {"mqttc/net/poller_epoll.pyx": EPOLL, "mqttc/net/poller_kqueue.pyx": BSD}
# Where there is no kqueue the suite runs that poller all the same: with the faces it is built as a module of this name, whose .pxd
# declares the contract's functions over the contract's own structs, and with a directory that stands in for <sys/event.h>.
KQUEUE_FACE = "tests.face.kqueue_poller"
KQUEUE_STAND_IN = "tests/face/kqueue"
# What builds where there is neither epoll nor kqueue.
PORTABLE = ("mqttc.base", "mqttc.proto", "mqttc.codec", "mqttc.client")

LIBRARIES = {f"mqttc.net.{name}": ["ssl", "crypto"] for name in ("tls", "tls_client", "tls_context", "tls_socket")} | {
    f"mqttc.broker.{name}": ["sqlite3"] for name in ("checkpoint", "journal", "recover", "replay", "rows", "window")
}

INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*"([^"]+)"', re.MULTILINE)


def flag(name: str) -> bool:
    return os.environ.get(name, "") not in ("", "0")


def jobs() -> int:
    return int(os.environ.get("MQTTC_JOBS") or os.cpu_count() or 1)


def selected(name: str) -> bool:
    only = [part.strip() for part in os.environ.get("MQTTC_ONLY", "").split(",") if part.strip()]
    return not only or any(name == part or name.startswith(part + ".") for part in only)


def write_changed(path: Path, text: str) -> None:
    """Writes a file unless that is what it says already, so that its time tells when it changed."""
    if not path.is_file() or path.read_text("utf-8") != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")


def module_sources(faces: bool) -> dict[str, str]:
    """Module name to its .pyx, relative to the root, for this platform."""
    found: dict[str, str] = {}
    folders = ["mqttc", "tests/face"] if faces else ["mqttc"]
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.pyx")):
            source = path.relative_to(ROOT).as_posix()
            name = source[: -len(".pyx")].replace("/", ".")
            if not (EPOLL or BSD) and not any(name == part or name.startswith(part + ".") for part in PORTABLE):
                continue
            if source in POLLER_SOURCES:
                if POLLER_SOURCES[source]:
                    found["mqttc.net.poller"] = source
                elif faces and source.endswith("kqueue.pyx") and (ROOT / KQUEUE_STAND_IN).is_dir():
                    found[KQUEUE_FACE] = source
                continue
            found[name] = source
    return found


def extensions() -> list[Extension]:
    made = []
    for name, source in module_sources(flag("MQTTC_FACES")).items():
        if not selected(name):
            continue
        include_dirs = ["."]
        if name == KQUEUE_FACE:
            include_dirs.insert(0, KQUEUE_STAND_IN)
        made.append(Extension(name, [source], include_dirs=include_dirs, libraries=LIBRARIES.get(name, [])))
    return made


def compiler_flags(kind: str) -> tuple[list[str], list[str]]:
    """Flags for compiling and linking; `kind` is the compiler's family as setuptools names it."""
    if kind == "msvc":
        return ["/O2", "/std:c11"], []
    warnings = ["-Wall", "-Wno-unused-function", "-Wno-unused-variable", "-Wno-unreachable-code", "-Wno-sign-compare"]
    warnings += ["-Werror=implicit-function-declaration", "-Werror=incompatible-pointer-types", "-Werror=int-conversion"]
    compile_flags = ["-std=gnu11", "-fvisibility=hidden", "-pthread", *warnings]
    link_flags = ["-pthread"]
    sanitize = os.environ.get("MQTTC_SANITIZE", "")
    if sanitize:
        what = {
            "address": ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"],
            "thread": ["-fsanitize=thread"],
            # An offset of 0 from NULL, as empty spans have it, is well-defined since C2y, and was everywhere before.
            "fuzz": [
                "-fsanitize=address,undefined,fuzzer-no-link",
                "-fno-sanitize=pointer-overflow",
                "-fno-sanitize-recover=undefined",
                "-shared-libsan",
            ],
        }.get(sanitize)
        if what is None:
            raise SystemExit(f"MQTTC_SANITIZE={sanitize}: must be address, thread or fuzz")
        compile_flags += ["-O1", "-g", "-fno-omit-frame-pointer", "-DMQTTC_DEBUG=1", *what]
        link_flags += what
    elif flag("MQTTC_DEBUG"):
        compile_flags += ["-O0", "-g", "-UNDEBUG", "-DMQTTC_DEBUG=1"]
    else:
        compile_flags += ["-O2", "-g0", "-DNDEBUG"]
        link_flags += ["-Wl,-x"] if sys.platform == "darwin" else ["-Wl,-s"]
    return compile_flags, link_flags


def headers_of(names: set[str]) -> set[str]:
    """The headers among `names` and those that they include, as far as they are ours."""
    seen: set[str] = set()
    todo = [name for name in names if name.endswith(".h")]
    while todo:
        name = todo.pop()
        if name in seen or not (ROOT / name).is_file():
            continue
        seen.add(name)
        for other in INCLUDE.findall((ROOT / name).read_text("utf-8")):
            beside = (Path(name).parent / other).as_posix()
            todo += [other, beside]
    return seen


def layout_of(source: str, tree: object) -> dict[str, str]:
    """Every .pxd and .h of ours that the module depends on, with a hash of its bytes."""
    names: set[str] = set()
    for path in tree.all_dependencies(source):  # type: ignore[attr-defined]
        absolute = Path(path).resolve()
        if absolute.is_relative_to(ROOT) and absolute.suffix in (".pxd", ".pyx"):
            names.add(absolute.relative_to(ROOT).as_posix())
    headers: set[str] = set()
    for name in names:
        text = (ROOT / name).read_text("utf-8")
        headers |= set(re.findall(r"""cdef\s+extern\s+from\s+["']<?([^"'<>]+\.h)>?["']""", text)) | set(INCLUDE.findall(text))
    names = {name for name in names if name.endswith(".pxd")} | headers_of(headers)
    return {name: hashlib.sha256((ROOT / name).read_bytes()).hexdigest()[:16] for name in sorted(names)}


class BuildExtensions(build_ext):
    """Translates all modules at once in parallel, then compiles them in parallel."""

    def run(self) -> None:
        if not self.inplace:
            # What an earlier build left (test-only modules, removed ones) must not reach the wheel, which takes the whole folder.
            wanted = {Path(output).resolve() for output in self.get_outputs()}
            for module in Path(self.build_lib).rglob("*.so"):
                if module.resolve() not in wanted:
                    module.unlink()
        super().run()

    def build_extensions(self) -> None:
        if not self.extensions:
            return
        self.parallel = self.parallel or jobs()
        sources = {ext.name: ext.sources[0] for ext in self.extensions}
        from Cython.Build import cythonize
        from Cython.Build.Dependencies import create_dependency_tree
        from Cython.Compiler.Errors import CompileError

        try:
            translated = cythonize(
                self.extensions,
                build_dir=str(BUILD_C),
                include_path=["."],
                compiler_directives=DIRECTIVES,
                nthreads=jobs(),
                annotate=flag("MQTTC_ANNOTATE"),
                force=bool(self.force),
            )
        except CompileError as error:  # Cython has printed what is wrong
            raise SystemExit(f"does not compile: {error}") from None
        compile_flags, link_flags = compiler_flags(self.compiler.compiler_type)
        tree = create_dependency_tree()
        for ext, done in zip(self.extensions, translated, strict=True):
            layout = layout_of(sources[ext.name], tree)
            header = self.write_layout(ext.name, layout, compile_flags + link_flags)
            ext.sources = done.sources
            ext.depends = [*layout, "mqttc/layout.h", str(header)]
            force_include = ["/FI" + str(header)] if self.compiler.compiler_type == "msvc" else ["-include", str(header)]
            ext.extra_compile_args = [*compile_flags, *force_include]
            ext.extra_link_args = list(link_flags)
            self.drop_if_older(ext)
        super().build_extensions()

    def drop_if_older(self, ext: Extension) -> None:
        """Removes a module that is older than what it is made of: setuptools compares times in whole seconds and would keep it."""
        built = Path(self.get_ext_fullpath(ext.name))
        if built.is_file():
            time = built.stat().st_mtime_ns
            if any(Path(path).stat().st_mtime_ns >= time for path in [*ext.sources, *ext.depends]):
                built.unlink()

    @staticmethod
    def write_layout(name: str, layout: dict[str, str], flags: list[str]) -> Path:
        """The header a module is compiled with; written only when it changes. Names the flags so that changing them rebuilds."""
        lines = [f"/* Made by setup.py for {name}. Flags: {' '.join(flags)} */", f'#define MQTTC_MODULE "{name}"']
        lines += ["#define MQTTC_LAYOUT \\", *(f'    {{"{file}", "{digest}"}}, \\' for file, digest in layout.items())]
        lines += ["    {0, 0}", '#include "mqttc/layout.h"', ""]
        path = BUILD_C / "layout" / f"{name}.h"
        write_changed(path, "\n".join(lines))
        return path


if __name__ == "__main__":
    os.chdir(ROOT)
    setup(ext_modules=extensions(), cmdclass={"build_ext": BuildExtensions})
