"""A small Postgres image: Debian's programs, the libraries that these need, and busybox."""

from __future__ import annotations

import os
from pathlib import Path

from demo import image, packages
from pannier.lab import Lab

TAG = "localhost:5000/postgres:15"
USER_ID = 999

_HERE = Path(__file__).parent / "postgres"
_FILES_TAG = "localhost:5000/postgres-files:15"
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
    lab.load_image(files(lab.report), tag=_FILES_TAG)
    image.build(lab, TAG, _HERE)


def files(report: packages.Report) -> Path:
    """The image's root folder, made if it is not in the lab's cache."""
    return packages.kept("postgres", recipe=[Path(__file__)], make=_make, report=report)


def _make(draft: Path) -> Path:
    whole, files = draft / "whole", draft / "files"
    packages.unpack(["postgresql-15", "busybox-static"], whole)
    packages.pick(whole, files, _PICK)
    users = f"root:x:0:0::/:/bin/sh\npostgres:x:{USER_ID}:{USER_ID}::/:/bin/sh\n"
    (files / "etc/passwd").write_text(users)
    for name in ("usr/share/zoneinfo", *_OWN):
        (files / name).mkdir(parents=True)
    for name in _OWN:
        os.chown(files / name, USER_ID, USER_ID)
    return files
