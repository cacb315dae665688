"""A small image with git: Debian's program, the libraries that it needs, and busybox."""

from __future__ import annotations

from pathlib import Path

from demo import packages

from pannier.lab import Lab

TAG = "localhost:5000/git:1"

# Runs in a root folder with everything and writes a tar of what is needed, links followed. All commands
# that a push and a check need are in the one program.
_PICK = r"""
libraries=$(ldd /usr/bin/git | grep -o '/[^ :]*' | sort -u)
tar -c --dereference /bin/busybox /usr/bin/git $libraries
"""


def load(lab: Lab) -> None:
    """Put the image into every machine of ``lab``."""
    files = packages.kept("git", recipe=[Path(__file__)], make=_make, report=lab.report)
    lab.load_image(files, tag=TAG)


def _make(draft: Path) -> Path:
    whole, files = draft / "whole", draft / "files"
    packages.unpack(["git", "busybox-static"], whole)
    packages.pick(whole, files, _PICK)
    for name in ("git-receive-pack", "git-upload-pack"):
        (files / "usr/bin" / name).symlink_to("git")
    return files
