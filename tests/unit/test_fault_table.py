"""The page of faults: every fault that each merge must stand has a test, and the numbers are right."""

from __future__ import annotations

from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

TOOL = Path(__file__).parents[2] / "tools/fault_table"


@pytest.fixture(scope="module")
def table() -> ModuleType:
    loader = SourceFileLoader("fault_table", str(TOOL))
    spec = spec_from_loader("fault_table", loader)
    assert spec is not None
    module = module_from_spec(spec)
    loader.exec_module(module)
    return module


def note(fault: str, pause: float) -> dict[str, Any]:
    return {
        "fault": fault,
        "outcome": "a copy takes over",
        "pause_seconds": pause,
        "allowed_seconds": 5.6,
        "lost": 0,
        "acknowledged": 100,
        "test": "test_f01_x",
    }


def test_every_fault_of_each_merge_has_a_test(table: ModuleType) -> None:
    each_merge = table.tests(long=False)
    assert [number for number in table.EVERY_MERGE if not each_merge[number]] == []


def test_the_page_names_the_tests_as_they_are(table: ModuleType) -> None:
    """A test that is added, renamed, or run more seldom, changes it: tools/fault_table --tests."""
    assert (table.ROOT / "docs/faults.md").read_text().endswith(table.covered())


def test_runs_of_one_fault_are_one_line_with_median_and_worst(table: ModuleType) -> None:
    lines = table.measured([note("F01 a", pause) for pause in (3.0, 9.0, 4.0)] + [note("F08", 1.0)])
    assert lines == [
        "| F01 a | a copy takes over | 4.0 s | 9.0 s | 5.6 s | 3 | 300 | 0 |",
        "| F08 | a copy takes over | 1.0 s | 1.0 s | 5.6 s | 1 | 100 | 0 |",
    ]
