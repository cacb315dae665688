"""Records as JSON, in the store and in files of this node.

Fields that this version does not know are kept at every level and written back
(:mod:`pannier.core.record`). Nearly all records have none, so they are looked for only where strict
decoding fails.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, replace
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import msgspec

from pannier.core.errors import Corrupt, StorageError
from pannier.core.generation import Generation
from pannier.core.record import Part, Record, newer_format
from pannier.host.state_files import StateFile

RecordType = TypeVar("RecordType", bound=Record)


def encode(record: Record) -> bytes:
    """A record as JSON, with the unknown fields of all its parts."""
    return msgspec.json.encode(_plain(record))


def decode(
    raw: bytes, kind: type[RecordType], *, what: str, remedy: str, shown: bool = False
) -> RecordType:
    """Read what :func:`encode` wrote, here or in another version.

    Args:
        what: names the record in errors.
        remedy: what to do where the record is damaged.
        shown: the record is only shown, so one of a newer format is accepted.

    Raises:
        NewerFormat: only a newer version can act on it, or read it; Corrupt: it is no such record.
    """
    try:
        record = _read(raw, kind)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        format = _format(raw)
        if format > kind.known_format:
            raise newer_format(what, format, known=kind.known_format) from error
        raise Corrupt(f"{what} cannot be read: {error}", remedy=remedy) from error
    if not shown:
        record.check_format(what)
    return record


def read_file(file: StateFile, kind: type[RecordType], *, remedy: str) -> RecordType | None:
    """The record in a file; None where nothing was written yet.

    Raises:
        NewerFormat, Corrupt: as :func:`decode`; StorageError: the file cannot be read.
    """
    try:
        raw = file.read()
    except OSError as error:
        raise StorageError(f"{file.path} cannot be read: {error}", remedy="see the disk") from error
    return None if raw is None else decode(raw, kind, what=str(file.path), remedy=remedy)


# -- unknown fields ---------------------------------------------------------------------------------


def _read(raw: bytes, kind: type[RecordType]) -> RecordType:
    try:
        strict = msgspec.json.decode(raw, type=_strict_of(kind))
    except msgspec.ValidationError:
        found: RecordType = _with_unknown(msgspec.json.decode(raw, type=kind), raw)
        return found
    return msgspec.convert(strict, kind, from_attributes=True)


def _with_unknown(value: Any, raw: bytes | msgspec.Raw) -> Any:
    """A decoded value whose parts have the fields of ``raw`` that decoding left out."""
    if isinstance(value, Part):
        names = _names_of(value)
        pieces = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
        if isinstance(value, Record) and "format" not in pieces:
            raise msgspec.ValidationError("Object missing required field `format`")
        known = {
            name: _with_unknown(getattr(value, name), piece)
            for name, piece in pieces.items()
            if name in names
        }
        unknown = {name: piece.copy() for name, piece in pieces.items() if name not in names}
        return replace(value, **known, unknown=unknown or None)
    if isinstance(value, tuple | list):
        items = msgspec.json.decode(raw, type=list[msgspec.Raw])
        return type(value)(map(_with_unknown, value, items))
    if isinstance(value, dict):
        pieces = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
        return {key: _with_unknown(item, pieces[key]) for key, item in value.items()}
    return value


def _plain(value: Any) -> Any:
    """A value with its parts as dictionaries."""
    if isinstance(value, Part):
        plain = {name: _plain(getattr(value, name)) for name in _names_of(value)}
        return {**plain, **value.unknown} if value.unknown else plain
    if isinstance(value, Generation) and not value.identity:
        return {"epoch": value.epoch, "sequence": value.sequence}  # as before there were identities
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return value


def _format(raw: bytes) -> int:
    """The format of a record that cannot be read otherwise; 0 where even that cannot be read."""
    try:
        return msgspec.json.decode(raw, type=_Formatted).format
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return 0


class _Formatted(msgspec.Struct):
    format: int = 0


def _names_of(part: Part) -> tuple[str, ...]:
    kind: Any = type(part)
    return _names(kind)


@functools.cache
def _names(kind: type[Any]) -> tuple[str, ...]:
    """The stored fields of a part."""
    return tuple(field.name for field in fields(kind) if field.name != "unknown")


def _strict_of(kind: Any) -> type[msgspec.Struct]:
    return _strict(kind)


@functools.cache
def _strict(kind: type[Any]) -> type[msgspec.Struct]:
    """A type with the same fields that refuses all others: a dataclass ignores what it does not know."""
    hints = get_type_hints(kind)
    known = [
        (field.name, _strictly(hints[field.name]), _default(field))
        for field in fields(kind)
        if field.name != "unknown"
    ]
    return msgspec.defstruct(
        kind.__name__, known, kw_only=True, forbid_unknown_fields=True, module=__name__
    )


def _strictly(hint: Any) -> Any:
    """A type annotation with the strict form of each part in it."""
    if isinstance(hint, type) and issubclass(hint, Part):
        return _strict_of(hint)
    arguments = tuple(map(_strictly, get_args(hint)))
    if isinstance(hint, UnionType):
        return functools.reduce(operator.or_, arguments)
    return get_origin(hint)[arguments] if arguments else hint


def _default(field: Field[Any]) -> Any:
    if field.name == "format":
        return msgspec.NODEFAULT
    if field.default_factory is not MISSING:
        return msgspec.field(default_factory=field.default_factory)
    return msgspec.NODEFAULT if field.default is MISSING else field.default
