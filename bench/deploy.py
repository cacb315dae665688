"""`pannier deploy` on hosts with nothing but sshd, and again on the cluster that it made."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bench.figures import Figure, Result, Rounds, Target
from bench.world import BenchError, Wish, laboratory
from pannier.lab import Lab
from pannier.lab.inventory import inventory

_NODES = 3
_PACKAGES = ["dpkg-query", "--show", "--showformat", "${Package}\n"]
_ROOT = Path(__file__).parents[1]


def measure(wish: Wish) -> Result:
    """See the module."""
    rounds = wish.pick(2, 1)
    collected = Rounds()
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        wheels = folder / "wheelhouse"
        subprocess.run([str(_ROOT / "tools/wheelhouse"), str(wheels)], check=True, timeout=300)
        _deploy(wish, folder, Rounds())  # the lab has all packages then
        for _ in range(rounds):
            packages = _deploy(wish, folder, collected)
            _by_hand(wish, packages, collected)
    fresh, again = (collected.of(what, "ours") for what in ("fresh", "again"))
    return Result(
        title="From bare hosts to a cluster",
        reference=(
            "`apt-get update` and `apt-get install` of the very packages that the deployment brings, "
            "on all three hosts at once: no Swarm, no etcd that runs, no Pannier."
        ),
        how=(
            f"`pannier deploy` with Ansible over ssh and a wheelhouse, three machines with Debian 12 "
            f"that have sshd and Python; Debian's packages come from the lab's cache. {rounds} "
            f"rounds after one that fills the cache, each on new machines. Then the same command "
            f"once more, which must change nothing. All machines and Ansible share two cores."
        ),
        figures=(
            Figure(
                what="three fresh hosts",
                ours=fresh,
                theirs=collected.of("fresh", "theirs"),
                target=Target(at_most=240, of="value"),
            ),
            Figure(
                what="the same again, nothing to do",
                ours=again,
                target=Target(at_most=40, of="value"),
            ),
        ),
    )


def _deploy(wish: Wish, folder: Path, collected: Rounds) -> list[str]:
    """Deploy twice; the packages that the first host had not before."""
    with laboratory("bench-deploy", say=wish.say, nodes=_NODES, bare=True) as lab:
        first = lab.nodes[0].name
        hosts = folder / "hosts.yml"
        hosts.write_text(inventory(lab))
        command = [sys.executable, "-m", "pannier.cli", "deploy", "-i", str(hosts)]
        command += ["--wheelhouse", str(folder / "wheelhouse")]
        before = _installed(lab, first)
        for what in ("fresh", "again"):
            began = time.monotonic()
            _run(command)
            collected.add(what, "ours", time.monotonic() - began)
            wish.say(f"   {what}: {time.monotonic() - began:.1f} s")
        return sorted(_installed(lab, first) - before)


def _by_hand(wish: Wish, packages: Sequence[str], collected: Rounds) -> None:
    with laboratory("bench-deploy", say=wish.say, nodes=_NODES, bare=True) as lab:
        install = (
            "export DEBIAN_FRONTEND=noninteractive; apt-get -qq update &&"
            f" apt-get -qq install --no-install-recommends {' '.join(packages)}"
        )

        def put(node: str) -> None:
            lab.run(node, ["sh", "-c", install], timeout=600)

        began = time.monotonic()
        with ThreadPoolExecutor(_NODES) as pool:
            list(pool.map(put, [node.name for node in lab.nodes]))
        collected.add("fresh", "theirs", time.monotonic() - began)
        wish.say(f"   {len(packages)} packages by hand: {time.monotonic() - began:.1f} s")


def _installed(lab: Lab, node: str) -> set[str]:
    return set(lab.run(node, _PACKAGES).stdout.split())


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    if done.returncode:
        raise BenchError(f"{' '.join(command[2:])}: {(done.stdout + done.stderr)[-2000:]}")
