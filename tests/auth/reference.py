"""Which tokens may be accepted, by the standards alone: the oracle of the fuzz targets. Neither our code nor the library that it uses."""

from __future__ import annotations

import base64
import hmac
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from mqttc.config_auth import Jwt

KeysFor = Callable[[Mapping[str, Any]], Sequence[Any]]
"""The keys that a header (RFC 7515 section 4) may mean: bytes of a secret, or public keys."""
_HASHES: Final[Mapping[str, tuple[Any, str]]] = {
    "256": (hashes.SHA256(), "sha256"), "384": (hashes.SHA384(), "sha384"), "512": (hashes.SHA512(), "sha512"),
}  # fmt: skip
_CURVES: Final[Mapping[str, tuple[type[ec.EllipticCurve], int]]] = {
    "ES256": (ec.SECP256R1, 32), "ES384": (ec.SECP384R1, 48), "ES512": (ec.SECP521R1, 66),
}  # fmt: skip


def unpacked(text: Any) -> bytes | None:
    """Base64url (RFC 7515 section 2); padding, which some issuers send, is passed over."""
    if not isinstance(text, str) or not re.fullmatch("[A-Za-z0-9_-]*={0,2}", text):
        return None
    bare = text.rstrip("=")
    return None if len(bare) % 4 == 1 else base64.urlsafe_b64decode(bare + "=" * (-len(bare) % 4))


def _object(data: bytes | None) -> dict[str, Any] | None:
    try:
        found = json.loads(data or b"")
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def signed(algorithm: str, key: Any, data: bytes, signature: bytes) -> bool:
    """RFC 7518 section 3, RFC 8037 section 3.1."""
    try:
        hashing, name = _HASHES.get(algorithm[2:], (None, ""))
        if algorithm.startswith("HS"):
            return isinstance(key, bytes) and hmac.compare_digest(hmac.digest(key, data, name), signature)
        if algorithm.startswith(("RS", "PS")):
            if not isinstance(key, rsa.RSAPublicKey):
                return False
            pss = padding.PSS(padding.MGF1(hashing), hashing.digest_size)
            key.verify(signature, data, padding.PKCS1v15() if algorithm[0] == "R" else pss, hashing)
            return True
        if algorithm.startswith("ES"):
            curve, size = _CURVES[algorithm]
            if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, curve) or len(signature) != 2 * size:
                return False
            r, s = int.from_bytes(signature[:size], "big"), int.from_bytes(signature[size:], "big")
            key.verify(encode_dss_signature(r, s), data, ec.ECDSA(hashing))
            return True
        if not isinstance(key, ed25519.Ed25519PublicKey | ed448.Ed448PublicKey):
            return False
        key.verify(signature, data)
        return True
    except InvalidSignature:
        return False


def members(document: bytes) -> list[Any]:
    """Of a key set (RFC 7517 section 5)."""
    found = (_object(document) or {}).get("keys")
    return found if isinstance(found, list) else []


def key_of(jwk: Mapping[str, Any]) -> Any:
    """The public key of a JSON web key (RFC 7518 section 6, RFC 8037 section 2); None: it is no key for signatures, or private."""
    number = {name: unpacked(jwk.get(name)) or b"" for name in ("n", "e", "x", "y")}
    n, e, x, y = (int.from_bytes(number[name], "big") for name in ("n", "e", "x", "y"))
    operations = jwk.get("key_ops", ["verify"])
    if jwk.get("use", "sig") != "sig" or not isinstance(operations, list) or "verify" not in operations or "d" in jwk:
        return None
    try:
        match jwk.get("kty"), jwk.get("crv"):
            case "RSA", _:
                return rsa.RSAPublicNumbers(e, n).public_key() if n.bit_length() >= 2048 else None
            case "EC", "P-256" | "P-384" | "P-521" as name:
                curve = {"P-256": ec.SECP256R1, "P-384": ec.SECP384R1, "P-521": ec.SECP521R1}[name]
                return ec.EllipticCurvePublicNumbers(x, y, curve()).public_key()
            case "OKP", "Ed25519":
                return ed25519.Ed25519PublicKey.from_public_bytes(number["x"])
            case "OKP", "Ed448":
                return ed448.Ed448PublicKey.from_public_bytes(number["x"])
    except ValueError:
        return None
    return None


def _is_date(value: Any) -> bool:
    """A NumericDate (RFC 7519 section 2)."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _claim(claims: Any, path: str) -> Any:
    if path in claims:
        return claims[path]
    for name in path.split("."):
        claims = claims.get(name) if isinstance(claims, dict) else None
    return claims


def user_of(token: bytes, section: Jwt, keys_for: KeysFor, *, client_id: str, username: str | None, now: float) -> str | None:
    """The user whom the token may admit; None: it must not be accepted."""
    parts = token.decode("latin-1").split(".")
    if len(parts) != 3:
        return None
    header, claims, signature = _object(unpacked(parts[0])), _object(unpacked(parts[1])), unpacked(parts[2])
    # No extension is understood here, so none may be critical (RFC 7515 section 4.1.11).
    if header is None or claims is None or signature is None or "crit" in header or header.get("alg") not in section.algorithms:
        return None
    if not any(signed(header["alg"], key, token.rpartition(b".")[0], signature) for key in keys_for(header)):
        return None
    dates = {name: claims[name] for name in ("exp", "nbf", "iat") if name in claims}
    audience = claims.get("aud", [])
    audience = [audience] if isinstance(audience, str) else audience
    user = _claim(claims, section.user_claim)
    good = (
        all(map(_is_date, dates.values()))
        and ("exp" in dates or not section.require_expiry)
        and now < dates.get("exp", math.inf) + section.leeway
        and dates.get("nbf", -math.inf) <= now + section.leeway
        and (not section.issuer or claims.get("iss") in section.issuer)
        and isinstance(audience, list)
        and (not set(section.audience).isdisjoint(audience) if section.audience else not audience)
        and isinstance(user, str)
        and user != ""
        and all(character != "\0" and not 0xD800 <= ord(character) <= 0xDFFF for character in user)
        and (not section.client_id_claim or _claim(claims, section.client_id_claim) == client_id)
        and (not section.match_username or username in (None, user))
    )
    return user if good else None
