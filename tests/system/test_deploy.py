"""From machines with nothing but ssh to a cluster, with the collection pannier.cluster."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from pannier.deploy.run import collection, environment
from pannier.lab import Lab
from pannier.lab.inventory import inventory

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
IMAGE = "localhost/busybox:1"
SECRETS = r"pannier1-[0-9A-Za-z]|SWMTKN-|BEGIN [A-Z ]*PRIVATE KEY"


@dataclass
class Bare:
    """Bare machines, and a folder with the inventory and the wheels."""

    lab: Lab
    folder: Path

    def deploy(self, *options: str, hosts: Sequence[str], check: bool = True) -> str:
        """Run `pannier deploy` for these machines; what it printed."""
        done = subprocess.run(
            self._command(*options, hosts=hosts),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=400,
            check=False,
            env={**os.environ, "ANSIBLE_NOCOLOR": "1"},
        )
        assert (done.returncode == 0) == check, done.stdout
        assert not re.search(SECRETS, done.stdout)
        return done.stdout

    def kill_during(self, play: str, *, hosts: Sequence[str]) -> None:
        """Begin to deploy, and kill Ansible with all its workers in the middle of a play."""
        with subprocess.Popen(
            self._command(hosts=hosts),
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "ANSIBLE_NOCOLOR": "1"},
            start_new_session=True,
        ) as child:
            assert child.stdout is not None
            found = next((line for line in child.stdout if line.strip() == play), None)
            time.sleep(1.5)  # into one of its tasks
            os.killpg(child.pid, signal.SIGKILL)
        assert found is not None

    def _command(self, *options: str, hosts: Sequence[str]) -> list[str]:
        file = self.folder / "hosts.yml"
        file.write_text(only(inventory(self.lab), hosts))
        command = [sys.executable, "-m", "pannier.cli", "deploy", "-i", str(file), *options]
        return [*command, "--wheelhouse", str(self.folder / "wheelhouse")]

    def play(self, tasks: Sequence[str], *options: str) -> int:
        """Run a user's own playbook on node1; how many tasks changed something."""
        playbook = self.folder / "own.yml"
        lines = ["- hosts: node1", "  gather_facts: false", "  tasks:"]
        lines += [f"    - pannier.cluster.{task}" for task in tasks]
        playbook.write_text("\n".join(lines))
        home = self.folder / "collections/ansible_collections/pannier"
        home.mkdir(parents=True, exist_ok=True)
        if not (home / "cluster").exists():
            (home / "cluster").symlink_to(collection())
        hosts = str(self.folder / "hosts.yml")
        done = subprocess.run(
            [sys.executable, "-m", "ansible", "playbook", "-i", hosts, str(playbook), *options],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            env=environment(str(self.folder / "collections"), verbose=False),
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return changes(done.stdout)["node1"]

    def sh(self, node: str, script: str) -> str:
        return self.lab.run(node, ["sh", "-euc", script], timeout=120).stdout

    def import_image(self, node: str) -> None:
        """An image with a shell: the machines reach no registry."""
        packed = self.folder / "image.tar"
        with tarfile.open(packed, "w") as archive:
            archive.add(Path("/bin/busybox").resolve(), "bin/busybox")
            for name in ("sh", "cat", "echo", "sync", "sleep"):
                link = tarfile.TarInfo(f"bin/{name}")
                link.type, link.linkname = tarfile.SYMTYPE, "busybox"
                archive.addfile(link, io.BytesIO())
        with packed.open("rb") as image:
            self.lab.run(node, ["docker", "import", "-", IMAGE], stdin=image, timeout=60)


def only(text: str, hosts: Sequence[str]) -> str:
    """The inventory without the other machines."""
    kept, skipping = [], False
    for line in text.splitlines():
        if match := re.fullmatch(r"    (node\d+):", line):
            skipping = match[1] not in hosts
        elif skipping and not line.startswith("      "):
            skipping = False
        if not skipping:
            kept.append(line)
    return "\n".join(kept) + "\n"


def changes(said: str) -> dict[str, int]:
    """host -> number of changes, of the summary at the end."""
    found = re.findall(r"^  (node\d)\s+\d+ ok\s+(\d+) (?:changed|would change)", said, re.MULTILINE)
    return {host: int(count) for host, count in found}


@pytest.fixture(scope="module")
def bare(bare_lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Bare:
    """Four machines with sshd and Python, Debian 12 and 13 in turn."""
    folder = tmp_path_factory.mktemp("deploy")
    wheelhouse = [str(ROOT / "tools/wheelhouse"), str(folder / "wheelhouse")]
    subprocess.run(wheelhouse, check=True, timeout=120)
    return Bare(bare_lab, folder)


FIRST = ("node1", "node2", "node3")
EVERYONE = (*FIRST, "node4")


def test_all_problems_are_told_at_once_and_nothing_is_touched(bare: Bare) -> None:
    bare.sh("node2", "printf 'LUKS\\272\\276\\000\\001' | dd of=/dev/pannier-pool conv=notrunc")
    bare.sh("node1", "setsid python3 -m http.server 7946 >/dev/null 2>&1 & echo $! >/run/server")
    try:
        said = bare.deploy(hosts=("node1", "node2"), check=False)
        assert "node2: /dev/pannier-pool holds crypto_LUKS" in said
        assert "node1: port 7946 is in use by python3" in said
        assert not any(changes(said).values())
        assert "Docker and Pannier" not in said
    finally:
        bare.sh("node1", "kill $(cat /run/server)")
        bare.sh("node2", "dd if=/dev/zero of=/dev/pannier-pool bs=4k count=1 conv=notrunc")


@pytest.mark.faults
def test_a_wrong_password_for_sudo_is_told_with_its_host(bare: Bare) -> None:
    bare.sh(
        "node1",
        """apt-get -qq update; apt-get -qq install sudo >/dev/null
        useradd --create-home --shell /bin/sh --groups sudo ann; echo ann:right | chpasswd
        cp -r /root/.ssh /home/ann; chown -R ann /home/ann/.ssh""",
    )
    ann = ["--check", "-e", "ansible_user=ann", "-e", "ansible_become=true", "-e"]
    said = bare.deploy(*ann, "ansible_become_password=wrong", hosts=("node1",), check=False)
    print(said)
    assert "node1" in said
    assert "Incorrect sudo password" in said
    assert "ansible_become_password" in said or "--ask-become-pass" in said
    assert changes(bare.deploy(*ann, "ansible_become_password=right", hosts=("node1",)))["node1"]


@pytest.mark.faults
def test_a_run_that_only_looks_changes_nothing_on_fresh_hosts(bare: Bare) -> None:
    said = bare.deploy("--check", hosts=FIRST)
    assert all(changes(said)[node] > 5 for node in FIRST)
    for node in FIRST:
        assert bare.sh(node, "command -v dockerd pannier etcd || echo nothing") == "nothing\n"


@pytest.mark.faults
@pytest.mark.parametrize("play", ["Docker and Pannier", "The cluster's memory", "The cluster"])
def test_a_run_may_be_killed_in_any_play(bare: Bare, play: str) -> None:
    """Each goes on after the one before; the next test is the one that comes to the end."""
    bare.kill_during(play, hosts=FIRST)


def test_fresh_hosts_become_a_cluster(bare: Bare) -> None:
    said = bare.deploy(hosts=FIRST)
    assert all(changes(said)[node] > 0 for node in FIRST)
    assert bare.sh("node1", "docker node ls -q").count("\n") == 3
    assert bare.sh("node3", "pannier status").count(" up ") == 3
    for node in FIRST:
        assert bare.sh(node, f"journalctl | grep -cE '{SECRETS}' || :") == "0\n"


def test_a_service_keeps_its_volume_on_every_node(bare: Bare) -> None:
    """Each task appends a line, so the last node has one of each."""
    for node in FIRST:
        bare.import_image(node)
    bare.sh(
        "node1",
        f"""docker service create --quiet --detach=false --name each --restart-delay 0s \
            --constraint node.hostname==node1 \
            --mount type=volume,volume-driver=pannier,source=log,target=/data {IMAGE} \
            /bin/sh -c 'echo $HOSTNAME >>/data/log; sync; sleep 10000'
        for n in 2 3; do
          until docker service update --quiet --detach=false --constraint-add node.hostname==node$n \
              --constraint-rm node.hostname==node$((n - 1)) each  # Swarm may have changed it just now
          do sleep 1; done
        done""",
    )
    there = bare.sh("node3", "docker exec $(docker ps -q) /bin/cat /data/log")
    assert len(set(there.split())) == 3
    assert '"holder":"node3"' in bare.sh("node1", "pannier volume show log -o json | tr -d ' '")


@pytest.mark.faults
def test_a_run_that_only_looks_tells_what_would_be_added(bare: Bare) -> None:
    found = changes(bare.deploy("--check", hosts=EVERYONE))
    assert found["node4"] >= 4
    assert [found[node] for node in FIRST] == [0, 0, 0]


def test_a_host_that_the_inventory_gained_is_added(bare: Bare) -> None:
    """Nothing is changed on the others. Its firewall lets nobody in but by ssh, and is opened for them."""
    bare.sh(
        "node4",
        """apt-get -qq update; apt-get -qq install ufw >/dev/null
        ufw allow 22/tcp; ufw --force enable""",
    )
    found = changes(bare.deploy(hosts=EVERYONE))
    assert found["node4"] >= 4
    assert [found[node] for node in FIRST] == [0, 0, 0]
    assert bare.sh("node1", "docker node ls -q").count("\n") == 4
    assert bare.sh("node4", "pannier status").count(" up ") == 4
    others = [node.address for node in bare.lab.nodes if node.name != "node4"]
    opened = bare.sh("node4", "ufw status")
    assert all(opened.count(address) == 2 for address in others), opened


@pytest.mark.faults
def test_a_run_for_some_hosts_changes_nothing_again(bare: Bare) -> None:
    again = changes(bare.deploy("--limit", "node1,node4", hosts=EVERYONE))
    assert again == {"node1": 0, "node4": 0}


def test_the_modules_change_what_they_say_and_only_once(bare: Bare) -> None:
    tasks = [
        "pannier_volume: {name: own, options: {size: 1G}}",
        "pannier_volume: {name: own, node: node4}",
        "pannier_node: {name: node2, state: drained}",
    ]
    assert bare.play(tasks, "--check", "--diff") == 3
    assert bare.play(tasks, "--diff") == 3
    assert bare.play(tasks) == 0
    assert bare.play(["pannier_node: {name: node2}"]) == 1


def test_a_node_is_taken_out_and_what_it_holds_moves(bare: Bare) -> None:
    remove = ("--playbook", "remove_node", "-e")
    said = bare.deploy(*remove, "node=node1", hosts=EVERYONE, check=False)
    assert "node1: is a member of etcd" in said
    assert "node1: has the cluster's certificate authority" in said
    bare.deploy(*remove, "node=node4", hosts=EVERYONE)
    assert bare.sh("node1", "docker node ls -q").count("\n") == 3
    assert "node4" not in bare.sh("node1", "pannier node ls; pannier volume ls")
    assert " own " in f" {bare.sh('node1', 'pannier volume ls')}".replace("\n", "\n ")
    assert bare.sh("node4", "systemctl is-active pannierd || :") == "inactive\n"


def test_f86_pannier_is_not_taken_off_where_a_volume_would_be_lost(bare: Bare) -> None:
    said = bare.deploy("--playbook", "uninstall", hosts=FIRST, check=False)
    assert "nobody else has the volume own" in said
    assert "uses the volume log" in said
    assert not any(changes(said).values())


@pytest.mark.faults
def test_pannier_is_taken_off_and_brought_back_with_everything(bare: Bare) -> None:
    """One who names the volumes gets his way; the data stays, and so does the node's identity."""
    told = bare.sh("node3", "docker exec $(docker ps -q) /bin/cat /data/log")
    bare.sh("node1", "docker service rm each")
    bare.sh("node3", 'while [ "$(docker ps -q)" ]; do sleep 0.5; done')
    bare.deploy("--playbook", "uninstall", "-e", "pannier_give_up=log,own", hosts=FIRST)
    for node in FIRST:
        assert bare.sh(node, "command -v pannier pannierd || echo gone") == "gone\n"
        assert bare.sh(node, "systemctl is-active docker") == "active\n"
    bare.deploy(hosts=FIRST)
    assert bare.sh("node1", "pannier status").count(" up ") == 3
    run = f"docker run --rm --network none -v log:/data --volume-driver pannier {IMAGE}"
    assert bare.sh("node2", f"{run} /bin/cat /data/log") == told
