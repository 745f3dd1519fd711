"""Makes a compiled executable of the broker: `python tools/build_binary.py [--output build/bin/mqttc-broker]`.

The executable embeds the interpreter that runs this tool (Cython's --embed): no script, no shebang, one process name. Python's library is
linked into it, or loaded where the interpreter is built shared. The standard library, mqttc and its dependencies stay where they are; where
that is, is compiled in, and MQTTC_PYTHONPATH, in front of it, names other places (a package moved to another machine).

The package must be importable by this interpreter: installed, or the tree with modules built in place.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

MAIN = '''"""Entry of the compiled mqttc-broker; made by tools/build_binary.py."""

import os
import sys

named = [path for path in os.environ.get("MQTTC_PYTHONPATH", "").split(os.pathsep) if path]
sys.path[:] = named + {paths!r} + [path for path in sys.path if path not in {paths!r}]

from mqttc.cli.broker import main

sys.exit(main())
'''


def search_path() -> list[str]:
    """Where the embedded interpreter finds the package and its dependencies: what this one uses beyond the standard library."""
    for name in ("mqttc", "pydantic"):
        if importlib.util.find_spec(name) is None:
            raise SystemExit(f"build_binary: this interpreter cannot import {name}")
    package = importlib.util.find_spec("mqttc")
    assert package is not None and package.origin is not None
    places = [str(Path(package.origin).resolve().parent.parent), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    return list(dict.fromkeys(places))


def link_flags() -> list[str]:
    """What the compiler needs to put this interpreter into an executable."""
    variables = sysconfig.get_config_vars()
    version = f"python{variables['LDVERSION']}"
    flags: list[str] = []
    if variables.get("Py_ENABLE_SHARED"):
        flags += [f"-L{variables['LIBDIR']}", f"-Wl,-rpath,{variables['LIBDIR']}", f"-l{version}"]
    else:
        archive = Path(variables["LIBPL"]) / f"lib{version}.a"
        shared = Path(variables["LIBDIR"]) / str(variables.get("LDLIBRARY", ""))
        flags += [str(archive)] if archive.is_file() else [str(shared), f"-Wl,-rpath,{variables['LIBDIR']}"]
    for name in ("LIBS", "SYSLIBS", "LINKFORSHARED"):
        flags += shlex.split(variables.get(name) or "")
    return [*flags, "-lm", "-pthread"]


def build(output: Path) -> None:
    work = ROOT / "build" / "binary"
    work.mkdir(parents=True, exist_ok=True)
    source = work / "mqttc_broker_main.py"
    source.write_text(MAIN.format(paths=search_path()), "utf-8")
    subprocess.run([sys.executable, "-m", "cython", "-3", "--embed", source.name, "-o", "main.c"], cwd=work, check=True)
    compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")[:1]
    include = sysconfig.get_path("include")
    output.parent.mkdir(parents=True, exist_ok=True)
    strip = [] if sys.platform == "darwin" else ["-s"]
    command = [*compiler, "-O2", f"-I{include}", "main.c", "-o", str(output.resolve()), *strip, *link_flags()]
    subprocess.run(command, cwd=work, check=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="build_binary.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "bin" / "mqttc-broker")
    output: Path = parser.parse_args().output
    sys.path.insert(0, str(ROOT))  # the tree, unless the package is installed before it
    build(output)
    print(output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
