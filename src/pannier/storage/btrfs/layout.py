"""Where the btrfs driver keeps what, and what counts as whole."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from pannier.core.errors import Corrupt
from pannier.core.generation import Generation
from pannier.host.files import DRAFT
from pannier.storage.btrfs import ioctl
from pannier.storage.btrfs.ioctl import SubvolumeInfo
from pannier.storage.naming import DOOMED, check_id, parse_numbers

_LIVE = "live-"
_QUARANTINE = "quarantine"


@dataclass(frozen=True, slots=True)
class Home:
    """The directory of one volume, which need not exist."""

    volume: str
    path: Path

    @classmethod
    def of(cls, volume: str, *, volumes: Path) -> Home:
        """The home of ``volume``.

        Raises:
            InvalidInput: an id that could leave its directory.
        """
        check_id(volume)
        return cls(volume, volumes / volume)

    def doom(self) -> Path:
        """Rename the home, so that its removal can be finished later, even after a crash.

        Returns:
            The renamed home, which need not exist.
        """
        doomed = self.path.with_name(f"{DOOMED}{self.path.name}")
        if self.path.exists():
            if doomed.exists():  # of an earlier deletion of this id, not finished
                destroy_home(doomed)
            self.path.rename(doomed)
        return doomed

    def live(self, epoch: int) -> Path:
        """The subvolume of a live tree."""
        return self.path / f"{_LIVE}{epoch}"

    def tree(self, generation: Generation) -> Path:
        """The subvolume of a generation."""
        return self.path / "generations" / str(generation) / "tree"

    def incoming(self, generation: Generation) -> Path:
        """The directory that a generation is received into."""
        return self.path / "incoming" / str(generation)

    def arriving(self) -> tuple[Generation, ...]:
        """Generations of which something was received, and that have not got their name yet."""
        return tuple(sorted(parse_numbers(_names(self.path / "incoming"))))

    @property
    def workbench(self) -> Path:
        """The subvolume that small differences are applied to."""
        return self.path / "incoming" / "workbench" / "tree"

    def epochs(self) -> tuple[int, ...]:
        """Epochs of the live trees, oldest first."""
        names = _names(self.path)
        return tuple(sorted(int(n.removeprefix(_LIVE)) for n in names if n.startswith(_LIVE)))

    def generations(self) -> tuple[Generation, ...]:
        """Whole generations, oldest first."""
        return tuple(g for g in self._numbers() if is_whole(self.tree(g)))

    def _numbers(self) -> tuple[Generation, ...]:
        return tuple(sorted(parse_numbers(_names(self.path / "generations"))))

    def make_generation(self, live: Path, *, epoch: int, identity: str) -> Generation:
        """Snapshot a live tree, durably. Its number follows the highest ever given in this epoch,
        deleted ones included.
        """
        given = [number.sequence for number in self._numbers() if number.epoch == epoch]
        generation = Generation(epoch, max(given, default=0) + 1, identity)
        tree = self.tree(generation)
        tree.parent.mkdir()
        try:
            # Flushes the tree, commits the transaction: durable, directory included.
            ioctl.create_snapshot(live, target=tree, read_only=True)
        except OSError:
            tree.parent.rmdir()
            raise
        return generation

    def drop_generation(self, generation: Generation) -> None:
        """Remove a generation. If it was the epoch's last, its number is still not given again."""
        tree = self.tree(generation)
        if ioctl.is_subvolume(tree):
            ioctl.destroy_subvolume(tree)
        self.forget_old_numbers()

    def same(self, first: Generation, second: Generation) -> bool:
        """Whether two generations of one live tree have the same content."""
        found = (ioctl.subvolume_info(self.tree(each)) for each in (first, second))
        return len({each.ctransid for each in found}) == 1

    def saved_as(self, live: Path) -> Generation | None:
        """The generation that has exactly the content of a live tree, as far as it was flushed.

        That is its own last snapshot, or the one that it was promoted from, if the content's
        transaction number is still the same.
        """
        tree = ioctl.subvolume_info(live)
        for generation in reversed(self.generations()):
            try:
                found = ioctl.subvolume_info(self.tree(generation))
            except FileNotFoundError:
                continue  # it was deleted since it was listed
            if _related(found, tree):
                return generation if found.ctransid == tree.ctransid else None
        return None

    def make(self, *, quotas: bool, note: str = "") -> None:
        """Make the home if there is none: a subvolume whose quota group sums up all within.

        A subvolume made inside another one, also by receiving, joins that one's groups by itself.

        Args:
            note: the name of an empty file that is in a new home from its beginning; none if it is empty.
        """
        if self.path.exists():
            return
        draft = self.path.with_name(f"{DRAFT}{self.path.name}")
        if draft.exists():
            destroy_home(draft)
        ioctl.create_subvolume(draft)
        draft.chmod(0o700)
        for name in ("generations", "incoming"):
            (draft / name).mkdir()
        if note:
            (draft / note).touch()
        if quotas:
            number = ioctl.subvolume_info(draft).id
            group = ioctl.group_of(number)
            ioctl.create_group(draft, group=group)
            ioctl.join_group(draft, subvolume_id=number, group=group)
        draft.rename(self.path)

    def quarantine(self) -> None:
        """Move all generations aside, where they do not count. The newest is moved last: once it is
        gone, all are.

        Their numbers are not given again. A generation that is being received on top of one of them
        is found by the next round of the loop, or its receiver sees that the base is gone.
        """
        self.discard_workbench()
        quarantine = self.path / _QUARANTINE
        quarantine.mkdir(exist_ok=True)
        while found := self.generations():
            for generation in found:
                target, place = quarantine / str(generation), self.tree(generation).parent
                _remove_with_subvolumes(target)  # from an earlier quarantine
                place.rename(target)
                place.mkdir()
        self.forget_old_numbers()

    @property
    def has_quarantined(self) -> bool:
        """Whether something is in quarantine."""
        return (self.path / _QUARANTINE).exists()

    def drop_quarantined(self) -> None:
        """Remove what is in quarantine."""
        quarantine = self.path / _QUARANTINE
        for child in _children(quarantine):
            _remove_with_subvolumes(child)
        with suppress(FileNotFoundError):
            quarantine.rmdir()

    def checked(self, generation: Generation | None, *, writable: bool) -> Path:
        """A new snapshot of a generation, or of the newest live tree, which nobody else changes.

        One that is writable and one that is not may be there at once.
        """
        tree = self.live(max(self.epochs(), default=0))
        if generation is not None:
            tree = self.tree(generation)
        check = self._check(writable=writable)
        _remove_with_subvolumes(check)
        check.mkdir()
        target = check / "tree"
        ioctl.create_snapshot(tree, target=target, read_only=not writable)
        return target

    def discard_checked(self, *, writable: bool) -> None:
        """Remove what :meth:`checked` made."""
        _remove_with_subvolumes(self._check(writable=writable))

    def _check(self, *, writable: bool) -> Path:
        return self.path / "incoming" / ("repair" if writable else "check")

    @property
    def mended(self) -> Path:
        """The directory of what takes the place of a damaged generation, while it is being made."""
        return self.path / "incoming" / "mended"

    def discard_mended(self) -> None:
        """Remove what is there: what was not finished, or was replaced."""
        _remove_with_subvolumes(self.mended)

    @property
    def shown(self) -> Path:
        """The directory for what is shown to a person, while it is being mounted."""
        return self.path / "incoming" / "shown"

    def discard_incoming(self, generation: Generation) -> None:
        """Remove what a broken transfer left."""
        _remove_with_subvolumes(self.incoming(generation))

    def prepare_workbench(self, base: Path | None) -> Path:
        """The workbench, with exactly the content of ``base``, or empty."""
        work = self.workbench
        if base is not None and self._workbench_is(base):
            return work
        self.discard_workbench()
        work.parent.mkdir()
        if base is None:
            ioctl.create_subvolume(work)
        else:
            ioctl.create_snapshot(base, target=work, read_only=False)
        return work

    def _workbench_is(self, base: Path) -> bool:
        """Whether the workbench is there and has exactly the content of a generation."""
        if not ioctl.is_subvolume(self.workbench):
            return False
        there, wanted = (ioctl.subvolume_info(tree) for tree in (self.workbench, base))
        return _related(wanted, there) and there.ctransid == wanted.ctransid

    def take_workbench(self, generation: Generation, *, base: Path) -> bool:
        """Receive a generation into the workbench, if that has exactly the content of ``base``; False if not."""
        if not self._workbench_is(base):
            return False
        self.workbench.parent.rename(self.incoming(generation))
        return True

    def keep_as_workbench(self, generation: Generation) -> None:
        """Make what a generation was received into, and was made a snapshot of, the workbench."""
        self.discard_workbench()
        self.incoming(generation).rename(self.workbench.parent)

    def discard_workbench(self) -> None:
        """Remove the workbench where there is one; it is made anew when it is needed."""
        _remove_with_subvolumes(self.workbench.parent)

    def forget_old_numbers(self) -> None:
        """Remove empty directories of deleted generations.

        The highest number of each epoch that has a live tree stays, and so does the highest of all.
        """
        numbers = self._numbers()
        for number, following in pairwise(numbers):
            if number.epoch == following.epoch or not self.live(number.epoch).exists():
                with suppress(OSError):  # not empty: it still has its tree
                    self.tree(number).parent.rmdir()


def _related(saved: SubvolumeInfo, tree: SubvolumeInfo) -> bool:
    """Whether one of them is a snapshot of the other."""
    return saved.parent_uuid == tree.uuid or tree.parent_uuid == saved.uuid


def stands_on(tree: Path, base: Path) -> bool:
    """Whether a writable subvolume was begun with this very generation: as its snapshot, or as the workbench that it is
    the last snapshot of. One that was mended is another one."""
    return _related(ioctl.subvolume_info(base), ioctl.subvolume_info(tree))


def is_whole(tree: Path) -> bool:
    """Whether a generation counts: made by a snapshot, or moved here after it was verified.

    One that is deleted at this very moment does not.
    """
    try:
        return ioctl.is_subvolume(tree) and ioctl.is_read_only(tree)
    except FileNotFoundError:
        return False


def existing_tree(home: Home, generation: Generation) -> Path:
    """The subvolume of a generation that is here.

    Raises:
        Corrupt: it is not.
    """
    tree = home.tree(generation)
    if not is_whole(tree):
        raise Corrupt(
            f"generation {generation} of volume {home.volume} is not here, or not whole",
            remedy="take another generation, or let this node catch up first",
        )
    return tree


def destroy_home(home: Path) -> None:
    """Remove a home that was renamed for removal, or never got its name, and all in it."""
    parts = (home / name for name in ("generations", "incoming", _QUARANTINE))
    for place in (home, *(child for part in parts for child in _children(part))):
        for child in _children(place):
            if ioctl.is_subvolume(child):
                ioctl.destroy_subvolume(child)
    group = ioctl.group_of(ioctl.subvolume_info(home).id)
    ioctl.destroy_subvolume(home)
    with suppress(
        OSError
    ):  # it may be charged until the cleaner is done; an idle group is harmless
        ioctl.remove_group(home.parent, group=group)


def sweep_groups(path: Path, *, seen: set[int]) -> set[int]:
    """Remove the quota groups that deleted subvolumes have left behind.

    Args:
        seen: what the last call returned. Only groups that were idle then too are removed, and so
            none of a subvolume that is just being made.

    Returns:
        The idle groups that are not in ``seen``; none if quotas were turned off.
    """
    try:
        idle = ioctl.idle_groups(path)
    except OSError:
        return set()
    for group in idle & seen:
        with suppress(OSError):  # charged again by the cleaner's work
            ioctl.remove_group(path, group=group)
    return idle - seen


def _nothing_stays(_home: Home, _leftover: Path) -> bool:
    return False


def tidy(entry: Path, *, stays: Callable[[Home, Path], bool] = _nothing_stays) -> None:
    """Remove what a crash left half done of one volume, and see that the rest can be read.

    Args:
        stays: whether something in the directory of what is being received is still of use.

    Raises:
        OSError, ValueError: something cannot be removed or read.
    """
    if entry.name.startswith((DRAFT, DOOMED)):
        if entry.exists():
            destroy_home(entry)
        return
    home = Home(entry.name, entry)
    for leftover in _children(entry / "incoming"):
        if not stays(home, leftover):
            _remove_with_subvolumes(leftover)
    for child in _children(entry):
        if child.name.startswith(DRAFT):
            ioctl.destroy_subvolume(child)
    home.forget_old_numbers()
    home.generations()
    for epoch in home.epochs():
        ioctl.is_read_only(home.live(epoch))


def _remove_with_subvolumes(path: Path) -> None:
    """Remove a directory whose children are subvolumes or empty directories."""
    for child in _children(path):
        if ioctl.is_subvolume(child):
            ioctl.destroy_subvolume(child)
    with suppress(FileNotFoundError):
        path.rmdir()


def _names(path: Path) -> list[str]:
    try:
        return os.listdir(path)
    except FileNotFoundError:
        return []


def _children(path: Path) -> list[Path]:
    return [path / name for name in sorted(_names(path))]
