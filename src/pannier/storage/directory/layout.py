"""Where the directory driver keeps what.

::

    ROOT/volumes/VOLUME/
        live-EPOCH/data/             what containers see
        live-EPOCH/sealed-EPOCH      names the generation that the sealed tree is
        generations/GENERATION/data/ a tree that is not a live tree
        manifests/GENERATION         what was in it; kept after the tree has changed
        incoming/GENERATION/         what is being received

There is one tree, which changes its name. ``seal`` adds the ``sealed-7`` mark: the tree is now both
the sealed live tree 7 and its last generation. ``drop_live`` renames ``live-7`` to that generation.
``promote`` renames a generation to ``live-8``, where the mark ``sealed-7`` means nothing. So one
rename is the whole step, and power may fail before or after it.

``origin`` in a tree's directory names a generation that it once was, so that a seal without a change
gives that one again. ``base`` names the generation whose files a received one shares by hard links.
That generation must be removed before anyone writes.

These files have no format of their own: the marker in ROOT (:mod:`pannier.storage.directory.root`) has
the format of all of them.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from dataclasses import astuple, dataclass
from pathlib import Path

from pannier.core.errors import Corrupt, InvalidInput
from pannier.core.generation import Generation
from pannier.host.files import DRAFT, sync_directory, write_file
from pannier.storage.naming import DOOMED, check_id, parse_numbers
from pannier.storage.tree.manifest import Manifest, decode, encode
from pannier.storage.tree.walk import Stamp, remove_tree

_LIVE = "live-"
_KEPT_MANIFESTS = 3

Stamps = dict[str, tuple[Stamp, str]]


@dataclass(frozen=True, slots=True)
class DirectoryHome:
    """The directory of one volume, which need not exist."""

    volume: str
    path: Path

    @classmethod
    def of(cls, volume: str, *, volumes: Path) -> DirectoryHome:
        """The home of ``volume``.

        Raises:
            InvalidInput: an id that could leave its directory.
        """
        check_id(volume)
        return cls(volume, volumes / volume)

    def make(self) -> None:
        """Make the home where there is none."""
        for name in ("generations", "manifests", "incoming"):
            (self.path / name).mkdir(parents=True, mode=0o700, exist_ok=True)
        sync_directory(self.path)
        sync_directory(self.path.parent)

    def live(self, epoch: int) -> Path:
        """The directory of a live tree."""
        return self.path / f"{_LIVE}{epoch}"

    def generation(self, generation: Generation) -> Path:
        """The directory of a generation that is no live tree."""
        return self.path / "generations" / str(generation)

    def incoming(self, generation: Generation) -> Path:
        """The directory that a generation is received into."""
        return self.path / "incoming" / str(generation)

    def epochs(self) -> tuple[int, ...]:
        """Epochs of the live trees, oldest first."""
        names = _names(self.path)
        return tuple(sorted(int(n.removeprefix(_LIVE)) for n in names if n.startswith(_LIVE)))

    def mark(self, epoch: int) -> Path:
        """The file that marks a live tree as sealed and names the generation that it then is."""
        return self.live(epoch) / f"sealed-{epoch}"

    def sealed_as(self, epoch: int) -> Generation | None:
        """The generation that a sealed live tree is, None for one in use."""
        return _read_number(self.mark(epoch))

    def locate(self, generation: Generation) -> Path | None:
        """The directory that has a generation's tree now."""
        found = self.generation(generation)
        if found.is_dir():
            return found
        for epoch in self.epochs():
            if self.sealed_as(epoch) == generation:
                return self.live(epoch)
        return None

    def generations(self) -> tuple[Generation, ...]:
        """Generations whose tree is here, oldest first."""
        found = set(parse_numbers(_names(self.path / "generations")))
        sealed = (self.sealed_as(epoch) for epoch in self.epochs())
        return tuple(sorted(found.union(g for g in sealed if g is not None)))

    def described(self) -> tuple[Generation, ...]:
        """Generations of which at least the manifest is here, oldest first."""
        return tuple(sorted(parse_numbers(_names(self.path / "manifests"))))

    def next_generation(self, epoch: int) -> Generation:
        """The number after the highest known in this epoch."""
        known = {*self.described(), *self.generations()}
        return Generation(
            epoch, max((g.sequence for g in known if g.epoch == epoch), default=0) + 1
        )

    def former_selves(self, directory: Path) -> tuple[Generation, ...]:
        """Generations that the tree in a directory is or once was, newest first."""
        marks = [name for name in _names(directory) if name.startswith(("sealed-", "origin"))]
        found = (_read_number(directory / name) for name in marks)
        return tuple(sorted({g for g in found if g is not None}, reverse=True))

    def settle(self, generation: Generation) -> None:
        """Remove the base whose files a received generation shares: a write would change both."""
        directory = self.generation(generation)
        base = _read_number(directory / "base")
        if base is not None:
            self.doom(self.generation(base))
            (directory / "base").unlink()
            sync_directory(directory)

    def clear_mark(self, generation: Generation, *, epoch: int) -> None:
        """Forget that a generation's tree was once sealed as live tree of ``epoch``."""
        mark = self.generation(generation) / f"sealed-{epoch}"
        if mark.exists():
            mark.rename(mark.with_name("origin"))
            sync_directory(mark.parent)

    def doom(self, path: Path) -> None:
        """Remove a directory. It is renamed first, so that a crash leaves nothing half there."""
        if path.exists():
            doomed = self.path / f"{DOOMED}{path.name}"
            remove_tree(doomed)
            path.rename(doomed)
            sync_directory(path.parent)
            remove_tree(doomed)

    def doom_all(self) -> Path:
        """Rename the home, so that its removal can be finished later, even after a crash.

        Returns:
            The renamed home, which need not exist.
        """
        doomed = self.path.with_name(f"{DOOMED}{self.path.name}")
        if self.path.exists():
            remove_tree(doomed)
            self.path.rename(doomed)
            sync_directory(doomed.parent)
        return doomed

    def manifest(self, generation: Generation) -> Manifest:
        """Read a generation's manifest.

        Raises:
            Corrupt: it is not here, or damaged.
        """
        try:
            stored = (self.path / "manifests" / str(generation)).read_bytes()
        except FileNotFoundError:
            stored = b""
        digest, _, data = stored.partition(b"\n")
        if hashlib.sha256(data).hexdigest().encode() != digest:
            raise Corrupt(
                f"generation {generation} of volume {self.volume} is not described here",
                remedy="send a generation whole",
            )
        return Manifest.of(decode(data))

    def store_manifest(self, generation: Generation, manifest: Manifest) -> None:
        """Keep a generation's manifest, durably."""
        data = encode(manifest.entries.values())
        digest = hashlib.sha256(data).hexdigest().encode()
        write_file(self.path / "manifests" / str(generation), digest + b"\n" + data)

    def prune_manifests(self) -> None:
        """Remove manifests that neither a tree here nor a likely base needs.

        A live epoch's last one always stays, since the next number follows it.
        """
        described = self.described()
        keep = {*described[-_KEPT_MANIFESTS:], *self.generations()}
        for epoch in self.epochs():
            keep.update(self.former_selves(self.live(epoch)))
            keep.update([g for g in described if g.epoch == epoch][-1:])
        for generation in set(described) - keep:
            (self.path / "manifests" / str(generation)).unlink()

    def stamps(self) -> Stamps:
        """The stamps of files when their digests were taken; empty if that is not known."""
        try:
            stored = json.loads(zlib.decompress((self.path / "stamps").read_bytes()))
            return {path: (Stamp(*stamp), digest) for path, stamp, digest in stored}
        except (OSError, ValueError, TypeError, zlib.error):
            return {}  # only a cache: all files are read again

    def store_stamps(self, stamps: Stamps) -> None:
        """Keep stamps for the next seal."""
        rows = [(path, astuple(stamp), digest) for path, (stamp, digest) in stamps.items()]
        write_file(self.path / "stamps", zlib.compress(json.dumps(rows).encode(), 1))


def tidy(entry: Path) -> None:
    """Remove what a crash left half done of one volume, and see that the rest can be read.

    Raises:
        OSError, ValueError, Corrupt: something cannot be removed or read.
    """
    if entry.name.startswith("."):
        remove_tree(entry)
        return
    home = DirectoryHome(entry.name, entry)
    for child in _names(home.path):
        if child.startswith((DRAFT, DOOMED)):
            remove_tree(home.path / child)
    for child in _names(home.path / "incoming"):
        remove_tree(home.path / "incoming" / child)
    for child in _names(home.path / "manifests"):
        if child.startswith(DRAFT):
            (home.path / "manifests" / child).unlink()
    for generation in home.generations():
        if home.generation(generation).is_dir():
            home.settle(generation)


def _names(path: Path) -> list[str]:
    try:
        return os.listdir(path)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _read_number(path: Path) -> Generation | None:
    try:
        return Generation.parse(path.read_text().strip())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except InvalidInput as error:
        raise Corrupt(f"{path} is damaged", remedy="take the volume from another node") from error
