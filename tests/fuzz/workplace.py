"""A folder for the files that targets write."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from pathlib import Path


@functools.cache
def folder() -> Path:
    """Of this process; goes with it."""
    made = Path(tempfile.mkdtemp(prefix="mqttc-fuzz-"))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made
