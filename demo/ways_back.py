"""The ways back: a snapshot after an upgrade that went wrong, a backup after the loss of all machines."""

from __future__ import annotations

import json
import secrets
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from demo import jenkins_image, story
from demo.jenkins import CONTROLLER, HOME, IMAGE, WITH_A_COPY, Stack
from demo.story import expect
from demo.timeline import Timeline, laboratory
from pannier.lab import Lab

SNAPSHOT = "before-upgrade"
TARGET = "offsite"
NEXT = "localhost:5000/hudson:1.399"
"""An image that calls itself the next version: it spoils the home, and ends."""

_UPGRADE = Path(__file__).parent / "upgrade"
_SHARE = "backups"
_AT = f"/run/lab/{_SHARE}"
"""A folder of this host that machines see, as they would see a share: it outlasts them where somebody keeps it."""


# -- an upgrade that goes wrong --------------------------------------------------------------------


def undo_upgrade(stack: Stack, timeline: Timeline, task: story.Task) -> story.Task:
    """A snapshot, an upgrade that spoils the home, and the way back. Returns the controller's container."""
    lab, manager = stack.lab, stack.manager
    timeline.chapter(
        f"8. pannier volume snapshot create {HOME} {SNAPSHOT}; then an upgrade goes wrong"
    )
    jenkins_image.build(lab, NEXT, _UPGRADE / "Dockerfile", _UPGRADE / "convert.sh")
    before = stack.home(task.node)
    _quote(lab, timeline, manager, "pannier", "volume", "snapshot", "create", HOME, SNAPSHOT)
    stack.deploy(JENKINS_IMAGE=NEXT, JENKINS_CONSTRAINT=WITH_A_COPY)
    spoilt = story.wait_until("the new version has failed", lambda: _failure(lab, manager))
    timeline.quote(f"{CONTROLLER}: {spoilt}")
    left = _entries(lab, story.volume(lab, HOME, node=manager)["holder"], "builds/")
    expect(not left, f"it left {len(left)} entries of builds")
    timeline.say("  the new version has removed every build, and does not come up")

    timeline.chapter(
        f"9. the old version, and pannier volume rollback {HOME} {SNAPSHOT} --stop-service"
    )
    began = time.monotonic()
    stack.deploy(JENKINS_CONSTRAINT=WITH_A_COPY)
    _quote(
        lab, timeline, manager,
        "pannier", "volume", "rollback", HOME, SNAPSHOT, "--stop-service",
    )  # fmt: skip
    task = stack.task()
    expect(stack.home(task.node) == before, "the home differs after the rollback")
    timeline.done(
        f"[bold]all {len(before.builds)} entries of its builds are back[/bold], each with the same SHA-256; "
        f"it answers after {time.monotonic() - began:.1f} s"
    )
    return task


def _quote(lab: Lab, timeline: Timeline, node: str, *command: str) -> None:
    done = lab.run(node, command, timeout=150)
    for line in (done.stdout + done.stderr).splitlines():
        timeline.quote(line)


def _failure(lab: Lab, manager: str) -> str:
    """What Swarm says of a task of the next version that has failed; empty while none has."""
    form = "{{.Image}} {{.CurrentState}} {{.Error}}"
    ps = ["docker", "service", "ps", "--no-trunc", "--format", form, CONTROLLER]
    lines = lab.run(manager, ps).stdout.splitlines()
    return next((line for line in lines if line.startswith(f"{NEXT} Failed")), "")


def _entries(lab: Lab, node: str, word: str) -> list[str]:
    """Every entry of the home's jobs whose path has a word, with its bytes' hash."""
    lines = story.manifest(lab, node, HOME).splitlines()
    return [line for line in lines if " 'jobs/" in line and word in line.rpartition(" 'jobs/")[2]]


# -- all machines are lost -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Kept:
    """What outlasts the machines.

    Attributes:
        share: a folder of this host with the repository.
        password: of the repository.
        jobs: what the home had of jobs and builds.
    """

    share: Path
    password: str
    jobs: list[str]


def back_up(stack: Stack, timeline: Timeline, task: story.Task, folder: Path) -> Kept:
    """A backup of the home, read on the node that has its other copy. ``folder`` is for the share when all machines are gone."""
    lab = stack.lab
    timeline.chapter(
        f"10. pannier backup run {HOME}; then all three machines are lost, with their disks"
    )
    (reader,) = story.wait_until(
        "the home has its copy", lambda: story.volume(lab, HOME, node=task.node)["in_sync"]
    )
    share, password = lab.machine(reader).shared_dir / _SHARE, secrets.token_urlsafe(16)
    share.mkdir()
    jobs = _entries(lab, task.node, "")
    _add_target(lab, timeline, reader, password)
    _quote(lab, timeline, reader, "pannier", "backup", "run", HOME)
    timeline.done(f"{reader} read it, where the controller does not run; restic alone could, too")
    kept = folder / _SHARE
    shutil.copytree(share, kept)
    for node in lab.nodes:
        lab.crash(node.name)
    timeline.say("  what is left: the repository at the share, and its password")
    return Kept(kept, password, jobs)


def _add_target(lab: Lab, timeline: Timeline, node: str, password: str, *words: str) -> None:
    command = ["pannier", "backup", "target", "add", TARGET, _AT, "--password-file", "-", *words]
    timeline.quote(lab.run(node, command, input=f"{password}\n").stdout.strip())


def restore(kept: Kept, timeline: Timeline) -> None:
    """Everything again, on three new machines."""
    timeline.chapter(
        "11. three new machines: pannier backup target add, pannier backup restore-all"
    )
    with laboratory("demo", timeline, nodes=3, release="mixed") as lab:
        lab.build_busybox(IMAGE)
        first, *others = (node.name for node in lab.nodes)
        shutil.copytree(kept.share, lab.machine(first).shared_dir / _SHARE)
        _add_target(lab, timeline, first, kept.password, "--read-only")
        _quote(lab, timeline, first, "pannier", "backup", "restore-all", TARGET)
        for node in (first, others[0]):
            run = f"docker run --rm --network none -v {HOME}:/data {IMAGE} true"
            story.output(lab, node, "sh", "-c", run)
            expect(_entries(lab, node, "") == kept.jobs, f"the home differs on {node}")
        options = story.volume(lab, HOME)["options"]
        expect(options["copies"] == "2", f"its options are {json.dumps(options)}")
        story.wait_until("its copy is in sync", lambda: story.volume(lab, HOME)["in_sync"])
        timeline.done(
            f"[bold]all {len(kept.jobs)} entries of its jobs and builds are there[/bold], each with the same SHA-256, owner, "
            "mode and times"
        )
        timeline.done(f"it has followed a container to {others[0]}, and has two copies again")
