"""The cluster's key for people: what there is, another one in its place, and its passphrase after a boot.

A rotation makes a new key, and names it in the store. All that was sealed with an earlier one is sealed anew then: by the node
that was asked, and by each node for what it holds, so a rotation that was broken off goes on by itself. Nobody forgets an
earlier key, so it makes no difference when that happens. The volumes' own keys stay: their files are not written anew.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from functools import partial

import structlog

from pannier.backups.targets import Targets
from pannier.cluster.cluster import Cluster
from pannier.contract.peers import Peers
from pannier.contract.views import ClusterKeyView
from pannier.core.encryption import ClusterKey, SealedKey
from pannier.core.errors import Conflict, InvalidInput, OutcomeUnknown, PannierError, Unavailable
from pannier.core.pace import NodePace
from pannier.core.volume import Volume
from pannier.holding.cluster_keys import ClusterKeys
from pannier.holding.volume_keys import KeysOfVolumes

log = structlog.get_logger(__name__)


class Rotating:
    """Answers people, and keeps what is sealed with an earlier key from staying so."""

    def __init__(
        self,
        *,
        cluster: Cluster,
        keys: ClusterKeys,
        volume_keys: KeysOfVolumes,
        targets: Targets,
        peers: Peers,
        pace: NodePace,
    ) -> None:
        self._cluster = cluster
        self._keys = keys
        self._volume_keys = volume_keys
        self._targets = targets
        self._peers = peers
        self._pace = pace

    async def show(self) -> ClusterKeyView:
        """Which key there is, and what it encrypts, as far as this node sees.

        Raises:
            StoreUnavailable.
        """
        found = await self._keys.named()
        key = found.record if found is not None else None
        return self._view(key, locked=key is not None and key.locked is not None)

    def _view(self, key: ClusterKey | None, *, locked: bool) -> ClusterKeyView:
        volumes = [each for each in self._remembered() if each.key is not None]
        earlier = [each for each in volumes if key is not None and _is_earlier(each, key.id)]
        return ClusterKeyView(
            id=key.id if key is not None else None,
            locked=locked,
            node=self._cluster.node,
            missing=sorted(self._keys.missing(key)),
            volumes=len(volumes),
            earlier=sorted(each.name for each in earlier),
        )

    async def unlock(self, passphrase: str, *, actor: str) -> ClusterKeyView:
        """Have the keys that are locked with a passphrase, on this node; the others ask it for them. The store need not answer.

        Raises:
            Denied: it is another passphrase. Conflict: no key is locked.
        """
        count = await self._keys.unlock(passphrase)
        log.info("keys.unlocked", keys=count, by=actor)
        try:
            return await self.show()
        except (Unavailable, OutcomeUnknown):
            return self._view(None, locked=True)

    async def rotate(self, *, passphrase: str | None, actor: str) -> ClusterKeyView:
        """Put another key in the place of the cluster's.

        Args:
            passphrase: locks it, and all earlier ones; empty: each node keeps them in a file; None: so, if none is locked now.

        Raises:
            InvalidInput: None, and the keys are locked. KeyMissing: an earlier key is not here.
            Conflict: a node that is up does not take the new key; Stale: another rotation was faster. Nothing was changed then.
            StoreUnavailable; OutcomeUnknown: it may have been named; ``show`` says so.
        """
        await self._keys.current()
        found = await self._keys.named()
        assert found is not None
        if found.record.locked is not None and passphrase is None:
            raise InvalidInput(
                "the cluster's keys are locked with a passphrase, and none was given",
                remedy="give one, which may be another: --passphrase-file FILE; or keep them in files: --in-files",
            )
        for wanted in sorted(await self._sealed_with()):
            await self._keys.need(wanted)
        prepare = None if passphrase else self._take_everywhere
        key = await self._keys.name_another(found, passphrase=passphrase or "", prepare=prepare)
        log.info("keys.rotated", key=key.id, locked=bool(passphrase), by=actor)
        if passphrase:
            try:
                await self._take_everywhere(key.id)
            except PannierError as error:  # they ask for it themselves
                log.warning("keys.not-taken", error=str(error))
        await self._seal_all(key.id)
        return await self.show()

    async def run(self) -> None:
        """Seal anew what this node holds, where a rotation has not come to it, for ever: run as a task."""
        while True:
            try:
                await self._seal_mine()
            except PannierError as error:
                log.info("keys.not-sealed-anew", error=str(error))
            await asyncio.sleep(self._pace.key_look)

    # -- sealing anew ---------------------------------------------------------------------------

    async def _sealed_with(self) -> frozenset[str]:
        """The ids of all keys that something in the store is sealed with."""
        volumes = await self._cluster.registry.every_volume()
        targets = await self._targets.sealed_with()
        return frozenset(each.key.by for each in volumes if each.key is not None) | targets

    async def _take_everywhere(self, key_id: str) -> None:
        """Have each node that is up take a key.

        Raises:
            Conflict: one does not.
        """
        catalog = self._cluster.catalog
        for node in catalog.nodes():
            if node.name == self._cluster.node or not catalog.is_up(node.name):
                continue
            try:
                await self._peers.to(node).peer_take_key(key_id)
            except PannierError as error:
                raise Conflict(
                    f"node {node.name} counts as up, and does not take the new key: {error.message}",
                    remedy="try again in some seconds; if that stays, see that node's log, or upgrade it",
                ) from error

    async def _seal_all(self, by: str) -> None:
        volumes = await self._cluster.registry.every_volume()
        await self._seal(volumes, by)
        await self._targets.seal_anew(by)

    async def _seal_mine(self) -> None:
        mine = [each for each in self._remembered() if each.grant.node == self._cluster.node]
        if any(each.key is not None for each in mine):
            found = await self._keys.named()
            if found is not None:
                await self._seal(mine, found.record.id)

    async def _seal(self, volumes: Iterable[Volume], by: str) -> None:
        for volume in volumes:
            if _is_earlier(volume, by):
                try:
                    await self._seal_one(volume, by)
                except PannierError as error:  # the others; its holder tries again
                    log.warning("volume.key-not-sealed-anew", volume=volume.name, error=str(error))

    async def _seal_one(self, volume: Volume, by: str) -> None:
        key = await self._volume_keys.sealed_anew(volume, by=by)
        decide = partial(_with_key, volume=volume, key=key)
        registry = self._cluster.registry
        if volume.removed_at is None:
            now = await registry.change(partial(self._cluster.fresh, volume.name), decide)
            self._cluster.catalog.remember(now.record, revision=now.revision)
            return
        found = await registry.trashed(volume.id)
        changed = decide(found.record) if found is not None else None
        if found is not None and changed is not None:
            await registry.replace_trashed(changed, expect=found.revision)

    def _remembered(self) -> list[Volume]:
        return [*self._cluster.catalog.volumes(), *self._cluster.catalog.trashed()]


def _is_earlier(volume: Volume, key_id: str) -> bool:
    return volume.key is not None and volume.key.by != key_id


def _with_key(record: Volume, *, volume: Volume, key: SealedKey) -> Volume | None:
    """A record with its key sealed anew; None where it is not that of ``volume`` any more, or somebody was faster."""
    if record.id != volume.id or record.key != volume.key:
        return None
    return record.encrypted_with(key)
