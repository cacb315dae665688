"""Snapshots of all volumes of a Swarm service, at one moment, led by the Swarm manager that was asked.

Each holder does its part (:mod:`pannier.holding.one_moment`), phase by phase. A phase begins when all holders have come to
the end of the one before. If one fails, is lost, or this node is, nobody reads the parts any more, and each holder gives its own up.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import replace
from functools import partial
from typing import Protocol

import structlog

from pannier.cluster.cluster import Cluster
from pannier.cluster.fitting import check_fit
from pannier.contract.bodies import MOST_TOGETHER, PeerTogetherOrder, PeerTogetherStep
from pannier.contract.peers import Peers, holder_unreachable
from pannier.contract.together import MadeGeneration, TogetherView
from pannier.contract.views import SnapshotView
from pannier.contract.words import TogetherPhase
from pannier.core.errors import (
    Conflict,
    NodeNotFound,
    NotFound,
    OutcomeUnknown,
    PannierError,
    Unavailable,
)
from pannier.core.generation import Generation
from pannier.core.snapshots import (
    MOST_NAME_LETTERS,
    Snapshot,
    check_labels,
    check_snapshot_name,
)
from pannier.core.volume import Volume
from pannier.host.clock import Clock
from pannier.swarm.services import Services

log = structlog.get_logger(__name__)

_TELL_SECONDS = 2.0
"""For telling a holder that the whole has failed, which may be the one that does not answer; and for hearing why one failed."""
_LATE = 10**9
"""The number of a generation that is as long as any."""


class HolderParts(Protocol):
    """This node's own parts, as other nodes ask for them (:class:`pannier.contract.peers.Peer`)."""

    def part(self, order: PeerTogetherOrder, *, peer: str) -> AsyncGenerator[TogetherView, None]:
        """See :meth:`pannier.contract.peers.Peer.peer_together`.

        Raises:
            PannierError: as there.
        """
        ...

    async def step(self, order: PeerTogetherStep, *, peer: str) -> None:
        """See :meth:`pannier.contract.peers.Peer.peer_together_step`.

        Raises:
            NotFound: as there.
        """
        ...


class ServiceSnapshots:
    """Leads the snapshots of services."""

    def __init__(
        self,
        *,
        cluster: Cluster,
        services: Services,
        here: HolderParts,
        peers: Peers,
        clock: Clock,
    ) -> None:
        self._cluster = cluster
        self._services = services
        self._here = here
        self._peers = peers
        self._clock = clock

    async def create(
        self,
        service: str,
        snapshot: str | None,
        *,
        keep_seconds: float | None,
        labels: Mapping[str, str],
        actor: str,
    ) -> list[SnapshotView]:
        """Make snapshots of all volumes of a service, of one name and as of one moment. All are made, or none.

        Args:
            snapshot: None for a name made of the service's and the time.

        Raises:
            NotFound: the Swarm has no such service.
            Conflict: this node is no Swarm manager, the service has no volumes of ours or too many, or their records are too large for
                one step; or as with a volume's snapshot.
            PeerUnavailable: a holder does not answer. Unavailable: a volume went on before all had their generations.
            OutcomeUnknown: all may have been made, or none.
        """
        check_labels(labels)
        found, names = await self._services.mounted(service)
        if not names:
            raise Conflict(
                f"service {found.name} has no volumes of Pannier", remedy="see pannier service ls"
            )
        if len(names) > MOST_TOGETHER:
            raise Conflict(
                f"service {found.name} has {len(names)} volumes, and at most {MOST_TOGETHER} have snapshots at one moment",
                remedy="make them one by one: pannier volume snapshot create",
            )
        name = check_snapshot_name(snapshot or _name(found.name, at=self._clock.unix()))
        volumes = [(await self._cluster.fresh(each)).record for each in sorted(names)]
        self._check_fits(volumes, name, labels)
        holders = _by_holder(volumes)
        session = secrets.token_hex(16)
        orders = {
            node: PeerTogetherOrder(
                session=session,
                volumes=[volume.name for volume in held],
                snapshot=name,
                keep_seconds=keep_seconds,
                labels=dict(labels),
                actor=actor,
                alone=len(holders) == 1,
            )
            for node, held in holders.items()
        }
        changed = asyncio.Event()
        parts: list[_FollowedPart] = []
        try:
            for node, order in orders.items():
                parts.append(self._follow(holders[node][0], order, changed))
            views = await _lead(parts, changed)
        except BaseException:
            await asyncio.gather(*(part.give_up() for part in parts))
            raise
        finally:
            await asyncio.gather(*(part.close() for part in parts))
        log.info("service.snapshot", service=found.name, snapshot=name, volumes=names, by=actor)
        return _answer(found.name, name, views)

    def _check_fits(self, volumes: Sequence[Volume], name: str, labels: Mapping[str, str]) -> None:
        """Whether all can be named in one step, before any hook runs. Raises Conflict, AlreadyExists."""
        at = self._clock.unix()
        made = [
            Snapshot(
                name=name,
                generation=Generation(volume.grant.epoch, _LATE),
                made_at=at,
                labels=dict(labels),
                keep_until=at,
            )
            for volume in volumes
        ]
        check_fit([volume.with_snapshot(each) for volume, each in zip(volumes, made, strict=True)])

    def _follow(
        self, volume: Volume, order: PeerTogetherOrder, changed: asyncio.Event
    ) -> _FollowedPart:
        """Begin the part of the holder of a volume."""
        node, me = volume.grant.node, self._cluster.node
        if node == me:
            here = self._here
            return _FollowedPart(
                order, here.part(order, peer=me), partial(here.step, peer=me), changed
            )
        holder = self._cluster.holder_of(volume)
        if not self._cluster.catalog.is_up(node):
            raise holder_unreachable(volume, NodeNotFound(f"node {node} is down"))
        peer = self._peers.to(holder)
        return _FollowedPart(order, peer.peer_together(order), peer.peer_together_step, changed)


class _FollowedPart:
    """A holder's part. It is followed for as long as it shall go on.

    Args:
        changed: set when it has come to a phase, and at its end.

    Attributes:
        to_name: what some holder may be naming.
    """

    def __init__(
        self,
        order: PeerTogetherOrder,
        views: AsyncGenerator[TogetherView, None],
        step: Callable[[PeerTogetherStep], Awaitable[None]],
        changed: asyncio.Event,
    ) -> None:
        self._order = order
        self._views = views
        self._step = step
        self._changed = changed
        self._reached: dict[TogetherPhase, TogetherView] = {}
        self.to_name: Sequence[MadeGeneration] = ()
        self._task = asyncio.create_task(self._read(), name="service-snapshot")
        self._task.add_done_callback(lambda _: changed.set())

    async def _read(self) -> None:
        async with aclosing(self._views) as views:
            async for view in views:
                self._reached[view.phase] = view
                self._changed.set()

    def at(self, phase: TogetherPhase) -> TogetherView | None:
        """What it said when it came to a phase; None where it has not. Raises what ended it."""
        if self._task.done():
            self._check_end()
        return self._reached.get(phase)

    def _check_end(self) -> None:
        volumes = ", ".join(self._order.volumes)
        try:
            self._task.result()
        except NotFound as error:
            if type(error) is NotFound and not self._reached:  # the route itself
                raise Conflict(
                    f"the holder of volume {volumes} has an earlier version, and takes no part in such snapshots",
                    remedy="upgrade it",
                ) from error
            raise
        if TogetherPhase.DONE not in self._reached:
            raise Unavailable(f"the holder of volume {volumes} has stopped", remedy="do it again")

    async def go_on(self, phase: TogetherPhase, made: Sequence[MadeGeneration] = ()) -> None:
        """Let it go on to a phase. Raises what ended it, if it was that."""
        session = self._order.session
        try:
            await self._step(PeerTogetherStep(session=session, phase=phase, made=list(made)))
        except NotFound:
            await asyncio.wait({self._task}, timeout=_TELL_SECONDS)
            self.at(phase)
            raise

    async def give_up(self) -> None:
        """Tell it that the whole has failed. It would notice that by itself, some seconds later."""
        if not self._task.done() and not self._order.alone:
            with suppress(PannierError, TimeoutError):
                async with asyncio.timeout(_TELL_SECONDS):
                    await self.go_on(TogetherPhase.GIVEN_UP, self.to_name)

    async def close(self) -> None:
        """Follow it no more."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


async def _lead(parts: Sequence[_FollowedPart], changed: asyncio.Event) -> list[TogetherView]:
    """Have all parts go from phase to phase together. Returns what they said in the end."""
    if len(parts) == 1:
        return await _reach(parts, TogetherPhase.DONE, changed)
    await _reach(parts, TogetherPhase.PREPARED, changed)
    for phase in (TogetherPhase.FROZEN, TogetherPhase.MADE):
        await asyncio.gather(*(part.go_on(phase) for part in parts))
        views = await _reach(parts, phase, changed)
    made = [each for view in views for each in view.made]
    first, *others = parts
    for part in parts:
        part.to_name = made
    try:
        await first.go_on(TogetherPhase.NAMED, made)
        await _reach([first], TogetherPhase.NAMED, changed)
    except Unavailable as error:
        raise OutcomeUnknown(
            f"a holder did not say whether the snapshots were made: {error.message}",
            remedy="all volumes have them or none: pannier volume snapshot ls",
        ) from error
    try:
        await asyncio.gather(*(part.go_on(TogetherPhase.NAMED) for part in others))
        return await _reach(parts, TogetherPhase.DONE, changed)
    except PannierError as error:
        raise OutcomeUnknown(
            f"the snapshots were made, but a holder did not say where they are: {error.message}",
            remedy="see pannier volume snapshot show",
        ) from error


async def _reach(
    parts: Sequence[_FollowedPart], phase: TogetherPhase, changed: asyncio.Event
) -> list[TogetherView]:
    """Wait until all have come to a phase. Raises what ended one of them."""
    while True:
        changed.clear()
        found = [part.at(phase) for part in parts]
        views = [view for view in found if view is not None]
        if len(views) == len(parts):
            return views
        await changed.wait()


def _by_holder(volumes: Sequence[Volume]) -> dict[str, list[Volume]]:
    found: dict[str, list[Volume]] = {}
    for volume in volumes:
        found.setdefault(volume.grant.node, []).append(volume)
    return found


def _name(service: str, *, at: float) -> str:
    """A snapshot's name, with a Unix time in it."""
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(at))
    return f"{service[: MOST_NAME_LETTERS - len(stamp) - 1]}-{stamp}"


def _answer(service: str, snapshot: str, views: Sequence[TogetherView]) -> list[SnapshotView]:
    failed = [each for view in views for each in view.hooks_failed]
    if failed:
        raise Conflict(
            f"the snapshots {snapshot} of service {service} were made, but {'; '.join(failed)}",
            remedy="see to what it says; the snapshots are whole, and stay",
        )
    found = [
        replace(each, hook_failures=view.hook_failures) for view in views for each in view.snapshots
    ]
    return sorted(found, key=lambda each: each.volume)
