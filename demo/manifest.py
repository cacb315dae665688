"""Prints one line for each entry of a tree: everything that a move must keep. Runs on a machine.

usage: python3 manifest.py DIRECTORY
"""

import hashlib
import os
import stat
import sys


def line(root: str, path: str) -> str:
    info = os.lstat(path)
    if stat.S_ISREG(info.st_mode):
        with open(path, "rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
    elif stat.S_ISLNK(info.st_mode):
        content = os.readlink(path)
    else:
        content = "-"
    names = os.listxattr(path, follow_symlinks=False)
    xattrs = {name: os.getxattr(path, name, follow_symlinks=False).hex() for name in names}
    # A directory's size and link count are the file system's own business.
    size = 0 if stat.S_ISDIR(info.st_mode) else info.st_size
    links = 0 if stat.S_ISDIR(info.st_mode) else info.st_nlink
    facts = (
        f"{info.st_mode:o} {info.st_uid}:{info.st_gid} {size} {info.st_mtime_ns} {links}",
        content,
        str(sorted(xattrs.items())),
        repr(os.path.relpath(path, root)),
    )
    return " ".join(facts)


def main(root: str) -> None:
    lines = [line(root, root)]
    for folder, folders, files in os.walk(root):
        lines += [line(root, os.path.join(folder, name)) for name in (*folders, *files)]
    sys.stdout.write("\n".join(sorted(lines)) + "\n")


main(sys.argv[1])
