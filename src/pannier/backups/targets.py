"""Where backups go: targets are added, listed, removed, looked into and kept in order, on the node that is asked."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import msgspec
import structlog

from pannier.backups.repository import Repository
from pannier.backups.restic import Restic
from pannier.cluster.backup_records import BackupRecords
from pannier.contract.bodies import BackupTargetOrder
from pannier.contract.views import BackupTargetView, BackupView, PrunedView
from pannier.core.backup_plans import Retention
from pannier.core.backups import (
    BackupTarget,
    Secrets,
    StoredBackup,
    check_secrets,
    check_target_name,
    host_of,
    strangers,
)
from pannier.core.complete_backups import bytes_of
from pannier.core.errors import (
    AlreadyExists,
    Conflict,
    Corrupt,
    InvalidInput,
    PannierError,
    RepositoryMissing,
    Stale,
)
from pannier.holding.cluster_keys import ClusterKeys
from pannier.host.clock import Clock, rfc3339

log = structlog.get_logger(__name__)


class Targets:
    """The cluster's backup targets."""

    def __init__(
        self,
        *,
        cluster: str,
        records: BackupRecords,
        keys: ClusterKeys,
        restic: Restic,
        clock: Clock,
    ) -> None:
        """Put the parts together.

        Args:
            cluster: the cluster's id.
        """
        self._cluster = cluster
        self._records = records
        self._keys = keys
        self._restic = restic
        self._clock = clock

    @property
    def host(self) -> str:
        """Under which host's name this cluster's backups are."""
        return host_of(self._cluster)

    # -- which there are ------------------------------------------------------------------------

    async def add(self, order: BackupTargetOrder, *, actor: str) -> BackupTargetView:
        """Add a target. Where there is no repository yet, one is made.

        Raises:
            InvalidInput: name, URL or secrets cannot be; AlreadyExists: there is one of that name.
            Conflict: another cluster's backups are there, and it is not only to be read.
            And what :class:`Repository` and :meth:`ClusterKeys.seal` raise. Nothing was added then.
        """
        check_target_name(order.name)
        secrets = _secrets(order)
        check_secrets(order.url, secrets)
        if any(each.name == order.name for each in await self._records.targets()):
            raise _taken(order.name)
        async with self._restic.opened(order.name, order.url, secrets) as repository:
            found = await self._repository_of(repository, order)
        key, sealed = await self._sealed(order.name, order.url, secrets)
        target = BackupTarget(
            name=order.name,
            url=order.url,
            repository=found,
            sealed=sealed,
            key=key,
            added_at=self._clock.unix(),
            read_only=order.read_only,
        )
        try:
            await self._records.add_target(target)
        except Stale:
            raise _taken(order.name) from None
        log.info("backups.target-added", target=order.name, url=order.url, by=actor)
        return target_view(target)

    async def _repository_of(self, repository: Repository, order: BackupTargetOrder) -> str:
        """The id of the repository that is there, or is made."""
        try:
            found = await repository.id()
        except RepositoryMissing:
            if order.read_only:
                raise
            await repository.make()
            return await repository.id()
        others = strangers(await repository.backups(), cluster=self._cluster)
        if others and not order.read_only:
            raise Conflict(
                f"the repository at {order.url} has backups of another cluster ({', '.join(others)})",
                remedy="use another place; to restore from this one, add it with --read-only",
            )
        return found

    async def all(self) -> list[BackupTargetView]:
        """All targets, by name."""
        return [target_view(each) for each in await self._records.targets()]

    async def remove(self, name: str, *, actor: str) -> BackupTargetView:
        """Forget a target with its secrets. Its repository, and what is in it, stays.

        Raises:
            NotFound: there is none of that name. Stale: somebody else has just changed it.
        """
        found = await self._records.target(check_target_name(name))
        await self._records.remove_target(name, expect=found.revision)
        log.info("backups.target-removed", target=name, by=actor)
        return target_view(found.record)

    async def chosen(self, name: str | None) -> BackupTarget:
        """The target to write to: of that name, or the only one.

        Raises:
            NotFound; Conflict: it is only to be read. InvalidInput: no name was given, and there is not exactly one.
        """
        if name is None:
            writable = [each for each in await self._records.targets() if not each.read_only]
            if len(writable) != 1:
                names = ", ".join(each.name for each in writable)
                raise InvalidInput(
                    f"there are {len(writable)} backup targets: {names}"
                    if names
                    else "there is no backup target",
                    remedy="name one: --target NAME"
                    if names
                    else "add one: pannier backup target add",
                )
            return writable[0]
        target = (await self._records.target(check_target_name(name))).record
        if target.read_only:
            raise Conflict(
                f"backup target {name} is only to be read", remedy="use another one: --target NAME"
            )
        return target

    # -- what is there --------------------------------------------------------------------------

    @asynccontextmanager
    async def opened(self, name: str) -> AsyncIterator[Repository]:
        """A target's repository for the time of the block: the one that was there when it was added.

        Raises:
            NotFound: there is no such target. Conflict: another repository is there.
            And what :class:`Repository` and :meth:`ClusterKeys.unseal` raise.
        """
        target = (await self._records.target(check_target_name(name))).record
        async with self._restic.opened(
            name, target.url, await self._secrets_of(target)
        ) as repository:
            found = await repository.id()
            if found != target.repository:
                raise Conflict(
                    f"backup target {name} has the repository {found[:8]} now, and had {target.repository[:8]} when it was added",
                    remedy="bring that one back, or take this one: pannier backup target rm, then add",
                )
            yield repository

    async def _secrets_of(self, target: BackupTarget) -> Secrets:
        about = self._about(target.name, target.url)
        plain = await self._keys.unseal(
            target.key, target.sealed, about=about, otherwise=_not_its_secrets()
        )
        try:
            return msgspec.json.decode(plain, type=Secrets)
        except msgspec.MsgspecError as error:
            raise _not_its_secrets() from error

    async def backups(self, name: str) -> list[BackupView]:
        """All backups at a target, oldest first. Raises as :meth:`opened`."""
        async with self.opened(name) as repository:
            return [backup_view(name, each) for each in await repository.backups()]

    async def verify(self, name: str, told: Callable[[int], None]) -> BackupTargetView:
        """Read all that is at a target. ``told`` hears now and then how many hundredths are done.

        Raises:
            Corrupt: something of it is damaged; and as :meth:`opened`.
        """
        async with self.opened(name) as repository:
            await repository.check(told)
        return target_view((await self._records.target(name)).record)

    async def prune(self, name: str, retention: Retention) -> PrunedView:
        """Remove this cluster's backups that need not stay.

        Raises:
            InvalidInput: ``retention`` keeps nothing. Conflict: the target is only to be read; and as :meth:`opened`.
        """
        retention.check()
        await self.chosen(name)
        async with self.opened(name) as repository:
            kept, removed = await repository.forget(
                retention, host=self.host, now=self._clock.unix()
            )
        log.info("backups.pruned", target=name, kept=len(kept), removed=len(removed))
        return PrunedView(target=name, kept=kept, removed=removed)

    async def sealed_with(self) -> frozenset[str]:
        """The ids of the keys that the secrets of targets are encrypted with."""
        return frozenset(each.key for each in await self._records.targets())

    async def seal_anew(self, by: str) -> None:
        """Encrypt the secrets of all targets with the key that encrypts what is new, whose id is ``by``. What cannot be, as where
        somebody else has just changed it, stays as it is; its key stays, too.
        """
        for target in await self._records.targets():
            if target.key == by:
                continue
            try:
                await self._seal_one(target.name)
            except PannierError as error:
                log.warning("backups.not-sealed-anew", target=target.name, error=str(error))

    async def _seal_one(self, name: str) -> None:
        found = await self._records.target(name)
        secrets = await self._secrets_of(found.record)
        key, sealed = await self._sealed(found.record.name, found.record.url, secrets)
        changed = replace(found.record, key=key, sealed=sealed)
        await self._records.replace_target(changed, expect=found.revision)

    async def _sealed(self, name: str, url: str, secrets: Secrets) -> tuple[str, str]:
        plain = msgspec.json.encode(secrets)
        return await self._keys.seal(plain, about=self._about(name, url))

    def _about(self, name: str, url: str) -> str:
        """What secrets belong to: so they are not sent elsewhere, whatever somebody writes into the store."""
        return f"{self._cluster}\n{name}\n{url}"


def target_view(target: BackupTarget) -> BackupTargetView:
    """A target, as it is shown."""
    return BackupTargetView(
        name=target.name,
        url=target.url,
        repository=target.repository,
        read_only=target.read_only,
        added_at=rfc3339(target.added_at),
    )


def backup_view(target: str, backup: StoredBackup) -> BackupView:
    """A backup, as it is shown in lists."""
    return BackupView(
        target=target,
        id=backup.id,
        volume=backup.volume,
        volume_id=backup.tags.get("id", ""),
        generation=backup.tags.get("generation", ""),
        made_at=backup.made_at,
        snapshot=backup.tags.get("snapshot", ""),
        bytes=bytes_of(backup),
    )


def _not_its_secrets() -> Corrupt:
    return Corrupt(
        "the secrets of a backup target in the store are not those that were put there",
        remedy="add the target again: pannier backup target rm, then add",
    )


def _taken(name: str) -> AlreadyExists:
    return AlreadyExists(
        f"there is a backup target {name} already",
        remedy="use another name, or remove that one first: pannier backup target rm",
    )


def _secrets(order: BackupTargetOrder) -> Secrets:
    return Secrets(
        password=order.password,
        s3_key_id=order.s3_key_id,
        s3_key=order.s3_key,
        ssh_key=order.ssh_key,
        known_hosts=order.known_hosts,
    )
