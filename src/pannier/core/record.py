"""What every record that outlives a process has: a format, and room for fields of later versions.

A cluster is upgraded node by node, so an older node reads and changes what a newer one wrote. A later
version may therefore

- add a field that older nodes can do without: they keep it and write it back (:class:`Part`);
- write a higher ``format``, where an older node must not act on the record without knowing more: it
  shows the record, and refuses to serve or change it (:class:`Record`).

A field never changes its name, its type or its meaning; a new value of an enumeration needs a higher
format. A field that describes only one part, such as one grant or one line of history, belongs in that
part and goes with it. A field that must outlive the part belongs in the record itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from pannier.core.errors import NewerFormat


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A record, or a part of one that has fields of its own.

    Attributes:
        unknown: the fields that this version does not know, by name, as raw JSON; None without any.
            Comparisons of two parts ignore them. No stored field may have this name.
    """

    unknown: Mapping[str, Any] | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Record(Part):
    """A record as it is stored.

    Attributes:
        known_format: the highest format that this version can act on.
        format: what a version must know to act on this record.
    """

    known_format: ClassVar[int] = 1

    format: int = 1

    @property
    def is_newer(self) -> bool:
        """Whether this version may show the record, and must not act on it."""
        return self.format > self.known_format

    def check_format(self, what: str) -> None:
        """Refuse to act on a record that a newer version wrote.

        Args:
            what: names the record in the message.

        Raises:
            NewerFormat: it has a format that this version does not know.
        """
        if self.is_newer:
            raise newer_format(what, self.format, known=self.known_format)


def newer_format(what: str, format: int, *, known: int) -> NewerFormat:
    """The error for a record that only a newer version can act on."""
    return NewerFormat(
        f"{what} was written by a newer version of Pannier (format {format}; this one knows {known})",
        remedy="install that version on this node, then try again; nothing was changed",
    )
