"""Arguments that click does not know how to read."""

from __future__ import annotations

import re
from collections.abc import Sequence

import click

_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_PART = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,3})?)([smhd]?)", re.ASCII)


def read_duration(context: click.Context, parameter: click.Parameter, text: str) -> float:
    """A callback that reads ``90s``, ``1h30m`` or ``2d`` as seconds; a bare number is seconds."""
    parts = _PART.findall(text)
    whole = "".join(number + unit for number, unit in parts)
    bare = any(not unit for _, unit in parts)
    if not parts or whole != text or (bare and len(parts) > 1):
        raise click.BadParameter(
            f"{text!r} is not a duration: write 90s, 10m, 1h or 2d", ctx=context, param=parameter
        )
    return sum(float(number) * _UNITS[unit] for number, unit in parts)


def read_pairs(
    context: click.Context, parameter: click.Parameter, pairs: Sequence[str]
) -> dict[str, str]:
    """A callback that reads repeated ``key=value``."""
    found: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise click.BadParameter(
                f"{pair!r} is not of the form key=value", ctx=context, param=parameter
            )
        if key in found:
            raise click.BadParameter(f"{key} is given twice", ctx=context, param=parameter)
        found[key] = value
    return found
