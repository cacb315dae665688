"""GlusterFS on the lab's machines, from Debian's packages, as a reference for replicated files."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from bench.world import POOL, BenchError, World

MOUNT = "/mnt/bench-gluster"
_NAME = "bench"
_BRICK = f"{POOL}/bench-brick"
_START = """
tar -x -C /root
dpkg --install /root/debs/*.deb >/root/dpkg.log 2>&1 || { tail -5 /root/dpkg.log >&2; exit 1; }
systemctl start glusterd
"""


@contextmanager
def replicated(world: World) -> Iterator[str]:
    """A GlusterFS volume with a copy on every machine, beside the pool's volumes.

    Yields where it is mounted on the first machine.
    """
    first, *others = world.nodes
    addresses = [node.address for node in world.lab.nodes]
    _install(world)
    for address in addresses[1:]:
        world.sh(first, f"gluster peer probe {address} >/dev/null")
    connected = f"gluster peer status | grep -c '(Connected)' | grep -qx {len(others)}"
    world.sh(first, f"until {connected}; do sleep 0.2; done", timeout=60)
    bricks = " ".join(f"{address}:{_BRICK}" for address in addresses)
    create = f"gluster volume create {_NAME} replica {len(addresses)} {bricks} force >/dev/null"
    world.sh(first, f"{create}; gluster volume start {_NAME} >/dev/null")
    world.sh(first, f"mkdir -p {MOUNT}; mount -t glusterfs {addresses[0]}:/{_NAME} {MOUNT}")
    try:
        yield MOUNT
    finally:
        world.sh(first, f"umount {MOUNT}; gluster --mode=script volume stop {_NAME} >/dev/null")
        for node in world.nodes:
            world.sh(node, f"systemctl stop glusterd; rm -r {_BRICK}")


def _install(world: World) -> None:
    """Download what the machines lack, once, and install it on each."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        status, debs = Path(folder, "status"), Path(folder, "debs")
        (debs / "partial").mkdir(parents=True)
        status.write_text(world.sh(world.nodes[0], "cat /var/lib/dpkg/status"))
        options = {
            "Dir::State::status": status,
            "Dir::Cache::archives": debs,
            "Debug::NoLocking": 1,
        }
        download = ["apt-get", "install", "--download-only", "--yes", "--no-install-recommends"]
        for name, value in options.items():
            download += ["--option", f"{name}={value}"]
        done = subprocess.run(
            [*download, "glusterfs-server"],
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        if done.returncode:
            raise BenchError(f"glusterfs-server cannot be downloaded: {done.stderr.strip()[-300:]}")
        packed = Path(folder, "debs.tar")
        tar = ["tar", "-c", "-C", folder, "--exclude=partial", "-f", str(packed), "debs"]
        subprocess.run(tar, check=True)

        def install(node: str) -> None:
            with packed.open("rb") as content:
                world.lab.run(node, ["sh", "-ec", _START], stdin=content, timeout=300)

        with ThreadPoolExecutor(max_workers=len(world.nodes)) as pool:
            list(pool.map(install, world.nodes))
