"""Removes what a node received of a volume, so that it can be sent whole again.

Arguments: volume's id, generation.
"""

import asyncio
import sys

from pannier.config import STATE_DIRECTORY
from pannier.core.generation import Generation
from pannier.storage.btrfs.driver import BtrfsDriver


async def main() -> None:
    driver = BtrfsDriver(STATE_DIRECTORY / "pool")
    await driver.delete_generation(sys.argv[1], Generation.parse(sys.argv[2]))


asyncio.run(main())
