"""The kernel's list of mounts: read whatever is in it."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from pannier.core.errors import StorageError
from pannier.host.mountinfo import (
    Location,
    Mount,
    OthersMounts,
    OwnMounts,
    below,
    join,
    locate,
    mount_at,
    own_mounts,
    parse_mount_line,
    parse_mountinfo,
    visible_at,
)


def test_reads_escapes_and_optional_fields() -> None:
    line = rb"36 35 98:0 /a\040b /mnt/c\134d\011e rw,noatime master:1 propagate_from:2 - ext3 /dev/x rw"
    assert parse_mount_line(line) == Mount(
        36, 35, "98:0", "/a b", "/mnt/c\\d\te", "ext3", "/dev/x", "rw", False
    )
    assert parse_mount_line(b"36 35 98:0 / /mnt nosuid,ro,noatime - ext3 /dev/x rw") == Mount(
        36, 35, "98:0", "/", "/mnt", "ext3", "/dev/x", "rw", True
    )


@pytest.mark.parametrize(
    "line", [b"", b"1 2 3", b"a b 0:1 / / rw - ext4 x rw", b"1 2 0:1 / / rw -"]
)
def test_skips_lines_of_another_form(line: bytes) -> None:
    assert parse_mount_line(line) is None


def test_names_that_are_no_utf8_survive() -> None:
    line = b"1 2 0:1 / /mnt/\xff rw - ext4 x rw"
    mount = parse_mount_line(line)
    assert mount is not None
    assert os.fsencode(mount.point) == b"/mnt/\xff"


@pytest.mark.parametrize(
    ("path", "top", "rest"),
    [
        ("/a/b", "/a", "/b"),
        ("/a", "/a", ""),
        ("/ab", "/a", None),
        ("/", "/", ""),
        ("/a", "/", "/a"),
        ("/a", "/a/b", None),
    ],
)
def test_below_and_join(path: str, top: str, rest: str | None) -> None:
    assert below(path, top) == rest
    if rest is not None:
        assert join(top, rest) == path


TABLE = parse_mountinfo(
    b"1 0 8:1 / / rw - ext4 a rw\n"
    b"2 1 0:51 / /pool rw - btrfs b rw\n"
    b"3 1 0:51 /vols /srv/vols rw - btrfs b rw\n"
    b"4 1 0:60 / /stack rw - tmpfs c rw\n"
    b"5 4 0:61 / /stack rw - tmpfs d rw\n"
    b"6 1 0:62 / /poolside rw - tmpfs e rw\n"
)


@pytest.mark.parametrize(
    ("path", "covered", "device", "inside"),
    [
        ("/etc/x", False, "8:1", "/etc/x"),
        ("/pool/vols/v 1", False, "0:51", "/vols/v 1"),
        ("/srv/vols/v", False, "0:51", "/vols/v"),
        ("/pool", False, "0:51", "/"),
        ("/pool", True, "8:1", "/pool"),
        ("/stack/x", False, "0:61", "/x"),
        ("/stack", True, "8:1", "/stack"),
        ("/", False, "8:1", "/"),
    ],
)
def test_locates_a_directory(path: str, covered: bool, device: str, inside: str) -> None:
    assert locate(Path(path), TABLE, covered=covered) == Location(device, inside)


def test_a_directory_under_no_mount_is_an_error() -> None:
    with pytest.raises(StorageError):
        locate(Path("/x"), ())


def test_an_empty_source_shifts_nothing() -> None:
    mount = parse_mount_line(b"1 2 0:1 / /mnt rw shared:3 - tmpfs  rw,size=4k")
    assert mount is not None
    assert (mount.fstype, mount.source, mount.options) == ("tmpfs", "", "rw,size=4k")


def test_of_several_mounts_at_one_place_the_last_is_seen() -> None:
    found = visible_at("/stack", TABLE)
    assert found is not None
    assert found.id == 5
    assert visible_at("/pool/vols", TABLE) is None


def test_finds_a_thread_s_mount_by_its_id() -> None:
    tid, mounts = threading.get_native_id(), OthersMounts()
    for mount in own_mounts():
        assert mounts.find(tid, mount.id) == mount
    assert mounts.find(tid, 0) is None
    with pytest.raises(OSError, match="No such file"):
        mounts.find(2**30, 0)
    mounts.let_go()


def test_what_did_not_change_is_not_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    tid, mounts, own = threading.get_native_id(), OthersMounts(), OwnMounts()
    known = own()
    assert mounts.find(tid, known[0].id) == known[0]
    monkeypatch.setattr(os, "read", lambda *_: pytest.fail("it was read"))
    assert mounts.find(tid, known[-1].id) == known[-1]
    assert own() is known
    mounts.let_go()
    with pytest.raises(pytest.fail.Exception):
        mounts.find(tid, known[0].id)


def test_what_is_mounted_at_a_path_is_found_through_links(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to("/proc")
    found = mount_at(link)
    assert found is not None
    assert found.fstype == "proc"
    assert mount_at(tmp_path / "nothing") is None
