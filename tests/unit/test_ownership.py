"""Every cell of the decision how a node serves a volume, and of what it may clean up."""

from dataclasses import replace

import pytest

from pannier.core.generation import Generation
from pannier.core.line import OnTop
from pannier.core.ownership import (
    AskHolder,
    Cleanup,
    Disbelieve,
    LocalState,
    Lost,
    Promote,
    Serve,
    Unseal,
    plan_cleanup,
    plan_serving,
)
from pannier.core.volume import Beginning, Grant, Volume, VolumeSpec

BASE = Generation(4, 9)
OTHER = Generation(3, 1)


def record(holder: str = "a", epoch: int = 5, base: Generation | None = BASE) -> Volume:
    return Volume(
        name="v", id="v.1", spec=VolumeSpec(), grant=Grant(holder, epoch), base=base, created_at=0.0
    )


def here(sealed: dict[int, bool] | None = None, *generations: Generation) -> LocalState:
    return LocalState(sealed or {}, frozenset(generations))


@pytest.mark.parametrize("sealed", [{}, {5: False}, {5: True}, {4: True}, {4: False}])
@pytest.mark.parametrize("generations", [(), (BASE,), (OTHER,)])
def test_who_does_not_hold_asks_the_holder_whatever_is_on_its_disk(
    sealed: dict[int, bool], generations: tuple[Generation, ...]
) -> None:
    assert plan_serving(record("b"), here(sealed, *generations), node="a") == AskHolder("b", 5)


@pytest.mark.parametrize("base", [None, BASE])
@pytest.mark.parametrize("generations", [(), (BASE,), (OTHER,)])
def test_a_live_tree_of_the_epoch_is_served_or_unsealed(
    base: Generation | None, generations: tuple[Generation, ...]
) -> None:
    volume = record(base=base)
    assert plan_serving(volume, here({5: False}, *generations), node="a") == Serve(5)
    assert plan_serving(volume, here({5: True, 4: False}, *generations), node="a") == Unseal(5)


def test_the_base_and_no_other_generation_is_promoted() -> None:
    assert plan_serving(record(), here({}, BASE, OTHER), node="a") == Promote(BASE, 5, OnTop.ALL)
    assert plan_serving(record(), here({4: True}, BASE), node="a") == Promote(BASE, 5, OnTop.ALL)
    assert plan_serving(record(), here({}, OTHER), node="a") == Lost(5, BASE)


def test_missing_data_is_never_answered_by_something_new() -> None:
    assert plan_serving(record(), here(), node="a") == Lost(5, BASE)
    assert plan_serving(record(epoch=1, base=None), here(), node="a") == Lost(1, None)


def test_a_record_that_is_older_than_the_disk_is_not_believed() -> None:
    assert plan_serving(record(epoch=1), here({}, OTHER), node="a") == Disbelieve(OTHER.epoch)
    assert plan_serving(record(), here({5: False, 6: True}), node="a") == Disbelieve(6)
    assert plan_serving(
        record("b"), LocalState({}, frozenset(), records=6), node="a"
    ) == Disbelieve(6)


def test_a_former_holder_drops_its_sealed_tree_and_keeps_its_newest_generation() -> None:
    cleanup = plan_cleanup(record("b"), here({4: True}, BASE, OTHER), node="a")
    assert cleanup == Cleanup(drop=(4,), delete=(OTHER,))


def test_a_sealed_tree_without_any_generation_is_not_dropped() -> None:
    assert plan_cleanup(record("b"), here({4: True}), node="a") == Cleanup()


def test_what_a_former_holder_wrote_after_the_base_is_a_stray_and_kept() -> None:
    newer, beyond = Generation(5, 1), Generation(4, 12)
    cleanup = plan_cleanup(record("b"), here({4: False}, OTHER, BASE, beyond, newer), node="a")
    assert cleanup == Cleanup(strays=(4,), delete=(OTHER, BASE))
    sealed = plan_cleanup(record("b"), here({4: True}, BASE, beyond), node="a")
    assert sealed == Cleanup(strays=(4,)), "a seal for a hand-over that did not happen"
    alone = plan_cleanup(record("b"), here({}, BASE, beyond), node="a")
    assert alone == Cleanup(strays=(4,)), "the newest copy in the lineage stays too"


def test_a_disk_that_is_ahead_of_the_record_is_left_alone() -> None:
    later = Generation(6, 1)
    for local in (here({5: True, 6: False}, BASE), here({5: True}, BASE, OTHER, later)):
        assert plan_cleanup(record("b"), local, node="a") == Cleanup()


def test_the_lineage_tells_copies_from_strays_through_several_changes_of_holder() -> None:
    volume = replace(record("a", 1, base=None))
    volume = volume.granted("b", base=Generation(1, 9), on_top=OnTop.ALL, replicas=())
    volume = volume.granted("c", base=Generation(2, 4), on_top=OnTop.NOTHING, replicas=())
    volume = volume.granted("a", base=Generation(2, 4), on_top=OnTop.ALL, replicas=())
    assert volume.grant == Grant("a", 4)
    ancestors = [Generation(1, 3), Generation(1, 9), Generation(2, 4), Generation(4, 1)]
    strays = [Generation(1, 10), Generation(2, 5), Generation(3, 1), Generation(5, 1)]
    assert [g for g in ancestors + strays if volume.grew_out_of(g)] == ancestors


def test_an_epoch_begins_with_what_its_grant_says() -> None:
    volume = record("a", 1, base=None)
    assert volume.on_top is OnTop.ALL
    for number, on_top in enumerate(OnTop, 1):
        volume = volume.granted("b", base=Generation(number, 9), on_top=on_top, replicas=())
        plan = plan_serving(volume, here({}, Generation(number, 9)), node="b")
        assert plan == Promote(Generation(number, 9), number + 1, on_top)
    assert volume.accepting_loss().on_top is OnTop.WHAT_IS_HERE
    assert volume.accepting_loss().lineage[:-1] == volume.lineage[:-1]


def test_of_an_epoch_of_an_earlier_version_nothing_may_be_missing() -> None:
    volume = record("a", 1, base=None).granted(
        "b", base=BASE, on_top=OnTop.WHAT_IS_HERE, replicas=()
    )
    beginnings = (*volume.lineage, Beginning(3, BASE))
    volume = replace(volume, grant=Grant("c", 3), lineage=beginnings)
    assert volume.on_top is OnTop.ALL
    assert replace(volume, grant=Grant("c", 4)).on_top is OnTop.ALL


def test_another_generation_with_the_number_of_the_base_is_a_stray() -> None:
    base = Generation(1, 9, "77aa00ff")
    volume = record("a", 1, base=None).granted("b", base=base, on_top=OnTop.ALL, replicas=())
    assert volume.grew_out_of(base)
    assert volume.grew_out_of(Generation(1, 8, "0f3a94c1"))
    assert not volume.grew_out_of(Generation(1, 9, "0f3a94c1"))
    assert not volume.grew_out_of(Generation(1, 9))


def test_a_holder_keeps_its_base_and_its_newest() -> None:
    generations = [Generation(5, n) for n in range(1, 5)]
    cleanup = plan_cleanup(record(), here({5: False}, BASE, OTHER, *generations), node="a")
    assert cleanup == Cleanup(delete=(OTHER, *generations[:3]))


def test_a_replica_keeps_its_newest() -> None:
    cleanup = plan_cleanup(record("b"), here({}, OTHER, BASE), node="a")
    assert cleanup == Cleanup(delete=(OTHER,))


def test_a_holder_keeps_what_another_copy_has_as_its_newest() -> None:
    generations = [Generation(5, n) for n in range(1, 6)]
    cleanup = plan_cleanup(
        record(), here({5: False}, *generations), node="a", needed=frozenset({generations[1]})
    )
    assert cleanup == Cleanup(delete=(generations[0], *generations[2:4]))


def test_a_holder_without_its_tree_deletes_nothing() -> None:
    assert plan_cleanup(record(), here({}, BASE, OTHER), node="a") == Cleanup()


def test_the_holders_own_tree_is_never_cleaned_up() -> None:
    for sealed in (True, False):
        cleanup = plan_cleanup(record(), here({5: sealed}, BASE), node="a")
        assert cleanup == Cleanup()


def test_the_history_is_bounded() -> None:
    from pannier.core.volume import HISTORY_LIMIT, HistoryEntry

    volume = record()
    for number in range(HISTORY_LIMIT + 5):
        volume = volume.with_entry(HistoryEntry(at=number, what="moved", node="a", epoch=number))
    assert len(volume.history) == HISTORY_LIMIT
    assert volume.history[-1].epoch == HISTORY_LIMIT + 4
    assert replace(volume, history=()).history == ()
