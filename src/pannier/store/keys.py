"""How keys become bytes, the same way in every store: UTF-8, ordered byte by byte."""

from __future__ import annotations


def encode(key: str) -> bytes:
    """The bytes of ``key``; what :func:`decode` made of foreign bytes comes out unchanged."""
    return key.encode("utf-8", "surrogateescape")


def decode(raw: bytes) -> str:
    """The key of these bytes. Never fails: a foreign key must not stop a watch."""
    return raw.decode("utf-8", "surrogateescape")


def prefix_end(prefix: bytes) -> bytes | None:
    """The first byte string after all that begin with ``prefix``; None where there is none."""
    for last in range(len(prefix) - 1, -1, -1):
        if prefix[last] < 0xFF:
            return prefix[:last] + bytes([prefix[last] + 1])
    return None
