"""Sends a volume's newest generation to another node, whole, by Pannier's own transport.

Runs on the holder. Arguments: volume, target node. Prints ``{"generation", "bytes", "seconds"}``.
"""

import asyncio
import json
import sys
from pathlib import Path

from pannier.cluster.catalog import Catalog
from pannier.config import CONFIG_DIRECTORY, STATE_DIRECTORY
from pannier.host.state_files import DurableFile
from pannier.pki.credentials import Credentials
from pannier.storage.image.driver import ImageDriver
from pannier.transport.base import Offer
from pannier.transport.client import TransportClient

STAGING = Path("/run/pannier/images")


async def main() -> None:
    catalog = Catalog(file=DurableFile(STATE_DIRECTORY / "catalog.json"), cluster=None, boot_id="")
    catalog.load()
    volume, target = catalog.volume(sys.argv[1]), catalog.node(sys.argv[2])
    assert volume is not None
    assert target is not None
    # Not opened: that is for the daemon, and would tidy up what it is just doing.
    driver = ImageDriver(STATE_DIRECTORY / "pool", staging=STAGING)
    generation = await driver.snapshot(volume.id, epoch=volume.grant.epoch)
    offer = Offer(
        volume_id=volume.id,
        volume_name=volume.name,
        driver=volume.spec.driver,
        epoch=volume.grant.epoch,
        generation=generation,
    )
    client = TransportClient(Credentials.load(CONFIG_DIRECTORY))
    sent = await client.send(offer, to=target, driver=driver)
    assert sent.base is None
    found = {"generation": str(generation), "bytes": sent.bytes, "seconds": sent.seconds}
    print(json.dumps(found))


asyncio.run(main())
