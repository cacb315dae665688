"""Thousands of short histories in which holders are lost; a failure says how to play it again."""

from __future__ import annotations

import logging
import multiprocessing
import os
from collections import Counter
from concurrent.futures import ProcessPoolExecutor

import failover_histories
import plots
import pytest
import structlog

HISTORIES = int(os.environ.get("PANNIER_HISTORIES", "2500"))
"""Each of the deliberate bugs shows within some hundreds."""
AT_ONCE = 50
DAMAGED = 100
"""Enough for the deliberate bugs that these plots aim at."""


def play_all(seeds: list[int]) -> tuple[Counter[str], list[str]]:
    """Play histories, one after the other; returns what happened in them, and what went wrong."""
    happened: Counter[str] = Counter()
    wrong = []
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    for seed in seeds:
        try:
            history = failover_histories.play(seed)
        except AssertionError as story:
            wrong.append(str(story))
        else:
            happened.update(history.world.changes)
            happened.update(uses=history.done, syncs=history.synced, kept=history.world.kept)
    return happened, wrong


def logs_of(seeds: list[int]) -> list[tuple[list[str], int]]:
    """What was done in each history, and in how many steps."""
    played = [failover_histories.play(seed) for seed in seeds]
    return [(history.log, len(history.world.steps)) for history in played]


def processes(monkeypatch: pytest.MonkeyPatch, *, hashes: str = "0") -> ProcessPoolExecutor:
    """Python orders sets of names by a number that it draws at its start; here always the same."""
    monkeypatch.setenv("PYTHONHASHSEED", hashes)
    return ProcessPoolExecutor(os.cpu_count(), mp_context=multiprocessing.get_context("spawn"))


@pytest.mark.timeout(1200)
def test_nothing_that_was_acknowledged_is_lost_in_any_history(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = os.environ.get("PANNIER_SEED")
    seeds = [int(given)] if given else list(range(HISTORIES))
    batches = [seeds[first : first + AT_ONCE] for first in range(0, len(seeds), AT_ONCE)]
    happened: Counter[str] = Counter()
    wrong: list[str] = []
    with processes(monkeypatch) as pool:
        for done, failed in pool.map(play_all, batches):
            happened.update(done)
            wrong += failed
    assert not wrong, f"{len(wrong)} of {len(seeds)}, the first:\n{wrong[0]}"
    if not given:
        assert happened["syncs"] > 5 * len(seeds), happened
        assert happened["taken over"] > len(seeds) / 10, happened
        assert happened["kept"] > len(seeds) / 20, happened
        assert happened["moved"] > len(seeds), happened
        assert happened["recovered"] > len(seeds) / 200, happened


@pytest.mark.parametrize("plot", plots.DAMAGE, ids=lambda plot: plot.__name__)
def test_a_disk_that_lacks_what_it_confirmed_gives_no_new_holder_without_it(
    plot: plots.Plot,
) -> None:
    for seed in range(DAMAGED):
        failover_histories.play(seed, plot)


@pytest.mark.parametrize("plot", plots.QUARANTINE, ids=lambda plot: plot.__name__)
def test_a_copy_that_is_set_apart_never_was_the_only_one(plot: plots.Plot) -> None:
    apart = 0
    for seed in range(DAMAGED):
        world = failover_histories.play(seed, plot).world
        apart += sum(len(machine.disk.apart) for machine in world.machines.values())
    assert apart > DAMAGED / 10


@pytest.mark.parametrize("plot", plots.RESTORED, ids=lambda plot: plot.__name__)
def test_a_store_that_was_restored_from_an_older_backup_makes_nothing_undone(
    plot: plots.Plot,
) -> None:
    for seed in range(DAMAGED):
        failover_histories.play(seed, plot)


def test_a_seed_gives_the_same_history_again(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds, logs = list(range(40)), []
    for hashes in ("0", "1"):
        with processes(monkeypatch, hashes=hashes) as pool:
            logs.append(pool.submit(logs_of, seeds).result())
    assert logs[0] == logs[1]
