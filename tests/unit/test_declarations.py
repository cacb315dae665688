"""What services declare of a volume that is there: what is taken over, what is left, and that nothing goes back and forth."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pannier.core.declarations import _RULES, Declaration, Means, Settlement, settle, settle_for
from pannier.core.errors import Conflict, InvalidInput, NeedsCopy, PannierError
from pannier.core.options import OPTIONS, parse_options
from pannier.core.volume import Durability, Grant, Volume

MEANS = Means(nodes=3, in_sync=1)


def volume(**options: str) -> Volume:
    return Volume(
        name="web",
        id="web.1",
        spec=parse_options(options),
        grant=Grant("a", 1),
        created_at=0.0,
    )


def asks(service: str = "s", **options: str) -> Declaration:
    return Declaration(f"service {service}", options)


def settled(there: Volume, *declarations: Declaration, means: Means = MEANS) -> Settlement:
    return settle(there, declarations, means)


def after(there: Volume, *declarations: Declaration, means: Means = MEANS) -> Volume:
    """The record that is written."""
    found = settle(there, declarations, means)
    return replace(there, spec=found.spec, declared=dict(found.declared))


TWO = {"copies": "2"}


@pytest.mark.parametrize(
    ("options", "asked", "taken"),
    [
        ({}, {"copies": "2"}, ["copies is 2, was 1", "durability is fsync, was none"]),
        (
            {},
            {"copies": "2", "durability": "interval", "interval": "5s"},
            ["copies is 2, was 1", "durability is interval, was none", "interval is 5s, was 1s"],
        ),
        (TWO, {"copies": "3"}, ["copies is 3, was 2"]),
        (
            {**TWO, "durability": "interval"},
            {"copies": "3"},
            ["copies is 3, was 2"],
        ),
        (
            {**TWO, "durability": "interval"},
            {"durability": "fsync"},
            ["durability is fsync, was interval"],
        ),
        (TWO, {"interval": "500ms"}, ["interval is 0.5s, was 1s"]),
        (TWO, {"interval": "1m"}, ["interval is 60s, was 1s"]),
        ({}, {"labels": "a=b"}, ["labels is a=b, was none"]),
        ({}, {"snapshots": "daily:7"}, ["snapshots is daily:7, was none"]),
        (
            {"snapshots": "daily:7"},
            {"snapshots": "hourly:1,daily:7"},
            ["snapshots is hourly:1,daily:7, was daily:7"],
        ),
        (TWO, {"copies": "2", "durability": "fsync", "driver": "btrfs"}, []),
    ],
)
def test_what_keeps_or_promises_more_is_taken_over(
    options: dict[str, str], asked: dict[str, str], taken: list[str]
) -> None:
    found = settled(volume(**options), asks(**asked))
    assert list(found.taken) == taken
    assert found.by == ("by service s" if taken else "")
    assert not found.left


@pytest.mark.parametrize(
    ("options", "asked", "left"),
    [
        (TWO, {"copies": "1"}, "copies is 2, not 1 (copies are never given up by themselves)"),
        (
            TWO,
            {"durability": "interval"},
            "durability is fsync, not interval (less is never promised by itself)",
        ),
        (
            {**TWO, "min_copies": "2"},
            {"min_copies": "1"},
            "min_copies is 2, not 1 (less is never promised by itself)",
        ),
        (
            {},
            {"size": "1G"},
            "size is none, not 1G (it is as large as its pool, and a volume never shrinks)",
        ),
        ({"size": "1G"}, {"size": "2G"}, "size is 1G, not 2G (only a person changes that)"),
        (
            {"size": "1G", "layout": "tree"},
            {"size": "2G"},
            "size is 1G, not 2G (it stays as it was created)",
        ),
        ({}, {"layout": "tree"}, "layout is image, not tree (it stays as it was created)"),
        ({}, {"mode": "0700"}, "mode is 0755, not 0700 (it stays as it was created)"),
        ({}, {"uid": "33"}, "uid is 0, not 33 (it stays as it was created)"),
        (
            {},
            {"nodes": "b"},
            "nodes is the node that creates it, not b (it stays as it was created)",
        ),
        (
            TWO,
            {"unheld_writes": "refuse"},
            "unheld_writes is warn, not refuse (programs may fail by it, or lose what was promised)",
        ),
        (
            {"protected": "true"},
            {"protected": "false"},
            "protected is true, not false (only a person ends that)",
        ),
        (
            {"snapshots": "daily:7"},
            {"snapshots": "hourly:24,daily:6"},
            "snapshots is daily:7, not hourly:24,daily:6 (snapshots are never given up by themselves)",
        ),
        (
            {"layout": "tree"},
            {"snapshots": "daily:7"},
            "snapshots is none, not daily:7 (only images have snapshots)",
        ),
        (
            {"driver": "directory"},
            TWO,
            "copies is 1, not 2 (the directory driver keeps one copy)",
        ),
        (
            {},
            {"copies": "2", "durability": "none"},
            "copies is 1, not 2 (with durability=none they would never be up to date)",
        ),
        ({}, {"copis": "2"}, "unknown option 'copis' (did you mean 'copies'?)"),
        ({}, {"copies": "x", "labels": "a=b"}, "copies=x is not allowed"),
    ],
)
def test_all_else_stays_and_is_told(
    options: dict[str, str], asked: dict[str, str], left: str
) -> None:
    there = volume(**options)
    found = settled(there, asks(**asked))
    assert (found.spec, found.taken) == (there.spec, ())
    assert [(each.who, each.what) for each in found.left] == [("service s", left)]


@pytest.mark.parametrize(
    ("options", "asked", "now", "later"),
    [
        ({}, {"copies": "4"}, MEANS, Means(nodes=4, in_sync=1)),
        (TWO, {"min_copies": "2"}, MEANS, Means(nodes=3, in_sync=2)),
    ],
)
def test_what_cannot_be_yet_is_taken_over_once_it_can(
    options: dict[str, str], asked: dict[str, str], now: Means, later: Means
) -> None:
    (name,) = asked
    waiting = after(volume(**options), asks(**asked), means=now)
    assert waiting.spec == volume(**options).spec
    (left,) = settled(waiting, asks(**asked), means=now).left
    assert left.what.endswith("now)")
    done = settled(waiting, asks(**asked), means=later)
    assert done.taken[0].startswith(f"{name} is {asked[name]}")
    assert not done.left


def test_an_interval_waits_for_the_second_copy() -> None:
    waiting = after(volume(), asks("one", interval="5s"))
    assert waiting.spec.interval == 1.0
    done = after(waiting, asks("one", interval="5s"), asks("two", copies="2"))
    assert (done.spec.copies, done.spec.interval) == (2, 5.0)


def test_services_that_contradict_each_other_change_nothing() -> None:
    there = after(volume(**TWO), asks("one", interval="5s"))
    found = settled(there, asks("one", interval="5s"), asks("two", interval="9s"))
    assert (found.spec, found.declared) == (there.spec, there.declared)
    assert [(each.who, each.what) for each in found.left] == [
        (
            "service two",
            "interval is 5s, not 9s (service one, service two ask for different values)",
        )
    ]
    alone = settled(there, asks("two", interval="9s"))
    assert alone.taken == ("interval is 9s, was 5s",)


def test_what_was_set_since_stays_until_a_declaration_changes() -> None:
    there = after(volume(**TWO), asks(interval="5s"))
    chosen = by_a_person(there, interval="2s")
    found = settled(chosen, asks(interval="5s"))
    assert found.spec == chosen.spec
    assert found.left[0].what == "interval is 2s, not 5s (it was set otherwise since)"
    assert settled(chosen, asks(interval="6s")).spec.interval == 6.0


def test_a_declaration_that_says_what_is_there_is_remembered_too() -> None:
    """Else it would undo what a person sets afterwards."""
    there = after(volume(**TWO, interval="5s"), asks(interval="5s"))
    chosen = by_a_person(there, interval="2s")
    assert settled(chosen, asks(interval="5s")).spec.interval == 2.0


def test_no_word_is_no_change() -> None:
    there = after(volume(), asks(copies="3", interval="5s"))
    found = settled(there, asks(labels="a=b"))
    assert found.taken == ("labels is a=b, was none",)
    assert not found.left
    assert settled(there).spec == there.spec


def test_what_is_only_told_is_never_taken_over() -> None:
    there = volume(**TWO)
    found = settled(there, Declaration("a container", {"interval": "5s"}, only_told="ask a person"))
    assert (found.spec, found.declared) == (there.spec, {})
    assert "(ask a person)" in found.left[0].what
    both = settled(
        there,
        Declaration("a container", {"interval": "5s"}, only_told="ask a person"),
        asks(interval="9s"),
    )
    assert both.spec.interval == 9.0
    assert "(ask a person)" in both.left[0].what


def test_the_documentation_says_of_each_option_what_happens() -> None:
    assert {option.name for option in OPTIONS if option.later != "stays"} == {
        *_RULES,
        *("driver", "layout"),  # pannier.core.conversion
    }


def by_a_person(there: Volume, *, means: Means = MEANS, **options: str) -> Volume:
    found = settle_for("by anna", there, options, means)
    return replace(there, spec=found.spec, declared=dict(found.declared))


@pytest.mark.parametrize(
    ("options", "asked", "taken"),
    [
        ({}, {"copies": "2"}, ["copies is 2, was 1", "durability is fsync, was none"]),
        (TWO, {"durability": "interval"}, ["durability is interval, was fsync"]),
        ({**TWO, "min_copies": "2"}, {"min_copies": "1"}, ["min_copies is 1, was 2"]),
        (TWO, {"unheld_writes": "refuse"}, ["unheld_writes is refuse, was warn"]),
        ({"size": "1G"}, {"size": "2G"}, ["size is 2G, was 1G"]),
        ({**TWO, "size": "1G"}, {"size": "1G", "interval": "2s"}, ["interval is 2s, was 1s"]),
        ({}, {"protected": "true"}, ["protected is true, was false"]),
        ({"protected": "true"}, {"protected": "false"}, ["protected is false, was true"]),
        ({"snapshots": "daily:7"}, {"snapshots": "none"}, ["snapshots is none, was daily:7"]),
        (TWO, TWO, []),
    ],
)
def test_a_person_may_say_what_is_never_done_by_itself(
    options: dict[str, str], asked: dict[str, str], taken: list[str]
) -> None:
    found = settle_for("by anna", volume(**options), asked, MEANS)
    assert list(found.taken) == taken
    assert found.by == ("by anna" if taken else "")


@pytest.mark.parametrize(
    ("options", "asked", "error", "says"),
    [
        (
            {},
            {"size": "1G"},
            Conflict,
            "size of volume web is none and cannot be 1G: it is as large",
        ),
        ({"size": "2G"}, {"size": "1G"}, Conflict, "a volume never shrinks"),
        ({"size": "1G", "layout": "tree"}, {"size": "2G"}, Conflict, "it stays"),
        ({}, {"layout": "tree"}, NeedsCopy, "layout is tree, was image: that needs a copy"),
        (TWO, {"copies": "1"}, Conflict, "never given up"),
        (TWO, {"durability": "none"}, InvalidInput, "would never be up to date"),
        ({**TWO, "min_copies": "2"}, {"durability": "interval"}, Conflict, "less is never"),
        ({}, {"copies": "9"}, Conflict, "3 nodes could keep one now"),
        ({}, {"interval": "2s", "labels": "a=b"}, Conflict, "needs a second copy"),
        ({}, {"unheld_writes": "refuse"}, Conflict, "needs durability=fsync"),
        ({}, {"copis": "2"}, InvalidInput, "did you mean 'copies'"),
    ],
)
def test_a_person_is_refused_what_cannot_be(
    options: dict[str, str], asked: dict[str, str], error: type[PannierError], says: str
) -> None:
    with pytest.raises(error, match=re.escape(says)) as caught:
        settle_for("by anna", volume(**options), asked, MEANS)
    assert caught.value.remedy


def test_what_waits_is_given_up_where_a_person_sets_the_option() -> None:
    waiting = after(volume(), asks(copies="9"))
    chosen = by_a_person(waiting, copies="2")
    many = Means(nodes=9, in_sync=1)
    found = settled(chosen, asks(copies="9"), means=many)
    assert found.spec.copies == 2
    assert "set otherwise since" in found.left[0].what
    assert settled(chosen, asks(copies="8"), means=many).spec.copies == 8


WORDS = st.fixed_dictionaries(
    {},
    optional={
        "copies": st.sampled_from(["1", "2", "3", "4"]),
        "durability": st.sampled_from(["none", "interval", "fsync"]),
        "interval": st.sampled_from(["1s", "5s"]),
        "min_copies": st.sampled_from(["1", "2", "3"]),
        "labels": st.sampled_from(["a=b", "c=d"]),
        "size": st.sampled_from(["1G", "2G"]),
    },
)
THERE = st.sampled_from(
    [{}, TWO, {**TWO, "durability": "interval"}, {"copies": "3", "min_copies": "2"}]
)


@given(THERE, st.lists(WORDS, max_size=3), st.integers(1, 4), st.integers(1, 3))
def test_it_comes_to_rest_at_once_at_options_that_go_together(
    options: dict[str, str], words: list[dict[str, str]], nodes: int, in_sync: int
) -> None:
    means = Means(nodes=nodes, in_sync=in_sync)
    there = volume(**options)
    said = [asks(f"s{number}", **each) for number, each in enumerate(words)]
    once = after(there, *said, means=means)
    again = settle(once, said, means)
    assert (again.spec, dict(again.declared), again.taken) == (once.spec, once.declared, ())
    assert (once.spec.copies > 1) == (once.spec.durability is not Durability.NONE)
    assert there.spec.copies <= once.spec.copies <= max(there.spec.copies, nodes)
    assert there.spec.min_copies <= once.spec.min_copies <= once.spec.copies
    assert once.spec.size == there.spec.size
