"""What every test of the base floor must leave behind: nothing. Only builds that count blocks (debug, sanitizers) can tell."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from tests.face.base_containers import alloc_live


@pytest.fixture(autouse=True)
def blocks_made_are_blocks_freed() -> Iterator[None]:
    gc.collect()
    live = alloc_live()
    yield
    gc.collect()
    assert alloc_live() == live
