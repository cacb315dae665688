"""Durations in seconds, written as people write them."""

from __future__ import annotations

import re

from pannier.core.errors import InvalidInput

_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_PART = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,3})?)([smhd]?)", re.ASCII)


def parse_duration(text: str) -> float:
    """Read ``90s``, ``1h30m`` or ``2d`` as seconds; a bare number is seconds.

    Raises:
        InvalidInput: another form.
    """
    parts = _PART.findall(text)
    whole = "".join(number + unit for number, unit in parts)
    bare = any(not unit for _, unit in parts)
    if not parts or whole != text or (bare and len(parts) > 1):
        raise InvalidInput(f"{text!r} is not a duration", remedy="write 90s, 10m, 1h or 2d")
    return sum(float(number) * _UNITS[unit] for number, unit in parts)
