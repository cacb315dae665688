"""What a holder notes of its records is there after a power cut: the newest note, or an earlier one, whole."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pannier.core.generation import Generation
from pannier.core.line import LinePlace
from pannier.core.set_back import MOST_RUNS, Noted
from pannier.storage.image import noted
from pannier.storage.image.noted import NotedRuns, pack, parse

PLACE = LinePlace(
    volume="v-1",
    epoch=3,
    run="0123456789abcdef",
    number=1,
    generation=Generation(3, 7, "0f3a94c1"),
    included=0,
)
RUN = Noted(epoch=3, run=PLACE.run, number=1, began=7)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(noted, "make_empty", lambda path: path.touch())  # no btrfs here
    return tmp_path


def test_a_note_is_found_by_the_next_run_of_the_daemon(home: Path) -> None:
    notes = NotedRuns(home)
    assert notes.runs() == ()
    for number in range(1, 6):
        notes.note(replace(PLACE, number=number))
    assert NotedRuns(home).runs() == (replace(RUN, number=5),)
    NotedRuns(home).note(replace(PLACE, run="f" * 16, number=1))
    assert [one.number for one in NotedRuns(home).runs()] == [5, 1]


def test_a_note_after_the_file_was_closed_is_kept(home: Path) -> None:
    notes = NotedRuns(home)
    notes.note(PLACE)
    notes.close()
    notes.close()
    notes.note(replace(PLACE, number=2))
    assert NotedRuns(home).runs() == (replace(RUN, number=2),)


@pytest.mark.parametrize("torn", range(0, 4096, 512))
def test_a_torn_note_leaves_the_one_before(home: Path, torn: int) -> None:
    notes = NotedRuns(home)
    notes.note(PLACE)
    notes.note(replace(PLACE, number=2))
    before = (home / noted.NOTED).read_bytes()
    notes.note(replace(PLACE, number=3))
    after = (home / noted.NOTED).read_bytes()
    cut = 4096 + torn  # the third is in the second block
    (home / noted.NOTED).write_bytes(after[:cut] + before[cut:])
    (found,) = NotedRuns(home).runs()
    assert found.number in (2, 3)
    assert found.number == 3 or torn < 512


def test_as_many_runs_as_are_remembered_fit_into_a_block() -> None:
    runs = tuple(replace(RUN, run=f"{number:016x}") for number in range(MOST_RUNS))
    block = pack(7, runs)
    assert len(block) == 4096
    assert parse(block) == (7, runs)


def test_a_damaged_block_says_nothing() -> None:
    block = bytearray(pack(7, (RUN,)))
    block[40] ^= 1
    assert parse(bytes(block)) == (0, ())
    assert parse(b"") == (0, ())
