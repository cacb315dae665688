"""Programs that nobody ships, built by the Go of this machine and kept in the lab's cache."""

from __future__ import annotations

import os
from pathlib import Path

from demo import packages
from pannier.lab.process import run


def built(name: str, package: str, version: str, *, recipe: Path, report: packages.Report) -> Path:
    """A program that needs no libraries; built if it is not there, which takes a minute or two.

    Args:
        name: of the program's file. package: of its main package; version: of the module that has it.
        recipe: the file that says this: if it changes, the program is built again.

    Raises:
        LabError: there is no Go, or it cannot build it.
    """

    def make(draft: Path) -> Path:
        # A module that replaces others is refused by "go install": as a dependency it can be built.
        files = draft / "files"
        for command in (
            ["mod", "init", "scratch"],
            ["get", f"{package}@{version}"],
            ["build", "-o", f"{files}/", package],
        ):
            run(["go", "-C", str(draft), *command], env={**os.environ, "CGO_ENABLED": "0"})
        (files / package.rpartition("/")[2]).rename(files / name)
        return files

    return packages.kept(name, recipe=[Path(__file__), recipe], make=make, report=report) / name
