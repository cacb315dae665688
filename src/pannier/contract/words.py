"""The states, phases and kinds that views name. In JSON they are these words."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Self


class Word(StrEnum):
    """Base of all of them. A newer node may say a word that is not here: it is kept as it is.

    Such a word is equal to none of the others, and ``known`` is false.
    """

    @classmethod
    def _missing_(cls, value: object) -> Self | None:
        if not isinstance(value, str):
            return None
        word = str.__new__(cls, value)
        word._name_, word._value_ = "", value
        return word

    @property
    def known(self) -> bool:
        """Whether this version has the word."""
        return bool(self._name_)

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: Any) -> Self:
        return self


class NodeState(Word):
    """Of a node, as the lists show it."""

    UP = "up"
    DOWN = "down"
    DRAINED = "drained"
    """Up, and kept out of placement."""


class CertificateKind(Word):
    """Of a certificate: whose it is."""

    NODE = "node"
    USER = "user"
    AUTHORITY = "authority"
    """The cluster's own, or etcd's: they have issued the others."""
    STORE = "store"
    """A node's, with which it uses etcd."""
    ETCD = "etcd"
    """A member's of etcd."""


class CertificateState(Word):
    """Of a certificate, by the clock of the node that tells it."""

    GOOD = "good"
    DUE = "due"
    """It is renewed by itself about now."""
    ENDING = "ending"
    """It ends soon, and should have been renewed by now."""
    ENDED = "ended"
    EARLY = "early"
    """It does not count yet: a clock is wrong."""
    UNSEEN = "unseen"
    """Nobody could look at it."""


class HolderState(Word):
    """Whether the lease of a volume's holder is alive."""

    UP = "up"
    DOWN = "down"


class MovePhase(Word):
    """Of a volume's move."""

    COPYING = "copying"
    """The volume is in use; rounds and bytes grow."""
    WAITING = "waiting"
    """All but the last bytes are there; it waits for those who use the volume."""
    SWITCHING = "switching"
    """The last delta, and the change of the holder."""
    DONE = "done"
    FAILED = "failed"


class ImportPhase(Word):
    """Of an import."""

    COPYING = "copying"
    """Its source may be in use."""
    WAITING = "waiting"
    """All but what is changed meanwhile is copied; it waits for those who use the source."""
    REST = "rest"
    """What was changed since is copied; nobody may write any more."""
    COMPARING = "comparing"
    """Checksums of all files."""
    SWITCHING = "switching"
    """The volume is there; the service is started with it."""
    DONE = "done"


class BackupPhase(Word):
    """Of long work with backups."""

    SNAPSHOT = "snapshot"
    """The volume's snapshot is made, from which it is read."""
    READING = "reading"
    """What is in the snapshot is put at the target."""
    REMOVING = "removing"
    """Older backups that need not stay."""
    RESTORING = "restoring"
    COMPARING = "comparing"
    """What is on the disk with what is in the backup."""
    CHECKING = "checking"
    """A drill's command runs."""
    VERIFYING = "verifying"
    """All that is at the target is read."""
    DONE = "done"


class ConversionPhase(Word):
    """Of a conversion."""

    COPYING = "copying"
    """The volume may be in use."""
    WAITING = "waiting"
    """All but what is changed meanwhile is copied; it waits for those who use the volume."""
    REST = "rest"
    """What was changed since is copied; nobody can use it."""
    COMPARING = "comparing"
    """Checksums of all files."""
    DONE = "done"


class ServicePhase(Word):
    """Of a Swarm service's move."""

    COPYING = "copying"
    """The service runs."""
    PRE_MOVE = "pre-move"
    """Its hook runs."""
    SWITCHING = "switching"
    """Swarm has been told."""
    STARTING = "starting"
    """The old container has ended."""
    POST_MOVE = "post-move"
    """Its hook runs."""
    DONE = "done"


class TogetherPhase(Word):
    """Of one holder's part in snapshots of several volumes at one moment, as it comes to them."""

    PREPARED = "prepared"
    """The pre-snapshot hooks have run."""
    FROZEN = "frozen"
    """All its volumes stand still."""
    MADE = "made"
    """They have their generations, and stood still until then. They go on."""
    NAMED = "named"
    """The generations are snapshots."""
    DONE = "done"
    """The post-snapshot hooks have run, and the copies in sync have them, or their time is over."""
    GIVEN_UP = "given-up"
    """Only asked for: another holder could not come to the next phase."""


class HandoverState(Word):
    """A holder's answer to a node that wants the volume."""

    GIVEN = "given"
    """The store's record names the asking node now."""
    COPYING = "copying"
    """Data is on its way."""
    IN_USE = "in_use"
    """The bulk is being copied meanwhile."""


class CheckState(Word):
    """What was found of a copy that was read to the last byte."""

    WHOLE = "whole"
    READ = "read"
    """It can be read; there was nothing to compare it with."""
    MADE_ANEW = "made anew"
    """It was damaged; the holder sends it again."""
    MENDED = "mended"
    """Blocks of it were damaged, and are as they were written again."""
    DAMAGED = "damaged"
    """The holder's own data is damaged."""
    DIFFERS = "differs"
    """It is not what the holder has, and nobody can prove theirs; or it could not be made anew."""
    NOTHING = "nothing"
    UNKNOWN = "unknown"
    """The node did not answer."""


class FileSystemState(Word):
    """What was found of the file system in a copy."""

    SOUND = "sound"
    DAMAGED = "damaged"
    NOTHING = "nothing"
    UNKNOWN = "unknown"
    """The node did not answer."""


class SyncWay(Word):
    """How sync calls are made durable."""

    RECORDS = "records"
    GENERATIONS = "generations"
    """Slower, and right."""


class Level(Word):
    """How bad a finding is."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


class EventKind(Word):
    """What happened. Those of volumes are their histories' entries with ``volume.`` before them."""

    VOLUME_CREATED = "volume.created"
    VOLUME_MOVED = "volume.moved"
    VOLUME_TAKEN_OVER = "volume.taken over"
    VOLUME_RECOVERED = "volume.recovered"
    VOLUME_PUT_BACK = "volume.put back"
    """Its record, into a store that had been restored from an older backup."""
    VOLUME_REMOVED = "volume.removed"
    VOLUME_RESTORED = "volume.restored"
    VOLUME_PURGED = "volume.purged"
    """It left the trash for ever."""
    VOLUME_FREED = "volume.freed"
    """Generations of it that only saved sending gave their room, since a pool was nearly full."""
    VOLUME_LOST = "volume.lost"
    VOLUME_STOPPED = "volume.stopped"
    """Its pool is nearly full: whoever writes to it stands still."""
    VOLUME_CONTINUED = "volume.continued"
    VOLUME_MOUNTED_ANEW = "volume.mounted anew"
    """The disk had refused a write."""
    VOLUME_DAMAGED = "volume.damaged"
    """What its holder has is proved to be other than what was written."""
    VOLUME_UNREADABLE = "volume.unreadable"
    """The disk of its holder does not give back a part of it."""
    VOLUME_PROVED_RIGHT = "volume.proved right"
    """A copy has what its holder has otherwise."""
    VOLUME_DIFFERS = "volume.differs"
    """A copy is not what its holder has, and nobody can prove theirs."""
    VOLUME_MENDED = "volume.mended"
    VOLUME_MADE_ANEW = "volume.made anew"
    VOLUME_SENT_ANEW = "volume.sent anew"
    """Differences did not arrive at a copy again and again, so that it is sent everything."""
    VOLUME_SET_APART = "volume.set apart"
    """A copy could be neither tidied up nor read: it is made anew, and what was there is kept for a person."""
    VOLUME_WHOLE_AGAIN = "volume.whole again"
    VOLUME_OPTIONS_CHANGED = "volume.options changed"
    VOLUME_ASKED_FOR_OTHERWISE = "volume.asked for otherwise"
    """A service asks for other options than it has, and does not get them."""
    VOLUME_SNAPSHOT_TAKEN = "volume.snapshot taken"
    VOLUME_SNAPSHOT_REMOVED = "volume.snapshot removed"
    VOLUME_SNAPSHOT_MISSED = "volume.snapshot missed"
    """By a schedule: it made none for some time, and goes on."""
    VOLUME_ROLLED_BACK = "volume.rolled back"
    """To one of its snapshots."""
    VOLUME_CONVERTED = "volume.converted"
    """Its files were copied into a new volume with other options, which has the name now."""
    VOLUME_BACKED_UP = "volume.backed up"
    VOLUME_BACKUP_FAILED = "volume.backup failed"
    VOLUME_BACKUPS_NOT_REMOVED = "volume.backups not removed"
    """A new one was made, and the older ones that need not stay are still there."""
    VOLUME_BACKUP_DRILLED = "volume.backup drilled"
    """A backup came back whole."""
    VOLUME_BACKUP_DRILL_FAILED = "volume.backup drill failed"
    NODE_JOINED = "node.joined"
    NODE_LEFT = "node.left"
    NODE_DRAINED = "node.drained"
    NODE_UNDRAINED = "node.undrained"
    NODE_UP = "node.up"
    NODE_DOWN = "node.down"
