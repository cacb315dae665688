"""Who may have containers whose sync calls are held."""

from __future__ import annotations

from pathlib import Path

import pytest

from pannier.core.errors import Conflict
from pannier.core.options import parse_options
from pannier.core.pace import NodePace
from pannier.core.volume import Grant, UnheldWrites, Volume
from pannier.engine.file import configured_default
from pannier.node.barrier_admission import BarrierAdmission
from pannier.testing.engine import FakeEngine


class NoMarks:
    """Nothing may be marked here."""

    def hold(self, volume: str, unheld_writes: UnheldWrites) -> None:
        raise AssertionError(volume)

    def release(self, volume: str) -> None:
        raise AssertionError(volume)


@pytest.mark.parametrize("content", [b"{", b"\xff", b"[]"])
async def test_a_configuration_that_cannot_be_read_refuses_a_mount_and_ends_nothing(
    tmp_path: Path, content: bytes
) -> None:
    """As when Docker does not start because of it: the plugin must go on for other volumes."""
    file = tmp_path / "daemon.json"
    file.write_bytes(content)
    engine = FakeEngine()
    await engine.stop()
    admission = BarrierAdmission(
        engine=engine,
        marks=NoMarks(),
        configured=lambda: configured_default(file=file, pid_file=file.with_name("pid")),
        pace=NodePace(),
    )
    spec = parse_options({"copies": "2"})
    volume = Volume(name="db", id="db.1", spec=spec, grant=Grant("a", 1), created_at=0.0)
    with pytest.raises(Conflict, match="cannot be read"):
        await admission.admit(volume)
