"""How a test names the statements it checks, and how a test is run for several versions."""

from __future__ import annotations

import pytest

SPEC_VERSIONS = ("3.1.1", "5")


def spec(version: str, *statements: str) -> pytest.MarkDecorator:
    """Mark a test (or one row of a table) with the statements it checks; version is "3.1.1" or "5"."""
    if version not in SPEC_VERSIONS or not statements:
        raise ValueError(f"spec({version!r}, {statements!r})")
    return pytest.mark.spec(version, *statements)


# Runs a test for MQTT 3.1.1 and for MQTT 5.
each_version = pytest.mark.parametrize("version", [4, 5])
