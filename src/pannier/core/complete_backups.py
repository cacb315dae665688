"""Which backups in a repository are complete, which of these stay, and what of the others goes. Pure.

restic also leaves a backup of which it could not read all files, and tells only whoever waits for its end. So a backup has a tag
with the name of its run, and a mark is put beside it when that has ended well: a small one of a tag with the same name. What has no
mark is no backup, whatever happened to the node. Those of earlier versions have no name of a run, and count.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from pannier.core.backup_plans import Retention
from pannier.core.backups import StoredBackup
from pannier.core.schedules import Period, newest_in_slots

RUN = "run"
"""The tag of a backup that names its run."""
END = "end"
"""The tag of a mark that names the run which has ended well."""
OF = "of"
"""The tag of a mark that has the volume's id. It has none of a backup's own tags: who asks restic for the latest one of a volume gets a
backup."""
BYTES = "bytes"
"""The tag of a mark that says what the backup's files have in all. Complete backups get it from their marks."""


@dataclass(frozen=True, slots=True)
class Settled:
    """What is to become of the backups of a repository.

    Attributes:
        stay: complete backups.
        go: complete backups that need not stay.
        rest: backups that never got a mark, and marks without a backup. They go, too.
    """

    stay: list[StoredBackup]
    go: list[StoredBackup]
    rest: list[StoredBackup]


def complete(found: Iterable[StoredBackup]) -> list[StoredBackup]:
    """The complete backups among backups and marks, oldest first."""
    everything = list(found)
    marks = {each.tags[END]: each for each in everything if END in each.tags}
    good = [
        _marked(each, marks[each.tags[RUN]]) if RUN in each.tags else each
        for each in everything
        if END not in each.tags and (RUN not in each.tags or each.tags[RUN] in marks)
    ]
    return sorted(good, key=lambda each: each.made_at)


def _marked(backup: StoredBackup, mark: StoredBackup) -> StoredBackup:
    said = {BYTES: mark.tags[BYTES]} if BYTES in mark.tags else {}
    return replace(backup, tags={**backup.tags, **said})


def bytes_of(backup: StoredBackup) -> int | None:
    """What the files of a complete backup have in all; None where nobody has said."""
    said = backup.tags.get(BYTES, "")
    return int(said) if said.isdecimal() else None


def settle(
    found: Sequence[StoredBackup], retention: Retention, *, now: float, most: float
) -> Settled:
    """What becomes of backups and marks, all of one cluster.

    Args:
        now: Unix time. most: seconds after which no run can be under way any more. What is younger and lacks its other half
            stays: it may get it yet, and a listing may show one half only.
    """
    good = complete(found)
    volumes: dict[str, list[StoredBackup]] = {}
    for each in good:
        volumes.setdefault(each.tags.get("id", ""), []).append(each)
    kept = {each.id for of_one in volumes.values() for each in _kept(retention, of_one)}
    stay = [each for each in good if each.id in kept]
    go = [each for each in good if each.id not in kept]
    gone = {each.tags[RUN] for each in go if RUN in each.tags}
    known = {each.tags[RUN] for each in found if RUN in each.tags}
    complete_ids = {each.id for each in good}
    rest = []
    for each in found:
        if each.id in complete_ids:
            continue
        old = now - unix_of(each) > most
        mark = each.tags.get(END)
        if mark in gone or (old and (mark is None or mark not in known)):
            rest.append(each)
    return Settled(stay, go, rest)


def is_about(found: StoredBackup, volume_id: str) -> bool:
    """Whether a backup or a mark is of a volume."""
    return volume_id in (found.tags.get("id"), found.tags.get(OF))


def unix_of(backup: StoredBackup) -> float:
    """When it was begun, as Unix time."""
    return datetime.fromisoformat(backup.made_at).timestamp()


def _kept(retention: Retention, of_one: Sequence[StoredBackup]) -> list[StoredBackup]:
    newest_first = list(reversed(of_one))
    times = [unix_of(each) for each in newest_first]
    places = set(range(min(retention.last, len(newest_first))))
    for period, count in (
        (Period.HOURLY, retention.hourly),
        (Period.DAILY, retention.daily),
        (Period.WEEKLY, retention.weekly),
        (Period.MONTHLY, retention.monthly),
    ):
        places.update(newest_in_slots(period, count, times))
    return [newest_first[place] for place in sorted(places)]
