"""A small Postgres image: Debian's programs, the libraries that these need, and busybox.

No package is installed and no script of one runs: the archive's packages are unpacked, and what is
needed of them is kept as a folder in the lab's cache.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

from demo import image
from pannier.lab import Lab
from pannier.lab.mirror import download_environment, mirror
from pannier.lab.paths import cache_root
from pannier.lab.process import run
from pannier.lab.state import locked

TAG = "localhost:5000/postgres:15"
USER_ID = 999

_HERE = Path(__file__).parent / "postgres"
_FILES_TAG = "localhost:5000/postgres-files:15"
_RELEASE = "bookworm"
_OWN = ("var/lib/postgresql", "var/run/postgresql")

# Runs in a root folder with everything and writes a tar of what is needed, links followed. The
# compiler of queries is left out: it is larger than all the rest.
_PICK = r"""
server=/usr/lib/postgresql/15
programs=$(ls $server/bin/{initdb,pg_amcheck,pgbench,postgres,psql} $server/lib/*.so | grep -v jit)
libraries=$(ldd $programs | grep -o '/[^ :]*' | sort -u)
tar -c --dereference --exclude=15/{contrib,man} \
  /bin/busybox $programs $libraries /usr/share/postgresql/15
"""


def load(lab: Lab) -> None:
    """Put the image into every machine of ``lab``."""
    lab.load_image(_files(lab), tag=_FILES_TAG)
    image.build(lab, TAG, _HERE)


def _files(lab: Lab) -> Path:
    """The folder with the image's files, made if it is not in the cache."""
    cache = cache_root()
    recipe = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]
    target = cache / f"postgres-{_RELEASE}-{recipe}"
    # The lab's own lock: whoever holds it clears the cache of drafts that nobody finished.
    with locked(cache / ".lock", waiting=lab.report):
        if not target.exists():
            lab.report("making a Postgres image from packages (once; about a minute)")
            with tempfile.TemporaryDirectory(dir=cache, prefix="draft-") as draft:
                whole, files = Path(draft, "whole"), Path(draft, "files")
                _unpack(whole)
                _pick(whole, files)
                # Not before its content is on the disk may the name be there.
                run(["sync", "--file-system", draft])
                files.rename(target)
    return target


def _unpack(whole: Path) -> None:
    """A minimal Debian with Postgres, unpacked and nothing more."""
    packages = whole.with_name("packages")
    options = ["--download-only", "--variant=minbase", "--include=postgresql-15,busybox-static"]
    run(
        ["debootstrap", *options, _RELEASE, str(packages), mirror()],
        env=download_environment(),
        what="debootstrap",
    )
    for package in packages.glob("var/cache/apt/archives/*.deb"):
        run(["dpkg-deb", "--extract", str(package), str(whole)])


def _pick(whole: Path, files: Path) -> None:
    """The part of ``whole`` that the image needs."""
    for name in ("etc", "tmp", "usr/share/zoneinfo", *_OWN):
        (files / name).mkdir(parents=True)
    with tempfile.TemporaryFile() as picked:
        run(["chroot", str(whole), "bash", "-euc", _PICK], stdout=picked)
        picked.seek(0)
        run(["tar", "-x", "-C", str(files)], stdin=picked)
    for applet in run(["chroot", str(files), "busybox", "--list"]).stdout.split():
        if applet != "busybox":
            (files / "bin" / applet).symlink_to("busybox")
    users = f"root:x:0:0::/:/bin/sh\npostgres:x:{USER_ID}:{USER_ID}::/:/bin/sh\n"
    (files / "etc/passwd").write_text(users)
    (files / "tmp").chmod(0o1777)
    for name in _OWN:
        os.chown(files / name, USER_ID, USER_ID)
