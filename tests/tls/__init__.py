"""TLS listeners, by clients of other makers."""
