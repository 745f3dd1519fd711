"""The package is lazy: who wants the codec pays for no configuration and no event loop."""

from __future__ import annotations

import subprocess
import sys

import pytest

import mqttc


@pytest.mark.parametrize("statement", ["import mqttc", "import mqttc.codec", "from mqttc import codec"])
def test_codec_imports_no_control_plane(statement: str) -> None:
    code = (
        f"{statement}\nimport sys\nprint([name for name in ('asyncio', 'pydantic', 'mqttc.config', 'mqttc.native') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_names_are_found() -> None:
    assert mqttc.Broker.__module__ == "mqttc.server"
    assert set(mqttc.__all__) <= set(dir(mqttc))
    for name in mqttc.__all__:
        assert getattr(mqttc, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        mqttc.nonsense  # noqa: B018
