"""Snapshots: generations of a volume with a name, which stay until a person or their time removes them.

They are in the volume's record and nowhere else. Whoever keeps a generation that the record names does not tidy it
away. So a removal takes the name away, and each node then tidies by itself.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from pannier.core.errors import Conflict, InvalidInput
from pannier.core.generation import Generation
from pannier.core.record import Part

MOST_SNAPSHOTS = 1024
"""Of one volume. Without labels they take some 350 KB of the volume's record. The record is written as a whole at each change, and
the store takes 1.5 MiB at once."""
_MOST_LABEL_LETTERS = 512
"""Of all labels of a snapshot together: they are for people."""
_MOST_LABEL_BYTES = 512 << 10
"""Of the labels of all snapshots of a volume, as JSON: with the rest of the record, some two thirds of what the store takes."""
MOST_NAME_LETTERS = 64
SNAPSHOT_PATTERN = r"^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,63}$"
_NAME = re.compile(SNAPSHOT_PATTERN, re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot(Part):
    """A generation that has a name.

    Attributes:
        made_at: Unix time, for people.
        labels: free text for people and tools.
        keep_until: Unix time from which it may be removed by itself; None: never.
        slot_start: Unix time at which the slot begins for which a schedule made it (:mod:`pannier.core.schedules`); None: a person
            made it. Only a schedule's own are removed by one.
    """

    name: str
    generation: Generation
    made_at: float
    labels: dict[str, str] = field(default_factory=dict)
    keep_until: float | None = None
    slot_start: float | None = None


def check_snapshot_name(name: str) -> str:
    """Return ``name`` if it can name a snapshot.

    Raises:
        InvalidInput: it cannot.
    """
    if _NAME.fullmatch(name) and not name.endswith("\n"):
        return name
    raise InvalidInput(
        f"{name[:40]!r} cannot name a snapshot",
        remedy=f"use 1 to {MOST_NAME_LETTERS} letters, digits, '_', '.' or '-', the first a letter or digit",
    )


def check_labels(labels: Mapping[str, str]) -> dict[str, str]:
    """Return the labels of a snapshot if they are not too long.

    Raises:
        InvalidInput: they are.
    """
    if sum(len(key) + len(value) for key, value in labels.items()) > _MOST_LABEL_LETTERS:
        raise InvalidInput(
            "the labels are too long",
            remedy=f"use at most {_MOST_LABEL_LETTERS} letters in all labels of a snapshot",
        )
    return dict(labels)


def check_all_labels(snapshots: Iterable[Snapshot]) -> None:
    """Whether the labels of all snapshots of a volume are few enough for its record.

    Raises:
        Conflict: they are not.
    """
    labels = [each.labels for each in snapshots if each.labels]
    if len(json.dumps(labels, ensure_ascii=False).encode(errors="replace")) > _MOST_LABEL_BYTES:
        raise Conflict(
            "the labels of the volume's snapshots are too many together",
            remedy="use shorter ones, or remove snapshots that have some: pannier volume snapshot rm",
        )


def over(snapshots: Iterable[Snapshot], *, now: float) -> tuple[Snapshot, ...]:
    """Those whose time is over.

    Args:
        now: Unix time.
    """
    return tuple(
        each for each in snapshots if each.keep_until is not None and now >= each.keep_until
    )
