"""Time in the trash is counted, not read off a clock."""

from pathlib import Path

from pannier.core.pace import Pace
from pannier.host.state_files import DurableFile
from pannier.node.trash import TrashClock

USUAL = Pace()


def test_a_volume_is_due_only_after_a_day_of_turns(tmp_path: Path) -> None:
    clock = TrashClock(DurableFile(tmp_path / "t"), keep_seconds=USUAL.node.trash)
    turns = int(USUAL.node.trash / 60)
    for _ in range(turns - 1):
        assert clock.turn({"a"}, 60) == set()
    assert clock.turn({"a", "b"}, 60) == {"a"}


def test_the_count_survives_a_restart_and_ends_with_the_volume(tmp_path: Path) -> None:
    TrashClock(DurableFile(tmp_path / "t"), keep_seconds=USUAL.node.trash).turn(
        {"a", "b"}, USUAL.node.trash - 60
    )
    clock = TrashClock(DurableFile(tmp_path / "t"), keep_seconds=USUAL.node.trash)
    assert clock.turn({"a"}, 60) == {"a"}
    assert clock.turn({"b"}, 60) == set(), "restored and removed again: its time begins anew"


def test_a_spoilt_file_begins_anew_instead_of_deleting(tmp_path: Path) -> None:
    (tmp_path / "t").write_text("{garbage")
    assert (
        TrashClock(DurableFile(tmp_path / "t"), keep_seconds=USUAL.node.trash).turn({"a"}, 60)
        == set()
    )
