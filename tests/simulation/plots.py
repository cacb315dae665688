"""Chains of faults that chance alone would hardly ever put together: each aims at one weak moment."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from machines import Died, Machine

from pannier.core.errors import PannierError, StorageError
from pannier.core.volume import Volume

if TYPE_CHECKING:
    from failover_histories import History

STORE_SECONDS = 4.0
"""How long the store is away before it is restored: whatever was on its way has arrived by then, or never does."""
Plot = Callable[["History"], Awaitable[None]]
Cast = tuple[Volume, Machine, Machine]


def cast(history: History) -> Cast | None:
    """The volume, its holder and one of those that could take it over; None where one is missing."""
    record = history.world.record("vol")
    if record is None or not record.in_sync:
        return None
    holder = history.world.machines[record.grant.node]
    rival = history.world.machines[history.random.choice(record.in_sync)]
    return (record, holder, rival) if holder.run and rival.run else None


@contextmanager
def used(history: History, machine: Machine, writes: int = 100) -> Iterator[None]:
    """Somebody uses the volume on that machine, or tries to, within the block."""
    using = asyncio.ensure_future(history.try_use(machine, writes))
    try:
        yield
    finally:
        using.cancel()


async def only_generations_arrive(history: History) -> None:
    """The holder loses the store, and after a while whoever could promise anything."""
    if (found := cast(history)) is None:
        return
    _, holder, rival = found
    world, me = history.world, holder.name
    store = ((me, "store"), ("store", me))
    ports = [(me, f"{other}:peer") for other in world.machines if other != me]
    lost = history.random.choice((store, store[:1], store[1:]))
    with used(history, holder), history.lost(*lost):
        await asyncio.sleep(history.random.choice((0.0, 2.0, 6.0)))
        with history.lost(*ports):
            if history.random.random() < 0.3:
                rival.crash()
                await history.start(rival)
            await asyncio.sleep(history.random.choice((3.0, 12.0)))


async def takeover_that_hangs(history: History) -> None:
    """Its change is on its way for seconds; the holder meets the taker again, and only that one."""
    if (found := cast(history)) is None:
        return
    _, holder, rival = found
    world, me = history.world, holder.name
    links = [(me, other) for other in world.machines] + [(other, me) for other in world.machines]
    paused = history.random.random() < 0.5
    with used(history, holder), history.lost((me, "store"), ("store", me)):
        await asyncio.sleep(0.5)
        with history.lost(*links), used(history, rival):
            if paused:
                history.freeze(holder)
            world.hang_takeover(rival.name, history.random.choice((3.0, 6.0)))
            await _hung(history, world.terms.ttl + 2.0)
            if history.random.random() < 0.7:
                world.lost_ways.update(((rival.name, "store"), ("store", rival.name)))
                if history.random.random() < 0.6 and rival.run is not None:
                    rival.crash()
                    await history.start(rival)
        history.go_on(holder)
        with used(history, holder):
            await asyncio.sleep(5.0)
    world.lost_ways.difference_update(((rival.name, "store"), ("store", rival.name)))


async def _hung(history: History, seconds: float) -> bool:
    """Wait, for so long at most, until the change that is to hang was asked for."""
    for _ in range(round(seconds / 0.02)):
        if not history.world.hanging:
            return True
        await asyncio.sleep(0.02)
    return False


async def join_that_hangs(history: History) -> None:
    """A replica's return to those in sync is on its way when it is lost again, and replication begins
    anew, as after a hand-over that failed."""
    if (found := cast(history)) is None:
        return
    record, holder, rival = found
    world = history.world
    if not await _out_of_sync(history, holder, rival):
        return
    world.hang_next_commit(holder.name, history.random.choice((1.5, 4.0)))
    if not await _hung(history, 4.0):
        return
    with used(history, holder), history.lost((holder.name, rival.name)):
        if holder.run is not None:
            await holder.ask(lambda run: run.replicator.pause(record))
        await asyncio.sleep(5.0)


async def crash_right_after_a_join(history: History) -> None:
    """What the holder's memory on disk says of who counts is out of date, and the store is away."""
    if (found := cast(history)) is None:
        return
    _, holder, rival = found
    with used(history, holder):
        await _crash_right_after_a_join(history, holder, rival)


async def _crash_right_after_a_join(history: History, holder: Machine, rival: Machine) -> None:
    world, me = history.world, holder.name
    if not await _out_of_sync(history, holder, rival):
        return
    for _ in range(200):
        now = world.record("vol")
        if now is None or now.grant.node != me or holder.run is None:
            return
        if rival.name in now.in_sync:
            break
        await asyncio.sleep(0.02)
    with history.lost((me, "store"), ("store", me)):
        holder.crash()
        await asyncio.sleep(0.05)
        await history.start(holder)
        with history.lost((me, rival.name)):
            await asyncio.sleep(4.0)


async def _out_of_sync(history: History, holder: Machine, rival: Machine) -> bool:
    """Have the rival fall behind, and then catch up again."""
    world = history.world
    with used(history, holder), history.lost((holder.name, rival.name)):
        for _ in range(60):
            await asyncio.sleep(0.1)
            now = world.record("vol")
            if now is None or now.grant.node != holder.name:
                return False
            if rival.name not in now.in_sync:
                return True
    return False


async def lease_that_ends_under_a_takeover(history: History) -> None:
    """The store ends the holder's lease early, while another node waits for just that."""
    if (found := cast(history)) is None:
        return
    _, holder, rival = found
    world, me = history.world, holder.name
    with used(history, holder), history.slow(), history.busy():
        await asyncio.sleep(history.random.choice((0.3, 1.0)))
        if history.random.random() < 0.5:
            world.hang_takeover(rival.name, 0.3)
        if history.random.random() < 0.5:
            world.late_news[me] = 3.0
        history.end_lease(me)
        with used(history, rival):
            await asyncio.sleep(3.0)
    world.late_news.pop(me, None)


async def _succeeded(history: History, record: Volume, seconds: float) -> None:
    """Wait, for so long at most, until the volume has another holder, or none."""
    for _ in range(round(seconds * 10)):
        await asyncio.sleep(0.1)
        now = history.world.record("vol")
        if now is None or now.grant != record.grant:
            return


async def holder_out_of_time(history: History) -> None:
    """Its machine stands still with its clock, as under a hypervisor: it knows nothing of the time in
    which it was succeeded, and hears late of that, too."""
    if (found := cast(history)) is None:
        return
    record, holder, rival = found
    world, me = history.world, holder.name
    with used(history, holder):
        await asyncio.sleep(0.5)
        world.shaken = True
        world.still.add(me)
        history.freeze(holder)
        began = holder.world_time()
        with used(history, rival, 2):
            await _succeeded(history, record, 10.0)
        holder.skip(holder.world_time() - began)
        world.late_news[me] = history.random.choice((0.0, 1.0, 3.0))
        history.go_on(holder)
        await asyncio.sleep(3.0)
    world.late_news.pop(me, None)


async def holder_that_hears_late(history: History) -> None:
    """Cut off from everything it is succeeded, and its container stands still. Then it has a lease
    again, and hears of its successor only later."""
    if (found := cast(history)) is None:
        return
    record, holder, rival = found
    world, me = history.world, holder.name
    others = [*(name for name in world.machines if name != me), "store"]
    ways = [way for other in others for way in ((me, other), (other, me))]
    with used(history, holder):
        await asyncio.sleep(0.5)
        with history.lost(*ways), used(history, rival, 2):
            await _succeeded(history, record, 10.0)
            world.late_news[me] = 3.0
        await asyncio.sleep(3.0)
    world.late_news.pop(me, None)


async def container_that_outlives_its_epoch(history: History) -> None:
    """Its node's daemon is away while another node takes over, and learns late of it; then the volume
    comes back, and the container has waited for a sync call all the time."""
    if (found := cast(history)) is None:
        return
    record, holder, rival = found
    world, me = history.world, holder.name
    with used(history, holder):
        await asyncio.sleep(0.5)
        holder.crash()
        with used(history, rival, 2):
            await _succeeded(history, record, 8.0)
        world.late_news[me] = 3.0
        await history.start(holder)
        await history.move(rival, me)
        await asyncio.sleep(1.0)
        world.late_news.pop(me, None)


async def generation_that_comes_under_a_takeover(history: History) -> None:
    """A copy has chosen what it begins with when a generation of the former holder comes, which was on its way."""
    await _comes_under_a_takeover(history, "driver.receive")


async def record_that_comes_under_a_takeover(history: History) -> None:
    """A copy keeps a record that it admitted before it took the volume over."""
    await _comes_under_a_takeover(history, "driver.keep")


async def _comes_under_a_takeover(history: History, label: str) -> None:
    if (found := cast(history)) is None:
        return
    record, holder, rival = found
    world, me = history.world, holder.name
    with used(history, holder), history.busy():
        await asyncio.sleep(history.random.choice((0.5, 1.0)))
        seconds = history.random.choice((0.1, 0.3, 1.0))
        world.slow_steps[rival.name, label] = seconds
        if label == "driver.receive":
            holder.disk.untold.add(record.id)
            if history.random.random() < 0.7:
                world.hang_takeover(rival.name, 2 * seconds)
        world.late_news[me] = 3.0
        await asyncio.sleep(seconds * history.random.random())
        history.end_lease(me)
        with used(history, rival):
            await asyncio.sleep(3.0)
    world.slow_steps.clear()
    world.late_news.pop(me, None)


async def holder_that_was_copied(history: History) -> None:
    """A copy of its computer is started under the same name, and somebody wants the volume there."""
    if (found := cast(history)) is None:
        return
    _, holder, _ = found
    copied = history.world.copy_of(holder)
    with used(history, holder):
        living = asyncio.ensure_future(_lives_until_copied(holder, copied))
        try:
            await history.start(copied)
            async with asyncio.timeout(history.random.choice((2.0, 6.0))):
                await history.world.mount(copied, "vol", "copied")
            if await living:
                history.world._wrong(f"a copy of {holder.name} serves its volume")
        except (PannierError, Died, TimeoutError) as error:
            history.say(f"not on the copy of {holder.name}: {error}")
        finally:
            living.cancel()
            copied.power_off()


async def _lives_until_copied(machine: Machine, copied: Machine) -> bool:
    """Whether a machine had its lease all the time until its copy got one. Without it, the first is as one that is off."""
    while copied.run is None or copied.run.lease.term == 0:
        if machine.run is None or not machine.run.lease.is_current:
            return False
        await asyncio.sleep(0.01)
    return True


async def record_that_is_damaged_after_a_takeover(history: History) -> None:
    """A copy has become the holder, and before it has made its live tree, its journal does not give a record back for a while."""
    if (found := cast(history)) is None:
        return
    record, holder, rival = found
    world = history.world
    with used(history, holder), history.busy():
        await asyncio.sleep(history.random.choice((0.5, 1.5)))
        world.slow_steps[rival.name, "driver.promote"] = 0.5
        history.go_on(holder)
        holder.power_off()
        with used(history, rival):
            await _succeeded(history, record, 10.0)
            with world.without_a_record(record.id):
                await asyncio.sleep(4.0)
    world.slow_steps.clear()
    await history.start(holder)


async def copy_that_is_set_back(history: History) -> None:
    """Its disk is one from before the last sync calls. It hears so from the holder, which does not hear it; then both lose their
    power, and only the copy starts again."""
    if (found := cast(history)) is None:
        return
    record, holder, rival = found
    world = history.world
    with used(history, holder), history.busy():
        await asyncio.sleep(0.5)
        older = copy.deepcopy(rival.disk.homes)
        await asyncio.sleep(1.0)
        world.still.add(holder.name)  # its containers; the daemon goes on
        history.go_on(rival)
        rival.power_off()
        world.set_back(rival, older)
        world.slow_steps[rival.name, "peer.lost_copy"] = 60.0
        await history.start(rival)
        await asyncio.sleep(1.5)
        if rival.run is not None and await rival.run.drivers.missing(record):
            world.unaware.discard((record.id, rival.name))
        rival.power_off()
        world.still.discard(holder.name)
        history.go_on(holder)
        holder.power_off()
        world.slow_steps.clear()
        await history.start(rival)
        with used(history, rival):
            await _succeeded(history, record, 20.0)
    await history.start(holder)


async def copy_that_cannot_be_tidied(history: History) -> None:
    """It can be neither tidied up nor read, and is made anew. Its holder's power fails at some moment of that; a person may
    have removed the cause by then."""
    if (found := cast(history)) is None:
        return
    record, holder, rival = found
    chance, span = history.random.random, history.random.choice((0.6, 1.1, 1.6, 3.0))
    with used(history, holder), history.busy():
        history.say(f"the copy on {rival.name} cannot be tidied up")
        rival.disk.spoilt[record.id] = StorageError("a subvolume is in it")
        if chance() < 0.3:
            history.world.slow_steps[rival.name, "peer.lost_copy"] = 1.0
        await asyncio.sleep(span)
        if chance() < 0.3:
            history.go_on(rival)
            rival.power_off()
            await history.start(rival)
            await asyncio.sleep(span)
        history.go_on(holder)
        holder.power_off()
        if chance() < 0.5:
            rival.disk.spoilt.clear()
        with used(history, rival):
            await _succeeded(history, record, 6.0)
    history.world.slow_steps.clear()
    rival.disk.spoilt.clear()
    await history.start(holder)


async def store_that_is_restored(history: History) -> None:
    """One node is off when the volume gets another holder or another copy; it starts again with a store of the time before,
    and only the others know better."""
    if (found := cast(history)) is None:
        return
    record, holder, rival = found
    world, chance = history.world, history.random.random
    backup = world.data.backup()
    victim = history.random.choice((holder, rival))
    others = [machine for machine in world.machines.values() if machine is not victim]
    with used(history, holder):
        await asyncio.sleep(history.random.choice((0.0, 1.0)))
        history.go_on(victim)
        victim.power_off()
        with used(history, history.random.choice(others)):
            await asyncio.sleep(history.random.choice((2.0, 8.0)))
            if chance() < 0.3:
                await history.move(others[0], others[1].name)
            if chance() < 0.3:
                await history.start(victim)
                await asyncio.sleep(history.random.choice((0.0, 3.0)))
            history.say(f"the store is restored; it knew {record.grant}, in sync {record.in_sync}")
            ways = [way for name in world.machines for way in ((name, "store"), ("store", name))]
            with history.lost(*ways):
                await asyncio.sleep(STORE_SECONDS)
                world.restore_store(backup, goes_on=chance() < 0.5)
            await asyncio.sleep(history.random.choice((0.0, 0.1, 1.0)))
    await history.start(victim)
    with used(history, victim):
        await asyncio.sleep(8.0)


QUARANTINE: tuple[Plot, ...] = (copy_that_cannot_be_tidied,)
"""Of copies that are set apart."""
RESTORED: tuple[Plot, ...] = (store_that_is_restored,)
"""Of a store that knows less than the nodes do."""
DAMAGE: tuple[Plot, ...] = (record_that_is_damaged_after_a_takeover, copy_that_is_set_back)
"""Of disks that do not have any more what they had confirmed."""
PLOTS: tuple[Plot, ...] = (
    only_generations_arrive,
    takeover_that_hangs,
    generation_that_comes_under_a_takeover,
    record_that_comes_under_a_takeover,
    join_that_hangs,
    crash_right_after_a_join,
    lease_that_ends_under_a_takeover,
    container_that_outlives_its_epoch,
    holder_out_of_time,
    holder_that_hears_late,
    holder_that_was_copied,
)
