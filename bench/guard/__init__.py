"""The speed regression guard: instructions for fixed work, the same on every machine of an architecture."""
