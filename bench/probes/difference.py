"""Makes and sends small differences: by Pannier to another node, and by btrfs's own commands to a
second pool on this machine. Runs on the holder.

Arguments: volume, target node, rounds. Prints ``{"leg", "seconds"}`` for each.
"""

import asyncio
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from pannier.cluster.catalog import Catalog
from pannier.config import CONFIG_DIRECTORY, STATE_DIRECTORY
from pannier.host.state_files import DurableFile
from pannier.pki.credentials import Credentials
from pannier.storage.btrfs.driver import BtrfsDriver
from pannier.storage.btrfs.pool import close_pool, create_pool
from pannier.transport.base import Offer
from pannier.transport.client import TransportClient

FILE_BYTES, PIECE_BYTES = 16 << 20, 8192
SECOND = STATE_DIRECTORY / "bench-pool"


def change(file: Path, number: int) -> None:
    with file.open("r+b") as there:
        os.pwrite(there.fileno(), os.urandom(PIECE_BYTES), number * 37 * PIECE_BYTES % FILE_BYTES)


def bare(live: Path, number: int) -> float:
    """One generation by ``btrfs``; the one before is its base, and those before that are removed."""
    ours, theirs = STATE_DIRECTORY / "pool", SECOND
    tree, base = (ours / f"bench-{each}" for each in (number, number - 1))
    began = time.monotonic()
    btrfs("subvolume", "snapshot", "-r", live, tree)
    parent = ["-p", base] if base.exists() else []
    sending = subprocess.Popen(["btrfs", "send", "-q", *parent, tree], stdout=subprocess.PIPE)
    subprocess.run(["btrfs", "receive", "-q", theirs], stdin=sending.stdout, check=True)
    assert sending.wait() == 0
    seconds = time.monotonic() - began
    if base.exists():
        remove(base, theirs / base.name)
    return seconds


def remove(*trees: Path) -> None:
    btrfs("subvolume", "delete", *trees)


def btrfs(*words: str | Path) -> None:
    subprocess.run(["btrfs", *words], check=True, stdout=subprocess.DEVNULL)


async def main() -> None:
    catalog = Catalog(file=DurableFile(STATE_DIRECTORY / "catalog.json"), cluster=None, boot_id="")
    catalog.load()
    volume, target = catalog.volume(sys.argv[1]), catalog.node(sys.argv[2])
    assert volume is not None
    assert target is not None
    driver = BtrfsDriver(STATE_DIRECTORY / "pool")
    client = TransportClient(Credentials.load(CONFIG_DIRECTORY))
    data = driver.data_path(volume.id, volume.grant.epoch)

    async def ours(number: int) -> float:
        began = time.monotonic()
        generation = await driver.snapshot(volume.id, epoch=volume.grant.epoch)
        offer = Offer(
            volume_id=volume.id,
            volume_name=volume.name,
            driver=volume.spec.driver,
            epoch=volume.grant.epoch,
            generation=generation,
        )
        await client.send(offer, to=target, driver=driver)
        seconds = time.monotonic() - began
        for old in (await driver.inspect(volume.id)).generations[:-2]:
            await driver.delete_generation(volume.id, old)
        return seconds

    (data / "file").write_bytes(os.urandom(FILE_BYTES))
    image = SECOND.with_suffix(".img")
    await create_pool(image, mountpoint=SECOND, size_bytes=256 << 20)
    for number in range(-3, int(sys.argv[3])):
        for leg in ("ours", "bare") if number % 2 else ("bare", "ours"):
            change(data / "file", number)
            await asyncio.sleep(0.02)
            seconds = await ours(number) if leg == "ours" else bare(data.parent, number)
            if number >= 0:
                print(json.dumps({"leg": leg, "seconds": seconds}))
    await client.close()
    remove(STATE_DIRECTORY / "pool" / f"bench-{number}")
    await close_pool(SECOND)
    image.unlink()


asyncio.run(main())
