"""The demo's image: busybox, one script, and a home directory with content, for the copy-up."""

from __future__ import annotations

import io
import shutil
import tarfile
import tempfile
from pathlib import Path

from pannier.lab import Lab

HERE = Path(__file__).parent
TAG = "localhost:5000/keeper:1"


def load(lab: Lab) -> None:
    """Make it out of the lab's busybox image, and put it into every machine."""
    lab.build_busybox("localhost:5000/busybox:1")
    with tempfile.TemporaryDirectory() as folder:
        for name in ("Dockerfile", "keeper.sh"):
            shutil.copy(HERE / name, folder)
        Path(folder, "seed.tar").write_bytes(_seed())
        build(lab, TAG, Path(folder))


def build(lab: Lab, tag: str, folder: Path) -> None:
    """Build an image on every machine, by the Dockerfile in ``folder``."""
    with tempfile.TemporaryFile() as context:
        with tarfile.open(fileobj=context, mode="w", format=tarfile.GNU_FORMAT) as tar:
            tar.add(folder, arcname=".")
        for node in lab.nodes:
            context.seek(0)
            command = ["env", "DOCKER_BUILDKIT=0", "docker", "build", "--quiet", "--tag", tag, "-"]
            lab.run(node.name, command, stdin=context, timeout=120)


def _seed() -> bytes:
    """A home of uid 1000 with odd permissions, an old time and a link."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        home = tarfile.TarInfo("home/keeper")
        home.type, home.mode, home.uid, home.gid = tarfile.DIRTYPE, 0o2750, 1000, 1000
        tar.addfile(home)
        readme = tarfile.TarInfo("home/keeper/README")
        readme.mode, readme.uid, readme.gid, readme.mtime = 0o640, 1000, 1000, 1234567890
        readme.size = len(b"seeded by the image\n")
        tar.addfile(readme, io.BytesIO(b"seeded by the image\n"))
        link = tarfile.TarInfo("home/keeper/link")
        link.type, link.linkname, link.uid, link.gid = tarfile.SYMTYPE, "README", 1000, 1000
        tar.addfile(link)
    return out.getvalue()
