"""Any tree, brought over as the difference to any other tree, is equal; on values and on disk."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from functools import partial
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pannier.core.errors import Corrupt
from pannier.storage.tree.manifest import (
    DIRECTORY,
    EMPTY,
    FILE,
    LINK,
    SYMLINK,
    Manifest,
    TreeEntry,
    apply,
    check,
    decode,
    difference,
    encode,
)
from pannier.storage.tree.stream import Tree, receive_tree, send_tree
from pannier.storage.tree.walk import CachedHasher, remove_tree, scan

NAMES = st.sampled_from([*"abcd", "a b", "é", "\udcff", "new\nline", "-rf", "a.b", "A"])
MODES = st.integers(0, 0o7777)
TIMES = st.integers(0, 2**62)


@st.composite
def entries(draw: st.DrawFn, path: str, directories: list[str], files: list[str]) -> TreeEntry:
    kind = draw(st.sampled_from([DIRECTORY, FILE, FILE, SYMLINK, LINK]))
    if kind == LINK and files:
        return TreeEntry(path=path, kind=LINK, target=draw(st.sampled_from(files)))
    entry = partial(
        TreeEntry,
        path=path,
        mode=draw(MODES),
        uid=draw(st.integers(0, 3)),
        gid=draw(st.integers(0, 3)),
        mtime_ns=draw(TIMES),
    )
    if kind == DIRECTORY:
        directories.append(path)
        return entry(kind=DIRECTORY)
    if kind == SYMLINK:
        return entry(kind=SYMLINK, target=draw(NAMES))
    files.append(path)
    size = draw(st.integers(0, 9))
    return entry(kind=FILE, size=size, sha256=f"{size:064x}")


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    found = {"": TreeEntry(path="", kind=DIRECTORY, mode=draw(MODES))}
    directories = [""]
    files: list[str] = []
    for _ in range(draw(st.integers(0, 12))):
        parent, name = draw(st.sampled_from(directories)), draw(NAMES)
        path = f"{parent}/{name}" if parent else name
        if path not in found:
            found[path] = draw(entries(path, directories, files))
    return Manifest.of(found.values())


@given(old=manifests(), new=manifests())
def test_applying_the_difference_gives_the_new_one(old: Manifest, new: Manifest) -> None:
    made = apply(old, difference(old, new))
    assert made == new
    assert made.digest() == new.digest()
    check(made)


@given(one=manifests(), other=manifests())
def test_digests_are_equal_exactly_where_manifests_are(one: Manifest, other: Manifest) -> None:
    assert (one.digest() == other.digest()) == (one == other)


@given(manifests())
def test_a_manifest_survives_being_written(manifest: Manifest) -> None:
    assert Manifest.of(decode(encode(manifest.entries.values()))) == manifest


@given(manifests())
def test_nothing_changes_between_equal_trees(manifest: Manifest) -> None:
    changes = difference(manifest, manifest)
    assert (changes.removed, changes.changed) == ((), ())


@given(st.binary(max_size=200))
def test_garbage_is_refused(data: bytes) -> None:
    with pytest.raises(Corrupt):
        check(Manifest.of(decode(data)))


@pytest.mark.parametrize(
    "path", ["../x", "a/../../x", "/etc/passwd", "a//b", ".", "..", "missing/x", "file/x"]
)
def test_names_that_lead_out_of_the_tree_are_refused(path: str) -> None:
    tree = [
        TreeEntry(path="", kind=DIRECTORY),
        TreeEntry(path="a", kind=DIRECTORY),
        TreeEntry(path="file", kind=FILE),
        TreeEntry(path=path, kind=FILE),
    ]
    with pytest.raises(Corrupt):
        check(Manifest.of(tree))


STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            ["write", "write", "mkdir", "symlink", "link", "remove", "rename", "chmod", "utime"]
        ),
        st.integers(0, 30),
        st.integers(0, 30),
        NAMES,
        st.binary(max_size=20),
    ),
    max_size=12,
)


def play(root: Path, steps: list[tuple[str, int, int, str, bytes]]) -> None:
    """Change a tree; steps that make no sense in it are skipped."""
    for verb, first, second, name, data in steps:
        everything = sorted(p for p in root.rglob("*"))
        directories = [root, *(p for p in everything if p.is_dir() and not p.is_symlink())]
        target = directories[first % len(directories)] / name
        victim = everything[second % len(everything)] if everything else None
        try:
            step(verb, target, victim, data, second)
        except OSError:
            continue


def step(verb: str, target: Path, victim: Path | None, data: bytes, number: int) -> None:
    if verb == "write":
        target.write_bytes(data)
    elif verb == "mkdir":
        target.mkdir()
    elif verb == "symlink":
        target.symlink_to("anywhere")
    elif victim is None:
        return
    elif verb == "link":
        os.link(victim, target, follow_symlinks=False)
    elif verb == "remove" and victim.is_dir() and not victim.is_symlink():
        shutil.rmtree(victim)
    elif verb == "remove":
        victim.unlink()
    elif verb == "rename":
        victim.rename(target)
    elif verb == "chmod":
        victim.chmod(0o400 + number)
    else:
        os.utime(victim, ns=(1, 10**18 + number), follow_symlinks=False)


def carry(tree: Tree, *, base: Tree | None, root: Path, share: bool) -> Manifest:
    """Send and receive through a pipe."""
    reader, writer = os.pipe()

    def feed() -> None:
        try:
            send_tree(writer, tree=tree, base=base.manifest if base else None)
        finally:
            os.close(writer)

    feeder = threading.Thread(target=feed)
    feeder.start()
    try:
        return receive_tree(reader, root=root, base=base, share=share, stop=threading.Event())
    finally:
        os.close(reader)
        feeder.join()


@given(before=STEPS, between=STEPS, share=st.booleans())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_real_trees_arrive_equal(
    before: list[tuple[str, int, int, str, bytes]],
    between: list[tuple[str, int, int, str, bytes]],
    share: bool,
) -> None:
    place = Path(tempfile.mkdtemp(prefix="pannier-manifest-"))
    try:
        source, first, second = place / "source", place / "first", place / "second"
        for path in (source, first, second):
            path.mkdir()
        play(source, before)
        old = scan(source, hasher=CachedHasher({}))
        assert carry(Tree(source, old), base=None, root=first, share=False) == old
        assert scan(first, hasher=CachedHasher({})) == old
        play(source, between)
        new = scan(source, hasher=CachedHasher({}))
        carry(Tree(source, new), base=Tree(first, old), root=second, share=share)
        assert scan(second, hasher=CachedHasher({})) == new
        # The base is still whole: a broken transfer must cost nothing.
        assert scan(first, hasher=CachedHasher({})) == old
        assert difference(EMPTY, new).changed == tuple(new.entries.values())
    finally:
        remove_tree(place)
