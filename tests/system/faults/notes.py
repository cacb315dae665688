"""What a run of the fault tests has measured, for ``tools/fault_table``."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Note:
    """One fault that was injected.

    Attributes:
        fault: its numbers and what was done, for example ``F01 F02 the holder loses power``.
        outcome: what the user of the volume sees, in a few words.
        pause_seconds: the longest time without an acknowledged record, from the fault on.
        allowed_seconds: what docs/guarantees.md gives for this case; None where it gives none.
        lost: acknowledged records that are gone; a test that notes another number than 0 fails.
        acknowledged: records that were acknowledged in all.
        test: the test's name.
    """

    fault: str
    outcome: str
    pause_seconds: float
    allowed_seconds: float | None
    lost: int
    acknowledged: int
    test: str


@dataclass(slots=True)
class Notes:
    """The notes of one run, and the load of the machine that it ran on."""

    file: Path
    kept: list[Note] = field(default_factory=list)

    def add(self, note: Note) -> None:
        """Keep a note, on disk at once: the run may be ended at any time."""
        self.kept.append(note)
        self.file.write_text(json.dumps([asdict(each) for each in self.kept], indent=1) + "\n")
