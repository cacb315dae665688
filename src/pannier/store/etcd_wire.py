"""etcd's v3 messages, as its JSON gateway writes them (the parts that are used here).

Bytes are base64 and 64-bit integers are decimal strings on the wire; fields with zero values are
left out. See https://etcd.io/docs/v3.5/dev-guide/apispec/ .
"""

from __future__ import annotations

from typing import TypeVar

import msgspec

T = TypeVar("T")


class Header(msgspec.Struct, frozen=True):
    """Comes with each answer; ``revision`` is the whole store's, and ``cluster_id`` another one after a restore under a new token."""

    revision: int = 0
    cluster_id: str = ""


class KeyValue(msgspec.Struct, frozen=True):
    """One key."""

    key: bytes = b""
    value: bytes = b""
    mod_revision: int = 0


class RangeResponse(msgspec.Struct, frozen=True):
    """Answer to kv/range."""

    header: Header
    kvs: list[KeyValue] = []


class TxnResponse(msgspec.Struct, frozen=True):
    """Answer to kv/txn."""

    header: Header
    succeeded: bool = False


class LeaseGrantResponse(msgspec.Struct, frozen=True):
    """Answer to lease/grant."""

    ID: str
    TTL: int = 0


class LeaseRevokeResponse(msgspec.Struct, frozen=True):
    """Answer to lease/revoke."""

    header: Header


class StatusResponse(msgspec.Struct, frozen=True, rename="camel"):
    """Answer to maintenance/status.

    Attributes:
        errors: raised alarms of any member, and that there is no leader.
        db_size: bytes of the member's database file, with the pages in it that are free.
        db_size_quota: bytes that it may have; 0 from members before 3.6, which do not tell.
    """

    leader: int = 0
    errors: list[str] = []
    db_size: int = 0
    db_size_quota: int = 0


class ErrorBody(msgspec.Struct, frozen=True):
    """An error: alone with an HTTP error status, or as ``error`` within a stream.

    The gRPC code is ``code`` in the former and ``grpc_code`` (3.4) or ``code`` in the latter.
    """

    message: str = ""
    code: int = 0
    grpc_code: int = 0


class LeaseTime(msgspec.Struct, frozen=True):
    """``TTL`` is 0 where there is no such lease."""

    TTL: int = 0


class KeepAliveMessage(msgspec.Struct, frozen=True):
    """One message of lease/keepalive, which is a stream even for one renewal."""

    result: LeaseTime | None = None
    error: ErrorBody | None = None


class Event(msgspec.Struct, frozen=True):
    """A change of a key."""

    kv: KeyValue
    type: str = "PUT"


class WatchResult(msgspec.Struct, frozen=True):
    """A batch of events; never splits a revision."""

    events: list[Event] = []
    canceled: bool = False
    cancel_reason: str = ""
    compact_revision: int = 0


class WatchMessage(msgspec.Struct, frozen=True):
    """One message of a watch."""

    result: WatchResult | None = None
    error: ErrorBody | None = None


def decode(raw: bytes, type_: type[T]) -> T:
    """Read a message.

    Raises:
        msgspec.MsgspecError: these bytes are not such a message.
    """
    return msgspec.json.decode(raw, type=type_, strict=False)
