"""What there is to say of volumes that this node's drivers have quarantined."""

from __future__ import annotations

from collections.abc import AsyncIterator

from pannier.agent.custody import Custody
from pannier.contract.views import FindingView
from pannier.core.errors import PannierError
from pannier.core.volume import Volume


async def quarantine_of(custody: Custody, volume: Volume) -> str:
    """Why this node cannot give a volume to containers, and what to do; empty where it can."""
    driver = custody.drivers.get(volume.spec.driver)
    if driver is None or volume.id not in await driver.quarantined():
        return ""
    try:
        await driver.inspect(volume.id)
    except PannierError as error:
        return f"{error.message}: {error.remedy}"
    return ""  # only what was removed of it here, at an earlier time, cannot go


async def quarantine_findings(custody: Custody) -> AsyncIterator[FindingView]:
    """One finding for each of them, and for each rest of a removed volume that cannot go."""
    names = {volume.id: volume.name for volume in custody.catalog.volumes()}
    for driver in tuple(custody.drivers.values()):
        for volume_id, reason in sorted((await driver.quarantined()).items()):
            known = names.get(volume_id)
            yield FindingView(
                level="problem" if known else "warning",
                subject=f"volume {known}" if known else f"data {volume_id}",
                what=reason.message,
                remedy=reason.remedy,
            )
