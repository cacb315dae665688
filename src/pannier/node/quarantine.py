"""Findings on volumes that this node's drivers have quarantined, or have set apart."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable

from pannier.agent.drivers import Drivers
from pannier.contract.views import FindingView
from pannier.contract.words import Level
from pannier.core.errors import PannierError
from pannier.core.volume import Volume


async def quarantine_of(drivers: Drivers, volume: Volume) -> str:
    """Why this node cannot give a volume to containers, and what to do; empty where it can."""
    driver = drivers.get(volume.spec.driver)
    if driver is None or volume.id not in await driver.quarantined():
        return ""
    try:
        await driver.inspect(volume.id)
    except PannierError as error:
        return f"{error.message}: {error.remedy}"
    return ""  # only a remainder of an earlier removal cannot be deleted


async def quarantine_findings(
    drivers: Drivers, volumes: Iterable[Volume]
) -> AsyncIterator[FindingView]:
    """One for each quarantined volume, and for each remainder of a removed one that cannot be deleted."""
    names = {volume.id: volume.name for volume in volumes}
    for driver in drivers:
        for volume_id, reason in sorted((await driver.quarantined()).items()):
            known = names.get(volume_id)
            yield FindingView(
                level=Level.PROBLEM if known else Level.WARNING,
                subject=f"volume {known}" if known else f"data {volume_id}",
                what=reason.message,
                remedy=reason.remedy,
            )


async def apart_findings(
    drivers: Drivers, volumes: Iterable[Volume], *, node: str
) -> AsyncIterator[FindingView]:
    """One for each copy that was set apart and is still kept."""
    names = {volume.id: volume.name for volume in volumes}
    for driver in drivers:
        for volume_id, place in (await driver.apart()).items():
            known = names.get(volume_id)
            yield FindingView(
                level=Level.WARNING,
                subject=f"volume {known}" if known else f"data {volume_id}",
                what=f"what node {node} had of it could be neither tidied up nor read; it is kept in {place}, and "
                f"its copy was made anew",
                remedy=f"look into it. If nothing of it is needed: rm -r {place}; where that is refused, see btrfs "
                f"subvolume list -o {place}, and remove those first: btrfs subvolume delete",
            )
