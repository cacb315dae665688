"""Volumes out of what is there already, under a running service, and out again as an archive or a directory."""

from __future__ import annotations

import json

import pytest
from cluster_world import IMAGE, IMAGES, WRITER, World, check_sequence
from demo import looks, story

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

NOTES = "/var/lib/pannier/imports.json"
MANAGER = "node1"
"""Has the local volumes, too."""


def local_volume(world: World, service: str, script: str = WRITER) -> str:
    """A local volume of Docker's that a service writes to; both have the same name."""
    world.run(
        MANAGER, "docker", "service", "create", "--quiet", "--detach=false", "--name", service,
        "--restart-delay", "1s", "--constraint", f"node.hostname=={MANAGER}",
        "--mount", f"type=volume,source={service},target=/data",
        IMAGE, "sh", "-c", script,
    )  # fmt: skip
    return f"local:{service}"


def lines(world: World, where: str) -> int:
    """How many lines a writer has left in a directory of the manager."""
    return len(world.sh(MANAGER, f"cat {where}/log 2>/dev/null || true").splitlines())


def place_of(world: World, volume: str) -> str:
    """Where a local volume of Docker's is."""
    return world.run(
        MANAGER, "docker", "volume", "inspect", "-f", "{{.Mountpoint}}", volume
    ).strip()


def mounts_of(world: World, service: str) -> list[tuple[str, str]]:
    """Names of the volumes that a service mounts, with their drivers."""
    spec = looks.engine(world.lab, MANAGER).get(f"/services/{service}")["Spec"]
    mounts = spec["TaskTemplate"]["ContainerSpec"]["Mounts"]
    drivers = [(each.get("VolumeOptions") or {}).get("DriverConfig") or {} for each in mounts]
    return [
        (each["Source"], driver.get("Name", ""))
        for each, driver in zip(mounts, drivers, strict=True)
    ]


def test_a_service_goes_on_with_the_imported_volume(three: World) -> None:
    """It misses no line, and has no line twice; what it had before stays as it was."""
    service, name = three.name("svc"), three.name("new")
    source = local_volume(three, service)
    old = place_of(three, service)
    story.wait_until("it writes", lambda: lines(three, old) > 5)
    three.run(
        MANAGER, "pannier", "volume", "import", name, "--from", source, "-o", "copies=2",
        "--switch-service", service,
    )  # fmt: skip
    assert mounts_of(three, service) == [(name, "pannier")]
    then = lines(three, old)
    here = f"/var/lib/pannier/mounts/{name}"
    story.wait_until("it goes on", lambda: lines(three, here) > then + 5)
    three.run(MANAGER, "docker", "service", "rm", service)
    story.wait_until(
        "it has ended", lambda: not three.json(MANAGER, "volume", "show", name)["in_use_by"]
    )
    written = three.log(MANAGER, name)
    check_sequence(written)
    assert len(written) > then
    assert lines(three, old) == then
    story.wait_until(
        "a copy follows",
        lambda: any(
            each["in_sync"] for each in three.json(MANAGER, "volume", "show", name)["copies"]
        ),
    )
    assert json.loads(three.run(MANAGER, "cat", NOTES))["begun"] == {}


def test_a_service_that_does_not_come_up_has_what_it_had(three: World) -> None:
    """This one ends at once where its volume is a small one."""
    service, name = three.name("svc"), three.name("new")
    small = "[ $(df -Pk /data | tail -n 1 | awk '{print $2}') -gt 100000 ] || exit 3\n"
    source = local_volume(three, service, small + WRITER)
    old = place_of(three, service)
    story.wait_until("it writes", lambda: lines(three, old) > 5)
    three.refused(
        MANAGER, "pannier", "volume", "import", name, "--from", source, "-o", "size=32M",
        "--switch-service", service, says=["does not come up", service, "trash"],
    )  # fmt: skip
    assert mounts_of(three, service) == [(service, "")]
    then = lines(three, old)
    story.wait_until("it writes again", lambda: lines(three, old) > then + 5)
    assert name not in three.volumes_known()
    trashed = three.printed(MANAGER, "volume", "trash")
    assert name in [each["name"] for each in trashed]


def test_a_daemon_that_is_killed_in_the_midst_leaves_nothing(three: World) -> None:
    name, place = three.name("new"), f"/srv/{three.name('dir')}"
    three.sh(MANAGER, f"mkdir -p {place} && echo x >{place}/file")
    three.sh(MANAGER, f"systemd-run --unit=user-{name} sh -c 'exec 3>>{place}/held; sleep 300'")
    asked = three.start(
        three.attempt, MANAGER, "pannier", "volume", "import", name, "--from", f"dir:{place}"
    )

    def noted() -> bool:
        return name in three.sh(MANAGER, f"cat {NOTES} 2>/dev/null || true")

    story.wait_until("it is begun", noted)
    three.kill(MANAGER, "pannierd.service")
    assert asked.result(60).status != 0
    three.wait_for_pannier(MANAGER)
    story.wait_until("it is put away", lambda: not noted(), seconds=60)
    assert name not in three.run(MANAGER, "ls", IMAGES)
    assert name not in three.run(MANAGER, "cat", "/proc/mounts")
    three.sh(MANAGER, f"systemctl stop user-{name}")
    three.run(MANAGER, "pannier", "volume", "import", name, "--from", f"dir:{place}")
    assert three.container(MANAGER, name, "cat", "/data/file") == "x\n"


def test_a_volume_is_converted_under_a_service(three: World) -> None:
    """Held by another node than the manager that is asked. The service is stopped once, and misses no line."""
    service, name, there = three.name("svc"), three.name("old"), "node2"
    three.run(there, "pannier", "volume", "create", name, "-o", "layout=tree", "-o", "labels=a=b")
    three.run(
        MANAGER, "docker", "service", "create", "--quiet", "--detach=false", "--name", service,
        "--restart-delay", "1s", "--constraint", f"node.hostname=={there}",
        "--mount", f"type=volume,source={name},target=/data,volume-driver=pannier",
        IMAGE, "sh", "-c", WRITER,
    )  # fmt: skip

    def written() -> int:
        return len(three.sh(there, f"cat /var/lib/pannier/mounts/{name}/log || true").splitlines())

    story.wait_until("it writes", lambda: written() > 5)
    change = ("pannier", "volume", "set", name, "layout=image", "size=64M", "copies=2")
    three.refused(MANAGER, *change, says=["needs a copy", "in use on node node2", "--stop-service"])
    then = written()
    said = three.attempt(MANAGER, *change, "--stop-service")
    assert (said.status, "nobody could use it for" in said.err) == (0, True), said.err
    story.wait_until("it goes on", lambda: written() > then + 5)
    three.run(MANAGER, "docker", "service", "rm", service)
    story.wait_until(
        "it has ended", lambda: not three.json(MANAGER, "volume", "show", name)["in_use_by"]
    )
    check_sequence(three.log(there, name))
    story.wait_until(
        "a copy follows",
        lambda: any(
            each["in_sync"] for each in three.json(MANAGER, "volume", "show", name)["copies"]
        ),
    )
    shown = three.json(there, "volume", "show", name)
    assert (shown["holder"], shown["options"]["layout"]) == (there, "image")
    assert (shown["options"]["size"], shown["options"]["labels"]) == ("64M", "a=b")
    [former] = [
        each["id"] for each in three.printed(MANAGER, "volume", "trash") if each["name"] == name
    ]
    three.run(MANAGER, "pannier", "volume", "rm", name)
    three.run(MANAGER, "pannier", "volume", "restore", former)
    assert three.json(there, "volume", "show", name)["options"]["layout"] == "tree"
    check_sequence(three.log(there, name))
    assert json.loads(three.run(there, "cat", NOTES))["begun"] == {}


def test_a_volume_goes_out_as_an_archive_and_as_a_directory(three: World) -> None:
    """Under a writer, from a node with a copy; and comes in again."""
    name, again = three.filled("node1", mebibytes=3, copies="2"), three.name("again")
    story.wait_until(
        "a copy follows",
        lambda: any(
            each["in_sync"] for each in three.json("node1", "volume", "show", name)["copies"]
        ),
    )
    before = story.manifest(three.lab, "node1", name)
    three.sleeper("node1", name)
    (copy,) = [each["node"] for each in three.json("node1", "volume", "show", name)["copies"]]
    (without,) = three.others("node1", copy)
    export = ("pannier", "volume", "export", name, "--to")
    three.run(copy, *export, f"tar:/srv/{name}.tar")
    three.refused(copy, *export, f"tar:/srv/{name}.tar", says=[f"/srv/{name}.tar", "already"])
    three.refused(without, *export, f"dir:/srv/{name}", says=["no copy", copy])
    three.run("node1", *export, f"dir:/srv/{name}")
    three.refused("node1", *export, f"dir:/srv/{name}", says=[f"/srv/{name}", "already"])
    three.sh("node1", f"pannier volume export {name} --to - | tar -t >/srv/{name}.list")
    three.sh(copy, f"mkdir /srv/{name}.d && tar -x -C /srv/{name}.d -f /srv/{name}.tar")
    listing = "find . -type f ! -name held -exec sha256sum {} + | sort"
    sums = [
        three.sh(node, f"cd {place} && {listing}")
        for node, place in ((copy, f"/srv/{name}.d"), ("node1", f"/srv/{name}"))
    ]
    assert sums[0] == sums[1]
    assert len(sums[0].splitlines()) > 100
    assert "./bulk" in three.sh("node1", f"cat /srv/{name}.list")
    assert three.printed("node1", "volume", "snapshot", "ls", name) == []
    assert "pannier-export" not in three.run("node1", "cat", "/proc/mounts")
    three.run("node1", "pannier", "volume", "import", again, "--from", f"dir:/srv/{name}")
    assert three.manifest("node1", again) == story.without(before, "held")
