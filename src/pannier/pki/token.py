"""Join tokens: what a new machine shows to be let into the cluster, and what proves the cluster.

``pannier1-<id>-<secret>-<fingerprint of the CA>``. The node that made it keeps only a hash of
the secret. The fingerprint lets the new machine know the cluster before it says the secret (:mod:`pannier.pki.pin`).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass, field, replace

from pannier.core.errors import Denied, InvalidInput
from pannier.core.record import Record

ID_BYTES = 5
SECRET_BYTES = 20
"""160 bits, or 32 characters of base32: far beyond guessing, so that a plain hash protects it."""

_FORM = re.compile(r"pannier1-([a-z2-7]{8})-([a-z2-7]{32})-([0-9a-f]{64})", re.ASCII)
_NEW = "make a new one with 'pannier token create' on a node of the cluster"


@dataclass(frozen=True, slots=True)
class Token:
    """A join token. Its ``repr`` hides the secret; only :meth:`text` shows it."""

    id: str
    secret: str = field(repr=False)
    ca_fingerprint: str

    def text(self) -> str:
        """As people copy it."""
        return f"pannier1-{self.id}-{self.secret}-{self.ca_fingerprint}"

    @classmethod
    def parse(cls, text: str) -> Token:
        """Read a token; white space around it is ignored.

        Raises:
            InvalidInput: another form. The text is not repeated in the message: it is secret.
        """
        match = _FORM.fullmatch(text.strip())
        if not match:
            raise InvalidInput(
                "this is not a join token",
                remedy="copy the whole line that 'pannier token create' printed: it begins with "
                "pannier1- and has 115 characters",
            )
        return cls(match[1], match[2], match[3])


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRecord(Record):
    """What the node that made a token keeps of it.

    Attributes:
        secret_hash: SHA-256 over id and secret, hexadecimal.
        expires_at: Unix time.
        uses_left: joins that it still allows.
    """

    id: str
    secret_hash: str
    expires_at: float
    uses_left: int


def new_token(
    now: float, *, ttl_seconds: float, uses: int, ca_fingerprint: str
) -> tuple[Token, TokenRecord]:
    """A fresh token and what to keep of it.

    Args:
        now: Unix time.
        ttl_seconds: how long it is good.
        uses: how many joins it allows.
        ca_fingerprint: SHA-256 of the CA's certificate, hexadecimal.

    Raises:
        InvalidInput: no time or no use.
    """
    if ttl_seconds <= 0 or uses < 1:
        raise InvalidInput(
            f"a token for {uses} uses within {ttl_seconds:g} s lets nobody in",
            remedy="give it at least one use and some minutes",
        )
    token = Token(_base32(ID_BYTES), _base32(SECRET_BYTES), ca_fingerprint)
    record = TokenRecord(
        id=token.id,
        secret_hash=_hash(token.id, token.secret),
        expires_at=now + ttl_seconds,
        uses_left=uses,
    )
    return token, record


def redeem(record: TokenRecord | None, *, secret: str, now: float) -> TokenRecord | None:
    """Use a token once.

    Args:
        record: what is kept under the token's id; None where there is nothing.
        secret: the secret that was shown.
        now: Unix time.

    Returns:
        The record to keep instead, or None when this was its last use and the record goes.

    Raises:
        Denied: unknown or wrong (not told apart, and after the same time), expired, or used up.
    """
    stored = record.secret_hash if record else "0" * 64
    right = hmac.compare_digest(stored, _hash(record.id if record else "", secret))
    if record is None or not right:
        raise Denied(
            "the join token is not known here",
            remedy=f"join at the node on which it was made, or {_NEW}",
        )
    if now >= record.expires_at:
        raise Denied("the join token has expired", remedy=_NEW)
    if record.uses_left < 1:
        raise Denied("the join token has been used up", remedy=_NEW)
    if record.uses_left == 1:
        return None
    return replace(record, uses_left=record.uses_left - 1)


def _base32(size: int) -> str:
    return base64.b32encode(secrets.token_bytes(size)).decode().lower()


def _hash(token_id: str, secret: str) -> str:
    return hashlib.sha256(f"pannier-join:{token_id}:{secret}".encode()).hexdigest()
