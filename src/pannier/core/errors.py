"""The one error tree.

::

    PannierError                    code              exit  HTTP
     +- InvalidInput                invalid-input        2   400   the caller's input cannot be accepted
     +- NotFound                    not-found            3   404
     |   +- VolumeNotFound          volume-not-found
     |   +- NodeNotFound            node-not-found
     +- Conflict                    conflict             4   409   the present state does not allow it
     |   +- AlreadyExists           already-exists
     |   +- VolumeInUse             volume-in-use
     |   +- NotHolder               not-holder
     |   +- Stale                   stale                          an older epoch, or a lost race
     |   +- NotFollowing            not-following                  a copy lacks what came before
     |   +- NeedsCopy               needs-copy                     options that cannot be changed in place
     +- Denied                      denied               5   403   certificate or token not accepted
     +- Unavailable                 unavailable          6   503   try again; nothing was changed
     |   +- StoreUnavailable        store-unavailable
     |   +- PeerUnavailable         peer-unavailable
     |   +- EngineUnavailable       engine-unavailable
     |   +- JournalFull             journal-full
     |   +- KeyMissing              key-missing                    of what is encrypted, on this node
     |   +- TargetUnavailable       target-unavailable             a backup target, as seen from a node
     |       +- RepositoryMissing   repository-missing
     +- OutcomeUnknown              outcome-unknown      6   503   it may or may not have happened
     +- DeadlineExceeded            deadline             8   504
     +- ProgramFailed               program-failed       7   500   a program of the system's
     +- BackupFailed                backup-failed        7   500
     +- StorageError                storage              7   500
         +- PoolMissing             pool-missing
         +- DiskFailed              disk-failed
         +- SetBack                 set-back
         +- PoolFull                pool-full                507
         +- ForeignData             foreign-data             409
         +- NewerFormat             newer-format             409
         +- Corrupt                 corrupt
         +- Unreadable              unreadable

Every error says what happened and, in ``remedy``, what to do next. ``code`` is an API: scripts and
the other nodes match on it, and :func:`from_code` rebuilds the class on the far side.
"""

from __future__ import annotations

from typing import ClassVar


class PannierError(Exception):
    """Base of all errors that a user may see."""

    code: ClassVar[str] = "internal"
    exit_status: ClassVar[int] = 1
    http_status: ClassVar[int] = 500

    def __init__(self, message: str, *, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        """The message and the remedy, joined by a semicolon: one line for Docker's own errors."""
        return f"{self.message}; {self.remedy}" if self.remedy else self.message


class InvalidInput(PannierError):
    """The caller's input cannot be accepted; nothing was changed."""

    code = "invalid-input"
    exit_status = 2
    http_status = 400


class NotFound(PannierError):
    """The named thing does not exist."""

    code = "not-found"
    exit_status = 3
    http_status = 404


class VolumeNotFound(NotFound):
    """No volume of this name in the cluster."""

    code = "volume-not-found"


class NodeNotFound(NotFound):
    """No node of this name in the cluster."""

    code = "node-not-found"


class Conflict(PannierError):
    """The present state does not allow the request; nothing was changed."""

    code = "conflict"
    exit_status = 4
    http_status = 409


class AlreadyExists(Conflict):
    """The name is taken by something different."""

    code = "already-exists"


class VolumeInUse(Conflict):
    """A container uses the volume."""

    code = "volume-in-use"


class NotHolder(Conflict):
    """This node does not hold the volume."""

    code = "not-holder"


class Stale(Conflict):
    """The caller acted on an older epoch or revision: it lost a race."""

    code = "stale"


class NotFollowing(Conflict):
    """A record does not follow what the copy has: it lacks something that came before."""

    code = "not-following"


class NeedsCopy(Conflict):
    """A volume's options cannot be changed in place: its files are to be copied, and who asks has to know that."""

    code = "needs-copy"


class Denied(PannierError):
    """The certificate or token does not allow this."""

    code = "denied"
    exit_status = 5
    http_status = 403


class Unavailable(PannierError):
    """Something needed does not answer; nothing was changed, and a later try may succeed."""

    code = "unavailable"
    exit_status = 6
    http_status = 503


class StoreUnavailable(Unavailable):
    """The cluster's store cannot be reached."""

    code = "store-unavailable"


class StoreIsOlder(Unavailable):
    """The store knows less of a volume than the nodes do: it was restored from an older backup."""

    code = "store-is-older"


class PeerUnavailable(Unavailable):
    """Another node cannot be reached."""

    code = "peer-unavailable"


class EngineUnavailable(Unavailable):
    """The Docker engine cannot be reached."""

    code = "engine-unavailable"


class JournalFull(Unavailable):
    """A copy's journal has no room for a record; a generation makes room, and serves instead of the record."""

    code = "journal-full"


class KeyMissing(Unavailable):
    """The key of something that is encrypted is not on this node."""

    code = "key-missing"


class TargetUnavailable(Unavailable):
    """A backup target cannot be reached from a node, or the node lacks what that needs."""

    code = "target-unavailable"


class RepositoryMissing(TargetUnavailable):
    """There is no repository at a backup target, as a node sees it."""

    code = "repository-missing"


class OutcomeUnknown(PannierError):
    """The request was sent and no answer came: read the state again before acting on it."""

    code = "outcome-unknown"
    exit_status = 6
    http_status = 503


class DeadlineExceeded(PannierError):
    """The time allowed ran out."""

    code = "deadline"
    exit_status = 8
    http_status = 504


class ProgramFailed(PannierError):
    """A program of this machine's system failed, was too slow or is not installed."""

    code = "program-failed"
    exit_status = 7
    http_status = 500


class BackupFailed(PannierError):
    """A backup was not made, or not brought back, whole; nothing of it stays."""

    code = "backup-failed"
    exit_status = 7
    http_status = 500


class StorageError(PannierError):
    """A disk, file system or storage command failed."""

    code = "storage"
    exit_status = 7
    http_status = 500


class PoolMissing(StorageError):
    """The pool is not there or not mounted."""

    code = "pool-missing"


class DiskFailed(StorageError):
    """The disk with this node's volumes takes no writes any more."""

    code = "disk-failed"


class SetBack(StorageError):
    """The disk of this node has an older state of a volume than it had.

    Args:
        newest: the newest generation of the copy that proves it.
    """

    code = "set-back"

    def __init__(self, message: str, *, remedy: str = "", newest: str = "") -> None:
        super().__init__(message, remedy=remedy)
        self.newest = newest


class PoolFull(StorageError):
    """The pool has no room."""

    code = "pool-full"
    http_status = 507


class ForeignData(StorageError):
    """The device or file holds something that is not ours; it was not touched."""

    code = "foreign-data"
    http_status = 409


class NewerFormat(StorageError):
    """A newer version wrote this, and this one cannot act on it; nothing was changed."""

    code = "newer-format"
    http_status = 409


class Corrupt(StorageError):
    """Data is not what it should be."""

    code = "corrupt"


class Unreadable(StorageError):
    """The disk of the node that sends does not give back what is to be sent. It says nothing of who receives."""

    code = "unreadable"


def _tree(root: type[PannierError]) -> dict[str, type[PannierError]]:
    """Error classes by code. A class without a code of its own comes back as the class above it."""
    found: dict[str, type[PannierError]] = {}
    for child in root.__subclasses__():
        found.update(_tree(child))
    if "code" in vars(root):
        found[root.code] = root
    return found


def from_code(code: str, message: str, *, remedy: str = "") -> PannierError:
    """The error that another node or the daemon reported, as its own class again."""
    return _tree(PannierError).get(code, PannierError)(message, remedy=remedy)
