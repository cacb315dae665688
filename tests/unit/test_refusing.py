"""What etcd refuses is written before each of its starts, whatever else a power cut has left unreadable."""

from __future__ import annotations

from pathlib import Path

import pytest

from pannier import refusing
from pannier.core.errors import Corrupt
from pannier.core.removals import REMOVALS_FILE, Removals
from pannier.host.records import encode
from pannier.pki.refusal import refused_by

KNOWN = Removals(counts={"n4": 2})


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A node's state directory; its configuration is beside it, without certificates."""
    for name in ("STATE_DIRECTORY", "CONFIG_DIRECTORY", "RUN_DIRECTORY"):
        folder = tmp_path / name
        folder.mkdir()
        monkeypatch.setattr(refusing, name, folder)
    (tmp_path / "CONFIG_DIRECTORY" / "pannierd.toml").touch()
    (tmp_path / "STATE_DIRECTORY" / REMOVALS_FILE).write_bytes(encode(KNOWN))
    return tmp_path / "STATE_DIRECTORY"


@pytest.mark.parametrize("remembered", [None, b"", b"\0" * 100, b'{"format":1,"boot_'])
def test_a_memory_of_nodes_that_cannot_be_read_costs_only_the_question(
    state: Path, remembered: bytes | None
) -> None:
    if remembered is not None:
        (state / "catalog.json").write_bytes(remembered)
    assert refusing.write_refused(out=str(state / "list")) == []
    assert refused_by((state / "list").read_bytes()) == KNOWN.refused()


def test_without_what_was_removed_no_list_is_written(state: Path) -> None:
    """Etcd does not start then, instead of letting removed nodes in."""
    (state / REMOVALS_FILE).write_bytes(b"\0")
    with pytest.raises(Corrupt):
        refusing.write_refused(out=str(state / "list"))
    assert not (state / "list").exists()
