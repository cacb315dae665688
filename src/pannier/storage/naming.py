"""Names that the drivers give and take."""

from __future__ import annotations

from contextlib import suppress

from pannier.core.errors import InvalidInput
from pannier.core.generation import Generation

DOOMED = ".gone-"
"""Prefix for what is being removed: it is renamed first, then deleted."""


def check_id(volume: str) -> None:
    """Refuse an id that is no plain name.

    Raises:
        InvalidInput: it has a slash, a leading dot or nothing at all.
    """
    if not volume or volume.startswith(".") or "/" in volume or "\0" in volume:
        raise InvalidInput(f"{volume!r} cannot be the id of a volume", remedy="report this bug")


def parse_numbers(names: list[str]) -> list[Generation]:
    """The names that are generations. Other names, such as what people put there, are ignored."""
    found = []
    for name in names:
        with suppress(InvalidInput):
            found.append(Generation.parse(name))
    return found
