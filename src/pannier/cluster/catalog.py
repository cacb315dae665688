"""What this node remembers of the cluster, so that Docker is answered at once, even without the store.

A watch of the store keeps it fresh; a copy on disk bridges a restart without the store. Decisions
that could lose data are made on fresh reads (:mod:`pannier.cluster.registry`), never on this.

What is remembered of a volume only grows. A record that is older than the remembered one, or that vanishes without a
trace, is doubted and not taken in: either the news is late, or the store was restored from an older backup.
:meth:`pannier.cluster.cluster.Cluster.fresh` finds out which.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import structlog

from pannier.cluster.registry import CLUSTER_KEY, ClusterRecord, decode, purged_key, trash_key
from pannier.core.errors import PannierError, StorageError
from pannier.core.node import Fingerprints, Node
from pannier.core.record import Record
from pannier.core.restored import is_behind, is_news
from pannier.core.volume import Volume
from pannier.host.records import encode, read_file
from pannier.host.state_files import StateFile
from pannier.store.base import Deleted, Entry, Put, Store, Synced

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Changed:
    """One difference between what was known and what is.

    ``kind`` is ``volumes``, ``nodes``, ``alive`` or ``trash``. ``present`` says whether the thing is
    there now; ``alive`` has nothing else.
    """

    kind: str
    name: str
    before: Volume | Node | None
    after: Volume | Node | None
    present: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedCatalog(Record):
    """The copy on disk, with records of newer formats as they are."""

    boot_id: str | None = None
    volumes: tuple[Volume, ...] = ()
    nodes: tuple[Node, ...] = ()


@dataclass(slots=True)
class _Known:
    volumes: dict[str, Volume] = field(default_factory=dict)
    nodes: dict[str, Node] = field(default_factory=dict)
    trash: dict[str, Volume] = field(default_factory=dict)
    alive: dict[str, None] = field(default_factory=dict)


_KINDS: dict[str, type[Volume] | type[Node] | None] = {
    "volumes": Volume,
    "nodes": Node,
    "trash": Volume,
    "alive": None,
}


class Catalog:
    """The remembered volumes and nodes. Reading never waits and never fails."""

    def __init__(self, *, file: StateFile, cluster: str | None, boot_id: str) -> None:
        """Prepare; empty until :meth:`load` or :meth:`follow`.

        Args:
            file: where the copy on disk is.
            cluster: the id of our cluster. A store that is empty or another cluster's is not
                believed: what is remembered stays. None believes any.
            boot_id: of this machine's present boot.
        """
        self._file = file
        self._cluster = cluster
        self._cluster_heard: str | None = None
        self._boot_id = boot_id
        self._same_boot = False
        self._known = _Known()
        self._sorted: tuple[Volume, ...] | None = None
        """The volumes by name; None since one has changed. Several tasks go through all of them each second."""
        self._saved = SavedCatalog()
        """The copy on disk as it was loaded."""
        self._damaged: dict[str, str] = {}
        self._revisions: dict[str, int] = {}
        self._ahead: set[str] = set()
        """Keys remembered from reads that the watch may not have reached yet."""
        self._doubted: set[str] = set()
        """Names of volumes of which the store seems to know less than is remembered."""
        self._listeners: list[Callable[[Changed], None]] = []
        self.synced = asyncio.Event()
        """Set once all records of the store have been read since the start."""
        self._dirty = asyncio.Event()
        self._saving = asyncio.Lock()

    def load(self) -> None:
        """Read the copy on disk; without a readable one the catalog starts empty."""
        try:
            saved = read_file(self._file, SavedCatalog, remedy="it is made anew from the store")
        except PannierError as error:
            log.warning("catalog.unreadable", file=str(self._file.path), error=str(error))
            return
        if saved is None:
            return
        self._saved = saved
        self._same_boot = saved.boot_id == self._boot_id
        self._known.volumes = {volume.name: volume for volume in saved.volumes}
        self._sorted = None
        self._known.nodes = {node.name: node for node in saved.nodes}

    def _save(self) -> None:
        saved = replace(
            self._saved,
            boot_id=self._boot_id,
            volumes=tuple(self._known.volumes.values()),
            nodes=tuple(self._known.nodes.values()),
        )
        self._file.write(encode(saved))

    @property
    def cluster(self) -> str | None:
        """The id of our cluster; None where any is accepted."""
        return self._cluster

    @property
    def trusted(self) -> bool:
        """Whether what is remembered is from the store, or from this very boot.

        In both cases no other node can have taken a volume from this one while it was off, without
        this one noticing.
        """
        return self._same_boot or self.synced.is_set()

    def volume(self, name: str) -> Volume | None:
        """A volume as last heard."""
        return self._known.volumes.get(name)

    def has_volume(self, name: str) -> bool:
        """Whether there was a volume of that name, as last heard."""
        return name in self._known.volumes

    def volumes(self) -> list[Volume]:
        """All volumes as last heard, sorted by name."""
        if self._sorted is None:
            self._sorted = tuple(v for _, v in sorted(self._known.volumes.items()))
        return list(self._sorted)

    def node(self, name: str) -> Node | None:
        """A node as last heard."""
        return self._known.nodes.get(name)

    def knows(self, name: str, *, shown: Fingerprints) -> bool:
        """Whether a certificate with these fingerprints may act for the node of this name."""
        node = self._known.nodes.get(name)
        return node is not None and node.is_shown_by(shown)

    def nodes(self) -> list[Node]:
        """All nodes as last heard, sorted by name."""
        return sorted(self._known.nodes.values(), key=lambda node: node.name)

    def is_up(self, node: str) -> bool:
        """Whether the node's lease was alive when last heard."""
        return node in self._known.alive

    def trashed(self) -> list[Volume]:
        """Removed volumes that can be restored, as last heard, in the order in which they were removed."""
        return [self._known.trash[name] for name in sorted(self._known.trash, key=self._removed)]

    def removed(self, volume_id: str) -> Volume | None:
        """A removed volume that can be restored, by its id. Any thread may ask."""
        return self._known.trash.get(volume_id)

    def _removed(self, volume_id: str) -> int:
        """The store's order, which no clock can change."""
        before = self._known.trash[volume_id].removed_in
        return self._revisions.get(trash_key(volume_id), 0) if before is None else before

    @property
    def damaged(self) -> dict[str, str]:
        """Why an entry of the store cannot be read, by key; what was known before is still shown."""
        return dict(self._damaged)

    def doubt(self, name: str) -> None:
        """Keep what is remembered of a volume, although the store seems to say something older."""
        self._doubted.add(name)

    def doubts(self, name: str) -> bool:
        """Whether the store seems to know less of a volume than is remembered."""
        return name in self._doubted

    def doubted(self) -> list[str]:
        """The names of all such volumes, sorted."""
        return sorted(self._doubted)

    def learn(self, volume: Volume) -> bool:
        """Take in what another node remembers, if that is more. It is doubted until the store was asked.

        Returns whether it was news.
        """
        if not is_news(volume, self.volume(volume.name)):
            return False
        self._apply(f"volumes/{volume.name}", volume, 0)
        self._doubted.add(volume.name)
        return True

    def listen(self, listener: Callable[[Changed], None]) -> Callable[[], None]:
        """Call ``listener`` at each change from now on. Returns the call that ends it."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def remember(self, volume: Volume, *, revision: int) -> None:
        """Take in a record that was just read or written, without waiting for the watch."""
        known = self.volume(volume.name)
        if known is not None and known.id == volume.id and is_behind(volume, known):
            return  # something newer came while it was read
        key = f"volumes/{volume.name}"
        self._ahead.add(key)
        self._apply(key, volume, revision)

    def forget(self, name: str) -> None:
        """Take in that a volume was removed."""
        self._apply(f"volumes/{name}", None, 0)

    def remember_node(self, node: Node, *, revision: int) -> None:
        """As :meth:`remember`."""
        key = f"nodes/{node.name}"
        if revision > self._revisions.get(key, 0):
            self._ahead.add(key)
            self._apply(key, node, revision)

    def forget_node(self, name: str) -> None:
        """Take in that a node was removed."""
        self._apply(f"nodes/{name}", None, 0)

    async def follow(self, store: Store) -> None:
        """Keep fresh for ever: run as a task.

        A record that cannot be read is logged and listed in :attr:`damaged`; what was known before stays.
        One of a newer format is taken in, since it is only shown: see :mod:`pannier.core.record`.
        """
        async for event in store.watch(""):
            match event:
                case Put(entry) if entry.key == CLUSTER_KEY:
                    self._cluster_heard = self._cluster_of(entry)
                case Deleted(key) if key == CLUSTER_KEY:
                    self._cluster_heard = None
                case Put(entry) if self._cluster in (None, self._cluster_heard) or (
                    self._cluster_heard is None and entry.key < CLUSTER_KEY
                ):
                    self._take(entry)
                case Deleted(key) if self._cluster in (None, self._cluster_heard):
                    self._ahead.discard(key)
                    self._damaged.pop(key, None)
                    self._apply(key, None, 0)
                case Synced(keys):
                    if CLUSTER_KEY not in keys:
                        self._cluster_heard = None
                    if self._cluster in (None, self._cluster_heard):
                        self._forget_all_but(keys)
                    else:
                        log.error("store.not-ours", heard=self._cluster_heard, ours=self._cluster)

    def _forget_all_but(self, keys: frozenset[str]) -> None:
        # A record that was made just now may be newer than this list; the next list decides.
        for key in self._keys() - keys - self._ahead:
            if self._left_a_trace(key, keys):
                self._apply(key, None, 0)
            else:
                self._doubted.add(key.removeprefix("volumes/"))
        self._damaged = {key: why for key, why in self._damaged.items() if key in keys}
        self._ahead.clear()
        self.synced.set()
        self._dirty.set()

    def _left_a_trace(self, key: str, keys: frozenset[str]) -> bool:
        """Whether something that the store does not list is gone. A volume goes to the trash, and leaves a mark after that."""
        kind, _, name = key.partition("/")
        volume = self.volume(name) if kind == "volumes" else None
        if volume is None:
            return True
        return volume.id in self._known.trash or purged_key(volume.id) in keys

    async def keep_saved(self) -> None:
        """Write the copy on disk after changes, for ever: run as a task."""
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            try:
                await self.save()
            except StorageError as error:
                log.warning("catalog.not-saved", error=error.message)
            await asyncio.sleep(0.5)

    async def save(self) -> None:
        """Write the copy on disk now: a daemon that is killed and started again has it. A power cut may take it back.

        Raises:
            StorageError: it cannot be written.
        """
        async with self._saving:
            try:
                await asyncio.to_thread(self._save)
            except OSError as error:
                raise StorageError(
                    f"{self._file.path} cannot be written: {error}", remedy="see the disk"
                ) from error

    def _cluster_of(self, entry: Entry) -> str:
        """The id in the cluster's record; empty, which is no cluster's id, if it cannot be read."""
        try:
            return decode(entry, ClusterRecord).id
        except PannierError as error:
            log.error("catalog.unreadable", key=entry.key, error=str(error))
            return ""

    def _keys(self) -> set[str]:
        return {f"{kind}/{name}" for kind in _KINDS for name in getattr(self._known, kind)}

    def _take(self, entry: Entry) -> None:
        kind, _, _ = entry.key.partition("/")
        record_type = _KINDS.get(kind)
        if kind not in _KINDS:
            return
        try:
            record = decode(entry, record_type, shown=True) if record_type else None
        except PannierError as error:
            log.error("catalog.unreadable", key=entry.key, error=str(error))
            self._damaged[entry.key] = str(error)
            return
        self._damaged.pop(entry.key, None)
        if isinstance(record, Volume) and (doubted := self._contradicted(kind, record)):
            self._doubted.add(doubted)
            return
        if entry.key in self._ahead and entry.revision >= self._revisions.get(entry.key, 0):
            self._ahead.discard(entry.key)
        self._apply(entry.key, record, entry.revision, present=True)

    def _contradicted(self, kind: str, record: Volume) -> str | None:
        """The name of the remembered volume than which a record is older; None where it is not."""
        known = self.volume(record.name)
        if known is None:
            return None
        if known.id == record.id:
            return known.name if is_behind(record, known) else None
        gone = known.id in self._known.trash or kind == "trash"
        return None if gone else known.name

    def _apply(
        self, key: str, record: Volume | Node | None, revision: int, *, present: bool | None = None
    ) -> None:
        kind, _, name = key.partition("/")
        if kind not in _KINDS or not name:
            return
        if present is None:
            present = record is not None
        known: dict[str, Volume | Node | None] = getattr(self._known, kind)
        before, was = known.get(name), name in known
        late = key in self._ahead and revision < self._revisions.get(key, 0)
        if present and late and not _counts_more(record, before):
            return  # the watch is behind a newer record that was read or written here
        if kind == "volumes":
            self._doubted.discard(name)
            self._sorted = None
        if present:
            self._revisions[key] = revision
            known[name] = record
        else:
            self._revisions.pop(key, None)
            known.pop(name, None)
        if was == present and before == record:
            return
        if kind in ("volumes", "nodes"):
            self._dirty.set()
        for listener in tuple(self._listeners):
            listener(Changed(kind, name, before, record, present))


def _counts_more(record: Volume | Node | None, before: Volume | Node | None) -> bool:
    """Whether a record is newer than the known one, whatever its revision: that of a store that was restored may go back."""
    if not isinstance(record, Volume) or not isinstance(before, Volume):
        return False
    return record.changes > before.changes
