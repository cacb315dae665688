"""Where a volume came from that did not begin empty."""

from __future__ import annotations

from dataclasses import dataclass

from pannier.core.generation import Generation
from pannier.core.record import Part


@dataclass(frozen=True, slots=True, kw_only=True)
class CloneOrigin(Part):
    """What a clone began as.

    Attributes:
        volume, volume_id: the other volume's name then, and its id.
        snapshot: the name of its snapshot; empty where the clone was made of what it was at that moment.
        generation: of the other volume.
    """

    volume: str
    volume_id: str
    snapshot: str = ""
    generation: Generation

    @property
    def source(self) -> str:
        """As people write it: ``NAME`` or ``NAME@SNAPSHOT``."""
        return f"{self.volume}@{self.snapshot}" if self.snapshot else self.volume

    @property
    def described(self) -> str:
        """With the generation, for people."""
        return f"{self.source}, generation {self.generation}"

    @property
    def base(self) -> Generation:
        """The clone's first generation, from which its epoch 1 begins. It has the same bytes, and so the same identity: each
        node that has the one can make the other by itself."""
        return Generation(0, 1, self.generation.identity)
