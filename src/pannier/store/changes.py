"""The limits of a transaction, checked before it goes to any store.

All stores share the limits of the narrowest one (etcd), so that what works in a test or on a single
node also works in a cluster.
"""

from __future__ import annotations

from typing import Final

from pannier.core.errors import InvalidInput, Stale
from pannier.store.base import Change

MAX_CHANGES: Final = 128
"""Steps in one transaction (etcd's ``--max-txn-ops``)."""

MAX_BYTES: Final = 1 << 20
"""Keys and values of one transaction together (etcd refuses requests over 1.5 MiB)."""


def check(changes: tuple[Change, ...]) -> None:
    """Refuse a transaction that some store could not do.

    Raises:
        ValueError: the caller's mistake: no change, a key twice, an empty key, a revision below 0,
            or a lease on a deletion.
        InvalidInput: more than :data:`MAX_CHANGES` changes or :data:`MAX_BYTES` bytes.
    """
    if not changes:
        raise ValueError("a transaction needs at least one change")
    if len({change.key for change in changes}) != len(changes):
        raise ValueError("a transaction may change each key only once")
    for change in changes:
        _check_one(change)
    if len(changes) > MAX_CHANGES:
        raise InvalidInput(
            f"a transaction of {len(changes)} changes is more than the store can do at once",
            remedy=f"change at most {MAX_CHANGES} keys at a time",
        )
    size = sum(len(change.key) + len(change.value or b"") for change in changes)
    if size > MAX_BYTES:
        raise InvalidInput(
            f"a record of {size} bytes is too large for the store",
            remedy=f"records may have {MAX_BYTES} bytes; shorten labels or options",
        )


def _check_one(change: Change) -> None:
    if not change.key:
        raise ValueError("a key must not be empty")
    if change.expect < 0:
        raise ValueError(f"revision {change.expect} of {change.key!r} cannot be")
    if change.value is None and change.lease is not None:
        raise ValueError(f"the deletion of {change.key!r} cannot be tied to a lease")


def lost_race(key: str) -> Stale:
    """The error for a key that was not at its expected revision."""
    return Stale(f"{key} was changed by someone else meanwhile", remedy="read it again")


def lease_gone(lease: str) -> Stale:
    """The error for a lease that has run out, was revoked or never was."""
    return Stale(f"lease {lease} has run out or was revoked", remedy="take a new lease")
