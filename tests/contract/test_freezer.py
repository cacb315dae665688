"""The kernel's freezer, in both of its forms, with real processes in control groups of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pannier.agent.freezing import CgroupFreezer
from pannier.agent.usage import Contact, User
from pannier.host.state_files import UnsyncedFile

CONTAINER = f"{os.getpid():064x}"
ROOT = Path("/sys/fs/cgroup")


@dataclass
class Counting:
    """A process that counts, in a container's control group."""

    group: Path
    process: subprocess.Popen[bytes]
    file: Path
    others: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def another(self) -> Path:
        """Start a further process as ``docker exec`` does; returns the file that it makes."""
        file = self.file.with_name("another")
        self.others.append(begin(self.group, f"echo >{file}"))
        return file

    @property
    def user(self) -> User:
        return user(self.process.pid, CONTAINER, "count")

    @property
    def user_is_inner(self) -> bool:
        return "/inner\n" in Path(f"/proc/{self.process.pid}/cgroup").read_text()

    @property
    def counts(self) -> bool:
        """Whether it makes a step in half a second."""
        before = self.file.stat().st_size
        deadline = time.monotonic() + 0.5
        while time.monotonic() < deadline:
            if self.file.stat().st_size > before:
                return True
            time.sleep(0.02)
        return False


def user(pid: int, container: str | None, command: str) -> User:
    return User(pid, container, command, Contact.WRITES, filtered=False)


def homes() -> dict[str, Path]:
    """Where this kernel has a freezer."""
    v2 = ROOT if (ROOT / "cgroup.controllers").exists() else ROOT / "unified"
    found = {"v1": ROOT / "freezer", "v2": v2}
    return {name: home for name, home in found.items() if (home / "cgroup.procs").exists()}


@pytest.fixture(params=sorted(homes()))
def home(request: pytest.FixtureRequest) -> Path:
    return homes()[request.param]


@pytest.fixture
def root(home: Path, tmp_path: Path) -> Path:
    """A place where control groups seem to be mounted, with this form only."""
    root = tmp_path / "cgroup"
    root.mkdir()
    (root / ("freezer" if home.name == "freezer" else "unified")).symlink_to(home)
    return root


def appears(file: Path) -> bool:
    deadline = time.monotonic() + 10
    while not file.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    return file.exists()


@pytest.fixture(params=["own", "inner"])
def counting(request: pytest.FixtureRequest, home: Path, tmp_path: Path) -> Iterator[Counting]:
    """In the container's own group, or one below it, as an engine inside a container makes them."""
    group = home / f"pannier-{os.getpid()}" / f"docker-{CONTAINER}.scope"
    inner = group / "inner"
    inner.mkdir(parents=True)
    file = tmp_path / "counted"
    count = f"while :; do echo >>{file}; sleep 0.02; done"
    process = begin(inner if request.param == "inner" else group, count)
    counting = Counting(group, process, file)
    try:
        assert appears(file)
        yield counting
    finally:
        counting.process.kill()
        folders = [Path(path) for path, _, _ in os.walk(group, topdown=False)]
        for folder in folders:
            thaw(folder)
        for each in (process, *counting.others):
            each.wait(10)
        for folder in (*folders, group.parent):
            remove(folder)


def remove(folder: Path) -> None:
    """Remove a control group; the last process in it may be about to end."""
    deadline = time.monotonic() + 10
    while folder.exists():
        try:
            folder.rmdir()
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.02)


def begin(group: Path, script: str) -> subprocess.Popen[bytes]:
    """Start a shell in a control group."""
    return subprocess.Popen(["sh", "-c", f"echo $$ >{group}/cgroup.procs; {script}"])


def freeze(group: Path) -> None:
    write(group, "FROZEN", "1")


def thaw(group: Path) -> None:
    write(group, "THAWED", "0")


def is_thawed(group: Path) -> bool:
    own = [group / name for name in ("freezer.self_freezing", "cgroup.freeze")]
    return next(file.read_text() for file in own if file.exists()).strip() == "0"


def write(group: Path, v1: str, v2: str) -> None:
    for name, state in (("freezer.state", v1), ("cgroup.freeze", v2)):
        if (group / name).exists():
            (group / name).write_text(state)


@dataclass
class Person:
    """Pauses and unpauses a container as Docker does."""

    group: Path

    def pause(self) -> None:
        freeze(self.group)

    def unpause(self) -> None:
        thaw(self.group)


@pytest.fixture
def person(counting: Counting) -> Person:
    return Person(counting.group)


def freezer(root: Path, tmp_path: Path) -> CgroupFreezer:
    return CgroupFreezer(UnsyncedFile(tmp_path / "frozen.json"), root=root)


def test_a_container_stands_still_and_goes_on(
    root: Path, tmp_path: Path, counting: Counting
) -> None:
    one = freezer(root, tmp_path)
    assert counting.counts
    assert not one.holds("v.1")
    assert one.freeze("v.1", [counting.user]) == []
    assert one.holds("v.1")
    time.sleep(0.1)
    assert not counting.counts
    assert one.freeze("v.1", [counting.user]) == []
    one.thaw("v.1")
    assert counting.counts
    assert not one.holds("v.1")
    one.thaw("v.1")


def test_a_daemon_that_starts_again_knows_what_it_has_frozen(
    root: Path, tmp_path: Path, counting: Counting
) -> None:
    freezer(root, tmp_path).freeze("v.1", [counting.user])
    another = freezer(root, tmp_path)
    assert another.holds("v.1")
    another.thaw("v.1")
    assert counting.counts
    assert not freezer(root, tmp_path).holds("v.1")


def test_a_container_of_two_volumes_goes_on_when_both_may(
    root: Path, tmp_path: Path, counting: Counting
) -> None:
    one = freezer(root, tmp_path)
    one.freeze("v.1", [counting.user])
    one.freeze("v.2", [counting.user])
    one.thaw("v.1")
    time.sleep(0.1)
    assert not counting.counts
    one.thaw("v.2")
    assert counting.counts


def test_containers_go_on_where_nothing_can_be_written_down(
    root: Path, tmp_path: Path, counting: Counting
) -> None:
    """And where it cannot be written down that one is frozen, it is not: who asked has to kill it."""
    one = freezer(root, tmp_path)
    one.freeze("v.1", [counting.user])
    (tmp_path / ".new-frozen.json").mkdir()
    one.thaw("v.1")
    assert counting.counts
    assert one.freeze("v.2", [counting.user]) == [counting.user]
    assert counting.counts


def test_what_a_person_has_paused_stays_so_until_the_person_unpauses_it(
    root: Path, tmp_path: Path, counting: Counting, person: Person
) -> None:
    person.pause()
    one = freezer(root, tmp_path)
    assert one.freeze("v.1", [counting.user]) == []
    one.thaw("v.1")
    assert not counting.counts
    assert one.freeze("v.1", [counting.user]) == []
    freezer(root, tmp_path).thaw("v.1")
    assert not counting.counts
    person.unpause()
    assert counting.counts


def test_what_a_person_unpauses_meanwhile_goes_on_only_when_it_may(
    root: Path, tmp_path: Path, counting: Counting, person: Person
) -> None:
    person.pause()
    one = freezer(root, tmp_path)
    one.freeze("v.1", [counting.user])
    person.unpause()
    assert not counting.counts
    one.freeze("v.1", [counting.user])
    person.unpause()
    assert not counting.counts
    one.thaw("v.1")
    assert counting.counts


def test_what_stands_still_cannot_be_unpaused(
    root: Path, tmp_path: Path, counting: Counting, person: Person
) -> None:
    """An engine lets nobody unpause what it has not paused; this is about any other program."""
    one = freezer(root, tmp_path)
    one.freeze("v.1", [counting.user])
    person.unpause()
    assert not counting.counts
    one.thaw("v.1")
    assert counting.counts


def test_what_is_begun_in_it_after_a_person_unpaused_it_stands_still_too(
    root: Path, tmp_path: Path, counting: Counting, person: Person
) -> None:
    person.pause()
    one = freezer(root, tmp_path)
    one.freeze("v.1", [counting.user])
    person.unpause()
    one.keep("v.1")
    late = counting.another()
    time.sleep(0.2)
    assert not late.exists()
    one.thaw("v.1")
    assert appears(late)


def test_a_frozen_process_that_is_killed_makes_no_step(
    root: Path, tmp_path: Path, counting: Counting
) -> None:
    one = freezer(root, tmp_path)
    one.freeze("v.1", [counting.user])
    time.sleep(0.1)
    before = counting.file.stat().st_size
    os.kill(counting.process.pid, signal.SIGKILL)
    one.thaw("v.1")
    counting.process.wait(10)
    assert counting.file.stat().st_size == before


def test_nothing_of_ours_is_left_in_a_container_that_goes_on(
    root: Path, tmp_path: Path, counting: Counting
) -> None:
    before = sorted(counting.group.iterdir())
    at = Path(f"/proc/{counting.process.pid}/cgroup")
    was = at.read_text()
    one = freezer(root, tmp_path)
    one.freeze("v.1", [counting.user])
    one.thaw("v.1")
    assert sorted(counting.group.iterdir()) == before
    assert at.read_text() == was


def test_what_the_container_has_frozen_itself_stays_so(
    root: Path, tmp_path: Path, counting: Counting
) -> None:
    """An engine inside of it pauses one of its containers."""
    freeze(counting.group / "inner")
    counted = counting.counts
    one = freezer(root, tmp_path)
    one.freeze("v.1", [counting.user])
    one.thaw("v.1")
    assert counting.counts == counted
    thaw(counting.group / "inner")
    assert counting.counts


@pytest.mark.parametrize("paused", [False, True])
def test_what_is_killed_by_somebody_else_ends(
    root: Path, tmp_path: Path, counting: Counting, person: Person, paused: bool
) -> None:
    """`docker kill` need not wait until it is known who holds the volume."""
    if counting.user_is_inner and (counting.group / "freezer.state").exists():
        pytest.skip("version 1 keeps it until it is thawed")
    if paused:
        person.pause()
    one = freezer(root, tmp_path)
    one.freeze("v.1", [counting.user])
    time.sleep(0.1)
    before = counting.file.stat().st_size
    for path, _, _ in os.walk(counting.group):
        for pid in (Path(path) / "cgroup.procs").read_text().split():
            os.kill(int(pid), signal.SIGKILL)
    one.keep("v.1")
    counting.process.wait(10)
    assert counting.file.stat().st_size == before
    until = time.monotonic() + 10
    while one.holds("v.1") and time.monotonic() < until:
        one.keep("v.1")
    assert not one.holds("v.1")
    assert is_thawed(counting.group) is not paused, "else its engine does not take it for ended"
    assert not freezer(root, tmp_path).holds("v.1")


def test_who_is_in_no_container_or_in_ours_is_not_frozen(root: Path, tmp_path: Path) -> None:
    one = freezer(root, tmp_path)
    alone = user(os.getpid(), None, "pytest")
    ours = user(os.getpid(), CONTAINER, "pytest")
    assert one.freeze("v.1", [alone, ours]) == [alone, ours]
    assert not one.holds("v.1")


def test_who_has_ended_meanwhile_needs_nothing(root: Path, tmp_path: Path) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    assert freezer(root, tmp_path).freeze("v.1", [user(ended.pid, CONTAINER, "true")]) == []


def test_a_file_that_cannot_be_read_counts_as_empty(root: Path, tmp_path: Path) -> None:
    (tmp_path / "frozen.json").write_text("{")
    assert not freezer(root, tmp_path).holds("v.1")
