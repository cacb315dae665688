"""Encrypting small secrets with a key (AES-256-GCM)."""

from __future__ import annotations

import base64
import hashlib
import secrets as random

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from pannier.core.errors import Corrupt

_KEY_BITS = 256
_NONCE_BYTES = 12
"""What AES-GCM takes. Each is random; a key encrypts some thousands of secrets in its life, of 2^32 for which that is safe."""


def new_key() -> bytes:
    """A key."""
    return AESGCM.generate_key(_KEY_BITS)


def id_of(key: bytes) -> str:
    """A key's name, which says nothing of it."""
    return hashlib.sha256(key).hexdigest()


def seal(key: bytes, plain: bytes, *, about: str) -> str:
    """Encrypt a secret; base64.

    Args:
        about: what it belongs to; it can be decrypted together with the same text only.
    """
    nonce = random.token_bytes(_NONCE_BYTES)
    return base64.b64encode(nonce + AESGCM(key).encrypt(nonce, plain, about.encode())).decode()


def unseal(key: bytes, sealed: str, *, about: str, otherwise: Corrupt) -> bytes:
    """Decrypt what :func:`seal` has encrypted.

    Args:
        otherwise: the error where it was changed, belongs to something else, or has another key.

    Raises:
        Corrupt: ``otherwise``.
    """
    try:
        raw = base64.b64decode(sealed, validate=True)
        return AESGCM(key).decrypt(raw[:_NONCE_BYTES], raw[_NONCE_BYTES:], about.encode())
    except (InvalidTag, ValueError) as error:
        raise otherwise from error
