"""pannier-runtime and real mounts: a volume is found by its device and place, whatever path names it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from runtime_host import Host

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: mounts"),
]

POOL = """cd {folder}; mkdir -p pool images
mount -t tmpfs none pool; mkdir -p pool/one/part pool/loose/part
mount --bind pool/one state/mounts/one; mount --bind pool/loose state/mounts/loose
"""
"""Two volumes as trees of one file system."""
IMAGES = """cd {folder}; mkdir -p images/one.ab12.3 images/loose.ab12.1
for name in one.ab12.3 loose.ab12.1; do
  mount -t tmpfs none images/$name; mkdir -p images/$name/data/part
  mount --bind images/$name/data state/mounts/${{name%%.*}}
done
"""
"""Two volumes as images, each a file system of its own."""

WAYS = {
    "itself": ("", "state/mounts/{name}"),
    "part": ("", "state/mounts/{name}/part"),
    "local volume": (
        "mkdir -p docker/volumes/sub/_data; mount --bind state/mounts/{name}/part docker/volumes/sub/_data",
        "docker/volumes/sub/_data",
    ),
    "second mount": (
        "mkdir -p 'an other'; mount --bind state/mounts/{name} 'an other'",
        "an other/part",
    ),
    "above a second mount": (
        "mkdir -p srv/deep/er; mount --bind state/mounts/{name}/part srv/deep/er",
        "srv",
    ),
    "link to a second mount": (
        "mkdir -p other; mount --bind state/mounts/{name} other; ln -s other/part link",
        "link",
    ),
    "directory of volumes elsewhere": (
        "mkdir -p other; mount --rbind state other",
        "other/mounts/{name}",
    ),
    "over an older mount": (
        "mkdir -p srv/part; mount -t tmpfs none srv/part; mount --bind state/mounts/{name} srv",
        "srv/part",
    ),
}


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", [POOL, IMAGES], ids=["trees", "images"])
def test_every_way_to_a_held_volume_is_seen_and_no_other(host: Host, kind: str, way: str) -> None:
    more, source = WAYS[way]
    for name, held in ("one", True), ("loose", False):
        script = (kind + more).format(folder=host.folder, name=name)
        bundle = host.bundle(f"{host.folder}/{source.format(name=name)}")
        done = host.run("create", "--bundle", str(bundle), "id", mount=script)
        assert done.returncode == 7, done.stderr
        if held:
            assert host.barrier() == {"volumes": ["one"], "passing": False}
        else:
            assert "seccomp" not in host.config()["linux"]
        (host.folder / "link").unlink(missing_ok=True)


@pytest.mark.parametrize("kind", [POOL, IMAGES], ids=["trees", "images"])
@pytest.mark.parametrize("source", ["", "state", "state/mounts", "images", "pool"])
def test_who_sees_a_volume_where_it_is_mounted_for_docker_only_passes_by(
    host: Host, kind: str, source: str
) -> None:
    if (source, kind) in (("images", POOL), ("pool", IMAGES)):
        (host.folder / source).mkdir(exist_ok=True)
    bundle = host.bundle(f"{host.folder}/{source}")
    script = kind.format(folder=host.folder)
    assert host.run("create", "--bundle", str(bundle), "id", mount=script).returncode == 7
    if (source, kind) == ("pool", IMAGES):
        assert "seccomp" not in host.config()["linux"]
    else:
        assert host.barrier() == {"volumes": [], "passing": True}


def test_the_inside_of_an_image_is_the_volume(host: Host) -> None:
    bundle = host.bundle(f"{host.folder}/images/one.ab12.3/data")
    script = IMAGES.format(folder=host.folder)
    assert host.run("create", "--bundle", str(bundle), "id", mount=script).returncode == 7
    assert host.barrier()["volumes"] == ["one"]


def test_a_volume_that_is_not_mounted_for_docker_any_more_is_still_found(host: Host) -> None:
    """A second mount keeps what was shown."""
    script = IMAGES + "mkdir other; mount --bind state/mounts/one other; umount state/mounts/one"
    bundle = host.bundle(f"{host.folder}/other")
    script = script.format(folder=host.folder)
    assert host.run("create", "--bundle", str(bundle), "id", mount=script).returncode == 7
    assert host.barrier()["volumes"] == ["one"]


def test_a_local_volume_that_is_a_mount_hides_ours_too(host: Host) -> None:
    host.know("pg")
    script = f"""cd {host.folder}; mkdir -p docker/volumes/pg/_data
    mount -t tmpfs none docker/volumes/pg/_data"""
    bundle = host.bundle(f"{host.folder}/docker/volumes/pg/_data")
    done = host.run("create", "--bundle", str(bundle), "id", mount=script)
    assert done.returncode == 1
    assert "docker volume rm pg" in done.stderr
