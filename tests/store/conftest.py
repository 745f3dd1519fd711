"""Brokers that keep what they have."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ..broker.conftest import events as events
from .durable import Place

MakePlace = Callable[..., Place]


@pytest.fixture
def make_place(nothing_left: None, tmp_path: Path) -> Iterator[MakePlace]:
    """Data directories with a broker of that configuration: `make_place(limits={...})`. At the end of the test nothing may be left."""
    made: list[Place] = []

    def make(**sections: Any) -> Place:
        place = Place(tmp_path / f"data{len(made)}", **sections)
        made.append(place)
        place.start()
        return place

    yield make
    try:
        for place in made:
            place.finish()
    finally:
        for place in made:
            place.stop()


@pytest.fixture
def place(make_place: MakePlace) -> Place:
    return make_place()
