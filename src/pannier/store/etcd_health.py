"""What a member's own account of itself means: alarms, and the room that its database has left."""

from __future__ import annotations

from typing import Final

from pannier.core.size import format_size
from pannier.store.base import MemberHealth
from pannier.store.etcd_wire import StatusResponse

USUAL_QUOTA_BYTES: Final = 2 << 30
"""The quota of a member that does not tell it: etcd's own default, and what `pannier deploy` sets. A cluster's records take
some megabytes, and etcd starts the slower the larger its database is."""
FULL_SHARE: Final = 0.8
"""From this share of the quota on, somebody is told. A database without compaction then has days left, not minutes."""

_NO_SPACE: Final = "alarm:NOSPACE"
_CORRUPT: Final = "alarm:CORRUPT"

_UNREACHABLE: Final = "see whether it runs and can be reached"
_GIVE_ROOM: Final = (
    "with etcdctl (its API 3), in this order: compact REVISION (endpoint status -w json shows it); "
    "defrag --endpoints=MEMBER, one member after the other"
)


def unreachable(reason: str) -> MemberHealth:
    """A member that gave no answer, or one that nobody can use."""
    return MemberHealth(problem=reason, remedy=_UNREACHABLE)


def judge(status: StatusResponse) -> MemberHealth:
    """How a member is that answers."""
    said = ", ".join(error.strip() for error in status.errors)
    if _NO_SPACE in said:
        return MemberHealth(
            problem=f"etcd takes no writes: a database reached its quota ({format_size(status.db_size)} here; {said})",
            remedy=f"{_GIVE_ROOM}; then alarm disarm. See that each member has --auto-compaction-retention",
        )
    if _CORRUPT in said:
        return MemberHealth(
            problem=f"etcd takes no writes: a member's data differs from the others' ({said})",
            remedy="replace that member by a new one, then etcdctl alarm disarm",
        )
    if said:
        return MemberHealth(problem=said, remedy=_UNREACHABLE)
    if status.db_size >= FULL_SHARE * _quota(status):
        return MemberHealth(
            warning=f"its database is near its quota: {_database(status)}",
            remedy=f"{_GIVE_ROOM}. See that each member has --auto-compaction-retention",
        )
    return MemberHealth()


def _quota(status: StatusResponse) -> int:
    return status.db_size_quota or USUAL_QUOTA_BYTES


def _database(status: StatusResponse) -> str:
    # A quota that was not told must not read as if it were known.
    whose = "" if status.db_size_quota else ", etcd's default, unless it was started with another"
    return f"{format_size(status.db_size)} of {format_size(_quota(status))}{whose}"
