"""The collection is what ansible-lint calls fit for production."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pannier.deploy.run import collection


@pytest.mark.collection
@pytest.mark.timeout(1800)
def test_ansible_lint_finds_nothing(tmp_path: Path) -> None:
    home = tmp_path / "ansible_collections/pannier"
    home.mkdir(parents=True)
    (home / "cluster").symlink_to(collection())
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "ansiblelint",
            "--offline",
            "--profile",
            "production",
            str(collection()),
        ],
        capture_output=True,
        text=True,
        timeout=1700,
        check=False,
        env={
            **os.environ,
            "ANSIBLE_COLLECTIONS_PATH": str(tmp_path),
            "ANSIBLE_HOME": str(tmp_path / "home"),
            "NO_COLOR": "1",
        },
    )
    assert done.returncode == 0, done.stdout + done.stderr
