"""Backups that are made by themselves: when, by whom, and what is told where they are not."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from pannier.backups.findings import BackupFindings
from pannier.backups.schedule import BackupSchedule
from pannier.cluster.backup_records import BackupRecords
from pannier.cluster.registry import Registry
from pannier.contract.views import BackupView
from pannier.core.backup_plans import (
    BEGUN,
    BackupPlan,
    BackupState,
    Every,
    Retention,
    is_due,
    parse_plan,
    what_is_wrong,
)
from pannier.core.backups import BackupDrill
from pannier.core.declarations import Means, settle_for
from pannier.core.errors import BackupFailed, Conflict, InvalidInput
from pannier.core.options import parse_options
from pannier.core.pace import BackupPace
from pannier.core.volume import Grant, HistoryEntry, Volume, VolumeSpec
from pannier.host.clock import Clock
from pannier.store.base import ABSENT
from pannier.testing.store import MemoryData, MemoryStore

NOON = 1_767_268_800.0
"""2026-01-01 12:00 UTC, a Thursday."""
HOUR, DAY = 3600.0, 86_400.0
PLAN = BackupPlan("offsite", Every.DAY, 30)
DONE = BackupState(
    plan=str(PLAN), slot="2026-01-01", tried_at=NOON, backup="1f0c5a2e", made_at=NOON
)


@pytest.mark.parametrize(
    ("text", "plan"),
    [
        ("offsite:daily:30", PLAN),
        ("nas:hourly:1", BackupPlan("nas", Every.HOUR, 1)),
        ("nas:weekly:1000", BackupPlan("nas", Every.WEEK, 1000)),
    ],
)
def test_a_plan_is_read_and_shown(text: str, plan: BackupPlan) -> None:
    assert (parse_plan(text), str(plan)) == (plan, text)


@pytest.mark.parametrize(
    "text",
    ["", "offsite", "offsite:daily", "offsite:daily:", "offsite:daily:0", "offsite:daily:1001",
     "offsite:monthly:3", ":daily:3", "a b:daily:3", "offsite:daily:3:4", "offsite:daily:-1", "offsite:daily:٣"],
)  # fmt: skip
def test_what_is_no_plan_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        parse_plan(text)


def test_the_option() -> None:
    assert parse_options({"backup": "offsite:daily:030"}).backup == "offsite:daily:30"
    assert parse_options({"backup": "none"}) == parse_options({})
    with pytest.raises(InvalidInput, match="layout=image only"):
        parse_options({"backup": "offsite:daily:30", "layout": "tree"})


def test_the_option_can_be_set_and_taken_back() -> None:
    volume = _volume("n1", backup="")
    means = Means(nodes=3, in_sync=1)
    there = settle_for("by anna", volume, {"backup": "offsite:daily:30"}, means)
    assert there.taken == ("backup is offsite:daily:30, was none",)
    back = settle_for("by anna", replace(volume, spec=there.spec), {"backup": "none"}, means)
    assert back.spec.backup == ""
    tree = replace(volume, spec=replace(volume.spec, driver="btrfs"))
    with pytest.raises(Conflict, match="layout=image only"):
        settle_for("by anna", tree, {"backup": "offsite:daily:30"}, means)


def test_what_stays_and_when() -> None:
    assert PLAN.retention == Retention(daily=30)
    assert replace(PLAN, every=Every.HOUR).retention == Retention(hourly=30)
    assert replace(PLAN, every=Every.WEEK).retention == Retention(weekly=30)
    slots = [replace(PLAN, every=every).slot(NOON) for every in Every]
    assert slots == ["2026-01-01T12", "2026-01-01", "2026-W01"]


@pytest.mark.parametrize(
    ("state", "now", "due"),
    [
        (None, NOON, True),
        (DONE, NOON + HOUR, False),
        (DONE, NOON + DAY, True),
        (DONE, NOON - DAY, True),  # the clock was put back
        (replace(DONE, plan="other:daily:30"), NOON, True),
        (replace(DONE, failure="full"), NOON + HOUR - 1, False),
        (replace(DONE, failure="full"), NOON + HOUR, True),
        (replace(DONE, failure=BEGUN), NOON + HOUR, True),  # power failed meanwhile
        (replace(DONE, failure="full"), NOON - 2 * HOUR, True),
    ],
)
def test_one_in_each_slot_and_again_after_a_failure(
    state: BackupState | None, now: float, due: bool
) -> None:
    assert is_due(PLAN, state, now=now, retry=HOUR) is due


@pytest.mark.parametrize(
    ("state", "now", "says"),
    [
        (None, NOON, "no backup was made"),
        (DONE, NOON + 2 * DAY, ""),
        (DONE, NOON + 2 * DAY + 1, "2.0 days old"),
        (replace(DONE, failure="it is full"), NOON, "failed: it is full"),
        (replace(DONE, failure=BEGUN), NOON, ""),
        (replace(DONE, failure=BEGUN, made_at=None), NOON + HOUR, ""),
        (replace(DONE, failure=BEGUN, made_at=None), NOON + DAY + 1, "no backup was made"),
        (replace(DONE, not_removed="it is locked"), NOON, "were not removed: it is locked"),
    ],
)
def test_what_is_told(state: BackupState | None, now: float, says: str) -> None:
    told = what_is_wrong(PLAN, state, now=now)
    assert (says in told) if says else not told


# -- who makes it -----------------------------------------------------------------------------------


def _volume(holder: str, *, backup: str = str(PLAN)) -> Volume:
    return Volume(
        name="data",
        id="data.1",
        spec=VolumeSpec(driver="image", backup=backup),
        grant=Grant(holder, 1),
        created_at=NOON,
    )


@dataclass
class Site:
    """A cluster of two nodes, as far as a schedule sees it.

    Attributes:
        made: which nodes have made a backup.
        failing: what a backup raises.
        not_removed: why older ones are still there after it.
    """

    store: MemoryStore
    volume: Volume
    now: float = NOON
    made: list[str] = field(default_factory=list)
    failing: BaseException | None = None
    not_removed: str = ""

    def node(self, name: str) -> Node:
        return Node(self, name)

    async def told(self) -> list[str]:
        findings = BackupFindings(
            cluster=self.node("n1"),  # type: ignore[arg-type]
            records=BackupRecords(Registry(self.store)),
            clock=Clock(now=lambda: 0.0, unix=lambda: self.now),
        )
        return [each.what async for each in findings.backups()]


class Node:
    """One of them: its cluster, its catalog, and what makes its backups."""

    def __init__(self, site: Site, name: str) -> None:
        self._site, self.node = site, name
        self.catalog = self
        self.registry = Registry(site.store)
        self.schedule = BackupSchedule(
            cluster=self,  # type: ignore[arg-type]
            records=BackupRecords(self.registry),
            backups=self,  # type: ignore[arg-type]
            clock=Clock(now=lambda: 0.0, unix=lambda: site.now),
            pace=BackupPace(),
        )

    def volumes(self) -> list[Volume]:
        return [self._site.volume]

    async def run(self, name: str, **more: Any) -> BackupView:
        if self._site.failing is not None:
            raise self._site.failing
        self._site.made.append(self.node)
        return BackupView(
            target=more["target"],
            id="1f0c5a2e",
            volume=name,
            volume_id="",
            generation="",
            made_at="",
            not_removed=self._site.not_removed,
        )


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    async with AsyncExitStack() as stack:
        store = MemoryStore(MemoryData())
        await stack.enter_async_context(store.session())
        site = Site(store, _volume("n1"))
        await Registry(store).add_volume(site.volume)
        yield site


async def test_the_holder_makes_one_in_each_slot(site: Site) -> None:
    nodes = [site.node("n1"), site.node("n2")]
    for _ in range(2):
        for node in nodes:
            await node.schedule.look()
    assert site.made == ["n1"]
    site.now += DAY
    site.volume = replace(site.volume, grant=Grant("n2", 2))
    for node in nodes:
        await node.schedule.look()
    assert site.made == ["n1", "n2"]
    assert await site.told() == []


async def test_two_that_believe_to_hold_it_make_one(site: Site) -> None:
    first, second = site.node("n1"), site.node("n1")
    await first.schedule.look()
    await second.schedule.look()
    assert len(site.made) == 1


async def test_a_failure_is_told_and_tried_again(site: Site) -> None:
    node = site.node("n1")
    assert await site.told() == ["no backup was made to offsite yet"]
    site.failing = BackupFailed("it is full")
    await node.schedule.look()
    assert await site.told() == ["the last backup to offsite failed: it is full"]
    site.failing = None
    await node.schedule.look()
    assert site.made == [], "not at once"
    site.now += HOUR
    await node.schedule.look()
    assert site.made == ["n1"]
    assert await site.told() == []


async def test_older_ones_that_were_not_removed_are_told_until_they_are(site: Site) -> None:
    node = site.node("n1")
    site.not_removed = "another command has locked the repository"
    await node.schedule.look()
    (told,) = await site.told()
    assert "older backups at offsite" in told
    assert "locked" in told
    site.now, site.not_removed = site.now + DAY, ""
    await node.schedule.look()
    assert await site.told() == []


async def test_a_node_that_dies_meanwhile_does_not_count_as_one_that_made_it(site: Site) -> None:
    site.failing = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        await site.node("n1").schedule.look()
    site.failing = None
    site.now += HOUR
    await site.node("n1").schedule.look()
    assert site.made == ["n1"]


async def test_a_drill_that_failed_is_told_until_one_goes_well(site: Site) -> None:
    site.volume = replace(site.volume, spec=replace(site.volume.spec, backup=""))
    records = BackupRecords(Registry(site.store))
    failed = BackupDrill(
        target="offsite", volume="data", backup="1f0c5a2e", at=NOON, failure="no such table"
    )
    await records.put_drill(failed, expect=ABSENT)
    assert await site.told() == ["the last restore drill from offsite failed: no such table"]
    found = await records.drill("offsite", "data")
    assert found is not None
    await records.put_drill(replace(failed, failure=""), expect=found.revision)
    assert await site.told() == []


async def test_what_is_remembered_of_a_volume_that_is_gone_is_forgotten(site: Site) -> None:
    node = site.node("n1")
    await node.schedule.look()
    found = await node.registry.volume("data")
    assert found is not None
    removed = replace(found.record, removed_at=NOON)
    await node.registry.trash_volume(removed, expect=found.revision)
    site.volume = replace(site.volume, id="data.2")
    await node.registry.add_volume(site.volume)
    site.failing = BackupFailed("no")
    await node.schedule.look()
    records = BackupRecords(node.registry)
    assert set(await records.states()) == {"data.1", "data.2"}, "it may come back from the trash"
    (trashed,) = await node.registry.trash()
    last = HistoryEntry(at=NOON, what="purged", node="n1", epoch=1)
    await node.registry.purge_volume(trashed.record, expect=trashed.revision, entry=last)
    await node.schedule.look()
    assert set(await records.states()) == {"data.2"}
