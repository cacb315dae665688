"""A small image with Java and one program that forces what it writes."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

from pannier.lab import Lab

TAG = "localhost:5000/force:1"
COMMAND = ("/java/bin/java", "-cp", "/", "Force")
_SOURCE = Path(__file__).parent / "programs/Force.java"


def load(lab: Lab) -> None:
    """Make it, and put it into every machine of ``lab``."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        _run("jlink", "--add-modules", "java.base", "--strip-debug", "--output", f"{root}/java")
        _run("javac", "-d", folder, str(_SOURCE))
        binaries = [root / "java/bin/java", *(root / "java/lib").rglob("*.so")]
        for library in _libraries(binaries):
            target = root / library.relative_to("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(library, target)
        lab.load_image(root, tag=TAG)


def _libraries(binaries: list[Path]) -> set[Path]:
    """What the loader finds for them outside of the runtime's own folder, and the loader."""
    words = _run("ldd", *map(str, binaries)).split()
    return {
        Path(word) for word in words if word.startswith(("/lib", "/usr/lib")) and word[-1] != ":"
    }


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
