"""The daemon's configuration: what it says is taken, and what it cannot mean is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from pannier.config import Config, load_config, save_config
from pannier.core.errors import InvalidInput

CONFIG = Config(
    node="a", cluster="c", address="192.0.2.1", store="sqlite:/x", drivers=("btrfs",),
    catch_up_rate="50M",
)  # fmt: skip


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    save_config(CONFIG, tmp_path)
    assert load_config(tmp_path) == CONFIG
    assert CONFIG.catch_up_bytes_per_second() == 50 << 20


@pytest.mark.parametrize("rate", ["fast", "1K", "", "-5M"])
def test_a_rate_that_is_none_is_told_with_its_file(tmp_path: Path, rate: str) -> None:
    save_config(CONFIG, tmp_path)
    file = tmp_path / "pannierd.toml"
    file.write_text(file.read_text().replace('"50M"', f'"{rate}"'))
    with pytest.raises(InvalidInput, match=r"pannierd\.toml: catch_up_rate = .*from 1M") as caught:
        load_config(tmp_path)
    assert "50M" in str(caught.value.remedy)
