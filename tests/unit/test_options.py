"""What people type as options, right and wrong."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pannier.core.errors import AlreadyExists, InvalidInput
from pannier.core.generation import Generation, best_base
from pannier.core.node import check_node_name
from pannier.core.options import (
    OPTIONS,
    check_copies,
    check_same_options,
    describe_spec,
    parse_options,
)
from pannier.core.size import LARGEST_BYTES, SMALLEST_BYTES, format_size, parse_size
from pannier.core.volume import Durability, Grant, Volume, VolumeSpec, check_name


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("10G", 10 * 2**30),
        ("1.5GiB", 3 * 2**29),
        ("1048576", 2**20),
        ("7 mb", 7 * 2**20),
        ("2t", 2 * 2**40),
    ],
)
def test_sizes_as_people_write_them(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    [
        "10Q",
        "-1",
        "0",
        "",
        "G",
        "1e9",
        "NaN",
        "inf",
        "1,5G",
        "10Gi",
        "9" * 40,
        "1K",
        "99P",
        "１０G",
    ],
)
def test_a_size_that_cannot_be_is_an_error(text: str) -> None:
    with pytest.raises(InvalidInput, match="size="):
        parse_size(text)


@given(st.integers(SMALLEST_BYTES, LARGEST_BYTES))
def test_a_formatted_size_reads_back_within_a_twentieth(size: int) -> None:
    assert abs(parse_size(format_size(size)) - size) <= size / 20


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        ({"sice": "1G"}, "did you mean 'size'"),
        ({"size": "10Q"}, "size=10Q"),
        ({"size": "-1"}, "size=-1"),
        ({"copies": "0"}, "copies=0"),
        ({"copies": "two"}, "copies=two"),
        ({"copies": "２"}, "copies="),
        ({"durability": "fsync"}, "needs a second copy"),
        ({"copies": "2", "durability": "none"}, "never be up to date"),
        ({"copies": "2", "min_copies": "3"}, "could never be met"),
        ({"copies": "2", "durability": "interval", "min_copies": "2"}, "is about sync calls"),
        ({"copies": "2", "unheld_writes": "kill"}, "is not allowed"),
        ({"unheld_writes": "refuse"}, "is about what durability=fsync promises"),
        ({"durability": "interval"}, "needs a second copy"),
        ({"interval": "1s"}, "more than one copy"),
        ({"copies": "2", "interval": "1"}, "interval=1 is not a time"),
        ({"copies": "2", "interval": "1h"}, "interval=1h is not a time"),
        ({"copies": "2", "interval": "1ms"}, "out of range"),
        ({"copies": "2", "driver": "directory"}, "keeps one copy"),
        ({"durability": "fsink"}, "did you mean 'fsync'"),
        ({"driver": "zfs"}, "driver=zfs"),
        ({"driver": "image"}, "driver=image"),
        ({"layout": "file"}, "layout=file"),
        ({"layout": "image", "driver": "directory"}, "has one layout of its own"),
        ({"mode": "0999"}, "mode=0999"),
        ({"mode": "7"}, "mode=7"),
        ({"uid": "-1"}, "uid=-1"),
        ({"uid": "99999999999999999999999"}, "uid="),
        ({"nodes": "a,,b"}, "cannot name a node"),
        ({"nodes": "a,a"}, "twice"),
        ({"labels": "x"}, "labels=x"),
    ],
)
def test_bad_options_name_the_thing_and_the_remedy(options: dict[str, str], hint: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_options(options)
    assert hint in str(caught.value)
    assert caught.value.remedy


def test_options_are_read_into_a_spec_and_described_again() -> None:
    typed = {"size": "10G", "nodes": "n1,n2", "uid": "1000", "mode": "0750", "labels": "a=b,c="}
    spec = parse_options(typed)
    assert spec == VolumeSpec(
        size=10 * 2**30,
        driver="image",
        nodes=("n1", "n2"),
        uid=1000,
        mode=0o750,
        labels={"a": "b", "c": ""},
    )
    assert describe_spec(spec) == {**typed, "driver": "btrfs", "layout": "image"}
    assert all(hasattr(VolumeSpec(), option.name) for option in OPTIONS)


def test_copies_are_kept_up_to_date_without_being_asked() -> None:
    spec = parse_options({"copies": "3", "interval": "1.5s"})
    assert (spec.durability, spec.interval) == (Durability.FSYNC, 1.5)
    assert describe_spec(spec) == {
        "copies": "3",
        "durability": "fsync",
        "interval": "1.5s",
        "driver": "btrfs",
        "layout": "image",
    }


@pytest.mark.parametrize(
    ("options", "driver"),
    [({}, "image"), ({"layout": "tree"}, "btrfs"), ({"layout": "image"}, "image")],
)
def test_a_layout_is_how_a_btrfs_pool_keeps_it(options: dict[str, str], driver: str) -> None:
    for typed in (options, {"driver": "btrfs", **options}):
        spec = parse_options(typed)
        assert spec.driver == driver
        assert parse_options(describe_spec(spec)) == spec
        assert describe_spec(spec) == {"driver": "btrfs", "layout": options.get("layout", "image")}


def test_a_node_without_a_pool_keeps_directories() -> None:
    assert parse_options({}, default_driver="directory").driver == "directory"
    assert parse_options({"driver": "directory"}).driver == "directory"
    for options in ({"layout": "tree"}, {"layout": "image"}):
        with pytest.raises(InvalidInput, match="one layout of its own"):
            parse_options(options, default_driver="directory")
        assert parse_options({"driver": "btrfs", **options}, default_driver="directory").layout


def test_more_copies_than_nodes_is_said_first() -> None:
    with pytest.raises(InvalidInput, match="the cluster has 3"):
        check_copies({"copies": "9"}, nodes=3)
    check_copies({"copies": "3"}, nodes=3)
    check_copies({}, nodes=0)


def test_the_same_name_again_compares_only_what_was_asked_for() -> None:
    volume = Volume(
        name="v",
        id="v.1",
        spec=parse_options({"size": "10G", "uid": "5", "layout": "tree"}),
        grant=Grant("a", 1),
        created_at=0.0,
    )
    check_same_options(volume, {})
    check_same_options(volume, {"size": "10240M"})
    with pytest.raises(AlreadyExists, match="size is 10G, not 20G"):
        check_same_options(volume, {"size": "20G", "uid": "5"})
    with pytest.raises(AlreadyExists, match="gid is 0, not 7"):
        check_same_options(volume, {"gid": "7"})
    with pytest.raises(InvalidInput, match="unknown option"):
        check_same_options(volume, {"sice": "10G"})
    with pytest.raises(AlreadyExists, match="layout is tree, not image"):
        check_same_options(volume, {"layout": "image"})
    image = replace(volume, spec=parse_options({"layout": "image"}))
    check_same_options(image, {"layout": "image", "driver": "btrfs"})
    check_same_options(image, {"driver": "btrfs"})
    with pytest.raises(AlreadyExists, match="layout is image, not tree"):
        check_same_options(image, {"layout": "tree"})


@pytest.mark.parametrize("name", ["ab", "jenkins_home", "a.b-c_D9", "x" * 128])
def test_names_that_docker_allows(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name", ["", "a", "a/b", "..", "../x", ".x", "-x", "a\0b", "a b", "ä" * 3, "x" * 300, "a\n"]
)
def test_names_that_cannot_be(name: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        check_name(name)
    assert caught.value.remedy


@pytest.mark.parametrize("name", ["", "-a", "a-", "a..b", "a/b", "x" * 64, "a_b", "a\n"])
def test_node_names_that_cannot_be(name: str) -> None:
    with pytest.raises(InvalidInput):
        check_node_name(name)


def test_generations_sort_by_epoch_and_sequence_and_read_back() -> None:
    generations = [Generation(10, 1), Generation(2, 30, "0f3a94c1"), Generation(2, 4)]
    assert [str(g) for g in sorted(generations)] == ["2.4", "2.30-0f3a94c1", "10.1"]
    assert all(Generation.parse(str(g)) == g for g in generations)
    for wrong in ("", "1", "1.", "01.2", "-1.2", "1.2.3", "a.b", "1.2\n"):
        with pytest.raises(InvalidInput):
            Generation.parse(wrong)


def test_the_best_base_is_the_nearest_before_and_without_one_the_nearest_after() -> None:
    one, two, three, four = (Generation(1, number) for number in (1, 2, 3, 4))
    assert best_base(three, (one, two, three), (one, Generation(2, 1))) == one
    assert best_base(two, (one, two, three, four), (one, three, four)) == one
    assert best_base(two, (one, two, three, four), (three, four)) == three
    assert best_base(two, (one, two), ()) is None


def test_a_number_that_was_given_twice_is_not_the_same_generation() -> None:
    """A disk that was set back gives numbers again; what is there by the old one is no base."""
    first, second = Generation(1, 5, "0f3a94c1"), Generation(1, 5, "77aa00ff")
    base, newer = Generation(1, 4), Generation(1, 6)
    assert best_base(newer, (base, second), (base, first)) == base
    assert first != second
    assert max(second, Generation(1, 6)) == Generation(1, 6)
