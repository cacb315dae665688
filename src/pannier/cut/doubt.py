"""Why a cut cannot be told."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class DoubtKind(enum.Enum):
    """What a doubt is about."""

    GAP = "gap"
    """The trace lost something, or somebody changed it."""
    MISMATCH = "mismatch"
    """The events are not what the kernel's statistics counted."""
    TOO_MUCH = "too-much"
    """More was written than a cut may have."""
    SETTINGS = "settings"
    """The file system or the device does not flush, the device does not count, or has another image."""
    RESTLESS = "restless"
    """Flushes came faster than the spans between them could be read."""


@dataclass(frozen=True, slots=True)
class TraceDoubt:
    """Why there is no cut. What is needed instead is a generation: see :class:`pannier.cut.cutter.Cutter`.

    Attributes:
        detail: for people: "/sys/... is write through".
        remedy: what a person can do; empty where it passes by itself.
    """

    reason: DoubtKind
    detail: str
    remedy: str = ""


class Doubtful(Exception):
    """Carries a doubt to where it is answered, within this room only."""

    def __init__(self, reason: DoubtKind, detail: str, *, remedy: str = "") -> None:
        super().__init__(detail)
        self.doubt = TraceDoubt(reason, detail, remedy)
