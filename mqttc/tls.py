"""The TLS of a listener on the control plane: reads its files, puts them in force, and notices when they change."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from mqttc import native
from mqttc.config import Certificate, Config, ConfigError, Listener, Problem

ROTATE_S: Final = 7200.0
"""Seconds between new ticket keys; a ticket is good for as long, so it outlives one change of keys."""
_RENEWAL_S: Final = 3600.0
_CLIENT_CERTIFICATE: Final = {"none": 0, "optional": 1, "required": 2}

_Identity = tuple[int, int, int, int] | None


class _Unreadable(ValueError):
    """A file of a listener's TLS; the text has its key and what is wrong."""


def read_file(key: str, path: str) -> bytes:
    """A file's bytes; empty if the path is. ``ValueError`` names the key."""
    if not path:
        return b""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise _Unreadable(f"{key}: {path}: {error.strerror or error}") from error
    if not data:
        raise _Unreadable(f"{key}: {path} is empty")
    return data


def read_keys(path: str) -> dict[bytes, bytes]:
    """Pre-shared keys: a line each, ``name:key`` with the key in hexadecimal; ``#`` begins a comment line."""
    keys: dict[bytes, bytes] = {}
    for number, line in enumerate(read_file("psk_file", path).splitlines(), 1):
        text = line.strip()
        if not text or text.startswith(b"#"):
            continue
        name, separator, digits = text.rpartition(b":")
        try:
            key = bytes.fromhex(digits.decode("ascii"))
        except ValueError:
            key = b""
        if not separator or not name or b"\0" in name or not 1 <= len(key) <= 256:
            raise _Unreadable(f"psk_file: {path}:{number}: write name:key, the key in hexadecimal, at most 256 bytes")
        if name in keys:
            raise _Unreadable(f"psk_file: {path}:{number}: this name was there already")
        keys[name] = key
    return keys


def self_signed_hosts(config: Config) -> list[str]:
    """Names and addresses for the self-signed certificate."""
    return config.tls.hosts or list(dict.fromkeys(["localhost", socket.gethostname(), "127.0.0.1", "::1"]))


def self_signed_certificate(config: Config) -> tuple[Certificate, bool]:
    """The self-signed certificate in the data directory, and whether it was made just now."""
    from mqttc import certs

    try:
        pair, made = certs.ensure_self_signed(Path(config.data_dir) / "tls", self_signed_hosts(config))
    except ImportError as error:
        raise _Unreadable("a self-signed certificate needs the cryptography package") from error
    except (OSError, certs.CertificateError) as error:
        raise _Unreadable(f"the self-signed certificate: {error}") from error
    return Certificate(certificate=str(pair.certificate), key=str(pair.key)), made


class ListenerFiles:
    """One listener's files; what they are loaded into, a subclass knows. Any thread."""

    def __init__(self, config: Config, listener: Listener) -> None:
        """Load; raises ``ConfigError``."""
        self._lock = threading.RLock()
        self._identities: dict[str, _Identity] = {}
        self.apply(config, listener)
        self._looked = time.monotonic()

    def load(self, config: Config, listener: Listener, certificates: list[Certificate]) -> None:
        """Read the files and put them in force, or raise ``ValueError`` and change nothing."""
        raise NotImplementedError

    def apply(self, config: Config, listener: Listener) -> None:
        """Read the files of this configuration and put them in force, or raise ``ConfigError`` and change nothing."""
        with self._lock:
            try:
                certificates = self._certificates(config, listener)
                identities = {path: _identity(path) for path in _paths(listener, certificates)}  # before reading: no change is missed
                self.load(config, listener, certificates)
            except ValueError as error:
                raise ConfigError([Problem(listener.name or listener.address.url(), str(error))]) from error
            self._config, self._listener, self._identities = config, listener, identities

    def check(self) -> bool:
        """Load again if a file has changed or the self-signed certificate was renewed.

        Whether something was loaded. ``ConfigError``: something changed and cannot be used; it is tried again at the next change.
        """
        now = time.monotonic()
        with self._lock:
            config, listener = self._config, self._listener
            if listener.self_signed(config) and now - self._looked >= _RENEWAL_S:
                self._looked = now
                self_signed_certificate(config)
            changed = {path: _identity(path) for path in self._identities}
            if changed == self._identities or None in changed.values():
                return False  # None: in the middle of being replaced
            self._identities = changed
            self.apply(config, listener)
            return True

    def _certificates(self, config: Config, listener: Listener) -> list[Certificate]:
        certificates = list(listener.certificates)
        if listener.self_signed(config):
            certificates.insert(0, self_signed_certificate(config)[0])
        elif listener.certificate:
            own = Certificate(certificate=listener.certificate, key=listener.key, key_password=listener.key_password)
            certificates.insert(0, own)
        return certificates



class ListenerTls(ListenerFiles):
    """A listener whose TLS is the data plane's."""

    def __init__(self, config: Config, listener: Listener) -> None:
        self.native = native.Tls()
        self._rotated = time.monotonic()
        super().__init__(config, listener)

    def check(self) -> bool:
        """The same; and rotate ticket keys when it is time."""
        now = time.monotonic()
        if now - self._rotated >= ROTATE_S:
            self._rotated = now
            self.native.rotate()
        return super().check()

    def load(self, config: Config, listener: Listener, certificates: list[Certificate]) -> None:
        self.native.load(
            certificates=[
                (read_file("certificate", one.certificate), read_file("key", one.key), one.key_password.encode() or None)
                for one in certificates
            ],
            client_ca=read_file("client_ca", listener.client_ca),
            crl=read_file("crl", listener.crl),
            client_certificate=_CLIENT_CERTIFICATE[listener.client_certificate],
            minimum_version=listener.minimum_tls_version,
            ciphers=listener.ciphers,
            ciphersuites=listener.ciphersuites,
            alpn=listener.protocols,
            keys=read_keys(listener.psk_file),
            key_hint=listener.psk_hint,
        )


def _paths(listener: Listener, certificates: list[Certificate]) -> Iterator[str]:
    for one in certificates:
        yield from (path for path in (one.certificate, one.key) if path)
    yield from (path for path in (listener.client_ca, listener.crl, listener.psk_file) if path)


def _identity(path: str) -> _Identity:
    """What changes when the file's content does, or the file that a symbolic link leads to."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size


def check_files(config: Config) -> None:
    """Whether the files of all TLS listeners can be used; raises ``ConfigError``. Makes no self-signed certificate."""
    for listener in config.listeners:
        if listener.is_tls and not listener.self_signed(config):
            ListenerTls(config, listener)
