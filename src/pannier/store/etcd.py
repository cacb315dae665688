"""The store of a cluster: etcd v3, over its JSON gateway, with mutual TLS. Works with 3.4 and 3.5."""

from __future__ import annotations

import asyncio
import math
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any, Final

from pannier.core.errors import OutcomeUnknown, StorageError, StoreUnavailable
from pannier.store import keys
from pannier.store.base import ABSENT, Change, Entry, MemberHealth, Store, WatchEvent
from pannier.store.changes import check, lease_gone, lost_race
from pannier.store.etcd_gateway import Gateway, NoAnswer, Refused, Timing, error_of
from pannier.store.etcd_health import judge, unreachable
from pannier.store.etcd_watch import EtcdWatch, range_of
from pannier.store.etcd_wire import (
    KeepAliveMessage,
    LeaseGrantResponse,
    LeaseRevokeResponse,
    RangeResponse,
    StatusResponse,
    TxnResponse,
)

NAMESPACE: Final = "/pannier/v1/"
"""In front of every key, so that an etcd can be shared with others and the layout can change."""

_LEASE_NOT_FOUND: Final = "requested lease not found"


class EtcdStore(Store):
    """An etcd cluster, through any of its members.

    Reads, lease calls and watches move from a member that fails to the next. A commit goes to
    another member only where the first cannot have carried it out; else it ends as OutcomeUnknown.

    Args:
        endpoints: ``host:port`` of members, preferred ones first; IPv6 addresses in brackets.
        tls: client context with the cluster's CA and this client's certificate; None means plain
            HTTP, which only a test should use.
        namespace: in front of every key in etcd; no other program may write there.
        timing: how long to wait.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        *,
        tls: ssl.SSLContext | None,
        namespace: str = NAMESPACE,
        timing: Timing | None = None,
    ) -> None:
        if not endpoints:
            raise ValueError("etcd needs at least one endpoint")
        self._namespace = keys.encode(namespace)
        self._gateway = Gateway(
            endpoints, tls=tls, timing=timing or Timing(), namespace=self._namespace
        )

    async def get(self, key: str) -> Entry | None:
        answer = await self._read({"key": self._key(key)})
        return self._entries(answer)[0] if answer.kvs else None

    async def list(self, prefix: str) -> tuple[Entry, ...]:
        return self._entries(await self._read(range_of(self._key(prefix))))

    async def commit(self, *changes: Change) -> int:
        check(changes)
        body = {
            "compare": [self._compare(change) for change in changes],
            "success": [self._operation(change) for change in changes],
        }

        async def attempt(endpoint: str, seconds: float) -> TxnResponse:
            return await self._gateway.post(endpoint, "kv/txn", body, TxnResponse, seconds=seconds)

        try:
            answer = await self._gateway.once(attempt)
        except Refused as refused:
            if _LEASE_NOT_FOUND in refused.message:
                raise lease_gone(_leases(changes)) from refused
            raise _rejected(refused) from refused
        if not answer.succeeded:
            raise lost_race(" or ".join(change.key for change in changes))
        return answer.header.revision

    async def watch(self, prefix: str) -> AsyncGenerator[WatchEvent, None]:
        watch = EtcdWatch(self._gateway, namespace=self._namespace, prefix=keys.encode(prefix))
        async with aclosing(watch.events()) as events:
            async for event in events:
                yield event

    async def grant_lease(self, ttl_seconds: float) -> str:
        # Rounded up to whole seconds: the lease may last longer than its owner relies on, but not
        # shorter. If the request is repeated, the first lease may remain, and runs out by itself.
        body = {"TTL": math.ceil(ttl_seconds)}

        async def attempt(endpoint: str, seconds: float) -> LeaseGrantResponse:
            return await self._gateway.post(
                endpoint, "lease/grant", body, LeaseGrantResponse, seconds=seconds
            )

        try:
            return (await self._gateway.repeat(attempt)).ID
        except Refused as refused:
            raise _rejected(refused) from refused

    async def renew_lease(self, lease: str) -> None:
        body = {"ID": _lease_id(lease)}

        async def attempt(endpoint: str, seconds: float) -> KeepAliveMessage:
            # A leader that was paused and replaced goes on renewing leases until it hears of its
            # successor, and the successor does not count those renewals. The read needs a majority.
            # So whoever renews after it was the leader when we began, or became it later. Any
            # leader after that one gives the lease its whole time anew.
            await self._gateway.header_at(endpoint)
            message = await self._gateway.post(
                endpoint, "lease/keepalive", body, KeepAliveMessage, seconds=seconds
            )
            if message.error is not None:
                raise error_of(message.error)
            if message.result is None:
                raise NoAnswer("no answer about the lease")
            return message

        try:
            message = await self._gateway.repeat(attempt)
        except Refused as refused:
            if _LEASE_NOT_FOUND in refused.message:
                raise lease_gone(lease) from refused
            raise _rejected(refused) from refused
        if message.result is None or message.result.TTL <= 0:
            raise lease_gone(lease)

    async def revoke_lease(self, lease: str) -> None:
        if not _is_lease_id(lease):
            return
        body = {"ID": _lease_id(lease)}
        sent = False

        async def attempt(endpoint: str, seconds: float) -> None:
            nonlocal sent
            try:
                await self._gateway.post(
                    endpoint, "lease/revoke", body, LeaseRevokeResponse, seconds=seconds
                )
            except NoAnswer as failure:
                sent = sent or failure.may_have_happened
                raise

        try:
            await self._gateway.repeat(attempt)
        except StoreUnavailable as error:
            if sent:
                raise OutcomeUnknown(error.message, remedy=error.remedy) from error
            raise
        except Refused as refused:
            if _LEASE_NOT_FOUND not in refused.message:
                raise _rejected(refused) from refused

    @asynccontextmanager
    async def session(self) -> AsyncIterator[EtcdStore]:
        async with self._gateway.open():
            yield self

    async def health(self) -> dict[str, MemberHealth]:
        endpoints = self._gateway.endpoints
        found = await asyncio.gather(*(self._health_of(endpoint) for endpoint in endpoints))
        return dict(zip(endpoints, found, strict=True))

    async def _health_of(self, endpoint: str) -> MemberHealth:
        seconds = self._gateway.timing.try_seconds
        try:
            await self._gateway.header_at(endpoint)
            status = await self._gateway.post(
                endpoint, "maintenance/status", {}, StatusResponse, seconds=seconds
            )
        except (NoAnswer, Refused) as failure:
            return unreachable(str(failure))
        return judge(status)

    async def _read(self, body: dict[str, Any]) -> RangeResponse:
        async def attempt(endpoint: str, seconds: float) -> RangeResponse:
            return await self._gateway.post(
                endpoint, "kv/range", body, RangeResponse, seconds=seconds
            )

        try:
            return await self._gateway.repeat(attempt)
        except Refused as refused:
            raise _rejected(refused) from refused

    def _entries(self, answer: RangeResponse) -> tuple[Entry, ...]:
        strip = len(self._namespace)
        return tuple(
            Entry(keys.decode(kv.key[strip:]), kv.value, kv.mod_revision) for kv in answer.kvs
        )

    def _key(self, key: str) -> bytes:
        return self._namespace + keys.encode(key)

    def _compare(self, change: Change) -> dict[str, Any]:
        key = self._key(change.key)
        if change.expect == ABSENT:
            return {"key": key, "target": "CREATE", "create_revision": 0}
        return {"key": key, "target": "MOD", "mod_revision": change.expect}

    def _operation(self, change: Change) -> dict[str, Any]:
        key = self._key(change.key)
        if change.value is None:
            return {"request_delete_range": {"key": key}}
        put: dict[str, Any] = {"key": key, "value": change.value}
        if change.lease is not None:
            put["lease"] = _lease_id(change.lease)
        return {"request_put": put}


def _is_lease_id(lease: str) -> bool:
    return lease.isascii() and lease.isdecimal() and 0 < int(lease) < 1 << 63


def _lease_id(lease: str) -> int:
    if not _is_lease_id(lease):
        raise lease_gone(lease)
    return int(lease)


def _leases(changes: tuple[Change, ...]) -> str:
    return " or ".join(sorted({change.lease for change in changes if change.lease is not None}))


def _rejected(refused: Refused) -> StorageError:
    return StorageError(
        f"etcd rejects the request: {refused.message}",
        remedy="see that etcd is version 3.4 or newer and lets this client write",
    )
