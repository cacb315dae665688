"""Restore drills that are made by themselves: when, by whom, what they leave, and what is told where none went well."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from pannier.backups.drill_schedule import DrillSchedule
from pannier.backups.drills import Drills
from pannier.backups.findings import BackupFindings
from pannier.cluster.backup_records import BackupRecords
from pannier.cluster.registry import Registry
from pannier.core.backup_plans import BEGUN, BackupState
from pannier.core.backups import BackupDrill, BackupTarget, StoredBackup
from pannier.core.drill_plans import (
    DrillPlan,
    drill_is_due,
    parse_drill_plan,
    what_drills_lack,
)
from pannier.core.errors import BackupFailed, InvalidInput, NotFound
from pannier.core.options import parse_options
from pannier.core.pace import BackupPace
from pannier.core.schedules import Period
from pannier.core.volume import Grant, Volume, VolumeSpec
from pannier.host.clock import Clock
from pannier.store.base import ABSENT
from pannier.testing.store import MemoryData, MemoryStore

NOON = 1_767_268_800.0
"""2026-01-01 12:00 UTC, a Thursday."""
HOUR, DAY = 3600.0, 86_400.0
WEEK = 7 * DAY
PLAN = DrillPlan("offsite", Period.WEEKLY)
GOOD = BackupDrill(
    target="offsite", volume="data", backup="1f0c5a2e", at=NOON, good_at=NOON, slot=PLAN.slot(NOON)
)
FAILED = replace(GOOD, failure="no such table", good_at=NOON - WEEK)


@pytest.mark.parametrize(
    ("text", "plan"),
    [
        ("offsite:weekly", PLAN),
        ("nas:daily", DrillPlan("nas", Period.DAILY)),
        ("nas:monthly", DrillPlan("nas", Period.MONTHLY)),
    ],
)
def test_a_plan_is_read_and_shown(text: str, plan: DrillPlan) -> None:
    assert (parse_drill_plan(text), str(plan)) == (plan, text)
    assert parse_options({"drill": text}).drill == text


@pytest.mark.parametrize(
    "text", ["", "weekly", "offsite", "offsite:hourly", "a b:weekly", "o:weekly:1"]
)
def test_what_is_no_plan_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        parse_options({"drill": text})


def test_only_of_what_can_be_backed_up() -> None:
    assert parse_options({"drill": "none"}) == parse_options({})
    with pytest.raises(InvalidInput, match="layout=image only"):
        parse_options({"drill": "offsite:weekly", "layout": "tree"})


@pytest.mark.parametrize(
    ("last", "now", "due"),
    [
        (None, NOON, True),
        (GOOD, NOON + DAY, False),
        (GOOD, NOON + WEEK, True),
        (GOOD, NOON - WEEK, True),  # the clock was put back
        (replace(GOOD, slot=""), NOON + DAY, False),  # a person made it
        (FAILED, NOON + DAY - 1, False),
        (FAILED, NOON + DAY, True),
        (replace(FAILED, failure=BEGUN), NOON + DAY, True),  # power failed meanwhile
        (replace(FAILED, slot=""), NOON + 1, True),  # a person's failed: its turn is still to come
    ],
)
def test_one_good_one_in_each_slot(last: BackupDrill | None, now: float, due: bool) -> None:
    assert drill_is_due(PLAN, last, now=now, retry=DAY) is due


@pytest.mark.parametrize(
    ("last", "now", "says"),
    [
        (None, NOON, "no restore drill from offsite was made yet"),
        (GOOD, NOON + 2 * WEEK, ""),
        (GOOD, NOON + 2 * WEEK + 1, "14.0 days ago"),
        (FAILED, NOON + WEEK + 1, "14.0 days ago"),
        (replace(GOOD, failure=BEGUN, good_at=None), NOON + WEEK, ""),
        (replace(GOOD, failure=BEGUN, good_at=None), NOON + WEEK + 1, "was made yet"),
    ],
)
def test_what_is_told(last: BackupDrill | None, now: float, says: str) -> None:
    told = what_drills_lack(PLAN, last, now=now)
    assert (says in told) if says else not told


# -- who makes it -----------------------------------------------------------------------------------


@dataclass
class Site:
    """A cluster of three nodes, as far as drills see it.

    Attributes:
        tried: which nodes have brought a backup back.
        failing: what that raises.
        notes: what the volume's history has.
        down: nodes that are.
        under_way: set when those that are being brought back come to an end.
    """

    store: MemoryStore
    volumes: list[Volume]
    now: float = NOON
    tried: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    failing: BaseException | None = None
    notes: list[str] = field(default_factory=list)
    down: set[str] = field(default_factory=set)
    under_way: asyncio.Event | None = None

    def node(self, name: str) -> Node:
        return Node(self, name)

    @property
    def records(self) -> BackupRecords:
        return BackupRecords(Registry(self.store))

    async def told(self) -> list[str]:
        findings = BackupFindings(
            cluster=self.node("n1"),  # type: ignore[arg-type]
            records=self.records,
            clock=Clock(now=lambda: 0.0, unix=lambda: self.now),
        )
        return [each.what async for each in findings.backups()]

    async def last(self) -> BackupDrill:
        found = await self.records.drill("offsite", "data")
        assert found is not None
        return found.record


class Node:
    """One of them: its cluster, its catalog, what brings backups back, and what a volume's history is told."""

    def __init__(self, site: Site, name: str) -> None:
        self._site, self.node = site, name
        self.catalog = self
        clock = Clock(now=lambda: 0.0, unix=lambda: site.now)
        self.drills = Drills(
            cluster=self,  # type: ignore[arg-type]
            records=site.records,
            restoring=self,  # type: ignore[arg-type]
            history=self,  # type: ignore[arg-type]
            clock=clock,
            pace=BackupPace(),
        )
        self.drills._remove_container = self._no_container  # type: ignore[method-assign]
        self.schedule = DrillSchedule(
            cluster=self,  # type: ignore[arg-type]
            records=site.records,
            drills=self.drills,
            clock=clock,
            pace=BackupPace(),
        )

    def volumes(self) -> list[Volume]:
        return list(self._site.volumes)

    def is_up(self, name: str) -> bool:
        return name in {"n1", "n2", "n3"} - self._site.down

    async def scratch(self, target: str, volume: str, **more: Any) -> tuple[Volume, StoredBackup]:
        if self._site.failing is not None:
            raise self._site.failing
        self._site.tried.append(self.node)
        if self._site.under_way is not None:
            await self._site.under_way.wait()
        key, _, text = more["label"].partition("=")
        made = _volume(more["new"], self.node, labels={key: text})
        self._site.volumes.append(made)
        return made, StoredBackup(id="1f0c5a2e", host="", made_at="", tags={})

    async def discard(self, volume: Volume, *, actor: str) -> None:
        self._site.volumes.remove(volume)
        self._site.removed.append(volume.name)

    async def _no_container(self, name: str) -> None:
        """No drill here has a check."""

    async def note(self, name: str, what: str, detail: str) -> None:
        self._site.notes.append(f"{name}: {what}")


def _volume(name: str, holder: str, **spec: Any) -> Volume:
    return Volume(
        name=name,
        id=f"{name}.1",
        spec=VolumeSpec(driver="image", **spec),
        grant=Grant(holder, 1),
        created_at=NOON,
    )


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    async with AsyncExitStack() as stack:
        store = MemoryStore(MemoryData())
        await stack.enter_async_context(store.session())
        site = Site(store, [_volume("data", "n1", drill=str(PLAN))])
        target = BackupTarget(
            name="offsite", url="/srv", repository="5e", sealed="", key="", added_at=NOON
        )
        await site.records.add_target(target)
        yield site


async def look_on_all(site: Site) -> None:
    for name in ("n1", "n2", "n3"):
        await site.node(name).schedule.look()


async def test_one_in_each_week_by_the_node_that_has_read_the_backup(site: Site) -> None:
    state = BackupState(
        plan="offsite:daily:3", slot="", tried_at=NOON, backup="1f0c5a2e", made_at=NOON, node="n2"
    )
    await site.records.put_state("data.1", state, expect=ABSENT)
    for _ in range(2):
        await look_on_all(site)
    assert site.tried == ["n2"]
    assert (await site.last()).good_at == NOON
    assert site.notes == ["data: backup drilled"]
    site.now, site.down = site.now + WEEK, {"n2"}
    await look_on_all(site)
    assert site.tried == ["n2", "n1"], "the holder, where that one is down"
    assert len(site.volumes) == 1
    assert await site.told() == []


async def test_where_nobody_knows_who_has_read_it_the_holder_does_it(site: Site) -> None:
    state = BackupState(plan="other:daily:3", slot="", tried_at=NOON, node="n2")
    await site.records.put_state("data.1", state, expect=ABSENT)
    await look_on_all(site)
    assert site.tried == ["n1"]


async def test_it_waits_for_the_first_backup_that_is_made_by_itself(site: Site) -> None:
    (volume,) = site.volumes
    site.volumes[:] = [replace(volume, spec=replace(volume.spec, backup="offsite:daily:3"))]
    await look_on_all(site)
    state = BackupState(plan="offsite:daily:3", slot="2026-01-01", tried_at=NOON, failure=BEGUN)
    revision = await site.records.put_state("data.1", state, expect=ABSENT)
    await look_on_all(site)
    assert site.tried == []
    made = replace(state, failure="", backup="1f0c5a2e", made_at=NOON, node="n3")
    await site.records.put_state("data.1", made, expect=revision)
    await look_on_all(site)
    assert site.tried == ["n3"]


async def test_two_that_believe_it_is_theirs_make_one(site: Site) -> None:
    """Both look before either has noted it, and a third one while it is under way."""
    site.under_way = asyncio.Event()
    two = [asyncio.create_task(site.node("n1").schedule.look()) for _ in range(2)]
    while not site.tried:
        await asyncio.sleep(0)
    await site.node("n1").schedule.look()
    site.under_way.set()
    await asyncio.gather(*two)
    assert len(site.tried) == 1


async def test_a_failure_is_told_and_tried_again_the_next_day(site: Site) -> None:
    assert await site.told() == ["no restore drill from offsite was made yet"]
    site.failing = BackupFailed("it is damaged")
    await look_on_all(site)
    assert await site.told() == ["the last restore drill from offsite failed: it is damaged"]
    assert site.notes == ["data: backup drill failed"]
    site.failing, site.now = None, NOON + DAY - 1
    await look_on_all(site)
    assert site.tried == []
    site.now = NOON + DAY
    await look_on_all(site)
    assert site.tried == ["n1"]
    assert await site.told() == []


async def test_a_volume_without_a_backup_is_told(site: Site) -> None:
    site.failing = NotFound("there is no backup of a volume data")
    await look_on_all(site)
    assert await site.told() == [
        "the last restore drill from offsite failed: there is no backup of a volume data"
    ]


async def test_a_node_that_dies_meanwhile_has_made_none_and_its_rest_goes(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = site.node("n1")

    async def die(volume: Volume, *, actor: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(node, "discard", die)
        with pytest.raises(KeyboardInterrupt):
            await node.schedule.look()
    assert (await site.last()).failure == BEGUN
    assert await site.told() == [], "one may be under way"
    (_, rest) = site.volumes
    mine = _volume("drill-of-mine", "n1", labels={"team": "web"})
    site.volumes.append(mine)
    await site.node("n2").schedule.look()
    assert site.removed == [], "it is another node's"
    await site.node("n1").schedule.look()
    assert site.removed == [rest.name]
    assert mine in site.volumes
    site.now += DAY
    await site.node("n1").schedule.look()
    assert (await site.last()).good_at == NOON + DAY


async def test_what_is_under_way_is_no_rest(site: Site) -> None:
    node = site.node("n1")
    seen: list[int] = []

    async def tidied(volume: Volume, *, actor: str) -> None:
        if not seen:
            seen.append(len(site.volumes))
            await node.drills.tidy()
            seen.append(len(site.volumes))
        site.volumes.remove(volume)

    node.discard = tidied  # type: ignore[method-assign]
    await node.schedule.look()
    assert seen == [2, 2]
