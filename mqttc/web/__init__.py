"""What a broker shows over HTTP: one ASGI application, which any ASGI server can run."""
