"""A small image with databases and git: Debian's programs, the libraries that these need, and busybox."""

from __future__ import annotations

from pathlib import Path

from demo import image, packages
from pannier.lab import Lab

TAG = "localhost:5000/databases:1"

_HERE = Path(__file__).parent / "databases"
_FILES_TAG = "localhost:5000/databases-files:1"
_PACKAGES = (
    "busybox-static",
    "etcd-client",
    "etcd-server",
    "git",
    "mariadb-client",
    "mariadb-server-core",
    "python3-lmdb",
    "redis-server",
)

# Runs in a root folder with everything and writes a tar of what is needed, links followed. All commands of git
# that a push and a check need are in the one program, and all of Redis' that serve and check.
_PICK = r"""
programs=$(ls /usr/bin/{etcd,etcdctl,git,python3,redis-benchmark,redis-check-rdb,redis-cli} /usr/sbin/mariadbd)
programs="$programs $(ls /usr/bin/{mariadb,mariadb-{admin,check,install-db,slap},my_print_defaults,resolveip})"
modules=$(find /usr/lib/python3* -name '*.so')
libraries=$(ldd $programs $modules | grep -o '/[^ :]*\.so[^ :]*' | sort -u)
tar -c --dereference --exclude=__pycache__ --exclude=test \
  /bin/busybox $programs $libraries $(ls -d /usr/lib/python3 /usr/lib/python3.*) \
  /usr/share/mysql/english /usr/share/mysql/*.sql /usr/share/mysql/charsets
"""
_LINKS = {
    "git-receive-pack": "git",
    "git-upload-pack": "git",
    "redis-check-aof": "redis-check-rdb",
    "redis-server": "redis-check-rdb",
}


def load(lab: Lab) -> None:
    """Put the image into every machine of ``lab``."""
    files = packages.kept("databases", recipe=[Path(__file__)], make=_make, report=lab.report)
    lab.load_image(files, tag=_FILES_TAG)
    image.build(lab, TAG, _HERE)


def _make(draft: Path) -> Path:
    whole, files = draft / "whole", draft / "files"
    packages.unpack(_PACKAGES, whole)
    packages.pick(whole, files, _PICK)
    for name, program in _LINKS.items():
        (files / "usr/bin" / name).symlink_to(program)
    (files / "etc/passwd").write_text("root:x:0:0::/:/bin/sh\n")
    return files
