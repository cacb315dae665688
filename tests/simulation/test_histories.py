"""Hundreds of random histories, each from a seed; a failure says how to play it again."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import histories
import pytest

HISTORIES = 160
BATCH = 40


def seeds() -> Iterator[range]:
    """One given seed, or batches of all."""
    if given := os.environ.get("PANNIER_SEED"):
        yield range(int(given), int(given) + 1)
        return
    yield from (range(first, first + BATCH) for first in range(0, HISTORIES, BATCH))


@pytest.mark.parametrize("batch", list(seeds()), ids=lambda batch: f"from-{batch.start}")
def test_nothing_that_was_promised_is_lost_in_any_history(batch: range, tmp_path: Path) -> None:
    done = 0
    for seed in batch:
        history, _ = histories.play(seed, tmp_path / str(seed))
        done += history.done
    assert done > 3 * len(batch), "the histories hardly do anything"


def test_a_seed_gives_the_same_history_again(tmp_path: Path) -> None:
    for seed in (3, 4):
        first, world = histories.play(seed, tmp_path / f"{seed}-first")
        again, copy = histories.play(seed, tmp_path / f"{seed}-again")
        assert first.log == again.log
        assert world.steps == copy.steps
