"""Which copy in sync goes on without anybody's word, and which must not."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest

from pannier.core.errors import Conflict, PannierError, Stale, Unavailable
from pannier.core.generation import Generation
from pannier.core.recovery import (
    FoundCopy,
    all_alike,
    check_takeover,
    choose_in_sync,
    choose_successor,
    newest_of,
    takeover_possible,
)
from pannier.core.volume import Durability, Grant, Volume, VolumeSpec

G = Generation
RECORD = Volume(
    name="vol",
    id="vol.1",
    spec=VolumeSpec(copies=3, durability=Durability.FSYNC),
    grant=Grant("a", 5),
    replicas=("b", "c"),
    in_sync=("b", "c"),
    base=G(4, 9),
    created_at=0.0,
)


def has(
    generation: Generation, record: tuple[Generation, int] | None = None, lacks: str = ""
) -> FoundCopy:
    return FoundCopy(generation=generation, record=record, lacks=lacks)


@pytest.mark.parametrize(
    ("node", "holder_up", "in_sync"), [*product("ab", (True, False), ((), ("b",), ("c",)))]
)
def test_a_takeover_is_possible_once_the_holder_is_gone_and_any_copy_is_in_sync(
    node: str, holder_up: bool, in_sync: tuple[str, ...]
) -> None:
    expected = node == "b" and not holder_up and in_sync != ()
    record = replace(RECORD, in_sync=in_sync)
    assert takeover_possible(record, node=node, holder_up=holder_up) is expected


@pytest.mark.parametrize(
    ("durability", "alike"),
    [(Durability.FSYNC, True), (Durability.INTERVAL, False), (Durability.NONE, False)],
)
def test_only_sync_calls_make_all_copies_in_sync_alike(durability: Durability, alike: bool) -> None:
    assert all_alike(replace(RECORD, spec=VolumeSpec(durability=durability))) is alike


@pytest.mark.parametrize(
    ("generations", "newest"),
    [
        ((), None),
        ((G(5, 1), G(5, 3), G(5, 2)), G(5, 3)),
        ((G(4, 9), G(4, 10)), G(4, 9)),  # what came after the base is a stray
        ((G(4, 10),), None),
        ((G(6, 1),), None),
    ],
)
def test_the_newest_of_a_copy_is_no_stray(
    generations: tuple[Generation, ...], newest: Generation | None
) -> None:
    assert newest_of(RECORD, generations) == newest


@pytest.mark.parametrize(
    ("copies", "chosen"),
    [
        ({"b": has(G(5, 1)), "c": has(G(5, 2))}, "c"),
        ({"b": has(G(5, 2)), "c": has(G(5, 1))}, "b"),
        ({"b": has(G(5, 1)), "c": has(G(5, 1))}, "c"),  # the one that asks
        ({"b": has(G(5, 1)), "c": None}, "b"),
        ({"b": has(G(5, 1)), "d": has(G(5, 1))}, "b"),
        ({"b": has(G(5, 1), (G(5, 1), 4)), "c": has(G(5, 1), (G(5, 1), 3))}, "b"),
        ({"b": has(G(5, 1), (G(5, 1), 1)), "c": has(G(5, 1))}, "b"),
        # Its last record was made after the generation that the other one has, and it has all that are before.
        ({"b": has(G(5, 1), (G(5, 2), 9)), "c": has(G(5, 2), (G(5, 2), 8))}, "b"),
        ({"b": has(G(5, 1), (G(5, 2), 8)), "c": has(G(5, 2), (G(5, 2), 9))}, "c"),
        ({"b": has(G(5, 1), (G(5, 1), 9)), "c": has(G(5, 2))}, "c"),
        ({"b": has(G(5, 2), lacks="?"), "c": has(G(5, 1))}, "c"),
    ],
)
def test_the_copy_in_sync_that_is_furthest_goes_on(
    copies: dict[str, FoundCopy | None], chosen: str
) -> None:
    assert choose_in_sync(RECORD, copies, node="c") == chosen


@pytest.mark.parametrize("copies", [{}, {"b": None, "c": None}])
def test_without_any_copy_that_answers_the_nodes_to_start_are_named(
    copies: dict[str, FoundCopy | None],
) -> None:
    with pytest.raises(Unavailable, match="every node with a copy in sync: b, c") as caught:
        choose_in_sync(RECORD, copies, node="c")
    assert caught.value.remedy == "start one of a, b, c"


def test_where_each_copy_that_answers_lacks_something_it_is_told_what() -> None:
    copies = {"b": has(G(5, 1), lacks="its journal was damaged"), "c": None}
    with pytest.raises(Unavailable, match="b: its journal was damaged") as caught:
        choose_in_sync(RECORD, copies, node="c")
    assert caught.value.remedy.startswith("start one of a, c; or accept the loss")


@pytest.mark.parametrize(
    ("b", "c", "chosen"),
    [
        (has(G(5, 1), (G(5, 1), 9), lacks="?"), has(G(5, 1)), "c"),
        (has(G(5, 2), lacks="?"), has(G(5, 1)), "b"),
        (has(G(5, 2), lacks="?"), has(G(5, 1), (G(5, 2), 3)), "c"),
        (has(G(5, 1), (G(5, 1), 2)), has(G(5, 1), (G(5, 1), 3)), "c"),
    ],
)
def test_a_person_gets_the_copy_that_is_furthest_and_of_equal_ones_one_that_lacks_nothing(
    b: FoundCopy, c: FoundCopy, chosen: str
) -> None:
    found = choose_successor(RECORD, holder_up=False, copies={"b": b, "c": c})
    assert found.node == chosen


OUT, PROMISED = replace(RECORD, in_sync=("c",)), 0.001
CHECKS: dict[tuple[int, bool, float], type[PannierError] | None] = {
    # epoch, in sync, seconds promised
    (5, True, 0.0): None,
    (5, True, PROMISED): Unavailable,
    (5, False, 0.0): Conflict,
    (5, False, PROMISED): Conflict,
    (4, True, 0.0): Stale,
    (4, True, PROMISED): Stale,
    (4, False, 0.0): Stale,
    (4, False, PROMISED): Stale,
    (6, True, 0.0): Stale,
    (6, True, PROMISED): Stale,
    (6, False, 0.0): Stale,
    (6, False, PROMISED): Stale,
}


@pytest.mark.parametrize("cell", CHECKS)
def test_who_may_take_over(cell: tuple[int, bool, float]) -> None:
    epoch, in_sync, promised = cell
    record, found = RECORD if in_sync else OUT, None
    try:
        check_takeover(record, node="b", epoch=epoch, promised_seconds=promised)
    except PannierError as error:
        found = type(error)
    assert found is CHECKS[cell]
