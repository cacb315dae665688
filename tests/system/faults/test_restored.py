"""What was put back to an earlier time: the store, and the disk of a node."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from fault_world import Faults, Log, uptime, wait_until

from pannier.lab.errors import LabError

pytestmark = [pytest.mark.system, pytest.mark.timeout(400)]

ETCDCTL = (
    "ETCDCTL_API=3 etcdctl --cacert=/etc/etcd/pki/ca.crt --cert=/etc/etcd/pki/tls.crt "
    "--key=/etc/etcd/pki/tls.key --endpoints=$(. /etc/default/etcd; echo $ETCD_ADVERTISE_CLIENT_URLS)"
)
BACKUP = "/var/lib/etcd-backup.db"
RESTORE = f"""
systemctl stop etcd
set -a; . /etc/default/etcd; set +a
data=$(find /var/lib/etcd -type d -name member -prune | head -n 1); data=${{data%/member}}
rm -rf "$data"
ETCDCTL_API=3 etcdctl snapshot restore {BACKUP} --name "$ETCD_NAME" --data-dir "$data" \
  --initial-cluster "$ETCD_INITIAL_CLUSTER" --initial-cluster-token restored \
  --initial-advertise-peer-urls "$ETCD_INITIAL_ADVERTISE_PEER_URLS"
chown -R etcd:etcd "$data"
systemctl --no-block start etcd
"""
"""As docs/operations/README.md says it."""


def _back_up(faults: Faults) -> None:
    world = faults.world
    world.sh("node1", f"{ETCDCTL} snapshot save {BACKUP}; base64 {BACKUP} >{BACKUP}.64")
    copied = world.sh("node1", f"cat {BACKUP}.64")
    for node in world.others("node1"):
        world.run(node, "sh", "-c", f"base64 -d >{BACKUP}", input=copied)


def _is_about(finding: dict[str, str], name: str) -> bool:
    return finding["subject"] == f"volume {name}" and "older backup" in finding["what"]


def _wait_put_back(faults: Faults, name: str, *, at: str) -> None:
    def back() -> bool:
        try:
            history = faults.world.json(at, "volume", "history", name)
        except LabError:  # what the store says nothing of has none
            return False
        return any(entry["kind"] == "volume.put back" for entry in history)

    wait_until(f"{name} is put back", back)


@pytest.mark.faults
def test_f40_the_store_is_restored_from_an_older_backup(faults: Faults) -> None:
    """A takeover and a creation came after the backup. Nothing is served on its word, and all comes back by itself."""
    log, old = faults.writing()
    world, replica = faults.world, log.replica
    _back_up(faults)
    world.lab.crash("node1")
    new = log.write(replica)
    younger = world.create(replica, "young")
    world.container(replica, younger, "sh", "-c", "echo kept >/data/note")
    began = uptime()
    nodes = world.others("node1")
    world.on_all(lambda node: world.sh(node, "systemctl stop etcd"), nodes)
    world.on_all(lambda node: world.sh(node, RESTORE), nodes)
    told = wait_until(
        "doctor tells it",
        lambda: next(
            (one for one in world.json(replica, "doctor") if _is_about(one, log.volume)), None
        ),
    )
    assert f"pannier volume recover {log.volume}" in told["remedy"]
    assert log.witness
    world.refused(
        log.witness, "pannier", "volume", "move", log.volume, log.witness, says=["older backup"]
    )
    world.lab.boot("node1", wait=False)
    wait_until("node1 runs", lambda: world.attempt("node1", "systemctl", "list-jobs").status == 0)
    world.sh("node1", RESTORE)
    faults.boot()
    for name in (log.volume, younger):
        _wait_put_back(faults, name, at=replica)
    assert world.json("node1", "volume", "show", log.volume)["holder"] == replica
    assert world.container("node1", younger, "cat", "/data/note") == "kept\n"
    log.wait_in_sync(["node1"], at=replica)
    world.attempt(replica, "docker", "rm", "-f", new.container)
    world.attempt("node1", "docker", "rm", "-f", old.container)
    faults.finish(
        log, at="node1", since=began, allowed=None,
        fault="F40 etcd is restored from a backup older than a takeover",
        outcome="the holder goes on, and puts its record back when all nodes answer",
    )  # fmt: skip


# -- disks -------------------------------------------------------------------------------------------


class OlderPool:
    """The pool of a node as it was, without power, at an earlier time."""

    def __init__(self, faults: Faults, node: str, directory: Path) -> None:
        self._faults = faults
        self.node = node
        self._image = faults.world.lab.machine(node).disk("pool").image
        self._copy = directory / f"{node}.img"
        faults.world.lab.crash(node)
        _copy(self._image, self._copy)
        faults.boot(node)

    def put_back(self) -> None:
        """Switch the node off and give it that disk; it stays off."""
        self._faults.world.lab.crash(self.node)
        _copy(self._copy, self._image)


def _copy(source: Path, target: Path) -> None:
    copy = ["cp", "--reflink=auto", "--sparse=always", str(source), str(target)]
    subprocess.run(copy, check=True)


def _history(faults: Faults, log: Log, at: str) -> list[str]:
    entries = faults.world.json(at, "volume", "history", log.volume)
    return [f"{entry['kind']} {entry['detail']}" for entry in entries]


@pytest.mark.faults
@pytest.mark.parametrize("taken", [False, True], ids=["returns-at-once", "after-a-takeover"])
def test_the_holders_disk_is_set_back(faults: Faults, tmp_path: Path, taken: bool) -> None:
    """The copy has what the holder lacks: it goes on, and nothing that was acknowledged is lost."""
    log = faults.log()
    older = OlderPool(faults, "node1", tmp_path)
    log.wait_in_sync(log.replicas, at="node1")
    writer = log.write("node1")
    writer.goes_on(records=40)
    began = uptime()
    older.put_back()
    if taken:
        new = log.write(log.replica)
        new.goes_on(records=20)
    faults.boot("node1")
    wait_until(
        "the copy has taken over",
        lambda: (
            faults.world.json(log.replica, "volume", "show", log.volume)["holder"] == log.replica
        ),
    )
    said = [
        line for line in _history(faults, log, log.replica) if line.startswith("volume.taken over")
    ]
    assert ("set back" in said[-1]) is not taken, said
    if not taken:
        new = log.write(log.replica)
        new.goes_on(records=20)
    log.wait_in_sync(["node1"], at=log.replica)
    log.stop(new)
    faults.finish(
        log, at="node1", since=began, allowed=None,
        fault=f"the holder's disk is set back{', and a copy took over meanwhile' if taken else ''}",
        outcome="the copy goes on with all that was acknowledged; the former holder becomes a copy",
    )  # fmt: skip


@pytest.mark.faults
@pytest.mark.parametrize("taken", [False, True], ids=["holder-stays", "after-a-takeover"])
def test_a_copys_disk_is_set_back(faults: Faults, tmp_path: Path, taken: bool) -> None:
    """It tells its holder, and counts only when it has everything again."""
    log = faults.log(copies="3" if taken else "2")
    node = log.replicas[0]
    older = OlderPool(faults, node, tmp_path)
    log.wait_in_sync(log.replicas, at="node1")
    writer = log.write("node1")
    writer.goes_on(records=40)
    began = uptime()
    older.put_back()
    holder = "node1"
    if taken:
        holder = next(name for name in log.replicas if name != node)
        log.stop(writer)
        faults.world.move(log.volume, holder)
        writer = log.write(holder)
    faults.boot(node)
    copies = [name for name in ("node1", *log.replicas) if name != holder]
    log.wait_in_sync(copies, at=holder)
    writer.goes_on(records=20)
    log.stop(writer)
    faults.world.lab.crash(holder)
    faults.wait_until_down(holder, seen_by=node)
    log.check(log.read(node))
    faults.boot(holder)
    faults.finish(
        log, at=node, since=began, allowed=None,
        fault=f"a copy's disk is set back{', and the volume had another holder meanwhile' if taken else ''}",
        outcome="it is brought up to date before it counts, and takes over with everything",
    )  # fmt: skip
