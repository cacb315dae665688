"""The kernel's freezer, in both of its forms, with real processes in control groups of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from pannier.agent.freezing import CgroupFreezer
from pannier.agent.usage import User

CONTAINER = f"{os.getpid():064x}"
ROOT = Path("/sys/fs/cgroup")


@dataclass
class Counting:
    """A process that counts, in a container's control group."""

    group: Path
    process: subprocess.Popen[bytes]
    file: Path

    @property
    def user(self) -> User:
        return User(self.process.pid, CONTAINER, "count")

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


@pytest.fixture
def counting(home: Path, tmp_path: Path) -> Iterator[Counting]:
    """In a group below the container's own, as an engine inside a container makes them."""
    group = home / f"pannier-{os.getpid()}" / f"docker-{CONTAINER}.scope"
    inner = group / "inner"
    inner.mkdir(parents=True)
    file = tmp_path / "counted"
    script = f"echo $$ >{inner}/cgroup.procs; while :; do echo >>{file}; sleep 0.02; done"
    process = subprocess.Popen(["sh", "-c", script])
    try:
        deadline = time.monotonic() + 10
        while not file.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        yield Counting(group, process, file)
    finally:
        process.kill()
        for name, state in (("freezer.state", "THAWED"), ("cgroup.freeze", "0")):
            if (group / name).exists():
                (group / name).write_text(state)
        process.wait()
        time.sleep(0.1)
        for each in (inner, group, group.parent):
            each.rmdir()


def freezer(root: Path, tmp_path: Path) -> CgroupFreezer:
    return CgroupFreezer(tmp_path / "frozen.json", root=root)


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


def test_what_a_person_has_paused_is_left_alone(
    root: Path, tmp_path: Path, counting: Counting
) -> None:
    own = CgroupFreezer(tmp_path / "theirs.json", root=root)
    own.freeze("theirs", [counting.user])
    one = CgroupFreezer(tmp_path / "another.json", root=root)
    assert one.freeze("v.1", [counting.user]) == []
    assert not one.holds("v.1")
    one.thaw("v.1")
    assert not counting.counts
    own.thaw("theirs")


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


def test_who_is_in_no_container_or_in_ours_is_not_frozen(root: Path, tmp_path: Path) -> None:
    one = freezer(root, tmp_path)
    alone = User(os.getpid(), None, "pytest")
    ours = User(os.getpid(), CONTAINER, "pytest")
    assert one.freeze("v.1", [alone, ours]) == [alone, ours]
    assert not one.holds("v.1")


def test_who_has_ended_meanwhile_needs_nothing(root: Path, tmp_path: Path) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    assert freezer(root, tmp_path).freeze("v.1", [User(ended.pid, CONTAINER, "true")]) == []


def test_a_file_that_cannot_be_read_counts_as_empty(root: Path, tmp_path: Path) -> None:
    (tmp_path / "frozen.json").write_text("{")
    assert not freezer(root, tmp_path).holds("v.1")
