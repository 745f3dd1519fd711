"""What authenticators ask over HTTP have in common: a client that checks certificates, follows nothing, and reads no more than it must."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

from mqttc.auth.source import missing_extra, problem

if TYPE_CHECKING:
    import httpx


def web_client(where: str, extra: str, timeout: float, ca: str, *, limit: int, certificate: str = "", key: str = "") -> httpx.AsyncClient:
    """At most ``limit`` connections. The environment's proxies are not used: what is sent are secrets."""
    try:
        import httpx
    except ImportError as error:
        raise missing_extra(where, extra, error) from None
    return httpx.AsyncClient(
        verify=tls_context(where, ca, certificate, key),
        timeout=httpx.Timeout(timeout),
        limits=httpx.Limits(max_connections=limit, max_keepalive_connections=limit),
        follow_redirects=False,
        trust_env=False,
    )


def tls_context(where: str, ca: str, certificate: str = "", key: str = "") -> ssl.SSLContext:
    """Verifies the server's name and certificate, by the CA's of the file or, without one, of the system."""
    try:
        context = ssl.create_default_context(cafile=ca or None)
        if certificate:
            context.load_cert_chain(certificate, key or None)
    except (OSError, ssl.SSLError) as error:
        raise problem(where, f"{ca or certificate}: {error}") from None
    return context


async def read_bounded(response: httpx.Response, most: int) -> bytes:
    """The body; ``ValueError`` if it is longer."""
    body = bytearray()
    async for part in response.aiter_bytes():
        body += part
        if len(body) > most:
            raise ValueError(f"the answer has more than {most} bytes")
    return bytes(body)
