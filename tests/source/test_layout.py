"""The layout check: every module carries the hashes of its declarations, and one built from older ones is refused."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("Cython")

ROOT = Path(__file__).resolve().parent.parent.parent
STRUCT = "cdef struct Pair:\n    {fields}\ncdef long pair_sum(Pair *pair) noexcept nogil\n"
LOW = "cdef long pair_sum(Pair *pair) noexcept nogil:\n    return pair.left + pair.right\n"
HIGH = """from mqttc.low cimport Pair, pair_sum
def total(int left, int right):
    cdef Pair pair
    pair.left = left
    pair.right = right
    return pair_sum(&pair)
"""


def build(root: Path, **variables: str) -> set[str]:
    """Builds in place; returns the names of the modules that were compiled."""
    before = times(root)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MQTTC_")} | variables
    done = subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--inplace"], cwd=root, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    after = times(root)
    return {name for name in after if after[name] != before.get(name)}


def times(root: Path) -> dict[str, int]:
    return {path.name.split(".")[0]: path.stat().st_mtime_ns for path in root.glob("build/lib*/mqttc/*.so")}


def load(root: Path, program: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(root)}
    return subprocess.run([sys.executable, "-c", program], cwd=root, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def small_tree(tmp_path: Path) -> Path:
    """The build of this project with two modules: high uses a struct that low declares."""
    package = tmp_path / "mqttc"
    package.mkdir()
    for name in ("setup.py", "pyproject.toml", "mqttc/layout.h", "mqttc/__init__.py"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "README.md").touch()
    (package / "__init__.pxd").touch()
    (package / "low.pxd").write_text(STRUCT.format(fields="int left\n    int right"))
    (package / "low.pyx").write_text(LOW)
    (package / "high.pyx").write_text(HIGH)
    return tmp_path


def test_a_module_from_older_declarations_is_refused(small_tree: Path):
    assert build(small_tree) == {"low", "high"}
    program = "import mqttc.high, mqttc; print(mqttc.high.total(1, 2), sorted(mqttc.__layout__))"
    assert load(small_tree, program).stdout == "3 ['mqttc/low.pxd']\n"

    (small_tree / "mqttc" / "low.pxd").write_text(STRUCT.format(fields="long right\n    long left"))
    assert build(small_tree, MQTTC_ONLY="mqttc.low") == {"low"}
    for program in ("import mqttc.low, mqttc.high", "import mqttc.high, mqttc.low"):
        refused = load(small_tree, program)
        assert refused.returncode == 1
        assert "ImportError" in refused.stderr and "different versions of mqttc/low.pxd" in refused.stderr, refused.stderr

    assert build(small_tree) == {"high"}
    assert load(small_tree, "import mqttc.high as m; print(m.total(1, 2))").stdout == "3\n"


def test_only_what_depends_on_a_change_is_built_again(small_tree: Path):
    package = small_tree / "mqttc"
    (package / "inner.h").write_text("typedef int number;\n")
    (package / "outer.h").write_text('#include "mqttc/inner.h"\n')
    (package / "low.pyx").write_text('cdef extern from "mqttc/outer.h" nogil:\n    ctypedef int number\n' + LOW)
    build(small_tree)
    assert build(small_tree) == set()
    for path, expected in (("inner.h", {"low"}), ("low.pyx", {"low"}), ("high.pyx", {"high"}), ("low.pxd", {"low", "high"})):
        text = (package / path).read_text()
        (package / path).write_text(text + ("/* changed */\n" if path.endswith(".h") else "# changed\n"))
        assert build(small_tree) == expected, path
    assert build(small_tree, MQTTC_DEBUG="1") == {"low", "high"}


def test_every_module_of_the_tree_carries_its_hashes():
    """Modules that were built compare their declarations: the table names each .pxd of a module that has one."""
    program = (
        "import pathlib, importlib, mqttc\n"
        "root = pathlib.Path(mqttc.__file__).parent\n"
        "for path in sorted(root.rglob('*.so')):\n"
        "    name = '.'.join(path.relative_to(root.parent).with_name(path.name.split('.')[0]).parts)\n"
        "    importlib.import_module(name)\n"
        "    declared = root.parent / (name.replace('.', '/') + '.pxd')\n"
        "    if declared.is_file():\n"
        "        assert 'mqttc/' + declared.relative_to(root).as_posix() in mqttc.__layout__, name\n"
        "print(len(mqttc.__layout__))\n"
    )
    done = load(ROOT, program)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0
