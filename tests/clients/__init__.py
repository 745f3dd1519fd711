"""Real clients against a running broker."""
