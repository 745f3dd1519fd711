"""No deadlines for examples: the same tests run under sanitizers and on busy machines."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
