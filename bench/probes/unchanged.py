"""Asks again and again for the next generation of volumes that did not change. Runs on the holder.

Arguments: rounds, two volumes. Prints ``{"operation", "leg", "seconds"}`` for each.
"""

import asyncio
import json
import sys
import time
from pathlib import Path

from pannier.cluster.catalog import Catalog
from pannier.config import STATE_DIRECTORY
from pannier.host.state_files import DurableFile
from pannier.storage.image.driver import ImageDriver

STAGING = Path("/run/pannier/images")


async def main() -> None:
    catalog = Catalog(file=DurableFile(STATE_DIRECTORY / "catalog.json"), cluster=None, boot_id="")
    catalog.load()
    # Not opened: that is for the daemon, and would tidy up what it is just doing.
    driver = ImageDriver(STATE_DIRECTORY / "pool", staging=STAGING)
    legs = dict(zip(("ours", "theirs"), sys.argv[2:4], strict=True))
    for number in range(-2, int(sys.argv[1])):
        for leg in list(legs) if number % 2 else list(reversed(legs)):
            volume = catalog.volume(legs[leg])
            assert volume is not None
            before = (await driver.inspect(volume.id)).generations
            began = time.monotonic()
            generation = await driver.snapshot(volume.id, epoch=volume.grant.epoch)
            seconds = time.monotonic() - began
            if number >= 0:
                assert generation in before, "it had changed"
                found = {"operation": "unchanged", "leg": leg, "seconds": seconds}
                print(json.dumps(found))


asyncio.run(main())
