"""A file is whole whatever happens: killed, refused, without power or with two writers at once."""

from __future__ import annotations

import errno
import itertools
import os
import stat
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pannier.host import files
from pannier.host.files import draft_of, write_file

OLD, NEW, NEXT = b"old", b"new content", b"the one after"
WAYS = pytest.mark.parametrize("replace", [True, False], ids=["replaced", "made"])
STEPS = ("open", "write", "fchmod", "fchown", "fsync", "rename", "link", "unlink")


class Stepped:
    """``os`` as host/files sees it: ``before`` is told of each step, and writes come byte by byte."""

    def __init__(self, before: Callable[[int, str], None]) -> None:
        self._before = before
        self.steps = 0

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name not in STEPS:
            return real

        def call(*arguments: Any, **keywords: Any) -> Any:
            self.steps += 1
            self._before(self.steps, name)
            if name == "write":
                return os.write(arguments[0], arguments[1][:1])
            return real(*arguments, **keywords)

        return call


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "file"


def steps_of(monkeypatch: pytest.MonkeyPatch, work: Callable[[], None]) -> int:
    with monkeypatch.context() as patch:
        stepped = Stepped(lambda step, name: None)
        patch.setattr(files, "os", stepped)
        work()
    return stepped.steps


def start_anew(file: Path, *, replace: bool) -> None:
    for left in (file, draft_of(file)):
        left.unlink(missing_ok=True)
    if replace:
        write_file(file, OLD)


def is_whole(file: Path, *, replace: bool) -> bool:
    if not file.exists():
        return not replace
    return file.read_bytes() in ((OLD, NEW) if replace else (NEW,))


def killed_at(step: int, work: Callable[[], None]) -> None:
    """Do ``work`` in a process that dies before this step."""

    def before(now: int, name: str) -> None:
        if now == step:
            os._exit(9)

    child = os.fork()
    if child == 0:
        try:
            files.os = Stepped(before)  # type: ignore[assignment, attr-defined]
            work()
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


@WAYS
def test_a_writer_that_is_killed_leaves_a_draft_at_most(
    monkeypatch: pytest.MonkeyPatch, file: Path, replace: bool
) -> None:
    def work() -> None:
        write_file(file, NEW, replace=replace)

    start_anew(file, replace=replace)
    for step in range(1, steps_of(monkeypatch, work) + 1):
        start_anew(file, replace=replace)
        killed_at(step, work)
        assert is_whole(file, replace=replace)
        assert set(os.listdir(file.parent)) <= {file.name, draft_of(file).name}
        write_file(file, NEXT)
        assert file.read_bytes() == NEXT
        assert os.listdir(file.parent) == [file.name]


@WAYS
def test_a_disk_that_refuses_leaves_no_draft(
    monkeypatch: pytest.MonkeyPatch, file: Path, replace: bool
) -> None:
    def work() -> None:
        write_file(file, NEW, owner=(os.getuid(), os.getgid()), replace=replace)

    start_anew(file, replace=replace)
    for step in range(1, steps_of(monkeypatch, work) + 1):
        start_anew(file, replace=replace)
        refused: list[str] = []

        def refuse(now: int, name: str, at: int = step, refused: list[str] = refused) -> None:
            if now == at:
                refused.append(name)
                raise OSError(errno.EIO, "as the disk says")

        with monkeypatch.context() as patch:
            patch.setattr(files, "os", Stepped(refuse))
            with pytest.raises(OSError, match="as the disk says"):
                work()
        assert is_whole(file, replace=replace)
        assert not draft_of(file).exists() or refused == ["unlink"]
        write_file(file, NEXT)
        assert os.listdir(file.parent) == [file.name]


class PowerCut(Stepped):
    """What the disk may hold after a power cut: what was synced, and any of the rest."""

    def __init__(self, file: Path) -> None:
        super().__init__(lambda step, name: None)
        self.file = str(file)
        self.names: dict[str, bytes | None] = {self.file: OLD} if file.exists() else {}
        """Synced names, each with what a reader finds for certain; None where that is not known."""
        self.pending: list[tuple[str, str, str]] = []
        self.paths: dict[int, str] = {}
        self.content: dict[str, bytes | None] = {}
        self.seen: set[bytes | None] = set()

    def __getattr__(self, name: str) -> Any:
        call = super().__getattr__(name)
        note = getattr(type(self), f"note_{name}", None)
        if note is None:
            return call

        def noted(*arguments: Any, **keywords: Any) -> Any:
            result = call(*arguments, **keywords)
            note(self, result, *arguments)
            self.seen |= set(self.found())
            return result

        return noted

    def note_open(self, fd: int, path: Any, flags: int, *mode: int) -> None:
        self.paths[fd] = str(path)
        if flags & os.O_CREAT:
            self.content[str(path)] = None
            self.pending.append(("link", str(path), str(path)))

    def note_write(self, count: int, fd: int, data: Any) -> None:
        self.content[self.paths[fd]] = None

    def note_fsync(self, done: None, fd: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            self.names, self.pending = self.applied(self.pending), []
        else:
            path = self.paths[fd]
            self.content[path] = Path(path).read_bytes()

    def note_rename(self, done: None, old: Any, new: Any) -> None:
        self.pending.append(("rename", str(old), str(new)))

    def note_link(self, done: None, old: Any, new: Any) -> None:
        self.pending.append(("link", str(old), str(new)))

    def note_unlink(self, done: None, path: Any) -> None:
        self.pending.append(("unlink", str(path), str(path)))

    def applied(self, changes: list[tuple[str, str, str]]) -> dict[str, bytes | None]:
        names = dict(self.names)
        for change, old, new in changes:
            if change != "unlink":
                names[new] = self.content[old]
            if change != "link":
                names.pop(old, None)
        return names

    def found(self) -> Iterator[bytes | None]:
        """All that may be at the file's name: b"" for no file, None for a part of one."""
        for size in range(len(self.pending) + 1):
            for some in itertools.combinations(self.pending, size):
                yield self.applied(list(some)).get(self.file, b"")


@WAYS
def test_after_a_power_cut_it_is_the_old_content_or_the_new_one(
    monkeypatch: pytest.MonkeyPatch, file: Path, replace: bool
) -> None:
    start_anew(file, replace=replace)
    disk = PowerCut(file)
    with monkeypatch.context() as patch:
        patch.setattr(files, "os", disk)
        write_file(file, NEW, replace=replace)
    before = OLD if replace else b""
    assert disk.seen == {before, NEW}, "whenever power fails meanwhile"
    assert set(disk.found()) == {NEW}, "for good once it has returned"


def test_the_power_cut_finds_what_is_not_synced(
    monkeypatch: pytest.MonkeyPatch, file: Path
) -> None:
    """The model itself: without syncs it must see half a file."""
    write_file(file, OLD)
    disk = PowerCut(file)
    with monkeypatch.context() as patch:
        patch.setattr(files, "os", disk)
        write_file(file, NEW, durable=False)
    assert None in disk.seen
    assert OLD in disk.found()


def test_what_another_run_made_is_durable_before_this_one_gives_up(
    monkeypatch: pytest.MonkeyPatch, file: Path
) -> None:
    write_file(file, OLD, durable=False)
    synced: list[Path] = []
    with monkeypatch.context() as patch:
        patch.setattr(files, "sync_directory", synced.append)
        with pytest.raises(FileExistsError):
            write_file(file, NEW, replace=False)
    assert synced == [file.parent]
    assert file.read_bytes() == OLD
    assert os.listdir(file.parent) == [file.name]


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o755])
def test_nobody_else_can_read_the_draft_whatever_the_mode_is_to_be(
    monkeypatch: pytest.MonkeyPatch, file: Path, mode: int
) -> None:
    found: list[int] = []

    def look(step: int, name: str) -> None:
        if name == "write":
            found.append(stat.S_IMODE(draft_of(file).stat().st_mode))

    before = os.umask(0o077 if mode == 0o755 else 0)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(files, "os", Stepped(look))
            write_file(file, NEW, mode=mode)
    finally:
        os.umask(before)
    assert set(found) == {0o600}
    assert stat.S_IMODE(file.stat().st_mode) == mode


def test_a_program_can_be_started_at_any_time(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    """The kernel starts nothing that somebody has open for writing (ETXTBSY)."""
    write_file(file, b"#!/bin/sh\nexit 1\n", mode=0o755)
    seen = set()

    def look(step: int, name: str) -> None:
        seen.add(subprocess.run([file], check=False).returncode)

    with monkeypatch.context() as patch:
        patch.setattr(files, "os", Stepped(look))
        write_file(file, b"#!/bin/sh\nexit 2\n", mode=0o755)
    assert seen == {1, 2}


def test_who_has_an_old_draft_open_reads_nothing_of_the_new_one(file: Path) -> None:
    draft_of(file).write_text("left by a crash")
    with draft_of(file).open("rb") as spy:
        write_file(file, NEW)
        assert spy.read() == b"left by a crash"


def test_a_link_in_the_drafts_place_is_not_followed(file: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").write_bytes(OLD)
    draft_of(file).symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match="symbolic links"):
        write_file(file, NEW)
    assert (tmp_path / "precious").read_bytes() == OLD


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_link_that_takes_the_drafts_place_after_its_lock_is_not_followed(
    monkeypatch: pytest.MonkeyPatch, file: Path, tmp_path: Path
) -> None:
    """The directory may belong to a user who is not trusted."""
    victim, lock_draft = tmp_path / "victim", files._lock_draft
    victim.write_bytes(b"of somebody else")

    def then_a_link(draft: Path) -> int:
        lock = lock_draft(draft)
        draft.unlink()
        draft.symlink_to(victim)
        return lock

    monkeypatch.setattr(files, "_lock_draft", then_a_link)
    with pytest.raises(OSError, match="symbolic links"):
        write_file(file, NEW)
    assert victim.read_bytes() == b"of somebody else"


def test_the_file_gets_its_owner(file: Path) -> None:
    write_file(file, NEW, owner=(1234, 5678), mode=0o4750)
    found = file.stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (1234, 5678, 0o4750)


def test_writers_at_the_same_time_share_no_draft(file: Path) -> None:
    """Threads in two processes; each content is of one letter, and long enough for many writes."""
    length, rounds = 100_000, 30

    def write(letter: str) -> None:
        for _ in range(rounds):
            write_file(file, letter.encode() * length, durable=False)

    def write_all(letters: str) -> None:
        with ThreadPoolExecutor(len(letters)) as threads:
            list(threads.map(write, letters))

    write("0")
    child = os.fork()
    if child == 0:
        try:
            write_all("cd")
            os._exit(0)
        finally:
            os._exit(1)
    with ThreadPoolExecutor(1) as executor:
        writers = executor.submit(write_all, "ab")
        while not writers.done():
            content = file.read_bytes()
            assert len(content) == length
            assert len(set(content)) == 1
    writers.result()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert os.listdir(file.parent) == [file.name]


def test_of_several_that_make_it_at_once_one_does(file: Path) -> None:
    def make(content: str) -> str | None:
        try:
            write_file(file, content.encode(), replace=False)
        except FileExistsError:
            return None
        return content

    with ThreadPoolExecutor(8) as threads:
        outcomes = list(threads.map(make, [f"by {number}" for number in range(8)]))
    [winner] = filter(None, outcomes)
    assert file.read_text() == winner
    assert os.listdir(file.parent) == [file.name]
