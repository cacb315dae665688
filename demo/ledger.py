"""What ``ledger.sh`` has written, read back: checksummed lines without a gap or a duplicate."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from demo.story import expect

SCRIPT = (Path(__file__).parent / "ledger.sh").read_text()


@dataclass(frozen=True, slots=True)
class Line:
    """A line, whole. ``at`` is in seconds since boot, on the clock that all machines share."""

    host: str
    number: int
    at: float


def read(text: str, *, synced: bool) -> list[Line]:
    """The lines of a file; one that is garbled ends the story.

    Args:
        synced: whether each line was. Where none was, a power cut may leave zeros in place of the last ones: ext4 commits a
            file's length before the bytes of a block that it had already.
    """
    lines = []
    for raw in text.splitlines():
        if not synced:
            raw = raw.lstrip("\0")
        head, _, digest = raw.rpartition(" ")
        expect(hashlib.md5(f"{head}\n".encode()).hexdigest() == digest, f"garbled: {raw!r}")
        host, number, at = head.split()
        lines.append(Line(host, int(number), float(at)))
    return lines


def check_whole(lines: Sequence[Line], *, first: str, acknowledged: int) -> None:
    """Every number once and in order, and none that was acknowledged missing.

    Args:
        first: the host that wrote first, and nothing any more once another one wrote.
        acknowledged: the last number that it said.
    """
    numbers = [line.number for line in lines]
    expect(numbers == list(range(1, len(numbers) + 1)), "ledger lines are lost or doubled")
    wrote = [host for host, _ in itertools.groupby(lines, key=lambda line: line.host)]
    expect(wrote[:1] == [first] and first not in wrote[1:], f"they wrote in turn: {wrote}")
    kept = sum(line.host == first for line in lines)
    expect(kept >= acknowledged, f"{acknowledged} lines were acknowledged, {kept} are there")
