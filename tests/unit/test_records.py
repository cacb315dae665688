"""Records outlive versions: golden files of each, fields of later versions, newer formats, damage.

A golden file is never changed: it is what some node has on its disk. A new format gets a new file.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import pkgutil
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

import pannier
from pannier.agent.disks import HangingDisks
from pannier.agent.freezing import FrozenGroups
from pannier.agent.hooks import BegunHooks
from pannier.agent.mountids import MountHints, MountIds
from pannier.agent.promises import Promises, Refusal, Takeovers
from pannier.barrier.keeping import Keeping, Origin
from pannier.barrier.pending import Pending
from pannier.cluster.catalog import Catalog, SavedCatalog
from pannier.cluster.registry import ClusterRecord, Purged
from pannier.copies.verification import Verified
from pannier.core.backup_plans import BackupState
from pannier.core.backups import BackupDrill, BackupTarget
from pannier.core.clone_origin import CloneOrigin
from pannier.core.encryption import ClusterKey, LockedKeys, SealedKey
from pannier.core.errors import Corrupt, ForeignData, NewerFormat, StorageError
from pannier.core.evacuation import Evacuated, Phase
from pannier.core.generation import Generation
from pannier.core.importing import ImportNote, ImportNotes
from pannier.core.node import Fingerprints, Node
from pannier.core.record import Part, Record
from pannier.core.removals import Removals
from pannier.core.schedules import Schedule, SchedulePolicy
from pannier.core.snapshots import Snapshot
from pannier.core.swarm import Availability
from pannier.core.usage import UsageSample
from pannier.core.volume import (
    Beginning,
    Declared,
    Durability,
    Grant,
    HistoryEntry,
    UnheldWrites,
    Volume,
    VolumeSpec,
)
from pannier.engine.registration import RegisteredRuntime
from pannier.holding.cluster_keys import SavedClusterKeys
from pannier.host.clock import machine_clock
from pannier.host.mountinfo import Location
from pannier.host.records import decode, encode, read_file
from pannier.host.state_files import UnsyncedFile
from pannier.node.renewing import AskedForRenewal
from pannier.node.tokens import SavedTokens
from pannier.node.trash import TrashTimes
from pannier.node.usage_log import UsageSamples
from pannier.pki.token import TokenRecord
from pannier.storage.btrfs import pool
from pannier.storage.directory import root as directory
from pannier.storage.directory.layout import DirectoryHome
from pannier.storage.tree.manifest import DIRECTORY, FILE
from pannier.storage.tree.walk import Stamp

GOLDEN = Path(__file__).parent / "golden" / "records"

VOLUME = Volume(
    name="web",
    id="web.0a1b2c3d",
    spec=VolumeSpec(
        size=10737418240,
        copies=3,
        durability=Durability.FSYNC,
        interval=5.0,
        min_copies=2,
        unheld_writes=UnheldWrites.REFUSE,
        driver="btrfs",
        nodes=("n1", "n2"),
        uid=33,
        gid=33,
        mode=0o750,
        labels={"team": "web"},
        protected=True,
        snapshots=Schedule(hourly=24, monthly=12),
        backup="offsite:daily:30",
        drill="offsite:weekly",
    ),
    grant=Grant("n1", 3),
    replicas=("n2", "n3"),
    in_sync=("n2",),
    base=Generation(2, 17),
    lineage=(Beginning(2, Generation(1, 4)), Beginning(3, Generation(2, 17))),
    created_at=1767225600.5,
    history=(
        HistoryEntry(at=1767225600.5, what="created", node="n2", epoch=1, detail="by root"),
        HistoryEntry(at=1767225700.0, what="moved", node="n1", epoch=3),
    ),
    changes=12,
    declared={"copies": Declared("3"), "min_copies": Declared("3", due=True)},
    snapshots=(
        Snapshot(
            name="nightly",
            generation=Generation(3, 4, "0f3a94c1"),
            made_at=1767225800.0,
            labels={"by": "cron"},
            keep_until=1767830600.0,
        ),
        Snapshot(
            name="hourly-2026-01-01T00",
            generation=Generation(3, 5, "1f3a94c1"),
            made_at=1767225900.0,
            slot_start=1767225600.0,
        ),
    ),
    origin=CloneOrigin(
        volume="shop",
        volume_id="shop.5f6a7b8c",
        snapshot="early",
        generation=Generation(4, 11, "77aa00ff"),
    ),
)
TOKEN = TokenRecord(id="abcdefgh", secret_hash="cd" * 32, expires_at=1767229200.0, uses_left=2)
NODE = Node(
    name="n1",
    address="192.0.2.1",
    drivers=("btrfs", "directory"),
    version="0.1.0",
    joined_at=1767225600.0,
    certificate="ab" * 32,
    api_port=7400,
    transport_port=7401,
    drained=True,
    swarm="x1",
    stopping=False,
    room=7,
    trash_seconds=7200.0,
    key="cd" * 32,
    authority=True,
)
RECORDS: dict[str, Record] = {
    "cluster": ClusterRecord("c0ffee", 1767225600.0),
    "node": NODE,
    "volume": VOLUME,
    "volume-encrypted": replace(VOLUME, spec=replace(VOLUME.spec, encrypted=True)).encrypted_with(
        SealedKey(by="9f" * 32, sealed="c2VhbGVk")
    ),
    "trash": replace(VOLUME, removed_at=1767229200.0),
    "purged": Purged(
        name="web",
        entry=HistoryEntry(at=1767229300.0, what="purged", node="n1", epoch=3, detail="by root"),
        cleared=("n2",),
    ),
    "token": TOKEN,
    "tokens": SavedTokens(tokens={"abcdefgh": TOKEN}),
    "removals": Removals(counts={"n2": 2}, ages={"n2": 86400.0}, floor=1),
    "schedule": SchedulePolicy(
        name="nightly", schedule=Schedule(daily=7, weekly=5), labels={"backup": "yes"}
    ),
    "evacuated": Evacuated(
        node="n1", swarm="x1", former=Availability.ACTIVE, phase=Phase.DRAINED, times=2
    ),
    "catalog": SavedCatalog(boot_id="b00t", volumes=(VOLUME,), nodes=(NODE,)),
    "mounts": MountHints(ids={"web": {"5f": 12.25}}),
    "takeovers": Takeovers(begun={"web.0a1b2c3d": Refusal(3, 71)}),
    "imports": ImportNotes(
        begun={
            "web.0a1b2c3d": ImportNote(
                name="web",
                driver="image",
                record='{"format":1}',
                service="x9",
                replicas=1,
                replaces="web.9f8e7d6c",
            )
        }
    ),
    "usage": UsageSamples(
        samples={
            "web.0a1b2c3d": (
                UsageSample(at=1767225600.5, holds=True, files=1073741824, generations=4096),
            )
        }
    ),
    "frozen": FrozenGroups(groups={"web.0a1b2c3d": ["/sys/fs/cgroup/docker/5f/cgroup.freeze"]}),
    "hanging": HangingDisks(drivers=("image",)),
    "hooks": BegunHooks(containers=("5f", "6a")),
    "listener": Origin("5f", 4711, {"web": Location("0:42", "/live-3"), "db": None}),
    "verified": Verified(at={"web.0a1b2c3d": 1767225600.0}),
    "runtime": RegisteredRuntime(
        file="/etc/docker/daemon.json", before='{"debug":true}\n', after="{}\n"
    ),
    "renewal": AskedForRenewal(at=1234.5),
    "trash-times": TrashTimes(seconds={"web.0a1b2c3d": 120.0}),
    "backup-key": ClusterKey(id="9f" * 32),
    "backup-key-locked": ClusterKey(
        format=2,
        id="9f" * 32,
        locked=LockedKeys(ids=("9f" * 32, "8e" * 32), salt="c2FsdA==", cost=16, sealed="c2VhbGVk"),
    ),
    "backup-keys": SavedClusterKeys(keys={"9f" * 32: "AAEC"}),
    "backup-state": BackupState(
        plan="offsite:daily:30",
        slot="2026-01-01",
        tried_at=1767225600.0,
        failure="it is full",
        backup="1f0c5a2e",
        made_at=1767139200.0,
        node="n2",
        not_removed="it is locked",
    ),
    "backup-drill": BackupDrill(
        target="offsite",
        volume="web",
        backup="1f0c5a2e",
        at=1767225600.0,
        failure="the check failed",
        good_at=1767139200.0,
        slot="weekly-2026-W01",
    ),
    "backup-target": BackupTarget(
        name="offsite",
        url="sftp:pannier@backup.example.org:/srv/backups",
        repository="5e" * 32,
        sealed="c2VhbGVk",
        key="9f" * 32,
        added_at=1767225600.0,
        read_only=True,
    ),
}


DECLARED = b',"declared":{"copies":{"text":"3","due":false},"min_copies":{"text":"3","due":true}}'
SCHEDULE = b',"snapshots":{"hourly":24,"daily":0,"weekly":0,"monthly":12}'
SNAPSHOTS = (
    b',"snapshots":[{"name":"nightly","generation":{"epoch":3,"sequence":4,"identity":"0f3a94c1"},'
    b'"made_at":1767225800.0,"labels":{"by":"cron"},"keep_until":1767830600.0,"slot_start":null},'
    b'{"name":"hourly-2026-01-01T00","generation":{"epoch":3,"sequence":5,"identity":"1f3a94c1"},'
    b'"made_at":1767225900.0,"labels":{},"keep_until":null,"slot_start":1767225600.0}]'
)

ORIGIN = (
    b',"origin":{"volume":"shop","volume_id":"shop.5f6a7b8c","snapshot":"early",'
    b'"generation":{"epoch":4,"sequence":11,"identity":"77aa00ff"}}'
)


OF_FORMAT_2 = ("volume-encrypted", "backup-key-locked")
"""What an older version must leave alone."""


def golden(name: str) -> bytes:
    return (GOLDEN / f"{name}.json").read_bytes().rstrip(b"\n")


def read(raw: bytes, kind: type[Any], *, shown: bool = False) -> Any:
    return decode(raw, kind, what="the record", remedy="mend it", shown=shown)


def with_later_fields(record: Any, plain: Any) -> Any:
    """The JSON of a record with a field of a later version in each of its parts."""
    if isinstance(record, Part):
        known = {name: with_later_fields(getattr(record, name), plain[name]) for name in plain}
        return {**known, "later": {"size": 12345678901234567890123, "of": [None, "a"]}}
    if isinstance(record, tuple):
        return [with_later_fields(*pair) for pair in zip(record, plain, strict=True)]
    if isinstance(record, dict):
        return {key: with_later_fields(item, plain[key]) for key, item in record.items()}
    return plain


# -- each record ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RECORDS)
def test_a_golden_file_is_read_and_written_as_it_is(name: str) -> None:
    record = RECORDS[name]
    assert read(golden(name), type(record)) == record
    assert encode(record) == golden(name)
    assert json.loads(golden(name))["format"] == (2 if name in OF_FORMAT_2 else 1)


def test_a_volume_of_an_earlier_version_tells_of_unheld_writes() -> None:
    earlier = golden("volume").replace(b',"unheld_writes":"refuse"', b"")
    assert earlier != golden("volume")
    assert read(earlier, Volume).spec.unheld_writes is UnheldWrites.WARN


def test_a_volume_of_an_earlier_version_is_not_protected() -> None:
    earlier = golden("volume").replace(b',"protected":true', b"")
    assert earlier != golden("volume")
    assert not read(earlier, Volume).spec.protected


def test_an_import_of_an_earlier_version_replaces_nothing() -> None:
    earlier = golden("imports").replace(b',"replaces":"web.9f8e7d6c"', b"")
    assert earlier != golden("imports")
    assert not read(earlier, ImportNotes).begun["web.0a1b2c3d"].replaces


def test_a_volume_of_an_earlier_version_is_not_backed_up_by_itself() -> None:
    earlier = golden("volume").replace(b',"backup":"offsite:daily:30"', b"")
    assert earlier != golden("volume")
    assert not read(earlier, Volume).spec.backup


def test_a_volume_of_an_earlier_version_has_no_drills_by_itself() -> None:
    earlier = golden("volume").replace(b',"drill":"offsite:weekly"', b"")
    assert earlier != golden("volume")
    assert not read(earlier, Volume).spec.drill


def test_an_earlier_version_says_less_of_backups_and_drills() -> None:
    earlier = golden("backup-state").replace(b',"node":"n2","not_removed":"it is locked"', b"")
    assert earlier != golden("backup-state")
    state = read(earlier, BackupState)
    assert (state.node, state.not_removed) == ("", "")
    earlier = golden("backup-drill").replace(b',"slot":"weekly-2026-W01"', b"")
    assert earlier != golden("backup-drill")
    assert read(earlier, BackupDrill).slot == ""


def test_a_volume_and_a_key_of_an_earlier_version_are_neither_encrypted_nor_locked() -> None:
    earlier = golden("volume").replace(b',"encrypted":false', b"").replace(b',"key":null', b"")
    assert b"encrypted" not in earlier
    assert read(earlier, Volume) == VOLUME
    earlier = golden("backup-key").replace(b',"locked":null', b"")
    assert b"locked" not in earlier
    assert read(earlier, ClusterKey) == RECORDS["backup-key"]
    earlier = golden("backup-keys").replace(b',"locked":null', b"")
    assert b"locked" not in earlier
    assert read(earlier, SavedClusterKeys) == RECORDS["backup-keys"]


def test_a_node_of_an_earlier_version_is_recognised_by_its_certificate() -> None:
    earlier = golden("node").replace(f',"key":"{"cd" * 32}","authority":true'.encode(), b"")
    assert b"key" not in earlier
    node = read(earlier, Node)
    assert node.is_shown_by(Fingerprints("ab" * 32, "ef" * 32))
    assert not node.is_shown_by(Fingerprints("ef" * 32, "ab" * 32))


def test_a_node_is_recognised_by_its_key_whatever_certificate_it_shows() -> None:
    assert NODE.is_shown_by(Fingerprints("ef" * 32, "cd" * 32))
    assert not NODE.is_shown_by(Fingerprints("ab" * 32, "ef" * 32))


def test_a_volume_of_an_earlier_version_was_declared_nothing() -> None:
    earlier = golden("volume").replace(DECLARED, b"")
    assert b"declared" not in earlier
    assert read(earlier, Volume) == replace(VOLUME, declared={})


def test_a_volume_of_an_earlier_version_has_no_snapshots() -> None:
    earlier = golden("volume").replace(SNAPSHOTS, b"")
    assert b'"name":"nightly"' not in earlier
    assert read(earlier, Volume) == replace(VOLUME, snapshots=())


def test_a_volume_of_an_earlier_version_is_no_clone() -> None:
    earlier = golden("volume").replace(ORIGIN, b"")
    assert b"origin" not in earlier
    assert read(earlier, Volume) == replace(VOLUME, origin=None)


def test_a_snapshot_of_an_earlier_version_was_made_by_a_person_and_its_volume_has_no_schedule() -> (
    None
):
    earlier = golden("volume").replace(b',"slot_start":null', b"").replace(SCHEDULE, b"")
    assert earlier.count(b"hourly") == 1, "the name of a snapshot"
    found = read(earlier, Volume)
    assert (found.snapshots, found.spec.snapshots) == (VOLUME.snapshots, None)


def test_a_listener_of_an_earlier_version_passes_nothing() -> None:
    earlier = golden("listener").replace(b',"passing":false', b"")
    assert read(earlier, Origin) == RECORDS["listener"]


@pytest.mark.parametrize("name", RECORDS)
def test_fields_of_a_later_version_survive_at_every_level(name: str) -> None:
    record = RECORDS[name]
    later = with_later_fields(record, json.loads(golden(name)))
    found = read(json.dumps(later).encode(), type(record))
    assert found == record, "they make no difference here"
    assert json.loads(encode(replace(found, format=record.format))) == later
    assert json.loads(encode(read(encode(found), type(record)))) == later


def test_an_earlier_version_says_nothing_of_where_a_removed_volume_stands() -> None:
    earlier = golden("trash").replace(b',"removed_in":null', b"")
    assert b"removed_in" not in earlier
    assert read(earlier, Volume) == RECORDS["trash"]


def test_a_record_of_an_earlier_version_says_nothing_of_records() -> None:
    earlier = golden("volume").replace(b',"on_top":"all"', b"")
    assert b"on_top" not in earlier
    assert read(earlier, Volume) == RECORDS["volume"]


@pytest.mark.parametrize("name", RECORDS)
def test_a_newer_format_is_refused_clearly(name: str) -> None:
    kind = type(RECORDS[name])
    known = kind.known_format
    newer = re.sub(rb'"format":[12]', b'"format":%d' % (known + 1), golden(name))
    refusal = rf"the record was written by a newer version.*format {known + 1}"
    with pytest.raises(NewerFormat, match=refusal):
        read(newer, kind)
    assert read(newer, kind, shown=True).is_newer


def test_a_newer_format_is_told_also_where_nothing_else_can_be_read() -> None:
    """Not even for a list: what it has of this version's fields may mean something else."""
    with pytest.raises(NewerFormat, match="format 3"):
        read(b'{"format":3,"name":{}}', Volume, shown=True)


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"null", b"\xff", b"[" * 99999, b"{}"])
@pytest.mark.parametrize("name", RECORDS)
def test_a_damaged_record_is_named_and_what_to_do(name: str, raw: bytes) -> None:
    with pytest.raises(Corrupt, match=r"the record cannot be read.*mend it"):
        read(raw, type(RECORDS[name]))


def test_every_record_has_a_golden_file() -> None:
    for module in pkgutil.walk_packages(pannier.__path__, "pannier."):
        if not module.name.startswith(("pannier.lab", "pannier.cli.__main__", "pannier.runtime")):
            importlib.import_module(module.name)
    kinds = {kind.__qualname__ for kind in Record.__subclasses__()}
    assert kinds == {type(record).__qualname__ for record in RECORDS.values()}


# -- files ----------------------------------------------------------------------------------------------


def test_a_file_that_is_not_there_is_no_error_and_one_that_cannot_be_read_is_named(
    tmp_path: Path,
) -> None:
    assert read_file(UnsyncedFile(tmp_path / "none"), TrashTimes, remedy="") is None
    with pytest.raises(StorageError, match=str(tmp_path)):
        read_file(UnsyncedFile(tmp_path), TrashTimes, remedy="")


def test_what_this_version_writes_keeps_what_a_later_one_wrote_into_the_file(
    tmp_path: Path,
) -> None:
    file = tmp_path / "mounts.json"
    file.write_text('{"format":1,"ids":{"web":{"5f":1.0}},"later":[1]}')
    MountIds(UnsyncedFile(file)).add("db", "6a", 2.0)
    assert json.loads(file.read_text()) == {
        "format": 1,
        "ids": {"web": {"5f": 1.0}, "db": {"6a": 2.0}},
        "later": [1],
    }


@pytest.mark.parametrize("raw", ["{", '{"format":2,"begun":{}}', '{"web.1":{"epoch":1}}'])
def test_takeovers_that_cannot_be_read_stop_the_start(tmp_path: Path, raw: str) -> None:
    """Without them something could be confirmed that is lost afterwards."""
    file = tmp_path / "takeovers.json"
    file.write_text(raw)
    with pytest.raises(StorageError, match=str(file)):
        Promises(file=UnsyncedFile(file), clock=machine_clock(), longest=10.0)


def test_a_memory_of_a_newer_format_is_an_empty_memory(tmp_path: Path) -> None:
    (tmp_path / "c").write_bytes(golden("catalog").replace(b'"format":1', b'"format":2', 1))
    catalog = Catalog(file=UnsyncedFile(tmp_path / "c"), cluster=None, boot_id="b")
    catalog.load()
    assert catalog.volumes() == []


def test_the_memory_on_disk_keeps_records_of_newer_formats(tmp_path: Path) -> None:
    saved = replace(VOLUME, format=3, unknown={"later": msgspec.Raw(b"[1]")})
    (tmp_path / "c").write_bytes(encode(SavedCatalog(volumes=(saved,))))
    catalog = Catalog(file=UnsyncedFile(tmp_path / "c"), cluster=None, boot_id="b")
    catalog.load()
    catalog._save()
    again = read((tmp_path / "c").read_bytes(), SavedCatalog)
    assert again.volumes[0].is_newer
    assert encode(again.volumes[0]) == encode(saved)


def test_a_listener_whose_file_is_damaged_counts_as_unknown(tmp_path: Path) -> None:
    keeping = Keeping(tmp_path)
    (tmp_path / "listener-1.json").write_text("{")
    assert keeping.recall("listener-1") is None
    (tmp_path / "listener-1.json").write_bytes(golden("listener"))
    assert keeping.recall("listener-1") == RECORDS["listener"]


# -- files that are no JSON ---------------------------------------------------------------------------


def test_waiting_sync_calls_are_found_again(tmp_path: Path) -> None:
    file = tmp_path / "listener-1.ids"
    shutil.copy(GOLDEN / "listener.ids", file)
    pending = Pending(file)
    assert (pending.last, list(pending)) == (9, [(2, 7), (4, 9)])
    pending.close()
    assert file.read_bytes().rstrip(b"\0") == (GOLDEN / "listener.ids").read_bytes().rstrip(b"\0")
    again = Pending(tmp_path / "new")
    slots = [again.add(ident) for ident in (7, 8, 9)]
    again.clear(slots[1])
    again.close()
    assert (tmp_path / "new").read_bytes() == file.read_bytes()


def test_waiting_sync_calls_of_another_format_are_refused(tmp_path: Path) -> None:
    raw = (GOLDEN / "listener.ids").read_bytes()
    file = tmp_path / "listener-1.ids"
    file.write_bytes(raw[:7] + b"\2" + raw[8:])
    with pytest.raises(NewerFormat, match=r"listener-1.ids"):
        Pending(file)
    file.write_bytes(b"\7" + raw[1:])
    with pytest.raises(Corrupt, match=r"listener-1.ids"):
        Pending(file)
    lost = Keeping(tmp_path).pending("listener-1")  # they hang; the daemon starts all the same
    assert list(lost) == []
    lost.close()


def test_the_markers_of_pool_and_directory(tmp_path: Path) -> None:
    (tmp_path / pool.MARKER).write_bytes((GOLDEN / "pool.json").read_bytes())
    assert pool._read_marker(tmp_path) == "5f0c3c1e-7a53-4b8e-9d55-0d7f3c6d8a11"
    (tmp_path / pool.MARKER).write_text('{"format": 2, "pool": "x"}')
    with pytest.raises(NewerFormat, match="the pool at"):
        pool._read_marker(tmp_path)
    (tmp_path / pool.MARKER).write_text('{"format": "1", "pool": "x"}')
    with pytest.raises(ForeignData):
        pool._read_marker(tmp_path)

    root = tmp_path / "volumes"
    asyncio.run(directory.create_directory(root))
    assert (root / directory.MARKER).read_bytes() == (GOLDEN / "directory.json").read_bytes()
    directory.verify_directory(root)
    (root / directory.MARKER).write_text('{"format": 2}')
    with pytest.raises(NewerFormat, match="the directory"):
        directory.verify_directory(root)
    (root / directory.MARKER).write_text("{")
    with pytest.raises(Corrupt, match="cannot be read"):
        directory.verify_directory(root)


def test_a_home_of_the_directory_driver_is_understood() -> None:
    """Its files have no format of their own; the marker has it for them."""
    home = DirectoryHome.of("web.0a1b2c3d", volumes=GOLDEN / "directory")
    assert home.epochs() == (3,)
    assert home.sealed_as(3) == Generation(3, 2)
    assert home.described() == (Generation(3, 2),)
    entries = home.manifest(Generation(3, 2)).entries
    assert {path: entry.kind for path, entry in entries.items()} == {
        "": DIRECTORY,
        "index.html": FILE,
    }
    assert entries["index.html"].size == 5
    assert home.stamps() == {"index.html": (Stamp(1, 5, 3, 4), "ab" * 32)}
