"""The lab itself: what it promises must be true before it may judge anything else."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pannier.lab import CommandFailed, CommandTimedOut, Lab, LabError
from pannier.lab.cgroup import HostGroup
from pannier.lab.disk import ROLES, Disk

pytestmark = [
    pytest.mark.system,
    pytest.mark.timeout(600),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
]

COMMAND = [sys.executable, "-m", "pannier.lab"]
IMAGE = "localhost:5000/labtest:1"


def cli(*words: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *words], input=stdin, capture_output=True, text=True, check=False
    )


def traces(name: str) -> set[str]:
    """Everything on this host that belongs to the lab ``name``."""
    found = set()
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        if f"pannier-lab/{name}" in line:
            found.add(f"mount {line.split()[4]}")
    for path in Path("/sys/class/net").iterdir():
        if path.name == f"pl-{name}" or path.name.startswith(f"pl-{name}_"):
            found.add(f"link {path.name}")
    loops = subprocess.run(["losetup", "--list"], capture_output=True, text=True, check=True).stdout
    found |= {f"loop {line}" for line in loops.splitlines() if f"/{name}/" in line}
    found |= {f"group {path}" for path in Path("/sys/fs/cgroup").glob(f"*/pannier-lab/{name}")}
    found |= {f"group {path}" for path in Path("/sys/fs/cgroup").glob(f"pannier-lab/{name}")}
    found |= {f"nspawn {path}" for path in Path("/run/systemd/nspawn").glob(f"*/*{name}*")}
    for folder in (Path("/run/pannier-lab"), Path("/var/lib/pannier-lab")):
        found |= {f"folder {path}" for path in folder.glob(f"*{name}*")}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if "\nState:\tZ" in (process / "status").read_text():
                continue  # ended; it waits for the host's process 1 to notice
            seen = (process / "cmdline").read_text() + (process / "cgroup").read_text()
        except OSError:
            continue
        if f"pannier-lab/{name}" in seen:
            found.add(f"process {process.name} {seen[:80]}")
    return found


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    name = f"lt{os.getpid() % 100000}"
    lab = Lab(name)
    try:
        lab.up(nodes=2, disks="cuttable", cluster_kind="none")
        lab.build_busybox(IMAGE)
        for node in ("node1", "node2"):
            lab.run(node, ["mkfs.btrfs", "-q", "/dev/pannier-pool"])
            mount_pool(lab, node)
        yield lab
    finally:
        lab.down()
    assert traces(name) == set()


def mount_pool(lab: Lab, node: str) -> None:
    lab.run(node, ["sh", "-c", "mkdir -p /pool && mount /dev/pannier-pool /pool"])


def sh(lab: Lab, node: str, script: str) -> str:
    return lab.run(node, ["sh", "-euc", script], timeout=60).stdout.strip()


def reachable(address: str) -> bool:
    try:
        with socket.create_connection((address, 22), timeout=1):
            return True
    except OSError:
        return False


def reachable_within(address: str, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not reachable(address):
        if time.monotonic() > deadline:
            return False
    return True


def test_machines_are_real_machines(lab: Lab) -> None:
    """Own systemd, host name, machine id, network; each knows the other by name."""
    ids = set()
    for node in lab.nodes:
        assert sh(lab, node.name, "hostname") == node.name
        assert sh(lab, node.name, "cat /proc/1/comm") == "systemd"
        assert node.address in sh(lab, node.name, "ip -br address show eth0")
        ids.add(sh(lab, node.name, "cat /etc/machine-id"))
    assert len(ids) == 2
    assert "SSH" in sh(lab, "node1", "curl --silent --max-time 1 telnet://node2:22 </dev/null || :")


def test_ls_says_how_to_reach_the_machines(lab: Lab) -> None:
    listed = json.loads(cli("ls", "--name", lab.name, "-o", "json").stdout)
    assert [node["name"] for node in listed] == ["node1", "node2"]
    assert {node["state"] for node in listed} == {"running"}
    first = listed[0]
    login = [
        *("ssh", "-i", first["ssh_key"], "-o", "BatchMode=yes"),
        *("-o", f"UserKnownHostsFile={lab.names.known_hosts}", f"root@{first['address']}"),
    ]
    shown = subprocess.run([*login, "hostname"], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "node1"
    with socket.socket(socket.AF_UNIX) as docker:
        docker.connect(first["docker_host"].removeprefix("unix://"))
        connection = http.client.HTTPConnection("docker")
        connection.sock = docker
        connection.request("GET", "/_ping")
        assert connection.getresponse().read() == b"OK"


def test_run_passes_everything_through(lab: Lab) -> None:
    done = cli(
        "run",
        "--name",
        lab.name,
        "node1",
        "--",
        "sh",
        "-c",
        "cat; echo bad >&2; exit 7",
        stdin="in",
    )
    assert (done.returncode, done.stdout, done.stderr.strip()) == (7, "in", "bad")
    with pytest.raises(CommandFailed) as failed:
        lab.run("node1", ["sh", "-c", "echo why >&2; exit 3"])
    assert failed.value.returncode == 3
    assert "why" in failed.value.message
    with pytest.raises(CommandTimedOut):
        lab.run("node1", ["sleep", "31536"], timeout=0.5)
    sh(lab, "node1", "while pgrep --runstates RSD --exact sleep; do :; done")


def test_an_error_is_a_sentence(lab: Lab) -> None:
    done = cli("run", "--name", lab.name, "node9", "--", "true")
    assert done.returncode == 1
    assert "no machine node9" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("network", ["none", "bridge"])
def test_containers_run(lab: Lab, network: str) -> None:
    command = [
        "docker",
        "run",
        "--rm",
        "--network",
        network,
        IMAGE,
        "sh",
        "-c",
        "ls /sys/class/net",
    ]
    shown = lab.run("node1", command, timeout=60).stdout
    assert ("eth0" in shown) == (network == "bridge")


def test_a_crash_forgets_what_was_not_flushed(lab: Lab) -> None:
    """And nothing that was: else a test of lost power would show nothing."""
    before = sh(
        lab, "node1", "cat /proc/sys/kernel/random/boot_id; touch /run/of-this-boot; ls /run"
    )
    assert "of-this-boot" in before
    for folder in ("/pool", "/var/lib/pannier"):
        sh(lab, "node1", f"echo kept >{folder}/kept; sync -f {folder}; echo gone >{folder}/gone")
    done = cli("crash", "--name", lab.name, "node1")
    assert (done.returncode, done.stderr) == (0, "")
    assert [node.state for node in lab.nodes] == ["crashed", "running"]
    with pytest.raises(LabError, match="is off"):
        lab.run("node1", ["true"])
    lab.boot("node1")
    mount_pool(lab, "node1")
    for folder in ("/pool", "/var/lib/pannier"):
        assert sh(lab, "node1", f"cat {folder}/kept") == "kept"
        assert sh(lab, "node1", f"ls {folder}/gone || true") == ""
    assert sh(lab, "node1", "ls /run/of-this-boot || true") == ""


def test_a_cut_machine_runs_on_alone(lab: Lab) -> None:
    address = lab.nodes[1].address
    assert reachable_within(address, 5)
    lab.cut("node2")
    assert not reachable(address)
    assert lab.nodes[1].state == "cut"
    assert sh(lab, "node2", "hostname") == "node2"
    lab.mend("node2")
    assert reachable_within(address, 5)


def test_a_cut_outlasts_a_crash(lab: Lab) -> None:
    """Power and cable are two things: a machine may boot while it is isolated."""
    lab.cut("node2")
    lab.crash("node2")
    lab.boot("node2")
    assert lab.nodes[1].state == "cut"
    assert not reachable(lab.nodes[1].address)
    lab.mend("node2")
    assert reachable_within(lab.nodes[1].address, 10)
    mount_pool(lab, "node2")


def test_a_paused_machine_stands_still(lab: Lab) -> None:
    sh(
        lab,
        "node2",
        "(while sleep 0.01; do echo >>/tmp/tick; done) >/dev/null 2>&1 </dev/null &",
    )
    tick = Path(f"/proc/{lab.machine('node2').leader()}/root/tmp/tick")

    sh(lab, "node2", "until [ -e /tmp/tick ]; do sleep 0.01; done")

    def moves() -> bool:
        size = tick.stat().st_size
        time.sleep(0.3)
        return tick.stat().st_size > size

    assert moves()
    lab.pause("node2")
    assert lab.nodes[1].state == "paused"
    assert not moves()
    with pytest.raises(LabError, match="paused"):
        lab.run("node2", ["true"])
    lab.resume("node2")
    assert moves()


def test_nobody_whose_end_would_end_a_disk_goes(lab: Lab) -> None:
    """nbdkit gets a signal when its parent ends: the parent has to be one that stays."""
    disks = [machine.disk(role) for machine in lab.machines() for role in ROLES]
    servers = {pid: disk for disk in disks for pid in disk.group.processes() if is_nbdkit(pid)}
    assert len(servers) == len(disks) == 4
    for pid, disk in servers.items():
        assert int(Path(f"/proc/{pid}/stat").read_text().split()[3]) in disk.group.processes()


def is_nbdkit(pid: int) -> bool:
    return Path(f"/proc/{pid}/comm").read_text() == "nbdkit\n"


def test_a_disk_that_cannot_be_served_says_why(lab: Lab, tmp_path: Path) -> None:
    group = HostGroup(f"{lab.names.group}/without-pool")
    disk = Disk("pool", "cuttable", data=tmp_path, run=tmp_path / "disk", group=group)
    with pytest.raises(LabError, match=r"nbdkit has ended: .*pool.img: No such file"):
        disk.attach()
    group.remove(freeze=False)


def test_a_disk_fails_and_heals(lab: Lab) -> None:
    lab.disk("node2", "fail")
    done = lab.run(
        "node2", ["dd", "if=/dev/zero", "of=/pool/x", "bs=1M", "count=1", "conv=fsync"], check=False
    )
    assert "Input/output error" in done.stderr
    lab.disk("node2", "heal")
    sh(
        lab,
        "node2",
        "umount /pool && mount /dev/pannier-pool /pool && touch /pool/y && sync -f /pool",
    )


def test_a_disk_crawls(lab: Lab) -> None:
    write = ["dd", "if=/dev/urandom", "of=/pool/slow", "bs=64K", "count=8", "conv=fsync"]
    lab.disk("node1", "slow", rate="1M")
    begin = time.monotonic()
    lab.run("node1", write, timeout=60)
    assert time.monotonic() - begin > 1
    lab.disk("node1", "heal")
    time.sleep(0.5)
    begin = time.monotonic()
    lab.run("node1", write, timeout=60)
    assert time.monotonic() - begin < 1


def test_a_reboot_from_inside_is_a_reboot(lab: Lab) -> None:
    leader = lab.machine("node1").leader()
    lab.run("node1", ["systemctl", "reboot"], check=False)
    deadline = time.monotonic() + 60
    while (
        lab.machine("node1").leader() in (leader, None) or not lab.machine("node1").engine.answers()
    ):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_plain_disks_say_what_they_cannot_do() -> None:
    name = f"lp{os.getpid() % 100000}"
    lab = Lab(name)
    try:
        lab.up(nodes=1, cluster_kind="none")
        with pytest.raises(LabError, match="plain"):
            lab.disk("node1", "fail")
        lab.run("node1", ["mkfs.btrfs", "-q", "/dev/pannier-pool"])
        lab.run("node1", ["sh", "-c", "mkdir /pool && mount /dev/pannier-pool /pool"])
        done = cli("crash", "--name", name, "node1")
        assert "did not forget" in done.stderr
        with pytest.raises(LabError, match="exists already"):
            lab.up(nodes=1)
        assert lab.down()
    finally:
        lab.down()
    assert traces(name) == set()
    assert not lab.down()


def test_down_cleans_up_after_a_failed_up() -> None:
    name = f"lf{os.getpid() % 100000}"
    lab = Lab(name)
    with pytest.raises(LabError, match="truncate"):
        lab.up(nodes=2, cluster_kind="none", disk_size="much")
    assert lab.down()
    assert traces(name) == set()


@pytest.mark.parametrize("after", ["link pl-", "loop ", "process "])
def test_down_cleans_up_after_a_killed_up(after: str) -> None:
    """Whenever `up` is killed: nothing needs to have been written down."""
    name = f"lk{os.getpid() % 100000}"
    begin = time.monotonic()
    words = ["up", "--name", name, "--nodes", "2", "--disks", "cuttable", "--no-cluster"]
    child = subprocess.Popen(
        [*COMMAND, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        while not any(trace.startswith(after) for trace in traces(name)):
            assert time.monotonic() - begin < 300
            assert child.poll() is None
        child.send_signal(signal.SIGKILL)
    finally:
        child.kill()
        child.wait()
        Lab(name).down()
    assert traces(name) == set()
