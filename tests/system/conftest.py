"""Labs for the system tests: real machines with systemd, Docker, Swarm, etcd and btrfs.

``PANNIER_TEST_LAB=NAME`` uses a lab of three nodes that runs already (with its images) instead of a
new one, and lets it stand.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))  # the demo's steps are tests, too

from cluster_world import IMAGE, World, journal
from demo import image
from laboratory import laboratory, open_labs, world_on

from pannier.lab import Lab


@pytest.fixture(scope="session")
def three_lab() -> Iterator[Lab]:
    """Three nodes, Debian 12 and 13, etcd, images loaded."""
    name = os.environ.get("PANNIER_TEST_LAB")
    if name:
        lab = Lab(name)
        open_labs.append(lab)
        yield lab
        return
    with laboratory("s", nodes=3, release="mixed") as lab:
        image.load(lab)
        yield lab


@pytest.fixture
def three(three_lab: Lab) -> Iterator[World]:
    """The three nodes for one test."""
    with world_on(three_lab) as world:
        yield world


@pytest.fixture(scope="module")
def calm(three_lab: Lab) -> Iterator[World]:
    """The three nodes for tests that do no harm: they are put in order once, at the end."""
    with world_on(three_lab) as world:
        yield world


@pytest.fixture(scope="module")
def single_lab() -> Iterator[Lab]:
    """One node without etcd."""
    with laboratory("o", nodes=1, store="sqlite") as lab:
        lab.build_busybox(IMAGE)
        yield lab


@pytest.fixture
def single(single_lab: Lab) -> Iterator[World]:
    """The one node for one test."""
    with world_on(single_lab) as world:
        yield world


@pytest.fixture(scope="module")
def cuttable_lab() -> Iterator[Lab]:
    """Three nodes whose disks forget what was not flushed."""
    with laboratory("c", nodes=3, release="mixed", disks="cuttable") as lab:
        lab.build_busybox(IMAGE)
        yield lab


@pytest.fixture
def cuttable(cuttable_lab: Lab) -> Iterator[World]:
    """The three nodes with such disks, for one test."""
    with world_on(cuttable_lab) as world:
        yield world


@pytest.fixture(scope="session")
def fault_lab() -> Iterator[Lab]:
    """Three nodes whose disks forget, for the fault tests; ``PANNIER_FAULT_LAB`` names one that runs."""
    name = os.environ.get("PANNIER_FAULT_LAB")
    if name:
        lab = Lab(name)
        open_labs.append(lab)
        yield lab
        return
    with laboratory("f", nodes=3, release="mixed", disks="cuttable") as lab:
        lab.build_busybox(IMAGE)
        yield lab


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failed test shows what the daemons of all machines have logged."""
    report = yield
    if report.failed:
        for lab in open_labs:
            for node in lab.nodes:
                if node.state in ("running", "cut"):
                    title = f"pannierd on {node.name} of lab {lab.name}"
                    report.sections.append((title, journal(lab, node.name)))
    return report
