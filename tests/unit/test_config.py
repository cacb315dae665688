"""The daemon's configuration: what it says is taken, and what it cannot mean is told."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from pannier.config import Config, load_config, save_config
from pannier.core.errors import InvalidInput

CONFIG = Config(
    node="a", cluster="c", address="192.0.2.1", store="sqlite:/x", drivers=("btrfs",),
    catch_up_rate="50M", trash_time="2h", trash_size="5G",
)  # fmt: skip


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    save_config(CONFIG, tmp_path)
    assert load_config(tmp_path) == CONFIG
    assert CONFIG.catch_up_bytes_per_second() == 50 << 20
    assert (CONFIG.trash_seconds(), CONFIG.trash_bytes()) == (7200.0, 5 << 30)


def test_a_trash_that_nothing_was_said_about_keeps_a_day_and_what_there_is_room_for(
    tmp_path: Path,
) -> None:
    save_config(replace(CONFIG, trash_time="24h", trash_size=None), tmp_path)
    file = tmp_path / "pannierd.toml"
    file.write_text(file.read_text().replace('trash_time = "24h"\n', ""))
    found = load_config(tmp_path)
    assert (found.trash_seconds(), found.trash_bytes()) == (86_400.0, None)


@pytest.mark.parametrize(
    ("setting", "value"), [("trash_time", "soon"), ("trash_time", "-1h"), ("trash_size", "much")]
)
def test_a_trash_that_cannot_be_is_told_with_its_file(
    tmp_path: Path, setting: str, value: str
) -> None:
    save_config(CONFIG, tmp_path)
    file = tmp_path / "pannierd.toml"
    old = getattr(CONFIG, setting)
    file.write_text(file.read_text().replace(f'{setting} = "{old}"', f'{setting} = "{value}"'))
    with pytest.raises(InvalidInput, match=rf"pannierd\.toml: {setting} = '{value}' is not a"):
        load_config(tmp_path)


@pytest.mark.parametrize("rate", ["fast", "1K", "", "-5M"])
def test_a_rate_that_is_none_is_told_with_its_file(tmp_path: Path, rate: str) -> None:
    save_config(CONFIG, tmp_path)
    file = tmp_path / "pannierd.toml"
    file.write_text(file.read_text().replace('"50M"', f'"{rate}"'))
    with pytest.raises(InvalidInput, match=r"pannierd\.toml: catch_up_rate = .*from 1M") as caught:
        load_config(tmp_path)
    assert "50M" in str(caught.value.remedy)
