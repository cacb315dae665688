"""A volume as the API answers it: listed, live, remembered, or as a node that does not hold it knows it.

In a module of its own, because these are structs with a tag, and ``pannier --help`` does without msgspec.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from pannier.contract.views import CopyView, KeptRecordView, SyncView, TransferView
from pannier.contract.words import HolderState


class VolumeView(Struct, frozen=True, kw_only=True, tag_field="facts", tag="listed"):
    """A volume as every node remembers it; it is what lists show.

    The views of one volume are one flat JSON object each; ``facts`` says which of them it is.

    Attributes:
        holder_state: whether the holder's lease is alive.
        in_sync: nodes whose copies have everything that was acknowledged.
        created_at: RFC 3339, UTC.
        doubt: why what the store says of it is not believed; empty where it is.
        cloned_from: what it is a clone of, ``NAME@SNAPSHOT`` or ``NAME``; empty where it began empty.
        schedule: which snapshots are made of it by themselves: "hourly:24 (by nightly)", with the policies that say so; empty
            for none.
        last_scheduled: the newest of them; None where there is none.
    """

    name: str
    id: str
    holder: str
    holder_state: HolderState
    epoch: int
    driver: str
    options: dict[str, str]
    created_at: str
    in_sync: list[str] = []
    doubt: str = ""
    cloned_from: str = ""
    schedule: str = ""
    last_scheduled: str | None = None


class LiveVolumeView(VolumeView, frozen=True, kw_only=True, tag="live"):
    """A volume with what only its holder knows.

    Attributes:
        generation: the newest one on the holder; None without any.
        generations: all on the holder, oldest first.
        in_use_by: containers (``name`` or a process) that use it.
        copies: the other copies that the holder keeps up to date.
        copies_on: nodes that were found to have a copy, the holder first.
        mountpoint: on the holder.
        transfer: the hand-over or move that is under way.
        sync_calls: sync calls of containers that wait on the holder now.
        sync_waiting_seconds: for how long the first of them has waited.
        quarantine: why the holder cannot give its data to containers; empty where it can.
        size_bytes, free_bytes: of the volume's own file system; None where it has none, or is not attached.
        inodes, free_inodes: how many files there can be, and how many more; None likewise.
        stands_still: why nobody can write to it now; empty where they can.
        not_held: who uses it past the barrier: what they sync is not on the copies when the call returns.
        unheld_writes: who could write to it past the barrier, and by what: as a file opened with O_DSYNC, or Linux AIO.
        direct: whether its writes go past the page cache; None where it has no file system, or is not attached.
        sync: how sync calls are made durable; None where no copy is kept up to date.
        damage: what is known of bytes that a disk did not give back as they were written, node by node.
    """

    generation: str | None
    generations: list[str]
    used_bytes: int
    in_use_by: list[str]
    copies: list[CopyView]
    copies_on: list[str]
    mountpoint: str
    transfer: TransferView | None
    sync_calls: int
    sync_waiting_seconds: float
    quarantine: str = ""
    size_bytes: int | None = None
    free_bytes: int | None = None
    inodes: int | None = None
    free_inodes: int | None = None
    stands_still: str = ""
    not_held: list[str] = []
    unheld_writes: list[str] = []
    direct: bool | None = None
    damage: list[str] = []
    sync: SyncView | None = None


class RememberedVolumeView(VolumeView, frozen=True, kw_only=True, tag="remembered"):
    """A volume whose holder did not answer, with the nodes that were found to have a copy.

    The fields of a live view are there for the programs that read them, and empty.
    """

    copies_on: list[str]
    generation: None = None
    generations: None = None
    used_bytes: None = None
    in_use_by: None = None
    copies: None = None
    mountpoint: None = None
    transfer: None = None
    sync_calls: Literal[0] = 0
    sync_waiting_seconds: Literal[0] = 0
    quarantine: Literal[""] = ""
    size_bytes: None = None
    free_bytes: None = None
    inodes: None = None
    free_inodes: None = None
    stands_still: Literal[""] = ""
    not_held: None = None
    unheld_writes: None = None
    direct: None = None
    damage: None = None
    sync: None = None


class VolumeCopyView(VolumeView, frozen=True, kw_only=True, tag="copy"):
    """A volume as a node that does not hold it answers another node.

    Attributes:
        generations: all that it has, oldest first; without any it has no copy.
        generation: the newest of them.
        copies_on: that node, where it has a copy that lacks nothing of what it has confirmed.
        record: the newest that it keeps; None where no record is newer than its generations.
        lacks: why it may lack what it has confirmed; empty where it lacks nothing.
    """

    generation: str | None
    generations: list[str]
    copies_on: list[str]
    record: KeptRecordView | None = None
    lacks: str = ""
