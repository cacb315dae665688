"""Labs for the system tests: real machines with systemd, Docker, Swarm, etcd and btrfs.

The tests of one lab follow each other, and the lab goes when the last of them has ended. With
pytest-xdist a worker gets all the tests of a lab: as many labs stand at a time as there are workers.
"""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))  # the demo's steps are tests, too

from cluster_world import World, journal
from laboratory import WISHES, have, lab_of, leave, open_labs, take_down, wish_of, world_on
from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]  # it has no types

from pannier.lab import Lab


def _module(nodeid: str) -> str:
    """The name of a test's module, without its beginning."""
    return Path(nodeid.partition("::")[0]).stem.removeprefix("test_")


def _wish_of(item: pytest.Item | pytest.Module) -> str:
    return wish_of(_module(item.nodeid))


def _place(item: pytest.Item) -> tuple[int, int]:
    """Where in a run a test stands: by its lab, then by its module."""
    module, wish = _module(item.nodeid), _wish_of(item)
    if wish not in WISHES:
        return len(WISHES), 0
    return list(WISHES).index(wish), WISHES[wish].modules.index(module)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The tests of a lab follow each other."""
    here = Path(__file__).parent
    ours = [number for number, item in enumerate(items) if here in item.path.parents]
    for number, item in zip(ours, sorted((items[each] for each in ours), key=_place), strict=True):
        items[number] = item


class Lanes(LoadScopeScheduling):
    """Gives each worker one lab's tests after another's, in the order of the wishes."""

    def _split_scope(self, nodeid: str) -> str:
        return wish_of(_module(nodeid))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Lanes:
    config.option.loadscopereorder = False
    return Lanes(config, log)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Bring up a lab before its first test, whose time it is not."""
    if _wish_of(item) in WISHES:
        have(_wish_of(item))
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(
    item: pytest.Item, nextitem: pytest.Item | None
) -> Generator[None, None, None]:
    """Remove a lab after the last test that uses it."""
    last = nextitem is None or _wish_of(nextitem) != _wish_of(item)
    if last:
        leave(_wish_of(item))
    try:
        return (yield)
    finally:
        if last:
            take_down()


def pytest_sessionfinish() -> None:
    """Remove what a run that was stopped early has left."""
    take_down()


def _lab(wish: str) -> Any:
    """A fixture of the lab of this wish."""

    @pytest.fixture(scope="session", name=wish)
    def lab() -> Lab:
        return lab_of(wish)

    return lab


three_lab = _lab("three_lab")
guard_lab = _lab("guard_lab")
single_lab = _lab("single_lab")
power_lab = _lab("power_lab")
fault_lab = _lab("fault_lab")
jenkins_lab = _lab("jenkins_lab")
swarm_lab = _lab("swarm_lab")
host_lab = _lab("host_lab")
blank_lab = _lab("blank_lab")
barrier_lab = _lab("barrier_lab")
directory_lab = _lab("directory_lab")
bare_lab = _lab("bare_lab")


@pytest.fixture
def three(request: pytest.FixtureRequest) -> Iterator[World]:
    """Three nodes for one test: those of its module's lab."""
    with world_on(lab_of(_wish_of(request.node))) as world:
        yield world


@pytest.fixture(scope="module")
def calm(request: pytest.FixtureRequest) -> Iterator[World]:
    """Three nodes for tests that do no harm: they are put in order once, at the end."""
    with world_on(lab_of(_wish_of(request.node))) as world:
        yield world


@pytest.fixture
def single(single_lab: Lab) -> Iterator[World]:
    """The one node for one test."""
    with world_on(single_lab) as world:
        yield world


@pytest.fixture
def cuttable(power_lab: Lab) -> Iterator[World]:
    """The three nodes with disks that forget, for one test."""
    with world_on(power_lab) as world:
        yield world


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failed test shows its lab, and what pannierd, Docker and etcd of all its machines have logged."""
    report = yield
    if report.failed:
        for lab in open_labs():
            for node in lab.nodes:
                if node.state in ("running", "cut"):
                    for unit in ("pannierd", "docker", "etcd"):
                        title = f"{unit} on {node.name} of lab {lab.name} ({_wish_of(item)})"
                        report.sections.append((title, journal(lab, node.name, unit)))
                else:
                    title = f"{node.name} of lab {lab.name} ({_wish_of(item)})"
                    report.sections.append((title, f"it is {node.state}"))
    return report
