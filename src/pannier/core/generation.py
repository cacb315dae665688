"""Generations: immutable snapshots of a volume, numbered ``epoch.sequence``."""

from __future__ import annotations

import re
from dataclasses import dataclass

from pannier.core.errors import InvalidInput

_FORM = re.compile(r"(0|[1-9][0-9]{0,17})\.(0|[1-9][0-9]{0,17})", re.ASCII)


@dataclass(frozen=True, slots=True, order=True)
class Generation:
    """A generation's number; later epochs sort after all sequences of earlier ones."""

    epoch: int
    sequence: int

    def __str__(self) -> str:
        return f"{self.epoch}.{self.sequence}"

    @classmethod
    def parse(cls, text: str) -> Generation:
        """Read ``7.12``.

        Raises:
            InvalidInput: ``text`` has another form.
        """
        match = _FORM.fullmatch(text)
        if not match:
            raise InvalidInput(
                f"{text!r} is not a generation", remedy="write EPOCH.SEQUENCE, such as 3.17"
            )
        return cls(int(match[1]), int(match[2]))


def newest_common(
    ours: tuple[Generation, ...], theirs: tuple[Generation, ...]
) -> Generation | None:
    """The best base for an incremental transfer, or None when everything must be sent."""
    return max(set(ours) & set(theirs), default=None)
