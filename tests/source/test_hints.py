"""No performance hint in the tree, an exception specification on every nogil function, and a checker that notices."""

from pathlib import Path

import pytest

pytest.importorskip("Cython")

import check_hints


def test_the_tree_has_no_hint_and_no_missing_specification():
    findings = check_hints.check()
    assert not findings, "\n".join(map(str, findings))


def write(root: Path, text: str, name: str = "mqttc/bad.pyx") -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    "text",
    [
        "cdef int f() nogil:\n    return 1\n",
        "cdef void f() nogil:\n    pass\n",
        "cdef int f() except * nogil:\n    return 1\n",
        "ctypedef int (*F)(int) nogil\n",
        "cdef struct S:\n    int (*f)(int) nogil\n",
        "cdef class A:\n    cdef int f(self) nogil:\n        return 1\n",
    ],
)
def test_a_missing_specification_is_noticed(text: str, tmp_path: Path):
    path = write(tmp_path, text)
    assert list(check_hints.check_specifications(tmp_path, path))


@pytest.mark.parametrize("specification", ["noexcept", "except -1", "except? -1"])
def test_a_specification_is_accepted(specification: str, tmp_path: Path):
    path = write(tmp_path, f"cdef int f() {specification} nogil:\n    return 1\nctypedef int (*F)(int) {specification} nogil\n")
    assert not list(check_hints.check_specifications(tmp_path, path))


def test_a_performance_hint_is_noticed_and_remembered(tmp_path: Path):
    text = "cdef void f(int x) nogil:\n    pass\ndef g(int x):\n    with nogil:\n        f(x)\n"
    path = write(tmp_path, text)
    cache = tmp_path / "hints.json"
    for _ in range(2):
        findings = check_hints.check_performance(tmp_path, {path: "mqttc.bad"}, cache)
        assert any("performance hint" in finding.text and finding.path.endswith("bad.pyx") for finding in findings), findings
    path.write_text(text.replace("nogil:\n    pass", "noexcept nogil:\n    pass"))
    assert not check_hints.check_performance(tmp_path, {path: "mqttc.bad"}, cache)


def test_what_does_not_compile_is_reported(tmp_path: Path):
    path = write(tmp_path, "cdef Unknown f() noexcept nogil:\n    return 1\n")
    assert "does not compile" in str(check_hints.check_performance(tmp_path, {path: "mqttc.bad"}))


def test_a_declaration_below_another_makes_the_translation_due(tmp_path: Path):
    write(tmp_path, "", "mqttc/__init__.pxd")
    low = write(tmp_path, "ctypedef int Low\n", "mqttc/low.pxd")
    write(tmp_path, "from mqttc.low cimport Low\n", "mqttc/middle.pxd")
    high = write(tmp_path, "from mqttc.middle cimport Low\n", "mqttc/high.pyx")
    before = check_hints.fingerprint(tmp_path, high, {})
    assert check_hints.fingerprint(tmp_path, high, {}) == before
    low.write_text("ctypedef long Low\n")
    assert check_hints.fingerprint(tmp_path, high, {}) != before
