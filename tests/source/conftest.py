"""Tests of the source text itself: floors, hints, types, layouts. The tools they run stand in tools/."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "tools"))
