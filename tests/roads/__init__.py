"""Whole brokers and what comes to them over WebSocket, HTTP, QUIC and from proxies."""
