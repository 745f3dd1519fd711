"""Fuzzing: `python tools/fuzz.py TARGET ... [--minutes N]`, run with the interpreter to build and test for. See docs/testing.md.

TARGET              one of those that `list` names, `native`, `python` or `all`; `sessions` is the broker against its model
--minutes N         for each target (1)
--seconds N         instead
--seed N            of the random numbers (another one each time)
--minimise          afterwards keep in tests/fuzz/corpus/TARGET.txt the fewest inputs that reach the same edges
--input FILE        run this one input, a file that an earlier run left, instead

Native targets (tests/face/fuzz_*.pyx) are run by libFuzzer: needs clang with its runtime (Debian: clang-14, or MQTTC_CLANG). They are
built in build/fuzz, with counters at each branch and the address and undefined behaviour sanitizers. Python targets
(tests/fuzz/targets.py) are guided by the lines that they reach: an input that reaches new ones joins those that are changed. What
fails is written to build/fuzz/found, with how to run it again.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import importlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.fuzz import corpora, mutation  # noqa: E402
from tools import dev  # noqa: E402

TREE = ROOT / "build" / "fuzz"
FOUND = TREE / "found"
FACES = ("fuzz_proto", "fuzz_net", "fuzz_tree")
BUILT = ["mqttc.base", "mqttc.proto", "mqttc.net", "mqttc.broker.trie", "tests.face.fuzz_target", *(f"tests.face.{name}" for name in FACES)]
NATIVE = {
    "decode": "fuzz_proto",
    "recode": "fuzz_proto",
    "properties": "fuzz_proto",
    "text": "fuzz_proto",
    "topics": "fuzz_proto",
    "ws_frame": "fuzz_proto",
    "ws_answer": "fuzz_proto",
    "ws_server": "fuzz_net",
    "ws_client": "fuzz_net",
    "proxy": "fuzz_net",
    "tree": "fuzz_tree",
}
LONGEST = 1024  # bytes of an input that is kept in the repository
SESSIONS = "sessions"
HANGS_S = 20  # seconds that one input of a Python target may take


# ---------------------------------------------------------------------------------------------- native targets


def clang() -> str:
    wanted = os.environ.get("MQTTC_CLANG")
    for name in [wanted] if wanted else ["clang", *(f"clang-{version}" for version in range(22, 12, -1))]:
        if shutil.which(name):
            return name
    raise SystemExit("clang is missing: native targets need it (Debian: apt-get install clang-14)")


def runtime(compiler: str, name: str) -> str:
    """Path of one of the compiler's runtime libraries."""
    for spelled in (name, re.sub(r"(\.\w+)$", r"-x86_64\1", name)):
        command = [compiler, f"-print-file-name={spelled}"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        if os.path.isabs(said) and Path(said).is_file():
            return said
        folder = subprocess.run([compiler, "-print-runtime-dir"], capture_output=True, text=True, check=True).stdout.strip()
        for place in (Path(folder), Path(folder).parent / "linux"):
            if (place / spelled).is_file():
                return str(place / spelled)
    raise SystemExit(f"{compiler} has no {name}: its runtime libraries are missing (Debian: libclang-rt-14-dev)")


def build_native() -> dict[str, str]:
    """Modules and driver, in build/fuzz; the environment that a child needs."""
    compiler = clang()
    tree = dev.copy_tree("fuzz")
    dev.build(tree, environment={"MQTTC_SANITIZE": "fuzz", "CC": compiler, "MQTTC_ONLY": ",".join(BUILT)})
    driver = tree / "driver.so"
    source = tree / "tests" / "fuzz" / "driver.c"
    if not driver.is_file() or driver.stat().st_mtime_ns < source.stat().st_mtime_ns:
        archive = runtime(compiler, "libclang_rt.fuzzer_no_main.a")
        whole = ["-Wl,--whole-archive", archive, "-Wl,--no-whole-archive", "-lstdc++", "-lm", "-lpthread"]
        dev.must([compiler, "-shared", "-fPIC", "-O1", "-g", "-o", driver, source, *whole], tree)
    asan = runtime(compiler, "libclang_rt.asan.so")
    return {
        # The driver first: both have the functions by which counters register, the sanitizer's do nothing.
        "LD_PRELOAD": f"{driver} {asan}",
        "PYTHONPATH": str(tree),
        "PYTHONMALLOC": "malloc",
        # Leaks are looked for by the targets' own counters: the interpreter's would hide them.
        "ASAN_OPTIONS": "detect_leaks=0:verify_asan_link_order=0:allocator_may_return_null=1:abort_on_error=1",
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
        "MQTTC_FUZZ_DRIVER": str(driver),
    }


def child(name: str, arguments: Sequence[str]) -> int:
    """In a process with the sanitizer and the driver preloaded: libFuzzer takes over and ends it."""
    face = importlib.import_module(f"tests.face.{NATIVE[name]}")
    driver = ctypes.CDLL(os.environ["MQTTC_FUZZ_DRIVER"])
    # libFuzzer starts itself again, through a shell, where it minimises.
    words = [os.environ["MQTTC_FUZZ_AGAIN"].encode(), *(argument.encode() for argument in arguments)]
    argv = (ctypes.c_char_p * (len(words) + 1))(*words, None)
    driver.fuzz.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p]
    return int(driver.fuzz(face.TARGETS.address(name), len(words), ctypes.cast(argv, ctypes.c_void_p)))


def fuzzer(name: str, environment: dict[str, str], arguments: Sequence[str | Path], log: Path) -> int:
    again = TREE / f"again-{name}"
    again.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{TREE}/tools/fuzz.py" --child {name} "$@"\n', "utf-8")
    again.chmod(0o755)
    environment = {**os.environ, **environment, "MQTTC_FUZZ_AGAIN": str(again)}
    with log.open("wb") as out:
        command = [str(again), *(str(argument) for argument in arguments)]
        return subprocess.run(command, env=environment, stdout=out, stderr=subprocess.STDOUT, cwd=TREE, check=False).returncode


def fill(name: str) -> Path:
    """The corpus of the repository, one file an input; what earlier runs found stays beside it."""
    folder = TREE / "corpus" / name
    folder.mkdir(parents=True, exist_ok=True)
    for data in corpora.read(name):
        (folder / hashlib.sha1(data).hexdigest()).write_bytes(data)
    return folder


def words_of(name: str) -> Path:
    """The target's words as libFuzzer reads a dictionary."""
    path = TREE / f"{name}.words"
    path.write_text("".join('"' + "".join(f"\\x{byte:02x}" for byte in word) + '"\n' for word in corpora.words(name)), "utf-8")
    return path


def fuzz_native(name: str, environment: dict[str, str], seconds: float, seed: int, one: str | None) -> bool:
    FOUND.mkdir(parents=True, exist_ok=True)
    log = TREE / f"{name}.log"
    if one is not None:
        code = fuzzer(name, environment, [one], log)
        print(log.read_text("utf-8", "replace"))
        return code == 0
    folder = fill(name)
    options = [f"-max_total_time={max(int(seconds), 1)}", f"-seed={seed}", "-max_len=2048", "-timeout=10", "-rss_limit_mb=2048"]
    options += ["-print_final_stats=1", "-use_value_profile=1", f"-artifact_prefix={FOUND}/{name}-", "-detect_leaks=0"]
    if corpora.words(name):
        options.append(f"-dict={words_of(name)}")
    code = fuzzer(name, environment, [*options, folder], log)
    text = log.read_text("utf-8", "replace")
    runs = re.findall(r"stat::number_of_executed_units: (\d+)", text)
    covered = re.findall(r"cov: (\d+) ft: (\d+) corp: (\d+)", text)
    edges = re.findall(r"Loaded \d+ modules\s+\((\d+) inline 8-bit counters\)", text)
    print(
        f"{name}: {runs[-1] if runs else '?'} runs in {seconds / 60:.1f} min, {covered[-1][0] if covered else '?'} edges"
        f" (of {edges[-1] if edges else '?'} in all modules), {covered[-1][2] if covered else '?'} inputs", flush=True,
    )  # fmt: skip
    if code:
        print(
            "\n".join(
                line for line in text.splitlines() if re.search(r"broken promise|ERROR|SUMMARY|runtime error|Test unit written", line)
            )
        )
        print(f"{name}: see {log}; again with: python tools/fuzz.py {name} --input FILE", flush=True)
    return code == 0


def minimise(name: str, environment: dict[str, str]) -> None:
    """Writes the corpus of the repository anew, of what this and earlier runs have found."""
    small = TREE / "small" / name
    merged = TREE / "merged" / name
    for folder in (small, merged):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    for path in fill(name).iterdir():
        if path.stat().st_size <= LONGEST:
            shutil.copy2(path, small / path.name)
    options: list[str | Path] = ["-set_cover_merge=1", "-detect_leaks=0", "-max_len=2048"]
    if fuzzer(name, environment, [*options, merged, small], TREE / f"{name}-merge.log") != 0:
        raise SystemExit(f"{name}: merging failed, see {TREE / f'{name}-merge.log'}")
    if not any(merged.iterdir()):
        raise SystemExit(f"{name}: nothing was left of the corpus, see {TREE / f'{name}-merge.log'}")
    corpora.write(name, [path.read_bytes() for path in merged.iterdir()])
    print(f"{name}: {len(corpora.read(name))} inputs, {corpora.path_of(name).stat().st_size} bytes", flush=True)


# ---------------------------------------------------------------------------------------------- Python targets


def fuzz_python(name: str, seconds: float, seed: int, one: str | None, smaller: bool) -> bool:
    from tests.fuzz import targets

    target = targets.TARGETS[name]
    if one is not None:
        target(Path(one).read_bytes())
        return True
    FOUND.mkdir(parents=True, exist_ok=True)
    corpus = corpora.read(name)
    lines = mutation.Lines()
    end = time.monotonic() + seconds
    runs = 0
    for data in mutation.inputs(corpus, corpora.words(name), random.Random(seed)):
        if time.monotonic() > end:
            break
        runs += 1
        signal.setitimer(signal.ITIMER_REAL, HANGS_S)
        try:
            if lines.reached(target, data) and len(data) <= LONGEST:
                corpus.append(data)
        except Exception:
            path = FOUND / f"{name}-{hashlib.sha1(data).hexdigest()[:16]}"
            path.write_bytes(data)
            print(f"{name}: run {runs} fails: python tools/fuzz.py {name} --input {path.relative_to(ROOT)}", flush=True)
            traceback.print_exc()
            return False
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    print(f"{name}: {runs} runs in {seconds / 60:.1f} min, {len(lines.seen)} lines, {len(corpus)} inputs", flush=True)
    if smaller and lines.seen:  # there are none where all is native
        corpora.write(name, mutation.fewest(corpus, target))
        print(f"{name}: {len(corpora.read(name))} inputs, {corpora.path_of(name).stat().st_size} bytes", flush=True)
    return True


def hangs(*_: object) -> None:
    raise TimeoutError(f"not done after {HANGS_S} seconds")


def fuzz_sessions(seconds: float) -> bool:
    """Histories that no earlier run has seen, until the time is over."""
    environment = {"MQTTC_FUZZ_SECONDS": str(seconds), "PYTHONPATH": str(ROOT)}
    return (
        dev.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/fuzz/test_sessions.py", "-k", "long"], ROOT, environment
        )
        == 0
    )


# ---------------------------------------------------------------------------------------------- command


def chosen(names: Iterable[str]) -> list[str]:
    from tests.fuzz import targets

    groups = {"native": list(NATIVE), "python": list(targets.TARGETS), "all": [*NATIVE, *targets.TARGETS, SESSIONS]}
    found = [one for name in names for one in groups.get(name, [name])]
    for name in found:
        if name not in groups["all"]:
            raise SystemExit(f"{name} is none of {', '.join(groups['all'])}")
    return found


def main() -> int:
    if sys.argv[1:2] == ["--child"]:
        return child(sys.argv[2], sys.argv[3:])
    parser = argparse.ArgumentParser(prog="fuzz.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="+", metavar="TARGET")
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--minimise", action="store_true")
    parser.add_argument("--input")
    options = parser.parse_args()
    if options.targets == ["list"]:
        print("\n".join(chosen(["all"])))
        return 0
    names = chosen(options.targets)
    seconds = options.minutes * 60 if options.seconds is None else options.seconds
    seed = random.randrange(1, 1 << 31) if options.seed is None else options.seed
    if any(name not in NATIVE for name in names):
        dev.build()
    environment = build_native() if any(name in NATIVE for name in names) else {}
    signal.signal(signal.SIGALRM, hangs)
    good = True
    for name in names:
        if name in NATIVE:
            passed = fuzz_native(name, environment, seconds, seed, options.input)
            if passed and options.minimise:
                minimise(name, environment)
            good = passed and good
        elif name == SESSIONS:
            good = fuzz_sessions(seconds) and good
        else:
            good = fuzz_python(name, seconds, seed, options.input, options.minimise) and good
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
