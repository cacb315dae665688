"""The collection passes Ansible's own sanity tests."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pannier.deploy.run import collection

PIP = """
import ensurepip, subprocess, sys
ensurepip.bootstrap()
wanted = [word for word in sys.argv[1:] if word not in ("--no-setuptools", "--no-wheel")]
sys.exit(subprocess.call([sys.executable, "-m", "pip", "install", "--quiet", *wanted]))
"""
"""What ansible-test would fetch from a site of its own; all the rest comes from PyPI."""


@pytest.mark.collection
@pytest.mark.timeout(1800)
def test_ansible_test_finds_nothing(tmp_path: Path) -> None:
    home, place = tmp_path / "home", tmp_path / "ansible_collections/pannier/cluster"
    shutil.copytree(collection(), place, ignore=shutil.ignore_patterns(".ansible", "__pycache__"))
    cache = home / ".ansible/test/cache"
    cache.mkdir(parents=True)
    (cache / "get_pip_24_2.py").write_text(PIP)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    program = Path(sys.executable).with_name("ansible-test")
    done = subprocess.run(
        [str(program), "sanity", "--requirements", "--python", version, "--color", "no"],
        cwd=place,
        capture_output=True,
        text=True,
        timeout=1700,
        check=False,
        env={
            **os.environ,
            "HOME": str(home),
            "PATH": f"{program.parent}:{os.environ['PATH']}",
            "PIP_CACHE_DIR": str(Path("~/.cache/pip").expanduser()),
        },
    )
    found = [line for line in done.stdout.splitlines() if line.startswith(("ERROR", "FATAL"))]
    assert done.returncode == 0, "\n".join(found) or done.stdout + done.stderr
