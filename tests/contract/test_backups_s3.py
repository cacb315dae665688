"""Backups at a real S3 server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from s3_server import KEY, KEY_ID, serving
from test_backups import Member, back_up, files, node, site

from pannier.core.backup_plans import Retention
from pannier.core.errors import Corrupt, Denied, PannierError, TargetUnavailable

__all__ = ["files", "node", "site"]

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]
"""Long where the server is built: on a machine that has not built it yet, a minute or two."""

KEYS = {"s3_key_id": KEY_ID, "s3_key": KEY}


@pytest.fixture
def buckets(tmp_path: Path) -> Path:
    (tmp_path / "buckets" / "pannier").mkdir(parents=True)
    return tmp_path / "buckets"


@pytest.fixture
def url(buckets: Path) -> Iterator[str]:
    with serving(buckets) as url:
        yield f"{url}/pannier"


async def test_f73_what_comes_back_is_what_was_put_there(
    node: Member, url: str, files: Path, tmp_path: Path
) -> None:
    await node.add(url, **KEYS)
    first = await back_up(node, files)
    (files / "data" / "small").write_text("another text")
    second = await back_up(node, files)
    assert second.unchanged == 1
    listed = await node.targets.backups("offsite")
    assert [each.id for each in listed] == [first.id, second.id]
    assert (await node.targets.verify("offsite", lambda _: None)).name == "offsite"
    back = tmp_path / "back"
    (back / "data").mkdir(parents=True)
    async with node.targets.opened("offsite") as opened:
        await opened.restore(
            second.id, "data", to=back, directory=back / "data", compares=lambda: None
        )
    for name in ("small", "large"):
        assert (back / "data" / name).read_bytes() == (files / "data" / name).read_bytes()
    pruned = await node.targets.prune("offsite", Retention(last=1))
    assert (pruned.kept, pruned.removed) == ([second.id], [first.id])


async def test_f73_wrong_keys_are_told_and_make_nothing(
    node: Member, url: str, buckets: Path
) -> None:
    with pytest.raises(Denied, match="lets nobody in"):
        await node.add(url, **{**KEYS, "s3_key": "another"})
    with pytest.raises(TargetUnavailable, match=r"cannot be looked into.*access key"):
        await node.add(url, **{**KEYS, "s3_key_id": "somebody"})
    assert list((buckets / "pannier").iterdir()) == []
    assert await node.targets.all() == []


async def test_f73_objects_that_are_changed_or_deleted_are_found(
    node: Member, url: str, buckets: Path, files: Path
) -> None:
    await node.add(url, **KEYS)
    await back_up(node, files)
    pack = max((buckets / "pannier" / "data").rglob("*"), key=lambda each: each.stat().st_size)
    whole = pack.read_bytes()
    content = bytearray(whole)
    content[len(content) // 2] ^= 1
    pack.write_bytes(content)
    with pytest.raises(Corrupt, match=r"offsite.*damaged"):
        await node.targets.verify("offsite", lambda _: None)
    pack.unlink()
    with pytest.raises(PannierError, match="offsite"):
        await node.targets.verify("offsite", lambda _: None)
