"""Makes certificates: a self-signed one for a broker that has none, and a small CA for tests and closed networks.

Keys are on the curve P-256. Private keys are written with mode 0600, and every file is whole at any moment: it is written beside and then
moved to its place. Needs the ``cryptography`` package, which is imported when it is used.
"""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

CA: Final = "ca"
SELF_SIGNED: Final = "self-signed"
SELF_SIGNED_DAYS: Final = 90
_RENEW_AT: Final = 1 / 3
_BACKDATED: Final = datetime.timedelta(minutes=5)


class CertificateError(ValueError):
    """A certificate cannot be made or read; the text says why."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Files of a certificate and its key."""

    certificate: Path
    key: Path

    @classmethod
    def of(cls, folder: Path, name: str) -> Pair:
        return cls(folder / f"{name}.pem", folder / f"{name}.key")


def write_file(path: Path, data: bytes, mode: int, owner: tuple[int, int] | None = None) -> None:
    """Replace the file at once; nobody ever sees a part of it, nor the bytes with wider permissions.

    ``owner``: user and group that it shall have, if this process may give it to them.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mode 0600
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            if owner is not None and owner != (os.geteuid(), os.getegid()):
                with contextlib.suppress(PermissionError):
                    os.fchown(file.fileno(), *owner)
            os.fchmod(file.fileno(), mode)
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise


def alternative_name(host: str) -> x509.GeneralName:
    """A host name or an address as it stands in a certificate."""
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(host.strip("[]")))
    except ValueError:
        pass
    if not re.fullmatch(r"(\*\.)?[A-Za-z0-9_]([A-Za-z0-9_.-]{0,251}[A-Za-z0-9_])?", host):
        raise CertificateError(f"{host!r} is neither a host name nor an address")
    return x509.DNSName(host)


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def _subject(name: str) -> x509.Name:
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    if not 1 <= len(name) <= 64:
        raise CertificateError(f"a name has 1 to 64 characters: {name!r}")
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _write(pair: Pair, certificate: x509.Certificate, key: EllipticCurvePrivateKey, chain: Sequence[x509.Certificate] = ()) -> None:
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    write_file(pair.key, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), 0o600)
    write_file(pair.certificate, b"".join(one.public_bytes(Encoding.PEM) for one in (certificate, *chain)), 0o644)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: EllipticCurvePrivateKey,
    issuer_key: EllipticCurvePrivateKey,
    days: float,
    *,
    authority: bool,
) -> x509.CertificateBuilder:
    from cryptography import x509

    now = _now()
    usage = {
        "digital_signature": True,
        "content_commitment": False,
        "key_encipherment": False,
        "data_encipherment": False,
        "key_agreement": False,
        "key_cert_sign": authority,
        "crl_sign": authority,
        "encipher_only": False,
        "decipher_only": False,
    }
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=authority, path_length=0 if authority else None), critical=True)
        .add_extension(x509.KeyUsage(**usage), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
    )


def _key() -> EllipticCurvePrivateKey:
    from cryptography.hazmat.primitives.asymmetric import ec

    return ec.generate_private_key(ec.SECP256R1())


def _sign(builder: x509.CertificateBuilder, key: EllipticCurvePrivateKey) -> x509.Certificate:
    from cryptography.hazmat.primitives.hashes import SHA256

    return builder.sign(key, SHA256())


def read_certificate(path: Path) -> x509.Certificate:
    """The first certificate of a PEM file."""
    from cryptography import x509

    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        raise CertificateError(f"{path}: {error}") from error


def _authority(folder: Path) -> tuple[x509.Certificate, EllipticCurvePrivateKey]:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey as Key
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    pair = Pair.of(folder, CA)
    try:
        key = load_pem_private_key(pair.key.read_bytes(), None)
    except (OSError, ValueError) as error:
        raise CertificateError(f"{pair.key}: {error}") from error
    if not isinstance(key, Key):
        raise CertificateError(f"{pair.key}: not a key that this program has made")
    return read_certificate(pair.certificate), key


def make_authority(folder: Path, name: str = "mqttc test CA", days: float = 3650) -> Pair:
    """A CA: ``ca.pem`` and ``ca.key``. An existing one is never replaced."""
    pair = Pair.of(folder, CA)
    if pair.key.exists() or pair.certificate.exists():
        raise CertificateError(f"{folder} has a CA already")
    key = _key()
    subject = _subject(name)
    _write(pair, _sign(_builder(subject, subject, key, key, days, authority=True), key), key)
    return pair


def make_server(folder: Path, hosts: Sequence[str], name: str = "server", days: float = 825) -> Pair:
    """A server's certificate for these names and addresses, signed by the CA in ``folder``."""
    from cryptography import x509
    from cryptography.x509.oid import ExtendedKeyUsageOID

    authority, authority_key = _authority(folder)
    key = _key()
    builder = _builder(_subject(hosts[0]), authority.subject, key, authority_key, days, authority=False)
    builder = builder.add_extension(x509.SubjectAlternativeName([alternative_name(host) for host in hosts]), critical=False)
    builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    pair = Pair.of(folder, _file_name(name))
    _write(pair, _sign(builder, authority_key), key)
    return pair


def make_client(folder: Path, name: str, days: float = 825) -> Pair:
    """A client's certificate: ``name`` is its common name and, made harmless, the name of its files."""
    from cryptography import x509
    from cryptography.x509.oid import ExtendedKeyUsageOID

    authority, authority_key = _authority(folder)
    key = _key()
    builder = _builder(_subject(name), authority.subject, key, authority_key, days, authority=False)
    builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
    builder = builder.add_extension(
        x509.SubjectAlternativeName([x509.UniformResourceIdentifier(f"urn:mqttc:client:{_file_name(name)}")]), critical=False
    )
    pair = Pair.of(folder, _file_name(name))
    _write(pair, _sign(builder, authority_key), key)
    return pair


def make_revocations(folder: Path, revoked: Sequence[Path], days: float = 365) -> Path:
    """``crl.pem``: the CA's list of revoked certificates, these and those of the list that is there."""
    from cryptography import x509
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.serialization import Encoding

    authority, key = _authority(folder)
    path = folder / "crl.pem"
    now = _now()
    builder = x509.CertificateRevocationListBuilder().issuer_name(authority.subject)
    builder = builder.last_update(now - _BACKDATED).next_update(now + datetime.timedelta(days=days))
    serials = {entry.serial_number for entry in x509.load_pem_x509_crl(path.read_bytes())} if path.exists() else set()
    serials |= {read_certificate(certificate).serial_number for certificate in revoked}
    for serial in sorted(serials):
        builder = builder.add_revoked_certificate(x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now).build())
    write_file(path, builder.sign(key, SHA256()).public_bytes(Encoding.PEM), 0o644)
    return path


def _file_name(name: str) -> str:
    harmless = re.sub(r"[^A-Za-z0-9_.-]", "_", name).lstrip(".") or "client"
    if harmless == CA:
        raise CertificateError(f"{name!r} is the name of the CA's own files")
    return harmless


# ------------------------------------------------------------------------------------ self-signed


def ensure_self_signed(folder: Path, hosts: Sequence[str], days: float = SELF_SIGNED_DAYS) -> tuple[Pair, bool]:
    """The self-signed certificate in ``folder``, and whether it was made just now.

    A new one is made if there is none, if it is for other hosts, if two thirds of its time are over, or if its
    key is missing or is not its key.
    """
    pair = Pair.of(folder, SELF_SIGNED)
    wanted = [alternative_name(host) for host in dict.fromkeys(hosts)]
    if not wanted:
        raise CertificateError("a self-signed certificate needs at least one host")
    if _usable(pair, wanted):
        return pair, False
    from cryptography import x509
    from cryptography.x509.oid import ExtendedKeyUsageOID

    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    key = _key()
    subject = _subject(hosts[0][:64])
    builder = _builder(subject, subject, key, key, days, authority=False)
    builder = builder.add_extension(x509.SubjectAlternativeName(wanted), critical=False)
    builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    _write(pair, _sign(builder, key), key)
    return pair, True


def _usable(pair: Pair, wanted: Sequence[x509.GeneralName]) -> bool:
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        certificate = x509.load_pem_x509_certificate(pair.certificate.read_bytes())
        key = load_pem_private_key(pair.key.read_bytes(), None)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (OSError, ValueError, x509.ExtensionNotFound):
        return False
    start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    left = (end - _now()) / (end - start)
    return left > _RENEW_AT and list(names) == list(wanted) and key.public_key() == certificate.public_key()
