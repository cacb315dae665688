"""Which options need a copy of a volume's files, what it is then, and what people are told before."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pannier.core.conversion import converted, exchanged, in_use
from pannier.core.declarations import Means, settle_for
from pannier.core.errors import Conflict, InvalidInput, NeedsCopy, PannierError
from pannier.core.generation import Generation
from pannier.core.options import parse_options
from pannier.core.snapshots import Snapshot
from pannier.core.volume import Durability, Grant, HistoryEntry, Volume

MEANS = Means(nodes=3, in_sync=1)


def volume(**options: str) -> Volume:
    created = HistoryEntry(at=1.0, what="created", node="n1", epoch=1)
    return Volume(
        name="vol",
        id="vol.1",
        spec=parse_options(options),
        grant=Grant("n1", 3),
        created_at=1.0,
        history=(created,),
    )


@pytest.mark.parametrize(
    "options",
    [
        {"size": "20G"},
        {"copies": "2"},
        {"layout": "image", "driver": "btrfs"},
        {"durability": "none"},
        {"from": "another"},
    ],
)
def test_what_is_changed_in_place(options: dict[str, str]) -> None:
    assert converted(volume(size="10G"), options) is None


@pytest.mark.parametrize(
    ("was", "options", "driver"),
    [
        ({"layout": "tree"}, {"layout": "image"}, "image"),
        ({}, {"layout": "tree"}, "btrfs"),
        ({}, {"driver": "directory"}, "directory"),
        ({"driver": "directory"}, {"layout": "image", "driver": "btrfs"}, "image"),
    ],
)
def test_another_driver_needs_a_copy(
    was: dict[str, str], options: dict[str, str], driver: str
) -> None:
    before = volume(**was)
    assert converted(before, options) == replace(before.spec, driver=driver)
    with pytest.raises(NeedsCopy, match="then its users stop once"):
        settle_for("by anna", before, options, MEANS)


def test_the_driver_alone_says_nothing_of_the_layout() -> None:
    assert converted(volume(layout="tree"), {"driver": "btrfs"}) is None


def test_what_is_promised_goes_with_the_copies() -> None:
    two = volume(copies="2", min_copies="2", interval="5s")
    alone = converted(two, {"durability": "none", "copies": "1"})
    assert alone is not None
    assert (alone.copies, alone.durability, alone.min_copies) == (1, Durability.NONE, 1)
    assert alone == converted(two, {"driver": "btrfs", "copies": "1", "durability": "none"})
    alone = converted(two, {"driver": "directory", "copies": "1"})
    assert alone is not None
    assert alone.durability is Durability.NONE
    more = converted(volume(), {"layout": "tree", "copies": "2"})
    assert more is not None
    assert more.durability is Durability.FSYNC


@pytest.mark.parametrize(
    ("was", "options", "error", "says"),
    [
        ({"copies": "2"}, {"durability": "none"}, InvalidInput, "never be up to date"),
        ({"copies": "2"}, {"driver": "directory"}, InvalidInput, "keeps one copy"),
        ({"snapshots": "daily:2"}, {"layout": "tree"}, InvalidInput, "only images"),
        ({}, {"layout": "tree", "mode": "0700"}, Conflict, "mode of volume vol stays"),
        ({}, {"layout": "tree", "nodes": "n2"}, Conflict, "nodes of volume vol stays"),
        ({"protected": "true"}, {"layout": "tree"}, Conflict, "is protected"),
        (
            {"protected": "true"},
            {"layout": "tree", "protected": "false"},
            Conflict,
            "is protected",
        ),
    ],
)
def test_what_cannot_be(
    was: dict[str, str], options: dict[str, str], error: type[PannierError], says: str
) -> None:
    with pytest.raises(error, match=says):
        converted(volume(**was), options)


def test_a_user_is_told_how_long_it_stands_still() -> None:
    snapshot = Snapshot(name="one", generation=Generation(1, 1), made_at=0.0)
    with_one = replace(volume(), snapshots=(snapshot,))
    told = in_use(with_one, ["ci.1"], used_bytes=5 * 2**30)
    assert "in use on node n1 by ci.1" in told.message
    assert "with its 1 snapshots; for 5G it stands still for some 52 s" in told.message
    assert "--stop-service" in told.remedy


def test_the_name_changes_hands() -> None:
    old = volume(labels="a=b")
    new = Volume(name="vol", id="vol.2", spec=old.spec, grant=Grant("n1", 1), created_at=9.0)
    given, gone = exchanged(old, new, ["layout is tree, was image"], at=9.0, actor="anna")
    assert (given.id, given.created_at, given.removed_at) == ("vol.2", 1.0, None)
    assert [line.what for line in given.history] == ["created", "converted"]
    assert given.history[-1].detail == (
        "layout is tree, was image, by anna; what it was is in the trash as vol.1"
    )
    assert (gone.id, gone.removed_at) == ("vol.1", 9.0)
    assert gone.history[-1].detail == "converted by anna, into vol.2"
