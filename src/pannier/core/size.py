"""Sizes in bytes, written as people write them."""

from __future__ import annotations

import re

from pannier.core.errors import InvalidInput

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40, "P": 2**50}
_FORM = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,6})?)\s*([KMGTP]?)(i?B?)", re.ASCII | re.IGNORECASE)
SMALLEST_BYTES = 2**20
LARGEST_BYTES = 2**56


def parse_size(text: str) -> int:
    """Read ``10G``, ``1.5 GiB`` or ``1048576`` as bytes; all units are binary.

    Raises:
        InvalidInput: another form, or outside 1M to 64P.
    """
    match = _FORM.fullmatch(text.strip())
    if not match or (match[3].lower() == "i"):
        raise InvalidInput(
            f"size={text} is not a size", remedy="write a number and K, M, G, T or P, such as 10G"
        )
    size = int(float(match[1]) * _UNITS[match[2].upper()])
    if not SMALLEST_BYTES <= size <= LARGEST_BYTES:
        raise InvalidInput(f"size={text} is out of range", remedy="use a size from 1M to 64P")
    return size


def format_size(size: int) -> str:
    """``1.5G`` for 1610612736: the shortest form that people read at a glance."""
    value, unit = float(size), "B"
    for larger in ("K", "M", "G", "T", "P"):
        if abs(value) < 1024:
            break
        value, unit = value / 1024, larger
    text = f"{value:.1f}".removesuffix(".0")
    return text if unit == "B" else text + unit
