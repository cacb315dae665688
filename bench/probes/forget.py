"""Removes what a node received of a volume, so that it can be sent whole again.

Arguments: volume's id, generation.
"""

import asyncio
import sys
from pathlib import Path

from pannier.config import STATE_DIRECTORY
from pannier.core.generation import Generation
from pannier.storage.image.driver import ImageDriver

STAGING = Path("/run/pannier/images")


async def main() -> None:
    # Not opened: that is for the daemon, and would tidy up what it is just doing.
    driver = ImageDriver(STATE_DIRECTORY / "pool", staging=STAGING)
    await driver.delete_generation(sys.argv[1], Generation.parse(sys.argv[2]))


asyncio.run(main())
