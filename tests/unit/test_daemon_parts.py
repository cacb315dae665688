"""What the daemon's parts must have when it puts them together from its configuration."""

from __future__ import annotations

from pathlib import Path

import pytest

from pannier.config import Config, Paths
from pannier.core.errors import OutcomeUnknown
from pannier.core.volume import Grant, Volume, VolumeSpec
from pannier.daemon import Daemon
from pannier.pki.authority import Authority
from pannier.pki.credentials import Credentials, new_request

CONFIG = Config(
    node="b", cluster="c", address="127.0.0.1", store="sqlite:/store", drivers=("directory",)
)
VOLUME = Volume(
    name="vol",
    id="vol.1",
    spec=VolumeSpec(copies=2),
    grant=Grant("a", 1),
    replicas=("b",),
    in_sync=("b",),
    created_at=0.0,
)


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    paths = Paths(config=tmp_path / "config", state=tmp_path / "state", run=tmp_path / "run")
    for path in (paths.config, paths.state, paths.run):
        path.mkdir()
    authority = Authority.create(tmp_path / "ca", cluster="c")
    request = new_request("b")
    issued = authority.issue_node(request.csr_pem, node="b", addresses=["127.0.0.1"])
    ca = authority.certificate_pem
    Credentials.save(paths.config, ca=ca, certificate=issued, key=request.key_pem)
    return paths


async def test_a_takeover_that_was_begun_outlasts_the_daemon(paths: Paths) -> None:
    """The change of the record may be on its way yet. Whoever forgets it would confirm what the holder
    then acknowledges, on this node's promise, and lose it when the change arrives.
    """
    with pytest.raises(OutcomeUnknown):
        async with Daemon(CONFIG, paths=paths).node.promises.taking(VOLUME, revision=7):
            raise OutcomeUnknown("no answer")
    restarted = Daemon(CONFIG, paths=paths).node.promises
    assert restarted.refuses(VOLUME.id, epoch=1)
    assert not restarted.promise(VOLUME.id, epoch=1, seconds=10)
    assert not restarted.refuses(VOLUME.id, epoch=2)
