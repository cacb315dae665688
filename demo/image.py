"""The demo's image: busybox, one script, and a home directory with content, for the copy-up."""

from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path

from pannier.lab import Lab

HERE = Path(__file__).parent
TAG = "localhost:5000/keeper:1"


def load(lab: Lab) -> None:
    """Make it out of the lab's busybox image, and put it into every machine."""
    lab.build_busybox("localhost:5000/busybox:1")
    context = io.BytesIO()
    with tarfile.open(fileobj=context, mode="w") as tar:
        _add(tar, "Dockerfile", (HERE / "Dockerfile").read_bytes())
        _add(tar, "keeper.sh", (HERE / "keeper.sh").read_bytes(), mode=0o755)
        _add(tar, "seed.tar", _seed())
    for node in lab.nodes:
        assert node.docker_host is not None
        command = ["docker", "--host", node.docker_host, "build", "--quiet", "--tag", TAG, "-"]
        environment = {"DOCKER_BUILDKIT": "0", "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin"}
        subprocess.run(
            command,
            input=context.getvalue(),
            env=environment,
            check=True,
            capture_output=True,
        )


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


def _add(tar: tarfile.TarFile, name: str, content: bytes, *, mode: int = 0o644) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(content), mode
    tar.addfile(info, io.BytesIO(content))
