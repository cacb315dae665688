"""Root folders for images, out of Debian's packages, for machines that reach no registry.

No package is installed and no script of one runs: packages are unpacked, and what is needed of them
is kept as a folder in the lab's cache.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from pannier.lab.mirror import download_environment, mirror
from pannier.lab.paths import cache_root
from pannier.lab.process import run
from pannier.lab.state import locked

_RELEASE = "bookworm"

Report = Callable[[str], None]


def kept(
    name: str, *, recipe: Sequence[Path], make: Callable[[Path], Path], report: Report
) -> Path:
    """A folder of the lab's cache, made if it is not there.

    Only one process at a time makes it; the others wait and then find the work done.

    Args:
        recipe: files whose change makes another folder of it.
        make: is given an empty folder to work in, and returns the one below it that is kept.
    """
    cache = cache_root()
    parts = b"".join(path.read_bytes() for path in (Path(__file__), *recipe))
    target = cache / f"{name}-{_RELEASE}-{hashlib.sha256(parts).hexdigest()[:12]}"
    with locked(cache / f".{name}.lock", waiting=report):
        for garbage in cache.glob(f"draft-{name}-*"):
            shutil.rmtree(garbage, ignore_errors=True)
        if not target.exists():
            report(f"making the files of {name} (once; about a minute)")
            with tempfile.TemporaryDirectory(dir=cache, prefix=f"draft-{name}-") as draft:
                files = make(Path(draft))
                # Not before its content is on the disk may the name be there.
                run(["sync", "--file-system", draft])
                files.rename(target)
    return target


def unpack(packages: Sequence[str], whole: Path) -> None:
    """A minimal Debian with ``packages`` and what they depend on, in the new folder ``whole``."""
    downloads = whole.with_name("downloads")
    options = ["--download-only", "--variant=minbase", f"--include={','.join(packages)}"]
    run(
        ["debootstrap", *options, _RELEASE, str(downloads), mirror()],
        env=download_environment(),
        what="debootstrap",
    )
    for package in downloads.glob("var/cache/apt/archives/*.deb"):
        run(["dpkg-deb", "--extract", str(package), str(whole)])


def pick(whole: Path, files: Path, script: str) -> None:
    """What ``script``, run in ``whole``, writes as a tar, and busybox' commands: the folder ``files``."""
    files.mkdir()
    with tempfile.TemporaryFile() as picked:
        run(["chroot", str(whole), "bash", "-euc", script], stdout=picked)
        picked.seek(0)
        run(["tar", "-x", "-C", str(files)], stdin=picked)
    for applet in run(["chroot", str(files), "busybox", "--list"]).stdout.split():
        if applet != "busybox":
            (files / "bin" / applet).symlink_to("busybox")
    for name in ("etc", "run", "tmp"):
        (files / name).mkdir(exist_ok=True)
    (files / "tmp").chmod(0o1777)
