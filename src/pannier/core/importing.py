"""What is imported into a new volume, and what a node notes of an import until it has ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path, PurePosixPath

from pannier.core.errors import Conflict, InvalidInput
from pannier.core.options import FROM
from pannier.core.record import Part, Record

MOST_SOURCE_LETTERS = 4096
"""Of a source as text: what the kernel takes as a path."""
_FROM_SOURCE = ("uid", "gid", "mode")
"""Options of a volume's root directory, which has the owner and the permissions of what is imported."""


class SourceKind(StrEnum):
    """Where it is."""

    LOCAL = "local"
    """A volume of Docker's own driver."""
    DIRECTORY = "dir"


@dataclass(frozen=True, slots=True)
class ImportSource:
    """What is imported: ``place`` is a volume's name, or an absolute path. As text: ``local:NAME`` or ``dir:/PATH``."""

    kind: SourceKind
    place: str

    @classmethod
    def parse(cls, text: str) -> ImportSource:
        """Read what a person typed.

        Raises:
            InvalidInput: it is neither of the two.
        """
        kind, colon, place = text.partition(":")
        fits = {
            "local": bool(place) and "/" not in place,
            "dir": PurePosixPath(place).is_absolute() and "\0" not in place,
        }
        if not colon or not fits.get(kind) or len(text) > MOST_SOURCE_LETTERS:
            raise InvalidInput(
                f"{text[:80]!r} is nothing that can be imported",
                remedy="write local:VOLUME for a local volume of Docker's, or dir:/PATH",
            )
        return cls(SourceKind(kind), place)

    def __str__(self) -> str:
        return f"{self.kind}:{self.place}"


def check_import_options(options: Mapping[str, str]) -> None:
    """Refuse what an import cannot give.

    Raises:
        InvalidInput: the root's owner or permissions are asked for.
    """
    if given := [name for name in _FROM_SOURCE if name in options]:
        raise InvalidInput(
            f"{', '.join(given)}: the root of an imported volume has the owner and the permissions of its source",
            remedy="leave it out, or change the source",
        )


def check_begins_here(options: Mapping[str, str], *, nodes: tuple[str, ...], here: str) -> None:
    """Refuse what does not go with a volume that is filled on this node before it has its name.

    Args:
        nodes: those that the options name.

    Raises:
        InvalidInput: another volume to begin with is asked for; Conflict: another node is to hold the volume.
    """
    if FROM.name in options:
        raise InvalidInput(
            f"{FROM.name}={options[FROM.name]}: this volume begins with what is put into it",
            remedy="leave it out, or clone that volume: pannier volume clone",
        )
    if nodes and nodes[0] != here:
        raise Conflict(
            f"the volume is filled on node {here}, and is to be made on {nodes[0]}",
            remedy=f"leave nodes out, and then: pannier volume move NAME {nodes[0]}",
        )


def check_apart(source: Path, *targets: Path) -> None:
    """Refuse a source that has the new volume in it, which would never end. All are real paths.

    Raises:
        InvalidInput: one of the targets is in the source.
    """
    if any(target.is_relative_to(source) for target in targets):
        raise InvalidInput(
            f"{source} has in it what Pannier keeps its volumes in",
            remedy="name the directory with just what is to be imported",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportNote(Part):
    """An import or a conversion that was begun on this node.

    Attributes:
        name: the new volume's.
        driver: has its tree.
        record: the volume's record as JSON, once the tree is whole: from then on the cluster may know it. Empty before.
        service: the Swarm service that was stopped for it; empty for none.
        replicas: how many tasks that had.
        replaces: the id of the volume that has the name, and is to give it away; empty where nobody has it.
    """

    name: str
    driver: str
    record: str = ""
    service: str = ""
    replicas: int = 0
    replaces: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportNotes(Record):
    """The file with them, by the volume's id."""

    begun: dict[str, ImportNote] = field(default_factory=dict)
