"""Where copies are kept, and which one goes on when the holder is lost."""

from dataclasses import replace

import pytest

from pannier.core.errors import Conflict, InvalidInput, Unavailable
from pannier.core.generation import Generation
from pannier.core.placement import (
    Candidate,
    place_holder,
    place_moved,
    place_replicas,
    repair_replicas,
    replicas_after_move,
)
from pannier.core.recovery import FoundCopy, Successor, choose_successor, found_copy
from pannier.core.volume import Grant, Volume, VolumeSpec

G = Generation


def node(name: str, copies: int = 0, *, up: bool = True, drained: bool = False) -> Candidate:
    return Candidate(name=name, up=up, drained=drained, drivers=("btrfs",), copies=copies)


def volume(*replicas: str, copies: int = 2, base: Generation | None = None) -> Volume:
    return Volume(
        name="v",
        id="v.1",
        spec=VolumeSpec(copies=copies),
        grant=Grant("a", 5),
        replicas=replicas,
        base=base,
        created_at=0.0,
    )


@pytest.mark.parametrize(
    ("wished", "chosen"),
    [
        ((), "a"),
        (("b",), "b"),
        (("b", "a"), "b"),
        (("down", "b"), "b"),
        (("drained", "down", "c"), "c"),
        (("other",), "other"),  # which says itself what it lacks
    ],
)
def test_a_new_volume_is_made_on_the_first_wished_node_that_can_take_it_else_here(
    wished: tuple[str, ...], chosen: str
) -> None:
    nodes = [node("a", 9), node("b", 5), node("c", 1), node("down", up=False)]
    nodes += [node("drained", drained=True), replace(node("other"), drivers=("directory",))]
    assert place_holder(VolumeSpec(nodes=wished), nodes, here="a") == chosen


def test_a_drained_node_makes_new_volumes_on_the_emptiest_other_one() -> None:
    nodes = [node("a", drained=True), node("b", 2), node("c", 1), node("d", up=False)]
    nodes.append(replace(node("e"), drivers=("directory",)))
    assert place_holder(VolumeSpec(), nodes, here="a") == "c"
    with pytest.raises(Conflict, match="no new volume can be made on a:"):
        place_holder(VolumeSpec(), [node("a", drained=True)], here="a")
    with pytest.raises(Conflict, match="no new volume can be made on a, d:"):
        place_holder(VolumeSpec(nodes=("a", "d")), nodes, here="b")


def test_a_wish_for_an_unknown_node_is_not_passed_over() -> None:
    with pytest.raises(InvalidInput, match="names x, which is no node") as caught:
        place_holder(VolumeSpec(nodes=("a", "x")), [node("a"), node("b")], here="a")
    assert caught.value.remedy == "the nodes are a, b"


@pytest.mark.parametrize(
    ("nodes", "chosen"),
    [
        ([node("a"), node("b", 9), node("c", 1)], "b"),  # it has a copy
        ([node("a"), node("b", up=False), node("c", 2), node("d", 1)], "d"),
        ([node("a"), node("b", drained=True), node("c", 2)], "c"),
        ([node("a"), node("b", up=False)], None),
        ([node("a")], None),
        ([node("a"), replace(node("b"), drivers=("directory",))], None),
    ],
)
def test_a_node_that_shall_be_empty_gives_to_a_copy_else_to_the_emptiest(
    nodes: list[Candidate], chosen: str | None
) -> None:
    assert place_moved(volume("b"), nodes) == chosen


def test_wished_nodes_come_first_then_the_emptiest() -> None:
    nodes = [node("a", 0), node("b", 9), node("c", 1), node("d", 2)]
    assert place_replicas(VolumeSpec(copies=3), nodes, holder="a") == ("c", "d")
    wish = VolumeSpec(copies=3, nodes=("a", "b"))
    assert place_replicas(wish, nodes, holder="a") == ("b", "c")


def test_of_nodes_with_as_many_copies_the_one_with_most_room_and_a_full_one_last() -> None:
    nodes = [node("a"), node("b", 1), node("c", 1), node("d", 5), node("e", 0)]
    rooms = {"b": 3, "c": 7, "d": 1, "e": 0}
    nodes = [replace(each, room=rooms.get(each.name, 10)) for each in nodes]
    chosen = place_replicas(VolumeSpec(copies=5), nodes, holder="a")
    assert chosen == ("c", "b", "d", "e")


def test_nodes_that_are_down_drained_or_without_the_driver_get_no_copy() -> None:
    nodes = [node("a"), node("b", up=False), node("c", drained=True), node("d")]
    nodes.append(replace(node("e"), drivers=("directory",)))
    assert place_replicas(VolumeSpec(copies=2), nodes, holder="a") == ("d",)
    with pytest.raises(Conflict, match="needs 2 nodes beside a"):
        place_replicas(VolumeSpec(copies=3), nodes, holder="a")


def test_a_move_keeps_the_number_of_copies_and_the_former_holders() -> None:
    assert replicas_after_move(volume("b"), target="b") == ("a",)
    assert replicas_after_move(volume("b"), target="c") == ("a",)
    assert replicas_after_move(volume("b", "c", copies=3), target="c") == ("a", "b")
    assert replicas_after_move(volume("b", "c", copies=3), target="d") == ("a", "b")
    assert replicas_after_move(volume(copies=1), target="b") == ()


def test_a_replica_that_is_gone_is_replaced_where_a_node_is_fit() -> None:
    nodes = [node("a"), node("b"), node("c", 3), node("d", 1)]
    gone = frozenset({"b"})
    assert repair_replicas(volume("b"), nodes, gone=gone) == ("d",)
    assert repair_replicas(volume("b", "d", copies=3), nodes, gone=gone) == ("d", "c")
    assert repair_replicas(volume("b"), nodes, gone=frozenset()) == ("b",)
    assert repair_replicas(volume("b"), nodes[:2], gone=gone) == ("b",), "it may return"
    assert repair_replicas(volume("b"), nodes[:1], gone=gone) == (), "it left the cluster"
    assert repair_replicas(volume(), nodes, gone=frozenset()) == ("b",), "asked for again later"


def test_the_newest_copy_that_answers_goes_on() -> None:
    copies = {"b": FoundCopy(generation=G(5, 3)), "c": FoundCopy(generation=G(5, 2)), "d": None}
    found = choose_successor(volume("b", "c"), holder_up=False, copies=copies)
    assert found == Successor("b", FoundCopy(generation=G(5, 3)))


def test_a_strays_generations_are_no_copy_of_the_volume() -> None:
    record = volume("b", "c", base=G(4, 7))
    stray = found_copy(record, [G(4, 9), G(3, 20), G(4, 6)], last=(G(4, 9), 7))
    assert stray == FoundCopy(generation=G(4, 6))
    assert found_copy(record, [G(4, 9)]) is None
    copies = {"b": found_copy(record, [G(4, 7)]), "c": stray}
    assert choose_successor(record, holder_up=False, copies=copies).node == "b"


def test_a_holder_that_is_up_keeps_its_volume() -> None:
    with pytest.raises(Conflict, match="is up"):
        choose_successor(volume("b"), holder_up=True, copies={"b": FoundCopy(generation=G(5, 1))})


@pytest.mark.parametrize("copies", [{}, {"b": None}, {"a": FoundCopy(generation=G(5, 1))}])
def test_without_a_copy_it_is_refused_and_says_where_the_data_is(
    copies: dict[str, FoundCopy | None],
) -> None:
    with pytest.raises(Unavailable, match="node a has the data"):
        choose_successor(volume("b"), holder_up=False, copies=copies)
