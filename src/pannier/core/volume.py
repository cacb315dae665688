"""Volumes: what a user asked for, and the record that the store keeps of it."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import ClassVar

from pannier.core.clone_origin import CloneOrigin
from pannier.core.encryption import SealedKey
from pannier.core.errors import AlreadyExists, Conflict, InvalidInput, NotFound
from pannier.core.generation import Generation
from pannier.core.line import OnTop
from pannier.core.record import Part, Record
from pannier.core.schedules import Schedule
from pannier.core.snapshots import MOST_SNAPSHOTS, Snapshot, check_all_labels

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{1,127}", re.ASCII)
HISTORY_LIMIT = 50
LINEAGE_LIMIT = 50
ENCRYPTED_FORMAT = 2
"""Of the record of an encrypted volume: an older node could not mount it, and must not take it over."""
SNAPSHOT_LINES = 10
"""So many of a history's lines are about snapshots, and so many about backups."""


class Durability(StrEnum):
    """What a node's sudden death may cost (docs/guarantees.md)."""

    FSYNC = "fsync"
    INTERVAL = "interval"
    NONE = "none"


def is_name(name: str) -> bool:
    """Whether it can name a volume."""
    return _NAME.fullmatch(name) is not None


class UnheldWrites(StrEnum):
    """What is done about writes of containers that no sync call waits for (docs/sync.md)."""

    WARN = "warn"
    REFUSE = "refuse"


def check_name(name: str) -> str:
    """Return ``name`` if it can name a volume.

    Docker's own rule for volume names, with a length that leaves room for a file name around it.

    Raises:
        InvalidInput: it cannot.
    """
    if is_name(name):
        return name
    shown = name if len(name) <= 40 else name[:40] + "..."
    if len(name) > 128:
        raise InvalidInput(
            f"volume name {shown!r} has {len(name)} characters", remedy="use at most 128"
        )
    raise InvalidInput(
        f"{shown!r} cannot name a volume",
        remedy="use two or more letters, digits, '_', '.' or '-', the first a letter or digit",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeSpec(Part):
    """What the user asked for. Field order is the order of the documentation.

    Attributes:
        size: bytes that the volume may take, or None for no limit of its own.
        copies: nodes that keep the data.
        durability: what a node's death may cost.
        interval: seconds between generations sent to the other copies, while there are writes.
        min_copies: how many copies, the holder's included, must be in sync to acknowledge a sync call.
        unheld_writes: whether writes that a volume with durability=fsync cannot hold are told, or refused.
        driver: where the bytes live: ``btrfs`` (a tree of files on a btrfs pool), ``image`` (one file on
            a btrfs pool) or ``directory``.
        nodes: names of nodes wished for, in order of preference; the first one available makes it.
        uid, gid, mode: of the volume's root; Docker's copy-up from an image overrides them.
        labels: free text for people and tools.
        protected: nobody and nothing removes it, before a person takes that back.
        snapshots: which snapshots are made and kept of it by themselves; None: none, but for those of policies.
        backup: when it is backed up by itself (:func:`pannier.core.backup_plans.parse_plan`); empty: never.
        drill: when a backup of it is tried by itself (:func:`pannier.core.drill_plans.parse_drill_plan`); empty: never.
        encrypted: its files are encrypted on each disk.
    """

    size: int | None = None
    copies: int = 1
    durability: Durability = Durability.NONE
    interval: float = 1.0
    min_copies: int = 1
    unheld_writes: UnheldWrites = UnheldWrites.WARN
    driver: str = "btrfs"
    nodes: tuple[str, ...] = ()
    uid: int = 0
    gid: int = 0
    mode: int = 0o755
    labels: dict[str, str] = field(default_factory=dict)
    protected: bool = False
    snapshots: Schedule | None = None
    backup: str = ""
    drill: str = ""
    encrypted: bool = False

    @property
    def layout(self) -> str:
        """How a btrfs pool keeps it: ``image`` or ``tree``; empty elsewhere."""
        return {"image": "image", "btrfs": "tree"}.get(self.driver, "")


@dataclass(frozen=True, slots=True)
class Grant(Part):
    """The record that makes ``node`` the holder."""

    node: str
    epoch: int


@dataclass(frozen=True, slots=True)
class Beginning(Part):
    """The generation with which an epoch began, and what on top of it.

    An earlier version does not say that, and put on top what was there. Now nothing may be missing.
    """

    epoch: int
    base: Generation
    on_top: OnTop = OnTop.ALL


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryEntry(Part):
    """One change in a volume's life. ``at`` is Unix time, for people only; nothing decides by it."""

    at: float
    what: str
    node: str
    epoch: int
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Declared(Part):
    """What services said last of one of a volume's options (:mod:`pannier.core.declarations`).

    Attributes:
        text: as it was typed.
        due: it is taken over once that is possible.
    """

    text: str
    due: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume(Record):
    """The store's record of a volume, changed only by compare-and-swap.

    Attributes:
        name: the identity that users see.
        id: tells two volumes apart that bore the same name at different times; names the data on disk.
        replicas: nodes that keep the other copies; the holder sends them what is written.
        in_sync: those of the replicas that have every write acknowledged as durable, and lag no
            further than is promised. Only the holder changes it, and only these may take over.
        base: the generation with which the holder's epoch began; None if it began empty.
        lineage: how the latest epochs began, oldest first.
        removed_at: Unix time at which it went to the trash; None outside the trash.
        removed_in: the revision of the record that took it there, once that was replaced by another; None before.
        changes: how often the record was written: a store in which this is less was restored from an older backup.
        declared: what services said last of its options, by option.
        snapshots: its generations that have a name, in the order in which they got it.
        origin: what it is a clone of; None where it began empty.
        key: with which its files are encrypted. Such a record has format 2. None where they are not.
    """

    known_format: ClassVar[int] = 2

    name: str
    id: str
    spec: VolumeSpec
    grant: Grant
    replicas: tuple[str, ...] = ()
    in_sync: tuple[str, ...] = ()
    base: Generation | None = None
    lineage: tuple[Beginning, ...] = ()
    created_at: float
    removed_at: float | None = None
    removed_in: int | None = None
    history: tuple[HistoryEntry, ...] = ()
    changes: int = field(default=0, compare=False)
    declared: dict[str, Declared] = field(default_factory=dict)
    snapshots: tuple[Snapshot, ...] = ()
    origin: CloneOrigin | None = None
    key: SealedKey | None = None

    def granted(
        self,
        node: str,
        *,
        base: Generation,
        on_top: OnTop,
        replicas: tuple[str, ...],
        in_sync: tuple[str, ...] = (),
    ) -> Volume:
        """This record with ``node`` as the holder of the next epoch, which begins with ``base``.

        ``in_sync`` are replicas that have ``base``.
        """
        epoch = self.grant.epoch + 1
        return replace(
            self,
            grant=Grant(node, epoch),
            base=base,
            lineage=(*self.lineage, Beginning(epoch, base, on_top))[-LINEAGE_LIMIT:],
            replicas=replicas,
            in_sync=tuple(name for name in in_sync if name in replicas),
        )

    def encrypted_with(self, key: SealedKey) -> Volume:
        """This record with its key, which it has from the beginning, or with the same one sealed anew."""
        return replace(self, key=key, format=ENCRYPTED_FORMAT)

    @property
    def on_top(self) -> OnTop:
        """What the present epoch begins with, beyond :attr:`base`."""
        last = self.lineage[-1] if self.lineage else None
        return last.on_top if last is not None and last.epoch == self.grant.epoch else OnTop.ALL

    def accepting_loss(self) -> Volume:
        """This record, which has a base, and whose present epoch begins with what is left of what it should begin with."""
        assert self.base is not None
        epoch = self.grant.epoch
        before = tuple(each for each in self.lineage if each.epoch != epoch)
        present = next(
            (each for each in self.lineage if each.epoch == epoch), Beginning(epoch, self.base)
        )
        return replace(self, lineage=(*before, replace(present, on_top=OnTop.WHAT_IS_HERE)))

    def grew_out_of(self, generation: Generation) -> bool:
        """Whether the present content has ``generation`` among its ancestors.

        What a former holder wrote after the generation with which its successor began is a stray.
        """
        if generation.epoch >= self.grant.epoch:
            return generation.epoch == self.grant.epoch
        later = [each for each in self.lineage if each.epoch > generation.epoch]
        base = min(later, key=lambda each: each.epoch).base if later else self.base
        return base is not None and (generation == base or generation.number < base.number)

    def check_not_protected(self) -> None:
        """Whether it may be removed, or given up once it was.

        Raises:
            Conflict: it is protected.
        """
        if not self.spec.protected:
            return
        first = "" if self.removed_at is None else f"pannier volume restore {self.id}, then "
        raise Conflict(
            f"volume {self.name} is protected: it is not removed",
            remedy=f"if it is to go: {first}pannier volume set {self.name} -o protected=false",
        )

    @property
    def named(self) -> frozenset[Generation]:
        """The generations that are snapshots: no node tidies them away."""
        return frozenset(each.generation for each in self.snapshots)

    def snapshot(self, name: str) -> Snapshot:
        """One of its snapshots.

        Raises:
            NotFound: it has none of that name.
        """
        for each in self.snapshots:
            if each.name == name:
                return each
        raise NotFound(
            f"volume {self.name} has no snapshot {name}",
            remedy=f"pannier volume snapshot ls {self.name} shows all",
        )

    def check_may_add(self, name: str) -> None:
        """Whether it can have one more snapshot, of that name.

        Raises:
            AlreadyExists: it has one of that name. Conflict: it has as many as a volume can have.
        """
        if any(each.name == name for each in self.snapshots):
            raise AlreadyExists(
                f"volume {self.name} has a snapshot {name} already", remedy="use another name"
            )
        if len(self.snapshots) >= MOST_SNAPSHOTS:
            raise Conflict(
                f"volume {self.name} has {len(self.snapshots)} snapshots, and no volume can have more",
                remedy="remove some: pannier volume snapshot rm",
            )

    def with_snapshot(self, snapshot: Snapshot) -> Volume:
        """This record with one more snapshot.

        Raises:
            As :meth:`check_may_add`; Conflict: also where the labels of all would be too many.
        """
        self.check_may_add(snapshot.name)
        snapshots = (*self.snapshots, snapshot)
        check_all_labels(snapshots)
        return replace(self, snapshots=snapshots)

    def with_snapshot_entry(self, entry: HistoryEntry) -> Volume:
        """As :meth:`with_entry`, and of its lines on snapshots only the last few stay: many of them must not drive the others
        out."""
        return self._with_few(entry, "snapshot ")

    def with_backup_entry(self, entry: HistoryEntry) -> Volume:
        """The same for lines on backups."""
        return self._with_few(entry, "back")

    def _with_few(self, entry: HistoryEntry, of: str) -> Volume:
        ours = [each for each in self.history if each.what.startswith(of)]
        old = ours[: max(0, len(ours) + 1 - SNAPSHOT_LINES)]
        kept = tuple(each for each in self.history if each not in old)
        return replace(self, history=kept).with_entry(entry)

    def without_snapshots(self, gone: Collection[Snapshot]) -> Volume:
        """This record without these snapshots."""
        return replace(self, snapshots=tuple(each for each in self.snapshots if each not in gone))

    def with_entry(self, entry: HistoryEntry) -> Volume:
        """This record with one more line of history; the oldest lines beyond the limit go."""
        return replace(self, history=(*self.history, entry)[-HISTORY_LIMIT:])
