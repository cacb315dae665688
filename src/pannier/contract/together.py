"""What the holders of volumes tell each other of snapshots at one moment."""

from __future__ import annotations

from dataclasses import dataclass, field

from pannier.contract.views import SnapshotView
from pannier.contract.words import TogetherPhase


@dataclass(frozen=True, slots=True, kw_only=True)
class MadeGeneration:
    """A generation that is to be a snapshot of a volume. ``volume_id`` guards against a newer volume of the same name.

    Attributes:
        made_at: Unix time, as its holder has it.
    """

    volume: str
    volume_id: str
    generation: str
    made_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TogetherView:
    """How far a holder is with its part in snapshots of several volumes at one moment.

    Attributes:
        made: with ``made``, its generations.
        snapshots: with ``done``.
        hook_failures: with ``done``, what hooks that may fail said.
        hooks_failed: with ``done``, what post-snapshot hooks said that may not fail.
    """

    phase: TogetherPhase
    made: list[MadeGeneration] = field(default_factory=list)
    snapshots: list[SnapshotView] = field(default_factory=list)
    hook_failures: list[str] = field(default_factory=list)
    hooks_failed: list[str] = field(default_factory=list)
