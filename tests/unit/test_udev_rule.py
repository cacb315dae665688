"""The rule that hides our loop devices is put where there is udev, and nowhere else."""

from __future__ import annotations

from pathlib import Path

from pannier.setup import UDEV_RULE, install_udev_rule


def test_it_is_installed_where_there_is_udev(tmp_path: Path) -> None:
    install_udev_rule(tmp_path)
    install_udev_rule(tmp_path)
    (rule,) = tmp_path.iterdir()
    assert rule.name == UDEV_RULE
    lines = [line for line in rule.read_text().splitlines() if not line.startswith("#")]
    assert len(lines) == 1
    assert 'ATTR{loop/backing_file}=="*/images/*/image*"' in lines[0]


def test_a_machine_without_udev_gets_none(tmp_path: Path) -> None:
    install_udev_rule(tmp_path / "rules.d")
    assert not (tmp_path / "rules.d").exists()
