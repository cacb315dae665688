"""Generations: immutable snapshots of a volume, numbered ``epoch.sequence``, and each with its identity."""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass

from pannier.core.errors import InvalidInput

GENERATION_PATTERN = r"(0|[1-9][0-9]{0,17})\.(0|[1-9][0-9]{0,17})(?:-([0-9a-f]{8}))?"
_FORM = re.compile(GENERATION_PATTERN, re.ASCII)


@dataclass(frozen=True, slots=True, order=True)
class Generation:
    """A generation; later epochs sort after all sequences of earlier ones.

    A disk that was set back, as to a snapshot of its virtual machine, gives the same numbers again to
    other bytes. Generations with the same number and another identity are not the same.

    Attributes:
        epoch, sequence: its number.
        identity: eight hex digits that were chosen at random; empty where the driver gives none.
    """

    epoch: int
    sequence: int
    identity: str = ""

    def __str__(self) -> str:
        number = f"{self.epoch}.{self.sequence}"
        return f"{number}-{self.identity}" if self.identity else number

    @property
    def number(self) -> tuple[int, int]:
        """What it sorts by."""
        return self.epoch, self.sequence

    @classmethod
    def parse(cls, text: str) -> Generation:
        """Read ``7.12`` or ``7.12-0f3a94c1``.

        Raises:
            InvalidInput: ``text`` has another form.
        """
        match = _FORM.fullmatch(text)
        if not match:
            raise InvalidInput(
                f"{text!r} is not a generation", remedy="write EPOCH.SEQUENCE, such as 3.17"
            )
        return cls(int(match[1]), int(match[2]), match[3] or "")


def new_identity() -> str:
    """An identity for a generation that is being made."""
    return secrets.token_hex(4)


def best_base(
    generation: Generation, ours: tuple[Generation, ...], theirs: tuple[Generation, ...]
) -> Generation | None:
    """What ``generation`` is best sent as the difference to: the newest before it that both ends have, else the oldest after
    it; None when everything must be sent."""
    common = set(ours) & set(theirs)
    before = max((each for each in common if each < generation), default=None)
    return before or min(common, default=None)
