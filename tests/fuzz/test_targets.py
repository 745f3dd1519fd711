"""Each target over its corpus and over inputs near it, the same ones each time. The long runs are those of tools/fuzz.py."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from itertools import islice

import pytest

from tests.face import fuzz_net, fuzz_proto, fuzz_tree
from tools import fuzz

from . import auth_targets, corpora, mutation, targets

FACES = {"fuzz_net": fuzz_net.TARGETS, "fuzz_proto": fuzz_proto.TARGETS, "fuzz_tree": fuzz_tree.TARGETS}
NATIVE_RUNS = 20_000
PYTHON_RUNS = {
    "codec": 4000,
    "config": 300,
    "url": 4000,
    "passwords": 4000,
    "scram": 4000,
    "acl": 600,
    "jwt": 1500,
    "key_set": 3000,
    "http1": 600,
    "http2": 500,
    "store": 25,
}
SLOW = {"proxy": 4000, "tree": 5000, "ws_client": 5000, "ws_server": 5000}


def inputs(name: str, runs: int) -> Iterator[bytes]:
    corpus = corpora.read(name)
    assert corpus, f"{name} has no corpus"
    return islice(mutation.inputs(corpus, corpora.words(name), random.Random(name)), len(corpus) + runs)


def play(name: str, target: Callable[[bytes], None], runs: int) -> None:
    for data in inputs(name, runs):
        try:
            target(data)
        except Exception as error:
            error.add_note(f"target {name}, input {data.hex()}")
            raise


@pytest.mark.parametrize("name", fuzz.NATIVE)
def test_native_target(name: str) -> None:
    target = FACES[fuzz.NATIVE[name]]
    for data in inputs(name, SLOW.get(name, NATIVE_RUNS)):
        broken = target.run(name, data)
        assert broken is None, f"{broken}: {data.hex()}"


@pytest.mark.parametrize("name", targets.TARGETS)
def test_python_target(name: str) -> None:
    play(name, targets.TARGETS[name], PYTHON_RUNS[name])


@pytest.mark.parametrize("name", ["jwt", "key_set"])
def test_some_tokens_are_good(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else those targets would look at refusals alone."""
    admitted: list[object] = []
    monkeypatch.setattr(auth_targets, "compile_grant", admitted.append)
    for data in corpora.read(name):
        targets.TARGETS[name](data)
    assert len(admitted) >= 4


def test_every_native_target_is_known() -> None:
    """Those of the faces are those of the command, at addresses of their own."""
    assert {(name, module) for module, face in FACES.items() for name in face} == set(fuzz.NATIVE.items())
    assert len({FACES[module].address(name) for name, module in fuzz.NATIVE.items()}) == len(fuzz.NATIVE)
    for face in FACES.values():
        with pytest.raises(KeyError):
            face.run("nothing", b"")


def test_corpora_are_small_and_in_order() -> None:
    known = {*fuzz.NATIVE, *targets.TARGETS}
    assert {path.stem for path in corpora.FOLDER.iterdir()} == known
    for name in known:
        found = corpora.read(name)
        assert found == sorted(set(found), key=lambda data: (len(data), data))
        assert corpora.path_of(name).stat().st_size < 300_000
