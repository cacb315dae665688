"""What the fault tests share; ``PANNIER_FAULT_NOTES`` names the file that keeps what they measure."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from fault_world import Faults
from laboratory import world_on
from notes import Notes

from pannier.lab import Lab


@pytest.fixture(scope="session")
def notes(tmp_path_factory: pytest.TempPathFactory) -> Notes:
    """What this run measures, for ``tools/fault_table``."""
    named = os.environ.get("PANNIER_FAULT_NOTES")
    return Notes(Path(named) if named else tmp_path_factory.getbasetemp() / "faults.json")


@pytest.fixture
def faults(fault_lab: Lab, notes: Notes, request: pytest.FixtureRequest) -> Iterator[Faults]:
    """The machines for one test, in order before and after it."""
    with world_on(fault_lab) as world:
        yield Faults(world, notes, request.node.name)
