"""Arguments that click does not know how to read."""

from __future__ import annotations

from collections.abc import Sequence

import click

from pannier.core.duration import parse_duration
from pannier.core.errors import InvalidInput


def read_duration(context: click.Context, parameter: click.Parameter, text: str) -> float:
    """A callback that reads ``90s``, ``1h30m`` or ``2d`` as seconds; a bare number is seconds."""
    try:
        return parse_duration(text)
    except InvalidInput as error:
        words = f"{error.message}: {error.remedy}"
        raise click.BadParameter(words, ctx=context, param=parameter) from error


def read_duration_if_any(
    context: click.Context, parameter: click.Parameter, text: str | None
) -> float | None:
    """The same where it may be left out: None then."""
    return None if text is None else read_duration(context, parameter, text)


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
