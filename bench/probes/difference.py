"""Makes and sends small differences: by Pannier to another node, and by hand to ``keep.py`` there. Runs on
the holder, where the volume is mounted.

Arguments: volume, target node, bytes of a file in the volume, port of ``keep.py``, rounds. Prints
``{"leg", "seconds"}`` for each.
"""

import asyncio
import ctypes
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from pannier.cluster.catalog import Catalog
from pannier.config import CONFIG_DIRECTORY, STATE_DIRECTORY
from pannier.core.node import Node
from pannier.core.volume import Volume
from pannier.host.state_files import DurableFile
from pannier.pki.credentials import Credentials
from pannier.storage.image.driver import ImageDriver
from pannier.transport.base import Offer
from pannier.transport.client import TransportClient

POOL, STAGING = STATE_DIRECTORY / "pool", Path("/run/pannier/images")
PIECE_BYTES = 8192
LISTENS_SECONDS = 30
"""How long the other end may take to make its file."""

libc = ctypes.CDLL(None, use_errno=True)


def change(file: Path, number: int, size: int) -> tuple[int, bytes]:
    """Overwrite a piece; where it is and what it has now."""
    place, piece = number * 37 * PIECE_BYTES % size, os.urandom(PIECE_BYTES)
    with file.open("r+b", buffering=0) as there:
        os.pwrite(there.fileno(), piece, place)
    return place, piece


def connect(address: str, port: int) -> socket.socket:
    until = time.monotonic() + LISTENS_SECONDS
    while True:
        try:
            connection = socket.create_connection((address, port))
        except ConnectionRefusedError:
            if time.monotonic() > until:
                raise
            time.sleep(0.1)
        else:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return connection


def by_hand(
    live: Path, mounted: Path, peer: socket.socket, number: int, changed: tuple[int, bytes]
) -> float:
    """Write out, take a snapshot, send what is known to have changed, and wait until it is durable."""
    snapshot = POOL / f"bench-{number}"
    place, piece = changed
    began = time.monotonic()
    folder = os.open(mounted, os.O_RDONLY)
    if libc.syncfs(folder):
        raise OSError(ctypes.get_errno(), "syncfs")
    os.close(folder)
    btrfs("snapshot", "-r", live, snapshot)
    peer.sendall(place.to_bytes(8, "big") + len(piece).to_bytes(8, "big") + piece)
    if peer.recv(1) != b"s":
        raise SystemExit("the other end failed")
    seconds = time.monotonic() - began
    btrfs("delete", snapshot)
    return seconds


def btrfs(*words: str | Path) -> None:
    subprocess.run(["btrfs", "subvolume", *words], check=True, stdout=subprocess.DEVNULL)


def records(volume: str, node: str) -> tuple[Volume, Node]:
    """What the daemon has written down of a volume and a node; it takes its time for new ones."""
    until = time.monotonic() + LISTENS_SECONDS
    while True:
        file = DurableFile(STATE_DIRECTORY / "catalog.json")
        catalog = Catalog(file=file, cluster=None, boot_id="")
        catalog.load()
        found, there = catalog.volume(volume), catalog.node(node)
        if found is not None and there is not None:
            return found, there
        if time.monotonic() > until:
            raise SystemExit(f"volume {volume} or node {node} is not in the catalog")
        time.sleep(0.2)


async def main() -> None:
    volume, target = records(sys.argv[1], sys.argv[2])
    size, port, rounds = (int(word) for word in sys.argv[3:6])
    # Not opened: that is for the daemon, and would tidy up what it is just doing.
    driver = ImageDriver(POOL, staging=STAGING)
    client = TransportClient(Credentials.load(CONFIG_DIRECTORY))
    epoch = volume.grant.epoch
    data, live = driver.data_path(volume.id, epoch), POOL / "images" / volume.id / f"live-{epoch}"

    async def ours() -> float:
        began = time.monotonic()
        generation = await driver.snapshot(volume.id, epoch=epoch)
        offer = Offer(
            volume_id=volume.id,
            volume_name=volume.name,
            driver=volume.spec.driver,
            epoch=epoch,
            generation=generation,
        )
        await client.send(offer, to=target, driver=driver)
        seconds = time.monotonic() - began
        for old in (await driver.inspect(volume.id)).generations[:-2]:
            await driver.delete_generation(volume.id, old)
        return seconds

    with connect(target.address, port) as peer:
        (data / "file").write_bytes(os.urandom(size))
        for number in range(-3, rounds):
            for leg in ("ours", "by hand") if number % 2 else ("by hand", "ours"):
                changed = change(data / "file", number, size)
                await asyncio.sleep(0.02)
                if leg == "ours":
                    seconds = await ours()
                else:
                    seconds = by_hand(live, data.parent, peer, number, changed)
                    await ours()  # the next one shall bring its own change only
                if number >= 0:
                    print(json.dumps({"leg": leg, "seconds": seconds}))
    await client.close()


asyncio.run(main())
